# SPDX-License-Identifier: Apache-2.0
"""Every optimizer against MXNet's built-ins, for 300 steps with everything on, by all kernels.

That is with every instruction set and number of threads. It takes ten minutes to an hour:
``pytest -m long``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import environment_of_tests
from family import WITH_BUILT_IN
from long_training import KINDS, STEPS, options_of, train

from mxadamax import _native
from mxadamax.optimizers.arithmetic import built_in_class

pytestmark = pytest.mark.long

SUPPORT = Path(__file__).parents[1] / "support"
AGGREGATIONS = ({}, {"aggregate_num": 1}, {"aggregate_num": 5})
SETTINGS = [*itertools.product(_native.instruction_sets, (1, 2))]
"""Instruction sets and threads."""


@pytest.fixture(scope="module")
def processes():
    """A process for each of `SETTINGS`, which does the trainings that it is told."""
    started = {}
    for instruction_set, threads in SETTINGS:
        environment = environment_of_tests(
            MXADAMAX_INSTRUCTION_SET=instruction_set,
            OMP_NUM_THREADS=str(threads),
            # Several processes wait for one another.
            OMP_WAIT_POLICY="passive",
        )
        path = os.pathsep.join([str(SUPPORT), environment["PYTHONPATH"]])
        started[instruction_set, threads] = subprocess.Popen(
            [sys.executable, str(SUPPORT / "long_training.py")],
            env={**environment, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    yield started
    for process in started.values():
        process.communicate()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(len(WITH_BUILT_IN)), ids=map(str, WITH_BUILT_IN))
def test_every_step(processes, number, kind):
    member = WITH_BUILT_IN[number]
    if built_in_class(member.built_in) is None:
        pytest.skip("this MXNet has no such built-in")
    # What LARS computes depends on it.
    aggregations = AGGREGATIONS[: 1 if member.name == "lars_ext" else None]
    for process, more in zip(processes.values(), itertools.cycle(aggregations)):
        print(json.dumps([number, kind, more]), file=process.stdin, flush=True)
    try:
        expected = train(member, member.create_reference(kind, **options_of(member, kind)), kind)
    finally:
        # None is left for the next test.
        answers = {setting: process.stdout.readline() for setting, process in processes.items()}
    for (setting, answer), more in zip(answers.items(), itertools.cycle(aggregations)):
        found = json.loads(answer)
        different = [step + 1 for step in range(STEPS) if found[step] != expected[step]]
        assert not different, f"{setting}, {more}: from step {different[0]} on"
