"""Pictures against the rows they are drawn from: no extreme lost, no book wrong, nothing to draw told in words."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from bokeh.embed import file_html
from bokeh.models import ColumnDataSource, Title
from bokeh.resources import INLINE
from hypothesis import given
from hypothesis import strategies as st

from hftlab.analysis import plots
from hftlab.analysis.plots import LEVELS, Pictures, overview, sweep_map
from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, ExecType, Kind, new_rows
from hftlab.engine import Replica
from hftlab.services.spec import CAREFUL_LIMITS
from hftlab.sim.exchange import MatchingExchange
from hftlab.strategies.maker import Maker

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")
ETH = Instrument(1, "binance", "ETHUSDT", Decimal("0.01"), Decimal("0.0001"), "ETH", "USDT")


@pytest.fixture(scope="module")
def result() -> Result:
    limits = [Limits.from_decimals(one, CAREFUL_LIMITS[one.symbol]) for one in (BTC, ETH)]
    market = MatchingExchange([BTC, ETH], seed=3)
    return backtest(Maker(), market, instruments=[BTC, ETH], limits=limits, seconds=15)


def replica_before(result: Result, seq: int) -> Replica:
    replica = Replica(result.definitions)
    replica.apply(result.rows[:seq])
    return replica


def source_named(model: Any, name: str) -> dict[str, Any]:
    found = [one for one in model.references() if isinstance(one, ColumnDataSource) and one.name == name]
    assert len(found) == 1
    return dict(found[0].data)


def titles(model: Any) -> list[str]:
    return [one.text for one in model.references() if isinstance(one, Title)]


def test_the_touch_that_is_drawn_is_the_one_the_strategy_saw(result: Result) -> None:
    for one in (BTC, ETH):
        touches = Pictures(result.rows, result.definitions)._touches(one.id)
        assert len(touches.ts) > 100
        for seq in result.fills.filter(symbol=one.symbol)["seq"][::7].to_list():
            bid, _, ask, _ = replica_before(result, seq).touch(one.id)
            now = result.rows["ts_recv"][seq]
            at = int(np.searchsorted(touches.ts, now)) - 1  # what came at the very time of the fill may follow it
            at_or_after = range(at, int(np.searchsorted(touches.ts, now, "right")))
            assert (bid, ask) in {(int(touches.bid_px[k]), int(touches.ask_px[k])) for k in at_or_after}


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(-50, 50)), min_size=1, max_size=200), st.integers(2, 40))
def test_a_thinned_line_loses_no_extreme_and_keeps_its_bound(steps: list[tuple[int, int]], n: int) -> None:
    ts = np.sort(np.array([t for t, _ in steps], np.int64))
    values = np.array([v for _, v in steps], np.float64)
    t, drawn = plots._columns(ts, values, (0, 500), n)
    assert len(t) == len(drawn) <= 2 * n
    assert (np.diff(t) >= 0).all()
    assert np.nanmin(drawn) == values.min() and np.nanmax(drawn) == values.max()


@given(st.lists(st.integers(0, 999), min_size=60, max_size=200), st.integers(0, 999))
def test_every_value_lies_between_the_low_and_high_of_its_column(times: list[int], probe: int) -> None:
    ts = np.sort(np.array(times, np.int64))
    values = np.arange(len(ts), dtype=np.float64) % 17
    _, drawn = plots._columns(ts, values, (0, 999), 50)
    column = probe // 20
    before = int(np.searchsorted(ts, probe, "right")) - 1
    low, high = sorted(drawn[2 * column : 2 * column + 2])
    if before >= 0:
        assert low <= values[before] <= high


def test_the_book_beside_each_fill_is_the_book_just_before_it(result: Result) -> None:
    picture = Pictures(result.rows, result.definitions).price(0)
    books, marks = source_named(picture, "books"), source_named(picture, "fills")
    fills = result.fills.filter(symbol="BTCUSDT")
    assert marks["seq"].tolist() == fills["seq"].to_list() and fills.height > 20
    shape = (fills.height, 2, LEVELS)
    px, qty, own = (books[name].reshape(shape) for name in ("px", "qty", "own"))
    for k in range(0, fills.height, 9):
        replica = replica_before(result, fills["seq"][k])
        for side, levels in enumerate(replica.levels(0, LEVELS)):
            assert px[k, side, : len(levels)].tolist() == levels[:, 0].tolist()
            assert qty[k, side, : len(levels)].tolist() == levels[:, 1].tolist()
        mine = np.zeros((2, LEVELS), np.int64)
        for order in replica.open_orders():
            if order["instrument"] == 0:
                side = order["side"] - 1
                mine[side, px[k, side] == order["px"]] += order["order_qty"] - order["cum_qty"]
        assert own[k].tolist() == mine.tolist()
    assert own.any(), "the maker's orders rest in these books"


def test_what_a_fill_says_is_what_its_report_said(result: Result) -> None:
    marks = source_named(Pictures(result.rows, result.definitions).price(0), "fills")
    row = result.rows[int(marks["seq"][0])]
    side = "buy" if marks["shape"][0] == "triangle" else "sell"
    assert marks["what"][0] == f"maker {side} {row['qty'] * 0.00001:,.5f} at {row['px'] * 0.01:,.2f}"
    assert marks["t"][0] == row["ts_recv"] / 1e6
    assert marks["told"][0] == plots.clock_text(int(row["ts_recv"]), 9)


def test_two_venues_with_one_symbol_are_told_apart(result: Result) -> None:
    twin = dataclasses.replace(ETH, symbol="BTCUSDT", venue="kraken")
    pictures = Pictures(result.rows, dataclasses.replace(result.definitions, instruments=(BTC, twin)))
    assert [pictures.name(k) for k in (0, 1)] == ["BTCUSDT (binance)", "BTCUSDT (kraken)"]
    seqs = [source_named(pictures.price(k), "fills")["seq"].tolist() for k in (0, 1)]
    assert seqs == [result.fills.filter(symbol=symbol)["seq"].to_list() for symbol in ("BTCUSDT", "ETHUSDT")]


def test_a_long_run_is_thinned_and_says_so(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "FILLS", 10)
    picture = Pictures(result.rows, result.definitions).overview(0)
    n = result.fills.filter(symbol="BTCUSDT").height
    assert any(f"10 of {n} fills, taken evenly" in title for title in titles(picture))
    assert len(source_named(picture, "fills")["seq"]) == 10
    assert len(source_named(picture, "books")["px"]) == 10 * 2 * LEVELS
    most = max(len(v) for one in picture.references() if isinstance(one, ColumnDataSource) for v in one.data.values())
    assert most <= 2 * plots.COLUMNS


def test_an_overview_is_small_and_takes_the_instrument_with_most_fills(result: Result) -> None:
    most = result.fills["symbol"].value_counts(sort=True)["symbol"][0]
    picture = overview(result.rows, result.definitions)
    assert any(title.startswith(f"Price {most}") for title in titles(picture))
    assert len(file_html(picture, INLINE)) < 5_000_000


def test_a_depth_maps_last_column_is_the_book_at_the_end(result: Result) -> None:
    pictures = Pictures(result.rows, result.definitions)
    fig: Any = pictures.depth_map(0)
    sources = [dict(one.data) for one in fig.references() if isinstance(one, ColumnDataSource)]
    (image,) = (data["image"][0] for data in sources if "image" in data)
    assert image.shape[0] <= plots.MAP_SHAPE[1] + 1 and image.shape[1] <= plots.MAP_SHAPE[0]
    low, _, step = plots._map_prices(pictures._touches(0))
    lots = np.zeros(image.shape[0])
    for levels in replica_before(result, len(result.rows)).levels(0, 2000):
        rows = (levels[:, 0] - low) // step
        inside = (rows >= 0) & (rows < len(lots))
        np.add.at(lots, rows[inside], levels[inside, 1])
    drawn = np.where(np.isnan(image[:, -1]), 0, 10.0 ** (image[:, -1] + 5))
    assert lots.any() and drawn == pytest.approx(lots, rel=1e-5)


def test_nothing_and_one_fill_are_drawn(result: Result) -> None:
    seq = result.fills["seq"][0]
    for rows in (new_rows(0), result.rows[:1], result.rows[: seq + 2]):
        pictures = Pictures(rows, result.definitions)
        for picture in (pictures.overview(), pictures.depth_map(0), pictures.latencies()):
            assert len(file_html(picture, INLINE)) > 1000
    assert any("1 fill " in title for title in titles(Pictures(result.rows[: seq + 2], result.definitions).overview()))


def test_waits_are_from_the_decision_to_the_first_report_and_the_first_fill(result: Result) -> None:
    rows = result.rows
    decided = {int(r["a"]): int(r["ts_recv"]) for r in rows if r["kind"] in (Kind.SUBMIT, Kind.REPLACE_ORDER)}
    answered: dict[int, int] = {}
    filled: dict[int, int] = {}
    for r in rows[rows["kind"] == Kind.REPORT]:
        answered.setdefault(int(r["a"]), int(r["ts_recv"]) - decided[int(r["a"])])
        if int(r["code"]) & 255 == ExecType.FILL:
            filled.setdefault(int(r["a"]), int(r["ts_recv"]) - decided[int(r["a"])])
    first, fill = Pictures(rows, result.definitions)._waits()
    assert sorted(first) == sorted(answered.values()) and sorted(fill) == sorted(filled.values())
    assert min(first) == max(first) == 2_000_000, "one millisecond each way"


def test_orders_that_wait_are_those_neither_filled_nor_gone(result: Result) -> None:
    rows = result.rows
    decided = {int(r["a"]): int(r["ts_recv"]) for r in rows if r["kind"] in (Kind.SUBMIT, Kind.REPLACE_ORDER)}
    instead = {int(r["a"]): int(r["b"]) for r in rows[rows["kind"] == Kind.REPLACE_ORDER]}
    ended: dict[int, tuple[int, bool]] = {}
    refused = set()
    for r in rows[rows["kind"] == Kind.REPORT]:
        what, of = ExecType(int(r["code"]) & 255), int(r["a"])
        if what == ExecType.REJECT:
            refused.add(of)
        elif what == ExecType.REPLACED:
            ended.setdefault(instead[of], (int(r["ts_recv"]), False))
        elif what in (ExecType.FILL, ExecType.CANCELED, ExecType.EXPIRED):
            ended.setdefault(of, (int(r["ts_recv"]), what == ExecType.FILL))
    end = Pictures(rows, result.definitions).span[1]
    told = {of: ended.get(of, (end, False)) for of in decided if of not in refused}
    took, filled = Pictures(rows, result.definitions)._lives()
    assert sorted(zip(took.tolist(), filled.tolist(), strict=True)) == sorted(
        (at - decided[of], fill) for of, (at, fill) in told.items()
    )
    assert 0 < filled.sum() < len(filled)


def test_a_sweeps_cell_is_the_median_of_its_trials() -> None:
    trials = pl.DataFrame(
        {"edge": [0, 0, 0, 1, 1], "cap": [1.5, 1.5, 1.5, 1.5, 2.0], "net": [1.0, 9.0, 2.0, -4.0, float("nan")]}
    )
    picture: Any = sweep_map(trials, "edge", "cap", "net")
    (cells,) = (dict(one.data) for one in picture.references() if isinstance(one, ColumnDataSource) and "z" in one.data)
    found = {(x, y): z for x, y, z in zip(cells["x"], cells["y"], cells["z"], strict=True)}
    assert found == {("0", "1.5"): 2.0, ("1", "1.5"): -4.0}
    assert picture.title.text == "net by edge and cap · 5 trials, median of each cell"


def test_a_sweep_without_a_result_says_so() -> None:
    trials = pl.DataFrame({"edge": [0], "cap": [1], "net": [None]}, schema_overrides={"net": pl.Float64})
    assert "no trial with a result" in file_html(sweep_map(trials, "edge", "cap", "net"), INLINE)


def test_a_missing_side_is_no_line_rather_than_a_price(result: Result) -> None:
    rows = new_rows(2)
    rows["kind"], rows["flags"], rows["px"], rows["qty"] = Kind.QUOTE, [5, 5], [100, 0], [3, 0]
    rows["ts_recv"] = [10, 20]
    touches = Pictures(rows, result.definitions)._touches(0)
    assert touches.bid_px.tolist() == [100, NO_PX] and touches.ask_px.tolist() == [NO_PX, NO_PX]
    picture: Any = Pictures(rows, result.definitions).price(0)
    lines = [dict(one.data) for one in picture.references() if isinstance(one, ColumnDataSource) and "x" in one.data]
    drawn = np.concatenate([line["y"] for line in lines if "y" in line and "text" not in line])
    assert len(drawn) and set(drawn[np.isfinite(drawn)].tolist()) <= {1.0}


def test_a_markout_is_the_mid_after_the_horizon_less_the_price_paid(result: Result) -> None:
    fills = result.fills.filter(symbol="BTCUSDT")
    times, is_head = result.rows["ts_recv"], result.rows["kind"] != Kind.CONT
    horizon, gains, end = 10**8, [], int(times[is_head].max())
    for seq, side, px in zip(fills["seq"], fills["side"], fills["px_ticks"], strict=True):
        at = int(times[seq]) + horizon
        heads = np.flatnonzero(is_head & (times <= at))
        bid, _, ask, _ = replica_before(result, int(heads[-1]) + 1 + int(result.rows["span"][heads[-1]])).touch(0)
        if at <= end:
            gains.append(((bid + ask) / 2 - px) * (1 if side == "buy" else -1))
    ns, mean, half = Pictures(result.rows, result.definitions)._markouts(0)["all"]
    k = ns.tolist().index(horizon)
    assert mean[k] == pytest.approx(np.mean(gains))
    assert half[k] == pytest.approx(1.96 * np.std(gains, ddof=1) / len(gains) ** 0.5)
