"""Sessions from a notebook: start one, join one by name, watch it, stop it.

A `Session` is a client. The trader lives in another process under the supervisor; what is seen here is read from its
journal, by a reader that the trader cannot notice, into a `Replica` of its engine. So an interrupted cell, a dead
kernel or a busy loop changes nothing for the trader, and a new kernel joins by `attach` and sees everything from the
first row. Control (halt, stop) goes over the session's socket and takes effect in the trader, never here.

Frames are polars, made when they are asked for. Prices and quantities in them are floats, for display and plots; exact
integers stand beside them where decisions need them.

Worst case accepted: joining a session reads its whole journal (some ten million rows a second), and the order and
report rows are kept in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from hftlab.analysis.frames import OrderLog, book_frame, pnl_frame
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError, JournalError, StrategyError
from hftlab.core.rows import RowArray
from hftlab.engine import Replica
from hftlab.journal import JournalReader, read_all
from hftlab.kernels.latency import HOP_TEXTS, LATENCY_FILE, Latency
from hftlab.services import control, supervisor
from hftlab.services.control import TimedOut
from hftlab.services.paths import find_session
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec, read_spec
from hftlab.strategy import PythonStrategy, Strategy, load_strategy, source_of

__all__ = ["Session", "attach", "paper", "sessions", "sim"]

_LOOK_S = 0.05
_ASK_AGAIN_S = 1.0
_DASH_MS = 250
_STRATEGY_MODULE = "hftlab_strategy_"


# --- starting and joining ---------------------------------------------------------------------------------------------


def sim(
    strategy: Strategy | PythonStrategy,
    *,
    name: str | None = None,
    symbols: Sequence[str] = ("BTCUSDT",),
    limits: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 1,
    venue: Mapping[str, Any] | None = None,
    timeout: float = 180.0,
) -> Session:
    """Start `strategy` on the simulated exchange and return its session when it trades.

    If a session of that name runs already with the very same specification, it is joined instead.

    Parameters
    ----------
    strategy : Strategy or PythonStrategy
        An instance, with its parameters. The cell or file that defines its class goes to the trader whole, so it must
        hold its own imports and must not start a session itself.
    name : str, optional
        The session's name; the class's name in lower case if not given. An ended session of that name is archived.
    symbols : sequence of str
    limits : mapping of symbol to mapping, optional
        ``max_order``, ``max_position`` (base asset), ``max_notional``, ``collar`` (quote asset) as decimal text, and
        the integers ``orders_per_s``, ``max_open_orders``. Without it `hftlab.services.spec.CAREFUL_LIMITS`.
    seed : int
        Of the market and of ``ctx.random()``.
    venue : mapping, optional
        Options of the simulated exchange as of ``hftlab venue``, such as ``{"rate": 500, "speed": 2}``.
    timeout : float
        Seconds to wait for it to trade (the first start on a machine compiles for up to a minute).

    Raises
    ------
    ConfigError, StrategyError
        If the session cannot be; the message says why.
    Refused
        If a session of that name runs with another specification.
    TimedOut
        If it is not trading in time.
    """
    return _start(_spec("sim", strategy, name, symbols, limits, seed, None, {"seed": seed, **(venue or {})}), timeout)


def paper(
    strategy: Strategy | PythonStrategy,
    *,
    name: str | None = None,
    symbols: Sequence[str] = ("BTCUSDT",),
    limits: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 1,
    endpoints: Mapping[str, str] | None = None,
    timeout: float = 180.0,
) -> Session:
    """Start `strategy` on a real feed, filled by a simulated exchange in the trader; return its session when it trades.

    Parameters
    ----------
    strategy, name, symbols, limits, seed, timeout
        As in `sim`.
    endpoints : mapping, optional
        ``rest``, ``stream`` and ``ws_api`` addresses of the feed; Binance's public production addresses if not
        given.

    Raises
    ------
    ConfigError, StrategyError, Refused, TimedOut
        As `sim`.
    """
    where = None if endpoints is None else dict(endpoints)
    return _start(_spec("paper", strategy, name, symbols, limits, seed, where, {}), timeout)


def attach(name: str) -> Session:
    """Return the session `name`, running or ended; detaching or dying does not touch it.

    Raises
    ------
    SessionNotFound
        If there is none; the message lists those there are.
    """
    return Session(find_session(name))


def sessions() -> pl.DataFrame:
    """Return one row a session, newest first: name, mode, state, strategy, symbols, pid, restarts, reason, folder."""
    names = ["name", "mode", "state", "strategy", "symbols", "pid", "restarts", "reason", "folder"]
    kinds = {n: pl.Int64 if n in ("pid", "restarts") else pl.String for n in names}
    return pl.DataFrame([{n: one[n] for n in names} for one in supervisor.overview()], schema=kinds)


def _spec(
    mode: str,
    strategy: Strategy | PythonStrategy,
    name: str | None,
    symbols: Sequence[str],
    limits: Mapping[str, Mapping[str, Any]] | None,
    seed: int,
    endpoints: dict[str, str] | None,
    venue_args: dict[str, Any],
) -> SessionSpec:
    _refuse_inside_a_strategy()
    if not isinstance(strategy, Strategy | PythonStrategy):
        raise ConfigError(f"strategy: {strategy!r}; expected an instance such as Maker(edge_ticks=2)")
    if isinstance(symbols, str):
        raise ConfigError(f"symbols: {symbols!r}; expected a sequence of symbols, such as ({symbols!r},)")
    cls = type(strategy).__name__
    source = source_of(strategy)
    try:
        load_strategy(source, cls, strategy.chosen, compiled=strategy.compiled)
    except StrategyError as error:
        raise StrategyError(
            f"{error}. The trader runs the cell or file that defines {cls} by itself: it must hold its own imports and "
            "do nothing else"
        ) from error
    given = {symbol: dict(one) for symbol, one in (CAREFUL_LIMITS if limits is None else limits).items()}
    if limits is None:
        given = {symbol: one for symbol, one in given.items() if symbol in symbols}
    plan = {"name": cls, "source": source, "params": strategy.chosen, "compiled": strategy.compiled, "version": ""}
    return SessionSpec(
        name or cls.lower(), mode, tuple(symbols), plan, given, endpoints=endpoints, seed=seed, venue_args=venue_args
    )


def _refuse_inside_a_strategy() -> None:
    """Raise if a strategy's source, run by a trader or a check, is what asks for a session: it would start itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).startswith(_STRATEGY_MODULE):
            raise ConfigError(
                "the cell that defines the strategy also starts a session; put the two into separate cells"
            )


