"""Text eight bytes at a time: digits, decimals and known words by address.

Model. A little-endian machine that loads eight bytes of text holds eight characters, the first in the lowest byte.
Eight ASCII digits become a number with three multiplications (pairs, fours, the whole), whether all eight are digits is
one addition and a mask, and a known piece of text is one comparison. So a price such as ``61837.63000000`` costs two
loads instead of fourteen steps of a loop, and a message in its documented layout is compared, not parsed.

A decimal is read as a whole number of 1e-8, the finest step that crypto venues print, and then divided by the
instrument's step *exactly*: for an odd divisor d, ``v * d**-1 mod 2**64`` is the quotient if d divides v, and above
``(2**64 - 1) // d`` if not; powers of two go by a rotation. One multiplication answers both how many steps and whether
it is a whole number of them; nothing is rounded.

Promise. No byte outside ``[at, end)`` is read: every load is guarded by a comparison that is never wrong about where
the text ends, and always predicted right. Failure is a position, `hftlab.kernels.scan.FAIL`, as for the scanners there;
these accept less than those do (8 decimals, at most 7 digits before the point, 16 digits in an integer), never more, so
a caller tries them first and the scanners after.

References
----------
D. Lemire, "Quickly parsing eight digits"; H. S. Warren, "Hacker's Delight", 10-17 (test for zero remainder).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hftlab.kernels.jit import kernel
from hftlab.kernels.scan import FAIL

__all__ = [
    "BYTES_AT",
    "SIZE_AT",
    "TYPE_AT",
    "after",
    "byte_at",
    "divider",
    "fixed8",
    "level_at",
    "point_at",
    "steps",
    "trailing_zeros",
    "uint16",
    "word",
    "word_at",
]

_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic  # numba ships no types
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_ZEROS, _DOTS = np.uint64(0x3030303030303030), np.uint64(0x2E2E2E2E2E2E2E2E)
_HIGH, _SIXES = np.uint64(0xF0F0F0F0F0F0F0F0), np.uint64(0x0606060606060606)
_ONES, _TOPS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_PAIRS, _C1, _C2 = np.uint64(0x000000FF000000FF), np.uint64(0x000F424000000064), np.uint64(0x0000271000000001)
_U10, _U8, _U16, _U32, _NONE = np.uint64(10), np.uint64(8), np.uint64(16), np.uint64(32), np.uint64(0)
_U3, _U7 = np.uint64(3), np.uint64(7)
_E8, _LOW6, _SIXTY4, _BYTE = np.uint64(10**8), np.uint64(63), np.uint64(64), np.uint64(255)

TYPE_AT, SIZE_AT, BYTES_AT = 8, 16, sys.getsizeof(b"") - 1
"""Where CPython keeps any object's type, a bytes object's size (both int64) and its text: ``id(text) + BYTES_AT`` is an
address, valid as long as the object. Handing ``id(text)`` to a kernel costs 0.2 us less than handing it the object,
whose buffer numba would take and give back."""

_KNOWN = b"hftlab"
_FOUND = [ctypes.c_int64.from_address(id(_KNOWN) + at).value for at in (TYPE_AT, SIZE_AT)]
if ctypes.string_at(id(_KNOWN) + BYTES_AT, 6) != _KNOWN or [id(bytes), 6] != _FOUND:
    raise ImportError("this Python keeps the text of bytes elsewhere; hftlab needs CPython")


@_intrinsic
def word_at(typingctx: Any, address: Any) -> Any:
    """Return the eight bytes at `address`, any alignment, as uint64: the first byte is the lowest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _I64.as_pointer()), align=1)

    return types.uint64(types.int64), codegen


@_intrinsic
def byte_at(typingctx: Any, address: Any) -> Any:
    """Return the byte at `address` as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(args[0], _I8.as_pointer())), _I64)

    return types.int64(types.int64), codegen


@_intrinsic
def trailing_zeros(typingctx: Any, value: Any) -> Any:
    """Return how many of the lowest bits of a uint64 are 0; 64 for 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


