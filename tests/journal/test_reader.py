"""Readers: other processes, whole atoms, rotation, starts, hashes."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import JournalError, ReaderBehind
from hftlab.core.rows import CONT, ROW, Flag, Kind, RowArray
from hftlab.journal import JournalReader, JournalWriter, bounds, read_all, rotate, run_hash
from hftlab.journal.format import atom_end, whole_rows
from hftlab.kernels.jit import address_of

_WRITE = """
import sys; from pathlib import Path; import numpy as np
from hftlab.core.rows import ROW, Kind; from hftlab.journal import JournalWriter
total = int(sys.argv[2])
with JournalWriter(Path(sys.argv[1]), {"run": 1}, segment_rows=2000) as writer:
    atom = 0
    while writer.seq < total:
        n = 1 + atom % 7
        rows = np.zeros(n, ROW)
        rows["kind"], rows["px"], rows["qty"], rows["a"] = Kind.CLOCK, atom, range(n), n
        writer.append(rows)
        atom += 1
"""
_READ = """
import sys, hashlib, json; from pathlib import Path; import numpy as np
from hftlab.core.errors import JournalError
from hftlab.journal import JournalReader
while True:
    try:
        reader = JournalReader(Path(sys.argv[1]))
        break
    except JournalError:
        pass  # the writer has not begun
total, atom, halves, digest, polls = int(sys.argv[2]), 0, 0, hashlib.sha256(), 0
while reader.position < total:
    assert reader.wait(60)
    rows = reader.poll(int(sys.argv[3]))
    polls += 1
    ends = rows["qty"] + 1 == rows["a"]
    halves += not ends[-1] or rows["qty"][0] != 0
    assert np.array_equal(rows["px"], atom + np.cumsum(np.r_[0, ends[:-1]]))
    atom += int(ends.sum())
    digest.update(rows.tobytes())
