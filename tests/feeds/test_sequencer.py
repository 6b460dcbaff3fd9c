"""The sequencer: rank before rank, fair within one, whole messages, and no publication slept through."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.rows import Flag, Kind, RowArray, new_rows
from hftlab.feeds.ring import Ring
from hftlab.feeds.sequencer import Rank, Sequencer

# Publishes rows one by one, each numbered, in bursts with a pause between them.
_BURSTS = """
import sys, time, numpy as np
from hftlab.core.rows import Flag, Kind, new_rows
from hftlab.feeds.ring import Ring
ring, source, n = Ring.attach(int(sys.argv[1]), int(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])
row = new_rows(1); row["kind"], row["flags"], row["source"] = Kind.TRADE, Flag.LAST, source
for i in range(n):
    row["px"] = i
    ring.put(row, lambda: None)
    if i % 16 == 15: time.sleep(0.0003)
"""


def message(source: int, first: int, size: int) -> RowArray:
    rows = new_rows(size)
    rows["kind"], rows["source"], rows["px"] = Kind.LEVEL, source, np.arange(first, first + size)
    rows["flags"][-1] = Flag.LAST
    return rows


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=60), st.integers(1, 10), st.integers(0, 60)
)
def test_a_turn_takes_rank_by_rank_and_every_source_in_its_own_order(
    published: list[tuple[int, int]], most: int, turn_every: int
) -> None:
    ranks = [Rank.FEED, Rank.CONTROL, Rank.FEED, Rank.REPORTS, Rank.FEED]
    rings = [Ring.create(1024) for _ in ranks]
    calls: list[RowArray] = []
    sequencer = Sequencer(lambda rows: calls.append(rows.copy()), most=most)
    for ring, rank in zip(rings, ranks, strict=True):
        sequencer.add(ring, rank)
    sent = [0] * len(rings)

    def checked_turn() -> int:
        calls.clear()
        held = [bool(ring.held) for ring in rings]
        n = sequencer.turn()
        order = [int(rows["source"][0]) for rows in calls]
        assert [ranks[k] for k in order] == sorted(ranks[k] for k in order)
        assert sorted(order) == [k for k, some in enumerate(held) if some]  # every source once: none starves
        for rows in calls:
            assert rows["flags"][-1] == Flag.LAST
            assert len(rows) <= most or (rows["flags"] == Flag.LAST).sum() == 1
            for source, px in zip(rows["source"].tolist(), rows["px"].tolist(), strict=True):
                assert px == taken[source]
                taken[source] += 1
        return n

    taken = [0] * len(rings)
    for k, (source, size) in enumerate(published):
        assert rings[source].publish(message(source, sent[source], size))
        sent[source] += size
        if turn_every and k % turn_every == 0:
            checked_turn()
    while checked_turn():
        pass
    assert taken == sent and sequencer.rows == sum(sent)
    for ring in rings:
        ring.close()


def test_the_first_place_among_feeds_goes_round() -> None:
    rings, first = [Ring.create(64) for _ in range(3)], []
    order: list[int] = []
    sequencer = Sequencer(lambda rows: order.append(int(rows["source"][0])))
    for ring in rings:
        sequencer.add(ring, Rank.FEED)
    for _ in range(6):
        for source, ring in enumerate(rings):
            ring.publish(message(source, 0, 1))
        order.clear()
        sequencer.turn()
        first.append(order[0])
    assert sorted(first) == [0, 0, 1, 1, 2, 2]
    for ring in rings:
        ring.close()


def test_what_a_removed_ring_still_holds_is_handed_over() -> None:
    ring, got = Ring.create(64), []
    sequencer = Sequencer(lambda rows: got.extend(rows["px"].tolist()), most=3)
    sequencer.add(ring, Rank.FEED)
    for k in range(10):
        ring.publish(message(0, 2 * k, 2))
    assert sequencer.remove(ring) == 20 and got == list(range(20))
    ring.publish(message(0, 20, 1))
    assert sequencer.turn() == 0
    ring.close()


def test_rows_that_could_not_be_processed_stay_in_the_ring() -> None:
    ring = Ring.create(64)

    def broken(rows: RowArray) -> None:
        raise RuntimeError("the disk is gone")

    sequencer = Sequencer(broken)
    sequencer.add(ring, Rank.FEED)
    ring.publish(message(0, 0, 4))
    with pytest.raises(RuntimeError):
        sequencer.turn()
    assert ring.held == 4
    ring.close()


def test_a_failure_is_kept_and_nothing_is_handed_over_after_it() -> None:
    rings, calls = [Ring.create(64), Ring.create(64)], []

    def broken(rows: RowArray) -> None:
        calls.append(len(rows))
        raise RuntimeError("the disk is gone")

    async def scenario() -> Sequencer:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, how: told.append(str(how.get("exception"))))
        sequencer = Sequencer(broken, busy=True)
        sequencer.start()
        for ring in rings:
            sequencer.add(ring, Rank.FEED)
        for first in range(5):
            for ring in rings:
                ring.publish(message(0, first, 1))
            await asyncio.sleep(0.01)
        assert told == ["the disk is gone"]
        assert sequencer.remove(rings[0]) == 0
        sequencer.stop()
        return sequencer

    sequencer = asyncio.run(scenario())
    assert isinstance(sequencer.failure, RuntimeError) and calls == [1]
    assert sequencer.turn() == sequencer.rows == 0
    for ring in rings:
        ring.close()


def test_a_ring_whose_last_rows_fail_is_forgotten_all_the_same() -> None:
    ring = Ring.create(64)

    def broken(rows: RowArray) -> None:
        raise RuntimeError("the disk is gone")

    sequencer = Sequencer(broken)
    sequencer.add(ring, Rank.FEED)
    ring.publish(message(0, 0, 1))
    with pytest.raises(RuntimeError):
        sequencer.remove(ring)
    ring.close()
    assert sequencer.turn() == 0


def bursts(rings: list[Ring], n: int) -> list[subprocess.Popen[bytes]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", _BURSTS, str(ring.memory_fd), str(ring.event_fd), str(source), str(n)],
            pass_fds=[ring.memory_fd, ring.event_fd],
        )
        for source, ring in enumerate(rings)
    ]


def on_a_loop(busy: bool, while_running: Callable[[], None]) -> None:
    """Merge two processes' bursts on an event loop; nothing but their events wakes it, so a lost one hangs it."""
    n = 4000
    rings = [Ring.create(256) for _ in range(2)]
    seen = [0, 0]
    done = asyncio.Event()

    def process(rows: RowArray) -> None:
        for source, px in zip(rows["source"].tolist(), rows["px"].tolist(), strict=True):
            assert px == seen[source]
            seen[source] += 1
        if seen == [n, n]:
            done.set()

    async def scenario() -> None:
        sequencer = Sequencer(process, busy=busy)
        sequencer.start()
        for ring in rings:
            sequencer.add(ring, Rank.FEED)
        processes = bursts(rings, n)
        while_running()
        await asyncio.wait_for(done.wait(), 60)
        sequencer.stop()
        for ended in processes:
            assert ended.wait(10) == 0

    asyncio.run(scenario())
    assert seen == [n, n]
    for ring in rings:
        ring.close()


def test_no_publication_is_slept_through_on_an_event_loop() -> None:
    on_a_loop(False, lambda: None)


def test_a_busy_sequencer_leaves_the_loop_to_others() -> None:
    ticks = []

    def ticking() -> None:
        async def tick() -> None:
            while True:
                ticks.append(1)
                await asyncio.sleep(0.001)

        asyncio.get_running_loop()._ticking = asyncio.ensure_future(tick())  # type: ignore[attr-defined]  # kept alive

    on_a_loop(True, ticking)
    assert len(ticks) > 20
