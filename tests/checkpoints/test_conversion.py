# SPDX-License-Identifier: Apache-2.0
"""Whose states a file holds, and what of an optimizer goes over to its partner."""

import inspect
import pickle

import mxnet as mx
import numpy as np
import pytest
from common import Run, assert_same_bits
from family import CLASSES

import mxadamax
from mxadamax import conversion
from mxadamax._mxnet.compatibility import IS_MXNET_1
from mxadamax.checkpoints import convert
from mxadamax.optimizers.arithmetic import built_in_class

pytestmark = pytest.mark.quick


class Own(mx.optimizer.Optimizer):
    """One of the user's, that MXNet does not know."""


class Adam(mx.optimizer.Adam):
    """Another, with the name of one that it does."""


@pytest.mark.parametrize(
    ("optimizer", "built_in", "partner", "described"),
    [
        (mx.optimizer.Adam(), "adam", None, "MXNet's adam"),
        (mxadamax.Adam(), None, "adam", "adam_ext"),
        (mxadamax.AMSGrad(), None, "amsgrad", "amsgrad_ext"),
        (Own(), None, None, f"{__name__}.Own"),
        (Adam(), None, None, f"{__name__}.Adam"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_whose_states_they_are(optimizer, built_in, partner, described):
    assert conversion.built_in_name(optimizer) == built_in
    assert conversion.partner_of(optimizer) == partner
    assert conversion.describe_optimizer(optimizer) == described


def test_one_of_the_users_that_mxnet_knows():
    class Mine(mx.optimizer.SGD):
        pass

    mx.optimizer.Optimizer.opt_registry["mine"] = Mine
    try:
        assert conversion.built_in_name(Mine()) is None
        assert conversion.describe_optimizer(Mine()).endswith("Mine")
    finally:
        del mx.optimizer.Optimizer.opt_registry["mine"]


def test_how_the_built_in_was_called_comes_back():
    """Neither the count of arrays for a call nor the way of its step is anything of ours."""
    theirs = mx.optimizer.Adam(learning_rate=0.5)
    theirs.aggregate_num = 7
    theirs.begin_num_update = theirs.num_update = 3
    theirs._index_update_count[0] = 5
    weight = mx.nd.ones((2,))
    states = {0: theirs.create_state(0, weight)}
    like = mxadamax.Adam(aggregate_num=3)
    found, ours = conversion.from_built_in(states, theirs, "adam", like)
    assert [a.asnumpy().tolist() for a in found[0]] == [[0, 0], [0, 0]]
    assert (ours.lr, ours.aggregate_num, ours.use_fused_step) == (
        0.5,
        mxadamax.Adam().aggregate_num,
        True,
    )
    assert ours._index_update_count == {0: 5}
    assert ours._index_update_count is ours._all_index_update_counts[0]
    assert ours.param_dict is not theirs.param_dict or not theirs.param_dict
    _, again = conversion.to_built_in(found, ours, "adam")
    assert again.aggregate_num == 7
    assert (again.lr, again.num_update, again._index_update_count) == (0.5, 3, {0: 5})
    if not IS_MXNET_1:
        assert again.use_fused_step is theirs.use_fused_step


def test_a_seed_of_random_bits_is_left_behind():
    """It is not used without low-precision states, which do not go over at all."""
    ours = mxadamax.Adam(state_seed=5)
    _, theirs = conversion.to_built_in({}, ours, "adam")
    assert not hasattr(theirs, "state_seed")


def test_states_of_held_rows_are_filled():
    """MXNet keeps such for row_sparse weights."""
    sparse = mx.nd.sparse.row_sparse_array(([[1.0, 2.0]], [1]), shape=(3, 2))
    states = {0: (sparse, mx.nd.ones((3, 2))), 1: (mx.nd.ones((1,)), mx.nd.zeros((1,)))}
    found, _ = conversion.from_built_in(states, mx.optimizer.Adam(), "adam", mxadamax.Adam())
    assert [a.stype for a in (*found[0], *found[1])] == ["default"] * 4
    assert found[0][0].asnumpy().tolist() == [[0, 0], [1, 2], [0, 0]]
    assert found[0][1].asnumpy().tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("name", ["sgd", "nag"])
def test_where_the_master_weight_is(name):
    """Last in MXNet 1's SGD and NAG."""
    momentum, master = mx.nd.zeros((2,)), mx.nd.ones((2,))
    theirs = (momentum, master) if IS_MXNET_1 else (master, momentum)
    source = mx.optimizer.create(name, momentum=0.9, multi_precision=True)
    like = mx.optimizer.create(f"{name}_ext", momentum=0.9)
    found, ours = conversion.from_built_in({0: theirs}, source, name, like)
    assert [a.asnumpy()[0] for a in found[0]] == [1, 0]
    back, _ = conversion.to_built_in(found, ours, name)
    assert back[0][0] is theirs[0] and back[0][1] is theirs[1]


APART = ["ccsgd", "dcasgd", "groupadagrad", "lbsgd", "sgld"]
"""Built-ins with states of other kinds."""


@pytest.mark.parametrize("first_is_ours", [False, True])
@pytest.mark.parametrize("name", [n for n in APART if built_in_class(n) is not None])
def test_the_others_convert_both_ways(name, first_is_ours, tmp_path):
    """Five steps, and five more of the other one, are ten of the built-in."""
    rng = np.random.RandomState(0)
    start = [rng.standard_normal((5, 1 + k)).astype("float32") for k in range(3)]
    steps = [[rng.standard_normal(w.shape).astype("float32") for w in start] for _ in range(10)]
    options = {"wd": 0.0 if name == "groupadagrad" else 0.01}
    options.update({"momentum": 0.9} if name in ("ccsgd", "lbsgd") else {})

    def go(run, first, last):
        for t in range(first, last):
            # SGLD adds random numbers.
            mx.random.seed(t)
            run.step(steps[t])

    expected = Run(mx.optimizer.create(name, **options), start)
    go(expected, 0, 10)
    names = (f"{name}_ext", name) if first_is_ours else (name, f"{name}_ext")
    run = Run(mx.optimizer.create(names[0], **options), start)
    go(run, 0, 5)
    file = tmp_path / "old"
    file.write_bytes(run.updater.get_states(dump_optimizer=True))
    # That is another name of SGD, which ours goes by.
    convert(file, file, "sgd" if names[1] == "ccsgd" else names[1])
    run = Run(pickle.loads(file.read_bytes())[1], [weight.asnumpy() for weight in run.weights])
    run.updater.set_states(file.read_bytes())
    assert run.optimizer.__module__.startswith("mxnet." if first_is_ours else "mxadamax.")
    go(run, 5, 10)
    for one, other in zip(run.weights, expected.weights):
        assert_same_bits(one.asnumpy(), other.asnumpy())


NAMES = [c.registered_name[: -len("_ext")] for c in CLASSES.values()]


@pytest.mark.parametrize("name", [*filter(built_in_class, NAMES)])
def test_where_a_built_in_has_its_master(name):
    """Whose place differs from one built-in of MXNet 1 to the next."""
    taken = inspect.signature(built_in_class(name).__init__).parameters
    options = {"momentum": 0.9} if "momentum" in taken else {}
    optimizer = mx.optimizer.create(name, multi_precision=True, **options)
    weight = mx.nd.array([[1.0, 2.0]], dtype="float16")
    state = conversion.master_first(optimizer.create_state_multi_precision(0, weight), name)
    assert state[0].dtype == np.float32 and state[0].asnumpy().tolist() == [[1, 2]]
