"""Kraken's face on the simulated exchange: WebSocket v2 and the REST it needs, no socket and no clock.

The model. An exchange (`hftlab.sim.exchange`) speaks rows; this module is everything between those rows and the venue's
protocol: pairs, accounts with balances and holds, signed REST requests, tokens, subscriptions, orders. Venue time (ns)
stamps every event; wall time (ms) is what a client's token ages by.

Books. A subscription has a depth, so what its client holds is the best `depth` levels of each side. For each pair and
depth in use one *view* remembers what its clients hold; when the market has moved, the view is compared with the
exchange: a level that changed is sent, one that is gone is sent with quantity 0, and one that fell out of the depth is
not sent, since the client cuts it off itself. Every message carries the CRC32 of the ten best levels, computed here
from the text that was written, not by the decoder's tables.

A client that subscribes gets a snapshot of the view, and then only what was published after it: items are numbered.

Money is integers: 1e-16 of an asset, of which tick times lot is a whole number. A buy holds price, quantity and its
worst fee; a sell its quantity. Fees are in the quote currency.

What is not the venue: an amended order goes to the back of its queue; self-trade prevention is the exchange's own (the
resting order goes); triggers, iceberg orders, GTD, conditional closes, batches, the dead man's switch and the level3
channel are refused; rate counters are one limit on new orders in ten seconds; the ticker's day figures are 0. The
figures of a pair (decimals) are the simulated instrument's, coarser in quantity than the venue's eight decimals.

Bounds: of orders that are done the last `HISTORY` are remembered.

References
----------
Kraken: WebSocket v2 (book, trade, ticker, instrument, executions, balances, add_order, amend_order, cancel_order,
cancel_all, ping), REST AssetPairs, Assets, Depth, Time, SystemStatus, BalanceEx, GetWebSocketsToken; guides "Book
checksum (WebSocket v2)", "Spot REST authentication".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import numpy as np

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import ConfigError, OffGridError, RemoteError
from hftlab.core.instruments import INT64_MAX, Instrument, decimal_to_units
from hftlab.core.rows import ORDER_PAYLOAD, REPORT_PAYLOAD, ROW, ExecType, Flag, Kind, OrdType, RowArray, Tif
from hftlab.venues.face import AccountKey, Answer, Exchange
from hftlab.venues.kraken.orders import sign
from hftlab.venues.kraken.spec import DEPTHS, TOKEN_LIFE_S, time_text, v1_name

__all__ = [
    "Account",
    "DEFAULT_ACCOUNT",
    "DEFAULT_INSTRUMENTS",
    "HISTORY",
    "Item",
    "KrakenPeer",
    "KrakenServer",
    "Refusal",
    "VenueOrder",
    "make_face",
]

E16 = 10**16
HISTORY = 20_000
PUBLIC_PATH, PRIVATE_PATH = "/v2", "/auth/v2"
_TRADES_KEPT = 50
_EVENT = "executions"

DEFAULT_INSTRUMENTS = {
    "BTC/USD": Instrument(
        0, "kraken", "BTC/USD", Decimal("0.01"), Decimal("0.00001"), "BTC", "USD",
        min_qty=5, max_qty=100_000_000, min_px=1, min_notional=5_000_000,
    ),
    "ETH/USD": Instrument(
        0, "kraken", "ETH/USD", Decimal("0.01"), Decimal("0.0001"), "ETH", "USD",
        min_qty=10, max_qty=100_000_000, min_px=1, min_notional=500_000,
    ),
}  # fmt: skip
"""What can be listed, with the least notional (0.5 USD) that the venue publishes. Its own bitcoin has a tick of 0.1 and
lots of 0.00000001; the flow counts in ticks and lots, and these put its price near a real one."""

DEFAULT_ACCOUNT: AccountKey = (
    "hftlab-sim-key",
    base64.b64encode(b"hftlab-sim-secret").decode(),
    {"BTC": Decimal(10), "USD": Decimal(1_000_000)},
)
"""Key, secret (base64, as the venue hands it out) and balances of the account unless told otherwise."""

_BID, _ASK, _MAKER = int(Flag.BID), int(Flag.ASK), int(Flag.MAKER)
_FLAG = {"buy": _BID, "sell": _ASK}
_NAME = {_BID: "buy", _ASK: "sell"}
_TIFS = {"gtc": Tif.GTC, "ioc": Tif.IOC}
_WOULD_CROSS = b"would match now"
_REFUSED = {
    b"LOT_SIZE": "EOrder:Order minimum not met",
    b"NOTIONAL": "EOrder:Cost minimum not met",
    b"PRICE_FILTER": "EOrder:Invalid price",
    b"PERCENT_PRICE": "EOrder:Invalid price",
    b"MAX_NUM_ORDERS": "EOrder:Orders limit exceeded",
}
_NOT_SUPPORTED = (
    "triggers", "conditional", "display_qty", "cash_order_qty", "expire_time", "validate", "effective_time",
)  # fmt: skip
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(float_hook=Decimal).decode  # of a client's numbers, none becomes a float


class Refusal(RemoteError):
    """The client's request cannot be served; becomes the venue's ``error`` text."""


class Item(NamedTuple):
    """One thing to be published: its number, channel, pair, depth (books), and the message or an account's events."""

    number: int
    channel: str
    symbol: str
    depth: int
    payload: bytes
    account: Account | None = None


class _View:
    """What the clients of one pair and depth hold: price to quantity of each side, in ticks and lots."""

    __slots__ = ("asks", "bids", "depth")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}


class _Pair:
    """One instrument with its texts, its views and what its feed has said so far."""

    __slots__ = (
        "best", "instrument", "last", "money_unit", "name", "px", "qty", "qty_e16", "touched", "trades", "views",
    )  # fmt: skip

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.name = instrument.symbol
        self.px, self.qty = DecimalGrid.of_px(instrument), DecimalGrid.of_qty(instrument)
        self.money_unit = decimal_to_units(
            instrument.tick_size * instrument.lot_size, Decimal(1).scaleb(-16), f"{self.name}: tick times lot"
        )
        self.qty_e16 = decimal_to_units(instrument.lot_size, Decimal(1).scaleb(-16), f"{self.name}: lot")
        self.views: dict[int, _View] = {}
        self.touched = False
        self.best = {_BID: (0, 0), _ASK: (0, 0)}
        self.last = 0
        self.trades: deque[bytes] = deque(maxlen=_TRADES_KEPT)

    def level(self, px: int, qty: int) -> str:
        return f'{{"price":{self.px.text(px)},"qty":{self.qty.text(qty)}}}'

    def checksum(self, bids: Sequence[tuple[int, int]], asks: Sequence[tuple[int, int]]) -> int:
        """CRC32 of the ten best asks and bids, best first: their texts without point and leading zeros."""
        text = "".join(
            self.px.text(int(px)).replace(".", "").lstrip("0") + self.qty.text(int(qty)).replace(".", "").lstrip("0")
            for px, qty in [*asks[:10], *bids[:10]]
        )
        return zlib.crc32(text.encode())


