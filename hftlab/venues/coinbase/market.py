"""Coinbase market data: one message's bytes to rows, for the Exchange feed and for Advanced Trade.

Two readers, one meaning. The *kernels* walk a message's JSON once, remember where each field's value stands, and turn
decimal text into ticks and lots by integer arithmetic when all fields are known: so fields may come in any order and
new scalar fields do no harm. They accept a strict subset (a book's arrays after the product they belong to, ASCII
strings, no nesting they do not know). What they do not accept goes to the *tolerant* reader, a complete JSON parser,
which alone decides what is wrong with a message; the two never disagree about a message both accept.

What becomes what:

=============================  ========================================================================================
snapshot, l2_data snapshot     CLEAR, then a LEVEL a level, all with SNAPSHOT; a = 0: a book has no number here
l2update, l2_data update       LEVEL (qty 0 removes); one product's rows end with LAST
match                          EXECUTE of the maker's order if it is followed, then TRADE: a = trade id, b = sequence.
                               The venue names the *maker's* side: the aggressor (the flag) is the other one
last_match, market_trades      TRADE with SNAPSHOT: told at subscription, happened before it
snapshot
market_trades update           TRADE, oldest first (the venue lists the newest first); b = 0
ticker                         QUOTE bid and ask, a = sequence. No TRADE: the matches tell it. A ticker without sizes
                               (as before 2022) gives no rows: a side of unknown size has no row
open, done, change (full)      ADD; DELETE; REDUCE, or DELETE and ADD where a modification moves or grows the order
received, activate, heartbeat  no rows
=============================  ========================================================================================

Orders. The full channel names orders by UUID, rows by number: the reference is the UUID's first 64 bits. Two orders of
10^5 alive at once share them with a chance of about 1e-10, and it is checked: `orders`, an open-addressing table of the
orders alive, keeps all 128 bits. A collision, or more orders than `MAX_ORDERS`, is reported (`LOST`) and costs a resync
of that book, never a wrong row. The table also knows what is left of each order, so that an order filled by matches is
gone with its last EXECUTE and the *done* after it gives no row, as in ITCH; messages about orders not on the book
(takers, stop orders) give none either.

Promise: a message gives all its rows or none. Nothing is rounded, guessed or raised for foreign bytes; each rejection
is counted by its reason. A message that was refused and may have changed a book is `BROKEN`: that book (all books, if
it does not say which) is not to be believed any more.

Measured (one call from Python, recorded messages): an l2update of one level 0.8 us, of which 0.4 us are the call; a
match 1.1 us; a snapshot 48 ns a level. A typed msgspec decode of the l2update alone takes 0.2 us, but with time, grids
and row it is 7.4 us: so no message that gives rows is left to msgspec. Control messages, and the tickers and heartbeats
of Advanced Trade, take the tolerant way (13 us and more): they are rare.

References
----------
docs.cdp.coinbase.com: Exchange WebSocket Channels, Overview (sequence numbers); Get product book (level 3); Advanced
Trade WebSocket Channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import INT64_MAX, Instrument
from hftlab.core.rows import NAT, NO_PX, ROW, Flag, Kind, RowArray
from hftlab.kernels.jit import kernel
from hftlab.kernels.scan import FAIL, expect, matches, scan_decimal, scan_uint, skip_scalar, skip_space, skip_string
from hftlab.venues.coinbase.spec import time_ns

__all__ = [
    "BROKEN",
    "CONTROL",
    "ERROR",
    "HEARTBEAT",
    "LEVELS",
    "LOST",
    "MAX_ORDERS",
    "MarketDecoder",
    "ORDER",
    "OTHER",
    "Part",
    "SNAPSHOT",
    "TICKER",
    "TRADES",
    "order_ref",
    "put_row",
]

OTHER, SNAPSHOT, LEVELS, TRADES, TICKER, HEARTBEAT, ORDER, CONTROL, ERROR, LOST, BROKEN = range(11)
"""What the last message was: `MarketDecoder.kind`. ORDER is received, open, change, done or activate of the full
channel; LOST an order that cannot be followed; BROKEN was refused and may have changed a book."""

MAX_ORDERS = 1 << 20
"""Orders alive that the table follows, of all products of one decoder together."""

# columns of the product table, an open-addressing hash of int64 rows
_USED, _NAME, _LENGTH, _INSTRUMENT, _PX_DECIMALS, _PX_UNIT, _QTY_DECIMALS, _QTY_UNIT, _FOLLOWED = (
    0, 1, 5, 6, 7, 8, 9, 10, 11,
)  # fmt: skip
_COLUMNS = 12
_NAME_BYTES = 32

# columns of the order table
_OWNER, _HI, _LO, _LEFT, _PX = range(5)  # owner: instrument id + 1, 0 = free; then the UUID, lots left, ticks

# the kernels are told source and say what the message was; each further argument would cost 30 ns
_I_KIND, _I_INSTRUMENT, _I_SEQUENCE, _I_TRADE_ID, _I_SOURCE, _I_ORDERS, _I_TIME = range(7)
_NOT_MINE = -1

# what a refused message calls itself: these change no book of levels, nor, but for those of the full channel, any
_KINDS = re.compile(rb'"(?:type|channel)"\s*:\s*"([^"]*)"')
_OF_ORDERS = {b"received", b"open", b"done", b"change", b"match"}
_HARMLESS = _OF_ORDERS | {
    b"activate", b"error", b"heartbeat", b"heartbeats", b"last_match", b"market_trades", b"status", b"subscriptions",
    b"ticker", b"ticker_batch",
}  # fmt: skip

_BID, _ASK, _LAST, _SNAP = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.SNAPSHOT)
_LEVEL, _QUOTE, _CLEAR, _TRADE = int(Kind.LEVEL), int(Kind.QUOTE), int(Kind.CLEAR), int(Kind.TRADE)
_ADD, _REDUCE, _DELETE, _EXECUTE = int(Kind.ADD), int(Kind.REDUCE), int(Kind.DELETE), int(Kind.EXECUTE)

_DAY_NS = 86_400_000_000_000
_LAST_DAY = INT64_MAX // _DAY_NS - 1  # a day before the end of int64, so that no time of day overflows


class Part(NamedTuple):
    """Rows ``start`` to ``stop`` of a message belong to one event: a product's deltas, or its snapshot."""

    instrument: int
    snapshot: bool
    start: int
    stop: int


def order_ref(uuid: str) -> int:
    """Return the reference that rows use for an order: the first 64 bits of its UUID.

    Examples
    --------
    >>> hex(order_ref("d50ec984-77a8-460a-b958-66f114b0de9b"))
    '0xd50ec98477a8460a'
    """
    return int(uuid[:18].replace("-", ""), 16)


@kernel(inline=True)
def put_row(
    out: Any, n: int, kind: int, source: int, ts_recv: int, ts_event: int, instrument: int, flags: int, code: int,
    px: int, qty: int, a: int, b: int,
) -> None:  # fmt: skip
    """Write every field of row `n`; `seq` and `span` are 0."""
    row = out[n]
    row.seq = 0
    row.source = source
    row.kind = kind
    row.span = 0
    row.ts_recv = ts_recv
    row.ts_event = ts_event
    row.instrument = instrument
    row.flags = flags
    row.code = code
    row.px = px
    row.qty = qty
    row.a = a
    row.b = b


# ---- scanners of this venue's values


@kernel(inline=True)
def _two(text: Any, at: int) -> int:
    """Return the number of two digits at `at`, or -1; the caller knows that both bytes exist."""
    tens, ones = int(text[at]) - 48, int(text[at + 1]) - 48
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return -1
    return tens * 10 + ones