print(json.dumps({"rows": reader.position, "atoms": atom, "halves": int(halves), "hash": digest.hexdigest(), "polls":
polls}))
"""


def test_two_processes_read_every_row_while_a_third_writes_several_segments(tmp_path: Path, python: Any) -> None:
    folder, total = tmp_path / "journal", 30_000
    readers = [python(_READ, folder, total, limit) for limit in (65536, 11)]
    writer = python(_WRITE, folder, total)
    _, errors = writer.communicate(timeout=120)
    assert writer.returncode == 0, errors
    rows = read_all(folder)
    atoms = int((rows["qty"] == 0).sum())
    for reader in readers:
        out, errors = reader.communicate(timeout=120)
        assert reader.returncode == 0, errors
        found = json.loads(out)
        assert found["halves"] == 0 and found["polls"] > 1
        assert (found["rows"], found["atoms"], found["hash"]) == (len(rows), atoms, run_hash(folder))
    assert len(list(folder.glob("*.seg"))) == 16


# --- atoms ---

_HEADS = st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30)


def _stream(heads: list[tuple[bool, int]]) -> RowArray:
    """Head rows (commit?, payload rows); payload bytes look like committed rows of another kind."""
    rows = np.zeros(sum(1 + span for _, span in heads), ROW)
    i = 0
    for commit, span in heads:
        rows["kind"][i], rows["span"][i], rows["flags"][i] = Kind.CLOCK, span, Flag.COMMIT if commit else Flag.LAST
        rows.view(np.uint8).reshape(-1, 64)[i + 1 : i + 1 + span, 8:] = 0xFF
        rows["kind"][i + 1 : i + 1 + span], rows["span"][i + 1 : i + 1 + span] = CONT, span
        i += 1 + span
    return rows


def _ends(rows: RowArray) -> list[int]:
    """The slow reference: every index at which an atom ends."""
    return [
        i + 1 + int(row["span"]) for i, row in enumerate(rows) if row["kind"] != CONT and row["flags"] & Flag.COMMIT
    ]


@given(heads=_HEADS, data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_last_whole_atom_is_found_as_the_slow_reference_finds_it(heads: Any, data: Any) -> None:
    rows = _stream(heads)
    ends = _ends(rows)
    first = data.draw(st.sampled_from([0, *(e for e in ends if e < len(rows))]))
    end = data.draw(st.integers(first, len(rows)))
    expected = max((e for e in ends if first < e <= end), default=first)
    assert whole_rows(address_of(rows), first, end) == expected
    limit = data.draw(st.integers(1, len(rows)))
    header = np.zeros(64, np.int64)
    header[192 // 8] = end
    within = [e for e in ends if first < e <= end]
    expected = max((e for e in within if e <= first + limit), default=min(within, default=first))
    assert atom_end(address_of(header), address_of(rows), first, limit) == expected


def test_a_limit_never_splits_an_atom(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        for first, n in ((0, 5), (5, 2), (7, 3)):
            writer.append(numbered(first, n))
        reader = JournalReader(tmp_path)
        assert [len(reader.poll(n)) for n in (4, 4, 3, 3)] == [5, 2, 3, 0]


# --- following, starting, rotation ---


def test_a_view_is_read_only_and_outlives_the_reader_and_its_segment(
    tmp_path: Path, numbered: Any, is_numbered: Any
) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=8) as writer:
        for first in range(0, 40, 4):
            writer.append(numbered(first, 4))
    reader = JournalReader(tmp_path)
    rows = reader.poll()
    reader.close()
    rotate(tmp_path, 1)
    assert is_numbered(rows) and len(rows) == 8
    with pytest.raises(ValueError, match="read-only"):
        rows["px"][0] = 1
    with pytest.raises(JournalError, match="is closed"):
        reader.poll()


def test_a_reader_whose_next_segment_was_rotated_away_is_told_so(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=8) as writer:
        for first in range(0, 40, 4):
            writer.append(numbered(first, 4))
        slow = JournalReader(tmp_path)
        slow.poll(4)
    removed = rotate(tmp_path, 2)
    assert [path.name for path in removed] == ["000000.seg", "000001.seg", "000002.seg"]
    assert slow.poll()["px"].tolist() == [4, 5, 6, 7]  # still mapped: nothing is lost yet
    with pytest.raises(ReaderBehind, match=r"row 8 of .* attach again from row 24"):
        slow.poll()
    with pytest.raises(ReaderBehind, match="the oldest row left is 24"):
        JournalReader(tmp_path)
    assert bounds(tmp_path) == (24, 40) and len(read_all(tmp_path)) == 16
    with pytest.raises(JournalError, match="rotated away, and a run's hash covers all of it"):
        run_hash(tmp_path)
    with JournalWriter(tmp_path, {}, segment_rows=8) as writer:
        assert writer.seq == 40


def test_a_reader_starts_at_any_row_and_at_the_end(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=8) as writer:
        for first in range(0, 20, 4):
            writer.append(numbered(first, 4))
        for start in (0, 4, 7, 8, 12, 19, 20):
            reader, found = JournalReader(tmp_path, start=start), []
            assert reader.position == start
            while len(rows := reader.poll()):
                found += rows["px"].tolist()
            assert found == list(range(start, 20))
        now = JournalReader(tmp_path, start=None)
        assert now.position == 20 and not now.wait(0.001)
        writer.append(numbered(20, 4))
        writer.append(numbered(24, 4))
        assert now.wait(0.001) and now.wait(0.001)  # looking does not take
        assert now.poll()["px"].tolist() == [20, 21, 22, 23] and now.position == 24
        for wrong in (29, -1):
            with pytest.raises(JournalError, match=f"start is .*{wrong}"):
                JournalReader(tmp_path, start=wrong)


def test_an_empty_journal_reads_as_no_rows(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, {"x": 1}, segment_rows=8):
        reader = JournalReader(tmp_path)
        assert len(reader.poll()) == 0 and reader.definitions == {"x": 1}
        assert read_all(tmp_path).dtype == ROW and bounds(tmp_path) == (0, 0)
    assert len(reader.poll()) == 0 and run_hash(tmp_path) == hashlib.sha256(b"").hexdigest()


def test_a_folder_without_a_journal_is_a_clear_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        for call in (JournalReader, read_all, bounds, run_hash):
            with pytest.raises(JournalError, match="is not a journal"):
                call(folder)


def test_the_hash_of_a_run_covers_the_rows_alone(tmp_path: Path, numbered: Any) -> None:
    for name, definitions, segment_rows in (("one", {"a": 1}, 64), ("two", {"b": 2}, 8)):
        with JournalWriter(tmp_path / name, definitions, segment_rows=segment_rows) as writer:
            for first in range(0, 40, 4):
                writer.append(numbered(first, 4))
    assert run_hash(tmp_path / "one") == run_hash(str(tmp_path / "two")) == run_hash(read_all(tmp_path / "two"))
    changed = read_all(tmp_path / "two").copy()
    changed["px"][17] += 1
    assert run_hash(changed) != run_hash(tmp_path / "one")


def test_a_journal_of_another_schema_is_refused_in_one_sentence(tmp_path: Path) -> None:
    JournalWriter(tmp_path, {}, segment_rows=8).close()
    with open(tmp_path / "000000.seg", "r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 0))
    for call in (JournalReader, read_all, lambda folder: JournalWriter(folder, {})):
        with pytest.raises(JournalError, match=r"^000000.seg was written with schema 0 .* reads schema 1"):
            call(tmp_path)


def test_a_missing_segment_within_the_journal_is_not_passed_over(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=8) as writer:
        for first in range(0, 24, 4):
            writer.append(numbered(first, 4))
    (tmp_path / "000001.seg").unlink()
    with pytest.raises(JournalError, match="rows are missing between them"):
        read_all(tmp_path)
