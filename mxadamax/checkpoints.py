# SPDX-License-Identifier: Apache-2.0
"""Save states atomically, check them before loading, and convert them."""

import contextlib
import copy
import os
import pickle
import pickletools
import uuid
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Union,
)

from mxnet.base import MXNetError
from mxnet.libinfo import __version__ as mxnet_version
from mxnet.ndarray import NDArray
from mxnet.optimizer import Optimizer
from mxnet.util import is_np_array, is_np_shape, np_array, np_shape

from ._mxnet.module import ModuleTrainer, as_trainer
from ._mxnet.trainer import Keys, classic, updaters_of
from .conversion import (
    States,
    built_in_name,
    describe_optimizer,
    from_built_in,
    partner_of,
    to_built_in,
    without_averages,
)
from .optimizers.base import FusedOptimizer, State
from .optimizers.int8_format import as_present
from .optimizers.options import BY_NAME, Resume, check_integer, names_of
from .optimizers.state_dtypes import by_option, chosen, possible
from .optimizers.state_layout import arrays_of, describe, without_average
from .optimizers.update_counts import move_counts, renumber
from .states_alone import COUNT, check_nesting, optimizer_of_states

if TYPE_CHECKING:
    # Not at run time: a parameter server imports this inside the import of MXNet.
    from mxnet.gluon import Trainer

Path = Union[str, "os.PathLike[str]"]

_OF_THE_PROGRAM = (
    *names_of(Resume.FROM_PROGRAM, Resume.FROM_CALLER),
    # What LARS makes of `aggregate_num`.
    *("allow_np_array", "_by_lists"),
)
"""Options that say how the program calls its optimizer; never taken from a file."""


def save_states(trainer: "Trainer", file: Path) -> None:
    """Write the states of a trainer like `Trainer.save_states`, but atomically.

    This writes to a temporary file in the same folder, forces it to disk, and renames it to `file`.
    If the process or the machine dies, `file` is either the old or the new one. A killed process
    can leave ``.NAME.*.tmp`` behind; delete it.

    Parameters
    ----------
    trainer : gluon.Trainer, or Module or BucketingModule of MXNet 1
        With any optimizer of MXNet. Its states must not be on a parameter server.
    file : path
        The file to write. `load_states` and `Trainer.load_states` both read it.

    Raises
    ------
    ValueError
        If the shape of a parameter is not known yet, or states are on a parameter server.
    OSError
        If writing fails. `file` is unchanged.

    Notes
    -----
    A parameter that no step has updated has no state. The file contains its initial state, so a
    file always has the states of all parameters.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "adamax_ext")
    >>> train_a_step(trainer)
    >>> mxadamax.save_states(trainer, "0001.states")
    """
    trainer = as_trainer(trainer)
    weights = _weights(trainer)
    states = dict(_initialized_updaters(trainer)[0].states)
    keys = _keys_of(trainer).in_use
    for index, arrays in weights.items():
        key = keys[index]
        if key not in states and trainer._params[index].grad_req != "null":
            states[key] = trainer.optimizer.create_state_multi_precision(key, arrays[0])
    _write(file, states, trainer.optimizer)


