"""The ring between a feed process and the trader: its memory, its descriptors, and how the consumer is woken.

**Model.** The consumer creates the ring in anonymous shared memory and passes two descriptors to the process that fills
it: the memory, and an event that the consumer waits for. Nothing has a name: when the two processes are gone, so is the
ring. The counters and the copying are `hftlab.kernels.ring`; this module is the two ends as Python sees them.

**Waking.** The consumer waits for the event like for any socket: its event loop has one place to sleep, and is awake
some 50 us after a publication (measured, idle cores of a virtual machine; a thread asleep on a futex that calls the
loop: 90 to 120 us; a Unix datagram for every publication: 45 us, and a system call each). It raises a flag before it
sleeps, and looks again; the producer writes the event (0.4 us) only when it finds the flag up after a publication. The
barrier that makes this safe is the bell's (`hftlab.journal.bell`); where there is none the flag stays up, and every
publication writes the event.

**When it is full** the producer waits in `put`: market data is never dropped or merged in silence. The venue's frames
pile up in the socket meanwhile; if the venue cuts the connection for that, the books are RESYNCING, in rows. How often
it has waited is counted in the ring, for both sides to see.

**Worst case accepted.** A producer that is stopped or killed between raising `head` and writing the event delays the
consumer until the next event, or until whoever holds the producer notices that it is gone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable

import numpy as np

from hftlab.core.errors import ConfigError, LocalError
from hftlab.core.rows import ROW, RowArray
from hftlab.journal.bell import raise_flag, register_ringer
from hftlab.kernels import ring as kernels
from hftlab.kernels.jit import address_of

__all__ = ["CAPACITY", "Ring"]

CAPACITY = 1 << 16
"""Rows of a ring unless asked for otherwise: 4 MB, some seconds of a busy market."""
_MAGIC = 0x474E4952_4C544648  # "HFTLRING"
_FULL_NAP_S = 0.0002
_TEXT_AT, _TEXT_BYTES = 1024, 256
_EVENT = (1).to_bytes(8, "little")


class Ring:
    """One end of a ring of rows.

    `Ring.create` makes the consumer's end, `Ring.attach` the producer's.

    Attributes
    ----------
    capacity : int
        Rows, a power of two.
    memory_fd : int
        The memory.
    wake_fd, event_fd : int
        What the consumer waits for and what the producer writes: the same descriptor, or the two ends of a pipe.
    address : int
        Where the ring is mapped, for `hftlab.kernels.ring`.

    Examples
    --------
    >>> from hftlab.core.rows import Flag, Kind, new_rows
    >>> ring = Ring.create(16)
    >>> rows = new_rows(3); rows["kind"], rows["flags"] = Kind.LEVEL, [0, 0, Flag.LAST]
    >>> ring.publish(rows), len(ring.peek(1)), ring.release(3), len(ring.peek(1))
    (True, 3, None, 0)
    >>> ring.close()
    """

    def __init__(self, memory_fd: int, wake_fd: int, event_fd: int) -> None:
        self.memory_fd, self.wake_fd, self.event_fd = memory_fd, wake_fd, event_fd
        self._bytes = np.frombuffer(mmap.mmap(memory_fd, os.fstat(memory_fd).st_size), np.uint8)
        self.address = address_of(self._bytes)
        words = self._bytes[: kernels.DATA_AT].view(np.int64)
        self._words = words.data  # a memoryview: an int in 30 ns, no numpy scalar
        if self._words[0] != _MAGIC:
            raise ConfigError(f"memory_fd={memory_fd} is not a ring")
        self.capacity = int(self._words[kernels.CAPACITY_AT // 8])
        self._rows: RowArray = self._bytes[kernels.DATA_AT :].view(ROW)
        self._always = not register_ringer()

    @classmethod
    def create(cls, capacity: int = CAPACITY) -> Ring:
        """Return the consumer's end of a new ring of `capacity` rows.

        Raises
        ------
        ConfigError
            If `capacity` is not a power of two.
        """
        if capacity < 2 or capacity & (capacity - 1):
            raise ConfigError(f"capacity={capacity}; expected a power of two, 2 or more")
        memory_fd = _memory(kernels.DATA_AT + 64 * capacity)
        os.pwrite(memory_fd, _MAGIC.to_bytes(8, "little") + capacity.to_bytes(8, "little"), 0)
        if hasattr(os, "eventfd"):
            wake_fd = event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # macOS; untested there
            wake_fd, event_fd = os.pipe()
            os.set_blocking(wake_fd, False)
            os.set_blocking(event_fd, False)
        return cls(memory_fd, wake_fd, event_fd)

    @classmethod
    def attach(cls, memory_fd: int, event_fd: int) -> Ring:
        """Return the producer's end of the ring whose descriptors this process was given."""
        return cls(memory_fd, event_fd, event_fd)

    def close(self) -> None:
        """Close the descriptors; the memory goes with the last view of it."""
        for fd in {self.memory_fd, self.wake_fd, self.event_fd}:
            os.close(fd)

    # --- the producer's side -----------------------------------------------------------------------------------------

    def publish(self, rows: RowArray) -> bool:
        """Publish whole messages and wake the consumer; return False, nothing published, when the ring is full.

        Parameters
        ----------
        rows : array of ROW
            Contiguous; the last (or the head of the last payload) carries ``Flag.LAST``.

        Raises
        ------
        LocalError
            If the rows do not end a message, or are more than half of the ring.
        """
        n = kernels.publish(self.address, kernels.rows_address(rows), len(rows))
        if n > 0:
            if self._words[kernels.FLAG_AT // 8] or self._always:
                self._wake()
            return True
        if n == kernels.TOO_LONG:
            raise LocalError(f"rows: {len(rows)} at once; expected at most {self.capacity // 2}, half of the ring")
        if n == kernels.NOT_WHOLE:
            raise LocalError(f"rows: the last of {len(rows)} does not end a message; expected Flag.LAST there")
        return False

    def put(self, rows: RowArray, still: Callable[[], None]) -> None:
        """Publish `rows`, waiting as long as the ring is full; `still` is called meanwhile and may raise."""
        if self.publish(rows):
            return
        self._words[kernels.BLOCKED_AT // 8] += 1
        while not self.publish(rows):
            still()
            time.sleep(_FULL_NAP_S)

    def beat(self, now_ns: int, *, frames: int, reconnects: int, last_frame_ns: int, last_error: str) -> None:
        """Tell the consumer that the producer lives and how it does."""
        at = kernels.STATE_AT // 8
        self._words[at], self._words[at + 1], self._words[at + 2] = frames, reconnects, last_frame_ns
        text = last_error.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
        self._bytes[_TEXT_AT : _TEXT_AT + _TEXT_BYTES] = np.frombuffer(text, np.uint8)
        self._words[kernels.HEARTBEAT_AT // 8] = now_ns

    def _wake(self) -> None:
        self._words[kernels.FLAG_AT // 8] = 0  # before the event: a flag raised after it finds the rows, or rings again
        with contextlib.suppress(BlockingIOError):  # full of events: the consumer has not even read the first
            os.write(self.event_fd, _EVENT)

    # --- the consumer's side -----------------------------------------------------------------------------------------

    def peek(self, most: int) -> RowArray:
        """Return the next rows where they lie, whole messages in one piece: at most `most`, or one message.

        They are the caller's until `release`.
        """
        n = kernels.next_rows(self.address, most)
        at = self._words[kernels.TAIL_AT // 8] & (self.capacity - 1)
        return self._rows[at : at + n]

    def release(self, n: int) -> None:
        """Give the next `n` rows back to the producer."""
        kernels.release(self.address, n)

    def arm(self) -> None:
        """Ask to be woken by the next publication. Look once more after it: a publication before it wakes nobody."""
        raise_flag(self.address + kernels.FLAG_AT)

    def take_event(self) -> None:
        """Take what made `wake_fd` readable."""
        with contextlib.suppress(BlockingIOError):  # taken already
            os.read(self.wake_fd, 4096)

    @property
    def held(self) -> int:
        """Rows published and not released, leftovers of laps included."""
        return int(self._words[kernels.HEAD_AT // 8] - self._words[kernels.TAIL_AT // 8])

    @property
    def blocked(self) -> int:
        """How often the producer found the ring full and waited."""
        return int(self._words[kernels.BLOCKED_AT // 8])

    @property
    def heartbeat_ns(self) -> int:
        """When the producer last said that it lives; 0 before its first word."""
        return int(self._words[kernels.HEARTBEAT_AT // 8])

    @property
    def last_frame_ns(self) -> int:
        """When the producer last received a message; 0 before the first. The producer sets it, with every message."""
        return int(self._words[kernels.STATE_AT // 8 + 2])

    @last_frame_ns.setter
    def last_frame_ns(self, received_ns: int) -> None:
        """Say, as the producer, when a message was received."""
        self._words[kernels.STATE_AT // 8 + 2] = received_ns

    @property
    def told(self) -> tuple[int, int, int, str]:
        """What the producer last said: frames, reconnects, time of its last frame (ns), last error."""
        at = kernels.STATE_AT // 8
        text = self._bytes[_TEXT_AT : _TEXT_AT + _TEXT_BYTES].tobytes().rstrip(b"\0").decode(errors="replace")
        return int(self._words[at]), int(self._words[at + 1]), int(self._words[at + 2]), text


def _memory(size: int) -> int:
    """Return the descriptor of `size` bytes of shared memory that has no name, every page of it present."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("hftlab-ring", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:  # macOS; untested there
            fd = os.dup(file.fileno())
    try:
        block = bytes(1 << 20)
        for at in range(0, size, len(block)):
            os.pwrite(fd, block[: size - at], at)  # a page absent now would be a fault of the hot path later
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"no memory for a ring of {size:,} bytes: {error.strerror}") from error
    return fd
