# SPDX-License-Identifier: Apache-2.0
"""Define the cases: models and contenders."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any, Callable, Dict, NamedTuple, Sequence, Tuple, Union

import mxnet as mx
import numpy as np
import numpy.typing as npt
from mxnet import autograd, gluon
from mxnet.gluon import nn

from ..._mxnet.compatibility import IS_MXNET_1, WHOLE_MODEL, StepOptimizer, gluon_arrays
from ..._mxnet.engine import native
from ...acceleration import accelerate, decelerate
from ...optimizers.arithmetic import built_in_class
from ...optimizers.info import OPTIMIZERS, OptimizerInfo
from ...optimizers.state_layout import arrays_of
from ...trainer import Trainer
from ..machine import omp_threads

# After MXNet, so that both run on the OpenMP library that MXNet has loaded.
torch: Any = None
torch_is_broken: str | None = None
"""The reason why an installed PyTorch is not used."""
try:
    torch = importlib.import_module("torch")
except Exception as error:
    # A missing or broken library, another NumPy or another Python can raise anything.
    if getattr(error, "name", None) != "torch" or not isinstance(error, ModuleNotFoundError):
        torch_is_broken = f"{type(error).__name__}: {error}"

Shape = Tuple[int, ...]


class Contender(NamedTuple):
    """A timed call.

    Parameters
    ----------
    call : callable
        The timed call. Returns when all its work is done.
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
        Each returns contenders by name: one, or several that share memory.
    rounds : int
        Default number of rounds.
    elements : callable
        Returns the number of trainable elements of the model.
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
    """Return the shapes of the trainable parameters of ResNet-50 for ImageNet."""

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
    """Return the shapes of the parameters of BERT-base with its pooler, without task heads."""
    units, hidden = 768, 3072

    def dense(inputs: int, outputs: int) -> list[Shape]:
        return [(outputs, inputs), (outputs,)]

    norm: list[Shape] = [(units,), (units,)]
    attention = 4 * dense(units, units) + norm
    feed_forward = dense(units, hidden) + dense(hidden, units) + norm
    embeddings: list[Shape] = [(30522, units), (512, units), (2, units), *norm]
    return embeddings + 12 * (attention + feed_forward) + dense(units, units)


def elements_of(shapes: Sequence[Shape]) -> int:
    """Return the total number of elements of arrays of these shapes."""
    return sum(math.prod(shape) for shape in shapes)


# ---------------------------------------------------------------- contenders


class NoOp(StepOptimizer):
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

UPDATED_BY: dict[str, Optimizer] = {
    "adamax_ext": "adamax_ext",
    "adamax": "adamax",
    "adam": "adam",
    "no_op": NoOp,
}


FAMILY: dict[str, OptimizerInfo] = {info.bench: info for info in OPTIMIZERS if info.bench}
ADAMAX = next(info for info in OPTIMIZERS if info.name == "adamax_ext")


def make_trainer(
    params: Any, optimizer: Optimizer, trainer: type[gluon.Trainer] = gluon.Trainer, **options: Any
) -> gluon.Trainer:
    """Create a Trainer for one device, without a key-value store."""
    if isinstance(optimizer, str):
        return trainer(params, optimizer, options, kvstore=None)
    return trainer(params, optimizer(**options), kvstore=None)


@functools.lru_cache(maxsize=None)
def random_numbers() -> npt.NDArray[Any]:
    """Return a million random numbers."""
    return np.random.RandomState(0).standard_normal(1 << 20).astype(np.float32)


def random_like(shape: Shape) -> npt.NDArray[Any]:
    """Return random numbers, repeated for large shapes: their values do not matter."""
    return np.resize(random_numbers(), shape)


def trainer_update(
    shapes: Sequence[Shape], optimizer: Optimizer, **options: Any
) -> tuple[Contender, gluon.Trainer]:
    """Build a contender for `Trainer.step` alone; float16 weights with `multi_precision`."""
    dtype = "float16" if options.get("multi_precision") else "float32"
    params = [gluon.Parameter(f"p{k}", shape=shape, dtype=dtype) for k, shape in enumerate(shapes)]
    for param, shape in zip(params, shapes):
        param.initialize(mx.init.Zero())
        param.grad()[:] = gluon_arrays.array(random_like(shape), dtype=dtype)
    arrays = [param.data() for param in params]
    trainer = make_trainer(params, optimizer, **options)

    def prepare() -> None:
        # Trainer refuses gradients that do not come from a backward pass.
        for array in arrays:
            array._fresh_grad = True
        mx.nd.waitall()

    def call() -> None:
        trainer.step(1)
        mx.nd.waitall()

    return Contender(call, prepare), trainer


