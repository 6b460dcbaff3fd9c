"""Tick to order: a frame's bytes in, signed order bytes out, through the classes that trade.

`MarketFeed` and its connection decode a Binance depth message of some 20 levels, the engine applies it, the shipped
market maker moves both quotes through risk, the journal publishes with its default durability, `OrderCodec` writes and
signs, and `BinanceBroker` calls send. Time runs from the call with the frame to the call of send of the first order;
``both_*`` to the second one's; ``send_*`` to the return of a real send on a loopback socket. After each tick the
venue's answers come in through the broker, outside the time, and for 50 us the kernel is asked for events without
sleep, as a polling trader's loop does: there the journal's helper thread has its turns.

``idle_*``: one tick in 10 ms, asleep in between, as on a quiet market; ``idle_warm_*``: the same with the path kept
warm as the trader does. ``hop_*_ns``: what one hop of the latency histogram costs.

The check: prices are the touch's, signatures are recomputed, a replay gives every row again, and the histogram of the
hop ``tick_to_order`` agrees with what was timed from outside.
"""

from __future__ import annotations

import gc
import hashlib
import hmac
import json
import random
import re
import select
import socket
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np

from hftlab.bench.run import Case, CheckFailed, Plan, Ratio
from hftlab.brokers.binance import BinanceBroker
from hftlab.clock import now_ns
from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ExecType, Kind
from hftlab.engine import Engine, control_row, replay
from hftlab.feeds.market import MarketFeed
from hftlab.feeds.transport import Link, Messages
from hftlab.journal import JournalWriter, read_all
from hftlab.kernels.jit import kernel
from hftlab.kernels.latency import RISK, Latency, add_cycles, ticks
from hftlab.services.hotpath import HotPath, Warmer, ns_per_cycle
from hftlab.strategies.maker import Maker
from hftlab.venues.binance.connection import MarketConnection
from hftlab.venues.binance.orders import OrderCodec
from hftlab.venues.binance.spec import PRODUCTION

__all__ = ["Desk", "Figures", "GOALS", "Market", "answers", "percentiles", "prepare"]

GOALS = {"p50_us": (10.0, 5.0), "p99_us": (30.0, 30.0)}

_SECRET = "s" * 64
_PREFIX = "h0123abcd-"
_MID = 6_000_000
_IDS = re.compile(rb'"(newClientOrderId|cancelOrigClientOrderId)":"h0123abcd-(\d+)"')
_BTC = Instrument(
    0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), base="BTC", quote="USDT",
    min_qty=1, max_qty=2**40, min_notional=0,
)  # fmt: skip


