"""Eight bytes at a time against plain Python, and never a byte beyond the end."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from guarded_text import GuardedText
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hftlab.kernels.jit import address_of, kernel, load, store
from hftlab.kernels.scan import FAIL
from hftlab.kernels.words import after, byte_at, divider, fixed8, steps, trailing_zeros, uint16, word, word_at

_KNOWN = word(b'","q":"')
_ALPHABET = '0123456789."-eE,: '
_texts = st.one_of(st.binary(max_size=40), st.text(alphabet=_ALPHABET, max_size=40).map(str.encode))
_thorough = settings(deadline=None, max_examples=500)


@kernel("void(int64, int64, int64)")
def _uint(at: int, end: int, out: int) -> None:
    value, stop = uint16(at, end)
    store(out, value)
    store(out + 8, stop)


@kernel("void(int64, int64, int64)")
def _fixed(at: int, end: int, out: int) -> None:
    value, stop = fixed8(at, end)
    store(out, np.int64(value))
    store(out + 8, stop)


@kernel("int64(int64, int64)")
def _after(at: int, end: int) -> int:
    return int(after(at, end, _KNOWN))


@kernel("int64(int64)")
def _bits(at: int) -> int:
    return int(np.int64(trailing_zeros(word_at(at)))) * 1000 + int(byte_at(at))


@kernel("int64(int64, int64, int64)")
def _divided(value: int, divider: int, out: int) -> int:
    count, whole = steps(
        np.uint64(value), np.uint64(load(divider)), np.uint64(load(divider + 8)), np.uint64(load(divider + 16))
    )
    store(out, count)
    return 1 if whole else 0


class Page:
    """Text before a closed page: reading beyond it ends the process."""

    def __init__(self) -> None:
        self.text = GuardedText()
        self.out = np.zeros(2, np.int64)

    def scan(self, kernel: Any, text: bytes) -> tuple[int, int]:
        start = self.text.end - len(text)
        self.text.lay(text)
        kernel(start, self.text.end, address_of(self.out))
        value, stop = self.out.tolist()
        return value, stop if stop == FAIL else stop - start


_PAGE = Page()


@_thorough
@given(_texts)
@example(b"1234567890123456" + b"," * 16)
@example(b"0," + b" " * 20)
@example(b"\xff" * 16)
def test_an_integer_is_what_python_reads_or_is_left_to_the_scanner(text: bytes) -> None:
    value, stop = _PAGE.scan(_uint, text)
    match = re.match(rb"(0|[1-9][0-9]*)(?![0-9])", text)
    if len(text) >= 16 and match and len(match[0]) <= 16:
        assert (value, stop) == (int(match[0]), len(match[0]))
    elif stop != FAIL:  # the seventeenth digit is for the caller to see
        assert len(text) > 16 and text[:17].isdigit() and (value, stop) == (int(text[:16]), 16)


@_thorough
@given(st.integers(0, 10**16 - 1), st.sampled_from([b",", b"}", b'"']))
def test_every_integer_of_sixteen_digits_is_read(number: int, then: bytes) -> None:
    text = str(number).encode()
    assert _PAGE.scan(_uint, text + then * 16) == (number, len(text))


@_thorough
@given(_texts)
@example(b".12345678\"")
@example(b"12345678.12345678\"")
@example(b"1.23456789\"")
def test_a_decimal_is_what_python_reads_or_is_left_to_the_scanner(text: bytes) -> None:
    value, stop = _PAGE.scan(_fixed, text)
    match = re.match(rb'([0-9]{1,7})\.([0-9]{8})"', text)
    assert (stop != FAIL) == (match is not None)
    if match is not None:
        assert (value, stop) == (int(match[1] + match[2]), len(match[0]) - 1)


@_thorough
@given(st.integers(0, 10**15 - 1))
def test_every_decimal_of_eight_places_is_exact_up_to_the_last_byte_of_memory(count: int) -> None:
    text = f"{count // 10**8}.{count % 10**8:08d}"
    assert _PAGE.scan(_fixed, f'{text}"'.encode()) == (count, len(text))


def test_a_known_word_is_found_whole_and_within_the_end_only() -> None:
    text = np.frombuffer(b'","q":"1","q":"', np.uint8)
    at = address_of(text)
    assert _after(at, at + len(text)) == at + 7 and _after(at, at + 8) == at + 7
    assert _after(at, at + 7) == FAIL and _after(at + 1, at + len(text)) == FAIL
    assert _after(at + 8, at + len(text)) == FAIL and _after(FAIL, at + len(text)) == FAIL


def test_a_word_is_one_to_eight_bytes() -> None:
    for text in (b"", b"123456789"):
        with pytest.raises(ValueError, match="1 to 8"):
            word(text)


def test_words_and_bytes_are_read_at_any_address() -> None:
    text = np.frombuffer(b"x" + (0x12345678_00000100).to_bytes(8, "little") + bytes(8), np.uint8)
    assert _bits(address_of(text) + 1) == 8000 and _bits(address_of(text) + 2) == 1
    assert _bits(address_of(text) + 9) == 64000


@_thorough
@given(st.integers(0, 2**63 - 1), st.one_of(st.integers(1, 10**9), st.integers(1, 2**63 - 1), st.just(10**8)))
def test_division_by_a_step_is_exact_or_refused(count: int, divisor: int) -> None:
    parts = np.array(divider(divisor), np.uint64)
    for value in (count, count // divisor * divisor):
        whole = _divided(value, address_of(parts), address_of(_PAGE.out))
        assert bool(whole) == (value % divisor == 0)
        if whole:
            assert int(_PAGE.out[0]) == Fraction(value, divisor)


def test_a_divisor_out_of_range_is_named() -> None:
    for divisor in (0, 2**63):
        with pytest.raises(ValueError, match="divisor"):
            divider(divisor)
