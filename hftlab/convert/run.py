"""From a source to a destination, and from a source to the book after every change.

Both read block by block, so that memory does not depend on the size of a recording, and both tell what was broken and
go on. `convert` keeps rows; `book` keeps the state that rows lead to.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from datetime import date as Date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hftlab.books import L2Book, L3Book, Trace
from hftlab.codecs import Problem
from hftlab.convert.destination import (
    CsvDestination,
    Destination,
    JournalDestination,
    ParquetDestination,
    TableFile,
    beside,
    writing,
)
from hftlab.convert.formats import open_source
from hftlab.convert.hftbacktest import HftbacktestDestination, fraction
from hftlab.convert.source import Source
from hftlab.convert.table import metadata_of
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, NAT, NO_PX, Flag, Kind, RowArray

__all__ = ["Conversion", "DESTINATION_FORMATS", "OnProgress", "book", "convert", "time_ns"]

DESTINATION_FORMATS = {
    "journal": (JournalDestination, "a folder"),
    "parquet": (ParquetDestination, ".parquet"),
    "hftbacktest": (HftbacktestDestination, ".npz"),
    "csv": (CsvDestination, ".csv"),
}
"""The formats that can be written, and by which suffix each is chosen."""

OnProgress = Callable[[int, int, int], None]
"""Called with bytes read, bytes in all, rows written so far."""

_LEVELS = 5000
_TRACE_BYTES = 1 << 24
_OF_ORDERS = (Kind.ADD, Kind.REDUCE, Kind.DELETE, Kind.EXECUTE, Kind.REPLACE)
_COMMIT = np.uint16(Flag.COMMIT)
_TIME = pa.timestamp("ns", "UTC")

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done.

    Parameters
    ----------
    source, destination : str
        Names of the files.
    source_format, destination_format : str
        What they are.
    rows : int
        Rows written (lines of a book); payload rows count.
    first_ns, last_ns : int or None
        ``ts_recv`` of the first and last row written.
    seconds : float
        How long it took.
    instruments : list of str
        Symbols of the source.
    broken : int
        Records that could not be used.
    problems : list of Problem
        The first 10,000 of them, with their byte offsets in the recording; where it is packed, in what was packed.
    notes : dict[str, int]
        Counts of what else is worth knowing.
    """

    source: str
    destination: str
    source_format: str
    destination_format: str
    rows: int
    first_ns: int | None
    last_ns: int | None
    seconds: float
    instruments: list[str]
    broken: int
    problems: list[Problem]
    notes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the summary that the command line prints."""
        more = len(self.instruments) - 6
        named = ", ".join(self.instruments[:6]) + (f" and {more} more" if more > 0 else "")
        lines = [
            f"{self.source} ({self.source_format}) -> {self.destination} ({self.destination_format})",
            f"{self.rows:,} rows of {named or 'no instrument'} in {self.seconds:.1f} s",
        ]
        if self.first_ns is not None and self.last_ns is not None:
            lines.append(f"received {_shown(self.first_ns)} to {_shown(self.last_ns)}")
        lines += [f"{count:,} {what}" for what, count in self.notes.items()]
        lines.append(f"{self.broken:,} broken record{'s' * (self.broken > 1)}" if self.broken else "no broken records")
        lines += [f"  at byte {p.offset}: {p.reason}" for p in self.problems[:20]]
        if self.broken > 20:
            lines.append(f"  and {self.broken - 20:,} more; --json lists the first {len(self.problems):,}")
        return "\n".join(lines)


def _shown(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds")


def time_ns(value: str | int | datetime | None, name: str = "time") -> int | None:
    """Return a time as ns since 1970 UTC.

    Parameters
    ----------
    value : str, int, datetime or None
        ISO 8601 text (UTC unless it says otherwise), a datetime, or ns.

    Raises
    ------
    ConfigError
        If text is no such time.

    Examples
    --------
    >>> time_ns("2024-08-08T23:54:14Z"), time_ns("1970-01-02") == 86_400 * 10**9
    (1723161254000000000, True)
    """
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        if value.isdecimal():
            return int(value)
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise ConfigError(f"{name}={value!r}; expected a time such as 2024-08-08T23:54:14Z, or ns") from error
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    whole = value.replace(microsecond=0)
    return int(whole.timestamp()) * 1_000_000_000 + value.microsecond * 1000


def _chosen_ids(source: Source, symbols: Sequence[str]) -> set[int] | None:
    """Return the ids of the instruments named; None for all."""
    if not symbols:
        return None
    found = {i.symbol: i.id for i in source.instruments}
    missing = [symbol for symbol in symbols if symbol not in found]
    if missing:
        known = ", ".join(sorted(found)[:10]) + (" ..." if len(found) > 10 else "")
        raise ConfigError(f"{source.path.name} has no instrument {missing[0]!r}; it has {known or 'none'}")
    return {found[symbol] for symbol in symbols}


@dataclass(slots=True)
class _Window:
    """Which rows are wanted: by instrument and by time of receipt."""

    ids: set[int] | None
    start: int | None
    end: int | None

    def times(self, ts: Int64s) -> npt.NDArray[np.bool_]:
        keep = np.ones(len(ts), np.bool_)
        if self.start is not None:
            keep &= ts >= self.start
        if self.end is not None:
            keep &= ts < self.end
        return keep

    def of(self, rows: RowArray, seqs: Int64s) -> tuple[RowArray, Int64s]:
        """Return the rows wanted with their payloads, each atom ended anew where its end is not wanted."""
        if self.ids is None and self.start is None and self.end is None:
            return rows, seqs
        is_head = rows["kind"] != CONT
        heads = np.flatnonzero(is_head)
        owner = np.cumsum(is_head) - 1
        keep = self.times(rows["ts_recv"][heads])
        if self.ids is not None:
            keep &= np.isin(rows["instrument"][heads], list(self.ids)) & (rows["kind"][heads] < Kind.SENT)
        atom = np.cumsum(rows["flags"][heads] & _COMMIT != 0) - (rows["flags"][heads] & _COMMIT != 0)
        kept, kept_seqs = rows[keep[owner]], seqs[keep[owner]]
        atoms = atom[keep]
        ends = np.flatnonzero(np.append(atoms[1:] != atoms[:-1], True)) if len(atoms) else np.zeros(0, np.intp)
        kept_heads = np.flatnonzero(kept["kind"] != CONT)
        kept["flags"][kept_heads[ends]] |= _COMMIT
        return kept, kept_seqs


def _numbered(source: Source) -> Iterator[tuple[RowArray, Int64s]]:
    seq = source.first_seq
    for rows in source:
        seq = seq if source.seq is None else source.seq
        yield rows, np.arange(seq, seq + len(rows))
        seq += len(rows)


def _apart(source: Path, destination: Path) -> None:
    if destination.exists() and destination.samefile(source):
        raise ConfigError(f"{destination} is the source itself; give another destination")


def _destination(path: Path, to: str | None) -> tuple[str, type[Destination]]:
    name = to or next((n for n, (_, suffix) in DESTINATION_FORMATS.items() if path.suffix == suffix), None)
    if name is None and not path.suffix:
        name = "journal"
    if name not in DESTINATION_FORMATS:
        known = ", ".join(f"{n} ({suffix})" for n, (_, suffix) in DESTINATION_FORMATS.items())
        said = f"to={to!r}" if to else f"the suffix of {path.name}"
        raise ConfigError(f"{said} names no format that can be written; expected one of {known}")
    return name, DESTINATION_FORMATS[name][0]


def convert(
    source: Path | str | Source,
    destination: Path | str,
    *,
    format: str | None = None,
    to: str | None = None,
    symbols: Sequence[str] = (),
    start: str | int | datetime | None = None,
    end: str | int | datetime | None = None,
    definitions: Path | str | None = None,
    date: Date | None = None,
    venue: str | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Conversion:
    """Convert a recording: any known source to a journal, Parquet, hftbacktest's npz or CSV.

    Parameters
    ----------
    source : Path, str or Source
        See `open_source`, which takes `format`, `definitions`, `date` and `venue`.
    destination : Path or str
        Its suffix chooses the format (``.parquet``, ``.npz``, ``.csv``; none is a journal's folder), or `to` does.
    symbols : sequence of str
        Only these instruments; all by default.
    start, end : str, int or datetime, optional
        Only rows received from `start` on and before `end`. A book needs the rows before `start` too: see `book`.
    overwrite : bool
        Replace what stands at `destination`.
    on_progress : callable, optional
        Called after each block.

    Returns
    -------
    Conversion
        What was written, and what was broken.

    Raises
    ------
    ConfigError
        If something about the source or the destination is not as it must be. Nothing is left at `destination` then.
    """
    begun = time.monotonic()
    opened = source if isinstance(source, Source) else open_source(
        source, format, definitions=definitions, date=date, venue=venue
    )  # fmt: skip
    place = Path(destination)
    name, make = _destination(place, to)
    window = _Window(_chosen_ids(opened, symbols), time_ns(start, "start"), time_ns(end, "end"))
    _apart(opened.path, place)
    with writing(place):
        target = make(place, opened, overwrite=overwrite)
    n, first, last = 0, None, None
    try:
        for rows, seqs in _numbered(opened):
            rows, seqs = window.of(rows, seqs)
            if len(rows):
                with writing(place):
                    target.write(rows, seqs)
                n += len(rows)
                heads = rows["ts_recv"][rows["kind"] != CONT]
                first = int(heads[0]) if first is None else first
                last = int(heads[-1])
            if on_progress is not None:
                on_progress(opened.position, opened.size, n)
        with writing(place):
            target.finish()
    except BaseException:
        target.abandon()
        raise
    return _told(opened, place, name, n, first, last, begun, target.notes)


def _told(
    source: Source, place: Path, name: str, n: int, first: int | None, last: int | None, begun: float,
    notes: dict[str, int],
) -> Conversion:  # fmt: skip
    return Conversion(
        source.path.name, place.name, source.format, name, n, first, last, time.monotonic() - begun,
        [i.symbol for i in source.instruments], source.broken, source.problems, {**source.notes, **notes},
    )  # fmt: skip


# --- books ------------------------------------------------------------------------------------------------------------


def book(
    source: Path | str | Source,
    out: Path | str,
    *,
    depth: int = 10,
    format: str | None = None,
    symbols: Sequence[str] = (),
    start: str | int | datetime | None = None,
    end: str | int | datetime | None = None,
    definitions: Path | str | None = None,
    date: Date | None = None,
    venue: str | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Conversion:
    """Write the book after every message that changed it, as Parquet or CSV.

    One line a message: ``ts_event, ts_recv, instrument, seq``, then ``bid_px_1, bid_qty_1, ask_px_1, ask_qty_1``,
    ``bid_px_2`` and so on. ``instrument`` is the symbol, ``seq`` the number of the row that ended the message. Prices
    and quantities are float64, each the nearest to its exact decimal; where there is no level they are null. Where a
    recording has no levels but quotes of the best prices, these are the book, one level deep.

    Parameters
    ----------
    source, format, symbols, definitions, date, venue, overwrite, on_progress
        As `convert`.
    out : Path or str
        ``.parquet`` or ``.csv``.
    depth : int
        Levels a side.
    start, end : str, int or datetime, optional
        Only books received from `start` on and before `end`; the rows before `start` are applied all the same.

    Raises
    ------
    ConfigError
        As `convert`; or if `depth` is not 1 to 1000, or no row of the source changes a book.
    """
    begun = time.monotonic()
    place = Path(out)
    if not 1 <= depth <= 1000:
        raise ConfigError(f"depth={depth}; expected 1 to 1000")
    if place.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"the suffix of {place.name} names no format for books; expected .parquet or .csv")
    opened = source if isinstance(source, Source) else open_source(
        source, format, definitions=definitions, date=date, venue=venue
    )  # fmt: skip
    window = _Window(_chosen_ids(opened, symbols), time_ns(start, "start"), time_ns(end, "end"))
    _apart(opened.path, place)
    with writing(place):
        part = beside(place, overwrite=overwrite)
        file = TableFile(part, _book_schema(depth, place.suffix == ".csv"), as_csv=place.suffix == ".csv")
    try:
        writer = _BookWriter(opened, depth, window, file)
        _apply_all(opened, writer, place, on_progress)
        if not writer.changes and writer.has_quotes:  # nothing but quotes: they are the book
            opened.only_quotes = True
            _apply_all(opened, writer, place, on_progress)
        if not writer.changes:
            raise ConfigError(f"no row of {opened.path.name} ({opened.format}) changes a book that was asked for")
        with writing(place):
            file.close(metadata_of(opened.instruments, opened.first_seq))
            part.replace(place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return _told(opened, place, "book", writer.lines, writer.first, writer.last, begun, writer.notes())


def _apply_all(source: Source, writer: _BookWriter, place: Path, on_progress: OnProgress | None) -> None:
    for rows, seqs in _numbered(source):
        with writing(place):
            writer.apply(rows, seqs)
        if on_progress is not None:
            on_progress(source.position, source.size, writer.lines)


def _book_schema(depth: int, as_csv: bool) -> pa.Schema:
    stamp = pa.int64() if as_csv else _TIME
    name = pa.string() if as_csv else pa.dictionary(pa.int32(), pa.string())
    columns: list[tuple[str, Any]] = [("ts_event", stamp), ("ts_recv", stamp), ("instrument", name)]
    columns.append(("seq", pa.int64()))
    for k in range(1, depth + 1):
        columns += [(f"{side}_{what}_{k}", pa.float64()) for side in ("bid", "ask") for what in ("px", "qty")]
    return pa.schema(columns)


class _BookWriter:
    """Applies rows to books by order and by price, and writes what they are after each message."""

    def __init__(self, source: Source, depth: int, window: _Window, file: TableFile) -> None:
        self.source = source
        self.depth = depth
        self.window = window
        self.file = file
        self.lines = self.changes = 0
        self.has_quotes = False
        self._directory = _Directory(source.instruments)
        self.first: int | None = None
        self.last: int | None = None
        self._by_order = L3Book()
        self._by_price = L2Book(_LEVELS)
        self._ordered: set[int] = set()  # instruments whose books are by order
        self._quotes: dict[int, list[int]] = {}
        self._piece = max(1, _TRACE_BYTES // (48 * depth))

    def apply(self, rows: RowArray, seqs: Int64s) -> None:
        """Take a block of whole messages."""
        if self.window.ids is not None:
            keep = np.isin(rows["instrument"], list(self.window.ids))
            rows, seqs = rows[keep], seqs[keep]
        heads = rows["kind"] != CONT  # books know no payload
        rows, seqs = rows[heads], seqs[heads]
        at = 0
        while at < len(rows):
            end = min(len(rows), at + self._piece)
            if end < len(rows):
                plain = rows[at:end]
                ends = np.flatnonzero(plain["flags"] & int(Flag.LAST) != 0)
                end = at + int(ends[-1]) + 1 if len(ends) else len(rows)
            self._trace(rows[at:end], seqs[at:end])
            at = end

    def _trace(self, rows: RowArray, seqs: Int64s) -> None:
        by_order = np.isin(rows["kind"], _OF_ORDERS)
        if by_order.any():
            self._ordered.update(np.unique(rows["instrument"][by_order]).tolist())
        self.has_quotes = self.has_quotes or bool((rows["kind"] == Kind.QUOTE).any())
        if self.source.only_quotes:
            self._write(rows, seqs, self._quoted(rows))
        ordered = np.array(sorted(self._ordered), np.int64)
        if len(ordered):
            trace = self._by_order.trace(rows, self.depth)
            self._write(rows, seqs, _only(trace, np.isin(trace.instrument, ordered)))
        if np.isin(rows["kind"], (Kind.LEVEL, Kind.CLEAR, Kind.BOOK_STATE)).any():
            trace = self._by_price.trace(rows[rows["kind"] != Kind.QUOTE], self.depth)
            places = np.flatnonzero(rows["kind"] != Kind.QUOTE)
            trace = trace._replace(row=places[trace.row])
            self._write(rows, seqs, _only(trace, ~np.isin(trace.instrument, ordered)))

    def _quoted(self, rows: RowArray) -> Trace:
        """Return the books that quotes alone make: one level a side."""
        found: list[tuple[int, ...]] = []
        places: list[int] = []
        for n in np.flatnonzero(rows["kind"] == Kind.QUOTE).tolist():
            row = rows[n]
            instrument, side = int(row["instrument"]), 0 if int(row["flags"]) & int(Flag.BID) else 3
            book = self._quotes.setdefault(instrument, [NO_PX, 0, 0, NO_PX, 0, 0])
            before = tuple(book)
            px = int(row["px"])
            book[side : side + 3] = [px, int(row["qty"]) if px != NO_PX else 0, int(row["b"])]
            if side == 0 and n + 1 < len(rows) and rows["kind"][n + 1] == Kind.QUOTE:
                self._before = before  # the ask of the same message follows
                continue
            before = self._before if side == 3 and self._before is not None else before
            self._before = None
            if tuple(book) != before:
                found.append(tuple(book))
                places.append(n)
        held = np.array(found, np.int64).reshape(-1, 6)
        none = np.zeros((len(found), self.depth), np.int64)
        columns = []
        for k in range(6):
            column = none.copy() if k % 3 else np.full_like(none, NO_PX)
            column[:, 0] = held[:, k]
            columns.append(column)
        at = np.array(places, np.int64)
        return Trace(at, rows["instrument"][at].astype(np.int64), *columns)

    _before: tuple[int, ...] | None = None

    def _write(self, rows: RowArray, seqs: Int64s, trace: Trace) -> None:
        self.changes += len(trace.row)
        trace = _only(trace, self.window.times(rows["ts_recv"][trace.row]))
        if not len(trace.row):
            return
        ended = rows[trace.row]
        ts_recv, ts_event = (np.ascontiguousarray(ended[name]) for name in ("ts_recv", "ts_event"))
        if self._directory.of != (instruments := self.source.instruments):
            self._directory = _Directory(instruments)
        self._directory.of = instruments  # the same objects are compared in no time
        directory, schema = self._directory, self.file.schema
        stamps = [pa.array(ts_event, mask=ts_event == NAT), pa.array(ts_recv)]
        stamps = [stamp if schema.field(0).type == pa.int64() else stamp.view(_TIME) for stamp in stamps]
        names = directory.named(trace.instrument).cast(schema.field(2).type)
        columns = [*stamps, names, pa.array(seqs[trace.row])]
        (tick, tick_of), (lot, lot_of) = directory.scales(trace.instrument)
        for k in range(self.depth):
            for px, qty in ((trace.bid_px, trace.bid_qty), (trace.ask_px, trace.ask_qty)):
                absent = px[:, k] == NO_PX
                columns.append(pa.array(px[:, k] * tick / tick_of, mask=absent))
                columns.append(pa.array(qty[:, k] * lot / lot_of, mask=absent))
        self.file.write(pa.table(columns, schema=schema))
        self.lines += len(ended)
        self.first = int(ts_recv[0]) if self.first is None else self.first
        self.last = int(ts_recv[-1])

    def notes(self) -> dict[str, int]:
        """Return what the books could not believe."""
        counts = {**self._by_price.counts} if not self._ordered else {**self._by_order.counts}
        return {f"book: {what}": count for what, count in counts.items() if count}


def _only(trace: Trace, keep: npt.NDArray[np.bool_]) -> Trace:
    return trace if keep.all() else Trace(*(column[keep] for column in trace))


class _Directory:
    """What the lines of a book need of the instruments, as arrays over their ids."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self.of = instruments
        n = 1 + max((i.id for i in instruments), default=0)
        self._px, self._qty = np.ones((2, n)), np.ones((2, n))  # multiply by the first, divide by the second
        for instrument in instruments:
            self._px[:, instrument.id] = fraction(instrument.tick_size)
            self._qty[:, instrument.id] = fraction(instrument.lot_size)
        times = Counter(i.symbol for i in instruments)
        self._names = {i.id: i.symbol if times[i.symbol] == 1 else f"{i.venue}:{i.symbol}" for i in instruments}

    def named(self, ids: Int64s) -> pa.DictionaryArray:
        """Return the symbols of instruments, with the venue where two have the same."""
        unique, inverse = np.unique(ids, return_inverse=True)
        names = [self._names.get(number, str(number)) for number in unique.tolist()]
        return pa.DictionaryArray.from_arrays(pa.array(inverse.astype(np.int32)), pa.array(names, pa.string()))

    def scales(self, ids: Int64s) -> tuple[Floats, Floats]:
        """Return what turns ticks and what turns lots of each line into decimals; see `fraction`."""
        known = np.where(ids < self._px.shape[1], ids, 0)
        return (
            np.where(ids == known, self._px[:, known], 1.0),
            np.where(ids == known, self._qty[:, known], 1.0),
        )
