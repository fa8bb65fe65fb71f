# SPDX-License-Identifier: Apache-2.0
"""LARS."""

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy
from mxnet.ndarray import NDArray, array

from .. import _native
from .arithmetic import BUILTIN, SERIES, Arithmetic, BySeries
from .base import FusedOptimizer, Scalars, register
from .norms import sum_of_squares
from .options import NOT_NEGATIVE, Range, check_flag
from .sgd import MomentumOptimizer
from .step_tracker import Index
from .traits import Traits, TraitsBySeries

_WITHOUT_RATIO = ("gamma", "beta", "bias")
"""How the names of parameters end whose learning rate is not adapted."""


def _by_lists(series: int) -> Arithmetic:
    """The arithmetic of MXNet's operators for several parameters at once."""
    return Arithmetic(
        f"lars_momentum_mxnet{series}",
        by_operator=True,
        listed=("lr", "weight_decay"),
        decay_in_rule="coupled",
        scale_in_rule=True,
    )


def _without_momentum(arithmetic: Arithmetic) -> Arithmetic:
    return replace(arithmetic, rule=arithmetic.rule.replace("_momentum", ""))


@register("lars_ext", "lars", {"momentum_correction": False})
class LARS(MomentumOptimizer):
    r"""LARS: stochastic gradient descent whose steps are in proportion to the norm of the weight.

    For each weight::

        rate = lr * eta * |weight| / (|grad * rescale_grad| + wd * |weight| + epsilon)
        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        change = momentum * change - rate * grad
        weight += change

    The rate is `lr` where either norm is 0, and for parameters whose names end in gamma, beta or
    bias. Names are those of `param_idx2name`, which a trainer of Gluon does not give.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.1
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    momentum : float, in [0, 1), default 0
        How much of the last change goes on. It can change from step to step, but not from 0.
    eta : float, in [0, inf), default 0.001
        How long a step is, relative to the weight, at a learning rate of 1.
    epsilon : float, in [0, inf), default 1e-8
        Added to the denominator.
    momentum_correction : bool, default False
        When the learning rate changes, multiply `momentum` by its ratio to the last one, for one
        step, as MXNet 1 does: there for the parameters of its first call in that step, which are as
        many as the environment variable ``MXNET_OPTIMIZER_AGGREGATION_SIZE`` says, by default 4.
        All of them with ``numerics="portable"``.
    lazy_update : bool, default False
        See :class:`mxadamax.optimizers.base.FusedOptimizer`.
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel.
    aggregate_num : int >= 0 or numpy.inf, optional
        See :class:`mxadamax.optimizers.base.FusedOptimizer`. More than 1 also selects what MXNet 2
        computes then.
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
    State for each weight: one array ``change`` of its shape and dtype, the built-in's; None without
    momentum.

    In MXNet 1, and in MXNet 2 with an `aggregate_num` above 1, norms come from sums in single
    precision that add one element after another. MXNet 2 by default takes norms with another
    operator, which adds scaled squares in as many parts as there are threads. So does this, and
    weights equal those of the built-in to the last bit, with as many threads. On a GPU, and with
    ``numerics="portable"``, sums are in double precision, and rates differ by what the built-in
    rounds wrongly: about 1e-5 of them for 100,000 elements, and 1e-3 for two millions.

    A step reads everything twice: first for the norms, with nothing written, then to update. The
    norm of a float16 weight that has a float32 master is its own; with ``numerics="portable"``, the
    master's. With `lazy_update`, norms are over the rows that the gradient holds.

    Source: Y. You, I. Gitman, B. Ginsburg, *Large Batch Training of Convolutional Networks*,
    arXiv 1708.03888, algorithm 1.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "lars_ext", {"momentum": 0.9})
    >>> trainer.optimizer.eta
    0.001
    """

    # With a momentum.
    portable = Arithmetic("lars_momentum")
    builtin: ClassVar[BySeries] = {
        1: _by_lists(1),
        2: Arithmetic(
            "lars_momentum_alone_mxnet2",
            by_operator=True,
            listed=("eta", "epsilon"),
            exact=("lr",),
            zero_is_a_bound=True,
        ),
    }
    portable_without = _without_momentum(portable)
    builtin_without: ClassVar[BySeries] = {
        series: _without_momentum(found) for series, found in builtin.items()
    }
    builtin_by_lists = replace(_by_lists(2), zero_is_a_bound=True)
    # A row_sparse array changes how MXNet updates all of a call.
    traits: ClassVar[TraitsBySeries] = {
        1: Traits(all_or_none=True, counts_calls=True),
        2: Traits(all_or_none=True),
    }
    ranges: ClassVar[Mapping[str, Range]] = {
        **MomentumOptimizer.ranges,
        "eta": NOT_NEGATIVE,
        "epsilon": NOT_NEGATIVE,
    }
    _counted: ClassVar[Tuple[str, ...]] = (
        *FusedOptimizer._counted,
        *("last_lr", "cur_lr", "_momenta", "_adapts"),
    )

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.0,
        eta: float = 0.001,
        epsilon: float = 1e-8,
        momentum_correction: bool = False,
        lazy_update: bool = False,
        use_fused_step: bool = True,
        aggregate_num: Any = None,
        **kwargs: Any,
    ):
        # The base ends with a check of these.
        self.eta = eta
        self.epsilon = epsilon
        self._by_lists = aggregate_num is not None and aggregate_num > 1
        super().__init__(
            momentum=momentum,
            learning_rate=learning_rate,
            lazy_update=lazy_update,
            use_fused_step=use_fused_step,
            aggregate_num=aggregate_num,
            **kwargs,
        )
        check_flag(self.registered_name, "momentum_correction", momentum_correction)
        self.momentum_correction = momentum_correction
        # The learning rates of the last two calls, as MXNet 1 has them.
        self.last_lr: Optional[float] = None
        self.cur_lr: Optional[float] = None
        # Of the parameters of the present step.
        self._momenta: List[float] = []
        self._adapts: List[float] = []

    def __getstate__(self) -> Dict[str, Any]:
        return {**super().__getstate__(), "_momenta": [], "_adapts": []}

    @property
    def arithmetic(self) -> Arithmetic:
        if self.numerics == BUILTIN and SERIES == 2 and self._by_lists:
            found = self.builtin_by_lists
            return found if self._has_state else _without_momentum(found)
        return super().arithmetic

    def set_wd_mult(self, args_wd_mult: Mapping[Any, float]) -> None:
        """Set multipliers of weight decay; MXNet 1's LARS does not decay gamma by default."""
        if self.numerics == BUILTIN and SERIES == 1:
            attributes = self.sym_info[0] if self.sym_info else {}
            gammas = (name for name in self.idx2name.values() if name.endswith("_gamma"))
            undecayed = {n: 0.0 for n in gammas if "__wd_mult__" not in attributes.get(n, {})}
            args_wd_mult = {**undecayed, **args_wd_mult}
        super().set_wd_mult(args_wd_mult)

    def _count_update(self, indices: Sequence[Index]) -> Tuple[List[float], List[float]]:
        lrs: List[float] = []
        wds: List[float] = []
        for number, call in enumerate(self._calls(indices)):
            of_call = super()._count_update(call)
            lrs += of_call[0]
            wds += of_call[1]
            self.last_lr = self._rate if self.cur_lr is None else self.cur_lr
            self.cur_lr = self._rate
            self._take_counted(self, call, is_first=number == 0)
        return lrs, wds

    def _take_counted(self, source: Any, indices: Sequence[Index], is_first: bool) -> None:
        if is_first:
            self._adapts, self._momenta = [], []
        # MXNet's operators take the norm of gradients with the sign of `rescale_grad`.
        sign = -1.0 if self.numerics == BUILTIN and self.rescale_grad < 0 else 1.0
        names = (source.idx2name.get(index, str(index)) for index in indices)
        self._adapts += [0.0 if name.endswith(_WITHOUT_RATIO) else sign for name in names]
        # MXNet 2 has none.
        self.last_lr, self.cur_lr = (getattr(source, name, None) for name in ("last_lr", "cur_lr"))
        momentum = self.momentum
        if self.momentum_correction and self.last_lr != 0:
            momentum *= self.cur_lr / self.last_lr  # type: ignore[operator]
        self._momenta += [momentum] * len(indices)

    def _take_aggregation(self, built_in: Any) -> None:
        # MXNet 2's LARS takes norms in another way if it is called with several parameters.
        self._by_lists = built_in.aggregate_num > 1

    def _forms_groups(self) -> bool:
        # What is adapted depends on names.
        return False

    def _calls(self, indices: Sequence[Index]) -> List[Sequence[Index]]:
        """The parts of a step in which momentum is corrected one after another."""
        if not self.momentum_correction or self.numerics != BUILTIN or SERIES == 2:
            return [indices]
        size = int(os.environ.get("MXNET_OPTIMIZER_AGGREGATION_SIZE", "4"))
        if size <= 0:
            size = 1
        counts = {self._index_update_count.get(i, self.begin_num_update) for i in indices}
        if len(counts) == 1:
            # After the first call nothing changes.
            return [part for part in (indices[:size], indices[size:]) if part]
        return [indices[k : k + size] for k in range(0, len(indices), size)]

    def _asked_rate(self) -> float:
        self._rate = super()._asked_rate()
        return self._rate

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {
            "lr": list(lrs),
            "momentum": self._momenta or self.momentum,
            "eta": self.eta,
            "epsilon": self.epsilon,
            "adapts": self._adapts or 1.0,
        }

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Optional[NDArray], s: SimpleNamespace
    ) -> None:
        if not weight.size:
            return
        by_lists = "_mxnet" in s.rule and "_alone" not in s.rule
        rate = _rate_by_lists(weight, s) if by_lists else _rate(weight, s)

        def like_weight(x: Any) -> NDArray:
            return array(numpy.full(weight.shape, x), weight.context, weight.dtype)

        step = like_weight(rate)
        kept = 0 if state is None else s.momentum * state
        if by_lists:
            decay = like_weight(numpy.float32(rate) * _single(s.weight_decay))
            change = kept - decay * weight - step * s.grad_scale * grad
        else:
            change = kept - step * grad if state is not None else -(step * grad)
        if state is not None:
            state[:] = change
        weight += change


