# SPDX-License-Identifier: Apache-2.0
"""Native part of mxadamax: optimizer kernels, and their way into MXNet's engine.

csrc/python/module.cc defines it; tests/kernels/test_stubs.py compares this file with that.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

from mxnet.ndarray import NDArray

_State = Any  # None, an NDArray, or a tuple or list of states
_Scalars = dict[str, float | list[float]]  # for all parameters, or one for each

instruction_set: str
"""The one that kernels run in."""
instruction_sets: tuple[str, ...]
"""Those that this processor has, from the lowest."""
mxnet_functions: tuple[str, ...]
"""What `bind` asks for."""
rules: dict[str, Rule]
bound_scalars: tuple[str, ...]
"""The scalars of rules that are bounds, of which infinity is none."""
block_size: int
"""How many 8-bit numbers share their ranges."""
"""How many ranges they share."""
testing_hooks: object
"""A capsule for `_native_testing`."""

class ParameterError(ValueError):
    """What is wrong with a parameter.

    `args` are its position, the message, and the position of the parameter that ``{other}`` in the
    message stands for.
    """

    args: tuple[int, str, int]

class Rule:
    """What is known about a rule."""

    @property
    def states(self) -> int:
        """How many arrays of state it has."""
    @property
    def supports_low_precision_state(self) -> bool:
        """Whether its states can be kept in 16 bits, rounded at random."""
    @property
    def supports_int8_state(self) -> bool:
        """Whether they can be kept in 8 bits."""
    @property
    def none_first(self) -> bool:
        """Whether a parameter keeps a tuple of None and them."""
    @property
    def begin_as_weight(self) -> tuple[bool, ...]:
        """Of each state, whether it begins as the weight, not as zero."""
    @property
    def scalars(self) -> list[str]:
        """The names of its scalars."""
    @property
    def sums(self) -> int:
        """How many sums over a tensor it needs before it updates the tensor."""

class StateCache:
    """What a batch leaves behind to make the next one cheaper."""

    def __init__(self) -> None: ...

class StepStatus:
    """What a step leaves behind, to be read after a wait."""

    def __init__(self) -> None: ...
    @property
    def gradient_norm(self) -> float:
        """The norm of all gradients in the last step."""
    @property
    def finished(self) -> int:
        """How many steps have run."""
    @property
    def skipped(self) -> int:
        """How many of them have been left out."""

class FusedUpdate:
    """The arrays of one update, checked and held."""

    def __init__(
        self,
        rule: str,
        weights: Sequence[NDArray],
        grads: Sequence[NDArray],
        states: Sequence[_State],
        cache: StateCache,
        lazy: bool,
        multi_precision: bool,
        average: bool,
        state_dtype: Literal["float16", "bfloat16", "int8"] | None,
        known: bool = False,
    ) -> None:
        """Check all arrays and hold them; ParameterError names what is wrong.

        With `lazy`, rows that a row_sparse gradient does not hold are left alone. The next three
        say what states are made of. With `known`, the cache is of these weights, and no array has
        changed since it was given with the same `grads` and `states`.
        """
    @property
    def pushed(self) -> bool:
        """Whether the engine has it: it will be done, whatever comes."""
    def push(
        self,
        tables: Sequence[_Scalars],
        clip_global_norm: float | None,
        skip_nonfinite: bool,
        report: StepStatus | None,
        skipped_before: int,
        in_single_precision: bool = False,
        rounded: Sequence[str] = (),
        exact: Sequence[str] = (),
        groups: ParameterGroups | None = None,
    ) -> None:
        """Hand the update to MXNet's engine, once.

        Each table has all scalars of the rule. The first counts if `skipped_before` steps of the
        report have been skipped, the next if one more, and so on. With `groups`, a list has one
        number for each of them.
        """

class ParameterGroups:
    """Parameters that are grouped by their multipliers."""

    @property
    def lr_mults(self) -> list[float]:
        """The lr_mult of each group."""
    @property
    def wd_mults(self) -> list[float]:
        """The wd_mult of each group."""

def parameter_groups(
    keys: Sequence[int | str], parameters: dict[Any, Any]
) -> ParameterGroups | None:
    """Group the parameters with these keys by lr_mult and wd_mult.

    None if one has no entry, or multipliers that are not finite floats, or if there are too many.
    """

def count_together(counts: dict[Any, int], keys: Sequence[int | str], begin: int) -> int | None:
    """Count one more update for each key, and return how many that are now.

    None, and nothing counted, if they differ. Keys without an entry begin at `begin`.
    """

_States = Sequence[tuple[dict[Any, Any], dict[Any, bool]]]

class TrainerArrays:
    """The arrays, gradients and states of a Trainer's step."""

    def __init__(self, parameters: list[Any], states: _States, trained: Sequence[int]) -> None:
        """Remember what a step used.

        `states` has a pair for each device, of an updater's `states` and `states_synced`; `trained`
        the positions of the parameters that were updated.
        """
    def take(self, parameters: list[Any], states: _States) -> bool | None:
        """Mark all gradients as used, and return True, if a step uses the same arrays and states.

        False, and nothing marked, if a gradient is stale. None if anything is not the same.
        """

# Towards MXNet.
def bind(address_of: Callable[[str], int]) -> None:
    """Take the addresses of MXNet's functions; once, before any FusedUpdate."""

def share_memory(a: NDArray, b: NDArray) -> bool:
    """Whether two NDArrays are views of the same memory."""

def find_row_indices(arrays: Sequence[tuple[NDArray, Sequence[int]]]) -> bool:
    """Find out where MXNet keeps row indices, from row_sparse arrays of different ones."""

def push_failure(arrays: Sequence[NDArray], message: str) -> None:
    """Make the next wait on any of these NDArrays raise MXNetError with this message."""

def register_device_backend(loader: Callable[[], ModuleType]) -> None:
    """Register, once, what returns the module with the kernels for devices."""

def as_mxnet_reads(value: float) -> float:
    """The double that an MXNet operator computes with when given this number."""

def as_mxnet_reads_float32(value: float) -> float:
    """The same for operators that take a single-precision number."""

def power_float32(base: float, exponent: float) -> float:
    """A power in single precision, of the C library that MXNet takes it from."""

class BandwidthBaseline:
    """What the memory allows: reads and writes the NDArrays of an update.

    It computes next to nothing but the divisions and roots that it is asked for. Spoils the arrays.
    """

    def __init__(
        self,
        grads: Sequence[NDArray],
        written: Sequence[Sequence[NDArray]],
        copies: Sequence[NDArray],
        threads: int,
        passes: Sequence[tuple[int, int, int, int, int, bool]],
    ) -> None:
        """Take gradients, for each the weight and the states, and with 16 bits copies of weights.

        All must have been computed.
        """
    def __call__(self) -> None:
        """Move them once, in this thread's time."""
