"""The exchange in process: own orders among a synthetic flow, or beside a recording.

Both classes take order rows (SUBMIT, CANCEL, REPLACE_ORDER) at a venue time the caller names and give back rows: own
REPORTs, each with its payload, and public rows. No clock, no socket: a backtest, a paper session and the venue server
drive the same objects.

`MatchingExchange` is a real market: own orders rest in the same price-time book as the flow's orders, and consume them.
What is wrong with it is the flow (see `hftlab.sim.flow`).

`RecordedExchange` assumes that the recorded market would have gone on unchanged beside our orders:

- An order joins behind all lots displayed at its price. Recorded trades at its price by the other side first use up the
  lots ahead, then fill it, up to the trade's quantity. Trades through its price fill it, best price first.
- Cancels at its level are taken to be behind it, until the level shows fewer lots than are ahead: then so many are.
- New quantity displayed against it, at its price or through it, would have met it, and fills it.
- A marketable order takes the displayed lots at their prices *without consuming them*: the recording cannot be changed.

It is therefore wrong, in our favour, for orders large beside the touch, for strategies that hit the same displayed lots
again and again, and wherever others would have reacted to us; against us where cancels ahead of us were many. The book
is as old as the recorded depth stream (100 ms at Binance). While it is not LIVE, requests that would need it are
rejected; before the first row it is empty and taken to be LIVE.

Rules of both. Own orders never trade with each other: the resting one expires (Binance's EXPIRE_MAKER). A market order
and what is left of IOC and FOK expire. A replacement is a new order with its own quantity, at the back of its queue; a
refused one is a REJECT of the new id and leaves the old order as it was. Ids must be unique among open orders only.
Codes are Binance's: -1013 filter, -1115 time in force, -1116 type, -1117 side, -1121 symbol, -2010 new order, -2011
cancel.

`MatchingExchange` takes whatever an order's payload row can say, by the rules of `hftlab.kernels.rules`: stop and
stop-limit, icebergs, minimum quantity, GTD (alive up to but not at its time). A stop is acknowledged when it comes and
says nothing when it is triggered: its fills, or its expiry, follow under its id. Where several requests and flow events
touch stops, each stop enters before the next event. A waiting stop is replaced by a stop, a resting order by a limit or
market order, anything else is refused. `RecordedExchange` takes plain orders only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import (
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    ROW,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    RowArray,
    Side,
    Tif,
)
from hftlab.kernels.book import set_level_at
from hftlab.kernels.jit import address_of, kernel
from hftlab.kernels.matching import (
    CUM,
    FILLED,
    LAST_ID,
    LEAVES,
    N_FILLS,
    N_LEVELS,
    OWNER,
    PX,
    SIDE,
    Outcome,
    can_fill,
    cancel,
    conceal,
    find_order,
    market_px,
    replace,
    slices_fit,
    submit,
)
from hftlab.sim.flow import NEXT_NS, UNIT, VALUE, FlowParams, Market, make_market, refill, run_flow
from hftlab.sim.models import BASE_FEES, Fees
from hftlab.sim.tape import (
    LAST_PX,
    OUTCOME,
    SEQ,
    STOP_BUY,
    STOP_SELL,
    TOUCH_HIGH,
    TOUCH_LOW,
    TOUCHED,
    write_fills,
    write_level,
    write_prints,
    write_report,
    write_touch,
)

__all__ = ["MatchingExchange", "RecordedExchange"]

MAX_OPEN_ORDERS = 1000
"""Own open orders an exchange holds per instrument; more are rejected."""

DEFAULT_FLOW = FlowParams()
START_NS = 1_767_225_600_000_000_000  # 2026-01-01 00:00 UTC

_OUT_ROWS = 1 << 16
_MAX_UNITS = 2**50  # own price and quantity, so that no sum of a level overflows
_BAND = 5  # own prices lie within value / 5 and value * 5
_BUY, _SELL = int(Side.BUY), int(Side.SELL)
_SIDES = int(Flag.BID | Flag.ASK)
_LEVELS = 1 << 14
_TIFS = (int(Tif.DAY), int(Tif.GTC), int(Tif.IOC), int(Tif.FOK), int(Tif.GTD))
_IOC, _FOK, _GTD = int(Tif.IOC), int(Tif.FOK), int(Tif.GTD)
_MARKET, _LIMIT, _STOP, _STOP_LIMIT = (int(t) for t in OrdType)
_ACK, _REPLACED = int(ExecType.ACK), int(ExecType.REPLACED)
_CANCELED, _EXPIRED = int(ExecType.CANCELED), int(ExecType.EXPIRED)
_FILL = int(ExecType.FILL)
_NEW, _OVER = int(OrdStatus.NEW), int(OrdStatus.EXPIRED)
_GONE = int(OrdStatus.CANCELED)
_TERMINAL = (OrdStatus.FILLED, OrdStatus.CANCELED, OrdStatus.REJECTED, OrdStatus.EXPIRED)
_OUTCOME_EXPIRED, _OUTCOME_RESTING = int(Outcome.EXPIRED), int(Outcome.RESTING)
_OUTCOME_FULL = int(Outcome.FULL)
_REFUSALS = {
    Outcome.WOULD_CROSS: (-2010, b"would match now"),
    Outcome.FULL: (-2010, b"book is full"),
    Outcome.BAD_QTY: (-1013, b"LOT_SIZE"),
    Outcome.UNKNOWN: (-2011, b"unknown order"),
}


@dataclass(slots=True)
class _Own:
    """An open own order."""

    cl_ord_id: int
    instrument: int
    side: int
    px: int
    qty: int
    venue_order_id: int
    order_id: int = 0  # the matching kernel's, 0 while it does not rest
    cum: int = 0
    ahead: int = 0  # recorded lots before it at its price; RecordedExchange only
    expire: int = 0  # GTD's time, else 0

    @property
    def leaves(self) -> int:
        return self.qty - self.cum


@dataclass(slots=True)
class _Request:
    """An order row with its payload read."""

    kind: int
    cl_ord_id: int
    orig: int
    instrument: int
    side: int
    px: int
    qty: int
    tif: int
    post_only: bool
    ord_type: int = int(OrdType.LIMIT)
    stop_px: int = 0
    display_qty: int = 0
    min_qty: int = 0
    expire: int = 0

    @property
    def market(self) -> bool:
        return self.ord_type in (_MARKET, _STOP)

    @property
    def waits(self) -> bool:
        return self.ord_type in (_STOP, _STOP_LIMIT)

    @property
    def plain(self) -> bool:
        return self.ord_type in (_LIMIT, _MARKET) and not (self.display_qty or self.min_qty or self.tif == _GTD)


def _requests(rows: RowArray) -> list[_Request]:
    """Read order rows; raises ValueError on a row that is not one."""
    payload = np.ascontiguousarray(rows).view(ORDER_PAYLOAD)
    found = []
    i = 0
    while i < len(rows):
        row = rows[i]
        kind, span = int(row["kind"]), int(row["span"])
        if kind not in (Kind.SUBMIT, Kind.CANCEL, Kind.REPLACE_ORDER):
            raise ValueError(f"rows[{i}] has kind {kind}; expected SUBMIT, CANCEL or REPLACE_ORDER")
        if i + span >= len(rows):
            raise ValueError(f"rows[{i}] announces {span} payload rows; only {len(rows) - i - 1} follow")
        rest = payload[i + 1] if span else None
        ord_type = _LIMIT if rest is None else int(rest["ord_type"])
        market = ord_type in (_MARKET, _STOP)
        flags = int(row["flags"])
        side = flags & _SIDES
        found.append(
            _Request(
                kind, int(row["a"]), int(row["b"]), int(row["instrument"]), side,
                market_px(side) if market else int(row["px"]), int(row["qty"]),
                _IOC if ord_type == _MARKET else int(row["code"]), bool(flags & Flag.POST_ONLY), ord_type,
            )
        )  # fmt: skip
        if rest is not None:
            request = found[-1]
            request.stop_px, request.display_qty = int(rest["stop_px"]), int(rest["display_qty"])
            request.min_qty, request.expire = int(rest["min_qty"]), int(rest["expire_ts"])
        i += 1 + span
    return found


def _report(
    request: _Own | _Request, exec_type: int, status: int, ts: int, *, cl_ord_id: int = 0, px: int = 0, qty: int = 0,
    exec_id: int = 0, flags: int = 0, cum: int = 0, leaves: int = 0, venue_order_id: int = 0, fee: int = 0,
    fee_asset: int = 0, venue_code: int = 0, text: bytes = b"",
) -> RowArray:  # fmt: skip
    """Return a REPORT row and its payload row."""
    rows = np.zeros(2, ROW)
    row = rows[0]
    row["kind"], row["span"], row["ts_event"], row["instrument"] = Kind.REPORT, 1, ts, request.instrument
    row["flags"], row["code"] = request.side | flags, exec_type | status << 8
    row["px"], row["qty"], row["a"], row["b"] = px, qty, cl_ord_id or request.cl_ord_id, exec_id
    rest = rows.view(REPORT_PAYLOAD)[1]
    rest["kind"], rest["cum_qty"], rest["leaves_qty"], rest["venue_order_id"] = Kind.CONT, cum, leaves, venue_order_id
    rest["fee"], rest["fee_asset"], rest["venue_code"], rest["text"] = fee, fee_asset, venue_code, text
    return rows


def _joined(parts: list[RowArray]) -> RowArray:
    """Rows one after another; as integers, because NumPy repacks a dtype whose fields overlap when it concatenates."""
    return np.concatenate([part.view(np.int64) for part in parts]).view(ROW) if parts else np.zeros(0, ROW)


class _Desk:
    """What both exchanges do with own orders before the model: the table of open ones, filters, fees, ids."""

    def __init__(self, instruments: Sequence[Instrument], fees: Fees, *, plain_only: bool) -> None:
        self._plain_only = plain_only
        if not instruments:
            raise ConfigError("instruments is empty; expected at least one")
        self.instruments = {instrument.id: instrument for instrument in instruments}
        if len(self.instruments) != len(instruments):
            raise ConfigError(f"instrument ids {[i.id for i in instruments]} repeat; expected each once")
        self.fees = fees
        self.open: dict[int, _Own] = {}
        self._orders = 0
        assets: list[str] = []
        for instrument in instruments:
            assets += [a for a in (instrument.base, instrument.quote) if a not in assets]
        self.assets = tuple(assets)

    def next_order_id(self) -> int:
        self._orders += 1
        return self._orders

    def fee(self, instrument: int, px: int, qty: int, *, maker: bool) -> tuple[int, int]:
        """Fee in 1e-8 of the quote asset, and the asset's index."""
        what = self.instruments[instrument]
        return self.fees.charge(what, px, qty, maker=maker), self.assets.index(what.quote)

    def objection(self, request: _Request, value: int) -> tuple[int, bytes] | None:
        """Return code and text if a new order or replacement breaks a filter; `value` is a fair price, ticks, or 0."""
        instrument = self.instruments.get(request.instrument)
        if instrument is None:
            return -1121, b"invalid symbol"
        if request.side not in (_BUY, _SELL):
            return -1117, b"invalid side"
        if request.tif not in _TIFS or (request.tif == _GTD and self._plain_only):
            return -1115, b"invalid tif"
        if not _MARKET <= request.ord_type <= _STOP_LIMIT or (self._plain_only and not request.plain):
            return -1116, b"invalid type"
        if not 0 < request.cl_ord_id < 2**63:
            return -1100, b"bad cl_ord_id"
        if request.cl_ord_id in self.open:
            return -2010, b"duplicate order"
        if not max(instrument.min_qty, 1) <= request.qty <= min(instrument.max_qty, _MAX_UNITS):
            return -1013, b"LOT_SIZE"
        if request.kind == Kind.SUBMIT and self._open_at(request.instrument) >= MAX_OPEN_ORDERS:
            return -1013, b"MAX_NUM_ORDERS"
        objection = None if request.market else self._px_objection(request, request.px, instrument, value)
        if objection is None and request.waits:
            objection = self._px_objection(request, request.stop_px, instrument, value)
        return objection or (None if request.plain else self._special_objection(request))

    @staticmethod
    def _special_objection(request: _Request) -> tuple[int, bytes] | None:
        """What is wrong with quantities and words that only the payload row can say."""
        if not (0 <= request.display_qty <= request.qty and 0 <= request.min_qty <= request.qty):
            return -1013, b"LOT_SIZE"
        if request.display_qty and (request.market or request.tif in (_IOC, _FOK)):
            return -1013, b"ICEBERG_PARTS"
        if request.post_only and (request.waits or request.min_qty):
            return -1116, b"invalid type"
        return None

    def _open_at(self, instrument: int) -> int:
        if len(self.open) < MAX_OPEN_ORDERS:
            return len(self.open)  # an upper bound that is under the limit needs no count
        return sum(own.instrument == instrument for own in self.open.values())

    @staticmethod
    def _px_objection(
        request: _Request, px: int, instrument: Instrument, value: int
    ) -> tuple[int, bytes] | None:
        highest = min(instrument.max_px or _MAX_UNITS, _MAX_UNITS)
        if not max(instrument.min_px, 1) <= px <= highest:
            return -1013, b"PRICE_FILTER"
        if value and not value // _BAND <= px <= value * _BAND:
            return -1013, b"PERCENT_PRICE"
        if px * request.qty < instrument.min_notional:
            return -1013, b"NOTIONAL"
        return None

    def rejected(self, request: _Request, ts: int, code: int, text: bytes) -> RowArray:
        """A REJECT of the request's own id."""
        return _report(request, int(ExecType.REJECT), int(OrdStatus.REJECTED), ts, venue_code=code, text=text)

    def cancel_rejected(self, request: _Request, ts: int) -> RowArray:
        return _report(
            request, int(ExecType.CANCEL_REJECT), int(OrdStatus.NONE), ts, venue_code=-2011, text=b"unknown order"
        )


