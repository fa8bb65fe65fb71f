# SPDX-License-Identifier: Apache-2.0
"""Run a distributed training on this machine: a scheduler, workers and servers, on loopback.

    python examples/distributed/launch.py --workers 2 --servers 2 -- python train.py

Every process runs the same command; the environment tells it what it is. What one prints comes out
as it is written, with its role in front. The run ends as a whole: all have ended well, or the first
has failed, or the time is up, or the launcher is told to stop. Nothing it started is left behind.

Exit codes: 0; 1 where a process failed; 2 for wrong arguments; 124 where the time was up; 128 and
the number of the signal (130 for Ctrl-C) where the launcher was told to stop.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Callable, Mapping, Sequence

LOOPBACK = "127.0.0.1"

SECONDS_TO_FINISH = 30.0
"""How long servers and scheduler may go on once all workers have ended."""

SECONDS_TO_TERMINATE = 3.0
"""How long a process has between SIGTERM and SIGKILL."""

SECONDS_TO_EXPLAIN = 1.0
"""How long is read on after a failure: others often say why, and the traceback comes last."""

DROPPED = b"calling ctypes callback function"
"""What Python writes on a server where MXNet drops an exception and goes on without the update."""


class Process:
    """One process of the run, in a process group of its own.

    Parameters
    ----------
    role : {'scheduler', 'server', 'worker'}
        What it is.
    name : str
        What to call it.
    command : sequence of str
        What it runs.
    environment : mapping
        All of its environment variables.
    """

    def __init__(
        self, role: str, name: str, command: Sequence[str], environment: Mapping[str, str]
    ):
        self.role = role
        self.name = name
        self._line = b""
        self._popen = subprocess.Popen(
            command,
            env={**environment, "DMLC_ROLE": role},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        assert self._popen.stdout is not None
        self.output = self._popen.stdout.fileno()

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        running = self._popen.returncode is None
        code = self._popen.poll()
        if running and code is not None:
            # What it has started itself ends with it.
            self.kill(signal.SIGKILL)
        return code

    def kill(self, number: int) -> None:
        """Send a signal to it and to all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def close(self) -> None:
        """Read no more of what it writes."""
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def read(self) -> list[bytes] | None:
        """The lines that it has written since the last time, waiting for at least a part of one.

        None after its last.
        """
        data = os.read(self.output, 1 << 16)
        *lines, self._line = (self._line + data).split(b"\n")
        if not data:
            lines, self._line = [self._line] if self._line else [], b""
            return lines or None
        return lines


