# SPDX-License-Identifier: Apache-2.0
"""All types, kinds of gradients and options with one another, against the formulas.

Each step is compared on its own: from what the arrays hold before it, the formulas of arXiv
1412.6980 (1904.09237 for AMSGrad) say in float64 what they must hold after it, to within the
rounding errors of the type that is computed with, and one rounding to the type that is stored.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import mxnet as mx
import numpy as np
import pytest
from common import leaves, nd
from family import PORTABLE_FAMILY as FAMILY
from half_reference import TYPES, decoded, encoded
from hypothesis import given, settings
from hypothesis import strategies as st

from mxadamax import _native
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.dtypes import BFLOAT16

LR, BETA1, BETA2, EPSILON = 0.0123, 0.9, 0.96875, 1e-8
WD, CLIP, RESCALE = 0.013, 0.375, 1 / 3
NORM, DECAY = 3.0, 0.8
COMMON = {
    "learning_rate": LR,
    "beta1": BETA1,
    "beta2": BETA2,
    "epsilon": EPSILON,
    "wd": WD,
    "clip_gradient": CLIP,
    "rescale_grad": RESCALE,
}
STEPS = 4
BLOCK = 64

NAMES = ("adamax_ext", "adam_ext", "amsgrad_ext")
DTYPES = ("float32", "float64", "float16", "bfloat16")
KINDS = ("dense", "row_sparse", "lazy")
STATE_DTYPES = (None, "float16", "bfloat16", "int8")


class Case(NamedTuple):
    """One cell of the table."""

    name: str
    dtype: str
    multi_precision: bool
    kind: str
    state_dtype: str | None

    def __str__(self) -> str:
        master = "master" if self.multi_precision else "single"
        return f"{self.name}-{self.dtype}-{master}-{self.kind}-{self.state_dtype}"

    @property
    def short(self) -> bool:
        return self.dtype in TYPES

    @property
    def has_master(self) -> bool:
        return self.multi_precision and self.short

    @property
    def unit(self) -> float:
        """An upper bound of one relative rounding error; for float64 of the two of both sides."""
        return 2.0**-52 if self.dtype == "float64" else 2.0**-24

    @property
    def refusal(self) -> str | None:
        if self.name == "amsgrad_ext" and self.state_dtype == "int8":
            return "state_dtype must be None with rule 'amsgrad', got 'int8'"
        if self.dtype == "float64" and self.state_dtype:
            return "parameter 0: weight has dtype float64, expected .* with state_dtype"
        if self.kind != "dense" and self.state_dtype == "int8":
            return "parameter 1: gradient is row_sparse, .* with state_dtype='int8'"
        return None

    def create(self, clip: bool, skip: bool, average: bool) -> mx.optimizer.Optimizer:
        return mx.optimizer.create(
            self.name,
            **COMMON,
            numerics="portable",
            multi_precision=self.multi_precision,
            lazy_update=self.kind == "lazy",
            state_dtype={".*": self.state_dtype} if self.state_dtype else None,
            clip_global_norm=NORM if clip else None,
            skip_nonfinite=skip,
            ema_decay=DECAY if average else None,
        )


TABLE = [Case(*row) for row in itertools.product(NAMES, DTYPES, (False, True), KINDS, STATE_DTYPES)]
options = [
    pytest.mark.parametrize("clip", [False, True], ids=["free", "norm"]),
    pytest.mark.parametrize("skip", [False, True], ids=["all", "skip"]),
    pytest.mark.parametrize("average", [False, True], ids=["last", "average"]),
]


def all_options(test):
    return functools.reduce(lambda found, mark: mark(found), options, test)


def shapes_of(kind):
    """More than one block that is converted at a time, and the ends of blocks with one scale."""
    if kind == "dense":
        return [(BLOCK, 2), (), (530,)]
    return [(3, 5), (9, 2, 3), (200, 3)]


def array_of(values, dtype):
    return nd(np.asarray(values, np.float64)).astype(TYPES.get(dtype, dtype))


def numbers(array):
    """What an array holds, in float64."""
    if array.dtype == BFLOAT16:
        array = decoded(array.view(np.uint16).ravel(), "bfloat16").reshape(array.shape)
    return array.astype(np.float64)


class Gradients(NamedTuple):
    """Of all parameters in one step: as given, in float64, and the rows that they name."""

    arrays: list
    values: list
    rows: list


@functools.lru_cache(maxsize=None)
def gradients(dtype, kind):
    """Large and small ones in turn, so that the norm is clipped sometimes."""
    rng = np.random.RandomState(7)
    return [
        gradients_of_step(dtype, kind, rng, 1.0 if t % 2 else 0.05, no_rows=t == 2)
        for t in range(STEPS)
    ]


@functools.lru_cache(maxsize=None)
def gradients_not_finite(dtype, kind, value):
    return gradients_of_step(dtype, kind, np.random.RandomState(8), 1.0, value)


def gradients_of_step(dtype, kind, rng, size, bad=None, no_rows=False):
    found = Gradients([], [], [])
    shapes = shapes_of(kind)
    for k, shape in enumerate(shapes):
        values = rng.standard_normal(shape) * 10.0 ** rng.uniform(-2, 1, shape) * size
        is_sparse = kind != "dense" and k > 0
        rows = np.flatnonzero(rng.rand(shape[0]) < 0.4) if is_sparse else ...
        if is_sparse and k == 1 and no_rows:
            rows = np.arange(0)
        if is_sparse:
            values[np.setdiff1d(np.arange(shape[0]), rows)] = 0
        if bad is not None and k == len(shapes) - 1:
            values[(rows[-1], ..., -1) if is_sparse else -1] = bad
        array = array_of(values, dtype)
        found.values.append(numbers(array.asnumpy()))
        if is_sparse:
            # The one way to a row_sparse array of bfloat16 that this MXNet has.
            array = array.tostype("row_sparse")
            assert np.array_equal(array.indices.asnumpy(), rows)
        found.arrays.append(array)
        found.rows.append(rows)
    return found


@functools.lru_cache(maxsize=None)
def slow():
    return mx.nd.zeros((300, 300))


def write_late(array):
    """Write zeros to an array of matrix shape once the engine has come so far."""
    rows, columns = array.shape
    mx.nd.cast(mx.nd.dot(slow(), slow())[:rows, :columns], dtype=array.dtype, out=array)


class Held(NamedTuple):
    """What is stored for one parameter, and what its weight, states and average are in float64."""

    arrays: list
    weight: Any
    states: list
    average: Any


class Training:
    """Weights with an optimizer and its updater, as a Trainer holds them."""

    def __init__(self, case, clip, skip, average):
        self.case = case
        self.average = average
        self.optimizer = case.create(clip, skip, average)
        self.updater = mx.optimizer.get_updater(self.optimizer)
        rng = np.random.RandomState(1)
        self.weights = [
            array_of(rng.standard_normal(shape), case.dtype) for shape in shapes_of(case.kind)
        ]

    def step(self, grads):
        self.updater(list(range(len(self.weights))), list(grads.arrays), list(self.weights))

    def held(self):
        return [
            self.held_for(weight, self.updater.states[k]) for k, weight in enumerate(self.weights)
        ]

    def held_for(self, weight, state):
        arrays = [weight]
        if self.case.has_master:
            master, state = state
            arrays.append(master)
        average = None
        if self.average:
            state, average = state
        arrays += [*leaves(state), *([average] if self.average else [])]
        arrays = [array.asnumpy() for array in arrays]
        first = 2 if self.case.has_master else 1
        states = arrays[first : len(arrays) - self.average]
        return Held(
            arrays,
            numbers(arrays[first - 1]),
            self.decoded_states(states),
            numbers(arrays[-1]) if self.average else None,
        )

    def decoded_states(self, states):
        if self.case.state_dtype == "int8":
            ratios, *codes, scales = states
            of_ratios, *bases = of_elements(scales, ratios.shape)
            divisors = [denominators(*each) for each in zip(codes, bases)]
            m = of_ratios * (ratios / 127.0) * (divisors[-1] + EPSILON)
            return [m, *(d if self.case.name == "adamax_ext" else d**2 for d in divisors)]
        found = [numbers(state) for state in states]
        if self.case.state_dtype and self.case.name != "adamax_ext":
            found[1:] = [root**2 for root in found[1:]]
        return found


def of_elements(scales, shape):
    """For each state the scale that each element shares with its block."""
    size = math.prod(shape)
    assert len(scales) == -(-size // BLOCK)
    assert scales.dtype == np.float32
    repeated = np.repeat(scales.astype(np.float64), BLOCK, axis=0)[:size]
    return [column.reshape(shape) for column in repeated.T]


def denominators(codes, bases):
    """What codes stand for: 16 of them for each doubling of the sum with the base."""
    octave, sixteenths = np.divmod(codes.view(np.uint8).astype(np.int64), 16)
    return bases * (np.ldexp(1 + sixteenths / 16.0, octave) - 1)


def places(values, bases):
    """The codes of denominators, as real numbers."""
    fraction, exponent = np.frexp(values / bases + 1)
    return 16 * (exponent - 1 + 2 * fraction - 1)


class Expected(NamedTuple):
    """What the formulas give, each with how far rounding errors of the step may lead from it."""

    weight: tuple
    m: tuple
    squares: list
    divisor: tuple


def formulas(case, held, grad, scale, t):
    """One step in float64.

    Each tolerance is the number of operations times the size of what goes into them, which where
    signs differ is larger than the result, carried on to first order.
    """
    unit, w, m, second = case.unit, held.weight, held.states[0], held.states[1]
    clipped = np.clip(grad * scale, -CLIP, CLIP)
    g, size = clipped + WD * w, abs(clipped) + abs(WD * w)

    new_m = BETA1 * m + (1 - BETA1) * g
    m_error = 10 * unit * (BETA1 * abs(m) + (1 - BETA1) * size)
    if case.name == "adamax_ext":
        squares = []
        divisor = np.maximum(BETA2 * second, abs(g))
        divisor_error = 8 * unit * np.maximum(BETA2 * second, size)
        rate = LR / (1 - BETA1**t)
    else:
        v = BETA2 * second + (1 - BETA2) * g**2
        v_error = 12 * unit * (BETA2 * second + (1 - BETA2) * size**2)
        squares = [(v, v_error)]
        if case.name == "amsgrad_ext":
            largest = held.states[2]
            squares.append((np.maximum(largest, v), np.maximum(v_error, 4 * unit * largest)))
        divisor, divisor_error = root_of(*squares[-1], unit)
        rate = LR * math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    below = divisor + EPSILON
    step = rate * new_m / below
    new_w = w - step
    w_error = 2 * unit * abs(new_w) + 6 * unit * abs(step)
    w_error += rate * (m_error + abs(new_m) * divisor_error / below) / below
    return Expected((new_w, w_error), (new_m, m_error), squares, (divisor, divisor_error))


def root_of(square, error, unit):
    root = np.sqrt(square)
    with np.errstate(divide="ignore", invalid="ignore"):
        carried = np.where(root > 0, np.minimum(error / root, np.sqrt(error)), np.sqrt(error))
    return root, carried + unit * root


def spacing(values, name):
    """The distance of neighbouring 16-bit numbers around values."""
    digits, least = {"float16": (11, -24), "bfloat16": (8, -133)}[name]
    return np.ldexp(1.0, np.maximum(np.frexp(abs(values))[1] - digits, least))


def assert_near(found, expected, error, what):
    found, expected, error = np.broadcast_arrays(found, expected, error)
    wrong = ~(abs(found - expected) <= error)
    if np.any(wrong):
        at = np.flatnonzero(wrong)[:4]
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} differ, at {at}: {found.ravel()[at]} for "
            f"{expected.ravel()[at]} within {error.ravel()[at]}"
        )


def assert_stored(found, expected, name, what, levels=0.5):
    """Like `assert_near`, after one rounding to a type of 16 bits if it is one."""
    values, error = expected
    if name in TYPES:
        error = error + levels * spacing(abs(values) + error, name)
    assert_near(found, values, error, what)


def type_name(array):
    return "bfloat16" if array.dtype == BFLOAT16 else array.dtype.name


def check_states(case, arrays, expected):
    """Arrays of a rule's own state, with those in low precision within one level of the formulas."""
    m, *others = arrays
    seconds = expected.squares or [expected.divisor]
    if case.state_dtype is None:
        name = "float32" if case.has_master else case.dtype
        for k, (array, exact) in enumerate(zip(arrays, [expected.m, *seconds])):
            assert type_name(array) == name
            assert_stored(numbers(array), exact, name, f"state {k}")
        return
    if expected.squares:
        seconds = [root_of(*square, case.unit) for square in expected.squares]
    if case.state_dtype == "int8":
        check_int8(case, arrays, expected.m, seconds)
        return
    name = case.state_dtype
    assert_stored(numbers(m), expected.m, name, "m", levels=1)
    for k, (array, exact) in enumerate(zip(others, seconds)):
        assert type_name(array) == type_name(m) == name
        assert_stored(numbers(array), exact, name, f"divisor {k}", levels=1)
        assert np.all((numbers(array) > 0) == (exact[0] > 0))


