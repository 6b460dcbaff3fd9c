"""Every market by its name, and a paper session that trades on the faces of the venues it can be fed from."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from adversity.live import maker_spec, replayed, trader, venue

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Kind
from hftlab.services.feed import market_connection
from hftlab.services.markets import COINBASE_KEY_ENV, MARKETS, market
from hftlab.venues.coinbase.server import DEFAULT_ACCOUNT, PASSPHRASE

BTC = Instrument(0, "any", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"))


@pytest.mark.parametrize("name", MARKETS)
def test_every_market_has_addresses_a_listing_and_a_connection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in COINBASE_KEY_ENV:
        monkeypatch.delenv(variable, raising=False)
    found = market(name)
    assert found.rest.startswith("https://") and found.stream.startswith("wss://") and found.listing.startswith("/")
    connection = market_connection(name, [BTC])
    connection.on_open(1)
    requests = [json.loads(request) for request in connection.subscribe_requests([0])]
    assert requests
    assert connection.poll(2, np.zeros(connection.rows_needed, object)) == 0


def test_a_dialect_is_what_its_subscription_asks_for() -> None:
    def asked(name: str) -> str:
        return b"".join(market_connection(name, [BTC]).subscribe_requests([0])).decode()

    assert '"event":"subscribe"' in asked("kraken:v1") and '"method":"subscribe"' in asked("kraken")
    assert '["full",' in asked("coinbase:full") and '["level2_batch",' in asked("coinbase")
    assert '"channel":"level2"' in asked("coinbase:advanced") and '["level2",' in asked("coinbase:level2")
    assert market("coinbase").rest != market("coinbase:advanced").rest
    assert market("kraken").stream != market("kraken:v1").stream


def test_a_signed_channel_takes_its_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in COINBASE_KEY_ENV:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match="COINBASE_API_KEY, COINBASE_API_SECRET, COINBASE_PASSPHRASE"):
        market("coinbase:full").require_key()
    market("coinbase").require_key()
    monkeypatch.setenv("COINBASE_API_KEY", "key")
    with pytest.raises(ConfigError, match="COINBASE_API_SECRET is empty"):
        market_connection("coinbase:full", [BTC])
    monkeypatch.setenv("COINBASE_API_SECRET", "c2VjcmV0")
    monkeypatch.setenv("COINBASE_PASSPHRASE", "phrase")
    market("coinbase:full").require_key()
    (request,) = market_connection("coinbase:full", [BTC]).subscribe_requests([0])
    assert {"key", "passphrase", "timestamp", "signature"} <= json.loads(request).keys()


def test_a_name_that_is_no_market_is_told_those_there_are() -> None:
    for wrong in ("kraken:v3", "bitmex", "", "coinbase:"):
        with pytest.raises(ConfigError, match="expected one of binance, binance:futures, coinbase"):
            market(wrong)
    with pytest.raises(ConfigError, match="expected one of binance"):
        replace(maker_spec("m"), mode="paper", venue="kraken:v3")
    with pytest.raises(ConfigError, match="mode paper"):
        replace(maker_spec("m"), venue="kraken")


@pytest.mark.parametrize(
    ("face", "name", "symbol"), [("kraken", "kraken", "BTC/USD"), ("coinbase", "coinbase", "BTC-USD")]
)
def test_a_paper_session_is_fed_by_the_venues_face(face: str, name: str, symbol: str, home: Path) -> None:
    spec = maker_spec("paper")
    limits = {symbol: spec.limits["BTCUSDT"]}
    with venue("--venue", face, "--seed", "7") as running:
        paper = replace(
            spec, mode="paper", venue=name, symbols=(symbol,), limits=limits, endpoints=running.endpoints
        )
        with trader(paper, running.endpoints) as live:
            live.wait(lambda told: told["feed"].get(symbol, {}).get("state") == "live", "a live book")
            live.wait(lambda told: told["counters"].get("open_orders", 0) > 0, "an open order")
            assert live.stop() == 0
    rows = live.rows()
    states = rows[rows["kind"] == Kind.BOOK_STATE]["code"].tolist()
    assert states[0] == BookState.LIVE and (rows["kind"] == Kind.SUBMIT).any()
    assert replayed(live.folder)["replay_identical"]


def test_a_session_records_every_order_of_coinbases_full_channel(home: Path) -> None:
    spec = maker_spec("paper")
    limits = {"BTC-USD": spec.limits["BTCUSDT"]}
    with venue("--venue", "coinbase", "--seed", "7") as running:
        paper = replace(
            spec, mode="paper", venue="coinbase:full", symbols=("BTC-USD",), limits=limits, endpoints=running.endpoints
        )
        key = dict(zip(COINBASE_KEY_ENV, (*DEFAULT_ACCOUNT[:2], PASSPHRASE), strict=True))
        with trader(paper, running.endpoints, **key) as live:
            begun = live.wait(lambda told: told["feed"].get("BTC-USD", {}).get("state") == "live", "a live book")
            live.wait(lambda told: told["seq"] > begun["seq"] + 1000, "rows")
            assert live.stop() == 0
    rows = live.rows()
    assert {Kind.ADD, Kind.DELETE, Kind.EXECUTE, Kind.QUOTE} <= set(rows["kind"].tolist())
    assert set(rows["code"][rows["kind"] == Kind.BOOK_STATE].tolist()) == {BookState.LIVE, BookState.RESYNCING}
    assert replayed(live.folder)["replay_identical"]
