"""The exact reading and writing of a venue's decimal text, for one step: `instruments.decimal_to_units` made fast.

Where a message has twenty numbers, a Decimal for each costs more than the rest of the message. Text of plain digits
needs none: the digits before and after the point, padded to the step's decimals, are one Python integer, and that
divided by the step's mantissa is the count, or a remainder says that it is off the grid. What is not plain digits (a
sign, an exponent, white space, digits that are not ASCII) is refused, as is a count beyond int64. Nothing is rounded.
"""

from __future__ import annotations

import re
from decimal import Decimal

from hftlab.core.errors import OffGridError
from hftlab.core.instruments import INT64_MAX, Instrument

__all__ = ["DecimalGrid"]

_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST = 40  # digits of a decimal worth reading: int64 ticks need fewer


class DecimalGrid:
    """Exact conversion between a venue's decimal text and a count of steps.

    Parameters
    ----------
    step : Decimal
        Tick or lot, above 0.
    what : str
        Name of the quantity, for the messages.

    Examples
    --------
    >>> grid = DecimalGrid(Decimal("0.01"), "px")
    >>> grid.count("61837.63000000"), grid.text(6183763), grid.text(5)
    (6183763, '61837.63', '0.05')
    """

    __slots__ = ("_power", "decimals", "step", "unit", "what")

    def __init__(self, step: Decimal, what: str) -> None:
        sign, digits, exponent = step.normalize().as_tuple()
        if sign or not isinstance(exponent, int) or not any(digits):
            raise OffGridError(f"{what}: step is {step}; expected a decimal above 0")
        mantissa = int("".join(map(str, digits)))
        self.step = step
        self.what = what
        self.decimals = max(0, -exponent)
        self.unit: int = mantissa * 10 ** max(0, exponent)
        self._power: int = 10**self.decimals

    def count(self, text: str) -> int:
        """Return `text` in steps; raises OffGridError unless it is plain digits, on the grid and within int64."""
        if _PLAIN.fullmatch(text) is None:
            raise OffGridError(f"{self.what}={text!r} is not a plain decimal number")
        whole, _, fraction = text.partition(".")
        if len(fraction) > self.decimals:
            if fraction[self.decimals :].strip("0"):
                raise OffGridError(f"{self.what}={text} is off the grid: expected a multiple of {self.step}")
            fraction = fraction[: self.decimals]
        if len(whole) > _LONGEST:  # too long for Python's int(); still too large for the range check below
            whole = whole.lstrip("0")[:_LONGEST] or "0"
        steps, rest = divmod(int(whole + fraction.ljust(self.decimals, "0")), self.unit)
        if rest:
            raise OffGridError(f"{self.what}={text} is off the grid: expected a multiple of {self.step}")
        if steps > INT64_MAX:
            raise OffGridError(f"{self.what}={text} is {steps} steps of {self.step}, which does not fit int64")
        return steps

    def text(self, count: int) -> str:
        """Return `count` steps, 0 or more, as the shortest fixed-point text of this grid."""
        if not self.decimals:
            return str(count * self.unit)
        whole, fraction = divmod(count * self.unit, self._power)
        return f"{whole}.{fraction:0{self.decimals}d}"

    @classmethod
    def of_px(cls, instrument: Instrument) -> DecimalGrid:
        """Return the price grid of `instrument`."""
        return cls(instrument.tick_size, f"{instrument.symbol} px")

    @classmethod
    def of_qty(cls, instrument: Instrument) -> DecimalGrid:
        """Return the quantity grid of `instrument`."""
        return cls(instrument.lot_size, f"{instrument.symbol} qty")
