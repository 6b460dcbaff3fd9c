"""Execution against an engine asked row by row, SciPy, and orders whose costs one computes by hand."""

from __future__ import annotations

import bisect
import itertools
import math
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hftlab.analysis.execution import (
    Execution,
    execution,
    fills_frame,
    markouts_frame,
    mean_interval,
    orders_frame,
    survival_frame,
)
from hftlab.analysis.kpi import GOALS, kpi_frame, kpi_verdict
from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, BookState, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.engine import Replica
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees, Latency
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, GTC, IOC, POST_ONLY, SELL, Strategy, record

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.001"), "BTC", "USDT")
EUR = Instrument(1, "kraken", "XBTEUR", Decimal("0.1"), Decimal("0.001"), "XBT", "EUR")
LIMITS = Limits(max_order_qty=10**6, max_notional=10**15, max_position=10**6, collar_ticks=10**6)
SECOND, T0 = 10**9, 10**18


@pytest.fixture(scope="module")
def result() -> Result:
    market = MatchingExchange([BTC], seed=5, fees=Fees(10_000, 20_000))
    return backtest(Maker(), market, instruments=[BTC], limits=LIMITS, seconds=8)


def mids_row_by_row(result: Result) -> tuple[list[int], list[float]]:
    """When the touch could have changed, and the mid then (ticks), as the engine tells it after every message."""
    replica, times, mids, rows = Replica(result.definitions), [], [], result.rows
    heads = [*np.flatnonzero(rows["kind"] != Kind.CONT).tolist(), len(rows)]
    for begin, end in itertools.pairwise(heads):
        replica.apply(rows[begin:end])
        row = rows[begin]
        if row["kind"] in (Kind.LEVEL, Kind.QUOTE, Kind.BOOK_STATE) and row["flags"] & Flag.LAST:
            bid, _, ask, _ = replica.touch(0)
            times.append(int(row["ts_recv"]))
            mids.append((bid + ask) / 2 if bid != NO_PX and ask != NO_PX else math.nan)
    return times, mids


def test_every_fills_prices_are_those_the_engine_saw_then(result: Result) -> None:
    times, mids = mids_row_by_row(result)
    fills = fills_frame(result.rows, result.definitions, (10**6, 10**9))
    assert fills.height == result.fills.height > 20
    end = int(result.rows["ts_recv"].max())

    def mid(at: int, before: bool = False) -> float:
        k = (bisect.bisect_left if before else bisect.bisect_right)(times, at)
        return mids[k - 1] * 0.01

    for line in fills.with_columns(pl.col("ts", "told", "decided").dt.epoch("ns")).iter_rows(named=True):
        sign = 1 if line["side"] == "buy" else -1
        assert line["slippage"] == pytest.approx(sign * (line["px"] - mid(line["decided"])), abs=1e-9)
        assert line["half_spread"] == pytest.approx(sign * (mid(line["ts"], True) - line["px"]), abs=1e-9)
        for name, h in (("1ms", 10**6), ("1s", 10**9)):
            if line["told"] + h > end:
                assert line[f"markout_{name}"] is None
                continue
            after = sign * (mid(line["told"] + h) - line["px"])
            assert line[f"markout_{name}"] == pytest.approx(after, abs=1e-9)
            assert line[f"adverse_{name}"] == pytest.approx(line["half_spread"] - after, abs=1e-9)


def test_means_are_the_frames_weighted_means_and_spreads_add_up(result: Result) -> None:
    told = execution(result.rows, result.definitions, (10**6, 10**9, 10**12))
    fills = fills_frame(result.rows, result.definitions, (10**6, 10**9, 10**12))
    weights = (fills["notional"] / fills["px"]).to_numpy()
    bps = np.average(fills["markout_1ms"].to_numpy(), weights=weights) / np.average(fills["px"], weights=weights) * 1e4
    assert told.markout_bps["1ms"] == pytest.approx(bps)
    assert told.effective_spread_bps == pytest.approx(told.realised_spread_bps["1ms"] + 2 * told.adverse_bps["1ms"])
    assert math.isnan(told.markout_bps["1000s"]) and any("1000s" in note for note in told.notes)
    assert told.cost_share == pytest.approx(1e-4), "a maker's cost is its fee"
    assert "fills" in str(told) and told.to_dict()["fills"] == fills.height
    means = markouts_frame(fills).filter(role="all", horizon_ns=10**6).row(0, named=True)
    assert means["mean"] == pytest.approx(float((fills["markout_1ms"] / 0.01).mean()), abs=1e-9)  # type: ignore[arg-type]  # of floats
    assert means["n"] == fills.height and means["low"] < means["mean"] < means["high"]


