"""Databento Binary Encoding (DBN), versions 1 to 3: a stream's bytes to rows.

Model. A stream is a metadata header, then records: a 16-byte header (length in 4-byte words, type, publisher,
instrument id, event time) and a fixed body, little-endian. A kernel walks whole records and writes rows; what is rare
(a definition, a symbol mapping, an instrument met for the first time, a broken record) stops it, Python settles it, and
the kernel goes on behind it. So a day costs the kernel's speed and the kernel needs no error texts.

====================  ==============================================================================================
record                rows
====================  ==============================================================================================
mbo, action A         ADD: a = order id. With the flag "top of book" QUOTE: such a venue shows its best price only
mbo, action C         REDUCE by the size; the book removes an order that has nothing left
mbo, action M         REPLACE with a = b = order id: px and qty are the order's new ones, and its side is given, since a
                      modified order that was never added counts as added
mbo, action R         CLEAR
mbo, action T         TRADE: BID = the buyer was the aggressor; b = venue sequence
mbo, action F         TRADE flagged MAKER and NON_PRINTABLE, a = the resting order: the T before it has the volume, the
                      C behind it changes the book
trades                TRADE
mbp-1, tbbo, bbo      TRADE if it is one, then QUOTE bid and QUOTE ask: a = sequence, b = order count
mbp-10                TRADE if it is one, then a LEVEL row for each level that differs from the record before; CLEAR
                      before the first. The book is the ten levels a side that the venue showed, no more
====================  ==============================================================================================

Bars and definitions are facts, not events: `bars` returns the first, `DbnDecoder.instruments` holds the second.
Statistics, status, imbalance and the consolidated schemas are counted as ignored.

Prices are int64 in 1e-9 of the currency. They become ticks of the instrument: the tick its definition gives, or 1e-9
itself where no definition is known. A price off that grid is a broken record, never rounded.

Promise. Whatever the bytes, nothing raises but the metadata (`ProtocolError`); a record gives all its rows or none; a
broken record is told with its offset. After a length that cannot be, the next record is looked for 4 bytes at a time:
one whose type and length belong together and whose instrument is known.

Worst case accepted: a stream without any instrument known, and with a broken length, is skipped to its end.

References
----------
Databento, "Databento Binary Encoding", "MBO", "MBP-10", "Common fields, enums and types".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ProtocolError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NAT, NO_PX, Flag, Kind, RowArray, new_rows
from hftlab.kernels.jit import kernel

__all__ = ["BAR", "DbnDecoder", "DbnMetadata", "MAX_RECORD_ROWS", "SCHEMAS", "bars", "read_metadata"]

MAX_RECORD_ROWS = 42
"""Most rows one record becomes: a trade, CLEAR, and ten levels gone and ten new ones on each side."""

SCHEMAS = (
    "mbo", "mbp-1", "mbp-10", "tbbo", "trades", "ohlcv-1s", "ohlcv-1m", "ohlcv-1h", "ohlcv-1d", "definition",
    "statistics", "status", "imbalance", "ohlcv-eod", "cmbp-1", "cbbo-1s", "cbbo-1m", "tcbbo", "bbo-1s", "bbo-1m",
)  # fmt: skip
"""Schema names by the metadata's number."""

BAR = np.dtype(
    [
        ("length", "u1"), ("rtype", "u1"), ("publisher", "<u2"), ("instrument", "<u4"), ("ts_event", "<i8"),
        ("open", "<i8"), ("high", "<i8"), ("low", "<i8"), ("close", "<i8"), ("volume", "<u8"),
    ]
)  # fmt: skip
"""A bar as it is encoded: prices in 1e-9, ``ts_event`` the start of the bar in ns UTC."""

_NANO = Decimal("1e-9")
_UNDEFINED = (1 << 63) - 1
_NO_SCHEMA = 0xFFFF
_HEADER = 16
_MBP_0, _MBP_1, _MBP_10, _DEFINITION, _MAPPING, _MBO = 0x00, 0x01, 0x0A, 0x13, 0x16, 0xA0
_BBO = (0xC3, 0xC4)
_BARS = (0x11, 0x20, 0x21, 0x22, 0x23, 0x24)
_LENGTHS = {
    _MBO: (56,), _MBP_0: (48,), _MBP_1: (80,), _MBP_10: (368,), _DEFINITION: (360, 400, 520), _MAPPING: (80, 176),
    **dict.fromkeys(_BARS, (56,)), **dict.fromkeys(_BBO, (80,)),
}  # fmt: skip

