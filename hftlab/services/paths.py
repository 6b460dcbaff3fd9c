"""Where sessions live: one folder each, under one root that ``HFTLAB_HOME`` moves.

``<root>/sessions/<mode>/<name>/`` holds what a session is and did: ``session.json`` (its specification, no secret),
``strategy.py``, ``journal/``, ``control.sock`` and ``trader.log``. The mode is part of the path, so that simulated,
paper and live trading never share a file.

A name is short and plain, because it becomes part of a socket's path, and the path of a Unix socket must fit 107 bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from hftlab.core.errors import ConfigError, NotFound

__all__ = [
    "HALT_FILE",
    "MODES",
    "SPEC_FILE",
    "SessionNotFound",
    "archive_session",
    "check_socket_path",
    "find_session",
    "home",
    "journal_holder",
    "list_sessions",
    "session_folder",
]

MODES = ("sim", "paper", "live", "backtest")
SPEC_FILE = "session.json"
HALT_FILE = "halt"
"""In a session's folder: the latched halt, holding its reason. A trader reads it before its first order."""
_SOCKET_PATH_MAX = 107
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


class SessionNotFound(NotFound):
    """No session has the name that was asked for; the message lists those there are."""


def home() -> Path:
    """Return the root of everything hftlab keeps: ``$HFTLAB_HOME``, or ``~/.hftlab``. It need not exist yet."""
    chosen = os.environ.get("HFTLAB_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".hftlab"


def session_folder(mode: str, name: str) -> Path:
    """Return the folder of session `name`, whether it exists or not.

    Raises
    ------
    ConfigError
        If `mode` is not one of `MODES`, or `name` is not 1 to 40 of letters, digits and ``_ . -``, beginning with a
        letter or digit.

    Examples
    --------
    >>> session_folder("sim", "maker-lab").parts[-3:]
    ('sessions', 'sim', 'maker-lab')
    """
    if mode not in MODES:
        raise ConfigError(f"mode: {mode!r}; expected one of {', '.join(MODES)}")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name: {name!r}; expected 1 to 40 letters, digits, '_', '.' or '-', beginning with a letter or digit"
        )
    return home() / "sessions" / mode / name


def check_socket_path(path: Path) -> str:
    """Return `path` as text if a Unix socket can be bound there.

    Raises
    ------
    ConfigError
        If it is longer than 107 bytes.
    """
    size = len(os.fsencode(path))
    if size > _SOCKET_PATH_MAX:
        raise ConfigError(
            f"the socket path {path} has {size} bytes; a Unix socket allows {_SOCKET_PATH_MAX}: set HFTLAB_HOME to a "
            "shorter folder"
        )
    return str(path)


def list_sessions() -> list[Path]:
    """Return the folders of all sessions that have a specification, newest first."""
    found = [spec for mode in MODES for spec in (home() / "sessions" / mode).glob(f"[!.]*/{SPEC_FILE}")]
    return [spec.parent for spec in sorted(found, key=lambda spec: spec.stat().st_mtime_ns, reverse=True)]


def find_session(name: str) -> Path:
    """Return the folder of session `name` in any mode, the newest where several modes have one.

    Raises
    ------
    SessionNotFound
        If there is none.
    """
    sessions = list_sessions()
    for folder in sessions:
        if folder.name == name:
            return folder
    known = ", ".join(sorted({folder.name for folder in sessions})) or "none yet"
    raise SessionNotFound(f"there is no session {name!r} under {home()}; sessions: {known}")


def journal_holder(folder: Path) -> int:
    """Return the process that holds the journal of the session in `folder`, 0 if none does.

    The kernel keeps the lock as long as the process exists, whether it answers or not. One that has taken it and not
    yet written its number is -1.
    """
    try:
        lock = os.open(folder / "journal" / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return int(os.pread(lock, 32, 0))
        return -1
    finally:
        os.close(lock)
    return 0


def archive_session(folder: Path) -> Path | None:
    """Move an ended session out of the way of a new one of its name; return where it lies now, None if there was none.

    Nothing is deleted: the journal of every session stays readable under ``<mode>/.archive``.
    """
    if not folder.exists():
        return None
    archive = folder.parent / ".archive"
    archive.mkdir(mode=0o700, exist_ok=True)
    stem = f"{folder.name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    target, n = archive / stem, 1
    while target.exists():
        n += 1
        target = archive / f"{stem}-{n}"
    folder.rename(target)
    return target