class Market:
    """A seeded walk of the touch, as the venue's depth messages.

    Parameters
    ----------
    seed : int

    Attributes
    ----------
    mid : int
        Ticks; the best bid is one below, the best ask one above.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.mid, self._id = _MID, 1

    def snapshot(self) -> bytes:
        """Return the REST answer that the first message continues."""
        sides = [[[f"{(self.mid + away * k) / 100:.2f}", "1.0"] for k in range(1, 501)] for away in (-1, 1)]
        return json.dumps({"lastUpdateId": self._id, "bids": sides[0], "asks": sides[1]}).encode()

    def frame(self) -> bytes:
        """Return the next message: the touch moves by 3 ticks, 8 levels a side are told, what it crossed is removed."""
        old, self._id = self.mid, self._id + 1
        self.mid = old + self._chance.choice((-3, 3))
        sides = [
            [[f"{(self.mid + away * k) / 100:.8f}", f"{k + 0.5:.8f}"] for k in range(1, 9)] for away in (-1, 1)
        ]
        passed = sides[1] if old < self.mid else sides[0]
        away = 1 if old < self.mid else -1
        passed += [[f"{(old + away * k) / 100:.8f}", "0.00000000"] for k in range(1, 4)]
        event = {
            "e": "depthUpdate", "E": 1_700_000_000_000 + self._id, "s": "BTCUSDT", "U": self._id, "u": self._id,
            "b": sides[0], "a": sides[1],
        }  # fmt: skip
        told = {"stream": "btcusdt@depth@100ms", "data": event}
        return json.dumps(told, separators=(",", ":")).encode()


def answers(request: bytes) -> list[bytes]:
    """Return the events by which the venue answers an order or a replace: the old one canceled, the new one taken."""
    told = []
    for name, order in sorted(_IDS.findall(request)):  # cancelOrig... comes first
        gone = name != b"newClientOrderId"
        event = {
            "e": "executionReport", "E": 1, "s": "BTCUSDT", "c": "x" if gone else f"{_PREFIX}{order.decode()}",
            "S": "BUY", "o": "LIMIT", "f": "GTC", "q": "0.00100000", "p": "60000.00000000",
            "C": f"{_PREFIX}{order.decode()}" if gone else "", "x": "CANCELED" if gone else "NEW",
            "X": "CANCELED" if gone else "NEW", "r": "NONE", "i": 1_000_000 + int(order), "l": "0.00000000",
            "z": "0.00000000", "L": "0.00000000", "n": "0", "N": None, "T": 1499405658657, "t": -1,
            "w": True, "m": False, "M": False,
        }  # fmt: skip
        told.append(json.dumps({"subscriptionId": 0, "event": event}, separators=(",", ":")).encode())
    return told


class _Recorder:
    """A link that notes when it was called, and with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes]] = []

    def send(self, message: bytes) -> None:
        self.calls.append((time.perf_counter_ns(), message))

    async def close(self) -> None:
        pass


class _SocketLink(_Recorder):
    """A link that really sends, and notes when that was done."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._socket = connection

    def send(self, message: bytes) -> None:
        self._socket.sendall(message)
        self.calls.append((time.perf_counter_ns(), message))


class Desk:
    """Feed, engine, journal, codec and broker of one session, without an event loop.

    Parameters
    ----------
    folder : Path
        For the journal.
    """

    def __init__(self, folder: Path) -> None:
        limits = Limits(2**50, 2**60, 3_000_000_000, 2**50, orders_per_s=1_000_000_000, max_open_orders=100)
        self.definitions = Definitions("bench", "sim", (_BTC,), (limits,), StrategyRef("Maker", "", {}, ""), 1)
        self.folder = folder / "journal"
        self.engine = Engine(self.definitions, Maker())
        self.writer = JournalWriter(self.folder, self.definitions.to_dict())
        self.latency = Latency.create(folder / "latency", ns_per_cycle())
        self.path = HotPath(self.engine, self.writer, self.latency)
        self.codec = OrderCodec([_BTC], "k" * 64, _SECRET, _PREFIX, list(self.definitions.assets))
        self.broker = self.path.broker = BinanceBroker(
            self.codec, [_BTC], PRODUCTION, lambda rows, received_ns: self.path.process(rows),
            self.engine.open_orders, self._on_state, None,  # type: ignore[arg-type]  # no REST here
            api_key="k" * 64, latency=self.latency,
        )  # fmt: skip
        self.connection = MarketConnection([_BTC])
        self.warmer = Warmer(self.path, self.codec.rehearse)
        self.warmer.run()

    def _on_state(self, connected: bool) -> None:
        self.path.process(control_row("connect" if connected else "disconnect", now_ns()))

    def feed(self, stream: str = "", session: Any = None) -> MarketFeed:
        """Return a feed of this desk's connection."""
        return MarketFeed(self.connection, [0], stream, "", self.path.on_market, session)

    def start(self) -> None:
        """Start the strategy."""
        self.path.process(control_row("start", now_ns()))

    def close(self) -> None:
        """Close the journal."""
        self.writer.close()