@kernel()
def _scan_time(text: Any, at: int, end: int) -> tuple[int, int]:
    """Return the quoted RFC 3339 time at `at` in ns since 1970, and the position after it; UTC as ``Z`` only."""
    at = expect(text, at, end, 34)
    if at + 20 >= end:
        return 0, FAIL
    high, low = _two(text, at), _two(text, at + 2)
    month, day = _two(text, at + 5), _two(text, at + 8)
    hour, minute, second = _two(text, at + 11), _two(text, at + 14), _two(text, at + 17)
    if high < 19 or low < 0 or month < 1 or month > 12 or day < 1 or hour < 0 or minute < 0 or second < 0:
        return 0, FAIL
    if text[at + 4] != 45 or text[at + 7] != 45 or text[at + 10] != 84 or text[at + 13] != 58 or text[at + 16] != 58:
        return 0, FAIL
    year = high * 100 + low
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    longest = 31
    if month == 2:
        longest = 29 if leap else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        longest = 30
    if year < 1970 or day > longest or hour > 23 or minute > 59 or second > 59:
        return 0, FAIL
    y = year - 1 if month <= 2 else year
    m = month + 9 if month <= 2 else month - 3
    era = y // 400
    yoe = y - era * 400
    days = era * 146_097 + yoe * 365 + yoe // 4 - yoe // 100 + (153 * m + 2) // 5 + day - 1 - 719_468
    if days > _LAST_DAY:
        return 0, FAIL
    at += 19
    fraction = 0
    digits = 0
    if text[at] == 46:
        at += 1
        while at < end and digits < 9:
            digit = int(text[at]) - 48
            if digit < 0 or digit > 9:
                break
            fraction = fraction * 10 + digit
            digits += 1
            at += 1
        if digits == 0:
            return 0, FAIL
        for _ in range(digits, 9):
            fraction *= 10
    if at + 1 >= end or text[at] != 90 or text[at + 1] != 34:
        return 0, FAIL
    return days * _DAY_NS + ((hour * 60 + minute) * 60 + second) * 1_000_000_000 + fraction, at + 2


@kernel(inline=True)
def _scan_quoted_uint(text: Any, at: int, end: int) -> tuple[int, int]:
    value, at = scan_uint(text, expect(text, at, end, 34), end)
    if at < end and text[at] == 34:
        return value, at + 1
    return 0, FAIL


@kernel()
def _scan_uuid(text: Any, at: int, end: int) -> tuple[int, int, int]:
    """Return the quoted UUID at `at` as two int64 (its bits, big-endian), and the position after it."""
    at = expect(text, at, end, 34)
    if at + 36 >= end:
        return 0, 0, FAIL
    hi = lo = 0
    for i in range(36):
        byte = int(text[at + i])
        if i == 8 or i == 13 or i == 18 or i == 23:
            if byte != 45:
                return 0, 0, FAIL
            continue
        if byte >= 48 and byte <= 57:
            digit = byte - 48
        elif byte >= 97 and byte <= 102:
            digit = byte - 87
        elif byte >= 65 and byte <= 70:
            digit = byte - 55
        else:
            return 0, 0, FAIL
        if i < 19:
            hi = (hi << 4) | digit
        else:
            lo = (lo << 4) | digit
    if text[at + 36] != 34:
        return 0, 0, FAIL
    return hi, lo, at + 37


@kernel(inline=True)
def _scan_side(text: Any, at: int, end: int) -> tuple[int, int]:
    """Return the flag BID or ASK of a quoted side (buy, sell, bid, offer, BUY, SELL), and the position after it."""
    if matches(text, at, end, b'"buy"') or matches(text, at, end, b'"bid"') or matches(text, at, end, b'"BUY"'):
        return _BID, at + 5
    if matches(text, at, end, b'"sell"') or matches(text, at, end, b'"SELL"'):
        return _ASK, at + 6
    if matches(text, at, end, b'"offer"'):
        return _ASK, at + 7
    return 0, FAIL


@kernel(inline=True)
def _hash(w0: int, w1: int, w2: int, w3: int) -> int:
    h = (w0 ^ (w1 * 31) ^ (w2 * 1009) ^ (w3 * 65599)) * 0x9E3779B97F4A7C1
    return (h >> 29) & 0xFFFFFFFF


@kernel()
def _name_words(name: Any, words: Any) -> int:
    """Pack `name` into four int64 `words`; return its hash."""
    for i in range(4):
        words[i] = 0
    for i in range(len(name)):
        words[i >> 3] |= int(name[i]) << ((i & 7) * 8)
    return _hash(words[0], words[1], words[2], words[3])


@kernel()
def _product(text: Any, at: int, end: int, table: Any) -> tuple[int, int]:
    """Read the quoted product at `at`: its row in `table`, or -1, and the position after it."""
    at = expect(text, at, end, 34)
    start = at
    w0 = w1 = w2 = w3 = 0
    while at < end:
        byte = int(text[at])
        if byte == 34:
            break
        if byte < 32 or byte == 92 or byte > 126 or at - start >= _NAME_BYTES:
            return -1, FAIL
        i = at - start
        shifted = byte << ((i & 7) * 8)
        if i < 8:
            w0 |= shifted
        elif i < 16:
            w1 |= shifted
        elif i < 24:
            w2 |= shifted
        else:
            w3 |= shifted
        at += 1
    if at >= end:
        return -1, FAIL
    mask = len(table) - 1
    slot = _hash(w0, w1, w2, w3) & mask
    while table[slot, _USED] != 0:
        if (
            table[slot, _NAME] == w0
            and table[slot, _NAME + 1] == w1
            and table[slot, _NAME + 2] == w2
            and table[slot, _NAME + 3] == w3
            and table[slot, _LENGTH] == at - start
        ):
            return slot, at + 1
        slot = (slot + 1) & mask
    return -1, FAIL


@kernel(inline=True)
def _px(text: Any, at: int, end: int, table: Any, slot: int) -> tuple[int, int]:
    return scan_decimal(text, at, end, table[slot, _PX_DECIMALS], table[slot, _PX_UNIT])


@kernel(inline=True)
def _qty(text: Any, at: int, end: int, table: Any, slot: int) -> tuple[int, int]:
    return scan_decimal(text, at, end, table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT])


@kernel(inline=True)
def _next(text: Any, at: int, end: int, close: int) -> tuple[bool, int]:
    """Step over the comma or closing bracket after an element: whether it was the bracket, and where to go on."""
    at = skip_space(text, at, end)
    if at < end and text[at] == close:
        return True, at + 1
    return False, expect(text, at, end, 44)


# ---- the orders alive


@kernel(inline=True)
def _slot_of(hi: int, mask: int) -> int:
    h = hi * 0x9E3779B97F4A7C1
    return ((h >> 20) ^ h) & mask


@kernel()
def _find_order(orders: Any, hi: int, lo: int) -> int:
    """Return the row of an order in `orders`, or -1."""
    mask = len(orders) - 1
    slot = _slot_of(hi, mask)
    while orders[slot, _OWNER] != 0:
        if orders[slot, _HI] == hi and orders[slot, _LO] == lo:
            return slot
        slot = (slot + 1) & mask
    return -1


@kernel()
def _add_order(orders: Any, info: Any, instrument: int, hi: int, lo: int, left: int, px: int) -> bool:
    """Follow an order; False if the table is at its limit or holds an order with the same reference."""
    mask = len(orders) - 1
    if info[_I_ORDERS] * 2 >= mask + 1:
        return False
    slot = _slot_of(hi, mask)
    while orders[slot, _OWNER] != 0:
        if orders[slot, _HI] == hi:
            return False
        slot = (slot + 1) & mask
    orders[slot, _OWNER] = instrument + 1
    orders[slot, _HI] = hi
    orders[slot, _LO] = lo
    orders[slot, _LEFT] = left
    orders[slot, _PX] = px
    info[_I_ORDERS] += 1
    return True


@kernel()
def _remove_order(orders: Any, info: Any, slot: int) -> None:
    """Free `slot`, moving back what was pushed on by it, so that no search ends too early."""
    mask = len(orders) - 1
    hole = slot
    at = (slot + 1) & mask
    while orders[at, _OWNER] != 0:
        home = _slot_of(orders[at, _HI], mask)
        if ((at - home) & mask) >= ((at - hole) & mask):
            for column in range(5):
                orders[hole, column] = orders[at, column]
            hole = at
        at = (at + 1) & mask
    orders[hole, _OWNER] = 0
    info[_I_ORDERS] -= 1


@kernel()
def _rehash(old: Any, new: Any, info: Any, without: int) -> None:
    """Copy the orders of `old` into the empty table `new`, but for those of owner `without`."""
    info[_I_ORDERS] = 0
    for i in range(len(old)):
        owner = old[i, _OWNER]
        if owner != 0 and owner != without:
            _add_order(new, info, owner - 1, old[i, _HI], old[i, _LO], old[i, _LEFT], old[i, _PX])


