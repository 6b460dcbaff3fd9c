"""Kraken spot market data: one message's bytes to rows, and the book they make, proved by the venue's checksum.

Two readers, one meaning, as for every venue: a *kernel* that walks the bytes once and accepts a strict subset of what
the venue documents, and a *tolerant* reader, a complete JSON parser, for everything else. That one alone decides what
is wrong with a message, and what it had to read is counted as ``fallback``. The kernel takes version 2's messages as
the venue writes them: no white space, ``channel, type, data`` and then ``symbol`` first; and version 1's arrays, whose
channel and pair stand at the end and are looked up there first.

The book. The checksum is over a book, so the decoder keeps one for each instrument (`kernels.checksum`). A snapshot
starts it; an update changes it level by level in the order of the message, then it is cut to the subscribed depth, and
the levels cut off leave as LEVEL rows with quantity 0: the venue sends nothing for them, and books downstream must
agree. After a book message `checksum` is what the venue says and `computed` what our book gives; whoever reads decides
(`connection`).

The text under the checksum is each level's own. Version 1 takes price and quantity as the last message about the level
wrote them, ``354.15000000`` for a pair of two decimals. Version 2 writes JSON numbers, whose last zeros may be missing:
they are taken with the decimals that the instrument channel and AssetPairs give the pair (the instrument's grid), or as
written if that is more. Nothing is learned from one message for another, so an odd one harms its own levels, no longer
than they stand in the book.

Promise: a message gives all its rows or none. Nothing is rounded, nothing guessed, nothing raised for foreign bytes:
each rejection is counted by its reason. A message that was refused and may have changed a book is `BROKEN`: that book
(all books, if it does not say which) is not to be believed any more.

What is proved how: version 1's checksum against 4,269 recorded updates. Version 2's follows the documented rule and is
proved by the documented example and by single public messages only: no recording of it was at hand.

Worst case accepted: a message with white space or an unknown field takes the tolerant way, some 20 times slower.

References
----------
Kraken: WebSocket v2 book, trade, ticker; WebSocket v1 book, trade, ticker, spread; guides "Book checksum" v1 and v2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import INT64_MAX, Instrument
from hftlab.core.rows import NAT, ROW, Flag, Kind, RowArray
from hftlab.kernels.checksum import (
    ASKS,
    BIDS,
    CRC_TABLES,
    DEPTH,
    STARTED,
    book_words,
    digest,
    drop_worst,
    level_count,
    reset_book,
    set_level,
)
from hftlab.kernels.jit import kernel
from hftlab.kernels.scan import FAIL, matches, scan_uint, skip_string
from hftlab.venues.kraken.messages import json_decoder, plain_text
from hftlab.venues.kraken.spec import DEPTHS, time_ns, v1_name

__all__ = [
    "BOOK",
    "BROKEN",
    "CHECKSUM",
    "COMPUTED",
    "CONTROL",
    "HEARTBEAT",
    "IS_SNAPSHOT",
    "KIND",
    "MarketDecoder",
    "OTHER",
    "SEVERAL",
    "STATUS",
    "TICKER",
    "TRADE",
    "WHO",
]

OTHER, BOOK, TRADE, TICKER, CONTROL, HEARTBEAT, STATUS, SEVERAL, BROKEN = range(9)
"""What the last message was: `MarketDecoder.kind`. CONTROL answers a request; SEVERAL is a book message of several
symbols, to be taken apart by `MarketDecoder.split`; BROKEN was refused and may have changed a book."""

# columns of the symbol table, an open-addressing hash of int64 rows; a length of 0 is a free row
_LENGTH, _INSTRUMENT, _PX_DECIMALS, _PX_UNIT, _QTY_DECIMALS, _QTY_UNIT, _BASE, _NAME = range(8)
_NAME_BYTES = 24
_COLUMNS = _NAME + _NAME_BYTES

# what the kernel is told, and what it says about the message
(
    KIND, WHO, _SLOT, IS_SNAPSHOT, CHECKSUM, COMPUTED, _TS, _SOURCE, _VERSION,
) = range(9)  # fmt: skip
"""Where `MarketDecoder.facts` holds what; those with an underscore are between the kernel and the decoder."""
_INFO_WORDS = 9

# one array holds it all, since each further argument costs a call 50 ns: rows of the table, where the books begin, the
# info words, the table, the books
_INFO, _TABLE = 2, 16
_NOT_MINE, _NO_ROOM = -1, -2

_BID, _ASK, _LAST, _SNAPSHOT = int(Flag.BID), int(Flag.ASK), int(Flag.LAST), int(Flag.SNAPSHOT)
_LEVEL, _QUOTE, _CLEAR, _TRADE = int(Kind.LEVEL), int(Kind.QUOTE), int(Kind.CLEAR), int(Kind.TRADE)
_SAFE_DIGITS = 18
_NS = 1_000_000_000
_YEAR_MAX = 2261  # the last whole year of int64 nanoseconds


@kernel(inline=True)
def _put(
    out: Any, n: int, kind: int, source: int, ts_recv: int, ts_event: int, instrument: int, flags: int, px: int,
    qty: int, a: int,
) -> None:  # fmt: skip
    """Write every field of row `n`; those not named are 0."""
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
    row.b = 0


# ---- scanners that the venue needs beyond kernels.scan


@kernel(inline=True)
def _after(text: Any, at: int, end: int, word: Any) -> int:
    """Return the position after `word`, which must stand at `at`."""
    return at + len(word) if matches(text, at, end, word) else FAIL


@kernel(inline=True)
def _symbol(text: Any, at: int, end: int, table: Any) -> tuple[int, int]:
    """Read a symbol from `at` up to its closing quote: its row in `table`, or -1, and the position after the quote."""
    start = at
    h = 0
    while at < end and text[at] != 34:
        h = (h * 31 + int(text[at])) & 0xFFFFFFFF
        at += 1
    length = at - start
    if at >= end or length == 0 or length > _NAME_BYTES:
        return -1, FAIL
    mask = len(table) - 1
    slot = h & mask
    while table[slot, _LENGTH] != 0:
        if table[slot, _LENGTH] == length:
            i = 0
            while i < length and table[slot, _NAME + i] == int(text[start + i]):
                i += 1
            if i == length:
                return slot, at + 1
        slot = (slot + 1) & mask
    return -1, FAIL


@kernel(inline=True)
def _number(text: Any, at: int, end: int, decimals: int, unit: int) -> tuple[int, int, int]:
    """Read an unsigned JSON number as steps of ``unit x 10**-decimals``: steps, its own decimals, position after it."""
    start = at
    value = 0
    while at < end:
        digit = int(text[at]) - 48
        if digit < 0 or digit > 9:
            break
        value = value * 10 + digit
        at += 1
    digits = at - start
    if digits == 0 or digits + decimals > _SAFE_DIGITS or (digits > 1 and text[start] == 48):
        return 0, 0, FAIL
    left = decimals
    seen = 0
    if at < end and text[at] == 46:
        at += 1
        start = at
        while at < end and left > 0:
            digit = int(text[at]) - 48
            if digit < 0 or digit > 9:
                break
            value = value * 10 + digit
            left -= 1
            at += 1
        while at < end and text[at] == 48:
            at += 1
        seen = at - start
        if seen == 0 or seen > _SAFE_DIGITS:
            return 0, 0, FAIL
    if at < end:
        byte = int(text[at])
        if (byte >= 48 and byte <= 57) or byte == 46 or byte == 101 or byte == 69:  # more digits . e E
            return 0, 0, FAIL
    while left > 0:
        value *= 10
        left -= 1
    if unit != 1:
        if value % unit != 0:
            return 0, 0, FAIL
        value //= unit
    return value, seen, at


@kernel(inline=True)
def _quoted(text: Any, at: int, end: int, decimals: int, unit: int) -> tuple[int, int, int]:
    """Read a `_number` in quotes."""
    at = _after(text, at, end, b'"')
    value, seen, at = _number(text, at, end, decimals, unit)
    if at < end and text[at] == 34:
        return value, seen, at + 1
    return 0, 0, FAIL


@kernel(inline=True)
def _pair_of_digits(text: Any, at: int, end: int) -> int:
    """Return the number in two digits; -1 if they are none."""
    if at + 2 > end:
        return -1
    tens, ones = int(text[at]) - 48, int(text[at + 1]) - 48
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return -1
    return 10 * tens + ones


@kernel(inline=True)
def _fraction_ns(text: Any, at: int, end: int) -> tuple[int, int]:
    """Read 1 to 9 digits after a point as ns: the ns and the position after them."""
    ns = 0
    digits = 0
    while at < end:
        digit = int(text[at]) - 48
        if digit < 0 or digit > 9:
            break
        ns = ns * 10 + digit
        digits += 1
        at += 1
        if digits > 9:
            return 0, FAIL
    if digits == 0:
        return 0, FAIL
    while digits < 9:
        ns *= 10
        digits += 1
    return ns, at


@kernel(inline=True)
def _days(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date of the Gregorian calendar; March begins its year, leap days end it."""
    y = year - 1 if month <= 2 else year
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@kernel(inline=True)
def _rfc3339(text: Any, at: int, end: int) -> tuple[int, int]:
    """Read a quoted ``2023-10-06T17:35:55.440295Z`` as ns since 1970, and the position after its quote."""
    at = _after(text, at, end, b'"')
    if at + 20 > end:
        return 0, FAIL
    century, of_century = _pair_of_digits(text, at, end), _pair_of_digits(text, at + 2, end)
    month, day = _pair_of_digits(text, at + 5, end), _pair_of_digits(text, at + 8, end)
    hour, minute = _pair_of_digits(text, at + 11, end), _pair_of_digits(text, at + 14, end)
    second = _pair_of_digits(text, at + 17, end)
    marks = (
        text[at + 4] == 45 and text[at + 7] == 45 and text[at + 10] == 84 and text[at + 13] == 58
        and text[at + 16] == 58
    )  # fmt: skip
    if not marks or century < 0 or of_century < 0:
        return 0, FAIL
    year = 100 * century + of_century
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    longest = 31
    if month == 2:
        longest = 29 if leap else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        longest = 30
    if year < 1970 or year > _YEAR_MAX or month < 1 or month > 12 or day < 1 or day > longest:
        return 0, FAIL
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return 0, FAIL
    ns = (_days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second) * _NS
    at += 19
    if text[at] == 46:
        fraction, at = _fraction_ns(text, at + 1, end)
        ns += fraction
    return ns, _after(text, at, end, b'Z"')


