"""Numbers to text in kernels, against Python's formatting."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core.decimals import DecimalGrid
from hftlab.kernels.jit import address_of, kernel
from hftlab.kernels.write import put_byte, put_bytes, put_decimal, put_hex, put_uint

int64s = st.integers(0, 2**63 - 1)


@kernel("int64(int64, int64, int64, int64, int64)")
def written(out: int, form: int, value: int, unit: int, decimals: int) -> int:
    if form == 0:
        return put_uint(out, value)
    if form == 1:
        return put_hex(out, value)
    return put_decimal(out, value, unit, decimals)


@kernel("int64(int64, int64, int64)")
def copied(out: int, source: int, n: int) -> int:
    put_byte(out + 100, 7)
    return put_bytes(out, source, n)


def text(form: int, value: int, unit: int = 1, decimals: int = 0) -> str:
    room = np.full(64, 0xA5, np.uint8)
    end = written(address_of(room), form, value, unit, decimals) - address_of(room)
    assert set(room[end:].tolist()) == {0xA5}, "nothing is written behind a number"
    return bytes(room[:end]).decode()


@given(int64s)
def test_uint_is_pythons(value: int) -> None:
    assert text(0, value) == str(value)


@given(int64s)
def test_hex_is_pythons(value: int) -> None:
    assert text(1, value) == f"{value:x}"


@given(st.integers(0, 10**12), st.integers(1, 99), st.integers(0, 9))
def test_decimal_is_that_of_the_venues_grid(count: int, mantissa: int, decimals: int) -> None:
    grid = DecimalGrid(Decimal(mantissa).scaleb(-decimals), "px")
    assert text(2, count, grid.unit, grid.decimals) == grid.text(count)


@given(st.binary(max_size=60))
def test_bytes_are_copied_and_at_most_seven_behind_them_touched(source: bytes) -> None:
    room, given_ = np.zeros(128, np.uint8), np.frombuffer(source + b"\xff" * 8, np.uint8)
    assert copied(address_of(room), address_of(given_), len(source)) == address_of(room) + len(source)
    assert bytes(room[: len(source)]) == source and room[100] == 7
    assert not room[len(source) + 7 : 100].any()