def load_states(
    trainer: "Trainer",
    file: Path,
    optimizer: Optional[str] = None,
    optimizer_params: Optional[Mapping[str, Any]] = None,
) -> None:
    """Check and load states of this package's optimizer or of its built-in counterpart.

    The file provides the progress of the training: states, counts, learning rate or scheduler, and
    all numbers such as `beta1` and `wd`. The program decides the formula: an option that is on in
    the trainer and off in the file, or the other way round, raises an error that names it. The
    trainer keeps its optimizer, with its `aggregate_num` and `use_fused_step`. Load weights first,
    then states.

    From a built-in's file, the trainer keeps its options that the built-in does not have. It also
    keeps `ema_decay` if a file of this package has no averages. Averages then begin as the current
    weights.

    `Module.save_optimizer_states`, `kvstore.save_optimizer_states` and `Updater.get_states()` write
    states alone. For such a file, name the optimizer that wrote it, and the number of updates so
    far. Hyperparameters that `optimizer_params` does not name are those of the trainer.

    Load only files that you trust: they are pickles, and unpickling runs any code that a file
    names.

    Parameters
    ----------
    trainer : gluon.Trainer, or Module or BucketingModule of MXNet 1
        With an optimizer of this package. The devices of a trainer, and their number, may differ
        from those of the trainer that wrote the file: all get the states of the first device, and
        the counts of the training.
    file : path
        Written by :func:`save_states` or `Trainer.save_states`, here or with the corresponding
        built-in; or states alone.
    optimizer : str, optional
        Only for states alone: the name of the optimizer that wrote them, this package's or the
        built-in's.
    optimizer_params : dict, optional
        Only for states alone: arguments of that optimizer. ``begin_num_update``, the number of
        updates so far, is required unless the trainer's optimizer has one; 0 counts anew, as MXNet
        does.

    Raises
    ------
    ValueError
        If `file` is not a file of states, or does not fit the trainer. The message says what the
        file holds and what was expected. The trainer is unchanged.
    OSError
        If `file` cannot be read.

    Examples
    --------
    Resume a training that MXNet's own AdaMax began:

    >>> built_in = gluon.Trainer(net.collect_params(), "adamax", {"learning_rate": 0.01})
    >>> train_a_step(built_in)
    >>> built_in.save_states("0001.states")

    >>> trainer = gluon.Trainer(net.collect_params(), "adamax_ext")
    >>> mxadamax.load_states(trainer, "0001.states")
    >>> trainer.learning_rate, trainer.optimizer.num_update
    (0.01, 1)

    States alone:

    >>> with open("alone.states", "wb") as file:
    ...     count = file.write(built_in._updaters[0].get_states())
    >>> progress = {"begin_num_update": 1}
    >>> mxadamax.load_states(trainer, "alone.states", "adamax", progress)
    """
    trainer = as_trainer(trainer)
    target = trainer.optimizer
    if not isinstance(target, FusedOptimizer):
        raise ValueError(
            "load_states: the trainer's optimizer must be one of mxadamax's, got "
            f"{describe_optimizer(target)}; for a built-in, convert the file with "
            "python -m mxadamax convert and load it with Trainer.load_states"
        )
    if target.ema_swapped_in:
        raise ValueError("load_states: not inside averaged_weights")
    weights = _weights(trainer)
    states, source, _ = _read(file)
    updaters = _initialized_updaters(trainer)
    known = _keys_of(trainer)
    keys = known.in_use
    alone = source is None
    with _named(file):
        if source is None:
            source = _writer(optimizer, optimizer_params, target)
            states = _as_present(states, source)
            named = {key: _names(trainer, [position]) for position, key in enumerate(keys)}
            _check_kind_of_keys(states, keys)
            check_nesting(states, source, named)
        else:
            _check_unnamed(source, optimizer, optimizer_params)
            states = _as_present(states, source)
        built_in = built_in_name(source)
        if built_in is not None and f"{built_in}_ext" == target.registered_name:
            states, source = from_built_in(states, source, built_in, target)
        elif type(source) is not type(target):
            raise ValueError(
                f"holds states of {describe_optimizer(source)}, expected those of "
                f"{describe_optimizer(target)}"
            )
        _check_options(source, target, names_of(Resume.SAME_STATES))
        if not built_in and source.numerics != target.numerics:
            states = {i: target.other_numerics_state(state) for i, state in states.items()}
        if not built_in:
            _check_options(source, target, names_of(Resume.SAME_FORMULA))
        if alone:
            source.restore_counts(len(states) * len(updaters))
        written = _keys_in_file(trainer, known, states, source)
        candidate = _successor(target, source, weights, dict(zip(written, keys)))
        states = _by_position(trainer, states, written)
        writer = None if alone else source
        dtypes = _state_dtypes(target, writer, keys, written, weights)
        states, loaded = _check_states(trainer, states, source, candidate, weights, dtypes)
        candidate._loaded_state_dtypes = {keys[index]: dtype for index, dtype in loaded.items()}

    placed = [{keys[index]: state for index, state in states.items()}]
    if not trainer._update_on_kvstore:
        placed = [
            {
                keys[index]: updater.sync_state_context(state, weights[index][position].context)
                if index in weights
                else state
                for index, state in states.items()
            }
            for position, updater in enumerate(updaters)
        ]
    # Nothing has changed so far, and nothing below can fail.
    parameters = target.param_dict
    target.__setstate__(candidate.__getstate__())
    target.param_dict = parameters
    for updater, found in zip(updaters, placed):
        updater.states = found
        updater.states_synced = dict.fromkeys(found, False)


