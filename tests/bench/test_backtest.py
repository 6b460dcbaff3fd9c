"""The backtest benchmark: its market, its counts, and how fills are told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from hftlab.bench.backtest import INSTRUMENT, Replays, draw_events, fills_of, prepare
from hftlab.bench.run import Plan
from hftlab.books import L2Book
from hftlab.convert.events import event_rows
from hftlab.convert.hftbacktest import TRADE
from hftlab.core.rows import Flag, Kind
from hftlab.strategies.grid import Grid


def test_the_drawn_market_is_the_same_for_a_seed_and_in_order() -> None:
    events = draw_events(5000)
    assert events.tobytes() == draw_events(5000).tobytes() != draw_events(5000, seed=6).tobytes()
    assert (np.diff(events["exch_ts"]) > 0).all() and (np.diff(events["local_ts"]) > 0).all()
    assert (events["local_ts"][1:] - events["exch_ts"][1:] >= 500_000).all()


def test_trades_of_the_drawn_market_are_at_the_touch_and_its_book_never_crosses() -> None:
    events = draw_events(5000)
    rows, book, trades = event_rows(events, INSTRUMENT), L2Book(1000), 0
    for k in range(1, len(rows)):
        row = rows[k]
        if row["kind"] == Kind.TRADE:
            best = book.depth(n=1).asks if row["flags"] & int(Flag.BID) else book.depth(n=1).bids
            assert best[0][0] == row["px"]
            trades += 1
        book.apply(rows[k : k + 1])
        if k > 2:
            depth = book.depth(n=1)
            assert depth.bids[0][0] < depth.asks[0][0]
    assert trades == int((events["ev"] & np.uint64(0xFF) == TRADE).sum()) > 300


def test_fills_of_the_grid_are_those_that_hftbacktest_gave(tmp_path: Path) -> None:
    """hftbacktest 2.4.4 on the same 20,000 events, up to what its last step saw; 515 fills, each by time, side, px."""
    ours = Replays(Plan(tmp_path), event_rows(draw_events(20_000), INSTRUMENT))
    result, _ = ours.run(Grid(), ours.rows)
    fills = sorted(one for one in fills_of(result.own).elements() if one[0] <= 1_700_000_019_999_000_000)
    assert len(fills) == 515 and fills[-1] == (1_700_000_019_950_250_737, 1, 99_975)
    assert hashlib.sha256(repr(fills).encode()).hexdigest()[:16] == "9d8f025c6e058afa"


def test_every_case_gives_a_figure_on_a_small_market(tmp_path: Path) -> None:
    plan = Plan(tmp_path, scale=1e-9)
    cases, ratios = prepare(plan)
    assert [case.name for case in cases if case.run() > 0] == [
        "grid_ns", "grid_memory_ns", "replay_ns", "each_event_ns", "python_book_us", "quotes_us", "quotes_python_us",
        "convert_ns",
    ]  # fmt: skip
    assert ratios == [] and not any(tmp_path.iterdir())
