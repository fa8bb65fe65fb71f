# SPDX-License-Identifier: Apache-2.0
"""The optimizers in extended precision, written from the papers, apart from the code under test.

They compute with `Rounded`, which carries along how far a computation in a shorter type may be from
the exact result. A cancellation or a small denominator thus widens the bound by as much as it must,
and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Union

import numpy as np

precise = np.longdouble

UNIT = {np.dtype(t): precise(np.finfo(t).eps) / 2 for t in ("float32", "float64")}
"""How far the nearest number of a type may be, relative to the result."""
UNDERFLOW = {t: precise(np.finfo(t).tiny) * unit for t, unit in UNIT.items()}
"""The same next to zero, absolute."""
OWN_UNIT = np.finfo(precise).eps
"""Twice the unit of extended precision, which leaves room for the rounding of the bounds."""

Operand = Union["Rounded", float]


class Rounded:
    """A number, or an array, that a computation in `dtype` may miss by up to `error`.

    An operation gives `value` as if nothing had been rounded, and as `error` what the operands
    bring along plus half a unit in the last place of the result. Plain numbers are exact in any
    type. A float64 that meets a float32 is rounded to it first, as kernels do with hyperparameters.

    Parameters
    ----------
    value : array_like
        The exact result.
    dtype : dtype
        Float32 or float64.
    error : array_like, default 0
        Bound of the absolute error, not only to first order.
    """

    def __init__(self, value: Any, dtype: Any, error: Any = 0.0):
        self.value = np.asarray(value, precise)
        self.dtype = np.dtype(dtype)
        self.error = np.asarray(error, precise)

    def rounded(self, units: int = 1) -> Rounded:
        """After an operation that is right to so many halves of a unit in the last place."""
        unit = units * UNIT[self.dtype] + OWN_UNIT
        error = self.error + unit * (abs(self.value) + self.error) + UNDERFLOW[self.dtype]
        # Nothing rounds an exact zero, infinity or NaN.
        exact = ~np.isfinite(self.value) | ((self.value == 0) & (self.error == 0))
        return Rounded(self.value, self.dtype, np.where(exact, 0, error))

    def to(self, dtype: np.dtype) -> Rounded:
        """The nearest number of a type."""
        return self if dtype == self.dtype else Rounded(self.value, dtype, self.error).rounded()

    def alike(self, other: Operand) -> tuple[Rounded, Rounded]:
        """This and another number in the shorter of their types."""
        if not isinstance(other, Rounded):
            return self, Rounded(other, self.dtype)
        shorter = min(self.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        return self.to(shorter), other.to(shorter)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.dtype, self.error)

    def __abs__(self) -> Rounded:
        return Rounded(abs(self.value), self.dtype, self.error)

    def __add__(self, other: Operand) -> Rounded:
        a, b = self.alike(other)
        return Rounded(a.value + b.value, a.dtype, a.error + b.error).rounded()

    def __sub__(self, other: Operand) -> Rounded:
        return self + -other

    def __rsub__(self, other: float) -> Rounded:
        return -self + other

    def __mul__(self, other: Operand) -> Rounded:
        a, b = self.alike(other)
        error = abs(a.value) * b.error + a.error * (abs(b.value) + b.error)
        return Rounded(a.value * b.value, a.dtype, error).rounded()

    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> Rounded:
        a, b = self.alike(other)
        least = abs(b.value) - b.error
        if np.any(least <= 0):
            raise ZeroDivisionError("within its error the divisor is zero")
        ratio = a.value / b.value
        return Rounded(ratio, a.dtype, (a.error + abs(ratio) * b.error) / least).rounded()

    def __pow__(self, exponent: Operand) -> Rounded:
        """A power of a positive number."""
        a, b = self.alike(exponent)
        power, logarithm = a.value**b.value, abs(np.log(a.value))
        change = a.error / (a.value - a.error) * (abs(b.value) + b.error) + logarithm * b.error
        # C libraries come within a unit in the last place, not half of one.
        return Rounded(power, a.dtype, power * np.expm1(change)).rounded(units=2)


def square(x: Rounded) -> Rounded:
    return x * x


def sqrt(x: Rounded) -> Rounded:
    if np.any((x.value < 0) & np.isfinite(x.value)):
        raise ValueError("square root of a negative number")
    root = np.sqrt(x.value)
    # The lower end moves the root most, yet by no more than the root of the error.
    with np.errstate(divide="ignore", invalid="ignore"):
        error = x.error / (root + np.sqrt(np.maximum(x.value - x.error, 0)))
    return Rounded(root, x.dtype, np.fmin(error, np.sqrt(x.error))).rounded()


def maximum(a: Rounded, b: Rounded) -> Rounded:
    a, b = a.alike(b)
    error = np.maximum(a.error, b.error)
    # Where it is certain which one it is, the other's error does not matter.
    error = np.where(a.value - b.value > a.error + b.error, a.error, error)
    error = np.where(b.value - a.value > a.error + b.error, b.error, error)
    return Rounded(np.maximum(a.value, b.value), a.dtype, error)


def sign(x: Rounded) -> Rounded:
    found = np.sign(x.value)
    # Next to zero it may be any of the three.
    unsure = (abs(x.value) <= x.error) & (x.error > 0)
    return Rounded(found, x.dtype, np.where(unsure, 1 + abs(found), 0))


def clip(x: Rounded, bound: Rounded) -> Rounded:
    return maximum(-bound, -maximum(-x, -bound))


def product(x: Rounded) -> Rounded:
    """Of all elements, multiplied one after another."""
    value = np.prod(x.value)
    relative = np.log1p(x.error / abs(x.value)) + UNIT[x.dtype] + OWN_UNIT
    return Rounded(value, x.dtype, abs(value) * np.expm1(np.sum(relative)))


def norm(x: Rounded) -> Rounded:
    """The root of the sum of squares, which are added one after another."""
    squares = square(x)
    value, error = np.sum(squares.value), np.sum(squares.error)
    count = x.value.size
    rounding = count * (UNIT[x.dtype] + OWN_UNIT) * (value + error) + count * UNDERFLOW[x.dtype]
    return sqrt(Rounded(value, x.dtype, error + rounding))


def single(x: Rounded, dtype: np.dtype) -> Rounded:
    """A number that was rounded to float32, in another type."""
    rounded = x.to(np.dtype("float32"))
    return Rounded(rounded.value, dtype, rounded.error)


class Rule(NamedTuple):
    """The formula of a rule, and what tests need to compare the rule with it.

    Parameters
    ----------
    formula : function
        Takes the prepared gradient `g`, the weight `w` after decoupled decay, the states, and
        hyperparameters; returns the weight and the states after the step.
    optimizer : str
        The registered name of the optimizer that follows it.
    hyperparameters : dict
        Those that both take, for the tests of long runs.
    kinds : tuple of str
        The kind of each state: ``StateKind`` in csrc/rules/rule.h.
    ours : dict
        Options that only the optimizer takes.
    ulps : dict
        What the rule's own change adds to the error of a weight of 1/4 or more, in units in the
        last place, by type: measured, plus little.
    low_precision : bool
        Whether the rule's states can be kept in low precision.
    positive : tuple of float
        The range of states that are not negative, in the cases of the native driver.
    scalars : function or None
        Scalars of the kernel that depend on the number of the step, from hyperparameters and step.
    decays : bool
        Whether decoupled weight decay is part of the formula.
    sums : bool
        Whether a step depends on sums over all elements.
    takes_wd : bool
        Whether weight decay that is not decoupled is part of the formula, not of the gradient.
    bounds_direction : bool
        Whether `clip_gradient` is left to the formula, as its `bound`.
    adapts : bool
        Whether the learning rate depends on the gradient as it is before it is clipped.
    """

    formula: Callable[..., tuple[Rounded, ...]]
    optimizer: str
    hyperparameters: Mapping[str, Any]
    kinds: tuple[str, ...]
    ours: Mapping[str, Any] = {}
    ulps: Mapping[str, float] = {"float32": 0.2, "float64": 0.2}
    low_precision: bool = True
    positive: tuple[float, float] = (0.01, 2.0)
    scalars: Callable[[Mapping[str, float], int], dict[str, float]] | None = None
    decays: bool = False
    sums: bool = False
    takes_wd: bool = False
    bounds_direction: bool = False
    adapts: bool = False

    @property
    def has_bounds(self) -> bool:
        """Whether the norm of the weight is bounded."""
        return "lower_bound" in inspect.signature(self.formula).parameters


RULES: dict[str, Rule] = {}
"""All rules, by name."""


def rule(*arguments: Any, **options: Any) -> Callable[..., Callable[..., tuple[Rounded, ...]]]:
    """Register the formula that follows as a `Rule`."""

    def add(formula: Callable[..., tuple[Rounded, ...]]) -> Callable[..., tuple[Rounded, ...]]:
        RULES[formula.__name__] = Rule(formula, *arguments, **options)
        return formula

    return add


MOMENTS = {"lr": 0.0123, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}

CANCELS = {"float32": 0.2, "float64": 1.9}
"""Bias corrections are computed in float64: in the second step 1 - beta2**t cancels nine bits."""


@rule(
    *("adamax_ext", MOMENTS, ("with_sign", "non_negative")),
    scalars=lambda h, t: {"lr": h["lr"] / (1 - h["beta1"] ** t)},
)
def adamax(g, w, m, u, *, t, lr, beta1, beta2, epsilon):
    """arXiv 1412.6980, algorithm 2, with MXNet's epsilon."""
    m = beta1 * m + (1 - beta1) * g
    u = maximum(beta2 * u, abs(g))
    return w - lr / (1 - beta1**t) * (m / (u + epsilon)), m, u


