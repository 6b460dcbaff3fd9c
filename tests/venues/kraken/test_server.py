"""Kraken's face: tokens, subscriptions, books with right checksums, orders with holds and fees."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from hftlab.core.errors import ConfigError
from hftlab.core.rows import REPORT_PAYLOAD, ROW, BookState, ExecType, Flag, Kind, Side, Tif
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.venues.kraken.connection import MarketConnection
from hftlab.venues.kraken.messages import instruments_from_asset_pairs, instruments_from_channel
from hftlab.venues.kraken.orders import OrderCodec
from hftlab.venues.kraken.server import (
    DEFAULT_ACCOUNT,
    DEFAULT_INSTRUMENTS,
    Account,
    KrakenPeer,
    KrakenServer,
)
from hftlab.venues.kraken.spec import depth_path

START_NS = 1_767_225_600_000_000_000
WALL_MS = 1_767_225_600_000
KEY, SECRET = DEFAULT_ACCOUNT[:2]
BTC = DEFAULT_INSTRUMENTS["BTC/USD"]


class Venue:
    """A server on a synthetic market with the clock in the test's hand."""

    def __init__(self, fees: Fees | None = None, **settings: Any) -> None:
        fees = fees or Fees(0, 0)
        self.exchange = MatchingExchange([BTC], seed=3, fees=fees, start_ns=START_NS)
        self.server = KrakenServer(
            self.exchange, [BTC], maker_fee_e8=fees.maker_e8, taker_fee_e8=fees.taker_e8, **settings
        )
        self.now_ns, self.nonce = START_NS, 0
        self.account = self.server.accounts[KEY]
        self.got: dict[KrakenPeer, list[bytes]] = {}
        self.codec = OrderCodec([BTC], KEY, SECRET, "test-", [BTC.base, BTC.quote])
        self.pass_s(0.3)

    def fan_out(self) -> None:
        for item in self.server.take():
            for peer, got in self.got.items():
                got += peer.render(item)

    def pass_s(self, seconds: float, ms: int = 10) -> None:
        for _ in range(max(int(seconds * 1000 / ms), 1)):
            self.now_ns += ms * 1_000_000
            self.server.tick(self.now_ns, self.exchange.advance(self.now_ns))
            self.fan_out()

    def peer(self, path: str = "/v2") -> KrakenPeer:
        peer = self.server.peer(path, "")
        self.got[peer] = []
        return peer

    def ask(self, peer: KrakenPeer, **message: Any) -> list[dict[str, Any]]:
        self.got[peer] += peer.receive(json.dumps(message), WALL_MS)
        self.fan_out()
        return self.read(peer)

    def read(self, peer: KrakenPeer) -> list[dict[str, Any]]:
        got, self.got[peer] = self.got[peer], []
        return [json.loads(raw, parse_float=Decimal) for raw in got]

    def private(self, path: str, **params: object) -> dict[str, Any]:
        self.nonce += 1
        path, body, headers = self.codec.rest_request(path, params, self.nonce)
        return dict(json.loads(self.server.rest("POST", path, b"", body.encode(), headers, WALL_MS).body))

    def trader(self) -> KrakenPeer:
        """A client that has subscribed to the account's executions."""
        self.nonce += 1
        path, body, headers = self.codec.token_request(self.nonce)
        self.codec.take_token(self.server.rest("POST", path, b"", body.encode(), headers, WALL_MS).body)
        peer = self.peer("/auth/v2")
        self.ask(peer, method="subscribe", params={"channel": "executions", "token": self.codec.token})
        return peer

    def order(self, peer: KrakenPeer, method: str = "add_order", **params: Any) -> list[dict[str, Any]]:
        return self.ask(peer, method=method, params={**params, "token": self.codec.token}, req_id=1)


LIMIT = {"order_type": "limit", "side": "buy", "symbol": "BTC/USD", "order_qty": 0.01, "limit_price": 50000.0}


def events(told: list[dict[str, Any]]) -> list[str]:
    private = [message for message in told if message.get("channel") == "executions"]
    return [event["exec_type"] for message in private for event in message["data"]]


# ---- books and other market data


