"""A ring of rows in shared memory: one producer, one consumer, no lock.

**Model.** A header of one page and a power of two of 64-byte rows. `head` counts the rows ever published, `tail` those
ever released; each has one writer and a cache line of its own. The producer copies rows in and stores `head` with
release; the consumer loads it with acquire, reads the rows where they lie and, when done with them, stores `tail` with
release. Each side keeps its last sight of the other's counter and looks again only when that says full or empty, so
that the line with a counter moves between the cores once a batch, not once a row.

**Promise.** A publication is all of its rows or none, and they lie in one piece: a message is never split. One that
does not fit before the end of the lap begins the next; unwritten rows (kind 0) fill the lap for the consumer to skip. A
publication ends where a message ends (``Flag.LAST`` on its last row that is not payload), so the consumer finds whole
messages without any frame around them. A full ring refuses: what happens then is its owner's policy, nothing is dropped
or overwritten here. A producer that is killed leaves what it had published, whole; the rest of its work was never
visible.

**Worst case accepted.** A publication takes up to twice its rows at the end of a lap, so one may hold half of the ring
at most.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hftlab.core.rows import CONT, Flag, Kind
from hftlab.kernels.jit import copy_bytes, kernel, load, load_acquire, store, store_release

__all__ = [
    "BLOCKED_AT", "CAPACITY_AT", "DATA_AT", "FLAG_AT", "HEAD_AT", "HEARTBEAT_AT", "NOT_WHOLE", "STATE_AT", "TAIL_AT",
    "TOO_LONG", "TURNS_A_LOOK", "next_rows", "publish", "publish_one", "relax", "release",
    "rows_address", "spin_past",
]  # fmt: skip

CAPACITY_AT = 8
HEAD_AT, _TAIL_SEEN_AT, BLOCKED_AT = 64, 72, 80
TAIL_AT, _HEAD_SEEN_AT = 128, 136
FLAG_AT = 192
"""Where the consumer says that it sleeps."""
HEARTBEAT_AT, STATE_AT = 256, 264
"""Where the producer says that it lives (ns) and what it does."""
DATA_AT = 4096
TOO_LONG, NOT_WHOLE = -1, -2
"""Why rows can never be published: more than half of the ring; they do not end a message."""
TURNS_A_LOOK = 1 << 16
"""Turns of `spin_past` in one call that returns to Python now and then: some hundred microseconds."""

_LAST_BIT = 32 + (int(Flag.LAST).bit_length() - 1)  # of the word at byte 24: instrument u4, flags u2, code u2
_UNWRITTEN = int(Kind.UNWRITTEN)


_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types


@_intrinsic
def relax(typingctx: Any) -> Any:
    """Tell the core that this is a waiting loop: its sibling gets the machine, and the loop ends sooner."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        module, nothing = builder.module, ir.VoidType()
        if platform.machine() in ("x86_64", "AMD64"):
            pause = cgutils.get_or_insert_function(module, ir.FunctionType(nothing, []), "llvm.x86.sse2.pause")
            builder.call(pause, [])
        elif platform.machine() in ("aarch64", "arm64"):
            word = ir.IntType(32)
            hint = cgutils.get_or_insert_function(module, ir.FunctionType(nothing, [word]), "llvm.aarch64.hint")
            builder.call(hint, [ir.Constant(word, 1)])
        return context.get_dummy_value()

    return types.void(), codegen


@kernel()
def rows_address(rows: Any) -> int:
    """Return the address of the first of `rows`, which are contiguous: 0.3 us, where NumPy's own answer takes 8 us.

    (NumPy describes a dtype with overlapping fields anew each time it is asked for an array's interface.)
    """
    return rows.ctypes.data  # type: ignore[no-any-return]


@kernel("int64(int64, int64, int64)")
def spin_past(word: int, value: int, turns: int) -> int:
    """Return whether the int64 at `word` has come above `value`; look `turns` times, without sleeping."""
    for _ in range(turns):
        if load_acquire(word) > value:
            return 1
        relax()
    return 0