class Pass(NamedTuple):
    """What a pass over all arrays does with each element.

    Parameters
    ----------
    reads : int
        How many arrays it reads, of gradient, weight and states in this order; 0 in the pass that
        updates.
    divisions, roots : int
        How many it computes, in single precision.
    double_divisions, double_roots : int
        How many in double precision.
    in_order : bool
        Whether squares of what it reads are added one after another, in the place of all this.
    """

    reads: int = 0
    divisions: int = 0
    roots: int = 0
    double_divisions: int = 0
    double_roots: int = 0
    in_order: bool = False


LAMB = (
    Pass(divisions=2, double_divisions=1, double_roots=1)
    if IS_MXNET_1
    else Pass(divisions=3, roots=1)
)
LANS = Pass(divisions=5, roots=1)

ARITHMETIC: dict[str, list[Pass]] = {
    "nadam": [Pass(divisions=4, roots=1)],
    "adadelta": [Pass(divisions=1, roots=2)],
    "ftml": [Pass(divisions=2, roots=1)],
    "ftrl": [Pass(divisions=3, roots=2)],
    "lars": [Pass(reads=2, in_order=True), Pass()],
    "lars-momentum": [Pass(reads=2, in_order=True), Pass()],
    "lamb": [LAMB._replace(reads=4), LAMB],
    "lans": [Pass(reads=2), LANS._replace(reads=4), LANS],
}
"""The passes of optimizers that memory bandwidth does not limit, by name in the benchmark."""


def baseline_of(
    grads: Sequence[mx.nd.NDArray],
    written: Sequence[Sequence[mx.nd.NDArray]],
    copies: Sequence[mx.nd.NDArray] = (),
    passes: Sequence[Pass] = (Pass(),),
) -> Contender:
    """Return a loop that reads all gradients, and reads and writes all weights and states, once.

    With 16-bit gradients, it also writes a 16-bit copy of each weight. It makes as many passes, and
    computes as many divisions and roots, as it is asked for.
    """
    mx.nd.waitall()
    return Contender(native().BandwidthBaseline(grads, written, copies, omp_threads(), passes))


def update_and_baseline(
    shapes: Sequence[Shape], name: str, passes: Sequence[Pass] = (), **options: Any
) -> dict[str, Contender]:
    """Build an optimizer of this package, and the baselines on the same arrays.

    On other arrays, a baseline could be a third higher or lower, depending on their placement in
    memory.
    """
    contender, trainer = trainer_update(shapes, name, **options)
    contender.prepare()
    contender.call()
    params, states = trainer._params, trainer._updaters[0].states
    grads, weights = ([getattr(p, which)() for p in params] for which in ("grad", "data"))
    if options.get("multi_precision"):
        masters = [list(arrays_of(states[k])) for k in range(len(params))]
        return {name: contender, "bandwidth_baseline": baseline_of(grads, masters, weights)}
    written = [[weight, *arrays_of(states[k])] for k, weight in enumerate(weights)]
    found = {name: contender, "bandwidth_baseline": baseline_of(grads, written)}
    if passes:
        found["arithmetic_baseline"] = baseline_of(grads, written, passes=passes)
    return found


def torch_params(shapes: Sequence[Shape]) -> list[Any]:
    """Create PyTorch parameters with gradients."""
    params = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.rand(shape))
        param.grad = torch.from_numpy(random_like(shape))
        params.append(param)
    return params


def torch_updates(shapes: Sequence[Shape]) -> dict[str, Contender]:
    """Build PyTorch's optimizers, on shared weights to save memory."""
    params = torch_params(shapes)
    return {
        "torch adamax": Contender(torch.optim.Adamax(params, foreach=True).step),
        "torch adam": Contender(torch.optim.Adam(params, fused=True).step),
    }


def with_trainers(make: Callable[[Optimizer], Contender]) -> list[Builder]:
    """Return builders of the contenders that have a Trainer."""

    def builder(name: str, optimizer: Optimizer) -> Builder:
        return lambda: {name: make(optimizer)}

    return [builder(name, optimizer) for name, optimizer in UPDATED_BY.items()]


