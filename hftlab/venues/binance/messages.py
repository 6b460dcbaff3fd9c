"""Binance spot: the shapes on the wire, each with a raw sample.

The samples are cut from the venue's public documentation (spec.DOCS). A Struct lists the fields hftlab reads; unknown
fields are skipped, so that the venue may add some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

import msgspec

from hftlab.core.errors import ConfigError, ProtocolError
from hftlab.core.instruments import INT64_MAX, Instrument

__all__ = [
    "Account",
    "AccountPosition",
    "ApiError",
    "Balance",
    "BalanceUpdate",
    "DepthSnapshot",
    "ExchangeInfo",
    "ExecutionReport",
    "ExternalLockUpdate",
    "Filter",
    "ListStatus",
    "OpenOrder",
    "OrderResponse",
    "PositionAsset",
    "RateLimit",
    "ServerShutdown",
    "StreamTerminated",
    "SymbolInfo",
    "UserEvent",
    "WsResponse",
    "instruments_from_exchange_info",
]

_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST = 40  # digits of a decimal worth reading: int64 ticks need fewer


class ApiError(msgspec.Struct, frozen=True):
    """An error, alone as a REST body or under ``error`` of a WebSocket API response; `data` is cancelReplace's.

    ``{"code":-1121,"msg":"Invalid symbol."}`` (rest-api.md, Error Codes)
    """

    code: int
    msg: str
    data: msgspec.Raw = msgspec.Raw(b"null")


class RateLimit(msgspec.Struct, frozen=True, rename="camel"):
    """One published limit; `count` is what has been used, in WebSocket API responses.

    ``{"rateLimitType":"ORDERS","interval":"SECOND","intervalNum":10,"limit":50,"count":13}``
    """

    rate_limit_type: str
    interval: str
    interval_num: int
    limit: int
    count: int = 0


class Filter(msgspec.Struct, frozen=True, rename="camel"):
    """One trading rule of a symbol; None is a field that this kind of filter does not have.

    ``{"filterType":"PRICE_FILTER","minPrice":"0.00000100","maxPrice":"100000.00000000","tickSize":"0.00000100"}``
    (filters.md)
    """

    filter_type: str
    min_price: Decimal | None = None
    max_price: Decimal | None = None
    tick_size: Decimal | None = None
    min_qty: Decimal | None = None
    max_qty: Decimal | None = None
    step_size: Decimal | None = None
    min_notional: Decimal | None = None


class SymbolInfo(msgspec.Struct, frozen=True, rename="camel"):
    """One symbol of exchangeInfo.

    ``{"symbol":"ETHBTC","status":"TRADING","baseAsset":"ETH","quoteAsset":"BTC","filters":[],...}`` (rest-api.md)
    """

    symbol: str
    status: str
    base_asset: str
    quote_asset: str
    filters: list[Filter]


class ExchangeInfo(msgspec.Struct, frozen=True, rename="camel"):
    """What may be traded, by which rules.

    ``{"timezone":"UTC","serverTime":1565246363776,"rateLimits":[],"exchangeFilters":[],"symbols":[]}`` (rest-api.md,
    Exchange information)
    """

    server_time: int
    rate_limits: list[RateLimit]
    symbols: list[SymbolInfo]


class DepthSnapshot(msgspec.Struct, frozen=True, rename="camel"):
    """A book snapshot, best levels first.

    ``{"lastUpdateId":1027024,"bids":[["4.00000000","431.00000000"]],"asks":[["4.00000200","12.00000000"]]}``
    (rest-api.md, Order book)
    """

    last_update_id: int
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


class Balance(msgspec.Struct, frozen=True):
    """What an account holds of one asset, exact: free, and locked under open orders."""

    asset: str
    free: Decimal
    locked: Decimal


class Account(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to account.status.

    ``{"makerCommission":15,...,"canTrade":true,...,"balances":[{"asset":"BTC","free":"4723846.89208129",
    "locked":"0.00000000"}],...}`` (rest-api.md, Account information)
    """

    balances: list[Balance]
    can_trade: bool = True
    update_time: int = 0


class OpenOrder(msgspec.Struct, frozen=True, rename="camel"):
    """One order the venue holds, in the answers to openOrders.status and order.status.

    ``{"symbol":"LTCBTC","orderId":1,"orderListId":-1,"clientOrderId":"myOrder1","price":"0.1","origQty":"1.0",
    "executedQty":"0.0","cummulativeQuoteQty":"0.0","status":"NEW","timeInForce":"GTC","type":"LIMIT","side":"BUY",...}``
    (rest-api.md, Current open orders)
    """

    symbol: str
    order_id: int
    client_order_id: str
    price: str
    orig_qty: str
    executed_qty: str
    status: str
    side: str
    type: str = "LIMIT"
    time_in_force: str = "GTC"


class OrderResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to order.place with newOrderRespType ACK.

    ``{"symbol":"BTCUSDT","orderId":28,"orderListId":-1,"clientOrderId":"6gCrw2kRUAF9CvJDGP16IP",
    "transactTime":1507725176595}`` (rest-api.md, New order)
    """

    symbol: str
    order_id: int
    client_order_id: str
    transact_time: int = 0


class ExecutionReport(msgspec.Struct, frozen=True, tag_field="e", tag="executionReport"):
    """What happened to one order. One letter a field, as on the wire.

    `c` client id, `C` the id of the order canceled (`c` then names the cancel), `x` execution type, `X` state, `r`
    reject reason, `i` venue's order id, `l` `L` last quantity and price, `z` cumulative quantity, `n` `N` fee and its
    asset, `t` trade id or -1, `T` time, `m` we were the maker, `q` `p` the order's quantity and price.

    ``{"e":"executionReport","E":1499405658658,"s":"ETHBTC","c":"mUvoqJxFIILMdfAW5iGSOW","S":"BUY","o":"LIMIT",
    "f":"GTC","q":"1.00000000","p":"0.10264410",...,"C":"","x":"NEW","X":"NEW","r":"NONE","i":4293153,
    "l":"0.00000000","z":"0.00000000","L":"0.00000000","n":"0","N":null,"T":1499405658657,"t":-1,...,"m":false,...}``
    (user-data-stream.md, Order Update)
    """

    s: str
    c: str
    S: str
    x: str
    X: str
    i: int
    q: str
    p: str
    l: str  # noqa: E741 - the venue's own letter
    z: str
    L: str
    T: int
    t: int = -1
    C: str = ""
    n: str | None = None
    N: str | None = None
    r: str = "NONE"
    m: bool = False


class PositionAsset(msgspec.Struct, frozen=True):
    """One asset of outboundAccountPosition: `a` asset, `f` free, `l` locked."""

    a: str
    f: Decimal
    l: Decimal  # noqa: E741 - the venue's own letter


class AccountPosition(msgspec.Struct, frozen=True, tag_field="e", tag="outboundAccountPosition"):
    """Balances that an event may have changed.

    ``{"e":"outboundAccountPosition","E":1564034571105,"u":1564034571073,"B":[{"a":"ETH","f":"10000.000000",
    "l":"0.000000"}]}`` (user-data-stream.md, Account Update)
    """

    B: list[PositionAsset]


class BalanceUpdate(msgspec.Struct, frozen=True, tag_field="e", tag="balanceUpdate"):
    """A deposit, withdrawal or transfer; the balances themselves follow in outboundAccountPosition.

    ``{"e":"balanceUpdate","E":1573200697110,"a":"BTC","d":"100.00000000","T":1573200697068}``
    """

    a: str
    d: str


class ListStatus(msgspec.Struct, frozen=True, tag_field="e", tag="listStatus"):
    """State of an order list (OCO and the like), which hftlab never sends.

    ``{"e":"listStatus","E":1564035303637,"s":"ETHBTC","g":2,"c":"OCO","l":"EXEC_STARTED","L":"EXECUTING",...}``
    """


class ExternalLockUpdate(msgspec.Struct, frozen=True, tag_field="e", tag="externalLockUpdate"):
    """Part of a balance was locked from outside.

    ``{"e":"externalLockUpdate","E":1581557507324,"a":"NEO","d":"10.00000000","T":1581557507268}``
    """


class StreamTerminated(msgspec.Struct, frozen=True, tag_field="e", tag="eventStreamTerminated"):
    """The user data subscription has ended: subscribe again.

    ``{"e":"eventStreamTerminated","E":1728973001334}``
    """


class ServerShutdown(msgspec.Struct, frozen=True, tag_field="e", tag="serverShutdown"):
    """This connection is about to be closed: open another one.

    ``{"e":"serverShutdown","E":1770123456789}``
    """


UserEvent = (
    ExecutionReport
    | AccountPosition
    | BalanceUpdate
    | ListStatus
    | ExternalLockUpdate
    | StreamTerminated
    | ServerShutdown
)
"""What stands under ``event`` on the WebSocket API."""


class WsResponse(msgspec.Struct, frozen=True):
    """Answer of the WebSocket API, or an event wrapped by it.

    ``{"id":"e2a85d9f-07a5-4f94-8d5f-789dc3deb097","status":400,"error":{"code":-2010,"msg":"Account has insufficient
    balance for requested action."},"rateLimits":[]}`` (web-socket-api.md, Response format), or
    ``{"subscriptionId":0,"event":{"e":"outboundAccountPosition",...}}`` (Event format)
    """

    id: str | int | None = None
    status: int = 0
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ApiError | None = None
    event: msgspec.Raw = msgspec.Raw(b"")


def instruments_from_exchange_info(
    payload: bytes, symbols: Sequence[str], *, books: Mapping[str, bytes] | None = None
) -> list[Instrument]:
    """Return the instruments for `symbols`, ids 0, 1, ... in their order, from the filters the venue publishes.

    Parameters
    ----------
    payload : bytes
        Body of the answer to ``GET /api/v3/exchangeInfo``.
    symbols : sequence of str
        The venue's spelling, such as ``BTCUSDT``.
    books : mapping of symbol to bytes, optional
        Book snapshots (`DepthSnapshot` payloads) that refine the grids. The venue changes tick and step while orders of
        the old ones stay on the book, so a deep snapshot can hold levels between today's ticks (recorded: NKNUSDT,
        tick 0.0001, with a bid at 0.12036). A refined grid is a power of ten finer, until every level lies on it; what
        is off it later is refused, counted, and costs a resync. Orders must still be multiples of the venue's own step.

    Raises
    ------
    ProtocolError
        If `payload` is not an exchangeInfo answer, or a book not a snapshot.
    ConfigError
        If a symbol is unknown, or its tick or step is missing or 0 (the venue's way to say "no rule", for which there
        is no grid to count on).
    """
    try:
        info = msgspec.json.decode(payload, type=ExchangeInfo)
        depths = {symbol: msgspec.json.decode(raw, type=DepthSnapshot) for symbol, raw in (books or {}).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"exchangeInfo or a book snapshot: {error}") from error
    known = {s.symbol: s for s in info.symbols}
    missing = [symbol for symbol in symbols if symbol not in known]
    if missing:
        raise ConfigError(f"symbols {missing} are not listed by the venue; expected names such as BTCUSDT, upper case")
    return [_instrument(n, known[symbol], depths.get(symbol)) for n, symbol in enumerate(symbols)]


def _instrument(identity: int, info: SymbolInfo, book: DepthSnapshot | None) -> Instrument:
    filters = {f.filter_type: f for f in info.filters}
    px, qty = filters.get("PRICE_FILTER"), filters.get("LOT_SIZE")
    tick = px.tick_size if px else None
    lot = qty.step_size if qty else None
    for name, value in (("PRICE_FILTER tickSize", tick), ("LOT_SIZE stepSize", lot)):
        if value is None or value <= 0:
            raise ConfigError(f"{info.symbol}: {name} is {value}; expected a step above 0 to count prices and lots in")
    assert px is not None and qty is not None and tick is not None and lot is not None
    if book is not None:
        levels = book.bids + book.asks
        tick, lot = _refined(tick, [p for p, _ in levels]), _refined(lot, [q for _, q in levels])
    notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL")
    return Instrument(
        id=identity,
        venue="binance",
        symbol=info.symbol,
        tick_size=tick.normalize(),
        lot_size=lot.normalize(),
        base=info.base_asset,
        quote=info.quote_asset,
        min_qty=_steps(qty.min_qty, lot, ROUND_CEILING),
        max_qty=min(_steps(qty.max_qty, lot, ROUND_FLOOR), INT64_MAX),
        min_px=_steps(px.min_price, tick, ROUND_CEILING),
        max_px=min(_steps(px.max_price, tick, ROUND_FLOOR), INT64_MAX),
        min_notional=_steps(notional.min_notional if notional else None, tick * lot, ROUND_CEILING),
    )


def _refined(step: Decimal, texts: list[str]) -> Decimal:
    """Return `step`, or the largest power of ten below it that divides every decimal in `texts`."""
    if any(len(text) > _LONGEST or _PLAIN.fullmatch(text) is None for text in texts):
        raise ProtocolError("a book snapshot holds a level that is no plain decimal number")
    values = {Decimal(text) for text in texts}
    with localcontext() as context:
        context.prec = 2 * _LONGEST
        while any(value % step for value in values):
            power = Decimal(1).scaleb(step.adjusted())
            step = power if power < step else power.scaleb(-1)
    return step


def _steps(bound: Decimal | None, step: Decimal, rounding: str) -> int:
    """Return a bound in steps, rounded to the stricter side (bounds need not lie on the grid); 0 if there is none."""
    return 0 if bound is None else int((bound / step).to_integral_value(rounding))
