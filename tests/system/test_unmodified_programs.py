# SPDX-License-Identifier: Apache-2.0
"""``mxadamax run`` behaves like Python itself: numbers, arguments, errors, codes, signals, children."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mxnet as mx
import pytest
from common import NUMPY_BOOL, PACKAGE

import mxadamax_hook
from mxadamax.commands import install_hook

TRAIN = f"""{NUMPY_BOOL}
import hashlib
import os
import sys
import mxnet as mx
from mxnet import autograd, gluon

def train(name="adam", count=12):
    mx.random.seed(1)
    arrays = mx.np if mx.__version__.startswith("2") else mx.nd
    parameters = [gluon.Parameter(f"p{{k}}_weight", shape=(k + 1, 3)) for k in range(count)]
    for parameter in parameters:
        parameter.initialize(mx.init.Normal(1))
    trainer = gluon.Trainer(parameters, name, {{"learning_rate": 0.1, "wd": 0.01}})
    for _ in range(5):
        with autograd.record():
            losses = [(parameter.data() ** 4).sum() for parameter in parameters]
        autograd.backward(losses)
        trainer.step(3)
    digest = hashlib.sha1(b"".join(p.data().asnumpy().tobytes() for p in parameters))
    return digest.hexdigest()
"""


def run(
    *arguments: object, plainly: bool = False, options: tuple[str, ...] = (), **environment: str
):
    """Run a program with Python, or with the command."""
    paths = [str(PACKAGE), *filter(None, sys.path)]
    start = f"import sys; sys.path[:0] = {paths!r}; import mxadamax_hook; mxadamax_hook.main()"
    command = [sys.executable, *map(str, arguments)]
    if not plainly:
        command[1:1] = ["-c", start, "run", *options]
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def program(folder: Path, code: str, name: str = "program.py") -> Path:
    path = folder / name
    path.write_text(f"{TRAIN}\n{code}")
    return path


def without_log(text: str) -> str:
    """What MXNet 2 says with the time of day."""
    return re.sub(r"(?m)^\[\d\d:\d\d:\d\d\] .*\n", "", text)


@pytest.mark.quick
def test_the_same_program_in_both_ways(tmp_path):
    """Arguments, name, path, modules and numbers; in the end there is a report."""
    code = """
