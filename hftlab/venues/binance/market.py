"""Binance spot market data: one message's bytes to rows.

Three readers, one meaning. The *layout reader* takes depthUpdate, trade, aggTrade and bookTicker as the venue writes
them today, field after field, wrapped in a stream or not: known text is compared eight bytes at a time, numbers are
read by `hftlab.kernels.words`, rows are written as eight words each. Text in another layout goes to the *scanner*,
which walks the JSON once: known scalar fields in any order, unknown scalar fields, white space; but the symbol and the
ids before the levels, bids before asks, ASCII strings, no nesting it does not know. Whatever that does not accept goes
to the *tolerant* reader, a complete JSON parser, which alone decides what is wrong with a message. So the kernels need
no error codes, and the three can never disagree about a rejected message.

Cost, on the machine of the project's scoreboard. A depthUpdate of 20 levels (735 bytes): 0.15 us by the layout reader
in a batch, 0.40 us by one call; 1.2 us by the scanner; some 40 us by the tolerant reader. One trade, aggTrade or
bookTicker: 0.34 us by one call, its row written; msgspec gives the texts of the fields in 0.3 us, and the same row by
way of msgspec takes 2.4 us. So the kernel reads the small messages too.

Promise: a message gives all its rows or none. The count returned is the only thing that makes rows valid; what a failed
scan left in `out` is garbage by agreement. Nothing is rounded, nothing guessed, nothing raised for foreign bytes: each
rejection is counted by its reason.

Worst case accepted: symbols outside ASCII (the venue lists a few) take the tolerant way, 40 times slower, unless the
message has today's layout and the symbol 16 bytes at most.

References
----------
Binance, web-socket-streams.md: Diff. Depth Stream, Trade Streams, Aggregate Trade Streams, Individual Symbol Book
Ticker Streams; rest-api.md: Order book.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import INT64_MAX, Instrument
from hftlab.core.rows import NAT, ROW, Flag, Kind, RowArray
from hftlab.kernels.jit import address_of, kernel, load, store
from hftlab.kernels.ladder import Ladders, apply_rows
from hftlab.kernels.scan import FAIL, expect, matches, scan_decimal, scan_uint, skip_scalar, skip_space, skip_string
from hftlab.kernels.words import (
    BYTES_AT,
    SIZE_AT,
    TYPE_AT,
    after,
    byte_at,
    divider,
    fixed8,
    level_at,
    point_at,
    steps,
    trailing_zeros,
    uint16,
    word,
    word_at,
)
from hftlab.venues.binance.spec import time_ns

__all__ = ["AGG_TRADE", "BOOK_TICKER", "CONTROL", "DEPTH", "MarketDecoder", "OTHER", "SHUTDOWN", "TRADE", "put_row"]

OTHER, DEPTH, TRADE, AGG_TRADE, BOOK_TICKER, CONTROL, SHUTDOWN = range(7)
"""What the last message was: `MarketDecoder.kind`."""

# columns of the symbol table, an open-addressing hash of int64 rows
_USED, _NAME, _LENGTH, _INSTRUMENT, _PX_DECIMALS, _PX_UNIT, _QTY_DECIMALS, _QTY_UNIT = 0, 1, 5, 6, 7, 8, 9, 10
_PX_DIVIDER, _QTY_DIVIDER, _DIVIDES, _BOOK = 11, 14, 17, 18
_COLUMNS = 19
_NAME_BYTES = 32

# the kernels are told source, agg and where the table and the rows are, and say what the message was; each further
# argument would cost 30 ns
_INFO_KIND, _INFO_INSTRUMENT, _INFO_FIRST, _INFO_LAST, _INFO_SOURCE, _INFO_AGG, _INFO_TABLE, _INFO_MASK = range(8)
_INFO_ROWS, _INFO_OUT, _INFO_ROOM, _INFO_BOOKS, _INFO_BYTES, _INFO_ROW = 8, 9, 10, 11, 12, 13
_NOT_MINE = -1
_BOOK_LAST, _BOOK_HEARD, _BOOK_LIVE = 0, 8, 16  # of what `MarketDecoder.follow` is given
_FACTS = 5
_LEVEL_BYTES = 27
"""The least text of a level in the documented layout: ``["1.00000000","1.00000000"]``."""

_BID, _ASK, _LAST, _SNAPSHOT = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.SNAPSHOT)
_LEVEL, _QUOTE, _CLEAR, _TRADE = int(Kind.LEVEL), int(Kind.QUOTE), int(Kind.CLEAR), int(Kind.TRADE)
_ABSENT, _ARRAY, _DECIMAL, _INTEGER = 0, 1, 2, 3
_MS_MAX = INT64_MAX // 1_000_000
_US_FROM = 100_000_000_000_000
_US_MAX = INT64_MAX // 1_000


@kernel(inline=True)
def put_row(
    out: Any, n: int, kind: int, source: int, ts_recv: int, ts_event: int, instrument: int, flags: int, code: int,
    px: int, qty: int, a: int, b: int,
) -> None:  # fmt: skip
    """Write every field of row `n`; `seq` and `span` are 0."""
    row = out[n]
    row.seq = 0
    row.source = source
    row.kind = kind
    row.span = 0
    row.ts_recv = ts_recv
    row.ts_event = ts_event
    row.instrument = instrument
    row.flags = flags
    row.code = code
    row.px = px
    row.qty = qty
    row.a = a
    row.b = b


@kernel(inline=True)
def _hash(w0: int, w1: int, w2: int, w3: int) -> int:
    h = (w0 ^ (w1 * 31) ^ (w2 * 1009) ^ (w3 * 65599)) * 0x9E3779B97F4A7C1
    return (h >> 29) & 0xFFFFFFFF


@kernel()
def _name_words(name: Any, words: Any) -> int:
    """Pack `name` into four int64 `words`; return its hash."""
    for i in range(4):
        words[i] = 0
    for i in range(len(name)):
        words[i >> 3] |= int(name[i]) << ((i & 7) * 8)
    return _hash(words[0], words[1], words[2], words[3])


@kernel(inline=True)
def _symbol(text: Any, at: int, end: int, table: Any) -> tuple[int, int]:
    """Read the quoted symbol at `at`: its row in `table`, or -1, and the position after it."""
    at = expect(text, at, end, 34)
    start = at
    w0 = w1 = w2 = w3 = 0
    while at < end:
        byte = int(text[at])
        if byte == 34:
            break
        if byte < 32 or byte == 92 or byte > 126 or at - start >= _NAME_BYTES:
            return -1, FAIL
        i = at - start
        shifted = byte << ((i & 7) * 8)
        if i < 8:
            w0 |= shifted
        elif i < 16:
            w1 |= shifted
        elif i < 24:
            w2 |= shifted
        else:
            w3 |= shifted
        at += 1
    if at >= end:
        return -1, FAIL
    mask = len(table) - 1
    slot = _hash(w0, w1, w2, w3) & mask
    while table[slot, _USED] != 0:
        if (
            table[slot, _NAME] == w0
            and table[slot, _NAME + 1] == w1
            and table[slot, _NAME + 2] == w2
            and table[slot, _NAME + 3] == w3
            and table[slot, _LENGTH] == at - start
        ):
            return slot, at + 1
        slot = (slot + 1) & mask
    return -1, FAIL


@kernel(inline=True)
def _time(stamp: int, at: int) -> tuple[int, int]:
    if stamp > _US_FROM:
        return (stamp * 1000, at) if stamp <= _US_MAX else (0, FAIL)
    return (stamp * 1_000_000, at) if stamp <= _MS_MAX else (0, FAIL)


@kernel()
def _levels(
    text: Any, at: int, end: int, table: Any, slot: int, out: Any, n: int, source: int, ts_recv: int, ts_event: int,
    flags: int, update_id: int,
) -> tuple[int, int]:  # fmt: skip
    """Read ``[["px","qty"],...]`` into LEVEL rows from `n` on: the next free row and the position after it."""
    at = expect(text, at, end, 91)
    at = skip_space(text, at, end)
    if at < end and text[at] == 93:
        return n, at + 1
    px_decimals, px_unit = table[slot, _PX_DECIMALS], table[slot, _PX_UNIT]
    qty_decimals, qty_unit = table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT]
    instrument = table[slot, _INSTRUMENT]
    room = len(out)
    while n < room:
        at = expect(text, at, end, 91)
        px, at = scan_decimal(text, at, end, px_decimals, px_unit)
        at = expect(text, at, end, 44)
        qty, at = scan_decimal(text, at, end, qty_decimals, qty_unit)
        at = expect(text, at, end, 93)
        if at >= end:
            return n, FAIL
        put_row(out, n, _LEVEL, source, ts_recv, ts_event, instrument, flags, 0, px, qty, update_id, 0)
        n += 1
        if text[at] == 44:
            at += 1
            continue
        at = skip_space(text, at, end)
        if at < end and text[at] == 93:
            return n, at + 1
        at = expect(text, at, end, 44)
    return n, FAIL


@kernel(nogil=False)
def _decode(text: Any, ts_recv: int, table: Any, out: Any, info: Any) -> int:
    """Decode one message into `out`: its number of rows, or `_NOT_MINE`; `info` gets kind, instrument, U and u."""
    at = 0
    end = len(text)
    source, agg = info[_INFO_SOURCE], info[_INFO_AGG]
    wrapped = matches(text, 0, end, b'{"stream":')
    if wrapped:
        at = skip_string(text, 10, end)
        at = expect(text, at, end, 44)
        at = skip_space(text, at, end)
        if not matches(text, at, end, b'"data"'):
            return _NOT_MINE
        at = expect(text, at + 6, end, 58)
    at = expect(text, at, end, 123)
    kind = BOOK_TICKER  # of spot the one event without an "e"
    slot = -1
    n = 0
    seen = 0
    form_a = form_b = _ABSENT
    ts_event = ts_trade = NAT
    first = final = trade_id = agg_id = -1
    px = qty = bid = ask = bid_qty = ask_qty = 0
    sells = closed = False
    while at < end:
        at = expect(text, at, end, 34)
        if at + 1 >= end:
            return _NOT_MINE
        key = int(text[at])
        if text[at + 1] != 34:
            at = expect(text, skip_string(text, at - 1, end), end, 58)
            at = skip_scalar(text, at, end)
        else:
            if key < 32 or key == 34 or key == 92 or key > 126:
                return _NOT_MINE
            if key >= 65 and key <= 122:
                bit = 1 << (key - 65)
                if seen & bit:
                    return _NOT_MINE
                seen |= bit
            at = skip_space(text, expect(text, at + 2, end, 58), end)
            if at >= end:
                return _NOT_MINE
            lead = int(text[at])
            if key == 101:  # e
                if matches(text, at, end, b'"depthUpdate"'):
                    kind, at = DEPTH, at + 13
                elif matches(text, at, end, b'"trade"'):
                    kind, at = TRADE, at + 7
                elif matches(text, at, end, b'"aggTrade"'):
                    kind, at = AGG_TRADE, at + 10
                elif not matches(text, at, end, b'"bookTicker"'):  # futures
                    return _NOT_MINE
                else:
                    at += 12
            elif key == 115:  # s
                slot, at = _symbol(text, at, end, table)
                if slot < 0:
                    return _NOT_MINE
            elif key == 69:  # E
                stamp, at = scan_uint(text, at, end)
                ts_event, at = _time(stamp, at)
            elif key == 84:  # T
                stamp, at = scan_uint(text, at, end)
                ts_trade, at = _time(stamp, at)
            elif key == 85:  # U
                first, at = scan_uint(text, at, end)
            elif key == 117:  # u
                final, at = scan_uint(text, at, end)
            elif key == 116:  # t
                trade_id, at = scan_uint(text, at, end)
            elif key == 109:  # m
                sells = lead == 116
                at = skip_scalar(text, at, end) if lead == 116 or lead == 102 else FAIL
            elif key == 98 or key == 97 or key == 112 or key == 113 or key == 66 or key == 65:  # b a p q B A
                if lead == 91:
                    if kind != DEPTH or slot < 0 or first < 0 or final < 0 or ts_event == NAT:
                        return _NOT_MINE
                    if key == 98 and form_a == _ABSENT:
                        n, at = _levels(text, at, end, table, slot, out, n, source, ts_recv, ts_event, _BID, final)
                        form_b = _ARRAY
                    elif key == 97 and form_b == _ARRAY:
                        n, at = _levels(text, at, end, table, slot, out, n, source, ts_recv, ts_event, _ASK, final)
                        form_a = _ARRAY
                    else:
                        return _NOT_MINE
                elif lead == 34:
                    if slot < 0:
                        return _NOT_MINE
                    is_px = key == 98 or key == 97 or key == 112
                    decimals = table[slot, _PX_DECIMALS] if is_px else table[slot, _QTY_DECIMALS]
                    unit = table[slot, _PX_UNIT] if is_px else table[slot, _QTY_UNIT]
                    value, at = scan_decimal(text, at, end, decimals, unit)
                    if key == 98:
                        bid, form_b = value, _DECIMAL
                    elif key == 97:
                        ask, form_a = value, _DECIMAL
                    elif key == 112:
                        px = value
                    elif key == 113:
                        qty = value
                    elif key == 66:
                        bid_qty = value
                    else:
                        ask_qty = value
                else:
                    value, at = scan_uint(text, at, end)
                    if key == 97:
                        agg_id, form_a = value, _INTEGER
                    elif key == 98:
                        form_b = _INTEGER
                    else:
                        return _NOT_MINE
            else:
                at = skip_scalar(text, at, end)
        if at < end and text[at] == 44:
            at += 1
            continue
        at = skip_space(text, at, end)
        if at < end and text[at] == 125:
            at += 1
            closed = True
            break
        at = expect(text, at, end, 44)
    if wrapped:
        at = expect(text, at, end, 125)
    if not closed or skip_space(text, at, end) != end or slot < 0:
        return _NOT_MINE
    instrument = table[slot, _INSTRUMENT]
    has_p_q_m = (seen >> 47) & 1 != 0 and (seen >> 48) & 1 != 0 and (seen >> 44) & 1 != 0
    if kind == DEPTH:
        if form_a != _ARRAY or form_b != _ARRAY or first > final:
            return _NOT_MINE
        if n > 0:
            out[n - 1].flags |= _LAST
    elif kind == BOOK_TICKER:
        if final < 0 or form_a != _DECIMAL or form_b != _DECIMAL or not (seen >> 1) & 1 or not seen & 1:
            return _NOT_MINE
        if len(out) < 2:
            return _NOT_MINE
        told_at = ts_event if (seen >> 36) & 1 else NAT
        put_row(out, 0, _QUOTE, source, ts_recv, told_at, instrument, _BID, 0, bid, bid_qty, final, 0)
        put_row(out, 1, _QUOTE, source, ts_recv, told_at, instrument, _ASK | _LAST, 0, ask, ask_qty, final, 0)
        n = 2
    else:
        if kind == AGG_TRADE:
            trade_id = agg_id
        if trade_id < 0 or not has_p_q_m or ts_trade == NAT or len(out) < 1:
            return _NOT_MINE
        if kind == TRADE or agg != 0:
            flags = _LAST | (_ASK if sells else _BID)
            put_row(out, 0, _TRADE, source, ts_recv, ts_trade, instrument, flags, 0, px, qty, trade_id, 0)
            n = 1
    info[_INFO_KIND] = kind
    info[_INFO_INSTRUMENT] = instrument
    info[_INFO_FIRST] = first
    info[_INFO_LAST] = final
    return n


# ---- the documented layout, read by address

_CLOSE, _QUOTE_BYTE, _OPEN = 93, 34, 123
_BETWEEN, _NEXT = word(b'","'), word(b'"],["')
_BETWEEN_DOT = (np.uint64(0x2E00222C22), np.uint64(0xFF00FFFFFF))  # "," and a point after any one byte
_WRAP_A, _WRAP_B, _DATA_A, _DATA_B = word(b'{"stream'), word(b'":"'), word(b'","da'), word(b'ta":{')
_DEPTH_A, _DEPTH_B, _DEPTH_C = word(b'"e":"dep'), word(b"thUpdate"), word(b'","E":')
_TRADE_A, _TRADE_B, _AGG_A, _AGG_B, _AGG_C = (
    word(b'"e":"tra'), word(b'de","E":'), word(b'"e":"agg'), word(b'Trade","'), word(b'E":'),
)  # fmt: skip
_S, _U, _FINAL, _BIDS, _ASKS = word(b',"s":"'), word(b'","U":'), word(b',"u":'), word(b',"b":['), word(b',"a":[')
_TICKER_U, _B_PX, _B_QTY, _A_PX, _A_QTY = (
    word(b'"u":'), word(b'","b":"'), word(b'","B":"'), word(b'","a":"'), word(b'","A":"'),
)  # fmt: skip
_T_ID, _A_ID, _P, _Q, _T, _M = (
    word(b'","t":'), word(b'","a":'), word(b',"p":"'), word(b'","q":"'), word(b'","T":'), word(b',"m":'),
)  # fmt: skip
_F, _L, _T_PLAIN = word(b'","f":'), word(b',"l":'), word(b',"T":')
_TRUE, _FALSE, _IGNORED = word(b"true"), word(b"false"), word(b',"M":')
_QUOTES, _ESCAPES, _SPACES = (np.uint64(byte * 0x0101010101010101) for byte in (34, 92, 32))
_EACH_1, _EACH_TOP = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_W0, _W1, _W3, _W7, _W9, _W24, _W48, _W64, _W255, _E8 = (
    np.uint64(n) for n in (0, 1, 3, 7, 9, 24, 48, 64, 255, 10**8)
)
_TABLE_BYTES = 8 * _COLUMNS


@kernel(inline=True)
def _store_row(at: int, head: int, ts_recv: int, ts_event: int, where: int, px: int, qty: int, a: int) -> None:
    """Write a row as eight words: `head` is source and kind, `where` instrument and flags."""
    store(at, head)
    store(at + 8, ts_recv)
    store(at + 16, ts_event)
    store(at + 24, where)
    store(at + 32, px)
    store(at + 40, qty)
    store(at + 48, a)
    store(at + 56, 0)


@kernel(inline=True)
def _quoted_bits(text: Any) -> Any:
    """Return 8 times the number of bytes before the first quote in a word; 64 if it holds none."""
    quotes = text ^ _QUOTES
    return trailing_zeros((quotes - _EACH_1) & ~quotes & _EACH_TOP) & ~_W7


@kernel(inline=True)
def _skip_plain(at: int, end: int) -> int:
    """Return the address of the quote that ends a string of plain ASCII; `FAIL` if something else comes first."""
    while at + 8 <= end:
        text = word_at(at)
        bits = _quoted_bits(text)
        escapes = text ^ _ESCAPES
        other = ((escapes - _EACH_1) & ~escapes) | ((text - _SPACES) & ~text) | text
        if bits < _W64:
            if other & _EACH_TOP & ((_W1 << bits) - _W1):
                return FAIL
            return at + int(np.int64(bits >> _W3))
        if other & _EACH_TOP:
            return FAIL
        at += 8
    return FAIL


@kernel(inline=True)
def _find_symbol(at: int, end: int, info: int) -> tuple[int, int]:
    """Return the address of the table row of the symbol at `at`, and that of the quote after it."""
    if at + 16 > end:
        return 0, FAIL
    low = word_at(at)
    high = _W0
    bits = _quoted_bits(low)
    if bits < _W64:
        length = int(np.int64(bits >> _W3))
        low &= (_W1 << bits) - _W1
    else:
        high = word_at(at + 8)
        bits = _quoted_bits(high)
        if bits == _W64:
            return 0, FAIL
        length = 8 + int(np.int64(bits >> _W3))
        high &= (_W1 << bits) - _W1
    w0, w1 = int(np.int64(low)), int(np.int64(high))
    table, mask = load(info + 8 * _INFO_TABLE), load(info + 8 * _INFO_MASK)
    slot = _hash(w0, w1, 0, 0) & mask
    while True:
        row = table + _TABLE_BYTES * slot
        if load(row + 8 * _USED) == 0:
            return 0, FAIL
        if load(row + 8 * _NAME) == w0 and load(row + 8 * _NAME + 8) == w1 and load(row + 8 * _LENGTH) == length:
            if load(row + 8 * _DIVIDES) == 0:
                return 0, FAIL
            return row, at + length
        slot = (slot + 1) & mask


@kernel(inline=True)
def _count(at: int, end: int, divider_at: int) -> tuple[int, int]:
    """Return the decimal at `at` as steps of a divider in the table, and the address of its closing quote."""
    value, close = fixed8(at, end)
    number, whole = steps(
        value, np.uint64(load(divider_at)), np.uint64(load(divider_at + 8)), np.uint64(load(divider_at + 16))
    )
    return number, close if whole else FAIL


@kernel(inline=True)
def _level_rows(
    at: int, end: int, row: int, out: int, out_end: int, head: int, ts_recv: int, ts_event: int, where: int, a: int
) -> tuple[int, int]:
    """Read levels from after the opening bracket: the next free row and the address after the closing one.

    A level that looks like the one before (as many digits before the point, one digit before that of the quantity) is
    read at fixed places, nothing waiting for where a point was found; everything that must hold of it is one branch.
    Another is read number by number.
    """
    if at >= end or byte_at(at) == _CLOSE:
        return out, at + 1
    if at + 2 > end or byte_at(at) != 91 or byte_at(at + 1) != _QUOTE_BYTE:
        return out, FAIL
    at += 2
    px_at, qty_at = row + 8 * _PX_DIVIDER, row + 8 * _QTY_DIVIDER
    px_inverse, px_twos, px_most = np.uint64(load(px_at)), np.uint64(load(px_at + 8)), np.uint64(load(px_at + 16))
    qty_inverse, qty_twos, qty_most = np.uint64(load(qty_at)), np.uint64(load(qty_at + 8)), np.uint64(load(qty_at + 16))
    digits = point_at(at, end)
    while out < out_end:
        close = at + digits + 9
        if close + 16 <= end:
            between = word_at(close)
            unit = ((between >> _W24) & _W255) - _W48
            raw_px, raw_qty, wrong = level_at(at, digits)
            wrong |= (between ^ _BETWEEN_DOT[0]) & _BETWEEN_DOT[1]
            px, px_whole = steps(raw_px, px_inverse, px_twos, px_most)
            qty, qty_whole = steps(raw_qty + unit * _E8, qty_inverse, qty_twos, qty_most)
            if wrong == _W0 and unit <= _W9 and px_whole and qty_whole:
                _store_row(out, head, ts_recv, ts_event, where, px, qty, a)
                out += 64
                at = after(close + 13, end, _NEXT)
                if at < FAIL:
                    continue
                return out, _side_end(close + 13)
        px, at = _count(at, end, px_at)
        at = after(at, end, _BETWEEN)
        qty, at = _count(at, end, qty_at)
        if at + 3 > end:
            return out, FAIL
        _store_row(out, head, ts_recv, ts_event, where, px, qty, a)
        out += 64
        next_at = after(at, end, _NEXT)
        if next_at == FAIL:
            return out, _side_end(at)
        at = next_at
        digits = point_at(at, end)
    return out, FAIL


@kernel(inline=True)
def _side_end(at: int) -> int:
    """Return the address after the quote and the two brackets that end a side; `FAIL` if they are not at `at`."""
    return at + 3 if byte_at(at) == _QUOTE_BYTE and byte_at(at + 1) == _CLOSE and byte_at(at + 2) == _CLOSE else FAIL


@kernel(inline=True)
def _stamp_ns(at: int, end: int) -> tuple[int, int]:
    stamp, at = uint16(at, end)
    return _time(stamp, at)


@kernel(inline=True)
def _closes(at: int, end: int, wrapped: bool) -> bool:
    """Return whether the message ends at `at` with its closing braces and nothing after them."""
    if wrapped:
        return at + 2 == end and byte_at(at) == 125 and byte_at(at + 1) == 125
    return at + 1 == end and byte_at(at) == 125


@kernel(inline=True)
def _depth_event(
    at: int, end: int, wrapped: bool, ts_recv: int, out: int, out_end: int, info: int
) -> int:
    """Decode a depthUpdate from its E on."""
    ts_event, at = _stamp_ns(at, end)
    row, at = _find_symbol(after(at, end, _S), end, info)
    first, at = uint16(after(at, end, _U), end)
    final, at = uint16(after(at, end, _FINAL), end)
    at = after(at, end, _BIDS)
    if at >= end or first > final:
        return _NOT_MINE
    head = load(info + 8 * _INFO_SOURCE) << 32 | _LEVEL << 48
    instrument = load(row + 8 * _INSTRUMENT)
    start = out
    out, at = _level_rows(at, end, row, out, out_end, head, ts_recv, ts_event, instrument | _BID << 32, final)
    at = after(at, end, _ASKS)
    out, at = _level_rows(at, end, row, out, out_end, head, ts_recv, ts_event, instrument | _ASK << 32, final)
    if not _closes(at, end, wrapped):
        return _NOT_MINE
    if out > start:
        store(out - 40, load(out - 40) | _LAST << 32)
    store(info + 8 * _INFO_ROW, row)
    _tell(info, DEPTH, instrument, first, final)
    return (out - start) >> 6


@kernel(inline=True)
def _trade_event(
    at: int, end: int, wrapped: bool, aggregate: bool, ts_recv: int, out: int, out_end: int, info: int
) -> int:
    """Decode a trade or aggTrade from its E on."""
    _, at = _stamp_ns(at, end)
    row, at = _find_symbol(after(at, end, _S), end, info)
    trade_id, at = uint16(after(at, end, _A_ID if aggregate else _T_ID), end)
    at = after(at, end, _P)
    if at >= end:
        return _NOT_MINE
    px, at = _count(at, end, row + 8 * _PX_DIVIDER)
    qty, at = _count(after(at, end, _Q), end, row + 8 * _QTY_DIVIDER)
    if aggregate:
        _, at = uint16(after(at, end, _F), end)
        _, at = uint16(after(at, end, _L), end)
        at = after(at, end, _T_PLAIN)
    else:
        at = after(at, end, _T)
    ts_event, at = _stamp_ns(at, end)
    at = after(at, end, _M)
    sells = after(at, end, _TRUE)
    buys = after(at, end, _FALSE)
    at = after(min(sells, buys), end, _IGNORED)
    if at + 4 > end or byte_at(at) != 116 or byte_at(at + 1) != 114 or byte_at(at + 2) != 117 or byte_at(at + 3) != 101:
        return _NOT_MINE
    if not _closes(at + 4, end, wrapped) or out >= out_end or (aggregate and load(info + 8 * _INFO_AGG) == 0):
        return _NOT_MINE
    instrument = load(row + 8 * _INSTRUMENT)
    head = load(info + 8 * _INFO_SOURCE) << 32 | _TRADE << 48
    flags = (_ASK if sells < FAIL else _BID) | _LAST
    _store_row(out, head, ts_recv, ts_event, instrument | flags << 32, px, qty, trade_id)
    _tell(info, AGG_TRADE if aggregate else TRADE, instrument, -1, -1)
    return 1


@kernel(inline=True)
def _ticker_event(at: int, end: int, wrapped: bool, ts_recv: int, out: int, out_end: int, info: int) -> int:
    """Decode a bookTicker from the value of u on."""
    update_id, at = uint16(at, end)
    row, at = _find_symbol(after(at, end, _S), end, info)
    at = after(at, end, _B_PX)
    if at >= end:
        return _NOT_MINE
    px_divider, qty_divider = row + 8 * _PX_DIVIDER, row + 8 * _QTY_DIVIDER
    bid, at = _count(at, end, px_divider)
    bid_qty, at = _count(after(at, end, _B_QTY), end, qty_divider)
    ask, at = _count(after(at, end, _A_PX), end, px_divider)
    ask_qty, at = _count(after(at, end, _A_QTY), end, qty_divider)
    if not _closes(at + 1, end, wrapped) or out + 64 >= out_end:
        return _NOT_MINE
    head = load(info + 8 * _INFO_SOURCE) << 32 | _QUOTE << 48
    instrument = load(row + 8 * _INSTRUMENT)
    _store_row(out, head, ts_recv, NAT, instrument | _BID << 32, bid, bid_qty, update_id)
    _store_row(out + 64, head, ts_recv, NAT, instrument | (_ASK | _LAST) << 32, ask, ask_qty, update_id)
    _tell(info, BOOK_TICKER, instrument, -1, update_id)
    return 2


@kernel(inline=True)
def _tell(info: int, kind: int, instrument: int, first: int, final: int) -> None:
    store(info + 8 * _INFO_KIND, kind)
    store(info + 8 * _INFO_INSTRUMENT, instrument)
    store(info + 8 * _INFO_FIRST, first)
    store(info + 8 * _INFO_LAST, final)


@kernel()
def _decode_at(text: int, size: int, ts_recv: int, out: int, room: int, info: int) -> int:
    """Decode the message at address `text` if it has the documented layout: its number of rows, or `_NOT_MINE`."""
    at, end, out_end = text, text + size, out + 64 * room
    stream = after(after(at, end, _WRAP_A), end, _WRAP_B)
    wrapped = stream < FAIL
    if wrapped:
        at = after(after(_skip_plain(stream, end), end, _DATA_A), end, _DATA_B)
    elif at < end and byte_at(at) == _OPEN:
        at += 1
    else:
        return _NOT_MINE
    found = after(at, end, _DEPTH_A)
    if found < FAIL:
        found = after(after(found, end, _DEPTH_B), end, _DEPTH_C)
        return _depth_event(found, end, wrapped, ts_recv, out, out_end, info)
    found = after(at, end, _TRADE_A)
    if found < FAIL:
        return _trade_event(after(found, end, _TRADE_B), end, wrapped, False, ts_recv, out, out_end, info)
    found = after(at, end, _TICKER_U)
    if found < FAIL:
        return _ticker_event(found, end, wrapped, ts_recv, out, out_end, info)
    found = after(after(after(at, end, _AGG_A), end, _AGG_B), end, _AGG_C)
    return _trade_event(found, end, wrapped, True, ts_recv, out, out_end, info)


@kernel(nogil=False)
def _decode_one(frame: int, ts_recv: int, info: int) -> int:
    """`_decode_at` of the bytes object at address `frame`; another object is not mine."""
    if load(frame + TYPE_AT) != load(info + 8 * _INFO_BYTES):
        return _NOT_MINE
    out, room = load(info + 8 * _INFO_OUT), load(info + 8 * _INFO_ROOM)
    return int(_decode_at(frame + BYTES_AT, load(frame + SIZE_AT), ts_recv, out, room, info))


@kernel(nogil=False)
def _decode_to_book(frame: int, ts_recv: int, info: int) -> int:
    """`_decode_one`, its rows then applied to the books."""
    if load(frame + TYPE_AT) != load(info + 8 * _INFO_BYTES):
        return _NOT_MINE
    out, room = load(info + 8 * _INFO_OUT), load(info + 8 * _INFO_ROOM)
    n = _decode_at(frame + BYTES_AT, load(frame + SIZE_AT), ts_recv, out, room, info)
    if n > 0:
        apply_rows(load(info + 8 * _INFO_BOOKS), out, n)
    return int(n)


@kernel(inline=True)
def _continues(book: int, first: int, last: int, now: int) -> bool:
    """Advance a live book by a delta that continues it; return whether it does: `sequence.Range`'s usual case."""
    if book == 0 or load(book + _BOOK_LIVE) == 0:
        return False
    known = load(book + _BOOK_LAST)
    if known < 0 or last <= known or first > known + 1:
        return False
    store(book + _BOOK_LAST, last)
    store(book + _BOOK_HEARD, now)
    return True


