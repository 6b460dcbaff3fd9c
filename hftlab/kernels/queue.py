"""The queue at one price, when only totals are known: which part of a cancel was ahead of us.

The model. A resting order has ``ahead`` lots before it and ``behind`` after it. Trades take from the front. Of lots
that vanish without a trade some were ahead, some behind; nobody tells. `cancels_ahead` says how many are taken to have
been ahead. Positions are estimates, so they are float64: no money is computed from them, only when an order's turn has
come.

Worst case accepted: cancels of one's own orders at the price are not told apart from others'; whoever follows several
orders at one price is off by their lots.

References
----------
Rigtorp, E. (2013), Estimating order queue position. hftbacktest, "Queue Models".
"""

from __future__ import annotations

import math

from hftlab.kernels.jit import kernel

__all__ = ["LOG", "POWER", "PROPORTIONAL", "RISK_AVERSE", "cancels_ahead"]

RISK_AVERSE, PROPORTIONAL, POWER, LOG = range(4)


@kernel()
def cancels_ahead(model: int, exponent: float, ahead: float, behind: float, canceled: float) -> float:
    """Return how many of `canceled` lots at a price were ahead of an order.

    Parameters
    ----------
    model : int
        `RISK_AVERSE`: only what those behind could not have been. `PROPORTIONAL`, `POWER`, `LOG`: shared by
        f(ahead) : f(behind), with f(x) = x, x ** exponent, log(1 + x).
    exponent : float64
        Of `POWER`.
    ahead, behind : float64
        Lots before and after the order, before the cancel.
    canceled : float64
        Lots that vanished without a trade.

    Returns
    -------
    float64
        Between what those behind could not have been, ``canceled - behind``, and all that were ahead.

    Examples
    --------
    >>> cancels_ahead(RISK_AVERSE, 1.0, 10.0, 30.0, 8.0), cancels_ahead(PROPORTIONAL, 1.0, 10.0, 30.0, 8.0)
    (0.0, 2.0)
    >>> cancels_ahead(POWER, 2.0, 10.0, 30.0, 8.0), cancels_ahead(RISK_AVERSE, 1.0, 10.0, 5.0, 8.0)
    (0.8, 3.0)
    """
    ahead, behind = max(ahead, 0.0), max(behind, 0.0)
    canceled = min(canceled, ahead + behind)
    least = max(canceled - behind, 0.0)
    if model == RISK_AVERSE or ahead <= 0.0 or canceled <= 0.0:
        return least
    if model == PROPORTIONAL:
        front, back = ahead, behind
    elif model == POWER:
        front, back = ahead**exponent, behind**exponent
    else:
        front, back = math.log1p(ahead), math.log1p(behind)
    return min(max(canceled * front / (front + back), least), ahead)
