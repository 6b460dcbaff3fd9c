"""What an order may ask for beyond a price, a quantity and a time in force; and what a market does around it.

The model: one instrument's market at a venue with phases, auctions and a rule book. It is built of `matching`'s own
functions on `matching`'s own arrays, beside which it keeps what that module does not know: an order's account and
expiry, the stops, the settings, the clock. So the plain path stays as fast as it was, and a market that needs rules
pays for them.

**One step, one taker.** Every call runs at most one incoming order, so what a call may write is bounded: each resting
order trades, or shows a slice, once, and a pro-rata level once more. The stops that its trades touch are not run inside
it: they wait, and `step` enters them one at a time. Whoever calls runs `step` until it returns 0 before the next
request (`RuledMatcher` does).

The rules, each with an acceptance script that a trader can read.

- *Price-time*: the best price first; at a price the oldest first; at the resting order's price.
- *Pro-rata*: at a price, an incoming order smaller than the level is shared: each resting order gets
  ``qty * shown // level``, rounded down; a share below `min_allocation` is nothing; what is left over goes by time.
- *Iceberg*: a slice of `display` lots shows; when it has traded the next goes to the back of its price. Hidden lots
  trade only after every slice shown at that price, and take no part in pro-rata shares.
- *Stop, stop-limit*: waits until a trade touches its price (buys: at or above; sells: at or below), then enters as a
  market or limit order. Touched stops enter after the order that touched them: buys first, lowest price first, then
  sells, highest first; at a price the oldest first. A stop that the last trade already touches is refused.
- *Minimum quantity*: so much trades at once, or the whole order expires; FOK is a minimum of all of it.
- *IOC, FOK, GTC, DAY, GTD*: DAY expires with `end_session`, GTD when `advance` reaches its time (by expiry, then age).
- *Post-only* is refused if any part would trade.
- *Replace*: the same price and no more lots than are open keeps the place; anything else goes to the back and may trade
  at once. The new quantity is what is wanted from now on. Of an iceberg the hidden lots go first. A stop's replacement
  changes its limit and quantity; its trigger and its place among the stops stay.
- *Self-trade*, where an order meets one of its account (0 has none): the newest, the oldest or both are canceled. In
  pro-rata this comes before the level is shared. It does not apply in an uncross.
- *Ticks*: limit and stop prices lie on the step of their price range, else the order is refused.
- *Bands*: a limit price beyond ``[low, high]`` is refused; a market order trades up to the band and what is left
  expires. Orders that a new band leaves outside expire. A best bid on the upper band, or offer on the lower, is a
  *limit state*: it is announced, and trading goes on at prices inside.
- *Auction*: orders gather, the book may cross; market orders are welcome, IOC, FOK, post-only and minimum quantity are
  not. Each change publishes the price the uncross would have now, its volume and imbalance (bid less offered lots).
- *Uncross*: one price for all, between the lowest and the highest limit in the book: the most volume, then the smallest
  imbalance, then nearest the reference price, then the higher. Without a reference, the last trade's; without one, the
  lowest. Where market orders alone meet, the reference; without one they do not trade. Market orders go first, then by
  price and time; an iceberg takes part whole, in its place, and shows a slice of the rest. Market orders left over
  expire.
- *Halt*: cancels only; nothing trades, nothing triggers, expiry goes on. A book that an auction left crossed leaves the
  halt by an auction.

The first rule broken names the refusal: the order's words, quantity, tick, band, expiry, phase, trigger or post-only,
room. A refusal changes nothing.

Bounds. Quantities are at most `MAX_QTY` (2**31 - 1 lots: a share's product fits int64), prices within `MAX_PX`; stops
have a table of their own. Worst case accepted: an expiry looks at every order of the table; an auction's indicative
price walks all levels at each change.

References
----------
CME Group, "Supported Matching Algorithms" (pro-rata with a minimum allocation, leftover by FIFO); NYSE, Nasdaq and
Xetra rule books for the order of the auction price's criteria.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError
from hftlab.core.rows import NO_PX, OrdType, Side, Tif
from hftlab.kernels import matching
from hftlab.kernels.jit import kernel
from hftlab.kernels.matching import (
    Book,
    Outcome,
    best_px,
    conceal,
    crosses,
    find_order,
    lacks_room,
    leaves_of,
    level_at,
    make_book,
    refresh,
    rest,
    slices,
    slices_fit,
    take_off,
    unlink,
)

__all__ = [
    "Allocation",
    "Event",
    "MAX_PX",
    "MAX_QTY",
    "Phase",
    "REQUEST_FIELDS",
    "RuledBook",
    "RuledMatcher",
    "Rules",
    "SelfTrade",
    "What",
    "Why",
    "advance",
    "cancel",
    "end_session",
    "make_ruled_book",
    "replace",
    "set_band",
    "set_phase",
    "step",
    "submit",
    "uncross",
]

Int64s = npt.NDArray[np.int64]

MAX_QTY = 2**31 - 1
"""Largest quantity of an order, lots."""
MAX_PX = 2**61
"""Largest price, and with a minus sign the smallest, ticks."""
STOP_BIT = 1 << 62
"""Set in the id of a stop that waits; `matching` would have to accept 2**42 orders to reach it."""


class Allocation(enum.IntEnum):
    """How the lots of an incoming order are given to the orders at a price."""

    PRICE_TIME = 0
    PRO_RATA = 1


class SelfTrade(enum.IntEnum):
    """What happens where an order meets a resting one of its own account."""

    ALLOWED = 0
    CANCEL_NEWEST = 1
    CANCEL_OLDEST = 2
    CANCEL_BOTH = 3


class Phase(enum.IntEnum):
    """What the market does with orders."""

    CONTINUOUS = 1
    AUCTION = 2
    HALTED = 3
    CLOSED = 4


class What(enum.IntEnum):
    """What an event says."""

    ACCEPTED = 1
    REPLACED = 2
    TRADE = 3
    RESTING = 4
    PARKED = 5
    TRIGGERED = 6
    CANCELED = 7
    EXPIRED = 8
    INDICATIVE = 9
    LIMIT_STATE = 10


class Why(enum.IntEnum):
    """Why an order was canceled or expired."""

    NONE = 0
    ASKED = 1
    SELF_TRADE = 2
    TIME_IN_FORCE = 3
    MIN_QTY = 4
    EXPIRY = 5
    END_OF_SESSION = 6
    BAND = 7
    UNCROSSED = 8
    FULL = 9


# a request
TAG, ACCOUNT, SIDE, TYPE, PX, QTY, TIF, POST_ONLY, STOP, DISPLAY, MIN, EXPIRE = range(12)
REQUEST_FIELDS = (
    "tag", "account", "side", "ord_type", "px", "qty", "tif", "post_only", "stop_px", "display_qty", "min_qty",
    "expire_ns",
)  # fmt: skip
"""The int64 words of a request, in order."""

# a resting order's or a stop's further words, at its slot
R_ACCOUNT, R_TIF, R_EXPIRE, R_AGE, R_LIMIT, R_DISPLAY, R_MIN = range(7)

# state
PHASE, NOW, AGE, LAST, TOUCH_HIGH, TOUCH_LOW, BAND_LOW, BAND_HIGH, REFERENCE = range(9)
ALLOCATION, MIN_ALLOCATION, SELF_TRADE, N_EVENTS, NEXT_EXPIRY, LIMIT = range(9, 15)
CLEAR_PX, CLEAR_QTY, CLEAR_IMBALANCE = range(15, 18)
LEAVES, CUM, LAST_ID, STOPPED = range(18, 22)
STATE_SIZE = 22

# an event
E_WHAT, E_SIDE, E_PX, E_QTY, E_ID, E_TAG, E_LEAVES, E_CUM, E_OTHER_TAG, E_OTHER_LEAVES, E_OTHER_CUM, E_WHY = range(12)

_BUY, _SELL = int(Side.BUY), int(Side.SELL)
_DAY, _GTC, _IOC, _FOK, _GTD = (int(t) for t in (Tif.DAY, Tif.GTC, Tif.IOC, Tif.FOK, Tif.GTD))
_MARKET, _LIMIT, _STOP, _STOP_LIMIT = (int(t) for t in OrdType)
_CONTINUOUS, _AUCTION, _CLOSED = int(Phase.CONTINUOUS), int(Phase.AUCTION), int(Phase.CLOSED)
_PRO_RATA = int(Allocation.PRO_RATA)
_ALLOWED, _NEWEST, _OLDEST, _BOTH = (int(s) for s in SelfTrade)
_ACCEPTED, _REPLACED, _TRADE, _RESTS, _PARKS = (int(w) for w in list(What)[:5])
_TRIGGERS, _CANCELS, _EXPIRES, _INDICATES, _LIMITS = (int(w) for w in list(What)[5:])
_ASKED, _SELF, _BY_TIF, _BY_MIN, _BY_TIME, _BY_SESSION, _BY_BAND, _BY_UNCROSS, _BY_ROOM = (
    int(w) for w in list(Why)[1:]
)
_BAD_ORDER, _OFF_TICK, _BEYOND_BAND = int(Outcome.BAD_ORDER), int(Outcome.OFF_TICK), int(Outcome.BEYOND_BAND)
_BAD_TIME, _BAD_PHASE, _WOULD_TRIGGER = int(Outcome.BAD_TIME), int(Outcome.BAD_PHASE), int(Outcome.WOULD_TRIGGER)
_STOPS_FULL, _UNKNOWN, _BAD_QTY = int(Outcome.STOPS_FULL), int(Outcome.UNKNOWN), int(Outcome.BAD_QTY)
_FULL, _WOULD_CROSS = int(Outcome.FULL), int(Outcome.WOULD_CROSS)
_RESTING, _FILLED, _EXPIRED, _PARKED, _CANCELED = (int(o) for o in (1, 2, 3, 4, 5))
_AT_BEST = 2**63 - 1  # the key of a market order that gathers for an auction
_NEVER = 2**63 - 1


class RuledBook(NamedTuple):
    """The arrays of one instrument's market, all int64.

    Parameters
    ----------
    book : Book
        Resting orders. An order's owner is its tag.
    stops : Book
        Stops that wait, at their trigger prices: a buy stop as an offer and a sell stop as a bid, so that the one
        that triggers first is at the touch.
    resting, waiting : array, shape (max_orders, 7) and (max_stops, 7)
        What `Book` does not hold of an order: account, time in force, expiry, age, and of a stop what it becomes.
    state : array, shape (22,)
    ticks : array, shape (n, 2)
        Price from which a step holds, ascending, and the step.
    events : array, shape (at least 4 * max_orders + max_stops + 16, 12)
        What the last call did, in order; ``state[12]`` of them.
    scratch : array, shape (max_orders + max_stops, 4)
    """

    book: Book
    stops: Book
    resting: Int64s
    waiting: Int64s
    state: Int64s
    ticks: Int64s
    events: Int64s
    scratch: Int64s


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of a market.

    Parameters
    ----------
    allocation : Allocation
    min_allocation : int
        Smallest pro-rata share, lots, >= 1.
    self_trade : SelfTrade
    ticks : sequence of (from_px, step)
        Price step in ticks from a price on; the first holds below its own price too. Each `from_px` is a multiple of
        its own step and of the step before it.

    Raises
    ------
    ConfigError
        If a setting is out of its range.
    """

    allocation: Allocation = Allocation.PRICE_TIME
    min_allocation: int = 1
    self_trade: SelfTrade = SelfTrade.CANCEL_OLDEST
    ticks: Sequence[tuple[int, int]] = ((0, 1),)

    def __post_init__(self) -> None:
        if self.min_allocation < 1:
            raise ConfigError(f"min_allocation is {self.min_allocation}; expected 1 or more")
        if not self.ticks:
            raise ConfigError("ticks is empty; expected at least one (from_px, step)")
        before: tuple[int, int] | None = None
        for from_px, size in self.ticks:
            if size < 1 or from_px % size or (before and (from_px <= before[0] or from_px % before[1])):
                raise ConfigError(
                    f"ticks has ({from_px}, {size}) after {before}; expected ascending prices, steps of 1 or more, "
                    "and a price that is a multiple of both steps"
                )
            before = (from_px, size)