@kernel()
def _apply_order(
    orders: Any, info: Any, out: Any, what: int, hi: int, lo: int, side: int, px: int, qty: int, has_px: bool,
    source: int, ts_recv: int, ts_event: int, instrument: int,
) -> int:  # fmt: skip
    """Change the orders alive by open (1), done (2) or change (3): rows written, or `_NOT_MINE` if it cannot be."""
    slot = _find_order(orders, hi, lo)
    if what == 1:
        if slot >= 0 or not _add_order(orders, info, instrument, hi, lo, qty, px):
            return _NOT_MINE
        put_row(out, 0, _ADD, source, ts_recv, ts_event, instrument, side | _LAST, 0, px, qty, hi, 0)
        return 1
    if slot < 0 or orders[slot, _OWNER] != instrument + 1:
        return 0
    left, old_px = orders[slot, _LEFT], orders[slot, _PX]
    if what == 2 or (qty == 0 and what == 3):
        _remove_order(orders, info, slot)
        put_row(out, 0, _DELETE, source, ts_recv, ts_event, instrument, side | _LAST, 0, old_px, left, hi, 0)
        return 1
    if not has_px or px == old_px:
        if qty == left:
            return 0
        if qty < left:
            orders[slot, _LEFT] = qty
            put_row(
                out, 0, _REDUCE, source, ts_recv, ts_event, instrument, side | _LAST, 0, old_px, left - qty, hi, 0
            )  # fmt: skip
            return 1
        px = old_px
    orders[slot, _LEFT] = qty
    orders[slot, _PX] = px
    put_row(out, 0, _DELETE, source, ts_recv, ts_event, instrument, side, 0, old_px, left, hi, 0)
    put_row(out, 1, _ADD, source, ts_recv, ts_event, instrument, side | _LAST, 0, px, qty, hi, 0)
    return 2


@kernel(inline=True)
def _execute(
    orders: Any, info: Any, out: Any, hi: int, lo: int, side: int, qty: int, trade_id: int, source: int, ts_recv: int,
    ts_event: int, instrument: int,
) -> int:  # fmt: skip
    """Take `qty` lots off a maker's order if it is followed: rows written, 0 or 1."""
    slot = _find_order(orders, hi, lo)
    if slot < 0 or orders[slot, _OWNER] != instrument + 1:
        return 0
    left = orders[slot, _LEFT]
    done = min(qty, left)
    if done == left:
        _remove_order(orders, info, slot)
    else:
        orders[slot, _LEFT] = left - done
    put_row(out, 0, _EXECUTE, source, ts_recv, ts_event, instrument, side, 0, NO_PX, done, hi, trade_id)
    return 1


# ---- the Exchange feed


@kernel()
def _pairs(
    text: Any, at: int, end: int, table: Any, slot: int, out: Any, n: int, source: int, ts_recv: int, flags: int
) -> tuple[int, int]:
    """Read ``[["px","size"],...]`` into LEVEL rows from `n` on: the next free row and the position after it."""
    at = skip_space(text, expect(text, at, end, 91), end)
    if at < end and text[at] == 93:
        return n, at + 1
    instrument = table[slot, _INSTRUMENT]
    room = len(out)
    while n < room:
        px, at = _px(text, expect(text, at, end, 91), end, table, slot)
        qty, at = _qty(text, expect(text, at, end, 44), end, table, slot)
        at = expect(text, at, end, 93)
        if at >= end:
            return n, FAIL
        put_row(out, n, _LEVEL, source, ts_recv, NAT, instrument, flags, 0, px, qty, 0, 0)
        n += 1
        over, at = _next(text, at, end, 93)
        if over:
            return n, at
    return n, FAIL


@kernel()
def _changes(
    text: Any, at: int, end: int, table: Any, slot: int, out: Any, source: int, ts_recv: int
) -> tuple[int, int]:
    """Read ``[["side","px","size"],...]`` into LEVEL rows: their number and the position after it."""
    at = skip_space(text, expect(text, at, end, 91), end)
    if at < end and text[at] == 93:
        return 0, at + 1
    instrument = table[slot, _INSTRUMENT]
    room = len(out)
    n = 0
    while n < room:
        at = skip_space(text, expect(text, at, end, 91), end)
        side, at = _scan_side(text, at, end)
        px, at = _px(text, expect(text, at, end, 44), end, table, slot)
        qty, at = _qty(text, expect(text, at, end, 44), end, table, slot)
        at = expect(text, at, end, 93)
        if at >= end:
            return n, FAIL
        put_row(out, n, _LEVEL, source, ts_recv, NAT, instrument, side, 0, px, qty, 0, 0)
        n += 1
        over, at = _next(text, at, end, 93)
        if over:
            return n, at
    return n, FAIL


# fields of an Exchange message whose place is remembered; one bit each in `seen`
_TYPE, _TIME, _SEQUENCE, _TRADE_ID, _MAKER, _ORDER, _SIDE, _SIZE, _PRICE, _REMAINING, _NEW_SIZE, _NEW_PRICE = range(12)
_BEST_BID, _BEST_ASK, _BID_SIZE, _ASK_SIZE, _LAST_TRADE_ID, _PRODUCT, _BIDS, _ASKS, _CHANGES = range(12, 21)
_FIELDS = 17  # how many of them have a remembered place
_UNKNOWN = 31


@kernel(inline=True)
def _field(text: Any, at: int, end: int, length: int) -> int:
    """Return which field the key of `length` bytes at `at` names; `_UNKNOWN` for one of no use here."""
    lead = int(text[at])
    if lead == 116:  # t
        if length == 4 and matches(text, at, end, b"type"):
            return _TYPE
        if length == 4 and matches(text, at, end, b"time"):
            return _TIME
        if length == 8 and matches(text, at, end, b"trade_id"):
            return _TRADE_ID
    elif lead == 115:  # s
        if length == 8 and matches(text, at, end, b"sequence"):
            return _SEQUENCE
        if length == 4 and matches(text, at, end, b"side"):
            return _SIDE
        if length == 4 and matches(text, at, end, b"size"):
            return _SIZE
    elif lead == 112:  # p
        if length == 10 and matches(text, at, end, b"product_id"):
            return _PRODUCT
        if length == 5 and matches(text, at, end, b"price"):
            return _PRICE
    elif lead == 98:  # b
        if length == 4 and matches(text, at, end, b"bids"):
            return _BIDS
        if length == 8 and matches(text, at, end, b"best_bid"):
            return _BEST_BID
        if length == 8 and matches(text, at, end, b"best_ask"):
            return _BEST_ASK
        if length == 13 and matches(text, at, end, b"best_bid_size"):
            return _BID_SIZE
        if length == 13 and matches(text, at, end, b"best_ask_size"):
            return _ASK_SIZE
    elif lead == 111:  # o
        if length == 8 and matches(text, at, end, b"order_id"):
            return _ORDER
    elif lead == 109:  # m
        if length == 14 and matches(text, at, end, b"maker_order_id"):
            return _MAKER
    elif lead == 97:  # a
        if length == 4 and matches(text, at, end, b"asks"):
            return _ASKS
    elif lead == 99:  # c
        if length == 7 and matches(text, at, end, b"changes"):
            return _CHANGES
    elif lead == 114:  # r
        if length == 14 and matches(text, at, end, b"remaining_size"):
            return _REMAINING
    elif lead == 110:  # n
        if length == 8 and matches(text, at, end, b"new_size"):
            return _NEW_SIZE
        if length == 9 and matches(text, at, end, b"new_price"):
            return _NEW_PRICE
    elif lead == 108 and length == 13 and matches(text, at, end, b"last_trade_id"):  # l
        return _LAST_TRADE_ID
    return _UNKNOWN


