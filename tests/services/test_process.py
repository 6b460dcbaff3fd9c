"""Children: what they say is kept, what they do not say is told, and they end with who started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hftlab.core.errors import ConfigError
from hftlab.services import process
from hftlab.services.process import await_ready, last_words, spawn


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_service_is_ready_when_it_has_said_so_in_one_json_line(home: Path) -> None:
    child = spawn(python("print('{\"port\": 7}', flush=True); input()"), home / "log", answers=True)
    assert await_ready(child, home / "log", "it", 30.0) == {"port": 7}
    assert child.wait(10) == 1  # nothing to read: its stdin is empty


def test_a_service_that_ends_is_told_by_its_last_words(home: Path) -> None:
    child = spawn(python("import sys; sys.exit('no such symbol\\n\\n')"), home / "log", answers=True)
    with pytest.raises(ConfigError, match=r"it did not start: no such symbol \(.*log\)"):
        await_ready(child, home / "log", "it", 30.0)


def test_a_service_that_is_late_is_killed(home: Path) -> None:
    child = spawn(python("import time; time.sleep(600)"), home / "log", answers=True)
    with pytest.raises(ConfigError, match=r"it was not ready within 0\.2 s; see .*log"):
        await_ready(child, home / "log", "it", 0.2)
    assert child.wait(10) == -signal.SIGKILL


def test_a_child_stands_in_the_root_leads_its_own_session_and_keeps_its_bytecode(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = "import os, sys; print(os.getcwd(), os.getsid(0) == os.getpid(), sys.dont_write_bytecode)"
    assert spawn(python(code), home / "log").wait(30) == 0
    assert last_words(home / "log") == f"{home} True False"


def test_a_log_that_has_grown_large_is_moved_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LOG_BYTES", 3)
    (home / "trader.log").write_text("old words")
    assert spawn(python("print('new')"), home / "trader.log").wait(30) == 0
    assert last_words(home / "trader.log") == "new"
    assert (home / "trader.log.1").read_text() == "old words"


def test_a_log_that_is_not_there_has_no_last_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none") == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_follower_ends_when_its_parent_is_killed() -> None:
    follower = (
        "import os, time; from hftlab.services.process import follow_parent; follow_parent(); "
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {follower!r}])"),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_follower_whose_parent_ended_while_it_started_ends_too(home: Path) -> None:
    follower = (
        "import os, time; open('pid', 'w').write(str(os.getpid())); parent = os.getppid()\n"
        "while os.getppid() == parent: time.sleep(0.01)\n"  # it imports, and its parent ends
        "from hftlab.services.process import follow_parent; follow_parent(); open('stays', 'w'); time.sleep(600)"
    )
    parent = (
        "import pathlib, sys, time; from hftlab.services.process import spawn\n"
        f"spawn([sys.executable, '-c', {follower!r}], pathlib.Path('log').absolute())\n"
        "while not pathlib.Path('pid').exists(): time.sleep(0.01)"
    )
    subprocess.run(python(parent), cwd=home, check=True, timeout=60)
    pid = int((home / "pid").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (home / "stays").exists()
