"""A segment: one preallocated, memory-mapped file of rows that describes itself.

**Model.** A journal is a folder of files ``000000.seg``, ``000001.seg``, ... Each is a header (a multiple of 4096
bytes) and room for `capacity` rows. Four words of the header change after the file appears, each exactly once or only
upwards: the base (first row's number; -1 = allocated ahead, not started), the checkpoint, the committed count, the
closed mark.

**Promise.** A row below the committed count never changes and is seen whole by every process that maps the file. The
count is stored with release after the rows, and loaded with acquire before them, so one store publishes an atom. It has
a cache line to itself: readers that poll it do not touch the line the writer works in.

**Order of a roll.** The next segment's base is stored first, then the mark ``closed`` in the old one. A reader that
sees ``closed`` and has taken every row therefore finds the next file started. No system call is involved: the file
was created, allocated, prefaulted and renamed ahead of time by the helper thread.

**Atoms.** The last head row of an atom carries ``Flag.COMMIT`` and is followed by `span` payload rows. Bytes 28-29 of
a payload row are payload, so the flag is looked for in head rows only. `whole_rows` walks back from the committed
count to the end of the last whole atom: one step in practice, the length of the torn atom at worst.

**Live and disk.** A segment that is flushed is a link to a file in memory while it is written; ``000000.disk`` beside
it is the copy that `Segment.sync` brings up to date and flushes, and that `Segment.settle` puts in the link's place.
The copy's pages go to the disk from where the live file has them (O_DIRECT), because nobody reads the copy meanwhile:
the system's cache would be one more copy of every row. Only whole pages of committed rows go so, which change no more;
the last page and the header go from a page of their own. See `hftlab.journal.live`.

**Worst case accepted.** A file truncated by somebody else under a mapping kills the process that touches it (SIGBUS);
hftlab never truncates. A copy-on-write file system may run out of space at writeback in spite of ``posix_fallocate``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from numba import types

from hftlab.core.errors import JournalError
from hftlab.core.rows import CONT, ROW, Flag, RowArray
from hftlab.journal.live import Memory, map_present, open_shared, reserve
from hftlab.kernels.jit import address_of, copy_bytes, kernel, load, load_acquire, store, store_release
from hftlab.kernels.system import FDATASYNC, LINUX, PWRITE, system_call

__all__ = [
    "COMMITTED_AT",
    "NO_SEQ",
    "ROW_BYTES",
    "SCHEMA",
    "Segment",
    "SegmentHeader",
    "allocate",
    "atom_end",
    "disk_path",
    "entry",
    "publish",
    "rows_hash",
    "segment_name",
    "segment_numbers",
    "started_segments",
    "sync_folder",
    "whole_rows",
    "write_atoms",
]

SCHEMA = 1
"""Version of the file layout and of the row; a file of another version is refused."""

ROW_BYTES = 64
"""Bytes of a row."""
PAGE = 4096
MAGIC = b"HFTLSEG\n"
NO_SEQ = -1
"""Base of a segment that is allocated and not started; number of no checkpoint."""
# magic, schema, header length, base, capacity, created ns, bytes of definitions and of a row, kernel hash, checkpoint
# number and hash, name of the segment before
_FIXED = struct.Struct("<8sIIqqqII32sq32s16s")
_COUNT = struct.Struct("<q")
BASE_AT, CHECKPOINT_AT = 16, 80
COMMITTED_AT, CLOSED_AT, DEFINITIONS_AT = 192, 256, 320

_COMMIT_BIT = 32 + (int(Flag.COMMIT).bit_length() - 1)  # of the word at byte 24: instrument u4, flags u2, code u2
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_DIRECT = getattr(os, "O_DIRECT", 0)

_I64 = types.int64


@kernel(_I64(_I64))
def _acquire(address: int) -> int:
    return load_acquire(address)  # type: ignore[no-any-return]  # an intrinsic


@kernel(types.void(_I64, _I64))
def _release(address: int, value: int) -> None:
    store_release(address, value)


@kernel(_I64(_I64, _I64, _I64))
def whole_rows(rows: int, first: int, end: int) -> int:
    """Return the largest index in ``(first, end]`` at which an atom ends, or `first` when none does.

    `rows` is the address of row 0; rows below `end` must be mapped.
    """
    i = end - 1
    while i >= first:
        word = load(rows + 64 * i)
        if (word >> 48) & 0xFF != CONT and (load(rows + 64 * i + 24) >> _COMMIT_BIT) & 1:
            after = i + 1 + ((word >> 56) & 0xFF)
            if after <= end:
                return after  # type: ignore[no-any-return]  # loads are intrinsics
        i -= 1
    return first


@kernel(_I64(_I64, _I64, _I64, _I64))
def atom_end(header: int, rows: int, first: int, limit: int) -> int:
    """Return the index after the last whole committed atom from `first`: `limit` rows at most, `first` if none.

    An atom longer than `limit` is returned whole.
    """
    committed = load_acquire(header + COMMITTED_AT)
    end = min(first + limit, committed)
    whole = whole_rows(rows, first, end)
    i = first
    while whole == first and i < committed and end < committed:
        word = load(rows + 64 * i)
        after = i + 1 + ((word >> 56) & 0xFF)
        is_end = (word >> 48) & 0xFF != CONT and (load(rows + 64 * i + 24) >> _COMMIT_BIT) & 1
        if is_end and after <= committed:
            whole = after
        i += 1
    return whole


@kernel(_I64(_I64, _I64), nogil=False)
def _publish(place: int, n: int) -> int:
    header, rows, first = load(place), load(place + 8), load(place + 16)
    end = first + n
    if whole_rows(rows, first, end) != end:
        return -1
    store_release(header + COMMITTED_AT, end)
    store(place + 16, end)
    return end  # type: ignore[no-any-return]  # loads are intrinsics


def entry(compiled: Any) -> Callable[..., int]:
    """Return a kernel of one signature without the dispatcher that looks for it: 70 ns a call instead of 310.

    Nobody checks the arguments then: they are plain ints, here.
    """
    (result,) = compiled.overloads.values()
    return result.entry_point  # type: ignore[no-any-return]  # numba ships no types


publish = entry(_publish)
"""Publish the next `n` rows by one release store and return the count of rows then, or -1 if no atom ends there.