@given(st.lists(st.integers(-1000, 1000), max_size=30))
def test_an_interval_of_a_mean_is_scipys(values: list[int]) -> None:
    mean, low, high, n = mean_interval([*values, math.nan])
    assert n == len(values)
    if n > 1:
        if len(set(values)) > 1:
            bounds = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
            assert (mean, low, high) == pytest.approx((np.mean(values), bounds.low, bounds.high))
        else:
            assert low == mean == high == values[0]
    else:
        assert math.isnan(low) and math.isnan(high)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=30))
def test_survival_is_kaplan_and_meiers_product(lives: list[tuple[int, bool]]) -> None:
    orders = pl.DataFrame(
        {
            "accepted": [True] * len(lives), "marketable": [False] * len(lives), "decided": [T0] * len(lives),
            "ended": [T0 + t for t, _ in lives], "wait_ns": [t if filled else None for t, filled in lives],
        },
        schema_overrides=dict.fromkeys(("accepted", "marketable"), pl.Boolean)
        | dict.fromkeys(("wait_ns", "ended", "decided"), pl.Int64),
    ).with_columns(pl.col("decided", "ended").cast(pl.Datetime("ns", "UTC")))  # fmt: skip
    found = survival_frame(orders)
    if not any(filled for _, filled in lives):
        assert found.height == 0
        return
    share, expected = 1.0, {}
    for t in sorted({t for t, _ in lives}):
        waiting, now = sum(x >= t for x, _ in lives), sum(x == t and filled for x, filled in lives)
        share *= 1 - now / waiting
        expected[t] = share
    assert dict(found.select("wait_ns", "share").iter_rows()) == pytest.approx(expected)