def convert(
    old: Path,
    new: Path,
    to: str,
    drop_averages: bool = False,
    optimizer: Optional[str] = None,
    optimizer_params: Optional[Mapping[str, Any]] = None,
) -> str:
    """Convert a file of a built-in's states for this package's optimizer, or back.

    States alone, as `Module.save_optimizer_states` writes them, become states alone. If
    `optimizer_params` has ``begin_num_update``, they become a file with an optimizer instead, which
    `Trainer.load_states` reads.

    Parameters
    ----------
    old : path
        A file that `save_states` has written, or states alone. It is unpickled: use only files that
        you trust.
    new : path
        The file to write, atomically like :func:`save_states`.
    to : str
        Name, in MXNet's registry, of the optimizer to convert for.
    drop_averages : bool, default False
        Omit the averages of `ema_decay` when converting for a built-in.
    optimizer : str, optional
        Only for states alone: the name of the optimizer that wrote them.
    optimizer_params : dict, optional
        Only for states alone: arguments of that optimizer, where they are not its defaults.

    Returns
    -------
    str
        A one-line summary.

    Raises
    ------
    ValueError
        If `old` is not a file of states, or `to` cannot use it.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> trainer = gluon.Trainer(net.collect_params(), "adam_ext")
    >>> train_a_step(trainer)
    >>> mxadamax.save_states(trainer, "0001.states")
    >>> print(convert("0001.states", "built-in.states", "adam"))
    built-in.states: adam_ext -> adam, states of 2 parameters, 1 updates
    """
    states, source, numpy_shapes = _read(old)
    alone = source is None
    with _named(old):
        if source is None:
            source = _writer(optimizer, optimizer_params)
            with np_array(is_np_array() and numpy_shapes), np_shape(numpy_shapes):
                states = _as_present(states, source)
                check_nesting(states, source, {})
        else:
            _check_unnamed(source, optimizer, optimizer_params)
        built_in = built_in_name(source)
        if built_in is not None and to == f"{built_in}_ext" and to in Optimizer.opt_registry:
            like = Optimizer.opt_registry[to]()
            states, target = from_built_in(states, source, built_in, like)
            if alone:
                target.restore_counts(len(states))
            target.check_hyperparameters()
        elif isinstance(source, FusedOptimizer) and f"{to}_ext" == source.registered_name:
            if alone:
                source.restore_counts(len(states))
            if drop_averages and source.ema_decay is not None:
                states = without_averages(states, source)
            states, target = to_built_in(states, source, to)
        else:
            partner = f"{built_in}_ext" if built_in else partner_of(source)
            possible = f"only {partner}" if partner in Optimizer.opt_registry else "nothing here"
            raise ValueError(
                f"holds states of {describe_optimizer(source)}, which {possible} can continue, "
                f"not {to!r}"
            )
    stays_alone = alone and COUNT not in (optimizer_params or {})
    with np_array(is_np_array() and numpy_shapes), np_shape(numpy_shapes):
        _write(new, states, None if stays_alone else target)
    updates = "without an optimizer" if stays_alone else f"{target.num_update} updates"
    return (
        f"{os.fspath(new)}: {describe_optimizer(source)} -> {to}, states of {len(states)} "
        f"parameters, {updates}"
    )


def _writer(
    name: Optional[str], params: Optional[Mapping[str, Any]], like: Optional[FusedOptimizer] = None
) -> Optimizer:
    """Return the optimizer that wrote states alone."""
    if name is None:
        raise ValueError(
            "holds only states, as written by Module or Updater.get_states(), without their "
            "optimizer: name it, and what else the file lacks, as optimizer='adam' with "
            f"optimizer_params={{{COUNT!r}: 1000}}, or --from adam with --option {COUNT}=1000"
        )
    return optimizer_of_states(name, params or {}, like)


def _as_present(states: States, source: Optimizer) -> States:
    """Return states of an earlier version as this one keeps them."""
    if not isinstance(source, FusedOptimizer):
        return states
    return {index: as_present(state, source) for index, state in states.items()}


