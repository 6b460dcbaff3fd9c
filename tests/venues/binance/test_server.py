"""Binance's face on the simulated exchange, without a socket: requests in, answers, frames and events out."""

from __future__ import annotations

import hashlib
import hmac
import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.venues.binance.messages import ExecutionReport, instruments_from_exchange_info
from hftlab.venues.binance.server import (
    DEFAULT_ACCOUNT,
    E16,
    Account,
    ApiError,
    BinanceServer,
    Event,
    Frame,
    StreamPeer,
    UserPeer,
)

KEY, SECRET = DEFAULT_ACCOUNT[:2]
START_NS = 1_767_225_600_000_000_000
WALL_MS = 1_767_225_600_000
BTC = Instrument(
    0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT",
    min_qty=1, max_qty=900_000_000, min_px=1, max_px=100_000_000, min_notional=50_000_000,
)  # fmt: skip
LIMIT = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01"}


class Venue:
    """A server on a synthetic market with the clock in the test's hand."""

    def __init__(self, fees: Fees | None = None, **kwargs: Any) -> None:
        fees = fees or Fees(0, 0)
        self.exchange = MatchingExchange([BTC], seed=3, fees=fees, start_ns=START_NS)
        self.server = BinanceServer(
            self.exchange, [BTC], maker_fee_e8=fees.maker_e8, taker_fee_e8=fees.taker_e8, **kwargs
        )
        self.now_ns = START_NS
        self.peer = UserPeer(self.server)
        self.account = self.server.accounts[KEY]
        self.pass_s(0.5)
        self.server.take()

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        self.server.tick(self.now_ns, self.exchange.advance(self.now_ns))

    def raw(self, method: str, path: str, query: bytes = b"", body: bytes = b"", key: str | None = None) -> Any:
        answer = self.server.rest(method, path, query, body, {"X-MBX-APIKEY": key} if key else {}, WALL_MS)
        return answer.status, json.loads(answer.body)

    def signed(self, method: str, path: str, **params: str) -> Any:
        text = urlencode({**params, "timestamp": str(WALL_MS)})
        signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
        full = f"{text}&signature={signature}".encode()
        return self.raw(method, path, *((b"", full) if method == "POST" else (full, b"")), key=KEY)

    def ws(self, method: str, **params: object) -> dict[str, Any]:
        return json.loads(
            self.server.ws_api(self.peer, json.dumps({"id": 1, "method": method, "params": params}), WALL_MS)
        )

    def ws_signed(self, method: str, **params: object) -> dict[str, Any]:
        params |= {"apiKey": KEY, "timestamp": WALL_MS}
        payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
        params["signature"] = hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest()
        return self.ws(method, **params)

    def touch(self) -> tuple[Decimal, Decimal]:
        _, bids, asks = self.exchange.snapshot(0, 1)
        return BTC.px(bids[0][0]), BTC.px(asks[0][0])

    def far_bid(self) -> str:
        return str(self.touch()[0] - 50)

    def frames(self) -> list[Frame]:
        return [item for item in self.server.take() if isinstance(item, Frame)]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(item.payload) for item in self.server.take() if isinstance(item, Event)]


@pytest.fixture
def venue() -> Venue:
    return Venue()


def code(answer: tuple[int, Any]) -> int:
    assert answer[0] >= 400, answer
    return int(answer[1]["code"])


# ---- public


def test_exchange_info_gives_back_the_instrument_it_lists(venue: Venue) -> None:
    answer = venue.server.rest("GET", "/api/v3/exchangeInfo", b"symbol=BTCUSDT", b"", {}, WALL_MS)
    (read,) = instruments_from_exchange_info(answer.body, ["BTCUSDT"])
    assert read == BTC