def corrected(lr, t, beta1, beta2):
    """The rate of Adam and its kin, to make up for moments that began at zero."""
    return lr * (sqrt(1 - beta2**t) / (1 - beta1**t))


@rule("adam_ext", MOMENTS, ("with_sign", "second_moment"), ulps=CANCELS)
def adam(g, w, m, v, *, t, lr, beta1, beta2, epsilon, correct_bias=True):
    """arXiv 1412.6980, algorithm 1, in the order of operations that ends its section 2."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * square(g)
    rate = corrected(lr, t, beta1, beta2) if correct_bias else lr
    return w - rate * (m / (sqrt(v) + epsilon)), m, v


@rule("amsgrad_ext", MOMENTS, ("with_sign", "second_moment", "second_moment"), ulps=CANCELS)
def amsgrad(g, w, m, v, largest, *, t, lr, beta1, beta2, epsilon, correct_bias=True):
    """arXiv 1904.09237, algorithm 2, with Adam's bias correction and epsilon."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * square(g)
    largest = maximum(largest, v)
    rate = corrected(lr, t, beta1, beta2) if correct_bias else lr
    return w - rate * (m / (sqrt(largest) + epsilon)), m, v, largest


def nadam_scalars(h: Mapping[str, float], t: int) -> dict[str, float]:
    momentum = [h["beta1"] * (1 - 0.5 * 0.96 ** (k * h["schedule_decay"])) for k in range(t + 2)]
    return {
        "one_minus_momentum": 1 - momentum[t],
        "next_momentum": momentum[t + 1],
        "grad_divisor": 1 - float(np.prod(momentum[1 : t + 1])),
        "m_divisor": 1 - float(np.prod(momentum[1:])),
        "v_divisor": 1 - h["beta2"] ** t,
    }


