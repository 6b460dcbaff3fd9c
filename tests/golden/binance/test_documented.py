"""Every payload in the venue's own documentation decodes, or is ignored, without a count of errors."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Flag, Kind
from hftlab.venues.binance.market import MarketDecoder
from hftlab.venues.binance.messages import Account, ApiError, DepthSnapshot, ExchangeInfo, OpenOrder, OrderResponse
from hftlab.venues.binance.orders import OrderCodec, sign, sign_query


@pytest.fixture(scope="module")
def examples(shared_data: Path) -> list[dict[str, Any]]:
    path = shared_data / "binance" / "documented_examples.json"
    items: list[dict[str, Any]] = json.loads(path.read_text())["items"]
    assert len(items) == 107
    return items


def test_every_documented_stream_message_decodes_or_is_ignored(examples: list[dict[str, Any]]) -> None:
    names = ("BNBBTC", "BNBUSDT", "ETHBTC", "BTCUSDT")
    instruments = [
        Instrument(n, "binance", symbol, Decimal("0.0001"), Decimal("0.00000001")) for n, symbol in enumerate(names)
    ]
    decoder, out = MarketDecoder(instruments, agg=True), np.zeros(100, ROW)
    kinds = []
    for item in examples:
        if item["doc"] == "web-socket-streams.md":
            n = decoder.decode(json.dumps(item["example"]).encode(), 0, out)
            kinds += [Kind(int(k)).name for k in out["kind"][:n]]
    assert kinds == ["TRADE", "TRADE", "QUOTE", "QUOTE", "LEVEL", "LEVEL"]
    assert {k for k, v in decoder.counts.items() if v} == {"ignored"}


def test_every_documented_account_message_decodes_or_is_ignored(examples: list[dict[str, Any]]) -> None:
    codec = OrderCodec([], "key", "secret", "hft-", [])
    out = np.zeros(4, ROW)
    for item in examples:
        if item["doc"] in ("user-data-stream.md", "web-socket-api.md"):
            assert codec.decode(json.dumps(item["example"]).encode(), 0, out) == 0
    assert codec.counts["malformed"] == 0 and codec.counts["foreign"] == 1
    assert codec.shutdown and codec.balances["BTC"].free == 11818
    assert codec.foreign[0].c == "mUvoqJxFIILMdfAW5iGSOW"


@pytest.mark.parametrize(
    ("section", "shape"),
    [
        ("Exchange information", ExchangeInfo),
        ("Order book", DepthSnapshot),
        ("Account information (USER_DATA)", Account),
        ("Current open orders (USER_DATA)", list[OpenOrder]),
        ("Query order (USER_DATA)", OpenOrder),
        ("New order (TRADE)", OrderResponse),
        ("Error Codes", ApiError),
    ],
)
def test_the_documented_answers_have_the_shapes_read(examples: list[dict[str, Any]], section: str, shape: Any) -> None:
    found = [e["example"] for e in examples if e["doc"] == "rest-api.md" and e["section"] == section]
    assert found
    for example in found:
        if section == "Exchange information":
            example = example | {"rateLimits": []}  # the document writes {} for "as in another section"
        msgspec.json.decode(json.dumps(example).encode(), type=shape)


def test_the_documented_signatures_are_reproduced(shared_data: Path) -> None:
    items = json.loads((shared_data / "signing" / "binance_hmac.json").read_text())["items"]
    assert len(items) == 3
    for item in items:
        assert sign_query(item["secret"], item["payload"]) == item["signature"]
    shuffled = dict(reversed([pair.split("=") for pair in items[2]["payload"].split("&")]))
    assert sign(items[2]["secret"], shuffled | {"signature": "left out"}) == items[2]["signature"]
    codec = OrderCodec([], "key", items[1]["secret"], "hft-", [])
    params = {
        "symbol": "\uff11\uff12\uff13\uff14\uff15\uff16", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
        "quantity": 1, "price": "0.1", "recvWindow": 5000, "timestamp": 1499827319559,
    }  # fmt: skip
    assert codec.rest_query(params) == f"{items[1]['payload']}&signature={items[1]['signature']}"


def test_a_documented_report_of_our_own_order_gives_its_row(examples: list[dict[str, Any]]) -> None:
    instrument = Instrument(4, "binance", "ETHBTC", Decimal("0.00000001"), Decimal("0.0001"))
    codec, out = OrderCodec([instrument], "key", "secret", "hft-", []), np.zeros(4, ROW)
    (report,) = (e["example"] for e in examples if e["section"] == "Order Update")
    report["event"]["c"] = "hft-17"
    assert codec.decode(json.dumps(report).encode(), 9, out) == 2
    assert (out[0]["kind"], out[0]["a"], out[0]["instrument"], out[0]["span"]) == (Kind.REPORT, 17, 4, 1)
    assert out[0]["ts_event"] == 1499405658657 * 10**6 and out[0]["flags"] == Flag.BID
