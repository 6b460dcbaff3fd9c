"""A book kept to a depth, and the CRC32 over the decimal text of its best levels.

Model. A venue (Kraken) proves with every message that our book is its book: it sends the CRC32 of one text, the ten
best asks, lowest first, then the ten best bids, highest first, each as price and quantity without point and leading
zeros. Building that text and running over its 300 bytes costs more than decoding the message did.

Why no text is built. A CRC is linear over GF(2): the CRC register after ``A + B`` is the register after ``A``, carried
over ``len(B)`` zero bytes, xor the CRC of ``B`` alone. So each level carries the CRC of its own text and its length,
computed once when it changes, straight from the integers: the digit that stands ``k`` characters before the end
contributes ``DIGIT[k][d]``, and digits come out of an integer last one first. Joining twenty levels is twenty times
four lookups: a 32-bit register is carried over a level of length ``L`` by one table a byte.

The text's precision. A venue writes trailing zeros, and its text is what counts: it may have more decimals than the
tick (recorded: tick 0.01, text ``354.15000000``) or fewer. So a level is set with the `zeros` to append to the digits
of its price and its quantity, less than 0 to leave some out; appending a zero is one more lookup. They belong to that
level alone: what one message wrote oddly is gone when its levels are.

Layout. Levels of one side lie worst to best in ``[low, high)`` of a fixed array, so a change near the touch moves few
of them and cutting off the worst is one increment. When an end of the array is reached the levels are moved back to its
middle, which the moves before have paid for.

Worst case accepted: a change in the middle of a deep book moves up to half of its levels. A side whose array is full,
or a level whose text is longer than `MAX_TEXT`, is refused, and the caller has to give up the book.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.kernels.jit import kernel

__all__ = [
    "ASKS",
    "BIDS",
    "CRC_TABLES",
    "MAX_TEXT",
    "STARTED",
    "book_words",
    "digest",
    "drop_worst",
    "level_count",
    "level_px",
    "level_qty",
    "reset_book",
    "set_level",
]

MAX_TEXT = 40
"""Characters of one level's text, price and quantity together."""
BIDS, ASKS = 0, 1
STARTED, DEPTH, PX_UNIT, QTY_UNIT, _SIZE = range(5)
"""Words of a book's head: whether it has begun, its depth, and the units that turn ticks and lots into digits."""
_LOW, _HIGH = 5, 7  # one word a side
_HEAD = 9
_PX, _QTY, _MARK, _LEVEL_WORDS = 0, 1, 2, 3
_BEST = 10
_INT64_MAX = 2**63 - 1
_SHIFTS = 10 * MAX_TEXT  # where the shift tables begin in CRC_TABLES


