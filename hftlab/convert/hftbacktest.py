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

Worst case accepted: prices and quantities become float64, as the format wants; orders are kept in a dict (one
instrument's live orders).

References
----------
hftbacktest, "Data", "Data Validation", and its constants of `hftbacktest.types`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
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

__all__ = ["BUY", "EVENT", "EXCH", "HftbacktestDestination", "LATENESS_NS", "LOCAL", "SELL", "scaled"]

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

_ADD, _REPLACE, _EXECUTE, _DELETE = int(Kind.ADD), int(Kind.REPLACE), int(Kind.EXECUTE), int(Kind.DELETE)
_CLEAR, _BID, _MAKER, _NON_PRINTABLE = int(Kind.CLEAR), int(Flag.BID), int(Flag.MAKER), int(Flag.NON_PRINTABLE)

Events = npt.NDArray[np.void]
_Told = tuple[int, int, int, int]
"""An event on its way: ev, ticks, lots, order id."""


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


class _Orders:
    """Turns rows about orders into events: hftbacktest wants what is left of an order, rows say what was taken off."""

    def __init__(self) -> None:
        self._held: dict[int, list[int]] = {}  # reference: side, px, qty

    def clear(self) -> None:
        self._held.clear()

    def events(self, kind: int, flags: int, reference: int, new: int, px: int, qty: int) -> list[_Told]:
        """Return the events that a row becomes; none where the order is not known."""
        side = BUY if flags & _BID else SELL
        if kind == _ADD:
            self._held[reference] = [side, px, qty]
            return [(ADD_ORDER | side, px, qty, reference)]
        held = self._held.get(reference)
        if kind == _REPLACE:
            return self._replace(reference, new, held, flags & 3, side, px, qty)
        if held is None:
            return []
        side = held[0]
        found: list[_Told] = []
        if kind == _EXECUTE:
            at = held[1] if px == NO_PX else px
            if not flags & _NON_PRINTABLE:
                found.append((TRADE | (SELL if side == BUY else BUY), at, qty, 0))
            found.append((FILL | side, at, qty, reference))
        held[2] -= held[2] if kind == _DELETE else qty
        if held[2] > 0:
            return [*found, (MODIFY_ORDER | side, held[1], held[2], reference)]
        del self._held[reference]
        return [*found, (CANCEL_ORDER | side, held[1], 0, reference)]

    def _replace(
        self, old: int, new: int, held: list[int] | None, sided: int, side: int, px: int, qty: int
    ) -> list[_Told]:
        if held is None and not sided:
            return []
        side = held[0] if held is not None and not sided else side
        found: list[_Told] = []
        if held is not None and new != old:
            del self._held[old]
            found.append((CANCEL_ORDER | held[0], held[1], 0, old))
        self._held[new] = [side, px, qty]
        what = MODIFY_ORDER if held is not None and new == old else ADD_ORDER
        return [*found, (what | side, px, qty, new)]


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
        found: list[_Told] = []
        owner: list[int] = []
        evs = self._direct(rows)["ev"].tolist()
        columns = [rows[name].tolist() for name in ("kind", "flags", "a", "b", "px", "qty")]
        for n, (kind, flags, a, b, px, qty) in enumerate(zip(*columns, strict=True)):
            if kind in _OF_ORDERS:
                events = self._orders.events(kind, flags, a, b, px, qty)
                if not events:
                    self._note("unknown orders")
            else:
                if kind == _CLEAR:
                    self._orders.clear()
                events = [(evs[n], px, qty, a if flags & _MAKER else 0)]
            found += events
            owner += [n] * len(events)
        made = np.zeros(len(found), EVENT)
        if found:
            values = np.array([f[:3] for f in found], np.int64)
            made["ev"] = values[:, 0]
            made["order_id"] = np.array([f[3] for f in found], np.uint64)
            self._fill(made, rows[owner], values[:, 1], values[:, 2])
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


def scaled(counts: npt.NDArray[np.int64], step: Any) -> npt.NDArray[np.float64]:
    """Return counts of `step` as floats, each the nearest to its decimal."""
    digits = -int(step.normalize().as_tuple().exponent)
    unit = int(step.scaleb(digits)) if digits > 0 else int(step)
    values = counts.astype(np.float64) * unit
    return values / 10.0**digits if digits > 0 else values


def _sorted(events: Events, name: str) -> Events:
    return events[np.argsort(events[name], kind="stable")]
