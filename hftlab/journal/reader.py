"""Readers: any number of processes follow a journal, and none can slow the writer or each other.

**Model.** A reader maps segments read-only and keeps an index. `poll` loads the committed count and returns a view of
the rows up to the end of the last whole atom; it takes no lock, copies nothing, and the writer cannot tell that it
exists. At the end of a closed segment it maps the next one.

**Promise.** Every row once, in order, whole atoms only. A view stays valid for as long as it is held, even after the
segment was rotated away. A reader whose *next* segment has been removed is told so by `ReaderBehind`; it loses
nothing in silence.

**Waiting.** `wait` sleeps on the journal's bell: the writer's next `wake` ends the sleep within some 30 us. `spin` is
for a core of one's own: it looks without pause and sees a row within a microsecond. An asyncio program waits in a
thread, ``await asyncio.to_thread(reader.wait, 1.0)``, which costs it some 50 us more.

**Worst case accepted.** A view that is held keeps 16 MB mapped. Who may not write the journal's folder cannot use the
bell: `wait` then sleeps 0.2 to 5 ms between looks. A wait's end is only about as late as was asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.core.errors import JournalError, ReaderBehind
from hftlab.core.rows import ROW, RowArray
from hftlab.journal.bell import BELL_FILE, Bell
from hftlab.journal.format import (
    COMMITTED_AT,
    NO_SEQ,
    Segment,
    SegmentHeader,
    atom_end,
    rows_hash,
    segment_name,
    segment_numbers,
    started_segments,
    whole_rows,
)
from hftlab.kernels.ring import spin_past

__all__ = ["JournalReader", "bounds", "read_all", "run_hash"]

_SHORTEST_S, _LONGEST_S = 0.0002, 0.005
_RUNG_S = 1e-5  # what a sleep that was ended by the bell counts


class JournalReader:
    """Follows one journal from a row on.

    Parameters
    ----------
    folder : Path
        The journal's folder.
    start : int, optional
        Full number of the first row wanted; None for the journal's present end.

    Attributes
    ----------
    position : int
        Full number of the next row to be returned.

    Raises
    ------
    JournalError
        If there is no journal, it is of another version, or `start` lies beyond its end.
    ReaderBehind
        If the segment with row `start` has been removed; `bounds` gives the oldest row left.

    Examples
    --------
    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> from hftlab.journal import JournalWriter
    >>> rows = np.zeros(3, ROW); rows["kind"], rows["px"] = 41, [7, 8, 9]
    >>> with JournalWriter(folder, {"run": 1}, segment_rows=64, fsync_ms=None) as writer:
    ...     _ = writer.append(rows)
    >>> reader = JournalReader(folder, start=1)
    >>> reader.definitions, reader.poll()["px"].tolist(), reader.position, len(reader.poll())
    ({'run': 1}, [8, 9], 3, 0)
    """

    def __init__(self, folder: Path, *, start: int | None = 0) -> None:
        self.folder = Path(folder)
        self._segment: Segment | None = None
        self._pause = threading.Event()  # never set: its wait is a sleep
        self._bell: Bell | None = None
        with contextlib.suppress(JournalError):  # of another user, on a read-only disk, or written before there was one
            self._bell = Bell(self.folder / BELL_FILE)
        segment, self._index = _find(self.folder, start)
        self._enter(segment)

    @property
    def position(self) -> int:
        """Full number of the next row to be returned."""
        return self.base_seq + self._index

    @property
    def definitions(self) -> dict[str, Any]:
        """What the numbers in the rows mean, from the segment the reader stands in."""
        return self.header.definitions

    def poll(self, max_rows: int = 65536) -> RowArray:
        """Return new rows, a read-only view of whole atoms; empty if there are none.

        Parameters
        ----------
        max_rows : int
            At most this many, but never less than one atom.

        Raises
        ------
        ReaderBehind
            If the next segment has been removed.
        JournalError
            If the reader is closed.
        """
        while True:
            segment = self._segment
            if segment is None:
                raise JournalError(f"the reader of {self.folder} is closed")
            first = self._index
            end = atom_end(segment.address, segment.rows_address, first, max_rows)
            if end == first and segment.closed:
                # Once more: rows may have come between the count and the mark. A start within an atom ends at the count
                end = atom_end(segment.address, segment.rows_address, first, max_rows)
                end = end if end > first else segment.committed
                if end == first and self._follow(segment):
                    continue
            self._index = end
            return segment.rows[first:end]

    def wait(self, timeout_s: float) -> bool:
        """Sleep until rows are there, at most about `timeout_s` seconds, and return whether there are.

        Raises
        ------
        ReaderBehind
            If the next segment has been removed.
        """
        slept, nap = 0.0, _SHORTEST_S
        while not self._has_rows():
            left = timeout_s - slept
            if left <= 0:
                return False
            if self._bell is None:
                self._pause.wait(min(nap, left))
                slept += nap
                nap = min(2 * nap, _LONGEST_S)
                continue
            count = self._bell.arm()
            if self._has_rows():
                break
            piece = min(left, Bell.LONGEST_S)
            slept += _RUNG_S if self._bell.sleep(count, piece) else piece
        return True

    def spin(self, turns: int) -> bool:
        """Look for rows `turns` times without sleeping, 10 to 50 ns a turn, and return whether there are any.

        Other threads run meanwhile. For a loop that owns its core: ``while not reader.spin(100_000): ...``.
        """
        segment = self._segment
        if segment is None:
            raise JournalError(f"the reader of {self.folder} is closed")
        return bool(spin_past(segment.address + COMMITTED_AT, self._index, turns)) or self._has_rows()

    def _has_rows(self) -> bool:
        found = len(self.poll(1))
        self._index -= found  # looked at, not taken
        return found > 0

    def close(self) -> None:
        """Let go of the mapping; views that were returned stay valid."""
        self._segment = None

    def _enter(self, segment: Segment) -> None:
        self._segment = segment
        self.base_seq = segment.base_seq
        self.header: SegmentHeader = segment.header

    def _follow(self, segment: Segment) -> bool:
        """Enter the segment after a closed one; False when the journal ends here for now."""
        number = segment.number + 1
        path = self.folder / segment_name(number)
        if not os.path.lexists(path):
            if any(n > number for n in segment_numbers(self.folder)):
                raise ReaderBehind(
                    f"row {self.position} of {self.folder} has been rotated away; attach again from row "
                    f"{bounds(self.folder)[0]}"
                )
            return False
        following = Segment(path)
        if following.base_seq == NO_SEQ:
            return False  # allocated ahead by a writer that has gone
        if following.base_seq != self.position:
            raise JournalError(f"{path.name} begins at row {following.base_seq}; expected row {self.position}")
        self._enter(following)
        self._index = 0
        return True


def _find(folder: Path, start: int | None) -> tuple[Segment, int]:
    """Return the segment that holds row `start` and the row's index in it."""
    if start is not None and start < 0:
        raise JournalError(f"start is {start}; expected a row number of 0 or more, or None for the end")
    base = NO_SEQ
    for number in reversed(segment_numbers(folder)):
        path = folder / segment_name(number)
        if not os.path.lexists(path):
            break  # rotated since the listing, and so is everything before it
        segment = Segment(path)
        base = segment.base_seq
        if base == NO_SEQ:
            continue
        end = base + _whole(segment)
        if start is None or start == end:
            return segment, end - base
        if start > end:
            raise JournalError(f"start is row {start}; {folder} ends before row {end}")
        if start >= base:
            return segment, start - base
    if base == NO_SEQ:
        raise JournalError(f"{folder} is not a journal: no segment has been started")
    raise ReaderBehind(f"row {start} of {folder} has been rotated away; the oldest row left is {base}")


