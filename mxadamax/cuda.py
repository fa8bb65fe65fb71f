# SPDX-License-Identifier: Apache-2.0
"""The kernels for GPUs, for arrays of anyone: CuPy's, PyTorch's, and others that show their memory.

A door beside MXNet, to test and to time the kernels, or to train without MXNet: this module uses
nothing of MXNet. Arrays show themselves by ``__cuda_array_interface__`` or by DLPack::

    batch = cuda.Batch("adam", weights, grads, states)
    batch.update({"lr": 0.001, "beta1": 0.9, ...}, stream=stream)
"""

import functools
import importlib
import importlib.util
import json
import math
import re
import subprocess
import sys
from numbers import Real
from types import ModuleType
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

import numpy

from .dtypes import DLPACK_TYPES, DTYPES, STATE_TYPES, WEIGHT_TYPES

Scalars = Mapping[str, Union[float, Sequence[float]]]

_CUDA, _CUDA_MANAGED = 2, 13
_DLPACK_DEVICES = {1: "the CPU", 3: "the CPU's page-locked memory", 10: "a ROCm GPU"}
# Of which infinity is one.
_BOUNDS = ("clip_gradient", "clip_weights")


_NOT_BUILT = (
    "mxadamax was built without kernels for GPUs: build it where nvcc of CUDA 11.2 or later is "
    "found, with the CMake option MXADAMAX_CUDA=ON"
)


@functools.lru_cache(maxsize=None)
def kernels() -> ModuleType:
    """Return the compiled kernels.

    Raises
    ------
    ImportError
        Where mxadamax was built without a CUDA compiler.
    """
    try:
        return importlib.import_module("mxadamax._cuda")
    except ModuleNotFoundError:
        raise ImportError(_NOT_BUILT) from None


class Gpu(NamedTuple):
    """One GPU, as CUDA's driver describes it.

    Parameters
    ----------
    name : str
        What its maker calls it.
    memory : int
        Its bytes.
    architecture : int
        Ten times the first number of its compute capability, and the second: 90 for 9.0.
    """

    name: str
    memory: int
    architecture: int


class Description(NamedTuple):
    """What there is of the kernels for GPUs.

    Parameters
    ----------
    built : bool
        Whether their module is there.
    architectures : str
        For which it has machine code, and from which on the driver makes it (PTX).
    compiler : str
        The version of nvcc.
    driver : str
        The newest CUDA that the driver knows; empty where there is no driver.
    gpus : tuple of Gpu
        What the driver offers.
    problem : str
        What keeps the kernels from running, and what to do about it; empty for nothing.
    """

    built: bool = False
    architectures: str = ""
    compiler: str = ""
    driver: str = ""
    gpus: Tuple[Gpu, ...] = ()
    problem: str = ""


