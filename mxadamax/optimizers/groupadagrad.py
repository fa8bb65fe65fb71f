# SPDX-License-Identifier: Apache-2.0
"""AdaGrad with one rate for each row."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Sequence

from mxnet.ndarray import NDArray, cast, contrib, mean, sqrt, square, zeros
from mxnet.ndarray.sparse import RowSparseNDArray

from .arguments import as_lists
from .arithmetic import BUILTIN, SERIES, Arithmetic
from .base import FusedOptimizer, Scalars, State, register
from .options import NOT_NEGATIVE, Range
from .reference_step import reference_update
from .scalars import NO_L2
from .state_layout import ParameterState, StateLayout, computed_copy
from .step_tracker import Index
from .traits import Traits, TraitsBySeries


@dataclass(frozen=True)
class RowLayout(StateLayout):
    """One number for each row, of the type that is computed in."""

    def create(self, weight: NDArray) -> State:
        rows = zeros((weight.shape[0], 1), weight.context, dtype=weight.dtype, stype=weight.stype)
        average = computed_copy(weight) if self.has_average else None
        return ParameterState(None, (rows,), average).nested


@register("groupadagrad_ext", "groupadagrad")
class GroupAdaGrad(FusedOptimizer):
    r"""AdaGrad with one rate for each row of a matrix, for embeddings.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        history += mean(grad**2, axis=1)
        weight -= lr * grad / (sqrt(history) + epsilon)

    MXNet 1's built-in, and those of both for row_sparse gradients, divide by
    ``sqrt(history + epsilon)``. Rows that such a gradient does not hold are left alone.

    Weights and states equal those of the installed MXNet's built-in ``groupadagrad`` to the last
    bit, because this one runs the same operators of MXNet: it is no faster, and is there so that
    all optimizers can be had from one place, with the same checks. Kernels of this package keep
    states of the weight's shape, which these are not.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.01
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    epsilon : float, in [0, inf), default 1e-6
        Added to the denominator, or under the root. MXNet 1 calls it `eps`; 1e-5 there.
    use_fused_step : bool, default True
        False computes row_sparse gradients as dense ones, as in MXNet 2.
    **kwargs
        What every optimizer takes; see :class:`mxadamax.optimizers.base.FusedOptimizer`.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range; for weights that are not matrices; for any weight
        decay, which the built-in refuses as well; and for `clip_global_norm`, `skip_nonfinite`,
        `ema_decay` and `state_dtype`.

    Notes
    -----
    State for each weight: one array ``history`` of shape ``(rows, 1)``, the built-in's, in the
    weight's dtype; the built-in's is float32.

    Source: J. Duchi, E. Hazan, Y. Singer, *Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization*, JMLR 12, 2011, with a mean over each row.

    Examples
    --------
    >>> mxadamax.GroupAdaGrad().create_state(0, mx.nd.zeros((3, 4))).shape
    (3, 1)
    """

    # No kernel runs; this names what the step needs, and that there is one array of state.
    portable = Arithmetic("adagrad")
    traits: ClassVar[TraitsBySeries] = dict.fromkeys(
        (1, 2), Traits(left_to_mxnet="there is no native kernel for one number of state per row")
    )
    ranges: ClassVar[Mapping[str, Range]] = {"epsilon": NOT_NEGATIVE}

    def __init__(
        self,
        learning_rate: Any = 0.01,
        epsilon: float = 1e-6,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.epsilon = epsilon
        self.check_hyperparameters()

    def check_hyperparameters(self) -> None:
        super().check_hyperparameters()
        refused = {
            "wd": (self.wd, 0),
            "clip_global_norm": (self.clip_global_norm, None),
            "skip_nonfinite": (self.skip_nonfinite, False),
            "ema_decay": (self.ema_decay, None),
            "state_dtype": (self.state_dtype, None),
        }
        for name, (value, off) in refused.items():
            if value != off:
                raise ValueError(f"{self.registered_name}: {name} must be {off}, got {value!r}")

    @property
    def divides_by_root_of_sum(self) -> bool:
        """Whether `epsilon` is under the root, for dense gradients too."""
        return self.numerics == BUILTIN and SERIES == 1

    def state_layout(self, weight: NDArray) -> StateLayout:
        if weight.ndim != 2:
            raise ValueError(
                f"{self.registered_name}: a weight must be a matrix, got one of {weight.shape}"
            )
        return RowLayout(self.rule, weight.dtype, self.multi_precision)

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {"lr": list(lrs), "epsilon": self.epsilon}

    def _weight_decay(
        self,
        lrs: Sequence[float],
        wds: Sequence[float],
        updates: Sequence[int],
        arithmetic: Arithmetic,
    ) -> Scalars:
        return {"wd": NO_L2, "decay_factor": 1.0, "weight_decay": 0.0}

    def fused_step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update by MXNet's operators, parameter by parameter; arguments as for the others."""
        given = as_lists(self.registered_name, indices, weights, grads, states)
        self.check_hyperparameters()
        for one in zip(*given):
            if type(one[2]) is RowSparseNDArray:
                self._update_rows(*one)
            else:
                reference_update(self, *([x] for x in one))

    def _update_rows(self, index: Index, weight: NDArray, grad: NDArray, state: State) -> None:
        """Update the rows that a row_sparse gradient holds."""
        rollback = self._progress()
        try:
            parts = self.state_layout(weight).unpack(state)
            target = weight if parts.master is None else parts.master
            lrs, _ = self._count_update([index])
            clipped = {"clip_gradient": self.clip_gradient} if self.clip_gradient else {}
            contrib.group_adagrad_update(
                target,
                grad.astype(target.dtype),
                *parts.own,
                out=target,
                lr=lrs[0],
                epsilon=self.epsilon,
                rescale_grad=-self.rescale_grad if self.maximize else self.rescale_grad,
                **clipped,
            )
        except BaseException:
            rollback()
            raise
        if target is not weight:
            cast(target, dtype=weight.dtype, out=weight)

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: NDArray, s: SimpleNamespace
    ) -> None:
        state += mean(square(grad), axis=1, keepdims=True)
        if self.divides_by_root_of_sum:
            weight -= s.lr * grad / sqrt(state + s.epsilon)
        else:
            weight -= s.lr * (grad / (sqrt(state) + s.epsilon))
