"""The local book rule: what leaves a connection is in order and without gaps, whatever comes in."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, Flag, Kind
from hftlab.kernels.jit import address_of
from hftlab.kernels.words import BYTES_AT
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_frames import TARGETS
from hftlab.venues.binance.capture import is_snapshot, read_capture, read_snapshots
from hftlab.venues.binance.connection import BUFFER_ROWS, SNAPSHOT_RETRY_NS, MarketConnection
from hftlab.venues.binance.messages import instruments_from_exchange_info

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.000001"))
ETH = Instrument(1, "binance", "ETHUSDT", Decimal("0.01"), Decimal("0.0001"))
SECOND = 1_000_000_000


def delta(symbol: str, first: int, last: int, bids: Any = (), asks: Any = ()) -> bytes:
    event = {"e": "depthUpdate", "E": 1700000000000, "s": symbol, "U": first, "u": last, "b": bids, "a": asks}
    return json.dumps(event, separators=(",", ":")).encode()


def snapshot(last: int, bids: Any = (("10.00", "1"),), asks: Any = (("11.00", "1"),)) -> bytes:
    return json.dumps({"lastUpdateId": last, "bids": bids, "asks": asks}, separators=(",", ":")).encode()


class Book:
    """A plain-dict book fed by rows: what a consumer of the journal would see."""

    def __init__(self) -> None:
        self.sides: dict[int, dict[int, int]] = {1: {}, 2: {}}
        self.state = BookState.EMPTY
        self.last = -1

    def apply(self, row: Any) -> None:
        kind, flags = int(row["kind"]), int(row["flags"])
        if kind == Kind.CLEAR:
            self.sides = {1: {}, 2: {}}
        elif kind == Kind.LEVEL:
            side = self.sides[flags & 3]
            if row["qty"]:
                side[int(row["px"])] = int(row["qty"])
            else:
                side.pop(int(row["px"]), None)
            self.last = int(row["a"])
        elif kind == Kind.BOOK_STATE:
            self.state = BookState(int(row["code"]))

    def top(self) -> tuple[int, int, int, int]:
        bids, asks = self.sides[1], self.sides[2]
        return max(bids), bids[max(bids)], min(asks), asks[min(asks)]


class Tape:
    """A connection, the array it writes into and a book for each instrument."""

    def __init__(self, *instruments: Instrument, **options: Any) -> None:
        self.connection = MarketConnection(instruments or (BTC, ETH), **options)
        self.out = np.zeros(16384, ROW)
        self.books = {i.id: Book() for i in (instruments or (BTC, ETH))}
        self.connection.on_open(0)

    def take(self, n: int) -> np.ndarray[Any, Any]:
        rows = self.out[:n].copy()
        for row in rows:
            self.books[int(row["instrument"])].apply(row)
        return rows

    def frame(self, frame: bytes, now: int = 0) -> np.ndarray[Any, Any]:
        return self.take(self.connection.on_frame(frame, now, self.out))

    def snap(self, symbol: str, payload: bytes, now: int = 0) -> np.ndarray[Any, Any]:
        return self.take(self.connection.on_snapshot(symbol, payload, now, self.out))

    def poll(self, now: int) -> np.ndarray[Any, Any]:
        return self.take(self.connection.poll(now, self.out))


def kinds(rows: np.ndarray[Any, Any]) -> list[str]:
    return [Kind(int(k)).name for k in rows["kind"]]


def synced(**options: Any) -> Tape:
    tape = Tape(**options)
    tape.frame(delta("BTCUSDT", 5, 8, [["9.00", "1"]]))
    tape.snap("BTCUSDT", snapshot(7))
    assert tape.books[0].state == BookState.LIVE
    return tape


def test_deltas_wait_for_a_snapshot_and_follow_it() -> None:
    tape = Tape()
    assert len(tape.frame(delta("BTCUSDT", 1, 3, [["7.00", "1"]]))) == 0
    assert tape.connection.wants_snapshot() == ["BTCUSDT"]
    assert tape.connection.wants_snapshot() == []
    assert len(tape.frame(delta("BTCUSDT", 4, 8, [["9.00", "2"]]))) == 0
    rows = tape.snap("BTCUSDT", snapshot(5))
    assert kinds(rows) == ["CLEAR", "LEVEL", "LEVEL", "LEVEL", "BOOK_STATE"]
    assert (rows[3]["px"], rows[3]["qty"], rows[3]["a"]) == (900, 2_000_000, 8)
    assert rows[-1]["code"] == BookState.LIVE and rows[-1]["a"] == 8
    assert (rows["flags"] & Flag.LAST).tolist() == [0, 0, 0, 0, Flag.LAST]
    assert 700 not in tape.books[0].sides[1]  # the snapshot already held ids 1 to 3
    rows = tape.frame(delta("BTCUSDT", 9, 9, [], [["11.00", "0"]]))
    assert kinds(rows) == ["LEVEL"] and rows[0]["flags"] == Flag.ASK | Flag.LAST


def test_a_snapshot_older_than_the_first_buffered_delta_is_asked_for_again() -> None:
    tape = Tape()
    tape.frame(delta("BTCUSDT", 10, 12))
    assert tape.connection.wants_snapshot() == ["BTCUSDT"]
    assert len(tape.snap("BTCUSDT", snapshot(8))) == 0
    assert tape.connection.counts["old_snapshots"] == 1
    assert tape.connection.wants_snapshot() == ["BTCUSDT"]
    assert len(tape.snap("BTCUSDT", snapshot(9))) == 4  # 9 + 1 == U: contiguous
    assert tape.books[0].state == BookState.LIVE


def test_old_snapshots_are_asked_for_ever_more_slowly() -> None:
    tape = Tape()
    tape.frame(delta("BTCUSDT", 100, 110))
    asked = []
    for now in range(0, 20_000_000_000, 10_000_000):
        tape.poll(now)
        if "BTCUSDT" in tape.connection.wants_snapshot():
            asked.append(now // 1_000_000)
            tape.snap("BTCUSDT", snapshot(3), now)
    gaps = [after - before for before, after in pairwise(asked)]
    assert gaps == [10, 110, 210, 410, 810, 1610, 3210, 5010, 5010]


def test_a_gap_resyncs_that_symbol_alone() -> None:
    tape = synced()
    tape.frame(delta("ETHUSDT", 1, 1))
    tape.snap("ETHUSDT", snapshot(1))
    tape.connection.wants_snapshot()
    rows = tape.frame(delta("BTCUSDT", 11, 12, [["9.50", "1"]]))
    assert kinds(rows) == ["BOOK_STATE"] and rows[0]["flags"] == Flag.LAST
    assert (rows[0]["code"], rows[0]["a"], rows[0]["b"]) == (BookState.RESYNCING, 9, 11)
    assert tape.connection.wants_snapshot() == ["BTCUSDT"]
    assert len(tape.frame(delta("BTCUSDT", 13, 13, [["9.60", "1"]]))) == 0
    assert kinds(tape.frame(delta("ETHUSDT", 2, 2, [["9.00", "1"]]))) == ["LEVEL"]
    assert tape.books[1].state == BookState.LIVE
    rows = tape.snap("BTCUSDT", snapshot(11))
    assert kinds(rows)[0] == "CLEAR" and tape.books[0].state == BookState.LIVE
    assert tape.books[0].top()[0] == 1000 and {950, 960} <= set(tape.books[0].sides[1])
    assert tape.connection.counts["gaps"] == 1


def test_duplicates_and_late_deltas_are_ignored_and_counted() -> None:
    tape = synced()
    for first, last in ((5, 8), (1, 2), (8, 8)):
        assert len(tape.frame(delta("BTCUSDT", first, last, [["1.00", "5"]]))) == 0
    assert tape.connection.counts["duplicates"] == 3
    assert 100 not in tape.books[0].sides[1]
    assert len(tape.frame(delta("BTCUSDT", 7, 9, [["1.00", "5"]]))) == 1  # overlaps, and reaches further


def test_an_empty_delta_moves_the_book_on_without_rows() -> None:
    tape = synced()
    assert len(tape.frame(delta("BTCUSDT", 9, 20))) == 0
    assert len(tape.frame(delta("BTCUSDT", 21, 21, [["1.00", "5"]]))) == 1


def test_a_silent_symbol_turns_stale_and_live_again_when_it_speaks() -> None:
    tape = synced(stale_ns=3 * SECOND)
    assert len(tape.poll(3 * SECOND)) == 0
    rows = tape.poll(3 * SECOND + 1)
    assert kinds(rows) == ["BOOK_STATE"] and rows[0]["code"] == BookState.STALE and rows[0]["a"] == 9
    assert len(tape.poll(4 * SECOND)) == 0  # told once
    assert len(tape.frame(delta("BTCUSDT", 8, 8), 5 * SECOND)) == 0  # a duplicate proves nothing
    rows = tape.frame(delta("BTCUSDT", 9, 9, [["1.00", "5"]]), 5 * SECOND)
    assert kinds(rows) == ["LEVEL", "BOOK_STATE"]
    assert (rows["flags"] & Flag.LAST).tolist() == [0, Flag.LAST]
    assert tape.books[0].state == BookState.LIVE


def test_a_gap_ends_a_stale_book_too() -> None:
    tape = synced()
    tape.poll(60 * SECOND)
    rows = tape.frame(delta("BTCUSDT", 50, 51), 61 * SECOND)
    assert rows[0]["code"] == BookState.RESYNCING and rows[0]["b"] == 50


def test_trades_and_book_tickers_pass_at_once_whatever_the_book_says() -> None:
    tape = Tape()
    trade = b'{"e":"trade","E":2,"s":"BTCUSDT","t":1,"p":"10.00","q":"1","T":1,"m":true,"M":true}'
    ticker = b'{"u":5,"s":"BTCUSDT","b":"1.00","B":"1","a":"2.00","A":"1"}'
    assert kinds(tape.frame(trade)) == ["TRADE"]
    assert kinds(tape.frame(ticker)) == ["QUOTE", "QUOTE"]


def test_closing_tells_that_no_book_is_in_sync() -> None:
    tape = synced()
    with pytest.raises(LocalError, match="on_close first"):
        tape.connection.on_open(0)
    rows = tape.take(tape.connection.on_close(9, tape.out))
    assert kinds(rows) == ["BOOK_STATE"] and rows[0]["code"] == BookState.RESYNCING and rows[0]["instrument"] == 0
    assert tape.connection.on_close(9, tape.out) == 0
    tape.connection.on_open(10)
    assert len(tape.frame(delta("BTCUSDT", 9, 9, [["1.00", "5"]]))) == 0  # contiguous, but another connection
    assert tape.connection.wants_snapshot() == ["BTCUSDT"]


def test_a_full_buffer_drops_the_oldest_and_the_rule_still_holds() -> None:
    tape = Tape()
    levels = [[f"{n}.00", "1"] for n in range(1, 513)]
    for n in range(1, 13):
        tape.frame(delta("BTCUSDT", n, n, levels))
    book = tape.connection.books[0]
    assert book.buffered_rows <= BUFFER_ROWS and tape.connection.counts["dropped"] == 4
    assert len(tape.snap("BTCUSDT", snapshot(3))) == 0  # 4 is gone: 3 cannot be joined to 5
    rows = tape.snap("BTCUSDT", snapshot(4))
    assert len(rows) == 1 + 2 + 8 * 512 + 1 and rows[-1]["a"] == 12


def test_a_gap_among_buffered_deltas_starts_the_buffer_anew() -> None:
    tape = Tape()
    tape.frame(delta("BTCUSDT", 1, 1))
    tape.frame(delta("BTCUSDT", 5, 5))
    assert len(tape.snap("BTCUSDT", snapshot(1))) == 0
    assert len(tape.snap("BTCUSDT", snapshot(4))) == 4


def test_a_bad_snapshot_is_counted_and_asked_for_again_by_the_clock() -> None:
    tape = Tape()
    tape.frame(delta("BTCUSDT", 1, 1), SECOND)
    assert tape.connection.wants_snapshot() == ["BTCUSDT"]
    assert len(tape.snap("BTCUSDT", b'{"code":-1003,"msg":"Too much request weight used"}')) == 0
    assert tape.connection.counts["bad_snapshots"] == 1
    tape.poll(SECOND + SNAPSHOT_RETRY_NS)
    assert "BTCUSDT" not in tape.connection.wants_snapshot()
    tape.poll(SECOND + SNAPSHOT_RETRY_NS + 1)
    assert "BTCUSDT" in tape.connection.wants_snapshot()


def test_a_snapshot_of_a_book_in_sync_changes_nothing() -> None:
    tape = synced()
    assert len(tape.snap("BTCUSDT", snapshot(100))) == 0
    assert tape.connection.counts["unasked_snapshots"] == 1


def test_an_answered_subscription_asks_for_the_snapshots_of_quiet_symbols() -> None:
    tape = Tape()
    request = json.loads(tape.connection.subscribe_requests([0, 1])[0])
    assert request["method"] == "SUBSCRIBE"
    assert request["params"] == [
        f"{symbol}@{stream}" for symbol in ("btcusdt", "ethusdt") for stream in ("depth@100ms", "trade", "bookTicker")
    ]
    assert tape.connection.wants_snapshot() == [] and tape.connection.wants_send() == []
    tape.frame(b'{"result":null,"id":%d}' % request["id"])
    assert tape.connection.wants_snapshot() == ["BTCUSDT", "ETHUSDT"] and tape.connection.wants_send() == []
    assert tape.connection.snapshot_path("ETHUSDT") == "/api/v3/depth?symbol=ETHUSDT&limit=1000"
    assert kinds(tape.snap("ETHUSDT", snapshot(7))) == ["CLEAR", "LEVEL", "LEVEL", "BOOK_STATE"]
    assert kinds(tape.frame(delta("ETHUSDT", 8, 8, [["1.00", "1"]]))) == ["LEVEL"]


def test_a_refused_subscription_is_kept_for_whoever_asks() -> None:
    tape = Tape()
    request = json.loads(tape.connection.subscribe_requests([0])[0])
    tape.frame(b'{"error":{"code":2,"msg":"Invalid request"},"id":%d}' % request["id"])
    assert "Invalid request" in tape.connection.errors[0] and tape.connection.wants_snapshot() == []


def test_an_unsubscribed_book_turns_stale_and_asks_for_nothing() -> None:
    tape = synced()
    tape.connection.wants_snapshot()
    request = json.loads(tape.connection.unsubscribe_requests([0])[0])
    assert request["method"] == "UNSUBSCRIBE" and len(request["params"]) == 3
    assert tape.poll(60 * SECOND)[0]["code"] == BookState.STALE
    tape.connection.on_close(61 * SECOND, tape.out)
    tape.connection.on_open(61 * SECOND)
    tape.poll(90 * SECOND)
    assert tape.connection.wants_snapshot() == ["ETHUSDT"]


def test_a_shutdown_notice_is_noted_until_the_next_connection() -> None:
    tape = Tape()
    tape.frame(b'{"e":"serverShutdown","E":1770123456789}')
    assert tape.connection.shutdown
    tape.connection.on_open(0)
    assert not tape.connection.shutdown


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match="snapshot_limit=0"):
        MarketConnection([BTC], snapshot_limit=0)
    with pytest.raises(ConfigError, match="stale_ns=-1"):
        MarketConnection([BTC], stale_ns=-1)
    tape = Tape()
    with pytest.raises(ConfigError, match="DOGE"):
        tape.connection.on_snapshot("DOGE", b"", 0, tape.out)
    with pytest.raises(ConfigError, match="out has 10 rows"):
        tape.connection.on_snapshot("BTCUSDT", b"", 0, tape.out[:10])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_under_loss_duplication_and_reordering_a_live_book_equals_the_venues(data: st.DataObject) -> None:
    """The venue's true book after each id is known; whenever ours says LIVE it must be the true book of its last id."""
    updates = data.draw(
        st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.booleans()), min_size=3, max_size=30)
    )
    truth: list[dict[int, dict[int, int]]] = [{1: {100: 9}, 2: {2000: 9}}]
    for px, qty, is_bid in updates:
        state = {1: dict(truth[-1][1]), 2: dict(truth[-1][2])}
        side = state[1 if is_bid else 2]
        level = px * 100 if is_bid else 1000 + px * 100
        if qty:
            side[level] = qty
        else:
            side.pop(level, None)
        truth.append(state)

    def wire(n: int) -> bytes:
        px, qty, is_bid = updates[n - 1]
        pair = [[f"{px if is_bid else 10 + px}.00", f"0.00000{qty}"]]
        return delta("BTCUSDT", n, n, pair if is_bid else [], [] if is_bid else pair)

    tape = Tape(BTC)
    book = tape.books[0]
    seen = 0
    ids = data.draw(st.lists(st.integers(1, len(updates)), max_size=20)) + list(range(1, len(updates) + 1))
    for n in ids:
        if data.draw(st.integers(0, 9)) == 0:
            continue
        seen = max(seen, n)
        tape.frame(wire(n))
        for symbol in tape.connection.wants_snapshot():
            at = data.draw(st.integers(0, seen))
            sides = [
                [[f"{px // 100}.00", f"0.00000{qty}"] for px, qty in truth[at][side].items()] for side in (1, 2)
            ]
            tape.snap(symbol, snapshot(at, *sides))
        if book.state == BookState.LIVE:
            assert book.sides == truth[tape.connection.books[0].sequence.last]


