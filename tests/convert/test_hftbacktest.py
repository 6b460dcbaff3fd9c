"""hftbacktest's npz: its dtype, its flags, its rules of order, and the book its events lead to."""

from __future__ import annotations

import zipfile
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.books import L2Book, L3Book
from hftlab.convert import hftbacktest as hb
from hftlab.convert.formats import open_source
from hftlab.convert.hftbacktest import BUY, EVENT, EXCH, LOCAL, SELL, HftbacktestDestination
from hftlab.convert.run import convert
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import NO_PX, Flag, Kind, RowArray, new_rows
from hftlab.journal import JournalWriter

DOCUMENTED = np.dtype(
    [
        ("ev", "u8"), ("exch_ts", "i8"), ("local_ts", "i8"), ("px", "f8"), ("qty", "f8"), ("order_id", "u8"),
        ("ival", "i8"), ("fval", "f8"),
    ],
    align=True,
)  # fmt: skip


def _load(path: Path) -> npt.NDArray[Any]:
    with np.load(path) as archive:
        events: npt.NDArray[Any] = archive["data"]
    return events


def _check_order(events: npt.NDArray[Any]) -> None:
    """The documented rules of `validate_event_order`, and no negative latency."""
    exch, local = (events[events["ev"] & np.uint64(bit) != 0] for bit in (EXCH, LOCAL))
    assert (np.diff(exch["exch_ts"]) >= 0).all(), "exchange events are in order"
    assert (np.diff(local["local_ts"]) >= 0).all(), "local events are in order"
    assert (events["local_ts"] >= events["exch_ts"]).all()
    assert ((events["ev"] & np.uint64(EXCH | LOCAL)) != 0).all()


def _journal(folder: Path, rows: RowArray) -> Path:
    instrument = Instrument(0, "test", "X", Decimal("0.01"), Decimal("0.1"))
    with JournalWriter(folder, {"instruments": [instrument.to_dict()]}, fsync_ms=None) as writer:
        writer.append(rows)
    return folder


