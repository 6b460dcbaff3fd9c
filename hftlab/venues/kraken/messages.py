"""Kraken spot: the shapes on the wire, each with a raw sample, and instruments from what the venue publishes.

The samples are cut from the venue's public documentation (spec.DOCS) and from public recordings. A Struct lists the
fields hftlab reads; unknown fields are skipped, so that the venue may add some. v2 writes prices and quantities as JSON
*numbers*, and their decimal text matters: `Number` keeps it, no float is ever made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any, TypeVar

import msgspec

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.core.instruments import Instrument
from hftlab.venues.kraken.spec import v2_name

__all__ = [
    "AssetPair",
    "Balance",
    "Execution",
    "Fee",
    "MethodAnswer",
    "Number",
    "OpenOrder",
    "PairInfo",
    "instruments_from_asset_pairs",
    "instruments_from_channel",
    "json_decoder",
    "plain_text",
]


_Pair = TypeVar("_Pair")


class Number(str):
    """A JSON number with a point or an exponent, as the text it was written in."""

    __slots__ = ()


def json_decoder() -> msgspec.json.Decoder[Any]:
    """Return a decoder that gives `Number` for every JSON number that is no integer.

    Examples
    --------
    >>> json_decoder().decode(b'[0.10000000, 5, "5"]')
    ['0.10000000', 5, '5']
    """
    return msgspec.json.Decoder(float_hook=Number)


def plain_text(value: object) -> str | None:
    """Return a JSON number as decimal text without an exponent; None for anything else, and for more than 40 digits.

    Examples
    --------
    >>> plain_text(Number("0.10000000")), plain_text(Number("1e-08")), plain_text(7), plain_text("7")
    ('0.10000000', '0.00000001', '7', None)
    """
    if type(value) is int:
        return str(value) if abs(value) < 10**40 else None
    if type(value) is not Number:
        return None
    if "e" in value or "E" in value:
        try:
            exact = Decimal(value)
        except ArithmeticError:  # an exponent beyond what Decimal holds
            return None
        return f"{exact:f}" if exact.is_finite() and -40 < exact.adjusted() < 40 and len(value) < 80 else None
    return str(value)


class AssetPair(msgspec.Struct, frozen=True):
    """One pair of REST AssetPairs.

    ``"XXBTZUSD":{"altname":"XBTUSD","wsname":"XBT/USD","base":"XXBT","quote":"ZUSD","pair_decimals":1,
    "lot_decimals":8,"ordermin":"0.0001","costmin":"0.5","tick_size":"0.1","status":"online",...}``
    """

    pair_decimals: int
    lot_decimals: int
    wsname: str = ""
    ordermin: Decimal | None = None
    costmin: Decimal | None = None
    status: str = "online"


class _AssetPairs(msgspec.Struct, frozen=True):
    error: list[str]
    result: dict[str, AssetPair] = {}


class PairInfo(msgspec.Struct, frozen=True):
    """One pair of the v2 instrument channel.

    ``{"symbol":"BTC/USD","base":"BTC","quote":"USD","status":"online","qty_precision":8,"qty_increment":1e-08,
    "price_precision":1,"cost_precision":5,"cost_min":0.5,"tick_size":0.1,"price_increment":0.1,"qty_min":5e-05,...}``
    """

    symbol: str
    base: str
    quote: str
    price_precision: int
    qty_precision: int
    qty_min: Decimal | None = None
    cost_min: Decimal | None = None
    status: str = "online"


class _Pairs(msgspec.Struct, frozen=True):
    pairs: list[PairInfo] = []


class _InstrumentChannel(msgspec.Struct, frozen=True):
    channel: str
    data: _Pairs


class Fee(msgspec.Struct, frozen=True):
    """A fee in the asset it was taken in: ``{"asset":"USD","qty":0.3458}``."""

    asset: str
    qty: Decimal


class Execution(msgspec.Struct, frozen=True):
    """What happened to one order, in the executions channel. Most fields come only with some kinds of event.

    ``{"order_id":"OVN7VD-7VYHS-APBKHA","symbol":"BTC/USDT","order_qty":0.00010000,"exec_type":"pending_new","side":
    "buy","order_type":"limit","cl_ord_id":"b17c7bb34d000200","limit_price":80000.0,"order_status":"pending_new",
    "timestamp":"2026-01-22T06:06:19.833306Z",...}`` and then only
    ``{"timestamp":"2026-01-22T06:06:19.833306Z","order_status":"new","exec_type":"new","cl_ord_id":"b17c7bb34d000200",
    "order_id":"OVN7VD-7VYHS-APBKHA"}``
    """

    order_id: str
    exec_type: str
    order_status: str = ""
    cl_ord_id: str = ""
    symbol: str = ""
    side: str = ""
    order_type: str = ""
    time_in_force: str = ""
    order_qty: Decimal | None = None
    limit_price: Decimal | None = None
    cum_qty: Decimal | None = None
    last_qty: Decimal | None = None
    last_price: Decimal | None = None
    trade_id: int | None = None
    exec_id: str = ""
    liquidity_ind: str = ""
    fees: list[Fee] = []
    reason: str = ""
    timestamp: str = ""


class MethodAnswer(msgspec.Struct, frozen=True):
    """Answer to a request.

    ``{"method":"add_order","req_id":42,"success":true,"result":{"order_id":"OABCDE-12345-FGHIJ","cl_ord_id":"..."},
    "time_in":"2026-05-05T10:00:00.123Z","time_out":"2026-05-05T10:00:00.125Z"}``, or with ``"success":false,"error":
    "EOrder:Insufficient funds"``
    """

    method: str = ""
    req_id: int | None = None
    success: bool = True
    error: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


class Balance(msgspec.Struct, frozen=True):
    """What an account holds of one asset, exact: free, and locked under open orders."""

    asset: str
    free: Decimal
    locked: Decimal


class OpenOrder(msgspec.Struct, frozen=True):
    """One order that the venue holds, as the snapshot of the executions channel tells it."""

    symbol: str
    order_id: str
    client_order_id: str
    price: Decimal
    orig_qty: Decimal
    executed_qty: Decimal
    status: str
    side: str


def instruments_from_asset_pairs(payload: bytes, symbols: Sequence[str]) -> list[Instrument]:
    """Return the instruments for `symbols`, ids 0, 1, ... in their order.

    Parameters
    ----------
    payload : bytes
        Body of the answer to ``GET /0/public/AssetPairs``.
    symbols : sequence of str
        As v2 writes them (``BTC/USD``); v1's spelling (``XBT/USD``) is taken for the same pair.

    Raises
    ------
    ProtocolError
        If `payload` is not such an answer.
    ConfigError
        If the venue does not list a symbol.

    Notes
    -----
    The grid is the pair's decimals, not its ``tick_size``: messages may carry levels of an earlier, finer tick.
    """
    try:
        answer = msgspec.json.decode(payload, type=_AssetPairs)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"AssetPairs: {error}") from error
    if answer.error:
        raise ProtocolError(f"AssetPairs: the venue answered {answer.error}")
    known = {v2_name(pair.wsname): pair for pair in answer.result.values() if pair.wsname}
    return [
        _instrument(
            n, symbol, base, quote, pair.pair_decimals, pair.lot_decimals, pair.ordermin, pair.costmin
        )
        for n, (symbol, pair) in enumerate(_chosen(symbols, known))
        for base, _, quote in [symbol.partition("/")]
    ]


def instruments_from_channel(payload: bytes, symbols: Sequence[str]) -> list[Instrument]:
    """Return the instruments for `symbols`, ids 0, 1, ..., from a snapshot of v2's instrument channel.

    Raises
    ------
    ProtocolError
        If `payload` is no message of that channel.
    ConfigError
        If the venue does not list a symbol.
    """
    try:
        message = msgspec.json.decode(payload, type=_InstrumentChannel)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"instrument channel: {error}") from error
    if message.channel != "instrument":
        raise ProtocolError(f"channel={message.channel!r}; expected the instrument channel")
    known = {pair.symbol: pair for pair in message.data.pairs}
    return [
        _instrument(
            n, symbol, pair.base, pair.quote, pair.price_precision, pair.qty_precision, pair.qty_min, pair.cost_min
        )
        for n, (symbol, pair) in enumerate(_chosen(symbols, known))
    ]


def _chosen(symbols: Sequence[str], known: Mapping[str, _Pair]) -> list[tuple[str, _Pair]]:
    names = [v2_name(symbol) for symbol in symbols]
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(f"symbols {missing} are not listed by the venue; expected names such as BTC/USD")
    return [(name, known[name]) for name in names]


def _instrument(
    identity: int, symbol: str, base: str, quote: str, px_decimals: int, qty_decimals: int, qty_min: Decimal | None,
    cost_min: Decimal | None,
) -> Instrument:  # fmt: skip
    if not 0 <= px_decimals <= 18 or not 0 <= qty_decimals <= 18:
        raise ProtocolError(f"{symbol}: {px_decimals} price and {qty_decimals} quantity decimals; expected 0 to 18")
    tick, lot = Decimal(1).scaleb(-px_decimals), Decimal(1).scaleb(-qty_decimals)
    return Instrument(
        id=identity,
        venue="kraken",
        symbol=symbol,
        tick_size=tick,
        lot_size=lot,
        base=base,
        quote=quote,
        min_qty=max(1, _steps(qty_min, lot)),
        min_notional=_steps(cost_min, tick * lot),
    )


def _steps(bound: Decimal | None, step: Decimal) -> int:
    """Return a lower bound in steps, rounded up; 0 if there is none."""
    return 0 if bound is None else int((bound / step).to_integral_value(ROUND_CEILING))
