"""Binance's face on the simulated exchange: requests in, answers and frames out, no socket and no clock.

The model. An exchange object (`hftlab.sim.exchange`) speaks rows: order rows go in, REPORT and market rows come out.
This module is everything between those rows and Binance's wire: symbols, client order ids as text, accounts with free
and locked balances, filters, signatures, error codes, the account's events, and public rows folded into stream frames.
The same handlers answer REST and the WebSocket API, since the venue documents them as one set of operations.

Two clocks, both given by the caller. *Venue time* (ns) is the market's: it stamps every event and may run faster than
the world, or lie in the recorded past. *Wall time* (ms) is what a client signs with: it decides `recvWindow` and is
what ``/api/v3/time`` answers. With a synthetic flow at speed 1 they agree.

Money is integers. A balance is counted in 1e-16 of its asset, because tick times lot of Binance's eight decimals is a
whole number of those, so that locks, fills and fees add up without a rounding; eight decimals are shown, cut, as the
venue shows them. A resting buy locks price times quantity, a resting sell its quantity. The exchange charges every fee
in the quote asset (the venue: in what was received), so a buy also sets its worst fee aside out of what may be spent
next; that part is not shown as locked, since the venue shows none.

What is not the venue: request weight is counted but never punished, and the limit of five messages a second on a
stream connection is not kept; `quoteOrderQty` is turned into a quantity by walking the displayed book at arrival;
stop, iceberg and pegged orders, order lists, amend and other self-trade prevention than the exchange's own are refused
with the venue's own codes. cancelReplace is a cancel and a new order in one instant: priority is lost, as at the
venue.

Bounds: of orders that are done the last `HISTORY` are remembered and older ones answer -2013; of trades the last
`HISTORY` an account. Frames and events gather in one list that the caller takes after every call.

References
----------
Binance spot API documents: rest-api, web-socket-api, web-socket-streams, user-data-stream, filters, errors.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import numpy as np

from hftlab.core.errors import ConfigError, RemoteError
from hftlab.core.instruments import INT64_MAX, Instrument
from hftlab.core.rows import (
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    ROW,
    ExecType,
    Flag,
    Kind,
    OrdType,
    RowArray,
    Tif,
)
from hftlab.sim.exchange import MAX_OPEN_ORDERS
from hftlab.venues.face import AccountKey, Answer, Exchange, read_json

__all__ = [
    "Account",
    "ApiError",
    "BinanceServer",
    "DEFAULT_ACCOUNT",
    "DEFAULT_INSTRUMENTS",
    "Event",
    "Frame",
    "HISTORY",
    "StreamPeer",
    "UserPeer",
    "VenueOrder",
    "make_face",
    "recorded_stream",
]

E8 = 10**8
E16 = 10**16
HISTORY = 20_000
MAX_STREAMS = 1024
DEPTH_PERIOD_NS = 100_000_000
DEPTH_SLOW_BINS = 10  # the 1000 ms stream is every tenth boundary of the 100 ms one
DEPTH_LIMIT = 5000
ORDER_RATE_WINDOW_MS = 10_000
_WS_API = "/ws-api/v3"

_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?\Z")
_CLIENT_ID = re.compile(r"[a-zA-Z0-9\-_]{1,36}\Z")
_SYMBOL = re.compile(r"\w{1,20}\Z")
_DIGITS = re.compile(r"[0-9]{1,18}\Z")
_WINDOW = re.compile(r"[0-9]{1,5}(\.[0-9]{1,3})?\Z")
_SIGNATURE_PARAM = re.compile(rb"(?:^|&)signature=[^&]*")
_DECIMAL_RULE = "^([0-9]{1,20})(\\.[0-9]{1,20})?$"
_CLIENT_ID_RULE = "^[a-zA-Z0-9-_]{1,36}$"

_BID, _ASK, _LAST, _MAKER = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.MAKER)
_SIDE_FLAG = {"BUY": _BID, "SELL": _ASK}
_TIFS = {"GTC": Tif.GTC, "IOC": Tif.IOC, "FOK": Tif.FOK}
_REFUSED_TYPES = ("STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT")
_REFUSED_PARAMS = ("stopPrice", "trailingDelta", "icebergQty", "pegPriceType", "pegOffsetValue", "pegOffsetType")
_STP = "EXPIRE_MAKER"  # what the exchange does when two own orders would meet
_ORDER_TYPES = ["LIMIT", "LIMIT_MAKER", "MARKET"]
_TERMINAL = frozenset({"FILLED", "CANCELED", "EXPIRED", "REJECTED"})
_UNKNOWN_OUTCOME = frozenset({-1000, -1001, -1006, -1007, -1008})

_encode = msgspec.json.Encoder().encode


class ApiError(RemoteError):
    """The client's request cannot be served; becomes the venue's documented error answer.

    Parameters
    ----------
    code : int
        The venue's code, such as -1121.
    msg : str
        The venue's text.
    status : int
        HTTP status.
    data : object
        The `data` member of an error that has one.
    """

    def __init__(self, code: int, msg: str, status: int = 400, data: object = None) -> None:
        super().__init__(f"{code}: {msg}")
        self.code = code
        self.msg = msg
        self.status = status
        self.data = data

    def body(self) -> dict[str, object]:
        """Return the error as the venue's JSON object."""
        plain: dict[str, object] = {"code": self.code, "msg": self.msg}
        return plain if self.data is None else {**plain, "data": self.data}


class Frame(NamedTuple):
    """One public frame: its stream's name, the combined form (wrapped in stream and data), the raw form."""

    stream: str
    combined: bytes
    raw: bytes


class Event(NamedTuple):
    """One account event (the inner object, not yet wrapped for a subscription)."""

    account: Account
    payload: bytes


def _e8(count: int) -> str:
    """Return `count` of 1e-8 as the venue's text, eight decimals."""
    if count < 0:
        return "-" + _e8(-count)
    return f"{count // E8}.{count % E8:08d}"


def _scaled(step: Decimal, name: str, symbol: str) -> int:
    count = step * E8
    if count != count.to_integral_value():
        raise ConfigError(f"{symbol}: {name} is {step}; expected a multiple of 0.00000001, the venue's eight decimals")
    return int(count)


