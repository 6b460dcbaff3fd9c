"""The state table, the worst case of open orders, and the money of fills, against slow models."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftlab.core.rows import ExecType, Kind, OrdStatus, Side
from hftlab.kernels.jit import address_of, kernel
from hftlab.kernels.orders import OPEN_STATES, TRANSITIONS, mul_div, settle_fill
from hftlab.kernels.state import INSTRUMENT

S, X = OrdStatus, ExecType
COUNTERS = ("reports", "illegal_reports", "faults", "rows_applied", "duplicate_fills")
slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def order_in(desk: Any, state: OrdStatus) -> int:
    """Return a buy of 10 lots brought into `state` by legal reports."""
    order = int(desk.submit())
    if state == S.PENDING_NEW:
        return order
    if state == S.REJECTED:
        desk.report(order, X.REJECT)
        return order
    desk.report(order, X.ACK)
    if state == S.PARTIALLY_FILLED:
        desk.fill(order, 4)
    elif state == S.PENDING_CANCEL:
        desk.cancel(order)
    elif state == S.PENDING_REPLACE:
        desk.replace(order, 999, 12)
    elif state == S.UNKNOWN:
        desk.report(order, X.LOST)
    elif state == S.FILLED:
        desk.fill(order, 10)
    elif state in (S.CANCELED, S.EXPIRED):
        desk.report(order, X[state.name])
    return order


def quiet_copy(desk: Any) -> bytes:
    """Return the arena's bytes, with the counters of what was seen set to 0."""
    header = desk.engine.header
    kept = {name: int(header[name]) for name in COUNTERS}
    for name in COUNTERS:
        header[name] = 0
    e, raw = header, desk.engine.arena.view(np.uint8)
    backup = slice(int(e["off_backup"]), int(e["off_undo"]))  # room for undoing a callback, not state
    told = raw.copy()
    told[backup] = 0
    for name, value in kept.items():
        header[name] = value
    return told.tobytes()


STATES = [state for state in S if state != S.NONE]


@pytest.mark.parametrize("report", list(X), ids=lambda x: x.name)
@pytest.mark.parametrize("state", STATES, ids=lambda s: s.name)
def test_every_report_in_every_state_does_what_the_table_says_or_nothing(
    desk: Any, state: OrdStatus, report: ExecType
) -> None:
    order = order_in(desk, state)
    assert desk.status(order) == state
    before, illegal = quiet_copy(desk), desk.counter("illegal_reports")
    expected = TRANSITIONS[state].get(report)
    if report == X.REPLACED:
        expected = None  # this order replaces no other
    desk.report(order, report, qty=1 if report == X.FILL else 0, exec_id=99)
    if expected is None:
        assert desk.counter("illegal_reports") == illegal + 1
        fault = desk.last(Kind.FAULT)
        assert (fault["code"], fault["a"], fault["b"]) == (2, order, int(state) | int(report) << 8)
        if report == X.FILL:
            assert desk.engine.instruments["position_in_doubt"][0] == 1
            desk.engine.instruments["position_in_doubt"] = 0
        assert quiet_copy(desk) == before
        return
    assert desk.counter("illegal_reports") == illegal
    if expected == S.NEW and state == S.PARTIALLY_FILLED:
        expected = S.PARTIALLY_FILLED
    assert desk.status(order) == expected
    if expected not in OPEN_STATES and state != S.PENDING_REPLACE:
        assert desk.working() == (0, 0)


def test_an_unknown_exec_type_is_illegal_and_changes_nothing(desk: Any) -> None:
    order = desk.submit()
    before = quiet_copy(desk)
    desk.report(order, 200)
    assert desk.counter("illegal_reports") == 1
    assert quiet_copy(desk) == before


def test_a_report_for_an_order_of_another_client_is_only_counted(desk: Any) -> None:
    before = quiet_copy(desk)
    desk.report(555, X.ACK)
    desk.fill(555, 1)
    assert desk.counter("foreign_reports") == 2
    desk.engine.header["foreign_reports"] = 0
    assert quiet_copy(desk) == before


