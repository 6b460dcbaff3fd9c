"""Kraken spot orders: order rows to requests of WebSocket v2, its answers and executions to REPORT rows.

Model. One private connection carries requests, their answers and the ``executions`` channel. Each fact is taken from
one source:

=======================  ===========================================================================================
ACK, FILL, REPLACED       the executions channel
CANCELED, EXPIRED         the executions channel; also for what is left when the venue calls an amended order filled
REJECT                    the error answer to add_order or amend_order
CANCEL_REJECT             the error answer to cancel_order
LOST                      an answer that says that the outcome is unknown, and a report that cannot be expressed exactly
=======================  ===========================================================================================

Identity. A client order id has 32 hex digits, one of the three forms the venue takes: 16 that stand for the session's
prefix and 16 of the ``cl_ord_id``; so a report finds its order after a restart too. Events after the first name neither
pair, side nor quantity, so the codec remembers open orders, learnt from its own requests and from the channel's
snapshot. The venue's ids are text; a row holds 63 bits of their hash, and for a fill the venue's ``trade_id``, which is
a number.

Replace. The venue *amends* in place: order id, client id and, where possible, the place in the queue stay. A
REPLACE_ORDER row makes a new order of the engine's, so from the ``amended`` event on the venue's order reports under
the new id. The engine's new quantity counts from 0, the venue's includes what has been filled: the request asks for
both together. A fill that crosses the request on its way leaves the amended order smaller than asked, never larger, and
what it lacks is reported CANCELED in the end.

Promise. Prices and quantities are written and read by integer arithmetic, never as floats. A missing number in the
channel (`Sequencing.PlusOne`) sets `in_doubt`: the caller has to settle every open order against the venue.

Worst case accepted: an order amended before a restart keeps the id of its first request at the venue and is foreign
afterwards; fees finer than 1e-8 are rounded up to it (counted). ``cancel_all`` and the dead man's switch know no pair:
they act on the whole account.

References
----------
Kraken: WebSocket v2 add_order, amend_order, cancel_order, cancel_all, executions, balances; guides "Spot REST
authentication", "Spot WebSocket authentication", "Amends".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections import deque
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import ConfigError, LocalError, OffGridError, ProtocolError, VenueError
from hftlab.core.instruments import INT64_MAX, MONEY_SCALE, Instrument, decimal_to_units
from hftlab.core.rows import (
    CONT,
    NAT,
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    RowArray,
    Tif,
)
from hftlab.venues.kraken.messages import Balance, Execution, MethodAnswer, OpenOrder
from hftlab.venues.kraken.spec import TOKEN_PATH, time_ns
from hftlab.venues.sequence import PlusOne, Verdict

__all__ = ["FOREIGN_KEPT", "OrderCodec", "Request", "sign"]

FOREIGN_KEPT = 1024
_PENDING_KEPT = 4096
_ORDERS_KEPT = 65_536
_CL_ORD_ID = re.compile(r"[0-9a-f]{32}")
_TOKEN = re.compile(r"[!#-\[\]-~]{1,256}")  # printable ASCII that needs no escape in JSON
_SIDES = {int(Flag.BID): "buy", int(Flag.ASK): "sell"}
_FLAGS = {"buy": int(Flag.BID), "sell": int(Flag.ASK)}
_SIDE_BITS = int(Flag.BID | Flag.ASK)
_POST_ONLY, _MAKER = int(Flag.POST_ONLY), int(Flag.MAKER)
_TIFS = {int(Tif.GTC): "gtc", int(Tif.IOC): "ioc"}
_MARKET = int(OrdType.MARKET)
_SUBMIT, _CANCEL, _REPLACE, _REPORT = (
    int(Kind.SUBMIT), int(Kind.CANCEL), int(Kind.REPLACE_ORDER), int(Kind.REPORT),
)  # fmt: skip
_OUTCOME_UNKNOWN = ("EService:Unavailable", "EService:Busy", "EService:Timeout", "EGeneral:Internal error")
"""Errors after which the request may or may not have been carried out."""


class Request(NamedTuple):
    """One signed private POST: path, body and headers."""

    path: str
    body: str
    headers: dict[str, str]

    def __repr__(self) -> str:
        # without headers: they carry key and signature, and a repr ends in logs
        return f"Request(path={self.path!r}, body={self.body!r})"


def sign(secret: str, path: str, nonce: str, body: str) -> str:
    """Return the ``API-Sign`` header of a private REST request.

    It is the base64 HMAC-SHA512, under the decoded secret, of the path and the SHA-256 of nonce and body.

    Raises
    ------
    ConfigError
        If `secret` is not base64.
    """
    try:
        key = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("secret is not base64; set it as the venue gave it") from error
    inner = hashlib.sha256((nonce + body).encode()).digest()
    return base64.b64encode(hmac.new(key, path.encode() + inner, hashlib.sha512).digest()).decode()


class _WireInstrument:
    """An instrument with its two grids, laid out for the codec."""

    __slots__ = ("id", "px", "qty", "symbol")

    def __init__(self, instrument: Instrument) -> None:
        self.id = instrument.id
        self.symbol = instrument.symbol
        self.px = DecimalGrid.of_px(instrument)
        self.qty = DecimalGrid.of_qty(instrument)


class _Order:
    """An open order: who it is to the engine now, and what the venue has filled of it.

    `qty` and `cum` are the venue's, from its first request on; `base` of `cum` was filled under earlier ids.
    """

    __slots__ = ("amend", "base", "cum", "current", "first", "flags", "qty", "wanted", "wire")

    def __init__(self, first: int, wire: _WireInstrument, flags: int, qty: int, cum: int = 0) -> None:
        self.first = self.current = first
        self.wire, self.flags, self.qty, self.cum = wire, flags, qty, cum
        self.base = 0
        self.wanted = qty  # of the engine's order
        self.amend: _Pending | None = None  # asked for, and neither refused nor done


class _Pending(NamedTuple):
    kind: int
    cl_ord_id: int
    wire: _WireInstrument
    flags: int
    order: _Order | None
    qty: int


class _Head(msgspec.Struct):
    channel: str = ""
    type: str = ""
    sequence: int = -1
    data: msgspec.Raw = msgspec.Raw(b"[]")


class _BalanceEntry(msgspec.Struct):
    asset: str
    balance: Decimal
    hold_trade: Decimal = Decimal(0)


class _Token(msgspec.Struct):
    error: list[str] = []
    result: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"_Token(error={self.error!r})"


class OrderCodec:
    """Order rows to requests, answers and executions to REPORT rows, for one account on one connection.

    Parameters
    ----------
    instruments : sequence of Instrument
        What may be ordered; ids are the rows' ``instrument``.
    api_key, secret : str
        A key pair with the permission to trade and to use WebSockets.
    client_prefix : str
        Names this session in every client order id.
    assets : list of str
        The session's asset table; ``fee_asset`` is an index into it. An asset it lacks is appended.
    source : int
        Written in every report row.

    Attributes
    ----------
    token : str
        What private requests carry; `token_request` asks for it, `take_token` reads it.
    subscribed : bool
        The account's executions are flowing.
    balances : dict[str, Balance] or None
        By asset; None until the channel's snapshot came.
    open_orders : list of OpenOrder or None
        The channel's snapshot of open orders; None until it came.
    session_error : VenueError or None
        A session request was refused. Nothing can be traded.
    in_doubt : bool
        A number of the executions channel is missing: settle all orders against the venue, then clear it.
    foreign : deque of Execution
        Events of orders that are not this session's, the last 1024.
    counts : dict[str, int]
        ``malformed``, ``ignored``, ``foreign``, ``unmatched`` (answers to no request of ours), ``inexact`` (reports off
        the grid; their orders became LOST), ``gaps``, ``rounded_fees``.

    Raises
    ------
    ConfigError
        If prefix, key or secret is empty or not what the venue gives, or two instruments share an id or a symbol.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        api_key: str,
        secret: str,
        client_prefix: str,
        assets: list[str],
        *,
        source: int = 2,
    ) -> None:
        if not client_prefix or not api_key or not secret:
            raise ConfigError("client_prefix, api_key or secret is empty; expected all three")
        sign(secret, "", "", "")
        self.assets, self.source, self.prefix = assets, source, client_prefix
        self.token = ""
        self.subscribed = self.shutdown = self.in_doubt = False
        self.balances: dict[str, Balance] | None = None
        self.open_orders: list[OpenOrder] | None = None
        self.session_error: VenueError | None = None
        self.foreign: deque[Execution] = deque(maxlen=FOREIGN_KEPT)
        self.counts = dict.fromkeys(
            ("malformed", "ignored", "foreign", "unmatched", "inexact", "gaps", "rounded_fees"), 0
        )
        self._api_key, self._secret = api_key, secret
        self._tag = hashlib.sha256(client_prefix.encode()).hexdigest()[:16]
        wires = [_WireInstrument(i) for i in instruments]
        self._by_id = {w.id: w for w in wires}
        self._by_symbol = {w.symbol: w for w in wires}
        if len(self._by_id) != len(wires) or len(self._by_symbol) != len(wires):
            raise ConfigError("instruments share an id or a symbol; expected each once")
        self._numbers = PlusOne()
        self._request_id = 0
        self._pending: dict[int, _Pending] = {}
        self._orders: dict[int, _Order] = {}  # by the id of the first request: the venue's client id
        self._current: dict[int, _Order] = {}  # by the engine's id of today
        self._done: dict[int, _Order] = {}  # as _orders: a fill may come after the end
        self._heads = msgspec.json.Decoder(_Head)
        self._answers = msgspec.json.Decoder(MethodAnswer)
        self._executions = msgspec.json.Decoder(list[Execution])

    # ---- the session

    def token_request(self, nonce: int) -> Request:
        """Return the POST that asks for a WebSocket token; `nonce` must grow."""
        return self.rest_request(TOKEN_PATH, {}, nonce)

    def rest_request(self, path: str, params: Mapping[str, object], nonce: int) -> Request:
        """Return a signed private POST."""
        body = urlencode([("nonce", str(nonce)), *((name, str(value)) for name, value in params.items())])
        headers = {
            "API-Key": self._api_key,
            "API-Sign": sign(self._secret, path, str(nonce), body),
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return Request(path, body, headers)

    def take_token(self, payload: bytes) -> None:
        """Read the answer to `token_request` into `token`.

        Raises
        ------
        VenueError
            If the venue refused.
        ProtocolError
            If `payload` is no such answer.
        """
        try:
            answer = msgspec.json.decode(payload, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"GetWebSocketsToken: {error}") from error
        if answer.error:
            raise VenueError(0, "; ".join(answer.error))
        token = answer.result.get("token")
        if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
            raise ProtocolError("GetWebSocketsToken: the answer holds no token")
        self.token = token

    def session_requests(self, now_ms: int) -> list[bytes]:
        """Return the requests that open a session: executions with the open orders, and balances.

        They are answered in `subscribed`, `open_orders` and `balances`, or in `session_error`.
        """
        self.subscribed = self.in_doubt = False
        self.balances = self.open_orders = self.session_error = None
        self._numbers.reset()
        self._pending.clear()
        return [
            self._request("subscribe", '"channel":"executions","snap_orders":true,"snap_trades":false', None),
            self._request("subscribe", '"channel":"balances","snapshot":true', None),
        ]

    def cancel_all_request(self, instrument: int, now_ms: int) -> bytes:
        """Return the request that cancels every open order of the *account*: the venue has no narrower one."""
        return self._request("cancel_all", "", None)

    def _request(self, method: str, fields: str, pending: _Pending | None) -> bytes:
        self._request_id += 1
        if pending is not None:
            self._pending[self._request_id] = pending
            while len(self._pending) > _PENDING_KEPT:
                del self._pending[next(iter(self._pending))]
        comma = "," if fields else ""
        return (
            f'{{"method":"{method}","params":{{{fields}{comma}"token":"{self.token}"}},"req_id":{self._request_id}}}'
        ).encode()

    # ---- rows to requests

    def client_order_id(self, cl_ord_id: int) -> str:
        """Return the venue's client order id of one of this session's orders."""
        return f"{self._tag}{cl_ord_id:016x}"

    def cl_ord_id(self, client_order_id: str) -> int:
        """Return the ``cl_ord_id`` in a client order id of this session; 0 if it is somebody else's."""
        if not client_order_id.startswith(self._tag) or _CL_ORD_ID.fullmatch(client_order_id) is None:
            return 0
        value = int(client_order_id[16:], 16)
        return value if value <= INT64_MAX else 0

    def encode(self, row: Any, payload_row: Any | None, now_ms: int) -> bytes:
        """Return the request of one order row.

        Parameters
        ----------
        row : ROW record
            SUBMIT, CANCEL or REPLACE_ORDER.
        payload_row : ROW or ORDER_PAYLOAD record, optional
            The row after it when its span is 1; only the order type is read: MARKET or LIMIT.
        now_ms : int
            Not used: the venue checks requests by their token.

        Raises
        ------
        LocalError
            If the row is no order row, or asks for what the venue does not have, or there is no token.
        """
        _, _, kind, _, _, _, instrument, flags, tif, px, qty, cl_ord_id, orig, *_ = row.item()
        wire = self._by_id.get(instrument)
        if wire is None:
            raise LocalError(f"instrument={instrument} of order {cl_ord_id} is not on this connection")
        if not self.token:
            raise LocalError(f"order {cl_ord_id}: there is no token; expected take_token before the first order")
        if kind == _CANCEL:
            name = self.client_order_id(self._first_of(cl_ord_id))
            pending = _Pending(kind, cl_ord_id, wire, flags, None, 0)
            return self._request("cancel_order", f'"cl_ord_id":["{name}"]', pending)
        if kind == _REPLACE:
            return self._amend(wire, cl_ord_id, orig, flags, px, qty)
        if kind != _SUBMIT:
            raise LocalError(f"kind={kind} is no order row; expected SUBMIT, CANCEL or REPLACE_ORDER")
        market = payload_row is not None and _order_type(payload_row) == _MARKET
        fields = self._new_order(wire, cl_ord_id, flags, tif, px, qty, market)
        order = _Order(cl_ord_id, wire, flags & _SIDE_BITS, qty)
        self._remember(order)
        return self._request("add_order", fields, _Pending(kind, cl_ord_id, wire, flags, order, qty))

    def _first_of(self, cl_ord_id: int) -> int:
        order = self._current.get(cl_ord_id)
        return cl_ord_id if order is None else order.first

    def _amend(self, wire: _WireInstrument, cl_ord_id: int, orig: int, flags: int, px: int, qty: int) -> bytes:
        order = self._current.get(orig)
        filled = 0 if order is None else order.cum
        name = self.client_order_id(self._first_of(orig))
        what = f'"cl_ord_id":"{name}","order_qty":{wire.qty.text(filled + qty)},"limit_price":{wire.px.text(px)}'
        if flags & _POST_ONLY:
            what += ',"post_only":true'
        pending = _Pending(_REPLACE, cl_ord_id, wire, flags, order, qty)
        if order is not None:
            order.amend = pending
        return self._request("amend_order", what, pending)

    def _new_order(
        self, wire: _WireInstrument, cl_ord_id: int, flags: int, tif: int, px: int, qty: int, market: bool
    ) -> str:
        side = _SIDES.get(flags & _SIDE_BITS)
        if side is None:
            raise LocalError(f"order {cl_ord_id} has flags={flags}; expected BID or ASK, not both")
        head = (
            f'"order_type":"{"market" if market else "limit"}","side":"{side}","symbol":"{wire.symbol}",'
            f'"order_qty":{wire.qty.text(qty)},"cl_ord_id":"{self.client_order_id(cl_ord_id)}"'
        )
        if market:
            return head
        head += f',"limit_price":{wire.px.text(px)}'
        if flags & _POST_ONLY:
            return head + ',"time_in_force":"gtc","post_only":true'
        force = _TIFS.get(tif)
        if force is None:
            raise LocalError(f"order {cl_ord_id} has time in force {tif}; the venue has GTC and IOC (GTD is not sent)")
        return f'{head},"time_in_force":"{force}"'

    def _remember(self, order: _Order) -> None:
        self._orders[order.first] = self._current[order.current] = order
        while len(self._orders) > _ORDERS_KEPT:
            old = self._orders.pop(next(iter(self._orders)))
            self._current.pop(old.current, None)

    def _forget(self, order: _Order) -> None:
        self._orders.pop(order.first, None)
        self._current.pop(order.current, None)
        self._done[order.first] = order
        while len(self._done) > _PENDING_KEPT:
            del self._done[next(iter(self._done))]

    # ---- answers and events to rows

    def decode(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the REPORT rows of one message, each with its payload row, to the front of `out`; return their number.

        Parameters
        ----------
        frame : bytes
            A message of the private connection.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten; 2 rows an event: 128 hold any message seen so far. What does not fit sets `in_doubt`.

        Returns
        -------
        int
            Rows written. Bytes that are not the protocol are counted as malformed and give no rows.
        """
        try:
            head = self._heads.decode(frame)
            if head.channel == "executions":
                return self._on_executions(head, ts_recv, out)
            if head.channel == "balances":
                self._on_balances(head)
                return 0
            if head.channel:
                self.counts["ignored"] += 1
                self.shutdown = self.shutdown or b'"maintenance"' in frame
                return 0
            return self._on_answer(self._answers.decode(frame), ts_recv, out)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError):
            self.counts["malformed"] += 1
            return 0

    def _on_answer(self, answer: MethodAnswer, ts_recv: int, out: RowArray) -> int:
        pending = self._pending.pop(answer.req_id, None) if answer.req_id is not None else None
        if pending is None:
            if answer.method == "subscribe" and not answer.success:
                self.session_error = VenueError(0, answer.error)
            elif answer.method == "subscribe":
                self.subscribed = self.subscribed or b'"executions"' in bytes(answer.result)
            elif answer.method != "pong":
                self.counts["unmatched"] += 1
            return 0
        order = pending.order
        if answer.success:
            return 0  # the channel tells
        flags, text = pending.flags & _SIDE_BITS, answer.error.encode()
        if answer.error.startswith(_OUTCOME_UNKNOWN):
            head = (pending.wire.id, NAT, flags, ExecType.LOST, OrdStatus.UNKNOWN, 0, 0, pending.cl_ord_id, 0)
        elif pending.kind == _CANCEL:
            head = (pending.wire.id, NAT, flags, ExecType.CANCEL_REJECT, OrdStatus.NONE, 0, 0, pending.cl_ord_id, 0)
        else:
            head = (pending.wire.id, NAT, flags, ExecType.REJECT, OrdStatus.REJECTED, 0, 0, pending.cl_ord_id, 0)
            if pending.kind == _SUBMIT and order is not None:
                self._forget(order)
            elif order is not None and order.amend is pending:
                order.amend = None
        return self._write(out, 0, ts_recv, head, (0, 0, 0, 0, 0, 0, text))

    def _on_balances(self, head: _Head) -> None:
        entries = msgspec.json.decode(head.data, type=list[_BalanceEntry])
        known = {} if head.type == "snapshot" or self.balances is None else dict(self.balances)
        for entry in entries:
            known[entry.asset] = Balance(entry.asset, entry.balance - entry.hold_trade, entry.hold_trade)
        self.balances = known

    def _on_executions(self, head: _Head, ts_recv: int, out: RowArray) -> int:
        if head.sequence >= 0 and self._numbers.check(head.sequence) == Verdict.GAP:
            self.counts["gaps"] += 1
            self.in_doubt = True
            self._numbers.reset(head.sequence)
        try:
            events = self._executions.decode(head.data)
        except msgspec.DecodeError:
            self.in_doubt = True  # something happened to an order, and we do not know what
            raise
        if head.type == "snapshot":
            self._on_snapshot(events)
            return 0
        n = 0
        for event in events:
            if n + 2 > len(out):
                self.in_doubt = True
                break
            n += self._on_execution(event, ts_recv, out, n)
        return n

    def _on_snapshot(self, events: list[Execution]) -> None:
        """Learn the open orders that the venue holds."""
        self.open_orders = []
        for event in events:
            if event.exec_type == "trade":
                continue
            self._learn(event)
            self.open_orders.append(
                OpenOrder(
                    symbol=event.symbol,
                    order_id=event.order_id,
                    client_order_id=event.cl_ord_id,
                    price=event.limit_price or Decimal(0),
                    orig_qty=event.order_qty or Decimal(0),
                    executed_qty=event.cum_qty or Decimal(0),
                    status=event.order_status,
                    side=event.side,
                )
            )

    def _learn(self, event: Execution) -> _Order | None:
        """Return the order of an event, made known by it if it tells enough; None if it is not this session's."""
        first = self.cl_ord_id(event.cl_ord_id)
        order = self._orders.get(first) or self._done.get(first)
        wire = self._by_symbol.get(event.symbol)
        if order is not None or first == 0 or wire is None or event.side not in _FLAGS:
            return order
        try:
            qty = decimal_to_units(event.order_qty or event.last_qty or 0, wire.qty.step, "order_qty")
            cum = decimal_to_units(event.cum_qty or 0, wire.qty.step, "cum_qty")
            if event.exec_type == "trade":
                cum = max(0, cum - decimal_to_units(event.last_qty or 0, wire.qty.step, "last_qty"))
        except OffGridError:
            return None
        order = _Order(first, wire, _FLAGS[event.side], qty, cum)
        self._remember(order)
        return order

    def _on_execution(self, event: Execution, ts_recv: int, out: RowArray, n: int) -> int:
        order = self._learn(event)
        if order is None:
            self.counts["foreign"] += 1
            self.foreign.append(event)
            return 0
        try:
            return self._report(event, order, ts_recv, out, n)
        except (OffGridError, ValueError, ArithmeticError) as error:
            self.counts["inexact"] += 1
            return self._lost(order, str(error).encode(), ts_recv, out, n)

    def _lost(self, order: _Order, text: bytes, ts_recv: int, out: RowArray, n: int) -> int:
        head = (order.wire.id, NAT, order.flags, ExecType.LOST, OrdStatus.UNKNOWN, 0, 0, order.current, 0)
        return self._write(out, n, ts_recv, head, (0, 0, 0, 0, 0, 0, text))

    def _report(self, event: Execution, order: _Order, ts_recv: int, out: RowArray, n: int) -> int:
        kind, wire = event.exec_type, order.wire
        ts_event = time_ns(event.timestamp) if event.timestamp else NAT
        px = qty = exec_id = fee = asset = flags = 0
        if kind == "new":
            exec_type, status = ExecType.ACK, OrdStatus.NEW
        elif kind == "trade":
            if event.last_price is None or event.last_qty is None:
                raise ValueError("a trade without price or quantity")
            px = decimal_to_units(event.last_price, wire.px.step, "last_price")
            qty = decimal_to_units(event.last_qty, wire.qty.step, "last_qty")
            exec_id = event.trade_id if event.trade_id is not None else _hash(event.exec_id)
            if not 0 <= exec_id <= INT64_MAX or px < 0 or qty <= 0:
                raise ValueError(f"trade_id={exec_id}, px={px}, qty={qty}")
            order.cum += qty
            fee, asset = self._fee(event)
            flags = _MAKER if event.liquidity_ind == "m" else 0
            exec_type = ExecType.FILL
            filled = order.cum - order.base >= order.wanted
            status = OrdStatus.FILLED if filled else OrdStatus.PARTIALLY_FILLED
        elif kind == "amended":
            return self._amended(event, order, ts_event, ts_recv, out, n)
        elif kind == "canceled":
            exec_type, status = ExecType.CANCELED, OrdStatus.CANCELED
        elif kind == "expired":
            exec_type, status = ExecType.EXPIRED, OrdStatus.EXPIRED
        elif kind == "filled":
            return self._filled(event, order, ts_event, ts_recv, out, n)
        else:
            self.counts["ignored"] += 1  # pending_new, status, restated, iceberg_refill
            return 0
        cum = order.cum - order.base
        terminal = status in (OrdStatus.CANCELED, OrdStatus.EXPIRED, OrdStatus.FILLED)
        leaves = 0 if terminal else max(0, order.qty - order.cum)
        head = (wire.id, ts_event, order.flags | flags, exec_type, status, px, qty, order.current, exec_id)
        written = self._write(
            out, n, ts_recv, head, (cum, leaves, _hash(event.order_id), fee, asset, 0, event.reason.encode())
        )
        if terminal:
            self._forget(order)
        return written

    def _filled(self, event: Execution, order: _Order, ts_event: int, ts_recv: int, out: RowArray, n: int) -> int:
        """The venue calls the order filled; if the engine still has some of it open, it was amended smaller."""
        if order.first in self._done:
            return 0
        cum = order.cum
        if event.cum_qty is not None:
            cum = decimal_to_units(event.cum_qty, order.wire.qty.step, "cum_qty")
        if cum != order.cum:
            self.in_doubt = True
            return self._lost(order, b"missed a fill", ts_recv, out, n)
        self._forget(order)
        head = (
            order.wire.id, ts_event, order.flags, ExecType.CANCELED, OrdStatus.CANCELED, 0, 0, order.current, 0,
        )  # fmt: skip
        rest = (order.cum - order.base, 0, _hash(event.order_id), 0, 0, 0, b"amended smaller")
        return self._write(out, n, ts_recv, head, rest)

    def _amended(self, event: Execution, order: _Order, ts_event: int, ts_recv: int, out: RowArray, n: int) -> int:
        pending, order.amend = order.amend, None
        if event.order_qty is not None:
            order.qty = decimal_to_units(event.order_qty, order.wire.qty.step, "order_qty")
        px = decimal_to_units(event.limit_price or 0, order.wire.px.step, "limit_price")
        if pending is None:
            self.counts["ignored"] += 1  # somebody else amended our order; its fills go on under its id
            return 0
        self._current.pop(order.current, None)
        order.current, order.base, order.wanted = pending.cl_ord_id, order.cum, pending.qty
        self._current[order.current] = order
        leaves = max(0, order.qty - order.cum)
        head = (order.wire.id, ts_event, order.flags, ExecType.REPLACED, OrdStatus.NEW, px, leaves, order.current, 0)
        return self._write(out, n, ts_recv, head, (0, leaves, _hash(event.order_id), 0, 0, 0, b""))

    def _fee(self, event: Execution) -> tuple[int, int]:
        """Return the fee in 1e-8 of its asset, and the asset's index."""
        if not event.fees:
            return 0, 0
        name = event.fees[0].asset
        if name not in self.assets:
            self.assets.append(name)
        exact = sum((fee.qty for fee in event.fees if fee.asset == name), Decimal(0)) / MONEY_SCALE
        units = exact.to_integral_value(ROUND_CEILING)
        if units != exact or any(fee.asset != name for fee in event.fees):
            self.counts["rounded_fees"] += 1
        if abs(units) > INT64_MAX:
            raise ValueError(f"fee {exact} does not fit int64")
        return int(units), self.assets.index(name)

    def _write(self, out: RowArray, n: int, ts_recv: int, head: tuple[int, ...], payload: tuple[Any, ...]) -> int:
        """Write a REPORT at `n` and its payload row after it; return 2."""
        instrument, ts_event, flags, exec_type, status, px, qty, cl_ord_id, exec_id = head
        row = out[n]
        row["seq"], row["source"], row["kind"], row["span"] = 0, self.source, _REPORT, 1
        row["ts_recv"], row["ts_event"], row["instrument"], row["flags"] = ts_recv, ts_event, instrument, flags
        row["code"] = exec_type | status << 8
        row["px"], row["qty"], row["a"], row["b"] = px, qty, cl_ord_id, exec_id
        out[n + 1 : n + 2].view(REPORT_PAYLOAD)[0] = (0, self.source, CONT, 0, *payload)
        return 2


def _hash(text: str) -> int:
    """Return 63 bits that stand for an id that is text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _order_type(payload_row: Any) -> int:
    if "ord_type" in (payload_row.dtype.names or ()):
        return int(payload_row["ord_type"])
    return int(payload_row.view(ORDER_PAYLOAD)["ord_type"])
