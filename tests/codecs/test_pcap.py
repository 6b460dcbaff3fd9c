"""Captures: libpcap and pcapng, both byte orders and units of time, VLAN tags, damage that is told and passed by."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from hftlab.codecs.pcap import Datagram, PcapFile
from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.core.rows import NAT
from hftlab.testing.fuzz import fuzz
from hftlab.testing.targets_itch import TARGETS, pcap_bytes, udp_frame

START = 1_692_711_000


def read(data: bytes) -> tuple[list[Datagram], PcapFile]:
    file = PcapFile(io.BytesIO(data))
    return list(file), file


def block(order: str, kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack(f"{order}II", kind, size) + body + struct.pack(f"{order}I", size)


def pcapng(order: str, frames: list[bytes], options: bytes = b"", unit_times: range = range(100)) -> bytes:
    out = block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
    out += block(order, 1, struct.pack(f"{order}HHI", 1, 0, 0) + options)
    for k, frame in enumerate(frames):
        time = unit_times[k]
        head = struct.pack(f"{order}5I", 0, time >> 32, time & 0xFFFFFFFF, len(frame), len(frame))
        out += block(order, 6, head + frame + bytes(-len(frame) % 4))
    return out


FRAMES = [udp_frame(b"message %d" % k * (k + 1), vlans=k % 3) for k in range(6)]
PAYLOADS = [b"message %d" % k * (k + 1) for k in range(6)]


def test_datagrams_come_with_time_addresses_and_offset() -> None:
    found, file = read(pcap_bytes(FRAMES[:2]))
    assert found[1] == Datagram(
        START * 10**9 + 1000, PAYLOADS[1], ("10.0.0.1", 40_000), ("233.54.12.111", 26_400), 24 + 16 + len(FRAMES[0])
    )
    assert (file.problems, file.skipped, file.position) == ([], 0, len(pcap_bytes(FRAMES[:2])))


@pytest.mark.parametrize("vlans", [0, 1, 2])
def test_vlan_tags_are_stepped_over(vlans: int) -> None:
    assert read(pcap_bytes([udp_frame(b"hello", vlans)]))[0][0].payload == b"hello"


@pytest.mark.parametrize("vlan", [b"", b"\x81\x00\x00\x07"])
@pytest.mark.parametrize("link", [113, 276])
def test_packets_of_the_linux_any_device_are_read(link: int, vlan: bytes) -> None:
    """SLL: type, ARPHRD, address length, address (8), EtherType. SLL2: EtherType, then 18 bytes."""
    ip = udp_frame(b"hello", vlans=0)[14:]
    first, tagged = (vlan[:2], vlan[2:] + b"\x08\x00") if vlan else (b"\x08\x00", b"")
    head = bytes(14) + first if link == 113 else first + bytes(18)
    frame = head + tagged + ip
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, link)
    found, file = read(out + struct.pack("<IIII", START, 0, len(frame), len(frame)) + frame)
    assert [d.payload for d in found] == [b"hello"] and file.skipped == 0


@pytest.mark.parametrize(
    ("order", "magic", "ns"), [("<", 0xA1B2C3D4, 1000), (">", 0xA1B2C3D4, 1000), (">", 0xA1B23C4D, 1)]
)
def test_byte_order_and_unit_are_read_from_the_first_bytes(order: str, magic: int, ns: int) -> None:
    frame = FRAMES[0]
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65_535, 1)
    (found,), _ = read(head + struct.pack(f"{order}IIII", START, 123_456, len(frame), len(frame)) + frame)
    assert found.ts_ns == START * 10**9 + 123_456 * ns and found.payload == PAYLOADS[0]


def test_gzip_is_inflated_and_a_cut_one_is_told(tmp_path: Path) -> None:
    packed = gzip.compress(pcap_bytes(FRAMES))
    (tmp_path / "a.pcap.gz").write_bytes(packed)
    file = PcapFile(tmp_path / "a.pcap.gz")
    assert [one.payload for one in file] == PAYLOADS and file.size == len(packed)
    assert [one.payload for one in file] == PAYLOADS, "it can be read twice"
    (tmp_path / "b.pcap.gz").write_bytes(packed[:-20])
    cut = PcapFile(tmp_path / "b.pcap.gz")
    kept = [one.payload for one in cut]
    assert 3 < len(kept) < 6 and kept == PAYLOADS[: len(kept)]
    assert "the gzip archive is cut at its byte" in cut.problems[-1].reason


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_gives_the_same_datagrams(order: str) -> None:
    found, file = read(pcapng(order, FRAMES))
    assert [one.payload for one in found] == PAYLOADS and [one.ts_ns for one in found] == [1000 * k for k in range(6)]
    assert file.problems == []


@pytest.mark.parametrize(
    ("resolution", "units", "ns"),
    [(9, START * 10**9, START * 10**9), (6, 5, 5_000), (3, 5, 5_000_000), (12, 5_999, 5), (138, 512, 5 * 10**8)],
)
def test_pcapng_times_follow_the_interfaces_resolution(resolution: int, units: int, ns: int) -> None:
    options = struct.pack("<HHB3x", 9, 1, resolution) + struct.pack("<HHq", 14, 8, 2) + struct.pack("<HH", 0, 0)
    (found,), _ = read(pcapng("<", FRAMES[:1], options, range(units, units + 1)))
    assert found.ts_ns == ns + 2 * 10**9


def test_a_simple_packet_block_has_no_time() -> None:
    data = pcapng("<", []) + block("<", 3, struct.pack("<I", len(FRAMES[0])) + FRAMES[0] + bytes(-len(FRAMES[0]) % 4))
    (found,), _ = read(data)
    assert (found.ts_ns, found.payload) == (NAT, PAYLOADS[0])


def offsets_of(frames: list[bytes]) -> list[int]:
    at, found = 24, []
    for frame in frames:
        found.append(at)
        at += 16 + len(frame)
    return found


@pytest.mark.parametrize("field", [0, 4, 8, 12])
def test_a_damaged_header_is_told_by_offset_and_the_rest_goes_on(field: int) -> None:
    data, offsets = bytearray(pcap_bytes(FRAMES)), offsets_of(FRAMES)
    data[offsets[2] + field : offsets[2] + field + 4] = b"\xff\xff\xff\x7f"
    found, file = read(bytes(data))
    assert [one.payload for one in found] == PAYLOADS[:2] + PAYLOADS[3:]
    assert [problem.offset for problem in file.problems] == [offsets[2]]


def test_days_may_lie_between_records() -> None:
    merged = pcap_bytes(FRAMES[:3]) + pcap_bytes(FRAMES[3:], START + 3 * 86_400)[24:]
    found, file = read(merged)
    assert [one.payload for one in found] == PAYLOADS and file.problems == []


@pytest.mark.parametrize("change", [-7, 9, 60, 200])
def test_a_length_that_is_a_little_wrong_costs_no_other_record(change: int) -> None:
    data, offsets = bytearray(pcap_bytes(FRAMES)), offsets_of(FRAMES)
    wrong = len(FRAMES[2]) + change
    data[offsets[2] + 8 : offsets[2] + 16] = struct.pack("<II", wrong, wrong)
    found, file = read(bytes(data))
    kept = [one.payload for one in found]
    assert [payload for payload in PAYLOADS if payload not in kept] in ([], [PAYLOADS[2]])
    assert change > 0 or file.problems


def test_damaged_pcapng_blocks_are_told_and_passed() -> None:
    data = bytearray(pcapng("<", FRAMES))
    sizes = [32 + -(-len(frame) // 4) * 4 for frame in FRAMES]
    at = len(data) - sum(sizes[2:])
    data[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    found, file = read(bytes(data))
    assert [one.payload for one in found] == PAYLOADS[:2] + PAYLOADS[3:]
    assert [problem.offset for problem in file.problems] == [at]


@pytest.mark.parametrize("make", [pcap_bytes, lambda frames: pcapng("<", frames)], ids=["libpcap", "pcapng"])
def test_a_cut_file_keeps_what_is_whole_and_tells_where_it_is_cut(make: Callable[[list[bytes]], bytes]) -> None:
    whole = make(FRAMES)
    last = len(make(FRAMES[:-1]))
    for cut in range(last + 1, len(whole)):
        found, file = read(whole[:cut])
        assert [one.payload for one in found] == PAYLOADS[:-1], cut
        assert [(p.offset, "cut" in p.reason) for p in file.problems] == [(last, True)], cut


def test_other_protocols_are_counted_and_fragments_and_cut_packets_are_told() -> None:
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    tcp = bytearray(udp_frame(b"hello", 0))
    tcp[14 + 9] = 6
    fragment = bytearray(udp_frame(b"hello", 0))
    fragment[14 + 6 : 14 + 8] = b"\x20\x00"
    short = udp_frame(b"hello", 0)
    data = pcap_bytes([arp, bytes(tcp), bytes(fragment)])
    data += struct.pack("<IIII", START, 9, len(short) - 2, len(short)) + short[:-2]
    found, file = read(data)
    assert found == [] and file.skipped == 2
    assert [problem.reason for problem in file.problems] == [
        "a fragment of a datagram; fragments are not put together",
        f"the capture cut this packet: {len(short) - 2} of {len(short)} bytes",
    ]


def test_padding_behind_a_short_packet_is_not_payload() -> None:
    assert read(pcap_bytes([udp_frame(b"hi", 0) + bytes(16)]))[0][0].payload == b"hi"


def test_what_is_no_capture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="neither libpcap nor pcapng"):
        read(b"PK\x03\x04 and so on")
    with pytest.raises(ConfigError, match="is not a file"):
        PcapFile(tmp_path / "none.pcap")


def test_a_hundred_thousand_mutated_captures_are_survived() -> None:
    feed, seeds = TARGETS["pcap"]()
    fuzz(feed, seeds, 100_000)