@kernel(nogil=False)
def _take(spans: int, n: int, now: int, info: int) -> int:
    """Decode messages where they lie until one is not usual or rows may run out; return how many that were.

    Usual is: of the documented layout, and if a delta, of a book that is live, which it continues.
    ``info[_INFO_ROWS]`` counts the rows.
    """
    out, room = load(info + 8 * _INFO_OUT), load(info + 8 * _INFO_ROOM)
    used = i = 0
    while i < n:
        size = load(spans + 16 * i + 8)
        if size // _LEVEL_BYTES + 2 > room - used:
            break
        got = _decode_at(load(spans + 16 * i), size, now, out + 64 * used, room - used, info)
        if got < 0:
            break
        if load(info + 8 * _INFO_KIND) == DEPTH:
            book = load(load(info + 8 * _INFO_ROW) + 8 * _BOOK)
            if not _continues(book, load(info + 8 * _INFO_FIRST), load(info + 8 * _INFO_LAST), now):
                break
        used += got
        i += 1
    store(info + 8 * _INFO_ROWS, used)
    return i


@kernel()
def _decode_many(text: int, ends: int, i: int, n: int, stamps: int, info: int, facts: int, books: int) -> int:
    """Decode messages `i` to `n` of a buffer until one is not of the documented layout or rows may run out.

    Returns the message to go on with; ``info[_INFO_ROWS]`` counts the rows so far.
    """
    out, room = load(info + 8 * _INFO_OUT), load(info + 8 * _INFO_ROOM)
    used = load(info + 8 * _INFO_ROWS)
    while i < n:
        start, stop = load(ends + 8 * i), load(ends + 8 * i + 8)
        at = used if books == 0 else 0
        if (stop - start) // _LEVEL_BYTES + 2 > room - at:
            break
        got = _decode_at(text + start, stop - start, load(stamps + 8 * i), out + 64 * at, room - at, info)
        if got < 0:
            break
        if got > 0 and books != 0:
            apply_rows(books, out, got)
        used += got
        fact = facts + 8 * _FACTS * i
        for k in range(4):
            store(fact + 8 * k, load(info + 8 * k))
        store(fact + 32, used)
        i += 1
    store(info + 8 * _INFO_ROWS, used)
    return int(i)


