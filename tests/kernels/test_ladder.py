"""The window and what lies behind it against dictionaries: one that knows everything, one that forgets."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, Flag, Kind, RowArray, new_rows
from hftlab.engine import RowBuffer, book_size, control_row
from hftlab.kernels import loop
from hftlab.kernels.jit import address_of, kernel
from hftlab.kernels.ladder import (
    SIDE,
    Ladders,
    clear_side,
    copy_side,
    count_levels,
    lay_side,
    set_key,
    side_bytes,
    side_levels,
)
from hftlab.kernels.state import ATOM_ROWS
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_books import TARGETS

ONE = Instrument(0, "v", "ONE", Decimal("0.01"), Decimal("1"))
TWO = Instrument(5, "v", "TWO", Decimal("0.01"), Decimal("1"))
Level = tuple[Flag, int, int]


def level_rows(levels: list[Level], instrument: int = 0) -> RowArray:
    rows = new_rows(len(levels))
    rows["kind"], rows["instrument"] = Kind.LEVEL, instrument
    for row, (flag, px, qty) in zip(rows, levels, strict=True):
        row["flags"], row["px"], row["qty"] = flag, px, qty
    return rows


class SlowBook:
    def __init__(self) -> None:
        self.sides: dict[Flag, dict[int, int]] = {Flag.BID: {}, Flag.ASK: {}}

    def set(self, flag: Flag, px: int, qty: int) -> None:
        if qty:
            self.sides[flag][px] = qty
        else:
            self.sides[flag].pop(px, None)

    def depth(self) -> list[list[list[int]]]:
        return [
            [[px, self.sides[flag][px]] for px in sorted(self.sides[flag], reverse=flag == Flag.BID)]
            for flag in (Flag.BID, Flag.ASK)
        ]


PRICES = st.one_of(
    st.integers(1000, 1040), st.integers(0, 3000), st.integers(-(10**6), 10**6), st.integers(-(2**62) + 1, 2**62 - 1)
)
SIDES = st.sampled_from([Flag.BID, Flag.ASK])
CLEAR = (Flag.SNAPSHOT, 0, 0)
MOVES = st.lists(st.one_of(st.tuples(SIDES, PRICES, st.integers(0, 3)), st.just(CLEAR)), max_size=120)


@settings(deadline=None, max_examples=300)
@given(MOVES)
def test_a_ladder_equals_a_dictionary_wherever_prices_go(levels: list[Level]) -> None:
    books, slow = Ladders([TWO, ONE], span=256, far_levels=256), SlowBook()
    for level in levels:
        rows = level_rows([level])
        if level is CLEAR:
            rows["kind"] = Kind.CLEAR
            slow = SlowBook()
        else:
            slow.set(*level)
        books.apply(rows)
        assert [side.tolist() for side in books.depth(0, 1000)] == slow.depth()
        assert [side.tolist() for side in books.depth(0, 2)] == [side[:2] for side in slow.depth()]
    assert books.forgotten == books.foreign == books.bad == 0
    assert [len(side) for side in books.depth(5, 10)] == [0, 0]


def test_a_drifting_market_equals_a_dictionary() -> None:
    rng = np.random.default_rng(8)
    books, slow = Ladders([ONE], span=1024, far_levels=4096), SlowBook()
    mid = 0
    for step in range(300):
        mid += int(rng.integers(-300, 301))
        levels: list[Level] = []
        for flag, sign in ((Flag.BID, -1), (Flag.ASK, 1)):
            for px in list(slow.sides[flag]):  # the market goes through what stands in its way
                if sign * (px - mid) <= 0:
                    levels.append((flag, px, 0))
            for distance in rng.integers(1, 700, 10).tolist() + rng.integers(1, 10**5, 2).tolist():
                levels.append((flag, mid + sign * distance, int(rng.integers(0, 4))))
        for level in levels:
            slow.set(*level)
        books.apply(level_rows(levels))
        assert [side.tolist() for side in books.depth(0, 10**5)] == slow.depth(), step
    assert books.forgotten == 0


@kernel("void(int64, int64, int64)")
def set_at(side: int, key: int, qty: int) -> None:
    set_key(side, key, qty)


@kernel("void(int64)")
def clear_at(side: int) -> None:
    clear_side(side)


class SlowLadder:
    """A side as two dictionaries by key, near and far, with the window's rule in so many words."""

    def __init__(self, span: int, far_levels: int) -> None:
        self.span, self.far_levels, self.forgotten = span, far_levels, 0
        self.near: dict[int, int] = {}
        self.far: dict[int, int] = {}
        self.base = 0

    def set(self, key: int, qty: int) -> None:
        if abs(key) >= 2**62:
            self.forgotten += qty > 0
        elif qty <= 0:
            self.near.pop(key, None)
            self.far.pop(key, None)
            best = max(self.near, default=max(self.far, default=None))
            if best is not None and self.far and best - self.base < self.span // 4:
                self.centre(best)
        elif not self.near or key >= self.base + self.span:
            self.centre(key)
            self.near[key] = qty
        else:
            (self.near if key >= self.base else self.far)[key] = qty
        self.keep_the_best()

    def centre(self, key: int) -> None:
        self.base = (key - self.span * 3 // 4) // 64 * 64
        levels = self.near | self.far
        self.near = {k: q for k, q in levels.items() if k >= self.base}
        self.far = {k: q for k, q in levels.items() if k < self.base}
        self.keep_the_best()

    def keep_the_best(self) -> None:
        while len(self.far) > self.far_levels:
            del self.far[min(self.far)]
            self.forgotten += 1

    def best_first(self) -> list[list[int]]:
        return [[k, q] for k, q in sorted((self.near | self.far).items(), reverse=True)]


GUARD = 0xA5
KEYS = st.one_of(
    st.integers(1000, 1040), st.integers(0, 3000), st.integers(-(10**6), 10**6), st.integers(-(2**63), 2**63 - 1)
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.one_of(st.tuples(KEYS, st.integers(-1, 3)), st.none()), max_size=150),
    st.sampled_from([256, 512]),
    st.sampled_from([1, 2, 7, 300]),
)
def test_a_side_equals_two_dictionaries_and_never_writes_outside_itself(
    sets: list[tuple[int, int] | None], span: int, far_levels: int
) -> None:
    size = side_bytes(span, far_levels)
    memory = np.full(size + 128, GUARD, np.uint8)
    memory[64:-64] = 0
    lay_side(memory[64:], span, far_levels)
    side, slow = address_of(memory) + 64, SlowLadder(span, far_levels)
    for one in sets:
        if one is None:
            clear_at(side)
            slow.near, slow.far = {}, {}
        else:
            set_at(side, *one)
            slow.set(*one)
        expected = slow.best_first()
        assert count_levels(side) == len(expected)
        assert side_levels(side, 1, 1000).tolist() == expected
        assert side_levels(side, -1, 3).tolist() == [[-k, q] for k, q in expected[:3]]
    copy = np.zeros(size, np.uint8)
    copy_side(address_of(copy), side)
    assert side_levels(address_of(copy), 1, 1000).tolist() == slow.best_first()
    assert int(memory[64 : 64 + SIDE.itemsize].view(SIDE)["forgotten"][0]) == slow.forgotten
    assert (memory[:64] == GUARD).all() and (memory[-64:] == GUARD).all()


