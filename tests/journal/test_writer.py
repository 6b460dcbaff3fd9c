"""The writer: publication, rolling, recovery, the lock, a full disk."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftlab.core.errors import JournalError
from hftlab.core.rows import CONT, ROW, Flag, Kind, RowArray, join_rows, payload_bytes, payload_rows
from hftlab.journal import JournalReader, JournalWriter, read_all, run_hash, verify

COMMITTED_AT = 192

_APPEND_FOREVER = """
import sys; from pathlib import Path; import numpy as np
from hftlab.core.rows import ROW, Kind; from hftlab.journal import JournalWriter
writer = JournalWriter(Path(sys.argv[1]), {}, segment_rows=4096, fsync_ms=5.0)
while True:
    n = 1 + writer.seq % 9
    rows = np.zeros(n, ROW); at = np.arange(writer.seq, writer.seq + n, dtype=np.int64)
    rows["kind"], rows["px"], rows["qty"] = Kind.CLOCK, at, -at
    rows["a"], rows["b"] = at.astype(np.uint64) * np.uint64(2654435761), (at ^ 0x5555).astype(np.uint64)
    writer.append(rows)
    print(writer.seq, flush=True)
"""


def test_rows_written_at_the_address_are_seen_after_commit_and_not_before(tmp_path: Path, numbered: Any) -> None:
    rows = numbered(0, 4)
    rows["seq"] = range(4)
    rows["flags"][-1] = Flag.COMMIT
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        reader = JournalReader(tmp_path)
        address, free = writer.room()
        ctypes.memmove(address, rows.tobytes(), 256)
        assert len(reader.poll()) == 0
        writer.commit(4)
        assert reader.poll().tobytes() == rows.tobytes()
        assert (free, writer.seq, writer.room()) == (64, 4, (address + 256, 60))


def test_commit_that_does_not_end_an_atom_is_refused_and_publishes_nothing(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        reader = JournalReader(tmp_path)
        ctypes.memmove(writer.room()[0], numbered(0, 3).tobytes(), 192)
        with pytest.raises(JournalError, match="do not end an atom"):
            writer.commit(3)
        with pytest.raises(JournalError, match="64 rows, 64 of them free; got 65"):
            writer.commit(65)
        assert writer.seq == 0 and len(reader.poll()) == 0


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system knows no batch threads")
def test_the_helper_does_not_interrupt_the_host_and_the_host_stays_as_it_was(tmp_path: Path, until: Any) -> None:
    before = os.sched_getscheduler(0)
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        helper = writer._helper.native_id
        until(lambda: os.sched_getscheduler(helper) == os.SCHED_BATCH, "the helper to come second")
        assert os.sched_getscheduler(0) == before


def test_append_stamps_numbers_and_commit_without_touching_what_it_was_given(tmp_path: Path, numbered: Any) -> None:
    rows = numbered(0, 3)
    before = rows.tobytes()
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        assert [writer.append(rows), writer.append(rows), writer.append(rows[:0])] == [0, 3, 6]
    stored = read_all(tmp_path)
    assert rows.tobytes() == before
    assert stored["seq"].tolist() == [0, 1, 2, 3, 4, 5]
    assert stored["flags"].tolist() == [0, 0, Flag.COMMIT] * 2


def test_append_gives_payload_rows_the_first_bytes_of_their_head_row(tmp_path: Path, numbered: Any) -> None:
    payload = payload_rows(b"\xff" * 100)
    rows = np.concatenate([numbered(0, 1).view(np.uint8), numbered(0, 1).view(np.uint8), payload.view(np.uint8)])
    rows = rows.view(ROW)
    rows["kind"][1], rows["span"][1], rows["source"][1] = Kind.TEXT, len(payload), 9
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        writer.append(rows)
        with pytest.raises(JournalError, match="rows\\[0\\] is a payload row"):
            writer.append(payload)
    stored = read_all(tmp_path)
    assert stored["kind"].tolist() == [Kind.CLOCK, Kind.TEXT, CONT, CONT]
    assert stored["seq"].tolist() == [0, 1, 1, 1] and stored["source"].tolist() == [0, 9, 9, 9]
    assert stored["flags"][1] == Flag.COMMIT and payload_bytes(stored[2:]) == b"\xff" * 100


def test_an_atom_never_straddles_two_segments(tmp_path: Path, numbered: Any, is_numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=10) as writer:
        for first in range(0, 42, 7):
            writer.append(numbered(first, 7))
        with pytest.raises(JournalError, match="a segment of this journal has 10 rows, 3 of them free; got 11"):
            writer.ensure(11)
    assert is_numbered(read_all(tmp_path))
    assert len(list(tmp_path.glob("*.seg"))) == 6 and verify(tmp_path).ok


def test_a_closed_journal_is_continued_after_its_last_row(tmp_path: Path, numbered: Any, is_numbered: Any) -> None:
    for first in (0, 5, 10):
        with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
            assert writer.seq == first
            writer.append(numbered(first, 5))
    assert is_numbered(read_all(tmp_path)) and str(verify(tmp_path)) == (
        "sealed through row 14, 0 rows of tail unsealed"
    )


def test_a_closed_writer_refuses_rows(tmp_path: Path, numbered: Any) -> None:
    writer = JournalWriter(tmp_path, {}, segment_rows=64)
    writer.close()
    writer.close()
    for call in (lambda: writer.append(numbered(0, 1)), lambda: writer.ensure(1), lambda: writer.commit(0)):
        with pytest.raises(JournalError, match="the writer is closed"):
            call()


def test_two_writers_in_one_process_are_refused(tmp_path: Path) -> None:
    with (
        JournalWriter(tmp_path, {}, segment_rows=64),
        pytest.raises(JournalError, match=f"two writers: process {os.getpid()}"),
    ):
        JournalWriter(tmp_path, {}, segment_rows=64)
    JournalWriter(tmp_path, {}, segment_rows=64).close()  # the lock is free again


def test_a_second_writer_in_another_process_is_refused(tmp_path: Path, python: Any) -> None:
    code = "import sys; from pathlib import Path; from hftlab.journal import JournalWriter\n"
    code += "JournalWriter(Path(sys.argv[1]), {})"
    with JournalWriter(tmp_path, {}, segment_rows=64):
        _, errors = python(code, tmp_path).communicate(timeout=60)
    assert f"JournalError: two writers: process {os.getpid()}" in errors


def test_kill_9_of_a_writer_loses_no_committed_row_and_tears_none(
    tmp_path: Path, python: Any, numbered: Any, is_numbered: Any
) -> None:
    child = python(_APPEND_FOREVER, tmp_path)
    try:
        seen = 0
        while seen < 20_000:
            line = child.stdout.readline()
            assert line, child.stderr.read()
            seen = int(line)
        child.send_signal(signal.SIGKILL)
        told = [int(line) for line in child.stdout.read().split()]  # what it still said before it died
    finally:
        child.kill()
        child.communicate()
    reader = JournalReader(tmp_path, start=None)
    left = reader.position
    assert left >= max([seen, *told[:-1]])  # the last number may be cut short in the pipe
    with JournalWriter(tmp_path, {}, segment_rows=4096) as writer:
        assert writer.seq == left
        writer.append(numbered(left, 3))
    assert reader.poll()["px"].tolist() == [left, left + 1, left + 2]  # a tailer follows into the new writer's segment
    report = verify(tmp_path)
    assert is_numbered(read_all(tmp_path)) and len(read_all(tmp_path)) == left + 3
    assert report.ok and report.sealed_rows == left + 3 and not list(tmp_path.glob("*.tmp"))


def _crash_with(folder: Path, copy: Path, *, committed: int) -> Path:
    """Copy a live journal as a power cut leaves it: the count of segment 0 reached the disk, the rows may not have."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.tmp"))  # the next one may be renamed meanwhile
    with open(copy / "000000.seg", "r+b") as file:
        file.seek(COMMITTED_AT)
        file.write(struct.pack("<q", committed))
    return copy


