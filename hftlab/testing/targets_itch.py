"""Fuzz targets of the equities feed: ITCH messages, MoldUDP64 packets, SoupBinTCP streams and captures.

Seeds are built in code from the published layouts. Each feed asserts what its decoder promises.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from datetime import date

import numpy as np

from hftlab.codecs.itch import MESSAGES, ItchDecoder, frame, message_bytes, message_fields
from hftlab.codecs.moldudp import Data, Lost, MoldUDPClient, MoldUDPServer, Request
from hftlab.codecs.pcap import PcapFile
from hftlab.codecs.soupbin import Closed, Sequenced, SoupBinClient, SoupBinServer
from hftlab.core.errors import ProtocolError
from hftlab.core.rows import CONT, Flag, Kind
from hftlab.kernels.jit import address_of

__all__ = ["TARGETS", "pcap_bytes", "udp_frame"]

Feed = Callable[[bytes], None]

_KINDS = {int(Kind[name]) for name in ("ADD", "REDUCE", "DELETE", "EXECUTE", "REPLACE", "TRADE", "STATUS")}


def udp_frame(payload: bytes, vlans: int = 1) -> bytes:
    """Return an Ethernet frame with `vlans` tags that carries `payload` by UDP over IPv4."""
    udp = struct.pack(">HHHH", 40_000, 26_400, 8 + len(payload), 0) + payload
    hosts = bytes([10, 0, 0, 1, 233, 54, 12, 111])
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0) + hosts
    return bytes(12) + bytes.fromhex("8100008d") * vlans + b"\x08\x00" + ip + udp


def pcap_bytes(frames: list[bytes], start_s: int = 1_692_711_000) -> bytes:
    """Return a libpcap file of Ethernet frames, a microsecond apart, times in ns."""
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 0x40000, 1)
    return head + b"".join(
        struct.pack("<IIII", start_s, 1_000 * k, len(frame), len(frame)) + frame for k, frame in enumerate(frames)
    )


def _samples() -> list[bytes]:
    return [
        message_bytes({"message_type": kind, "stock_locate": 7, "timestamp": 34_200 * 10**9})
        if "buy_sell_indicator" not in {field.name for field in message.fields}
        else message_bytes({"message_type": kind, "stock_locate": 7, "buy_sell_indicator": "B", "shares": 100})
        for kind, message in MESSAGES.items()
    ]


def _itch() -> tuple[Feed, list[bytes]]:
    decoder = ItchDecoder(date(2023, 8, 22), capacity=64)

    def feed(data: bytes) -> None:
        at, rows_seen = 0, 0
        before = decoder.messages + sum(decoder.skipped.values())
        while True:
            rows, end = decoder.decode(data, at)
            heads = rows[rows["kind"] != CONT]
            assert len(rows) <= 64 and at <= end <= len(data)
            assert set(heads["kind"].tolist()) <= _KINDS
            assert len(rows) == len(heads) + int(heads["span"].sum())
            assert (heads["flags"] & Flag.LAST).all() and (heads["qty"] >= 0).all()
            rows_seen += len(heads)
            if end == at:
                break
            at = end
        frames = decoder.messages + sum(decoder.skipped.values()) - before
        assert frames >= rows_seen and (not frames) == (at == 0)
        left = data[at:]
        assert len(left) < 2 or len(left) < 2 + int.from_bytes(left[:2], "big"), "a whole frame was left"
        decoder.problems.clear()

    samples = _samples()
    return feed, [*(frame([one]) for one in samples), frame(samples)]


def _itch_file() -> tuple[Feed, list[bytes]]:
    """Return a feed for what files are read by, which finds its step again behind a wrong length."""
    day = date(2023, 8, 22)

    def feed(data: bytes) -> None:
        decoder, at = ItchDecoder(day, capacity=64), 0
        memory = np.frombuffer(data + bytes(1), np.uint8)
        while True:
            used, n = decoder.decode_in_step(address_of(memory) + at, len(data) - at, True)
            assert 0 <= used <= len(data) - at and 0 <= n <= 64
            assert set(decoder.rows["kind"][:n].tolist()) <= _KINDS | {CONT}
            at += used
            if not used and not n:
                break
        assert len(data) - at < 64, "what is left is one cut message"
        offsets = [problem.offset for problem in decoder.problems]
        assert offsets == sorted(offsets) and all(0 <= offset < len(data) for offset in offsets)

    return feed, _itch()[1]


def _message() -> tuple[Feed, list[bytes]]:
    def feed(data: bytes) -> None:
        try:
            values = message_fields(data)
        except ProtocolError:
            return
        assert len(data) == MESSAGES[str(values["message_type"])].size

    return feed, _samples()


def _moldudp() -> tuple[Feed, list[bytes]]:
    server = MoldUDPServer("S1")
    packets = [packet for k in range(6) for packet in server.publish([b"%d" % k, b"second"])]
    heartbeat, end = packets[0][:10] + (13).to_bytes(8, "big") + b"\0\0", server.end()

    def feed(data: bytes) -> None:
        client = MoldUDPClient(next_sequence=1, session="S1", max_held=2, max_requests=1)
        due = 1
        for now_ns, packet in enumerate((packets[1], data, packets[0], data, packets[3])):
            events = client.receive(packet, now_ns * 10**9)
            for event in events + client.poll(now_ns * 10**9 + 500_000_000):
                if isinstance(event, Data | Lost):
                    assert event.sequence == due, "numbers follow one another"
                    due += event.count
                elif isinstance(event, Request):
                    assert event.sequence == due and len(event.packet) == 20
        assert client.next_sequence == due
        server.answer(data)

    return feed, [*packets, heartbeat, end, packets[0][:20]]


def _soupbin() -> tuple[Feed, list[bytes]]:
    def parts() -> tuple[SoupBinServer, SoupBinClient]:
        server = SoupBinServer("S1", {"user": "word"})
        for k in range(3):
            server.append(b"%d" % k)
        return server, SoupBinClient("user", "word")

    server, client = parts()
    client.connect(0)
    login = client.to_send(0)
    there = server.connection(0)
    there.receive(login, 0)
    stream = there.to_send(0)
    client.receive(stream, 0)
    client.send(b"up")
    upward = login + client.to_send(0) + b"\0\1R\0\1O"

    def feed(data: bytes) -> None:
        server, client = parts()
        client.connect(0)
        there = server.connection(0)
        for end in (client, there):
            half = len(data) // 2
            events = end.receive(data[:half], 1) + end.receive(data[half:], 2) + end.poll(10**10)
            numbers = [event.sequence for event in events if isinstance(event, Sequenced)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            closed = [k for k, event in enumerate(events) if isinstance(event, Closed)]
            assert closed in ([], [len(events) - 1]), "nothing comes after the end"
            assert end.is_open == (not closed)

    return feed, [stream, upward, stream + b"\0\1H\0\1Z", b"\0\2JA", b"\0\3+hi"]


def _pcap() -> tuple[Feed, list[bytes]]:
    frames = [udp_frame(b"payload %d" % k, k % 3) for k in range(4)]
    plain = pcap_bytes(frames)
    section = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    interface = struct.pack("<IIHHI", 1, 32, 1, 0, 0) + struct.pack("<HHB3xHH", 9, 1, 9, 0, 0) + struct.pack("<I", 32)
    blocks = b""
    for k, one in enumerate(frames):
        body = struct.pack("<5I", 0, 0, k, len(one), len(one)) + one.ljust(-(-len(one) // 4) * 4, b"\0")
        blocks += struct.pack("<II", 6, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

    def feed(data: bytes) -> None:
        file = PcapFile(io.BytesIO(data))
        try:
            found = list(file)
        except ProtocolError:
            return
        offsets = [one.offset for one in found]
        assert offsets == sorted(set(offsets)) and all(offset < len(data) for offset in offsets)
        assert len(found) <= len(data) // 28

    return feed, [plain, section + interface + blocks]


TARGETS = {
    "itch": _itch, "itch-file": _itch_file, "itch-message": _message, "moldudp": _moldudp, "pcap": _pcap,
    "soupbin": _soupbin,
}  # fmt: skip
