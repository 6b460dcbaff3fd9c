"""Market-by-price books of many symbols against a slow reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import types
from reference_books import SlowL2

from hftlab.books import Best, L2Book
from hftlab.core.errors import ConfigError
from hftlab.core.rows import NO_PX, Flag, Kind, RowArray, new_rows
from hftlab.kernels import l2
from hftlab.kernels.jit import kernel

FAR = 2**62 - 1


@st.composite
def streams(draw: Any, max_size: int = 80) -> RowArray:
    kinds = st.sampled_from([Kind.LEVEL] * 12 + [Kind.QUOTE] * 4 + [Kind.CLEAR, Kind.BOOK_STATE, Kind.TRADE])
    px = st.one_of(st.integers(95, 105), st.integers(95, 105), st.sampled_from([-3, FAR, -FAR, 2**62, NO_PX]))
    qty = st.integers(0, 4) | st.sampled_from([-1, 2**63 - 1])
    side = st.sampled_from([Flag.BID, Flag.ASK] * 8 + [Flag(0), Flag.BID | Flag.ASK])
    last = st.sampled_from([Flag(0), Flag.LAST])
    row = st.tuples(kinds, st.sampled_from([0, 0, 1, 70_000]), side, last, px, qty, st.integers(0, 6))
    entries = draw(st.lists(row, max_size=max_size))
    rows = new_rows(len(entries))
    for one, (kind, instrument, side, last, px, qty, seq) in zip(rows, entries, strict=True):
        one["kind"], one["instrument"], one["flags"] = kind, instrument, side | last
        one["px"], one["qty"], one["a"], one["code"] = px, qty, seq, seq
    return rows


def levels_of(book: L2Book, instrument: int) -> list[dict[int, int]]:
    depth = book.depth(instrument, 10_000)
    return [dict(zip(s.px.tolist(), s.qty.tolist(), strict=True)) for s in (depth.bids, depth.asks)]


def best_of(slow: SlowL2, instrument: int) -> Best:
    bid, ask = slow.best(instrument)
    return Best(*(bid or (None, None)), *(ask or (None, None)))


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(1, 6), st.integers(1, 7))
def test_books_equal_the_reference_after_any_rows(rows: RowArray, capacity: int, block: int) -> None:
    book, slow = L2Book(levels=capacity), SlowL2(levels=capacity)
    for at in range(0, len(rows), block):
        book.apply(rows[at : at + block])
        slow.apply(rows[at : at + block])
        for instrument in (0, 1, 2):
            assert levels_of(book, instrument) == [slow.sides[instrument, 0], slow.sides[instrument, 1]]
            assert book.best(instrument) == best_of(slow, instrument)
            assert book._told(instrument) == slow.state[instrument]
    assert book.counts == {name: slow.counts[name] for name in l2.L2_COUNTS}


@settings(max_examples=100, deadline=None)
@given(streams(40), st.integers(1, 4))
def test_trace_shows_the_reference_after_every_message(rows: RowArray, depth: int) -> None:
    trace = L2Book(levels=5).trace(rows, depth)
    slow, k, changed = SlowL2(levels=5), 0, False
    for i, row in enumerate(rows):
        slow.apply_row(row)
        instrument = int(row["instrument"])
        changed = changed or row["kind"] in (Kind.LEVEL, Kind.CLEAR)
        if not changed or not row["flags"] & Flag.LAST or (k < len(trace.row) and trace.row[k] != i):
            continue
        if k == len(trace.row):
            assert not slow.sides[instrument, 0] and not slow.sides[instrument, 1]
            continue
        changed = False
        for side, (px, qty) in enumerate(((trace.bid_px, trace.bid_qty), (trace.ask_px, trace.ask_qty))):
            levels = sorted(slow.sides[instrument, side].items(), reverse=side == 0)
            levels = (levels + [(NO_PX, 0)] * depth)[:depth]
            assert list(zip(px[k].tolist(), qty[k].tolist(), strict=True)) == levels
        k += 1
    assert k == len(trace.row)


def test_a_full_side_forgets_its_farthest_level_and_counts_it() -> None:
    rows = new_rows(6)
    rows["kind"], rows["flags"], rows["px"], rows["qty"] = Kind.LEVEL, Flag.ASK, [5, 4, 3, 2, 9, 1], 1
    book = L2Book(levels=3)
    book.apply(rows)
    assert book.depth().asks.px.tolist() == [1, 2, 3]
    assert book.counts["forgotten"] == 3


def test_prices_may_lie_as_far_apart_as_prices_can() -> None:
    rows = new_rows(3)
    rows["kind"], rows["flags"], rows["px"], rows["qty"] = Kind.LEVEL, Flag.BID, [-FAR, FAR, 0], 1
    book = L2Book()
    book.apply(rows)
    assert book.depth().bids.px.tolist() == [FAR, 0, -FAR]


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="levels is 0"):
        L2Book(levels=0)
    with pytest.raises(ConfigError, match="max_instruments"):
        L2Book(max_instruments=1 << 25)


@pytest.mark.parametrize("name", ["apply_levels", "trace_levels"])
def test_compiled_kernels_hold_no_reference_counting(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = getattr(l2, name)
    words = shipped.py_func.__code__.co_argcount
    monkeypatch.setenv("HFTLAB_CACHE", str(tmp_path))  # compiled afresh: what comes from a cache shows no code
    (code,) = kernel(types.int64(*(types.int64,) * words))(shipped.py_func).inspect_llvm().values()
    assert "define" in code
    assert "NRT_" not in code


def test_a_new_instrument_leaves_the_others_as_they_were() -> None:
    rows = new_rows(200)
    rows["kind"], rows["qty"], rows["px"] = Kind.LEVEL, np.arange(200) + 1, 100 + np.arange(200) % 7
    rows["flags"], rows["instrument"] = Flag.BID, np.arange(200) // 2
    book, slow = L2Book(), SlowL2()
    book.apply(rows)
    slow.apply(rows)
    assert book.instruments() == list(range(100))
    assert all(levels_of(book, i)[0] == slow.sides[i, 0] for i in range(100))