@kernel(inline=True)
def _epoch(text: Any, at: int, end: int) -> tuple[int, int]:
    """Read a quoted ``1618678133.365913`` as ns since 1970, and the position after its quote."""
    at = _after(text, at, end, b'"')
    seconds = 0
    start = at
    while at < end:
        digit = int(text[at]) - 48
        if digit < 0 or digit > 9:
            break
        seconds = seconds * 10 + digit
        at += 1
        if at - start > 10:
            return 0, FAIL
    if at == start or at >= end or seconds > 9_223_372_035:
        return 0, FAIL
    ns = seconds * _NS
    if text[at] == 46:
        fraction, at = _fraction_ns(text, at + 1, end)
        ns += fraction
    if at < end and text[at] == 34:
        return ns, at + 1
    return 0, FAIL


@kernel(inline=True)
def _skip_number(text: Any, at: int, end: int) -> int:
    """Return the position after a JSON number that is not needed, signed or not."""
    if at < end and text[at] == 45:
        at += 1
    start = at
    while at < end and text[at] >= 48 and text[at] <= 57:
        at += 1
    if at == start or at >= end or (at - start > 1 and text[start] == 48):
        return FAIL
    if text[at] == 46:
        at += 1
        start = at
        while at < end and text[at] >= 48 and text[at] <= 57:
            at += 1
        if at == start or at >= end:
            return FAIL
    return FAIL if text[at] == 101 or text[at] == 69 else at  # e E


# ---- version 2


@kernel()
def _levels_v2(
    text: Any, at: int, end: int, table: Any, slot: int, out: Any, n: int, flags: int, ts_recv: int, info: Any
) -> tuple[int, int]:
    """Read ``{"price":1.5,"qty":2.0},...]`` into LEVEL rows from `n` on: the next free row and the position after."""
    if at < end and text[at] == 93:
        return n, at + 1
    px_decimals, px_unit = table[slot, _PX_DECIMALS], table[slot, _PX_UNIT]
    qty_decimals, qty_unit = table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT]
    instrument, source = table[slot, _INSTRUMENT], info[_SOURCE]
    room = len(out)
    while n < room:
        at = _after(text, at, end, b'{"price":')
        px, px_seen, at = _number(text, at, end, px_decimals, px_unit)
        at = _after(text, at, end, b',"qty":')
        qty, qty_seen, at = _number(text, at, end, qty_decimals, qty_unit)
        at = _after(text, at, end, b"}")
        if at >= end:
            return n, FAIL
        _put(out, n, _LEVEL, source, ts_recv, NAT, instrument, flags, px, qty, px_seen | qty_seen << 8)
        n += 1
        if text[at] == 93:
            return n, at + 1
        at = _after(text, at, end, b",")
    return n, FAIL


