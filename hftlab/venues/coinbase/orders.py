"""Coinbase orders: order rows to signed REST requests of both APIs; answers and account events to REPORT rows.

Model. Requests go out by REST, the truth comes back on the account's ``user`` channel; each fact is taken from one:

===========================  =======================================================================================
ACK                          *received* (Exchange), the first OPEN state (Advanced Trade)
FILL                         *match* (Exchange); a rise of the cumulative quantity (Advanced Trade)
CANCELED, EXPIRED            *done* with reason canceled; states CANCELLED, EXPIRED
REJECT                       the answer to the order: a 4xx status, or an order that is born ``rejected`` or FAILED
CANCEL_REJECT                the answer to the cancel: a 4xx status
LOST                         an answer from 500 up, or *done* as filled while fills are missing: the outcome is unknown
===========================  =======================================================================================

Names. An Exchange client id must be a UUID: its first half is a hash of the session's prefix, its second half is the
``cl_ord_id``, so an id means the same after a restart. Matches and dones carry the venue's id only; a table of the
session's orders alive, filled by *received* and by answers, leads from it to ours.

Fills by difference. Advanced Trade tells an order's cumulative quantity, value and fees, not its fills. A rise of q
lots worth v ticks x lots is told as fills at the two ticks around the average, ``v mod q`` lots at the upper one and
the rest at the lower: quantity and value are exact, no price is rounded. When it is wrong: the single prices of a sweep
over several levels are not the real ones.

Promise. Prices and quantities are written and read by integer arithmetic. A report that cannot be expressed exactly is
never dropped silently: its order becomes LOST, that is *unknown*, and is counted. Fees are told in 1e-8: the Exchange
gives a rate, and the product is rounded half up; sums of Advanced Trade's fees are exact to one unit.

Neither REST API of the Exchange nor this codec has a replace: cancel and submit.

References
----------
docs.cdp.coinbase.com: Exchange REST API (authentication, create order, cancel order), WebSocket Channels (user);
Advanced Trade REST API (create order, cancel orders), WebSocket Channels (user), WebSocket Authentication.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any, NamedTuple

import msgspec

from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import ConfigError, LocalError, OffGridError
from hftlab.core.instruments import MONEY_SCALE, Instrument
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
from hftlab.venues.coinbase.market import order_ref
from hftlab.venues.coinbase.messages import (
    AdvancedEnvelope,
    AdvancedOrder,
    AdvancedPlaced,
    AdvancedUserEvent,
    BalanceOf,
    OrderEvent,
    RestOrder,
)
from hftlab.venues.coinbase.spec import JWT_LIFE_S, time_ns

__all__ = [
    "AdvancedOrderCodec",
    "FOREIGN_KEPT",
    "OrderCodec",
    "Request",
    "exchange_signature",
    "jwt_signer",
]

FOREIGN_KEPT = 1024
_REMEMBERED = 4096  # orders that are done, by the venue's id: late messages about them are ours, and change nothing

_PREFIX = re.compile(r"[A-Za-z0-9_-]{0,15}[A-Za-z_-]", re.ASCII)
_CL_ORD_ID = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_SIDES = {int(Flag.BID): "buy", int(Flag.ASK): "sell"}
_SIDE_BITS = int(Flag.BID | Flag.ASK)
_POST_ONLY, _MAKER = int(Flag.POST_ONLY), int(Flag.MAKER)
_TIFS = {int(Tif.GTC): "GTC", int(Tif.IOC): "IOC", int(Tif.FOK): "FOK"}
_ADVANCED_TIFS = {int(Tif.GTC): "limit_limit_gtc", int(Tif.IOC): "sor_limit_ioc", int(Tif.FOK): "limit_limit_fok"}
_MARKET = int(OrdType.MARKET)
_SUBMIT, _CANCEL, _REPORT = int(Kind.SUBMIT), int(Kind.CANCEL), int(Kind.REPORT)
_MAX_CL_ORD_ID = 2**62 - 1

Sign = Callable[[str, str, int], str]
"""Given method, ``host/path`` and time in ns (or "", "", time for a WebSocket), a fresh JSON Web Token."""


class Request(NamedTuple):
    """One REST request: method, path, headers, body, and the `tag` with which its answer is handed back."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    tag: tuple[str, int, int, int]  # what, cl_ord_id, instrument, side flag

    def __repr__(self) -> str:
        # without headers: they carry key, passphrase and signature, and a repr ends in logs
        return f"Request(method={self.method!r}, path={self.path!r}, body={self.body!r}, tag={self.tag!r})"


def _exchange_sign(secret: bytes, stamp: str, method: str, path: str, body: bytes) -> str:
    message = f"{stamp}{method}{path}".encode() + body
    return base64.b64encode(hmac.new(secret, message, hashlib.sha256).digest()).decode()


