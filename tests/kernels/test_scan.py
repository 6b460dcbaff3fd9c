"""The scanners against plain Python on arbitrary text: what they accept is right, what they refuse they may refuse."""

from __future__ import annotations

import json
import re
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.kernels import scan
from hftlab.kernels.scan import FAIL, expect, matches, scan_decimal, scan_uint, skip_scalar, skip_space, skip_string

_ALPHABET = '0123456789."{}[],:-eE trufalsn\\'
_bytes = st.one_of(st.binary(max_size=24), st.text(alphabet=_ALPHABET, max_size=24).map(str.encode))
_unhurried = settings(deadline=None)  # the first call compiles
_thorough = settings(deadline=None, max_examples=500)


@_unhurried
@given(st.integers(0, 10**18 - 1), st.integers(0, 8), st.integers(0, 6))
def test_a_decimal_on_the_grid_is_its_exact_count(count: int, decimals: int, zeros: int) -> None:
    whole, fraction = divmod(count, 10**decimals)
    text = f'"{whole}.{fraction:0{decimals}d}{"0" * zeros}"' if decimals or zeros else f'"{whole}"'
    if text.endswith('."'):
        text = f'"{whole}"'
    assert scan_decimal(text.encode(), 0, len(text), decimals, 1) == (count, len(text))


@_unhurried
@given(st.integers(0, 10**6), st.integers(0, 6), st.sampled_from([1, 5, 25, 100]), st.integers(0, 8))
def test_a_decimal_scan_agrees_with_decimal_arithmetic(mantissa: int, places: int, unit: int, decimals: int) -> None:
    value = Decimal(mantissa).scaleb(-places)
    text = f'"{value:f}"'.encode()
    count, at = scan_decimal(text, 0, len(text), decimals, unit)
    exact = value / (Decimal(unit).scaleb(-decimals))
    if exact == exact.to_integral_value():
        assert (count, at) == (int(exact), len(text))
    else:
        assert at == FAIL


@_thorough
@given(_bytes, st.integers(0, 8), st.sampled_from([1, 25]))
def test_a_decimal_that_is_accepted_is_what_decimal_reads(text: bytes, decimals: int, unit: int) -> None:
    count, at = scan_decimal(text, 0, len(text), decimals, unit)
    if at != FAIL:
        inside = text[:at].strip(b" \n\r\t")
        assert re.fullmatch(rb'"[0-9]+(\.[0-9]+)?"', inside)
        assert Decimal(inside[1:-1].decode()) == Decimal(unit * count).scaleb(-decimals)


def test_a_decimal_that_could_overflow_is_refused() -> None:
    for text in (b'"9223372036854775808"', b'"99999999999999999999999999"', b'"922337203685477580.8"'):
        assert scan_decimal(text, 0, len(text), 1, 1)[1] == FAIL


@_thorough
@given(_bytes)
def test_an_integer_that_is_accepted_is_what_json_reads(text: bytes) -> None:
    value, at = scan_uint(text, 0, len(text))
    if at != FAIL:
        assert json.loads(text[:at]) == value
        assert text[at : at + 1] not in (b".", b"e", b"E") and not text[at : at + 1].isdigit()


def test_integers_that_are_no_json_or_too_long_are_refused() -> None:
    assert scan_uint(b"999999999999999999", 0, 18) == (10**18 - 1, 18)
    for text in (b"", b"-1", b"01", b"1.0", b"1e3", b"1000000000000000000"):
        assert scan_uint(text, 0, len(text))[1] == FAIL, text


@_thorough
@given(_bytes)
def test_a_scalar_that_is_skipped_is_one_json_value(text: bytes) -> None:
    at = skip_scalar(text, 0, len(text))
    if at != FAIL:
        value = json.loads(text[:at])
        assert value is None or isinstance(value, str | int | bool)


def test_strings_with_escapes_or_foreign_bytes_are_left_to_a_complete_parser() -> None:
    assert skip_string(b'"plain"', 0, 7) == 7
    for text in (rb'"a\"b"', b'"\xef\xbc\x91"', b'"a\nb"', b'"open', b"bare"):
        assert skip_string(text, 0, len(text)) == FAIL, text


@_unhurried
@given(_bytes, st.integers(0, 24))
def test_no_scanner_reads_beyond_the_end_it_is_given(text: bytes, end: int) -> None:
    """A longer buffer gives the same answer as the cut one: what lies beyond `end` is never looked at."""
    end = min(end, len(text))
    cut = text[:end]
    for longer in (cut + b'"', cut + b"0", cut + b"}"):
        assert scan_uint(longer, 0, end) == scan_uint(cut, 0, end)
        assert scan_decimal(longer, 0, end, 2, 1) == scan_decimal(cut, 0, end, 2, 1)
        assert skip_scalar(longer, 0, end) == skip_scalar(cut, 0, end)
        assert skip_space(longer, 0, end) == skip_space(cut, 0, end)
        assert expect(longer, 0, end, 34) == expect(cut, 0, end, 34)
        assert matches(longer, 0, end, b"true") == matches(cut, 0, end, b"true")


def test_a_failed_position_makes_every_following_scan_fail() -> None:
    text = b'{"a":1}'
    assert scan_uint(text, FAIL, 7)[1] == FAIL
    assert scan_decimal(text, FAIL, 7, 0, 1)[1] == FAIL
    assert skip_string(text, FAIL, 7) == FAIL and skip_scalar(text, FAIL, 7) == FAIL
    assert expect(text, FAIL, 7, 123) == FAIL and not matches(text, FAIL, 7, b"{")


@_unhurried
@given(_bytes, st.integers(0, 4))
def test_compiled_scanners_equal_their_python_source(text: bytes, decimals: int) -> None:
    n = len(text)
    assert scan_uint(text, 0, n) == scan_uint.py_func(text, 0, n)  # type: ignore[attr-defined]  # numba's dispatcher
    assert skip_string(text, 0, n) == skip_string.py_func(text, 0, n)  # type: ignore[attr-defined]
    assert skip_scalar(text, 0, n) == skip_scalar.py_func(text, 0, n)  # type: ignore[attr-defined]
    compiled = scan_decimal(text, 0, n, decimals, 1)
    plain = scan_decimal.py_func(text, 0, n, decimals, 1)  # type: ignore[attr-defined]
    assert compiled[1] == plain[1] and (plain[1] == FAIL or compiled == plain)


def test_every_scanner_is_public() -> None:
    assert sorted(scan.__all__) == scan.__all__