@rule(
    *("nadam_ext", {**MOMENTS, "schedule_decay": 0.004}, ("with_sign", "second_moment")),
    ulps=CANCELS,
    scalars=nadam_scalars,
)
def nadam(g, w, m, v, *, t, lr, beta1, beta2, epsilon, schedule_decay):
    """Dozat, ICLR workshop 2016, algorithm 2, but that `m` is decayed by beta1, as in MXNet."""

    def momentum(t):
        return beta1 * (1 - 0.5 * Rounded(0.96, "float64") ** (schedule_decay * t))

    so_far = product(momentum(Rounded(np.arange(1, t + 1), "float64")))
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * square(g)
    ahead = (
        momentum(t + 1) * (m / (1 - so_far * momentum(t + 1)))
        + (1 - momentum(t)) * (g / (1 - so_far))
    )  # fmt: skip
    return w - lr * (ahead / (sqrt(v / (1 - beta2**t)) + epsilon)), m, v


@rule("adabelief_ext", MOMENTS, ("with_sign", "second_moment"), ulps=CANCELS)
def adabelief(g, w, m, v, *, t, lr, beta1, beta2, epsilon, correct_bias=True):
    """arXiv 2010.07468, algorithm 2, in Adam's order of operations."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * square(g - m) + epsilon
    rate = corrected(lr, t, beta1, beta2) if correct_bias else lr
    return w - rate * (m / (sqrt(v) + epsilon)), m, v


@rule(
    *("rmsprop_ext", {"lr": 0.0123, "rho": 0.9, "epsilon": 1e-8, "clip_weights": 5.0}),
    kinds=("second_moment",),
)
def rmsprop(g, w, v, *, t, lr, rho, epsilon, clip_weights):
    """Tieleman & Hinton, lecture 6.5 of 2012, with MXNet's epsilon and bound of the weights."""
    v = rho * v + (1 - rho) * square(g)
    return clip(w - lr * (g / (sqrt(v) + epsilon)), clip_weights), v


