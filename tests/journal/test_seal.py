"""The seal: every flipped byte is found, a live journal verifies, summaries say what the segment holds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import JournalError
from hftlab.core.rows import NAT, ROW, BookState, Flag, Kind
from hftlab.journal import JournalWriter, read_all, rotate, summaries, verify


def _sealed(folder: Path, numbered: Any, *, segment_rows: int, rows: int, atom: int) -> Path:
    with JournalWriter(folder, {"kernel_hash": "ab" * 8, "x": [1, 2]}, segment_rows=segment_rows, fsync_ms=None) as w:
        for first in range(0, rows, atom):
            w.append(numbered(first, atom))
    assert verify(folder).ok and verify(folder).unsealed_rows == 0
    return folder


def _flip_is_found(path: Path, at: int, mask: int) -> bool:
    with open(path, "r+b", buffering=0) as file:
        before = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([before[0] ^ mask]), at)
        try:
            return not verify(path.parent).ok
        finally:
            os.pwrite(file.fileno(), before, at)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, numbered: Any) -> Path:
    """Two segments of 32 rows, the second half empty."""
    return _sealed(tmp_path_factory.mktemp("small"), numbered, segment_rows=32, rows=48, atom=4)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory, numbered: Any) -> Path:
    """Three segments of two whole blocks and a part."""
    return _sealed(tmp_path_factory.mktemp("blocks"), numbered, segment_rows=2500, rows=6000, atom=100)


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted([*folder.glob("*.seg"), *folder.glob("*.seal")])


def test_every_flipped_byte_of_a_seal_is_found(small: Path) -> None:
    rng = random.Random(1)
    for path in small.glob("*.seal"):
        for at in range(path.stat().st_size):
            assert _flip_is_found(path, at, rng.randrange(1, 256)), f"byte {at} of {path.name}"
    assert verify(small).ok


def test_every_flipped_byte_of_a_segment_is_found(small: Path) -> None:
    rng = random.Random(2)
    for path in small.glob("*.seg"):
        size = path.stat().st_size
        for at in range(size):
            assert _flip_is_found(path, at, rng.randrange(1, 256)), f"byte {at} of {path.name}"
    assert verify(small).ok


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_byte_of_a_journal_of_many_blocks_is_found(blocks: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(_files(blocks))))
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    assert _flip_is_found(path, at, data.draw(st.integers(1, 255)))


def test_a_flipped_byte_is_located(blocks: Path) -> None:
    path = blocks / "000001.seg"
    with open(path, "r+b", buffering=0) as file:
        at = 4096 + 64 * 1500 + 40
        before = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([before[0] ^ 1]), at)
        said = str(verify(blocks))
        os.pwrite(file.fileno(), before, at)
    assert "000001.seg or its seal has changed in rows 1024 to 2047" in said


@pytest.mark.parametrize("name", ["000001.seg", "000002.seg", "000000.seal", "000001.seal"])
def test_a_missing_file_within_a_sealed_journal_is_found(tmp_path: Path, numbered: Any, name: str) -> None:
    folder = _sealed(tmp_path, numbered, segment_rows=32, rows=96, atom=4)
    (folder / name).unlink()
    assert not verify(folder).ok, str(verify(folder))


def test_segments_of_two_journals_do_not_make_one(tmp_path: Path, numbered: Any) -> None:
    one = _sealed(tmp_path / "one", numbered, segment_rows=32, rows=96, atom=4)
    two = _sealed(tmp_path / "two", numbered, segment_rows=32, rows=96, atom=8)
    for suffix in ("seg", "seal"):
        os.replace(two / f"000001.{suffix}", one / f"000001.{suffix}")
    assert "000001.seal does not continue the chain" in str(verify(one))


def test_a_rotated_journal_verifies_from_its_oldest_segment(tmp_path: Path, numbered: Any) -> None:
    folder = _sealed(tmp_path, numbered, segment_rows=32, rows=96, atom=4)
    with pytest.raises(JournalError, match="keep is 0"):
        rotate(folder, 0)
    assert [path.name for path in rotate(folder, 1)] == ["000000.seg", "000001.seg"]
    assert rotate(folder, 1) == []
    report = verify(folder)
    assert (report.ok, report.segments, report.sealed_rows) == (True, 1, 32)
    assert str(report) == "sealed through row 95, 0 rows of tail unsealed"
    with open(folder / "000002.seal", "r+b") as file:  # the start of the chain is taken as it stands, but not its bytes
        file.seek(40)
        file.write(b"\x11")
    assert not verify(folder).ok


def test_rotation_leaves_what_is_not_sealed(tmp_path: Path, numbered: Any, until: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=32) as writer:
        for first in range(0, 80, 4):
            writer.append(numbered(first, 4))
        until(lambda: verify(tmp_path).sealed_rows == 64, "two sealed segments")
        until(lambda: not (tmp_path / "000001.seg").is_symlink(), "the second to settle")
        assert [path.name for path in rotate(tmp_path, 1)] == ["000000.seg"]
        assert len(read_all(tmp_path)) == 48
        assert str(verify(tmp_path)) == "sealed through row 63, 16 rows of tail unsealed"
    assert verify(tmp_path).ok


def test_a_journal_verifies_while_it_is_written(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=2048, fsync_ms=1.0) as writer:
        assert str(verify(tmp_path)) == "no row sealed, 0 rows of tail unsealed"
        for first in range(0, 40_000, 50):
            writer.append(numbered(first, 50))
            if first % 1000 == 0:
                report = verify(tmp_path)
                assert report.ok, str(report)
                assert report.sealed_rows + report.unsealed_rows == first + 50
    assert str(verify(tmp_path)) == "sealed through row 39999, 0 rows of tail unsealed"


def test_a_wrong_row_number_is_a_problem_even_when_the_chain_holds(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        writer.append(numbered(0, 4))
        writer._segment.rows["seq"][2] = 9
    assert "1 rows with a wrong number, the first at row 2: got 9" in str(verify(tmp_path))


def test_a_folder_without_segments_is_not_verified(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(JournalError, match="is not a journal"):
            verify(folder)


def test_the_summary_counts_kinds_gaps_and_crossed_quotes_and_bounds_the_prices(tmp_path: Path) -> None:
    def row(kind: Kind, flags: int = 0, px: int = 0, qty: int = 1, code: int = 0, instrument: int = 0) -> Any:
        return (0, 0, kind, 0, 1000 + px, NAT, instrument, flags, code, px, qty, 0, 0)

    bid, ask, last = Flag.BID, Flag.ASK, Flag.LAST
    given_rows = [
        row(Kind.QUOTE, bid, 100), row(Kind.QUOTE, ask | last, 102),
        row(Kind.QUOTE, bid, 103), row(Kind.QUOTE, ask | last, 104),  # crossed between two rows of one message: no
        row(Kind.QUOTE, bid | last, 105),  # crossed
        row(Kind.QUOTE, bid | last, 104),  # locked: legal
        row(Kind.TRADE, bid | last, 99), row(Kind.TRADE, ask | last, 107),
        row(Kind.QUOTE, bid | last, 0, qty=0),  # an empty side
        row(Kind.BOOK_STATE, code=BookState.RESYNCING), row(Kind.BOOK_STATE, code=BookState.LIVE),
        row(Kind.TRADE, bid | last, 55, instrument=3),
        row(Kind.TRADE, bid | last, 66, instrument=400),  # counted, not plotted
    ]  # fmt: skip
    rows = np.zeros(len(given_rows), ROW)
    for name, values in zip(
        ("seq", "source", "kind", "span", "ts_recv", "ts_event", "instrument", "flags", "code", "px", "qty", "a", "b"),
        zip(*given_rows, strict=True),
        strict=True,
    ):
        rows[name] = values
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        writer.append(rows)
    (found,) = summaries(tmp_path)
    assert found["counts"] == {"QUOTE": 7, "TRADE": 4, "BOOK_STATE": 2}
    assert (found["rows"], found["first_seq"], found["last_seq"], found["gaps"]) == (13, 0, 12, 1)
    assert found["crossed_share"] == 1 / 5
    assert (found["ts_first"], found["ts_last"]) == (1000, 1107)
    assert found["plots"] == [
        {"instrument": 0, "bid": [[[100, 105]]], "ask": [[[102, 104]]], "trade": [[[99, 107]]]},
        {"instrument": 3, "trade": [[[55, 55]]]},
    ]


def test_the_levels_of_the_pyramid_bound_one_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = np.zeros(4096, ROW)
    rows["kind"], rows["px"], rows["ts_recv"] = Kind.TRADE, rng.integers(-500, 500, 4096), np.arange(4096)
    rows["kind"][:128] = Kind.CLOCK
    with JournalWriter(tmp_path, {}, segment_rows=4096) as writer:
        writer.append(rows)
    (found,) = summaries(tmp_path)
    fine, middle, coarse = found["plots"][0]["trade"]
    bins = rows["px"].reshape(64, 64)
    assert fine == [None, None, *([int(b.min()), int(b.max())] for b in bins[2:])]
    assert coarse == [[int(rows["px"][128:].min()), int(rows["px"][128:].max())]]
    assert middle[1:] == [[int(b.min()), int(b.max())] for b in rows["px"].reshape(8, 512)[1:]]
    assert found["bin_ts"] == list(range(0, 4096, 64)) and found["crossed_share"] is None
