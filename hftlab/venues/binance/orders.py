"""Binance spot orders: order rows to signed requests of the WebSocket API, its answers and events to REPORT rows.

Model. One connection to the WebSocket API carries everything: requests, their answers, and the account's events, which
arrive wrapped as ``subscriptionId`` + ``event``. Two sources then tell about one order; each fact is taken from one:

===========================  =======================================================================================
ACK, FILL, CANCELED, EXPIRED  the executionReport event
REJECT                        the error answer to order.place or order.cancelReplace, or the event, whichever is first
CANCEL_REJECT                 the error answer to order.cancel
LOST                          an answer that says the outcome is unknown (status from 500 up, codes -1006 and -1007)
===========================  =======================================================================================

The codec keeps no table of requests. A request's id spells kind, side, order and instrument, and the client order id is
``prefix`` + decimal ``cl_ord_id``, so an answer means the same after a restart, and to a replay. A replace is the
venue's cancelReplace in mode STOP_ON_FAILURE: success shows as CANCELED of the old order and ACK of the new one;
failure as REJECT of the new one, the old one staying unless its CANCELED came.

Promise. Prices and quantities are written and read by integer arithmetic. A report that cannot be expressed exactly is
never dropped silently: its order becomes LOST, that is *unknown*, and it is counted. Orders that are not this session's
are kept in `foreign`, for accounting, and give no rows.

Worst case accepted: `foreign` holds the last 1024 reports only; the account's balances remain the truth.

References
----------
Binance, web-socket-api.md (order.place, order.cancel, order.cancelReplace, userDataStream.subscribe.signature,
SIGNED request security), rest-api.md (SIGNED Endpoint security), user-data-stream.md, errors.md.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
import numpy as np

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import ConfigError, LocalError, OffGridError, VenueError
from hftlab.core.instruments import INT64_MAX, MONEY_SCALE, Instrument
from hftlab.core.rows import (
    CONT,
    NAT,
    ORDER_PAYLOAD,
    REPORT_PAYLOAD,
    ROW,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    OrdType,
    RowArray,
    Tif,
)
from hftlab.kernels.jit import address_of, kernel, load, record_at, store
from hftlab.kernels.latency import ENCODE, Latency, add_cycles, ticks
from hftlab.kernels.sha256 import SCRATCH_BYTES, HmacKey, sign_hex
from hftlab.kernels.template import Hole, Template, fill
from hftlab.venues.binance.messages import (
    Account,
    AccountPosition,
    ApiError,
    Balance,
    ExecutionReport,
    OpenOrder,
    ServerShutdown,
    StreamTerminated,
    UserEvent,
    WsResponse,
)
from hftlab.venues.binance.spec import OUTCOME_UNKNOWN_CODES, time_ns

__all__ = ["FOREIGN_KEPT", "OrderCodec", "sign", "sign_query"]

FOREIGN_KEPT = 1024
_REJECTED_KEPT = 1024
_ID_LENGTH = 36

_PREFIX = re.compile(r"[A-Za-z0-9_-]{0,15}[A-Za-z_-]")
_KEY = re.compile(r"[!#-%'-<>-\[\]-~]+")  # printable ASCII that needs no escape in JSON and is no & or =
_UNSENDABLE = frozenset('=&"\\')
_REQUEST = re.compile(r"([pcr])([0-3])([0-9a-f]{1,16})\.([0-9a-f]{1,8})(?:\.([0-9a-f]{1,16}))?")
_CL_ORD_ID = re.compile(r"[1-9][0-9]{0,18}")
_SUBSCRIBE, _ACCOUNT, _OPEN_ORDERS, _CANCEL_ALL = "subscribe", "account", "open_orders", "cancel_all"

_SIDES = {int(Flag.BID): "BUY", int(Flag.ASK): "SELL"}
_FLAGS = {"BUY": int(Flag.BID), "SELL": int(Flag.ASK)}
_SIDE_BITS = int(Flag.BID | Flag.ASK)
_POST_ONLY, _MAKER = int(Flag.POST_ONLY), int(Flag.MAKER)
_MARKET = int(OrdType.MARKET)
_SUBMIT, _CANCEL, _REPLACE, _REPORT = (
    int(Kind.SUBMIT), int(Kind.CANCEL), int(Kind.REPLACE_ORDER), int(Kind.REPORT),
)  # fmt: skip
_GTC, _IOC, _FOK = int(Tif.GTC), int(Tif.IOC), int(Tif.FOK)

# the forms of an order, and what they spell
_GTC_FORM, _IOC_FORM, _FOK_FORM, _POST_FORM, _MARKET_FORM, _CANCEL_FORM = range(6)
_TIF_FORMS = {_GTC: _GTC_FORM, _IOC: _IOC_FORM, _FOK: _FOK_FORM}
_FORCES = {_GTC_FORM: "&timeInForce=GTC", _IOC_FORM: "&timeInForce=IOC", _FOK_FORM: "&timeInForce=FOK"}
_TYPES = {_POST_FORM: "LIMIT_MAKER", _MARKET_FORM: "MARKET"}
_FORMS_A_SIDE = _CANCEL_FORM + 1
_N_FORMS = 2 * 4 * _FORMS_A_SIDE
_TABLE_MAX = 4096
"""Instruments with an id from here on have no templates."""
_DECIMALS_MAX = 18
_TEXT_BYTES = 2048
_V_ID, _V_ORIG, _V_PX, _V_QTY, _V_NOW, _V_SIGNATURE = range(6)
_N_VALUES = 6


def _words(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<i8") for name in names.split()])


_PLANS = _words("follower latency n_wires wires requests values tail out scratch outer")
_WIRE = _words("known px_max qty_max")
_REQUEST_PLAN = _words("pieces n absorbed inner json n_json")
_FOLLOWER, _LATENCY = 0, 1
_WIRE_BYTES, _REQUEST_BYTES = _WIRE.itemsize, _REQUEST_PLAN.itemsize
plans_at, wire_at, request_at = record_at(_PLANS), record_at(_WIRE), record_at(_REQUEST_PLAN)
row_at, order_payload_at = record_at(ROW), record_at(ORDER_PAYLOAD)

_EXEC_TYPES = {
    "NEW": ExecType.ACK,
    "TRADE": ExecType.FILL,
    "CANCELED": ExecType.CANCELED,
    "REPLACED": ExecType.REPLACED,
    "REJECTED": ExecType.REJECT,
    "EXPIRED": ExecType.EXPIRED,
}
_STATUSES = {
    "NEW": OrdStatus.NEW,
    "PENDING_NEW": OrdStatus.PENDING_NEW,
    "PARTIALLY_FILLED": OrdStatus.PARTIALLY_FILLED,
    "FILLED": OrdStatus.FILLED,
    "CANCELED": OrdStatus.CANCELED,
    "PENDING_CANCEL": OrdStatus.PENDING_CANCEL,
    "REJECTED": OrdStatus.REJECTED,
    "EXPIRED": OrdStatus.EXPIRED,
    "EXPIRED_IN_MATCH": OrdStatus.EXPIRED,
}
_TERMINAL = (OrdStatus.FILLED, OrdStatus.CANCELED, OrdStatus.REJECTED, OrdStatus.EXPIRED)


def sign(secret: str, params: Mapping[str, object]) -> str:
    """Return the HMAC-SHA256 signature of a WebSocket API request, hex.

    The payload is ``name=value`` of every parameter but the signature, sorted by name, joined by ``&``, UTF-8, not
    percent-encoded.

    Examples
    --------
    >>> sign("secret", {"timestamp": 1, "apiKey": "key"}) == sign_query("secret", "apiKey=key&timestamp=1")
    True
    """
    return sign_query(secret, "&".join(f"{name}={params[name]}" for name in sorted(params) if name != "signature"))


def sign_query(secret: str, query: str) -> str:
    """Return the HMAC-SHA256 signature of `query` exactly as it will be sent, hex: for REST, percent-encoded before."""
    return hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()


class _WireInstrument:
    """An instrument with its two grids, laid out for the codec."""

    __slots__ = ("id", "px", "qty", "symbol")

    def __init__(self, instrument: Instrument) -> None:
        self.id = instrument.id
        self.symbol = instrument.symbol
        self.px = DecimalGrid.of_px(instrument)
        self.qty = DecimalGrid.of_qty(instrument)


class _Holes(NamedTuple):
    """What differs between two requests of a kind: as texts in one request, as control characters in a template."""

    id: str
    id_hex: str
    orig: str
    orig_hex: str
    px: str
    qty: str
    now_ms: str


_HOLES = _Holes(*"\x01\x02\x03\x04\x05\x06\x07")
_SIGNATURE_HOLE = "\x08"


def _json_request(method: str, request_id: str, query: str, now_ms: str, signature: str) -> str:
    """Return a request: since no value holds ``=``, ``&`` or a quote, its parameters with other separators are JSON."""
    fields = f"{query}&signature={signature}".replace("=", '":"').replace("&", '","')
    stamp = f'"timestamp":"{now_ms}"'
    fields = fields.replace(stamp, f'"timestamp":{now_ms}', 1)  # the one value that is a number
    return f'{{"id":"{request_id}","method":"{method}","params":{{"{fields}"}}}}'


@kernel(inline=True)
def _plan_index(instrument: int, is_replace: int, side: int, form: int) -> int:
    return ((instrument * 2 + is_replace) * 4 + side) * _FORMS_A_SIDE + form


@kernel(inline=True)
def _form_of(kind: int, flags: int, tif: int, market: bool) -> int:
    """Return the form of an order row; -1 if there is no template for it."""
    if kind == _CANCEL:
        return _CANCEL_FORM
    if (kind != _SUBMIT and kind != _REPLACE) or (market and kind == _REPLACE):
        return -1
    side = flags & _SIDE_BITS
    if side != 1 and side != 2:
        return -1
    if market:
        return _MARKET_FORM
    if flags & _POST_ONLY != 0:
        return _POST_FORM
    if tif == _GTC:
        return _GTC_FORM
    if tif == _IOC:
        return _IOC_FORM
    if tif == _FOK:
        return _FOK_FORM
    return -1


@kernel(inline=True)
def _hex_digits(value: int) -> int:
    n = 1
    while n < 16 and value >> (4 * n) != 0:
        n += 1
    return n


@kernel(nogil=False)
def _write_request(commands: Any, i: int, now_ms: int, plans: int) -> int:
    """Write the request of one order row: its length, or -1 if `OrderCodec.encode` has to look at it."""
    p = plans_at(plans)
    started = ticks() if p.latency != 0 else 0
    address = int(commands.ctypes.data) + 64 * i
    row = row_at(address)
    span = int(row.span)
    p.follower = i + 1 + span
    kind, flags, instrument = int(row.kind), int(row.flags), int(row.instrument)
    order, orig, px, qty = load(address + 48), load(address + 56), row.px, row.qty
    market = span > 0 and order_payload_at(address + 64).ord_type == _MARKET
    form = _form_of(kind, flags, int(row.code), market)
    if form < 0 or instrument >= p.n_wires or order < 0 or orig < 0 or now_ms < 0:
        return -1
    wire = wire_at(p.wires + instrument * _WIRE_BYTES)
    if wire.known == 0 or (form != _CANCEL_FORM and not 0 <= qty <= wire.qty_max):
        return -1
    if form < _MARKET_FORM and not 0 <= px <= wire.px_max:
        return -1
    id_length = 3 + _hex_digits(order) + _hex_digits(instrument)
    if kind == _REPLACE:
        id_length += 1 + _hex_digits(orig)
    if id_length > _ID_LENGTH:
        return -1
    is_replace = 1 if kind == _REPLACE else 0
    plan = request_at(p.requests + _plan_index(instrument, is_replace, flags & _SIDE_BITS, form) * _REQUEST_BYTES)
    if plan.n == 0:
        return -1
    store(p.values + 8 * _V_ID, order)
    store(p.values + 8 * _V_ORIG, orig)
    store(p.values + 8 * _V_PX, px)
    store(p.values + 8 * _V_QTY, qty)
    store(p.values + 8 * _V_NOW, now_ms)
    n = fill(plan.pieces, plan.n, p.values, p.tail) - p.tail
    sign_hex(plan.inner, p.outer, p.tail, n, n + plan.absorbed, p.scratch)
    n = fill(plan.json, plan.n_json, p.values, p.out) - p.out
    if p.latency != 0:
        add_cycles(p.latency, ENCODE, ticks() - started)
    return n  # type: ignore[no-any-return]  # records are untyped


class _EventName(msgspec.Struct):
    e: str


class OrderCodec:
    """Order rows to requests, answers and events to REPORT rows, for one account on one connection.

    Parameters
    ----------
    instruments : sequence of Instrument
        What may be ordered; ids are the rows' ``instrument``.
    api_key, secret : str
        An HMAC key pair.
    client_prefix : str
        Begins every client order id of this session: up to 16 of ``A-Z a-z 0-9 - _``, the last one no digit.
    assets : list of str
        The session's asset table; ``fee_asset`` is an index into it. An asset it lacks is appended, so the caller sees
        it grow (the venue may charge fees in a third asset).
    source : int
        Written in every report row.

    Attributes
    ----------
    prefix : str
        Begins every client order id of this session.
    subscribed : bool
        The account's events are flowing.
    account, open_orders : Account or None, list of OpenOrder or None
        Answers to `session_requests`; None until they came.
    balances : dict[str, Balance]
        By asset, kept up to date by the account's events.
    session_error : VenueError or None
        A session request was refused: wrong key, wrong signature, clock. Nothing can be traded.
    shutdown : bool
        The venue will close this connection.
    foreign : deque of ExecutionReport
        Reports about orders that are not this session's, the last 1024.
    counts : dict[str, int]
        ``malformed``, ``ignored``, ``foreign``, ``unmatched`` (answers to no request of ours), ``inexact`` (reports off
        the grid; their orders became LOST).

    Raises
    ------
    ConfigError
        If the prefix or the key holds a character that cannot be sent, or two instruments share an id or a symbol.
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
        if _PREFIX.fullmatch(client_prefix) is None:
            raise ConfigError(
                f"client_prefix={client_prefix!r}; expected 1 to 16 of A-Z a-z 0-9 - _, the last one no digit"
            )
        if _KEY.fullmatch(api_key) is None or not secret:
            raise ConfigError("api_key or secret is empty or has a character no key has; set both as the venue gave")
        self.assets = assets
        self.source = source
        self.subscribed = False
        self.shutdown = False
        self.account: Account | None = None
        self.open_orders: list[OpenOrder] | None = None
        self.balances: dict[str, Balance] = {}
        self.session_error: VenueError | None = None
        self.foreign: deque[ExecutionReport] = deque(maxlen=FOREIGN_KEPT)
        self.counts = dict.fromkeys(("malformed", "ignored", "foreign", "unmatched", "inexact"), 0)
        self._api_key = api_key
        self._secret = secret
        self._mac = hmac.new(secret.encode(), digestmod=hashlib.sha256)
        self.prefix = client_prefix
        wires = [_WireInstrument(i) for i in instruments]
        self._by_id = {w.id: w for w in wires}
        self._by_symbol = {w.symbol: w for w in wires}
        if len(self._by_id) != len(wires) or len(self._by_symbol) != len(wires):
            raise ConfigError("instruments share an id or a symbol; expected each once")
        for wire in wires:
            if not _UNSENDABLE.isdisjoint(wire.symbol):
                raise ConfigError(f"symbol={wire.symbol!r} holds =, &, a quote or a backslash: no request carries it")
        self._fee = DecimalGrid(MONEY_SCALE, "fee")
        self._rejected: deque[int] = deque(maxlen=_REJECTED_KEPT)
        self._responses = msgspec.json.Decoder(WsResponse)
        self._events: msgspec.json.Decoder[Any] = msgspec.json.Decoder(UserEvent)
        self._lay_plans(wires)

    # ---- rows to requests

    def encode(self, row: Any, payload_row: Any | None, now_ms: int) -> bytes:
        """Return the WebSocket API request of one order row.

        Parameters
        ----------
        row : ROW record
            SUBMIT, CANCEL or REPLACE_ORDER.
        payload_row : ROW or ORDER_PAYLOAD record, optional
            The row after it when its span is 1; only the order type is read: MARKET or LIMIT.
        now_ms : int
            Wall time, ms: the venue refuses a request older than its window.

        Raises
        ------
        LocalError
            If the row is no order row, or asks for what the venue does not have (DAY and GTD orders).
        """
        # one item() costs as much as reading two fields
        _, _, kind, _, _, _, instrument, flags, tif, px, qty, cl_ord_id, orig, *_ = row.item()
        wire = self._by_id.get(instrument)
        if wire is None:
            raise LocalError(f"instrument={instrument} of order {cl_ord_id} is not on this connection")
        if kind not in (_CANCEL, _SUBMIT, _REPLACE):
            raise LocalError(f"kind={kind} is no order row; expected SUBMIT, CANCEL or REPLACE_ORDER")
        holes = _Holes(str(cl_ord_id), f"{cl_ord_id:x}", str(orig), f"{orig:x}", "", "", str(now_ms))
        side = flags & _SIDE_BITS
        if kind == _CANCEL:
            form = _CANCEL_FORM
        else:
            if side not in _SIDES:
                raise LocalError(f"order {cl_ord_id} has flags={flags}; expected BID or ASK, not both")
            holes = holes._replace(px=wire.px.text(px), qty=wire.qty.text(qty))
            market = payload_row is not None and _order_type(payload_row) == _MARKET
            form = _MARKET_FORM if market else _POST_FORM if flags & _POST_ONLY else _TIF_FORMS.get(tif, -1)
            if form < 0:
                raise LocalError(f"order {cl_ord_id} has time in force {tif}; the venue has GTC, IOC and FOK")
        method, request_id, query = self._request(wire, side, form, holes, is_replace=kind == _REPLACE)
        return self._signed(method, request_id, query, str(now_ms))

    def _request(
        self, wire: _WireInstrument, side: int, form: int, holes: _Holes, *, is_replace: bool
    ) -> tuple[str, str, str]:
        """Return method, request id and parameters (``name=value&...`` after ``apiKey``, sorted by name) of an order.

        This is the one place that spells a request: `encode` gives it numbers, `_lay_plans` the holes of a template.
        """
        tail = f"{side}{holes.id_hex}.{wire.id:x}"
        stamp = f"timestamp={holes.now_ms}"
        if form == _CANCEL_FORM:
            query = f"origClientOrderId={self.prefix}{holes.id}&symbol={wire.symbol}&{stamp}"
            return "order.cancel", f"c{tail}", query
        query = f"newClientOrderId={self.prefix}{holes.id}&newOrderRespType=ACK"
        price = "" if form == _MARKET_FORM else f"price={holes.px}&"
        query += f"&{price}quantity={holes.qty}&side={_SIDES[side]}&symbol={wire.symbol}"
        query += f"{_FORCES.get(form, '')}&{stamp}&type={_TYPES.get(form, 'LIMIT')}"
        if not is_replace:
            return "order.place", f"p{tail}", query
        query = f"cancelOrigClientOrderId={self.prefix}{holes.orig}&cancelReplaceMode=STOP_ON_FAILURE&{query}"
        return "order.cancelReplace", f"r{tail}.{holes.orig_hex}", query

    def _signed(self, method: str, request_id: str, query: str, now_ms: str) -> bytes:
        """Return a signed request; `query` holds every parameter after ``apiKey``, sorted by name: what is signed."""
        if len(request_id) > _ID_LENGTH:
            raise LocalError(f"request id {request_id!r} is longer than the {_ID_LENGTH} characters the venue takes")
        query = f"apiKey={self._api_key}&{query}"
        mac = self._mac.copy()
        mac.update(query.encode())
        return _json_request(method, request_id, query, now_ms, mac.hexdigest()).encode()

    # ---- the same, by templates

    def request(self, commands: RowArray, i: int, now_ms: int) -> bytes:
        """Return the request of the order row ``commands[i]``: byte for byte what `encode` gives, five times as fast.

        What the templates do not cover (an instrument beyond their table, a replace at market, numbers that `encode`
        refuses) goes there.

        Parameters
        ----------
        commands : array of ROW
            Order rows, each followed by its payload, as the engine publishes them; contiguous.
        i : int
            Index of the row; `follower` is the index of the one after it.
        now_ms : int
            As `encode`.

        Raises
        ------
        LocalError
            As `encode`.
        """
        n: int = _write_request(commands, i, now_ms, self._plans_at)
        if n > 0:
            return bytes(self._text[:n])
        payload = commands[i + 1] if self._plan_words[_FOLLOWER] > i + 1 else None
        return self.encode(commands[i], payload, now_ms)

    @property
    def follower(self) -> int:
        """Index of the order row after the one that `request` wrote last."""
        return self._plan_words[_FOLLOWER]

    def measure(self, latency: Latency) -> None:
        """Add the time that `request` takes to the hop ``encode`` of `latency`."""
        self._latency = latency  # keeps its memory alive
        self._plans[0]["latency"] = latency.address

    def rehearse(self, commands: RowArray, now_ms: int) -> None:
        """Write the request of ``commands[0]`` and forget it, uncounted: to keep what `request` needs in the caches."""
        words = self._plan_words
        counted, words[_LATENCY] = words[_LATENCY], 0
        self.request(commands, 0, now_ms)
        words[_LATENCY] = counted

    def _lay_plans(self, wires: Sequence[_WireInstrument]) -> None:
        """Lay out every kind of request of every instrument, as templates for the kernel."""
        self._plans = np.zeros(1, _PLANS)
        self._plan_words = memoryview(self._plans.view(np.uint8).data).cast("q")
        self._plans_at = address_of(self._plans)
        self._wires = np.zeros(1 + max((w.id for w in wires if w.id < _TABLE_MAX), default=-1), _WIRE)
        self._requests = np.zeros(len(self._wires) * _N_FORMS, _REQUEST_PLAN)
        self._values = np.zeros(_N_VALUES, np.int64)
        self._tail, self._out = np.zeros(_TEXT_BYTES, np.uint8), np.zeros(_TEXT_BYTES, np.uint8)
        self._text = self._out.data
        self._scratch = np.zeros(SCRATCH_BYTES, np.uint8)
        self._values[_V_SIGNATURE] = address_of(self._scratch)
        self._kept: list[Any] = [HmacKey(self._secret.encode())]
        for name, value in {
            "n_wires": len(self._wires), "wires": address_of(self._wires), "requests": address_of(self._requests),
            "values": address_of(self._values), "tail": address_of(self._tail), "out": address_of(self._out),
            "scratch": address_of(self._scratch), "outer": self._kept[0].outer,
        }.items():  # fmt: skip
            self._plans[0][name] = value
        for wire in wires:
            if wire.id < len(self._wires) and max(wire.px.decimals, wire.qty.decimals) <= _DECIMALS_MAX:
                self._lay_wire(wire)

    def _lay_wire(self, wire: _WireInstrument) -> None:
        record = self._wires[wire.id]
        if max(wire.px.unit, wire.qty.unit) > INT64_MAX:
            return  # `encode` has numbers without a bound
        record["px_max"], record["qty_max"] = INT64_MAX // wire.px.unit, INT64_MAX // wire.qty.unit
        record["known"] = 1
        holes = {
            _HOLES.id: Hole(_V_ID), _HOLES.id_hex: Hole(_V_ID, "hex"),
            _HOLES.orig: Hole(_V_ORIG), _HOLES.orig_hex: Hole(_V_ORIG, "hex"),
            _HOLES.px: Hole(_V_PX, "decimal", wire.px.unit, wire.px.decimals),
            _HOLES.qty: Hole(_V_QTY, "decimal", wire.qty.unit, wire.qty.decimals),
            _HOLES.now_ms: Hole(_V_NOW), _SIGNATURE_HOLE: Hole(_V_SIGNATURE, "text64"),
        }  # fmt: skip
        for is_replace in (False, True):
            for side in (0, 1, 2, 3):
                for form in range(_CANCEL_FORM + 1):
                    if form == _CANCEL_FORM or side in _SIDES:
                        self._lay_request(wire, side, form, is_replace, holes)

    def _lay_request(
        self, wire: _WireInstrument, side: int, form: int, is_replace: bool, holes: dict[str, Hole]
    ) -> None:
        method, request_id, query = self._request(wire, side, form, _HOLES, is_replace=is_replace)
        query = f"apiKey={self._api_key}&{query}"
        json_text = _json_request(method, request_id, query, _HOLES.now_ms, _SIGNATURE_HOLE)
        if len(json_text) + 8 * 20 + 64 + 8 > _TEXT_BYTES:
            return  # a key or prefix of unheard-of length: `encode` takes it
        state, absorbed = self._kept[0].after(Template(query, holes).head)
        signed, whole = Template(query, holes, absorbed), Template(json_text, holes)
        plan = self._requests[_plan_index(wire.id, is_replace, side, form)]
        plan["pieces"], plan["n"], plan["absorbed"] = signed.address, signed.n, absorbed
        plan["inner"], plan["json"], plan["n_json"] = address_of(state), whole.address, whole.n
        self._kept += [state, signed, whole]

    def session_requests(self, now_ms: int) -> list[bytes]:
        """Return the requests that open a session: subscribe to the account's events, read balances and open orders.

        They are answered in `subscribed`, `account` and `open_orders`, or in `session_error`.
        """
        self.subscribed = False
        self.account = self.open_orders = self.session_error = None
        stamp = f"timestamp={now_ms}"
        return [
            self._signed("userDataStream.subscribe.signature", _SUBSCRIBE, stamp, str(now_ms)),
            self._signed("account.status", _ACCOUNT, stamp, str(now_ms)),
            self._signed("openOrders.status", _OPEN_ORDERS, stamp, str(now_ms)),
        ]

    def cancel_all_request(self, instrument: int, now_ms: int) -> bytes:
        """Return the request that cancels every open order of `instrument` on the account, whoever sent it."""
        query = f"symbol={self._by_id[instrument].symbol}&timestamp={now_ms}"
        return self._signed("openOrders.cancelAll", _CANCEL_ALL, query, str(now_ms))

    def rest_query(self, params: Mapping[str, object]) -> str:
        """Return the signed query string of a REST request: `params` in their order, percent-encoded, then signed.

        The key itself goes into the header ``X-MBX-APIKEY``; `params` must hold ``timestamp``.
        """
        query = urlencode([(k, str(v)) for k, v in params.items()], quote_via=quote)
        return f"{query}&signature={sign_query(self._secret, query)}"

    def cl_ord_id(self, client_order_id: str) -> int:
        """Return the ``cl_ord_id`` in a client order id of this session; 0 if it is somebody else's."""
        if not client_order_id.startswith(self.prefix):
            return 0
        digits = client_order_id[len(self.prefix) :]
        value = int(digits) if _CL_ORD_ID.fullmatch(digits) else 0
        return value if value < 2**63 else 0

    # ---- answers and events to rows

    def decode(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the REPORT rows of one message, each with its payload row, to the front of `out`; return their number.

        Parameters
        ----------
        frame : bytes
            A message of the WebSocket API.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten; at least 4 rows.

        Returns
        -------
        int
            0, 2 or 4. Bytes that are not the protocol are counted as malformed and give no rows.
        """
        try:
            message = self._responses.decode(frame)
            if len(message.event):
                return self._on_event(bytes(message.event), ts_recv, out)
            return self._on_response(message, ts_recv, out)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.counts["malformed"] += 1
            return 0

    def _on_response(self, message: WsResponse, ts_recv: int, out: RowArray) -> int:
        failed = message.error is not None or message.status != 200
        error = message.error or ApiError(0, f"status {message.status}")
        match = _REQUEST.fullmatch(message.id) if isinstance(message.id, str) else None
        if match is None:
            self._on_session_response(message, error if failed else None)
            return 0
        if not failed:
            return 0  # the event tells
        kind, flags, order, instrument, orig = match.groups()
        cl_ord_id, write = int(order, 16), self._writer(int(flags), int(instrument, 16), ts_recv, out)
        if message.status >= 500 or error.code in OUTCOME_UNKNOWN_CODES:
            n = write(0, ExecType.LOST, OrdStatus.UNKNOWN, cl_ord_id, error)
            return write(n, ExecType.LOST, OrdStatus.UNKNOWN, int(orig, 16), error) if orig else n
        if kind == "c":
            return write(0, ExecType.CANCEL_REJECT, OrdStatus.NONE, cl_ord_id, error)
        if kind == "r":
            placed, error = _replace_outcome(error)
            if placed:
                return 0
        if not self._first_reject(cl_ord_id):
            return 0
        return write(0, ExecType.REJECT, OrdStatus.REJECTED, cl_ord_id, error)

    def _on_session_response(self, message: WsResponse, error: ApiError | None) -> None:
        if message.id not in (_SUBSCRIBE, _ACCOUNT, _OPEN_ORDERS, _CANCEL_ALL):
            self.counts["unmatched"] += 1
        elif message.id == _CANCEL_ALL:
            self.counts["ignored"] += 1  # the events tell which orders went
        elif error is not None:
            self.session_error = VenueError(error.code, error.msg)
        elif message.id == _SUBSCRIBE:
            self.subscribed = True
        elif message.id == _ACCOUNT:
            self.account = msgspec.json.decode(message.result, type=Account)
            self.balances = {b.asset: b for b in self.account.balances}
        else:
            self.open_orders = msgspec.json.decode(message.result, type=list[OpenOrder])

    def _on_event(self, raw: bytes, ts_recv: int, out: RowArray) -> int:
        try:
            event = self._events.decode(raw)
        except msgspec.ValidationError:
            if msgspec.json.decode(raw, type=_EventName).e == "executionReport":
                raise
            self.counts["ignored"] += 1  # an event this version does not know
            return 0
        if isinstance(event, ExecutionReport):
            return self._on_execution(event, ts_recv, out)
        if isinstance(event, AccountPosition):
            self.balances |= {p.a: Balance(p.a, p.f, p.l) for p in event.B}
        elif isinstance(event, StreamTerminated):
            self.subscribed = False
        elif isinstance(event, ServerShutdown):
            self.shutdown = True
        else:
            self.counts["ignored"] += 1
        return 0

    def _on_execution(self, event: ExecutionReport, ts_recv: int, out: RowArray) -> int:
        canceled = event.x == "CANCELED" and event.C not in ("", "null")
        cl_ord_id = self.cl_ord_id(event.C if canceled else event.c)
        wire = self._by_symbol.get(event.s)
        if cl_ord_id == 0 or wire is None:
            self.counts["foreign"] += 1
            self.foreign.append(event)
            return 0
        status = _STATUSES.get(event.X)
        exec_type = _EXEC_TYPES.get(event.x)
        if exec_type is None and status == OrdStatus.EXPIRED:
            exec_type = ExecType.EXPIRED  # TRADE_PREVENTION that ended the order
        if exec_type is None or status is None or (exec_type == ExecType.REJECT and not self._first_reject(cl_ord_id)):
            self.counts["ignored"] += 1
            return 0
        flags = _FLAGS.get(event.S, 0) | (_MAKER if event.m and exec_type == ExecType.FILL else 0)
        try:
            return self._write_execution(event, wire, cl_ord_id, exec_type, status, flags, ts_recv, out)
        except (OffGridError, ValueError) as error:
            self.counts["inexact"] += 1
            write = self._writer(flags, wire.id, ts_recv, out)
            return write(0, ExecType.LOST, OrdStatus.UNKNOWN, cl_ord_id, ApiError(0, str(error)))

    def _write_execution(
        self, event: ExecutionReport, wire: _WireInstrument, cl_ord_id: int, exec_type: ExecType, status: OrdStatus,
        flags: int, ts_recv: int, out: RowArray,
    ) -> int:  # fmt: skip
        px = qty = exec_id = fee = asset = 0
        ts_event = time_ns(event.T)
        order_qty, cum = wire.qty.count(event.q), wire.qty.count(event.z)
        venue_order_id = _unsigned("i", event.i)
        if exec_type == ExecType.FILL:
            px, qty, exec_id = wire.px.count(event.L), wire.qty.count(event.l), _unsigned("t", event.t)
            fee, asset = self._fee_of(event), self._asset_of(event)
        elif exec_type == ExecType.REPLACED:
            px, qty = wire.px.count(event.p), order_qty
        leaves = 0 if status in _TERMINAL else order_qty - cum
        code = int(event.r) if event.r.lstrip("-").isdigit() and len(event.r) < 10 else 0
        text = b"" if event.r == "NONE" else event.r.encode()
        payload = (cum, leaves, venue_order_id, fee, asset, code, text)
        head = (self.source, wire.id, ts_recv, ts_event, flags, exec_type, status, px, qty, cl_ord_id, exec_id)
        _write_report(out, 0, head, payload)
        return 2

    def _fee_of(self, event: ExecutionReport) -> int:
        text = event.n or "0"
        return -self._fee.count(text[1:]) if text.startswith("-") else self._fee.count(text)

    def _asset_of(self, event: ExecutionReport) -> int:
        if not event.N:
            return 0
        if event.N not in self.assets:
            self.assets.append(event.N)
        return self.assets.index(event.N)

    def _first_reject(self, cl_ord_id: int) -> bool:
        """Return whether no REJECT of this order was given yet: answer and event may both tell of it."""
        if cl_ord_id in self._rejected:
            return False
        self._rejected.append(cl_ord_id)
        return True

    def _writer(
        self, flags: int, instrument: int, ts_recv: int, out: RowArray
    ) -> Callable[[int, ExecType, OrdStatus, int, ApiError], int]:
        """Return a function that writes a report without quantities and returns the next free row."""

        def write(n: int, exec_type: ExecType, status: OrdStatus, cl_ord_id: int, error: ApiError) -> int:
            head = (self.source, instrument, ts_recv, NAT, flags, exec_type, status, 0, 0, cl_ord_id, 0)
            code = error.code if -(2**31) <= error.code < 2**31 else 0
            _write_report(out, n, head, (0, 0, 0, 0, 0, code, error.msg.encode()))
            return n + 2

        return write


def _order_type(payload_row: Any) -> int:
    if "ord_type" in (payload_row.dtype.names or ()):
        return int(payload_row["ord_type"])
    return int(payload_row.view(ORDER_PAYLOAD)["ord_type"])


def _unsigned(name: str, value: int) -> int:
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}={value} is no id")
    return value


def _replace_outcome(error: ApiError) -> tuple[bool, ApiError]:
    """Return whether a failed cancelReplace has placed its new order all the same, and the error that tells why not."""
    try:
        data = msgspec.json.decode(error.data)
    except msgspec.DecodeError:
        return False, error
    if not isinstance(data, dict):
        return False, error
    if data.get("newOrderResult") == "SUCCESS":
        return True, error
    for part in ("newOrderResponse", "cancelResponse"):
        answer = data.get(part)
        if isinstance(answer, dict) and isinstance(answer.get("code"), int):
            return False, ApiError(answer["code"], str(answer.get("msg", "")))
    return False, error


def _write_report(out: RowArray, n: int, head: tuple[int, ...], payload: tuple[Any, ...]) -> None:
    """Write a REPORT at `n` and its payload row after it."""
    source, instrument, ts_recv, ts_event, flags, exec_type, status, px, qty, cl_ord_id, exec_id = head
    row = out[n]
    row["seq"], row["source"], row["kind"], row["span"] = 0, source, _REPORT, 1
    row["ts_recv"], row["ts_event"], row["instrument"], row["flags"] = ts_recv, ts_event, instrument, flags
    row["code"] = exec_type | status << 8
    row["px"], row["qty"], row["a"], row["b"] = px, qty, cl_ord_id, exec_id
    out[n + 1 : n + 2].view(REPORT_PAYLOAD)[0] = (0, source, CONT, 0, *payload)


