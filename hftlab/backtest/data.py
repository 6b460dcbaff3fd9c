"""What a backtest reads: one array of market rows, by time, of the instruments that are traded.

Anything that ``hftlab convert`` reads becomes that array: a journal's folder, a capture, an exchange's file, rows in
memory, or several of these, merged by the time at which we received them. Own orders of a journal are left out: its
market is used, not its decisions. A market by order becomes one by price with marks, so that queues are exact.

**Policies on bad input.** A row of no market kind is left out. A price level of negative quantity, a trade of none, an
instrument that is not traded, or a payload without its head is an error that names the row: such a file is broken, and
a backtest on the rest of it would not be told from a good one. Times that go back are not: captures of several
connections have them. Rows keep their order, time stands still until it has caught up, and `Tape.late` counts them. A
recording that never says whether a book may be believed is believed from its first row.

Worst case accepted: the rows are held in memory, 64 bytes each; a journal's or an array's own rows are not copied where
they are all market rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.convert.formats import open_source
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.journal import JournalReader, read_all
from hftlab.kernels.jit import address_of, kernel, load, store
from hftlab.sim.by_order import ORDER_KINDS, by_price
from hftlab.sim.recorded import MARKET_KINDS
from hftlab.venues.binance.capture import is_snapshot, read_capture
from hftlab.venues.binance.connection import MarketConnection

__all__ = ["Market", "Tape", "capture_rows", "journal_market", "read_tape"]

Market = Iterable[tuple[int, RowArray]]
"""Messages of a market: (receive time ns, rows), in time order."""

_MARKET = np.array(MARKET_KINDS, np.uint8)
_LEVEL, _QUOTE, _CLEAR, _TRADE, _BOOK_STATE = (int(kind) for kind in MARKET_KINDS)
_SOME_MONEY = "quote"  # a recording that does not name what prices are in; fees must be in something
_OTHER, _LATE, _WHAT, _WHERE, _ORDERS, _UNDATED, _FACTS = range(7)
_FIRST_ORDER, _LAST_ORDER = int(ORDER_KINDS.min()), int(ORDER_KINDS.max())
_NEGATIVE, _NO_LOTS, _FOREIGN = 1, 2, 3


@dataclass(slots=True)
class Tape:
    """A market, ready to be played.

    Parameters
    ----------
    rows : array of ROW
        Contiguous, market rows only.
    instruments : tuple of Instrument
        By id, from 0.
    late : int
        Rows received before the row in front of them.
    notes : dict of str to int
        What the source told of itself: broken records, gaps, lost messages.
    marks : array of int64, optional
        Of a market by order: whose place in the queue each row changes; see `hftlab.sim.by_order`.
    """

    rows: RowArray
    instruments: tuple[Instrument, ...]
    late: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    marks: npt.NDArray[np.int64] | None = None


@kernel("int64(int64, int64, int64, int64)")
def _survey(rows: int, n: int, instruments: int, out: int) -> int:
    """Count rows of no market kind, those of single orders among them, rows that are late, and rows that the venue did
    not date; note which instruments have a BOOK_STATE row, a word each behind the facts. Stop at a broken row.
    """
    latest = -(2**62)
    other, late, orders, undated = 0, 0, 0, 0
    for k in range(n):
        row = rows + 64 * k
        kind = (load(row) >> 48) & 0xFF
        if not (kind == _LEVEL or kind == _QUOTE or kind == _TRADE or kind == _CLEAR or kind == _BOOK_STATE):
            other += 1
            orders += 1 if _FIRST_ORDER <= kind <= _LAST_ORDER else 0
            continue
        qty = load(row + 40)
        what = 0
        if load(row + 24) & 0xFFFFFFFF >= instruments:
            what = _FOREIGN
        elif qty < 0 and (kind == _LEVEL or kind == _QUOTE):
            what = _NEGATIVE
        elif qty <= 0 and kind == _TRADE:
            what = _NO_LOTS
        if what != 0:
            store(out + 8 * _WHAT, what)
            store(out + 8 * _WHERE, k)
            return -1
        if kind == _BOOK_STATE:
            store(out + 8 * (_FACTS + (load(row + 24) & 0xFFFFFFFF)), 1)
        at = load(row + 8)
        late += 1 if at < latest else 0
        undated += 1 if load(row + 16) <= 0 else 0
        latest = max(latest, at)
    store(out + 8 * _OTHER, other)
    store(out + 8 * _LATE, late)
    store(out + 8 * _ORDERS, orders)
    store(out + 8 * _UNDATED, undated)
    return 0


@dataclass(frozen=True, slots=True)
class _Survey:
    """What one look at all rows found."""

    rows: RowArray  # contiguous
    other: int
    late: int
    orders: int
    undated: int
    states: npt.NDArray[np.int64]


def _surveyed(rows: RowArray, instruments: int) -> _Survey:
    if not isinstance(rows, np.ndarray) or rows.dtype != ROW or rows.ndim != 1:
        found = f"{rows.ndim}-dimensional of {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ConfigError(f"data: {found}; expected rows, a 1-dimensional array of hftlab.ROW")
    rows = np.ascontiguousarray(rows)
    told = np.zeros(_FACTS + instruments, np.int64)
    if _survey(address_of(rows), len(rows), instruments, address_of(told)) < 0:
        at, what = int(told[_WHERE]), int(told[_WHAT])
        row = rows[at]
        name, qty = Kind(int(row["kind"])).name, int(row["qty"])
        problem = {
            _NEGATIVE: f"has a quantity of {qty} lots; expected 0 or more",
            _NO_LOTS: f"has a quantity of {qty} lots; expected 1 or more",
            _FOREIGN: f"names instrument {int(row['instrument'])}; those traded are 0 to {instruments - 1}",
        }[what]
        raise ConfigError(f"data: row {at}, a {name} received at {int(row['ts_recv'])} ns, {problem}")
    other, late, orders, undated = (int(told[what]) for what in (_OTHER, _LATE, _ORDERS, _UNDATED))
    return _Survey(rows, other, late, orders, undated, told[_FACTS:])


def capture_rows(
    frames: Iterable[tuple[int, bytes]], connection: MarketConnection, *, snapshots: dict[str, bytes] | None = None
) -> Iterator[tuple[int, RowArray]]:
    """Yield the rows of a Binance capture, gap-checked, message by message.

    Parameters
    ----------
    frames : iterable of (receive time ns, message)
        As `read_capture` gives them; a snapshot among them answers the (only) symbol that waits for one.
    connection : MarketConnection
        Its instruments say what is decoded.
    snapshots : dict of symbol to payload, optional
        Answers to snapshot requests that lie outside the capture.
    """
    out = np.zeros(connection.rows_needed, ROW)
    connection.on_open(0)
    answers = dict(snapshots or {})
    inline: list[str] = []
    for now, frame in frames:
        for symbol in connection.wants_snapshot():
            if symbol in answers:
                n = connection.on_snapshot(symbol, answers[symbol], now, out)
                if n:
                    yield now, out[:n]
            else:
                inline.append(symbol)
        if is_snapshot(frame):
            n = connection.on_snapshot(inline.pop(0), frame, now, out) if inline else 0
        else:
            n = connection.on_frame(frame, now, out)
        if n:
            yield now, out[:n]


def journal_market(rows: RowArray) -> Iterator[tuple[int, RowArray]]:
    """Yield the market rows of a journal, grouped by receive time, as a session saw them."""
    market = rows[np.isin(rows["kind"], _MARKET)]
    if not len(market):
        return
    edges = np.nonzero(np.diff(market["ts_recv"]))[0] + 1
    for part in np.split(market, edges):
        yield int(part["ts_recv"][0]), part


def read_tape(data: Any, instruments: Sequence[Instrument] | None) -> Tape:
    """Return the market in `data`.

    Parameters
    ----------
    data : array of ROW, path, iterable of (time, rows), or list of these
        Rows; a journal's folder; any recording that ``hftlab convert`` reads; messages; several, merged by time.
    instruments : sequence of Instrument, optional
        What is traded, ids 0, 1, ...; what the recording says of itself if absent.

    Raises
    ------
    ConfigError
        If it cannot be read, holds no market row, or a broken one.
    """
    tape = _several(data, instruments) if isinstance(data, (list, tuple)) else _one(data, instruments)
    tape.instruments = tuple(one if one.quote else replace(one, quote=_SOME_MONEY) for one in tape.instruments)
    found = _surveyed(tape.rows, len(tape.instruments))
    if found.orders:
        told = by_price(found.rows, tape.instruments)
        tape.rows, tape.marks = told.rows, told.marks
        for what, count in (("unknown orders", told.unknown), ("orders told twice", told.live_already)):
            if count:
                tape.notes[what] = count
        found = _surveyed(tape.rows, len(tape.instruments))
    tape.rows, tape.late = found.rows, found.late
    if found.undated:
        tape.notes["rows that the venue did not date"] = found.undated
    if found.other:
        kept = np.isin(found.rows["kind"], _MARKET)
        tape.rows = found.rows[kept]
        if tape.marks is not None:
            tape.marks = _renumbered_marks(tape.marks, kept)
    if not len(tape.rows):
        raise ConfigError(f"data: {_named(data)} holds no market row of {_symbols(tape.instruments)}: an empty day")
    _believe(tape, found.states)
    return tape


def _renumbered_marks(marks: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the marks of the rows that are kept, by their numbers among those."""
    numbers = np.cumsum(kept)
    named = marks > 0
    marks = marks.copy()
    marks[named] = numbers[marks[named] - 1]
    return marks[kept]


