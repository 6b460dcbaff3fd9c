"""A grid of post-only orders on both sides of the touch, looked at on a timer.

Each ``interval_ns`` it wants one buy at each of the ``levels`` prices from the best bid down, and one sell at each from
the best ask up. What lies elsewhere is canceled; what is missing is sent; what is there is left alone, for its place in
the queue is all it has. Once ``cap_lots`` are held long nothing is bought and the buys are canceled, and the other way
round; orders already there may carry the position beyond the cap by what they hold.

What it is not: a strategy to trade. It forecasts nothing, does not lean against its inventory, and at the touch it is
filled by whoever knows better, so it loses what adverse selection costs. It is the grid that backtesters are compared
with: many orders, many cancels, many fills, no arithmetic. What it costs is what the engine costs.

Own orders are remembered in 32 places a side, of which at most 16 are wanted. A cancel that is under way longer than an
interval holds its place; while none is free nothing is sent.
"""

from __future__ import annotations

from typing import Any

from hftlab.core.rows import OrdStatus
from hftlab.strategy import BUY, GTC, LIVE, NO_PX, POST_ONLY, SELL, Strategy, record

__all__ = ["Grid"]

WORKING, PARTLY, LAST_OPEN = int(OrdStatus.NEW), int(OrdStatus.PARTIALLY_FILLED), int(OrdStatus.UNKNOWN)
PLACES, MOST_LEVELS = 32, 16


class Grid(Strategy):
    """Quote a grid of ``levels`` prices a side on instrument 0.

    Examples
    --------
    >>> Grid(levels=3)
    Grid(interval_ns=100000000, levels=3, size_lots=1, cap_lots=50)
    """

    params = record(interval_ns=100_000_000, levels=5, size_lots=1, cap_lots=50)
    state = record(order_id=[0] * 64, px=[0] * 64)

    def on_start(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Look first after one interval."""
        ctx.set_timer(ctx.now_ns + params.interval_ns)

    def on_timer(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Cancel what lies outside the grid, send what is missing in it."""
        ctx.set_timer(event.px + params.interval_ns)  # after the deadline asked for: no drift
        bid, ask = ctx.best_bid(0), ctx.best_ask(0)
        if ctx.book_state(0) != LIVE or bid == NO_PX or ask == NO_PX:
            return
        levels, position = min(params.levels, MOST_LEVELS), ctx.position(0)
        for k in range(2):
            side, sign, best = (BUY, -1, bid) if k == 0 else (SELL, 1, ask)
            full = position >= params.cap_lots if k == 0 else position <= -params.cap_lots
            first, there = PLACES * k, 0
            for place in range(first, first + PLACES):
                order = state.order_id[place]
                if order == 0:
                    continue
                status = ctx.order_status(order)
                if status == 0 or status > LAST_OPEN:
                    state.order_id[place] = 0
                    continue
                away = (state.px[place] - best) * sign
                inside = away >= 0 and away < levels
                if (full or not inside) and (status == WORKING or status == PARTLY):
                    ctx.cancel(order)
                if inside:
                    there |= 1 << away
            if full:
                continue
            place = first
            for away in range(levels):
                if there >> away & 1:
                    continue
                while place < first + PLACES and state.order_id[place] != 0:
                    place += 1
                if place == first + PLACES:
                    break
                px = best + sign * away
                order = ctx.submit(0, side, px, params.size_lots, GTC, POST_ONLY)
                if order > 0:
                    state.order_id[place], state.px[place] = order, px
