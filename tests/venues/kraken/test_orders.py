"""Order rows to Kraken's requests, and its answers and executions to reports, in every order they may cross."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from hftlab.core.errors import ConfigError, LocalError, ProtocolError, VenueError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import (
    NAT,
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    ROW,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    Side,
    Tif,
)
from hftlab.venues.kraken.orders import OrderCodec, sign
from hftlab.venues.kraken.spec import time_ns

BTC = Instrument(3, "kraken", "BTC/USDT", Decimal("0.1"), Decimal("0.00000001"))
SECRET = "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg=="
"""The secret of the documentation's worked example."""
STAMP = "2026-01-22T06:06:19.833306Z"


def codec() -> OrderCodec:
    made = OrderCodec([BTC], "key", SECRET, "hft-test-", ["BTC", "USDT"])
    made.take_token(b'{"error":[],"result":{"token":"xeAQ/RCChBYNVh53sTv1yZ5H4wIbwDF20PiHtTF+4UI","expires":900}}')
    return made


def row(kind: Kind, cl_ord_id: int, *, side: Side = Side.BUY, px: int = 800000, qty: int = 10000, **more: Any) -> Any:
    rows = np.zeros(1, ROW)
    rows[0]["kind"], rows[0]["instrument"], rows[0]["a"] = kind, 3, cl_ord_id
    rows[0]["flags"], rows[0]["px"], rows[0]["qty"] = side | more.get("flags", 0), px, qty
    rows[0]["code"], rows[0]["b"] = more.get("tif", Tif.GTC), more.get("orig", 0)
    return rows[0]


def request(raw: bytes) -> dict[str, Any]:
    return json.loads(raw, parse_float=Decimal)


def reports(made: OrderCodec, frame: dict[str, Any] | bytes) -> list[dict[str, Any]]:
    raw = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
    out = np.zeros(128, ROW)
    n = made.decode(raw, 5, out)
    told = []
    for i in range(0, n, 2):
        payload = out[i + 1 : i + 2].view(REPORT_PAYLOAD)[0]
        assert out[i]["kind"] == Kind.REPORT and out[i]["span"] == 1 and payload["kind"] == Kind.CONT
        told.append({
            "id": int(out[i]["a"]), "exec": ExecType(int(out[i]["code"]) & 255).name,
            "status": OrdStatus(int(out[i]["code"]) >> 8).name, "px": int(out[i]["px"]), "qty": int(out[i]["qty"]),
            "flags": int(out[i]["flags"]), "exec_id": int(out[i]["b"]), "ts": int(out[i]["ts_event"]),
            "cum": int(payload["cum_qty"]), "leaves": int(payload["leaves_qty"]), "fee": int(payload["fee"]),
            "asset": int(payload["fee_asset"]), "text": bytes(payload["text"]), "instrument": int(out[i]["instrument"]),
        })  # fmt: skip
    return told


def event(made: OrderCodec, exec_type: str, cl_ord_id: int, **fields: Any) -> dict[str, Any]:
    data = {
        "timestamp": STAMP, "exec_type": exec_type, "order_id": "OVN7VD-7VYHS-APBKHA",
        "cl_ord_id": made.client_order_id(cl_ord_id), **fields,
    }  # fmt: skip
    return {"channel": "executions", "type": "update", "data": [data]}


def brief(told: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(t["id"], t["exec"], t["status"], t["qty"], t["cum"], t["leaves"]) for t in told]


# ---- signatures and the token


def test_the_signature_equals_the_documented_example() -> None:
    """Kraken, guide Spot REST authentication."""
    body = "nonce=1616492376594&ordertype=limit&pair=XBTUSD&price=37500&type=buy&volume=1.25"
    assert sign(SECRET, "/0/private/AddOrder", "1616492376594", body) == (
        "4/dpxb3iT4tp/ZCVEwSnEsLxx0bqyhLpdfOpc6fn7OR8+UClSV5n9E6aSS8MPtnRfp32bAb0nmbRn6H8ndwLUQ=="
    )