def word(text: bytes) -> tuple[np.uint64, np.uint64, int]:
    """Return up to eight bytes of text as `after` takes them: the word, the mask of its bytes and their number.

    Examples
    --------
    >>> [hex(part) for part in word(b'","')]
    ['0x222c22', '0xffffff', '0x3']
    """
    if not 0 < len(text) <= 8:
        raise ValueError(f"text={text!r}; expected 1 to 8 bytes")
    return np.uint64(int.from_bytes(text, "little")), np.uint64(2 ** (8 * len(text)) - 1), len(text)


@kernel(inline=True)
def after(at: int, end: int, known: Any) -> int:
    """Return the address after the `known` word if it stands at `at`, else `FAIL`; wants 8 bytes before `end`."""
    if at + 8 <= end and (word_at(at) ^ known[0]) & known[1] == _NONE:
        return int(at + known[2])
    return FAIL


@kernel(inline=True)
def _eight(digits: Any) -> Any:
    """Return the number that eight ASCII digits say."""
    pairs = digits - _ZEROS
    pairs = pairs * _U10 + (pairs >> _U8)
    return ((pairs & _PAIRS) * _C1 + ((pairs >> _U16) & _PAIRS) * _C2) >> _U32


@kernel(inline=True)
def _not_digits(text: Any) -> Any:
    """Return a word that is 0 if all eight bytes are digits; else its lowest bit set lies in the first that is none."""
    return ((text & _HIGH) ^ _ZEROS) | (((text + _SIXES) & _HIGH) ^ _ZEROS)


@kernel(inline=True)
def uint16(at: int, end: int) -> tuple[int, int]:
    """Return the integer of 1 to 16 digits at `at` and the address after it.

    Needs 16 bytes before `end`. A leading zero fails. What follows the digits is for the caller to look at: a known
    word after it is no digit, point or exponent.
    """
    if at + 16 > end:
        return 0, FAIL
    head = word_at(at)
    other = _not_digits(head)
    first = byte_at(at)
    if other != _NONE:
        bits = trailing_zeros(other) & ~_U7
        if bits == _NONE or (first == 48 and bits != _U8):
            return 0, FAIL
        return int(np.int64(_eight(head << (_SIXTY4 - bits) | _ZEROS >> bits))), at + int(np.int64(bits >> _U3))
    if first == 48:
        return 0, FAIL
    bits = trailing_zeros(_not_digits(word_at(at + 8))) & ~_U7
    if bits == _NONE:
        return int(np.int64(_eight(head))), at + 8
    extra = int(np.int64(bits >> _U3))
    if extra < 8:
        head = head << (_SIXTY4 - bits) | _ZEROS >> bits
    return int(np.int64(_eight(head) * _E8 + _eight(word_at(at + extra)))), at + 8 + extra



@kernel(inline=True)
def fixed8(at: int, end: int) -> tuple[Any, int]:
    """Return ``digits.dddddddd`` as a uint64 count of 1e-8, and the address of the quote that must follow.

    One to seven digits, a point, eight digits: what Binance prints. Anything else is `FAIL`.
    """
    if at + 8 > end:
        return _NONE, FAIL
    head = word_at(at)
    dots = head ^ _DOTS
    dots = (dots - _ONES) & ~dots & _TOPS
    bits = trailing_zeros(dots) & ~_U7
    close = at + int(np.int64(bits >> _U3)) + 9
    if bits == _NONE or bits == _SIXTY4 or close >= end:
        return _NONE, FAIL
    whole = head << (_SIXTY4 - bits) | _ZEROS >> bits
    fraction = word_at(close - 8)
    if (_not_digits(whole) | _not_digits(fraction)) != _NONE or byte_at(close) != 34:
        return _NONE, FAIL
    return _eight(whole) * _E8 + _eight(fraction), close


