"""Level-2 books at memory's pace: a window of prices at the touch, one cell a tick, and a sorted array behind it.

Model. A venue's 20-level delta sets, adds and removes levels some hundred ticks around the touch. In a sorted array
(`hftlab.kernels.book`) each addition and removal moves hundreds of levels, 50 ns and more. In a window of `span` cells,
one a tick, each is two stores, whatever it does: a quantity and a bit. The bits give the next best level after a
removal, and the k-th level by counting them, 64 ticks a step. Levels behind the window, which in a recorded BTCUSDT
book reach over 18 million ticks, stay in a sorted array: bounded memory and no limit on prices.

A side works on *keys*, ``px`` for bids and ``-px`` for asks, so that higher is better on both. It keeps:

- near: levels with base <= key < base + span, in a ring: a key's cell is ``key mod span``, so nothing moves when the
  window does. A cell counts only while its bit is set. The best level of all is near, or there is none;
- far: levels with key < base, ascending pairs (key, quantity), the best `far_cap` of them. What a full array forgets is
  counted: a side knows at least its best `far_cap` levels.

A better price beyond the window moves the window, to three quarters of its span below that price; so does a touch that
has sunk into the lowest quarter while there are levels behind. Between two moves the touch travels a quarter of the
span or more; a move looks at the bits it passes and at the levels that change sides. An empty side has its window
beyond all prices, so the first level to come places it, whatever was before. Which levels a side holds never depends on
where its window stood, until one was forgotten.

How wide: on a recorded day of BTCUSDT (ticks of 0.01 at 60,000) 90 % of what is set lies within 16,384 ticks of the
touch and 95 % within 131,072, and a row costs its engine 20 and 10 ns. Cells without levels are memory only on paper:
their pages are never touched.

Worst cases accepted: levels of a wide window that all pass to and fro, some 5 ns each; the next best of an otherwise
empty window, found at 64 ticks a step (131,072 ticks: 1 us); and a level set far behind the touch among thousands of
others there, which moves them (5,000 levels: some 2 us).

A side is one block of memory that holds no address: `SIDE`, the bits, the cells, the far levels. It can be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, Kind, RowArray
from hftlab.kernels.book import has_level, level_insertion, move_bytes, set_level
from hftlab.kernels.jit import address_of, copy_bytes, kernel, load, record_at, store

__all__ = [
    "LADDERS",
    "Ladders",
    "SIDE",
    "apply_rows",
    "best_px",
    "best_qty",
    "clear_side",
    "copy_levels",
    "copy_side",
    "count_levels",
    "has_best",
    "key_qty",
    "lay_side",
    "level_px",
    "level_qty",
    "set_key",
    "side_bytes",
    "side_levels",
]

_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types


def _words(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<i8") for name in names.split()])


SIDE = _words("base best far span far_cap cells far_at forgotten")
"""Head of a side: lowest key of the window and the best key (base - 1: no level), number of far levels, cells of the
window, far levels at most, where cells and far levels begin behind this head's address, and how many were forgotten.
The bits follow the head."""

LADDERS = _words("ids places sides side_bytes foreign bad")
"""The books of one feed: how many instrument ids there are, the address of each id's place (-1: none), the address of
the first side and the bytes of one, two sides a place; rows of no instrument here, and LEVEL rows without a true side,
price or quantity."""

_side_at = record_at(SIDE)
_ladders_at = record_at(LADDERS)
_HEAD_BYTES = SIDE.itemsize
_LEVEL, _CLEAR = int(Kind.LEVEL), int(Kind.CLEAR)
_NO_PX = NO_PX
_BEYOND = 2**62
"""Base of an empty side's window, and a bound that every key is below."""
_ID_MAX = 1 << 20
_I64 = ir.IntType(64)


@_intrinsic
def _leading_zeros(typingctx: Any, value: Any) -> Any:
    """Return how many of the highest bits of an int64 are 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


@_intrinsic
def _trailing_zeros(typingctx: Any, value: Any) -> Any:
    """Return how many of the lowest bits of an int64 are 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