def test_the_token_is_asked_for_by_a_signed_request() -> None:
    path, body, headers = codec().token_request(17)
    assert (path, body, headers["API-Key"]) == ("/0/private/GetWebSocketsToken", "nonce=17", "key")
    assert headers["API-Sign"] == sign(SECRET, path, "17", body)


def test_a_refused_or_malformed_token_is_an_error() -> None:
    with pytest.raises(VenueError, match="Invalid key"):
        codec().take_token(b'{"error":["EAPI:Invalid key"]}')
    for payload in (b"{", b'{"error":[],"result":{"token":"a\\"b"}}', b'{"error":[],"result":{}}'):
        with pytest.raises(ProtocolError, match="GetWebSocketsToken"):
            codec().take_token(payload)


def test_nothing_is_sent_without_a_token() -> None:
    with pytest.raises(LocalError, match="token"):
        OrderCodec([BTC], "key", SECRET, "p", []).encode(row(Kind.SUBMIT, 1), None, 0)


# ---- requests


def test_a_limit_order_is_written_exactly() -> None:
    made = codec()
    sent = request(made.encode(row(Kind.SUBMIT, 7, px=817_123, qty=10_001), None, 0))
    name = made.client_order_id(7)
    assert len(name) == 32 and made.cl_ord_id(name) == 7
    assert sent == {
        "method": "add_order",
        "params": {
            "order_type": "limit", "side": "buy", "symbol": "BTC/USDT", "order_qty": Decimal("0.00010001"),
            "cl_ord_id": name, "limit_price": Decimal("81712.3"), "time_in_force": "gtc", "token": made.token,
        },
        "req_id": 1,
    }  # fmt: skip


def test_flags_and_order_types_become_the_venues_words() -> None:
    made = codec()
    post = request(made.encode(row(Kind.SUBMIT, 1, side=Side.SELL, flags=int(Flag.POST_ONLY)), None, 0))["params"]
    assert (post["side"], post["post_only"], post["time_in_force"]) == ("sell", True, "gtc")
    assert request(made.encode(row(Kind.SUBMIT, 2, tif=Tif.IOC), None, 0))["params"]["time_in_force"] == "ioc"
    payload = np.zeros(1, ORDER_PAYLOAD)
    payload["ord_type"] = OrdType.MARKET
    market = request(made.encode(row(Kind.SUBMIT, 3), payload[0], 0))["params"]
    assert market["order_type"] == "market" and "limit_price" not in market
    cancel = request(made.encode(row(Kind.CANCEL, 2), None, 0))
    assert (cancel["method"], cancel["params"]["cl_ord_id"]) == ("cancel_order", [made.client_order_id(2)])
    assert request(made.cancel_all_request(3, 0))["method"] == "cancel_all"


@pytest.mark.parametrize("bad", [{"tif": Tif.FOK}, {"tif": Tif.DAY}, {"flags": 3}])
def test_what_the_venue_does_not_have_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match=r"time in force|flags"):
        codec().encode(row(Kind.SUBMIT, 1, **bad), None, 0)
    with pytest.raises(LocalError, match="kind"):
        codec().encode(row(Kind.TRADE, 1), None, 0)


def test_ids_of_other_sessions_are_not_ours() -> None:
    made, other = codec(), OrderCodec([BTC], "key", SECRET, "another", [])
    for name in ("", "b17c7bb34d000200", other.client_order_id(5), made.client_order_id(5)[:-1] + "G"):
        assert made.cl_ord_id(name) == 0
    assert made.cl_ord_id(made.client_order_id(2**63 - 1)) == 2**63 - 1


# ---- the life of an order


