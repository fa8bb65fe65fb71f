# SPDX-License-Identifier: Apache-2.0
"""Choose the arithmetic of a step: that of the installed MXNet's built-in, or the portable one."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from mxnet.libinfo import __version__ as mxnet_version
from mxnet.ndarray import NDArray
from mxnet.ndarray.sparse import RowSparseNDArray
from mxnet.optimizer import Optimizer

from .._mxnet.compatibility import IS_MXNET_1
from .arguments import is_known
from .options import BY_NAME, NUMERICS

SERIES = 1 if IS_MXNET_1 else 2
"""The series of the installed MXNet. All versions of a series compute the same."""

BUILTIN, PORTABLE = NUMERICS


@dataclass(frozen=True)
class Arithmetic:
    """A rule, and how numbers get to it.

    Parameters
    ----------
    rule : str
        The kernel.
    by_operator : bool, default False
        Whether the rule stands for an operator of MXNet's that takes its scalars in single
        precision, and 0 as a bound for none.
    listed : tuple of str, default ()
        The scalars that this operator takes in lists, which round to the nearest number.
    exact : tuple of str, default ()
        The scalars that are given as this operator has them, in single or double precision.
    clip_after_wd : bool, default False
        Whether `clip_gradient` bounds the sum of gradient and weight decay, not the gradient.
    decay_in_rule : {"", "coupled", "decoupled"}, default ""
        The kind of weight decay that the rule itself applies, as its scalar ``weight_decay``.
    decays_first : bool, default False
        Whether the weight is first multiplied by ``1 - lr * wd``, in single precision, in the place
        of coupled weight decay.
    lazy_update : bool, optional
        Whether rows that a row_sparse gradient does not hold are left alone, where that is not what
        the option says.
    scale_in_rule : bool, default False
        Whether the rule multiplies by `rescale_grad` where nothing is clipped.
    zero_is_a_bound : bool, default False
        Whether MXNet clips all gradients to 0 where `clip_gradient` is 0.
    """

    rule: str
    by_operator: bool = False
    listed: Tuple[str, ...] = ()
    exact: Tuple[str, ...] = ()
    clip_after_wd: bool = False
    decay_in_rule: str = ""
    decays_first: bool = False
    lazy_update: Optional[bool] = None
    scale_in_rule: bool = False
    zero_is_a_bound: bool = False


BySeries = Mapping[int, Arithmetic]


def by_storage(arrays: Sequence[NDArray], dense: Arithmetic, rows: Arithmetic) -> List[Arithmetic]:
    """Return `rows` for each row_sparse array, and `dense` for others; nothing if all are dense."""
    if is_known(arrays) or RowSparseNDArray not in map(type, arrays):
        return []
    return [rows if type(array) is RowSparseNDArray else dense for array in arrays]


NAMES: Mapping[str, str] = {
    **{"gamma1": "rho", "gamma2": "momentum"},
    **{"eps": "epsilon", "float_stable_eps": "epsilon"},
}
"""What MXNet 1 calls arguments, and what MXNet 2 and this package call them."""


def names_in_mxnet(name: str, taken: Mapping[str, Any]) -> str:
    """The name that a constructor of MXNet's, with these parameters, has for an argument."""
    return next((n for n in taken if NAMES.get(n) == name), name)


_OWN = ("use_fused_step", "aggregate_num")
"""Arguments whose defaults are this package's."""


def built_in_class(name: Optional[str]) -> Any:
    """The installed MXNet's own optimizer of a name; None where it has none."""
    found = Optimizer.opt_registry.get(name)
    return found if found is not None and found.__module__.startswith("mxnet.") else None


def constructor_of_built_in(
    built_in: Any, own: Mapping[str, inspect.Parameter], absent: Mapping[str, Any]
) -> Callable[..., Dict[str, Any]]:
    """Return what turns a call of MXNet's constructor into keyword arguments of ours.

    Names, positions and defaults are the installed MXNet's.

    Parameters
    ----------
    built_in : type
        MXNet's class.
    own : dict of str to inspect.Parameter
        The parameters of our constructor.
    absent : dict
        The values of our parameters with which we do as a built-in that does not have them.
    """
    theirs = inspect.signature(built_in.__init__).parameters
    named = [
        p for name, p in theirs.items() if name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    defaults = {"learning_rate": None, **absent} if "learning_rate" in own else dict(absent)
    for parameter in named:
        name = NAMES.get(parameter.name, parameter.name)
        if name in own and name not in _OWN and parameter.default is not parameter.empty:
            defaults[name] = parameter.default

    def arguments(args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> Dict[str, Any]:
        if len(args) > len(named):
            raise TypeError(
                f"{built_in.__name__.lower()}_ext: got {len(args)} positional arguments, expected "
                f"at most {len(named)}, as in MXNet {mxnet_version}"
            )
        given = {p.name: value for p, value in zip(named, args)}
        twice = sorted(set(given) & set(kwargs))
        if twice:
            raise TypeError(f"got two values for the argument {twice[0]!r}")
        given.update(kwargs)
        translated = {NAMES.get(name, name): value for name, value in given.items()}
        if len(translated) < len(given):
            pair = next(n for n in NAMES if n in given and NAMES[n] in given)
            raise TypeError(f"got both {pair!r} and {NAMES[pair]!r}, which mean the same")
        found = {**defaults, **translated}
        if found.get("use_fused_step") is False and "lazy_update" not in translated:
            found.pop("lazy_update", None)
        return found

    return arguments


def takes_arguments_of(cls: Any, name: Optional[str], absent: Mapping[str, Any]) -> None:
    """Let the constructor of a class take what that of the built-in of a name takes.

    Parameters
    ----------
    cls : type
        An optimizer of this package. The installed MXNet may have no built-in of that name.
    name : str or None
        The built-in's.
    absent : dict
        See :func:`constructor_of_built_in`.
    """
    constructor = cls.__init__
    own = inspect.signature(constructor).parameters
    built_in = built_in_class(name)
    translate = constructor_of_built_in(built_in, own, absent) if built_in is not None else None

    @functools.wraps(constructor)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        registered = next(base for base in type(self).__mro__ if "registered_name" in vars(base))
        if registered is cls:
            numerics = kwargs.pop("numerics", None)
            has_built_in = translate is not None and cls.has_built_in(kwargs)
            BY_NAME["numerics"].values.check(cls.registered_name, "numerics", numerics)
            if numerics is None:
                numerics = BUILTIN if has_built_in else PORTABLE
            elif numerics == BUILTIN and not has_built_in:
                raise ValueError(
                    f"{cls.registered_name}: numerics must be {PORTABLE!r} or None, got "
                    f"{numerics!r}: MXNet {mxnet_version} has no such optimizer"
                )
            self.numerics = numerics
            if numerics == BUILTIN and translate is not None:
                args, kwargs = (), translate(args, kwargs)
        constructor(self, *args, **kwargs)

    cls.__init__ = init
