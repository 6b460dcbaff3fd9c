"""Sources: what a packet capture, a file with wrong lengths and a damaged journal give, and what they tell."""

from __future__ import annotations

import struct
import tracemalloc
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from hftlab.codecs.itch import message_bytes
from hftlab.codecs.moldudp import MoldUDPServer
from hftlab.convert.run import convert
from hftlab.convert.source import PcapSource
from hftlab.core.instruments import Instrument
from hftlab.core.rows import Flag, Kind, join_rows, new_rows
from hftlab.journal import JournalWriter, read_all

DAY = date(2024, 1, 2)
AT = 1_704_205_800 * 10**9

Packet = tuple[int, int, bytes]
"""Time in ns, number of the group it was sent to, UDP payload."""


def pcap(path: Path, packets: list[Packet]) -> Path:
    """Write packets as a capture of raw IPv4."""
    out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 101)]
    for ns, group, payload in packets:
        datagram = struct.pack(">HHHH", 1, 2, 8 + len(payload), 0) + payload
        addresses = b"\x0a\0\0\x01" + bytes([233, 54, 12, group])
        raw = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0) + addresses + datagram
        out.append(struct.pack("<IIII", ns // 10**9, ns % 10**9, len(raw), len(raw)) + raw)
    path.write_bytes(b"".join(out))
    return path


def stream(n: int, first_ref: int = 0, session: str = "S") -> list[bytes]:
    server = MoldUDPServer(session)
    messages = (message_bytes({"message_type": "D", "order_reference_number": first_ref + k}) for k in range(n))
    return [packet for message in messages for packet in server.publish([message])]


def read(path: Path) -> tuple[list[int], PcapSource]:
    source = PcapSource(path, DAY)
    return [int(ref) for ref in join_rows(block.copy() for block in source)["a"]], source


def test_a_lost_packet_is_a_broken_record_with_its_offset(tmp_path: Path) -> None:
    packets = [(AT + 1000 * k, 1, p) for k, p in enumerate(stream(20))]
    del packets[10]
    done = convert(pcap(tmp_path / "day.pcap", packets), tmp_path / "rows.parquet", date=DAY)
    assert (done.rows, done.notes["lost"], done.broken) == (19, 1, 1)
    assert "messages 11 to 11 are missing" in done.problems[0].reason


def test_a_packet_with_a_wrong_number_costs_only_itself_and_is_told_by_its_offset(tmp_path: Path) -> None:
    packets = [(AT + 60_000_000 * k, 1, p) for k, p in enumerate(stream(20))]
    bad = packets[7][2][:10] + (1 << 40).to_bytes(8, "big") + packets[7][2][18:]
    packets.insert(7, (AT + 60_000_000 * 7, 1, bad))
    refs, source = read(pcap(tmp_path / "day.pcap", packets))
    assert refs == list(range(20))
    size = 16 + 20 + 8 + len(bad)
    assert [(p.offset, source.broken) for p in source.problems] == [(24 + 7 * size, 1)]
    assert "1099511627776" in source.problems[0].reason


def test_two_groups_under_one_session_name_are_two_streams(tmp_path: Path) -> None:
    ours, theirs = stream(200), stream(200, 1000)
    packets = [(AT + 1000 * k, 1 + g, p[k]) for k in range(200) for g, p in enumerate((ours, theirs))]
    refs, source = read(pcap(tmp_path / "day.pcap", packets))
    assert [r for r in refs if r < 1000] == list(range(200))
    others = [r for r in refs if r >= 1000]
    assert others == list(range(1001, 1200)), "all but what came before the two could be told apart"
    assert len(source.problems) == 1 and "233.54.12.2:2" in source.problems[0].reason


def test_two_lines_of_one_stream_are_one_though_their_addresses_differ(tmp_path: Path) -> None:
    packets = [(AT + 1000 * k, group, p) for k, p in enumerate(stream(50)) for group in (1, 2)]
    del packets[40]
    refs, source = read(pcap(tmp_path / "day.pcap", packets))
    assert refs == list(range(50)) and source.problems == [] and source.notes["twice"] == 49


def test_foreign_datagrams_take_no_memory_and_hide_no_stream(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    foreign = [(AT + k, 9, chance.bytes(60)) for k in range(3_000)]
    heartbeats = [(AT + 3_000 + k, 9, b"%010d" % k + bytes(10)) for k in range(3_000)]
    packets = [(AT + 6_000 + k, 1, p) for k, p in enumerate(stream(20))]
    path = pcap(tmp_path / "day.pcap", foreign + heartbeats + packets)
    tracemalloc.start()
    refs, source = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refs == list(range(20)) and source.broken == 0 and source.notes == {"other datagrams": 3_000}
    assert peak < 64 << 20


def test_a_heartbeat_before_the_first_message_shows_what_is_missing(tmp_path: Path) -> None:
    packets = stream(6)
    heartbeat = packets[0][:18] + bytes(2)
    sent = [(AT + k, 1, p) for k, p in enumerate([heartbeat, *packets[3:]])]
    refs, source = read(pcap(tmp_path / "day.pcap", sent))
    assert refs == [3, 4, 5] and source.notes["lost"] == 3


def test_a_damaged_packet_of_a_known_stream_is_told(tmp_path: Path) -> None:
    packets = [(AT + k, 1, p) for k, p in enumerate(stream(5))]
    packets[4] = (AT + 4, 1, packets[4][2][:-3])
    refs, source = read(pcap(tmp_path / "day.pcap", packets))
    assert refs == [0, 1, 2, 3] and "no whole MoldUDP64 packet" in source.problems[0].reason


def _journal(folder: Path) -> None:
    """Write 9,000 rows in three segments of an instrument, in atoms of one row."""
    rows = new_rows(9_000)
    rows["kind"], rows["px"] = Kind.TRADE, np.arange(9_000)
    rows["flags"] = int(Flag.COMMIT) | int(Flag.LAST)
    definitions = {"instruments": [Instrument(0, "test", "ABC", Decimal("0.01"), Decimal(1)).to_dict()]}
    with JournalWriter(folder, definitions, segment_rows=3_000, fsync_ms=None) as writer:
        for at in range(0, 9_000, 1_000):
            writer.append(rows[at : at + 1_000])


@pytest.mark.parametrize("at", [100, 4096 + 64 * 2_000 + 40])
def test_a_damaged_segment_costs_a_journal_no_other_and_is_told_by_its_offset(at: int, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    _journal(folder)
    whole = convert(folder, tmp_path / "whole.parquet")
    assert (whole.rows, whole.broken) == (9_000, 0)
    segment = folder / "000001.seg"
    raw = bytearray(segment.read_bytes())
    raw[at] ^= 1
    segment.write_bytes(raw)
    done = convert(folder, tmp_path / "rows.parquet")
    assert done.broken == 1 and "000001.seg" in done.problems[0].reason
    kept = 0 if at < 4096 else 1024
    assert done.rows == 6_000 + kept and done.problems[0].offset == (0 if at < 4096 else 4096 + 64 * 1024)
    frame = pl.read_parquet(tmp_path / "rows.parquet")
    numbers = [*range(3_000 + kept), *range(6_000, 9_000)]
    assert frame["seq"].to_list() == frame["px_ticks"].to_list() == numbers, "rows keep their numbers over the gap"


def test_a_journal_whose_first_segment_is_damaged_still_names_its_instruments(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    _journal(folder)
    (folder / "000000.seg").write_bytes(bytes(4096))
    done = convert(folder, tmp_path / "rows.parquet")
    assert (done.rows, done.broken, done.instruments) == (6_000, 1, ["ABC"])
    assert pl.read_parquet(tmp_path / "rows.parquet")["seq"].to_list() == list(range(3_000, 9_000))


def _wide(path: Path) -> Path:
    """Write a Parquet file of five groups of lines; return the journal it came from."""
    folder = path.with_name("wide")
    rows = new_rows(1_500_000)
    rows["kind"], rows["flags"] = Kind.TRADE, int(Flag.COMMIT) | int(Flag.LAST)
    rows["px"] = np.random.default_rng(1).integers(0, 1 << 50, len(rows))
    with JournalWriter(folder, {"instruments": []}, fsync_ms=None) as writer:
        for at in range(0, len(rows), 50_000):
            writer.append(rows[at : at + 50_000])
    convert(folder, path)
    return folder


def test_a_damaged_page_of_a_parquet_file_costs_its_group_and_is_told_by_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    folder = _wide(path)
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups >= 4
        groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
        px = groups[1].column(file.schema_arrow.get_field_index("px_ticks"))
        before, lost = groups[0].num_rows, groups[1].num_rows
        begin = groups[1].column(0).data_page_offset
        at = px.data_page_offset + px.total_compressed_size // 2
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    done = convert(path, tmp_path / "back")
    assert done.broken == 1 and done.problems[0].offset == begin and "group 1" in done.problems[0].reason
    ours, whole = read_all(tmp_path / "back")["px"], read_all(folder)["px"]
    kept = len(ours) - (len(whole) - before - lost)
    assert before <= kept < before + lost, "what was read of the group before its damage is kept"
    assert np.array_equal(ours, np.concatenate([whole[:kept], whole[before + lost :]]))
