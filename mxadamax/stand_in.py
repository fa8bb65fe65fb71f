# SPDX-License-Identifier: Apache-2.0
"""Compute the updates of MXNet's own optimizers natively: the same bits, in their own arrays.

A built-in keeps its attributes, counts and states. A stand-in reads them at each step, which may
have changed in any way since the last one.
"""

from itertools import groupby
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
)

import numpy
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray
from mxnet.optimizer import Optimizer

from .conversion import built_in_name, master_first, takes_zero_for_none
from .optimizers.arguments import KnownArrays
from .optimizers.arithmetic import BUILTIN, NAMES, SERIES
from .optimizers.base import FusedOptimizer
from .optimizers.counting import CountedStep, count_groups
from .optimizers.info import OPTIMIZERS, OptimizerInfo
from .optimizers.state_layout import State, arrays_of
from .optimizers.step_tracker import Index
from .optimizers.traits import Traits

_APART = frozenset(
    (
        *("param_dict", "idx2name", "sym_info", "lr_mult", "wd_mult", "lr", "lr_scheduler"),
        *("num_update", "begin_num_update", "_index_update_count", "_all_index_update_counts"),
        *("aggregate_num", "use_fused_step", "allow_np_array"),
    )
)
"""Attributes that a stand-in does not take over: it asks the built-in."""


_COUNTING = ("_update_count", "_get_lrs", "_get_wds", "learning_rate")
"""What MXNet's optimizers count updates and find rates by."""

_SMALL = 100_000
"""Below so many elements, an operator of MXNet's updates one parameter in less time than a native
step."""

SMALL = "a small parameter alone in a call, for which MXNet's operator takes less time"


class _Known(NamedTuple):
    """What is known of a parameter's state.

    Parameters
    ----------
    state : object
        The state in the updater.
    ours : object
        The same arrays, nested as ours are.
    kind : str
        What the weight is, as `OptimizerInfo.exceptions` names it.
    reason : str
        Why it is left to MXNet; empty if it is not.
    """

    state: State
    ours: State
    kind: str
    reason: str


class _Repeated(NamedTuple):
    """A step of known weights, all of which were updated natively.

    Parameters
    ----------
    twin : FusedOptimizer
        What computed them.
    grads, states : tuple
        What was given with the weights.
    ours : tuple
        The states, nested as ours are.
    kinds : frozenset of str
        What the weights are, as `OptimizerInfo.exceptions` names it.
    """

    twin: FusedOptimizer
    grads: Sequence[NDArray]
    states: Sequence[State]
    ours: Sequence[State]
    kinds: FrozenSet[str]

    def is_of(
        self,
        twin: FusedOptimizer,
        grads: Sequence[NDArray],
        states: Sequence[State],
        exceptions: Mapping[str, str],
    ) -> bool:
        """Return whether a step is given the same, and MXNet need not update any of it."""
        same = self.twin is twin and self.grads is grads and self.states is states
        return same and self.kinds.isdisjoint(exceptions)


def twin_of(built_in: Type[Optimizer]) -> Optional[Type[FusedOptimizer]]:
    """Return our optimizer that computes what a class of MXNet's does; None if there is none."""
    twin: Any = Optimizer.opt_registry.get(f"{built_in.__name__.lower()}_ext")
    found: Optional[Type[FusedOptimizer]] = twin
    return found


def _traits_of(twin: Type[FusedOptimizer]) -> Traits:
    return twin.traits.get(SERIES, Traits())