def make_ruled_book(
    rules: Rules | None = None, max_orders: int = 8192, max_levels: int = 2048, max_stops: int = 1024
) -> RuledBook:
    """Return a market without orders, in continuous trading, at time 0.

    Parameters
    ----------
    rules : Rules, optional
    max_orders, max_levels : int
        As of `matching.make_book`.
    max_stops : int
        Stops that may wait at a time, both sides together.
    """
    rules = rules or Rules()
    state = np.zeros(STATE_SIZE, np.int64)
    state[PHASE], state[NEXT_EXPIRY] = _CONTINUOUS, _NEVER
    state[[LAST, REFERENCE, CLEAR_PX]] = NO_PX
    state[TOUCH_HIGH], state[TOUCH_LOW] = -_NEVER, _NEVER
    state[BAND_LOW], state[BAND_HIGH] = -MAX_PX, MAX_PX
    state[ALLOCATION], state[MIN_ALLOCATION] = rules.allocation, rules.min_allocation
    state[SELF_TRADE] = rules.self_trade
    return RuledBook(
        make_book(max_orders, max_levels),
        make_book(max_stops, max_stops),
        np.zeros((max_orders, 7), np.int64),
        np.zeros((max_stops, 7), np.int64),
        state,
        np.array(rules.ticks, np.int64).reshape(-1, 2),
        np.zeros((4 * max_orders + max_stops + 16, 12), np.int64),
        np.zeros((max_orders + max_stops, 4), np.int64),
    )


# -- events


@kernel(inline=True)
def _tell(
    venue: Any, what: Any, side: Any, px: Any, qty: Any, order_id: Any, tag: Any, open_: Any, cum: Any, why: Any
) -> None:
    event = venue.events[venue.state[N_EVENTS]]
    event[E_WHAT], event[E_SIDE], event[E_PX], event[E_QTY] = what, side, px, qty
    event[E_ID], event[E_TAG], event[E_LEAVES], event[E_CUM] = order_id, tag, open_, cum
    event[E_OTHER_TAG], event[E_OTHER_LEAVES], event[E_OTHER_CUM], event[E_WHY] = 0, 0, 0, why
    venue.state[N_EVENTS] += 1


@kernel(inline=True)
def _tell_gone(venue: Any, what: Any, slot: Any, why: Any) -> None:
    """Tell that the order in `slot` leaves the book."""
    order = venue.book.orders[slot]
    _tell(
        venue, what, order[matching.SIDE], order[matching.PX], leaves_of(venue.book, slot), order[matching.ID],
        order[matching.OWNER], 0, order[matching.FILLED], why,
    )  # fmt: skip


