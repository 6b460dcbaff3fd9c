"""The simulated exchange behind sockets: REST, market streams and the WebSocket API on one loopback port.

One process, one event loop, one thread. A venue's face (`hftlab.venues.face`) knows the protocol and `hftlab.sim` the
market; this file owns the sockets, the clock and the faults that tests ask for, and is the same for every venue of
`VENUES`.

Two sources of a market. *Synthetic*: a seeded flow runs against the wall clock, `speed` times as fast. *Recorded*
(Binance only): the public frames of a capture pass byte for byte in recorded order, their gaps divided by `speed`;
playback starts when the first client has subscribed to a stream, so that none is lost, and at the end of the capture
the sockets stay open and ``/hftlab/status`` says ``done``. The first depth request of a symbol is answered with the
recorded snapshot, later ones with the book at the point of playback, so that a client that lost its place joins again.
A gap within the recording itself has no cure before its next snapshot: own orders are refused until then, and
``book_gaps`` counts it.

A client that does not read: every connection has a queue of `queue` messages, and one that fills it is disconnected and
counted, as venues do. Playback of a recording, which has no clock of its own to keep, first waits up to
`PATIENCE_S` for the slowest client to come below half.

Faults (POST ``/hftlab/fault``, only when bound to loopback), each one JSON object with ``kind``:

========== ===================================================================================================
gap        the next ``n`` book deltas are swallowed
silence    for ``seconds`` nothing is sent, sockets stay open; what would have been sent is gone
delay      every message is sent ``ms`` later, until set to 0
duplicate  the next ``n`` public messages are sent twice
reorder    ``n`` times a book delta is sent after the one of the same book that follows it
error      the next ``n`` order requests answer ``code`` and ``msg``; with ``carried_out`` they take effect all the same
drop       connections are closed by the protocol (code 1001)
cut        connections are aborted, as when a cable is pulled
========== ===================================================================================================

silence, delay, drop and cut take ``scope``: ``market`` (default), ``user`` (clients that get an account's events or
send orders over their WebSocket) or ``all``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, Flag, Kind, RowArray, Tif
from hftlab.services.process import follow_parent
from hftlab.sim.exchange import MatchingExchange, RecordedExchange
from hftlab.sim.flow import FlowParams
from hftlab.sim.models import Fees
from hftlab.venues.binance import server as binance
from hftlab.venues.binance.capture import is_snapshot, read_capture, read_snapshots
from hftlab.venues.binance.connection import MarketConnection
from hftlab.venues.binance.messages import instruments_from_exchange_info
from hftlab.venues.binance.server import DEFAULT_INSTRUMENTS, BinanceServer, Frame, recorded_stream
from hftlab.venues.face import Face, Peer, ServerModule

__all__ = ["DEFAULT_INSTRUMENTS", "EXIT_CONFIG", "VENUES", "VenueService", "VenueSettings", "main", "run"]

EXIT_CONFIG = 4
BEAT_S = 1.0
PING_S = 20.0
PONG_WITHIN_S = 60.0
PATIENCE_S = 5.0
TICK_S = 0.001
MAX_MESSAGE = 65_536

VENUES = ("binance", "coinbase", "kraken")
_FIRST = ("",)  # stands for the first symbol that the venue lists


def _server_module(venue: str) -> ServerModule:
    """Return a venue's ``server`` module; of the others only Binance's is imported, for its recordings."""
    if venue == "coinbase":
        from hftlab.venues.coinbase import server as coinbase

        return coinbase
    if venue == "kraken":
        from hftlab.venues.kraken import server as kraken

        return kraken
    return binance


@dataclass(frozen=True, slots=True)
class VenueSettings:
    """How a simulated venue is set up.

    Parameters
    ----------
    venue : str
        Whose protocol it speaks: one of `VENUES`.
    host : str
        Address to bind; the fault and status pages exist on loopback only.
    port : int
        0 takes a free one.
    symbols : sequence of str
        What is listed, in the venue's spelling: of its `DEFAULT_INSTRUMENTS`, or of `exchange_info` where one is given.
        Unless given, the first of them.
    exchange_info : Path or None
        A file with an exchangeInfo answer (or a capture line of one) to take tick, lot and filters from; Binance only.
    seed : int
        Of the synthetic flow.
    rate : float or None
        Events a second of the synthetic flow; None takes the flow's own.
    speed : float
        Venue seconds in a wall second, above 0; ``inf`` plays a recording as fast as its clients read.
    capture : Path or None
        A recording to serve instead of the synthetic flow; Binance only.
    maker_fee_e8, taker_fee_e8 : int
        Fees in 1e-8 of notional.
    balances : mapping of asset to Decimal
        What the account starts with beside, or instead of, the balances of the venue's default account.
    api_key, api_secret : str
        The account's key; empty takes the venue's default.
    orders_per_10s : int
        Unfilled orders allowed in ten seconds.
    queue : int
        Messages that may wait for one client.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    venue: str = "binance"
    host: str = "127.0.0.1"
    port: int = 0
    symbols: Sequence[str] = _FIRST
    exchange_info: Path | None = None
    seed: int = 1
    rate: float | None = None
    speed: float = 1.0
    capture: Path | None = None
    maker_fee_e8: int = 0
    taker_fee_e8: int = 0
    balances: Mapping[str, Decimal] = field(default_factory=dict)
    api_key: str = ""
    api_secret: str = field(default="", repr=False)
    orders_per_10s: int = 10_000
    queue: int = 10_000

    def __post_init__(self) -> None:
        if self.venue not in VENUES:
            raise ConfigError(f"venue={self.venue!r}; expected one of {', '.join(VENUES)}")
        if self.venue != "binance" and (self.capture is not None or self.exchange_info is not None):
            name = "capture" if self.capture is not None else "exchange_info"
            raise ConfigError(f"{name}={getattr(self, name)} needs venue=binance; {self.venue} has a synthetic flow")
        server = _server_module(self.venue)
        key, secret, balances = server.DEFAULT_ACCOUNT
        chosen = {
            "symbols": (next(iter(server.DEFAULT_INSTRUMENTS)),) if self.symbols is _FIRST else tuple(self.symbols),
            "balances": {**balances, **self.balances},
            "api_key": self.api_key or key,
            "api_secret": self.api_secret or secret,
        }
        for name, value in chosen.items():
            object.__setattr__(self, name, value)  # frozen for everybody else
        if not self.speed > 0 or (self.capture is None and math.isinf(self.speed)):
            raise ConfigError(f"speed={self.speed}; expected above 0, and finite unless a capture is played")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port={self.port}; expected 0 (a free one) to 65535")
        for name in ("orders_per_10s", "queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected 1 or more")
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            raise ConfigError(f"symbols={list(self.symbols)}; expected at least one, each once")

    def instruments(self) -> list[Instrument]:
        """Return what is listed, numbered from 0.

        Raises
        ------
        ConfigError
            If a symbol is unknown, or the exchangeInfo file cannot be read.
        """
        if self.exchange_info is not None:
            return instruments_from_exchange_info(_exchange_info(self.exchange_info), self.symbols)
        listed = _server_module(self.venue).DEFAULT_INSTRUMENTS
        unknown = [name for name in self.symbols if name not in listed]
        if unknown:
            other = " or give --exchange-info" if self.venue == "binance" else ""
            raise ConfigError(f"symbols {unknown} are not built in; choose of {sorted(listed)}{other}")
        chosen = [replace(listed[name], id=i) for i, name in enumerate(self.symbols)]
        return [_as_recorded(one) for one in chosen] if self.capture is not None else chosen