def check_int8(case, arrays, m, seconds):
    """Ratios and denominators within one level of the formulas, as their scales are."""
    ratios, *codes, scales = arrays
    assert {array.dtype for array in arrays[:-1]} == {np.dtype("int8")}
    assert scales.shape[1] == len(codes) + 1
    of_ratios, *bases = of_elements(scales, ratios.shape)
    divisor, divisor_error = seconds[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = divisor + EPSILON
        ratio = m[0] / whole
        ratio_error = (m[1] + abs(ratio) * divisor_error) / whole + 4 * case.unit * abs(ratio)
        level, level_error = ratio / of_ratios * 127, ratio_error / of_ratios * 127
    flat, errors = abs(ratio).ravel(), ratio_error.ravel()
    for block in range(len(scales)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        assert_near(scales[block, 0], flat[part].max(), errors[part].max(), "scale")
        for k, (exact, error) in enumerate(seconds, 1):
            largest, off = np.ravel(exact)[part].max(), np.ravel(error)[part].max()
            base = float(scales[block, k])
            assert math.frexp(base)[0] == 0.5, "a power of two"
            # The largest is less than 31/16 of 2^15 bases, and not of half as many.
            assert largest - off < base * 2.0**15 * 31 / 16, "base"
            assert largest + off >= base * 2.0**14 * (31 / 16 - 2.0**-14), "base"
    # Random bits decide about 2**-16 of a level.
    assert_near(ratios, level, 1 + 2.0**-15 + level_error, "ratio")
    for k, ((exact, error), own, base) in enumerate(zip(seconds, codes, bases)):
        own = own.view(np.uint8).astype(np.float64)
        # To one code below or above, and to the least one from anything but zero.
        low, high = places(np.maximum(exact - error, 0), base), places(exact + error, base)
        off = 16 * 2 * case.unit + 2.0**-15
        assert np.all(own > np.minimum(low, 255) - 1 - off), f"denominator {k}"
        assert np.all(own < np.maximum(high + off, 0) + 1), f"denominator {k}"
        assert np.all((own > 0) == (exact > 0))


def check_step(case, before, after, grad, rows, scale, t):
    """One parameter; rows that a lazy update leaves alone to the last bit."""
    touched = rows if case.kind == "lazy" else ...
    for old, new in zip(before.arrays, after.arrays):
        assert old.dtype == new.dtype
        if touched is not ...:
            rest = np.setdiff1d(np.arange(len(old)), touched)
            assert old[rest].tobytes() == new[rest].tobytes(), "a row that has no gradient"
    if touched is not ...:
        before, after = (at_rows(held, touched) for held in (before, after))
        grad = grad[touched]
    expected = formulas(case, before, grad, scale, t)

    exact = expected.weight
    assert_stored(after.weight, exact, "float32" if case.has_master else case.dtype, "weight")
    if case.has_master:
        rounded = encoded(np.ravel(after.arrays[1]), case.dtype)
        assert np.array_equal(np.ravel(after.arrays[0]).view(np.uint16), rounded)
    first = 2 if case.has_master else 1
    check_states(
        case, after.arrays[first : len(after.arrays) - (after.average is not None)], expected
    )
    if after.average is not None:
        assert after.arrays[-1].dtype == ("float64" if case.dtype == "float64" else "float32")
        # Of what has been computed, before it is rounded to 16 bits.
        if not case.short or case.has_master:
            exact = after.weight, 0.0
        share = (1 - DECAY) / (1 - DECAY**t)
        old, new = (1 - share) * before.average, share * exact[0]
        error = 4 * case.unit * (abs(old) + abs(new)) + share * exact[1]
        assert_near(after.average, old + new, error, "average")


def at_rows(held, rows):
    average = held.average if held.average is None else held.average[rows]
    return Held(
        [array[rows] for array in held.arrays],
        held.weight[rows],
        [state[rows] for state in held.states],
        average,
    )


@all_options
@pytest.mark.parametrize("case", [case for case in TABLE if not case.refusal], ids=str)
def test_each_step(case, clip, skip, average):
    training = Training(case, clip, skip, average)
    factors = set()
    before, skipped = None, 0
    for t, grads in enumerate(gradients(case.dtype, case.kind), 1):
        if before is None:
            before = start_of(training)
        elif skip and t == 2:
            training.step(gradients_not_finite(case.dtype, case.kind, math.nan))
            skipped += 1
            for old, new in zip(before, training.held()):
                for a, b in zip(old.arrays, new.arrays):
                    assert a.tobytes() == b.tobytes(), "a step that was to be skipped"
        elif skip and t == 4:
            # Whose outcome is not known yet where the next step is handed over.
            bad = gradients_not_finite(case.dtype, case.kind, math.inf)
            write_late(bad.arrays[0])
            training.step(bad)
            skipped += 1
        training.step(grads)
        after = training.held()
        norm = RESCALE * math.sqrt(sum(np.sum(values**2) for values in grads.values))
        factor = min(1.0, NORM / norm) if clip else 1.0
        factors.add(factor)
        for k, (old, new) in enumerate(zip(before, after)):
            try:
                check_step(case, old, new, grads.values[k], grads.rows[k], RESCALE * factor, t)
            except AssertionError as error:
                raise AssertionError(f"step {t}, parameter {k}: {error}") from error
        if clip:
            assert training.optimizer.gradient_norm == pytest.approx(norm, rel=1e-13)
        before = after
    assert training.optimizer.skipped_steps == skipped
    if clip:
        assert min(factors) < 0.5
        assert max(factors) == 1


def start_of(training):
    """States as the updater will make them: zeros, the average and the master as the weight."""
    case, found = training.case, []
    for k, weight in enumerate(training.weights):
        state = training.optimizer.create_state_multi_precision(k, weight)
        held = training.held_for(weight, state)
        values = numbers(weight.asnumpy())
        assert np.array_equal(held.weight, values)
        assert not np.any(held.states)
        assert len(held.states) == (3 if case.name == "amsgrad_ext" else 2)
        assert held.average is None or np.array_equal(held.average, values)
        found.append(held)
    return found


@all_options
@pytest.mark.parametrize("case", [case for case in TABLE if case.refusal], ids=str)
def test_refused_by_name(case, clip, skip, average):
    """Where it is created, or at the first step; then nothing has been written."""
    message = f"^{case.name}: {case.refusal}"
    if case.name == "amsgrad_ext" and case.state_dtype == "int8":
        with pytest.raises(ValueError, match=message):
            case.create(clip, skip, average)
        return
    training = Training(case, clip, skip, average)
    before = start_of(training)
    with pytest.raises(ValueError, match=message):
        training.step(gradients(case.dtype, case.kind)[0])
    for old, new in zip(before, training.held()):
        for a, b in zip(old.arrays, new.arrays):
            assert a.tobytes() == b.tobytes()
    assert training.optimizer._index_update_count == {}
    assert training.optimizer.num_update == 0
    assert training.optimizer.skipped_steps == 0


drawn_options = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.just(0.0) | st.floats(1e-30, 0.01),
        "wd": st.just(0.0) | st.floats(1e-30, 0.1),
        "clip_gradient": st.none() | st.floats(0.01, 10),
        "rescale_grad": st.sampled_from([1.0, -0.5, 1 / 3]),
        "clip_global_norm": st.none() | st.floats(0.01, 100) | st.just(math.inf),
        "skip_nonfinite": st.booleans(),
        "ema_decay": st.none() | st.floats(0, 1, exclude_max=True),
        "state_dtype": st.sampled_from(STATE_DTYPES),
        "state_seed": st.integers(0, 2**20 - 1),
        "multi_precision": st.booleans(),
        "lazy_update": st.booleans(),
        "use_fused_step": st.booleans(),
        "decoupled_wd": st.booleans(),
        "maximize": st.booleans(),
        "aggregate_num": st.sampled_from([None, 0, 1, 2, np.inf]),
        "begin_num_update": st.integers(0, 3),
    },
)
drawn_shapes = st.lists(st.integers(1, 7), max_size=3).map(tuple) | st.tuples(st.integers(0, 600))
drawn_parameters = st.lists(
    st.tuples(drawn_shapes, st.sampled_from(DTYPES), st.booleans()), min_size=1, max_size=4
)