@pytest.mark.parametrize("depth", [10, 25, 100])
def test_our_connection_holds_the_exchanges_book_at_every_depth(depth: int) -> None:
    venue = Venue()
    connection = MarketConnection([BTC], depth=depth)
    out = np.zeros(connection.rows_needed, ROW)
    book: dict[tuple[int, int], int] = {}
    peer = venue.peer()
    connection.on_open(0)
    for request in connection.subscribe_requests([0]):
        venue.got[peer] += peer.receive(request, WALL_MS)
    moved = 0
    for _ in range(150):
        for raw in venue.got[peer]:
            for row in out[: connection.on_frame(raw, 1, out)]:
                side = int(row["flags"]) & 3
                if row["kind"] == Kind.LEVEL:
                    book[side, int(row["px"])] = int(row["qty"])
                    moved += 1
                elif row["kind"] == Kind.CLEAR:
                    book.clear()
                elif row["kind"] == Kind.BOOK_STATE:
                    assert row["code"] == BookState.LIVE
        venue.got[peer] = []
        _, bids, asks = venue.exchange.snapshot(0, depth)
        truth = {(1, int(px)): int(qty) for px, qty in bids} | {(2, int(px)): int(qty) for px, qty in asks}
        assert {key: qty for key, qty in book.items() if qty} == truth
        venue.pass_s(0.02)
    assert moved > 500 and connection.counts["gaps"] == 0 and connection.decoder.counts["fallback"] <= 4
    assert connection.counts["resubscribed"] == 0 and not connection.errors


def test_two_clients_of_one_book_begin_at_different_times_and_agree() -> None:
    venue, books = Venue(), []
    for _ in range(2):
        connection, peer = MarketConnection([BTC], depth=10), venue.peer()
        books.append((connection, peer, np.zeros(connection.rows_needed, ROW)))
        connection.on_open(0)
        (request, *_) = connection.subscribe_requests([0])
        venue.server.tick(venue.now_ns + 5_000_000, venue.exchange.advance(venue.now_ns + 5_000_000))
        venue.got[peer] += peer.receive(request, WALL_MS)  # items made before it are still in the server's hand
        venue.fan_out()
        venue.pass_s(0.5)
    for connection, peer, out in books:
        for raw in venue.got[peer]:
            connection.on_frame(raw, 1, out)
        assert connection.counts["gaps"] == 0 and connection.books[0].state == BookState.LIVE
    assert books[0][0].books[0].policy.last == books[1][0].books[0].policy.last


def test_a_lost_message_is_healed_by_subscribing_anew() -> None:
    venue, connection = Venue(), MarketConnection([BTC], depth=10)
    peer, out, states = venue.peer(), np.zeros(connection.rows_needed, ROW), []
    connection.on_open(0)
    for request in connection.subscribe_requests([0]):
        venue.got[peer] += peer.receive(request, WALL_MS)
    for step in range(300):
        got, venue.got[peer] = venue.got[peer], []
        for raw in got:
            if step == 40 and b'"update"' in raw and b'"book"' in raw:
                continue
            for row in out[: connection.on_frame(raw, (1 + step) * 10**9, out)]:
                if row["kind"] == Kind.BOOK_STATE:
                    states.append(BookState(int(row["code"])).name)
            for request in connection.wants_send():
                venue.got[peer] += peer.receive(request, WALL_MS)
        venue.pass_s(0.05)
    assert states == ["LIVE", "RESYNCING", "LIVE"] and connection.counts["gaps"] == 1