def _believe(tape: Tape, states_told: npt.NDArray[np.int64]) -> None:
    """Have a recording that never says which of its books may be believed begin by saying it."""
    silent = np.flatnonzero(states_told == 0)
    if not len(silent):
        return
    states = new_rows(len(silent))
    states["kind"], states["code"], states["flags"] = Kind.BOOK_STATE, BookState.LIVE, Flag.LAST
    states["instrument"] = silent
    for name in ("ts_recv", "ts_event"):
        states[name] = tape.rows[name][0]
    tape.rows = join_rows([states, tape.rows])
    if tape.marks is not None:
        later = np.where(tape.marks > 0, tape.marks + len(silent), tape.marks)
        tape.marks = np.concatenate([np.zeros(len(silent), np.int64), later])


def _named(data: Any) -> str:
    return str(data) if isinstance(data, (str, Path)) else f"a {type(data).__name__}"


def _symbols(instruments: Sequence[Instrument]) -> str:
    return ", ".join(instrument.symbol for instrument in instruments) or "any instrument"


def _one(data: Any, instruments: Sequence[Instrument] | None) -> Tape:
    if isinstance(data, (str, Path)):
        return _recording(Path(data), instruments)
    if instruments is None:
        raise ConfigError(f"instruments: missing; {_named(data)} does not say what it holds")
    if isinstance(data, np.ndarray):
        return Tape(data, tuple(instruments))
    try:
        return Tape(join_rows([rows.copy() for _, rows in data]), tuple(instruments))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"data: {_named(data)}; expected rows, a path, messages as (time, rows), or a list of these"
        ) from error


