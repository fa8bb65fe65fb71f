# SPDX-License-Identifier: Apache-2.0
"""Counts and skipped steps of a training, given to other devices and under other keys."""

import pytest

from mxadamax.optimizers.update_counts import latest, move_counts, renumber

pytestmark = pytest.mark.quick


def entries(**changes):
    """What counts there are in the attributes of an optimizer."""
    tables = {0: {0: 2, 1: 2}, 1: {0: 5, 1: 4}, 2: {0: 9, 1: 9}}
    return {
        "_all_index_update_counts": tables,
        "_index_update_count": tables[0],
        "lr_mult": {},
        "wd_mult": {},
        "idx2name": {},
        **changes,
    }


def test_the_largest_of_each():
    assert latest([{0: 2, 1: 7}, {}, {0: 3, "a": 1}, {1: 6}]) == {0: 3, 1: 7, "a": 1}
    assert latest([]) == {}


@pytest.mark.parametrize(
    ("used", "counts"), [(None, {0: 9, 1: 9}), ([1], {0: 5, 1: 4}), ([0, 1], {0: 5, 1: 4})]
)
def test_counts_of_devices_in_use_go_to_the_new_ones(used, counts):
    found = entries()
    move_counts(found, [3, 3, 5], used)
    assert found["_all_index_update_counts"] == {0: counts, 3: counts, 5: counts}
    assert found["_index_update_count"] is found["_all_index_update_counts"][0]
    assert "_step_trackers" not in found


@pytest.mark.parametrize(
    ("used", "skipped"),
    [
        (None, ({0: 4, 1: 8}, 8)),
        ([1], ({0: 4, 1: 1}, 4)),
        ([1, 2], ({0: 4, 1: 8}, 8)),
        # Of none of those in use: what there is.
        ([7], ({0: 4, 1: 8}, 8)),
    ],
)
def test_skipped_steps_of_devices_in_use_go_to_the_new_ones(used, skipped):
    step_trackers = {1: ({0: 4, 1: 1}, 4), 2: ({0: 3, 1: 8}, 8)}
    found = entries(_step_trackers=step_trackers)
    move_counts(found, [3, 5], used)
    assert found["_step_trackers"] == {3: skipped, 5: skipped}
    found = entries(_step_trackers={})
    move_counts(found, [3, 5], used)
    assert found["_step_trackers"] == {}


def test_other_keys():
    """A parameter that has none is left out; what has a name keeps it."""
    found = entries(
        lr_mult={0: 0.5, 1: 2.0, 2: 3.0, "bias": 4.0},
        wd_mult={"bias": 0.0},
        idx2name={0: "a", 1: "b", 2: "c"},
        _step_trackers={1: ({0: 4, 2: 1, "bias": 7}, 5)},
    )
    renumber(found, {0: 3, 2: 0})
    assert found == {
        "lr_mult": {3: 0.5, 0: 3.0, "bias": 4.0},
        "wd_mult": {"bias": 0.0},
        "idx2name": {3: "a", 0: "c"},
        "_index_update_count": {3: 2},
        "_all_index_update_counts": {0: {3: 2}, 1: {3: 5}, 2: {3: 9}},
        "_step_trackers": {1: ({3: 4, 0: 1, "bias": 7}, 5)},
    }
    found = entries()
    renumber(found, {0: 1, 1: 0})
    assert found["_step_trackers"] == {}
    renumber(found, {1: "name", 0: 7})
    assert found["_all_index_update_counts"][1] == {"name": 5, 7: 4}
