"""Coinbase Exchange's face on the simulated exchange: requests in, answers and messages out, no socket and no clock.

The model. An exchange (`hftlab.sim.exchange`) speaks rows; this module is everything between those rows and the
Exchange API: products, accounts with balances and holds, signed REST requests, orders with UUIDs, and one WebSocket
feed that carries market data and an account's events. Venue time (ns) stamps every event; wall time (ms) is what a
client signs with.

Orders for everybody. The sim publishes price levels, the venue's ``full`` channel and level 3 book every order. So the
anonymous lots of a level are told as orders of this module's making: a rise of a level opens one, a fall cancels from
the newest, a trade matches the oldest that is large enough (or, if none is, they are first replaced by one that is).
Own orders stand among them under their own ids. The book that follows from the messages is exactly the sim's; the queue
within a level is not. This is made only once somebody has asked for it.

Money is integers: 1e-16 of an asset, of which tick times lot is a whole number, so that holds, fills and fees add up
without a rounding. A buy holds price, quantity and its worst fee; a sell its quantity. Fees are in the quote currency.

What is not the venue: self-trade prevention is the exchange's own, the resting order goes (``co``); ``dc``, the venue's
default, is accepted and carried out like it, ``cn`` and ``cb`` are refused. Stop orders, ``max_floor``, GTT and limit
orders with funds are refused; rate limits are not kept; volumes of 24 hours and 30 days in a ticker are "0"; taker
orders of others have no *received* and no *done*.

Bounds: of orders that are done the last `HISTORY` are remembered; of fills the last `HISTORY` an account.

References
----------
docs.cdp.coinbase.com/exchange: REST API (authentication, products, orders, accounts, fills), WebSocket Overview and
Channels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import itertools
import re
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import numpy as np

from hftlab.core.errors import ConfigError, RemoteError
from hftlab.core.instruments import INT64_MAX, Instrument
from hftlab.core.rows import ORDER_PAYLOAD, REPORT_PAYLOAD, ROW, ExecType, Flag, Kind, OrdType, RowArray, Tif
from hftlab.venues.coinbase.spec import MAX_OPEN_ORDERS, TIMESTAMP_WINDOW_S, time_text
from hftlab.venues.face import AccountKey, Answer, Exchange, read_json

__all__ = [
    "Account",
    "ApiError",
    "CoinbasePeer",
    "CoinbaseServer",
    "DEFAULT_ACCOUNT",
    "DEFAULT_INSTRUMENTS",
    "HISTORY",
    "Item",
    "PASSPHRASE",
    "VenueOrder",
    "make_face",
]

E16 = 10**16
HISTORY = 20_000
BATCH_NS = 50_000_000
BOOK_LIMIT = 5000
_TRADES_KEPT = 1000

DEFAULT_INSTRUMENTS = {
    "BTC-USD": Instrument(
        0, "coinbase", "BTC-USD", Decimal("0.01"), Decimal("0.00001"), "BTC", "USD",
        min_qty=1, max_qty=34_000_000, min_px=1, min_notional=10_000_000,
    ),
    "ETH-USD": Instrument(
        0, "coinbase", "ETH-USD", Decimal("0.01"), Decimal("0.0001"), "ETH", "USD",
        min_qty=1, max_qty=47_000_000, min_px=1, min_notional=1_000_000,
    ),
}  # fmt: skip
"""What can be listed, with the price increment and the least notional (1 USD) that the venue publishes. Its increment
of size is 0.00000001; the flow counts in lots, and lots of a thousandth of a cent would make a market of crumbs."""

PASSPHRASE = "hftlab-sim-passphrase"
"""The passphrase of every key of a simulated venue."""

DEFAULT_ACCOUNT: AccountKey = (
    "hftlab-sim-key",
    base64.b64encode(b"hftlab-sim-secret").decode(),
    {"BTC": Decimal(10), "USD": Decimal(1_000_000)},
)
"""Key, secret (base64, as the venue hands it out) and balances of the account unless told otherwise."""

_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?\Z", re.ASCII)
_STAMP = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?\Z", re.ASCII)
_BID, _ASK, _LAST, _MAKER = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.MAKER)
_FLAG = {"buy": _BID, "sell": _ASK}
_NAME = {_BID: "buy", _ASK: "sell"}
_TIFS = {"GTC": Tif.GTC, "IOC": Tif.IOC, "FOK": Tif.FOK}
_PUBLIC = ("level2", "level2_batch", "level2_50", "matches", "ticker", "heartbeat", "full", "user")
_SIGNED = frozenset({"level2", "full", "user"})
_HEADERS = ("KEY", "SIGN", "TIMESTAMP", "PASSPHRASE")
_NAMESPACE = uuid.UUID("6f6b6e6f-7768-4c61-b263-6f696e626173")

_encode = msgspec.json.Encoder().encode


class ApiError(RemoteError):
    """The client's request cannot be served; becomes the venue's answer ``{"message": ...}``.

    Parameters
    ----------
    status : int
        HTTP status.
    message : str
        The venue's text.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Item(NamedTuple):
    """One message to be published: the channels that carry it, its product, whose it is (None: everybody's)."""

    channels: tuple[str, ...]
    product: str
    payload: bytes
    account: Account | None = None


class _Scale:
    """Exact text of counts of one step."""

    __slots__ = ("decimals", "power", "unit", "units_e16")

    def __init__(self, step: Decimal, what: str) -> None:
        sign, digits, exponent = step.normalize().as_tuple()
        assert isinstance(exponent, int)
        self.decimals = max(0, -exponent)
        self.power: int = 10**self.decimals
        self.unit: int = int("".join(map(str, digits))) * 10 ** max(0, exponent)
        if sign or self.decimals > 16:
            raise ConfigError(f"{what} is {step}; expected 0.0000000000000001 or more")

    def text(self, count: int) -> str:
        whole, fraction = divmod(count * self.unit, self.power)
        return f"{whole}.{fraction:0{self.decimals}d}" if self.decimals else str(whole)

    def count(self, text: str) -> int | None:
        """Return `text` as a count, or None if it is no plain decimal or off the grid."""
        if not _DECIMAL.match(text):
            return None
        whole, _, fraction = text.partition(".")
        fraction = fraction.rstrip("0")
        if len(fraction) > self.decimals:
            return None
        count, rest = divmod(int(whole + fraction.ljust(self.decimals, "0")), self.unit)
        return None if rest or count > INT64_MAX else count


class _Queue:
    """The orders of one price, oldest first, as told to the full channel: [id, lots, own]."""

    __slots__ = ("orders",)

    def __init__(self) -> None:
        self.orders: list[list[Any]] = []

    def lots(self) -> int:
        """Return the lots of orders that are not own."""
        return sum(int(order[1]) for order in self.orders if not order[2])

    def drop(self, order_id: str) -> None:
        self.orders = [order for order in self.orders if order[0] != order_id]