def update_case(shapes: Sequence[Shape], rounds: int) -> Case:
    """Return a case of updates of weights of these shapes, without a model."""

    def with_trainer(optimizer: Optimizer) -> Contender:
        # Neither Trainer nor a no-op optimizer reads arrays, so small ones suffice.
        shapes_of = [(1,)] * len(shapes) if optimizer is NoOp else shapes
        return trainer_update(shapes_of, optimizer)[0]

    builders = with_trainers(with_trainer)
    builders[0] = lambda: update_and_baseline(shapes, "adamax_ext")
    if torch is not None:
        builders.append(lambda: torch_updates(shapes))
    return Case(builders, rounds, lambda: elements_of(shapes))


def trainer_case(shapes: Sequence[Shape], rounds: int) -> Case:
    """Return a case that compares this package's Trainer with Gluon's."""
    ours = "adam_ext, mxadamax.Trainer"

    def with_our_trainer() -> dict[str, Contender]:
        found = update_and_baseline(shapes, "adam_ext", trainer=Trainer)
        return {ours: found.pop("adam_ext"), **found}

    builders: list[Builder] = [
        with_our_trainer,
        lambda: {"adam_ext": trainer_update(shapes, "adam_ext")[0]},
        lambda: {"adam": trainer_update(shapes, "adam")[0]},
        lambda: {"no_op": trainer_update([(1,)] * len(shapes), NoOp)[0]},
    ]
    if torch is not None:
        builders.append(lambda: {"torch adam": torch_updates(shapes)["torch adam"]})
    return Case(builders, rounds, lambda: elements_of(shapes), ours, "adam", "torch adam")


def family_case(shapes: Sequence[Shape], info: OptimizerInfo, rounds: int, **more: Any) -> Case:
    """Return a case that compares one optimizer of this package with its counterparts."""
    theirs = info.timed_beside
    given = {**info.options, **info.bench_options, **more}

    def built_in() -> dict[str, Contender]:
        return {theirs: trainer_update(shapes, theirs, **given)[0]}

    def of_torch() -> dict[str, Contender]:
        assert info.torch is not None
        name, options = info.torch
        optimizer = getattr(torch.optim, name)(torch_params(shapes), lr=1e-3, **options)
        return {"torch": Contender(optimizer.step)}

    def of_our_trainer() -> dict[str, Contender]:
        made, _ = trainer_update(shapes, info.name, trainer=Trainer, **given)
        return {f"{info.name}, mxadamax.Trainer": made}

    passes = ARITHMETIC.get(info.bench, ())
    builders: list[Builder] = [
        lambda: update_and_baseline(shapes, info.name, passes, **given),
        of_our_trainer,
        # MXNet 1 has not all of them.
        *([built_in] if built_in_class(theirs) is not None else []),
        lambda: {"no_op": trainer_update([(1,)] * len(shapes), NoOp)[0]},
    ]
    if torch is not None and info.torch is not None:
        builders.append(of_torch)
    return Case(builders, rounds, lambda: elements_of(shapes), info.name, theirs, "torch")


def accelerated_case(shapes: Sequence[Shape], info: OptimizerInfo, rounds: int) -> Case:
    """Return a case that compares a built-in of MXNet's with itself under `accelerate`."""
    theirs = info.timed_beside
    ours = f"{theirs}, accelerated"

    def contender(switch: Callable[[], None]) -> Contender:
        made, _ = trainer_update(shapes, theirs, **info.options)

        def prepare() -> None:
            switch()
            # Which forgets all that steps have in common.
            for _ in range(2):
                made.prepare()
                made.call()
            made.prepare()

        return Contender(made.call, prepare)

    builders: list[Builder] = [
        lambda: {theirs: contender(decelerate)},
        lambda: {ours: contender(accelerate)},
    ]
    return Case(builders, rounds, lambda: elements_of(shapes), ours, theirs)


def sparse_update(optimizer: str, lazy: bool, rows: int | None, steps: int) -> Contender:
    """Build updater steps on a table of a million rows of 64; dense if `rows` is None."""
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
    """Return a case of lazy updates of an embedding, compared with updates of all rows."""
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
    """Return a case of an optimizer of this package with one option at a time."""

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
        lambda: update_and_baseline(shapes, name),
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
    """Create an MLP of sizes 784-2048-2048-10."""
    net = nn.HybridSequential()
    net.add(
        nn.Dense(2048, activation="relu", in_units=784),
        nn.Dense(2048, activation="relu", in_units=2048),
        nn.Dense(10, in_units=2048),
    )
    return net


