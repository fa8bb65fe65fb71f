# SPDX-License-Identifier: Apache-2.0
"""Forks, threads, interrupts, exits and missing memory in the middle of training: nothing is torn."""

import itertools
import sys
import threading

import mxnet as mx
import numpy as np
import pytest
from common import Run, gradients, run_python
from family import FAMILY

import mxadamax

SHAPES = [(30, 40), (7,), (), (40000,)]
STEPS = 8

OPTIONS = [
    {},
    {"ema_decay": 0.9, "wd": 0.01},
    {"skip_nonfinite": True},
    {"clip_global_norm": 0.5, "skip_nonfinite": True},
    {"decoupled_wd": True, "wd": 0.1},
]


def start(optimizer):
    rng = np.random.RandomState(3)
    return Run(optimizer, [np.asarray(rng.standard_normal(s), "float32") for s in SHAPES])


def every_leaf(state):
    """The arrays of a state, of nested ones as well."""
    if state is None:
        return []
    if isinstance(state, (tuple, list)):
        return [leaf for part in state for leaf in every_leaf(part)]
    return [state]


def everything(run):
    states = [run.updater.states.get(k) for k in run.indices]
    arrays = [*run.weights, *(x for state in states for x in every_leaf(state))]
    return [array.asnumpy().tobytes() for array in arrays]


# Threads.


def test_trainings_in_threads():
    """All optimizers with all options at once: the bits of one after another."""
    tasks = [
        (member, options)
        for member, options in itertools.product(FAMILY, OPTIONS)
        # Which refuses it.
        if not (member.name == "nadam_ext" and "skip_nonfinite" in options)
    ]
    make = [lambda m=m, o=o: m.create(**{**m.options, **o}) for m, o in tasks]
    expected = []
    for create in make:
        run = start(create())
        for grads in gradients(SHAPES, "float32", STEPS):
            run.step(grads)
        expected.append(everything(run))
    found = [None] * len(tasks)
    begin = threading.Barrier(3)

    def work(first):
        begin.wait()
        with mx.util.np_shape(True):
            for k in range(first, len(tasks), 3):
                run = start(make[k]())
                for grads in gradients(SHAPES, "float32", STEPS):
                    run.step(grads)
                found[k] = everything(run)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for task, mine, wanted in zip(tasks, found, expected):
        assert mine == wanted, task


# Interrupts.


class Interrupted:
    """Raises KeyboardInterrupt at the n-th opcode that runs in a file of this package."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)

    def trace(self, frame, event, argument):
        if "/mxadamax/optimizers/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.9, "wd": 0.01}, {"skip_nonfinite": True}], ids=str
)
def test_interrupt_at_any_moment_of_a_step(options):
    """Weights and states are all of the step before or all of the one after it, and so are counts."""
    shapes = [(3, 4), (5,)]
    rng = np.random.RandomState(0)
    weights = [np.asarray(rng.standard_normal(s), "float32") for s in shapes]
    steps = list(gradients(shapes, "float32", 3))

    def at(count, interrupt=None):
        run = Run(mxadamax.Adamax(**options), weights)
        for grads in steps[:count]:
            run.step(grads)
        if interrupt is None:
            return run, False
        arrays = [mx.nd.array(g) for g in steps[count]]
        try:
            with Interrupted(interrupt):
                run.updater(list(run.indices), arrays, list(run.weights))
        except KeyboardInterrupt:
            return run, True
        return run, False

    before, after, end = (everything(at(count)[0]) for count in (1, 2, 3))
    for moment in itertools.count(1):
        run, interrupted = at(1, moment)
        found = everything(run)
        assert found in (before, after), f"torn at opcode {moment}"
        assert set(run.optimizer._index_update_count.values()) == {1 + (found == after)}, moment
        for grads in steps[1 if found == before else 2 :]:
            run.step(grads)
        assert everything(run) == end, f"goes on otherwise at opcode {moment}"
        if not interrupted:
            break
    assert moment > 100


INTERRUPT = """
import os
import signal
import sys
import threading
import time
from common import Run
import mxnet as mx
import numpy as np

# Jobs in the background begin with signals from the keyboard switched off.
signal.signal(signal.SIGINT, signal.default_int_handler)
shapes = [(200, 300), (50,), (100000,)]
options = {"skip_nonfinite": True} if sys.argv[1] == "skip" else {}
rng = np.random.RandomState(0)
weights = [np.asarray(rng.standard_normal(s), "float32") for s in shapes]
grads = [mx.nd.array(rng.standard_normal(s), dtype="float32") for s in shapes]
make = lambda: Run(mxadamax.Adamax(**options), weights)

def everything(run):
    # Of some of them there may be states already, before the first step.
    made = run.updater.states
    states = [made.get(k) or run.optimizer.create_state(k, w) for k, w in enumerate(run.weights)]
    return [a.asnumpy().tobytes() for a in [*run.weights, *sum(states, ())]]

def interrupt(seconds, heeded):
    # Once more after a while: where it comes in a destructor, Python drops it.
    while not heeded.wait(seconds):
        os.kill(os.getpid(), signal.SIGINT)
        seconds = 0.2

