"""The fast reading of decimal text against the slow one."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import OffGridError
from hftlab.core.instruments import decimal_to_units


@given(st.integers(0, 10**20), st.integers(0, 10), st.sampled_from(["0.01", "0.00000001", "0.25", "5", "10", "1E+2"]))
def test_decimal_text_is_read_as_the_edge_of_the_package_reads_it(mantissa: int, places: int, step: str) -> None:
    text = f"{Decimal(mantissa).scaleb(-places):f}"
    grid = DecimalGrid(Decimal(step), "px")
    try:
        expected = decimal_to_units(text, Decimal(step), "px")
    except OffGridError:
        with pytest.raises(OffGridError):
            grid.count(text)
        return
    assert grid.count(text) == expected
    assert Decimal(grid.text(expected)) == Decimal(text)


@pytest.mark.parametrize("text", ["", "1.", ".5", "-1", "+1", "1e3", "NaN", " 1", "1 ", "\u0661", "9" * 5000])
def test_text_that_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(OffGridError):
        DecimalGrid(Decimal("0.01"), "px").count(text)
