# SPDX-License-Identifier: Apache-2.0
"""A script may import MXNet and this package in any order, whatever MXNet makes of its process.

On servers and schedulers MXNet's import never comes back: a server unpickles the optimizer, and so
imports this package, inside of it. Here there are no other processes. What they would send comes at
the very place where MXNet waits for it; test_distributed.py has real servers.
"""

from __future__ import annotations

import pickle
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from common import MXNET_FIRST, NUMPY_BOOL, Run, assert_same_bits, environment_of_tests

import mxadamax

SHAPES = [(7, 3), (5,)]
STEPS = 4

ALONE = """
import os, pickle, sys
import numpy as np

role = os.environ.get("DMLC_ROLE")
sent, weights, gradients, saved = sys.argv[1:]


def load(name):
    with np.load(name) as arrays:
        return [arrays[f"arr_{k}"] for k in range(len(arrays.files))]


def update(store):
    # Through C, as MXNet does it; what that drops ends up in no exception.
    from mxnet.ndarray import array

    after, many = [], load(weights)
    for key, weight in enumerate(many):
        store.init(key, array(weight))
    for number, gradient in enumerate(load(gradients)):
        key = number % len(many)
        store.push(key, array(gradient))
        out = array(many[key])
        store.pull(key, out=out)
        after.append(out.asnumpy())
    np.savez(saved, *after)


class WithoutOthers:
    # Asked for each module. The one that runs a server or a scheduler finds what this has put there.
    def find_spec(self, name, path=None, target=None):
        if name == "mxnet.kvstore.kvstore_server":
            from mxnet.base import _LIB
            from mxnet.kvstore import base

            create, stores = base.create, []

            def create_local(_):
                stores.append(create("local"))
                return stores[0]

            def run(_, controller, __):
                if role == "server":
                    with open(sent, "rb") as stream:
                        controller(0, stream.read(), None)
                    update(stores[0])
                    print("served,", "mxadamax" in sys.modules)
                return 0

            base.create, _LIB.MXKVStoreRunServer = create_local, run


sys.meta_path.insert(0, WithoutOthers())
"""

TRAIN = """
import mxnet as mx

with open(sent, "rb") as stream:
    optimizer = pickle.loads(stream.read())
store = mx.kv.create("local")
store.set_optimizer(optimizer)
update(store)
assert sys.unraisablehook is sys.__unraisablehook__
print("trained")
"""

MAIN = """
def main():
    import mxnet as mx
    from mxnet import gluon
    import mxadamax

"""

ORDERS = {
    "mxnet first": MXNET_FIRST + TRAIN,
    "mxadamax first": "import mxadamax\n" + TRAIN,
    "in a function": NUMPY_BOOL + MAIN + "main()\n" + TRAIN,
    "in a thread": NUMPY_BOOL
    + "import threading\n"
    + MAIN
    + "thread = threading.Thread(target=main)\nthread.start()\nthread.join()\n"
    + "if role in ('server', 'scheduler'):\n    sys.exit()\n"
    + TRAIN,
    "only by unpickling": NUMPY_BOOL + TRAIN,
}


@pytest.fixture
def process(tmp_path):
    """Run a script as a process of a cluster with this optimizer; what it ends with."""

    def run(order: str, role: str | None, optimizer: mx.optimizer.Optimizer | bytes):
        rng = np.random.RandomState(0)
        weights = [rng.standard_normal(shape).astype("f4") for shape in SHAPES]
        gradients = [
            rng.standard_normal(shape).astype("f4") for _ in range(STEPS) for shape in SHAPES
        ]
        if not isinstance(optimizer, bytes):
            # As a worker sends it.
            optimizer = pickle.dumps(optimizer, 0)
        (tmp_path / "sent").write_bytes(optimizer)
        np.savez(tmp_path / "weights.npz", *weights)
        np.savez(tmp_path / "gradients.npz", *gradients)
        names = ("sent", "weights.npz", "gradients.npz", "after.npz")
        environment = environment_of_tests(**({"DMLC_ROLE": role} if role else {}))
        return subprocess.run(
            [sys.executable, "-c", ALONE + ORDERS[order], *(str(tmp_path / n) for n in names)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def assert_weights_of_one_process(folder, optimizer) -> None:
    """Fail unless the process has written, after each step, the weights that it should have."""
    with np.load(folder / "weights.npz") as arrays:
        run = Run(pickle.loads(pickle.dumps(optimizer)), [arrays[name] for name in arrays.files])
    with np.load(folder / "gradients.npz") as arrays:
        gradients = [arrays[name] for name in arrays.files]
    with np.load(folder / "after.npz") as arrays:
        after = [arrays[name] for name in arrays.files]
    assert len(after) == STEPS * len(SHAPES)
    for step in range(STEPS):
        part = slice(step * len(SHAPES), (step + 1) * len(SHAPES))
        run.step(gradients[part])
        for number, (found, weight) in enumerate(zip(after[part], run.weights)):
            assert_same_bits(found, weight.asnumpy(), f"step {step}, weight {number}")


def adamax() -> mxadamax.Adamax:
    scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=0.1)
    return mxadamax.Adamax(learning_rate=0.1, wd=0.1, lr_scheduler=scheduler, aggregate_num=1)


PROCESSES = [
    *(("server", order) for order in ORDERS),
    *(("worker", order) for order in ORDERS),
    # MXNet's import comes back as for a worker, and most other tests import this package first.
    (None, "mxnet first"),
    (None, "only by unpickling"),
    # These never hear of an optimizer.
    ("scheduler", "mxnet first"),
    ("scheduler", "mxadamax first"),
    ("scheduler", "in a thread"),
]


@pytest.mark.parametrize(("role", "order"), PROCESSES)
def test_every_process_does_its_part(order, role, process, tmp_path):
    done = process(order, role, adamax())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    does = {"server": "served, True\n", "scheduler": ""}
    assert done.stdout == does.get(role, "trained\n")
    if role == "scheduler":
        assert not (tmp_path / "after.npz").exists()
    else:
        assert_weights_of_one_process(tmp_path, adamax())


@pytest.mark.parametrize("order", ["mxnet first", "mxadamax first"])
def test_a_server_of_another_optimizer(order, process, tmp_path):
    optimizer = mx.optimizer.SGD(learning_rate=0.1, wd=0.1, momentum=0.9)
    done = process(order, "server", optimizer)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == f"served, {order == 'mxadamax first'}\n"
    assert_weights_of_one_process(tmp_path, optimizer)


def out_of_range() -> mxadamax.Adamax:
    optimizer = adamax()
    optimizer.beta1 = 2.0
    return optimizer


class OfTheScript(mxadamax.Adamax):
    """A class that servers do not have, as they never come further than the import of MXNet."""


def not_there() -> bytes:
    return pickle.dumps(OfTheScript(), 0).replace(OfTheScript.__module__.encode(), b"__main__")


@pytest.mark.parametrize(
    ("order", "sent", "message"),
    [
        ("mxnet first", out_of_range, "beta1 must be in [0, 1), got 2.0"),
        ("in a thread", out_of_range, "beta1 must be in [0, 1), got 2.0"),
        ("mxnet first", not_there, "Can't get attribute 'OfTheScript' on <module '__main__'"),
    ],
    ids=["update", "update in a thread", "optimizer"],
)
def test_a_server_that_fails_ends(order, sent, message, process, tmp_path):
    done = process(order, "server", sent())
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.endswith(
        "mxadamax: this parameter server ends here; MXNet would continue without the update\n"
    )
    assert not (tmp_path / "after.npz").exists()
