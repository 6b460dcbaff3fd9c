"""Ask a running process one question over its Unix socket: one JSON line there, one JSON line back.

A trader answers at ``control.sock`` in its session's folder, the supervisor at ``supervisor.sock`` in the root. The
file permissions (0600) are the authentication: whoever may open the socket is the user. Every request opens its own
connection, so a client that dies leaves nothing behind.

A request that gets no answer in time raises `TimedOut` and says nothing about whether it took effect; every request of
the protocol may be repeated.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from hftlab.core.errors import ConfigError, HftlabError, ProtocolError, Refused
from hftlab.services.paths import check_socket_path

__all__ = ["CONTROL_SOCKET", "MAX_LINE", "NotRunning", "TimedOut", "ask", "request"]

CONTROL_SOCKET = "control.sock"
MAX_LINE = 1 << 20
"""Longest request or reply, bytes."""


class NotRunning(ConfigError):
    """No process answers for the session; the message says how to start it."""


class TimedOut(HftlabError, TimeoutError):
    """What was waited for did not come; the message says what was seen instead."""


def ask(path: Path, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Return the reply to `message` from the process that listens at `path`.

    Parameters
    ----------
    path : Path
        A Unix socket.
    message : dict
        Plain types; key ``do`` names the request.
    timeout_s : float
        For connecting and for each wait within the answer, seconds.

    Raises
    ------
    NotRunning
        If nobody listens there, or the process ended before it answered.
    TimedOut
        If the answer did not come in time, or so many wait for one there that no more are let in.
    Refused
        If the process answered ``ok: false``; the message is its sentence.
    ProtocolError
        If the answer is not one JSON object.
    """
    text = check_socket_path(path)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            _connect(connection, text, timeout_s)
            connection.sendall(json.dumps(message).encode() + b"\n")
            line = _read_line(connection)
    except (TimeoutError, BlockingIOError) as error:
        raise TimedOut(f"no answer to {message.get('do')!r} from {path} within {timeout_s:g} s") from error
    except OSError as error:
        raise NotRunning(f"nobody answers at {path} ({os.strerror(error.errno or 0)})") from error
    if not line:
        raise NotRunning(f"the process at {path} ended before it answered {message.get('do')!r}")
    try:
        reply = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"the answer from {path} is not JSON: {line[:80]!r}") from error
    if not isinstance(reply, dict):
        raise ProtocolError(f"the answer from {path} is {type(reply).__name__}; expected an object")
    if not reply.get("ok"):
        raise Refused(str(message.get("do")), str(reply.get("error", "no reason was given")))
    return reply


def _connect(connection: socket.socket, path: str, timeout_s: float) -> None:
    """Connect, and try again while the listener's queue is full: a Unix socket says so at once, whatever the timeout.

    A full queue is a process that is there and does not answer, so it must not be taken for one that has gone.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return connection.connect(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _read_line(connection: socket.socket) -> bytes:
    """Return what came up to the first newline, or to the end of the connection."""
    received = bytearray()
    while not received.endswith(b"\n") and len(received) < MAX_LINE:
        chunk = connection.recv(65536)
        if not chunk:
            break
        received += chunk
    return bytes(received)


def request(folder: Path, do: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
    """Ask the trader of the session in `folder`: status, halt, resume, cancel_all or stop.

    Parameters
    ----------
    folder : Path
        The session's folder.
    do : str
        The request.
    timeout_s : float
        Seconds to wait for the answer.
    **fields
        What else the request carries, such as ``reason`` of a halt.

    Returns
    -------
    dict
        The trader's reply, ``ok`` true.

    Raises
    ------
    NotRunning, TimedOut, Refused, ProtocolError
        As `ask`.
    """
    try:
        return ask(folder / CONTROL_SOCKET, {"do": do, **fields}, timeout_s)
    except NotRunning as error:
        raise NotRunning(
            f"session {folder.name} is not running, so it cannot {do}; `hftlab sessions` tells whether it has ended or "
            f"is being restarted, {folder / 'trader.log'} why"
        ) from error