def _check_unnamed(
    source: Optimizer, name: Optional[str], params: Optional[Mapping[str, Any]]
) -> None:
    """Refuse a name and options for a file that holds its optimizer."""
    if name is not None or params:
        raise ValueError(
            f"holds {describe_optimizer(source)} with its options; leave out optimizer and "
            "optimizer_params (--from and --option), which are for states alone"
        )


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """Prefix errors with the file, also if its optimizer lacks an attribute."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(file)}: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{os.fspath(file)}: its optimizer is damaged: {error}") from error


def _write(file: Path, states: States, optimizer: Optional[Optimizer]) -> None:
    """Write a file of states atomically, alone or with their optimizer."""
    content = pickle.dumps(states if optimizer is None else (states, optimizer))
    # Replace the file that a link points to, not the link.
    folder, name = os.path.split(os.path.realpath(file))
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, os.path.join(folder, name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # Without this, a power failure could lose the file's new name.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> Tuple[States, Optional[Optimizer], bool]:
    """Read states, optimizer, and whether arrays were written with NumPy's shape semantics.

    The optimizer is None if the file holds states alone.
    """
    with open(file, "rb") as stream:
        content = stream.read()
    expected = "expected what save_states writes, a pickle of (states, optimizer)"
    try:
        _check_memo(content)
        found, numpy_shapes = _unpickle(content)
    except Exception as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise ValueError(
            f"{os.fspath(file)}: cannot be read with MXNet {mxnet_version}, {expected}: "
            f"{type(error).__name__}: {reason}"
        ) from None
    if isinstance(found, tuple) and len(found) == 2:
        states, optimizer = found
        if isinstance(states, dict) and isinstance(optimizer, Optimizer):
            return states, optimizer, numpy_shapes
    if isinstance(found, dict):
        return found, None, numpy_shapes
    kind = type(found).__name__
    if isinstance(found, tuple):
        kind += f" of ({', '.join(type(entry).__name__ for entry in found)})"
    raise ValueError(f"{os.fspath(file)}: holds a {kind}, {expected}")


def _check_memo(content: bytes) -> None:
    """Refuse a pickle with a memo index beyond its own length, a sign of damage.

    Python would first allocate a memo of that size, which can be gigabytes.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(content):
            raise ValueError(f"object {argument} in {len(content)} bytes")


def _unpickle(content: bytes) -> Tuple[Any, bool]:
    try:
        return pickle.loads(content), is_np_shape()
    except MXNetError:
        # MXNet reads arrays only with the shape semantics that they were written with.
        other = not is_np_shape()
        with contextlib.suppress(MXNetError), np_array(is_np_array() and other), np_shape(other):
            return pickle.loads(content), other
        raise


def _keys_of(trainer: Any) -> Keys:
    return trainer.keys if isinstance(trainer, ModuleTrainer) else Keys(trainer)


def _check_kind_of_keys(states: States, keys: List[Any]) -> None:
    """Refuse states that are keyed by names where parameters have numbers, or vice versa."""
    kinds = {type(key) for key in keys}
    other = [key for key in states if type(key) not in kinds]
    if keys and other:
        by_name = isinstance(other[0], str)
        known, wanted = ("name", "number") if by_name else ("number", "name")
        raise ValueError(
            f"holds a state of parameter {other[0]!r}, by its {known}, but the trainer knows its "
            f"parameters by {wanted}, as {keys[0]!r}: load it "
            f"{'with' if by_name else 'without'} updates on a key-value store, as it was written"
        )


def _weights(trainer: "Trainer") -> Dict[int, List[NDArray]]:
    """Return the weights of each parameter on all devices, also of initialized frozen ones."""
    weights = {}
    for index, parameter in enumerate(trainer._params):
        if parameter._data is not None:
            weights[index] = [classic(array) for array in parameter._data]
        elif parameter.grad_req != "null":
            raise ValueError(
                f"{_names(trainer, [index])}: its shape is not known yet (deferred "
                "initialization); run the model once"
            )
    return weights


def _initialized_updaters(trainer: "Trainer") -> List[Any]:
    """Return the updaters that hold the states, initialized also before the first step."""
    from mxnet.gluon.parameter import DeferredInitializationError

    try:
        if not trainer._kv_initialized:
            trainer._init_kvstore()
        if trainer._params_to_init:
            trainer._init_params()
    except DeferredInitializationError:
        unknown = [p.name for p in trainer._params if p._data is None]
        raise ValueError(
            f"the shape of {', '.join(map(repr, unknown))} is not known yet (deferred "
            "initialization), and the trainer needs it; run the model once"
        ) from None
    return updaters_of(trainer)


