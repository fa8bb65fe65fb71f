# SPDX-License-Identifier: Apache-2.0
"""Horovod: two processes that average their gradients end with the weights of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from common import assert_same_bits

import mxadamax

pytest.importorskip(
    "horovod.mxnet",
    reason="needs Horovod built for MXNet: docs/distributed.md says how",
    exc_type=ImportError,
)

TRAINING = """
import sys
import mxadamax
import mxnet as mx, numpy as np
from mxnet import autograd, gluon
from mxadamax._mxnet.compatibility import gluon_arrays, seed_all

BATCH = 8

def train(make_trainer, mine, options):
    "Train with these of the two halves of every batch, each on a device of its own."
    seed_all(0)
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(16, activation="relu"), gluon.nn.Dense(3))
    devices = [mx.cpu(k) for k in range(len(mine))]
    net.initialize(mx.init.Xavier(), devices)
    for device in devices:
        net(gluon_arrays.zeros((1, 5), ctx=device))
    params = list(net.collect_params().values())
    params[0].lr_mult, params[1].wd_mult, params[2].grad_req = 0.5, 2.0, "null"
    trainer = make_trainer(net.collect_params(), options)
    loss_of = gluon.loss.L2Loss()
    random = np.random.RandomState(1)
    for step in range(6):
        # Halves of different sizes of gradients; in step 3 one half is not finite.
        inputs = random.standard_normal((2, BATCH // 2, 5)) * [[[1.0]], [[3.0]]]
        targets = random.standard_normal((2, BATCH // 2, 3))
        if step == 3 and "skip_nonfinite" in options:
            targets[1] = np.inf
        with autograd.record():
            losses = []
            for half, device in zip(mine, devices):
                x, y = (
                    gluon_arrays.array(array[half], dtype="float32", ctx=device)
                    for array in (inputs, targets)
                )
                losses.append(loss_of(net(x), y))
        autograd.backward(losses)
        # DistributedTrainer divides by the number of processes.
        trainer.step(BATCH // 2 * len(mine))
    return [p.data(devices[0]).asnumpy() for p in params], trainer.optimizer.skipped_steps

if sys.argv[1] == "horovod":
    import horovod.mxnet as hvd

    hvd.init()
    assert hvd.size() == 2
    mine, name = [hvd.rank()], f"rank-{hvd.rank()}"

    def make_trainer(params, options):
        make_trainer.prefix += "again"
        hvd.broadcast_parameters(params, root_rank=0, prefix=make_trainer.prefix)
        return hvd.DistributedTrainer(
            params, "adamax_ext", options, prefix=make_trainer.prefix
        )

    make_trainer.prefix = ""
else:
    mine, name = [0, 1], "alone"

    def make_trainer(params, options):
        return gluon.Trainer(params, "adamax_ext", options, kvstore="device")

plain = {"learning_rate": 0.05, "wd": 0.1}
arrays, skips = [], []
for options in (plain, {**plain, "clip_global_norm": 0.5, "skip_nonfinite": True}):
    weights, skipped = train(make_trainer, mine, options)
    arrays += weights
    skips.append(skipped)
np.savez(f"{sys.argv[2]}/{name}.npz", *arrays, skips)
"""


def test_two_ranks_equal_one_process(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    package = str(Path(mxadamax.__file__).resolve().parents[1])
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    horovodrun = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", "2"]
    loopback = ["-H", "localhost:2", "--network-interfaces", "lo"]
    command = [sys.executable, script, "horovod", tmp_path]
    for run in ([*horovodrun, *loopback, *command], [sys.executable, script, "alone", tmp_path]):
        found = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stdout + found.stderr

    alone, *ranks = (np.load(tmp_path / f"{name}.npz") for name in ("alone", "rank-0", "rank-1"))
    assert len(alone.files) == 2 * 4 + 1
    for number, name in enumerate(alone.files):
        for rank, arrays in enumerate(ranks):
            actual, expected = arrays[name], alone[name]
            assert_same_bits(actual, expected, f"rank {rank}, array {number}")
    # The step that is not finite for one half is skipped by both.
    assert list(alone[alone.files[-1]]) == [0, 1]
    assert all(np.isfinite(alone[name]).all() for name in alone.files)
