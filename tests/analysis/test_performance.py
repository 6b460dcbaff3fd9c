"""Performance figures against SciPy, pandas and hand-made cases; and what is not defined is NaN with a sentence."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hftlab.analysis.performance import (
    _interval,
    deflated_sharpe,
    drawdown,
    equity_frame,
    interval_ns,
    performance,
    positions_frame,
    probabilistic_sharpe,
    sharpe,
    sortino,
)
from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees, Latency
from hftlab.strategies.maker import Maker
from hftlab.strategy import BUY, IOC, SELL, Strategy, record

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"), "BTC", "USDT")
LIMITS = Limits.from_decimals(BTC, {"max_order": "1", "max_position": "5", "max_notional": "900000", "collar": "200"})
SECOND, T0 = 10**9, 10**18

_numbers = st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=200).map(lambda x: np.array(x) / 64)


@settings(deadline=None)
@given(_numbers)
def test_ratios_are_those_of_pandas_and_scipy(x: Any) -> None:
    series = pd.Series(x)
    if series.std() > 1e-9:
        assert sharpe(x, 4.0) == pytest.approx(float(series.mean() / series.std()) * 2.0, rel=1e-9)
        assert sharpe(x) == pytest.approx(float(stats.ttest_1samp(x, 0.0).statistic) / math.sqrt(len(x)), rel=1e-9)
    else:
        assert math.isnan(sharpe(x))
    losses = series.clip(upper=0.0)
    if (losses < 0).any():
        assert sortino(x) == pytest.approx(float(series.mean() / np.sqrt((losses**2).mean())), rel=1e-9, abs=1e-12)
    else:
        assert math.isnan(sortino(x))
    curve = pd.concat([pd.Series([0.0]), series.cumsum()])
    assert drawdown(x.cumsum())[0] == pytest.approx(float((curve - curve.cummax()).min()), abs=1e-9)


def test_the_longest_drawdown_lasts_until_the_high_is_reached_again_or_the_end() -> None:
    assert drawdown([1.0, 0.0, 0.5, 1.0, 0.9, 2.0])[1] == 2
    assert drawdown([1.0, 0.0, 0.0, 0.0]) == (-1.0, 3)
    assert drawdown([]) == (0.0, 0) and drawdown([1.0, 2.0]) == (0.0, 0)


def test_the_probabilistic_ratio_is_the_normal_test_where_returns_are_normal() -> None:
    x = np.random.default_rng(3).normal(0.05, 1.0, 20_000)
    found = sharpe(x)
    expected = float(stats.norm.cdf(found * math.sqrt(len(x) - 1) / math.sqrt(1 + found**2 / 2)))
    assert probabilistic_sharpe(x) == pytest.approx(expected, abs=1e-3)
    assert math.isnan(probabilistic_sharpe([1.0, 1.0, 1.0]))


def test_the_best_of_many_trials_of_nothing_is_deflated_to_a_coin_toss() -> None:
    chance = np.random.default_rng(5)
    found = []
    for _ in range(60):
        trials = [chance.normal(0.0, 1.0, 500) for _ in range(100)]
        ratios = [sharpe(x) for x in trials]
        found.append(deflated_sharpe(trials[int(np.argmax(ratios))], 100, float(np.std(ratios, ddof=1))))
    assert 0.35 < float(np.mean(found)) < 0.65  # without deflation it is above 0.98
    assert deflated_sharpe(trials[0], 100) == pytest.approx(deflated_sharpe(trials[0], 100, 1 / math.sqrt(499)))
    with pytest.raises(ConfigError, match="trials=0"):
        deflated_sharpe([1.0, 2.0], 0, 1.0)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    chance, inside = np.random.default_rng(7), 0
    for k in range(60):
        low, high = _interval(chance.normal(1.0, 2.0, 200), lambda x: float(x.mean()), seed=k)
        inside += low < 1.0 < high
    assert 50 <= inside <= 60
    assert all(math.isnan(bound) for bound in _interval(np.ones(5), lambda x: float(x.mean())))


def run(seconds: float = 20, fees: Fees | None = None, **params: Any) -> Result:
    market = MatchingExchange([BTC], seed=5, fees=fees or Fees(1_000, 20_000))
    return backtest(Maker(**params), market, instruments=[BTC], limits=LIMITS, seconds=seconds)


def test_equity_ends_where_the_engine_says_and_adds_up() -> None:
    result = run(size_lots=1000, cap_lots=10_000)
    frame = equity_frame(result.rows, result.definitions, "500ms")
    last, told = frame.row(-1, named=True), result.pnl.row(0, named=True)
    assert last["equity"] == pytest.approx(told["net"]) and last["fees"] == pytest.approx(told["fees"])
    assert last["gross"] == pytest.approx(told["realized"] + told["unrealized"])
    assert last["position"] == pytest.approx(told["position"])
    assert frame["ts"].diff().drop_nulls().unique().to_list() == [pd.Timedelta("500ms")]
    assert frame.height in (40, 41)
    finer = equity_frame(result.rows, result.definitions, "100ms")
    both = frame.join(finer, on="ts", how="inner")
    assert both.height >= frame.height - 1 and (both["equity"] - both["equity_right"]).abs().max() == 0.0
    positions = positions_frame(result.rows, result.definitions)
    assert positions["position"][-1] == pytest.approx(told["position"])
    assert positions.height == result.fills.height


def test_figures_of_a_run_agree_with_its_frames() -> None:
    result = run(size_lots=1000, cap_lots=10_000)
    told = performance(result.rows, result.definitions, "1s")
    fills = result.fills
    assert told.fills == fills.height and told.turnover == pytest.approx(float((fills["px"] * fills["qty"]).sum()))
    assert told.net == pytest.approx(told.gross - told.fees) == pytest.approx(sum(told.by_instrument.values()))
    assert sum(told.by_role.values()) == pytest.approx(told.net) and set(told.by_role) <= {"maker", "taker"}
    trades = result.rows[result.rows["kind"] == Kind.TRADE]
    around = float((trades["px"] * trades["qty"]).sum()) * float(BTC.money(1))
    assert told.capacity == pytest.approx(0.1 * around / told.turnover)
    assert told.cost_share == pytest.approx(told.fees / told.turnover)
    curve = equity_frame(result.rows, result.definitions, "1s")["equity"].to_numpy()
    changes = np.diff(np.concatenate([[0.0], curve]))
    assert told.sharpe == pytest.approx(changes.mean() / changes.std(ddof=1) * math.sqrt(365 * 86_400))
    assert told.sharpe_low < told.sharpe < told.sharpe_high
    assert "samples of 1 s" in str(told) and told.to_dict()["asset"] == "USDT"


class Trips(Strategy):
    """Buys 3, sells 5, buys 2: one position that turns, and one that is closed."""

    state = record(n=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if state.n == 0:
            ctx.submit(0, BUY, ctx.best_ask(0), 3, IOC)
        if state.n == 1:
            ctx.submit(0, SELL, ctx.best_bid(0), 5, IOC)
        if state.n == 2:
            ctx.submit(0, BUY, ctx.best_ask(0), 2, IOC)
        state.n += 1


def tape(prices: list[int]) -> RowArray:
    """A book of one level a side, a second each, at these mids."""
    parts = []
    for k, mid in enumerate(prices):
        rows = new_rows(4)
        rows["kind"], rows["ts_recv"] = Kind.LEVEL, T0 + k * SECOND
        rows["kind"][0] = Kind.CLEAR
        rows["flags"] = [0, Flag.BID, Flag.ASK, Flag.LAST]
        rows["px"][1:3], rows["qty"][1:3] = [mid - 1, mid + 1], 100
        rows["kind"][3], rows["code"][3] = Kind.BOOK_STATE, BookState.LIVE
        parts.append(rows)
    return join_rows(parts)


def test_round_trips_are_closed_where_a_position_ends_or_turns() -> None:
    result = backtest(
        Trips(), tape([1000, 1010, 990, 990, 990]), instruments=[BTC], limits=LIMITS, fees=Fees(0, 0),
        latency=Latency(1000, 1000),
    )  # fmt: skip
    told = performance(result.rows, result.definitions)
    # 3 bought at 1001, sold at 1009: earned; 2 sold at 1009, bought at 991: earned
    assert (told.fills, told.hit_rate) == (3, 1.0)
    assert told.holding_s == pytest.approx(1.0, rel=1e-3)
    assert told.gross == pytest.approx(float(BTC.money(3 * 8 + 2 * 18)))
    assert math.isfinite(told.sortino) and told.notes == ("The market told no trade: no capacity.",)


@pytest.mark.parametrize("prices", [[1000], [1000] * 5])
def test_without_a_trade_figures_are_nan_with_a_sentence(prices: list[int]) -> None:
    class Looks(Strategy):
        pass

    result = backtest(Looks(), tape(prices), instruments=[BTC], limits=LIMITS)
    told = performance(result.rows, result.definitions)
    assert told.net == told.drawdown == told.turnover == 0.0 and told.fills == 0
    for name in ("sharpe", "sharpe_low", "sortino", "cost_share", "hit_rate", "holding_s", "capacity"):
        assert math.isnan(getattr(told, name)), name
    assert any("no fill" in note for note in told.notes) and any("no Sharpe ratio" in note for note in told.notes)
    assert "nan" in str(told) and "inf" not in str(told)


def test_an_interval_that_is_none_and_money_that_does_not_add_up_are_refused() -> None:
    for bad in ("1 s", "0s", "fast", -1):
        with pytest.raises(ConfigError, match="expected a whole number and one of"):
            interval_ns(bad)
    other = Instrument(1, "kraken", "XBTEUR", Decimal("0.1"), Decimal("0.001"), "XBT", "EUR")
    rows = tape([1000, 1001])
    result = backtest(Trips(), rows, instruments=[BTC, other], limits=LIMITS)
    with pytest.raises(ConfigError, match="quoted in EUR, USDT"):
        performance(result.rows, result.definitions)
    with pytest.raises(ConfigError, match="at most 1,000,000"):
        equity_frame(rows, result.definitions, "1ns")
    assert isinstance(equity_frame(rows[:0], result.definitions), pl.DataFrame)