ENGINE_PRICES = st.one_of(st.integers(-50, 50), st.integers(-40_000, 40_000), st.integers(-(2**62) + 1, 2**62 - 1))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.one_of(st.tuples(SIDES, ENGINE_PRICES, st.integers(-1, 3)), st.just(CLEAR)), max_size=80))
def test_the_engines_book_tells_every_level_as_a_dictionary_does(
    make_desk: Callable[..., Any], moves: list[Level]
) -> None:
    desk, slow = make_desk(), SlowBook()
    desk.feed(desk.row(Kind.CLEAR))
    for flag, px, qty in moves:
        if flag == Flag.SNAPSHOT:
            desk.feed(desk.row(Kind.CLEAR))
            slow = SlowBook()
        else:
            desk.feed(desk.row(Kind.LEVEL, px=px, qty=qty, flags=flag))
            slow.set(flag, px, max(qty, 0))
    bids, asks = slow.depth()
    assert [side.tolist() for side in desk.engine.levels(0)] == [bids, asks]
    assert [side.tolist() for side in desk.engine.levels(0, 2)] == [bids[:2], asks[:2]]
    first = [side[0] if side else [NO_PX, 0] for side in (bids, asks)]
    assert desk.engine.touch(0) == (*first[0], *first[1])
    host = desk.engine._host_at
    for flag, side in ((Flag.BID, bids), (Flag.ASK, asks)):
        for k in range(len(side) + 2):
            told = [loop.query(host, what, 0, int(flag) << 32 | k) for what in (loop.DEPTH_PX, loop.DEPTH_QTY)]
            assert told == (side[k] if k < len(side) else [NO_PX, 0])