def _check_options(source: FusedOptimizer, optimizer: FusedOptimizer, names: Iterable[str]) -> None:
    """Refuse states of an optimizer with another formula or other arrays."""
    for name in names:
        option = BY_NAME[name]
        wanted = getattr(optimizer, name, None)
        found = getattr(source, name, wanted)
        if option.setting(found) == option.setting(wanted):
            continue
        if name == "momentum" and source.rule == optimizer.rule:
            continue
        if name == "state_dtype" and _differ_by_parameter(found, wanted):
            continue
        if name == "ema_decay" and found is None:
            # Averages can begin at any time.
            continue
        advice = "make the trainer with what the file has"
        if option.resume is Resume.SAME_FORMULA:
            advice += ", and change it once the states are loaded"
        raise ValueError(
            f"was written with {name}={found!r}, but the trainer's {optimizer.registered_name} "
            f"has {name}={wanted!r}; {advice}"
        )


def _differ_by_parameter(found: Any, wanted: Any) -> bool:
    """Whether values of `state_dtype` can mean the same for some parameters, which states tell."""
    one_for_all = isinstance(found, str) and isinstance(wanted, str)
    return found is not None and wanted is not None and not one_for_all


def _keys_in_file(
    trainer: "Trainer", keys: Keys, states: States, source: FusedOptimizer
) -> List[Any]:
    """Return the keys of the trainer's parameters in a file; ValueError if ambiguous.

    Files of this package contain them. Files of built-ins do not, and do not say which of two
    numberings their updaters used.
    """
    said = getattr(source, "_parameter_keys", None)
    if said is not None:
        return list(said)
    needed = [p.grad_req != "null" for p in trainer._params]
    fitting = []
    for found in (keys.on_devices, keys.on_store):
        trained = {key for key, is_needed in zip(found, needed) if is_needed}
        if trained <= set(states) <= set(found):
            fitting.append(found)
    if not fitting:
        return keys.in_use
    first, last = ([found.index(key) for key in states] for found in (fitting[0], fitting[-1]))
    if first != last:
        raise ValueError(
            f"holds states with the indices {list(states)}, which can be those of "
            f"{_names(trainer, first)} or, from updates on a key-value store, of "
            f"{_names(trainer, last)}; while loading, set grad_req of the right ones to another "
            "value than 'null'"
        )
    return fitting[0]


def _names(trainer: "Trainer", positions: List[int]) -> str:
    return ", ".join(f"parameter {i} ({trainer._params[i].name!r})" for i in positions)


def _by_position(trainer: "Trainer", states: States, keys: List[Any]) -> States:
    """Return the states, keyed by the position of their parameter in the trainer."""
    positions = {key: position for position, key in enumerate(keys)}
    count = len(trainer._params)
    _check_kind_of_keys(states, keys)
    for key in states:
        if positions.get(key, count) >= count:
            raise ValueError(
                f"holds a state of parameter {key!r} (of {len(states)} in all), but the trainer "
                f"has {count} parameters"
            )
    return {positions[key]: state for key, state in states.items()}


def _successor(
    optimizer: FusedOptimizer,
    source: FusedOptimizer,
    weights: Mapping[int, List[NDArray]],
    keys: Mapping[Any, int],
) -> FusedOptimizer:
    """Return the optimizer to put in the trainer: the file's, on the trainer's devices.

    `keys` maps the file's keys to the trainer's.
    """
    entries = {**optimizer.__getstate__(), **source.__getstate__()}
    entries["_built_in_calls"] = getattr(source, "_built_in_calls", {})
    for name in _OF_THE_PROGRAM:
        if name in vars(optimizer):
            entries[name] = getattr(optimizer, name)
    if entries.get("ema_decay") is None:
        entries["ema_decay"] = optimizer.ema_decay
    # States tell of each parameter what the file has.
    for name in ("state_dtype", "_parameter_names", "_sparse_gradients"):
        entries[name] = getattr(optimizer, name)
    entries["_loaded_state_dtypes"] = {}

    renumber(entries, keys)
    move_counts(entries, [w.context.device_id for arrays in weights.values() for w in arrays])
    if not optimizer.param_dict:
        # A Module: its symbol has them.
        for name in ("lr_mult", "wd_mult", "idx2name", "sym_info"):
            entries[name] = getattr(optimizer, name)

    successor = copy.copy(optimizer)
    successor.__setstate__(entries)
    successor.check_hyperparameters()
    _check_progress(successor)
    return successor


