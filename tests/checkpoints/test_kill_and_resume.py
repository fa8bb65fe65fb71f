# SPDX-License-Identifier: Apache-2.0
"""A training that is killed again and again ends with the bits of one that is not.

``MXADAMAX_KILLS=50 pytest tests/checkpoints/test_kill_and_resume.py`` kills as many times; by default a few.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
import resumable_training
from mxnet import autograd, gluon

from mxadamax.checkpoints import save_states

KILLS = int(os.environ.get("MXADAMAX_KILLS", "3"))
SUPPORT = Path(__file__).resolve().parents[1] / "support"


def killed_after(folder: Path, steps: int, seconds: float) -> None:
    """Run the training, and kill it so many steps later and a moment more."""
    process = subprocess.Popen(
        [sys.executable, str(SUPPORT / "resumable_training.py"), str(folder), str(10**6)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    too_late = threading.Timer(300, process.kill)
    too_late.start()
    try:
        seen = [process.stdout.readline() for _ in range(steps)]
        time.sleep(seconds)
    finally:
        process.kill()
        _, errors = process.communicate()
        too_late.cancel()
    assert seen[-1].startswith(b"step "), errors.decode()[-2000:]
    assert process.returncode == -signal.SIGKILL, errors.decode()[-2000:]


def test_same_bits_after_kills(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    rng = random.Random(2)
    checkpoints = [0]
    for _ in range(KILLS):
        steps = rng.randint(1, 12)
        killed_after(killed, steps, rng.uniform(0.0, 0.03))
        checkpoints.append(resumable_training.last_checkpoint(killed))
        begun = checkpoints[-2] + steps
        assert checkpoints[-1] >= begun - begun % resumable_training.EVERY, checkpoints
    resumable_training.main(killed, checkpoints[-1] + 10)
    resumable_training.main(whole, checkpoints[-1] + 10)
    print(f"{KILLS} kills, checkpoints at {checkpoints}")
    with np.load(killed / "result.npz") as found, np.load(whole / "result.npz") as wanted:
        assert sorted(found) == sorted(wanted)
        for name in wanted:
            assert found[name].tobytes() == wanted[name].tobytes(), name


def one_step(trainer: gluon.Trainer) -> None:
    with autograd.record():
        loss = (trainer._params[0].data() ** 2).sum()
    loss.backward()
    trainer.step(1)


@pytest.mark.parametrize(
    "moment, expected",
    [
        ("before fsync", "old"),
        ("in the middle", "old"),
        ("before rename", "old"),
        ("after rename", "new"),
    ],
)
def test_killed_while_it_writes(moment, expected, tmp_path):
    parameter = gluon.Parameter("weight", shape=(1000,))
    parameter.initialize(mx.init.One(), ctx=mx.cpu())
    trainer = gluon.Trainer([parameter], "adamax_ext")
    one_step(trainer)
    file = tmp_path / "file"
    save_states(trainer, file)
    old = file.read_bytes()
    one_step(trainer)
    mx.nd.waitall()

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_in_the_middle(descriptor):
        os.ftruncate(descriptor, len(old) // 2)
        die()

    replace = os.replace

    def die_after(source, target):
        replace(source, target)
        die()

    name, function = {
        "before fsync": ("fsync", die),
        "in the middle": ("fsync", die_in_the_middle),
        "before rename": ("replace", die),
        "after rename": ("replace", die_after),
    }[moment]
    child = os.fork()
    if child == 0:
        try:
            setattr(os, name, function)
            save_states(trainer, file)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if expected == "old":
        assert file.read_bytes() == old
        # What is left of the new one does not look like a checkpoint, and the next write succeeds.
        assert [path.suffix for path in tmp_path.iterdir() if path != file] == [".tmp"]
    _, optimizer = pickle.loads(file.read_bytes())
    assert optimizer.num_update == {"old": 1, "new": 2}[expected]
    save_states(trainer, file)
    assert pickle.loads(file.read_bytes())[1].num_update == 2
