# SPDX-License-Identifier: Apache-2.0
"""8-bit states of earlier versions in the present format: built from arrays, number by number."""

from __future__ import annotations

import pickle
import struct
from typing import NamedTuple

import mxnet as mx
import numpy as np
import pytest
from common import nd
from mxnet import gluon

import mxadamax
from mxadamax.optimizers import int8_format
from mxadamax.optimizers.int8_format import (
    convert_in_place,
    converted,
    decode_denominators,
    encode_denominators,
    offsets_of,
)

pytestmark = pytest.mark.quick
BLOCK = 64


class Earlier(NamedTuple):
    """The arrays of a parameter in the earlier format."""

    ratios: np.ndarray
    levels: np.ndarray
    scales: np.ndarray

    def states(self):
        """The first state and the denominator of each element."""
        size = self.ratios.size
        scales = np.repeat(self.scales.astype("float64"), BLOCK, axis=0)[:size]
        den = scales[:, 1] * (self.levels.reshape(-1) / 255) ** 2
        return scales[:, 0] * self.ratios.reshape(-1) / 127 * den, den


def earlier(shape, seed=0, magnitudes=(-12, 3)):
    rng = np.random.RandomState(seed)
    size = int(np.prod(shape))
    blocks = -(-size // BLOCK)
    levels = rng.randint(0, 256, size).astype("uint8")
    levels[::BLOCK] = 255
    ratios = rng.randint(-127, 128, size).astype("int8")
    ratios[levels == 0] = 0
    scales = 10 ** rng.uniform(*magnitudes, (blocks, 2))
    return Earlier(ratios.reshape(shape), levels.reshape(shape), scales.astype("float32"))


def bits(x):
    return struct.unpack("<i", struct.pack("<f", x))[0]


def number(b):
    return struct.unpack("<f", struct.pack("<i", b))[0]


def offset(largest):
    """The definition, for one block."""
    return number(((bits(max(largest, 2.0**-100)) + 0x80100) & 0x7F800000) - (15 << 23))


def code(den, base):
    """The definition, for one element."""
    total = float(np.float32(np.float32(base) + np.float32(den)))
    found = (bits(total) - bits(base) + (1 << 18)) >> 19
    return max(found, 1) if den > 0 else found


def present(ratios, codes, scales, epsilon):
    """The first state and the denominator that arrays of the present format stand for."""
    size = ratios.size
    of_block = np.repeat(scales, BLOCK, axis=0)[:size]
    den = decode_denominators(codes.reshape(-1).view("uint8"), of_block[:, 1])
    ratio = of_block[:, 0].astype("float64") * ratios.reshape(-1) / 127
    return ratio * (den.astype("float64") + epsilon), den


MAGNITUDES = [
    2.0**-149,
    1e-38,
    1e-12,
    0.9999,
    1.0,
    1.03,
    1.9,
    1 + 0x77FF80 / 2**23,
    1.97,
    7e4,
    3e38,
]


@pytest.mark.parametrize("largest", MAGNITUDES)
def test_offsets_and_codes_are_as_defined(largest):
    largest = float(np.float32(largest))
    base = offset(largest)
    assert offsets_of([largest]) == [np.float32(base)]
    dens = np.float32(largest) * np.linspace(0, 1, 300, dtype="float32") ** 4
    found = encode_denominators(dens, np.float32(base))
    assert found.tolist() == [code(float(den), base) for den in dens]
    decoded = [number((c << 19) + bits(base)) - base for c in found.tolist()]
    assert decode_denominators(found, np.float32(base)).tolist() == decoded


@pytest.mark.parametrize("exponent", [-90, -20, 0, 20, 90])
def test_codes_are_near_and_only_zero_is_zero(exponent):
    """To one part in 32 of the sum with the offset; what would be 0 is a sixteenth of that."""
    for largest in np.ldexp(np.linspace(1, 2, 97, endpoint=False), exponent).astype("float32"):
        dens = (largest * np.geomspace(2.0**-40, 1, 500)).astype("float32")
        base = offsets_of([largest])
        codes = encode_denominators(dens, base)
        assert codes.dtype == np.uint8 and codes.min() >= 1
        assert np.all(np.diff(codes.astype(int)) >= 0)
        error = np.abs(decode_denominators(codes, base) - dens)
        assert np.all(error <= np.where(codes == 1, base / 16, (dens + base) / 31.9))
    assert encode_denominators(np.zeros(3), offsets_of([0.0])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 1e-3])
