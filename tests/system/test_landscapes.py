# SPDX-License-Identifier: Apache-2.0
"""The example on functions of two variables: every optimizer goes downhill, and to the minimum."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from family import CLASSES
from mxnet import autograd

from mxadamax._mxnet.compatibility import gluon_arrays

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mxadamax[examples]'")

# How far from the minimum each may end after 300 steps. On neither function do RMSProp and AdaDelta
# settle: their steps do not become shorter with the gradient. Weight decay draws AdamW to the
# origin, where the quadratic has its minimum.
NEAR = {
    "beale": {"adadelta_ext epsilon=0.0001": 0.25, "adamw_ext wd=0.01": 0.15, "adamax_ext": 0.15}
    # Its steps do not become shorter either, but with the weight.
    | {"lamb_ext": 0.2},
    "quadratic": {
        **{"sgd_ext": 0.03, "rmsprop_ext": 0.03, "adadelta_ext epsilon=0.0001": 0.1},
        **{"lion_ext": 0.06, "lamb_ext": 0.02},
    },
}
NEAR_OTHERS = {"beale": 0.1, "quadratic": 1e-5}


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "landscapes.py"
    spec = importlib.util.spec_from_file_location("landscapes", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "landscapes", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("landscapes")


@pytest.fixture(scope="module")
def paths(example, output):
    return example.main(["--steps", "300", "--animate", "--frames", "4", "--output", str(output)])


def test_every_optimizer_of_the_package_takes_part(example):
    # These are for other tasks: large batches, sparse models, embeddings, sampling, many workers.
    apart = {"signum", "ftml", "ftrl", "lars", "lans", "dcasgd", "bertadam", "sgld"}
    apart |= {"groupadagrad", "lbsgd", "ccsgd"}
    ours = {optimizer.registered_name for optimizer in CLASSES.values()}
    ours -= {f"{name}_ext" for name in apart}
    assert {walker.optimizer for walker in example.WALKERS} == ours
    assert len({walker.label for walker in example.WALKERS}) == len(example.WALKERS)


@pytest.mark.parametrize("name", ["beale", "quadratic"])
def test_all_come_to_the_minimum(example, paths, name):
    landscape = example.LANDSCAPES[name]
    assert landscape.function(*landscape.minimum) == 0
    assert len(paths[name]) == len(example.WALKERS)
    for label, path in paths[name].items():
        assert path.shape == (301, 2)
        assert tuple(path[0]) == landscape.start, label
        distance = np.hypot(*(path[-1] - landscape.minimum))
        assert distance < NEAR[name].get(label, NEAR_OTHERS[name]), label
        heights = landscape.function(*path.T)
        assert heights[-1] < heights[0] / 200, label


def test_gradient_descent_is_a_geometric_sequence_on_the_quadratic(example, paths):
    walker = example.WALKERS[0]
    assert walker.label == "sgd_ext"
    factors = 1 - walker.learning_rate * np.array([1, 100])
    expected = np.array([-4.0, 1.0]) * factors ** np.arange(301)[:, None]
    np.testing.assert_allclose(paths["quadratic"]["sgd_ext"], expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("x, y", [(1.0, 1.5), (3.0, 0.5), (-2.0, 0.7), (0.0, 1.0)])
def test_gradient_of_beale(example, x, y):
    point = gluon_arrays.array([x, y], dtype="float64")
    point.attach_grad()
    with autograd.record():
        value = example.beale(*point)
    value.backward()
    residuals = [c - x + x * y**k for c, k in ((1.5, 1), (2.25, 2), (2.625, 3))]
    by_x = sum(2 * r * (y**k - 1) for k, r in enumerate(residuals, 1))
    by_y = sum(2 * r * k * x * y ** (k - 1) for k, r in enumerate(residuals, 1))
    np.testing.assert_allclose(point.grad.asnumpy(), [by_x, by_y], rtol=1e-12, atol=1e-12)


def test_nothing_moves_without_a_gradient(example):
    """At the saddle of Beale's function the gradient is zero to the last bit.

    Zero moments divided by anything are zero, so all stay, but for the one with weight decay.
    """
    saddle = (0.0, 1.0)
    moved = set()
    for walker in example.WALKERS:
        path = example.walk(walker, example.beale, saddle, steps=20)
        if np.any(path != saddle):
            moved.add(walker.label)
        # The point of the test: a hair beside it they do move.
        beside = example.walk(walker, example.beale, (0.0, 1.0 + 1e-6), steps=20)
        assert np.all(beside[-1] != beside[0]), walker.label
    assert moved == {"adamw_ext wd=0.01"}


@pytest.mark.parametrize("name", ["beale", "quadratic"])
def test_pictures(paths, output, name):
    image = pytest.importorskip("PIL.Image")
    with image.open(output / f"{name}.png") as png:
        assert png.format == "PNG"
        assert min(png.size) > 500
    with image.open(output / f"{name}.gif") as gif:
        assert gif.format == "GIF"
        assert gif.n_frames == 4


def test_no_animation_unless_asked_for(example, tmp_path, capsys):
    example.main(["--function", "beale", "--steps", "2", "--output", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["beale.png"]
    printed = capsys.readouterr().out
    assert "Beale's function, from (1.0, 1.5), minimum at (3.0, 0.5)" in printed
    assert "Quadratic" not in printed