@dataclass(slots=True)
class VenueOrder:
    """One order as the venue knows it. Prices in ticks, quantities in lots, money in 1e-16 of its asset."""

    account: Account
    pair: _Pair
    number: int  # the exchange's; changes when the order is amended
    id: str
    cl_ord_id: str
    userref: int
    side: str
    type: str
    tif: str
    post_only: bool
    px: int
    qty: int
    created_ns: int
    status: str = "pending_new"
    cum: int = 0
    cost: int = 0  # ticks x lots
    fees: int = 0
    held: int = 0
    refused: bytes = b""

    @property
    def open(self) -> bool:
        """Whether the order may still trade."""
        return self.status in ("pending_new", "new", "partially_filled")

    @property
    def asset(self) -> str:
        """What it holds."""
        return self.pair.instrument.quote if self.side == "buy" else self.pair.instrument.base


class Account:
    """An API key with its secret and its balances.

    Raises
    ------
    ConfigError
        If the secret is no base64, or a balance is negative or finer than 1e-16.
    """

    def __init__(self, api_key: str, secret: str, balances: Mapping[str, Decimal]) -> None:
        self.api_key, self.secret = api_key, secret
        sign(secret, "", "", "")
        self.nonce = -1
        self.balance: dict[str, int] = {}
        self.held: dict[str, int] = {}
        for asset, amount in balances.items():
            with localcontext() as context:
                context.prec = 60
                units = amount * E16  # beyond int64: balances are Python's integers
            if amount < 0 or units != units.to_integral_value():
                raise ConfigError(f"balance of {asset} is {amount}; expected 0 or more with at most 16 decimals")
            self.balance[asset], self.held[asset] = int(units), 0
        self.by_client: dict[str, VenueOrder] = {}
        self.order_times: deque[int] = deque()

    def know(self, asset: str) -> None:
        """Open a zero balance of `asset` if there is none."""
        self.balance.setdefault(asset, 0)
        self.held.setdefault(asset, 0)


class KrakenPeer:
    """One WebSocket client: its subscriptions, with the number of the last item they do not get any more."""

    def __init__(self, server: KrakenServer, *, private: bool) -> None:
        self.private = private
        self.since: dict[tuple[str, str], int] = {}
        self.depths: dict[str, int] = {}
        self.triggers: dict[str, str] = {}
        self.account: Account | None = None
        self._server = server
        self._sequences: dict[str, int] = {}
        self._greeted = False

    @property
    def scope(self) -> str:
        """Return ``user`` for a client of the private path."""
        return "user" if self.private else "market"

    @property
    def ready(self) -> bool:
        """Return whether the client has subscribed to a channel."""
        return bool(self.since)

    def receive(self, text: str | bytes, wall_ms: int) -> list[bytes]:
        """Return the answers to one message, snapshots after acknowledgements."""
        return self._greeting() + self._server.on_message(self, text, wall_ms)

    def render(self, item: object) -> list[bytes]:
        """Return the message if this client has subscribed to it, and since before it was made."""
        if not isinstance(item, Item):
            return []
        since = self.since.get((item.channel, item.symbol))
        if since is None or item.number <= since:
            return []
        if item.account is not None and item.account is not self.account:
            return []
        if item.channel == "book" and self.depths[item.symbol] != item.depth:
            return []
        if item.channel == "ticker" and self.triggers[item.symbol] != ("trades" if item.depth else "bbo"):
            return []
        if item.account is None:
            return [item.payload]
        return [self.numbered(item.channel, "update", item.payload)]

    def numbered(self, channel: str, kind: str, data: bytes) -> bytes:
        """Return a message of a private channel; they are numbered for each client and channel."""
        sequence = self._sequences[channel] = self._sequences.get(channel, 0) + 1
        return b'{"channel":"%s","type":"%s","data":[%s],"sequence":%d}' % (
            channel.encode(), kind.encode(), data, sequence,
        )  # fmt: skip

    def poll(self, wall_ms: int) -> list[bytes]:
        """Return a heartbeat, if there is a subscription."""
        return self._greeting() + ([b'{"channel":"heartbeat"}'] if self.since else [])

    def _greeting(self) -> list[bytes]:
        if self._greeted:
            return []
        self._greeted = True
        return [
            b'{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"online","api_version":"v2",'
            b'"connection_id":%d}]}' % (id(self) & 0xFFFFFFFFFFFF)
        ]


