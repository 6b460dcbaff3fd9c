"""The matching kernel against a slow reference: the same outcomes, trades and book, order by order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.core.rows import Side, Tif
from hftlab.kernels.matching import (
    MAX_ORDERS,
    Book,
    Matcher,
    Outcome,
    best_px,
    cancel,
    find_order,
    make_book,
    market_px,
    replace,
    submit,
)

GTC, IOC, FOK = int(Tif.GTC), int(Tif.IOC), int(Tif.FOK)
BUY, SELL = int(Side.BUY), int(Side.SELL)


@dataclass
class Resting:
    """One order of the reference."""

    count: int
    owner: int
    side: int
    px: int
    leaves: int
    cum: int


@dataclass
class Reference:
    """Price-time matching with lists and sorting: nothing shared with the kernel but the rules."""

    max_orders: int
    max_levels: int
    orders: list[Resting] = field(default_factory=list)  # in time priority
    count: int = 0
    fills: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    leaves: int = 0
    cum: int = 0

    def opposite(self, side: int, px: int) -> list[Resting]:
        sign = 1 if side == BUY else -1
        found = [o for o in self.orders if o.side != side and sign * (px - o.px) >= 0]
        return sorted(found, key=lambda o: sign * o.px)  # stable: time within price

    def lacks_level(self, side: int, px: int) -> bool:
        prices = {o.px for o in self.orders if o.side == side}
        return px not in prices and len(prices) == self.max_levels

    def arrive(self, owner: int, side: int, px: int, qty: int, tif: int) -> Outcome:
        asked = qty
        against = self.opposite(side, px)
        tradable = sum(o.leaves for o in against if not (owner and o.owner))
        if tif != FOK or tradable >= qty:
            for maker in against:
                if qty == 0:
                    break
                if owner and maker.owner:
                    self.orders.remove(maker)
                    self.fills.append((maker.count, maker.owner, maker.px, 0, maker.leaves, maker.cum))
                    continue
                traded = min(qty, maker.leaves)
                qty -= traded
                maker.leaves -= traded
                maker.cum += traded
                self.fills.append((maker.count, maker.owner, maker.px, traded, maker.leaves, maker.cum))
                if maker.leaves == 0:
                    self.orders.remove(maker)
        self.leaves, self.cum = qty, asked - qty
        if qty == 0:
            return Outcome.FILLED
        if tif in (IOC, FOK):
            return Outcome.EXPIRED
        self.count += 1
        self.orders.append(Resting(self.count, owner, side, px, qty, self.cum))
        return Outcome.RESTING

    def submit(self, owner: int, side: int, px: int, qty: int, tif: int, post_only: bool) -> Outcome:
        self.fills, self.leaves, self.cum = [], 0, 0
        if qty <= 0:
            return Outcome.BAD_QTY
        if post_only and self.opposite(side, px):
            return Outcome.WOULD_CROSS
        if tif not in (IOC, FOK) and (len(self.orders) == self.max_orders or self.lacks_level(side, px)):
            return Outcome.FULL
        return self.arrive(owner, side, px, qty, tif)

    def find(self, count: int) -> Resting | None:
        return next((o for o in self.orders if o.count == count), None)

    def cancel(self, count: int) -> int:
        order = self.find(count)
        if order is None:
            return int(Outcome.UNKNOWN)
        self.orders.remove(order)
        return order.leaves

    def replace(self, count: int, owner: int, px: int, qty: int, tif: int, post_only: bool, keep: bool) -> Outcome:
        self.fills, self.leaves, self.cum = [], 0, 0
        order = self.find(count)
        if order is None:
            return Outcome.UNKNOWN
        if qty <= 0:
            return Outcome.BAD_QTY
        if post_only and self.opposite(order.side, px):
            return Outcome.WOULD_CROSS
        if keep and tif == GTC and px == order.px and qty <= order.leaves:
            order.leaves, order.owner, order.cum = qty, owner, 0
            self.leaves = qty
            return Outcome.RESTING
        self.orders.remove(order)
        if tif not in (IOC, FOK) and self.lacks_level(order.side, px):
            self.orders = sorted([*self.orders, order], key=lambda o: o.count)
            return Outcome.FULL
        return self.arrive(owner, order.side, px, qty, tif)

    def depth(self, side: int) -> list[tuple[int, int, int]]:
        prices = sorted({o.px for o in self.orders if o.side == side}, reverse=side == BUY)
        at = [[o.leaves for o in self.orders if o.side == side and o.px == px] for px in prices]
        return [(px, sum(lots), len(lots)) for px, lots in zip(prices, at, strict=True)]


def depth(book: Book, side: int) -> list[tuple[int, int, int]]:
    n = int(book.head[side - 1])
    sign = 1 if side == BUY else -1
    return [(sign * int(k), int(q), int(c)) for k, q, c in book.levels[side - 1, :n, :3][::-1].tolist()]


def queue(book: Book, side: int) -> list[tuple[int, int, int]]:
    """Count, leaves and cum of every resting order of `side`, best level first, oldest first."""
    found = []
    for i in range(int(book.head[side - 1]) - 1, -1, -1):
        slot = int(book.levels[side - 1, i, 3])
        while slot >= 0:
            order = book.orders[slot]
            assert find_order(book, int(order[0])) == slot
            found.append((int(order[0]) >> 20, int(order[4]), int(order[5])))
            slot = int(order[6])
    return found


def fills(book: Book) -> list[tuple[int, ...]]:
    return [(int(f[0]) >> 20, *map(int, f[1:])) for f in book.fills[: book.head[5]]]


def assert_same(book: Book, reference: Reference) -> None:
    assert fills(book) == reference.fills
    assert (int(book.head[7]), int(book.head[8])) == (reference.leaves, reference.cum)
    for side in (BUY, SELL):
        assert depth(book, side) == reference.depth(side)
        best_first = sorted(
            (o for o in reference.orders if o.side == side), key=lambda o: -o.px if side == BUY else o.px
        )
        assert queue(book, side) == [(o.count, o.leaves, o.cum) for o in best_first]
        anonymous = sum(o.owner == 0 for o in reference.orders if o.side == side)
        assert book.head[9 + side - 1] == anonymous
    assert book.head[11] == sum(o.owner != 0 for o in reference.orders)
    if depth(book, BUY) and depth(book, SELL):
        assert depth(book, BUY)[0][0] < depth(book, SELL)[0][0]


def id_of(book: Book, count: int) -> int:
    """The kernel's id of the order that the reference calls `count`; of one that is gone, an id that was never used."""
    found = [int(i) for i in book.orders[:, 0] if int(i) >> 20 == count]
    return found[0] if found and count else (count + 10**6) << 20


