"""Where the segments that are being written lie: in shared memory, with the disk's copy one flush behind.

Flushing a mapped file makes its pages read-only until they are written to again, and that first write is a fault inside
the file system: on the machine of this project's figures it made one tick in a hundred five times slower. So a journal
that is flushed is written into a file of a memory file system, and the helper thread copies what was committed to a
file on the disk beside the journal, and flushes that one. The journal's own name of the segment is a link to the live
file until the segment is sealed; then the disk's copy takes its place.

What that means: kill -9 loses nothing, as before; a power cut leaves the disk's copies, complete up to the last flush;
a process that cannot see this machine's memory (another container) reads the disk's copy instead. Where there is no
such file system, or it is full, segments are written on the disk directly.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

__all__ = ["live_folder", "sweep"]

_MEMORY = Path("/dev/shm")
_OWNER = "folder"  # a file in each live folder that names the journal it belongs to


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
