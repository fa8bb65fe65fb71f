# SPDX-License-Identifier: Apache-2.0
"""BERTAdam."""

from typing import Any

from .adamw import AdamW
from .base import register


@register("bertadam_ext")
class BERTAdam(AdamW):
    r"""AdamW without correction of biases, as GluonNLP has it for BERT.

    For each weight::

        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        weight -= lr * (m / (sqrt(v) + epsilon) + wd * weight)

    Weights and states equal those of ``BERTAdam`` of GluonNLP 0.10 to the last bit: of MXNet's
    operator ``multi_adamw_update``, and of ``adamw_update`` for row_sparse gradients. With every
    MXNet.

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
    use_fused_step : bool, default True
        False computes with MXNet's operators instead of the native kernel; same bits.
    **kwargs
        What every optimizer takes; see :class:`mxadamax.optimizers.base.FusedOptimizer`.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range, and for ``correct_bias=True``, ``amsgrad=True`` and
        ``decoupled_wd=False``.

    Notes
    -----
    State for each weight: a tuple ``(m, v)`` of two arrays of its shape and dtype, GluonNLP's.

    GluonNLP's leaves out updates with a `rescale_grad` of 0; here they count.

    Source: J. Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers*,
    arXiv 1810.04805, in whose published code the optimizer has no correction of biases.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "bertadam_ext", {"wd": 0.01})
    >>> trainer.optimizer.correct_bias
    False
    """

    # What no installed MXNet has is the same with all of them.
    portable = AdamW.builtin[2]

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        use_fused_step: bool = True,
        decoupled_wd: bool = True,
        **kwargs: Any,
    ):
        for name in ("correct_bias", "amsgrad"):
            if kwargs.pop(name, False):
                raise ValueError(
                    f"{self.registered_name}: {name} must be False, got True; "
                    "adamw_ext is the one with it"
                )
        super().__init__(
            learning_rate,
            beta1,
            beta2,
            epsilon,
            correct_bias=False,
            use_fused_step=use_fused_step,
            decoupled_wd=decoupled_wd,
            **kwargs,
        )