# why the kernel stopped
_MORE, _FULL, _STRANGER, _ASIDE, _LENGTH, _ACTION, _SIDE, _OFF_GRID, _NO_PRICE = range(9)
_BROKEN = {
    _ACTION: "action is none of A C M R T F N",
    _SIDE: "side is neither A nor B",
    _OFF_GRID: "price is off the instrument's grid",
    _NO_PRICE: "price is undefined",
}

_BID, _ASK, _LAST = int(Flag.BID), int(Flag.ASK), int(Flag.LAST)
_SNAPSHOT, _MAKER, _HIDDEN = int(Flag.SNAPSHOT), int(Flag.MAKER), int(Flag.NON_PRINTABLE)
_ADD, _REDUCE, _REPLACE = int(Kind.ADD), int(Kind.REDUCE), int(Kind.REPLACE)
_LEVEL, _QUOTE, _CLEAR, _TRADE = int(Kind.LEVEL), int(Kind.QUOTE), int(Kind.CLEAR), int(Kind.TRADE)
_F_LAST, _F_TOB, _F_SNAPSHOT = 128, 64, 32

# columns of the instrument table (open addressing) and of the facts a kernel call starts from and leaves
_KEY, _ID, _TICK, _INDEX = range(4)
_INFO_ROWS, _INFO_WHY, _INFO_SOURCE, _INFO_EXTRA = range(4)
_EMPTY_KEY = -1
_KEY_BITS = (1 << 48) - 1  # of a record's first 8 bytes without length and type: publisher, instrument id
_HASH = 0x9E3779B97F4A7C15 - (1 << 64)


@dataclass(frozen=True, slots=True)
class DbnMetadata:
    """What a stream says of itself.

    Parameters
    ----------
    version : int
        1, 2 or 3.
    dataset : str
        Such as ``"GLBX.MDP3"``.
    schema : str
        One of `SCHEMAS`; empty where the records are mixed, as in live streams.
    start_ns, end_ns : int
        The time asked for, ns UTC; `NAT` where not given.
    ts_out : bool
        Each record carries the gateway's send time behind its body.
    length : int
        Bytes of the header, from the stream's first byte to the first record.
    symbols : dict[int, str]
        Instrument ids and their names, as far as the mappings tell.
    """

    version: int
    dataset: str
    schema: str
    start_ns: int
    end_ns: int
    ts_out: bool
    length: int
    symbols: dict[int, str] = field(default_factory=dict)


def _key(raw: npt.NDArray[np.uint8], at: int) -> int:
    """Return instrument id and publisher of the record at `at`, as the table knows them."""
    return int.from_bytes(raw[at + 2 : at + 8].tobytes(), "little")


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")


def _time_ns(stamp: int) -> int:
    return stamp if stamp <= _UNDEFINED else NAT


def read_metadata(data: bytes) -> DbnMetadata | None:
    """Return the metadata at the front of a stream, or None while `data` does not hold all of it.

    Raises
    ------
    ProtocolError
        If the bytes are no DBN stream, or one of a version that is not known.

    Examples
    --------
    >>> read_metadata(b"DBN") is None
    True
    >>> read_metadata(b"DBZ....")
    Traceback (most recent call last):
        ...
    hftlab.core.errors.ProtocolError: not a DBN stream: expected it to begin with b'DBN', got b'DBZ....'
    """
    if data[:3] != b"DBN"[: len(data)]:
        raise ProtocolError(f"not a DBN stream: expected it to begin with b'DBN', got {bytes(data[:8])!r}")
    if len(data) < 8:
        return None
    version = data[3]
    length = 8 + int.from_bytes(data[4:8], "little")
    if not 1 <= version <= 3:
        raise ProtocolError(f"DBN version {version}; this decoder reads versions 1 to 3")
    if not 8 + 100 <= length <= 1 << 28:
        raise ProtocolError(f"DBN metadata says it is {length} bytes long; expected at least 108")
    if len(data) < length:
        return None
    try:
        return _metadata(bytes(data[:length]), version)
    except (struct.error, IndexError, ValueError) as error:
        raise ProtocolError(f"DBN metadata cannot be read: {error}") from error