def test_exchange_info_takes_a_list_of_symbols_and_refuses_unknown_ones(venue: Venue) -> None:
    status, info = venue.raw("GET", "/api/v3/exchangeInfo", b"symbols=%5B%22BTCUSDT%22%5D")
    assert status == 200
    assert [one["symbol"] for one in info["symbols"]] == ["BTCUSDT"]
    assert code(venue.raw("GET", "/api/v3/exchangeInfo", b"symbol=NOPE")) == -1121
    assert code(venue.raw("GET", "/api/v3/exchangeInfo", b"symbols=x")) == -1100


def test_depth_keeps_its_limit_and_is_best_first(venue: Venue) -> None:
    status, book = venue.raw("GET", "/api/v3/depth", b"symbol=BTCUSDT&limit=5")
    assert status == 200
    assert len(book["bids"]) == len(book["asks"]) == 5
    bids = [Decimal(px) for px, _ in book["bids"]]
    assert bids == sorted(bids, reverse=True)
    assert bids[0] < Decimal(book["asks"][0][0])
    assert code(venue.raw("GET", "/api/v3/depth", b"")) == -1102
    assert code(venue.raw("GET", "/api/v3/depth", b"symbol=BTCUSDT&limit=0")) == -1130


def test_an_unknown_path_and_a_wrong_method_are_named(venue: Venue) -> None:
    assert venue.raw("GET", "/api/v3/nothing")[0] == 404
    status, error = venue.raw("PUT", "/api/v3/order")
    assert status == 405
    assert "DELETE or GET or POST" in error["msg"]


# ---- security


def test_documented_signatures_are_accepted(shared_data: Path) -> None:
    items = json.loads((shared_data / "signing" / "binance_hmac.json").read_text())["items"]
    for item in items:
        account = Account("k", item["secret"], {})
        account.verify(item["payload"].encode(), item["signature"])
        with pytest.raises(ApiError, match="-1022"):
            account.verify(item["payload"].encode() + b"0", item["signature"])


def test_the_signature_covers_the_bytes_of_the_wire_query_then_body(venue: Venue) -> None:
    query, body = (
        b"symbol=BTCUSDT&side=BUY",
        f"type=LIMIT&timeInForce=GTC&quantity=0.01&price=60000&timestamp={WALL_MS}",
    )
    signature = hmac.new(SECRET.encode(), query + body.encode(), hashlib.sha256).hexdigest()
    status, _ = venue.raw("POST", "/api/v3/order/test", query, f"{body}&signature={signature}".encode(), KEY)
    assert status == 200
    encoded = f"symbol=BTC%55SDT&timestamp={WALL_MS}"
    signature = hmac.new(SECRET.encode(), encoded.encode(), hashlib.sha256).hexdigest()
    assert venue.raw("GET", "/api/v3/openOrders", f"{encoded}&signature={signature}".encode(), key=KEY) == (200, [])


def test_a_bad_signature_key_or_time_is_refused_with_its_own_code(venue: Venue) -> None:
    path = "/api/v3/account"
    wrong = f"timestamp={WALL_MS}&signature={'0' * 64}".encode()
    assert code(venue.raw("GET", path, wrong, key=KEY)) == -1022
    assert venue.raw("GET", path, wrong, key="someone")[0] == 401
    assert code(venue.raw("GET", path, wrong, key="someone")) == -2015
    assert code(venue.raw("GET", path, wrong)) == -2014
    assert code(venue.raw("GET", path, f"timestamp={WALL_MS - 5001}&signature=0".encode(), key=KEY)) == -1021
    assert code(venue.raw("GET", path, f"timestamp={WALL_MS + 1000}&signature=0".encode(), key=KEY)) == -1021
    assert code(venue.raw("GET", path, b"signature=0", key=KEY)) == -1102
    assert code(venue.raw("GET", path, f"timestamp={WALL_MS}".encode(), key=KEY)) == -1102
    assert code(venue.raw("GET", path, f"timestamp={WALL_MS}&recvWindow=60001&signature=0".encode(), key=KEY)) == -1131


