"""How values look: the colours of the house, decimals of a step, short times. For pages, pictures and reports alike."""

from __future__ import annotations

from decimal import Decimal

__all__ = ["ASK", "BID", "GREY", "HALT", "INK", "WARN", "decimals", "span_words"]

BID, ASK, WARN, HALT, GREY, INK = "#0072B2", "#B84A00", "#8A6D00", "#882255", "#595F69", "#1B1F24"
"""A pair that stays apart for colour-blind readers, and the colours of states; all 4.5:1 or better on white."""


def decimals(step: Decimal) -> int:
    """Return how many decimals a multiple of `step` needs.

    Examples
    --------
    >>> decimals(Decimal("0.01")), decimals(Decimal("0.50")), decimals(Decimal("10"))
    (2, 1, 0)
    """
    return max(0, -int(step.normalize().as_tuple().exponent))


def span_words(ns: float) -> str:
    """Return a short time with the unit that suits it.

    Examples
    --------
    >>> span_words(84_200), span_words(1_240_000), span_words(2.5e9)
    ('84 µs', '1.2 ms', '2.5 s')
    """
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if abs(ns) >= size:
            return f"{ns / size:.1f} {unit}"
    return f"{ns / 1e3:.0f} µs"