@kernel(inline=True)
def _note_trade(venue: Any, px: Any) -> None:
    state = venue.state
    state[LAST] = px
    state[TOUCH_HIGH] = max(state[TOUCH_HIGH], px)
    state[TOUCH_LOW] = min(state[TOUCH_LOW], px)


# -- trading


@kernel(inline=True)
def _fill(venue: Any, slot: Any, i: Any, qty: Any, tag: Any) -> None:
    """Trade `qty` lots of what the order in `slot` of level `i` shows with the incoming order."""
    book = venue.book
    state = venue.state
    order = book.orders[slot]
    state[LEAVES] -= qty
    state[CUM] += qty
    order[matching.OPEN] -= qty
    order[matching.FILLED] += qty
    book.levels[order[matching.SIDE] - 1, i, matching.QTY] -= qty
    event = venue.events[state[N_EVENTS]]
    event[E_WHAT], event[E_SIDE], event[E_PX], event[E_QTY] = _TRADE, 3 - order[matching.SIDE], order[matching.PX], qty
    event[E_ID], event[E_TAG], event[E_CUM] = order[matching.ID], order[matching.OWNER], order[matching.FILLED]
    event[E_LEAVES] = leaves_of(book, slot)
    event[E_OTHER_TAG], event[E_OTHER_LEAVES], event[E_OTHER_CUM], event[E_WHY] = tag, state[LEAVES], state[CUM], 0
    state[N_EVENTS] += 1
    _note_trade(venue, order[matching.PX])
    if order[matching.OPEN] == 0 and (book.head[matching.ICEBERGS] == 0 or not refresh(book, slot, i)):
        unlink(book, slot, i)


@kernel()
def _fill_level(venue: Any, side: Any, i: Any, tag: Any) -> None:
    """Trade everything shown at level `i` of `side`, oldest first."""
    book = venue.book
    for _ in range(book.levels[side - 1, i, matching.ORDERS]):
        slot = book.levels[side - 1, i, matching.FIRST]
        _fill(venue, slot, i, book.orders[slot, matching.OPEN], tag)


@kernel()
def _share_level(venue: Any, side: Any, i: Any, tag: Any) -> None:
    """Share an incoming order that is smaller than level `i` of `side`."""
    book = venue.book
    qty = venue.state[LEAVES]
    shown = book.levels[side - 1, i, matching.QTY]
    n = book.levels[side - 1, i, matching.ORDERS]
    left = qty
    slot = book.levels[side - 1, i, matching.FIRST]
    for _ in range(n):
        share = qty * book.orders[slot, matching.OPEN] // shown
        if share < venue.state[MIN_ALLOCATION]:
            share = 0
        venue.scratch[slot, 0] = share
        left -= share
        slot = book.orders[slot, matching.NEXT]
    slot = book.levels[side - 1, i, matching.FIRST]
    for _ in range(n):
        after = book.orders[slot, matching.NEXT]
        share = venue.scratch[slot, 0]
        more = min(left, book.orders[slot, matching.OPEN] - share)
        left -= more
        if share + more > 0:
            _fill(venue, slot, i, share + more, tag)
        slot = after


@kernel(inline=True)
def _own_at(venue: Any, side: Any, i: Any, account: Any) -> Any:
    """Slot of the oldest order of `account` at level `i` that an incoming order meets next, or -1."""
    book = venue.book
    slot = book.levels[side - 1, i, matching.FIRST]
    if venue.state[ALLOCATION] != _PRO_RATA:
        return slot if venue.resting[slot, R_ACCOUNT] == account else -1
    while slot >= 0 and venue.resting[slot, R_ACCOUNT] != account:
        slot = book.orders[slot, matching.NEXT]
    return slot


@kernel(inline=True)
def _trade(venue: Any, tag: Any, account: Any, side: Any, px: Any) -> None:
    """Trade ``state[LEAVES]`` lots at `px` or better; sets ``state[STOPPED]`` where self-trade prevention ends it."""
    book = venue.book
    state = venue.state
    other = 3 - side
    mode = state[SELF_TRADE] if account != 0 else _ALLOWED
    while state[LEAVES] > 0 and crosses(book, side, px):
        i = book.head[matching.N_LEVELS + other - 1] - 1
        own = -1
        if mode != _ALLOWED:
            own = _own_at(venue, other, i, account)
        if own >= 0:
            if mode != _NEWEST:
                _tell_gone(venue, _CANCELS, own, _SELF)
                unlink(book, own, i)
            if mode != _OLDEST:
                state[STOPPED] = 1
                return
        elif state[ALLOCATION] != _PRO_RATA:
            slot = book.levels[other - 1, i, matching.FIRST]
            _fill(venue, slot, i, min(state[LEAVES], book.orders[slot, matching.OPEN]), tag)
        elif state[LEAVES] >= book.levels[other - 1, i, matching.QTY]:
            _fill_level(venue, other, i, tag)
        else:
            _share_level(venue, other, i, tag)


@kernel()
def _level_offers(venue: Any, side: Any, i: Any, account: Any) -> Any:
    """Lots of level `i` that an order of `account` can trade with; negative, less 1, if it can get no further."""
    book = venue.book
    state = venue.state
    mode = state[SELF_TRADE] if account != 0 else _ALLOWED
    everything = 0
    ahead = 0  # shown before the first own order
    met = False
    slot = book.levels[side - 1, i, matching.FIRST]
    while slot >= 0:
        if mode != _ALLOWED and venue.resting[slot, R_ACCOUNT] == account:
            met = True
        else:
            everything += leaves_of(book, slot)
            ahead += 0 if met else book.orders[slot, matching.OPEN]
        slot = book.orders[slot, matching.NEXT]
    if not met or mode == _OLDEST:
        return everything
    return -1 if state[ALLOCATION] == _PRO_RATA else -1 - ahead


@kernel()
def _offers(venue: Any, account: Any, side: Any, px: Any, qty: Any) -> Any:
    """Whether `qty` lots could trade at once at `px` or better."""
    book = venue.book
    other = 3 - side
    for i in range(book.head[matching.N_LEVELS + other - 1] - 1, -1, -1):
        key = book.levels[other - 1, i, matching.KEY]
        if -key > (px if side == _BUY else -px):
            return False
        found = _level_offers(venue, other, i, account)
        if found < 0:
            return -1 - found >= qty
        qty -= found
        if qty <= 0:
            return True
    return False


# -- admission


@kernel(inline=True)
def _step_at(venue: Any, px: Any) -> Any:
    i = len(venue.ticks) - 1
    while i > 0 and venue.ticks[i, 0] > px:
        i -= 1
    return venue.ticks[i, 1]


@kernel(inline=True)
def _on_tick(venue: Any, px: Any) -> Any:
    return -MAX_PX < px < MAX_PX and px % _step_at(venue, px) == 0


@kernel(inline=True)
def _in_band(venue: Any, px: Any) -> Any:
    return venue.state[BAND_LOW] <= px <= venue.state[BAND_HIGH]


@kernel(inline=True)
def _touched(venue: Any, side: Any, stop_px: Any, px: Any) -> Any:
    """Whether a trade at `px` touches a stop of `side`."""
    if px == NO_PX:
        return False
    return px >= stop_px if side == _BUY else px <= stop_px


