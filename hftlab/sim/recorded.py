"""A recorded market under two clocks, with own orders beside it: everything between the tape and the engine, compiled.

**Two clocks.** A market row happens twice: at the exchange when the venue dated it (`exchange_times`), and here when we
received it. A request reaches the exchange ``entry`` after the decision; what it causes comes back ``response`` later.
One kernel, `run`, merges the four streams (rows at the exchange, rows received, requests under way, answers under way),
timers and idle clocks, and calls the engine's loop by its address, so an event costs no Python. At equal times a
request is handled first, then an answer, a timer, an idle clock, then the market: one order, so two runs have the same
bytes. While we receive nothing for 100 ms a CLOCK row is written, as the live host does.

**How far may the exchange run ahead?** A decision that is not made yet arrives ``entry`` after the next moment at which
one can be made; until then the exchange may work on without looking here, and we may work through rows until the first
answer that is not known yet could come. So both sides go in batches, longer the less the strategy listens to: with
timers alone, from timer to timer.

**When an order fills.** The book at the exchange is the recorded one. An own order joins behind all lots displayed at
its price.

- A trade by the other side at its price takes the lots ahead first, then fills it with what is left of the trade. A
  trade through its price fills it. Lots of one trade fill own orders once, best price first, oldest first; with
  `alone` each order is judged as if it were the only one, and a trade through its price fills it whole.
- Lots that vanish from its price without a trade are shared between ahead and behind by the queue model, when the
  message ends. After a snapshot no more can be ahead than is displayed.
- Of a market by order nothing is estimated: each change says whose lots went (`hftlab.sim.by_order`), and an execution
  of an order behind ours would have been ours.
- Lots newly displayed against it, at its price or through it, would have met it, and fill it; with `alone`, whole.
- A marketable order takes the displayed lots, best first; with `consume` they are gone until that price is told again.

It is wrong, in our favour, for orders large beside the touch, and wherever others would have reacted to us; and as
`hftlab.sim.models` says of each assumption. A message is at the exchange no earlier than the one before it and no later
than we received it, so a venue whose streams are dated out of order is seen a little late.

**Rules.** Own orders never trade with each other: the resting one expires. What is left of IOC and FOK expires. A
replacement is a new order at the back of its queue; refused, it leaves the old order as it was. While the recorded book
is not LIVE new orders are rejected. Filters and codes are Binance's, as in `hftlab.sim.exchange`.

**Bounds.** 1,000 own open orders an instrument, 65,536 requests and as many answers under way, which an engine's order
table of 8,192 does not reach; a run beyond those ends with an error that says so. Requests and answers keep their
order: latency that falls does not let one overtake another.

References
----------
hftbacktest, "Order Fill" and "Latency Models": the peer whose fills `alone` reproduces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError, HftlabError
from hftlab.core.rows import (
    MAX_SPAN,
    NAT,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    RowArray,
    Tif,
    new_rows,
)
from hftlab.engine import Engine, Sink, book_size, control_row, fault_rows
from hftlab.journal.format import entry
from hftlab.kernels import loop
from hftlab.kernels.jit import address_of, call_at, copy_bytes, kernel, load, record_at, store
from hftlab.kernels.ladder import (
    best_px,
    clear_side,
    has_best,
    key_qty,
    lay_side,
    level_px,
    level_qty,
    set_key,
    side_bytes,
)
from hftlab.kernels.queue import cancels_ahead
from hftlab.kernels.state import ATOM_ROWS, engine_at, host_at, order_payload_at, row_at
from hftlab.sim.models import BASE_FEES, Fees, Impact, Latency, Queue, notional_unit

__all__ = ["CLOCK_NS", "MARKET_KINDS", "RecordedMarket", "exchange_times"]

CLOCK_NS = 100_000_000
MARKET_KINDS = (Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.TRADE, Kind.BOOK_STATE)
"""Kinds of rows that a recorded market is made of."""

MAX_OPEN_ORDERS = 1000
_TOUCHED = 64
_MOST_TOGETHER = 64
_REQUESTS = _ANSWERS = 1 << 16
_SLOTS = 1 << 14
_BATCH = 1024
_ROOM = 2 * ATOM_ROWS + 4 * _BATCH
_MAX_UNITS = 2**50
_BAND = 5
_NEVER = 2**62
_FEE_BITS = 2**61


def _words(names: str) -> list[tuple[str, str]]:
    return [(name, "<i8") for name in names.split()]


SIM = np.dtype(
    [
        *_words(
            "host arena fn_run phase error "
            "rows n times feed_ns latest marks ei li "  # the tape, and where each clock stands in it
            "pause last_ns draining started "
            "out out_n out_cap seq keep scratch called batching "  # own rows
            "input input_n input_ns spare "  # rows given by the host; a timer's or an idle clock's
            "request_rows request_times request_head request_tail answer_rows answer_times answer_head answer_tail "
            "entry response n_latency by_time at_ns k_entry k_response at least_entry least_response "
            "last_arrival last_answer "
            "slots free orders n_instruments decides queue consume alone per_lots "
            "trades requests reasons idle"
        ),
        ("exponent", "<f8"),
        ("sqrt_ticks", "<f8"),
    ]
)
"""One simulation. Times are ns; addresses are of the arrays that `RecordedMarket` keeps."""

PLACE = np.dtype(
    _words(
        "bids asks book_seq live dirty snapped touched "
        "buys n_buys sells n_sells "  # own orders of a side, best price first, then oldest: pairs (key, slot)
        "min_qty max_qty min_px max_px min_notional "
        "fees volumes n_tiers tier traded fee_d fee_asset"
    )
)
"""One instrument at the exchange. Its fees are pairs (maker, taker) of one tier each, over `fee_d` for a tick times a
lot; `volumes` says from how much of both traded on (ticks times lots) the next tier holds."""

OWN = np.dtype(
    [
        *_words("cl_ord_id instrument side px qty cum venue_order_id next was traded dirty after"),
        ("ahead", "<f8"),
    ]
)
"""An own order at the exchange. `was` is what its price displayed before this message changed it, `traded` what was
traded there since the price was last told; `after` how many rows of the tape had happened when it came to rest."""

_sim_at, _place_at, _own_at = record_at(SIM), record_at(PLACE), record_at(OWN)
_call1 = call_at(1)
_PLACE_BYTES, _OWN_BYTES = PLACE.itemsize, OWN.itemsize
_OWN_ALL = MAX_OPEN_ORDERS * 16

DONE, ROOM, WAKE, FAULT, ERROR = range(5)
"""Why `run` returned: the tape is used up to where it was to pause (draining: and nothing is under way any more); room
for own rows is short; a Python callback must run; a compiled callback failed; a bound was passed."""
TOO_MANY_REQUESTS, TOO_MANY_ANSWERS, TOO_MANY_ORDERS, BAD_ROW = 1, 2, 3, 4
_ERRORS = {
    TOO_MANY_REQUESTS: f"more than {_REQUESTS:,} requests are under way at once",
    TOO_MANY_ANSWERS: f"more than {_ANSWERS:,} answers are under way at once",
    TOO_MANY_ORDERS: f"more than {_SLOTS:,} own orders are open at the exchange",
    BAD_ROW: "the tape holds a row that is no row: unwritten, or a payload",
}

_BID, _ASK, _LAST, _MAKER, _POST_ONLY = (
    int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.MAKER), int(Flag.POST_ONLY),
)  # fmt: skip
_LEVEL, _QUOTE, _CLEAR, _TRADE, _BOOK_STATE = (
    int(Kind.LEVEL), int(Kind.QUOTE), int(Kind.CLEAR), int(Kind.TRADE), int(Kind.BOOK_STATE),
)  # fmt: skip
_SUBMIT, _CANCEL, _REPLACE, _REPORT, _CONT, _TIMER, _CLOCK = (
    int(Kind.SUBMIT), int(Kind.CANCEL), int(Kind.REPLACE_ORDER), int(Kind.REPORT), int(Kind.CONT), int(Kind.TIMER),
    int(Kind.CLOCK),
)  # fmt: skip
_ACK, _FILL, _REJECT, _CANCEL_REJECT, _REPLACED, _CANCELED, _EXPIRED = (
    int(ExecType.ACK), int(ExecType.FILL), int(ExecType.REJECT), int(ExecType.CANCEL_REJECT), int(ExecType.REPLACED),
    int(ExecType.CANCELED), int(ExecType.EXPIRED),
)  # fmt: skip
_NONE, _NEW, _PARTIAL, _FULL, _GONE, _REFUSED, _OVER = (
    int(OrdStatus.NONE), int(OrdStatus.NEW), int(OrdStatus.PARTIALLY_FILLED), int(OrdStatus.FILLED),
    int(OrdStatus.CANCELED), int(OrdStatus.REJECTED), int(OrdStatus.EXPIRED),
)  # fmt: skip
_DAY, _GTC, _IOC, _FOK = int(Tif.DAY), int(Tif.GTC), int(Tif.IOC), int(Tif.FOK)
_MARKET, _LIMIT = int(OrdType.MARKET), int(OrdType.LIMIT)
_LIVE, _NAT = int(BookState.LIVE), NAT


def _text(what: bytes) -> tuple[int, int]:
    """Return the 16 bytes of a report's text as two words."""
    low, high = np.frombuffer(what.ljust(16, b"\0"), np.int64).tolist()
    return low, high


