"""The trader: one session's engine, in its own process, between sockets and journal.

One thread, one event loop, one order of events. Frames, reports, timers and control requests become input rows in the
order in which the loop delivers them; each is handed to the engine at once, the engine writes it and all it caused into
the journal as one atom, and only what the journal has published is sent. That merged order *is* the session: replaying
the journal in another process gives every output row again.

What else lives here, and why here: CLOCK rows when nothing happened for 50 ms (so silence is visible, and a growing
journal is the heartbeat that the supervisor watches), TIMER rows at the deadlines a strategy asked for, SENT rows with
the real send times (so that SUBMIT rows stay deterministic), recovery, and the control socket.

Recovery. A session goes on with the definitions it began with (instruments, limits, strategy): they are in its
journal, and a change to them is a new session. A journal that has rows is replayed through a fresh engine that never
sends; every row must come out as it stands, or the session refuses to go on. A RESTART row then marks every order
whose last request has no answer UNKNOWN, the broker settles them against the venue's word, and by policy what is
still open is canceled (or adopted). The kill switch is state like any other: a halted session stays halted.

The garbage collector is off: the hot path makes no cycles. What exists when trading starts is frozen, so that the
collection of what connections leave behind, once in ten seconds while nothing happens, looks at little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.clock import StepWatch, now_ns
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.errors import ConfigError, HftlabError, JournalError, StrategyError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW, BookState, Kind, RowArray, new_rows
from hftlab.engine import Engine, RowBuffer, control_row, fault_rows, first_difference, input_rows, text_rows
from hftlab.feeds.market import MarketFeed
from hftlab.feeds.sequencer import Sequencer
from hftlab.journal import JournalReader, JournalWriter, bounds, read_all
from hftlab.kernels.latency import LATENCY_FILE, Latency
from hftlab.kernels.orders import sent_rows
from hftlab.services.control import CONTROL_SOCKET
from hftlab.services.feed import FeedProcesses, market_connection
from hftlab.services.hotpath import HotPath, Warmer, ns_per_cycle
from hftlab.services.markets import market
from hftlab.services.paths import HALT_FILE, check_socket_path
from hftlab.services.process import follow_parent, keep_to_core
from hftlab.services.spec import SessionSpec, read_spec
from hftlab.strategy import load_strategy
from hftlab.venues.binance.market import MarketDecoder
from hftlab.venues.binance.messages import instruments_from_exchange_info
from hftlab.venues.binance.orders import OrderCodec
from hftlab.venues.binance.server import DEFAULT_ACCOUNT
from hftlab.venues.binance.spec import PRODUCTION, Urls, depth_path

__all__ = ["Trader", "client_prefix", "main", "recover"]

CLOCK_NS = 50_000_000
COLLECT_NS = 10_000_000_000
RETRY_CANCEL_NS = 500_000_000
MERGED_ROWS = 512
"""Rows of a feed process that go through the engine in one call: 30 us, after which what they caused is sent."""
CANCEL_TIMEOUT_S = 10.0
"""How long a start or a stop waits for the venue's word: longer than an order can be in doubt (6 s)."""


def client_prefix(mode: str, name: str) -> str:
    """Return what begins every client order id of a session: the same after a restart, different for each session.

    Examples
    --------
    >>> client_prefix("sim", "maker")
    'ha57c1b5d-'
    """
    return f"h{hashlib.sha256(f'{mode}/{name}'.encode()).hexdigest()[:8]}-"


def recover(folder: Path, engine: Engine) -> int:
    """Replay the journal in `folder` through `engine`, comparing every row; return how many rows there were.

    Raises
    ------
    JournalError
        If a row comes out differently: the strategy, the kernels or the journal has changed.
    """
    rows = read_all(folder)
    again = RowBuffer()
    engine.process(input_rows(rows), again)
    difference = first_difference(rows, again.rows())
    if difference is not None:
        raise JournalError(
            f"{folder}: row {difference} does not come out again; the strategy or this version of hftlab differs from "
            "the one that wrote it. Start a session under another name, or bring back what wrote this one"
        )
    engine.faults.clear()  # their tracebacks are rows of the journal already
    return len(rows)