def _made_to_follow(twin: Type[FusedOptimizer]) -> Any:
    """Return a subclass that counts updates, and finds rates, by the built-in that it follows."""

    has_rate = _traits_of(twin).has_rate

    class Follower(twin):  # type: ignore[valid-type, misc]  # A class that is chosen here.
        original: Any = None
        calls: Sequence[int] = ()
        """How many parameters MXNet counts together, from call to call of a step."""

        def _progress(self) -> Callable[[], None]:
            original = self.original
            counts, before = original._index_update_count, dict(original._index_update_count)
            attributes = {name: vars(original)[name] for name in self.followed_counts}

            def rollback() -> None:
                counts.clear()
                counts.update(before)
                vars(original).update(attributes)

            return rollback

        def _count_update(self, indices: Sequence[Index]) -> Tuple[List[float], List[float]]:
            original = self.original
            lrs: List[float] = []
            wds: List[float] = []
            first = 0
            for length in self.calls:
                call = list(indices[first : first + length])
                original._update_count(call)
                rates = original._get_lrs(call) if has_rate else [1.0] * len(call)
                lrs += map(_number, rates)
                wds += map(_number, original._get_wds(call))
                self._take_counted(original, call, is_first=first == 0)
                first += length
            self.num_update = original.num_update
            self._prepare(indices, lrs, wds)
            return lrs, wds

        def _forms_groups(self) -> bool:
            original = self.original
            cls, own = type(original), vars(original)
            plain = all(
                name not in own and getattr(cls, name) is getattr(Optimizer, name)
                for name in _COUNTING
            )
            return plain and _is_of_mxnet(original.lr_scheduler) and super()._forms_groups()

        def _count_groups(self, indices: Sequence[Index]) -> Optional[CountedStep]:
            original = self.original

            def rate_of_step() -> float:
                return _number(original.learning_rate) if has_rate else 1.0

            found = count_groups(original, indices, rate_of_step, _number(original.wd))
            self.num_update = original.num_update
            return found

        def _updates(self, indices: Sequence[Index], skipped: Any = None) -> List[int]:
            counts = self.original._index_update_count
            return [counts[index] for index in indices]

        def _name(self, index: Index) -> str:
            return repr(index)

    Follower.__name__ = Follower.__qualname__ = twin.__name__
    return Follower


