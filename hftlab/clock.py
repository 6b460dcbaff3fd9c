"""The host's clocks: the only place that reads time for rows."""

from __future__ import annotations

import time

__all__ = ["StepWatch", "now_ns"]

now_ns = time.time_ns
"""Wall time, ns UTC."""


class StepWatch:
    """Notices when the wall clock jumps against the monotonic one.

    Parameters
    ----------
    limit_ns : int
        Smaller differences are drift, not a step.

    Examples
    --------
    >>> StepWatch().step()
    0
    """

    def __init__(self, limit_ns: int = 100_000_000) -> None:
        self._limit_ns = limit_ns
        self._offset = time.time_ns() - time.monotonic_ns()

    def step(self) -> int:
        """Return by how many ns the wall clock has stepped since the last call; 0 within the limit."""
        offset = time.time_ns() - time.monotonic_ns()
        step = offset - self._offset
        if abs(step) < self._limit_ns:
            return 0
        self._offset = offset
        return step