def test_an_order_is_acknowledged_filled_in_parts_and_done() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 7), None, 0)
    assert reports(made, event(made, "pending_new", 7, order_status="pending_new")) == []
    (ack,) = reports(made, event(made, "new", 7, order_status="new"))
    assert (ack["id"], ack["exec"], ack["leaves"], ack["instrument"], ack["ts"]) == (7, "ACK", 10000, 3, time_ns(STAMP))
    fill = {
        "symbol": "BTC/USDT", "side": "buy", "last_qty": 0.00004, "last_price": 80000.0, "trade_id": 8253473,
        "liquidity_ind": "m", "fees": [{"asset": "USDT", "qty": 0.0083}], "exec_id": "T5DIUI-5N4KO-Z5BPXK",
    }  # fmt: skip
    (first,) = reports(made, event(made, "trade", 7, **fill))
    assert (first["px"], first["qty"], first["cum"], first["leaves"]) == (800000, 4000, 4000, 6000)
    assert (first["exec_id"], first["fee"], first["asset"], first["status"]) == (
        8253473, 830000, 1, "PARTIALLY_FILLED",
    )  # fmt: skip
    assert first["flags"] == Flag.BID | Flag.MAKER
    (last,) = reports(made, event(made, "trade", 7, **{**fill, "last_qty": 0.00006, "liquidity_ind": "t"}))
    assert (last["status"], last["cum"], last["leaves"], last["flags"]) == ("FILLED", 10000, 0, int(Flag.BID))
    assert reports(made, event(made, "filled", 7, order_status="filled", cum_qty=0.0001)) == []
    assert not made.in_doubt and not made.foreign


def test_a_cancel_and_the_fill_that_crosses_it_are_both_told() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 7), None, 0)
    made.encode(row(Kind.CANCEL, 7), None, 0)
    assert reports(made, {"method": "cancel_order", "req_id": 2, "success": True, "result": {}}) == []
    assert brief(reports(made, event(made, "canceled", 7, cum_qty=0, reason="User requested"))) == [
        (7, "CANCELED", "CANCELED", 0, 0, 0)
    ]
    late = event(made, "trade", 7, last_qty=0.00001, last_price=80000.0, trade_id=1)
    assert brief(reports(made, late)) == [(7, "FILL", "PARTIALLY_FILLED", 1000, 1000, 9000)]


def test_refusals_say_which_request_was_refused() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 1), None, 0)
    made.encode(row(Kind.CANCEL, 1), None, 0)
    made.encode(row(Kind.REPLACE_ORDER, 2, orig=1), None, 0)
    no = {"success": False, "error": "EOrder:Insufficient funds"}
    refused = reports(made, {"method": "cancel_order", "req_id": 2, **no})
    assert brief(refused) == [(1, "CANCEL_REJECT", "NONE", 0, 0, 0)]
    assert brief(reports(made, {"method": "amend_order", "req_id": 3, **no})) == [(2, "REJECT", "REJECTED", 0, 0, 0)]
    (told,) = reports(made, {"method": "add_order", "req_id": 1, **no})
    assert (told["id"], told["exec"], told["text"]) == (1, "REJECT", b"EOrder:Insuffici")
    assert reports(made, {"method": "add_order", "req_id": 1, **no}) == []
    assert made.counts["unmatched"] == 1


def test_an_answer_of_unknown_outcome_is_doubt_not_a_reject() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 1), None, 0)
    told = reports(made, {"method": "add_order", "req_id": 1, "success": False, "error": "EService:Unavailable"})
    assert brief(told) == [(1, "LOST", "UNKNOWN", 0, 0, 0)]
    assert brief(reports(made, event(made, "new", 1))) == [(1, "ACK", "NEW", 0, 0, 10000)]


def test_an_amended_order_goes_on_under_its_new_id_whichever_comes_first() -> None:
    for answer_first in (True, False):
        made = codec()
        made.encode(row(Kind.SUBMIT, 7), None, 0)
        reports(made, event(made, "trade", 7, last_qty=0.00004, last_price=80000.0, trade_id=1))
        sent = request(made.encode(row(Kind.REPLACE_ORDER, 8, orig=7, px=818180, qty=5000), None, 0))
        assert sent["method"] == "amend_order"
        assert sent["params"]["order_qty"] == Decimal("0.00009") and sent["params"]["limit_price"] == Decimal("81818.0")
        assert sent["params"]["cl_ord_id"] == made.client_order_id(7)
        answer = {"method": "amend_order", "req_id": 2, "success": True, "result": {"amend_id": "T"}}
        if answer_first:
            assert reports(made, answer) == []
        amended = event(made, "amended", 7, order_qty=0.00009, limit_price=81818.0, cum_qty=0.00004)
        (told,) = reports(made, amended)
        assert (told["id"], told["exec"], told["px"]) == (8, "REPLACED", 818180)
        assert told["qty"] == told["leaves"] == 5000
        if not answer_first:
            assert reports(made, answer) == []
        cancel = request(made.encode(row(Kind.CANCEL, 8), None, 0))
        assert cancel["params"]["cl_ord_id"] == [made.client_order_id(7)]
        fill = event(made, "trade", 7, last_qty=0.00005, last_price=81818.0, trade_id=2)
        assert brief(reports(made, fill)) == [(8, "FILL", "FILLED", 5000, 5000, 0)]