@kernel()
def _settle(market: Any, side: Any, px: Any, owner: Any, ts: Any, out: Any, payload: Any, n: Any) -> Any:
    """Write what an own request did: fills, expiry, levels, touch; return the next free index."""
    book = market.book
    outcome = market.tape[OUTCOME]
    changed = book.head[N_FILLS] > 0 or outcome == _OUTCOME_RESTING or px != 0
    if changed:
        market.tape[SEQ] += 1
    n = write_fills(book, market.tape, side, owner, ts, out, payload, n)
    if outcome == _OUTCOME_EXPIRED:
        n = write_report(
            market.tape, out, payload, n, ts, _EXPIRED, _OVER, side, 0, 0, owner, 0, book.head[CUM], 0
        )
    if not changed:
        return n
    n = write_prints(book, market.tape, side, ts, out, n)
    if px != 0:
        n = write_level(book, market.tape, side, px, ts, out, n)
    if outcome == _OUTCOME_RESTING:
        rest_px = book.orders[find_order(book, book.head[LAST_ID]), PX]
        if rest_px != px:
            n = write_level(book, market.tape, side, rest_px, ts, out, n)
    n = refill(market, ts, out, n)
    return write_touch(book, market.tape, ts, out, n)


@kernel(inline=True)
def _expire_whole(book: Any, qty: Any) -> Any:
    """Take an order of `qty` lots for one that came and expired, as the matching kernel would tell it."""
    book.head[N_FILLS] = 0
    book.head[LAST_ID] = 0
    book.head[LEAVES] = qty
    book.head[CUM] = 0
    return _OUTCOME_EXPIRED


