"""The touch against a slow book, averages against pandas, and what is missing is null."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.analysis.market import _held_means, bad_rows, market_frame, touches, volume_profile
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, BookState, Flag, Kind, RowArray, new_rows

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.001"), "BTC", "USDT")
ETH = Instrument(1, "binance", "ETHUSDT", Decimal("0.01"), Decimal("0.001"), "ETH", "USDT")
LIMIT = Limits(max_order_qty=10**9, max_notional=10**15, max_position=10**9, collar_ticks=10**6)
MADE = Definitions("t", "backtest", (BTC, ETH), (LIMIT, LIMIT), StrategyRef("None", ""))
T0, SECOND = 10**18, 10**9

_steps = st.lists(
    st.tuples(
        st.sampled_from([Kind.LEVEL] * 6 + [Kind.QUOTE, Kind.CLEAR, Kind.BOOK_STATE, Kind.TRADE]),
        st.integers(0, 1), st.booleans(), st.integers(95, 105), st.integers(0, 3), st.booleans(), st.integers(0, 3),
    ), max_size=80,
)  # fmt: skip


def stream(steps: list[tuple[Any, ...]]) -> RowArray:
    rows = new_rows(len(steps))
    for row, (kind, instrument, is_bid, px, qty, last, gap) in zip(rows, steps, strict=True):
        row["kind"], row["instrument"], row["px"], row["qty"] = kind, instrument, px, qty
        row["flags"] = (Flag.BID if is_bid else Flag.ASK) | (Flag.LAST if last else 0)
        if kind == Kind.BOOK_STATE:
            row["code"] = [BookState.LIVE, BookState.STALE, BookState.RESYNCING, BookState.LIVE][qty]
        row["ts_recv"] = gap
    rows["ts_recv"] = T0 + np.cumsum(rows["ts_recv"])
    return rows


def slow_touches(rows: RowArray, instrument: int, depth: int) -> list[tuple[int, ...]]:
    """Two dicts and a quote: what the kernel must write."""
    sides: list[dict[int, int]] = [{}, {}]
    quote: list[tuple[int, int]] | None = None
    state, out = 0, []
    before: tuple[int, ...] = (NO_PX, 0, NO_PX, 0, 0, 0)

    def best(k: int) -> tuple[int, int]:
        px = (max if k == 0 else min)(sides[k], default=NO_PX)
        return px, sides[k].get(px, 0)

    for row in rows[rows["instrument"] == instrument]:
        kind, k = row["kind"], 0 if row["flags"] & Flag.BID else 1
        px, qty, last = int(row["px"]), int(row["qty"]), bool(row["flags"] & Flag.LAST)
        if kind == Kind.LEVEL:
            sides[k].pop(px, None)
            sides[k].update({px: qty} if qty else {})
            quote = None if last else quote
        elif kind == Kind.QUOTE:
            quote = quote or [best(0), best(1)]
            quote[k] = (px if qty else NO_PX, qty)
        elif kind == Kind.CLEAR:
            sides, quote = [{}, {}], None
        elif kind == Kind.BOOK_STATE:
            state = int(row["code"])
        if not last or kind == Kind.TRADE:
            continue
        now: tuple[int, ...] = (NO_PX, 0, NO_PX, 0, 0, 0)
        if state not in (BookState.STALE, BookState.RESYNCING):
            tops = quote or [best(0), best(1)]
            sums = []
            for side in (0, 1):
                near = sorted(sides[side], reverse=side == 0)[:depth]
                sums.append(sum(sides[side][p] for p in near) if near else (tops[side][1] if quote else 0))
            now = (*tops[0], *tops[1], *sums)
        if now != before:
            out.append((int(row["ts_recv"]), *now))
            before = now
    return out


@settings(deadline=None)
@given(_steps, st.integers(1, 3))
def test_the_touches_are_those_of_a_slow_book(steps: list[tuple[Any, ...]], depth: int) -> None:
    rows = stream(steps)
    for instrument in (0, 1):
        line = touches(rows, instrument, depth)
        assert list(zip(*(part.tolist() for part in line), strict=True)) == slow_touches(rows, instrument, depth)


def test_a_mid_is_that_of_the_touch_then_and_none_before_the_first() -> None:
    rows = stream([(Kind.LEVEL, 0, True, 99, 1, False, 0), (Kind.LEVEL, 0, False, 101, 1, True, 5),
                   (Kind.LEVEL, 0, False, 100, 1, True, 5)])  # fmt: skip
    line = touches(rows)
    assert line.ts.tolist() == [T0 + 5, T0 + 10]
    assert line.mid_at([T0 + 5, T0 + 9, T0 + 10]).tolist() == [100.0, 100.0, 99.5]
    assert np.isnan(line.mid_at([T0 + 4])).all() and np.isnan(line.mid_at([T0 + 5], before=True)).all()
    assert line.mid_at([T0 + 10], before=True).tolist() == [100.0]
    with pytest.raises(ConfigError, match="expected 1 or more levels"):
        touches(rows, depth=0)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1.0, 2.5, math.nan, 4.0])), max_size=12))
def test_a_mean_by_time_is_the_mean_of_every_nanosecond(steps: list[tuple[int, float]]) -> None:
    ts = np.cumsum([gap for gap, _ in steps]).astype(np.int64)
    edges = np.arange(0, 101, 20, dtype=np.int64)
    every = pd.Series(np.nan, index=range(int(max(ts, default=0)) + 101))
    for at, (_, value) in zip(ts.tolist(), steps, strict=True):
        every.loc[at:] = value
    expected = [every.loc[a : b - 1].mean() for a, b in itertools.pairwise(edges)]
    found = _held_means(ts, np.array([value for _, value in steps]), edges)
    assert found == pytest.approx(np.array(expected), nan_ok=True)


def test_the_market_of_two_intervals_is_what_one_computes_by_hand() -> None:
    rows = stream([
        (Kind.LEVEL, 0, True, 99, 3, False, 0), (Kind.LEVEL, 0, False, 101, 1, True, 0),
        (Kind.TRADE, 0, True, 101, 2, True, 0), (Kind.LEVEL, 0, False, 103, 1, False, 0),
        (Kind.LEVEL, 0, False, 101, 0, True, 0), (Kind.TRADE, 0, False, 99, 1, True, 0),
        (Kind.LEVEL, 0, False, 103, 1, True, 0),
    ])  # fmt: skip
    rows["ts_recv"] = T0 + np.array([0, 0, 2, 5, 5, 15, 20]) * SECOND // 10
    first, second = market_frame(rows, MADE, "1s", 5).filter(symbol="BTCUSDT").to_dicts()
    assert first["spread"] == pytest.approx(0.03) and second["spread"] == pytest.approx(0.04)
    assert first["mid"] == pytest.approx(1.01) and first["bid_depth"] == pytest.approx(0.003)
    assert first["imbalance"] == pytest.approx(0.75)
    assert first["volatility"] == pytest.approx(math.log(1.01)) and second["volatility"] == 0.0
    assert (first["buy_volume"], first["sell_volume"], first["trades"]) == (0.002, 0.0, 1)
    assert (second["volume"], second["sell_volume"], second["vwap"]) == (0.001, 0.001, pytest.approx(0.99))
    silent = market_frame(rows, MADE, "1s", 5).filter(symbol="ETHUSDT").to_dicts()
    assert {line["mid"] for line in silent} == {line["vwap"] for line in silent} == {None}
    assert market_frame(rows[:0], MADE).height == 0
    profile = volume_profile(rows, MADE)
    assert profile["px_ticks"].to_list() == [99, 101] and profile["share"].to_list() == pytest.approx([1 / 3, 2 / 3])
    assert volume_profile(rows, MADE, 0, 10)["px_ticks"].to_list() == [90, 100]
    assert volume_profile(rows, MADE, 1).height == 0


def test_rows_that_cannot_be_true_are_counted_each_once() -> None:
    rows = stream([(Kind.LEVEL, 0, True, 99, 3, True, 1)] * 9)
    assert bad_rows(rows) == (0, 9) and bad_rows(rows[:0]) == (0, 0)
    rows["flags"][0] = Flag.LAST  # no side
    rows["qty"][1] = -1
    rows["px"][2] = 0
    rows["kind"][3], rows["qty"][3] = Kind.TRADE, 0
    rows["ts_recv"][4] = T0
    rows["kind"][5], rows["code"][5], rows["b"][5] = Kind.BOOK_STATE, BookState.RESYNCING, 7
    rows["kind"][6] = Kind.CLOCK
    rows["qty"][7], rows["px"][7] = 0, 0  # an empty quote
    assert bad_rows(rows) == (6, 8)
