# SPDX-License-Identifier: Apache-2.0
"""Count updates, track steps, and find the learning rate and weight decay of each parameter."""

import math
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import numpy
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer

from .. import _native
from .._mxnet.compatibility import StepOptimizer
from .._mxnet.trainer import Keys, devices_of
from .options import ANY_FINITE, as_number
from .step_tracker import Index, StepTracker
from .update_counts import move_counts


class CountedStep(NamedTuple):
    """A step that has been counted.

    Parameters
    ----------
    lrs, wds : list of float
        Learning rate and weight decay of each group of parameters.
    updates : list of int
        How many updates they have had.
    groups : ParameterGroups, optional
        Which parameter is in which group. None where each is one.
    """

    lrs: List[float]
    wds: List[float]
    updates: List[int]
    groups: Optional[_native.ParameterGroups] = None


def count_groups(
    optimizer: Optimizer, indices: Sequence[Index], rate_of_step: Callable[[], float], wd: float
) -> Optional[CountedStep]:
    """Count one more update of parameters with equal counts; None if nothing was counted.

    Parameters
    ----------
    optimizer : Optimizer
        This package's or MXNet's, whose counts and multipliers it is about.
    indices : sequence of int or str
        The parameters.
    rate_of_step : callable
        Returns the learning rate before it is multiplied; called once the update is counted.
    wd : float
        The weight decay before it is multiplied.
    """
    begin = optimizer.begin_num_update
    if type(begin) is not int:
        return None
    groups = _native.parameter_groups(indices, optimizer.param_dict)
    if groups is None:
        return None
    count = _native.count_together(optimizer._index_update_count, indices, begin)
    if count is None:
        return None
    optimizer.num_update = max(count, optimizer.num_update)
    rate = rate_of_step()
    lrs = [rate * multiplier for multiplier in groups.lr_mults]
    wds = [wd * multiplier for multiplier in groups.wd_mults]
    return CountedStep(lrs, wds, [count] * len(lrs), groups)


