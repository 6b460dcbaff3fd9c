"""Level-2 books for bulk updates: a window of prices at the touch, one cell a tick, and a sorted array behind it.

Model. A venue's 20-level delta sets, adds and removes levels some hundred ticks around the touch. In a sorted array
(`hftlab.kernels.book`) each addition and removal moves hundreds of levels, 50 ns and more. In a window of `span` cells,
one a tick, each is two stores, whatever it does: a quantity and a bit. The bits give the next best level after a
removal, and depth, 64 ticks a step. Levels behind the window, which in a recorded BTCUSDT book reach over 18 million
ticks, stay in a sorted array: bounded memory and no limit on prices.

A side works on *keys*, ``px`` for bids and ``-px`` for asks, so that higher is better on both. It keeps:

- near: levels with base <= key < base + span. The best level of all is near, or there is none;
- far: levels with key < base, ascending pairs (key, quantity), the best `far_cap` of them. What a full array forgets is
  counted.

A better price beyond the window moves the window, to three quarters of its span below that price; so does a touch that
has sunk into the lowest quarter while there are levels behind. Between two moves the touch travels a quarter of the
span or more, so moving costs nothing on average. Worst case accepted: prices that jump by the span each message, some
10 us each for 16,384 ticks; and an empty side of a wide gap, whose next best is found at 64 ticks a nanosecond.
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
from hftlab.kernels.book import has_level, move_bytes, set_level
from hftlab.kernels.jit import address_of, kernel, load, record_at, store

__all__ = ["LADDERS", "Ladders", "SIDE", "apply_rows", "copy_levels"]

_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types
def _words(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<i8") for name in names.split()])


SIDE = _words("base best far span cells bits far_at far_cap forgotten")
"""One side: lowest key of the window and the best key (base - 1: no level), number of far levels, cells of the window,
addresses of its quantities and bits, address and capacity of the far levels, and how many were forgotten."""

LADDERS = _words("ids places sides foreign bad")
"""The books of one feed: how many instrument ids there are, the address of each id's place (-1: none), the address of
two sides a place; rows of no instrument here, and LEVEL rows without a true side, price or quantity."""

_side_at = record_at(SIDE)
_ladders_at = record_at(LADDERS)
_SIDE_BYTES = SIDE.itemsize
_LEVEL, _CLEAR = int(Kind.LEVEL), int(Kind.CLEAR)
_NO_PX = NO_PX
_ID_MAX = 1 << 20
_I64 = ir.IntType(64)


@_intrinsic
def _leading_zeros(typingctx: Any, value: Any) -> Any:
    """Return how many of the highest bits of an int64 are 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen


@kernel(inline=True)
def _highest(side: Any, offset: int) -> int:
    """Return the offset of the best level at `offset` or below; -1 if there is none."""
    at = side.bits + 8 * (offset >> 6)
    bits = load(at) & ((2 << (offset & 63)) - 1)
    while bits == 0:
        at -= 8
        if at < side.bits:
            return -1
        bits = load(at)
    return int(((at - side.bits) << 3) + 63 - _leading_zeros(bits))


@kernel(inline=True)
def _put(side: Any, offset: int, qty: int) -> None:
    """Write a cell and its bit."""
    at = side.bits + 8 * (offset >> 6)
    place = offset & 63
    bits = load(at)
    has = 1 if qty > 0 else 0
    store(side.cells + 8 * offset, qty)
    store(at, (bits & ~(1 << place)) | (has << place))


@kernel(inline=True)
def _zero(at: int, words: int) -> None:
    for k in range(words):
        store(at + 8 * k, 0)


@kernel()
def _move(address: int, key: int) -> int:
    """Move the window so that `key` lies at three quarters of it, levels passing between near and far."""
    side = _side_at(address)
    span, base = side.span, side.base
    shift = (key - (span >> 2) * 3 - base) & -64
    side.base = base + shift
    if side.best < base:
        shift = 0  # no level is near: every cell is 0 already
    if shift > 0:
        gone = min(shift, span)
        offset = 0
        while offset < gone:
            if load(side.bits + 8 * (offset >> 6)) == 0:
                offset += 64
                continue
            qty = load(side.cells + 8 * offset)
            if qty > 0:
                if side.far == side.far_cap:
                    side.forgotten += 1
                side.far = set_level(side.far_at, side.far_cap, side.far, 1, base + offset, qty)
            offset += 1
        kept = span - gone
        move_bytes(side.cells, side.cells + 8 * gone, 8 * kept)
        move_bytes(side.bits, side.bits + (gone >> 3), kept >> 3)
        _zero(side.cells + 8 * kept, gone)
        _zero(side.bits + (kept >> 3), gone >> 6)
    elif shift < 0:
        new = min(-shift, span)
        kept = span - new
        move_bytes(side.cells + 8 * new, side.cells, 8 * kept)
        move_bytes(side.bits + (new >> 3), side.bits, kept >> 3)
        _zero(side.cells, new)
        _zero(side.bits, new >> 6)
    while side.far > 0 and load(side.far_at + 16 * (side.far - 1)) >= side.base:
        side.far -= 1
        pair = side.far_at + 16 * side.far
        _put(side, load(pair) - side.base, load(pair + 8))
    side.best = side.base + _highest(side, span - 1)
    return 0