def lay(frames: list[bytes]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return where the text of each of `frames` lies, and its length; valid as long as they are."""
    return np.array([(id(frame) + BYTES_AT, len(frame)) for frame in frames], np.int64)


@pytest.mark.parametrize("seed", range(6))
def test_messages_taken_together_give_what_they_give_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    last = {"BTCUSDT": 0, "ETHUSDT": 0}
    frames: list[bytes] = []
    for _ in range(1500):
        symbol = rng.choice(list(last))
        px = f"{rng.randint(1, 99)}.{'00' if rng.random() < 0.05 else '00000000'}"  # now and then not as documented
        what = rng.random()
        if what < 0.8:
            first = last[symbol] + 1 + (rng.random() < 0.01) - (rng.random() < 0.02)
            last[symbol] = first + rng.randint(0, 3)
            bids = [[px, f"{rng.randint(0, 3)}.00000000"] for _ in range(rng.randint(0, 4))]
            frames.append(delta(symbol, first, last[symbol], bids))
        elif what < 0.97:
            sizes = b'"b":"1.00000000","B":"1.00000000","a":"2.00000000","A":"1.00000000"'
            frames.append(b'{"u":%d,"s":"%s",%s}' % (last[symbol], symbol.encode(), sizes))
        else:
            frames.append(rng.choice([b"{", b'{"result":null,"id":1}', b'{"e":"serverShutdown","E":1770123456789}']))
    alone, together, seen = Tape(), Tape(), dict.fromkeys(last, 0)
    for book in alone.connection.books:
        alone.connection.decoder.follow(book, 0)  # the rule in Python decides each delta
    most = i = 0
    while i < len(frames):
        n = rng.choice((1, 3, 12))
        if rng.random() < 0.01:
            for tape in (alone, together):
                tape.poll((i + 10_000) * SECOND)
        read, now = frames[i : i + n], i * SECOND
        i += n
        expected = [alone.frame(frame, now).tobytes() for frame in read]
        for frame in read:
            if frame.startswith(b'{"e":"depth'):
                event = json.loads(frame)
                seen[event["s"]] = event["u"]
        got: list[bytes] = []
        taken = 0
        while taken < len(read):
            spans = lay(read[taken:])
            done, rows = together.connection.on_spans(address_of(spans), len(spans), now, together.out)
            assert done >= 1
            most = max(most, done)
            taken += done
            got.append(together.take(rows).tobytes())
        assert b"".join(got) == b"".join(expected)
        wanted = alone.connection.wants_snapshot()
        assert together.connection.wants_snapshot() == wanted
        for symbol in wanted:
            for tape in (alone, together):
                tape.snap(symbol, snapshot(seen[symbol]), now)
    assert together.connection.counts == alone.connection.counts and alone.connection.counts["gaps"] > 3
    assert together.connection.decoder.counts == alone.connection.decoder.counts
    assert together.books[0].sides == alone.books[0].sides and together.connection.shutdown == alone.connection.shutdown
    assert most == 12


def test_mutated_reads_give_what_their_messages_give_one_by_one() -> None:
    fuzz(*TARGETS["binance-spans"](), 100_000)


# ---- recordings


def replay(
    tape: Tape, messages: list[tuple[int, bytes]], answers: dict[str, bytes]
) -> tuple[int, int, list[tuple[int, int]]]:
    """Feed a recording and answer each request for a snapshot at once; a snapshot among the messages is BTCUSDT's.

    Returns (compared, equal, changes): how often a bookTicker has the final u of a depth message, how often the top of
    the book then equals it, and every (instrument, book state) told.
    """
    tops: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    tickers: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    changes: list[tuple[int, int]] = []
    for now, payload in messages:
        rows = tape.snap("BTCUSDT", payload, now) if is_snapshot(payload) else tape.frame(payload, now)
        told = [rows]
        if not is_snapshot(payload) and len(rows):
            instrument = int(rows[0]["instrument"])
            if rows[0]["kind"] == Kind.QUOTE:
                bid, ask = rows
                key = (instrument, int(bid["a"]))
                tickers[key] = int(bid["px"]), int(bid["qty"]), int(ask["px"]), int(ask["qty"])
            elif rows[0]["kind"] == Kind.LEVEL:
                tops[instrument, tape.connection.books[instrument].sequence.last] = tape.books[instrument].top()
        for symbol in tape.connection.wants_snapshot():
            if symbol in answers:
                told.append(tape.snap(symbol, answers[symbol], now))
        changes += [(int(r["instrument"]), int(r["code"])) for t in told for r in t if r["kind"] == Kind.BOOK_STATE]
    both = tops.keys() & tickers.keys()
    return len(both), sum(tops[key] == tickers[key] for key in both), changes


def test_the_recorded_btcusdt_capture_has_no_gap_and_its_top_is_the_recorded_book_ticker(shared_data: Path) -> None:
    tape = Tape(BTC)
    messages = list(read_capture(shared_data / "binance" / "btcusdt_20240808.gz"))
    compared, equal, changes = replay(tape, messages, {})
    assert (compared, equal) == (564, 564)
    assert changes == [(0, BookState.LIVE)]
    assert {**tape.connection.counts, "buffered": 0} == dict.fromkeys(tape.connection.counts, 0)
    assert not any(tape.connection.decoder.counts.values())


@pytest.mark.parametrize(
    ("name", "symbols", "expected"),
    [
        ("BINANCE", ["NKNUSDT", "BLZETH", "LRCBTC", "RUNEEUR"], 26),
        ("BINANCE_US", ["CRVUSDT", "COMPUSDT", "OMGBUSD", "ZRXUSDT"], 56),
    ],
)
def test_the_recorded_multi_symbol_captures_agree_with_their_book_tickers(
    shared_data: Path, name: str, symbols: list[str], expected: int
) -> None:
    folder = shared_data / "binance"
    ((_, info),) = read_capture(folder / f"{name}.0")
    answers = {symbol: payload for _, symbol, payload in read_snapshots(folder / f"{name}.http.0.0")}
    instruments = instruments_from_exchange_info(info, symbols, books=answers)
    tape = Tape(*instruments)
    messages = list(read_capture(folder / f"{name}.ws.1.0"))
    compared, equal, changes = replay(tape, messages, answers)
    assert (compared, equal) == (expected, expected)
    assert sorted(changes) == [(i.id, int(BookState.LIVE)) for i in instruments]
    assert tape.connection.counts["gaps"] == 0
    counts = tape.connection.decoder.counts
    assert counts["ignored"] > 0 and not any(v for k, v in counts.items() if k != "ignored")