@kernel()
def _place(
    market: Any, owner: Any, side: Any, px: Any, qty: Any, tif: Any, post_only: Any, display: Any, least: Any,
    exec_type: Any, ts: Any, out: Any, payload: Any,
) -> Any:  # fmt: skip
    """Submit an own order; return the rows written, 0 if it was refused (the outcome is in the tape).

    `exec_type` is what its first report says, 0 for none: a triggered stop has been acknowledged.
    """
    book, tape = market.book, market.tape
    if display > 0 and not slices_fit(book, qty, display):
        tape[OUTCOME] = _OUTCOME_FULL
    elif least > 0 and not can_fill(book, owner, side, px, least):
        tape[OUTCOME] = _expire_whole(book, qty)
    else:
        tape[OUTCOME] = submit(book, owner, side, px, qty, tif, post_only)
    if tape[OUTCOME] < 0:
        return 0
    if display > 0 and tape[OUTCOME] == _OUTCOME_RESTING:
        conceal(book, book.head[LAST_ID], display)
    n = 0
    if exec_type != 0:
        n = write_report(tape, out, payload, 0, ts, exec_type, _NEW, side, px, qty, owner, 0, 0, qty)
    return _settle(market, side, 0, owner, ts, out, payload, n)


@kernel()
def _amend(
    market: Any, order_id: Any, owner: Any, px: Any, qty: Any, tif: Any, post_only: Any, display: Any, least: Any,
    keep: Any, ts: Any, out: Any, payload: Any,
) -> Any:  # fmt: skip
    """Replace an own order; return the rows written, 0 if it was refused."""
    book = market.book
    slot = find_order(book, order_id)
    side = book.orders[slot, SIDE]
    old_px = book.orders[slot, PX]
    if display > 0 and not slices_fit(book, qty, display):
        market.tape[OUTCOME] = _OUTCOME_FULL
    elif least > 0 and not can_fill(book, owner, side, px, least):
        cancel(book, order_id)
        market.tape[OUTCOME] = _expire_whole(book, qty)
    else:
        # an iceberg is made of an order that came to rest anew, at the back: keeping the place is for plain orders
        market.tape[OUTCOME] = replace(book, order_id, owner, px, qty, tif, post_only, keep and display == 0)
    if market.tape[OUTCOME] < 0:
        return 0
    if display > 0 and market.tape[OUTCOME] == _OUTCOME_RESTING:
        conceal(book, book.head[LAST_ID], display)
    n = write_report(market.tape, out, payload, 0, ts, _REPLACED, _NEW, side, px, qty, owner, 0, 0, qty)
    return _settle(market, side, old_px, owner, ts, out, payload, n)


