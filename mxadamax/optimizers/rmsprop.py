# SPDX-License-Identifier: Apache-2.0
"""RMSProp."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Optional, Sequence

from mxnet.ndarray import NDArray, sqrt, square

from .._mxnet.compatibility import IS_MXNET_1
from .arithmetic import BUILTIN, Arithmetic, BySeries
from .base import FusedOptimizer, Scalars, State, register
from .options import (
    DECAY_RATE,
    FLOAT32,
    NOT_NEGATIVE,
    Range,
    bound_or_infinity,
    check_flag,
)
from .reference_step import clipped


@register("rmsprop_ext", "rmsprop")
class RMSProp(FusedOptimizer):
    r"""RMSProp, plain or centered.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        v = rho * v + (1 - rho) * grad**2

        weight -= lr * grad / (sqrt(v) + epsilon)                               # plain

        m = rho * m + (1 - rho) * grad                                          # centered
        change = momentum * change - lr * grad / sqrt(v - m**2 + epsilon)
        weight += change

        weight = clip(weight, -clip_weights, clip_weights)

    Weights and states equal those of the installed MXNet's built-in ``rmsprop`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula.
    It accepts float64 weights; the built-in's states are always float32.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.001
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    rho : float, in [0, 1), default 0.9
        Decay rate of the moments.
    momentum : float, in [0, 1), default 0.9
        Fraction of the last change that is kept; only with ``centered=True``.
    epsilon : float, in [0, inf), default 1e-8
        Added to the denominator; with ``centered=True`` under the root.
    centered : bool, default False
        Divide by the deviation of the gradient instead of its magnitude.
    clip_weights : float, in (0, inf], or None, default None
        Bound of the weights. 0 raises an error; the built-in treats it as None.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    **kwargs
        Options of every optimizer; see :class:`mxadamax.optimizers.base.FusedOptimizer`.

    Raises
    ------
    TypeError
        If an argument does not exist.
    ValueError
        If a hyperparameter is out of its range.

    Notes
    -----
    State for each weight: one array ``v`` of its shape and dtype; with ``centered=True`` a tuple
    ``(m, v, change)``. Both are the built-in's.

    With ``centered=True`` and an `epsilon` far below the squared gradients, rounding can make
    ``v - m**2 + epsilon`` negative if gradients hardly vary. The weight then becomes NaN, as in the
    built-in. A larger `epsilon` avoids this.

    Sources: T. Tieleman, G. Hinton, *Neural Networks for Machine Learning*, lecture 6.5, 2012;
    A. Graves, *Generating Sequences With Recurrent Neural Networks*, arXiv 1308.0850, equations 38
    to 45.

    Examples
    --------
    Plain RMSProp keeps one array per weight, centered RMSProp three:

    >>> weight = mx.nd.ones((3, 4))
    >>> mxadamax.RMSProp().create_state(0, weight).shape
    (3, 4)
    >>> len(mxadamax.RMSProp(centered=True).create_state(0, weight))
    3
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "rho": DECAY_RATE,
        "momentum": DECAY_RATE,
        "epsilon": NOT_NEGATIVE,
        "clip_weights": Range(
            *(0.0, math.inf),
            includes_low=False,
            includes_high=True,
            optional=True,
            magnitudes=FLOAT32,
        ),
    }

    portable = Arithmetic("rmsprop")
    builtin: ClassVar[BySeries] = {
        1: Arithmetic("rmsprop_mxnet1", by_operator=True, clip_after_wd=True),
        2: Arithmetic("rmsprop_mxnet2", by_operator=True),
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 1e-8,
        centered: bool = False,
        clip_weights: Optional[float] = None,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon
        self.clip_weights = clip_weights
        check_flag(self.registered_name, "centered", centered)
        self.centered = centered
        self.check_hyperparameters()

    @property
    def arithmetic(self) -> Arithmetic:
        plain = super().arithmetic
        if not self.centered:
            return plain
        return replace(plain, rule=plain.rule.replace("rmsprop", "rmsprop_centered"))

    def from_built_in_state(self, state: State) -> State:
        if not IS_MXNET_1:
            return state
        if not self.centered:
            return _unpacked(state)
        return state if self.numerics == BUILTIN else _swapped(state)

    def to_built_in_state(self, state: State) -> State:
        if not IS_MXNET_1:
            return state
        if not self.centered:
            return _packed(state)
        return state if self.numerics == BUILTIN else _swapped(state)

    def other_numerics_state(self, state: State) -> State:
        return _swapped(state) if IS_MXNET_1 and self.centered else state

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {
            "lr": list(lrs),
            "rho": self.rho,
            "one_minus_rho": 1.0 - self.rho,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "clip_weights": bound_or_infinity(self.clip_weights),
        }

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: State, s: SimpleNamespace
    ) -> None:
        if "_mxnet" in s.rule:
            self._step_of_operator(weight, grad, state, s)
        elif self.centered:
            m, v, change = state
            m[:] = s.rho * m + s.one_minus_rho * grad
            v[:] = s.rho * v + s.one_minus_rho * square(grad)
            change[:] = s.momentum * change - s.lr * grad / sqrt(v - square(m) + s.epsilon)
            weight += change
        else:
            v = state
            v[:] = s.rho * v + s.one_minus_rho * square(grad)
            weight -= s.lr * (grad / (sqrt(v) + s.epsilon))
        if self.clip_weights is not None:
            weight[:] = clipped(weight, s.clip_weights)

    def _step_of_operator(
        self, weight: NDArray, grad: NDArray, state: State, s: SimpleNamespace
    ) -> None:
        in_mxnet1 = s.rule.endswith("_mxnet1")
        unseen = 1 - s.rho
        if self.centered:
            m, v, change = (state[1], state[0], state[2]) if in_mxnet1 else state
            v[:] = (unseen * grad * grad if in_mxnet1 else unseen * square(grad)) + s.rho * v
            m[:] = unseen * grad + s.rho * m
            change[:] = s.momentum * change - s.lr * grad / sqrt(v - square(m) + s.epsilon)
            weight += change
            return
        v = state
        v[:] = unseen * square(grad) + s.rho * v
        if in_mxnet1:
            weight -= s.lr * (grad / sqrt(v + s.epsilon))
        else:
            weight -= s.lr * grad / (sqrt(v) + s.epsilon)


def _packed(state: State) -> State:
    """The array of a plain RMSProp as a tuple, in which MXNet 1 has it, beside a master weight."""
    return (state[0], (state[1],)) if isinstance(state, (tuple, list)) else (state,)


def _unpacked(state: State) -> State:
    return (state[0], state[1][0]) if len(state) == 2 else state[0]


def _swapped(state: State) -> State:
    """MXNet 1 has the second moment of a centered RMSProp first, the portable one the first."""
    if len(state) == 3 and all(isinstance(part, NDArray) for part in state):
        v, m, change = state
        return m, v, change
    return tuple(_swapped(part) if isinstance(part, (tuple, list)) else part for part in state)
