# SPDX-License-Identifier: Apache-2.0
"""Adam and AMSGrad."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Dict, List, Mapping, Sequence, Tuple

from mxnet.ndarray import NDArray, maximum, sqrt, square

from .arithmetic import Arithmetic, BySeries, by_storage
from .base import FusedOptimizer, Scalars, register
from .options import DECAY_RATE, NOT_NEGATIVE, Range, check_flag
from .scalars import gradient_bound


class MomentOptimizer(FusedOptimizer):
    """Base class of Adam and its variants: two moments with bias correction.

    Parameters are those of the subclasses.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "beta1": DECAY_RATE,
        "beta2": DECAY_RATE,
        "epsilon": NOT_NEGATIVE,
    }

    def __init__(
        self, beta1: float, beta2: float, epsilon: float, correct_bias: bool = True, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        check_flag(self.registered_name, "correct_bias", correct_bias)
        self.correct_bias = correct_bias

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        return {
            "lr": self._corrected(lrs, updates),
            "beta1": self.beta1,
            "one_minus_beta1": 1.0 - self.beta1,
            "beta2": self.beta2,
            "one_minus_beta2": 1.0 - self.beta2,
            "epsilon": self.epsilon,
        }

    def _corrected(self, lrs: Sequence[float], updates: Sequence[int]) -> List[float]:
        """Return learning rates with the bias correction of both moments."""
        if not self.correct_bias:
            return list(lrs)
        correction: Dict[int, float] = {
            t: math.sqrt(1.0 - self.beta2**t) / (1.0 - self.beta1**t) for t in set(updates)
        }
        return [lr * correction[t] for lr, t in zip(lrs, updates)]


@register("adam_ext", "adam")
class Adam(MomentOptimizer):
    r"""Adam, and with ``amsgrad=True`` AMSGrad.

    For each weight, with `t` counting its updates from 1::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        largest = maximum(largest, v)                        # amsgrad only
        lr = lr * sqrt(1 - beta2**t) / (1 - beta1**t)        # unless correct_bias=False
        weight -= lr * m / (sqrt(v) + epsilon)               # amsgrad: sqrt(largest)

    Weights and states equal those of the installed MXNet's built-in ``adam`` bit for bit, with
    ``numerics='portable'`` those of the `step` of MXNet 2's, which is this formula.

    Parameters
    ----------
    learning_rate : float, in [0, inf), default 0.001
        The learning rate. None takes it from `lr_scheduler`, or 0.01 without one.
    beta1 : float, in [0, 1), default 0.9
        Decay rate of the first moment `m`.
    beta2 : float, in [0, 1), default 0.999
        Decay rate of the second moment `v`.
    epsilon : float, in [0, inf), default 1e-8
        Added to the denominator.
    lazy_update : bool, default False
        See :class:`mxadamax.optimizers.base.FusedOptimizer`.
    use_fused_step : bool, default True
        False uses MXNet's operators instead of the native kernel: slow, the same bits.
    amsgrad : bool, default False
        Divide by the largest second moment so far instead of the current one, so the step size of
        a weight never grows.
    correct_bias : bool, default True
        False skips the bias correction, as in AMSGrad's paper.
    **kwargs
        Options of every optimizer; see :class:`mxadamax.optimizers.base.FusedOptimizer`. With
        ``decoupled_wd=True`` it is AdamW as in its paper and PyTorch.

    Raises
    ------
    TypeError
        If an argument does not exist.
    ValueError
        If a hyperparameter is out of its range.

    Notes
    -----
    State for each weight: a tuple ``(m, v)`` of two arrays of its shape and dtype, the built-in's;
    with `amsgrad` ``(m, v, largest)``.

    The maximum is taken before the bias correction of `v`, as in PyTorch. PyTorch adds `epsilon` to
    ``sqrt(largest / (1 - beta2**t))``, MXNet to ``sqrt(largest)``: an `epsilon` here equals
    ``epsilon / sqrt(1 - beta2**t)`` there. It matters only if gradients are as small as `epsilon`
    and `t` is small.

    Sources: D. P. Kingma, J. Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980,
    section 2, in the order of operations that ends that section; S. J. Reddi, S. Kale, S. Kumar,
    *On the Convergence of Adam and Beyond*, arXiv 1904.09237, algorithm 2.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "adam_ext", {"learning_rate": 0.01})
    >>> trainer.optimizer.beta2
    0.999

    AdamW as in its paper and PyTorch:

    >>> optimizer = mxadamax.Adam(wd=0.01, decoupled_wd=True)
    """

    portable = Arithmetic("adam")
    builtin: ClassVar[BySeries] = {
        1: Arithmetic("adam_mxnet1", by_operator=True, clip_after_wd=True),
        2: Arithmetic("adam_mxnet2", by_operator=True),
    }

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        lazy_update: bool = False,
        use_fused_step: bool = True,
        amsgrad: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            lazy_update=lazy_update,
            use_fused_step=use_fused_step,
            **kwargs,
        )
        check_flag(self.registered_name, "amsgrad", amsgrad)
        self.amsgrad = amsgrad
        self.check_hyperparameters()

    @classmethod
    def has_built_in(cls, options: Mapping[str, Any]) -> bool:
        return not options.get("amsgrad", False)

    @property
    def arithmetic(self) -> Arithmetic:
        return Arithmetic("amsgrad") if self.amsgrad else super().arithmetic

    def arithmetics_of(
        self, weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> List[Arithmetic]:
        dense = self.arithmetic
        if not dense.rule.startswith("adam_mxnet"):
            return []
        # Of row_sparse gradients, MXNet squares first where all rows are updated, and MXNet 1 also
        # where they are clipped.
        clips = dense.rule == "adam_mxnet1" and gradient_bound(self) is not None
        if self.lazy_update and not clips:
            return []
        rows = replace(dense, rule=dense.rule.replace("adam", "adam_rows"))
        return by_storage(grads, dense, rows)

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: Tuple[NDArray, ...], s: SimpleNamespace
    ) -> None:
        m, v = state[:2]
        if s.rule not in ("adam", "amsgrad"):
            m[:] = s.beta1 * m + (1 - s.beta1) * grad
            unseen = 1 - s.beta2
            squared_first = s.rule.startswith("adam_rows")
            v[:] = s.beta2 * v + (unseen * square(grad) if squared_first else unseen * grad * grad)
            weight -= s.lr * m / (sqrt(v) + s.epsilon)
            return
        m[:] = s.beta1 * m + s.one_minus_beta1 * grad
        v[:] = s.beta2 * v + s.one_minus_beta2 * square(grad)
        scale = v
        if self.amsgrad:
            scale = state[2]
            scale[:] = maximum(scale, v)
        weight -= s.lr * (m / (sqrt(scale) + s.epsilon))


@register("amsgrad_ext")
class AMSGrad(Adam):
    """:class:`Adam` with ``amsgrad=True``; see there for the formula.

    Parameters
    ----------
    amsgrad : bool, default True
        Must be True.
    **kwargs
        Arguments of :class:`Adam`, with the same defaults.

    Raises
    ------
    TypeError
        If an argument does not exist.
    ValueError
        If a hyperparameter is out of its range, or `amsgrad` is False.

    Notes
    -----
    State for each weight: a tuple ``(m, v, largest)`` of three arrays of its shape and dtype.

    Source: S. J. Reddi, S. Kale, S. Kumar, *On the Convergence of Adam and Beyond*,
    arXiv 1904.09237, algorithm 2, which equals this class with ``correct_bias=False``.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "amsgrad_ext")
    >>> trainer.optimizer.amsgrad
    True
    """

    def __init__(self, *args: Any, amsgrad: bool = True, **kwargs: Any):
        if not amsgrad:
            raise ValueError(
                f"{self.registered_name}: amsgrad must be True, got {amsgrad!r}; "
                "use adam_ext instead"
            )
        super().__init__(*args, amsgrad=True, **kwargs)  # type: ignore[misc]  # Not in args too.
