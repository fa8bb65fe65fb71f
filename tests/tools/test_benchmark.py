# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, measures every contender, and measures the models it names."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Callable

import mxnet as mx
import numpy as np
import pytest
from common import network_shapes, run_python
from rich.console import Console

import mxadamax
from mxadamax import _native, acceleration
from mxadamax.__main__ import main
from mxadamax._mxnet.compatibility import gluon_arrays
from mxadamax.commands.bench import cases, measuring, reporting

TRAINERS = {"adamax_ext", "adamax", "adam", "no_op"}


@pytest.fixture(autouse=True)
def shapes():
    with network_shapes():
        yield


def test_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "BUILDS", 1)
    monkeypatch.setattr(measuring, "WARM_UP_ROUNDS", 1)
    report, names = tmp_path / "report.json", ["small-1000x64", "layers-8x64-b32"]
    command = ["bench", "--only", *names, "--repeat", "2", "--json", str(report)]
    assert main(command) == 0

    result = json.loads(report.read_text())
    assert list(result["cases"]) == names
    assert result["parameters"] == {names[0]: 64_000, names[1]: 8 * 65 * 64}
    update, training = (result["cases"][case] for case in names)
    torch = {"torch adamax", "torch adam"} if cases.torch else set()
    assert set(update) == TRAINERS | {"bandwidth_baseline"} | torch
    assert set(training) == TRAINERS
    for contender in [*update.values(), *training.values()]:
        first, second = contender["samples_ms"]
        assert 0 < contender["min_ms"] == min(first, second)
        assert contender["median_ms"] == pytest.approx((first + second) / 2)
    assert result["machine"]["omp_threads"] >= 1
    assert result["machine"]["mxadamax"] == mxadamax.__version__

    output = capsys.readouterr().out
    for text in [*names, *update, "64,000 parameters"]:
        assert text in output


def test_models():
    resnet, bert = cases.resnet50_shapes(), cases.bert_base_shapes()
    assert (len(resnet), cases.elements_of(resnet)) == (161, 25_557_032)
    assert (len(bert), cases.elements_of(bert)) == (199, 109_482_240)
    assert cases.CASES["small-1000x64"].elements() == 64_000
    elements = {name: case.elements() for name, case in cases.CASES.items()}
    assert elements["resnet50"] == 25_557_032
    assert elements["bert-base"] == 109_482_240
    assert elements["mlp-2048-b32"] == 785 * 2048 + 2049 * 2048 + 2049 * 10
    assert elements["layers-8x64-b32"] == 8 * 65 * 64
    assert elements["cnn-b32"] == 10 * 32 + 289 * 64 + 1601 * 128 + 129 * 10


def test_bandwidth_baseline_of_16_bits():
    grads = [gluon_arrays.zeros(size, dtype="float16") for size in (100, 7)]
    written = [[gluon_arrays.full(grad.size, 8.0) for _ in range(3)] for grad in grads]
    copies = [gluon_arrays.ones(grad.size, dtype="float16") for grad in grads]
    cases.baseline_of(grads, written, copies).call()
    for (weight, *states), copy in zip(written, copies):
        assert (weight.asnumpy() == 12).all()
        assert all((state.asnumpy() == 4).all() for state in states)
        # An integer in the bits of a float16.
        assert (copy.asnumpy().view("uint16") == 12).all()


def test_half_precision_and_sparse(monkeypatch):
    half = cases.family_case([(50,)], cases.ADAMAX, 1, multi_precision=True)
    samples = measuring.measure(half, 1, lambda: None)
    ours = {"adamax_ext", "adamax_ext, mxadamax.Trainer"}
    assert set(samples) == {*ours, "adamax", "bandwidth_baseline", "no_op"}
    for optimizer, lazy in (("adam_ext", True), ("adam_ext", False), ("adam", True)):
        cases.sparse_update(optimizer, lazy, 10, steps=2).call()


def test_options(monkeypatch):
    """Of small arrays; each contender is what its name says."""
    bounded = []

    def clip(grads, bound):
        bounded.append((len(grads), bound))

    monkeypatch.setattr(measuring, "BUILDS", 1)
    monkeypatch.setattr(measuring, "WARM_UP_ROUNDS", 1)
    monkeypatch.setattr(cases.gluon.utils, "clip_global_norm", clip)
    case = cases.options_case([(3, 4), (5,)], "adam_ext", rounds=1)
    samples = measuring.measure(case, 1, lambda: None)
    options = ("clip_global_norm", "skip_nonfinite", "ema_decay")
    kinds = ("bfloat16", "float16", "int8")
    assert set(samples) == {
        *("adam_ext", "bandwidth_baseline", "adam_ext, gluon clip", "adam, gluon clip"),
        *(f"adam_ext, {option}" for option in options),
        *(f"adam_ext, {kind} states" for kind in kinds),
    }
    # One round to warm up and one that counts, of the two that clip.
    assert bounded == [(2, 1.0)] * 4