@kernel()
def _decode_snapshot(text: Any, end: int, table: Any, slot: int, ts_recv: int, source: int, out: Any) -> int:
    """Decode a REST book snapshot into a CLEAR and LEVEL rows: their number, or `_NOT_MINE`."""
    instrument = table[slot, _INSTRUMENT]
    at = expect(text, 0, end, 123)
    at = skip_space(text, at, end)
    if not matches(text, at, end, b'"lastUpdateId"') or len(out) < 1:
        return _NOT_MINE
    at = skip_space(text, expect(text, at + 14, end, 58), end)
    update_id, at = scan_uint(text, at, end)
    put_row(out, 0, _CLEAR, source, ts_recv, NAT, instrument, _SNAPSHOT, 0, 0, 0, update_id, 0)
    at = skip_space(text, expect(text, at, end, 44), end)
    if not matches(text, at, end, b'"bids"'):
        return _NOT_MINE
    at = expect(text, at + 6, end, 58)
    n, at = _levels(text, at, end, table, slot, out, 1, source, ts_recv, NAT, _SNAPSHOT | _BID, update_id)
    at = skip_space(text, expect(text, at, end, 44), end)
    if not matches(text, at, end, b'"asks"'):
        return _NOT_MINE
    at = expect(text, at + 6, end, 58)
    n, at = _levels(text, at, end, table, slot, out, n, source, ts_recv, NAT, _SNAPSHOT | _ASK, update_id)
    if skip_space(text, expect(text, at, end, 125), end) != end:
        return _NOT_MINE
    out[n - 1].flags |= _LAST
    return n


