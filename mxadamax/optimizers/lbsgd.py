# SPDX-License-Identifier: Apache-2.0
"""SGD for large batches."""

import math
from dataclasses import replace
from typing import Any, Callable, ClassVar, Dict, List, Mapping, Sequence, Tuple

from mxnet.ndarray import NDArray, cast, multiply, sgd_update

from .arguments import as_lists
from .arithmetic import BySeries
from .base import register
from .options import NOT_NEGATIVE, Range
from .sgd import SGD, MomentumOptimizer
from .state_layout import State, is_half
from .step_tracker import Index
from .traits import Traits, TraitsBySeries


@register("lbsgd_ext", "lbsgd")
class LBSGD(SGD):
    r"""SGD that adds up the gradients of several calls, and warms up: MXNet 1's ``lbsgd``.

    Each `batch_scale`-th call for a weight updates it::

        grad = (grad_1 + ... + grad_n) / batch_scale          # of the calls since the last update
        lr = lr * mult
        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        change = momentum * change - lr * grad
        weight += change

    where, with `k` counting the calls and ``n = warmup_epochs * updates_per_epoch``, `mult` is

    ========== ================================================================
    strategy   until ``k >= n``, after which it is `batch_scale`
    ========== ================================================================
    linear     ``1 + (batch_scale - 1) * k / n``
    power2     ``1 + (batch_scale - 1) * k**2 / n**2``
    sqrt       ``1 + (batch_scale - 1) * sqrt(k / n)``
    any other  1
    ========== ================================================================

    and with ``lars``, in every update, ``|weight| / sqrt(|grad|**2 + wd * |weight|**2)``, at least
    0.01 and at most 100.

    Weights and states equal those of MXNet 1's built-in to the last bit. With MXNet 1 only.

    Parameters
    ----------
    momentum : float, in [0, 1), default 0
        How much of the last change goes on. It can change from step to step, but not from 0.
    multi_precision : bool, default False
        Keep a float32 copy of weights that are float16, and update that.
    warmup_strategy : str, default 'linear'
        See above.
    warmup_epochs : float, in [0, inf), default 5
        How long the learning rate grows.
    batch_scale : float, in (0, inf), default 1
        How many calls make an update, and what the learning rate grows to.
    updates_per_epoch : float, in [0, inf), default 32
        What `warmup_epochs` is multiplied by.
    begin_epoch : int >= 0, default 0
        The epoch in which training begins, for `k`.
    num_epochs : int, default 60
        Not used, as in the built-in.
    learning_rate : float, in [0, inf), or None, default None
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    lazy_update : bool, default True
        See :class:`mxadamax.optimizers.base.FusedOptimizer`. False without `use_fused_step`.
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel; same bits.
    **kwargs
        What every optimizer takes; see :class:`mxadamax.optimizers.base.FusedOptimizer`.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range, and for options that need the whole model in one
        call: `clip_global_norm` and `skip_nonfinite`.

    Notes
    -----
    State for each weight: one array ``change`` of its shape and dtype, the built-in's; None without
    momentum. The sums of gradients are in the optimizer, as `cumgrads`.

    The built-in takes the very first gradient of a weight as it will be when the second comes, not
    as it was: where both are in the same array, which Gluon's are, the second counts twice and the
    first not at all. So does this. Its learning rate is that of the scheduler before the call
    counts.

    Only the updates themselves are native. With ``lars``, each waits for its norms.

    Source: P. Goyal et al., *Accurate, Large Minibatch SGD*, arXiv 1706.02677, and Y. You et al.,
    *Large Batch Training of Convolutional Networks*, arXiv 1708.03888, for ``lars``.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "lbsgd_ext", {"batch_scale": 4})
    >>> trainer.optimizer.batch_scale
    4
    """

    rows_are_lazy = True
    # Of one array at a time, whose scalars are not in lists.
    builtin: ClassVar[BySeries] = {1: replace(SGD.builtin[1], listed=())}
    builtin_without: ClassVar[BySeries] = {1: MomentumOptimizer.builtin_of_one_array}
    portable = builtin[1]
    portable_without = builtin_without[1]
    traits: ClassVar[TraitsBySeries] = {
        1: Traits(left_to_mxnet="gradients are added up by operators, which take most of the time")
    }
    ranges: ClassVar[Mapping[str, Range]] = {
        **SGD.ranges,
        "warmup_epochs": NOT_NEGATIVE,
        "batch_scale": NOT_NEGATIVE._replace(includes_low=False),
        "updates_per_epoch": NOT_NEGATIVE,
    }

    def __init__(
        self,
        momentum: float = 0.0,
        multi_precision: bool = False,
        warmup_strategy: str = "linear",
        warmup_epochs: float = 5,
        batch_scale: int = 1,
        updates_per_epoch: float = 32,
        begin_epoch: int = 0,
        num_epochs: int = 60,
        learning_rate: Any = None,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        # The base ends with a check of them.
        self.warmup_epochs = warmup_epochs
        self.batch_scale = batch_scale
        self.updates_per_epoch = updates_per_epoch
        kwargs.setdefault("lazy_update", use_fused_step)
        super().__init__(
            momentum=momentum,
            multi_precision=multi_precision,
            learning_rate=learning_rate,
            use_fused_step=use_fused_step,
            **kwargs,
        )
        if self._whole_model_option:
            raise ValueError(
                f"{self.registered_name}: {self._whole_model_option} must be left alone: gradients "
                "are added up parameter by parameter"
            )
        self.warmup_strategy = warmup_strategy
        self.begin_epoch = begin_epoch
        self.init_updates = begin_epoch * updates_per_epoch
        self.num_epochs = num_epochs
        self.cumgrads: Dict[Index, Dict[str, Any]] = {}

    def step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        self._update_those_due(super().step, indices, weights, grads, states)

    def fused_step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        self._update_those_due(super().fused_step, indices, weights, grads, states)

    def _update_those_due(self, update: Callable[..., None], *given: Any) -> None:
        """Add up all gradients, and update the weights for which there are enough."""
        self.check_hyperparameters()
        rollback, sums_before = self._progress(), dict(self.cumgrads)
        due, rates, others, masters = [], [], [], []
        try:
            for index, weight, grad, state in zip(*as_lists(self.registered_name, *given)):
                # Gradients of a master weight are added up in its type.
                target, grad, state = self._computed(weight, grad, state)
                if target is not weight:
                    masters.append((target, weight))
                # In the order of the built-in.
                lr, wd = self._get_lr(index), self._get_wd(index)
                self._update_count(index)
                count, total = self._add_up(index, grad)
                if count % self.batch_scale != 0:
                    others.append((target, grad, wd))
                    continue
                mean = total / self.batch_scale
                self.cumgrads[index]["cum_grad"] = 0
                if self.warmup_strategy == "lars":
                    lr *= _trust_ratio(target, mean, wd)
                else:
                    lr *= self._warmup_factor(count)
                if math.isnan(lr):
                    # All becomes NaN, as in the built-in. Kernels take finite numbers.
                    lr, mean = 0.0, mean * math.nan
                rates.append((lr, wd))
                due.append((index, target, mean, state))
            self._rates = rates
            if due:
                update(*zip(*due))
            for target, grad, wd in others:
                # Makes NaN of what is not finite, as in the built-in.
                sgd_update(target, grad, out=target, lr=0.0, wd=wd)
            for master, weight in masters:
                cast(master, dtype=weight.dtype, out=weight)
        except BaseException:
            rollback()
            self.cumgrads = sums_before
            raise
        finally:
            self.__dict__.pop("_rates", None)

    def _computed(
        self, weight: NDArray, grad: NDArray, state: State
    ) -> Tuple[NDArray, NDArray, State]:
        """Return what is updated: a weight as it is, or its master weight as one of float32."""
        if not (isinstance(weight, NDArray) and self.multi_precision and is_half(weight.dtype)):
            return weight, grad, state
        master, own = state
        return master, grad.astype(master.dtype), own

    def _count_update(self, indices: Sequence[Index]) -> Tuple[List[float], List[float]]:
        """What they are updated with; they have been counted."""
        lrs, wds = zip(*self._rates)
        return list(lrs), list(wds)

    def _forms_groups(self) -> bool:
        # Each parameter's rate follows from its gradients.
        return False

    def _add_up(self, index: Index, grad: NDArray) -> Tuple[int, NDArray]:
        """The number of calls for a parameter, and the sum of gradients with this one."""
        known = self.cumgrads.get(index)
        if known and known["num_cums"] > 0:
            count, total = known["num_cums"] + 1, known["cum_grad"] + grad
        else:
            # The array itself: see the notes.
            count, total = self.init_updates + 1, grad
        self.cumgrads[index] = {"cum_grad": total, "num_cums": count}
        return count, total

    def _warmup_factor(self, count: float) -> float:
        """What the learning rate is multiplied by in a call."""
        length, largest = self.warmup_epochs * self.updates_per_epoch, float(self.batch_scale)
        if count >= length:
            return largest
        if length <= 1:
            return 1.0
        if self.warmup_strategy == "linear":
            return 1.0 + (largest - 1) * count / length
        if self.warmup_strategy == "power2":
            return 1.0 + (largest - 1) * (count * count) / (length * length)
        if self.warmup_strategy == "sqrt":
            return 1.0 + (largest - 1) * math.sqrt(float(count) / length)
        return 1.0


def _trust_ratio(weight: NDArray, grad: NDArray, wd: float) -> float:
    """What ``lars`` multiplies the learning rate by."""
    squares, grad_squares = (multiply(x, x).asnumpy().sum() for x in (weight, grad))
    return min(max(math.sqrt(squares / (grad_squares + wd * squares + 1e-18)), 0.01), 100)