def test_dense_gradients_for_an_embedding(monkeypatch):
    steps = []
    monkeypatch.setattr(mx.nd, "ones", lambda shape: mx.nd.full((20, 64), 1.0))
    monkeypatch.setattr(cases, "random_like", lambda shape: np.zeros((20, 64), "float32"))
    updater = types.SimpleNamespace(update=lambda index, grad, weight: steps.append(grad.stype))
    monkeypatch.setattr(mx.optimizer, "get_updater", lambda optimizer: updater.update)
    contender = cases.sparse_update("adam_ext", False, None, steps=3)
    contender.prepare()
    contender.call()
    assert steps == ["default"] * 4


@pytest.mark.parametrize("name", ["amsgrad", "sgd", "rmsprop-centered", "adabelief", "lamb"])
def test_family(name):
    """With small arrays: it is the contenders that count."""
    info = cases.FAMILY[name]
    built_in = info.timed_beside
    # MXNet 1 has not all of them.
    theirs = {built_in} & set(mx.optimizer.Optimizer.opt_registry)
    case = cases.family_case([(3, 4), (5,)], info, rounds=1)
    samples = measuring.measure(case, 1, lambda: None)
    of_torch = {"torch"} if cases.torch and info.torch else set()
    arithmetic = {"arithmetic_baseline"} if name in cases.ARITHMETIC else set()
    ours = {info.name, f"{info.name}, mxadamax.Trainer"}
    baselines = {"bandwidth_baseline", "no_op"} | arithmetic
    assert set(samples) == ours | baselines | theirs | of_torch
    assert f"family-{name}" in cases.CASES


def test_trainers(monkeypatch):
    monkeypatch.setattr(measuring, "BUILDS", 1)
    case = cases.trainer_case([(3, 4), (5,)], rounds=1)
    samples = measuring.measure(case, 1, lambda: None)
    torch = {"torch adam"} if cases.torch else set()
    both = {"adam_ext, mxadamax.Trainer", "adam_ext", "adam"}
    assert set(samples) == both | {"no_op", "bandwidth_baseline"} | torch
    _, trainer = cases.trainer_update([(3,)], "adam_ext", trainer=cases.Trainer)
    assert type(trainer) is mxadamax.Trainer
    assert cases.cases_named("trainer")[1:] == ["trainer-1000x64", "trainer-20000x64"]


def test_contenders_take_turns(monkeypatch):
    monkeypatch.setattr(measuring, "BUILDS", 2)
    events = []

    def builder(*names: str) -> Callable[[], dict[str, object]]:
        def contender(name: str) -> object:
            events.append(f"build {name}")
            return cases.Contender(
                lambda: events.append(name), lambda: events.append(f"prepare {name}")
            )

        return lambda: {name: contender(name) for name in names}

    case = cases.Case([builder("a"), builder("b", "c"), builder("d")], rounds=9, elements=int)
    advances = []
    samples = measuring.measure(case, 3, lambda: advances.append(1))

    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys("abcd", 3)
    assert len(advances) == 3

    def expected(order: str, rounds: int) -> list[str]:
        turns = [text for name in order for text in (f"prepare {name}", name)]
        builds = [f"build {name}" for name in order]
        return builds + turns * (measuring.WARM_UP_ROUNDS + rounds)

    assert events == expected("abcd", 2) + expected("bcda", 1)


@pytest.mark.parametrize("states", range(5))
def test_bandwidth_baseline_touches_all_elements_once(monkeypatch, states):
    for threads in (1, 2, 3):
        monkeypatch.setattr(cases, "omp_threads", lambda n=threads: n)
        sizes = (1001, 1, 3, 64)
        grads = [gluon_arrays.full(size, 2.0) for size in sizes]
        written = [[gluon_arrays.full(size, 8.0) for _ in range(1 + states)] for size in sizes]
        cases.baseline_of(grads, written).call()
        for grad, (weight, *rest) in zip(grads, written):
            assert (grad.asnumpy() == 2).all()
            assert (weight.asnumpy() == 6 + 8 * states).all()
            assert all((state.asnumpy() == 8).all() for state in rest)


