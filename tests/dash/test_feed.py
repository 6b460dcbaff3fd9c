"""The view-model against the engine that wrote the journal, and against slow readings of the rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core.rows import CONT, NO_PX, BookState, ExecType, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.dash.feed import SAMPLE_NS, SessionFeed, Track
from hftlab.engine import text_rows
from hftlab.journal import JournalWriter, read_all, rotate
from hftlab.kernels.latency import LATENCY_FILE, SEND, Latency, record_ns

START_NS = 1_800_000_000_000_000_000
S = 1_000_000_000


def caught_up(folder: Path) -> SessionFeed:
    feed = SessionFeed(folder)
    for _ in range(1000):
        feed.advance()
        if feed.waiting or feed.progress == 1.0:
            break
    assert feed.progress == 1.0, feed.waiting
    return feed


@pytest.fixture(scope="module")
def written(make_session: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A session of 20 s with two symbols, and the session that wrote it."""
    folder = tmp_path_factory.mktemp("session")
    live = make_session(None, symbols=2)
    with JournalWriter(folder / "journal", live.engine.definitions.to_dict(), fsync_ms=None) as writer:
        live.sink = writer
        live.run_synthetic(START_NS + 20 * S)
    return folder, live


def test_state_equals_that_of_the_engine_that_wrote_the_journal(written: tuple[Path, Any]) -> None:
    folder, live = written
    feed = caught_up(folder)
    assert feed.replica is not None
    ours, theirs = feed.replica.counters(), live.engine.counters()
    names = ("submits", "cancels", "replaces", "fills", "refusals", "open_orders", "faults", "book_gaps")
    assert {n: ours[n] for n in names} == {n: theirs[n] for n in names}
    assert ours["fills"] > 50
    for k in (0, 1):
        assert feed.replica.pnl(k) == live.engine.pnl(k)
        assert np.array_equal(feed.replica.levels(k)[0], live.engine.levels(k)[0])
    assert sum(track.n for track in feed.fills) == theirs["fills"]