def test_the_recorded_capture_gives_a_file_as_documented(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "binance" / "btcusdt_20240808.gz"
    done = convert(source, tmp_path / "btc.npz")
    events = _load(tmp_path / "btc.npz")
    assert events.dtype == DOCUMENTED == EVENT
    assert len(events) == done.notes["events"]
    _check_order(events)
    kinds = events["ev"] & np.uint64(0xFF)
    seen = events[events["ev"] & np.uint64(LOCAL) != 0]
    rows = [block.copy() for block in open_source(source)]
    told = {kind: sum(int((b["kind"] == kind).sum()) for b in rows) for kind in (Kind.TRADE, Kind.LEVEL, Kind.QUOTE)}
    counted = {n: int((seen["ev"] & np.uint64(0xFF) == n).sum()) for n in (hb.TRADE, hb.DEPTH, hb.DEPTH_SNAPSHOT)}
    assert counted[hb.TRADE] == told[Kind.TRADE]
    assert counted[hb.DEPTH] + counted[hb.DEPTH_SNAPSHOT] == told[Kind.LEVEL]
    assert counted[hb.DEPTH_SNAPSHOT] > 0 and set(np.unique(kinds).tolist()) == {1, 2, 3, 4, 5}
    assert done.notes["local clock moved by ns"] > 0, "the recorder's clock was behind the venue's"


def test_events_of_the_capture_lead_to_the_same_book_by_either_clock(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "binance" / "btcusdt_20240808.gz"
    convert(source, tmp_path / "btc.npz")
    events, ours = _load(tmp_path / "btc.npz"), L2Book(5000)
    for block in open_source(source):
        ours.apply(block)
    depth = ours.depth(n=5000)
    told = {BUY: dict(zip(*depth.bids[:2], strict=True)), SELL: dict(zip(*depth.asks[:2], strict=True))}
    for mark in (EXCH, LOCAL):
        book: dict[int, dict[int, int]] = {BUY: {}, SELL: {}}
        for ev, px, qty in events[events["ev"] & np.uint64(mark) != 0][["ev", "px", "qty"]].tolist():
            if ev & 0xFF in (hb.DEPTH, hb.DEPTH_SNAPSHOT):
                side, tick = book[BUY if ev & BUY else SELL], round(px * 100)
                side.pop(tick, None)
                if qty:
                    side[tick] = round(qty * 1_000_000)
            elif ev & 0xFF == hb.DEPTH_CLEAR:
                book = {BUY: {}, SELL: {}}
        assert book == told


def test_order_events_lead_to_the_same_orders(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "itch" / "synthetic_8009.itch"
    day = date(2024, 1, 2)
    convert(source, tmp_path / "aapl.npz", date=day, symbols=["AAPL"])
    events, book = _load(tmp_path / "aapl.npz"), L3Book()
    _check_order(events)
    opened = open_source(source, date=day)
    (number,) = (i.id for i in opened.instruments if i.symbol == "AAPL")
    for block in opened:
        book.apply(block[block["instrument"] == number])
    live: dict[int, tuple[int, int, int]] = {}
    for ev, px, qty, order in events[["ev", "px", "qty", "order_id"]].tolist():
        if ev & 0xFF in (hb.ADD_ORDER, hb.MODIFY_ORDER):
            assert (ev & 0xFF == hb.ADD_ORDER) != (order in live)
            live[order] = ev & (BUY | SELL), round(px * 10_000), round(qty)
        elif ev & 0xFF == hb.CANCEL_ORDER:
            del live[order]
    assert len(live) == len(book) > 100
    for order, (side, px, qty) in live.items():
        known = book.order(order)
        assert known is not None and (known.is_bid, known.px, known.qty) == (side == BUY, px, qty)


class _PlainOrders:
    """The rows of orders to events, one by one, with a dict: what the kernel is held to."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}  # reference: side, px, qty
        self.unknown = 0

    def events(self, row: Any, direct: int) -> list[tuple[int, int, int, int]]:
        kind, flags, ref, new, px, qty = (int(row[name]) for name in ("kind", "flags", "a", "b", "px", "qty"))
        own = BUY if flags & Flag.BID else SELL
        held = self.held.get(ref)
        if kind == Kind.ADD:
            self.held[ref] = [own, px, qty]
            return [(hb.ADD_ORDER | own, px, qty, ref)]
        if kind == Kind.CLEAR:
            self.held.clear()
        if kind not in (Kind.REPLACE, Kind.REDUCE, Kind.DELETE, Kind.EXECUTE):
            return [(direct, px, qty, ref if flags & Flag.MAKER else 0)]
        if held is None and (kind != Kind.REPLACE or not flags & 3):
            self.unknown += 1
            return []
        if kind == Kind.REPLACE:
            return self.replace(ref, new, held, own if flags & 3 else 0, px, qty)
        assert held is not None
        side, found = held[0], []
        if kind == Kind.EXECUTE:
            at = held[1] if px == NO_PX else px
            if not flags & Flag.NON_PRINTABLE:
                found.append((hb.TRADE | (SELL if side == BUY else BUY), at, qty, 0))
            found.append((hb.FILL | side, at, qty, ref))
        held[2] = 0 if kind == Kind.DELETE else held[2] - qty
        if held[2] > 0:
            return [*found, (hb.MODIFY_ORDER | side, held[1], held[2], ref)]
        del self.held[ref]
        return [*found, (hb.CANCEL_ORDER | side, held[1], 0, ref)]

    def replace(
        self, old: int, new: int, held: list[int] | None, sided: int, px: int, qty: int
    ) -> list[tuple[int, int, int, int]]:
        side = sided or (held[0] if held is not None else 0)
        found = []
        if held is not None and new != old:
            del self.held[old]
            found.append((hb.CANCEL_ORDER | held[0], held[1], 0, old))
        self.held[new] = [side, px, qty]
        return [*found, ((hb.MODIFY_ORDER if held is not None and new == old else hb.ADD_ORDER) | side, px, qty, new)]


_KINDS = [Kind.ADD] * 5 + [Kind.REDUCE, Kind.DELETE, Kind.EXECUTE, Kind.REPLACE, Kind.REPLACE, Kind.TRADE, Kind.CLEAR]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.sampled_from([4, 40, 4000]), st.booleans())
def test_events_of_orders_equal_those_of_the_plain_loop(seed: int, n: int, pool: int, is_rare: bool) -> None:
    """Whatever comes: unknown and doubled references, replaces onto themselves and others, a table that is full."""
    chance = np.random.default_rng(seed)
    known = np.append(chance.integers(0, 1 << 64, pool, dtype=np.uint64), np.uint64(0))
    kinds = _KINDS[:-1] if is_rare else _KINDS
    plain, orders = _PlainOrders(), hb._Orders()
    orders._slots = np.zeros(8, hb._SLOT)
    for _ in range(3):
        rows = new_rows(n)
        rows["kind"] = chance.choice(kinds, n)
        rows["flags"] = chance.choice([0, 1, 2, Flag.BID | Flag.MAKER, Flag.NON_PRINTABLE], n)
        rows["a"], rows["b"] = chance.choice(known, n), chance.choice(known, n)
        rows["px"], rows["qty"] = chance.choice([100, 101, NO_PX], n), chance.integers(0, 9, n)
        direct = np.arange(n, dtype=np.uint64)
        told = orders.events(rows, direct)
        expected = [(*event, k) for k in range(n) for event in plain.events(rows[k], k)]
        assert told.tolist() == expected
    assert orders.head.tolist() == [len(plain.held), plain.unknown]


def test_each_row_becomes_the_event_of_the_table(tmp_path: Path) -> None:
    rows = new_rows(9)
    rows["kind"] = [
        Kind.ADD, Kind.REDUCE, Kind.EXECUTE, Kind.EXECUTE, Kind.ADD, Kind.REPLACE, Kind.REPLACE, Kind.DELETE,
        Kind.TRADE,
    ]  # fmt: skip
    rows["a"] = [1, 1, 1, 1, 2, 2, 3, 3, 0]
    rows["b"] = [0, 0, 0, 0, 0, 3, 3, 0, 0]
    rows["px"] = [1000, 0, 1000, 1001, 1010, 1011, 1012, 0, 1005]
    rows["qty"] = [9, 2, 3, 4, 5, 6, 7, 0, 8]
    bid, ask = int(Flag.BID), int(Flag.ASK)
    rows["flags"] = [bid, 0, 0, Flag.NON_PRINTABLE, ask, 0, 0, 0, ask]
    rows["flags"] |= np.uint16(Flag.LAST)
    rows["ts_recv"] = rows["ts_event"] = np.arange(9) + 100
    convert(_journal(tmp_path / "j", rows), tmp_path / "x.npz")
    events = _load(tmp_path / "x.npz")
    both = EXCH | LOCAL
    assert [(ev ^ both, px, qty, order) for ev, px, qty, order in events[["ev", "px", "qty", "order_id"]].tolist()] == [
        (hb.ADD_ORDER | BUY, 10.0, 0.9, 1),
        (hb.MODIFY_ORDER | BUY, 10.0, 0.7, 1),
        (hb.TRADE | SELL, 10.0, 0.3, 0),
        (hb.FILL | BUY, 10.0, 0.3, 1),
        (hb.MODIFY_ORDER | BUY, 10.0, 0.4, 1),
        (hb.FILL | BUY, 10.01, 0.4, 1),
        (hb.CANCEL_ORDER | BUY, 10.0, 0.0, 1),
        (hb.ADD_ORDER | SELL, 10.1, 0.5, 2),
        (hb.CANCEL_ORDER | SELL, 10.1, 0.0, 2),
        (hb.ADD_ORDER | SELL, 10.11, 0.6, 3),
        (hb.MODIFY_ORDER | SELL, 10.12, 0.7, 3),
        (hb.CANCEL_ORDER | SELL, 10.12, 0.0, 3),
        (hb.TRADE | SELL, 10.05, 0.8, 0),
    ]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_whatever_the_clocks_say_each_sequence_is_in_order_and_has_every_event(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    n = data.draw(st.integers(1, 60))
    times = st.lists(st.integers(0, 30), min_size=n, max_size=n)
    rows = new_rows(n)
    rows["kind"], rows["flags"] = Kind.TRADE, Flag.BID | Flag.LAST
    rows["px"], rows["qty"] = np.arange(n) + 1, 1
    rows["ts_event"], rows["ts_recv"] = data.draw(times), sorted(data.draw(times))
    folder = tmp_path_factory.mktemp("npz")
    convert(_journal(folder / "j", rows), folder / "x.npz")
    events = _load(folder / "x.npz")
    _check_order(events)
    for bit, name in ((EXCH, "exch_ts"), (LOCAL, "local_ts")):
        one = events[events["ev"] & np.uint64(bit) != 0]
        assert sorted(np.rint(one["px"] * 100).astype(int).tolist()) == list(range(1, n + 1))
        if name == "exch_ts":
            ticks = np.rint(one["px"] * 100).astype(int) - 1
            assert (rows["ts_event"][ticks] == one["exch_ts"]).all()


def test_order_is_kept_over_the_chunks_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hb, "_CHUNK", 64)
    monkeypatch.setattr(hb, "LATENESS_NS", 200)
    chance = np.random.default_rng(2)
    rows = new_rows(5000)
    rows["kind"], rows["flags"], rows["px"], rows["qty"] = Kind.TRADE, Flag.BID | Flag.LAST, np.arange(5000) + 1, 1
    rows["ts_recv"] = np.arange(5000) * 10
    rows["ts_event"] = rows["ts_recv"] - chance.integers(0, 100, 5000)
    rows["ts_event"][4000] = 5  # far later than the window
    done = convert(_journal(tmp_path / "j", rows), tmp_path / "x.npz")
    events = _load(tmp_path / "x.npz")
    _check_order(events)
    assert done.notes["late events"] == 1
    assert (events["ev"] & np.uint64(EXCH) != 0).sum() == (events["ev"] & np.uint64(LOCAL) != 0).sum() == 5000
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.namelist() == ["data.npy"] and archive.testzip() is None


def test_a_file_of_two_instruments_is_refused(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one instrument; choose one with --symbol, such as AAPL"):
        convert(shared_data / "itch" / "synthetic_8009.itch", tmp_path / "x.npz", date=date(2024, 1, 2))
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_ends_early_leaves_nothing(shared_data: Path, tmp_path: Path) -> None:
    source = open_source(shared_data / "itch" / "synthetic_8009.itch", date=date(2024, 1, 2))
    destination = HftbacktestDestination(tmp_path / "x.npz", source)
    assert len(list(tmp_path.iterdir())) == 1
    destination.abandon()
    assert list(tmp_path.iterdir()) == []
