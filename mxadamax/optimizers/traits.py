# SPDX-License-Identifier: Apache-2.0
"""What MXNet's own optimizers do besides their formulas."""

from dataclasses import dataclass
from typing import Mapping


@dataclass(frozen=True)
class Traits:
    """What a built-in does besides its formula, and `accelerate` must know.

    Parameters
    ----------
    writes_gradients : bool, default False
        Whether it leaves gradients rescaled. Only where they are added up does that show in a
        training.
    has_rate : bool, default True
        Whether it has a learning rate, and asks a scheduler.
    all_or_none : bool, default False
        Whether what it does with a parameter depends on those that it updates before or together
        with it: all of a step are updated natively, or none.
    counts_calls : bool, default False
        Whether it matters in which calls it is given the parameters of a step.
    draws : bool, default False
        Whether it draws random numbers. To draw them twice would give the program others.
    left_to_mxnet : str, default ""
        Why MXNet updates all of its parameters; empty if it does not.
    """

    writes_gradients: bool = False
    has_rate: bool = True
    all_or_none: bool = False
    counts_calls: bool = False
    draws: bool = False
    left_to_mxnet: str = ""


TraitsBySeries = Mapping[int, Traits]
"""The traits of a built-in in MXNet 1 and 2; none where a series is not named."""