class _Malformed(Exception):
    """A message that is JSON but not what the venue documents."""


def _integer(event: dict[str, Any], key: str) -> int:
    value = event.get(key)
    if type(value) is not int or not 0 <= value <= INT64_MAX:
        raise _Malformed(key)
    return value


def _text(event: dict[str, Any], key: str) -> str:
    value = event.get(key)
    if type(value) is not str:
        raise _Malformed(key)
    return value


def _stamp(event: dict[str, Any], key: str) -> int:
    try:
        return time_ns(_integer(event, key))
    except ValueError as error:
        raise _Malformed(key) from error


def _pairs(event: dict[str, Any], key: str) -> list[tuple[str, str]]:
    levels = event.get(key)
    if type(levels) is not list:
        raise _Malformed(key)
    for level in levels:
        if type(level) is not list or len(level) < 2 or type(level[0]) is not str or type(level[1]) is not str:
            raise _Malformed(key)
    return [(level[0], level[1]) for level in levels]


def _check_batch(
    text: bytes | npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    ts_recv: npt.NDArray[np.int64],
    facts: npt.NDArray[np.int64],
    first: int,
) -> None:
    """Refuse what would make the kernel read or write elsewhere."""
    n = len(ends) - 1
    for name, array, shape in (("ends", ends, (n + 1,)), ("ts_recv", ts_recv, (n,)), ("facts", facts, (n, _FACTS))):
        if array.dtype != np.int64 or array.shape != shape or not array.flags.c_contiguous:
            raise ConfigError(f"{name} is {array.dtype}{array.shape}; expected contiguous int64{shape}")
    if type(text) is not bytes and (text.dtype != np.uint8 or text.ndim != 1 or not text.flags.c_contiguous):  # type: ignore[union-attr]  # bytes are excluded
        raise ConfigError("text is neither bytes nor a contiguous array of uint8")
    if not 0 <= first <= n:
        raise ConfigError(f"first={first}; expected 0 to {n}, the number of messages")
    if int(ends[0]) < 0 or int(ends[-1]) > len(text) or bool((ends[1:] < ends[:-1]).any()):
        raise ConfigError(f"ends leaves the {len(text)} bytes of text, or descends")


