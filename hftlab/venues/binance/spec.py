"""Binance spot: addresses, documented limits, names of streams and requests.

References
----------
The venue's documentation repository ``binance/binance-spot-api-docs``: rest-api.md, web-socket-api.md,
web-socket-streams.md, user-data-stream.md, filters.md, errors.md. Limits change: those the venue publishes at run time
(rate limits and filters in ``exchangeInfo``) are read at start-up; the figures here are the documented ones, used for
what is published nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

__all__ = [
    "CONNECTION_LIFE_S",
    "DEPTH_LIMIT_MAX",
    "DOCS",
    "FUTURES",
    "FUTURES_DEPTH_LIMITS",
    "FUTURES_INFO_PATH",
    "OUTCOME_UNKNOWN_CODES",
    "PING_INTERVAL_S",
    "PONG_DEADLINE_S",
    "PRODUCTION",
    "RECV_WINDOW_MS",
    "STREAMS_PER_CONNECTION",
    "STREAM_MESSAGES_PER_S",
    "TESTNET",
    "Urls",
    "depth_path",
    "futures_depth_path",
    "stream_names",
    "time_ns",
]


@dataclass(frozen=True, slots=True)
class Urls:
    """Where one environment of the venue listens: REST base, market streams, WebSocket API."""

    rest: str
    stream: str
    ws_api: str


PRODUCTION = Urls(
    rest="https://api.binance.com",
    stream="wss://stream.binance.com:9443/stream",
    ws_api="wss://ws-api.binance.com:443/ws-api/v3",
)
TESTNET = Urls(
    rest="https://testnet.binance.vision",
    stream="wss://stream.testnet.binance.vision/stream",
    ws_api="wss://ws-api.testnet.binance.vision/ws-api/v3",
)
"""The testnet is wiped about once a month without notice; keys survive."""

FUTURES = Urls(
    rest="https://fapi.binance.com",
    stream="wss://fstream.binance.com/public/stream",
    ws_api="wss://ws-fapi.binance.com/ws-fapi/v1",
)
"""USD-M futures. Since 2026-04-23 streams are split by path; depth, trades and best prices are public."""

DOCS = {
    "rest": "https://github.com/binance/binance-spot-api-docs/blob/master/rest-api.md",
    "ws_api": "https://github.com/binance/binance-spot-api-docs/blob/master/web-socket-api.md",
    "streams": "https://github.com/binance/binance-spot-api-docs/blob/master/web-socket-streams.md",
    "user_data": "https://github.com/binance/binance-spot-api-docs/blob/master/user-data-stream.md",
    "errors": "https://github.com/binance/binance-spot-api-docs/blob/master/errors.md",
    "futures_book": "https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams/"
    "How-to-manage-a-local-order-book-correctly",
    "filters": "https://github.com/binance/binance-spot-api-docs/blob/master/filters.md",
}

CONNECTION_LIFE_S = 24 * 3600
"""The venue closes any WebSocket after this; reconnect earlier, at a quiet moment."""
PING_INTERVAL_S = 20
PONG_DEADLINE_S = 60
STREAM_MESSAGES_PER_S = 5
"""What a stream connection may send, pings, pongs and control messages together; more disconnects, then bans."""
STREAMS_PER_CONNECTION = 1024
DEPTH_LIMIT_MAX = 5000
FUTURES_DEPTH_LIMITS = (5, 10, 20, 50, 100, 500, 1000)
FUTURES_INFO_PATH = "/fapi/v1/exchangeInfo"
RECV_WINDOW_MS = 5000
OUTCOME_UNKNOWN_CODES = frozenset({-1006, -1007})
"""The request may or may not have been executed (so does any status from 500 up): ask before doing it again."""

_MICROSECONDS_FROM = 100_000_000_000_000
_INT64_MAX = 2**63 - 1


def time_ns(stamp: int) -> int:
    """Return a wire time in ns; the venue sends ms, or us when asked to: above 1e14 it is us.

    Raises
    ------
    ValueError
        If `stamp` is negative or its ns do not fit int64.

    Examples
    --------
    >>> time_ns(1499405658657) == time_ns(1499405658657000) == 1499405658657 * 10**6
    True
    """
    ns = stamp * 1000 if stamp > _MICROSECONDS_FROM else stamp * 1_000_000
    if not 0 <= ns <= _INT64_MAX:
        raise ValueError(f"stamp={stamp} is no time in ms or us since 1970")
    return ns


def depth_path(symbol: str, limit: int) -> str:
    """Return path and query of the REST book snapshot; the request weighs 250 for 5000 levels, 50 for 1000.

    Examples
    --------
    >>> depth_path("BTCUSDT", 1000)
    '/api/v3/depth?symbol=BTCUSDT&limit=1000'
    """
    return f"/api/v3/depth?symbol={quote(symbol, safe='')}&limit={limit}"


def futures_depth_path(symbol: str, limit: int) -> str:
    """Return path and query of the REST book snapshot of USD-M futures.

    Examples
    --------
    >>> futures_depth_path("BTCUSDT", 1000)
    '/fapi/v1/depth?symbol=BTCUSDT&limit=1000'
    """
    return f"/fapi/v1/depth?symbol={quote(symbol, safe='')}&limit={limit}"


def stream_names(symbol: str) -> list[str]:
    """Return the streams hftlab reads for `symbol`: depth deltas each 100 ms, trades, best bid and ask.

    Examples
    --------
    >>> stream_names("BTCUSDT")
    ['btcusdt@depth@100ms', 'btcusdt@trade', 'btcusdt@bookTicker']
    """
    name = symbol.lower()
    return [f"{name}@depth@100ms", f"{name}@trade", f"{name}@bookTicker"]
