"""The compiled simulation against the slow one, on recorded and made-up days, and each of its rules by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.backtest.data import capture_rows, journal_market, read_tape
from hftlab.backtest.runner import VirtualSession, backtest, merged
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, REPORT_PAYLOAD, ROW, BookState, ExecType, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.engine import Engine, RowBuffer, replay
from hftlab.journal import read_all
from hftlab.sim.exchange import RecordedExchange
from hftlab.sim.models import Fees, Impact, Latency, Queue
from hftlab.sim.recorded import RecordedMarket, exchange_times
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, GTC, IOC, MARKET, NO_PX, POST_ONLY, SELL, PythonStrategy, Strategy, record
from hftlab.venues.binance.capture import read_capture
from hftlab.venues.binance.connection import MarketConnection

ONE = Instrument(0, "sim", "ONEUSD", Decimal("0.01"), Decimal("1"), base="ONE", quote="USD", min_qty=1, max_qty=10**6)
BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"), "BTC", "USDT")
FREE = Limits(2**40, 2**60, 10**9, 10**9, orders_per_s=1_000_000, max_open_orders=500)
BID, ASK, LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
T0 = 10**18
MS = 1_000_000


def definitions(strategy: Any, *instruments: Instrument) -> Definitions:
    ref = StrategyRef(type(strategy).__name__, "", strategy.param_values())
    return Definitions("backtest", "backtest", instruments, (FREE,) * len(instruments), ref, 1)


def row(kind: Kind, at_ms: float, flags: int = LAST, px: int = 0, qty: int = 0, **more: int) -> RowArray:
    rows = new_rows(1)
    rows["kind"], rows["ts_recv"], rows["flags"], rows["px"], rows["qty"] = kind, T0 + int(at_ms * MS), flags, px, qty
    for name, value in more.items():
        rows[name] = value
    return rows


def opening(at_ms: float = 0, bid: int = 100, ask: int = 101, lots: int = 10) -> list[RowArray]:
    """A live book of five levels a side."""
    rows = [row(Kind.LEVEL, at_ms, BID, bid - k, lots) for k in range(5)]
    rows += [row(Kind.LEVEL, at_ms, ASK, ask + k, lots) for k in range(5)]
    return [*rows, row(Kind.BOOK_STATE, at_ms, code=BookState.LIVE)]


def simulated(strategy: Any, rows: RowArray, *instruments: Instrument, keep: bool = True, **how: Any) -> Any:
    """Return rows and engine of a run in the kernel."""
    engine, sink = Engine(definitions(strategy, *(instruments or (ONE,))), strategy), RowBuffer()
    how = {"latency": Latency(MS, 2 * MS), "queue": Queue(), "fees": Fees(0, 0)} | how
    market = RecordedMarket(engine, rows, sink, keep=keep, **how)
    market.start()
    market.run()
    market.stop()
    return sink.rows(), engine


def reference(strategy: Any, messages: Sequence[tuple[int, RowArray]], *instruments: Instrument) -> RowArray:
    """Return the rows of the same run by the slow exchange in Python."""
    sink = RowBuffer()
    exchange = RecordedExchange(instruments or (ONE,), fees=Fees(0, 0))
    session = VirtualSession(
        Engine(definitions(strategy, *(instruments or (ONE,))), strategy), exchange, sink, latency=Latency(MS, 2 * MS)
    )
    session.start(messages[0][0])
    for now, rows in messages:
        session.on_market(now, rows)
    session.stop()
    return sink.rows()


def same(ours: RowArray, theirs: RowArray) -> None:
    """Compare row by row; the venue's time of a report is its own business."""
    for rows in (ours, theirs):
        rows["ts_event"][rows["kind"] == Kind.REPORT] = 0
    n = min(len(ours), len(theirs))
    words = [rows[:n].view(np.int64).reshape(n, 8) for rows in (ours, theirs)]
    different = np.flatnonzero((words[0] != words[1]).any(axis=1))
    assert not len(different), f"row {different[0]}: {ours[different[0]]} is not {theirs[different[0]]}"
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("params", [{}, {"size_lots": 1000, "cap_lots": 10_000}, {"edge_ticks": 50, "slack_ticks": 20}])
def test_a_recorded_day_gives_the_rows_of_the_slow_exchange(shared_data: Path, params: dict[str, int]) -> None:
    frames = read_capture(shared_data / "binance" / "btcusdt_20240808.gz")
    messages = [(now, rows.copy()) for now, rows in capture_rows(frames, MarketConnection([BTC]))][:12_000]
    rows = join_rows([rows for _, rows in messages])
    received = np.ascontiguousarray(rows["ts_recv"])
    ours, engine = simulated(Maker(**params), rows, BTC, times=received)
    same(ours, reference(Maker(**params), messages, BTC))
    assert engine.counters()["fills"] > 5


