"""Market-by-price books of every symbol of a feed: blocks of LEVEL, QUOTE, CLEAR and BOOK_STATE rows, applied at once.

Each side is a sorted array with the best level last (`hftlab.kernels.book` says why), `level_cap` pairs long, so memory
is fixed by instruments and levels while prices may range over all of int64. A side that is full forgets its farthest
level, counted as ``forgotten``: the book knows its best `level_cap` levels, not all.

A feed may send quotes beside levels, or nothing else. The newer of the two is the touch: a quote is newer if its
sequence is above that of the last whole message of levels, which takes it back when it has caught up. Sequence 0 means
that the venue gives none, and then the last to come is newest.

What a row says that cannot be true (no side, a quantity below 0, a price that is none, an instrument outside the table)
is counted and ignored: any 64 bytes are safe to apply.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError
from hftlab.core.rows import NO_PX, ROW, Flag, Kind
from hftlab.kernels.book import has_level, set_level
from hftlab.kernels.jit import address_of, kernel, load, record_at, store

__all__ = ["L2_COUNTS", "L2_HEAD", "L2_INSTRUMENT", "LevelTables", "apply_levels", "trace_levels"]

L2_COUNTS = ("bad", "foreign", "forgotten", "locked", "crossed")
"""What is counted: rows without a true side, price or quantity; instruments outside the table; levels that a full side
forgot; and how often the end of a message left a book locked or crossed that was not."""


def _words(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<i8") for name in names.split()])


L2_HEAD = _words("instruments instruments_max at level_cap levels " + " ".join(L2_COUNTS))
"""Instruments in the table and at most, its address, levels a side, the address of the sides, and what is counted."""

L2_INSTRUMENT = _words(
    "n_bids n_asks seq state gap quoted quote_seq quote_bid_px quote_bid_qty quote_ask_px quote_ask_qty"
)
"""Levels in use, sequence, the last BOOK_STATE (0: none yet), the sign of best bid minus best ask, whether a quote is
newer than the levels, and that quote."""

_head_at = record_at(L2_HEAD)
_instrument_at = record_at(L2_INSTRUMENT)
_row_at = record_at(ROW)
_BYTES = L2_INSTRUMENT.itemsize
_LEVEL, _QUOTE, _CLEAR, _BOOK_STATE = int(Kind.LEVEL), int(Kind.QUOTE), int(Kind.CLEAR), int(Kind.BOOK_STATE)
_LAST = int(Flag.LAST)
_NO_PX = NO_PX


@kernel(inline=True)
def _int(value: Any) -> int:
    """Return a field of any width as int64: mixing signed and unsigned in one expression would make a float."""
    return int(np.int64(value))


@kernel(inline=True)
def _bids(head: Any, instrument: int) -> int:
    return _int(head.levels + 32 * head.level_cap * instrument)


@kernel(inline=True)
def _asks(head: Any, instrument: int) -> int:
    return _int(_bids(head, instrument) + 16 * head.level_cap)


@kernel(inline=True)
def _set(head: Any, instrument: int, flags: int, px: int, qty: int) -> None:
    of = _instrument_at(head.at + _BYTES * instrument)
    cap = head.level_cap
    if flags & 1:
        side = _bids(head, instrument)
        if of.n_bids == cap and qty > 0 and not has_level(side, of.n_bids, 1, px):
            head.forgotten += 1
        of.n_bids = set_level(side, cap, of.n_bids, 1, px, qty)
    else:
        side = _asks(head, instrument)
        if of.n_asks == cap and qty > 0 and not has_level(side, of.n_asks, -1, px):
            head.forgotten += 1
        of.n_asks = set_level(side, cap, of.n_asks, -1, px, qty)


@kernel(inline=True)
def _end_message(head: Any, instrument: int, seq: int) -> None:
    """Take the message's sequence, retire a quote it has caught up with, and see whether the book came to cross."""
    of = _instrument_at(head.at + _BYTES * instrument)
    of.seq = seq
    if seq == 0 or seq >= of.quote_seq:
        of.quoted = 0
    gap = -1
    if of.n_bids > 0 and of.n_asks > 0:
        bid = load(_bids(head, instrument) + 16 * (of.n_bids - 1))
        ask = load(_asks(head, instrument) + 16 * (of.n_asks - 1))
        gap = 1 if bid > ask else (0 if bid == ask else -1)
    if gap == 0 and of.gap != 0:
        head.locked += 1
    elif gap > 0 and of.gap <= 0:
        head.crossed += 1
    of.gap = gap


