"""Coinbase's face: signed requests, holds and fees, the feed, and the orders told to the full channel."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from decimal import Decimal
from typing import Any

import pytest

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.venues.coinbase.server import (
    DEFAULT_ACCOUNT,
    DEFAULT_INSTRUMENTS,
    PASSPHRASE,
    Account,
    CoinbasePeer,
    CoinbaseServer,
)

START_NS = 1_767_225_600_000_000_000
WALL_MS = 1_767_225_600_000
KEY, SECRET = DEFAULT_ACCOUNT[:2]
BTC = DEFAULT_INSTRUMENTS["BTC-USD"]
LIMIT = {"product_id": "BTC-USD", "side": "buy", "type": "limit", "price": "50000.00", "size": "0.01"}


def sign(stamp: str, method: str, path: str, body: bytes = b"") -> str:
    message = f"{stamp}{method}{path}".encode() + body
    return base64.b64encode(hmac.new(base64.b64decode(SECRET), message, hashlib.sha256).digest()).decode()


class Venue:
    """A server on a synthetic market with the clock in the test's hand."""

    def __init__(self, fees: Fees | None = None, **kwargs: Any) -> None:
        fees = fees or Fees(0, 0)
        self.exchange = MatchingExchange([BTC], seed=3, fees=fees, start_ns=START_NS)
        self.server = CoinbaseServer(
            self.exchange, [BTC], maker_fee_e8=fees.maker_e8, taker_fee_e8=fees.taker_e8, **kwargs
        )
        self.now_ns = START_NS
        self.product = self.server.products["BTC-USD"]
        self.account = self.server.accounts[KEY]
        self.pass_s(0.5)
        self.server.take()

    def pass_s(self, seconds: float) -> None:
        for _ in range(max(int(seconds * 100), 1)):
            self.now_ns += 10_000_000
            self.server.tick(self.now_ns, self.exchange.advance(self.now_ns))

    def raw(self, method: str, path: str, query: bytes = b"", body: bytes = b"", **headers: str) -> Any:
        named = {f"CB-ACCESS-{name}": value for name, value in headers.items()}
        answer = self.server.rest(method, path, query, body, named, WALL_MS)
        return answer.status, json.loads(answer.body)

    def signed(self, method: str, path: str, query: str = "", body: object = None) -> Any:
        sent = b"" if body is None else json.dumps(body).encode()
        stamp = str(WALL_MS // 1000)
        full = path + (f"?{query}" if query else "")
        return self.raw(
            method, path, query.encode(), sent,
            KEY=KEY, SIGN=sign(stamp, method, full, sent), TIMESTAMP=stamp, PASSPHRASE=PASSPHRASE,
        )  # fmt: skip

    def place(self, **fields: object) -> Any:
        return self.signed("POST", "/orders", body={**LIMIT, **fields})

    def listen(self, *channels: str, own: bool = False) -> tuple[CoinbasePeer, list[dict[str, Any]]]:
        peer = self.server.peer("/", "")
        request: dict[str, Any] = {"type": "subscribe", "product_ids": ["BTC-USD"], "channels": list(channels)}
        if own:
            stamp = str(WALL_MS // 1000)
            request |= {"key": KEY, "passphrase": PASSPHRASE, "timestamp": stamp}
            request["signature"] = sign(stamp, "GET", "/users/self/verify")
        return peer, [json.loads(text) for text in peer.receive(json.dumps(request), WALL_MS)]

    def heard(self, peer: CoinbasePeer) -> list[dict[str, Any]]:
        return [json.loads(text) for item in self.server.take() for text in peer.render(item)]

    def book(self) -> dict[tuple[int, int], int]:
        _, bids, asks = self.exchange.snapshot(0, 5000)
        return {(1, int(p)): int(q) for p, q in bids} | {(2, int(p)): int(q) for p, q in asks}


@pytest.fixture
def venue() -> Venue:
    return Venue()


# ---- public requests


def test_products_state_increments_as_text(venue: Venue) -> None:
    status, (product,) = venue.raw("GET", "/products")
    assert status == 200
    assert (product["id"], product["quote_increment"], product["base_increment"]) == ("BTC-USD", "0.01", "0.00001")
    assert product["min_market_funds"] == "1"
    assert venue.raw("GET", "/products/BTC-USD")[1] == product


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_book_of_every_level_agrees_with_the_market(venue: Venue, level: int) -> None:
    _, book = venue.raw("GET", "/products/BTC-USD/book", f"level={level}".encode())
    totals: dict[tuple[int, int], int] = {}
    for side, name in ((1, "bids"), (2, "asks")):
        for px, size, *_ in book[name]:
            key = (side, BTC.px_ticks(px))
            totals[key] = totals.get(key, 0) + BTC.qty_lots(size)
    expected = venue.book()
    assert totals == (expected if level > 1 else {key: expected[key] for key in totals})
    assert len(totals) == 2 or level > 1


def test_what_does_not_exist_is_not_found(venue: Venue) -> None:
    for path in ("/products/NOPE", "/products/NOPE/book", "/nothing", "/products/BTC-USD/nothing"):
        assert venue.raw("GET", path) == (404, {"message": "NotFound"})
    assert venue.raw("GET", "/products/BTC-USD/book", b"level=9")[0] == 400


# ---- signatures


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        ({"KEY": "nobody"}, 401, "Invalid API Key"),
        ({"SIGN": base64.b64encode(bytes(32)).decode()}, 401, "invalid signature"),
        ({"SIGN": "\xff"}, 401, "invalid signature"),
        ({"PASSPHRASE": "x"}, 401, "Invalid Passphrase"),
        ({"TIMESTAMP": str(WALL_MS // 1000 - 31)}, 400, "request timestamp expired"),
        ({"TIMESTAMP": "1e9"}, 400, "request timestamp expired"),
        ({"SIGN": ""}, 401, "CB-ACCESS-KEY, -SIGN, -TIMESTAMP and -PASSPHRASE are required"),
    ],
)
def test_a_wrong_header_is_refused_by_name(venue: Venue, wrong: dict[str, str], status: int, message: str) -> None:
    stamp = str(WALL_MS // 1000)
    right = {"KEY": KEY, "SIGN": sign(stamp, "GET", "/accounts"), "TIMESTAMP": stamp, "PASSPHRASE": PASSPHRASE}
    assert venue.raw("GET", "/accounts", **right)[0] == 200
    assert venue.raw("GET", "/accounts", **{**right, **wrong}) == (status, {"message": message})


def test_the_signature_covers_query_and_body(venue: Venue) -> None:
    stamp = str(WALL_MS // 1000)
    head = {"KEY": KEY, "TIMESTAMP": stamp, "PASSPHRASE": PASSPHRASE}
    assert venue.raw("GET", "/orders", b"status=all", **head, SIGN=sign(stamp, "GET", "/orders?status=all"))[0] == 200
    assert venue.raw("GET", "/orders", b"status=all", **head, SIGN=sign(stamp, "GET", "/orders"))[0] == 401
    body = json.dumps(LIMIT).encode()
    assert venue.raw("POST", "/orders", b"", body, **head, SIGN=sign(stamp, "POST", "/orders", b"{}"))[0] == 401


def test_a_secret_that_is_no_base64_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="base64"):
        Account("key", "not base64!", {})
    with pytest.raises(ConfigError, match="balance of BTC"):
        Account("key", SECRET, {"BTC": Decimal(-1)})


# ---- orders


def test_a_resting_buy_holds_its_price_and_a_cancel_gives_it_back(venue: Venue) -> None:
    status, order = venue.place()
    assert (status, order["status"], order["price"], order["size"]) == (200, "open", "50000.00", "0.01000")
    held = {a["currency"]: Decimal(a["hold"]) for a in venue.signed("GET", "/accounts")[1]}
    assert held == {"BTC": 0, "USD": 500}
    assert [o["id"] for o in venue.signed("GET", "/orders")[1]] == [order["id"]]
    assert venue.signed("DELETE", f"/orders/{order['id']}") == (200, order["id"])
    assert venue.signed("GET", f"/orders/{order['id']}")[1]["done_reason"] == "canceled"
    assert venue.account.held == {"BTC": 0, "USD": 0}
    assert venue.product.own == {}
    assert venue.signed("DELETE", f"/orders/{order['id']}") == (400, {"message": "Order already done"})
    assert venue.signed("DELETE", "/orders/nope") == (404, {"message": "order not found"})


def test_a_market_order_fills_and_pays_its_fee_exactly() -> None:
    venue = Venue(Fees(maker_e8=400_000, taker_e8=600_000))
    status, order = venue.place(type="market", price=None, size="0.02")
    assert (status, order["status"], order["filled_size"]) == (200, "done", "0.02000")
    fills = venue.signed("GET", "/fills", f"order_id={order['id']}")[1]
    assert sum(Decimal(fill["size"]) for fill in fills) == Decimal("0.02")
    cost = sum(Decimal(fill["size"]) * Decimal(fill["price"]) for fill in fills)
    fee = sum(Decimal(fill["fee"]) for fill in fills)
    assert (Decimal(order["executed_value"]), Decimal(order["fill_fees"])) == (cost, fee)
    assert abs(fee - cost * Decimal("0.006")) <= Decimal("1e-8") * len(fills)
    balance = {a["currency"]: Decimal(a["balance"]) for a in venue.signed("GET", "/accounts")[1]}
    assert balance == {"BTC": Decimal("10.02"), "USD": 1_000_000 - cost - fee}
    assert venue.account.held == {"BTC": 0, "USD": 0}


def test_money_is_neither_made_nor_lost_by_a_mixed_day() -> None:
    venue = Venue(Fees(maker_e8=-10_000, taker_e8=60_000))
    for step in range(60):
        best = venue.product.best
        side = "buy" if step % 2 else "sell"
        px = best[1][0] + (step % 5) - 2 if side == "buy" else best[2][0] - (step % 5) + 2
        assert venue.place(side=side, price=str(BTC.px(px)), size="0.05")[0] == 200
        venue.pass_s(0.05)
    orders = venue.signed("GET", "/orders", "status=all")[1]
    assert {"done", "open"} >= {order["status"] for order in orders}
    venue.signed("DELETE", "/orders", "product_id=BTC-USD")
    fills = venue.signed("GET", "/fills", "product_id=BTC-USD")[1]
    assert {fill["liquidity"] for fill in fills} == {"M", "T"}
    base, quote = Decimal(10), Decimal(1_000_000)
    for fill in fills:
        way = 1 if fill["side"] == "buy" else -1
        base += way * Decimal(fill["size"])
        quote -= way * Decimal(fill["size"]) * Decimal(fill["price"]) + Decimal(fill["fee"])
    balance = {a["currency"]: Decimal(a["balance"]) for a in venue.signed("GET", "/accounts")[1]}
    assert balance == {"BTC": base, "USD": quote}
    assert venue.account.held == {"BTC": 0, "USD": 0}
    assert venue.product.own == {}


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"product_id": "NOPE"}, 404, "Product not found"),
        ({"side": "up"}, 400, "Invalid side"),
        ({"type": "stop"}, 400, "Invalid order type"),
        ({"price": "50000.001"}, 400, "price too precise"),
        ({"price": "0"}, 400, "price too small"),
        ({"price": "-1"}, 400, "price is required"),
        ({"size": "0.000001"}, 400, "size too precise"),
        ({"size": "0"}, 400, "size is too small"),
        ({"size": "341"}, 400, "size is too large"),
        ({"size": "0.00001"}, 400, "size is too small"),
        ({"size": "100"}, 400, "Insufficient funds"),
        ({"time_in_force": "GTT"}, 400, "Invalid time_in_force"),
        ({"post_only": True, "time_in_force": "IOC"}, 400, "Post only"),
        ({"client_oid": "mine"}, 400, "Invalid client_oid"),
        ({"stp": "cn"}, 400, "stp cn is not supported"),
        ({"stop": "loss"}, 400, "stop is not supported"),
        ({"type": "market", "size": None, "funds": "x"}, 400, "funds must be"),
    ],
)
def test_an_order_that_breaks_a_rule_is_refused(
    venue: Venue, fields: dict[str, object], status: int, message: str
) -> None:
    got, answer = venue.place(**fields)
    assert got == status
    assert answer["message"].startswith(message)
    assert venue.account.held == {"BTC": 0, "USD": 0}


