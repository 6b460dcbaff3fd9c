"""Salvage: a damaged file costs its own rows at most, and is named with the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hftlab.core.errors import JournalError
from hftlab.journal import JournalWriter, read_all, salvage
from hftlab.journal.format import Segment

_ROWS = 3000  # in a segment: three sealed blocks, the last of them not full
_HEADER = 4096


@pytest.fixture
def journal(tmp_path: Path, numbered: Any) -> Path:
    """Return a journal of three full segments."""
    with JournalWriter(tmp_path, {"run": 1}, segment_rows=_ROWS, fsync_ms=None) as writer:
        writer.extend(numbered(0, 3 * _ROWS), atom_rows=10)
    return tmp_path


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def _middle(journal: Path) -> Any:
    """Return what the middle segment gave, the others being whole."""
    first, middle, last = salvage(journal)
    for part, base in ((first, 0), (last, 2 * _ROWS)):
        assert (part.first, part.offset, part.damage) == (base, None, "")
        assert part.rows["px"].tolist() == list(range(base, base + _ROWS)) and part.definitions == {"run": 1}
    assert middle.path.name == "000001.seg"
    return middle


def test_a_sound_journal_is_given_whole(journal: Path) -> None:
    middle = _middle(journal)
    assert not middle.damage and middle.rows["px"].tolist() == list(range(_ROWS, 2 * _ROWS))


@pytest.mark.parametrize("at", [0, 8, 12, 16, 24, 60, 192, 256, 400])
def test_a_damaged_header_costs_its_segment_and_no_other(journal: Path, at: int) -> None:
    _flip(journal / "000001.seg", at)
    middle = _middle(journal)
    assert len(middle.rows) == 0 and middle.offset == 0 and "000001.seg" in middle.damage


@pytest.mark.parametrize("row", [0, 1, 1023, 1024, 2500, 2999])
def test_a_changed_row_costs_its_block_and_what_follows_in_its_segment(journal: Path, row: int) -> None:
    _flip(journal / "000001.seg", _HEADER + 64 * row + 40)
    middle = _middle(journal)
    block = row // 1024 * 1024
    whole = block // 10 * 10
    assert middle.rows["px"].tolist() == list(range(_ROWS, _ROWS + whole))
    assert middle.offset == _HEADER + 64 * block and "000001.seg" in middle.damage


def test_a_changed_seal_is_named(journal: Path) -> None:
    _flip(journal / "000001.seal", 0)
    assert "000001.seal" in _middle(journal).damage


def test_a_changed_summary_is_named_and_costs_no_row(journal: Path) -> None:
    seal = journal / "000001.seal"
    _flip(seal, seal.stat().st_size - 40)
    middle = _middle(journal)
    assert "summary" in middle.damage and middle.offset is None and len(middle.rows) == _ROWS


@pytest.mark.parametrize("field", [0, 6])
def test_without_a_seal_a_row_without_its_number_or_kind_ends_the_segment(journal: Path, field: int) -> None:
    (journal / "000001.seal").unlink()
    path = journal / "000001.seg"
    raw = bytearray(path.read_bytes())
    raw[_HEADER + 64 * 1234 + field] = 0
    path.write_bytes(raw)
    middle = _middle(journal)
    assert middle.rows["px"].tolist() == list(range(_ROWS, _ROWS + 1230))
    assert middle.offset == _HEADER + 64 * 1234


def test_without_a_seal_a_count_beyond_the_file_is_damage_and_costs_no_row(journal: Path) -> None:
    (journal / "000001.seal").unlink()
    _flip(journal / "000001.seg", 192 + 5)
    middle = _middle(journal)
    assert len(middle.rows) == _ROWS and middle.offset == _HEADER + 64 * _ROWS and middle.damage


def test_a_missing_and_a_short_segment_are_named(journal: Path) -> None:
    (journal / "000001.seg").unlink()
    assert "000001.seg" in _middle(journal).damage
    (journal / "000001.seg").write_bytes(b"HFTLSEG\n" + bytes(100))
    assert "000001.seg" in _middle(journal).damage


def test_a_journal_is_salvaged_while_it_is_written(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        for i in range(10):
            writer.append(numbered(10 * i, 10))
            parts = list(salvage(tmp_path))
            assert [part.damage for part in parts] == [""] * len(parts)
            assert sum(len(part.rows) for part in parts) == 10 * (i + 1) == len(read_all(tmp_path))


def test_every_flipped_byte_is_survived(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {"run": 1}, segment_rows=20, fsync_ms=None) as writer:
        writer.extend(numbered(0, 40), atom_rows=5)
    path = tmp_path / "000000.seg"
    capacity = Segment(path).header.capacity
    for at in range(0, 4096 + 64 * capacity, 7):
        _flip(path, at)
        first, second = salvage(tmp_path)
        assert first.damage and not second.damage and len(second.rows) == 20
        assert first.rows["px"].tolist() == list(range(len(first.rows)))
        _flip(path, at)


def test_a_folder_without_segments_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no segment"):
        next(salvage(tmp_path))