class CountingOptimizer(StepOptimizer):
    """Base class that counts updates like MXNet, for many parameters at once, with rollback.

    Parameters
    ----------
    **kwargs
        Arguments of :class:`mxnet.optimizer.Optimizer`.
    """

    registered_name: ClassVar[str]
    # The attributes that a step changes, besides MXNet's counts of each parameter.
    _counted: ClassVar[Tuple[str, ...]] = ("num_update", "_last_step_tracker")
    # The methods that give something for each parameter of a step.
    _per_parameter: ClassVar[Tuple[str, ...]] = (
        *("_count_update", "_updates", "_get_lrs", "_get_wds", "_multiplied"),
        *("scalars", "_weight_decay", "_decay_rates"),
    )

    # MXNet's own, which has no types.
    num_update: int

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._step_trackers: Dict[int, StepTracker] = {}
        self._last_step_tracker = StepTracker()

    def __getstate__(self) -> Dict[str, Any]:
        state: Dict[str, Any] = super().__getstate__()
        for name in ("_last_step_tracker", "_keys"):
            del state[name]
        state["_step_trackers"] = {
            device: (tracker.skipped, tracker.skipped_steps)
            for device, tracker in self._step_trackers.items()
        }
        parameters = self.param_dict
        keys = list(parameters) if self._keys is None else self._keys.in_use
        # `param_dict` is not pickled: a parameter server reads these instead.
        for name in ("lr_mult", "wd_mult"):
            of_parameters = {i: getattr(p, name) for i, p in zip(keys, parameters.values())}
            state[name] = {**getattr(self, name), **of_parameters}
        if parameters:
            state["_parameter_keys"] = keys
            devices = devices_of(parameters.values())
            move_counts(state, sorted(devices), used=devices)
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._step_trackers = {
            device: StepTracker(*entries)
            for device, entries in state.get("_step_trackers", {}).items()
        }
        self._last_step_tracker = next(iter(self._step_trackers.values()), StepTracker())

    def restore_counts(self, parameters: int) -> None:
        """Restore what files of states alone lack, besides update counts.

        Parameters
        ----------
        parameters : int
            How many parameters have had `num_update` updates.
        """

    @property
    def param_dict(self) -> Dict[int, Any]:
        """The parameters by their positions in the trainer. The trainer sets it."""
        parameters: Dict[int, Any] = self.__dict__["param_dict"]
        return parameters

    @param_dict.setter
    def param_dict(self, parameters: Dict[int, Any]) -> None:
        self.__dict__["param_dict"] = parameters
        self._keys = Keys.of_parameters(parameters.values())

    def _positions(self, indices: Sequence[Index]) -> Sequence[Index]:
        """Convert an updater's keys to keys of `param_dict`."""
        return indices if self._keys is None else [self._keys.position_of(i) for i in indices]

    def _name(self, index: Index) -> str:
        """Return the name of a parameter for messages."""
        position: Any = self._positions([index])[0]
        parameter = self.param_dict.get(position)
        name = parameter.name if parameter is not None else self.idx2name.get(index)
        return repr(index) if name is None else f"{index} ({name!r})"

    def _step_tracker(self, weight: NDArray) -> StepTracker:
        """Return the tracker of the steps on a weight's device, and make it the last one."""
        device = weight.context.device_id
        if device not in self._step_trackers:
            self._step_trackers[device] = StepTracker()
        self._last_step_tracker = self._step_trackers[device]
        return self._last_step_tracker

    @property
    def skipped_steps(self) -> int:
        """Return the number of steps that `skip_nonfinite` has skipped. Waits for the last step."""
        return self._last_step_tracker.skipped_steps

    def _progress(self) -> Callable[[], None]:
        """Return a function that restores all counts to their current values."""
        counts = self._index_update_count
        counts_before = dict(counts)
        attributes_before = {name: self.__dict__[name] for name in self._counted}

        def rollback() -> None:
            counts.clear()
            counts.update(counts_before)
            self.__dict__.update(attributes_before)

        return rollback

    def _count_update(self, indices: Sequence[Index]) -> Tuple[List[float], List[float]]:
        """Count one more update of each parameter.

        Returns the learning rate and the weight decay of each. A scheduler gets the `num_update`
        that the built-ins would pass, which count one parameter after another.
        """
        counts, begin = self._index_update_count, self.begin_num_update
        updates = [counts.get(index, begin) + 1 for index in indices]
        lrs: List[float] = []
        same_rate: List[Index] = []
        if updates.count(updates[0]) == len(updates):
            self.num_update = max(self.num_update, updates[0])
            same_rate = list(indices)
        else:
            for index, count in zip(indices, updates):
                if count > self.num_update:
                    if same_rate:
                        lrs += self._get_lrs(same_rate)
                        same_rate = []
                    self.num_update = count
                same_rate.append(index)
        counts.update(zip(indices, updates))
        lrs += self._get_lrs(same_rate)
        wds = self._get_wds(indices)
        self._prepare(indices, lrs, wds)
        return lrs, wds

    def _prepare(
        self, indices: Sequence[Index], lrs: Sequence[float], wds: Sequence[float]
    ) -> None:
        """Do what only learning rates and weight decay allow, once parameters are counted."""

    def _take_counted(self, source: Any, indices: Sequence[Index], is_first: bool) -> None:
        """Take over what an optimizer has found in a call that it has counted.

        That is this one, or the built-in that it follows. `is_first` says that a step begins.
        """

    def _take_aggregation(self, built_in: Any) -> None:
        """Take over what depends on how many parameters a built-in is called with at once."""

    def _count_step(self, indices: Sequence[Index]) -> CountedStep:
        """Count one more update of each parameter, in groups where they can be formed."""
        if self._forms_groups():
            found = self._count_groups(indices)
            if found is not None:
                return found
        lrs, wds = self._count_update(indices)
        return CountedStep(lrs, wds, self._updates(indices))

    def _forms_groups(self) -> bool:
        """Whether scalars depend on nothing but a parameter's rate, decay and count.

        That is known of this package's own methods only: others may count calls, or positions.
        """
        methods = (getattr(self, name) for name in self._per_parameter)
        modules = (getattr(method, "__module__", None) or "" for method in methods)
        return all(module.startswith("mxadamax.") for module in modules)

    def _count_groups(self, indices: Sequence[Index]) -> Optional[CountedStep]:
        """Do as `_count_update` for parameters with equal counts; None if nothing was counted."""
        if self._keys is not None:
            return None
        return count_groups(self, indices, self._asked_rate, float(self.wd))

    def _updates(
        self, indices: Sequence[Index], skipped: Optional[Mapping[Index, int]] = None
    ) -> List[int]:
        """Return the update count of each parameter, without skipped updates."""
        counts = self._index_update_count
        if skipped:
            return [counts[index] - skipped.get(index, 0) for index in indices]
        return [counts[index] for index in indices]

    def _get_lrs(self, indices: Sequence[Index]) -> List[float]:
        return self._multiplied(self._asked_rate(), "lr_mult", indices)

    def _asked_rate(self) -> float:
        """The learning rate of all parameters, before multipliers."""
        rate = as_number(self.learning_rate)
        asked = (
            f"lr_scheduler({self.num_update})" if self.lr_scheduler is not None else "learning_rate"
        )
        ANY_FINITE.check(self.registered_name, asked, rate)
        return float(rate)

    def _get_wds(self, indices: Sequence[Index]) -> List[float]:
        return self._multiplied(float(self.wd), "wd_mult", indices)

    def _multiplied(self, number: float, name: str, indices: Sequence[Index]) -> List[float]:
        """Multiply a number by the multiplier of each parameter, looked up as in MXNet."""
        table: Mapping[Any, Any] = getattr(self, name)
        products = []
        position: Any
        for index, position in zip(indices, self._positions(indices)):
            if position in self.param_dict:
                multiplier = getattr(self.param_dict[position], name)
            elif position in table or position not in self.idx2name:
                multiplier = table.get(position, 1.0)
            else:
                multiplier = table.get(self.idx2name[position], 1.0)
            if type(multiplier) is not float or not math.isfinite(multiplier):
                # Some users set a flag: whether a parameter learns.
                flag = isinstance(multiplier, (bool, numpy.bool_))
                multiplier = int(multiplier) if flag else as_number(multiplier)
                owner = f"{self.registered_name}: parameter {self._name(index)}"
                ANY_FINITE.check(owner, name, multiplier)
            products.append(number * float(multiplier))
        return products