def test_every_channel_answers_and_begins_with_its_snapshot() -> None:
    venue, peer = Venue(), None
    peer = venue.peer()
    first = venue.ask(peer, method="subscribe", params={"channel": "instrument"}, req_id=3)
    assert first[0]["channel"] == "status"
    assert (first[1]["success"], first[1]["req_id"]) == (True, 3)
    raw = venue.server.peer("/v2", "").receive(b'{"method":"subscribe","params":{"channel":"instrument"}}', WALL_MS)[-1]
    (told,) = instruments_from_channel(raw, ["BTC/USD"])
    assert (told.tick_size, told.lot_size, told.min_qty, told.min_notional) == (
        BTC.tick_size, BTC.lot_size, BTC.min_qty, BTC.min_notional,
    )  # fmt: skip
    (ack, ticker) = venue.ask(peer, method="subscribe", params={"channel": "ticker", "symbol": ["BTC/USD"]})
    assert ack["result"] == {"channel": "ticker", "symbol": "BTC/USD", "snapshot": True}
    assert ticker["data"][0]["bid"] < ticker["data"][0]["ask"]
    venue.ask(peer, method="subscribe", params={"channel": "trade", "symbol": ["BTC/USD"]})
    trader = venue.trader()
    venue.order(trader, **{**LIMIT, "order_type": "market"})
    told = venue.read(peer)
    trades = [m["data"][0] for m in told if m["channel"] == "trade"]
    assert any(t["side"] == "buy" and t["qty"] <= Decimal("0.01") for t in trades)
    assert any(m["channel"] == "ticker" for m in told)
    assert peer.poll(WALL_MS) == [b'{"channel":"heartbeat"}']
    (pong,) = venue.ask(peer, method="ping", req_id=9)
    assert (pong["method"], pong["req_id"]) == ("pong", 9)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"channel": "book", "symbol": ["BTC/USD"], "depth": 27}, "Subscription depth not supported"),
        ({"channel": "book", "symbol": ["XXX/USD"]}, "Currency pair not supported XXX/USD"),
        ({"channel": "book"}, "Symbol(s) not found"),
        ({"channel": "gossip", "symbol": ["BTC/USD"]}, "Channel not found"),
        ({"channel": "executions", "token": "x"}, "Private data and trading are unavailable on this endpoint"),
    ],
)
def test_a_subscription_that_cannot_be_is_refused_by_name(params: dict[str, Any], error: str) -> None:
    venue = Venue()
    peer = venue.peer()
    *_, told = venue.ask(peer, method="subscribe", params=params, req_id=1)
    assert (told["success"], told["error"], told["req_id"]) == (False, error, 1)
    assert not peer.ready


def test_a_second_subscription_and_a_missing_one_are_refused() -> None:
    venue = Venue()
    peer = venue.peer()
    what = {"channel": "book", "symbol": ["BTC/USD"], "depth": 10}
    assert venue.ask(peer, method="subscribe", params=what)[1]["success"]
    assert venue.ask(peer, method="subscribe", params=what)[0]["error"] == "Already subscribed"
    assert venue.ask(peer, method="unsubscribe", params=what)[0]["success"]
    assert venue.ask(peer, method="unsubscribe", params=what)[0]["error"] == "Subscription not found"
    venue.pass_s(0.2)
    assert venue.read(peer) == []


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"method":5,"req_id":"x"}', b'{"method":"subscribe","params":[]}'])
def test_bytes_that_are_no_request_are_answered_with_an_error(raw: bytes) -> None:
    venue = Venue()
    answers = [json.loads(a) for a in venue.peer().receive(raw, WALL_MS)]
    assert answers[-1]["error"] == "Malformed request"


# ---- REST


def test_asset_pairs_describe_the_instrument_and_depth_its_book() -> None:
    venue = Venue()
    pairs = venue.server.rest("GET", "/0/public/AssetPairs", b"", b"", {}, WALL_MS)
    assert instruments_from_asset_pairs(pairs.body, ["BTC/USD"]) == [
        type(BTC).from_dict({**BTC.to_dict(), "max_qty": 2**63 - 1, "min_px": 0})
    ]
    path, _, query = depth_path("BTC/USD", 5).partition("?")
    book = json.loads(venue.server.rest("GET", path, query.encode(), b"", {}, WALL_MS).body)["result"]["XXBTZUSD"]
    _, bids, _ = venue.exchange.snapshot(0, 5)
    assert [Decimal(px) for px, _, _ in book["bids"]] == [BTC.px(int(px)) for px, _ in bids]


def test_a_private_request_needs_key_signature_and_a_growing_nonce() -> None:
    venue = Venue()
    assert venue.private("/0/private/BalanceEx")["result"]["ZUSD"]["balance"] == "1000000.0000000000"
    venue.nonce -= 1
    assert venue.private("/0/private/BalanceEx")["error"] == ["EAPI:Invalid nonce"]
    path, body, headers = venue.codec.rest_request("/0/private/BalanceEx", {}, 99)
    for change, error in (({"API-Key": "x"}, "EAPI:Invalid key"), ({"API-Sign": "x"}, "EAPI:Invalid signature")):
        answer = venue.server.rest("POST", path, b"", body.encode(), {**headers, **change}, WALL_MS)
        assert json.loads(answer.body)["error"] == [error]
    assert venue.server.rest("GET", "/elsewhere", b"", b"", {}, WALL_MS).status == 404