@pytest.mark.parametrize("shape", [(64,), (1,), (65,), (3, 50), (2, 2, 64), (0,)])
def test_states_stay_near(shape, epsilon):
    """Denominators to a code, the first state to a level of its block."""
    old = earlier(shape, seed=sum(shape), magnitudes=(-7, 2))
    m, den = old.states()
    ratios, codes, scales = converted(*old, epsilon)
    assert [a.dtype for a in (ratios, codes, scales)] == [np.int8, np.int8, np.float32]
    assert ratios.shape == codes.shape == shape and scales.shape == old.scales.shape
    new_m, new_den = present(ratios, codes, scales, epsilon)
    largest = np.repeat(scales[:, 1], BLOCK)[: den.size]
    smallest = codes.reshape(-1) == 1
    assert np.all(np.abs(new_den - den) <= np.where(smallest, largest / 16, (den + largest) / 31.9))
    assert np.array_equal(new_den > 0, den > 0)
    ratio = m / np.where(den > 0, new_den + epsilon, 1)
    for first in range(0, den.size, BLOCK):
        block = slice(first, first + BLOCK)
        level = np.abs(ratio[block]).max(initial=0) / 127
        found = new_m[block] / np.where(den[block] > 0, new_den[block] + epsilon, 1)
        assert np.all(np.abs(found - ratio[block]) <= 0.501 * level)
        assert scales[first // BLOCK, 0] == pytest.approx(127 * level, rel=1e-6)


def test_one_block_by_hand():
    """Denominators 0, 1/255^2, 1/4 (nearly) and 1; ratios to them with epsilon 1."""
    levels = np.array([0, 1, 128, 255], "uint8")
    ratios = np.array([0, 127, -127, 64], "int8")
    found = converted(ratios, levels, np.array([[2.0, 1.0]], "float32"), 1.0)
    base = 2.0**-15
    dens = [0.0, *((k / 255) ** 2 for k in (1, 128, 255))]
    assert found[2][0, 1] == base
    codes = [code(den, base) for den in dens]
    assert found[1].view("uint8").tolist() == codes and codes[-1] == 240
    new = [number((c << 19) + bits(base)) - base for c in codes]
    m = [2.0 * r / 127 * den for r, den in zip(ratios.tolist(), dens)]
    ratio = [a / (b + 1.0) for a, b in zip(m, new)]
    scale = max(map(abs, ratio))
    assert found[2][0, 0] == np.float32(scale)
    assert found[0].tolist() == [round(r / scale * 127) for r in ratio]


def test_a_state_without_updates():
    found = converted(
        np.zeros((70,), "int8"), np.zeros((70,), "uint8"), np.zeros((2, 2), "f"), 1e-8
    )
    assert not found[0].any() and not found[1].any() and not found[2][:, 0].any()
    assert np.all(found[2][:, 1] == 2.0**-115)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_what_is_not_finite_stays_in_its_block(bad, column):
    old = earlier((200,))
    expected = converted(*old, 1e-8)
    old.scales[1, column] = bad
    found = converted(*old, 1e-8)
    assert np.isnan(found[2][1]).all()
    assert not found[0][64:128].any() and not found[1][64:128].any()
    others = np.r_[0:64, 128:200]
    for k in (0, 1):
        assert np.array_equal(found[k][others], expected[k][others])
    assert np.array_equal(found[2][[0, 2, 3]], expected[2][[0, 2, 3]])


def test_extreme_magnitudes():
    """The largest and smallest that earlier versions could keep; nothing overflows."""
    for scale in (2e-38, 1.0, 3e38):
        ratios = np.full(64, 127, "int8")
        scales = np.array([[1.0, scale]], "float32")
        found = converted(ratios, np.full(64, 255, "uint8"), scales, 0.0)
        assert np.isfinite(found[2]).all()
        assert np.all(found[0] == 127) and np.all(found[1] != 0)


# Where files are loaded


def arrays_of(old):
    return tuple(map(nd, old))


def trainer_of(shape, name="adam_ext", dtype="float32", **options):
    parameter = gluon.Parameter("w", shape=shape, dtype=dtype)
    parameter.initialize(mx.init.One())
    options = {"state_dtype": {".*": "int8"}, **options}
    trainer = gluon.Trainer([parameter], name, options)
    trainer._init_kvstore()
    return trainer


def assert_converted(own, old, epsilon):
    for found, expected in zip(own, converted(*old, epsilon)):
        assert found.dtype == expected.dtype
        assert found.asnumpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("nesting", ["own", "average", "master"])
def test_load_states_converts(nesting, alone, tmp_path):
    """With the epsilon of the file, behind a master weight and beside an average too."""
    shape, old = (3, 50), earlier((3, 50))
    options = {"average": {"ema_decay": 0.5}, "master": {"multi_precision": True}}.get(nesting, {})
    dtype = "float16" if nesting == "master" else "float32"
    state = arrays_of(old)
    if nesting == "average":
        state = (state, mx.nd.ones(shape))
    elif nesting == "master":
        state = (mx.nd.ones(shape), state)
    writer = trainer_of(shape, dtype=dtype, epsilon=1e-3, **options)
    writer._updaters[0].states[0] = state
    program = trainer_of(shape, dtype=dtype, **options)
    if alone:
        (tmp_path / "states").write_bytes(writer._updaters[0].get_states())
        given = {"begin_num_update": 3, "epsilon": 1e-3}
        mxadamax.load_states(program, tmp_path / "states", "adam_ext", given)
    else:
        mxadamax.save_states(writer, tmp_path / "states")
        mxadamax.load_states(program, tmp_path / "states")
    found = program._updaters[0].states[0]
    own = {"own": found, "average": found[0], "master": found[1]}[nesting]
    assert_converted(own, old, 1e-3)


@pytest.mark.parametrize("load", ["Trainer.load_states", "set_states"])
def test_the_first_step_converts_what_mxnet_has_loaded(load, tmp_path):
    """Once, in the objects that the updater holds."""
    shape, old = (3, 50), earlier((3, 50))
    writer = trainer_of(shape, epsilon=1e-3)
    writer._updaters[0].states[0] = arrays_of(old)
    program = trainer_of(shape, epsilon=1e-3)
    if load == "set_states":
        program._updaters[0].set_states(writer._updaters[0].get_states())
    else:
        writer.save_states(str(tmp_path / "states"))
        program.load_states(str(tmp_path / "states"))
    updater = program._updaters[0]
    state, weight = updater.states[0], mx.nd.ones(shape)
    for _ in range(2):
        found = int8_format_of_step(updater.optimizer, weight, state)
        assert found == ["int8"]
        assert_converted(state, old, 1e-3)
    # And what is pickled then is in the present format.
    again = pickle.loads(updater.get_states())
    assert_converted(again[0], old, 1e-3)


def int8_format_of_step(optimizer, weight, state):
    """What a step does before its kernel runs."""
    from mxadamax.optimizers.state_dtypes import dtypes_of_step

    return dtypes_of_step(optimizer, [0], [weight], [state])


def test_states_with_one_array_keep_their_format():
    optimizer = mxadamax.Lion(state_dtype={".*": "int8"})
    own = (mx.nd.ones((70,), dtype="int8"), mx.nd.ones((2, 1)))
    assert int8_format.as_present(own, optimizer) is own
    convert_in_place(own, optimizer)
    assert own[0].dtype == np.int8 and np.all(own[0].asnumpy() == 1)


def test_other_states_are_left_alone():
    adam = mxadamax.Adam(state_dtype={".*": "int8"})
    old = arrays_of(earlier((70,)))
    wrong_scales = (*old[:2], mx.nd.ones((1, 2)))
    for state in ((mx.nd.ones(3), mx.nd.ones(3)), None, mx.nd.ones(3), wrong_scales, old[:2]):
        found = int8_format.as_present(state, adam)
        assert repr(found) == repr(state)
    # Without the option there are none.
    assert int8_format.as_present(old, mxadamax.Adam()) is old
