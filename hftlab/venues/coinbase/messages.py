"""Coinbase: the shapes on the wire, each with a raw sample, and instruments from what the venue lists.

The samples are cut from the venue's public documentation (spec.DOCS). A Struct lists the fields hftlab reads; unknown
fields are skipped, so that the venue may add some. Market data has no Struct: `market` reads it from the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import msgspec

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.core.instruments import INT64_MAX, Instrument

__all__ = [
    "AdvancedEnvelope",
    "AdvancedOrder",
    "AdvancedPlaced",
    "AdvancedProduct",
    "AdvancedUserEvent",
    "ApiError",
    "BalanceOf",
    "OrderEvent",
    "Product",
    "RestOrder",
    "instruments_from_products",
]


class ApiError(msgspec.Struct, frozen=True):
    """An error of the Exchange's REST API; the HTTP status says more.

    ``{"message":"Insufficient funds"}``
    """

    message: str


class Product(msgspec.Struct, frozen=True):
    """One product of the Exchange's ``GET /products``.

    ``{"id":"BTC-USD","base_currency":"BTC","quote_currency":"USD","quote_increment":"0.01",
    "base_increment":"0.00000001","display_name":"BTC/USD","min_market_funds":"1","status":"online",...}``
    """

    id: str
    base_currency: str
    quote_currency: str
    base_increment: Decimal
    quote_increment: Decimal
    min_market_funds: Decimal | None = None
    base_min_size: Decimal | None = None
    base_max_size: Decimal | None = None
    status: str = "online"


class AdvancedProduct(msgspec.Struct, frozen=True):
    """One product of Advanced Trade's ``GET /api/v3/brokerage/products``.

    ``{"product_id":"BTC-USD","base_increment":"0.00000001","quote_increment":"0.01","price_increment":"0.01",
    "quote_min_size":"1","base_min_size":"0.00000001","base_max_size":"3400","base_currency_id":"BTC",
    "quote_currency_id":"USD","status":"online",...}``
    """

    product_id: str
    base_currency_id: str
    quote_currency_id: str
    base_increment: Decimal
    quote_increment: Decimal
    price_increment: Decimal | None = None
    quote_min_size: Decimal | None = None
    base_min_size: Decimal | None = None
    base_max_size: Decimal | None = None


class _AdvancedProducts(msgspec.Struct, frozen=True):
    products: list[AdvancedProduct]


class RestOrder(msgspec.Struct, frozen=True):
    """One order in the Exchange's answers to POST /orders, GET /orders and GET /orders/{id}.

    ``{"id":"a9625b04-fc66-4999-a876-543c3684d702","price":"10.00000000","size":"1.00000000","product_id":"BTC-USD",
    "side":"buy","type":"limit","time_in_force":"GTC","post_only":true,"created_at":"2020-03-11T20:48:46.622Z",
    "fill_fees":"0.0000000000000000","filled_size":"0.00000000","executed_value":"0.0000000000000000",
    "status":"open","settled":false,"client_oid":"..."}``
    """

    id: str
    product_id: str
    side: str
    status: str
    price: str = "0"
    size: str = "0"
    filled_size: str = "0"
    client_oid: str = ""


class BalanceOf(msgspec.Struct, frozen=True):
    """What an account holds of one currency, exact, in the Exchange's ``GET /accounts``.

    ``{"id":"7fd0abc0-...","currency":"BTC","balance":"0.00","available":"0.00","hold":"0.00","profile_id":"..."}``
    """

    currency: str
    balance: Decimal
    available: Decimal
    hold: Decimal


class OrderEvent(msgspec.Struct, frozen=True):
    """A message of the Exchange's ``user`` channel: received, open, match, change or done of an own order.

    ``{"type":"received","time":"2014-11-07T08:19:27.028459Z","product_id":"BTC-USD","sequence":10,
    "order_id":"d50ec984-77a8-460a-b958-66f114b0de9b","size":"1.34","price":"502.1","side":"buy","order_type":"limit",
    "client_oid":"d50ec974-76a2-454b-66f1-35b1ea8c0000"}``;
    ``{"type":"done",...,"price":"200.2","order_id":"...","reason":"filled","side":"sell","remaining_size":"0"}``;
    ``{"type":"match","trade_id":10,"sequence":50,"maker_order_id":"...","taker_order_id":"...","size":"5.23512",
    "price":"400.23","side":"sell","taker_fee_rate":"0.005",...}``
    """

    type: str
    product_id: str = ""
    time: str = ""
    order_id: str = ""
    client_oid: str = ""
    maker_order_id: str = ""
    taker_order_id: str = ""
    side: str = ""
    size: str = ""
    price: str | None = None
    remaining_size: str | None = None
    new_size: str = ""
    trade_id: int = 0
    reason: str = ""
    maker_fee_rate: Decimal | None = None
    taker_fee_rate: Decimal | None = None
    message: str = ""


class AdvancedOrder(msgspec.Struct, frozen=True):
    """An order's cumulative state in Advanced Trade's ``user`` channel: not one message per fill.

    ``{"order_id":"XXX","client_order_id":"YYY","cumulative_quantity":"0","leaves_quantity":"0.000994",
    "avg_price":"0","total_fees":"0","status":"OPEN","product_id":"BTC-USD","creation_time":
    "2022-12-07T19:42:18.719312Z","order_side":"BUY","order_type":"Limit","number_of_fills":"0","filled_value":"0",
    "cancel_reason":"","reject_reason":"",...}``
    """

    order_id: str
    client_order_id: str
    status: str
    product_id: str
    cumulative_quantity: str = "0"
    leaves_quantity: str = "0"
    filled_value: str = "0"
    avg_price: str = "0"
    total_fees: str = "0"
    order_side: str = ""
    cancel_reason: str = ""
    reject_reason: str = ""


class AdvancedUserEvent(msgspec.Struct, frozen=True):
    """One event of the ``user`` channel: a batch of orders, ``snapshot`` or ``update``."""

    type: str
    orders: list[AdvancedOrder] = []


class AdvancedEnvelope(msgspec.Struct, frozen=True):
    """What every Advanced Trade message is wrapped in; `events` are decoded by channel.

    ``{"channel":"user","client_id":"","timestamp":"2023-02-09T20:33:57.609931463Z","sequence_num":0,"events":[...]}``
    """

    channel: str
    timestamp: str = ""
    sequence_num: int = -1
    events: msgspec.Raw = msgspec.Raw(b"[]")


class AdvancedPlaced(msgspec.Struct, frozen=True):
    """Answer to POST /api/v3/brokerage/orders.

    ``{"success":true,"success_response":{"order_id":"11111-00000-000000","product_id":"BTC-USD","side":"BUY",
    "client_order_id":"0000-00000-000000"}}`` or ``{"success":false,"error_response":{"error":"INSUFFICIENT_FUND",
    "message":"Insufficient balance in source account"}}``
    """

    success: bool
    success_response: dict[str, object] = {}
    error_response: dict[str, object] = {}


def instruments_from_products(payload: bytes, symbols: Sequence[str]) -> list[Instrument]:
    """Return the instruments for `symbols`, ids 0, 1, ... in their order, from the products the venue lists.

    Parameters
    ----------
    payload : bytes
        Body of the answer to the Exchange's ``GET /products`` (a list) or Advanced Trade's
        ``GET /api/v3/brokerage/products`` (an object with ``products``).
    symbols : sequence of str
        The venue's spelling, such as ``BTC-USD``.

    Raises
    ------
    ProtocolError
        If `payload` is neither.
    ConfigError
        If a symbol is unknown or has no increment to count in.

    Examples
    --------
    >>> listed = b'[{"id":"BTC-USD","base_currency":"BTC","quote_currency":"USD","base_increment":"0.00000001",'
    >>> listed += b'"quote_increment":"0.01","min_market_funds":"1"}]'
    >>> instruments_from_products(listed, ["BTC-USD"])[0].px_ticks("63310.25")
    6331025
    """
    try:
        if payload.lstrip()[:1] == b"[":
            known = {p.id: p for p in msgspec.json.decode(payload, type=list[Product])}
        else:
            known = {p.product_id: _plain(p) for p in msgspec.json.decode(payload, type=_AdvancedProducts).products}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"products: {error}") from error
    missing = [symbol for symbol in symbols if symbol not in known]
    if missing:
        raise ConfigError(f"symbols {missing} are not listed by the venue; expected names such as BTC-USD, upper case")
    return [_instrument(n, known[symbol]) for n, symbol in enumerate(symbols)]


def _plain(product: AdvancedProduct) -> Product:
    return Product(
        id=product.product_id,
        base_currency=product.base_currency_id,
        quote_currency=product.quote_currency_id,
        base_increment=product.base_increment,
        quote_increment=product.price_increment or product.quote_increment,
        min_market_funds=product.quote_min_size,
        base_min_size=product.base_min_size,
        base_max_size=product.base_max_size,
    )


def _instrument(identity: int, product: Product) -> Instrument:
    tick, lot = product.quote_increment, product.base_increment
    for name, value in (("quote_increment", tick), ("base_increment", lot)):
        if not value.is_finite() or value <= 0:
            raise ConfigError(f"{product.id}: {name} is {value}; expected a step above 0 to count prices and lots in")
    return Instrument(
        id=identity,
        venue="coinbase",
        symbol=product.id,
        tick_size=tick.normalize(),
        lot_size=lot.normalize(),
        base=product.base_currency,
        quote=product.quote_currency,
        min_qty=max(_steps(product.base_min_size, lot, ROUND_CEILING), 1),
        max_qty=_steps(product.base_max_size, lot, ROUND_FLOOR) or INT64_MAX,
        min_px=1,
        min_notional=_steps(product.min_market_funds, tick * lot, ROUND_CEILING),
    )


def _steps(bound: Decimal | None, step: Decimal, rounding: str) -> int:
    """Return a bound in steps, rounded to the stricter side (bounds need not lie on the grid); 0 if there is none."""
    if bound is None or not bound.is_finite() or bound <= 0:
        return 0
    return min(int((bound / step).to_integral_value(rounding)), INT64_MAX)
