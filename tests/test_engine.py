"""The fold: both forms, any slicing, any fault, any journal, the same bytes."""

from __future__ import annotations

import functools
import gc
import hashlib
import itertools
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import types

from hftlab.core.definitions import Definitions, Limits, StrategyRef
from hftlab.core.instruments import Instrument
from hftlab.core.rows import (
    CONT,
    REPORT_PAYLOAD,
    BookState,
    ExecType,
    Flag,
    Kind,
    OrdStatus,
    RowArray,
    join_rows,
    new_rows,
    payload_bytes,
)
from hftlab.engine import (
    CONTROL,
    Engine,
    Fault,
    Replica,
    RowBuffer,
    control_row,
    fault_rows,
    first_difference,
    input_rows,
    replay,
    text_rows,
)
from hftlab.kernels import loop, risk
from hftlab.kernels.jit import address_of, kernel
from hftlab.kernels.state import ATOM_ROWS, CALLBACKS
from hftlab.strategy import ASK, BID, BUY, GTC, IOC, MARKET, NO_PX, SELL, PythonStrategy, Strategy, record

SECOND = 1_000_000_000


class Busy(Strategy):
    """Uses everything a strategy may use."""

    params = record(size=3, every=2, weight=0.25, ladder=[1, 2, 5])
    state = record(calls=0, ids=[0] * 16, mean=0.0, seen=[0.0] * 4, last=0, timer=0)

    def on_start(ctx, state, params, event):
        state.timer = ctx.set_timer(ctx.now_ns + 1000, 7)
        ctx.note(1, event.code, event.seq)

    def on_book(ctx, state, params, event):
        i = event.instrument
        state.calls += 1
        bid, ask = ctx.best_bid(i), ctx.best_ask(i)
        if bid == NO_PX or ask == NO_PX:
            return
        state.mean += params.weight * ((bid + ask) / 2 - state.mean)
        state.seen[state.calls % 4] = state.mean
        depth = 0
        for level in range(3):
            px, qty = ctx.depth(i, BID, level)
            if px != NO_PX:
                depth += qty
            px, qty = ctx.depth(i, ASK, level)
            if px != NO_PX:
                depth -= qty
        slot = state.calls % 16
        draw = ctx.random()
        if ctx.order_status(state.ids[slot]) == 2:
            if draw < 0.5:
                moved = ctx.replace(state.ids[slot], ctx.order_px(state.ids[slot]) + 1, params.size + 1)
                if moved > 0:
                    state.ids[slot] = moved
            else:
                ctx.cancel(state.ids[slot])
        elif ctx.open_orders() < 40:
            side = BUY if depth > 0 else SELL
            px = bid if side == BUY else ask
            state.ids[slot] = max(0, ctx.submit(i, side, px + params.ladder[slot % 3], params.size))
        ctx.note(2, depth, int(state.mean * 1000))
        ctx.note(3, ctx.best_bid_qty(i) - ctx.best_ask_qty(i), ctx.working_buy(i) - ctx.working_sell(i))

    def on_trade(ctx, state, params, event):
        if event.a % params.every == 0:
            ctx.submit(event.instrument, SELL if event.flags & BID else BUY, MARKET, 1, IOC)
        state.last = ctx.last_px(event.instrument) + event.px - event.qty
        ctx.note(4, event.flags, event.seq)

    def on_execution(ctx, state, params, event):
        ctx.note(5, ctx.position(event.instrument), ctx.order_leaves(event.a) - event.b)

    def on_timer(ctx, state, params, event):
        while state.timer > 0 and state.timer % 3 != 0:
            state.timer += 1
        state.timer = ctx.set_timer(event.px + 5000 + int(ctx.random() * 1000), event.kind)

    def on_gap(ctx, state, params, event):
        for k in range(16):
            ctx.cancel(state.ids[k])
        ctx.note(6, ctx.book_state(event.instrument), event.source)

    def on_stop(ctx, state, params, event):
        ctx.submit(0, BUY, 1000, 1)
        ctx.note(7, state.calls, event.ts_event)


