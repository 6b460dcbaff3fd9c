"""Words for what a venue says besides prices: the codes of STATUS rows.

One vocabulary for all venues, so that a strategy's ``on_status`` reads the same whichever venue halted. Where a venue's
word has no equal here, the row carries `Status.UNKNOWN` and the venue's own message stands in the payload row.
"""

from __future__ import annotations

import enum

__all__ = ["Status"]


class Status(enum.IntEnum):
    """What a STATUS row says of its instrument (instrument 0 of an equities feed: of the whole venue)."""

    UNKNOWN = 0
    # the state of trading: one of these holds until the next of them
    TRADING = 1
    HALTED = 2  # no trading on any venue, by regulation or the listing venue
    PAUSED = 3  # no trading on any venue for a few minutes, because the price moved too far
    QUOTING = 4  # orders are taken and shown, nothing trades yet
    AUCTION = 5
    POST_ONLY = 6
    LIMIT_ONLY = 7
    CANCEL_ONLY = 8
    CLOSED = 9
    # this venue alone stopped or went on, whatever the others do
    VENUE_HALTED = 10
    VENUE_RESUMED = 11
    # the day
    MESSAGES_START = 20
    SYSTEM_OPEN = 21
    MARKET_OPEN = 22
    MARKET_CLOSE = 23
    SYSTEM_CLOSE = 24
    MESSAGES_END = 25
    # rules in force
    SHORT_SALE_FREE = 30
    SHORT_SALE_RESTRICTED = 31  # no short sale at or below the best bid
    AUCTION_COLLAR = 32  # px = reference, a = lower and b = upper bound of the reopening price, ticks
    BREAKER_LEVELS = 33  # index levels at which the whole market stops
    BREAKER_BREACHED = 34  # a = the level, 1 to 3
    # auctions
    IMBALANCE = 40  # px = reference price, qty = lots not paired (side: BID or ASK), a = lots paired
    AUCTION_EMPTY = 41  # an auction ended without a trade
    RELEASE_EXPECTED = 42  # of a new issue
    RELEASE_CANCELED = 43
    PRICE_DISCOVERY = 44  # of a direct listing: px = where it would execute now
    # reference data and corrections
    LISTED = 50
    LISTED_TEST = 51  # an issue made for tests, never to be shown or traded
    PARTICIPANT = 52  # a market maker's registration
    RETAIL_INTEREST = 53  # flags BID, ASK: sides with price-improving retail orders
    TRADE_BROKEN = 54  # a = the match number of a trade that no longer counts
