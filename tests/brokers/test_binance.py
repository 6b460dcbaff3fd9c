"""What the broker does with order rows, with a link that keeps what it is given."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from hftlab.brokers.binance import BinanceBroker
from hftlab.clock import now_ns
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, ORDER_PAYLOAD, ROW, ExecType, Flag, Kind, OrdType, RowArray, Tif
from hftlab.kernels.latency import Latency
from hftlab.venues.binance.orders import OrderCodec
from hftlab.venues.binance.spec import PRODUCTION

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), base="BTC", quote="USDT")


class Link:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    async def close(self) -> None:
        pass


@pytest.fixture
def broker() -> BinanceBroker:
    codec = OrderCodec([BTC], "key", "secret", "hft-", ["USDT", "BTC"])
    nobody: Any = None
    made = BinanceBroker(
        codec, [BTC], PRODUCTION, lambda rows, received_ns: None, lambda: np.zeros(0, ROW), lambda connected: None,
        nobody, api_key="key", latency=Latency(),
    )  # fmt: skip
    made._link, made.connected = Link(), True  # as after run() has connected
    return made


def orders(n: int) -> RowArray:
    rows = np.zeros(n, ROW)
    rows["kind"], rows["flags"], rows["code"], rows["px"], rows["qty"] = Kind.SUBMIT, Flag.BID, Tif.GTC, 100, 5
    rows["a"], rows["seq"] = np.arange(1, n + 1), np.arange(70, 70 + n)
    return rows


def test_each_order_is_sent_and_has_a_row_with_its_send_time(broker: BinanceBroker) -> None:
    before = now_ns()
    done = broker.send(orders(3)).copy()
    after = now_ns()
    assert [json.loads(m)["params"]["newClientOrderId"] for m in broker._link.sent] == ["hft-1", "hft-2", "hft-3"]
    assert done["kind"].tolist() == [Kind.SENT] * 3
    assert done["a"].tolist() == [1, 2, 3] and done["b"].tolist() == [70, 71, 72]
    times = done["ts_event"].tolist()
    assert before <= times[0] <= times[1] <= times[2] <= after and done["ts_recv"].tolist() == times
    rest = {name: set(done[name].tolist()) for name in ("seq", "source", "span", "flags", "code", "px", "qty")}
    assert all(values == {0} for values in rest.values())


def test_more_orders_than_ever_before_are_all_sent(broker: BinanceBroker) -> None:
    assert broker.send(orders(500))["a"].tolist() == list(range(1, 501))
    assert len(broker._link.sent) == 500
    assert len(broker.send(orders(1))) == 1


def test_a_payload_row_belongs_to_its_order_and_is_not_sent_by_itself(broker: BinanceBroker) -> None:
    rows = np.concatenate([orders(2).view(np.uint8), orders(1).view(np.uint8)]).view(ROW)
    rows[0]["span"], rows[0]["code"], rows[0]["px"] = 1, Tif.IOC, NAT
    payload = rows[1:2].view(ORDER_PAYLOAD)[0]
    payload["kind"], payload["ord_type"] = Kind.CONT, OrdType.MARKET
    rows[2]["a"] = 2
    assert broker.send(rows)["a"].tolist() == [1, 2]
    assert [json.loads(m)["params"]["type"] for m in broker._link.sent] == ["MARKET", "LIMIT"]


def test_without_a_connection_nothing_is_sent_and_the_order_is_rejected(broker: BinanceBroker) -> None:
    broker.connected = False
    done = broker.send(orders(1))
    assert broker._link.sent == []
    assert done[0]["kind"] == Kind.REPORT and done[0]["code"] & 255 == ExecType.REJECT


def test_the_call_of_send_is_measured(broker: BinanceBroker) -> None:
    broker.send(orders(2))
    broker._latency.fold()
    assert broker._latency.histogram("send").n == 1