def test_a_fill_that_crosses_an_amend_leaves_less_and_the_rest_is_canceled() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 7), None, 0)
    made.encode(row(Kind.REPLACE_ORDER, 8, orig=7, qty=5000), None, 0)
    crossing = event(made, "trade", 7, last_qty=0.00002, last_price=80000.0, trade_id=1)
    assert brief(reports(made, crossing)) == [(7, "FILL", "PARTIALLY_FILLED", 2000, 2000, 8000)]
    amended = event(made, "amended", 7, order_qty=0.00005, limit_price=80000.0, cum_qty=0.00002)
    assert brief(reports(made, amended)) == [(8, "REPLACED", "NEW", 3000, 0, 3000)]
    fill = event(made, "trade", 7, last_qty=0.00003, last_price=80000.0, trade_id=2)
    assert brief(reports(made, fill)) == [(8, "FILL", "PARTIALLY_FILLED", 3000, 3000, 0)]
    assert brief(reports(made, event(made, "filled", 7, cum_qty=0.00005))) == [
        (8, "CANCELED", "CANCELED", 0, 3000, 0)
    ]
    assert not made.in_doubt


def test_a_missed_fill_is_doubt() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 7), None, 0)
    assert brief(reports(made, event(made, "filled", 7, cum_qty=0.0001))) == [(7, "LOST", "UNKNOWN", 0, 0, 0)]
    assert made.in_doubt


def test_a_missing_number_of_the_channel_is_doubt() -> None:
    made = codec()
    made.session_requests(0)
    for sequence in (1, 2, 3):
        reports(made, {"channel": "executions", "type": "update", "data": [], "sequence": sequence})
    assert not made.in_doubt
    reports(made, {"channel": "executions", "type": "update", "data": [], "sequence": 5})
    assert made.in_doubt and made.counts["gaps"] == 1


def test_what_cannot_be_expressed_is_lost_and_counted() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 7), None, 0)
    told = reports(made, event(made, "trade", 7, last_qty=0.000000001, last_price=80000.0, trade_id=1))
    assert brief(told) == [(7, "LOST", "UNKNOWN", 0, 0, 0)]
    assert brief(reports(made, event(made, "new", 7, timestamp="yesterday"))) == [(7, "LOST", "UNKNOWN", 0, 0, 0)]
    assert made.counts["inexact"] == 2


def test_a_fee_finer_than_a_hundred_millionth_is_rounded_up_and_counted() -> None:
    made = codec()
    made.encode(row(Kind.SUBMIT, 7), None, 0)
    fees = [{"asset": "KFEE", "qty": 0.0144607991}]
    (told,) = reports(made, event(made, "trade", 7, last_qty=0.00001, last_price=1.0, trade_id=1, fees=fees))
    assert (told["fee"], told["asset"], made.assets) == (1446080, 2, ["BTC", "USDT", "KFEE"])
    assert made.counts["rounded_fees"] == 1


# ---- the session


