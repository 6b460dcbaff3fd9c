"""The arena's layout."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hftlab.engine import book_size
from hftlab.kernels.ladder import side_bytes
from hftlab.kernels.state import (
    ATOM_ROWS,
    CALLBACKS,
    ENGINE,
    EXECUTION,
    HOST,
    INSTRUMENT,
    MAX_OUTPUT_ROWS,
    ORDER,
    TIMER,
    UNDO,
)


@pytest.mark.parametrize("table", [ENGINE, INSTRUMENT, ORDER, EXECUTION, TIMER, UNDO, HOST])
def test_every_field_is_a_whole_word_in_its_place(table: np.dtype[Any]) -> None:
    assert table.itemsize % 8 == 0
    for kind, offset, *_ in (table.fields or {}).values():
        assert offset % 8 == 0 and kind.itemsize % 8 == 0


def test_one_atom_has_room_for_its_input_its_output_and_a_cancel_for_every_slot() -> None:
    assert ATOM_ROWS >= 1 + 255 + MAX_OUTPUT_ROWS + 8192
    assert len(CALLBACKS) <= HOST["callbacks"].shape[0]


def test_tables_do_not_overlap_and_stay_in_the_arena(make_desk: Callable[..., Any]) -> None:
    engine = make_desk(instruments=3).engine
    e = engine.header
    sizes = {
        "instruments": 3 * INSTRUMENT.itemsize, "orders": (int(e["order_mask"]) + 1) * ORDER.itemsize,
        "execs": (int(e["exec_mask"]) + 1) * EXECUTION.itemsize, "timers": 64 * TIMER.itemsize,
        "state": int(e["state_bytes"]), "params": 8, "undo": 2 * MAX_OUTPUT_ROWS * UNDO.itemsize,
        "backup": ENGINE.itemsize + int(e["state_bytes"]) + 64 * TIMER.itemsize,
    }  # fmt: skip
    spans = [(0, ENGINE.itemsize)] + [(int(e[f"off_{name}"]), size) for name, size in sizes.items()]
    for inst in engine.instruments:
        spans += [(int(inst[f"off_{side}"]), side_bytes(*book_size(3))) for side in ("bids", "asks")]
    spans.sort()
    for (start, size), (following, _) in pairwise(spans):
        assert start + size <= following
    assert sum(spans[-1]) <= engine.arena.nbytes


def test_the_arena_holds_no_address(make_desk: Callable[..., Any]) -> None:
    first, second = make_desk(), make_desk()
    for desk in (first, second):
        desk.submit()
    assert (first.engine.arena == second.engine.arena).all()
