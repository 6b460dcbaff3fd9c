"""Price-time matching for one instrument, on flat arrays.

The model: a continuous double auction. An incoming order trades with the best-priced resting orders on the other side,
oldest first, at the *resting* order's price; what is left rests or expires by its time in force.

The structure, and why it fits. Each side is an array of levels sorted so that **the touch is last**: almost every
arrival, cancel and trade happens within a few levels of the touch, so inserting or removing a level moves a handful of
40-byte records, and the best price is one index away. Prices may be any int64 (no ladder over a price range, nothing to
re-centre). A level is the head and tail of a doubly linked FIFO through the order table; the table has a free list. An
order's id is ``count << 20 | slot``: ids grow with every accepted order, are never used twice, and looking one up is an
index and a comparison, so there is no hash table to fill up.

Promises, each held against a slow reference in the tests:

- after every call the book is not crossed, and each level's quantity is the sum of its orders;
- quantity is conserved: for every order, filled + resting + canceled or expired = asked for;
- within a level, orders fill in the order in which they came to it;
- a refusal changes nothing.

Rules. ``POST_ONLY`` is refused if any part would trade. IOC trades what it can and expires the rest; FOK trades in full
or expires whole; a market order is IOC at `market_px`. A replacement is a new order: its quantity is what it wants
from now on, and its fills count from 0 (Binance's cancelReplace; a FIX 38 is this plus what was filled). With
`keep_priority`, same price and no more quantity keeps the place in the queue; anything else, and every replace without
it (cancelReplace again), goes to the back under a new id and may trade at once.
Orders with an owner never trade with each other: the resting one expires first (Binance's default, EXPIRE_MAKER); it
shows in `fills` with quantity 0. Anonymous orders (owner 0) have no such protection.

An *iceberg* is a resting order of which only a slice shows (`conceal`). When the slice has traded, the next one goes to
the back of the level under the same id; a `fills` row counts what is hidden among the order's leaves. What else an
order may ask for (stops, auctions, pro-rata, expiry, bands) stands beside this module, in `hftlab.kernels.rules`, which
is built of these same functions: plain orders do not pay for it.

Bounds. Both tables are fixed when the book is made. When the order table, or a side's level table, cannot take one
more, an order that could rest is refused with ``FULL`` before it trades. Slices not shown yet are counted, and
`max_orders` bounds them in all. Whoever admits orders keeps the sum of a level within int64. Worst case accepted: a new
level far from the touch moves every level nearer to it (2,048 levels: 80 KB, some microseconds), and FOK walks the
orders it would trade with.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from hftlab.core.errors import ConfigError
from hftlab.core.rows import Side, Tif
from hftlab.kernels.jit import address_of, kernel

__all__ = [
    "Book",
    "FILL_FIELDS",
    "MAX_ORDERS",
    "Matcher",
    "Outcome",
    "best_px",
    "can_fill",
    "cancel",
    "conceal",
    "crosses",
    "find_order",
    "lacks_room",
    "leaves_of",
    "level_at",
    "make_book",
    "market_px",
    "refresh",
    "replace",
    "rest",
    "slices",
    "slices_fit",
    "submit",
    "take_off",
    "unlink",
]

Int64s = npt.NDArray[np.int64]

# The columns below are for kernels that read these arrays beside this module's functions.

SLOT_BITS = 20
MAX_ORDERS = 1 << SLOT_BITS
"""Largest order table an id can address."""

# head
N_LEVELS = 0  # [0] bid levels, [1] ask levels
FREE = 2  # first free slot, or -1
HIGH = 3  # slots below this have been used at least once
COUNT = 4  # orders ever accepted
N_FILLS = 5  # of the last submit or replace
LAST_ID = 6  # id of the last order that came to rest, or 0
LEAVES = 7  # of the last submit or replace: what rests, or what expired
CUM = 8  # of the last submit or replace: filled
ANONYMOUS = 9  # [9] resting bids without an owner, [10] asks
OWNED = 11  # resting orders with an owner
ICEBERGS = 12  # resting orders with a display quantity
SLICES = 13  # slices that they have not shown yet
HEAD_SIZE = 14

# orders
ID, OWNER, SIDE, PX, OPEN, FILLED, NEXT, PREV = range(8)
# hidden: lots not shown, and how many show at a time; zero for every other order and every free slot
HIDDEN, DISPLAY = range(2)
# levels: KEY is px for bids and -px for asks, so that both sides ascend towards the touch
KEY, QTY, ORDERS, FIRST, FINAL = range(5)
# fills
MAKER_ID, MAKER_OWNER, FILL_PX, FILL_QTY, MAKER_LEAVES, MAKER_CUM = range(6)
FILL_FIELDS = ("maker_id", "maker_owner", "px", "qty", "maker_leaves", "maker_cum")
"""Columns of `Book.fills`."""

_BUY = int(Side.BUY)
_IOC = int(Tif.IOC)
_FOK = int(Tif.FOK)
_EXTREME = 2**63 - 1
_LEVEL_BYTES = 40
_NEAR = 32  # levels from the touch that are looked at one by one before the rest is halved


class Outcome(enum.IntEnum):
    """What became of a submit or replace; below 0 it was refused and nothing changed.

    Below UNKNOWN, and from PARKED on, are answers of `hftlab.kernels.rules` alone.
    """

    BAD_ORDER = -11  # options that do not go together, or a word that is none
    OFF_TICK = -10
    BEYOND_BAND = -9
    BAD_TIME = -8
    BAD_PHASE = -7
    WOULD_TRIGGER = -6
    STOPS_FULL = -5
    UNKNOWN = -4
    BAD_QTY = -3
    FULL = -2
    WOULD_CROSS = -1
    RESTING = 1
    FILLED = 2
    EXPIRED = 3
    PARKED = 4  # a stop that waits for its price
    CANCELED = 5  # met an order of its own account


_UNKNOWN = int(Outcome.UNKNOWN)
_BAD_QTY = int(Outcome.BAD_QTY)
_FULL = int(Outcome.FULL)
_WOULD_CROSS = int(Outcome.WOULD_CROSS)
_RESTING = int(Outcome.RESTING)
_FILLED = int(Outcome.FILLED)
_EXPIRED = int(Outcome.EXPIRED)


class Book(NamedTuple):
    """The arrays of one instrument's matching book, all int64.

    Parameters
    ----------
    head : array, shape (14,)
        Counters and the results of the last call.
    orders : array, shape (max_orders, 8)
        The order table.
    levels : array, shape (2, max_levels, 5)
        Bid levels, then ask levels, each with the touch last.
    fills : array, shape (2 * max_orders, 6)
        Trades of the last call in the order they happened; columns `FILL_FIELDS`. A sweep of the whole book with all
        its slices fits.
    hidden : array, shape (max_orders, 2)
        What icebergs do not show: lots hidden, lots of a slice.
    """

    head: Int64s
    orders: Int64s
    levels: Int64s
    fills: Int64s
    hidden: Int64s


def make_book(max_orders: int = 8192, max_levels: int = 2048) -> Book:
    """Return an empty book.

    Parameters
    ----------
    max_orders : int
        Resting orders, both sides together; 1 to `MAX_ORDERS`.
    max_levels : int
        Price levels a side, >= 1.

    Raises
    ------
    ConfigError
        If a bound is out of range.

    Examples
    --------
    >>> book = make_book(16, 8)
    >>> submit(book, 0, 2, 100, 5, 1, False) == Outcome.RESTING     # sell 5 at 100
    True
    >>> submit(book, 7, 1, 101, 8, 1, False) == Outcome.RESTING     # buy 8 at 101: trades 5 at 100, 3 rest
    True
    >>> book.fills[0, 2:4].tolist(), best_px(book, 1)
    ([100, 5], 101)
    """
    if not 1 <= max_orders <= MAX_ORDERS:
        raise ConfigError(f"max_orders is {max_orders}; expected 1 to {MAX_ORDERS}")
    if max_levels < 1:
        raise ConfigError(f"max_levels is {max_levels}; expected 1 or more")
    book = Book(
        np.zeros(HEAD_SIZE, np.int64),
        np.zeros((max_orders, 8), np.int64),
        np.zeros((2, max_levels, 5), np.int64),
        np.zeros((2 * max_orders, 6), np.int64),
        np.zeros((max_orders, 2), np.int64),
    )
    book.orders[:, NEXT] = np.arange(1, max_orders + 1)
    book.orders[-1, NEXT] = -1
    return book


def market_px(side: int) -> int:
    """Return the limit price that no resting order is beyond, ticks: pass it with IOC for a market order."""
    return _EXTREME if side == _BUY else -_EXTREME


@intrinsic
def _move(typingctx: Any, destination: Any, source: Any, size: Any) -> Any:
    """Move `size` bytes between addresses that may overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = context.get_value_type(types.voidptr)
        cgutils.raw_memmove(
            builder, builder.inttoptr(args[0], pointer), builder.inttoptr(args[1], pointer), args[2], 1
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@kernel(inline=True)
def _key(side: Any, px: Any) -> Any:
    return px if side == _BUY else -px


@kernel(inline=True)
def _seek(book: Any, side: Any, key: Any) -> Any:
    """Index of the first level of `side` whose key is not below `key`."""
    s = side - 1
    high = book.head[N_LEVELS + s]
    low = max(0, high - _NEAR)
    if low > 0 and book.levels[s, low - 1, KEY] >= key:
        high = low
        low = 0
        while low < high:
            middle = (low + high) >> 1
            if book.levels[s, middle, KEY] < key:
                low = middle + 1
            else:
                high = middle
        return low
    while high > low and book.levels[s, high - 1, KEY] >= key:
        high -= 1
    return high


@kernel(inline=True)
def level_at(book: Any, side: Any, px: Any) -> Any:
    """Return the index of the level of `side` at `px`, or -1 if there is none."""
    key = _key(side, px)
    i = _seek(book, side, key)
    if i < book.head[N_LEVELS + side - 1] and book.levels[side - 1, i, KEY] == key:
        return i
    return -1


@kernel(inline=True)
def best_px(book: Any, side: Any) -> Any:
    """Return the best price of `side`, ticks; the worst possible int64 if the side is empty."""
    n = book.head[N_LEVELS + side - 1]
    if n == 0:
        return -_EXTREME if side == _BUY else _EXTREME
    return _key(side, book.levels[side - 1, n - 1, KEY])


@kernel(inline=True)
def find_order(book: Any, order_id: Any) -> Any:
    """Return the slot of the resting order `order_id`, or -1."""
    slot = order_id & (MAX_ORDERS - 1)
    if order_id <= 0 or slot >= book.orders.shape[0] or book.orders[slot, ID] != order_id:
        return -1
    return slot


@kernel(inline=True)
def crosses(book: Any, side: Any, px: Any) -> Any:
    """Whether an order of `side` at `px` would trade."""
    other = 3 - side
    n = book.head[N_LEVELS + other - 1]
    return n > 0 and -book.levels[other - 1, n - 1, KEY] <= _key(side, px)


@kernel(inline=True)
def _drop_level(book: Any, side: Any, i: Any) -> None:
    s = side - 1
    n = book.head[N_LEVELS + s] - 1
    at = book.levels[s, i].ctypes.data
    _move(at, at + _LEVEL_BYTES, _LEVEL_BYTES * (n - i))
    book.head[N_LEVELS + s] = n


@kernel(inline=True)
def _open_level(book: Any, side: Any, i: Any, key: Any) -> None:
    s = side - 1
    n = book.head[N_LEVELS + s]
    at = book.levels[s].ctypes.data + _LEVEL_BYTES * i
    _move(at + _LEVEL_BYTES, at, _LEVEL_BYTES * (n - i))
    book.levels[s, i, KEY] = key
    book.levels[s, i, QTY] = 0
    book.levels[s, i, ORDERS] = 0
    book.levels[s, i, FIRST] = -1
    book.levels[s, i, FINAL] = -1
    book.head[N_LEVELS + s] = n + 1


@kernel(inline=True)
def _tally(book: Any, slot: Any, step: Any) -> None:
    if book.orders[slot, OWNER] == 0:
        book.head[ANONYMOUS + book.orders[slot, SIDE] - 1] += step
    else:
        book.head[OWNED] += step


@kernel(inline=True)
def rest(book: Any, owner: Any, side: Any, px: Any, leaves: Any, cum: Any) -> None:
    """Put an order at the back of its level; the caller has made sure that it fits."""
    slot = book.head[FREE]
    book.head[FREE] = book.orders[slot, NEXT]
    book.head[HIGH] = max(book.head[HIGH], slot + 1)
    book.head[COUNT] += 1
    order_id = book.head[COUNT] << SLOT_BITS | slot
    key = _key(side, px)
    i = _seek(book, side, key)
    s = side - 1
    if i == book.head[N_LEVELS + s] or book.levels[s, i, KEY] != key:
        _open_level(book, side, i, key)
    tail = book.levels[s, i, FINAL]
    book.orders[slot, ID] = order_id
    book.orders[slot, OWNER] = owner
    book.orders[slot, SIDE] = side
    book.orders[slot, PX] = px
    book.orders[slot, OPEN] = leaves
    book.orders[slot, FILLED] = cum
    book.orders[slot, NEXT] = -1
    book.orders[slot, PREV] = tail
    if tail < 0:
        book.levels[s, i, FIRST] = slot
    else:
        book.orders[tail, NEXT] = slot
    book.levels[s, i, FINAL] = slot
    book.levels[s, i, QTY] += leaves
    book.levels[s, i, ORDERS] += 1
    _tally(book, slot, 1)
    book.head[LAST_ID] = order_id


@kernel(inline=True)
def leaves_of(book: Any, slot: Any) -> Any:
    """Lots that the order in `slot` has open; what is hidden is looked at only where something is."""
    if book.head[ICEBERGS] == 0:
        return book.orders[slot, OPEN]
    return book.orders[slot, OPEN] + book.hidden[slot, HIDDEN]


@kernel(inline=True)
def slices(hidden: Any, display: Any) -> Any:
    """Return how many slices of `display` lots show `hidden` lots."""
    return (hidden + display - 1) // display


@kernel()
def _uncover(book: Any, slot: Any) -> None:
    """Forget what the order in `slot` hides."""
    if book.hidden[slot, DISPLAY] > 0:
        book.head[ICEBERGS] -= 1
        book.head[SLICES] -= slices(book.hidden[slot, HIDDEN], book.hidden[slot, DISPLAY])
        book.hidden[slot, HIDDEN] = 0
        book.hidden[slot, DISPLAY] = 0


@kernel()
def refresh(book: Any, slot: Any, i: Any) -> Any:
    """Show the next slice of an order whose slice has traded, at the back of level `i`; False if it hides nothing."""
    hidden = book.hidden[slot, HIDDEN]
    if hidden == 0:
        return False
    shown = min(hidden, book.hidden[slot, DISPLAY])
    book.hidden[slot, HIDDEN] = hidden - shown
    book.head[SLICES] -= 1
    book.orders[slot, OPEN] = shown
    s = book.orders[slot, SIDE] - 1
    book.levels[s, i, QTY] += shown
    after = book.orders[slot, NEXT]
    if after < 0:
        return True
    before = book.orders[slot, PREV]
    tail = book.levels[s, i, FINAL]
    book.orders[after, PREV] = before
    if before < 0:
        book.levels[s, i, FIRST] = after
    else:
        book.orders[before, NEXT] = after
    book.orders[tail, NEXT] = slot
    book.orders[slot, PREV] = tail
    book.orders[slot, NEXT] = -1
    book.levels[s, i, FINAL] = slot
    return True


@kernel(inline=True)
def slices_fit(book: Any, qty: Any, display: Any) -> Any:
    """Whether an order of `qty` lots that shows `display` at a time may be taken without passing the bound."""
    return book.head[SLICES] + slices(qty, display) <= book.orders.shape[0]


@kernel()
def conceal(book: Any, order_id: Any, display: Any) -> None:
    """Let a plain resting order show only `display` lots at a time from now on; it keeps its place.

    Parameters
    ----------
    book : Book
    order_id : int64
        An order that rests and hides nothing yet.
    display : int64
        Lots, > 0. Ask `slices_fit` first.
    """
    slot = find_order(book, order_id)
    shown = min(book.orders[slot, OPEN], display)
    hidden = book.orders[slot, OPEN] - shown
    side = book.orders[slot, SIDE]
    book.levels[side - 1, level_at(book, side, book.orders[slot, PX]), QTY] -= hidden
    book.orders[slot, OPEN] = shown
    book.hidden[slot, HIDDEN] = hidden
    book.hidden[slot, DISPLAY] = display
    book.head[ICEBERGS] += 1
    book.head[SLICES] += slices(hidden, display)


@kernel(inline=True)
def unlink(book: Any, slot: Any, i: Any) -> None:
    """Take the order in `slot` out of level `i` of its side, and free the slot."""
    side = book.orders[slot, SIDE]
    s = side - 1
    after = book.orders[slot, NEXT]
    before = book.orders[slot, PREV]
    if before < 0:
        book.levels[s, i, FIRST] = after
    else:
        book.orders[before, NEXT] = after
    if after < 0:
        book.levels[s, i, FINAL] = before
    else:
        book.orders[after, PREV] = before
    book.levels[s, i, QTY] -= book.orders[slot, OPEN]
    book.levels[s, i, ORDERS] -= 1
    if book.head[ICEBERGS] > 0:
        _uncover(book, slot)
    if book.levels[s, i, ORDERS] == 0:
        _drop_level(book, side, i)
    _tally(book, slot, -1)
    book.orders[slot, ID] = 0
    book.orders[slot, NEXT] = book.head[FREE]
    book.head[FREE] = slot


@kernel(inline=True)
def _record(book: Any, slot: Any, qty: Any) -> None:
    k = book.head[N_FILLS]
    book.fills[k, MAKER_ID] = book.orders[slot, ID]
    book.fills[k, MAKER_OWNER] = book.orders[slot, OWNER]
    book.fills[k, FILL_PX] = book.orders[slot, PX]
    book.fills[k, FILL_QTY] = qty
    book.fills[k, MAKER_LEAVES] = leaves_of(book, slot)
    book.fills[k, MAKER_CUM] = book.orders[slot, FILLED]
    book.head[N_FILLS] = k + 1


@kernel(inline=True)
def _trade(book: Any, owner: Any, side: Any, px: Any, qty: Any) -> Any:
    """Trade up to `qty` with resting orders at `px` or better; return what is left."""
    other = 3 - side
    while qty > 0 and crosses(book, side, px):
        i = book.head[N_LEVELS + other - 1] - 1
        slot = book.levels[other - 1, i, FIRST]
        if owner != 0 and book.orders[slot, OWNER] != 0:
            _record(book, slot, 0)
            unlink(book, slot, i)
            continue
        traded = min(qty, book.orders[slot, OPEN])
        qty -= traded
        book.orders[slot, OPEN] -= traded
        book.orders[slot, FILLED] += traded
        book.levels[other - 1, i, QTY] -= traded
        _record(book, slot, traded)
        if book.orders[slot, OPEN] == 0 and (book.head[ICEBERGS] == 0 or not refresh(book, slot, i)):
            unlink(book, slot, i)
    return qty


@kernel(inline=True)
def can_fill(book: Any, owner: Any, side: Any, px: Any, qty: Any) -> Any:
    """Whether `qty` could trade in full at `px` or better, not counting one's own resting orders."""
    other = 3 - side
    for i in range(book.head[N_LEVELS + other - 1] - 1, -1, -1):
        level_px = _key(other, book.levels[other - 1, i, KEY])
        if (level_px > px) if side == _BUY else (level_px < px):
            return False
        slot = book.levels[other - 1, i, FIRST]
        while slot >= 0:
            if owner == 0 or book.orders[slot, OWNER] == 0:
                qty -= leaves_of(book, slot)
                if qty <= 0:
                    return True
            slot = book.orders[slot, NEXT]
    return False


@kernel(inline=True)
def lacks_room(book: Any, side: Any, px: Any) -> Any:
    """Whether a new level at `px` would not fit."""
    return book.head[N_LEVELS + side - 1] == book.levels.shape[1] and level_at(book, side, px) < 0


@kernel(inline=True)
def _arrive(book: Any, owner: Any, side: Any, px: Any, qty: Any, tif: Any) -> Any:
    """Trade and rest an order that has been admitted."""
    asked = qty
    if tif != _FOK or can_fill(book, owner, side, px, qty):
        qty = _trade(book, owner, side, px, qty)
    cum = asked - qty
    book.head[LEAVES] = qty
    book.head[CUM] = cum
    if qty == 0:
        return _FILLED
    if tif in (_IOC, _FOK):
        return _EXPIRED
    rest(book, owner, side, px, qty, cum)
    return _RESTING


@kernel(inline=True)
def submit(book: Any, owner: Any, side: Any, px: Any, qty: Any, tif: Any, post_only: Any) -> Any:
    """Return what became of a new order, an `Outcome`; its trades are the first ``head[5]`` rows of ``book.fills``.

    Parameters
    ----------
    book : Book
    owner : int64
        0 for an anonymous order, else a tag the fills carry; owned orders do not trade with each other.
    side, tif : int64
        `Side` and `Tif`; whatever is not IOC or FOK rests.
    px : int64
        Limit, ticks, above -2**63; `market_px` for none.
    qty : int64
        Lots, > 0.
    post_only : bool
        Refuse if any part would trade.
    """
    book.head[N_FILLS] = 0
    book.head[LAST_ID] = 0
    book.head[LEAVES] = 0
    book.head[CUM] = 0
    if qty <= 0:
        return _BAD_QTY
    if post_only and crosses(book, side, px):
        return _WOULD_CROSS
    if tif not in (_IOC, _FOK) and (book.head[FREE] < 0 or lacks_room(book, side, px)):
        return _FULL
    return _arrive(book, owner, side, px, qty, tif)


@kernel(inline=True)
def take_off(book: Any, slot: Any) -> Any:
    """Take the order in `slot` off the book; return the lots it still had open, hidden ones among them."""
    leaves = leaves_of(book, slot)
    unlink(book, slot, level_at(book, book.orders[slot, SIDE], book.orders[slot, PX]))
    return leaves


@kernel(inline=True)
def cancel(book: Any, order_id: Any) -> Any:
    """Return the lots that the canceled order still had open, or ``Outcome.UNKNOWN`` if no such order rests."""
    slot = find_order(book, order_id)
    if slot < 0:
        return _UNKNOWN
    return take_off(book, slot)


@kernel(inline=True)
def replace(
    book: Any, order_id: Any, owner: Any, px: Any, qty: Any, tif: Any, post_only: Any, keep_priority: Any
) -> Any:
    """Return what became of the order that takes the place of a resting one, an `Outcome`.

    Parameters
    ----------
    book : Book
    order_id : int64
        The resting order.
    owner : int64
        Its new tag; 0 only if it was anonymous.
    px : int64
        New limit, ticks.
    qty : int64
        Lots that the new order wants, > 0; what the old one has filled does not count.
    tif, post_only
        As in `submit`.
    keep_priority : bool
        Whether same price and no more quantity keeps the place in the queue (and the id). An iceberg's replacement
        always goes to the back, and is a plain order until it is concealed again.
    """
    book.head[N_FILLS] = 0
    book.head[LAST_ID] = 0
    book.head[LEAVES] = 0
    book.head[CUM] = 0
    slot = find_order(book, order_id)
    if slot < 0:
        return _UNKNOWN
    side = book.orders[slot, SIDE]
    if qty <= 0:
        return _BAD_QTY
    if post_only and crosses(book, side, px):
        return _WOULD_CROSS
    old_px = book.orders[slot, PX]
    i = level_at(book, side, old_px)
    may_rest = tif not in (_IOC, _FOK)
    same_place = keep_priority and may_rest and px == old_px and qty <= book.orders[slot, OPEN]
    if same_place and book.hidden[slot, DISPLAY] == 0:
        book.levels[side - 1, i, QTY] -= book.orders[slot, OPEN] - qty
        book.orders[slot, OPEN] = qty
        book.orders[slot, FILLED] = 0
        book.orders[slot, OWNER] = owner
        book.head[LAST_ID] = order_id
        book.head[LEAVES] = qty
        return _RESTING
    if may_rest and book.levels[side - 1, i, ORDERS] > 1 and lacks_room(book, side, px):
        return _FULL
    unlink(book, slot, i)
    return _arrive(book, owner, side, px, qty, tif)


_BOOK_TYPE = types.NamedTuple([types.Array(types.int64, ndim, "C") for ndim in (1, 2, 3, 2, 2)], Book)


@intrinsic
def _book_at(typingctx: Any, at: Any) -> Any:
    """Return the book whose arrays' addresses and lengths stand at `at`, as `Matcher` lays them.

    An intrinsic, because a kernel without reference counting may not return an array.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(types.int64)
        places = builder.inttoptr(args[0], word.as_pointer())
        values = [builder.load(builder.gep(places, [word(i)])) for i in range(7)]
        n_orders, n_levels = values[5:]
        n_fills = builder.add(n_orders, n_orders)
        shapes = (
            [word(HEAD_SIZE)], [n_orders, word(8)], [word(2), n_levels, word(5)], [n_fills, word(6)],
            [n_orders, word(2)],
        )  # fmt: skip
        arrays = []
        for array_type, address, shape in zip(_BOOK_TYPE.types, values, shapes, strict=False):
            array = context.make_array(array_type)(context, builder)
            strides = [word(8)]
            for length in shape[:0:-1]:
                strides.insert(0, builder.mul(strides[0], length))
            data = builder.inttoptr(address, context.get_data_type(types.int64).as_pointer())
            populate_array(array, data=data, shape=shape, strides=strides, itemsize=word(8), meminfo=None)
            arrays.append(array._getvalue())
        return context.make_tuple(builder, signature.return_type, arrays)

    return _BOOK_TYPE(types.int64), codegen


@kernel()
def _submit_at(at: int, owner: int, side: int, px: int, qty: int, tif: int, post_only: bool) -> Any:
    return submit(_book_at(at), owner, side, px, qty, tif, post_only)


@kernel()
def _cancel_at(at: int, order_id: int) -> Any:
    return cancel(_book_at(at), order_id)


@kernel()
def _replace_at(
    at: int, order_id: int, owner: int, px: int, qty: int, tif: int, post_only: bool, keep_priority: bool
) -> Any:
    return replace(_book_at(at), order_id, owner, px, qty, tif, post_only, keep_priority)


class Matcher:
    """A book for callers in Python: the same kernels, called with one address instead of four arrays.

    Taking a `Book` apart costs 0.6 us a call, several times what matching an order does; an address costs nothing.

    Parameters
    ----------
    max_orders, max_levels : int
        As of `make_book`.

    Attributes
    ----------
    book : Book
        Its arrays. They stay where they are: write into them, never replace them.

    Examples
    --------
    >>> matcher = Matcher(16, 8)
    >>> Outcome(matcher.submit(0, 2, 100, 5)), Outcome(matcher.submit(0, 1, 101, 2))
    (<Outcome.RESTING: 1>, <Outcome.FILLED: 2>)
    >>> matcher.fills[:, 2:4].tolist()
    [[100, 2]]
    """

    def __init__(self, max_orders: int = 8192, max_levels: int = 2048) -> None:
        self.book = make_book(max_orders, max_levels)
        self._places = np.array([*map(address_of, self.book), max_orders, max_levels], np.int64)
        self._at = address_of(self._places)
        self._head = self.book.head.data  # a memoryview: reading an item costs a third of NumPy's

    @property
    def last_id(self) -> int:
        """Return the id of the order that the last submit or replace left resting; 0 if it left none."""
        return self._head[LAST_ID]

    @property
    def fills(self) -> Int64s:
        """Return the trades of the last submit or replace, a view; columns `FILL_FIELDS`."""
        return self.book.fills[: self._head[N_FILLS]]

    def submit(
        self, owner: int, side: int, px: int, qty: int, tif: int = int(Tif.GTC), post_only: bool = False
    ) -> int:
        """Return what became of a new order; see `submit`."""
        return int(_submit_at(self._at, owner, side, px, qty, tif, post_only))

    def cancel(self, order_id: int) -> int:
        """Return the lots a canceled order still had open; see `cancel`."""
        return int(_cancel_at(self._at, order_id))

    def replace(
        self,
        order_id: int,
        owner: int,
        px: int,
        qty: int,
        tif: int = int(Tif.GTC),
        post_only: bool = False,
        keep_priority: bool = False,
    ) -> int:
        """Return what became of the order that takes the place of a resting one; see `replace`."""
        return int(_replace_at(self._at, order_id, owner, px, qty, tif, post_only, keep_priority))
