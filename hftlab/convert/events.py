"""hftbacktest's events in memory to rows: what its npz files hold becomes the array that a backtest here reads.

Model. hftbacktest's array tells two stories at once: what the exchange did (`EXCH`) and what we saw (`LOCAL`). Every
event that we saw carries both its times, so the rows are made of those alone: ``exch_ts`` becomes ``ts_event``,
``local_ts`` becomes ``ts_recv``, and an event that only the exchange's story has is the twin of one that is taken.

=====================  ===============================================================================================
event                  row
=====================  ===============================================================================================
DEPTH, DEPTH_SNAPSHOT  LEVEL; the second with the flag SNAPSHOT
DEPTH_CLEAR            CLEAR, of both sides
DEPTH_BBO              QUOTE
TRADE                  TRADE, with the aggressor's side
=====================  ===============================================================================================

Neighbours of the same two times are one message: its last row carries LAST, for there is where a strategy may look.
The format knows no doubt about a book, so the first row says that it is LIVE. ``a`` counts levels and quotes.

**Floats.** A price is taken for the tick it is nearest to, and must be no farther from it than 4 units of its own last
place: that much a product of a count and a float tick may be off, and no decimal that was read as text is. Nothing
else is rounded. Where ticks lie so close together that floats of that size could mean two of them, the price is refused
as well. Quantities and lots alike.

One pass in one kernel, 64 bytes read and 64 written an event; nothing is kept between events but the time of the one
before. What has no row is an error that names the event, before anything is returned: the L3 events (read the source
they came from), and a clear of one side or up to a price, which rows cannot say.

Worst case accepted: room for a row of every event is taken, also of those that only the exchange's story has.

References
----------
hftbacktest, "Data" and its constants of `hftbacktest.types`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.convert.hftbacktest import (
    BUY,
    DEPTH,
    DEPTH_BBO,
    DEPTH_CLEAR,
    DEPTH_SNAPSHOT,
    EVENT,
    LOCAL,
    SELL,
    TRADE,
    fraction,
)
from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, Flag, Kind, RowArray
from hftlab.kernels.jit import address_of, kernel, load, record_at, store

__all__ = ["event_rows"]

_event_at = record_at(EVENT)
_LEVEL, _CLEAR, _QUOTE, _TRADE = int(Kind.LEVEL), int(Kind.CLEAR), int(Kind.QUOTE), int(Kind.TRADE)
_BID, _ASK, _LAST, _SNAPSHOT = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.SNAPSHOT)
_PX, _QTY, _SIGN, _KIND, _SIDE, _ONE_SIDED = 1, 2, 3, 4, 5, 6
_MOST = 2.0**53
_FOUR_ULPS = 2.0**-50
_OFF_GRID = -(2**63)


@kernel(inline=True)
def _counted(value: float, unit: float, divisor: float) -> int:
    """Return `value` in steps of `unit` / `divisor`, or `_OFF_GRID`."""
    count = np.rint(value * divisor / unit)
    if not abs(count) < _MOST:  # also of NaN
        return _OFF_GRID
    allowed = abs(value) * _FOUR_ULPS
    if not abs(count * unit / divisor - value) <= allowed or 4.0 * allowed * divisor > unit:
        return _OFF_GRID
    return int(count)


@kernel("int64(int64, int64, int64, int64, float64, float64, float64, float64, int64)")
def _convert(
    events: int, n: int, instrument: int, rows: int, tick: float, ticks_in: float, lot: float, lots_in: float, bad: int
) -> int:
    """Write the rows of `n` events; return how many, or -1 with what is wrong and where at `bad`."""
    out = rows
    number = 0
    before_local = before_exch = 0
    for k in range(n):
        event = _event_at(events + 64 * k)
        ev = load(events + 64 * k)
        if ev & LOCAL == 0:
            continue
        what = ev & 0xFF
        side = (_BID if ev & BUY != 0 else 0) | (_ASK if ev & SELL != 0 else 0)
        wrong = 0
        px = qty = 0
        if what == DEPTH_CLEAR:
            kind = _CLEAR
            if side == _BID or side == _ASK:
                wrong = _ONE_SIDED
            side = 0
        else:
            px = _counted(event.px, tick, ticks_in)
            qty = _counted(event.qty, lot, lots_in)
            kind = _LEVEL
            if what == DEPTH_SNAPSHOT:
                side |= _SNAPSHOT
            elif what == TRADE:
                kind = _TRADE
            elif what == DEPTH_BBO:
                kind = _QUOTE
            elif what != DEPTH:
                wrong = _KIND
            if kind != _TRADE and side & 3 != _BID and side & 3 != _ASK:
                wrong = _SIDE if wrong == 0 else wrong
            if wrong == 0:
                wrong = _PX if px == _OFF_GRID else _QTY if qty == _OFF_GRID else _SIGN if qty < 0 else 0
        if wrong != 0:
            store(bad, wrong)
            store(bad + 8, k)
            return -1
        exch, local = event.exch_ts, event.local_ts
        if out > rows and (local != before_local or exch != before_exch):
            store(out - 40, load(out - 40) | _LAST << 32)
        before_local, before_exch = local, exch
        store(out, ((out - rows) // 64 + 1) & 0xFFFFFFFF | kind << 48)  # row 0 is not ours
        store(out + 8, local)
        store(out + 16, exch)
        store(out + 24, instrument | side << 32)
        store(out + 32, px)
        store(out + 40, qty)
        if kind == _LEVEL or kind == _QUOTE:
            number += 1
            store(out + 48, number)
        else:
            store(out + 48, 0)
        store(out + 56, 0)
        out += 64
    if out > rows:
        store(out - 40, load(out - 40) | _LAST << 32)
    return (out - rows) // 64


def event_rows(events: npt.NDArray[np.void], instrument: Instrument) -> RowArray:
    """Return hftbacktest's events about one instrument as rows, exact in ticks and lots.

    Parameters
    ----------
    events : array of hftbacktest's ``event_dtype``, shape (n,)
        As its npz files hold them under ``data``.
    instrument : Instrument
        Its ``id`` is written in every row; ``tick_size`` and ``lot_size`` say what the floats count.

    Returns
    -------
    array of ROW
        One row an event that was received, behind one that says that the book is LIVE. Empty for no events.

    Raises
    ------
    ConfigError
        If the array has another dtype, or an event has no row (see the module); the message names its index.
    OffGridError
        If a price or quantity is no multiple of its step, or not a number; the message names its index.

    Examples
    --------
    >>> from decimal import Decimal
    >>> from hftlab.convert.hftbacktest import EXCH
    >>> events = np.zeros(1, EVENT)
    >>> events[0] = (EXCH | LOCAL | BUY | DEPTH, 5, 9, 100.1, 3.0, 0, 0, 0.0)
    >>> rows = event_rows(events, Instrument(0, "x", "X", Decimal("0.1"), Decimal("1")))
    >>> [rows[name].tolist() for name in ("ts_event", "ts_recv", "px", "qty")]
    [[5, 5], [9, 9], [0, 1001], [0, 3]]
    """
    if not isinstance(events, np.ndarray) or events.ndim != 1 or not _is_of_events(events.dtype):
        found = f"{events.ndim}-dimensional of {events.dtype}" if isinstance(events, np.ndarray) else type(events)
        raise ConfigError(f"events: {found}; expected a 1-dimensional array of hftbacktest's event_dtype")
    events = np.ascontiguousarray(events)
    rows = np.empty(len(events) + 1, ROW)
    bad = np.zeros(2, np.int64)
    tick, ticks_in = fraction(instrument.tick_size)
    lot, lots_in = fraction(instrument.lot_size)
    n = _convert(
        address_of(events), len(events), instrument.id, address_of(rows) + 64, tick, ticks_in, lot, lots_in,
        address_of(bad),
    )  # fmt: skip
    if n < 0:
        raise _problem(int(bad[0]), int(bad[1]), events, instrument)
    if n == 0:
        return rows[:0]
    first = rows[:1]
    first.view(np.uint8)[:] = 0
    first["kind"], first["code"], first["flags"] = Kind.BOOK_STATE, BookState.LIVE, Flag.LAST
    first["instrument"] = instrument.id
    for name in ("ts_recv", "ts_event"):
        first[name] = rows[name][1]
    return rows[: n + 1]


def _is_of_events(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype has hftbacktest's fields where it has them; files differ in the padding they name."""
    return dtype.itemsize == EVENT.itemsize and dtype.names == EVENT.names and dtype.fields == EVENT.fields


def _problem(what: int, at: int, events: npt.NDArray[np.void], instrument: Instrument) -> Exception:
    event = events[at]
    ev, px, qty = int(event["ev"]), float(event["px"]), float(event["qty"])
    where = f"events: event {at}, received at {int(event['local_ts'])} ns,"
    if what == _PX:
        return OffGridError(f"{where} has px={px!r}; expected a multiple of {instrument.tick_size}")
    if what == _QTY:
        return OffGridError(f"{where} has qty={qty!r}; expected a multiple of {instrument.lot_size}")
    if what == _SIGN:
        return ConfigError(f"{where} has qty={qty!r}; expected 0 or more")
    if what == _SIDE:
        return ConfigError(f"{where} is of kind {ev & 0xFF} and of no side, or of both; expected BUY or SELL")
    if what == _ONE_SIDED:
        return ConfigError(f"{where} clears one side up to px={px!r}; rows can only say that both are empty")
    return ConfigError(f"{where} is of kind {ev & 0xFF}, which has no row; expected depth, clear, quote or trade")