def test_session_logon_says_what_to_use_instead(venue: Venue) -> None:
    answer = venue.ws("session.logon", apiKey=KEY)
    assert answer["status"] == 400
    assert "userDataStream.subscribe.signature" in answer["error"]["msg"]


# ---- orders


def test_a_resting_order_locks_its_price_times_quantity_and_cancel_frees_it(venue: Venue) -> None:
    venue.ws_signed("userDataStream.subscribe.signature")
    px = venue.far_bid()
    status, order = venue.signed("POST", "/api/v3/order", **LIMIT, price=px, newClientOrderId="mine")
    assert (status, order["status"], order["clientOrderId"]) == (200, "NEW", "mine")
    cost = int(Decimal(px) * Decimal("0.01") * E16)
    assert venue.account.locked["USDT"] == cost
    assert venue.account.free["USDT"] == 1_000_000 * E16 - cost
    status, canceled = venue.signed(
        "DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId="mine", newClientOrderId="cancel-1"
    )
    assert (status, canceled["status"], canceled["origClientOrderId"]) == (200, "CANCELED", "mine")
    assert venue.account.locked["USDT"] == 0
    assert venue.account.free["USDT"] == 1_000_000 * E16
    reports = [event for event in venue.events() if event["e"] == "executionReport"]
    assert [(r["x"], r["c"], r["C"]) for r in reports] == [("NEW", "mine", ""), ("CANCELED", "cancel-1", "mine")]


def test_every_documented_field_of_an_execution_report_is_there(venue: Venue, shared_data: Path) -> None:
    documented = json.loads((shared_data / "binance" / "documented_examples.json").read_text())["items"]
    (example,) = [i["example"]["event"] for i in documented if i["section"] == "Order Update"]
    venue.signed("POST", "/api/v3/order", **LIMIT, price=venue.far_bid())
    report = next(event for event in venue.events() if event["e"] == "executionReport")
    # v is there only when a match was prevented
    assert set(example) - {"v"} == set(report)


def test_a_market_order_fills_at_the_touch_and_pays_its_fee_exactly() -> None:
    venue = Venue(Fees(0, 100_000))  # 0.1 %
    _, ask = venue.touch()
    status, order = venue.signed("POST", "/api/v3/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.001")
    assert (status, order["status"]) == (200, "FILLED")
    assert Decimal(order["fills"][0]["price"]) == ask
    cost = sum(Decimal(f["price"]) * Decimal(f["qty"]) for f in order["fills"])
    fee = sum(Decimal(f["commission"]) for f in order["fills"])
    assert fee == pytest.approx(cost / 1000, abs=Decimal("0.00000002"))
    assert venue.account.free["USDT"] == int((1_000_000 - cost - fee) * E16)
    assert venue.account.free["BTC"] == int(Decimal("10.001") * E16)
    assert set(venue.account.locked.values()) == set(venue.account.fee_hold.values()) == {0}
    executions = [e for e in venue.events() if e["e"] == "executionReport" and e["x"] == "TRADE"]
    assert executions[-1]["X"] == "FILLED"
    assert {e["N"] for e in executions} == {"USDT"}
    _, trades = venue.signed("GET", "/api/v3/myTrades", symbol="BTCUSDT")
    assert [t["id"] for t in trades] == [f["tradeId"] for f in order["fills"]]