_CODE = {  # reason: (venue code, text)
    1: (-1121, b"invalid symbol"), 2: (-1117, b"invalid side"), 3: (-1115, b"invalid tif"),
    4: (-1100, b"bad cl_ord_id"), 5: (-2010, b"duplicate order"), 6: (-1013, b"LOT_SIZE"),
    7: (-1013, b"MAX_NUM_ORDERS"), 8: (-1013, b"PRICE_FILTER"), 9: (-1013, b"PERCENT_PRICE"), 10: (-1013, b"NOTIONAL"),
    11: (-2011, b"unknown order"), 12: (-2010, b"book not live"), 13: (-2010, b"would match now"),
    14: (-1116, b"order type"),
}  # fmt: skip
_REASONS = np.array([(0, 0, 0), *((code, *_text(text)) for code, text in _CODE.values())], np.int64)
(_BAD_SYMBOL, _BAD_SIDE, _BAD_TIF, _BAD_ID, _DUPLICATE, _LOT_SIZE, _MANY, _PRICE, _PERCENT, _NOTIONAL, _UNKNOWN,
 _NOT_LIVE, _WOULD_MATCH, _BAD_TYPE) = range(1, 15)  # fmt: skip


@kernel(inline=True)
def _word(value: int) -> int:
    """Return a row's unsigned word as int64."""
    return int(value)


# --- times


@kernel("int64(int64, int64, int64, int64)")
def _exchange_times(rows: int, n: int, feed_ns: int, out: int) -> int:
    latest = -_NEVER
    undated = 0
    for k in range(n):
        row = rows + 64 * k
        received, happened = load(row + 8), load(row + 16)
        if happened == _NAT or happened <= 0:
            happened = received - feed_ns
            undated += 1
        latest = max(latest, min(happened, received))
        store(out + 8 * k, latest)
    return undated


def exchange_times(rows: RowArray, feed_ns: int = 0) -> tuple[npt.NDArray[np.int64], int]:
    """Return when each row was at the exchange, ns, and how many rows the venue did not date.

    Those are taken to be `feed_ns` old when received. No row is later than its receipt, nor earlier than the one
    before.
    """
    times = np.empty(len(rows), np.int64)
    undated = int(_exchange_times(address_of(rows), len(rows), feed_ns, address_of(times)))
    return times, undated


# --- latency and answers


@kernel(inline=True)
def _sample(sim: int, now: int, which: int) -> int:
    """Return the next request's way (`which` 0) or the next answer's (1), ns."""
    s = _sim_at(sim)
    if s.by_time != 0:
        while s.at + 1 < s.n_latency and load(s.at_ns + 8 * (s.at + 1)) <= now:
            s.at += 1
        return load((s.entry if which == 0 else s.response) + 8 * s.at)  # type: ignore[no-any-return]  # an intrinsic
    if which == 0:
        k = s.k_entry
        s.k_entry = k + 1 if k + 1 < s.n_latency else 0
        return load(s.entry + 8 * k)  # type: ignore[no-any-return]
    k = s.k_response
    s.k_response = k + 1 if k + 1 < s.n_latency else 0
    return load(s.response + 8 * k)  # type: ignore[no-any-return]