sides = st.sampled_from([BUY, SELL])
tifs = st.sampled_from([GTC, GTC, GTC, IOC, FOK])
prices = st.integers(95, 105)
submits = st.tuples(
    st.just("submit"), st.integers(0, 2), sides, st.one_of(prices, st.none()), st.integers(0, 9), tifs, st.booleans()
)
cancels = st.tuples(st.just("cancel"), st.integers(0, 60))
replaces = st.tuples(
    st.just("replace"), st.integers(0, 60), prices, st.integers(0, 12), tifs, st.booleans(), st.booleans()
)


@given(
    st.lists(st.one_of(submits, submits, submits, cancels, replaces), max_size=120),
    st.sampled_from([(64, 32), (6, 32), (64, 3), (1, 1)]),
    st.sampled_from([0, 2**40, -(2**61)]),
)
@settings(max_examples=300, deadline=None)
def test_any_stream_gives_the_trades_and_book_of_the_reference(
    actions: list[tuple[Any, ...]], bounds: tuple[int, int], shift: int
) -> None:
    book, reference = make_book(*bounds), Reference(*bounds)
    for verb, *given_ in actions:
        before = sum(o.leaves for o in reference.orders)
        if verb == "submit":
            owner, side, px, qty, tif, post_only = given_
            limit = market_px(side) if px is None else px + shift
            if px is None:
                tif = IOC
            outcome = submit(book, owner, side, limit, qty, tif, post_only)
            assert outcome == reference.submit(owner, side, limit, qty, tif, post_only)
            traded = sum(f[3] for f in reference.fills)
            killed = sum(f[4] for f in reference.fills if f[3] == 0)
            rested = reference.leaves if outcome == Outcome.RESTING else 0
            assert sum(o.leaves for o in reference.orders) == before - traded - killed + rested
            if outcome > 0:
                assert traded + reference.leaves == qty
        elif verb == "cancel":
            canceled = cancel(book, id_of(book, given_[0]))
            assert canceled == reference.cancel(given_[0])
            reference.fills, reference.leaves, reference.cum = fills(book), int(book.head[7]), int(book.head[8])
        else:
            count, px, qty, tif, post_only, keep = given_
            order = reference.find(count)
            owner = 0 if order is None else order.owner
            outcome = replace(book, id_of(book, count), owner, px + shift, qty, tif, post_only, keep)
            assert outcome == reference.replace(count, owner, px + shift, qty, tif, post_only, keep)
        assert_same(book, reference)


