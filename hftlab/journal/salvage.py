"""Salvage: what can still be read of a journal some of whose files are damaged.

**Model.** Every other reader refuses a journal with a hole, because who follows or replays it must not step over one.
Who only wants the recording back (a conversion, an inspection) takes it segment by segment: `salvage` gives each
segment's rows up to where the damage begins, says where that is, and goes on with the next.

**Promise.** A row is given only if nothing speaks against it: its block has the hash that was sealed, or, where no seal
reaches, it is written and carries its number. Rows come in order, whole atoms only. What is left out is always named.

**Worst case accepted.** One flipped byte costs the rest of its segment, and all of it when it lies in the header: the
definitions say what the rows mean. A seal that is damaged itself cannot be told from a damaged segment. Hashing costs
half a nanosecond a byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.core.errors import JournalError
from hftlab.core.rows import CONT, ROW, Kind, RowArray
from hftlab.journal.format import NO_SEQ, ROW_BYTES, Segment, segment_name, segment_numbers, whole_rows
from hftlab.journal.seal import check_seal

__all__ = ["SalvagedSegment", "salvage"]


@dataclass(frozen=True, slots=True, eq=False)
class SalvagedSegment:
    """What one segment of a journal gave.

    Parameters
    ----------
    path : Path
        The segment's file, whether or not it is there.
    first : int
        Full number of `rows`' first row; -1 when the header that says it cannot be read.
    rows : RowArray, shape (n,)
        Whole atoms from the segment's beginning up to the damage; a read-only view of the file.
    definitions : dict
        What the rows' numbers mean; empty when the header cannot be read.
    offset : int or None
        Byte of the file from which on it is not to be relied on; None where every row is given.
    damage : str
        What is wrong, a sentence that names the file; empty for a sound segment.
    """

    path: Path
    first: int = NO_SEQ
    rows: RowArray = field(default_factory=lambda: np.zeros(0, ROW))
    definitions: dict[str, Any] = field(default_factory=dict)
    offset: int | None = None
    damage: str = ""


def salvage(folder: Path) -> Iterator[SalvagedSegment]:
    """Give what can be read of each segment, oldest first; damaged ones are named and passed over.

    A segment that was only allocated ahead is left out. Safe beside a running writer.

    Raises
    ------
    JournalError
        If there is no such folder, or it holds no segment.

    Examples
    --------
    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> from hftlab.journal import JournalWriter
    >>> rows = np.zeros(3, ROW); rows["kind"] = 41
    >>> with JournalWriter(folder, {"run": 1}, segment_rows=64, fsync_ms=None) as writer:
    ...     _ = writer.append(rows)
    >>> [(part.path.name, part.first, len(part.rows), part.damage) for part in salvage(folder)]
    [('000000.seg', 0, 3, '')]
    """
    folder = Path(folder)
    numbers = segment_numbers(folder)
    if not numbers:
        raise JournalError(f"{folder} is not a journal: it holds no segment")
    for number in range(numbers[0], numbers[-1] + 1):
        path = folder / segment_name(number)
        try:
            segment = Segment(path)
        except JournalError as error:
            yield SalvagedSegment(path, offset=0, damage=str(error))
            continue
        if segment.base_seq != NO_SEQ or number != numbers[-1]:
            yield _salvaged(segment)


def _salvaged(segment: Segment) -> SalvagedSegment:
    path, header, base = segment.path, segment.header, segment.base_seq
    if base < 0:
        return SalvagedSegment(path, offset=0, damage=f"{path.name} does not say at which row it begins")
    committed = segment.committed
    end = committed if 0 <= committed <= header.capacity else header.capacity
    sealed = check_seal(segment, end)
    if sealed.in_header:
        return SalvagedSegment(path, offset=0, damage=sealed.problem)
    sound = _sound_rows(segment, base, sealed.rows)
    damage, offset = sealed.problem, None
    if sound < sealed.rows or end != committed:
        damage = f"{path.name} has rows that are not written, or do not carry their number, from row {base + sound} on"
    if sound < end or end != committed:
        offset = header.length + ROW_BYTES * sound
    whole = int(whole_rows(segment.rows_address, 0, sound))
    return SalvagedSegment(path, base, segment.rows[:whole], header.definitions, offset, damage)


def _sound_rows(segment: Segment, base: int, end: int) -> int:
    """Return how many rows from the first on are written and carry their number."""
    rows = segment.rows[:end]
    kinds = rows["kind"]
    expected = ((base + np.arange(len(rows))) & 0xFFFFFFFF).astype(np.uint32)
    wrong = (kinds == Kind.UNWRITTEN) | ((kinds != CONT) & (rows["seq"] != expected))
    return int(wrong.argmax()) if wrong.any() else len(rows)