def _metadata(raw: bytes, version: int) -> DbnMetadata:
    schema, start, end = struct.unpack_from("<HQQ", raw, 24)
    at = 58 if version == 1 else 50  # version 1 has a record count here, never filled
    stype_in, stype_out, ts_out = raw[at], raw[at + 1], raw[at + 2]
    width = 22 if version == 1 else int.from_bytes(raw[at + 3 : at + 5], "little")
    if width == 0:
        raise ValueError("its symbols are 0 bytes wide")
    at = 108

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<I", raw, at)
        at += 4
        return int(value)

    def symbol() -> str:
        nonlocal at
        at += width
        if at > len(raw):
            raise ValueError(f"its symbol lists end {at - len(raw)} bytes behind it")
        return _text(raw[at - width : at])

    definition = number()  # bytes of a definition of the schema: none has been used so far
    at += definition
    for _ in ("asked for", "partial", "not found"):
        for _ in range(number()):
            symbol()
    symbols: dict[int, str] = {}
    for _ in range(number()):
        asked = symbol()
        for _ in range(number()):
            at += 8  # first and last day
            got = symbol()
            name, text = (got, asked) if stype_in == 0 and stype_out != 0 else (asked, got)
            if text.isdecimal() and text.isascii():
                symbols.setdefault(int(text), name)
    return DbnMetadata(
        version,
        _text(raw[8:24]),
        SCHEMAS[schema] if schema < len(SCHEMAS) else "",
        _time_ns(start),
        _time_ns(end),
        bool(ts_out),
        len(raw),
        symbols,
    )


@kernel(inline=True)
def _u32(data: Any, at: int) -> int:
    return int(data[at]) | int(data[at + 1]) << 8 | int(data[at + 2]) << 16 | int(data[at + 3]) << 24


@kernel(inline=True)
def _i64(data: Any, at: int) -> int:
    return _u32(data, at) | _u32(data, at + 4) << 32


@kernel(inline=True)
def _time(data: Any, at: int) -> int:
    """Return the time at `at`; what does not fit int64 (the undefined time is all ones) is not given."""
    stamp = _i64(data, at)
    return stamp if stamp >= 0 else NAT


@kernel(inline=True)
def _put(
    out: Any, n: int, kind: int, source: int, ts_recv: int, ts_event: int, instrument: int, flags: int, px: int,
    qty: int, a: int, b: int,
) -> None:  # fmt: skip
    row = out[n]
    row.seq = 0
    row.source = source
    row.kind = kind
    row.span = 0
    row.ts_recv = ts_recv
    row.ts_event = ts_event
    row.instrument = instrument
    row.flags = flags
    row.code = 0
    row.px = px
    row.qty = qty
    row.a = a
    row.b = b


@kernel(inline=True)
def _slot(table: Any, key: int) -> int:
    """Return where `key` stands in the table, or the free place where it belongs."""
    mask = len(table) - 1
    slot = ((key * _HASH) >> 40) & mask
    while table[slot, _KEY] != key and table[slot, _KEY] != _EMPTY_KEY:
        slot = (slot + 1) & mask
    return slot


@kernel()
def _insert(table: Any, key: int, instrument: int, tick: int, index: int) -> None:
    slot = _slot(table, key)
    table[slot, _KEY] = key
    table[slot, _ID] = instrument
    table[slot, _TICK] = tick
    table[slot, _INDEX] = index


@kernel(inline=True)
def _is_off(px: int, tick: int) -> bool:
    return px != _UNDEFINED and px % tick != 0


