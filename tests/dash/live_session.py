"""A session that lives: a market maker against the synthetic exchange in real time, into a journal that others read.

Run as a program: ``python live_session.py SESSION_FOLDER [--symbols N] [--fault-after S] [--quiet-after S]``. It
answers `halt` on control.sock as a trader does, and ends when its standard input is closed. A fault is a strategy that
indexes past its list; quiet means that no more rows are written, as when a trader hangs.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from hftlab.backtest.runner import VirtualSession
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, Kind, RowArray, new_rows
from hftlab.engine import Engine, control_row, fault_rows
from hftlab.journal import JournalWriter
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import Fees
from hftlab.strategies.maker import Maker
from hftlab.strategy import PythonStrategy, Strategy


class Session(VirtualSession):
    """Writes SENT rows, as a trader does, with times that follow from the orders' numbers."""

    def _process(self, rows: RowArray, now_ns: int) -> None:
        self._last_ns = max(self._last_ns, now_ns)
        if self.engine.process(rows, self.sink):
            commands = self.engine.commands().copy()
            self._push(self._due_at(now_ns, 0), 0, commands)
            self.engine.process(_sent(commands[commands["kind"] != CONT], now_ns), self.sink)
        while len(self.engine.faults) > self._faults:
            fault = self.engine.faults[self._faults]
            self._faults += 1
            self.engine.process(fault_rows(fault, now_ns), self.sink)


def _sent(orders: RowArray, now_ns: int) -> RowArray:
    sent = new_rows(len(orders))
    sent["kind"], sent["ts_recv"], sent["a"], sent["b"] = Kind.SENT, now_ns, orders["a"], orders["seq"]
    sent["ts_event"] = orders["ts_recv"] + 40_000 + 3_000 * (orders["a"] % 40) + 400_000 * (orders["a"] % 50 == 0)
    return sent


class Faulty(PythonStrategy):
    """Fails on the first book after `after_ns`."""

    after_ns = 0

    def on_book(self, ctx: Any, event: Any) -> None:
        """Fail when it is time."""
        if ctx.now_ns > self.after_ns:
            [0, 1][event.instrument + 2]


def definitions_of(strategy: Strategy | PythonStrategy, symbols: int = 1, session: str = "desk") -> Definitions:
    """Return definitions for BTCUSDT and its like: ticks of 0.01, lots of 0.00001."""
    names = ["BTCUSDT", "ETHUSDT", "SOLUSDT"][:symbols]
    instruments = tuple(
        Instrument(i, "binance", name, Decimal("0.01"), Decimal("0.00001"), name[:3], "USDT")
        for i, name in enumerate(names)
    )
    limit = {"max_order": "0.02", "max_position": "0.0125", "max_notional": "1000", "collar": "50", "orders_per_s": 50}
    limits = tuple(Limits.from_decimals(i, {**limit, "max_open_orders": 20}) for i in instruments)
    ref = StrategyRef(type(strategy).__name__, "", dict(strategy.chosen), "a1b2c3d4e5f6")
    # The synthetic exchange names fee assets by this table: base, then quote
    assets = tuple(dict.fromkeys(code for i in instruments for code in (i.base, i.quote)))
    return Definitions(session, "sim", instruments, limits, ref, assets=assets)


class Control(threading.Thread):
    """control.sock: one request a line, one reply a line; what a halt does is done by the session's own thread."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.asked: queue.Queue[tuple[str, queue.Queue[dict[str, Any]]]] = queue.Queue(8)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "control.sock"))
        self._listener.listen()

    def run(self) -> None:
        """Answer connections one after the other."""
        while True:
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rw") as stream:
                for line in stream:
                    answer: queue.Queue[dict[str, Any]] = queue.Queue(1)
                    self.asked.put((json.loads(line)["do"], answer))
                    stream.write(json.dumps(answer.get(timeout=5)) + "\n")
                    stream.flush()


def halt(session: Session, now_ns: int) -> dict[str, Any]:
    """Halt as a trader does; return its answer."""
    canceled = session.engine.open_orders()["cl_ord_id"].tolist()
    session._process(control_row("halt", now_ns), now_ns)
    return {"ok": True, "canceled": canceled, "open": 0}


def main() -> None:
    """Run until standard input is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--symbols", type=int, default=1)
    parser.add_argument("--fault-after", type=float, default=0.0)
    parser.add_argument("--quiet-after", type=float, default=0.0)
    parser.add_argument("--before", type=float, default=0.0, help="seconds of history written at once")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    start = time.time_ns() - int(given.before * 1e9)
    strategy: Strategy | PythonStrategy = Maker()
    if given.fault_after:
        strategy = Faulty(after_ns=start + int(given.fault_after * 1e9))
    definitions = definitions_of(strategy, given.symbols)
    fees = Fees(maker_e8=2_000, taker_e8=10_000)
    exchange = MatchingExchange(definitions.instruments, seed=7, fees=fees, start_ns=start)
    control = Control(given.folder)
    control.start()
    closed = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), closed.set()), daemon=True).start()
    with JournalWriter(given.folder / "journal", definitions.to_dict()) as writer:
        session = Session(Engine(definitions, strategy), exchange, writer)
        print("ready", flush=True)
        while not closed.wait(0.01):
            now = time.time_ns()
            if given.quiet_after and now - start > given.quiet_after * 1e9:
                continue
            session.run_synthetic(now)
            while not control.asked.empty():
                what, answer = control.asked.get()
                answer.put(halt(session, now) if what == "halt" else {"ok": True, "name": "desk"})
        session.stop()


if __name__ == "__main__":
    main()
