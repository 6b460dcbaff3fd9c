"""Market-by-order books against a slow reference, bad rows, growth, and what the compiler made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import types
from reference_books import SlowL3

from hftlab.books import L3Book
from hftlab.core.errors import ConfigError
from hftlab.core.rows import NO_PX, Flag, Kind, RowArray, new_rows
from hftlab.kernels import l3
from hftlab.kernels.jit import kernel
from hftlab.testing.targets_books import check_l3

REFS = st.integers(0, 20)
FAR = 2**62 - 1


def rows_of(*entries: tuple[Any, ...]) -> RowArray:
    """Rows from (kind, instrument, flags, px, qty, a, b)."""
    rows = new_rows(len(entries))
    for row, entry in zip(rows, entries, strict=True):
        for name, value in zip(("kind", "instrument", "flags", "px", "qty", "a", "b"), entry, strict=True):
            row[name] = value
    return rows


@st.composite
def streams(draw: Any, max_size: int = 120) -> RowArray:
    """Rows among few references, prices and symbols, so that they meet; one in a few says what cannot be true."""
    kinds = st.sampled_from([Kind.ADD] * 6 + [Kind.DELETE, Kind.REDUCE, Kind.EXECUTE, Kind.REPLACE] * 2 + [Kind.CLEAR])
    px = st.integers(95, 105) | st.sampled_from([-3, FAR, -FAR, 2**62, NO_PX])
    qty = st.integers(1, 9) | st.sampled_from([0, -1, 2**62, 2**63 - 1])
    flags = st.sampled_from([Flag.BID, Flag.ASK] * 8 + [Flag(0), Flag.BID | Flag.ASK])
    ref = st.one_of(REFS, REFS, st.sampled_from([2**64 - 1, 2**63, 1 << 40]))
    row = st.tuples(kinds, st.sampled_from([0, 0, 1, 5, 70_000]), flags, px, qty, ref, ref)
    return rows_of(*draw(st.lists(row, max_size=max_size)))


def assert_same(book: L3Book, slow: SlowL3) -> None:
    assert len(book) == len(slow.orders)
    assert book.counts == {name: slow.counts[name] for name in l3.COUNTS}
    for (instrument, side), queues in slow.queues.items():
        expected = slow.levels(instrument, side)
        depth = book.depth(instrument, 1000)
        found = depth.asks if side else depth.bids
        assert found.orders is not None
        assert list(zip(*(part.tolist() for part in found), strict=True)) == expected
        for px, queue in queues.items():
            resting = book.orders(instrument, side + 1, px)
            assert resting.ref.tolist() == queue
            assert resting.qty.tolist() == [slow.orders[ref][3] for ref in queue]
            for ahead, ref in enumerate(queue):
                lots = sum(slow.orders[r][3] for r in queue[:ahead])
                assert book.position(ref) == (ahead, lots)
    for ref, (instrument, side, px, qty) in slow.orders.items():
        assert book.order(ref) == (ref, instrument, side == 0, px, qty)


@settings(max_examples=400, deadline=None)
@given(streams(), st.integers(1, 7))
def test_books_equal_the_reference_after_any_rows_whatever_the_block(rows: RowArray, block: int) -> None:
    book, slow = L3Book(orders=1, instruments=1), SlowL3()
    for at in range(0, len(rows), block):
        book.apply(rows[at : at + block])
    slow.apply(rows)
    assert_same(book, slow)


@settings(max_examples=200, deadline=None)
@given(streams(), st.integers(1, 6), st.integers(1, 3))
def test_orders_beyond_the_bound_are_dropped_and_counted(rows: RowArray, orders: int, instruments: int) -> None:
    book = L3Book(max_orders=orders, max_instruments=instruments)
    slow = SlowL3(max_orders=orders, max_instruments=instruments)
    book.apply(rows)
    slow.apply(rows)
    assert_same(book, slow)


@settings(max_examples=100, deadline=None)
@given(streams(40), st.integers(1, 4), st.integers(1, 3))
def test_trace_shows_the_reference_after_every_message(rows: RowArray, depth: int, length: int) -> None:
    rows["flags"] |= np.uint16(Flag.LAST) * (np.arange(len(rows)) % length == 0).astype(np.uint16)
    trace = L3Book(orders=1, instruments=1).trace(rows, depth)
    slow, k, changed = SlowL3(), 0, False
    for i, row in enumerate(rows):
        slow.apply_row(row)
        changed = changed or Kind.ADD <= row["kind"] <= Kind.REPLACE or row["kind"] == Kind.CLEAR
        if not changed or not row["flags"] & Flag.LAST:
            continue
        if k == len(trace.row) or trace.row[k] != i:
            assert not slow.levels(int(row["instrument"]), 0), "only an instrument never heard of is left out"
            continue
        changed = False
        for side, (px, qty, orders) in enumerate(
            ((trace.bid_px, trace.bid_qty, trace.bid_orders), (trace.ask_px, trace.ask_qty, trace.ask_orders))
        ):
            levels = (slow.levels(int(row["instrument"]), side) + [(NO_PX, 0, 0)] * depth)[:depth]
            assert list(zip(px[k].tolist(), qty[k].tolist(), orders[k].tolist(), strict=True)) == levels
        k += 1
    assert k == len(trace.row)


def busy_stream(n: int, seed: int, symbols: int = 40) -> RowArray:
    """A long stream of true rows with many live orders, deep queues and wandering prices."""
    chance = np.random.default_rng(seed)
    rows, live, k = new_rows(n), [], 0
    ref = 10**12
    while k < n:
        row = rows[k]
        what = chance.random()
        row["instrument"] = chance.integers(symbols)
        if what < 0.5 or not live:
            ref += int(chance.integers(1, 4))
            row["kind"], row["a"], row["flags"] = Kind.ADD, ref, chance.integers(1, 3)
            row["px"] = 1000 + k // 50 + int(chance.normal(0, 30))
            row["qty"] = chance.integers(1, 100)
            live.append(ref)
        else:
            at = len(live) - 1 - min(int(chance.exponential(200)), len(live) - 1)
            row["a"] = live[at]
            if what < 0.8:
                row["kind"] = Kind.DELETE
                live[at] = live[-1]
                live.pop()
            elif what < 0.9:
                row["kind"], row["qty"] = Kind.EXECUTE, 1
            else:
                ref += 1
                row["kind"], row["b"], row["qty"] = Kind.REPLACE, ref, chance.integers(1, 100)
                row["px"] = 1000 + k // 50
                live[at] = ref
        k += 1
    return rows


def test_a_long_stream_over_many_symbols_ends_in_the_reference_books() -> None:
    rows = busy_stream(40_000, seed=3)
    book, slow = L3Book(orders=64, instruments=2), SlowL3()
    book.apply(rows)
    slow.apply(rows)
    assert len(book) > 3000
    assert_same(book, slow)
    check_l3(book)


def test_growth_changes_nothing_but_room() -> None:
    rows = busy_stream(20_000, seed=4)
    small, large = L3Book(orders=1, instruments=1), L3Book(orders=1 << 15, instruments=64)
    small.apply(rows)
    large.apply(rows)
    assert small.instruments() == large.instruments()
    for instrument in small.instruments():
        assert repr(small.depth(instrument, 99)) == repr(large.depth(instrument, 99))


def test_tables_are_bounded_by_live_orders_not_by_references_seen() -> None:
    book = L3Book(orders=4, instruments=1, max_orders=4)
    rows = new_rows(4000)
    rows["kind"][::2], rows["kind"][1::2] = Kind.ADD, Kind.DELETE
    rows["a"] = np.repeat(np.random.default_rng(0).integers(0, 2**63, 2000), 2)
    rows["flags"], rows["px"], rows["qty"] = Flag.BID, np.repeat(np.arange(2000), 2), 1
    book.apply(rows)
    assert len(book) == 0
    assert not any(book.counts.values())


@pytest.mark.parametrize("home", [5, 63])
def test_references_that_collide_in_the_index_are_all_found_and_deleted(home: int) -> None:
    """All want one of two places, at the end of the index too, where probing goes on at the front."""
    book = L3Book(orders=16, instruments=1, max_orders=16)
    assert len(book.tables.index) == 64
    wanted = (home, (home + 1) % 64)
    refs = [ref for ref in range(20_000) if l3._hash(np.uint64(ref)) % 64 in wanted][-16:]
    book.apply(rows_of(*((Kind.ADD, 0, Flag.BID, k, 1, ref, 0) for k, ref in enumerate(refs))))
    left = set(refs)
    for gone in np.random.default_rng(home).permutation(refs).tolist():
        book.apply(rows_of((Kind.DELETE, 0, 0, 0, 0, gone, 0)))
        left.remove(gone)
        assert {ref for ref in refs if book.order(ref) is not None} == left
        check_l3(book)


def test_replacement_of_an_order_never_seen_is_an_arrival_if_it_gives_its_side() -> None:
    book = L3Book()
    book.apply(rows_of((Kind.REPLACE, 0, Flag.ASK, 10, 5, 1, 2), (Kind.REPLACE, 0, 0, 10, 5, 3, 4)))
    assert book.orders(0, Flag.ASK, 10).ref.tolist() == [2]
    assert (len(book), book.counts["unknown"]) == (1, 2)


def test_replacement_by_a_live_reference_takes_the_old_order_away() -> None:
    book = L3Book()
    book.apply(rows_of(*((Kind.ADD, 0, Flag.BID, ref, 5, ref, 0) for ref in (1, 2)), (Kind.REPLACE, 0, 0, 9, 9, 1, 2)))
    assert book.order(1) is None and book.order(2) == (2, 0, True, 2, 5)
    assert book.counts["duplicate"] == 1


def test_reduction_beyond_an_orders_lots_removes_it_and_is_counted() -> None:
    book = L3Book()
    book.apply(rows_of((Kind.ADD, 0, Flag.BID, 10, 5, 1, 0), (Kind.REDUCE, 0, 0, 0, 6, 1, 0)))
    assert (len(book), book.counts["overdrawn"], book.level_counts(0)) == (0, 1, (0, 0))


def test_execution_in_full_removes_the_order_and_is_not_overdrawn() -> None:
    book = L3Book()
    book.apply(rows_of((Kind.ADD, 0, Flag.ASK, 10, 5, 1, 0), (Kind.EXECUTE, 0, 0, NO_PX, 5, 1, 77)))
    assert (len(book), book.counts["overdrawn"]) == (0, 0)


def test_replace_goes_to_the_back_unless_it_keeps_reference_and_price_and_adds_no_lots() -> None:
    adds = [(Kind.ADD, 0, Flag.BID, 10, 5, ref, 0) for ref in (1, 2)]
    for new, px, qty, expected in (
        (1, 10, 5, [1, 2]), (1, 10, 3, [1, 2]), (1, 10, 6, [2, 1]), (9, 10, 5, [2, 9]), (1, 11, 5, [2]),
    ):  # fmt: skip
        book = L3Book()
        book.apply(rows_of(*adds, (Kind.REPLACE, 0, 0, px, qty, 1, new)))
        assert book.orders(0, Flag.BID, 10).ref.tolist() == expected
        found = book.order(new)
        assert found is not None and (found.px, found.qty) == (px, qty)


def test_a_level_whose_sum_would_leave_int64_refuses_the_order() -> None:
    book = L3Book()
    most = 2**63 - 1
    book.apply(rows_of((Kind.ADD, 0, Flag.BID, 10, most, 1, 0), (Kind.ADD, 0, Flag.BID, 10, 1, 2, 0)))
    assert (len(book), book.counts["bad"]) == (1, 1)
    assert book.best(0).bid_qty == most


def test_prices_may_lie_as_far_apart_as_prices_can() -> None:
    book = L3Book()
    book.apply(rows_of(*((Kind.ADD, 0, Flag.ASK, px, 1, k, 0) for k, px in enumerate((FAR, 0, -FAR, 5)))))
    assert book.depth(0).asks.px.tolist() == [-FAR, 0, 5, FAR]


def test_clear_empties_one_instrument_and_forgets_its_references() -> None:
    book = L3Book()
    book.apply(rows_of(*((Kind.ADD, k % 2, Flag.BID, k, 1, k, 0) for k in range(10))))
    book.apply(rows_of((Kind.CLEAR, 1, 0, 0, 0, 0, 0), (Kind.CLEAR, 9999, 0, 0, 0, 0, 0)))
    assert (book.level_counts(0), book.level_counts(1), len(book)) == ((5, 0), (0, 0), 5)
    assert book.order(1) is None
    book.apply(rows_of((Kind.ADD, 1, Flag.BID, 3, 1, 1, 0)))
    assert book.counts["duplicate"] == 0


def test_bounds_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_orders=0"):
        L3Book(max_orders=0)
    with pytest.raises(ConfigError, match="max_instruments"):
        L3Book(max_instruments=1 << 25)


@pytest.mark.parametrize("name", ["apply_rows", "_grow_ladder", "_clear", "trace_rows", "copy_side", "find_order"])
def test_compiled_kernels_hold_no_reference_counting(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = getattr(l3, name)
    words = shipped.py_func.__code__.co_argcount
    result = {"_grow_ladder": types.boolean, "_clear": types.void, "copy_side": types.void}.get(name, types.int64)
    monkeypatch.setenv("HFTLAB_CACHE", str(tmp_path))  # compiled afresh: what comes from a cache shows no code
    (code,) = kernel(result(*(types.int64,) * words))(shipped.py_func).inspect_llvm().values()
    assert "define" in code and (name != "apply_rows" or "llvm.prefetch" in code)
    assert "NRT_" not in code