@_intrinsic
def _ones(typingctx: Any, value: Any) -> Any:
    """Return how many bits of an int64 are 1."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), codegen


# --- the window


@kernel(inline=True)
def _cell(address: int, key: int) -> int:
    """Return the address of a near key's cell."""
    side = _side_at(address)
    return int(address + side.cells + ((key & (side.span - 1)) << 3))


@kernel(inline=True)
def _word(address: int, key: int) -> int:
    """Return the address of the 64 bits among which a near key's is."""
    return int(address + _HEAD_BYTES + (((key & (_side_at(address).span - 1)) >> 6) << 3))


@kernel(inline=True)
def _put(address: int, key: int, qty: int) -> None:
    """Write a near key's cell and bit."""
    at = _word(address, key)
    place = key & 63
    has = 1 if qty > 0 else 0
    store(_cell(address, key), qty)
    store(at, (load(at) & ~(1 << place)) | (has << place))


@kernel(inline=True)
def _highest(address: int, key: int) -> int:
    """Return the best near level at `key` or below; base - 1 if there is none."""
    base = _side_at(address).base
    bits = load(_word(address, key)) & ((2 << (key & 63)) - 1)
    key &= -64
    while bits == 0:
        key -= 64
        if key < base:
            return int(base - 1)
        bits = load(_word(address, key))
    return int(key + 63 - _leading_zeros(bits))


@kernel(inline=True)
def _count_near(address: int, below: int) -> int:
    """Return the number of near levels in words of bits that begin below `below`."""
    n = 0
    key = _side_at(address).base
    while key < below:
        n += _ones(load(_word(address, key)))
        key += 64
    return int(n)


@kernel(inline=True)
def _forget(address: int, n: int) -> None:
    """Forget the `n` worst far levels."""
    side = _side_at(address)
    at = address + side.far_at
    side.far -= n
    side.forgotten += n
    move_bytes(at, at + 16 * n, 16 * side.far)


@kernel(inline=True)
def _send_back(address: int, below: int) -> None:
    """Lay the near levels below `below`, where a word of bits begins, behind the far ones."""
    side = _side_at(address)
    excess = side.far + _count_near(address, below) - side.far_cap
    if excess > 0:
        gone = min(excess, side.far)
        _forget(address, gone)
        excess -= gone
    key = side.base
    while key < below:
        at = _word(address, key)
        bits = load(at)
        store(at, 0)
        while bits != 0:
            of = key + _trailing_zeros(bits)
            bits &= bits - 1
            if excess > 0:
                excess -= 1
                side.forgotten += 1
                continue
            pair = address + side.far_at + 16 * side.far
            store(pair, of)
            store(pair + 8, load(_cell(address, of)))
            side.far += 1
        key += 64


@kernel()
def _move(address: int, key: int) -> int:
    """Move the window so that `key`, which is the best level or becomes it, lies at three quarters of it."""
    side = _side_at(address)
    base = (key - (side.span >> 2) * 3) & -64
    if base > side.base:
        _send_back(address, min(base, (side.best | 63) + 1))
    side.base = base
    while side.far > 0 and load(address + side.far_at + 16 * (side.far - 1)) >= base:
        side.far -= 1
        pair = address + side.far_at + 16 * side.far
        _put(address, load(pair), load(pair + 8))
    side.best = key
    return 0


@kernel()
def _lower(address: int) -> int:
    """Find the best level after the best was removed, and bring the window after it if it has sunk far."""
    side = _side_at(address)
    best = _highest(address, side.best)
    side.best = best
    if side.far > 0:
        if best < side.base:
            _move(address, load(address + side.far_at + 16 * (side.far - 1)))
        elif best - side.base < side.span >> 2:
            _move(address, best)
    elif best < side.base:
        side.base = _BEYOND
        side.best = _BEYOND - 1
    return 0


