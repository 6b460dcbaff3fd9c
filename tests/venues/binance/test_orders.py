"""Orders and reports on the wire: exact text, right signatures, and each fact told once."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ORDER_PAYLOAD, REPORT_PAYLOAD, ROW, ExecType, Flag, Kind, OrdStatus, OrdType, Tif
from hftlab.kernels.latency import HAS_COUNTER, Latency
from hftlab.venues.binance.orders import FOREIGN_KEPT, OrderCodec

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"))
ODD = Instrument(2, "binance", "ODDUSDT", Decimal("0.25"), Decimal("10"))
SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"


@pytest.fixture
def codec() -> OrderCodec:
    return OrderCodec([BTC, ODD], "key", SECRET, "hft-", ["USDT", "BTC"])


@pytest.fixture
def out() -> np.ndarray[Any, Any]:
    return np.frombuffer(b"\xa5" * 64 * 8, ROW).copy()


def order_row(kind: Kind = Kind.SUBMIT, **fields: Any) -> Any:
    row = np.zeros(1, ROW)
    row[0]["kind"] = kind
    for name, value in {"px": 6183763, "qty": 2000, "a": 17, "flags": Flag.BID, "code": Tif.GTC, **fields}.items():
        row[0][name] = value
    return row[0]


def request(frame: bytes) -> tuple[str, str, dict[str, Any]]:
    """Return (id, method, params) of a request whose signature has been recomputed from the documented rule."""
    message = json.loads(frame)
    params: dict[str, Any] = message["params"]
    signature = params.pop("signature")
    payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
    assert signature == hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest()
    assert params.pop("apiKey") == "key" and isinstance(params.pop("timestamp"), int)
    return message["id"], message["method"], params


def report(execution: str, status: str, client: str = "hft-17", **fields: Any) -> bytes:
    event = {
        "e": "executionReport", "E": 1499405658658, "s": "BTCUSDT", "c": client, "S": "BUY", "o": "LIMIT", "f": "GTC",
        "q": "0.02000000", "p": "61837.63000000", "C": "", "x": execution, "X": status, "r": "NONE", "i": 4293153,
        "l": "0.00000000", "z": "0.00000000", "L": "0.00000000", "n": "0", "N": None, "T": 1499405658657, "t": -1,
        "w": True, "m": False, "M": False,
    }  # fmt: skip
    return json.dumps({"subscriptionId": 0, "event": event | fields}).encode()


def answer(request_id: str, status: int, **fields: Any) -> bytes:
    return json.dumps({"id": request_id, "status": status, **fields, "rateLimits": []}).encode()


def error(request_id: str, code: int, message: str = "No.", status: int = 400, **fields: Any) -> bytes:
    return answer(request_id, status, error={"code": code, "msg": message, **fields})


Told = list[tuple[ExecType, OrdStatus, int]]


def told(codec: OrderCodec, frame: bytes, out: np.ndarray[Any, Any]) -> Told:
    """Return (what happened, state, cl_ord_id) of every report in `frame`, after checking the rows' frame."""
    n = codec.decode(frame, 9, out)
    rows = out[:n]
    assert rows["kind"].tolist() == [Kind.REPORT, Kind.CONT] * (n // 2)
    assert rows["span"].tolist() == [1, 0] * (n // 2) and (rows["source"] == 2).all()
    reports = rows[::2]
    return [(ExecType(int(r["code"]) & 255), OrdStatus(int(r["code"]) >> 8), int(r["a"])) for r in reports]


def payload_of(out: np.ndarray[Any, Any], n: int = 1) -> Any:
    return out[n : n + 1].view(REPORT_PAYLOAD)[0]


# ---- rows to requests


def test_a_limit_order_is_placed_with_exact_decimals_and_a_right_signature(codec: OrderCodec) -> None:
    identity, method, params = request(codec.encode(order_row(), None, 1_700_000_000_000))
    assert method == "order.place" and len(identity) <= 36
    assert params == {
        "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "61837.63",
        "quantity": "0.02000", "newClientOrderId": "hft-17", "newOrderRespType": "ACK",
    }  # fmt: skip


def test_post_only_is_the_venues_limit_maker(codec: OrderCodec) -> None:
    _, _, params = request(codec.encode(order_row(flags=Flag.ASK | Flag.POST_ONLY), None, 1))
    assert params["type"] == "LIMIT_MAKER" and params["side"] == "SELL" and "timeInForce" not in params


def test_a_market_order_has_no_price(codec: OrderCodec) -> None:
    rows = np.zeros(2, ROW)
    rows[1:].view(ORDER_PAYLOAD)["ord_type"] = OrdType.MARKET
    for payload in (rows[1], rows[1:].view(ORDER_PAYLOAD)[0]):
        _, _, params = request(codec.encode(order_row(span=1, px=0), payload, 1))
        assert params["type"] == "MARKET" and not {"price", "timeInForce"} & set(params)
    rows[1:].view(ORDER_PAYLOAD)["ord_type"] = OrdType.LIMIT
    assert request(codec.encode(order_row(span=1), rows[1], 1))[2]["type"] == "LIMIT"


def test_a_cancel_names_the_order_by_its_client_id(codec: OrderCodec) -> None:
    _, method, params = request(codec.encode(order_row(Kind.CANCEL, flags=0), None, 1))
    assert method == "order.cancel" and params == {"symbol": "BTCUSDT", "origClientOrderId": "hft-17"}


def test_a_replace_is_one_request_that_stops_on_failure(codec: OrderCodec) -> None:
    _, method, params = request(codec.encode(order_row(Kind.REPLACE_ORDER, a=18, b=17, code=Tif.IOC), None, 1))
    assert method == "order.cancelReplace"
    assert params == {
        "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "IOC", "price": "61837.63",
        "quantity": "0.02000", "newClientOrderId": "hft-18", "newOrderRespType": "ACK",
        "cancelOrigClientOrderId": "hft-17", "cancelReplaceMode": "STOP_ON_FAILURE",
    }  # fmt: skip


@given(st.integers(0, 2**62 - 1), st.integers(1, 2**58), st.sampled_from([BTC, ODD]), st.integers(1, 2**63 - 1))
def test_every_order_is_written_exactly(px: int, qty: int, instrument: Instrument, cl_ord_id: int) -> None:
    codec = OrderCodec([BTC, ODD], "key", SECRET, "hft-", [])
    row = order_row(px=px, qty=qty, instrument=instrument.id, a=cl_ord_id)
    identity, _, params = request(codec.encode(row, None, 1))
    assert Decimal(params["price"]) == instrument.px(px) and Decimal(params["quantity"]) == instrument.qty(qty)
    assert len(identity) <= 36 and len(params["newClientOrderId"]) <= 36
    assert codec.cl_ord_id(params["newClientOrderId"]) == cl_ord_id


def test_what_the_venue_does_not_have_is_refused_before_it_is_sent(codec: OrderCodec) -> None:
    for row, message in (
        (order_row(code=Tif.GTD), "time in force 6"),
        (order_row(code=Tif.DAY), "time in force 0"),
        (order_row(flags=0), "expected BID or ASK"),
        (order_row(flags=Flag.BID | Flag.ASK), "expected BID or ASK"),
        (order_row(instrument=9), "instrument=9"),
        (order_row(Kind.TRADE), "no order row"),
    ):
        with pytest.raises(LocalError, match=message):
            codec.encode(row, None, 1)


@pytest.mark.parametrize("prefix", ["", "hft1", "a b", "x" * 17, 'q"-'])
def test_a_prefix_that_could_be_mistaken_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="client_prefix"):
        OrderCodec([BTC], "key", SECRET, prefix, [])


def test_a_missing_or_broken_key_is_refused_without_showing_it() -> None:
    for key, secret in (("", SECRET), ("key", ""), ('ke"y', SECRET), ("k&y", SECRET)):
        with pytest.raises(ConfigError) as caught:
            OrderCodec([BTC], key, secret, "hft-", [])
        assert SECRET not in str(caught.value)


# ---- reports


def test_an_accepted_order_is_acknowledged_once_by_its_event(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    identity, _, _ = request(codec.encode(order_row(), None, 1))
    assert told(codec, answer(identity, 200, result={"orderId": 1, "clientOrderId": "hft-17"}), out) == []
    assert told(codec, report("NEW", "NEW"), out) == [(ExecType.ACK, OrdStatus.NEW, 17)]
    assert (out[0]["ts_event"], out[0]["ts_recv"], out[0]["flags"]) == (1499405658657 * 10**6, 9, Flag.BID)
    payload = payload_of(out)
    assert (payload["cum_qty"], payload["leaves_qty"], payload["venue_order_id"]) == (0, 2000, 4293153)
    assert not any(codec.counts.values())


def test_a_fill_carries_price_quantity_id_fee_and_maker(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    fill = report(
        "TRADE", "PARTIALLY_FILLED", l="0.00500000", L="61837.63000000", z="0.01200000", n="0.00000012", N="BTC",
        t=777, m=True,
    )  # fmt: skip
    assert told(codec, fill, out) == [(ExecType.FILL, OrdStatus.PARTIALLY_FILLED, 17)]
    assert (out[0]["px"], out[0]["qty"], out[0]["b"], out[0]["flags"]) == (6183763, 500, 777, Flag.BID | Flag.MAKER)
    payload = payload_of(out)
    assert (payload["cum_qty"], payload["leaves_qty"], payload["fee"], payload["fee_asset"]) == (1200, 800, 12, 1)
    done = report("TRADE", "FILLED", S="SELL", l="0.008", L="61837.63", z="0.02", n="-0.5", N="USDT", t=778)
    assert told(codec, done, out) == [(ExecType.FILL, OrdStatus.FILLED, 17)]
    payload = payload_of(out)
    assert (payload["leaves_qty"], payload["fee"], payload["fee_asset"], out[0]["flags"]) == (0, -50_000_000, 0, 2)


def test_a_fee_in_a_new_asset_extends_the_asset_table(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    told(codec, report("TRADE", "FILLED", l="0.02", L="1.00", z="0.02", n="0.001", N="BNB", t=1), out)
    assert codec.assets == ["USDT", "BTC", "BNB"] and payload_of(out)["fee_asset"] == 2


def test_a_cancel_is_told_of_the_order_it_canceled(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    ours = report("CANCELED", "CANCELED", client="6gCrw2kRUAF9CvJDGP16IP", C="hft-17", z="0.01")
    assert told(codec, ours, out) == [(ExecType.CANCELED, OrdStatus.CANCELED, 17)]
    assert (payload_of(out)["cum_qty"], payload_of(out)["leaves_qty"]) == (1000, 0)
    assert told(codec, report("CANCELED", "CANCELED"), out) == [(ExecType.CANCELED, OrdStatus.CANCELED, 17)]


def test_an_expired_order_is_expired_however_the_venue_says_it(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    for execution, status in (("EXPIRED", "EXPIRED"), ("TRADE_PREVENTION", "EXPIRED_IN_MATCH")):
        assert told(codec, report(execution, status), out) == [(ExecType.EXPIRED, OrdStatus.EXPIRED, 17)]
    assert told(codec, report("TRADE_PREVENTION", "NEW"), out) == [] and codec.counts["ignored"] == 1


def test_a_refused_order_is_rejected_with_the_venues_code_and_words(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    identity, _, _ = request(codec.encode(order_row(), None, 1))
    frame = error(identity, -2010, "Account has insufficient balance for requested action.")
    assert told(codec, frame, out) == [(ExecType.REJECT, OrdStatus.REJECTED, 17)]
    payload = payload_of(out)
    assert payload["venue_code"] == -2010 and payload["text"] == b"Account has insu"
    assert out[0]["flags"] == Flag.BID and out[0]["instrument"] == 0


def test_a_refused_cancel_is_a_cancel_reject(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    identity, _, _ = request(codec.encode(order_row(Kind.CANCEL), None, 1))
    assert told(codec, error(identity, -2011, "Unknown order sent."), out) == [
        (ExecType.CANCEL_REJECT, OrdStatus.NONE, 17)
    ]


@pytest.mark.parametrize(("code", "status"), [(-1007, 400), (-1006, 400), (-1000, 500), (-1001, 503), (-1007, 504)])
def test_an_unknown_outcome_is_lost_and_never_a_reject(
    codec: OrderCodec, out: np.ndarray[Any, Any], code: int, status: int
) -> None:
    place, _, _ = request(codec.encode(order_row(), None, 1))
    cancel, _, _ = request(codec.encode(order_row(Kind.CANCEL), None, 1))
    replace, _, _ = request(codec.encode(order_row(Kind.REPLACE_ORDER, a=18, b=17), None, 1))
    lost = (ExecType.LOST, OrdStatus.UNKNOWN)
    assert told(codec, error(place, code, status=status), out) == [(*lost, 17)]
    assert told(codec, error(cancel, code, status=status), out) == [(*lost, 17)]
    assert told(codec, error(replace, code, status=status), out) == [(*lost, 18), (*lost, 17)]


def test_a_replace_is_a_cancel_and_an_acknowledgement(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    identity, _, _ = request(codec.encode(order_row(Kind.REPLACE_ORDER, a=18, b=17), None, 1))
    canceled = report("CANCELED", "CANCELED", client="osxN3JXAtJvKvCqGeMWMVR", C="hft-17")
    assert told(codec, canceled, out) == [(ExecType.CANCELED, OrdStatus.CANCELED, 17)]
    assert told(codec, report("NEW", "NEW", client="hft-18"), out) == [(ExecType.ACK, OrdStatus.NEW, 18)]
    assert told(codec, answer(identity, 200, result={"cancelResult": "SUCCESS"}), out) == []


def test_a_replace_that_failed_rejects_the_new_order_with_the_inner_reason(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    identity, _, _ = request(codec.encode(order_row(Kind.REPLACE_ORDER, a=18, b=17), None, 1))
    unknown = {"code": -2011, "msg": "Unknown order sent."}
    data = {"cancelResult": "FAILURE", "newOrderResult": "NOT_ATTEMPTED", "cancelResponse": unknown}
    assert told(codec, error(identity, -2022, data=data | {"newOrderResponse": None}), out) == [
        (ExecType.REJECT, OrdStatus.REJECTED, 18)
    ]
    assert payload_of(out)["venue_code"] == -2011
    placed = {"cancelResult": "FAILURE", "newOrderResult": "SUCCESS", "cancelResponse": unknown}
    assert told(codec, error(identity, -2021, status=409, data=placed), out) == []


def test_a_rejection_told_by_answer_and_event_is_reported_once(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    reject = [(ExecType.REJECT, OrdStatus.REJECTED)]
    for first, cl_ord_id in ((True, 18), (False, 20)):
        row = order_row(Kind.REPLACE_ORDER, a=cl_ord_id, b=17)
        identity, _, _ = request(codec.encode(row, None, 1))
        taken = {"code": -2010, "msg": "Order would immediately match and take."}
        data = {"cancelResult": "SUCCESS", "newOrderResult": "FAILURE", "newOrderResponse": taken}
        frames = [error(identity, -2021, status=409, data=data), report("REJECTED", "REJECTED", f"hft-{cl_ord_id}")]
        told_once = [told(codec, frame, out) for frame in (frames if first else frames[::-1])]
        assert told_once == [[(*reject[0], cl_ord_id)], []]


def test_a_fill_that_cannot_be_expressed_puts_the_order_in_doubt(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    good = {"l": "0.005", "L": "61837.63", "z": "0.005", "t": 7}
    for field, value in (("L", "61837.635"), ("l", "0.000001"), ("T", 10**14), ("t", -5), ("n", "0.000000001")):
        fill = report("TRADE", "PARTIALLY_FILLED", **(good | {field: value}))
        assert told(codec, fill, out) == [(ExecType.LOST, OrdStatus.UNKNOWN, 17)], field
    assert codec.counts["inexact"] == 5


def test_orders_of_others_are_kept_for_accounting_and_give_no_rows(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    for client in ("web_abc", "hft-", "hft-01", "hft-x1", "hft-99999999999999999999", "HFT-17"):
        assert told(codec, report("NEW", "NEW", client=client), out) == []
    assert told(codec, report("NEW", "NEW", s="DOGEUSDT"), out) == []
    assert codec.counts["foreign"] == 7 and [r.c for r in codec.foreign][:2] == ["web_abc", "hft-"]
    for _ in range(FOREIGN_KEPT + 5):
        codec.decode(report("NEW", "NEW", client="web"), 0, out)
    assert len(codec.foreign) == FOREIGN_KEPT


# ---- the session


def test_a_session_opens_by_subscribing_and_reading_balances_and_orders(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    requests = [request(frame) for frame in codec.session_requests(1_700_000_000_000)]
    assert [method for _, method, _ in requests] == [
        "userDataStream.subscribe.signature", "account.status", "openOrders.status",
    ]  # fmt: skip
    subscribe, account, orders = (identity for identity, _, _ in requests)
    assert not codec.subscribed and codec.account is None and codec.open_orders is None
    codec.decode(answer(subscribe, 200, result={"subscriptionId": 0}), 0, out)
    balances = [{"asset": "BTC", "free": "4723846.89208129", "locked": "0.00000000"}]
    codec.decode(answer(account, 200, result={"balances": balances, "canTrade": True, "makerCommission": 15}), 0, out)
    order = {
        "symbol": "BTCUSDT", "orderId": 1, "clientOrderId": "hft-4", "price": "0.1", "origQty": "1.0",
        "executedQty": "0.0", "status": "NEW", "side": "BUY",
    }  # fmt: skip
    codec.decode(answer(orders, 200, result=[order]), 0, out)
    assert codec.subscribed and codec.account is not None and codec.open_orders is not None
    assert codec.balances["BTC"].free == Decimal("4723846.89208129")
    assert codec.cl_ord_id(codec.open_orders[0].client_order_id) == 4
    assert codec.session_error is None


def test_a_wrong_key_is_an_error_of_the_session(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    identity, _, _ = request(codec.session_requests(1)[0])
    codec.decode(error(identity, -2015, "Invalid API-key, IP, or permissions for action.", status=401), 0, out)
    assert codec.session_error is not None and codec.session_error.code == -2015 and not codec.subscribed


def test_the_end_of_a_subscription_and_of_a_connection_are_noted(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    codec.subscribed = True
    codec.decode(b'{"subscriptionId":0,"event":{"e":"eventStreamTerminated","E":1728973001334}}', 0, out)
    assert not codec.subscribed
    codec.decode(b'{"event":{"e":"serverShutdown","E":1770123456789}}', 0, out)
    assert codec.shutdown


def test_everything_of_an_instrument_can_be_canceled_at_once(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    identity, method, params = request(codec.cancel_all_request(2, 1))
    assert (method, params) == ("openOrders.cancelAll", {"symbol": "ODDUSDT"})
    assert told(codec, answer(identity, 200, result=[]), out) == [] and codec.counts["unmatched"] == 0


def test_an_answer_to_nothing_of_ours_is_counted(codec: OrderCodec, out: np.ndarray[Any, Any]) -> None:
    for frame in (answer("p9zz", 400), answer("e2a85d9f-07a5-4f94", 200), b'{"id":null,"status":400}'):
        assert told(codec, frame, out) == []
    assert codec.counts["unmatched"] == 3


_ORDERS, _OUT = OrderCodec([BTC, ODD], "key", SECRET, "hft-", ["USDT"]), np.zeros(4, ROW)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=300) | st.text(alphabet='{}[]":,0aenrst', max_size=60).map(str.encode))
def test_any_bytes_give_no_report_and_are_counted(frame: bytes) -> None:
    before = sum(_ORDERS.counts.values())
    assert _ORDERS.decode(frame, 0, _OUT) == 0
    assert sum(_ORDERS.counts.values()) == before + 1


def test_mutated_reports_are_read_like_a_complete_parser_would_or_are_counted(
    codec: OrderCodec, out: np.ndarray[Any, Any]
) -> None:
    rng = random.Random(4)
    fill = report("TRADE", "FILLED", l="0.00500000", L="61837.63000000", z="0.02", n="0.1", N="BNB", t=777, m=True)
    refused = error("p111.0", -2010, "Filter failure: PRICE_FILTER")
    written = 0
    for n in range(20_000):
        raw = bytearray(fill if n % 4 else refused)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randint(0, 2)] = rng.choice((b"", b"0", b"9", b'"', b"}", b"-", b"\xff", b"e", b"."))
        before = sum(codec.counts.values())
        rows = codec.decode(bytes(raw), 0, out)
        assert rows in (0, 2)
        if not rows:
            continue
        written += 1
        assert sum(codec.counts.values()) - before in (0, 1)  # 1: inexact, told as LOST
        if out[0]["code"] & 255 == ExecType.FILL:
            event = json.loads(raw.decode(errors="replace"))["event"]
            assert BTC.px(out[0]["px"]) == Decimal(event["L"]) and BTC.qty(out[0]["qty"]) == Decimal(event["l"])
    assert written > 1000


ORDERS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([Kind.SUBMIT, Kind.REPLACE_ORDER, Kind.CANCEL, Kind.LEVEL]),
        "flags": st.sampled_from([0, 1, 2, 3, 16 | 1, 16 | 2, 256 | 1, 256 | 2, 512 | 2]),
        "code": st.sampled_from([int(t) for t in Tif]),
        "instrument": st.sampled_from([0, 1, 2, 5000]),
        "px": st.one_of(st.sampled_from([0, -5, 2**62, 2**63 - 1]), st.integers(0, 10**12)),
        "qty": st.one_of(st.sampled_from([0, -1, 2**60]), st.integers(0, 10**12)),
        "a": st.one_of(st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]), st.integers(1, 2**40)),
        "b": st.one_of(st.sampled_from([0, 2**63 - 1, 2**64 - 1]), st.integers(0, 2**40)),
    }
)
WIDE = OrderCodec([BTC, ODD], "key", SECRET, "hft-", ["USDT", "BTC"])
LONG = OrderCodec([BTC, ODD], "k" * 64, SECRET, "h0123abcd-", ["USDT", "BTC"])


@settings(max_examples=400, deadline=None)
@given(ORDERS, st.sampled_from([None, OrdType.LIMIT, OrdType.MARKET]), st.sampled_from([WIDE, LONG]))
def test_a_request_from_its_template_is_the_encoded_one_byte_for_byte(
    fields: dict[str, Any], ord_type: OrdType | None, codec: OrderCodec
) -> None:
    commands = np.zeros(1 if ord_type is None else 2, ROW)
    for name, value in fields.items():
        commands[0][name] = value
    if ord_type is not None:
        commands[0]["span"] = 1
        payload = commands[1:].view(ORDER_PAYLOAD)[0]
        payload["kind"], payload["span"], payload["ord_type"] = Kind.CONT, 1, ord_type
    try:
        expected: Any = codec.encode(commands[0], commands[1] if ord_type is not None else None, 1795376579687)
    except LocalError as refused:
        expected = str(refused)
    try:
        told: Any = codec.request(commands, 0, 1795376579687)
    except LocalError as refused:
        told = str(refused)
    assert told == expected
    assert codec.follower == len(commands)


def test_every_plain_order_is_written_by_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = OrderCodec([BTC, ODD], "key", SECRET, "hft-", ["USDT", "BTC"])
    monkeypatch.setattr(codec, "encode", None)
    for kind in (Kind.SUBMIT, Kind.REPLACE_ORDER, Kind.CANCEL):
        for instrument in (0, 2):
            for flags in (Flag.BID, Flag.ASK, Flag.BID | Flag.POST_ONLY, Flag.ASK | Flag.OUTPUT):
                for tif in (Tif.GTC, Tif.IOC, Tif.FOK):
                    row = order_row(kind, instrument=instrument, flags=flags, code=tif, b=9)
                    request(codec.request(np.array([row]), 0, 1_700_000_000_000))


def test_an_instrument_whose_grid_no_kernel_writes_is_encoded_all_the_same() -> None:
    fine = Instrument(0, "binance", "FINE", Decimal("1E-19"), Decimal("1"))
    codec = OrderCodec([fine], "key", SECRET, "hft-", ["USDT"])
    row = order_row(px=3, qty=2)
    assert request(codec.request(np.array([row]), 0, 1))[2]["price"] == "0.0000000000000000003"


def test_requests_are_counted_and_rehearsals_are_not(codec: OrderCodec) -> None:
    latency = Latency(1.0)
    codec.measure(latency)
    commands = np.array([order_row()])
    codec.rehearse(commands, 1)
    assert latency.histogram("encode").n == 0
    codec.request(commands, 0, 1)
    assert latency.histogram("encode").n == int(HAS_COUNTER)
