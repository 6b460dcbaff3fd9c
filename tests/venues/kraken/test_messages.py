"""Kraken's instruments, names, times and numbers, from what the venue publishes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.venues.kraken.capture import protocol_version, read_capture
from hftlab.venues.kraken.messages import (
    Number,
    instruments_from_asset_pairs,
    instruments_from_channel,
    json_decoder,
    plain_text,
)
from hftlab.venues.kraken.spec import time_ns, time_text, v1_name, v2_name

CHANNEL = (
    b'{"channel":"instrument","type":"snapshot","data":{"assets":[{"id":"USD","precision":4}],"pairs":[{"symbol":'
    b'"BTC/USD","base":"BTC","quote":"USD","status":"online","qty_precision":8,"qty_increment":1e-08,"price_precision":1,'
    b'"cost_precision":5,"cost_min":0.5,"tick_size":0.1,"price_increment":0.1,"qty_min":5e-05}]}}'
)
"""As the live channel of 2026-08-16 told it."""


def test_recorded_asset_pairs_give_their_decimals_under_either_name(shared_data: Path) -> None:
    body = next(b for _, b in read_capture(shared_data / "kraken" / "KRAKEN.0") if b"pair_decimals" in b)
    old, new = (instruments_from_asset_pairs(body, [name]) for name in ("XBT/USD", "BTC/USD"))
    assert old[0] == new[0]
    assert (new[0].symbol, new[0].base, new[0].tick_size, new[0].lot_size, new[0].min_qty) == (
        "BTC/USD", "BTC", Decimal("0.1"), Decimal("0.00000001"), 20000,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="NO/PAIR"):
        instruments_from_asset_pairs(body, ["NO/PAIR"])


def test_the_instrument_channel_gives_the_same() -> None:
    (btc,) = instruments_from_channel(CHANNEL, ["BTC/USD"])
    assert (btc.tick_size, btc.lot_size, btc.min_qty) == (Decimal("0.1"), Decimal("0.00000001"), 5000)
    assert btc.money(btc.min_notional) == Decimal("0.5")


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"error":["EGeneral:Unknown"]}', b'{"error":[],"result":{"X":{}}}'])
def test_what_is_no_answer_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="AssetPairs"):
        instruments_from_asset_pairs(payload, [])
    with pytest.raises(ProtocolError, match="channel"):
        instruments_from_channel(payload, [])
    with pytest.raises(ProtocolError, match="channel"):
        instruments_from_channel(CHANNEL.replace(b'"instrument"', b'"book"'), [])
    with pytest.raises(ProtocolError, match="decimals"):
        instruments_from_channel(CHANNEL.replace(b'"price_precision":1', b'"price_precision":99'), ["BTC/USD"])


@given(st.integers(0, (2**63 - 1) // 1000))
def test_times_come_back_to_the_microsecond(us: int) -> None:
    assert time_ns(time_text(us * 1000)) == us * 1000


@pytest.mark.parametrize(
    "text",
    [
        "", "2023-10-06", "2023-10-06T17:35:55", "2023-02-30T00:00:00Z", "1969-12-31T00:00:00Z",
        "2300-01-01T00:00:00Z", "2023-10-06T17:35:55.1234567890Z", "2023-10-06T24:00:00Z",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"stamp|range|day|hour"):
        time_ns(text)


def test_names_of_both_versions_name_the_same_pair() -> None:
    for name in ("BTC/USD", "DOGE/BTC", "ETH/EUR"):
        assert v2_name(v1_name(name)) == v2_name(name) == name


def test_numbers_keep_their_text_and_lose_their_exponent() -> None:
    values = json_decoder().decode(b'[0.10000000, 1e-08, 5, -2.5, 1e400, 1e99999999999999999999, true, "1.5"]')
    assert [plain_text(value) for value in values] == ["0.10000000", "0.00000001", "5", "-2.5", None, None, None, None]
    assert type(values[0]) is Number


def test_a_message_tells_its_protocol() -> None:
    told = [b'{"method":"ping"}', b'[0,{"a":[]},"book-10","XBT/USD"]', b"{}"]
    assert [protocol_version(frame) for frame in told] == [2, 1, 0]