def test_history_does_not_depend_on_when_the_journal_was_read(
    make_session: Callable[..., Any], tmp_path: Path
) -> None:
    live = make_session(None)
    follower = SessionFeed(tmp_path)
    with JournalWriter(tmp_path / "journal", live.engine.definitions.to_dict(), fsync_ms=None) as writer:
        live.sink = writer
        for step in range(1, 80):
            live.run_synthetic(START_NS + step * S * 37 // 1000)
            follower.advance()
    late = caught_up(tmp_path)
    followed, read = follower.samples[0].since(0), late.samples[0].since(0)
    assert late.samples[0].n > 20
    for name in read:
        assert np.array_equal(followed[name], read[name]), name
    assert np.array_equal(follower.latencies_ns, late.latencies_ns)
    assert (np.diff(read["ts"] // SAMPLE_NS) >= 1).all()


def test_samples_are_the_state_before_each_tenth_of_a_second(written: tuple[Path, Any]) -> None:
    folder, _ = written
    rows = read_all(folder / "journal")
    heads = rows[rows["kind"] != CONT]
    samples = caught_up(folder).samples[1].since(0)
    quotes = heads[(heads["kind"] == Kind.REPORT) & (heads["code"] & 255 == ExecType.FILL) & (heads["instrument"] == 1)]
    sides = np.where(quotes["flags"] & Flag.BID != 0, quotes["qty"], -quotes["qty"])
    for at in range(0, len(samples["ts"]), 7):
        before = quotes["ts_recv"] <= samples["ts"][at]
        assert samples["position"][at] == sides[before].sum()


def test_tick_to_order_is_send_time_minus_receipt_of_the_cause(written: tuple[Path, Any]) -> None:
    folder, _ = written
    rows = read_all(folder / "journal")
    caused = {int(r["seq"]): int(r["ts_recv"]) for r in rows if r["kind"] in (Kind.SUBMIT, Kind.REPLACE_ORDER)}
    sent = [r for r in rows if r["kind"] == Kind.SENT and int(r["b"]) in caused]
    expected = [int(r["ts_event"]) - caused[int(r["b"])] for r in sent]
    assert caught_up(folder).latencies_ns.tolist() == expected
    assert len(expected) > 50


def test_limits_used_count_working_orders_at_their_worst(written: tuple[Path, Any]) -> None:
    folder, live = written
    feed = caught_up(folder)
    own = [o for o in live.engine.open_orders() if o["instrument"] == 0]
    position = int(live.engine.instruments["position"][0])
    buys = sum(int(o["reserved"]) for o in own if o["side"] == 1)
    sells = sum(int(o["reserved"]) for o in own if o["side"] == 2)
    used = {name: (n, most) for name, n, most in feed.limits_used(0)}
    assert used["position"] == (max(position + buys, sells - position, abs(position)), 1250)
    assert used["order_qty"][0] == max((int(o["order_qty"]) for o in own), default=0)
    assert used["open_orders"] == (live.engine.counters()["open_orders"], 20)
    assert sum(feed.own_lots(0).values()) == sum(int(o["order_qty"]) - int(o["cum_qty"]) for o in own)


def market(ts: int, bid: int, ask: int, instrument: int = 0) -> RowArray:
    """Return a live book of one level a side, as rows."""
    rows = new_rows(4)
    rows["kind"] = [Kind.CLEAR, Kind.LEVEL, Kind.LEVEL, Kind.BOOK_STATE]
    rows["ts_recv"], rows["instrument"], rows["a"] = ts, instrument, 5
    rows["px"][1:3], rows["qty"][1:3] = [bid, ask], 10
    rows["flags"] = [0, Flag.BID, Flag.ASK | Flag.LAST, Flag.LAST]
    rows["code"][3] = BookState.LIVE
    return rows


def clock(ts: int) -> RowArray:
    rows = new_rows(1)
    rows["kind"], rows["ts_recv"] = Kind.CLOCK, ts
    return rows


@pytest.fixture
def writer(live: Any, tmp_path: Path) -> Any:
    """A writer of rows into the journal of the session `tmp_path`, in segments of 64 rows."""
    definitions = live.definitions_of(live.Maker())
    with JournalWriter(tmp_path / "journal", definitions.to_dict(), segment_rows=64, fsync_ms=None) as writer:
        yield writer


def test_a_silence_is_a_hole_in_the_history(writer: Any, tmp_path: Path) -> None:
    for ts in (0, S // 5, 4 * S, 4 * S + S // 5, 4 * S + S // 2):
        writer.append(market(START_NS + ts, 100, 102))
    samples = caught_up(tmp_path).samples[0].since(0)
    assert samples["bid"].tolist() == [100, 100, NO_PX, 100, 100]
    assert ((samples["ts"] - START_NS) * 10 // S).tolist() == [0, 2, 39, 40, 42]


def test_a_fill_that_is_reported_twice_is_drawn_once(writer: Any, tmp_path: Path) -> None:
    fill = new_rows(1)
    fill["kind"], fill["ts_recv"], fill["code"] = Kind.REPORT, START_NS, ExecType.FILL
    fill["px"], fill["qty"], fill["a"], fill["b"], fill["flags"] = 100, 3, 1, 77, Flag.ASK | Flag.MAKER
    writer.append(join_rows([clock(START_NS), fill, fill]))
    fills = caught_up(tmp_path).fills[0].since(0)
    assert fills["px"].tolist() == [100] and fills["side"].tolist() == [2] and fills["maker"].tolist() == [1]


def test_refusals_are_counted_by_reason_and_unknown_instruments_change_nothing(writer: Any, tmp_path: Path) -> None:
    refused = new_rows(3)
    refused["kind"], refused["ts_recv"], refused["code"] = Kind.REFUSED, START_NS, [6, 6, 7]
    writer.append(refused)
    writer.append(market(START_NS, 100, 102, instrument=9))
    feed = caught_up(tmp_path)
    assert feed.refusals[6] == 2 and feed.refusals[7] == 1 and feed.refusals.sum() == 3
    assert feed.market_ts.tolist() == [0]


def test_a_fault_shows_its_traceback_and_other_text_is_a_note(writer: Any, tmp_path: Path) -> None:
    fault = new_rows(1)
    fault["kind"], fault["ts_recv"], fault["code"], fault["a"] = Kind.FAULT, START_NS, 1, 1
    writer.append(fault)
    writer.append(text_rows("on_book\nZeroDivisionError: <b>", START_NS))
    writer.append(text_rows("account replaced", START_NS))
    feed = caught_up(tmp_path)
    assert [(f.code, f.text) for f in feed.faults] == [(1, "on_book\nZeroDivisionError: <b>"), (0, "account replaced")]
    assert feed.faults[0].words == "the strategy failed in on_book: it is halted and its orders are canceled"


def test_an_illegal_report_is_named_with_its_state(writer: Any, tmp_path: Path) -> None:
    fault = new_rows(1)
    fault["kind"], fault["ts_recv"], fault["code"], fault["a"], fault["b"] = Kind.FAULT, START_NS, 2, 12, 2 | (3 << 8)
    writer.append(fault)
    words = caught_up(tmp_path).faults[0].words
    assert words == "an illegal report: REJECT for order 12 in state NEW; it changed nothing"


def test_a_feed_waits_for_its_journal_and_then_follows_it(live: Any, tmp_path: Path) -> None:
    feed = SessionFeed(tmp_path)
    feed.advance()
    assert "no journal" in feed.waiting and feed.replica is None
    with JournalWriter(tmp_path / "journal", live.definitions_of(live.Maker()).to_dict(), fsync_ms=None) as writer:
        feed._retry_at = 0.0
        feed.advance()
        assert feed.waiting == "" and feed.last_ts == 0
        writer.append(market(START_NS, 100, 102))
        feed.advance()
    assert feed.last_ts == START_NS and feed.replica is not None
    assert feed.replica.touch(0)[0] == 100


def test_a_reader_that_fell_behind_attaches_again_and_says_what_is_missing(writer: Any, tmp_path: Path) -> None:
    feed = SessionFeed(tmp_path)
    writer.append(market(START_NS, 100, 102))
    feed.advance()
    generation = feed.generation
    for k in range(100):
        writer.append(market(START_NS + k * S, 100 + k, 102 + k))
    removed = []
    for _ in range(300):  # sealing, and so rotation, is the helper thread's
        removed = rotate(tmp_path / "journal", keep=1)
        if len(removed) >= 3:
            break
        time.sleep(0.02)
    assert removed
    feed.advance()
    assert "attaches again" in feed.waiting
    feed.advance()
    assert feed.waiting == "" and feed.generation > generation
    assert "have been rotated away" in feed.note and feed.last_ts == START_NS + 99 * S


def test_a_folder_that_is_no_journal_is_explained(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "000000.seg").write_bytes(b"not a segment" * 1000)
    feed = SessionFeed(tmp_path)
    feed.advance()
    assert feed.waiting and feed.replica is None


@given(st.lists(st.integers(-(2**62), 2**62), max_size=40), st.integers(1, 12), st.integers(0, 45))
def test_a_track_remembers_the_last_rows(values: list[int], capacity: int, start: int) -> None:
    track = Track(["v"], capacity)
    for value in values:
        track.append(value)
    kept = list(enumerate(values))[-capacity:]
    assert track.since(start)["v"].tolist() == [value for k, value in kept if k >= start]


def test_hops_are_read_from_the_traders_file_and_from_its_next_lifes(tmp_path: Path) -> None:
    feed = SessionFeed(tmp_path)
    assert feed.hops() == {}
    first = Latency.create(tmp_path / LATENCY_FILE)
    record_ns(first.address, SEND, 1_000)
    assert feed.hops()["send"].n == 1
    record_ns(first.address, SEND, 1_000)
    assert feed.hops()["send"].n == 2, "the file is read as it changes"
    Latency.create(tmp_path / LATENCY_FILE)
    assert feed.hops()["send"].n == 0, "a new life begins empty"
    (tmp_path / LATENCY_FILE).unlink()
    assert feed.hops() == {}
