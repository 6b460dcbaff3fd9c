"""The grid: what it wants at each look, on a market that is written down here."""

from __future__ import annotations

from decimal import Decimal

import pytest

from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.core.rows import Flag, Kind, RowArray, new_rows
from hftlab.sim.models import Fees, Latency
from hftlab.strategies.grid import Grid

X = Instrument(0, "test", "X", Decimal("0.1"), Decimal("1"), "X", "USD")
LIMITS = Limits(max_order_qty=10, max_notional=10**9, max_position=500, collar_ticks=1000, orders_per_s=10_000)
MS = 1_000_000
Told = tuple[int, Kind, Flag, int, int]


def market(*told: Told) -> RowArray:
    """Return rows of (ms, kind, side, px, qty)."""
    rows = new_rows(len(told))
    for row, (at, kind, side, px, qty) in zip(rows, told, strict=True):
        row["ts_recv"] = row["ts_event"] = 10**18 + at * MS
        row["kind"], row["flags"], row["px"], row["qty"] = kind, side | Flag.LAST, px, qty
    return rows


def touch(at: int, bid: int, ask: int) -> tuple[Told, Told]:
    return (at, Kind.LEVEL, Flag.BID, bid, 5), (at, Kind.LEVEL, Flag.ASK, ask, 5)


def run(grid: Grid, *told: Told) -> Result:
    return backtest(
        grid, market(*told), instruments=[X], limits=LIMITS, latency=Latency(MS, MS), fees=Fees(maker_e8=0, taker_e8=0)
    )


def sent(result: Result, kind: Kind) -> list[tuple[int, int, int]]:
    """Return orders or cancels as (ms, +1 for a buy, px); of a cancel the order's."""
    rows = result.rows
    orders = {int(row["a"]): row for row in rows[rows["kind"] == Kind.SUBMIT]}
    told = []
    for row in rows[rows["kind"] == kind]:
        order = orders[int(row["a"])]
        sign = 1 if order["flags"] & int(Flag.BID) else -1
        told.append((int(row["ts_recv"] - 10**18) // MS, sign, int(order["px"])))
    return told


END = (950, Kind.LEVEL, Flag.ASK, 2000, 1)  # far away: it only lets time pass


@pytest.mark.parametrize("compiled", [True, False])
def test_orders_lie_at_each_level_from_the_touch_outwards(compiled: bool) -> None:
    result = run(Grid(levels=3, compiled=compiled), *touch(0, 1000, 1002), END)
    assert sent(result, Kind.SUBMIT) == [(100, 1, px) for px in (1000, 999, 998)] + [
        (100, -1, px) for px in (1002, 1003, 1004)
    ]
    assert all(row["flags"] & int(Flag.POST_ONLY) for row in result.rows[result.rows["kind"] == Kind.SUBMIT])


def test_what_the_touch_left_behind_is_canceled_and_only_what_is_missing_sent() -> None:
    moved = ((150, Kind.LEVEL, Flag.BID, 1001, 5),)
    result = run(Grid(levels=2), *touch(0, 1000, 1003), *moved, END)
    assert sent(result, Kind.SUBMIT)[4:] == [(200, 1, 1001)]
    assert sent(result, Kind.CANCEL)[0] == (200, 1, 999)


def test_at_the_cap_one_side_is_canceled_and_no_longer_sent() -> None:
    sold = (150, Kind.TRADE, Flag.ASK, 1000, 6)  # five are ahead of ours
    result = run(Grid(levels=2, cap_lots=1), *touch(0, 1000, 1002), sold, END)
    assert result.counters["fills"] == 1
    assert [one for one in sent(result, Kind.SUBMIT) if one[0] > 100] == []
    assert [one for one in sent(result, Kind.CANCEL) if one[0] < 900] == [(200, 1, 999)]


def test_a_filled_order_is_sent_again() -> None:
    sold = (150, Kind.TRADE, Flag.ASK, 1000, 6)
    result = run(Grid(levels=1), *touch(0, 1000, 1002), sold, END)
    assert sent(result, Kind.SUBMIT) == [(100, 1, 1000), (100, -1, 1002), (200, 1, 1000)]


def test_without_a_book_nothing_is_sent() -> None:
    result = run(Grid(), (0, Kind.LEVEL, Flag.BID, 1000, 5), END)
    assert sent(result, Kind.SUBMIT) == []


def test_looks_keep_their_distance_from_the_first() -> None:
    result = run(Grid(levels=1, interval_ns=70 * MS), *touch(0, 1000, 1002), END)
    timers = result.rows[result.rows["kind"] == Kind.TIMER]
    assert ((timers["px"] - 10**18) // MS).tolist() == list(range(70, 950, 70))


def test_more_levels_than_there_are_places_for_are_cut() -> None:
    result = run(Grid(levels=40), *touch(0, 1000, 1002), END)
    assert len(sent(result, Kind.SUBMIT)) == 32
