"""Packed recordings: gzip and Zstandard read like plain ones, and a cut archive keeps everything before the cut."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hftlab.codecs import Problem, inflated
from hftlab.codecs.itch import frame, message_bytes
from hftlab.codecs.moldudp import MoldUDPServer
from hftlab.convert.formats import open_source, recognise
from hftlab.convert.run import convert
from hftlab.core.rows import RowArray, join_rows
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_convert import TARGETS, dbn_mbo, dbn_metadata

DAY = date(2024, 1, 2)
AT = 1_704_205_800


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": lambda data: gzip.compress(data, 6), "zst": zstd}


def _itch() -> bytes:
    chance = np.random.default_rng(1)
    refs = chance.integers(1, 1 << 40, 30_000).tolist()
    return frame([message_bytes({"message_type": "D", "stock_locate": 5, "order_reference_number": r}) for r in refs])


def _dbn() -> bytes:
    refs = np.random.default_rng(2).integers(1, 1 << 40, 10_000).tolist()
    return dbn_metadata(3, 0, {5602: "ESM4"}) + b"".join(dbn_mbo(b"A", b"B", r, 5214 * 10**9, 1) for r in refs)


def _pcap() -> bytes:
    server, out = MoldUDPServer("S"), struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 101)
    for n, ref in enumerate(np.random.default_rng(3).integers(1, 1 << 40, 5_000).tolist()):
        for payload in server.publish([message_bytes({"message_type": "D", "order_reference_number": ref})]):
            udp = struct.pack(">HHHH", 1, 2, 8 + len(payload), 0) + payload
            raw = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + bytes(8) + udp
            out += struct.pack("<IIII", AT, n, len(raw), len(raw)) + raw
    return out


def _capture() -> bytes:
    refs = np.random.default_rng(4).integers(1, 1 << 40, 5_000).tolist()
    line = '{} {{"e":"trade","E":1700000000000,"s":"BTCUSDT","t":{},"p":"61000.{:02d}","q":"0.5","T":1,"m":true}}'
    return b"\n".join(line.format(AT * 10**9 + n, r, r % 100).encode() for n, r in enumerate(refs)) + b"\n"


def _lobster() -> bytes:
    refs = np.random.default_rng(5).integers(1, 1 << 40, 5_000).tolist()
    return b"".join(b"34200.%09d,1,%d,10,5859400,1\n" % (n, r) for n, r in enumerate(refs))


KINDS: dict[str, Callable[[], bytes]] = {
    "itch": _itch, "dbn": _dbn, "pcap": _pcap, "capture": _capture, "lobster": _lobster,
}  # fmt: skip


def _rows(path: Path) -> tuple[RowArray, list[Problem]]:
    source = open_source(path, date=DAY if recognise(path) != "dbn" else None)
    rows = join_rows(block.copy() for block in source)
    return rows, source.problems


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_recording_gives_the_rows_of_the_plain_one(kind: str, packer: str, tmp_path: Path) -> None:
    data = KINDS[kind]()
    plain, packed = tmp_path / "a_message_1", tmp_path / "b_message_1"
    plain.write_bytes(data)
    packed.write_bytes(PACKERS[packer](data))
    assert recognise(packed) == recognise(plain) == kind
    expected, problems = _rows(plain)
    assert problems == [] and len(expected) >= 5_000
    rows, problems = _rows(packed)
    assert problems == [] and rows.tobytes() == expected.tobytes()


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_archive_keeps_everything_before_the_cut_and_tells_where_it_is(
    kind: str, packer: str, tmp_path: Path
) -> None:
    data = KINDS[kind]()
    packed = PACKERS[packer](data)
    cut = len(packed) * 3 // 4
    path = tmp_path / "a_message_1"
    path.write_bytes(data)
    whole, _ = _rows(path)
    path.write_bytes(packed[:cut])
    rows, problems = _rows(path)
    told = [p for p in problems if f"is cut at its byte {cut};" in p.reason]
    assert len(told) == 1 and 0 < told[0].offset < len(data), problems
    assert len(rows) > len(whole) / 3
    n = len(rows) - 1  # the last row's atom is closed, whether or not more stood behind it
    assert rows[:n].tobytes() == whole[:n].tobytes()


@pytest.mark.parametrize("packer", PACKERS)
def test_archives_behind_one_another_are_one(packer: str) -> None:
    told: list[Problem] = []
    data = PACKERS[packer](b"one") + PACKERS[packer](b"two")
    assert b"".join(inflated(io.BytesIO(data), 2, told.append)) == b"onetwo" and told == []


@pytest.mark.parametrize("packer", PACKERS)
def test_whatever_follows_an_archive_costs_none_of_it(packer: str) -> None:
    told: list[Problem] = []
    data = np.random.default_rng(6).integers(0, 20, 3_000_000).astype(np.uint8).tobytes()
    packed = PACKERS[packer](data)
    assert b"".join(inflated(io.BytesIO(packed + b"garbage" * 9), 1 << 20, told.append)) == data
    assert len(told) == 1 and told[0].offset == len(data) and "broken" in told[0].reason


def test_a_zstandard_file_broken_in_the_middle_gives_what_stands_before() -> None:
    told: list[Problem] = []
    data = np.random.default_rng(7).integers(0, 20, 2_000_000).astype(np.uint8).tobytes()
    packed = bytearray(zstd(data))
    packed[len(packed) // 2 : len(packed) // 2 + 4000] = bytes(4000)
    out = b"".join(inflated(io.BytesIO(bytes(packed)), 1 << 20, told.append))
    assert len(told) == 1 and "broken" in told[0].reason
    sound = 1_000_000 - (1 << 17)  # a block of Zstandard is 128 KB
    assert len(out) >= sound and out[:sound] == data[:sound]


def test_a_small_cut_gzip_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "day"
    path.write_bytes(gzip.compress(_itch()[:2000])[:-8])
    assert recognise(path) == "itch"


def test_a_cut_book_file_of_lobster_is_told_and_the_messages_go_on(shared_data: Path, tmp_path: Path) -> None:
    (messages,) = (shared_data / "l3").glob("AAPL*_message_10.csv")
    book = messages.with_name(messages.name.replace("message", "orderbook"))
    (tmp_path / f"{messages.name}.gz").write_bytes(gzip.compress(messages.read_bytes()))
    packed = gzip.compress(book.read_bytes())
    (tmp_path / f"{book.name}.gz").write_bytes(packed[: len(packed) // 2])
    done = convert(tmp_path / f"{messages.name}.gz", tmp_path / "rows.parquet")
    assert done.rows > 999, "the first level of the book was seeded, and every message is there"
    assert len(done.problems) == 1 and "orderbook" in done.problems[0].reason
    assert f"is cut at its byte {len(packed) // 2};" in done.problems[0].reason


def test_a_hundred_thousand_mutated_archives_never_raise() -> None:
    feed, seeds = TARGETS["packed"]()
    fuzz(feed, seeds, 100_000)
