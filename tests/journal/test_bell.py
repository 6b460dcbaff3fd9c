"""The bell: no ring is lost, a sleeper is woken, a dead one costs one ring."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hftlab.core.errors import JournalError
from hftlab.core.rows import Flag, Kind
from hftlab.journal import JournalReader, JournalWriter
from hftlab.journal.bell import BELL_FILE, Bell
from hftlab.kernels.system import LINUX

# A reader that takes every row as it comes. A ring is lost when a sleep ran its 50 ms although rows had come: between
# two rows the writer lets less than 1 ms pass.
_FOLLOW = """
import sys; from pathlib import Path
from hftlab.journal import JournalReader
from hftlab.journal.bell import BELL_FILE, Bell
from hftlab.kernels.system import LINUX
reader, want = JournalReader(Path(sys.argv[1])), int(sys.argv[2])
bell, lost, slept = Bell(Path(sys.argv[1]) / BELL_FILE), 0, 0
print("ready", flush=True)
while reader.position < want:
    if len(reader.poll(1)):
        continue
    count = bell.arm()
    if len(reader.poll(1)):
        continue
    slept += 1
    rung = bell.sleep(count, 0.05)
    lost += len(reader.poll(1)) > 0 and not rung
print(reader.position, lost, slept, flush=True)
"""


def test_a_flag_is_answered_by_one_ring_however_often_it_was_raised(tmp_path: Path) -> None:
    writer, one, two = Bell(tmp_path / "bell", writer=True), Bell(tmp_path / "bell"), Bell(tmp_path / "bell")
    assert not writer.ring()
    first, second = one.arm(), two.arm()
    assert writer.ring() and not writer.ring()
    assert one.sleep(first, 5.0) and two.sleep(second, 5.0)


def test_a_sleep_that_nobody_ends_has_an_end(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "bell", writer=True)
    assert not bell.sleep(bell.arm(), 0.001)
    assert bell.ring()  # the flag of who has gone is taken down by the next publication


def test_a_sleeper_is_woken_by_another_thread(tmp_path: Path) -> None:
    writer, reader = Bell(tmp_path / "bell", writer=True), Bell(tmp_path / "bell")
    for _ in range(200):
        woken: list[bool] = []
        count = reader.arm()
        sleeper = threading.Thread(target=lambda count=count, woken=woken: woken.append(_sleep_long(reader, count)))
        sleeper.start()
        assert writer.ring()
        sleeper.join(30)
        assert woken == [True]


def _sleep_long(bell: Bell, count: int) -> bool:
    """Sleep in pieces, some seconds in all."""
    return any(bell.sleep(count, 1.0) for _ in range(200))


def test_a_file_that_is_no_bell_and_one_that_is_absent_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(JournalError, match="is 1 bytes; expected a bell"):
        Bell(tmp_path / "short")
    with pytest.raises(JournalError, match="cannot be opened"):
        Bell(tmp_path / "absent")


def test_a_reader_in_another_process_misses_no_row_and_no_ring(tmp_path: Path, numbered: Any, python: Any) -> None:
    n, rows = 20_000, numbered(0, 1)
    with JournalWriter(tmp_path, {}, segment_rows=4096, fsync_ms=None) as writer:
        readers = [python(_FOLLOW, tmp_path, n) for _ in range(2)]
        for reader in readers:
            assert reader.stdout.readline() == "ready\n"
        pause = threading.Event()
        for i in range(n):
            writer.append(rows)
            if i % 20 == 0:  # let them fall asleep, so that both ways of the race are taken
                pause.wait(0.0001)
        for reader in readers:
            position, lost, slept = map(int, reader.communicate(timeout=120)[0].split())
            assert position == n and slept > 100
            assert lost <= 1  # one: the sleep's end and the row came together on a busy machine


@pytest.mark.skipif(not LINUX, reason="this system has no futex: nobody rings")
def test_no_ring_is_lost_when_flag_and_publication_cross_in_the_store_buffers(tmp_path: Path) -> None:
    rounds = 5000  # without the barrier a ring is lost after some 1100
    Bell(tmp_path / "bell", writer=True)
    (tmp_path / "words").write_bytes(bytes(4096))
    script = Path(__file__).with_name("litmus.py")
    told = []
    sides = [
        subprocess.Popen(
            [sys.executable, script, role, tmp_path / "bell", tmp_path / "words", str(rounds), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for seed, role in enumerate(("ring", "wait"))
    ]  # fmt: skip
    for side in sides:
        assert side.stdout is not None and side.stdout.readline() == "ready\n"
    for side in sides:
        assert side.stdin is not None
        side.stdin.write("\n")
        side.stdin.flush()
    for side in sides:
        out, _ = side.communicate(timeout=300)
        told.append(tuple(map(int, out.split())))
    (_, (done, slept)) = told
    assert done == rounds, f"the ring of round {done + 1} was lost"
    assert slept > 100


def test_a_host_that_never_wakes_is_helped_out_by_the_writers_thread(tmp_path: Path, numbered: Any) -> None:
    row = numbered(0, 1)
    row["flags"] = Flag.COMMIT
    with JournalWriter(tmp_path, {}, segment_rows=64, fsync_ms=None) as writer:
        reader = JournalReader(tmp_path)

        def publish() -> None:
            ctypes.memmove(writer.room()[0], row.ctypes.data, 64)
            writer.commit(1)

        timer = threading.Timer(0.02, publish)
        timer.start()
        assert reader.wait(60.0)
        timer.join()


def test_without_a_bell_a_reader_looks_now_and_then(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64, fsync_ms=None) as writer:
        (tmp_path / BELL_FILE).unlink()
        reader = JournalReader(tmp_path)
        timer = threading.Timer(0.02, writer.append, (numbered(0, 3),))
        timer.start()
        assert reader.wait(60.0)
        timer.join()


def test_spinning_sees_rows_and_gives_up_after_its_turns(tmp_path: Path, numbered: Any) -> None:
    with JournalWriter(tmp_path, {}, segment_rows=64, fsync_ms=None) as writer:
        reader = JournalReader(tmp_path)
        assert not reader.spin(100)
        writer.append(numbered(0, 60))
        assert reader.spin(1) and len(reader.poll()) == 60
        writer.append(numbered(60, 10))  # in the next segment
        assert reader.spin(1) and reader.poll()["kind"].tolist() == [Kind.CLOCK] * 10
        reader.close()
        with pytest.raises(JournalError, match="closed"):
            reader.spin(1)