def test_a_committed_count_ahead_of_the_rows_is_cut_at_the_first_unwritten_row(
    tmp_path: Path, numbered: Any, is_numbered: Any
) -> None:
    with JournalWriter(tmp_path / "live", {}, segment_rows=64) as writer:
        writer.append(numbered(0, 10))
        copy = _crash_with(tmp_path / "live", tmp_path / "copy", committed=25)
    assert not verify(copy).ok
    assert is_numbered(read_all(copy)) and len(read_all(copy)) == 10
    with JournalWriter(copy, {}, segment_rows=64) as again:
        assert again.append(numbered(10, 2)) == 10
    assert is_numbered(read_all(copy)) and verify(copy).ok


def test_a_torn_last_atom_is_cut(tmp_path: Path, numbered: Any, is_numbered: Any) -> None:
    with JournalWriter(tmp_path / "live", {}, segment_rows=64) as writer:
        writer.append(numbered(0, 10))
        torn = numbered(10, 4)
        torn["seq"] = range(10, 14)
        ctypes.memmove(writer.room()[0], torn.tobytes(), 256)  # an atom that the engine had not finished
        copy = _crash_with(tmp_path / "live", tmp_path / "copy", committed=13)
    assert "rows from 10 on are torn" in str(verify(copy))
    assert len(JournalReader(copy).poll()) == 10
    with JournalWriter(copy, {}, segment_rows=64) as again:
        assert again.seq == 10
    assert is_numbered(read_all(copy)) and len(read_all(copy)) == 10 and verify(copy).ok