@kernel()
def _book_v2(text: Any, at: int, table: Any, out: Any, ts_recv: int, info: Any) -> int:
    """Read the one entry of a book message's data, from after ``"data":[``: its number of rows, or `_NOT_MINE`."""
    end = len(text)
    at = _after(text, at, end, b'{"symbol":"')
    if at >= end:
        return _NOT_MINE
    slot, at = _symbol(text, at, end, table)
    if slot < 0:
        return _NOT_MINE
    flags = 0
    n = 0
    if info[IS_SNAPSHOT] != 0:
        if len(out) < 1:
            return _NOT_MINE
        flags = _SNAPSHOT
        _put(out, 0, _CLEAR, info[_SOURCE], ts_recv, NAT, table[slot, _INSTRUMENT], _SNAPSHOT, 0, 0, 0)
        n = 1
    bids = asks = False
    ts_event = NAT
    checksum = -1
    while at < end and text[at] == 44:
        at += 1
        if matches(text, at, end, b'"bids":[') and not bids:
            bids = True
            n, at = _levels_v2(text, at + 8, end, table, slot, out, n, flags | _BID, ts_recv, info)
        elif matches(text, at, end, b'"asks":[') and not asks:
            asks = True
            n, at = _levels_v2(text, at + 8, end, table, slot, out, n, flags | _ASK, ts_recv, info)
        elif matches(text, at, end, b'"checksum":') and checksum < 0:
            checksum, at = scan_uint(text, at + 11, end)
        elif matches(text, at, end, b'"timestamp":') and ts_event == NAT:
            ts_event, at = _rfc3339(text, at + 12, end)
        else:
            return _NOT_MINE
    at = _after(text, at, end, b"}]}")
    if at != end or not bids or not asks or checksum < 0 or checksum > 0xFFFFFFFF:
        return _NOT_MINE
    for i in range(n):
        out[i].ts_event = ts_event
    info[KIND] = BOOK
    info[WHO] = table[slot, _INSTRUMENT]
    info[_SLOT] = slot
    info[CHECKSUM] = checksum
    info[_TS] = ts_event
    return n


@kernel()
def _trades_v2(text: Any, at: int, table: Any, out: Any, flags: int, ts_recv: int, info: Any) -> int:
    """Read the entries of a trade message's data: their number, or `_NOT_MINE`."""
    end = len(text)
    n = 0
    slot = -1
    while n < len(out):
        at = _after(text, at, end, b'{"symbol":"')
        if at >= end:
            return _NOT_MINE
        slot, at = _symbol(text, at, end, table)
        if slot < 0:
            return _NOT_MINE
        side = _BID
        if matches(text, at, end, b',"side":"buy","price":'):
            at += 22
        elif matches(text, at, end, b',"side":"sell","price":'):
            at += 23
            side = _ASK
        else:
            return _NOT_MINE
        px, _, at = _number(text, at, end, table[slot, _PX_DECIMALS], table[slot, _PX_UNIT])
        at = _after(text, at, end, b',"qty":')
        qty, _, at = _number(text, at, end, table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT])
        at = skip_string(text, _after(text, at, end, b',"ord_type":'), end)
        trade_id, at = scan_uint(text, _after(text, at, end, b',"trade_id":'), end)
        ts_event, at = _rfc3339(text, _after(text, at, end, b',"timestamp":'), end)
        at = _after(text, at, end, b"}")
        if at >= end:
            return _NOT_MINE
        instrument = table[slot, _INSTRUMENT]
        _put(out, n, _TRADE, info[_SOURCE], ts_recv, ts_event, instrument, flags | side, px, qty, trade_id)
        n += 1
        if text[at] == 93:
            if _after(text, at, end, b"]}") != end:
                return _NOT_MINE
            out[n - 1].flags |= _LAST
            info[KIND] = TRADE
            info[WHO] = instrument
            return n
        at = _after(text, at, end, b",")
    return _NOT_MINE


@kernel()
def _ticker_v2(text: Any, at: int, table: Any, out: Any, ts_recv: int, info: Any) -> int:
    """Read the one entry of a ticker message's data: 2 rows, or `_NOT_MINE`."""
    end = len(text)
    at = _after(text, at, end, b'{"symbol":"')
    if at >= end or len(out) < 2:
        return _NOT_MINE
    slot, at = _symbol(text, at, end, table)
    if slot < 0:
        return _NOT_MINE
    px_decimals, px_unit = table[slot, _PX_DECIMALS], table[slot, _PX_UNIT]
    qty_decimals, qty_unit = table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT]
    bid, _, at = _number(text, _after(text, at, end, b',"bid":'), end, px_decimals, px_unit)
    bid_qty, _, at = _number(text, _after(text, at, end, b',"bid_qty":'), end, qty_decimals, qty_unit)
    ask, _, at = _number(text, _after(text, at, end, b',"ask":'), end, px_decimals, px_unit)
    ask_qty, _, at = _number(text, _after(text, at, end, b',"ask_qty":'), end, qty_decimals, qty_unit)
    ts_event = NAT
    keys = 0
    while at < end and text[at] == 44:
        at += 1
        if matches(text, at, end, b'"timestamp":') and ts_event == NAT:
            ts_event, at = _rfc3339(text, at + 12, end)
            continue
        for known, key in enumerate((
            b'"last":', b'"volume":', b'"vwap":', b'"low":', b'"high":', b'"change":', b'"change_pct":',
            b'"volume_usd":',
        )):  # fmt: skip
            if matches(text, at, end, key):
                if keys >> known & 1:
                    return _NOT_MINE
                keys |= 1 << known
                at = _skip_number(text, at + len(key), end)
                break
        else:
            return _NOT_MINE
    if _after(text, at, end, b"}]}") != end:
        return _NOT_MINE
    instrument = table[slot, _INSTRUMENT]
    _put(out, 0, _QUOTE, info[_SOURCE], ts_recv, ts_event, instrument, _BID, bid, bid_qty, 0)
    _put(out, 1, _QUOTE, info[_SOURCE], ts_recv, ts_event, instrument, _ASK | _LAST, ask, ask_qty, 0)
    info[KIND] = TICKER
    info[WHO] = instrument
    return 2


@kernel()
def _decode_v2(text: Any, ts_recv: int, table: Any, out: Any, info: Any) -> int:
    """Decode one message of version 2 into `out`: its number of rows, or `_NOT_MINE`."""
    end = len(text)
    if matches(text, 0, end, b'{"channel":"book","type":"update","data":['):
        info[IS_SNAPSHOT] = 0
        return _book_v2(text, 42, table, out, ts_recv, info)
    if matches(text, 0, end, b'{"channel":"book","type":"snapshot","data":['):
        info[IS_SNAPSHOT] = 1
        return _book_v2(text, 44, table, out, ts_recv, info)
    if matches(text, 0, end, b'{"channel":"trade","type":"update","data":['):
        return _trades_v2(text, 43, table, out, 0, ts_recv, info)
    if matches(text, 0, end, b'{"channel":"trade","type":"snapshot","data":['):
        return _trades_v2(text, 45, table, out, _SNAPSHOT, ts_recv, info)
    if matches(text, 0, end, b'{"channel":"ticker","type":"update","data":['):
        return _ticker_v2(text, 44, table, out, ts_recv, info)
    if matches(text, 0, end, b'{"channel":"ticker","type":"snapshot","data":['):
        return _ticker_v2(text, 46, table, out, ts_recv, info)
    if end == 23 and matches(text, 0, end, b'{"channel":"heartbeat"}'):
        info[KIND] = HEARTBEAT
        return 0
    return _NOT_MINE


