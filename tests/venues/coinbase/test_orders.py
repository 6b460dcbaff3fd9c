"""Orders to requests and events to reports: exact, signed as the venue verifies, nothing dropped silently."""

from __future__ import annotations

import base64
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from hypothesis import given, settings
from hypothesis import strategies as st
from venues.coinbase.test_server import BTC, WALL_MS, Venue

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.rows import ORDER_PAYLOAD, REPORT_PAYLOAD, ROW, ExecType, Flag, Kind, OrdStatus, OrdType, Tif
from hftlab.sim.models import Fees
from hftlab.venues.coinbase.capture import read_capture, read_products
from hftlab.venues.coinbase.messages import instruments_from_products
from hftlab.venues.coinbase.orders import AdvancedOrderCodec, OrderCodec, Request, exchange_signature, jwt_signer
from hftlab.venues.coinbase.server import DEFAULT_ACCOUNT, PASSPHRASE

KEY, SECRET = DEFAULT_ACCOUNT[:2]
NOW_MS = WALL_MS
ID = "d50ec984-77a8-460a-b958-66f114b0de9b"


def exchange_codec(prefix: str = "t1-") -> OrderCodec:
    return OrderCodec([BTC], KEY, SECRET, PASSPHRASE, prefix, ["BTC", "USD"])


def advanced_codec() -> AdvancedOrderCodec:
    return AdvancedOrderCodec([BTC], lambda method, path, now_ns: f"<{method} {path}>", "t1-", ["BTC", "USD"])


def order(cl_ord_id: int = 7, kind: Kind = Kind.SUBMIT, **fields: int) -> Any:
    row = np.zeros(1, ROW)[0]
    values = {"kind": kind, "a": cl_ord_id, "flags": int(Flag.BID), "code": Tif.GTC, "px": 5_000_000, "qty": 1000}
    for name, value in {**values, **fields}.items():
        row[name] = value
    return row


Report = tuple[str, str, int, int, int, int, int, int, int]


def reports(out: Any, n: int) -> list[Report]:
    """Return exec type, status, cl_ord_id, px, qty, cum, leaves, fee, flags of each report."""
    found = []
    for k in range(0, n, 2):
        row, payload = out[k], out[k + 1 : k + 2].view(REPORT_PAYLOAD)[0]
        assert (row["kind"], row["span"], payload["kind"]) == (Kind.REPORT, 1, Kind.CONT)
        found.append(
            (
                ExecType(int(row["code"]) & 255).name, OrdStatus(int(row["code"]) >> 8).name, int(row["a"]),
                int(row["px"]), int(row["qty"]), int(payload["cum_qty"]), int(payload["leaves_qty"]),
                int(payload["fee"]), int(row["flags"]),
            )
        )  # fmt: skip
    return found


# ---- the Exchange


def test_a_limit_order_is_written_exactly_and_named_by_a_uuid() -> None:
    codec = exchange_codec()
    request = codec.encode(order(flags=int(Flag.ASK | Flag.POST_ONLY)), None, NOW_MS)
    assert (request.method, request.path) == ("POST", "/orders")
    assert json.loads(request.body) == {
        "product_id": "BTC-USD", "side": "sell", "client_oid": codec.client_oid(7), "size": "0.01000",
        "type": "limit", "price": "50000.00", "time_in_force": "GTC", "post_only": True,
    }  # fmt: skip
    cancel = codec.encode(order(kind=Kind.CANCEL), None, NOW_MS)
    assert cancel.path == f"/orders/client:{codec.client_oid(7)}?product_id=BTC-USD"
    payload = np.zeros(1, ORDER_PAYLOAD)[0]
    payload["ord_type"] = OrdType.MARKET
    assert "price" not in json.loads(codec.encode(order(), payload, NOW_MS).body)


@given(st.integers(1, 2**62 - 1))
def test_a_client_id_means_the_same_to_its_session_and_nothing_to_another(cl_ord_id: int) -> None:
    mine, other = exchange_codec(), exchange_codec("t2-")
    assert mine.cl_ord_id(mine.client_oid(cl_ord_id)) == cl_ord_id
    assert other.cl_ord_id(mine.client_oid(cl_ord_id)) == 0
    assert mine.cl_ord_id(ID) == mine.cl_ord_id("") == mine.cl_ord_id("x" * 36) == 0


