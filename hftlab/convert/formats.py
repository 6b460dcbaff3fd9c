"""Which format a recording has: recognised by what is in it, never by its name alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date as Date
from pathlib import Path
from typing import Any

from hftlab.codecs.itch import MESSAGES
from hftlab.convert.capture import CaptureSource, is_capture_line
from hftlab.convert.parquet import ParquetSource
from hftlab.convert.source import (
    DbnSource,
    ItchSource,
    JournalSource,
    LobsterSource,
    PcapSource,
    Source,
    opened,
    read_definitions,
)
from hftlab.core.errors import ConfigError, ProtocolError

__all__ = ["SOURCE_FORMATS", "open_source", "recognise"]

SOURCE_FORMATS = {
    "journal": "a journal's folder, or a session's",
    "parquet": "a Parquet file that hftlab wrote",
    "capture": "lines of time and message: hftlab's, hftbacktest's and cryptofeed's (Binance, Coinbase, Kraken)",
    "itch": "length-framed NASDAQ TotalView-ITCH 5.0",
    "pcap": "libpcap or pcapng with ITCH over MoldUDP64",
    "lobster": "LOBSTER's message CSV",
    "dbn": "Databento DBN (mbo, mbp-1, mbp-10, tbbo, bbo, trades)",
}
"""The formats that can be read."""

_HEAD = 1 << 16
_PCAP = (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x0a\x0d\x0d\x0a")
_LOBSTER = re.compile(rb"\d+(\.\d+)?,[1-7],\d+,\d+,-?\d+,-?1")
_BOOK = re.compile(rb"-?\d+(,-?\d+){3,}")
_ITCH_SIZES = {ord(kind): message.size for kind, message in MESSAGES.items()}


def _is_itch(head: bytes) -> bool:
    """Return whether `head` begins with framed messages, each of its type's length: three, or all there are."""
    at = seen = 0
    while at + 3 <= len(head) and seen < 3:
        size = int.from_bytes(head[at : at + 2], "big")
        if _ITCH_SIZES.get(head[at + 2]) != size:
            return False
        at += 2 + size
        seen += 1
    return seen > 0


def recognise(path: Path) -> str:
    """Return the format of a file or folder.

    Raises
    ------
    ConfigError
        If there is nothing at `path`, or nothing in it is known: the message says what was seen, and what is known.
    """
    if path.is_dir():
        if (path / "000000.seg").exists() or any(path.glob("*.seg")):
            return "journal"
        if (path / "journal").is_dir():
            return "journal"
        raise ConfigError(f"{path} is a folder without journal segments. {_known()}")
    if not path.is_file():
        raise ConfigError(_absent(path))
    head = _head(path)
    line = head.split(b"\n", 1)[0].strip()
    tests: tuple[tuple[str, bool], ...] = (
        ("journal", head.startswith(b"HFTLSEG\n")),
        ("parquet", head.startswith(b"PAR1")),
        ("dbn", head.startswith(b"DBN")),
        ("pcap", head.startswith(_PCAP)),
        ("lobster", _LOBSTER.fullmatch(line) is not None),
        ("capture", is_capture_line(line)),
        ("itch", _is_itch(head)),
    )
    for name, fits in tests:
        if fits:
            return name
    if _BOOK.fullmatch(line):
        raise ConfigError(f"{path} looks like LOBSTER's book file; give the message file that belongs to it")
    raise ConfigError(f"{path} is of no known format: it begins with {head[:24]!r}. {_known()}")


def _absent(path: Path) -> str:
    return f"there is no file or folder {path}. {_known()}"


def _known() -> str:
    return "Known are: " + "; ".join(f"{name} ({what})" for name, what in SOURCE_FORMATS.items())


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked if it is gzip or Zstandard; fewer if it is cut."""
    plain, _ = opened(path, lambda problem: None)
    with plain:
        return plain.read(_HEAD)


def open_source(
    path: Path | str,
    format: str | None = None,
    *,
    definitions: Path | str | None = None,
    date: Date | None = None,
    venue: str | None = None,
) -> Source:
    """Return a recording, ready to be iterated for blocks of rows.

    Parameters
    ----------
    path : Path or str
        A file, or a journal's folder.
    format : str, optional
        One of `SOURCE_FORMATS`; by default what the content shows.
    definitions : Path or str, optional
        What says which ticks and lots there are: a DBN definition file for DBN, the venue's list of instruments for
        captures. Without it the recording is read once more, first.
    date : datetime.date, optional
        The session's date in New York, where the file's name does not tell it (ITCH, pcap, LOBSTER).
    venue : str, optional
        Of a capture whose messages do not show it.

    Raises
    ------
    ConfigError
        If the format is unknown or not recognised, or what a format needs is missing.

    Examples
    --------
    >>> open_source("no/such/file")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    hftlab.core.errors.ConfigError: there is no file or folder no/such/file. Known are: journal (a journal's folder, ...
    """
    place = Path(path)
    if format is not None and format not in SOURCE_FORMATS:
        raise ConfigError(f"format={format!r} is not known. {_known()}")
    if not place.exists():
        raise ConfigError(_absent(place))
    named = format or recognise(place)
    told = None if definitions is None else Path(definitions)
    makers: dict[str, Callable[[], Any]] = {
        "journal": lambda: JournalSource(_journal(place)),
        "parquet": lambda: ParquetSource(place),
        "capture": lambda: CaptureSource(place, told, venue),
        "itch": lambda: ItchSource(place, date),
        "pcap": lambda: PcapSource(place, date),
        "lobster": lambda: LobsterSource(place, date),
        "dbn": lambda: DbnSource(place, read_definitions(told) if told else ()),
    }
    try:
        source: Source = makers[named]()
    except PermissionError as error:
        raise ConfigError(f"{error.filename or place} may not be read: permission denied") from error
    except ProtocolError as error:
        raise ConfigError(f"{place} cannot be read as {named}: {error}") from error
    return source


def _journal(path: Path) -> Path:
    """Return the journal's folder that a folder, or one of its segments, means."""
    if path.is_file():
        return path.parent
    return path / "journal" if (path / "journal").is_dir() and not any(path.glob("*.seg")) else path
