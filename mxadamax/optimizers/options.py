# SPDX-License-Identifier: Apache-2.0
"""The numbers that hyperparameters are, the ranges that they must lie in, and what is refused."""

import math
import numbers
import sys
from typing import Any, NamedTuple, Optional, Tuple

import numpy

FLOAT32 = (float(numpy.finfo("float32").tiny), float(numpy.finfo("float32").max))
FLOAT64 = (sys.float_info.min, sys.float_info.max)
"""The magnitudes of what MXNet's operators read as such a number, 0 and infinity apart."""


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
        Smallest and largest magnitude of what is neither 0 nor infinite.

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
            Who asks, for the message.
        name : str
            Name of the hyperparameter, for the message.
        value : Any
            What was given.

        Raises
        ------
        ValueError
            Where `value` is no real number, NaN, outside, or of a magnitude that is not read.
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
"""Of what is multiplied before it is used, however near to 0 that is."""
NOT_NEGATIVE = Range(0.0, math.inf)
DECAY_RATE = Range(0.0, 1.0)
"""Of an exponentially weighted mean: how much of the old value is kept."""


def as_number(value: Any) -> Any:
    """A real number, or an array of one, as a Python number; anything else as it is.

    Arrays are NumPy's and both kinds of MXNet's, which are waited for. What is written to them
    later does not count.

    Parameters
    ----------
    value : Any
        What was given.

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


def bound_or_infinity(value: Optional[float]) -> float:
    """A bound as a float, infinite for none. MXNet takes a long integer for another one."""
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
        Who asks, for the message.
    name : str
        Name of the hyperparameter, for the message.
    value : Any
        What was given.
    least : int
        Smallest value.
    or_infinity : bool, default False
        Whether infinity is allowed as well.
    below : float, default infinity
        What is too large.

    Raises
    ------
    ValueError
        Where `value` is something else.
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
        Who asks, for the message.
    name : str
        Name of the option, for the message.
    value : Any
        What was given.

    Raises
    ------
    ValueError
        Where `value` is something else.
    """
    if not isinstance(value, (bool, numpy.bool_)):
        raise ValueError(f"{owner}: {name} must be True or False, got {value!r}")
