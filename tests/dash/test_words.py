"""What the dashboard says in each state: a word, a shape, and what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hftlab.core.rows import BookState, Flag, Kind, RowArray, new_rows
from hftlab.dash import words
from hftlab.dash.feed import SessionFeed
from hftlab.engine import control_row
from hftlab.journal import JournalWriter
from hftlab.kernels.latency import SEND, Latency, record_ns

MS = 1_000_000


class Written:
    """A journal that a test writes into, and the feed that follows it."""

    def __init__(self, folder: Path, definitions: Any) -> None:
        self.now = time.time_ns()
        self.writer = JournalWriter(folder / "journal", definitions.to_dict(), fsync_ms=None)
        self.feed = SessionFeed(folder)

    def add(self, rows: RowArray) -> None:
        self.writer.append(rows)
        self.feed.advance()

    def book(self, state: BookState, age_ms: int) -> None:
        rows = new_rows(3)
        rows["kind"], rows["ts_recv"], rows["a"] = Kind.LEVEL, self.now - age_ms * MS, 5
        rows["flags"], rows["qty"] = [Flag.BID, Flag.ASK | Flag.LAST, Flag.LAST], [10, 10, 0]
        bid = 102 if state == BookState.CROSSED else 100
        rows["px"] = [bid, 102, 0]
        rows["kind"][2], rows["code"][2] = Kind.BOOK_STATE, state
        self.add(rows)

    def state(self) -> words.State:
        return words.session_state(self.feed, self.now)


@pytest.fixture
def written(live: Any, tmp_path: Path) -> Iterator[Written]:
    """An empty journal of one instrument."""
    written = Written(tmp_path, live.definitions_of(live.Maker(), session="<desk> & co"))
    written.feed.advance()
    yield written
    written.writer.close()


def test_a_session_goes_from_starting_to_trading_to_halted_and_back(written: Written) -> None:
    written.book(BookState.LIVE, 5)
    seen = [written.state().word]
    for what in ("start", "halt", "resume"):
        written.add(control_row(what, written.now))
        seen.append(written.state().word)
    assert seen == ["STARTING", "TRADING", "HALTED", "TRADING"]


def test_a_stopped_session_is_stopped_however_old_its_rows_are(written: Written) -> None:
    written.add(control_row("start", written.now - 90_000 * MS))
    assert written.state().word == "SILENT 1 min 30 s" and written.state().stale
    written.add(control_row("stop", written.now - 60_000 * MS))
    assert written.state().word == "STOPPED" and not written.state().stale


def test_a_stopped_session_stays_stopped_while_it_clears_up(written: Written) -> None:
    for what in ("start", "stop", "cancel_all", "disconnect"):
        written.add(control_row(what, written.now))
    assert written.state().word == "STOPPED"
    written.add(control_row("start", written.now))
    assert written.state().word == "TRADING"


def test_a_market_names_its_feed_process_where_there_are_several(written: Written) -> None:
    written.book(BookState.LIVE, 1)
    assert "feed 0" not in words.feeds_html(written.feed, written.now)
    written.feed.market_sources[0] = 2
    assert "BTCUSDT feed 2<" in words.feeds_html(written.feed, written.now)


def test_a_fault_is_shown_before_a_halt(written: Written) -> None:
    fault = new_rows(1)
    fault["kind"], fault["ts_recv"], fault["code"] = Kind.FAULT, written.now, 1
    fault["flags"] = Flag.OUTPUT
    written.add(control_row("start", written.now))
    written.add(control_row("halt", written.now))
    written.add(fault)
    assert written.state().word == "FAULTED"
    assert "the strategy failed in on_start" in words.faults_html(written.feed, 50)


@pytest.mark.parametrize(
    ("state", "age_ms", "word", "stale"),
    [
        (BookState.LIVE, 3, "live", False),
        (BookState.LIVE, 4100, "stale", True),
        (BookState.RESYNCING, 3, "resyncing", True),
        (BookState.STALE, 3, "stale", True),
        (BookState.EMPTY, 3, "empty", True),
    ],
)
def test_market_data_says_its_state_and_age(
    written: Written, state: BookState, age_ms: int, word: str, stale: bool
) -> None:
    assert words.book_condition(written.feed, 0, written.now).word == "no data"
    written.book(state, age_ms)
    condition = words.book_condition(written.feed, 0, written.now)
    assert (condition.word, condition.stale) == (word, stale)
    assert f"{word} {words.age_words(age_ms * MS)}" in words.feeds_html(written.feed, written.now)


def test_every_state_has_a_shape_that_is_drawn(written: Written) -> None:
    shapes = set()
    for state in BookState:
        written.book(state, 1)
        condition = words.book_condition(written.feed, 0, written.now)
        shapes.add((condition.shape, condition.word))
        assert "<svg" in condition.html()
    assert len(shapes) == len(BookState)


def test_names_from_outside_are_escaped(written: Written) -> None:
    written.book(BookState.LIVE, 1)
    head = words.header_html(written.feed, written.now)
    assert "&lt;desk&gt; &amp; co" in head and "<desk>" not in head


@pytest.mark.parametrize(("used", "word"), [(0, ""), (875, "M6 0.5"), (1125, "M3.6 0")])
def test_a_limit_near_its_end_changes_shape_at_70_and_90_percent(
    written: Written, monkeypatch: pytest.MonkeyPatch, used: int, word: str
) -> None:
    written.book(BookState.LIVE, 1)
    monkeypatch.setattr(written.feed, "limits_used", lambda instrument: [("position", used, 1250)])
    text = words.limits_html(written.feed, 0)
    assert f"{-(-100 * used // 1250)} %" in text and "0.01250" in text and "BTC" in text
    assert (word in text) if word else ("<svg" not in text)


def test_an_empty_session_has_text_in_every_panel(tmp_path: Path) -> None:
    feed = SessionFeed(tmp_path)
    feed.advance()
    panels = [words.limits_html(feed, 0), words.counters_html(feed)]
    panels += [words.feeds_html(feed, 1), words.faults_html(feed, 9)]
    assert all("<h4>" in panel for panel in panels)
    assert "WAITING" in words.header_html(feed, 1)


def test_net_pnl_takes_fees_of_both_assets_off_exactly(live: Any) -> None:
    instrument = live.definitions_of(live.Maker()).instruments[0]
    pnl = {"total_x2": 2 * 10**7, "fee_quote": 5_000_000, "fee_base": 100, "position": 0}
    net, fees = words.net_pnl(instrument, pnl, mid_x2=2 * 6_000_000)
    assert fees == Decimal("0.05") + Decimal("0.000001") * 60_000
    assert net == Decimal("1.0") - fees


def test_hops_are_told_by_percentiles_with_units_and_a_picture() -> None:
    latency = Latency()
    for ns in (250, 250, 250, 4_200, 1_400_000):
        record_ns(latency.address, SEND, ns)
    text = words.hops_html(latency.histograms())
    assert "<td>send<td>" in text and text.count("<svg") == 1
    assert "<td>250 ns<td>1.4 ms<td>1.4 ms" in text
    assert "the calls of send" in text, "what the hop spans is its tooltip"


def test_no_hop_yet_is_said_in_words() -> None:
    assert "no tick measured yet" in words.hops_html({})
    assert "no tick measured yet" in words.hops_html(Latency().histograms())


@pytest.mark.parametrize(
    ("ns", "text"),
    [(30, "30 ns"), (999, "999 ns"), (1_000, "1.0 µs"), (9_940, "9.9 µs"), (9_960, "10 µs"), (85_000, "85 µs"),
     (1_400_000, "1.4 ms"), (2_000_000_000, "2.0 s")],
)  # fmt: skip
def test_short_spans_have_their_unit(ns: float, text: str) -> None:
    assert words._short_span(ns) == text


def test_a_rare_tail_is_seen_in_the_picture() -> None:
    latency = Latency()
    for _ in range(1000):
        record_ns(latency.address, SEND, 1_000)
    alone = words._picture(latency.histogram("send"))
    record_ns(latency.address, SEND, 900_000)
    assert alone.count("M") == 1 and words._picture(latency.histogram("send")).count("M") == 2