def _stamp(now_ns: int) -> str:
    return f"{now_ns // 10**9}.{now_ns // 10**6 % 1000:03d}"


def exchange_signature(api_key: str, secret: str, passphrase: str, now_ns: int) -> dict[str, str]:
    """Return the fields that authenticate an Exchange subscription: of the request ``GET /users/self/verify``.

    Examples
    --------
    >>> exchange_signature("k", "c2VjcmV0", "p", 1_700_000_000_000_000_000)["timestamp"]
    '1700000000.000'
    """
    stamp = _stamp(now_ns)
    signature = _exchange_sign(base64.b64decode(secret), stamp, "GET", "/users/self/verify", b"")
    return {"key": api_key, "passphrase": passphrase, "timestamp": stamp, "signature": signature}


def jwt_signer(key_name: str, private_key_pem: str, nonce: Callable[[], str] = lambda: secrets.token_hex(16)) -> Sign:
    """Return what makes Advanced Trade's tokens: ES256 for an EC key, EdDSA for an Ed25519 one.

    Parameters
    ----------
    key_name : str
        Such as ``organizations/.../apiKeys/...``.
    private_key_pem : str
        As the venue gave it. The package ``cryptography`` is needed to use it.
    nonce : callable
        Gives a text used once.

    Raises
    ------
    ConfigError
        If ``cryptography`` is missing, or the key is neither an EC P-256 nor an Ed25519 private key.
    """
    try:
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
    except ImportError as error:
        raise ConfigError("Advanced Trade's tokens need the package cryptography: pip install cryptography") from error
    try:
        key = serialization.load_pem_private_key(private_key_pem.encode(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError("private_key_pem is no private key in PEM form; paste it with its line breaks") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        algorithm = "ES256"

        def signed(message: bytes) -> bytes:
            r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    elif isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm = "EdDSA"

        def signed(message: bytes) -> bytes:
            return key.sign(message)

    else:
        raise ConfigError("private_key_pem is of another kind; expected EC P-256 (ES256) or Ed25519 (EdDSA)")

    def encoded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    def sign(method: str, host_path: str, now_ns: int) -> str:
        now_s = now_ns // 10**9
        head = {"alg": algorithm, "kid": key_name, "nonce": nonce(), "typ": "JWT"}
        claims: dict[str, object] = {"sub": key_name, "iss": "cdp", "nbf": now_s, "exp": now_s + JWT_LIFE_S}
        if method:
            claims["uri"] = f"{method} {host_path}"
        content = encoded(msgspec.json.encode(head)) + b"." + encoded(msgspec.json.encode(claims))
        return (content + b"." + encoded(signed(content))).decode()

    return sign


class _Wire:
    """An instrument with its two grids."""

    __slots__ = ("id", "money", "px", "qty", "symbol")

    def __init__(self, instrument: Instrument) -> None:
        self.id = instrument.id
        self.symbol = instrument.symbol
        self.px = DecimalGrid.of_px(instrument)
        self.qty = DecimalGrid.of_qty(instrument)
        self.money = instrument.tick_size * instrument.lot_size


class _Live:
    """One order of this session as far as it has been told: lots, value in ticks x lots, fee in 1e-8."""

    __slots__ = ("acked", "cl_ord_id", "cum", "done", "fee", "flags", "qty", "value", "wire")

    def __init__(self, cl_ord_id: int, wire: _Wire, flags: int, qty: int) -> None:
        self.cl_ord_id = cl_ord_id
        self.wire = wire
        self.flags = flags
        self.qty = qty
        self.cum = self.value = self.fee = 0
        self.acked = self.done = False


def _fee_units(amount: Decimal) -> int:
    with localcontext() as context:
        context.prec = 60
        return int((amount / MONEY_SCALE).to_integral_value(ROUND_HALF_UP))


def _order_type(payload_row: Any) -> int:
    if "ord_type" in (payload_row.dtype.names or ()):
        return int(payload_row["ord_type"])
    return int(payload_row.view(ORDER_PAYLOAD)["ord_type"])


class _Codec:
    """What both codecs share: instruments, the session's orders, and how a report is written."""

    def __init__(self, instruments: Sequence[Instrument], client_prefix: str, assets: list[str], source: int) -> None:
        if _PREFIX.fullmatch(client_prefix) is None:
            raise ConfigError(
                f"client_prefix={client_prefix!r}; expected 1 to 16 of A-Z a-z 0-9 - _, the last one no digit"
            )
        wires = [_Wire(i) for i in instruments]
        self._by_id = {w.id: w for w in wires}
        self._by_symbol = {w.symbol: w for w in wires}
        if len(self._by_id) != len(wires) or len(self._by_symbol) != len(wires):
            raise ConfigError("instruments share an id or a symbol; expected each once")
        self.prefix = client_prefix
        self.assets = assets
        self.source = source
        self.subscribed = False
        self.errors: deque[str] = deque(maxlen=16)
        self.counts = dict.fromkeys(("malformed", "ignored", "foreign", "inexact"), 0)
        self._quotes = {w.symbol: i.quote for w, i in zip(wires, instruments, strict=True)}
        self._orders: dict[str, _Live] = {}
        self._over: deque[str] = deque()
        self._ids: dict[int, str] = {}

    def venue_order_id(self, cl_ord_id: int) -> str:
        """Return the venue's id of an order of this session; "" while it is not known."""
        return self._ids.get(cl_ord_id, "")

    def _wire_of(self, row: Any) -> tuple[_Wire, int, int, int, int, int, int]:
        """Return the instrument of an order row, its kind, flags, time in force, px, qty and cl_ord_id."""
        _, _, kind, _, _, _, instrument, flags, tif, px, qty, cl_ord_id, *_ = row.item()
        wire = self._by_id.get(instrument)
        if wire is None:
            raise LocalError(f"instrument={instrument} of order {cl_ord_id} is not on this connection")
        if kind not in (_SUBMIT, _CANCEL):
            raise LocalError(f"kind={kind}: expected SUBMIT or CANCEL; the venue has no replace, cancel and submit")
        if not 0 < cl_ord_id <= _MAX_CL_ORD_ID:
            raise LocalError(f"cl_ord_id={cl_ord_id}; expected 1 to 2**62 - 1")
        if kind == _SUBMIT and flags & _SIDE_BITS not in _SIDES:
            raise LocalError(f"order {cl_ord_id} has flags={flags}; expected BID or ASK, not both")
        return wire, kind, flags, tif, px, qty, cl_ord_id

    def _know(self, venue_id: str, live: _Live) -> _Live:
        """Remember an order under the venue's id; return what is already known of it."""
        known = self._orders.get(venue_id)
        if known is not None:
            known.qty = known.qty or live.qty
            return known
        self._orders[venue_id] = live
        self._ids[live.cl_ord_id] = venue_id
        return live

    def _end(self, venue_id: str, live: _Live) -> None:
        if live.done:
            return
        live.done = True
        self._over.append(venue_id)
        while len(self._over) > _REMEMBERED:
            old = self._orders.pop(self._over.popleft(), None)
            if old is not None:
                self._ids.pop(old.cl_ord_id, None)

    def _foreign(self) -> int:
        self.counts["foreign"] += 1
        return 0

    def _asset(self, wire: _Wire) -> int:
        """Return the index of the quote asset, in which fees are charged, in the session's table."""
        quote = self._quotes[wire.symbol]
        if quote not in self.assets:
            self.assets.append(quote)
        return self.assets.index(quote)

    def _report(
        self, out: RowArray, n: int, live: _Live, exec_type: ExecType, status: OrdStatus, ts_recv: int, *,
        ts_event: int = NAT, px: int = 0, qty: int = 0, exec_id: int = 0, flags: int = 0, leaves: int = 0,
        venue_id: str = "", fee: int = 0, code: int = 0, text: str = "",
    ) -> int:  # fmt: skip
        """Write a REPORT at `n` and its payload row after it; return the next free row."""
        row = out[n]
        row["seq"], row["source"], row["kind"], row["span"] = 0, self.source, _REPORT, 1
        row["ts_recv"], row["ts_event"], row["instrument"] = ts_recv, ts_event, live.wire.id
        row["flags"], row["code"] = live.flags | flags, exec_type | status << 8
        row["px"], row["qty"], row["a"], row["b"] = px, qty, live.cl_ord_id, exec_id
        ref = order_ref(venue_id) if _is_uuid(venue_id) else 0
        asset = self._asset(live.wire) if fee else 0
        payload = (live.cum, leaves, ref, fee, asset, code, text.encode()[:16])
        out[n + 1 : n + 2].view(REPORT_PAYLOAD)[0] = (0, self.source, CONT, 0, *payload)
        return n + 2

    def _lost(self, out: RowArray, n: int, live: _Live, ts_recv: int, code: int = 0, text: str = "") -> int:
        return self._report(out, n, live, ExecType.LOST, OrdStatus.UNKNOWN, ts_recv, code=code, text=text)

    def _failed(self, tag: tuple[str, int, int, int], status: int, text: str, ts_recv: int, out: RowArray) -> int:
        """Write what a failed request means for its order."""
        what, cl_ord_id, instrument, flags = tag
        live = _Live(cl_ord_id, self._by_id[instrument], flags, 0)
        if status >= 500 or status < 400:
            return self._lost(out, 0, live, ts_recv, status, text)
        exec_type, state = (
            (ExecType.CANCEL_REJECT, OrdStatus.NONE) if what == "cancel" else (ExecType.REJECT, OrdStatus.REJECTED)
        )
        return self._report(out, 0, live, exec_type, state, ts_recv, code=status, text=text)


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and re.fullmatch(r"[0-9a-fA-F-]{36}", text) is not None and text[8] == text[13] == "-"


class OrderCodec(_Codec):
    """Order rows to Exchange REST requests; answers and the user channel to REPORT rows, for one account.

    Parameters
    ----------
    instruments : sequence of Instrument
        What may be ordered; ids are the rows' ``instrument``.
    api_key, secret, passphrase : str
        As the venue gave them; the secret is base64.
    client_prefix : str
        Names the session: its hash begins every client id.
    assets : list of str
        The session's asset table; ``fee_asset`` is an index into it. An asset it lacks is appended.
    source : int
        Written in every report row.

    Attributes
    ----------
    subscribed : bool
        The user channel has been acknowledged.
    accounts, open_orders : list or None
        Answers to `session_requests`; None until they came.
    errors : deque of str
        The last 16 errors of the feed and of session requests.
    foreign : deque of OrderEvent
        Messages about orders that are not this session's, the last 1024.
    counts : dict[str, int]
        ``malformed``, ``ignored``, ``foreign``, ``inexact`` (reports off the grid; their orders became LOST).

    Raises
    ------
    ConfigError
        If prefix, key or secret is none, or two instruments share an id or a symbol.

    Examples
    --------
    >>> from hftlab.core.rows import new_rows
    >>> btc = Instrument(0, "coinbase", "BTC-USD", Decimal("0.01"), Decimal("0.00000001"))
    >>> codec = OrderCodec([btc], "key", "c2VjcmV0", "phrase", "demo-", ["BTC", "USD"])
    >>> row = new_rows(1)[0]
    >>> row["kind"], row["flags"], row["code"], row["px"], row["qty"], row["a"] = 30, 1, 1, 5_000_000, 1_000_000, 7
    >>> request = codec.encode(row, None, 1_700_000_000_000)
    >>> request.method, request.path, codec.cl_ord_id(codec.client_oid(7))
    ('POST', '/orders', 7)
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        api_key: str,
        secret: str,
        passphrase: str,
        client_prefix: str,
        assets: list[str],
        *,
        source: int = 2,
    ) -> None:
        super().__init__(instruments, client_prefix, assets, source)
        if not api_key or not passphrase:
            raise ConfigError("api_key or passphrase is empty; set both as the venue gave them")
        try:
            self._secret = base64.b64decode(secret, validate=True)
        except ValueError as error:
            raise ConfigError("secret is no base64; set it as the venue gave it") from error
        self._api_key, self._passphrase = api_key, passphrase
        self._secret_text = secret
        self.accounts: list[BalanceOf] | None = None
        self.open_orders: list[RestOrder] | None = None
        self.foreign: deque[OrderEvent] = deque(maxlen=FOREIGN_KEPT)
        half = int.from_bytes(hashlib.sha256(client_prefix.encode()).digest()[:8], "big")
        self._half = half & ~0xF000 | 0x4000  # version 4, as a UUID of no order has it
        self._events: msgspec.json.Decoder[Any] = msgspec.json.Decoder(OrderEvent)

    def client_oid(self, cl_ord_id: int) -> str:
        """Return the client id that an order of this session carries at the venue."""
        return str(uuid.UUID(int=self._half << 64 | 1 << 63 | cl_ord_id))

    def cl_ord_id(self, client_oid: str) -> int:
        """Return the ``cl_ord_id`` in a client id of this session; 0 if it is somebody else's."""
        if not _is_uuid(client_oid):
            return 0
        try:
            bits = uuid.UUID(client_oid).int
        except ValueError:
            return 0
        low = bits & (2**64 - 1)
        return low & _MAX_CL_ORD_ID if bits >> 64 == self._half and low >> 62 == 2 else 0

    # ---- requests

    def encode(self, row: Any, payload_row: Any, now_ms: int) -> Request:
        """Return the request that carries out an order row.

        Parameters
        ----------
        row : ROW record
            SUBMIT or CANCEL.
        payload_row : ROW or ORDER_PAYLOAD record, or None
            The row after it when its span is 1; only the order type is read: MARKET or LIMIT.
        now_ms : int
            Wall time, ms: the venue refuses a request older than its window.

        Raises
        ------
        LocalError
            If the row is another one, or asks for what the venue does not have (DAY and GTD orders, a replace).
        """
        wire, kind, flags, tif, px, qty, cl_ord_id = self._wire_of(row)
        if kind == _CANCEL:
            path = f"/orders/client:{self.client_oid(cl_ord_id)}?product_id={wire.symbol}"
            return self._signed("DELETE", path, b"", now_ms, ("cancel", cl_ord_id, wire.id, flags & _SIDE_BITS))
        body: dict[str, object] = {
            "product_id": wire.symbol,
            "side": _SIDES[flags & _SIDE_BITS],
            "client_oid": self.client_oid(cl_ord_id),
            "size": wire.qty.text(qty),
        }
        if payload_row is not None and _order_type(payload_row) == _MARKET:
            body["type"] = "market"
        else:
            force = _TIFS.get(tif)
            if force is None:
                raise LocalError(f"order {cl_ord_id} has time in force {tif}; the venue has GTC, IOC and FOK")
            body |= {"type": "limit", "price": wire.px.text(px), "time_in_force": force}
            if flags & _POST_ONLY:
                body["post_only"] = True
        tag = ("place", cl_ord_id, wire.id, flags & _SIDE_BITS)
        return self._signed("POST", "/orders", msgspec.json.encode(body), now_ms, tag)

    def _signed(self, method: str, path: str, body: bytes, now_ms: int, tag: tuple[str, int, int, int]) -> Request:
        stamp = _stamp(now_ms * 10**6)
        headers = {
            "CB-ACCESS-KEY": self._api_key,
            "CB-ACCESS-SIGN": _exchange_sign(self._secret, stamp, method, path, body),
            "CB-ACCESS-TIMESTAMP": stamp,
            "CB-ACCESS-PASSPHRASE": self._passphrase,
            "Content-Type": "application/json",
        }
        return Request(method, path, headers, body, tag)

    def subscribe_request(self, now_ns: int) -> bytes:
        """Return the message that opens the account's events on the feed."""
        auth = exchange_signature(self._api_key, self._secret_text, self._passphrase, now_ns)
        return msgspec.json.encode(
            {"type": "subscribe", "product_ids": list(self._by_symbol), "channels": ["user"], **auth}
        )

    def session_requests(self, now_ms: int) -> list[Request]:
        """Return the requests that open a session: balances and open orders, answered in `accounts`, `open_orders`."""
        self.accounts = self.open_orders = None
        return [
            self._signed("GET", "/accounts", b"", now_ms, ("accounts", 0, 0, 0)),
            self._signed("GET", "/orders?status=open", b"", now_ms, ("open_orders", 0, 0, 0)),
        ]

    def cancel_all_request(self, instrument: int, now_ms: int) -> Request:
        """Return the request that cancels every open order of `instrument` on the account, whoever sent it."""
        path = f"/orders?product_id={self._by_id[instrument].symbol}"
        return self._signed("DELETE", path, b"", now_ms, ("cancel_all", 0, instrument, 0))

    # ---- answers and events to rows

    def on_answer(self, request: Request, status: int, body: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the REPORT rows that a REST answer means, each with its payload row; return their number.

        Parameters
        ----------
        request : Request
            What was asked.
        status : int
            HTTP status; 0 if no answer came.
        body : bytes
            Of the answer.
        ts_recv : int
            When it was received, ns.
        out : ROW array
            Overwritten; at least 2 rows.
        """
        what, cl_ord_id, instrument, flags = request.tag
        if what in ("accounts", "open_orders", "cancel_all"):
            return self._on_session(what, status, body)
        if status != 200:
            return self._failed(request.tag, status, _message(body), ts_recv, out)
        if what == "cancel":
            return 0  # the done event tells
        try:
            order = msgspec.json.decode(body, type=RestOrder)
            qty = self._by_id[instrument].qty.count(order.size)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OffGridError):
            self.counts["malformed"] += 1
            return self._failed(request.tag, 0, "no order", ts_recv, out)
        live = _Live(cl_ord_id, self._by_id[instrument], flags, qty)
        if order.status == "rejected":
            return self._report(out, 0, live, ExecType.REJECT, OrdStatus.REJECTED, ts_recv, venue_id=order.id)
        self._know(order.id, live)
        return 0

    def _on_session(self, what: str, status: int, body: bytes) -> int:
        try:
            if status != 200:
                self.errors.append(f"{what}: {status} {_message(body)}")
            elif what == "accounts":
                self.accounts = msgspec.json.decode(body, type=list[BalanceOf])
            elif what == "open_orders":
                self.open_orders = msgspec.json.decode(body, type=list[RestOrder])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.counts["malformed"] += 1
            self.errors.append(f"{what}: the answer is not as documented")
        return 0

    def decode(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the REPORT rows of one feed message, each with its payload row, to the front of `out`.

        Parameters
        ----------
        frame : bytes
            A message of the feed; market data is ignored.
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
            event: OrderEvent = self._events.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.counts["malformed"] += 1
            return 0
        if event.type == "match":
            return self._on_match(event, ts_recv, out)
        if event.type in ("received", "done", "change", "open"):
            live = self._live_of(event)
            if live is None:
                self.foreign.append(event)
                return self._foreign()
            return self._on_order(event, live, ts_recv, out)
        if event.type == "subscriptions":
            self.subscribed = True
        elif event.type == "error":
            self.errors.append(f"{event.message}: {event.reason}"[:200])
        else:
            self.counts["ignored"] += 1
        return 0

    def _live_of(self, event: OrderEvent) -> _Live | None:
        live = self._orders.get(event.order_id)
        cl_ord_id = self.cl_ord_id(event.client_oid)
        wire = self._by_symbol.get(event.product_id)
        if live is not None or cl_ord_id == 0 or wire is None or event.type != "received":
            return live
        flags = int(Flag.BID if event.side == "buy" else Flag.ASK)
        return self._know(event.order_id, _Live(cl_ord_id, wire, flags, 0))

    def _on_order(self, event: OrderEvent, live: _Live, ts_recv: int, out: RowArray) -> int:
        if live.done:
            self.counts["ignored"] += 1
            return 0
        try:
            at = time_ns(event.time)
            if event.type == "received":
                live.qty = live.wire.qty.count(event.size) if event.size else live.qty
                if live.acked:
                    return 0
                live.acked = True
                px = live.wire.px.count(event.price) if event.price else 0
                return self._report(
                    out, 0, live, ExecType.ACK, OrdStatus.NEW, ts_recv, ts_event=at, px=px, qty=live.qty,
                    leaves=live.qty, venue_id=event.order_id,
                )  # fmt: skip
            if event.type == "change":
                live.qty = live.cum + live.wire.qty.count(event.new_size)
                return 0
            if event.type == "open":
                return 0
            self._end(event.order_id, live)
            if event.reason == "filled":
                return 0 if live.cum == live.qty else self._lost(out, 0, live, ts_recv, text="fills are missing")
            return self._report(
                out, 0, live, ExecType.CANCELED, OrdStatus.CANCELED, ts_recv, ts_event=at, venue_id=event.order_id
            )  # fmt: skip
        except (OffGridError, ValueError) as error:
            return self._inexact(live, error, ts_recv, out)

    def _on_match(self, event: OrderEvent, ts_recv: int, out: RowArray) -> int:
        """Write a fill of the order that is ours; of both, where both are."""
        n = 0
        known = False
        for order_id, maker in ((event.maker_order_id, True), (event.taker_order_id, False)):
            live = self._orders.get(order_id)
            if live is None:
                continue
            known = True
            if live.done:
                self.counts["ignored"] += 1
                continue
            try:
                n = self._fill(event, live, order_id, maker, ts_recv, out, n)
            except (OffGridError, ValueError) as error:
                n += self._inexact(live, error, ts_recv, out[n:])
        if not known:
            self.foreign.append(event)
            return self._foreign()
        return n

    def _fill(
        self, event: OrderEvent, live: _Live, order_id: str, maker: bool, ts_recv: int, out: RowArray, n: int
    ) -> int:
        px, qty = live.wire.px.count(event.price or ""), live.wire.qty.count(event.size)
        at = time_ns(event.time)
        if not 0 < event.trade_id < 2**63 or live.cum + qty > live.qty > 0:
            raise ValueError(f"trade {event.trade_id} of {qty} lots does not fit order {live.cl_ord_id}")
        rate = event.maker_fee_rate if maker else event.taker_fee_rate
        with localcontext() as context:
            context.prec = 60
            fee = _fee_units(px * qty * live.wire.money * rate) if rate is not None and rate.is_finite() else 0
        live.cum += qty
        status = OrdStatus.FILLED if live.cum == live.qty else OrdStatus.PARTIALLY_FILLED
        return self._report(
            out, n, live, ExecType.FILL, status, ts_recv, ts_event=at, px=px, qty=qty, exec_id=event.trade_id,
            flags=_MAKER if maker else 0, leaves=max(live.qty - live.cum, 0), venue_id=order_id, fee=fee,
        )  # fmt: skip

    def _inexact(self, live: _Live, error: Exception, ts_recv: int, out: RowArray) -> int:
        self.counts["inexact"] += 1
        return self._lost(out, 0, live, ts_recv, text=str(error))


def _message(body: bytes) -> str:
    """Return the text of an error answer, whatever came."""
    try:
        return str(msgspec.json.decode(body, type=dict[str, object]).get("message", ""))[:200]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


class AdvancedOrderCodec(_Codec):
    """Order rows to Advanced Trade requests; answers and the user channel to REPORT rows, for one account.

    Parameters
    ----------
    instruments : sequence of Instrument
        What may be ordered.
    sign : callable(method, host_path, now_ns)
        Makes the tokens: `jwt_signer`.
    client_prefix : str
        Begins every client order id of this session.
    assets : list of str
        The session's asset table.
    source : int
        Written in every report row.
    host : str
        Which the tokens of REST requests name.

    Attributes
    ----------
    subscribed, errors, counts
        As of `OrderCodec`.

    Raises
    ------
    ConfigError
        If the prefix is none, or two instruments share an id or a symbol.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        sign: Sign,
        client_prefix: str,
        assets: list[str],
        *,
        source: int = 2,
        host: str = "api.coinbase.com",
    ) -> None:
        super().__init__(instruments, client_prefix, assets, source)
        self._sign, self._host = sign, host
        self._envelopes: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AdvancedEnvelope)
        self._events: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[AdvancedUserEvent])

    def cl_ord_id(self, client_order_id: str) -> int:
        """Return the ``cl_ord_id`` in a client order id of this session; 0 if it is somebody else's."""
        if not client_order_id.startswith(self.prefix):
            return 0
        digits = client_order_id[len(self.prefix) :]
        value = int(digits) if _CL_ORD_ID.fullmatch(digits) else 0
        return value if value <= _MAX_CL_ORD_ID else 0

    def encode(self, row: Any, payload_row: Any, now_ms: int) -> Request:
        """Return the request that carries out an order row; see `OrderCodec.encode`.

        Raises
        ------
        LocalError
            If the row asks for what the venue does not have, or cancels an order whose venue id is not known yet: the
            venue cancels by its own ids.
        """
        wire, kind, flags, tif, px, qty, cl_ord_id = self._wire_of(row)
        tag = ("cancel" if kind == _CANCEL else "place", cl_ord_id, wire.id, flags & _SIDE_BITS)
        if kind == _CANCEL:
            venue_id = self.venue_order_id(cl_ord_id)
            if not venue_id:
                raise LocalError(f"order {cl_ord_id} has no venue id yet: wait for its answer or its first report")
            return self._signed("POST", "orders/batch_cancel", {"order_ids": [venue_id]}, now_ms, tag)
        size = wire.qty.text(qty)
        if payload_row is not None and _order_type(payload_row) == _MARKET:
            configuration: dict[str, dict[str, object]] = {"market_market_ioc": {"base_size": size}}
        else:
            name = _ADVANCED_TIFS.get(tif)
            if name is None:
                raise LocalError(f"order {cl_ord_id} has time in force {tif}; expected GTC, IOC or FOK")
            limit: dict[str, object] = {"base_size": size, "limit_price": wire.px.text(px)}
            if tif == Tif.GTC:
                limit["post_only"] = bool(flags & _POST_ONLY)
            configuration = {name: limit}
        body = {
            "client_order_id": f"{self.prefix}{cl_ord_id}",
            "product_id": wire.symbol,
            "side": _SIDES[flags & _SIDE_BITS].upper(),
            "order_configuration": configuration,
        }
        return self._signed("POST", "orders", body, now_ms, tag)

    def _signed(self, method: str, path: str, body: object, now_ms: int, tag: tuple[str, int, int, int]) -> Request:
        full = f"/api/v3/brokerage/{path}"
        token = self._sign(method, self._host + full, now_ms * 10**6)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return Request(method, full, headers, msgspec.json.encode(body), tag)

    def subscribe_request(self, now_ns: int) -> bytes:
        """Return the message that opens the account's events."""
        token = self._sign("", "", now_ns)
        return msgspec.json.encode(
            {"type": "subscribe", "channel": "user", "product_ids": list(self._by_symbol), "jwt": token}
        )

    def on_answer(self, request: Request, status: int, body: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the REPORT rows that a REST answer means; see `OrderCodec.on_answer`."""
        what, cl_ord_id, instrument, flags = request.tag
        if status != 200:
            return self._failed(request.tag, status, _message(body), ts_recv, out)
        try:
            if what == "cancel":
                results = msgspec.json.decode(body, type=dict[str, list[dict[str, object]]])["results"]
                if results and results[0].get("success") is True:
                    return 0  # the event tells
                reason = str(results[0].get("failure_reason", "")) if results else ""
                return self._failed(request.tag, 400, reason, ts_recv, out)
            placed = msgspec.json.decode(body, type=AdvancedPlaced)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
            self.counts["malformed"] += 1
            return self._failed(request.tag, 0, "no answer", ts_recv, out)
        if not placed.success:
            return self._failed(request.tag, 400, str(placed.error_response.get("error", "")), ts_recv, out)
        venue_id = placed.success_response.get("order_id")
        if isinstance(venue_id, str):
            self._know(venue_id, _Live(cl_ord_id, self._by_id[instrument], flags, 0))
        return 0

    def decode(self, frame: bytes, ts_recv: int, out: RowArray) -> int:
        """Write the REPORT rows of one message of the user channel; `out` has at least 4 rows for each order in it.

        Returns
        -------
        int
            0 or more. Bytes that are not the protocol are counted as malformed; orders beyond the room of `out` are
            counted as ``inexact``: their next state tells what this one would have.
        """
        try:
            envelope: AdvancedEnvelope = self._envelopes.decode(frame)
            if envelope.channel == "subscriptions":
                self.subscribed = True
            if envelope.channel != "user":
                self.counts["ignored"] += 1
                return 0
            events: list[AdvancedUserEvent] = self._events.decode(envelope.events)
            at = time_ns(envelope.timestamp)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            self.counts["malformed"] += 1
            return 0
        n = 0
        for event in events:
            for order in event.orders:
                if n + 8 > len(out):
                    self.counts["inexact"] += 1
                    continue
                n = self._on_order(order, at, ts_recv, out, n)
        return n

    def _on_order(self, order: AdvancedOrder, at: int, ts_recv: int, out: RowArray, n: int) -> int:
        cl_ord_id = self.cl_ord_id(order.client_order_id)
        wire = self._by_symbol.get(order.product_id)
        if cl_ord_id == 0 or wire is None:
            self._foreign()
            return n
        flags = int(Flag.BID if order.order_side == "BUY" else Flag.ASK)
        live = self._know(order.order_id, _Live(cl_ord_id, wire, flags, 0))
        if live.done or order.status in ("PENDING", "CANCEL_QUEUED", "QUEUED", "UNKNOWN_ORDER_STATUS"):
            self.counts["ignored"] += 1
            return n
        try:
            return self._told(order, live, at, ts_recv, out, n)
        except (OffGridError, ArithmeticError, ValueError) as error:
            self.counts["inexact"] += 1
            return self._lost(out, n, live, ts_recv, text=str(error))

    def _told(self, order: AdvancedOrder, live: _Live, at: int, ts_recv: int, out: RowArray, n: int) -> int:
        """Write what is new in an order's cumulative state."""
        wire = live.wire
        cum, leaves = wire.qty.count(order.cumulative_quantity), wire.qty.count(order.leaves_quantity)
        with localcontext() as context:
            context.prec = 60
            value = Decimal(order.filled_value) / wire.money
            fee = _fee_units(Decimal(order.total_fees))
        if cum < live.cum or not value.is_finite() or value != value.to_integral_value():
            raise ValueError(f"cumulative {order.cumulative_quantity} for {order.filled_value}")
        if order.status == "FAILED":
            self._end(order.order_id, live)
            return self._report(
                out, n, live, ExecType.REJECT, OrdStatus.REJECTED, ts_recv, ts_event=at, venue_id=order.order_id,
                text=order.reject_reason,
            )  # fmt: skip
        if not live.acked:
            live.acked, live.qty = True, cum + leaves
            n = self._report(
                out, n, live, ExecType.ACK, OrdStatus.NEW, ts_recv, ts_event=at, qty=live.qty,
                leaves=live.qty, venue_id=order.order_id,
            )  # fmt: skip
        n = self._fills(order, live, cum, leaves, int(value), fee, (at, ts_recv), out, n)
        ended = {"CANCELLED": ExecType.CANCELED, "EXPIRED": ExecType.EXPIRED}.get(order.status)
        if ended is not None:
            state = OrdStatus.CANCELED if ended == ExecType.CANCELED else OrdStatus.EXPIRED
            n = self._report(
                out, n, live, ended, state, ts_recv, ts_event=at, venue_id=order.order_id, text=order.cancel_reason
            )  # fmt: skip
        if ended is not None or order.status == "FILLED":
            self._end(order.order_id, live)
        return n

    def _fills(
        self, order: AdvancedOrder, live: _Live, cum: int, leaves: int, value: int, fee: int, times: tuple[int, int],
        out: RowArray, n: int,
    ) -> int:  # fmt: skip
        """Write the rise of quantity and value since the last state as fills at the two ticks around its average."""
        lots, worth, paid = cum - live.cum, value - live.value, fee - live.fee
        if lots == 0:
            return n
        px, upper = divmod(worth, lots)
        if worth <= 0 or px >= 2**62:
            raise ValueError(f"{lots} lots worth {worth}")
        live.value, live.fee = value, fee
        for part, at_px in ((lots - upper, px), (upper, px + 1)):
            if part == 0:
                continue
            live.cum += part
            told = hashlib.blake2b(f"{order.order_id}:{live.cum}".encode(), digest_size=8).digest()
            full = order.status == "FILLED" and live.cum == cum
            n = self._report(
                out, n, live, ExecType.FILL, OrdStatus.FILLED if full else OrdStatus.PARTIALLY_FILLED, times[1],
                ts_event=times[0], px=at_px, qty=part, exec_id=int.from_bytes(told, "big") >> 1,
                leaves=0 if full else leaves + cum - live.cum, venue_id=order.order_id, fee=paid,
            )  # fmt: skip
            paid = 0  # told once, with the first part
        return n
