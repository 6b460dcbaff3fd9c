"""The sequencer: merges the rings of other processes into one order of rows.

**Model.** Sources have ranks: control before reports before feeds. A turn visits every source once, rank by rank, and
takes at most `most` rows of each (or one message, if that is longer), always whole messages and in one piece, straight
from the ring to the engine. Within a rank the first place goes round, so that no feed is always served last. The
order in which a turn hands rows over *is* the session's order; nothing sorts by time afterwards.

**Promise.** A source's rows keep their order. A stop or a fill never waits for more than one turn of the feeds, `most`
rows of each: at 50 ns a row and the default some 100 us a feed. After every turn the event loop runs what else is ready
before the next: sockets are not starved by a busy ring.

**Waiting.** With nothing left the sequencer asks every ring to wake it, looks once more and lets the loop sleep on the
rings' events. A busy sequencer never asks: it looks again as soon as the loop has run, for a core of one's own.

**Failure.** A consumer that raised may have taken half of what it was given: handing that over again would count rows
twice, going on would lose them. The first exception is raised, kept in `failure`, and nothing is handed over after it.

**Worst case accepted.** A message is not interrupted: a snapshot of thousands of levels goes through whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum

from hftlab.core.rows import RowArray
from hftlab.feeds.ring import Ring

__all__ = ["Rank", "Sequencer"]


class Rank(IntEnum):
    """Who goes first."""

    CONTROL = 0
    REPORTS = 1
    FEED = 2


class Sequencer:
    """Merges rings into one consumer of rows.

    Parameters
    ----------
    process : callable(rows)
        Takes whole messages; the rows are gone when it returns.
    most : int
        Rows of one source in one turn.
    busy : bool
        Never sleep while running on a loop.

    Attributes
    ----------
    rows : int
        Handed over so far.
    failure : BaseException or None
        What `process` raised; the sequencer has stood still since.

    Examples
    --------
    >>> from hftlab.core.rows import Flag, Kind, new_rows
    >>> feed, control, order = Ring.create(16), Ring.create(16), []
    >>> sequencer = Sequencer(lambda rows: order.extend(rows["kind"].tolist()))
    >>> sequencer.add(feed, Rank.FEED); sequencer.add(control, Rank.CONTROL)
    >>> row = new_rows(1); row["flags"] = Flag.LAST
    >>> for ring, kind in (feed, Kind.LEVEL), (control, Kind.CONTROL):
    ...     row["kind"] = kind; _ = ring.publish(row)
    >>> sequencer.turn(), [Kind(k).name for k in order]
    (2, ['CONTROL', 'LEVEL'])
    """

    def __init__(self, process: Callable[[RowArray], None], *, most: int = 2048, busy: bool = False) -> None:
        self.rows = 0
        self.failure: BaseException | None = None
        self._process, self._most, self._busy = process, most, busy
        self._ranks: dict[Rank, list[Ring]] = {rank: [] for rank in Rank}
        self._turns = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = False

    def add(self, ring: Ring, rank: Rank) -> None:
        """Merge `ring` from now on."""
        self._ranks[rank].append(ring)
        if self._loop is not None:
            self._listen(ring)

    def remove(self, ring: Ring) -> int:
        """Hand over what `ring` still holds and forget it; return how many rows that were."""
        rows = 0
        try:
            while n := self._take(ring):
                rows += n
        finally:
            for rings in self._ranks.values():
                if ring in rings:
                    rings.remove(ring)
            if self._loop is not None:
                self._loop.remove_reader(ring.wake_fd)
        return rows

    def turn(self) -> int:
        """Visit every source once; return how many rows were handed over."""
        taken = 0
        self._turns += 1
        for rings in self._ranks.values():
            first = self._turns % len(rings) if rings else 0
            for ring in rings[first:] + rings[:first]:
                taken += self._take(ring)
        return taken

    def _take(self, ring: Ring) -> int:
        if self.failure is not None:
            return 0
        rows = ring.peek(self._most)
        n = len(rows)
        if n:
            try:
                self._process(rows)
            except BaseException as error:
                self.failure = error
                raise
            ring.release(n)
            self.rows += n
        return n

    # --- on an event loop --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run on the running event loop until `stop`."""
        self._loop = asyncio.get_running_loop()
        for rings in self._ranks.values():
            for ring in rings:
                self._listen(ring)
        self._again()

    def stop(self) -> None:
        """Stop running; what the rings hold stays there."""
        if self._loop is not None:
            for rings in self._ranks.values():
                for ring in rings:
                    self._loop.remove_reader(ring.wake_fd)
        self._loop = None

    def _listen(self, ring: Ring) -> None:
        assert self._loop is not None
        self._loop.add_reader(ring.wake_fd, self._on_event, ring)
        self._again()

    def _on_event(self, ring: Ring) -> None:
        ring.take_event()
        if not self._due:
            self._due = True
            self._run()

    def _again(self) -> None:
        if not self._due and self._loop is not None:
            self._due = True
            self._loop.call_soon(self._after_sockets)

    def _after_sockets(self) -> None:
        if self._loop is not None:  # what the loop finds ready in this round stands in its queue before this
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._due = False
        if self._loop is None or self.failure is not None:
            return
        if self.turn() or self._busy or not self._asleep():
            self._again()

    def _asleep(self) -> bool:
        """Ask every ring to wake us; return False if one holds rows after all."""
        empty = True
        for rings in self._ranks.values():
            for ring in rings:
                ring.arm()
                empty = empty and ring.held == 0
        return empty