# ---- version 1


@kernel()
def _levels_v1(
    text: Any, at: int, end: int, table: Any, slot: int, out: Any, n: int, flags: int, ts_recv: int, info: Any
) -> tuple[int, int]:
    """Read ``["px","qty","time"],...]``, each perhaps with an ``"r"``, into LEVEL rows from `n` on."""
    if at < end and text[at] == 93:
        return n, at + 1
    px_decimals, px_unit = table[slot, _PX_DECIMALS], table[slot, _PX_UNIT]
    qty_decimals, qty_unit = table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT]
    instrument, source = table[slot, _INSTRUMENT], info[_SOURCE]
    room = len(out)
    while n < room:
        at = _after(text, at, end, b"[")
        px, px_seen, at = _quoted(text, at, end, px_decimals, px_unit)
        at = _after(text, at, end, b",")
        qty, qty_seen, at = _quoted(text, at, end, qty_decimals, qty_unit)
        ts_event, at = _epoch(text, _after(text, at, end, b","), end)
        if at >= end:
            return n, FAIL
        if text[at] == 44:
            at = _after(text, at, end, b',"r"')
        at = _after(text, at, end, b"]")
        if at >= end:
            return n, FAIL
        _put(out, n, _LEVEL, source, ts_recv, ts_event, instrument, flags, px, qty, px_seen | qty_seen << 8)
        n += 1
        if text[at] == 93:
            return n, at + 1
        at = _after(text, at, end, b",")
    return n, FAIL


@kernel()
def _book_v1(text: Any, at: int, stop: int, table: Any, slot: int, out: Any, ts_recv: int, info: Any) -> int:
    """Read the objects of a book message up to `stop`: its number of rows, or `_NOT_MINE`."""
    instrument = table[slot, _INSTRUMENT]
    n = 0
    checksum = -1
    flags = 0
    seen = 0
    while at < stop:
        at = _after(text, at, stop, b"{")
        more = True
        while more and at < stop:
            if matches(text, at, stop, b'"as":[') and seen == 0 and len(out) > 0:
                _put(out, 0, _CLEAR, info[_SOURCE], ts_recv, NAT, instrument, _SNAPSHOT, 0, 0, 0)
                flags = _SNAPSHOT
                n, at = _levels_v1(text, at + 6, stop, table, slot, out, 1, _SNAPSHOT | _ASK, ts_recv, info)
                seen = 1
            elif matches(text, at, stop, b'"bs":[') and seen == 1:
                n, at = _levels_v1(text, at + 6, stop, table, slot, out, n, _SNAPSHOT | _BID, ts_recv, info)
                seen = 3
            elif matches(text, at, stop, b'"a":[') and seen & 5 == 0:
                n, at = _levels_v1(text, at + 5, stop, table, slot, out, n, _ASK, ts_recv, info)
                seen |= 4
            elif matches(text, at, stop, b'"b":[') and seen & 11 == 0:
                n, at = _levels_v1(text, at + 5, stop, table, slot, out, n, _BID, ts_recv, info)
                seen |= 8
            elif matches(text, at, stop, b'"c":"') and checksum < 0 and flags == 0:
                checksum, at = scan_uint(text, at + 5, stop)
                at = _after(text, at, stop, b'"')
            else:
                return _NOT_MINE
            if at >= stop:
                return _NOT_MINE
            more = text[at] == 44
            at += 1 if more else 0
        at = _after(text, at, stop, b"}")
        if at < stop:
            at = _after(text, at, stop, b",")
            if at >= stop:
                return _NOT_MINE
    if at != stop or (flags != 0 and seen != 3) or (flags == 0 and (seen < 4 or checksum < 0)):
        return _NOT_MINE
    if checksum > 0xFFFFFFFF:
        return _NOT_MINE
    info[KIND] = BOOK
    info[WHO] = instrument
    info[_SLOT] = slot
    info[IS_SNAPSHOT] = 1 if flags != 0 else 0
    info[CHECKSUM] = checksum
    info[_TS] = out[n - 1].ts_event if n > 0 else NAT
    return n


@kernel()
def _trades_v1(text: Any, at: int, stop: int, table: Any, slot: int, out: Any, ts_recv: int, info: Any) -> int:
    """Read ``[["px","qty","time","b","l",""],...]``: the number of trades, or `_NOT_MINE`."""
    instrument = table[slot, _INSTRUMENT]
    n = 0
    at = _after(text, at, stop, b"[")
    while n < len(out):
        at = _after(text, at, stop, b"[")
        px, _, at = _quoted(text, at, stop, table[slot, _PX_DECIMALS], table[slot, _PX_UNIT])
        at = _after(text, at, stop, b",")
        qty, _, at = _quoted(text, at, stop, table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT])
        ts_event, at = _epoch(text, _after(text, at, stop, b","), stop)
        side = _ASK if matches(text, at, stop, b',"s",') else _BID
        if side == _BID and not matches(text, at, stop, b',"b",'):
            return _NOT_MINE
        at = skip_string(text, at + 5, stop)
        at = skip_string(text, _after(text, at, stop, b","), stop)
        at = _after(text, at, stop, b"]")
        if at >= stop:
            return _NOT_MINE
        _put(out, n, _TRADE, info[_SOURCE], ts_recv, ts_event, instrument, side, px, qty, 0)
        n += 1
        if text[at] == 93:
            if at + 1 != stop:
                return _NOT_MINE
            out[n - 1].flags |= _LAST
            info[KIND] = TRADE
            info[WHO] = instrument
            return n
        at = _after(text, at, stop, b",")
    return _NOT_MINE


@kernel(inline=True)
def _skip_array(text: Any, at: int, end: int) -> int:
    """Return the position after an array of plain strings and numbers."""
    at = _after(text, at, end, b"[")
    while at < end:
        at = skip_string(text, at, end) if text[at] == 34 else _skip_number(text, at, end)
        if at < end and text[at] == 44:
            at += 1
            continue
        return _after(text, at, end, b"]")
    return FAIL


