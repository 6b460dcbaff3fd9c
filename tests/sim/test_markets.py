"""Synthetic markets: what each feature promises, measured on what the matching exchange publishes."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pytest

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import Flag, Kind, RowArray, Side, Tif, join_rows, new_rows
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.flow import BUY_TAKER, MAKER, SELL_TAKER, UNIT, FlowParams, ScriptedFlow
from hftlab.sim.markets import Clustering, Regime, synthetic

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

BTC = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")
ETH = Instrument(1, "sim", "ETHUSDT", Decimal("0.01"), Decimal("0.0001"), "ETH", "USDT")
SOL = Instrument(2, "sim", "SOLUSDT", Decimal("0.01"), Decimal("0.001"), "SOL", "USDT")
SECOND = 10**9


def played(flows: dict[int, ScriptedFlow], seconds: int, *instruments: Instrument) -> RowArray:
    exchange = MatchingExchange(list(instruments) or [BTC], seed=1, flow=flows)
    start = exchange.now_ns
    return join_rows([exchange.advance(start + (k + 1) * SECOND).copy() for k in range(seconds)])


def mids(rows: RowArray, instrument: int, every_ns: int) -> Floats:
    """Return the mid at each step of time, from QUOTE rows."""
    quotes = rows[(rows["kind"] == Kind.QUOTE) & (rows["instrument"] == instrument)]
    total = np.zeros(0)
    grid = np.arange(int(quotes["ts_event"][0]) + SECOND, int(quotes["ts_event"][-1]), every_ns)
    for side in (Flag.BID, Flag.ASK):
        of = quotes[quotes["flags"] & int(side) != 0]
        px = of["px"][np.searchsorted(of["ts_event"], grid, "right") - 1] / 2
        total = px if not len(total) else total + px
    return total


def signs(rows: RowArray) -> Floats:
    """Return +1 and -1 of each taker's order, in time order."""
    trades = rows[rows["kind"] == Kind.TRADE]
    first = np.append(True, trades["ts_event"][1:] != trades["ts_event"][:-1])
    return np.where(trades["flags"][first] & int(Flag.BID) != 0, 1.0, -1.0)


def autocorrelation(values: Floats, lag: int = 1) -> float:
    centred = values - values.mean()
    return float((centred[lag:] * centred[:-lag]).mean() / centred.var())


# --- clustering