class _Bench:
    """A desk whose frames and answers are handed in by hand, and whose times are kept."""

    def __init__(self, folder: Path) -> None:
        self.desk, self.market = Desk(folder), Market(1)
        self.link = _Recorder()
        self._use(self.link)
        self._feed, self._messages = self.desk.feed(), Messages(1)
        self._feed._link = cast(Link, self.link)  # what run() does once it is connected
        desk, now = self.desk, now_ns()
        desk.connection.on_open(now)
        desk.start()
        desk._on_state(True)
        out = self._feed._out
        n = desk.connection.on_snapshot("BTCUSDT", self.market.snapshot(), now, out)
        desk.path.on_market(out[:n], now)
        self._answer()

    def _use(self, link: _Recorder) -> None:
        """Send by `link`: what `BinanceBroker.run` does once it is connected."""
        self.link = link
        self.desk.broker._link, self.desk.broker.connected = cast(Link, link), True

    def _take(self, frame: bytes) -> None:
        self._messages.put(frame)
        self._feed._on_messages(self._messages)

    def _answer(self) -> None:
        for _, request in self.link.calls:
            for event in answers(request):
                self.desk.broker._on_message(event)
        self.link.calls.clear()

    def check(self, n: int) -> None:
        """Run `n` ticks and compare what was sent and journaled with what had to be.

        Raises
        ------
        CheckFailed
            If a price, a signature, a row or a latency is wrong.
        """
        for _ in range(n):
            self._take(self.market.frame())
            told = sorted((m["side"], m["price"]) for m in map(_checked_params, [c[1] for c in self.link.calls]))
            if told != [("BUY", f"{(self.market.mid - 1) / 100:.2f}"), ("SELL", f"{(self.market.mid + 1) / 100:.2f}")]:
                raise CheckFailed(f"tick-to-order: sent {told} with the mid at {self.market.mid} ticks")
            self._answer()
        rows = read_all(self.desk.folder)
        if not replay(rows, self.desk.definitions, Maker()).identical:
            raise CheckFailed("tick-to-order: a replay of the journal gives other rows")
        if int((rows["kind"] == Kind.SENT).sum()) != int(np.isin(rows["kind"], _ORDERS).sum()):
            raise CheckFailed("tick-to-order: not every order has its SENT row")
        acks = (rows["kind"] == Kind.REPORT) & (rows["code"] & 255 == ExecType.ACK)
        if int(acks.sum()) != 2 * n + 2:
            raise CheckFailed("tick-to-order: an answer of the venue is missing")

    def round(self, n: int, pause_s: float = 0.0, *, warm: bool = False) -> tuple[list[int], list[int]]:
        """Run `n` ticks; return the times (ns) to the first and to the last of each tick's orders."""
        frames = [self.market.frame() for _ in range(n)]
        first, last = [], []
        take, calls, clock = self._take, self.link.calls, time.perf_counter_ns
        gc.collect()
        gc.disable()
        try:
            for frame in frames:
                if pause_s:
                    self._wait(pause_s, warm)
                else:
                    _poll()
                started = clock()
                take(frame)
                first.append(calls[0][0] - started)
                last.append(calls[-1][0] - started)
                self._answer()
        finally:
            gc.enable()
        return first, last

    def _wait(self, pause_s: float, warm: bool) -> None:
        until = time.monotonic() + pause_s
        while time.monotonic() < until:
            if warm:
                self.desk.warmer.run()
            time.sleep(0.001 if warm else pause_s)


def _poll() -> None:
    """Ask the kernel for events that do not come, for 50 us."""
    until = time.perf_counter_ns() + 50_000
    while time.perf_counter_ns() < until:
        select.select((), (), (), 0)


_ORDERS = [int(Kind.SUBMIT), int(Kind.REPLACE_ORDER), int(Kind.CANCEL)]