@pytest.mark.parametrize(
    "fields",
    [{"instrument": 9}, {"code": int(Tif.DAY)}, {"flags": 0}, {"flags": 3}, {"kind": Kind.REPLACE_ORDER}, {"a": 0},
     {"a": 2**62}],
)  # fmt: skip
def test_what_the_venue_does_not_have_is_refused_before_it_is_sent(fields: dict[str, int]) -> None:
    for codec in (exchange_codec(), advanced_codec()):
        with pytest.raises(LocalError):
            codec.encode(order(**fields), None, NOW_MS)


def test_wrong_keys_and_prefixes_are_refused_without_showing_them() -> None:
    for key, secret, phrase in (("", SECRET, "p"), (KEY, SECRET, ""), (KEY, "no base64!", "p")):
        with pytest.raises(ConfigError) as error:
            OrderCodec([BTC], key, secret, phrase, "t1-", [])
        assert "no base64!" not in str(error.value)
    with pytest.raises(ConfigError, match="client_prefix"):
        exchange_codec("ends-with-1")
    with pytest.raises(ConfigError, match="share an id"):
        OrderCodec([BTC, BTC], KEY, SECRET, "p", "t1-", [])


class Desk:
    """A codec that trades on the venue's face, both in process."""

    def __init__(self, fees: Fees | None = None) -> None:
        self.venue = Venue(fees)
        self.codec = exchange_codec()
        self.out = np.zeros(64, ROW)
        self.peer = self.venue.server.peer("/", "")
        for text in self.peer.receive(self.codec.subscribe_request(NOW_MS * 10**6), NOW_MS):
            self.codec.decode(text, 1, self.out)
        assert self.codec.subscribed

    def send(self, request: Any) -> list[Report]:
        path, _, query = request.path.partition("?")
        answer = self.venue.server.rest(
            request.method, path, query.encode(), request.body, request.headers, NOW_MS
        )  # fmt: skip
        told = reports(self.out, self.codec.on_answer(request, answer.status, answer.body, 1, self.out))
        return told + self.events()

    def events(self) -> list[Report]:
        messages = [text for item in self.venue.server.take() for text in self.peer.render(item)]
        return [one for text in messages for one in reports(self.out, self.codec.decode(text, 1, self.out))]


def test_an_order_lives_and_ends_as_the_venue_tells_it() -> None:
    desk = Desk()
    assert desk.send(desk.codec.encode(order(), None, NOW_MS)) == [
        ("ACK", "NEW", 7, 5_000_000, 1000, 0, 1000, 0, int(Flag.BID))
    ]
    assert desk.codec.venue_order_id(7) in desk.venue.server._by_id
    assert desk.send(desk.codec.encode(order(kind=Kind.CANCEL), None, NOW_MS)) == [
        ("CANCELED", "CANCELED", 7, 0, 0, 0, 0, 0, int(Flag.BID))
    ]
    ((exec_type, status, *_),) = desk.send(desk.codec.encode(order(kind=Kind.CANCEL), None, NOW_MS))
    assert (exec_type, status) == ("CANCEL_REJECT", "NONE")


def test_fills_add_up_to_the_order_and_their_fees_to_the_venues() -> None:
    desk = Desk(Fees(maker_e8=400_000, taker_e8=600_000))
    best = desk.venue.product.best[2][0]
    told = desk.send(desk.codec.encode(order(px=best + 50, qty=50_000, code=int(Tif.IOC)), None, NOW_MS))
    assert told[0][0] == "ACK"
    fills = [one for one in told if one[0] == "FILL"]
    assert fills and all(one[8] == int(Flag.BID) for one in fills)
    assert [one[5] for one in fills] == list(np.cumsum([one[4] for one in fills]))
    assert [one[6] for one in fills] == [50_000 - one[5] for one in fills]
    account = desk.venue.signed("GET", "/fills", "product_id=BTC-USD")[1]
    assert sum(one[7] for one in fills) == sum(Decimal(fill["fee"]) for fill in account) * 10**8
    last = told[-1][:2]
    assert last == (("FILL", "FILLED") if fills[-1][6] == 0 else ("CANCELED", "CANCELED"))