@kernel()
def _ticker_v1(text: Any, at: int, stop: int, table: Any, slot: int, out: Any, ts_recv: int, info: Any) -> int:
    """Read ``{"a":["px",1,"qty"],"b":["px",1,"qty"],...}``: 2 rows, or `_NOT_MINE`."""
    if len(out) < 2:
        return _NOT_MINE
    px_decimals, px_unit = table[slot, _PX_DECIMALS], table[slot, _PX_UNIT]
    qty_decimals, qty_unit = table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT]
    ask, _, at = _quoted(text, _after(text, at, stop, b'{"a":['), stop, px_decimals, px_unit)
    at = _skip_number(text, _after(text, at, stop, b","), stop)
    ask_qty, _, at = _quoted(text, _after(text, at, stop, b","), stop, qty_decimals, qty_unit)
    bid, _, at = _quoted(text, _after(text, at, stop, b'],"b":['), stop, px_decimals, px_unit)
    at = _skip_number(text, _after(text, at, stop, b","), stop)
    bid_qty, _, at = _quoted(text, _after(text, at, stop, b","), stop, qty_decimals, qty_unit)
    at = _after(text, at, stop, b"]")
    keys = 0
    while at < stop and text[at] == 44:
        if at + 4 >= stop or text[at + 1] != 34 or text[at + 3] != 34 or text[at + 4] != 58:
            return _NOT_MINE
        key = int(text[at + 2]) - 99  # c first, then v p t l h o
        if key < 0 or key > 23 or keys >> key & 1:
            return _NOT_MINE
        keys |= 1 << key
        at = _skip_array(text, at + 5, stop)
    if _after(text, at, stop, b"}") != stop:
        return _NOT_MINE
    instrument = table[slot, _INSTRUMENT]
    _put(out, 0, _QUOTE, info[_SOURCE], ts_recv, NAT, instrument, _BID, bid, bid_qty, 0)
    _put(out, 1, _QUOTE, info[_SOURCE], ts_recv, NAT, instrument, _ASK | _LAST, ask, ask_qty, 0)
    info[KIND] = TICKER
    info[WHO] = instrument
    return 2


@kernel()
def _spread_v1(text: Any, at: int, stop: int, table: Any, slot: int, out: Any, ts_recv: int, info: Any) -> int:
    """Read ``["bid","ask","time","bid qty","ask qty"]``: 2 rows, or `_NOT_MINE`."""
    if len(out) < 2:
        return _NOT_MINE
    px_decimals, px_unit = table[slot, _PX_DECIMALS], table[slot, _PX_UNIT]
    qty_decimals, qty_unit = table[slot, _QTY_DECIMALS], table[slot, _QTY_UNIT]
    bid, _, at = _quoted(text, _after(text, at, stop, b"["), stop, px_decimals, px_unit)
    ask, _, at = _quoted(text, _after(text, at, stop, b","), stop, px_decimals, px_unit)
    ts_event, at = _epoch(text, _after(text, at, stop, b","), stop)
    bid_qty, _, at = _quoted(text, _after(text, at, stop, b","), stop, qty_decimals, qty_unit)
    ask_qty, _, at = _quoted(text, _after(text, at, stop, b","), stop, qty_decimals, qty_unit)
    if _after(text, at, stop, b"]") != stop:
        return _NOT_MINE
    instrument = table[slot, _INSTRUMENT]
    _put(out, 0, _QUOTE, info[_SOURCE], ts_recv, ts_event, instrument, _BID, bid, bid_qty, 0)
    _put(out, 1, _QUOTE, info[_SOURCE], ts_recv, ts_event, instrument, _ASK | _LAST, ask, ask_qty, 0)
    info[KIND] = TICKER
    info[WHO] = instrument
    return 2


@kernel(inline=True)
def _opening_quote(text: Any, at: int) -> int:
    """Return where the string that ends before `at` begins, walking back over a name's characters; -1 if nowhere."""
    while at > 0:
        at -= 1
        byte = int(text[at])
        if byte == 34:
            return at
        if byte < 45 or byte > 122 or byte == 92:
            return -1
    return -1


@kernel()
def _decode_v1(text: Any, ts_recv: int, table: Any, out: Any, info: Any) -> int:
    """Decode one message of version 1 into `out`: its number of rows, or `_NOT_MINE`."""
    end = len(text)
    if end < 8 or text[0] != 91:
        if end == 21 and matches(text, 0, end, b'{"event":"heartbeat"}'):
            info[KIND] = HEARTBEAT
            return 0
        return _NOT_MINE
    if text[end - 1] != 93 or text[end - 2] != 34:
        return _NOT_MINE
    pair = _opening_quote(text, end - 2)
    if pair < 3 or text[pair - 1] != 44 or text[pair - 2] != 34:
        return _NOT_MINE
    name = _opening_quote(text, pair - 2)
    if name < 3 or text[name - 1] != 44:
        return _NOT_MINE
    stop = name - 1
    slot, _ = _symbol(text, pair + 1, end, table)
    if slot < 0:
        return _NOT_MINE
    _, at = scan_uint(text, 1, stop)
    at = _after(text, at, stop, b",")
    if at >= stop:
        return _NOT_MINE
    if matches(text, name, end, b'"book-'):
        return _book_v1(text, at, stop, table, slot, out, ts_recv, info)
    if matches(text, name, end, b'"trade"'):
        return _trades_v1(text, at, stop, table, slot, out, ts_recv, info)
    if matches(text, name, end, b'"ticker"'):
        return _ticker_v1(text, at, stop, table, slot, out, ts_recv, info)
    if matches(text, name, end, b'"spread"'):
        return _spread_v1(text, at, stop, table, slot, out, ts_recv, info)
    return _NOT_MINE


# ---- the book


@kernel()
def _apply(out: Any, n: int, table: Any, info: Any, books: Any, tables: Any) -> int:
    """Put a book message's `n` rows into its book: the rows with the levels cut off after them, or `_NO_ROOM`.

    Until here a LEVEL row's `a` holds how many decimals its price and its quantity were written with.
    """
    slot = info[_SLOT]
    base = table[slot, _BASE]
    if info[IS_SNAPSHOT] != 0:
        reset_book(books, base, books[base + DEPTH], table[slot, _PX_UNIT], table[slot, _QTY_UNIT])
        books[base + STARTED] = 1
    started = books[base + STARTED] != 0
    least = 0 if info[_VERSION] == 2 else -_SAFE_DIGITS
    for i in range(n):
        row = out[i]
        if row.kind == _LEVEL:
            written = np.int64(row.a)
            row.a = 0
            if started:
                px_zeros = max(least, (written & 255) - table[slot, _PX_DECIMALS])
                qty_zeros = max(least, (written >> 8) - table[slot, _QTY_DECIMALS])
                side = BIDS if row.flags & _BID else ASKS
                if not set_level(books, base, tables, side, row.px, row.qty, px_zeros, qty_zeros):
                    books[base + STARTED] = 0
                    return _NO_ROOM
    if not started:
        if n > 0:
            out[n - 1].flags |= _LAST
        return n
    depth = books[base + DEPTH]
    ts_recv = out[0].ts_recv if n > 0 else 0
    for side in range(2):
        while level_count(books, base, side) > depth:
            if n >= len(out):
                books[base + STARTED] = 0
                return _NO_ROOM
            px = drop_worst(books, base, side)
            flags = _BID if side == BIDS else _ASK
            if info[IS_SNAPSHOT] != 0:
                flags |= _SNAPSHOT
            _put(out, n, _LEVEL, info[_SOURCE], ts_recv, info[_TS], table[slot, _INSTRUMENT], flags, px, 0, 0)
            n += 1
    info[COMPUTED] = digest(books, base, tables)
    if n > 0:
        out[n - 1].flags |= _LAST
    return n


