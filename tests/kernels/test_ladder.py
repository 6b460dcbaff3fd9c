"""The window and what lies behind it against a dictionary that knows everything."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import Flag, Kind, RowArray, new_rows
from hftlab.kernels.ladder import Ladders

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
