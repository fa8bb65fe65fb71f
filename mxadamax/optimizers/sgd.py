# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient descent, with momentum or Nesterov's acceleration."""

from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Optional, Sequence

from mxnet.ndarray import NDArray

from .base import FusedOptimizer, Scalars, register
from .options import DECAY_RATE, Range


class MomentumOptimizer(FusedOptimizer):
    """Base class of SGD and NAG: a momentum; no state without it.

    Parameters are those of the subclasses.
    """

    rule_with_momentum: ClassVar[str]
    ranges: ClassVar[Mapping[str, Range]] = {"momentum": DECAY_RATE}

    def __init__(self, momentum: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.momentum = momentum
        DECAY_RATE.check(self.registered_name, "momentum", self.momentum)
        self.rule = "sgd" if self.momentum == 0 else self.rule_with_momentum
        self.check_hyperparameters()

    def check_hyperparameters(self) -> None:
        super().check_hyperparameters()
        if self.rule == "sgd" and self.momentum != 0:
            raise ValueError(
                f"{self.registered_name}: momentum must stay 0, as it was at the start "
                f"(there are no states for it), got {self.momentum!r}"
            )

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        scalars: Scalars = {"lr": list(lrs)}
        if self.rule != "sgd":
            scalars["momentum"] = self.momentum
        return scalars


@register("sgd_ext")
class SGD(MomentumOptimizer):
    r"""Stochastic gradient descent, with or without momentum.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        change = momentum * change - lr * grad
        weight += change

    Weights and states equal those of the `step` of MXNet 2's built-in ``sgd`` bit for bit.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.1
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    momentum : float, in [0, 1), default 0
        Fraction of the last change that is kept. It can change between steps, but not from 0.
    lazy_update : bool, default False
        See :class:`mxadamax.optimizers.base.FusedOptimizer`.
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

    Source: B. T. Polyak, *Some methods of speeding up the convergence of iteration methods*, 1964,
    with the learning rate inside the change, as in I. Sutskever et al., *On the importance of
    initialization and momentum in deep learning*, ICML 2013.

    Examples
    --------
    >>> weight, grad = mx.nd.zeros((1,)), mx.nd.array([-1.0])
    >>> update = mx.optimizer.get_updater(mxadamax.SGD(learning_rate=1.0, momentum=0.5))
    >>> for _ in range(3):
    ...     update(0, grad, weight)
    ...     print(weight.asscalar())
    1.0
    2.5
    4.25
    """

    rule_with_momentum = "sgd_momentum"

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.0,
        lazy_update: bool = False,
        multi_precision: bool = False,
        use_fused_step: bool = True,
        aggregate_num: Any = None,
        **kwargs: Any,
    ):
        super().__init__(
            momentum=momentum,
            learning_rate=learning_rate,
            lazy_update=lazy_update,
            multi_precision=multi_precision,
            use_fused_step=use_fused_step,
            aggregate_num=aggregate_num,
            **kwargs,
        )

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Optional[NDArray], s: SimpleNamespace
    ) -> None:
        if state is None:
            weight -= s.lr * grad
        else:
            state[:] = s.momentum * state - s.lr * grad
            weight += state
