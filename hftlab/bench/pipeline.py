"""Pipeline: two feed processes that decode Binance depth frames, and one engine that merges and journals them.

Each feed process holds frames of 20 levels a side in memory, as the venue sends them (some 1.3 KB of JSON), and takes
them one by one through the venue's connection (decode, sequence rule), publishing each message in its ring as a
session's feed process does. This process merges the two rings through the sequencer into the engine, which keeps the
books and writes the journal. Three processes share the cores there are; nobody spins, a full or an empty ring is waited
for. A row is one level.

``rows_per_s`` counts from the start of the feeds to the last row in the journal, which is sealed as it fills and left
to the system to flush; ``durable_rows_per_s`` is the same with the journal flushed every 5 ms, as a session's is: there
the disk has a say. ``inline_rows_per_s`` is one process doing all of it. Checked in every round: the number of rows,
and the books, which equal those of the one process; before the first: the journal's seal.
"""

from __future__ import annotations

import itertools
import json
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.bench.run import Case, CheckFailed, Plan, Ratio
from hftlab.clock import now_ns
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import HftlabError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, RowArray
from hftlab.engine import Engine, RowBuffer
from hftlab.feeds.ring import Ring
from hftlab.feeds.sequencer import Rank, Sequencer
from hftlab.journal import JournalWriter, verify
from hftlab.venues.binance.connection import MarketConnection

__all__ = ["GOALS", "decoded", "frames_of", "instruments", "prepare"]

GOALS = {"rows_per_s": (1e6, 5e6)}

FEEDS = 2
_MID = 6_000_000
_DEPTH = 60


def instruments() -> list[Instrument]:
    """Return the instruments, one a feed."""
    return [
        Instrument(k, "binance", symbol, Decimal("0.01"), Decimal("0.00001"), symbol[:3], "USDT")
        for k, symbol in enumerate(("BTCUSDT", "ETHUSDT"))
    ]


def frames_of(feed: int, n: int) -> tuple[bytes, list[bytes]]:
    """Return the snapshot and `n` frames of a feed, drawn from its number: 20 of the 60 nearest levels a side."""
    chance, symbol = random.Random(feed), instruments()[feed].symbol

    def levels(away: int, offsets: list[int], empty: float) -> str:
        texts = []
        for offset in offsets:
            px = _MID + away * offset
            qty = 0 if chance.random() < empty else chance.randrange(1, 1_000_000)
            texts.append(f'["{px // 100}.{px % 100:02}000000","{qty // 100_000}.{qty % 100_000:05}000"]')
        return ",".join(texts)

    whole = list(range(1, _DEPTH + 1))
    snapshot = f'{{"lastUpdateId":0,"bids":[{levels(-1, whole, 0)}],"asks":[{levels(1, whole, 0)}]}}'
    found = []
    for k in range(1, n + 1):
        bids, asks = (levels(away, sorted(chance.sample(whole, 20)), 0.1) for away in (-1, 1))
        found.append(
            f'{{"stream":"{symbol.lower()}@depth@100ms","data":{{"e":"depthUpdate","E":{1_723_104_000_000 + k},'
            f'"s":"{symbol}","U":{k},"u":{k},"b":[{bids}],"a":[{asks}]}}}}'.encode()
        )
    return snapshot.encode(), found


def decoded(feed: int, snapshot: bytes, frames: list[bytes]) -> Iterator[RowArray]:
    """Take the snapshot and the frames through a fresh connection; yield each message's rows, gone with the next."""
    instrument = instruments()[feed]
    connection = MarketConnection([instrument], source=1 + feed)
    out = np.zeros(max(16384, connection.rows_needed), ROW)
    connection.on_open(now_ns())
    yield out[: connection.on_snapshot(instrument.symbol, snapshot, now_ns(), out)]
    on_frame = connection.on_frame
    for frame in frames:
        yield out[: on_frame(frame, now_ns(), out)]
    if connection.counts["gaps"] or connection.decoder.counts["malformed"]:
        raise CheckFailed(f"pipeline: feed {feed} refused frames: {connection.counts} {connection.decoder.counts}")


