"""A market by order as a market by price, with the place in the queue of each change beside it.

**Model.** Rows of single orders (ADD, REDUCE, EXECUTE, DELETE, REPLACE) say more than a book by price can hold: whose
lots went. `by_price` turns each into the LEVEL row that it leads to, and an execution into a TRADE row before that. The
*mark* of each row tells whose lots they were: when that order came to its price, as a number of this tape's rows. An
own order that came later was behind it, one that came earlier before it. So the queue ahead of an own order is exact:
no model shares anything.

=================  ====================================================================================================
row                becomes
=================  ====================================================================================================
ADD                LEVEL with the price's lots now; mark `NOBODY`, for nobody's place changes
REDUCE, DELETE     LEVEL; marked by the order's arrival
EXECUTE            TRADE at the execution's price, marked by the arrival; LEVEL, marked `NOBODY`: the trade said it
REPLACE            LEVEL of the price it leaves, marked; LEVEL of the price it comes to, where it is last
TRADE, others      as they are; a TRADE names no order here (a hidden one, an auction's): `NOBODY` of the queue
=================  ====================================================================================================

**What a row cannot say truly** is left out and counted: an order nobody added, a reference that is live already. More
lots taken than an order has: the order goes.

**Worst case accepted.** Up to two rows come of one; the table of live orders is as large as the tape has ADD and
REPLACE rows, at 64 bytes each, at most half full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, Flag, Kind, RowArray, new_rows
from hftlab.engine import book_size
from hftlab.kernels.jit import address_of, copy_bytes, kernel, load, record_at, store
from hftlab.kernels.ladder import clear_side, key_qty, lay_side, set_key, side_bytes

__all__ = ["ByPrice", "NOBODY", "ORDER_KINDS", "by_price"]

NOBODY = -1
"""Mark of a row that changes nobody's place in a queue; 0 marks a row of a market by price, where the model decides."""

ORDER_KINDS = np.array([Kind.ADD, Kind.REDUCE, Kind.DELETE, Kind.EXECUTE, Kind.REPLACE], np.uint8)
"""Kinds of rows that a market by order is made of, beside those of a market by price."""
_ADD, _REDUCE, _DELETE, _EXECUTE, _REPLACE = (int(kind) for kind in ORDER_KINDS)
_LEVEL, _TRADE, _CLEAR = int(Kind.LEVEL), int(Kind.TRADE), int(Kind.CLEAR)
_BID, _ASK, _LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
_NO_PX = NO_PX
_UNKNOWN, _LIVE_ALREADY = 0, 1
_LOW48 = 0xFFFFFFFFFFFF
_SPREAD = -7046029254386353131  # 0x9E3779B97F4A7C15

_ENTRY = np.dtype([(name, "<i8") for name in ("ref", "instrument", "side", "px", "qty", "mark", "used", "pad")])
_entry_at = record_at(_ENTRY)
_ENTRY_BYTES = _ENTRY.itemsize


@dataclass(frozen=True, slots=True)
class ByPrice:
    """What `by_price` returns.

    Parameters
    ----------
    rows : array of ROW
    marks : array of int64
        One a row; see the module.
    unknown, live_already : int
        Rows left out: of an order that nobody added; adds of a reference that is live.
    """

    rows: RowArray
    marks: npt.NDArray[np.int64]
    unknown: int
    live_already: int


@kernel(inline=True)
def _home(table: int, mask: int, ref: int, instrument: int) -> int:
    return ((ref * _SPREAD ^ instrument * 0x2545F491) >> 17) & mask


@kernel()
def _seek(table: int, mask: int, ref: int, instrument: int) -> int:
    """Return the address of an order's entry, or of the free one where it would lie."""
    k = _home(table, mask, ref, instrument)
    while True:
        e = _entry_at(table + k * _ENTRY_BYTES)
        if e.used == 0 or (e.ref == ref and e.instrument == instrument):
            return table + k * _ENTRY_BYTES
        k = (k + 1) & mask


@kernel()
def _free(table: int, mask: int, at: int) -> int:
    """Free an entry; later ones move back, so that the table does not age."""
    hole = (at - table) // _ENTRY_BYTES
    k = hole
    while True:
        k = (k + 1) & mask
        e = _entry_at(table + k * _ENTRY_BYTES)
        if e.used == 0:
            break
        if (k - _home(table, mask, e.ref, e.instrument)) & mask >= (k - hole) & mask:
            copy_bytes(table + hole * _ENTRY_BYTES, table + k * _ENTRY_BYTES, _ENTRY_BYTES)
            hole = k
    _entry_at(table + hole * _ENTRY_BYTES).used = 0
    return 0


@kernel(inline=True)
def _tell(
    books: int, side_size: int, row: int, instrument: int, side: int, px: int, change: int, last: int, mark: int,
    out: int, marks: int, n: int,
) -> None:  # fmt: skip
    """Change a price's lots, and write the LEVEL row that says so."""
    book = books + (2 * instrument + (0 if side == _BID else 1)) * side_size
    key = px if side == _BID else -px
    qty = max(0, key_qty(book, key) + change)
    set_key(book, key, qty)
    to = out + 64 * n
    copy_bytes(to, row, 64)
    store(to, (load(row) & _LOW48) | (_LEVEL << 48))
    store(to + 24, instrument | (side | (_LAST if last != 0 else 0)) << 32)
    store(to + 32, px)
    store(to + 40, qty)
    store(to + 48, load(row) & 0xFFFFFFFF)
    store(to + 56, 0)
    store(marks + 8 * n, mark)