@kernel()
def _decode(text: Any, ts_recv: int, table: Any, orders: Any, places: Any, out: Any, info: Any) -> int:
    """Decode one Exchange message: its number of rows, or `_NOT_MINE`; `info` says what it was."""
    end = len(text)
    source = info[_I_SOURCE]
    at = expect(text, 0, end, 123)
    seen = 0
    slot = -1
    n = 0
    closed = False
    while at < end:
        key = expect(text, at, end, 34)
        at = skip_string(text, key - 1, end)
        if at >= end:
            return _NOT_MINE
        field = _field(text, key, end, at - 1 - key)
        at = skip_space(text, expect(text, at, end, 58), end)
        if field != _UNKNOWN:
            if (seen >> field) & 1:
                return _NOT_MINE
            seen |= 1 << field
        if field == _PRODUCT:
            slot, at = _product(text, at, end, table)
            if slot < 0:
                return _NOT_MINE
        elif field >= _BIDS and field <= _CHANGES:
            if slot < 0:
                return _NOT_MINE
            if field == _CHANGES:
                if n != 0:
                    return _NOT_MINE
                n, at = _changes(text, at, end, table, slot, out, source, ts_recv)
            else:
                if n == 0:
                    if len(out) < 1:
                        return _NOT_MINE
                    put_row(
                        out, 0, _CLEAR, source, ts_recv, NAT, table[slot, _INSTRUMENT], _SNAP, 0, 0, 0, 0, 0
                    )  # fmt: skip
                    n = 1
                flags = _SNAP | (_BID if field == _BIDS else _ASK)
                n, at = _pairs(text, at, end, table, slot, out, n, source, ts_recv, flags)
        else:
            if field < _FIELDS:
                places[field] = at
            at = skip_scalar(text, at, end)
        closed, at = _next(text, at, end, 125)
        if closed:
            break
    if not closed or skip_space(text, at, end) != end or slot < 0 or not seen & 1:
        return _NOT_MINE
    instrument = table[slot, _INSTRUMENT]
    stamp = NAT
    if (seen >> _TIME) & 1:
        stamp, at = _scan_time(text, places[_TIME], end)
        if at == FAIL:
            return _NOT_MINE
    sequence = trade_id = -1
    if (seen >> _SEQUENCE) & 1:
        sequence, at = scan_uint(text, places[_SEQUENCE], end)
        if at == FAIL:
            return _NOT_MINE
    books = (seen >> _BIDS) & 7
    kind = places[_TYPE]
    if matches(text, kind, end, b'"l2update"'):
        if books != 4 or stamp == NAT:
            return _NOT_MINE
        what, sequence = LEVELS, -1
    elif matches(text, kind, end, b'"snapshot"'):
        if books != 3:
            return _NOT_MINE
        what, sequence = SNAPSHOT, -1
    elif books != 0 or stamp == NAT or sequence < 0 or len(out) < 2:
        return _NOT_MINE
    elif matches(text, kind, end, b'"match"') or matches(text, kind, end, b'"last_match"'):
        need = 1 << _TRADE_ID | 1 << _SIDE | 1 << _SIZE | 1 << _PRICE | 1 << _MAKER
        if seen & need != need:
            return _NOT_MINE
        what = TRADES
        trade_id, at = scan_uint(text, places[_TRADE_ID], end)
        side, at2 = _scan_side(text, places[_SIDE], end)
        px, at3 = _px(text, places[_PRICE], end, table, slot)
        qty, at4 = _qty(text, places[_SIZE], end, table, slot)
        hi, lo, at5 = _scan_uuid(text, places[_MAKER], end)
        if max(at, at2, at3, at4, at5) >= FAIL or side == 0:
            return _NOT_MINE
        flags = _LAST | (_BID if side == _ASK else _ASK)
        if matches(text, kind, end, b'"last_match"'):
            flags |= _SNAP
        elif table[slot, _FOLLOWED] == sequence + 1:
            n = _execute(orders, info, out, hi, lo, side, qty, trade_id, source, ts_recv, stamp, instrument)
        put_row(out, n, _TRADE, source, ts_recv, stamp, instrument, flags, 0, px, qty, trade_id, sequence)
        n += 1
    elif matches(text, kind, end, b'"ticker"'):
        need = 1 << _BEST_BID | 1 << _BEST_ASK | 1 << _BID_SIZE | 1 << _ASK_SIZE
        what = TICKER
        if seen & need == need:
            bid, at = _px(text, places[_BEST_BID], end, table, slot)
            ask, at2 = _px(text, places[_BEST_ASK], end, table, slot)
            bid_qty, at3 = _qty(text, places[_BID_SIZE], end, table, slot)
            ask_qty, at4 = _qty(text, places[_ASK_SIZE], end, table, slot)
            if max(at, at2, at3, at4) >= FAIL:
                return _NOT_MINE
            put_row(out, 0, _QUOTE, source, ts_recv, stamp, instrument, _BID, 0, bid, bid_qty, sequence, 0)
            put_row(out, 1, _QUOTE, source, ts_recv, stamp, instrument, _ASK | _LAST, 0, ask, ask_qty, sequence, 0)
            n = 2
        elif (
            seen & need != (1 << _BEST_BID | 1 << _BEST_ASK)
            or text[places[_BEST_BID]] != 34
            or text[places[_BEST_ASK]] != 34
        ):
            return _NOT_MINE
    elif matches(text, kind, end, b'"heartbeat"'):
        what = HEARTBEAT
        if not (seen >> _LAST_TRADE_ID) & 1:
            return _NOT_MINE
        trade_id, at = scan_uint(text, places[_LAST_TRADE_ID], end)
        if at == FAIL:
            return _NOT_MINE
    else:
        if not (seen >> _ORDER) & 1 or not (seen >> _SIDE) & 1:
            return _NOT_MINE
        what = ORDER
        action = 0
        if matches(text, kind, end, b'"open"'):
            action, size = 1, _REMAINING
        elif matches(text, kind, end, b'"done"'):
            action, size = 2, _ORDER
        elif matches(text, kind, end, b'"change"'):
            action, size = 3, _NEW_SIZE
        elif matches(text, kind, end, b'"received"'):
            size = _ORDER
        else:
            return _NOT_MINE
        hi, lo, at = _scan_uuid(text, places[_ORDER], end)
        side, at2 = _scan_side(text, places[_SIDE], end)
        if max(at, at2) >= FAIL or side == 0:
            return _NOT_MINE
        if action != 0 and table[slot, _FOLLOWED] == sequence + 1:
            px = qty = 0
            place = _NEW_PRICE if action == 3 and (seen >> _NEW_PRICE) & 1 else _PRICE
            has_px = action != 2 and (seen >> place) & 1 != 0 and text[places[place]] == 34
            if action != 2:
                if not (seen >> size) & 1 or (action == 1 and not has_px):
                    return _NOT_MINE
                if text[places[size]] != 34:
                    return _NOT_MINE
                qty, at = _qty(text, places[size], end, table, slot)
                if has_px:
                    px, at2 = _px(text, places[place], end, table, slot)
                if max(at, at2) >= FAIL:
                    return _NOT_MINE
            n = _apply_order(
                orders, info, out, action, hi, lo, side, px, qty, has_px, source, ts_recv, stamp, instrument
            )  # fmt: skip
            if n == _NOT_MINE:
                n, what = 0, LOST
    if what == LEVELS or what == SNAPSHOT:
        for i in range(n):
            out[i].ts_event = stamp
        if n > 0:
            out[n - 1].flags |= _LAST
    elif (what == TRADES or what == ORDER) and table[slot, _FOLLOWED] == sequence + 1:
        table[slot, _FOLLOWED] = sequence + 2
    info[_I_KIND] = what
    info[_I_INSTRUMENT] = instrument
    info[_I_SEQUENCE] = sequence
    info[_I_TRADE_ID] = trade_id
    info[_I_TIME] = stamp
    return n


@kernel()
def _orders_of(
    text: Any, at: int, end: int, table: Any, slot: int, orders: Any, info: Any, out: Any, n: int, ts_recv: int,
    side: int,
) -> tuple[int, int]:  # fmt: skip
    """Read ``[["px","size","order id"],...]`` into ADD rows from `n` on: the next free row, the position after it."""
    at = skip_space(text, expect(text, at, end, 91), end)
    if at < end and text[at] == 93:
        return n, at + 1
    instrument, source = table[slot, _INSTRUMENT], info[_I_SOURCE]
    room = len(out)
    while n < room:
        px, at = _px(text, expect(text, at, end, 91), end, table, slot)
        qty, at = _qty(text, expect(text, at, end, 44), end, table, slot)
        hi, lo, at = _scan_uuid(text, expect(text, at, end, 44), end)
        at = expect(text, at, end, 93)
        if at >= end or not _add_order(orders, info, instrument, hi, lo, qty, px):
            return n, FAIL
        put_row(out, n, _ADD, source, ts_recv, NAT, instrument, side | _SNAP, 0, px, qty, hi, 0)
        n += 1
        over, at = _next(text, at, end, 93)
        if over:
            return n, at
    return n, FAIL


@kernel()
def _decode_orders(text: Any, ts_recv: int, table: Any, slot: int, orders: Any, out: Any, info: Any) -> int:
    """Decode a REST level 3 book into a CLEAR and ADD rows: their number, or `_NOT_MINE`; the sequence in `info`."""
    end = len(text)
    at = expect(text, 0, end, 123)
    if len(out) < 1:
        return _NOT_MINE
    put_row(out, 0, _CLEAR, info[_I_SOURCE], ts_recv, NAT, table[slot, _INSTRUMENT], _SNAP, 0, 0, 0, 0, 0)
    n = 1
    seen = 0
    sequence = -1
    closed = False
    while at < end:
        key = expect(text, at, end, 34)
        at = skip_string(text, key - 1, end)
        if at >= end:
            return _NOT_MINE
        length = at - 1 - key
        at = skip_space(text, expect(text, at, end, 58), end)
        bit = 0
        if length == 4 and matches(text, key, end, b"bids"):
            bit = 1
            n, at = _orders_of(text, at, end, table, slot, orders, info, out, n, ts_recv, _BID)
        elif length == 4 and matches(text, key, end, b"asks"):
            bit = 2
            n, at = _orders_of(text, at, end, table, slot, orders, info, out, n, ts_recv, _ASK)
        elif length == 8 and matches(text, key, end, b"sequence"):
            bit = 4
            sequence, at = scan_uint(text, at, end)
        else:
            at = skip_scalar(text, at, end)
        if bit & seen:
            return _NOT_MINE
        seen |= bit
        closed, at = _next(text, at, end, 125)
        if closed:
            break
    if not closed or seen != 7 or skip_space(text, at, end) != end:
        return _NOT_MINE
    info[_I_SEQUENCE] = sequence
    out[n - 1].flags |= _LAST
    return n


