# SPDX-License-Identifier: Apache-2.0
"""Time this package's optimizers against MXNet's built-in ones, PyTorch's, and the memory itself.

All contenders of a case run in turn, one call each per round, so that whatever else the machine
does meets all of them alike. Which memory a contender happens to get can make a difference of a
half and more, so each case is built several times, each time in another order. Compare medians of
one run, never of two.

Contenders
----------
adamax_ext, adamax, adam
    Gluon's Trainer with this package's AdaMax and with the built-ins.
nothing
    Gluon's Trainer with an optimizer that does nothing: what Trainer itself costs.
floor
    A compiled loop that reads and writes what adamax_ext must, in one call and on the very same
    arrays, and computes next to nothing: what the memory allows.
torch adamax, torch adam
    PyTorch's AdaMax (foreach) and Adam (fused), where PyTorch is installed.

The cases named family-... do the same for the other optimizers, each with a floor of its own: for
as many arrays as it reads and writes. The built-in beside AMSGrad, which MXNet does not have, is
``adam``. PyTorch's are the fused ones where it has them, else the foreach ones. In half-25m,
weights and gradients are float16, with float32 master weights. In embedding-1000-rows, a row-sparse
gradient holds 1000 rows of a million; each contender takes a step untimed before the timed one, so
that a step of a tenth of a millisecond is not measured by how long ago the last one was. With
50-steps, fifty are timed together, each of other rows, with one wait after the last. In
options-25m and options-adam-25m each contender is the optimizer with one more option; those named
``gluon clip``, of this package and the built-in, call gluon.utils.clip_global_norm before the step.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib.util
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple, Union

import mxadamax
from mxadamax import _native
from mxadamax.compatibility import WHOLE_MODEL, StepOptimizer, gluon_arrays

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.base import _LIB, check_call
from mxnet.gluon import nn
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

# After MXNet, so that both run on the OpenMP library that MXNet has loaded.
torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

Shape = Tuple[int, ...]
Samples = Dict[str, List[float]]

BUILDS = 5
"""How often a case is built: how fast memory is depends on where the system had some left."""

WARM_UP_ROUNDS = 2
SETTLE_SECONDS = 0.003
"""Before each call: OpenMP's threads go on spinning for a while after their work is done."""


class Contender(NamedTuple):
    """What is timed.

    Parameters
    ----------
    call : callable
        The call that is timed. Returns when all its work is done.
    prepare : callable
        Called before each call, untimed.
    """

    call: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


Builder = Callable[[], Dict[str, Contender]]


class Case(NamedTuple):
    """A set of contenders that do the same work.

    Parameters
    ----------
    builders : sequence of callable
        Each returns contenders by name: one, or some that share memory.
    rounds : int
        How many times each is timed by default.
    elements : callable
        Returns how many trainable numbers the model has.
    ours, built_in, torch : str
        The contenders that the summary compares.
    """

    builders: Sequence[Builder]
    rounds: int
    elements: Callable[[], int]
    ours: str = "adamax_ext"
    built_in: str = "adamax"
    torch: str = "torch adamax"


# ---------------------------------------------------------------- shapes of well-known models


