"""The seal: a hash chain beside each segment, so that a changed byte is found; and what is asked of it.

**Model.** The row region of a segment is cut into 64 KB blocks. ``h_i = sha256(h_{i-1} || block_i)``, starting from
the previous segment's final hash (32 zero bytes for segment 0). A block is hashed once all its rows are committed
*and* on the disk, and its hash is appended to ``NNNNNN.seal``. When the segment closes, the rest of the file follows,
its unwritten tail included, then the header with its final count, then a summary (JSON). The finished seal is written
beside and renamed over the growing one, so that a seal is either growing (whole blocks only) or complete, never torn
in between.

**Promise.** In a sealed journal `verify` finds every flipped byte: each byte of a segment is in a hashed block or in
the header; each byte of a seal is a constant, a hash that is computed again, or in the hashed summary.

**What it does not promise.** Whoever can write the files can write a new chain: keep the last hash elsewhere for
that. A journal cut after a whole sealed segment is a shorter sealed journal. The start hash of the oldest segment
left by `rotate` is taken as it stands.

**Worst case accepted.** Hashing releases the GIL and the summary is one pass of a kernel; writing the JSON holds the
GIL for under a millisecond, once a segment.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numba import types

from hftlab.core.errors import JournalError
from hftlab.core.rows import CONT, NAT, BookState, Flag, Kind
from hftlab.journal.format import (
    NO_SEQ,
    ROW_BYTES,
    Segment,
    segment_name,
    segment_numbers,
    started_segments,
    sync_folder,
    whole_rows,
)
from hftlab.kernels.jit import kernel, load

__all__ = [
    "GENESIS",
    "SealCheck",
    "Sealer",
    "VerifyReport",
    "check_seal",
    "final_hash",
    "rotate",
    "seal_path",
    "summaries",
    "verify",
]

BLOCK = 65536
BLOCK_ROWS = BLOCK // ROW_BYTES
GENESIS = bytes(32)
"""The hash before the first segment's first block."""

SEAL_MAGIC = b"HFTLSEAL"
_START = 64  # magic, zeros, the hash the chain starts from
_BINS = 64
_FOLD = 8  # each level of the pyramid has this many times fewer bins than the one below
PLOT_INSTRUMENTS = 16
"""Instruments 0..15 get plots in the summary; more would make it large."""

# Plain integers for the kernel
_BID, _LAST, _RESYNCING = int(Flag.BID), int(Flag.LAST), int(BookState.RESYNCING)
_BOOK_STATE, _TRADE, _CLEAR, _QUOTE = int(Kind.BOOK_STATE), int(Kind.TRADE), int(Kind.CLEAR), int(Kind.QUOTE)
_SERIES = ("bid", "ask", "trade")
_I64 = types.int64


def seal_path(segment: Path) -> Path:
    """Return the path of the seal beside a segment."""
    return segment.with_suffix(".seal")


def _chain(previous: bytes, content: Any) -> bytes:
    digest = hashlib.sha256(previous)
    digest.update(content)
    return digest.digest()


