"""Filters to instruments, decimal text to counts, and what the venue publishes at its edges."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.venues.binance.capture import read_capture
from hftlab.venues.binance.messages import instruments_from_exchange_info
from hftlab.venues.binance.spec import PRODUCTION, TESTNET, time_ns


def info(**changes: dict[str, Any]) -> bytes:
    filters = {
        "PRICE_FILTER": {"minPrice": "0.01000000", "maxPrice": "1000000.00000000", "tickSize": "0.01000000"},
        "LOT_SIZE": {"minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
        "NOTIONAL": {"minNotional": "5.00000000", "applyMinToMarket": True},
        "PERCENT_PRICE": {"multiplierUp": "5", "multiplierDown": "0.2", "avgPriceMins": 5},
    }
    for name, change in changes.items():
        filters[name] = filters.get(name, {}) | change
    symbol = {
        "symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT",
        "filters": [{"filterType": name, **f} for name, f in filters.items()],
    }  # fmt: skip
    limits = [{"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 50}]
    return json.dumps({"serverTime": 1, "rateLimits": limits, "symbols": [symbol], "new": {}}).encode()


def test_the_filters_become_an_instrument() -> None:
    (btc,) = instruments_from_exchange_info(info(), ["BTCUSDT"])
    assert (btc.id, btc.symbol, btc.base, btc.quote) == (0, "BTCUSDT", "BTC", "USDT")
    assert (btc.tick_size, btc.lot_size) == (Decimal("0.01"), Decimal("0.00001"))
    assert (btc.min_qty, btc.max_qty, btc.min_px, btc.max_px) == (1, 900_000_000, 1, 100_000_000)
    assert btc.money(btc.min_notional) == 5


def test_an_unknown_symbol_is_named() -> None:
    with pytest.raises(ConfigError, match=r"DOGE.*not listed"):
        instruments_from_exchange_info(info(), ["BTCUSDT", "DOGE"])


@pytest.mark.parametrize(("name", "field"), [("PRICE_FILTER", "tickSize"), ("LOT_SIZE", "stepSize")])
def test_a_step_of_zero_which_means_no_rule_is_refused_by_name(name: str, field: str) -> None:
    with pytest.raises(ConfigError, match=f"BTCUSDT: {name} {field}"):
        instruments_from_exchange_info(info(**{name: {field: "0.00000000"}}), ["BTCUSDT"])


def test_bytes_that_are_no_exchange_info_are_the_venues_fault() -> None:
    with pytest.raises(ProtocolError):
        instruments_from_exchange_info(b'{"code":-1003,"msg":"Too much request weight used."}', [])


def test_old_orders_off_todays_grid_refine_it() -> None:
    book = b'{"lastUpdateId":1,"bids":[["0.12036000","258.70000000"]],"asks":[]}'
    (btc,) = instruments_from_exchange_info(info(), ["BTCUSDT"], books={"BTCUSDT": book})
    assert (btc.tick_size, btc.lot_size) == (Decimal("0.00001"), Decimal("0.00001"))
    assert btc.min_px == 1000 and btc.money(btc.min_notional) == 5
    quarter = info(PRICE_FILTER={"tickSize": "0.25"})
    books = {"BTCUSDT": book.replace(b"0.12036", b"0.4")}
    (coarse,) = instruments_from_exchange_info(quarter, ["BTCUSDT"], books=books)
    assert coarse.tick_size == Decimal("0.1")
    with pytest.raises(ProtocolError, match="plain decimal"):
        instruments_from_exchange_info(info(), ["BTCUSDT"], books={"BTCUSDT": book.replace(b"0.12036", b"NaN")})


def test_every_symbol_a_venue_really_listed_gives_an_instrument_or_a_named_reason(shared_data: Path) -> None:
    ((_, payload),) = read_capture(shared_data / "binance" / "BINANCE.0")
    symbols = [s["symbol"] for s in json.loads(payload)["symbols"]]
    instruments = instruments_from_exchange_info(payload, symbols)
    assert len(instruments) == len(symbols) > 1000
    for instrument in instruments:
        assert 0 < instrument.min_qty <= instrument.max_qty and instrument.min_px <= instrument.max_px


def test_times_in_ms_and_us_are_told_apart_and_nonsense_is_refused() -> None:
    assert time_ns(1) == 1_000_000 and time_ns(1_700_000_000_000_000) == 1_700_000_000_000_000_000
    for stamp in (-1, 10**14, 10**17):
        with pytest.raises(ValueError, match="stamp"):
            time_ns(stamp)


def test_the_two_environments_share_no_address() -> None:
    assert not {PRODUCTION.rest, PRODUCTION.stream, PRODUCTION.ws_api} & {TESTNET.rest, TESTNET.stream, TESTNET.ws_api}