@given(st.lists(submits, max_size=40))
@settings(max_examples=20, deadline=None)
def test_the_compiled_kernel_and_its_python_source_agree(actions: list[tuple[Any, ...]]) -> None:
    compiled, plain = make_book(32, 16), make_book(32, 16)
    for _, owner, side, px, qty, tif, post_only in actions:
        order = (owner, side, 100 if px is None else px, qty, tif, post_only)
        assert submit(compiled, *order) == submit.py_func(plain, *order)
        for left, right in zip(compiled, plain, strict=True):
            np.testing.assert_array_equal(left, right)


def rest(book: Book, side: int, px: int, qty: int, owner: int = 0) -> int:
    assert submit(book, owner, side, px, qty, GTC, False) == Outcome.RESTING
    return int(book.head[6])


def test_the_oldest_order_of_a_level_fills_first_at_the_resting_price() -> None:
    book = make_book(16, 8)
    first, second = rest(book, SELL, 100, 5), rest(book, SELL, 100, 5)
    submit(book, 0, BUY, 103, 7, GTC, False)
    assert book.fills[:2, [0, 2, 3]].tolist() == [[first, 100, 5], [second, 100, 2]]


def test_a_smaller_quantity_keeps_its_place_and_a_larger_one_loses_it() -> None:
    book = make_book(16, 8)
    first, second = rest(book, BUY, 100, 5), rest(book, BUY, 100, 5)
    assert replace(book, first, 0, 100, 3, GTC, False, True) == Outcome.RESTING
    assert [count for count, _, _ in queue(book, BUY)] == [first >> 20, second >> 20]
    replace(book, first, 0, 100, 6, GTC, False, True)
    assert [count for count, _, _ in queue(book, BUY)] == [second >> 20, int(book.head[6]) >> 20]


def test_a_replace_without_priority_goes_to_the_back_even_when_smaller() -> None:
    book = make_book(16, 8)
    first, second = rest(book, BUY, 100, 5), rest(book, BUY, 100, 5)
    replace(book, first, 0, 100, 3, GTC, False, False)
    assert queue(book, BUY)[0][0] == second >> 20
    assert find_order(book, first) == -1


def test_a_replacement_is_a_new_order_whose_fills_count_from_zero() -> None:
    book = make_book(16, 8)
    order = rest(book, BUY, 100, 5)
    submit(book, 0, SELL, 100, 2, GTC, False)
    assert replace(book, order, 0, 99, 0, GTC, False, False) == Outcome.BAD_QTY
    assert replace(book, order, 0, 99, 6, GTC, False, False) == Outcome.RESTING
    assert queue(book, BUY) == [(int(book.head[6]) >> 20, 6, 0)]


def test_owned_orders_do_not_trade_with_each_other_and_the_resting_one_expires() -> None:
    book = make_book(16, 8)
    rest(book, SELL, 100, 5, owner=7)
    rest(book, SELL, 100, 5)
    assert submit(book, 8, BUY, 100, 5, GTC, False) == Outcome.FILLED
    assert book.fills[:2, [1, 3, 4]].tolist() == [[7, 0, 5], [0, 5, 0]]


