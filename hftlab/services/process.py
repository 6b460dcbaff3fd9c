"""How our processes start each other: a child in a process session of its own, its log, its line when it is ready.

A service prints one JSON line when it can be used, and writes whatever else it has to say to stderr, which is its log.
So a child that does not come up has always left its reason as the last line there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hftlab.core.errors import ConfigError
from hftlab.services.paths import home

__all__ = ["await_ready", "follow_parent", "keep_to_core", "last_words", "service", "spawn"]

_LOG_BYTES = 10_000_000
_PR_SET_PDEATHSIG = 1
_PARENT = "HFTLAB_PARENT"
"""The environment variable by which a child knows whose it is, even if that process has ended before it can ask."""


_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
"""Those this process was given; none where cores cannot be chosen."""


def keep_to_core(core: int) -> None:
    """Keep this thread, which runs an event loop, to one core; what it starts later goes where there is room.

    Raises
    ------
    ConfigError
        If this process may not run there.
    """
    if core not in _CORES:
        there = f"one of {', '.join(map(str, sorted(_CORES)))}" if _CORES else "None: this system lets nobody choose"
        raise ConfigError(f"core: {core}; expected {there}")
    os.sched_setaffinity(0, {core})
    elsewhere = ThreadPoolExecutor(initializer=os.sched_setaffinity, initargs=(0, _CORES))
    asyncio.get_running_loop().set_default_executor(elsewhere)


@contextlib.contextmanager
def _any_core() -> Iterator[None]:
    """Let a child inherit all cores, whatever this thread keeps to."""
    if not _CORES or (mine := os.sched_getaffinity(0)) == _CORES:
        yield
        return
    os.sched_setaffinity(0, _CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def service(name: str) -> list[str]:
    """Return the command that runs ``hftlab.services.<name>`` under this interpreter."""
    return [sys.executable, "-m", f"hftlab.services.{name}"]


def spawn(
    command: list[str], log: Path, *, answers: bool = False, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child in its own process session, standing in the root of `HFTLAB_HOME`.

    Parameters
    ----------
    command : list of str
    log : Path
        What it writes is appended here; a log above 10 MB is moved to ``.log.1`` first.
    answers : bool
        Keep its stdout readable, for `await_ready`, instead of writing it to the log.
    pass_fds : sequence of int
        Descriptors that the child has under the same numbers.
    """
    root = home()
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    environment = {**os.environ, "HFTLAB_HOME": str(root), _PARENT: str(os.getpid())}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # set, every start of a service would compile all its sources
    with log.open("ab") as file, _any_core():
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if answers else file,
            stderr=file,
            cwd=root,
            env=environment,
            start_new_session=True,
            pass_fds=pass_fds,
        )


def await_ready(process: subprocess.Popen[bytes], log: Path, what: str, timeout_s: float) -> dict[str, Any]:
    """Return the JSON line by which a service says that it is ready. Blocks; a child that is late is killed.

    Raises
    ------
    ConfigError
        If it ended, or was not ready in time; the message holds its last words, or names its log.
    """
    assert process.stdout is not None
    begun = time.monotonic()
    late = threading.Timer(timeout_s, process.kill)  # its death ends the reading: no second way out is needed
    late.daemon = True
    late.start()
    try:
        line = process.stdout.readline()
    finally:
        late.cancel()
    try:
        return dict(json.loads(line))
    except ValueError as error:
        if time.monotonic() - begun >= timeout_s:
            raise ConfigError(f"{what} was not ready within {timeout_s:g} s; see {log}") from error
        raise ConfigError(f"{what} did not start: {last_words(log) or 'it said nothing'} ({log})") from error


def last_words(log: Path) -> str:
    """Return the last line of a log that says something, "" if none does."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def follow_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends, whatever ended it; or end it if it has ended.

    A service imports for a second before it comes here. A parent that ended meanwhile is known by `spawn`'s word for
    it; a child that something else started takes whoever is its parent by now.

    Raises
    ------
    ConfigError
        Where the system has no such request (it is Linux's PR_SET_PDEATHSIG).
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            "--die-with-parent needs Linux (PR_SET_PDEATHSIG); leave it out and end the process by SIGTERM"
        )
    parent = int(os.environ.pop(_PARENT, 0)) or os.getppid()  # not for children of ours: their parent is another
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise ConfigError(f"--die-with-parent was refused: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it ended before the request took effect
        os.kill(os.getpid(), signal.SIGTERM)
