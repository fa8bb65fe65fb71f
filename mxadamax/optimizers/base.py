# SPDX-License-Identifier: Apache-2.0
"""The base of all optimizers of this package: one native operation for a whole step."""

import inspect
import os
from collections.abc import Mapping as AnyMapping
from dataclasses import replace
from types import SimpleNamespace
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

import numpy
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer

from .. import _native
from .._mxnet.compatibility import aggregate_num_here
from .._mxnet.engine import inside_kvstore_update, native
from ..pickling import FORMAT, check_format, name_of, new
from .arguments import as_lists, check_call
from .arithmetic import BUILTIN, PORTABLE, SERIES, Arithmetic, BySeries, takes_arguments_of
from .counting import CountingOptimizer
from .native_step import native_update
from .options import (
    BY_NAME,
    NOT_NEGATIVE,
    RANGES,
    WHOLE_MODEL_OPTIONS,
    Range,
    as_number,
    check_integer,
    check_rescale_grad,
)
from .reference_step import reference_update
from .scalars import NO_L2, Scalars
from .state_dtypes import (
    PickledFunction,
    StateDtype,
    check_state_dtype,
    chosen,
    names_to_pickle,
)
from .state_layout import State, StateLayout, behind_master
from .step_tracker import Index
from .traits import TraitsBySeries

__all__ = ["FusedOptimizer", "Scalars", "State", "register"]

_Class = TypeVar("_Class", bound=Type["FusedOptimizer"])


def register(
    name: str, built_in: Optional[str] = None, absent: Optional[Mapping[str, Any]] = None
) -> Callable[[_Class], _Class]:
    """Return a decorator that adds an optimizer to MXNet's registry.

    MXNet's own `register` takes the name from the class, so a class named like a built-in would
    replace the built-in.

    Parameters
    ----------
    name : str
        The name that users write: ``Trainer(params, name)``.
    built_in : str, optional
        The optimizer of MXNet's that it stands for. Its constructor then takes the arguments of
        that, by the installed MXNet's names, positions and defaults.
    absent : dict, optional
        Values of arguments with which it does as a built-in that does not have them.
    """

    def decorate(cls: _Class) -> _Class:
        cls.registered_name = name
        cls.built_in = built_in
        takes_arguments_of(cls, built_in, absent or {})
        Optimizer.opt_registry[name] = cls
        return cls

    return decorate


def _show_on_store(weights: Sequence[NDArray], error: Exception) -> None:
    """Make the next use of weights fail if a key-value store would drop the error."""
    if inside_kvstore_update():
        native().push_failure(list(weights), str(error))