@kernel()
def _answer(
    sim: int, ts: int, exec_type: int, status: int, instrument: int, flags: int, px: int, qty: int, cl_ord_id: int,
    exec_id: int, cum: int, leaves: int, venue_order_id: int, fee: int, fee_asset: int, reason: int,
) -> int:  # fmt: skip
    """Send a REPORT on its way."""
    s = _sim_at(sim)
    if s.answer_tail - s.answer_head >= _ANSWERS:
        s.error = TOO_MANY_ANSWERS
        return 0
    if s.answer_head == s.answer_tail:  # begin again where the cache is warm: the ring is 8 MB
        s.answer_head = 0
        s.answer_tail = 0
    due = max(ts + _sample(sim, ts, 1), s.last_answer)
    s.last_answer = due
    k = s.answer_tail & (_ANSWERS - 1)
    s.answer_tail += 1
    store(s.answer_times + 8 * k, due)
    at = s.answer_rows + 128 * k
    store(at, (_REPORT << 48) | (1 << 56))
    store(at + 8, due)
    store(at + 16, ts)
    store(at + 24, instrument | flags << 32 | (exec_type | status << 8) << 48)
    store(at + 32, px)
    store(at + 40, qty)
    store(at + 48, cl_ord_id)
    store(at + 56, exec_id)
    store(at + 64, _CONT << 48)
    store(at + 72, cum)
    store(at + 80, leaves)
    store(at + 88, venue_order_id)
    store(at + 96, fee)
    code = load(s.reasons + 24 * reason)
    store(at + 104, fee_asset | code << 32)
    store(at + 112, load(s.reasons + 24 * reason + 8))
    store(at + 120, load(s.reasons + 24 * reason + 16))
    return 1


# --- own orders at the exchange


@kernel(inline=True)
def _place(sim: int, instrument: int) -> int:
    """Return the address of an instrument's place at the exchange; the caller has checked the index."""
    return _sim_at(sim).orders - (_sim_at(sim).n_instruments - instrument) * _PLACE_BYTES  # type: ignore[no-any-return]


@kernel(inline=True)
def _own(sim: int, slot: int) -> int:
    return _sim_at(sim).orders + slot * _OWN_BYTES  # type: ignore[no-any-return]


@kernel(inline=True)
def _count(place: int, side: int) -> int:
    p = _place_at(place)
    return p.n_buys if side == _BID else p.n_sells  # type: ignore[no-any-return]


@kernel(inline=True)
def _list(place: int, side: int) -> int:
    p = _place_at(place)
    return p.buys if side == _BID else p.sells  # type: ignore[no-any-return]


@kernel(inline=True)
def _set_count(place: int, side: int, n: int) -> None:
    p = _place_at(place)
    if side == _BID:
        p.n_buys = n
    else:
        p.n_sells = n


@kernel()
def _rest(sim: int, place: int, slot: int) -> int:
    """Lay an own order behind those at its price."""
    o = _own_at(_own(sim, slot))
    key = o.px if o.side == _BID else -o.px
    pairs, n = _list(place, o.side), _count(place, o.side)
    k = n
    while k > 0 and load(pairs + 16 * (k - 1)) < key:
        store(pairs + 16 * k, load(pairs + 16 * (k - 1)))
        store(pairs + 16 * k + 8, load(pairs + 16 * (k - 1) + 8))
        k -= 1
    store(pairs + 16 * k, key)
    store(pairs + 16 * k + 8, slot)
    _set_count(place, o.side, n + 1)
    return 0


@kernel()
def _forget(sim: int, place: int, slot: int) -> int:
    """Take an own order out of its list, if it rests, and free its slot."""
    s = _sim_at(sim)
    o = _own_at(_own(sim, slot))
    pairs, n = _list(place, o.side), _count(place, o.side)
    k = 0
    while k < n and load(pairs + 16 * k + 8) != slot:
        k += 1
    if k < n:
        while k + 1 < n:
            store(pairs + 16 * k, load(pairs + 16 * (k + 1)))
            store(pairs + 16 * k + 8, load(pairs + 16 * (k + 1) + 8))
            k += 1
        _set_count(place, o.side, n - 1)
    bucket = s.slots + 8 * (o.cl_ord_id & (_SLOTS - 1))
    if load(bucket) == slot:
        store(bucket, o.next)
    else:
        before = load(bucket)
        while _own_at(_own(sim, before)).next != slot:
            before = _own_at(_own(sim, before)).next
        _own_at(_own(sim, before)).next = o.next
    o.next = s.free
    o.dirty = 0
    s.free = slot
    return 0


@kernel(inline=True)
def _find(sim: int, cl_ord_id: int) -> int:
    """Return the slot of an open own order, or -1."""
    slot = load(_sim_at(sim).slots + 8 * (cl_ord_id & (_SLOTS - 1)))
    while slot >= 0 and _own_at(_own(sim, slot)).cl_ord_id != cl_ord_id:
        slot = _own_at(_own(sim, slot)).next
    return slot  # type: ignore[no-any-return]


@kernel()
def _fee(place: int, px: int, qty: int, is_maker: int) -> int:
    """Return the fee of a fill in 1e-8 of the quote asset, exact, halves rounded up."""
    p = _place_at(place)
    rates = p.fees + 16 * p.tier
    rate, d = load(rates) if is_maker != 0 else load(rates + 8), p.fee_d
    value = px * qty
    whole = value // d
    rest = value - whole * d
    fee = whole * rate + (2 * rest * rate + d) // (2 * d)
    p.traded += value
    while p.tier + 1 < p.n_tiers and p.traded >= load(p.volumes + 8 * p.tier):
        p.tier += 1
    return fee  # type: ignore[no-any-return]


@kernel()
def _fill(sim: int, place: int, slot: int, px: int, qty: int, ts: int, is_maker: int) -> int:
    """Fill `qty` lots of an own order at `px`; it is forgotten when none are left."""
    s, o, p = _sim_at(sim), _own_at(_own(sim, slot)), _place_at(place)
    s.trades += 1
    o.cum += qty
    leaves = o.qty - o.cum
    flags = o.side | (_MAKER if is_maker != 0 else 0)
    _answer(
        sim, ts, _FILL, _PARTIAL if leaves > 0 else _FULL, o.instrument, flags, px, qty, o.cl_ord_id, s.trades, o.cum,
        leaves, o.venue_order_id, _fee(place, px, qty, is_maker), p.fee_asset, 0,
    )  # fmt: skip
    if leaves == 0:
        _forget(sim, place, slot)
    return 0


@kernel()
def _end(sim: int, place: int, slot: int, exec_type: int, status: int, ts: int) -> int:
    o = _own_at(_own(sim, slot))
    _answer(sim, ts, exec_type, status, o.instrument, o.side, 0, 0, o.cl_ord_id, 0, o.cum, 0, o.venue_order_id, 0, 0, 0)
    _forget(sim, place, slot)
    return 0


# --- the market at the exchange


@kernel()
def _met(sim: int, place: int, side: int, key: int, lots: int, ts: int) -> int:
    """Fill own orders of `side` at `key` or better with `lots` shown against them, at their own prices."""
    alone = _sim_at(sim).alone
    pairs = _list(place, side)
    while _count(place, side) > 0 and load(pairs) >= key and (lots > 0 or alone != 0):
        slot = load(pairs + 8)
        o = _own_at(_own(sim, slot))
        traded = o.qty - o.cum if alone != 0 else min(lots, o.qty - o.cum)
        lots -= traded
        _fill(sim, place, slot, o.px, traded, ts, 1)
    return 0


