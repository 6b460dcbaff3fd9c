"""Limits are given on purpose, definitions travel whole."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from typing import Any

import pytest

from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import Instrument

BTC = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), base="BTC", quote="USDT")
ETH = Instrument(1, "binance", "ETHUSDT", Decimal("0.01"), Decimal("0.0001"), base="ETH", quote="USDT")
LIMITS = Limits(max_order_qty=100, max_notional=10**12, max_position=1000, collar_ticks=500)
SPEC = {"max_order": "0.01", "max_position": "0.1", "max_notional": "1000", "collar": "50"}


def definitions(**changed: Any) -> Definitions:
    given = {
        "session": "s", "mode": "sim", "instruments": (BTC, ETH), "limits": (LIMITS, LIMITS),
        "strategy": StrategyRef("Maker", "class Maker: ...", {"size": 3}, "maker@1"), "seed": 7,
    }  # fmt: skip
    return Definitions(**{**given, **changed})


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "5", 2**63, float("nan")])
def test_no_limit_can_be_left_open(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"limits: {name} is"):
        dataclasses.replace(LIMITS, **{name: value})


@pytest.mark.parametrize(
    "name,value",
    [
        ("max_open_orders", 4097),
        ("max_position", 3_000_000_001),
        ("orders_per_s", 10**9 + 1),
        ("collar_ticks", 2**60 + 1),
    ],
)
def test_a_limit_beyond_what_the_kernels_hold_is_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(LIMITS, **{name: value})
    assert getattr(dataclasses.replace(LIMITS, **{name: value - 1}), name) == value - 1


def test_decimal_limits_become_ticks_and_lots() -> None:
    limits = Limits.from_decimals(BTC, {**SPEC, "orders_per_s": 5})
    assert limits == Limits(1000, 10**10, 10_000, 5000, orders_per_s=5)


def test_an_amount_between_two_units_counts_as_the_stricter_one() -> None:
    assert Limits.from_decimals(BTC, {**SPEC, "collar": "50.019"}).collar_ticks == 5001
    digits = "1234567890.12345678901234567890"
    assert Limits.from_decimals(BTC, {**SPEC, "max_notional": digits}).max_notional == 12345678901234567


@pytest.mark.parametrize("name", SPEC)
@pytest.mark.parametrize("value", [0.5, "x", "NaN", "Infinity", None, True])
def test_what_is_no_decimal_text_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"limits: {name} is .*; expected an amount as decimal text"):
        Limits.from_decimals(BTC, {**SPEC, name: value})


def test_missing_and_unknown_limits_are_named() -> None:
    with pytest.raises(ConfigError, match="max_order is missing"):
        Limits.from_decimals(BTC, {k: v for k, v in SPEC.items() if k != "max_order"})
    with pytest.raises(ConfigError, match="no limit 'max_oder'"):
        Limits.from_decimals(BTC, {**SPEC, "max_oder": "1"})
    with pytest.raises(OffGridError, match="off the grid"):
        Limits.from_decimals(BTC, {**SPEC, "max_order": "0.000001"})


def test_definitions_survive_plain_types_and_json() -> None:
    of = definitions()
    assert Definitions.from_dict(json.loads(json.dumps(of.to_dict()))) == of


def test_fields_of_a_later_version_are_left_alone() -> None:
    plain = definitions().to_dict()
    plain["later"] = 1
    plain["limits"][0]["later"] = 1
    plain["strategy"]["later"] = 1
    assert Definitions.from_dict(plain) == definitions()


def test_assets_are_listed_once_and_found() -> None:
    of = definitions()
    assert of.assets == ("BTC", "USDT", "ETH")
    assert [of.asset(code) for code in ("BTC", "USDT", "ETH", "BNB", "")] == [0, 1, 2, -1, -1]


@pytest.mark.parametrize(
    "changed,words",
    [
        ({"instruments": (ETH, BTC)}, r"ids are \[1, 0\]; expected 0, 1, 2"),
        ({"limits": (LIMITS,)}, "1 given for 2 instruments"),
        ({"seed": 2**63}, "expected an integer of 64 bits"),
    ],
)
def test_definitions_that_do_not_fit_together_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        definitions(**changed)
