"""What is fuzzed of the books: any bytes as rows; afterwards every link and sum of the tables is looked at."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from hftlab.books import L2Book, L3Book
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Flag, Kind, RowArray, new_rows
from hftlab.kernels.ladder import Ladders

__all__ = ["TARGETS", "check_l2", "check_l3"]

Target = tuple[Callable[[bytes], None], list[bytes]]
_FRESH_EVERY = 64


def check_l3(book: L3Book) -> None:
    """Raise AssertionError unless the tables of a book by order agree with each other in every link and sum."""
    tables = book.tables
    head, orders, levels = tables.head, tables.orders, tables.levels
    live = np.flatnonzero(orders["qty"] > 0)
    assert len(live) == head["live"] == np.count_nonzero(tables.index)
    assert (orders["qty"] >= 0).all()
    for slot in live.tolist():
        found = book.order(int(orders["ref"][slot]))
        assert found is not None and found.qty == orders["qty"][slot]
    seen = 0
    for number, side in enumerate(tables.sides):
        at, n = int(side["at"]), int(side["n"])
        assert n <= side["cap"] and at + int(side["cap"]) <= head["pool_cap"]
        keys = tables.keys[at : at + n]
        assert (keys[1:] > keys[:-1]).all()
        for key, level_slot in zip(keys.tolist(), tables.slots[at : at + n].tolist(), strict=True):
            level = levels[level_slot]
            assert (level["key"], level["side"]) == (key, number)
            slot, before, lots, count = int(level["first"]), 0, 0, 0
            while slot:
                order = orders[slot]
                assert (order["level"], order["prev"]) == (level_slot, before) and order["qty"] > 0
                lots, count = lots + int(order["qty"]), count + 1
                before, slot = slot, int(order["next"])
            assert (level["qty"], level["orders"], level["last"]) == (lots, count, before) and count > 0
            seen += count
    assert seen == len(live)


def check_l2(book: L2Book) -> None:
    """Raise AssertionError unless every side of a book by price is sorted, positive and within its bound."""
    for instrument in book.instruments():
        depth = book.depth(instrument, 1 << 20)
        for side, sign in ((depth.bids, -1), (depth.asks, 1)):
            assert len(side.px) <= book.tables.levels.shape[2]
            assert (np.diff(sign * side.px) > 0).all() and (side.qty > 0).all()


def _as_rows(data: bytes) -> RowArray:
    """Return bytes as rows, the last filled up with zeros; instruments and references folded so that they meet."""
    rows = np.frombuffer(data.ljust(-(-len(data) // 64) * 64, b"\0"), ROW).copy()
    rows["instrument"][rows["seq"] & 3 != 3] &= 3
    rows["a"][rows["seq"] & 12 != 12] &= 15
    rows["b"][rows["seq"] & 48 != 48] &= 15
    return rows


def _seeds(kinds: tuple[Kind, ...]) -> list[bytes]:
    """Return blocks of true rows: an arrival or level on each side, then each kind in turn."""
    rows = new_rows(4 + len(kinds))
    rows["kind"] = [kinds[0]] * 4 + list(kinds)
    rows["flags"] = [int(flag | Flag.LAST) for flag in (Flag.BID, Flag.ASK) * len(rows)][: len(rows)]
    rows["px"] = 100 + np.arange(len(rows)) % 5
    rows["qty"] = 1 + np.arange(len(rows)) % 3
    rows["a"], rows["b"] = np.arange(len(rows)), np.arange(len(rows)) + 3
    return [rows.tobytes(), rows[::-1].tobytes(), rows[:2].tobytes()]


def _target(make: Callable[[], L2Book | L3Book], kinds: tuple[Kind, ...]) -> Target:
    book, fed = make(), 0

    def feed(data: bytes) -> None:
        nonlocal book, fed
        fed += 1
        if fed % _FRESH_EVERY == 0:
            if isinstance(book, L3Book):
                check_l3(book)
            else:
                check_l2(book)
            book = make()
        book.apply(_as_rows(data))

    return feed, _seeds(kinds)


def _l3() -> Target:
    kinds = (Kind.ADD, Kind.REDUCE, Kind.EXECUTE, Kind.REPLACE, Kind.DELETE, Kind.CLEAR, Kind.BOOK_STATE)
    return _target(lambda: L3Book(orders=1, instruments=1, max_orders=64, max_instruments=64), kinds)


def _l2() -> Target:
    kinds = (Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.BOOK_STATE)
    return _target(lambda: L2Book(levels=4, max_instruments=64), kinds)


def _ladder() -> Target:
    """Return ladders beside sorted arrays that forget nothing: both must hold the same levels."""
    listed = [Instrument(k, "v", f"S{k}", Decimal(1), Decimal(1)) for k in range(4)]
    fed = 0

    def make() -> tuple[Ladders, L2Book]:
        return Ladders(listed, span=256, far_levels=1 << 14), L2Book(levels=1 << 14, max_instruments=4)

    ladders, book = make()

    def feed(data: bytes) -> None:
        nonlocal fed, ladders, book
        fed += 1
        rows = _as_rows(data)
        ladders.apply(rows)
        book.apply(rows)
        if fed % _FRESH_EVERY == 0:
            for k in book.instruments():
                depth = book.depth(k, 1 << 14)
                for side, levels in zip(ladders.depth(k, 1 << 14), (depth.bids, depth.asks), strict=True):
                    assert side.tolist() == np.stack([levels.px, levels.qty], axis=1).tolist()
            assert ladders.forgotten == 0
        if fed % (16 * _FRESH_EVERY) == 0:
            ladders, book = make()

    return feed, _seeds((Kind.LEVEL, Kind.CLEAR, Kind.LEVEL))


TARGETS = {"book-l2": _l2, "book-l3": _l3, "book-ladder": _ladder}