@kernel(inline=True)
def _words_fit(request: Any) -> Any:
    """Whether a request's options are known and go together."""
    side, kind, tif = request[SIDE], request[TYPE], request[TIF]
    if side not in (_BUY, _SELL) or not _MARKET <= kind <= _STOP_LIMIT:
        return False
    if tif not in (_DAY, _GTC, _IOC, _FOK, _GTD):
        return False
    priced = kind == _LIMIT or kind == _STOP_LIMIT
    if request[POST_ONLY] != 0 and (kind != _LIMIT or tif in (_IOC, _FOK) or request[MIN] != 0):
        return False
    return request[DISPLAY] == 0 or (priced and tif not in (_IOC, _FOK))


@kernel(inline=True)
def _objection(venue: Any, request: Any) -> Any:
    """Why a new order is refused as far as its own words go, an `Outcome` below 0; else 0."""
    state = venue.state
    qty, kind = request[QTY], request[TYPE]
    if not _words_fit(request):
        return _BAD_ORDER
    if not (0 < qty <= MAX_QTY and 0 <= request[DISPLAY] <= qty and 0 <= request[MIN] <= qty):
        return _BAD_QTY
    stops = kind == _STOP or kind == _STOP_LIMIT
    if stops and not _on_tick(venue, request[STOP]):
        return _OFF_TICK
    if kind == _LIMIT or kind == _STOP_LIMIT:
        if not _on_tick(venue, request[PX]):
            return _OFF_TICK
        if not _in_band(venue, request[PX]):
            return _BEYOND_BAND
    if request[TIF] == _GTD and request[EXPIRE] <= state[NOW]:
        return _BAD_TIME
    if state[PHASE] != _CONTINUOUS and state[PHASE] != _AUCTION:
        return _BAD_PHASE
    if stops and _touched(venue, request[SIDE], request[STOP], state[LAST]):
        return _WOULD_TRIGGER
    immediate = request[TIF] in (_IOC, _FOK) or request[MIN] != 0 or request[POST_ONLY] != 0
    if state[PHASE] == _AUCTION and immediate and not stops:
        return _BAD_PHASE
    return 0


@kernel(inline=True)
def _limit_of(venue: Any, side: Any, kind: Any, px: Any) -> Any:
    """Price up to which an order trades: its own, or the band's of a market order."""
    if kind == _LIMIT or kind == _STOP_LIMIT:
        return px
    if venue.state[PHASE] == _AUCTION:
        return _AT_BEST if side == _BUY else -_AT_BEST
    return venue.state[BAND_HIGH] if side == _BUY else venue.state[BAND_LOW]


@kernel(inline=True)
def _may_rest(venue: Any, kind: Any, tif: Any) -> Any:
    if kind == _MARKET or kind == _STOP:
        return venue.state[PHASE] == _AUCTION
    return tif != _IOC and tif != _FOK


@kernel(inline=True)
def _has_room(venue: Any, side: Any, px: Any, qty: Any, display: Any) -> Any:
    book = venue.book
    if book.head[matching.FREE] < 0 or lacks_room(book, side, px):
        return False
    return display == 0 or slices_fit(book, qty, display)


# -- one order


@kernel(inline=True)
def _come_to_rest(
    venue: Any, tag: Any, account: Any, side: Any, px: Any, tif: Any, display: Any, expire: Any
) -> None:
    """Put what is left of the incoming order at the back of its price; the caller has made sure that it fits."""
    book = venue.book
    state = venue.state
    rest(book, tag, side, px, state[LEAVES], state[CUM])
    order_id = book.head[matching.LAST_ID]
    slot = find_order(book, order_id)
    if display != 0:
        conceal(book, order_id, display)
    word = venue.resting[slot]
    state[AGE] += 1
    word[R_ACCOUNT], word[R_TIF], word[R_EXPIRE], word[R_AGE] = account, tif, expire, state[AGE]
    word[R_DISPLAY] = display
    if tif == _GTD:
        state[NEXT_EXPIRY] = min(state[NEXT_EXPIRY], expire)
    state[LAST_ID] = order_id
    _tell(venue, _RESTS, side, px, book.orders[slot, matching.OPEN], order_id, tag, state[LEAVES], state[CUM], 0)


@kernel(inline=True)
def _enter(
    venue: Any, tag: Any, account: Any, side: Any, kind: Any, px: Any, qty: Any, tif: Any, display: Any, least: Any,
    expire: Any,
) -> Any:  # fmt: skip
    """Trade and rest an order that has been admitted; return its `Outcome`."""
    state = venue.state
    state[LEAVES], state[CUM], state[STOPPED] = qty, 0, 0
    limit = _limit_of(venue, side, kind, px)
    if state[PHASE] == _CONTINUOUS:
        needed = qty if tif == _FOK else least
        if needed > 0 and not _offers(venue, account, side, limit, needed):
            _tell(venue, _EXPIRES, side, 0, qty, 0, tag, 0, 0, _BY_TIF if tif == _FOK else _BY_MIN)
            return _EXPIRED
        _trade(venue, tag, account, side, limit)
    if state[LEAVES] == 0:
        return _FILLED
    if state[STOPPED] != 0:
        _tell(venue, _CANCELS, side, 0, state[LEAVES], 0, tag, 0, state[CUM], _SELF)
        return _CANCELED
    if not _may_rest(venue, kind, tif):
        _tell(venue, _EXPIRES, side, 0, state[LEAVES], 0, tag, 0, state[CUM], _BY_TIF)
        return _EXPIRED
    _come_to_rest(venue, tag, account, side, limit, tif, display, expire)
    return _RESTING


@kernel()
def _park(venue: Any, request: Any) -> Any:
    """Let a stop wait at its trigger price."""
    stops = venue.stops
    side = request[SIDE]
    as_side = 3 - side
    if stops.head[matching.FREE] < 0:
        return _STOPS_FULL
    rest(stops, request[TAG], as_side, request[STOP], request[QTY], 0)
    order_id = stops.head[matching.LAST_ID]
    word = venue.waiting[find_order(stops, order_id)]
    state = venue.state
    state[AGE] += 1
    word[R_ACCOUNT], word[R_TIF], word[R_EXPIRE], word[R_AGE] = (
        request[ACCOUNT], request[TIF], request[EXPIRE], state[AGE],
    )  # fmt: skip
    word[R_LIMIT] = request[PX] if request[TYPE] == _STOP_LIMIT else NO_PX
    word[R_DISPLAY], word[R_MIN] = request[DISPLAY], request[MIN]
    if request[TIF] == _GTD:
        state[NEXT_EXPIRY] = min(state[NEXT_EXPIRY], request[EXPIRE])
    state[LAST_ID] = order_id | STOP_BIT
    _tell(venue, _PARKS, side, request[STOP], request[QTY], order_id | STOP_BIT, request[TAG], request[QTY], 0, 0)
    return _PARKED


@kernel(inline=True)
def _begin(venue: Any) -> None:
    venue.state[N_EVENTS] = 0
    venue.state[LAST_ID] = 0
    venue.state[LEAVES] = 0
    venue.state[CUM] = 0


@kernel()
def submit(venue: Any, request: Any) -> Any:
    """Return what became of a new order, an `Outcome`; events tell how. Run `step` afterwards until it returns 0.

    Parameters
    ----------
    venue : RuledBook
    request : int64 array, shape (12,)
        `REQUEST_FIELDS`. A price that the type does not use is not looked at; 0 is no display or minimum quantity.
    """
    _begin(venue)
    objection = _objection(venue, request)
    if objection < 0:
        return objection
    side, kind, tif = request[SIDE], request[TYPE], request[TIF]
    if kind == _STOP or kind == _STOP_LIMIT:
        return _park(venue, request)
    if request[POST_ONLY] != 0 and crosses(venue.book, side, request[PX]):
        return _WOULD_CROSS
    limit = _limit_of(venue, side, kind, request[PX])
    if _may_rest(venue, kind, tif) and not _has_room(venue, side, limit, request[QTY], request[DISPLAY]):
        return _FULL
    _tell(venue, _ACCEPTED, side, request[PX], request[QTY], 0, request[TAG], request[QTY], 0, 0)
    outcome = _enter(
        venue, request[TAG], request[ACCOUNT], side, kind, request[PX], request[QTY], tif, request[DISPLAY],
        request[MIN], request[EXPIRE],
    )  # fmt: skip
    _publish(venue)
    return outcome