print(train(), __name__, __file__, sys.argv, sys.path)
print(sys.modules["__main__"].__dict__ is globals(), __spec__, os.environ["OMP_NUM_THREADS"])
"""
    path = program(tmp_path, code)
    arguments = (path, "--report", "-m", "a b", "")
    plain = run(*arguments, plainly=True, OMP_NUM_THREADS="1")
    found = run(*arguments, options=("--report", "--verify=2"), OMP_NUM_THREADS="1")
    assert plain.returncode == found.returncode == 0, found.stderr
    assert found.stdout == plain.stdout
    said = without_log(found.stderr)
    assert said == without_log(plain.stderr) + (
        "mxadamax: adam: the first 2 updates gave MXNet's bits\\n"
        "mxadamax: adam: 60 updates native\\n"
    ).replace("\\n", "\n")


@pytest.mark.skipif(mx.__version__ >= "2", reason="these libraries run on MXNet 1")
@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("autogluon_tabular", "autogluon.tabular"),
        ("gluoncv_images", "gluoncv"),
        ("gluonnlp_language_model", "gluonnlp"),
        ("gluonts_forecasts", "gluonts"),
    ],
)
def test_programs_of_others(name: str, library: str) -> None:
    """Where their library is installed; nox makes an environment for each."""
    try:
        importlib.metadata.distribution(library)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {library}: nox -s \"programs(program='{name}')\"")
    tests = Path(__file__).parents[1]
    # Without tests/support/hidden, which hides libraries that these need.
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            str(tests.parent / "scripts" / "compare_programs.py"),
            str(tests / "programs" / f"{name}.py"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bits" in done.stdout
    assert " by MXNet: " not in done.stdout, done.stdout


def test_mxnet_is_not_imported_before_the_program_does(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        "import sys\n"
        "print([m for m in sys.modules if m.startswith(('mxnet', 'mxadamax.', 'numpy'))])\n"
    )
    found = run(path)
    assert (found.returncode, found.stdout, found.stderr) == (0, "[]\n", "")


def test_a_module(tmp_path):
    program(tmp_path, "print(train(), __name__, sys.argv[1:], sys.path[0])", "some_module.py")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = ["-m", "some_module", "x"]
    results = []
    for plainly in (True, False):
        old = os.getcwd()
        os.chdir(tmp_path)
        try:
            results.append(run(*command, plainly=plainly))
        finally:
            os.chdir(old)
    plain, found = results
    assert found.returncode == 0, (found.stderr, paths)
    assert found.stdout == plain.stdout


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(7)",
        "sys.exit('a message')",
        "raise LookupError('lost')",
        "def f():\n    1 / 0\nf()",
        "os._exit(5)",
        "import signal; os.kill(os.getpid(), signal.SIGTERM)",
        "raise KeyboardInterrupt",
        "import atexit; atexit.register(print, 'the end'); sys.exit(3)",
        "this is no Python",
    ],
)
def test_ends(end, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(f"import os\nimport sys\nprint(1, flush=True)\n{end}\n")
    plain, found = run(path, plainly=True), run(path)
    assert found.returncode == plain.returncode
    assert found.stdout == plain.stdout
    assert found.stderr == plain.stderr


def test_an_error_after_a_training(tmp_path):
    """The traceback shows nothing of this package."""
    path = program(tmp_path, "train('sgd', 2)\nraise LookupError('lost')\n")
    plain, found = run(path, plainly=True), run(path)
    assert found.returncode == plain.returncode == 1
    assert without_log(found.stderr) == without_log(plain.stderr)


def test_an_interrupt_from_outside(tmp_path):
    path = program(tmp_path, "print(train(), flush=True)\nimport time\ntime.sleep(60)\n")
    codes = []
    for command in (
        [sys.executable, str(path)],
        [sys.executable, "-c", "import mxadamax_hook; mxadamax_hook.main()", "run", str(path)],
    ):
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Whoever started the tests may have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE), *sys.path])),
            },
        )
        process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        codes.append((process.returncode, error.splitlines()[-1]))
    assert codes[0] == codes[1]


@pytest.fixture(scope="module")
def plain_digest(tmp_path_factory):
    path = program(tmp_path_factory.mktemp("plain"), "print(train())")
    return run(path, plainly=True).stdout.strip()


CHILD = "print(train(), __import__('mxadamax').acceleration_report()['adam']['native'])"


@pytest.mark.parametrize(
    "how",
    [
        "import multiprocessing as m\np = m.get_context('spawn').Process(target=child); p.start(); p.join()",
        "import subprocess\nsubprocess.run([sys.executable, __file__, 'child'])",
        "pid = os.fork()\nif pid == 0:\n    child()\n    sys.stdout.flush()\n    os._exit(0)\nos.waitpid(pid, 0)",
    ],
    ids=["spawn", "subprocess", "fork"],
)
def test_processes_that_the_program_starts(how, plain_digest, tmp_path):
    indented = how.replace("\n", "\n    ")
    code = (
        f"def child():\n    {CHILD}\n"
        "if sys.argv[1:] == ['child']:\n    child()\n"
        f"elif __name__ == '__main__':\n    {indented}\n"
    )
    found = run(program(tmp_path, code))
    assert found.returncode == 0, found.stderr
    digest, native = found.stdout.split()
    assert int(native) == 60
    assert digest == plain_digest


def test_a_bit_that_differs_ends_the_program(tmp_path):
    code = """
import mxadamax.optimizers.base
right = mxadamax.optimizers.base.native_update
def wrong(twin, indices, weights, *others):
    right(twin, indices, weights, *others)
    weights[3][:] = weights[3] * 1.0001
