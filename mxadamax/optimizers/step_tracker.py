# SPDX-License-Identifier: Apache-2.0
"""Track steps that the engine has not finished."""

from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

from mxnet.ndarray import NDArray

from .. import _native

Index = Union[int, str]


MOST_PENDING = 32
"""Limit of the steps whose outcome is open: each adds a table of scalars to the next step."""


class StepTracker:
    """Track the steps on one device.

    Only the engine finds out whether a step is skipped, and Python pushes the next step before
    that. So it pushes scalars for every possible skip count, and the engine picks the right ones.

    Parameters
    ----------
    skipped : mapping, optional
        Number of earlier skipped steps of each parameter.
    total : int, default 0
        Number of earlier skipped steps.
    """

    def __init__(self, skipped: Optional[Mapping[Index, int]] = None, total: int = 0):
        self.status = _native.StepStatus()
        self._weight: Optional[NDArray] = None
        self._skipped: Dict[Index, int] = dict(skipped or {})
        self._total_before = total
        self._skips_seen = 0
        self._pushed = 0
        self._indices: List[Index] = []
        self._norm: Optional[float] = None
        self._before: Tuple[Optional[NDArray], Optional[float]] = (None, None)

    def possible_skips(self, indices: Sequence[Index]) -> List[List[int]]:
        """Return every possible skip count of each of these parameters.

        The first entry assumes that `skips_seen` steps have been skipped since this tracker began,
        the next one more, and so on.
        """
        # In this order: a step that finishes in between counts twice rather than not at all.
        pending = self._pushed - self.status.finished
        if pending > MOST_PENDING or (pending and list(indices) != self._indices):
            self.wait()
            pending = 0
        self._see_skips()
        self._indices = list(indices)
        return [[self._skipped.get(i, 0) + k for i in indices] for k in range(pending + 1)]

    @property
    def skips_seen(self) -> int:
        """Return the number of skipped steps that `possible_skips` has seen."""
        return self._skips_seen

    def _see_skips(self) -> None:
        found = self.status.skipped - self._skips_seen
        if found:
            self._skips_seen += found
            for index in self._indices:
                self._skipped[index] = self._skipped.get(index, 0) + found

    def push(self, weight: NDArray) -> None:
        """Record that a step that writes this weight is being pushed."""
        self._before = self._weight, self._norm
        self._pushed += 1
        self._weight = weight
        self._norm = None

    def rollback(self) -> None:
        """Undo the last `push`, whose step the engine did not get."""
        self._pushed -= 1
        self._weight, self._norm = self._before

    def record(self, indices: Sequence[Index], weight: NDArray, norm: float, skipped: bool) -> None:
        """Record a finished step."""
        self._weight = weight
        self._norm = norm
        if skipped:
            self._total_before += 1
            for index in indices:
                self._skipped[index] = self._skipped.get(index, 0) + 1

    def wait(self) -> None:
        """Wait for the last step."""
        if self._weight is not None:
            self._weight.wait_to_read()

    @property
    def gradient_norm(self) -> Optional[float]:
        """Return the norm of the gradients in the last step; waits. None before the first."""
        if self._weight is None:
            return None
        self.wait()
        return self.status.gradient_norm if self._norm is None else self._norm

    @property
    def skipped_steps(self) -> int:
        """Return the number of skipped steps; waits."""
        self.wait()
        return self._total_before + self.status.skipped

    @property
    def skipped(self) -> Dict[Index, int]:
        """Return the number of skipped steps of each parameter; waits."""
        self.wait()
        self._see_skips()
        return {index: count for index, count in self._skipped.items() if count}