@kernel()
def step(venue: Any) -> Any:
    """Enter the next stop that trades have touched; return its `Outcome`, or 0 if there is none.

    Parameters
    ----------
    venue : RuledBook
    """
    state = venue.state
    if state[PHASE] != _CONTINUOUS:
        return 0
    stops = venue.stops
    # a buy stop waits among the offers, so the best offer is the one that triggers first; a sell stop among the bids
    as_side = 0
    if stops.head[matching.N_LEVELS + 1] > 0 and best_px(stops, _SELL) <= state[TOUCH_HIGH]:
        as_side = _SELL
    elif stops.head[matching.N_LEVELS] > 0 and best_px(stops, _BUY) >= state[TOUCH_LOW]:
        as_side = _BUY
    if as_side == 0:
        state[TOUCH_HIGH], state[TOUCH_LOW] = -_NEVER, _NEVER
        return 0
    _begin(venue)
    i = stops.head[matching.N_LEVELS + as_side - 1] - 1
    slot = stops.levels[as_side - 1, i, matching.FIRST]
    outcome = _trigger(venue, slot, i)
    _publish(venue)
    return outcome


@kernel()
def _trigger(venue: Any, slot: Any, i: Any) -> Any:
    stops = venue.stops
    order = stops.orders[slot]
    word = venue.waiting[slot]
    side = 3 - order[matching.SIDE]
    tag, qty, px, display = order[matching.OWNER], order[matching.OPEN], word[R_LIMIT], word[R_DISPLAY]
    _tell(venue, _TRIGGERS, side, order[matching.PX], qty, order[matching.ID] | STOP_BIT, tag, qty, 0, 0)
    unlink(stops, slot, i)
    kind = _MARKET if px == NO_PX else _LIMIT
    why = 0
    if kind == _LIMIT and not _in_band(venue, px):
        why = _BY_BAND
    elif _may_rest(venue, kind, word[R_TIF]) and not _has_room(venue, side, px, qty, display):
        why = _BY_ROOM
    if why != 0:
        _tell(venue, _EXPIRES, side, 0, qty, 0, tag, 0, 0, why)
        return _EXPIRED
    return _enter(
        venue, tag, word[R_ACCOUNT], side, kind, px, qty, word[R_TIF], display, word[R_MIN], word[R_EXPIRE]
    )


@kernel()
def cancel(venue: Any, order_id: Any) -> Any:
    """Return the lots that the canceled order, or stop, still had open, or ``Outcome.UNKNOWN``; in every phase.

    Parameters
    ----------
    venue : RuledBook
    order_id : int64
    """
    _begin(venue)
    if order_id & STOP_BIT and order_id > 0:
        slot = find_order(venue.stops, order_id ^ STOP_BIT)
        if slot < 0:
            return _UNKNOWN
        return _drop_stop(venue, slot, _CANCELS, _ASKED)
    slot = find_order(venue.book, order_id)
    if slot < 0:
        return _UNKNOWN
    _tell_gone(venue, _CANCELS, slot, _ASKED)
    open_ = take_off(venue.book, slot)
    _publish(venue)
    return open_


@kernel()
def _drop_stop(venue: Any, slot: Any, what: Any, why: Any) -> Any:
    order = venue.stops.orders[slot]
    side, qty = 3 - order[matching.SIDE], order[matching.OPEN]
    _tell(
        venue, what, side, order[matching.PX], qty, order[matching.ID] | STOP_BIT, order[matching.OWNER], 0, 0, why
    )
    take_off(venue.stops, slot)
    return qty


# -- replace


@kernel()
def replace(venue: Any, order_id: Any, request: Any) -> Any:
    """Return what became of the order that takes the place of `order_id`, an `Outcome`.

    Parameters
    ----------
    venue : RuledBook
    order_id : int64
        A resting order or a waiting stop.
    request : int64 array, shape (12,)
        Tag, price, quantity and post-only count; everything else stays as it was. A market order's price, in an
        auction, and a plain stop's stay too.
    """
    _begin(venue)
    if order_id & STOP_BIT and order_id > 0:
        return _replace_stop(venue, order_id, request)
    book = venue.book
    slot = find_order(book, order_id)
    if slot < 0:
        return _UNKNOWN
    side, old_px = book.orders[slot, matching.SIDE], book.orders[slot, matching.PX]
    at_market = abs(old_px) == _AT_BEST
    px = old_px if at_market else request[PX]
    objection = _replace_objection(venue, request, px, not at_market)
    if objection < 0:
        return objection
    post_only = request[POST_ONLY] != 0
    if post_only and venue.state[PHASE] == _AUCTION:
        return _BAD_PHASE
    if post_only and crosses(book, side, px):
        return _WOULD_CROSS
    if px == old_px and request[QTY] <= leaves_of(book, slot):
        _reduce(venue, slot, request[TAG], request[QTY])
        outcome = _RESTING
    else:
        outcome = _move(venue, slot, request[TAG], px, request[QTY])
    if outcome > 0:
        _publish(venue)
    return outcome


@kernel()
def _replace_objection(venue: Any, request: Any, px: Any, priced: Any) -> Any:
    if not 0 < request[QTY] <= MAX_QTY:
        return _BAD_QTY
    if priced and not _on_tick(venue, px):
        return _OFF_TICK
    if priced and not _in_band(venue, px):
        return _BEYOND_BAND
    if venue.state[PHASE] != _CONTINUOUS and venue.state[PHASE] != _AUCTION:
        return _BAD_PHASE
    return 0


@kernel()
def _reduce(venue: Any, slot: Any, tag: Any, qty: Any) -> None:
    """Keep the place with `qty` lots, no more than are open; the hidden ones go first."""
    book = venue.book
    order = book.orders[slot]
    side = order[matching.SIDE]
    _set_leaves(book, slot, level_at(book, side, order[matching.PX]), min(order[matching.OPEN], qty), qty)
    if (order[matching.OWNER] == 0) != (tag == 0):
        here = 1 if tag == 0 else -1
        book.head[matching.ANONYMOUS + side - 1] += here
        book.head[matching.OWNED] -= here
    order[matching.OWNER] = tag
    order[matching.FILLED] = 0
    state = venue.state
    state[LAST_ID], state[LEAVES] = order[matching.ID], qty
    _tell(venue, _REPLACED, side, order[matching.PX], qty, order[matching.ID], tag, qty, 0, 0)


@kernel()
def _set_leaves(book: Any, slot: Any, i: Any, shown: Any, qty: Any) -> None:
    """Let the order in `slot` of level `i` have `qty` lots open, `shown` of them shown."""
    order = book.orders[slot]
    book.levels[order[matching.SIDE] - 1, i, matching.QTY] += shown - order[matching.OPEN]
    order[matching.OPEN] = shown
    display = book.hidden[slot, matching.DISPLAY]
    if display > 0:
        book.head[matching.SLICES] -= slices(book.hidden[slot, matching.HIDDEN], display)
        book.hidden[slot, matching.HIDDEN] = qty - shown
        book.head[matching.SLICES] += slices(qty - shown, display)