def _as_recorded(listed: Instrument) -> Instrument:
    """Return `listed` with a lot ten times finer, its bounds the same.

    A lot is the finest quantity any message may carry, and a real day of BTCUSDT carries quantities finer than the step
    that orders must keep: rare, but a book that refuses the message is out of step for good.
    """
    return replace(
        listed,
        lot_size=listed.lot_size / 10,
        min_qty=listed.min_qty * 10,
        max_qty=listed.max_qty * 10,
        min_notional=listed.min_notional * 10,
    )


def _exchange_info(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigError(f"exchange_info={path} is not a file; expected an exchangeInfo answer")
    for line in path.read_bytes().splitlines():
        at = line.find(b'{"timezone"')
        if at >= 0:
            return line[at:]
    return path.read_bytes()


# ---- the market behind the server


class _Played(NamedTuple):
    """One line of a recording: when, the symbol of a snapshot or "" for a stream frame, the bytes."""

    ts_ns: int
    symbol: str
    payload: bytes


def _load(path: Path, symbols: Sequence[str]) -> tuple[list[_Played], int]:
    """Return the lines of a capture, in time order, and how many could not be read.

    A snapshot within the capture names no symbol: it is taken where one symbol is listed. Those of a ``.http`` file
    beside a ``.ws`` capture name theirs.
    """
    broken: list[int] = []

    def on_broken(offset: int, reason: str) -> None:
        broken.append(offset)

    lines: list[_Played] = []
    for ts_ns, payload in read_capture(path, on_broken):
        if not is_snapshot(payload):
            lines.append(_Played(ts_ns, "", payload))
        elif len(symbols) == 1:
            lines.append(_Played(ts_ns, symbols[0], payload))
    beside = path.with_name(path.name.replace(".ws.1.", ".http.0."))
    if beside != path and beside.is_file():
        for ts_ns, symbol, payload in read_snapshots(beside, on_broken):
            if symbol in symbols:
                lines.append(_Played(ts_ns, symbol, payload))
    if not any(recorded_stream(line.payload) for line in lines):
        raise ConfigError(f"capture={path} holds no frame of a combined stream")
    lines.sort(key=lambda line: line.ts_ns)
    return lines, len(broken)


class _Recording:
    """A capture, the recorded exchange it feeds, and the documented join of its deltas with its snapshots.

    Is the exchange of the server: orders go to the `RecordedExchange`; a snapshot carries the last update id played,
    which also counts deltas without a level.
    """

    def __init__(self, lines: list[_Played], instruments: Sequence[Instrument], fees: Fees) -> None:
        self.lines = lines
        self.exchange = RecordedExchange(instruments, fees=fees)
        self.connection = MarketConnection(instruments)
        self.connection.on_open(lines[0].ts_ns)
        self.snapshots: dict[str, bytes] = {}
        for line in lines:
            if line.symbol:
                self.snapshots.setdefault(line.symbol, line.payload)
        self.offset_ns = self._offset()
        self._out = np.zeros(max(self.connection.rows_needed, 16_384), ROW)

    def _offset(self) -> int:
        """Return what the venue's clock was ahead of the recorder's, by the first frame with an event time."""
        for line in self.lines:
            at = line.payload.find(b'"E":')
            digits = line.payload[at + 4 : at + 17]
            if at >= 0 and digits.isdigit():
                return int(digits) * 1_000_000 - line.ts_ns
        return 0

    def play(self, line: _Played) -> tuple[Frame | None, RowArray]:
        """Return what clients get of `line`, untouched, and the reports it causes."""
        if line.symbol:
            n = self.connection.on_snapshot(line.symbol, line.payload, line.ts_ns, self._out)
            return None, self.exchange.on_market(self._out[:n])
        n = self.connection.on_frame(line.payload, line.ts_ns, self._out)
        return recorded_stream(line.payload), self.exchange.on_market(self._out[:n])

    def send(self, rows: RowArray, now_ns: int) -> RowArray:
        """Take order rows, beside the recording."""
        return self.exchange.send(rows, now_ns)

    def snapshot(self, instrument: int, limit: int = 5000) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the book at the point of playback."""
        _, bids, asks = self.exchange.snapshot(instrument, limit)
        return max(self.connection.books[instrument].sequence.last, 0), bids, asks


# ---- connections and faults


class _Connection:
    """One WebSocket with its bounded queue of messages to send."""

    def __init__(
        self, ws: web.WebSocketResponse, request: web.Request, bound: int, on_slow: Callable[[], None]
    ) -> None:
        self.ws = ws
        self.pong_at = time.monotonic()
        self._transport = request.transport
        self._bound = bound
        self._on_slow = on_slow
        self._queue: deque[tuple[float, bytes, WSMsgType]] = deque()
        self._wake = asyncio.Event()

    @property
    def backlog(self) -> int:
        """Messages that wait."""
        return len(self._queue)

    def push(self, message: bytes, due: float = 0.0, opcode: WSMsgType = WSMsgType.TEXT) -> None:
        """Queue `message`, to go out at `due` (monotonic seconds) or at once; a full queue ends the connection."""
        if len(self._queue) >= self._bound:
            self._on_slow()
            self.abort()
            return
        self._queue.append((due, message, opcode))
        self._wake.set()

    def abort(self) -> None:
        """End the connection without a word."""
        self._queue.clear()
        if self._transport is not None:
            self._transport.abort()

    async def write(self) -> None:
        """Send what is queued, for as long as the connection lives."""
        with contextlib.suppress(ConnectionError):  # the reader's side sees the end as well and cleans up
            while not self.ws.closed:
                if not self._queue:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                due, message, opcode = self._queue.popleft()
                if due and (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                await self.ws.send_frame(message, opcode)


class _Faults:
    """What tests have asked to go wrong, and what has."""

    SCOPES = ("market", "user", "all")

    def __init__(self) -> None:
        self.gap = self.duplicate = self.reorder = 0
        self.silent_until = {"market": 0.0, "user": 0.0}
        self.delay_s = {"market": 0.0, "user": 0.0}
        self.counts = dict.fromkeys(("swallowed", "silenced", "duplicated", "reordered", "dropped", "cut"), 0)
        self._held: dict[str, object] = {}

    def market(self, item: object, book: str) -> list[object]:
        """Return what is sent in place of a public item; `book` names the book it is a delta of, if any."""
        if book and self.gap:
            self.gap -= 1
            self.counts["swallowed"] += 1
            return []
        if book in self._held:
            self.counts["reordered"] += 1
            return [item, self._held.pop(book)]
        if book and self.reorder:
            self.reorder -= 1
            self._held[book] = item
            return []
        if self.duplicate:
            self.duplicate -= 1
            self.counts["duplicated"] += 1
            return [item, item]
        return [item]

    def due(self, scope: str, now: float) -> float | None:
        """Return when a message of `scope` goes out (0.0 at once), or None when it is silenced."""
        if now < self.silent_until[scope]:
            self.counts["silenced"] += 1
            return None
        delay = self.delay_s[scope]
        return now + delay if delay else 0.0


def _number(fault: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = fault.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name}={value!r}; expected a number, 0 or more")
    return float(value)


class VenueService:
    """A simulated venue on a port.

    Parameters
    ----------
    settings : VenueSettings
        What it serves.

    Attributes
    ----------
    rest, stream, ws_api : str
        Addresses, known after `start`: of HTTP requests, of WebSockets without a path, and of the WebSocket at which an
        account is traded (at venues that use one for everything: the same as `stream`).
    face : Face
        The protocol behind them.
    """

    def __init__(self, settings: VenueSettings) -> None:
        self.settings = settings
        instruments = settings.instruments()
        fees = Fees(settings.maker_fee_e8, settings.taker_fee_e8)
        self._recording: _Recording | None = None
        self._flow: MatchingExchange | None = None
        self._broken = 0
        exchange: _Recording | MatchingExchange
        if settings.capture is not None:
            lines, self._broken = _load(settings.capture, settings.symbols)
            self._warm(lines)
            exchange = self._recording = _Recording(lines, instruments, fees)
        else:
            params = FlowParams() if settings.rate is None else FlowParams(events_per_s=settings.rate)
            self._warm([])
            self._start_ns = time.time_ns()
            exchange = self._flow = MatchingExchange(
                instruments, seed=settings.seed, fees=fees, start_ns=self._start_ns, flow=params
            )
        self.face: Face = _server_module(settings.venue).make_face(
            exchange,
            instruments,
            accounts=[(settings.api_key, settings.api_secret, settings.balances)],
            maker_fee_e8=settings.maker_fee_e8,
            taker_fee_e8=settings.taker_fee_e8,
            orders_per_10s=settings.orders_per_10s,
        )
        if self._recording is not None:
            assert isinstance(self.face, BinanceServer)
            self.face.snapshots.update(self._recording.snapshots)
        self.rest = self.stream = self.ws_api = ""
        self.counts = dict.fromkeys(("connections", "slow_consumers", "silent_clients"), 0)
        self._faults = _Faults()
        self._peers: dict[_Connection, Peer] = {}
        self._subscribed = asyncio.Event()
        self._done = False
        self._played = 0
        self._last_ns = 0
        self._mono = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None

    # ---- life

    async def start(self) -> None:
        """Bind the port and let the market run.

        Raises
        ------
        ConfigError
            If the port is in use or the address cannot be bound.
        """
        app = web.Application(client_max_size=MAX_MESSAGE)
        for path in self.face.routes:
            app.router.add_get(path, self._on_socket, allow_head=False)
        if _is_loopback(self.settings.host):
            app.router.add_get("/hftlab/status", self._on_status)
            app.router.add_post("/hftlab/fault", self._on_fault)
        app.router.add_route("*", "/{path:.*}", self._on_rest)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.settings.host, self.settings.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"port {self.settings.port} on {self.settings.host} cannot be bound ({os.strerror(error.errno or 0)}); "
                "choose another, or 0 for a free one"
            ) from error
        port = self._runner.addresses[0][1]
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        self.rest, self.stream = f"http://{host}:{port}", f"ws://{host}:{port}"
        self.ws_api = self.stream + next((path for path, scope in self.face.routes.items() if scope == "user"), "")
        self._mono = time.monotonic()
        source = self._play if self._recording is not None else self._drive
        self._tasks = [asyncio.create_task(work()) for work in (source, self._beat, self._heartbeat)]

    async def close(self) -> None:
        """Stop the market and close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_all("all")
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What runs the market; one that ends by an error ends the venue."""
        return self._tasks

    def failure(self) -> BaseException | None:
        """Return the error that ended the market before its time, if any did."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    def _warm(self, lines: list[_Played]) -> None:
        """Compile what the market runs on, on a market of its own, before any clock starts: it may take seconds."""
        instruments = self.settings.instruments()
        if lines:
            shadow = _Recording(lines[:200], instruments, Fees())
            for line in shadow.lines:
                shadow.play(line)
            return
        flow = MatchingExchange(instruments, start_ns=1)
        flow.advance(flow.now_ns + 1_000_000_000)
        rows = np.zeros(3, ROW)
        rows["kind"] = [Kind.SUBMIT, Kind.SUBMIT, Kind.CANCEL]
        rows["instrument"], rows["a"], rows["code"] = instruments[0].id, [1, 2, 1], Tif.GTC
        _, bids, asks = flow.snapshot(instruments[0].id, 1)
        rows["flags"], rows["px"] = [int(Flag.BID), int(Flag.BID), 0], [bids[0][0], asks[0][0], 0]
        rows["qty"] = [10**6, 10**6, 0]
        flow.send(rows, flow.now_ns)

    # ---- the market

    def _venue_ns(self) -> int:
        """Return venue time, ns: never back, and not beyond what has been played of a recording."""
        elapsed = time.monotonic() - self._mono
        if self._recording is None:
            return self._start_ns + int(elapsed * self.settings.speed * 1e9)
        return self._last_ns

    def _advance(self) -> None:
        if self._flow is not None:
            now_ns = self._venue_ns()
            self.face.tick(now_ns, self._flow.advance(now_ns))
            self._fan_out()

    async def _drive(self) -> None:
        while True:
            self._advance()
            assert self._flow is not None
            ahead_s = (self._flow.next_event_ns() - self._venue_ns()) / 1e9 / self.settings.speed
            await asyncio.sleep(min(max(ahead_s, TICK_S), 0.05))

    async def _play(self) -> None:
        recording, face = self._recording, self.face
        assert recording is not None and isinstance(face, BinanceServer)
        first_ns = recording.lines[0].ts_ns
        self._last_ns = first_ns + recording.offset_ns
        face.tick(self._last_ns, np.zeros(0, ROW))
        await self._subscribed.wait()
        start = time.monotonic()
        for i, line in enumerate(recording.lines):
            ahead_s = start + (line.ts_ns - first_ns) / 1e9 / self.settings.speed - time.monotonic()
            if ahead_s > 0 or i % 64 == 0:
                await asyncio.sleep(max(ahead_s, 0))
                await self._patience()
            frame, reports = recording.play(line)
            self._last_ns = max(self._last_ns, line.ts_ns + recording.offset_ns)
            face.replay(self._last_ns, frame, reports)
            self._fan_out()
            self._played = i + 1
        self._done = True

    async def _patience(self) -> None:
        """Wait for the slowest client to come below half of its queue, within reason."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if all(connection.backlog <= self.settings.queue // 2 for connection in self._of("market")):
                return
            await asyncio.sleep(TICK_S)

    def _of(self, scope: str) -> list[_Connection]:
        """Return the connections of `scope`."""
        return [connection for connection, peer in self._peers.items() if scope in (peer.scope, "all")]

    def _fan_out(self) -> None:
        now = time.monotonic()
        face = self.face
        for item in face.take():
            for sent in self._faults.market(item, face.is_book(item)) if face.is_public(item) else (item,):
                for connection, peer in list(self._peers.items()):
                    self._push(connection, peer.scope, peer.render(sent), now)

    def _push(self, connection: _Connection, scope: str, messages: Sequence[bytes], now: float) -> None:
        for message in messages:
            due = self._faults.due(scope, now)
            if due is not None:
                connection.push(message, due)

    async def _beat(self) -> None:
        """Let every peer say what is due as time passes."""
        while True:
            await asyncio.sleep(BEAT_S)
            now, wall_ms = time.monotonic(), time.time_ns() // 1_000_000
            for connection, peer in list(self._peers.items()):
                self._push(connection, peer.scope, peer.poll(wall_ms), now)

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            now = time.monotonic()
            for connection in list(self._peers):
                if now - connection.pong_at > PONG_WITHIN_S + PING_S:
                    self.counts["silent_clients"] += 1
                    connection.abort()
                else:
                    connection.push(str(time.time_ns() // 1_000_000).encode(), opcode=WSMsgType.PING)

    # ---- requests

    async def _on_rest(self, request: web.Request) -> web.Response:
        path, _, query = request.raw_path.partition("?")
        body = await request.read()
        self._advance()
        answer = self.face.rest(
            request.method,
            path,
            query.encode("utf-8", "surrogateescape"),
            body,
            request.headers,
            time.time_ns() // 1_000_000,
        )
        self._fan_out()
        return web.Response(
            status=answer.status, body=answer.body, headers=answer.headers, content_type="application/json"
        )

    def _slow(self) -> None:
        self.counts["slow_consumers"] += 1

    async def _open(self, request: web.Request) -> _Connection:
        ws = web.WebSocketResponse(autoping=False, max_msg_size=MAX_MESSAGE, compress=False, timeout=1.0)
        await ws.prepare(request)
        self.counts["connections"] += 1
        return _Connection(ws, request, self.settings.queue, self._slow)

    async def _converse(self, connection: _Connection, on_text: Callable[[str], None]) -> None:
        """Read a connection until it ends; its writer runs beside."""
        writer = asyncio.create_task(connection.write())
        try:
            async for message in connection.ws:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    data = message.data
                    on_text(data if isinstance(data, str) else data.decode("utf-8", "replace"))
                elif message.type is WSMsgType.PING:
                    connection.push(message.data, opcode=WSMsgType.PONG)
                elif message.type is WSMsgType.PONG:
                    connection.pong_at = time.monotonic()
                else:
                    break
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _on_socket(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return await self._on_rest(request)
        connection = await self._open(request)
        peer = self.face.peer(request.path, request.query_string)

        def on_text(text: str) -> None:
            self._advance()
            answers = peer.receive(text, time.time_ns() // 1_000_000)
            self._push(connection, peer.scope, answers, time.monotonic())
            self._fan_out()
            if peer.ready:
                self._subscribed.set()

        self._peers[connection] = peer
        if peer.ready:
            self._subscribed.set()
        try:
            await self._converse(connection, on_text)
        finally:
            del self._peers[connection]
        return connection.ws

    async def _close_all(self, scope: str, abort: bool = False) -> int:
        connections = self._of(scope)
        for connection in connections:
            if abort:
                connection.abort()
            else:
                with contextlib.suppress(ConnectionError):
                    await connection.ws.close(code=WSCloseCode.GOING_AWAY, message=b"server closes the connection")
        return len(connections)

    # ---- the tests' own pages

    async def _on_status(self, request: web.Request) -> web.Response:
        recording = self._recording
        return web.json_response(
            {
                **self.face.counts,
                **self.counts,
                **self._faults.counts,
                "venue": self.settings.venue,
                "mode": "synthetic" if recording is None else "recorded",
                "done": self._done,
                "started": recording is None or self._subscribed.is_set(),
                "played": self._played,
                "lines": 0 if recording is None else len(recording.lines),
                "broken_lines": self._broken,
                "book_gaps": 0 if recording is None else recording.connection.counts["gaps"],
                "stream_clients": len(self._of("market")),
                "user_clients": len(self._of("user")),
                "venue_ns": self._venue_ns(),
            }
        )

    async def _on_fault(self, request: web.Request) -> web.Response:
        try:
            fault = json.loads(await request.read())
            if not isinstance(fault, dict):
                raise ConfigError("fault: expected one JSON object with kind")
            await self._apply_fault(fault)
        except (ValueError, ConfigError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"ok": True})

    async def _apply_fault(self, fault: dict[str, Any]) -> None:
        faults, kind, scope = self._faults, fault.get("kind"), fault.get("scope", "market")
        if scope not in _Faults.SCOPES:
            raise ConfigError(f"scope={scope!r}; expected one of {', '.join(_Faults.SCOPES)}")
        scopes = ("market", "user") if scope == "all" else (scope,)
        if kind == "gap":
            faults.gap += int(_number(fault, "n", 1))
        elif kind == "duplicate":
            faults.duplicate += int(_number(fault, "n", 1))
        elif kind == "reorder":
            faults.reorder += int(_number(fault, "n", 1))
        elif kind == "silence":
            until = time.monotonic() + _number(fault, "seconds")
            faults.silent_until.update(dict.fromkeys(scopes, until))
        elif kind == "delay":
            faults.delay_s.update(dict.fromkeys(scopes, _number(fault, "ms") / 1000))
        elif kind == "error":
            code = fault.get("code")
            if isinstance(code, bool) or not isinstance(code, int):
                raise ConfigError(f"code={code!r}; expected the venue's error code, such as -1007")
            msg = str(fault.get("msg", "Asked for by a test."))
            self.face.fail_orders(code, msg, int(_number(fault, "n", 1)), fault.get("carried_out") is True)
        elif kind == "drop":
            faults.counts["dropped"] += await self._close_all(scope)
        elif kind == "cut":
            faults.counts["cut"] += await self._close_all(scope, abort=True)
        else:
            raise ConfigError(
                f"kind={kind!r}; expected one of gap, silence, delay, duplicate, reorder, error, drop, cut"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---- the process


async def _serve(settings: VenueSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = VenueService(settings)
    await service.start()
    ready = {"rest": service.rest, "stream": service.stream, "ws_api": service.ws_api, "pid": os.getpid()}
    print(json.dumps(ready), flush=True)
    for task in service.tasks:  # the end of a recording stops nothing, a failure does

        def on_end(ended: asyncio.Task[None]) -> None:
            if ended.cancelled() or ended.exception() is not None:
                stop.set()

        task.add_done_callback(on_end)
    try:
        await stop.wait()
    finally:
        await service.close()
    error = service.failure()
    if error is not None:
        raise error


def run(settings: VenueSettings, *, die_with_parent: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Prints one JSON line with the addresses when ready. What is wrong with `settings`, a port in use among it, is one
    line on stderr and exit code 4.

    Parameters
    ----------
    settings : VenueSettings
    die_with_parent : bool
        End when the parent process ends, whatever ended it (Linux).
    """
    try:
        if die_with_parent:
            follow_parent()
        asyncio.run(_serve(settings))
    except ConfigError as error:
        print(f"hftlab venue: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


def _balance(text: str) -> tuple[str, Decimal]:
    asset, _, amount = text.partition("=")
    try:
        return asset, Decimal(amount)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r}; expected ASSET=AMOUNT such as BTC=10") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the venue from a command line; return the exit code."""
    parser = argparse.ArgumentParser(
        "hftlab venue", description="The simulated exchange behind a venue's spot protocol."
    )
    defaults = VenueSettings()
    parser.add_argument("--venue", default=defaults.venue, choices=VENUES, help="whose protocol to speak")
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=int, default=defaults.port, help="0 takes a free one")
    parser.add_argument("--symbol", action="append", dest="symbols", help="may be given more than once")
    parser.add_argument("--exchange-info", type=Path, help="file with an exchangeInfo answer to take filters from")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--rate", type=float, help="events a second of the synthetic flow")
    parser.add_argument("--speed", type=float, default=defaults.speed, help="venue seconds in a second")
    parser.add_argument("--capture", type=Path, help="recording to serve instead of the flow (Binance)")
    parser.add_argument("--maker-fee-e8", type=int, default=0, help="1e-8 of notional")
    parser.add_argument("--taker-fee-e8", type=int, default=0, help="1e-8 of notional")
    parser.add_argument("--balance", action="append", type=_balance, help="ASSET=AMOUNT, may be given more than once")
    parser.add_argument("--orders-per-10s", type=int, default=defaults.orders_per_10s)
    parser.add_argument("--queue", type=int, default=defaults.queue, help="messages that may wait for one client")
    parser.add_argument("--die-with-parent", action="store_true")
    given = vars(parser.parse_args(argv))
    die_with_parent = given.pop("die_with_parent")
    symbols, balances = given.pop("symbols"), given.pop("balance")
    try:
        settings = VenueSettings(symbols=symbols or _FIRST, balances=dict(balances or ()), **given)
    except ConfigError as error:
        print(f"hftlab venue: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return run(settings, die_with_parent=die_with_parent)


if __name__ == "__main__":
    sys.exit(main())