class FusedOptimizer(CountingOptimizer):
    """Base class of the optimizers: a step is one call to a native rule.

    A subclass names its arithmetic and the ranges of its own hyperparameters, and defines `scalars`
    and `reference_step`. Every optimizer first computes, unless `numerics` says otherwise::

        weight *= 1 - lr * wd                  # with decoupled_wd
        grad = clip(grad * rescale_grad, -clip_gradient, clip_gradient)
        grad += wd * weight                    # without decoupled_wd

    Parameters
    ----------
    learning_rate : float, in [0, inf), or None
        The learning rate. With an `lr_scheduler` it replaces the scheduler's, as in MXNet.
    use_fused_step : bool, default True
        False calls `step`, the reference step in MXNet's operators.
    aggregate_num : int >= 0 or numpy.inf, optional
        How many parameters MXNet passes per call; 0 means 1. All by default; 1 on a parameter
        server (``DMLC_ROLE`` in the environment), which updates parameters one by one.
    numerics : {'builtin', 'portable'} or None, default None
        ``'builtin'`` computes what the installed MXNet's optimizer of the same name computes by
        default, bit for bit, and takes its arguments by their names, positions and defaults there.
        ``'portable'`` computes the same on every MXNet. None is ``'builtin'`` if the installed
        MXNet has the optimizer, else ``'portable'``.
    maximize : bool, default False
        Ascend instead of descend: negate the gradient. Weight decay still shrinks weights.
    decoupled_wd : bool, default False
        Keep weight decay out of the gradient: each step first multiplies the weight by
        ``1 - lr * wd``. (I. Loshchilov, F. Hutter, *Decoupled Weight Decay Regularization*,
        arXiv 1711.05101; `lr` is the learning rate without bias correction.)
    lazy_update : bool, default False
        Update only the rows that a row_sparse gradient holds, and leave the other rows and their
        states unchanged. False updates the other rows as if their gradient were zero. Requires
        `use_fused_step`.
    clip_global_norm : float, in (0, inf], or None, default None
        Clip the global norm: multiply all gradients of the model by
        ``min(1, clip_global_norm / norm)``. The step computes the norm itself, after `rescale_grad`
        and before `clip_gradient`, so nothing waits for it; `gradient_norm` returns it. One call
        must update the whole model: leave `aggregate_num` at its default. Updates on a key-value
        store raise an error.
    skip_nonfinite : bool, default False
        Skip a step if any gradient of the model holds NaN or infinity: no weight, state or average
        changes, and bias correction does not count the step. The step checks this itself, so
        nothing waits; `skipped_steps` returns the number of skipped steps. An `lr_scheduler` counts
        all steps. One call must update the whole model, as with `clip_global_norm`.
    ema_decay : float, in [0, 1), or None, default None
        Keep the average of each weight over its updates ``w_1 .. w_t``, in the same pass::

            average = (1 - share) * average + share * w_t,  share = (1 - d) / (1 - d**t)

        This is the exponential moving average of arXiv 1412.6980, section 7.2, with its bias
        corrected at every step. For 16-bit weights it is float32, and averages the float32 master
        weight if there is one. Evaluate with it by :func:`mxadamax.averaged_weights`. It costs one
        array of state, the last of a tuple ``(state, average)``.
    state_dtype : {'float16', 'bfloat16', 'int8'}, dict, function or None, default None
        Store states in low precision; see the notes. A dict maps patterns of parameter names, as
        `re.match` takes them, to dtypes or None: the first match counts, and without one None. A
        function gets the name and the shape of a parameter and returns a dtype or None; pickle
        must be able to store it. One dtype for all leaves out parameters with row_sparse gradients
        and arrays of fewer than 4096 elements, whose states are as with None. Requires
        `use_fused_step`; not for float64 weights.
    state_seed : int, in [0, 2**32), default 0
        Seed of the stochastic rounding of states of a `state_dtype`: the same seed gives the same
        bits.
    **kwargs
        Arguments of :class:`mxnet.optimizer.Optimizer`: ``rescale_grad`` (finite), ``wd`` (in
        [0, inf)), ``clip_gradient`` (in [0, inf], or None), ``lr_scheduler``, ``begin_num_update``,
        ``param_dict``, ``param_idx2name``, ``sym``, and ``multi_precision``: True keeps and updates
        a float32 master weight for each float16 or bfloat16 weight, and rounds the weight from
        it.

    Raises
    ------
    TypeError
        If an argument does not exist.
    ValueError
        If a hyperparameter is out of its range.

    Notes
    -----
    With a `state_dtype`, states use stochastic rounding: the mean of many roundings is the number
    itself, so updates that are too small to change a rounded state are not lost. The random numbers
    depend only on `state_seed`, the parameter, its update and the element. Second moments are
    stored as their roots. Rounding never turns a nonzero denominator into zero.

    ``'int8'`` stores a denominator as a float of 8 bits, four of them of its fraction, relative to
    the largest of each block of 64 elements; and the first of several states as its ratio to the
    last and `epsilon`, in 255 levels relative to the absmax of the block. A signed state alone has
    127 levels of either sign. A NaN or infinity spreads over its block. The state is a tuple of an
    int8 array for each of the rule's, which for denominators holds the bytes of codes from 0 to
    255, and a float32 array with a scale per block for each: for two states 2.125 bytes per element
    instead of 8. It needs dense gradients.

    Examples
    --------
    Every optimizer accepts these options besides its own:

    >>> optimizer = mxadamax.Adamax(wd=0.01, decoupled_wd=True, clip_global_norm=1.0)
    >>> trainer = gluon.Trainer(net.collect_params(), optimizer)
    >>> mxadamax.SGD(wd=-0.01)
    Traceback (most recent call last):
        ...
    ValueError: sgd_ext: wd must be in [0, inf), got -0.01
    """

    ranges: ClassVar[Mapping[str, Range]] = {}
    # The name of the built-in that it stands for.
    built_in: ClassVar[Optional[str]] = None
    # What that does besides its formula, which `accelerate` must know.
    traits: ClassVar[TraitsBySeries] = {}
    # What it computes with numerics="portable".
    portable: ClassVar[Arithmetic]
    # What the built-in computes by default, by MXNet's series, where that is something else.
    builtin: ClassVar[BySeries] = {}
    # Set by the constructor that `register` makes.
    numerics: str = PORTABLE
    # What states in low precision need to know of parameters: from a pickle, by their keys, where
    # the parameters are not; and the dtypes that a loaded file has where others would be chosen.
    _parameter_names: Mapping[Index, str] = {}
    _sparse_gradients: Tuple[Index, ...] = ()
    _loaded_state_dtypes: Mapping[Index, Optional[str]] = {}

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
        state_dtype: StateDtype = None,
        state_seed: int = 0,
        numerics: Optional[str] = None,
        **kwargs: Any,
    ):
        # The constructor that `register` makes has set `numerics`.
        owner = self.registered_name
        unknown = sorted(set(kwargs) - set(inspect.signature(Optimizer.__init__).parameters))
        if unknown:
            raise TypeError(f"{owner}: unexpected argument {unknown[0]!r}")
        if aggregate_num is None:
            aggregate_num = 1 if "DMLC_ROLE" in os.environ else numpy.inf
        given = {
            "learning_rate": as_number(learning_rate),
            "aggregate_num": aggregate_num,
            "maximize": maximize,
            "decoupled_wd": decoupled_wd,
            "lazy_update": lazy_update,
            "skip_nonfinite": skip_nonfinite,
            "use_fused_step": use_fused_step,
        }
        for name, value in given.items():
            BY_NAME[name].values.check(owner, name, value)
        if lazy_update and not use_fused_step:
            raise ValueError(f"{owner}: lazy_update must be False without use_fused_step")
        self.clip_global_norm = clip_global_norm
        self.skip_nonfinite = skip_nonfinite
        if self._whole_model_option and aggregate_num != numpy.inf:
            raise ValueError(
                f"{owner}: {self._whole_model_option} needs the whole model in one call "
                f"(aggregate_num=numpy.inf), got aggregate_num={aggregate_num!r}"
            )
        super().__init__(
            learning_rate=given["learning_rate"],
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
        self._forget_arrays()
        if use_fused_step:
            # Raise here if MXNet is not supported: later, MXNet could swallow the exception.
            native()
        check_integer(owner, "begin_num_update", self.begin_num_update, 0)

    def _forget_arrays(self) -> None:
        """Forget what steps leave behind about arrays."""
        self._state_cache = _native.StateCache()
        # For steps in several parts, by what tells them apart.
        self._part_caches: Dict[Any, _native.StateCache] = {}
        # By device and parameter, each with the state that was looked at.
        self._known_state_dtypes: Dict[int, Dict[Index, Tuple[State, Optional[str]]]] = {}

    @classmethod
    def has_built_in(cls, options: Mapping[str, Any]) -> bool:
        """Whether the built-in, where there is one, can do what these options ask for."""
        return True

    @property
    def arithmetic(self) -> Arithmetic:
        """What is computed, which `numerics` and the installed MXNet decide."""
        if self.numerics == BUILTIN:
            return self.builtin.get(SERIES, self.portable)
        return self.portable

    @property
    def rule(self) -> str:
        """The rule that updates dense parameters."""
        return self.arithmetic.rule

    def arithmetics_of(
        self, weights: Sequence[NDArray], grads: Sequence[NDArray]
    ) -> List[Arithmetic]:
        """The arithmetic of each parameter; nothing where all have that of the optimizer."""
        return []

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        return new, (name_of(type(self)),), self.__getstate__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "lr" or name in RANGES or name in self.ranges:
            if name == "rescale_grad":
                check_rescale_grad(self.registered_name, value)
            value = as_number(value)
        if name == "state_dtype":
            self._loaded_state_dtypes = {}
            self._known_state_dtypes = {}
            # Later changes to the dict are not seen.
            value = dict(value) if isinstance(value, AnyMapping) else value
        super().__setattr__(name, value)

    def __getstate__(self) -> Dict[str, Any]:
        state = {**super().__getstate__(), "_format": FORMAT}
        for name in ("_state_cache", "_part_caches", "_known_state_dtypes", "ema_swapped_in"):
            del state[name]
        if self.state_dtype is not None and self.param_dict:
            state.update(names_to_pickle(self, state["_parameter_keys"]))
        if callable(self.state_dtype):
            state["state_dtype"] = PickledFunction(self.registered_name, self.state_dtype)
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__({"numerics": PORTABLE, **check_format(state)})
        self.__dict__.pop("rule", None)
        if isinstance(self.state_dtype, PickledFunction):
            self.__dict__["state_dtype"] = self.state_dtype.function
        self._forget_arrays()
        self.ema_swapped_in = False
        self.aggregate_num = aggregate_num_here(self.aggregate_num)

    def check_hyperparameters(self) -> None:
        """Raise ValueError if a hyperparameter is out of its range.

        Constructors end with this check, and each step begins with it, because attributes can be
        set at any time.
        """
        owner = self.registered_name
        for name, allowed in (*RANGES.items(), *self.ranges.items()):
            allowed.check(owner, name, getattr(self, name))
        if self.lr_scheduler is None:
            NOT_NEGATIVE.check(owner, "learning_rate", self.lr)
        for name in ("state_dtype", "state_seed"):
            BY_NAME[name].values.check(owner, name, getattr(self, name))
        check_state_dtype(owner, self.rule, self.state_dtype, self.use_fused_step)

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate, in [0, inf); only without an `lr_scheduler`."""
        lr = as_number(lr)
        NOT_NEGATIVE.check(self.registered_name, "learning_rate", lr)
        super().set_learning_rate(lr)

    @property
    def gradient_norm(self) -> Optional[float]:
        """Return the norm of all gradients in the last step, rescaled but not clipped.

        Waits for that step. None without `clip_global_norm`, and before the first step.
        """
        return None if self.clip_global_norm is None else self._last_step_tracker.gradient_norm

    @property
    def _whole_model_option(self) -> Optional[str]:
        """Return the option that needs the whole model in one call, or None."""
        on = (o.name for o in WHOLE_MODEL_OPTIONS if o.setting(getattr(self, o.name)))
        return next(on, None)

    def state_layout(self, weight: NDArray) -> StateLayout:
        """Return the arrays of a weight's state and their nesting, as without `state_dtype`."""
        options = (self.multi_precision, None, self.ema_decay is not None)
        return StateLayout(self.rule, weight.dtype, *options)

    def create_state(self, index: Index, weight: NDArray) -> State:
        """Create the state of a weight before its first update: zeros of its shape and dtype.

        Returns
        -------
        None, NDArray or tuple of NDArray
            The rule's arrays, in the order in which the class names them. With `ema_decay`, a
            tuple of that and the average, which begins as the weight.
        """
        layout = self.state_layout(weight)
        return replace(layout, state_dtype=chosen(self, index, weight)).create(weight)

    def from_built_in_state(self, state: State) -> State:
        """Return the state of the installed MXNet's built-in as this optimizer keeps it."""
        return state

    def to_built_in_state(self, state: State) -> State:
        """Return a state of this optimizer as the installed MXNet's built-in keeps it."""
        return state

    def other_numerics_state(self, state: State) -> State:
        """Return the state of this optimizer with the other `numerics` as this one keeps it."""
        return state

    def average_of(self, state: State, weight: NDArray) -> Optional[NDArray]:
        """Return the average of a weight from its state; None without `ema_decay`."""
        return self.state_layout(weight).unpack(state).average

    def create_state_multi_precision(self, index: Index, weight: NDArray) -> State:
        """Create the state of a weight before its first update. MXNet's updater calls this.

        Returns
        -------
        None, NDArray or tuple
            For a float16 or bfloat16 weight with `multi_precision`, the float32 master weight and
            its state; else the result of `create_state`.
        """
        try:
            master = self.state_layout(weight).create_master(weight)
            own = self.create_state(index, weight if master is None else master)
        except Exception as error:
            _show_on_store([weight], error)
            raise
        return behind_master(master, own)

    def scalars(self, lrs: Sequence[float], updates: Sequence[int]) -> Scalars:
        """Compute the scalars of the rule for an update.

        Parameters
        ----------
        lrs : sequence of float
            Learning rate of each parameter.
        updates : sequence of int
            Number of this update of each parameter, from 1.

        Returns
        -------
        dict
            For each of the rule's own scalars a float, or a list with one float per parameter.
        """
        raise NotImplementedError

    def reference_step(
        self, weight: NDArray, grad: NDArray, state: State, s: SimpleNamespace
    ) -> None:
        """Compute the rule in MXNet's operators: update one weight and its state in place.

        Parameters
        ----------
        weight : NDArray
            The weight, after decoupled weight decay.
        grad : NDArray
            The gradient, rescaled, clipped and with weight decay.
        state : None, NDArray or tuple of NDArray
            The result of `create_state`.
        s : namespace
            The scalars of this parameter, as floats, or as arrays where an operator of MXNet's
            takes single precision, with those that `Arithmetic` lists as exact in `exact`, too;
            `rule`; `raw_grad`, the gradient as it came; `shown`, the weight
            or, where that is the master of a float16 weight, the latter, and `has_half`, whether
            it is.
        """
        raise NotImplementedError

    def step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update by `reference_step`, parameter by parameter; arguments as for `fused_step`."""
        given = as_lists(self.registered_name, indices, weights, grads, states)
        self.check_hyperparameters()
        if given[0]:
            reference_update(self, *given)

    def fused_step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update all weights and states in place by one operation of MXNet's engine.

        Returns before the operation has run; MXNet orders it like its own operators. Gradients are
        only read. The result equals that of `step` bit for bit.

        Parameters
        ----------
        indices : sequence of int or str, or a single one
            The parameters. With a single index, the other arguments are single too.
        weights, grads : sequence of NDArray
            Float32, float64, float16 or bfloat16 arrays, of any shape, also of size 0, all in host
            memory or all on one GPU. Each gradient has its weight's shape and dtype. In host memory
            both can be row_sparse, a weight only if it holds all of its rows; its state is dense.
            Csr arrays are copied to dense ones, which takes time. 16-bit arrays are computed in
            float32 and rounded once.
        states : sequence
            The result of `create_state_multi_precision` for each weight.

        Raises
        ------
        ValueError
            If a hyperparameter or an array is invalid. Nothing has changed.
        MXNetError
            At the next wait, if a row_sparse gradient holds rows that its weight does not have, or
            rows out of order. No array has changed.
        """
        given = as_lists(self.registered_name, indices, weights, grads, states)
        self.check_hyperparameters()
        if given[0]:
            native_update(self, *given)

    def update_multi_precision(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update weights and states. MXNet's updater calls this.

        MXNet drops an exception raised under a key-value store and continues without the update.
        There, the next use of the weights raises MXNetError.
        """
        try:
            check_call(self)
            self.update(indices, weights, grads, states)
        except Exception as error:
            _show_on_store(weights if isinstance(weights, (list, tuple)) else [weights], error)
            raise

    def _forms_groups(self) -> bool:
        # Each parameter has random numbers of its own.
        return self.state_dtype is None and super()._forms_groups()

    def _weight_decay(
        self,
        lrs: Sequence[float],
        wds: Sequence[float],
        updates: Sequence[int],
        arithmetic: Arithmetic,
    ) -> Scalars:
        """Compute the scalars of weight decay, in the gradient or decoupled from it."""
        if arithmetic.decay_in_rule == ("decoupled" if self.decoupled_wd else "coupled"):
            return {"wd": NO_L2, "decay_factor": 1.0, "weight_decay": list(wds)}
        if arithmetic.decays_first and not self.decoupled_wd:
            single = numpy.float32
            factors = [float(single(1) - single(lr) * single(wd)) for lr, wd in zip(lrs, wds)]
            return {"wd": 0.0, "decay_factor": factors, "weight_decay": 0.0}
        if not self.decoupled_wd:
            for wd in wds:
                if wd < 0:
                    # To kernels that means none.
                    NOT_NEGATIVE.check(self.registered_name, "wd times wd_mult", wd)
            return {"wd": list(wds), "decay_factor": 1.0, "weight_decay": 0.0}
        rates = self._decay_rates(lrs, updates)
        factors = [1.0 - rate * wd for rate, wd in zip(rates, wds)]
        return {"wd": NO_L2, "decay_factor": factors, "weight_decay": 0.0}

    def _decay_rates(self, lrs: Sequence[float], updates: Sequence[int]) -> Sequence[float]:
        """Return the rates that multiply decoupled weight decay."""
        return lrs
