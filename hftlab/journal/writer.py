"""The writer: one process appends rows; everybody else reads them at once.

**Model.** The host (an engine) asks where the next row goes (`room`, `ensure`), writes rows there, and publishes them
with `commit`: one release store. `wake` wakes the readers that sleep, and costs nothing when none does: a host calls it
when it has acted upon what it published. One helper thread does everything that can wait: it allocates the next
segment, copies what was committed to the disk and flushes it (`fdatasync`, grouped), and seals full blocks.

**Promise.** What is committed survives ``kill -9`` of the writer at once, and a power cut after at most `fsync_ms`
plus the flush itself. A full disk is noticed when the *next* segment cannot be allocated: `halt_reason` is set while
the open segment still has room, and the host stops trading and writes its last rows. `ensure` does not hand out the
last quarter of a segment before the helper has answered. Committed rows are never moved, rewritten or truncated.

**Recovery.** Opening a folder takes the lock, removes what was only allocated, and closes and seals what a dead
writer left. The committed count is believed up to the first unwritten row (after a power cut the count may reach the
disk before the rows) and then back to the end of the last whole atom. New rows go to a new segment.

**Worst case accepted.** The helper allocates 16 MB in some 10 ms for the first segments, and in 1 ms once the memory of
a settled one comes back (`hftlab.journal.live`), once in 262,144 rows; a flush due meanwhile waits. A flushed journal
holds the memory of three segments, four while one settles. Where no core is idle a flush begins some milliseconds late:
the helper does not interrupt whoever runs.
A host that fills three quarters of a segment before the next is allocated blocks in `ensure`: rows are never dropped.
With ``fsync_ms=None`` (backtests) a power cut may lose everything since the start, and a journal so cut may refuse to
be continued.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hftlab.core.errors import JournalError
from hftlab.core.rows import CONT, ROW, Kind, RowArray
from hftlab.journal.bell import BELL_FILE, Bell
from hftlab.journal.format import (
    NO_SEQ,
    Segment,
    allocate,
    disk_path,
    entry,
    publish,
    segment_name,
    segment_numbers,
    whole_rows,
    write_atoms,
)
from hftlab.journal.live import Memory, live_folder, sweep
from hftlab.journal.seal import GENESIS, Sealer, final_hash
from hftlab.kernels.jit import address_of
from hftlab.kernels.ring import rows_address

__all__ = ["JournalWriter"]

_write_atoms = entry(write_atoms)
_SEAL_EVERY_S = 0.05  # the helper's pace when nothing is to be flushed


class JournalWriter:
    """The only writer of a journal.

    Parameters
    ----------
    folder : Path
        Created if absent. If it holds a journal, the journal is continued after its last whole atom.
    definitions : dict
        Plain types; written into every segment's header. Two keys are also laid where a reader finds them without
        decoding: ``kernel_hash`` (str) and ``checkpoint`` ([row number, 64 hex digits]).
    segment_rows : int
        Rows a segment has room for; an atom cannot be longer.
    fsync_ms : float, optional
        At most this long after a commit the flush begins, ms; None leaves flushing to the operating system.

    Attributes
    ----------
    seq : int
        Full number of the next row: how many rows the journal holds.
    halt_reason : str or None
        Why the host must stop: the next segment cannot be allocated, or the disk fails. Never cleared.
    checkpoint : tuple of (int, str) or None
        Laid into the header of segments started from now on.

    Raises
    ------
    JournalError
        If another writer holds the folder, an argument is wrong, the disk is full, or what a dead writer left has
        changed since it was sealed.

    Examples
    --------
    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> rows = np.zeros(3, ROW); rows["kind"] = Kind.CLOCK
    >>> with JournalWriter(folder, {"run": 1}, segment_rows=64, fsync_ms=None) as writer:
    ...     writer.append(rows), writer.seq, writer.room()[1]
    (0, 3, 61)
    """

    def __init__(
        self,
        folder: Path,
        definitions: dict[str, Any],
        *,
        segment_rows: int = 1 << 18,
        fsync_ms: float | None = 5.0,
    ) -> None:
        if segment_rows < 1:
            raise JournalError(f"segment_rows is {segment_rows}; expected 1 or more")
        if fsync_ms is not None and fsync_ms <= 0:
            raise JournalError(f"fsync_ms is {fsync_ms}; expected more than 0, or None for no flushing")
        self.folder = Path(folder)
        self.halt_reason: str | None = None
        given = definitions.get("checkpoint")
        self.checkpoint: tuple[int, str] | None = None if given is None else (int(given[0]), str(given[1]))
        self._definitions = definitions
        self._capacity = segment_rows
        self._reserve_rows = segment_rows // 4
        self._durable = fsync_ms is not None
        self._period = _SEAL_EVERY_S if fsync_ms is None else fsync_ms / 1e3
        self._spare: Segment | None = None
        self._kept: Memory | None = None  # of a segment that has settled, for the next
        self._spare_ready = threading.Event()
        self._wake = _Alarm()
        self._stop = threading.Event()
        self._closed = False
        self._place = np.zeros(3, np.int64)  # what `publish` wants to know of the open segment
        self._place_at = address_of(self._place)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.folder)
        try:
            sweep()
            self._next_number, self.seq, head = _recover(self.folder, durable=self._durable)
            self._live = live_folder(self.folder) if self._durable else None
            self._bell = Bell(self.folder / BELL_FILE, writer=True)
            self._open(self._allocate())
        except OSError as error:
            os.close(self._lock)
            raise JournalError(f"{self.folder}: no segment of {segment_rows} rows: {error.strerror}") from error
        except BaseException:
            os.close(self._lock)
            raise
        self._unsealed: deque[Segment] = deque([self._segment])  # oldest first; the last is the open one
        self._sealer = Sealer(self._segment, head, durable=self._durable)  # of the oldest
        self._synced = 0  # rows of the oldest that are on the disk
        self._rung = self._tended = self.seq  # by the helper
        self._helper = threading.Thread(target=self._help, name=f"journal {self.folder.name}", daemon=True)
        self._helper.start()

    # --- the host's side ---------------------------------------------------------------------------------------------

    def room(self) -> tuple[int, int]:
        """Return the address of the next free row, and how many rows are free in this segment."""
        used = self.seq - self._base
        return self._segment.rows_address + 64 * used, self._segment.header.capacity - used

    def ensure(self, rows: int) -> tuple[int, int]:
        """Return `room`, after moving to the next segment if fewer than `rows` rows are free.

        Rows written and not committed stay behind: ask before an atom begins. The move is a few stores. The last
        quarter of a segment is handed out only when the next one is there or `halt_reason` says why not; the call waits
        for that answer. A host that sees `halt_reason` therefore has room for its last rows.

        Raises
        ------
        JournalError
            If `rows` cannot fit any segment, the writer is closed, or there is no next segment (`halt_reason` says
            why).
        """
        free = self._end - self.seq
        if free - rows < self._reserve_rows:
            self._check_room(rows, free)
            if free < rows:
                self._roll()
                return self.room()
        return self._row_zero + 64 * self.seq, free

    def commit(self, rows: int) -> None:
        """Publish the next `rows` rows, which the host has written at `room`'s address, by one release store.

        Raises
        ------
        JournalError
            If they exceed the segment, the writer is closed, or no atom ends at the last of them (the last head row
            carries ``Flag.COMMIT`` and `span` payload rows follow it). Nothing is published then.
        """
        if rows < 0 or rows > self._end - self.seq:
            raise JournalError(f"commit of {rows} rows at row {self.seq}: {self._why_not(rows)}")
        if rows and publish(self._place_at, rows) < 0:
            raise JournalError(
                f"commit of {rows} rows at row {self.seq}: they do not end an atom; expected Flag.COMMIT on the last "
                "row that is not payload, and as many payload rows after it as its span says"
            )
        self.seq += rows

    def append(self, rows: RowArray) -> int:
        """Copy `rows` in and publish them at once, as one atom, and wake who sleeps; for hosts without an engine.

        Numbers are stamped, payload rows get bytes 0-5 and the span of their head row, and ``Flag.COMMIT`` is set on
        the last head row, so that an atom ends there. `rows` itself is not changed.

        Returns
        -------
        int
            Full number of the first row.

        Raises
        ------
        JournalError
            As `ensure`; or if `rows` is not a ROW array, or a head row is not followed by as many payload rows as its
            span says. Nothing is published then.
        """
        return self.extend(rows, atom_rows=max(1, len(rows)))

    def extend(self, rows: RowArray, *, atom_rows: int = 64) -> int:
        """Copy any number of `rows` in, publishing an atom as often as it has `atom_rows` rows; else as `append`.

        1 publishes row by row. A payload is never parted from its head: an atom may be longer by that. An error leaves
        the atoms before it published.
        """
        if rows.dtype != ROW or rows.ndim != 1:
            raise JournalError(
                f"rows is {rows.ndim}-dimensional of {rows.dtype}; expected a 1-dimensional array of ROW"
            )
        if atom_rows < 1:
            raise JournalError(f"atom_rows is {atom_rows}; expected 1 or more")
        rows = np.ascontiguousarray(rows)
        at, n = self.seq, len(rows)
        source, done, need = rows_address(rows), 0, atom_rows
        while done < n:
            need = min(need, n - done)
            _, free = self.ensure(need)
            room = max(need, free - self._reserve_rows)  # the last quarter only once `ensure` has been asked for it
            segment = self._segment
            written = _write_atoms(
                segment.address, segment.rows_address, self.seq - self._base, room, source + 64 * done, n - done,
                self.seq, atom_rows,
            )  # fmt: skip
            if written < 0:
                self.seq = self._base + segment.committed  # the atoms before the bad row stand
                self._place[2] = segment.committed
                raise JournalError(_bad_row(rows, done - 1 - written))
            done += written
            self.seq += written
            self._place[2] = self.seq - self._base
            need = atom_rows if written else max(need, room) + 1  # its payload did not fit
        self.wake()
        return at

    @property
    def behind(self) -> int:
        """Committed rows that the helper has not seen to yet; 0 once all are flushed, and every full block sealed."""
        return self.seq - self._tended

    def wake(self) -> None:
        """Wake the readers that sleep. 50 ns when none does; else a system call: call it after what cannot wait.

        A host that never does wakes them all the same, when the helper next looks (`fsync_ms`, or 50 ms).
        """
        self._bell.ring()

    def close(self) -> None:
        """Stop the helper, flush, seal everything and give the folder free; closing twice is allowed.

        If the seal cannot be written (the disk is full), the rows stay readable, unsealed, and `halt_reason` says so;
        the next writer of the folder seals them.
        """
        if self._closed:
            return
        self._closed = True
        self._end = NO_SEQ
        self._stop.set()
        self._wake.set()
        self._helper.join()
        if self._spare is not None:
            self._spare.discard()
        self._segment.close_at(self.seq - self._base)
        try:
            self._tend()
        except (OSError, JournalError) as error:
            self._halt(f"the journal is not sealed to its end: {error}")
        self._sealer.release()
        for segment in self._unsealed:
            segment.release()
        if self._kept is not None:
            self._kept.drop()
        self._bell.ring()
        if self._live is not None and not self._unsealed:
            shutil.rmtree(self._live, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, segment: Segment) -> None:
        segment.start(self.seq, self.checkpoint)
        self._segment = segment
        self._base = self.seq
        self._end = self.seq + segment.header.capacity  # the first number that has no room here
        self._row_zero = segment.rows_address - 64 * self.seq  # where row 0 of the journal would lie
        self._place[:] = segment.address, segment.rows_address, 0

    def _check_room(self, rows: int, free: int) -> None:
        """Wait until the helper has the next segment or says why not, so that a halt is known while there is room."""
        if self._closed or rows > self._capacity:
            raise JournalError(f"no room for {rows} rows at row {self.seq}: {self._why_not(rows)}")
        while self._spare is None and self.halt_reason is None:
            self._wake.set()
            self._spare_ready.wait(0.1)
        if free < rows and self._spare is None:
            raise JournalError(f"no room for {rows} rows at row {self.seq}: {self.halt_reason}")

    def _roll(self) -> None:
        assert self._spare is not None
        spare, old, old_rows = self._spare, self._segment, self.seq - self._base
        self._spare_ready.clear()
        self._unsealed.append(spare)
        self._open(spare)  # started before the old one is closed: who sees `closed` finds the next
        old.close_at(old_rows)
        self._spare = None
        self._wake.set()

    def _why_not(self, rows: int) -> str:
        if self._closed:
            return "the writer is closed"
        return f"a segment of this journal has {self._capacity} rows, {self.room()[1]} of them free; got {rows}"

    # --- the helper's side -------------------------------------------------------------------------------------------

    def _allocate(self) -> Segment:
        kept, self._kept = self._kept, None
        segment = allocate(
            self.folder,
            self._next_number,
            self._definitions,
            self._capacity,
            durable=self._durable,
            live=self._live,
            kept=kept,
        )
        self._next_number += 1
        return segment

    def _halt(self, reason: str) -> None:
        self.halt_reason = self.halt_reason or reason
        self._spare_ready.set()

    def _help(self) -> None:
        _come_second()
        while not self._stop.is_set():
            try:
                if self._spare is None and self.halt_reason is None:
                    self._reserve()
                if self.seq != self._rung:  # for a host that does not call `wake`
                    self._rung = self.seq
                    self._bell.ring()
                self._tend()
            except OSError as error:
                self._halt(f"the journal {self.folder} cannot be flushed or sealed: {error.strerror}")
            except Exception as error:  # a helper that died in silence would leave the rows unflushed and unsealed
                self._halt(f"the journal's helper thread failed: {type(error).__name__}: {error}")
            self._wake.wait(self._period)

    def _reserve(self) -> None:
        try:
            self._spare = self._allocate()
        except OSError as error:
            free = self.room()[1]
            self._halt(
                f"the next journal segment ({self._capacity} rows, {self.folder}) cannot be allocated: "
                f"{error.strerror}; {free} rows are left in the open one"
            )
        self._spare_ready.set()

    def _tend(self) -> None:
        """Flush and seal, oldest segment first; one that is closed is finished and dropped."""
        while self._unsealed:
            segment = self._unsealed[0]
            closed = segment.closed  # before the count: a closed segment's count is final
            committed = segment.committed
            if self._durable and (closed or committed > self._synced):
                segment.sync()
            self._synced = committed
            if not closed:
                self._sealer.advance(committed)
                self._tended = segment.base_seq + committed
                return
            head = self._sealer.finish()
            kept = segment.settle(keep=self._kept is None)
            self._kept = kept or self._kept
            segment.release()
            self._unsealed.popleft()
            self._tended = segment.base_seq + committed
            self._synced = 0
            if self._unsealed:
                self._sealer = Sealer(self._unsealed[0], head, durable=self._durable)


def _come_second() -> None:
    """Let this thread, when it wakes, wait for a core rather than take the one on which the host trades.

    A batch thread has its full share of the machine and does not interrupt. On a machine with other work for all its
    cores, the slowest ticks in a hundred were a fifth shorter so (measured: 69 us in place of 88).
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Alarm:
    """Wakes the one thread that waits for it; set before it waits, it does not wait.

    A `threading.Event` does the same in Python, some 40 us of it from cold caches. The helper has the interpreter's
    lock all that time, and a host that polls its sockets gives it away with every poll: a tick then waits for it.

    Examples
    --------
    >>> alarm = _Alarm()
    >>> alarm.set(); alarm.set()
    >>> alarm.wait(0.001), alarm.wait(0.001)
    (True, False)
    """

    def __init__(self) -> None:
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        """End the present wait, or the next."""
        with contextlib.suppress(RuntimeError):  # it is set already
            self._unset.release()

    def wait(self, timeout_s: float) -> bool:
        """Return whether it was set within `timeout_s`; it is unset by that."""
        return self._unset.acquire(timeout=timeout_s)