@kernel()
def _order(data: Any, at: int, table: Any, slot: int, info: Any, out: Any) -> int:
    """Write the row of the market-by-order record at `at`; return why not, or 0."""
    action, side, flags_in = int(data[at + 38]), int(data[at + 39]), int(data[at + 36])
    order, px, qty = _i64(data, at + 16), _i64(data, at + 24), _u32(data, at + 32)
    n, tick = info[_INFO_ROWS], table[slot, _TICK]
    flags = (_LAST if flags_in & _F_LAST else 0) | (_SNAPSHOT if flags_in & _F_SNAPSHOT else 0)
    sided = side == 65 or side == 66
    flags |= _BID if side == 66 else (_ASK if side == 65 else 0)
    a, b = order, 0
    if action == 65 or action == 77:  # add, modify
        kind = _ADD if action == 65 else _REPLACE
        b = 0 if action == 65 else order
        if flags_in & _F_TOB:
            kind, a, b = _QUOTE, _u32(data, at + 52), 0
        if not sided:
            return _SIDE
        if px == _UNDEFINED and kind != _QUOTE:
            return _NO_PRICE
    elif action == 67:  # cancel
        kind = _REDUCE
        if not sided:
            return _SIDE
    elif action == 82:  # clear
        kind, px, qty, a = _CLEAR, 0, 0, _u32(data, at + 52)
    elif action == 84:  # trade
        kind, a, b = _TRADE, 0, _u32(data, at + 52)
        if px == _UNDEFINED:
            return _NO_PRICE
    elif action == 70:  # fill: the side is the resting order's, the flag is the aggressor's
        kind, b = _TRADE, _u32(data, at + 52)
        flags = flags ^ (_BID | _ASK) if sided else flags
        flags |= _MAKER | _HIDDEN
        if px == _UNDEFINED:
            return _NO_PRICE
    elif action == 78:
        return 0
    else:
        return _ACTION
    if _is_off(px, tick):
        return _OFF_GRID
    px = NO_PX if px == _UNDEFINED else px // tick
    _put(
        out, n, kind, info[_INFO_SOURCE], _time(data, at + 40), _time(data, at + 8), table[slot, _ID], flags, px, qty,
        a, b,
    )  # fmt: skip
    info[_INFO_ROWS] = n + 1
    return 0


@kernel()
def _side_changes(
    data: Any, at: int, side: int, table: Any, slot: int, levels: Any, info: Any, out: Any, n: int, ts_recv: int,
    ts_event: int, flags: int, seq: int,
) -> int:  # fmt: skip
    """Write a LEVEL row for each of ten levels that differs from the ten before; return the next free row."""
    known, tick = table[slot, _INDEX], table[slot, _TICK]
    sign = -1 if side == 0 else 1
    i = j = 0
    while i < 10 or j < 10:
        old = levels[known, side, i, 0] if i < 10 else _UNDEFINED
        new = _i64(data, at + 32 * j) if j < 10 else _UNDEFINED
        if old == _UNDEFINED and new == _UNDEFINED:
            i += 1
            j += 1
            continue
        qty = _u32(data, at + 16 + 32 * j - 4 * side) if j < 10 else 0
        count = _u32(data, at + 24 + 32 * j - 4 * side) if j < 10 else 0
        if old == new:
            is_same = levels[known, side, i, 1] == qty and levels[known, side, i, 2] == count
            i += 1
            j += 1
            if is_same:
                continue
        elif new == _UNDEFINED or (old != _UNDEFINED and sign * old < sign * new):
            i += 1
            new, qty, count = old, 0, 0
        else:
            j += 1
        _put(
            out, n, _LEVEL, info[_INFO_SOURCE], ts_recv, ts_event, table[slot, _ID], flags | (1 + side), new // tick,
            qty, seq, count,
        )  # fmt: skip
        n += 1
    for k in range(10):
        levels[known, side, k, 0] = _i64(data, at + 32 * k)
        levels[known, side, k, 1] = _u32(data, at + 16 + 32 * k - 4 * side)
        levels[known, side, k, 2] = _u32(data, at + 24 + 32 * k - 4 * side)
    return n