_MODULE = "mxadamax._cuda"
_SECONDS = 20.0
# Without the package, whose import takes its time.
_QUESTION = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location(sys.argv[1], sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = {
    "architectures": module.architectures,
    "compiler": module.compiler,
    "runtime": module.runtime_version or 0,
    "driver": module.driver_version(),
    "devices": [],
}
try:
    found["devices"] = module.devices()
except RuntimeError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def describe() -> Description:
    """Describe the kernels for GPUs, the driver and the GPUs.

    Asks in a process of its own: a driver that crashes or does not answer is told like any other
    problem, and this process can still be forked.
    """
    try:
        spec = importlib.util.find_spec(_MODULE)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return Description(problem=_NOT_BUILT)
    question = [sys.executable, "-c", _QUESTION, _MODULE.rpartition(".")[2], spec.origin]
    try:
        answer = subprocess.run(
            question, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
        found = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return Description(
            built=True,
            problem=f"CUDA's driver did not answer in {_SECONDS:g} s: look whether nvidia-smi does",
        )
    except (OSError, ValueError) as error:
        said = str(error) if isinstance(error, OSError) else answer.stderr.strip()[-300:]
        return Description(
            built=True,
            problem="the module of the kernels cannot be loaded, so build mxadamax again: "
            + (said or f"its process ended with {answer.returncode}"),
        )
    gpus = tuple(
        Gpu(name, memory, 10 * major + minor) for name, memory, major, minor in found["devices"]
    )
    return Description(
        built=True,
        architectures=found["architectures"],
        compiler=found["compiler"],
        driver=_version(found["driver"]),
        gpus=gpus,
        problem=_problem(found, gpus),
    )


def _version(number: int) -> str:
    """A version as CUDA counts them, as people write it."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _problem(found: Mapping[str, Any], gpus: Sequence[Gpu]) -> str:
    if not found["driver"]:
        return (
            "no driver of NVIDIA's is found: install one; a container has to be started with "
            "access to the GPUs"
        )
    # Versions with the same first number go together.
    if found["driver"] // 1000 < found["runtime"] // 1000:
        return (
            f"the driver knows CUDA {_version(found['driver'])}, and the kernels are of CUDA "
            f"{_version(found['runtime'])}: install a newer driver, or build with an older CUDA"
        )
    if "error" in found or not gpus:
        said = found.get("error", "CUDA: there is no device")
        return f"{said}; does nvidia-smi list a GPU, and does CUDA_VISIBLE_DEVICES hide it?"
    numbers = [int(number) for number in re.findall(r"\d+", found["architectures"])]
    for k, gpu in enumerate(gpus):
        if numbers and gpu.architecture < min(numbers):
            return (
                f"GPU {k}, {gpu.name}, is of architecture {gpu.architecture}, and the kernels are "
                f"for {min(numbers)} and later: build with the CMake option "
                f"MXADAMAX_CUDA_ARCHITECTURES={gpu.architecture}"
            )
    return ""


class _Array(NamedTuple):
    """What an array says of itself."""

    address: int
    dtype: str
    shape: Tuple[int, ...]
    # On which it may still be in the making.
    stream: Optional[int]


def _stream_address(stream: Any) -> int:
    """The address of a stream: a number, or an object of CuPy's or PyTorch's."""
    for attribute in ("cuda_stream", "ptr"):
        stream = getattr(stream, attribute, stream)
    if stream is None:
        return 0
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise TypeError(f"stream must be None, an address or a stream, got {stream!r}")
    return int(stream)


def _is_contiguous(shape: Sequence[int], strides: Optional[Sequence[int]], item: int) -> bool:
    if strides is None or 0 in shape:
        return True
    expected = item
    for length, stride in zip(reversed(shape), reversed(strides)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _by_interface(found: Mapping[str, Any], what: str, written: bool) -> Optional[_Array]:
    """An array from its ``__cuda_array_interface__``; None where that does not tell the dtype."""
    try:
        dtype = numpy.dtype(found["typestr"])
    except TypeError:
        return None
    # A 16-bit type that NumPy does not know comes as two bytes of nothing in particular.
    if dtype.kind == "V":
        return None
    if not dtype.isnative:
        raise TypeError(f"{what} has bytes in the other order")
    if found.get("mask") is not None:
        raise ValueError(f"{what} has a mask, expected an array without")
    address, read_only = found["data"]
    if written and read_only:
        raise ValueError(f"{what} is read-only")
    shape = tuple(found["shape"])
    if not _is_contiguous(shape, found.get("strides"), dtype.itemsize):
        raise ValueError(f"{what} is not C-contiguous: strides {found['strides']}, shape {shape}")
    return _Array(address or 0, dtype.name, shape, found.get("stream"))


def _by_dlpack(array: Any, what: str, stream: int) -> _Array:
    kind, _ = array.__dlpack_device__()
    if kind not in (_CUDA, _CUDA_MANAGED):
        where = _DLPACK_DEVICES.get(kind, f"a device of DLPack's kind {kind}")
        raise ValueError(f"{what} is on {where}, expected a CUDA device")
    # 1 is how the default stream is called there.
    capsule = array.__dlpack__(stream=stream or 1)
    address, _, _, code, bits, shape, strides = kernels().read_dlpack(capsule)
    dtype = DLPACK_TYPES.get((code, bits), f"of DLPack's type {code} with {bits} bits")
    if not _is_contiguous(shape, strides, 1):
        raise ValueError(f"{what} is not C-contiguous: strides {strides}, shape {shape}")
    return _Array(address, dtype, shape, None)


class _Look:
    """Looks at the arrays of a batch, keeps them, and notes on which streams they are made."""

    def __init__(self, stream: int):
        self.stream = stream
        self.arrays: List[Any] = []
        self.busy: Set[int] = set()

    def at(
        self,
        array: Any,
        what: str,
        dtype: str = "",
        shape: Optional[Tuple[int, ...]] = None,
        written: bool = True,
    ) -> _Array:
        """What an array says of itself; checked to be of a dtype and a shape."""
        interface = getattr(array, "__cuda_array_interface__", None)
        found = None if interface is None else _by_interface(interface, what, written)
        if found is None:
            if not hasattr(array, "__dlpack__"):
                raise TypeError(
                    f"{what} is {type(array).__name__}, expected an array with "
                    "__cuda_array_interface__ or __dlpack__"
                )
            found = _by_dlpack(array, what, self.stream)
        if dtype and found.dtype != dtype:
            raise TypeError(f"{what} is {found.dtype}, expected {dtype}")
        if shape is not None and found.shape != shape:
            raise ValueError(f"{what} has shape {found.shape}, expected {shape}")
        self.arrays.append(array)
        # 0 is no stream there.
        if found.stream:
            self.busy.add(found.stream)
        return found

    def rows(self, array: Any, at: str, weight: _Array) -> _Array:
        """What the numbers of a weight's rows say of themselves."""
        if not weight.shape:
            raise ValueError(f"{at}rows are given, and the weight has no dimension")
        numbers = self.at(array, at + "rows", "int64", written=False)
        if len(numbers.shape) != 1 or numbers.shape[0] > weight.shape[0]:
            raise ValueError(
                f"{at}rows have shape {numbers.shape}, expected one dimension of at most "
                f"{weight.shape[0]}, as the weight has rows"
            )
        return numbers


def _state_dtypes(rule: str, state_dtype: Optional[str]) -> List[Optional[str]]:
    """The dtype of each state of a rule; None where it is that of what is updated."""
    native = kernels()
    count = native.rules[rule][0]
    if state_dtype is None:
        return [None] * count
    if state_dtype not in STATE_TYPES:
        raise ValueError(
            f"state_dtype must be 'float16', 'bfloat16', 'int8' or None, got {state_dtype!r}"
        )
    is_int8 = state_dtype == "int8"
    if rule not in (
        native.rules_with_int8_state if is_int8 else native.rules_with_low_precision_state
    ):
        raise ValueError(f"state_dtype must be None with rule {rule!r}, got {state_dtype!r}")
    return ["int8", "uint8"] if is_int8 else [state_dtype] * count


def _as_integers(name: str, given: Any) -> Any:
    """An integer scalar, or one for each weight, as 64 bits without sign."""
    values = numpy.array(given, dtype=object)
    for value in values.flat:
        is_real = isinstance(value, Real)
        if not (is_real and 0 <= value < 2**64 and value == int(value)):
            raise TypeError(f"scalar {name!r} must be integers in [0, 2**64), got {given!r}")
    return values.astype(numpy.uint64)


def _as_list(given: Any, count: int, what: str) -> List[Any]:
    if given is None:
        return [None] * count
    found = list(given)
    if len(found) != count:
        raise ValueError(f"got {len(found)} {what} for {count} weights")
    return found


class Batch:
    """Arrays that are updated together, step after step.

    What the device has to know about them goes there in the first step; further ones send the
    scalars, where they have changed. So keep a batch for as long as the arrays stay where they are.
    It keeps the arrays alive; when it is freed, it waits for what is under way.

    Parameters
    ----------
    rule : str
        The name of a rule, such as ``adamax``: a key of ``kernels().rules``, which tells how many
        states it has, and its scalars.
    weights : sequence of arrays
        C-contiguous, of float32, float64, float16 or bfloat16, on one GPU.
    grads : sequence of arrays
        Of the dtypes and shapes of the weights. Never written.
    states : sequence of sequences of arrays
        For each weight as many as the rule has, of its shape and dtype, or of its master's.
    masters : sequence of arrays or None, optional
        For each float16 or bfloat16 weight, a float32 copy of it, which is updated, and from which
        the weight is rounded; None for none.
    averages : sequence of arrays or None, optional
        For each weight the average over its steps, of float32, or of float64 for such a weight;
        None for none. The scalar ``ema_weight`` says how much of the new weight goes into it.
    rows : sequence of arrays or None, optional
        For each weight None, or the numbers of the rows that its gradient holds: int64, of one
        dimension, ascending, once each. The gradient then has these rows only, in that order. The
        numbers may change from step to step, where they are.
    lazy : bool, default False
        Leave rows that a gradient does not hold alone, with their states and averages; otherwise
        they are updated with a gradient of zero.
    state_dtype : {'float16', 'bfloat16', 'int8'}, optional
        The low-precision type of states, with stochastic rounding: those of `FusedOptimizer` with
        this option. Random bits depend on the scalars ``rng_stream``, a number for each weight, and
        ``step``, which counts its updates. Squares are kept as their roots. With ``'int8'``
        states are an int8 and an uint8 array.
    scales : sequence of arrays, optional
        With ``'int8'``, for each weight a float32 array of shape (blocks, 2), where a block is 64
        elements; zeros at first, like the states.
    device : int, optional
        The number of the GPU; by default that of the first weight.
    stream : int or stream, optional
        On which `update` will be called first, as there. It waits for arrays that are still in the
        making on another stream, where they say so.

    Raises
    ------
    TypeError, ValueError
        What is wrong with which array.
    ImportError
        Where mxadamax was built without kernels for GPUs.
    """

    def __init__(
        self,
        rule: str,
        weights: Sequence[Any],
        grads: Sequence[Any],
        states: Sequence[Sequence[Any]],
        *,
        masters: Optional[Sequence[Any]] = None,
        averages: Optional[Sequence[Any]] = None,
        rows: Optional[Sequence[Any]] = None,
        lazy: bool = False,
        state_dtype: Optional[str] = None,
        scales: Optional[Sequence[Any]] = None,
        device: Optional[int] = None,
        stream: Any = None,
    ):
        native = kernels()
        if rule not in native.rules:
            raise ValueError(f"there is no rule {rule!r}; there are {', '.join(native.rules)}")
        self.rule = rule
        self._scalar_names = native.rules[rule][1]
        state_dtypes = _state_dtypes(rule, state_dtype)
        if scales is not None and state_dtype != "int8":
            raise ValueError(f"scales are given, which state_dtype {state_dtype!r} does not have")
        weights = list(weights)
        count = self._count = len(weights)
        first_stream = _stream_address(stream)
        look = _Look(first_stream)
        columns = zip(
            weights,
            _as_list(grads, count, "gradients"),
            _as_list(states, count, "states"),
            _as_list(masters, count, "masters"),
            _as_list(averages, count, "averages"),
            _as_list(rows, count, "rows"),
            _as_list(scales, count, "scales"),
        )
        tensors = []
        for i, (given, grad, own, master, average, held, ranges) in enumerate(columns):
            at = f"tensor {i}: "
            weight = look.at(given, at + "weight")
            shape, elements = weight.shape, math.prod(weight.shape)
            if weight.dtype not in WEIGHT_TYPES:
                raise TypeError(
                    f"{at}weight is {weight.dtype}, expected one of {', '.join(WEIGHT_TYPES)}"
                )
            is_short = DTYPES[weight.dtype].item_size == 2
            if master is not None and not is_short:
                raise TypeError(
                    f"{at}weight is {weight.dtype}, only float16 and bfloat16 take a master"
                )
            updated = weight.dtype if master is None else "float32"
            computed = "float32" if is_short else weight.dtype
            own = list(own)
            if len(own) != len(state_dtypes):
                raise ValueError(f"{at}{len(own)} states, rule {rule} has {len(state_dtypes)}")
            held_rows, grad_shape = None, shape
            if held is not None:
                numbers = look.rows(held, at, weight)
                grad_shape = (*numbers.shape, *shape[1:])
                if elements:
                    row_length = math.prod(shape[1:])
                    held_rows = (numbers.address, numbers.shape[0], row_length, bool(lazy))
            low_precision = None
            if state_dtype is not None:
                blocks = -(-elements // native.block_size)
                low_precision = (
                    state_dtype,
                    look.at(ranges, at + "scales", "float32", (blocks, 2)).address
                    if state_dtype == "int8"
                    else 0,
                )
            tensors.append(
                (
                    weight.dtype,
                    elements,
                    look.at(
                        *(grad, at + "gradient", weight.dtype), shape=grad_shape, written=False
                    ).address,
                    weight.address,
                    [
                        look.at(state, f"{at}state {k}", dtype or updated, shape).address
                        for k, (state, dtype) in enumerate(zip(own, state_dtypes))
                    ],
                    0
                    if master is None
                    else look.at(master, at + "master", "float32", shape).address,
                    0
                    if average is None
                    else look.at(average, at + "average", computed, shape).address,
                    held_rows,
                    low_precision,
                )
            )
        if device is None:
            address = next((tensor[3] for tensor in tensors if tensor[1]), 0)
            device = native.device_of(address) if address else 0
        self.device = device
        self._kept = look.arrays
        self._native = native.LaunchPlan(rule, tensors, device)
        for busy in look.busy - {first_stream}:
            native.order_streams(busy, first_stream, device)

    def update(
        self,
        scalars: Scalars,
        *,
        clip_global_norm: Optional[float] = None,
        skip_nonfinite: bool = False,
        stream: Any = None,
    ) -> None:
        """Update all weights once, on the stream.

        Does not wait for it, unless gradients hold some rows only; but the first call prepares
        memory, which takes its time.

        Parameters
        ----------
        scalars : mapping of str to float or sequence of float
            For each scalar of the rule a number, or one for each weight. They are what the rule
            computes with: learning rates come with the corrections of bias in them. All are finite,
            but for ``clip_gradient`` and ``clip_weights``, where infinity is no bound. A ``wd``
            below 0 is no weight decay at all; ``keep`` is 1 without decoupled weight decay.
            ``ema_weight`` is 0 unless given.
        clip_global_norm : float, in (0, inf], optional
            Bound of the norm of all gradients together, after ``rescale_grad`` of the first weight.
        skip_nonfinite : bool, default False
            Leave everything as it is if any gradient holds NaN or infinity.
        stream : int or stream, optional
            A stream of the device, as its address, or as CuPy or PyTorch have it; by default the
            device's default stream. A step begins when the one before is done, also on another
            stream.

        Raises
        ------
        TypeError, ValueError
            What is wrong with which scalar, option, or row. Nothing has been written then.
        """
        if clip_global_norm is not None:
            clip_global_norm = float(clip_global_norm)
            if not clip_global_norm > 0:
                raise ValueError(f"clip_global_norm must be in (0, inf], got {clip_global_norm}")
        self._native.update(
            self._rows(scalars), clip_global_norm, bool(skip_nonfinite), _stream_address(stream)
        )

    def _rows(self, scalars: Scalars) -> Any:
        """One row of numbers for each tensor."""
        optional, integers = kernels().optional_scalars, kernels().integer_scalars
        rows = numpy.zeros((self._count, len(self._scalar_names)))
        unknown = [name for name in scalars if name not in self._scalar_names]
        if unknown:
            raise ValueError(f"rule {self.rule} has no scalar {unknown[0]!r}")
        for k, name in enumerate(self._scalar_names):
            if name not in scalars:
                if name in optional:
                    continue
                raise ValueError(f"rule {self.rule} needs the scalar {name!r}")
            if name in integers:
                values = _as_integers(name, scalars[name])
            else:
                try:
                    values = numpy.asarray(scalars[name], dtype=numpy.float64)
                except (TypeError, ValueError):
                    raise TypeError(
                        f"scalar {name!r} must be numbers, got {scalars[name]!r}"
                    ) from None
            if values.shape not in ((), (self._count,)):
                raise ValueError(
                    f"scalar {name!r} has shape {values.shape}, expected a number or "
                    f"{self._count} of them"
                )
            if name in integers:
                rows.view(numpy.uint64)[:, k] = values
                continue
            bad = numpy.isnan(values) if name in _BOUNDS else ~numpy.isfinite(values)
            if bad.any():
                raise ValueError(f"scalar {name!r} is {values[bad][0]}, expected a finite number")
            rows[:, k] = values
        return rows

    @property
    def gradient_norm(self) -> float:
        """The norm of all gradients in the last step with an option, after rescaling; NaN before.

        Waits for the step.
        """
        return float(self._native.report()[0])

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out because of `skip_nonfinite`. Waits for the last step."""
        return int(self._native.report()[1])


def update(
    rule: str,
    weights: Sequence[Any],
    grads: Sequence[Any],
    states: Sequence[Sequence[Any]],
    scalars: Scalars,
    *,
    masters: Optional[Sequence[Any]] = None,
    averages: Optional[Sequence[Any]] = None,
    rows: Optional[Sequence[Any]] = None,
    lazy: bool = False,
    state_dtype: Optional[str] = None,
    scales: Optional[Sequence[Any]] = None,
    clip_global_norm: Optional[float] = None,
    skip_nonfinite: bool = False,
    stream: Any = None,
) -> None:
    """Update arrays once, and wait for it. For more than a step, a :class:`Batch` costs less.

    Parameters
    ----------
    rule, weights, grads, states, masters, averages, rows, lazy, state_dtype, scales
        As for :class:`Batch`.
    scalars, clip_global_norm, skip_nonfinite, stream
        As for :meth:`Batch.update`.

    Raises
    ------
    TypeError, ValueError, ImportError
        As these do.
    """
    batch = Batch(
        *(rule, weights, grads, states),
        masters=masters,
        averages=averages,
        rows=rows,
        lazy=lazy,
        state_dtype=state_dtype,
        scales=scales,
        stream=stream,
    )
    batch.update(
        scalars, clip_global_norm=clip_global_norm, skip_nonfinite=skip_nonfinite, stream=stream
    )