def test_a_fill_of_an_own_order_that_the_table_forgot_puts_the_position_in_doubt(desk: Any) -> None:
    desk.engine.header["next_order_id"] = 100_000
    desk.fill(5, 1)
    assert desk.engine.instruments["position_in_doubt"][0] == 1
    assert desk.last(Kind.FAULT)["a"] == 5


def test_an_order_is_filled_in_parts_and_then_filled(desk: Any) -> None:
    order = desk.submit(qty=10)
    desk.report(order, X.ACK)
    desk.fill(order, 4, exec_id=1)
    assert (desk.status(order), desk.working(), desk.position()) == (S.PARTIALLY_FILLED, (6, 0), 4)
    desk.fill(order, 6, exec_id=2)
    assert (desk.status(order), desk.working(), desk.position()) == (S.FILLED, (0, 0), 10)
    assert desk.counter("open_orders") == 0


def test_a_fill_seen_twice_counts_once(desk: Any) -> None:
    order = desk.submit(qty=10)
    for _ in range(3):
        desk.fill(order, 4, exec_id=77)
    assert desk.position() == 4
    assert desk.counter("duplicate_fills") == 2


def test_the_same_execution_id_of_another_order_is_another_fill(desk: Any) -> None:
    for order in (desk.submit(), desk.submit()):
        desk.fill(order, 4, exec_id=77)
    assert desk.position() == 8