@kernel(inline=True)
def _quote(head: Any, instrument: int, flags: int, px: int, qty: int, seq: int) -> None:
    of = _instrument_at(head.at + _BYTES * instrument)
    if seq != 0 and (seq <= of.seq or seq < of.quote_seq):
        return
    if of.quoted == 0:  # the other side may not come: start from the levels' own touch
        of.quoted = 1
        of.quote_bid_px = of.quote_ask_px = _NO_PX
        of.quote_bid_qty = of.quote_ask_qty = 0
        if of.n_bids > 0:
            of.quote_bid_px = load(_bids(head, instrument) + 16 * (of.n_bids - 1))
            of.quote_bid_qty = load(_bids(head, instrument) + 16 * (of.n_bids - 1) + 8)
        if of.n_asks > 0:
            of.quote_ask_px = load(_asks(head, instrument) + 16 * (of.n_asks - 1))
            of.quote_ask_qty = load(_asks(head, instrument) + 16 * (of.n_asks - 1) + 8)
    of.quote_seq = seq
    if flags & 1:
        of.quote_bid_px = px if qty > 0 else _NO_PX
        of.quote_bid_qty = qty
    else:
        of.quote_ask_px = px if qty > 0 else _NO_PX
        of.quote_ask_qty = qty


@kernel(inline=True)
def _clear(head: Any, instrument: int) -> None:
    of = _instrument_at(head.at + _BYTES * instrument)
    of.n_bids = 0
    of.n_asks = 0
    of.seq = 0
    of.gap = -1
    of.quoted = 0
    of.quote_seq = 0


@kernel(inline=True)
def _apply(book: int, at: int) -> bool:
    """Apply the row at an address; False if its instrument is not in the table yet."""
    head = _head_at(book)
    row = _row_at(at)
    kind = row.kind
    if kind < _LEVEL or kind > _BOOK_STATE or not (kind <= _CLEAR or kind == _BOOK_STATE):
        return True
    instrument = _int(row.instrument)
    if instrument >= head.instruments:
        if instrument < head.instruments_max:
            return False
        head.foreign += 1
        return True
    if kind == _CLEAR:
        _clear(head, instrument)
        return True
    if kind == _BOOK_STATE:
        _instrument_at(head.at + _BYTES * instrument).state = _int(row.code)
        return True
    flags, px, qty = _int(row.flags), row.px, row.qty
    side = flags & 3
    if side == 0 or side == 3 or qty < 0 or not (_NO_PX < px < -_NO_PX or (kind == _QUOTE and qty == 0)):
        head.bad += 1
    elif kind == _LEVEL:
        _set(head, instrument, flags, px, qty)
    else:
        _quote(head, instrument, flags, px, qty, _int(row.a))
    if kind == _LEVEL and flags & _LAST:
        _end_message(head, instrument, _int(row.a))
    return True


@kernel()
def apply_levels(book: int, rows: int, n: int) -> int:
    """Return how many of `n` rows were applied: fewer when the next one's instrument is not in the table.

    Parameters
    ----------
    book : int64
        Address of an `L2_HEAD`.
    rows : int64
        Address of `n` rows of dtype ROW, all instruments mixed.
    n : int64
        How many.
    """
    for i in range(n):
        if not _apply(book, rows + 64 * i):
            return i
    return n


@kernel(inline=True)
def _copy_side(side: int, n: int, depth: int, out: int) -> None:
    for k in range(depth):
        at = out + 24 * k
        if k < n:
            store(at, load(side + 16 * (n - 1 - k)))
            store(at + 8, load(side + 16 * (n - 1 - k) + 8))
        else:
            store(at, _NO_PX)
            store(at + 8, 0)
        store(at + 16, 0)