@kernel()
def _move(venue: Any, slot: Any, tag: Any, px: Any, qty: Any) -> Any:
    """Send a replaced order in anew; nothing has changed if it does not fit."""
    book = venue.book
    order = book.orders[slot]
    side, order_id = order[matching.SIDE], order[matching.ID]
    i = level_at(book, side, order[matching.PX])
    word = venue.resting[slot]
    account, tif, expire, display = word[R_ACCOUNT], word[R_TIF], word[R_EXPIRE], word[R_DISPLAY]
    freed = slices(book.hidden[slot, matching.HIDDEN], display) if display > 0 else 0
    if display > 0 and book.head[matching.SLICES] - freed + slices(qty, display) > book.orders.shape[0]:
        return _FULL
    if book.levels[side - 1, i, matching.ORDERS] > 1 and lacks_room(book, side, px):
        return _FULL
    kind = _MARKET if abs(px) == _AT_BEST else _LIMIT
    _tell(venue, _REPLACED, side, px, qty, order_id, tag, qty, 0, 0)
    unlink(book, slot, i)
    return _enter(venue, tag, account, side, kind, px, qty, tif, min(display, qty), 0, expire)


@kernel()
def _replace_stop(venue: Any, order_id: Any, request: Any) -> Any:
    stops = venue.stops
    slot = find_order(stops, order_id ^ STOP_BIT)
    if slot < 0:
        return _UNKNOWN
    word = venue.waiting[slot]
    priced = word[R_LIMIT] != NO_PX
    objection = _replace_objection(venue, request, request[PX], priced)
    if objection < 0:
        return objection
    if request[POST_ONLY] != 0:
        return _BAD_ORDER
    qty = request[QTY]
    if qty < word[R_MIN]:
        return _BAD_QTY
    order = stops.orders[slot]
    i = level_at(stops, order[matching.SIDE], order[matching.PX])
    _set_leaves(stops, slot, i, qty, qty)
    order[matching.OWNER] = request[TAG]
    if priced:
        word[R_LIMIT] = request[PX]
    word[R_DISPLAY] = min(word[R_DISPLAY], qty)
    state = venue.state
    state[LAST_ID], state[LEAVES] = order_id, qty
    _tell(venue, _REPLACED, 3 - order[matching.SIDE], order[matching.PX], qty, order_id, request[TAG], qty, 0, 0)
    return _PARKED


# -- time, phases and bands

_DUE, _OF_THE_DAY, _OUTSIDE, _AT_MARKET = 1, 2, 3, 4


@kernel(inline=True)
def _is_meant(venue: Any, which: Any, tif: Any, expire: Any, px: Any) -> Any:
    if which == _DUE:
        return tif == _GTD and expire <= venue.state[NOW]
    if which == _OF_THE_DAY:
        return tif == _DAY
    at_market = abs(px) == _AT_BEST
    if which == _AT_MARKET:
        return at_market
    return not at_market and not _in_band(venue, px)


@kernel()
def _sort(words: Any, n: Any) -> None:
    """Sort the first `n` rows by their first two words (Shell's sort: in place, no allocation)."""
    gap = n // 2
    while gap > 0:
        for i in range(gap, n):
            w0, w1, w2, w3 = words[i, 0], words[i, 1], words[i, 2], words[i, 3]
            j = i
            while j >= gap and (words[j - gap, 0] > w0 or (words[j - gap, 0] == w0 and words[j - gap, 1] > w1)):
                for c in range(4):
                    words[j, c] = words[j - gap, c]
                j -= gap
            words[j, 0], words[j, 1], words[j, 2], words[j, 3] = w0, w1, w2, w3
        gap //= 2


@kernel()
def _gather(venue: Any, which: Any, orders: Any, further: Any, high: Any, waits: Any, n: Any) -> Any:
    """Write expiry, age and slot of the orders meant to scratch from row `n` on; return the next free row."""
    for slot in range(high):
        if orders[slot, matching.ID] != 0 and _is_meant(
            venue, which, further[slot, R_TIF], further[slot, R_EXPIRE], orders[slot, matching.PX]
        ):
            venue.scratch[n, 0] = further[slot, R_EXPIRE] if which == _DUE else 0
            venue.scratch[n, 1] = further[slot, R_AGE]
            venue.scratch[n, 2] = slot
            venue.scratch[n, 3] = waits
            n += 1
    return n


@kernel()
def _expire(venue: Any, which: Any, why: Any) -> Any:
    """Let the orders meant expire, by expiry and then by age; return how many did."""
    book = venue.book
    stops = venue.stops
    n = _gather(venue, which, book.orders, venue.resting, book.head[matching.HIGH], 0, 0)
    if which == _DUE or which == _OF_THE_DAY:
        n = _gather(venue, which, stops.orders, venue.waiting, stops.head[matching.HIGH], 1, n)
    _sort(venue.scratch, n)
    for k in range(n):
        slot = venue.scratch[k, 2]
        if venue.scratch[k, 3] != 0:
            _drop_stop(venue, slot, _EXPIRES, why)
        else:
            _tell_gone(venue, _EXPIRES, slot, why)
            take_off(book, slot)
    return n


@kernel()
def _next_expiry(venue: Any) -> Any:
    found = _NEVER
    for slot in range(venue.book.head[matching.HIGH]):
        if venue.book.orders[slot, matching.ID] != 0 and venue.resting[slot, R_TIF] == _GTD:
            found = min(found, venue.resting[slot, R_EXPIRE])
    for slot in range(venue.stops.head[matching.HIGH]):
        if venue.stops.orders[slot, matching.ID] != 0 and venue.waiting[slot, R_TIF] == _GTD:
            found = min(found, venue.waiting[slot, R_EXPIRE])
    return found


@kernel()
def advance(venue: Any, now_ns: Any) -> Any:
    """Set the market's time; return how many GTD orders expired, or ``Outcome.BAD_TIME`` if time would run backwards.

    Parameters
    ----------
    venue : RuledBook
    now_ns : int64
    """
    _begin(venue)
    state = venue.state
    if now_ns < state[NOW]:
        return _BAD_TIME
    state[NOW] = now_ns
    if now_ns < state[NEXT_EXPIRY]:
        return 0
    n = _expire(venue, _DUE, _BY_TIME)
    state[NEXT_EXPIRY] = _next_expiry(venue)
    if n > 0:
        _publish(venue)
    return n


@kernel()
def end_session(venue: Any) -> Any:
    """Close the market; return how many DAY orders expired."""
    _begin(venue)
    n = _expire(venue, _OF_THE_DAY, _BY_SESSION)
    venue.state[PHASE] = _CLOSED
    _publish(venue)
    return n


@kernel()
def set_phase(venue: Any, phase: Any) -> Any:
    """Enter a phase; return 1, or ``Outcome.BAD_PHASE`` if a crossed book would trade continuously.

    An auction is left for continuous trading by `uncross` alone. Market orders that an auction gathered expire where
    trading goes on without it.

    Parameters
    ----------
    venue : RuledBook
    phase : int64
    """
    _begin(venue)
    state = venue.state
    if phase == _CONTINUOUS:
        book = venue.book
        offered = book.head[matching.N_LEVELS + 1] > 0
        if state[PHASE] == _AUCTION or (offered and crosses(book, _SELL, best_px(book, _SELL))):
            return _BAD_PHASE
        _expire(venue, _AT_MARKET, _BY_UNCROSS)
    state[PHASE] = phase
    if phase == _AUCTION:
        state[CLEAR_PX], state[CLEAR_QTY], state[CLEAR_IMBALANCE] = NO_PX, 0, 0
    _publish(venue)
    return 1


