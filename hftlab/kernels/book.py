"""Level-2 book: one sorted array a side, best level last.

Nearly all updates fall within a few dozen levels of the touch, while the far levels of a real book spread over millions
of ticks (a recorded BTCUSDT book: 18 million), so a dense ladder wastes memory and a hash map loses the order that
every reader wants. A sorted array with the best level at its *end* makes the common insert and delete move a few
hundred bytes at most, gives the touch at a known place, depth by walking backwards, and memory bounded by
`levels.shape[0]`.

Worst case, accepted: an insert far from the touch moves up to the whole side (5,000 levels: some 2 us), and 20 levels
of a delta cost 0.7 us on a side of 600 levels, nearly all of it moving. The engine's book, `hftlab.kernels.ladder`,
takes a tenth of that, for memory at the touch; this is for many small sides and for what lies far behind. When a side
is full, the level farthest from the touch is forgotten and the caller counts it: a bounded book knows its best
``capacity`` levels, not all.

A side is ``capacity`` pairs of int64 (price in ticks, quantity in lots), 16 bytes each, at an address, ascending in
``sign * px`` with sign +1 for bids and -1 for asks. Only its first ``n`` pairs are in use. Addresses, because kernels
without the runtime cannot return arrays, and one integer is cheaper to pass than seven.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hftlab.kernels.jit import kernel, load, store

__all__ = ["has_level", "level_insertion", "move_bytes", "set_level", "set_level_at"]

_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types
@_intrinsic
def move_bytes(typingctx: Any, destination: Any, source: Any, size: Any) -> Any:
    """Copy `size` bytes between addresses that may overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        cgutils.raw_memmove(
            builder, builder.inttoptr(args[0], pointer), builder.inttoptr(args[1], pointer), args[2], 1
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@kernel(inline=True)
def level_insertion(side: int, n: int, sign: int, px: int) -> int:
    """Return the first index in [0, n] whose level is not worse than `px`: the level's own place, or where it belongs.

    Halves the side without a branch on a price: a difference's sign is a mask. Where the next level falls cannot be
    predicted, and a wrong guess costs more than all steps (80 ns against 15 on a side of 600 levels). Prices have to
    lie less than 2**63 apart.
    """
    key = sign * px
    at = side
    size = n
    while size > 1:
        half = size >> 1
        at += ((sign * load(at + 16 * half - 16) - key) >> 63) & (16 * half)
        size -= half
    if size == 1:
        at -= ((sign * load(at) - key) >> 63) * 16
    return (at - side) >> 4


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
        move_bytes(side + 16 * at, side + 16 * at + 16, 16 * (n - 1 - at))
        return n - 1
    if qty <= 0:
        return n
    if n == capacity:
        if at == 0:
            return n
        at -= 1
        move_bytes(side, side + 16, 16 * at)
    else:
        move_bytes(side + 16 * at + 16, side + 16 * at, 16 * (n - at))
        n += 1
    store(side + 16 * at, px)
    store(side + 16 * at + 8, qty)
    return n


@kernel("int64(int64, int64, int64, int64, int64, int64)")
def set_level_at(side: int, capacity: int, n: int, sign: int, px: int, qty: int) -> int:
    """`set_level` as a function of its own, for callers in Python."""
    return set_level(side, capacity, n, sign, px, qty)
