"""The kept book and its CRC32 against a dictionary and zlib over the text itself."""

from __future__ import annotations

import zlib
from decimal import Decimal

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from hftlab.kernels.checksum import (
    ASKS,
    BIDS,
    CRC_TABLES,
    book_words,
    digest,
    drop_worst,
    level_count,
    level_px,
    level_qty,
    reset_book,
    set_level,
)

CHANGES = st.lists(
    st.tuples(
        st.sampled_from([BIDS, ASKS]), st.integers(0, 60), st.one_of(st.just(0), st.integers(1, 10**15)),
        st.integers(0, 4), st.integers(0, 4),
    ),
    max_size=120,
)  # fmt: skip
Level = tuple[int, int, int]
"""Lots, and the zeros that the venue's text has behind the digits of price and quantity."""


def text(count: int, decimals: int) -> str:
    """The venue's text, by way of a real decimal: without the point and leading zeros."""
    return f"{Decimal(count).scaleb(-decimals):.{decimals}f}".replace(".", "").lstrip("0")


def reference(sides: list[dict[int, Level]]) -> int:
    """CRC32 of the ten best asks and bids; one decimal of a tick and eight of a lot."""

    def level(px: int, of: Level) -> str:
        qty, px_zeros, qty_zeros = of
        return text(px * 10**px_zeros, 1 + px_zeros) + text(qty * 10**qty_zeros, 8 + qty_zeros)

    asks = "".join(level(at, sides[ASKS][at]) for at in sorted(sides[ASKS])[:10])
    bids = "".join(level(at, sides[BIDS][at]) for at in sorted(sides[BIDS], reverse=True)[:10])
    return zlib.crc32((asks + bids).encode())


@settings(max_examples=200, deadline=None)
@given(CHANGES, st.integers(1, 12))
def test_book_and_digest_equal_a_dictionary_and_zlib(
    changes: list[tuple[int, int, int, int, int]], depth: int
) -> None:
    books = np.zeros(book_words(depth) + 7, np.int64)
    base = 7
    reset_book(books, base, depth, 1, 1)
    sides: list[dict[int, Level]] = [{}, {}]
    for side, px, qty, px_zeros, qty_zeros in changes:
        assert set_level(books, base, CRC_TABLES, side, px, qty, px_zeros, qty_zeros)
        sides[side][px] = (qty, px_zeros, qty_zeros)
        if qty == 0:
            del sides[side][px]
        while level_count(books, base, side) > depth:
            worst = min(sides[side]) if side == BIDS else max(sides[side])
            assert drop_worst(books, base, side) == worst
            del sides[side][worst]
        best_first = sorted(sides[side], reverse=side == BIDS)
        assert [level_px(books, base, side, i) for i in range(len(best_first))] == best_first
        assert [level_qty(books, base, side, i) for i in range(len(best_first))] == [
            sides[side][p][0] for p in best_first
        ]
        assert level_count(books, base, side) == len(best_first)
        assert digest(books, base, CRC_TABLES) == reference(sides)


def test_units_turn_ticks_into_the_digits_of_the_text() -> None:
    books = np.zeros(book_words(10), np.int64)
    reset_book(books, 0, 10, 25, 5)
    assert set_level(books, 0, CRC_TABLES, BIDS, 3, 7, 1)
    assert digest(books, 0, CRC_TABLES) == zlib.crc32(b"750" + b"35")


def test_zeros_belong_to_one_level_and_go_with_its_text() -> None:
    books = np.zeros(book_words(10), np.int64)
    reset_book(books, 0, 10, 1, 1)
    assert set_level(books, 0, CRC_TABLES, ASKS, 35415, 5, 6, 8)
    assert set_level(books, 0, CRC_TABLES, ASKS, 35416, 70, 0, 0)
    assert digest(books, 0, CRC_TABLES) == zlib.crc32(b"35415000000" + b"500000000" + b"35416" + b"70")
    assert set_level(books, 0, CRC_TABLES, ASKS, 35415, 5)
    assert digest(books, 0, CRC_TABLES) == zlib.crc32(b"35415" + b"5" + b"35416" + b"70")


def test_zeros_that_the_text_has_not_are_left_out() -> None:
    books = np.zeros(book_words(10), np.int64)
    reset_book(books, 0, 10, 1, 1)
    assert set_level(books, 0, CRC_TABLES, ASKS, 35400, 50_000_000, -2, -7)
    assert digest(books, 0, CRC_TABLES) == zlib.crc32(b"354" + b"5")


def test_a_book_walks_through_its_array_without_losing_a_level() -> None:
    books = np.zeros(book_words(3), np.int64)
    reset_book(books, 0, 3, 1, 1)
    for side, step in ((BIDS, 1), (BIDS, -1), (ASKS, 1), (ASKS, -1)):
        for n in range(3000):  # the array holds 518 levels a side
            px = 10_000 + step * n
            assert set_level(books, 0, CRC_TABLES, side, px, 1)
            if level_count(books, 0, side) > 3:
                assert set_level(books, 0, CRC_TABLES, side, px - 3 * step, 0)
        held = sorted(level_px(books, 0, side, i) for i in range(3))
        assert held == sorted(10_000 + step * n for n in (2997, 2998, 2999))
        for px in held:
            assert set_level(books, 0, CRC_TABLES, side, px, 0)


def test_a_full_side_and_a_text_too_long_are_refused() -> None:
    books = np.zeros(book_words(1), np.int64)
    reset_book(books, 0, 1, 1, 1)
    held = sum(set_level(books, 0, CRC_TABLES, BIDS, px, 1) for px in range(1, 1000))
    assert held == level_count(books, 0, BIDS) == 512
    assert set_level(books, 0, CRC_TABLES, ASKS, 2**63 - 1, 2**63 - 1)  # 38 digits
    assert not set_level(books, 0, CRC_TABLES, ASKS, 2**63 - 1, 2**63 - 1, 2, 1)
    reset_book(books, 0, 1, 10, 10)
    assert not set_level(books, 0, CRC_TABLES, ASKS, 2**63 - 1, 1)
    assert not set_level(books, 0, CRC_TABLES, ASKS, 1, 2**63 - 1)
