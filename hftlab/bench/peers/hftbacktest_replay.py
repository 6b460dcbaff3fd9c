"""hftbacktest: its replay, its wake-ups and its grid market maker, over one array of events.

Measured: the making of a backtest object from the array in memory, and the loop from the first event to the end of the
data, compiled. Ladder depth over the range of prices there are, constant latency, the risk-averse queue, no partial
fills, no fees.

Answers one JSON object a line. ``prepare``: loads the array, compiles, and writes the fills of the grid, each seen at
the step after it: (time at the exchange, +1 for a buy, px in ticks); fills that no step sees are beyond ``until_ns``.
``round``: the nanoseconds of one run of ``grid``, ``replay`` or ``each_event``.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from hftbacktest import BUY, FILLED, GTX, LIMIT, BacktestAsset, ROIVectorMarketDepthBacktest
from numba import njit, uint64

__all__ = ["Peer"]

TICK = 0.1
STEP_NS = 100_000_000
LEVELS, CAP = 5, 50


@njit
def replay(hbt: Any, first_ns: int) -> int:
    """Go through the data in steps of 100 ms."""
    n = 0
    hbt.elapse(first_ns)
    while hbt.elapse(STEP_NS) == 0:
        n += 1
    return n


@njit
def each_event(hbt: Any, first_ns: int) -> int:
    """Wake at every event."""
    n = 0
    while hbt.wait_next_feed(False, 10**12) != 1:
        n += 1
    return n


@njit
def grid(hbt: Any, first_ns: int, fills: Any, until: Any) -> int:
    """Keep 5 orders a side within 5 ticks of the touch; note the fills if there is room for them."""
    n = 0
    hbt.elapse(first_ns)
    while hbt.elapse(STEP_NS) == 0:
        if len(fills) > 0:
            until[0] = hbt.current_timestamp
            done = hbt.orders(0).values()
            while done.has_next():
                order = done.get()
                if order.status == FILLED:
                    fills[n, 0] = order.exch_timestamp
                    fills[n, 1] = 1 if order.side == BUY else -1
                    fills[n, 2] = order.price_tick
                    n += 1
        hbt.clear_inactive_orders(0)
        depth = hbt.depth(0)
        bid, ask = depth.best_bid_tick, depth.best_ask_tick
        position = hbt.position(0)
        orders = hbt.orders(0)
        values = orders.values()
        while values.has_next():
            order = values.get()
            if order.cancellable:
                px = order.price_tick
                if order.side == BUY:
                    if px <= bid - LEVELS or px > bid or position >= CAP:
                        hbt.cancel(0, order.order_id, False)
                elif px >= ask + LEVELS or px < ask or position <= -CAP:
                    hbt.cancel(0, order.order_id, False)
        if position < CAP:
            for k in range(LEVELS):
                px = bid - k
                number = uint64(px * 2)
                if number not in orders:
                    hbt.submit_buy_order(0, number, px * TICK, 1.0, GTX, LIMIT, False)
        if position > -CAP:
            for k in range(LEVELS):
                px = ask + k
                number = uint64(px * 2 + 1)
                if number not in orders:
                    hbt.submit_sell_order(0, number, px * TICK, 1.0, GTX, LIMIT, False)
    return n


class Peer:
    """The events, and the runs over them."""

    def __init__(self) -> None:
        self.events: Any = np.zeros(0)
        self.range = 0.0, 0.0
        self.latency_ns = 0
        self.first_ns = 0

    def made(self, events: Any) -> Any:
        """Return a fresh backtest of `events`."""
        low, high = self.range
        asset = (
            BacktestAsset()
            .data([events])
            .linear_asset(1.0)
            .constant_order_latency(self.latency_ns, self.latency_ns)
            .risk_adverse_queue_model()
            .no_partial_fill_exchange()
            .trading_value_fee_model(0.0, 0.0)
            .tick_size(TICK)
            .lot_size(1.0)
            .last_trades_capacity(0)
            .roi_lb(low)
            .roi_ub(high)
        )
        return ROIVectorMarketDepthBacktest([asset])

    def prepare(self, path: str, fills: str, latency_ns: int) -> dict[str, object]:
        """Load, compile, and write the grid's fills."""
        self.events = np.load(path)
        self.latency_ns = latency_ns
        self.range = float(self.events["px"].min()) - 50.0, float(self.events["px"].max()) + 50.0
        # elapse counts from the first event at the exchange, ours from the first received
        self.first_ns = int(self.events["local_ts"][0] - self.events["exch_ts"][0])
        few = self.events[:2000].copy()
        for what in ("grid", "replay", "each_event"):
            self.run(what, few)
        hbt = self.made(self.events)
        table, until = np.zeros((len(self.events), 3), np.int64), np.zeros(1, np.int64)
        n = grid(hbt, self.first_ns, table, until)
        trades = int(hbt.state_values(0).num_trades)
        hbt.close()
        np.save(fills, table[:n])
        return {"fills": n, "trades": trades, "until_ns": int(until[0]) - latency_ns}

    def run(self, what: str, events: Any) -> int:
        """Return the nanoseconds of one run."""
        none, until = np.zeros((0, 3), np.int64), np.zeros(1, np.int64)
        started = time.perf_counter_ns()
        hbt = self.made(events)
        if what == "grid":
            grid(hbt, self.first_ns, none, until)
        elif what == "replay":
            replay(hbt, self.first_ns)
        else:
            each_event(hbt, self.first_ns)
        took = time.perf_counter_ns() - started
        hbt.close()
        return took


if __name__ == "__main__":
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("op") == "prepare":
            answer: dict[str, object] = peer.prepare(**request)
        else:
            answer = {"value": peer.run(request["what"], peer.events)}
        print(json.dumps(answer), flush=True)
