"""hftbacktest's npz files: rows to events of its dtype, in the order it asks for.

Model. hftbacktest replays two sequences out of one array: what the exchange did, by ``exch_ts``, and what we saw, by
``local_ts``. An event with both marks (`EXCH`, `LOCAL`) stands for both. Its rules (``validate_event_order`` in its
documentation): the exchange's events never go back in ``exch_ts``, the local ones never in ``local_ts``. Where
the venue's times are not in the order of arrival, an event is split in two. And no local time may be before the
exchange's: where our clock was behind, all local times are moved by the one amount that mends the worst case.

=====================  ===============================================================================================
row                    event
=====================  ===============================================================================================
LEVEL                  DEPTH, or DEPTH_SNAPSHOT inside a snapshot
CLEAR                  DEPTH_CLEAR of both sides
QUOTE                  DEPTH_BBO
TRADE                  TRADE with the aggressor's side; flagged MAKER (Databento's fills) FILL of the resting order
ADD                    ADD_ORDER
REPLACE                MODIFY_ORDER, or CANCEL_ORDER and ADD_ORDER where the reference changes
REDUCE, DELETE         MODIFY_ORDER with what is left, CANCEL_ORDER where nothing is
EXECUTE                TRADE (if printable), FILL, then as REDUCE
=====================  ===============================================================================================

A row that the venue did not date (Binance's bookTicker) has the venue's time of its neighbours. A delta that waited for
a snapshot was of use when the snapshot had come: ``local_ts`` never goes back along the rows. Other rows have no event
there and are counted. The file is about one instrument: hftbacktest has none in its events.

Memory. Events are laid in a file beside the destination first, since an array's header names its length, which is
known at the end. They are put in order within a window of `LATENESS_NS` and some hundred thousand events: what comes
later than that in one of the sequences is given the time of its predecessor, and counted. The npz is written from there
piece by piece.

Worst case accepted: prices and quantities become float64, as the format wants; the live orders of the one instrument
are kept, 32 bytes each in a table at most half full.

References
----------
hftbacktest, "Data", "Data Validation", and its constants of `hftbacktest.types`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hftlab.convert.destination import Destination
from hftlab.convert.source import Source
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, NAT, NO_PX, Flag, Kind, RowArray
from hftlab.kernels.jit import kernel

__all__ = ["BUY", "EVENT", "EXCH", "HftbacktestDestination", "LATENESS_NS", "LOCAL", "SELL", "fraction", "scaled"]

EVENT = np.dtype(
    [
        ("ev", "<u8"), ("exch_ts", "<i8"), ("local_ts", "<i8"), ("px", "<f8"), ("qty", "<f8"), ("order_id", "<u8"),
        ("ival", "<i8"), ("fval", "<f8"),
    ],
    align=True,
)  # fmt: skip
"""hftbacktest's ``event_dtype``."""

DEPTH, TRADE, DEPTH_CLEAR, DEPTH_SNAPSHOT, DEPTH_BBO = 1, 2, 3, 4, 5
ADD_ORDER, CANCEL_ORDER, MODIFY_ORDER, FILL = 10, 11, 12, 13
EXCH, LOCAL, BUY, SELL = 1 << 31, 1 << 30, 1 << 29, 1 << 28
LATENESS_NS = 10_000_000_000
"""How far out of order times are put right."""

_CHUNK = 1 << 16
_MOST_HELD = 1 << 17  # events that wait for their place in one of the sequences
_OF_ORDERS = tuple(int(k) for k in (Kind.ADD, Kind.REDUCE, Kind.DELETE, Kind.EXECUTE, Kind.REPLACE))
_DIRECT = {int(Kind.LEVEL): DEPTH, int(Kind.QUOTE): DEPTH_BBO, int(Kind.TRADE): TRADE, int(Kind.CLEAR): DEPTH_CLEAR}

_ADD, _REPLACE, _REDUCE, _EXECUTE, _DELETE = (
    int(kind) for kind in (Kind.ADD, Kind.REPLACE, Kind.REDUCE, Kind.EXECUTE, Kind.DELETE)
)
_CLEAR, _BID, _MAKER, _NON_PRINTABLE = int(Kind.CLEAR), int(Flag.BID), int(Flag.MAKER), int(Flag.NON_PRINTABLE)