def computed(grad: float, work: cases.Pass) -> float:
    """What a pass makes of the gradient before it updates, in single precision."""
    x = np.float32(grad)
    for t, divisions, roots in (
        (np.float32, work.divisions, work.roots),
        (np.float64, work.double_divisions, work.double_roots),
    ):
        for _ in range(divisions):
            x = np.float32(1 / (1 + t(abs(x))))
        for _ in range(roots):
            x = np.float32(np.sqrt(1 + t(abs(x))))
    return x


@pytest.mark.parametrize("work", [cases.Pass(0, 2, 1), cases.Pass(0, 0, 1, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_divisions_of_a_baseline(work, dtype):
    """All elements are divided, also what is left of a block, and updated once."""
    grads = [gluon_arrays.full(size, 3.0, dtype=dtype) for size in (700, 3)]
    if dtype == "float16":
        # As an integer, which the baseline takes 16 bits for.
        grads = [grad * 0 for grad in grads]
    written = [[gluon_arrays.full(grad.size, 8.0) for _ in range(2)] for grad in grads]
    copies = [gluon_arrays.ones(grad.size, dtype=dtype) for grad in grads]
    cases.baseline_of(grads, written, copies if dtype == "float16" else [], [work]).call()
    x = computed(0.0 if dtype == "float16" else 3.0, work)
    state = np.float32(4 + x * x)
    for weight, its_state in written:
        np.testing.assert_allclose(its_state.asnumpy(), state, rtol=1e-6)
        np.testing.assert_allclose(weight.asnumpy(), 4 + x + state, rtol=1e-6)
    if dtype == "float16":
        for copy in copies:
            assert (copy.asnumpy().view("uint16") == int(4 + x + state)).all()


def test_passes_of_a_baseline(monkeypatch):
    """Those that read change nothing; each that updates does."""
    for threads in (1, 3):
        monkeypatch.setattr(cases, "omp_threads", lambda n=threads: n)
        grads = [gluon_arrays.full(size, 2.0) for size in (1001, 3)]
        written = [[gluon_arrays.full(grad.size, 8.0) for _ in range(2)] for grad in grads]
        reading = [cases.Pass(1), cases.Pass(3, 1, 1), cases.Pass(2, in_order=True)]
        cases.baseline_of(grads, written, passes=reading).call()
        assert all((array.asnumpy() == 8).all() for arrays in written for array in arrays)
        cases.baseline_of(grads, written, passes=[*reading, cases.Pass(), cases.Pass()]).call()
        for grad, (weight, state) in zip(grads, written):
            assert (grad.asnumpy() == 2).all()
            assert (state.asnumpy() == 8).all()
            assert (weight.asnumpy() == 0.5 * (4 + 2 + 8) + 2 + 8).all()


def test_the_slower_baseline_is_the_limit():
    times = {"adamax_ext": [6.0], "bandwidth_baseline": [1.0], "no_op": [1.0]}
    assert reporting.limit_of(times) == "bandwidth_baseline"
    assert reporting.limit_of({**times, "arithmetic_baseline": [2.0]}) == "arithmetic_baseline"
    assert reporting.limit_of({**times, "arithmetic_baseline": [0.5]}) == "bandwidth_baseline"


def test_ratios_are_of_rounds():
    """What slows one round down changes no ratio of it."""
    times = {"a": [2.0, 20.0, 8.0], "b": [1.0, 10.0, 1.0], "c": [1.0, 10.0, 3.0]}
    assert reporting.ratio(times, "a", "b") == "2.00"
    assert reporting.ratio(times, "a", "b", "c") == "1.00"
    assert reporting.ratio(times, "a", "none") == ""


def test_arithmetic_is_of_optimizers_in_the_benchmark():
    assert set(cases.ARITHMETIC) <= set(cases.FAMILY)
    for passes in cases.ARITHMETIC.values():
        assert [work.reads == 0 for work in passes] == [False] * (len(passes) - 1) + [True]


def test_threads_start_over(monkeypatch):
    command = ["bench", "--threads", "3", "--only", "resnet50"]

    class StartedError(Exception):
        pass

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable
        assert arguments[1:] == ["-m", "mxadamax", *command]
        assert environment == {**os.environ, "OMP_NUM_THREADS": "3"}
        raise StartedError

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(StartedError):
        main(command)


@pytest.mark.parametrize("arguments", [["--only", "resnet"], ["--repeat", "0"], ["--threads", "x"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_a_built_in_and_itself_accelerated(monkeypatch):
    """One of the two is native in every timed call, the other in none, and all ends plainly."""
    monkeypatch.setattr(measuring, "BUILDS", 2)
    monkeypatch.setattr(acceleration, "_report", mxadamax.acceleration.AccelerationReport())
    case = cases.accelerated_case([(3,)] * 9, cases.FAMILY["adam"], rounds=1)
    native = []

    def call_of(contender, name):
        def call():
            before = mxadamax.acceleration_report().get("adam", {"native": 0})["native"]
            contender.call()
            after = mxadamax.acceleration_report().get("adam", {"native": 0})["native"]
            native.append((name, after - before))

        return contender._replace(call=call)

    builders = [
        lambda build=build: {name: call_of(c, name) for name, c in build().items()}
        for build in case.builders
    ]
    small = case._replace(builders=builders)
    monkeypatch.setitem(cases.CASES, "accelerated-adam-8x64", small)
    samples = measuring.run_cases(["accelerated-adam-8x64"], 4, Console(quiet=True))
    assert {name: len(times) for name, times in samples["accelerated-adam-8x64"].items()} == {
        "adam": 4,
        "adam, accelerated": 4,
    }
    assert set(native) == {("adam", 0), ("adam, accelerated", 9)}
    assert not acceleration._replaced


def test_cases_by_the_beginning_of_their_names():
    assert cases.cases_named("resnet50") == ["resnet50"]
    family = cases.cases_named("family")
    assert family == [f"family-{name}" for name in cases.FAMILY]
    sizes = [cases.CASES[name].elements() for name in cases.cases_named("sizes")]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1000, 25_000_000)
    assert cases.cases_named("embedding-1000-rows") == [
        "embedding-1000-rows",
        "embedding-1000-rows-50-steps",
    ]
    assert cases.cases_named("siz") == []


def arrays(*sizes, dtype="float32"):
    return [gluon_arrays.ones(size, dtype=dtype) for size in sizes]


@pytest.mark.parametrize(
    ("grads", "written", "copies", "message"),
    [
        (arrays(3), [arrays(4)], [], "weight differs from the gradient in size"),
        (arrays(3), [[*arrays(3), *arrays(2)]], [], "state differs from the gradient in size"),
        (arrays(3, dtype="float64"), [arrays(3)], [], "gradient must be of float32"),
        (arrays(3), [arrays(3, dtype="float16")], [], "weight must be of float32"),
        (arrays(3), [arrays(3)], arrays(3, dtype="float16"), "gradient must be of 16 bits"),
        (arrays(3), [arrays(*[3] * 6)], [], "expected a weight and 0 to 4 states"),
        (arrays(3), [[]], [], "expected a weight and 0 to 4 states"),
        (arrays(3, 3), [arrays(3, 3), arrays(3)], [], "expected a weight and 0 to 4 states"),
        (arrays(3), [arrays(3)], arrays(3, 3, dtype="float16"), "differ in length"),
        (arrays(3, dtype="float16"), [arrays(3)], arrays(3), "copy must be of 16 bits"),
        (arrays(3, 3), [arrays(3)], [], "differ in length"),
        ([], [], [], "are empty"),
        ([None], [arrays(3)], [], "object has no attribute 'size'|expected an NDArray"),
    ],
)
def test_bandwidth_baseline_refuses(grads, written, copies, message):
    with pytest.raises((ValueError, AttributeError), match=message):
        cases.native().BandwidthBaseline(grads, written, copies, 1, [cases.Pass()])
    with pytest.raises(ValueError, match="threads must be at least 1"):
        cases.native().BandwidthBaseline(arrays(3), [arrays(3)], [], 0, [cases.Pass()])


@pytest.mark.parametrize("wrong", [{"reads": 3}, {"divisions": -1}, {"double_roots": -1}])
def test_bandwidth_baseline_refuses_passes(wrong):
    with pytest.raises(ValueError, match="passes must be counts, and read at most"):
        cases.native().BandwidthBaseline(arrays(3), [arrays(3)], [], 1, [cases.Pass(**wrong)])


BASELINE = """
import mxnet as mx
from mxadamax._mxnet.engine import native

grads = [mx.nd.ones(100), mx.nd.ones(7)]
written = [[mx.nd.full(grad.shape, 8), mx.nd.full(grad.shape, 8)] for grad in grads]
mx.nd.waitall()
native().BandwidthBaseline(grads, written, [], 1, [(0, 0, 0, 0, 0, False)])()
print(sorted({float(x) for arrays in written for array in arrays for x in array.asnumpy()}))
"""


def test_bandwidth_baseline_of_the_plainest_instruction_set():
    """The state becomes half of it and the gradient's square; the weight the sum of all three."""
    assert run_python(BASELINE, MXADAMAX_INSTRUCTION_SET="baseline") == "[5.0, 10.0]\n"


def test_bandwidth_baseline_holds_its_arrays():
    """What Python lets go of is not freed under the baseline."""
    baseline = _native.BandwidthBaseline(
        arrays(100_000), [arrays(100_000, 100_000)], [], 2, [cases.Pass()]
    )
    mx.nd.waitall()
    others = arrays(*[100_000] * 4)
    baseline()
    assert all((other.asnumpy() == 1).all() for other in others)


# Pictures.


def made_up(*names: str) -> dict:
    contenders = ("adamax_ext", "adamax", "adam", "no_op", "bandwidth_baseline", "torch adamax")
    times = {name: {"median_ms": 1.0 + k} for k, name in enumerate(contenders)}
    machine = {"cpu": "a processor", "cores": 2, "omp_threads": 1, "instruction_set": "avx2"}
    return {
        "machine": {**machine, "mxnet": "2.0.0b1"},
        "parameters": dict.fromkeys(names, 12_300_000),
        "cases": {name: times for name in names},
    }


def drawn(result: dict, folder, name: str = "out.png") -> bytes:
    (folder / "in.json").write_text(json.dumps(result))
    picture = folder / name
    assert main(["bench", "--from", str(folder / "in.json"), "--plot", str(picture)]) == 0
    return picture.read_bytes()


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    result = made_up("sizes-1000", "sizes-30000", "resnet50", "small-1000x64")
    both = drawn(result, tmp_path)
    assert both.startswith(b"\x89PNG")
    assert drawn(result, tmp_path) == both
    sizes, models = drawn(made_up("sizes-1000"), tmp_path), drawn(made_up("resnet50"), tmp_path)
    width = [int.from_bytes(picture[16:20], "big") for picture in (both, sizes, models)]
    assert width[0] > 1.5 * width[1] == 1.5 * width[2]
    result["cases"]["resnet50"] = {"adamax_ext": {"median_ms": 9.0}}
    assert drawn(result, tmp_path) != both
    assert drawn(result, tmp_path, "out.svg").startswith(b"<?xml")


def test_a_run_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(measuring, "BUILDS", 1)
    monkeypatch.setattr(measuring, "WARM_UP_ROUNDS", 1)
    report, picture = tmp_path / "report.json", tmp_path / "measured.png"
    measured = ["--only", "sizes-1000", "--repeat", "2", "--plot", str(picture)]
    assert main(["bench", *measured, "--json", str(report)]) == 0
    assert picture.read_bytes() == drawn(json.loads(report.read_text()), tmp_path)
    picture.unlink()
    report.unlink()
    assert main(["bench", *measured]) == 0
    assert picture.exists()
    assert not report.exists()


def test_pictures_show_what_was_measured():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from mxadamax.commands.bench import plots

    result = made_up("sizes-1000", "sizes-30000", "resnet50")
    result["cases"]["sizes-30000"]["adamax_ext"]["median_ms"] = 7.5
    result["cases"]["resnet50"] = {
        "adamax_ext": {"median_ms": 1234.5},
        "bandwidth_baseline": {"median_ms": 4},
    }
    axes = Figure().subplots(1, 2)
    plots.draw_sizes(axes[0], result, ["sizes-30000", "sizes-1000"])
    blue = [line for line in axes[0].lines if line.get_color() == plots.STYLES["adamax_ext"].color]
    assert [list(line.get_xdata()) for line in blue] == [[1000, 30000]]
    assert list(blue[0].get_ydata()) == [7.5, 7.5]
    assert (axes[0].get_xscale(), axes[0].get_yscale()) == ("log", "log")
    assert "ms" in axes[0].get_ylabel()
    assert len(axes[0].lines) == len(plots.STYLES)
    plots.draw_models(axes[1], result, ["resnet50"])
    assert sorted(bar.get_height() for bar in axes[1].patches) == [4, 1234.5]
    assert {text.get_text() for text in axes[1].texts} == {"4", "1234"}
    (label,) = axes[1].get_xticklabels()
    assert label.get_text() == "ResNet-50:\n12.3 M\nin 161 arrays"
    assert len({style.color for style in plots.STYLES.values()}) == len(plots.STYLES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "x.json"], "--from needs --plot"),
        (["--plot", "out.bmp"], "expected a name that ends in .png, .svg or .pdf: out.bmp"),
        (["--json", "no-such-folder/x.json"], "no folder no-such-folder to write x.json to"),
        (["--plot", "no-such-folder/x.png"], "no folder no-such-folder to write x.png to"),
        (["--from", "no-such.json", "--plot", "out.png"], "no-such.json"),
        (["--only", "half-25m", "--plot", "out.png"], "nothing to draw: measure sizes, or any of"),
    ],
)
def test_refused_before_anything_is_measured(arguments, message, capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "measure", None)
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without_matplotlib(monkeypatch):
    """As if it had not been imported yet."""
    for name in list(sys.modules):
        if name.split(".")[0] == "matplotlib" or name == "mxadamax.commands.bench.plots":
            monkeypatch.delitem(sys.modules, name)
    # A test that gets as far as measuring fails.
    monkeypatch.setattr(measuring, "measure", None)
    return monkeypatch


def test_pictures_need_matplotlib(capsys, without_matplotlib, tmp_path):
    missing = "raise ModuleNotFoundError('No module named matplotlib', name='matplotlib')"
    (tmp_path / "matplotlib.py").write_text(missing)
    without_matplotlib.syspath_prepend(tmp_path)
    assert main(["bench", "--only", "resnet50", "--plot", str(tmp_path / "out.png")]) == 1
    assert "--plot needs matplotlib: pip install 'mxadamax[plot]'" in capsys.readouterr().err


def test_nothing_to_draw(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "in.json").write_text(json.dumps(made_up("half-25m")))
    command = ["--from", str(tmp_path / "in.json"), "--plot", str(tmp_path / "out.png")]
    assert main(["bench", *command]) == 1
    assert "nothing to draw" in capsys.readouterr().err


# As libraries fail that are missing or damaged, or of another NumPy.
BROKEN = [
    "raise OSError('libcudart.so.12: cannot open shared object file')",
    "raise ImportError('libtorch_cpu.so: undefined symbol: x')",
    "raise ModuleNotFoundError('No module named typing_extensions', name='typing_extensions')",
    "raise AttributeError('numpy has no PZERO')",
    "raise RuntimeError('compiled with another NumPy')",
]


def bench(folder, *arguments):
    """The command in a process of its own, where modules in `folder` come before all others."""
    root = str(Path(mxadamax.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-m", "mxadamax", "bench", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), root, *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_pytorch_that_cannot_be_imported_is_left_out(tmp_path):
    (tmp_path / "torch.py").write_text(BROKEN[0])
    report = tmp_path / "report.json"
    done = bench(tmp_path, "--only", "sizes-1000", "--repeat", "1", "--json", str(report))
    assert done.returncode == 0, done.stderr
    said = r"without PyTorch, which cannot be imported: OSError: libcudart.so.12: cannot open"
    assert re.search(said, done.stdout)
    result = json.loads(report.read_text())
    assert result["machine"]["torch"] is None
    assert set(result["cases"]["sizes-1000"]) == TRAINERS | {"bandwidth_baseline"}


@pytest.mark.parametrize(
    ("error", "said"),
    [(error, f"{error[len('raise ') :].split('(')[0]}: ") for error in BROKEN]
    # That it is not installed is not worth a word.
    + [("raise ModuleNotFoundError('torch', name='torch')", None)],
)
def test_what_is_said_of_pytorch(error, said, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(error)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    spec = importlib.util.spec_from_file_location(f"{cases.__name__}_again", cases.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)
    spec.loader.exec_module(again)
    assert again.torch is None
    if said is None:
        assert again.torch_is_broken is None
    else:
        assert again.torch_is_broken.startswith(said)


@pytest.mark.parametrize("error", BROKEN)
def test_a_matplotlib_that_cannot_be_imported_is_named(error, tmp_path, capsys, without_matplotlib):
    """Before anything is measured."""
    (tmp_path / "matplotlib.py").write_text(error)
    without_matplotlib.syspath_prepend(tmp_path)
    assert main(["bench", "--plot", str(tmp_path / "a.png")]) == 1
    output = capsys.readouterr()
    said = error.split("'")[1]
    assert re.search(
        rf"--plot needs matplotlib, which is installed and cannot be imported: \w+: {said}",
        output.err,
    )
    assert output.out == ""