def resnet50_shapes() -> list[Shape]:
    """The trainable parameters of ResNet-50 for ImageNet."""

    def convolution(inputs: int, outputs: int, kernel: int) -> list[Shape]:
        return [(outputs, inputs, kernel, kernel), (outputs,), (outputs,)]

    channels = 64
    shapes = convolution(3, channels, 7)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            if block == 0:
                shapes += convolution(channels, 4 * width, 1)
            shapes += convolution(channels, width, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(width, 4 * width, 1)
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def bert_base_shapes() -> list[Shape]:
    """The parameters of BERT-base with its pooler, without heads for tasks."""
    units, hidden = 768, 3072

    def dense(inputs: int, outputs: int) -> list[Shape]:
        return [(outputs, inputs), (outputs,)]

    norm: list[Shape] = [(units,), (units,)]
    attention = 4 * dense(units, units) + norm
    feed_forward = dense(units, hidden) + dense(hidden, units) + norm
    embeddings: list[Shape] = [(30522, units), (512, units), (2, units), *norm]
    return embeddings + 12 * (attention + feed_forward) + dense(units, units)


def elements_of(shapes: Sequence[Shape]) -> int:
    """How many numbers arrays of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes)


# ---------------------------------------------------------------- contenders


class Nothing(StepOptimizer):
    """An optimizer that does nothing, for all parameters at once."""

    def __init__(self, learning_rate: float = 0.0):
        super().__init__(
            learning_rate=learning_rate, aggregate_num=WHOLE_MODEL, use_fused_step=True
        )

    def create_state(self, index: int, weight: mx.nd.NDArray) -> None:
        """No state."""

    def fused_step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """No step."""


Optimizer = Union[str, Callable[..., mx.optimizer.Optimizer]]

OPTIMIZERS: dict[str, Optimizer] = {
    "adamax_ext": "adamax_ext",
    "adamax": "adamax",
    "adam": "adam",
    "nothing": Nothing,
}


class Peers(NamedTuple):
    """An optimizer of this package and what to compare it with.

    Parameters
    ----------
    ours, built_in : str
        Names in MXNet's registry.
    options : dict
        Options of both.
    torch : tuple of str and dict, or None
        The class in ``torch.optim`` and its options.
    """

    ours: str
    built_in: str
    options: dict[str, Any]
    torch: tuple[str, dict[str, Any]] | None


FAMILY: dict[str, Peers] = {
    "adam": Peers("adam_ext", "adam", {}, ("Adam", {"fused": True})),
    "amsgrad": Peers("amsgrad_ext", "adam", {}, ("Adam", {"fused": True, "amsgrad": True})),
    "adamw": Peers("adamw_ext", "adamw", {"wd": 0.01}, ("AdamW", {"fused": True})),
    "nadam": Peers("nadam_ext", "nadam", {}, ("NAdam", {"foreach": True})),
    "adabelief": Peers("adabelief_ext", "adabelief", {}, None),
    "rmsprop": Peers("rmsprop_ext", "rmsprop", {}, ("RMSprop", {"foreach": True})),
    "rmsprop-centered": Peers(
        "rmsprop_ext",
        "rmsprop",
        {"centered": True, "epsilon": 1e-3},
        ("RMSprop", {"foreach": True, "centered": True, "momentum": 0.9}),
    ),
    "adagrad": Peers("adagrad_ext", "adagrad", {}, ("Adagrad", {"fused": True})),
    "adadelta": Peers("adadelta_ext", "adadelta", {}, ("Adadelta", {"foreach": True})),
    "sgd": Peers("sgd_ext", "sgd", {}, ("SGD", {"fused": True})),
    "sgd-momentum": Peers(
        "sgd_ext", "sgd", {"momentum": 0.9}, ("SGD", {"fused": True, "momentum": 0.9})
    ),
    "nag": Peers(
        "nag_ext",
        "nag",
        {"momentum": 0.9},
        ("SGD", {"fused": True, "momentum": 0.9, "nesterov": True}),
    ),
}


def make_trainer(params: Any, optimizer: Optimizer, **options: Any) -> gluon.Trainer:
    """A Trainer for one device, without a key-value store."""
    if isinstance(optimizer, str):
        return gluon.Trainer(params, optimizer, options, kvstore=None)
    return gluon.Trainer(params, optimizer(**options), kvstore=None)


@functools.lru_cache(maxsize=None)
def random_numbers() -> np.ndarray:
    """A million random numbers."""
    return np.random.RandomState(0).standard_normal(1 << 20).astype(np.float32)


def random_like(shape: Shape) -> np.ndarray:
    """Random numbers, repeated where many are asked for: which they are makes no difference."""
    return np.resize(random_numbers(), shape)


def trainer_update(
    shapes: Sequence[Shape], optimizer: Optimizer, **options: Any
) -> tuple[Contender, gluon.Trainer]:
    """`Trainer.step` with gradients that are there already; 16 bits with `multi_precision`."""
    dtype = "float16" if options.get("multi_precision") else "float32"
    params = [gluon.Parameter(f"p{k}", shape=shape, dtype=dtype) for k, shape in enumerate(shapes)]
    for param, shape in zip(params, shapes):
        param.initialize(mx.init.Zero())
        param.grad()[:] = gluon_arrays.array(random_like(shape), dtype=dtype)
    arrays = [param.data() for param in params]
    trainer = make_trainer(params, optimizer, **options)

    def prepare() -> None:
        # Trainer refuses gradients that no backward pass has written.
        for array in arrays:
            array._fresh_grad = True
        mx.nd.waitall()

    def call() -> None:
        trainer.step(1)
        mx.nd.waitall()

    return Contender(call, prepare), trainer


@functools.lru_cache(maxsize=None)
def compile_floor() -> ctypes.CDLL:
    """memory_floor.cc as compiled for this processor by the compiler that CXX names."""
    source = Path(__file__).with_name("memory_floor.cc")
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "memory_floor.so")
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
        floor = ctypes.CDLL(str(library))
    floor.memory_floor.restype = floor.memory_floor_16.restype = None
    return floor


def address(array: mx.nd.NDArray) -> int:
    """Where an array lies."""
    data = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(data)))
    return data.value or 0


def floor_of(
    grads: Sequence[mx.nd.NDArray],
    written: Sequence[Sequence[mx.nd.NDArray]],
    copies: Sequence[mx.nd.NDArray] = (),
) -> Callable[[], None]:
    """What reads the gradients, and reads and writes the weight and the states of each, once.

    With 16-bit gradients it also writes a 16-bit copy of each weight.
    """
    tensors, states = len(grads), len(written[0]) - 1
    mx.nd.waitall()

    def addresses(arrays: Sequence[mx.nd.NDArray]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * len(arrays))(*map(address, arrays))

    arguments = [
        ctypes.c_int64(tensors),
        ctypes.c_int64(states),
        (ctypes.c_int64 * tensors)(*(grad.size for grad in grads)),
        addresses(grads),
        addresses([array for arrays in written for array in arrays]),
        *([addresses(copies)] if copies else []),
        ctypes.c_int64(omp_threads()),
    ]
    floor = compile_floor().memory_floor_16 if copies else compile_floor().memory_floor
    return lambda: floor(*arguments)


def update_and_floor(shapes: Sequence[Shape], name: str, **options: Any) -> dict[str, Contender]:
    """An optimizer of this package, and what the memory allows on the very arrays it updates.

    On other arrays the floor could come out a third higher or lower, by where in the machine's
    memory the system happened to put them.
    """
    contender, trainer = trainer_update(shapes, name, **options)
    contender.prepare()
    contender.call()
    params, states = trainer._params, trainer._updaters[0].states
    grads, weights = ([getattr(p, which)() for p in params] for which in ("grad", "data"))
    if options.get("multi_precision"):
        masters = [[states[k][0], *leaves(states[k][1])] for k in range(len(params))]
        return {name: contender, "floor": Contender(floor_of(grads, masters, weights))}
    written = [[weight, *leaves(states[k])] for k, weight in enumerate(weights)]
    return {name: contender, "floor": Contender(floor_of(grads, written))}


def leaves(state: Any) -> list[mx.nd.NDArray]:
    """The arrays of a state."""
    if state is None:
        return []
    return list(state) if isinstance(state, (list, tuple)) else [state]


def torch_params(shapes: Sequence[Shape]) -> list[Any]:
    """Parameters of PyTorch's with gradients."""
    params = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.rand(shape))
        param.grad = torch.from_numpy(random_like(shape))
        params.append(param)
    return params


