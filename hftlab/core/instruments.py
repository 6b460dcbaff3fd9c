"""Instruments: the only place where decimals become integers and back.

A venue writes prices and quantities as decimal text. Inside hftlab they are int64 counts of the instrument's tick and
lot, so that equality is equality and sums are exact. The conversion is exact or refused: a price off the grid and a
count that does not fit int64 raise, and nothing is rounded. ``tick_size`` is the finest step any *message* may carry,
which can be finer than the step allowed for orders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal, Inexact, localcontext
from typing import Any

from hftlab.core.errors import ConfigError, OffGridError

__all__ = ["INT64_MAX", "Instrument", "MONEY_SCALE", "decimal_to_units", "units_to_decimal"]

INT64_MAX = 2**63 - 1
MONEY_SCALE = Decimal("0.00000001")
"""Unit in which fees and balances are held: 1e-8 of the asset."""


def decimal_to_units(value: Decimal | str | int, unit: Decimal, what: str) -> int:
    """Return `value` as a whole number of `unit`.

    Parameters
    ----------
    value : Decimal, str or int
        An exact decimal; a float is refused, because it has already been rounded.
    unit : Decimal
        The step, > 0.
    what : str
        Name of the quantity, for the message.

    Raises
    ------
    OffGridError
        If `value` is a float, not finite, not a multiple of `unit`, or does not fit int64.

    Examples
    --------
    >>> decimal_to_units("61837.63", Decimal("0.01"), "px")
    6183763
    """
    if isinstance(value, float):
        raise OffGridError(f"{what}={value!r} is a float and already rounded; pass a Decimal or the venue's text")
    try:
        exact = Decimal(value)
    except ArithmeticError as error:
        raise OffGridError(f"{what}={value!r} is not a decimal number") from error
    if not exact.is_finite():
        raise OffGridError(f"{what}={value!r} is not a finite number")
    if exact and exact.adjusted() - unit.adjusted() > 19:
        raise OffGridError(f"{what}={exact:.6E} in steps of {unit} does not fit int64")
    with localcontext() as context:
        context.prec = 60
        context.traps[Inexact] = True  # a quotient that had to be rounded is not a whole number of steps
        try:
            units = exact / unit
        except ArithmeticError:
            units = None
    if units is None or units != units.to_integral_value():
        raise OffGridError(f"{what}={value} is off the grid: expected a multiple of {unit}")
    count = int(units)
    if not -INT64_MAX <= count <= INT64_MAX:
        raise OffGridError(f"{what}={value} is {count} steps of {unit}, which does not fit int64")
    return count


def units_to_decimal(count: int, unit: Decimal) -> Decimal:
    """Return `count` steps of `unit` as an exact decimal.

    Examples
    --------
    >>> units_to_decimal(6183763, Decimal("0.01"))
    Decimal('61837.63')
    """
    with localcontext() as context:
        context.prec = 60
        return Decimal(int(count)) * unit


@dataclass(frozen=True, slots=True)
class Instrument:
    """One tradable thing on one venue.

    Parameters
    ----------
    id : int
        Index in the session's instrument table, written in every row; from 0.
    venue, symbol : str
        Such as ``"binance"`` and ``"BTCUSDT"`` (the venue's own spelling).
    tick_size, lot_size : Decimal
        Steps of price and quantity that any message may carry.
    base, quote : str
        Asset codes.
    min_qty, max_qty : int
        Order quantity bounds, lots.
    min_px, max_px : int
        Order price bounds, ticks; 0 = none.
    min_notional : int
        Smallest order, ticks x lots; 0 = none.

    Raises
    ------
    ConfigError
        If a step is not positive or a bound is negative.
    """

    id: int
    venue: str
    symbol: str
    tick_size: Decimal
    lot_size: Decimal
    base: str = ""
    quote: str = ""
    min_qty: int = 1
    max_qty: int = INT64_MAX
    min_px: int = 0
    max_px: int = 0
    min_notional: int = 0

    def __post_init__(self) -> None:
        for name in ("tick_size", "lot_size"):
            step = getattr(self, name)
            if not isinstance(step, Decimal) or not step.is_finite() or step <= 0:
                raise ConfigError(f"{self.symbol}: {name} is {step!r}; expected a Decimal above 0")
        for name in ("id", "min_qty", "max_qty", "min_px", "max_px", "min_notional"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{self.symbol}: {name} is {getattr(self, name)}; expected 0 or more")

    def px_ticks(self, px: Decimal | str | int) -> int:
        """Return price `px` in ticks; raises OffGridError off the grid or beyond int64."""
        return decimal_to_units(px, self.tick_size, f"{self.symbol} px")

    def qty_lots(self, qty: Decimal | str | int) -> int:
        """Return quantity `qty` in lots; raises OffGridError off the grid or beyond int64."""
        return decimal_to_units(qty, self.lot_size, f"{self.symbol} qty")

    def px(self, ticks: int) -> Decimal:
        """Return `ticks` as a price in the quote asset."""
        return units_to_decimal(ticks, self.tick_size)

    def qty(self, lots: int) -> Decimal:
        """Return `lots` as a quantity of the base asset."""
        return units_to_decimal(lots, self.lot_size)

    def money(self, ticks_lots: int) -> Decimal:
        """Return a product of ticks and lots as an amount of the quote asset."""
        return units_to_decimal(ticks_lots, self.tick_size * self.lot_size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a journal's definitions; `from_dict` reads them back."""
        plain = asdict(self)
        plain["tick_size"], plain["lot_size"] = str(self.tick_size), str(self.lot_size)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Instrument:
        """Return the instrument that `to_dict` described."""
        return cls(**{**plain, "tick_size": Decimal(plain["tick_size"]), "lot_size": Decimal(plain["lot_size"])})
