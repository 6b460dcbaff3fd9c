"""Recorded Coinbase frames: read a capture file as (receive time, message bytes).

The format is cryptofeed's: ``epoch_seconds: payload`` a line. A line that names the connection (``wss://... <->
time``), a request that was sent (``wss://... <- time: payload``) or a REST answer (``https://... -> time: payload``)
carries an address first, and the recorder's settings stand in a ``configuration:`` line. A line that fits none is
handed to `on_broken` with its byte offset, and reading goes on.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from hftlab.core.errors import ConfigError, ProtocolError

__all__ = ["read_capture", "read_products"]

_FRAME = re.compile(rb"([0-9]{1,10}\.?[0-9]*): (\S.*)")
_SENT = re.compile(rb"wss?://\S+ (?:<-> [0-9.]+|<- [0-9.]+: .*)")
_REQUEST = re.compile(rb"(https?://\S+) -> ([0-9]{1,10}\.?[0-9]*): (\S.*)")
_CONFIGURATION = b"configuration: "

Broken = Callable[[int, str], None]


def _raise(offset: int, reason: str) -> None:
    raise ProtocolError(f"capture line at byte {offset}: {reason}")


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise ConfigError(f"path={path} is not a file; expected a recorded capture")
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]  # GzipFile reads like one


def _lines(path: Path, on_broken: Broken) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset in the uncompressed text, line); a damaged end of the file is one broken line."""
    offset = 0
    with _open(path) as file:
        while True:
            try:
                line = file.readline()
            except (EOFError, OSError) as error:  # gzip cut short, or its checksum is wrong
                on_broken(offset, f"the file is damaged from here on: {error}")
                return
            if not line:
                return
            if line.strip():
                yield offset, line.strip()
            offset += len(line)


def read_capture(path: Path, on_broken: Broken = _raise) -> Iterator[tuple[int, bytes]]:
    """Yield (receive time in ns UTC, message bytes) of every message received on a socket.

    Parameters
    ----------
    path : Path
        A file in cryptofeed's format, gzipped or not.
    on_broken : callable(offset, reason)
        Told of every line that cannot be read, with its byte offset in the uncompressed text; by default raises.

    Raises
    ------
    ConfigError
        If `path` is not a file.
    ProtocolError
        On a broken line, unless `on_broken` takes it.
    """
    for offset, line in _lines(path, on_broken):
        if match := _FRAME.fullmatch(line):
            yield int(Decimal(match[1].decode()) * 1_000_000_000), match[2]
        elif not (_SENT.fullmatch(line) or _REQUEST.fullmatch(line) or line.startswith(_CONFIGURATION)):
            on_broken(offset, f"expected 'time: payload', got {line[:60]!r}")


def read_products(path: Path, on_broken: Broken = _raise) -> bytes:
    """Return the recorded answer to ``GET /products``, for `messages.instruments_from_products`.

    Raises
    ------
    ConfigError
        If `path` is not a file, or holds no such answer.
    ProtocolError
        On a damaged file, unless `on_broken` takes it.
    """
    for _, line in _lines(path, on_broken):
        match = _REQUEST.fullmatch(line)
        if match is not None and urlsplit(match[1].decode("ascii", "replace")).path.endswith("/products"):
            return match[3]
    raise ConfigError(f"path={path} holds no answer to GET /products")
