"""A market by order told by price: the books of the real one, and queues that are exact."""

from __future__ import annotations

import random
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hftlab.backtest.data import read_tape
from hftlab.backtest.runner import backtest
from hftlab.books import L2Book, L3Book
from hftlab.convert.formats import open_source
from hftlab.core.definitions import Limits
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, ExecType, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.sim.by_order import NOBODY, by_price
from hftlab.sim.models import Fees, Latency
from hftlab.strategy import BUY, GTC, Strategy, record

ONE = Instrument(0, "sim", "ONEUSD", Decimal("0.01"), Decimal("1"), base="ONE", quote="USD", min_qty=1, max_qty=10**6)
FREE = Limits(2**40, 2**60, 10**9, 10**9, orders_per_s=1_000_000, max_open_orders=500)
BID, ASK, LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
T0, MS = 10**18, 1_000_000


def row(kind: Kind, ms: float, side: int = 0, px: int = 0, qty: int = 0, a: int = 0, b: int = 0) -> RowArray:
    rows = new_rows(1)
    rows["kind"], rows["ts_recv"], rows["flags"] = kind, T0 + int(ms * MS), side | LAST
    rows["px"], rows["qty"], rows["a"], rows["b"] = px, qty, a, b
    return rows


def test_each_change_names_the_arrival_of_the_order_that_it_takes_lots_of() -> None:
    rows = join_rows([
        row(Kind.ADD, 0, BID, 100, 5, a=1), row(Kind.ADD, 1, BID, 100, 7, a=2), row(Kind.REDUCE, 2, qty=2, a=1),
        row(Kind.EXECUTE, 3, px=NO_PX, qty=3, a=1, b=9), row(Kind.REPLACE, 4, px=101, qty=4, a=2, b=3),
        row(Kind.DELETE, 5, a=3), row(Kind.DELETE, 6, a=3), row(Kind.TRADE, 7, ASK, 100, 1),
    ])  # fmt: skip
    told = by_price(rows, [ONE])
    assert [(Kind(k).name, p, q) for k, p, q in told.rows[["kind", "px", "qty"]].tolist()] == [
        ("LEVEL", 100, 5), ("LEVEL", 100, 12), ("LEVEL", 100, 10), ("TRADE", 100, 3), ("LEVEL", 100, 7),
        ("LEVEL", 100, 0), ("LEVEL", 101, 4), ("LEVEL", 101, 0), ("TRADE", 100, 1),
    ]  # fmt: skip
    assert told.marks.tolist() == [NOBODY, NOBODY, 1, 1, NOBODY, 2, NOBODY, 7, NOBODY]
    assert (told.unknown, told.live_already) == (1, 0)
    assert told.rows["flags"][3] == ASK and told.rows["flags"][4] == BID | LAST


@pytest.mark.parametrize("name", ["itch", "lobster", "dbn"])
def test_the_levels_told_are_those_of_the_book_by_order(shared_data: Path, name: str) -> None:
    path, how = {
        "itch": (shared_data / "itch" / "synthetic_8009.itch", {"date": date(2020, 1, 2)}),
        "lobster": (shared_data / "l3" / "AAPL_2012-06-21_34200000_57600000_message_10.csv", {}),
        "dbn": (shared_data / "l3" / "orderbooks_mbo_2024-05-08T00-00-00_2024-05-08T00-00-02.dbn.zst", {}),
    }[name]
    source = open_source(path, **how)  # type: ignore[arg-type]
    rows = join_rows([block.copy() for block in source])
    exact, told = L3Book(), L2Book()
    instruments = max(one.id for one in source.instruments) + 1
    exact.apply(rows)
    told.apply(by_price(rows, [ONE] * instruments).rows)
    for one in source.instruments:
        ours, theirs = told.depth(one.id, 1000), exact.depth(one.id, 1000)
        for mine, true in ((ours.bids, theirs.bids), (ours.asks, theirs.asks)):
            assert mine.px.tolist() == true.px.tolist() and mine.qty.tolist() == true.qty.tolist()
            assert len(mine.px) > 0


class Joins(Strategy):
    """Sends one bid at 100 when the first order has come."""

    state = record(n=0)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        if state.n == 0 and ctx.best_bid(0) != NO_PX and ctx.best_ask(0) != NO_PX:
            ctx.submit(0, BUY, 100, 4, GTC)
            state.n = 1


