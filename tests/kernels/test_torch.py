# SPDX-License-Identifier: Apache-2.0
"""PyTorch's results, where its definitions meet MXNet's: how near, and under which options.

PyTorch itself is compared with where it is installed. Its formulas as documented, in double
precision, stand in for it everywhere.
"""

from __future__ import annotations

from typing import Any, Callable

import mxnet as mx
import numpy as np
import pytest
from common import nd

import mxadamax

SIZE, STEPS = 1000, 100
LR, WD, EPSILON = 0.01, 0.1, 1e-8
BETA1, BETA2 = 0.9, 0.95
RATES = {"beta1": BETA1, "beta2": BETA2}
BETAS = {"betas": (BETA1, BETA2)}
MOMENTUM = 0.9

# Of the largest weight: float32 on both sides, 100 steps, two orders of operations.
TOLERANCE = 2e-6


def start() -> np.ndarray:
    return np.random.RandomState(0).standard_normal(SIZE).astype("float32")


def gradients() -> list[np.ndarray]:
    """Of magnitudes far above `epsilon`, which is where its place does not matter.

    They fade, or else AMSGrad would do what Adam does.
    """
    rng = np.random.RandomState(1)
    signs = rng.choice([-1.0, 1.0], (STEPS, SIZE))
    fading = 0.96 ** np.arange(STEPS)[:, None]
    return list((signs * fading * 10.0 ** rng.uniform(-1, 1, (STEPS, SIZE))).astype("float32"))


def ours(optimizer: mx.optimizer.Optimizer) -> np.ndarray:
    updater = mx.optimizer.get_updater(optimizer)
    weight = nd(start())
    for grad in gradients():
        updater(0, nd(grad), weight)
    return weight.asnumpy()


def documented_adam(*, amsgrad: bool = False, decoupled: bool = False) -> np.ndarray:
    """torch.optim.Adam and AdamW as their pages define them."""
    w = start().astype("float64")
    m, v, largest = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for t, grad in enumerate(gradients(), 1):
        g = grad.astype("float64")
        if decoupled:
            w = w - LR * WD * w
        else:
            g = g + WD * w
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        largest = np.maximum(largest, v)
        corrected = (largest if amsgrad else v) / (1 - BETA2**t)
        w = w - LR * (m / (1 - BETA1**t)) / (np.sqrt(corrected) + EPSILON)
    return w


def documented_adamax() -> np.ndarray:
    """torch.optim.Adamax: epsilon is added to the gradient's magnitude, under the maximum."""
    w, m, u = start().astype("float64"), np.zeros(SIZE), np.zeros(SIZE)
    for t, grad in enumerate(gradients(), 1):
        g = grad + WD * w
        m = BETA1 * m + (1 - BETA1) * g
        u = np.maximum(BETA2 * u, np.abs(g) + EPSILON)
        w = w - LR * m / ((1 - BETA1**t) * u)
    return w


CASES: dict[
    str,
    tuple[
        Callable[[], mx.optimizer.Optimizer], Callable[[], np.ndarray], tuple[str, dict[str, Any]]
    ],
] = {
    "adam": (lambda: mxadamax.Adam(LR, **RATES, wd=WD), documented_adam, ("Adam", BETAS)),
    "amsgrad": (
        lambda: mxadamax.AMSGrad(LR, **RATES, wd=WD),
        lambda: documented_adam(amsgrad=True),
        ("Adam", {"amsgrad": True, **BETAS}),
    ),
    "adamw": (
        lambda: mxadamax.Adam(LR, **RATES, wd=WD, decoupled_wd=True),
        lambda: documented_adam(decoupled=True),
        ("AdamW", BETAS),
    ),
    "adamw, amsgrad": (
        lambda: mxadamax.AMSGrad(LR, **RATES, wd=WD, decoupled_wd=True),
        lambda: documented_adam(decoupled=True, amsgrad=True),
        ("AdamW", {"amsgrad": True, **BETAS}),
    ),
    "adamax": (lambda: mxadamax.Adamax(LR, **RATES, wd=WD), documented_adamax, ("Adamax", BETAS)),
}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


@pytest.mark.parametrize("name", CASES)
def test_as_documented(name: str) -> None:
    make, documented, _ = CASES[name]
    assert distance(ours(make()), documented()) < TOLERANCE


def test_distances_mean_something() -> None:
    """What the options stand for is far above the tolerance."""
    results = [documented() for _, documented, _ in CASES.values()]
    for k, one in enumerate(results):
        for other in results[k + 1 :]:
            assert distance(one, other) > 100 * TOLERANCE


TORCH: dict[str, tuple[Callable[[], mx.optimizer.Optimizer], tuple[str, dict[str, Any]]]] = {
    **{name: (make, torch) for name, (make, _, torch) in CASES.items()},
    "adam, maximize": (
        lambda: mxadamax.Adam(LR, **RATES, maximize=True),
        ("Adam", {"maximize": True, "wd": 0, **BETAS}),
    ),
    "adagrad": (lambda: mxadamax.AdaGrad(LR, wd=WD, epsilon=1e-10), ("Adagrad", {"eps": 1e-10})),
    "adadelta": (lambda: mxadamax.AdaDelta(1.0, wd=WD), ("Adadelta", {"lr": 1.0, "eps": 1e-6})),
    "rmsprop": (lambda: mxadamax.RMSProp(LR, wd=WD), ("RMSprop", {"alpha": 0.9})),
    "sgd": (lambda: mxadamax.SGD(LR, wd=WD), ("SGD", {})),
    "sgd, momentum": (lambda: mxadamax.SGD(LR, MOMENTUM, wd=WD), ("SGD", {"momentum": MOMENTUM})),
    "nag": (lambda: mxadamax.NAG(LR, wd=WD), ("SGD", {"momentum": MOMENTUM, "nesterov": True})),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_itself(name: str) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch to compare with")
    make, (of_torch, options) = TORCH[name]
    options = {"lr": LR, "weight_decay": WD, **options}
    options["weight_decay"] = options.pop("wd", options["weight_decay"])
    weight = torch.nn.Parameter(torch.from_numpy(start()))
    theirs = getattr(torch.optim, of_torch)([weight], **options)
    for grad in gradients():
        weight.grad = torch.from_numpy(grad)
        theirs.step()
    assert distance(ours(make()), weight.detach().numpy()) < TOLERANCE
