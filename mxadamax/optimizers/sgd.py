# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient descent, with momentum or Nesterov's acceleration."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Sequence

from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer

from .arithmetic import BUILTIN, SERIES, Arithmetic, BySeries, built_in_class, by_storage
from .base import FusedOptimizer, Scalars, register
from .options import DECAY_RATE, Range

_WITHOUT_MOMENTUM = ("sgd", "sgd_mxnet1", "single_sgd_mxnet1")
"""The rules of plain SGD, for whose row_sparse gradients MXNet has operators of their own."""


class MomentumOptimizer(FusedOptimizer):
    """Base class of SGD, NAG, Signum, LARS and DCASGD: a momentum; no state without it.

    Parameters are those of the subclasses.
    """

    # With numerics="portable" and "builtin", by MXNet's series; with a momentum.
    portable: ClassVar[Arithmetic]
    builtin: ClassVar[BySeries]
    # Without a momentum.
    portable_without = Arithmetic("sgd")
    builtin_without: ClassVar[BySeries]
    # MXNet 1's, without a momentum, of one array at a time.
    builtin_of_one_array = Arithmetic(
        "single_sgd_mxnet1", by_operator=True, decay_in_rule="coupled", scale_in_rule=True
    )
    # Whether the built-in, which has no such option, leaves rows alone without a momentum.
    rows_are_lazy: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, Range]] = {"momentum": DECAY_RATE}

    def __init__(self, momentum: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.momentum = momentum
        DECAY_RATE.check(self.registered_name, "momentum", self.momentum)
        self._has_state = self.momentum != 0
        self.check_hyperparameters()

    def __setstate__(self, state: Dict[str, Any]) -> None:
        # What version 0.1 has in its place.
        rule = state.get("rule")
        super().__setstate__(state)
        if rule is not None:
            self._has_state = rule != "sgd"

    @property
    def arithmetic(self) -> Arithmetic:
        if self._has_state:
            return super().arithmetic
        if self.numerics == BUILTIN:
            return self.builtin_without[SERIES]
        return self.portable_without

    def check_hyperparameters(self) -> None:
        super().check_hyperparameters()
        if not self._has_state and self.momentum != 0:
            raise ValueError(
                f"{self.registered_name}: momentum must stay 0, as it was at the start "
                f"(there are no states for it), got {self.momentum!r}"
            )

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {"lr": list(lrs), "momentum": self.momentum}

    def arithmetics_of(
        self, weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> List[Arithmetic]:
        dense = self.arithmetic
        if not dense.by_operator or dense.rule not in _WITHOUT_MOMENTUM:
            return []
        in_mxnet1 = dense.rule == "sgd_mxnet1"
        rows = self.builtin_of_one_array if in_mxnet1 else dense
        if self.rows_are_lazy:
            rows = replace(rows, lazy_update=True)
        elif not self.lazy_update:
            rows = replace(
                rows, decay_in_rule="", decays_first=True, listed=(*rows.listed, "decay_factor")
            )
        return by_storage(grads, dense, rows)

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Optional[NDArray], s: SimpleNamespace
    ) -> None:
        if s.rule == "single_sgd_mxnet1":
            weight[:] = (1 - s.lr * s.weight_decay) * weight - s.lr * s.grad_scale * grad
        elif s.rule in ("sgd_mxnet1", "sgd_momentum_mxnet1"):
            kept = 0 if state is None else s.momentum * state
            change = kept - s.lr * s.weight_decay * weight - s.lr * s.grad_scale * grad
            if state is not None:
                state[:] = change
            weight += change
        elif state is None:
            weight -= s.lr * grad
        else:
            state[:] = s.momentum * state - s.lr * grad
            weight += state


@register("sgd_ext", "sgd")
class SGD(MomentumOptimizer):
    r"""Stochastic gradient descent, with or without momentum.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        change = momentum * change - lr * grad
        weight += change

    Weights and states equal those of the installed MXNet's built-in ``sgd`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula.

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

    portable = Arithmetic("sgd_momentum")
    builtin: ClassVar[BySeries] = {
        1: Arithmetic(
            "sgd_momentum_mxnet1",
            by_operator=True,
            listed=("lr", "weight_decay"),
            decay_in_rule="coupled",
            scale_in_rule=True,
        ),
        2: Arithmetic("sgd_momentum", by_operator=True),
    }
    builtin_without: ClassVar[BySeries] = {
        1: replace(builtin[1], rule="sgd_mxnet1"),
        2: Arithmetic("sgd", by_operator=True),
    }

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


if built_in_class("ccsgd") is not None:
    # MXNet 1's own second name of it.
    Optimizer.opt_registry["ccsgd_ext"] = SGD