def _checked_params(request: bytes) -> dict[str, Any]:
    """Return a request's parameters, its signature recomputed from the venue's rule."""
    params: dict[str, Any] = json.loads(request)["params"]
    signature = params.pop("signature")
    payload = "&".join(f"{name}={params[name]}" for name in sorted(params))
    if signature != hmac.new(_SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest():
        raise CheckFailed("tick-to-order: a signature is wrong")
    return params


class Figures:
    """Several figures out of one round: whichever is asked for first runs it, the others are taken from it.

    Parameters
    ----------
    run : callable() -> dict of str to float
    names : sequence of str
        The figures it returns.

    Examples
    --------
    >>> figures = Figures(lambda: {"a_us": 1.0, "b_us": 2.0}, ["a_us", "b_us"])
    >>> [case.run() for case in figures.cases()]
    [1.0, 2.0]
    """

    def __init__(self, run: Callable[[], dict[str, float]], names: list[str]) -> None:
        self._run, self._names = run, names
        self._left: dict[str, float] = {}

    def _take(self, name: str) -> float:
        if name not in self._left:
            self._left = self._run()
        return self._left.pop(name)

    def cases(self) -> list[Case]:
        """Return one case a figure."""
        return [Case(name, lambda name=name: self._take(name)) for name in self._names]  # type: ignore[misc]  # mypy


def percentiles(times_ns: list[int], before: str, *points: float) -> dict[str, float]:
    """Return percentiles of `times_ns` in us by name: ``<before>p50_us``, ``<before>p99_us``, ..."""
    told = np.percentile(np.array(times_ns, np.float64), points) / 1e3
    return {f"{before}p{str(p).replace('.', '')}_us": float(v) for p, v in zip(points, told, strict=True)}


def prepare(plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return the cases, the path checked and compiled."""
    bench = _Bench(plan.folder)
    bench.check(plan.sized(500, 50))
    bench.round(plan.sized(2000, 50))
    n, paced = plan.sized(5000, 100), plan.sized(100, 10)

    def in_process() -> dict[str, float]:
        bench._use(_Recorder())
        first, last = bench.round(n)
        return {**percentiles(first, "", 50, 99, 99.9), **percentiles(last, "both_", 50, 99)}

    sink = plan.peer("wire", ())
    connection = socket.create_connection(("127.0.0.1", sink.ask(op="sink")["port"]))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def with_send() -> dict[str, float]:
        bench._use(_SocketLink(connection))
        return percentiles(bench.round(n)[0], "send_", 50, 99)

    def idle(warm: bool) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            bench._use(_Recorder())
            first, _ = bench.round(paced, 0.01, warm=warm)
            return percentiles(first, "idle_warm_" if warm else "idle_", 50, 99)

        return run

    cases = Figures(in_process, ["p50_us", "p99_us", "p999_us", "both_p50_us", "both_p99_us"]).cases()
    cases += Figures(with_send, ["send_p50_us", "send_p99_us"]).cases()
    cases += Figures(idle(False), ["idle_p50_us", "idle_p99_us"]).cases()
    cases += Figures(idle(True), ["idle_warm_p50_us", "idle_warm_p99_us"]).cases()
    cases += [Case("hop_kernel_ns", _hop_kernel), Case("hop_python_ns", _hop_python)]
    return cases, []


@kernel("int64(int64, int64)")
def _hops(latency: int, n: int) -> int:
    for _ in range(n):
        started = ticks()
        add_cycles(latency, RISK, ticks() - started)
    return 0


def _hop_kernel() -> float:
    """Return what one hop inside a kernel costs, ns: two readings of the counter and the count."""
    latency, n = Latency(ns_per_cycle()), 100_000
    _hops(latency.address, 10)
    started = time.perf_counter_ns()
    _hops(latency.address, n)
    return (time.perf_counter_ns() - started) / n


def _hop_python() -> float:
    """Return what one hop in Python costs, ns: a reading of the clock, the store, and the kernel's counting of it."""
    latency, n = Latency(), 2000
    noted, earlier = latency.noted, now_ns() - 1000
    fold = latency.fold
    rounds = []
    for _ in range(5):
        started = time.perf_counter_ns()
        for _ in range(n):
            noted[0] = now_ns() - earlier
        stored = time.perf_counter_ns()
        for _ in range(n):
            noted[0] = 1000
            fold()
        counted = time.perf_counter_ns()
        for _ in range(n):
            fold()
        empty = time.perf_counter_ns()
        rounds.append((stored - started + max(0, (counted - stored) - (empty - counted))) / n)
    return median(rounds)