def _blocks(segment: Segment) -> int:
    return -(-segment.header.capacity // BLOCK_ROWS)


def _block(segment: Segment, i: int) -> memoryview:
    at = segment.header.length + i * BLOCK
    return segment.bytes[at : at + BLOCK].data


def _header(segment: Segment) -> memoryview:
    return segment.bytes[: segment.header.length].data


class Sealer:
    """Seals one segment, block by block as it fills, and the whole of it at the end.

    Parameters
    ----------
    segment : Segment
        The segment; the host may still be writing it.
    previous : bytes
        Final hash of the segment before it, 32 bytes; `GENESIS` for the first.
    durable : bool
        Whether the finished seal is flushed to the disk.
    """

    def __init__(self, segment: Segment, previous: bytes, *, durable: bool = True) -> None:
        self._segment = segment
        self._previous = previous
        self._durable = durable
        self._hashes: list[bytes] = []
        self._head = previous
        self._highest = 0
        self._stored = 0
        self._fd = -1

    def _extend(self, blocks: int) -> None:
        while len(self._hashes) < blocks:
            i = len(self._hashes)
            block = _block(self._segment, i)
            self._head = _chain(self._head, block)
            self._hashes.append(self._head)
            rows = self._segment.rows_address + i * BLOCK  # while the block is near: unwritten rows count as 0
            self._highest = max(self._highest, int(_highest_instrument(rows, len(block) // ROW_BYTES)))

    def advance(self, committed: int) -> None:
        """Hash the blocks that are full when `committed` rows are committed and on the disk; raises OSError."""
        self._extend(committed // BLOCK_ROWS)
        if self._stored == len(self._hashes):
            return
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
            self._fd = os.open(seal_path(self._segment.path), flags, 0o600)
        if self._stored == 0:
            self._put(self._start(), 0)
        self._put(b"".join(self._hashes[self._stored :]), _START + 32 * self._stored)
        self._stored = len(self._hashes)

    def check_stored(self) -> None:
        """Compare a growing seal that a dead writer left with its segment.

        Raises
        ------
        JournalError
            If a sealed block has changed since.
        """
        path = seal_path(self._segment.path)
        raw = path.read_bytes() if path.exists() else b""
        if len(raw) < _START:
            return  # torn while it was created: nothing is sealed yet
        stored = [raw[at : at + 32] for at in range(_START, len(raw) - 31, 32)][: _blocks(self._segment)]
        self._extend(len(stored))
        for i, (stored_hash, found) in enumerate(zip(stored, self._hashes, strict=False)):
            if stored_hash != found:
                raise JournalError(
                    f"{self._segment.path.name} has changed since it was sealed, in rows {i * BLOCK_ROWS} to "
                    f"{(i + 1) * BLOCK_ROWS - 1}: keep the folder for inspection and start a new journal"
                )

    def finish(self) -> bytes:
        """Seal the whole of a closed segment, summary included, and return the final hash; raises OSError."""
        segment = self._segment
        self._extend(_blocks(segment))
        header_hash = _chain(self._head, _header(segment))
        summary = msgspec.json.encode(_summary(segment, self._highest))
        trailer = len(summary).to_bytes(8, "little") + summary
        final = _chain(header_hash, trailer)
        path = seal_path(segment.path)
        temporary = path.with_suffix(".seal.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(self._start() + b"".join(self._hashes) + header_hash + trailer + final)
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if self._durable:
            sync_folder(path.parent)
        self.release()
        return final

    def release(self) -> None:
        """Close the growing seal's descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, content: bytes, at: int) -> None:
        if os.pwrite(self._fd, content, at) != len(content):  # a full disk may take a part; the next try overwrites it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _start(self) -> bytes:
        return SEAL_MAGIC + bytes(24) + self._previous


def final_hash(segment: Segment) -> bytes | None:
    """Return the hash that the next segment's chain starts from, or None when `segment` is not sealed to its end."""
    path = seal_path(segment.path)
    raw = path.read_bytes() if path.exists() else b""
    return raw[-32:] if _is_complete(raw, segment) else None


def _is_complete(raw: bytes, segment: Segment) -> bool:
    return len(raw) > _START + 32 * (_blocks(segment) + 1)


# --- summary ---------------------------------------------------------------------------------------------------------


@kernel(inline=True)
def _summarise_row(at: int, bin_: int, counts: Any, facts: Any, touch: Any, extremes: Any, bin_ts: Any) -> None:
    kind = (load(at) >> 48) & 0xFF
    counts[kind] += 1
    if kind == CONT:
        return
    ts = load(at + 8)
    if ts != NAT:
        facts[3] = min(facts[3], ts)
        facts[4] = max(facts[4], ts)
        if bin_ts[bin_] == NAT:
            bin_ts[bin_] = ts
    word = load(at + 24)
    instrument = word & 0xFFFFFFFF
    flags = (word >> 32) & 0xFFFF
    px = load(at + 32)
    series = -1
    if kind == _BOOK_STATE:
        facts[0] += ((word >> 48) & 0xFFFF) == _RESYNCING
    elif kind == _TRADE:
        series = 2
    elif kind == _CLEAR and instrument < touch.shape[0]:
        touch[instrument, 0] = touch[instrument, 1] = NAT
    elif kind == _QUOTE:
        side = 0 if flags & _BID else 1
        empty = load(at + 40) <= 0
        if not empty:
            series = side
        if instrument < touch.shape[0]:
            touch[instrument, side] = NAT if empty else px
            if flags & _LAST:
                bid, ask = touch[instrument, 0], touch[instrument, 1]
                facts[1] += 1
                facts[2] += bid != NAT and ask != NAT and bid > ask
    if series >= 0 and instrument < extremes.shape[0]:
        cell = extremes[instrument, series, bin_]
        cell[0] = min(cell[0], px)
        cell[1] = max(cell[1], px)


@kernel(_I64(_I64, _I64))
def _highest_instrument(rows: int, n: int) -> int:
    """Return the highest instrument of `n` rows, 0 at least; a payload has none."""
    highest = 0
    for at in range(rows, rows + 64 * n, 64):
        if (load(at) >> 48) & 0xFF != CONT:
            highest = max(highest, load(at + 24) & 0xFFFFFFFF)
    return highest


@kernel(types.void(_I64, _I64, _I64, _I64[::1], _I64[::1], _I64[:, ::1], _I64[:, :, :, ::1], _I64[::1]))
def _summarise(
    rows: int, n: int, bin_rows: int, counts: Any, facts: Any, touch: Any, extremes: Any, bin_ts: Any
) -> None:
    """One pass: counts by kind; facts = gaps, touches, crossed, first and last ts_recv; extremes per bin."""
    for first in range(0, n, bin_rows):
        bin_ = first // bin_rows
        for i in range(first, min(first + bin_rows, n)):
            _summarise_row(rows + 64 * i, bin_, counts, facts, touch, extremes, bin_ts)


def _summary(segment: Segment, highest: int) -> dict[str, Any]:
    """Return what the closed segment holds, in plain types; `highest` is the highest instrument of its rows.

    `crossed_share` is the share of QUOTE messages that left bid above ask; None without quotes. An L2 stream without
    QUOTE rows has none: finding its touch needs the book, which is not the sealer's work. Plots are of QUOTE and TRADE
    rows of instruments 0..15: per series, levels from fine to coarse of [min, max] in ticks, None for an empty bin.
    """
    n, base = segment.committed, segment.base_seq
    bins = max(1, min(_BINS, n // _BINS))
    bin_rows = max(1, -(-n // bins))
    instruments = min(highest + 1, PLOT_INSTRUMENTS)
    counts, bin_ts = np.zeros(256, np.int64), np.full(bins, NAT, np.int64)
    facts = np.array([0, 0, 0, 2**63 - 1, NAT], np.int64)
    touch = np.full((min(highest + 1, 1 << 16), 2), NAT, np.int64)
    extremes = np.empty((instruments, 3, bins, 2), np.int64)
    extremes[..., 0], extremes[..., 1] = 2**63 - 1, NAT
    _summarise(segment.rows_address, n, bin_rows, counts, facts, touch, extremes, bin_ts)
    gaps, quotes, crossed, first_ts, last_ts = facts.tolist()
    return {
        "first_seq": base if n else None,
        "last_seq": base + n - 1 if n else None,
        "rows": n,
        "counts": {_kind_name(k): int(counts[k]) for k in np.flatnonzero(counts).tolist()},
        "gaps": gaps,
        "crossed_share": crossed / quotes if quotes else None,
        "ts_first": first_ts if last_ts != NAT else None,
        "ts_last": last_ts if last_ts != NAT else None,
        "bin_rows": bin_rows,
        "bin_ts": [None if ts == NAT else ts for ts in bin_ts.tolist()],
        "plots": list(_plots(extremes)),
    }


def _kind_name(kind: int) -> str:
    try:
        return Kind(kind).name
    except ValueError:
        return str(kind)


def _plots(extremes: Any) -> Iterator[dict[str, Any]]:
    for instrument, by_series in enumerate(extremes):
        series = {
            name: _pyramid(cells) for name, cells in zip(_SERIES, by_series, strict=True) if cells[:, 1].max() != NAT
        }
        if series:
            yield {"instrument": instrument, **series}


def _pyramid(cells: Any) -> list[list[list[int] | None]]:
    """Return levels of [min, max], fine to coarse, down to one bin."""
    levels = []
    while True:
        levels.append([None if low > high else [low, high] for low, high in cells.tolist()])
        if len(cells) == 1:
            return levels
        starts = np.arange(0, len(cells), _FOLD)
        low, high = np.minimum.reduceat(cells[:, 0], starts), np.maximum.reduceat(cells[:, 1], starts)
        cells = np.stack([low, high], axis=1)


def summaries(folder: Path) -> list[dict[str, Any]]:
    """Return the summaries of the sealed segments, oldest first: range, counts by kind, gaps, crossed share, plots.

    Examples
    --------
    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> from hftlab.journal import JournalWriter
    >>> JournalWriter(folder, {}, segment_rows=64, fsync_ms=None).close()
    >>> [(s["rows"], s["gaps"]) for s in summaries(folder)]
    [(0, 0)]
    """
    found = []
    for segment in started_segments(folder):
        path = seal_path(segment.path)
        raw = path.read_bytes() if path.exists() else b""
        if _is_complete(raw, segment):
            at = _START + 32 * (_blocks(segment) + 1)
            found.append(msgspec.json.decode(raw[at + 8 : -32], type=dict[str, Any]))
    return found


# --- verify and rotate -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class VerifyReport:
    """What `verify` found; ``str()`` says it in one line.

    Parameters
    ----------
    ok : bool
        No problem was found. An unsealed tail is not a problem.
    sealed_rows, unsealed_rows : int
        Committed rows that the chain covers, and those after them.
    segments : int
        Segments looked at.
    problems : list of str
        One sentence each.
    sealed_through : int
        Number of the last row that the chain covers; -1 if there is none.
    """

    ok: bool = True
    sealed_rows: int = 0
    unsealed_rows: int = 0
    segments: int = 0
    problems: list[str] = field(default_factory=list)
    sealed_through: int = -1

    def __str__(self) -> str:
        sealed = f"sealed through row {self.sealed_through}" if self.sealed_rows else "no row sealed"
        line = f"{sealed}, {self.unsealed_rows} rows of tail unsealed"
        return line if self.ok else f"{line}; {len(self.problems)} problems: " + "; ".join(self.problems)


def verify(folder: Path) -> VerifyReport:
    """Compare every segment with its seal, and the segments with one another; safe beside a running writer.

    Parameters
    ----------
    folder : Path
        The journal's folder.

    Returns
    -------
    VerifyReport
        `ok` is False if any byte of a sealed part has changed.

    Raises
    ------
    JournalError
        If there is no such folder, or it holds no segment.

    Examples
    --------
    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> from hftlab.journal import JournalWriter
    >>> from hftlab.core.rows import ROW
    >>> rows = np.zeros(10, ROW); rows["kind"] = 41
    >>> writer = JournalWriter(folder, {}, segment_rows=64, fsync_ms=None)
    >>> _ = writer.append(rows); writer.close()
    >>> str(verify(folder))
    'sealed through row 9, 0 rows of tail unsealed'
    """
    report = VerifyReport()
    numbers = segment_numbers(folder)
    if not numbers:
        raise JournalError(f"{folder} is not a journal: it holds no segment")
    # Newest first: a seal that was complete when it was read is then preceded by complete seals only
    seals = {n: _read_if_there(seal_path(folder / segment_name(n))) for n in reversed(numbers)}
    for orphan in sorted(folder.glob("*.seal")):
        if not orphan.with_suffix(".seg").exists() and orphan.stem > f"{numbers[0]:06d}":
            report.problems.append(f"{orphan.name} is there and its segment is missing")
    state = _Walk()
    for number in numbers:
        try:
            segment = Segment(folder / segment_name(number))
        except JournalError as error:
            report.problems.append(str(error))
            state = _Walk(broken=True)
            continue
        _verify_segment(segment, seals[number], number == numbers[-1], state, report)
    report.ok = not report.problems
    return report


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@dataclass(slots=True)
class _Walk:
    """What one segment hands to the next."""

    number: int = -1
    seq: int = 0
    head: bytes | None = GENESIS  # None: the segment before is not sealed to its end
    broken: bool = False  # the segment before could not be read: there is nothing to compare with


def _verify_segment(segment: Segment, seal: bytes, newest: bool, walk: _Walk, report: VerifyReport) -> None:
    name, base, committed = segment.path.name, segment.base_seq, segment.committed
    if base == NO_SEQ and not seal and newest:
        return  # allocated ahead, not part of the journal
    problems: list[str] = []
    report.segments += 1
    first = walk.number < 0 and not walk.broken
    if not first and not walk.broken and segment.number != walk.number + 1:
        problems.append(f"{name} follows {segment_name(walk.number)}: a segment is missing between them")
    elif not first and not walk.broken and base != walk.seq:
        problems.append(f"{name} begins at row {base}; the segment before it ends at row {walk.seq}")
    if segment.header.previous != (segment_name(segment.number - 1) if segment.number else ""):
        problems.append(f"{name} names {segment.header.previous!r} as the segment before it")
    if not 0 <= committed <= segment.header.capacity:
        problems.append(f"{name} says {committed} committed rows; it has room for {segment.header.capacity}")
        committed = 0
    problems += _row_problems(segment, base, committed)
    start = walk.head
    if walk.broken or (first and segment.number > 0):
        start = seal[32:_START] if seal else None  # rotated, or unreadable before: taken as it stands
    sealed, head = 0, None
    if len(seal) >= _START:
        if start is None:
            problems.append(f"{name} is sealed and the segment before it is not")
            start = seal[32:_START]
        sealed, head, found = _verify_seal(segment, seal, start, committed)
        problems += found
    report.problems += problems
    report.sealed_rows += sealed
    report.unsealed_rows += committed - sealed
    if sealed:
        report.sealed_through = base + sealed - 1
    walk.number, walk.seq, walk.head, walk.broken = segment.number, base + committed, head, False


def _verify_seal(segment: Segment, seal: bytes, start: bytes, committed: int) -> tuple[int, bytes | None, list[str]]:
    """Return the rows covered, the final hash if the seal is complete, and problems."""
    name = seal_path(segment.path).name
    blocks = _blocks(segment)
    complete = _is_complete(seal, segment)
    if seal[:_START] != SEAL_MAGIC + bytes(24) + start:
        return 0, None, [f"{name} does not continue the chain of the segment before it"]
    stored = min(blocks, (len(seal) - _START) // 32)
    head = start
    for i in range(stored):
        head = _chain(head, _block(segment, i))
        if seal[_START + 32 * i : _START + 32 * (i + 1)] != head:
            first = i * BLOCK_ROWS
            last = min(first + BLOCK_ROWS, segment.header.capacity) - 1
            problem = f"{segment.path.name} or its seal has changed in rows {first} to {last}"
            return min(first, committed), None, [problem]
    if not complete:
        return min(stored * BLOCK_ROWS, committed), None, []
    at = _START + 32 * blocks
    head = _chain(head, _header(segment))
    if seal[at : at + 32] != head:
        return 0, None, [f"{segment.path.name} or its seal has changed in the header"]
    trailer, final = seal[at + 32 : -32], seal[-32:]
    if len(trailer) < 8 or int.from_bytes(trailer[:8], "little") != len(trailer) - 8 or _chain(head, trailer) != final:
        return committed, None, [f"{name} has changed in its summary"]
    return committed, final, []


@dataclass(frozen=True, slots=True)
class SealCheck:
    """What the seal of one segment says of it.

    Parameters
    ----------
    rows : int
        Rows from the first on that no hash speaks against.
    problem : str
        What has changed; empty if nothing has, or there is no seal.
    in_header : bool
        The header has changed: what the rows mean is not known.
    """

    rows: int
    problem: str = ""
    in_header: bool = False


def check_seal(segment: Segment, committed: int) -> SealCheck:
    """Compare `committed` rows of a segment with its own seal, whatever became of the segments before it."""
    seal = _read_if_there(seal_path(segment.path))
    if len(seal) < _START:
        return SealCheck(committed)
    at = _START + 32 * _blocks(segment)
    if _is_complete(seal, segment) and seal[at : at + 32] != _chain(seal[at - 32 : at], _header(segment)):
        return SealCheck(0, f"{segment.path.name} or its seal has changed in the header", in_header=True)
    sealed, _, problems = _verify_seal(segment, seal, seal[32:_START], committed)
    return SealCheck(sealed if problems else committed, "; ".join(problems))


def _row_problems(segment: Segment, base: int, committed: int) -> list[str]:
    """Return what is wrong with the committed rows whatever the hashes say: holes, numbering, a torn last atom."""
    name, rows = segment.path.name, segment.rows[:committed]
    kinds = rows["kind"]
    holes = np.flatnonzero(kinds == Kind.UNWRITTEN)
    if holes.size:
        at = base + int(holes[0])
        return [f"{name} has {holes.size} unwritten rows below its committed count, the first at row {at}"]
    heads = np.flatnonzero(kinds != CONT)
    wrong = heads[rows["seq"][heads] != ((base + heads) & 0xFFFFFFFF).astype(np.uint32)]
    if wrong.size:
        got = int(rows["seq"][wrong[0]])
        return [f"{name} has {wrong.size} rows with a wrong number, the first at row {base + int(wrong[0])}: got {got}"]
    whole = int(whole_rows(segment.rows_address, 0, committed))
    return [f"{name} ends within an atom: rows from {base + whole} on are torn"] if whole != committed else []


def rotate(folder: Path, keep: int) -> list[Path]:
    """Remove the oldest sealed segments with their seals, keep the newest `keep`, and return the segments removed.

    A segment that is not sealed to its end is never removed. A reader that still has to read a removed one is told so
    by `ReaderBehind`.

    Raises
    ------
    JournalError
        If `keep` is below 1: the newest segment carries the numbering on.
    """
    if keep < 1:
        raise JournalError(f"keep is {keep}; expected 1 or more, because the newest segment carries the numbering on")
    removed = []
    sealed = [
        segment
        for segment in started_segments(folder)
        if final_hash(segment) is not None and not segment.path.is_symlink()  # a link: about to be settled
    ]
    for segment in sealed[:-keep]:
        segment.path.unlink()
        seal_path(segment.path).unlink()
        removed.append(segment.path)
    oldest = f"{min(segment_numbers(folder), default=0):06d}"
    for orphan in folder.glob("*.seal"):  # a rotation that died between its two removals
        if orphan.stem < oldest:
            orphan.unlink()
    return removed
