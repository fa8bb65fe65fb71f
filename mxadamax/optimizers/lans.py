# SPDX-License-Identifier: Apache-2.0
"""LANS."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Optional, Sequence, Tuple

import numpy
from mxnet.ndarray import NDArray, array, sqrt, where

from .arithmetic import Arithmetic, BySeries
from .base import Scalars, register
from .lamb import LAMB
from .norms import norm
from .options import bound_or_infinity
from .scalars import gradient_bound


@register("lans_ext", "lans")
class LANS(LAMB):
    r"""LANS: LAMB with normalized gradients and Nesterov's acceleration.

    For each weight, with `t` counting its updates from 1::

        grad = grad * rescale_grad
        grad = clip(grad / |grad|, -clip_gradient, clip_gradient)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        scale = sqrt(v / (1 - beta2**t)) + epsilon
        a = m / (1 - beta1**t) / scale + wd * weight
        b = grad / scale + wd * weight
        norm = minimum(maximum(|weight|, lower_bound), upper_bound)
        weight -= lr * beta1 * norm / |a| * a + lr * (1 - beta1) * norm / |b| * b

    where a ratio of norms is 1 if either is 0.

    Float32 weights and states equal those of the built-in ``lans`` of MXNet 2 to the last bit, on a
    processor: of its operator ``multi_lans_update``, which it uses by default. MXNet 1 has none.

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
        The smallest norm of a weight that counts; None and 0 for no bound.
    upper_bound : float, in [0, inf), or None, default None
        The largest norm of a weight that counts; None and 0 for no bound.
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel; same bits.
    decoupled_wd : bool, default True
        Weight decay as part of `a` and `b`, as in the paper and the built-in. False adds
        ``wd * weight`` to the gradient, before it is normalized, instead.
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
    State for each weight: a tuple ``(m, v)`` of two arrays of its shape and dtype, the built-in's.

    A gradient that is zero makes the weight NaN, as it does in the built-in: it has no direction.

    Norms are added up as those of :class:`LAMB` are, and what is said there of GPUs, of single
    precision and of `lazy_update` holds here. The norm of a float16 weight that has a float32
    master is its own; with ``numerics="portable"``, the master's. A step reads everything three
    times.

    Source: S. Zheng, H. Lin, S. Zha, M. Li, *Accelerated Large Batch Optimization of BERT
    Pretraining in 54 minutes*, arXiv 2006.13484, algorithm 2.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "lans_ext", {"wd": 0.01})
    >>> trainer.optimizer.epsilon
    1e-06
    """

    portable = Arithmetic(
        "lans",
        by_operator=True,
        listed=LAMB.portable.listed,
        decay_in_rule="decoupled",
    )
    builtin: ClassVar[BySeries] = {2: replace(portable, rule="lans_mxnet2")}

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        lower_bound: Optional[float] = None,
        upper_bound: Optional[float] = None,
        aggregate_num: Any = None,
        use_fused_step: bool = True,
        decoupled_wd: bool = True,
        **kwargs: Any,
    ):
        if "bias_correction" in kwargs:
            raise TypeError(f"{self.registered_name}: got an unexpected argument 'bias_correction'")
        super().__init__(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            lower_bound=lower_bound,
            upper_bound=upper_bound,
            aggregate_num=aggregate_num,
            use_fused_step=use_fused_step,
            decoupled_wd=decoupled_wd,
            **kwargs,
        )

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {
            **super().scalars(lrs, updates),
            # Bounded after it is normalized.
            "clip_gradient": math.inf,
            "direction_bound": bound_or_infinity(gradient_bound(self)),
        }

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, NDArray], s: SimpleNamespace
    ) -> None:
        if not weight.size:
            return
        m, v = state

        def like_weight(x: Any) -> NDArray:
            return array(numpy.full(weight.shape, x), weight.context, weight.dtype)

        shown = s.shown if "_mxnet" in s.rule else weight
        bound = s.direction_bound
        scaled = grad / like_weight(norm(grad))
        scaled = where(scaled > bound, bound, scaled)
        scaled = where(scaled < -bound, -bound, scaled)
        m[:] = s.beta1 * m + s.one_minus_beta1 * scaled
        v[:] = s.beta2 * v + s.one_minus_beta2 * scaled * scaled
        scale = sqrt(v / s.correction2) + s.epsilon
        decay = s.weight_decay * weight
        along_moment, along_grad = m / s.correction1 / scale + decay, scaled / scale + decay

        lr, beta1, lower, upper = (
            x.asnumpy().flat[0] for x in (s.lr, s.beta1, s.lower_bound, s.upper_bound)
        )
        bounded = numpy.minimum(numpy.maximum(norm(shown), lower), upper)

        def ratio(length: Any) -> Any:
            return bounded / length if bounded != 0 and length != 0 else bounded.dtype.type(1)

        others = bounded.dtype.type(float(ratio(norm(along_grad))) * (1.0 - float(beta1)))
        first = lr * (ratio(norm(along_moment)) * beta1)
        weight -= like_weight(first) * along_moment + like_weight(lr * others) * along_grad