def _recording(path: Path, instruments: Sequence[Instrument] | None) -> Tape:
    if path.is_dir():
        reader = JournalReader(path)
        held = Definitions.from_dict(reader.definitions).instruments
        reader.close()
        return Tape(read_all(path), tuple(instruments or held))
    if not path.exists():
        raise ConfigError(f"data: {path} is neither a recording nor a journal's folder: there is no such file")
    if instruments is not None and {one.venue for one in instruments} == {"binance"} and _is_capture(path):
        messages = capture_rows(read_capture(path), MarketConnection(instruments))
        return Tape(join_rows([rows.copy() for _, rows in messages]), tuple(instruments))
    source = open_source(path)
    blocks = [block.copy() for block in source]
    rows = join_rows(blocks)
    held = tuple(source.instruments)
    notes = dict(source.notes) | ({"broken records": source.broken} if source.broken else {})
    return _renumbered(rows, held, instruments, notes)


def _is_capture(path: Path) -> bool:
    try:
        return open_source(path).format in ("hftbacktest", "cryptofeed", "capture")
    except ConfigError:
        return True  # its own reader says what is wrong


def _renumbered(
    rows: RowArray, held: Sequence[Instrument], wanted: Sequence[Instrument] | None, notes: dict[str, int]
) -> Tape:
    """Number the instruments of a recording from 0 on, those that are wanted only."""
    chosen = tuple(held if wanted is None else wanted)
    by_symbol = {one.symbol: one.id for one in held}
    missing = [one.symbol for one in chosen if one.symbol not in by_symbol]
    if missing:
        raise ConfigError(f"instruments: {', '.join(missing)} not in the recording, which has {', '.join(by_symbol)}")
    place = np.full(max((one.id for one in held), default=0) + 1, -1, np.int64)
    for k, one in enumerate(chosen):
        place[by_symbol[one.symbol]] = k
    known = rows["instrument"] < len(place)
    ids = np.where(known, place[np.where(known, rows["instrument"], 0)], -1)
    rows = rows[ids >= 0]
    rows["instrument"] = ids[ids >= 0]
    if wanted is None:
        chosen = tuple(replace(one, id=k) for k, one in enumerate(chosen))
    return Tape(rows, chosen, notes=notes)


def _several(parts: Sequence[Any], instruments: Sequence[Instrument] | None) -> Tape:
    """Merge recordings by receive time; instruments are found by their symbols where they are given."""
    tapes = []
    for part in parts:
        tape = _one(part, None if isinstance(part, (str, Path)) else instruments)
        tape.rows = tape.rows[np.isin(tape.rows["kind"], [*_MARKET, *ORDER_KINDS])]
        tapes.append(tape)
    if not tapes:
        raise ConfigError("data: an empty list; expected at least one recording")
    held: list[Instrument] = []
    for tape in tapes:
        numbers = np.zeros(len(tape.instruments), np.int64)
        for one in tape.instruments:
            same = [k for k, other in enumerate(held) if (other.venue, other.symbol) == (one.venue, one.symbol)]
            if not same:
                held.append(replace(one, id=len(held)))
            numbers[one.id] = same[0] if same else len(held) - 1
        tape.rows["instrument"] = numbers[tape.rows["instrument"]]
    rows = join_rows([tape.rows for tape in tapes])
    # a message is not parted: a row's time is that of the latest before it in its own recording
    times = np.concatenate([np.maximum.accumulate(tape.rows["ts_recv"]) for tape in tapes])
    rows = rows[np.argsort(times, kind="stable")]
    notes: dict[str, int] = {}
    for tape in tapes:
        for what, count in tape.notes.items():
            notes[what] = notes.get(what, 0) + count
    return _renumbered(rows, held, instruments, notes)