@kernel()
def _set_outside(address: int, key: int, qty: int) -> int:
    """Set a level that is not in the window."""
    side = _side_at(address)
    if key <= -_BEYOND or key >= _BEYOND:
        if qty > 0:
            side.forgotten += 1
    elif key >= side.base or side.best < side.base:
        if qty > 0:
            _move(address, key)
            _put(address, key, qty)
    else:
        far_at = address + side.far_at
        if side.far == side.far_cap and qty > 0 and not has_level(far_at, side.far, 1, key):
            side.forgotten += 1
        side.far = set_level(far_at, side.far_cap, side.far, 1, key, qty)
    return 0


# --- a side


@kernel(inline=True)
def set_key(address: int, key: int, qty: int) -> None:
    """Set the quantity at a key of the side at `address`; 0 or less removes the level.

    A key of 2**62 or more, either way, is no price: such a level is forgotten at once.
    """
    side = _side_at(address)
    offset = key - side.base
    if offset < 0 or offset >= side.span or key <= -_BEYOND or key >= _BEYOND:
        _set_outside(address, key, qty)
        return
    _put(address, key, qty)
    if key >= side.best:
        if qty > 0:
            side.best = key
        elif key == side.best:
            _lower(address)


@kernel(inline=True)
def clear_side(address: int) -> None:
    """Remove all levels of the side at `address`."""
    side = _side_at(address)
    key = side.base
    while key <= side.best:
        store(_word(address, key), 0)
        key += 64
    side.far = 0
    side.base = _BEYOND
    side.best = _BEYOND - 1


@kernel(inline=True)
def has_best(address: int) -> bool:
    """Return whether the side at `address` has a level."""
    side = _side_at(address)
    return bool(side.best >= side.base)


@kernel(inline=True)
def best_px(address: int, sign: int) -> int:
    """Return the best price in ticks of the side at `address`, `sign` +1 for bids and -1 for asks; NO_PX if none."""
    return int(sign * _side_at(address).best) if has_best(address) else _NO_PX


@kernel(inline=True)
def best_qty(address: int) -> int:
    """Return the lots at the best price of the side at `address`; 0 if none."""
    return int(load(_cell(address, _side_at(address).best))) if has_best(address) else 0


@kernel(inline=True)
def _level_key(address: int, level: int) -> int:
    """Return the key of level `level`, 0 the best; 2**62 if there are fewer. Whole words are passed by their counts."""
    side = _side_at(address)
    key = side.best & -64
    while key >= side.base:
        bits = load(_word(address, key))
        n = _ones(bits)
        if level < n:
            for _ in range(level):
                bits ^= 1 << (63 - _leading_zeros(bits))
            return int(key + 63 - _leading_zeros(bits))
        level -= n
        key -= 64
    return int(load(address + side.far_at + 16 * (side.far - 1 - level))) if level < side.far else _BEYOND


@kernel(inline=True)
def level_px(address: int, sign: int, level: int) -> int:
    """Return the price of level `level`, 0 the best, of the side at `address`; NO_PX if there are fewer."""
    key = _level_key(address, level)
    return sign * key if key != _BEYOND else _NO_PX


@kernel(inline=True)
def level_qty(address: int, level: int) -> int:
    """Return the lots of level `level`, 0 the best, of the side at `address`; 0 if there are fewer."""
    side = _side_at(address)
    key = _level_key(address, level)
    if key == _BEYOND:
        return 0
    if key >= side.base:
        return int(load(_cell(address, key)))
    far_at = address + side.far_at
    return int(load(far_at + 16 * level_insertion(far_at, side.far, 1, key) + 8))


@kernel(inline=True)
def key_qty(address: int, key: int) -> int:
    """Return the lots at a key of the side at `address`; 0 if there is no such level."""
    side = _side_at(address)
    offset = key - side.base
    if 0 <= offset < side.span:
        return int(load(_cell(address, key))) if load(_word(address, key)) >> (key & 63) & 1 else 0
    far_at = address + side.far_at
    if offset >= 0 or not has_level(far_at, side.far, 1, key):
        return 0
    return int(load(far_at + 16 * level_insertion(far_at, side.far, 1, key) + 8))


