"""Pinned regressions: small backtests that decide on integers only, and the hashes of their rows.

A hash that changes says that some backtest, somewhere, now ends otherwise. That may be right, but it must be explained
in the commit that changes it. The table below is printed anew by ``python tests/backtest/test_pinned.py``.

Each run is compared in both forms of its strategy, compiled and plain.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees, Impact, Latency, Queue
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, GTC, IOC, LIVE, POST_ONLY, SELL, Strategy, record

ONE = Instrument(0, "sim", "ONE", Decimal("0.01"), Decimal("0.001"), "ONE", "USD")
TWO = Instrument(1, "sim", "TWO", Decimal("0.05"), Decimal("0.1"), "TWO", "USD")
LIMITS = Limits(max_order_qty=10**6, max_notional=10**13, max_position=10**7, collar_ticks=10**4, orders_per_s=10**4)
T0, STEP = 1_700_000_000_000_000_000, 7_000_000
BID, ASK, LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)


class Taker(Strategy):
    """Takes a lot from either side in turn, each 50 ms, by its timer."""

    params = record(every_ns=50_000_000, size_lots=3)
    state = record(side=BUY)

    def on_start(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.set_timer(ctx.now_ns + params.every_ns)

    def on_timer(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if ctx.book_state(0) == LIVE:
            px = ctx.best_ask(0) if state.side == BUY else ctx.best_bid(0)
            if ctx.submit(0, state.side, px, params.size_lots, IOC) > 0:
                state.side = SELL if state.side == BUY else BUY
        ctx.set_timer(ctx.now_ns + params.every_ns)


class Joiner(Strategy):
    """Joins both queues once, cancels what is not done after some trades, and joins again."""

    params = record(patience=40, size_lots=5)
    state = record(bid=[0] * 2, ask=[0] * 2, trades=0)

    def on_trade(ctx: Any, state: Any, params: Any, event: Any) -> None:
        i = event.instrument
        if i > 1 or ctx.book_state(i) != LIVE:
            return
        state.trades += 1
        if state.trades % params.patience == 0:
            ctx.cancel(state.bid[i])
            ctx.cancel(state.ask[i])
        elif ctx.open_orders() == 0:
            state.bid[i] = ctx.submit(i, BUY, ctx.best_bid(i), params.size_lots, GTC, POST_ONLY)
            state.ask[i] = ctx.submit(i, SELL, ctx.best_ask(i), params.size_lots, GTC, POST_ONLY)

    def on_execution(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.note(1, event.px, event.qty)


class Walker(Strategy):
    """Replaces one order by the sequence of chance that the session is seeded with."""

    state = record(order=0, n=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        state.n += 1
        step = 1 if ctx.random() < 0.5 else 2
        if ctx.book_state(0) != LIVE or state.n % 3:
            return
        moved = ctx.replace(state.order, ctx.best_bid(0) + 2 - step, 4)
        state.order = moved if moved > 0 else max(state.order, ctx.submit(0, BUY, ctx.best_bid(0) + 2 - step, 4, GTC))


def row(kind: Kind, k: int, flags: int, px: int, qty: int, instrument: int = 0) -> RowArray:
    made = new_rows(1)
    made["kind"], made["flags"], made["px"], made["qty"], made["instrument"] = kind, flags, px, qty, instrument
    made["ts_recv"], made["ts_event"], made["a"] = T0 + k * STEP, T0 + k * STEP - 1_500_000, k + 1
    return made


def market(n: int = 500, instruments: int = 1) -> RowArray:
    """Books that move by a fixed rule of integers: levels grow and shrink, trades eat them, the touch shifts."""
    rows = []
    for i in range(instruments):
        for depth in range(4):
            rows += [row(Kind.LEVEL, 0, BID, 1000 - depth, 40, i), row(Kind.LEVEL, 0, ASK, 1002 + depth, 40, i)]
        rows.append(row(Kind.BOOK_STATE, 0, LAST, 0, 0, i))
        rows[-1]["code"] = BookState.LIVE
    for k in range(1, n):
        i, turn = k % instruments, k * 7919 % 13
        side = BID if k * 31 % 7 < 4 else ASK
        best = 1000 if side == BID else 1002
        if turn < 4:
            rows.append(row(Kind.TRADE, k, (ASK if side == BID else BID) | LAST, best, 1 + turn * 5, i))
            rows.append(row(Kind.LEVEL, k, side | LAST, best, 40 - turn * 5, i))
        else:
            deeper = turn % 4 * (-1 if side == BID else 1)
            rows.append(row(Kind.LEVEL, k, side | LAST, best + deeper, 20 + turn * 3, i))
    return join_rows(rows)


def recorded(strategy: Strategy, instruments: int = 1, **how: Any) -> Result:
    each = (ONE, TWO)[:instruments]
    return backtest(strategy, market(500, instruments), instruments=each, limits=LIMITS, **how)


def synthetic(strategy: Strategy, seed: int, **how: Any) -> Result:
    exchange = MatchingExchange([ONE], seed=seed, fees=Fees(-10_000, 50_000))
    return backtest(strategy, exchange, instruments=[ONE], limits=LIMITS, seconds=4, **how)


def maker(compiled: bool, **params: int) -> Maker:
    return Maker(compiled=compiled, **{"size_lots": 5, "cap_lots": 60} | params)


def greedy(compiled: bool) -> Taker:
    return Taker(compiled=compiled, every_ns=2_000_000, size_lots=25)


RUNS: dict[str, Callable[[bool], Result]] = {
    "maker, 1 ms": lambda c: recorded(maker(c)),
    "maker, no latency": lambda c: recorded(maker(c), latency=Latency(0, 0)),
    "maker, 20 ms and 30 ms": lambda c: recorded(maker(c), latency=Latency(20_000_000, 30_000_000)),
    "maker, sampled latency": lambda c: recorded(maker(c), latency=Latency.sampled([10**5, 10**7], [10**6, 3 * 10**6])),
    "maker, proportional queue": lambda c: recorded(maker(c), queue=Queue("proportional")),
    "maker, power queue": lambda c: recorded(maker(c), queue=Queue("power", 2.0)),
    "maker, log queue": lambda c: recorded(maker(c), queue=Queue("log")),
    "maker, fees and rebate": lambda c: recorded(maker(c, skew_ticks=0), fees=Fees(-10_000, 50_000)),
    "taker": lambda c: recorded(Taker(compiled=c)),
    "taker, greedy": lambda c: recorded(greedy(c)),
    "taker, greedy, no consumption": lambda c: recorded(greedy(c), impact=Impact(consume=False)),
    "joiner": lambda c: recorded(Joiner(compiled=c)),
    "joiner, two instruments": lambda c: recorded(Joiner(compiled=c), 2),
    "walker, seed 9": lambda c: recorded(Walker(compiled=c), seed=9),
    "synthetic maker": lambda c: synthetic(maker(c), 3),
    "synthetic taker": lambda c: synthetic(Taker(compiled=c), 4, latency=Latency(200_000, 300_000)),
}

PINNED: dict[str, tuple[int, str]] = {
    "maker, 1 ms": (36, "ef0b9b9c3293a295"),
    "maker, no latency": (36, "2eeca2f91a91c9e6"),
    "maker, 20 ms and 30 ms": (49, "6177d6eb13a42891"),
    "maker, sampled latency": (36, "e8d0237470060939"),
    "maker, proportional queue": (32, "d1f1aad5e3cc5494"),
    "maker, power queue": (32, "6171dec71258c110"),
    "maker, log queue": (37, "96f03d447a325871"),
    "maker, fees and rebate": (46, "aa23115f9a7e15e3"),
    "taker": (69, "4a1b3e10fab1f13b"),
    "taker, greedy": (531, "d55754b8937266d2"),
    "taker, greedy, no consumption": (1746, "0d0e44980ccc37c2"),
    "joiner": (41, "4b8573f680189f86"),
    "joiner, two instruments": (17, "65eff8fa586f5495"),
    "walker, seed 9": (52, "32813833e94d2033"),
    "synthetic maker": (20, "6118c2d7addcccba"),
    "synthetic taker": (80, "1f6a2a56655212d0"),
}
"""Fills, and the first 16 digits of the hash of all own rows."""


def told(result: Result) -> tuple[int, str]:
    return result.counters["fills"], result.run_hash[:16]


@pytest.mark.parametrize("name", RUNS)
def test_a_small_backtest_leaves_the_pinned_rows(name: str) -> None:
    result = RUNS[name](True)
    assert told(result) == PINNED[name], f"{name}: if this is meant, say why, and pin it again (see the module)"
    assert not result.faults and result.counters["illegal_reports"] == 0
    assert result.counters["fills"] > 0, "a run without fills pins little"


@pytest.mark.parametrize("name", RUNS)
def test_the_plain_form_leaves_the_same_rows(name: str) -> None:
    assert told(RUNS[name](False)) == PINNED[name]


def test_pinned_runs_are_different_runs() -> None:
    assert len({digest for _, digest in PINNED.values()}) == len(PINNED) == len(RUNS)


def test_the_hand_made_market_never_crosses() -> None:
    rows = market()
    levels = rows[rows["kind"] == Kind.LEVEL]
    bids = levels["px"][levels["flags"] & BID != 0]
    asks = levels["px"][levels["flags"] & ASK != 0]
    assert bids.max() < asks.min() and (np.diff(rows["ts_recv"]) >= 0).all()


if __name__ == "__main__":
    for one in RUNS:
        fills, digest = told(RUNS[one](True))
        print(f'    "{one}": ({fills}, "{digest}"),')
