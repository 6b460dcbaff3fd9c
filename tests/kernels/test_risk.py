"""Each refusal, their order, the rate, and that nothing goes out unchecked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftlab.core.instruments import INT64_MAX
from hftlab.core.rows import NAT, BookState, ExecType, Flag, Kind, OrdType, Reason, Side, Tif
from hftlab.engine import Replica, control_row
from hftlab.kernels.state import MAX_REFUSED_ROWS

R = Reason
WORDS = 2**61


def refused(desk: Any, reason: Reason, **order: int) -> None:
    """Assert that an order is refused for `reason`, that a REFUSED row says so, and that nothing else happened."""
    before = (desk.working(), desk.counter("submits"), desk.counter("open_orders"), desk.counter("next_order_id"))
    assert Reason(-desk.submit(**order)) == reason
    row = desk.last(Kind.REFUSED)
    assert (row["code"], row["qty"]) == (reason, order.get("qty", 10))
    after = (desk.working(), desk.counter("submits"), desk.counter("open_orders"), desk.counter("next_order_id"))
    assert after == before


def test_an_order_in_bounds_goes_out_as_it_was_asked_for(desk: Any) -> None:
    order = desk.submit(Side.SELL, 1010, 10, Tif.DAY, Flag.POST_ONLY)
    row = desk.last(Kind.SUBMIT)
    assert (row["a"], row["px"], row["qty"], row["code"]) == (order, 1010, 10, Tif.DAY)
    assert row["flags"] & 0x3FB == Flag.ASK | Flag.POST_ONLY | Flag.OUTPUT | (row["flags"] & Flag.COMMIT)
    assert desk.working() == (0, 10)


def test_the_kill_switch_refuses_and_cancels_until_it_is_released(desk: Any) -> None:
    order = desk.submit()
    desk.feed(control_row("halt", desk.now))
    assert desk.last(Kind.CANCEL)["a"] == order
    refused(desk, R.KILL_SWITCH)
    desk.feed(control_row("resume", desk.now))
    assert desk.submit() > 0


def test_a_halt_during_a_replace_cancels_both_legs(desk: Any) -> None:
    old = desk.submit()
    desk.report(old, ExecType.ACK)
    new = desk.replace(old, 999, 5)
    desk.feed(control_row("halt", desk.now))
    rows = desk.sink.rows()
    assert sorted(rows["a"][rows["kind"] == Kind.CANCEL]) == [old, new]


def test_nothing_goes_out_while_the_order_connection_is_down(desk: Any) -> None:
    desk.feed(control_row("disconnect", desk.now))
    refused(desk, R.DISCONNECTED)
    desk.feed(control_row("connect", desk.now))
    assert desk.submit() > 0


@pytest.mark.parametrize("state", [s for s in BookState if s != BookState.LIVE], ids=lambda s: s.name)
def test_a_book_that_is_not_live_refuses(desk: Any, state: BookState) -> None:
    desk.book(1000, 1010, state=state)
    if state == BookState.CROSSED:
        desk.book(1010, 1000)
    refused(desk, R.BOOK_STATE)


def test_a_live_book_that_crosses_refuses_until_it_uncrosses(desk: Any) -> None:
    desk.feed(desk.row(Kind.LEVEL, px=1010, qty=5, flags=Flag.BID | Flag.LAST, a=2))
    assert desk.engine.instruments["book_state"][0] == BookState.CROSSED
    refused(desk, R.BOOK_STATE)
    desk.feed(desk.row(Kind.LEVEL, px=1010, qty=0, flags=Flag.BID | Flag.LAST, a=3))
    assert desk.submit() > 0


def test_a_crossed_quote_over_a_sound_book_refuses(desk: Any) -> None:
    desk.feed(desk.row(Kind.QUOTE, px=1011, qty=5, flags=Flag.BID | Flag.LAST, a=9))
    refused(desk, R.BOOK_STATE)


def test_an_older_quote_does_not_move_the_touch_back(desk: Any) -> None:
    desk.feed(desk.row(Kind.QUOTE, px=1002, qty=5, flags=Flag.BID | Flag.LAST, a=9))
    desk.feed(desk.row(Kind.QUOTE, px=1004, qty=5, flags=Flag.BID | Flag.LAST, a=8))
    assert desk.engine.touch(0)[0] == 1002


def test_a_side_without_levels_refuses(desk: Any) -> None:
    desk.feed(desk.row(Kind.LEVEL, px=1010, qty=0, flags=Flag.ASK | Flag.LAST, a=2))
    refused(desk, R.BOOK_STATE)


@pytest.mark.parametrize(
    "reason,order",
    [
        (R.UNKNOWN_INSTRUMENT, {"instrument": 1}),
        (R.UNKNOWN_INSTRUMENT, {"instrument": -1}),
        (R.UNKNOWN_INSTRUMENT, {"instrument": INT64_MAX}),
        (R.BAD_SIDE, {"side": 0}),
        (R.BAD_SIDE, {"side": 3}),
        (R.BAD_SIDE, {"side": 7, "flags": Flag.REDUCE_ONLY}),
        (R.BAD_TIF, {"tif": Tif.GTD}),
        (R.BAD_TIF, {"tif": -1}),
        (R.BAD_TIF, {"flags": Flag.OUTPUT}),
        (R.BAD_TIF, {"flags": -1}),
        (R.BAD_TIF, {"tif": Tif.IOC, "flags": Flag.POST_ONLY}),
        (R.BAD_TIF, {"px": NAT}),
        (R.BAD_QTY, {"qty": 0}),
        (R.BAD_QTY, {"qty": -1}),
        (R.BAD_QTY, {"qty": NAT}),
        (R.FAT_FINGER_QTY, {"qty": 101}),
        (R.FAT_FINGER_QTY, {"qty": INT64_MAX}),
        (R.BAD_PX, {"px": 0}),
        (R.BAD_PX, {"px": -1000}),
        (R.OVERFLOW, {"px": INT64_MAX}),
        (R.OVERFLOW, {"px": INT64_MAX, "qty": 1}),
        (R.OVERFLOW, {"px": 2**60, "qty": 100}),
        (R.FAT_FINGER_NOTIONAL, {"px": 10**8 + 1}),
        (R.PRICE_COLLAR, {"px": 504}),
        (R.PRICE_COLLAR, {"px": 1506}),
        (R.POSITION, {"flags": Flag.REDUCE_ONLY}),
    ],
)
def test_each_reason_is_reached(desk: Any, reason: Reason, order: dict[str, int]) -> None:
    refused(desk, reason, **order)


def test_prices_at_the_collar_pass(desk: Any) -> None:
    assert desk.submit(px=505) > 0
    assert desk.submit(px=1505) > 0


@pytest.mark.parametrize("px", [2**60, 2**61, 2**62, INT64_MAX - 1, INT64_MAX])
def test_no_price_wraps_round_the_collar(make_desk: Callable[..., Any], px: int) -> None:
    desk = make_desk(max_notional=INT64_MAX, collar_ticks=2**58)
    assert desk.submit(px=px, qty=1) < 0


def test_no_quantity_wraps_round_the_position(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(max_notional=INT64_MAX, max_order_qty=INT64_MAX, collar_ticks=2000)
    desk.fill(desk.submit(qty=10), 10)
    assert desk.submit(px=1, qty=INT64_MAX) == -R.POSITION


def test_orders_are_small_enough_and_large_enough_for_the_venue(desk: Any) -> None:
    inst = desk.engine.instruments
    inst["min_qty"], inst["max_qty"], inst["min_notional"] = 5, 50, 9000
    refused(desk, R.BAD_QTY, qty=4)
    refused(desk, R.BAD_QTY, qty=51)
    refused(desk, R.BAD_QTY, qty=8)
    assert desk.submit(qty=9) > 0


def test_a_market_order_is_priced_at_the_far_touch_and_carries_its_type(desk: Any) -> None:
    assert desk.submit(px=NAT, tif=Tif.IOC) > 0
    rows = desk.sink.rows()
    at = int((rows["kind"] == Kind.SUBMIT).nonzero()[0][0])
    assert (rows["px"][at], rows["span"][at], rows["kind"][at + 1]) == (NAT, 1, Kind.CONT)
    assert int(rows[at + 1]["ts_recv"]) == OrdType.MARKET, "the first word of the payload"
    desk.engine.instruments["max_notional"] = 1010 * 10 - 1
    refused(desk, R.FAT_FINGER_NOTIONAL, px=NAT, tif=Tif.IOC)


def test_working_orders_count_towards_the_position_and_those_of_the_other_side_do_not(
    make_desk: Callable[..., Any],
) -> None:
    desk = make_desk(max_position=25)
    assert desk.submit(qty=20) > 0
    refused(desk, R.POSITION, qty=6)
    assert desk.submit(Side.SELL, 1010, 25) > 0
    refused(desk, R.POSITION, side=Side.SELL, px=1010, qty=1)
    refused(desk, R.POSITION, qty=6)
    assert desk.submit(qty=5) > 0


def test_reduce_only_may_not_open_or_turn_a_position(desk: Any) -> None:
    desk.fill(desk.submit(qty=10), 10)
    refused(desk, R.POSITION, side=Side.SELL, px=1010, qty=11, flags=Flag.REDUCE_ONLY)
    assert desk.submit(Side.SELL, 1010, 6, flags=Flag.REDUCE_ONLY) > 0
    refused(desk, R.POSITION, side=Side.SELL, px=1010, qty=5, flags=Flag.REDUCE_ONLY)
    refused(desk, R.POSITION, flags=Flag.REDUCE_ONLY)


def test_open_orders_are_counted_and_replaces_need_one_too(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(max_open_orders=2)
    first = desk.submit(qty=1)
    desk.report(first, ExecType.ACK)
    desk.submit(qty=1)
    refused(desk, R.OPEN_ORDERS, qty=1)
    assert desk.replace(first, 1001, 1) == -R.OPEN_ORDERS


def test_replace_and_cancel_name_what_is_wrong(desk: Any) -> None:
    assert desk.replace(99, 1000, 1) == -R.UNKNOWN_ORDER
    assert desk.cancel(99) == desk.cancel(0) == desk.cancel(-5) == desk.cancel(NAT) == -R.UNKNOWN_ORDER
    order = desk.submit()
    assert desk.replace(order, 1000, 1) == -R.ORDER_STATE, "not acknowledged"
    assert desk.cancel(order) == order
    assert desk.cancel(order) == -R.ORDER_STATE
    desk.report(order, ExecType.CANCELED)
    assert desk.replace(order, 1000, 1) == desk.cancel(order) == -R.ORDER_STATE


def test_a_replace_is_checked_at_the_worst_of_old_and_new(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(max_position=20)
    order = desk.submit(qty=15)
    desk.report(order, ExecType.ACK)
    assert desk.replace(order, 1001, 21) == -R.POSITION
    assert desk.replace(order, 1001, 20) > 0
    assert desk.working() == (20, 0)


def test_an_unknown_order_may_be_canceled_again_but_not_without_end(desk: Any) -> None:
    order = desk.submit()
    desk.report(order, ExecType.LOST)
    desk.feed(control_row("halt", desk.now))

    def storm(ctx: Any) -> list[int]:
        return [ctx.cancel(order) for _ in range(5000)]

    answers = desk.do(storm)
    assert set(answers) == {order, -R.ATOM_FULL}
    assert answers.count(order) <= 1024


def test_one_atom_holds_a_bounded_number_of_orders(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(max_position=3000)
    answers = Counter(desk.do(lambda ctx: [min(0, ctx.submit(0, 1, 1000, 1)) for _ in range(3000)]))
    assert answers[-R.ATOM_FULL] == 3000 - answers[0]
    assert 1000 < answers[0] <= 1024
    assert int(desk.working()[0]) == answers[0]


def test_refusals_of_one_atom_share_a_row_that_counts_them(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(instruments=2)

    def ask(ctx: Any) -> None:
        for k in range(3000):
            ctx.submit(0, Side.BUY, 1000, 101 + k)
            ctx.submit(0, Side.SELL, 1010, 101)
            ctx.submit(1, Side.BUY, 1000, 101)
            ctx.submit(1, Side.BUY, 1000, 0)
            ctx.replace(99, 1000, 1)

    written = len(desk.sink.rows())
    for _ in range(2):
        desk.do(ask)
    rows = desk.sink.rows()[written:]
    told = rows[rows["kind"] == Kind.REFUSED]
    kinds = [
        (0, Flag.BID, R.FAT_FINGER_QTY, 101), (0, Flag.ASK, R.FAT_FINGER_QTY, 101),
        (1, Flag.BID, R.FAT_FINGER_QTY, 101), (1, Flag.BID, R.BAD_QTY, 0), (0, 0, R.UNKNOWN_ORDER, 1),
    ]  # fmt: skip
    got = [(r["instrument"], r["flags"] & 3, r["code"], r["qty"]) for r in told]
    assert got == 2 * kinds, "of the first, with its quantity; anew in the next atom"
    assert (told["a"] == 3000).all()
    assert desk.counter("refusals") == 30_000 == told["a"].sum()
    replica = Replica(desk.definitions)
    replica.apply(desk.sink.rows())
    assert replica.counters()["refusals"] == 30_000


def test_more_kinds_of_refusals_than_an_atom_tells_are_counted_all_the_same(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(instruments=100)
    desk.do(lambda ctx: [ctx.submit(i, Side.BUY, 1000, 101) for i in range(100)])
    rows = desk.sink.rows()
    assert rows["instrument"][rows["kind"] == Kind.REFUSED].tolist() == list(range(MAX_REFUSED_ROWS))
    assert desk.counter("refusals") == 100


def test_the_operators_word_ends_a_doubt_about_positions(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(instruments=2)
    desk.engine.instruments["position_in_doubt"] = 1
    refused(desk, R.POSITION_DOUBT)
    desk.feed(control_row("confirm_position", desk.now))
    assert desk.engine.instruments["position_in_doubt"].tolist() == [0, 0]
    assert desk.submit() > 0 and desk.submit(instrument=1) > 0


def test_earlier_reasons_come_first(desk: Any) -> None:
    bad: dict[str, int] = {"side": 9, "qty": -1, "px": -1, "tif": 99}
    for reason, mend in (
        (R.BAD_SIDE, {"side": 1}), (R.BAD_TIF, {"tif": 1}), (R.BAD_QTY, {"qty": 10**7}),
        (R.FAT_FINGER_QTY, {"qty": 100}), (R.BAD_PX, {"px": 2**61}), (R.OVERFLOW, {"px": 10**8}),
        (R.FAT_FINGER_NOTIONAL, {"px": 3000}), (R.PRICE_COLLAR, {"px": 1000}),
    ):  # fmt: skip
        refused(desk, reason, **bad)
        bad |= mend
    desk.engine.instruments["max_position"] = 50
    refused(desk, R.POSITION, **bad)
    desk.engine.instruments["max_position"], desk.engine.header["max_open_orders"] = 1000, 0
    refused(desk, R.OPEN_ORDERS, **bad)
    desk.engine.header["max_open_orders"], desk.engine.header["rate_interval_ns"] = 9, 0
    refused(desk, R.THROTTLE, **bad)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([1, 2, 3, 6, 7, 10, 17]),
    st.lists(
        st.one_of(st.just(0), st.integers(0, 200_000_000), st.tuples(st.integers(0, 3), st.integers(-1, 1))), min_size=5
    ),
)
def test_the_rate_is_the_leaky_bucket(
    make_desk: Callable[..., Any], per_s: int, gaps: list[int | tuple[int, int]]
) -> None:
    desk = make_desk(orders_per_s=per_s, max_position=10_000)
    interval = -(-(10**9) // per_s)
    full, level, last = Fraction(interval * per_s), Fraction(0), desk.now
    for gap in gaps:
        desk.now += gap if isinstance(gap, int) else max(0, gap[0] * interval + gap[1])
        level = max(Fraction(0), level - (desk.now - last))
        last = desk.now
        allowed = level + interval <= full
        level += interval if allowed else 0
        assert (desk.submit(qty=1) > 0) == allowed


def test_cancels_are_never_throttled(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(orders_per_s=1)
    order = desk.submit()
    refused(desk, R.THROTTLE)
    assert desk.cancel(order) == order


LIMIT = st.integers(1, 200)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries({
        "max_order_qty": LIMIT, "max_position": LIMIT, "collar_ticks": LIMIT, "orders_per_s": LIMIT,
        "max_open_orders": st.integers(1, 8), "max_notional": st.integers(1, 10**5),
    }),
    st.lists(st.tuples(st.integers(0, 3), st.integers(880, 1130), st.integers(-1, 150)), max_size=40),
)  # fmt: skip
def test_no_order_row_breaks_a_limit(
    make_desk: Callable[..., Any], limits: dict[str, int], asked: list[tuple[int, int, int]]
) -> None:
    desk = make_desk(**limits)
    for side, px, qty in asked:
        desk.submit(side, px, qty)
    rows = desk.sink.rows()
    orders = rows[rows["kind"] == Kind.SUBMIT]
    assert len(orders) == desk.counter("submits") <= min(limits["orders_per_s"], limits["max_open_orders"])
    assert len(orders) + (rows["kind"] == Kind.REFUSED).sum() == len(asked)
    for side in (1, 2):
        assert int(orders["qty"][orders["flags"] & 3 == side].sum()) <= limits["max_position"]
    assert ((orders["qty"] > 0) & (orders["qty"] <= limits["max_order_qty"])).all()
    assert (orders["px"] * orders["qty"] <= limits["max_notional"]).all()
    assert (abs(orders["px"] - 1005) <= limits["collar_ticks"]).all()
