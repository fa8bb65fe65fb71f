# SPDX-License-Identifier: Apache-2.0
"""Random updates, arrays, options and checkpoints, of which many are wrong, to find what breaks.

    python scripts/fuzz.py --seconds 600           other cases each time; says where they begin
    python scripts/fuzz.py --first 1234 --cases 1  one case again

A case is right if it ends in what the plain definition of the optimizer computes, to the last bit,
or in a documented exception with no array and no count changed. Cases run in another process, of
which the end or a long silence is a finding too.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "tests/support")
]

SILENCE = 120
"""Seconds after which a case counts as one that hangs; a busy machine is slow."""


def of(rng, *choices):
    """One of these."""
    return choices[rng.randint(len(choices))]


class Finding(AssertionError):  # noqa: N818
    """What must not be."""


def hostile(rng):
    """What somebody might give for a number, or anything else."""
    return of(
        rng,
        *(math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1.0, 1e300, -1e300, 5e-324, 1e-40, 1e38),
        *(2**70, -(2**70), True, False, None, "0.9", "", b"1", [], [0.9], {}, 1j, object(), int),
        *(0.5, 1 - 1e-16, 1e-8),
    )


def state_dtype(rng):
    """One dtype, also of small arrays; or what one dtype for all means."""
    found = of(rng, None, "float16", "bfloat16", "int8")
    return found if found is None or rng.randint(4) == 0 else {".*": found}


OPTIONS = {
    "learning_rate": lambda rng: float(10 ** rng.uniform(-6, 1)),
    "wd": lambda rng: of(rng, 0.0, 0.1, 1e-5),
    "rescale_grad": lambda rng: of(rng, 1.0, -0.5, 1 / 3, 0.0, 1e-30),
    "clip_gradient": lambda rng: of(rng, None, 0.0, 0.5, 1e30, math.inf),
    "maximize": lambda rng: bool(rng.randint(2)),
    "decoupled_wd": lambda rng: bool(rng.randint(2)),
    "begin_num_update": lambda rng: of(rng, 0, 5, 10**6),
    "ema_decay": lambda rng: of(rng, None, 0.0, 0.9, 1 - 1e-12),
    "skip_nonfinite": lambda rng: bool(rng.randint(2)),
    "multi_precision": lambda rng: bool(rng.randint(2)),
    "aggregate_num": lambda rng: of(rng, 0, 1, 2, 1000),
    "lazy_update": lambda rng: bool(rng.randint(2)),
    "state_dtype": state_dtype,
    "state_seed": lambda rng: rng.randint(0, 2**20),
    "clip_global_norm": lambda rng: of(rng, None, 0.1, 1e6, math.inf),
    "beta1": lambda rng: of(rng, 0.0, 0.9, 0.999999),
    "beta2": lambda rng: of(rng, 0.0, 0.9, 0.999999),
    "rho": lambda rng: of(rng, 0.0, 0.9, 0.999999),
    "momentum": lambda rng: of(rng, 0.0, 0.9),
    "epsilon": lambda rng: of(rng, 0.0, 1e-8, 1.0, 1e-40),
    "clip_weights": lambda rng: of(rng, None, 0.3, math.inf),
    "centered": lambda rng: bool(rng.randint(2)),
    "amsgrad": lambda rng: bool(rng.randint(2)),
    "correct_bias": lambda rng: bool(rng.randint(2)),
    "schedule_decay": lambda rng: of(rng, 0.004, 0.0, 0.5),
}


WITHOUT_DEFINITION = ("state_dtype", "lazy_update")
"""Options that only the native update has."""


class Cases:
    """Everything that needs MXNet; made in the process that runs the cases."""

    def __init__(self):
        # Before mxnet, which Python 3.12 cannot import by itself.
        import mxadamax
        from mxadamax.optimizers.base import FusedOptimizer

        # isort: split
        import common
        import mxnet as mx
        import numpy as np
        from family import CLASSES

        self.mx, self.np, self.common, self.package = mx, np, common, mxadamax
        self.names = sorted(
            n
            for n, c in mx.optimizer.Optimizer.opt_registry.items()
            if issubclass(c, FusedOptimizer)
        )
        assert len(self.names) >= len(CLASSES)
        # Of what is no array, MXNet's own check comes first, as an assertion without a message.
        self.refusals = (ValueError, TypeError, AssertionError, mx.MXNetError)

    def run(self, seed):
        """One case; raises Finding, or what else should not come out."""
        rng = self.np.random.RandomState(seed)
        kinds = (self.updates, self.updates, self.updates, self.numpy, self.checkpoint)
        with self.mx.util.np_shape(True):
            return of(rng, *kinds)(rng)

    # Arrays.

    def values(self, rng, shape, dtype):
        np = self.np
        found = rng.standard_normal(shape) * 10.0 ** rng.uniform(-5, 2, shape)
        if rng.randint(4) == 0 and found.size:
            special = of(rng, np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, 3e38, 65504.0)
            found = np.where(rng.rand(*shape) < of(rng, 0.01, 0.5), special, found)
        with np.errstate(over="ignore"):
            return np.asarray(found, dtype)

    def array(self, values, dtype):
        found = self.common.nd(values)
        return found.astype(self.package.dtypes.BFLOAT16) if dtype == "bfloat16" else found

    def bits(self, array):
        """The content of any NDArray."""
        dense = array if array.stype == "default" else array.tostype("default")
        short = dense.dtype == self.package.dtypes.BFLOAT16
        return (dense.astype("float32") if short else dense).asnumpy()

    def everything(self, arrays):
        return [self.bits(a).tobytes() for a in arrays]

    # Updates through MXNet's engine.

    def options(self, rng, name):
        """Some that the optimizer has; now and then one that it has not, or a hostile value."""
        cls = self.mx.optimizer.Optimizer.opt_registry[name]
        own = {parameter for base in cls.__mro__ for parameter in self.parameters(base)}
        chosen = {}
        for name in rng.permutation(sorted(own & set(OPTIONS)))[: rng.randint(0, 8)]:
            chosen[str(name)] = OPTIONS[name](rng)
        if rng.randint(5) == 0:
            chosen[str(of(rng, *sorted(OPTIONS)))] = hostile(rng)
        return chosen

    def parameters(self, cls):
        return inspect.signature(cls.__init__).parameters

    def optimizer(self, name, options):
        """The optimizer, or None where the options are refused as they should be."""
        try:
            return self.mx.optimizer.create(name, **options)
        except (ValueError, TypeError) as error:
            if name not in str(error):
                raise Finding(f"refused without the optimizer's name: {error!r}") from error
            return None

    def updates(self, rng):
        name = of(rng, *self.names)
        options = self.options(rng, name)
        optimizer = self.optimizer(name, options)
        if optimizer is None:
            return "options refused"
        count = of(rng, 0, 1, 2, 5, 30)
        dtypes = [of(rng, "float32", "float32", "float64", "float16", "bfloat16")] * count
        if rng.randint(3) == 0:
            dtypes = [of(rng, "float32", "float64", "float16", "bfloat16") for _ in dtypes]
        shapes = [
            of(rng, (), (0,), (1,), (7,), (64,), (513,), (3, 4), (2, 0, 3), (20, 30), (40000,))
            for _ in dtypes
        ]
        plain = ["float32" if d == "bfloat16" else d for d in dtypes]
        start = [self.values(rng, s, d) for s, d in zip(shapes, plain)]
        steps = [[self.values(rng, s, d) for s, d in zip(shapes, plain)] for _ in range(3)]
        # Without a definition, and where it rounds in another way, parameters one by one.
        apart = any(options.get(key) for key in WITHOUT_DEFINITION) or "bfloat16" in dtypes
        reference = self.optimizer(name, options if apart else {**options, "use_fused_step": False})
        if reference is None:
            raise Finding(f"{name} {options}: refused without use_fused_step only")
        if apart and reference._whole_model_option:
            reference = None
        broken = rng.randint(3) if rng.randint(2) else None
        rows = rng.randint(4) == 0 and count > 0
        mine = self.model(optimizer, start, dtypes)
        theirs = reference and self.model(reference, start, dtypes)
        for step, grads in enumerate(steps):
            given = [self.array(g, d) for g, d in zip(grads, dtypes)]
            if rows:
                given = self.in_rows(given, dtypes)
            if step == broken and count and self.refused(rng, mine, given):
                return "arrays refused"
            before = self.everything(given)
            outcome = self.step(mine, given)
            if outcome is not None:
                return outcome
            if rng.randint(2):
                del given
            else:
                self.mx.nd.waitall()
                if self.everything(given) != before:
                    raise Finding(f"{name} {options}: a gradient has been written")
            if theirs is not None:
                again = [self.array(g, d) for g, d in zip(grads, dtypes)]
                if rows:
                    # A row of -0 is none.
                    again = self.in_rows(again, dtypes)
                    again = again if apart else [a.tostype("default") for a in again]
                outcome = self.step(theirs, again, apart)
                if outcome is not None:
                    raise Finding(f"{name} {options}: only the definition is refused: {outcome}")
        if theirs:
            self.compare(mine, theirs, f"{name} {options} {dtypes} {shapes} rows={rows}")
        self.mx.nd.waitall()
        return "updated"

    def in_rows(self, arrays, dtypes):
        return [
            a.tostype("row_sparse") if a.ndim and a.size and d in ("float32", "float64") else a
            for a, d in zip(arrays, dtypes)
        ]

    def model(self, optimizer, start, dtypes):
        weights = [self.array(w, d) for w, d in zip(start, dtypes)]
        try:
            states = [optimizer.create_state_multi_precision(k, w) for k, w in enumerate(weights)]
        except ValueError as error:
            raise Finding(f"no state: {error}") from error
        return optimizer, weights, states

    def arrays_of(self, model):
        _, weights, states = model

        def flat(state):
            if state is None:
                return []
            if isinstance(state, (tuple, list)):
                return [x for part in state for x in flat(part)]
            return [state]

        return [*weights, *(x for state in states for x in flat(state))]

    def counts(self, optimizer):
        return optimizer.num_update, dict(optimizer._index_update_count)

    def step(self, model, grads, apart=False):
        """Updates; None, or the refusal in a word. Whatever is refused changes nothing."""
        optimizer, weights, states = model
        before, counts = self.everything(self.arrays_of(model)), self.counts(optimizer)
        try:
            indices = range(len(weights))
            for group in [[k] for k in indices] if apart else [list(indices)]:
                chosen = ([x[k] for k in group] for x in (weights, grads, states))
                optimizer.update_multi_precision(group, *chosen)
            self.mx.nd.waitall()
        except self.refusals as error:
            self.mx.nd.waitall()
            if not apart and self.everything(self.arrays_of(model)) != before:
                raise Finding(f"refused, but arrays have changed: {error}") from error
            if not apart and isinstance(error, ValueError) and self.counts(optimizer) != counts:
                raise Finding(f"refused, but counts have changed: {error}") from error
            return f"refused: {type(error).__name__}"
        return None

    def compare(self, mine, theirs, where):
        np = self.np
        clipped = mine[0].clip_global_norm is not None
        for k, (a, b) in enumerate(zip(self.arrays_of(mine), self.arrays_of(theirs))):
            a, b = self.bits(a), self.bits(b)
            if clipped:
                # Norms are sums, which the definition takes in another order.
                with np.errstate(all="ignore"):
                    wide = [x.astype("float64") for x in (a, b)]
                    near = np.isclose(*wide, rtol=0.02, atol=1e-2, equal_nan=True)
                if not near.all():
                    raise Finding(f"{where}, array {k}: {a[~near][:3]} for {b[~near][:3]}")
                continue
            if a.dtype.itemsize < 4:
                a, b = a.astype("float32"), b.astype("float32")
            self.common.assert_same_bits(a, b, f"{where}, array {k}")

    def refused(self, rng, model, grads):
        """Breaks an array of a model; whether the step is refused, as it must be."""
        mx = self.mx
        optimizer, weights, states = model
        at = rng.randint(len(weights))
        weight = weights[at]
        other = mx.nd.ones((3, 3, 3))

        class Foreign:
            def __init__(self, value):
                self.handle = type("Handle", (), {"value": value})()
                self.stype, self.dtype, self.context, self.size = "default", "float32", mx.cpu(), 1

        nothing = of(
            rng, None, 3, "w", b"", [], Foreign(None), Foreign(0), Foreign("x"), Foreign(2**70)
        )
        breaks = {
            "gradient shape": lambda: grads.__setitem__(at, other.astype(grads[at].dtype)),
            "gradient dtype": lambda: grads.__setitem__(
                at, mx.nd.ones(weight.shape, dtype="int32")
            ),
            "gradient is the weight": lambda: grads.__setitem__(at, weight),
            "no gradient": lambda: grads.__setitem__(at, nothing),
            "no weight": lambda: weights.__setitem__(at, nothing),
            "no state": lambda: states.__setitem__(
                at, of(rng, 3, "s", (1,), (None, None, None, None, None))
            ),
            "state twice": lambda: states.__setitem__(at, self.twice(states[at])),
            "one too few": lambda: grads.pop(),
        }
        if len(weights) > 1:
            second = (at + 1) % len(weights)
            breaks["weight twice"] = lambda: weights.__setitem__(at, weights[second])
            breaks["state of another"] = lambda: states.__setitem__(at, states[second])
        if weight.ndim and weight.shape[0] > 1:
            breaks["a view"] = lambda: grads.__setitem__(at, weight[0 : weight.shape[0]])
        kept = list(weights), list(states)
        what = of(rng, *sorted(breaks))
        before, counts = self.everything(self.arrays_of(model)), self.counts(optimizer)
        breaks[what]()
        same = all(a is b for a, b in zip([*weights, *states], [*kept[0], *kept[1]]))
        if same and "state" in what:
            return False
        error = None
        try:
            optimizer.update_multi_precision(list(range(len(kept[0]))), weights, grads, states)
        except self.refusals as found:
            error = found
        except (AttributeError, IndexError) as found:
            raise Finding(f"{what}, {nothing!r}: not a documented refusal: {found!r}") from found
        mx.nd.waitall()
        weights[:], states[:] = kept
        if error is None:
            if what == "state twice":
                return False
            raise Finding(f"{optimizer.registered_name}: {what} was accepted")
        if self.everything(self.arrays_of(model)) != before:
            raise Finding(f"{what}: refused, but arrays have changed")
        if self.counts(optimizer) != counts:
            raise Finding(f"{what}: refused, but counts have changed: {error}")
        return True

    def twice(self, state):
        return (state[0],) * len(state) if isinstance(state, tuple) and len(state) > 1 else state

    # The kernels, with NumPy's arrays.

    def numpy(self, rng):
        np = self.np
        from mxadamax import _native, _native_testing

        rule = of(rng, *_native.rules)
        dtype = of(rng, "float32", "float64", "float16", "int32", ">f4")
        shapes = [
            of(rng, (), (0,), (1,), (33,), (40000,), (3, 5)) for _ in range(rng.randint(0, 6))
        ]
        make = lambda: [np.asarray(rng.rand(*s), dtype) for s in shapes]  # noqa: E731
        weights, grads = make(), make()
        states = [list(x) for x in zip(*(make() for _ in range(_native.rules[rule].states)))]
        states = states or [[] for _ in shapes]
        if rng.randint(3) == 0 and shapes:
            which = of(rng, weights, grads)
            which[0] = of(rng, which[0].T, which[0][..., None], which[0].astype("int8"), None, "x")
        scalars = {"rescale_grad": 1.0, "clip_gradient": math.inf, "wd": 0.0, "decay_factor": 1.0}
        for key in ("lr", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "epsilon", "rho",
                    "one_minus_rho", "momentum", "clip_weights", "one_minus_momentum",
                    "next_momentum", "grad_divisor", "m_divisor", "v_divisor"):  # fmt: skip
            scalars[key] = of(rng, 0.5, 0.25, 2.0)
        if rng.randint(2):
            scalars[of(rng, "lr", "wd", "nonsense")] = hostile(rng)
        try:
            _native_testing.update_numpy(
                rule, weights, grads, states, scalars, threads=rng.randint(0, 5)
            )
        except (ValueError, TypeError, RuntimeError, _native.ParameterError):
            return "kernel refused"
        return "kernel ran"

    # Checkpoints.

    def training(self, rng, name, options, shapes):
        gluon, mx = self.mx.gluon, self.mx
        parameters = []
        for k, shape in enumerate(shapes):
            parameter = gluon.Parameter(f"w{k}", shape=shape)
            parameter.initialize(mx.init.One(), ctx=mx.cpu())
            parameters.append(parameter)
        trainer = gluon.Trainer(
            {p.name: p for p in parameters} if not self.common.IS_MXNET_1 else parameters,
            self.mx.optimizer.create(name, **options),
            kvstore=None,
        )
        return parameters, trainer

    def train(self, parameters, trainer):
        with self.mx.autograd.record():
            loss = sum((p.data() * p.data()).sum() for p in parameters)
        loss.backward()
        trainer.step(1)
        self.mx.nd.waitall()

    def everything_of(self, parameters, trainer):
        optimizer = trainer.optimizer
        updater = self.package._mxnet.trainer.updaters_of(trainer)[0]
        arrays = [
            p.data().as_nd_ndarray() if hasattr(p.data(), "as_nd_ndarray") else p.data()
            for p in parameters
        ]
        model = (None, arrays, [updater.states[k] for k in sorted(updater.states)])
        plain = {
            k: repr(v)
            for k, v in vars(optimizer).items()
            if isinstance(v, (int, float, str, dict, type(None)))
            and k not in ("param_dict", "_step_trackers")
        }
        return self.everything(self.arrays_of(model)), sorted(updater.states), plain

    def checkpoint(self, rng):
        name = of(rng, *self.names)
        options = {}
        if rng.randint(2):
            options = {"ema_decay": 0.9} if rng.randint(2) else {"skip_nonfinite": True}
        shapes = [(3, 4), (5,), (2, 2)]
        first, second = (self.training(rng, name, options, shapes) for _ in range(2))
        self.train(*first)
        self.train(*second)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "states")
            self.package.save_states(first[1], file)
            content = file.read_bytes()
            content, what = self.mutated(rng, content)
            file.write_bytes(content)
            before = self.everything_of(*second)
            try:
                self.package.load_states(second[1], file)
            except ValueError as error:
                if str(file) not in str(error):
                    raise Finding(f"{what}: refused without the file's name: {error}") from error
                if self.everything_of(*second) != before:
                    raise Finding(f"{what}: refused, but something has changed: {error}") from error
            except OSError:
                pass
            else:
                # What has been accepted must go on, or say why it cannot.
                try:
                    self.train(*second)
                except self.refusals as error:
                    raise Finding(f"{name}: {what}: loaded, but cannot go on: {error}") from error
            to = of(rng, *self.names, name[:-4], "nonsense")
            try:
                self.package.checkpoints.convert(file, Path(folder, "new"), to)
            except (ValueError, OSError):
                if Path(folder, "new").exists():
                    raise Finding(f"{what}: convert to {to} has failed and left a file") from None
        return "checkpoint"

    def mutated(self, rng, content):
        """A file of states with something changed, and what."""
        kind = rng.randint(10)
        if kind == 0:
            return content[: rng.randint(len(content))], "truncated"
        if kind == 1:
            at = rng.randint(len(content) // 2, len(content))
            return content[:at] + bytes([rng.randint(256)]) * rng.randint(1, 5) + content[
                at:
            ], "bytes put in"
        states, optimizer = pickle.loads(content)
        if kind < 6:
            attribute = of(rng, *sorted(vars(optimizer)))
            if rng.randint(3) == 0:
                vars(optimizer).pop(attribute)
                what = f"without {attribute}"
            else:
                value = hostile(rng)
                vars(optimizer)[attribute] = value
                what = f"{attribute}={value!r}"
            needed = ("param_dict", "lr_mult", "wd_mult", "_state_cache", "_last_step_tracker",
                      "ema_swapped_in", "_step_trackers")  # fmt: skip
            if attribute == "_keys" or (attribute in needed and "without" in what):
                # The pickle cannot be made.
                return content, "as it was"
        else:
            index = of(rng, *sorted(states))
            ones = self.mx.nd.ones
            value = of(
                rng, None, 3, "s", (), (None,), ones((3, 4)), (ones((3, 4)), ones((3, 4))),
                (ones((5,)), ones((5,))), [ones((5,))] * 2, (ones((5,), dtype="float64"),) * 2,
                {}, ones((0,)), ((ones((5,)), ones((5,))), ones((5,))),
                ones((5,)).tostype("row_sparse"),
            )  # fmt: skip
            if kind == 6:
                states[index] = value
            elif kind == 7:
                states.pop(index)
            elif kind == 8:
                states[of(rng, -1, 3, "a", None, 1.0, True, (1,), 10**30)] = value
            else:
                states, optimizer = of(
                    rng, (states, 1), (optimizer, states), ([], optimizer), (value, None)
                )
            what = f"states[{index}], kind {kind}, {type(value).__name__}"
        try:
            return pickle.dumps((states, optimizer)), what
        except Exception:
            return content, "as it was"


def work(first, last):
    """Runs cases and writes a line before and after each."""
    cases = Cases()
    for case in range(first, last):
        print("case", case, flush=True)
        try:
            outcome = cases.run(case)
        except Exception as error:
            kind = "" if isinstance(error, Finding) else f"{type(error).__name__}: "
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(
                f"found {case} {kind}{error} ({Path(where.filename).name}:{where.lineno})".replace(
                    "\n", " "
                ),
                flush=True,
            )
        else:
            print("done", case, outcome, flush=True)


def supervise(first, cases, seconds):
    """Runs cases in processes until time is up; returns what was found."""
    end, found, outcomes, case = time.monotonic() + seconds, [], {}, first
    last = first + cases if cases else first + 10**9
    while time.monotonic() < end and case < last:
        process = subprocess.Popen(
            [sys.executable, __file__, "--work", "--first", str(case), "--cases", str(last - case)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        lines: queue.Queue = queue.Queue()
        errors: list = []
        readers = [
            threading.Thread(
                target=lambda p=process, q=lines: (
                    ([q.put(x) for x in p.stdout] and None) or q.put(None)
                )
            ),
            threading.Thread(target=lambda p=process, e=errors: e.extend(p.stderr)),
        ]
        for reader in readers:
            reader.start()
        running, begun = None, time.monotonic()
        while time.monotonic() < end:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                if time.monotonic() - begun > SILENCE:
                    found.append(f"case {running}: hangs")
                    break
                continue
            begun = time.monotonic()
            if line is None:
                process.wait()
                if process.returncode:
                    tail = " | ".join(x.strip() for x in errors if x.strip())[-600:]
                    found.append(
                        f"case {running}: the process ended with {process.returncode}: {tail}"
                    )
                elif running is not None:
                    case = last
                break
            word, number, *rest = line.split(" ", 2)
            if word == "case":
                running = case = int(number)
            elif word == "found":
                found.append(f"case {number}: {rest[0].strip()}")
                print(found[-1], flush=True)
            elif word == "done":
                outcome = rest[0].strip()
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
        process.kill()
        process.wait()
        for reader in readers:
            reader.join()
        if running is None and process.returncode > 0:
            sys.exit("".join(errors))
        case += 1
    print(f"cases {first} to {case - 1}: {len(found)} findings; outcomes {outcomes}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=None, help="the seed of the first case")
    parser.add_argument(
        "--cases", type=int, default=None, help="how many; by default until time is up"
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    first = int(time.time()) * 1000 % 2**31 if arguments.first is None else arguments.first
    if arguments.work:
        work(first, first + arguments.cases)
        return
    found = supervise(first, arguments.cases, arguments.seconds)
    print("\n".join(found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
