"""What ends in a log, a traceback or a notebook cell: no text of any object that holds a secret shows it."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest

from hftlab.core.errors import ConfigError, HftlabError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Kind, Tif
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec
from hftlab.services.venue import VenueSettings
from hftlab.sim.exchange import MatchingExchange
from hftlab.venues.binance import orders as binance
from hftlab.venues.binance.server import DEFAULT_INSTRUMENTS, BinanceServer
from hftlab.venues.binance.server import Account as BinanceAccount
from hftlab.venues.coinbase import orders as coinbase
from hftlab.venues.coinbase.connection import AdvancedConnection, MarketConnection
from hftlab.venues.coinbase.server import DEFAULT_INSTRUMENTS as COINBASE_INSTRUMENTS
from hftlab.venues.coinbase.server import Account as CoinbaseAccount
from hftlab.venues.coinbase.server import CoinbaseServer
from hftlab.venues.kraken import orders as kraken
from hftlab.venues.kraken.server import DEFAULT_INSTRUMENTS as KRAKEN_INSTRUMENTS
from hftlab.venues.kraken.server import Account as KrakenAccount
from hftlab.venues.kraken.server import KrakenServer

PLAIN = "S3CR3T-of-the-account"
CODED = base64.b64encode(PLAIN.encode()).decode()
PHRASE = "hush-hush-phrase"
TOKEN = "T0K3N-of-the-connection"
HIDDEN = (PLAIN, CODED, PHRASE, TOKEN, PLAIN[:8], CODED[:8])
BTC = Instrument(0, "any", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"), "BTC", "USD")


def order() -> Any:
    row = np.zeros(1, ROW)
    row["kind"], row["a"], row["flags"], row["code"], row["px"], row["qty"] = Kind.SUBMIT, 7, 1, Tif.GTC, 100, 100
    return row[0]


def kraken_codec() -> kraken.OrderCodec:
    codec = kraken.OrderCodec([BTC], "key", CODED, "hft-", ["BTC", "USD"])
    codec.take_token(b'{"error":[],"result":{"token":"%b","expires":900}}' % TOKEN.encode())
    return codec


def coinbase_codec() -> coinbase.OrderCodec:
    return coinbase.OrderCodec([BTC], "key", CODED, PHRASE, "hft-", ["BTC", "USD"])


def advanced_codec() -> coinbase.AdvancedOrderCodec:
    return coinbase.AdvancedOrderCodec([BTC], lambda method, path, now_ns: TOKEN, "hft-", ["BTC", "USD"])


def server(kind: type[Any], listed: dict[str, Instrument], secret: str) -> Any:
    instrument = next(iter(listed.values()))
    exchange = MatchingExchange([instrument], seed=1)
    return kind(exchange, [instrument], accounts=[("key", secret, {"USD": Decimal(1)})])


def session(key: dict[str, str]) -> SessionSpec:
    limits = {"BTCUSDT": CAREFUL_LIMITS["BTCUSDT"]}
    return SessionSpec("s", "sim", ("BTCUSDT",), {"name": "M", "source": "", "params": {}}, limits, key=key)


HOLDERS: dict[str, Callable[[], object]] = {
    "venue settings": lambda: VenueSettings(venue="coinbase", api_key="key", api_secret=CODED),
    "venue settings of binance": lambda: VenueSettings(api_key="key", api_secret=PLAIN),
    "binance codec": lambda: binance.OrderCodec([BTC], "key", PLAIN, "hft-", ["USD"]),
    "kraken codec": kraken_codec,
    "kraken token request": lambda: kraken_codec().token_request(1),
    "kraken token answer": lambda: msgspec.json.decode(
        b'{"result":{"token":"%b"}}' % TOKEN.encode(), type=kraken._Token
    ),
    "coinbase codec": coinbase_codec,
    "coinbase order": lambda: coinbase_codec().encode(order(), None, 0),
    "coinbase cancel all": lambda: coinbase_codec().cancel_all_request(0, 0),
    "coinbase session": lambda: coinbase_codec().session_requests(0),
    "advanced codec": advanced_codec,
    "advanced order": lambda: advanced_codec().encode(order(), None, 0),
    "coinbase connection": lambda: MarketConnection([BTC], sign=lambda now_ns: {"passphrase": PHRASE}),
    "advanced connection": lambda: AdvancedConnection([BTC], sign=lambda now_ns: {"jwt": TOKEN}),
    "binance account": lambda: BinanceAccount("key", PLAIN, {}),
    "coinbase account": lambda: CoinbaseAccount("key", CODED, {}),
    "kraken account": lambda: KrakenAccount("key", CODED, {}),
    "binance server": lambda: server(BinanceServer, DEFAULT_INSTRUMENTS, PLAIN),
    "coinbase server": lambda: server(CoinbaseServer, COINBASE_INSTRUMENTS, CODED),
    "kraken server": lambda: server(KrakenServer, KRAKEN_INSTRUMENTS, CODED),
}


def texts(value: object) -> list[str]:
    return [repr(value), str(value), f"{value}", f"{value!r:>1}", "%s" % (value,), "%r" % ([value],)]  # noqa: UP031


@pytest.mark.parametrize("name", sorted(HOLDERS))
def test_no_text_of_what_holds_a_secret_shows_it(name: str) -> None:
    holder = HOLDERS[name]()
    if isinstance(holder, kraken.Request | coinbase.Request):
        signature = next(value for key, value in holder.headers.items() if key.lower() not in ("content-type",))
        assert signature not in texts(holder)[0]
    for text in texts(holder):
        assert not [one for one in HIDDEN if one in text], text


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: kraken.OrderCodec([BTC], "key", PLAIN + "!", "hft-", []),
        lambda: kraken.OrderCodec([BTC], "", CODED, "hft-", []),
        lambda: coinbase.OrderCodec([BTC], "key", PLAIN + "!", PHRASE, "hft-", []),
        lambda: coinbase.OrderCodec([BTC], "", CODED, PHRASE, "hft-", []),
        lambda: binance.OrderCodec([BTC], "bad key", PLAIN, "hft-", []),
        lambda: coinbase.jwt_signer("name", f"-----BEGIN EC PRIVATE KEY-----\n{CODED}\n"),
        lambda: CoinbaseAccount("key", PLAIN + "!", {}),
        lambda: KrakenAccount("key", PLAIN + "!", {}),
        lambda: VenueSettings(api_secret=PLAIN, queue=0),
        lambda: session({"api_key_env": "KEY", "secret_env": PLAIN}),
        lambda: kraken_codec().take_token(b'{"error":[],"result":{"token":"%b\xff"}}' % TOKEN.encode()),
        lambda: kraken_codec().take_token(b'{"error":[],"result":{"token":["%b"]}}' % TOKEN.encode()),
    ],
)
def test_no_error_about_credentials_shows_them(wrong: Callable[[], object]) -> None:
    with pytest.raises(HftlabError) as caught:
        wrong()
    error: BaseException | None = caught.value
    while error is not None:  # the causes are printed too
        assert not [one for one in HIDDEN if one in "".join(traceback.format_exception_only(error))]
        error = error.__cause__ or error.__context__


def test_a_secret_that_is_no_base64_is_named_by_its_setting() -> None:
    with pytest.raises(ConfigError, match="secret"):
        kraken.OrderCodec([BTC], "key", "not base64!", "hft-", [])


def test_a_specification_takes_names_of_variables_and_no_key() -> None:
    named = {"api_key_env": "EXCHANGE_KEY", "secret_env": "EXCHANGE_SECRET"}
    assert session(named).key == named
    with pytest.raises(ConfigError, match="secret_env is not the name of an environment variable"):
        session({"api_key_env": "EXCHANGE_KEY", "secret_env": "aB3" * 20})