@kernel()
def _decode(text: Any, ts_recv: int, memory: Any, out: Any, tables: Any) -> int:
    """Decode one message and keep its book: its number of rows, `_NOT_MINE` or `_NO_ROOM`."""
    info = memory[_INFO : _INFO + _INFO_WORDS]
    table = memory[_TABLE : memory[1]].reshape((memory[0], _COLUMNS))
    books = memory[memory[1] :]
    info[KIND] = OTHER
    info[WHO] = -1
    info[_SLOT] = -1
    info[CHECKSUM] = -1
    info[COMPUTED] = -1
    info[IS_SNAPSHOT] = 0
    if info[_VERSION] == 2:
        n = _decode_v2(text, ts_recv, table, out, info)
    else:
        n = _decode_v1(text, ts_recv, table, out, info)
    if n >= 0 and info[KIND] == BOOK:
        return _apply(out, n, table, info, books, tables)
    return n


class _Malformed(Exception):
    """A message that is JSON but not what the venue documents."""


Fields = tuple[int, int, int, int, int, int, int]  # kind, ts_event, instrument, flags, px, qty, a


def _get(value: Any, key: str, kind: type) -> Any:
    found = value.get(key) if type(value) is dict else None
    if type(found) is not kind:
        raise _Malformed(key)
    return found


def _number_text(value: Any, key: str) -> str:
    text = plain_text(value.get(key)) if type(value) is dict else None
    if text is None:
        raise _Malformed(key)
    return text


def _strings(value: Any, n: int) -> list[str]:
    if type(value) is not list or len(value) < n or any(type(part) is not str for part in value[:n]):
        raise _Malformed("array")
    return value


def _stamp(text: Any) -> int:
    try:
        return time_ns(text)
    except (ValueError, TypeError) as error:
        raise _Malformed("timestamp") from error


def _epoch_stamp(text: str) -> int:
    whole, _, fraction = text.partition(".")
    plain = whole.isascii() and whole.isdigit() and len(whole) <= 10 and len(fraction) <= 9
    if not plain or (fraction and not (fraction.isascii() and fraction.isdigit())) or text.endswith("."):
        raise _Malformed("time")
    ns = int(whole) * _NS + int(fraction.ljust(9, "0"))
    if ns > INT64_MAX:
        raise _Malformed("time")
    return ns


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