def test_a_resting_order_that_is_hit_is_a_maker() -> None:
    desk = Desk()
    best = desk.venue.product.best[1][0]
    desk.send(desk.codec.encode(order(px=best, qty=100), None, NOW_MS))
    told: list[Report] = []
    for _ in range(400):
        desk.venue.pass_s(0.05)
        told += desk.events()
        if told and told[-1][1] == "FILLED":
            break
    assert told[-1][:2] == ("FILL", "FILLED")
    assert all(one[8] == int(Flag.BID | Flag.MAKER) for one in told)


def test_a_refused_order_is_rejected_with_the_venues_words() -> None:
    desk = Desk()
    (told,) = desk.send(desk.codec.encode(order(qty=30_000_000), None, NOW_MS))
    assert told[:3] == ("REJECT", "REJECTED", 7)
    assert bytes(desk.out[1:2].view(REPORT_PAYLOAD)[0]["text"]) == b"Insufficient fun"
    (told,) = desk.send(desk.codec.encode(order(8, px=7_000_000, flags=int(Flag.BID | Flag.POST_ONLY)), None, NOW_MS))
    assert told[:3] == ("REJECT", "REJECTED", 8)


@pytest.mark.parametrize("status", [0, 500, 502, 503, 504])
@pytest.mark.parametrize("kind", [Kind.SUBMIT, Kind.CANCEL])
def test_an_unknown_outcome_is_lost_and_never_a_reject(status: int, kind: Kind) -> None:
    codec, out = exchange_codec(), np.zeros(4, ROW)
    request = codec.encode(order(kind=kind), None, NOW_MS)
    assert reports(out, codec.on_answer(request, status, b"", 1, out))[0][:3] == ("LOST", "UNKNOWN", 7)


def test_an_answer_that_is_none_is_lost() -> None:
    codec, out = exchange_codec(), np.zeros(4, ROW)
    request = codec.encode(order(), None, NOW_MS)
    assert reports(out, codec.on_answer(request, 200, b"[]", 1, out))[0][:2] == ("LOST", "UNKNOWN")
    assert codec.counts["malformed"] == 1


def event(kind: str, **fields: Any) -> bytes:
    head = {"type": kind, "product_id": "BTC-USD", "time": "2024-01-01T00:00:00Z", "sequence": 1, "order_id": ID}
    return json.dumps({**head, **fields}).encode()


def received(codec: OrderCodec, **fields: Any) -> bytes:
    return event(
        "received", client_oid=codec.client_oid(7), side="buy", size="0.01", price="50000", order_type="limit", **fields
    )  # fmt: skip


def match(**fields: Any) -> bytes:
    ids = {"trade_id": 5, "maker_order_id": ID, "taker_order_id": "x"}
    return event("match", **{**ids, "side": "buy", "size": "0.004", "price": "50000", **fields})


def test_missing_fills_make_the_order_unknown() -> None:
    codec, out = exchange_codec(), np.zeros(8, ROW)
    codec.decode(received(codec), 1, out)
    codec.decode(match(), 1, out)
    (told,) = reports(out, codec.decode(event("done", reason="filled", side="buy"), 1, out))
    assert told[:2] == ("LOST", "UNKNOWN")
    assert codec.decode(match(trade_id=6), 1, out) == 0  # late, and too late
    assert codec.counts["ignored"] == 1


@pytest.mark.parametrize(
    "fields",
    [{"price": "50000.001"}, {"size": "0.0000001"}, {"size": "1"}, {"trade_id": -1}, {"time": "noon"}, {"price": None}],
)
def test_a_fill_that_cannot_be_told_exactly_makes_the_order_unknown(fields: dict[str, Any]) -> None:
    codec, out = exchange_codec(), np.zeros(8, ROW)
    codec.decode(received(codec), 1, out)
    (told,) = reports(out, codec.decode(match(**fields), 1, out))
    assert told[:3] == ("LOST", "UNKNOWN", 7)
    assert codec.counts["inexact"] == 1