``publish(place, n)``: `place` is the address of three int64: the segment's header, its rows, the rows published.
"""


@kernel(_I64(_I64, _I64, _I64, _I64, _I64, _I64, _I64, _I64))
def write_atoms(header: int, rows: int, first: int, room: int, source: int, n: int, seq: int, atom_rows: int) -> int:
    """Copy `n` rows from address `source` to row `first` on, as atoms, each published by one release store.

    An atom ends with the first row at which it has `atom_rows` rows, and with the last. Heads are numbered from `seq`;
    payload rows get bytes 0-5 and the span of their head row, the last head of an atom ``Flag.COMMIT``.

    Returns
    -------
    int
        Rows written and published: fewer than `n` when the next atom does not fit `room` rows. ``-1 - i`` if row `i`
        is a payload without a head, or its payload is not as many rows as its span says; the atoms before are written.
    """
    i = 0
    while i < n:
        begun = i
        last = i
        while i < n and i - begun < atom_rows:
            word = load(source + 64 * i)
            span = (word >> 56) & 0xFF
            if (word >> 48) & 0xFF == CONT or i + span >= n:
                return -1 - i
            if i + span >= room:
                return begun
            to = rows + 64 * (first + i)
            copy_bytes(to, source + 64 * i, 64)
            stamped = (word & -0x100000000) | ((seq + i) & 0xFFFFFFFF)
            store(to, stamped)
            last = i
            payload = (stamped & ~(0xFF << 48)) | (CONT << 48)
            for k in range(i + 1, i + 1 + span):
                if (load(source + 64 * k) >> 48) & 0xFF != CONT:
                    return -1 - i
                copy_bytes(rows + 64 * (first + k), source + 64 * k, 64)
                store(rows + 64 * (first + k), payload)
            i += 1 + span
        at = rows + 64 * (first + last) + 24
        store(at, load(at) | (1 << _COMMIT_BIT))
        store_release(header + COMMITTED_AT, first + i)
    return i


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself.

    Parameters
    ----------
    base_seq : int
        Full sequence number of its first row; -1 while it is only allocated.
    capacity : int
        Rows it has room for.
    created_ns : int
        When the file was allocated, ns UTC, by the file system's clock.
    kernel_hash : str
        Hash of the kernels that wrote it; empty if the definitions gave none.
    checkpoint : tuple of (int, str) or None
        Sequence number and hash (hex) of the checkpoint it continues from.
    previous : str
        Name of the segment before it; empty for the first.
    definitions : dict
        Instruments, sources, strategy versions: what the rows' numbers mean.
    length : int
        Bytes of the header.
    """

    base_seq: int
    capacity: int
    created_ns: int
    kernel_hash: str
    checkpoint: tuple[int, str] | None
    previous: str
    definitions: dict[str, Any]
    length: int

    def pack(self) -> bytes:
        """Return the header's bytes, zeros in the committed count and the closed mark."""
        packed = msgspec.msgpack.encode(self.definitions)
        seq, digest = checkpoint_bytes(self.checkpoint)
        kernel_hash = self.kernel_hash.encode()
        if len(kernel_hash) > 32:
            raise JournalError(f"kernel_hash is {len(kernel_hash)} bytes; expected at most 32")
        fixed = _FIXED.pack(
            MAGIC, SCHEMA, self.length, self.base_seq, self.capacity, self.created_ns, len(packed), ROW_BYTES,
            kernel_hash, seq, digest, self.previous.encode(),
        )  # fmt: skip
        return (fixed.ljust(DEFINITIONS_AT, b"\0") + packed).ljust(self.length, b"\0")

    @classmethod
    def parse(cls, name: str, raw: bytes, size: int) -> SegmentHeader:
        """Return the header in `raw`, the first bytes of file `name` of `size` bytes.

        Raises
        ------
        JournalError
            If it is not a segment, of another schema version, or not as long as it says.
        """
        if len(raw) < DEFINITIONS_AT or raw[:8] != MAGIC:
            raise JournalError(f"{name} is not a journal segment: expected it to begin with {MAGIC!r}, got {raw[:8]!r}")
        (_, schema, length, base, capacity, created, packed, row_bytes, kernel_hash, seq, digest, previous) = (
            _FIXED.unpack_from(raw)
        )
        if schema != SCHEMA or row_bytes != ROW_BYTES:
            raise JournalError(
                f"{name} was written with schema {schema} ({row_bytes}-byte rows); this hftlab reads schema {SCHEMA} "
                f"({ROW_BYTES}-byte rows): read it with the version that wrote it"
            )
        if capacity < 1 or length % PAGE or size != length + capacity * ROW_BYTES or DEFINITIONS_AT + packed > length:
            raise JournalError(
                f"{name} is {size} bytes; its header says {length} bytes of header and {capacity} rows of {ROW_BYTES}"
            )
        try:
            definitions = msgspec.msgpack.decode(raw[DEFINITIONS_AT : DEFINITIONS_AT + packed], type=dict[str, Any])
            names = kernel_hash.rstrip(b"\0").decode("ascii"), previous.rstrip(b"\0").decode("ascii")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise JournalError(f"{name} has definitions that cannot be read: {error}") from error
        checkpoint = None if seq == NO_SEQ else (seq, digest.hex())
        return cls(base, capacity, created, names[0], checkpoint, names[1], definitions, length)


