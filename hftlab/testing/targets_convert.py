"""Fuzz targets of the file formats that `hftlab convert` reads: DBN, LOBSTER, and what packs them all.

Seeds are built in code from the published layouts. Each feed asserts what its decoder promises: bytes taken and rows
written are within bounds, each row is of a kind the format has, each broken record is told.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pyarrow as pa

from hftlab.codecs import Problem, inflated
from hftlab.codecs.dbn import MAX_RECORD_ROWS, DbnDecoder, read_metadata
from hftlab.codecs.lobster import LobsterDecoder, read_levels
from hftlab.core.errors import ProtocolError
from hftlab.core.rows import Kind, new_rows

__all__ = ["TARGETS", "dbn_levels", "dbn_mbo", "dbn_metadata", "dbn_price"]

Feed = Callable[[bytes], None]

_INSTRUMENT, _PUBLISHER = 5602, 1
_NO_LEVEL = ((1 << 63) - 1, 0, 0)


def dbn_metadata(version: int, schema: int, symbols: dict[int, str], *, dataset: str = "GLBX.MDP3") -> bytes:
    """Return a stream's metadata as the specification lays it out, versions 1 to 3."""
    width = 22 if version == 1 else 71
    fixed = dataset.encode().ljust(16, b"\0") + struct.pack("<HQQQ", schema, 0, (1 << 64) - 1, 0)
    if version == 1:
        fixed += struct.pack("<QBBB", (1 << 64) - 1, 1, 0, 0).ljust(11 + 47, b"\0")
    else:
        fixed += struct.pack("<BBBH", 1, 0, 0, width).ljust(5 + 53, b"\0")
    lists = struct.pack("<II", 0, len(symbols)) + b"".join(s.encode().ljust(width, b"\0") for s in symbols.values())
    lists += struct.pack("<III", 0, 0, len(symbols))
    for number, symbol in symbols.items():
        lists += symbol.encode().ljust(width, b"\0") + struct.pack("<III", 1, 20240508, 20240509)
        lists += str(number).encode().ljust(width, b"\0")
    body = fixed + lists
    return b"DBN" + bytes([version]) + len(body).to_bytes(4, "little") + body