class Free(PythonStrategy):
    """Keeps what it likes."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.prices: list[int] = []

    def on_book(self, ctx: Any, event: Any) -> None:
        self.prices.append(ctx.best_bid(event.instrument))
        if len(self.prices) % 5 == 0:
            ctx.submit(event.instrument, BUY, self.prices[-1], 1 + len(self.prices) % 3)


def definitions(instruments: int = 1, seed: int = 1) -> Definitions:
    listed = tuple(
        Instrument(i, "venue", f"S{i}", Decimal("0.01"), Decimal("0.001"), base=f"B{i}", quote="Q")
        for i in range(instruments)
    )
    limits = Limits(50, 10**9, 200, 100, orders_per_s=10**6, max_open_orders=60)
    return Definitions("test", "sim", listed, (limits,) * instruments, StrategyRef("Busy", ""), seed)


def row(kind: int, ts: int, **fields: int) -> RowArray:
    made = new_rows(1)
    made["kind"], made["ts_recv"] = kind, ts
    for name, value in fields.items():
        made[name] = value
    return made


def report(ts: int, order: int, what: int, px: int = 1000, qty: int = 1, exec_id: int = 0, **fields: int) -> RowArray:
    head = row(Kind.REPORT, ts, a=order, code=what, px=px, qty=qty, b=exec_id, span=1, **fields)
    payload = np.zeros(1, REPORT_PAYLOAD)
    payload["kind"], payload["fee"], payload["fee_asset"], payload["venue_order_id"] = Kind.CONT, 3, 1, order + 1000
    return join_rows([head, payload.view(head.dtype)])


def live_book(ts: int, instrument: int = 0) -> list[RowArray]:
    of = {"instrument": instrument}
    rows = [row(Kind.CLEAR, ts, **of)]
    for k in range(5):
        rows.append(row(Kind.LEVEL, ts, px=1000 - k, qty=10 + k, flags=Flag.BID | Flag.SNAPSHOT, a=1, **of))
        last = Flag.LAST if k == 4 else Flag(0)
        rows.append(row(Kind.LEVEL, ts, px=1005 + k, qty=12, flags=Flag.ASK | Flag.SNAPSHOT | last, a=1, **of))
    return [*rows, row(Kind.BOOK_STATE, ts, code=BookState.LIVE, **of)]


class Market:
    """Writes down a day of everything that can happen, lawful or not, by watching what an engine does with it."""

    def __init__(self, seed: int, instruments: int = 2) -> None:
        self.rng = np.random.default_rng(seed)
        self.engine, self.sink = Engine(definitions(instruments), Busy()), RowBuffer()
        self.parts: list[RowArray] = []
        self.ts, self.k = SECOND, 0

    def feed(self, *parts: RowArray) -> None:
        for part in parts:
            self.engine.process(part, self.sink)
            self.parts.append(part)

    def draw(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def step(self, instruments: int) -> None:
        self.ts += self.draw(0, 3000)
        self.k += 1
        ts, k, i, dice, side = self.ts, self.k, self.draw(0, instruments), self.draw(0, 100), self.draw(1, 3)
        px = 1000 - self.draw(0, 6) if side == BID else 1005 + self.draw(0, 6)
        if dice < 35:
            flags = side | (Flag.LAST if dice < 32 else 0)
            self.feed(row(Kind.LEVEL, ts, instrument=i, px=px, qty=self.draw(0, 9), flags=flags, a=k + 2))
        elif dice < 42:
            self.feed(row(Kind.QUOTE, ts, instrument=i, px=px, qty=5, flags=side | Flag.LAST, a=k + self.draw(0, 4)))
        elif dice < 50:
            self.feed(row(Kind.TRADE, ts, instrument=i, px=px, qty=2, flags=side, a=k, b=2**63 + k))
        elif dice < 86:
            self.answer(ts, k)
        elif dice < 89:
            self.feed(row(Kind.TIMER, ts, a=self.draw(1, 9), px=ts))
        elif dice < 91:
            state = [BookState.LIVE, BookState.STALE, BookState.RESYNCING][self.draw(0, 3)]
            self.feed(row(Kind.BOOK_STATE, ts, instrument=i, code=state, a=1, b=k % 2))
        elif dice < 94:
            self.feed(*live_book(ts, i))
        elif dice < 95:
            words = [w for w in CONTROL if w != "stop"]
            self.feed(*[control_row(w, ts) for w in (words[self.draw(0, len(words))], "resume", "connect")])
        elif dice < 96:
            self.feed(text_rows("x" * self.draw(0, 300), ts))
        elif dice < 97:
            self.feed(row(Kind.LEVEL, ts, instrument=77, px=1, qty=1, flags=Flag.BID | Flag.LAST))
        elif dice < 98:
            self.feed(row(Kind.RESTART, ts), control_row("start", ts), *live_book(ts, 0), *live_book(ts, 1))
        else:
            self.feed(row(Kind.CLOCK, ts), report(ts, self.draw(1, 60), self.draw(3, 10)))

    def answer(self, ts: int, k: int) -> None:
        """Answer an order, mostly as a venue might."""
        orders = self.engine.open_orders()
        if not len(orders):
            return
        o = orders[self.draw(0, len(orders))]
        what = ExecType.ACK if o["status"] == OrdStatus.PENDING_NEW else [2, 2, 6, 1, 7, 4, 3, 5][self.draw(0, 8)]
        qty = self.draw(1, int(o["order_qty"] - o["cum_qty"]) + 1)
        exec_id = k if k % 7 else k - 1
        self.feed(report(ts, int(o["cl_ord_id"]), what, int(max(1, o["px"])), qty, exec_id, instrument=o["instrument"]))


@functools.cache
def stream(seed: int, n: int = 600, instruments: int = 2) -> RowArray:
    """Return the same day for the same seed, read-only."""
    market = Market(seed, instruments)
    market.feed(control_row("start", SECOND))
    for i in range(instruments):
        market.feed(*live_book(SECOND, i))
    for _ in range(n):
        market.step(instruments)
    market.feed(control_row("stop", market.ts + 1))
    rows = join_rows(market.parts)
    rows.flags.writeable = False
    return rows


def run(rows: RowArray, strategy: Any, of: Definitions | None = None) -> tuple[Engine, RowArray]:
    engine, sink = Engine(of or definitions(2), strategy), RowBuffer()
    engine.process(rows, sink)
    return engine, sink.rows()


SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_compiled_and_plain_python_leave_the_same_rows_and_the_same_state(seed: int) -> None:
    rows = stream(seed)
    compiled, left = run(rows, Busy())
    plain, right = run(rows, Busy(compiled=False))
    assert first_difference(left, right) is None
    assert (compiled.arena == plain.arena).all()
    wrote = {int(kind) for kind in left["kind"]}
    assert {Kind.SUBMIT, Kind.CANCEL, Kind.REPLACE_ORDER, Kind.REFUSED, Kind.NOTE, Kind.FAULT} <= wrote
    assert not compiled.faults


def test_the_stream_of_seed_0_gives_the_rows_it_always_gave() -> None:
    _, rows = run(stream(0), Busy())
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == "81c1a9685a83f03a"


class Narrow:
    """A sink of rooms just large enough for one atom, each in memory of its own that is overwritten when it is full."""

    def __init__(self) -> None:
        self.seq, self.kept, self._room = 0, list[bytes](), np.zeros(ATOM_ROWS, new_rows(1).dtype)

    def ensure(self, rows: int) -> tuple[int, int]:
        assert rows <= len(self._room)
        self._room.view(np.uint8)[:] = 0xAB
        return address_of(self._room), len(self._room)

    def commit(self, rows: int) -> None:
        self.seq += rows
        self.kept.append(self._room[:rows].tobytes())


@pytest.mark.parametrize("compiled", [True, False])
def test_how_the_input_is_cut_changes_nothing(compiled: bool) -> None:
    rows = stream(1)
    whole_engine, whole = run(rows, Busy(compiled=compiled))
    heads = np.flatnonzero(rows["kind"] != CONT)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cuts = [0, *sorted(rng.choice(heads[1:], 60, replace=False).tolist()), len(rows)]
        engine, sink = Engine(definitions(2), Busy(compiled=compiled)), RowBuffer(ATOM_ROWS)
        for first, end in itertools.pairwise(cuts):
            engine.process(rows[first:end], sink)
        assert first_difference(whole, sink.rows()) is None
        assert (engine.arena == whole_engine.arena).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_rooms_of_one_atom_give_the_same_rows_and_all_the_orders(compiled: bool) -> None:
    rows = stream(2)
    engine, sink = Engine(definitions(2), Busy(compiled=compiled)), RowBuffer()
    count = engine.process(rows, sink)
    orders = engine.commands().copy()
    narrow_engine, narrow = Engine(definitions(2), Busy(compiled=compiled)), Narrow()
    assert narrow_engine.process(rows, narrow) == count
    assert b"".join(narrow.kept) == sink.rows().tobytes()
    assert len(narrow.kept) > 100
    assert narrow_engine.commands().tobytes() == orders.tobytes()
    assert (orders["kind"] != CONT).sum() == count
    heads = orders[orders["kind"] != CONT]
    assert (heads["flags"] & Flag.OUTPUT != 0).all()


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("compiled", [True, False])
def test_no_budget_of_rows_changes_a_row(compiled: bool, budget: int) -> None:
    rows = stream(3, 200)
    _, whole = run(rows, Busy(compiled=compiled))
    engine, sink = Engine(definitions(2), Busy(compiled=compiled)), RowBuffer()
    host = engine.host[0]
    host["rows"], host["i"], host["n"] = address_of(rows), 0, len(rows)
    while host["i"] < len(rows):
        host["max_rows"] = budget
        engine._open_room(sink)
        while (why := loop.run(engine._host_at)) == loop.WAKE:
            engine._wake()
        assert why in (loop.BUDGET, loop.DONE)
        engine._close_room(sink)
    assert first_difference(whole, sink.rows()) is None


def test_another_seed_is_another_run() -> None:
    rows = stream(0, 200)
    _, left = run(rows, Busy(), definitions(2, seed=1))
    _, right = run(rows, Busy(), definitions(2, seed=2))
    assert first_difference(left, right) is not None


def test_atoms_are_whole_and_numbered() -> None:
    rows = stream(0)
    _, out = run(rows, Busy())
    assert (out["seq"] == np.arange(len(out))).all()
    heads = out[out["kind"] != CONT]
    starts = np.flatnonzero(heads["flags"] & Flag.OUTPUT == 0)
    commits = np.flatnonzero(heads["flags"] & Flag.COMMIT)
    assert len(starts) == len(commits) == (rows["kind"] != CONT).sum()
    assert (starts[1:] == commits[:-1] + 1).all()


# --- replay and replica ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Busy, lambda: Busy(compiled=False), Free], ids=["compiled", "plain", "free"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_journal_replays_to_itself(seed: int, make: Callable[[], Any]) -> None:
    rows = stream(seed, 300)
    _, out = run(rows, make())
    assert input_rows(out)["kind"].tolist() == rows["kind"].tolist()
    told = replay(out, definitions(2), make())
    assert (told.identical, told.rows) == (True, len(out))
    assert told.submits == (out["kind"] == Kind.SUBMIT).sum()


def test_a_replay_names_the_first_row_that_was_changed() -> None:
    _, out = run(stream(0, 300), Busy())
    outputs = np.flatnonzero((out["flags"] & Flag.OUTPUT != 0) & (out["kind"] != CONT))
    for at in outputs[:: len(outputs) // 25].tolist():
        for byte in (24, 33, 41, 50, 63):
            spoiled = out.copy()
            spoiled[at : at + 1].view(np.uint8)[byte] ^= 1
            assert replay(spoiled, definitions(2), Busy()).difference == at


def test_first_difference_sees_length() -> None:
    rows = stream(0, 20)
    assert first_difference(rows, rows) is None
    assert first_difference(rows, rows[:-1]) == first_difference(rows[:-1], rows) == len(rows) - 1
    assert first_difference(rows[:0], rows[:0]) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replica_knows_what_the_engine_knows(seed: int) -> None:
    engine, out = run(stream(seed), Busy())
    replica = Replica(definitions(2))
    out.flags.writeable = False
    heads = np.flatnonzero((out["flags"] & Flag.COMMIT != 0) & (out["kind"] != CONT))
    middle = int(heads[len(heads) // 2]) + 1 + int(out["span"][heads[len(heads) // 2]])
    replica.apply(out[:middle])
    replica.apply(out[middle:])
    assert replica.instruments.tobytes() == engine.instruments.tobytes() or _same_but_offsets(replica, engine)
    assert replica.open_orders().tobytes() == engine.open_orders().tobytes()
    mine, its = engine.counters(), replica.counters()
    mine.pop("rows_applied"), its.pop("rows_applied")
    assert mine == its
    for i in range(2):
        assert replica.touch(i) == engine.touch(i)
        assert replica.pnl(i) == engine.pnl(i)
        for left, right in zip(replica.levels(i), engine.levels(i), strict=True):
            assert (left == right).all()


def _same_but_offsets(left: Engine, right: Engine) -> bool:
    names = [n for n in left.instruments.dtype.names or () if not n.startswith("off_")]
    return all((left.instruments[n] == right.instruments[n]).all() for n in names)


def test_order_rows_that_come_as_input_are_no_orders() -> None:
    order = row(Kind.SUBMIT, 3, px=1, qty=1, a=1, flags=Flag.OUTPUT)
    rows = join_rows([control_row("start", 1), *live_book(2), order])
    engine, out = run(rows, None)
    assert not len(engine.commands())
    assert engine.counters()["open_orders"] == 0
    replica = Replica(definitions(2))
    replica.apply(out)
    assert replica.counters()["open_orders"] == 0


def test_a_restart_leaves_orders_in_doubt_and_waits_for_a_start() -> None:
    class Two(PythonStrategy):
        def on_trade(self, ctx: Any, event: Any) -> None:
            ctx.submit(0, BUY, 1000, 1)

    engine, sink = Engine(definitions(), Two()), RowBuffer()
    trade = row(Kind.TRADE, 5, px=1, qty=1)
    acked = report(6, 1, ExecType.ACK)
    for rows in (control_row("start", 1), *live_book(2), trade, trade, acked, row(Kind.RESTART, 7)):
        engine.process(rows, sink)
    assert engine.open_orders()["status"].tolist() == [OrdStatus.NEW, OrdStatus.UNKNOWN]
    assert engine.touch(0) == (NO_PX, 0, NO_PX, 0)
    engine.process(trade, sink)
    assert engine.counters()["submits"] == 2, "not started"
    engine.process(report(8, 2, ExecType.CANCELED), sink)
    assert engine.open_orders()["cl_ord_id"].tolist() == [1]


# --- faults ----------------------------------------------------------------------------------------------------------

WRONGS = {
    "ZeroDivisionError": "state.n = 1 // state.zero",
    "IndexError": "state.list[state.n + 99] = 1",
    "ValueError": "raise ValueError('as asked')",
    "RuntimeError": "while True:\n            state.n += 1",
}
WORK = """
        order = ctx.submit(0, BUY, 1000, 2)
        ctx.submit(0, SELL, 1006, 2)
        ctx.cancel(order)
        ctx.replace(state.kept, 1001, 3)
        ctx.set_timer(ctx.now_ns + 5, 1)
        ctx.random()
        ctx.note(9, 1, 2)
        state.list[2] = 17
        state.f = 2.5
