"""Captures: both recorders' formats, and what a broken line costs."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.venues.binance.capture import read_capture, read_snapshots


def test_a_broken_line_is_told_with_its_offset_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "day.gz"
    path.write_bytes(gzip.compress(b'100 {"a":1}\nnonsense\n200 {"b":2}\n300\n400 {"c":3}'))
    broken: list[tuple[int, str]] = []
    assert list(read_capture(path, lambda *b: broken.append(b))) == [
        (100, b'{"a":1}'),
        (200, b'{"b":2}'),
        (400, b'{"c":3}'),
    ]
    assert [offset for offset, _ in broken] == [12, 33]
    with pytest.raises(ProtocolError, match="byte 12"):
        list(read_capture(path))


def test_a_capture_cut_short_gives_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    whole = b"".join(b"%d {}\n" % n for n in range(20_000))
    path.write_bytes(gzip.compress(whole)[:-2000])
    broken: list[tuple[int, str]] = []
    messages = list(read_capture(path, lambda *b: broken.append(b)))
    assert messages == [(n, b"{}") for n in range(len(messages))] and len(broken) == 1
    assert "damaged" in broken[0][1]


def test_the_times_of_cryptofeed_are_exact_and_its_connection_lines_are_no_messages(tmp_path: Path) -> None:
    path = tmp_path / "X.ws.1.0"
    path.write_bytes(
        b"wss://stream.example/stream?streams=a@trade <-> 1633998511.159679\n1633998512.0633569: {}\n1633998513: []\n"
    )
    assert list(read_capture(path)) == [(1633998512063356900, b"{}"), (1633998513000000000, b"[]")]


def test_snapshots_are_told_by_the_symbol_in_their_address(tmp_path: Path) -> None:
    path = tmp_path / "X.http.0.0"
    path.write_bytes(
        b"https://api.example/api/v3/time -> 1: {}\n"
        b'https://api.example/api/v3/depth?symbol=NKNUSDT&limit=1000 -> 2.5: {"lastUpdateId":1}\n'
    )
    assert list(read_snapshots(path)) == [(2_500_000_000, "NKNUSDT", b'{"lastUpdateId":1}')]


def test_a_missing_capture_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        next(read_capture(tmp_path / "nowhere"))