class _Product:
    """One instrument with its scales and what its feed has said so far."""

    __slots__ = (
        "batch", "best", "book", "instrument", "last_px", "last_qty", "last_side", "last_trade_id", "level2", "lot",
        "money_unit", "name", "own", "sequence", "tick", "ticks", "trades",
    )  # fmt: skip

    def __init__(self, instrument: Instrument) -> None:
        if not instrument.base or not instrument.quote:
            raise ConfigError(f"{instrument.symbol}: base and quote are empty; expected the codes of the pair")
        self.instrument = instrument
        self.name = instrument.symbol
        self.tick = _Scale(instrument.tick_size, f"{self.name}: tick_size")
        self.lot = _Scale(instrument.lot_size, f"{self.name}: lot_size")
        with localcontext() as context:
            context.prec = 60
            unit = instrument.tick_size * instrument.lot_size * E16
        if unit != unit.to_integral_value():
            raise ConfigError(f"{self.name}: tick times lot is finer than 1e-16; expected 16 decimals at most")
        self.money_unit = int(unit)
        self.sequence = 1_000_000
        self.last_trade_id = self.last_px = self.last_qty = 0
        self.last_side = "buy"
        self.best = {_BID: (0, 0), _ASK: (0, 0)}
        self.level2: dict[tuple[int, int], int] = {}
        self.batch: dict[tuple[int, int], int] = {}
        self.own: dict[tuple[int, int], int] = {}
        self.book: dict[tuple[int, int], _Queue] | None = None  # made when somebody asks for orders
        self.trades: deque[dict[str, object]] = deque(maxlen=_TRADES_KEPT)

    def next(self) -> int:
        """Return the sequence of a new message."""
        self.sequence += 1
        return self.sequence

    def base_e16(self, lots: int) -> int:
        return lots * self.lot.unit * E16 // self.lot.power


def _money(units: int) -> str:
    """Return 1e-16 of an asset as the venue's text, sixteen decimals."""
    sign, units = ("-", -units) if units < 0 else ("", units)
    return f"{sign}{units // E16}.{units % E16:016d}"


@dataclass(slots=True)
class VenueOrder:
    """One order as the venue knows it. Prices in ticks, quantities in lots, money in 1e-16 of its asset."""

    account: Account
    product: _Product
    number: int
    id: str
    client_oid: str
    side: str
    type: str
    tif: str
    stp: str
    post_only: bool
    px: int
    qty: int
    created_ns: int
    status: str = "pending"
    cum: int = 0
    cum_quote: int = 0  # ticks x lots
    fees: int = 0
    held: int = 0
    done_ns: int = 0
    done_reason: str = ""
    opened: bool = False
    reject: str = ""

    @property
    def open(self) -> bool:
        """Whether the order may still trade."""
        return self.status in ("pending", "open")

    @property
    def asset(self) -> str:
        """What it holds."""
        return self.product.instrument.quote if self.side == "buy" else self.product.instrument.base