Events = npt.NDArray[np.void]
_SLOT = np.dtype([("reference", "<u8"), ("side", "<i8"), ("px", "<i8"), ("qty", "<i8")])  # side 0: free
_TOLD = np.dtype([("ev", "<u8"), ("px", "<i8"), ("qty", "<i8"), ("order_id", "<u8"), ("owner", "<i8")])
_FEWEST_SLOTS = 1 << 12
_MOST_EVENTS = 3  # of a row: an execution's trade, fill and what is left


@kernel()
def _merge(
    exch: Any, n_exch: int, local: Any, n_local: int, final: bool, out: Any, last: Any
) -> tuple[int, int, int, int]:
    """Merge events sorted by exchange and by local time, as far as both go; return how many of each, out, and late.

    An event's number stands in ``ival`` until it is written. ``last`` holds the last time of each sequence.
    """
    i = j = n = late = 0
    while i < n_exch or j < n_local:
        if not final and (i == n_exch or j == n_local):
            break
        take_exch = i < n_exch
        take_local = j < n_local
        if take_exch and take_local:
            e, m = exch[i], local[j]
            if e.ival != m.ival:
                take_exch = e.exch_ts < m.exch_ts or (e.exch_ts == m.exch_ts and e.local_ts <= m.local_ts)
                take_local = not take_exch
        event = out[n]
        source = exch[i] if take_exch else local[j]
        event.ev = source.ev
        event.exch_ts = source.exch_ts
        event.local_ts = source.local_ts
        event.px = source.px
        event.qty = source.qty
        event.order_id = source.order_id
        event.ival = 0
        event.fval = 0.0
        was_late = False
        if take_exch:
            event.ev |= np.uint64(1 << 31)
            i += 1
            was_late = event.exch_ts < last[0]
            event.exch_ts = max(event.exch_ts, last[0])
            last[0] = event.exch_ts
        if take_local:
            event.ev |= np.uint64(1 << 30)
            j += 1
            was_late = was_late or event.local_ts < last[1]
            event.local_ts = max(event.local_ts, last[1])
            last[1] = event.local_ts
        late += 1 if was_late else 0
        n += 1
    return i, j, n, late


# --- orders ---

_USED, _UNKNOWN_ORDERS = 0, 1  # of `_Orders.head`
_MIX = np.uint64(0x9E3779B97F4A7C15)


@kernel(inline=True)
def _place_of(slots: Any, reference: int) -> int:
    """Return the slot that holds `reference`, or the free one where it would be put."""
    mask = len(slots) - 1
    at = int((np.uint64(reference) * _MIX) >> np.uint64(32)) & mask
    while slots[at].side != 0 and slots[at].reference != reference:
        at = (at + 1) & mask
    return at


@kernel(inline=True)
def _put(slots: Any, head: Any, at: int, reference: int, side: int, px: int, qty: int) -> None:
    slot = slots[at]
    if slot.side == 0:
        head[_USED] += 1
    slot.reference = reference
    slot.side = side
    slot.px = px
    slot.qty = qty


@kernel(inline=True)
def _free(slots: Any, head: Any, at: int) -> None:
    """Empty a slot, and move up those behind it that can stand nearer to their place."""
    mask = len(slots) - 1
    hole, at = at, (at + 1) & mask
    while slots[at].side != 0:
        home = int((np.uint64(slots[at].reference) * _MIX) >> np.uint64(32)) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            slots[hole].reference = slots[at].reference
            slots[hole].side = slots[at].side
            slots[hole].px = slots[at].px
            slots[hole].qty = slots[at].qty
            hole = at
        at = (at + 1) & mask
    slots[hole].side = 0
    head[_USED] -= 1


@kernel(inline=True)
def _say(out: Any, n: int, owner: int, ev: int, px: int, qty: int, order_id: Any) -> int:
    event = out[n]
    event.ev = ev
    event.px = px
    event.qty = qty
    event.order_id = order_id
    event.owner = owner
    return n + 1


@kernel()
def _move(old: Any, slots: Any, head: Any) -> None:
    """Put the orders of a table into a larger one."""
    for k in range(len(old)):
        slot = old[k]
        if slot.side != 0:
            at = _place_of(slots, slot.reference)
            _put(slots, head, at, slot.reference, slot.side, slot.px, slot.qty)


