"""Number and JSON scanning: from text bytes to integers, without a float and without an allocation.

Model. A scanner takes ``(text, at, end)`` and returns where it stopped, with the value when there is one. Failure is a
position too: `FAIL`, far beyond any text. Every scanner begins with ``at < end``, so after a failure all that follow
fail as well, and a decoder checks once, at the end of a message, instead of after every byte. That one test is also the
promise: no byte outside ``text[0:end]`` is ever read, whatever the text holds.

Exactness. A decimal such as ``61837.63000000`` becomes a count of steps by integer arithmetic. A step is given as
``unit x 10**-decimals`` (0.25 is 25 and 2). What is no whole number of steps, or might not fit int64, fails; nothing is
rounded. The scanners accept a subset of JSON, never a superset: on escapes, non-ASCII strings, floats, nesting where
none is expected they fail, and the caller asks a complete parser. So "the fast path said yes" implies "a strict parser
says the same", and the two can be compared on random bytes.

Worst case accepted: a message the subset does not cover costs a failed scan on top of the complete parse.
"""

from __future__ import annotations

from typing import Any

from hftlab.kernels.jit import kernel

__all__ = ["FAIL", "expect", "matches", "scan_decimal", "scan_uint", "skip_scalar", "skip_space", "skip_string"]

FAIL = 1 << 60
"""Where a scanner that failed says it stopped."""

_SAFE_DIGITS = 18
"""So many decimal digits always fit int64: counting digits costs nothing a digit, comparing values does."""


@kernel(inline=True)
def skip_space(text: Any, at: int, end: int) -> int:
    """Return the position of the first byte from `at` on that is not JSON white space.

    Examples
    --------
    >>> skip_space(b" \\n{", 0, 3)
    2
    """
    while at < end and (text[at] == 32 or text[at] == 10 or text[at] == 13 or text[at] == 9):
        at += 1
    return at


@kernel(inline=True)
def expect(text: Any, at: int, end: int, byte: int) -> int:
    """Return the position after `byte`, allowing white space before it; `FAIL` if something else stands there."""
    if at < end and text[at] == byte:
        return at + 1
    at = skip_space(text, at, end)
    if at < end and text[at] == byte:
        return at + 1
    return FAIL


@kernel(inline=True)
def matches(text: Any, at: int, end: int, word: Any) -> bool:
    """Return whether the bytes from `at` on begin with `word` (bytes)."""
    n = len(word)
    if at + n > end:
        return False
    for i in range(n):  # noqa: SIM110 - a kernel: a generator would allocate
        if text[at + i] != word[i]:
            return False
    return True


@kernel(inline=True)
def scan_uint(text: Any, at: int, end: int) -> tuple[int, int]:
    """Return the JSON integer at `at`, 0 to 10**18 - 1, and the position after its last digit.

    A sign, a leading zero, a fraction, an exponent and a nineteenth digit fail.

    Examples
    --------
    >>> scan_uint(b"157,", 0, 4)
    (157, 3)
    >>> scan_uint(b"1.5", 0, 3)[1] == FAIL, scan_uint(b"01", 0, 2)[1] == FAIL
    (True, True)
    """
    start = at
    value = 0
    while at < end:
        digit = int(text[at]) - 48
        if digit < 0 or digit > 9:
            break
        value = value * 10 + digit
        at += 1
    digits = at - start
    if digits == 0 or digits > _SAFE_DIGITS or (digits > 1 and text[start] == 48):
        return 0, FAIL
    if at < end and (text[at] == 46 or text[at] == 101 or text[at] == 69):  # . e E
        return 0, FAIL
    return value, at


@kernel(inline=True)
def scan_decimal(text: Any, at: int, end: int, decimals: int, unit: int) -> tuple[int, int]:
    """Return a quoted decimal as a count of steps of ``unit x 10**-decimals``, and the position after the quote.

    Parameters
    ----------
    text : bytes or uint8 array
        The message.
    at, end : int
        Where the opening quote must stand (white space may precede it), and the end of the text.
    decimals, unit : int
        The step: 0.01 is (2, 1), 0.25 is (2, 25), 5 is (0, 5).

    Returns
    -------
    (int, int)
        `FAIL` as position when the text is no plain ``digits[.digits]``, is off the grid, or has more than 18 digits
        down to the grid (a complete parser may still accept those that fit int64).

    Examples
    --------
    >>> scan_decimal(b'"61837.63000000"', 0, 16, 2, 1)
    (6183763, 16)
    >>> scan_decimal(b'"0.005"', 0, 7, 2, 1)[1] == FAIL
    True
    """
    at = expect(text, at, end, 34)
    start = at
    value = 0
    while at < end:
        digit = int(text[at]) - 48
        if digit < 0 or digit > 9:
            break
        value = value * 10 + digit
        at += 1
    digits = at - start
    if digits == 0 or at >= end:
        return 0, FAIL
    left = decimals
    if text[at] == 46:
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
        if at == start:
            return 0, FAIL
    if digits + decimals > _SAFE_DIGITS:
        return 0, FAIL
    while left > 0:
        value *= 10
        left -= 1
    if unit != 1:
        if value % unit != 0:
            return 0, FAIL
        value //= unit
    if at < end and text[at] == 34:
        return value, at + 1
    return 0, FAIL


@kernel(inline=True)
def skip_string(text: Any, at: int, end: int) -> int:
    """Return the position after the quoted string at `at`; `FAIL` on an escape, a control or a non-ASCII byte.

    Examples
    --------
    >>> skip_string(b'"btcusdt@trade",', 0, 16)
    15
    """
    at = expect(text, at, end, 34)
    while at < end:
        byte = text[at]
        if byte == 34:
            return at + 1
        if byte < 32 or byte == 92 or byte > 127:
            return FAIL
        at += 1
    return FAIL


@kernel(inline=True)
def skip_scalar(text: Any, at: int, end: int) -> int:
    """Return the position after a plain string, an unsigned integer, true, false or null; `FAIL` on anything else."""
    at = skip_space(text, at, end)
    if at >= end:
        return FAIL
    byte = text[at]
    if byte == 34:
        return skip_string(text, at, end)
    if byte == 116:
        return at + 4 if matches(text, at, end, b"true") else FAIL
    if byte == 102:
        return at + 5 if matches(text, at, end, b"false") else FAIL
    if byte == 110:
        return at + 4 if matches(text, at, end, b"null") else FAIL
    return scan_uint(text, at, end)[1]