# ---- Advanced Trade


@kernel()
def _updates(
    text: Any, at: int, end: int, table: Any, slot: int, out: Any, n: int, source: int, ts_recv: int, flags: int
) -> tuple[int, int]:
    """Read ``[{"side":...,"event_time":...,"price_level":...,"new_quantity":...},...]`` into LEVEL rows from `n` on."""
    at = skip_space(text, expect(text, at, end, 91), end)
    if at < end and text[at] == 93:
        return n, at + 1
    instrument = table[slot, _INSTRUMENT]
    room = len(out)
    while n < room:
        at = expect(text, at, end, 123)
        seen = side = px = qty = 0
        stamp = NAT
        over = False
        while at < end and not over:
            key = expect(text, at, end, 34)
            at = skip_string(text, key - 1, end)
            if at >= end:
                return n, FAIL
            length = at - 1 - key
            at = skip_space(text, expect(text, at, end, 58), end)
            bit = 0
            if length == 4 and matches(text, key, end, b"side"):
                bit = 1
                side, at = _scan_side(text, at, end)
            elif length == 10 and matches(text, key, end, b"event_time"):
                bit = 2
                stamp, at = _scan_time(text, at, end)
            elif length == 11 and matches(text, key, end, b"price_level"):
                bit = 4
                px, at = _px(text, at, end, table, slot)
            elif length == 12 and matches(text, key, end, b"new_quantity"):
                bit = 8
                qty, at = _qty(text, at, end, table, slot)
            else:
                at = skip_scalar(text, at, end)
            if bit & seen:
                return n, FAIL
            seen |= bit
            over, at = _next(text, at, end, 125)
        if not over or seen != 15:
            return n, FAIL
        put_row(out, n, _LEVEL, source, ts_recv, stamp, instrument, flags | side, 0, px, qty, 0, 0)
        n += 1
        over, at = _next(text, at, end, 93)
        if over:
            return n, at
    return n, FAIL


@kernel()
def _trades(
    text: Any, at: int, end: int, table: Any, places: Any, out: Any, n: int, source: int, ts_recv: int, flags: int
) -> tuple[int, int, int]:
    """Read one event's trades into TRADE rows from `n` on, as the venue lists them; also the last one's product."""
    at = skip_space(text, expect(text, at, end, 91), end)
    if at < end and text[at] == 93:
        return n, at + 1, -1
    room = len(out)
    slot = -1
    while n < room:
        at = expect(text, at, end, 123)
        seen = 0
        over = False
        while at < end and not over:
            key = expect(text, at, end, 34)
            at = skip_string(text, key - 1, end)
            if at >= end:
                return n, FAIL, -1
            field = _field(text, key, end, at - 1 - key)
            at = skip_space(text, expect(text, at, end, 58), end)
            if field == _PRODUCT:
                slot, at = _product(text, at, end, table)
            else:
                if field < _FIELDS:
                    places[field] = at
                at = skip_scalar(text, at, end)
            if field != _UNKNOWN:
                if (seen >> field) & 1:
                    return n, FAIL, -1
                seen |= 1 << field
            over, at = _next(text, at, end, 125)
        need = 1 << _PRODUCT | 1 << _TRADE_ID | 1 << _PRICE | 1 << _SIZE | 1 << _TIME | 1 << _SIDE
        if not over or seen & need != need or slot < 0:
            return n, FAIL, -1
        trade_id, at1 = _scan_quoted_uint(text, places[_TRADE_ID], end)
        px, at2 = _px(text, places[_PRICE], end, table, slot)
        qty, at3 = _qty(text, places[_SIZE], end, table, slot)
        stamp, at4 = _scan_time(text, places[_TIME], end)
        side, at5 = _scan_side(text, places[_SIDE], end)
        if max(at1, at2, at3, at4, at5) >= FAIL or side == 0:
            return n, FAIL, -1
        taker = _BID if side == _ASK else _ASK
        put_row(
            out, n, _TRADE, source, ts_recv, stamp, table[slot, _INSTRUMENT], flags | taker, 0, px, qty,
            trade_id, 0,
        )  # fmt: skip
        n += 1
        over, at = _next(text, at, end, 93)
        if over:
            return n, at, slot
    return n, FAIL, -1


@kernel()
def _turn_round(out: Any, start: int, stop: int) -> None:
    """Reverse rows that differ in instrument, time, flags, px, qty and a only."""
    i, j = start, stop - 1
    while i < j:
        x, y = out[i], out[j]
        x.instrument, y.instrument = y.instrument, x.instrument
        x.ts_event, y.ts_event = y.ts_event, x.ts_event
        x.flags, y.flags = y.flags, x.flags
        x.px, y.px = y.px, x.px
        x.qty, y.qty = y.qty, x.qty
        x.a, y.a = y.a, x.a
        i += 1
        j -= 1


@kernel()
def _decode_advanced(text: Any, ts_recv: int, table: Any, places: Any, out: Any, info: Any) -> int:
    """Decode one Advanced Trade message of l2_data or market_trades with one event: its rows, or `_NOT_MINE`."""
    end = len(text)
    source = info[_I_SOURCE]
    if matches(text, 0, end, b'{"channel":"l2_data",'):
        what, at = LEVELS, 21
    elif matches(text, 0, end, b'{"channel":"market_trades",'):
        what, at = TRADES, 27
    else:
        return _NOT_MINE
    sequence = -1
    stamp = NAT
    seen = 0
    while at < end:
        key = expect(text, at, end, 34)
        at = skip_string(text, key - 1, end)
        if at >= end:
            return _NOT_MINE
        length = at - 1 - key
        at = skip_space(text, expect(text, at, end, 58), end)
        bit = 0
        if length == 6 and matches(text, key, end, b"events"):
            break
        if length == 9 and matches(text, key, end, b"timestamp"):
            bit = 1
            stamp, at = _scan_time(text, at, end)
        elif length == 12 and matches(text, key, end, b"sequence_num"):
            bit = 2
            sequence, at = scan_uint(text, at, end)
        elif length == 7 and matches(text, key, end, b"channel"):
            return _NOT_MINE
        else:
            at = skip_scalar(text, at, end)
        if bit & seen:
            return _NOT_MINE
        seen |= bit
        at = expect(text, at, end, 44)
    if seen != 3:
        return _NOT_MINE
    at = expect(text, expect(text, at, end, 91), end, 123)
    slot = -1
    n = 0
    snapshot = -1
    filled = False
    over = False
    while at < end and not over:
        key = expect(text, at, end, 34)
        at = skip_string(text, key - 1, end)
        if at >= end:
            return _NOT_MINE
        length = at - 1 - key
        at = skip_space(text, expect(text, at, end, 58), end)
        if length == 4 and matches(text, key, end, b"type"):
            if snapshot >= 0:
                return _NOT_MINE
            if matches(text, at, end, b'"snapshot"'):
                snapshot, at = 1, at + 10
            elif matches(text, at, end, b'"update"'):
                snapshot, at = 0, at + 8
            else:
                return _NOT_MINE
        elif length == 10 and matches(text, key, end, b"product_id"):
            if slot >= 0:
                return _NOT_MINE
            slot, at = _product(text, at, end, table)
            if slot < 0:
                return _NOT_MINE
        elif what == LEVELS and length == 7 and matches(text, key, end, b"updates"):
            if slot < 0 or snapshot < 0 or filled:
                return _NOT_MINE
            if snapshot == 1:
                if len(out) < 1:
                    return _NOT_MINE
                put_row(
                    out, 0, _CLEAR, source, ts_recv, stamp, table[slot, _INSTRUMENT], _SNAP, 0, 0, 0, 0, 0
                )  # fmt: skip
                n = 1
            n, at = _updates(text, at, end, table, slot, out, n, source, ts_recv, _SNAP if snapshot == 1 else 0)
            filled = True
        elif what == TRADES and length == 6 and matches(text, key, end, b"trades"):
            if snapshot < 0 or filled:
                return _NOT_MINE
            n, at, slot = _trades(
                text, at, end, table, places, out, 0, source, ts_recv, _SNAP if snapshot == 1 else 0
            )  # fmt: skip
            _turn_round(out, 0, n)
            filled = True
        else:
            at = skip_scalar(text, at, end)
        over, at = _next(text, at, end, 125)
    closed, at = _next(text, at, end, 93)
    at = expect(text, at, end, 125)
    if not over or not closed or not filled or skip_space(text, at, end) != end:
        return _NOT_MINE
    if n > 0:
        out[n - 1].flags |= _LAST
    info[_I_KIND] = SNAPSHOT if what == LEVELS and snapshot == 1 else what
    info[_I_INSTRUMENT] = table[slot, _INSTRUMENT] if slot >= 0 else -1
    info[_I_SEQUENCE] = sequence
    info[_I_TRADE_ID] = -1
    info[_I_TIME] = stamp
    return n