@kernel()
def set_band(venue: Any, low_px: Any, high_px: Any) -> Any:
    """Set the prices that orders may have, both included; return how many orders outside expired, oldest first.

    Parameters
    ----------
    venue : RuledBook
    low_px, high_px : int64
        Ticks; ``-MAX_PX`` and ``MAX_PX`` for none. ``Outcome.BAD_ORDER`` comes back, and nothing has changed, if they
        are not in order.
    """
    _begin(venue)
    if not -MAX_PX <= low_px <= high_px <= MAX_PX:
        return _BAD_ORDER
    venue.state[BAND_LOW], venue.state[BAND_HIGH] = low_px, high_px
    n = _expire(venue, _OUTSIDE, _BY_BAND)
    _publish(venue)
    return n


@kernel(inline=True)
def _publish(venue: Any) -> None:
    """Tell the auction's indicative price if it changed, and a limit state that came or went."""
    state = venue.state
    if state[PHASE] == _AUCTION:
        _publish_clearing(venue)
    elif state[PHASE] == _CONTINUOUS:
        _publish_limit(venue)


@kernel()
def _publish_clearing(venue: Any) -> None:
    state = venue.state
    px, qty, imbalance = state[CLEAR_PX], state[CLEAR_QTY], state[CLEAR_IMBALANCE]
    _clear(venue)
    if px != state[CLEAR_PX] or qty != state[CLEAR_QTY] or imbalance != state[CLEAR_IMBALANCE]:
        _tell(venue, _INDICATES, 0, state[CLEAR_PX], state[CLEAR_QTY], 0, 0, state[CLEAR_IMBALANCE], 0, 0)


@kernel(inline=True)
def _publish_limit(venue: Any) -> None:
    state = venue.state
    book = venue.book
    limit = 0
    if book.head[matching.N_LEVELS] > 0 and best_px(book, _BUY) >= state[BAND_HIGH]:
        limit = _BUY
    elif book.head[matching.N_LEVELS + 1] > 0 and best_px(book, _SELL) <= state[BAND_LOW]:
        limit = _SELL
    if limit != state[LIMIT]:
        state[LIMIT] = limit
        _tell(venue, _LIMITS, limit, state[BAND_HIGH] if limit == _BUY else state[BAND_LOW], 0, 0, 0, 0, 0, 0)


# -- auctions


@kernel()
def _lots_at(book: Any, side: Any, i: Any) -> Any:
    """All lots at level `i` of `side`, hidden ones among them."""
    if book.head[matching.ICEBERGS] == 0:
        return book.levels[side - 1, i, matching.QTY]
    total = 0
    slot = book.levels[side - 1, i, matching.FIRST]
    while slot >= 0:
        total += leaves_of(book, slot)
        slot = book.orders[slot, matching.NEXT]
    return total


@kernel()
def _nearest(venue: Any, low: Any, high: Any) -> Any:
    """The price on a tick in ``[low, high]`` nearest the reference, the higher of two; NO_PX if there is none."""
    reference = venue.state[REFERENCE] if venue.state[REFERENCE] != NO_PX else venue.state[LAST]
    at = min(max(reference, low), high)
    below = at - at % _step_at(venue, at)
    above = below if below == at else below + _step_at(venue, at)
    if above <= high and (below < low or above - at <= at - below):
        return above
    return below if below >= low else NO_PX


@kernel()
def _weigh(venue: Any, bids: Any, asks: Any, low: Any, high: Any) -> None:
    """Take the best price of ``[low, high]``, where `bids` meet `asks`, if it is better than the one found so far."""
    state = venue.state
    low, high = max(low, state[BAND_LOW]), min(high, state[BAND_HIGH])
    volume = min(bids, asks)
    if volume == 0 or volume < state[CLEAR_QTY] or low > high:
        return
    px = _nearest(venue, low, high)
    if px == NO_PX:
        return
    imbalance = bids - asks
    if volume == state[CLEAR_QTY]:
        if abs(imbalance) > abs(state[CLEAR_IMBALANCE]):
            return
        if abs(imbalance) == abs(state[CLEAR_IMBALANCE]):
            reference = state[REFERENCE] if state[REFERENCE] != NO_PX else state[LAST]
            if abs(px - reference) > abs(state[CLEAR_PX] - reference):
                return
    state[CLEAR_PX], state[CLEAR_QTY], state[CLEAR_IMBALANCE] = px, volume, imbalance


@kernel()
def _clear(venue: Any) -> None:
    """Find the price, volume and imbalance of an uncross now: one walk up all prices of both sides.

    Between two neighbouring limit prices the same orders meet at every price, so each price and each gap is weighed
    once.
    """
    book = venue.book
    state = venue.state
    state[CLEAR_PX], state[CLEAR_QTY], state[CLEAR_IMBALANCE] = NO_PX, 0, 0
    b, n_bids = 0, book.head[matching.N_LEVELS]
    a = book.head[matching.N_LEVELS + 1] - 1
    bids, asks = 0, 0
    for i in range(n_bids):
        bids += _lots_at(book, _BUY, i)
    if n_bids > 0 and book.levels[0, n_bids - 1, matching.KEY] == _AT_BEST:
        n_bids -= 1  # they meet every price, so they stay in the sum
    if a >= 0 and book.levels[1, a, matching.KEY] == _AT_BEST:
        asks = _lots_at(book, _SELL, a)
        a -= 1
    if b == n_bids and a < 0:
        reference = state[REFERENCE] if state[REFERENCE] != NO_PX else state[LAST]
        if reference != NO_PX:
            _weigh(venue, bids, asks, reference, reference)
        return
    low = _NEVER
    while b < n_bids or a >= 0:
        bid = book.levels[0, b, matching.KEY] if b < n_bids else _NEVER
        ask = -book.levels[1, a, matching.KEY] if a >= 0 else _NEVER
        px = min(bid, ask)
        _weigh(venue, bids, asks, low, px - 1)
        if ask == px:
            asks += _lots_at(book, _SELL, a)
            a -= 1
        _weigh(venue, bids, asks, px, px)
        if bid == px:
            bids -= _lots_at(book, _BUY, b)
            b += 1
        low = px + 1


@kernel()
def _take_in_auction(venue: Any, side: Any, qty: Any) -> None:
    """Take `qty` lots off the order at the head of `side`."""
    book = venue.book
    i = book.head[matching.N_LEVELS + side - 1] - 1
    slot = book.levels[side - 1, i, matching.FIRST]
    open_ = leaves_of(book, slot) - qty
    display = book.hidden[slot, matching.DISPLAY]
    book.orders[slot, matching.FILLED] += qty
    _set_leaves(book, slot, i, min(open_, display) if display > 0 else open_, open_)
    if open_ == 0:
        unlink(book, slot, i)