@kernel()
def _tell(rows: Any, direct: Any, slots: Any, head: Any, out: Any) -> int:
    """Write the events that rows become; return how many. Others than orders' have their ``ev`` in `direct`."""
    n = 0
    for k in range(len(rows)):
        row = rows[k]
        kind, flags, px, qty = int(row.kind), int(row.flags), int(row.px), int(row.qty)
        own = BUY if flags & _BID else SELL
        if kind == _ADD:
            _put(slots, head, _place_of(slots, row.a), row.a, own, px, qty)
            n = _say(out, n, k, ADD_ORDER | own, px, qty, row.a)
        elif kind == _REPLACE:
            at = _place_of(slots, row.a)
            held = slots[at].side
            if held == 0 and flags & 3 == 0:
                head[_UNKNOWN_ORDERS] += 1
                continue
            side = own if flags & 3 else held
            is_same = row.a == row.b
            if held != 0 and not is_same:
                n = _say(out, n, k, CANCEL_ORDER | held, slots[at].px, 0, row.a)
                _free(slots, head, at)
            _put(slots, head, _place_of(slots, row.b), row.b, side, px, qty)
            n = _say(out, n, k, (MODIFY_ORDER if held != 0 and is_same else ADD_ORDER) | side, px, qty, row.b)
        elif kind == _REDUCE or kind == _DELETE or kind == _EXECUTE:
            at = _place_of(slots, row.a)
            slot = slots[at]
            side = slot.side
            if side == 0:
                head[_UNKNOWN_ORDERS] += 1
                continue
            if kind == _EXECUTE:
                done_px = slot.px if px == NO_PX else px
                if flags & _NON_PRINTABLE == 0:
                    n = _say(out, n, k, TRADE | (SELL if side == BUY else BUY), done_px, qty, np.uint64(0))
                n = _say(out, n, k, FILL | side, done_px, qty, row.a)
            slot.qty = 0 if kind == _DELETE else slot.qty - qty
            if slot.qty > 0:
                n = _say(out, n, k, MODIFY_ORDER | side, slot.px, slot.qty, row.a)
            else:
                n = _say(out, n, k, CANCEL_ORDER | side, slot.px, 0, row.a)
                _free(slots, head, at)
        else:
            if kind == _CLEAR:
                for s in range(len(slots)):
                    slots[s].side = 0
                head[_USED] = 0
            n = _say(out, n, k, direct[k], px, qty, row.a if flags & _MAKER else np.uint64(0))
    return n


class _Orders:
    """Turns rows about orders into events: hftbacktest wants what is left of an order, rows say what was taken off.

    The live orders are in a hash table with open addressing, at most half full: it is grown before a block that could
    fill it, since a row adds at most one order.
    """

    def __init__(self) -> None:
        self._slots = np.zeros(_FEWEST_SLOTS, _SLOT)
        self.head = np.zeros(2, np.int64)

    def events(self, rows: RowArray, direct: npt.NDArray[np.uint64]) -> npt.NDArray[np.void]:
        """Return the events, with the index of the row each comes from; unknown orders are counted in `head`."""
        size = len(self._slots)
        while size < 2 * (int(self.head[_USED]) + len(rows)):
            size *= 2
        if size > len(self._slots):
            old, self._slots = self._slots, np.zeros(size, _SLOT)
            self.head[_USED] = 0
            _move(old, self._slots, self.head)
        out = np.zeros(_MOST_EVENTS * len(rows), _TOLD)
        return out[: _tell(np.ascontiguousarray(rows), direct, self._slots, self.head, out)]