def test_an_ioc_order_that_finds_nothing_is_done(venue: Venue) -> None:
    order = venue.place(time_in_force="IOC")[1]
    assert (order["status"], order["done_reason"], order["filled_size"]) == ("done", "canceled", "0.00000")


def test_a_post_only_order_that_would_trade_is_rejected_and_nobody_hears_of_it(venue: Venue) -> None:
    peer, _ = venue.listen("user", own=True)
    order = venue.place(price="70000.00", post_only=True)[1]
    assert order["status"] == "rejected"
    assert venue.heard(peer) == []
    assert venue.account.held == {"BTC": 0, "USD": 0}
    assert venue.product.own == {}


def test_funds_buy_what_the_book_gives_for_them(venue: Venue) -> None:
    order = venue.place(type="market", price=None, size=None, funds="1000")[1]
    assert order["status"] == "done"
    assert Decimal("999") < Decimal(order["executed_value"]) <= 1000


def test_a_client_oid_names_an_order_and_is_used_once(venue: Venue) -> None:
    mine = "d50ec984-77a8-460a-b958-66f114b0de9b"
    order = venue.place(client_oid=mine)[1]
    assert venue.signed("GET", f"/orders/client:{mine}")[1]["id"] == order["id"]
    assert venue.place(client_oid=mine)[0] == 400


