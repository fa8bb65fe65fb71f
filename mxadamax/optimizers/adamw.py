# SPDX-License-Identifier: Apache-2.0
"""AdamW."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, List, Sequence, Tuple

from mxnet.ndarray import NDArray, sqrt

from .adam import Adam
from .arithmetic import Arithmetic, BySeries, by_storage
from .base import register


@register("adamw_ext", "adamw")
class AdamW(Adam):
    r"""AdamW as in MXNet: Adam with decoupled weight decay.

    For each weight, with `t` counting its updates from 1::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        lr = lr * sqrt(1 - beta2**t) / (1 - beta1**t)        # unless correct_bias=False
        weight -= lr * (m / (sqrt(v) + epsilon) + wd * weight)

    Weights and states equal those of MXNet 2's built-in ``adamw`` bit for bit, which uses a fused
    operator by default. Its `step` multiplies `wd` by the weight that it has just updated; without
    weight decay it equals this class with ``numerics='portable'``.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.001
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    beta1 : float, in [0, 1), default 0.9
        Decay rate of the first moment `m`.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of the second moment `v`.
    epsilon : float, in [0, inf), default 1e-6
        Added to the denominator.
    correct_bias : bool, default True
        False skips the bias correction.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    **kwargs
        What every optimizer takes, and `amsgrad`; see
        :class:`mxadamax.optimizers.base.FusedOptimizer` and :class:`Adam`.

    Raises
    ------
    TypeError
        If an argument does not exist.
    ValueError
        If a hyperparameter is out of its range, or `decoupled_wd` is False.

    Notes
    -----
    State for each weight: a tuple ``(m, v)`` of two arrays of its shape and dtype, the built-in's.

    Weight decay is multiplied by the learning rate *with* bias correction. In the paper, in PyTorch
    and in ``Adam(decoupled_wd=True)`` it is multiplied by the one without, so decay is the same
    from the first step on.

    Source: I. Loshchilov, F. Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101,
    algorithm 2.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "adamw_ext", {"wd": 0.01})
    >>> trainer.optimizer.wd
    0.01
    """

    builtin: ClassVar[BySeries] = {
        2: Arithmetic(
            "adamw_mxnet2",
            by_operator=True,
            listed=("lr", "weight_decay"),
            decay_in_rule="decoupled",
        )
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        correct_bias: bool = True,
        use_fused_step: bool = True,
        decoupled_wd: bool = True,
        **kwargs: Any,
    ):
        if not decoupled_wd:
            raise ValueError(
                f"{self.registered_name}: decoupled_wd must be True, got {decoupled_wd!r}; "
                "use adam_ext instead"
            )
        super().__init__(
            learning_rate,
            beta1,
            beta2,
            epsilon,
            correct_bias=correct_bias,
            use_fused_step=use_fused_step,
            decoupled_wd=True,
            **kwargs,
        )

    def _decay_rates(self, lrs: Sequence[float], updates: Sequence[int]) -> List[float]:
        return self._corrected(lrs, updates)

    def arithmetics_of(
        self, weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> List[Arithmetic]:
        dense = self.arithmetic
        if dense.rule != "adamw_mxnet2":
            return []
        rows = replace(dense, rule="adamw_rows_mxnet2", listed=())
        return by_storage(grads, dense, rows)

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, ...], s: SimpleNamespace
    ) -> None:
        if s.rule not in ("adamw_mxnet2", "adamw_rows_mxnet2"):
            super().reference_step(weight, grad, state, s)
            return
        m, v = state
        square = grad * grad
        if s.rule == "adamw_rows_mxnet2":
            m[:] = s.beta1 * m + (1 - s.beta1) * grad
            v[:] = s.beta2 * v + (1 - s.beta2) * square
        else:
            m[:] = s.beta1 * (m - grad) + grad
            v[:] = s.beta2 * (v - square) + square
        weight -= s.lr * (m / (sqrt(v) + s.epsilon) + s.weight_decay * weight)