def _die_with_parent() -> Callable[[], None] | None:
    """What a new process calls so that Linux ends it if the launcher ends without saying so."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    launcher = os.getpid()

    def call() -> None:
        set_parent_death_signal = 1
        libc.prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(1)

    return call


def environment_of_run(workers: int, servers: int) -> dict[str, str]:
    """What all processes of a run have in their environment, with a free port for the scheduler."""
    # PORT would be the port of every process.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DMLC_") and name != "PORT"
    }
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    # All of them share the processors; a thread of OpenMP that waits would keep one busy.
    threads = max(1, (os.cpu_count() or 1) // (workers + servers))
    return {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        **inherited,
        "DMLC_PS_ROOT_URI": LOOPBACK,
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NODE_HOST": LOOPBACK,
        "DMLC_INTERFACE": "lo",
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": str(servers),
    }


class Run:
    """All processes of a training.

    Parameters
    ----------
    command : sequence of str
        What each of them runs.
    workers, servers : int >= 1
        How many.

    Raises
    ------
    OSError
        Where the command cannot be run.
    """

    def __init__(self, command: Sequence[str], workers: int, servers: int):
        self.processes: list[Process] = []
        self._selector = selectors.DefaultSelector()
        self._dropped: Process | None = None
        self._signal: int | None = None
        environment = environment_of_run(workers, servers)
        try:
            for role, count in (("scheduler", 1), ("server", servers), ("worker", workers)):
                for number in range(count):
                    name = role if role == "scheduler" else f"{role} {number}"
                    process = Process(role, name, command, environment)
                    self.processes.append(process)
                    self._selector.register(process.output, selectors.EVENT_READ, process)
        except BaseException:
            self.stop()
            raise

    def tell(self, number: int, _frame: object = None) -> None:
        """Tell the run to end, as a handler of signals."""
        self._signal = number

    def wait(self, seconds: float) -> tuple[int, str]:
        """Wait until the run has ended or must be ended, passing on what the processes write.

        Returns the exit code of the run, and why where it is not 0.
        """
        deadline = time.monotonic() + seconds
        workers_ended = None
        while True:
            self._pass_on(0.2)
            now = time.monotonic()
            running = [process for process in self.processes if process.code is None]
            if not running:
                self._pass_on_for(0.0)
            if self._signal is not None:
                return 128 + self._signal, f"told to stop by {signal.Signals(self._signal).name}"
            if self._dropped or any(process.code for process in self.processes):
                self._pass_on_for(SECONDS_TO_EXPLAIN)
                return 1, self._failure()
            if not running:
                return 0, ""
            if now > deadline:
                return 124, f"not finished after {seconds:g} s: {_list(running)}"
            if workers_ended is None and not any(p.role == "worker" for p in running):
                workers_ended = now
            if workers_ended is not None and now > workers_ended + SECONDS_TO_FINISH:
                return 1, f"all workers have ended, but not {_list(running)}"

    def _failure(self) -> str:
        """What has failed first, as far as can be told."""
        if self._dropped:
            return f"{self._dropped.name} has dropped an exception, and an update with it"
        failed = next(process for process in self.processes if process.code)
        if failed.code < 0:
            return f"{failed.name} was ended by {signal.Signals(-failed.code).name}"
        return f"{failed.name} ended with exit code {failed.code}"

    def stop(self) -> None:
        """End all that still run, and what they have started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                if process.code is None:
                    process.kill(number)
            deadline = time.monotonic() + SECONDS_TO_TERMINATE
            while time.monotonic() < deadline and any(p.code is None for p in self.processes):
                self._pass_on(0.05)
        self._pass_on_for(0.0)
        self._selector.close()
        for process in self.processes:
            process.close()

    def _pass_on(self, seconds: float) -> bool:
        """Print what has been written, waiting for this long for something; whether there was."""
        if not self._selector.get_map():
            time.sleep(seconds)
            return False
        events = self._selector.select(seconds)
        for key, _ in events:
            process: Process = key.data
            lines = process.read()
            if lines is None:
                self._selector.unregister(process.output)
                continue
            for line in lines:
                if DROPPED in line and process.role == "server":
                    self._dropped = self._dropped or process
                self._print(f"{process.name:9} | {line.decode(errors='replace')}")
        return bool(events)

    def _pass_on_for(self, seconds: float) -> None:
        """Print what is written within this time, and what has been written before."""
        deadline = time.monotonic() + seconds
        while self._pass_on(0.05 if seconds else 0.0) or time.monotonic() < deadline:
            pass

    def _print(self, line: str) -> None:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            # Nobody reads any more: as for any command in a pipe, that is the end.
            self.tell(signal.SIGPIPE)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _list(processes: Sequence[Process]) -> str:
    return ", ".join(process.name for process in processes)


def launch(command: Sequence[str], workers: int, servers: int, seconds: float) -> int:
    """Run a training and return the exit code that the module's docstring lists.

    Parameters
    ----------
    command : sequence of str
        What every process runs.
    workers, servers : int >= 1
        How many of each.
    seconds : float > 0
        After which the run is ended.
    """
    # Until the handlers are set, Linux ends what has been started if the launcher is ended.
    try:
        run = Run(command, workers, servers)
    except OSError as error:
        print(f"launch: cannot run {command[0]!r}: {error}", file=sys.stderr)
        return 1
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, run.tell) for number in numbers]
    try:
        code, reason = run.wait(seconds)
        if reason:
            print(f"launch: {reason}", file=sys.stderr, flush=True)
        return code
    finally:
        run.stop()
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)


def at_least_one(text: str) -> int:
    """A number of processes."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def positive(text: str) -> float:
    """A time in seconds."""
    if not 0.0 < float(text) < 1e9:
        raise argparse.ArgumentTypeError(f"must be in (0, 1e9), got {text}")
    return float(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="%(prog)s [options] -- command [argument ...]"
    )
    parser.add_argument("-n", "--workers", type=at_least_one, default=2, metavar="N")
    parser.add_argument("-s", "--servers", type=at_least_one, default=1, metavar="M")
    parser.add_argument(
        "--timeout", type=positive, default=3600.0, metavar="SECONDS", help="of the whole run"
    )
    parser.add_argument("command", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    return launch(arguments.command, arguments.workers, arguments.servers, arguments.timeout)


if __name__ == "__main__":
    sys.exit(main())
