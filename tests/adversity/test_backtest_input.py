"""Bad data and bad strategies: a clear error or a stated policy, and the run's journal kept up to that point."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, Reason, RowArray, join_rows, new_rows
from hftlab.journal import read_all, verify
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, GTC, LIVE, PythonStrategy, Strategy, record

ONE = Instrument(0, "sim", "ONE", Decimal("1"), Decimal("1"), "ONE", "USD")
LIMITS = Limits(max_order_qty=1000, max_notional=10**9, max_position=10**6, collar_ticks=500)
T0, STEP = 1_700_000_000_000_000_000, 10_000_000
BID, ASK, LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
MAKER = Maker(size_lots=10, cap_lots=100)


def level(k: int, side: int, px: int, qty: int, flags: int = LAST) -> RowArray:
    row = new_rows(1)
    row["kind"], row["ts_recv"], row["ts_event"] = Kind.LEVEL, T0 + k * STEP, T0 + k * STEP
    row["flags"], row["px"], row["qty"], row["a"] = side | flags, px, qty, k + 1
    return row


def trade(k: int, px: int, qty: int) -> RowArray:
    row = level(k, ASK, px, qty)
    row["kind"] = Kind.TRADE
    return row


def state(k: int, what: BookState) -> RowArray:
    row = new_rows(1)
    row["kind"], row["ts_recv"], row["code"], row["flags"] = Kind.BOOK_STATE, T0 + k * STEP, what, LAST
    row["b"] = k + 1
    return row


def day(n: int = 60) -> RowArray:
    """A book of 100 x 102 whose bid is sold into now and then."""
    rows = [level(0, BID, 100, 50, 0), level(0, ASK, 102, 50), state(0, BookState.LIVE)]
    for k in range(1, n):
        rows.append(trade(k, 100, 30) if k % 5 == 0 else level(k, BID if k % 2 else ASK, 99 if k % 2 else 103, 10 + k))
    return join_rows(rows)


def run(strategy: Any, rows: RowArray, **how: Any) -> Result:
    return backtest(strategy, rows, instruments=[ONE], limits=LIMITS, **how)


def times_never_go_back(result: Result) -> bool:
    own = result.own["ts_recv"][(result.own["kind"] != 1) & (result.own["ts_recv"] > 0)]
    return bool((np.diff(own) >= 0).all())


# --- data ------------------------------------------------------------------------------------------------------------


def test_times_that_go_back_keep_their_order_and_are_counted() -> None:
    rows = day()
    rows["ts_recv"][20:23] -= 5 * STEP
    result = run(MAKER, rows)
    assert result.notes["rows older than the row before them"] > 0
    assert "older than the row before them" in result.summary()
    assert times_never_go_back(result) and result.counters["submits"] > 0
    market = result.rows[np.isin(result.rows["kind"], [Kind.LEVEL, Kind.TRADE, Kind.BOOK_STATE])]
    assert market["px"].tolist() == rows["px"].tolist()


def test_equal_times_are_no_fault() -> None:
    rows = day()
    rows["ts_recv"][10:20] = rows["ts_recv"][10]
    result = run(MAKER, rows)
    assert "rows older than the row before them" not in result.notes and times_never_go_back(result)
    assert result.run_hash == run(MAKER, rows).run_hash


def test_a_message_told_twice_changes_no_book() -> None:
    rows = day()
    at = next(k for k in range(10, 40) if rows["kind"][k] == Kind.LEVEL)
    twice = join_rows([rows[: at + 1], rows[at : at + 1], rows[at + 1 :]])
    once, again = run(MAKER, rows), run(MAKER, twice)
    assert once.replica.touch(0) == again.replica.touch(0)
    assert not again.faults


def test_a_crossed_snapshot_is_not_traded_on_until_it_is_mended() -> None:
    crossed = [level(0, BID, 105, 50, 0), level(0, ASK, 102, 50), state(0, BookState.LIVE)]
    rows = join_rows([*crossed, *(level(k, BID, 90, 5 + k) for k in range(1, 5))])
    result = run(Always(), rows)
    assert result.counters["submits"] == 0, "nothing is sent into a crossed book"
    mended = join_rows([rows, level(6, BID, 105, 0), level(7, BID, 100, 5)])
    assert run(MAKER, mended).counters["submits"] > 0
    assert not run(MAKER, mended).faults


@pytest.mark.parametrize(
    ("kind", "qty", "words"),
    [("LEVEL", -5, "has a quantity of -5 lots; expected 0 or more"), ("TRADE", 0, "0 lots; expected 1 or more")],
)
def test_a_quantity_that_cannot_be_is_an_error_that_names_the_row(kind: str, qty: int, words: str) -> None:
    rows = day()
    at = int(np.flatnonzero(rows["kind"] == Kind[kind])[3])
    rows["qty"][at] = qty
    with pytest.raises(ConfigError, match=f"row {at}, a {kind} received at .*{words}"):
        run(MAKER, rows)


def test_an_instrument_that_is_not_traded_is_an_error_that_names_the_row() -> None:
    rows = day()
    rows["instrument"][7] = 3
    with pytest.raises(ConfigError, match=r"row 7, .* names instrument 3; those traded are 0 to 0"):
        run(MAKER, rows)


def test_an_empty_day_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="no market row of ONE"):
        run(MAKER, new_rows(0))


def test_a_gap_stops_quoting_until_the_book_is_live_again() -> None:
    rows = day(60)
    later = day(60)
    later["ts_recv"] += 3600 * 10**9
    later["ts_event"] += 3600 * 10**9
    broken = join_rows([rows, state(60, BookState.STALE), later])
    result = run(Always(), broken)
    lost, back = T0 + 60 * STEP, T0 + 3600 * 10**9
    sent = result.own["ts_recv"][result.own["kind"] == Kind.SUBMIT]
    assert not ((sent >= lost) & (sent < back)).any(), "nothing is sent while the book is stale"
    assert (sent < lost).any() and (sent >= back).any()
    clocks = result.own["ts_recv"][result.own["kind"] == Kind.CLOCK]
    assert ((clocks > lost) & (clocks < back)).sum() > 1000, "the silence is visible"


# --- strategies ------------------------------------------------------------------------------------------------------


class Always(Strategy):
    """Bids at each turn, whatever it sees."""

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.submit(0, BUY, 95, 1, GTC)


class Raises(Strategy):
    """Divides by zero at the tenth book, with an order out."""

    state = record(n=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        state.n += 1
        if ctx.book_state(0) == LIVE:
            ctx.submit(0, BUY, 95, 1, GTC)
        if state.n == 10:
            ctx.note(1 // (state.n - 10))


class NeverReturns(Strategy):
    """Waits for a book that cannot come."""

    def on_trade(ctx: Any, state: Any, params: Any, event: Any) -> None:
        while ctx.best_bid(0) < 10**9:
            pass


class Endless(PythonStrategy):
    """The same in free Python."""

    def on_trade(self, ctx: Any, event: Any) -> None:
        while True:
            pass


class FloatPrice(PythonStrategy):
    """Sends a price that is not a number."""

    def on_trade(self, ctx: Any, event: Any) -> None:
        ctx.submit(0, BUY, float("nan"), 1, GTC)


@pytest.mark.parametrize(
    ("strategy", "callback", "words"),
    [
        (Raises(), "on_book", "ZeroDivisionError"),
        (Raises(compiled=False), "on_book", "ZeroDivisionError"),
        (NeverReturns(), "on_trade", "it may never return"),
        (NeverReturns(compiled=False), "on_trade", "it may never return"),
        (Endless(), "on_trade", "it may never return"),
        (FloatPrice(), "on_trade", "TypeError"),
    ],
)
def test_a_strategy_that_fails_is_halted_and_named_and_its_journal_kept(
    strategy: Any, callback: str, words: str, tmp_path: Path
) -> None:
    result = run(strategy, day(), folder=tmp_path / "run")
    (fault,) = result.faults
    assert fault.callback == callback and words in fault.traceback
    assert f"FAULT in {callback}" in result.summary()
    kept = read_all(tmp_path / "run")
    assert (kept["kind"] == Kind.FAULT).sum() == 1 and verify(tmp_path / "run").ok
    at = int(np.flatnonzero(kept["kind"] == Kind.FAULT)[0])
    assert not (kept["kind"][at:] == Kind.SUBMIT).any(), "a halted strategy sends nothing"
    assert result.counters["open_orders"] == 0, "what it had out is canceled"
    assert result.rows["kind"][-1] != Kind.UNWRITTEN and len(result.market) == len(day())


def test_an_exception_discards_what_its_own_callback_sent() -> None:
    result = run(Raises(), day())
    sent = (result.own["kind"] == Kind.SUBMIT).sum()
    assert sent == 9, "the tenth was discarded with the callback that failed"


class UnknownOrder(Strategy):
    """Cancels and replaces orders that are not its own."""

    def on_trade(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.cancel(77_777)
        ctx.replace(88_888, 100, 1)
        ctx.cancel(-5)


def test_an_unknown_order_id_is_refused_by_its_reason() -> None:
    result = run(UnknownOrder(), day())
    refused = result.own[result.own["kind"] == Kind.REFUSED]
    assert len(refused) > 0 and set(refused["code"].tolist()) == {int(Reason.UNKNOWN_ORDER)}
    assert result.counters["submits"] == 0 and not result.faults


class Nonsense(Strategy):
    """Sends every number that no order can have."""

    def on_trade(ctx: Any, state: Any, params: Any, event: Any) -> None:
        ctx.submit(0, BUY, -1, 1, GTC)
        ctx.submit(0, BUY, 100, 0, GTC)
        ctx.submit(0, 7, 100, 1, GTC)
        ctx.submit(0, BUY, 100, 1, 99)
        ctx.submit(9, BUY, 100, 1, GTC)
        ctx.submit(0, BUY, 2**62, 2**62, GTC)


def test_nonsense_is_refused_each_with_its_reason() -> None:
    result = run(Nonsense(), day())
    reasons = {Reason(int(code)) for code in result.own["code"][result.own["kind"] == Kind.REFUSED]}
    expected = {Reason.BAD_PX, Reason.BAD_QTY, Reason.BAD_SIDE, Reason.BAD_TIF, Reason.UNKNOWN_INSTRUMENT}
    assert expected <= reasons
    assert result.counters["submits"] == 0 and not result.faults


class Flood(Strategy):
    """A million orders a second: ten thousand each 10 ms."""

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        for _ in range(10_000):
            ctx.submit(0, BUY, 95, 1, GTC)


def test_a_flood_of_orders_is_throttled_and_counted_in_bounded_rows() -> None:
    result = run(Flood(), day(40))
    assert 0 < result.counters["submits"] <= LIMITS.orders_per_s + LIMITS.max_open_orders
    assert result.counters["refusals"] > 200_000
    assert len(result.own) < 20_000, "refusals of one reason are counted in one row"
    refused = result.own[result.own["kind"] == Kind.REFUSED]
    assert Reason.THROTTLE in {Reason(int(code)) for code in refused["code"]}
