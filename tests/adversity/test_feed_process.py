"""A session whose market data comes from a process of its own: it trades, and survives what happens to that process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adversity.live import Venue, maker_spec, replayed, trader, until, venue

from hftlab.cli import ExitCode
from hftlab.core.rows import BookState, Kind, RowArray
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec


@pytest.fixture(scope="module")
def market() -> Iterator[Venue]:
    with venue("--seed", "7", "--rate", "2000") as running:
        yield running


def process_spec(name: str, **changed: Any) -> SessionSpec:
    return replace(maker_spec(name), feeds="process", **changed)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_live(told: dict[str, Any]) -> bool:
    return bool(told["feed"].get("BTCUSDT", {}).get("state") == "live")


def states(rows: RowArray) -> list[BookState]:
    return [BookState(int(code)) for code in rows["code"][rows["kind"] == Kind.BOOK_STATE]]


@pytest.mark.parametrize(("wait", "core"), [("sleep", None), ("poll", min(os.sched_getaffinity(0)))])
def test_a_session_trades_on_a_feed_process_and_replays_byte_for_byte(
    market: Venue, home: Path, wait: str, core: int | None
) -> None:
    ours = os.sched_getaffinity(0)
    with trader(process_spec("apart", wait=wait, core=core), market.endpoints) as live:
        told = live.fills(5)
        feed = told["feed_processes"][0]["pid"]
        assert os.sched_getaffinity(live.process.pid) == (ours if core is None else {core})
        assert os.sched_getaffinity(feed) == ours
        assert is_running(feed) and feed != live.process.pid
        assert told["feed_processes"][0]["restarts"] == 0 and told["feed"]["BTCUSDT"]["age_ms"] < 10_000
        assert live.stop() == 0
        assert not is_running(feed)
    report = replayed(live.folder)
    assert report["replay_identical"] and report["journal_verified"] and report["book_gaps"] == 0
    assert report["fills"] >= 5


def test_a_core_that_is_not_there_is_refused_with_those_that_are(market: Venue, home: Path) -> None:
    with trader(process_spec("nowhere", core=9999), market.endpoints) as live:
        assert live.process.wait(60) == ExitCode.CONFIG
        assert "core: 9999; expected one of 0" in live.log.read_text()


def test_kill_9_of_the_feed_process_resyncs_the_books_and_trading_goes_on(market: Venue, home: Path) -> None:
    with trader(process_spec("bereft"), market.endpoints) as live:
        for killed in range(2):
            told = live.wait(is_live, "a live book")
            fills = told["counters"]["fills"]
            os.kill(told["feed_processes"][0]["pid"], signal.SIGKILL)
            told = live.wait(lambda told, n=killed: told["feed_processes"][0]["restarts"] == n + 1, "the restart")
            assert "ended with -9" in told["feed"]["BTCUSDT"]["last_error"]
            live.wait(is_live, "a live book again")
            live.fills(fills + 3)
        assert live.stop() == 0
    rows = live.rows()
    found = states(rows)
    assert found[:3] == [BookState.LIVE, BookState.RESYNCING, BookState.LIVE]
    resyncing = np.flatnonzero((rows["kind"] == Kind.BOOK_STATE) & (rows["code"] == BookState.RESYNCING))
    lives = np.flatnonzero((rows["kind"] == Kind.BOOK_STATE) & (rows["code"] == BookState.LIVE))
    for at in resyncing[:2]:
        again = lives[lives > at][0]
        between = rows[at:again]
        # a book in doubt is neither shown to the strategy nor traded on: only what its snapshot brings
        assert not (between["kind"] == Kind.SUBMIT).any()
        assert (between["kind"] == Kind.CLEAR).sum() == 1
    report = replayed(live.folder)
    assert report["replay_identical"] and report["book_gaps"] == 0


def test_a_stopped_feed_process_is_killed_and_replaced(market: Venue, home: Path) -> None:
    with trader(process_spec("frozen"), market.endpoints) as live:
        pid = live.wait(is_live, "a live book")["feed_processes"][0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        told = live.wait(lambda told: told["feed_processes"][0]["restarts"] == 1, "the restart")
        assert "said nothing for" in told["feed"]["BTCUSDT"]["last_error"]
        assert not is_running(pid)
        live.wait(is_live, "a live book again")
        assert live.stop() == 0


def test_a_feed_process_ends_with_its_killed_trader(market: Venue, home: Path) -> None:
    with trader(process_spec("orphan"), market.endpoints) as live:
        pid = live.wait(is_live, "a live book")["feed_processes"][0]["pid"]
        live.kill()
        until(lambda: not is_running(pid), "the end of the feed process")
    with trader(process_spec("orphan"), market.endpoints) as again:
        assert again.wait(is_live, "a live book")["feed_processes"][0]["restarts"] == 0
        assert again.stop() == 0


def test_kill_9_of_one_of_two_feed_processes_resyncs_its_own_book_alone(home: Path) -> None:
    symbols = ("BTCUSDT", "ETHUSDT")
    limits = {symbol: CAREFUL_LIMITS[symbol] for symbol in symbols}
    spec = process_spec("pair", symbols=symbols, limits=limits, feed_processes=2)

    def both_live(told: dict[str, Any]) -> bool:
        return all(told["feed"].get(symbol, {}).get("state") == "live" for symbol in symbols)

    with venue("--seed", "7", "--rate", "2000", *(f"--symbol={symbol}" for symbol in symbols)) as market, \
            trader(spec, market.endpoints) as live:  # fmt: skip
        told = live.wait(both_live, "two live books")
        first, second = told["feed_processes"]
        assert (first["symbols"], second["symbols"]) == (["BTCUSDT"], ["ETHUSDT"])
        os.kill(second["pid"], signal.SIGKILL)
        live.wait(lambda told: told["feed_processes"][1]["restarts"] == 1, "the restart")
        told = live.wait(both_live, "two live books again")
        assert (first["source"], second["source"]) == (1, 2)
        assert told["feed_processes"][0] == {**first, "blocked": told["feed_processes"][0]["blocked"]}
        assert told["feed"]["BTCUSDT"]["last_error"] == "" and "ended with -9" in told["feed"]["ETHUSDT"]["last_error"]
        killed = live.status()["seq"]
        live.fills(told["counters"]["fills"] + 3)
        live.wait(lambda told: told["seq"] > killed + 5000, "more rows")
        rows = live.rows()
        assert live.stop() == 0
    for instrument, expected in enumerate(([BookState.LIVE], [BookState.LIVE, BookState.RESYNCING, BookState.LIVE])):
        own = rows[rows["instrument"] == instrument]
        assert states(own) == expected
        assert set(own["source"][own["kind"] == Kind.LEVEL].tolist()) == {1 + instrument}
        assert ((own["kind"] == Kind.SUBMIT) & (own["seq"] > killed)).any()  # it trades on
    report = replayed(live.folder)
    assert report["replay_identical"] and report["book_gaps"] == 0