@rule(
    "rmsprop_ext",
    {"lr": 0.00123, "rho": 0.95, "momentum": 0.9, "epsilon": 1e-8, "clip_weights": 5.0},
    kinds=("with_sign", "second_moment", "with_sign"),
    ours={"centered": True},
    low_precision=False,
    # More than the square of the first.
    positive=(9.01, 11.0),
)
def rmsprop_centered(g, w, m, v, change, *, t, lr, rho, momentum, epsilon, clip_weights):
    """arXiv 1308.0850, equations 38 to 45, with MXNet's bound of the weights."""
    m = rho * m + (1 - rho) * g
    v = rho * v + (1 - rho) * square(g)
    change = momentum * change - lr * g / sqrt(v - square(m) + epsilon)
    return clip(w + change, clip_weights), m, v, change


@rule("adagrad_ext", {"lr": 0.0123, "epsilon": 1e-6}, ("second_moment",))
def adagrad(g, w, history, *, t, lr, epsilon):
    """Duchi, Hazan & Singer, JMLR 12, 2011, with a diagonal matrix and MXNet's epsilon."""
    history = history + square(g)
    return w - lr * (g / (sqrt(history) + epsilon)), history


@rule("adadelta_ext", {"lr": 1.23, "rho": 0.9, "epsilon": 1e-6}, ("second_moment", "second_moment"))
def adadelta(g, w, v, changes, *, t, lr, rho, epsilon):
    """arXiv 1212.5701, algorithm 1, with a learning rate."""
    v = rho * v + (1 - rho) * square(g)
    change = sqrt(changes + epsilon) / sqrt(v + epsilon) * g
    changes = rho * changes + (1 - rho) * square(change)
    return w - lr * change, v, changes


@rule("sgd_ext", {"lr": 0.0123}, ())
def sgd(g, w, *, t, lr):
    return (w - lr * g,)


@rule("sgd_ext", {"lr": 0.0123, "momentum": 0.9}, ("with_sign",))
def sgd_momentum(g, w, change, *, t, lr, momentum):
    """Sutskever et al., ICML 2013, equations 1 and 2."""
    change = momentum * change - lr * g
    return w + change, change


@rule("nag_ext", {"lr": 0.0123, "momentum": 0.9}, ("with_sign",))
def nag(g, w, change, *, t, lr, momentum):
    """Sutskever et al., ICML 2013, equations 3 and 4; `w` is where the gradient is taken."""
    change = momentum * change - lr * g
    return w + (momentum * change - lr * g), change


@rule(
    *("dcasgd_ext", {"lr": 0.0123, "lamda": 0.4}, ("earlier_weight",)),
    low_precision=False,
    scalars=lambda h, t: {"momentum": 0.0},
)
def dcasgd(g, w, previous, *, t, lr, lamda):
    """arXiv 1609.08326, algorithm 2, with the last weight in the place of a worker's copy."""
    return w - lr * (g + lamda * square(g) * (w - previous)), w


@rule(
    "dcasgd_ext",
    {"lr": 0.0123, "momentum": 0.9, "lamda": 0.4},
    ("with_sign", "earlier_weight"),
    low_precision=False,
)
def dcasgd_momentum(g, w, change, previous, *, t, lr, momentum, lamda):
    """The same with a momentum."""
    change = momentum * change - lr * (g + lamda * square(g) * (w - previous))
    return w + change, change, w


@rule(
    *("sgld_ext", {"lr": 1.23}, ("with_sign",)),
    ulps={"float32": 1.7, "float64": 1.7},
    low_precision=False,
    scalars=lambda h, t: {"half_lr": h["lr"] / 2},
)
def sgld(g, w, noise, *, t, lr):
    """Welling & Teh, ICML 2011, equation 4, with the noise of the step in the place of a state."""
    return w - lr / 2 * g + noise, noise