def _calls_of(weights: Sequence[NDArray], at_once: float) -> List[int]:
    """How many parameters MXNet's updater hands over in one call, from call to call."""
    if at_once == numpy.inf:
        # MXNet 2 takes all together then, whatever their types are.
        return [len(weights)]
    found: List[int] = []
    for _, run in groupby(weight.dtype for weight in weights):
        length = sum(1 for _ in run)
        size = max(int(min(at_once, length)), 1)
        found += [size] * (length // size)
        if length % size:
            found.append(length % size)
    return found


def _is_of_mxnet(scheduler: Any) -> bool:
    """Whether a scheduler, or none, gives the same however often it is asked."""
    return scheduler is None or type(scheduler).__module__.startswith("mxnet.")


def _number(value: Any) -> float:
    """A number that reads the same to MXNet as to the native step; else TypeError."""
    if not isinstance(value, (float, int)):
        raise TypeError(f"found a {type(value).__name__} where a number was expected")
    return float(value)


class StandIn:
    """Update the parameters of one of MXNet's optimizers natively.

    Parameters
    ----------
    original : mxnet.optimizer.Optimizer
        The built-in. It is not kept.

    Attributes
    ----------
    built_in : str
        The name of the built-in.
    traits : Traits
        What that does besides its formula.
    """

    def __init__(self, original: Optimizer):
        self.built_in = built_in_name(original) or ""
        twin = twin_of(type(original))
        assert twin is not None
        self.traits = _traits_of(twin)
        self._records: List[OptimizerInfo] = [
            record for record in OPTIMIZERS if record.built_in == twin.built_in
        ]
        self._twin = _made_to_follow(twin)(numerics=BUILTIN)
        ours = vars(self._twin)
        self._names = [
            (NAMES.get(name, name), name)
            for name in vars(original)
            if name not in _APART and NAMES.get(name, name) in ours
        ]
        counted = [name for name in self._twin._counted if name in vars(original)]
        self._twin.followed_counts = counted
        # What a step changes on the built-in.
        self._changed = [name for name in counted if name != "num_update"]
        # By what MXNet counts a device's updates in: each device has states of its own.
        self._known: Dict[int, Dict[Index, _Known]] = {}
        self._default_path = getattr(type(original)(), "use_fused_step", None)
        self._is_operator = self._twin.arithmetic.by_operator
        self._asked_of = 0
        self._is_small = False

    def left_to_mxnet(self, weights: Any) -> str:
        """Why MXNet itself updates these weights, or this one, as fast; empty if it does not."""
        if self.traits.left_to_mxnet or not self._is_operator:
            return self.traits.left_to_mxnet
        if isinstance(weights, (list, tuple)):
            if len(weights) != 1:
                return ""
            weights = weights[0]
        # To ask an array for its size takes longer than all else here. What is remembered of
        # another at the same address could only choose the slower way.
        if id(weights) != self._asked_of:
            self._asked_of = id(weights)
            self._is_small = weights.size < _SMALL
        return SMALL if self._is_small else ""

    def update(
        self,
        original: Optimizer,
        indices: Sequence[Index],
        weights: Sequence[NDArray],
        grads: Sequence[NDArray],
        states: Sequence[State],
        at_once: float = numpy.inf,
    ) -> Tuple[List[int], Dict[str, int]]:
        """Update what can be with the same bits.

        `at_once` is how many parameters MXNet would update in one call.

        Returns
        -------
        tuple of list of int and dict
            The positions that are left to MXNet, and how many are for what reason.
        """
        reason = self._follow(original) or _order_matters(original, indices)
        if reason:
            return list(range(len(indices))), {reason: len(indices)}
        in_calls = self.traits.counts_calls or not _is_of_mxnet(original.lr_scheduler)
        self._twin.calls = _calls_of(weights, at_once) if in_calls else [len(indices)]
        exceptions = self._exceptions()
        repeated = getattr(weights, "step_before", None)
        if repeated is not None and repeated.is_of(self._twin, grads, states, exceptions):
            refused = self._push(original, indices, weights, grads, repeated.ours)
            return ([], {}) if not refused else (list(range(len(indices))), {refused: len(indices)})
        left: List[int] = []
        reasons: Dict[str, int] = {}
        given = []
        kinds = set()
        of_device = self._known.setdefault(id(original._index_update_count), {})
        all_dense = {*map(type, weights), *map(type, grads)} == {NDArray}
        for position, (index, state) in enumerate(zip(indices, states)):
            weight, grad = weights[position], grads[position]
            known = of_device.get(index)
            if known is None or known.state is not state or state is None:
                known = of_device[index] = self._examined(weight, state)
            reason = known.reason or exceptions.get(known.kind, "")
            if not reason and not all_dense:
                reason = self._storage(weight, grad, exceptions)
            if not reason and self.traits.writes_gradients:
                parameter = original.param_dict.get(index)
                if parameter is not None and parameter.grad_req == "add":
                    reason = "gradients are added up, and the built-in changes them"
            if reason:
                left.append(position)
                reasons[reason] = reasons.get(reason, 0) + 1
            else:
                given.append((index, weight, grad, known.ours))
                kinds.add(known.kind)
        if left and (self.traits.all_or_none or original.lr_scheduler is not None):
            # Who is counted first decides which rate a scheduler gives.
            return list(range(len(indices))), {next(iter(reasons)): len(indices)}
        if given:
            columns: Sequence[Any] = tuple(zip(*given))
            if not left and isinstance(weights, KnownArrays):
                columns = indices, weights, grads, columns[3]
                weights.step_before = _Repeated(
                    self._twin, grads, states, columns[3], frozenset(kinds)
                )
            refused = self._push(original, *columns)
            if refused:
                left = list(range(len(indices)))
                reasons = {refused: len(indices)}
        return left, reasons

    def _push(self, original: Optimizer, *given: Any) -> str:
        """Update natively, or return why not; nothing has changed then."""
        twin = self._twin
        twin.original = original
        first, counts = given[0][0], original._index_update_count
        before = counts.get(first)
        try:
            twin.fused_step(*given)
        except (TypeError, ValueError) as error:
            if counts.get(first) != before:
                # The engine has part of it already: MXNet must not update all once more.
                raise
            return f"refused: {error}"
        finally:
            twin.original = None
        for name in self._changed:
            vars(original)[name] = vars(twin)[name]
        return ""

    def _follow(self, original: Optimizer) -> str:
        """Take over the attributes of the built-in; return why that cannot be."""
        theirs, ours = vars(original), vars(self._twin)
        if getattr(original, "use_fused_step", None) != self._default_path:
            return f"use_fused_step={original.use_fused_step!r}"
        for our_name, name in self._names:
            value = theirs.get(name, theirs)
            if value is theirs:
                return f"{name} was removed"
            if value is not None and not isinstance(value, (float, int)):
                return f"{name} is a {type(value).__name__}"
            ours[our_name] = value
        bound = ours["clip_gradient"]
        if bound is not None and bound <= 0:
            if takes_zero_for_none(self._twin.built_in, original):
                ours["clip_gradient"] = None
            elif bound < 0:
                return "clip_gradient is negative"
        if ours.get("clip_weights") is not None and ours["clip_weights"] <= 0:
            ours["clip_weights"] = None
        if "_has_state" in ours:
            ours["_has_state"] = ours["momentum"] != 0
        self._twin._take_aggregation(original)
        return ""

    def _exceptions(self) -> Dict[str, str]:
        """Why kinds of arrays are left to MXNet, as the optimizer is set now."""
        found: Dict[str, str] = {}
        for record in self._records:
            ours = vars(self._twin)
            if all(bool(ours[name]) == bool(value) for name, value in record.options.items()):
                of_series = (item for item in record.exceptions.items() if item[0][1] == SERIES)
                found.update({kind: why for (kind, _), why in of_series})
        return found

    def _examined(self, weight: NDArray, state: State) -> _Known:
        """Find out whether a parameter can be updated natively, by its weight and state."""
        twin, kind, reason = self._twin, "", ""
        arrays = list(arrays_of(state))
        if any(type(array) is not NDArray for array in arrays):
            return _Known(state, state, "", "its state is sparse")
        dtype = numpy.dtype(weight.dtype)
        has_master = twin.multi_precision and dtype == numpy.float16
        if dtype in (numpy.float32, numpy.float64):
            kind = dtype.name
        elif has_master:
            kind = "masters"
        else:
            reason = f"{dtype.name} weights without a float32 master"
        ours = state
        if not reason:
            try:
                ours = master_first(state, self.built_in) if has_master else state
                ours = twin.from_built_in_state(ours)
            except (TypeError, ValueError):
                reason = "its state has another form"
            own = {id(array) for array in arrays}
            if any(id(array) not in own for array in arrays_of(ours)):
                reason = "its state has another form"
        return _Known(state, ours, kind, reason)

    def _storage(self, weight: NDArray, grad: NDArray, exceptions: Mapping[str, str]) -> str:
        """Why a weight and a gradient, one of which may be sparse, are left to MXNet."""
        for array in (weight, grad):
            if type(array) not in (NDArray, RowSparseNDArray):
                return f"a {type(array).__name__}"
        if RowSparseNDArray not in (type(weight), type(grad)):
            return ""
        for record in self._records:
            for name, value in record.row_sparse_options.items():
                found = vars(self._twin)[name]
                if found != value:
                    return f"row_sparse gradients with {name}={found!r}"
        return exceptions.get("row_sparse", "")


def _order_matters(original: Optimizer, indices: Sequence[Index]) -> str:
    """Why the order in which parameters are counted decides their rates; empty if it does not."""
    if len(set(indices)) < len(indices):
        return "a parameter is twice in one call"
    if original.lr_scheduler is None:
        return ""
    counts, begin = original._index_update_count, original.begin_num_update
    found = set(map(counts.get, indices))
    if len({begin if count is None else count for count in found}) > 1:
        return "update counts differ, and a scheduler gives the rate"
    return ""
