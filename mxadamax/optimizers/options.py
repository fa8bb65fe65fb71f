# SPDX-License-Identifier: Apache-2.0
"""Define the options that all optimizers share, and check their values.

Validation, checkpoints, conversion and the table in docs/options.md follow from `OPTIONS`.
"""

import enum
import functools
import inspect
import math
import numbers
import re
import sys
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from typing import Any, Callable, Mapping, NamedTuple, Optional, Tuple, Union

import numpy

from ..dtypes import STATE_TYPES

NUMERICS = ("builtin", "portable")
FLOAT32 = (float(numpy.finfo("float32").tiny), float(numpy.finfo("float32").max))
FLOAT64 = (sys.float_info.min, sys.float_info.max)
"""The magnitudes that MXNet's operators read as numbers of the type, besides 0 and infinity."""


class Range(NamedTuple):
    """An interval of real numbers.

    Parameters
    ----------
    low : float
        Smallest value.
    high : float
        Largest value; infinity means no bound.
    includes_high : bool, default False
        Whether `high` itself is allowed.
    optional : bool, default False
        Whether None is allowed as well.
    includes_low : bool, default True
        Whether `low` itself is allowed.
    magnitudes : tuple of (float, float), default FLOAT64
        Smallest and largest magnitude of values other than 0 and infinity.

    Examples
    --------
    >>> print(Range(0.0, 1.0))
    in [0, 1)
    >>> Range(0.0, 1.0).check("adamax_ext", "beta1", 1.0)
    Traceback (most recent call last):
        ...
    ValueError: adamax_ext: beta1 must be in [0, 1), got 1.0
    """

    low: float
    high: float
    includes_high: bool = False
    optional: bool = False
    includes_low: bool = True
    magnitudes: Tuple[float, float] = FLOAT64

    def __str__(self) -> str:
        left, right = "[" if self.includes_low else "(", "]" if self.includes_high else ")"
        text = f"in {left}{self.low:g}, {self.high:g}{right}"
        if self.low == -math.inf:
            text = "finite"
        return text + (" or None" if self.optional else "")

    def check(self, owner: str, name: str, value: Any) -> None:
        """Raise ValueError unless `value` lies in the range.

        Parameters
        ----------
        owner : str
            Name of the optimizer, for the message.
        name : str
            Name of the hyperparameter, for the message.
        value : Any
            The value to check.

        Raises
        ------
        ValueError
            If `value` is not a real number, is NaN, is outside the range, or has a magnitude that
            MXNet's operators do not read.
        """
        if value is None and self.optional:
            return
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if is_number:
            inside = self.low < value < self.high
            at_low = self.includes_low and value == self.low
            at_high = self.includes_high and value == self.high
            if (inside or at_low or at_high) and value != -math.inf:
                smallest, largest = self.magnitudes
                if value in (0, math.inf) or smallest <= abs(value) <= largest:
                    return
                or_infinite = ", infinite" if self.includes_high and self.high == math.inf else ""
                raise ValueError(
                    f"{owner}: {name} must be 0{or_infinite} or between {smallest:.2g} and "
                    f"{largest:.2g} in magnitude, got {value!r}"
                )
        raise ValueError(f"{owner}: {name} must be {self}, got {value!r}")


FINITE = Range(-math.inf, math.inf)
ANY_FINITE = FINITE._replace(magnitudes=(0.0, math.inf))
"""For numbers that are multiplied before they are used, so they can be arbitrarily close to 0."""
NOT_NEGATIVE = Range(0.0, math.inf)
DECAY_RATE = Range(0.0, 1.0)
"""For the decay of an exponential moving average: how much of the old value is kept."""


def as_number(value: Any) -> Any:
    """Convert a real number, or an array of one, to a Python number; return anything else as is.

    Arrays can be NumPy's or either kind of MXNet's; this waits for the latter. Later writes to the
    array have no effect on the number.

    Parameters
    ----------
    value : Any
        The value to convert.

    Examples
    --------
    >>> as_number(numpy.array([0.5]))
    0.5
    """
    if type(value) in (float, int):
        return value
    number = value
    if hasattr(value, "asnumpy") and value.size == 1:
        # NumPy does not know bfloat16.
        of_bits = numpy.dtype(value.dtype).names is not None
        number = (value.astype(numpy.float32) if of_bits else value).asnumpy()
    if isinstance(number, numpy.ndarray) and number.size == 1:
        number = number.item()
    if isinstance(number, numbers.Real) and not isinstance(number, bool):
        try:
            return float(number)
        except OverflowError:
            return value
    return value