def test_a_trade_with_oneself_is_told_to_both_orders() -> None:
    codec, out = exchange_codec(), np.zeros(8, ROW)
    other = ID.replace("d5", "e5")
    codec.decode(received(codec), 1, out)
    codec.decode(event("received", client_oid=codec.client_oid(8), side="sell", size="1", order_id=other), 1, out)
    told = reports(out, codec.decode(match(taker_order_id=other), 1, out))
    assert [(one[0], one[2], one[8]) for one in told] == [
        ("FILL", 7, int(Flag.BID | Flag.MAKER)), ("FILL", 8, int(Flag.ASK)),
    ]  # fmt: skip


def test_strangers_are_kept_for_accounting_and_give_no_reports() -> None:
    codec, out = exchange_codec(), np.zeros(8, ROW)
    assert codec.decode(received(exchange_codec("t2-")), 1, out) == 0
    assert codec.decode(match(), 1, out) == 0
    assert [one.type for one in codec.foreign] == ["received", "match"]
    assert codec.counts["foreign"] == 2


def test_an_stp_change_lowers_what_is_left() -> None:
    codec, out = exchange_codec(), np.zeros(8, ROW)
    codec.decode(received(codec), 1, out)
    assert codec.decode(event("change", reason="STP", new_size="0.004", old_size="0.01", side="buy"), 1, out) == 0
    assert reports(out, codec.decode(match(), 1, out))[0][:2] == ("FILL", "FILLED")


def test_a_session_begins_with_balances_and_open_orders() -> None:
    desk = Desk()
    desk.send(desk.codec.encode(order(), None, NOW_MS))
    for request in desk.codec.session_requests(NOW_MS):
        desk.send(request)
    assert desk.codec.accounts is not None and desk.codec.open_orders is not None
    assert {a.currency: a.hold for a in desk.codec.accounts} == {"BTC": 0, "USD": 500}
    assert [desk.codec.cl_ord_id(o.client_oid) for o in desk.codec.open_orders] == [7]
    assert desk.send(desk.codec.cancel_all_request(0, NOW_MS))[0][:2] == ("CANCELED", "CANCELED")


def test_the_feeds_signature_is_that_of_a_rest_request() -> None:
    signed = exchange_signature(KEY, SECRET, "phrase", 1_700_000_000_123_456_789)
    assert (signed["timestamp"], signed["passphrase"]) == ("1700000000.123", "phrase")
    account = Venue().account
    assert account.verify(signed["timestamp"], "GET", "/users/self/verify", b"", signed["signature"])


# ---- Advanced Trade


def state(cum: str, value: str, status: str = "OPEN", leaves: str = "0.01", **fields: str) -> bytes:
    told = {
        "order_id": ID, "client_order_id": "t1-7", "product_id": "BTC-USD", "status": status, "order_side": "BUY",
        "cumulative_quantity": cum, "leaves_quantity": leaves, "filled_value": value, "total_fees": "0",
    }  # fmt: skip
    return json.dumps(
        {"channel": "user", "timestamp": "2024-01-01T00:00:00.5Z", "sequence_num": 1,
         "events": [{"type": "update", "orders": [{**told, **fields}]}]}
    ).encode()  # fmt: skip


def test_advanced_orders_are_configured_by_time_in_force() -> None:
    codec = advanced_codec()
    request = codec.encode(order(), None, NOW_MS)
    assert request.path == "/api/v3/brokerage/orders"
    assert request.headers["Authorization"] == "Bearer <POST api.coinbase.com/api/v3/brokerage/orders>"
    assert json.loads(request.body) == {
        "client_order_id": "t1-7", "product_id": "BTC-USD", "side": "BUY",
        "order_configuration": {
            "limit_limit_gtc": {"base_size": "0.01000", "limit_price": "50000.00", "post_only": False}
        },
    }  # fmt: skip
    for tif, name in ((Tif.IOC, "sor_limit_ioc"), (Tif.FOK, "limit_limit_fok")):
        assert name in json.loads(codec.encode(order(code=int(tif)), None, NOW_MS).body)["order_configuration"]
    with pytest.raises(LocalError, match="no venue id yet"):
        codec.encode(order(kind=Kind.CANCEL), None, NOW_MS)
    body = {"success": True, "success_response": {"order_id": ID}}
    assert codec.on_answer(request, 200, json.dumps(body).encode(), 1, np.zeros(4, ROW)) == 0
    cancel = codec.encode(order(kind=Kind.CANCEL), None, NOW_MS)
    assert (cancel.path, json.loads(cancel.body)) == ("/api/v3/brokerage/orders/batch_cancel", {"order_ids": [ID]})
    assert json.loads(codec.subscribe_request(1))["channel"] == "user"


