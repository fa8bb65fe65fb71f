# SPDX-License-Identifier: Apache-2.0
"""What all optimizers of this package share: one native operation for a whole step."""

import inspect
import math
import numbers
import os
import zlib
from types import SimpleNamespace
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import numpy
from mxnet.base import MXNetError
from mxnet.ndarray import NDArray, array, cast, clip, zeros
from mxnet.optimizer import Optimizer

from .. import _native
from .._mxnet.compatibility import IS_MXNET_1, StepOptimizer, aggregate_num_here, dtypes_of_step
from .._mxnet.engine import inside_kvstore_update, native
from .._mxnet.trainer import Keys, devices_of
from ..dtypes import BFLOAT16, STATE_TYPES
from ..pickling import FORMAT, check_format, name_of, new
from .options import (
    ANY_FINITE,
    FINITE,
    FLOAT32,
    NOT_NEGATIVE,
    Range,
    as_number,
    bound_or_infinity,
    check_flag,
    check_integer,
)
from .step_tracker import Index, StepTracker
from .update_counts import move_counts

State = Any
Scalars = Dict[str, Union[float, List[float]]]

NO_L2 = -1.0
"""In the place of `wd`: the gradient is left without any weight decay."""


_INFINITE = ("clip_gradient", "clip_weights", "upper_bound")
"""Scalars that are bounds, which may be none."""

_Class = TypeVar("_Class", bound=Type["FusedOptimizer"])


def register(name: str) -> Callable[[_Class], _Class]:
    """Enter an optimizer in MXNet's registry.

    MXNet's own `register` would take the name from the class, and a class named like a built-in
    would replace it.

    Parameters
    ----------
    name : str
        What users write: ``Trainer(params, name)``.
    """

    def decorate(cls: _Class) -> _Class:
        cls.registered_name = name
        Optimizer.opt_registry[name] = cls
        return cls

    return decorate


