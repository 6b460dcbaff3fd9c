"""`hftlab demo`: the whole path in one command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hftlab.cli", "demo", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "HFTLAB_TEST_MARK": str(home)}, start_new_session=True,
    )  # fmt: skip


def left(home: Path) -> list[psutil.Process]:
    """Return the processes that carry the mark of a demo started here."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HFTLAB_TEST_MARK") == str(home) and process.pid != os.getpid():
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_demo_trades_verifies_replays_and_says_so_in_one_json_line(home: Path) -> None:
    process = start(home, "--seconds", "20", "--json")
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    told = json.loads(out.splitlines()[-1])
    assert told["orders"] >= 200 and told["fills"] >= 20 and told["ticks_to_order"] >= 200, told
    assert told["book_gaps"] == 0 and told["journal_verified"] and told["replay_identical"], told
    assert told["replayed_submits"] > 0 and told["rows"] > told["orders"]
    assert 0 < told["tick_to_order_p50_us"] <= told["tick_to_order_p99_us"]
    assert told["dashboard_url"].startswith("http://127.0.0.1:")
    assert left(home) == []


def test_ctrl_c_stops_everything_and_leaves_no_process(home: Path) -> None:
    process = start(home)
    assert process.stderr is not None
    line = ""
    while "dashboard:" not in line:
        line = process.stderr.readline()
        assert line, "the demo ended before its dashboard was up"
    time.sleep(2)
    assert len(left(home)) >= 4  # demo, venue, trader, dashboard
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "replay_identical" in out and "True" in out
    assert left(home) == []


def test_ctrl_c_during_the_start_leaves_no_process(home: Path) -> None:
    process = start(home)
    deadline = time.monotonic() + 60
    while len(left(home)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert left(home) == []
