"""The other side of ``hftlab bench journal``: our own writer, in a process of its own.

Answers one JSON object a line. ``open`` makes a journal and returns when its next segment is allocated; ``write``
appends numbered rows in atoms of a given length; ``pace`` publishes single rows at a fixed pace, each with the cycle
counter's reading; ``ring`` appends a row now and then, each with the time, and wakes who sleeps; ``call`` times calls.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from hftlab.core.rows import Flag, Kind, RowArray, new_rows
from hftlab.journal import JournalWriter
from hftlab.journal.format import write_atoms
from hftlab.kernels.jit import cycle_counter, kernel, store
from hftlab.kernels.ring import relax, rows_address

_BLOCK = 1 << 16


@kernel("int64(int64, int64, int64, int64, int64, int64, int64)")
def _pace(header: int, rows: int, first: int, source: int, n: int, seq: int, gap: int) -> int:
    """Publish `n` rows, one each `gap` cycles; px is the counter's reading just before."""
    due = cycle_counter()
    for i in range(n):
        due += gap
        now = cycle_counter()
        while now < due:
            relax()
            now = cycle_counter()
        store(source + 32, now)
        write_atoms(header, rows, first + i, 1, source, 1, seq + i, 1)
    return n


def _numbered() -> RowArray:
    """Return `_BLOCK` rows that carry their number and functions of it, each a message of its own."""
    rows, at = new_rows(_BLOCK), np.arange(_BLOCK)
    rows["kind"], rows["flags"], rows["px"], rows["qty"] = Kind.TRADE, Flag.LAST, at, -at
    rows["a"], rows["b"] = at * 2654435761, at ^ 0x5555
    return rows


class _Writer:
    """What the benchmark asks for, by the name of the request."""

    def __init__(self) -> None:
        self.rows = _numbered()
        self.writer: JournalWriter | None = None

    def open(self, folder: str, segment_rows: int, fsync_ms: float | None, core: int) -> int:
        if self.writer is not None:
            self.writer.close()
        self.writer = JournalWriter(Path(folder), {}, segment_rows=segment_rows, fsync_ms=fsync_ms)
        self.writer.ensure(3 * segment_rows // 4 + 1)  # answers when the segment after this one is there
        if core >= 0 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})  # this thread alone: the writer's helper goes where there is room
        return 0

    def write(self, n: int, atom_rows: int) -> int:
        assert self.writer is not None
        for at in range(0, n, _BLOCK):
            self.writer.extend(self.rows[: min(_BLOCK, n - at)], atom_rows=atom_rows)
        return self.writer.seq

    def pace(self, n: int, gap: int) -> int:
        writer = self.writer
        assert writer is not None
        row = self.rows[:1].copy()
        segment, first = writer._segment, writer.seq - writer._base  # the kernel stands where the host's engine does
        _pace(segment.address, segment.rows_address, first, rows_address(row), n, writer.seq, gap)
        writer.commit(n)
        return writer.seq

    def ring(self, n: int, seed: int) -> float:
        """Return the median time of `wake`, ns."""
        writer = self.writer
        assert writer is not None
        row, chance, took = self.rows[:1].copy(), random.Random(seed), []
        row["flags"] = Flag.COMMIT
        for _ in range(n):
            time.sleep(chance.uniform(0.0005, 0.0015))
            address, _ = writer.ensure(1)
            row["px"] = time.perf_counter_ns()
            ctypes.memmove(address, row.ctypes.data, 64)
            writer.commit(1)
            before = time.perf_counter_ns()
            writer.wake()
            took.append(time.perf_counter_ns() - before)
        return median(took)

    def call(self, n: int) -> float:
        """Return the median time of a call of `append` with one row, ns."""
        writer, row, took = self.writer, self.rows[:1], []
        assert writer is not None
        for _ in range(n):
            before = time.perf_counter_ns()
            writer.append(row)
            took.append(time.perf_counter_ns() - before)
        return median(took)


if __name__ == "__main__":
    writer = _Writer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": getattr(writer, request.pop("op"))(**request)}
        except Exception as error:  # told to who asked, who ends
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