class Account:
    """An API key with its secret, its passphrase and its balances.

    Parameters
    ----------
    api_key, secret : str
        What requests are signed with; the secret in base64, as the venue hands it out.
    balances : mapping of currency to Decimal
        Starting balances.

    Raises
    ------
    ConfigError
        If the secret is no base64, or a balance is negative or finer than 1e-16.
    """

    def __init__(self, api_key: str, secret: str, balances: Mapping[str, Decimal]) -> None:
        self.api_key = api_key
        try:
            self._secret = base64.b64decode(secret, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError("api_secret is no base64; expected the secret as the venue gives it") from error
        self.balance: dict[str, int] = {}
        self.held: dict[str, int] = {}
        for currency, amount in balances.items():
            with localcontext() as context:
                context.prec = 60
                units = amount * E16
            if amount < 0 or units != units.to_integral_value():
                raise ConfigError(f"balance of {currency} is {amount}; expected 0 or more with at most 16 decimals")
            self.balance[currency], self.held[currency] = int(units), 0
        self.by_client: dict[str, VenueOrder] = {}
        self.fills: deque[dict[str, object]] = deque(maxlen=HISTORY)
        self.id = str(uuid.uuid5(_NAMESPACE, f"profile {api_key}"))
        self.order_times: deque[int] = deque()

    def know(self, currency: str) -> None:
        """Open a zero balance of `currency` if there is none."""
        self.balance.setdefault(currency, 0)
        self.held.setdefault(currency, 0)

    def verify(self, stamp: str, method: str, path: str, body: bytes, signature: str) -> bool:
        """Return whether `signature` is the base64 HMAC-SHA256 of stamp, method, path and body."""
        message = f"{stamp}{method}{path}".encode() + body
        expected = base64.b64encode(hmac.new(self._secret, message, hashlib.sha256).digest())
        return hmac.compare_digest(expected, signature.encode())


Handler = Callable[[str, Mapping[str, str], Mapping[str, Any], "Account"], object]


class CoinbasePeer:
    """One client of the feed: its subscriptions, by channel, and whose account it has proven to be."""

    def __init__(self, server: CoinbaseServer) -> None:
        self.channels: dict[str, dict[str, None]] = {}
        self.account: Account | None = None
        self._server = server

    @property
    def scope(self) -> str:
        """Return ``user`` once the client gets an account's events."""
        return "user" if "user" in self.channels else "market"

    @property
    def ready(self) -> bool:
        """Return whether the client has subscribed to a channel."""
        return bool(self.channels)

    def wants(self, channel: str, product: str) -> bool:
        """Return whether the client has subscribed to `product` on `channel`."""
        return product in self.channels.get(channel, ())

    def receive(self, text: str | bytes, wall_ms: int) -> list[bytes]:
        """Return what follows one message: acknowledgement and first messages of what it subscribes to, or an error."""
        return self._server.on_feed(self, text, wall_ms)

    def render(self, item: object) -> list[bytes]:
        """Return the message if this client has subscribed to one of its channels."""
        if not isinstance(item, Item) or (item.account is not None and item.account is not self.account):
            return []
        return [item.payload] if any(self.wants(channel, item.product) for channel in item.channels) else []

    def poll(self, wall_ms: int) -> list[bytes]:
        """Return a heartbeat of every product subscribed to."""
        return [self._server.heartbeat(name) for name in self.channels.get("heartbeat", ())]


class CoinbaseServer:
    """The venue: REST requests answered, one feed published.

    Parameters
    ----------
    exchange : Exchange
        This object owns its ``cl_ord_id`` numbering.
    instruments : sequence of Instrument
        What is listed.
    accounts : sequence of (key, secret, balances)
        Who may trade; the passphrase is `PASSPHRASE`.
    maker_fee_e8, taker_fee_e8 : int
        The exchange's fees, 1e-8 of notional.
    orders_per_10s : int
        New orders an account may send in ten seconds of wall time; beyond it 429.

    Attributes
    ----------
    counts : dict of str to int
        Requests, errors, orders, fills, cancels and messages so far.
    """

    routes: Mapping[str, str] = MappingProxyType({"/": "market"})

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
        self.products = {instrument.symbol: _Product(instrument) for instrument in instruments}
        self.accounts = {key: Account(key, secret, balances) for key, secret, balances in accounts}
        for account in self.accounts.values():
            for instrument in instruments:
                account.know(instrument.base)
                account.know(instrument.quote)
        self.maker_fee_e8, self.taker_fee_e8 = maker_fee_e8, taker_fee_e8
        self.orders_per_10s = orders_per_10s
        self.counts = dict.fromkeys(("requests", "errors", "orders", "fills", "cancels", "frames", "events"), 0)
        self.order_errors: deque[tuple[ApiError, bool]] = deque()
        self._by_instrument = {p.instrument.id: p for p in self.products.values()}
        for product in self.products.values():
            _, bids, asks = exchange.snapshot(product.instrument.id, 1)
            for flag, side in ((_BID, bids), (_ASK, asks)):
                if len(side):
                    product.best[flag] = (int(side[0][0]), int(side[0][1]))
        self._peers: weakref.WeakSet[CoinbasePeer] = weakref.WeakSet()
        self._orders: dict[int, VenueOrder] = {}
        self._by_id: dict[str, VenueOrder] = {}
        self._done: deque[int] = deque()
        self._finished: list[VenueOrder] = []
        self._trade_orders: dict[int, dict[bool, VenueOrder]] = {}
        self._out: list[Item] = []
        self._now_ns = 0
        self._wall_ms = 0
        self._boundary_ns = 0
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1)
        self._table = self._operations()

    # ---- time and market rows

    def peer(self, path: str, query: str) -> CoinbasePeer:
        """Return a new client of the feed."""
        peer = CoinbasePeer(self)
        self._peers.add(peer)
        return peer

    def take(self) -> list[Item]:
        """Return the messages made since the last call, in order."""
        out, self._out = self._out, []
        for item in out:
            self.counts["frames" if item.account is None else "events"] += 1
        return out

    def is_book(self, item: object) -> str:
        """Return product and channel of a message that a book is built from, "" for anything else."""
        if not isinstance(item, Item) or item.account is not None or item.channels[0] in ("ticker", "matches"):
            return ""
        return f"{item.product}@{item.channels[0]}"

    def is_public(self, item: object) -> bool:
        """Return whether `item` is market data."""
        return isinstance(item, Item) and item.account is None

    def tick(self, venue_ns: int, rows: RowArray) -> None:
        """Move venue time to `venue_ns`; `rows` is what the exchange did until then."""
        self._absorb(rows)
        if self._boundary_ns == 0:
            self._boundary_ns = venue_ns // BATCH_NS * BATCH_NS + BATCH_NS
        if venue_ns >= self._boundary_ns:
            for product in self.products.values():
                self._flush_levels(product, product.batch, "level2_batch", venue_ns)
            self._boundary_ns = venue_ns // BATCH_NS * BATCH_NS + BATCH_NS
        self._now_ns = max(self._now_ns, venue_ns)

    def _wanted(self, channel: str, product: _Product) -> bool:
        return any(peer.wants(channel, product.name) for peer in self._peers)

    def _absorb(self, rows: RowArray) -> None:
        if len(rows) == 0:
            return
        columns = [rows[name].tolist() for name in ("kind", "instrument", "flags", "px", "qty", "a", "ts_event")]
        traded: dict[str, tuple[_Product, int]] = {}
        touched: dict[str, tuple[_Product, int]] = {}
        for i, (kind, instrument, flags, px, qty, a, ts_event) in enumerate(zip(*columns, strict=True)):
            if kind == Kind.CONT:
                continue
            if kind == Kind.REPORT:
                self._report(rows[i], rows[i + 1 : i + 2].view(REPORT_PAYLOAD)[0])
                continue
            self._now_ns = max(self._now_ns, ts_event)
            product = self._by_instrument[instrument]
            if kind == Kind.TRADE:
                self._trade(product, flags, px, qty, a, ts_event)
                traded[product.name] = (product, ts_event)
            elif kind == Kind.LEVEL:
                self._end_orders()
                key = (flags & (_BID | _ASK), px)
                product.level2[key] = product.batch[key] = qty
                touched[product.name] = (product, ts_event)
                if product.book is not None:
                    self._fit(product, key, qty, ts_event)
            elif kind == Kind.QUOTE:
                product.best[flags & (_BID | _ASK)] = (px, qty)
        self._end_orders()
        for product, ts_event in touched.values():
            self._flush_levels(product, product.level2, "level2", ts_event)
        for product, ts_event in traded.values():
            if self._wanted("ticker", product):
                self._out.append(Item(("ticker",), product.name, self._ticker(product, ts_event)))

    def _flush_levels(self, product: _Product, changes: dict[tuple[int, int], int], channel: str, at_ns: int) -> None:
        if changes and self._wanted(channel, product):
            told = ",".join(
                f'["{_NAME[side]}","{product.tick.text(px)}","{product.lot.text(qty)}"]'
                for (side, px), qty in changes.items()
            )
            raw = (
                f'{{"type":"l2update","product_id":"{product.name}","changes":[{told}],"time":"{time_text(at_ns)}"}}'
            )
            self._out.append(Item((channel,), product.name, raw.encode()))
        changes.clear()

    def _ticker(self, product: _Product, at_ns: int) -> bytes:
        (bid, bid_qty), (ask, ask_qty) = product.best[_BID], product.best[_ASK]
        px, lot = product.tick.text, product.lot.text
        return (
            f'{{"type":"ticker","sequence":{product.sequence},"product_id":"{product.name}",'
            f'"price":"{px(product.last_px)}","open_24h":"0","volume_24h":"0","low_24h":"0","high_24h":"0",'
            f'"volume_30d":"0","best_bid":"{px(bid)}","best_bid_size":"{lot(bid_qty)}","best_ask":"{px(ask)}",'
            f'"best_ask_size":"{lot(ask_qty)}","side":"{product.last_side}","time":"{time_text(at_ns)}",'
            f'"trade_id":{product.last_trade_id},"last_size":"{lot(product.last_qty)}"}}'
        ).encode()

    def heartbeat(self, name: str) -> bytes:
        """Return the heartbeat of a product."""
        product = self.products[name]
        return (
            f'{{"type":"heartbeat","last_trade_id":{product.last_trade_id},"product_id":"{name}",'
            f'"sequence":{product.sequence},"time":"{time_text(self._now_ns)}"}}'
        ).encode()

    # ---- the orders of the full channel

    def _new_id(self) -> str:
        return str(uuid.uuid5(_NAMESPACE, str(next(self._ids))))

    def _say(self, product: _Product, fields: str, at_ns: int, owner: VenueOrder | None = None) -> None:
        """Publish a numbered message to full, and to the owner's user channel."""
        tail = f'"product_id":"{product.name}","sequence":{product.next()},"time":"{time_text(at_ns)}"'
        if product.book is not None:
            self._out.append(Item(("full",), product.name, f"{{{fields},{tail}}}".encode()))
        if owner is not None:
            self._tell(product, f"{fields},{tail}", owner)

    def _tell(self, product: _Product, fields: str, owner: VenueOrder) -> None:
        whose = f'"profile_id":"{owner.account.id}","user_id":"{owner.account.id[:24]}"'
        self._out.append(Item(("user",), product.name, f"{{{fields},{whose}}}".encode(), owner.account))

    def _open(
        self, product: _Product, key: tuple[int, int], order_id: str, lots: int, at_ns: int,
        owner: VenueOrder | None = None,
    ) -> None:  # fmt: skip
        side, px = key
        if product.book is not None:
            product.book.setdefault(key, _Queue()).orders.append([order_id, lots, owner is not None])
        self._say(
            product,
            f'"type":"open","side":"{_NAME[side]}","price":"{product.tick.text(px)}","order_id":"{order_id}",'
            f'"remaining_size":"{product.lot.text(lots)}"',
            at_ns,
            owner,
        )

    def _close(
        self, product: _Product, key: tuple[int, int], order_id: str, left: int, reason: str, at_ns: int,
        owner: VenueOrder | None = None,
    ) -> None:  # fmt: skip
        side, px = key
        if product.book is not None and key in product.book:
            product.book[key].drop(order_id)
            if not product.book[key].orders:
                del product.book[key]
        price = f'"price":"{product.tick.text(px)}","remaining_size":"{product.lot.text(left)}",' if px else ""
        self._say(
            product,
            f'"type":"done","side":"{_NAME[side]}",{price}"order_id":"{order_id}","reason":"{reason}"',
            at_ns,
            owner,
        )

    def _fit(self, product: _Product, key: tuple[int, int], qty: int, at_ns: int) -> None:
        """Let the anonymous orders of a level hold what the level shows beside own orders."""
        assert product.book is not None
        target = max(qty - product.own.get(key, 0), 0)
        queue = product.book.get(key)
        have = queue.lots() if queue is not None else 0
        if have < target:
            self._open(product, key, self._new_id(), target - have, at_ns)
            return
        while queue is not None and have > target:
            last = next(order for order in reversed(queue.orders) if not order[2])
            off = min(last[1], have - target)
            have -= off
            if off == last[1]:
                self._close(product, key, last[0], last[1], "canceled", at_ns)
            else:
                lot = product.lot.text
                self._say(
                    product,
                    f'"type":"change","reason":"STP","side":"{_NAME[key[0]]}","price":"{product.tick.text(key[1])}",'
                    f'"order_id":"{last[0]}","old_size":"{lot(last[1])}","new_size":"{lot(last[1] - off)}"',
                    at_ns,
                )
                last[1] -= off

    def _maker(self, product: _Product, key: tuple[int, int], qty: int, at_ns: int) -> list[Any]:
        """Return an anonymous order of at least `qty` lots at the level `key`, made if there is none."""
        assert product.book is not None
        queue = product.book.get(key, _Queue())
        for order in queue.orders:
            if not order[2] and order[1] >= qty:
                return order
        total = max(queue.lots(), qty)
        for order in [order for order in queue.orders if not order[2]]:
            self._close(product, key, order[0], order[1], "canceled", at_ns)
        self._open(product, key, self._new_id(), total, at_ns)
        return product.book[key].orders[-1]

    def _trade(self, product: _Product, flags: int, px: int, qty: int, trade_id: int, at_ns: int) -> None:
        taker_side = flags & (_BID | _ASK)
        key = (_ASK if taker_side == _BID else _BID, px)
        own = self._trade_orders.pop(trade_id, {})
        maker, taker = own.get(True), own.get(False)
        filled: str | None = None
        if maker is not None:
            maker_id = maker.id
            if product.book is not None:
                for order in product.book.get(key, _Queue()).orders:
                    if order[0] == maker_id:
                        order[1] -= qty
        elif product.book is not None:
            order = self._maker(product, key, qty, at_ns)
            order[1] -= qty
            maker_id = order[0]
            filled = maker_id if order[1] == 0 else None
        else:
            maker_id = self._new_id()
        product.last_trade_id, product.last_px, product.last_qty = trade_id, px, qty
        product.last_side = _NAME[taker_side]
        fields = (
            f'"type":"match","trade_id":{trade_id},"maker_order_id":"{maker_id}",'
            f'"taker_order_id":"{taker.id if taker is not None else self._new_id()}","side":"{_NAME[key[0]]}",'
            f'"size":"{product.lot.text(qty)}","price":"{product.tick.text(px)}","product_id":"{product.name}",'
            f'"sequence":{product.next()},"time":"{time_text(at_ns)}"'
        )
        product.trades.append(
            {
                "time": time_text(at_ns),
                "trade_id": trade_id,
                "price": product.tick.text(px),
                "size": product.lot.text(qty),
                "side": _NAME[key[0]],
                "maker_order_id": maker_id,
                "sequence": product.sequence,
            }
        )
        channels = ("full", "matches") if product.book is not None else ("matches",)
        self._out.append(Item(channels, product.name, f"{{{fields}}}".encode()))
        for role, owner in (("maker", maker), ("taker", taker)):
            if owner is not None:
                rate = Decimal(self.maker_fee_e8 if role == "maker" else self.taker_fee_e8).scaleb(-8)
                self._tell(product, f'{fields},"{role}_fee_rate":"{rate:f}"', owner)
        if filled is not None:
            self._close(product, key, filled, 0, "filled", at_ns)

    def _follow_orders(self, product: _Product) -> None:
        """Begin to tell every order of a product: the levels of now, an order each, and own orders."""
        if product.book is not None:
            return
        product.book = {}
        for order in self._orders.values():
            if order.product is product and order.open and order.opened:
                key = (_FLAG[order.side], order.px)
                product.book.setdefault(key, _Queue()).orders.append([order.id, order.qty - order.cum, True])
        _, bids, asks = self.exchange.snapshot(product.instrument.id, BOOK_LIMIT)
        for side, levels in ((_BID, bids), (_ASK, asks)):
            for px, qty in levels:
                key = (side, int(px))
                lots = int(qty) - product.own.get(key, 0)
                if lots > 0:
                    product.book.setdefault(key, _Queue()).orders.insert(0, [self._new_id(), lots, False])

    # ---- reports

    def _report(self, row: Any, payload: Any) -> None:
        exec_type = int(row["code"]) & 255
        order = self._orders.get(int(row["a"]))
        if order is None:
            return  # reported after its order left the history: nobody can ask for it any more
        ts_event = int(row["ts_event"])
        self._now_ns = max(self._now_ns, ts_event)
        if exec_type == ExecType.ACK:
            order.status = "open"
        elif exec_type == ExecType.FILL:
            self._fill(order, int(row["px"]), int(row["qty"]), int(row["b"]), int(row["flags"]), int(payload["fee"]))
        elif exec_type == ExecType.CANCELED or exec_type == ExecType.EXPIRED:
            if exec_type == ExecType.CANCELED:
                self.counts["cancels"] += 1
            self._finish(order, "canceled")
        elif exec_type == ExecType.REJECT:
            order.reject = bytes(payload["text"]).rstrip(b"\0").decode()
            self._release(order)
            order.status = "rejected"
            order.done_ns = self._now_ns
            self._remember(order)

    def _fill(self, order: VenueOrder, px: int, qty: int, trade_id: int, flags: int, fee_e8: int) -> None:
        account, product = order.account, order.product
        instrument = product.instrument
        cost, fee = px * qty * product.money_unit, fee_e8 * 10**8
        maker = bool(flags & _MAKER)
        if order.side == "buy":
            account.balance[instrument.quote] -= cost + fee
            account.balance[instrument.base] += product.base_e16(qty)
        else:
            account.balance[instrument.quote] += cost - fee
            account.balance[instrument.base] -= product.base_e16(qty)
        order.cum += qty
        order.cum_quote += px * qty
        order.fees += fee
        left = order.qty - order.cum
        held = min(order.held, self._hold_of(order, order.px, left)) if order.px else order.held * left // (left + qty)
        account.held[order.asset] -= order.held - held
        order.held = held
        self._rest(order, -qty)
        self.counts["fills"] += 1
        account.fills.appendleft(
            {
                "created_at": time_text(self._now_ns),
                "trade_id": trade_id,
                "product_id": product.name,
                "order_id": order.id,
                "profile_id": account.id,
                "liquidity": "M" if maker else "T",
                "price": product.tick.text(px),
                "size": product.lot.text(qty),
                "fee": _money(fee),
                "side": order.side,
                "settled": True,
                "usd_volume": _money(cost),
            }
        )
        self._trade_orders.setdefault(trade_id, {})[maker] = order
        if left == 0:
            self._finish(order, "filled")

    def _rest(self, order: VenueOrder, lots: int) -> None:
        """Count lots of an own limit order at its level."""
        if order.px:
            key = (_FLAG[order.side], order.px)
            own = order.product.own
            own[key] = own.get(key, 0) + lots
            if own[key] <= 0:
                del own[key]

    def _release(self, order: VenueOrder) -> None:
        order.account.held[order.asset] -= order.held
        order.held = 0
        self._rest(order, order.cum - order.qty)

    def _finish(self, order: VenueOrder, reason: str) -> None:
        """End `order`; its *done* is told after the matches that belong to it."""
        self._release(order)
        order.status, order.done_reason, order.done_ns = "done", reason, self._now_ns
        self._finished.append(order)
        self._remember(order)

    def _end_orders(self) -> None:
        for order in self._finished:
            key = (_FLAG[order.side], order.px)
            self._close(
                order.product, key, order.id, order.qty - order.cum, order.done_reason, order.done_ns, order
            )  # fmt: skip
        self._finished.clear()

    def _remember(self, order: VenueOrder) -> None:
        self._done.append(order.number)
        while len(self._done) > HISTORY:
            old = self._orders.pop(self._done.popleft())
            del self._by_id[old.id]
            if old.account.by_client.get(old.client_oid) is old:
                del old.account.by_client[old.client_oid]

    # ---- the feed

    def on_feed(self, peer: CoinbasePeer, text: str | bytes, wall_ms: int) -> list[bytes]:
        """Return what one message of a client's feed connection is answered with."""
        self._wall_ms = wall_ms
        self.counts["requests"] += 1
        try:
            request = read_json(text)
        except (ValueError, RecursionError):
            request = None
        try:
            if not isinstance(request, dict) or request.get("type") not in ("subscribe", "unsubscribe"):
                raise ApiError(400, "Malformed JSON")
            asked = self._channels_of(request)
            if request["type"] == "subscribe":
                return self._subscribe(peer, request, asked)
            for channel, names in asked.items():
                for name in names or list(peer.channels.get(channel, ())):
                    peer.channels.get(channel, {}).pop(name, None)
                if not peer.channels.get(channel):
                    peer.channels.pop(channel, None)
            return [self._subscriptions(peer)]
        except ApiError as error:
            self.counts["errors"] += 1
            head = "Authentication Failed" if error.status == 401 else "Failed to subscribe"
            if error.message == "Malformed JSON":
                return [_encode({"type": "error", "message": "Malformed JSON"})]
            return [_encode({"type": "error", "message": head, "reason": error.message})]

    def _channels_of(self, request: dict[str, Any]) -> dict[str, list[str]]:
        """Return the products of each channel in a request; each may stand in the channel or beside it."""
        common = request.get("product_ids", [])
        channels = request.get("channels")
        if not isinstance(common, list) or not isinstance(channels, list) or not channels:
            raise ApiError(400, "no channels provided")
        asked: dict[str, list[str]] = {}
        for entry in channels:
            own: object = entry.get("product_ids", []) if isinstance(entry, dict) else []
            name = entry.get("name") if isinstance(entry, dict) else entry
            if not isinstance(name, str) or name not in _PUBLIC or not isinstance(own, list):
                raise ApiError(400, f"{name} is not a valid channel")
            channel = "level2_batch" if name == "level2_50" else name
            for product in [*common, *own]:
                if not isinstance(product, str) or product not in self.products:
                    raise ApiError(400, f"{product} is not a valid product")
            asked.setdefault(channel, []).extend(dict.fromkeys([*common, *own]))
        return asked

    def _subscribe(self, peer: CoinbasePeer, request: dict[str, Any], asked: dict[str, list[str]]) -> list[bytes]:
        if "signature" in request or "key" in request:
            peer.account = self._authenticate(
                str(request.get("key")), str(request.get("signature")), str(request.get("timestamp")),
                str(request.get("passphrase")), "GET", "/users/self/verify", b"",
            )  # fmt: skip
        for channel, names in asked.items():
            if channel in _SIGNED and peer.account is None:
                raise ApiError(401, f"{channel} subscriptions now require authentication.")
            if not names and channel == "user":
                names.extend(self.products)
            if not names:
                raise ApiError(400, "no product ids provided")
        first: list[bytes] = []
        for channel, names in asked.items():
            held = peer.channels.setdefault(channel, {})
            for name in names:
                if name not in held:
                    held[name] = None
                    first += self._first(channel, self.products[name])
        return [self._subscriptions(peer), *first]

    def _subscriptions(self, peer: CoinbasePeer) -> bytes:
        channels = [{"name": name, "product_ids": list(ids)} for name, ids in peer.channels.items()]
        return _encode({"type": "subscriptions", "channels": channels})

    def _first(self, channel: str, product: _Product) -> list[bytes]:
        """Return what a subscription begins with."""
        if channel in ("level2", "level2_batch"):
            _, bids, asks = self.exchange.snapshot(product.instrument.id, BOOK_LIMIT)
            told = [
                ",".join(f'["{product.tick.text(int(px))}","{product.lot.text(int(qty))}"]' for px, qty in side)
                for side in (asks, bids)
            ]
            return [
                f'{{"type":"snapshot","product_id":"{product.name}","asks":[{told[0]}],"bids":[{told[1]}],'
                f'"time":"{time_text(self._now_ns)}"}}'.encode()
            ]
        if channel == "full":
            self._follow_orders(product)
        if channel == "ticker" and product.last_trade_id:
            return [self._ticker(product, self._now_ns)]
        if channel == "matches" and product.trades:
            last = product.trades[-1]
            return [
                f'{{"type":"last_match","trade_id":{last["trade_id"]},"maker_order_id":"{last["maker_order_id"]}",'
                f'"taker_order_id":"{self._new_id()}","side":"{last["side"]}","size":"{last["size"]}",'
                f'"price":"{last["price"]}","product_id":"{product.name}","sequence":{last["sequence"]},'
                f'"time":"{last["time"]}"}}'.encode()
            ]
        return []

    # ---- REST

    def _operations(self) -> list[tuple[str, re.Pattern[str], Handler, bool]]:
        """Return method, path, handler and whether it is signed, of every operation."""
        product = r"/products/(?P<product>[A-Za-z0-9-]{1,32})"
        order = r"/orders/(?P<order>[A-Za-z0-9:-]{1,64})"
        return [
            (method, re.compile(path + r"\Z", re.ASCII), handler, signed)
            for method, path, handler, signed in (
                ("GET", "/time", self._get_time, False),
                ("GET", "/currencies", self._get_currencies, False),
                ("GET", "/products", self._get_products, False),
                ("GET", product, self._get_product, False),
                ("GET", product + "/book", self._get_book, False),
                ("GET", product + "/ticker", self._get_ticker, False),
                ("GET", product + "/trades", self._get_trades, False),
                ("GET", "/accounts", self._get_accounts, True),
                ("GET", "/fees", self._get_fees, True),
                ("GET", "/fills", self._get_fills, True),
                ("GET", "/orders", self._get_orders, True),
                ("GET", order, self._get_order, True),
                ("POST", "/orders", self._post_order, True),
                ("DELETE", "/orders", self._delete_orders, True),
                ("DELETE", order, self._delete_order, True),
            )
        ]

    def rest(
        self, method: str, path: str, query: bytes, body: bytes, headers: Mapping[str, str], wall_ms: int
    ) -> Answer:
        """Return the answer to a REST request; see `hftlab.venues.face.Face.rest`."""
        self._wall_ms = wall_ms
        self.counts["requests"] += 1
        try:
            status, reply = 200, _encode(self._operate(method, path, query, body, headers))
        except ApiError as error:
            self.counts["errors"] += 1
            status, reply = error.status, _encode({"message": error.message})
        return Answer(status, reply, {})

    def _operate(self, method: str, path: str, query: bytes, body: bytes, headers: Mapping[str, str]) -> object:
        for verb, pattern, handler, signed in self._table:
            match = pattern.match(path)
            if verb != method or match is None:
                continue
            account = self._nobody
            if signed:
                full = path + (f"?{query.decode('latin-1')}" if query else "")
                key, sign, stamp, word = (headers.get(f"CB-ACCESS-{name}", "") for name in _HEADERS)
                account = self._authenticate(key, sign, stamp, word, method, full, body)
            params = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
            return handler(next(iter(match.groups()), "") or "", params, _object(body), account)
        raise ApiError(404, "NotFound")

    @property
    def _nobody(self) -> Account:
        return _NOBODY

    def _authenticate(
        self, key: str, signature: str, stamp: str, passphrase: str, method: str, path: str, body: bytes
    ) -> Account:
        if not key or not signature or not stamp or not passphrase:
            raise ApiError(401, "CB-ACCESS-KEY, -SIGN, -TIMESTAMP and -PASSPHRASE are required")
        account = self.accounts.get(key)
        if account is None:
            raise ApiError(401, "Invalid API Key")
        if not _STAMP.match(stamp) or abs(Decimal(stamp) * 1000 - self._wall_ms) > TIMESTAMP_WINDOW_S * 1000:
            raise ApiError(400, "request timestamp expired")
        if passphrase != PASSPHRASE:
            raise ApiError(401, "Invalid Passphrase")
        if not account.verify(stamp, method, path, body, signature):
            raise ApiError(401, "invalid signature")
        return account

    def _get_time(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        return {"iso": time_text(self._wall_ms * 1_000_000), "epoch": self._wall_ms / 1000}

    def _get_currencies(
        self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account
    ) -> object:
        known = dict.fromkeys(
            code for p in self.products.values() for code in (p.instrument.base, p.instrument.quote)
        )  # fmt: skip
        return [
            {"id": code, "name": code, "min_size": "0.00000001", "status": "online", "max_precision": "0.00000001"}
            for code in known
        ]

    def _product(self, name: str) -> _Product:
        product = self.products.get(name)
        if product is None:
            raise ApiError(404, "NotFound")
        return product

    def _get_products(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        return [_product_info(product) for product in self.products.values()]

    def _get_product(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        return _product_info(self._product(name))

    def _get_book(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        product = self._product(name)
        level = params.get("level", "1")
        if level not in ("1", "2", "3"):
            raise ApiError(400, "Invalid level")
        px, lot = product.tick.text, product.lot.text
        sides: list[list[list[object]]] = []
        if level == "3":
            self._follow_orders(product)
            book = product.book or {}
            for side, sign in ((_BID, -1), (_ASK, 1)):
                keys = sorted((key for key in book if key[0] == side), key=lambda key: sign * key[1])
                sides.append([[px(k[1]), lot(o[1]), o[0]] for k in keys for o in book[k].orders])
        else:
            _, bids, asks = self.exchange.snapshot(product.instrument.id, 1 if level == "1" else BOOK_LIMIT)
            sides = [[[px(int(p)), lot(int(q)), 1] for p, q in side] for side in (bids, asks)]
        return {
            "bids": sides[0],
            "asks": sides[1],
            "sequence": product.sequence,
            "auction_mode": False,
            "auction": None,
            "time": time_text(self._now_ns),
        }

    def _get_ticker(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        product = self._product(name)
        return {
            "ask": product.tick.text(product.best[_ASK][0]),
            "bid": product.tick.text(product.best[_BID][0]),
            "volume": "0",
            "trade_id": product.last_trade_id,
            "price": product.tick.text(product.last_px),
            "size": product.lot.text(product.last_qty),
            "time": time_text(self._now_ns),
        }

    def _get_trades(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        newest = reversed(self._product(name).trades)
        shown = ("time", "trade_id", "price", "size", "side")
        return [{field: trade[field] for field in shown} for trade in itertools.islice(newest, 1000)]

    def _get_accounts(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        return [
            {
                "id": str(uuid.uuid5(_NAMESPACE, f"account {account.api_key} {code}")),
                "currency": code,
                "balance": _money(units),
                "hold": _money(account.held[code]),
                "available": _money(units - account.held[code]),
                "profile_id": account.id,
                "trading_enabled": True,
            }
            for code, units in account.balance.items()
        ]

    def _get_fees(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        maker, taker = (f"{Decimal(fee).scaleb(-8):f}" for fee in (self.maker_fee_e8, self.taker_fee_e8))
        return {"maker_fee_rate": maker, "taker_fee_rate": taker, "usd_volume": "0"}

    def _get_fills(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        if not params.get("order_id") and not params.get("product_id"):
            raise ApiError(400, "either order_id or product_id is required")
        wanted = [(field, params[field]) for field in ("order_id", "product_id") if params.get(field)]
        found = (fill for fill in account.fills if all(fill[field] == value for field, value in wanted))
        return list(itertools.islice(found, 1000))

    # ---- orders

    def fail_orders(self, code: int, msg: str, n: int = 1, carried_out: bool = False) -> None:
        """Let the next `n` order requests answer HTTP status `code`; with `carried_out` they take effect as well."""
        self.order_errors.extend([(ApiError(code if 400 <= code < 600 else 500, msg), carried_out)] * n)

    def _fault(self) -> tuple[ApiError, bool] | None:
        return self.order_errors.popleft() if self.order_errors else None

    def _post_order(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        fault = self._fault()
        self._check_rate(account)
        order = self._new_order(body, account)
        if fault is not None and not fault[1]:
            raise fault[0]
        self._submit(order)
        if fault is not None:
            raise fault[0]
        return _order_view(order)

    def _check_rate(self, account: Account) -> None:
        times = account.order_times
        while times and times[0] <= self._wall_ms - 10_000:
            times.popleft()
        if len(times) >= self.orders_per_10s:
            raise ApiError(429, "Private rate limit exceeded")
        times.append(self._wall_ms)

    def _new_order(self, body: Mapping[str, Any], account: Account) -> VenueOrder:
        """Return the order that `body` describes, checked as the venue checks it before its matching engine."""
        product = self.products.get(str(body.get("product_id")))
        if product is None:
            raise ApiError(404, "Product not found")
        side, order_type, tif = body.get("side"), body.get("type", "limit"), body.get("time_in_force", "GTC")
        if side not in _FLAG:
            raise ApiError(400, "Invalid side")
        if order_type not in ("limit", "market"):
            raise ApiError(400, f"Invalid order type: the simulated venue has limit and market, not {order_type}")
        for field in ("stop", "stop_price", "max_floor", "cancel_after"):
            if body.get(field) is not None:
                raise ApiError(400, f"{field} is not supported on the simulated venue")
        stp, post_only = body.get("stp", "dc"), body.get("post_only", False)
        if stp not in ("dc", "co"):
            raise ApiError(400, f"stp {stp} is not supported on the simulated venue; use dc or co")
        if tif not in _TIFS:
            raise ApiError(400, "Invalid time_in_force")
        if not isinstance(post_only, bool) or (post_only and (tif != "GTC" or order_type == "market")):
            raise ApiError(400, "Post only orders must be limit orders with time_in_force GTC")
        px = 0
        if order_type == "limit":
            px = self._counted(body, "price", product.tick)
            if px == 0:
                raise ApiError(400, f"price too small. Minimum price is {product.tick.text(1)}")
        qty = self._size(body, product, order_type, side, px)
        client_oid = body.get("client_oid", "")
        if client_oid and not _is_uuid(client_oid):
            raise ApiError(400, "Invalid client_oid")
        number = next(self._numbers)
        order_id = str(uuid.uuid5(_NAMESPACE, f"order {number}"))
        return VenueOrder(
            account, product, number, order_id, str(client_oid), side, order_type, tif, stp, post_only, px, qty,
            self._now_ns,
        )  # fmt: skip

    @staticmethod
    def _counted(body: Mapping[str, Any], field: str, scale: _Scale) -> int:
        text = body.get(field)
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        if not isinstance(text, str) or not _DECIMAL.match(text):
            raise ApiError(400, f"{field} is required and must be a decimal number")
        count = scale.count(text)
        if count is None:
            raise ApiError(400, f"{field} too precise ({text}): expected a multiple of {scale.text(1)}")
        return count

    def _size(self, body: Mapping[str, Any], product: _Product, order_type: str, side: str, px: int) -> int:
        instrument = product.instrument
        if body.get("size") is None and body.get("funds") is not None and order_type == "market":
            return self._lots_for(body, product, side)
        qty = self._counted(body, "size", product.lot)
        if qty < instrument.min_qty:
            raise ApiError(400, f"size is too small. Minimum size is {product.lot.text(instrument.min_qty)}")
        if qty > instrument.max_qty or px * qty > INT64_MAX:
            raise ApiError(400, f"size is too large. Maximum size is {product.lot.text(instrument.max_qty)}")
        if px and px * qty < instrument.min_notional:
            raise ApiError(400, "size is too small. The order is below the minimum notional")
        return qty

    def _levels(self, product: _Product, side: str) -> list[tuple[int, int]]:
        """Return what a taker of `side` may meet, best first: the other side less own clients' orders."""
        other = _ASK if side == "buy" else _BID
        _, bids, asks = self.exchange.snapshot(product.instrument.id, BOOK_LIMIT)
        own = product.own
        levels = ((int(px), int(qty)) for px, qty in (asks if side == "buy" else bids))
        return [(px, qty - own.get((other, px), 0)) for px, qty in levels if qty > own.get((other, px), 0)]

    def _lots_for(self, body: Mapping[str, Any], product: _Product, side: str) -> int:
        funds = _Scale(Decimal("0.0000000000000001"), "funds").count(str(body["funds"]))
        if funds is None and (not isinstance(body["funds"], str) or not _DECIMAL.match(body["funds"])):
            raise ApiError(400, "funds must be a decimal number")
        with localcontext() as context:
            context.prec = 60
            money = int(Decimal(str(body["funds"])) * E16)
        lots = 0
        for px, qty in self._levels(product, side):
            part = min(qty, money // (px * product.money_unit))
            lots += part
            money -= px * part * product.money_unit
            if part < qty:
                break
        if lots < product.instrument.min_qty:
            raise ApiError(400, "funds is too small")
        return lots

    def _hold_of(self, order: VenueOrder, px: int, lots: int) -> int:
        """Return what `lots` of an order at `px` hold, in 1e-16 of the order's asset."""
        if order.side == "sell":
            return order.product.base_e16(lots)
        money = px * lots * order.product.money_unit
        worst = max(self.maker_fee_e8, self.taker_fee_e8, 0)
        # each partial fill rounds its fee to 1e-8 on its own: a thousand of them are provided for
        return money + (money * worst // 10**8 + 10**8 * min(lots, 1000) if worst else 0)

    def _admit(self, order: VenueOrder) -> None:
        account = order.account
        if order.client_oid and account.by_client.get(order.client_oid) is not None:
            raise ApiError(400, "client_oid already exists")
        open_orders = sum(1 for o in self._orders.values() if o.account is account and o.open)
        if open_orders >= MAX_OPEN_ORDERS * len(self.products):
            raise ApiError(400, f"Too many open orders: at most {MAX_OPEN_ORDERS} a product")
        if order.px or order.side == "sell":
            hold = self._hold_of(order, order.px, order.qty)
        else:
            cost, left = 0, order.qty
            for px, qty in self._levels(order.product, "buy"):
                part = min(qty, left)
                cost, left = cost + self._hold_of(order, px, part), left - part
                if left == 0:
                    break
            hold = cost
        if account.balance[order.asset] - account.held[order.asset] < hold:
            raise ApiError(400, "Insufficient funds")
        account.held[order.asset] += hold
        order.held = hold

    def _submit(self, order: VenueOrder) -> None:
        self._admit(order)
        product = order.product
        self._orders[order.number] = order
        self._by_id[order.id] = order
        if order.client_oid:
            order.account.by_client[order.client_oid] = order
        self._rest(order, order.qty)
        self.counts["orders"] += 1
        client = f'"client_oid":"{order.client_oid}",' if order.client_oid else ""
        what = f'"price":"{product.tick.text(order.px)}",' if order.px else ""
        received = (
            f'"type":"received","side":"{order.side}","order_id":"{order.id}","order_type":"{order.type}",'
            f'{what}{client}"size":"{product.lot.text(order.qty)}"'
        )
        rows = self.exchange.send(_submit_rows(order), self._now_ns)
        if _is_reject(rows):
            self._absorb(rows)
            return  # the venue tells nobody of an order that its engine never took
        self._say(product, received, order.created_ns, order)
        self._absorb(rows)
        if order.open:
            order.opened = True
            self._open(
                product, (_FLAG[order.side], order.px), order.id, order.qty - order.cum, self._now_ns, order
            )  # fmt: skip

    def _find(self, name: str, account: Account) -> VenueOrder:
        order = account.by_client.get(name[7:]) if name.startswith("client:") else self._by_id.get(name)
        if order is None or order.account is not account:
            raise ApiError(404, "order not found")
        return order

    def _get_order(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        return _order_view(self._find(name, account))

    def _get_orders(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        wanted = {params.get("status", "open")} if params.get("status") not in (None, "all") else None
        if params.get("status") is None:
            wanted = {"open", "pending", "active"}
        found = [
            _order_view(order)
            for order in self._orders.values()
            if order.account is account
            and (wanted is None or order.status in wanted)
            and params.get("product_id") in (None, order.product.name)
        ]
        return found[::-1][:1000]

    def _cancel(self, order: VenueOrder) -> None:
        rows = np.zeros(1, ROW)
        row = rows[0]
        row["kind"], row["instrument"] = Kind.CANCEL, order.product.instrument.id
        row["a"], row["ts_event"], row["ts_recv"] = order.number, self._now_ns, self._now_ns
        self._absorb(self.exchange.send(rows, self._now_ns))

    def _delete_order(self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account) -> object:
        fault = self._fault()
        order = self._find(name, account)
        if fault is not None and not fault[1]:
            raise fault[0]
        if not order.open:
            raise ApiError(400, "Order already done")
        self._cancel(order)
        if order.done_reason != "canceled":
            raise ApiError(400, "Order already done")
        if fault is not None:
            raise fault[0]
        return order.id

    def _delete_orders(
        self, name: str, params: Mapping[str, str], body: Mapping[str, Any], account: Account
    ) -> object:
        canceled = []
        for order in list(self._orders.values()):
            if order.account is account and order.open and params.get("product_id") in (None, order.product.name):
                self._cancel(order)
                canceled.append(order.id)
        return canceled


_NOBODY = Account("", "", {})
"""Stands for the caller of a public operation."""


def _object(body: bytes) -> Mapping[str, Any]:
    """Return a JSON object; numbers with a fraction keep their text, so that nothing is rounded."""
    if not body:
        return {}
    try:
        value = read_json(body, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "Malformed JSON") from error
    if not isinstance(value, dict):
        raise ApiError(400, "Malformed JSON")
    return value


def _is_uuid(text: object) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _is_reject(rows: RowArray) -> bool:
    return len(rows) > 0 and rows[0]["kind"] == Kind.REPORT and int(rows[0]["code"]) & 255 == ExecType.REJECT


def _submit_rows(order: VenueOrder) -> RowArray:
    """Return the SUBMIT row of `order`, with its payload row when it is a market order."""
    market = order.type == "market"
    rows = np.zeros(2 if market else 1, ROW)
    row = rows[0]
    row["kind"], row["span"] = Kind.SUBMIT, int(market)
    row["instrument"], row["a"] = order.product.instrument.id, order.number
    row["flags"] = _FLAG[order.side] | (int(Flag.POST_ONLY) if order.post_only else 0)
    row["code"] = Tif.IOC if market else _TIFS[order.tif]
    row["px"], row["qty"] = order.px, order.qty
    if market:
        payload = rows[1:].view(ORDER_PAYLOAD)
        payload["kind"], payload["span"] = Kind.CONT, 1
        payload["ord_type"] = OrdType.MARKET
    return rows


def _order_view(order: VenueOrder) -> dict[str, object]:
    product = order.product
    view: dict[str, object] = {
        "id": order.id,
        "product_id": product.name,
        "profile_id": order.account.id,
        "side": order.side,
        "type": order.type,
        "stp": order.stp,
        "size": product.lot.text(order.qty),
        "post_only": order.post_only,
        "created_at": time_text(order.created_ns),
        "fill_fees": _money(order.fees),
        "filled_size": product.lot.text(order.cum),
        "executed_value": _money(order.cum_quote * product.money_unit),
        "status": order.status,
        "settled": order.status == "done",
    }
    if order.px:
        view |= {"price": product.tick.text(order.px), "time_in_force": order.tif}
    if order.client_oid:
        view["client_oid"] = order.client_oid
    if order.status == "done":
        view |= {"done_at": time_text(order.done_ns), "done_reason": order.done_reason}
    if order.status == "rejected":
        view |= {"done_at": time_text(order.done_ns), "reject_reason": order.reject}
    return view


def _product_info(product: _Product) -> dict[str, object]:
    instrument = product.instrument
    return {
        "id": product.name,
        "base_currency": instrument.base,
        "quote_currency": instrument.quote,
        "quote_increment": product.tick.text(1),
        "base_increment": product.lot.text(1),
        "display_name": f"{instrument.base}-{instrument.quote}",
        "min_market_funds": f"{instrument.money(instrument.min_notional).normalize():f}",
        "margin_enabled": False,
        "post_only": False,
        "limit_only": False,
        "cancel_only": False,
        "status": "online",
        "status_message": "",
        "trading_disabled": False,
        "fx_stablecoin": False,
        "auction_mode": False,
    }


def make_face(
    exchange: Exchange,
    instruments: Sequence[Instrument],
    *,
    accounts: Iterable[AccountKey],
    maker_fee_e8: int,
    taker_fee_e8: int,
    orders_per_10s: int,
) -> CoinbaseServer:
    """Return the venue's face over `exchange`; see `hftlab.venues.face.ServerModule`."""
    return CoinbaseServer(
        exchange,
        instruments,
        accounts=accounts,
        maker_fee_e8=maker_fee_e8,
        taker_fee_e8=taker_fee_e8,
        orders_per_10s=orders_per_10s,
    )
