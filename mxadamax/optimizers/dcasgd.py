# SPDX-License-Identifier: Apache-2.0
"""Delay-compensated SGD."""

from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Sequence

from mxnet.ndarray import NDArray, square

from .arithmetic import Arithmetic, BySeries
from .base import Scalars, State, register
from .options import DECAY_RATE, NOT_NEGATIVE, Range
from .sgd import MomentumOptimizer
from .traits import Traits, TraitsBySeries


@register("dcasgd_ext", "dcasgd")
class DCASGD(MomentumOptimizer):
    r"""Delay-compensated SGD: the gradient is corrected by what the weight has become since.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        grad += lamda * grad**2 * (weight - previous)
        change = momentum * change - lr * grad
        previous = weight
        weight += change

    MXNet 1's built-in adds ``wd * weight`` last, so that the correction does not see it.

    Weights and states equal those of the installed MXNet's built-in ``dcasgd`` to the last bit.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.1
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    momentum : float, in [0, 1), default 0
        How much of the last change goes on. It can change from step to step, but not from 0. With
        MXNet 1, whose built-in fails with a momentum, it is computed as that is written.
    lamda : float, in [0, inf), default 0.04
        How much of the correction counts.
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel; same bits.
    **kwargs
        What every optimizer takes; see :class:`mxadamax.optimizers.base.FusedOptimizer`.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range.

    Notes
    -----
    State for each weight: a tuple ``(change, previous)`` of two arrays of its shape and dtype, the
    built-in's; ``(None, previous)`` without momentum. `previous` begins as a copy of the weight.

    Here the weight has changed since the last update of the same optimizer, not since a worker took
    it to compute the gradient: the correction counts where other workers update the same weight.

    Source: S. Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*,
    arXiv 1609.08326, algorithm 2.

    Examples
    --------
    >>> weight, grad = mx.nd.zeros((1,)), mx.nd.array([-1.0])
    >>> update = mx.optimizer.get_updater(mxadamax.DCASGD(learning_rate=1.0, lamda=0.5))
    >>> for _ in range(2):
    ...     update(0, grad, weight)
    ...     print(weight.asscalar())
    1.0
    1.5
    """

    portable = Arithmetic("dcasgd_momentum")
    portable_without = Arithmetic("dcasgd")
    builtin: ClassVar[BySeries] = {
        1: Arithmetic("dcasgd_momentum_mxnet1", decay_in_rule="coupled"),
        2: portable,
    }
    builtin_without: ClassVar[BySeries] = {
        1: Arithmetic("dcasgd_mxnet1", decay_in_rule="coupled"),
        2: portable_without,
    }
    traits: ClassVar[TraitsBySeries] = {2: Traits(writes_gradients=True)}
    ranges: ClassVar[Mapping[str, Range]] = {"momentum": DECAY_RATE, "lamda": NOT_NEGATIVE}

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.0,
        lamda: float = 0.04,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        # The base ends with a check of it.
        self.lamda = lamda
        super().__init__(
            momentum=momentum,
            learning_rate=learning_rate,
            use_fused_step=use_fused_step,
            **kwargs,
        )

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {**super().scalars(lrs, updates), "lamda": self.lamda}

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: State, s: SimpleNamespace
    ) -> None:
        change, previous = state if isinstance(state, tuple) else (None, state)
        if s.rule.endswith("_mxnet1"):
            correction = s.lamda * grad * grad * (weight - previous)
            step = -s.lr * (grad + s.weight_decay * weight + correction)
        else:
            corrected = square(grad) * (weight - previous) * s.lamda + grad
            step = s.lr * corrected * -1
        previous[:] = weight
        if change is not None:
            change[:] = s.momentum * change + step
            step = change
        weight += step