@kernel()
def _withdraw(market: Any, order_id: Any, exec_type: Any, status: Any, ts: Any, out: Any, payload: Any) -> Any:
    """Cancel or expire an own order that rests; return the rows written."""
    book = market.book
    slot = find_order(book, order_id)
    owner, side = book.orders[slot, OWNER], book.orders[slot, SIDE]
    px, cum = book.orders[slot, PX], book.orders[slot, FILLED]
    cancel(book, order_id)
    market.tape[SEQ] += 1
    n = write_report(market.tape, out, payload, 0, ts, exec_type, status, side, 0, 0, owner, 0, cum, 0)
    n = write_level(book, market.tape, side, px, ts, out, n)
    n = refill(market, ts, out, n)
    return write_touch(book, market.tape, ts, out, n)


class MatchingExchange:
    """A price-time exchange whose other participants are a seeded synthetic flow.

    Parameters
    ----------
    instruments : sequence of Instrument
        Each has its own book and its own flow, derived from `seed` and its id.
    seed : int
    fees : Fees
    start_ns : int
        Venue time at the start, ns UTC.
    flow : FlowParams or mapping of instrument id to FlowParams
        One for all, or one for each instrument.
    replace_keeps_priority : bool
        Whether a replace at the same price for no more quantity keeps its place in the queue. Binance's does not.

    Raises
    ------
    ConfigError
        If instruments are missing, repeat, or have no flow parameters.

    Examples
    --------
    >>> from decimal import Decimal
    >>> btc = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")
    >>> exchange = MatchingExchange([btc], seed=1)
    >>> rows = exchange.advance(exchange.now_ns + 1_000_000_000)
    >>> bool(len(rows) > 200), exchange.snapshot(0)[0] == rows["a"][rows["kind"] == Kind.LEVEL][-1]
    (True, np.True_)
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        seed: int = 1,
        fees: Fees = BASE_FEES,
        start_ns: int = START_NS,
        flow: FlowParams | Mapping[int, FlowParams] = DEFAULT_FLOW,
        replace_keeps_priority: bool = False,
    ) -> None:
        self._desk = _Desk(instruments, fees, plain_only=False)
        self._stops: dict[int, list[_Request]] = {instrument.id: [] for instrument in instruments}
        self._dated: list[_Own] = []  # open GTD orders, and some that are over
        self.now_ns = start_ns
        self._keep = replace_keeps_priority
        self._markets: dict[int, Market] = {}
        for instrument in instruments:
            params = flow if isinstance(flow, FlowParams) else flow.get(instrument.id)
            if params is None:
                raise ConfigError(f"flow has no parameters for instrument {instrument.id} ({instrument.symbol})")
            self._markets[instrument.id] = make_market(instrument.id, params, seed, start_ns)
        self._out = np.zeros(_OUT_ROWS, ROW)
        self._payload = self._out.view(REPORT_PAYLOAD)

    @property
    def assets(self) -> tuple[str, ...]:
        """Asset codes; a report's ``fee_asset`` is an index into it. Base, then quote, in order of the instruments."""
        return self._desk.assets

    def next_event_ns(self) -> int:
        """Return the venue time of the next flow event, or of an own order's expiry, ns."""
        following = min(int(market.flow[NEXT_NS]) for market in self._markets.values())
        return min([following, *(own.expire for own in self._dated if self._desk.open.get(own.cl_ord_id) is own)])

    def advance(self, until_ns: int) -> RowArray:
        """Run the flow up to and including `until_ns`; return its rows in time order.

        Public rows (TRADE, LEVEL, QUOTE; LAST ends a book event) and own REPORTs. How time is sliced does not change
        them. A second is some 1,300 rows at the default flow: advance in steps, a day at once would not fit in memory.

        Raises
        ------
        ValueError
            If `until_ns` lies before `now_ns`.
        """
        if until_ns < self.now_ns:
            raise ValueError(f"until_ns is {until_ns}; expected now_ns={self.now_ns} or later")
        parts: list[RowArray] = []
        for instrument, market in self._markets.items():
            for own in self._due(instrument, until_ns):
                parts += self._run(instrument, market, own.expire - 1)
                if self._desk.open.get(own.cl_ord_id) is own:
                    parts.append(self._end(own, _EXPIRED, _OVER, own.expire))
            parts += self._run(instrument, market, until_ns)
        self.now_ns = until_ns
        rows = _joined(parts)
        return rows if len(self._markets) == 1 else _by_time(rows)

    def _run(self, instrument: int, market: Market, until_ns: int) -> list[RowArray]:
        """Run one instrument's flow, and the stops it touches."""
        parts: list[RowArray] = []
        while market.flow[NEXT_NS] <= until_ns:
            rows = self._finished(run_flow(market, until_ns, self._out, self._payload))
            parts.append(rows)
            if market.tape[TOUCHED]:
                parts += self._enter_stops(instrument, market, int(rows["ts_event"][-1]))
        return parts

    def _due(self, instrument: int, until_ns: int) -> list[_Own]:
        """Orders of `instrument` that expire by `until_ns`, by time, then by age."""
        if not self._dated:
            return []
        self._dated = [own for own in self._dated if self._desk.open.get(own.cl_ord_id) is own]
        due = [own for own in self._dated if own.instrument == instrument and own.expire <= until_ns]
        return sorted(due, key=lambda own: (own.expire, own.venue_order_id))

    def _enter_stops(self, instrument: int, market: Market, ts: int) -> list[RowArray]:
        """Enter the stops that trades have touched, one at a time, with those that their own trades touch."""
        parts: list[RowArray] = []
        waiting = self._stops[instrument]
        while True:
            high, low = int(market.tape[TOUCH_HIGH]), int(market.tape[TOUCH_LOW])
            buys = [r for r in waiting if r.side == _BUY and r.stop_px <= high]
            sells = [r for r in waiting if r.side == _SELL and r.stop_px >= low]
            if not buys and not sells:
                market.tape[TOUCHED] = 0
                return parts
            request = min(buys, key=_stop_px) if buys else max(sells, key=_stop_px)
            self._forget(request)
            parts.append(self._enter(request, market, ts))

    def _enter(self, request: _Request, market: Market, ts: int) -> RowArray:
        """The rows of a stop that has been triggered."""
        own = self._desk.open[request.cl_ord_id]
        tif = _IOC if request.market and request.tif != _FOK else request.tif
        n = self._placed(request, market, tif, 0, ts)
        if n == 0:
            return self._end(own, _EXPIRED, _OVER, ts)
        own.order_id = int(market.book.head[LAST_ID])
        return self._finished(n)

    def _placed(self, request: _Request, market: Market, tif: int, exec_type: int, ts: int) -> int:
        return int(
            _place(
                market, request.cl_ord_id, request.side, request.px, request.qty, tif, request.post_only,
                request.display_qty, request.min_qty, exec_type, ts, self._out, self._payload,
            )
        )  # fmt: skip

    def _forget(self, request: _Request) -> None:
        """Take a stop off those that wait."""
        waiting = self._stops[request.instrument]
        waiting.remove(request)
        self._show_stops(request.instrument)

    def _show_stops(self, instrument: int) -> None:
        """Tell the kernels which stops a trade would touch first."""
        tape, waiting = self._markets[instrument].tape, self._stops[instrument]
        tape[STOP_BUY] = min((r.stop_px for r in waiting if r.side == _BUY), default=0)
        tape[STOP_SELL] = max((r.stop_px for r in waiting if r.side == _SELL), default=0)

    def _waiting(self, own: _Own) -> _Request | None:
        return next((r for r in self._stops[own.instrument] if r.cl_ord_id == own.cl_ord_id), None)

    def _end(self, own: _Own, exec_type: int, status: int, ts: int) -> RowArray:
        """Cancel or expire an own order, resting or waiting; its rows."""
        if own.order_id:
            market = self._markets[own.instrument]
            return self._finished(
                _withdraw(market, own.order_id, exec_type, status, ts, self._out, self._payload)
            )
        stop = self._waiting(own)
        if stop is not None:
            self._forget(stop)
        del self._desk.open[own.cl_ord_id]
        return _report(own, exec_type, status, ts, cum=own.cum, venue_order_id=own.venue_order_id)

    def send(self, rows: RowArray, now_ns: int) -> RowArray:
        """Take own requests that arrive at `now_ns`; return the reports and public rows they cause.

        Rows of the flow between the last call and `now_ns`, if any, come first.

        Raises
        ------
        ValueError
            If `now_ns` lies before the exchange's, or a row is not an order row; nothing is sent then.
        """
        requests = _requests(rows)
        before = self.advance(now_ns)
        parts = [before] if len(before) else []
        for request in requests:
            parts.append(self._handle(request))
            market = self._markets.get(request.instrument)
            if market is not None and market.tape[TOUCHED]:
                parts += self._enter_stops(request.instrument, market, now_ns)
        return _joined(parts)

    def snapshot(self, instrument: int, limit: int = 5000) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the venue sequence, and bids and asks, best first, as (px_ticks, qty_lots)."""
        market = self._markets[instrument]
        return int(market.tape[SEQ]), self._side(market, _BUY, limit), self._side(market, _SELL, limit)

    @staticmethod
    def _side(market: Market, side: int, limit: int) -> list[tuple[int, int]]:
        n = int(market.book.head[N_LEVELS + side - 1])
        levels = market.book.levels[side - 1, :n][::-1][:limit]
        sign = 1 if side == _BUY else -1
        return [(sign * px, qty) for px, qty in levels[:, :2].tolist()]

    def _handle(self, request: _Request) -> RowArray:
        if request.kind == Kind.CANCEL:
            own = self._desk.open.get(request.cl_ord_id)
            if own is None:
                return self._desk.cancel_rejected(request, self.now_ns)
            return self._end(own, _CANCELED, _GONE, self.now_ns)
        market = self._markets.get(request.instrument)
        value = 0 if market is None else int(market.flow[VALUE]) // UNIT
        objection = self._desk.objection(request, value)
        if objection is None and market is not None:
            objection = self._venue_objection(request, market)
        if objection is not None or market is None:
            return self._desk.rejected(request, self.now_ns, *(objection or (-1121, b"invalid symbol")))
        return self._submit(request, market) if request.kind == Kind.SUBMIT else self._replace(request, market)

    def _venue_objection(self, request: _Request, market: Market) -> tuple[int, bytes] | None:
        """What the clock and the last trade object to."""
        if request.tif == _GTD and request.expire <= self.now_ns:
            return -1115, b"invalid tif"
        last = int(market.tape[LAST_PX])
        touched = last >= request.stop_px if request.side == _BUY else last <= request.stop_px
        return (-2010, b"would trigger") if request.waits and last and touched else None

    def _submit(self, request: _Request, market: Market) -> RowArray:
        if request.waits:
            return self._park(request, _ACK)
        return self._entered(request, market, self._placed(request, market, request.tif, _ACK, self.now_ns))

    def _park(self, request: _Request, exec_type: int) -> RowArray:
        """Let a stop wait."""
        own = self._open(request, 0)
        self._stops[request.instrument].append(request)
        self._show_stops(request.instrument)
        return _report(
            own, exec_type, _NEW, self.now_ns, px=0 if request.market else own.px, qty=own.qty, leaves=own.qty,
            venue_order_id=own.venue_order_id,
        )  # fmt: skip

    def _open(self, request: _Request, order_id: int) -> _Own:
        own = _Own(
            request.cl_ord_id, request.instrument, request.side, request.px, request.qty,
            self._desk.next_order_id(), order_id, expire=request.expire if request.tif == _GTD else 0,
        )  # fmt: skip
        self._desk.open[own.cl_ord_id] = own
        if own.expire:
            self._dated.append(own)
        return own

    def _replace(self, request: _Request, market: Market) -> RowArray:
        old = self._desk.open.get(request.orig)
        if old is None or old.instrument != request.instrument:
            return self._desk.rejected(request, self.now_ns, -2011, b"unknown order")
        if old.side != request.side:
            return self._desk.rejected(request, self.now_ns, -1117, b"invalid side")
        stop = self._waiting(old)
        if (stop is not None) != request.waits:
            return self._desk.rejected(request, self.now_ns, -1116, b"invalid type")
        if stop is not None:
            self._forget(stop)
            del self._desk.open[old.cl_ord_id]
            return self._park(request, _REPLACED)
        n = _amend(
            market, old.order_id, request.cl_ord_id, request.px, request.qty, request.tif, request.post_only,
            request.display_qty, request.min_qty, self._keep, self.now_ns, self._out, self._payload,
        )  # fmt: skip
        if n > 0:
            del self._desk.open[request.orig]
        return self._entered(request, market, n)

    def _entered(self, request: _Request, market: Market, n: int) -> RowArray:
        """The rows of a request the kernel has seen; a refusal becomes a REJECT."""
        if n == 0:
            return self._desk.rejected(request, self.now_ns, *_REFUSALS[Outcome(int(market.tape[OUTCOME]))])
        order_id = int(market.book.head[LAST_ID]) if market.tape[OUTCOME] == Outcome.RESTING else 0
        self._open(request, order_id)
        return self._finished(n)

    def _finished(self, n: int) -> RowArray:
        """Copy `n` rows out, with venue order ids and exact fees in the payloads; forget orders that are done."""
        rows = self._out[:n].copy()
        payload = rows.view(REPORT_PAYLOAD)
        for i in np.flatnonzero(rows["kind"] == Kind.REPORT).tolist():
            row, rest = rows[i], payload[i + 1]
            own = self._desk.open[int(row["a"])]
            exec_type, status = int(row["code"]) & 0xFF, int(row["code"]) >> 8
            rest["venue_order_id"] = own.venue_order_id
            if exec_type == _FILL:
                rest["fee"], rest["fee_asset"] = self._desk.fee(
                    own.instrument, int(row["px"]), int(row["qty"]), maker=bool(row["flags"] & Flag.MAKER)
                )
            elif exec_type in (_ACK, _REPLACED) and abs(int(row["px"])) == market_px(_BUY):
                row["px"] = 0
            if status in _TERMINAL:
                del self._desk.open[own.cl_ord_id]
        return rows


def _stop_px(request: _Request) -> int:
    return request.stop_px


def _by_time(rows: RowArray) -> RowArray:
    """Merge the markets' rows by time, then by the order of the instruments; payload rows stay with their row."""
    heads = np.maximum.accumulate(np.where(rows["kind"] == Kind.CONT, 0, np.arange(len(rows))))
    return rows[np.argsort(rows["ts_event"][heads], kind="stable")]


