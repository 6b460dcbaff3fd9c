"""A desk to test orders and risk on: an engine, and a strategy that does what the test says."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.instruments import Instrument
from hftlab.core.rows import (
    REPORT_PAYLOAD,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    RowArray,
    Side,
    join_rows,
    new_rows,
)
from hftlab.engine import Engine, RowBuffer, control_row
from hftlab.strategy import GTC, PythonStrategy

SECOND = 1_000_000_000
LIMITS = {
    "max_order_qty": 100, "max_notional": 10**9, "max_position": 1000, "collar_ticks": 500,
    "orders_per_s": 1_000_000, "max_open_orders": 4096,
}  # fmt: skip


class Doing(PythonStrategy):
    """Does at each trade what it is told."""

    todo: Callable[[Any], Any] | None = None
    done: Any = None

    def on_trade(self, ctx: Any, event: Any) -> None:
        if self.todo is not None:
            self.done = self.todo(ctx)


class Desk:
    """An engine with live books, and short words for what happens to it."""

    def __init__(self, instruments: int = 1, **limits: int) -> None:
        listed = tuple(
            Instrument(i, "venue", f"S{i}", Decimal("0.01"), Decimal("0.001"), base=f"B{i}", quote="Q")
            for i in range(instruments)
        )
        self.definitions = Definitions(
            "test", "sim", listed, tuple(Limits(**{**LIMITS, **limits}) for _ in listed), StrategyRef("Doing", "")
        )
        self.strategy = Doing()
        self.engine = Engine(self.definitions, self.strategy)
        self.sink = RowBuffer()
        self.now = SECOND
        self.feed(control_row("start", self.now))
        for i in range(instruments):
            self.book(1000, 1010, instrument=i)

    def feed(self, rows: RowArray) -> None:
        self.engine.process(rows, self.sink)

    def row(self, kind: Kind, **fields: int) -> RowArray:
        row = new_rows(1)
        row["kind"], row["ts_recv"] = kind, self.now
        for name, value in fields.items():
            row[name] = value
        return row

    def book(self, bid: int, ask: int, instrument: int = 0, state: BookState = BookState.LIVE) -> None:
        """Show a book of one level a side."""
        of = {"instrument": instrument}
        self.feed(self.row(Kind.CLEAR, **of))
        self.feed(self.row(Kind.LEVEL, px=bid, qty=50, flags=Flag.BID | Flag.SNAPSHOT, **of))
        self.feed(self.row(Kind.LEVEL, px=ask, qty=50, flags=Flag.ASK | Flag.SNAPSHOT | Flag.LAST, a=1, **of))
        self.feed(self.row(Kind.BOOK_STATE, code=state, **of))

    def do(self, what: Callable[[Any], Any]) -> Any:
        """Return what `what(ctx)` says inside a callback."""
        self.strategy.todo, self.strategy.done = what, None
        self.feed(self.row(Kind.TRADE, px=1005, qty=1))
        self.strategy.todo = None
        return self.strategy.done

    def submit(
        self, side: int = Side.BUY, px: int = 1000, qty: int = 10, tif: int = GTC, flags: int = 0, instrument: int = 0
    ) -> int:
        return int(self.do(lambda ctx: ctx.submit(instrument, side, px, qty, tif, flags)))

    def cancel(self, order: int) -> int:
        return int(self.do(lambda ctx: ctx.cancel(order)))

    def replace(self, order: int, px: int, qty: int) -> int:
        return int(self.do(lambda ctx: ctx.replace(order, px, qty)))

    def report(
        self, order: int, what: int, qty: int = 0, px: int = 1000, exec_id: int = 0, fee: int = 0, fee_asset: int = 0
    ) -> None:
        head = self.row(Kind.REPORT, code=what, px=px, qty=qty, a=order, b=exec_id, span=1)
        payload = np.zeros(1, REPORT_PAYLOAD)
        payload["kind"], payload["fee"], payload["fee_asset"] = Kind.CONT, fee, fee_asset
        payload["venue_order_id"] = 7
        self.feed(join_rows([head, payload.view(head.dtype)]))

    def fill(self, order: int, qty: int, px: int = 1000, exec_id: int = 1) -> None:
        self.report(order, ExecType.FILL, qty, px, exec_id)

    def status(self, order: int) -> OrdStatus:
        found = self.engine.orders[self.engine.orders["cl_ord_id"] == order]
        return OrdStatus(int(found["status"][0])) if len(found) else OrdStatus.NONE

    def working(self, instrument: int = 0) -> tuple[int, int]:
        inst = self.engine.instruments[instrument]
        return int(inst["working_buy"]), int(inst["working_sell"])

    def position(self, instrument: int = 0) -> int:
        return int(self.engine.instruments["position"][instrument])

    def counter(self, name: str) -> int:
        return int(self.engine.header[name])

    def last(self, kind: Kind) -> Any:
        """Return the newest row of a kind."""
        rows = self.sink.rows()
        return rows[rows["kind"] == kind][-1]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def make_desk() -> Callable[..., Desk]:
    return Desk
