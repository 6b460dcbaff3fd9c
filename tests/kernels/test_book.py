"""The sorted sides against a dictionary that knows everything."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.kernels.book import has_level, set_level_at
from hftlab.kernels.jit import address_of, kernel

GUARD = -7777777
FAR = 2**61


@kernel("boolean(int64, int64, int64, int64)")
def holds(side: int, n: int, sign: int, px: int) -> bool:
    return has_level(side, n, sign, px)


class SlowSide:
    """A side as a dictionary; the worst level goes when there are more than `capacity`."""

    def __init__(self, capacity: int, sign: int) -> None:
        self.capacity, self.sign, self.levels, self.forgotten = capacity, sign, dict[int, int](), 0

    def set(self, px: int, qty: int) -> None:
        if qty <= 0:
            self.levels.pop(px, None)
            return
        self.levels[px] = qty
        if len(self.levels) > self.capacity:
            del self.levels[min(self.levels, key=lambda p: self.sign * p)]
            self.forgotten += 1

    def ascending(self) -> list[tuple[int, int]]:
        return sorted(self.levels.items(), key=lambda level: self.sign * level[0])


PRICES = st.one_of(st.integers(1000, 1030), st.integers(-5, 5), st.integers(-FAR, FAR))
UPDATES = st.lists(st.tuples(PRICES, st.integers(-1, 4)), max_size=150)


@settings(deadline=None)
@given(UPDATES, st.sampled_from([1, 2, 7, 12, 200]), st.sampled_from([1, -1]))
def test_a_side_equals_a_sorted_dictionary_and_never_writes_outside_itself(
    updates: list[tuple[int, int]], capacity: int, sign: int
) -> None:
    slow = SlowSide(capacity, sign)
    memory = np.full(2 * capacity + 8, GUARD, np.int64)
    side, n = address_of(memory) + 32, 0
    for px, qty in updates:
        assert holds(side, n, sign, px) == (px in slow.levels)
        n = set_level_at(side, capacity, n, sign, px, qty)
        slow.set(px, qty)
        got = memory[4 : 4 + 2 * n].reshape(-1, 2)
        assert [(int(p), int(q)) for p, q in got] == slow.ascending()
    assert (memory[:4] == GUARD).all()
    assert (memory[4 + 2 * capacity :] == GUARD).all()


def test_a_side_of_the_recorded_spread_keeps_its_order() -> None:
    rng = np.random.default_rng(5)
    memory = np.zeros(2 * 4000, np.int64)
    side, n = address_of(memory), 0
    levels: dict[int, int] = {}
    for px, qty in zip(rng.integers(1, 18_000_000, 20_000).tolist(), rng.integers(0, 3, 20_000).tolist(), strict=True):
        if len(levels) < 4000 or qty == 0:
            n = set_level_at(side, 4000, n, 1, px, qty)
            if qty:
                levels[px] = qty
            else:
                levels.pop(px, None)
    assert memory[: 2 * n].reshape(-1, 2).tolist() == [[p, levels[p]] for p in sorted(levels)]