# ---- the tolerant reader


class _Malformed(Exception):
    """A message that is JSON but not what the venue documents."""


def _text(event: dict[str, Any], key: str) -> str:
    value = event.get(key)
    if type(value) is not str:
        raise _Malformed(key)
    return value


def _integer(event: dict[str, Any], key: str) -> int:
    value = event.get(key)
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        raise _Malformed(key)
    return value


def _digits(event: dict[str, Any], key: str) -> int:
    text = _text(event, key)
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= INT64_MAX):
        raise _Malformed(key)
    return int(text)


def _stamp(event: dict[str, Any], key: str) -> int:
    try:
        return time_ns(_text(event, key))
    except ValueError as error:
        raise _Malformed(key) from error


def _side(event: dict[str, Any], key: str = "side") -> int:
    flag = {"buy": _BID, "sell": _ASK, "bid": _BID, "offer": _ASK, "BUY": _BID, "SELL": _ASK}.get(_text(event, key))
    if flag is None:
        raise _Malformed(key)
    return flag


def _uuid(event: dict[str, Any], key: str) -> tuple[int, int]:
    text = _text(event, key)
    parts = text.split("-")
    if [len(part) for part in parts] != [8, 4, 4, 4, 12] or not text.isascii():
        raise _Malformed(key)
    try:
        bits = int("".join(parts), 16)
    except ValueError as error:
        raise _Malformed(key) from error
    if "_" in text or "+" in text:  # what int() forgives
        raise _Malformed(key)
    return _signed(bits >> 64), _signed(bits & (2**64 - 1))


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _lists(event: dict[str, Any], key: str, size: int) -> list[list[str]]:
    levels = event.get(key)
    if type(levels) is not list:
        raise _Malformed(key)
    for level in levels:
        if type(level) is not list or len(level) < size or not all(type(part) is str for part in level[:size]):
            raise _Malformed(key)
    return levels