def test_a_sealed_block_changed_after_a_crash_is_not_sealed_over(tmp_path: Path, numbered: Any, until: Any) -> None:
    with JournalWriter(tmp_path / "live", {}, segment_rows=4096, fsync_ms=1.0) as writer:
        writer.append(numbered(0, 3000))
        seal = tmp_path / "live" / "000000.seal"
        until(lambda: seal.exists() and seal.stat().st_size == 64 + 2 * 32, "two sealed blocks")
        assert str(verify(tmp_path / "live")) == "sealed through row 2047, 952 rows of tail unsealed"
        shutil.copytree(tmp_path / "live", tmp_path / "copy", ignore=shutil.ignore_patterns("*.tmp"))
    with open(tmp_path / "copy" / "000000.seg", "r+b") as file:
        file.seek(4096 + 1500 * 64 + 33)
        file.write(b"\xee")
    with pytest.raises(JournalError, match="has changed since it was sealed, in rows 1024 to 2047"):
        JournalWriter(tmp_path / "copy", {})


def test_definitions_kernel_hash_and_checkpoint_are_laid_in_every_segment(tmp_path: Path, numbered: Any) -> None:
    digest = "ab" * 32
    definitions = {"kernel_hash": "0123456789abcdef", "checkpoint": [7, digest], "instruments": [{"symbol": "BTCUSDT"}]}
    with JournalWriter(tmp_path, definitions, segment_rows=4) as writer:
        writer.append(numbered(0, 3))
        writer.checkpoint = (2, "cd" * 32)
        writer.append(numbered(3, 3))
    first, second = JournalReader(tmp_path), JournalReader(tmp_path, start=3)
    assert first.definitions == second.definitions == definitions
    assert (first.header.kernel_hash, first.header.checkpoint) == ("0123456789abcdef", (7, digest))
    assert (second.header.previous, second.header.checkpoint, second.base_seq) == ("000000.seg", (2, "cd" * 32), 3)
    assert second.header.created_ns >= first.header.created_ns > 1_600_000_000_000_000_000