@rule(
    *(
        "lion_ext",
        {"lr": 0.0123, "beta1": 0.9, "beta2": 0.99, "decoupled_wd": True},
        ("with_sign",),
    ),
    decays=True,
)
def lion(g, w, m, *, t, lr, wd, beta1, beta2):
    """arXiv 2302.06675, algorithm 2."""
    direction = beta1 * m + (1 - beta1) * g
    m = beta2 * m + (1 - beta2) * g
    return w - lr * (sign(direction) + wd * w), m


def _lamb_scalars(h: Mapping[str, float], t: int) -> dict[str, float]:
    return {
        "correction1": 1 - float(np.float32(h["beta1"])) ** t,
        "correction2": 1 - float(np.float32(h["beta2"])) ** t,
        "lower_bound": h.get("lower_bound", 0.0),
        "upper_bound": h.get("upper_bound", np.inf),
    }


def _lamb(name: str) -> Callable[..., Callable[..., tuple[Rounded, ...]]]:
    """What both rules of LAMB are registered with."""
    return rule(
        name,
        {**MOMENTS, "epsilon": 1e-6, "decoupled_wd": True},
        ("with_sign", "second_moment"),
        # Relative to the length of the whole weight.
        ulps={"float32": np.inf, "float64": np.inf},
        scalars=_lamb_scalars,
        decays=True,
        sums=True,
    )


@_lamb("lamb_ext")
def lamb(g, w, m, v, *, t, lr, wd, beta1, beta2, epsilon, lower_bound=0.0, upper_bound=1e30):
    """arXiv 1904.00962, algorithm 2, with bounds of the norm of the weight.

    Hyperparameters are in single precision.
    """

    def given(x):
        return single(x if isinstance(x, Rounded) else Rounded(x, "float64"), g.dtype)

    def correction(beta):
        return single(1 - beta.to(np.dtype("float32")) ** t, g.dtype)

    b1, b2 = given(beta1), given(beta2)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * square(g)
    quotient = m / correction(beta1) / (sqrt(v / correction(beta2)) + given(epsilon))
    delta = quotient + given(wd) * w
    size = -maximum(-maximum(norm(w), given(lower_bound)), -given(upper_bound))
    if np.all(delta.value == 0) or (np.all(w.value == 0) and np.all(size.value == 0)):
        return w - given(lr) * delta, m, v
    return w - given(lr) * (size / norm(delta)) * delta, m, v


@_lamb("lamb_ext")
def lamb_double_quotient(*arguments, **hyperparameters):
    """The same, rounded less often."""
    return lamb(*arguments, **hyperparameters)


def sign_or_zero(x: Rounded) -> Rounded:
    """The sign, which is 0 for NaN."""
    found = sign(x)
    return Rounded(np.where(np.isnan(found.value), 0, found.value), x.dtype, found.error)


def signum_decay(h: Mapping[str, float]) -> float:
    """What decoupled weight decay leaves of a weight."""
    wd = h["wd"] if h.get("decoupled_wd") else 0.0
    return (1 - h["lr"] * wd) * (1 - h["lr"] * h["wd_lh"])


@rule(
    *("signum_ext", {"lr": 0.0123, "momentum": 0.9, "wd_lh": 1.7}, ("with_sign",)),
    # The weight is first multiplied by what decay leaves of it.
    ulps={"float32": 1.0, "float64": 1.0},
    scalars=lambda h, t: {"decay_factor": signum_decay(h)},
)
def signum(g, w, m, *, t, lr, momentum, wd_lh):
    """arXiv 1802.04434, algorithm 2, where MXNet keeps -m, and with decoupled decay."""
    m = momentum * m - (1 - momentum) * g
    return (1 - lr * wd_lh) * w + lr * sign_or_zero(m), m


@rule(
    *("signum_ext", {"lr": 0.0123, "momentum": 0.0, "wd_lh": 1.7}, ()),
    ulps={"float32": 1.0, "float64": 1.0},
    scalars=lambda h, t: {
        "wd": -1.0,
        "decay_factor": signum_decay(h)
        if h.get("decoupled_wd")
        else 1 - h["lr"] * (h["wd"] + h["wd_lh"]),
    },
    takes_wd=True,
)
def signsgd(g, w, *, t, lr, momentum, wd, wd_lh):
    """arXiv 1802.04434, algorithm 1, with decoupled decay."""
    return ((1 - lr * (wd + wd_lh)) * w - lr * sign_or_zero(g),)


