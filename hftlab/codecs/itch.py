"""NASDAQ TotalView-ITCH 5.0: every message type to rows, by one loop that has no switch.

**Model.** A message is a type, a stock locate, a tracking number, a time, and fields at fixed offsets. What becomes of
it is data, not code: a *plan* of 16 integers a type says which bytes go to px, qty, a and b, and a table of 256 words a
type says which flags and code the one telling character of the message stands for (the side, the printable mark, the
trading state). The loop loads, swaps, masks and stores the same way for all 24 types. Adds and deletes alternate at
random in a real feed; a switch on them would be mispredicted every second time, and a mispredicted branch costs as much
as the whole decode of a message does here.

**Promise.** No byte outside ``[address, address + n_bytes)`` is read (what is fetched ahead is not read): each field is
loaded as the eight bytes that *end* with it, which lie inside the message because the header is 11 bytes. A message of
unknown type, of a length other than its type's, or with a character where no book can go on (a side that is neither B
nor S) is counted, noted with its offset and skipped by its framed length. A cut end is "not enough yet": what is whole
is decoded, the rest is not consumed. Each message becomes one row, or one row and one payload row.

**A wrong length.** Length framing has no mark to find again, so one damaged length leads astray all that follows in the
same buffer; in a packet that is the packet. In a file (`ItchDecoder.decode_in_step`, which `ItchFile` uses) it must not
be the day: a message whose length is not its type's is followed by its length only where that leads, be it over other
such messages, to the next place from which three messages in a row have the lengths of their types. Otherwise the
stream goes on at that place, and the bytes between are told and counted as one wrong length. Worst case accepted: a
message of known length whose bytes look like three messages, which no field of ITCH comes near, and a search of some
nanoseconds a byte.

**The rows.** ``instrument`` is the stock locate (0: the whole venue), ``ts_event`` the session's midnight in New York
plus the message's 48-bit time, px in 1/10000 (tick 0.0001), qty in shares (lot 1). ``NO_PX`` where there is no price.

=====  =========  ====================  =========  =======================  ======================  ===================
type   kind       px                    qty        a                        b                       flags, code
=====  =========  ====================  =========  =======================  ======================  ===================
A F    ADD        price                 shares     order reference          attribution (A: 0)      BID ASK; tracking
E      EXECUTE                          executed   order reference          match number            tracking
C      EXECUTE    execution price       executed   order reference          match number            NON_PRINTABLE;
                                                                                                    tracking
X      REDUCE                           cancelled  order reference                                  tracking
D      DELETE                                      order reference                                  tracking
U      REPLACE    price                 shares     original reference       new reference           tracking
P      TRADE      price                 shares     match number             order reference (0)     BID ASK; tracking
Q      TRADE      cross price           shares     match number             cross type              CROSS; tracking
Q (0)  STATUS+1                                    match number             cross type              AUCTION_EMPTY
S      STATUS+1                                    event code                                       MESSAGES_START ...
R      STATUS+1                         round lot  stock                    market category         LISTED LISTED_TEST
H      STATUS+1                                    reason                   trading state           HALTED PAUSED
                                                                                                    QUOTING TRADING
Y      STATUS+1                                    Reg SHO action                                   SHORT_SALE_FREE
                                                                                                    _RESTRICTED
L      STATUS+1                                    MPID                     participant state       PARTICIPANT
V      STATUS+1                         level 1    level 2                  level 3                 BREAKER_LEVELS
W      STATUS+1                                    breached level 1, 2, 3                           BREAKER_BREACHED
K      STATUS+1   IPO price                        release, s of the day                            RELEASE_EXPECTED
                                                                                                    RELEASE_CANCELED
J      STATUS+1   reference             extension  lower collar             upper collar            AUCTION_COLLAR
h      STATUS+1                                    market code                                      VENUE_HALTED
                                                                                                    VENUE_RESUMED
I      STATUS+1   reference             imbalance  paired shares            near price              BID ASK; IMBALANCE
N      STATUS+1                                                                                     BID ASK;
                                                                                                    RETAIL_INTEREST
O      STATUS+1   near execution price             lower collar             upper collar            PRICE_DISCOVERY
B      STATUS+1                                    match number                                     TRADE_BROKEN
=====  =========  ====================  =========  =======================  ======================  ===================

"Tracking" stands in ``code``. Text is its ASCII bytes as one number, first character highest (`text_of`). The levels
of V are index points in 1e-8 (the specification's Price (8)), no instrument's price, so they are not in px.
``STATUS+1`` has a payload row (``hftlab.core.rows.payload_bytes``) that holds the whole message as it came, so nothing
of it is lost. `fields` gives every field of the specification back by its name; the stock of a one-row message comes
from the directory, since locate and symbol are one to one for a day.

The flag of a TRADE is the aggressor. P names the resting side; since 2014-07-14 it always says B, so from then on the
aggressor is not known and the row has no side. A cross of no shares is no trade: it says that the auction ended empty.
An F whose attribution is four zero bytes reads as an A.

References
----------
Nasdaq TotalView-ITCH 5.0 (2017), sections 3 and 4; types h (operational halt) and O (direct listing with capital
raise) from its later revisions.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date as Date
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hftlab.codecs import Problem, inflated, is_packed
from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.core.instruments import Instrument, decimal_to_units, units_to_decimal
from hftlab.core.rows import CONT, NAT, NO_PX, ROW, Flag, Kind, RowArray, payload_bytes
from hftlab.core.status import Status
from hftlab.kernels.jit import address_of, copy_bytes, kernel, load, store

__all__ = [
    "Field",
    "ItchDecoder",
    "ItchFile",
    "MESSAGES",
    "Message",
    "STATE_WORDS",
    "TICK",
    "decode",
    "fields",
    "frame",
    "message_bytes",
    "message_fields",
    "plans",
    "session_date",
    "session_day",
    "session_midnight_ns",
    "text_of",
]

Int64s = npt.NDArray[np.int64]

TICK = Decimal("0.0001")
"""The unit of every price, dollars."""
_STEPS = {"price4": TICK, "price8": Decimal("0.00000001")}
_NY = "America/New_York"
_SIDE_MEANS_NOTHING = Date(2014, 7, 14)  # from then on the side of every P is B


# --- what a message holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Parameters
    ----------
    name : str
        The specification's name in snake case.
    offset, size : int
        Bytes from the type character, and how many.
    kind : str
        ``int``, ``alpha``, ``price4`` or ``price8``.
    """

    name: str
    offset: int
    size: int
    kind: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message type: its character, the specification's name, its length in bytes, its fields in order."""

    type: str
    name: str
    size: int
    fields: tuple[Field, ...]

    def field(self, name: str) -> Field:
        """Return the field of that name; KeyError if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"{self.type} has no field {name!r}")


_HEADER = "message_type:a1 stock_locate:i2 tracking_number:i2 timestamp:i6"
_KINDS = {"i": "int", "a": "alpha", "p": "price4", "P": "price8"}


def _message(kind: str, name: str, text: str) -> Message:
    found: list[Field] = []
    offset = 0
    for word in f"{_HEADER} {text}".split():
        label, _, form = word.partition(":")
        found.append(Field(label, offset, int(form[1:]), _KINDS[form[0]]))
        offset += int(form[1:])
    return Message(kind, name, offset, tuple(found))


MESSAGES: dict[str, Message] = {
    message.type: message
    for message in (
        _message("S", "System Event", "event_code:a1"),
        _message(
            "R", "Stock Directory",
            "stock:a8 market_category:a1 financial_status_indicator:a1 round_lot_size:i4 round_lots_only:a1 "
            "issue_classification:a1 issue_sub_type:a2 authenticity:a1 short_sale_threshold_indicator:a1 ipo_flag:a1 "
            "luld_reference_price_tier:a1 etp_flag:a1 etp_leverage_factor:i4 inverse_indicator:a1",
        ),
        _message("H", "Stock Trading Action", "stock:a8 trading_state:a1 reserved:a1 reason:a4"),
        _message("Y", "Reg SHO Short Sale Price Test Restricted Indicator", "stock:a8 reg_sho_action:a1"),
        _message(
            "L", "Market Participant Position",
            "mpid:a4 stock:a8 primary_market_maker:a1 market_maker_mode:a1 market_participant_state:a1",
        ),
        _message("V", "MWCB Decline Level", "level_1:P8 level_2:P8 level_3:P8"),
        _message("W", "MWCB Status", "breached_level:a1"),
        _message(
            "K", "IPO Quoting Period Update",
            "stock:a8 ipo_quotation_release_time:i4 ipo_quotation_release_qualifier:a1 ipo_price:p4",
        ),
        _message(
            "J", "LULD Auction Collar",
            "stock:a8 auction_collar_reference_price:p4 upper_auction_collar_price:p4 lower_auction_collar_price:p4 "
            "auction_collar_extension:i4",
        ),
        _message("h", "Operational Halt", "stock:a8 market_code:a1 operational_halt_action:a1"),
        _message(
            "A", "Add Order - No MPID Attribution",
            "order_reference_number:i8 buy_sell_indicator:a1 shares:i4 stock:a8 price:p4",
        ),
        _message(
            "F", "Add Order - MPID Attribution",
            "order_reference_number:i8 buy_sell_indicator:a1 shares:i4 stock:a8 price:p4 attribution:a4",
        ),
        _message("E", "Order Executed", "order_reference_number:i8 executed_shares:i4 match_number:i8"),
        _message(
            "C", "Order Executed With Price",
            "order_reference_number:i8 executed_shares:i4 match_number:i8 printable:a1 execution_price:p4",
        ),
        _message("X", "Order Cancel", "order_reference_number:i8 cancelled_shares:i4"),
        _message("D", "Order Delete", "order_reference_number:i8"),
        _message(
            "U", "Order Replace",
            "original_order_reference_number:i8 new_order_reference_number:i8 shares:i4 price:p4",
        ),
        _message(
            "P", "Trade (Non-Cross)",
            "order_reference_number:i8 buy_sell_indicator:a1 shares:i4 stock:a8 price:p4 match_number:i8",
        ),
        _message("Q", "Cross Trade", "shares:i8 stock:a8 cross_price:p4 match_number:i8 cross_type:a1"),
        _message("B", "Broken Trade", "match_number:i8"),
        _message(
            "I", "Net Order Imbalance Indicator",
            "paired_shares:i8 imbalance_shares:i8 imbalance_direction:a1 stock:a8 far_price:p4 near_price:p4 "
            "current_reference_price:p4 cross_type:a1 price_variation_indicator:a1",
        ),
        _message("N", "Retail Price Improvement Indicator", "stock:a8 interest_flag:a1"),
        _message(
            "O", "Direct Listing with Capital Raise Price Discovery",
            "stock:a8 open_eligibility_status:a1 minimum_allowable_price:p4 maximum_allowable_price:p4 "
            "near_execution_price:p4 near_execution_time:i8 lower_price_range_collar:p4 upper_price_range_collar:p4",
        ),
    )
}  # fmt: skip
"""Every message type of the feed by its character."""


# --- what becomes of it -----------------------------------------------------------------------------------------------

_LAST, _BID, _ASK = Flag.LAST, Flag.LAST | Flag.BID, Flag.LAST | Flag.ASK
_BOTH = _BID | _ASK


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the fields of one type go; `told` maps the character of field `by` to flags and code."""

    kind: Kind
    px: str = ""
    qty: str = ""
    a: str = ""
    b: str = ""
    by: str = "message_type"
    told: Mapping[str, tuple[int, int]] | None = None
    other: tuple[int, int] | None = None  # of any other character; None refuses it


