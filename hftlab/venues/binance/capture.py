"""Recorded Binance frames: read a capture file as (receive time, message bytes).

Two recorders' formats are known. hftbacktest's is gzip with ``local_ns payload`` a line, book snapshots inline.
cryptofeed's is text with ``epoch_seconds: payload``; a line that names the connection or the request carries an address
first (``wss://... <-> time``, ``https://... -> time: payload``), and such a request line holds a REST answer.

A line that fits neither is handed to `on_broken` with its byte offset, and reading goes on: one bad line of a day's
recording must not cost the day.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, urlsplit

from hftlab.core.errors import ConfigError, ProtocolError

__all__ = ["is_snapshot", "read_capture", "read_snapshots"]

_HFTBACKTEST = re.compile(rb"([0-9]{1,19}) (\S.*)")
_CRYPTOFEED = re.compile(rb"([0-9]{1,10}\.?[0-9]*): (\S.*)")
_CONNECTION = re.compile(rb"wss?://\S+ <-> [0-9.]+")
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


def _seconds_ns(text: bytes) -> int:
    return int(Decimal(text.decode()) * 1_000_000_000)


def read_capture(path: Path, on_broken: Broken = _raise) -> Iterator[tuple[int, bytes]]:
    """Yield (receive time in ns UTC, message bytes) of every message in a capture.

    Parameters
    ----------
    path : Path
        A file in hftbacktest's or cryptofeed's format, gzipped or not.
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
        if match := _HFTBACKTEST.fullmatch(line):
            yield int(match[1]), match[2]
        elif match := _CRYPTOFEED.fullmatch(line):
            yield _seconds_ns(match[1]), match[2]
        elif match := _REQUEST.fullmatch(line):
            yield _seconds_ns(match[2]), match[3]
        elif not _CONNECTION.fullmatch(line) and not line.startswith(_CONFIGURATION):
            on_broken(offset, f"expected 'time payload', got {line[:60]!r}")


def read_snapshots(path: Path, on_broken: Broken = _raise) -> Iterator[tuple[int, str, bytes]]:
    """Yield (receive time in ns UTC, symbol, payload) of the depth answers in a cryptofeed ``.http`` capture.

    Raises
    ------
    ConfigError
        If `path` is not a file.
    ProtocolError
        On a broken line, unless `on_broken` takes it.
    """
    for offset, line in _lines(path, on_broken):
        match = _REQUEST.fullmatch(line)
        if match is None:
            if not line.startswith(_CONFIGURATION):
                on_broken(offset, f"expected 'address -> time: payload', got {line[:60]!r}")
            continue
        address = urlsplit(match[1].decode())
        symbols = parse_qs(address.query).get("symbol", [])
        if address.path.endswith("/depth") and symbols:
            yield _seconds_ns(match[2]), symbols[0], match[3]


def is_snapshot(frame: bytes) -> bool:
    """Return whether a captured message is a REST book snapshot, which names no symbol itself.

    Examples
    --------
    >>> is_snapshot(b'{"lastUpdateId":160,"bids":[],"asks":[]}')
    True
    """
    return frame.startswith(b'{"lastUpdateId"')
