"""A feed process: one venue connection, decoded on a core of its own; and the trader's hold on it.

The process (`main`) runs the same `MarketFeed` as a trader that decodes in line, and publishes each message's rows in a
ring. `FeedProcess` is the trader's side: it makes the ring, starts the process, merges the ring through the sequencer
and watches. Decoding in line is one hop less, and the default; a process pays when decoding needs more cores than the
engine leaves, or when a venue's connection should not share the trader's event loop.

One process does not scale, several do: `FeedProcesses` deals a session's instruments out to them, each with a ring, a
connection and a source number of its own, so that one that dies takes only its own books into doubt. The sequencer's
order is still the session's one order.

Whatever ends the process, the trader notices within 20 ms (or after 3 s if it lives and does nothing), hands over what
it had published, writes RESYNCING for every book it carried, and starts another after the same backoff as a lost
connection. A process ends with its trader: the kernel tells it (Linux), and it looks for itself ten times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hftlab.clock import now_ns
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, RowArray, new_rows
from hftlab.feeds.market import MarketFeed, VenueConnection, backoff_s
from hftlab.feeds.ring import CAPACITY, Ring
from hftlab.feeds.sequencer import Rank, Sequencer
from hftlab.services.markets import market
from hftlab.services.process import follow_parent, last_words, service, spawn

__all__ = ["FeedProcess", "FeedProcesses", "main", "market_connection"]

SOURCE = 1
"""Source number of market data rows; with several feed processes that of the first, the others count on from it."""
_LOOK_S = 0.02
_BEAT_S = 0.1
_SILENT_NS = 3_000_000_000
_STARTING_NS = 30_000_000_000
_COLLECT_BEATS = 100


def market_connection(venue: str, instruments: Sequence[Instrument], source: int = SOURCE) -> VenueConnection:
    """Return a new market data connection of `venue`, one of `markets.MARKETS`; `source` is written in its rows."""
    return market(venue).connect(instruments, source)


class FeedProcess:
    """A feed in a process of its own, as the trader holds it; to a reader of its state it looks like a `MarketFeed`.

    Parameters
    ----------
    venue : str
    instruments : sequence of Instrument
        What it subscribes to.
    stream, rest : str
        As `MarketFeed`.
    sequencer : Sequencer
        Merges its ring.
    deliver : callable(rows, received_ns)
        Takes the rows that say that the process is gone.
    folder : Path
        Gets ``feed.json``, what the process is told, and ``feed.log``.
    name : str
        In place of ``feed`` in the names of these files.
    source : int
        Is written in its rows: it tells in the journal which process brought them.

    Attributes
    ----------
    restarts : int
        Processes that have ended and were followed by another.
    symbols : list of str
    source : int
    pid : int
        Of the present process; 0 while there is none.
    blocked : int
        How often the present process found the ring full and waited.
    reconnects, frames, last_frame_ns, last_error
        As the process tells them, over all of its lives.
    """

    def __init__(
        self,
        venue: str,
        instruments: Sequence[Instrument],
        stream: str,
        rest: str,
        sequencer: Sequencer,
        deliver: Callable[[RowArray, int], None],
        folder: Path,
        name: str = "feed",
        source: int = SOURCE,
    ) -> None:
        self.restarts = self.pid = self.blocked = 0
        self._earlier = (0, 0)  # frames and reconnects of processes that are gone
        self._told = (0, 0, 0, "")
        self._ring: Ring | None = None
        self._error = ""  # what ended the last process
        self.source = source
        self.symbols = [i.symbol for i in instruments]
        self._ids = [i.id for i in instruments]
        self._capacity = _capacity(market_connection(venue, instruments).rows_needed)
        self._sequencer, self._deliver = sequencer, deliver
        self._plan, self._log = folder / f"{name}.json", folder / f"{name}.log"
        plan = {
            "venue": venue, "stream": stream, "rest": rest, "source": source,
            "instruments": [i.to_dict() for i in instruments],
        }  # fmt: skip
        self._plan.write_text(json.dumps(plan, indent=1) + "\n")
        self._random = random.Random(now_ns())

    @property
    def frames(self) -> int:
        """Messages received."""
        return self._earlier[0] + self._told[0]

    @property
    def reconnects(self) -> int:
        """Connections lost, with or without the process that held them."""
        return self._earlier[1] + self._told[1] + self.restarts

    @property
    def last_frame_ns(self) -> int:
        """When the last message came; 0 before the first."""
        return (self._ring.last_frame_ns if self._ring is not None else 0) or self._told[2]

    @property
    def last_error(self) -> str:
        """What ended the last connection or the last process; empty if nothing has."""
        return self._told[3] or self._error

    async def run(self) -> None:
        """Start the process, watch it, start it again, until cancelled."""
        attempt = 0
        while True:
            ring = self._ring = Ring.create(self._capacity)
            self._sequencer.add(ring, Rank.FEED)
            try:
                self._error = await self._watch(ring, self._start(ring))
            finally:
                self._gone(ring)
            attempt = 0 if self._told[0] else attempt + 1
            self._earlier = self._earlier[0] + self._told[0], self._earlier[1] + self._told[1]
            self._told = (0, 0, self._told[2], "")
            self.restarts += 1
            await asyncio.sleep(backoff_s(attempt, self._random.random()))

    def _start(self, ring: Ring) -> subprocess.Popen[bytes]:
        command = [*service("feed"), str(self._plan), str(ring.memory_fd), str(ring.event_fd)]
        process = spawn(command, self._log, pass_fds=(ring.memory_fd, ring.event_fd))
        self.pid = process.pid
        return process

    async def _watch(self, ring: Ring, process: subprocess.Popen[bytes]) -> str:
        """Return what ended the process: it itself, its silence, or our being cancelled."""
        begun = time.monotonic_ns()
        try:
            while process.poll() is None:
                if self._sequencer.failure is not None:
                    raise self._sequencer.failure  # what it had in hand is lost to its consumer: not ours to mend
                self._told, self.blocked = ring.told, ring.blocked
                quiet = time.monotonic_ns() - (ring.heartbeat_ns or begun)
                if quiet > (_SILENT_NS if ring.heartbeat_ns else _STARTING_NS):
                    return f"the feed process said nothing for {quiet / 1e9:.0f} s and was killed"
                await asyncio.sleep(_LOOK_S)
            self._told = ring.told
            return f"the feed process ended with {process.returncode}: {last_words(self._log)}"
        finally:
            process.kill()  # it has nothing to save
            process.wait()
            self.pid = 0

    def _gone(self, ring: Ring) -> None:
        """Hand over what the process had published, then say that its books are not to be believed."""
        try:
            self._sequencer.remove(ring)
        finally:
            self._ring = None
            ring.close()
            now, rows = now_ns(), new_rows(len(self._ids))
            rows["kind"], rows["source"], rows["flags"] = Kind.BOOK_STATE, self.source, Flag.LAST
            rows["code"], rows["instrument"], rows["ts_recv"] = BookState.RESYNCING, self._ids, now
            self._deliver(rows, now)


class FeedProcesses:
    """A session's feed processes: each carries some of its instruments, and lives and dies alone.

    Parameters
    ----------
    n : int
        How many; instruments are dealt out in turn.
    venue, instruments, stream, rest, sequencer, deliver, folder
        As `FeedProcess`. The rows of process k carry the source number 1 + k.
    """

    def __init__(
        self,
        n: int,
        venue: str,
        instruments: Sequence[Instrument],
        stream: str,
        rest: str,
        sequencer: Sequencer,
        deliver: Callable[[RowArray, int], None],
        folder: Path,
    ) -> None:
        self._feeds = [
            FeedProcess(
                venue, instruments[k::n], stream, rest, sequencer, deliver, folder,
                f"feed-{SOURCE + k}" if n > 1 else "feed", SOURCE + k,
            )
            for k in range(n)
        ]  # fmt: skip
        self._carrying = {symbol: feed for feed in self._feeds for symbol in feed.symbols}

    def carrying(self, symbol: str) -> FeedProcess:
        """Return the feed that carries `symbol`."""
        return self._carrying[symbol]

    def status(self) -> list[dict[str, Any]]:
        """Return each process's state in plain types."""
        return [
            {"source": f.source, "symbols": f.symbols, "pid": f.pid, "restarts": f.restarts, "blocked": f.blocked}
            for f in self._feeds
        ]

    async def run(self) -> None:
        """Run every feed until cancelled, or until one fails."""
        tasks = [asyncio.create_task(feed.run()) for feed in self._feeds]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _capacity(most: int) -> int:
    """Return the rows of a ring that has room for some messages of `most` rows.

    Examples
    --------
    >>> _capacity(6_000), _capacity(131_074)
    (65536, 524288)
    """
    return max(CAPACITY, 1 << (2 * most).bit_length())