def _bad_row(rows: RowArray, i: int) -> str:
    if rows["kind"][i] == CONT:
        return f"rows[{i}] is a payload row (kind CONT); expected the row it belongs to before it"
    span = int(rows["span"][i])
    return f"rows[{i}] has span {span}; expected {span} payload rows (kind CONT) after it"


def _take_lock(folder: Path) -> int:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise JournalError(f"two writers: process {holder} is writing {folder}; one journal has one writer") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _recover(folder: Path, *, durable: bool) -> tuple[int, int, bytes]:
    """Close and seal what a dead writer left; return the next segment's number, its base, and the chain's hash."""
    for left in folder.glob("*.tmp"):
        left.unlink()
    number, seq, head = 0, 0, GENESIS
    for name in map(segment_name, segment_numbers(folder)):
        _come_back(folder / name)
        segment = Segment(folder / name, writable=True)
        try:
            if segment.base_seq == NO_SEQ:
                segment.discard()
                continue
            sealed = final_hash(segment)
            head = sealed if sealed is not None else _finish(segment, head, durable=durable)
            if segment.is_live:
                segment.sync()
                segment.settle()
            number, seq = segment.number + 1, segment.base_seq + segment.committed
        finally:
            segment.release()
    for left in folder.glob("*.disk"):
        left.unlink()  # a writer died while it made it
    return number, seq, head


def _come_back(path: Path) -> None:
    """Put the disk's copy in the place of a live segment that has gone with the machine's memory."""
    if path.is_symlink() and not path.exists():
        if not disk_path(path).exists():
            raise JournalError(f"{path} lay in memory and has no copy on the disk: keep the folder for inspection")
        os.replace(disk_path(path), path)


def _finish(segment: Segment, head: bytes, *, durable: bool) -> bytes:
    committed = segment.committed
    unwritten = np.flatnonzero(segment.rows["kind"][:committed] == Kind.UNWRITTEN)
    end = int(unwritten[0]) if unwritten.size else committed
    segment.close_at(int(whole_rows(segment.rows_address, 0, end)))
    sealer = Sealer(segment, head, durable=durable)
    sealer.check_stored()
    if durable:
        segment.sync()
    return sealer.finish()
