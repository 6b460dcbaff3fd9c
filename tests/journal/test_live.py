"""Segments in memory while they are written, the disk's copy a flush behind: what is there after each kind of end."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hftlab.core.errors import JournalError
from hftlab.core.rows import ROW, Kind, RowArray
from hftlab.journal import JournalReader, JournalWriter, bounds, read_all, rotate, verify
from hftlab.journal import format as format_module
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


def test_nothing_is_behind_once_every_row_is_on_the_disk_and_full_blocks_are_sealed(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=2048) as writer:
        assert writer.behind == 0
        writer.extend(some(5500), atom_rows=1)
        assert 0 <= writer.behind <= 5500
        wait_until(lambda: writer.behind == 0)
        assert verify(tmp_path).sealed_rows == 4096 + 1024
        raw = disk_path(tmp_path / "000002.seg").read_bytes()
        assert int.from_bytes(raw[192:200], "little") == 5500 - 4096
    assert writer.behind == 0


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


def live_inode(folder: Path, number: int) -> int | None:
    path = folder / f"{number:06d}.seg"
    try:
        return path.stat().st_ino if path.is_symlink() else None
    except FileNotFoundError:
        return None


def settled(folder: Path, number: int) -> bool:
    path = folder / f"{number:06d}.seg"
    return path.exists() and not path.is_symlink()


def filled(writer: JournalWriter, folder: Path, segments: int, after_each: object = lambda: None) -> list[int]:
    """Write segments of 64 rows, each settled before the next; return the live files' inodes."""
    inodes = []
    for number in range(segments):
        found = live_inode(folder, number)
        assert found is not None
        inodes.append(found)
        writer.append(some(60, 60 * number))
        after_each()  # type: ignore[operator]
        wait_until(lambda number=number: number == 0 or settled(folder, number - 1))
        writer.ensure(64)
    return inodes


def test_the_memory_of_a_settled_segment_is_used_again_and_no_row_of_it_remains(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, {"run": 3}, segment_rows=64) as writer:
        inodes = filled(writer, tmp_path, 12)
        rows = writer._segment.rows
        assert len(set(inodes)) <= 9  # three or four, and one more where a roll overtook the helper
        assert not rows.view(np.uint8).any()
    assert read_all(tmp_path)["px"].tolist() == list(range(720)) and verify(tmp_path).ok


def test_a_view_keeps_its_rows_however_many_segments_follow(tmp_path: Path) -> None:
    views: list[RowArray] = []
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        reader = JournalReader(tmp_path)
        inodes = filled(writer, tmp_path, 6, lambda: views.append(reader.poll()))
        assert len(set(inodes)) == 6  # none was free to be used again
        assert [view["px"].tolist() for view in views] == [list(range(60 * k, 60 * k + 60)) for k in range(6)]
        reader.close()
        views.clear()
        writer.append(some(60, 360))
    assert read_all(tmp_path)["px"].tolist() == list(range(420)) and verify(tmp_path).ok


def test_a_view_of_another_process_keeps_its_rows(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hftlab.journal import JournalReader\n"
        "view = JournalReader(Path(sys.argv[1])).poll()\n"
        "print(len(view), flush=True); sys.stdin.readline()\n"
        "print(view['px'].tolist() == list(range(60)), flush=True)\n"
    )
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        writer.append(some(60))
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdin is not None
            assert other.stdout.readline() == "60\n"
            held = live_inode(tmp_path, 0)
            inodes = []
            for number in range(1, 9):
                writer.ensure(64)
                inodes.append(live_inode(tmp_path, number))
                writer.append(some(60, 60 * number))
                wait_until(lambda number=number: settled(tmp_path, number - 1))
            assert held not in inodes
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "True\n"


def test_a_reader_that_is_overtaken_before_it_has_the_lock_opens_the_disks_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        writer.append(some(60))
        overtaken: list[int] = []
        lock, first = fcntl.flock, live_inode(tmp_path, 0)

        def late(fd: int, how: int) -> None:
            inode = os.fstat(fd).st_ino
            if threading.current_thread() is threading.main_thread() and inode == first and not overtaken:
                overtaken.append(inode)
                for number in range(1, 8):
                    writer.ensure(64)
                    writer.append(some(60, 60 * number))
                    wait_until(lambda number=number: settled(tmp_path, number - 1))
            lock(fd, how)

        monkeypatch.setattr(fcntl, "flock", late)
        rows = JournalReader(tmp_path).poll()
        assert overtaken and rows["px"].tolist() == list(range(60))
        assert (tmp_path / "000000.seg").stat().st_ino != overtaken[0]


def test_the_memory_that_a_killed_writer_kept_is_given_back(tmp_path: Path) -> None:
    live = live_folder(tmp_path)
    assert live is not None
    (live / "kept").write_bytes(b"left")
    with JournalWriter(tmp_path, {}, segment_rows=64) as writer:
        filled(writer, tmp_path, 3)
        wait_until(lambda: (live / "kept").exists())
    assert not live.exists() or list(live.iterdir()) == []
    assert live_folder(tmp_path) == live and not (live / "kept").exists()


@pytest.mark.parametrize("segment_rows", [64, 192, 100])  # whole pages, a page more, and an end within a page
@pytest.mark.parametrize("how", ["kernel", "python", "refused"])
def test_the_disks_copy_is_the_live_file_after_every_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_rows: int, how: str
) -> None:
    refuses = how == "refused"
    if how != "kernel":  # what the kernel leaves to Python
        monkeypatch.setattr(format_module, "_copy_out", lambda *arguments: -1)
    write, direct = os.pwritev, []

    def picky(fd: int, parts: list[memoryview], at: int) -> int:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        direct.append(bool(flags & getattr(os, "O_DIRECT", 0)))
        if refuses and direct[-1]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        n = write(fd, parts, at)
        assert n == sum(map(len, parts)) or n % 4096 == 0
        return n

    monkeypatch.setattr(os, "pwritev", picky)
    size = 4096 + 64 * segment_rows
    with JournalWriter(tmp_path, {}, segment_rows=segment_rows, fsync_ms=1.0) as writer:
        for n in (1, 3, 20, 1, 30):
            writer.append(some(n, writer.seq))
            wait_until(lambda: int.from_bytes(on_disk(tmp_path)[192:200], "little") == writer.seq)
            assert on_disk(tmp_path) == (tmp_path / "000000.seg").read_bytes()
            assert disk_path(tmp_path / "000000.seg").stat().st_size == size
    assert bool(direct) == (how != "kernel") and (size % 4096 == 0 or not any(direct))
    assert not refuses or direct[-1] is False
    assert verify(tmp_path).ok