def test_advanced_answers_that_refuse_are_rejects() -> None:
    codec, out = advanced_codec(), np.zeros(4, ROW)
    place = codec.encode(order(), None, NOW_MS)
    refused = b'{"success":false,"error_response":{"error":"INSUFFICIENT_FUND","message":"x"}}'
    assert reports(out, codec.on_answer(place, 200, refused, 1, out))[0][:3] == ("REJECT", "REJECTED", 7)
    cancel = place._replace(tag=("cancel", 7, 0, 1))
    for body, told in (
        (b'{"results":[{"success":false,"failure_reason":"UNKNOWN_CANCEL_ORDER","order_id":"x"}]}', "CANCEL_REJECT"),
        (b"{}", "LOST"),
    ):
        assert reports(out, codec.on_answer(cancel, 200, body, 1, out))[0][0] == told
    assert codec.on_answer(cancel, 200, b'{"results":[{"success":true}]}', 1, out) == 0
    assert reports(out, codec.on_answer(place, 503, b"", 1, out))[0][0] == "LOST"


def test_advanced_states_become_reports_once() -> None:
    codec, out = advanced_codec(), np.zeros(64, ROW)
    assert codec.decode(state("0", "0", "PENDING"), 1, out) == 0
    assert reports(out, codec.decode(state("0", "0"), 1, out)) == [("ACK", "NEW", 7, 0, 1000, 0, 1000, 0, 1)]
    assert codec.decode(state("0", "0"), 1, out) == 0
    assert reports(out, codec.decode(state("0.004", "200", leaves="0.006", total_fees="1.2"), 1, out)) == [
        ("FILL", "PARTIALLY_FILLED", 7, 5_000_000, 400, 400, 600, 120_000_000, 1)
    ]
    assert reports(out, codec.decode(state("0.004", "200", "CANCELLED", "0"), 1, out)) == [
        ("CANCELED", "CANCELED", 7, 0, 0, 400, 0, 0, 1)
    ]
    assert codec.decode(state("0.004", "200", "CANCELLED", "0"), 1, out) == 0
    assert codec.decode(state("0", "0", client_order_id="other"), 1, out) == 0
    assert codec.counts["foreign"] == 1


@pytest.mark.parametrize(
    ("cum", "value"), [("0.004", "200.000000001"), ("0.0000001", "1"), ("0.004", "0"), ("0.004", "x"), ("0.004", "NaN")]
)
def test_an_advanced_state_that_cannot_be_told_exactly_makes_the_order_unknown(cum: str, value: str) -> None:
    codec, out = advanced_codec(), np.zeros(64, ROW)
    codec.decode(state("0", "0"), 1, out)
    assert reports(out, codec.decode(state(cum, value), 1, out))[-1][:3] == ("LOST", "UNKNOWN", 7)
    assert codec.counts["inexact"] == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 10**7)), min_size=1, max_size=12), st.integers(0, 2**32)
)
def test_fills_by_difference_keep_quantity_and_value_exactly(fills: list[tuple[int, int]], seed: int) -> None:
    codec, out = advanced_codec(), np.zeros(64, ROW)
    chance = random.Random(seed)
    total = sum(lots for lots, _ in fills)
    cum = value = told_lots = told_value = 0
    ids = set()
    codec.decode(state("0", "0", leaves=f"{BTC.qty(total):f}"), 1, out)
    for number, (lots, px) in enumerate(fills):
        cum, value = cum + lots, value + lots * px
        last = number == len(fills) - 1
        if not last and chance.random() < 0.5:
            continue  # the venue tells several fills at once
        frame = state(
            f"{BTC.qty(cum):f}", f"{BTC.money(value):f}", "FILLED" if last else "OPEN", f"{BTC.qty(total - cum):f}"
        )  # fmt: skip
        n = codec.decode(frame, 1, out)
        for k, one in zip(range(0, n, 2), reports(out, n), strict=True):
            assert one[0] == "FILL" and one[6] == total - one[5]
            told_lots, told_value = told_lots + one[4], told_value + one[4] * one[3]
            ids.add(int(out[k]["b"]))
            assert one[1] == ("FILLED" if told_lots == total else "PARTIALLY_FILLED")
        assert (told_lots, told_value) == (cum, value)
    assert len(ids) >= 1 and codec.counts["inexact"] == 0


