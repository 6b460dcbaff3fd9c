"""The ring: like a deque of messages, whole or not at all, over two processes, whichever of them is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.rows import CONT, Flag, Kind, RowArray, new_rows
from hftlab.feeds.ring import Ring

# Publishes messages of 1 to 7 rows, numbered through px, with a checksum in qty; says how many rows it has published.
_PRODUCE = """
import sys, os, numpy as np
from hftlab.core.rows import Flag, Kind, new_rows
from hftlab.feeds.ring import Ring
ring, n, sent, k = Ring.attach(int(sys.argv[1]), int(sys.argv[2])), int(sys.argv[3]), 0, 0
rows = new_rows(64); rows["kind"] = Kind.LEVEL
parent = os.getppid()
def still():
    if os.getppid() != parent: sys.exit(3)
while sent < n:
    size = min(1 + k % 64, n - sent); k += 1
    part = rows[:size]
    at = np.arange(sent, sent + size)
    part["px"], part["qty"], part["flags"] = at, at * 2654435761 ^ 0x5555, 0
    part["flags"][-1] = Flag.LAST
    ring.put(part, still)
    sent += size
print(sent, ring.blocked)
"""


def messages(first: int, size: int) -> RowArray:
    rows = new_rows(size)
    rows["kind"], rows["px"] = Kind.LEVEL, np.arange(first, first + size)
    rows["flags"][-1] = Flag.LAST
    return rows


def producer(ring: Ring, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PRODUCE, str(ring.memory_fd), str(ring.event_fd), str(n)],
        pass_fds={ring.memory_fd, ring.event_fd}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def consumed(ring: Ring, stop: Callable[[], bool]) -> Iterator[RowArray]:
    """Yield what comes, sleeping on the event when nothing does, until `stop` says so and the ring is empty."""
    while True:
        rows = ring.peek(256)
        if len(rows):
            yield rows
            ring.release(len(rows))
            continue
        ring.arm()
        if ring.held == 0:
            if stop():
                return
            if select.select([ring.wake_fd], [], [], 0.5)[0]:
                ring.take_event()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 8), st.tuples(st.integers(1, 12))), max_size=120))
def test_the_ring_behaves_like_a_deque_of_messages(steps: list[Any]) -> None:
    ring, model, sent = Ring.create(16), deque[int](), 0
    sizes: deque[int] = deque()
    try:
        for step in steps:
            if isinstance(step, int):
                if ring.publish(messages(sent, step)):
                    model.extend(range(sent, sent + step))
                    sizes.append(step)
                    sent += step
                else:
                    assert ring.held + 2 * step > 16  # full: even the end of a lap may be in the way
            else:
                rows = ring.peek(step[0])
                got = rows["px"].tolist()
                assert got == [model.popleft() for _ in range(len(got))]
                ends, n = [], 0
                while n < len(got):
                    n += sizes.popleft()
                    ends.append(n)
                assert n == len(got), "a message was split"
                assert len(got) <= step[0] or len(ends) == 1
                assert bool(got) == bool(got or model)
                ring.release(len(got))
        while len(rows := ring.peek(100)):
            assert rows["px"].tolist() == [model.popleft() for _ in range(len(rows))]
            ring.release(len(rows))
        assert not model and ring.held == 0
    finally:
        ring.close()


def test_a_message_with_payload_is_taken_whole() -> None:
    ring = Ring.create(16)
    rows = new_rows(4)
    rows["kind"], rows["kind"][1:3] = Kind.REPORT, CONT
    rows["span"][:3], rows["flags"][0], rows["flags"][3] = 2, Flag.LAST, Flag.LAST
    rows["flags"][1] = Flag.LAST  # payload, whatever its bytes say
    assert ring.publish(rows)
    assert len(ring.peek(1)) == 3 and len(ring.peek(2)) == 3 and len(ring.peek(4)) == 4
    with pytest.raises(LocalError, match="does not end a message"):
        ring.publish(rows[:2])
    ring.close()


def test_mistakes_of_the_producer_are_named_and_publish_nothing() -> None:
    ring = Ring.create(8)
    with pytest.raises(LocalError, match="at most 4, half of the ring"):
        ring.publish(messages(0, 5))
    rows = messages(0, 2)
    rows["flags"] = 0
    with pytest.raises(LocalError, match=r"expected Flag\.LAST"):
        ring.publish(rows)
    with pytest.raises(LocalError, match="does not end"):
        ring.publish(rows[:0])
    assert ring.held == 0
    with pytest.raises(ConfigError, match="power of two"):
        Ring.create(12)
    empty = os.memfd_create("empty")
    os.ftruncate(empty, 8192)
    with pytest.raises(ConfigError, match="not a ring"):
        Ring.attach(empty, 0)
    os.close(empty)
    ring.close()


def test_a_full_ring_refuses_and_a_waiting_producer_is_counted() -> None:
    ring = Ring.create(8)
    while ring.publish(messages(0, 2)):
        pass
    assert ring.held == 8

    def give_room() -> None:
        ring.release(len(ring.peek(8)))

    ring.put(messages(8, 3), give_room)
    assert ring.blocked == 1 and ring.peek(8)["px"].tolist() == [8, 9, 10]

    class Gone(Exception):
        pass

    def gone() -> None:
        raise Gone

    while ring.publish(messages(0, 1)):
        pass
    with pytest.raises(Gone):
        ring.put(messages(8, 3), gone)
    ring.close()


def test_the_event_is_written_once_for_each_time_it_was_asked_for() -> None:
    ring = Ring.create(64)

    def rung() -> bool:
        return bool(select.select([ring.wake_fd], [], [], 0)[0])

    ring.publish(messages(0, 1))
    assert not rung()
    ring.arm()
    ring.publish(messages(1, 1))
    assert rung()
    ring.take_event()
    ring.take_event()
    ring.publish(messages(2, 1))
    assert not rung()
    ring.close()


def test_two_processes_pass_a_million_rows_with_their_checksums() -> None:
    n, ring = 1_000_000, Ring.create(4096)
    process, seen = producer(ring, n), 0
    for rows in consumed(ring, lambda: process.poll() is not None):
        at = np.arange(seen, seen + len(rows))
        assert np.array_equal(rows["px"], at) and np.array_equal(rows["qty"], at * 2654435761 ^ 0x5555)
        assert rows["flags"][-1] == Flag.LAST
        seen += len(rows)
    assert process.communicate()[0].split()[0] == str(n) and process.returncode == 0
    assert seen == n
    ring.close()


def test_a_producer_killed_at_any_moment_leaves_whole_messages() -> None:
    for delay in (0, 3000, 20_000):
        ring = Ring.create(4096)
        process, seen = producer(ring, 10**9), 0
        for rows in consumed(ring, lambda process=process: process.poll() is not None):
            assert np.array_equal(rows["px"], np.arange(seen, seen + len(rows)))
            assert rows["flags"][-1] == Flag.LAST
            seen += len(rows)
            if seen > delay and process.poll() is None:
                process.send_signal(signal.SIGKILL)
        assert process.communicate()[0] == "" and seen > delay
        ring.close()


def test_a_producer_whose_consumer_is_killed_finds_out_while_it_waits() -> None:
    code = f"""
import subprocess, sys, os
from hftlab.feeds.ring import Ring
ring = Ring.create(256)
child = subprocess.Popen([sys.executable, "-c", {_PRODUCE!r}, str(ring.memory_fd), str(ring.event_fd), "1000000"],
    pass_fds=[ring.memory_fd, ring.event_fd], stdout=subprocess.DEVNULL)
while not ring.blocked: pass
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    pid = int(done.stdout)
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        select.select([], [], [], 0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the producer still runs 30 s after its consumer was killed")


def test_what_the_producer_tells_reaches_the_consumer() -> None:
    ring = Ring.create(8)
    twin = Ring.attach(os.dup(ring.memory_fd), os.dup(ring.event_fd))
    assert ring.heartbeat_ns == 0
    twin.beat(17, frames=1, reconnects=2, last_frame_ns=3, last_error="no answer: é" + "x" * 400)
    assert ring.heartbeat_ns == 17
    assert ring.told[:3] == (1, 2, 3) and ring.told[3].startswith("no answer: éx")
    twin.beat(18, frames=1, reconnects=2, last_frame_ns=3, last_error="")
    assert ring.told[3] == ""
    twin.close()
    ring.close()