@kernel(inline=True)
def _has_room(ring: int, head: int, rows: int, capacity: int) -> bool:
    if head + rows - load(ring + _TAIL_SEEN_AT) <= capacity:
        return True
    tail = load_acquire(ring + TAIL_AT)
    store(ring + _TAIL_SEEN_AT, tail)
    return head + rows - tail <= capacity  # type: ignore[no-any-return]  # an intrinsic


@kernel(inline=True)
def publish_one(ring: int, row: int) -> int:
    """Publish the row at address `row`, which is a message of its own; return 1, or 0 when the ring is full."""
    head = load(ring + HEAD_AT)
    capacity = load(ring + CAPACITY_AT)
    if not _has_room(ring, head, 1, capacity):
        return 0
    copy_bytes(ring + DATA_AT + 64 * (head & (capacity - 1)), row, 64)
    store_release(ring + HEAD_AT, head + 1)
    return 1


@kernel(inline=True)
def _ends_message(rows: int, n: int) -> bool:
    """Return whether a message ends with row `n` - 1: it, or the head whose payload it is, carries LAST."""
    head = n - 1
    while head > 0 and (load(rows + 64 * head) >> 48) & 0xFF == CONT:
        head -= 1
    span = (load(rows + 64 * head) >> 56) & 0xFF
    return head + 1 + span == n and (load(rows + 64 * head + 24) >> _LAST_BIT) & 1 != 0  # type: ignore[no-any-return]


@kernel("int64(int64, int64, int64)")
def publish(ring: int, rows: int, n: int) -> int:
    """Publish `n` rows, whole messages, in one piece; return `n`, or 0 when there is no room now.

    `TOO_LONG` and `NOT_WHOLE` are the caller's mistakes; nothing is published.
    """
    if n < 1 or not _ends_message(rows, n):
        return NOT_WHOLE
    head = load(ring + HEAD_AT)
    capacity = load(ring + CAPACITY_AT)
    if 2 * n > capacity:
        return TOO_LONG
    at = head & (capacity - 1)
    skipped = capacity - at if at + n > capacity else 0
    if not _has_room(ring, head, skipped + n, capacity):
        return 0
    if skipped > 0:
        for k in range(at, capacity):
            store(ring + DATA_AT + 64 * k, 0)  # seq, source, kind, span: an unwritten row
            store(ring + DATA_AT + 64 * k + 24, 0)  # and no LAST
        at = 0
    copy_bytes(ring + DATA_AT + 64 * at, rows, 64 * n)
    store_release(ring + HEAD_AT, head + skipped + n)
    return n


@kernel("int64(int64, int64)")
def next_rows(ring: int, most: int) -> int:
    """Return how many rows to read now, in one piece from `tail` on; 0 when the ring is empty.

    They end where a message ends (``Flag.LAST``): at most `most` rows, but never less than one message. A lap's
    leftover is skipped: `tail` may have moved when this returns.
    """
    tail = load(ring + TAIL_AT)
    head = load(ring + _HEAD_SEEN_AT)
    if head == tail:
        head = load_acquire(ring + HEAD_AT)
        store(ring + _HEAD_SEEN_AT, head)
        if head == tail:
            return 0
    capacity = load(ring + CAPACITY_AT)
    at = tail & (capacity - 1)
    if (load(ring + DATA_AT + 64 * at) >> 48) & 0xFF == _UNWRITTEN:
        tail += capacity - at
        at = 0
        store_release(ring + TAIL_AT, tail)
    first = ring + DATA_AT + 64 * at
    n = min(head - tail, capacity - at)
    k = min(n, most)
    while k > 0 and not _ends_message(first, k):
        k -= 1
    if k == 0:
        k = min(n, most) + 1
        while k < n and not _ends_message(first, k):
            k += 1
    return min(k, n)  # type: ignore[no-any-return]  # loads are intrinsics


@kernel("int64(int64, int64)")
def release(ring: int, n: int) -> int:
    """Give the next `n` rows back to the producer; return the new `tail`."""
    tail = load(ring + TAIL_AT) + n
    store_release(ring + TAIL_AT, tail)
    return tail  # type: ignore[no-any-return]  # an intrinsic