def torch_updates(shapes: Sequence[Shape]) -> dict[str, Contender]:
    """Steps of PyTorch's optimizers, on the same weights: memory is short with large models."""
    params = torch_params(shapes)
    return {
        "torch adamax": Contender(torch.optim.Adamax(params, foreach=True).step),
        "torch adam": Contender(torch.optim.Adam(params, fused=True).step),
    }


def with_trainers(make: Callable[[Optimizer], Contender]) -> list[Builder]:
    """What builds the contenders that have a Trainer."""

    def builder(name: str, optimizer: Optimizer) -> Builder:
        return lambda: {name: make(optimizer)}

    return [builder(name, optimizer) for name, optimizer in OPTIMIZERS.items()]


def update_case(shapes: Sequence[Shape], rounds: int) -> Case:
    """Everything that updates weights of these shapes, without a model."""

    def with_trainer(optimizer: Optimizer) -> Contender:
        # Trainer looks into no array, so where the optimizer does not either, small ones do.
        shapes_of = [(1,)] * len(shapes) if optimizer is Nothing else shapes
        return trainer_update(shapes_of, optimizer)[0]

    builders = with_trainers(with_trainer)
    builders[0] = lambda: update_and_floor(shapes, "adamax_ext")
    if torch is not None:
        builders.append(lambda: torch_updates(shapes))
    return Case(builders, rounds, lambda: elements_of(shapes))