def test_a_quote_quantity_is_spent_and_not_exceeded(venue: Venue) -> None:
    _, order = venue.signed("POST", "/api/v3/order", symbol="BTCUSDT", side="BUY", type="MARKET", quoteOrderQty="1000")
    assert order["status"] == "FILLED"
    spent = Decimal(order["cummulativeQuoteQty"])
    assert 1000 - Decimal("0.7") < spent <= 1000  # less than one lot is left over


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"symbol": "NOPE"}, -1121),
        ({"symbol": "btc/usdt"}, -1100),
        ({"price": "1e5"}, -1100),
        ({"price": "-1"}, -1100),
        ({"price": "60000.123456789"}, -1111),
        ({"price": "60000.005"}, -1013),
        ({"price": "2000000"}, -1013),
        ({"price": "1.00"}, -1013),
        ({"quantity": "0.000001"}, -1013),
        ({"quantity": "0.00001"}, -1013),
        ({"quantity": "99999999999999999999"}, -1013),
        ({"quantity": "9000", "price": "60000"}, -2010),
        ({"side": "HOLD"}, -1117),
        ({"type": "STOP_LOSS"}, -1013),
        ({"type": "ODD"}, -1116),
        ({"timeInForce": "GTX"}, -1115),
        ({"stopPrice": "1"}, -1106),
        ({"newClientOrderId": "white space"}, -1100),
        ({"newClientOrderId": "x" * 37}, -1100),
        ({"newOrderRespType": "ALL"}, -1130),
    ],
)
def test_a_wrong_order_is_refused_with_the_documented_code_and_locks_nothing(
    venue: Venue, change: dict[str, str], expected: int
) -> None:
    params = {**LIMIT, "price": "60000", **change}
    assert code(venue.signed("POST", "/api/v3/order", **params)) == expected
    assert venue.account.free["USDT"] == 1_000_000 * E16
    assert set(venue.account.locked.values()) == {0}
    assert venue.events() == []
    assert venue.signed("GET", "/api/v3/openOrders") == (200, [])


def test_a_missing_parameter_is_named(venue: Venue) -> None:
    status, error = venue.signed("POST", "/api/v3/order", **LIMIT)
    assert (status, error["code"]) == (400, -1102)
    assert "'price'" in error["msg"]


