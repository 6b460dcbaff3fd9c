"""A market maker that quotes both sides of the touch and leans against its inventory.

It wants one bid and one ask, ``edge_ticks`` behind the best prices, both shifted down by ``skew_ticks`` for each full
``cap_lots`` of inventory (up when short). An order farther than ``slack_ticks`` from where it should be is replaced; one
that is in flight is left alone until the venue has answered. Nothing is quoted on a book that is not live.

What it does not do: forecast anything. A quoter at the touch is picked off by whoever knows more; on the synthetic flow
that ships with hftlab its fills lose on average within a second, by construction.
"""

from __future__ import annotations

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
    state = record(bid_id=[0] * 8, ask_id=[0] * 8)

    def on_book(ctx, state, params, event):  # type: ignore[no-untyped-def]  # noqa: N805  # compiled: no annotations, no self
        i = event.instrument
        bid, ask = ctx.best_bid(i), ctx.best_ask(i)
        if i >= 8 or ctx.book_state(i) != LIVE or bid == NO_PX or ask == NO_PX:
            return
        position = ctx.position(i)
        shift = position * params.skew_ticks // params.cap_lots
        want_bid = min(bid - params.edge_ticks - shift, ask - 1)
        want_ask = max(ask + params.edge_ticks - shift, bid + 1)

        order, status = state.bid_id[i], ctx.order_status(state.bid_id[i])
        if position >= params.cap_lots:
            if status == WORKING or status == PARTLY:
                ctx.cancel(order)
        elif status == WORKING or status == PARTLY:
            if abs(ctx.order_px(order) - want_bid) > params.slack_ticks:
                moved = ctx.replace(order, want_bid, params.size_lots)
                if moved > 0:
                    state.bid_id[i] = moved
        elif status == 0 or status > LAST_OPEN:
            state.bid_id[i] = max(0, ctx.submit(i, BUY, want_bid, params.size_lots, GTC, POST_ONLY))

        order, status = state.ask_id[i], ctx.order_status(state.ask_id[i])
        if position <= -params.cap_lots:
            if status == WORKING or status == PARTLY:
                ctx.cancel(order)
        elif status == WORKING or status == PARTLY:
            if abs(ctx.order_px(order) - want_ask) > params.slack_ticks:
                moved = ctx.replace(order, want_ask, params.size_lots)
                if moved > 0:
                    state.ask_id[i] = moved
        elif status == 0 or status > LAST_OPEN:
            state.ask_id[i] = max(0, ctx.submit(i, SELL, want_ask, params.size_lots, GTC, POST_ONLY))