def test_ten_thousand_execution_ids_are_remembered(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(max_order_qty=20_000, max_position=40_000)
    order = desk.submit(qty=20_000)
    for exec_id in range(10_000):
        desk.fill(order, 1, exec_id=exec_id)
    for exec_id in range(10_000):
        desk.fill(order, 1, exec_id=exec_id)
    assert desk.position() == 10_000
    assert desk.counter("duplicate_fills") == 10_000


def test_a_fill_after_the_cancel_is_money_and_the_order_stays_canceled(desk: Any) -> None:
    order = desk.submit(qty=10)
    desk.report(order, X.ACK)
    desk.cancel(order)
    desk.report(order, X.CANCELED)
    desk.fill(order, 3)
    assert (desk.status(order), desk.position(), desk.working()) == (S.CANCELED, 3, (0, 0))


@pytest.mark.parametrize("qty,px", [(11, 1000), (0, 1000), (-1, 1000), (1, 0), (1, -5), (10, 2**60)])
def test_an_impossible_fill_moves_nothing_and_stops_trading(desk: Any, qty: int, px: int) -> None:
    order = desk.submit(qty=10)
    desk.fill(order, qty, px=px)
    assert desk.position() == 0
    assert desk.engine.instruments["cash"][0] == 0
    assert desk.submit() == -21, "POSITION_DOUBT"


def test_a_cancel_rejected_before_the_venue_knew_the_order_leaves_it_pending_new(desk: Any) -> None:
    order = desk.submit()
    desk.cancel(order)
    desk.report(order, X.CANCEL_REJECT)
    assert desk.status(order) == S.PENDING_NEW
    desk.report(order, X.REJECT)
    assert desk.status(order) == S.REJECTED


def test_a_late_ack_of_a_filled_order_is_legal(desk: Any) -> None:
    order = desk.submit(qty=10)
    desk.fill(order, 10)
    desk.report(order, X.ACK)
    assert (desk.status(order), desk.counter("illegal_reports")) == (S.FILLED, 0)


# --- replaces --------------------------------------------------------------------------------------------------------


def replaced(desk: Any, old_qty: int = 10, new_qty: int = 15) -> tuple[int, int]:
    old = desk.submit(qty=old_qty)
    desk.report(old, X.ACK)
    new = desk.replace(old, 999, new_qty)
    assert new > old
    assert desk.working() == (max(old_qty, new_qty), 0), "the worst of old and new"
    return old, new


def test_replaced_ends_the_old_order_and_the_new_one_stands(desk: Any) -> None:
    old, new = replaced(desk)
    desk.report(new, X.REPLACED)
    assert (desk.status(old), desk.status(new), desk.working()) == (S.CANCELED, S.NEW, (15, 0))
    assert desk.counter("open_orders") == 1


@pytest.mark.parametrize("new_qty", [5, 10, 15])
@pytest.mark.parametrize("new_first", [False, True])
def test_canceled_and_ack_in_either_order_replace_an_order(desk: Any, new_qty: int, new_first: bool) -> None:
    old, new = replaced(desk, new_qty=new_qty)
    first, second = (new, old) if new_first else (old, new)
    desk.report(first, X.ACK if first == new else X.CANCELED)
    assert desk.working()[0] >= new_qty
    desk.report(second, X.ACK if second == new else X.CANCELED)
    assert (desk.status(old), desk.status(new), desk.working()) == (S.CANCELED, S.NEW, (new_qty, 0))


def test_a_rejected_replacement_gives_the_old_order_back(desk: Any) -> None:
    old, new = replaced(desk)
    desk.report(new, X.REJECT)
    assert (desk.status(old), desk.status(new), desk.working()) == (S.NEW, S.REJECTED, (10, 0))
    assert desk.replace(old, 998, 10) > 0


def test_a_replacement_rejected_after_the_old_order_went_leaves_nothing(desk: Any) -> None:
    old, new = replaced(desk)
    desk.report(old, X.CANCELED)
    desk.report(new, X.REJECT)
    assert (desk.status(old), desk.status(new), desk.working()) == (S.CANCELED, S.REJECTED, (0, 0))
    assert desk.counter("open_orders") == 0


def test_the_old_order_may_fill_while_its_replace_is_in_flight(desk: Any) -> None:
    old, new = replaced(desk)
    desk.fill(old, 4)
    assert desk.working() == (15, 0)
    desk.fill(old, 6, exec_id=2)
    assert (desk.status(old), desk.working(), desk.position()) == (S.FILLED, (15, 0), 10)
    desk.report(new, X.REJECT)
    assert desk.working() == (0, 0)


def test_a_replacement_that_filled_before_the_old_order_ended_does_not_revive_it(desk: Any) -> None:
    old, new = replaced(desk)
    desk.fill(new, 15)
    assert desk.status(old) == S.PENDING_REPLACE
    desk.report(old, X.CANCELED)
    assert (desk.working(), desk.position()) == ((0, 0), 15)


def test_replaced_after_a_cancel_of_the_replacement_is_legal(desk: Any) -> None:
    old, new = replaced(desk)
    desk.cancel(new)
    desk.report(new, X.REPLACED)
    assert (desk.status(old), desk.status(new)) == (S.CANCELED, S.PENDING_CANCEL)


def test_an_order_in_replace_takes_no_second_replace_or_cancel(desk: Any) -> None:
    old, new = replaced(desk)
    assert desk.replace(old, 998, 5) == -19
    assert desk.cancel(old) == -19
    desk.report(old, X.CANCEL_REJECT)
    assert desk.status(old) == S.NEW
    assert desk.replace(old, 998, 5) == -19, "the first replacement is not answered yet"
    desk.report(new, X.REJECT)
    assert desk.replace(old, 998, 5) > 0


def model_working(desk: Any) -> tuple[int, int]:
    """Recompute the worst case from the order table alone."""
    orders = {int(o["cl_ord_id"]): o for o in desk.engine.open_orders()}
    total = {Side.BUY: 0, Side.SELL: 0}
    for o in orders.values():
        leaves = int(o["order_qty"]) - int(o["cum_qty"])
        old = orders.get(int(o["orig"]))
        if old is not None:
            leaves = max(0, leaves - (int(old["order_qty"]) - int(old["cum_qty"])))
        total[Side(int(o["side"]))] += leaves
    return total[Side.BUY], total[Side.SELL]


ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from([1, 2]), st.integers(1, 40), st.integers(0, 0)),
    st.tuples(st.just("replace"), st.integers(0, 5), st.integers(1, 40), st.integers(0, 0)),
    st.tuples(st.just("cancel"), st.integers(0, 5), st.integers(0, 0), st.integers(0, 0)),
    st.tuples(st.just("report"), st.integers(0, 5), st.sampled_from(list(X)), st.integers(1, 20)),
)


