# SPDX-License-Identifier: Apache-2.0
"""Nesterov's accelerated gradient."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, List, Optional, Sequence

import numpy
from mxnet.ndarray import NDArray

from .arithmetic import Arithmetic, BySeries, by_storage
from .base import register
from .sgd import MomentumOptimizer


@register("nag_ext", "nag")
class NAG(MomentumOptimizer):
    r"""Nesterov's accelerated gradient: momentum that looks one step ahead.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        change = momentum * change - lr * grad
        weight += momentum * change - lr * grad

    Weights and states equal those of the installed MXNet's built-in ``nag`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.1
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    momentum : float, in [0, 1), default 0.9
        Fraction of the last change that is kept. It can change between steps, but not from 0.
    multi_precision : bool, default False
        Keep and update a float32 master of each 16-bit weight.
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
    State for each weight: one array ``change`` of its shape and dtype, the built-in's; None without
    momentum.

    Source: Y. Nesterov, *A method for solving the convex programming problem with convergence rate
    O(1/k^2)*, 1983, in the form of I. Sutskever et al., *On the importance of initialization and
    momentum in deep learning*, ICML 2013, section 2.

    Examples
    --------
    >>> weight, grad = mx.nd.zeros((1,)), mx.nd.array([-1.0])
    >>> update = mx.optimizer.get_updater(mxadamax.NAG(learning_rate=1.0, momentum=0.5))
    >>> for _ in range(3):
    ...     update(0, grad, weight)
    ...     print(weight.asscalar())
    1.5
    3.25
    5.125
    """

    rows_are_lazy = True
    portable = Arithmetic("nag")
    builtin: ClassVar[BySeries] = {
        1: Arithmetic("nag_mxnet1", by_operator=True, decay_in_rule="coupled"),
        2: Arithmetic("nag_mxnet2", by_operator=True),
    }
    builtin_without: ClassVar[BySeries] = {
        1: MomentumOptimizer.builtin_of_one_array,
        2: Arithmetic("sgd", by_operator=True),
    }

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        multi_precision: bool = False,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            momentum=momentum,
            learning_rate=learning_rate,
            multi_precision=multi_precision,
            use_fused_step=use_fused_step,
            **kwargs,
        )

    def arithmetics_of(
        self, weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> List[Arithmetic]:
        dense = self.arithmetic
        if dense.rule == "nag_mxnet1":
            return by_storage(weights, dense, replace(dense, rule="nag_rows_mxnet1"))
        if dense.rule == "nag_mxnet2" and self.multi_precision:
            master = replace(dense, rule="nag")
            return [master if weight.dtype == numpy.float16 else dense for weight in weights]
        return super().arithmetics_of(weights, grads)

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Optional[NDArray], s: SimpleNamespace
    ) -> None:
        if state is None:
            super().reference_step(weight, grad, state, s)
        elif s.rule in ("nag_mxnet1", "nag_rows_mxnet1"):
            kept = s.momentum * state
            change = kept - s.lr * (grad + s.weight_decay * weight)
            weight[:] = weight - kept + (s.momentum + 1) * change
            if s.rule == "nag_mxnet1":
                # Of the new weight, as in MXNet.
                change = kept - s.lr * (grad + s.weight_decay * weight)
            state[:] = change
        elif s.rule == "nag_mxnet2":
            state[:] = s.momentum * state - s.lr * grad
            weight[:] = weight + s.momentum * state - s.lr * grad
        else:
            state[:] = s.momentum * state - s.lr * grad
            weight += s.momentum * state - s.lr * grad
