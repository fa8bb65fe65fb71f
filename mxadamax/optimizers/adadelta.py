# SPDX-License-Identifier: Apache-2.0
"""AdaDelta."""

from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Sequence, Tuple

from mxnet.ndarray import NDArray, sqrt, square

from .arithmetic import Arithmetic, BySeries
from .base import FusedOptimizer, Scalars, register
from .options import DECAY_RATE, NOT_NEGATIVE, Range
from .traits import Traits, TraitsBySeries


@register("adadelta_ext", "adadelta")
class AdaDelta(FusedOptimizer):
    r"""AdaDelta: scale each step by the size of earlier changes.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        v = rho * v + (1 - rho) * grad**2
        change = sqrt(changes + epsilon) / sqrt(v + epsilon) * grad
        changes = rho * changes + (1 - rho) * change**2
        weight -= lr * change

    Weights and states equal those of the installed MXNet's built-in ``adadelta`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula.
    It accepts float64 weights; the built-in's states are always float32.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 1.0
        The learning rate; 1 in the paper. None takes it from `lr_scheduler`, or 0.01 without one.
    rho : float, in [0, 1), default 0.9
        Decay rate of both moments.
    epsilon : float, in [0, inf), default 1e-6
        Added under both roots; sets the size of the first changes.
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
    State for each weight: a tuple ``(v, changes)`` of two arrays of its shape and dtype, the
    built-in's.

    Source: M. D. Zeiler, *ADADELTA: An Adaptive Learning Rate Method*, arXiv 1212.5701,
    algorithm 1.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "adadelta_ext", {"rho": 0.95})
    >>> trainer.optimizer.rho
    0.95
    """

    portable = Arithmetic("adadelta")
    builtin: ClassVar[BySeries] = {1: Arithmetic("adadelta_mxnet1", decay_in_rule="coupled")}
    traits: ClassVar[TraitsBySeries] = {
        1: Traits(has_rate=False),
        2: Traits(writes_gradients=True),
    }
    ranges: ClassVar[Mapping[str, Range]] = {"rho": DECAY_RATE, "epsilon": NOT_NEGATIVE}

    def __init__(
        self,
        learning_rate: Any = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.rho = rho
        self.epsilon = epsilon
        self.check_hyperparameters()

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {
            "lr": list(lrs),
            "rho": self.rho,
            "one_minus_rho": 1.0 - self.rho,
            "epsilon": self.epsilon,
        }

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, NDArray], s: SimpleNamespace
    ) -> None:
        v, changes = state
        if s.rule == "adadelta_mxnet1":
            v[:] = s.rho * v + s.one_minus_rho * grad * grad
            change = sqrt(changes + s.epsilon) / sqrt(v + s.epsilon) * grad
            changes[:] = s.rho * changes + s.one_minus_rho * change * change
            weight -= change + s.weight_decay * weight
            return
        v[:] = s.rho * v + s.one_minus_rho * square(grad)
        change = sqrt(changes + s.epsilon) / sqrt(v + s.epsilon) * grad
        changes[:] = s.rho * changes + s.one_minus_rho * square(change)
        weight -= s.lr * change