@dataclass(slots=True)
class _Recorded:
    """The recorded book of one instrument, and own orders beside it in time order at each price."""

    levels: tuple[Any, Any]
    n: list[int] = field(default_factory=lambda: [0, 0])
    live: bool = True
    sequence: int = 0
    trades: int = 0
    queues: dict[tuple[int, int], list[_Own]] = field(default_factory=dict)
    shown: dict[tuple[int, int], int] = field(default_factory=dict)  # own prices whose level changed in this event

    def set(self, side: int, px: int, qty: int) -> None:
        array = self.levels[side - 1]
        self.n[side - 1] = set_level_at(
            address_of(array), len(array), self.n[side - 1], 1 if side == _BUY else -1, px, qty
        )

    def best_first(self, side: int, limit: int) -> list[tuple[int, int]]:
        n = self.n[side - 1]
        return [(px, qty) for px, qty in self.levels[side - 1][max(n - limit, 0) : n][::-1].tolist()]

    def qty_at(self, side: int, px: int) -> int:
        n = self.n[side - 1]
        sign = 1 if side == _BUY else -1
        keys = sign * self.levels[side - 1][:n, 0]
        i = int(np.searchsorted(keys, sign * px))
        return int(self.levels[side - 1][i, 1]) if i < n and keys[i] == sign * px else 0

    def best(self, side: int) -> int | None:
        n = self.n[side - 1]
        return int(self.levels[side - 1][n - 1, 0]) if n else None

    def better(self, side: int, px: int) -> list[int]:
        """Prices of the levels of `side` that are better than `px`."""
        n, array = self.n[side - 1], self.levels[side - 1]
        first = n
        while first > 0 and (array[first - 1, 0] > px if side == _BUY else array[first - 1, 0] < px):
            first -= 1
        return array[first:n, 0].tolist()  # type: ignore[no-any-return]

    def own_through(self, side: int, px: int) -> list[_Own]:
        """Own orders of `side` priced at `px` or better, best price first, oldest first."""
        sign = 1 if side == _BUY else -1
        prices = [p for s, p in self.queues if s == side and sign * (p - px) >= 0]
        return [own for p in sorted(prices, key=lambda p: -sign * p) for own in self.queues[side, p]]