def _objects(event: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = event.get(key)
    if type(items) is not list or not all(type(item) is dict for item in items):
        raise _Malformed(key)
    return items


_Row = tuple[int, int, int, int, int, int, int, int]  # kind, ts_event, instrument, flags, px, qty, a, b


class MarketDecoder:
    """Turns the bytes of market data messages into rows, and counts what it refuses.

    Parameters
    ----------
    instruments : sequence of Instrument
        What may appear; their ids are written in the rows.
    source : int
        Written in every row.

    Attributes
    ----------
    counts : dict[str, int]
        ``malformed`` not JSON or not as documented; ``truncated`` JSON that stops early; ``unknown_symbol``;
        ``off_grid`` a price or quantity that is no whole number of ticks or lots or does not fit int64; ``oversize``
        more rows than `out` has; ``fallback`` decoded by the tolerant reader; ``ignored`` valid and of no use;
        ``lost`` orders that could not be followed.
    parts : list of Part
        The events of the book message decoded last, where it had more than one (Advanced Trade may).

    Raises
    ------
    ConfigError
        If two instruments share a symbol.

    Examples
    --------
    >>> from decimal import Decimal
    >>> from hftlab.core.rows import ROW
    >>> skl = Instrument(0, "coinbase", "SKL-BTC", Decimal("0.00000001"), Decimal("0.1"))
    >>> decoder, out = MarketDecoder([skl]), np.zeros(64, ROW)
    >>> frame = b'{"type":"l2update","product_id":"SKL-BTC","changes":[["sell","0.00001306","660.5"]],'
    >>> decoder.decode(frame + b'"time":"2021-04-17T16:43:37.075687Z"}', 0, out)
    1
    >>> int(out[0]["px"]), int(out[0]["qty"]), int(out[0]["ts_event"])
    (1306, 6605, 1618677817075687000)
    """

    def __init__(self, instruments: Sequence[Instrument], source: int = 1) -> None:
        self.instruments = {i.symbol: i for i in instruments}
        if len(self.instruments) != len(instruments):
            raise ConfigError("instruments name one symbol twice; expected each symbol once")
        self.source = source
        self.counts = dict.fromkeys(
            ("malformed", "truncated", "unknown_symbol", "off_grid", "oversize", "fallback", "ignored", "lost"), 0
        )
        self.parts: list[Part] = []
        self._by_id = {i.id: i for i in instruments}
        self._grids = {i.symbol: (DecimalGrid.of_px(i), DecimalGrid.of_qty(i)) for i in instruments}
        self._slots: dict[int, int] = {}
        self._table = self._build_table(instruments)
        self._followed: set[int] = set()
        self._orders = np.zeros((16, 5), np.int64)
        self._places = np.zeros(_FIELDS, np.int64)
        self._info = np.array([OTHER, -1, -1, -1, source, 0, NAT], np.int64)
        self._facts = self._info.data  # a memoryview: reading an item costs a third of NumPy's
        self._json = msgspec.json.Decoder()
        self._compile()

    def _compile(self) -> None:
        """Compile, or load from the cache, now and not at the first message."""
        row = np.zeros(2, ROW)
        _decode(b"{}", 0, self._table, self._orders, self._places, row, self._info)
        _decode_advanced(b"{}", 0, self._table, self._places, row, self._info)
        _decode_orders(b"{}", 0, self._table, 0, self._orders, row, self._info)
        _rehash(self._orders, self._orders.copy(), self._info, -1)
        put_row(row, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        _find_order(self._orders, 0, 0)

    @property
    def kind(self) -> int:
        """Return what the message decoded last was: one of the module's kinds."""
        return self._facts[_I_KIND]

    @property
    def instrument(self) -> int:
        """Return the instrument id of the message decoded last; -1 if it has none."""
        return self._facts[_I_INSTRUMENT]

    @property
    def sequence(self) -> int:
        """Return the product's sequence (Exchange) or the connection's (Advanced Trade) of the message; -1 without."""
        return self._facts[_I_SEQUENCE]

    @property
    def trade_id(self) -> int:
        """Return the trade id of a match, or the last one that a heartbeat tells; -1 for another message."""
        return self._facts[_I_TRADE_ID]

    @property
    def time(self) -> int:
        """Return the venue's time of the message, ns; `NAT` if it gives none."""
        return self._facts[_I_TIME]

    @property
    def orders_alive(self) -> int:
        """Return how many orders are followed."""
        return self._facts[_I_ORDERS]

    def _build_table(self, instruments: Sequence[Instrument]) -> npt.NDArray[np.int64]:
        """Lay products and grids out for the kernels; at most half full, so a search ends after a step or two."""
        capacity = 4
        while capacity < 2 * len(instruments) + 1:
            capacity *= 2
        table = np.zeros((capacity, _COLUMNS), np.int64)
        words = np.zeros(4, np.int64)
        for instrument in instruments:
            name = instrument.symbol.encode()
            px, qty = self._grids[instrument.symbol]
            if len(name) > _NAME_BYTES or max(px.decimals, qty.decimals) > 18 or max(px.unit, qty.unit) > INT64_MAX:
                continue  # the tolerant reader knows it
            slot = _name_words(name, words) & (capacity - 1)
            while table[slot, _USED]:
                slot = (slot + 1) & (capacity - 1)
            table[slot] = (
                1, *words, len(name), instrument.id, px.decimals, px.unit, qty.decimals, qty.unit, 0,
            )  # fmt: skip
            self._slots[instrument.id] = slot
        return table

    # ---- orders

    def forget(self, instrument: int) -> None:
        """Stop to follow the orders of `instrument`: its messages give no L3 rows until the next `decode_snapshot`."""
        table = np.zeros((len(self._orders), 5), np.int64)
        _rehash(self._orders, table, self._info, instrument + 1)
        self._orders = table
        self._followed.discard(instrument)
        if instrument in self._slots:
            self._table[self._slots[instrument], _FOLLOWED] = 0

    def _expects(self, instrument: int, sequence: int) -> bool:
        """Return whether `sequence` is the next one of a product whose orders are followed."""
        return instrument in self._followed and bool(
            self._table[self._slots[instrument], _FOLLOWED] == sequence + 1
        )

    def _make_room(self, more: int = 1) -> None:
        """Let the order table grow ahead of a message, up to `MAX_ORDERS`."""
        size = len(self._orders)
        need = self._facts[_I_ORDERS] + more
        if 2 * need < size or size >= 2 * MAX_ORDERS:
            return
        while 2 * need >= size and size < 2 * MAX_ORDERS:
            size *= 2
        table = np.zeros((size, 5), np.int64)
        _rehash(self._orders, table, self._info, -1)
        self._orders = table

    # ---- messages

    def decode(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the rows of one message to the front of `out` and return their number.

        Parameters
        ----------
        frame : bytes
            One text message of the Exchange feed or of Advanced Trade.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten.

        Returns
        -------
        int
            Rows written; 0 for a message without rows or a rejected one.
        """
        if self.parts:
            self.parts = []
        if frame.startswith(b'{"channel"'):
            n: int = _decode_advanced(frame, ts_recv, self._table, self._places, out, self._info)
        else:
            if self._followed:
                self._make_room()
            n = _decode(frame, ts_recv, self._table, self._orders, self._places, out, self._info)
        if n == _NOT_MINE:
            return self._tolerant(frame, ts_recv, out)
        if n == 0:
            self._count_empty()
        return n

    def _count_empty(self) -> None:
        kind = self._facts[_I_KIND]
        if kind == LOST:
            self.counts["lost"] += 1
        elif kind not in (LEVELS, ORDER, TRADES):
            self.counts["ignored"] += 1

    def decode_snapshot(self, payload: bytes, instrument: int, ts_recv: int, out: RowArray) -> int:
        """Write a REST level 3 book as CLEAR and SNAPSHOT ADD rows, follow its orders; return the number of rows.

        Parameters
        ----------
        payload : bytes
            Body of the answer to `spec.book_path`.
        instrument : int
            Whose book it is: the payload does not say.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten.

        Returns
        -------
        int
            0 if the payload was rejected (and counted), else 1 or more; `sequence` is then the book's. From now on
            messages of this product change its orders, as long as each has the sequence after the one before.

        Raises
        ------
        ConfigError
            If the kernels cannot hold the instrument's name or grid: its orders cannot be followed.
        """
        slot = self._slots.get(instrument, -1)
        if slot < 0:
            raise ConfigError(f"instrument={instrument}: its name or grid does not fit; orders cannot be followed")
        self.forget(instrument)
        self._make_room(payload.count(b"["))  # at least as many as orders
        n: int = _decode_orders(payload, ts_recv, self._table, slot, self._orders, out, self._info)
        if n <= 0:
            self.forget(instrument)  # what a failed scan has left behind
            n = self._guarded(payload, lambda value: self._tolerant_orders(value, instrument), ts_recv, out)
        if n <= 0:
            self.forget(instrument)
            return 0
        self._followed.add(instrument)
        self._table[slot, _FOLLOWED] = self.sequence + 2
        return n

    # ---- the tolerant reader

    def _tolerant(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        self._said(OTHER, -1)
        return self._guarded(frame, self._tolerant_message, ts_recv, out)

    def _said(
        self, kind: int, instrument: int, sequence: int = -1, trade_id: int = -1, stamp: int = NAT
    ) -> None:
        self._info[: _I_TRADE_ID + 1] = (kind, instrument, sequence, trade_id)
        self._info[_I_TIME] = stamp

    def _guarded(self, frame: bytes, read: Callable[[Any], list[_Row]], ts_recv: int, out: RowArray) -> int:
        """Run `read` on the parsed message, count what it makes of it, and write its rows."""
        try:
            rows = read(self._json.decode(frame))
        except OffGridError:
            reason = "off_grid"
        except (_Malformed, RecursionError, UnicodeDecodeError):
            reason = "malformed"
        except msgspec.DecodeError as error:
            reason = "truncated" if "truncated" in str(error) else "malformed"
        except KeyError:
            reason = "unknown_symbol"
        else:
            return self._write(rows, frame, ts_recv, out)
        self._refuse(reason, frame)
        return 0

    def _refuse(self, reason: str, frame: bytes) -> None:
        # what is known of the message stays known: a gap must be seen though the content is refused
        self._info[_I_KIND] = OTHER
        self.parts = []
        self.counts[reason] += 1
        names = set(_KINDS.findall(frame))
        if names & (_HARMLESS - _OF_ORDERS if self._followed else _HARMLESS):
            return
        blamed = [i.id for symbol, i in self.instruments.items() if b'"%s"' % symbol.encode() in frame]
        if reason == "unknown_symbol" and not blamed:
            return
        # a message of Advanced Trade may tell of several books, and one cut short does not say of which
        cut = reason in ("malformed", "truncated") and b'"channel"' in frame
        self._info[_I_KIND] = BROKEN
        self._info[_I_INSTRUMENT] = blamed[0] if len(blamed) == 1 and not cut else -1

    def _write(self, rows: list[_Row], frame: bytes, ts_recv: int, out: RowArray) -> int:
        if len(rows) > len(out):
            self._refuse("oversize", frame)
            return 0
        if not rows:
            self._count_empty()
            return 0
        self.counts["fallback"] += 1
        for n, (kind, ts_event, instrument, flags, px, qty, a, b) in enumerate(rows):
            row = out[n]
            row["seq"], row["source"], row["kind"], row["span"], row["code"] = 0, self.source, kind, 0, 0
            row["ts_recv"], row["ts_event"], row["instrument"], row["flags"] = ts_recv, ts_event, instrument, flags
            row["px"], row["qty"], row["a"], row["b"] = px, qty, a & (2**64 - 1), b
        out[len(rows) - 1]["flags"] |= _LAST
        return len(rows)

    def _tolerant_message(self, message: Any) -> list[_Row]:
        if type(message) is not dict:
            raise _Malformed("message")
        if "channel" in message:
            return self._advanced(message)
        name = _text(message, "type")
        if name == "snapshot":
            return self._snapshot(message)
        if name == "l2update":
            return self._l2update(message)
        if name in ("match", "last_match"):
            return self._match(message, name)
        if name == "ticker":
            return self._ticker(message)
        if name in ("open", "done", "change", "received"):
            return self._order(message, name)
        if name == "heartbeat":
            instrument = self.instruments[_text(message, "product_id")]
            sequence, trade_id = _integer(message, "sequence"), _integer(message, "last_trade_id")
            self._said(HEARTBEAT, instrument.id, sequence, trade_id, _stamp(message, "time"))
        elif name == "subscriptions":
            self._said(CONTROL, -1)
        elif name == "error":
            self._said(ERROR, -1)
        return []

    def _level_rows(self, symbol: str, levels: list[tuple[int, str, str, int]], flags: int) -> list[_Row]:
        identity = self.instruments[symbol].id
        px, qty = self._grids[symbol]
        return [(_LEVEL, at, identity, flags | side, px.count(p), qty.count(q), 0, 0) for side, p, q, at in levels]

    def _snapshot(self, event: dict[str, Any]) -> list[_Row]:
        stamp = _stamp(event, "time") if "time" in event else NAT
        bids, asks, symbol = _lists(event, "bids", 2), _lists(event, "asks", 2), _text(event, "product_id")
        identity = self.instruments[symbol].id
        levels = [(_BID, p, q, stamp) for p, q, *_ in bids] + [(_ASK, p, q, stamp) for p, q, *_ in asks]
        rows: list[_Row] = [(_CLEAR, stamp, identity, _SNAP, 0, 0, 0, 0)]
        rows += self._level_rows(symbol, levels, _SNAP)
        self._said(SNAPSHOT, identity, -1, -1, stamp)
        return rows

    def _l2update(self, event: dict[str, Any]) -> list[_Row]:
        stamp, symbol = _stamp(event, "time"), _text(event, "product_id")
        changes = [(_side({"side": s}), p, q, stamp) for s, p, q, *_ in _lists(event, "changes", 3)]
        rows = self._level_rows(symbol, changes, 0)
        self._said(LEVELS, self.instruments[symbol].id, -1, -1, stamp)
        return rows

    def _match(self, event: dict[str, Any], name: str) -> list[_Row]:
        stamp, sequence, trade_id = _stamp(event, "time"), _integer(event, "sequence"), _integer(event, "trade_id")
        side, (hi, lo), symbol = _side(event), _uuid(event, "maker_order_id"), _text(event, "product_id")
        px_text, qty_text = _text(event, "price"), _text(event, "size")
        identity = self.instruments[symbol].id
        px_grid, qty_grid = self._grids[symbol]
        px, qty = px_grid.count(px_text), qty_grid.count(qty_text)
        self._said(TRADES, identity, sequence, trade_id, stamp)
        flags = _LAST | (_BID if side == _ASK else _ASK) | (_SNAP if name == "last_match" else 0)
        rows: list[_Row] = []
        followed = name == "match" and self._expects(identity, sequence)
        slot = _find_order(self._orders, hi, lo) if followed else -1
        if slot >= 0 and self._orders[slot, _OWNER] == identity + 1:
            left = int(self._orders[slot, _LEFT])
            self._orders[slot, _LEFT] = left - min(qty, left)
            if qty >= left:
                _remove_order(self._orders, self._info, slot)
            rows.append((_EXECUTE, stamp, identity, side, NO_PX, min(qty, left), hi, trade_id))
        if followed:
            self._table[self._slots[identity], _FOLLOWED] = sequence + 2
        rows.append((_TRADE, stamp, identity, flags, px, qty, trade_id, sequence))
        return rows

    def _ticker(self, event: dict[str, Any]) -> list[_Row]:
        sequence, symbol = _integer(event, "sequence"), _text(event, "product_id")
        stamp = _stamp(event, "time")
        return self._quote(event, symbol, sequence, stamp, "best_bid_size", "best_ask_size")

    def _quote(
        self, event: dict[str, Any], symbol: str, sequence: int, stamp: int, bid_size: str, ask_size: str
    ) -> list[_Row]:
        identity = self.instruments[symbol].id
        px, qty = self._grids[symbol]
        bid, ask = _text(event, "best_bid"), _text(event, "best_ask")
        self._said(TICKER, identity, sequence, -1, stamp)
        if bid_size not in event and ask_size not in event:
            return []
        common = (_QUOTE, stamp, identity)
        number = max(sequence, 0)
        return [
            (*common, _BID, px.count(bid), qty.count(_text(event, bid_size)), number, 0),
            (*common, _ASK | _LAST, px.count(ask), qty.count(_text(event, ask_size)), number, 0),
        ]

    def _order(self, event: dict[str, Any], name: str) -> list[_Row]:
        stamp, sequence, symbol = _stamp(event, "time"), _integer(event, "sequence"), _text(event, "product_id")
        side, (hi, lo) = _side(event), _uuid(event, "order_id")
        identity = self.instruments[symbol].id
        px_grid, qty_grid = self._grids[symbol]
        if not self._expects(identity, sequence):
            self._said(ORDER, identity, sequence, -1, stamp)
            return []
        if name == "received":
            self._table[self._slots[identity], _FOLLOWED] = sequence + 2
            self._said(ORDER, identity, sequence, -1, stamp)
            return []
        px_text = event.get("new_price") if name == "change" and "new_price" in event else event.get("price")
        has_px = name != "done" and type(px_text) is str
        if name == "open" and not has_px:
            raise _Malformed("price")
        px = px_grid.count(str(px_text)) if has_px else 0
        qty = qty_grid.count(_text(event, "remaining_size" if name == "open" else "new_size")) if name != "done" else 0
        self._make_room()
        out = np.zeros(2, ROW)
        action = {"open": 1, "done": 2, "change": 3}[name]
        n = _apply_order(
            self._orders, self._info, out, action, hi, lo, side, px, qty, has_px, self.source, 0, stamp, identity
        )  # fmt: skip
        if n != _NOT_MINE:
            self._table[self._slots[identity], _FOLLOWED] = sequence + 2
        self._said(LOST if n == _NOT_MINE else ORDER, identity, sequence, -1, stamp)
        fields = ("kind", "ts_event", "instrument", "flags", "px", "qty", "a", "b")
        return [tuple(int(row[f]) for f in fields) for row in out[: max(n, 0)]]  # type: ignore[misc]  # eight of them

    def _tolerant_orders(self, message: Any, instrument: int) -> list[_Row]:
        if type(message) is not dict:
            raise _Malformed("message")
        sequence = _integer(message, "sequence")
        sides = ((_BID, _lists(message, "bids", 3)), (_ASK, _lists(message, "asks", 3)))
        symbol = self._by_id[instrument].symbol
        px_grid, qty_grid = self._grids[symbol]
        rows: list[_Row] = [(_CLEAR, NAT, instrument, _SNAP, 0, 0, 0, 0)]
        for side, orders in sides:
            for px_text, qty_text, uuid, *_ in orders:
                hi, lo = _uuid({"id": uuid}, "id")
                px, qty = px_grid.count(px_text), qty_grid.count(qty_text)
                if not _add_order(self._orders, self._info, instrument, hi, lo, qty, px):
                    raise _Malformed("order id")
                rows.append((_ADD, NAT, instrument, side | _SNAP, px, qty, hi, 0))
        self._info[_I_SEQUENCE] = sequence
        return rows

    # ---- Advanced Trade

    def _advanced(self, message: dict[str, Any]) -> list[_Row]:
        channel, sequence = _text(message, "channel"), _integer(message, "sequence_num")
        stamp = _stamp(message, "timestamp")
        self._said(OTHER, -1, sequence, -1, stamp)
        if channel == "subscriptions":
            self._said(CONTROL, -1, sequence, -1, stamp)
            return []
        if channel == "heartbeats":
            self._said(HEARTBEAT, -1, sequence, -1, stamp)
            return []
        if channel == "l2_data":
            return self._l2_data(_objects(message, "events"), sequence, stamp)
        if channel == "market_trades":
            return self._market_trades(_objects(message, "events"), sequence, stamp)
        if channel in ("ticker", "ticker_batch"):
            rows: list[_Row] = []
            for event in _objects(message, "events"):
                for ticker in _objects(event, "tickers"):
                    symbol = _text(ticker, "product_id")
                    rows += self._quote(ticker, symbol, sequence, stamp, "best_bid_quantity", "best_ask_quantity")
            return rows
        return []

    def _l2_data(self, events: list[dict[str, Any]], sequence: int, stamp: int) -> list[_Row]:
        rows: list[_Row] = []
        parts: list[Part] = []
        for event in events:
            name, symbol = _text(event, "type"), _text(event, "product_id")
            if name not in ("snapshot", "update"):
                raise _Malformed("type")
            updates = [
                (_side(u), _text(u, "price_level"), _text(u, "new_quantity"), _stamp(u, "event_time"))
                for u in _objects(event, "updates")
            ]
            identity, start = self.instruments[symbol].id, len(rows)
            if name == "snapshot":
                rows.append((_CLEAR, stamp, identity, _SNAP, 0, 0, 0, 0))
            rows += self._level_rows(symbol, updates, _SNAP if name == "snapshot" else 0)
            if len(rows) > start:
                kind, at, _, flags, *rest = rows[-1]
                rows[-1] = (kind, at, identity, flags | _LAST, *rest)  # type: ignore[assignment]  # four ints left
            parts.append(Part(identity, name == "snapshot", start, len(rows)))
        if len(parts) == 1:
            self._said(SNAPSHOT if parts[0].snapshot else LEVELS, parts[0].instrument, sequence, -1, stamp)
        else:
            self._said(LEVELS, -1, sequence, -1, stamp)
            self.parts = parts
        return rows

    def _market_trades(self, events: list[dict[str, Any]], sequence: int, stamp: int) -> list[_Row]:
        rows: list[_Row] = []
        instrument = -1
        for event in events:
            name = _text(event, "type")
            if name not in ("snapshot", "update"):
                raise _Malformed("type")
            found: list[_Row] = []
            for trade in _objects(event, "trades"):
                trade_id, at, side = _digits(trade, "trade_id"), _stamp(trade, "time"), _side(trade)
                px_text, qty_text, symbol = _text(trade, "price"), _text(trade, "size"), _text(trade, "product_id")
                identity = instrument = self.instruments[symbol].id
                px, qty = self._grids[symbol]
                flags = (_BID if side == _ASK else _ASK) | (_SNAP if name == "snapshot" else 0)
                found.append((_TRADE, at, identity, flags, px.count(px_text), qty.count(qty_text), trade_id, 0))
            rows += reversed(found)
        self._said(TRADES, instrument, sequence, -1, stamp)
        return rows