class Trader:
    """One running session.

    Parameters
    ----------
    folder : Path
        The session's folder, holding its specification.
    endpoints : dict, optional
        Where the venue listens, if the specification leaves it open.

    Raises
    ------
    HftlabError
        If the session cannot start; the message says why and what to do.
    """

    def __init__(self, folder: Path, endpoints: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.spec = read_spec(folder)
        self.state = "starting"
        self.halt_reason: str | None = None
        self.started_ns = now_ns()
        self._urls = _urls(self.spec, endpoints)
        self._stopping = asyncio.Event()
        self._told_faults = 0
        self._is_paper = self.spec.mode == "paper"
        self._failure: BaseException | None = None
        self._feed_task: asyncio.Task[None] | None = None
        self._step = StepWatch()

    # --- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Trade until stopped; return the exit code: 0, or 8 if orders are still open or unknown."""
        import aiohttp

        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            server = await self._open_control()
            stack.callback(server.close)
            definitions = _earlier(self.folder) or self._definitions(await self._instruments(session))
            instruments = list(definitions.instruments)
            await self._open_engine(definitions)
            stack.callback(self.writer.close)
            self.broker = self.path.broker = self._make_broker(session)
            self.feed = self._make_feed(instruments, session)
            self._warm()
            if self.spec.core is not None:
                keep_to_core(self.spec.core)
            gc.collect()
            gc.freeze()
            gc.disable()
            tasks = [self._spawn(self.broker.run()), self._spawn(self._tick())]
            if self.spec.wait != "sleep":
                tasks.append(self._spawn(self.warmer.keep(polling=self.spec.wait == "poll")))
            try:
                await self._wait_for(lambda: self.broker.connected, 30.0, "the venue's order connection")
                if not self._stopping.is_set():
                    await self._start()
                    self._feed_task = self._spawn(self.feed.run())
                    tasks.append(self._feed_task)
                    await self._stopping.wait()
                self.state = "stopping"
                if self._failure is None:
                    await self._cancel_and_confirm("stop")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        return 8 if len(self.engine.open_orders()) else 0

    async def _start(self) -> None:
        """Start the strategy once what was left open is settled; the market comes after, so it misses nothing."""
        left = 0
        if len(self.engine.open_orders()) and (self.spec.policy["on_start"] == "cancel" or self._must_be_flat()):
            left = await self._cancel_and_confirm("cancel_all")
        latch = self.folder / HALT_FILE
        if latch.exists():
            self._halt(latch.read_text().strip() or "asked for while the trader was down")
        elif left:
            self._halt(f"{left} orders from before the start could not be confirmed canceled; look at the venue")
        self.process(control_row("start", now_ns()))
        self.state = "trading"
        if self.engine.header["strategy_halted"]:
            self.state = "faulted"
        if self.engine.header["kill_switch"]:
            self.state = "halted"

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                self._failure = done.exception()
                self._stopping.set()

        task.add_done_callback(ended)
        return task

    async def _wait_for(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready() and not self._stopping.is_set():
            if self._failure is not None:
                raise self._failure
            if self.broker.failure is not None:
                raise self.broker.failure
            if time.monotonic() > deadline:
                raise HftlabError(f"{what} is not there after {timeout_s:g} s: {self.broker.last_error or 'no answer'}")
            await asyncio.sleep(0.005)

    async def _instruments(self, session: Any) -> list[Instrument]:
        """Read the venue's grids; Binance's books refine them, since old orders may lie between today's ticks."""
        source = market(self.spec.venue)
        info = await self._get(session, source.listing)
        if source.name != "binance":
            return source.instruments(info, self.spec.symbols)
        books = {symbol: await self._get(session, depth_path(symbol, 1000)) for symbol in self.spec.symbols}
        return instruments_from_exchange_info(info, self.spec.symbols, books=books)

    async def _get(self, session: Any, path: str) -> bytes:
        import aiohttp

        url = self._urls.rest + path
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=10)) as response:
                return await response.read()  # type: ignore[no-any-return]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HftlabError(f"{url}: {type(error).__name__}: {error}; is the venue running?") from error

    def _definitions(self, instruments: list[Instrument]) -> Definitions:
        spec, plan = self.spec, self.spec.strategy
        return Definitions(
            spec.name,
            spec.mode,
            tuple(instruments),
            tuple(Limits.from_decimals(i, spec.limits[i.symbol]) for i in instruments),
            StrategyRef(plan["name"], plan["source"], plan["params"], plan.get("version", "")),
            spec.seed,
        )

    async def _open_engine(self, definitions: Definitions) -> None:
        ref = definitions.strategy
        compiled = self.spec.strategy.get("compiled", True)
        strategy = load_strategy(ref.source, ref.name, ref.params, compiled=compiled)
        self.engine = Engine(definitions, strategy)
        self.writer = JournalWriter(self.folder / "journal", definitions.to_dict())
        try:
            if self.writer.seq:
                # in a thread, so that a status is answered meanwhile
                n = await asyncio.to_thread(recover, self.folder / "journal", self.engine)
                self._open_path()
                restart = new_rows(1)
                restart["kind"], restart["ts_recv"] = Kind.RESTART, now_ns()
                self.process(restart)
                _log(f"recovered {n} rows; {len(self.engine.open_orders())} orders to settle with the venue")
            else:
                self._open_path()
        except BaseException:
            self.writer.close()
            raise

    def _open_path(self) -> None:
        """Begin to measure: what a recovery replays is no tick of this life."""
        cycle = ns_per_cycle()
        try:
            latency = Latency.create(self.folder / LATENCY_FILE, cycle)
        except OSError as error:  # a full disk is the journal's to judge; without a file only this process sees them
            _log(f"no latency file: {error.strerror}")
            latency = Latency(cycle)
        self.path = HotPath(self.engine, self.writer, latency, self._fail)

    def _make_feed(self, instruments: list[Instrument], session: Any) -> MarketFeed | FeedProcesses:
        venue, stream, rest = self.spec.venue, self._urls.stream, self._urls.rest
        if self.spec.feeds == "inline":
            ids = [i.id for i in instruments]
            return MarketFeed(market_connection(venue, instruments), ids, stream, rest, self._on_market, session)
        # a paper broker sees each message before the strategy does: one at a time
        sequencer = Sequencer(self._on_merged, most=1 if self._is_paper else MERGED_ROWS, busy=self.spec.wait == "poll")
        sequencer.start()
        n = self.spec.feed_processes
        return FeedProcesses(n, venue, instruments, stream, rest, sequencer, self._on_market, self.folder)

    def _make_broker(self, session: Any) -> Any:
        if self.spec.mode == "paper":
            from hftlab.brokers.paper import PaperBroker

            return PaperBroker(
                self.engine.definitions.instruments, self._on_reports, self.engine.open_orders, self._on_broker
            )
        from hftlab.brokers.binance import BinanceBroker

        api_key, secret = _key(self.spec)
        codec = OrderCodec(
            self.engine.definitions.instruments,
            api_key,
            secret,
            client_prefix(self.spec.mode, self.spec.name),
            list(self.engine.definitions.assets),
        )
        return BinanceBroker(
            codec,
            self.engine.definitions.instruments,
            self._urls,
            self._on_reports,
            self.engine.open_orders,
            self._on_broker,
            session,
            api_key=api_key,
            latency=self.path.latency,
        )

    def _warm(self) -> None:
        """Run every kernel of the hot path on throw-away state, so that no first call compiles while trading."""
        rehearse = self.broker.codec.rehearse if hasattr(self.broker, "codec") else lambda commands, now_ms: None
        self.warmer = Warmer(self.path, rehearse)
        self.warmer.run()
        self.warmer.run()
        twin = Engine(self.engine.definitions, None)
        twin.due_timer(0)
        decoder, out = MarketDecoder(self.engine.definitions.instruments), np.zeros(16384, ROW)
        name = self.engine.definitions.instruments[0].symbol
        for frame in (
            f'{{"stream":"x","data":{{"e":"trade","E":1,"s":"{name}","t":1,"p":"0","q":"0","T":1,"m":true,"M":true}}}}',
            f'{{"stream":"x","data":{{"u":1,"s":"{name}","b":"0","B":"0","a":"0","A":"0"}}}}',
        ):
            decoder.decode(frame.encode(), 1, out)
        sent_rows(np.zeros(1, ROW), np.zeros(1, np.int64), out)

    # --- rows --------------------------------------------------------------------------------------------------------

    def process(self, rows: RowArray) -> None:
        """Hand input rows to the engine; send what it published, and journal what was sent.

        An error here is a defect or a lost disk: it ends the trader, because an engine that has missed a row must not
        go on, and the supervisor starts it again through recovery.
        """
        self.path.process(rows)
        if self.engine.failures > self._told_faults:
            self._tell_faults()
        self.writer.wake()

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopping.set()

    def _tell_faults(self) -> None:
        while self._told_faults < len(self.engine.faults):
            fault = self.engine.faults[self._told_faults]
            self._told_faults += 1
            _log(f"FAULT in {fault.callback}\n{fault.traceback}")
            self.engine.process(fault_rows(fault, now_ns()), self.writer)
        self.state = "faulted"

    def _on_market(self, rows: RowArray, received_ns: int) -> None:
        if self._is_paper:
            self.broker.on_market(rows)
        self.path.on_market(rows, received_ns)
        if self.engine.failures > self._told_faults:
            self._tell_faults()
        self.writer.wake()

    def _on_merged(self, rows: RowArray) -> None:
        self._on_market(rows, int(rows["ts_recv"][0]))

    def _on_reports(self, rows: RowArray, received_ns: int) -> None:
        self.process(rows)

    def _on_broker(self, connected: bool) -> None:
        if connected and self.broker.balances:
            held = {asset: [f"{b.free:f}", f"{b.locked:f}"] for asset, b in sorted(self.broker.balances.items())}
            self.process(text_rows(f"balances (free, locked): {json.dumps(held)}", now_ns()))
        self.process(control_row("connect" if connected else "disconnect", now_ns()))
        if connected and self.state == "trading" and self.spec.policy["on_start"] == "cancel":
            self.process(control_row("cancel_all", now_ns()))  # what survived a lost connection is not quoted by anyone

    def _must_be_flat(self) -> bool:
        """Whether no order may be open: halted, faulted or stopping. `_tick` sees to it until the venue agrees."""
        header = self.engine.header
        return bool(header["kill_switch"] or header["strategy_halted"]) or self.state == "stopping"

    async def _tick(self) -> None:
        """Write CLOCK and TIMER rows, and watch the journal's disk, every 10 ms."""
        collected = canceled = 0
        while True:
            await asyncio.sleep(0.01)
            step = self._step.step()
            now, steady = now_ns(), time.monotonic_ns()
            if step:
                row = new_rows(1)
                row["kind"], row["ts_recv"], row["px"] = Kind.CLOCK_STEP, now, step
                self.process(row)
            while (timer := self.engine.due_timer(now)) is not None:
                self.process(timer)
            if steady - canceled > RETRY_CANCEL_NS and self.broker.connected and self._must_be_flat():
                canceled = steady
                if len(self.engine.open_orders()):
                    self.process(control_row("cancel_all", now))
            if self.broker.failure is not None:
                raise self.broker.failure
            if steady - collected > COLLECT_NS and now - self.path.last_row_ns > 10_000_000:
                collected = steady
                gc.collect(1)
            if now - self.path.last_row_ns >= CLOCK_NS:
                row = new_rows(1)
                row["kind"], row["ts_recv"] = Kind.CLOCK, now
                self.process(row)
            if self.writer.halt_reason is not None and self.halt_reason is None:
                self._halt(f"journal: {self.writer.halt_reason}")
                self._spare_the_journal()

    def _spare_the_journal(self) -> None:
        """Close the feed: what room is left is for reports and clocks, some hours of them."""
        if self._feed_task is not None:
            self._feed_task.cancel()

    # --- control -----------------------------------------------------------------------------------------------------

    def _halt(self, reason: str) -> None:
        self.halt_reason = reason
        self.state = "halted"
        _log(f"HALT: {reason}")
        self.process(control_row("halt", now_ns()))
        self.process(text_rows(f"halt: {reason}", now_ns()))

    async def _cancel_and_confirm(self, what: str) -> int:
        """Write a control row that cancels, wait for the venue's word, and return how many orders are left open."""
        self.process(control_row(what, now_ns()))
        return await self._confirmed()

    async def _confirmed(self) -> int:
        """Wait until the venue has confirmed the end of every order; return how many are left open."""
        deadline = time.monotonic() + CANCEL_TIMEOUT_S
        while len(self.engine.open_orders()) and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        return len(self.engine.open_orders())

    async def _open_control(self) -> asyncio.AbstractServer:
        path = self.folder / CONTROL_SOCKET
        check_socket_path(path)
        with contextlib.suppress(FileNotFoundError):
            reader_writer = None
            try:
                _, reader_writer = await asyncio.open_unix_connection(str(path))
            except ConnectionRefusedError:
                path.unlink()
            if reader_writer is not None:
                reader_writer.close()
                raise JournalError(
                    f"session {self.spec.name} already has a trader; stop it (hftlab stop {self.spec.name}) or attach"
                )
        before = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._on_client, str(path))
        finally:
            os.umask(before)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            while line := await reader.readline():
                reply = await self._answer(line)
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            do = request["do"]
        except (ValueError, TypeError, KeyError):
            return {"ok": False, "error": 'expected one JSON object a line with a key "do"'}
        if do == "status":
            return {"ok": True, **self.status()}
        if self.state == "starting":
            return {"ok": False, "error": f"{self.spec.name} is still starting; try again in a moment"}
        if do == "halt":
            canceled = [int(o["cl_ord_id"]) for o in self.engine.open_orders()]
            self._halt(str(request.get("reason", "")) or "asked for")
            left = await self._confirmed()
            return {"ok": True, "canceled": canceled, "open": left}
        if do == "resume":
            self.halt_reason = None
            (self.folder / HALT_FILE).unlink(missing_ok=True)
            # whoever resumes has looked at the venue: a position that was in doubt is confirmed by that
            self.process(control_row("confirm_position", now_ns()))
            self.process(control_row("resume", now_ns()))
            self.state = "faulted" if self.engine.header["strategy_halted"] else "trading"
            return {"ok": True, "state": self.state}
        if do == "cancel_all":
            return {"ok": True, "open": await self._cancel_and_confirm("cancel_all")}
        if do == "stop":
            self._stopping.set()
            return {"ok": True}
        return {"ok": False, "error": f"no request {do!r}; there are status, halt, resume, cancel_all, stop"}

    def status(self) -> dict[str, Any]:
        """Return the session's state in plain types, as the control socket tells it."""
        told: dict[str, Any] = {
            "pid": os.getpid(),
            "name": self.spec.name,
            "mode": self.spec.mode,
            "state": self.state,
            "uptime_s": round((now_ns() - self.started_ns) / 1e9, 1),
            "halt_reason": self.halt_reason,
            "seq": 0,
            "counters": {},
            "position": {},
            "feed": {},
            "hops": {},
            "faults": [],
        }
        if not hasattr(self, "feed"):
            return told
        told["hops"] = self.path.latency.summary()
        told["seq"] = self.writer.seq
        told["counters"] = self.engine.counters()
        told["faults"] = [{"callback": f.callback, "traceback": f.traceback} for f in self.engine.faults]
        told["broker"] = {
            "connected": self.broker.connected,
            "reconnects": self.broker.reconnects,
            "last_error": self.broker.last_error,
        }
        for i in self.engine.definitions.instruments:
            inst = self.engine.instruments[i.id]
            feed = self.feed.carrying(i.symbol) if isinstance(self.feed, FeedProcesses) else self.feed
            age = now_ns() - feed.last_frame_ns
            told["position"][i.symbol] = int(inst["position"])
            told["feed"][i.symbol] = {
                "state": BookState(int(inst["book_state"])).name.lower(),
                "age_ms": round(age / 1e6, 1) if feed.last_frame_ns else None,
                "reconnects": feed.reconnects,
                "last_error": feed.last_error,
            }
        if isinstance(self.feed, FeedProcesses):
            told["feed_processes"] = self.feed.status()
        return told


