# SPDX-License-Identifier: Apache-2.0
"""The example where Adam ends at the worst point: it does, and AMSGrad goes to the best."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mxadamax[examples]'")

STEPS = 40_000


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "amsgrad_counterexample.py"
    spec = importlib.util.spec_from_file_location("amsgrad_counterexample", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "amsgrad_counterexample", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def traces(example):
    """Every step of both optimizers on both versions."""
    traces = {}
    for name in example.OPTIMIZERS:
        for trace in example.run(name, STEPS, records=STEPS):
            assert trace.steps.shape == (STEPS,)
            traces[name, trace.version] = trace
    return traces


def test_adam_ends_at_the_worst_point_online(example, traces):
    trace = traces["adam_ext", "online"]
    assert trace.iterates[-10 * example.PERIOD :].min() > 0.9
    # It has done worse than the worst point, and so never comes near zero.
    assert trace.regrets.min() > example.REGRET_AT_WORST["online"]


def test_amsgrad_ends_at_the_best_point_online(example, traces):
    trace = traces["amsgrad_ext", "online"]
    assert trace.iterates[-10 * example.PERIOD :].max() < -0.9
    # Regret of order sqrt(t): the average over four times as many steps is half as large.
    quarter, end = trace.regrets[STEPS // 4 - 1, 0], trace.regrets[-1, 0]
    assert 0 < end < 0.55 * quarter


def test_adam_ends_at_the_worst_point_stochastic(example, traces):
    trace = traces["adam_ext", "stochastic"]
    late = trace.iterates[-STEPS // 4 :].mean(axis=0)
    assert late.mean() > 0.9
    assert late.min() > 0.8
    assert trace.regrets[-1].mean() > 0.9 * example.REGRET_AT_WORST["stochastic"]


def test_amsgrad_is_on_its_way_to_the_best_point_stochastic(example, traces):
    """So many steps are too few to tell the slope from chance in a single run, but not in 100.

    Exactly one run meets the rare gradient in each step, and so their mean hardly depends on chance:
    after 1000, 10,000 and 40,000 steps it was 0.15, -0.03 and -0.17, with deviations of 0.03, 0.02
    and 0.02 over eight seeds.
    """
    trace = traces["amsgrad_ext", "stochastic"]
    early, middle, late = (trace.iterates[t - 1].mean() for t in (1000, 10_000, STEPS))
    assert early - 0.08 > middle > late + 0.08
    assert late < -0.1
    # Both optimizers met the same gradients.
    adam = traces["adam_ext", "stochastic"]
    assert np.mean(trace.iterates[-1] < adam.iterates[-1]) > 0.95
    assert trace.regrets[-1].mean() < 0.6 * adam.regrets[-1].mean()
    assert trace.regrets[-1].mean() < 0.6 * example.REGRET_AT_WORST["stochastic"]


@pytest.mark.parametrize("optimizer", ["adam_ext", "amsgrad_ext"])
@pytest.mark.parametrize("correct_bias", [True, False])
def test_against_the_algorithm_as_written(example, optimizer, correct_bias):
    """Every step of the online version, in float64 by algorithms 1 and 2 of the paper."""
    x = m = v = largest = regret = 0.0
    expected_x, expected_regret = [], []
    for t in range(1, 301):
        gradient = 1010.0 if t % 101 == 1 else -10.0
        regret += gradient * x - gradient * -1.0
        m = 0.9 * m + 0.1 * gradient
        v = 0.99 * v + 0.01 * gradient**2
        largest = max(largest, v) if optimizer == "amsgrad_ext" else v
        rate = 0.5 / t**0.5
        if correct_bias:
            rate *= (1 - 0.99**t) ** 0.5 / (1 - 0.9**t)
        x = min(max(x - rate * m / largest**0.5, -1.0), 1.0)
        expected_x.append(x)
        expected_regret.append(regret / t)
    # They have been projected, too.
    assert min(expected_x) == -1
    online, _ = example.run(optimizer, 300, 0.5, correct_bias, records=300)
    np.testing.assert_array_equal(online.steps, np.arange(1, 301))
    np.testing.assert_allclose(online.iterates[:, 0], expected_x, rtol=0, atol=1e-4)
    np.testing.assert_allclose(online.regrets[:, 0], expected_regret, rtol=1e-4, atol=1e-2)


def test_gradients_have_the_law_of_the_problem(example):
    gradients = example.make_gradients()
    assert set(np.unique(gradients)) == {-10, 1010}
    np.testing.assert_array_equal((gradients[:, :, 1:] == 1010).mean(axis=1), 0.01)
    np.testing.assert_array_equal(gradients[0, :, 0], -10)
    np.testing.assert_array_equal(gradients[1, :, 0], 1010)
    assert example.REGRET_AT_WORST["online"] == pytest.approx(20 / 101)
    assert example.REGRET_AT_WORST["stochastic"] == pytest.approx(0.4)


def test_another_seed_changes_the_stochastic_version_only(example):
    (online, stochastic), (same, other) = (example.run("adam_ext", 500, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(online.iterates, same.iterates)
    assert np.any(stochastic.iterates != other.iterates)


def test_points_stay_in_the_interval(traces):
    for trace in traces.values():
        assert abs(trace.iterates).max() <= 1
        if trace.version == "stochastic":
            assert trace.iterates.min() == -1
            assert trace.iterates.max() == 1


@pytest.mark.parametrize("steps, stride", [(100, 1), (1000, 11), (10_000, 101)])
def test_records(example, steps, stride):
    """From a period on, all are at the same place in it."""
    online, _ = example.run("adam_ext", steps, records=90)
    np.testing.assert_array_equal(online.steps, np.arange(stride, steps + 1, stride))
    assert len(online.iterates) == len(online.regrets) == len(online.steps)


def test_command_line(example, tmp_path, capsys):
    plain, uncorrected = (
        example.main(["--steps", "300", "--output", str(tmp_path), *options])
        for options in ([], ["--no-bias-correction"])
    )
    assert (tmp_path / "amsgrad_counterexample.png").read_bytes().startswith(b"\x89PNG")
    for one, other in zip(plain, uncorrected):
        assert np.any(one.iterates != other.iterates)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[:4]] == [
        [name, version] for name in example.OPTIMIZERS for version in ("online", "stochastic")
    ]
    assert "(0.198 at x = 1)" in printed[0]
