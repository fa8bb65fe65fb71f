# SPDX-License-Identifier: Apache-2.0
"""LAMB."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, List, Mapping, Optional, Sequence, Tuple

import numpy
from mxnet.ndarray import NDArray, array, sqrt

from .. import _native
from .._mxnet.compatibility import IS_MXNET_1
from .arithmetic import Arithmetic, BySeries
from .base import FusedOptimizer, Scalars, register
from .norms import norm
from .options import DECAY_RATE, NOT_NEGATIVE, Range, check_flag


@register("lamb_ext", "lamb")
class LAMB(FusedOptimizer):
    r"""LAMB: Adam that scales the step of each parameter to the norm of its weight.

    For each weight, with `t` counting its updates from 1::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        m_hat = m / (1 - beta1**t)                           # bias_correction=False: m
        v_hat = v / (1 - beta2**t)                           # bias_correction=False: v
        delta = m_hat / (sqrt(v_hat) + epsilon) + wd * weight
        norm = minimum(maximum(|weight|, lower_bound), upper_bound)
        ratio = norm / |delta|                               # 1 where either norm is 0
        weight -= lr * ratio * delta

    On a CPU, float32 weights and states equal those of the built-in ``lamb`` bit for bit: those of
    its operator ``multi_lamb_update``, which it uses by default.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.001
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    beta1 : float, in [0, 1), default 0.9
        Decay rate of the first moment `m`.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of the second moment `v`.
    epsilon : float, in [0, inf), default 1e-6
        Added to the denominator.
    lower_bound : float, in [0, inf), or None, default None
        Lower bound of the norm of a weight; None and 0 mean no bound.
    upper_bound : float, in [0, inf), or None, default None
        Upper bound of the norm of a weight; None and 0 mean no bound.
    bias_correction : bool, default True
        False skips the bias correction.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    decoupled_wd : bool, default True
        Add weight decay to `delta`, as in the paper and the built-in. False adds ``wd * weight``
        to the gradient instead.
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

    A norm sums squares sequentially in the weight's type (in MXNet 1, always in single precision),
    as MXNet's operator does, so it does not depend on the number of threads. In float32, the sum of
    many millions of squares comes out too small. On a GPU, sums are in double precision and in
    another order, as MXNet's are there; the results differ from the CPU's in the last digits.

    Hyperparameters are rounded to single precision for weights of any type, as MXNet's operator
    does. A step reads everything twice: first for the norms, then to update. The norm of a 16-bit
    weight is that of its float32 master if it has one; in MXNet 1, that of the float16 weight
    itself, with squares in 16 bits, as the built-in's.

    With `lazy_update`, norms cover only the rows that the gradient holds.

    Source: Y. You et al., *Large Batch Optimization for Deep Learning: Training BERT in 76
    minutes*, arXiv 1904.00962, algorithm 2.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "lamb_ext", {"wd": 0.01})
    >>> trainer.optimizer.epsilon
    1e-06
    """

    # With MXNet 1 it divides as the built-in there.
    portable = Arithmetic(
        "lamb_double_quotient" if IS_MXNET_1 else "lamb",
        by_operator=True,
        listed=(
            *("lr", "weight_decay"),
            *("one_minus_beta1", "one_minus_beta2", "correction1", "correction2"),
        ),
        decay_in_rule="decoupled",
    )
    builtin: ClassVar[BySeries] = {
        1: replace(
            portable,
            rule="lamb_mxnet1",
            exact=(
                *("one_minus_beta1", "one_minus_beta2"),
                *("double_correction1", "double_correction2"),
            ),
        )
    }
    ranges: ClassVar[Mapping[str, Range]] = {
        "beta1": DECAY_RATE,
        "beta2": DECAY_RATE,
        "epsilon": NOT_NEGATIVE,
        "lower_bound": NOT_NEGATIVE._replace(optional=True),
        "upper_bound": NOT_NEGATIVE._replace(optional=True),
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        lower_bound: Optional[float] = None,
        upper_bound: Optional[float] = None,
        bias_correction: bool = True,
        use_fused_step: bool = True,
        decoupled_wd: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            use_fused_step=use_fused_step,
            decoupled_wd=decoupled_wd,
            **kwargs,
        )
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.lower_bound = lower_bound
        self.upper_bound = upper_bound
        check_flag(self.registered_name, "bias_correction", bias_correction)
        self.bias_correction = bias_correction
        self.check_hyperparameters()

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        beta1, beta2 = map(_native.as_mxnet_reads_float32, (self.beta1, self.beta2))
        return {
            "lr": list(lrs),
            "beta1": self.beta1,
            "one_minus_beta1": 1.0 - beta1,
            "beta2": self.beta2,
            "one_minus_beta2": 1.0 - beta2,
            "epsilon": self.epsilon,
            "correction1": self._corrections(beta1, updates),
            "correction2": self._corrections(beta2, updates),
            "double_correction1": self._corrections(beta1, updates, in_double=True),
            "double_correction2": self._corrections(beta2, updates, in_double=True),
            "lower_bound": self.lower_bound or 0.0,
            "upper_bound": self.upper_bound or math.inf,
        }

    def _corrections(
        self, beta: float, updates: Sequence[int], in_double: bool = False
    ) -> List[float]:
        """Return the divisors that correct the bias of moments that began at zero."""
        if not self.bias_correction:
            return [1.0] * len(updates)
        power = math.pow if in_double else _native.power_float32
        correction = {t: 1.0 - power(beta, float(t)) for t in set(updates)}
        return [correction[t] for t in updates]

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, NDArray], s: SimpleNamespace
    ) -> None:
        m, v = state
        m[:] = s.beta1 * m + s.one_minus_beta1 * grad
        v[:] = s.beta2 * v + s.one_minus_beta2 * grad * grad
        is_single = s.rule == "lamb_mxnet1"
        if is_single and weight.dtype == numpy.float64:
            corrected_m, corrected_v = m / s.double_correction1, v / s.double_correction2
        else:
            corrected_m, corrected_v = m / s.correction1, v / s.correction2
        if is_single or s.rule == "lamb_double_quotient":
            corrected_m, corrected_v = (x.astype("float64") for x in (corrected_m, corrected_v))
        quotient = corrected_m / (sqrt(corrected_v) + s.epsilon.astype(corrected_v.dtype))
        decay = (s.weight_decay * weight).astype(quotient.dtype)
        delta = (quotient + decay).astype("float32" if is_single else weight.dtype)

        shown = s.shown if "_mxnet" in s.rule else weight
        found = norm(shown, in_float32=is_single, half_squares=is_single and s.has_half)
        delta_norm = norm(delta)
        lr, lower, upper = (x.asnumpy() for x in (s.lr, s.lower_bound, s.upper_bound))
        lower, upper = lower.astype(found.dtype), upper.astype(found.dtype)
        weight_norm = numpy.minimum(numpy.maximum(found, lower), upper)
        ratio = numpy.where(
            (weight_norm != 0) & (delta_norm != 0),
            weight_norm / delta_norm,
            weight_norm.dtype.type(1),
        )
        step = array(lr * ratio.astype(weight.dtype), weight.context, weight.dtype)
        weight -= step * delta.astype(weight.dtype)