@slow
@given(st.lists(ACTIONS, max_size=40))
def test_working_lots_are_the_worst_case_of_the_order_table_after_anything(
    make_desk: Callable[..., Any], actions: list[tuple[str, int, int, int]]
) -> None:
    desk = make_desk(max_position=60)
    ids: list[int] = []
    for step, (what, pick, value, qty) in enumerate(actions):
        order = ids[-1 - pick % len(ids)] if ids else 0
        accepted = 0
        if what == "submit":
            accepted = desk.submit(side=pick, px=1000 if pick == 1 else 1010, qty=value)
        elif what == "replace" and ids:
            accepted = desk.replace(order, 1001, value)
        elif what == "cancel" and ids:
            desk.cancel(order)
        elif ids:
            desk.report(order, value, qty=qty, exec_id=step)
        assert desk.working() == model_working(desk)
        assert desk.counter("open_orders") == len(desk.engine.open_orders())
        if accepted > 0:
            ids.append(accepted)
            side = int(desk.engine.orders["side"][accepted & 8191])
            buys, sells = desk.working()
            worst = desk.position() + buys if side == 1 else sells - desk.position()
            assert worst <= 60


# --- money -----------------------------------------------------------------------------------------------------------


@kernel("void(int64, int64, int64, int64)")
def settle(instrument: int, side: int, px: int, qty: int) -> None:
    settle_fill(instrument, side, px, qty)


@kernel("int64(int64, int64, int64)")
def scaled(value: int, numerator: int, denominator: int) -> int:
    return mul_div(value, numerator, denominator)


TRADES = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.integers(1, 10**7), st.integers(1, 10**6)), min_size=1, max_size=60
)


@settings(deadline=None)
@given(TRADES, st.integers(1, 10**7))
def test_profit_is_exact_at_every_mark_and_through_every_flip(trades: list[tuple[int, int, int]], mark: int) -> None:
    record = np.zeros(1, INSTRUMENT)
    position, cash, average, realized = 0, 0, Fraction(0), Fraction(0)
    drift = Fraction(0)
    for side, px, qty in trades:
        settle(address_of(record), side, px, qty)
        signed = qty if side == 1 else -qty
        cash -= signed * px
        if position * signed >= 0:
            average = (average * abs(position) + px * qty) / (abs(position) + qty)
        else:
            closing = min(qty, abs(position))
            realized += closing * (px - average) * (1 if position > 0 else -1)
            drift += 1
            if qty > abs(position):
                average = Fraction(px)
        position += signed
        r = record[0]
        assert (r["position"], r["cash"]) == (position, cash)
        assert int(r["realized"]) + position * mark - int(r["cost"]) == cash + position * mark, "nothing is lost"
        assert abs(Fraction(int(r["realized"])) - realized) <= drift, "a unit is held back at most, for each close"
        if position == 0:
            assert (r["cost"], r["realized"]) == (0, cash), "flat: exact"
            realized, drift = Fraction(cash), Fraction(0)
    assert int(record["bought"][0]) - int(record["sold"][0]) == position


@settings(deadline=None)
@given(st.integers(-(2**62), 2**62), st.integers(1, 3_000_000_000), st.integers(1, 3_000_000_000))
def test_a_share_of_a_cost_is_the_floor_of_the_exact_share(value: int, x: int, y: int) -> None:
    part, whole = min(x, y), max(x, y)
    assert scaled(value, part, whole) == value * part // whole


def test_fees_are_kept_by_asset(desk: Any) -> None:
    order = desk.submit(qty=10)
    for exec_id, asset in enumerate(("Q", "B0", "other")):
        index = desk.definitions.asset(asset)
        desk.report(order, X.FILL, qty=1, exec_id=exec_id, fee=10 + exec_id, fee_asset=index if index >= 0 else 9)
    inst = desk.engine.instruments[0]
    assert [int(inst[f"fee_{asset}"]) for asset in ("quote", "base", "other")] == [10, 11, 12]


def test_slots_of_open_orders_are_skipped_and_closed_ones_reused(make_desk: Callable[..., Any]) -> None:
    desk = make_desk()
    kept = desk.submit(qty=1)
    desk.engine.header["next_order_id"] = kept + 8192
    assert desk.submit(qty=1) == kept + 8193
    desk.report(kept, X.REJECT)
    desk.engine.header["next_order_id"] = kept + 2 * 8192
    assert desk.submit(qty=1) == kept + 2 * 8192
    assert desk.status(kept) == S.NONE
