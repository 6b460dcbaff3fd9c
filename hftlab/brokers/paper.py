"""Paper: a real feed, and fills by the exchange in process.

Orders meet a `RecordedExchange` that is fed the same public rows as the engine, ``entry_ns`` after they were sent, and
its answers come back ``response_ns`` later, by the wall clock. It assumes what that model assumes: orders queue behind
the displayed quantity, the market does not react to us, and our trades consume nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy.typing as npt

from hftlab.brokers.binance import report_rows
from hftlab.clock import now_ns
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ExecType, Flag, Kind, OrdStatus, RowArray, join_rows, new_rows
from hftlab.sim.exchange import RecordedExchange
from hftlab.sim.models import Fees

__all__ = ["PaperBroker"]


class PaperBroker:
    """The order side of a paper session; the same face as a real broker's.

    Parameters
    ----------
    instruments : sequence of Instrument
    deliver : callable(rows, received_ns)
    open_orders : callable
        Returns the engine's open order records.
    on_state : callable(connected)
    fees : Fees
    entry_ns, response_ns : int
    """

    failure = None
    last_error = ""
    reconnects = 0
    balances: ClassVar[dict[str, Any]] = {}  # paper has no account; the position starts at 0

    def __init__(
        self,
        instruments: Sequence[Instrument],
        deliver: Callable[[RowArray, int], None],
        open_orders: Callable[[], npt.NDArray[Any]],
        on_state: Callable[[bool], None],
        *,
        fees: Fees = Fees(),  # noqa: B008  # frozen
        entry_ns: int = 1_000_000,
        response_ns: int = 1_000_000,
    ) -> None:
        self.exchange = RecordedExchange(instruments, fees=fees)
        self.connected = False
        self._deliver, self._open_orders, self._on_state = deliver, open_orders, on_state
        self._entry_s, self._response_s = entry_ns / 1e9, response_ns / 1e9

    async def run(self) -> None:
        """Expire what an earlier life left open (its exchange died with it), and be ready until cancelled."""
        for order in self._open_orders():
            rows = report_rows(
                int(order["cl_ord_id"]), int(order["instrument"]), int(order["side"]), ExecType.EXPIRED,
                OrdStatus.EXPIRED, now_ns(), text=b"paper restart", flags=Flag.RECOVERED,
            )  # fmt: skip
            self._deliver(rows, now_ns())
        self.connected = True
        self._on_state(True)
        await asyncio.Event().wait()

    def on_market(self, rows: RowArray) -> None:
        """Take public rows; fills they cause are delivered later."""
        self._answer(self.exchange.on_market(rows))

    def send(self, commands: RowArray) -> RowArray:
        """Take order rows; return their SENT rows."""
        orders = commands.copy()
        asyncio.get_running_loop().call_later(
            self._entry_s, lambda: self._answer(self.exchange.send(orders, now_ns()))
        )
        done = []
        for row in commands[commands["kind"] != Kind.CONT]:
            sent = new_rows(1)
            sent["kind"], sent["instrument"], sent["a"], sent["b"] = Kind.SENT, row["instrument"], row["a"], row["seq"]
            sent["ts_recv"] = sent["ts_event"] = now_ns()
            done.append(sent)
        return join_rows(done)

    def _answer(self, rows: RowArray) -> None:
        if len(rows):
            asyncio.get_running_loop().call_later(self._response_s, self._tell, rows.copy())

    def _tell(self, rows: RowArray) -> None:
        now = now_ns()
        rows["ts_recv"][rows["kind"] == Kind.REPORT] = now
        self._deliver(rows, now)