def _whole(segment: Segment) -> int:
    return int(whole_rows(segment.rows_address, 0, segment.committed))


def _parts(folder: Path) -> list[Segment]:
    """Return the journal's segments, refusing a hole between them."""
    segments = started_segments(folder)
    if not segments:
        raise JournalError(f"{folder} is not a journal: no segment has been started")
    for one, following in itertools.pairwise(segments):
        if one.base_seq + one.committed != following.base_seq:
            raise JournalError(
                f"{one.path.name} ends before row {one.base_seq + one.committed}, {following.path.name} begins at row "
                f"{following.base_seq}: rows are missing between them"
            )
    return segments


def bounds(folder: Path) -> tuple[int, int]:
    """Return the number of the oldest row left and of the next row to come.

    Raises
    ------
    JournalError
        If `folder` holds no journal.
    """
    segments = _parts(folder)
    return segments[0].base_seq, segments[-1].base_seq + _whole(segments[-1])


def read_all(folder: Path) -> RowArray:
    """Return every committed row left in the journal: a view if it has one segment, else a copy.

    Raises
    ------
    JournalError
        If `folder` holds no journal, or a segment is missing within it.

    Examples
    --------
    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> from hftlab.journal import JournalWriter
    >>> JournalWriter(folder, {}, segment_rows=64, fsync_ms=None).close()
    >>> len(read_all(folder))
    0
    """
    parts = [segment.rows[: _whole(segment)] for segment in _parts(folder)]
    if len(parts) == 1:
        return parts[0]
    # As bytes: joining structured arrays would repack the row and split its overlapping fields
    return np.concatenate([part.view(np.uint8) for part in parts]).view(ROW)


def run_hash(folder_or_rows: Path | str | RowArray) -> str:
    """Return the identity of a run: the sha256 (64 hex digits) of its rows alone, without headers.

    Parameters
    ----------
    folder_or_rows : Path or array of ROW
        A journal, or rows in memory.

    Raises
    ------
    JournalError
        If the journal's first rows have been rotated away: the rest is not the run.

    Examples
    --------
    >>> run_hash(np.zeros(0, ROW))[:8]
    'e3b0c442'
    """
    if isinstance(folder_or_rows, np.ndarray):
        return rows_hash([folder_or_rows])
    segments = _parts(Path(folder_or_rows))
    if segments[0].base_seq:
        raise JournalError(
            f"{folder_or_rows} begins at row {segments[0].base_seq}: its first rows have been rotated away, "
            "and a run's hash covers all of it"
        )
    return rows_hash([segment.rows[: _whole(segment)] for segment in segments])
