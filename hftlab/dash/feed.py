"""The view-model: one reader of a session's journal, and the bounded history that a dashboard draws.

**Model.** A `SessionFeed` follows the journal with a `Replica`: state is whatever the rows say, never what a trader
says about itself. `advance` takes what is new, a bounded time long, and cuts it at every tenth of a second of *journal*
time to take a sample; so the history of a page opened an hour late is the history of one that was open all along.

**Promise.** Integers throughout (ticks, lots, ns): this room turns them into decimals where it draws. All memory is
bounded: ten minutes of samples, the last fills, latencies and faults. Missing is `NO_PX`, never 0.

**Why one feed for many pages.** Following costs a few hundred ns a row and is the same for every page of a process, so
pages share a feed and each remembers how much of it it has drawn (`Track.since`).

**Worst case accepted.** A long journal is read from its first row, because position and P&L are its sum: some millions
of rows a second, in slices that leave the pages responsive, with the progress shown. If the first rows have been
rotated away, position and P&L count from the oldest row left, and `note` says so.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError, JournalError, ReaderBehind
from hftlab.core.rows import CONT, NO_PX, ExecType, Flag, Kind, OrdStatus, Reason, RowArray, Side, payload_bytes
from hftlab.engine import CONTROL, Replica
from hftlab.journal import JournalReader, bounds
from hftlab.kernels.latency import LATENCY_FILE, Histogram, Latency
from hftlab.kernels.loop import FAULT_INSTRUMENT, FAULT_REPORT, FAULT_STRATEGY
from hftlab.kernels.state import CALLBACKS

__all__ = ["FILL_COLUMNS", "FaultNote", "SAMPLE_COLUMNS", "SAMPLE_NS", "SessionFeed", "Track"]

SAMPLE_NS = 100_000_000
"""Journal time between two samples."""

SAMPLE_COLUMNS = ["ts", "bid", "ask", "own_bid", "own_ask", "position", "pnl_x2", "fee_quote", "fee_base"]
"""A sample: ns; best prices and best own working prices (ticks); lots; twice the P&L (ticks x lots); fees (1e-8)."""

FILL_COLUMNS = ["ts", "px", "qty", "side", "maker", "seq"]
"""A fill: ns, ticks, lots, `Side`, 1 if we were the maker, number of its REPORT row."""

_HISTORY_NS = 600_000_000_000
_SAMPLES = _HISTORY_NS // SAMPLE_NS
_BREAK_NS = 1_000_000_000  # a longer silence is a hole in the history, not a straight line through it
_FILLS, _LATENCIES, _FAULTS, _KEYS = 2000, 4096, 20, 8192
_POLL_ROWS = 16384
_RETRY_S = 1.0

_MARKET_KINDS = np.array([Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.TRADE], np.uint8)
_ORDER_KINDS = np.array([Kind.SUBMIT, Kind.REPLACE_ORDER], np.uint8)
_TOLD_KINDS = np.array([Kind.FAULT, Kind.TEXT, Kind.CONTROL, Kind.RESTART], np.uint8)
_CONTROL_WORDS = {code: word for word, code in CONTROL.items()}


class Track:
    """The last rows of a table of int64 columns.

    Parameters
    ----------
    columns : list of str
    capacity : int
        Rows remembered; older ones are overwritten.

    Attributes
    ----------
    n : int
        Rows ever appended: a view that has drawn up to `n` asks for what came since.

    Examples
    --------
    >>> track = Track(["ts", "px"], capacity=3)
    >>> for k in range(5):
    ...     track.append(k, 10 * k)
    >>> track.since(0)["px"].tolist(), track.since(4)["px"].tolist(), track.n
    ([20, 30, 40], [40], 5)
    """

    def __init__(self, columns: list[str], capacity: int) -> None:
        self.columns = columns
        self.capacity = capacity
        self.n = 0
        self._rows = np.zeros((capacity, len(columns)), np.int64)

    def append(self, *values: int) -> None:
        """Append one row, in the order of the columns."""
        self._rows[self.n % self.capacity] = values
        self.n += 1

    def since(self, start: int) -> dict[str, npt.NDArray[np.int64]]:
        """Return the rows from number `start` on, as far as they are remembered, by column (copies)."""
        first = max(start, self.n - self.capacity, 0)
        taken = self._rows[np.arange(first, max(self.n, first)) % self.capacity]
        return {name: taken[:, k].copy() for k, name in enumerate(self.columns)}


@dataclass(slots=True)
class FaultNote:
    """Something that went wrong, in words.

    Parameters
    ----------
    seq, ts : int
        Number and time (ns) of its row.
    code : int
        Code of the FAULT row, 0 for a note.
    words : str
        One sentence.
    text : str
        The traceback, where the journal holds one.
    """

    seq: int
    ts: int
    code: int
    words: str
    text: str = ""


class _OrderTimes:
    """When the last order rows were written, by row number: an order row's SENT follows within milliseconds."""

    _SLOTS = 65536

    def __init__(self) -> None:
        self._seq = np.full(self._SLOTS, -1, np.int64)
        self._ts = np.zeros(self._SLOTS, np.int64)

    def write(self, seq: npt.NDArray[np.int64], ts: npt.NDArray[np.int64]) -> None:
        self._seq[seq % self._SLOTS] = seq
        self._ts[seq % self._SLOTS] = ts

    def latencies(self, seq: npt.NDArray[np.int64], ts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        known = self._seq[seq % self._SLOTS] == seq
        took: npt.NDArray[np.int64] = ts[known] - self._ts[seq[known] % self._SLOTS]
        return took


class SessionFeed:
    """What a session's journal says, kept up to date by `advance`.

    Parameters
    ----------
    folder : Path
        The session's folder; its journal need not exist yet.

    Attributes
    ----------
    definitions : Definitions or None
        None until the journal exists.
    replica : Replica or None
        State after the last row taken; replaced by a new one when the reader attaches again.
    generation : int
        Counts attachments: when it changes, a view draws anew.
    waiting : str
        Why there is nothing to show, empty once the journal is being followed.
    note : str
        What a reader of the page must know about it (rows rotated away), or empty.
    progress : float
        Share of the journal taken in, 1.0 when at its end.
    last_ts : int
        Time of the newest row, ns; 0 before the first.
    last_control : str
        Last CONTROL row's word (start, stop, halt, resume, cancel_all), or empty; a stop stays until the next start.
    restarts : int
        RESTART rows: how often the trader came back through recovery.
    market_ts, feed_latency_ns : int64 arrays
        By instrument: our receive time of its newest market row (0 = none); receive minus venue time, NO_PX if unknown.
    market_sources : int64 array
        By instrument: the source number of that row, which feed process brought it.
    samples, fills : list of Track
        By instrument.
    latencies_ns : int64 array
        Tick-to-order times of the last orders: real send time minus receipt of the row that caused the order.
    refusals : int64 array
        Count by `Reason`.
    faults : deque of FaultNote
        The last 20, oldest first.

    Examples
    --------
    >>> feed = SessionFeed(Path("/no/such/session"))
    >>> feed.advance()
    >>> feed.waiting
    'no journal in /no/such/session yet: it appears when the session starts'
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.journal = self.folder / "journal"
        self.waiting = f"no journal in {self.folder} yet: it appears when the session starts"
        self.note = ""
        self.generation = 0
        self._reader: JournalReader | None = None
        self._retry_at = 0.0
        self._latency: Latency | None = None
        self._latency_inode = 0
        self._reset(None)

    def _reset(self, definitions: Definitions | None) -> None:
        n = len(definitions.instruments) if definitions else 0
        self.generation += 1
        self.definitions = definitions
        self.replica = Replica(definitions) if definitions else None
        self.progress = 0.0
        self.last_ts = 0
        self.last_control = ""
        self.restarts = 0
        self.market_ts = np.zeros(n, np.int64)
        self.market_sources = np.zeros(n, np.int64)
        self.feed_latency_ns = np.full(n, NO_PX, np.int64)
        self.samples = [Track(SAMPLE_COLUMNS, _SAMPLES) for _ in range(n)]
        self.fills = [Track(FILL_COLUMNS, _FILLS) for _ in range(n)]
        self.latencies_ns = np.zeros(0, np.int64)
        self.refusals = np.zeros(len(Reason), np.int64)
        self.faults: deque[FaultNote] = deque(maxlen=_FAULTS)
        self._order_ts = np.zeros(0, np.int64)
        self._order_times = _OrderTimes()
        self._fill_keys: dict[tuple[int, int], None] = {}
        self._tick = self._first_tick = self._end = 0

    # --- beside the journal ------------------------------------------------------------------------------------------

    def hops(self) -> dict[str, Histogram]:
        """Return the histogram of every hop since the trader's start, from the file it keeps; empty if there is none.

        A trader that starts anew makes a new file: the old one, still mapped here, is let go.
        """
        path = self.folder / LATENCY_FILE
        try:
            inode = path.stat().st_ino
            if self._latency is None or inode != self._latency_inode:
                self._latency, self._latency_inode = Latency.open(path), inode
        except (OSError, ConfigError):
            self._latency = None
            return {}
        return self._latency.histograms()

    # --- following ---------------------------------------------------------------------------------------------------

    def advance(self, budget_s: float = 0.04) -> None:
        """Take in new rows for about `budget_s` seconds at most.

        Never raises for a journal that is not there, cannot be read or has moved on: `waiting` and `note` say so.
        """
        try:
            if self._reader is None and not self._attach():
                return
            self._drain(time.monotonic() + budget_s)
        except ReaderBehind as error:
            self._reader = None
            self._retry_at = 0.0
            self.waiting = f"fell behind the journal and attaches again: {error}"
        except JournalError as error:
            self._reader = None
            self.waiting = str(error)

    def _attach(self) -> bool:
        now = time.monotonic()
        if now < self._retry_at or not self.journal.is_dir():
            return False
        self._retry_at = now + _RETRY_S
        oldest, end = bounds(self.journal)
        newest = self._newest_ts(oldest, end)
        self._reader = JournalReader(self.journal, start=oldest)
        self._reset(Definitions.from_dict(self._reader.definitions))
        self._end = end
        self._first_tick = max(0, newest - _HISTORY_NS) // SAMPLE_NS
        self.waiting = ""
        self.note = (
            f"rows before {oldest:,} have been rotated away: position, P&L and counts are those since row {oldest:,}"
            if oldest
            else ""
        )
        return True

    def _newest_ts(self, oldest: int, end: int) -> int:
        """Return the time of the last row before `end`, so that only the history that is drawn is sampled."""
        if end == oldest:
            return 0
        reader = JournalReader(self.journal, start=end - 1)
        times = reader.poll()["ts_recv"]
        reader.close()
        return int(times.max()) if len(times) else 0

    def _drain(self, until: float) -> None:
        reader, replica = self._reader, self.replica
        assert reader is not None and replica is not None
        while True:
            rows = reader.poll(_POLL_ROWS)
            if len(rows) == 0:
                self.progress = 1.0
                return
            self._harvest(rows)
            self._apply(replica, rows)
            self.progress = min(1.0, reader.position / max(self._end, 1))
            if time.monotonic() >= until:
                return

    def _apply(self, replica: Replica, rows: RowArray) -> None:
        """Apply `rows`, stopping for a sample wherever a tenth of a second ends."""
        heads = np.flatnonzero(rows["kind"] != CONT)
        if len(heads) == 0:
            return
        times = np.maximum.accumulate(rows["ts_recv"][heads])
        ticks = np.maximum(times // SAMPLE_NS, self._tick)
        before = np.concatenate(([self._tick], ticks[:-1]))
        cuts = heads[(ticks > before) & (ticks > self._first_tick)]
        start = 0
        for cut in [*cuts.tolist(), len(rows)]:
            replica.apply(rows[start:cut])
            if cut < len(rows) and replica.header["now_ns"]:  # before the first row there is nothing to sample
                self._sample(replica)
            start = cut
        self._tick = int(ticks[-1])
        self.last_ts = max(self.last_ts, int(times[-1]))

    def _sample(self, replica: Replica) -> None:
        ts = int(replica.header["now_ns"])
        working = replica.open_orders()
        for k, track in enumerate(self.samples):
            own = working[working["instrument"] == k]
            buys, sells = own["px"][own["side"] == Side.BUY], own["px"][own["side"] == Side.SELL]
            bid, _, ask, _ = replica.touch(k)
            pnl = replica.pnl(k)
            if track.n and ts - track.since(track.n - 1)["ts"][0] > _BREAK_NS:
                track.append(ts - SAMPLE_NS, *[NO_PX] * (len(SAMPLE_COLUMNS) - 1))
            track.append(
                ts, bid, ask,
                int(buys.max()) if len(buys) else NO_PX, int(sells[sells > 0].min()) if (sells > 0).any() else NO_PX,
                pnl["position"], pnl["total_x2"], pnl["fee_quote"], pnl["fee_base"],
            )  # fmt: skip

    # --- what rows say beyond the state ------------------------------------------------------------------------------

    def _harvest(self, rows: RowArray) -> None:
        kind = rows["kind"]
        self._harvest_market(rows, kind)
        orders = rows[np.isin(kind, _ORDER_KINDS)]
        if len(orders):
            ts = orders["ts_recv"].astype(np.int64)
            self._order_times.write(orders["seq"].astype(np.int64), ts)
            self._order_ts = np.concatenate([self._order_ts, ts])[-_LATENCIES:]
        sent = rows[kind == Kind.SENT]
        if len(sent):
            seq = (sent["b"] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            new = self._order_times.latencies(seq, sent["ts_event"].astype(np.int64))
            self.latencies_ns = np.concatenate([self.latencies_ns, new])[-_LATENCIES:]
        refused = rows[kind == Kind.REFUSED]
        if len(refused):
            reasons = np.minimum(refused["code"], len(Reason) - 1)
            np.add.at(self.refusals, reasons, np.maximum(refused["a"], 1).astype(np.int64))
        for row in rows[(kind == Kind.REPORT) & (rows["code"] & 255 == ExecType.FILL)]:
            self._fill(row)
        for at in np.flatnonzero(np.isin(kind, _TOLD_KINDS)).tolist():
            self._told(rows, at)

    def _harvest_market(self, rows: RowArray, kind: npt.NDArray[np.uint8]) -> None:
        market = rows[np.isin(kind, _MARKET_KINDS)]
        for k in np.unique(market["instrument"]).tolist():
            if k >= len(self.market_ts):
                continue  # the engine wrote a FAULT row about it
            last = market[market["instrument"] == k][-1]
            self.market_ts[k] = max(int(self.market_ts[k]), int(last["ts_recv"]))
            self.market_sources[k] = last["source"]
            event = int(last["ts_event"])
            self.feed_latency_ns[k] = int(last["ts_recv"]) - event if event > 0 else NO_PX

    def _fill(self, row: Any) -> None:
        key = (int(row["a"]), int(row["b"]))
        instrument = int(row["instrument"])
        if key in self._fill_keys or instrument >= len(self.fills):
            return
        self._fill_keys[key] = None
        if len(self._fill_keys) > _KEYS:
            del self._fill_keys[next(iter(self._fill_keys))]
        flags = int(row["flags"])
        side = Side.BUY if flags & Flag.BID else Side.SELL
        maker = 1 if flags & Flag.MAKER else 0
        ts, px, qty, seq = (int(row[name]) for name in ("ts_recv", "px", "qty", "seq"))
        self.fills[instrument].append(ts, px, qty, side, maker, seq)

    def _told(self, rows: RowArray, at: int) -> None:
        row = rows[at]
        kind = int(row["kind"])
        if kind == Kind.CONTROL:
            word = _CONTROL_WORDS.get(int(row["code"]), self.last_control)
            if self.last_control != "stop" or word == "start":  # what follows a stop only clears up
                self.last_control = word
        elif kind == Kind.RESTART:
            self.restarts += 1
            self.last_control = "restart"
        elif kind == Kind.FAULT:
            code = int(row["code"])
            words = _fault_words(code, int(row["a"]), int(row["b"]))
            self.faults.append(FaultNote(int(row["seq"]), int(row["ts_recv"]), code, words))
        else:
            self._text(rows, at)

    def _text(self, rows: RowArray, at: int) -> None:
        """Take a TEXT row: the traceback of the strategy's fault before it, else a note by itself."""
        row = rows[at]
        try:
            text = payload_bytes(rows[at + 1 : at + 1 + int(row["span"])]).decode(errors="replace")
        except ValueError as error:
            text = f"(unreadable text: {error})"
        untold = [fault for fault in self.faults if fault.code == FAULT_STRATEGY and not fault.text]
        if untold:
            untold[-1].text = text
        else:
            self.faults.append(FaultNote(int(row["seq"]), int(row["ts_recv"]), 0, "note", text))

    # --- reading -----------------------------------------------------------------------------------------------------

    def orders_last_second(self) -> int:
        """Return how many orders and replaces were made in the last second of journal time (4,096 at most)."""
        return int((self._order_ts > self.last_ts - 1_000_000_000).sum())

    def limits_used(self, instrument: int) -> list[tuple[str, int, int]]:
        """Return (limit, used, allowed) for each limit of an instrument, in ticks, lots and counts.

        Position counts every working order of its worse side as filled; the order limits show the largest open order.
        """
        replica, definitions = self.replica, self.definitions
        if replica is None or definitions is None:
            return []
        limits, inst = definitions.limits[instrument], replica.instruments[instrument]
        working = replica.open_orders()
        own = working[working["instrument"] == instrument]
        position = int(inst["position"])
        worst = max(position + int(inst["working_buy"]), int(inst["working_sell"]) - position, abs(position))
        priced = own[own["px"] > 0]
        bid, _, ask, _ = replica.touch(instrument)
        far = 0
        if len(priced) and bid != NO_PX and ask != NO_PX:
            far = int((np.abs(2 * priced["px"] - bid - ask).max() + 1) // 2)
        return [
            ("position", worst, limits.max_position),
            ("order_qty", int(own["order_qty"].max()) if len(own) else 0, limits.max_order_qty),
            ("notional", max((int(o["px"]) * int(o["order_qty"]) for o in priced), default=0), limits.max_notional),
            ("collar", far, limits.collar_ticks),
            ("open_orders", len(working), min(limit.max_open_orders for limit in definitions.limits)),
            ("order_rate", self.orders_last_second(), min(limit.orders_per_s for limit in definitions.limits)),
        ]

    def own_lots(self, instrument: int) -> dict[tuple[int, int], int]:
        """Return the open lots of own working orders by (side, px ticks)."""
        if self.replica is None:
            return {}
        own: dict[tuple[int, int], int] = {}
        for order in self.replica.open_orders():
            if int(order["instrument"]) == instrument:
                key = (int(order["side"]), int(order["px"]))
                own[key] = own.get(key, 0) + int(order["order_qty"]) - int(order["cum_qty"])
        return own


def _fault_words(code: int, a: int, b: int) -> str:
    if code == FAULT_STRATEGY:
        callback = CALLBACKS[a] if a < len(CALLBACKS) else f"callback {a}"
        return f"the strategy failed in {callback}: it is halted and its orders are canceled"
    if code == FAULT_REPORT:
        status, exec_type = b & 255, b >> 8
        state = OrdStatus(status).name if status in OrdStatus.__members__.values() else str(status)
        report = ExecType(exec_type).name if exec_type in ExecType.__members__.values() else str(exec_type)
        return f"an illegal report: {report} for order {a} in state {state}; it changed nothing"
    if code == FAULT_INSTRUMENT:
        return f"a row named instrument {a}, which this session does not have"
    return f"fault {code} (a={a}, b={b})"