def _header(length: int, rtype: int, instrument: int, ts_event: int) -> bytes:
    return struct.pack("<BBHIQ", length // 4, rtype, _PUBLISHER, instrument, ts_event)


def dbn_mbo(
    action: bytes, side: bytes, order: int, px: int, qty: int, *, flags: int = 128, instrument: int = _INSTRUMENT
) -> bytes:
    """Return a market-by-order record; `px` in 1e-9."""
    body = struct.pack("<QqIBBssQiI", order, px, qty, flags, 0, action, side, 1_000, 5, 77)
    return _header(56, 0xA0, instrument, 900) + body


def dbn_price(
    rtype: int, action: bytes, side: bytes, px: int, qty: int, levels: bytes = b"", *, flags: int = 128
) -> bytes:
    """Return a trade (type 0), mbp-1 (1) or mbp-10 (10) record; `levels` as `dbn_levels` packs them."""
    body = struct.pack("<qIssBBQiI", px, qty, action, side, flags, 0, 1_000, 5, 77)
    return _header(48 + len(levels), rtype, _INSTRUMENT, 900) + body + levels


def dbn_levels(
    bids: list[tuple[int, int, int]], asks: list[tuple[int, int, int]], n: int = 10
) -> bytes:
    """Return `n` levels a side from (px in 1e-9, quantity, orders), best first."""
    pairs = zip(bids + [_NO_LEVEL] * (n - len(bids)), asks + [_NO_LEVEL] * (n - len(asks)), strict=True)
    return b"".join(struct.pack("<qqIIII", b[0], a[0], b[1], a[1], b[2], a[2]) for b, a in pairs)


def _dbn() -> tuple[Feed, list[bytes]]:
    px = 5_214_000_000_000
    ten = dbn_levels([(px, 28, 9), (px - 250_000_000, 5, 1)], [(px + 250_000_000, 17, 8)])
    records = (
        dbn_mbo(b"R", b"N", 0, (1 << 63) - 1, 0, flags=32),
        dbn_mbo(b"A", b"B", 7, px, 5),
        dbn_mbo(b"M", b"B", 7, px, 3),
        dbn_mbo(b"T", b"A", 0, px, 1),
        dbn_mbo(b"F", b"B", 7, px, 1),
        dbn_mbo(b"C", b"B", 7, px, 1),
        dbn_price(0, b"T", b"B", px, 2),
        dbn_price(1, b"A", b"A", px, 2, dbn_levels([(px, 1, 1)], [(px + 1, 2, 1)], 1)),
        dbn_price(10, b"A", b"B", px, 2, ten),
    )
    seeds = [dbn_metadata(version, 0, {_INSTRUMENT: "ESM4"}) + b"".join(records) for version in (1, 2, 3)]
    seeds += [seeds[0][:206] + one for one in records]
    out = new_rows(4 * MAX_RECORD_ROWS)
    kinds = np.array([Kind.ADD, Kind.REDUCE, Kind.REPLACE, Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.TRADE])

    def feed(data: bytes) -> None:
        try:
            metadata = read_metadata(data)
        except ProtocolError:
            return
        if metadata is None:
            return
        told: list[int] = []
        decoder = DbnDecoder(metadata, on_broken=lambda offset, reason: told.append(offset))
        rest = data[metadata.length :]
        while True:
            taken, n = decoder.decode(rest, out)
            assert 0 <= taken <= len(rest) and 0 <= n <= len(out)
            assert taken % 4 == 0
            assert bool(np.isin(out["kind"][:n], kinds).all())
            rest = rest[taken:]
            if n == 0:
                break
        assert decoder.position == len(data) - len(rest)
        assert len(told) == decoder.counts["broken"] and told == sorted(told)
        assert all(metadata.length <= offset < len(data) for offset in told)

    return feed, seeds


def _lobster() -> tuple[Feed, list[bytes]]:
    seeds = [
        b"34200.004241176,1,16113575,18,5853300,1",
        b"34200.004241176,2,16113575,8,5853300,1",
        b"34200.5,3,16113575,10,5853300,1",
        b"34200,4,1,10,5853300,-1",
        b"34200.1,5,0,10,5853300,-1",
        b"34200.1,6,0,10,5853300,-1",
        b"34200.1,7,0,0,-1,-1",
        b"5859400,200,5853300,18,9999999999,0,-9999999999,0",
    ]
    decoder, out = LobsterDecoder(), new_rows(64)

    def feed(data: bytes) -> None:
        malformed = decoder.counts["malformed"]
        n = decoder.decode(data, out)
        assert n in (0, 1)
        assert decoder.counts["malformed"] == malformed + (n == 0)
        if n:
            assert out["kind"][0] in (Kind.ADD, Kind.REDUCE, Kind.DELETE, Kind.EXECUTE, Kind.TRADE, Kind.STATUS)
        levels = read_levels(data)
        if levels is not None and len(levels[0]) + len(levels[1]) < len(out) - 1:
            rows = LobsterDecoder().seed(data, seeds[0], out)
            assert 1 <= rows <= len(out)

    return feed, seeds


def _packed() -> tuple[Callable[[bytes], None], list[bytes]]:
    lines = b"".join(b"%d,%d\n" % (k, k * k) for k in range(200))
    zstd = pa.Codec("zstd")
    packers: list[Callable[[bytes], bytes]] = [gzip.compress, lambda data: bytes(zstd.compress(data, asbytes=True))]
    seeds = [pack(data) for pack in packers for data in (lines, bytes(5_000))]
    seeds += [pack(b"one") + pack(b"two") for pack in packers]

    def feed(data: bytes) -> None:
        told: list[Problem] = []
        pieces = [len(piece) for piece in inflated(BytesIO(data), 1_000, told.append)]
        assert max(pieces, default=0) <= 1_000 and len(told) <= 1
        assert not told or told[0].offset == sum(pieces)

    return feed, seeds


TARGETS = {"dbn": _dbn, "lobster": _lobster, "packed": _packed}
"""Name to a function that gives feed and seeds."""
