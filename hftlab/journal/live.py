"""Where the segments that are being written lie: in shared memory, with the disk's copy one flush behind.

Flushing a mapped file makes its pages read-only until they are written to again, and that first write is a fault inside
the file system: on the machine of this project's figures it made one tick in a hundred five times slower. So a journal
that is flushed is written into a file of a memory file system, and the helper thread copies what was committed to a
file on the disk beside the journal, and flushes that one. The journal's own name of the segment is a link to the live
file until the segment is sealed; then the disk's copy takes its place.

What that means: kill -9 loses nothing, as before; a power cut leaves the disk's copies, complete up to the last flush;
a process that cannot see this machine's memory (another container) reads the disk's copy instead. Where there is no
such file system, or it is full, segments are written on the disk directly.

**Memory is used again.** Making a file of 16 MB in memory, mapping it and giving it back costs as much as everything
else the helper does with its rows: some 4000 pages, each zeroed, entered in a page table and taken out again. So the
memory of a segment that has settled becomes the next one's, zeroed in one go, still mapped; one such file is kept.

A reader may still hold a view of it, and a view never changes. Whoever maps a live file therefore holds a shared lock
on it (flock) for exactly as long: the lock belongs to the open file, which the mapping keeps. The writer takes the
memory again only under the exclusive lock, and otherwise leaves it to its readers and makes a new file. A reader that
opened the file and was overtaken before it had the lock sees that the segment's name leads elsewhere, and opens again.
Whoever maps a live file by other means than `hftlab.journal.format.Segment` must do likewise.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import shutil
import stat
from pathlib import Path

import numpy as np
from numba import types

from hftlab.kernels.jit import address_of, kernel
from hftlab.kernels.system import LINUX, MADVISE, system_call

__all__ = ["Memory", "live_folder", "map_present", "open_shared", "reserve", "sweep"]

_MEMORY = Path("/dev/shm")
_OWNER = "folder"  # a file in each live folder that names the journal it belongs to
_KEPT = "kept"  # the file whose memory waits for the next segment
_MADV_POPULATE_WRITE = 23
_ATTEMPTS = 100
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)


def _base() -> Path | None:
    """Return this user's folder in memory, private to them; None where there is none."""
    if not _MEMORY.is_dir() or not hasattr(os, "getuid"):
        return None
    base = _MEMORY / f"hftlab-{os.getuid()}"
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        found = base.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
    return base if private else None


def live_folder(journal: Path) -> Path | None:
    """Return the folder for the live segments of the journal in folder `journal`; None if they lie on the disk."""
    base = _base()
    if base is None:
        return None
    owner = str(journal.resolve())
    folder = base / hashlib.sha256(owner.encode()).hexdigest()[:16]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / _OWNER).write_text(owner)
        (folder / _KEPT).unlink(missing_ok=True)  # of a writer that was killed
    except OSError:
        return None
    return folder


def sweep() -> None:
    """Give back the memory of journals whose folder has been removed."""
    base = _base()
    for folder in base.iterdir() if base is not None else ():
        try:
            owner = (folder / _OWNER).read_text()
        except OSError:
            continue  # just being made, or just being removed
        if owner and not Path(owner).is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def reserve(fd: int, size: int) -> None:
    """Give the file `size` bytes of space that nobody else can take; raises OSError (ENOSPC)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    chunk = bytes(1 << 20)  # macOS has no posix_fallocate: written zeros hold the space (untested there)
    for at in range(0, size, len(chunk)):
        os.pwrite(fd, chunk[: size - at], at)


@kernel(types.int64(types.int64, types.int64))
def _populate(address: int, size: int) -> int:
    return system_call(MADVISE, address, size, _MADV_POPULATE_WRITE, 0, 0, 0)  # type: ignore[no-any-return]


def map_present(fd: int, size: int) -> mmap.mmap:
    """Map a file for writing, every page present: the writer's first touch of a page is no fault of up to 17 ms.

    By a system call of our own: ``mmap.madvise`` would hold the interpreter for all of it, 40 ms for 16 MB where memory
    is slow to come, and the host trades in another thread.
    """
    mapping = mmap.mmap(fd, size, access=mmap.ACCESS_WRITE)
    pages = np.frombuffer(mapping, np.uint8)
    if not LINUX or _populate(address_of(pages), size) != 0:  # a kernel before 5.14, or macOS (untested there)
        pages[:: mmap.PAGESIZE] = pages[:: mmap.PAGESIZE]
    return mapping


class Memory:
    """The writer's hold on a file in memory: named, mapped once, every page present.

    Attributes
    ----------
    path : Path
    fd : int
    mapping : mmap.mmap
        All of the file.
    """

    def __init__(self, path: Path, fd: int, mapping: mmap.mmap) -> None:
        self.path, self.fd, self.mapping = path, fd, mapping

    @classmethod
    def new(cls, path: Path, size: int) -> Memory | None:
        """Make the file `path` of zeros, `size` bytes; return None if memory has no room for it."""
        fd = -1
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o600)
            reserve(fd, size)
            return cls(path, fd, map_present(fd, size))
        except OSError:
            if fd >= 0:
                os.close(fd)
                path.unlink(missing_ok=True)
            return None

    def keep(self) -> bool:
        """Take the segment's name from the file, to keep it for another; return False if the file has gone."""
        kept = self.path.with_name(_KEPT)
        try:
            self.path.rename(kept)
        except OSError:  # with its folder, by `sweep`
            return False
        self.path = kept
        return True

    def again(self, path: Path, size: int) -> bool:
        """Make the kept file the file `path` of zeros; return False, nothing changed, if a reader still maps it."""
        if len(self.mapping) != size:
            return False
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a reader; or a file system without locks
            return False
        try:
            ctypes.memset(address_of(np.frombuffer(self.mapping, np.uint8)), 0, size)  # the GIL is free meanwhile
            self.path.rename(path)
        except OSError:
            return False
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.path = path
        return True

    def drop(self) -> None:
        """Give the file up; its memory goes when the last mapping does."""
        self.path.unlink(missing_ok=True)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def open_shared(path: Path, flags: int) -> int:
    """Open a segment for reading. While it is live its memory is not used again before the file and its mappings go.

    Raises
    ------
    OSError
        As `os.open`.
    """
    for _ in range(_ATTEMPTS):
        is_live = path.is_symlink()  # before it is opened: a segment settles once, and stays
        fd = os.open(path, flags)
        if not is_live or _is_held(fd, path):
            return fd
        os.close(fd)
    raise BlockingIOError(f"{path} changed its place {_ATTEMPTS} times")


def _is_held(fd: int, path: Path) -> bool:
    """Lock a live file against another use; return whether `path` still leads to it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:  # being cleared for another segment, or gone: this one has settled
        return False
