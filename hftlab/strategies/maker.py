"""A market maker that quotes both sides of the touch and leans against its inventory.

It wants one bid and one ask, ``edge_ticks`` behind the best prices, both shifted down by ``skew_ticks`` for each full
``cap_lots`` of inventory (up when short). An order farther than ``slack_ticks`` from where it should be is replaced;
one that is in flight is left alone until the venue has answered. Nothing is quoted on a book that is not live.

What it does not do: forecast anything. A quoter at the touch is picked off by whoever knows more; on the synthetic
flow that ships with hftlab its fills lose on average within a second, by construction.
"""

from __future__ import annotations

from typing import Any

from hftlab.core.rows import OrdStatus
from hftlab.strategy import BUY, GTC, LIVE, NO_PX, POST_ONLY, SELL, Strategy, record

__all__ = ["Maker"]

WORKING, PARTLY, LAST_OPEN = int(OrdStatus.NEW), int(OrdStatus.PARTIALLY_FILLED), int(OrdStatus.UNKNOWN)


class Maker(Strategy):
    """Quote one bid and one ask around the touch of up to 8 instruments.

    Examples
    --------
    >>> Maker(edge_ticks=3)
    Maker(edge_ticks=3, size_lots=100, cap_lots=1000, skew_ticks=4, slack_ticks=1)
    """

    params = record(edge_ticks=0, size_lots=100, cap_lots=1000, skew_ticks=4, slack_ticks=1)
    state = record(order_id=[0] * 16)

    def on_book(ctx: Any, state: Any, params: Any, event: Any) -> None:
        """Bring both quotes to where they should be."""
        i = event.instrument
        bid, ask = ctx.best_bid(i), ctx.best_ask(i)
        if i >= 8 or ctx.book_state(i) != LIVE or bid == NO_PX or ask == NO_PX:
            return
        position = ctx.position(i)
        shift = position * params.skew_ticks // params.cap_lots
        for k in range(2):
            if k == 0:
                side, room, want = BUY, params.cap_lots - position, min(bid - params.edge_ticks - shift, ask - 1)
            else:
                side, room, want = SELL, params.cap_lots + position, max(ask + params.edge_ticks - shift, bid + 1)
            order = state.order_id[2 * i + k]
            status = ctx.order_status(order)
            if status == WORKING or status == PARTLY:
                if room <= 0:
                    ctx.cancel(order)
                elif abs(ctx.order_px(order) - want) > params.slack_ticks:
                    moved = ctx.replace(order, want, params.size_lots)
                    if moved > 0:
                        state.order_id[2 * i + k] = moved
            elif room > 0 and (status == 0 or status > LAST_OPEN):
                state.order_id[2 * i + k] = max(0, ctx.submit(i, side, want, params.size_lots, GTC, POST_ONLY))