@kernel()
def _prices(data: Any, at: int, rtype: int, table: Any, slot: int, levels: Any, info: Any, out: Any) -> int:
    """Write the rows of the trade or market-by-price record at `at`; return why not, or 0."""
    action, side, flags_in = int(data[at + 28]), int(data[at + 29]), int(data[at + 30])
    px, tick, seq = _i64(data, at + 16), table[slot, _TICK], _u32(data, at + 44)
    is_sampled = rtype == 0xC3 or rtype == 0xC4
    is_trade = action == 84 and not is_sampled
    known_action = action == 65 or action == 67 or action == 77 or action == 82 or action == 70 or action == 78
    if not (known_action or is_trade or is_sampled) or (rtype == _MBP_0 and not is_trade):
        return _ACTION
    if is_trade and px == _UNDEFINED:
        return _NO_PRICE
    if is_trade and _is_off(px, tick):
        return _OFF_GRID
    depth = 0 if rtype == _MBP_0 else (10 if rtype == _MBP_10 else 1)
    for k in range(2 * depth):
        if _is_off(_i64(data, at + 48 + 32 * (k >> 1) + 8 * (k & 1)), tick):
            return _OFF_GRID
    source, instrument = info[_INFO_SOURCE], table[slot, _ID]
    ts_recv, ts_event = _time(data, at + 32), _time(data, at + 8)
    flags = _SNAPSHOT if flags_in & _F_SNAPSHOT else 0
    n = first = info[_INFO_ROWS]
    if is_trade:
        aggressor = _BID if side == 66 else (_ASK if side == 65 else 0)
        _put(
            out, n, _TRADE, source, ts_recv, ts_event, instrument, flags | aggressor, px // tick, _u32(data, at + 24),
            0, seq,
        )  # fmt: skip
        n += 1
    if depth == 1:
        for k in range(2):
            quote = _i64(data, at + 48 + 8 * k)
            _put(
                out, n, _QUOTE, source, ts_recv, ts_event, instrument, flags | (1 + k),
                NO_PX if quote == _UNDEFINED else quote // tick, _u32(data, at + 64 + 4 * k), seq,
                _u32(data, at + 72 + 4 * k),
            )  # fmt: skip
            n += 1
    elif depth == 10:
        known = table[slot, _INDEX]
        if levels[known, 0, 10, 0] == 0:
            levels[known, 0, 10, 0] = 1
            _put(out, n, _CLEAR, source, ts_recv, ts_event, instrument, flags | _SNAPSHOT, 0, 0, seq, 0)
            n += 1
        for k in range(2):
            n = _side_changes(
                data, at + 48 + 8 * k, k, table, slot, levels, info, out, n, ts_recv, ts_event, flags, seq
            )
    if n > first and (flags_in & _F_LAST or depth == 0 or is_sampled):
        out[n - 1].flags |= _LAST
    info[_INFO_ROWS] = n
    return 0


@kernel()
def _decode(data: Any, at: int, end: int, table: Any, levels: Any, info: Any, out: Any) -> int:
    """Decode records from `at` on until something stops it (``info[_INFO_WHY]``); return where it stands."""
    extra, room = info[_INFO_EXTRA], len(out) - MAX_RECORD_ROWS
    info[_INFO_WHY] = _MORE
    while at + _HEADER <= end:
        length, rtype = 4 * int(data[at]), int(data[at + 1])
        wanted = 56 if rtype == _MBO else (48 if rtype == _MBP_0 else (368 if rtype == _MBP_10 else 80))
        if not (rtype == _MBO or rtype <= _MBP_1 or rtype == _MBP_10 or rtype == 0xC3 or rtype == 0xC4):
            info[_INFO_WHY] = _ASIDE
            return at
        if length != wanted + extra:
            info[_INFO_WHY] = _LENGTH
            return at
        if at + length > end:
            return at
        if info[_INFO_ROWS] > room:
            info[_INFO_WHY] = _FULL
            return at
        slot = _slot(table, (_i64(data, at) >> 16) & _KEY_BITS)
        if table[slot, _KEY] == _EMPTY_KEY:
            info[_INFO_WHY] = _STRANGER
            return at
        if rtype == _MBO:
            why = _order(data, at, table, slot, info, out)
        else:
            why = _prices(data, at, rtype, table, slot, levels, info, out)
        if why != 0:
            info[_INFO_WHY] = why
            return at
        at += length
    return at


