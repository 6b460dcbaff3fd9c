"""Orders on Binance spot: one WebSocket API connection for requests, answers and the account's events.

Policy, stated. *On connect*: subscribe to the account's events, read balances and open orders, and settle every order
of this session against them before anything is quoted: an order the venue lists is acknowledged, one it does not list
is asked for by its client id (filled, canceled, expired, or never arrived), and fills that were missed are fetched by
trade. *On disconnect*: the venue has no cancel-on-disconnect, so orders stay on its book; every request in flight
becomes LOST, its order UNKNOWN (never rejected), and the connection is made again with backoff. An order row that
meets no connection was never sent, and is reported so: that is knowledge, not doubt. *On stop and halt*: the engine
cancels; this module only carries the requests. Requests are never repeated by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from hftlab.clock import now_ns
from hftlab.core.decimals import DecimalGrid
from hftlab.core.errors import HftlabError, VenueError
from hftlab.core.instruments import MONEY_SCALE, Instrument, decimal_to_units
from hftlab.core.rows import (
    CONT,
    REPORT_PAYLOAD,
    ROW,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    RowArray,
    join_rows,
    new_rows,
)
from hftlab.feeds.market import backoff_s
from hftlab.feeds.transport import Link, Messages, connect
from hftlab.kernels.latency import SEND, Latency
from hftlab.kernels.orders import sent_rows
from hftlab.venues.binance.messages import Balance
from hftlab.venues.binance.orders import OrderCodec
from hftlab.venues.binance.spec import RECV_WINDOW_MS, Urls

if TYPE_CHECKING:
    import aiohttp

__all__ = ["BinanceBroker", "report_rows"]

RESOLVE_S = 0.5
DOUBT_S = (RECV_WINDOW_MS + 1000) / 1000
"""A request this old is refused by the venue if it arrives at all, so an order it does not know will never be. Counted
from the first time it was asked for, on a clock that does not step."""
PING_S, SILENCE_S = 1.0, 4.0
"""An order connection that has been silent is pinged, and given up when it stays silent: its requests are in doubt."""
_PING = b'{"id":"ping","method":"ping"}'
_PONG = b'{"id":"ping"'
_REFUSED_ACCOUNT = (-1022, -2014, -2015)
"""Signature, key format, key: what no second attempt mends. Everything else is tried again with backoff."""
_FLIGHT = (OrdStatus.PENDING_NEW, OrdStatus.PENDING_CANCEL, OrdStatus.PENDING_REPLACE)
_NOT_FOUND = -2013


def report_rows(
    cl_ord_id: int,
    instrument: int,
    side: int,
    exec_type: ExecType,
    status: OrdStatus,
    now: int,
    *,
    px: int = 0,
    qty: int = 0,
    exec_id: int = 0,
    venue_order_id: int = 0,
    fee: int = 0,
    fee_asset: int = 0,
    code: int = 0,
    text: bytes = b"",
    flags: int = 0,
) -> RowArray:
    """Return a REPORT row and its payload, for what the host itself knows or has asked the venue for."""
    rows = new_rows(2)
    head = rows[0]
    head["kind"], head["span"], head["instrument"], head["ts_recv"] = Kind.REPORT, 1, instrument, now
    head["code"] = exec_type | status << 8
    head["flags"], head["px"], head["qty"], head["a"], head["b"] = side | flags, px, qty, cl_ord_id, exec_id
    payload = rows[1:].view(REPORT_PAYLOAD)[0]
    payload["kind"], payload["span"] = CONT, 1
    payload["venue_order_id"], payload["fee"], payload["fee_asset"] = venue_order_id, fee, fee_asset
    payload["venue_code"], payload["text"] = code, text[:16]
    return rows


class BinanceBroker:
    """The order side of one account.

    Parameters
    ----------
    codec : OrderCodec
    instruments : sequence of Instrument
    urls : Urls
    deliver : callable(rows, received_ns)
        Takes REPORT rows; they are overwritten by the next.
    open_orders : callable
        Returns the engine's open order records, to be settled on connect.
    on_state : callable(connected)
        Told when the account is ready to trade, and when the connection is lost.
    session : aiohttp.ClientSession
    api_key : str
        For the REST header.
    latency : Latency, optional
        Where the hops ``encode`` and ``send`` are counted.

    Attributes
    ----------
    connected : bool
        Orders can be sent.
    failure : VenueError or None
        The venue refuses this account (key or signature); nothing will be tried again.
    """

    def __init__(
        self,
        codec: OrderCodec,
        instruments: Sequence[Instrument],
        urls: Urls,
        deliver: Callable[[RowArray, int], None],
        open_orders: Callable[[], npt.NDArray[Any]],
        on_state: Callable[[bool], None],
        session: aiohttp.ClientSession,
        *,
        api_key: str,
        latency: Latency | None = None,
    ) -> None:
        self.codec = codec
        self._latency = latency
        if latency is not None:
            codec.measure(latency)
        self.connected = False
        self.failure: VenueError | None = None
        self.last_error = ""
        self.reconnects = 0
        self._instruments, self._urls, self._deliver = instruments, urls, deliver
        self._open_orders, self._on_state, self._session = open_orders, on_state, session
        self._api_key = api_key
        self._out = np.zeros(64, ROW)
        self._make_room(64)
        self._heard = 0.0
        self._doubted: dict[int, float] = {}
        self._link: Link | None = None
        self._random = random.Random(now_ns())

    @property
    def balances(self) -> dict[str, Balance]:
        """The account's balances by asset, as the venue last told them."""
        return self.codec.balances

    async def run(self) -> None:
        """Connect, settle, trade, reconnect, until cancelled or refused by the venue."""
        attempt = 0
        while self.failure is None:
            closed = asyncio.Event()
            try:
                self._link = await connect(self._urls.ws_api, self._on_messages, closed.set)
                await self._open_session()
                await self._settle()
                self.connected = True
                attempt = 0
                self._on_state(True)
                await self._watch(closed)
            except (OSError, TimeoutError, HftlabError) as error:
                self.last_error = f"{type(error).__name__}: {error}"
                if isinstance(error, VenueError) and error.code in _REFUSED_ACCOUNT:
                    self.failure = error
            finally:
                await self._drop()
            if self.failure is None:
                self.reconnects += 1
                await asyncio.sleep(backoff_s(attempt, self._random.random()))
                attempt += 1

    async def _watch(self, closed: asyncio.Event) -> None:
        """Keep the connection until it is closed or silent; meanwhile ask about orders in doubt."""
        self._heard = pinged = time.monotonic()
        while not closed.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closed.wait(), RESOLVE_S)
            now = time.monotonic()
            if now - self._heard > SILENCE_S:
                self.last_error = f"the order connection said nothing for {SILENCE_S:g} s"
                return
            if self._link is not None and now - max(self._heard, pinged) > PING_S:
                pinged = now
                self._link.send(_PING)
            try:
                await self._resolve()
            except (OSError, TimeoutError, HftlabError) as error:  # asked again half a second later
                self.last_error = f"{type(error).__name__}: {error}"
        failure = "" if self._link is None else self._link.failure
        self.last_error = failure or "the venue closed the order connection"

    async def _open_session(self) -> None:
        """Subscribe to events, read balances and open orders."""
        link, codec = self._link, self.codec
        assert link is not None
        for request in codec.session_requests(now_ns() // 1_000_000):
            link.send(request)
        for _ in range(500):
            if codec.session_error is not None:
                raise codec.session_error
            if codec.subscribed and codec.account is not None and codec.open_orders is not None:
                return
            await asyncio.sleep(0.01)
        raise TimeoutError("the venue did not answer subscribe, account and open orders within 5 s")

    async def _drop(self) -> None:
        link, self._link = self._link, None
        if self.connected:
            self.connected = False
            self._on_state(False)
        now = now_ns()
        for order in self._open_orders():
            if order["status"] in _FLIGHT:
                self._deliver(
                    report_rows(
                        int(order["cl_ord_id"]), int(order["instrument"]), int(order["side"]), ExecType.LOST,
                        OrdStatus.UNKNOWN, now, text=b"connection lost",
                    ),
                    now,
                )  # fmt: skip
        if link is not None:
            await link.close()

    # --- orders out --------------------------------------------------------------------------------------------------

    def send(self, commands: RowArray) -> RowArray:
        """Send order rows; return their SENT rows, or REPORTs if nothing could be sent; the next call overwrites them.

        Parameters
        ----------
        commands : array of ROW
            SUBMIT, CANCEL, REPLACE_ORDER rows with their payloads, as the engine published them.
        """
        link = self._link if self.connected else None
        if link is None:
            return join_rows([self._unsent(row) for row in commands if row["kind"] != CONT])
        n, i, sent = len(commands), 0, 0
        if n > len(self._sent):
            self._make_room(n)
        codec, stamps = self.codec, self._stamps
        now = now_ns()
        now_ms = now // 1_000_000
        while i < n:
            message = codec.request(commands, i, now_ms)
            before = now_ns()
            link.send(message)
            now = stamps[sent] = now_ns()
            i = codec.follower
            sent += 1
        if sent and self._latency is not None:
            self._latency.noted[SEND] = max(1, now - before)
        sent_rows(commands, self._stamped, self._sent)
        return self._sent[:sent]

    def _make_room(self, n: int) -> None:
        self._sent = np.zeros(n, ROW)
        self._stamped = np.zeros(n, np.int64)
        self._stamps = self._stamped.data

    @staticmethod
    def _unsent(row: Any) -> RowArray:
        cancel = row["kind"] == Kind.CANCEL
        return report_rows(
            int(row["a"]), int(row["instrument"]), int(row["flags"]) & 3,
            ExecType.CANCEL_REJECT if cancel else ExecType.REJECT,
            OrdStatus.NONE if cancel else OrdStatus.REJECTED, now_ns(), text=b"not sent",
        )  # fmt: skip

    def _on_messages(self, messages: Messages) -> None:
        for frame in messages:
            self._on_message(frame)

    def _on_message(self, frame: bytes) -> None:
        now = now_ns()
        self._heard = time.monotonic()
        if frame.startswith(_PONG):
            return
        n = self.codec.decode(frame, now, self._out)
        if n:
            self._deliver(self._out[:n], now)

    # --- settling on connect -----------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Bring every open order of the session to the venue's word."""
        listed = {self.codec.cl_ord_id(o.client_order_id): o for o in self.codec.open_orders or ()}
        for order in self._open_orders():
            cl_ord_id = int(order["cl_ord_id"])
            instrument = self._instruments[int(order["instrument"])]
            found = listed.get(cl_ord_id)
            plain = (
                msgspec.to_builtins(found) if found is not None else await self._ask(instrument, cl_ord_id)
            )
            await self._settle_one(order, instrument, plain)

    async def _resolve(self) -> None:
        """Ask the venue for every order in doubt: an answer that timed out there says nothing by itself."""
        for order in self._open_orders():
            if order["status"] == OrdStatus.UNKNOWN:
                instrument = self._instruments[int(order["instrument"])]
                await self._settle_one(order, instrument, await self._ask(instrument, int(order["cl_ord_id"])))

    async def _settle_one(self, order: Any, instrument: Instrument, plain: dict[str, Any] | None) -> None:
        side, cl_ord_id = int(order["side"]), int(order["cl_ord_id"])

        def tell(exec_type: ExecType, status: OrdStatus, **fields: Any) -> None:
            now = now_ns()
            fields["flags"] = Flag.RECOVERED | fields.get("flags", 0)
            self._deliver(report_rows(cl_ord_id, instrument.id, side, exec_type, status, now, **fields), now)

        if plain is None:
            if order["ts_ack"]:  # the venue had it and has it no more: it forgot, or purged it
                tell(ExecType.EXPIRED, OrdStatus.EXPIRED, code=_NOT_FOUND, text=b"venue forgot it")
                return
            asked = time.monotonic()
            if asked - self._doubted.setdefault(cl_ord_id, asked) < DOUBT_S:
                return  # the request may still be on its way
            del self._doubted[cl_ord_id]
            tell(ExecType.REJECT, OrdStatus.REJECTED, code=_NOT_FOUND, text=b"never arrived")
            return
        venue_order_id = int(plain["orderId"])
        executed = DecimalGrid.of_qty(instrument).count(str(plain["executedQty"]))
        if executed > int(order["cum_qty"]):
            for trade in await self._trades(instrument, venue_order_id):
                if trade["commissionAsset"] not in self.codec.assets:
                    self.codec.assets.append(trade["commissionAsset"])
                tell(
                    ExecType.FILL, OrdStatus.PARTIALLY_FILLED,
                    px=DecimalGrid.of_px(instrument).count(trade["price"]),
                    qty=DecimalGrid.of_qty(instrument).count(trade["qty"]),
                    exec_id=int(trade["id"]), venue_order_id=venue_order_id,
                    fee=decimal_to_units(trade["commission"], MONEY_SCALE, "commission"),
                    fee_asset=self.codec.assets.index(trade["commissionAsset"]),
                    flags=Flag.MAKER if trade.get("isMaker") else 0,
                )  # fmt: skip
        status = str(plain["status"])
        if status in ("NEW", "PARTIALLY_FILLED"):
            tell(ExecType.ACK, OrdStatus.NEW, venue_order_id=venue_order_id)
        elif status == "CANCELED":
            tell(ExecType.CANCELED, OrdStatus.CANCELED, venue_order_id=venue_order_id)
        elif status in ("EXPIRED", "EXPIRED_IN_MATCH"):
            tell(ExecType.EXPIRED, OrdStatus.EXPIRED, venue_order_id=venue_order_id)
        elif status == "REJECTED":
            tell(ExecType.REJECT, OrdStatus.REJECTED, venue_order_id=venue_order_id)

    async def _ask(self, instrument: Instrument, cl_ord_id: int) -> dict[str, Any] | None:
        """Return the venue's view of one order, None if it never had it."""
        params = {"symbol": instrument.symbol, "origClientOrderId": f"{self.codec.prefix}{cl_ord_id}"}
        answer = await self._get("/api/v3/order", params)
        if isinstance(answer, dict) and "code" in answer:
            if answer["code"] == _NOT_FOUND:
                return None
            raise VenueError(int(answer["code"]), str(answer.get("msg", "")))
        return dict(answer)

    async def _trades(self, instrument: Instrument, venue_order_id: int) -> list[dict[str, Any]]:
        answer = await self._get("/api/v3/myTrades", {"symbol": instrument.symbol, "orderId": venue_order_id})
        if not isinstance(answer, list):
            raise VenueError(int(answer.get("code", 0)), str(answer.get("msg", "")))
        return answer

    async def _get(self, path: str, params: dict[str, Any]) -> Any:
        import aiohttp

        query = self.codec.rest_query({**params, "timestamp": now_ns() // 1_000_000})
        try:
            async with self._session.get(
                f"{self._urls.rest}{path}?{query}",
                headers={"X-MBX-APIKEY": self._api_key},
                timeout=aiohttp.ClientTimeout(total=5),
            ) as response:
                return msgspec.json.decode(await response.read())
        except aiohttp.ClientError as error:
            raise OSError(f"{path}: {error}") from error
        except msgspec.DecodeError as error:
            raise OSError(f"{path}: the answer is not JSON") from error