class FusedOptimizer(StepOptimizer):
    """Base of the optimizers whose step is one call to a native rule.

    A subclass names its rule and the ranges of its own hyperparameters, and defines `scalars` and
    `reference_step`. What comes before the rule's own mathematics is the same for all::

        weight *= 1 - lr * wd                  # with decoupled_wd
        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        grad += wd * weight                    # without decoupled_wd

    Parameters
    ----------
    learning_rate : float, in [0, inf), or None
        The learning rate. With an `lr_scheduler` it replaces the scheduler's, as in MXNet.
    use_fused_step : bool, default True
        False calls `step`, the definition in MXNet's operators.
    aggregate_num : int >= 0 or numpy.inf, optional
        How many parameters MXNet hands over at once; 0 is 1. By default all of them; 1 where MXNet
        updates on a parameter server (``DMLC_ROLE`` in the environment), which updates one by one.
    maximize : bool, default False
        Climb instead of descend: the gradient counts with the other sign. Weight decay still makes
        weights smaller.
    decoupled_wd : bool, default False
        Weight decay that the gradient does not see: each step first multiplies the weight by
        ``1 - lr * wd``. (I. Loshchilov, F. Hutter, *Decoupled Weight Decay Regularization*,
        arXiv 1711.05101; `lr` is the learning rate without bias correction.)
    lazy_update : bool, default False
        What happens to the rows that a row_sparse gradient does not hold. True leaves them and
        their states as they are; False updates them as if their gradient were zero. Only with
        `use_fused_step`.
    clip_global_norm : float, in (0, inf], or None, default None
        Bound of the norm of all gradients of the model together: all are multiplied by
        ``min(1, clip_global_norm / norm)``. The norm is taken after `rescale_grad` and before
        `clip_gradient`, inside the step, so that nothing waits for it; `gradient_norm` tells it.
        Only where one call updates the whole model: `aggregate_num` must be left alone, and updates
        on a key-value store are refused.
    skip_nonfinite : bool, default False
        A step in which any gradient of the model holds NaN or infinity changes nothing: no weight,
        no state, no average, and it does not count for the correction of biases. Decided inside
        the step, so that nothing waits; `skipped_steps` tells how many there were. An
        `lr_scheduler` counts all steps. Only where one call updates the whole model, as with
        `clip_global_norm`.
    ema_decay : float, in [0, 1), or None, default None
        Keep the average of each weight over its updates ``w_1 .. w_t``, in the same pass::

            average = (1 - share) * average + share * w_t,  share = (1 - d) / (1 - d**t)

        which is the exponentially weighted average of arXiv 1412.6980, section 7.2, with its bias
        corrected at every step. In float32 for 16-bit weights, of the float32 copy where there is
        one. :func:`mxadamax.averaged_weights` evaluates with it. Costs an array of state, as the
        last of a tuple ``(state, average)``.
    state_dtype : {'float16', 'bfloat16', 'int8'} or None, default None
        Keep the states in fewer bits than weights of float32 have; see the notes. Not for float64
        weights, and only with `use_fused_step`.
    state_seed : int, in [0, 2**32), default 0
        Which random numbers states of a `state_dtype` are rounded by: the same seed, the same bits.
    **kwargs
        What :class:`mxnet.optimizer.Optimizer` takes: ``rescale_grad`` (finite), ``wd`` (in
        [0, inf)), ``clip_gradient`` (in [0, inf], or None), ``lr_scheduler``, ``begin_num_update``,
        ``param_dict``, ``param_idx2name``, ``sym``, and ``multi_precision``: True keeps a float32
        copy of each float16 or bfloat16 weight beside its state, updates that, and rounds the
        weight from it.

    Raises
    ------
    TypeError
        For an argument that does not exist.
    ValueError
        For a hyperparameter out of its range.

    Notes
    -----
    With a `state_dtype`, states are rounded up or down at random, with probabilities that make the
    mean of many roundings the number itself; so updates that are too small to change a rounded
    state are not lost. The random numbers depend on `state_seed`, the parameter, its update and the
    position in it only. States that are squares are kept as their roots. What steps are divided by
    is never rounded to zero.

    ``'int8'`` keeps the second of two states, which steps are divided by, in 256 levels, and the
    first as its ratio to that in 255, relative to the largest of each block of 64 elements. A NaN
    or infinity spreads over its block. States are then a tuple of an int8 array, an uint8 array,
    and a float32 array with two ranges for each block: 2.125 bytes for each parameter instead of 8.
    For Adamax, Adam, AdamW, Nadam, AdaBelief and LAMB, and dense gradients.

    Examples
    --------
    Every optimizer takes these options besides its own:

    >>> optimizer = mxadamax.Adamax(wd=0.01, decoupled_wd=True, clip_global_norm=1.0)
    >>> trainer = gluon.Trainer(net.collect_params(), optimizer)
    >>> mxadamax.SGD(wd=-0.01)
    Traceback (most recent call last):
        ...
    ValueError: sgd_ext: wd must be in [0, inf), got -0.01
    """

    registered_name: ClassVar[str]
    rule: str
    ranges: ClassVar[Mapping[str, Range]] = {}
    # Whether clip_gradient bounds the sum of gradient and weight decay, instead of the gradient.
    clip_after_wd: ClassVar[bool] = False
    # The attributes that a step counts in, besides what MXNet counts for each parameter.
    _counted: ClassVar[Tuple[str, ...]] = ("num_update", "_last_step_tracker")

    # MXNet's own, which has no types.
    num_update: int

    _common_ranges: ClassVar[Mapping[str, Range]] = {
        "rescale_grad": FINITE,
        "wd": NOT_NEGATIVE,
        "clip_gradient": Range(
            *(0.0, math.inf), includes_high=True, optional=True, magnitudes=FLOAT32
        ),
        "clip_global_norm": Range(
            0.0, math.inf, includes_low=False, includes_high=True, optional=True
        ),
        "ema_decay": Range(0.0, 1.0, optional=True),
    }

    def __init__(
        self,
        learning_rate: Any,
        use_fused_step: bool,
        aggregate_num: Any = None,
        maximize: bool = False,
        decoupled_wd: bool = False,
        lazy_update: bool = False,
        clip_global_norm: Optional[float] = None,
        skip_nonfinite: bool = False,
        ema_decay: Optional[float] = None,
        state_dtype: Optional[str] = None,
        state_seed: int = 0,
        **kwargs: Any,
    ):
        unknown = sorted(set(kwargs) - set(inspect.signature(Optimizer.__init__).parameters))
        if unknown:
            raise TypeError(f"{self.registered_name}: unexpected argument {unknown[0]!r}")
        learning_rate = as_number(learning_rate)
        Range(0.0, math.inf, optional=True).check(
            self.registered_name, "learning_rate", learning_rate
        )
        if aggregate_num is None:
            aggregate_num = 1 if "DMLC_ROLE" in os.environ else numpy.inf
        check_integer(self.registered_name, "aggregate_num", aggregate_num, 0, or_infinity=True)
        flags = {
            "maximize": maximize,
            "decoupled_wd": decoupled_wd,
            "lazy_update": lazy_update,
            "skip_nonfinite": skip_nonfinite,
            "use_fused_step": use_fused_step,
        }
        for name, value in flags.items():
            check_flag(self.registered_name, name, value)
        if lazy_update and not use_fused_step:
            raise ValueError(
                f"{self.registered_name}: lazy_update must be False without use_fused_step"
            )
        self.clip_global_norm = clip_global_norm
        self.skip_nonfinite = skip_nonfinite
        if self._whole_model_option and aggregate_num != numpy.inf:
            raise ValueError(
                f"{self.registered_name}: {self._whole_model_option} needs the whole model in one "
                f"call (aggregate_num=numpy.inf), got aggregate_num={aggregate_num!r}"
            )
        super().__init__(
            learning_rate=learning_rate,
            use_fused_step=use_fused_step,
            aggregate_num=aggregate_num_here(aggregate_num),
            **kwargs,
        )
        self.maximize = maximize
        self.decoupled_wd = decoupled_wd
        self.lazy_update = lazy_update
        self.ema_decay = ema_decay
        self.state_dtype = state_dtype
        self.state_seed = state_seed
        self.ema_swapped_in = False
        self._step_trackers: Dict[int, StepTracker] = {}
        self._last_step_tracker = StepTracker()
        self._state_cache = _native.StateCache()
        if use_fused_step:
            # An MXNet that is not supported shows here, where nothing can swallow it.
            native()
        check_integer(self.registered_name, "begin_num_update", self.begin_num_update, 0)

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        return new, (name_of(type(self)),), self.__getstate__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "lr" or name in self._common_ranges or name in self.ranges:
            if name == "rescale_grad" and _is_integer_array(value):
                raise ValueError(
                    f"{self.registered_name}: rescale_grad must be a float, got an array of "
                    f"{numpy.dtype(value.dtype)}, in which MXNet drops fractions; give a batch "
                    "size of integers as a Python int"
                )
            value = as_number(value)
        super().__setattr__(name, value)

    @property
    def param_dict(self) -> Dict[int, Any]:
        """The parameters, by their positions in the trainer, which sets it."""
        parameters: Dict[int, Any] = self.__dict__["param_dict"]
        return parameters

    @param_dict.setter
    def param_dict(self, parameters: Dict[int, Any]) -> None:
        self.__dict__["param_dict"] = parameters
        self._keys = Keys.of_parameters(parameters.values())

    def _positions(self, indices: Sequence[Index]) -> Sequence[Index]:
        """By what `param_dict` has the parameters that an updater knows by these keys."""
        return indices if self._keys is None else [self._keys.position_of(i) for i in indices]

    def __getstate__(self) -> Dict[str, Any]:
        state: Dict[str, Any] = super().__getstate__()
        for name in ("_state_cache", "_last_step_tracker", "ema_swapped_in", "_keys"):
            del state[name]
        state["_step_trackers"] = {
            device: (tracker.skipped, tracker.skipped_steps)
            for device, tracker in self._step_trackers.items()
        }
        parameters = self.param_dict
        keys = list(parameters) if self._keys is None else self._keys.in_use
        # What `param_dict` says does not travel: a parameter server reads these.
        for name in ("lr_mult", "wd_mult"):
            of_parameters = {i: getattr(p, name) for i, p in zip(keys, parameters.values())}
            state[name] = {**getattr(self, name), **of_parameters}
        if parameters:
            state["_parameter_keys"] = keys
            devices = devices_of(parameters.values())
            move_counts(state, sorted(devices), used=devices)
        state["_format"] = FORMAT
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        state = check_format(state)
        super().__setstate__(state)
        self._state_cache = _native.StateCache()
        self._step_trackers = {
            device: StepTracker(*entries)
            for device, entries in state.get("_step_trackers", {}).items()
        }
        self._last_step_tracker = next(iter(self._step_trackers.values()), StepTracker())
        self.ema_swapped_in = False
        self.aggregate_num = aggregate_num_here(self.aggregate_num)

    def check_hyperparameters(self) -> None:
        """Raise ValueError where a hyperparameter is out of its range.

        Constructors end with it, and each step begins with it: attributes can be set at any time.
        """
        for ranges in (self._common_ranges, self.ranges):
            for name, allowed in ranges.items():
                allowed.check(self.registered_name, name, getattr(self, name))
        if self.lr_scheduler is None:
            NOT_NEGATIVE.check(self.registered_name, "learning_rate", self.lr)
        if self.state_dtype is not None:
            self._check_state_dtype()

        check_integer(self.registered_name, "state_seed", self.state_seed, 0, below=2**32)

    def _check_state_dtype(self) -> None:
        if not isinstance(self.state_dtype, str) or self.state_dtype not in STATE_TYPES:
            raise ValueError(
                f"{self.registered_name}: state_dtype must be one of {list(STATE_TYPES)} or None, "
                f"got {self.state_dtype!r}"
            )
        rule = _native.rules[self.rule]
        fits = (
            rule.supports_int8_state
            if self.state_dtype == "int8"
            else rule.supports_low_precision_state
        )
        if not fits or not self.use_fused_step:
            why = f"rule {self.rule!r}" if not fits else "use_fused_step=False"
            raise ValueError(
                f"{self.registered_name}: state_dtype must be None with {why}, "
                f"got {self.state_dtype!r}"
            )

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate, in [0, inf); only without an `lr_scheduler`."""
        lr = as_number(lr)
        NOT_NEGATIVE.check(self.registered_name, "learning_rate", lr)
        super().set_learning_rate(lr)

    @property
    def gradient_norm(self) -> Optional[float]:
        """The norm of all gradients in the last step, rescaled but not clipped.

        Waits for that step. None without `clip_global_norm`, and before the first step.
        """
        return None if self.clip_global_norm is None else self._last_step_tracker.gradient_norm

    @property
    def skipped_steps(self) -> int:
        """How many steps `skip_nonfinite` has left out. Waits for the last step."""
        return self._last_step_tracker.skipped_steps

    @property
    def _whole_model_option(self) -> Optional[str]:
        """The option, if any, that needs the whole model in one call."""
        if self.clip_global_norm is not None:
            return "clip_global_norm"
        return "skip_nonfinite" if self.skip_nonfinite else None

    def _step_tracker(self, weight: NDArray) -> StepTracker:
        device = weight.context.device_id
        if device not in self._step_trackers:
            self._step_trackers[device] = StepTracker()
        self._last_step_tracker = self._step_trackers[device]
        return self._last_step_tracker

    def create_state(self, index: Index, weight: NDArray) -> State:
        """The state of a weight before its first update: arrays of zeros like it.

        Returns
        -------
        None, NDArray or tuple of NDArray
            As many arrays as the rule keeps, in the order in which the class names them. With
            `ema_decay`, a tuple of that and the average, which begins as the weight.
        """
        states = _native.rules[self.rule].states

        def make(shape: Tuple[int, ...], dtype: Any) -> NDArray:
            return zeros(shape, weight.context, dtype=dtype)

        if self.state_dtype == "int8":
            blocks = -(-weight.size // _native.block_size)
            arrays = (
                make(weight.shape, numpy.int8),
                make(weight.shape, numpy.uint8),
                make((blocks, _native.scales_per_block), numpy.float32),
            )
        else:
            dtype = STATE_TYPES[self.state_dtype] if self.state_dtype else weight.dtype
            arrays = tuple(make(weight.shape, dtype) for _ in range(states))
        own = arrays if len(arrays) > 1 else arrays[0] if arrays else None
        if self.ema_decay is None:
            return own
        return own, _dense_copy(weight)

    def average_of(self, state: State, weight: NDArray) -> NDArray:
        """The average of a weight in its state, with `ema_decay`."""
        return self._unpack_state(state, weight)[2]

    def _unpack_state(
        self, state: State, weight: NDArray
    ) -> Tuple[Optional[NDArray], State, Optional[NDArray]]:
        """The master weight, the rule's own state and the average in what a parameter keeps."""
        master = average = None
        if self.multi_precision and _is_half(weight):
            master, state = state
        if self.ema_decay is not None:
            state, average = state
        return master, state, average

    def create_state_multi_precision(self, index: Index, weight: NDArray) -> State:
        """The state of a weight before its first update; what MXNet's updater calls.

        Returns
        -------
        None, NDArray or tuple
            With `multi_precision`, for a float16 or bfloat16 weight, a float32 copy of it and the
            state of that; else what `create_state` makes.
        """
        if self.multi_precision and _is_half(weight):
            master = _dense_copy(weight)
            return master, self.create_state(index, master)
        return self.create_state(index, weight)

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        """What the rule needs for an update, besides arrays.

        Parameters
        ----------
        lrs : sequence of float
            Learning rate of each parameter.
        updates : sequence of int
            Which update of each parameter this is, from 1.

        Returns
        -------
        dict
            For each of the rule's own scalars a float, or a list with a float for each parameter.
        """
        raise NotImplementedError

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: State, s: SimpleNamespace
    ) -> None:
        """Update one weight and its state in place, in MXNet's operators: what the rule computes.

        Parameters
        ----------
        weight : NDArray
            The weight, after decoupled weight decay.
        grad : NDArray
            The gradient, rescaled, clipped and with weight decay.
        state : None, NDArray or tuple of NDArray
            What `create_state` made.
        s : namespace
            The scalars of this parameter, as floats.
        """
        raise NotImplementedError

    def step(
        self,
        indices: Sequence[Index],
        weights: Sequence[NDArray],
        grads: Sequence[NDArray],
        states: Sequence[State],
    ) -> None:
        """Update by `reference_step`, parameter by parameter; arguments as for `fused_step`."""
        indices, weights, grads, states = self._as_lists(indices, weights, grads, states)
        self.check_hyperparameters()
        if not indices:
            return
        for index, weight, grad in zip(indices, weights, grads):
            for what, found in (("weight", weight), ("gradient", grad)):
                if not isinstance(found, NDArray):
                    raise ValueError(
                        f"{self.registered_name}: parameter {self._name(index)}: {what} is "
                        f"{type(found).__name__}, expected an NDArray"
                    )
        rollback = self._progress()
        factor: Optional[float] = 1.0
        try:
            if self._whole_model_option:
                self._step_tracker(weights[0])
            lrs, wds = self._count_update(indices)
            updates = self._updates(indices)
            rows = self._rows(indices, self._scalars(lrs, wds, updates))
            if self._whole_model_option:
                factor = self._clip_coefficient(indices, weights, grads)
        except BaseException:
            rollback()
            raise
        if factor is None:
            return
        for weight, grad, state, t, s in zip(weights, grads, states, updates, rows):
            s.rescale_grad *= factor
            master, own, average = self._unpack_state(state, weight)
            if _is_half(weight):
                target = self._step_in_float32(weight, grad, master, own, s)
            else:
                target = weight
                self._step_one(weight, grad, own, s)
            if average is not None:
                share = self._share(t)
                # As arrays: operators may read another number than the one that is given.
                kept, taken = (
                    array(numpy.full(average.shape, x), average.context, average.dtype)
                    for x in (1.0 - share, share)
                )
                average[:] = kept * average + taken * target

    def _rows(self, indices: Sequence[Index], table: Scalars) -> List[SimpleNamespace]:
        """The scalars of each parameter; ValueError where one is not finite."""
        rows = []
        for i, index in enumerate(indices):
            row = {name: x[i] if isinstance(x, list) else x for name, x in table.items()}
            for name, value in row.items():
                if not math.isfinite(value) and name not in _INFINITE:
                    what = "1 - lr * wd" if name == "decay_factor" else name
                    raise ValueError(
                        f"{self.registered_name}: parameter {self._name(index)}: {what} is "
                        f"{value!r}, expected a finite number"
                    )
            rows.append(SimpleNamespace(**row))
        return rows

    def _step_one(self, weight: NDArray, grad: NDArray, state: State, s: SimpleNamespace) -> None:
        """`step` for one parameter with its scalars."""
        if grad.stype != "default":
            grad = grad.tostype("default")
        grad = grad * s.rescale_grad
        if self.clip_gradient is not None and not self.clip_after_wd:
            grad = clip(grad, -s.clip_gradient, s.clip_gradient)
        if s.wd != NO_L2:
            grad = grad + s.wd * weight
        if self.clip_gradient is not None and self.clip_after_wd:
            grad = clip(grad, -s.clip_gradient, s.clip_gradient)
        if s.decay_factor != 1.0:
            weight *= s.decay_factor
        self.reference_step(weight, grad, state, s)

    def fused_step(
        self,
        indices: Sequence[Index],
        weights: Sequence[NDArray],
        grads: Sequence[NDArray],
        states: Sequence[State],
    ) -> None:
        """Update all weights and states in place by one operation of MXNet's engine.

        Returns before it has run; MXNet orders it like any operator of its own. Gradients are only
        read. The result equals that of `step` to the last bit.

        Parameters
        ----------
        indices : sequence of int or str, or a single one
            The parameters. With a single one, the other arguments are single ones as well.
        weights, grads : sequence of NDArray
            Float32, float64, float16 or bfloat16 arrays, of any shape, also of size 0, all in host
            memory or all on one GPU. Each gradient has its weight's shape and dtype. In host memory
            both can be row_sparse, a weight only if it holds all of its rows; its state is dense.
            Of csr arrays dense copies are made, which takes time. Of 16-bit arrays all is computed
            in float32, and rounded once.
        states : sequence
            What `create_state_multi_precision` made for each.

        Raises
        ------
        ValueError
            Where a hyperparameter or an array is not as said. Nothing has been changed then.
        MXNetError
            At the next wait, where a row_sparse gradient names rows that its weight does not have,
            or not in ascending order. No array has been changed then.
        """
        indices, weights, grads, states = self._as_lists(indices, weights, grads, states)
        self.check_hyperparameters()
        if not indices:
            return
        rollback = self._progress()
        batch = None
        try:
            batch = native().FusedUpdate(
                self.rule,
                weights,
                grads,
                states,
                self._state_cache,
                self.lazy_update,
                self.multi_precision,
                self.ema_decay is not None,
                self.state_dtype,
            )
            if self._whole_model_option:
                self._push_whole_model(batch, indices, weights[0])
            else:
                lrs, wds = self._count_update(indices)
                table = self._table(indices, lrs, wds, self._updates(indices))
                batch.push([table], None, False, None, 0)
        except BaseException as error:
            # Interrupted when nothing was left to do: the engine will update the arrays.
            if batch is not None and batch.pushed:
                raise
            rollback()
            if type(error) is RuntimeError:
                # With MXNET_ENGINE_TYPE=NaiveEngine the operation has run, and failed, already.
                raise MXNetError(str(error)) from None
            if not isinstance(error, _native.ParameterError):
                raise
            if any(array.stype == "csr" for array in (*weights, *grads) if hasattr(array, "stype")):
                self._fused_step_on_dense(indices, weights, grads, states)
                return
            position, message, other = error.args
            raise ValueError(
                f"{self.registered_name}: parameter {self._name(indices[position])}: "
                + message.replace("{other}", f"parameter {self._name(indices[other])}")
            ) from None

    def _as_lists(
        self, indices: Any, weights: Any, grads: Any, states: Any
    ) -> Tuple[Sequence[Index], Sequence[NDArray], Sequence[NDArray], Sequence[State]]:
        """The arguments of an update, which are single ones or lists, as lists of one length."""
        if isinstance(indices, (str, numbers.Integral)):
            indices, weights, grads, states = [indices], [weights], [grads], [states]
        lists = []
        for name, found in zip(
            ("indices", "weights", "grads", "states"), (indices, weights, grads, states)
        ):
            if not isinstance(found, (list, tuple)):
                # What goes through the rows of an array, or in no order, is not meant.
                apart = (NDArray, numpy.ndarray, str, bytes, dict, set, frozenset)
                if isinstance(found, apart) or not isinstance(found, Iterable):
                    one = "an integer, a string or " if name == "indices" else ""
                    raise ValueError(
                        f"{self.registered_name}: {name} must be {one}a list with one for each "
                        f"parameter, got {type(found).__name__}"
                    )
                found = list(found)
            lists.append(found)
        indices = lists[0]
        if not set(map(type, indices)) <= {int, str}:
            for index in indices:
                if not isinstance(index, (str, numbers.Integral)):
                    raise ValueError(
                        f"{self.registered_name}: an index must be an integer or a string, got "
                        f"{index!r}"
                    )
        count, *others = map(len, lists)
        if others != 3 * [count]:
            raise ValueError(
                f"{self.registered_name}: got {count} indices, {others[0]} weights, {others[1]} "
                f"gradients and {others[2]} states, expected as many of each"
            )
        return tuple(lists)  # type: ignore[return-value]  # Of four, as given.

    def _progress(self) -> Callable[[], None]:
        """What takes all that is counted back to what it is now."""
        counts = self._index_update_count
        counts_before = dict(counts)
        attributes_before = {name: self.__dict__[name] for name in self._counted}

        def rollback() -> None:
            counts.clear()
            counts.update(counts_before)
            self.__dict__.update(attributes_before)

        return rollback

    def _push_whole_model(self, batch: Any, indices: Sequence[Index], weight: NDArray) -> None:
        """Hand over a step that depends on all gradients together."""
        tracker = self._step_tracker(weight)
        possible = tracker.possible_skips(indices) if self.skip_nonfinite else [[0] * len(indices)]
        lrs, wds = self._count_update(indices)
        counts = [self._index_update_count[index] for index in indices]
        tables = [
            self._table(indices, lrs, wds, [t - k for t, k in zip(counts, skipped)])
            for skipped in possible
        ]
        # Before it is pushed: a step too many is one more possibility, one too few would be missed.
        tracker.push(weight)
        try:
            batch.push(
                tables,
                self.clip_global_norm,
                self.skip_nonfinite,
                tracker.status,
                tracker.skips_seen,
            )
        except RuntimeError:
            # It has run already, and failed.
            raise
        except BaseException:
            if not batch.pushed:
                tracker.rollback()
            raise

    def _clip_coefficient(
        self, indices: Sequence[Index], weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> Optional[float]:
        """What `clip_global_norm` multiplies gradients by, None to skip; for `step`, by waiting."""
        arrays = [grad.tostype("default").astype(numpy.float64).asnumpy() for grad in grads]
        squares = sum(float(numpy.square(array).sum()) for array in arrays)
        norm: float = abs(self.rescale_grad) * math.sqrt(squares)
        skipped = self.skip_nonfinite and not all(numpy.isfinite(array).all() for array in arrays)
        self._step_tracker(weights[0]).record(indices, weights[0], norm, skipped)
        if skipped:
            return None
        if self.clip_global_norm is None or norm <= self.clip_global_norm:
            return 1.0
        return self.clip_global_norm / norm

    def _step_in_float32(
        self,
        weight: NDArray,
        grad: NDArray,
        master: Optional[NDArray],
        state: State,
        s: SimpleNamespace,
    ) -> NDArray:
        """`step` for a 16-bit weight: on its master weight, or on copies of weight and state.

        Returns the updated weight in float32.
        """
        grad = grad.astype(numpy.float32)
        if master is not None:
            self._step_one(master, grad, state, s)
        else:
            arrays = [] if state is None else [state] if isinstance(state, NDArray) else state
            copies = tuple(array.astype(numpy.float32) for array in arrays)
            master = weight.astype(numpy.float32)
            own = None if state is None else copies[0] if isinstance(state, NDArray) else copies
            self._step_one(master, grad, own, s)
            for array, copy in zip(arrays, copies):
                cast(copy, dtype=array.dtype, out=array)
        cast(master, dtype=weight.dtype, out=weight)
        return master

    def _fused_step_on_dense(
        self,
        indices: Sequence[Index],
        weights: Sequence[NDArray],
        grads: Sequence[NDArray],
        states: Sequence[State],
    ) -> None:
        """`fused_step` for arrays among which some are csr, by way of dense copies of those."""

        def dense(arrays: Sequence[NDArray]) -> List[NDArray]:
            return [a.tostype("default") if a.stype == "csr" else a for a in arrays]

        copies = dense(weights)
        self.fused_step(indices, copies, dense(grads), states)
        for weight, copy in zip(weights, copies):
            if copy is not weight:
                copy.tostype("csr").copyto(weight)

    def update_multi_precision(
        self,
        indices: Sequence[Index],
        weights: Sequence[NDArray],
        grads: Sequence[NDArray],
        states: Sequence[State],
    ) -> None:
        """Update; what MXNet's updater calls.

        MXNet drops an exception raised under a key-value store and goes on without the update.
        There the weights are made to raise MXNetError where they are used next.
        """
        indices, weights, grads, states = self._as_lists(indices, weights, grads, states)
        try:
            if self._whole_model_option and inside_kvstore_update():
                raise ValueError(
                    f"{self.registered_name}: {self._whole_model_option} needs the whole model in "
                    "one call, but a key-value store updates parameters one by one"
                )
            if IS_MXNET_1 and self._whole_model_option and len(dtypes_of_step()) > 1:
                raise ValueError(
                    f"{self.registered_name}: {self._whole_model_option} needs the whole model in "
                    "one call, but MXNet 1 makes one for each dtype of weights, and there are "
                    "several"
                )
            if self.ema_swapped_in:
                raise ValueError(
                    f"{self.registered_name}: a step inside averaged_weights would be taken back"
                )
            self.update(indices, weights, grads, states)
        except Exception as error:
            if inside_kvstore_update():
                native().push_failure(list(weights), str(error))
            raise

    def _count_update(self, indices: Sequence[Index]) -> Tuple[List[float], List[float]]:
        """Count one more update of each parameter.

        Returns the learning rate and the weight decay of each. A scheduler is asked with the
        `num_update` that the built-ins, which count one parameter after another, would ask it with.
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
        return lrs, self._get_wds(indices)

    def _get_lrs(self, indices: Sequence[Index]) -> List[float]:
        rate = as_number(self.learning_rate)
        asked = (
            f"lr_scheduler({self.num_update})" if self.lr_scheduler is not None else "learning_rate"
        )
        ANY_FINITE.check(self.registered_name, asked, rate)
        return self._multiplied(float(rate), "lr_mult", indices)

    def _get_wds(self, indices: Sequence[Index]) -> List[float]:
        return self._multiplied(float(self.wd), "wd_mult", indices)

    def _multiplied(self, number: float, name: str, indices: Sequence[Index]) -> List[float]:
        """A number times the multiplier of each parameter, which is found where MXNet finds it."""
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
                # Some set whether a parameter learns.
                flag = isinstance(multiplier, (bool, numpy.bool_))
                multiplier = int(multiplier) if flag else as_number(multiplier)
                owner = f"{self.registered_name}: parameter {self._name(index)}"
                ANY_FINITE.check(owner, name, multiplier)
            products.append(number * float(multiplier))
        return products

    def _updates(self, indices: Sequence[Index]) -> List[int]:
        """Which update of each parameter this is, for `step` without those that were skipped."""
        counts = self._index_update_count
        if self.skip_nonfinite:
            skipped = self._last_step_tracker.skipped
            return [counts[index] - skipped.get(index, 0) for index in indices]
        return [counts[index] for index in indices]

    def _share(self, t: int) -> float:
        """The share of the weight in its average after its update `t`."""
        d = self.ema_decay
        if not d or t == 1:
            return 1.0
        # 1 - d**t without losing its digits where d is near 1.
        return (1.0 - d) / -math.expm1(t * math.log(d))

    def _table(
        self,
        indices: Sequence[Index],
        lrs: Sequence[float],
        wds: Sequence[float],
        updates: Sequence[int],
    ) -> Scalars:
        """All scalars of a native update."""
        table = self._scalars(lrs, wds, updates)
        if self.ema_decay is not None:
            table["ema_weight"] = [self._share(t) for t in updates]
        if self.state_dtype is not None:
            table["step"] = [int(t) for t in updates]
            seed = int(self.state_seed) << 32
            table["rng_stream"] = [seed | _parameter_id(i) for i in indices]
        return table

    def _scalars(
        self, lrs: Sequence[float], wds: Sequence[float], updates: Sequence[int]
    ) -> Scalars:
        """All scalars that kernels and `reference_step` need."""
        return {
            "rescale_grad": -self.rescale_grad if self.maximize else self.rescale_grad,
            "clip_gradient": bound_or_infinity(self.clip_gradient),
            **self._weight_decay(lrs, wds, updates),
            **self.scalars(lrs, updates),
        }

    def _weight_decay(
        self, lrs: Sequence[float], wds: Sequence[float], updates: Sequence[int]
    ) -> Scalars:
        """The scalars of weight decay: as part of the gradient, or decoupled from it."""
        if not self.decoupled_wd:
            return {"wd": list(wds), "decay_factor": 1.0}
        rates = self._decay_rates(lrs, updates)
        return {"wd": NO_L2, "decay_factor": [1.0 - rate * wd for rate, wd in zip(rates, wds)]}

    def _decay_rates(self, lrs: Sequence[float], updates: Sequence[int]) -> Sequence[float]:
        """What decoupled weight decay is multiplied by."""
        return lrs

    def _name(self, index: Index) -> str:
        position: Any = self._positions([index])[0]
        parameter = self.param_dict.get(position)
        name = parameter.name if parameter is not None else self.idx2name.get(index)
        return repr(index) if name is None else f"{index} ({name!r})"


def _dense_copy(weight: NDArray) -> NDArray:
    """A copy of the type that is computed in."""
    copy = weight.astype(numpy.float32 if _is_half(weight) else weight.dtype)
    return copy if copy.stype == "default" else copy.tostype("default")


def _parameter_id(index: Index) -> int:
    """32 bits that tell parameters apart."""
    if isinstance(index, numbers.Integral):
        return int(index) & 0xFFFFFFFF
    return zlib.crc32(str(index).encode())


def _is_integer_array(value: Any) -> bool:
    """Whether this is an array of MXNet's that holds integers."""
    return hasattr(value, "asnumpy") and numpy.issubdtype(value.dtype, numpy.integer)


def _is_half(weight: NDArray) -> bool:
    """Whether numbers have 16 bits."""
    return bool(weight.dtype in (numpy.float16, BFLOAT16))
