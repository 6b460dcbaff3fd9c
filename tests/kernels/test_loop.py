"""The loop's own corners: clocks, quotes, book states, queries. What it does as a whole is in tests/test_engine.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from hftlab.core.rows import NAT, NO_PX, BookState, ExecType, Flag, Kind, Side
from hftlab.engine import control_row
from hftlab.kernels import loop
from hftlab.strategy import PythonStrategy


class Told(PythonStrategy):
    """Writes down which callbacks ran."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def on_book(self, ctx: Any, event: Any) -> None:
        self.heard.append("book")

    def on_trade(self, ctx: Any, event: Any) -> None:
        self.heard.append("trade")

    def on_execution(self, ctx: Any, event: Any) -> None:
        self.heard.append("execution")

    def on_gap(self, ctx: Any, event: Any) -> None:
        self.heard.append("gap")


@pytest.fixture
def told(desk: Any) -> Any:
    """Return the desk with a strategy that listens."""
    from hftlab.engine import Engine

    desk.strategy = Told()
    desk.engine = Engine(desk.definitions, desk.strategy)
    desk.feed(control_row("start", desk.now))
    desk.book(1000, 1010)
    return desk


def heard(told: Any) -> list[str]:
    words, told.strategy.heard = told.strategy.heard, []
    return list(words)


def test_on_book_fires_once_a_message_and_never_inside_a_snapshot_or_on_a_book_in_doubt(told: Any) -> None:
    assert heard(told) == ["book"], "when it went live, not at its snapshot"
    told.feed(told.row(Kind.LEVEL, px=1001, qty=1, flags=Flag.BID))
    assert heard(told) == []
    told.feed(told.row(Kind.LEVEL, px=1002, qty=1, flags=Flag.BID | Flag.LAST, a=3))
    assert heard(told) == ["book"]
    told.feed(told.row(Kind.BOOK_STATE, code=BookState.STALE))
    assert heard(told) == ["gap"]
    told.feed(told.row(Kind.LEVEL, px=1003, qty=1, flags=Flag.BID | Flag.LAST, a=4))
    told.feed(told.row(Kind.QUOTE, px=1003, qty=1, flags=Flag.BID | Flag.LAST, a=9))
    assert heard(told) == []
    told.feed(told.row(Kind.BOOK_STATE, code=BookState.LIVE))
    assert heard(told) == ["book"]


def test_a_duplicate_or_foreign_or_illegal_report_wakes_nobody(told: Any) -> None:
    heard(told)
    told.report(99, ExecType.ACK)
    told.report(0, ExecType.FILL, qty=1)
    assert heard(told) == []


def test_a_quote_newer_than_the_book_is_the_touch_until_the_book_overtakes_it(desk: Any) -> None:
    desk.feed(desk.row(Kind.QUOTE, px=1002, qty=7, flags=Flag.BID, a=5))
    desk.feed(desk.row(Kind.QUOTE, px=1008, qty=8, flags=Flag.ASK | Flag.LAST, a=5))
    assert desk.engine.touch(0) == (1002, 7, 1008, 8)
    desk.feed(desk.row(Kind.QUOTE, px=1003, qty=1, flags=Flag.BID | Flag.LAST, a=1))
    assert desk.engine.touch(0)[0] == 1002, "older than the book"
    desk.feed(desk.row(Kind.LEVEL, px=1001, qty=3, flags=Flag.BID | Flag.LAST, a=6))
    assert desk.engine.touch(0) == (1001, 3, 1010, 50)


def test_one_side_of_a_quote_leaves_the_other_as_the_book_has_it(desk: Any) -> None:
    desk.feed(desk.row(Kind.QUOTE, px=1002, qty=7, flags=Flag.BID | Flag.LAST, a=5))
    assert desk.engine.touch(0) == (1002, 7, 1010, 50)


def test_a_cleared_book_forgets_its_quote_too(desk: Any) -> None:
    desk.feed(desk.row(Kind.QUOTE, px=1002, qty=7, flags=Flag.BID | Flag.LAST, a=5))
    desk.feed(desk.row(Kind.CLEAR))
    assert desk.engine.touch(0) == (NO_PX, 0, NO_PX, 0)