mxadamax.optimizers.base.native_update = wrong
train()
print("not reached")
"""
    found = run(program(tmp_path, code), options=("--verify", "3"))
    assert found.returncode == 1
    assert "not reached" not in found.stdout
    assert "mxadamax: adam, step 1: parameter" in found.stderr
    assert "weight is not MXNet's: element 0 is" in found.stderr


def test_a_program_goes_on_where_this_package_fails(tmp_path):
    """With one sentence; as it would without it."""
    path = program(tmp_path, "print(train())")
    broken = tmp_path / "broken"
    (broken / "mxadamax").mkdir(parents=True)
    (broken / "mxadamax" / "__init__.py").write_text("raise ImportError('of another Python')")
    environment = mxadamax_hook.environment({"PYTHONPATH": str(PACKAGE)})
    paths = [environment["PYTHONPATH"].split(os.pathsep)[0], str(broken), str(PACKAGE)]
    environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, sys.path)])
    found = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "mxadamax: not accelerated: ImportError: of another Python" in found.stderr
    assert found.stdout == run(path, plainly=True).stdout


def test_the_machines_own_sitecustomize_runs_too(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')\n")
    path = tmp_path / "program.py"
    path.write_text("import sitecustomize\nprint(sitecustomize.__file__)\n")
    paths = os.pathsep.join([str(tmp_path), str(PACKAGE)])
    environment = mxadamax_hook.environment({**os.environ, "PYTHONPATH": paths})
    found = subprocess.run(
        [sys.executable, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.stdout == f"mine\n{tmp_path / 'sitecustomize.py'}\n", found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "names no program"),
        (["-m"], "names no program"),
        (["--verify", "0", "x.py"], "--verify must be a whole number from 1, got '0'"),
        (["--verify=many", "x.py"], "--verify must be a whole number from 1, got 'many'"),
        (["--verify"], "unknown option '--verify'"),
        (["--fast", "x.py"], "unknown option '--fast'"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as info:
        mxadamax_hook.run(arguments)
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_of_the_command_line(tmp_path):
    """`python -m mxadamax run` has the options of `mxadamax run`."""
    path = program(tmp_path, 'print(train(), sys.argv, "mxadamax" in sys.modules)')
    found = run("-m", "mxadamax", "run", "--report", "--verify", "2", path, "-x", plainly=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == run(path, "-x", options=("--report",)).stdout
    assert "updates native" in found.stderr


def test_help(capsys):
    with pytest.raises(SystemExit) as info:
        mxadamax_hook.run(["--help"])
    assert info.value.code == 0
    assert "--verify N" in capsys.readouterr().out


def test_the_hook_is_installed_and_removed(tmp_path, monkeypatch, capsys):
    from mxadamax.__main__ import main

    path = tmp_path / install_hook.NAME
    for module in ("install_hook", "remove_hook"):
        monkeypatch.setattr(f"mxadamax.commands.{module}.hook_path", lambda: path)
    assert main(["install-hook"]) == 0
    code = f"import site; site.addsitedir({str(tmp_path)!r})\n{TRAIN}\n{CHILD.replace('[', '.get(', 1).replace(']', ', {})', 1)}"
    code = code.replace("['native']", ".get('native', 0)")
    paths = os.pathsep.join([str(PACKAGE), *filter(None, sys.path)])
    counts = []
    for value in ("1", "0", ""):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": paths, mxadamax_hook.VARIABLE: value},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        counts.append(done.stdout.split()[1])
    assert counts == ["60", "0", "0"]
    assert main(["remove-hook"]) == 0
    assert not path.exists()
    assert main(["remove-hook"]) == 0
    assert "there is no" in capsys.readouterr().out
    monkeypatch.setattr(
        "mxadamax.commands.install_hook.hook_path", lambda: tmp_path / "nowhere" / "x.pth"
    )
    assert main(["install-hook"]) == 1
    assert "mxadamax install-hook: " in capsys.readouterr().err
