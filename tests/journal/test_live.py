"""Segments in memory while they are written, the disk's copy a flush behind: what is there after each kind of end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hftlab.core.errors import JournalError
from hftlab.core.rows import ROW, Kind, RowArray
from hftlab.journal import JournalReader, JournalWriter, bounds, read_all, rotate, verify
from hftlab.journal import live as live_module
from hftlab.journal.format import disk_path
from hftlab.journal.live import live_folder, sweep

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system has no file system in memory")


def some(n: int, first: int = 0) -> RowArray:
    rows = np.zeros(n, ROW)
    rows["kind"], rows["px"] = Kind.CLOCK, np.arange(first, first + n)
    return rows


def wait_until(ready: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def on_disk(folder: Path) -> bytes:
    return disk_path(folder / "000000.seg").read_bytes()


def rows_on_disk(folder: Path) -> list[int]:
    raw = on_disk(folder)
    committed = int.from_bytes(raw[192:200], "little")
    rows = np.frombuffer(raw[-64 * 64 :], ROW)[:committed]
    return [int(px) for px in rows["px"]]


def test_a_flushed_journal_is_written_in_memory_and_settles_on_the_disk(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, {"run": 1}, segment_rows=64)
    writer.append(some(10))
    assert (tmp_path / "000000.seg").is_symlink()
    assert JournalReader(tmp_path).poll()["px"].tolist() == list(range(10))
    writer.close()
    assert not (tmp_path / "000000.seg").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".seg", ".disk", ".tmp")) == ["000000.seg"]
    assert read_all(tmp_path)["px"].tolist() == list(range(10)) and verify(tmp_path).ok
    assert not Path(str(live_folder(tmp_path)) + "/000000.seg").exists()


def test_every_row_reaches_the_disks_copy_within_a_few_flushes(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        writer.append(some(7))
        wait_until(lambda: rows_on_disk(tmp_path) == list(range(7)))
        writer.append(some(5, 7))
        wait_until(lambda: rows_on_disk(tmp_path) == list(range(12)))


def test_after_a_restart_of_the_machine_the_disks_copy_is_the_journal(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    writer = JournalWriter(folder, {"run": 2}, segment_rows=64)
    writer.append(some(9))
    wait_until(lambda: rows_on_disk(folder) == list(range(9)))
    copy = tmp_path / "after"
    copy.mkdir()
    (copy / "000000.seg").symlink_to(tmp_path / "gone")
    disk_path(copy / "000000.seg").write_bytes(on_disk(folder))
    writer.close()
    assert JournalReader(copy).poll()["px"].tolist() == list(range(9))
    assert bounds(copy) == (0, 9)
    with JournalWriter(copy, {"run": 2}, segment_rows=64) as again:
        assert again.seq == 9
        again.append(some(1, 9))
    assert read_all(copy)["px"].tolist() == list(range(10)) and verify(copy).ok


def test_a_journal_whose_copy_is_gone_too_says_so(tmp_path: Path) -> None:
    (tmp_path / "000000.seg").symlink_to(tmp_path / "gone")
    with pytest.raises(JournalError, match="has no copy on the disk"):
        JournalWriter(tmp_path, {}, segment_rows=64)


def test_kill_9_loses_no_committed_row_and_the_next_writer_settles_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, numpy as np; from pathlib import Path; from hftlab.core.rows import ROW\n"
        "from hftlab.journal import JournalWriter\n"
        "w = JournalWriter(Path(sys.argv[1]), {}, segment_rows=64, fsync_ms=1000.0)\n"
        "rows = np.zeros(50, ROW); rows['kind'] = 41; rows['px'] = np.arange(50)\n"
        "for i in range(4): w.append(rows)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False)
    assert done.returncode == -9
    assert len(read_all(tmp_path)) == 200
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        assert writer.seq == 200
    assert not any(path.is_symlink() for path in tmp_path.glob("*.seg"))
    assert list(tmp_path.glob("*.disk")) == []
    assert len(read_all(tmp_path)) == 200 and verify(tmp_path).ok


def test_a_roll_settles_the_old_segment_under_a_reader(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        reader, seen = JournalReader(tmp_path), []
        for i in range(20):
            writer.append(some(40, 40 * i))
            seen += reader.poll()["px"].tolist()
        wait_until(lambda: not (tmp_path / "000000.seg").is_symlink())
        seen += reader.poll()["px"].tolist()
        assert seen == list(range(800))
        rotate(tmp_path, 2)
        assert (tmp_path / f"{len(seen) // 40:06d}.seg").exists()


def test_without_room_in_memory_segments_lie_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_MEMORY", tmp_path / "absent")
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        writer.append(some(3))
        assert not (tmp_path / "000000.seg").is_symlink()
    assert len(read_all(tmp_path)) == 3


def test_the_memory_of_a_removed_journal_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    live = live_folder(folder)
    assert live is not None
    (live / "000000.seg").write_bytes(b"left")
    sweep()
    assert live.is_dir()
    (folder).rmdir()
    sweep()
    assert not live.exists()


def test_another_users_folder_in_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_MEMORY", tmp_path)
    (tmp_path / f"hftlab-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"hftlab-{os.getuid()}").chmod(0o777)
    assert live_folder(tmp_path) is None