# --- the process itself ----------------------------------------------------------------------------------------------


class _Feed:
    """The process's work: a feed whose rows go into a ring."""

    def __init__(self, plan: dict[str, Any], ring: Ring) -> None:
        self._plan, self._ring = plan, ring
        self._parent = os.getppid()
        self._market: MarketFeed | None = None

    async def run(self) -> None:
        """Feed the ring until cancelled."""
        import aiohttp

        plan = self._plan
        instruments = [Instrument.from_dict(i) for i in plan["instruments"]]
        async with aiohttp.ClientSession() as session:
            self._market = MarketFeed(
                market_connection(plan["venue"], instruments, plan["source"]), [i.id for i in instruments],
                plan["stream"], plan["rest"], self._deliver, session,
            )  # fmt: skip
            gc.collect()
            gc.freeze()
            gc.disable()
            beating = asyncio.create_task(self._beat())
            try:
                await self._market.run()
            finally:
                beating.cancel()

    async def _beat(self) -> None:
        beats = 0
        while True:
            self._still()
            beats += 1
            if beats % _COLLECT_BEATS == 0:
                gc.collect(1)
            await asyncio.sleep(_BEAT_S)

    def _deliver(self, rows: RowArray, received_ns: int) -> None:
        self._ring.last_frame_ns = received_ns  # before its rows: who has them knows how old they are
        self._ring.put(rows, self._still)

    def _still(self) -> None:
        """Say that we live; end if the trader does not. Called while the ring is full too."""
        if os.getppid() != self._parent:
            os._exit(0)  # at once: nothing here outlives its trader, and we may be deep in a callback
        market = self._market
        assert market is not None
        self._ring.beat(
            time.monotonic_ns(), frames=market.frames, reconnects=market.reconnects,
            last_frame_ns=market.last_frame_ns, last_error=market.last_error,
        )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run a feed process; return its exit code."""
    parser = argparse.ArgumentParser(prog="hftlab feed", description="Run one venue connection for a trader.")
    parser.add_argument("plan", type=Path, help="feed.json, as the trader wrote it")
    parser.add_argument("memory_fd", type=int, help="the ring's memory")
    parser.add_argument("event_fd", type=int, help="the ring's event")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to save
    if sys.platform.startswith("linux"):
        follow_parent()
    ring = Ring.attach(options.memory_fd, options.event_fd)
    plan = json.loads(options.plan.read_text())
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_Feed(plan, ring).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
