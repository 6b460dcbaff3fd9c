"""Kraken spot: addresses, documented limits, names and times.

The venue speaks two protocols to the same engine. Version 2 is the current one; version 1 is frozen, and it is the one
of which recordings exist. They name assets differently: v2 and hftlab say ``BTC/USD``, v1 and REST say ``XBT/USD``.

References
----------
Kraken, docs.kraken.com/exchange: WebSocket v2 and v1 reference, guides "Book checksum", "Spot REST authentication",
"Spot WebSocket authentication", "Rate limits". Limits change; those below are the documented ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

__all__ = [
    "ASSET_PAIRS_PATH",
    "DEPTHS",
    "DOCS",
    "HEARTBEAT_S",
    "PING_INTERVAL_S",
    "PRODUCTION",
    "TOKEN_LIFE_S",
    "TOKEN_PATH",
    "Urls",
    "depth_path",
    "time_ns",
    "time_text",
    "v1_name",
    "v2_name",
]


@dataclass(frozen=True, slots=True)
class Urls:
    """Where one environment of the venue listens: REST base, public and private WebSocket (v2), public v1."""

    rest: str
    stream: str
    ws_api: str
    stream_v1: str = ""


PRODUCTION = Urls(
    rest="https://api.kraken.com",
    stream="wss://ws.kraken.com/v2",
    ws_api="wss://ws-auth.kraken.com/v2",
    stream_v1="wss://ws.kraken.com",
)
"""There is no test network for spot; ``validate`` in an order has it checked and not placed."""

DOCS = {
    "book": "https://docs.kraken.com/exchange/api-reference/spot-websocket-v2/book",
    "checksum": "https://docs.kraken.com/exchange/guides/websockets/book-checksum-v2",
    "checksum_v1": "https://docs.kraken.com/exchange/guides/websockets/book-checksum-v1",
    "executions": "https://docs.kraken.com/exchange/api-reference/spot-websocket-v2/executions",
    "orders": "https://docs.kraken.com/exchange/api-reference/spot-websocket-v2/add_order",
    "rest_auth": "https://docs.kraken.com/exchange/guides/rest/authentication",
}

DEPTHS = (10, 25, 100, 500, 1000)
"""Depths a book can be subscribed to; any other is refused by the venue."""
HEARTBEAT_S = 1
"""A quiet connection with a subscription gets a heartbeat this often."""
PING_INTERVAL_S = 25
"""The venue closes a connection that has sent nothing for about a minute."""
TOKEN_LIFE_S = 900
"""A token has to be used within this time; then it lives as long as the connection that subscribed with it."""
TOKEN_PATH = "/0/private/GetWebSocketsToken"
ASSET_PAIRS_PATH = "/0/public/AssetPairs"

_INT64_MAX = 2**63 - 1
_NS = 1_000_000_000
_RFC3339 = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_V2 = {"XBT": "BTC", "XDG": "DOGE"}
_V1 = {new: old for old, new in _V2.items()}


def time_ns(stamp: str) -> int:
    """Return an RFC 3339 time in UTC, as v2 writes them, in ns.

    Raises
    ------
    ValueError
        If `stamp` is no such time, or lies before 1970 or beyond int64.

    Examples
    --------
    >>> time_ns("1970-01-01T00:00:01.5Z")
    1500000000
    """
    match = _RFC3339.fullmatch(stamp)
    if match is None:
        raise ValueError(f"stamp={stamp!r}; expected a time such as 2023-10-06T17:35:55.440295Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    past = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH
    ns = (past.days * 86400 + past.seconds) * _NS + int((match[7] or "").ljust(9, "0"))
    if not 0 <= ns <= _INT64_MAX:
        raise ValueError(f"stamp={stamp!r} lies before 1970 or beyond int64 nanoseconds")
    return ns


def time_text(ns: int) -> str:
    """Return `ns` since 1970 as v2 writes times, to the microsecond.

    Examples
    --------
    >>> time_text(1696613755440295000)
    '2023-10-06T17:35:55.440295Z'
    """
    seconds, rest = divmod(ns, _NS)
    stamp = datetime.fromtimestamp(seconds, UTC)
    return f"{stamp:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def v1_name(symbol: str) -> str:
    """Return how v1 and REST (``wsname``) write a pair.

    Examples
    --------
    >>> v1_name("BTC/USD"), v1_name("ETH/BTC")
    ('XBT/USD', 'ETH/XBT')
    """
    return "/".join(_V1.get(asset, asset) for asset in symbol.split("/"))


def v2_name(wsname: str) -> str:
    """Return how v2 and hftlab write a pair.

    Examples
    --------
    >>> v2_name("XDG/XBT")
    'DOGE/BTC'
    """
    return "/".join(_V2.get(asset, asset) for asset in wsname.split("/"))


def depth_path(symbol: str, count: int) -> str:
    """Return path and query of the REST book snapshot; a connection never needs it, books come in the stream.

    Examples
    --------
    >>> depth_path("BTC/USD", 100)
    '/0/public/Depth?pair=XBTUSD&count=100'
    """
    return f"/0/public/Depth?pair={quote(v1_name(symbol).replace('/', ''), safe='')}&count={count}"
