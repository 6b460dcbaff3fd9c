"""Books as a quant uses them, on recorded days; the consolidated book against a slow one; any bytes as rows."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.books import Best, ConsolidatedBook, L2Book, L3Book, Touch
from hftlab.codecs.dbn import DbnDecoder, read_metadata
from hftlab.codecs.lobster import LobsterDecoder, read_levels
from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_books import TARGETS, check_l2, check_l3

FUZZ_INPUTS = 100_000
BID, ASK = Flag.BID, Flag.ASK


# --- recorded


def test_lobster_messages_lead_from_each_recorded_book_to_the_next(shared_data: Path) -> None:
    """998 of 998 tops; at ten levels all but the 14 that bring in an eleventh, which no message told of."""
    folder = shared_data / "l3"
    messages = next(folder.glob("AAPL*_message_10.csv")).read_bytes().splitlines()
    books = next(folder.glob("AAPL*_orderbook_10.csv")).read_bytes().splitlines()
    decoder, out, book = LobsterDecoder(), new_rows(64), L3Book()
    book.apply(out[: decoder.seed(books[0], messages[0], out)])
    book.apply(out[: decoder.decode(messages[0], out)])
    tops = depths = 0
    for message, told in zip(messages[1:], books[1:], strict=True):
        book.apply(out[: decoder.decode(message, out)])
        recorded = read_levels(told)
        assert recorded is not None
        depth = book.depth(0, 10)
        ours = tuple(
            list(zip(side.px.tolist(), side.qty.tolist(), strict=True)) for side in (depth.bids, depth.asks)
        )
        tops += [side[0] for side in ours] == [side[0] for side in recorded]
        depths += ours == recorded
        book.apply(out[: decoder.reveal(told, out)])
    assert (len(messages) - 1, tops, depths) == (998, 998, 984)
    assert book.counts["unknown"] == book.counts["overdrawn"] == book.counts["duplicate"] == 0
    check_l3(book)


def dbn_rows(path: Path, known: list[Instrument]) -> tuple[RowArray, list[Instrument]]:
    with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
        data = bytes(stream.read())
    metadata = read_metadata(data)
    assert metadata is not None
    decoder, rest, parts = DbnDecoder(metadata, known), data[metadata.length :], []
    while rest:
        out = new_rows(4096)
        taken, n = decoder.decode(rest, out)
        parts.append(out[:n])
        rest = rest[taken:]
    return join_rows(parts), decoder.instruments


def test_recorded_orders_of_es_give_the_documented_book(shared_data: Path) -> None:
    folder = shared_data / "l3"
    _, known = dbn_rows(folder / "orderbooks_definition.dbn.zst", [])
    rows, instruments = dbn_rows(next(folder.glob("orderbooks_mbo*")), known)
    (es,) = instruments
    book = L3Book()
    book.apply(rows)
    assert book.level_counts(es.id) == (976, 571)
    best = book.best(es.id)
    assert best.bid_px is not None and best.ask_px is not None
    assert (es.px(best.bid_px), best.bid_qty) == (Decimal("5214.00"), 28)
    assert (es.px(best.ask_px), best.ask_qty) == (Decimal("5214.25"), 17)
    assert book.state(es.id) is Touch.LIVE
    assert np.count_nonzero(rows["flags"][rows["kind"] == Kind.ADD] & Flag.SNAPSHOT) == 13_600
    assert all(book.counts[name] == 0 for name in ("unknown", "duplicate", "overdrawn", "bad", "dropped"))
    check_l3(book)
    queue = book.orders(es.id, BID, best.bid_px)
    assert queue.qty.sum() == 28
    last = book.position(int(queue.ref[-1]))
    assert last is not None
    assert (last.orders_ahead, last.lots_ahead) == (len(queue.ref) - 1, int(queue.qty[:-1].sum()))


# --- one venue


def levels(*entries: tuple[int, int, int, int], kind: Kind = Kind.LEVEL) -> RowArray:
    """Rows from (instrument, side, px, qty), the last of them ending the message; a = place, from 1."""
    rows = new_rows(len(entries))
    for k, (row, (instrument, side, px, qty)) in enumerate(zip(rows, entries, strict=True)):
        row["kind"], row["instrument"], row["flags"], row["px"], row["qty"] = kind, instrument, side, px, qty
        row["a"] = k + 1
    rows["flags"][-1:] |= np.uint16(Flag.LAST)
    return rows


def state_row(instrument: int, state: BookState) -> RowArray:
    row = new_rows(1)
    row["kind"], row["instrument"], row["code"] = Kind.BOOK_STATE, instrument, state
    return row


@pytest.mark.parametrize(("make", "kind"), [(L2Book, Kind.LEVEL), (L3Book, Kind.ADD)])
def test_locked_and_crossed_books_are_seen_and_counted(make: Any, kind: Kind) -> None:
    book = make()
    assert book.state() is Touch.EMPTY
    for px, side, expected in ((100, BID, Touch.ONE_SIDED), (102, ASK, Touch.LIVE), (101, ASK, Touch.LIVE)):
        rows = levels((0, side, px, 1), kind=kind)
        rows["a"] = px
        book.apply(rows)
        assert book.state() is expected
    for ref, (px, side, expected) in enumerate(((101, BID, Touch.LOCKED), (103, BID, Touch.CROSSED))):
        rows = levels((0, side, px, 1), kind=kind)
        rows["a"] = 1000 + ref
        book.apply(rows)
        assert book.state() is expected
    assert (book.counts["locked"], book.counts["crossed"]) == (1, 1)


@pytest.mark.parametrize("make", [L2Book, L3Book])
def test_a_book_is_stale_while_its_feed_says_so(make: Any) -> None:
    book = make()
    book.apply(levels((0, BID, 1, 1), (0, ASK, 2, 1), kind=Kind.LEVEL if make is L2Book else Kind.ADD))
    assert book.state() is Touch.LIVE
    for told, seen in (
        (BookState.STALE, Touch.STALE), (BookState.RESYNCING, Touch.RESYNCING), (BookState.LIVE, Touch.LIVE),
    ):  # fmt: skip
        book.apply(state_row(0, told))
        assert book.state() is seen


def test_quote_newer_than_the_levels_is_the_touch_until_they_catch_up() -> None:
    book = L2Book()
    book.apply(levels((0, BID, 99, 5), (0, ASK, 101, 6)))
    quote = levels((0, BID, 100, 1), kind=Kind.QUOTE)
    quote["a"] = 7
    book.apply(quote)
    assert book.best() == Best(100, 1, 101, 6)
    assert book.depth().bids.px.tolist() == [99]
    book.apply(levels((0, BID, 98, 2)))
    assert book.best().bid_px == 100, "the levels are of an older sequence"
    caught_up = levels((0, BID, 98, 3))
    caught_up["a"] = 7
    book.apply(caught_up)
    assert book.best() == Best(99, 5, 101, 6)


def test_books_are_shown_as_a_table() -> None:
    book = L3Book()
    rows = levels((3, BID, 99, 5), (3, BID, 98, 7), (3, ASK, 101, 4), kind=Kind.ADD)
    book.apply(rows)
    assert repr(book).splitlines() == [
        "L3Book of 1 instrument",
        "instrument 3: LIVE, 2 bid and 1 ask levels",
        "orders  qty  bid  ask  qty  orders",
        "     1    5   99  101    4       1",
        "     1    7   98",
    ]


def test_what_is_not_there_is_none_or_empty() -> None:
    book = L3Book()
    assert book.best(9) == Best(None, None, None, None)
    assert book.order(5) is None and book.position(5) is None and book.order(-1) is None
    assert len(book.orders(0, BID, 7).ref) == len(book.orders(1 << 20, BID, 7).ref) == 0
    assert book.level_counts(1 << 20) == (0, 0) and repr(book) == "L3Book of 0 instruments"
    assert L2Book().best(77) == Best(None, None, None, None)
    assert len(L2Book().depth(77).bids.px) == 0


def test_wrong_arguments_are_named() -> None:
    book = L3Book()
    with pytest.raises(ConfigError, match="depth is 0"):
        book.depth(0, 0)
    with pytest.raises(ConfigError, match="side is 3"):
        book.orders(0, 3, 1)
    with pytest.raises(ConfigError, match="array of int64"):
        book.apply(np.zeros(3, np.int64))  # type: ignore[arg-type]  # the mistake under test


def test_rows_that_may_not_be_written_are_applied() -> None:
    rows = levels((0, BID, 1, 2))
    rows.flags.writeable = False
    book = L2Book()
    book.apply(rows[::1])
    book.apply(rows[::2])
    assert book.best().bid_px == 1


# --- several venues


def venue(number: int, tick: str = "0.01", lot: str = "1") -> Instrument:
    return Instrument(number, f"venue{number}", "BTC", Decimal(tick), Decimal(lot))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["0.01", "0.025", "0.5", "0.1", "3"]), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2]), st.integers(1, 40), st.integers(0, 3)), max_size=40),
    st.sets(st.integers(0, 3)),
)
def test_best_of_all_venues_equals_the_reference_in_exact_fractions(
    ticks: list[str], entries: list[tuple[int, int, int, int]], stale: set[int]
) -> None:
    venues = [venue(k, tick, tick) for k, tick in enumerate(ticks)]
    book = ConsolidatedBook(venues)
    entries = [entry for entry in entries if entry[0] < len(venues)]
    slow: dict[tuple[int, int], dict[int, int]] = {}
    if entries:
        book.apply(levels(*entries))
    for k in stale:
        book.apply(state_row(k, BookState.RESYNCING))
    for k, side, px, qty in entries:
        slow.setdefault((k, side), {})[px] = qty
    best = book.best()
    for side, px, qty, at in ((1, best.bid_px, best.bid_qty, best.bid_venues), (2, best.ask_px, best.ask_qty, best.ask_venues)):  # fmt: skip  # noqa: E501
        shown: dict[Fraction, dict[str, Fraction]] = {}
        for k, one in enumerate(venues):
            held = {p: q for p, q in slow.get((k, side), {}).items() if q > 0}
            if held and k not in stale:
                p = max(held) if side == 1 else min(held)
                shown.setdefault(p * Fraction(one.tick_size), {})[one.venue] = held[p] * Fraction(one.lot_size)
        if not shown:
            assert (px, qty, at) == (None, 0, {})
            continue
        wanted = max(shown) if side == 1 else min(shown)
        assert px is not None
        assert px * Fraction(book.tick_size) == wanted
        assert {name: lots * Fraction(book.lot_size) for name, lots in at.items()} == shown[wanted]
        assert qty == sum(at.values())
    assert best.stale == tuple(one.venue for k, one in enumerate(venues) if k in stale)
    if best.bid_px is not None and best.ask_px is not None:
        gap = best.bid_px - best.ask_px
        assert best.state is (Touch.LIVE if gap < 0 else Touch.LOCKED if gap == 0 else Touch.CROSSED)


def test_venues_on_different_grids_lock_and_cross_each_other_exactly() -> None:
    book = ConsolidatedBook([venue(0, "0.25"), venue(1, "0.1")])
    assert book.tick_size == Decimal("0.05")
    book.apply(levels((0, BID, 2, 1), (1, ASK, 5, 2)))
    best = book.best()
    assert (best.bid_px, best.ask_px, best.state) == (10, 10, Touch.LOCKED)
    book.apply(levels((1, ASK, 4, 2)))
    assert book.best().state is Touch.CROSSED


def test_size_is_summed_at_the_touch_and_each_venue_is_named() -> None:
    book = ConsolidatedBook([venue(0, lot="0.5"), venue(1), venue(2)])
    book.apply(levels((0, BID, 100, 3), (1, BID, 100, 2), (2, BID, 99, 50)))
    best = book.best()
    assert (best.bid_qty, best.bid_venues) == (7, {"venue0": 3, "venue1": 4})
    assert book.depth(2).bids.qty.tolist() == [7, 100]


def test_a_silent_venue_is_left_out_when_its_last_row_is_too_old() -> None:
    book = ConsolidatedBook([venue(0), venue(1)], max_age_ns=1000)
    for k, px, ts in ((0, 105, 5_000), (1, 100, 5_900)):
        rows = levels((k, BID, px, 1))
        rows["ts_recv"] = ts
        book.apply(rows)
    assert (book.best().bid_px, book.stale()) == (105, ())
    assert book.best(now_ns=6_001).stale == ("venue0",)
    assert book.best(now_ns=6_001).bid_px == 100
    everybody_silent = book.best(now_ns=60_000)
    assert (everybody_silent.state, everybody_silent.bid_px) == (Touch.STALE, None)
    assert repr(book).startswith("ConsolidatedBook of venue0, venue1: ONE_SIDED")


def test_a_consolidated_book_may_stand_on_books_by_order() -> None:
    book = ConsolidatedBook([venue(0), venue(1)], L3Book())
    book.apply(levels((0, BID, 7, 1), (1, ASK, 9, 2), kind=Kind.ADD))
    assert (book.best().bid_px, book.best().ask_px) == (7, 9)


def test_grids_without_a_common_step_in_int64_are_refused() -> None:
    with pytest.raises(OffGridError, match="tick_size of venue1"):
        ConsolidatedBook([venue(0, "1e-15"), venue(1, "1e5")])
    book = ConsolidatedBook([venue(0, "1e-9"), venue(1, "1e5")])
    book.apply(levels((1, BID, 2**50, 1)))
    with pytest.raises(OffGridError, match="px of venue1"):
        book.best()


def test_venues_must_be_several_and_each_once() -> None:
    with pytest.raises(ConfigError, match="empty"):
        ConsolidatedBook([])
    with pytest.raises(ConfigError, match="each venue and id once"):
        ConsolidatedBook([venue(0), venue(0)])


# --- any bytes


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_any_bytes_are_rows_that_leave_the_books_whole(name: str) -> None:
    feed, seeds = TARGETS[name]()
    fuzz(feed, seeds, FUZZ_INPUTS)


def test_the_check_of_a_book_finds_a_broken_link() -> None:
    book = L3Book()
    book.apply(levels((0, BID, 1, 2), (0, BID, 1, 3), kind=Kind.ADD))
    check_l3(book)
    book.tables.orders["next"][2] = 1
    with pytest.raises(AssertionError):
        check_l3(book)
    other = L2Book()
    other.apply(levels((0, BID, 1, 2), (0, BID, 2, 3)))
    check_l2(other)
    other.tables.levels[0, 0, 0, 0] = 9
    with pytest.raises(AssertionError):
        check_l2(other)