# ---- orders


def test_a_resting_order_is_told_amended_and_canceled() -> None:
    venue = Venue()
    trader = venue.trader()
    told = venue.order(trader, **LIMIT, cl_ord_id="mine-1")
    assert events(told) == ["pending_new", "new"]
    answer = next(m for m in told if m.get("method") == "add_order")
    order_id = answer["result"]["order_id"]
    assert answer["result"]["cl_ord_id"] == "mine-1" and venue.account.held["USD"] == 500 * 10**16
    told = venue.order(trader, "amend_order", cl_ord_id="mine-1", limit_price=49000.0, order_qty=0.02)
    assert events(told) == ["amended"] and venue.account.held["USD"] == 980 * 10**16
    amended = next(m for m in told if m.get("channel"))["data"][0]
    assert (amended["order_id"], amended["limit_price"], amended["order_qty"]) == (order_id, 49000, Decimal("0.02"))
    told = venue.order(trader, "cancel_order", order_id=[order_id])
    assert events(told) == ["canceled"] and venue.account.held["USD"] == 0
    assert venue.order(trader, "cancel_order", order_id=[order_id])[0]["error"] == "EOrder:Unknown order"


def test_a_marketable_order_is_filled_and_money_moves_exactly() -> None:
    venue = Venue(fees=Fees(160_000, 260_000))
    trader = venue.trader()
    before = dict(venue.account.balance)
    told = venue.order(trader, **{**LIMIT, "limit_price": 70_000.0, "time_in_force": "ioc", "order_qty": 0.005})
    kinds = events(told)
    assert kinds[:2] == ["pending_new", "new"] and kinds[-1] in ("filled", "canceled")
    trades = [e for m in told if m.get("channel") for e in m["data"] if e["exec_type"] == "trade"]
    assert trades and all(t["liquidity_ind"] == "t" for t in trades)
    spent = sum(t["last_price"] * t["last_qty"] + t["fees"][0]["qty"] for t in trades)
    assert Decimal(before["USD"] - venue.account.balance["USD"]) / 10**16 == spent
    assert Decimal(venue.account.balance["BTC"] - before["BTC"]) / 10**16 == sum(t["last_qty"] for t in trades)
    assert venue.account.held == {"BTC": 0, "USD": 0}
    sequences = [m["sequence"] for m in told if m.get("channel") == "executions"]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))


def test_a_post_only_order_that_would_cross_is_taken_and_canceled() -> None:
    venue = Venue()
    trader = venue.trader()
    told = venue.order(trader, **{**LIMIT, "limit_price": 70_000.0, "post_only": True, "order_qty": 0.0001})
    assert events(told) == ["pending_new", "canceled"]
    assert next(m for m in told if m.get("method"))["success"] and venue.account.held["USD"] == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"order_qty": 100}, "EOrder:Insufficient funds"),
        ({"order_qty": 0.000001}, "EGeneral:Invalid arguments:volume"),
        ({"order_qty": 0.00001}, "EOrder:Order minimum not met"),
        ({"limit_price": 50000.005}, "EOrder:Invalid price"),
        ({"symbol": "XXX/USD"}, "EQuery:Unknown asset pair"),
        ({"side": "hold"}, "EGeneral:Invalid arguments:side or order_type"),
        ({"display_qty": 0.001}, "EGeneral:Invalid arguments:display_qty is not supported on the simulated venue"),
        ({"cl_ord_id": "a quote \" in it"}, "EGeneral:Invalid arguments:cl_ord_id"),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused_and_tells_nothing(change: dict[str, Any], error: str) -> None:
    venue = Venue()
    trader = venue.trader()
    told = venue.order(trader, **{**LIMIT, **change})
    assert [m.get("error") for m in told] == [error]
    assert venue.account.held["USD"] == 0