def filled(rows: list[RowArray]) -> list[tuple[int, int]]:
    """Return (received ms, lots) of the fills; an order of 4 lots is at the exchange at 1 ms."""
    result = backtest(
        Joins(), join_rows(rows), instruments=[ONE], limits=FREE, latency=Latency(MS, 0), fees=Fees(0, 0)
    )
    reports = result.rows[(result.rows["kind"] == Kind.REPORT) & (result.rows["code"] & 255 == ExecType.FILL)]
    assert "by order, so exactly" in result.assumptions
    return [((at - T0) // MS, qty) for at, qty in reports[["ts_recv", "qty"]].tolist()]


def test_only_orders_that_came_earlier_are_ahead() -> None:
    before = [row(Kind.ADD, 0, BID, 100, 5, a=1), row(Kind.ADD, 0, ASK, 105, 9, a=3)]
    before.append(row(Kind.ADD, 0.5, BID, 100, 6, a=2))
    behind = [row(Kind.ADD, 2, BID, 100, 50, a=4)]
    # orders behind us go: nothing changes; one ahead goes: 6 lots are left before us
    gone = [row(Kind.DELETE, 3, a=4), row(Kind.DELETE, 4, a=1)]
    eaten = [row(Kind.EXECUTE, 5, px=NO_PX, qty=6, a=2, b=1)]
    assert filled([*before, *behind, *gone, *eaten]) == []
    late = [row(Kind.ADD, 6, BID, 100, 8, a=5), row(Kind.EXECUTE, 7, px=NO_PX, qty=3, a=5, b=2)]
    # who trades with an order that came after ours would have traded with ours
    assert filled([*before, *behind, *gone, *eaten, *late]) == [(7, 3)]


def test_a_hidden_trade_at_our_price_says_nothing_of_the_queue_and_one_through_it_fills() -> None:
    before = [row(Kind.ADD, 0, BID, 100, 5, a=1), row(Kind.ADD, 0, ASK, 105, 9, a=3)]
    assert filled([*before, row(Kind.TRADE, 5, ASK, 100, 50)]) == []
    assert filled([*before, row(Kind.TRADE, 5, ASK, 99, 50)]) == [(5, 4)]


class _Queue:
    """A first-in first-out queue at one price, with our order in it."""

    def __init__(self) -> None:
        self.orders: list[list[int]] = []  # [reference, lots], 0 is ours

    def take(self, ref: int, lots: int) -> None:
        for order in self.orders:
            if order[0] == ref:
                order[1] -= lots
        self.orders = [order for order in self.orders if order[1] > 0]


@pytest.mark.parametrize("seed", range(20))
def test_ours_fills_when_a_true_queue_says_so(seed: int) -> None:
    """Against a queue that holds our order: what executions of orders behind it would have given it."""
    chance, queue, tape = random.Random(seed), _Queue(), []
    ms, ref, ours, expected = 0.1, 10, 4, []
    tape.append(row(Kind.ADD, 0, BID, 100, 3, a=1))
    tape.append(row(Kind.ADD, 0, ASK, 105, 9, a=2))
    queue.orders.append([1, 3])
    joined = False
    for _ in range(60):
        ms += 0.5
        if ms > 1 and not joined:
            queue.orders.append([0, 10**9])
            joined = True
        others = [order for order in queue.orders if order[0]]
        what = chance.random()
        if what < 0.4 or not others:
            ref += 1
            lots = chance.randint(1, 5)
            tape.append(row(Kind.ADD, ms, BID, 100, lots, a=ref))
            queue.orders.append([ref, lots])
        elif what < 0.7:
            order = chance.choice(others)
            tape.append(row(Kind.DELETE, ms, a=order[0]))
            queue.take(order[0], order[1])
        else:
            order, lots = others[0], chance.randint(1, others[0][1])
            behind = joined and [o[0] for o in queue.orders].index(0) < [o[0] for o in queue.orders].index(order[0])
            tape.append(row(Kind.EXECUTE, ms, px=NO_PX, qty=lots, a=order[0], b=ref))
            queue.take(order[0], lots)
            if behind and ours:
                got = min(ours, lots)
                ours -= got
                expected.append((int(ms), got))
    assert filled(tape) == expected


def test_orders_of_several_sources_are_told_too() -> None:
    tape = read_tape([[(T0, join_rows([row(Kind.ADD, 0, BID, 100, 5, a=1), row(Kind.DELETE, 2, a=1)]))]], [ONE])
    assert tape.marks is not None and tape.marks.tolist() == [0, NOBODY, 2]
    assert tape.rows["kind"].tolist() == [Kind.BOOK_STATE, Kind.LEVEL, Kind.LEVEL]