@kernel()
def uncross(venue: Any, reference_px: Any, then: Any) -> Any:
    """Trade an auction at one price, and enter phase `then`; return its volume, or ``Outcome.BAD_PHASE`` outside one.

    Run `step` afterwards until it returns 0.

    Parameters
    ----------
    venue : RuledBook
    reference_px : int64
        Ticks; ``NO_PX`` for the one that stands: the one given before, else the last trade's.
    then : int64
        The `Phase` that follows.
    """
    _begin(venue)
    state = venue.state
    if state[PHASE] != _AUCTION:
        return _BAD_PHASE
    if reference_px != NO_PX:
        state[REFERENCE] = reference_px
    _clear(venue)
    book = venue.book
    volume, px = state[CLEAR_QTY], state[CLEAR_PX]
    left = volume
    while left > 0:
        buy = book.levels[0, book.head[matching.N_LEVELS] - 1, matching.FIRST]
        sell = book.levels[1, book.head[matching.N_LEVELS + 1] - 1, matching.FIRST]
        bought, sold = leaves_of(book, buy), leaves_of(book, sell)
        qty = min(left, bought, sold)
        left -= qty
        event = venue.events[state[N_EVENTS]]
        order = book.orders[buy]
        event[E_WHAT], event[E_SIDE], event[E_PX], event[E_QTY], event[E_WHY] = _TRADE, 0, px, qty, 0
        event[E_ID], event[E_TAG], event[E_LEAVES] = order[matching.ID], order[matching.OWNER], bought - qty
        event[E_CUM] = order[matching.FILLED] + qty
        order = book.orders[sell]
        event[E_OTHER_TAG], event[E_OTHER_LEAVES] = order[matching.OWNER], sold - qty
        event[E_OTHER_CUM] = order[matching.FILLED] + qty
        state[N_EVENTS] += 1
        _take_in_auction(venue, _BUY, qty)
        _take_in_auction(venue, _SELL, qty)
        _note_trade(venue, px)
    _expire(venue, _AT_MARKET, _BY_UNCROSS)
    state[CLEAR_PX], state[CLEAR_QTY], state[CLEAR_IMBALANCE] = NO_PX, 0, 0
    state[PHASE] = then
    _publish(venue)
    return volume


# -- the Python face


class Event(NamedTuple):
    """One thing a call did.

    Parameters
    ----------
    what : What
    side : int
        The order's side; of a trade the aggressor's, 0 in an auction.
    px, qty : int
        Ticks, lots. Of RESTING the lots that show; of CANCELED and EXPIRED the lots that were open.
    order_id, tag, leaves, cum : int
        The order; of a trade the resting one, in an auction the buyer. Of INDICATIVE `leaves` is the imbalance.
    other_tag, other_leaves, other_cum : int
        Of a trade the incoming order, in an auction the seller.
    why : Why
    """

    what: What
    side: int
    px: int
    qty: int
    order_id: int
    tag: int
    leaves: int
    cum: int
    other_tag: int
    other_leaves: int
    other_cum: int
    why: Why


class RuledMatcher:
    """A market under a rule book, for callers in Python: each call runs the stops it touched, and keeps all events.

    Parameters
    ----------
    rules : Rules, optional
    max_orders, max_levels, max_stops : int
        As of `make_ruled_book`.

    Attributes
    ----------
    events : list of Event
        What the last call did.

    Examples
    --------
    >>> market = RuledMatcher(max_orders=64, max_levels=16, max_stops=16)
    >>> market.submit(Side.SELL, 100, 9, tag=1, display_qty=3)
    <Outcome.RESTING: 1>
    >>> market.submit(Side.BUY, 100, 4, tag=2)
    <Outcome.FILLED: 2>
    >>> [(e.px, e.qty, e.leaves) for e in market.events if e.what == What.TRADE]
    [(100, 3, 6), (100, 1, 5)]
    """

    def __init__(
        self, rules: Rules | None = None, max_orders: int = 8192, max_levels: int = 2048, max_stops: int = 1024
    ) -> None:
        self.venue = make_ruled_book(rules, max_orders, max_levels, max_stops)
        self.events: list[Event] = []
        self.last_id = 0
        self._request = np.zeros(len(REQUEST_FIELDS), np.int64)

    @property
    def phase(self) -> Phase:
        """Return the phase that the market is in."""
        return Phase(int(self.venue.state[PHASE]))

    @property
    def indicative(self) -> tuple[int, int, int] | None:
        """Return price, volume and imbalance that an uncross would have now; None where nothing would trade."""
        px, qty, imbalance = self.venue.state[CLEAR_PX : CLEAR_IMBALANCE + 1].tolist()
        return None if qty == 0 else (px, qty, imbalance)

    def submit(
        self, side: int, px: int, qty: int, *, tag: int = 0, account: int = 0, ord_type: int = int(OrdType.LIMIT),
        tif: int = int(Tif.GTC), post_only: bool = False, stop_px: int = 0, display_qty: int = 0, min_qty: int = 0,
        expire_ns: int = 0,
    ) -> Outcome:  # fmt: skip
        """Return what became of a new order; see `submit` of this module, and its rules."""
        self._request[:] = (
            tag, account, side, ord_type, px, qty, tif, post_only, stop_px, display_qty, min_qty, expire_ns
        )  # fmt: skip
        return self._done(submit(self.venue, self._request))

    def cancel(self, order_id: int) -> int:
        """Return the lots that a canceled order or stop still had open, or ``Outcome.UNKNOWN``."""
        answer = int(cancel(self.venue, order_id))
        self._done(1)
        return answer

    def replace(self, order_id: int, px: int, qty: int, *, tag: int = 0, post_only: bool = False) -> Outcome:
        """Return what became of the order that takes the place of a resting one or of a stop."""
        self._request[:] = 0
        self._request[[TAG, PX, QTY, POST_ONLY]] = tag, px, qty, post_only
        return self._done(replace(self.venue, order_id, self._request))

    def advance(self, now_ns: int) -> int:
        """Set the time; return how many orders expired.

        Raises
        ------
        ValueError
            If time would run backwards.
        """
        n = int(advance(self.venue, now_ns))
        if n < 0:
            raise ValueError(f"now_ns is {now_ns}; expected {int(self.venue.state[NOW])} or later")
        self._done(1)
        return n

    def end_session(self) -> int:
        """Close the market; return how many DAY orders expired."""
        n = int(end_session(self.venue))
        self._done(1)
        return n

    def enter(self, phase: Phase) -> Outcome | None:
        """Enter a phase; return ``Outcome.BAD_PHASE`` if a crossed book stands against it, else None."""
        answer = int(set_phase(self.venue, int(phase)))
        self._done(1)
        return Outcome(answer) if answer < 0 else None

    def set_band(self, low_px: int = -MAX_PX, high_px: int = MAX_PX) -> int:
        """Set the prices that orders may have; return how many orders outside expired.

        Raises
        ------
        ValueError
            If the prices are not in order.
        """
        n = int(set_band(self.venue, low_px, high_px))
        if n < 0:
            raise ValueError(f"the band is {low_px} to {high_px}; expected ascending prices within {MAX_PX}")
        self._done(1)
        return n

    def uncross(self, reference_px: int | None = None, then: Phase = Phase.CONTINUOUS) -> int:
        """Trade an auction at one price; return its volume, or ``Outcome.BAD_PHASE`` outside one."""
        volume = int(uncross(self.venue, NO_PX if reference_px is None else reference_px, int(then)))
        self._done(1)
        return volume

    def _done(self, answer: int) -> Outcome:
        """Collect the events of a call, and of the stops it touched."""
        self.last_id = int(self.venue.state[LAST_ID])
        self.events = []
        outcome = answer
        while answer != 0:
            for words in self.venue.events[: self.venue.state[N_EVENTS]].tolist():
                self.events.append(Event._make([What(words[0]), *words[1:-1], Why(words[-1])]))
            answer = int(step(self.venue))
        return Outcome(outcome)
