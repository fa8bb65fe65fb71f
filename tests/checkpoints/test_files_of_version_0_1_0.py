# SPDX-License-Identifier: Apache-2.0
"""Files that version 0.1 wrote load, and trainings go on from them with the same bits.

Low-precision states are rounded by other random bits since, and kept otherwise in 8 bits.

``python tests/checkpoints/test_files_of_version_0_1_0.py --record`` made them, with each MXNet, and must not be run again.
"""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mxadamax  # isort: skip  # Before MXNet, which Python 3.12 cannot import by itself.
import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from mxadamax import pickling
from mxadamax._mxnet.compatibility import IS_MXNET_1, gluon_arrays

pytestmark = pytest.mark.quick

SERIES = 1 if IS_MXNET_1 else 2
FILE = Path(__file__).parent / "files" / f"0.1.0-mxnet-{SERIES}.pickle"
SHAPES = {"weight": (5, 3), "bias": (7,), "gamma": (1,)}
STEPS = 4

OPTIMIZERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adamax_ext": ("adamax_ext", {}),
    "everything": (
        "adamax_ext",
        {
            **{"wd": 0.01, "clip_gradient": 1.0, "decoupled_wd": True, "maximize": True},
            **{"clip_global_norm": 2.0, "skip_nonfinite": True, "ema_decay": 0.9},
        },
    ),
    "adam_ext": ("adam_ext", {"wd": 0.01}),
    "amsgrad_ext": ("amsgrad_ext", {}),
    "adamw_ext": ("adamw_ext", {}),
    "nadam_ext": ("nadam_ext", {}),
    "adabelief_ext": ("adabelief_ext", {}),
    "rmsprop_ext": ("rmsprop_ext", {"centered": True, "epsilon": 1e-3}),
    "adagrad_ext": ("adagrad_ext", {}),
    "adadelta_ext": ("adadelta_ext", {}),
    "sgd_ext": ("sgd_ext", {"momentum": 0.9}),
    "nag_ext": ("nag_ext", {"lazy_update": True}),
    "int8": ("adam_ext", {"state_dtype": "int8", "state_seed": 5}),
    "bfloat16": ("adamax_ext", {"state_dtype": "bfloat16", "multi_precision": True}),
    "scheduler": (
        "adamax_ext",
        {
            "learning_rate": None,
            "lr_scheduler": mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.01),
        },
    ),
}

ROUNDED_OTHERWISE = {
    "int8": "8d7a44364b0246cacca63419547f6640c90bc62d19597be6b6c863383cf48aab",
    "bfloat16": "bd909e01a8cbc09736fe5bf7c99446d49182077522184e7138acb103de9abadf",
}
"""The digests of today, of weights that low-precision states moved."""


def parts(name: str) -> tuple[dict[str, gluon.Parameter], gluon.Trainer]:
    """Parameters and a trainer as the program makes them."""
    parameters = {}
    for key, shape in SHAPES.items():
        parameters[key] = gluon.Parameter(key, shape=shape, lr_mult=2.0 if key == "bias" else 1.0)
        parameters[key].initialize(mx.init.One())
    registered, options = OPTIMIZERS[name]
    return parameters, gluon.Trainer(list(parameters.values()), registered, dict(options))


def go_on(parameters: Mapping[str, gluon.Parameter], trainer: gluon.Trainer, steps: range) -> None:
    """Train for some steps, one of which has infinite gradients."""
    for step in steps:
        rng = np.random.RandomState(step)
        with autograd.record():
            loss = 0
            for key, parameter in parameters.items():
                values = np.ldexp(rng.randint(-255, 256, SHAPES[key]), -7).astype("float32")
                if step == 2 and trainer._optimizer.skip_nonfinite:
                    values[:] = np.inf
                loss = loss + (parameter.data() * gluon_arrays.array(values)).sum()
        loss.backward()
        trainer.step(2)


