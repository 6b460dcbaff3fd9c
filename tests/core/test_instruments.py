"""Decimals become integers exactly or not at all."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError, LocalError, OffGridError
from hftlab.core.instruments import INT64_MAX, MONEY_SCALE, Instrument, decimal_to_units, units_to_decimal

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")

# Every step a venue lists: 1e-18 to 1e6, and those that are no power of ten (0.25, 0.0003125, 1/32 and the like).
steps = st.builds(lambda digits, places: Decimal(digits).scaleb(-places), st.integers(1, 10**6), st.integers(0, 18))
counts = st.integers(-INT64_MAX, INT64_MAX)
texts = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**12), max_value=10**12).map(str),
    st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{1,25})?", fullmatch=True),
)


@given(counts, steps)
def test_counts_become_decimals_and_back_for_any_step(count: int, step: Decimal) -> None:
    exact = units_to_decimal(count, step)
    assert Fraction(exact) == count * Fraction(step)
    assert decimal_to_units(exact, step, "px") == count
    assert decimal_to_units(format(exact, "f"), step, "px") == count


@given(texts, steps)
def test_text_becomes_the_exact_count_or_is_refused(text: str, step: Decimal) -> None:
    exact = Fraction(text) / Fraction(step)
    if exact.denominator == 1 and abs(exact) <= INT64_MAX:
        assert decimal_to_units(text, step, "px") == exact
    else:
        with pytest.raises(OffGridError, match=r"^px="):
            decimal_to_units(text, step, "px")


@given(counts, steps, st.integers(1, 999))
def test_a_price_between_two_ticks_is_refused_never_rounded(count: int, step: Decimal, thousandths: int) -> None:
    with localcontext() as context:
        context.prec = 60
        between = count * step + step * thousandths / 1000
    with pytest.raises(OffGridError, match="off the grid: expected a multiple of"):
        decimal_to_units(between, step, "px")


def test_a_price_far_below_one_tick_is_refused_not_taken_for_zero() -> None:
    with pytest.raises(OffGridError, match="off the grid"):
        decimal_to_units("1E-70", Decimal(1), "px")


@given(st.integers(INT64_MAX + 1, 10**30), steps, st.sampled_from([1, -1]))
def test_counts_beyond_int64_are_refused(count: int, step: Decimal, sign: int) -> None:
    with pytest.raises(OffGridError, match="does not fit int64"):
        decimal_to_units(units_to_decimal(sign * count, step), step, "qty")


def test_the_greatest_int64_passes_and_the_next_is_refused() -> None:
    assert decimal_to_units(INT64_MAX, Decimal(1), "qty") == INT64_MAX
    assert decimal_to_units(-INT64_MAX, Decimal(1), "qty") == -INT64_MAX
    for beyond in (INT64_MAX + 1, -INT64_MAX - 1):  # the smallest int64 is NAT, and its negative does not exist
        with pytest.raises(OffGridError, match="does not fit int64"):
            decimal_to_units(beyond, Decimal(1), "qty")


@given(st.floats())
def test_floats_are_refused_whatever_their_value(value: float) -> None:
    for same in (value, np.float64(value)):
        with pytest.raises(OffGridError, match="is a float and already rounded"):
            decimal_to_units(same, Decimal("0.01"), "px")


@pytest.mark.parametrize("value", ["NaN", "sNaN", "-nan", "Infinity", "-inf"])
def test_not_a_number_and_infinity_are_refused(value: str) -> None:
    for same in (value, Decimal(value)):
        with pytest.raises(OffGridError, match="is not a finite number"):
            decimal_to_units(same, Decimal("0.01"), "px")


@pytest.mark.parametrize("value", ["", "abc", "1,5", "0x10", "1.2.3", "--1"])
def test_text_that_is_no_decimal_is_refused(value: str) -> None:
    with pytest.raises(OffGridError, match="is not a decimal number"):
        decimal_to_units(value, Decimal("0.01"), "px")


EDGES = ["1." + "0" * 70 + "1", "1E+5000", "1E+99999999", "9" * 5000]


@pytest.mark.parametrize("value", EDGES, ids=[edge if len(edge) < 12 else f"{len(edge)} chars" for edge in EDGES])
def test_text_of_absurd_length_or_exponent_is_refused(value: str) -> None:
    with pytest.raises(OffGridError, match=r"^px="):
        decimal_to_units(value, Decimal(1), "px")


def test_errors_name_the_instrument_what_was_expected_and_what_came() -> None:
    with pytest.raises(LocalError) as caught:
        BTC.px_ticks("61837.635")
    assert str(caught.value) == "BTCUSDT px=61837.635 is off the grid: expected a multiple of 0.01"


def test_prices_quantities_and_money_of_an_instrument_are_exact() -> None:
    assert BTC.px_ticks("61837.63") == 6_183_763
    assert BTC.qty_lots("0.00012") == 12
    assert (BTC.px(6_183_763), BTC.qty(12)) == (Decimal("61837.63"), Decimal("0.00012"))
    assert BTC.money(6_183_763 * 12) == Decimal("61837.63") * Decimal("0.00012")
    assert Decimal("1e-8") == MONEY_SCALE


def test_the_callers_decimal_context_changes_nothing() -> None:
    with localcontext() as context:
        context.prec = 3
        assert BTC.px_ticks("61837.63") == 6_183_763
        assert BTC.px(6_183_763) == Decimal("61837.63")
        with pytest.raises(OffGridError, match="off the grid"):
            BTC.px_ticks("61837.631")


@given(steps, steps, st.integers(0, INT64_MAX))
def test_an_instrument_comes_back_from_its_plain_form(tick: Decimal, lot: Decimal, bound: int) -> None:
    assume(tick > 0 and lot > 0)
    original = Instrument(3, "sim", "A/B", tick, lot, "A", "B", max_qty=bound, min_notional=bound)
    plain = original.to_dict()
    assert all(isinstance(value, str | int) for value in plain.values())
    assert Instrument.from_dict(plain) == original


@pytest.mark.parametrize("step", [Decimal(0), Decimal(-1), Decimal("NaN"), Decimal("Infinity"), 0.01, "0.01"])
@pytest.mark.parametrize("name", ["tick_size", "lot_size"])
def test_a_step_that_is_no_positive_decimal_is_refused(name: str, step: object) -> None:
    with pytest.raises(ConfigError, match=f"X: {name} is"):
        Instrument(0, "sim", "X", **{"tick_size": Decimal(1), "lot_size": Decimal(1), name: step})


@pytest.mark.parametrize("name", ["min_qty", "max_qty", "min_px", "max_px", "min_notional"])
def test_a_negative_bound_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"X: {name} is -1; expected 0 or more"):
        Instrument(0, "sim", "X", Decimal(1), Decimal(1), **{name: -1})