class MarketDecoder:
    """Turns the bytes of market data messages into rows, and counts what it refuses.

    Parameters
    ----------
    instruments : sequence of Instrument
        What may appear; their ids are written in the rows.
    source : int
        Written in every row.
    agg : bool
        Whether aggTrade gives TRADE rows (a = aggregate id). False by default: trade and aggTrade tell the same
        executions, and reading both counts them twice.

    Attributes
    ----------
    counts : dict[str, int]
        ``malformed`` not JSON or not as documented; ``truncated`` JSON that stops early; ``unknown_symbol``;
        ``off_grid`` a price or quantity that is no whole number of ticks or lots or does not fit int64; ``oversize``
        more rows than `out` has; ``fallback`` decoded by the tolerant reader; ``ignored`` valid and of no use.

    Raises
    ------
    ConfigError
        If two instruments share a symbol.

    Examples
    --------
    >>> from decimal import Decimal
    >>> from hftlab.core.rows import ROW
    >>> bnb = Instrument(0, "binance", "BNBBTC", Decimal("0.0001"), Decimal("1"))
    >>> decoder, out = MarketDecoder([bnb]), np.zeros(16384, ROW)
    >>> frame = b'{"e":"depthUpdate","E":1672515782136,"s":"BNBBTC","U":157,"u":160,"b":[["0.0024","10"]],"a":[]}'
    >>> decoder.decode(frame, 0, out), int(out[0]["px"]), int(out[0]["qty"]), int(out[0]["a"]), decoder.first
    (1, 24, 10, 160, 157)
    """

    def __init__(self, instruments: Sequence[Instrument], source: int = 1, *, agg: bool = False) -> None:
        self.instruments = {i.symbol: i for i in instruments}
        if len(self.instruments) != len(instruments):
            raise ConfigError("instruments name one symbol twice; expected each symbol once")
        self.source = source
        self.agg = agg
        self.counts = dict.fromkeys(
            ("malformed", "truncated", "unknown_symbol", "off_grid", "oversize", "fallback", "ignored"), 0
        )
        self._grids = {i.symbol: (DecimalGrid.of_px(i), DecimalGrid.of_qty(i)) for i in instruments}
        self._slots: dict[int, int] = {}
        self._table = self._build_table(instruments)
        self._info = np.array(
            [OTHER, -1, -1, -1, source, agg, address_of(self._table), len(self._table) - 1, 0, 0, 0, 0, id(bytes), 0],
            np.int64,
        )
        self._info_at = address_of(self._info)
        self._books: Ladders | None = None
        self._facts = self._info.data  # a memoryview: reading an item costs a third of NumPy's
        self._json = msgspec.json.Decoder()
        row = np.zeros(1, ROW)  # compile, or load from the cache, now and not at the first message
        self._use(row)
        self.decode(b"{}", 0, row)
        self.decode_batch(b"{}", np.array([0, 2]), np.zeros(1, np.int64), row)
        self.take(0, 0, 0, row)
        idle = b"{}"
        _decode_to_book(id(idle), 0, self._info_at)
        _decode_snapshot(b"{}", 2, self._table, 0, 0, source, row)
        put_row(row, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        self.counts = dict.fromkeys(self.counts, 0)

    @property
    def kind(self) -> int:
        """Return what the message decoded last was: one of the module's kinds."""
        return self._facts[_INFO_KIND]

    @property
    def instrument(self) -> int:
        """Return the instrument id of the message decoded last; -1 if it has none."""
        return self._facts[_INFO_INSTRUMENT]

    @property
    def first(self) -> int:
        """Return U of the depthUpdate decoded last; -1 for another message."""
        return self._facts[_INFO_FIRST]

    @property
    def last(self) -> int:
        """Return u of the depthUpdate or bookTicker decoded last; -1 for another message."""
        return self._facts[_INFO_LAST]

    def _build_table(self, instruments: Sequence[Instrument]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Lay symbols and grids out for the kernel; at most half full, so a search ends after a step or two."""
        capacity = 4
        while capacity < 2 * len(instruments) + 1:
            capacity *= 2
        table = np.zeros((capacity, _COLUMNS), np.int64)
        words = np.zeros(4, np.int64)
        for instrument in instruments:
            name = instrument.symbol.encode()
            px, qty = self._grids[instrument.symbol]
            if len(name) > _NAME_BYTES or min(name, default=0) < 33 or b'"' in name or b"\\" in name:
                continue  # the tolerant reader knows it, and may read it from an escape
            if max(px.decimals, qty.decimals) > 18 or max(px.unit, qty.unit) > INT64_MAX:
                continue
            slot = _name_words(name, words) & (capacity - 1)
            while table[slot, _USED]:
                slot = (slot + 1) & (capacity - 1)
            table[slot, : _QTY_UNIT + 1] = (
                1, *words, len(name), instrument.id, px.decimals, px.unit, qty.decimals, qty.unit,
            )  # fmt: skip
            if max(px.decimals, qty.decimals) <= 8:
                steps_1e8 = [grid.unit * 10 ** (8 - grid.decimals) for grid in (px, qty)]
                if max(steps_1e8) <= INT64_MAX:
                    dividers = np.array([divider(step) for step in steps_1e8], np.uint64)
                    table[slot, _PX_DIVIDER:_DIVIDES] = dividers.ravel().view(np.int64)
                    table[slot, _DIVIDES] = 1
            self._slots[instrument.id] = slot
        return table

    def decode(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the rows of one message to the front of `out` and return their number.

        Parameters
        ----------
        frame : bytes
            One text message, combined-stream wrapper or not. Another bytes-like object is copied, and read slower.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten; 16384 rows hold any message seen so far.

        Returns
        -------
        int
            Rows written; 0 for a message without rows (an empty depthUpdate, a response) or a rejected one.
        """
        if out is not self._out:
            self._use(out)
        n: int = _decode_one(id(frame), ts_recv, self._info_at)
        if n > 0:
            return n
        return self._settle(n, frame, ts_recv, out)

    def follow(self, instrument: int, book: int) -> None:
        """Let `take` apply the sequence rule to a book.

        Parameters
        ----------
        instrument : int
            Whose deltas. Those of a symbol that only the tolerant reader knows are never usual.
        book : int
            Address of three int64, which live as long as the decoder: the id of the last delta, when it came (ns), and
            whether the book is live. `take` reads all three and moves the first two. 0 for none: no delta of it is
            usual.
        """
        slot = self._slots.get(instrument, -1)
        if slot >= 0:
            self._table[slot, _BOOK] = book

    def take(self, spans: int, n: int, ts_recv: int, out: RowArray) -> tuple[int, int]:
        """Decode messages where they lie for as long as that is all there is to do; return how many, and the rows.

        It stops in front of a message in another layout than the documented one, of a delta that does not continue a
        live book (see `follow`), or of one whose rows may not fit. Whoever calls takes that one by `decode`. Rows of
        `out` behind those returned may be overwritten.

        Parameters
        ----------
        spans, n : int
            Address of `n` pairs of int64, and these of the messages: address and length.
        ts_recv : int
            When they were received, ns.
        out : ROW array
            Overwritten from the front.
        """
        if out is not self._out:
            self._use(out)
        done: int = _take(spans, n, ts_recv, self._info_at)
        return done, self._facts[_INFO_ROWS]

    def decode_to_book(self, frame: bytes, ts_recv: int, out: RowArray, books: Ladders) -> int:
        """Write the rows of one message to the front of `out`, apply them to `books`, and return their number.

        The caller answers for the order: a delta that does not continue its book is applied all the same.
        """
        if out is not self._out:
            self._use(out)
        if books is not self._books:
            self._books = books
            self._info[_INFO_BOOKS] = books.address
        n: int = _decode_to_book(id(frame), ts_recv, self._info_at)
        if n <= 0:
            n = self._settle(n, frame, ts_recv, out)
            books.apply(out[:n])
        return n

    def decode_batch(
        self,
        text: bytes | npt.NDArray[np.uint8],
        ends: npt.NDArray[np.int64],
        ts_recv: npt.NDArray[np.int64],
        out: RowArray,
        *,
        first: int = 0,
        facts: npt.NDArray[np.int64] | None = None,
        books: Ladders | None = None,
    ) -> tuple[int, int]:
        """Decode many messages at once; return the message to go on with and the rows written.

        Parameters
        ----------
        text : bytes or contiguous uint8 array
            Messages one after the other.
        ends : int64 array, shape (n + 1,)
            Message k is ``text[ends[k]:ends[k + 1]]``.
        ts_recv : int64 array, shape (n,)
            When each was received, ns.
        out : ROW array
            Overwritten from the front. When it may not hold the next message's rows, the call returns early; one
            message alone that it cannot hold is ``oversize``.
        first : int
            The message to begin with: where the call before returned.
        facts : int64 array, shape (n, 5), optional
            For each message done: kind, instrument, first and last update id, and the rows written up to its end.
        books : Ladders, optional
            Take each message's rows at once; `out` is then scratch, overwritten by every message, and never full.

        Raises
        ------
        ConfigError
            If `ends` leaves the text or descends, or a shape does not fit.
        """
        n = len(ends) - 1
        if facts is None:
            facts = np.empty((max(n, 0), _FACTS), np.int64)
        _check_batch(text, ends, ts_recv, facts, first)
        if out is not self._out:
            self._use(out)
        text_at = id(text) + BYTES_AT if type(text) is bytes else address_of(text)
        info, books_at = self._info, 0 if books is None else books.address
        info[_INFO_ROWS] = 0
        i = first
        while True:
            i = _decode_many(
                text_at, address_of(ends), i, n, address_of(ts_recv), self._info_at, address_of(facts), books_at
            )
            used = int(info[_INFO_ROWS])
            if i == n:
                return i, used
            frame = bytes(text[int(ends[i]) : int(ends[i + 1])])
            at = used if books is None else 0
            if at > 0 and len(frame) // _LEVEL_BYTES + 2 > len(out) - at:
                return i, used
            rows = out[at:]
            got = self._settle(_NOT_MINE, frame, int(ts_recv[i]), rows)
            if books is not None:
                books.apply(rows[:got])
            info[_INFO_ROWS] = used + got
            facts[i] = (*info[:4], used + got)
            i += 1

    def _use(self, out: RowArray) -> None:
        """Take `out` as where rows go; its address is looked up once, not a message."""
        if out.dtype != ROW or not out.flags.c_contiguous or not out.flags.writeable:
            raise ConfigError(f"out is {out.dtype}, flags {out.flags}; expected a contiguous writable array of ROW")
        self._out = out
        self._info[_INFO_OUT], self._info[_INFO_ROOM] = address_of(out), len(out)

    def _settle(self, n: int, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Finish a message of which the fast reader says that it has no rows, or that it cannot say."""
        if n == _NOT_MINE:
            frame = bytes(frame)
            n = int(_decode(frame, ts_recv, self._table, out, self._info))
            if n > 0:
                return n
            if n == _NOT_MINE:
                return self._tolerant(frame, ts_recv, out)
        if self._facts[_INFO_KIND] != DEPTH:
            self.counts["ignored"] += 1
        return 0

    def decode_snapshot(self, payload: bytes, instrument: int, ts_recv: int, out: RowArray) -> int:
        """Write a REST book snapshot as CLEAR and SNAPSHOT LEVEL rows (a = lastUpdateId); return their number.

        Parameters
        ----------
        payload : bytes
            Body of the answer to `spec.depth_path`.
        instrument : int
            Whose book it is: the payload does not say.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten.

        Returns
        -------
        int
            0 if the payload was rejected (and counted), else 1 or more.
        """
        slot = self._slots.get(instrument, -1)
        if slot >= 0:
            n: int = _decode_snapshot(payload, len(payload), self._table, slot, ts_recv, self.source, out)
            if n > 0:
                return n
        return self._guarded(payload, lambda value: self._tolerant_snapshot(value, instrument, ts_recv), out)

    def _tolerant(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        self._info[:4] = (OTHER, -1, -1, -1)
        return self._guarded(frame, lambda value: self._tolerant_event(value, ts_recv), out)

    def _guarded(self, frame: bytes, read: Callable[[Any], list[tuple[int, ...]]], out: RowArray) -> int:
        """Run `read` on the parsed message, count what it makes of it, and write its rows."""
        try:
            rows = read(self._json.decode(frame))
        except OffGridError:
            reason = "off_grid"
        except (_Malformed, RecursionError, UnicodeDecodeError):
            reason = "malformed"
        except msgspec.DecodeError as error:
            reason = "truncated" if "truncated" in str(error) else "malformed"
        except KeyError:
            reason = "unknown_symbol"
        else:
            return self._write(rows, out)
        self._info[:4] = (OTHER, -1, -1, -1)
        self.counts[reason] += 1
        return 0

    def _write(self, rows: list[tuple[int, ...]], out: RowArray) -> int:
        if len(rows) > len(out):
            self._info[:4] = (OTHER, -1, -1, -1)
            self.counts["oversize"] += 1
            return 0
        if not rows and self.kind != DEPTH:
            self.counts["ignored"] += 1
            return 0
        self.counts["fallback"] += 1
        for n, (kind, ts_recv, ts_event, instrument, flags, px, qty, a) in enumerate(rows):
            last = _LAST if n == len(rows) - 1 else 0
            put_row(out, n, kind, self.source, ts_recv, ts_event, instrument, flags | last, 0, px, qty, a, 0)
        return len(rows)

    def _tolerant_event(self, message: Any, ts_recv: int) -> list[tuple[int, ...]]:
        if type(message) is dict and "stream" in message and "data" in message:
            message = message["data"]
        if type(message) is list:
            return []  # the all-market streams
        if type(message) is not dict:
            raise _Malformed("message")
        name = message.get("e")
        if name == "depthUpdate":
            return self._depth(message, ts_recv)
        if name == "trade" or name == "aggTrade":
            return self._trade(message, name, ts_recv)
        if name == "bookTicker" or (name is None and "u" in message and "B" in message):
            return self._book_ticker(message, ts_recv)
        if name == "serverShutdown":
            self._info[_INFO_KIND] = SHUTDOWN
        elif name is None and "id" in message and ("result" in message or "error" in message or "msg" in message):
            self._info[_INFO_KIND] = CONTROL
        elif name is not None and type(name) is not str:
            raise _Malformed("e")
        return []

    def _depth(self, event: dict[str, Any], ts_recv: int) -> list[tuple[int, ...]]:
        first, last, ts_event = _integer(event, "U"), _integer(event, "u"), _stamp(event, "E")
        bids, asks = _pairs(event, "b"), _pairs(event, "a")
        symbol = _text(event, "s")
        if first > last:
            raise _Malformed("U")
        instrument = self.instruments[symbol]
        rows = self._level_rows(symbol, bids, _BID, ts_recv, ts_event, last)
        rows += self._level_rows(symbol, asks, _ASK, ts_recv, ts_event, last)
        self._info[:4] = (DEPTH, instrument.id, first, last)
        return rows

    def _trade(self, event: dict[str, Any], name: str, ts_recv: int) -> list[tuple[int, ...]]:
        trade_id = _integer(event, "t" if name == "trade" else "a")
        ts_event, sells = _stamp(event, "T"), event.get("m")
        px_text, qty_text, symbol = _text(event, "p"), _text(event, "q"), _text(event, "s")
        if type(sells) is not bool:
            raise _Malformed("m")
        instrument = self.instruments[symbol]
        px, qty = self._grids[symbol]
        values = (px.count(px_text), qty.count(qty_text), trade_id)
        self._info[:4] = (TRADE if name == "trade" else AGG_TRADE, instrument.id, -1, -1)
        if name == "aggTrade" and not self.agg:
            return []
        return [(_TRADE, ts_recv, ts_event, instrument.id, _ASK if sells else _BID, *values)]

    def _book_ticker(self, event: dict[str, Any], ts_recv: int) -> list[tuple[int, ...]]:
        update_id, symbol = _integer(event, "u"), _text(event, "s")
        bid, bid_qty, ask, ask_qty = (_text(event, key) for key in ("b", "B", "a", "A"))
        instrument = self.instruments[symbol]
        px, qty = self._grids[symbol]
        ts_event = _stamp(event, "E") if "e" in event and "E" in event else NAT
        common = (_QUOTE, ts_recv, ts_event, instrument.id)
        rows: list[tuple[int, ...]] = [
            (*common, _BID, px.count(bid), qty.count(bid_qty), update_id),
            (*common, _ASK, px.count(ask), qty.count(ask_qty), update_id),
        ]
        self._info[:4] = (BOOK_TICKER, instrument.id, -1, update_id)
        return rows

    def _tolerant_snapshot(self, message: Any, instrument: int, ts_recv: int) -> list[tuple[int, ...]]:
        if type(message) is not dict:
            raise _Malformed("message")
        update_id = _integer(message, "lastUpdateId")
        bids, asks = _pairs(message, "bids"), _pairs(message, "asks")
        symbol = next((s for s, i in self.instruments.items() if i.id == instrument), "")
        self.instruments[symbol]  # KeyError: counted as unknown_symbol
        rows: list[tuple[int, ...]] = [(_CLEAR, ts_recv, NAT, instrument, _SNAPSHOT, 0, 0, update_id)]
        rows += self._level_rows(symbol, bids, _SNAPSHOT | _BID, ts_recv, NAT, update_id)
        rows += self._level_rows(symbol, asks, _SNAPSHOT | _ASK, ts_recv, NAT, update_id)
        return rows

    def _level_rows(
        self, symbol: str, pairs: list[tuple[str, str]], flags: int, ts_recv: int, ts_event: int, update_id: int
    ) -> list[tuple[int, ...]]:
        instrument = self.instruments[symbol].id
        px, qty = self._grids[symbol]
        return [
            (_LEVEL, ts_recv, ts_event, instrument, flags, px.count(p), qty.count(q), update_id) for p, q in pairs
        ]
