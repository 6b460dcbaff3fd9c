"""Coinbase: addresses, documented limits, names of channels and requests of its two APIs.

*Exchange* (institutions) and *Advanced Trade* (everybody) are one matching engine behind two protocols. Exchange gives
each product a sequence of its own and, on its ``full`` channel, every order; Advanced Trade numbers the messages of a
connection and gives price levels only.

References
----------
docs.cdp.coinbase.com: /exchange (websocket-feed/overview, websocket-feed/channels, rest-api) and
/coinbase-app/advanced-trade-apis (websocket, rest). Limits change: the figures here are the documented ones.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from urllib.parse import quote

from hftlab.core.instruments import INT64_MAX

__all__ = [
    "ADVANCED",
    "CHANNELS",
    "DOCS",
    "HEARTBEAT_S",
    "JWT_LIFE_S",
    "MAX_OPEN_ORDERS",
    "PRODUCTION",
    "PUBLIC_PRODUCTS_PATH",
    "SANDBOX",
    "SUBSCRIBE_WITHIN_S",
    "TIMESTAMP_WINDOW_S",
    "Urls",
    "book_path",
    "time_ns",
    "time_text",
]


@dataclass(frozen=True, slots=True)
class Urls:
    """Where one environment listens: REST base, market data, and the socket on which an account's events come."""

    rest: str
    stream: str
    user: str


PRODUCTION = Urls(
    rest="https://api.exchange.coinbase.com",
    stream="wss://ws-feed.exchange.coinbase.com",
    user="wss://ws-direct.exchange.coinbase.com",
)
SANDBOX = Urls(
    rest="https://api-public.sandbox.exchange.coinbase.com",
    stream="wss://ws-feed-public.sandbox.exchange.coinbase.com",
    user="wss://ws-direct.sandbox.exchange.coinbase.com",
)
ADVANCED = Urls(
    rest="https://api.coinbase.com",
    stream="wss://advanced-trade-ws.coinbase.com",
    user="wss://advanced-trade-ws-user.coinbase.com",
)
"""Advanced Trade; its REST paths begin with /api/v3/brokerage."""

DOCS = {
    "exchange_channels": "https://docs.cdp.coinbase.com/exchange/websocket-feed/channels",
    "exchange_overview": "https://docs.cdp.coinbase.com/exchange/websocket-feed/overview",
    "exchange_rest": "https://docs.cdp.coinbase.com/api-reference/exchange-api/rest-api/introduction",
    "advanced_channels": "https://docs.cdp.coinbase.com/coinbase-app/advanced-trade-apis/websocket/websocket-channels",
    "advanced_rest": "https://docs.cdp.coinbase.com/coinbase-app/advanced-trade-apis/rest-api",
}

SUBSCRIBE_WITHIN_S = 5
"""A connection that has subscribed to nothing for so long is closed."""
HEARTBEAT_S = 1
TIMESTAMP_WINDOW_S = 30
"""How far the timestamp of a signed Exchange request may be off (secondary sources only)."""
JWT_LIFE_S = 120
"""Life of an Advanced Trade token; a stream accepted with it goes on."""
MAX_OPEN_ORDERS = 500
"""Open orders of a profile on one product."""
PUBLIC_PRODUCTS_PATH = "/api/v3/brokerage/market/products"
"""Advanced Trade's list of products that needs no key."""
CHANNELS = ("level2_batch", "level2", "full")
"""Exchange channels that carry a book: levels each 50 ms without a key, levels at once, every order."""

_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?(?:Z|\+00:00)", re.ASCII
)


def time_ns(text: str) -> int:
    """Return an RFC 3339 time in UTC, up to nine digits of a second, in ns since 1970.

    Raises
    ------
    ValueError
        If `text` is none, lies before 1970 or its ns do not fit int64; a leap second (60) is none.

    Examples
    --------
    >>> time_ns("2021-04-17T16:43:37.075687Z"), time_ns("1970-01-01T00:00:01Z")
    (1618677817075687000, 1000000000)
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"time={text!r} is no RFC 3339 time in UTC")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if year < 1970 or not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        raise ValueError(f"time={text!r} has no such day since 1970")
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(f"time={text!r} has no such time of day")
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    ns = seconds * 1_000_000_000 + int((match[7] or "").ljust(9, "0"))
    if ns > INT64_MAX:
        raise ValueError(f"time={text!r} is beyond the year 2262")
    return ns


def time_text(ns: int) -> str:
    """Return `ns` since 1970 as the venue writes it: RFC 3339, microseconds, Z.

    Examples
    --------
    >>> time_text(1618677817075687000)
    '2021-04-17T16:43:37.075687Z'
    """
    seconds, rest = divmod(ns, 1_000_000_000)
    days, second = divmod(seconds, 86_400)
    year, month, day = _civil(days)
    return (
        f"{year:04d}-{month:02d}-{day:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        f".{rest // 1000:06d}Z"
    )


def _civil(days: int) -> tuple[int, int, int]:
    """Return year, month and day of a count of days since 1970-01-01 (Hinnant's algorithm)."""
    shifted = days + 719_468
    era, doe = divmod(shifted, 146_097)
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9
    return yoe + era * 400 + (month <= 2), month, doy - (153 * mp + 2) // 5 + 1


def book_path(product: str, level: int = 3) -> str:
    """Return path and query of the Exchange's REST book: level 1 best, 2 by price, 3 every order.

    Examples
    --------
    >>> book_path("BTC-USD")
    '/products/BTC-USD/book?level=3'
    """
    return f"/products/{quote(product, safe='')}/book?level={level}"