def _start(spec: SessionSpec, timeout: float) -> Session:
    held = supervisor.start(spec)
    supervisor.await_trading(Path(held["folder"]), timeout)
    return Session(Path(held["folder"]))


# --- the session ------------------------------------------------------------------------------------------------------


class Session:
    """A running or ended session, seen through its journal; made by `sim`, `paper` and `attach`.

    Parameters
    ----------
    folder : Path
        The session's folder.

    Raises
    ------
    ConfigError
        If there is no specification in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = read_spec(folder)
        self._reader: JournalReader | None = None
        self._replica: Replica | None = None
        self._log = OrderLog()
        self._redrawing: list[Any] = []

    name = property(lambda self: self.spec.name, doc="The session's name.")
    mode = property(lambda self: self.spec.mode, doc="sim or paper.")

    @property
    def journal(self) -> Path:
        """The journal's folder."""
        return self.folder / "journal"

    def __repr__(self) -> str:
        told = self.status()
        position = ", ".join(f"{symbol} {lots:+d} lots" for symbol, lots in self.position.items())
        return f"Session {self.name} ({self.mode}) {told['state']}: {position}, {self._counter('fills')} fills"

    # --- what the journal says ----------------------------------------------------------------------------------------

    @property
    def definitions(self) -> Definitions:
        """Instruments, limits, strategy and seed, as the journal carries them."""
        return self._follow().definitions

    def refresh(self) -> int:
        """Read what the journal holds by now and return how many rows were new; frames and `wait` do so themselves."""
        replica, reader = self._follow(), self._reader
        assert reader is not None
        first = reader.position
        while True:
            at = reader.position
            rows = reader.poll()
            if not len(rows):
                return reader.position - first
            replica.apply(rows)
            self._log.add(rows, at)

    def _follow(self) -> Replica:
        """Return the replica, opening the journal on the first call."""
        if self._replica is None:
            try:
                self._reader = JournalReader(self.journal)
            except JournalError as error:
                raise ConfigError(
                    f"session {self.name} has not written a row yet; see {self.folder / 'trader.log'}"
                ) from error
            self._replica = Replica(Definitions.from_dict(self._reader.definitions))
        return self._replica

    def _fresh(self) -> Replica:
        self.refresh()
        assert self._replica is not None
        return self._replica

    def _counter(self, name: str) -> int:
        return self._fresh().counters()[name]

    def rows(self) -> RowArray:
        """Return every row of the journal so far, an array of ROW."""
        return read_all(self.journal)

    def book(self, instrument: int = 0, depth: int = 10) -> pl.DataFrame:
        """Return the best `depth` levels of each side: side, level (0 the best), px, qty, px_ticks, qty_lots.

        Raises
        ------
        ConfigError
            If the session has no such instrument.
        """
        replica = self._fresh()
        listed = replica.definitions.instruments
        if not 0 <= instrument < len(listed):
            raise ConfigError(f"instrument: {instrument}; expected 0 to {len(listed) - 1}")
        return book_frame(replica, instrument, depth)

    @property
    def orders(self) -> pl.DataFrame:
        """Every order and replace, oldest first, as `hftlab.analysis.frames.OrderLog.orders` describes.

        seq, ts, cl_ord_id, orig, symbol, side, px, qty, cum_qty, tif, status, px_ticks, qty_lots.
        """
        return self._log.orders(self._fresh())

    @property
    def fills(self) -> pl.DataFrame:
        """Own fills, oldest first, as `hftlab.analysis.frames.OrderLog.fills` describes.

        seq, ts, symbol, side, px, qty, fee (> 0 paid), fee_asset, maker, cl_ord_id, exec_id, px_ticks, qty_lots.
        """
        return self._log.fills(self._fresh().definitions)

    @property
    def pnl(self) -> pl.DataFrame:
        """One row an instrument, as `hftlab.analysis.frames.pnl_frame` describes.

        symbol, position, position_lots, realized, unrealized, fees, net (quote asset), fee_base.
        """
        return pnl_frame(self._fresh())

    @property
    def position(self) -> dict[str, int]:
        """Signed lots by symbol."""
        replica = self._fresh()
        return {i.symbol: int(replica.instruments["position"][i.id]) for i in replica.definitions.instruments}

    @property
    def open_orders(self) -> int:
        """How many own orders are open or unknown."""
        return self._counter("open_orders")

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def wait(self, *, fills: int = 0, orders: int = 0, rows: int = 0, timeout: float = 60.0) -> dict[str, int]:
        """Wait until the session has had that many fills, orders and rows in all; return how many it has.

        Raises
        ------
        TimedOut
            After `timeout` seconds; the message says what it saw.
        ConfigError
            If the session ended first.
        """
        for seen in self._watch(fills, orders, rows, timeout):
            if seen is not None:
                return seen
            await asyncio.sleep(_LOOK_S)
        raise AssertionError("the watch ends by a value or an error")

    def wait_sync(self, *, fills: int = 0, orders: int = 0, rows: int = 0, timeout: float = 60.0) -> dict[str, int]:
        """`wait` for scripts: blocks."""
        for seen in self._watch(fills, orders, rows, timeout):
            if seen is not None:
                return seen
            time.sleep(_LOOK_S)
        raise AssertionError("the watch ends by a value or an error")

    def _watch(self, fills: int, orders: int, rows: int, timeout: float) -> Iterator[dict[str, int] | None]:
        """Yield None until enough was seen, then what was seen; raise when it will not come."""
        deadline = time.monotonic() + timeout
        ask_at = time.monotonic() + _ASK_AGAIN_S
        while True:
            counters = self._fresh().counters()
            assert self._reader is not None
            orders_seen = counters["submits"] + counters["replaces"]
            seen = {"fills": counters["fills"], "orders": orders_seen, "rows": self._reader.position}
            if seen["fills"] >= fills and seen["orders"] >= orders and seen["rows"] >= rows:
                yield seen
                return
            wanted = ", ".join(f"{n} {what}" for what, n in (("fills", fills), ("orders", orders), ("rows", rows)) if n)
            told = ", ".join(f"{n} {what}" for what, n in seen.items())
            now = time.monotonic()
            if now >= ask_at:
                ask_at = now + _ASK_AGAIN_S
                state = supervisor.describe(self.folder)
                if state["state"] not in supervisor.OPEN_STATES:
                    raise ConfigError(
                        f"{self.name} is {state['state']} ({state['reason'] or 'no reason kept'}): saw {told}"
                    )
            if now >= deadline:
                raise TimedOut(f"{self.name}: waited {timeout:g} s for {wanted}; saw {told}")
            yield None

    # --- control ------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the trader says of itself, or how the session ended: ``state`` is always there."""
        return supervisor.status(self.folder)

    def latency(self) -> pl.DataFrame:
        """Return how long each hop of the hot path has taken since the trader's start, slowest tail as ``max_us``.

        Columns: hop, n, p50_us, p99_us, p999_us, max_us, what. Read from the file that the trader keeps, so it costs
        the trader nothing; of a session that has ended it tells the last life. Percentiles are within 1.6 %.

        Raises
        ------
        ConfigError
            If there is no such file: the session has not started, or an earlier version of hftlab ran it.
        """
        told = Latency.open(self.folder / LATENCY_FILE).summary()
        columns = ("n", "p50_us", "p99_us", "p999_us", "max_us")
        rows = [{"hop": hop, **{k: one[k] for k in columns}, "what": HOP_TEXTS[hop]} for hop, one in told.items()]
        schema = {"hop": pl.String, "n": pl.Int64, **dict.fromkeys(columns[1:], pl.Float64), "what": pl.String}
        return pl.DataFrame(rows, schema)

    def halt(self, reason: str = "") -> dict[str, Any]:
        """Pull the kill switch: block new orders, cancel the open ones; it stays pulled, over restarts too.

        Raises
        ------
        NotRunning
            If the session does not run.
        """
        return supervisor.halt(self.folder, reason or "notebook")

    def resume(self) -> dict[str, Any]:
        """Release the kill switch."""
        return control.request(self.folder, "resume")

    def cancel_all(self) -> dict[str, Any]:
        """Cancel every open order; the strategy goes on."""
        return control.request(self.folder, "cancel_all", 10.0)

    def stop(self) -> dict[str, Any]:
        """End the session: on_stop, cancel, confirm, exit. Return its last description; the frames stay readable."""
        told = supervisor.stop(self.folder)
        self._stop_redrawing()
        return told

    def detach(self) -> None:
        """Let go of the journal and of dashboards drawn here; the session goes on. Using it again joins it again."""
        self._stop_redrawing()
        if self._reader is not None:
            self._reader.close()
        self._reader = self._replica = None
        self._log = OrderLog()

    def dashboard(self) -> Any:
        """Return the session's dashboard, a Panel object that redraws itself while this kernel runs."""
        import panel as pn

        from hftlab.dash import make_dashboard

        layout, update = make_dashboard(self.folder)
        update()
        with contextlib.suppress(RuntimeError):  # a script without an event loop gets the picture of now
            asyncio.get_running_loop()
            self._redrawing.append(pn.state.add_periodic_callback(update, period=_DASH_MS))
        return layout

    def _stop_redrawing(self) -> None:
        while self._redrawing:
            self._redrawing.pop().stop()