def test_orders_beyond_the_rate_are_429() -> None:
    venue = Venue(orders_per_10s=2)
    assert [venue.place()[0] for _ in range(3)] == [200, 200, 429]


def test_an_error_asked_for_may_be_carried_out(venue: Venue) -> None:
    venue.server.fail_orders(503, "ServiceUnavailable", carried_out=True)
    assert venue.place() == (503, {"message": "ServiceUnavailable"})
    assert len(venue.signed("GET", "/orders")[1]) == 1
    venue.server.fail_orders(500, "Internal server error")
    assert venue.place()[0] == 500
    assert len(venue.signed("GET", "/orders")[1]) == 1


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"product_id":' + b"[" * 5000])
def test_a_body_that_is_no_object_is_refused(venue: Venue, body: bytes) -> None:
    stamp = str(WALL_MS // 1000)
    head = {"KEY": KEY, "TIMESTAMP": stamp, "PASSPHRASE": PASSPHRASE, "SIGN": sign(stamp, "POST", "/orders", body)}
    assert venue.raw("POST", "/orders", b"", body, **head) == (400, {"message": "Malformed JSON"})


# ---- the feed


def apply_level2(book: dict[tuple[int, int], int], message: dict[str, Any]) -> None:
    for side, px, size in message["changes"]:
        key = (1 if side == "buy" else 2, BTC.px_ticks(px))
        if BTC.qty_lots(size):
            book[key] = BTC.qty_lots(size)
        else:
            book.pop(key, None)


@pytest.mark.parametrize("channel", ["level2", "level2_batch"])
def test_snapshot_and_updates_follow_the_market(venue: Venue, channel: str) -> None:
    peer, (ack, snapshot) = venue.listen(channel, own=True)
    assert ack == {"type": "subscriptions", "channels": [{"name": channel, "product_ids": ["BTC-USD"]}]}
    book = {(1, BTC.px_ticks(p)): BTC.qty_lots(q) for p, q in snapshot["bids"]}
    book |= {(2, BTC.px_ticks(p)): BTC.qty_lots(q) for p, q in snapshot["asks"]}
    assert book == venue.book()
    venue.place(price=str(BTC.px(venue.product.best[1][0])))
    venue.pass_s(2.0)
    messages = venue.heard(peer)
    assert {m["type"] for m in messages} == {"l2update"} and len(messages) > 20
    for message in messages:
        apply_level2(book, message)
    venue.now_ns += 1
    assert book == venue.book()


def test_the_full_channel_tells_the_same_book_order_by_order(venue: Venue) -> None:
    peer, _ = venue.listen("full", own=True)
    _, first = venue.raw("GET", "/products/BTC-USD/book", b"level=3")
    orders = {o: (s, BTC.px_ticks(p), BTC.qty_lots(q)) for s, n in ((1, "bids"), (2, "asks")) for p, q, o in first[n]}
    for step in range(40):
        best = venue.product.best
        side = "buy" if step % 2 else "sell"
        px = best[1][0] + step % 3 - 1 if side == "buy" else best[2][0] - step % 3 + 1
        order = venue.place(side=side, price=str(BTC.px(px)), size="0.03")[1]
        venue.pass_s(0.05)
        if step % 3 == 0:
            venue.signed("DELETE", f"/orders/{order['id']}")
    messages = venue.heard(peer)
    assert [m["sequence"] for m in messages] == [first["sequence"] + 1 + i for i in range(len(messages))]
    assert {m["type"] for m in messages} == {"received", "open", "match", "change", "done"}
    for message in messages:
        order_id = message.get("order_id", message.get("maker_order_id"))
        if message["type"] == "open":
            assert order_id not in orders
            side_flag = 1 if message["side"] == "buy" else 2
            orders[order_id] = (side_flag, BTC.px_ticks(message["price"]), BTC.qty_lots(message["remaining_size"]))
        elif message["type"] == "done":
            orders.pop(order_id, None)
        elif message["type"] == "change":
            side_flag, px, lots = orders[order_id]
            assert lots == BTC.qty_lots(message["old_size"])
            orders[order_id] = (side_flag, px, BTC.qty_lots(message["new_size"]))
        elif message["type"] == "match":
            side_flag, px, lots = orders[order_id]
            assert px == BTC.px_ticks(message["price"]) and lots >= BTC.qty_lots(message["size"])
            orders[order_id] = (side_flag, px, lots - BTC.qty_lots(message["size"]))
    levels: dict[tuple[int, int], int] = {}
    for side_flag, px, lots in orders.values():
        levels[side_flag, px] = levels.get((side_flag, px), 0) + lots
    assert {key: lots for key, lots in levels.items() if lots} == venue.book()


def test_the_user_channel_tells_an_orders_life_in_order(venue: Venue) -> None:
    peer, _ = venue.listen("user", own=True)
    assert peer.scope == "user"
    stranger, _ = venue.listen("matches")
    best = venue.product.best[2][0]
    order = venue.place(price=str(BTC.px(best)), size="5.0")[1]
    venue.signed("DELETE", f"/orders/{order['id']}")
    items = venue.server.take()
    mine = [json.loads(text) for item in items for text in peer.render(item)]
    types = [m["type"] for m in mine]
    assert types[0] == "received" and types[-2:] == ["open", "done"] and set(types[1:-2]) == {"match"}
    assert {m["profile_id"] for m in mine} == {venue.account.id}
    filled = sum(BTC.qty_lots(m["size"]) for m in mine if m["type"] == "match")
    assert BTC.qty_lots(mine[-2]["remaining_size"]) == BTC.qty_lots("5.0") - filled
    public = [json.loads(text) for item in items for text in stranger.render(item)]
    assert public and all(m["type"] == "match" and "profile_id" not in m for m in public)


def test_a_ticker_shows_the_touch_and_the_last_trade(venue: Venue) -> None:
    peer, _ = venue.listen("ticker", "matches")
    venue.pass_s(3.0)
    messages = venue.heard(peer)
    ticker = [m for m in messages if m["type"] == "ticker"][-1]
    match = [m for m in messages if m["type"] == "match"][-1]
    assert (ticker["trade_id"], ticker["price"], ticker["last_size"]) == (
        match["trade_id"], match["price"], match["size"],
    )  # fmt: skip
    assert ticker["side"] != match["side"]  # the taker's and the maker's
    ids = [m["trade_id"] for m in messages if m["type"] == "match"]
    assert ids == list(range(ids[0], ids[-1] + 1))
    _, (_, last) = venue.listen("matches")
    assert (last["type"], last["trade_id"]) == ("last_match", ids[-1])


def test_heartbeats_come_by_poll_for_what_was_asked(venue: Venue) -> None:
    peer, _ = venue.listen("heartbeat")
    (beat,) = [json.loads(text) for text in peer.poll(WALL_MS)]
    assert (beat["type"], beat["product_id"], beat["sequence"]) == ("heartbeat", "BTC-USD", venue.product.sequence)


@pytest.mark.parametrize(
    ("request_", "message", "reason"),
    [
        ("{", "Malformed JSON", None),
        ('{"type":"nothing"}', "Malformed JSON", None),
        ('{"type":"subscribe","product_ids":["BTC-USD"]}', "Failed to subscribe", "no channels provided"),
        (
            '{"type":"subscribe","product_ids":["X"],"channels":["ticker"]}',
            "Failed to subscribe", "X is not a valid product",
        ),
        (
            '{"type":"subscribe","product_ids":["BTC-USD"],"channels":["x"]}',
            "Failed to subscribe", "x is not a valid channel",
        ),
        ('{"type":"subscribe","channels":["ticker"]}', "Failed to subscribe", "no product ids provided"),
        (
            '{"type":"subscribe","product_ids":["BTC-USD"],"channels":["full"]}',
            "Authentication Failed", "full subscriptions now require authentication.",
        ),
        (
            '{"type":"subscribe","product_ids":["BTC-USD"],"channels":["user"],"key":"k","signature":"s",'
            '"timestamp":"1","passphrase":"p"}',
            "Authentication Failed", "Invalid API Key",
        ),
    ],
)  # fmt: skip
def test_a_bad_request_is_answered_and_changes_nothing(
    venue: Venue, request_: str, message: str, reason: str | None
) -> None:
    peer = venue.server.peer("/", "")
    (answer,) = [json.loads(text) for text in peer.receive(request_, WALL_MS)]
    assert (answer["type"], answer["message"], answer.get("reason")) == ("error", message, reason)
    assert not peer.ready


def test_an_unsubscription_ends_a_channel(venue: Venue) -> None:
    peer, _ = venue.listen("level2_batch", "ticker")
    request = {"type": "unsubscribe", "product_ids": ["BTC-USD"], "channels": ["level2_batch"]}
    (ack,) = [json.loads(text) for text in peer.receive(json.dumps(request), WALL_MS)]
    assert [c["name"] for c in ack["channels"]] == ["ticker"]
    venue.pass_s(0.5)
    assert {m["type"] for m in venue.heard(peer)} <= {"ticker"}


def test_what_cannot_be_served_is_refused_at_the_start() -> None:
    nameless = Instrument(0, "coinbase", "X-Y", Decimal("0.01"), Decimal("0.01"))
    with pytest.raises(ConfigError, match="base and quote"):
        CoinbaseServer(MatchingExchange([BTC]), [nameless])
    fine = Instrument(0, "coinbase", "X-Y", Decimal("1e-10"), Decimal("1e-10"), "X", "Y")
    with pytest.raises(ConfigError, match="16 decimals"):
        CoinbaseServer(MatchingExchange([BTC]), [fine])