def test_large_definitions_make_a_longer_header(tmp_path: Path, numbered: Any, is_numbered: Any) -> None:
    definitions = {"text": "x" * 10_000}
    with JournalWriter(tmp_path, definitions, segment_rows=8) as writer:
        writer.append(numbered(0, 8))
    assert JournalReader(tmp_path).definitions == definitions and is_numbered(read_all(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"segment_rows": 0}, "segment_rows is 0"),
        ({"fsync_ms": 0.0}, "fsync_ms is 0.0"),
        ({"definitions": {"x": object()}}, "definitions cannot be stored"),
        ({"definitions": {"kernel_hash": "x" * 33}}, "kernel_hash is 33 bytes"),
        ({"definitions": {"checkpoint": (1, "abc")}}, "checkpoint is"),
    ],
)
def test_bad_arguments_are_named_and_leave_the_folder_free(
    tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(JournalError, match=said):
        JournalWriter(tmp_path, **{"definitions": {}, **arguments})
    JournalWriter(tmp_path, {}, segment_rows=8).close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("needs the mount command")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _write_until_full(writer: JournalWriter, numbered: Any) -> int:
    """Write as a host does: stop at the halt, then the last rows into what is left."""
    while writer.halt_reason is None:
        writer.append(numbered(writer.seq, 10))
    left = writer.room()[1]
    assert left > 0, "the halt came with no room left for the last rows"
    writer.append(numbered(writer.seq, left))
    with pytest.raises(JournalError, match=r"cannot be allocated: No space left on device"):
        writer.append(numbered(writer.seq, 1))
    return writer.seq


def test_a_full_disk_halts_with_a_reason_and_loses_nothing(small_disk: Path, numbered: Any, is_numbered: Any) -> None:
    folder = small_disk / "journal"
    writer = JournalWriter(folder, {}, segment_rows=1024)
    written = _write_until_full(writer, numbered)
    assert len(read_all(folder)) == written
    writer.close()
    assert is_numbered(read_all(folder)) and len(read_all(folder)) == written
    assert verify(folder).ok and verify(folder).sealed_rows == written
    with pytest.raises(JournalError, match="No space left on device"):
        JournalWriter(folder, {}, segment_rows=1024)
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    with JournalWriter(folder, {}, segment_rows=1024) as again:
        assert again.append(numbered(written, 5)) == written
    assert is_numbered(read_all(folder)) and verify(folder).ok


def test_a_disk_too_full_for_the_seal_leaves_the_rows_readable_and_the_next_writer_seals_them(
    small_disk: Path, numbered: Any, is_numbered: Any
) -> None:
    folder = small_disk / "journal"
    writer = JournalWriter(folder, {}, segment_rows=512)
    written = _write_until_full(writer, numbered)
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    writer.close()
    report = verify(folder)
    assert writer.halt_reason is not None and report.ok and report.unsealed_rows > 0
    assert is_numbered(read_all(folder)) and len(read_all(folder)) == written
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    JournalWriter(folder, {}, segment_rows=512).close()
    assert verify(folder).ok and verify(folder).sealed_rows == written and len(run_hash(folder)) == 64


def slow_write(rows: RowArray, seq: int, atom_rows: int) -> RowArray:
    """Return what `extend` writes, row by row in plain Python."""
    out = rows.copy()
    held, head, last = 0, 0, 0
    for i in range(len(rows)):
        if rows["kind"][i] != CONT:
            if held >= atom_rows:
                out["flags"][last] |= Flag.COMMIT
                held = 0
            head = last = i
        for name in ("source", "span"):
            out[name][i] = rows[name][head]
        out["seq"][i] = (seq + head) & 0xFFFFFFFF
        held += 1
    if len(rows):
        out["flags"][last] |= Flag.COMMIT
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(16, 64),
    st.integers(0, 5),
)
def test_extend_writes_what_the_slow_reference_writes_over_any_segments(
    heads: list[tuple[int, bool]], atom_rows: int, segment_rows: int, before: int
) -> None:
    parts = []
    for i, (span, committed) in enumerate(heads):
        head = np.zeros(1 + span, ROW)
        head["px"] = np.arange(1 + span) + 1000 * i
        head["kind"], head["source"] = CONT, 77  # of the payload: to be overwritten
        head["kind"][0], head["span"][0], head["source"][0] = Kind.TEXT, span, i
        head["flags"][0] = Flag.LAST | (Flag.COMMIT if committed else 0)
        parts.append(head)
    rows = join_rows(parts)
    first = np.zeros(before, ROW)
    first["kind"] = Kind.CLOCK
    with tempfile.TemporaryDirectory() as folder:
        with JournalWriter(Path(folder), {}, segment_rows=segment_rows, fsync_ms=None) as writer:
            writer.append(first)
            assert writer.extend(rows, atom_rows=atom_rows) == before
            assert writer.seq == before + len(rows)
        written = read_all(Path(folder))[before:]
        expected = slow_write(rows, before, atom_rows)
        assert written.tobytes() == expected.tobytes()
        reader, seen = JournalReader(Path(folder)), 0
        while len(batch := reader.poll(1)):
            seen += len(batch)
            assert len(batch) <= max(before, atom_rows + 3)
        assert seen == before + len(rows)


def test_extend_row_by_row_makes_every_row_an_atom(tmp_path: Path, numbered: Any, is_numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=1024, fsync_ms=None) as writer:
        writer.extend(numbered(0, 5000), atom_rows=1)
    rows = read_all(tmp_path)
    assert is_numbered(rows) and (rows["flags"] == Flag.COMMIT).all()


def test_a_bad_row_is_named_and_the_atoms_before_it_stand(tmp_path: Path, numbered: Any, is_numbered: Any) -> None:
    rows = numbered(0, 20)
    rows["span"][17] = 2
    with JournalWriter(tmp_path, {}, segment_rows=64, fsync_ms=None) as writer:
        with pytest.raises(JournalError, match=r"rows\[17\] has span 2; expected 2 payload rows"):
            writer.extend(rows, atom_rows=5)
        assert writer.seq == 15
        with pytest.raises(JournalError, match="atom_rows is 0"):
            writer.extend(rows, atom_rows=0)
        writer.append(numbered(15, 5))
    assert is_numbered(read_all(tmp_path))


def test_an_atom_longer_than_a_segment_is_refused(tmp_path: Path) -> None:
    rows = np.zeros(40, ROW)
    rows["kind"][1:] = CONT
    rows["kind"][0], rows["span"][0] = Kind.TEXT, 39
    with (
        JournalWriter(tmp_path, {}, segment_rows=32, fsync_ms=None) as writer,
        pytest.raises(JournalError, match="has 32 rows"),
    ):
        writer.extend(rows, atom_rows=1)