@kernel()
def _traded(sim: int, place: int, side: int, key: int, qty: int, ts: int, mark: int) -> int:
    """Take a trade of `qty` lots at `key` against own orders of `side`."""
    alone = _sim_at(sim).alone
    pairs = _list(place, side)
    used = 0
    k = 0
    while k < _count(place, side) and load(pairs + 16 * k) >= key:
        slot = load(pairs + 16 * k + 8)
        o = _own_at(_own(sim, slot))
        leaves = o.qty - o.cum
        reached = qty
        if load(pairs + 16 * k) == key:
            if mark == 0:
                reached = int(qty - o.ahead)  # what is left of the trade, rounded down
                o.ahead = max(o.ahead - qty, 0.0)
                o.traded += qty
            elif mark < 0:
                reached = 0  # it met no displayed order
            elif mark <= o.after:
                reached = 0  # it met one that was ahead of us
                o.ahead = max(o.ahead - qty, 0.0)
        elif alone != 0:
            reached = leaves
        traded = min(leaves, reached if alone != 0 else reached - used)
        if traded > 0:
            used += traded
            _fill(sim, place, slot, o.px, traded, ts, 1)
        if traded < leaves:
            k += 1
    return 0


@kernel()
def _note_change(sim: int, place: int, side: int, key: int, was: int) -> int:
    """Mark the own orders at a price whose level is about to change."""
    pairs, n = _list(place, side), _count(place, side)
    k = 0
    while k < n and load(pairs + 16 * k) > key:
        k += 1
    while k < n and load(pairs + 16 * k) == key:
        o = _own_at(_own(sim, load(pairs + 16 * k + 8)))
        if o.dirty == 0:
            o.dirty = 1
            o.was = was
            p = _place_at(place)
            if p.dirty < _TOUCHED:
                store(p.touched + 8 * p.dirty, load(pairs + 16 * k + 8))
            else:
                p.snapped |= 2  # more than are listed: look at all
            p.dirty += 1
        k += 1
    return 0


@kernel(inline=True)
def _share(sim: int, slot: int, shown: int) -> None:
    """Share what vanished at an own order's price since it was noted; `shown` is left."""
    s, o = _sim_at(sim), _own_at(_own(sim, slot))
    gone = float(max(0, o.was - shown - o.traded))
    o.ahead -= cancels_ahead(s.queue, s.exponent, o.ahead, float(o.was - o.traded) - o.ahead, gone)


@kernel()
def _share_cancels(sim: int, place: int) -> int:
    """At a message's end: what vanished at the prices of own orders was ahead of them in part."""
    p = _place_at(place)
    if p.snapped == 0:
        for k in range(p.dirty):
            slot = load(p.touched + 8 * k)
            o = _own_at(_own(sim, slot))
            if o.dirty != 0:  # else it is gone since
                shown = key_qty(p.bids, o.px) if o.side == _BID else key_qty(p.asks, -o.px)
                _share(sim, slot, shown)
                o.ahead = max(0.0, min(o.ahead, float(shown)))
                o.dirty = 0
                o.traded = 0
    else:
        for side in range(_BID, _ASK + 1):
            book = p.bids if side == _BID else p.asks
            pairs = _list(place, side)
            for k in range(_count(place, side)):
                slot = load(pairs + 16 * k + 8)
                o = _own_at(_own(sim, slot))
                if o.dirty == 0 and p.snapped & 1 == 0:
                    continue
                shown = key_qty(book, load(pairs + 16 * k))
                if p.snapped & 1 == 0:
                    _share(sim, slot, shown)
                o.ahead = max(0.0, min(o.ahead, float(shown)))
                o.dirty = 0
                o.traded = 0
    p.dirty = 0
    p.snapped = 0
    return 0


@kernel()
def _shift(sim: int, place: int, side: int, key: int, gone: int, mark: int) -> int:
    """Bring own orders at a price forward by `gone` lots of an order that came with row `mark - 1`, if it was ahead."""
    pairs, n = _list(place, side), _count(place, side)
    for k in range(n):
        if load(pairs + 16 * k) == key:
            o = _own_at(_own(sim, load(pairs + 16 * k + 8)))
            if mark <= o.after:
                o.ahead = max(0.0, o.ahead - float(gone))
    return 0


@kernel(inline=True)
def _level(sim: int, place: int, side: int, px: int, qty: int, ts: int, mark: int) -> None:
    """Set a level at the exchange; own orders that it meets fill, those at its price note the change."""
    p = _place_at(place)
    sign = 1 if side == _BID else -1
    book, key = (p.bids if side == _BID else p.asks), sign * px
    if p.n_buys + p.n_sells > 0:
        against = _ASK if side == _BID else _BID
        if qty > 0 and p.live != 0 and _count(place, against) > 0 and load(_list(place, against)) >= -key:
            _met(sim, place, against, -key, qty - key_qty(book, key), ts)
        if _count(place, side) > 0 and load(_list(place, side) + 16 * (_count(place, side) - 1)) <= key:
            if mark == 0:
                _note_change(sim, place, side, key, key_qty(book, key))
            elif mark > 0:
                _shift(sim, place, side, key, key_qty(book, key) - qty, mark)
    set_key(book, key, qty)


@kernel()
def _quote(sim: int, place: int, side: int, px: int, qty: int, ts: int) -> int:
    """Take a side's touch that is newer than the book: what was better is gone."""
    p = _place_at(place)
    sign = 1 if side == _BID else -1
    book = p.bids if side == _BID else p.asks
    while has_best(book) and sign * best_px(book, sign) > sign * px:
        _level(sim, place, side, best_px(book, sign), 0, ts, 0)
    _level(sim, place, side, px, qty, ts, 0)
    return 0