def test_the_session_opens_with_executions_and_balances() -> None:
    made = codec()
    subscribe = [request(raw)["params"] for raw in made.session_requests(0)]
    assert [(p["channel"], p["token"]) for p in subscribe] == [("executions", made.token), ("balances", made.token)]
    ack = {"method": "subscribe", "success": True, "result": {"channel": "executions"}, "req_id": 1}
    assert reports(made, ack) == [] and made.subscribed
    open_order = {
        "order_id": "O1", "symbol": "BTC/USDT", "order_qty": 0.0001, "cum_qty": 0.00004, "exec_type": "status",
        "side": "sell", "cl_ord_id": made.client_order_id(9), "limit_price": 90000.0,
        "order_status": "partially_filled",
    }  # fmt: skip
    reports(made, {"channel": "executions", "type": "snapshot", "data": [open_order], "sequence": 1})
    assert made.open_orders is not None
    assert [(made.cl_ord_id(o.client_order_id), o.executed_qty) for o in made.open_orders] == [(9, Decimal("0.00004"))]
    fill = event(made, "trade", 9, last_qty=0.00006, last_price=90000.0, trade_id=4)
    assert brief(reports(made, fill)) == [(9, "FILL", "FILLED", 6000, 10000, 0)]
    assert made.balances is None
    entries = [{"asset": "BTC", "balance": 1.2, "hold_trade": 0.5}]
    reports(made, {"channel": "balances", "type": "snapshot", "data": entries})
    assert made.balances is not None and made.balances["BTC"].free == Decimal("0.7")


def test_a_refused_session_says_why() -> None:
    made = codec()
    made.session_requests(0)
    reports(made, {"method": "subscribe", "success": False, "error": "EAccount:Invalid permissions", "req_id": 1})
    assert made.session_error is not None and "permissions" in str(made.session_error)


def test_recorded_events_of_somebody_else_are_foreign() -> None:
    """Events of the live channel of 2026-01-22, in the parser tests of a public market gateway."""
    made = codec()
    frames = [
        b'{"channel":"executions","type":"update","data":[{"order_id":"OVN7VD-7VYHS-APBKHA","symbol":"BTC/USDT",'
        b'"order_qty":0.00010000,"cum_cost":0.00000,"time_in_force":"GTC","exec_type":"pending_new","side":"buy",'
        b'"order_type":"limit","cl_ord_id":"b17c7bb34d000200","limit_price_type":"static","limit_price":80000.0,'
        b'"stop_price":0.0,"order_status":"pending_new","fee_usd_equiv":0.0000,"fee_ccy_pref":"fciq",'
        b'"timestamp":"2026-01-22T06:06:19.833306Z"}],"sequence":2}',
        b'{"channel":"executions","type":"update","data":[{"timestamp":"2026-01-22T06:06:36.039852Z","order_status":'
        b'"canceled","exec_type":"canceled","cum_qty":0.00000000,"cum_cost":0.00000,"fee_usd_equiv":0.0000,"avg_price":'
        b'0.0,"cl_ord_id":"b17c7bb34d000200","cancel_reason":"User requested","reason":"User requested","order_id":'
        b'"OVN7VD-7VYHS-APBKHA"}],"sequence":3}',
    ]
    for frame in frames:
        assert reports(made, frame) == []
        ours = frame.replace(b"b17c7bb34d000200", made.client_order_id(1).encode())
        again = codec()
        again.encode(row(Kind.SUBMIT, 1), None, 0)
        told = reports(again, ours)
        assert [t["exec"] for t in told] == (["CANCELED"] if b'"canceled"' in frame else [])
    assert [e.cl_ord_id for e in made.foreign] == ["b17c7bb34d000200"] * 2
    assert made.counts["foreign"] == 2 and made.counts["malformed"] == 0


def test_foreign_bytes_are_counted() -> None:
    made = codec()
    for frame in (b"", b"{", b"[]", b"\xff", b'{"channel":"executions","data":{}}', b'{"channel":5}'):
        assert reports(made, frame) == []
    assert made.counts["malformed"] == 6
    reports(made, b'{"channel":"heartbeat"}')
    assert made.counts["ignored"] == 1


def test_bad_settings_are_refused() -> None:
    for settings in (("", SECRET, "p"), ("key", "", "p"), ("key", SECRET, ""), ("key", "no base64!", "p")):
        with pytest.raises(ConfigError):
            OrderCodec([BTC], *settings, [])
    with pytest.raises(ConfigError, match="share"):
        OrderCodec([BTC, BTC], "key", SECRET, "p", [])
    assert NAT < 0