class OnBook(Strategy):
    state = record(order=[0] * 8)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        i = event.instrument
        bid, ask = ctx.best_bid(i), ctx.best_ask(i)
        if bid == NO_PX or ask == NO_PX:
            return
        k, what = int(ctx.random() * 8), int(ctx.random() * 8)
        side = BUY if ctx.random() < 0.5 else SELL
        away = int(ctx.random() * 4) - 2
        px = bid - away if side == BUY else ask + away
        qty = 1 + int(ctx.random() * 6)
        if what < 3:
            state.order[k] = ctx.submit(i, side, px, qty, GTC, POST_ONLY if what == 0 else 0)
        elif what == 3:
            ctx.submit(i, side, px, qty, IOC)
        elif what == 4:
            ctx.submit(i, side, MARKET, qty, IOC)
        elif what == 5 and state.order[k] > 0:
            ctx.cancel(state.order[k])
        elif what == 6 and state.order[k] > 0:
            moved = ctx.replace(state.order[k], px, qty)
            if moved > 0:
                state.order[k] = moved


class OnTimer(Strategy):
    """As `OnBook`, but deaf to the market: both clocks run far ahead of each other."""

    state = record(order=[0] * 8)

    def on_start(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.set_timer(ctx.now_ns + 1_500_000)

    def on_timer(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.set_timer(ctx.now_ns + 1_500_000)
        i = 0
        bid, ask = ctx.best_bid(i), ctx.best_ask(i)
        if bid == NO_PX or ask == NO_PX:
            return
        k, what = int(ctx.random() * 8), int(ctx.random() * 8)
        side = BUY if ctx.random() < 0.5 else SELL
        away = int(ctx.random() * 4) - 2
        px = bid - away if side == BUY else ask + away
        qty = 1 + int(ctx.random() * 6)
        if what < 4:
            state.order[k] = ctx.submit(i, side, px, qty, GTC, POST_ONLY if what == 0 else 0)
        elif what == 4:
            ctx.submit(i, side, MARKET, qty, IOC)
        elif what == 5 and state.order[k] > 0:
            ctx.cancel(state.order[k])
        elif what == 6 and state.order[k] > 0:
            moved = ctx.replace(state.order[k], px, qty)
            if moved > 0:
                state.order[k] = moved


class OnBoth(Strategy):
    """Its book callback sets timers that come before the next row: neither clock may run past them."""

    state = record(order=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if ctx.random() < 0.7:
            ctx.set_timer(ctx.now_ns + 1 + int(ctx.random() * 900_000))

    def on_timer(ctx: Any, state: Any, params: Any, event: Any) -> None:
        bid, ask = ctx.best_bid(0), ctx.best_ask(0)
        if bid == NO_PX or ask == NO_PX:
            return
        if state.order > 0 and ctx.random() < 0.5:
            ctx.cancel(state.order)
        away = int(ctx.random() * 4) - 2
        state.order = ctx.submit(0, BUY if ctx.random() < 0.5 else SELL, bid - away, 1 + int(ctx.random() * 4), GTC)

    def on_trade(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.note(1, event.px, event.qty)

    def on_execution(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if ctx.random() < 0.3:
            ctx.submit(0, SELL, event.px + 1, 1, GTC)


_event = st.tuples(
    st.sampled_from(["level", "level", "level", "trade", "quote", "snapshot", "resync"]), st.sampled_from([BID, ASK]),
    st.integers(-3, 6), st.integers(0, 12), st.integers(1, 4_000),
)  # fmt: skip


def _messages(events: list[tuple[str, int, int, int, int]]) -> list[tuple[int, RowArray]]:
    """Return a market of messages around 100 x 101, some of them wild: crossing, through our prices, not live."""
    told, at = [(T0, join_rows(opening()))], 0.0
    for k, (what, side, away, qty, gap) in enumerate(events, 1):
        at += gap / 1000 + 0.000_123
        px = 100 - away if side == BID else 101 + away
        if what == "level":
            rows = [row(Kind.LEVEL, at, side, px, qty, a=k), row(Kind.LEVEL, at, side | LAST, px - 1, qty + 1, a=k)]
        elif what == "trade":
            rows = [row(Kind.TRADE, at, side | LAST, px, qty + 1, a=k)]
        elif what == "quote":
            rows = [row(Kind.QUOTE, at, BID, 100 - away, qty + 1, a=k), row(Kind.QUOTE, at, ASK | LAST, 101, 5, a=k)]
        elif what == "snapshot":
            rows = [row(Kind.CLEAR, at, 0), *opening(at, 100 - away % 3, 102, qty + 1)]
        else:
            rows = [row(Kind.BOOK_STATE, at, code=BookState.RESYNCING if qty % 2 else BookState.LIVE)]
        told.append((T0 + int(at * MS), join_rows(rows)))
    return told


@settings(deadline=None, max_examples=90)
@given(st.lists(_event, min_size=20, max_size=120), st.sampled_from([OnBook, OnTimer, OnBoth]))
def test_any_market_gives_the_rows_of_the_slow_exchange(
    events: list[tuple[str, int, int, int, int]], strategy: type[Strategy]
) -> None:
    messages = _messages(events)
    rows = join_rows([part for _, part in messages])
    ours, _ = simulated(strategy(), rows, times=np.ascontiguousarray(rows["ts_recv"]))
    same(ours, reference(strategy(), messages))


@settings(deadline=None, max_examples=15)
@given(st.lists(_event, min_size=20, max_size=80), st.sampled_from([OnBook, OnTimer, OnBoth]))
def test_what_is_kept_apart_is_put_together_again_and_replays(
    events: list[tuple[str, int, int, int, int]], strategy: type[Strategy]
) -> None:
    rows = join_rows([part for _, part in _messages(events)])
    whole, _ = simulated(strategy(), rows)
    own, _ = simulated(strategy(), rows, keep=False)
    assert len(own) == len(whole) - len(rows)
    assert merged(own, rows).tobytes() == whole.tobytes()
    assert replay(whole, definitions(strategy(), ONE), strategy()).identical


# ---- one rule at a time


class Once(Strategy):
    """Sends one order at the start of the second book event, and nothing else."""

    params = record(side=BUY, px=100, qty=5, tif=GTC, flags=0)
    state = record(n=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if state.n == 0:
            ctx.submit(0, params.side, params.px, params.qty, params.tif, params.flags)
        state.n += 1


def fills(rows: RowArray) -> list[tuple[int, int, int, int]]:
    """Return the fills: (received us after the start, px, qty, fee)."""
    payload = rows.view(REPORT_PAYLOAD)
    at = np.flatnonzero((rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.FILL))
    return [
        ((int(rows["ts_recv"][i]) - T0) // 1000, int(rows["px"][i]), int(rows["qty"][i]), int(payload["fee"][i + 1]))
        for i in at.tolist()
    ]


def run(rows: list[RowArray], strategy: Any | None = None, **how: Any) -> list[tuple[int, int, int, int]]:
    return fills(simulated(strategy or Once(), join_rows(rows), **how)[0])


def test_a_trade_eats_the_queue_first_and_the_answer_takes_its_way_back() -> None:
    tape = [*opening(), row(Kind.TRADE, 10, ASK | LAST, 100, 8), row(Kind.TRADE, 20, ASK | LAST, 100, 4)]
    assert run(tape) == [(22_000, 100, 2, 0)]
    late = [*tape[:-1], row(Kind.TRADE, 20, ASK | LAST, 100, 4)]
    late[-1]["ts_event"] = T0 + 15 * MS  # at the exchange 5 ms before we received it
    assert run(late) == [(17_000, 100, 2, 0)]


@pytest.mark.parametrize(
    ("queue", "needed"),
    [(Queue(), 6), (Queue("proportional"), 6), (Queue("power", 2.0), 6), (Queue("log"), 6)],
)
def test_cancels_with_nobody_behind_come_from_the_front(queue: Queue, needed: int) -> None:
    tape = [*opening(), row(Kind.LEVEL, 10, BID | LAST, 100, needed)]
    assert run([*tape, row(Kind.TRADE, 20, ASK | LAST, 100, needed)], queue=queue) == []
    assert run([*tape, row(Kind.TRADE, 20, ASK | LAST, 100, needed + 1)], queue=queue) == [(22_000, 100, 1, 0)]


@pytest.mark.parametrize(
    ("queue", "ahead"),
    [(Queue(), 10), (Queue("proportional"), 5), (Queue("power", 3.0), 5), (Queue("log"), 5)],
)
def test_cancels_are_shared_between_ahead_and_behind_by_the_model(queue: Queue, ahead: int) -> None:
    tape = [
        *opening(),
        row(Kind.LEVEL, 10, BID | LAST, 100, 20),  # ten more behind us
        row(Kind.LEVEL, 20, BID | LAST, 100, 10),  # ten vanish
    ]
    assert run([*tape, row(Kind.TRADE, 30, ASK | LAST, 100, ahead)], queue=queue) == []
    assert run([*tape, row(Kind.TRADE, 30, ASK | LAST, 100, ahead + 1)], queue=queue) == [(32_000, 100, 1, 0)]


def test_lots_that_were_traded_are_not_canceled_too() -> None:
    tape = [
        *opening(),
        row(Kind.LEVEL, 10, BID | LAST, 100, 20),
        row(Kind.TRADE, 20, ASK | LAST, 100, 4),
        row(Kind.LEVEL, 20, BID | LAST, 100, 16),  # says what the trade did
        row(Kind.TRADE, 30, ASK | LAST, 100, 6),
    ]
    assert run(tape, queue=Queue("proportional")) == []
    assert run([*tape, row(Kind.TRADE, 40, ASK | LAST, 100, 2)], queue=Queue("proportional")) == [(42_000, 100, 2, 0)]


def test_an_order_alone_is_filled_whole_by_a_trade_through_its_price() -> None:
    tape = [*opening(), row(Kind.TRADE, 10, ASK | LAST, 99, 2)]
    assert run(tape) == [(12_000, 100, 2, 0)]
    assert run(tape, alone=True) == [(12_000, 100, 5, 0)]


def test_a_taker_pays_the_displayed_prices_and_what_it_took_is_gone_until_told_again() -> None:
    class Twice(Strategy):
        state = record(n=0)

        def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
            if state.n < 2:
                ctx.submit(0, BUY, 102, 12, IOC)
            state.n += 1

    tape = [*opening(), row(Kind.LEVEL, 10, BID | LAST, 90, 1), row(Kind.LEVEL, 20, BID | LAST, 90, 2)]
    got = [(px, qty) for _, px, qty, _ in run(tape, Twice(), impact=Impact())]
    assert got == [(101, 10), (102, 2), (102, 8)]
    got = [(px, qty) for _, px, qty, _ in run(tape, Twice(), impact=Impact(consume=False))]
    assert got == [(101, 10), (102, 2), (101, 10), (102, 2)]


def test_temporary_impact_costs_a_taker_ticks_but_never_beyond_its_limit() -> None:
    tape = [*opening(), row(Kind.LEVEL, 10, BID | LAST, 90, 1)]
    take = Once(px=105, qty=4, tif=IOC)
    assert run(tape, take, impact=Impact(sqrt_ticks=1.0)) == [(3000, 103, 4, 0)]
    assert run(tape, replace_px(take, 102), impact=Impact(sqrt_ticks=1.0)) == [(3000, 102, 4, 0)]


def replace_px(strategy: Once, px: int) -> Once:
    return Once(**(strategy.param_values() | {"px": px}))


def test_fees_are_exact_and_change_with_what_was_traded() -> None:
    tape = [*opening()]
    tape += [row(Kind.TRADE, 10 + 10 * k, ASK | LAST, 99, 1) for k in range(5)]
    fees = Fees(maker_e8=-10_001, taker_e8=50_000, tiers=(("2", -20_000, 0),))
    # one lot at 1.00: a rebate of 0.00010001, and from 2.00 traded on 0.0002
    assert [fee for *_, fee in run(tape, fees=fees)] == [-10_001, -10_001, -20_000, -20_000, -20_000]


def test_fees_that_64_bits_cannot_hold_are_refused() -> None:
    odd = replace(ONE, tick_size=Decimal("0.000000001"), lot_size=Decimal("0.000000001"))
    with pytest.raises(ConfigError, match="cannot be charged exactly"):
        simulated(Once(), join_rows(opening()), odd, fees=Fees(maker_e8=1, taker_e8=99_999_999))


def test_sampled_latency_is_taken_in_turn_and_nothing_overtakes() -> None:
    class Three(Strategy):
        state = record(n=0)

        def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
            if state.n < 3:
                ctx.submit(0, BUY, 90 + state.n, 1, GTC)
            state.n += 1

    tape = opening() + [row(Kind.LEVEL, k, BID | LAST, 80, k) for k in (1, 2, 50)]
    rows, _ = simulated(Three(), join_rows(tape), latency=Latency([10 * MS, MS, MS], [MS, MS, MS]))
    acks = rows[(rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.ACK)]
    assert ((acks["ts_event"] - T0) // MS).tolist() == [10, 10, 10]
    assert ((acks["ts_recv"] - T0) // MS).tolist() == [11, 11, 11]


def test_measured_latency_follows_the_clock() -> None:
    tape = [*opening(), row(Kind.LEVEL, 40, BID | LAST, 80, 1), row(Kind.LEVEL, 99, BID | LAST, 80, 2)]
    measured = Latency([5 * MS, 7 * MS], [MS, MS], at_ns=[T0 - 10, T0 + 30 * MS])

    class Both(Strategy):
        def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
            ctx.submit(0, BUY, 90, 1, GTC)

    rows, _ = simulated(Both(), join_rows(tape), latency=measured)
    acks = rows[(rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.ACK)]
    assert ((acks["ts_event"] - T0) // MS).tolist() == [5, 47, 106]


def test_while_the_book_is_not_live_orders_are_rejected() -> None:
    tape = [*opening(), row(Kind.BOOK_STATE, 0.5, code=BookState.RESYNCING), row(Kind.TRADE, 9, ASK | LAST, 90, 5)]
    rows, engine = simulated(Once(), join_rows(tape))
    assert fills(rows) == [] and engine.counters()["open_orders"] == 0
    reports = rows[rows["kind"] == Kind.REPORT]
    assert (reports["code"] & 255).tolist() == [ExecType.REJECT]


def test_a_message_is_at_the_exchange_after_the_one_before_it_and_never_after_its_receipt() -> None:
    rows = join_rows([row(Kind.TRADE, at, qty=1) for at in (5, 6, 7, 8)])
    rows["ts_event"] = [T0 + 4 * MS, T0 + 3 * MS, T0 + 99 * MS, -(2**63)]
    times, undated = exchange_times(rows, feed_ns=MS)
    assert ((times - T0) // MS).tolist() == [4, 4, 7, 7] and undated == 1


# ---- failures and bounds


class Broken(Strategy):
    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.submit(0, BUY, 100, 1 // (event.qty - 3), GTC)


class BrokenPython(PythonStrategy):
    def on_book(self, ctx: Any, event: Any) -> None:
        ctx.submit(0, BUY, 100, 1 // (event.qty - 3), GTC)


@pytest.mark.parametrize("strategy", [Broken, BrokenPython])
def test_a_strategy_that_fails_is_halted_with_its_traceback_in_the_journal(strategy: Any) -> None:
    tape = [*opening(), *(row(Kind.LEVEL, 10 * k, BID | LAST, 90, k) for k in range(1, 9))]
    rows, engine = simulated(strategy(), join_rows(tape))
    assert engine.failures == 1 and "ZeroDivisionError" in engine.faults[0].traceback
    kinds = rows["kind"].tolist()
    assert kinds.count(Kind.FAULT) == 1 and kinds.count(Kind.TEXT) == 1
    assert kinds.index(Kind.TEXT) > kinds.index(Kind.FAULT)
    assert rows["ts_recv"][kinds.index(Kind.TEXT)] == T0 + 30 * MS
    assert len(rows[rows["kind"] == Kind.LEVEL]) == 18  # the market went on


def test_both_forms_of_a_strategy_give_the_same_rows() -> None:
    messages = _messages([("level", BID, k % 5, k % 7, 900) for k in range(60)] + [("trade", ASK, 0, 9, 500)] * 5)
    rows = join_rows([part for _, part in messages])
    compiled, _ = simulated(OnBook(), rows)
    plain, _ = simulated(OnBook(compiled=False), rows)
    assert compiled.tobytes() == plain.tobytes()


def test_a_backtest_names_its_market_and_keeps_its_own_rows(tmp_path: Path) -> None:
    rows = join_rows([part for _, part in _messages([("level", BID, 1, 9, 900), ("trade", ASK, -1, 12, 900)] * 40)])
    how: dict[str, Any] = {"instruments": [ONE], "limits": FREE, "fees": Fees(0, 0)}
    memory = backtest(OnBook(), rows, **how)
    whole = backtest(OnBook(), rows, folder=tmp_path / "whole", **how)
    apart = backtest(OnBook(), rows, folder=tmp_path / "apart", journal_market=False, **how)
    assert memory.run_hash == whole.run_hash == apart.run_hash and memory.market_hash == apart.market_hash
    assert memory.rows.tobytes() == whole.rows.tobytes() == apart.rows.tobytes()
    assert read_all(tmp_path / "whole").tobytes() == memory.rows.tobytes()
    assert read_all(tmp_path / "apart").tobytes() == memory.own.tobytes()
    assert memory.fills.height > 0 and memory.replay(OnBook()).identical
    again = backtest(OnBook(), tmp_path / "whole", limits=FREE, fees=Fees(0, 0))
    assert again.run_hash == memory.run_hash and again.definitions.instruments == (ONE,)


def test_recordings_are_merged_by_time_and_found_by_symbol() -> None:
    two = replace(ONE, symbol="TWOUSD")
    first = join_rows([row(Kind.TRADE, at, qty=1, px=at) for at in (1, 3, 5)])
    second = join_rows([row(Kind.TRADE, at, qty=1, px=at) for at in (2, 4)])
    assert len(first) == 3 and two.id == 0
    tape = read_tape([[(T0, first)], [(T0, second)]], [ONE])
    assert tape.rows["kind"][0] == Kind.BOOK_STATE  # nobody said that the book may be believed
    assert tape.rows["px"][1:].tolist() == [1, 2, 3, 4, 5] and tape.rows["instrument"].tolist() == [0] * 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qty": -5}, "row 3, a LEVEL received at .* has a quantity of -5 lots; expected 0 or more"),
        ({"instrument": 9}, "names instrument 9; those traded are 0 to 0"),
        ({"kind": Kind.TRADE, "qty": 0}, "has a quantity of 0 lots; expected 1 or more"),
    ],
)
def test_a_broken_row_is_named(changed: dict[str, int], message: str) -> None:
    rows = join_rows(opening())
    for name, value in changed.items():
        rows[name][3] = value
    with pytest.raises(ConfigError, match=message):
        read_tape(rows, [ONE])


def test_fees_are_charged_where_a_recording_does_not_name_its_money() -> None:
    nameless = replace(ONE, base="", quote="")
    rows = join_rows([*opening(), row(Kind.TRADE, 10, ASK | LAST, 99, 9)])
    result = backtest(Once(), rows, instruments=[nameless], limits=FREE, fees=Fees(maker_e8=1_000_000))
    assert result.pnl["fees"].sum() == pytest.approx(0.05)


def test_an_empty_day_and_a_thing_that_is_no_market_are_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no market row of ONEUSD: an empty day"):
        read_tape(np.zeros(0, ROW), [ONE])
    with pytest.raises(ConfigError, match="expected rows, a path, messages"):
        read_tape(7, [ONE])
    with pytest.raises(ConfigError, match="instruments: missing"):
        read_tape(join_rows(opening()), None)
    with pytest.raises(ConfigError, match="there is no such file"):
        read_tape(tmp_path / "nothing", None)


def test_times_that_go_back_stand_still_and_are_counted() -> None:
    rows = join_rows([*opening(5), row(Kind.TRADE, 3, ASK | LAST, 100, 1), row(Kind.TRADE, 9, ASK | LAST, 100, 1)])
    result = backtest(OnBook(), rows, instruments=[ONE], limits=FREE)
    assert result.notes["rows older than the row before them"] == 1
    assert "1 rows older than the row before them" in result.summary()
    assert result.replay(OnBook()).identical


def test_own_orders_of_a_journal_are_not_its_market() -> None:
    rows = join_rows([part for _, part in _messages([("level", BID, 1, 9, 900), ("trade", ASK, -1, 12, 900)] * 20)])
    first = backtest(OnBook(), rows, instruments=[ONE], limits=FREE)
    assert (first.rows["kind"] == Kind.SUBMIT).any() and (first.rows["kind"] == CONT).any()
    assert read_tape(first.rows, [ONE]).rows["kind"].tolist() == rows["kind"].tolist()
    assert sum(len(part) for _, part in journal_market(first.rows)) == len(rows)