@rule(
    "ftml_ext",
    {"lr": 0.0123, "beta1": 0.6, "beta2": 0.999, "epsilon": 1e-8},
    kinds=("non_negative", "second_moment", "with_sign"),
    # The weight is a quotient of two states.
    ulps={"float32": 2.3, "float64": 2.3},
    low_precision=False,
    scalars=lambda h, t: {
        "correction2": 1 - h["beta2"] ** t,
        "d_factor": (1 - h["beta1"] ** t) / h["lr"],
    },
)
def ftml(g, w, d, v, z, *, t, lr, beta1, beta2, epsilon):
    """Zheng & Kwok, ICML 2017, algorithm 1."""
    v = beta2 * v + (1 - beta2) * square(g)
    before = d
    d = (1 - beta1**t) / lr * (sqrt(v / (1 - beta2**t)) + epsilon)
    z = beta1 * z + (1 - beta1) * g - (d - beta1 * before) * w
    return -z / d, d, v, z


@rule(
    "ftrl_ext",
    {"lr": 1.23, "lamda1": 0.1, "beta": 0.3},
    kinds=("with_sign", "second_moment"),
    ulps={"float32": 3.6, "float64": 3.6},
    low_precision=False,
    scalars=lambda h, t: {"wd": -1.0, "weight_decay": 0.0 if h.get("decoupled_wd") else h["wd"]},
    takes_wd=True,
)
def ftrl(g, w, z, n, *, t, lr, wd, lamda1, beta):
    """McMahan et al., KDD 2013, algorithm 1, with `wd` as its lambda2 and `lr` as its alpha."""
    root = sqrt(n + square(g))
    z = z + (g - (root - sqrt(n)) / lr * w)
    n = n + square(g)
    excess = maximum(abs(z) - lamda1, Rounded(0.0, z.dtype))
    return -(sign(z) * excess) / ((beta + root) / lr + wd), z, n


@rule(
    "lans_ext",
    {**MOMENTS, "epsilon": 1e-6, "decoupled_wd": True},
    ("with_sign", "second_moment"),
    # Relative to the length of the whole weight.
    ulps={"float32": np.inf, "float64": np.inf},
    scalars=lambda h, t: {
        **_lamb_scalars(h, t),
        "direction_bound": h["clip_gradient"],
        "clip_gradient": np.inf,
    },
    decays=True,
    sums=True,
    bounds_direction=True,
)
def lans(g, w, m, v, *, t, lr, wd, beta1, beta2, epsilon, bound, lower_bound=0.0, upper_bound=1e30):
    """arXiv 2006.13484, algorithm 2, with bounds of the norm of the weight.

    Hyperparameters are in single precision.
    """

    def given(x):
        return single(x if isinstance(x, Rounded) else Rounded(x, "float64"), g.dtype)

    def correction(beta):
        return single(1 - beta.to(np.dtype("float32")) ** t, g.dtype)

    b1, b2 = given(beta1), given(beta2)
    g = clip(g / norm(g), given(bound))
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * square(g)
    scale = sqrt(v / correction(beta2)) + given(epsilon)
    decay = given(wd) * w
    size = -maximum(-maximum(norm(w), given(lower_bound)), -given(upper_bound))

    def ratio(direction):
        is_zero = np.all(direction.value == 0) or (np.all(w.value == 0) and np.all(size.value == 0))
        return Rounded(1.0, g.dtype) if is_zero else size / norm(direction)

    along_m, along_g = m / correction(beta1) / scale + decay, g / scale + decay
    step = given(lr) * (ratio(along_m) * b1) * along_m
    return w - (step + given(lr) * (ratio(along_g) * (1 - b1)) * along_g), m, v


def _lars_scalars(h: Mapping[str, float], t: int) -> dict[str, float]:
    wd = 0.0 if h.get("decoupled_wd") else h["wd"]
    return {"adapts": 1.0, "grad_scale": 1.0, "weight_decay": wd, "momentum": h.get("momentum", 0)}