def conflicts(member, options, parameters):
    """Whether these options or parameters are said not to go together."""
    state_dtype, fused = options.get("state_dtype"), options.get("use_fused_step", True)
    whole_model = options.get("clip_global_norm") is not None or options.get("skip_nonfinite")
    if whole_model and options.get("aggregate_num") not in (None, np.inf):
        return True
    if IS_MXNET_1 and whole_model and len({dtype for _, dtype, _ in parameters}) > 1:
        return True
    if member.name == "adamw_ext" and not options.get("decoupled_wd", True):
        return True
    if member.name in ("ftml_ext", "ftrl_ext") and options.get("learning_rate") == 0:
        return True
    if member.ours.get("schedule_per_parameter") and options.get("skip_nonfinite"):
        return True
    if not fused:
        return bool(state_dtype or options.get("lazy_update"))
    if state_dtype is None:
        return False
    if member.options.get("centered") or any(dtype == "float64" for _, dtype, _ in parameters):
        return True
    sparse = any(sparse for _, _, sparse in parameters)
    rule = _native.rules[member.create().rule]
    if not rule.supports_low_precision_state:
        return True
    return state_dtype == "int8" and (sparse or not rule.supports_int8_state)


@settings(max_examples=300, deadline=None)
@given(
    # A gradient of zeros makes the weights of LANS NaN, as in the built-in.
    st.sampled_from([member for member in FAMILY if member.name != "lans_ext"]),
    drawn_options,
    drawn_parameters,
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
)
def test_any_combination_works_or_is_refused_by_name(member, options, parameters, seed, steps):
    parameters = [
        (shape, dtype, sparse and bool(shape) and math.prod(shape) > 0)
        for shape, dtype, sparse in parameters
    ]
    rng = np.random.RandomState(seed)
    with mx.util.np_shape(True):
        weights = [array_of(rng.standard_normal(shape), dtype) for shape, dtype, _ in parameters]
        indices = list(range(len(weights)))
        refused = False
        try:
            dtype = options.get("state_dtype")
            # Of small arrays, too.
            given = {"state_dtype": {".*": dtype}} if dtype else {}
            optimizer = member.create(**{**options, **given})
            updater = mx.optimizer.get_updater(optimizer)
            for _ in range(steps):
                grads = []
                for shape, dtype, sparse in parameters:
                    values = rng.standard_normal(shape) * (rng.rand(*shape) < 0.7)
                    array = array_of(values, dtype)
                    grads.append(array.tostype("row_sparse") if sparse else array)
                updater(list(indices), grads, list(weights))
        except ValueError as error:
            refused = True
            message = str(error)
            assert re.match(rf"{member.name}: (parameter \d: )?", message)
            assert any(name in message for name in options), message
        assert refused == conflicts(member, options, parameters)
        for weight in weights:
            assert np.all(np.isfinite(numbers(weight.asnumpy())))