class _Feed:
    """A feed process: ``peers/memory_feed.py`` on our own interpreter, with a ring."""

    def __init__(self, feed: int, frames: int) -> None:
        self.ring = Ring.create()
        script = Path(__file__).parent / "peers" / "memory_feed.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(feed), str(frames), str(self.ring.memory_fd), str(self.ring.event_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self.ring.memory_fd, self.ring.event_fd),
        )

    def answer(self) -> dict[str, Any]:
        """Return what the process says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HftlabError(f"a feed process ended with code {self._process.wait()}")
        return dict(json.loads(line))

    def go(self) -> None:
        """Have it send everything once."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def __del__(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self.ring.close()


class _Bench:
    """The feeds, and what one process makes of the same frames."""

    def __init__(self, plan: Plan) -> None:
        self.folder, self.n = plan.folder, plan.sized(25_000, 500)
        whole = instruments()
        limits = tuple(Limits(2**50, 2**60, 3_000_000_000, 2**50) for _ in whole)
        self.definitions = Definitions("pipeline", "backtest", tuple(whole), limits, StrategyRef("none", ""))
        self.feeds = [_Feed(feed, self.n) for feed in range(FEEDS)]
        self.frames = [frames_of(feed, self.n) for feed in range(FEEDS)]
        for feed in self.feeds:
            feed.answer()
        self._journals = itertools.count()
        engine, sink = self.inline(RowBuffer())
        self.rows, self.books = int(sink.seq), _books(engine)

    def inline(self, sink: Any) -> tuple[Engine, Any]:
        """Decode and apply all frames in this process, feed by feed in turn."""
        engine = Engine(self.definitions)
        for messages in itertools.zip_longest(*(decoded(k, *frames) for k, frames in enumerate(self.frames))):
            for rows in messages:
                engine.process(rows, sink)
        return engine, sink

    def merged(self, fsync_ms: float | None, *, verified: bool = False) -> float:
        """Return the rows a second from the feeds' start to the last row in the journal."""
        path = self.folder / f"journal-{next(self._journals)}"
        engine = Engine(self.definitions)
        with JournalWriter(path, self.definitions.to_dict(), fsync_ms=fsync_ms) as writer:

            def process(rows: RowArray) -> None:
                engine.process(rows, writer)

            sequencer = Sequencer(process)
            for feed in self.feeds:
                sequencer.add(feed.ring, Rank.FEED)
            started = time.perf_counter_ns()
            for feed in self.feeds:
                feed.go()
            while writer.seq < self.rows:
                if not sequencer.turn():
                    self._sleep()
            took = time.perf_counter_ns() - started
            sent = sum(int(feed.answer()["rows"]) for feed in self.feeds)
        if not writer.seq == sent == self.rows or _books(engine) != self.books:
            raise CheckFailed(f"pipeline: {writer.seq} rows of {sent} sent, {self.rows} expected; or the books differ")
        if verified and not verify(path).ok:
            raise CheckFailed(f"pipeline: {verify(path)}")
        shutil.rmtree(path)
        return self.rows / took * 1e9

    def _sleep(self) -> None:
        for feed in self.feeds:
            feed.ring.arm()
        if all(feed.ring.held == 0 for feed in self.feeds):
            for fd in select.select([feed.ring.wake_fd for feed in self.feeds], [], [], 1.0)[0]:
                next(feed.ring for feed in self.feeds if feed.ring.wake_fd == fd).take_event()
            if any(feed.ended for feed in self.feeds):
                raise HftlabError("a feed process ended")

    def alone(self) -> float:
        """Return the rows a second of one process."""
        path = self.folder / f"journal-{next(self._journals)}"
        with JournalWriter(path, self.definitions.to_dict(), fsync_ms=None) as writer:
            started = time.perf_counter_ns()
            engine, _ = self.inline(writer)
            took = time.perf_counter_ns() - started
        if writer.seq != self.rows or _books(engine) != self.books:
            raise CheckFailed("pipeline: one process twice gave two results")
        shutil.rmtree(path)
        return self.rows / took * 1e9


def _books(engine: Engine) -> list[list[list[int]]]:
    return [side.tolist() for k in range(FEEDS) for side in engine.levels(k)]


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases: ``rows_per_s``, the same durably, and by one process."""
    bench = _Bench(plan)
    bench.merged(5.0, verified=True)
    run: dict[str, Callable[[], float]] = {
        "rows_per_s": lambda: bench.merged(None),
        "durable_rows_per_s": lambda: bench.merged(5.0),
        "inline_rows_per_s": bench.alone,
    }
    return [Case(name, case) for name, case in run.items()], []
