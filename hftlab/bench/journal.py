"""Journal: rows from one process to another through a mapped file, and how soon a sleeping reader wakes.

A writer process appends numbered rows; this process follows the journal as any tailer does (`JournalReader`) and checks
the number and the content of every row it counts. *One by one* means that every row is published by a store of its own,
*in 64s* one store for 64 rows; both within one segment that is allocated already, while the writer's helper thread
seals what is written. *Sustained* is a journal as a session has it: 64s over many small segments, flushed every 5 ms
and sealed, as fast as the disk allows.

``one_way`` is the time from just before a row is written to when a reader that spins has read it, by the CPU's cycle
counter, 20 us apart. ``wake`` is from a publication to a reader asleep in `wait` having returned to Python, about 1 ms
apart; ``nap_wake`` is the same for a reader without the bell, which sleeps 0.2 to 5 ms between looks. ``ring`` and
``no_ring`` are what `wake` costs the writer with somebody asleep and with nobody; ``append_call`` a call with one row.

Peers, one message of 64 bytes at a time: ``pyzmq`` (PUSH and PULL over ipc) and ``pipe`` (multiprocessing.Pipe).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hftlab.bench.run import Case, CheckFailed, PeerProcess, Plan, Ratio
from hftlab.core.errors import HftlabError
from hftlab.core.rows import RowArray
from hftlab.journal import JournalReader, verify
from hftlab.journal.bell import BELL_FILE
from hftlab.journal.format import COMMITTED_AT
from hftlab.kernels.jit import address_of, cycle_counter, kernel, load, load_acquire, store
from hftlab.kernels.latency import HAS_COUNTER
from hftlab.kernels.ring import relax, rows_address
from hftlab.services.hotpath import ns_per_cycle

__all__ = ["GOALS", "pinned", "prepare"]

GOALS = {
    "one_by_one_rows_per_s": (10e6, 30e6),
    "in_64s_rows_per_s": (10e6, 50e6),
    "one_way_p50_us": (1.0, 1.0),
}

PYZMQ = "pyzmq==27.1.0"
_BLOCK_MASK = (1 << 16) - 1
_GAP_NS = 20_000


@kernel("int64(int64, int64, int64)")
def _wrong(rows: int, n: int, seq: int) -> int:
    """Return how many of `n` rows are not the numbered rows from `seq` on."""
    bad = 0
    for i in range(n):
        at = rows + 64 * i
        k = (seq + i) & _BLOCK_MASK
        same = load(at) & 0xFFFFFFFF == (seq + i) & 0xFFFFFFFF
        same = same and load(at + 32) == k and load(at + 40) == -k
        same = same and load(at + 48) == k * 2654435761 and load(at + 56) == k ^ 0x5555
        bad += not same
    return bad


@kernel("int64(int64, int64, int64, int64, int64)")
def _watch(committed: int, rows: int, first: int, n: int, out: int) -> int:
    """Spin for each of `n` rows; store the cycles from its writing to its reading at `out`."""
    for i in range(n):
        while load_acquire(committed) <= first + i:
            relax()
        written = load(rows + 64 * (first + i) + 32)
        store(out + 8 * i, cycle_counter() - written)
    return n


@contextlib.contextmanager
def pinned(core: int) -> Iterator[int]:
    """Run this thread on one core, where there are two and the system lets us; give the other core's number, or -1."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        yield -1
        return
    os.sched_setaffinity(0, {cores[core]})
    try:
        yield cores[1 - core]
    finally:
        os.sched_setaffinity(0, cores)


class _Bench:
    """A writer process and what is measured with it."""

    def __init__(self, plan: Plan) -> None:
        self.folder, self.writer = plan.folder, plan.peer("journal_writer", ())
        self.rows, self.sustained_rows = plan.sized(1_000_000, 100_000), plan.sized(2_000_000, 100_000)
        self.paced, self.wakes = plan.sized(20_000, 500), plan.sized(300, 30)
        self.cycle_ns = ns_per_cycle()
        self._journals = 0

    @contextlib.contextmanager
    def journal(self, segment_rows: int, fsync_ms: float | None, core: int) -> Iterator[JournalReader]:
        """Open a fresh journal in the writer's process, and follow it."""
        self._journals += 1
        path = self.folder / f"journal-{self._journals}"
        self.writer.ask(op="open", folder=str(path), segment_rows=segment_rows, fsync_ms=fsync_ms, core=core)
        try:
            yield JournalReader(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)  # the writer has it mapped, and closes it with the next

    def flow(self, n: int, atom_rows: int, segment_rows: int, fsync_ms: float | None) -> float:
        """Return the rows a second from the first to the last of `n` rows, each checked."""
        with pinned(0) as core, self.journal(segment_rows, fsync_ms, core) as reader:
            asked = _Asked(self.writer, op="write", n=n, atom_rows=atom_rows)
            while not reader.spin(1 << 12):
                asked.check()
            started, bad = time.perf_counter_ns(), 0
            while reader.position < n:
                seq = reader.position
                rows: RowArray = reader.poll()
                if len(rows):
                    bad += _wrong(rows_address(rows), len(rows), seq)
                elif not reader.spin(1 << 12):
                    asked.check()
            took = time.perf_counter_ns() - started
            asked.answer()
        if bad:
            raise CheckFailed(f"journal: {bad} of {n} rows came out wrong")
        return n / took * 1e9

    def one_way(self, share: float) -> float:
        """Return a percentile of the time from writing to reading, us."""
        n, out = self.paced, np.zeros(self.paced, np.int64)
        with pinned(0) as core, self.journal(2 * n, None, core) as reader:
            asked = _Asked(self.writer, op="pace", n=n, gap=int(_GAP_NS / self.cycle_ns))
            segment = reader._segment
            assert segment is not None
            _watch(segment.address + COMMITTED_AT, segment.rows_address, 0, n, address_of(out))
            asked.answer()
        return float(np.percentile(out, share)) * self.cycle_ns / 1e3

    def wake(self, share: float, *, bell: bool = True) -> float:
        """Return a percentile of the time from publication to waking, us; share -1: what waking costs the writer."""
        took: list[int] = []
        with self.journal(1 << 12, None, -1) as reader:
            if not bell:
                (reader.folder / BELL_FILE).unlink()
                reader = JournalReader(reader.folder)
            asked = _Asked(self.writer, op="ring", n=self.wakes, seed=1)
            while len(took) < self.wakes:
                if reader.wait(1.0):
                    now = time.perf_counter_ns()
                    took += (now - reader.poll()["px"]).tolist()
                else:
                    asked.check()
            cost = asked.answer()
        return cost / 1e3 if share < 0 else float(np.percentile(took, share)) / 1e3

    def calls(self, what: str) -> float:
        """Return the median time of a call in the writer's process, ns."""
        with self.journal(1 << 14, None, -1):
            if what == "append":
                return float(self.writer.ask(op="call", n=2000)["value"])
            return float(self.writer.ask(op="ring", n=self.wakes, seed=2)["value"])