def _status(status: Status, flags: int = _LAST) -> tuple[int, int]:
    return int(flags), int(status)


_SIDES = {"B": (int(_BID), 0), "S": (int(_ASK), 0)}
_PLAIN = (int(_LAST), 0)
_PLANS: dict[str, _Plan] = {
    "A": _Plan(Kind.ADD, "price", "shares", "order_reference_number", "", "buy_sell_indicator", _SIDES),
    "F": _Plan(Kind.ADD, "price", "shares", "order_reference_number", "attribution", "buy_sell_indicator", _SIDES),
    "E": _Plan(Kind.EXECUTE, "", "executed_shares", "order_reference_number", "match_number", other=_PLAIN),
    "C": _Plan(
        Kind.EXECUTE, "execution_price", "executed_shares", "order_reference_number", "match_number", "printable",
        {"N": (int(_LAST | Flag.NON_PRINTABLE), 0)}, _PLAIN,
    ),
    "X": _Plan(Kind.REDUCE, "", "cancelled_shares", "order_reference_number", other=_PLAIN),
    "D": _Plan(Kind.DELETE, "", "", "order_reference_number", other=_PLAIN),
    "U": _Plan(
        Kind.REPLACE, "price", "shares", "original_order_reference_number", "new_order_reference_number", other=_PLAIN
    ),
    "P": _Plan(
        Kind.TRADE, "price", "shares", "match_number", "order_reference_number", "buy_sell_indicator",
        {"S": (int(_BID), 0)}, _PLAIN,
    ),
    "Q": _Plan(
        Kind.TRADE, "cross_price", "shares", "match_number", "cross_type", other=(int(_LAST | Flag.CROSS), 0)
    ),
    "S": _Plan(
        Kind.STATUS, a="event_code", by="event_code",
        told={
            "O": _status(Status.MESSAGES_START), "S": _status(Status.SYSTEM_OPEN), "Q": _status(Status.MARKET_OPEN),
            "M": _status(Status.MARKET_CLOSE), "E": _status(Status.SYSTEM_CLOSE), "C": _status(Status.MESSAGES_END),
        },
        other=_status(Status.UNKNOWN),
    ),
    "R": _Plan(
        Kind.STATUS, "", "round_lot_size", "stock", "market_category", "authenticity",
        {"T": _status(Status.LISTED_TEST)}, _status(Status.LISTED),
    ),
    "H": _Plan(
        Kind.STATUS, a="reason", b="trading_state", by="trading_state",
        told={
            "H": _status(Status.HALTED), "P": _status(Status.PAUSED), "Q": _status(Status.QUOTING),
            "T": _status(Status.TRADING),
        },
        other=_status(Status.UNKNOWN),
    ),
    "Y": _Plan(
        Kind.STATUS, a="reg_sho_action", by="reg_sho_action",
        told={
            "0": _status(Status.SHORT_SALE_FREE), "1": _status(Status.SHORT_SALE_RESTRICTED),
            "2": _status(Status.SHORT_SALE_RESTRICTED),
        },
        other=_status(Status.UNKNOWN),
    ),
    "L": _Plan(Kind.STATUS, a="mpid", b="market_participant_state", other=_status(Status.PARTICIPANT)),
    "V": _Plan(Kind.STATUS, qty="level_1", a="level_2", b="level_3", other=_status(Status.BREAKER_LEVELS)),
    "W": _Plan(Kind.STATUS, a="breached_level", other=_status(Status.BREAKER_BREACHED)),
    "K": _Plan(
        Kind.STATUS, "ipo_price", a="ipo_quotation_release_time", by="ipo_quotation_release_qualifier",
        told={"A": _status(Status.RELEASE_EXPECTED), "C": _status(Status.RELEASE_CANCELED)},
        other=_status(Status.UNKNOWN),
    ),
    "J": _Plan(
        Kind.STATUS, "auction_collar_reference_price", "auction_collar_extension", "lower_auction_collar_price",
        "upper_auction_collar_price", other=_status(Status.AUCTION_COLLAR),
    ),
    "h": _Plan(
        Kind.STATUS, a="market_code", by="operational_halt_action",
        told={"H": _status(Status.VENUE_HALTED), "T": _status(Status.VENUE_RESUMED)}, other=_status(Status.UNKNOWN),
    ),
    "I": _Plan(
        Kind.STATUS, "current_reference_price", "imbalance_shares", "paired_shares", "near_price",
        "imbalance_direction", {"B": _status(Status.IMBALANCE, _BID), "S": _status(Status.IMBALANCE, _ASK)},
        _status(Status.IMBALANCE),
    ),
    "N": _Plan(
        Kind.STATUS, by="interest_flag",
        told={
            "B": _status(Status.RETAIL_INTEREST, _BID), "S": _status(Status.RETAIL_INTEREST, _ASK),
            "A": _status(Status.RETAIL_INTEREST, _BOTH),
        },
        other=_status(Status.RETAIL_INTEREST),
    ),
    "O": _Plan(
        Kind.STATUS, "near_execution_price", "", "lower_price_range_collar", "upper_price_range_collar",
        other=_status(Status.PRICE_DISCOVERY),
    ),
    "B": _Plan(Kind.STATUS, a="match_number", other=_status(Status.TRADE_BROKEN)),
}  # fmt: skip
_OLD_TRADE = {"B": (int(_ASK), 0), "S": (int(_BID), 0)}  # while P still named the resting side

