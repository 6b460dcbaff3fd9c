"""Captured packets: the UDP datagrams of a libpcap or pcapng file, with the times of their capture.

**Model.** A capture is a chain of records, each telling its own length; nothing marks where one begins. So one damaged
length would lose everything behind it. A record is therefore believed only when its header is plausible: a length
within the capture's limit, a fraction of a second below one second, a time within a day of a neighbour's (pcapng: the
length repeated at the end of the block). At a header that is not, the reader tells the offset and looks, byte by byte
from just behind the last good header, for a plausible record that is followed by another or by the end of the file.

**Promise.** Every undamaged UDP/IPv4 record comes out once, in order, whatever stands between; nothing that is read
raises, except a file that is no capture at all. Memory is bounded by `MAX_RECORD`. Worst case accepted: the search
costs some microseconds a byte; two damaged headers in a row take the record between them along.

What is not a UDP datagram over IPv4 is counted, not told. A datagram that the capture cut, or a fragment, is told:
its payload is not whole. Checksums are not looked at: rewritten captures, the published ones among them, hold none.

References
----------
libpcap: pcap-savefile(5). pcapng: draft-ietf-opsawg-pcapng. VLAN tags: IEEE 802.1Q, 802.1ad. Linux cooked captures:
LINKTYPE_LINUX_SLL and LINKTYPE_LINUX_SLL2 of tcpdump.org.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from hftlab.codecs import Problem, inflated, is_packed
from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.core.rows import NAT

__all__ = ["Datagram", "MAX_RECORD", "PcapFile"]

MAX_RECORD = 1 << 20
"""No record is believed to be longer, bytes; captures cut packets at 262,144."""

_MAX_PROBLEMS = 10_000
_CHUNK = 1 << 18
_DAY_S = 86_400
_LONGEST_PACKET = 1 << 18  # bytes before the capture cut it
_ETHERNET = 1
_RAW = (101, 228)  # no link layer; IPv4 alone
_COOKED = {113: (14, 16), 276: (0, 20)}  # Linux "any" device, SLL and SLL2: where the EtherType and IP stand
_INTERFACE_BLOCK, _SIMPLE_BLOCK, _PACKET_BLOCK = 1, 3, 6
_Record = tuple[int, int, int, bytes, int]  # offset, time in ns, link type, what was captured, length on the wire
_VLAN_TAGS = (0x8100, 0x88A8, 0x9100)
_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1),
}  # fmt: skip
"""First four bytes of a libpcap file: byte order, and ns in the unit of its fractions."""
_SECTION = b"\x0a\x0d\x0d\x0a"


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram.

    Parameters
    ----------
    ts_ns : int
        When it was captured, ns since 1970 UTC; ``NAT`` where the capture does not say.
    payload : bytes
        What UDP carried.
    source, destination : (str, int)
        Address and port.
    offset : int
        Where its record begins in the file.
    """

    ts_ns: int
    payload: bytes
    source: tuple[str, int]
    destination: tuple[str, int]
    offset: int


class _Window:
    """A stream seen from a position on, with as much ahead of it in memory as is asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""
        self._at = 0
        self.offset = 0

    def peek(self, n: int, ahead: int = 0) -> bytes:
        """Return `n` bytes from `ahead` bytes further on, fewer at the end of the file."""
        need = ahead + n
        while len(self._held) - self._at < need and (more := next(self._pieces, b"")):
            self._held, self._at = self._held[self._at :] + more, 0
        return self._held[self._at + ahead : self._at + need]

    def skip(self, n: int) -> None:
        """Step `n` bytes on, which have been peeked at."""
        self._at += n
        self.offset += n


class _Libpcap:
    """The records of a libpcap file; see the module for when one is believed."""

    def __init__(self, window: _Window, tell: Callable[[int, str], None]) -> None:
        self._window, self._tell = window, tell
        order, self._unit_ns = _MAGIC[window.peek(4)]
        self._header = struct.Struct(f"{order}IIII")
        snap, link = struct.unpack(f"{order}II", window.peek(24)[16:].ljust(8, b"\0"))
        self._longest = min(MAX_RECORD, max(snap, 0xFFFF))
        self._link = link & 0x0FFFFFFF

    def __iter__(self) -> Iterator[_Record]:
        window, last_s = self._window, None
        if len(window.peek(24)) < 24:
            self._tell(0, "the file's header is cut")
            return
        window.skip(24)
        while window.peek(1):
            offset = window.offset
            if not self._is_plausible(0, last_s) and not self._is_followed(0, None):
                is_cut = len(window.peek(16)) < 16
                self._tell(offset, "the last record is cut" if is_cut else "the record's header is not plausible")
                if not self._find(last_s):
                    return
                continue
            last_s, fraction, captured, original = self._header.unpack(window.peek(16))
            data = window.peek(captured, 16)
            if len(data) < captured:
                self._tell(offset, f"the last record is cut: {len(data)} of {captured} bytes")
                return
            step = self._step(16 + captured, last_s)
            ts_ns = last_s * 10**9 + fraction * self._unit_ns
            yield offset, ts_ns, self._link, data[: step - 16], original
            window.skip(step)

    def _is_plausible(self, ahead: int, near_s: int | None) -> bool:
        raw = self._window.peek(16, ahead)
        if len(raw) < 16:
            return False
        seconds, fraction, captured, original = self._header.unpack(raw)
        return bool(
            captured <= min(self._longest, original)
            and original <= _LONGEST_PACKET
            and fraction * self._unit_ns < 10**9
            and (near_s is None or abs(seconds - near_s) <= _DAY_S)
        )

    def _is_followed(self, ahead: int, near_s: int | None) -> bool:
        """Whether a plausible record stands `ahead`, followed by another or by the end of the file."""
        if not self._is_plausible(ahead, near_s):
            return False
        seconds, _, captured, _ = self._header.unpack(self._window.peek(16, ahead))
        after = ahead + 16 + captured
        is_last = not self._window.peek(1, after) and len(self._window.peek(captured, ahead + 16)) == captured
        return is_last or self._is_plausible(after, seconds)

    def _find(self, near_s: int | None) -> bool:
        """Step to the next record that can be believed; return whether there is one."""
        while len(self._window.peek(17)) == 17:
            self._window.skip(1)
            if self._is_followed(0, near_s):
                return True
        return False

    def _step(self, step: int, seconds: int) -> int:
        """Return where the next record begins: nearer than `step` if this record's length is what is wrong."""
        if not self._window.peek(1, step) or self._is_plausible(step, seconds) or self._is_followed(step, None):
            return step
        return next((nearer for nearer in range(16, step) if self._is_followed(nearer, seconds)), step)


