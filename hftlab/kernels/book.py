"""Level-2 book: one sorted array a side, best level last.

Nearly all updates fall within a few dozen levels of the touch, while the far levels of a real book spread over millions
of ticks (a recorded BTCUSDT book: 18 million), so a dense ladder wastes memory and a hash map loses the order that
every reader wants. A sorted array with the best level at its *end* makes the common insert and delete move a few
hundred bytes at most, gives the touch at a known place, depth by walking backwards, and memory bounded by
`levels.shape[0]`.

Worst case, accepted: an insert far from the touch moves up to the whole side (5,000 levels: some 2 us). When a side is
full, the level farthest from the touch is forgotten and the caller counts it: a bounded book knows its best
``capacity`` levels, not all.

A side is ``capacity`` pairs of int64 (price in ticks, quantity in lots), 16 bytes each, at an address, ascending in
``sign * px`` with sign +1 for bids and -1 for asks. Only its first ``n`` pairs are in use. Addresses, because kernels
without the runtime cannot return arrays, and one integer is cheaper to pass than seven.
"""

from __future__ import annotations

from hftlab.kernels.jit import kernel, load, store

__all__ = ["has_level", "level_insertion", "set_level", "set_level_at"]


@kernel(inline=True)
def level_insertion(side: int, n: int, sign: int, px: int) -> int:
    """Return the first index in [0, n] whose level is not worse than `px`: the level's own place, or where it belongs.

    Looks at the last 8 levels one by one, since most updates are there, then halves.
    """
    key = sign * px
    low = max(0, n - 8)
    if low > 0 and sign * load(side + 16 * (low - 1)) >= key:
        high = low
        low = 0
        while low < high:
            middle = (low + high) >> 1
            if sign * load(side + 16 * middle) < key:
                low = middle + 1
            else:
                high = middle
        return low
    while low < n and sign * load(side + 16 * low) < key:
        low += 1
    return low


@kernel(inline=True)
def has_level(side: int, n: int, sign: int, px: int) -> bool:
    """Return whether the side holds a level at `px`."""
    at = level_insertion(side, n, sign, px)
    return at < n and load(side + 16 * at) == px


@kernel(inline=True)
def set_level(side: int, capacity: int, n: int, sign: int, px: int, qty: int) -> int:
    """Set the quantity at `px` and return the new number of levels; quantity 0 removes the level.

    Parameters
    ----------
    side : int64
        Address of the side, `capacity` pairs long.
    n : int64
        Levels in use.
    sign : int64
        +1 bids, -1 asks.
    px, qty : int64
        Ticks; lots >= 0. Removing a level that is not there changes nothing (venues send such deltas).

    Returns
    -------
    int64
        Levels in use afterwards. When the side was full and a new level came, the result is still ``capacity``: the
        worst level, which may be the new one, was forgotten. Ask `has_level` before, to count that.
    """
    at = level_insertion(side, n, sign, px)
    if at < n and load(side + 16 * at) == px:
        if qty > 0:
            store(side + 16 * at + 8, qty)
            return n
        for k in range(at, n - 1):
            store(side + 16 * k, load(side + 16 * k + 16))
            store(side + 16 * k + 8, load(side + 16 * k + 24))
        return n - 1
    if qty <= 0:
        return n
    if n == capacity:
        if at == 0:
            return n
        for k in range(at - 1):
            store(side + 16 * k, load(side + 16 * k + 16))
            store(side + 16 * k + 8, load(side + 16 * k + 24))
        at -= 1
    else:
        for k in range(n, at, -1):
            store(side + 16 * k, load(side + 16 * k - 16))
            store(side + 16 * k + 8, load(side + 16 * k - 8))
        n += 1
    store(side + 16 * at, px)
    store(side + 16 * at + 8, qty)
    return n


@kernel("int64(int64, int64, int64, int64, int64, int64)")
def set_level_at(side: int, capacity: int, n: int, sign: int, px: int, qty: int) -> int:
    """`set_level` as a function of its own, for callers in Python."""
    return set_level(side, capacity, n, sign, px, qty)