@_intrinsic
def _three_eights(typingctx: Any, first: Any, second: Any, third: Any) -> Any:
    """Return the numbers that three words of eight digits say, and a word that is 0 if all are digits.

    One vector: two dozen instructions where word by word takes twice as many, and constants that would not fit the
    registers. Any processor has it; LLVM splits what it lacks.
    """
    vector, halves = ir.VectorType(_I64, 4), ir.VectorType(ir.IntType(32), 8)

    def every(value: int) -> Any:
        return ir.Constant(vector, [value] * 4)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        text = ir.Constant(vector, ir.Undefined)
        for k, arg in enumerate((*args, args[2])):
            text = builder.insert_element(text, arg, ir.Constant(ir.IntType(32), k))
        zeros, high = every(int(_ZEROS)), every(int(_HIGH))
        wrong = builder.or_(
            builder.xor(builder.and_(text, high), zeros),
            builder.xor(builder.and_(builder.add(text, every(int(_SIXES))), high), zeros),
        )
        digits = builder.sub(text, zeros)
        tens = builder.add(builder.shl(digits, every(3)), builder.shl(digits, every(1)))
        pairs = builder.and_(builder.add(tens, builder.lshr(digits, every(8))), every(0x00FF00FF00FF00FF))
        pairs = builder.bitcast(pairs, halves)
        low = builder.and_(pairs, ir.Constant(halves, [0xFFFF] * 8))
        fours = builder.add(
            builder.mul(low, ir.Constant(halves, [100] * 8)), builder.lshr(pairs, ir.Constant(halves, [16] * 8))
        )
        fours = builder.bitcast(fours, vector)
        low = builder.mul(builder.and_(fours, every(0xFFFFFFFF)), every(10_000))
        eights = builder.add(low, builder.lshr(fours, every(32)))
        found = [builder.extract_element(eights, ir.Constant(ir.IntType(32), k)) for k in range(3)]
        lanes = builder.icmp_unsigned("!=", wrong, every(0))
        flag = builder.zext(builder.bitcast(lanes, ir.IntType(4)), _I64)
        return context.make_tuple(builder, signature.return_type, [*found, flag])

    return types.UniTuple(types.uint64, 4)(types.uint64, types.uint64, types.uint64), codegen


@kernel(inline=True)
def point_at(at: int, end: int) -> int:
    """Return how many bytes stand before the first point from `at` on, 1 to 7; 1 if that is not so."""
    if at + 8 > end:
        return 1
    dots = word_at(at) ^ _DOTS
    digits = int(np.int64(trailing_zeros((dots - _ONES) & ~dots & _TOPS) >> _U3))
    return digits if 0 < digits < 8 else 1


@kernel(inline=True)
def level_at(at: int, digits: int) -> tuple[Any, Any, Any]:
    """Return price and fraction of the quantity of a level, uint64 counts of 1e-8, and a word that is 0 if all is so.

    At `at` stand `digits` digits (1 to 7), a point and eight more, five bytes that the caller looks at, and eight
    digits. The caller answers for all those bytes being there.
    """
    head = word_at(at)
    bits = np.uint64(8 * digits)
    whole, fraction, quantity, wrong = _three_eights(
        head << (_SIXTY4 - bits) | _ZEROS >> bits, word_at(at + digits + 1), word_at(at + digits + 14)
    )
    return whole * _E8 + fraction, quantity, wrong | (((head >> bits) ^ _DOTS) & _BYTE)


def divider(divisor: int) -> tuple[int, int, int]:
    """Return what `steps` needs to divide by `divisor`: inverse of its odd part, its twos, the largest quotient.

    Examples
    --------
    >>> divider(1), divider(4)
    ((1, 0, 18446744073709551615), (1, 2, 4611686018427387903))
    """
    if not 0 < divisor < 2**63:
        raise ValueError(f"divisor={divisor}; expected 1 to 2**63 - 1")
    twos = (divisor & -divisor).bit_length() - 1
    return pow(divisor >> twos, -1, 2**64), twos, (2**64 - 1) // divisor


@kernel(inline=True)
def steps(value: Any, inverse: Any, twos: Any, largest: Any) -> tuple[int, bool]:
    """Return `value` divided by the divisor of `divider` (all uint64), and whether it divides."""
    quotient = value * inverse
    quotient = quotient >> twos | quotient << (_SIXTY4 - twos & _LOW6)
    return int(np.int64(quotient)), quotient <= largest
