"""AdaMax."""

from typing import Any, ClassVar, Mapping, Sequence, Tuple

from mxnet.ndarray import NDArray, clip, maximum, zeros
from mxnet.ndarray import abs as absolute

from .hyperparameters import DECAY_RATE, NOT_NEGATIVE, Range
from .optimizer import FusedOptimizer, Index, Scalars, register


@register("adamax_ext")
class Adamax(FusedOptimizer):
    r"""AdaMax, the variant of Adam based on the infinity norm.

    For each weight, with :math:`t` counting its updates from 1::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        m = beta1 * m + (1 - beta1) * grad
        u = maximum(beta2 * u, abs(grad))
        weight -= lr / (1 - beta1**t) * m / (u + epsilon)

    Weights and states equal those of MXNet 2's built-in ``adamax`` to the last bit. Unlike the
    built-in, it leaves the gradient as it is.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.002
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    beta1 : float, in [0, 1), default 0.9
        Decay rate of the first moment `m`.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of the infinity norm `u`.
    epsilon : float, in [0, inf), default 1e-8
        Added to the denominator. With 0, a weight whose gradient has been zero from the start
        becomes NaN.
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel; same bits, for reading
        and for comparing.
    **kwargs
        What every optimizer of MXNet takes; see :class:`mxadamax.optimizer.FusedOptimizer`.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range.

    Notes
    -----
    State for each weight: a tuple ``(m, u)`` of two arrays of its shape and dtype, the built-in's.

    Source: D. P. Kingma, J. Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980,
    section 7.1, algorithm 2; `epsilon` as MXNet 2 has it.
    """

    rule = "adamax"
    ranges: ClassVar[Mapping[str, Range]] = {
        "beta1": DECAY_RATE,
        "beta2": DECAY_RATE,
        "epsilon": NOT_NEGATIVE,
    }

    def __init__(
        self,
        learning_rate: Any = 0.002,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        use_fused_step: bool = True,
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, use_fused_step=use_fused_step, **kwargs)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.check_hyperparameters()

    def create_state(self, index: Index, weight: NDArray) -> Tuple[NDArray, NDArray]:
        """The state of a weight before its first update: two arrays of zeros like it."""
        return (
            zeros(weight.shape, weight.context, dtype=weight.dtype),
            zeros(weight.shape, weight.context, dtype=weight.dtype),
        )

    def scalars(self, indices: Sequence[Index]) -> Scalars:
        lrs, wds, updates = self._count_update(indices)
        correction = {t: 1.0 - self.beta1**t for t in set(updates)}
        return {
            **self._gradient_scalars(),
            "wd": wds,
            "lr": [lr / correction[t] for lr, t in zip(lrs, updates)],
            "beta1": self.beta1,
            "one_minus_beta1": 1.0 - self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
        }

    def step(
        self,
        indices: Sequence[Index],
        weights: Sequence[NDArray],
        grads: Sequence[NDArray],
        states: Sequence[Tuple[NDArray, NDArray]],
    ) -> None:
        """The definition in MXNet's operators; arguments as for `fused_step`."""
        self.check_hyperparameters()
        for index, weight, grad, (m, u) in zip(indices, weights, grads, states):
            (lr,), (wd,), (t,) = self._count_update([index])
            lr /= 1.0 - self.beta1**t

            grad = grad * self.rescale_grad
            if self.clip_gradient is not None:
                grad = clip(grad, -self.clip_gradient, self.clip_gradient)
            grad = grad + wd * weight

            m[:] = self.beta1 * m + (1.0 - self.beta1) * grad
            u[:] = maximum(self.beta2 * u, absolute(grad))
            weight -= lr * (m / (u + self.epsilon))
