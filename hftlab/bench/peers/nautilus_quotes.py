"""nautilus_trader: its backtest engine on quote ticks, with a Python strategy that counts them.

Measured: ``BacktestEngine.run`` from the first tick to the last; the ticks are objects made before, since what it costs
to make them is another question.

Answers one JSON object a line. ``prepare``: makes `n` ticks and runs once. ``round``: the nanoseconds of one run.
"""

from __future__ import annotations

import json
import random
import sys
import time

from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig
from nautilus_trader.model.currencies import USDT
from nautilus_trader.model.data import QuoteTick
from nautilus_trader.model.enums import AccountType, OmsType
from nautilus_trader.model.identifiers import TraderId, Venue
from nautilus_trader.model.objects import Money, Price, Quantity
from nautilus_trader.test_kit.providers import TestInstrumentProvider
from nautilus_trader.trading.strategy import Strategy

__all__ = ["Counting", "Peer"]

INSTRUMENT = TestInstrumentProvider.btcusdt_binance()
FIRST_NS = 1_700_000_000_000_000_000


class Counting(Strategy):  # type: ignore[misc]  # the peer's base, untyped
    """Count the quotes."""

    def on_start(self) -> None:
        """Subscribe."""
        self.n = 0
        self.subscribe_quote_ticks(INSTRUMENT.id)

    def on_quote_tick(self, tick: QuoteTick) -> None:
        """Count one."""
        self.n += 1


class Peer:
    """The ticks, and the runs over them."""

    def __init__(self) -> None:
        self.ticks: list[QuoteTick] = []
        self.counted = 0

    def prepare(self, n: int) -> dict[str, object]:
        """Make the ticks, a millisecond apart: the touch wanders by one."""
        chance, mid = random.Random(1), 5_000_000
        places, size = INSTRUMENT.price_precision, Quantity(1, INSTRUMENT.size_precision)
        for k in range(n):
            mid += chance.randint(-1, 1)
            bid, ask = Price(mid / 100, places), Price((mid + 1) / 100, places)
            at = FIRST_NS + 1_000_000 * k
            self.ticks.append(QuoteTick(INSTRUMENT.id, bid, ask, size, size, at, at))
        self.run()
        return {"counted": self.counted}

    def run(self) -> int:
        """Return the nanoseconds of one run."""
        config = BacktestEngineConfig(trader_id=TraderId("T-1"), logging=LoggingConfig(bypass_logging=True))
        engine = BacktestEngine(config)
        money = [Money(10_000_000, USDT), Money(100, INSTRUMENT.base_currency)]
        engine.add_venue(Venue("BINANCE"), OmsType.NETTING, AccountType.CASH, money)
        engine.add_instrument(INSTRUMENT)
        engine.add_data(self.ticks)
        strategy = Counting()
        engine.add_strategy(strategy)
        started = time.perf_counter_ns()
        engine.run()
        took = time.perf_counter_ns() - started
        self.counted = strategy.n
        engine.dispose()
        return took


if __name__ == "__main__":
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        answer = peer.prepare(request["n"]) if request["op"] == "prepare" else {"value": peer.run()}
        print(json.dumps(answer), flush=True)