@kernel("int64(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _by_price(
    rows: int, n: int, instruments: int, books: int, side_size: int, table: int, mask: int, out: int, marks: int,
    counts: int,
) -> int:  # fmt: skip
    """Write the rows and their marks; return how many there are."""
    m = 0
    for i in range(n):
        row = rows + 64 * i
        kind = (load(row) >> 48) & 0xFF
        where = load(row + 24)
        instrument, flags = where & 0xFFFFFFFF, (where >> 32) & 0xFFFF
        last = flags & _LAST
        if kind < _ADD or kind > _REPLACE or instrument >= instruments:
            copy_bytes(out + 64 * m, row, 64)
            store(marks + 8 * m, NOBODY if kind == _TRADE else 0)
            if kind == _CLEAR and instrument < instruments:
                clear_side(books + 2 * instrument * side_size)
                clear_side(books + (2 * instrument + 1) * side_size)
                for k in range(mask + 1):
                    e = _entry_at(table + k * _ENTRY_BYTES)
                    while e.used != 0 and e.instrument == instrument:
                        _free(table, mask, table + k * _ENTRY_BYTES)
            m += 1
            continue
        at = _seek(table, mask, load(row + 48), instrument)
        e = _entry_at(at)
        if kind == _ADD:
            side, px, qty = flags & 3, load(row + 32), load(row + 40)
            if e.used != 0 or qty <= 0 or (side != _BID and side != _ASK):
                store(counts + 8 * _LIVE_ALREADY, load(counts + 8 * _LIVE_ALREADY) + 1)
                continue
            e.ref, e.instrument, e.side, e.px, e.qty = load(row + 48), instrument, side, px, qty
            e.mark, e.used = m + 1, 1
            _tell(books, side_size, row, instrument, side, px, qty, last, NOBODY, out, marks, m)
            m += 1
            continue
        if e.used == 0:
            store(counts + 8 * _UNKNOWN, load(counts + 8 * _UNKNOWN) + 1)
            continue
        side, px, came = e.side, e.px, e.mark
        taken = e.qty if kind == _DELETE or kind == _REPLACE else min(e.qty, load(row + 40))
        e.qty -= taken
        if e.qty <= 0:
            _free(table, mask, at)
        if kind == _EXECUTE:
            to = out + 64 * m
            copy_bytes(to, row, 64)
            store(to, (load(row) & _LOW48) | (_TRADE << 48))
            store(to + 24, instrument | (3 - side) << 32)
            store(to + 32, px if load(row + 32) == _NO_PX else load(row + 32))
            store(to + 40, taken)
            store(to + 48, load(row + 56))
            store(marks + 8 * m, came if load(row + 32) == _NO_PX or load(row + 32) == px else NOBODY)
            m += 1
            came = NOBODY
        moves = kind == _REPLACE and load(row + 40) > 0
        _tell(books, side_size, row, instrument, side, px, -taken, 0 if moves else last, came, out, marks, m)
        m += 1
        if moves:
            ref, px, qty = load(row + 56), load(row + 32), load(row + 40)
            if ref == 0:
                ref = load(row + 48)
            e = _entry_at(_seek(table, mask, ref, instrument))
            e.ref, e.instrument, e.side, e.px, e.qty = ref, instrument, side, px, qty
            e.mark, e.used = m + 1, 1
            _tell(books, side_size, row, instrument, side, px, qty, last, NOBODY, out, marks, m)
            m += 1
    return m


def by_price(rows: RowArray, instruments: Sequence[Instrument]) -> ByPrice:
    """Return a market by order as one by price, with marks.

    Examples
    --------
    >>> rows = new_rows(2)
    >>> rows["kind"], rows["flags"], rows["a"] = [Kind.ADD, Kind.EXECUTE], [Flag.BID, 0], 7
    >>> rows["px"], rows["qty"] = [100, NO_PX], [5, 2]
    >>> told = by_price(rows, [None])
    >>> [(Kind(k).name, int(p), int(q)) for k, p, q in zip(told.rows["kind"], told.rows["px"], told.rows["qty"])]
    [('LEVEL', 100, 5), ('TRADE', 100, 2), ('LEVEL', 100, 3)]
    >>> told.marks.tolist()
    [-1, 1, -1]
    """
    rows = np.ascontiguousarray(rows)
    kinds = rows["kind"]
    doubled = int(np.isin(kinds, (Kind.EXECUTE, Kind.REPLACE)).sum())
    out, marks = new_rows(len(rows) + doubled), np.zeros(len(rows) + doubled, np.int64)
    size = book_size(len(instruments))
    side = side_bytes(*size)
    books = np.zeros(2 * len(instruments) * side, np.uint8)
    for k in range(2 * len(instruments)):
        lay_side(books[k * side : (k + 1) * side], *size)
    orders = max(1, int(np.isin(kinds, (Kind.ADD, Kind.REPLACE)).sum()))
    mask = (1 << (2 * orders).bit_length()) - 1
    table = np.zeros(mask + 1, _ENTRY)
    counts = np.zeros(2, np.int64)
    n = _by_price(
        address_of(rows), len(rows), len(instruments), address_of(books), side, address_of(table), mask,
        address_of(out), address_of(marks), address_of(counts),
    )  # fmt: skip
    return ByPrice(out[:n], marks[:n], int(counts[_UNKNOWN]), int(counts[_LIVE_ALREADY]))