def test_fok_expires_whole_when_only_ones_own_order_would_complete_it() -> None:
    book = make_book(16, 8)
    rest(book, SELL, 100, 5, owner=7)
    rest(book, SELL, 101, 4)
    assert submit(book, 8, BUY, 101, 5, FOK, False) == Outcome.EXPIRED
    assert depth(book, SELL) == [(100, 5, 1), (101, 4, 1)]


def test_a_full_order_table_refuses_and_a_taker_may_still_trade() -> None:
    book = make_book(2, 8)
    rest(book, SELL, 100, 5)
    rest(book, SELL, 101, 5)
    assert submit(book, 0, BUY, 99, 1, GTC, False) == Outcome.FULL
    assert submit(book, 0, BUY, 100, 1, IOC, False) == Outcome.FILLED


def test_a_full_level_table_refuses_a_new_price_but_not_a_known_one() -> None:
    book = make_book(8, 1)
    rest(book, BUY, 100, 5)
    assert submit(book, 0, BUY, 99, 1, GTC, False) == Outcome.FULL
    rest(book, BUY, 100, 1)


def test_the_id_of_a_gone_order_is_never_valid_again() -> None:
    book = make_book(1, 1)
    gone = rest(book, BUY, 100, 5)
    assert cancel(book, gone) == 5
    again = rest(book, BUY, 100, 5)
    assert again > gone and cancel(book, gone) == Outcome.UNKNOWN
    assert cancel(book, 0) == cancel(book, -1) == cancel(book, 2**62 + MAX_ORDERS - 1) == Outcome.UNKNOWN


def test_an_empty_side_has_the_worst_price() -> None:
    book = make_book(4, 4)
    assert best_px(book, BUY) == market_px(SELL) and best_px(book, SELL) == market_px(BUY)


@pytest.mark.parametrize("bounds", [(0, 4), (MAX_ORDERS + 1, 4), (4, 0)])
def test_bounds_out_of_range_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"max_(orders|levels) is -?\d+; expected"):
        make_book(*bounds)


def test_levels_far_from_the_touch_are_found_and_kept_in_order() -> None:
    book, reference = make_book(1024, 512), Reference(1024, 512)
    chance = np.random.default_rng(5)
    for px in [int(p) for p in chance.permutation(300)] * 2:
        side = 1 if px < 150 else 2
        submit(book, 0, side, px, 1 + px, GTC, False)
        reference.submit(0, side, px, 1 + px, GTC, False)
        assert_same(book, reference)
    for count in [int(c) for c in chance.permutation(600)][:500]:
        assert cancel(book, id_of(book, count + 1)) == reference.cancel(count + 1)
        reference.fills, reference.leaves, reference.cum = fills(book), int(book.head[7]), int(book.head[8])
        assert_same(book, reference)


@given(st.lists(st.one_of(submits, submits, cancels, replaces), max_size=60))
@settings(max_examples=50, deadline=None)
def test_a_matcher_does_what_the_kernels_do(actions: list[tuple[Any, ...]]) -> None:
    matcher, book = Matcher(64, 32), make_book(64, 32)
    for verb, *given_ in actions:
        if verb == "submit":
            owner, side, px, qty, tif, post_only = given_
            order = (owner, side, 100 if px is None else px, qty, tif, post_only)
            assert matcher.submit(*order) == submit(book, *order)
            assert matcher.last_id == book.head[6]
            assert matcher.fills.tolist() == book.fills[: book.head[5]].tolist()
        elif verb == "cancel":
            assert matcher.cancel(id_of(matcher.book, given_[0])) == cancel(book, id_of(book, given_[0]))
        else:
            count, px, qty, tif, post_only, keep = given_
            change = (id_of(book, count), 7, px, qty, tif, post_only, keep)
            assert matcher.replace(*change) == replace(book, *change)
        for left, right in zip(matcher.book, book, strict=True):
            np.testing.assert_array_equal(left, right)