def check_rescale_grad(owner: str, value: Any) -> None:
    """Raise ValueError if `value` is an MXNet array of integers."""
    if hasattr(value, "asnumpy") and numpy.issubdtype(value.dtype, numpy.integer):
        raise ValueError(
            f"{owner}: rescale_grad must be a float, got an array of {numpy.dtype(value.dtype)}, "
            "in which MXNet drops fractions; give a batch size of integers as a Python int"
        )


def bound_or_infinity(value: Optional[float]) -> float:
    """Return a bound as a float, infinite for none. MXNet misreads long integers."""
    return math.inf if value is None else float(value)


def check_integer(
    owner: str,
    name: str,
    value: Any,
    least: int,
    or_infinity: bool = False,
    below: float = math.inf,
) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`.

    Parameters
    ----------
    owner : str
        Name of the optimizer, for the message.
    name : str
        Name of the hyperparameter, for the message.
    value : Any
        The value to check.
    least : int
        Smallest value.
    or_infinity : bool, default False
        Whether infinity is allowed as well.
    below : float, default infinity
        Exclusive upper bound.

    Raises
    ------
    ValueError
        If `value` is anything else.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_integer and least <= int(value) < below:
        return
    if or_infinity and isinstance(value, numbers.Real) and value == math.inf:
        return
    alternative = " or numpy.inf" if or_infinity else ""
    if below < math.inf:
        alternative += f" and less than {below:d}"
    raise ValueError(
        f"{owner}: {name} must be an integer of at least {least}{alternative}, got {value!r}"
    )


def check_flag(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False.

    Parameters
    ----------
    owner : str
        Name of the optimizer, for the message.
    name : str
        Name of the option, for the message.
    value : Any
        The value to check.

    Raises
    ------
    ValueError
        If `value` is anything else.
    """
    if not isinstance(value, (bool, numpy.bool_)):
        raise ValueError(f"{owner}: {name} must be True or False, got {value!r}")


def _check_state_type(owner: str, name: str, value: Any) -> None:
    if isinstance(value, AnyMapping):
        for pattern, dtype in value.items():
            _check_pattern(owner, name, pattern)
            if not _is_state_type(dtype):
                raise ValueError(
                    f"{owner}: {name} must be one of {list(STATE_TYPES)} or None, got {dtype!r} "
                    f"for {pattern!r}"
                )
        return
    is_function = callable(value) and not isinstance(value, type)
    if not is_function and not _is_state_type(value):
        others = "" if isinstance(value, str) else ", a dict of them by pattern, or a function"
        raise ValueError(
            f"{owner}: {name} must be one of {list(STATE_TYPES)} or None{others}, got {value!r}"
        )


def _is_state_type(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in STATE_TYPES)


def _check_pattern(owner: str, name: str, pattern: Any) -> None:
    wrong = None if isinstance(pattern, str) else f"a {type(pattern).__name__}"
    if wrong is None:
        try:
            re.compile(pattern)
        except re.error as error:
            wrong = str(error)
    if wrong is not None:
        raise ValueError(
            f"{owner}: {name} must have regular expressions of parameter names as keys, got "
            f"{pattern!r} ({wrong})"
        )


def _check_numerics(owner: str, name: str, value: Any) -> None:
    if value not in NUMERICS and value is not None:
        raise ValueError(
            f"{owner}: {name} must be {' or '.join(map(repr, NUMERICS))}, or None, got {value!r}"
        )


class Values(NamedTuple):
    """The values of an option that is not an interval of real numbers.

    Parameters
    ----------
    text : str
        The values, for the documentation; empty if the default shows them.
    check : callable
        Called with owner, name and value, like :meth:`Range.check`.
    """

    text: str
    check: Callable[[str, str, Any], None]

    def __str__(self) -> str:
        return self.text


FLAG = Values("", check_flag)


class Resume(enum.Enum):
    """Which value of an option counts when a training resumes from a file."""

    FROM_FILE = enum.auto()
    """The file's value."""
    SAME_STATES = enum.auto()
    """File and program must agree: the option decides which arrays a state has."""
    SAME_FORMULA = enum.auto()
    """File and program must agree: the option changes the formula."""
    FROM_PROGRAM = enum.auto()
    """The program's value."""
    FROM_CALLER = enum.auto()
    """The program's value, never converted: the option says how MXNet calls the optimizer."""


@dataclass(frozen=True)
class Option:
    """An option of optimizers.

    Parameters
    ----------
    name : str
        The argument, and the attribute.
    default : Any
        Its default; ``inspect.Parameter.empty`` if each optimizer has its own.
    values : Range or Values
        Its possible values.
    meaning : str
        Its description, in Markdown, for docs/options.md.
    resume : Resume
        Which value counts when a training resumes from a file.
    off : Any, default None
        The value that turns the option off.
    is_number : bool, default False
        Whether file and program must only agree on whether it is `off`, not on the value.
    needs_whole_model : bool, default False
        Whether one call must update the whole model if it is on.
    in_built_in : bool, default False
        Whether every built-in has the option.
    belongs_to : str, default ""
        The option that it depends on.
    advice : str, default ""
        How to continue with a built-in, which does not have the option.
    """

    name: str
    default: Any
    values: Union[Range, Values]
    meaning: str
    resume: Resume
    off: Any = None
    is_number: bool = False
    needs_whole_model: bool = False
    in_built_in: bool = False
    belongs_to: str = ""
    advice: str = ""

    def setting(self, value: Any) -> Any:
        """Return what file and program must agree on: the value, or whether it is on."""
        if not self.is_number:
            return value
        return value is not None if self.off is None else value != self.off


OPTIONS = (
    Option(
        "learning_rate",
        inspect.Parameter.empty,
        Range(0.0, math.inf, optional=True),
        "None takes it from `lr_scheduler`; times the parameter's `lr_mult`",
        Resume.FROM_FILE,
        in_built_in=True,
    ),
    Option(
        "rescale_grad",
        1.0,
        FINITE,
        "Gluon's `Trainer.step(batch_size)` sets it",
        Resume.FROM_PROGRAM,
        in_built_in=True,
    ),
    Option(
        "wd",
        0.0,
        NOT_NEGATIVE,
        "weight decay; times the parameter's `wd_mult`",
        Resume.FROM_FILE,
        in_built_in=True,
    ),
    Option(
        "clip_gradient",
        None,
        Range(0.0, math.inf, includes_high=True, optional=True, magnitudes=FLOAT32),
        "0 clips to zero, as the base class says; MXNet's fused operators take it for None",
        Resume.FROM_FILE,
        in_built_in=True,
    ),
    Option(
        "maximize",
        False,
        FLAG,
        "ascend instead of descend; weight decay still shrinks weights",
        Resume.SAME_FORMULA,
        off=False,
    ),
    Option(
        "decoupled_wd",
        False,
        FLAG,
        "keep weight decay out of the gradient, so nothing divides it (Loshchilov & Hutter, "
        "arXiv 1711.05101)",
        Resume.SAME_FORMULA,
        off=False,
    ),
    Option(
        "lazy_update",
        False,
        FLAG,
        "update only the rows that a gradient holds: [sparse.md](sparse.md)",
        Resume.SAME_FORMULA,
        off=False,
    ),
    Option(
        "clip_global_norm",
        None,
        Range(0.0, math.inf, includes_low=False, includes_high=True, optional=True),
        "clip the norm of all gradients of the model: multiply them by "
        "`min(1, clip_global_norm / norm)`",
        Resume.SAME_FORMULA,
        is_number=True,
        needs_whole_model=True,
    ),
    Option(
        "skip_nonfinite",
        False,
        FLAG,
        "skip a step if any gradient of the model holds NaN or infinity",
        Resume.SAME_FORMULA,
        off=False,
        needs_whole_model=True,
    ),
    Option(
        "multi_precision",
        False,
        FLAG,
        "keep and update a float32 master weight for each 16-bit weight: "
        "[mixed-precision.md](mixed-precision.md)",
        Resume.SAME_STATES,
        off=False,
        in_built_in=True,
    ),
    Option(
        "state_dtype",
        None,
        Values(
            "`'float16'`, `'bfloat16'`, `'int8'` or None; a dict of them by pattern of parameter "
            "names; a function `f(name, shape)`",
            _check_state_type,
        ),
        "store states in low precision: "
        "[mixed-precision.md](mixed-precision.md#low-precision-states)",
        Resume.SAME_STATES,
        advice="MXNet has no low-precision states: continue with this optimizer",
    ),
    Option(
        "state_seed",
        0,
        Values("[0, 2^32)", functools.partial(check_integer, least=0, below=2**32)),
        "seed of the stochastic rounding of a `state_dtype`",
        Resume.FROM_FILE,
        belongs_to="state_dtype",
    ),
    Option(
        "ema_decay",
        None,
        Range(0.0, 1.0, optional=True, magnitudes=(0.0, math.inf)),
        "keep a moving average of the weights for evaluation",
        Resume.SAME_STATES,
        is_number=True,
        advice="--drop-averages leaves the averages out",
    ),
    Option(
        "numerics",
        None,
        Values("`'builtin'`, `'portable'` or None", _check_numerics),
        "the bits of the installed MXNet's built-in, or one definition for all versions: "
        "[Numerics](optimizers.md#numerics); None: `'builtin'` where MXNet has the optimizer",
        Resume.FROM_PROGRAM,
    ),
    Option(
        "use_fused_step",
        True,
        FLAG,
        "False uses MXNet's operators instead of the native kernel: slow, the same bits",
        Resume.FROM_CALLER,
    ),
    Option(
        "aggregate_num",
        None,
        Values(
            "an integer >= 0, infinity or None",
            functools.partial(check_integer, least=0, or_infinity=True),
        ),
        "None: all at once; 1 for `update_on_kvstore=True` and on parameter servers",
        Resume.FROM_CALLER,
        in_built_in=True,
    ),
)
"""The options of every optimizer, besides its own hyperparameters."""

OWN_OPTIONS = (
    Option(
        "amsgrad",
        inspect.Parameter.empty,
        FLAG,
        "divide by the largest second moment so far",
        Resume.SAME_STATES,
        off=False,
        advice="its third state would be lost, and MXNet has no AMSGrad: continue with this "
        "optimizer",
    ),
    Option(
        "centered",
        False,
        FLAG,
        "divide by the deviation of the gradient",
        Resume.SAME_STATES,
        off=False,
        in_built_in=True,
    ),
    Option(
        "momentum",
        inspect.Parameter.empty,
        DECAY_RATE,
        "fraction of the last change that is kept",
        Resume.SAME_STATES,
        off=0.0,
        is_number=True,
        in_built_in=True,
    ),
    Option(
        "correct_bias",
        True,
        FLAG,
        "correct the bias of moments that began at zero",
        Resume.SAME_FORMULA,
        off=False,
    ),
    Option(
        "bias_correction",
        True,
        FLAG,
        "correct the bias of LAMB's moments, which began at zero",
        Resume.SAME_FORMULA,
        off=False,
        in_built_in=True,
    ),
    Option(
        "momentum_correction",
        inspect.Parameter.empty,
        FLAG,
        "scale the momentum when the learning rate changes",
        Resume.SAME_FORMULA,
        off=False,
        in_built_in=True,
    ),
    Option(
        "schedule_per_parameter",
        inspect.Parameter.empty,
        FLAG,
        "count Nadam's schedule as the built-in does",
        Resume.SAME_FORMULA,
        off=False,
        advice="it counts the schedule in another way: continue with this optimizer",
    ),
    Option(
        "clip_weights",
        None,
        Range(0.0, math.inf, includes_low=False, includes_high=True, optional=True),
        "bound of the weights",
        Resume.SAME_FORMULA,
        is_number=True,
        in_built_in=True,
    ),
)
"""The options of some optimizers on which file and program must agree."""

BY_NAME: Mapping[str, Option] = {option.name: option for option in (*OPTIONS, *OWN_OPTIONS)}

RANGES: Mapping[str, Range] = {
    option.name: option.values
    for option in OPTIONS
    if isinstance(option.values, Range) and option.name != "learning_rate"
}
"""The ranges of the attributes of every optimizer, except the learning rate."""

WHOLE_MODEL_OPTIONS = tuple(option for option in OPTIONS if option.needs_whole_model)


def names_of(*resume: Resume) -> Tuple[str, ...]:
    """Return the names of the options with one of these ways to resume from a file."""
    return tuple(name for name, option in BY_NAME.items() if option.resume in resume)
