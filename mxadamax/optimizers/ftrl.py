# SPDX-License-Identifier: Apache-2.0
"""FTRL-Proximal."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, List, Mapping, Sequence, Tuple

from mxnet.ndarray import NDArray, abs, maximum, sign, sqrt, square

from .arithmetic import BUILTIN, SERIES, Arithmetic, BySeries, by_storage
from .base import FusedOptimizer, Scalars, register
from .options import NOT_NEGATIVE, Range
from .scalars import check_divisors


@register("ftrl_ext", "ftrl")
class Ftrl(FusedOptimizer):
    r"""FTRL-Proximal: weights are made from sums over all gradients, and many are exactly zero.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        z += grad - (sqrt(n + grad**2) - sqrt(n)) / lr * weight
        n += grad**2
        weight = -sign(z) * maximum(abs(z) - lamda1, 0) / ((beta + sqrt(n)) / lr + wd)

    Weights and states equal those of the installed MXNet's built-in ``ftrl`` to the last bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's. Unlike the built-in, whose states are
    always float32, it takes float64 weights.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.1
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one. A
        step divides by it: 0 makes NaN, as in the built-in, or is refused with
        ``numerics='portable'``.
    lamda1 : float, in [0, inf), default 0.01
        L1 penalty: a weight is zero while ``abs(z)`` is not larger.
    beta : float, in [0, inf), default 1
        Added to the root of `n`, so that the first steps are not too large.
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel; same bits.
    **kwargs
        What every optimizer takes; see :class:`mxadamax.optimizers.base.FusedOptimizer`. `wd` is
        the paper's L2 penalty, and no part of the gradient.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range.

    Notes
    -----
    State for each weight: a tuple ``(z, n)`` of two arrays of its shape and dtype, the built-in's.
    The weight is made from them, whatever it was at first, so that they take no `state_dtype`.

    As in the built-in, a row_sparse gradient of a row_sparse weight updates the rows that it holds,
    and no others, unless ``numerics='portable'``.

    Source: H. B. McMahan et al., *Ad Click Prediction: a View from the Trenches*, KDD 2013,
    algorithm 1.

    Examples
    --------
    >>> weight, grad = mx.nd.zeros((3,)), mx.nd.array([1.0, 0.005, -1.0])
    >>> update = mx.optimizer.get_updater(mxadamax.Ftrl(learning_rate=1.0, lamda1=0.5))
    >>> update(0, grad, weight)
    >>> (weight.asnumpy() != 0).tolist()
    [True, False, True]
    """

    portable = Arithmetic("ftrl", decay_in_rule="coupled")
    builtin: ClassVar[BySeries] = {
        1: replace(portable, rule="ftrl_mxnet1", by_operator=True),
        2: replace(portable, rule="ftrl_mxnet2", by_operator=True),
    }
    ranges: ClassVar[Mapping[str, Range]] = {"lamda1": NOT_NEGATIVE, "beta": NOT_NEGATIVE}

    def __init__(
        self,
        learning_rate: Any = 0.1,
        lamda1: float = 0.01,
        beta: float = 1.0,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        if self.numerics == BUILTIN and SERIES == 1 and kwargs.get("lr_scheduler") is not None:
            # MXNet 1's leaves the scheduler its own.
            learning_rate = None
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.lamda1 = lamda1
        self.beta = beta
        self.check_hyperparameters()

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        if not self.arithmetic.by_operator:
            check_divisors(self.registered_name, lrs)
        return {"lr": list(lrs), "lamda1": self.lamda1, "beta": self.beta}

    def arithmetics_of(
        self, weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> List[Arithmetic]:
        dense = self.arithmetic
        if not dense.by_operator:
            return []
        return by_storage(weights, dense, replace(dense, lazy_update=True))

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, NDArray], s: SimpleNamespace
    ) -> None:
        z, n = state
        root_before = sqrt(n)
        n += square(grad)
        root = sqrt(n)
        if s.rule == "ftrl":
            z += grad - (root - root_before) / s.lr * weight
        else:
            z += grad - (root - root_before) * weight / s.lr
        divisor = (root + s.beta) / s.lr + s.weight_decay
        if s.rule == "ftrl_mxnet1":
            weight[:] = (sign(z) * s.lamda1 - z) / divisor * (abs(z) > s.lamda1)
        else:
            weight[:] = -(sign(z) * maximum(abs(z) - s.lamda1, 0)) / divisor