def _lars_rate(g, w, lr, wd, eta, epsilon):
    """The learning rate of a parameter; norms and their quotient are in single precision."""
    short = np.dtype("float32")
    weight_norm, grad_norm = (
        Rounded(size.value, size.dtype, size.error).to(short) for size in (norm(w), norm(g))
    )
    if np.all(weight_norm.value == 0) or np.all(grad_norm.value == 0):
        return lr
    wd, eta, epsilon = (x.to(short) for x in (wd, eta, epsilon))
    factor = eta * weight_norm / (grad_norm + wd * weight_norm + epsilon)
    return Rounded(factor.value, g.dtype, factor.error) * lr


def _lars(hyperparameters: Mapping[str, Any], kinds: tuple[str, ...]) -> Callable[..., Any]:
    return rule(
        "lars_ext",
        {"lr": 1.23, "eta": 0.01, "epsilon": 5.0, **hyperparameters},
        kinds,
        # Relative to the length of the whole weight.
        ulps={"float32": np.inf, "float64": np.inf},
        scalars=_lars_scalars,
        sums=True,
        adapts=True,
    )


@_lars({}, ())
def lars(g, w, *, t, lr, eta, epsilon, raw, rate_wd):
    """arXiv 1708.03888, algorithm 1, without momentum."""
    return (w - _lars_rate(raw, w, lr, rate_wd, eta, epsilon) * g,)


@_lars({"momentum": 0.9}, ("with_sign",))
def lars_momentum(g, w, change, *, t, lr, momentum, eta, epsilon, raw, rate_wd):
    """arXiv 1708.03888, algorithm 1."""
    change = momentum * change - _lars_rate(raw, w, lr, rate_wd, eta, epsilon) * g
    return w + change, change


def step(
    formula: Callable[..., tuple[Rounded, ...]],
    weight: np.ndarray,
    grad: np.ndarray,
    states: Sequence[np.ndarray],
    t: int,
    *,
    decoupled_wd: bool = False,
    corrects_decay: bool = False,
    maximize: bool = False,
    **hyperparameters: float,
) -> tuple[Rounded, ...]:
    """A whole step, with what happens to all gradients and weights first.

    Parameters
    ----------
    formula : function
        One of those above.
    weight, grad : ndarray
        As they are before the step.
    states : sequence of ndarray
        Likewise.
    t : int
        Which step this is, from 1.
    decoupled_wd, maximize : bool, default False
        As the optimizers take them.
    corrects_decay : bool, default False
        Whether decoupled decay goes by the rate with the bias correction, as it does in AdamW.
    **hyperparameters : float or bool
        `rescale_grad`, `clip_gradient`, `wd`, `lr`, and those of the rule.

    Returns
    -------
    tuple of Rounded
        The weight after the step, then the states.
    """
    w, g, *before = (Rounded(x, x.dtype) for x in (weight, grad, *states))
    given: dict[str, Any] = {
        name: x if isinstance(x, bool) else Rounded(x, "float64")
        for name, x in hyperparameters.items()
    }
    rescale_grad, bound, wd = (given.pop(x) for x in ("rescale_grad", "clip_gradient", "wd"))
    g = (-g if maximize else g) * rescale_grad
    decays, takes_wd = RULES[formula.__name__].decays, RULES[formula.__name__].takes_wd
    decays = RULES[formula.__name__].decays
    if RULES[formula.__name__].bounds_direction:
        given["bound"], bound = bound, Rounded(np.inf, "float64")
    if RULES[formula.__name__].adapts:
        given.update(raw=g, rate_wd=Rounded(0.0, "float64") if decoupled_wd else wd)
    if decays and decoupled_wd:
        g, given["wd"] = clip(g, bound), wd
    elif decoupled_wd:
        rate = given["lr"]
        if corrects_decay:
            rate = corrected(rate, t, given["beta1"], given["beta2"])
        g, w = clip(g, bound), (1 - rate * wd) * w
        if takes_wd:
            given["wd"] = Rounded(0.0, "float64")
    elif takes_wd:
        g, given["wd"] = clip(g, bound), wd
    elif formula is adabelief:
        g = clip(g + wd * w, bound)
    else:
        g = clip(g, bound) + wd * w
        if decays:
            given["wd"] = Rounded(0.0, "float64")
    return formula(g, w, *before, t=t, **given)