@kernel("int64(int64)")
def count_levels(address: int) -> int:
    """Return the number of levels of the side at `address`."""
    side = _side_at(address)
    return int(side.far + _count_near(address, side.best + 1))


@kernel("int64(int64, int64, int64, int64)")
def copy_levels(address: int, sign: int, depth: int, out: int) -> int:
    """Copy the best `depth` levels of a side as pairs (price, quantity), best first; return how many there were."""
    side = _side_at(address)
    n = 0
    key = side.best & -64
    while n < depth and key >= side.base:
        bits = load(_word(address, key))
        while bits != 0 and n < depth:
            place = 63 - _leading_zeros(bits)
            bits ^= 1 << place
            store(out + 16 * n, sign * (key + place))
            store(out + 16 * n + 8, load(_cell(address, key + place)))
            n += 1
        key -= 64
    far = side.far
    while n < depth and far > 0:
        far -= 1
        pair = address + side.far_at + 16 * far
        store(out + 16 * n, sign * load(pair))
        store(out + 16 * n + 8, load(pair + 8))
        n += 1
    return int(n)


@kernel("int64(int64, int64)")
def copy_side(destination: int, source: int) -> int:
    """Copy the side at `source` to zeroed memory, or to memory of an earlier copy: its levels, not the room between."""
    side = _side_at(source)
    copy_bytes(destination, source, side.cells)
    key = side.base
    while key <= side.best:
        if load(_word(source, key)) != 0:
            cells = _cell(source, key)
            copy_bytes(destination + cells - source, cells, 512)
        key += 64
    copy_bytes(destination + side.far_at, source + side.far_at, 16 * side.far)
    return 0