def checkpoint_bytes(checkpoint: tuple[int, str] | None) -> tuple[int, bytes]:
    """Return a checkpoint as the header's number and 32 bytes; raises JournalError if the hash is not 64 hex digits."""
    if checkpoint is None:
        return NO_SEQ, bytes(32)
    seq, digest = checkpoint
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raw = b""
    if len(raw) != 32 or seq < 0:
        raise JournalError(f"checkpoint is {checkpoint!r}; expected (row number, 64 hex digits of a sha256)")
    return seq, raw


def header_length(definitions: dict[str, Any]) -> int:
    """Return the bytes of a header that holds `definitions`, a multiple of 4096."""
    try:
        packed = len(msgspec.msgpack.encode(definitions))
    except (TypeError, NotImplementedError) as error:
        raise JournalError(f"definitions cannot be stored: {error}; expected plain types") from error
    return -(-(DEFINITIONS_AT + packed) // PAGE) * PAGE


def segment_name(number: int) -> str:
    """Return the file name of segment `number`.

    Examples
    --------
    >>> segment_name(7)
    '000007.seg'
    """
    return f"{number:06d}.seg"


def disk_path(path: Path) -> Path:
    """Return where the disk's copy of the live segment `path` is."""
    return path.with_suffix(".disk")


def segment_numbers(folder: Path) -> list[int]:
    """Return the numbers of the segment files in `folder`, ascending, started or not.

    Raises
    ------
    JournalError
        If there is no such folder.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise JournalError(f"{folder} is not a journal: there is no such folder") from error
    return sorted(int(name[:-4]) for name in names if name.endswith(".seg") and name[:-4].isdigit())


class Segment:
    """One mapped segment file.

    Parameters
    ----------
    path : Path
        The file.
    writable : bool
        Map for the writer; readers map read-only.
    files : SegmentFiles, optional
        What is open already.

    Attributes
    ----------
    header : SegmentHeader
        As it was when the file was mapped.
    rows : RowArray, shape (capacity,)
        Every row, written or not; a view of the file.
    address, rows_address : int
        Where the header and row 0 are mapped.

    Raises
    ------
    JournalError
        If the file is gone, is no segment, or is of another version.
    """

    def __init__(self, path: Path, *, writable: bool = False, files: SegmentFiles | None = None) -> None:
        self.path = path
        self.number = int(path.stem)
        self._copied = 0
        self._files = files or (_open_writable(path) if writable else SegmentFiles(_map_readable(path)))
        self._page: mmap.mmap | None = None  # aligned room for one page, where the disk's copy is written directly
        self._page_address = 0
        mapping = self._files.mapping
        try:
            head = mapping[:DEFINITIONS_AT]
            length = _FIXED.unpack_from(head)[2] if len(head) == DEFINITIONS_AT else 0
            self.header = SegmentHeader.parse(path.name, mapping[:length] or head, len(mapping))
        except BaseException:
            self.release()
            raise
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(mapping, np.uint8)
        self.rows: RowArray = self.bytes[self.header.length :].view(ROW)
        self.address = address_of(self.bytes)
        self.rows_address = self.address + self.header.length

    @property
    def committed(self) -> int:
        """Rows published so far."""
        return int(_acquire(self.address + COMMITTED_AT))

    @property
    def closed(self) -> bool:
        """Whether the writer has left it for good."""
        return bool(_acquire(self.address + CLOSED_AT))

    @property
    def base_seq(self) -> int:
        """Full number of the first row; -1 while it is only allocated."""
        return int(_acquire(self.address + BASE_AT))

    def start(self, base_seq: int, checkpoint: tuple[int, str] | None) -> None:
        """Make an allocated segment the one being written: stores only, no system call."""
        seq, digest = checkpoint_bytes(checkpoint)
        self.bytes[CHECKPOINT_AT + 8 : CHECKPOINT_AT + 40] = np.frombuffer(digest, np.uint8)
        _release(self.address + CHECKPOINT_AT, seq)
        _release(self.address + BASE_AT, base_seq)

    def close_at(self, committed: int) -> None:
        """Say that no row will follow row `committed` - 1."""
        _release(self.address + COMMITTED_AT, committed)
        _release(self.address + CLOSED_AT, 1)

    @property
    def is_live(self) -> bool:
        """Whether this writable segment lies in memory, with a copy on the disk."""
        return self._files.memory is not None

    def sync(self) -> None:
        """Put what is written on the disk (the GIL is released meanwhile)."""
        if not self.is_live:
            _flush(self._files.disk_fd)
            return
        if self._page is None:
            self._page = mmap.mmap(-1, PAGE)
            self._page_address = address_of(np.frombuffer(self._page, np.uint8))
            _write_directly(self._files.disk_fd, len(self.bytes))
        done = _copy_out(
            self._files.disk_fd, self.address, self.header.length, len(self.bytes), self._page_address, self._copied
        )
        if done >= 0:
            self._copied = done
            return
        closed = self.closed  # before the count: a closed segment's count is final
        committed = self.committed
        start, end = (self.header.length + ROW_BYTES * n for n in (min(self._copied, committed), committed))
        self._copy(start // PAGE * PAGE, end)
        self._page[:] = self.bytes[:PAGE].data
        _COUNT.pack_into(self._page, COMMITTED_AT, committed)
        _COUNT.pack_into(self._page, CLOSED_AT, closed)
        _write_all(self._files.disk_fd, [memoryview(self._page)], 0)
        _flush(self._files.disk_fd)
        self._copied = committed

    def _copy(self, start: int, end: int) -> None:
        """Copy bytes ``[start, end)`` to the disk: whole pages as they lie, they do not change any more; the rest, on
        which the writer goes on, from a page of our own.
        """
        assert self._page is not None
        whole = end // PAGE * PAGE
        parts = [self.bytes[start:whole].data]
        if end > whole:
            self._page[: end - whole] = self.bytes[whole:end].data
            last = min(PAGE, len(self.bytes) - whole)
            self._page[end - whole : last] = bytes(last - (end - whole))
            parts.append(memoryview(self._page)[:last])
        _write_all(self._files.disk_fd, parts, start)

    def settle(self, *, keep: bool = False) -> Memory | None:
        """Put the disk's copy, which `sync` has completed, in the place of the live file; nothing if it lies there.

        Returns
        -------
        Memory or None
            With `keep`, the live file's memory for another segment; otherwise it is given back.
        """
        memory = self._files.memory
        if memory is None:
            return None
        os.replace(disk_path(self.path), self.path)
        sync_folder(self.path.parent)
        self._files.memory = None
        self.release()
        if keep and memory.keep():
            return memory
        memory.drop()
        return None

    def discard(self) -> None:
        """Remove a segment that was only allocated ahead."""
        if self._files.memory is not None:
            self._files.memory.path.unlink(missing_ok=True)
            disk_path(self.path).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Close the writer's descriptors; the mapping goes when its last view does."""
        files = self._files
        for fd in (files.disk_fd, files.memory.fd if files.memory is not None else -1):
            if fd >= 0:
                os.close(fd)
        files.disk_fd, files.memory = -1, None


@dataclass(slots=True)
class SegmentFiles:
    """What a segment has open.

    Parameters
    ----------
    mapping : mmap.mmap
        All of the file that is read and written.
    disk_fd : int
        The writer's, for what is flushed: the same file, or the copy of a live one; -1 for a reader.
    memory : Memory or None
        The writer's hold on a live file.
    """

    mapping: mmap.mmap
    disk_fd: int = -1
    memory: Memory | None = None


def _map_readable(path: Path) -> mmap.mmap:
    fd = _open_first((path, disk_path(path), path), os.O_RDONLY | _CLOEXEC)  # live; its copy; settled meanwhile
    try:
        return _map(path, fd, mmap.ACCESS_READ)
    finally:
        os.close(fd)  # the mapping keeps the file, and the lock on it


def _open_writable(path: Path) -> SegmentFiles:
    fd = _open_first((path,), os.O_RDWR | _CLOEXEC)
    try:
        mapping = _map(path, fd, mmap.ACCESS_WRITE)
        if not path.is_symlink():
            return SegmentFiles(mapping, fd)
        disk_fd = os.open(disk_path(path), os.O_RDWR | _CLOEXEC)
        return SegmentFiles(mapping, disk_fd, Memory(path.readlink(), fd, mapping))
    except BaseException:
        os.close(fd)
        raise


def _map(path: Path, fd: int, access: int) -> mmap.mmap:
    size = os.fstat(fd).st_size
    if size < DEFINITIONS_AT:
        SegmentHeader.parse(path.name, os.pread(fd, size, 0), size)  # says what is wrong
    return mmap.mmap(fd, size, access=access)


def _open_first(paths: tuple[Path, ...], flags: int) -> int:
    for path in paths:
        try:
            return open_shared(path, flags)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise JournalError(f"{path} cannot be opened: {error.strerror}") from error
    raise JournalError(f"{paths[0]} cannot be opened: {os.strerror(errno.ENOENT)}")


def _flush(fd: int) -> None:
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


@kernel(_I64(_I64, _I64, _I64, _I64, _I64, _I64))
def _copy_out(fd: int, segment: int, header: int, size: int, page: int, copied: int) -> int:
    """Do what `Segment.sync` does in one call that needs no interpreter, so that a host that polls never waits for its
    lock here; return how many rows are on the disk, or -1 if anything is unusual, which `sync` then does and tells.
    """
    if not LINUX:
        return -1
    closed = load_acquire(segment + CLOSED_AT)  # before the count: a closed segment's count is final
    committed = load_acquire(segment + COMMITTED_AT)
    at = (header + ROW_BYTES * min(copied, committed)) // PAGE * PAGE
    end = header + ROW_BYTES * committed
    whole = end // PAGE * PAGE
    while at < whole:
        n = system_call(PWRITE, fd, segment + at, whole - at, at, 0, 0)
        if n <= 0:
            return -1
        at += n
    if end > whole:
        last = min(PAGE, size - whole)
        copy_bytes(page, segment + whole, end - whole)
        for left in range(end - whole, last, 8):
            store(page + left, 0)
        if system_call(PWRITE, fd, page, last, whole, 0, 0) != last:
            return -1
    copy_bytes(page, segment, PAGE)
    store(page + COMMITTED_AT, committed)
    store(page + CLOSED_AT, closed)
    if system_call(PWRITE, fd, page, PAGE, 0, 0, 0) != PAGE or system_call(FDATASYNC, fd, 0, 0, 0, 0, 0) != 0:
        return -1
    return committed  # type: ignore[no-any-return]  # numba's intrinsics have no types


def _write_directly(fd: int, size: int) -> None:
    """Let the disk take a file's pages from where they lie, without a second copy of them in the system's cache.

    The system may refuse it, here or at the first write; then the copy goes through the cache.
    """
    if _DIRECT and size % PAGE == 0:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _DIRECT)