moments = np.random.RandomState(1).uniform(0, 0.03, 12)
for seconds in moments:
    run = make()
    heeded = threading.Event()
    sender = threading.Thread(target=interrupt, args=(seconds, heeded))
    done = 0
    try:
        sender.start()
        while True:
            run.updater(list(run.indices), grads, list(run.weights))
            done += 1
    except KeyboardInterrupt:
        heeded.set()
    sender.join()
    mx.nd.waitall()
    found = everything(run)
    fresh = make()
    matches = []
    for step in range(done + 2):
        if everything(fresh) == found:
            matches.append(step)
        fresh.updater(list(fresh.indices), grads, list(fresh.weights))
    assert matches, f"after {done} steps: weights and states of no step"
print("consistent")
"""


@pytest.mark.parametrize("kind", ["plain", "skip"])
def test_a_signal_while_training(kind):
    """Ctrl-C at twelve moments: what is there is what some number of whole steps makes."""
    assert run_python(INTERRUPT, kind).split()[-1] == "consistent"


# Forks.

FORK = """
import hashlib
import os
from common import Run
import mxnet as mx
import numpy as np

shapes = [(200, 300), (50,), (100000,)]
rng = np.random.RandomState(0)
weights = [np.asarray(rng.standard_normal(s), "float32") for s in shapes]
grads = [mx.nd.array(rng.standard_normal(s), dtype="float32") for s in shapes]

def digest(run):
    arrays = [*run.weights, *(a for k in run.indices for a in run.updater.states[k])]
    return hashlib.sha256(b"".join(a.asnumpy().tobytes() for a in arrays)).hexdigest()

def steps(run, count):
    for _ in range(count):
        run.updater(list(run.indices), grads, list(run.weights))

expected = {}
for count in (5, 8, 10):
    run = Run(mxadamax.Adamax(skip_nonfinite=True), weights)
    steps(run, count)
    expected[count] = digest(run)

run = Run(mxadamax.Adamax(skip_nonfinite=True), weights)
steps(run, 5)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    steps(run, 3)
    os.write(writer, digest(run).encode())
    os._exit(0)
steps(run, 5)
assert digest(run) == expected[10], "the parent"
assert os.waitpid(child, 0)[1] == 0
assert os.read(reader, 100).decode() == expected[8], "the child"
print("both")
"""


def test_both_sides_of_a_fork_go_on():
    """With updates under way, and steps that may be left out; each side trains its own copy."""
    assert run_python(FORK, OMP_NUM_THREADS="2").split()[-1] == "both"


LOADER = """
import hashlib
import sys
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

mx.random.seed(0)
rng = np.random.RandomState(0)
data = gluon.data.ArrayDataset(rng.rand(64, 12).astype("float32"), rng.rand(64, 1).astype("float32"))
net = gluon.nn.Dense(1, in_units=12)
net.initialize(mx.init.One())
trainer = gluon.Trainer(net.collect_params(), "adamax_ext", kvstore=None)
for epoch in range(2):
    # The workers are forked while the updates of the last epoch may be under way.
    for x, y in gluon.data.DataLoader(data, batch_size=16, num_workers=int(sys.argv[1])):
        with autograd.record():
            loss = ((net(x) - y) ** 2).sum()
        loss.backward()
        trainer.step(16)
print(hashlib.sha256(net.weight.data().asnumpy().tobytes()).hexdigest())
"""


def test_workers_of_a_data_loader():
    outputs = [run_python(LOADER, workers).split()[-1] for workers in ("0", "2")]
    assert outputs[0] == outputs[1]


# Exits.


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(0)",
        "os._exit(0)",
        "threading.Thread(target=train).start()",
        "del optimizer, weights, grads, states",
        # The failure of an update that nobody waits for.
        "_native = native(); _native.push_failure(weights, 'nobody sees it')",
    ],
)
def test_ways_to_end_with_updates_under_way(ending):
    code = f"""
import os
import sys
import threading
import mxnet as mx
from mxadamax._mxnet.engine import native

optimizer = mxadamax.Adamax(skip_nonfinite=True, ema_decay=0.9)
weights, grads = ([mx.nd.ones((3000, 1000)) for _ in range(3)] for _ in range(2))
states = [optimizer.create_state(k, w) for k, w in enumerate(weights)]

def train():
    for _ in range(5):
        optimizer.fused_step([0, 1, 2], weights, grads, states)

train()
print("left", flush=True)
{ending}
"""
    assert run_python(code).split()[-1] == "left"


# Memory.

MEMORY = """
import resource
import sys
import mxnet as mx
import numpy as np
from common import Run

large = (60_000_000,)
weights = [np.ones((5,), "float32"), np.ones(large, "float32"), np.ones((7,), "float32")]
grads = [mx.nd.ones(w.shape) for w in weights]
run = Run(mxadamax.Adamax(), weights)
mx.nd.waitall()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
unlimited = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + 300_000_000, unlimited[1]))
try:
    run.updater(list(run.indices), grads, list(run.weights))
    mx.nd.waitall()
    for weight in run.weights:
        weight.wait_to_read()
except (mx.MXNetError, MemoryError) as error:
    print("refused", type(error).__name__)
else:
    sys.exit("there was enough memory after all")
resource.setrlimit(resource.RLIMIT_AS, unlimited)
for weight in run.weights:
    try:
        weight.wait_to_read()
    except mx.MXNetError:
        pass
for weight in run.weights:
    assert np.all(weight.asnumpy() == 1), "torn"
print("whole")
"""


def test_no_memory_for_states():
    """The step fails with MXNet's error, and no weight has been changed."""
    output = run_python(MEMORY, OMP_NUM_THREADS="1").split()
    assert output[-3:] == ["refused", "MXNetError", "whole"], output
