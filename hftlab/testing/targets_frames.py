"""What lies between a socket and rows as targets of mutated input: the frame scanner, and Binance's messages in place.

``frames`` compares the scanner with a reading of RFC 6455, 5.2 a byte at a time. Each input is read three times with
other bytes behind its end, which no answer may depend on. ``binance-spans`` cuts an input into lines, and compares a
connection that takes them as messages of one read with one that takes each alone and decides by the rule in Python.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW
from hftlab.kernels.frames import BAD, FACTS, FULL, MORE, OTHER, scan_frames
from hftlab.kernels.jit import address_of
from hftlab.kernels.words import BYTES_AT
from hftlab.testing.fuzz import Feed
from hftlab.venues.binance.connection import MarketConnection

__all__ = ["TARGETS", "plain_scan", "server_frame"]

_ROOM, _MOST, _MEMORY = 8, 70_000, 1 << 16


def server_frame(payload: bytes, opcode: int = 1, *, fin: bool = True, form: int = 0) -> bytes:
    """Return a server's frame.

    Parameters
    ----------
    payload : bytes
    opcode : int
    fin : bool
        Whether it ends its message.
    form : int
        126 or 127 writes the length in 2 or 8 bytes although fewer would do.
    """
    size = len(payload)
    form = max(form, size if size < 126 else 126 if size < 65536 else 127)
    head = bytes([opcode | (128 if fin else 0), form])
    if form == 126:
        head += size.to_bytes(2, "big")
    elif form == 127:
        head += size.to_bytes(8, "big")
    return head + payload


def plain_scan(data: bytes, room: int, most: int) -> tuple[list[tuple[int, int]], int, int, int]:
    """Return what `scan_frames` says of `data`: offsets and lengths, where it stopped, why, the extent there."""
    found: list[tuple[int, int]] = []
    at = 0
    while len(data) - at >= 2:
        fin, reserved, opcode = data[at] >> 7, data[at] >> 4 & 7, data[at] & 15
        masked, size, header = data[at + 1] >> 7, data[at + 1] & 127, 2
        control = opcode in (8, 9, 10)
        if reserved or masked or opcode not in (0, 1, 2, 8, 9, 10) or (control and (size > 125 or not fin)):
            return found, at, BAD, 0
        if size > 125:
            header = {126: 4, 127: 10}[size]
            if len(data) - at < header:
                return found, at, MORE, 0
            size = int.from_bytes(data[at + 2 : at + header], "big")
            if size > most:
                return found, at, BAD, 0
        if len(data) - at < header + size:
            return found, at, MORE, header + size
        if control or opcode == 0 or not fin or room == 0:
            return found, at, OTHER, header + size
        if len(found) == room:
            return found, at, FULL, header + size
        found.append((at + header, size))
        at += header + size
    return found, at, MORE, 0


def _frames() -> tuple[Feed, list[bytes]]:
    memory = np.zeros(_MEMORY, np.uint8)
    spans, facts = np.zeros((_ROOM, 2), np.int64), np.zeros(FACTS, np.int64)
    begin, spans_at, facts_at = address_of(memory), address_of(spans), address_of(facts)

    def feed(data: bytes) -> None:
        data = data[: _MEMORY - 16]
        memory[: len(data)] = np.frombuffer(data, np.uint8)
        at, end = begin, begin + len(data)
        for room, behind in ((_ROOM, 0), (_ROOM, 0x81), (0, 0xFF)):
            memory[len(data) : len(data) + 16] = behind
            expected, stop, why, extent = plain_scan(data, room, _MOST)
            n = scan_frames(at, end, spans_at, room, _MOST, facts_at)
            assert [(place - at, length) for place, length in spans[:n].tolist()] == expected
            assert facts.tolist() == [at + stop, why, extent]

    ping, close = server_frame(b"are you there", 9), server_frame(b"\x03\xe8bye", 8)
    seeds = [
        server_frame(b"a") + server_frame(b"{}", 2) + server_frame(b""),
        server_frame(b"x" * 130) + ping + server_frame(b"y" * 126),
        server_frame(b"ha", fin=False) + server_frame(b"lf", 0) + close,
        server_frame(b"long", form=126) + server_frame(b"longer", form=127),
        server_frame(b"z") * 12,
        server_frame(b"h" * 66_000)[:200],
    ]
    return feed, seeds


_LINES = [
    b'{"e":"depthUpdate","E":1672515782136,"s":"BNBBTC","U":2,"u":3,"b":[["0.00240000","10.00000000"]],"a":[]}',
    b'{"e":"depthUpdate","E":1672515782137,"s":"BNBBTC","U":4,"u":4,"b":[],"a":[["0.00260000","0.00000000"]]}',
    b'{"e":"depthUpdate","E":1672515782138,"s":"BNBBTC","U":5,"u":7,"b":[["0.00230000","1.00000000"]],"a":[]}',
    b'{"u":7,"s":"BNBBTC","b":"0.00240000","B":"31.21000000","a":"0.00250000","A":"40.66000000"}',
    b'{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,"p":"0.00100000","q":"100.00000000","T":1672515782136,'
    b'"m":true,"M":true}',
    b'{"result":null,"id":1}',
]


def _spans() -> tuple[Feed, list[bytes]]:
    bnb = Instrument(0, "binance", "BNBBTC", Decimal("0.0001"), Decimal("0.01"))
    together, alone = (MarketConnection([bnb], snapshot_limit=5) for _ in range(2))
    alone.decoder.follow(0, 0)
    out, single = (np.zeros(max(8192, together.rows_needed), ROW) for _ in range(2))
    snapshot = b'{"lastUpdateId":1,"bids":[["0.00100000","431.00000000"]],"asks":[["4.00020000","12.00000000"]]}'

    def feed(data: bytes) -> None:
        for connection, rows in ((together, out), (alone, single)):
            connection.on_close(0, rows)
            connection.on_open(0)
            connection.on_snapshot("BNBBTC", snapshot, 0, rows)
        messages = data.split(b"\n")
        spans = np.array([(id(message) + BYTES_AT, len(message)) for message in messages], np.int64)
        i, at = 0, address_of(spans)
        while i < len(messages):
            done, n = together.on_spans(at + 16 * i, len(messages) - i, 7, out)
            expected = [single[: alone.on_frame(message, 7, single)].tobytes() for message in messages[i : i + done]]
            assert done > 0 and out[:n].tobytes() == b"".join(expected)
            i += done
        assert together.counts == alone.counts and together.decoder.counts == alone.decoder.counts
        one, other = together.books[0], alone.books[0]
        assert (one.state, one.sequence.last, one.heard_ns) == (other.state, other.sequence.last, other.heard_ns)

    return feed, [b"\n".join(_LINES), b"\n".join(_LINES[:3]), b"\n".join(_LINES[2::-1]), *_LINES]


TARGETS = {"binance-spans": _spans, "frames": _frames}
