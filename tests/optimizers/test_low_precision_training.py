# SPDX-License-Identifier: Apache-2.0
"""Training with low-precision states: zero gradients, the largest step, averages over seeds, saving."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from common import Run, leaves, nd
from family import PORTABLE_FAMILY as FAMILY
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mxadamax import _native
from mxadamax.dtypes import STATE_TYPES

BLOCK = 64
SIZE = 65 * BLOCK + 13
"""The last block is short; and there are more than 4096 elements, so that the array is not small."""

STILL_STEPS = 500
BETA1, BETA2 = 0.9, 0.999
TINY = 1e-35
"""An epsilon that hides no denominator of zero."""


def rule_of(member):
    return _native.rules[member.create().rule]


def offers(member, state_dtype):
    rule = rule_of(member)
    fits = rule.supports_int8_state if state_dtype == "int8" else rule.supports_low_precision_state
    return rule.states > 0 and fits


def parametrized(members):
    return pytest.mark.parametrize(
        "member, state_dtype",
        [
            pytest.param(member, state_dtype, id=f"{member} {state_dtype}")
            for member in members
            for state_dtype in STATE_TYPES
            if offers(member, state_dtype)
        ],
    )


combinations = parametrized(FAMILY)


def has_low_precision(run, state_dtype):
    """Whether the states are of the type that a test is about."""
    first = leaves(run.updater.states[0])[0]
    return first.dtype == STATE_TYPES[state_dtype]


def start():
    """Weights, none of which is zero: zeros of either sign are other bits."""
    weights = np.random.RandomState(0).standard_normal(SIZE)
    return np.float32(weights + np.copysign(0.01, weights))


def directions(decades):
    """A gradient of elements that differ in size."""
    rng = np.random.RandomState(1)
    return 10.0 ** rng.uniform(-decades, 0, SIZE) * rng.choice([-1, 1], SIZE)


def noisy(seed, steps, decades=2.0):
    """Gradients that mostly have the directions above."""
    rng = np.random.RandomState(seed)
    for _ in range(steps):
        yield np.float32(directions(decades) * (rng.standard_normal(SIZE) + 0.5))


def array_bits(run):
    return [array.tobytes() for array in run.arrays()]


# Zero gradients

with_zero_gradients = parametrized([member for member in FAMILY if member.name != "lans_ext"])
"""LANS divides gradients by their norm."""


@with_zero_gradients
def test_zero_gradients_do_not_move_new_weights(member, state_dtype):
    """Stochastic rounding keeps zero: 500 steps change no bit of a weight or of a first moment."""
    run = Run(member.create(state_dtype=state_dtype, wd=0.0), [start()])
    zeros = np.zeros(SIZE, np.float32)
    for _ in range(STILL_STEPS):
        run.step([zeros])
    assert has_low_precision(run, state_dtype)
    assert run.weights[0].asnumpy().tobytes() == start().tobytes()
    # Only the first: AdaBelief adds epsilon to the second.
    first = leaves(run.updater.states[0])[0].asnumpy()
    assert not any(first.tobytes())


@functools.lru_cache(maxsize=None)
def still_path(position, state_dtype):
    """The weights after some steps with gradients, and the lengths of the steps without."""
    member = FAMILY[position]
    options = {} if state_dtype is None else {"state_dtype": state_dtype}
    run = Run(member.create(wd=0.0, **options), [start()])
    for grad in noisy(1, 10):
        run.step([grad])
    zeros = np.zeros(SIZE, np.float32)
    weights = [run.weights[0].asnumpy()]
    for _ in range(STILL_STEPS):
        run.step([zeros])
        weights.append(run.weights[0].asnumpy())
    assert state_dtype is None or has_low_precision(run, state_dtype)
    steps = np.diff(np.array(weights, np.float64), axis=0)
    return weights[-1], np.sqrt((steps**2).sum(axis=1))


@with_zero_gradients
def test_zero_gradients_move_weights_no_farther_than_with_float32_states(member, state_dtype):
    """After some steps, 500 without gradients are at most a tenth longer in sum, and finite.

    A first moment moves the weights until it has decayed. Its mean over many roundings is float32's,
    and zero stays zero; the variance of rounding adds to the square of a step's length. Lion and
    Signum take signs: they move less, since a moment in low precision reaches zero. All steps of
    LAMB have the same length.
    """
    _, expected = still_path(FAMILY.index(member), None)
    weights, found = still_path(FAMILY.index(member), state_dtype)
    assert np.all(np.isfinite(weights))
    assert found.sum() <= 1.1 * expected.sum()


# The largest step

BOUNDED = [
    member
    for member in FAMILY
    if member.name
    in ("adamax_ext", "adam_ext", "amsgrad_ext", "adamw_ext", "nadam_ext", "adabelief_ext")
]


def kept_ratio(state_dtype, in_range, ratio):
    """Bound the ratio of a first moment to a denominator after both have been rounded.

    - 8 bits keep the ratio itself, relative to the largest of its block, which none exceeds; what
      becomes of the denominator does not matter, as the moment is stored in units of it.
    - bfloat16 has 8 significant bits, so stochastic rounding changes a number by less than 2^-7 of
      it. At worst, the moment goes up and the denominator down.
    - float16 does so by 2^-10, above its smallest normal number. The moment can be less than that
      where its gradients cancel out, and is then off by an even smaller part of its denominator.
    - Anywhere else in float16, a moment m and a denominator u are off by one smallest number s, and
      u is not less than s: (m + s) / max(s, u - s) is at most 2 m / u + 1. Beyond its largest
      number both become that, and their ratio 1.
    """
    if state_dtype == "int8":
        return ratio
    if state_dtype == "float16" and not in_range:
        return 2 * ratio + 1
    unit = {"bfloat16": 2.0**-7, "float16": 2.0**-10}[state_dtype]
    return ratio * (1 + unit) / (1 - unit) + (unit if state_dtype == "float16" else 0)


def largest_steps(name, state_dtype, in_range) -> Iterator[float]:
    """Bound the steps 1, 2, 3, ... of one element with a learning rate of 1, for any gradients.

    From a bound r on |m| / u before a step, where u is the denominator (Adam's root of v), follows
    one on the ratio r' after it, with g the gradient and b1, b2 the decay rates:

    - Adamax: m' = b1 m + (1 - b1) g and u' = max(b2 u, |g|), so r' <= b1 / b2 r + 1 - b1.
    - Adam: m' is the same and u'^2 = b2 u^2 + (1 - b2) g^2; by Cauchy and Schwarz
      r'^2 <= b1^2 / b2 r^2 + (1 - b1)^2 / (1 - b2). AMSGrad's denominator is no less.
    - AdaBelief: in x = g - m, m' = m + (1 - b1) x and u'^2 >= b2 u^2 + (1 - b2) (b1 x)^2, so
      r'^2 <= r^2 / b2 + (1 - b1)^2 / ((1 - b2) b1^2).

    The step is r' times the correction of biases. Nadam adds a share of |g| / u', which is at most
    1 / sqrt(1 - b2). Between steps, `kept_ratio` bounds what rounding makes of r. Exactly rounded,
    this gives Adamax's steps 1.009 at most, and Adam's 1 first and 7.3 at last.
    """
    ratio, product = 0.0, 1.0
    t = 0
    while True:
        t += 1
        if name == "adamax_ext":
            ratio = BETA1 / BETA2 * ratio + 1 - BETA1
            correction = 1 / (1 - BETA1**t)
        else:
            factor, added = BETA1**2 / BETA2, (1 - BETA1) ** 2 / (1 - BETA2)
            if name == "adabelief_ext":
                factor, added = 1 / BETA2, added / BETA1**2
            ratio = math.sqrt(factor * ratio**2 + added)
            correction = math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
        if name == "nadam_ext":
            now, following = (BETA1 * (1 - 0.5 * 0.96 ** (0.004 * k)) for k in (t, t + 1))
            product *= now
            ahead = following * ratio / (1 - product * following)
            ahead += (1 - now) / math.sqrt(1 - BETA2) / (1 - product)
            yield ahead * math.sqrt(1 - BETA2**t)
        else:
            yield correction * ratio
        ratio = kept_ratio(state_dtype, in_range, ratio)


@st.composite
def histories(draw, low, high):
    """Gradients of a block at some steps: magnitudes between powers of ten, far apart or not, zeros
    in any pattern, and scales that change by a million from one step to the next."""
    steps = draw(st.integers(1, 12))
    scale = draw(st.floats(low, high))
    spread = draw(hnp.arrays(np.float64, BLOCK, elements=st.floats(-8, 8)))
    jumps = draw(st.lists(st.sampled_from([0, 0, -6, 6]), min_size=steps, max_size=steps))
    signs = st.sampled_from([0, 1, -1])
    signs = draw(hnp.arrays(np.int64, (steps, BLOCK), elements=signs, fill=signs))
    powers = scale + np.cumsum(jumps)[:, None] + spread
    return np.float32(signs * 10.0 ** np.clip(powers, low, high))


SPANS = {"whole": (-30, 30), "squares": (-15, 15), "float16": (-2, 4.7)}
"""Powers of ten: what float32 has; those whose squares it has; those that float16 has as normal
numbers, with those of first moments and of roots."""


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@parametrized(BOUNDED)
def test_no_step_explodes(member, state_dtype, data, seed):
    """Each step is bounded as `largest_steps` derives, for any gradients, with next to no epsilon."""
    kind = "whole" if member.name == "adamax_ext" else "squares"
    in_range = state_dtype != "float16" or data.draw(st.booleans())
    if state_dtype == "float16" and in_range:
        kind = "float16"
    history = data.draw(histories(*SPANS[kind]))
    options = {"state_dtype": state_dtype, "state_seed": seed, "epsilon": TINY, "wd": 0.0}
    run = Run(member.create(learning_rate=1.0, **options), [np.zeros(SIZE, np.float32)])
    bounds = largest_steps(member.name, state_dtype, in_range)
    for t, (grad, bound) in enumerate(zip(history, bounds), 1):
        # From zero, the weight is the step.
        run.weights[0][:] = 0
        # The same block many times: each is rounded otherwise.
        run.step([np.resize(grad, SIZE)])
        step = np.abs(run.weights[0].asnumpy())
        assert step.max() <= 1.001 * bound, f"step {t}"
    assert has_low_precision(run, state_dtype)


@settings(max_examples=10, deadline=None)
@given(history=histories(-30, 17.5), seed=st.integers(0, 2**32 - 1))
@parametrized([member for member in BOUNDED if member.name != "adamax_ext"])
def test_no_step_explodes_where_squares_vanish(member, state_dtype, history, seed):
    """Where the squares of gradients underflow float32, epsilon is the denominator."""
    options = {"state_dtype": state_dtype, "state_seed": seed, "wd": 0.0}
    run = Run(member.create(learning_rate=1.0, **options), [np.zeros(SIZE, np.float32)])
    bounds = largest_steps(member.name, state_dtype, state_dtype != "float16")
    for t, (grad, bound) in enumerate(zip(history, bounds), 1):
        run.weights[0][:] = 0
        run.step([np.resize(grad, SIZE)])
        assert np.abs(run.weights[0].asnumpy()).max() <= 1.001 * bound, f"step {t}"


# Averages over seeds

SEEDS, FEW_STEPS = 48, 4
DITHER = {"lion_ext": 0.6, "signum_ext": 5.0}
"""For rules that take a sign: the gradient that turns it in most elements, in units of previous ones."""


def few_steps(member, seed, **options):
    """Return how far weights go in a few steps; for Lion and Signum, in one more.

    The gradients of that step are dither: of any size, up to one that turns the sign. So the mean
    sign over elements and seeds is proportional to the state.
    """
    # Steps that are not lost in the rounding of weights.
    options = {"wd": 0.0, "learning_rate": 10.0, "state_seed": seed, **options}
    run = Run(member.create(**options), [start()])
    for grad in noisy(2, FEW_STEPS, decades=1.0):
        run.step([grad])
    before = start()
    if member.name in DITHER:
        before = run.weights[0].asnumpy()
        factor = np.random.RandomState(seed).uniform(-1, 1, SIZE) * DITHER[member.name]
        run.step([np.float32(factor * directions(1.0))])
    if "state_dtype" in options:
        assert has_low_precision(run, options["state_dtype"])
    return run.weights[0].asnumpy().astype(np.float64) - before


@functools.lru_cache(maxsize=None)
def few_steps_in_float32(position):
    """Return the same for each seed, on which only the dither depends."""
    member = FAMILY[position]
    if member.name in DITHER:
        return np.array([few_steps(member, seed) for seed in range(SEEDS)])
    return few_steps(member, 0)


@combinations
def test_the_average_over_seeds_is_that_of_float32_states(member, state_dtype):
    """Rounding has no bias: the difference is within its standard error after a few steps."""
    expected = few_steps_in_float32(FAMILY.index(member))
    found = np.array([few_steps(member, seed, state_dtype=state_dtype) for seed in range(SEEDS)])
    assert np.any(found != expected)
    if member.name in DITHER:
        means = ((found - expected) * np.sign(directions(1.0))).mean(axis=1)
        assert abs(means.mean()) < 3 * means.std(ddof=1) / math.sqrt(SEEDS)
        return
    # Not element by element: of an element that hardly ever rounds up, few seeds show how often.
    distance = ((found.mean(axis=0) - expected) ** 2).sum()
    error = (found.var(axis=0, ddof=1) / SEEDS).sum()
    assert 0 < distance < 1.5 * error


# Saved and loaded


@pytest.mark.quick
@combinations
def test_saved_in_the_middle_of_training(member, state_dtype):
    """Training goes on with the same bits, also if the optimizer that loads had another seed."""

    def make(seed):
        return Run(member.create(state_dtype=state_dtype, state_seed=seed), [start()])

    grads = list(noisy(4, 6))
    whole = make(7)
    saved = []
    for grad in grads:
        saved.append((whole.weights[0].asnumpy(), whole.updater.get_states(dump_optimizer=True)))
        whole.step([grad])
    assert has_low_precision(whole, state_dtype)
    for t in (1, 3, 5):
        weights, states = saved[t]
        rest = make(8)
        rest.weights[0][:] = nd(weights)
        rest.updater.set_states(states)
        rest.optimizer = rest.updater.optimizer
        for grad in grads[t:]:
            rest.step([grad])
        assert array_bits(rest) == array_bits(whole), f"saved before step {t + 1}"
