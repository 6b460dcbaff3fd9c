"""A feed process of every venue: its rows come through the ring, and its death shows in rows."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adversity.live import venue

from hftlab.core.rows import BookState, Flag, Kind, RowArray, join_rows
from hftlab.feeds.sequencer import Sequencer
from hftlab.services.feed import FeedProcess

STREAMS = {"binance": "/stream", "coinbase": "", "kraken": "/v2"}


def states(parts: list[RowArray]) -> dict[int, list[BookState]]:
    found: dict[int, list[BookState]] = {}
    for rows in parts:
        for row in rows[rows["kind"] == Kind.BOOK_STATE]:
            found.setdefault(int(row["instrument"]), []).append(BookState(int(row["code"])))
    return found


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_feed_process_brings_the_books_of_any_venue_and_its_death_resyncs_them(name: str, home: Path) -> None:
    listed = importlib.import_module(f"hftlab.venues.{name}.server").DEFAULT_INSTRUMENTS
    symbols = sorted(listed)[:2]
    instruments = [replace(listed[symbol], id=k) for k, symbol in enumerate(symbols)]
    parts: list[RowArray] = []

    async def until(true: Any, what: str) -> None:
        for _ in range(3000):
            if true():
                return
            await asyncio.sleep(0.02)
        pytest.fail(f"waited 60 s for {what}: {states(parts)} {(home / 'feed.log').read_text()[-1000:]}")

    def is_live() -> bool:
        told = states(parts)
        return len(told) == 2 and all(found[-1] == BookState.LIVE for found in told.values())

    async def scenario(endpoints: dict[str, str]) -> None:
        sequencer = Sequencer(lambda rows: parts.append(rows.copy()))
        sequencer.start()
        feed = FeedProcess(
            name, instruments, endpoints["stream"] + STREAMS[name], endpoints["rest"], sequencer,
            lambda rows, ns: parts.append(rows.copy()), home,
        )  # fmt: skip
        running = asyncio.create_task(feed.run())
        await until(is_live, "live books")
        await until(lambda: feed.frames, "word of its frames")  # it tells ten times a second
        assert feed.last_error == ""
        os.kill(feed.pid, signal.SIGKILL)
        await until(lambda: feed.restarts == 1, "the restart")
        await until(is_live, "live books again")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert feed.pid == 0
        sequencer.stop()

    with venue("--venue", name, "--seed", "3", *(f"--symbol={symbol}" for symbol in symbols)) as market:
        asyncio.run(scenario(market.endpoints))
    rows = join_rows(parts)
    assert {int(i) for i in rows["instrument"][rows["kind"] == Kind.LEVEL]} == {0, 1}
    assert all(part["flags"][-1] & Flag.LAST for part in parts)
    for found in states(parts).values():
        live = found.index(BookState.LIVE)
        assert BookState.RESYNCING in found[live:] and BookState.LIVE in found[found.index(BookState.RESYNCING, live) :]
        assert found[-1] == BookState.RESYNCING  # it was cancelled


def test_a_failing_consumer_ends_the_feed_with_its_error_and_its_books_in_doubt(home: Path) -> None:
    listed = importlib.import_module("hftlab.venues.binance.server").DEFAULT_INSTRUMENTS
    parts: list[RowArray] = []

    def broken(rows: RowArray) -> None:
        raise RuntimeError("the disk is gone")

    async def scenario(endpoints: dict[str, str]) -> None:
        sequencer = Sequencer(broken)
        sequencer.start()
        asyncio.get_running_loop().set_exception_handler(lambda loop, how: None)
        feed = FeedProcess(
            "binance", [replace(listed["BTCUSDT"], id=0)], endpoints["stream"] + "/stream", endpoints["rest"],
            sequencer, lambda rows, ns: parts.append(rows.copy()), home,
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="the disk is gone"):
            await asyncio.wait_for(feed.run(), 60)
        assert feed.pid == 0
        sequencer.stop()

    with venue("--seed", "3") as market:
        asyncio.run(scenario(market.endpoints))
    assert states(parts) == {0: [BookState.RESYNCING]}