class Plan(Strategy):
    """Crosses for more than there is, rests, moves the resting order, and has one refused by the venue."""

    state = record(n=0, id=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if state.n == 0:
            ctx.submit(0, BUY, ctx.best_ask(0), 150, IOC)
        if state.n == 1:
            state.id = ctx.submit(0, SELL, ctx.best_ask(0) + 5, 40, GTC, POST_ONLY)
        if state.n == 2:
            ctx.replace(state.id, ctx.best_ask(0) + 9, 30)
        state.n += 1


def tape(mids: list[int]) -> RowArray:
    """A book of one level of 100 lots a side, a second each, at these mids."""
    parts = []
    for k, mid in enumerate(mids):
        rows = new_rows(4)
        rows["kind"], rows["ts_recv"] = Kind.LEVEL, T0 + k * SECOND
        rows["kind"][0] = Kind.CLEAR
        rows["flags"] = [0, Flag.BID, Flag.ASK, Flag.LAST]
        rows["px"][1:3], rows["qty"][1:3] = [mid - 1, mid + 1], 100
        rows["kind"][3], rows["code"][3] = Kind.BOOK_STATE, BookState.LIVE
        parts.append(rows)
    return join_rows(parts)


def run(strategy: Strategy, mids: list[int]) -> Result:
    return backtest(
        strategy, tape(mids), instruments=[BTC], limits=LIMITS, fees=Fees(0, 100_000), latency=Latency(1000, 1000)
    )


def test_shortfall_is_slippage_and_what_was_missed_and_fees() -> None:
    result = run(Plan(), [10_000, 10_002, 10_004, 10_004])
    crossing, resting = orders_frame(result.rows, result.definitions).to_dicts()
    assert (crossing["marketable"], crossing["qty"], crossing["cum_qty"]) == (True, 0.15, 0.1)
    assert crossing["slippage"] == pytest.approx(0.1 * 0.01)  # 100 lots a tick above the mid
    assert crossing["opportunity"] == pytest.approx(0.0)  # it expired before the mid moved
    assert crossing["fees"] == pytest.approx(0.1 * 100.01 * 0.001)
    assert crossing["shortfall"] == pytest.approx(crossing["slippage"] + crossing["fees"])
    assert crossing["wait_ns"] == 2000
    assert (resting["marketable"], resting["qty"], resting["cum_qty"]) == (False, 0.03, 0.0)
    assert resting["status"] == "canceled" and resting["accepted"] and resting["wait_ns"] is None
    assert resting["opportunity"] == pytest.approx(-0.03 * 0.02)  # unsold, and the mid rose by two ticks: it gained
    told = execution(result.rows, result.definitions)
    assert (told.orders, told.fill_rate_passive) == (2, 0.0) and told.fill_rate_marketable == pytest.approx(2 / 3)
    assert told.slippage_bps == pytest.approx(1e4 / 10_001) and told.cost_share == pytest.approx(0.001 + 1 / 10_001)
    assert math.isnan(told.half_life_s)
    assert execution(result.rows, result.definitions).markout_bps["1s"] == pytest.approx(1e4 / 10_001)


class Looks(Strategy):
    """Does nothing."""


def test_without_an_order_figures_are_nan_with_a_sentence_and_no_goal_is_passed_by_them() -> None:
    result = run(Looks(), [10_000, 10_002])
    for rows in (result.rows, result.rows[:0]):
        told = execution(rows, result.definitions)
        for name in ("fill_rate_passive", "fill_rate_marketable", "slippage_bps", "shortfall_bps", "cost_share"):
            assert math.isnan(getattr(told, name)), name
        assert any("no order" in note for note in told.notes) and "inf" not in str(told)
        assert fills_frame(rows, result.definitions).height == 0
        assert markouts_frame(fills_frame(rows, result.definitions)).height == 0
        panel = kpi_frame(rows, result.definitions)
        unknown = panel.filter(pl.col("value").is_null())
        assert set(unknown["verdict"]) == {"unknown"} and set(unknown["name"]) >= {"sharpe", "cost_share"}
        assert all(why.endswith(".") for why in panel["why"])


def test_money_that_does_not_add_up_and_horizons_that_are_none_are_refused() -> None:
    rows = tape([10_000])
    made = backtest(Looks(), rows, instruments=[BTC, EUR], limits=LIMITS).definitions
    with pytest.raises(ConfigError, match="quoted in EUR, USDT"):
        execution(rows, made)
    with pytest.raises(ConfigError, match="expected whole ns above 0"):
        fills_frame(rows, made, (0,))
    with pytest.raises(ConfigError, match="expected an amount above 0"):
        kpi_frame(rows, made, capital=0.0)


def test_the_panel_names_each_goal_once_and_judges_by_it(result: Result) -> None:
    panel = {line["name"]: line for line in kpi_frame(result.rows, result.definitions, capital=10.0).to_dicts()}
    assert list(panel) == list(GOALS)
    for name, line in panel.items():
        assert line["verdict"] == ("unknown" if line["value"] is None else kpi_verdict(name, line["value"]))
    assert panel["cost_share"]["verdict"] == panel["bad_data"]["verdict"] == "pass"
    assert panel["sharpe"]["verdict"] == "fail", "fees eat it"
    less = kpi_frame(result.rows, result.definitions, capital=1.0).filter(name="drawdown")["value"].item()
    assert less == pytest.approx(10 * panel["drawdown"]["value"])
    marks = result.definitions.limits[0].max_position * 0.001 * 61_837
    base = kpi_frame(result.rows, result.definitions).filter(name="drawdown")["value"].item()
    assert base == pytest.approx(less / marks, rel=1e-3)
    assert kpi_verdict("drawdown", 0.05) == kpi_verdict("bad_data", 1.0) == "fail"
    assert isinstance(execution(result.rows, result.definitions), Execution)