def digest(parameters: Mapping[str, gluon.Parameter]) -> str:
    """The digest of all weights."""
    found = hashlib.sha256()
    for parameter in parameters.values():
        found.update(parameter.data().asnumpy().tobytes())
    return found.hexdigest()


def recorded() -> dict[str, Any]:
    """By optimizer: the file, the weights of then, and the digest of those after some more steps."""
    found: dict[str, Any] = pickle.loads(FILE.read_bytes())
    return found


@pytest.fixture(autouse=True)
def shapes():
    with mx.util.np_shape(not IS_MXNET_1):
        yield


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on(name, tmp_path):
    file, weights, wanted = recorded()[name]
    (tmp_path / "states").write_bytes(file)
    parameters, trainer = parts(name)
    for key, values in weights.items():
        parameters[key].set_data(gluon_arrays.array(values))
    trainer.load_states(str(tmp_path / "states"))
    go_on(parameters, trainer, range(STEPS, 2 * STEPS))
    assert digest(parameters) == ROUNDED_OTHERWISE.get(name, wanted)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_that_of_the_file(name):
    file, _, _ = recorded()[name]
    states, optimizer = pickle.loads(file)
    registered, options = OPTIMIZERS[name]
    assert type(optimizer) is mx.optimizer.Optimizer.opt_registry[registered]
    assert sorted(states) == [0, 1, 2]
    for option, value in options.items():
        if option not in ("learning_rate", "lr_scheduler"):
            # Up to format 1 it was that of every parameter.
            expected = {".*": value} if option == "state_dtype" else value
            assert getattr(optimizer, option) == expected
    assert max(optimizer._index_update_count.values()) == STEPS


def test_files_of_newer_versions_are_refused():
    """With what to do; an older one of the class must not guess what they mean."""
    state = mxadamax.Adam().__getstate__()
    assert state["_format"] == pickling.FORMAT
    for found, said in ((99, "99"), ("2", "'2'"), (None, "None")):
        with pytest.raises(ValueError, match=f"has format {said}, of a newer version; this one re"):
            mxadamax.Adam().__setstate__({**state, "_format": found})


@pytest.mark.parametrize("name", mxadamax.__all__)
def test_classes_are_pickled_by_their_public_names(name):
    """Where they are inside the package may change; a class of somebody else's goes as it is."""
    found = getattr(mxadamax, name)
    if isinstance(found, type) and issubclass(found, mx.optimizer.Optimizer):
        text = pickletools.genops(pickle.dumps(found(), 2))
        named = [argument for opcode, argument, _ in text if "GLOBAL" in opcode.name]
        ours = [name for name in named if name.startswith("mxadamax")]
        assert ours == ["mxadamax.pickling new"]
        assert type(pickle.loads(pickle.dumps(found()))) is found
        assert type(pickle.loads(pickle.dumps(Own()))) is Own


class Own(mxadamax.Adam):
    """An optimizer of somebody who uses this package."""


def record() -> None:
    """Write the file."""
    found = {}
    FILE.parent.mkdir(exist_ok=True)
    for name in OPTIMIZERS:
        parameters, trainer = parts(name)
        go_on(parameters, trainer, range(STEPS))
        path = FILE.with_suffix(".states")
        trainer.save_states(str(path))
        weights = {key: parameter.data().asnumpy() for key, parameter in parameters.items()}
        file = path.read_bytes()
        path.unlink()
        go_on(parameters, trainer, range(STEPS, 2 * STEPS))
        found[name] = (file, weights, digest(parameters))
    FILE.write_bytes(pickle.dumps(found, 4))
    print(f"{len(found)} files, {FILE.stat().st_size} bytes")


if __name__ == "__main__" and "--record" in sys.argv:
    assert mxadamax.__version__ in FILE.name, "only that version may record"
    assert not FILE.exists(), f"{FILE} is there"
    with mx.util.np_shape(not IS_MXNET_1):
        record()
