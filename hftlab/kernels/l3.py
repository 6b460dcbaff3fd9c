"""Market-by-order books of every symbol of a feed, in one set of flat tables.

**Model.** A book is what the venue's messages say: orders come, shrink, trade, move and go, each named by a 64-bit
reference. Within a price, orders stand in the order in which they came. Nothing is matched here, so a book that the
venue crosses is crossed; that is counted, not repaired.

**Structure.** A full feed is millions of orders over thousands of symbols, and each message touches one at random: the
work is a few instructions, the wait is for memory. So every table is small, dense and shared by all symbols:

- *orders*: 32 bytes each (reference, lots, level, neighbours in the queue), two to a cache line. A free list reuses the
  slot freed last, so the table is as large as the most orders ever live at once, whatever the references are.
- *index*: open addressing from reference to order slot, 8 bytes an entry (31 bits of hash, 32 of slot), at most a
  quarter full, linear probing; a deletion moves later entries back instead of leaving a tombstone, so the index does
  not age. The hash keeps 512 references that follow one another on one page and apart from each other: venues count
  up, and recent orders are the busiest.
- *levels*: 32 bytes each (key, lots, orders, head and tail of the queue, side). An order knows its level, so taking
  lots off never searches.
- *ladders*: for each side the keys of its levels, ascending, and their slots; the key is ``px`` for bids and ``-px``
  for asks, so **the touch is last** on both sides and an arrival near it moves a few bytes. A ladder is a chunk of a
  common pool, doubled when full; prices may be any distance apart.

What remains is hidden by looking ahead in the block: rows some places further on have their index entry, then their
order and ladder, then their level and neighbours fetched into the cache before they are needed.

**Promise.** After every row the books equal those of the reference in the tests. What a row says that cannot be true
is counted and answered like this. An unknown reference, a side, price or quantity that is none, an instrument outside
the table: ignored (a REPLACE that gives a side is then an arrival: so says Databento). A reference that is live
already: the first order stays. More lots taken than an order has: the order goes. Any 64 bytes are safe to apply. No
rows but those of L3, CLEAR and BOOK_STATE are looked at.

**Bounds.** Tables grow by doubling, between rows, up to the bounds named when the book is made; an order beyond them is
counted as dropped and is not in the book, and rows that name it later are unknown. Worst case accepted: growing copies
a table (1 M orders: some 10 ms); a new level far from the touch moves every key nearer to it; a venue that chose its
references to collide would make probing slow; CLEAR costs as much as deleting each order of the instrument.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hftlab.core.errors import ConfigError
from hftlab.core.rows import NO_PX, ROW, Flag, Kind
from hftlab.kernels.jit import address_of, kernel, load, record_at, store

__all__ = [
    "COUNTS", "HEAD", "LEVEL", "ORDER", "SIDE", "Tables", "apply_rows", "copy_side", "find_order", "trace_rows",
]  # fmt: skip

COUNTS = ("unknown", "duplicate", "overdrawn", "bad", "foreign", "dropped", "locked", "crossed")
"""What a book counts: rows that name an order it does not have; adds of a reference that is live; lots taken beyond an
order's; rows without a true side, price or quantity; instruments outside the table; orders beyond a bound; and how
often an arriving order locked or crossed its book."""

_WORDS = (
    "index", "mask", "orders", "levels", "order_cap", "order_max", "order_free", "order_high", "level_free",
    "level_high", "live", "sides", "instruments", "instruments_max", "keys", "slots", "pool_cap", "pool_max",
    "pool_high", "lacks",
)  # fmt: skip
HEAD = np.dtype([(name, "<i8") for name in (*_WORDS, *COUNTS)] + [("chunks", "<i8", (32,))])
"""The book's registers: addresses of the tables, how far each is used, what is counted. ``order_high`` is the first
slot never used; ``chunks`` heads the free list of each size of ladder; ``lacks`` says what stopped `apply_rows`."""

ORDER = np.dtype([("ref", "<u8"), ("qty", "<i8"), ("level", "<u4"), ("prev", "<u4"), ("next", "<u4"), ("pad", "<u4")])
"""An order; slot 0 is nobody. A free slot has ``qty`` 0, and ``next`` is the next free slot."""

LEVEL = np.dtype(
    [("key", "<i8"), ("qty", "<i8"), ("orders", "<u4"), ("last", "<u4"), ("first", "<u4"), ("side", "<u4")]
)
"""A price level; slot 0 is nobody. ``side`` is ``2 * instrument``, plus 1 for asks. A free slot has ``orders`` 0 and
``first`` is the next free slot. ``last`` and ``first`` lie where an order has ``prev`` and ``next``: the level is the
neighbour of its first and of its last order."""

SIDE = np.dtype([("at", "<u4"), ("n", "<u4"), ("cap", "<u4"), ("state", "<u4")])
"""A side's ladder: where in the pool it starts, levels in use, room. On the bid side, ``state`` is the code of the last
BOOK_STATE row (0: none yet)."""


class _Base(NamedTuple):
    """Where the tables are: read once a block, for the compiler cannot know that they stay where they are."""

    head: int
    places: int
    mask: int
    orders: int
    levels: int
    sides: int
    keys: int
    slots: int


_NOTHING, _ORDERS, _POOL, _INSTRUMENTS = 0, 1, 2, 3
_WAIT, _ROOM, _DROP, _DONE, _NEW = range(5)

_head_at = record_at(HEAD)
_order_at = record_at(ORDER)
_level_at = record_at(LEVEL)
_side_at = record_at(SIDE)
_row_at = record_at(ROW)
_slot_at = record_at(np.dtype([("slot", "<u4")]))

_ADD, _REDUCE, _DELETE = int(Kind.ADD), int(Kind.REDUCE), int(Kind.DELETE)
_EXECUTE, _REPLACE, _CLEAR = int(Kind.EXECUTE), int(Kind.REPLACE), int(Kind.CLEAR)
_BOOK_STATE, _LAST = int(Kind.BOOK_STATE), int(Flag.LAST)
_NO_PX, _PX_BOUND = NO_PX, -NO_PX
_LEAST_LADDER = 8
_NEAR, _MIDDLE, _FAR = 7, 14, 22
"""How many rows ahead levels, then orders and ladders, then index entries are fetched. A row takes some 30 ns when all
is at hand, and memory answers in up to 200."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_LOW32 = 0xFFFFFFFF
_LANES = 16