def family_case(shapes: Sequence[Shape], peers: Peers, rounds: int) -> Case:
    """One optimizer of this package beside what it can be compared with."""

    def built_in() -> dict[str, Contender]:
        return {peers.built_in: trainer_update(shapes, peers.built_in, **peers.options)[0]}

    def of_torch() -> dict[str, Contender]:
        name, options = peers.torch
        optimizer = getattr(torch.optim, name)(torch_params(shapes), lr=1e-3, **options)
        return {"torch": Contender(optimizer.step)}

    builders: list[Builder] = [
        lambda: update_and_floor(shapes, peers.ours, **peers.options),
        built_in,
        lambda: {"nothing": trainer_update([(1,)] * len(shapes), Nothing)[0]},
    ]
    if torch is not None and peers.torch is not None:
        builders.append(of_torch)
    return Case(builders, rounds, lambda: elements_of(shapes), peers.ours, peers.built_in, "torch")


def sparse_update(optimizer: str, lazy: bool, rows: int | None, steps: int) -> Contender:
    """An updater's steps on a table of a million rows of 64; dense gradients where rows is None."""
    shape = (1_000_000, 64)
    random = np.random.RandomState(0)

    def sparse_gradient() -> mx.nd.sparse.RowSparseNDArray:
        held = np.sort(random.choice(shape[0], rows, replace=False))
        values = random_like((len(held), shape[1]))
        return mx.nd.sparse.row_sparse_array((values, held), shape=shape)

    if rows is None:
        grads = [mx.nd.array(random_like(shape))] * steps
    else:
        grads = [sparse_gradient() for _ in range(steps)]
    weight = mx.nd.ones(shape)
    updater = mx.optimizer.get_updater(mx.optimizer.create(optimizer, lazy_update=lazy))

    def step(grad: Any) -> None:
        updater(0, grad, weight)

    def prepare() -> None:
        step(grads[-1])
        mx.nd.waitall()

    def call() -> None:
        for grad in grads:
            step(grad)
        mx.nd.waitall()

    return Contender(call, prepare)


def sparse_case(rows: int, steps: int, rounds: int) -> Case:
    """Lazy updates of an embedding, beside those of all rows."""
    return Case(
        [
            lambda: {"adam_ext": sparse_update("adam_ext", True, rows, steps)},
            lambda: {"adam_ext, all rows": sparse_update("adam_ext", False, rows, steps)},
            lambda: {"adam_ext, dense": sparse_update("adam_ext", False, None, steps)},
            lambda: {"adam": sparse_update("adam", True, rows, steps)},
        ],
        rounds,
        lambda: rows * 64,
        "adam_ext",
        "adam",
    )