class MarketDecoder:
    """Turns the bytes of market data messages into rows, keeps the books, and counts what it refuses.

    Parameters
    ----------
    instruments : sequence of Instrument
        What may appear, symbols as version 2 writes them; their ids are written in the rows.
    source : int
        Written in every row.
    version : int
        2, or 1 for the frozen protocol.
    depth : int
        Levels a side the books are subscribed to: 10, 25, 100, 500 or 1000.

    Attributes
    ----------
    counts : dict[str, int]
        ``malformed`` not JSON or not as documented; ``truncated`` JSON that stops early; ``unknown_symbol``;
        ``off_grid`` a price or quantity that is no whole number of ticks or lots or does not fit int64; ``oversize``
        more rows than `out` has, or more levels than the book holds; ``fallback`` decoded by the tolerant reader;
        ``ignored`` valid and of no use.
    facts : memoryview
        What the properties read, at `KIND`, `WHO` (the instrument), `IS_SNAPSHOT`, `CHECKSUM` and `COMPUTED`: for a
        caller that needs most of them for every message.

    Raises
    ------
    ConfigError
        If two instruments share a symbol, or `version` or `depth` is none the venue has.

    Examples
    --------
    >>> from decimal import Decimal
    >>> btc = Instrument(0, "kraken", "BTC/USD", Decimal("0.1"), Decimal("0.00000001"))
    >>> decoder, out = MarketDecoder([btc]), np.zeros(64, ROW)
    >>> frame = (b'{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[{"price":45283.5,'
    ...          b'"qty":0.10000000}],"asks":[{"price":45285.2,"qty":0.00100000}],"checksum":3310070434}]}')
    >>> decoder.decode(frame, 0, out), int(out[1]["px"]), int(out[1]["qty"]), decoder.checksum == decoder.computed
    (3, 452835, 10000000, False)
    """

    def __init__(
        self, instruments: Sequence[Instrument], source: int = 1, *, version: int = 2, depth: int = 10
    ) -> None:
        if version not in (1, 2):
            raise ConfigError(f"version={version}; expected 1 or 2")
        if depth not in DEPTHS:
            raise ConfigError(f"depth={depth}; the venue has {', '.join(map(str, DEPTHS))}")
        self.instruments = {i.symbol: i for i in instruments}
        if len(self.instruments) != len(instruments):
            raise ConfigError("instruments name one symbol twice; expected each symbol once")
        self.source, self.version, self.depth = source, version, depth
        self.counts = dict.fromkeys(
            ("malformed", "truncated", "unknown_symbol", "off_grid", "oversize", "fallback", "ignored"), 0
        )
        self._grids = {i.symbol: (DecimalGrid.of_px(i), DecimalGrid.of_qty(i)) for i in instruments}
        self._wire = {(i.symbol if version == 2 else v1_name(i.symbol)): i.symbol for i in instruments}
        self._slots: dict[int, int] = {}
        capacity = 4
        while capacity < 2 * len(instruments) + 1:
            capacity *= 2
        at = _TABLE + capacity * _COLUMNS
        self._memory = np.zeros(at + max(1, len(instruments)) * book_words(depth), np.int64)
        self._memory[:2] = capacity, at
        self._info = self._memory[_INFO : _INFO + _INFO_WORDS]
        self._table = self._memory[_TABLE:at].reshape(capacity, _COLUMNS)
        self._books = self._memory[at:]
        self._fill_table(instruments)
        self._info[_SOURCE], self._info[_VERSION], self._info[WHO] = source, version, -1
        self.facts = self._info.data  # a memoryview: reading an item costs a third of NumPy's
        self._json = json_decoder()
        row = np.zeros(1, ROW)  # compile, or load from the cache, now and not at the first message
        _decode(b"{}", 0, self._memory, row, CRC_TABLES)
        if instruments:
            self._info[_SLOT] = self._slots[instruments[0].id]
            _apply(row, 0, self._table, self._info, self._books, CRC_TABLES)

    @property
    def kind(self) -> int:
        """Return what the message decoded last was: one of the module's kinds."""
        return self.facts[KIND]

    @property
    def instrument(self) -> int:
        """Return the instrument id of the message decoded last; -1 if it has none."""
        return self.facts[WHO]

    @property
    def snapshot(self) -> bool:
        """Return whether the message decoded last was a book's snapshot."""
        return self.facts[KIND] == BOOK and self.facts[IS_SNAPSHOT] != 0

    @property
    def checksum(self) -> int:
        """Return the venue's checksum in the book message decoded last; -1 if it had none (v1 snapshots)."""
        return self.facts[CHECKSUM]

    @property
    def computed(self) -> int:
        """Return the checksum of our book after the book message decoded last; -1 if the book has not begun."""
        return self.facts[COMPUTED]

    @property
    def ts_event(self) -> int:
        """Return the venue's time of the book message decoded last, ns; NAT if it gave none."""
        return self.facts[_TS]

    def forget(self, instrument: int) -> None:
        """Give up a book: until its next snapshot, updates are decoded and not applied."""
        slot = self._slots.get(instrument)
        if slot is not None:
            self._books[self._table[slot, _BASE] + STARTED] = 0

    def _fill_table(self, instruments: Sequence[Instrument]) -> None:
        """Lay symbols, grids and books out for the kernel; at most half full, so a search ends after a step or two."""
        table, capacity = self._table, len(self._table)
        names = {symbol: wire.encode() for wire, symbol in self._wire.items()}
        for n, instrument in enumerate(instruments):
            px, qty = self._grids[instrument.symbol]
            name = names[instrument.symbol]
            if not 0 < len(name) <= _NAME_BYTES or not name.isascii() or b'"' in name or b"\\" in name:
                raise ConfigError(f"symbol={instrument.symbol!r}; expected up to {_NAME_BYTES} ASCII characters")
            if max(px.decimals, qty.decimals) > _SAFE_DIGITS or max(px.unit, qty.unit) > INT64_MAX:
                raise ConfigError(f"symbol={instrument.symbol!r}: tick or lot is beyond 18 decimals or int64")
            h = 0
            for byte in name:
                h = (h * 31 + byte) & 0xFFFFFFFF
            slot = h & (capacity - 1)
            while table[slot, _LENGTH]:
                slot = (slot + 1) & (capacity - 1)
            base = n * book_words(self.depth)
            table[slot, :_NAME] = (
                len(name), instrument.id, px.decimals, px.unit, qty.decimals, qty.unit, base,
            )  # fmt: skip
            table[slot, _NAME : _NAME + len(name)] = list(name)
            self._slots[instrument.id] = slot
            reset_book(self._books, base, self.depth, px.unit, qty.unit)

    def decode(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the rows of one message to the front of `out` and return their number.

        Parameters
        ----------
        frame : bytes
            One text message.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten; 16384 rows hold any message seen so far.

        Returns
        -------
        int
            Rows written; 0 for a message without rows or a rejected one.
        """
        n: int = _decode(frame, ts_recv, self._memory, out, CRC_TABLES)
        if n >= 0:
            return n
        if n == _NO_ROOM:
            return self._broken("oversize")
        return self._tolerant(frame, ts_recv, out)

    def split(self, frame: bytes) -> list[bytes]:
        """Return a message of kind SEVERAL as messages of one symbol each."""
        message = msgspec.json.decode(frame, type=_Raw)
        head = b'{"channel":"book","type":' + msgspec.json.encode(message.type) + b',"data":['
        return [head + bytes(part) + b"]}" for part in message.data]

    def _broken(self, reason: str) -> int:
        self.counts[reason] += 1
        self._info[KIND] = BROKEN
        return 0

    def _tolerant(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        info = self._info
        info[KIND], info[WHO], info[_SLOT], info[IS_SNAPSHOT] = BROKEN, -1, -1, 0
        info[CHECKSUM] = info[COMPUTED] = -1
        info[_TS] = NAT
        try:
            message = self._json.decode(frame)
            rows = self._message_v2(message) if self.version == 2 else self._message_v1(message)
        except OffGridError:
            self.counts["off_grid"] += 1
        except (_Malformed, RecursionError, UnicodeDecodeError):
            self.counts["malformed"] += 1
        except msgspec.DecodeError as error:
            self.counts["truncated" if "truncated" in str(error) else "malformed"] += 1
        except KeyError:
            self.counts["unknown_symbol"] += 1
            info[KIND] = OTHER  # no book of ours
        else:
            return self._write(rows, ts_recv, out)
        return 0

    def _write(self, rows: list[Fields], ts_recv: int, out: RowArray) -> int:
        kind = self.kind
        if len(rows) > len(out):
            self._broken("oversize")
            self._info[KIND] = BROKEN if kind == BOOK else OTHER
            return 0
        if kind == BOOK or rows:
            self.counts["fallback"] += 1
        elif kind == OTHER:
            self.counts["ignored"] += 1
        for n, (row_kind, ts_event, instrument, flags, px, qty, a) in enumerate(rows):
            _put(out, n, row_kind, self.source, ts_recv, ts_event, instrument, flags, px, qty, a)
        if kind == BOOK:
            n = int(_apply(out, len(rows), self._table, self._info, self._books, CRC_TABLES))
            return self._broken("oversize") if n < 0 else n
        if rows:
            out["flags"][len(rows) - 1] |= _LAST
        return len(rows)

    def _known(self, wire_symbol: str) -> Instrument:
        """Return the instrument of a symbol and note it as the message's; KeyError if there is none."""
        instrument = self.instruments[self._wire[wire_symbol]]
        self._info[WHO], self._info[_SLOT] = instrument.id, self._slots[instrument.id]
        return instrument

    def _level(self, instrument: Instrument, flags: int, px: str, qty: str, ts_event: int) -> Fields:
        px_grid, qty_grid = self._grids[instrument.symbol]
        if _decimals(px) > _SAFE_DIGITS or _decimals(qty) > _SAFE_DIGITS:
            raise OffGridError(f"{instrument.symbol}: {px} or {qty} has more than {_SAFE_DIGITS} decimals")
        written = _decimals(px) | _decimals(qty) << 8
        return _LEVEL, ts_event, instrument.id, flags, px_grid.count(px), qty_grid.count(qty), written

    # ---- version 2, tolerant

    def _message_v2(self, message: Any) -> list[Fields]:
        if type(message) is dict and message.get("channel") == "book":
            return self._book(message)
        self._info[KIND] = OTHER
        if type(message) is not dict:
            raise _Malformed("message")
        channel = message.get("channel")
        if channel == "trade":
            return self._trades(message)
        if channel == "ticker":
            return self._tickers(message)
        if channel == "heartbeat":
            self._info[KIND] = HEARTBEAT
        elif channel == "status":
            self._info[KIND] = STATUS
        elif channel is None and ("method" in message or "error" in message):
            self._info[KIND] = CONTROL
        elif type(channel) is not str:
            raise _Malformed("channel")
        return []

    def _book(self, message: dict[str, Any]) -> list[Fields]:
        kind, data = message.get("type"), _get(message, "data", list)
        if kind not in ("snapshot", "update") or not data:
            raise _Malformed("type")
        if len(data) > 1:
            self._info[KIND] = SEVERAL
            return []
        entry = data[0]
        instrument = self._known(_get(entry, "symbol", str))
        checksum = _get(entry, "checksum", int)
        if not 0 <= checksum < 2**32:
            raise _Malformed("checksum")
        ts_event = _stamp(entry["timestamp"]) if "timestamp" in entry else NAT
        flags = _SNAPSHOT if kind == "snapshot" else 0
        rows: list[Fields] = [(_CLEAR, ts_event, instrument.id, flags, 0, 0, 0)] if flags else []
        for key, side in (("bids", _BID), ("asks", _ASK)):
            for level in _get(entry, key, list):
                px, qty = _number_text(level, "price"), _number_text(level, "qty")
                rows.append(self._level(instrument, flags | side, px, qty, ts_event))
        info = self._info
        info[KIND], info[IS_SNAPSHOT], info[CHECKSUM], info[_TS] = BOOK, flags != 0, checksum, ts_event
        return rows

    def _trades(self, message: dict[str, Any]) -> list[Fields]:
        flags = _SNAPSHOT if message.get("type") == "snapshot" else 0
        rows: list[Fields] = []
        for trade in _get(message, "data", list):
            instrument = self._known(_get(trade, "symbol", str))
            side, trade_id = trade.get("side"), _get(trade, "trade_id", int)
            if side not in ("buy", "sell") or not 0 <= trade_id <= INT64_MAX:
                raise _Malformed("side or trade_id")
            px_grid, qty_grid = self._grids[instrument.symbol]
            px, qty = px_grid.count(_number_text(trade, "price")), qty_grid.count(_number_text(trade, "qty"))
            taker = _BID if side == "buy" else _ASK
            rows.append((_TRADE, _stamp(trade.get("timestamp")), instrument.id, flags | taker, px, qty, trade_id))
        self._info[KIND] = TRADE
        return rows

    def _tickers(self, message: dict[str, Any]) -> list[Fields]:
        rows: list[Fields] = []
        for entry in _get(message, "data", list):
            instrument = self._known(_get(entry, "symbol", str))
            px_grid, qty_grid = self._grids[instrument.symbol]
            ts_event = _stamp(entry["timestamp"]) if "timestamp" in entry else NAT
            for key, side in (("bid", _BID), ("ask", _ASK)):
                px = px_grid.count(_number_text(entry, key))
                qty = qty_grid.count(_number_text(entry, f"{key}_qty"))
                rows.append((_QUOTE, ts_event, instrument.id, side, px, qty, 0))
        self._info[KIND] = TICKER
        return rows

    # ---- version 1, tolerant

    def _message_v1(self, message: Any) -> list[Fields]:
        if type(message) is dict:
            self._info[KIND] = OTHER
            event = message.get("event")
            if event == "heartbeat":
                self._info[KIND] = HEARTBEAT
            elif event == "systemStatus":
                self._info[KIND] = STATUS
            elif event in ("subscriptionStatus", "pong", "error"):
                self._info[KIND] = CONTROL
            elif type(event) is not str:
                raise _Malformed("event")
            return []
        if type(message) is not list or len(message) < 4 or type(message[-1]) is not str:
            raise _Malformed("message")
        name, parts = message[-2], message[1:-2]
        if type(name) is not str:
            raise _Malformed("channel name")
        if name.startswith("book-"):
            return self._book_v1(message[-1], parts)
        self._info[KIND] = OTHER
        if name == "trade":
            return self._trades_v1(message[-1], parts)
        if name in ("ticker", "spread"):
            return self._quotes_v1(message[-1], name, parts)
        return []

    def _book_v1(self, pair: str, parts: list[Any]) -> list[Fields]:
        instrument = self._known(pair)
        merged: dict[str, Any] = {}
        for part in parts:
            if type(part) is not dict or not merged.keys().isdisjoint(part):
                raise _Malformed("book")
            merged |= part
        snapshot = "as" in merged or "bs" in merged
        flags = _SNAPSHOT if snapshot else 0
        keys = (("as", _ASK), ("bs", _BID)) if snapshot else (("a", _ASK), ("b", _BID))
        if not any(key in merged for key, _ in keys):
            raise _Malformed("levels")
        rows: list[Fields] = [(_CLEAR, NAT, instrument.id, flags, 0, 0, 0)] if snapshot else []
        for key in merged:  # in the order of the message
            side = dict(keys).get(key)
            if side is None:
                continue
            for level in _get(merged, key, list):
                px, qty, stamp = _strings(level, 3)[:3]
                rows.append(self._level(instrument, flags | side, px, qty, _epoch_stamp(stamp)))
        checksum = -1
        if not snapshot:
            text = _get(merged, "c", str)
            if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) < 2**32):
                raise _Malformed("c")
            checksum = int(text)
        info = self._info
        info[KIND], info[IS_SNAPSHOT], info[CHECKSUM] = BOOK, snapshot, checksum
        info[_TS] = rows[-1][1] if rows else NAT
        return rows

    def _trades_v1(self, pair: str, parts: list[Any]) -> list[Fields]:
        instrument = self._known(pair)
        px_grid, qty_grid = self._grids[instrument.symbol]
        if len(parts) != 1 or type(parts[0]) is not list:
            raise _Malformed("trades")
        rows: list[Fields] = []
        for trade in parts[0]:
            px, qty, stamp, side = _strings(trade, 4)[:4]
            if side not in ("b", "s"):
                raise _Malformed("side")
            taker = _BID if side == "b" else _ASK
            rows.append((_TRADE, _epoch_stamp(stamp), instrument.id, taker, px_grid.count(px), qty_grid.count(qty), 0))
        self._info[KIND] = TRADE
        return rows

    def _quotes_v1(self, pair: str, name: str, parts: list[Any]) -> list[Fields]:
        instrument = self._known(pair)
        px_grid, qty_grid = self._grids[instrument.symbol]
        if len(parts) != 1:
            raise _Malformed(name)
        if name == "spread":
            bid, ask, stamp, bid_qty, ask_qty = _strings(parts[0], 5)[:5]
            ts_event = _epoch_stamp(stamp)
        else:
            sides = [_get(parts[0], key, list) for key in ("b", "a")]
            (bid, bid_qty), (ask, ask_qty) = (_strings(side[::2], 2)[:2] for side in sides)
            ts_event = NAT
        self._info[KIND] = TICKER
        return [
            (_QUOTE, ts_event, instrument.id, _BID, px_grid.count(bid), qty_grid.count(bid_qty), 0),
            (_QUOTE, ts_event, instrument.id, _ASK, px_grid.count(ask), qty_grid.count(ask_qty), 0),
        ]


class _Raw(msgspec.Struct):
    type: str
    data: list[msgspec.Raw]
