# SPDX-License-Identifier: Apache-2.0
"""FTML."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Mapping, Sequence, Tuple

import numpy
from mxnet.ndarray import NDArray, sqrt, square

from .. import _native
from .arithmetic import Arithmetic, BySeries
from .base import FusedOptimizer, Scalars, register
from .options import DECAY_RATE, NOT_NEGATIVE, Range
from .scalars import check_divisors


@register("ftml_ext", "ftml")
class FTML(FusedOptimizer):
    r"""FTML, Follow the Moving Leader: recent gradients count more in where the weight should be.

    For each weight, with `t` counting its updates from 1::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        v = beta2 * v + (1 - beta2) * grad**2
        d_before = d
        d = (1 - beta1**t) / lr * (sqrt(v / (1 - beta2**t)) + epsilon)
        z = beta1 * z + (1 - beta1) * grad - (d - beta1 * d_before) * weight
        weight = -z / d

    Weights and states equal those of the installed MXNet's built-in ``ftml`` to the last bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's. In MXNet 1, `clip_gradient` bounds the
    sum of gradient and weight decay.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.0025
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one. A
        step divides by it: 0 makes NaN, as in the built-in, or is refused with
        ``numerics='portable'``.
    beta1 : float, in [0, 1), default 0.6
        Decay rate of `z`.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of the second moment `v`.
    epsilon : float, in [0, inf), default 1e-8
        Added to the root.
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
    State for each weight: a tuple ``(d, v, z)`` of three arrays of its shape and dtype, the
    built-in's. They make the weight, so that they take no `state_dtype`.

    A weight whose gradient is zero from the start is divided by ``epsilon``; with ``epsilon=0`` it
    becomes NaN, as in the built-in.

    Source: S. Zheng, J. T. Kwok, *Follow the Moving Leader in Deep Learning*, ICML 2017,
    algorithm 1.

    Examples
    --------
    >>> weight = mx.nd.ones((3, 4))
    >>> d, v, z = mxadamax.FTML().create_state(0, weight)
    >>> z.shape
    (3, 4)
    """

    portable = Arithmetic("ftml")
    # `epsilon` is the one argument that the operator takes in double precision.
    _in_mxnet2 = Arithmetic(
        "ftml_mxnet2",
        by_operator=True,
        listed=("correction1", "correction2"),
        exact=("epsilon", "double_correction1", "double_correction2"),
    )
    builtin: ClassVar[BySeries] = {
        1: replace(_in_mxnet2, rule="ftml_mxnet1", clip_after_wd=True),
        2: _in_mxnet2,
    }
    ranges: ClassVar[Mapping[str, Range]] = {
        "beta1": DECAY_RATE,
        "beta2": DECAY_RATE,
        "epsilon": NOT_NEGATIVE,
    }

    def __init__(
        self,
        learning_rate: Any = 0.0025,
        beta1: float = 0.6,
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

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        common: Scalars = {"lr": list(lrs), "beta1": self.beta1, "beta2": self.beta2}
        if not self.arithmetic.by_operator:
            check_divisors(self.registered_name, lrs)
            return {
                **common,
                "one_minus_beta1": 1.0 - self.beta1,
                "one_minus_beta2": 1.0 - self.beta2,
                "correction2": [1.0 - self.beta2**t for t in updates],
                "epsilon": self.epsilon,
                "d_factor": [(1.0 - self.beta1**t) / lr for t, lr in zip(updates, lrs)],
            }
        found: Scalars = {**common, "epsilon": _native.as_mxnet_reads(self.epsilon)}
        for k, beta in enumerate((self.beta1, self.beta2), 1):
            rate = _native.as_mxnet_reads_float32(beta)
            found[f"correction{k}"] = [1 - _native.power_float32(rate, float(t)) for t in updates]
            found[f"double_correction{k}"] = [1 - rate ** float(t) for t in updates]
        return found

    def reference_step(
        self,
        weight: NDArray,
        grad: NDArray,
        state: Tuple[NDArray, NDArray, NDArray],
        s: SimpleNamespace,
    ) -> None:
        d, v, z = state
        kept = s.beta1 * d
        if s.rule == "ftml":
            v[:] = s.beta2 * v + s.one_minus_beta2 * square(grad)
            d[:] = (sqrt(v / s.correction2) + s.epsilon) * s.d_factor
            z[:] = s.beta1 * z + s.one_minus_beta1 * grad - (d - kept) * weight
        else:
            double = "double_" if weight.dtype == numpy.float64 else ""
            correction1, correction2 = (getattr(s, f"{double}correction{k}") for k in (1, 2))
            v[:] = s.beta2 * v + (1 - s.beta2) * square(grad)
            d[:] = correction1 / s.lr * (sqrt(v / correction2) + s.epsilon)
            z[:] = s.beta1 * z + (1 - s.beta1) * grad - (d - kept) * weight
        weight[:] = -z / d