class KrakenServer:
    """The venue: REST requests answered, WebSocket clients served.

    Parameters
    ----------
    exchange : Exchange
        A `MatchingExchange`; this object owns its ``cl_ord_id`` numbering.
    instruments : sequence of Instrument
        What is listed.
    accounts : sequence of (api key, secret, balances)
        Who may trade.
    maker_fee_e8, taker_fee_e8 : int
        The exchange's fees, 1e-8 of notional, to set the worst aside.
    orders_per_10s : int
        New orders an account may send in ten seconds of wall time.

    Attributes
    ----------
    routes : mapping of path to scope
        Where WebSocket clients connect: the public path, for which the root stands as well, and the private one.
    counts : dict of str to int
        Requests, errors, orders, fills, cancels and messages so far.
    """

    routes: Mapping[str, str] = MappingProxyType({"/": "market", PUBLIC_PATH: "market", PRIVATE_PATH: "user"})

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
        self.pairs = {instrument.symbol: _Pair(instrument) for instrument in instruments}
        self.accounts = {key: Account(key, secret, balances) for key, secret, balances in accounts}
        for account in self.accounts.values():
            for instrument in instruments:
                account.know(instrument.base)
                account.know(instrument.quote)
        self.maker_fee_e8, self.taker_fee_e8 = maker_fee_e8, taker_fee_e8
        self.orders_per_10s = orders_per_10s
        self.counts = dict.fromkeys(("requests", "errors", "orders", "fills", "cancels", "frames", "events"), 0)
        self.order_errors: deque[tuple[Refusal, bool]] = deque()
        self._by_instrument = {pair.instrument.id: pair for pair in self.pairs.values()}
        for pair in self.pairs.values():
            _, bids, asks = exchange.snapshot(pair.instrument.id, 1)
            for flag, side in ((_BID, bids), (_ASK, asks)):
                if len(side):
                    pair.best[flag] = (int(side[0][0]), int(side[0][1]))
        self._peers: weakref.WeakSet[KrakenPeer] = weakref.WeakSet()
        self._tokens: dict[str, tuple[Account, int]] = {}
        self._orders: dict[int, VenueOrder] = {}
        self._by_id: dict[str, VenueOrder] = {}
        self._done: deque[VenueOrder] = deque()
        self._out: list[Item] = []
        self._last_item = 0
        self._now_ns = self._wall_ms = 0
        self._numbers = itertools.count(1)
        self._methods: dict[str, Callable[[KrakenPeer, Mapping[str, Any]], object]] = {
            "add_order": self._add_order,
            "amend_order": self._amend_order,
            "cancel_order": self._cancel_order,
            "cancel_all": self._cancel_all,
        }

    # ---- time and market rows

    def peer(self, path: str, query: str) -> KrakenPeer:
        """Return a new client of the public or the private path."""
        peer = KrakenPeer(self, private=path.rstrip("/") == PRIVATE_PATH)
        self._peers.add(peer)
        return peer

    def take(self) -> list[Item]:
        """Return the items made since the last call, in order."""
        out, self._out = self._out, []
        for item in out:
            self.counts["frames" if item.account is None else "events"] += 1
        return out

    def is_book(self, item: object) -> str:
        """Return pair and depth of a book update, "" for anything else."""
        if isinstance(item, Item) and item.channel == "book":
            return f"{item.symbol}@book{item.depth}"
        return ""

    def is_public(self, item: object) -> bool:
        """Return whether `item` is market data."""
        return isinstance(item, Item) and item.account is None

    def tick(self, venue_ns: int, rows: RowArray) -> None:
        """Move venue time to `venue_ns`; `rows` is what the exchange did until then."""
        self._absorb(rows)
        self._now_ns = max(self._now_ns, venue_ns)

    def _publish(
        self, channel: str, symbol: str, payload: bytes, depth: int = 0, account: Account | None = None
    ) -> None:
        self._last_item += 1
        self._out.append(Item(self._last_item, channel, symbol, depth, payload, account))

    def _wanted(self, channel: str, symbol: str) -> bool:
        return any((channel, symbol) in peer.since for peer in self._peers)

    def _absorb(self, rows: RowArray) -> None:
        columns = [rows[name].tolist() for name in ("kind", "instrument", "flags", "px", "qty", "a", "ts_event")]
        quoted: dict[str, _Pair] = {}
        for i, (kind, instrument, flags, px, qty, a, ts_event) in enumerate(zip(*columns, strict=True)):
            if kind == Kind.CONT:
                continue
            if kind == Kind.REPORT:
                self._report(rows[i], rows[i + 1 : i + 2].view(REPORT_PAYLOAD)[0])
                continue
            pair = self._by_instrument[instrument]
            self._now_ns = max(self._now_ns, ts_event)
            if kind == Kind.TRADE:
                self._trade(pair, flags, px, qty, a, ts_event)
            elif kind == Kind.LEVEL:
                pair.touched = True
            elif kind == Kind.QUOTE:
                pair.best[flags & (_BID | _ASK)] = (px, qty)
                quoted[pair.name] = pair
        for pair in self.pairs.values():
            if pair.touched:
                pair.touched = False
                held = {peer.depths.get(pair.name) for peer in self._peers}
                pair.views = {depth: view for depth, view in pair.views.items() if depth in held}
                for view in pair.views.values():
                    self._refresh(pair, view)
        for pair in quoted.values():
            if self._wanted("ticker", pair.name):
                self._publish("ticker", pair.name, self._ticker(pair, "update"))

    def _trade(self, pair: _Pair, flags: int, px: int, qty: int, trade_id: int, at_ns: int) -> None:
        pair.last = px
        data = (
            f'{{"symbol":"{pair.name}","side":"{_NAME[flags & (_BID | _ASK)]}","price":{pair.px.text(px)},'
            f'"qty":{pair.qty.text(qty)},"ord_type":"limit","trade_id":{trade_id},"timestamp":"{time_text(at_ns)}"}}'
        ).encode()
        pair.trades.append(data)
        self._publish("trade", pair.name, b'{"channel":"trade","type":"update","data":[%s]}' % data)
        if self._wanted("ticker", pair.name):
            self._publish("ticker", pair.name, self._ticker(pair, "update"), depth=1)

    def _ticker(self, pair: _Pair, kind: str) -> bytes:
        (bid, bid_qty), (ask, ask_qty) = pair.best[_BID], pair.best[_ASK]
        px, qty = pair.px.text, pair.qty.text
        return (
            f'{{"channel":"ticker","type":"{kind}","data":[{{"symbol":"{pair.name}","bid":{px(bid)},'
            f'"bid_qty":{qty(bid_qty)},"ask":{px(ask)},"ask_qty":{qty(ask_qty)},"last":{px(pair.last)},'
            f'"volume":0.0,"vwap":0.0,"low":0.0,"high":0.0,"change":0.0,"change_pct":0.0}}]}}'
        ).encode()

    # ---- books

    def _view(self, pair: _Pair, depth: int) -> _View:
        view = pair.views.get(depth)
        if view is None:
            view = pair.views[depth] = _View(depth)
            _, bids, asks = self.exchange.snapshot(pair.instrument.id, depth)
            view.bids = {int(px): int(qty) for px, qty in bids}
            view.asks = {int(px): int(qty) for px, qty in asks}
        return view

    def _refresh(self, pair: _Pair, view: _View) -> None:
        """Publish what the clients of `view` need to hold the exchange's book."""
        _, bids, asks = self.exchange.snapshot(pair.instrument.id, view.depth)
        told = []
        for old, side, direction in ((view.bids, bids, 1), (view.asks, asks, -1)):
            new = {int(px): int(qty) for px, qty in side}
            changes = [pair.level(px, 0) for px in old if px not in new and not _cut(px, new, view.depth, direction)]
            changes += [pair.level(px, qty) for px, qty in new.items() if old.get(px) != qty]
            told.append(",".join(changes))
            old.clear()
            old.update(new)
        if told != ["", ""]:
            payload = self._book(pair, "update", told, pair.checksum(bids, asks))
            self._publish("book", pair.name, payload, view.depth)

    def _book(self, pair: _Pair, kind: str, told: list[str], checksum: int) -> bytes:
        return (
            f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{pair.name}","bids":[{told[0]}],'
            f'"asks":[{told[1]}],"checksum":{checksum},"timestamp":"{time_text(self._now_ns)}"}}]}}'
        ).encode()

    # ---- WebSocket requests

    def on_message(self, peer: KrakenPeer, text: str | bytes, wall_ms: int) -> list[bytes]:
        """Return what one message of a client is answered with."""
        self._wall_ms = wall_ms
        self.counts["requests"] += 1
        try:
            request = _decode(text)
        except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
            request = None
        if not isinstance(request, dict):
            return [self._error("", "Malformed request", None)]
        method, req_id, params = str(request.get("method", "")), request.get("req_id"), request.get("params", {})
        if req_id is not None and (isinstance(req_id, bool) or not isinstance(req_id, int)):
            return [self._error(method, "Malformed request", None)]
        try:
            if not isinstance(params, dict):
                raise Refusal("Malformed request")
            if method == "ping":
                return [self._answer("pong", req_id, None)]
            if method in ("subscribe", "unsubscribe"):
                return self._subscription(peer, method, params, req_id)
            handler = self._methods.get(method)
            if handler is None:
                raise Refusal("Unsupported method")
            if not peer.private:
                raise Refusal("Private data and trading are unavailable on this endpoint")
            self._account_of(peer, params)
            return [self._answer(method, req_id, handler(peer, params))]
        except Refusal as refusal:
            return [self._error(method, str(refusal), req_id)]

    def _times(self) -> dict[str, str]:
        stamp = time_text(self._wall_ms * 1_000_000)
        return {"time_in": stamp, "time_out": stamp}

    def _answer(self, method: str, req_id: int | None, result: object) -> bytes:
        answer: dict[str, object] = {"method": method}
        if req_id is not None:
            answer["req_id"] = req_id
        if result is not None:
            answer |= {"result": result, "success": True}
        return _encode(answer | self._times())

    def _error(self, method: str, text: str, req_id: int | None, symbol: str = "") -> bytes:
        self.counts["errors"] += 1
        answer: dict[str, object] = {"error": text, "method": method, "success": False}
        if req_id is not None:
            answer["req_id"] = req_id
        if symbol:
            answer["symbol"] = symbol
        return _encode(answer | self._times())

    def _account_of(self, peer: KrakenPeer, params: Mapping[str, Any]) -> Account:
        account, made_ms = self._tokens.get(str(params.get("token")), (None, 0))
        if account is None:
            raise Refusal("EAuth:Invalid token" if "token" in params else "EGeneral:Invalid arguments:token")
        if peer.account is not account and self._wall_ms - made_ms > TOKEN_LIFE_S * 1000:
            raise Refusal("ESession:Invalid session")
        peer.account = account
        return account

    def _subscription(
        self, peer: KrakenPeer, method: str, params: Mapping[str, Any], req_id: int | None
    ) -> list[bytes]:
        channel = params.get("channel")
        if channel in (_EVENT, "balances"):
            return self._private_subscription(peer, method, channel, params, req_id)
        if channel == "instrument":
            answers = [self._answer(method, req_id, {"channel": channel, "snapshot": True})]
            if method == "subscribe":
                peer.since[channel, ""] = self._last_item
                answers.append(self._instruments())
            return answers
        if channel not in ("book", "trade", "ticker"):
            raise Refusal("Unsupported channel" if channel == "level3" else "Channel not found")
        symbols, depth = params.get("symbol"), params.get("depth", 10)
        trigger, snapshot = params.get("event_trigger", "trades"), params.get("snapshot", True)
        if not isinstance(symbols, list) or not symbols:
            raise Refusal("Symbol(s) not found")
        if channel == "book" and (isinstance(depth, bool) or depth not in DEPTHS):
            raise Refusal("Subscription depth not supported")
        if channel == "ticker" and trigger not in ("trades", "bbo"):
            raise Refusal("Event trigger not supported")
        answers, first = [], []
        for symbol in symbols:
            pair = self.pairs.get(symbol) if isinstance(symbol, str) else None
            if pair is None:
                answers.append(self._error(method, f"Currency pair not supported {symbol}", req_id, str(symbol)))
                continue
            result: dict[str, object] = {"channel": channel, "symbol": symbol}
            if channel == "book":
                result["depth"] = depth
            if method == "unsubscribe":
                if peer.since.pop((channel, symbol), None) is None:
                    answers.append(self._error(method, "Subscription not found", req_id, symbol))
                    continue
                if channel == "book":
                    del peer.depths[symbol]
            elif (channel, symbol) in peer.since:
                answers.append(self._error(method, "Already subscribed", req_id, symbol))
                continue
            else:
                result["snapshot"] = bool(snapshot)
                first += self._begin(peer, channel, pair, depth, trigger, bool(snapshot))
            answers.append(self._answer(method, req_id, result))
        return answers + first

    def _begin(
        self, peer: KrakenPeer, channel: str, pair: _Pair, depth: int, trigger: str, snapshot: bool
    ) -> list[bytes]:
        """Note a subscription; return its snapshot."""
        if channel == "book":
            view = self._view(pair, depth)  # a view that somebody holds is current: every batch of rows refreshes it
            peer.depths[pair.name] = depth
            peer.since[channel, pair.name] = self._last_item
            bids, asks = sorted(view.bids.items(), reverse=True), sorted(view.asks.items())
            told = [",".join(pair.level(px, qty) for px, qty in side) for side in (bids, asks)]
            return [self._book(pair, "snapshot", told, pair.checksum(bids, asks))] if snapshot else []
        peer.since[channel, pair.name] = self._last_item
        if channel == "ticker":
            peer.triggers[pair.name] = trigger
            return [self._ticker(pair, "snapshot")] if snapshot else []
        data = b",".join(pair.trades)
        return [b'{"channel":"trade","type":"snapshot","data":[%s]}' % data] if snapshot and data else []

    def _private_subscription(
        self, peer: KrakenPeer, method: str, channel: str, params: Mapping[str, Any], req_id: int | None
    ) -> list[bytes]:
        if not peer.private:
            raise Refusal("Private data and trading are unavailable on this endpoint")
        account = self._account_of(peer, params)
        if method == "unsubscribe":
            if peer.since.pop((channel, ""), None) is None:
                raise Refusal("Subscription not found")
            return [self._answer(method, req_id, {"channel": channel})]
        if (channel, "") in peer.since:
            raise Refusal("Already subscribed")
        peer.since[channel, ""] = self._last_item
        if channel == "balances":
            data = ",".join(
                f'{{"asset":"{asset}","asset_class":"currency","balance":{_money(units)}}}'
                for asset, units in account.balance.items()
            )
        else:
            mine = [order for order in self._orders.values() if order.account is account and order.open]
            if params.get("snap_orders", params.get("snapshot", True)) is False:
                mine = []
            data = ",".join(self._event(order, "status" if order.cum else "new", full=True) for order in mine)
        return [
            self._answer(method, req_id, {"channel": channel, "snapshot": True}),
            peer.numbered(channel, "snapshot", data.encode()),
        ]

    def _instruments(self) -> bytes:
        pairs = []
        for pair in self.pairs.values():
            i, px, qty = pair.instrument, pair.px, pair.qty
            pairs.append(
                f'{{"symbol":"{pair.name}","base":"{i.base}","quote":"{i.quote}","status":"online",'
                f'"qty_precision":{qty.decimals},"qty_increment":{qty.text(1)},"price_precision":{px.decimals},'
                f'"cost_precision":5,"marginable":false,"has_index":true,"cost_min":{i.money(i.min_notional):f},'
                f'"tick_size":{px.text(1)},"price_increment":{px.text(1)},"qty_min":{qty.text(i.min_qty)}}}'
            )
        assets = ",".join(
            f'{{"id":"{asset}","status":"enabled","precision":10,"precision_display":5,"borrowable":false,'
            f'"collateral_value":1.0,"margin_rate":0.0}}'
            for asset in self._assets()
        )
        return (
            f'{{"channel":"instrument","type":"snapshot","data":{{"assets":[{assets}],"pairs":[{",".join(pairs)}]}}}}'
        ).encode()

    def _assets(self) -> dict[str, None]:
        pairs = self.pairs.values()
        return dict.fromkeys(asset for p in pairs for asset in (p.instrument.base, p.instrument.quote))

    # ---- orders

    def fail_orders(self, code: int, msg: str, n: int = 1, carried_out: bool = False) -> None:
        """Let the next `n` order requests answer `msg`; with `carried_out` they take effect as well."""
        self.order_errors.extend([(Refusal(msg or f"EService:Unavailable ({code})"), carried_out)] * n)

    def _guarded(self, act: Callable[[], object]) -> object:
        """Do `act`, unless a fault asks for an error before it, or for one after it."""
        fault = self.order_errors.popleft() if self.order_errors else None
        if fault is not None and not fault[1]:
            raise fault[0]
        result = act()
        if fault is not None:
            raise fault[0]
        return result

    def _add_order(self, peer: KrakenPeer, params: Mapping[str, Any]) -> object:
        account = peer.account
        assert account is not None
        times = account.order_times
        while times and times[0] <= self._wall_ms - 10_000:
            times.popleft()
        if len(times) >= self.orders_per_10s:
            raise Refusal("EOrder:Rate limit exceeded")
        times.append(self._wall_ms)
        order = self._new_order(account, params)
        return self._guarded(lambda: self._submit(order))

    def _new_order(self, account: Account, params: Mapping[str, Any]) -> VenueOrder:
        pair = self.pairs.get(str(params.get("symbol")))
        if pair is None:
            raise Refusal("EQuery:Unknown asset pair")
        for field in _NOT_SUPPORTED:
            if params.get(field) not in (None, False):
                raise Refusal(f"EGeneral:Invalid arguments:{field} is not supported on the simulated venue")
        side, kind = params.get("side"), params.get("order_type")
        tif, post_only = params.get("time_in_force", "gtc"), params.get("post_only", False)
        if side not in _FLAG or kind not in ("limit", "market"):
            raise Refusal("EGeneral:Invalid arguments:side or order_type")
        if tif not in _TIFS or not isinstance(post_only, bool) or (post_only and (kind == "market" or tif != "gtc")):
            raise Refusal("EGeneral:Invalid arguments:time_in_force or post_only")
        px = self._count(params, "limit_price", pair.px, "EOrder:Invalid price") if kind == "limit" else 0
        qty = self._count(params, "order_qty", pair.qty, "EGeneral:Invalid arguments:volume")
        client, userref = params.get("cl_ord_id", ""), params.get("order_userref", 0)
        if not isinstance(client, str) or not isinstance(userref, int) or (client and userref):
            raise Refusal("EGeneral:Invalid arguments:cl_ord_id")
        if client and not _is_client_id(client):
            raise Refusal("EGeneral:Invalid arguments:cl_ord_id")
        known = account.by_client.get(client) if client else None
        if known is not None and known.open:
            raise Refusal("EOrder:Invalid cl_ord_id: in use by an open order")
        number = next(self._numbers)
        return VenueOrder(
            account, pair, number, _venue_id("O", number), client, userref, side, kind, tif, post_only, px, qty,
            self._now_ns,
        )  # fmt: skip

    @staticmethod
    def _count(params: Mapping[str, Any], field: str, grid: DecimalGrid, error: str) -> int:
        value = params.get(field)
        if isinstance(value, bool) or not isinstance(value, int | Decimal) or value <= 0:
            raise Refusal(error)
        try:
            return decimal_to_units(value, grid.step, field)
        except OffGridError as off_grid:
            raise Refusal(error) from off_grid

    def _hold_of(self, order: VenueOrder, px: int, lots: int) -> int:
        """Return what `lots` of an order at `px` hold, in 1e-16 of the order's asset."""
        if order.side == "sell":
            return lots * order.pair.qty_e16
        money = px * lots * order.pair.money_unit
        worst = max(self.maker_fee_e8, self.taker_fee_e8, 0)
        # each partial fill rounds its fee to 1e-8 on its own: a thousand of them are provided for
        return money + (money * worst // 10**8 + 10**8 * min(lots, 1000) if worst else 0)

    def _hold(self, order: VenueOrder, px: int, lots: int) -> None:
        """Hold what an order needs from now on, or refuse."""
        if px or order.side == "sell":
            hold = self._hold_of(order, px, lots)
        else:
            hold, left = 0, lots
            _, _, asks = self.exchange.snapshot(order.pair.instrument.id, 1000)
            for at, qty in asks:
                part = min(int(qty), left)
                hold, left = hold + self._hold_of(order, int(at), part), left - part
        account = order.account
        if account.balance[order.asset] - account.held[order.asset] + order.held < hold:
            raise Refusal("EOrder:Insufficient funds")
        account.held[order.asset] += hold - order.held
        order.held = hold

    def _submit(self, order: VenueOrder) -> object:
        if order.px * order.qty > INT64_MAX:
            raise Refusal("EGeneral:Invalid arguments:volume")
        self._hold(order, order.px, order.qty)
        self._orders[order.number] = order
        first = len(self._out)
        rows = self.exchange.send(self._order_rows(order, Kind.SUBMIT, order.number, order.qty, 0), self._now_ns)
        self._tell(order, "pending_new", full=True)
        self._absorb(rows)
        if order.status == "rejected" and order.refused != _WOULD_CROSS:
            del self._out[first:]
            raise Refusal(_REFUSED.get(order.refused, "EGeneral:Invalid arguments"))
        self._by_id[order.id] = order
        if order.cl_ord_id:
            order.account.by_client[order.cl_ord_id] = order
        if order.status == "rejected":
            order.status = "canceled"
            self._tell(order, "canceled", reason="Post only order")
        self.counts["orders"] += 1
        return {"order_id": order.id} | _client_fields(order)

    @staticmethod
    def _order_rows(order: VenueOrder, kind: Kind, number: int, qty: int, orig: int) -> RowArray:
        market = order.type == "market"
        rows = np.zeros(2 if market else 1, ROW)
        row = rows[0]
        row["kind"], row["span"], row["instrument"] = kind, int(market), order.pair.instrument.id
        row["flags"] = _FLAG[order.side] | (int(Flag.POST_ONLY) if order.post_only else 0)
        row["code"] = Tif.IOC if market else _TIFS[order.tif]
        row["px"], row["qty"], row["a"], row["b"] = order.px, qty, number, orig
        if market:
            payload = rows[1:].view(ORDER_PAYLOAD)
            payload["kind"], payload["span"], payload["ord_type"] = Kind.CONT, 1, OrdType.MARKET
        return rows

    def _find(self, account: Account, order_id: object, client: object) -> VenueOrder:
        order = self._by_id.get(str(order_id)) if order_id else account.by_client.get(str(client))
        if order is None or order.account is not account or not order.open:
            raise Refusal("EOrder:Unknown order")
        return order

    def _amend_order(self, peer: KrakenPeer, params: Mapping[str, Any]) -> object:
        account = peer.account
        assert account is not None
        order = self._find(account, params.get("order_id"), params.get("cl_ord_id"))
        if order.type != "limit":
            raise Refusal("EOrder:Invalid order type")
        px, qty = order.px, order.qty
        if params.get("limit_price") is not None:
            px = self._count(params, "limit_price", order.pair.px, "EOrder:Invalid price")
        if params.get("order_qty") is not None:
            qty = self._count(params, "order_qty", order.pair.qty, "EGeneral:Invalid arguments:volume")
        return self._guarded(lambda: self._amend(order, px, qty, params.get("post_only") is True))

    def _amend(self, order: VenueOrder, px: int, qty: int, post_only: bool) -> object:
        if qty <= order.cum:
            self._withdraw(order)
        else:
            before, old = (order.px, order.qty, order.post_only), order.number
            held = order.held
            self._hold(order, px, qty - order.cum)
            order.px, order.qty, order.post_only = px, qty, post_only
            order.number = next(self._numbers)
            self._orders[order.number] = order
            rows = self.exchange.send(
                self._order_rows(order, Kind.REPLACE_ORDER, order.number, qty - order.cum, old), self._now_ns
            )
            if len(rows) and int(rows[0]["code"]) & 255 == ExecType.REJECT:
                del self._orders[order.number]
                order.number = old
                order.px, order.qty, order.post_only = before
                order.account.held[order.asset] += held - order.held
                order.held = held
                text = bytes(rows[1:2].view(REPORT_PAYLOAD)[0]["text"]).rstrip(b"\0")
                if text == _WOULD_CROSS:
                    raise Refusal("EOrder:Post only order")
                raise Refusal(_REFUSED.get(text, "EOrder:Unknown order"))
            del self._orders[old]
            self._absorb(rows)
        return {"amend_id": _venue_id("T", next(self._numbers)), "order_id": order.id} | _client_fields(order)

    def _withdraw(self, order: VenueOrder) -> None:
        rows = np.zeros(1, ROW)
        row = rows[0]
        row["kind"], row["instrument"], row["a"] = Kind.CANCEL, order.pair.instrument.id, order.number
        self._absorb(self.exchange.send(rows, self._now_ns))

    def _cancel_order(self, peer: KrakenPeer, params: Mapping[str, Any]) -> object:
        account = peer.account
        assert account is not None
        ids, clients = params.get("order_id", []), params.get("cl_ord_id", [])
        if not isinstance(ids, list) or not isinstance(clients, list) or len(ids) + len(clients) != 1:
            raise Refusal("EGeneral:Invalid arguments: one order a request on the simulated venue")

        def act() -> object:
            order = self._find(account, ids[0] if ids else None, clients[0] if clients else None)
            self._withdraw(order)
            return {"order_id": order.id} | _client_fields(order)

        return self._guarded(act)

    def _cancel_all(self, peer: KrakenPeer, params: Mapping[str, Any]) -> object:
        account = peer.account

        def act() -> object:
            mine = [order for order in self._orders.values() if order.account is account and order.open]
            for order in mine:
                self._withdraw(order)
            return {"count": len(mine)}

        return self._guarded(act)

    # ---- reports

    def _report(self, row: Any, payload: Any) -> None:
        exec_type = int(row["code"]) & 255
        order = self._orders.get(int(row["a"]))
        if order is None:
            return
        self._now_ns = max(self._now_ns, int(row["ts_event"]))
        if exec_type == ExecType.ACK:
            order.status = "new"
            self._tell(order, "new")
        elif exec_type == ExecType.REPLACED:
            self._tell(order, "amended", reason="User requested")
        elif exec_type == ExecType.FILL:
            self._fill(order, int(row["px"]), int(row["qty"]), int(row["b"]), int(row["flags"]), int(payload["fee"]))
        elif exec_type == ExecType.CANCELED or exec_type == ExecType.EXPIRED:
            requested = exec_type == ExecType.CANCELED
            self.counts["cancels"] += requested
            self._end(order, "canceled", "User requested" if requested else "Order not filled")
        elif exec_type == ExecType.REJECT:
            order.refused = bytes(payload["text"]).rstrip(b"\0")
            order.status = "rejected"
            self._release(order)
            self._remember(order)

    def _fill(self, order: VenueOrder, px: int, qty: int, trade_id: int, flags: int, fee_e8: int) -> None:
        account, pair = order.account, order.pair
        base, quote = pair.instrument.base, pair.instrument.quote
        cost, fee = px * qty * pair.money_unit, fee_e8 * 10**8
        sign_ = 1 if order.side == "buy" else -1
        account.balance[quote] -= sign_ * cost + fee
        account.balance[base] += sign_ * qty * pair.qty_e16
        order.cum += qty
        order.cost += px * qty
        order.fees += fee
        left = order.qty - order.cum
        held = min(order.held, self._hold_of(order, order.px, left)) if order.px else order.held * left // (left + qty)
        account.held[order.asset] -= order.held - held
        order.held = held
        order.status = "partially_filled"
        self.counts["fills"] += 1
        self._tell(
            order,
            "trade",
            more=(
                f',"exec_id":"{_venue_id("T", trade_id)}","trade_id":{trade_id},"symbol":"{pair.name}",'
                f'"side":"{order.side}","order_type":"{order.type}","last_qty":{pair.qty.text(qty)},'
                f'"last_price":{pair.px.text(px)},"liquidity_ind":"{"m" if flags & _MAKER else "t"}",'
                f'"cost":{_money(cost)},"fee_usd_equiv":{_money(fee)},'
                f'"fees":[{{"asset":"{quote}","qty":{_money(fee)}}}]'
            ),
        )
        if left == 0:
            self._end(order, "filled", "")
        data = ",".join(
            f'{{"asset":"{asset}","asset_class":"currency","type":"trade","balance":{_money(account.balance[asset])},'
            f'"timestamp":"{time_text(self._now_ns)}"}}'
            for asset in (base, quote)
        )
        self._publish("balances", "", data.encode(), account=account)

    def _release(self, order: VenueOrder) -> None:
        order.account.held[order.asset] -= order.held
        order.held = 0

    def _end(self, order: VenueOrder, status: str, reason: str) -> None:
        order.status = status
        self._release(order)
        self._tell(order, status, reason=reason)
        self._remember(order)

    def _remember(self, order: VenueOrder) -> None:
        self._orders.pop(order.number, None)
        self._done.append(order)
        while len(self._done) > HISTORY:
            old = self._done.popleft()
            self._by_id.pop(old.id, None)
            if old.account.by_client.get(old.cl_ord_id) is old:
                del old.account.by_client[old.cl_ord_id]

    def _tell(self, order: VenueOrder, kind: str, *, full: bool = False, reason: str = "", more: str = "") -> None:
        text = self._event(order, kind, full=full, reason=reason, more=more)
        self._publish(_EVENT, "", text.encode(), account=order.account)

    def _event(self, order: VenueOrder, kind: str, *, full: bool = False, reason: str = "", more: str = "") -> str:
        """Return one event of the executions channel; what a field is missing from, the venue leaves it out of too."""
        pair = order.pair
        client = f',"cl_ord_id":"{order.cl_ord_id}"' if order.cl_ord_id else f',"order_userref":{order.userref}'
        text = (
            f'{{"order_id":"{order.id}"{client},"exec_type":"{kind}","order_status":"{order.status}",'
            f'"timestamp":"{time_text(self._now_ns)}"'
        )
        if full:
            price = f'"limit_price":{pair.px.text(order.px)},' if order.px else ""
            text += (
                f',"symbol":"{pair.name}","side":"{order.side}","order_type":"{order.type}",{price}'
                f'"order_qty":{pair.qty.text(order.qty)},"time_in_force":"{order.tif.upper()}"'
            )
        if kind == "amended":
            text += (
                f',"amended":true,"order_qty":{pair.qty.text(order.qty)},"limit_price":{pair.px.text(order.px)},'
                f'"limit_price_type":"static"'
            )
        if kind not in ("pending_new", "new"):
            average = pair.px.text(order.cost // order.cum) if order.cum else "0.0"  # rounded down to the tick
            text += f',"cum_qty":{pair.qty.text(order.cum)},"cum_cost":{_money(order.cost * pair.money_unit)}'
            text += f',"avg_price":{average}'
        if reason:
            text += f',"reason":"{reason}"'
        return text + more + "}"

    # ---- REST

    def rest(
        self, method: str, path: str, query: bytes, body: bytes, headers: Mapping[str, str], wall_ms: int
    ) -> Answer:
        """Return the answer to a REST request; see `hftlab.venues.face.Face.rest`."""
        self._wall_ms = wall_ms
        self.counts["requests"] += 1
        try:
            if path.startswith("/0/public/"):
                result = self._public(path[10:], dict(parse_qsl(query.decode("latin-1"))))
            elif path.startswith("/0/private/") and method == "POST":
                result = self._private(path, body, headers)
            else:
                return Answer(404, b'{"error":["EGeneral:Unknown method"]}', {})
        except Refusal as refusal:
            self.counts["errors"] += 1
            return Answer(200, _encode({"error": [str(refusal)]}), {})
        return Answer(200, _encode({"error": [], "result": result}), {})

    def _public(self, name: str, params: Mapping[str, str]) -> object:
        if name == "Time":
            return {"unixtime": self._wall_ms // 1000, "rfc1123": ""}
        if name == "SystemStatus":
            return {"status": "online", "timestamp": time_text(self._wall_ms * 1_000_000)}
        if name == "Assets":
            return {
                _legacy(asset): {
                    "aclass": "currency", "altname": v1_name(asset), "decimals": 10, "display_decimals": 5,
                    "status": "enabled",
                }
                for asset in self._assets()
            }  # fmt: skip
        if name == "AssetPairs":
            return {_pair_id(pair): self._pair_info(pair) for pair in self.pairs.values()}
        if name == "Depth":
            wanted = params.get("pair", "")
            pair = next((p for p in self.pairs.values() if wanted in (_pair_id(p), _altname(p), p.name)), None)
            count = params.get("count", "100")
            if pair is None or not count.isdigit() or not 1 <= int(count) <= 500:
                raise Refusal("EQuery:Unknown asset pair" if pair is None else "EGeneral:Invalid arguments")
            _, bids, asks = self.exchange.snapshot(pair.instrument.id, int(count))
            at = self._now_ns // 10**9
            sides = {"asks": asks, "bids": bids}
            return {
                _pair_id(pair): {
                    name: [[pair.px.text(int(px)), pair.qty.text(int(qty)), at] for px, qty in side]
                    for name, side in sides.items()
                }
            }
        raise Refusal("EGeneral:Unknown method")

    def _pair_info(self, pair: _Pair) -> dict[str, object]:
        i = pair.instrument
        maker, taker = (float(Decimal(fee).scaleb(-6)) for fee in (self.maker_fee_e8, self.taker_fee_e8))
        return {
            "altname": _altname(pair), "wsname": v1_name(pair.name), "aclass_base": "currency",
            "base": _legacy(i.base), "aclass_quote": "currency", "quote": _legacy(i.quote), "lot": "unit",
            "cost_decimals": 5, "pair_decimals": pair.px.decimals, "lot_decimals": pair.qty.decimals,
            "lot_multiplier": 1, "leverage_buy": [], "leverage_sell": [], "fees": [[0, taker]],
            "fees_maker": [[0, maker]], "fee_volume_currency": "ZUSD", "margin_call": 80, "margin_stop": 40,
            "ordermin": pair.qty.text(i.min_qty), "costmin": f"{i.money(i.min_notional).normalize():f}",
            "tick_size": pair.px.text(1), "status": "online",
        }  # fmt: skip

    def _private(self, path: str, body: bytes, headers: Mapping[str, str]) -> object:
        account = self.accounts.get(headers.get("API-Key", ""))
        if account is None:
            raise Refusal("EAPI:Invalid key")
        text = body.decode("latin-1")
        params = dict(parse_qsl(text, keep_blank_values=True))
        nonce = params.get("nonce", "")
        expected = sign(account.secret, path, nonce, text)
        if not hmac.compare_digest(expected.encode(), headers.get("API-Sign", "").encode()):
            raise Refusal("EAPI:Invalid signature")
        if not (nonce.isascii() and nonce.isdigit() and len(nonce) < 20 and int(nonce) > account.nonce):
            raise Refusal("EAPI:Invalid nonce")
        account.nonce = int(nonce)
        if path == "/0/private/GetWebSocketsToken":
            seed = f"{account.api_key} {next(self._numbers)}".encode()
            token = base64.b64encode(hashlib.sha256(seed).digest()).decode().rstrip("=")
            self._tokens[token] = (account, self._wall_ms)
            while len(self._tokens) > HISTORY:
                del self._tokens[next(iter(self._tokens))]
            return {"token": token, "expires": TOKEN_LIFE_S}
        if path == "/0/private/BalanceEx":
            return {
                _legacy(asset): {"balance": _money(units), "hold_trade": _money(account.held[asset])}
                for asset, units in account.balance.items()
            }
        raise Refusal("EGeneral:Unknown method")


def _cut(px: int, new: Mapping[int, int], depth: int, direction: int) -> bool:
    """Return whether a level no longer in the view lies beyond its depth: the client has cut it off itself."""
    return len(new) >= depth and direction * px < min(direction * at for at in new)


def _money(units: int) -> str:
    """Return 1e-16 of an asset as a decimal, ten places, rounded down."""
    sign_, units = ("-", -units) if units < 0 else ("", units)
    return f"{sign_}{units // E16}.{units % E16 // 10**6:010d}"


def _venue_id(letter: str, number: int) -> str:
    """Return an id of the venue's form, such as OAAAAA-AAAAA-AAAAAB."""
    digits = ""
    for _ in range(16):
        number, digit = divmod(number, 32)
        digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[digit] + digits
    return f"{letter}{digits[:5]}-{digits[5:10]}-{digits[10:]}"


def _is_client_id(text: str) -> bool:
    """Return whether `text` is one of the three forms: UUID, 32 hex digits, up to 18 printable ASCII characters."""
    plain = text.replace("-", "")
    if len(plain) == 32 and len(text) in (32, 36) and all(c in "0123456789abcdefABCDEF" for c in plain):
        return True
    return 0 < len(text) <= 18 and text.isascii() and text.isprintable() and not {'"', "\\"} & set(text)


def _client_fields(order: VenueOrder) -> dict[str, object]:
    return {"cl_ord_id": order.cl_ord_id} if order.cl_ord_id else {"order_userref": order.userref}


def _legacy(asset: str) -> str:
    """Return REST's old name of an asset, such as XXBT and ZUSD."""
    return {"BTC": "XXBT", "ETH": "XETH", "USD": "ZUSD", "EUR": "ZEUR"}.get(asset, v1_name(asset))


def _altname(pair: _Pair) -> str:
    return v1_name(pair.name).replace("/", "")


def _pair_id(pair: _Pair) -> str:
    return _legacy(pair.instrument.base) + _legacy(pair.instrument.quote)


def make_face(
    exchange: Exchange,
    instruments: Sequence[Instrument],
    *,
    accounts: Iterable[AccountKey],
    maker_fee_e8: int,
    taker_fee_e8: int,
    orders_per_10s: int,
) -> KrakenServer:
    """Return the venue's face over `exchange`; see `hftlab.venues.face.ServerModule`."""
    return KrakenServer(
        exchange,
        instruments,
        accounts=accounts,
        maker_fee_e8=maker_fee_e8,
        taker_fee_e8=taker_fee_e8,
        orders_per_10s=orders_per_10s,
    )