@pytest.mark.parametrize("kind", ["ES256", "EdDSA"])
def test_a_token_verifies_with_the_public_key(kind: str) -> None:
    key: Any = ec.generate_private_key(ec.SECP256R1()) if kind == "ES256" else ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    nonces = iter("ab")
    sign = jwt_signer("organizations/o/apiKeys/k", pem, lambda: next(nonces))

    def opened(part: str) -> bytes:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    token = sign("GET", "api.coinbase.com/api/v3/brokerage/accounts", 1_700_000_000 * 10**9)
    head, claims, signature = token.split(".")
    assert json.loads(opened(head)) == {"alg": kind, "kid": "organizations/o/apiKeys/k", "nonce": "a", "typ": "JWT"}
    assert json.loads(opened(claims)) == {
        "sub": "organizations/o/apiKeys/k", "iss": "cdp", "nbf": 1_700_000_000, "exp": 1_700_000_120,
        "uri": "GET api.coinbase.com/api/v3/brokerage/accounts",
    }  # fmt: skip
    message, raw = f"{head}.{claims}".encode(), opened(signature)
    if kind == "ES256":
        der = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        key.public_key().verify(der, message, ec.ECDSA(hashes.SHA256()))
    else:
        key.public_key().verify(raw, message)
    assert "uri" not in json.loads(opened(sign("", "", 0).split(".")[1]))


def test_another_kind_of_key_is_refused() -> None:
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError, match="another kind"):
        jwt_signer("k", key.decode())
    with pytest.raises(ConfigError, match="no private key"):
        jwt_signer("k", "hello")


# ---- captures and instruments


def test_a_capture_is_read_line_by_line_and_a_broken_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.ws.1"
    path.write_bytes(
        b'wss://h <-> 1.5\nwss://h <- 1.5: {"type":"subscribe"}\n1618677817.061845: {"a":1}\nnonsense\n2: {"b":2}\n'
    )
    broken: list[int] = []
    assert list(read_capture(path, lambda at, why: broken.append(at))) == [
        (1_618_677_817_061_845_000, b'{"a":1}'), (2_000_000_000, b'{"b":2}'),
    ]  # fmt: skip
    assert broken == [80]
    with pytest.raises(ConfigError, match="no answer to GET /products"):
        read_products(path)
    with pytest.raises(ConfigError, match="not a file"):
        list(read_capture(tmp_path / "none"))


def test_instruments_come_from_both_apis_lists(shared_data: Path) -> None:
    listed = read_products(shared_data / "coinbase" / "COINBASE.0")
    skl, btc = instruments_from_products(listed, ["SKL-EUR", "BTC-GBP"])
    assert (skl.id, skl.tick_size, skl.lot_size, skl.min_qty) == (0, Decimal("0.0001"), Decimal("0.1"), 50)
    assert (btc.base, btc.quote, btc.max_qty) == ("BTC", "GBP", 80 * 10**8)
    advanced = {
        "products": [
            {"product_id": "BTC-USD", "base_increment": "0.00000001", "quote_increment": "0.01",
             "base_min_size": "0.00000001", "price_increment": "0.1", "quote_min_size": "1",
             "base_currency_id": "BTC", "quote_currency_id": "USD"}
        ]
    }  # fmt: skip
    (one,) = instruments_from_products(json.dumps(advanced).encode(), ["BTC-USD"])
    assert (one.tick_size, one.min_notional) == (Decimal("0.1"), 10**9)
    with pytest.raises(ConfigError, match="not listed"):
        instruments_from_products(listed, ["NOPE"])


def test_the_repr_of_a_request_shows_no_credentials() -> None:
    request = Request("POST", "/orders", {"CB-ACCESS-PASSPHRASE": "hush"}, b"{}", ("new", 1, 0, 1))
    assert "hush" not in repr(request) and "CB-ACCESS" not in repr(request)
    assert "/orders" in repr(request)