@dataclass(slots=True)
class _Interface:
    link: int
    numerator: int = 1000  # ns a unit of time, as a fraction
    denominator: int = 1
    offset_s: int = 0


class _Pcapng:
    """The packets of a pcapng file; see the module for when a block is believed."""

    def __init__(self, window: _Window, tell: Callable[[int, str], None]) -> None:
        self._window, self._tell = window, tell
        self._order = "<"
        self._interfaces: list[_Interface] = []

    def __iter__(self) -> Iterator[_Record]:
        window = self._window
        while window.peek(1):
            offset, head = window.offset, window.peek(12)
            if head[:4] == _SECTION and len(head) == 12:
                self._order = "<" if head[8:] == b"\x4d\x3c\x2b\x1a" else ">"
                self._interfaces = []
            size = self._size(0)
            if not size:
                self._tell(offset, "the last block is cut" if self._is_cut() else "the block's length is not plausible")
                window.skip(1)
                if not self._find():
                    return
                continue
            yield from self._packet(offset, self._number(head[:4]), window.peek(size - 12, 8))
            window.skip(size)

    def _number(self, raw: bytes) -> int:
        return int.from_bytes(raw, "little" if self._order == "<" else "big")

    def _packet(self, offset: int, kind: int, body: bytes) -> Iterator[_Record]:
        """Yield the packet of a block, if it is a packet's; take over what an interface's says."""
        if kind == _INTERFACE_BLOCK and len(body) >= 8:
            self._interfaces.append(_interface(body, self._order))
        elif kind == _PACKET_BLOCK and len(body) >= 20:
            number, high, low, captured, original = struct.unpack(f"{self._order}5I", body[:20])
            if number < len(self._interfaces) and captured <= len(body) - 20:
                at = self._interfaces[number]
                ts_ns = (high << 32 | low) * at.numerator // at.denominator + at.offset_s * 10**9
                yield offset, ts_ns, at.link, body[20 : 20 + captured], original
            else:
                self._tell(offset, f"a packet of interface {number}, {captured} bytes, does not fit its block")
        elif kind == _SIMPLE_BLOCK and len(body) >= 4 and self._interfaces:
            original = self._number(body[:4])
            yield offset, NAT, self._interfaces[0].link, body[4 : 4 + original], original

    def _size(self, ahead: int) -> int:
        """Return the length of the block `ahead`, 0 if none can be believed to stand there."""
        head = self._window.peek(8, ahead)
        size = self._number(head[4:])
        if len(head) < 8 or size < 12 or size % 4 or size > MAX_RECORD:
            return 0
        return size if self._window.peek(4, ahead + size - 4) == head[4:] else 0

    def _is_cut(self) -> bool:
        """Whether the file ends within a block whose length may be right."""
        head = self._window.peek(8)
        size = self._number(head[4:])
        return len(head) < 8 or (12 <= size <= MAX_RECORD and len(self._window.peek(size)) < size)

    def _find(self) -> bool:
        """Step to the next packet that can be believed; return whether there is one."""
        mark = struct.pack(f"{self._order}I", _PACKET_BLOCK)
        while len(seen := self._window.peek(_CHUNK)) >= 12:
            at = seen.find(mark)
            while at >= 0:
                if self._size(at) >= 32:
                    self._window.skip(at)
                    return True
                at = seen.find(mark, at + 1)
            self._window.skip(len(seen) - 3)
        return False