class RecordedExchange:
    """Own orders beside a recorded market, which goes on as it was recorded.

    Parameters
    ----------
    instruments : sequence of Instrument
    fees : Fees

    Raises
    ------
    ConfigError
        If instruments are missing or repeat.
    """

    def __init__(self, instruments: Sequence[Instrument], *, fees: Fees = BASE_FEES) -> None:
        self._desk = _Desk(instruments, fees, plain_only=True)
        self._recorded = {
            i.id: _Recorded((np.zeros((_LEVELS, 2), np.int64), np.zeros((_LEVELS, 2), np.int64))) for i in instruments
        }
        self._reports: list[RowArray] = []

    @property
    def assets(self) -> tuple[str, ...]:
        """Asset codes; a report's ``fee_asset`` is an index into it. Base, then quote, in order of the instruments."""
        return self._desk.assets

    def on_market(self, rows: RowArray) -> RowArray:
        """Take recorded rows (LEVEL, QUOTE, TRADE, CLEAR, BOOK_STATE; others pass by); return the REPORTs they cause.

        A quote newer than the book sets its side's touch at once: levels better than it are gone, and the deltas that
        say so follow. Without it a post-only order priced at the newest touch would meet the book of 100 ms ago.

        Rows of instruments that this exchange does not list are ignored.
        """
        self._reports = []
        columns = ("kind", "flags", "code", "instrument", "ts_event", "px", "qty", "a")
        for kind, flags, code, instrument, ts, px, qty, a in zip(*(rows[c].tolist() for c in columns), strict=True):
            recorded = self._recorded.get(instrument) if kind != Kind.CONT else None
            if recorded is None:
                continue
            side = flags & _SIDES
            if kind == Kind.LEVEL:
                recorded.sequence = a
                self._on_level(recorded, side, px, qty, ts)
            elif kind == Kind.QUOTE:
                if a > recorded.sequence and recorded.live:
                    for gone in recorded.better(side, px):
                        self._on_level(recorded, side, gone, 0, ts)
                    self._on_level(recorded, side, px, qty, ts)
            elif kind == Kind.TRADE:
                self._on_trade(recorded, side, px, qty, ts)
            elif kind == Kind.CLEAR:
                recorded.n = [0, 0]
                recorded.shown = dict.fromkeys(recorded.queues, 0)
            elif kind == Kind.BOOK_STATE:
                recorded.live = code == BookState.LIVE
            if flags & Flag.LAST and recorded.shown:
                self._shrink_queues(recorded)
        return _joined(self._reports)

    def send(self, rows: RowArray, now_ns: int) -> RowArray:
        """Take own requests that arrive at `now_ns`, venue time ns; return their REPORTs.

        Raises
        ------
        ValueError
            If a row is not an order row; nothing is sent then.
        """
        self._reports = []
        for request in _requests(rows):
            self._handle(request, now_ns)
        return _joined(self._reports)

    def snapshot(self, instrument: int, limit: int = 5000) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the last venue sequence seen, and recorded bids and asks, best first, as (px_ticks, qty_lots)."""
        recorded = self._recorded[instrument]
        return recorded.sequence, recorded.best_first(_BUY, limit), recorded.best_first(_SELL, limit)

    def _on_level(self, recorded: _Recorded, side: int, px: int, qty: int, ts: int) -> None:
        if recorded.queues:
            against = recorded.own_through(3 - side, px) if recorded.live else []
            if against:
                self._share(recorded, against, qty - recorded.qty_at(side, px), ts)
            if (side, px) in recorded.queues:
                recorded.shown[side, px] = qty
        recorded.set(side, px, qty)

    def _on_trade(self, recorded: _Recorded, aggressor: int, px: int, qty: int, ts: int) -> None:
        """Fill own orders that the trade went through, then those at its price once the lots ahead are used up."""
        if not recorded.queues or aggressor not in (_BUY, _SELL):
            return
        side = 3 - aggressor
        used = 0
        for own in recorded.own_through(side, px):
            reached = qty
            if own.px == px:
                reached = qty - own.ahead
                own.ahead = max(own.ahead - qty, 0)
            traded = min(own.leaves, reached - used)
            if traded > 0:
                used += traded
                self._fill(recorded, own, own.px, traded, ts, maker=True)

    def _share(self, recorded: _Recorded, orders: list[_Own], lots: int, ts: int) -> None:
        """Fill resting `orders` in turn with `lots` at their own prices."""
        for own in orders:
            if lots <= 0:
                return
            traded = min(lots, own.leaves)
            lots -= traded
            self._fill(recorded, own, own.px, traded, ts, maker=True)

    @staticmethod
    def _shrink_queues(recorded: _Recorded) -> None:
        for place, shown in recorded.shown.items():
            for own in recorded.queues.get(place, ()):
                own.ahead = min(own.ahead, shown)
        recorded.shown.clear()

    def _handle(self, request: _Request, ts: int) -> None:
        if request.kind == Kind.CANCEL:
            own = self._desk.open.get(request.cl_ord_id)
            if own is None:
                self._reports.append(self._desk.cancel_rejected(request, ts))
            else:
                self._end(own, _CANCELED, _GONE, ts)
            return
        recorded = self._recorded.get(request.instrument)
        objection = self._objection(request, recorded)
        if objection is not None or recorded is None:
            self._reports.append(self._desk.rejected(request, ts, *(objection or (-1121, b"invalid symbol"))))
            return
        own = _Own(
            request.cl_ord_id, request.instrument, request.side, request.px, request.qty, self._desk.next_order_id()
        )
        if request.kind == Kind.REPLACE_ORDER:
            self._remove(self._desk.open[request.orig])
        self._desk.open[own.cl_ord_id] = own
        self._reports.append(
            _report(
                own, _ACK if request.kind == Kind.SUBMIT else _REPLACED, _NEW, ts, qty=own.qty, leaves=own.qty,
                px=0 if request.market else own.px, venue_order_id=own.venue_order_id,
            )
        )  # fmt: skip
        self._arrive(recorded, own, request.tif, ts)

    def _objection(self, request: _Request, recorded: _Recorded | None) -> tuple[int, bytes] | None:
        """Code and text if a new order or replacement cannot be taken; nothing has changed then."""
        bid, ask = (None, None) if recorded is None else (recorded.best(_BUY), recorded.best(_SELL))
        objection = self._desk.objection(request, 0 if bid is None or ask is None else (bid + ask) // 2)
        if objection is not None or recorded is None:
            return objection
        if request.kind == Kind.REPLACE_ORDER:
            old = self._desk.open.get(request.orig)
            if old is None or old.instrument != request.instrument:
                return -2011, b"unknown order"
            if old.side != request.side:
                return -1117, b"invalid side"
        if not recorded.live:
            return -2010, b"book not live"
        other = 3 - request.side
        touch = recorded.best(other)
        through = touch is not None and (touch <= request.px if request.side == _BUY else touch >= request.px)
        if request.post_only and (through or recorded.own_through(other, request.px)):
            return _REFUSALS[Outcome.WOULD_CROSS]
        return None

    def _arrive(self, recorded: _Recorded, own: _Own, tif: int, ts: int) -> None:
        """Trade a new order with the displayed lots it reaches, then rest or expire the remainder."""
        reached = self._reached(recorded, own)
        if tif != _FOK or sum(qty for _, qty in reached) >= own.qty:
            for crossed in recorded.own_through(3 - own.side, own.px):
                self._end(crossed, _EXPIRED, _OVER, ts)
            for px, qty in reached:
                if own.leaves > 0:
                    self._fill(recorded, own, px, min(qty, own.leaves), ts, maker=False)
        if own.leaves == 0:
            return
        if tif in (_IOC, _FOK):
            self._end(own, _EXPIRED, _OVER, ts)
            return
        own.ahead = recorded.qty_at(own.side, own.px)
        recorded.queues.setdefault((own.side, own.px), []).append(own)

    @staticmethod
    def _reached(recorded: _Recorded, own: _Own) -> list[tuple[int, int]]:
        """Displayed levels that `own` would trade with, best first, as far as its quantity needs."""
        other = 3 - own.side
        levels = recorded.levels[other - 1]
        found: list[tuple[int, int]] = []
        needed = own.qty
        for i in range(recorded.n[other - 1] - 1, -1, -1):
            px, qty = int(levels[i, 0]), int(levels[i, 1])
            if needed <= 0 or (px > own.px if own.side == _BUY else px < own.px):
                break
            found.append((px, qty))
            needed -= qty
        return found

    def _fill(self, recorded: _Recorded, own: _Own, px: int, qty: int, ts: int, *, maker: bool) -> None:
        recorded.trades += 1
        own.cum += qty
        fee, asset = self._desk.fee(own.instrument, px, qty, maker=maker)
        status = OrdStatus.PARTIALLY_FILLED if own.leaves else OrdStatus.FILLED
        self._reports.append(
            _report(
                own, _FILL, int(status), ts, px=px, qty=qty, exec_id=recorded.trades, cum=own.cum, leaves=own.leaves,
                flags=int(Flag.MAKER) if maker else 0, venue_order_id=own.venue_order_id, fee=fee, fee_asset=asset,
            )
        )  # fmt: skip
        if own.leaves == 0:
            self._remove(own)

    def _end(self, own: _Own, exec_type: int, status: int, ts: int) -> None:
        self._remove(own)
        self._reports.append(
            _report(own, exec_type, status, ts, cum=own.cum, venue_order_id=own.venue_order_id)
        )

    def _remove(self, own: _Own) -> None:
        del self._desk.open[own.cl_ord_id]
        queues = self._recorded[own.instrument].queues
        queue = queues.get((own.side, own.px), [])
        if own in queue:
            queue.remove(own)
            if not queue:
                del queues[own.side, own.px]