def options_case(shapes: Sequence[Shape], name: str, rounds: int) -> Case:
    """An optimizer of this package with one option or another."""

    def with_option(label: str, options: dict[str, Any]) -> Builder:
        return lambda: {f"{name}, {label}": trainer_update(shapes, name, **options)[0]}

    def with_gluon_clip(optimizer: str) -> dict[str, Contender]:
        contender, trainer = trainer_update(shapes, optimizer)
        grads = [param.grad() for param in trainer._params]

        def call() -> None:
            gluon.utils.clip_global_norm(grads, 1.0)
            contender.call()

        return {f"{optimizer}, gluon clip": Contender(call, contender.prepare)}

    built_in = name[: -len("_ext")]
    builders: list[Builder] = [
        lambda: update_and_floor(shapes, name),
        lambda: with_gluon_clip(name),
        lambda: with_gluon_clip(built_in),
    ]
    for option, value in {
        "clip_global_norm": 1.0,
        "skip_nonfinite": True,
        "ema_decay": 0.999,
    }.items():
        builders.append(with_option(option, {option: value}))
    for dtype in ("bfloat16", "float16", "int8"):
        builders.append(with_option(f"{dtype} states", {"state_dtype": dtype}))
    return Case(builders, rounds, lambda: elements_of(shapes), name, f"{built_in}, gluon clip", "")


def mlp() -> nn.HybridSequential:
    """784-2048-2048-10."""
    net = nn.HybridSequential()
    net.add(
        nn.Dense(2048, activation="relu", in_units=784),
        nn.Dense(2048, activation="relu", in_units=2048),
        nn.Dense(10, in_units=2048),
    )
    return net


def thin_layers() -> nn.HybridSequential:
    """Eight layers of 64."""
    net = nn.HybridSequential()
    for _ in range(7):
        net.add(nn.Dense(64, activation="relu", in_units=64))
    net.add(nn.Dense(64, in_units=64))
    return net


def cnn() -> nn.HybridSequential:
    """A small convolutional network for images of 28x28."""
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(32, 3, activation="relu", in_channels=1),
        nn.MaxPool2D(),
        nn.Conv2D(64, 3, activation="relu", in_channels=32),
        nn.MaxPool2D(),
        nn.Dense(128, activation="relu", in_units=64 * 5 * 5),
        nn.Dense(10, in_units=128),
    )
    return net


def ready(make: Callable[[], nn.HybridSequential], inputs: mx.np.ndarray) -> nn.HybridSequential:
    """A model with weights; MXNet puts off those of some layers until it has seen an input."""
    net = make()
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(inputs)
    return net


def training_step(
    make: Callable[[], nn.HybridSequential], optimizer: Optimizer, data: Shape, classes: int
) -> Contender:
    """Forward, backward and update of a model on one batch."""
    inputs = gluon_arrays.array(random_like(data), dtype=np.float32)
    net = ready(make, inputs)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    batch = data[0]
    labels = gluon_arrays.array(np.arange(batch) % classes, dtype=np.float32)
    # A model that has learnt its only batch has gradients so small that processors slow down.
    trainer = make_trainer(net.collect_params(), optimizer, learning_rate=1e-7)

    def call() -> None:
        with autograd.record():
            loss = loss_of(net(inputs), labels)
        loss.backward()
        trainer.step(batch)
        mx.nd.waitall()

    return Contender(call)


def training_case(
    make: Callable[[], nn.HybridSequential], data: Shape, classes: int, rounds: int
) -> Case:
    """Whole training steps of the same model with each optimizer."""

    def with_trainer(optimizer: Optimizer) -> Contender:
        return training_step(make, optimizer, data, classes)

    def elements() -> int:
        params = ready(make, gluon_arrays.zeros(data)).collect_params().values()
        return elements_of([param.shape for param in params])

    return Case(with_trainers(with_trainer), rounds, elements)