def _prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at `address`; any address is safe."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        read, keep, data = ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)
        builder.call(function, [builder.inttoptr(args[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _count_below(typingctx: Any, address: Any, key: Any, n: Any) -> Any:
    """Return how many of the first `n` (0 to 16) of the 16 int64 at `address` are below `key`: no branch, no loop."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, lanes = ir.IntType(64), ir.VectorType(ir.IntType(64), _LANES)
        keys = builder.load(builder.inttoptr(args[0], lanes.as_pointer()), align=8)
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), args[1], ir.Constant(ir.IntType(32), 0))
        wanted = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))
        below = builder.bitcast(builder.icmp_signed("<", keys, wanted), ir.IntType(_LANES))
        asked = builder.sub(builder.shl(ir.Constant(word, 1), args[2]), ir.Constant(word, 1))
        below = builder.and_(below, builder.trunc(asked, ir.IntType(_LANES)))
        return builder.zext(builder.ctpop(below), word)

    return types.int64(types.int64, types.int64, types.int64), codegen


_fetch, _below = intrinsic(_prefetch), intrinsic(_count_below)


@kernel(inline=True)
def _int(value: Any) -> int:
    """Return a field of any width as int64: mixing signed and unsigned in one expression would make a float."""
    return int(np.int64(value))


@kernel(inline=True)
def _base(book: int) -> Any:
    head = _head_at(book)
    return _Base(book, head.index, head.mask, head.orders, head.levels, head.sides, head.keys, head.slots)


@kernel(inline=True)
def _order(base: Any, slot: int) -> Any:
    return _order_at(base.orders + 32 * slot)


@kernel(inline=True)
def _level(base: Any, slot: int) -> Any:
    return _level_at(base.levels + 32 * slot)


@kernel(inline=True)
def _side(base: Any, side: int) -> Any:
    return _side_at(base.sides + 16 * side)


# --- index


@kernel(inline=True)
def _hash(ref: Any) -> int:
    """31 bits of hash; 512 references that follow one another share a page of the index, and never a place."""
    return _int(((ref >> np.uint64(9)) * _SPREAD >> np.uint64(33)) ^ (ref & np.uint64(511)))


@kernel(inline=True)
def _seek(base: Any, ref: Any) -> Any:
    """Return the place of `ref` in the index, or minus 1 minus the empty place that ended the search."""
    hashed = _hash(ref)
    at = hashed & base.mask
    while True:
        entry = load(base.places + 8 * at)
        if entry == 0:
            return -1 - at
        if entry >> 32 == hashed and _order(base, entry & _LOW32).ref == ref:
            return at
        at = (at + 1) & base.mask


@kernel(inline=True)
def _slot_of(base: Any, place: int) -> Any:
    return load(base.places + 8 * place) & _LOW32


@kernel(inline=True)
def _forget(base: Any, place: int) -> None:
    """Empty a place of the index, and move back what probed past it."""
    hole = at = place
    while True:
        at = (at + 1) & base.mask
        entry = load(base.places + 8 * at)
        if entry == 0:
            break
        if ((at - (entry >> 32)) & base.mask) >= ((at - hole) & base.mask):
            store(base.places + 8 * hole, entry)
            hole = at
    store(base.places + 8 * hole, 0)


# --- ladders


@kernel(inline=True)
def _slot(base: Any, at: int) -> Any:
    return _int(_slot_at(base.slots + 4 * at).slot)


@kernel(inline=True)
def _set_slot(base: Any, at: int, slot: int) -> None:
    _slot_at(base.slots + 4 * at).slot = slot


@kernel(inline=True)
def _key(base: Any, at: int) -> Any:
    return load(base.keys + 8 * at)


@kernel(inline=True)
def _set_key(base: Any, at: int, key: int) -> None:
    store(base.keys + 8 * at, key)


@kernel(inline=True)
def _rank(base: Any, at: int, n: int, key: int) -> Any:
    """Return how many of a ladder's `n` keys are below `key`: sixteen at a time from the touch, far off by halves."""
    high = n
    while True:
        low = high - _LANES if high > _LANES else 0
        below = _below(base.keys + 8 * (at + low), key, high - low)
        if below > 0 or low == 0:
            return low + below
        if n - low > 64:
            return _halve(base.keys + 8 * at, low, key)
        high = low


@kernel()
def _halve(keys: int, high: int, key: int) -> int:
    low = 0
    while low < high:
        middle = (low + high) >> 1
        if load(keys + 8 * middle) < key:
            low = middle + 1
        else:
            high = middle
    return low


@kernel()
def _grow_ladder(book: int, side: int) -> bool:
    """Move a full ladder to a chunk twice as long; False when the pool has none."""
    head, base = _head_at(book), _base(book)
    of = _side(base, side)
    at, n, cap = _int(of.at), _int(of.n), _int(of.cap)
    wanted = 2 * cap if cap > 0 else _LEAST_LADDER
    size = 3
    while (1 << size) < wanted:
        size += 1
    to = head.chunks[size]
    if to != 0:
        head.chunks[size] = _slot(base, to)
    elif head.pool_high + wanted <= head.pool_cap:
        to = head.pool_high
        head.pool_high = to + wanted
    else:
        return False
    for k in range(n):
        _set_key(base, to + k, _key(base, at + k))
        _set_slot(base, to + k, _slot(base, at + k))
    if cap > 0:
        _set_slot(base, at, head.chunks[size - 1])
        head.chunks[size - 1] = at
    of.at, of.cap = to, wanted
    return True


@kernel(inline=True)
def _open_level(base: Any, side: int, i: int, key: int) -> Any:
    """Return the slot of a new, empty level that is the side's `i`-th."""
    head, of = _head_at(base.head), _side(base, side)
    at, n = _int(of.at), _int(of.n)
    slot = head.level_free
    if slot != 0:
        head.level_free = _int(_level(base, slot).first)
    else:
        slot = head.level_high
        head.level_high = slot + 1
    for k in range(at + n, at + i, -1):
        _set_key(base, k, _key(base, k - 1))
        _set_slot(base, k, _slot(base, k - 1))
    _set_key(base, at + i, key)
    _set_slot(base, at + i, slot)
    of.n = n + 1
    if i == n:
        _count_cross(base, side, key)
    level = _level(base, slot)
    level.key = key
    level.qty = 0
    level.last = 0
    level.side = side
    return slot


@kernel(inline=True)
def _count_cross(base: Any, side: int, key: int) -> None:
    """Count that the new best `key` of `side` locks or crosses the book."""
    head, other = _head_at(base.head), _side(base, side ^ 1)
    n = _int(other.n)
    if n > 0:
        gap = _key(base, _int(other.at) + n - 1) + key
        if gap == 0:
            head.locked += 1
        elif gap > 0:
            head.crossed += 1


@kernel(inline=True)
def _close_level(base: Any, slot: int) -> None:
    """Take an empty level out of its ladder."""
    head, level = _head_at(base.head), _level(base, slot)
    of = _side(base, _int(level.side))
    at, n = _int(of.at), _int(of.n)
    for k in range(at + _rank(base, at, n, level.key), at + n - 1):
        _set_key(base, k, _key(base, k + 1))
        _set_slot(base, k, _slot(base, k + 1))
    of.n = n - 1
    level.first = head.level_free
    head.level_free = slot


# --- orders


@kernel(inline=True)
def _neighbour(base: Any, order: int, level: int) -> Any:
    """Return the order in a slot, or for slot 0 the level, whose ends lie where an order has its neighbours."""
    return _order_at(base.orders + 32 * order if order != 0 else base.levels + 32 * level)


@kernel(inline=True)
def _enter(base: Any, side: int, key: int, ref: Any, place: int, qty: int) -> bool:
    """Put an order at the back of the queue at `key`; the caller has made room. False if the level's sum overflows."""
    head, of = _head_at(base.head), _side(base, side)
    at, n = _int(of.at), _int(of.n)
    i = _rank(base, at, n, key)
    if i < n and _key(base, at + i) == key:
        level_slot = _slot(base, at + i)
        if _level(base, level_slot).qty + qty < 0:
            return False
    else:
        level_slot = _open_level(base, side, i, key)
    slot = head.order_free
    if slot != 0:
        head.order_free = _int(_order(base, slot).next)
    else:
        slot = head.order_high
        head.order_high = slot + 1
    level = _level(base, level_slot)
    tail = _int(level.last)
    level.qty += qty
    level.orders += 1
    level.last = slot
    _neighbour(base, tail, level_slot).next = slot
    order = _order(base, slot)
    order.ref = ref
    order.qty = qty
    order.level = level_slot
    order.prev = tail
    order.next = 0
    store(base.places + 8 * place, _hash(ref) << 32 | slot)
    head.live += 1
    return True


@kernel(inline=True)
def _leave(base: Any, place: int) -> None:
    """Take the order at a place of the index out of its queue, its level if it was the last there, and the index."""
    head, slot = _head_at(base.head), _slot_of(base, place)
    order = _order(base, slot)
    level_slot = _int(order.level)
    level = _level(base, level_slot)
    before, after, left = _int(order.prev), _int(order.next), _int(level.orders) - 1
    level.orders = left
    level.qty -= order.qty
    _neighbour(base, before, level_slot).next = after
    _neighbour(base, after, level_slot).prev = before
    if left == 0:
        _close_level(base, level_slot)
    order.qty = 0
    order.next = head.order_free
    head.order_free = slot
    head.live -= 1
    _forget(base, place)


# --- rows


@kernel(inline=True)
def _lack(base: Any, what: int, have: int, bound: int) -> int:
    """Return whether to wait for table `what` to grow, or to drop an order because it is as large as it may be."""
    head = _head_at(base.head)
    if have < bound:
        head.lacks = what
        return _WAIT
    head.dropped += 1
    return _DROP


@kernel(inline=True)
def _ladder_room(base: Any, side: int) -> int:
    """Return whether one more level fits on `side`; growing the ladder before it is known to be new is harmless."""
    head, of = _head_at(base.head), _side(base, side)
    if of.n < of.cap or _grow_ladder(base.head, side):
        return _ROOM
    return _lack(base, _POOL, head.pool_cap, head.pool_max)


@kernel(inline=True)
def _is_order(flags: int, px: int, qty: int) -> bool:
    side = flags & 3
    return (side == 1 or side == 2) and qty > 0 and -_PX_BOUND < px < _PX_BOUND


@kernel(inline=True)
def _add(base: Any, row: Any, ref: Any) -> bool:
    head = _head_at(base.head)
    flags, px, qty, instrument = _int(row.flags), row.px, row.qty, _int(row.instrument)
    if not _is_order(flags, px, qty):
        head.bad += 1
        return True
    if instrument >= head.instruments:
        if instrument < head.instruments_max:
            head.lacks = _INSTRUMENTS
            return False
        head.foreign += 1
        return True
    place = _seek(base, ref)
    if place >= 0:
        head.duplicate += 1
        return True
    if head.order_free == 0 and head.order_high > head.order_cap:
        return _lack(base, _ORDERS, head.order_cap, head.order_max) != _WAIT
    side = 2 * instrument + (flags & 3) - 1
    room = _ladder_room(base, side)
    if room == _ROOM and not _enter(base, side, px if flags & 1 else -px, ref, -1 - place, qty):
        head.bad += 1
    return room != _WAIT


@kernel(inline=True)
def _take(base: Any, row: Any, qty: int) -> None:
    """REDUCE and EXECUTE take `qty` lots off an order, DELETE (0) all of them."""
    head, place = _head_at(base.head), _seek(base, row.a)
    if place < 0:
        head.unknown += 1
        return
    order = _order(base, _slot_of(base, place))
    left = order.qty - qty if qty > 0 else 0
    if left > 0:
        order.qty = left
        _level(base, _int(order.level)).qty -= qty
        return
    if left < 0:
        head.overdrawn += 1
    _leave(base, place)


@kernel(inline=True)
def _replace(base: Any, row: Any) -> int:
    """Move an order: the same reference, price and no more lots keep its place, all else goes to the back."""
    head = _head_at(base.head)
    px, qty, old, new = row.px, row.qty, row.a, row.b
    if not _is_order(1, px, qty):
        head.bad += 1
        return _DONE
    place = _seek(base, old)
    if place < 0:
        if _int(row.flags) & 3:
            return _NEW
        head.unknown += 1
        return _DONE
    order = _order(base, _slot_of(base, place))
    level = _level(base, _int(order.level))
    side = _int(level.side)
    key = -px if side & 1 else px
    if old == new and key == level.key and qty <= order.qty:
        level.qty -= order.qty - qty
        order.qty = qty
        return _DONE
    if old != new and _seek(base, new) >= 0:
        head.duplicate += 1
        _leave(base, place)
        return _DONE
    room = _ladder_room(base, side)
    if room == _WAIT:
        return _WAIT
    _leave(base, place)
    if room == _ROOM and not _enter(base, side, key, new, -1 - _seek(base, new), qty):
        head.bad += 1
    return _DONE


@kernel()
def _add_replaced(book: int, at: int) -> bool:
    """Add the order that a REPLACE row with a side makes of one the book does not have."""
    row = _row_at(at)
    if not _add(_base(book), row, row.b):
        return False
    _head_at(book).unknown += 1
    return True


@kernel()
def _clear(book: int, instrument: int) -> None:
    """Empty both sides of an instrument."""
    base = _base(book)
    if instrument >= _head_at(book).instruments:
        return
    for side in (2 * instrument, 2 * instrument + 1):
        of = _side(base, side)
        while of.n > 0:
            best = _level(base, _slot(base, _int(of.at) + _int(of.n) - 1))
            _leave(base, _seek(base, _order(base, _int(best.first)).ref))


@kernel(inline=True)
def _apply(base: Any, at: int) -> bool:
    """Apply one row; False if it must wait for a table to grow."""
    row = _row_at(at)
    kind = row.kind
    if kind == _ADD:
        return _add(base, row, row.a)
    if kind == _DELETE:
        _take(base, row, 0)
    elif kind == _EXECUTE or kind == _REDUCE:
        if row.qty <= 0:
            _head_at(base.head).bad += 1
        else:
            _take(base, row, row.qty)
    elif kind == _REPLACE:
        done = _replace(base, row)
        if done == _NEW:
            return _add_replaced(base.head, at)
        return done != _WAIT
    elif kind == _CLEAR:
        _clear(base.head, _int(row.instrument))
    elif kind == _BOOK_STATE and _int(row.instrument) < _head_at(base.head).instruments:
        _side(base, 2 * _int(row.instrument)).state = _int(row.code)
    return True


# Looking ahead asks the same of every row, whatever its kind: what is fetched in vain costs less than a branch that the
# processor cannot foresee.


@kernel(inline=True)
def _look_far(base: Any, row: Any) -> None:
    """Fetch the index entry and the sides."""
    _fetch(base.places + 8 * (_hash(row.a) & base.mask))
    _fetch(base.sides + 32 * _int(row.instrument))


@kernel(inline=True)
def _look_middle(base: Any, row: Any) -> None:
    """Fetch the order, and the ends of both ladders: on which side a departure is, is not known yet."""
    _fetch(base.orders + 32 * _slot_of(base, _hash(row.a) & base.mask))
    instrument = _known(base, row)
    _fetch_end(base, 2 * instrument)
    _fetch_end(base, 2 * instrument + 1)


@kernel(inline=True)
def _known(base: Any, row: Any) -> int:
    """Return the row's instrument, or 0 if it is outside the table."""
    instrument = _int(row.instrument)
    return instrument if instrument < _head_at(base.head).instruments else 0


@kernel(inline=True)
def _fetch_end(base: Any, side: int) -> None:
    """Fetch the last 16 levels of a ladder: most of what comes and goes is there."""
    of = _side(base, side)
    end = _int(of.at) + _int(of.n)
    _fetch(base.keys + 8 * end - 8)
    _fetch(base.keys + 8 * end - 72)
    _fetch(base.keys + 8 * end - 128)
    _fetch(base.slots + 4 * end - 4)
    _fetch(base.slots + 4 * end - 64)


@kernel(inline=True)
def _look_near(base: Any, row: Any) -> None:
    """Fetch the level that an arrival joins if that is near the touch, or an order's level and its neighbours."""
    order = _order(base, _slot_of(base, _hash(row.a) & base.mask))
    of = _side(base, 2 * _known(base, row) + ((_int(row.flags) >> 1) & 1))
    n = _int(of.n)
    low = n - _LANES if n > _LANES else 0
    at = _int(of.at) + low
    joined = _slot(base, at + _below(base.keys + 8 * at, row.px if row.flags & 1 else -row.px, n - low))
    _fetch(base.levels + 32 * (joined if row.kind == _ADD else _int(order.level)))
    _fetch(base.orders + 32 * _int(order.prev))
    _fetch(base.orders + 32 * _int(order.next))


@kernel()
def apply_rows(book: int, rows: int, n: int) -> int:
    """Return how many of `n` rows were applied: fewer than `n` when a table must grow first (`Tables.grow`).

    Parameters
    ----------
    book : int64
        Address of a `HEAD`, see `Tables.address`.
    rows : int64
        Address of `n` rows of dtype ROW, all instruments mixed.
    n : int64
        How many.
    """
    base = _base(book)
    for i in range(n):
        at = rows + 64 * i
        if i + _FAR < n:
            _look_far(base, _row_at(at + 64 * _FAR))
        if i + _MIDDLE < n:
            _look_middle(base, _row_at(at + 64 * _MIDDLE))
        if i + _NEAR < n:
            _look_near(base, _row_at(at + 64 * _NEAR))
        if not _apply(base, at):
            return i
    return n


@kernel(inline=True)
def _copy_side(base: Any, side: int, depth: int, out: int) -> None:
    of = _side(base, side)
    at, n = _int(of.at), _int(of.n)
    for k in range(depth):
        to = out + 24 * k
        if k < n:
            level = _level(base, _slot(base, at + n - 1 - k))
            store(to, -level.key if side & 1 else level.key)
            store(to + 8, level.qty)
            store(to + 16, _int(level.orders))
        else:
            store(to, _NO_PX)
            store(to + 8, 0)
            store(to + 16, 0)


@kernel()
def copy_side(book: int, side: int, depth: int, out: int) -> None:
    """Copy the `depth` best levels of a side (``2 * instrument``, plus 1 for asks).

    Parameters
    ----------
    book : int64
        Address of a `HEAD`.
    side, depth : int64
    out : int64
        Address of int64 of shape (depth, 3): ``px, qty, orders``, best first; no level is NO_PX, 0, 0.
    """
    _copy_side(_base(book), side, depth, out)


@kernel()
def trace_rows(book: int, rows: int, first: int, n: int, depth: int, ends: int, out: int) -> int:
    """Apply rows from `first` on, and copy the book at the end of each message; return the first row not applied.

    Parameters
    ----------
    book, rows, n : int64
        As in `apply_rows`.
    depth : int64
        Levels a side to copy.
    ends : int64
        Address of ``n + 1`` int64: how many messages have ended, then the index of the row that ended each.
    out : int64
        Address of int64 of shape (n, 2, depth, 3): per message and side ``px, qty, orders``, best first; no level is
        NO_PX, 0, 0.
    """
    base, changed = _base(book), False
    for i in range(first, n):
        if apply_rows(book, rows + 64 * i, _int(1)) == 0:
            return i
        row = _row_at(rows + 64 * i)
        kind, instrument = row.kind, _int(row.instrument)
        changed = changed or _ADD <= kind <= _REPLACE or kind == _CLEAR
        if not changed or (row.flags & _LAST) == 0 or instrument >= _head_at(book).instruments:
            continue
        changed = False
        k = load(ends)
        store(ends, k + 1)
        store(ends + 8 + 8 * k, i)
        _copy_side(base, 2 * instrument, depth, out + 48 * depth * k)
        _copy_side(base, 2 * instrument + 1, depth, out + 48 * depth * k + 24 * depth)
    return n


@kernel()
def find_order(book: int, ref: Any) -> int:
    """Return the slot of the live order `ref` (uint64), or 0."""
    base = _base(book)
    place = _seek(base, np.uint64(ref))
    return _slot_of(base, place) if place >= 0 else 0


@kernel()
def _fill_index(book: int) -> None:
    """Enter every live order into an empty index."""
    base = _base(book)
    for slot in range(1, _head_at(book).order_high):
        order = _order(base, slot)
        if order.qty > 0:
            hashed = _hash(order.ref)
            at = hashed & base.mask
            while load(base.places + 8 * at) != 0:
                at = (at + 1) & base.mask
            store(base.places + 8 * at, hashed << 32 | slot)


def _zeroed(n: int, dtype: Any) -> npt.NDArray[Any]:
    """Return zeroed memory on a page boundary, in huge pages where the system has them: fewer address look-ups."""
    wanted = np.dtype(dtype)
    size = max(n * wanted.itemsize, 1)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory gets no huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    else:
        memory = mmap.mmap(-1, size)
    return np.frombuffer(memory, wanted, n)


def _grown(old: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Return `old` with zeroed room for `n`."""
    new = _zeroed(n, old.dtype)
    new[: len(old)] = old
    return new


class Tables:
    """The tables of one feed's books, and their growth.

    Parameters
    ----------
    orders, instruments : int
        Room to begin with; doubled when it is short.
    max_orders : int
        Most live orders of all books together, 1 to 2**28; orders beyond are counted as ``dropped``.
    max_instruments : int
        Instruments are numbered below this, 1 to 2**24; orders of others are counted as ``foreign``.

    Raises
    ------
    ConfigError
        If a size is out of range.
    """

    def __init__(self, orders: int, instruments: int, max_orders: int, max_instruments: int) -> None:
        for name, value, bound, most in (
            ("orders", orders, max_orders, 1 << 28),
            ("instruments", instruments, max_instruments, 1 << 24),
        ):
            if not 1 <= value <= bound <= most:
                raise ConfigError(
                    f"{name}={value} with max_{name}={bound}; expected 1 <= {name} <= max_{name} <= {most}"
                )
        self._head = np.zeros(1, HEAD)
        self.address = address_of(self._head)
        self.head = self._head[0]
        self.head["order_high"] = self.head["level_high"] = 1
        self.head["pool_high"] = _LEAST_LADDER
        self.head["order_max"], self.head["instruments_max"] = max_orders, max_instruments
        self.head["pool_max"] = _LEAST_LADDER * (2 * max_instruments + max_orders + 1)
        self.orders, self.levels, self.sides = _zeroed(1, ORDER), _zeroed(1, LEVEL), _zeroed(1, SIDE)
        self.keys, self.slots = _zeroed(1, np.int64), _zeroed(1, np.uint32)
        self._make_orders(orders)
        self._make_instruments(instruments)
        self._make_pool(_LEAST_LADDER * (2 * instruments + 1))

    def apply(self, rows: int, n: int) -> None:
        """Apply the `n` rows at address `rows`, growing what must grow."""
        done = int(apply_rows(self.address, rows, n))
        while done < n:
            self.grow()
            done += int(apply_rows(self.address, rows + ROW.itemsize * done, n - done))

    def trace(self, rows: int, n: int, depth: int, ends: int, out: int) -> None:
        """Apply the `n` rows at address `rows`, copying books as `trace_rows` says."""
        done = int(trace_rows(self.address, rows, 0, n, depth, ends, out))
        while done < n:
            self.grow()
            done = int(trace_rows(self.address, rows, done, n, depth, ends, out))

    def grow(self) -> None:
        """Double the table that stopped `apply_rows`; rows go on at the one it stopped at."""
        lacks = int(self.head["lacks"])
        self.head["lacks"] = _NOTHING
        if lacks == _ORDERS:
            self._make_orders(min(2 * int(self.head["order_cap"]), int(self.head["order_max"])))
        elif lacks == _POOL:
            self._make_pool(min(2 * int(self.head["pool_cap"]), int(self.head["pool_max"])))
        elif lacks == _INSTRUMENTS:
            self._make_instruments(min(2 * int(self.head["instruments"]), int(self.head["instruments_max"])))

    def _make_orders(self, n: int) -> None:
        """Room for `n` orders: as many levels, and an index at most a quarter full. Slot 0 is nobody."""
        self.orders, self.levels = _grown(self.orders, n + 1), _grown(self.levels, n + 1)
        self.index = _zeroed(4 << (n - 1).bit_length(), np.int64)
        head = self.head
        head["order_cap"], head["mask"] = n, len(self.index) - 1
        head["orders"], head["levels"], head["index"] = map(address_of, (self.orders, self.levels, self.index))
        _fill_index(self.address)

    def _make_instruments(self, n: int) -> None:
        self.sides = _grown(self.sides, 2 * n)
        self.head["instruments"], self.head["sides"] = n, address_of(self.sides)

    def _make_pool(self, n: int) -> None:
        self.keys, self.slots = _grown(self.keys, n + _LANES), _grown(self.slots, n)
        self.head["pool_cap"], self.head["keys"], self.head["slots"] = n, address_of(self.keys), address_of(self.slots)
