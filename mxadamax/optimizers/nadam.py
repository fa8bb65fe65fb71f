# SPDX-License-Identifier: Apache-2.0
"""Nadam."""

import math
from types import SimpleNamespace
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Sequence, Tuple

from mxnet.ndarray import NDArray, sqrt, square

from .adam import MomentOptimizer
from .arithmetic import BUILTIN, Arithmetic, BySeries
from .base import Scalars, register
from .options import NOT_NEGATIVE, Range, check_flag
from .traits import Traits, TraitsBySeries


@register("nadam_ext", "nadam")
class Nadam(MomentOptimizer):
    r"""Adam with Nesterov momentum.

    For each weight, with `t` counting its updates from 1::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        momentum(t) = beta1 * (1 - 0.5 * 0.96**(t * schedule_decay))
        product(t) = momentum(1) * momentum(2) * ... * momentum(t)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        ahead = momentum(t + 1) * m / (1 - product(t + 1))
                + (1 - momentum(t)) * grad / (1 - product(t))
        weight -= lr * ahead / (sqrt(v / (1 - beta2**t)) + epsilon)

    Weights and states equal those of the installed MXNet's built-in ``nadam`` bit for bit. That one
    shares one product among all parameters and multiplies it once per *parameter* instead of once
    per step, so an update depends on the position of the parameter. With
    ``schedule_per_parameter=False``, the default of ``numerics='portable'``, this is the formula;
    for a model with one parameter it equals MXNet 2's.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.001
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    beta1 : float, in [0, 1), default 0.9
        Decay rate of the first moment `m`, and limit of the momentum.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of the second moment `v`.
    epsilon : float, in [0, inf), default 1e-8
        Added to the denominator.
    schedule_decay : float, in [0, inf), default 0.004
        Speed at which the momentum approaches `beta1`.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    schedule_per_parameter : bool, optional
        Count the schedule as the built-in does. By default with ``numerics='builtin'``, unless
        `skip_nonfinite` is on.
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
    State for each weight: a tuple ``(m, v)`` of two arrays of its shape and dtype, the built-in's.

    Source: T. Dozat, *Incorporating Nesterov Momentum into Adam*, ICLR workshop 2016, with the
    momentum schedule of its section 2. The paper averages `m` with that momentum, not `beta1`.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "nadam_ext", {"schedule_decay": 0.01})
    >>> trainer.optimizer.schedule_decay
    0.01
    """

    portable = Arithmetic("nadam")
    builtin: ClassVar[BySeries] = {1: Arithmetic("nadam_mxnet1", clip_after_wd=True)}
    traits: ClassVar[TraitsBySeries] = {2: Traits(writes_gradients=True)}
    _counted = (*MomentOptimizer._counted, "m_schedule")
    ranges: ClassVar[Mapping[str, Range]] = {
        **MomentOptimizer.ranges,
        "schedule_decay": NOT_NEGATIVE,
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        schedule_decay: float = 0.004,
        use_fused_step: bool = True,
        schedule_per_parameter: Optional[bool] = None,
        **kwargs: Any,
    ):
        if "correct_bias" in kwargs:
            raise TypeError(f"{self.registered_name}: unexpected argument 'correct_bias'")
        self.m_schedule = 1.0
        super().__init__(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            use_fused_step=use_fused_step,
            **kwargs,
        )
        self.schedule_decay = schedule_decay
        if schedule_per_parameter is None:
            schedule_per_parameter = self.numerics == BUILTIN and not self.skip_nonfinite
        check_flag(self.registered_name, "schedule_per_parameter", schedule_per_parameter)
        self.schedule_per_parameter = schedule_per_parameter
        if schedule_per_parameter and self.skip_nonfinite:
            raise ValueError(
                f"{self.registered_name}: skip_nonfinite must be False with "
                "schedule_per_parameter, which needs to know whether a step is skipped"
            )
        self._forget_products()
        self.check_hyperparameters()

    def _forget_products(self) -> None:
        self._products: List[float] = [1.0]
        self._products_of = (self.beta1, self.schedule_decay)

    def __getstate__(self) -> Dict[str, Any]:
        state = super().__getstate__()
        del state["_products"], state["_products_of"]
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_products()

    def restore_counts(self, parameters: int) -> None:
        self.m_schedule = 1.0
        for t in range(1, self.num_update + 1 if self.schedule_per_parameter else 0):
            before = self.m_schedule
            for _ in range(parameters):
                self.m_schedule *= self._momentum(t)
            if self.m_schedule == before:
                # The smallest number there is; momenta only grow.
                break

    def check_hyperparameters(self) -> None:
        super().check_hyperparameters()
        # A product of many momenta can be arbitrarily close to 0.
        Range(-math.inf, math.inf, magnitudes=(0.0, math.inf)).check(
            self.registered_name, "m_schedule", self.m_schedule
        )

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        products = self._products_up_to(updates)
        following = [product * self._momentum(t + 1) for product, t in zip(products, updates)]
        return {
            **super().scalars(lrs, updates),
            "lr": list(lrs),
            "one_minus_momentum": [1.0 - self._momentum(t) for t in updates],
            "next_momentum": [self._momentum(t + 1) for t in updates],
            "grad_divisor": [1.0 - product for product in products],
            "m_divisor": [1.0 - product for product in following],
            "v_divisor": [1.0 - self.beta2**t for t in updates],
        }

    def _forms_groups(self) -> bool:
        # Its momenta are multiplied once for each parameter.
        return not self.schedule_per_parameter and super()._forms_groups()

    def _momentum(self, t: int) -> float:
        momentum: float = self.beta1 * (1.0 - 0.5 * pow(0.96, t * self.schedule_decay))
        return momentum

    def _products_up_to(self, updates: Sequence[int]) -> List[float]:
        """Return the product of all momenta so far, for each of these parameters."""
        if self.schedule_per_parameter:
            found = []
            for t in updates:
                self.m_schedule = self.m_schedule * self._momentum(t)
                found.append(self.m_schedule)
            return found
        if self._products_of != (self.beta1, self.schedule_decay):
            self._forget_products()
        for t in range(len(self._products), max(updates) + 1):
            self._products.append(self._products[-1] * self._momentum(t))
        return [self._products[t] for t in updates]

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, NDArray], s: SimpleNamespace
    ) -> None:
        m, v = state
        m[:] = s.beta1 * m + s.one_minus_beta1 * grad
        if s.rule == "nadam_mxnet1":
            v[:] = s.beta2 * v + s.one_minus_beta2 * grad * grad
            ahead = s.one_minus_momentum * (grad / s.grad_divisor)
            ahead = ahead + s.next_momentum * (m / s.m_divisor)
            weight -= s.lr * ahead / (sqrt(v / s.v_divisor) + s.epsilon)
            return
        v[:] = s.beta2 * v + s.one_minus_beta2 * square(grad)
        ahead = s.next_momentum * (m / s.m_divisor) + s.one_minus_momentum * (grad / s.grad_divisor)
        weight -= s.lr * (ahead / (sqrt(v / s.v_divisor) + s.epsilon))