CASES: dict[str, Case] = {
    "resnet50": update_case(resnet50_shapes(), rounds=30),
    "single-25m": update_case([(25_000_000,)], rounds=30),
    "small-1000x64": update_case([(64,)] * 1000, rounds=30),
    "bert-base": update_case(bert_base_shapes(), rounds=12),
    "mlp-2048-b32": training_case(mlp, (32, 784), 10, rounds=40),
    "mlp-2048-b256": training_case(mlp, (256, 784), 10, rounds=30),
    "layers-8x64-b32": training_case(thin_layers, (32, 64), 64, rounds=200),
    "cnn-b32": training_case(cnn, (32, 1, 28, 28), 10, rounds=40),
    "half-25m": family_case(
        [(25_000_000,)], Peers("adamax_ext", "adamax", {"multi_precision": True}, None), rounds=15
    ),
    "embedding-1000-rows": sparse_case(1000, steps=1, rounds=15),
    "embedding-1000-rows-50-steps": sparse_case(1000, steps=50, rounds=5),
    "options-25m": options_case([(25_000_000,)], "adamax_ext", rounds=15),
    "options-adam-25m": options_case([(25_000_000,)], "adam_ext", rounds=15),
    **{
        f"family-{name}": family_case(resnet50_shapes(), peers, rounds=15)
        for name, peers in FAMILY.items()
    },
}


# ---------------------------------------------------------------- measuring


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's garbage collector from running inside what is timed."""
    gc.collect()
    # Makes the collections between rounds cheap.
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def time_once(contender: Contender) -> float:
    """One call in milliseconds."""
    contender.prepare()
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    contender.call()
    return (time.perf_counter() - start) * 1e3


def release_memory() -> None:
    """Give back to the system what MXNet and the C library keep of memory no longer used."""
    gc.collect()
    mx.nd.waitall()
    mx.cpu().empty_cache()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def time_build(builders: Sequence[Builder], rounds: int) -> Iterator[dict[str, float]]:
    """Build contenders and time them in turn.

    Parameters
    ----------
    builders : sequence of callable
        As in `Case`; contenders are built and run in this order.
    rounds : int
        How many times.

    Yields
    ------
    dict
        The milliseconds of each contender in one round.
    """
    contenders: dict[str, Contender] = {}
    for build in builders:
        contenders.update(build())
    release_memory()
    with collector_off():
        for k in range(WARM_UP_ROUNDS + rounds):
            times = {name: time_once(contender) for name, contender in contenders.items()}
            gc.collect()
            if k >= WARM_UP_ROUNDS:
                yield times


def measure(case: Case, rounds: int, advance: Callable[[], None]) -> Samples:
    """Time the contenders of a case, over several builds.

    Parameters
    ----------
    case : Case
        What to time.
    rounds : int
        How many times.
    advance : callable
        Called after each round.

    Returns
    -------
    dict
        For each contender its times in milliseconds.
    """
    samples: Samples = {}
    for build in range(min(BUILDS, rounds)):
        first = build * len(case.builders) // BUILDS
        builders = [*case.builders[first:], *case.builders[:first]]
        for times in time_build(builders, len(range(build, rounds, BUILDS))):
            for name, milliseconds in times.items():
                samples.setdefault(name, []).append(milliseconds)
            advance()
        release_memory()
    return samples


def run_cases(names: Sequence[str], repeat: int | None, console: Console) -> dict[str, Samples]:
    """Measure the cases named, and show how far it has got."""
    samples = {}
    # A progress bar that refreshes by itself does so on a thread, inside what is timed.
    with Progress(console=console, auto_refresh=False, transient=True) as progress:
        for name in names:
            rounds = repeat or CASES[name].rounds
            task = progress.add_task(name, total=rounds)
            progress.refresh()

            def advance(task: Any = task) -> None:
                progress.advance(task)
                progress.refresh()

            samples[name] = measure(CASES[name], rounds, advance)
    return samples


# ---------------------------------------------------------------- reporting