@kernel()
def trace_levels(book: int, rows: int, first: int, n: int, depth: int, ends: int, out: int) -> int:
    """Apply rows from `first` on, and copy the book at the end of each message that changed one; return the first left.

    Parameters
    ----------
    book, rows, n : int64
        As in `apply_levels`.
    depth : int64
        Levels a side to copy.
    ends : int64
        Address of ``n + 1`` int64: how many messages have ended, then the index of the row that ended each.
    out : int64
        Address of int64 of shape (n, 2, depth, 3): per message and side ``px, qty, 0``, best first; no level is
        NO_PX, 0.
    """
    head, changed = _head_at(book), False
    for i in range(first, n):
        if not _apply(book, rows + 64 * i):
            return i
        row = _row_at(rows + 64 * i)
        kind, instrument = row.kind, _int(row.instrument)
        changed = changed or kind == _LEVEL or kind == _CLEAR
        if not changed or (row.flags & _LAST) == 0 or instrument >= head.instruments:
            continue
        changed = False
        k = load(ends)
        store(ends, k + 1)
        store(ends + 8 + 8 * k, i)
        of = _instrument_at(head.at + _BYTES * instrument)
        _copy_side(_bids(head, instrument), of.n_bids, depth, out + 48 * depth * k)
        _copy_side(_asks(head, instrument), of.n_asks, depth, out + 48 * depth * k + 24 * depth)
    return n


class LevelTables:
    """The memory of the market-by-price books of one feed; instruments are added as they appear.

    Parameters
    ----------
    levels : int
        Levels a side that a book knows, 1 to 2**20: 32 bytes each and instrument.
    max_instruments : int
        Instruments are numbered below this, 1 to 2**24; rows of others are counted as ``foreign``.

    Raises
    ------
    ConfigError
        If a size is out of range.
    """

    def __init__(self, levels: int, max_instruments: int) -> None:
        for name, value, most in (("levels", levels, 1 << 20), ("max_instruments", max_instruments, 1 << 24)):
            if not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}; expected 1 to {most}")
        self._head = np.zeros(1, L2_HEAD)
        self.address = address_of(self._head)
        self.head = self._head[0]
        self.head["level_cap"], self.head["instruments_max"] = levels, max_instruments
        self.instruments = np.zeros(0, L2_INSTRUMENT)
        self.levels: npt.NDArray[np.int64] = np.zeros((0, 2, levels, 2), np.int64)
        self._make(1)

    def apply(self, rows: int, n: int) -> None:
        """Apply the `n` rows at address `rows`."""
        done = int(apply_levels(self.address, rows, n))
        while done < n:
            self._make(2 * len(self.instruments))
            done += int(apply_levels(self.address, rows + ROW.itemsize * done, n - done))

    def trace(self, rows: int, n: int, depth: int, ends: int, out: int) -> None:
        """Apply the `n` rows at address `rows`, copying books as `trace_levels` says."""
        done = int(trace_levels(self.address, rows, 0, n, depth, ends, out))
        while done < n:
            self._make(2 * len(self.instruments))
            done = int(trace_levels(self.address, rows, done, n, depth, ends, out))

    def _make(self, wanted: int) -> None:
        n = min(wanted, int(self.head["instruments_max"]))
        instruments = np.zeros(n, L2_INSTRUMENT)
        instruments["gap"] = -1
        levels = np.zeros((n, *self.levels.shape[1:]), np.int64)
        for k, of in enumerate(self.instruments):  # only what is in use: the rest of the memory is never touched
            for side, used in enumerate((of["n_bids"], of["n_asks"])):
                levels[k, side, :used] = self.levels[k, side, :used]
        instruments[: len(self.instruments)] = self.instruments
        self.instruments, self.levels = instruments, levels
        self.head["instruments"] = n
        self.head["at"], self.head["levels"] = address_of(instruments), address_of(levels)