class HftbacktestDestination(Destination):
    """One npz file with the array ``data`` of `EVENT`, about one instrument.

    Raises
    ------
    ConfigError
        When rows of a second instrument come.
    """

    format = "hftbacktest"

    def __init__(self, path: Path, source: Source, *, overwrite: bool = False) -> None:
        super().__init__(path, source, overwrite=overwrite)
        self._laid = self.part.with_suffix(".events")
        self._file: BinaryIO = self._laid.open("wb+")
        self._instrument: Instrument | None = None
        self._orders = _Orders()
        self._n = 0
        self._latency = 0
        self._exch_ts = self._local_ts = NAT

    def write(self, rows: RowArray, seqs: npt.NDArray[np.int64]) -> None:
        """Lay down the events of a block."""
        rows = rows[(rows["kind"] != CONT) & (rows["kind"] < Kind.SUBMIT)]
        rows = rows[rows["kind"] != Kind.BOOK_STATE]
        told = np.isin(rows["kind"], [*_DIRECT, *_OF_ORDERS])
        self._note("rows without an event", int(len(rows) - told.sum()))
        rows = rows[told]
        if not len(rows):
            return
        ids = np.unique(rows["instrument"]).tolist()
        if self._instrument is None:
            known = {i.id: i for i in self.source.instruments}
            if ids[0] not in known:
                raise ConfigError(f"instrument {ids[0]} is not defined; its prices cannot be told")
            self._instrument = known[ids[0]]
        if ids != [self._instrument.id]:
            names = ", ".join(i.symbol for i in self.source.instruments[:5])
            raise ConfigError(f"hftbacktest's files hold one instrument; choose one with --symbol, such as {names}")
        events = self._direct(rows) if not np.isin(rows["kind"], _OF_ORDERS).any() else self._by_order(rows)
        self._date(events)
        events["ival"] = self._n + np.arange(len(events))
        self._n += len(events)
        self._latency = min(self._latency, int((events["local_ts"] - events["exch_ts"]).min(initial=0)))
        self._file.write(events.tobytes())

    def _direct(self, rows: RowArray) -> Events:
        """Return one event a row, for rows about prices."""
        assert self._instrument is not None
        events = np.zeros(len(rows), EVENT)
        flags, kinds = rows["flags"].astype(np.int64), rows["kind"]
        what = np.array([_DIRECT.get(k, 0) for k in range(256)], np.uint64)[kinds]
        what[(kinds == Kind.LEVEL) & (flags & int(Flag.SNAPSHOT) != 0)] = DEPTH_SNAPSHOT
        what[(kinds == Kind.TRADE) & (flags & int(Flag.MAKER) != 0)] = FILL
        is_bid, is_ask = flags & int(Flag.BID) != 0, flags & int(Flag.ASK) != 0
        swap = what == FILL  # the row's flag is the aggressor's, a fill's side the resting order's
        is_bid, is_ask = np.where(swap, is_ask, is_bid), np.where(swap, is_bid, is_ask)
        events["ev"] = what | np.where(is_bid, BUY, 0).astype(np.uint64) | np.where(is_ask, SELL, 0).astype(np.uint64)
        events["order_id"] = np.where(swap, rows["a"], 0)
        self._fill(events, rows, rows["px"], rows["qty"])
        return events

    def _by_order(self, rows: RowArray) -> Events:
        """Return the events of rows about orders, and of what stands between them."""
        unknown = int(self._orders.head[_UNKNOWN_ORDERS])
        told = self._orders.events(rows, self._direct(rows)["ev"])
        self._note("unknown orders", int(self._orders.head[_UNKNOWN_ORDERS]) - unknown)
        made = np.zeros(len(told), EVENT)
        made["ev"], made["order_id"] = told["ev"], told["order_id"]
        self._fill(made, rows[told["owner"]], told["px"], told["qty"])
        return made

    def _fill(self, events: Events, rows: RowArray, px: npt.NDArray[np.int64], qty: npt.NDArray[np.int64]) -> None:
        assert self._instrument is not None
        tick, lot = self._instrument.tick_size, self._instrument.lot_size
        events["px"] = np.where(px == NO_PX, np.nan, scaled(px, tick))
        events["qty"] = scaled(qty, lot)
        events["local_ts"] = rows["ts_recv"]
        events["exch_ts"] = rows["ts_event"]
        clear = rows["kind"] == Kind.CLEAR
        events["px"][clear] = 0.0

    def _date(self, events: Events) -> None:
        """Give what the venue did not date the venue's time before it, or after it if that is earlier.

        Our own clock may be seconds away from the venue's. The deltas that join a snapshot are older than what came
        before it, and must not overtake it.
        """
        if not len(events):
            return
        events["local_ts"] = np.maximum.accumulate(np.maximum(events["local_ts"], self._local_ts))
        self._local_ts = int(events["local_ts"][-1])
        known = np.flatnonzero(events["exch_ts"] != NAT)
        if not len(known):
            events["exch_ts"] = events["local_ts"] if self._exch_ts == NAT else self._exch_ts
            return
        before = np.searchsorted(known, np.arange(len(events)), "right") - 1
        carried = events["exch_ts"][known[0]] if self._exch_ts == NAT else self._exch_ts
        stamps = events["exch_ts"][known]
        following = stamps[np.minimum(np.searchsorted(known, np.arange(len(events))), len(known) - 1)]
        events["exch_ts"] = np.minimum(np.where(before >= 0, stamps[before], carried), following)
        self._exch_ts = int(stamps[-1])

    def _note(self, what: str, count: int = 1) -> None:
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    # --- order and archive ---

    def _chunks(self) -> Iterator[Events]:
        self._file.seek(0)
        while len(raw := self._file.read(_CHUNK * EVENT.itemsize)):
            events: Events = np.frombuffer(raw, EVENT).copy()
            events["local_ts"] -= self._latency
            yield events

    def _ordered(self) -> Iterator[tuple[Events, int]]:
        """Yield events in the order of the rules, and how many of them were late."""
        exch = local = np.zeros(0, EVENT)
        last = np.full(2, NAT, np.int64)
        latest = [NAT, NAT]
        for chunk in self._chunks():
            exch = _sorted(np.concatenate([exch, chunk]), "exch_ts")
            local = _sorted(np.concatenate([local, chunk]), "local_ts")
            latest = [max(latest[0], int(exch["exch_ts"][-1])), max(latest[1], int(local["local_ts"][-1]))]
            n_exch = int(np.searchsorted(exch["exch_ts"], latest[0] - LATENESS_NS, "right"))
            n_local = int(np.searchsorted(local["local_ts"], latest[1] - LATENESS_NS, "right"))
            n_exch, n_local = (max(n, len(exch) - _MOST_HELD) for n in (n_exch, n_local))
            out = np.zeros(n_exch + n_local, EVENT)
            i, j, n, late = _merge(exch, n_exch, local, n_local, False, out, last)
            exch, local = exch[i:], local[j:]
            yield out[:n], int(late)
        out = np.zeros(len(exch) + len(local), EVENT)
        _, _, n, late = _merge(exch, len(exch), local, len(local), True, out, last)
        yield out[:n], int(late)

    def _close(self, whole: bool) -> None:
        try:
            if whole:
                self._archive()
        finally:
            self._file.close()
            self._laid.unlink(missing_ok=True)

    def _archive(self) -> None:
        n = late = 0
        for events, more in self._ordered():
            n, late = n + len(events), late + more
        self._note("events", n)
        self._note("late events", late)
        self._note("local clock moved by ns", -self._latency)
        header = BytesIO()
        shape = {"descr": np.lib.format.dtype_to_descr(EVENT), "fortran_order": False, "shape": (n,)}
        np.lib.format.write_array_header_1_0(header, shape)
        with (
            zipfile.ZipFile(self.part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("data.npy", "w", force_zip64=True) as member,
        ):
            member.write(header.getvalue())
            for events, _ in self._ordered():
                member.write(events.tobytes())


def fraction(step: Decimal) -> tuple[float, float]:
    """Return what to multiply counts of `step` by and then divide by, for floats each the nearest to its decimal.

    Examples
    --------
    >>> fraction(Decimal("0.25")), fraction(Decimal("10"))
    ((25.0, 100.0), (10.0, 1.0))
    """
    digits = -int(step.normalize().as_tuple().exponent)
    return (float(int(step.scaleb(digits))), 10.0**digits) if digits > 0 else (float(int(step)), 1.0)


def scaled(counts: npt.NDArray[np.int64], step: Decimal) -> npt.NDArray[np.float64]:
    """Return counts of `step` as floats, each the nearest to its decimal."""
    unit, divisor = fraction(step)
    return counts.astype(np.float64) * unit / divisor


def _sorted(events: Events, name: str) -> Events:
    return events[np.argsort(events[name], kind="stable")]