def test_a_client_order_id_is_unique_among_open_orders_only(venue: Venue) -> None:
    order = {**LIMIT, "price": venue.far_bid(), "newClientOrderId": "same"}
    assert venue.signed("POST", "/api/v3/order", **order)[0] == 200
    status, error = venue.signed("POST", "/api/v3/order", **order)
    assert (status, error) == (400, {"code": -2010, "msg": "Duplicate order sent."})
    venue.signed("DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId="same")
    assert venue.signed("POST", "/api/v3/order", **order)[0] == 200


def test_a_post_only_order_that_would_take_is_refused(venue: Venue) -> None:
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT_MAKER", "quantity": "0.01"}
    answer = venue.signed("POST", "/api/v3/order", **params, price=str(venue.touch()[1]))
    assert answer == (400, {"code": -2010, "msg": "Order would immediately match and take."})
    assert venue.account.free["USDT"] == 1_000_000 * E16
    assert venue.events() == []


def test_an_ioc_order_that_does_not_cross_expires(venue: Venue) -> None:
    _, order = venue.signed("POST", "/api/v3/order", **{**LIMIT, "timeInForce": "IOC"}, price=venue.far_bid())
    assert order["status"] == "EXPIRED"
    assert venue.account.free["USDT"] == 1_000_000 * E16
    assert [e["x"] for e in venue.events() if e["e"] == "executionReport"][-1] == "EXPIRED"


def test_unknown_orders_are_not_found_and_not_canceled(venue: Venue) -> None:
    assert code(venue.signed("GET", "/api/v3/order", symbol="BTCUSDT", orderId="77")) == -2013
    assert code(venue.signed("DELETE", "/api/v3/order", symbol="BTCUSDT", orderId="77")) == -2011
    assert code(venue.signed("DELETE", "/api/v3/openOrders", symbol="BTCUSDT")) == -2011
    assert code(venue.signed("GET", "/api/v3/order", symbol="BTCUSDT")) == -1102


def test_the_order_rate_is_kept_when_configured() -> None:
    venue = Venue(orders_per_10s=2)
    order = {**LIMIT, "price": venue.far_bid()}
    assert [venue.signed("POST", "/api/v3/order", **order)[0] for _ in range(3)] == [200, 200, 429]


def test_cancel_replace_loses_nothing_when_the_new_order_breaks_a_filter(venue: Venue) -> None:
    px = venue.far_bid()
    venue.signed("POST", "/api/v3/order", **LIMIT, price=px, newClientOrderId="old")
    replace = {**LIMIT, "cancelReplaceMode": "STOP_ON_FAILURE", "cancelOrigClientOrderId": "old"}
    assert code(venue.signed("POST", "/api/v3/order/cancelReplace", **replace, price="60000.005")) == -1013
    assert len(venue.signed("GET", "/api/v3/openOrders")[1]) == 1
    status, both = venue.signed("POST", "/api/v3/order/cancelReplace", **replace, price=px, newClientOrderId="new")
    assert (status, both["cancelResult"], both["newOrderResult"]) == (200, "SUCCESS", "SUCCESS")
    assert [o["clientOrderId"] for o in venue.signed("GET", "/api/v3/openOrders")[1]] == ["new"]


def test_cancel_replace_reports_each_half(venue: Venue) -> None:
    px = venue.far_bid()
    replace = {**LIMIT, "cancelOrigClientOrderId": "old", "price": px}
    status, error = venue.signed("POST", "/api/v3/order/cancelReplace", **replace, cancelReplaceMode="STOP_ON_FAILURE")
    assert (status, error["code"], error["data"]["newOrderResult"]) == (400, -2022, "NOT_ATTEMPTED")
    status, error = venue.signed("POST", "/api/v3/order/cancelReplace", **replace, cancelReplaceMode="ALLOW_FAILURE")
    assert (status, error["code"], error["data"]["newOrderResult"]) == (409, -2021, "SUCCESS")
    venue.signed("POST", "/api/v3/order", **LIMIT, price=px, newClientOrderId="old")
    venue.events()
    maker = {
        "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT_MAKER", "quantity": "0.01", "price": str(venue.touch()[1]),
        "cancelOrigClientOrderId": "old", "cancelReplaceMode": "STOP_ON_FAILURE",
    }  # fmt: skip
    status, error = venue.signed("POST", "/api/v3/order/cancelReplace", **maker)
    assert (status, error["code"], error["data"]["newOrderResponse"]["code"]) == (409, -2021, -2010)
    assert [e["x"] for e in venue.events() if e["e"] == "executionReport"] == ["CANCELED", "REJECTED"]


def test_an_error_on_command_hits_the_next_order_request_alone(venue: Venue) -> None:
    order = {**LIMIT, "price": venue.far_bid()}
    venue.server.fail_orders(-1007, "Timeout waiting for response from backend server.")
    assert venue.signed("POST", "/api/v3/order", **order)[0] == 504
    assert venue.signed("GET", "/api/v3/openOrders") == (200, [])
    venue.server.fail_orders(-1007, "Timeout.", carried_out=True)
    assert venue.signed("POST", "/api/v3/order", **order)[0] == 504
    assert len(venue.signed("GET", "/api/v3/openOrders")[1]) == 1
    assert venue.signed("POST", "/api/v3/order", **order)[0] == 200


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["BUY", "SELL"]), st.integers(-30, 30), st.integers(100, 200_000),
            st.sampled_from(["GTC", "IOC", "FOK", "MARKET", "CANCEL", "WAIT"]),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_money_is_conserved_through_any_orders(steps: list[tuple[str, int, int, str]]) -> None:
    """Free and locked always equal the start plus what the trades say, to the last 1e-16."""
    venue = Venue(Fees(20_000, 100_000))
    for side, offset, lots, kind in steps:
        mid = venue.touch()[0]
        params = {"symbol": "BTCUSDT", "side": side, "quantity": str(BTC.qty(lots))}
        if kind == "WAIT":
            venue.pass_s(0.3)
        elif kind == "CANCEL":
            venue.signed("DELETE", "/api/v3/openOrders", symbol="BTCUSDT")
        elif kind == "MARKET":
            venue.signed("POST", "/api/v3/order", **params, type="MARKET")
        else:
            price = str(mid + offset * BTC.tick_size)
            venue.signed("POST", "/api/v3/order", **params, type="LIMIT", timeInForce=kind, price=price)
    account = venue.account
    base, quote = 10 * E16, 1_000_000 * E16
    for trade in account.trades:
        sign = 1 if trade["isBuyer"] else -1
        base += sign * int(Decimal(str(trade["qty"])) * E16)
        cost = int(Decimal(str(trade["price"])) * Decimal(str(trade["qty"])) * E16)
        quote -= sign * cost + int(Decimal(str(trade["commission"])) * E16)
    assert account.free["BTC"] + account.locked["BTC"] == base
    assert account.free["USDT"] + account.locked["USDT"] == quote
    assert all(units >= 0 for book in (account.free, account.locked, account.fee_hold) for units in book.values())
    for asset, side in (("USDT", "BUY"), ("BTC", "SELL")):
        assert account.locked[asset] == sum(o.locked for o in account.open_by_client.values() if o.side == side)


