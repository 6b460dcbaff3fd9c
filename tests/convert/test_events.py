"""hftbacktest's events in memory: the kernel against exact decimals, and against what this package writes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.convert.events import event_rows
from hftlab.convert.formats import open_source
from hftlab.convert.hftbacktest import BUY, DEPTH, EVENT, EXCH, LOCAL, SELL
from hftlab.convert.run import convert
from hftlab.core.errors import ConfigError, OffGridError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import BookState, Flag, Kind, join_rows

X = Instrument(3, "test", "X", Decimal("0.1"), Decimal("0.001"))
_KINDS = {1: Kind.LEVEL, 2: Kind.TRADE, 4: Kind.LEVEL, 5: Kind.QUOTE}


def events_of(*told: tuple[int, int, int, float, float]) -> Any:
    """Return events of (ev, exch_ts, local_ts, px, qty)."""
    events = np.zeros(len(told), EVENT)
    for name, values in zip(("ev", "exch_ts", "local_ts", "px", "qty"), zip(*told, strict=True), strict=True):
        events[name] = values
    return events


def depth(px: float, qty: float = 1.0) -> Any:
    return events_of((EXCH | LOCAL | BUY | DEPTH, 1, 2, px, qty))


@st.composite
def tapes(draw: Any) -> list[tuple[int, int, int, int, int]]:
    """Draw (ev, exch_ts, local_ts, ticks, lots) by local time; some were not received."""
    local, tape = 0, []
    for _ in range(draw(st.integers(1, 30))):
        local += draw(st.integers(0, 2))
        mark = draw(st.sampled_from([EXCH | LOCAL, LOCAL, EXCH]))
        what, side = draw(st.sampled_from(sorted(_KINDS))), draw(st.sampled_from([BUY, SELL]))
        tape.append((
            mark | what | side, local - draw(st.integers(0, 1)), local, draw(st.integers(1, 10**12)),
            draw(st.integers(0, 10**12)),
        ))  # fmt: skip
    return tape


@settings(max_examples=150, deadline=None)
@given(tapes(), st.sampled_from(["0.01", "0.1", "0.25", "5", "0.00000001"]))
def test_rows_are_those_of_exact_decimals(tape: list[tuple[int, int, int, int, int]], tick: str) -> None:
    instrument = Instrument(1, "test", "X", Decimal(tick), Decimal("0.001"))
    told = [(*one[:3], float(instrument.px(one[3])), float(instrument.qty(one[4]))) for one in tape]
    rows = event_rows(events_of(*told), instrument)
    seen = [one for one in tape if one[0] & LOCAL]
    if not seen:
        assert len(rows) == 0
        return
    assert (rows[0]["kind"], rows[0]["code"], rows[0]["ts_recv"]) == (Kind.BOOK_STATE, BookState.LIVE, seen[0][2])
    expected = []
    for k, (ev, exch, local, px, qty) in enumerate(seen):
        ends = k + 1 == len(seen) or seen[k + 1][1:3] != (exch, local)
        side, snapshot = Flag.BID if ev & BUY else Flag.ASK, Flag.SNAPSHOT if ev & 0xFF == 4 else 0
        flags = side | snapshot | (Flag.LAST if ends else 0)
        expected.append((k + 1, _KINDS[ev & 0xFF], local, exch, 1, flags, px, qty))
    names = ["seq", "kind", "ts_recv", "ts_event", "instrument", "flags", "px", "qty"]
    assert list(zip(*(rows[name][1:].tolist() for name in names), strict=True)) == expected
    assert not rows["span"].any() and not rows["source"].any() and not rows["code"][1:].any()


def test_a_recorded_capture_written_as_events_comes_back_as_its_rows(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "binance" / "btcusdt_20240808.gz"
    done = convert(source, tmp_path / "btc.npz")
    with np.load(tmp_path / "btc.npz") as archive:
        opened = open_source(source)
        rows = join_rows([block.copy() for block in opened])
        (instrument,) = opened.instruments
        back = event_rows(archive["data"], instrument)[1:]
    told = rows[np.isin(rows["kind"], [Kind.LEVEL, Kind.TRADE, Kind.QUOTE, Kind.CLEAR])]
    moved = done.notes["local clock moved by ns"]
    assert back["kind"].tolist() == told["kind"].tolist() and len(told) > 10_000
    priced = told["kind"] != Kind.CLEAR
    for name in ("px", "qty"):
        assert back[name][priced].tolist() == told[name][priced].tolist()
    assert (back["ts_recv"] - moved == np.maximum.accumulate(told["ts_recv"])).all()
    sides = int(Flag.BID | Flag.ASK)
    assert (back["flags"][priced] & sides == told["flags"][priced] & sides).all()


def test_a_product_of_a_count_and_a_float_tick_is_taken_for_its_tick() -> None:
    for ticks in range(1, 20_000, 7):
        assert event_rows(depth(ticks * 0.1), X)["px"][1] == ticks


@pytest.mark.parametrize("px", [100.05, 100.1000001, float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_price_off_the_grid_is_refused_with_its_index(px: float) -> None:
    events = np.concatenate([depth(100.1), depth(px)])
    with pytest.raises(OffGridError, match=r"event 1, received at 2 ns, has px=.*multiple of 0\.1"):
        event_rows(events, X)


def test_a_quantity_off_the_grid_is_refused_with_its_index() -> None:
    with pytest.raises(OffGridError, match=r"event 0, .* has qty=0\.0005; expected a multiple of 0\.001"):
        event_rows(depth(1.0, 0.0005), X)


def test_a_price_that_floats_cannot_tell_from_its_neighbour_is_refused() -> None:
    fine = Instrument(0, "test", "X", Decimal("0.00000001"), Decimal("1"))
    assert event_rows(depth(100_000.00000001), fine)["px"][1] == 10**13 + 1
    with pytest.raises(OffGridError, match="event 0"):
        event_rows(depth(50_000_000.0), fine)


@pytest.mark.parametrize(
    ("ev", "qty", "said"),
    [
        (BUY | DEPTH, -1.0, r"qty=-1\.0; expected 0 or more"),
        (DEPTH, 1.0, "of no side"),
        (BUY | SELL | DEPTH, 1.0, "or of both"),
        (BUY | 3, 1.0, "clears one side up to px=1"),
        (BUY | 10, 1.0, "is of kind 10, which has no row"),
    ],
)
def test_what_has_no_row_is_refused_with_its_index(ev: int, qty: float, said: str) -> None:
    with pytest.raises(ConfigError, match=f"event 0, received at 2 ns, .*{said}"):
        event_rows(events_of((EXCH | LOCAL | ev, 1, 2, 1.0, qty)), X)


def test_a_clear_of_both_sides_and_a_trade_without_a_side_have_rows() -> None:
    clear, clear_both, trade = LOCAL | 3, LOCAL | BUY | SELL | 3, LOCAL | 2
    rows = event_rows(events_of((clear, 1, 2, 0.0, 0.0), (clear_both, 1, 2, 0.0, 0.0), (trade, 1, 3, 1.0, 1.0)), X)
    assert rows["kind"].tolist() == [Kind.BOOK_STATE, Kind.CLEAR, Kind.CLEAR, Kind.TRADE]
    assert rows["flags"].tolist() == [Flag.LAST, 0, Flag.LAST, Flag.LAST]


def test_an_array_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a 1-dimensional array of hftbacktest's event_dtype"):
        event_rows(np.zeros(3), X)  # type: ignore[arg-type]  # the wrong dtype is the point
    with pytest.raises(ConfigError, match="1-dimensional"):
        event_rows(np.zeros((2, 2), EVENT), X)


def test_no_events_are_no_rows() -> None:
    assert len(event_rows(np.zeros(0, EVENT), X)) == 0
