# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient Langevin dynamics."""

import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Iterator, List, Sequence, Tuple

from mxnet.ndarray import NDArray, cast, empty
from mxnet.random import normal

from ..dtypes import BFLOAT16
from .arguments import as_lists
from .arithmetic import Arithmetic
from .base import FusedOptimizer, Scalars, State, register
from .options import NOT_NEGATIVE
from .state_layout import StateLayout, describe
from .step_tracker import Index
from .traits import Traits, TraitsBySeries


@register("sgld_ext", "sgld")
class SGLD(FusedOptimizer):
    r"""Stochastic gradient Langevin dynamics: SGD with noise, which samples from a posterior.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        weight -= lr / 2 * grad
        weight += normal(0, sqrt(lr))

    The noise is MXNet's: after ``mx.random.seed`` with the same seed, weights equal those of the
    installed MXNet's built-in ``sgld`` to the last bit.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.1
        The learning rate, which is also the variance of the noise. None takes it from
        `lr_scheduler`, or 0.01 without one.
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
    State for each weight: None.

    Noise is drawn for one parameter after another, in the order in which MXNet hands them over.
    MXNet 1 hands over those of each dtype together; with ``aggregate_num=1`` they come in the order
    of the built-in. A step that is skipped, and rows that are left alone, get no noise, but it is
    drawn.

    Source: M. Welling, Y. W. Teh, *Bayesian Learning via Stochastic Gradient Langevin Dynamics*,
    ICML 2011, equation 4.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "sgld_ext", {"learning_rate": 1e-4})
    >>> trainer.learning_rate
    0.0001
    """

    portable = Arithmetic("sgld")
    # Who gets which noise depends on the order.
    traits: ClassVar[TraitsBySeries] = {
        1: Traits(all_or_none=True, draws=True),
        2: Traits(all_or_none=True, draws=True, writes_gradients=True),
    }

    def __init__(self, learning_rate: Any = 0.1, use_fused_step: bool = True, **kwargs: Any):
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.check_hyperparameters()

    def state_layout(self, weight: NDArray) -> StateLayout:
        layout = super().state_layout(weight)
        # While a step runs, the noise is in the place of a state.
        return layout if "_noise" in vars(self) else replace(layout, rule="sgd")

    def step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        with self._noise_as_states(indices, weights, grads, states) as given:
            super().step(*given)

    def fused_step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        with self._noise_as_states(indices, weights, grads, states) as given:
            super().fused_step(*given)

    @contextmanager
    def _noise_as_states(self, *given: Any) -> Iterator[Tuple[Any, ...]]:
        """The arguments of a step, with arrays for the noise as states of the rule."""
        indices, weights, grads, states = as_lists(self.registered_name, *given)
        noise: List[NDArray] = []
        extended = []
        for index, weight, state in zip(indices, weights, states):
            if not isinstance(weight, NDArray):
                # The step will say so.
                extended.append(state)
                continue
            try:
                parts = self.state_layout(weight).unpack(state)
            except (TypeError, ValueError):
                parts = None
            if parts is None or parts.own:
                raise ValueError(
                    f"{self.registered_name}: parameter {self._name(index)}: state is "
                    f"{describe(state)}, expected what create_state makes"
                )
            target = weight if parts.master is None else parts.master
            noise.append(empty(target.shape, target.context, dtype=target.dtype))
            extended.append(parts._replace(own=(noise[-1],)).nested)
        self._noise = noise
        try:
            yield indices, weights, grads, extended
        finally:
            del self._noise

    def _prepare(
        self, indices: Sequence[Index], lrs: Sequence[float], wds: Sequence[float]
    ) -> None:
        """Draw the noise, whose deviation the learning rates are."""
        # All is checked before: what has been drawn is gone, and a step that is refused must leave
        # the generator as it was.
        for index, lr, wd in zip(indices, lrs, wds):
            if not (0 < lr < math.inf and 0 <= wd < math.inf):
                owner = f"{self.registered_name}: parameter {self._name(index)}"
                NOT_NEGATIVE._replace(includes_low=False).check(owner, "lr", lr)
                NOT_NEGATIVE.check(owner, "wd", wd)
        for lr, noise in zip(lrs, vars(self).get("_noise", ())):
            if noise.dtype == BFLOAT16:
                drawn = normal(0, math.sqrt(lr), shape=noise.shape, ctx=noise.context)
                cast(drawn, dtype=BFLOAT16, out=noise)
            elif noise.size:
                normal(0, math.sqrt(lr), dtype=noise.dtype, ctx=noise.context, out=noise)

    def _forms_groups(self) -> bool:
        # Each parameter's noise is drawn while it is counted.
        return False

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {"half_lr": [lr / 2 for lr in lrs]}

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: State, s: SimpleNamespace
    ) -> None:
        weight -= s.half_lr * grad
        weight += state