# A plan's words. Byte offsets count from the frame's length field.
_SIZE, _HEAD, _A_AT, _A_MASK, _B_AT, _B_MASK, _QTY_AT, _QTY_MASK = range(0, 64, 8)
_PX_AT, _PX_MASK, _PX_NONE, _BY_AT, _TOLD, _TRACKING, _RARE = range(64, 120, 8)
_PLAN_WORDS = 16
_PAYLOAD, _CROSS = 1, 2  # what _RARE says: a payload row follows; a cross, which may be empty


@functools.cache
def plans(side_of_trade: bool = False) -> Int64s:
    """Return the tables that `decode` works by; keep the array alive while its address is in use.

    Parameters
    ----------
    side_of_trade : bool
        Whether P names the resting side (sessions before 2014-07-14).

    Returns
    -------
    int64 array, C order
        256 plans of 16 words, then 256 words of flags and code for each type, offset within the array in the plan.
    """
    table = np.zeros(256 * _PLAN_WORDS + 256 * len(MESSAGES), np.int64)
    told_at = 256 * _PLAN_WORDS
    table[: 256 * _PLAN_WORDS].reshape(256, _PLAN_WORDS)[:, _SIZE // 8] = -1
    for kind, plan in _PLANS.items():
        message = MESSAGES[kind]
        words = table[_PLAN_WORDS * ord(kind) :][:_PLAN_WORDS]

        def put(word: int, name: str, words: Int64s = words, message: Message = message) -> None:
            """Word `word` holds where to load the eight bytes that end with the field, the next one its mask."""
            words[word // 8] = 2  # harmless: read and masked away
            if name:
                field = message.field(name)
                words[word // 8] = 2 + field.offset + field.size - 8
                words[word // 8 + 1] = (1 << 8 * field.size) - 1 if field.size < 8 else -1

        has_payload = plan.kind is Kind.STATUS
        words[_SIZE // 8] = message.size
        words[_HEAD // 8] = int(plan.kind) << 48 | has_payload << 56
        put(_A_AT, plan.a)
        put(_B_AT, plan.b)
        put(_QTY_AT, plan.qty)
        put(_PX_AT, plan.px)
        words[_PX_NONE // 8] = 0 if plan.px else NO_PX
        words[_BY_AT // 8] = 2 + message.field(plan.by).offset
        words[_TOLD // 8] = 8 * told_at
        words[_TRACKING // 8] = 0 if has_payload else 0xFFFF
        words[_RARE // 8] = _PAYLOAD if has_payload else _CROSS if kind == "Q" else 0
        told = dict(_OLD_TRADE if kind == "P" and side_of_trade else plan.told or {})
        if plan.other is not None:
            table[told_at : told_at + 256] = plan.other[0] << 32 | plan.other[1] << 48
        for character, (flags, code) in told.items():
            table[told_at + ord(character)] = flags << 32 | code << 48
        told_at += 256
    words = table[_PLAN_WORDS * ord("W") :][:_PLAN_WORDS]
    words[_A_MASK // 8] = 0x0F  # the level as a number, from its digit
    table.flags.writeable = False
    return table


# --- the kernel -------------------------------------------------------------------------------------------------------

_I64 = ir.IntType(64)


def _load_be(typingctx: Any, address: Any) -> Any:
    """Return the big-endian int64 at `address`, aligned or not."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bswap(builder.load(builder.inttoptr(args[0], _I64.as_pointer()), align=1))

    return types.int64(types.int64), codegen


def _load_byte(typingctx: Any, address: Any) -> Any:
    """Return the byte at `address`, 0 to 255."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer())), _I64)

    return types.int64(types.int64), codegen


def _fetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at `address`, mapped or not."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0i8")
        to_read, keep, data = ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)
        builder.call(function, [builder.inttoptr(args[0], pointer), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


load_be: Any = intrinsic(_load_be)
load_byte: Any = intrinsic(_load_byte)
fetch: Any = intrinsic(_fetch)

_MESSAGES, _UNKNOWN, _WRONG_SIZE, _WRONG_FIELD, _BASE, _NOTED, _NEWS = range(0, 56, 8)
_NOTES = 64  # bytes: where the noted problems begin in the state
_MAX_NOTES = 64
STATE_WORDS = 8 + 4 * _MAX_NOTES
"""Length of the int64 array that `decode` counts in: messages, unknown types, wrong lengths, impossible fields, bytes
consumed, problems noted, problems and directory messages since somebody looked, 0; then 4 words a noted problem."""
_SMALLEST = 12  # bytes of the smallest message
_AHEAD = 2048  # bytes; the processor's own look-ahead ends at every page, which costs 2 ns a message
_AUCTION_EMPTY = int(Kind.STATUS) << 48 | 1 << 56
_EMPTY_TOLD = int(_LAST) << 32 | int(Status.AUCTION_EMPTY) << 48
_R = ord("R")


@kernel(inline=True)
def _note(state: int, at: int, kind: int, size: int, reason: int) -> None:
    """Count a message that was skipped, and keep where it stood while there is room to."""
    store(state + reason, load(state + reason) + 1)
    noted = load(state + _NOTED)
    if noted < _MAX_NOTES:
        place = state + _NOTES + 32 * noted
        store(place, load(state + _BASE) + at)
        store(place + 8, kind)
        store(place + 16, size)
        store(place + 24, reason)
        store(state + _NOTED, noted + 1)
        store(state + _NEWS, load(state + _NEWS) + 1)


@kernel(inline=True)
def _payload(row: int, head: int, message: int, size: int) -> None:
    """Write the payload row of `message` at `row`: its length in 4 bytes, then the message."""
    store(row, (head & ~(0xFF << 48)) | CONT << 48)
    store(row + 8, size)
    for k in range(16, 64, 8):
        store(row + k, 0)
    copy_bytes(row + 12, message, size)


@kernel()
def decode(
    address: int, n_bytes: int, rows: int, capacity: int, midnight_ns: int, ts_recv: int, plan: int, state: int
) -> tuple[int, int]:
    """Decode length-framed messages to rows until either end; return bytes consumed and rows written.

    Parameters
    ----------
    address, n_bytes : int
        The frames: a 2-byte big-endian length and so many bytes each, as in the day files and in MoldUDP64 blocks.
    rows, capacity : int
        Address of the row buffer, 64-byte rows, 8-aligned, and its length; at least 2.
    midnight_ns : int
        Start of the session's day, ns since 1970 UTC (`session_midnight_ns`).
    ts_recv : int
        When these bytes were received; ``NAT`` writes each message's own time, which is what a day file can say.
    plan, state : int
        Addresses of `plans` and of an int64 array of `STATE_WORDS`.

    Returns
    -------
    (int, int)
        Fewer bytes than `n_bytes` when `rows` is full (fewer than two rows are free) or the last message is not whole.
    """
    at = 0
    row = rows
    full = rows + 64 * (capacity - 1)
    messages = 0
    stamped = ts_recv != NAT
    while row < full and at + 2 + _SMALLEST <= n_bytes:
        p = address + at
        word = load_be(p)
        size = (word >> 48) & 0xFFFF
        if at + 2 + size > n_bytes:
            break
        kind = (word >> 40) & 0xFF
        how = plan + 8 * _PLAN_WORDS * kind
        if size != load(how + _SIZE):
            _note(state, at, kind, size, _UNKNOWN if load(how + _SIZE) < 0 else _WRONG_SIZE)
            at += 2 + size
            continue
        told = load(plan + load(how + _TOLD) + 8 * load_byte(p + load(how + _BY_AT)))
        qty = load_be(p + load(how + _QTY_AT)) & load(how + _QTY_MASK)
        if told == 0 or qty < 0:
            _note(state, at, kind, size, _WRONG_FIELD)
            at += 2 + size
            continue
        fetch(p + _AHEAD)
        ts = midnight_ns + (load_be(p + 5) & 0xFFFFFFFFFFFF)
        head = load(how + _HEAD)
        store(row, head)
        store(row + 8, ts_recv if stamped else ts)
        store(row + 16, ts)
        store(row + 24, told | ((word >> 24) & 0xFFFF) | ((word >> 8) & load(how + _TRACKING)) << 48)
        store(row + 32, (load_be(p + load(how + _PX_AT)) & load(how + _PX_MASK)) | load(how + _PX_NONE))
        store(row + 40, qty)
        store(row + 48, load_be(p + load(how + _A_AT)) & load(how + _A_MASK))
        store(row + 56, load_be(p + load(how + _B_AT)) & load(how + _B_MASK))
        rare = load(how + _RARE)
        if rare != 0:
            if rare == _CROSS and qty == 0:
                head = _AUCTION_EMPTY
                store(row, head)
                store(row + 24, _EMPTY_TOLD | ((word >> 24) & 0xFFFF))
                store(row + 32, NO_PX)
                rare = _PAYLOAD
            if rare == _PAYLOAD:
                row += 64
                _payload(row, head, p + 2, size)
                if kind == _R:
                    store(state + _NEWS, load(state + _NEWS) + 1)
        row += 64
        at += 2 + size
        messages += 1
    while n_bytes - at >= 2 and n_bytes - at < 2 + _SMALLEST:  # no known message fits: only what is to be skipped
        size = load_byte(address + at) << 8 | load_byte(address + at + 1)
        if at + 2 + size > n_bytes:
            break
        kind = load_byte(address + at + 2) if size > 0 else 0
        _note(state, at, kind, size, _UNKNOWN if load(plan + 8 * _PLAN_WORDS * kind + _SIZE) < 0 else _WRONG_SIZE)
        at += 2 + size
    store(state + _MESSAGES, load(state + _MESSAGES) + messages)
    store(state + _BASE, load(state + _BASE) + at)
    return at, (row - rows) >> 6


@kernel(inline=True)
def _is_framed(p: int, plan: int) -> bool:
    """Return whether the length at `p` is that of the type behind it."""
    size: int = load_byte(p) << 8 | load_byte(p + 1)
    return size == load(plan + 8 * _PLAN_WORDS * load_byte(p + 2) + _SIZE)  # type: ignore[no-any-return]  # intrinsics


@kernel()
def _find_step(address: int, n_bytes: int, begin: int, plan: int) -> int:
    """Return where, from `begin` on, three messages follow one another, or as many as there is room for; or -1."""
    for place in range(begin, n_bytes - 2):
        at = place
        found = 0
        while found < 3 and at + 3 <= n_bytes and _is_framed(address + at, plan):
            at += 2 + (load_byte(address + at) << 8 | load_byte(address + at + 1))
            found += 1
        if found == 3 or (found > 0 and at + 3 > n_bytes):
            return place
    return -1


@kernel()
def _steps_to(address: int, place: int) -> bool:
    """Return whether following the lengths from `address` on leads exactly to `place` bytes behind it."""
    at = 0
    while at + 2 <= place:
        at += 2 + (load_byte(address + at) << 8 | load_byte(address + at + 1))
    return at == place


# --- for people -------------------------------------------------------------------------------------------------------


def text_of(word: int) -> str:
    """Return the text that a row's `a` or `b` holds as a number, without padding.

    Examples
    --------
    >>> text_of(int.from_bytes(b"AAPL    ", "big")), text_of(0)
    ('AAPL', '')
    """
    return int(word).to_bytes(8, "big").strip(b"\0 ").decode("latin-1")


def session_midnight_ns(day: Date) -> int:
    """Return midnight in New York at the start of `day`, ns since 1970 UTC: what ITCH times count from.

    Raises
    ------
    ConfigError
        If this system has no time zone data.

    Examples
    --------
    >>> session_midnight_ns(Date(2023, 8, 22)) == 1_692_676_800 * 10**9
    True
    """
    return int(datetime(day.year, day.month, day.day, tzinfo=_new_york()).timestamp()) * 10**9


def session_day(ts_ns: int) -> Date:
    """Return the date in New York at `ts_ns`, ns since 1970 UTC, wherever this machine stands.

    Raises
    ------
    ConfigError
        If this system has no time zone data.

    Examples
    --------
    >>> session_day(session_midnight_ns(Date(2023, 8, 22))), session_day(session_midnight_ns(Date(2023, 8, 22)) - 1)
    (datetime.date(2023, 8, 22), datetime.date(2023, 8, 21))
    """
    return datetime.fromtimestamp(ts_ns // 10**9, _new_york()).date()


def _new_york() -> ZoneInfo:
    try:
        return ZoneInfo(_NY)
    except ZoneInfoNotFoundError as error:
        raise ConfigError(f"this system has no time zone data for {_NY}; install the package tzdata") from error


_NAMED = re.compile(r"(?:(\d{2})(\d{2})(\d{4})\.(?:NASDAQ|BX|PSX)_ITCH)|(?:S(\d{2})(\d{2})(\d{2})-v5)", re.IGNORECASE)


def session_date(name: str) -> Date | None:
    """Return the date that a published file's name tells, None if it tells none.

    Examples
    --------
    >>> session_date("01302019.NASDAQ_ITCH50.gz"), session_date("S071321-v50.txt.gz"), session_date("day.itch")
    (datetime.date(2019, 1, 30), datetime.date(2021, 7, 13), None)
    """
    found = _NAMED.search(name)
    if found is None:
        return None
    month, day, year, short_month, short_day, short_year = found.groups()
    try:
        return Date(int(year), int(month), int(day)) if year else Date(
            2000 + int(short_year), int(short_month), int(short_day)
        )
    except ValueError:  # digits that are no date
        return None


def _shown(field: Field, raw: bytes) -> int | str | Decimal:
    if field.kind == "alpha":
        text = raw.decode("latin-1")
        return text.rstrip(" ") if field.size > 1 else text
    value = int.from_bytes(raw, "big")
    step = _STEPS.get(field.kind)
    return value if step is None else units_to_decimal(value, step).normalize() + 0  # 1E+2 becomes 100


def message_fields(message: bytes) -> dict[str, int | str | Decimal]:
    """Return every field of one message by the specification's name.

    Parameters
    ----------
    message : bytes
        Without the length before it.

    Returns
    -------
    dict
        Integers as int, text as str without its padding (single characters as they are), prices as exact Decimal.

    Raises
    ------
    ProtocolError
        If the type is unknown or the length is not its type's.

    Examples
    --------
    >>> message_fields(b"S" + bytes(4) + (34_200 * 10**9).to_bytes(6, "big") + b"Q")["event_code"]
    'Q'
    """
    known = MESSAGES.get(message[:1].decode("latin-1"))
    if known is None:
        raise ProtocolError(f"message type {message[:1]!r} is not of TotalView-ITCH 5.0")
    if len(message) != known.size:
        raise ProtocolError(f"{known.name} ({known.type}) is {len(message)} bytes; expected {known.size}")
    return {field.name: _shown(field, message[field.offset :][: field.size]) for field in known.fields}


def message_bytes(values: Mapping[str, int | str | Decimal]) -> bytes:
    """Return the message that `message_fields` would read as `values`: for servers, replays and tests.

    A field that is not given is 0, or spaces.

    Raises
    ------
    ProtocolError
        If the type is unknown, a name is not one of its fields, or a value does not fit.
    OffGridError
        If a price has more decimals than the format.

    Examples
    --------
    >>> message_fields(message_bytes({"message_type": "W", "breached_level": "2"}))["breached_level"]
    '2'
    """
    known = MESSAGES.get(str(values.get("message_type", "")))
    if known is None:
        raise ProtocolError(f"message_type is {values.get('message_type')!r}; expected one of {', '.join(MESSAGES)}")
    if strange := set(values) - {field.name for field in known.fields}:
        raise ProtocolError(f"{known.name} ({known.type}) has no field {', '.join(sorted(strange))}")
    return b"".join(_packed(field, values.get(field.name)) for field in known.fields)


def _packed(field: Field, value: int | str | Decimal | None) -> bytes:
    if field.kind == "alpha":
        raw = str(value or "").encode("latin-1", "replace").ljust(field.size)
        if len(raw) > field.size:
            raise ProtocolError(f"{field.name}={value!r} does not fit {field.size} bytes")
        return raw
    step = _STEPS.get(field.kind)
    count = int(value or 0) if step is None else decimal_to_units(value or 0, step, field.name)
    if not 0 <= count < 1 << 8 * field.size:
        raise ProtocolError(f"{field.name}={value} does not fit {field.size} bytes")
    return count.to_bytes(field.size, "big")


def frame(messages: Iterable[bytes]) -> bytes:
    """Return `messages` in one buffer as `decode` reads it: each behind its length, 2 bytes, big-endian.

    Examples
    --------
    >>> frame([b"ab", b"c"])
    b'\\x00\\x02ab\\x00\\x01c'
    """
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


_ONE_ROW = {
    (Kind.ADD, False): "A", (Kind.ADD, True): "F", (Kind.EXECUTE, False): "E", (Kind.EXECUTE, True): "C",
    (Kind.REDUCE, False): "X", (Kind.DELETE, False): "D", (Kind.REPLACE, False): "U",
    (Kind.TRADE, False): "P", (Kind.TRADE, True): "Q",
}  # fmt: skip


def _type_of(row: Any) -> str:
    kind, flags = Kind(int(row["kind"])), int(row["flags"])
    variant = (
        (kind is Kind.ADD and int(row["b"]) != 0)
        or (kind is Kind.EXECUTE and int(row["px"]) != NO_PX)
        or (kind is Kind.TRADE and bool(flags & Flag.CROSS))
    )
    if (kind, variant) not in _ONE_ROW:
        raise ProtocolError(f"a row of kind {kind.name} is not the start of an ITCH message")
    return _ONE_ROW[kind, variant]


def fields(
    rows: RowArray, stocks: Mapping[int, str] | None = None, midnight_ns: int | None = None
) -> dict[str, int | str | Decimal | None]:
    """Return every field of the message that `rows` came from, by the specification's name: the inverse of `decode`.

    Parameters
    ----------
    rows : ROW array
        The row of the message and its payload row, if it has one; what follows is not looked at.
    stocks : mapping, optional
        Symbol by stock locate (``ItchDecoder.stocks``); without it the stock of a one-row message is None.
    midnight_ns : int, optional
        What times count from; by default midnight in New York before the row.

    Raises
    ------
    ProtocolError
        If `rows` does not begin with a row that ITCH messages become.

    Examples
    --------
    >>> decoder = ItchDecoder(Date(2023, 8, 22))
    >>> rows, _ = decoder.decode(frame([message_bytes({"message_type": "D", "order_reference_number": 7})]))
    >>> fields(rows)["order_reference_number"]
    7
    """
    row = rows[0]
    if int(row["kind"]) == Kind.STATUS:
        if int(row["span"]) != 1 or len(rows) < 2:
            raise ProtocolError("a STATUS row of ITCH has one payload row; pass both")
        return dict(message_fields(payload_bytes(rows[1:2])))
    kind = _type_of(row)
    plan, message = _PLANS[kind], MESSAGES[kind]
    at_ns = int(row["ts_event"])
    if midnight_ns is None:
        midnight_ns = session_midnight_ns(datetime.fromtimestamp(at_ns // 10**9, ZoneInfo(_NY)).date())
    locate, flags = int(row["instrument"]), int(row["flags"])
    found: dict[str, int | str | Decimal | None] = {
        "message_type": kind,
        "stock_locate": locate,
        "tracking_number": int(row["code"]),
        "timestamp": at_ns - midnight_ns,
    }
    places = {plan.px: row["px"], plan.qty: row["qty"], plan.a: row["a"], plan.b: row["b"]}
    for field in message.fields[4:]:
        if field.name in places:
            raw = int(places[field.name]).to_bytes(8, "big")[8 - field.size :]
            found[field.name] = _shown(field, raw)
        elif field.name == "stock":
            found[field.name] = None if stocks is None else stocks.get(locate)
        elif field.name == "printable":
            found[field.name] = "N" if flags & Flag.NON_PRINTABLE else "Y"
        elif kind == "P":
            found[field.name] = "S" if flags & Flag.BID else "B"
        else:
            found[field.name] = "B" if flags & Flag.BID else "S"
    return found


class ItchDecoder:
    """Turns the bytes of one session into rows, in a buffer that is used again.

    Parameters
    ----------
    day : datetime.date
        The session's date in New York.
    capacity : int
        Rows a call may write; 2,048 of them stay in a core's second-level cache.

    Attributes
    ----------
    stocks : dict
        Symbols by stock locate, as far as the directory has been seen.
    problems : list of Problem
        The first 10,000 messages that were skipped, by their offset in all that was decoded; at most 64 of one call are
        told, all are counted.

    Raises
    ------
    ConfigError
        If `capacity` is less than 2.

    Examples
    --------
    >>> decoder = ItchDecoder(Date(2023, 8, 22))
    >>> rows, at = decoder.decode(frame([message_bytes({"message_type": "X", "cancelled_shares": 100})]) + b"\\0")
    >>> int(rows["qty"][0]), at, decoder.messages
    (100, 25, 1)
    """

    def __init__(self, day: Date, *, capacity: int = 2048) -> None:
        if capacity < 2:
            raise ConfigError(f"capacity={capacity}; expected 2 or more: a message can be two rows")
        self.day = day
        self.midnight_ns = session_midnight_ns(day)
        self.problems: list[Problem] = []
        self.stocks: dict[int, str] = {}
        self._plan = plans(day < _SIDE_MEANS_NOTHING)
        self._rows = np.zeros(capacity, ROW)
        self._state = np.zeros(STATE_WORDS, np.int64)
        self._to = address_of(self._rows), capacity
        self._by = address_of(self._plan), address_of(self._state)
        self._words = self._state.data  # an item of it is read in half the time
        self._instruments: dict[int, Instrument] = {}
        self._astray = -1  # offset from which on no message has been found yet
        self._step_at = -1  # offset at which messages are known to begin again

    def decode(
        self, data: bytes | bytearray | memoryview | npt.NDArray[np.uint8], at: int = 0, ts_recv: int = NAT
    ) -> tuple[RowArray, int]:
        """Return the rows of the messages from `at` on, as many as fit, and the position after the last.

        Parameters
        ----------
        data : bytes-like
            Length-framed messages.
        at : int
            Where to begin.
        ts_recv : int
            When `data` was received, ns since 1970 UTC; not given, each message's own time is written.

        Returns
        -------
        (ROW array, int)
            A view of this decoder's buffer: the next call overwrites it. No row and the position unchanged means that
            what is left is not a whole message.

        Raises
        ------
        ConfigError
            If `at` lies outside `data`.
        """
        view = np.frombuffer(data, np.uint8)
        if not 0 <= at <= len(view):
            raise ConfigError(f"at={at}; expected 0 to {len(view)}, the length of the data")
        used, n = self.decode_at(address_of(view) + at, len(view) - at, ts_recv)
        return self._rows[:n], at + used

    def decode_at(self, address: int, n_bytes: int, ts_recv: int = NAT) -> tuple[int, int]:
        """Decode `n_bytes` at `address` into `rows`; return bytes consumed and rows written. See `decode`."""
        return self._looked(*decode(address, n_bytes, *self._to, self.midnight_ns, ts_recv, *self._by))

    def decode_in_step(self, address: int, n_bytes: int, is_end: bool, ts_recv: int = NAT) -> tuple[int, int]:
        """Decode `n_bytes` at `address` as `decode_at`, and step over what a wrong length leads into.

        Parameters
        ----------
        address, n_bytes : int
            What comes next of one stream. Give more when nothing was consumed.
        is_end : bool
            Nothing follows in the stream.
        ts_recv : int
            As `decode`.

        Returns
        -------
        (int, int)
            Bytes consumed and rows written, either of which may be 0 alone; both are when what is left is cut, or has
            to be seen together with what follows.
        """
        before = self._state[:8].copy()
        while True:
            used, n = decode(address, n_bytes, *self._to, self.midnight_ns, ts_recv, *self._by)
            grown = self._state[:8] - before
            if not grown[_UNKNOWN // 8] and not grown[_WRONG_SIZE // 8] and self._astray < 0:
                if used or n or not is_end or n_bytes < 3 or self._is_in_step(address):
                    return self._looked(used, n)
                wrong = 0
            else:
                wrong = self._first_wrong(int(before[_BASE // 8])) if self._astray < 0 else 0
            self._state[:8] = before
            if not wrong:
                return self._step_over(address, n_bytes, is_end, ts_recv)
            n_bytes, is_end = wrong if wrong > 0 else n_bytes // 2, False  # what stands before it is sound

    def _looked(self, used: int, n: int) -> tuple[int, int]:
        if self._words[_NEWS // 8]:
            self._look(self._rows[:n])
        return used, n

    def _is_in_step(self, address: int) -> bool:
        return bool(_find_step(address, 3, 0, self._by[0]) == 0)

    def _first_wrong(self, base: int) -> int:
        """Return where the first message of a length not its own stands, as noted by the last call; -1 if not noted."""
        notes = self._state[_NOTES // 8 :].reshape(-1, 4)[: int(self._state[_NOTED // 8])]
        wrong = notes[notes[:, 3] != _WRONG_FIELD]
        return int(wrong[0, 0]) - base if len(wrong) else -1

    def _step_over(self, address: int, n_bytes: int, is_end: bool, ts_recv: int) -> tuple[int, int]:
        """Step on from a message whose length is not its type's, or from within what it led into."""
        base = int(self._state[_BASE // 8])
        found = self._step_at - base
        if not 0 < found < n_bytes:
            found = int(_find_step(address, n_bytes, 1 if self._astray < 0 else 0, self._by[0]))
            if found < 0 and not is_end and n_bytes <= _LONGEST + _CHAIN:
                return 0, 0
        self._step_at = base + found if found > 0 else -1
        place = found if found >= 0 else n_bytes if is_end else n_bytes - 2
        if self._astray < 0 and (found >= 0 or is_end) and _steps_to(address, place):
            size = 2 + int.from_bytes(ctypes.string_at(address, 2), "big")
            return self._looked(*decode(address, size, *self._to, self.midnight_ns, ts_recv, *self._by))
        start = self._astray if self._astray >= 0 else base
        self._astray = start if found < 0 and not is_end else -1
        self._state[_BASE // 8] += place
        if self._astray < 0:
            self._state[_WRONG_SIZE // 8] += 1
            if len(self.problems) < _MAX_PROBLEMS:
                after = "messages begin again" if found >= 0 else "the stream ends, with no message before"
                self.problems.append(
                    Problem(start, f"the length here is wrong; {base + place - start} bytes on, {after}")
                )
        return place, 0

    @property
    def rows(self) -> RowArray:
        """Return the whole row buffer, whatever the last call wrote of it."""
        return self._rows

    @property
    def messages(self) -> int:
        """Return how many messages became rows."""
        return int(self._state[_MESSAGES // 8])

    @property
    def skipped(self) -> dict[str, int]:
        """Return how many messages did not become rows, by reason."""
        return {reason: int(self._state[word // 8]) for word, (reason, _) in _REASONS.items()}

    @property
    def instruments(self) -> dict[int, Instrument]:
        """Return the instruments by stock locate, which is their id, as far as the directory has been seen."""
        for locate, symbol in self.stocks.items() if len(self._instruments) < len(self.stocks) else ():
            self._instruments[locate] = Instrument(locate, "nasdaq", symbol, TICK, Decimal(1), symbol, "USD")
        return dict(self._instruments)

    def fields(self, rows: RowArray) -> dict[str, int | str | Decimal | None]:
        """Return the fields of the message at the start of `rows`; see `fields`."""
        return fields(rows, self.stocks, self.midnight_ns)

    def _look(self, rows: RowArray) -> None:
        """Take over the problems noted and the symbols listed by the last call."""
        self._state[_NEWS // 8] = 0
        notes = self._state[_NOTES // 8 :].reshape(-1, 4)[: int(self._state[_NOTED // 8])]
        for offset, kind, size, reason in notes.tolist():
            if len(self.problems) < _MAX_PROBLEMS:
                self.problems.append(Problem(offset, _REASONS[reason][1].format(type=chr(kind), size=size)))
        self._state[_NOTED // 8] = 0
        listed = (rows["kind"] == Kind.STATUS) & np.isin(rows["code"], (Status.LISTED, Status.LISTED_TEST))
        symbols = map(text_of, rows["a"][listed].tolist())
        self.stocks.update(zip(rows["instrument"][listed].tolist(), symbols, strict=True))


_MAX_PROBLEMS = 10_000  # kept in a decoder's list; all are counted
_REASONS = {
    _UNKNOWN: ("unknown_type", "unknown message type {type!r}, {size} bytes"),
    _WRONG_SIZE: ("wrong_length", "message type {type!r} of {size} bytes, which is not its length"),
    _WRONG_FIELD: ("impossible_field", "message type {type!r} with an impossible side or share count"),
}


# --- day files --------------------------------------------------------------------------------------------------------

_WINDOW = 32 << 20  # bytes mapped at a time: reading a day of 10 GB must not count as 10 GB of memory
_INFLATED = 1 << 20
_LONGEST = 2 + 0xFFFF
_CHAIN = 3 * 54  # bytes of the longest three messages


class ItchFile:
    """A day file, plain, gzip or Zstandard: iterate it for blocks of rows, in bounded memory.

    Each block is a view of one buffer, overwritten by the next. A file that ends in the middle of a message gives
    everything before it, and then `cut` is the offset of that message. The file must not shrink while it is read (it is
    memory-mapped, a window at a time).

    Parameters
    ----------
    path : Path or str
        Length-framed messages; gzip and Zstandard are recognised by content.
    day : datetime.date, optional
        The session's date; by default what the file's name says.
    capacity : int
        Rows a block, at most.

    Attributes
    ----------
    decoder : ItchDecoder
        Of the present iteration: its counts, problems and instruments.
    cut : int or None
        Offset (in the inflated stream) of the message that the end of the file cuts.
    position, size : int
        Bytes of the file used so far, and in all.

    Raises
    ------
    ConfigError
        If there is no such file, or neither `day` nor the name tells the date.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "08222023.NASDAQ_ITCH50")
    ...     _ = path.write_bytes(frame([message_bytes({"message_type": "D"})] * 3) + b"\\0\\x13D")
    ...     day = ItchFile(path)
    ...     sum(len(rows) for rows in day), day.cut
    (3, 63)
    """

    def __init__(self, path: Path | str, day: Date | None = None, *, capacity: int = 2048) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"{self.path} is not a file")
        found = day if day is not None else session_date(self.path.name)
        if found is None:
            raise ConfigError(f"the name {self.path.name} does not tell the session's date; pass it as day")
        self.day = found
        self.capacity = capacity
        self.size = self.path.stat().st_size
        self.position = 0
        self.cut: int | None = None
        self.decoder = ItchDecoder(found, capacity=capacity)

    def __iter__(self) -> Iterator[RowArray]:
        self.decoder, self.cut, self.position = ItchDecoder(self.day, capacity=self.capacity), None, 0
        with self.path.open("rb") as file:
            packed = is_packed(file.read(4))
            file.seek(0)
            yield from self._unpacked(file) if packed else self._mapped(file)

    def _blocks(self, address: int, n_bytes: int, is_end: bool) -> Iterator[tuple[RowArray, int]]:
        """Yield the rows of a piece of memory, and how many bytes of it are used."""
        at = 0
        while True:
            used, n = self.decoder.decode_in_step(address + at, n_bytes - at, is_end)
            at += used
            if not used and not n:
                return
            yield self.decoder.rows[:n], at

    def _mapped(self, file: BinaryIO) -> Iterator[RowArray]:
        while self.position < self.size:
            start = self.position - self.position % mmap.ALLOCATIONGRANULARITY
            length = min(_WINDOW, self.size - start)
            with mmap.mmap(file.fileno(), length, offset=start, access=mmap.ACCESS_READ) as window:
                if hasattr(mmap, "MADV_SEQUENTIAL"):
                    window.madvise(mmap.MADV_SEQUENTIAL)
                view = np.frombuffer(window, np.uint8)
                address, first = address_of(view), self.position
                del view  # the mapping closes at the end of this block, and nothing else holds it
                is_end = start + length == self.size
                for rows, used in self._blocks(address + first - start, length - (first - start), is_end):
                    self.position = first + used
                    if len(rows):
                        yield rows
            if self.position == first or (start + length == self.size and self.position < self.size):
                self.cut = self.position
                return

    def _unpacked(self, file: BinaryIO) -> Iterator[RowArray]:
        buffer = np.empty(_INFLATED + 2 * _LONGEST, np.uint8)
        held = done = 0  # bytes in the buffer not yet consumed, and bytes of the stream before them
        pieces: Iterator[bytes | None] = itertools.chain(
            inflated(file, _INFLATED, self.decoder.problems.append), (None,)
        )
        for piece in pieces:
            self.position = file.tell()
            if piece is not None:
                buffer[held : held + len(piece)] = np.frombuffer(piece, np.uint8)
                held += len(piece)
            used = 0
            for rows, used in self._blocks(address_of(buffer), held, piece is None):  # noqa: B007 - the last is needed
                if len(rows):
                    yield rows
            buffer[: held - used] = buffer[used:held].copy()
            held -= used
            done += used
        if held:
            self.cut = done
