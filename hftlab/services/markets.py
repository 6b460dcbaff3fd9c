"""The markets a session can be fed from: a venue and its dialect by one name, with addresses, listing and connection.

A venue may carry one market in several ways. A session names the way in its ``venue``: the folder's name, and behind a
colon the dialect where it is not the usual one. What a dialect costs and promises stands in its connection's module.

====================== ================================================================================================
binance                spot: depth with ranges of update ids, joined to a REST snapshot
binance:futures        USD-M futures: each delta names the one before
kraken, kraken:v1      version 2, and the frozen version 1: books proved by their checksums
coinbase               Exchange, level2_batch: levels each 50 ms, no key, no numbers
coinbase:level2        Exchange: levels at once; needs a key
coinbase:full          Exchange: every order, numbered; needs a key. Its rows are L3 and are journaled; the engine keeps
                       books of levels, so a strategy sees the ticker's touch and no depth: a feed to record
coinbase:advanced      Advanced Trade: levels, every message of the connection numbered
====================== ================================================================================================

Keys are read from the environment where a subscription is signed (`COINBASE_KEY_ENV`), by the process that connects.
Venues are imported when they are asked for, not with this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument

if TYPE_CHECKING:
    from hftlab.feeds.market import VenueConnection
    from hftlab.venues.coinbase.connection import Sign

__all__ = ["COINBASE_KEY_ENV", "MARKETS", "Market", "market"]

MARKETS = (
    "binance", "binance:futures", "coinbase", "coinbase:advanced", "coinbase:full", "coinbase:level2", "kraken",
    "kraken:v1",
)  # fmt: skip
"""The names there are."""

COINBASE_KEY_ENV = ("COINBASE_API_KEY", "COINBASE_API_SECRET", "COINBASE_PASSPHRASE")
"""Environment variables with the key that signs subscriptions to coinbase:level2 and coinbase:full."""


@dataclass(frozen=True, slots=True)
class Market:
    """One way to be fed.

    Parameters
    ----------
    name : str
        One of `MARKETS`.
    rest, stream : str
        The public production addresses.
    listing : str
        REST path of the answer that `instruments` reads.
    instruments : callable(payload, symbols) -> list of Instrument
        The instruments of `symbols`, numbered from 0.
    connect : callable(instruments, source) -> VenueConnection
        Makes a new connection; raises ConfigError if a key is there in part.
    signed : bool
        The venue refuses a subscription without a key.
    """

    name: str
    rest: str
    stream: str
    listing: str
    instruments: Callable[[bytes, Sequence[str]], list[Instrument]]
    connect: Callable[[Sequence[Instrument], int], VenueConnection]
    signed: bool = False

    def require_key(self) -> None:
        """Raise ConfigError if this market needs a key and the environment has none."""
        missing = [name for name in COINBASE_KEY_ENV if not os.environ.get(name)] if self.signed else []
        if missing:
            raise ConfigError(
                f"venue {self.name} needs a key: set the environment variables {', '.join(missing)}, or take the venue "
                f"{self.name.partition(':')[0]}, which needs none"
            )


def market(name: str) -> Market:
    """Return the market called `name`.

    Raises
    ------
    ConfigError
        If there is none of this name.

    Examples
    --------
    >>> market("kraken:v1").stream
    'wss://ws.kraken.com'
    """
    if name not in MARKETS:
        raise ConfigError(f"venue: {name!r}; expected one of {', '.join(MARKETS)}")
    venue, _, dialect = name.partition(":")
    return {"binance": _binance, "coinbase": _coinbase, "kraken": _kraken}[venue](name, dialect)


def _binance(name: str, dialect: str) -> Market:
    from hftlab.venues.binance.connection import FuturesConnection, MarketConnection
    from hftlab.venues.binance.messages import instruments_from_exchange_info
    from hftlab.venues.binance.spec import FUTURES, FUTURES_INFO_PATH, PRODUCTION

    if dialect == "futures":
        return Market(
            name, FUTURES.rest, FUTURES.stream, FUTURES_INFO_PATH, instruments_from_exchange_info,
            lambda instruments, source: FuturesConnection(instruments, source=source),
        )  # fmt: skip
    return Market(
        name, PRODUCTION.rest, PRODUCTION.stream, "/api/v3/exchangeInfo", instruments_from_exchange_info,
        lambda instruments, source: MarketConnection(instruments, source=source),
    )  # fmt: skip


def _kraken(name: str, dialect: str) -> Market:
    from hftlab.venues.kraken.connection import MarketConnection
    from hftlab.venues.kraken.messages import instruments_from_asset_pairs
    from hftlab.venues.kraken.spec import ASSET_PAIRS_PATH, PRODUCTION

    version = 1 if dialect == "v1" else 2
    return Market(
        name, PRODUCTION.rest, PRODUCTION.stream_v1 if version == 1 else PRODUCTION.stream, ASSET_PAIRS_PATH,
        instruments_from_asset_pairs,
        lambda instruments, source: MarketConnection(instruments, source=source, version=version),
    )  # fmt: skip


def _coinbase(name: str, dialect: str) -> Market:
    from hftlab.venues.coinbase.connection import AdvancedConnection, MarketConnection
    from hftlab.venues.coinbase.messages import instruments_from_products
    from hftlab.venues.coinbase.spec import ADVANCED, PRODUCTION, PUBLIC_PRODUCTS_PATH

    if dialect == "advanced":
        return Market(
            name, ADVANCED.rest, ADVANCED.stream, PUBLIC_PRODUCTS_PATH, instruments_from_products,
            lambda instruments, source: AdvancedConnection(instruments, source=source),
        )  # fmt: skip
    channel = dialect or "level2_batch"
    signed = channel != "level2_batch"

    def connect(instruments: Sequence[Instrument], source: int) -> VenueConnection:
        return MarketConnection(
            instruments, source=source, channel=channel, sign=_coinbase_sign(name) if signed else None
        )

    return Market(
        name, PRODUCTION.rest, PRODUCTION.stream, "/products", instruments_from_products, connect, signed
    )  # fmt: skip


def _coinbase_sign(name: str) -> Sign | None:
    """Return what signs a subscription; None without a key, as a simulated venue takes it."""
    from hftlab.venues.coinbase.orders import exchange_signature

    key, secret, passphrase = (os.environ.get(variable, "") for variable in COINBASE_KEY_ENV)
    if not (key or secret or passphrase):
        return None
    missing = [variable for variable in COINBASE_KEY_ENV if not os.environ.get(variable)]
    if missing:
        raise ConfigError(f"venue {name}: the environment variable {missing[0]} is empty; a key has all three parts")
    return lambda now_ns: exchange_signature(key, secret, passphrase, now_ns)