def test_queries_answer_for_what_there_is_and_say_so_for_what_there_is_not(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(instruments=2)
    order = desk.submit(qty=10)
    desk.submit(Side.SELL, 1010, 4)

    def ask(ctx: Any) -> dict[str, Any]:
        return {
            "touch": (ctx.best_bid(0), ctx.best_bid_qty(0), ctx.best_ask(0), ctx.best_ask_qty(0)),
            "depth": (ctx.depth(0, 1, 0), ctx.depth(0, 2, 0), ctx.depth(0, 1, 1), ctx.depth(0, 1, -1)),
            "order": (ctx.order_status(order), ctx.order_leaves(order), ctx.order_px(order)),
            "no order": (ctx.order_status(99), ctx.order_leaves(0), ctx.order_px(-1)),
            "working": (ctx.working_buy(0), ctx.working_sell(0), ctx.working_buy(1), ctx.open_orders()),
            "state": (ctx.book_state(0), ctx.book_state(9), ctx.position(0), ctx.position(-1)),
            "nothing": (ctx.best_bid(9), ctx.best_ask(-1), ctx.last_px(9), ctx.last_px(1), ctx.depth(9, 1, 0)),
            "last": ctx.last_px(0),
            "extremes": (ctx.best_bid(2**63 - 1), ctx.best_bid(NAT), ctx.order_px(NAT)),
        }

    assert desk.do(ask) == {
        "touch": (1000, 50, 1010, 50),
        "depth": ((1000, 50), (1010, 50), (NO_PX, 0), (NO_PX, 0)),
        "order": (1, 10, 1000),
        "no order": (0, 0, NO_PX),
        "working": (10, 4, 0, 2),
        "state": (1, 0, 0, 0),
        "nothing": (NO_PX, NO_PX, NO_PX, NO_PX, (NO_PX, 0)),
        "last": 1005,
        "extremes": (NO_PX, NO_PX, NO_PX),
    }


def splitmix(state: int) -> tuple[int, int]:
    """Return the next state and number, by the published algorithm."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return state, z ^ (z >> 31)


def test_random_is_the_published_sequence_of_the_seed(desk: Any) -> None:
    got, state = desk.do(lambda ctx: [ctx.random() for _ in range(200)]), 1
    for number in got:
        state, bits = splitmix(state)
        assert number == (bits >> 11) / 2**53
        assert 0 <= number < 1
    assert abs(math.fsum(got) / 200 - 0.5) < 0.1


def test_notes_carry_their_numbers_and_end_with_the_atom_s_room(desk: Any) -> None:
    answers = desk.do(lambda ctx: [ctx.note(70_000, -1, k) for k in range(2000)])
    assert answers.count(1) <= 1024 and answers[-1] == 0
    note = desk.last(Kind.NOTE)
    assert (note["code"], note["px"], note["qty"]) == (70_000 & 0xFFFF, -1, answers.count(1) - 1)


def test_only_a_gap_that_was_seen_counts_as_one(desk: Any) -> None:
    desk.feed(desk.row(Kind.BOOK_STATE, code=BookState.RESYNCING, a=5, b=0))
    assert desk.counter("book_gaps") == 0
    desk.feed(desk.row(Kind.BOOK_STATE, code=BookState.RESYNCING, a=5, b=9))
    assert desk.counter("book_gaps") == 1


def test_timer_numbers_go_on_and_a_timer_row_without_a_timer_is_nothing(desk: Any) -> None:
    assert desk.do(lambda ctx: [ctx.set_timer(50), ctx.set_timer(40)]) == [1, 2]
    desk.feed(desk.row(Kind.TIMER, a=2))
    desk.feed(desk.row(Kind.TIMER, a=2))
    desk.feed(desk.row(Kind.TIMER, a=2**63))
    assert (desk.counter("n_timers"), desk.engine.next_deadline) == (1, 50)
    assert desk.do(lambda ctx: ctx.set_timer(45)) == 3
    assert loop.due_timer(desk.engine.arena.ctypes.data) == 3
