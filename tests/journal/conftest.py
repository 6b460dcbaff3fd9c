"""Rows whose every field follows from their number, so that a lost, torn or repeated row shows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from hftlab.core.rows import ROW, Kind, RowArray


def _numbered(first: int, n: int) -> RowArray:
    """Return `n` CLOCK rows that carry first, first + 1, ... in px, and functions of it in qty, a, b."""
    rows = np.zeros(n, ROW)
    at = np.arange(first, first + n, dtype=np.int64)
    rows["kind"], rows["px"], rows["qty"] = Kind.CLOCK, at, -at
    rows["a"], rows["b"] = at.astype(np.uint64) * np.uint64(2654435761), (at ^ 0x5555).astype(np.uint64)
    return rows


def _is_numbered(rows: RowArray, first: int = 0) -> bool:
    """Return whether `rows` are what `numbered` makes, in order, with the journal's numbers on them."""
    expected = _numbered(first, len(rows))
    same = all(np.array_equal(rows[name], expected[name]) for name in ("kind", "px", "qty", "a", "b"))
    return same and np.array_equal(rows["seq"], np.arange(first, first + len(rows), dtype=np.uint32))


def _until(condition: Callable[[], bool], what: str) -> None:
    """Wait for another thread or process; the limit only turns a hang into a failure."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail(f"waited 30 s for {what}")


def _python(code: str, *args: object) -> subprocess.Popen[str]:
    """Start another process that runs `code`."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def numbered() -> Callable[[int, int], RowArray]:
    """Return the maker of numbered rows."""
    return _numbered


@pytest.fixture(scope="session")
def is_numbered() -> Callable[..., bool]:
    """Return the check of numbered rows."""
    return _is_numbered


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool], str], None]:
    """Return the wait for another thread or process."""
    return _until


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.Popen[str]]:
    """Return the starter of other Python processes."""
    return _python