def test_trade_signs_and_counts_cluster_with_hawkes_and_do_not_with_poisson() -> None:
    flow = FlowParams(informed=0.0, noise=0.15)
    hawkes, poisson = (
        played(synthetic([BTC], 120, flow=flow, clustering=how, seed=4).flows, 120)
        for how in (Clustering(takers=0.7, same_side=0.95), None)
    )
    assert autocorrelation(signs(hawkes)) > 0.15
    assert abs(autocorrelation(signs(poisson))) < 0.05
    for rows, low, high in ((hawkes, 8.0, 15.0), (poisson, 0.8, 1.2)):  # theory: 1 / (1 - 0.7)**2 = 11.1, and 1
        at = rows["ts_event"][rows["kind"] == Kind.TRADE]
        of = np.bincount((np.unique(at) - at[0]) // SECOND).astype(float)[:-1]
        assert low < of.var() / of.mean() < high


def test_clustering_keeps_the_mean_rates_of_the_flow() -> None:
    script = synthetic([BTC], 400, clustering=Clustering(), seed=2).flows[0].script
    rates = np.bincount(script[:, 1], minlength=4) / 400
    assert rates.tolist() == pytest.approx([688, 48, 32, 32], rel=0.08)


# --- several instruments


def test_mid_returns_of_two_instruments_are_correlated_as_asked() -> None:
    flow = FlowParams(volatility_ticks=20.0, jumps_per_s=0.0, informed=0.2, noise=0.02, events_per_s=200.0)
    for asked in (0.8, -0.5):
        rows = played(synthetic([BTC, ETH], 900, flow=flow, correlation=asked, seed=6).flows, 900, BTC, ETH)
        returns = [np.diff(mids(rows, k, 5 * SECOND)) for k in (0, 1)]
        n = min(len(of) for of in returns)
        measured = np.corrcoef(returns[0][:n], returns[1][:n])[0, 1]
        assert measured == pytest.approx(asked, abs=0.12)


def test_steps_of_value_have_the_correlation_and_the_volatility_asked_for() -> None:
    matrix = [[1.0, 0.6, -0.2], [0.6, 1.0, 0.1], [-0.2, 0.1, 1.0]]
    flow = FlowParams(jumps_per_s=0.0, volatility_ticks=4.0, events_per_s=500.0)
    made = synthetic([BTC, ETH, SOL], 1_000, flow=flow, correlation=matrix, seed=3)
    paths = []
    for script in (made.flows[k].script for k in range(3)):
        seconds = np.searchsorted(script[:, 0], np.arange(1, 1_000) * SECOND)
        paths.append(np.diff(script[seconds - 1, 2] / UNIT))
    assert np.abs(np.corrcoef(paths) - matrix).max() < 0.12
    assert np.std(paths[0]) == pytest.approx(4.0, rel=0.1)


# --- informed takers


def markout(rows: RowArray) -> float:
    """Return the mean 1 s markout of a maker on the other side of every trade, ticks."""
    trades = rows[rows["kind"] == Kind.TRADE]
    grid = 10_000_000
    path = mids(rows, 0, grid)
    began = int(rows["ts_event"][rows["kind"] == Kind.QUOTE][0]) + SECOND
    later = (trades["ts_event"] + SECOND - began) // grid
    inside = (later >= 0) & (later < len(path))
    bought = np.where(trades["flags"] & int(Flag.BID) != 0, -1, 1)  # the maker's side
    return float((bought[inside] * (path[later[inside]] - trades["px"][inside])).mean())


def test_informed_takers_make_a_makers_markouts_worse() -> None:
    def with_share(informed: float) -> float:
        flow = FlowParams(informed=informed, noise=0.08, jumps_per_s=1.0)
        return markout(played(synthetic([BTC], 120, flow=flow, seed=9).flows, 120))

    uninformed, some, many = with_share(0.0), with_share(0.06), with_share(0.12)
    assert uninformed > 0.2 > -0.5 > some > many + 0.3


# --- regimes


def test_a_fast_regime_has_more_events_and_a_wild_one_moves_more() -> None:
    regimes = [Regime(10.0), Regime(10.0, rate=3.0), Regime(10.0, volatility=4.0)]
    flow = FlowParams(jumps_per_s=0.0)
    made = synthetic([BTC], 600, flow=flow, regimes=regimes, seed=8)
    script = made.flows[0].script
    regime = made.regime_at(script[:, 0])
    bounds = np.append(made.switches[:, 0], 600 * SECOND)
    spent = np.array([np.diff(bounds)[made.switches[:, 1] == k].sum() / SECOND for k in range(3)])
    assert spent.min() > 60 and spent.sum() == pytest.approx(600)
    rates = np.bincount(regime, minlength=3) / spent
    assert rates.tolist() == pytest.approx([800, 2400, 800], rel=0.05)
    steps = np.diff(script[:, 2] / UNIT)
    per_second = np.array([(steps[regime[1:] == k] ** 2).sum() / spent[k] for k in range(3)]) ** 0.5
    assert per_second.tolist() == pytest.approx([4, 4, 16], rel=0.1)


def test_transitions_lead_only_where_they_may() -> None:
    ring = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    made = synthetic([BTC], 60, regimes=[Regime(1.0)] * 3, transitions=ring, flow=FlowParams(events_per_s=10.0))
    assert made.switches[:, 1].tolist() == [k % 3 for k in range(len(made.switches))]
    assert len(made.switches) > 20


# --- the promise


def test_same_arguments_give_the_same_rows_however_time_is_sliced() -> None:
    def rows(seed: int, step: int) -> bytes:
        made = synthetic(
            [BTC, ETH], 6, correlation=0.5, clustering=Clustering(), regimes=[Regime(1.0), Regime(1.0, 2.0)], seed=seed
        )
        exchange = MatchingExchange([BTC, ETH], seed=2, flow=made.flows)
        start = exchange.now_ns
        parts = [exchange.advance(start + at).copy() for at in range(step, 6 * SECOND + 1, step)]
        return join_rows(parts).tobytes()

    assert rows(5, SECOND) == rows(5, SECOND // 4)
    assert rows(5, SECOND) != rows(6, SECOND)


def test_own_orders_trade_with_a_scripted_flow_and_nothing_comes_after_its_end() -> None:
    script = np.array([[SECOND, SELL_TAKER, 6_183_700 * UNIT], [2 * SECOND, MAKER, 6_183_700 * UNIT]], np.int64)
    flows = {0: ScriptedFlow(script=script, reach_ticks=0)}
    exchange = MatchingExchange([BTC], flow=flows)
    start = exchange.now_ns
    _, bids, _ = exchange.snapshot(0)
    order = new_rows(1)
    order["kind"], order["a"], order["px"], order["qty"] = Kind.SUBMIT, 1, int(bids[0][0]), 5
    order["code"], order["flags"] = Tif.GTC, Side.BUY
    exchange.send(order, start + 1)
    first = exchange.advance(start + SECOND)
    trades = first[first["kind"] == Kind.TRADE]
    assert len(trades) > 0 and bool((trades["ts_event"] == start + SECOND).all())
    exchange.advance(start + 2 * SECOND)
    assert len(exchange.advance(start + 100 * SECOND)) == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"correlation": 1.0}, "not positive definite"),
        ({"correlation": [[1.0]]}, "symmetric, 2 by 2"),
        ({"regimes": [Regime(1.0), Regime(1.0)], "transitions": [[0.5, 0.4], [0.5, 0.5]]}, "each of sum 1"),
        ({"clustering": Clustering(takers=1.1)}, "ratio is 1.1"),
        ({"clustering": Clustering(same_side=1.5)}, "same_side is 1.5"),
        ({"seconds": 0.0}, "seconds is 0"),
        ({"seconds": 1e5, "flow": FlowParams(events_per_s=1e5)}, "events are to be expected"),
        ({"flow": {0: FlowParams()}}, "no parameters for instrument 1"),
    ],
)
def test_a_market_that_cannot_be_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        synthetic([BTC, ETH], **{"seconds": 1.0, **changed})  # type: ignore[arg-type]  # wrong on purpose


def test_a_regime_or_script_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate is 1000"):
        Regime(1.0, rate=1000.0)
    for script, said in (
        (np.zeros((0, 3), np.int64), "shape"),
        (np.array([[2, 0, UNIT], [1, 0, UNIT]]), "descend"),
        (np.array([[0, 4, UNIT]]), "kinds 0 to 3"),
        (np.array([[0, BUY_TAKER, 0]]), "values of a tick"),
    ):
        with pytest.raises(ConfigError, match=said):
            ScriptedFlow(script=script)