class _Symbol:
    """One instrument with its integer scales: ticks and lots to 1e-8 text and to 1e-16 money."""

    __slots__ = ("best", "instrument", "lot_e8", "name", "stream", "tick_e8")

    def __init__(self, instrument: Instrument) -> None:
        if not instrument.base or not instrument.quote:
            raise ConfigError(f"{instrument.symbol}: base and quote are empty; expected the asset codes of the pair")
        self.instrument = instrument
        self.name = instrument.symbol
        self.stream = instrument.symbol.lower()
        self.tick_e8 = _scaled(instrument.tick_size, "tick_size", instrument.symbol)
        self.lot_e8 = _scaled(instrument.lot_size, "lot_size", instrument.symbol)
        self.best = {_BID: (0, 0), _ASK: (0, 0)}

    def px(self, ticks: int) -> str:
        return _e8(ticks * self.tick_e8)

    def qty(self, lots: int) -> str:
        return _e8(lots * self.lot_e8)

    def quote(self, ticks_lots: int) -> str:
        return _e8(ticks_lots * self.tick_e8 * self.lot_e8 // E8)

    def quote_money(self, ticks_lots: int) -> int:
        return ticks_lots * self.tick_e8 * self.lot_e8

    def base_money(self, lots: int) -> int:
        return lots * self.lot_e8 * E8


@dataclass(slots=True)
class VenueOrder:
    """One order as the venue knows it. Prices in ticks, quantities in lots, money in 1e-16 of its asset."""

    account: Account
    symbol: _Symbol
    order_id: int
    client_id: str
    side: str
    type: str
    tif: str
    px: int
    qty: int
    quote_order_qty: str
    created_ms: int
    updated_ms: int
    status: str = "NEW"
    cum: int = 0
    cum_quote: int = 0  # ticks x lots
    locked: int = 0
    fee_hold: int = 0
    working: bool = False
    rejected: ApiError | None = None
    cancel_id: str = ""
    fills: list[dict[str, object]] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether the order may still trade."""
        return self.status not in _TERMINAL


class Account:
    """An API key with its secret and balances.

    Parameters
    ----------
    api_key, secret : str
        What requests are signed with.
    balances : mapping of asset code to Decimal
        Starting free balances.

    Attributes
    ----------
    free, locked, fee_hold : dict of asset code to int
        In 1e-16 of the asset. `fee_hold` is the part of `free` set aside for fees of open orders.
    """

    def __init__(self, api_key: str, secret: str, balances: Mapping[str, Decimal]) -> None:
        self.api_key = api_key
        self.secret = secret.encode()
        self.free: dict[str, int] = {}
        for asset, amount in balances.items():
            with localcontext() as context:
                context.prec = 60
                units = amount * E16
            if amount < 0 or units != units.to_integral_value():
                raise ConfigError(f"balance of {asset} is {amount}; expected 0 or more with at most 16 decimals")
            self.free[asset] = int(units)
        self.locked: dict[str, int] = dict.fromkeys(self.free, 0)
        self.fee_hold: dict[str, int] = dict.fromkeys(self.free, 0)
        self.open_by_client: dict[str, VenueOrder] = {}
        self.by_client: dict[str, VenueOrder] = {}
        self.trades: deque[dict[str, object]] = deque(maxlen=HISTORY)
        self.updated_ms = 0
        self.touched: set[str] = set()
        self.order_window = -1
        self.order_count = 0

    def know(self, asset: str) -> None:
        """Open a zero balance of `asset` if there is none."""
        for book in (self.free, self.locked, self.fee_hold):
            book.setdefault(asset, 0)

    def lock(self, asset: str, amount: int, fee_asset: str, fee: int) -> None:
        """Move `amount` from free to locked and set `fee` aside.

        Raises
        ------
        ApiError
            -2010 if free less what is already set aside does not cover both; nothing has changed.
        """
        need = {asset: amount, fee_asset: fee} if asset != fee_asset else {asset: amount + fee}
        for name, units in need.items():
            if self.free[name] - self.fee_hold[name] < units:
                raise ApiError(-2010, "Account has insufficient balance for requested action.")
        self.free[asset] -= amount
        self.locked[asset] += amount
        self.fee_hold[fee_asset] += fee
        self.touched.add(asset)

    def balances(self) -> list[dict[str, str]]:
        """Return every balance as the account answer lists it."""
        return [
            {"asset": name, "free": _e8(self.free[name] // E8), "locked": _e8(self.locked[name] // E8)}
            for name in self.free
        ]

    def verify(self, payload: bytes, signature: str) -> None:
        """Raise ApiError -1022 unless `signature` is the HMAC-SHA256 of `payload` in hex."""
        expected = hmac.new(self.secret, payload, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected.encode(), signature.lower().encode()):
            raise ApiError(-1022, "Signature for this request is not valid.")


DEFAULT_ACCOUNT: AccountKey = ("hftlab-sim-key", "hftlab-sim-secret", {"BTC": Decimal(10), "USDT": Decimal(1_000_000)})
"""Key, secret and balances of the account a simulated venue has unless told otherwise."""

DEFAULT_INSTRUMENTS = {
    "BTCUSDT": Instrument(
        0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT",
        min_qty=1, max_qty=900_000_000, min_px=1, max_px=100_000_000, min_notional=50_000_000,
    ),
    "ETHUSDT": Instrument(
        0, "binance", "ETHUSDT", Decimal("0.01"), Decimal("0.0001"), "ETH", "USDT",
        min_qty=1, max_qty=90_000_000, min_px=1, max_px=100_000_000, min_notional=5_000_000,
    ),
}  # fmt: skip
"""What can be listed without an exchangeInfo file, with the filters that Binance publishes."""


class _Params:
    """A request's parameters with the venue's complaints about them."""

    __slots__ = ("_of",)

    def __init__(self, of: Mapping[str, str]) -> None:
        self._of = of

    def get(self, name: str) -> str | None:
        return self._of.get(name)

    def need(self, name: str) -> str:
        value = self._of.get(name)
        if not value:
            raise ApiError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
        return value

    def e8(self, name: str) -> int:
        """Return a decimal parameter as a count of 1e-8, by its text alone."""
        text = self.need(name)
        if not _DECIMAL.match(text):
            raise ApiError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{_DECIMAL_RULE}'.")
        whole, _, decimals = text.partition(".")
        decimals = decimals.rstrip("0")
        if len(decimals) > 8:
            raise ApiError(-1111, f"Parameter '{name}' has too much precision.")
        return int(whole) * E8 + int(decimals.ljust(8, "0"))

    def whole(self, name: str) -> int:
        text = self.need(name)
        if not _DIGITS.match(text):
            raise ApiError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
        return int(text)

    def client_id(self, name: str) -> str | None:
        text = self._of.get(name)
        if text is None:
            return None
        if not _CLIENT_ID.match(text):
            raise ApiError(
                -1100, f"Illegal characters found in parameter '{name}'; legal range is '{_CLIENT_ID_RULE}'."
            )
        return text

    def limit(self, default: int, most: int) -> int:
        if self._of.get("limit") is None:
            return default
        value = self.whole("limit")
        if value < 1:
            raise ApiError(-1130, "Data sent for parameter 'limit' is not valid.")
        return min(value, most)

    def names(self, name: str) -> list[str] | None:
        """Return a parameter that is a JSON list of texts."""
        text = self._of.get(name)
        if text is None:
            return None
        try:
            value = read_json(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ApiError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '[\"A\",\"B\"]'.")
        return value


def _illegal_type(order_type: str) -> ApiError:
    if order_type in _REFUSED_TYPES:
        name = order_type.replace("_", " ").capitalize()
        return ApiError(-1013, f"{name} orders are not supported for this symbol.")
    return ApiError(-1116, "Invalid orderType.")


class _Depth:
    """Price levels changed since the last frame of one depth stream, with the range of sequences they came from."""

    __slots__ = ("asks", "bids", "first", "last")

    def __init__(self) -> None:
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.first = 0
        self.last = 0

    def add(self, flags: int, px: int, qty: int, sequence: int) -> None:
        (self.bids if flags & _BID else self.asks)[px] = qty
        self.first = self.first or sequence
        self.last = sequence

    def frame(self, symbol: _Symbol, stream: str, event_ms: int) -> Frame:
        """Return the depthUpdate of what was gathered and start anew."""
        bids = ",".join(f'["{symbol.px(p)}","{symbol.qty(q)}"]' for p, q in sorted(self.bids.items(), reverse=True))
        asks = ",".join(f'["{symbol.px(p)}","{symbol.qty(q)}"]' for p, q in sorted(self.asks.items()))
        raw = (
            f'{{"e":"depthUpdate","E":{event_ms},"s":"{symbol.name}","U":{self.first},"u":{self.last},'
            f'"b":[{bids}],"a":[{asks}]}}'
        )
        self.bids.clear()
        self.asks.clear()
        self.first = 0
        return _frame(stream, raw)


def _frame(stream: str, raw: str) -> Frame:
    return Frame(stream, f'{{"stream":"{stream}","data":{raw}}}'.encode(), raw.encode())


class _Publisher:
    """Public rows of one instrument, in order, to stream frames.

    Depth is gathered on boundaries of venue time, so that what a client sees does not depend on how often the server
    was asked to advance: a row stamped on or after a boundary first closes the bin before it.
    """

    __slots__ = ("_agg", "_agg_id", "_fast", "_slow", "bins", "symbol")

    def __init__(self, symbol: _Symbol) -> None:
        self.symbol = symbol
        self.bins = 0
        self._fast = _Depth()
        self._slow = _Depth()
        # the taker's fills gathered so far: sequence, flags, px, qty, first id, last id, time in ms
        self._agg: tuple[int, int, int, int, int, int, int] | None = None
        self._agg_id = 0

    def level(self, flags: int, px: int, qty: int, sequence: int) -> None:
        self._fast.add(flags, px, qty, sequence)
        self._slow.add(flags, px, qty, sequence)

    def boundary(self, event_ns: int, out: list[Frame | Event]) -> None:
        """Close the depth bin that ends at `event_ns`."""
        self.bins += 1
        stream = f"{self.symbol.stream}@depth"
        if self._fast.first:
            out.append(self._fast.frame(self.symbol, f"{stream}@100ms", event_ns // 1_000_000))
        if self.bins % DEPTH_SLOW_BINS == 0 and self._slow.first:
            out.append(self._slow.frame(self.symbol, stream, event_ns // 1_000_000))

    def quote(self, flags: int, px: int, qty: int, sequence: int, out: list[Frame | Event]) -> None:
        symbol = self.symbol
        symbol.best[_BID if flags & _BID else _ASK] = (px, qty)
        if flags & _LAST:
            (bid, bid_qty), (ask, ask_qty) = symbol.best[_BID], symbol.best[_ASK]
            raw = (
                f'{{"u":{sequence},"s":"{symbol.name}","b":"{symbol.px(bid)}","B":"{symbol.qty(bid_qty)}",'
                f'"a":"{symbol.px(ask)}","A":"{symbol.qty(ask_qty)}"}}'
            )
            out.append(_frame(f"{symbol.stream}@bookTicker", raw))

    def trade(
        self, flags: int, px: int, qty: int, trade_id: int, sequence: int, event_ns: int, out: list[Frame | Event]
    ) -> None:
        symbol, event_ms = self.symbol, event_ns // 1_000_000
        maker = "true" if flags & _ASK else "false"
        raw = (
            f'{{"e":"trade","E":{event_ms},"s":"{symbol.name}","t":{trade_id},"p":"{symbol.px(px)}",'
            f'"q":"{symbol.qty(qty)}","T":{event_ms},"m":{maker},"M":true}}'
        )
        out.append(_frame(f"{symbol.stream}@trade", raw))
        side = flags & (_BID | _ASK)
        agg = self._agg
        if agg is not None and agg[:3] == (sequence, side, px):
            self._agg = (sequence, side, px, agg[3] + qty, agg[4], trade_id, event_ms)
            return
        self.flush_agg(out)
        self._agg = (sequence, side, px, qty, trade_id, trade_id, event_ms)

    def flush_agg(self, out: list[Frame | Event]) -> None:
        """Publish the gathered fills of one taker at one price, if any."""
        if self._agg is None:
            return
        _, side, px, qty, first, last, event_ms = self._agg
        self._agg = None
        self._agg_id += 1
        symbol = self.symbol
        raw = (
            f'{{"e":"aggTrade","E":{event_ms},"s":"{symbol.name}","a":{self._agg_id},"p":"{symbol.px(px)}",'
            f'"q":"{symbol.qty(qty)}","f":{first},"l":{last},"T":{event_ms},'
            f'"m":{"true" if side & _ASK else "false"},"M":true}}'
        )
        out.append(_frame(f"{symbol.stream}@aggTrade", raw))


def recorded_stream(combined: bytes) -> Frame | None:
    """Return a recorded frame of a combined stream, its bytes untouched, or None for anything else.

    Examples
    --------
    >>> recorded_stream(b'{"stream":"btcusdt@trade","data":{"e":"trade"}}')
    Frame(stream='btcusdt@trade', combined=b'{"stream":"btcusdt@trade","data":{"e":"trade"}}', raw=b'{"e":"trade"}')
    """
    prefix, middle = b'{"stream":"', b'","data":'
    end = combined.find(middle, len(prefix))
    if not combined.startswith(prefix) or end < 0:
        return None
    return Frame(combined[len(prefix) : end].decode(), combined, combined.rstrip()[end + len(middle) : -1])


class StreamPeer:
    """One client of the market streams: what it has subscribed to, and the answers to its control requests.

    Parameters
    ----------
    path, query : str
        Of the connection: ``/ws/NAME`` or ``/ws`` (raw frames), ``/stream`` with ``streams=A/B`` (combined frames).

    Examples
    --------
    >>> peer = StreamPeer("/ws/btcusdt@trade", "")
    >>> peer.control('{"method":"LIST_SUBSCRIPTIONS","id":3}')
    b'{"result":["btcusdt@trade"],"id":3}'
    """

    def __init__(self, path: str, query: str) -> None:
        self.combined = path.startswith("/stream")
        names = dict(parse_qsl(query)).get("streams", "") if self.combined else path.removeprefix("/ws").strip("/")
        self.streams: dict[str, None] = dict.fromkeys(name for name in names.split("/") if name)

    scope = "market"

    @property
    def ready(self) -> bool:
        """Return whether the client has subscribed to a stream."""
        return bool(self.streams)

    def receive(self, text: str | bytes, wall_ms: int) -> list[bytes]:
        """Return the answer to a control request."""
        return [self.control(text)]

    def render(self, item: object) -> list[bytes]:
        """Return the bytes this client gets for `item`: one message for a frame of a stream it has subscribed to."""
        if not isinstance(item, Frame) or item.stream not in self.streams:
            return []
        return [item.combined if self.combined else item.raw]

    def poll(self, wall_ms: int) -> list[bytes]:
        """Return nothing: the venue's streams beat by WebSocket pings alone."""
        return []

    def control(self, text: str | bytes) -> bytes:
        """Return the answer to a control request; a request that is none changes nothing."""
        try:
            request = read_json(text)
        except (ValueError, RecursionError):
            return _encode({"error": {"code": 3, "msg": "Invalid JSON: expected one JSON object"}})
        if not isinstance(request, dict):
            return _encode({"error": {"code": 2, "msg": "Invalid request: expected a JSON object"}})
        identity = request.get("id")
        if isinstance(identity, bool) or not isinstance(identity, int | str | None):
            return _encode({"error": {"code": 1, "msg": "Invalid value type: id must be an integer, a text or null"}})
        try:
            result = self._apply(request.get("method"), request.get("params", []))
        except ApiError as error:
            return _encode({"error": error.body(), "id": identity})
        return _encode({"result": result, "id": identity})

    def _apply(self, method: object, params: object) -> object:
        if method == "LIST_SUBSCRIPTIONS":
            return list(self.streams)
        if not isinstance(params, list):
            raise ApiError(1, "Invalid value type: params must be a list")
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            self._change(method == "SUBSCRIBE", params)
            return None
        if method == "SET_PROPERTY" and len(params) == 2 and params[0] == "combined" and isinstance(params[1], bool):
            self.combined = params[1]
            return None
        if method == "GET_PROPERTY" and params == ["combined"]:
            return self.combined
        raise ApiError(
            2,
            f"Invalid request: method {method!r} with these params is not one of SUBSCRIBE, UNSUBSCRIBE, "
            "LIST_SUBSCRIPTIONS, SET_PROPERTY, GET_PROPERTY",
        )

    def _change(self, add: bool, names: list[object]) -> None:
        texts = [name for name in names if isinstance(name, str) and name]
        if len(texts) != len(names) or not names:
            raise ApiError(2, "Invalid request: params must be a list of stream names such as btcusdt@trade")
        if not add:
            for name in texts:
                self.streams.pop(name, None)
            return
        if len(self.streams.keys() | set(texts)) > MAX_STREAMS:
            raise ApiError(2, f"Invalid request: at most {MAX_STREAMS} streams a connection")
        self.streams.update(dict.fromkeys(texts))


class UserPeer:
    """One client of the WebSocket API: its user data subscriptions.

    Parameters
    ----------
    server : BinanceServer
        Who answers its requests.
    """

    scope = "user"
    ready = False  # a recording waits for who reads its streams

    def __init__(self, server: BinanceServer) -> None:
        self.subscriptions: dict[int, Account] = {}
        self.next_id = 0
        self._server = server

    def receive(self, text: str | bytes, wall_ms: int) -> list[bytes]:
        """Return the answer to one request."""
        return [self._server.ws_api(self, text, wall_ms)]

    def render(self, item: object) -> list[bytes]:
        """Return an account's event once for every subscription of the account."""
        if not isinstance(item, Event):
            return []
        return [
            b'{"subscriptionId":%d,"event":%b}' % (number, item.payload)
            for number, account in self.subscriptions.items()
            if account is item.account
        ]

    def poll(self, wall_ms: int) -> list[bytes]:
        """Return nothing."""
        return []


Handler = Callable[[_Params, Account], object]


class BinanceServer:
    """The venue: REST and WebSocket API requests answered, market rows published.

    Parameters
    ----------
    exchange : Exchange
        A `MatchingExchange` or a `RecordedExchange`; this object owns its ``cl_ord_id`` numbering.
    instruments : sequence of Instrument
        What is listed.
    accounts : sequence of (api key, secret, balances)
        Who may trade.
    maker_fee_e8, taker_fee_e8 : int
        The exchange's fees, 1e-8 of notional, to set the worst aside.
    orders_per_10s : int
        Unfilled orders an account may send in a 10 s window of wall time; beyond it -1015.

    Attributes
    ----------
    routes : mapping of path to scope
        Where WebSocket clients connect: the streams, and the WebSocket API.
    counts : dict of str to int
        Requests, errors, orders, fills, cancels and frames so far.
    """

    routes: Mapping[str, str] = MappingProxyType(
        {"/stream": "market", "/ws": "market", "/ws/{names:.*}": "market", _WS_API: "user"}
    )

    def __init__(
        self,
        exchange: Exchange,
        instruments: Sequence[Instrument],
        *,
        accounts: Iterable[AccountKey] = (DEFAULT_ACCOUNT,),
        maker_fee_e8: int = 0,
        taker_fee_e8: int = 0,
        orders_per_10s: int = 10_000,
    ) -> None:
        self.exchange = exchange
        self.symbols = {instrument.symbol: _Symbol(instrument) for instrument in instruments}
        self.accounts = {key: Account(key, secret, balances) for key, secret, balances in accounts}
        for account in self.accounts.values():
            for instrument in instruments:
                account.know(instrument.base)
                account.know(instrument.quote)
        self.maker_fee_e8 = maker_fee_e8
        self.taker_fee_e8 = taker_fee_e8
        self.orders_per_10s = orders_per_10s
        self.counts = dict.fromkeys(("requests", "errors", "orders", "fills", "cancels", "frames", "events"), 0)
        self.order_errors: deque[tuple[ApiError, bool]] = deque()
        self.snapshots: dict[str, bytes] = {}
        self._publishers = {s.instrument.id: _Publisher(s) for s in self.symbols.values()}
        for symbol in self.symbols.values():
            _, bids, asks = exchange.snapshot(symbol.instrument.id, 1)
            for flag, side in ((_BID, bids), (_ASK, asks)):
                if len(side):
                    symbol.best[flag] = (int(side[0][0]), int(side[0][1]))
        self._orders: dict[int, VenueOrder] = {}
        self._done: deque[int] = deque()
        self._out: list[Frame | Event] = []
        self._now_ns = 0
        self._wall_ms = 0
        self._boundary_ns = 0
        self._next_order = 1
        self._next_auto_id = 1
        self._execution = 0
        self._weight_minute = 0
        self._weight = 0
        self._rest, self._ws = self._routes()

    # ---- time and market rows

    def peer(self, path: str, query: str) -> StreamPeer | UserPeer:
        """Return a new client of the WebSocket API or of the streams, by `path`."""
        return UserPeer(self) if path == _WS_API else StreamPeer(path, query)

    def is_book(self, item: object) -> str:
        """Return the stream of a depth frame, "" for anything else."""
        return item.stream if isinstance(item, Frame) and "@depth" in item.stream else ""

    def is_public(self, item: object) -> bool:
        """Return whether `item` is a frame of a stream."""
        return isinstance(item, Frame)

    def take(self) -> list[Frame | Event]:
        """Return the frames and events made since the last call, in order."""
        out, self._out = self._out, []
        for item in out:
            self.counts["frames" if isinstance(item, Frame) else "events"] += 1
        return out

    def tick(self, venue_ns: int, rows: RowArray) -> None:
        """Move venue time to `venue_ns`; `rows` is what the exchange did until then."""
        self._absorb(rows)
        self._pass(venue_ns)
        self._now_ns = max(self._now_ns, venue_ns)

    def replay(self, venue_ns: int, frame: Frame | None, rows: RowArray) -> None:
        """Pass a recorded public frame (or None), untouched; `rows` are the reports it caused."""
        self._now_ns = max(self._now_ns, venue_ns)
        if frame is not None:
            self._out.append(frame)
        self._absorb(rows)

    def _pass(self, until_ns: int) -> None:
        """Close every depth bin that ends at or before `until_ns`."""
        if self._boundary_ns == 0:
            self._boundary_ns = until_ns // DEPTH_PERIOD_NS * DEPTH_PERIOD_NS + DEPTH_PERIOD_NS
            return
        while self._boundary_ns <= until_ns:
            for publisher in self._publishers.values():
                publisher.boundary(self._boundary_ns, self._out)
            self._boundary_ns += DEPTH_PERIOD_NS

    def _absorb(self, rows: RowArray) -> None:
        if len(rows) == 0:
            return
        out = self._out
        columns = [rows[name].tolist() for name in ("kind", "instrument", "flags", "px", "qty", "a", "b", "ts_event")]
        touched: dict[str, Account] = {}
        open_agg: dict[int, _Publisher] = {}
        for i, (kind, instrument, flags, px, qty, a, b, ts_event) in enumerate(zip(*columns, strict=True)):
            if kind == Kind.CONT:
                continue
            if kind == Kind.REPORT:
                self._report(rows[i], rows[i + 1 : i + 2].view(REPORT_PAYLOAD)[0], touched)
                continue
            if ts_event >= self._boundary_ns:
                self._pass(ts_event)
            publisher = self._publishers[instrument]
            if kind == Kind.LEVEL:
                publisher.flush_agg(out)  # the levels of a book event follow its trades
                publisher.level(flags, px, qty, a)
            elif kind == Kind.QUOTE:
                publisher.quote(flags, px, qty, a, out)
            elif kind == Kind.TRADE:
                publisher.trade(flags, px, qty, a, b, ts_event, out)
                open_agg[instrument] = publisher
        for publisher in open_agg.values():
            publisher.flush_agg(out)
        for account in touched.values():
            self._account_event(account)

    # ---- reports

    def _report(self, row: Any, payload: Any, touched: dict[str, Account]) -> None:
        exec_type = int(row["code"]) & 255
        order = self._orders.get(int(row["a"]))
        if order is None:
            return  # reported after its order left the history: nobody can ask for it any more
        ts_event = int(row["ts_event"])
        now_ms = (ts_event if ts_event > 0 else self._now_ns) // 1_000_000
        order.updated_ms = now_ms
        account = order.account
        touched[account.api_key] = account
        if exec_type == ExecType.ACK:
            order.working = True
            self._execution_event(order, "NEW", now_ms)
        elif exec_type == ExecType.FILL:
            self._fill(
                order, int(row["px"]), int(row["qty"]), int(row["b"]), int(row["flags"]), int(payload["fee"]), now_ms
            )
        elif exec_type == ExecType.CANCELED:
            self._finish(order, "CANCELED")
            self.counts["cancels"] += 1
            self._execution_event(order, "CANCELED", now_ms)
        elif exec_type == ExecType.EXPIRED:
            self._finish(order, "EXPIRED")
            self._execution_event(order, "EXPIRED", now_ms)
        elif exec_type == ExecType.REJECT:
            self._finish(order, "REJECTED")
            order.rejected = self._rejection(order, int(payload["venue_code"]), bytes(payload["text"]).decode())
            if account.by_client.get(order.client_id) is order:
                del account.by_client[order.client_id]
            account.touched.clear()  # what was locked is free again: nothing has changed
            touched.pop(account.api_key, None)
        elif exec_type == ExecType.CANCEL_REJECT:
            touched.pop(account.api_key, None)

    @staticmethod
    def _rejection(order: VenueOrder, code: int, text: str) -> ApiError:
        # a report's payload has 16 bytes of text: the venue's sentences are put back here
        if code == -1013:
            return ApiError(code, f"Filter failure: {text}")
        if code == -2010 and order.type == "LIMIT_MAKER":
            return ApiError(code, "Order would immediately match and take.")
        return ApiError(code or -2010, f"Order rejected: {text}.")

    def _fill(self, order: VenueOrder, px: int, qty: int, trade_id: int, flags: int, fee_e8: int, now_ms: int) -> None:
        account, symbol = order.account, order.symbol
        base, quote = symbol.instrument.base, symbol.instrument.quote
        cost, fee = symbol.quote_money(px * qty), fee_e8 * E8
        if order.side == "BUY":
            paid_from_lock = symbol.quote_money(order.px * qty) if order.px else min(cost, order.locked)
            order.locked -= paid_from_lock
            account.locked[quote] -= paid_from_lock
            account.free[quote] += paid_from_lock - cost - fee
            account.free[base] += symbol.base_money(qty)
        else:
            order.locked -= symbol.base_money(qty)
            account.locked[base] -= symbol.base_money(qty)
            account.free[quote] += cost - fee
        used_hold = min(order.fee_hold, max(fee, 0))
        order.fee_hold -= used_hold
        account.fee_hold[quote] -= used_hold
        account.touched.update((base, quote))
        if order.cum == 0:  # a first fill gives unfilled-order count back: 5 for a maker, 1 for a taker
            account.order_count = max(account.order_count - (5 if flags & _MAKER else 1), 0)
        order.cum += qty
        order.cum_quote += px * qty
        self.counts["fills"] += 1
        order.status = "PARTIALLY_FILLED"
        if order.cum == order.qty:
            self._finish(order, "FILLED")
        commission = _e8(fee_e8)
        order.fills.append(
            {
                "price": symbol.px(px),
                "qty": symbol.qty(qty),
                "commission": commission,
                "commissionAsset": quote,
                "tradeId": trade_id,
            }
        )
        account.trades.append(
            {
                "symbol": symbol.name,
                "id": trade_id,
                "orderId": order.order_id,
                "orderListId": -1,
                "price": symbol.px(px),
                "qty": symbol.qty(qty),
                "quoteQty": symbol.quote(px * qty),
                "commission": commission,
                "commissionAsset": quote,
                "time": now_ms,
                "isBuyer": order.side == "BUY",
                "isMaker": bool(flags & _MAKER),
                "isBestMatch": True,
            }
        )
        self._execution_event(order, "TRADE", now_ms, (px, qty, trade_id, flags & _MAKER, commission))

    def _finish(self, order: VenueOrder, status: str) -> None:
        """End `order`: what it still locks is free again."""
        account, instrument = order.account, order.symbol.instrument
        asset = instrument.quote if order.side == "BUY" else instrument.base
        account.locked[asset] -= order.locked
        account.free[asset] += order.locked
        account.fee_hold[instrument.quote] -= order.fee_hold
        account.touched.add(asset)
        order.locked = order.fee_hold = 0
        order.status = status
        order.working = False
        account.open_by_client.pop(order.client_id, None)
        self._done.append(order.order_id)
        while len(self._done) > HISTORY:
            old = self._orders.pop(self._done.popleft())
            if old.account.by_client.get(old.client_id) is old:
                del old.account.by_client[old.client_id]

    def _execution_event(
        self,
        order: VenueOrder,
        execution: str,
        now_ms: int,
        last: tuple[int, int, int, int, str] | None = None,
        reason: str = "NONE",
    ) -> None:
        self._execution += 1
        symbol = order.symbol
        px, qty, trade_id, maker, commission = last or (0, 0, -1, 0, "0")
        canceled = execution == "CANCELED"
        client_id, original = (order.cancel_id, order.client_id) if canceled else (order.client_id, "")
        asset = f'"{symbol.instrument.quote}"' if last else "null"
        on_book = order.type != "MARKET" and (order.working or bool(order.cum))
        working_time = f'"W":{order.created_ms},' if on_book else ""
        payload = (
            f'{{"e":"executionReport","E":{now_ms},"s":"{symbol.name}","c":"{client_id}","S":"{order.side}",'
            f'"o":"{order.type}","f":"{order.tif}","q":"{symbol.qty(order.qty)}","p":"{symbol.px(order.px)}",'
            f'"P":"0.00000000","F":"0.00000000","g":-1,"C":"{original}","x":"{execution}","X":"{order.status}",'
            f'"r":"{reason}","i":{order.order_id},"l":"{symbol.qty(qty)}","z":"{symbol.qty(order.cum)}",'
            f'"L":"{symbol.px(px)}","n":"{commission}","N":{asset},"T":{now_ms},"t":{trade_id},'
            f'"I":{self._execution},"w":{"true" if order.open and order.type != "MARKET" else "false"},'
            f'"m":{"true" if maker else "false"},"M":false,"O":{order.created_ms},'
            f'"Z":"{symbol.quote(order.cum_quote)}","Y":"{symbol.quote(px * qty)}",'
            f'"Q":"{order.quote_order_qty}",{working_time}"V":"{_STP}"}}'
        )
        self._out.append(Event(order.account, payload.encode()))

    def _account_event(self, account: Account) -> None:
        if not account.touched:
            return
        now_ms = self._now_ns // 1_000_000
        account.updated_ms = now_ms
        held = ",".join(
            f'{{"a":"{name}","f":"{_e8(account.free[name] // E8)}","l":"{_e8(account.locked[name] // E8)}"}}'
            for name in sorted(account.touched)
        )
        account.touched.clear()
        payload = f'{{"e":"outboundAccountPosition","E":{now_ms},"u":{now_ms},"B":[{held}]}}'
        self._out.append(Event(account, payload.encode()))

    # ---- the two faces

    def rest(
        self, method: str, path: str, query: bytes, body: bytes, headers: Mapping[str, str], wall_ms: int
    ) -> Answer:
        """Return the answer to a REST request.

        Parameters
        ----------
        method, path : str
            Such as ``"GET"`` and ``"/api/v3/depth"``.
        query, body : bytes
            As they came on the wire, still percent-encoded: that is what the signature covers.
        headers : mapping
            Of them only X-MBX-APIKEY is read.
        wall_ms : int
            Wall time, ms since 1970 UTC.
        """
        self._wall_ms = wall_ms
        self.counts["requests"] += 1
        account = None
        api_key = headers.get("X-MBX-APIKEY")
        try:
            route = self._rest.get((method, path))
            if route is None:
                known = sorted(verb for verb, at in self._rest if at == path)
                if known:
                    raise ApiError(-1000, f"Method {method} is not allowed here; use {' or '.join(known)}.", 405)
                raise ApiError(-1000, f"Path {path} does not exist on the simulated venue.", 404)
            handler, signed, weight = route
            self._charge(weight)
            params = self._parse(query, body)
            account = self._authenticate_rest(params, query, body, api_key) if signed else self._nobody
            result = handler(_Params(params), account)
            status, reply = 200, result if isinstance(result, bytes) else _encode(result)
        except ApiError as error:
            self.counts["errors"] += 1
            status, reply = error.status, _encode(error.body())
        headers = {"X-MBX-USED-WEIGHT-1M": str(self._weight), "X-MBX-USED-WEIGHT": str(self._weight)}
        if account is not None and account is not self._nobody:
            headers["X-MBX-ORDER-COUNT-10S"] = str(account.order_count)
        return Answer(status, reply, headers)

    def ws_api(self, peer: UserPeer, text: str | bytes, wall_ms: int) -> bytes:
        """Return the answer to one WebSocket API request of `peer`."""
        self._wall_ms = wall_ms
        self.counts["requests"] += 1
        identity: object = None
        try:
            request = self._ws_request(text)
            identity = request.get("id")
            reply = self._ws_answer(peer, request)
        except ApiError as error:
            self.counts["errors"] += 1
            return self._ws_envelope(identity, error.status, b"error", _encode(error.body()))
        return self._ws_envelope(identity, 200, b"result", reply)

    @staticmethod
    def _ws_request(text: str | bytes) -> dict[str, Any]:
        # numbers with a fraction keep their text: the signature covers what was written
        try:
            request = read_json(text, parse_float=str)
        except (ValueError, RecursionError) as error:
            raise ApiError(-1135, "Invalid JSON Request") from error
        if not isinstance(request, dict):
            raise ApiError(-1135, "Invalid JSON Request")
        identity = request.get("id")
        if isinstance(identity, bool) or not isinstance(identity, int | str | None):
            request["id"] = None
            raise ApiError(
                -1100, "Illegal characters found in parameter 'id'; legal range is an integer, text or null."
            )
        return request

    def _ws_answer(self, peer: UserPeer, request: dict[str, Any]) -> bytes:
        method, given = request.get("method"), request.get("params", {})
        if not isinstance(method, str):
            raise ApiError(-1102, "Mandatory parameter 'method' was not sent, was empty/null, or malformed.")
        if not isinstance(given, dict):
            raise ApiError(-1102, "Mandatory parameter 'params' was not sent, was empty/null, or malformed.")
        params = {str(name): _ws_text(value) for name, value in given.items() if value is not None}
        if method in ("userDataStream.subscribe.signature", "userDataStream.unsubscribe"):
            return _encode(self._subscribe(peer, method, params))
        if method in ("session.logon", "userDataStream.subscribe"):
            raise ApiError(
                -1020,
                f"{method} needs an Ed25519 key and the simulated venue has HMAC keys only; "
                "use userDataStream.subscribe.signature and sign every request.",
            )
        route = self._ws.get(method)
        if route is None:
            raise ApiError(-1000, f"Method {method} does not exist on the simulated venue.", 404)
        handler, signed, weight = route
        self._charge(weight)
        account = self._authenticate_ws(params) if signed else self._nobody
        result = handler(_Params(params), account)
        return result if isinstance(result, bytes) else _encode(result)

    def _ws_envelope(self, identity: object, status: int, name: bytes, body: bytes) -> bytes:
        limits = (
            b'[{"rateLimitType":"REQUEST_WEIGHT","interval":"MINUTE","intervalNum":1,"limit":6000,"count":%d}]'
            % self._weight
        )
        return b'{"id":%b,"status":%d,"%b":%b,"rateLimits":%b}' % (_encode(identity), status, name, body, limits)

    def _subscribe(self, peer: UserPeer, method: str, params: dict[str, str]) -> object:
        if method == "userDataStream.unsubscribe":
            number = params.get("subscriptionId")
            if number is None:
                peer.subscriptions.clear()
            elif not _DIGITS.match(number) or peer.subscriptions.pop(int(number), None) is None:
                raise ApiError(-2036, "This subscription does not exist on this connection.")
            return {}
        account = self._authenticate_ws(params)
        if account in peer.subscriptions.values():
            raise ApiError(-2035, "A subscription to this account is already active on this connection.")
        number_given = peer.next_id
        peer.next_id += 1
        peer.subscriptions[number_given] = account
        return {"subscriptionId": number_given}

    # ---- security

    @property
    def _nobody(self) -> Account:
        return _NOBODY

    @staticmethod
    def _parse(query: bytes, body: bytes) -> dict[str, str]:
        params: dict[str, str] = {}
        for part in (query, body):
            try:
                pairs = parse_qsl(part.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
            except ValueError as error:
                raise ApiError(-1100, "Illegal characters found in a parameter.") from error
            for name, value in pairs:
                if name in params:
                    raise ApiError(-1101, "Duplicate values for a parameter detected.")
                params[name] = value
        return params

    def _authenticate_rest(self, params: dict[str, str], query: bytes, body: bytes, api_key: str | None) -> Account:
        account = self._known_key(api_key)
        self._check_time(params)
        signature = _Params(params).need("signature")
        account.verify(_SIGNATURE_PARAM.sub(b"", query) + _SIGNATURE_PARAM.sub(b"", body), signature)
        return account

    def _authenticate_ws(self, params: dict[str, str]) -> Account:
        account = self._known_key(_Params(params).need("apiKey"))
        self._check_time(params)
        signature = _Params(params).need("signature")
        payload = "&".join(f"{name}={params[name]}" for name in sorted(params) if name != "signature")
        account.verify(payload.encode(), signature)
        return account

    def _known_key(self, api_key: str | None) -> Account:
        if not api_key or not re.fullmatch(r"[A-Za-z0-9\-_]{1,128}", api_key):
            raise ApiError(-2014, "API-key format invalid.", 401)
        account = self.accounts.get(api_key)
        if account is None:
            raise ApiError(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        return account

    def _check_time(self, params: dict[str, str]) -> None:
        stamp = _Params(params).whole("timestamp")
        window_text = params.get("recvWindow", "5000")
        if not _WINDOW.match(window_text):
            raise ApiError(-1100, "Illegal characters found in parameter 'recvWindow'; legal range is '0 to 60000'.")
        window = Decimal(window_text)
        if window > 60_000:
            raise ApiError(-1131, "recvWindow must be less than 60000.")
        stamp_ms = stamp // 1000 if stamp > 10**14 else stamp  # microseconds are allowed
        if stamp_ms >= self._wall_ms + 1000:
            raise ApiError(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
        if self._wall_ms - stamp_ms > window:
            raise ApiError(-1021, "Timestamp for this request is outside of the recvWindow.")

    def _charge(self, weight: int) -> None:
        minute = self._wall_ms // 60_000
        if minute != self._weight_minute:
            self._weight_minute, self._weight = minute, 0
        self._weight += weight

    # ---- operations

    def _routes(
        self,
    ) -> tuple[dict[tuple[str, str], tuple[Handler, bool, int]], dict[str, tuple[Handler, bool, int]]]:
        """Return what each face offers: handler, whether signed, weight."""
        v3 = "/api/v3"
        rest: dict[tuple[str, str], tuple[Handler, bool, int]] = {
            ("GET", f"{v3}/ping"): (self._ping, False, 1),
            ("GET", f"{v3}/time"): (self._time, False, 1),
            ("GET", f"{v3}/exchangeInfo"): (self._exchange_info, False, 20),
            ("GET", f"{v3}/depth"): (self._depth, False, 0),
            ("GET", f"{v3}/ticker/bookTicker"): (self._book_ticker, False, 2),
            ("POST", f"{v3}/order"): (self._order_place, True, 0),
            ("POST", f"{v3}/order/test"): (self._order_test, True, 1),
            ("GET", f"{v3}/order"): (self._order_status, True, 4),
            ("DELETE", f"{v3}/order"): (self._order_cancel, True, 0),
            ("POST", f"{v3}/order/cancelReplace"): (self._cancel_replace, True, 0),
            ("GET", f"{v3}/openOrders"): (self._open_orders, True, 6),
            ("DELETE", f"{v3}/openOrders"): (self._cancel_all, True, 1),
            ("GET", f"{v3}/allOrders"): (self._all_orders, True, 20),
            ("GET", f"{v3}/account"): (self._account, True, 20),
            ("GET", f"{v3}/myTrades"): (self._my_trades, True, 20),
            ("GET", f"{v3}/rateLimit/order"): (self._order_counts, True, 40),
            # what a general client asks beside the spot API; only spot is traded here
            ("GET", "/sapi/v1/capital/config/getall"): (self._coins, True, 10),
            ("GET", "/sapi/v1/margin/allPairs"): (self._nothing, False, 1),
            ("GET", "/sapi/v1/margin/isolated/allPairs"): (self._nothing, False, 1),
            ("GET", "/fapi/v1/exchangeInfo"): (self._no_symbols, False, 1),
            ("GET", "/dapi/v1/exchangeInfo"): (self._no_symbols, False, 1),
        }
        ws: dict[str, tuple[Handler, bool, int]] = {
            "ping": (self._ping, False, 1),
            "time": (self._time, False, 1),
            "exchangeInfo": (self._exchange_info, False, 20),
            "depth": (self._depth, False, 0),
            "ticker.book": (self._book_ticker, False, 2),
            "order.place": (self._order_place, True, 0),
            "order.test": (self._order_test, True, 1),
            "order.status": (self._order_status, True, 4),
            "order.cancel": (self._order_cancel, True, 0),
            "order.cancelReplace": (self._cancel_replace, True, 0),
            "openOrders.status": (self._open_orders, True, 6),
            "openOrders.cancelAll": (self._cancel_all, True, 1),
            "allOrders": (self._all_orders, True, 20),
            "account.status": (self._account, True, 20),
            "myTrades": (self._my_trades, True, 20),
            "account.rateLimits.orders": (self._order_counts, True, 40),
        }
        return rest, ws

    def _ping(self, params: _Params, account: Account) -> object:
        return {}

    def _nothing(self, params: _Params, account: Account) -> object:
        return []

    def _no_symbols(self, params: _Params, account: Account) -> object:
        return {"symbols": []}

    def _time(self, params: _Params, account: Account) -> object:
        return {"serverTime": self._wall_ms}

    def _symbol(self, params: _Params) -> _Symbol:
        return self._named(params.need("symbol"))

    def _named(self, name: str) -> _Symbol:
        if not _SYMBOL.match(name):
            raise ApiError(
                -1100, r"Illegal characters found in parameter 'symbol'; legal range is '^[\w\-._&&[^a-z]]{1,50}$'."
            )
        symbol = self.symbols.get(name)
        if symbol is None:
            raise ApiError(-1121, "Invalid symbol.")
        return symbol

    def _exchange_info(self, params: _Params, account: Account) -> object:
        names = params.names("symbols")
        if names is not None and params.get("symbol") is not None:
            raise ApiError(-1128, "Combination of optional parameters invalid. Use symbol or symbols, not both.")
        if names is None:
            names = [params.need("symbol")] if params.get("symbol") is not None else list(self.symbols)
        if len(set(names)) != len(names):
            raise ApiError(-1151, "Symbol is present multiple times in the list.")
        return {
            "timezone": "UTC",
            "serverTime": self._wall_ms,
            "rateLimits": [
                {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
                {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": self.orders_per_10s},
                {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 300_000},
            ],
            "exchangeFilters": [],
            "symbols": [_symbol_info(self._named(name)) for name in names],
        }

    def _depth(self, params: _Params, account: Account) -> object:
        symbol = self._symbol(params)
        limit = params.limit(100, DEPTH_LIMIT)
        self._charge(5 if limit <= 100 else 25 if limit <= 500 else 50 if limit <= 1000 else 250)
        recorded = self.snapshots.pop(symbol.name, None)
        if recorded is not None:
            return recorded
        sequence, bids, asks = self.exchange.snapshot(symbol.instrument.id, limit)
        return {
            "lastUpdateId": int(sequence),
            "bids": [[symbol.px(int(px)), symbol.qty(int(qty))] for px, qty in bids[:limit]],
            "asks": [[symbol.px(int(px)), symbol.qty(int(qty))] for px, qty in asks[:limit]],
        }

    def _book_ticker(self, params: _Params, account: Account) -> object:
        symbol = self._symbol(params)
        _, bids, asks = self.exchange.snapshot(symbol.instrument.id, 1)
        bid, ask = (tuple(map(int, side[0])) if len(side) else (0, 0) for side in (bids, asks))
        return {
            "symbol": symbol.name,
            "bidPrice": symbol.px(bid[0]),
            "bidQty": symbol.qty(bid[1]),
            "askPrice": symbol.px(ask[0]),
            "askQty": symbol.qty(ask[1]),
        }

    def _coins(self, params: _Params, account: Account) -> object:
        return [
            {
                "coin": name,
                "name": name,
                "free": _e8(account.free[name] // E8),
                "locked": _e8(account.locked[name] // E8),
                "trading": True,
                "depositAllEnable": False,
                "withdrawAllEnable": False,
                "isLegalMoney": False,
                "networkList": [],
            }
            for name in account.free
        ]

    def _account(self, params: _Params, account: Account) -> object:
        balances = account.balances()
        if params.get("omitZeroBalances") == "true":
            balances = [b for b in balances if account.free[b["asset"]] or account.locked[b["asset"]]]
        maker, taker = _e8(self.maker_fee_e8), _e8(self.taker_fee_e8)
        return {
            "makerCommission": self.maker_fee_e8 // 10_000,
            "takerCommission": self.taker_fee_e8 // 10_000,
            "buyerCommission": 0,
            "sellerCommission": 0,
            "commissionRates": {"maker": maker, "taker": taker, "buyer": "0.00000000", "seller": "0.00000000"},
            "canTrade": True,
            "canWithdraw": False,
            "canDeposit": False,
            "brokered": False,
            "requireSelfTradePrevention": False,
            "preventSor": False,
            "updateTime": account.updated_ms,
            "accountType": "SPOT",
            "balances": balances,
            "permissions": ["SPOT"],
            "uid": 1 + list(self.accounts).index(account.api_key),
        }

    def _my_trades(self, params: _Params, account: Account) -> object:
        name = self._symbol(params).name
        limit = params.limit(500, 1000)
        order_id = params.whole("orderId") if params.get("orderId") is not None else None
        first = params.whole("fromId") if params.get("fromId") is not None else None
        found = [
            trade
            for trade in account.trades
            if trade["symbol"] == name
            and (order_id is None or trade["orderId"] == order_id)
            and (first is None or int(str(trade["id"])) >= first)
        ]
        return found[:limit] if first is not None else found[-limit:]

    def _order_counts(self, params: _Params, account: Account) -> object:
        self._order_window(account)
        return [
            {
                "rateLimitType": "ORDERS",
                "interval": "SECOND",
                "intervalNum": 10,
                "limit": self.orders_per_10s,
                "count": account.order_count,
            }
        ]

    # ---- orders

    def _order_place(self, params: _Params, account: Account) -> object:
        fault = self._order_fault()
        order = self._new_order(params, account, self._symbol(params))
        if fault is not None and not fault[1]:
            raise fault[0]
        self._submit(order)
        if fault is not None:
            raise fault[0]
        if order.rejected is not None:
            raise order.rejected
        return self._placed(order, params.get("newOrderRespType"))

    def _order_test(self, params: _Params, account: Account) -> object:
        self._new_order(params, account, self._symbol(params))
        return {}

    def _order_fault(self) -> tuple[ApiError, bool] | None:
        """Return the error that a test has asked for and whether the request shall be carried out all the same."""
        return self.order_errors.popleft() if self.order_errors else None

    def fail_orders(self, code: int, msg: str, n: int = 1, carried_out: bool = False) -> None:
        """Let the next `n` order requests answer `code`; with `carried_out` they take effect all the same."""
        status = {-1007: 504, -1003: 429, -1015: 429}.get(code, 500 if code in _UNKNOWN_OUTCOME else 400)
        self.order_errors.extend([(ApiError(code, msg, status), carried_out)] * n)

    def _new_order(self, params: _Params, account: Account, symbol: _Symbol) -> VenueOrder:
        """Return the order that `params` describes, checked as the venue checks it before its matching engine."""
        side, order_type = params.need("side"), params.need("type")
        if side not in _SIDE_FLAG:
            raise ApiError(-1117, "Invalid side.")
        if order_type not in _ORDER_TYPES:
            raise _illegal_type(order_type)
        for name in _REFUSED_PARAMS:
            if params.get(name) is not None:
                raise ApiError(-1106, f"Parameter '{name}' sent when not required.")
        if params.get("selfTradePreventionMode") not in (None, _STP):
            raise ApiError(-1130, "Data sent for parameter 'selfTradePreventionMode' is not valid.")
        if params.get("newOrderRespType") not in (None, "ACK", "RESULT", "FULL"):
            raise ApiError(-1130, "Data sent for parameter 'newOrderRespType' is not valid.")
        tif = self._tif(params, order_type)
        px = _on_grid(symbol, params.e8("price"), "price") if order_type != "MARKET" else 0
        if order_type == "MARKET" and params.get("price") is not None:
            raise ApiError(-1106, "Parameter 'price' sent when not required.")
        quote_order_qty = "0.00000000"
        if params.get("quoteOrderQty") is not None:
            if order_type != "MARKET" or params.get("quantity") is not None:
                raise ApiError(-1106, "Parameter 'quoteOrderQty' sent when not required.")
            wanted_e8 = params.e8("quoteOrderQty")
            quote_order_qty = _e8(wanted_e8)
            qty = self._lots_for(symbol, side, wanted_e8 * E8)
        else:
            qty = _on_grid(symbol, params.e8("quantity"), "quantity")
        _check_filters(symbol.instrument, px or self._market_px(symbol, side), qty)
        client_id = params.client_id("newClientOrderId") or self._auto_id()
        now_ms = self._now_ns // 1_000_000
        return VenueOrder(
            account, symbol, 0, client_id, side, order_type, tif, px, qty, quote_order_qty, now_ms, now_ms
        )

    @staticmethod
    def _tif(params: _Params, order_type: str) -> str:
        if order_type == "LIMIT":
            tif = params.need("timeInForce")
            if tif not in _TIFS:
                raise ApiError(-1115, "Invalid timeInForce.")
            return tif
        if params.get("timeInForce") is not None:
            raise ApiError(-1106, "Parameter 'timeInForce' sent when not required.")
        return "GTC"

    def _market_px(self, symbol: _Symbol, side: str) -> int:
        """Return the best opposite price, ticks, or 0 on an empty side: what a market order is measured by."""
        _, bids, asks = self.exchange.snapshot(symbol.instrument.id, 1)
        best = asks if side == "BUY" else bids
        return int(best[0][0]) if len(best) else 0

    def _book(self, symbol: _Symbol, side: str) -> list[tuple[int, int]]:
        """Return what a taker of `side` may meet, best first: the other side less our own clients' orders.

        The exchange lets no own order trade with another (the resting one expires), so their lots cannot be bought.
        """
        _, bids, asks = self.exchange.snapshot(symbol.instrument.id, DEPTH_LIMIT)
        own: dict[int, int] = {}
        for account in self.accounts.values():
            for order in account.open_by_client.values():
                if order.symbol is symbol and order.side != side:
                    own[order.px] = own.get(order.px, 0) + order.qty - order.cum
        levels = ((int(px), int(qty)) for px, qty in (asks if side == "BUY" else bids))
        return [(px, qty - own.get(px, 0)) for px, qty in levels if qty > own.get(px, 0)]

    def _lots_for(self, symbol: _Symbol, side: str, money: int) -> int:
        """Return the lots that `money` of the quote asset (1e-16) buys or that sell for it, by the displayed book."""
        lots = 0
        for px, qty in self._book(symbol, side):
            part = min(qty, money // symbol.quote_money(px))
            lots += part
            money -= symbol.quote_money(px * part)
            if part < qty:
                break
        if lots < symbol.instrument.min_qty:
            raise ApiError(-2010, "Order book liquidity is less than LOT_SIZE filter minimum quantity.")
        return lots

    def _market_cost(self, order: VenueOrder) -> int:
        """Return what a market buy costs on the displayed book, ticks x lots."""
        cost, left = 0, order.qty
        for px, qty in self._book(order.symbol, order.side):
            part = min(qty, left)
            cost += px * part
            left -= part
            if left == 0:
                break
        return cost

    def _auto_id(self) -> str:
        self._next_auto_id += 1
        return f"venue-{self._next_auto_id:016d}"

    def _order_window(self, account: Account) -> None:
        window = self._wall_ms // ORDER_RATE_WINDOW_MS
        if account.order_window != window:
            account.order_window, account.order_count = window, 0

    def _admit(self, order: VenueOrder) -> None:
        """Check order rate, client id and balance; lock what the order needs.

        Raises
        ------
        ApiError
            -1015 or -2010; nothing is locked.
        """
        account, symbol = order.account, order.symbol
        self._order_window(account)
        if account.order_count >= self.orders_per_10s:
            raise ApiError(
                -1015, f"Too many new orders; current limit is {self.orders_per_10s} orders per 10 SECOND.", 429
            )
        account.order_count += 1
        if order.client_id in account.open_by_client:
            raise ApiError(-2010, "Duplicate order sent.")
        notional = order.px * order.qty if order.px else self._market_cost(order)
        worst_e8 = max(self.maker_fee_e8, self.taker_fee_e8, 0)
        money = symbol.quote_money(notional)
        # each partial fill rounds its fee to 1e-8 on its own: a thousand of them are provided for
        fee = (money * worst_e8 // E8 + E8 * min(order.qty, 1000)) if worst_e8 else 0
        instrument = symbol.instrument
        if order.side == "BUY":
            account.lock(instrument.quote, money, instrument.quote, fee)
            order.locked, order.fee_hold = money, fee
        else:  # a seller's fee comes out of the proceeds
            account.lock(instrument.base, symbol.base_money(order.qty), instrument.quote, 0)
            order.locked = symbol.base_money(order.qty)

    def _submit(self, order: VenueOrder) -> None:
        self._admit(order)
        order.order_id = self._next_order
        self._next_order += 1
        self._orders[order.order_id] = order
        order.account.open_by_client[order.client_id] = order
        order.account.by_client[order.client_id] = order
        self.counts["orders"] += 1
        self._absorb(self.exchange.send(_submit_rows(order), self._now_ns))

    def _cancel(self, order: VenueOrder, cancel_id: str) -> dict[str, object]:
        order.cancel_id = cancel_id
        rows = np.zeros(1, ROW)
        row = rows[0]
        row["kind"], row["instrument"] = Kind.CANCEL, order.symbol.instrument.id
        row["a"], row["ts_event"], row["ts_recv"] = order.order_id, self._now_ns, self._now_ns
        self._absorb(self.exchange.send(rows, self._now_ns))
        if order.status != "CANCELED":
            raise ApiError(-2011, "Unknown order sent.")
        return {
            "symbol": order.symbol.name,
            "origClientOrderId": order.client_id,
            "orderId": order.order_id,
            "orderListId": -1,
            "clientOrderId": cancel_id,
            "transactTime": order.updated_ms,
            **_order_state(order),
            "selfTradePreventionMode": _STP,
        }

    def _find(self, params: _Params, account: Account, symbol: _Symbol, prefix: str = "") -> VenueOrder | None:
        """Return the order named by orderId or origClientOrderId (or their ``cancel...`` forms)."""
        by_id = f"{prefix}OrderId" if prefix else "orderId"
        by_client = f"{prefix}OrigClientOrderId" if prefix else "origClientOrderId"
        client_id = params.get(by_client)
        if params.get(by_id) is not None:
            order = self._orders.get(params.whole(by_id))
        elif client_id is not None:
            order = account.open_by_client.get(client_id) or account.by_client.get(client_id)
        else:
            raise ApiError(-1102, f"Param '{by_client}' or '{by_id}' must be sent, but both were empty/null!")
        if order is None or order.account is not account or order.symbol is not symbol or order.status == "REJECTED":
            return None
        return None if client_id is not None and order.client_id != client_id else order

    def _order_status(self, params: _Params, account: Account) -> object:
        order = self._find(params, account, self._symbol(params))
        if order is None:
            raise ApiError(-2013, "Order does not exist.")
        return _order_view(order)

    def _order_cancel(self, params: _Params, account: Account) -> object:
        fault = self._order_fault()
        symbol = self._symbol(params)
        cancel_id = params.client_id("newClientOrderId") or self._auto_id()
        order = self._find(params, account, symbol)
        if fault is not None and not fault[1]:
            raise fault[0]
        if order is None or not order.open:
            raise ApiError(-2011, "Unknown order sent.")
        _check_restriction(order, params.get("cancelRestrictions"))
        canceled = self._cancel(order, cancel_id)
        if fault is not None:
            raise fault[0]
        return canceled

    def _cancel_all(self, params: _Params, account: Account) -> object:
        symbol = self._symbol(params)
        orders = [order for order in account.open_by_client.values() if order.symbol is symbol]
        if not orders:
            raise ApiError(-2011, "Unknown order sent.")
        cancel_id = self._auto_id()
        return [self._cancel(order, cancel_id) for order in orders]

    def _cancel_replace(self, params: _Params, account: Account) -> object:
        fault = self._order_fault()
        symbol = self._symbol(params)
        mode = params.need("cancelReplaceMode")
        if mode not in ("STOP_ON_FAILURE", "ALLOW_FAILURE"):
            raise ApiError(-1130, "Data sent for parameter 'cancelReplaceMode' is not valid.")
        new = self._new_order(params, account, symbol)
        cancel_id = params.client_id("cancelNewClientOrderId") or self._auto_id()
        old = self._find(params, account, symbol, "cancel")
        if fault is not None and not fault[1]:
            raise fault[0]
        canceled, cancel_error = self._try(lambda: self._replace_cancel(old, cancel_id, params))
        if cancel_error is not None and mode == "STOP_ON_FAILURE":
            data = {
                "cancelResult": "FAILURE",
                "newOrderResult": "NOT_ATTEMPTED",
                "cancelResponse": cancel_error.body(),
                "newOrderResponse": None,
            }
            raise ApiError(-2022, "Order cancel-replace failed.", 400, data)
        placed, place_error = self._try(lambda: self._replace_place(new, params))
        if fault is not None:
            raise fault[0]
        data = {
            "cancelResult": "FAILURE" if cancel_error else "SUCCESS",
            "newOrderResult": "FAILURE" if place_error else "SUCCESS",
            "cancelResponse": cancel_error.body() if cancel_error else canceled,
            "newOrderResponse": place_error.body() if place_error else placed,
        }
        if cancel_error and place_error:
            raise ApiError(-2022, "Order cancel-replace failed.", 400, data)
        if cancel_error or place_error:
            raise ApiError(-2021, "Order cancel-replace partially failed.", 409, data)
        return data

    @staticmethod
    def _try(step: Callable[[], dict[str, object]]) -> tuple[dict[str, object] | None, ApiError | None]:
        try:
            return step(), None
        except ApiError as error:
            return None, error

    def _replace_cancel(self, old: VenueOrder | None, cancel_id: str, params: _Params) -> dict[str, object]:
        if old is None or not old.open:
            raise ApiError(-2011, "Unknown order sent.")
        _check_restriction(old, params.get("cancelRestrictions"))
        return self._cancel(old, cancel_id)

    def _replace_place(self, new: VenueOrder, params: _Params) -> dict[str, object]:
        self._submit(new)
        if new.rejected is not None:
            # the one case in which the venue reports a refused order as an event: its cancel has already happened
            self._execution_event(new, "REJECTED", new.updated_ms, reason="NONE")
            raise new.rejected
        return self._placed(new, params.get("newOrderRespType"))

    def _open_orders(self, params: _Params, account: Account) -> object:
        symbol = self._symbol(params) if params.get("symbol") is not None else None
        return [_order_view(o) for o in account.open_by_client.values() if symbol is None or o.symbol is symbol]

    def _all_orders(self, params: _Params, account: Account) -> object:
        symbol = self._symbol(params)
        limit = params.limit(500, 1000)
        first = params.whole("orderId") if params.get("orderId") is not None else 0
        found = [
            _order_view(o)
            for o in self._orders.values()
            if o.account is account and o.symbol is symbol and o.order_id >= first and o.status != "REJECTED"
        ]
        return found[:limit] if first else found[-limit:]

    @staticmethod
    def _placed(order: VenueOrder, resp_type: str | None) -> dict[str, object]:
        kind = resp_type or "FULL"  # the venue's default for LIMIT, LIMIT_MAKER and MARKET
        head: dict[str, object] = {
            "symbol": order.symbol.name,
            "orderId": order.order_id,
            "orderListId": -1,
            "clientOrderId": order.client_id,
            "transactTime": order.updated_ms,
        }
        if kind == "ACK":
            return head
        result = {**head, **_order_state(order), "workingTime": order.created_ms, "selfTradePreventionMode": _STP}
        return {**result, "fills": order.fills} if kind == "FULL" else result


_NOBODY = Account("", "", {})
"""Stands for the caller of a public operation."""


def _ws_text(value: object) -> str:
    """Return a JSON value as the text that the signature covers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return str(value)


def _on_grid(symbol: _Symbol, value_e8: int, name: str) -> int:
    step_e8, filter_name = (symbol.tick_e8, "PRICE_FILTER") if name == "price" else (symbol.lot_e8, "LOT_SIZE")
    count, rest = divmod(value_e8, step_e8)
    if rest or count <= 0 or count > INT64_MAX:
        raise ApiError(-1013, f"Filter failure: {filter_name}")
    return count


def _check_filters(instrument: Instrument, px: int, qty: int) -> None:
    if px < instrument.min_px or (instrument.max_px and px > instrument.max_px):
        raise ApiError(-1013, "Filter failure: PRICE_FILTER")
    if not instrument.min_qty <= qty <= instrument.max_qty:
        raise ApiError(-1013, "Filter failure: LOT_SIZE")
    if px and px * qty < instrument.min_notional:
        raise ApiError(-1013, "Filter failure: NOTIONAL")
    if px * qty > INT64_MAX:
        raise ApiError(-1013, "Filter failure: NOTIONAL")


def _check_restriction(order: VenueOrder, restriction: str | None) -> None:
    if restriction not in (None, "ONLY_NEW", "ONLY_PARTIALLY_FILLED"):
        raise ApiError(-1145, "Invalid cancelRestrictions")
    if restriction is not None and order.status != restriction.removeprefix("ONLY_"):
        raise ApiError(-2011, "Order was not canceled due to cancel restrictions.")


def _submit_rows(order: VenueOrder) -> RowArray:
    """Return the SUBMIT row of `order`, with its payload row when it is a market order."""
    market = order.type == "MARKET"
    rows = np.zeros(2 if market else 1, ROW)
    row = rows[0]
    row["kind"], row["span"] = Kind.SUBMIT, int(market)
    row["instrument"], row["a"] = order.symbol.instrument.id, order.order_id
    row["flags"] = _SIDE_FLAG[order.side] | (int(Flag.POST_ONLY) if order.type == "LIMIT_MAKER" else 0)
    row["code"] = Tif.IOC if market else _TIFS[order.tif]
    row["px"], row["qty"] = order.px, order.qty
    if market:
        payload = rows[1:].view(ORDER_PAYLOAD)
        payload["kind"], payload["span"] = Kind.CONT, 1
        payload["ord_type"] = OrdType.MARKET
    return rows


def _order_state(order: VenueOrder) -> dict[str, object]:
    symbol = order.symbol
    return {
        "price": symbol.px(order.px),
        "origQty": symbol.qty(order.qty),
        "executedQty": symbol.qty(order.cum),
        "origQuoteOrderQty": order.quote_order_qty,
        "cummulativeQuoteQty": symbol.quote(order.cum_quote),
        "status": order.status,
        "timeInForce": order.tif,
        "type": order.type,
        "side": order.side,
    }


def _order_view(order: VenueOrder) -> dict[str, object]:
    return {
        "symbol": order.symbol.name,
        "orderId": order.order_id,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        **_order_state(order),
        "stopPrice": "0.00000000",
        "icebergQty": "0.00000000",
        "time": order.created_ms,
        "updateTime": order.updated_ms,
        "isWorking": order.open,
        "workingTime": order.created_ms,
        "selfTradePreventionMode": _STP,
    }


def _symbol_info(symbol: _Symbol) -> dict[str, object]:
    instrument = symbol.instrument
    return {
        "symbol": symbol.name,
        "status": "TRADING",
        "baseAsset": instrument.base,
        "baseAssetPrecision": 8,
        "quoteAsset": instrument.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": _ORDER_TYPES,
        "icebergAllowed": False,
        "ocoAllowed": False,
        "otoAllowed": False,
        "opoAllowed": False,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": True,
        "amendAllowed": False,
        "pegInstructionsAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": symbol.px(instrument.min_px),  # 0 disables a bound, by the venue's own rule
                "maxPrice": symbol.px(instrument.max_px),
                "tickSize": symbol.px(1),
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": symbol.qty(instrument.min_qty),
                "maxQty": symbol.qty(instrument.max_qty),
                "stepSize": symbol.qty(1),
            },
            {
                "filterType": "NOTIONAL",
                "minNotional": symbol.quote(instrument.min_notional),
                "applyMinToMarket": True,
                "maxNotional": symbol.quote(INT64_MAX),
                "applyMaxToMarket": True,
                "avgPriceMins": 0,
            },
            {"filterType": "PERCENT_PRICE", "multiplierUp": "5", "multiplierDown": "0.2", "avgPriceMins": 0},
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": MAX_OPEN_ORDERS},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": _STP,
        "allowedSelfTradePreventionModes": [_STP],
    }


def make_face(
    exchange: Exchange,
    instruments: Sequence[Instrument],
    *,
    accounts: Iterable[AccountKey],
    maker_fee_e8: int,
    taker_fee_e8: int,
    orders_per_10s: int,
) -> BinanceServer:
    """Return the venue's face over `exchange`; see `hftlab.venues.face.ServerModule`."""
    return BinanceServer(
        exchange,
        instruments,
        accounts=accounts,
        maker_fee_e8=maker_fee_e8,
        taker_fee_e8=taker_fee_e8,
        orders_per_10s=orders_per_10s,
    )