@kernel(inline=True)
def _happen(sim: int, row: int, ts: int, mark: int) -> None:
    """Let a row of the tape happen at the exchange."""
    where = load(row + 24)
    instrument, flags = where & 0xFFFFFFFF, (where >> 32) & 0xFFFF
    if instrument >= _sim_at(sim).n_instruments:
        return
    kind = (load(row) >> 48) & 0xFF
    place = _place(sim, instrument)
    p = _place_at(place)
    side = flags & 3
    if kind == _LEVEL:
        p.book_seq = load(row + 48)
        _level(sim, place, side, load(row + 32), load(row + 40), ts, mark)
    elif kind == _TRADE:
        against = 3 - side
        if (side == _BID or side == _ASK) and _count(place, against) > 0:
            px = load(row + 32)
            _traded(sim, place, against, px if against == _BID else -px, load(row + 40), ts, mark)
    elif kind == _QUOTE:
        if load(row + 48) > p.book_seq and p.live != 0:
            _quote(sim, place, side, load(row + 32), load(row + 40), ts)
    elif kind == _CLEAR:
        clear_side(p.bids)
        clear_side(p.asks)
        p.snapped |= 1
    elif kind == _BOOK_STATE:
        p.live = 1 if (where >> 48) & 0xFFFF == _LIVE else 0
    if flags & _LAST != 0 and (p.dirty != 0 or p.snapped != 0):
        _share_cancels(sim, place)


# --- requests