@kernel()
def _lower(address: int) -> int:
    """Find the best level after the best was removed, and bring the window after it if it has sunk far."""
    side = _side_at(address)
    side.best = side.base + _highest(side, side.best - side.base)
    if side.far > 0 and side.best - side.base < side.span >> 2:
        _move(address, side.best if side.best >= side.base else load(side.far_at + 16 * (side.far - 1)))
    return 0


@kernel()
def _set_outside(address: int, key: int, qty: int) -> int:
    """Set a level that is not in the window."""
    side = _side_at(address)
    if key >= side.base + side.span or side.best < side.base:
        if qty > 0:
            _move(address, key)
            _put(side, key - side.base, qty)
            side.best = max(side.best, key)
        return 0
    if side.far == side.far_cap and qty > 0 and not has_level(side.far_at, side.far, 1, key):
        side.forgotten += 1
    side.far = set_level(side.far_at, side.far_cap, side.far, 1, key, qty)
    return 0


@kernel(inline=True)
def _set(address: int, key: int, qty: int) -> None:
    """Set the quantity at a key; 0 removes."""
    side = _side_at(address)
    offset = key - side.base
    if offset < 0 or offset >= side.span:
        _set_outside(address, key, qty)
        return
    _put(side, offset, qty)
    if qty > 0:
        if key > side.best:
            side.best = key
    elif key == side.best:
        _lower(address)


@kernel(inline=True)
def _clear(address: int) -> None:
    side = _side_at(address)
    if side.best >= side.base:
        _zero(side.cells, side.span)
        _zero(side.bits, side.span >> 6)
    side.far = 0
    side.best = side.base - 1


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
            known, sides = instrument, head.sides + 2 * _SIDE_BYTES * place
        if kind == _CLEAR:
            _clear(sides)
            _clear(sides + _SIDE_BYTES)
            continue
        side = (where >> 32) & 3
        px, qty = load(row + 32), load(row + 40)
        if side == 0 or side == 3 or qty < 0 or px <= _NO_PX or px >= -_NO_PX:
            head.bad += 1
        else:
            ask = side >> 1
            _set(sides + _SIDE_BYTES * ask, px if ask == 0 else -px, qty)
    return n


@kernel()
def copy_levels(address: int, sign: int, depth: int, out: int) -> int:
    """Copy the best `depth` levels of a side as pairs (price, quantity), best first; return how many there were."""
    side = _side_at(address)
    n = 0
    key = side.best
    while n < depth and key >= side.base:
        offset = _highest(side, key - side.base)
        if offset < 0:
            break
        key = side.base + offset
        store(out + 16 * n, sign * key)
        store(out + 16 * n + 8, load(side.cells + 8 * offset))
        key -= 1
        n += 1
    far = side.far
    while n < depth and far > 0:
        far -= 1
        store(out + 16 * n, sign * load(side.far_at + 16 * far))
        store(out + 16 * n + 8, load(side.far_at + 16 * far + 8))
        n += 1
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
        self._cells: npt.NDArray[np.int64] = np.zeros((n, 2, span), np.int64)
        self._bits: npt.NDArray[np.int64] = np.zeros((n, 2, span // 64), np.int64)
        self._far: npt.NDArray[np.int64] = np.zeros((n, 2, far_levels, 2), np.int64)
        self.sides = np.zeros((n, 2), SIDE)
        self.sides["best"], self.sides["span"], self.sides["far_cap"] = -1, span, far_levels
        for name, array in (("cells", self._cells), ("bits", self._bits), ("far_at", self._far)):
            step = array.strides[1]
            self.sides[name] = address_of(array) + step * np.arange(2 * n).reshape(n, 2)
        self._head = np.zeros(1, LADDERS)
        self._head["ids"] = len(self._places)
        self._head["places"], self._head["sides"] = address_of(self._places), address_of(self.sides)
        self.address = address_of(self._head)

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
        return int(self.sides["forgotten"].sum())

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
        place = int(self._places[instrument])
        found = []
        for k, sign in ((0, 1), (1, -1)):
            side = self.sides[place, k]
            out = np.zeros((min(n, int(side["span"] + side["far"])), 2), np.int64)
            address = address_of(self.sides) + _SIDE_BYTES * (2 * place + k)
            found.append(out[: copy_levels(address, sign, len(out), address_of(out))])
        return found[0], found[1]