def thin_layers() -> nn.HybridSequential:
    """Create eight layers of 64."""
    net = nn.HybridSequential()
    for _ in range(7):
        net.add(nn.Dense(64, activation="relu", in_units=64))
    net.add(nn.Dense(64, in_units=64))
    return net


def cnn() -> nn.HybridSequential:
    """Create a small convolutional network for images of 28x28."""
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
    """Create a model with initialized weights; MXNet defers those of some layers to an input."""
    net = make()
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(inputs)
    return net


def training_step(
    make: Callable[[], nn.HybridSequential], optimizer: Optimizer, data: Shape, classes: int
) -> Contender:
    """Build forward, backward and update of a model on one batch."""
    inputs = gluon_arrays.array(random_like(data), dtype=np.float32)
    net = ready(make, inputs)
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    batch = data[0]
    labels = gluon_arrays.array(np.arange(batch) % classes, dtype=np.float32)
    # A model that has learnt its only batch has denormal gradients, which slow CPUs down.
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
    """Return a case of whole training steps of one model with each optimizer."""

    def with_trainer(optimizer: Optimizer) -> Contender:
        return training_step(make, optimizer, data, classes)

    def elements() -> int:
        params = ready(make, gluon_arrays.zeros(data)).collect_params().values()
        return elements_of([param.shape for param in params])

    return Case(with_trainers(with_trainer), rounds, elements)


SIZES = [k * 10**n for n in (3, 4, 5, 6) for k in (1, 3)] + [10**7, 25 * 10**6]
"""Sizes of single arrays: from within any cache to beyond all."""

ACCELERATED = {name: FAMILY[name] for name in ("sgd", "sgd-momentum", "adam")}
ACCELERATED["adamax"] = ADAMAX
"""Three that are single operators of MXNet's, and so the hardest to be faster than; one of many."""

ACCELERATED_SHAPES: dict[str, tuple[list[Shape], int]] = {
    **{f"1x{size}": ([(size,)], 30) for size in (1, 10**3, 10**5, 10**6)},
    **{f"1x{size}": ([(size,)], 5) for size in (10**7, 10**8)},
    **{f"{count}x64": ([(64,)] * count, 30) for count in (8, 100, 1000)},
    "20000x64": ([(64,)] * 20_000, 5),
}

CASES: dict[str, Case] = {
    "resnet50": update_case(resnet50_shapes(), rounds=30),
    "single-25m": update_case([(25_000_000,)], rounds=30),
    "small-1000x64": update_case([(64,)] * 1000, rounds=30),
    "bert-base": update_case(bert_base_shapes(), rounds=12),
    "trainer-resnet50": trainer_case(resnet50_shapes(), rounds=30),
    "trainer-1000x64": trainer_case([(64,)] * 1000, rounds=30),
    "trainer-20000x64": trainer_case([(64,)] * 20_000, rounds=5),
    "mlp-2048-b32": training_case(mlp, (32, 784), 10, rounds=40),
    "mlp-2048-b256": training_case(mlp, (256, 784), 10, rounds=30),
    "layers-8x64-b32": training_case(thin_layers, (32, 64), 64, rounds=200),
    "cnn-b32": training_case(cnn, (32, 1, 28, 28), 10, rounds=40),
    "half-25m": family_case([(25_000_000,)], ADAMAX, rounds=15, multi_precision=True),
    "embedding-1000-rows": sparse_case(1000, steps=1, rounds=15),
    "embedding-1000-rows-50-steps": sparse_case(1000, steps=50, rounds=5),
    "options-25m": options_case([(25_000_000,)], "adamax_ext", rounds=15),
    "options-adam-25m": options_case([(25_000_000,)], "adam_ext", rounds=15),
    **{
        f"family-{name}": family_case(resnet50_shapes(), info, rounds=15)
        for name, info in FAMILY.items()
    },
    **{f"sizes-{size}": update_case([(size,)], rounds=30) for size in SIZES},
    **{
        f"accelerated-{name}-{sizes}": accelerated_case(shapes, info, rounds)
        for name, info in ACCELERATED.items()
        for sizes, (shapes, rounds) in ACCELERATED_SHAPES.items()
    },
}


def cases_named(name: str) -> list[str]:
    """Return the cases with this name, or with this prefix before a hyphen."""
    return [case for case in CASES if case == name or case.startswith(f"{name}-")]