def _check_progress(optimizer: FusedOptimizer) -> None:
    """Raise ValueError if the scheduler or the update counts are invalid."""
    scheduler = optimizer.lr_scheduler
    if scheduler is not None and not callable(scheduler):
        raise ValueError(f"lr_scheduler must be a function or None, got {scheduler!r}")
    for name in ("begin_num_update", "num_update"):
        check_integer(optimizer.registered_name, name, getattr(optimizer, name), 0)


class _Chosen(NamedTuple):
    """What `state_dtype` says about a parameter.

    Parameters
    ----------
    wanted : str or None
        In the program.
    written : str or None
        In the program that wrote the file.
    """

    wanted: Optional[str]
    written: Optional[str]

    def rank(self, dtype: Optional[str]) -> Tuple[bool, bool]:
        """Sort dtypes by who says so: a state can fit two of them."""
        return dtype != self.written, dtype != self.wanted


def _state_dtypes(
    target: FusedOptimizer,
    source: Optional[FusedOptimizer],
    keys: List[Any],
    written: List[Any],
    weights: Mapping[int, List[NDArray]],
) -> Dict[int, _Chosen]:
    """Return what file and program choose for each parameter, by its position in the trainer.

    `keys` and `written` are the keys of all parameters in the program and in the file; `source` is
    None for states alone.
    """
    found = {}
    for index, arrays in weights.items():
        wanted = by_option(target, keys[index], arrays[0])
        of_file = wanted
        if source is not None and index < len(written):
            of_file = chosen(source, written[index], arrays[0])
        found[index] = _Chosen(wanted, of_file)
    return found


def _initial_state(optimizer: FusedOptimizer, weight: NDArray, dtype: Optional[str]) -> State:
    """Return the state before the first step with own arrays of a dtype."""
    if optimizer.state_dtype is None:
        # What users override.
        return optimizer.create_state_multi_precision(0, weight)
    return replace(optimizer.state_layout(weight), state_dtype=dtype).create_all(weight)


def _check_states(
    trainer: "Trainer",
    states: States,
    source: FusedOptimizer,
    successor: FusedOptimizer,
    weights: Mapping[int, List[NDArray]],
    dtypes: Mapping[int, _Chosen],
) -> Tuple[States, Dict[int, Optional[str]]]:
    """Return the states, with new averages if those begin now; ValueError if they do not fit.

    With them goes the dtype of each parameter's own arrays, where the program would choose another.
    """
    parameters = trainer._params
    begins = source.ema_decay is None and successor.ema_decay is not None
    checked: States = {}
    loaded: Dict[int, Optional[str]] = {}
    seen: Set[int] = set()
    for index, parameter in enumerate(parameters):
        name = _names(trainer, [index])
        if index not in states:
            # A file without any state is from before the first step.
            if states and parameter.grad_req != "null":
                raise ValueError(
                    f"holds the states of {len(states)} parameters and none of {name}; to start "
                    "that one afresh, set its grad_req to 'null' while loading"
                )
            continue
        state = states[index]
        if index not in weights:
            checked[index] = state
            continue
        weight = weights[index][0]
        layout = successor.state_layout(weight)
        found = describe(state)
        others = []
        for dtype in sorted(possible(successor), key=dtypes[index].rank):
            expected = _initial_state(successor, weight, dtype)
            average = layout.unpack(expected).average
            described = describe(without_average(expected) if begins else expected)
            if found == described:
                break
            others.append(described)
        else:
            raise ValueError(
                f"{name}: holds a state {found}, expected {' or '.join(dict.fromkeys(others))} for "
                f"its weight {describe(weight)}"
            )
        if dtype != dtypes[index].wanted:
            loaded[index] = dtype
        if begins:
            layout = replace(layout, has_average=False)
        for array in arrays_of(state):
            if id(array) in seen:
                raise ValueError(
                    f"{name}: holds an array twice, expected a separate one for each state"
                )
            seen.add(id(array))
        if begins:
            parts = layout.unpack(state)
            average = average if parts.master is None else parts.master.copy()
            state = parts._replace(average=average).nested
        checked[index] = state
    return checked, loaded