def side_bytes(span: int, far_levels: int) -> int:
    """Return the bytes of a side: a window of `span` ticks, a power of two from 256, and `far_levels` levels behind."""
    return -(-(_HEAD_BYTES + span // 8 + 8 * span + 16 * far_levels) // 64) * 64


def lay_side(memory: npt.NDArray[np.uint8], span: int, far_levels: int) -> None:
    """Make zeroed memory, `side_bytes` long, an empty side."""
    head = memory[:_HEAD_BYTES].view(SIDE)
    head["base"], head["best"] = _BEYOND, _BEYOND - 1
    head["span"], head["far_cap"] = span, far_levels
    head["cells"] = _HEAD_BYTES + span // 8
    head["far_at"] = head["cells"] + 8 * span


def side_levels(address: int, sign: int, limit: int) -> npt.NDArray[np.int64]:
    """Return the best `limit` levels of the side at `address`, shape (levels, 2): ticks and lots, best first."""
    out = np.empty((min(limit, count_levels(address)), 2), np.int64)
    copy_levels(address, sign, len(out), address_of(out))
    return out


# --- the books of a feed


@kernel()
def apply_rows(ladders: int, rows: int, n: int) -> int:
    """Apply the LEVEL and CLEAR rows among `n` rows; return `n`.

    Parameters
    ----------
    ladders : int64
        Address of a `LADDERS`.
    rows : int64
        Address of the rows, all instruments mixed.
    n : int64
        How many.
    """
    head = _ladders_at(ladders)
    known, sides = -1, 0
    for row in range(rows, rows + 64 * n, 64):
        kind = (load(row) >> 48) & 0xFF
        if kind != _LEVEL and kind != _CLEAR:
            continue
        where = load(row + 24)
        instrument = where & 0xFFFFFFFF
        if instrument != known:
            place = load(head.places + 8 * instrument) if instrument < head.ids else -1
            if place < 0:
                head.foreign += 1
                continue
            known, sides = instrument, head.sides + 2 * head.side_bytes * place
        if kind == _CLEAR:
            clear_side(sides)
            clear_side(sides + head.side_bytes)
            continue
        side = (where >> 32) & 3
        px, qty = load(row + 32), load(row + 40)
        if side == 0 or side == 3 or qty < 0 or px <= _NO_PX or px >= -_NO_PX:
            head.bad += 1
        else:
            ask = side >> 1
            set_key(sides + head.side_bytes * ask, px if ask == 0 else -px, qty)
    return n


class Ladders:
    """Books of a feed's instruments by price, made for decoding straight into them.

    Parameters
    ----------
    instruments : sequence of Instrument
        Whose books; rows of others are counted as `foreign`.
    span : int
        Ticks of the window at the touch, a power of two from 256 to 2**24: 8 bytes each, side and instrument.
    far_levels : int
        Levels kept behind the window: 16 bytes each, side and instrument.

    Raises
    ------
    ConfigError
        If a size is out of range, an id is above 2**20, or two instruments share one.

    Examples
    --------
    >>> from decimal import Decimal
    >>> from hftlab.core.rows import Flag, Kind, new_rows
    >>> books = Ladders([Instrument(0, "v", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"))])
    >>> rows = new_rows(2)
    >>> rows["kind"], rows["flags"], rows["px"], rows["qty"] = Kind.LEVEL, [Flag.BID, Flag.ASK], [99, 101], [5, 7]
    >>> books.apply(rows)
    >>> [side.tolist() for side in books.depth(0, 5)]
    [[[99, 5]], [[101, 7]]]
    """

    def __init__(self, instruments: Sequence[Instrument], *, span: int = 16384, far_levels: int = 4096) -> None:
        if not 256 <= span <= 1 << 24 or span & (span - 1):
            raise ConfigError(f"span={span}; expected a power of two from 256 to 2**24")
        if not 1 <= far_levels <= 1 << 20:
            raise ConfigError(f"far_levels={far_levels}; expected 1 to 2**20")
        ids = [i.id for i in instruments]
        if len(set(ids)) != len(ids) or not all(0 <= i < _ID_MAX for i in ids):
            raise ConfigError(f"instruments have ids {ids}; expected each once, 0 to {_ID_MAX - 1}")
        self.instruments = {i.id: i for i in instruments}
        n = len(ids)
        self._places = np.full(max(ids, default=-1) + 1, -1, np.int64)
        self._places[ids] = np.arange(n)
        self._sides = np.zeros((n, 2, side_bytes(span, far_levels)), np.uint8)
        for side in self._sides.reshape(2 * n, -1):
            lay_side(side, span, far_levels)
        self._head = np.zeros(1, LADDERS)
        self._head["ids"], self._head["places"] = len(self._places), address_of(self._places)
        self._head["sides"], self._head["side_bytes"] = address_of(self._sides), self._sides.strides[1]
        self.address = address_of(self._head)
        apply_rows(self.address, 0, 0)  # compile, or load from the cache, now and not at the first rows

    @property
    def foreign(self) -> int:
        """Rows of instruments that have no book here."""
        return int(self._head["foreign"][0])

    @property
    def bad(self) -> int:
        """LEVEL rows without a true side, price or quantity."""
        return int(self._head["bad"][0])

    @property
    def forgotten(self) -> int:
        """Levels that a full side forgot."""
        return int(self._sides[..., :_HEAD_BYTES].copy().view(SIDE)["forgotten"].sum())

    def apply(self, rows: RowArray) -> None:
        """Apply the LEVEL and CLEAR rows of a contiguous array."""
        apply_rows(self.address, address_of(rows), len(rows))

    def best(self, instrument: int) -> tuple[int, int, int, int] | None:
        """Return best bid and its lots, best ask and its lots; None while a side is empty."""
        bids, asks = self.depth(instrument, 1)
        if not len(bids) or not len(asks):
            return None
        return int(bids[0, 0]), int(bids[0, 1]), int(asks[0, 0]), int(asks[0, 1])

    def depth(self, instrument: int, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the best `n` bids and asks, each of shape (levels, 2): ticks and lots, best first.

        Raises
        ------
        ConfigError
            If there is no book of `instrument`.
        """
        if instrument not in self.instruments:
            raise ConfigError(f"instrument={instrument} has no book here; there are {sorted(self.instruments)}")
        bids = address_of(self._sides) + 2 * self._sides.strides[1] * int(self._places[instrument])
        return side_levels(bids, 1, n), side_levels(bids + self._sides.strides[1], -1, n)