def _number(x: Any) -> Any:
    """A scalar, of which there may be an array."""
    return x.asnumpy().flat[0] if isinstance(x, NDArray) else x


def _single(x: Any) -> numpy.float32:
    return numpy.float32(_number(x))


def _rate(weight: NDArray, s: SimpleNamespace) -> Any:
    """The learning rate of a parameter, from norms by MXNet's operator or in double precision."""
    of_mxnet = "_mxnet" in s.rule
    grad = s.raw_grad.asnumpy().astype("float32") * _single(s.rescale_grad)
    shown = (s.shown if of_mxnet else weight).asnumpy().astype("float32")
    weight_norm, grad_norm = (
        array(x, weight.context, "float32").norm().asnumpy().flat[0]
        if of_mxnet
        else numpy.float32(numpy.sqrt(numpy.square(x.astype("float64")).sum()))
        for x in (shown, grad)
    )
    ratio = weight_norm / grad_norm
    lr = s.exact["lr"] if of_mxnet else float(weight.dtype(_number(s.lr)))
    if _number(s.adapts) and ratio / ratio == 1:
        wd = max(_single(s.wd), numpy.float32(0))
        length = grad_norm + wd * weight_norm + _single(s.epsilon)
        lr *= float(_single(s.eta) * weight_norm / length)
    return weight.dtype(_native.as_mxnet_reads_float32(lr) if of_mxnet else lr)


def _rate_by_lists(weight: NDArray, s: SimpleNamespace) -> Any:
    """The learning rate of a parameter, as MXNet's operators for several of them find it."""
    squares_first = s.rule.endswith("1")
    weight_sum, grad_sum = (
        sum_of_squares(
            x if squares_first else x.astype("float32"),
            in_float32=True,
            half_squares=squares_first and s.has_half,
        )
        for x in (s.shown, s.raw_grad)
    )
    weight_norm = numpy.sqrt(weight_sum)
    lr = _single(s.lr)
    if not (_number(s.adapts) and weight_norm > 0 and grad_sum > 0):
        return lr
    rescale_grad = _single(s.adapts) * abs(_single(_number(s.rescale_grad) * _number(s.grad_scale)))
    length = (
        numpy.sqrt(grad_sum) * rescale_grad
        + _single(s.weight_decay) * weight_norm
        + _single(s.epsilon)
    )
    return lr * _single(s.eta) * weight_norm / length
