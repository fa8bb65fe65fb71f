# SPDX-License-Identifier: Apache-2.0
"""All that this package knows about the differences between MXNet 1 and 2."""

import importlib
import inspect
import sys
from types import FrameType
from typing import Any, Optional, Set, Union

import mxnet
import numpy
from mxnet.optimizer import Optimizer, Updater

IS_MXNET_1 = "use_fused_step" not in inspect.signature(Optimizer.__init__).parameters

# Of `mxnet` itself nothing is asked here: on a parameter server that is only half imported.
gluon_arrays: Any = importlib.import_module("mxnet.ndarray" if IS_MXNET_1 else "mxnet.numpy")
"""The module of the arrays that Gluon's networks take and give."""

WHOLE_MODEL: Union[int, float] = 2**31 - 1 if IS_MXNET_1 else numpy.inf
"""The `aggregate_num` with which MXNet hands over all parameters at once.

MXNet 2 recognizes infinity by identity, and only with it hands parameters of all dtypes over in one
call. MXNet 1 slices by this number, and always makes a call for each dtype.
"""

C_FUNCTIONS = {"MXNDArrayGetShape64": "MXNDArrayGetShapeEx64"} if IS_MXNET_1 else {}
"""Functions of MXNet's C API that are called differently here, by their names in MXNet 2."""


def aggregate_num_here(aggregate_num: Any) -> Any:
    """`aggregate_num` as this MXNet has it, also from a file that the other one wrote.

    Pickling and arithmetic lose the identity of infinity.
    """
    if aggregate_num in (numpy.inf, 2**31 - 1):
        return WHOLE_MODEL
    return aggregate_num


def dtypes_of_step() -> Set[Any]:
    """The dtypes of all weights of the step that the caller runs in, if it is an updater's.

    MXNet 1's updater calls the optimizer once for each of them.
    """
    frame: Optional[FrameType] = sys._getframe()
    while frame is not None:
        if frame.f_code is Updater.__call__.__code__:
            weights = frame.f_locals["weight"]
            return {w.dtype for w in (weights if isinstance(weights, (list, tuple)) else [weights])}
        frame = frame.f_back
    return set()


def seed_all(seed: int) -> None:
    """Seed all random numbers that weights and data come from: MXNet's and NumPy's."""
    for random in (mxnet.random, gluon_arrays.random, numpy.random):
        if hasattr(random, "seed"):
            random.seed(seed)


class StepOptimizer(Optimizer):  # type: ignore[misc]  # MXNet has no types.
    """MXNet's base class as MXNet 2 has it: `update` calls `step` or `fused_step`.

    They get what `update` gets: lists of parameters, or a single one. In MXNet 1, there is no other
    method than `update`; in MXNet 2, it takes lists only.
    """

    if IS_MXNET_1:

        def __init__(
            self, aggregate_num: Any = None, use_fused_step: Optional[bool] = None, **kwargs: Any
        ):
            super().__init__(**kwargs)
            self.aggregate_num = 1 if aggregate_num is None else aggregate_num
            self.use_fused_step = use_fused_step

    def update(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update by a kernel with `use_fused_step`, else by operators."""
        if self.use_fused_step:
            self.fused_step(indices, weights, grads, states)
        else:
            self.step(indices, weights, grads, states)

    def step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update by operators."""
        raise NotImplementedError

    def fused_step(self, indices: Any, weights: Any, grads: Any, states: Any) -> None:
        """Update by a kernel."""
        raise NotImplementedError