class _Asked:
    """A request to the writer's process that runs while this one reads."""

    def __init__(self, writer: PeerProcess, **request: Any) -> None:
        self._value: Any = None
        self._error: HftlabError | None = None

        def ask() -> None:
            try:
                self._value = writer.ask(**request)["value"]
            except HftlabError as error:
                self._error = error

        self._thread = threading.Thread(target=ask, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the writer's process said has gone wrong."""
        if self._error is not None:
            raise self._error

    def answer(self) -> Any:
        self._thread.join()
        self.check()
        return self._value


def _check(bench: _Bench) -> None:
    """Pass rows over several sealed segments and verify the journal as a whole."""
    n, path = 50_000, bench.folder / "checked"
    bench.writer.ask(op="open", folder=str(path), segment_rows=1 << 14, fsync_ms=5.0, core=-1)
    bench.writer.ask(op="write", n=n, atom_rows=64)
    bench.writer.ask(op="open", folder=str(bench.folder / "next"), segment_rows=64, fsync_ms=None, core=-1)
    reader, seen = JournalReader(path), 0
    while len(rows := reader.poll(1000)):
        if _wrong(rows_address(rows), len(rows), seen):
            raise CheckFailed("journal: rows came out wrong")
        seen += len(rows)
    report = verify(path)
    if seen != n or not report.ok:
        raise CheckFailed(f"journal: {seen} of {n} rows, {report}")


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases: throughput, latency, waking; with peers pyzmq and multiprocessing.Pipe."""
    bench = _Bench(plan)
    _check(bench)
    n, room = bench.rows, max(1 << 16, bench.rows * 3 // 2)
    cases = [
        Case("one_by_one_rows_per_s", lambda: bench.flow(n, 1, room, None)),
        Case("in_64s_rows_per_s", lambda: bench.flow(n, 64, room, None)),
        Case("sustained_rows_per_s", lambda: bench.flow(bench.sustained_rows, 64, 1 << 18, 5.0)),
        Case("wake_p50_us", lambda: bench.wake(50)),
        Case("wake_p99_us", lambda: bench.wake(99)),
        Case("nap_wake_p50_us", lambda: bench.wake(50, bell=False)),
        Case("nap_wake_p99_us", lambda: bench.wake(99, bell=False)),
        Case("ring_us", lambda: bench.wake(-1)),
        Case("no_ring_ns", lambda: bench.calls("wake")),
        Case("append_call_ns", lambda: bench.calls("append")),
    ]
    if HAS_COUNTER:
        cases[3:3] = [
            Case("one_way_p50_us", lambda: bench.one_way(50)),
            Case("one_way_p99_us", lambda: bench.one_way(99)),
        ]
    ratios: list[Ratio] = []
    if plan.peers:
        for name, packages in (("pyzmq", (PYZMQ,)), ("pipe", ())):
            cases.append(Case("one_by_one_rows_per_s", _flow_of(plan.peer(name, packages), plan), peer=name))
            ratios.append(Ratio(f"one_by_one_vs_{name}", "one_by_one_rows_per_s", f"{name}_one_by_one_rows_per_s"))
    return cases, ratios


def _flow_of(peer: PeerProcess, plan: Plan) -> Callable[[], float]:
    """Return a peer's round: messages a second, counted and checked by its receiver."""
    n = plan.sized(300_000, 10_000)
    if peer.ask(op="prepare", n=min(n, 10_000))["received"] != min(n, 10_000):
        raise CheckFailed(f"journal: peer {peer.name} lost messages")
    return lambda: n / float(peer.ask(op="round", n=n)["value"])