def _earlier(folder: Path) -> Definitions | None:
    """Return the definitions a session began with, None for a new one: its journal replays only under those."""
    try:
        if bounds(folder / "journal")[1] == 0:
            return None
    except JournalError:  # none yet; if it is broken, opening it says so
        return None
    reader = JournalReader(folder / "journal")
    try:
        return Definitions.from_dict(reader.definitions)
    finally:
        reader.close()


def _urls(spec: SessionSpec, endpoints: dict[str, str] | None) -> Urls:
    given = endpoints or spec.endpoints
    source = market(spec.venue)
    if given is None:
        if spec.mode == "sim":
            raise ConfigError(f"{spec.name}: endpoints are missing; a sim session needs a running `hftlab venue`")
        source.require_key()
        return replace(PRODUCTION, rest=source.rest, stream=source.stream)
    stream = given["stream"].rstrip("/")
    if source.name == "binance" and not stream.endswith(("/stream", "/ws")):
        stream += "/stream"
    return replace(PRODUCTION, rest=given["rest"].rstrip("/"), stream=stream, ws_api=given["ws_api"])


def _key(spec: SessionSpec) -> tuple[str, str]:
    if spec.key == "sim":
        return DEFAULT_ACCOUNT[0], DEFAULT_ACCOUNT[1]
    assert isinstance(spec.key, dict)
    found = []
    for name in ("api_key_env", "secret_env"):
        variable = spec.key.get(name, "")
        value = os.environ.get(variable, "")
        if not value:
            raise ConfigError(f"key: the environment variable {variable or name!r} is empty; set it to the venue's key")
        found.append(value)
    return found[0], found[1]


def _log(text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    sys.stderr.write(f"{stamp}Z trader {os.getpid()}: {text}\n")
    sys.stderr.flush()


async def _main(folder: Path, endpoints: dict[str, str] | None) -> int:
    trader = Trader(folder, endpoints)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, trader._stopping.set)
    return await trader.run()


def main(argv: list[str] | None = None) -> int:
    """Run a trader process; return its exit code."""
    parser = argparse.ArgumentParser(prog="hftlab trader", description="Run one session's trader.")
    parser.add_argument("folder", type=Path, help="the session's folder")
    parser.add_argument("--endpoints", type=json.loads, help="JSON object with rest, stream and ws_api")
    parser.add_argument("--die-with-parent", action="store_true")
    options = parser.parse_args(argv)
    try:
        if options.die_with_parent:
            follow_parent()
        return asyncio.run(_main(options.folder, options.endpoints))
    except JournalError as error:
        _log(str(error))
        return 7
    except (ConfigError, StrategyError) as error:
        _log(str(error))
        return 4
    except HftlabError as error:
        _log(str(error))
        return 6


if __name__ == "__main__":
    sys.exit(main())