# ---- the WebSocket API


def test_the_web_socket_api_answers_with_the_request_id(venue: Venue) -> None:
    for identity in (7, "seven", None):
        request = json.dumps({"id": identity, "method": "time"})
        answer = json.loads(venue.server.ws_api(venue.peer, request, WALL_MS))
        assert (answer["id"], answer["status"], answer["result"]) == (identity, 200, {"serverTime": WALL_MS})


def test_account_events_go_to_subscribers_wrapped_with_their_number(venue: Venue) -> None:
    assert venue.ws_signed("userDataStream.subscribe.signature")["result"] == {"subscriptionId": 0}
    assert venue.ws_signed("userDataStream.subscribe.signature")["error"]["code"] == -2035
    answer = venue.ws_signed("order.place", **LIMIT, price=venue.far_bid(), newOrderRespType="ACK")
    assert answer["result"]["orderId"] == 1
    events = [item for item in venue.server.take() if isinstance(item, Event)]
    wrapped = [json.loads(text) for event in events for text in venue.peer.render(event)]
    assert [(w["subscriptionId"], w["event"]["e"]) for w in wrapped] == [
        (0, "executionReport"),
        (0, "outboundAccountPosition"),
    ]
    assert UserPeer(venue.server).render(events[0]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", -1135),
        ("[]", -1135),
        ("[" * 100_000, -1135),
        ('{"id":1}', -1102),
        ('{"id":[],"method":"ping"}', -1100),
        ('{"id":1,"method":"nothing"}', -1000),
        ('{"id":1,"method":"ping","params":[]}', -1102),
        ('{"id":1,"method":"order.place","params":{"apiKey":{"a":1},"timestamp":true}}', -2014),
    ],
)
def test_a_malformed_request_is_answered_and_harms_nothing(venue: Venue, text: str, expected: int) -> None:
    assert json.loads(venue.server.ws_api(venue.peer, text, WALL_MS))["error"]["code"] == expected


# ---- streams


def test_depth_frames_are_contiguous_and_rebuild_the_book(venue: Venue) -> None:
    sequence, bids, asks = venue.exchange.snapshot(0)
    books = {"b": dict(bids), "a": dict(asks)}
    venue.pass_s(3.0)
    frames = [json.loads(f.raw) for f in venue.frames() if f.stream == "btcusdt@depth@100ms"]
    assert len(frames) >= 28
    assert frames[0]["U"] <= sequence + 1
    for before, after in pairwise(frames):
        assert after["U"] == before["u"] + 1
        assert after["E"] - before["E"] >= 100
    for frame in frames:
        for side, levels in books.items():
            for px, qty in frame[side]:
                levels[BTC.px_ticks(px)] = BTC.qty_lots(qty)
    last, bids, asks = venue.exchange.snapshot(0)  # time stands on a boundary: every bin is closed
    assert frames[-1]["u"] == last
    assert {px: qty for px, qty in books["b"].items() if qty} == dict(bids)
    assert {px: qty for px, qty in books["a"].items() if qty} == dict(asks)