def test_the_same_levels_give_the_same_window_after_a_clear(make_desk: Callable[..., Any]) -> None:
    """What a side held before leaves no trace in what it can hold."""
    moved, fresh = make_desk(), make_desk()
    for px in (5, 90_000, 10**9, -(10**9), 44):
        moved.feed(moved.row(Kind.LEVEL, px=px, qty=1, flags=Flag.BID))
    for desk in (moved, fresh):
        desk.feed(desk.row(Kind.CLEAR))
        for px in (1000, 30_000, 20_000, -7):
            desk.feed(desk.row(Kind.LEVEL, px=px, qty=2, flags=Flag.BID))
    heads = []
    for desk in (moved, fresh):
        at = int(desk.engine.instruments["off_bids"][0])
        heads.append(desk.engine.arena.view(np.uint8)[at : at + SIDE.itemsize].view(SIDE)[0].tolist())
        assert [level[0] for level in desk.engine.levels(0)[0].tolist()] == [30_000, 20_000, 1000, -7]
    assert heads[0] == heads[1]


def test_a_price_that_is_none_is_forgotten_at_once_and_counted(desk: Any) -> None:
    before = [side.tolist() for side in desk.engine.levels(0)]
    for px in (2**62, -(2**62), 2**63 - 1, -(2**63)):
        for flag in (Flag.BID, Flag.ASK):
            desk.feed(desk.row(Kind.LEVEL, px=px, qty=1, flags=flag))
            desk.feed(desk.row(Kind.LEVEL, px=px, qty=0, flags=flag))
    assert [side.tolist() for side in desk.engine.levels(0)] == before
    assert desk.engine.levels_forgotten(0) == 8


@pytest.mark.parametrize(("n", "megabytes"), [(0, 0), (1, 3), (16, 39), (256, 102), (2048, 102), (8000, 397)])
def test_the_books_of_many_instruments_take_what_is_said(n: int, megabytes: int) -> None:
    assert 2 * n * side_bytes(*book_size(n)) <= megabytes * 10**6