@kernel()
def _objection(sim: int, row: int, kind: int, is_market: int, ord_type: int) -> int:
    """Return why a new order or replacement cannot be taken, 0 if it can; nothing has changed then."""
    s = _sim_at(sim)
    where = load(row + 24)
    instrument, flags, tif = where & 0xFFFFFFFF, (where >> 32) & 0xFFFF, (where >> 48) & 0xFFFF
    side, px, qty, cl_ord_id = flags & 3, load(row + 32), load(row + 40), load(row + 48)
    if instrument >= s.n_instruments:
        return _BAD_SYMBOL
    if side != _BID and side != _ASK:
        return _BAD_SIDE
    if ord_type != _MARKET and ord_type != _LIMIT:
        return _BAD_TYPE
    if tif != _DAY and tif != _GTC and tif != _IOC and tif != _FOK:
        return _BAD_TIF
    if cl_ord_id <= 0:
        return _BAD_ID
    if _find(sim, cl_ord_id) >= 0:
        return _DUPLICATE
    place = _place(sim, instrument)
    p = _place_at(place)
    if qty < max(p.min_qty, 1) or qty > min(p.max_qty, _MAX_UNITS):
        return _LOT_SIZE
    if kind == _SUBMIT and p.n_buys + p.n_sells >= MAX_OPEN_ORDERS:
        return _MANY
    if is_market == 0:
        if px < max(p.min_px, 1) or px > p.max_px:
            return _PRICE
        if has_best(p.bids) and has_best(p.asks):
            value = (best_px(p.bids, 1) + best_px(p.asks, -1)) // 2
            if value > 0 and (px < value // _BAND or px > value * _BAND):
                return _PERCENT
        if px * qty < p.min_notional:
            return _NOTIONAL
    if kind == _REPLACE:
        old = _find(sim, load(row + 56))
        if old < 0 or _own_at(_own(sim, old)).instrument != instrument:
            return _UNKNOWN
        if _own_at(_own(sim, old)).side != side:
            return _BAD_SIDE
    if p.live == 0:
        return _NOT_LIVE
    if flags & _POST_ONLY != 0:
        other = p.asks if side == _BID else p.bids
        key = -px if side == _BID else px
        if has_best(other) and best_px(other, -1 if side == _BID else 1) * (-1 if side == _BID else 1) >= key:
            return _WOULD_MATCH
        if _count(place, 3 - side) > 0 and load(_list(place, 3 - side)) >= key:
            return _WOULD_MATCH
    return 0


@kernel(inline=True)
def _worse_px(sim: int, side: int, px: int, limit: int, qty: int) -> int:
    """Return what a taker pays at a level of `px`, with the temporary impact of `qty` lots, never beyond `limit`."""
    s = _sim_at(sim)
    if s.sqrt_ticks <= 0.0:
        return px
    more = int(s.sqrt_ticks * math.sqrt(qty / s.per_lots))
    return min(px + more, max(limit, px)) if side == _BID else max(px - more, min(limit, px))


@kernel()
def _arrive(sim: int, place: int, slot: int, limit: int, tif: int, ts: int) -> int:
    """Trade a new order with the displayed lots that it reaches; what is left rests or expires."""
    s, o, p = _sim_at(sim), _own_at(_own(sim, slot)), _place_at(place)
    side, whole = o.side, o.qty
    book, sign = (p.asks, -1) if side == _BID else (p.bids, 1)
    key = sign * limit  # levels of the other side at this key or better are reached
    if tif == _FOK:
        reached = 0
        k = 0
        while reached < whole:
            px = level_px(book, sign, k)
            qty = level_qty(book, k)
            if qty <= 0 or sign * px < key:
                break
            reached += qty
            k += 1
        if reached < whole:
            _end(sim, place, slot, _EXPIRED, _OVER, ts)
            return 0
    if (has_best(book) and sign * best_px(book, sign) >= key) or _count(place, 3 - side) > 0:
        others = _list(place, 3 - side)
        while _count(place, 3 - side) > 0 and load(others) >= key:
            _end(sim, place, load(others + 8), _EXPIRED, _OVER, ts)
        k = 0
        left = whole
        while left > 0:
            px = level_px(book, sign, k)
            qty = level_qty(book, k)
            if qty <= 0 or sign * px < key:
                break
            traded = min(qty, left)
            left -= traded
            _fill(sim, place, slot, _worse_px(sim, side, px, limit, whole), traded, ts, 0)
            if s.consume != 0:
                set_key(book, sign * px, qty - traded)
            else:
                k += 1
        if left == 0:
            return 0
    if tif == _IOC or tif == _FOK:
        _end(sim, place, slot, _EXPIRED, _OVER, ts)
        return 0
    o.ahead = float(key_qty(p.bids if side == _BID else p.asks, -sign * o.px))
    o.after = s.ei
    _rest(sim, place, slot)
    return 0


@kernel()
def _request(sim: int, row: int, ts: int) -> int:
    """Take a request that arrives at the exchange."""
    s = _sim_at(sim)
    head, where = load(row), load(row + 24)
    kind, span = (head >> 48) & 0xFF, (head >> 56) & 0xFF
    instrument, side = where & 0xFFFFFFFF, (where >> 32) & 3
    cl_ord_id = load(row + 48)
    if kind == _CANCEL:
        slot = _find(sim, cl_ord_id)
        if slot < 0:
            _answer(
                sim, ts, _CANCEL_REJECT, _NONE, instrument, side, 0, 0, cl_ord_id, 0, 0, 0, 0, 0, 0, _UNKNOWN
            )
        else:
            _end(sim, _place(sim, _own_at(_own(sim, slot)).instrument), slot, _CANCELED, _GONE, ts)
        return 0
    ord_type = _word(order_payload_at(row + 64).ord_type) if span > 0 else _LIMIT
    is_market = 1 if ord_type == _MARKET else 0
    reason = _objection(sim, row, kind, is_market, ord_type)
    if reason != 0:
        _answer(sim, ts, _REJECT, _REFUSED, instrument, side, 0, 0, cl_ord_id, 0, 0, 0, 0, 0, 0, reason)
        return 0
    place = _place(sim, instrument)
    if kind == _REPLACE:
        _forget(sim, place, _find(sim, load(row + 56)))
    slot = s.free
    if slot < 0:
        s.error = TOO_MANY_ORDERS
        return 0
    o = _own_at(_own(sim, slot))
    s.free = o.next
    px, qty = load(row + 32), load(row + 40)
    limit = px
    if is_market != 0:
        px = 0
        limit = _NEVER if side == _BID else -_NEVER
    s.requests += 1
    o.cl_ord_id, o.instrument, o.side, o.px, o.qty = cl_ord_id, instrument, side, px, qty
    o.cum, o.venue_order_id, o.traded, o.dirty, o.was, o.ahead = 0, s.requests, 0, 0, 0, 0.0
    bucket = s.slots + 8 * (cl_ord_id & (_SLOTS - 1))
    o.next = load(bucket)
    store(bucket, slot)
    _answer(
        sim, ts, _ACK if kind == _SUBMIT else _REPLACED, _NEW, instrument, side, px, qty, cl_ord_id, 0, 0, qty,
        s.requests, 0, 0, 0,
    )  # fmt: skip
    tif = _IOC if is_market != 0 else (where >> 48) & 0xFFFF
    return _arrive(sim, place, slot, limit, tif, ts)


# --- the run


@kernel(inline=True)
def _row_time(sim: int, k: int) -> int:
    return load(_sim_at(sim).rows + 64 * k + 8)  # type: ignore[no-any-return]  # an intrinsic


@kernel(inline=True)
def _at_exchange(sim: int, k: int) -> int:
    """Return when row `k`, the next there, is at the exchange: as `exchange_times` says."""
    s = _sim_at(sim)
    if s.times != 0:
        return load(s.times + 8 * k)  # type: ignore[no-any-return]  # an intrinsic
    row = s.rows + 64 * k
    received, happened = load(row + 8), load(row + 16)
    if happened == _NAT or happened <= 0:
        happened = received - s.feed_ns
    s.latest = max(s.latest, min(happened, received))
    return s.latest  # type: ignore[no-any-return]


@kernel()
def _work_at_exchange(sim: int) -> int:
    """Let happen at the exchange what no decision still to be made can come before."""
    s = _sim_at(sim)
    e = engine_at(s.arena)
    rows, n = s.rows, s.n
    decision = _NEVER
    if s.decides != 0 and s.li < n:
        decision = _row_time(sim, s.li)
    if e.next_deadline != 0:
        decision = min(decision, max(e.next_deadline, s.last_ns))
    if s.input_n > 0:
        decision = min(decision, s.input_ns)
    while s.error == 0:
        due = load(s.answer_times + 8 * (s.answer_head & (_ANSWERS - 1))) if s.answer_head < s.answer_tail else _NEVER
        bound = min(decision, due)
        if bound < _NEVER:
            bound += s.least_entry
        arrival = _NEVER
        if s.request_head < s.request_tail:
            arrival = load(s.request_times + 8 * (s.request_head & (_REQUESTS - 1)))
        at = _at_exchange(sim, s.ei) if s.ei < n else _NEVER
        if arrival <= at:
            if arrival == _NEVER or arrival > bound:
                return arrival
            k = s.request_head & (_REQUESTS - 1)
            s.request_head += 1
            _request(sim, s.request_rows + 128 * k, arrival)
            continue
        if at >= bound:
            return at
        answers = s.answer_tail
        while s.ei < n and s.answer_tail == answers:
            at = _at_exchange(sim, s.ei)
            if at >= bound or at >= arrival:
                break
            _happen(sim, rows + 64 * s.ei, at, load(s.marks + 8 * s.ei) if s.marks != 0 else 0)
            s.ei += 1
    return _NEVER


@kernel()
def _batch(sim: int, first: int, bound: int) -> int:
    """Return how many rows from `first` on are received before `bound`, none after a silence that needs a clock.

    Where a callback on market data may set a timer, only those of the first row's time: the timer may be next.
    """
    s = _sim_at(sim)
    last = min(s.n, first + _BATCH)
    k = first + 1
    before = _row_time(sim, first)
    while k < last:
        at = _row_time(sim, k)
        if at >= bound or at - before >= s.idle or (s.decides > 1 and at > before):
            break
        before = at
        k += 1
    s.last_ns = max(s.last_ns, before)
    return k - first


@kernel()
def _keep(sim: int) -> int:
    """Take what the engine wrote: own rows to the host's memory, requests on their way to the exchange."""
    s, h = _sim_at(sim), host_at(_sim_at(sim).host)
    n = h.out_n
    s.seq += n
    if n == 0:
        return 0
    if s.keep == 0 and s.batching != 0 and h.i - s.called == n:  # market rows, and nothing came of them
        s.called = h.i
        h.out_n = 0
        return 0
    s.called = h.i
    k = 0
    while k < n:
        row = h.out + 64 * k
        head = load(row)
        kind, size = (head >> 48) & 0xFF, 1 + ((head >> 56) & 0xFF)
        if s.keep != 0 or not (
            kind == _LEVEL or kind == _TRADE or kind == _QUOTE or kind == _CLEAR or kind == _BOOK_STATE
        ):
            copy_bytes(s.out + 64 * s.out_n, row, 64 * size)
            s.out_n += size
        if kind == _SUBMIT or kind == _CANCEL or kind == _REPLACE:
            if s.request_tail - s.request_head >= _REQUESTS:
                s.error = TOO_MANY_REQUESTS
                break
            if s.request_head == s.request_tail:
                s.request_head = 0
                s.request_tail = 0
            at = load(row + 8)
            arrival = max(at + _sample(sim, at, 0), s.last_arrival)
            s.last_arrival = arrival
            slot = s.request_tail & (_REQUESTS - 1)
            s.request_tail += 1
            store(s.request_times + 8 * slot, arrival)
            copy_bytes(s.request_rows + 128 * slot, row, 64 * min(size, 2))
        k += size
    h.out_n = 0
    return 0


@kernel(inline=True)
def _give(sim: int, rows: int, n: int) -> None:
    """Hand rows to the engine; `_engine` works on them."""
    s = _sim_at(sim)
    h = host_at(s.host)
    h.rows, h.i, h.n, h.max_rows = rows, 0, n, n + 1
    h.out, h.out_n, h.out_cap, h.seq = s.scratch, 0, _ROOM, s.seq
    s.called = 0
    s.batching = 0
    s.phase = 1


@kernel()
def _engine(sim: int) -> int:
    """Run the engine on what it was given; return DONE, ROOM, WAKE, FAULT or ERROR."""
    s = _sim_at(sim)
    h = host_at(s.host)
    while True:
        if s.out_cap - s.out_n < _ROOM:
            return ROOM
        why = _call1(s.fn_run, s.host)
        if why == loop.WAKE:
            return WAKE
        if why == loop.FAULT:
            return FAULT
        _keep(sim)
        h.seq = s.seq
        if s.error != 0:
            return ERROR
        if why != loop.FULL:
            s.phase = 0
            if h.i != h.n:
                s.error = BAD_ROW
                return ERROR
            return DONE


@kernel("int64(int64)")
def run(sim: int) -> int:
    """Run a simulation until there is a reason to stop; return DONE, ROOM, WAKE, FAULT or ERROR.

    Parameters
    ----------
    sim : int64
        Address of a `SIM`. To go on after ROOM, WAKE or FAULT call it again.
    """
    s = _sim_at(sim)
    e = engine_at(s.arena)
    while True:
        if s.phase != 0:
            why = _engine(sim)
            if why != DONE:
                return why
        if s.error != 0:
            return ERROR
        ahead = _work_at_exchange(sim)
        if s.error != 0:
            return ERROR
        received = _row_time(sim, s.li) if s.li < s.n else _NEVER
        due = load(s.answer_times + 8 * (s.answer_head & (_ANSWERS - 1))) if s.answer_head < s.answer_tail else _NEVER
        deadline = max(e.next_deadline, s.last_ns) if e.next_deadline != 0 else _NEVER
        given = s.input_ns if s.input_n > 0 else _NEVER
        first = min(min(received, due), min(deadline, given))
        if s.input_n == 0 and (s.li >= s.pause or s.li >= s.n):
            under_way = due < _NEVER or s.request_head < s.request_tail
            if s.draining == 0 or not under_way:
                return DONE
        silence = s.last_ns + s.idle if s.started != 0 else _NEVER
        if due == first and due <= silence:
            k = s.answer_head & (_ANSWERS - 1)
            together = 1  # answers of one time, side by side in the ring
            most = min(min(s.answer_tail - s.answer_head, _ANSWERS - k), _MOST_TOGETHER)
            while together < most and load(s.answer_times + 8 * (k + together)) == due:
                together += 1
            s.answer_head += together
            s.last_ns = due
            _give(sim, s.answer_rows + 128 * k, 2 * together)
        elif given == first and given <= silence:
            s.last_ns = max(s.last_ns, given)
            n = s.input_n
            s.input_n = 0
            _give(sim, s.input, n)
        elif deadline == first and deadline <= silence:
            row = row_at(s.spare)
            row.kind = _TIMER
            row.ts_recv, row.px, row.qty = deadline, e.next_deadline, 0
            row.a = loop.due_timer(s.arena)
            s.last_ns = deadline
            _give(sim, s.spare, 1)
        elif silence <= first:
            row = row_at(s.spare)
            row.kind = _CLOCK
            row.ts_recv, row.px, row.qty, row.a = silence, 0, 0, 0
            s.last_ns = silence
            _give(sim, s.spare, 1)
        else:
            known = min(due, min(deadline, given))
            if s.decides != 0:
                ahead = min(ahead, received + s.least_entry)
            if ahead < _NEVER:
                known = min(known, ahead + s.least_response)
            n = _batch(sim, s.li, known)
            _give(sim, s.rows + 64 * s.li, n)
            s.batching = 1
            s.li += n


_run = entry(run)


class RecordedMarket:
    """A session on a recorded market under virtual time: a tape, an engine, and the exchange between them.

    Parameters
    ----------
    engine : Engine
        Fresh, with the strategy.
    rows : array of ROW
        Contiguous market rows (`MARKET_KINDS`) by ``ts_recv``, ascending; kept, not copied.
    sink : Sink
        Where the rows go.
    latency, queue, fees, impact
        See `hftlab.sim.models`.
    alone : bool
        Whether each own order is judged as if it were the only one.
    keep : bool
        Whether the market's rows go to the sink too; without them `hftlab.backtest.runner.merged` puts both together.
    times : array of int64, optional
        When each row is at the exchange; as `exchange_times` says if absent.
    marks : array of int64, optional
        Whose place in the queue each row changes, of a market by order; see `hftlab.sim.by_order`.

    Attributes
    ----------
    at : int
        Rows received so far.

    Raises
    ------
    ConfigError
        If fees cannot be charged exactly in 64 bits.
    """

    def __init__(
        self,
        engine: Engine,
        rows: RowArray,
        sink: Sink,
        *,
        latency: Latency,
        queue: Queue,
        fees: Fees = BASE_FEES,
        impact: Impact | None = None,
        alone: bool = False,
        keep: bool = True,
        times: npt.NDArray[np.int64] | None = None,
        marks: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.engine, self.rows, self._sink = engine, rows, sink
        self._told = 0
        self._kept: list[Any] = [times, marks, latency]  # whatever the kernel knows by its address only
        self._sim = np.zeros(1, SIM)
        self._at = address_of(self._sim)
        s = self._sim[0]
        h = engine.host[0]
        s["host"], s["arena"], s["fn_run"] = h["host"], h["arena"], h["fn_run"]
        s["rows"], s["n"], s["times"] = address_of(rows), len(rows), 0 if times is None else address_of(times)
        s["feed_ns"], s["latest"] = latency.feed_ns, -_NEVER
        s["marks"] = 0 if marks is None else address_of(marks)
        s["pause"], s["idle"], s["keep"], s["seq"] = len(rows), CLOCK_NS, keep, sink.seq
        self._own_row = new_rows(1)  # a timer or an idle clock
        s["scratch"], s["spare"] = self._words(8 * _ROOM), address_of(self._own_row)
        self._given = new_rows(1 + MAX_SPAN)
        s["input"] = address_of(self._given)
        s["request_rows"], s["request_times"] = self._words(16 * _REQUESTS), self._words(_REQUESTS)
        s["answer_rows"], s["answer_times"] = self._words(16 * _ANSWERS), self._words(_ANSWERS)
        s["entry"], s["response"] = address_of(latency.entry_ns), address_of(latency.response_ns)
        self._lay_latency(latency)
        s["queue"], s["exponent"], s["alone"] = queue.number, queue.exponent, alone
        impact = impact or Impact(consume=False)
        s["consume"], s["sqrt_ticks"], s["per_lots"] = impact.consume, impact.sqrt_ticks, impact.per_lots
        s["reasons"] = address_of(_REASONS)
        self._lay_places(engine.definitions, fees)
        s["decides"] = self._decides(h["callbacks"])

    def _words(self, n: int) -> int:
        """Return the address of `n` zeroed words that live as long as this."""
        self._kept.append(np.zeros(n, np.int64))
        return address_of(self._kept[-1])

    def _lay_latency(self, latency: Latency) -> None:
        s = self._sim[0]
        s["least_entry"], s["least_response"] = latency.entry_ns.min(), latency.response_ns.min()
        n = math.lcm(len(latency.entry_ns), len(latency.response_ns))
        if len(latency.entry_ns) != len(latency.response_ns):
            if n > 1 << 24:
                raise ConfigError(
                    f"latency: {len(latency.entry_ns)} samples to the exchange, {len(latency.response_ns)} back; "
                    "expected as many of both"
                )
            for name, way in (("entry", latency.entry_ns), ("response", latency.response_ns)):
                self._kept.append(np.ascontiguousarray(np.tile(way, n // len(way))))
                s[name] = address_of(self._kept[-1])
        s["n_latency"], s["by_time"], s["at_ns"] = n, len(latency.at_ns) > 0, address_of(latency.at_ns)

    def _lay_places(self, definitions: Definitions, fees: Fees) -> None:
        s, instruments = self._sim[0], definitions.instruments
        n = len(instruments)
        own = np.zeros(n * _PLACE_BYTES + _SLOTS * _OWN_BYTES, np.uint8)
        self._kept.append(own)
        s["n_instruments"], s["orders"] = n, address_of(own) + n * _PLACE_BYTES
        slots = own[n * _PLACE_BYTES :].view(OWN)
        slots["next"] = np.arange(1, _SLOTS + 1)
        slots["next"][-1] = -1
        buckets = np.full(_SLOTS, -1, np.int64)
        self._kept.append(buckets)
        s["slots"], s["free"] = address_of(buckets), 0
        size = book_size(n)
        side = side_bytes(*size)
        for instrument, place in zip(instruments, own[: n * _PLACE_BYTES].view(PLACE), strict=True):
            books = np.zeros(2 * side, np.uint8)
            self._kept.append(books)
            for k in range(2):
                lay_side(books[k * side : (k + 1) * side], *size)
            place["bids"], place["asks"], place["live"] = address_of(books), address_of(books) + side, 1
            place["touched"] = self._words(_TOUCHED)
            place["buys"], place["sells"] = self._words(2 * MAX_OPEN_ORDERS + 2), self._words(2 * MAX_OPEN_ORDERS + 2)
            for name in ("min_qty", "max_qty", "min_px", "min_notional"):
                place[name] = getattr(instrument, name)
            place["max_px"] = min(instrument.max_px or _MAX_UNITS, _MAX_UNITS)
            place["fee_asset"] = definitions.asset(instrument.quote)
            self._lay_fees(place, fees, notional_unit(instrument))

    def _lay_fees(self, place: Any, fees: Fees, unit: Any) -> None:
        rates = [(fees.maker_e8, fees.taker_e8), *((maker, taker) for _, maker, taker in fees.tiers)]
        d = math.lcm(*((rate * unit).denominator for pair in rates for rate in pair))
        table = np.array([[int(rate * unit * d) for rate in pair] for pair in rates], object)
        if d * max(1, int(abs(table).max())) >= _FEE_BITS:
            raise ConfigError(f"fees: {fees} of a tick times a lot of {unit} cannot be charged exactly in 64 bits")
        volumes = np.array([math.ceil(int(volume) / unit) for volume, _, _ in fees.tiers] or [0], np.int64)
        charged = table.astype(np.int64)
        self._kept += [charged, volumes]
        place["fees"], place["fee_d"], place["volumes"], place["n_tiers"] = (
            address_of(charged), d, address_of(volumes), len(rates),
        )  # fmt: skip

    @staticmethod
    def _decides(callbacks: Sequence[int]) -> int:
        """Return 0 if no callback listens to the market, 1 if one does, 2 if one may set a timer that another takes."""
        on_market = any(callbacks[k] != 0 for k in (loop.ON_BOOK, loop.ON_TRADE, loop.ON_GAP))
        return 2 if on_market and callbacks[loop.ON_TIMER] != 0 else int(on_market)

    @property
    def at(self) -> int:
        """Rows received so far."""
        return int(self._sim["li"][0])

    @property
    def now_ns(self) -> int:
        """Time of what was received last, ns."""
        return int(self._sim["last_ns"][0])

    def start(self) -> None:
        """Start the strategy when the first row is received."""
        self._sim["last_ns"] = first = int(self.rows["ts_recv"][0])
        self._sim["started"] = 1
        self._input(control_row("start", first), first)

    def run(self, until: int | None = None) -> None:
        """Receive rows up to `until` (an index), or all.

        Raises
        ------
        HftlabError
            If a bound is passed; see the module.
        """
        self._sim["pause"] = len(self.rows) if until is None else min(until, len(self.rows))
        self._go()

    def stop(self) -> None:
        """Run ``on_stop``, cancel everything and let the answers come in."""
        self._sim["pause"] = self._sim["li"]
        self._sim["n"] = self._sim["li"]
        self._sim["draining"] = 1
        self._input(control_row("stop", self.now_ns), self.now_ns)
        self._go()

    def _input(self, rows: RowArray, at: int) -> None:
        """Give the engine `rows` of its host at `at`, before what is due then; answers of that time come first."""
        self._given[: len(rows)] = rows
        self._sim["input_n"], self._sim["input_ns"] = len(rows), at

    def _go(self) -> None:
        s, engine, sink, at = self._sim[0], self.engine, self._sink, self._at
        while True:
            s["out"], s["out_cap"] = sink.ensure(2 * _ROOM)
            s["out_n"] = 0
            while True:
                why = _run(at)
                if why == WAKE:
                    engine.resume(loop.WAKE)
                elif why == FAULT:
                    engine.resume(loop.FAULT)
                else:
                    break
                if engine.failures != self._told:
                    self._tell_faults()
            if s["out_n"]:
                sink.commit(int(s["out_n"]))
            if why == ERROR:
                raise HftlabError(f"{_ERRORS[int(s['error'])]}, at {self.now_ns} ns")
            if why == DONE:
                return

    def _tell_faults(self) -> None:
        """Have the journal hold the traceback of a callback that failed, right behind what it failed in."""
        if self._sim["input_n"][0] == 0:  # else after the next
            self._input(fault_rows(self.engine.faults[self._told], self.now_ns), self.now_ns)
            self._told += 1
