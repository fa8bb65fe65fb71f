# SPDX-License-Identifier: Apache-2.0
"""Hide the differences between MXNet 1 and 2."""

import importlib
import inspect
import sys
from types import FrameType
from typing import Any, Optional, Set, Union

import mxnet
import numpy
from mxnet.optimizer import Optimizer, Updater

IS_MXNET_1 = "use_fused_step" not in inspect.signature(Optimizer.__init__).parameters

# Not by attributes of `mxnet`, which a parameter server has only half imported by now.
gluon_arrays: Any = importlib.import_module("mxnet.ndarray" if IS_MXNET_1 else "mxnet.numpy")
"""The module of the arrays that Gluon's networks accept and return."""

WHOLE_MODEL: Union[int, float] = 2**31 - 1 if IS_MXNET_1 else numpy.inf
"""The `aggregate_num` with which MXNet passes all parameters in one call.

MXNet 2 recognizes infinity by identity, and only then passes parameters of all dtypes in one call.
MXNet 1 slices by this number, and always makes one call per dtype.
"""

C_FUNCTIONS = {"MXNDArrayGetShape64": "MXNDArrayGetShapeEx64"} if IS_MXNET_1 else {}
"""Functions of MXNet's C API with another name here, by their names in MXNet 2."""


def hands_over_by_type(updater: Updater) -> bool:
    """Return whether an updater hands over the parameters of one dtype after those of another."""
    # MXNet 2 recognizes infinity by identity.
    at_once = updater.optimizer.aggregate_num
    return bool(updater.aggregate_updates and at_once is not numpy.inf)


def aggregate_num_here(aggregate_num: Any) -> Any:
    """Convert `aggregate_num` to this MXNet's value, also from a file of the other MXNet.

    Pickling and arithmetic lose the identity of infinity.
    """
    if aggregate_num in (numpy.inf, 2**31 - 1):
        return WHOLE_MODEL
    return aggregate_num


def dtypes_of_step() -> Set[Any]:
    """Return the dtypes of all weights of the updater's step that the caller runs in, if any.

    MXNet 1's updater calls the optimizer once per dtype.
    """
    frame: Optional[FrameType] = sys._getframe()
    while frame is not None:
        if frame.f_code is Updater.__call__.__code__:
            weights = frame.f_locals["weight"]
            return {w.dtype for w in (weights if isinstance(weights, (list, tuple)) else [weights])}
        frame = frame.f_back
    return set()


def seed_all(seed: int) -> None:
    """Seed the random numbers of MXNet and NumPy."""
    for random in (mxnet.random, gluon_arrays.random, numpy.random):
        if hasattr(random, "seed"):
            random.seed(seed)


class StepOptimizer(Optimizer):  # type: ignore[misc]  # MXNet has no types.
    """MXNet 2's base class on either MXNet: `update` calls `step` or `fused_step`.

    Both get the arguments of `update`: lists of parameters, or a single one. MXNet 1 has only
    `update`; in MXNet 2, `update` accepts only lists.
    """

    if IS_MXNET_1:

        def __init__(
            self, aggregate_num: Any = None, use_fused_step: Optional[bool] = None, **kwargs: Any
        ):
            super().__init__(**kwargs)
            self.aggregate_num = 1 if aggregate_num is None else aggregate_num
            self.use_fused_step = use_fused_step

    def update(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update with a kernel if `use_fused_step`, else with operators."""
        if self.use_fused_step:
            self.fused_step(indices, weights, grads, states)
        else:
            self.step(indices, weights, grads, states)

    def step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update with operators."""
        raise NotImplementedError

    def fused_step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update with a kernel."""
        raise NotImplementedError