BLOCK = st.lists(
    st.tuples(
        st.sampled_from([Kind.LEVEL] * 8 + [Kind.CLEAR, Kind.TRADE, Kind.QUOTE]),
        st.integers(0, 4),  # the instrument; from 3 on there is none
        st.sampled_from([Flag.BID, Flag.ASK, Flag.BID | Flag.LAST, Flag.ASK | Flag.COMMIT | Flag.OUTPUT]),
        st.integers(-60, 60),
        st.integers(0, 2),
        st.one_of(st.integers(0, 100), st.sampled_from([2**62, -5])),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=BLOCK, room=st.integers(0, 7))
def test_a_block_of_rows_leaves_what_they_leave_one_by_one(
    make_desk: Callable[..., Any], block: list[tuple[int, ...]], room: int
) -> None:
    rows = new_rows(len(block))
    for row, (kind, of, flags, px, qty, time) in zip(rows, block, strict=True):
        row["kind"], row["instrument"], row["flags"], row["px"], row["qty"] = kind, of, flags, px, qty
        row["ts_recv"], row["a"], row["code"], row["seq"] = time, px + 100, qty, 12345
    whole, single = make_desk(3), make_desk(3)
    whole.sink, single.sink = RowBuffer(ATOM_ROWS + room), RowBuffer()
    whole.feed(rows)
    for k in range(len(rows)):
        single.feed(rows[k : k + 1])
    got, each = whole.sink.rows(), single.sink.rows()
    assert got.tobytes() == each.tobytes()
    assert (whole.engine.arena == single.engine.arena).all()
    kept = got[got["flags"] & Flag.OUTPUT == 0]
    assert (got["seq"] == np.arange(len(got))).all()
    for name in ("kind", "instrument", "px", "qty", "ts_recv", "ts_event", "a", "b", "code", "source", "span"):
        assert (kept[name] == rows[name]).all()
    others = 0xFFFF ^ int(Flag.COMMIT | Flag.OUTPUT)
    assert (kept["flags"] & others == rows["flags"] & others).all()
    ends = [*(got["flags"][1:] & Flag.OUTPUT == 0), True][: len(got)]  # before the next input row
    assert (got["flags"] & Flag.COMMIT != 0).tolist() == ends
    if len(rows):
        times = [time for time in rows["ts_recv"].tolist() if time < 2**62]
        assert int(whole.engine.header["now_ns"]) == max([single.now, *times])


def test_a_failed_callbacks_copy_of_the_arena_holds_every_book(make_desk: Callable[..., Any]) -> None:
    desk = make_desk(instruments=3)
    for of in range(3):
        for px in (1000 + of, 700, -(10**9)):
            desk.feed(desk.row(Kind.LEVEL, px=px, qty=px & 7 or 1, flags=Flag.BID, instrument=of))
    twin, engine = desk.engine._copied(), desk.engine
    books = int(engine.instruments["off_bids"][0]) // 8
    assert (twin[:books] == engine.arena[:books]).all() and len(twin) == len(engine.arena)
    for of in range(3):
        sides = [(int(engine.instruments[name][of]), sign) for name, sign in (("off_bids", 1), ("off_asks", -1))]
        copied = [side_levels(address_of(twin) + at, sign, 100).tolist() for at, sign in sides]
        assert copied == [side.tolist() for side in engine.levels(of)] and len(copied[0]) == 3 + (of > 0)


def test_a_control_row_between_levels_is_not_passed_over(desk: Any) -> None:
    rows = level_rows([(Flag.BID, 5, 1), (Flag.BID, 6, 1), (Flag.BID, 7, 1)])
    rows[1:2] = control_row("halt", 7)
    desk.feed(rows)
    assert desk.engine.header["kill_switch"] == 1
    assert [level[0] for level in desk.engine.levels(0)[0].tolist()] == [1000, 7, 5]


def test_any_bytes_as_rows_leave_ladders_and_sorted_arrays_alike() -> None:
    feed, seeds = TARGETS["book-ladder"]()
    fuzz(feed, seeds, 100_000)


def test_a_full_side_forgets_its_worst_levels_and_counts_them() -> None:
    books = Ladders([ONE], span=256, far_levels=2)
    books.apply(level_rows([(Flag.BID, px, 1) for px in (10_000, 5, 6, 7, 4, 5)]))
    assert books.depth(0, 10)[0].tolist() == [[10_000, 1], [7, 1], [6, 1]]
    assert books.forgotten == 3


def test_rows_that_cannot_be_true_are_counted_and_change_nothing() -> None:
    books = Ladders([ONE])
    levels = [(Flag.BID, 1, -1), (Flag(0), 1, 1), (Flag.BID | Flag.ASK, 1, 1), (Flag.BID, 2**62, 1)]
    books.apply(level_rows([*levels, (Flag.ASK, -(2**63), 1)]))
    books.apply(level_rows([(Flag.BID, 1, 1)], instrument=7))
    books.apply(level_rows([(Flag.BID, 1, 1)], instrument=2**32 - 1))
    assert (books.bad, books.foreign, books.best(0)) == (5, 2, None)


def test_sizes_and_instruments_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match="span=1000"):
        Ladders([ONE], span=1000)
    with pytest.raises(ConfigError, match="far_levels=0"):
        Ladders([ONE], far_levels=0)
    with pytest.raises(ConfigError, match="each once"):
        Ladders([ONE, ONE])
    with pytest.raises(ConfigError, match="instrument=3"):
        Ladders([ONE]).depth(3, 1)
