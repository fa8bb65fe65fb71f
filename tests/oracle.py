"""The rules in extended precision, written from the papers' formulas, apart from the code under test.

Each also returns how far a computation in a type with unit roundoff `unit` may be from it: the sum over
its operations of half a unit in the last place of each result and of each rounded constant, carried
on through the formula. A cancellation or a small denominator thus widens the bound by as much as it
must, and nowhere else.
"""

from __future__ import annotations

import numpy as np

precise = np.longdouble


def prepared_gradient(grad, weight, unit, *, rescale_grad=1.0, clip_gradient=None, wd=0.0):
    """MXNet's common preparation: rescale, clip, weight decay as an L2 penalty."""
    grad, weight = np.asarray(grad, precise), np.asarray(weight, precise)
    scaled = grad * precise(rescale_grad)
    if clip_gradient is not None:
        scaled = np.clip(scaled, -precise(clip_gradient), precise(clip_gradient))
    decay = precise(wd) * weight
    result = scaled + decay
    return result, unit * (2 * abs(scaled) + 2 * abs(decay) + abs(result))


def adamax(grad, grad_error, weight, state, t, unit, *, lr, beta1, beta2, epsilon):
    """arXiv 1412.6980, algorithm 2, with MXNet's epsilon.

    Returns (weight, m, u) after the step, and the error bound of each.
    """
    weight, (m, u) = np.asarray(weight, precise), (np.asarray(s, precise) for s in state)
    lr, beta1, beta2, epsilon = (precise(x) for x in (lr, beta1, beta2, epsilon))

    kept, added = beta1 * m, (1 - beta1) * grad
    m = kept + added
    m_error = unit * (2 * abs(kept) + 2 * abs(added) + abs(m)) + (1 - beta1) * grad_error

    kept = beta2 * u
    u = np.maximum(kept, abs(grad))
    u_error = 2 * unit * kept + grad_error

    denominator = u + epsilon
    denominator_error = u_error + unit * (epsilon + denominator)
    ratio = m / denominator
    ratio_error = (m_error + abs(ratio) * denominator_error) / denominator + unit * abs(ratio)
    change = lr / (1 - beta1**t) * ratio
    change_error = lr / (1 - beta1**t) * ratio_error + 2 * unit * abs(change)
    weight = weight - change
    return (weight, m, u), (change_error + unit * abs(weight), m_error, u_error)