def _interface(body: bytes, order: str) -> _Interface:
    """Return an interface by the body of its description block, with its unit and offset of time."""
    found = _Interface(int(struct.unpack(f"{order}H", body[:2])[0]))
    at = 8
    while at + 4 <= len(body):
        code, size = struct.unpack(f"{order}HH", body[at : at + 4])
        value = body[at + 4 : at + 4 + size]
        if code == 0:
            break
        if code == 9 and size == 1:
            power = value[0] & 0x7F
            base = 2**power if value[0] & 0x80 else 10**power
            found.numerator, found.denominator = 10**9, base
        elif code == 14 and len(value) == 8:
            found.offset_s = int(struct.unpack(f"{order}q", value)[0])
        at += 4 + size + -size % 4
    return found


class PcapFile:
    """The UDP datagrams of a capture file, plain, gzip or Zstandard, libpcap or pcapng: iterate it for `Datagram`.

    Parameters
    ----------
    source : Path, str or binary file
        The file, or one that is open and can seek; its format is recognised by content.

    Attributes
    ----------
    problems : list of Problem
        Damaged, cut and fragmented records, by their offset; the first 10,000.
    skipped : int
        Records that hold no UDP over IPv4.
    position, size : int
        Bytes of the (inflated) capture read so far, and bytes of the file.

    Raises
    ------
    ConfigError
        If there is no such file.
    ProtocolError
        When iterated, if it is neither libpcap nor pcapng.
    """

    def __init__(self, source: Path | str | BinaryIO) -> None:
        if isinstance(source, Path | str) and not Path(source).is_file():
            raise ConfigError(f"{source} is not a file")
        self._source = Path(source) if isinstance(source, str) else source
        self.size = source.seek(0, 2) if not isinstance(source, Path | str) else Path(source).stat().st_size
        self.problems: list[Problem] = []
        self.skipped = 0
        self.position = 0

    def __iter__(self) -> Iterator[Datagram]:
        self.problems, self.skipped, self.position = [], 0, 0
        with self._source.open("rb") if isinstance(self._source, Path) else nullcontext(self._source) as plain:
            plain.seek(0)
            packed = is_packed(plain.read(4))
            plain.seek(0)
            told: list[Problem] = []
            pieces = inflated(plain, _CHUNK, told.append) if packed else iter(partial(plain.read, _CHUNK), b"")
            window = _Window(pieces)
            magic = window.peek(4)
            if magic != _SECTION and magic not in _MAGIC:
                raise ProtocolError(f"the file begins with {magic!r}, which is neither libpcap nor pcapng")
            for record in (_Pcapng if magic == _SECTION else _Libpcap)(window, self._problem):
                self.position = window.offset
                found = self._datagram(*record)
                if found is not None:
                    yield found
            self.position = window.offset
            self.problems += told

    def _problem(self, offset: int, reason: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Problem(offset, reason))

    def _datagram(self, offset: int, ts_ns: int, link: int, frame: bytes, original: int) -> Datagram | None:
        at, ether = 0, 0x0800 if link in _RAW else 0
        if link == _ETHERNET or link in _COOKED:
            ether_at, at = _COOKED.get(link, (12, 14))
            ether = int.from_bytes(frame[ether_at : ether_at + 2], "big")
            while ether in _VLAN_TAGS:
                ether = int.from_bytes(frame[at + 2 : at + 4], "big")
                at += 4
        packet = frame[at:]
        if ether != 0x0800 or len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != 17:
            self.skipped += 1
            return None
        ip_at = 4 * (packet[0] & 15)
        total, fragment = int.from_bytes(packet[2:4], "big"), int.from_bytes(packet[6:8], "big")
        if fragment & 0x3FFF:
            self._problem(offset, "a fragment of a datagram; fragments are not put together")
            return None
        udp = packet[ip_at:total]
        length = int.from_bytes(udp[4:6], "big")
        if ip_at < 20 or len(udp) < 8 or not 8 <= length <= len(udp) or total > len(packet):
            cut = len(frame) < original
            self._problem(
                offset,
                f"the capture cut this packet: {len(frame)} of {original} bytes" if cut else
                f"a datagram of {length} bytes in {len(udp)} of {total - ip_at}",
            )
            return None
        return Datagram(
            ts_ns,
            udp[8:length],
            (_address(packet[12:16]), int.from_bytes(udp[:2], "big")),
            (_address(packet[16:20]), int.from_bytes(udp[2:4], "big")),
            offset,
        )


def _address(raw: bytes) -> str:
    return ".".join(map(str, raw))