class DbnDecoder:
    """The records of one DBN stream, behind its metadata, to rows.

    Parameters
    ----------
    metadata : DbnMetadata
        What `read_metadata` found at the stream's front.
    instruments : sequence of Instrument
        Whose tick, lot and id are to be used where dataset and symbol are theirs (such as those of a definition file).
    source : int
        Written in every row.
    on_broken : callable(offset, reason), optional
        Told of each broken record: its byte offset in the (uncompressed) stream, and what is wrong with it.

    Attributes
    ----------
    instruments : list of Instrument
        Those given and those met.
    counts : dict[str, int]
        Records: ``broken``, ``ignored`` (of kinds that have no rows), ``bars``, ``definitions``, ``mappings``.
    position : int
        Offset of the next record in the stream.

    Examples
    --------
    >>> head = b"DBN" + bytes([3]) + (120).to_bytes(4, "little") + b"GLBX.MDP3".ljust(16, bytes(1)) + bytes(104)
    >>> head = head[:53] + (71).to_bytes(2, "little") + head[55:]
    >>> metadata = read_metadata(head)
    >>> decoder = DbnDecoder(metadata)
    >>> metadata.version, metadata.schema, metadata.length, decoder.decode(b"", new_rows(64))
    (3, 'mbo', 128, (0, 0))
    """

    def __init__(
        self,
        metadata: DbnMetadata,
        instruments: Sequence[Instrument] = (),
        *,
        source: int = 1,
        on_broken: Callable[[int, str], None] | None = None,
    ) -> None:
        self.metadata = metadata
        self.instruments = list(instruments)
        self.counts = dict.fromkeys(("broken", "ignored", "bars", "definitions", "mappings"), 0)
        self.position = metadata.length
        self._on_broken = on_broken
        self._given = {(i.venue, i.symbol): i for i in instruments}
        self._next_id = max((i.id for i in instruments), default=-1) + 1
        self._names = dict(metadata.symbols)
        self._keys: dict[int, Instrument] = {}
        self._lost = False
        self._levels = np.zeros((0, 2, 11, 3), np.int64)
        self._extra = 8 if metadata.ts_out else 0
        self._info = np.array([0, 0, source, self._extra], np.int64)
        self._grow(64)
        _decode(np.zeros(0, np.uint8), 0, 0, self._table, self._levels, self._info, new_rows(1))  # compile or load now

    def decode(self, data: bytes | memoryview, out: RowArray) -> tuple[int, int]:
        """Decode whole records from the front of `data` and return (bytes taken, rows written).

        Fewer bytes are taken than there are where `out` is full (rows were written) or the last record is not whole
        yet (call again with the rest and more behind it).

        Parameters
        ----------
        data : bytes or memoryview
            The stream from `position` on.
        out : ROW array
            Overwritten from the front; at least `MAX_RECORD_ROWS` rows.

        Raises
        ------
        ValueError
            If `out` is too short for any one record.
        """
        if len(out) < MAX_RECORD_ROWS:
            raise ValueError(f"out has {len(out)} rows; expected at least {MAX_RECORD_ROWS}")
        raw = np.frombuffer(data, np.uint8)
        end, at = len(raw), 0
        self._info[_INFO_ROWS] = 0
        while True:
            if self._lost:
                at = self._find(raw, at)
                if self._lost:
                    break
            at = _decode(raw, at, end, self._table, self._levels, self._info, out)
            why = int(self._info[_INFO_WHY])
            if why in (_MORE, _FULL):
                break
            length = self._settle(raw, at, why)
            if length is None:
                break
            at += length
        self.position += at
        return at, int(self._info[_INFO_ROWS])

    def _settle(self, raw: npt.NDArray[np.uint8], at: int, why: int) -> int | None:
        """Deal with the record at which the kernel stopped; return how many bytes to go on by, None if not whole."""
        length, rtype = 4 * int(raw[at]), int(raw[at + 1])
        known = _LENGTHS.get(rtype)
        if length < _HEADER or (known and length - self._extra not in known):
            self._tell(at, f"a record of type {rtype:#04x} cannot be {length} bytes long")
            self._lost = True
            return 4
        if at + length > len(raw):
            return None
        if why == _STRANGER:
            if self._meet(_key(raw, at)):
                return 0
            self._tell(at, "its instrument id is none of the stream's")
        elif why != _ASIDE:
            self._tell(at, _BROKEN[why])
        elif rtype == _DEFINITION:
            self._define(raw[at : at + length].tobytes(), _key(raw, at))
        elif rtype == _MAPPING:
            self._map(raw[at : at + length].tobytes())
        else:
            self.counts["bars" if rtype in _BARS else "ignored"] += 1
        return length

    def _tell(self, at: int, reason: str) -> None:
        self.counts["broken"] += 1
        if self._on_broken is not None:
            self._on_broken(self.position + at, reason)

    def _find(self, raw: npt.NDArray[np.uint8], at: int) -> int:
        """Look for a record from `at` on: one whose length is its type's and whose instrument is known."""
        while at + _HEADER <= len(raw):
            known = _LENGTHS.get(int(raw[at + 1]), ())
            if 4 * int(raw[at]) - self._extra in known:
                key = _key(raw, at)
                if key in self._keys or key >> 16 in self._names:
                    self._lost = False
                    return at
            at += 4
        return at

    def _meet(self, key: int) -> bool:
        """Register the instrument of a record; False if the stream's own list of symbols does not have it."""
        name = self._names.get(key >> 16)
        if name is None:
            if self.metadata.symbols:
                return False
            name = str(key >> 16)
        self._register(key, name, _NANO, "", "")
        return True

    def _define(self, record: bytes, key: int) -> None:
        self.counts["definitions"] += 1
        is_new = len(record) - self._extra == 520
        at, width = (238, 71) if is_new else (200, 22 if len(record) - self._extra == 360 else 71)
        name = _text(record[at : at + width])
        if key in self._keys or not name:
            return
        (increment,) = struct.unpack_from("<q", record, 24)
        tick = (Decimal(increment) * _NANO).normalize() if 0 < increment < _UNDEFINED else _NANO
        money_at, asset_at = (224 if is_new else 186), at + width + 26
        self._register(
            key, name, tick, _text(record[asset_at : asset_at + (11 if is_new else 7)]), _text(record[money_at:][:4])
        )

    def _map(self, record: bytes) -> None:
        """Take a live stream's word for what an instrument id is called."""
        self.counts["mappings"] += 1
        asked, told = (record[16:38], record[38:60]) if len(record) < 176 else (record[17:88], record[89:160])
        name = _text(told) if not _text(told).isdecimal() else _text(asked)
        if name:
            self._names.setdefault(int.from_bytes(record[4:8], "little"), name)

    def _register(self, key: int, name: str, tick: Decimal, base: str, quote: str) -> None:
        venue = self.metadata.dataset
        if any(other >> 16 == key >> 16 and other != key for other in self._keys):
            venue = f"{venue}/{key & 0xFFFF}"  # a second publisher's book of it
        instrument = self._given.get((venue, name))
        if instrument is None:
            instrument = Instrument(self._next_id, venue, name, tick, Decimal(1), base, quote)
            self._next_id += 1
            self.instruments.append(instrument)
        self._keys[key] = instrument
        if 2 * len(self._keys) > len(self._table):
            self._grow(2 * len(self._table))
        else:
            self._insert(key, len(self._keys) - 1)

    def _insert(self, key: int, index: int) -> None:
        instrument = self._keys[key]
        tick = int(instrument.tick_size / _NANO)
        _insert(self._table, key, instrument.id, tick, index)

    def _grow(self, capacity: int) -> None:
        """Lay the instruments out in a table of `capacity` places; the levels they showed last go with them."""
        self._table = np.full((capacity, 4), _EMPTY_KEY, np.int64)
        levels = np.zeros((capacity // 2, 2, 11, 3), np.int64)
        levels[:, :, :10, 0] = _UNDEFINED
        levels[: len(self._levels)] = self._levels
        self._levels = levels
        for index, key in enumerate(self._keys):
            self._insert(key, index)


def bars(data: bytes, metadata: DbnMetadata) -> npt.NDArray[np.void]:
    """Return the bars of an ohlcv stream, prices in 1e-9.

    Parameters
    ----------
    data : bytes
        The whole stream, metadata first.
    metadata : DbnMetadata
        Of that stream.

    Returns
    -------
    array of BAR, shape (n,)
        A copy; a record cut off at the end is left out.

    Raises
    ------
    ProtocolError
        If a record is no bar.
    """
    width = BAR.itemsize + (8 if metadata.ts_out else 0)
    body = data[metadata.length :]
    raw = np.frombuffer(body, np.uint8, len(body) // width * width).reshape(-1, width)
    found = np.ascontiguousarray(raw[:, : BAR.itemsize]).view(BAR).reshape(-1)
    wrong = np.flatnonzero(~np.isin(found["rtype"], _BARS) | (4 * found["length"].astype(np.int64) != width))
    if len(wrong):
        at = metadata.length + int(wrong[0]) * width
        raise ProtocolError(f"record at byte {at} is of type {int(found['rtype'][wrong[0]]):#04x}; expected a bar")
    return found