def _crc_tables() -> npt.NDArray[np.uint32]:
    """Return ``DIGIT[k][d]`` and after it ``SHIFT[length][byte of the register][value]``, flat."""
    step = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        step = np.where(step & 1, np.uint32(0xEDB88320) ^ (step >> np.uint32(1)), step >> np.uint32(1))

    def advance(register: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        moved: npt.NDArray[np.uint32] = (register >> np.uint32(8)) ^ step[register & np.uint32(0xFF)]
        return moved

    digits = [step[48:58]]
    shifts = [np.concatenate([np.arange(256, dtype=np.uint32) << np.uint32(8 * byte) for byte in range(4)])]
    for _ in range(MAX_TEXT):
        digits.append(advance(digits[-1]))
        shifts.append(advance(shifts[-1]))
    tables: npt.NDArray[np.uint32] = np.concatenate(digits[:MAX_TEXT] + shifts)
    return tables


CRC_TABLES = _crc_tables()
"""Tables for every function here that takes `tables`: 170 kB, of which a pair uses some 20."""


def book_words(depth: int) -> int:
    """Return the int64 words a book of `depth` levels a side takes: room for as much again within a message."""
    return _HEAD + 2 * _LEVEL_WORDS * (2 * depth + 512)


@kernel(inline=True)
def reset_book(books: Any, base: int, depth: int, px_unit: int, qty_unit: int) -> None:
    """Make the book at word `base` an empty one that has not begun."""
    size = 2 * depth + 512
    books[base + STARTED] = 0
    books[base + DEPTH] = depth
    books[base + PX_UNIT] = px_unit
    books[base + QTY_UNIT] = qty_unit
    books[base + _SIZE] = size
    for side in range(2):
        books[base + _LOW + side] = size // 2
        books[base + _HIGH + side] = size // 2


@kernel(inline=True)
def _levels_at(books: Any, base: int, side: int) -> int:
    return base + _HEAD + side * _LEVEL_WORDS * books[base + _SIZE]  # type: ignore[no-any-return]


@kernel(inline=True)
def level_count(books: Any, base: int, side: int) -> int:
    """Return how many levels a side has."""
    return books[base + _HIGH + side] - books[base + _LOW + side]  # type: ignore[no-any-return]


@kernel(inline=True)
def level_px(books: Any, base: int, side: int, rank: int) -> int:
    """Return the price, ticks, of the level at `rank`, 0 the best; the caller has checked that there is one."""
    at = books[base + _HIGH + side] - 1 - rank
    return books[_levels_at(books, base, side) + _LEVEL_WORDS * at + _PX]  # type: ignore[no-any-return]


@kernel(inline=True)
def level_qty(books: Any, base: int, side: int, rank: int) -> int:
    """Return the quantity, lots, of the level at `rank`, 0 the best; the caller has checked that there is one."""
    at = books[base + _HIGH + side] - 1 - rank
    return books[_levels_at(books, base, side) + _LEVEL_WORDS * at + _QTY]  # type: ignore[no-any-return]


@kernel(inline=True)
def _digits(tables: Any, mark: Any, k: Any, value: int, zeros: int) -> tuple[int, int]:
    """Add the text of `value` and its appended zeros, which end `k` characters before the end: CRC and the new `k`.

    The text of 0 is empty: all its zeros are leading ones. Zeros to leave out (`zeros` below 0) are there: the venue's
    text had none, and `value` is that text in units of more decimals.
    """
    if value == 0:
        return mark, k
    if k + zeros > MAX_TEXT:
        return 0, MAX_TEXT + 1
    for _ in range(zeros):
        mark ^= np.int64(tables[10 * k])
        k += 1
    rest = np.uint64(value)
    ten = np.uint64(10)
    for _ in range(-zeros):
        rest //= ten
    while rest != np.uint64(0):
        if k >= MAX_TEXT:
            return 0, MAX_TEXT + 1
        above = rest // ten
        mark ^= np.int64(tables[10 * k + np.int64(rest - above * ten)])
        k += 1
        rest = above
    return mark, k


@kernel(inline=True)
def _mark(books: Any, base: int, tables: Any, px: int, qty: int, px_zeros: int, qty_zeros: int) -> int:
    """Return CRC | length << 32 of a level's text; -1 if it is too long."""
    px_unit, qty_unit = books[base + PX_UNIT], books[base + QTY_UNIT]
    if px_unit != 1:
        if px > _INT64_MAX // px_unit:
            return -1
        px *= px_unit
    if qty_unit != 1:
        if qty > _INT64_MAX // qty_unit:
            return -1
        qty *= qty_unit
    mark, k = _digits(tables, 0, 0, qty, qty_zeros)
    if k > MAX_TEXT:
        return -1
    mark, k = _digits(tables, mark, k, px, px_zeros)
    if k > MAX_TEXT:
        return -1
    return mark | k << 32


@kernel(inline=True)
def _move(books: Any, levels: int, first: int, last: int, by: int) -> None:
    """Move the levels ``[first, last)`` by `by` places."""
    start, stop, shift = levels + _LEVEL_WORDS * first, levels + _LEVEL_WORDS * last, _LEVEL_WORDS * by
    if by > 0:
        for i in range(stop - 1, start - 1, -1):
            books[i + shift] = books[i]
    else:
        for i in range(start, stop):
            books[i + shift] = books[i]


@kernel()
def _recentre(books: Any, base: int, side: int) -> None:
    """Move a side's levels to the middle of its array."""
    low, high = books[base + _LOW + side], books[base + _HIGH + side]
    by = (books[base + _SIZE] - (high - low)) // 2 - low
    _move(books, _levels_at(books, base, side), low, high, by)
    books[base + _LOW + side] = low + by
    books[base + _HIGH + side] = high + by


@kernel(inline=True)
def _find(books: Any, levels: int, low: int, high: int, px: int, side: int) -> int:
    """Return the first place in ``[low, high)`` that holds `px` or a better price; `high` if none does."""
    near = high - 4
    while high > low and high > near:  # most changes are near the touch
        there = books[levels + _LEVEL_WORDS * (high - 1) + _PX]
        if there < px if side == BIDS else there > px:
            return high
        high -= 1
    while low < high:
        middle = (low + high) >> 1
        there = books[levels + _LEVEL_WORDS * middle + _PX]
        if there < px if side == BIDS else there > px:
            low = middle + 1
        else:
            high = middle
    return low


@kernel()
def set_level(
    books: Any, base: int, tables: Any, side: int, px: int, qty: int, px_zeros: int = 0, qty_zeros: int = 0
) -> bool:
    """Set the quantity at a price, 0 to remove it; return False if the level cannot be held.

    Parameters
    ----------
    books : int64 array
        Words of all books; `base` is where this one's begin.
    tables : uint32 array
        `CRC_TABLES`.
    side : int
        `BIDS` or `ASKS`.
    px, qty : int
        Ticks, and lots, 0 or more.
    px_zeros, qty_zeros : int
        How many zeros the venue's text has more than the digits of ticks and lots; below 0: has fewer.
    """
    levels = _levels_at(books, base, side)
    low, high = books[base + _LOW + side], books[base + _HIGH + side]
    at = _find(books, levels, low, high, px, side)
    found = at < high and books[levels + _LEVEL_WORDS * at + _PX] == px
    if qty == 0:
        if not found:
            return True
        if at - low < high - 1 - at:
            _move(books, levels, low, at, 1)
            books[base + _LOW + side] = low + 1
        else:
            _move(books, levels, at + 1, high, -1)
            books[base + _HIGH + side] = high - 1
        return True
    mark = _mark(books, base, tables, px, qty, px_zeros, qty_zeros)
    if mark < 0:
        return False
    if not found:
        size = books[base + _SIZE]
        if high - low >= size - 2:
            return False
        up = high - at <= at - low
        if (up and high == size) or (not up and low == 0):
            _recentre(books, base, side)
            at += books[base + _LOW + side] - low
            low, high = books[base + _LOW + side], books[base + _HIGH + side]
        if up:
            _move(books, levels, at, high, 1)
            books[base + _HIGH + side] = high + 1
        else:
            _move(books, levels, low, at, -1)
            books[base + _LOW + side] = low - 1
            at -= 1
    place = levels + _LEVEL_WORDS * at
    books[place + _PX] = px
    books[place + _QTY] = qty
    books[place + _MARK] = mark
    return True


@kernel(inline=True)
def drop_worst(books: Any, base: int, side: int) -> int:
    """Remove the worst level of a side that has one and return its price, ticks."""
    at = books[base + _LOW + side]
    books[base + _LOW + side] = at + 1
    return books[_levels_at(books, base, side) + _LEVEL_WORDS * at + _PX]  # type: ignore[no-any-return]


@kernel(inline=True)
def _join(books: Any, base: int, tables: Any, side: int, register: int) -> int:
    levels = _levels_at(books, base, side)
    high = books[base + _HIGH + side]
    low = max(books[base + _LOW + side], high - _BEST)
    at = high - 1
    while at >= low:
        mark = books[levels + _LEVEL_WORDS * at + _MARK]
        shift = _SHIFTS + 1024 * (mark >> 32)
        register = (
            np.int64(tables[shift + (register & 255)])
            ^ np.int64(tables[shift + 256 + (register >> 8 & 255)])
            ^ np.int64(tables[shift + 512 + (register >> 16 & 255)])
            ^ np.int64(tables[shift + 768 + (register >> 24)])
            ^ (mark & 0xFFFFFFFF)
        )
        at -= 1
    return register


@kernel()
def digest(books: Any, base: int, tables: Any) -> int:
    """Return the CRC32 over the ten best asks and the ten best bids of the book at word `base`.

    Examples
    --------
    >>> import zlib
    >>> books = np.zeros(book_words(10), np.int64)
    >>> reset_book(books, 0, 10, 1, 1)
    >>> _ = set_level(books, 0, CRC_TABLES, BIDS, 452835, 10000000), set_level(books, 0, CRC_TABLES, ASKS, 452852, 7)
    >>> digest(books, 0, CRC_TABLES) == zlib.crc32(b"4528527" + b"45283510000000")
    True
    """
    register = _join(books, base, tables, ASKS, 0xFFFFFFFF)
    return _join(books, base, tables, BIDS, register) ^ 0xFFFFFFFF