def omp_threads() -> int:
    """How many threads OpenMP gives MXNet, this package and the floor."""
    return int(ctypes.CDLL("libgomp.so.1").omp_get_max_threads())


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "omp_threads": omp_threads(),
        "instruction_set": _native.instruction_set,
        "python": platform.python_version(),
        "mxnet": mx.__version__,
        "numpy": np.__version__,
        "torch": None if torch is None else torch.__version__,
        "mxadamax": mxadamax.__version__,
    }


def medians_of(samples: Samples) -> dict[str, float]:
    """The median of each contender."""
    return {name: statistics.median(times) for name, times in samples.items()}


def ratio(medians: dict[str, float], numerator: str, *denominators: str) -> str:
    """How many times one contender takes the time of others together, for a table."""
    if not {numerator, *denominators} <= medians.keys():
        return ""
    return f"{medians[numerator] / sum(medians[name] for name in denominators):.2f}"


def case_table(name: str, samples: Samples) -> Table:
    """The contenders of one case, the fastest first."""
    rounds = len(next(iter(samples.values())))
    title = f"{name}: {CASES[name].elements():,} parameters, {rounds} rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    ours = CASES[name].ours
    for header in ("median ms", "min ms", f"/ {ours}", "/ floor"):
        table.add_column(header, justify="right")
    medians = medians_of(samples)
    for contender in sorted(medians, key=medians.__getitem__):
        table.add_row(
            contender,
            f"{medians[contender]:.3f}",
            f"{min(samples[contender]):.3f}",
            ratio(medians, contender, ours),
            ratio(medians, contender, "floor"),
            style="bold" if contender == ours else None,
        )
    return table


def summary_table(samples: dict[str, Samples]) -> Table:
    """The ratios that count, of all cases."""
    table = Table(title="Ratios of medians", title_justify="left")
    table.add_column("case")
    for header in (
        "MXNet / ours",
        "torch / ours",
        "ours / floor",
        "ours / (floor + nothing)",
        "ours / nothing",
    ):
        table.add_column(header, justify="right")
    for name, times in samples.items():
        medians, case = medians_of(times), CASES[name]
        table.add_row(
            name,
            ratio(medians, case.built_in, case.ours),
            ratio(medians, case.torch, case.ours),
            ratio(medians, case.ours, "floor"),
            ratio(medians, case.ours, "floor", "nothing"),
            ratio(medians, case.ours, "nothing"),
        )
    return table


def as_json(samples: dict[str, Samples]) -> dict[str, Any]:
    """Everything measured, and on what."""
    return {
        "machine": machine(),
        "cases": {
            name: {
                contender: {
                    "median_ms": statistics.median(times),
                    "min_ms": min(times),
                    "samples_ms": times,
                }
                for contender, times in contenders.items()
            }
            for name, contenders in samples.items()
        },
    }


# ---------------------------------------------------------------- command line


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=CASES,
        default=list(CASES),
        help=f"the cases to run, of {', '.join(CASES)}",
    )
    parser.add_argument(
        "--repeat", type=positive, metavar="N", help="rounds of each case; fewer for large ones"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="OpenMP threads; MXNet decides by default, and leaves half of the processors alone",
    )
    return parser.parse_args(argv)


def restart_with(threads: int, argv: Sequence[str]) -> None:
    """Start over with as many OpenMP threads: MXNet reads their number only when it is imported."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    os.execve(sys.executable, [sys.executable, __file__, *argv], environment)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases asked for and print what came out."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    if arguments.threads and os.environ.get("OMP_NUM_THREADS") != str(arguments.threads):
        restart_with(arguments.threads, argv)
    if torch is not None:
        torch.set_num_threads(omp_threads())

    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), soft_wrap=True)
    samples = run_cases(arguments.only, arguments.repeat, console)
    for name, times in samples.items():
        console.print(case_table(name, times))
    console.print(summary_table(samples))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(samples), indent=1) + "\n")


if __name__ == "__main__":
    main()