def test_frames_do_not_depend_on_how_often_the_market_is_advanced() -> None:
    coarse, fine = Venue(), Venue()
    coarse.pass_s(2.0)
    for _ in range(200):
        fine.pass_s(0.01)
    assert coarse.frames() == fine.frames()


def test_the_slow_depth_stream_covers_the_same_range_in_fewer_frames(venue: Venue) -> None:
    venue.pass_s(5.0)
    frames = venue.frames()
    slow = [json.loads(f.raw) for f in frames if f.stream == "btcusdt@depth"]
    assert 4 <= len(slow) <= 6
    assert all(after["U"] == before["u"] + 1 for before, after in pairwise(slow))


def test_aggregate_trades_sum_to_the_trades(venue: Venue) -> None:
    venue.pass_s(5.0)
    frames = venue.frames()
    trades = [json.loads(f.raw) for f in frames if f.stream.endswith("@trade")]
    aggregates = [json.loads(f.raw) for f in frames if f.stream.endswith("@aggTrade")]
    assert 0 < len(aggregates) < len(trades)
    assert sum(Decimal(t["q"]) for t in trades) == sum(Decimal(a["q"]) for a in aggregates)
    assert [i for a in aggregates for i in range(a["f"], a["l"] + 1)] == [t["t"] for t in trades]


def test_a_combined_frame_wraps_the_raw_one(venue: Venue) -> None:
    venue.pass_s(0.2)
    for frame in venue.frames():
        assert json.loads(frame.combined) == {"stream": frame.stream, "data": json.loads(frame.raw)}


def test_stream_control_subscribes_lists_and_refuses() -> None:
    peer = StreamPeer("/stream", "streams=a@trade/b@trade")
    assert list(peer.streams) == ["a@trade", "b@trade"]
    assert peer.control('{"method":"SUBSCRIBE","params":["c@depth"],"id":1}') == b'{"result":null,"id":1}'
    assert peer.control('{"method":"UNSUBSCRIBE","params":["a@trade"],"id":"x"}') == b'{"result":null,"id":"x"}'
    assert json.loads(peer.control('{"method":"LIST_SUBSCRIPTIONS","id":2}'))["result"] == ["b@trade", "c@depth"]
    for bad in (
        "",
        "{",
        "[]",
        '{"method":"X"}',
        '{"method":"SUBSCRIBE","params":[1]}',
        '{"method":"SUBSCRIBE","id":{}}',
    ):
        assert "error" in json.loads(peer.control(bad))
    many = json.dumps({"method": "SUBSCRIBE", "params": [f"s{i}@trade" for i in range(1024)], "id": 3})
    assert "at most 1024" in json.loads(peer.control(many))["error"]["msg"]
    assert list(peer.streams) == ["b@trade", "c@depth"]


# ---- set-up


def test_an_instrument_finer_than_eight_decimals_is_refused() -> None:
    fine = Instrument(0, "binance", "X", Decimal("0.000000001"), Decimal(1), "A", "B")
    with pytest.raises(ConfigError, match="eight decimals"):
        BinanceServer(MatchingExchange([BTC]), [fine])


def test_execution_reports_decode_by_the_client_side_struct(venue: Venue) -> None:
    venue.signed("POST", "/api/v3/order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.001")
    payloads = [i.payload for i in venue.server.take() if isinstance(i, Event) and b"executionReport" in i.payload]
    assert len(payloads) >= 2
    for payload in payloads:
        msgspec.json.decode(payload, type=ExecutionReport)