def _write_all(fd: int, parts: list[memoryview], at: int) -> None:
    while parts:
        try:
            n = os.pwritev(fd, parts, at)
        except OSError as error:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & _DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~_DIRECT)  # this disk wants larger pages, or none of it
            continue
        at += n
        while parts and n >= len(parts[0]):
            n -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][n:]


def started_segments(folder: Path) -> list[Segment]:
    """Return the segments of `folder` that hold the journal, mapped read-only, oldest first.

    A segment that was only allocated ahead is not part of the journal and is left out.
    """
    found = []
    for number in segment_numbers(folder):
        try:
            segment = Segment(folder / segment_name(number))
        except JournalError:
            if os.path.lexists(folder / segment_name(number)):
                raise
            continue  # rotated away between the listing and the opening
        if segment.base_seq != NO_SEQ:
            found.append(segment)
    return found


def allocate(
    folder: Path,
    number: int,
    definitions: dict[str, Any],
    capacity: int,
    *,
    durable: bool,
    live: Path | None = None,
    kept: Memory | None = None,
) -> Segment:
    """Create segment `number` with every block and page present, and give it its name when it is whole.

    Parameters
    ----------
    live : Path, optional
        A folder in memory: the segment is written there, and its copy on the disk by `Segment.sync`.
    kept : Memory, optional
        Of a segment that has settled: used again if no reader maps it, given up if one does.

    Raises
    ------
    OSError
        ENOSPC when the disk is full; nothing is left then. Where memory is full, the segment lies on the disk.
    """
    path, temporary = folder / segment_name(number), folder / f"{number:06d}.tmp"
    disk = disk_path(path)
    length = header_length(definitions)
    size = length + capacity * ROW_BYTES
    memory = kept
    fd = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _CLOEXEC, 0o600)
    try:
        reserve(fd, size)
        header = SegmentHeader(
            base_seq=NO_SEQ,
            capacity=capacity,
            created_ns=os.fstat(fd).st_mtime_ns,
            kernel_hash=str(definitions.get("kernel_hash", "")),
            checkpoint=None,  # written by `Segment.start`, like the base
            previous=segment_name(number - 1) if number else "",
            definitions=definitions,
            length=length,
        ).pack()
        os.pwrite(fd, header, 0)
        memory = _live_memory(live / path.name, size, kept) if live is not None else None
        mapping = map_present(fd, size) if memory is None else memory.mapping
        mapping[:length] = header
        if durable:
            os.fsync(fd)
        if memory is None:
            os.rename(disk, path)
        else:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(memory.path)
            os.rename(temporary, path)
        if durable:
            sync_folder(folder)
    except BaseException:
        os.close(fd)
        for left in (disk, temporary, path):
            left.unlink(missing_ok=True)
        if memory is not None:
            memory.drop()
        raise
    return Segment(path, files=SegmentFiles(mapping, fd, memory))


def _live_memory(path: Path, size: int, kept: Memory | None) -> Memory | None:
    if kept is not None:
        if kept.again(path, size):
            return kept
        kept.drop()
    return Memory.new(path, size)


def sync_folder(folder: Path) -> None:
    """Put the names of new files on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rows_hash(parts: list[RowArray]) -> str:
    """Return the sha256 (hex) of the rows' bytes, one part after the other."""
    digest = hashlib.sha256()
    for rows in parts:
        digest.update(np.ascontiguousarray(rows).view(np.uint8).data)
    return digest.hexdigest()