"""


def failing(callback: str, error: str, folder: Path, compiled: bool) -> Strategy:
    """Return a strategy that works in on_book, and in `callback` works and then fails."""
    other = "" if callback == "on_book" else "    def on_book(ctx, state, params, event):\n        ctx.best_bid(0)\n"
    source = (
        "from hftlab.strategy import *\n"
        "class Wrong(Strategy):\n"
        "    state = record(n=0, zero=0, kept=1, list=[0] * 4, f=0.5)\n"
        f"{other}"
        f"    def {callback}(ctx, state, params, event):\n"
        f"        if event.source != 9:\n"
        f"            return\n"
        f"{WORK.lstrip(chr(10))}"
        f"        {WRONGS[error]}\n"
    )
    file = folder / f"wrong_{callback}_{error}.py"
    file.write_text(source)
    space: dict[str, Any] = {}
    exec(compile(source, str(file), "exec"), space)
    made = space["Wrong"](compiled=compiled)
    assert isinstance(made, Strategy)
    return made


TRIGGERS = {
    "on_start": lambda: control_row("start", 20),
    "on_book": lambda: row(Kind.LEVEL, 20, px=1001, qty=1, flags=Flag.BID | Flag.LAST, a=5),
    "on_trade": lambda: row(Kind.TRADE, 20, px=1001, qty=1),
    "on_execution": lambda: report(20, 1, ExecType.ACK),
    "on_timer": lambda: row(Kind.TIMER, 20, a=1, px=20),
    "on_gap": lambda: row(Kind.BOOK_STATE, 20, code=BookState.STALE),
    "on_stop": lambda: control_row("stop", 20),
}


def before_the_fault(strategy: Any, callback: str) -> tuple[Engine, RowBuffer]:
    """Return an engine with a working order, a closed order whose slot comes next, and a pending timer."""
    engine, sink = Engine(definitions(), strategy), RowBuffer()
    for rows in (control_row("start", 1), *live_book(2)):
        engine.process(rows, sink)
    host = engine._host_at
    host_record = engine.host[0]
    room = np.zeros(ATOM_ROWS, new_rows(1).dtype)
    host_record["now_ns"], host_record["out"], host_record["out_n"] = 3, address_of(room), 0
    assert risk.submit(host, 0, BUY, 999, 5, GTC, 0) == 1
    assert risk.submit(host, 0, BUY, 998, 4, GTC, 0) == 2
    assert loop.set_timer(host, 20, 3) == 1
    host_record["out_n"] = 0
    engine.process(report(4, 1, ExecType.ACK), sink)
    engine.process(report(4, 2, ExecType.REJECT), sink)
    engine.header["next_order_id"] = 2 + 8192
    if callback == "on_start":
        engine.header["started"] = 0
    return engine, sink


def state_of(engine: Engine) -> bytes:
    raw = engine.arena.view(np.uint8).copy()
    raw[int(engine.header["off_backup"]) : int(engine.instruments["off_bids"][0])] = 0  # room for undoing, not state
    return raw.tobytes()


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("error", WRONGS)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_fault_undoes_its_callback_to_the_byte_and_tells_where_it_was(
    callback: str, error: str, compiled: bool, tmp_path: Path
) -> None:
    engine, _ = before_the_fault(failing(callback, error, tmp_path, compiled), callback)
    innocent, expected_sink = before_the_fault(Calm(), callback)
    trigger = TRIGGERS[callback]()
    trigger["source"][0] = 9
    sink = RowBuffer()
    sink.seq = expected_sink.seq
    engine.process(trigger, sink)
    rows = sink.rows()

    (fault,) = engine.faults
    assert fault.callback == callback
    assert error in fault.traceback and f"wrong_{callback}_{error}.py" in fault.traceback
    lines = (tmp_path / f"wrong_{callback}_{error}.py").read_text().splitlines()
    told = re.findall(rf'wrong_{callback}_{error}.py", line (\d+)', fault.traceback)
    assert any(word in lines[int(told[-1]) - 1] for word in ("//", "99", "raise", "while", "+= 1"))

    heads = rows[rows["kind"] != CONT]
    assert heads["kind"][1] == Kind.FAULT
    assert (heads["code"][1], heads["a"][1]) == (1, CALLBACKS.index(callback))
    assert set(heads["kind"][2:].tolist()) <= {Kind.CANCEL}, "of what it asked for, nothing was sent"
    assert 1 in heads["a"][2:].tolist(), "its orders are canceled"
    assert engine.header["strategy_halted"] == 1
    assert heads["flags"][-1] & Flag.COMMIT

    # the engine that did nothing there, then halted by hand, is in the same state
    other = RowBuffer()
    other.seq = expected_sink.seq
    innocent.process(trigger, other)
    if callback != "on_stop":
        innocent.process(control_row("cancel_all", 20), other)
    for name in ("faults", "strategy_halted", "rows_applied", "cancels"):
        innocent.header[name] = engine.header[name]
    if innocent.header["state_bytes"] == engine.header["state_bytes"]:
        assert state_of(engine) == state_of(innocent)
    else:
        pytest.fail("the two strategies must have the same layout")

    # and it goes on, deaf
    after = RowBuffer()
    after.seq = sink.seq
    engine.process(TRIGGERS["on_trade"](), after)
    assert len(after.rows()) == 1


class Calm(Strategy):
    """The layout of the wrong ones, and nothing wrong."""

    state = record(n=0, zero=0, kept=1, list=[0] * 4, f=0.5)

    def on_book(ctx, state, params, event):
        ctx.best_bid(0)


def test_an_index_past_the_end_leaves_the_rest_of_memory_alone() -> None:
    class Far(Strategy):
        state = record(list=[0] * 4, n=10**6)

        def on_trade(ctx, state, params, event):
            state.list[state.n] = 7

    engine, sink = Engine(definitions(), Far()), RowBuffer()
    engine.process(join_rows([control_row("start", 1), row(Kind.TRADE, 2)]), sink)
    assert "IndexError" in engine.faults[0].traceback or "index" in engine.faults[0].traceback


def test_a_strategy_that_exits_is_a_strategy_that_failed() -> None:
    class Leaves(PythonStrategy):
        def on_trade(self, ctx: Any, event: Any) -> None:
            raise SystemExit("bye")

    engine, _ = run(join_rows([control_row("start", 1), row(Kind.TRADE, 2)]), Leaves())
    assert "SystemExit: bye" in engine.faults[0].traceback


class Fails(Strategy):
    """Has an order out, then fails in one of three ways."""

    params = record(way=0)
    state = record(zero=0, seen=0)

    def on_start(ctx, state, params, event):
        ctx.submit(0, BUY, 1000, 1)

    def on_trade(ctx, state, params, event):
        state.seen += event.px
        if state.seen == 12 and params.way == 0:
            state.zero = 1 // state.zero
        for k in range(300_000):
            state.seen += k % 2
        while params.way == 1:
            state.seen += 1
        state.zero = 1 // state.zero


@pytest.mark.parametrize("way", [0, 1, 2])
def test_the_fault_and_the_cancels_are_out_before_anything_is_rerun(
    way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sink, rerun = Engine(definitions(), Fails(way=way)), RowBuffer(), list[str]()

    def explained(self: Engine, failed: Any) -> Fault:
        rerun.append(failed.callback)
        return Fault(failed.callback, "told")

    monkeypatch.setattr(Engine, "_explained", explained)
    engine.process(join_rows([*live_book(1), control_row("start", 2), row(Kind.TRADE, 3, px=12)]), sink)
    assert sink.rows()["kind"][-3:].tolist() == [Kind.TRADE, Kind.FAULT, Kind.CANCEL]
    assert rerun == []
    for _ in range(2):
        assert engine.faults == [Fault("on_trade", "told")]
    assert rerun == ["on_trade"]


@pytest.mark.parametrize(
    "way,words",
    [
        (0, ["state.zero = 1 // state.zero", "ZeroDivisionError"]),
        (1, ["while params.way == 1:", "RuntimeError: a loop ran more than 1,000,000 turns in one callback"]),
        (2, ["on_trade failed when compiled; as plain Python it was ended after 200,000 loop turns"]),
    ],
)
def test_a_fault_is_told_as_it_was_whatever_happened_since_and_by_a_bounded_rerun(way: int, words: list[str]) -> None:
    engine, sink = Engine(definitions(), Fails(way=way)), RowBuffer()
    engine.process(join_rows([*live_book(1), control_row("start", 2), row(Kind.TRADE, 3, px=12)]), sink)
    before = engine.arena.copy()
    engine.process(join_rows([row(Kind.TRADE, 4, px=1), report(5, 1, ExecType.CANCELED), *live_book(6)]), sink)
    after = engine.arena.copy()
    (fault,) = engine.faults
    for word in words:
        assert word in fault.traceback
    assert (engine.arena == after).all() and not (before == after).all()


def test_an_endless_loop_is_told_by_its_line_without_running_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from hftlab import engine as room

    rows = join_rows([*live_book(1), control_row("start", 2), row(Kind.TRADE, 3, px=12)])
    engine, _ = run(rows, Fails(way=1))
    with monkeypatch.context() as without:
        without.setattr(room, "counted_loops", None)
        (fault,) = engine.faults
    plain, _ = run(rows, Fails(way=1, compiled=False))
    (told,) = plain.faults
    where = r'File ".*test_engine.py", line \d+, in on_trade'
    assert re.findall(where, fault.traceback) == re.findall(where, told.traceback) != []


def test_a_python_strategy_that_never_returns_is_halted_with_its_traceback() -> None:
    class Endless(PythonStrategy):
        def on_start(self, ctx: Any, event: Any) -> None:
            ctx.submit(0, BUY, 1000, 1)

        def on_trade(self, ctx: Any, event: Any) -> None:
            while True:
                pass

    engine, out = run(join_rows([*live_book(1), control_row("start", 2), row(Kind.TRADE, 3)]), Endless())
    assert out["kind"][-3:].tolist() == [Kind.TRADE, Kind.FAULT, Kind.CANCEL]
    (fault,) = engine.faults
    assert "while True:" in fault.traceback and "200,000 turns" in fault.traceback
    assert replay(out, definitions(2), Endless()).identical


def test_an_illegal_report_is_a_fault_row_that_names_state_report_and_order() -> None:
    class One(PythonStrategy):
        def on_start(self, ctx: Any, event: Any) -> None:
            ctx.submit(0, BUY, 1000, 1)

    answers = report(3, 1, ExecType.REJECT), report(4, 1, ExecType.ACK)
    rows = join_rows([*live_book(1), control_row("start", 2), *answers])
    _, out = run(rows, One())
    (fault,) = out[out["kind"] == Kind.FAULT]
    assert (fault["code"], fault["a"], fault["b"]) == (2, 1, OrdStatus.REJECTED | ExecType.ACK << 8)


def test_a_row_of_an_unknown_instrument_is_a_fault_row() -> None:
    for instrument in (2, 77, 2**32 - 1):
        engine, out = run(row(Kind.TRADE, 1, instrument=instrument), None)
        assert (out["kind"][1], out["code"][1], out["a"][1]) == (Kind.FAULT, 3, instrument)
        assert engine.counters()["faults"] == 1


def test_a_traceback_travels_as_text_rows() -> None:
    engine = Engine(definitions())
    rows = text_rows("ü" * 9000, 5)
    engine.process(rows, sink := RowBuffer())
    out = sink.rows()
    assert out["kind"][0] == Kind.TEXT
    assert payload_bytes(out[1:]).decode(errors="ignore") == "ü" * 7000
    assert (out["span"] == len(out) - 1).all(), "payload rows repeat the head's first bytes"


def test_fault_rows_carry_callback_and_traceback() -> None:
    rows = fault_rows(Fault("on_book", "Traceback\nZeroDivisionError"), 3)
    assert payload_bytes(rows[1:]) == b"on_book\nTraceback\nZeroDivisionError"


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1])
def test_what_is_no_row_is_refused_and_the_rows_before_it_stand(kind: int) -> None:
    rows = join_rows([row(Kind.CLOCK, 1), row(kind, 2), row(Kind.CLOCK, 3)])
    engine, sink = Engine(definitions()), RowBuffer()
    with pytest.raises(ValueError, match=f"row 1 is of kind {kind}"):
        engine.process(rows, sink)
    assert len(sink.rows()) == 1


def test_a_cut_payload_and_a_head_in_a_payload_are_refused() -> None:
    text = text_rows("x" * 300, 1)
    engine, sink = Engine(definitions()), RowBuffer()
    for bad in (text[:-1], join_rows([text[:-1], row(Kind.CLOCK, 2)])):
        with pytest.raises(ValueError, match="row 0 says 6 payload rows"):
            engine.process(bad, sink)
    with pytest.raises(ValueError, match="64-byte rows"):
        engine.process(np.zeros(4, np.int64), sink)
    for wrong in (new_rows(8)[::2], new_rows(8).reshape(2, 4), new_rows(1)[0]):
        with pytest.raises(ValueError, match="contiguous"):
            engine.process(wrong, sink)
    assert len(sink.rows()) == 0


def test_a_time_out_of_this_world_does_not_stop_the_clock() -> None:
    engine, out = run(join_rows([row(Kind.CLOCK, 5), row(Kind.CLOCK, 2**63 - 1), row(Kind.CLOCK, 9)]), None)
    assert engine.header["now_ns"] == 9
    assert len(out) == 3


def test_time_never_goes_back_but_by_a_clock_step() -> None:
    engine, _ = run(join_rows([row(Kind.CLOCK, 5), row(Kind.CLOCK, 3)]), None)
    assert engine.header["now_ns"] == 5


HOUR = 3600 * SECOND


class Paced(PythonStrategy):
    """Sends an order at each trade, and asks for a timer at the first."""

    def __init__(self) -> None:
        super().__init__()
        self.fired: list[int] = []

    def on_trade(self, ctx: Any, event: Any) -> None:
        ctx.submit(0, BUY, 1000, 1, IOC)
        if event.px == 7:
            ctx.set_timer(ctx.now_ns + 10 * SECOND)
            ctx.set_timer(2**63 - 1)

    def on_timer(self, ctx: Any, event: Any) -> None:
        self.fired.append(ctx.now_ns)


def paced() -> tuple[Engine, RowBuffer, Paced]:
    """Return an engine at 10 h that has filled its rate bucket (2 orders a second), with a timer due 10 s later."""
    limits = Limits(50, 10**9, 200, 100, orders_per_s=2, max_open_orders=60)
    of = definitions()
    strategy = Paced()
    engine = Engine(Definitions("t", "sim", of.instruments, (limits,), StrategyRef("Paced", "")), strategy)
    sink, now = RowBuffer(), 10 * HOUR
    trades = [row(Kind.TRADE, now, px=px, qty=1) for px in (7, 8, 9)]
    engine.process(join_rows([control_row("start", now), *live_book(now), *trades]), sink)
    assert (engine.counters()["submits"], engine.counters()["refusals"]) == (2, 1)
    return engine, sink, strategy


@pytest.mark.parametrize("steps", [[-HOUR], [HOUR], [-HOUR, HOUR], [HOUR, -3 * HOUR, 5], [-10 * HOUR]])
def test_after_a_clock_step_orders_go_on_and_timers_keep_their_intervals(steps: list[int]) -> None:
    engine, sink, strategy = paced()
    now = 10 * HOUR
    for step in steps:
        now += step
        engine.process(row(Kind.CLOCK_STEP, now, px=step), sink)
    assert engine.header["now_ns"] == now
    assert strategy.fired == [], "the strategy is not woken"
    engine.process(row(Kind.TRADE, now, px=1), sink)
    assert engine.counters()["submits"] == 2, "no time has passed, the bucket is full"
    engine.process(row(Kind.TRADE, now + SECOND // 2, px=1), sink)
    assert engine.counters()["submits"] == 3
    assert engine.due_timer(now + 10 * SECOND - 1) is None
    timer = engine.due_timer(now + 10 * SECOND)
    assert timer is not None
    engine.process(timer, sink)
    assert strategy.fired == [now + 10 * SECOND]
    assert engine.next_deadline == 2**63 - 1, "never is never"
    assert engine.due_timer(now + 10 * SECOND) is None
    out = sink.rows()
    again = Engine(engine.definitions, Paced())
    again.process(input_rows(out), copy := RowBuffer())
    assert first_difference(out, copy.rows()) is None
    replica = Replica(engine.definitions)
    replica.apply(out)
    assert (replica.header["now_ns"], replica.header["rate_tat"]) == (now + 10 * SECOND, engine.header["rate_tat"])


def test_what_was_measured_on_the_new_time_before_the_step_was_told_stays_there() -> None:
    engine, sink, strategy = paced()
    ahead = 11 * HOUR
    engine.process(row(Kind.TRADE, ahead, px=7), sink)
    engine.process(row(Kind.CLOCK_STEP, ahead + 1, px=HOUR), sink)
    assert engine.header["rate_tat"] <= ahead + 1 + engine.header["rate_window_ns"]
    for deadline in (ahead + 10 * SECOND, ahead + 10 * SECOND):
        assert engine.next_deadline == deadline
        timer = engine.due_timer(deadline)
        assert timer is not None
        engine.process(timer, sink)
    assert strategy.fired == [ahead + 10 * SECOND] * 2


def test_one_time_far_ahead_stops_the_clock_until_a_step_of_nothing_brings_it_back() -> None:
    engine, sink, _ = paced()
    now = 10 * HOUR
    engine.process(row(Kind.TRADE, now + HOUR, px=1), sink)
    engine.process(row(Kind.TRADE, now + HOUR, px=1), sink)
    refused = engine.counters()["refusals"]
    engine.process(row(Kind.TRADE, now + 60 * SECOND, px=1), sink)
    assert (engine.counters()["refusals"], engine.header["now_ns"]) == (refused + 1, now + HOUR)
    now += 61 * SECOND
    engine.process(row(Kind.CLOCK_STEP, now), sink)
    assert (engine.header["now_ns"], engine.next_deadline) == (now, 10 * HOUR + 10 * SECOND)
    assert engine.header["rate_tat"] == now + engine.header["rate_window_ns"]
    sent = engine.counters()["submits"]
    engine.process(row(Kind.TRADE, now + SECOND // 2, px=1), sink)
    assert engine.counters()["submits"] == sent + 1


@pytest.mark.parametrize("ts,step", [(-1, 0), (2**62, 0), (5, 2**62), (5, -(2**62)), (5, -(2**63))])
def test_a_step_out_of_this_world_is_not_taken(ts: int, step: int) -> None:
    engine, sink, _ = paced()
    engine.process(row(Kind.CLOCK_STEP, ts, px=step), sink)
    assert engine.header["now_ns"] == 10 * HOUR
    assert engine.next_deadline == 10 * HOUR + 10 * SECOND


def test_random_bytes_as_rows_neither_crash_nor_hang() -> None:
    rng = np.random.default_rng(11)
    kinds = np.array([k for k in Kind if k > 1], np.uint8)
    for _ in range(30):
        rows = rng.integers(0, 256, 64 * 200, np.uint8).view(new_rows(1).dtype)
        rows["kind"], rows["span"] = rng.choice(kinds, 200), 0
        rows["instrument"] = rng.integers(0, 3, 200)
        _, out = run(join_rows([control_row("start", 1), rows]), Busy())
        assert replay(out, definitions(2), Busy()).identical
        Replica(definitions(2)).apply(out)


def test_input_rows_are_never_written_to() -> None:
    rows = stream(0, 100)
    before = rows.tobytes()
    run(rows, Busy())
    assert rows.tobytes() == before


# --- timers and control ----------------------------------------------------------------------------------------------


def test_timers_fire_by_deadline_then_by_number_and_once() -> None:
    class Clocks(PythonStrategy):
        def __init__(self) -> None:
            super().__init__()
            self.fired: list[tuple[int, int]] = []

        def on_start(self, ctx: Any, event: Any) -> None:
            assert [ctx.set_timer(at) for at in (30, 10, 20, 10)] == [1, 2, 3, 4]
            assert [ctx.set_timer(99) for _ in range(60)] == list(range(5, 65))
            assert ctx.set_timer(99) == 0, "all are pending"

        def on_timer(self, ctx: Any, event: Any) -> None:
            self.fired.append((event.a, event.px))

    strategy = Clocks()
    engine, sink = Engine(definitions(), strategy), RowBuffer()
    engine.process(control_row("start", 1), sink)
    assert (engine.next_deadline, engine.due_timer(9)) == (10, None)
    while (timer := engine.due_timer(50)) is not None:
        engine.process(timer, sink)
        engine.process(timer, sink)
    assert strategy.fired == [(2, 10), (4, 10), (3, 20), (1, 30)]


def test_stop_cancels_what_the_last_callback_left_and_start_starts_once() -> None:
    class Ends(PythonStrategy):
        starts = 0

        def on_start(self, ctx: Any, event: Any) -> None:
            self.starts += 1

        def on_stop(self, ctx: Any, event: Any) -> None:
            assert ctx.submit(0, BUY, 1000, 1) > 0

    strategy = Ends()
    rows = [*live_book(1), control_row("start", 2), control_row("start", 2), control_row("stop", 3)]
    engine, out = run(join_rows(rows), strategy)
    assert strategy.starts == 1
    assert out["kind"][-2:].tolist() == [Kind.SUBMIT, Kind.CANCEL]
    assert engine.header["started"] == 0


def test_control_words_are_known() -> None:
    with pytest.raises(Exception, match="halt"):
        control_row("explode", 1)


def test_profit_is_marked_at_the_mid_then_the_last_trade_then_cost() -> None:
    class One(PythonStrategy):
        def on_start(self, ctx: Any, event: Any) -> None:
            ctx.submit(0, BUY, 1000, 4)

    engine, sink = Engine(definitions(), One()), RowBuffer()
    engine.process(join_rows([*live_book(1), control_row("start", 2)]), sink)
    engine.process(report(3, 1, ExecType.FILL, 1000, 4), sink)
    assert engine.pnl(0)["unrealized_x2"] == 4 * 2005 - 2 * 4000
    engine.process(row(Kind.CLEAR, 4), sink)
    assert engine.pnl(0)["unrealized_x2"] == 0
    engine.process(row(Kind.TRADE, 4, px=990, qty=1), sink)
    assert engine.pnl(0)["total_x2"] == -80
    assert engine.pnl(0)["fee_quote"] == 3


# --- compiled code and memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room,name", [(loop, "run"), (loop, "set_timer"), (risk, "submit"), (risk, "replace")])
def test_the_kernels_count_no_references(
    room: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFTLAB_CACHE", str(tmp_path))  # a kernel that comes from a cache shows no code
    shipped = getattr(room, name)
    (signature,) = shipped.overloads
    (text,) = kernel(types.int64(*signature))(shipped.py_func).inspect_llvm().values()
    assert "NRT_" not in text
    assert f"{name}" in text


def _anonymous_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    pytest.skip("needs /proc/self/status")


def test_fifty_engines_leave_no_memory_behind() -> None:
    rows = stream(0, 100)

    def session() -> None:
        engine, sink = Engine(definitions(2), Busy()), RowBuffer()
        engine.process(rows, sink)
        engine.commands()

    for _ in range(5):
        session()
    gc.collect()
    before = _anonymous_kb()
    for _ in range(50):
        session()
    gc.collect()
    assert _anonymous_kb() - before < 1024