def test_nobody_trades_without_a_token() -> None:
    venue = Venue()
    peer = venue.peer("/auth/v2")
    assert venue.ask(peer, method="add_order", params=LIMIT)[-1]["error"] == "EGeneral:Invalid arguments:token"
    assert venue.ask(peer, method="add_order", params={**LIMIT, "token": "x"})[-1]["error"] == "EAuth:Invalid token"
    trader = venue.trader()
    late = venue.peer("/auth/v2")
    late.receive(b"{}", WALL_MS)
    raw = json.dumps({"method": "cancel_all", "params": {"token": venue.codec.token}})
    assert json.loads(late.receive(raw, WALL_MS + 901_000)[0])["error"] == "ESession:Invalid session"
    assert json.loads(trader.receive(raw, WALL_MS + 901_000)[0])["success"]


def test_cancel_all_takes_every_order_of_the_account() -> None:
    venue = Venue()
    trader = venue.trader()
    for n in range(3):
        venue.order(trader, **{**LIMIT, "limit_price": 50000 - n})
    told = venue.order(trader, "cancel_all")
    assert next(m for m in told if m.get("method"))["result"] == {"count": 3} and events(told) == ["canceled"] * 3


def test_a_fault_fails_an_order_before_or_after_it_takes_effect() -> None:
    venue = Venue()
    trader = venue.trader()
    venue.server.fail_orders(0, "EService:Unavailable")
    assert [m.get("error") for m in venue.order(trader, **LIMIT)] == ["EService:Unavailable"]
    venue.server.fail_orders(0, "EService:Unavailable", carried_out=True)
    told = venue.order(trader, **LIMIT)
    assert told[0]["error"] == "EService:Unavailable" and events(told) == ["pending_new", "new"]


def test_our_codec_trades_through_the_face_and_accounts_agree() -> None:
    venue = Venue(fees=Fees(100_000, 200_000))
    trader, codec = venue.trader(), venue.codec
    codec.session_requests(0)
    out = np.zeros(128, ROW)
    seen: list[tuple[int, str]] = []
    position = 0

    def send(kind: Kind, cl_ord_id: int, px: int = 0, qty: int = 0, orig: int = 0, tif: int = Tif.GTC) -> None:
        nonlocal position
        rows = np.zeros(1, ROW)
        rows[0]["kind"], rows[0]["a"], rows[0]["b"], rows[0]["flags"] = kind, cl_ord_id, orig, Side.BUY
        rows[0]["px"], rows[0]["qty"], rows[0]["code"] = px, qty, tif
        venue.got[trader] = []
        venue.got[trader] += trader.receive(codec.encode(rows[0], None, 0), WALL_MS)
        venue.fan_out()
        for raw in venue.got[trader]:
            n = codec.decode(raw, 1, out)
            for i in range(0, n, 2):
                seen.append((int(out[i]["a"]), ExecType(int(out[i]["code"]) & 255).name))
                if seen[-1][1] == "FILL":
                    position += int(out[i]["qty"])
                    payload = out[i + 1 : i + 2].view(REPORT_PAYLOAD)[0]
                    assert payload["fee"] > 0 and codec.assets[payload["fee_asset"]] == "USD"

    _, bids, asks = venue.exchange.snapshot(0, 3)
    send(Kind.SUBMIT, 1, int(bids[-1][0]), 100)
    send(Kind.REPLACE_ORDER, 2, int(bids[-1][0]) - 1, 50, orig=1)
    send(Kind.CANCEL, 2)
    assert seen == [(1, "ACK"), (2, "REPLACED"), (2, "CANCELED")]
    seen.clear()
    send(Kind.SUBMIT, 3, int(asks[-1][0]), 40, tif=Tif.IOC)
    assert seen[0] == (3, "ACK") and (3, "FILL") in seen and position > 0
    assert venue.account.balance["BTC"] == 10 * 10**16 + position * 10**11
    send(Kind.SUBMIT, 4, int(asks[-1][0]), 10**7)
    assert seen[-1] == (4, "REJECT") and codec.counts["unmatched"] == 0 and not codec.in_doubt
    assert Flag.BID == Side.BUY


@pytest.mark.parametrize("balances", [{"USD": Decimal(-1)}])
def test_an_account_that_cannot_be_is_refused(balances: dict[str, Decimal]) -> None:
    with pytest.raises(ConfigError, match="balance"):
        Account("key", SECRET, balances)
    with pytest.raises(ConfigError, match="base64"):
        Account("key", "no base64!", {})
