"""The session commands from outside: one session's whole life, and the exit code of everything that can be wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hftlab.cli import ExitCode
from hftlab.core.rows import Kind
from hftlab.journal import JournalReader, read_all
from hftlab.services import supervisor
from hftlab.services.paths import session_folder

CODE = "from hftlab.cli import main; main()"
MAKER = "hftlab.strategies.maker:Maker"


REGISTER = """
from pathlib import Path
from hftlab.notebook.launch import read_strategy
from hftlab.services.spec import CAREFUL_LIMITS
from hftlab.tracking import Artefact, register
plan = read_strategy("hftlab.strategies.maker:Maker", {"edge_ticks": 1}).strategy
limits = {"BTCUSDT": CAREFUL_LIMITS["BTCUSDT"]}
artefact = Artefact.of(plan["source"], "Maker", plan["params"], ("BTCUSDT",), limits)
print(register(artefact, name="quoter", alias="champion", mlruns=Path("mlruns")).label)
"""


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, cwd=cwd)


@pytest.fixture
def swept(home: Path) -> Iterator[Path]:
    """Return an empty home whose supervisor, if one was started, is shut down afterwards."""
    yield home
    supervisor.shutdown()


def test_a_session_is_served_listed_watched_halted_resumed_stopped_and_replayed(swept: Path) -> None:
    served = run("serve", MAKER, "--name", "lab", "-p", "edge_ticks=0", "--json")
    assert served.returncode == ExitCode.DONE, served.stderr
    told = json.loads(served.stdout)
    assert (told["name"], told["mode"], told["state"]) == ("lab", "sim", "trading")
    with urllib.request.urlopen(told["dashboard_url"], timeout=20) as page:
        assert page.status == 200

    (listed,) = json.loads(run("sessions", "--json").stdout)["sessions"]
    assert (listed["name"], listed["state"], listed["pid"]) == ("lab", "trading", told["pid"])
    assert re.search(r"lab +sim +trading +Maker +BTCUSDT", run("sessions").stdout)
    assert re.search(r"session +lab  sim  trading", run("attach", "lab").stdout), "without a terminal it prints once"

    again = run("serve", MAKER, "--name", "lab", "-p", "edge_ticks=0")
    assert again.returncode == ExitCode.REFUSED
    assert f"session lab is already running as process {told['pid']}" in again.stderr
    assert " CONTROL COMMIT start" in run("journal", "show", "lab", "-n", "500").stdout
    assert len(run("journal", "tail", "lab", "-n", "3").stdout.splitlines()) == 3

    halted = run("halt", "--all", "--json")
    assert halted.returncode == ExitCode.DONE and json.loads(halted.stdout)["halted"]["lab"]["open"] == 0
    assert json.loads(run("attach", "lab", "--json").stdout)["state"] == "halted"
    asked = run("resume", "lab")
    assert (asked.returncode, asked.stdout) == (ExitCode.REFUSED, "")
    assert "--confirm lab" in asked.stderr
    assert run("resume", "lab", "--confirm", "lab").stdout == "lab is trading\n"

    stopped = run("stop", "lab")
    assert stopped.returncode == ExitCode.DONE, stopped.stderr
    assert stopped.stdout.startswith("lab has stopped; 0 orders open; position BTCUSDT ")
    for command in ("stop", "halt"):
        assert run(command, "lab").returncode == ExitCode.NOT_RUNNING

    assert run("journal", "verify", "lab").returncode == ExitCode.DONE
    assert "sessions: lab" in run("journal", "show", "other").stderr

    replayed = run("replay", "lab", "--json")
    assert replayed.returncode == ExitCode.DONE, replayed.stderr
    found = json.loads(replayed.stdout)
    assert (found["replay_identical"], found["journal_verified"], found["rows"]) == (
        True,
        True,
        len(read_all(session_folder("sim", "lab") / "journal")),
    )
    assert found["replayed_submits"] > 0


def test_a_halt_of_a_trader_that_was_just_killed_exits_8_and_its_successor_never_trades(swept: Path) -> None:
    served = run("serve", MAKER, "--name", "down", "--no-dash", "--json")
    assert served.returncode == ExitCode.DONE, served.stderr
    folder = session_folder("sim", "down")
    os.kill(json.loads(served.stdout)["pid"], signal.SIGKILL)
    killed_at = time.time_ns()
    halted = run("halt", "down", "--reason", "news")
    assert halted.returncode == ExitCode.EXPOSURE, halted.stderr
    assert halted.stdout == "down: the halt is latched; it will be halted before its first order when it is back\n"
    deadline = time.monotonic() + 60
    while supervisor.describe(folder)["state"] != "halted" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert re.search(r"down +sim +halted .* news$", run("sessions").stdout, re.MULTILINE)
    rows = read_all(folder / "journal")
    submits = (rows["kind"] == Kind.SUBMIT) & (rows["ts_recv"] > killed_at)
    assert not submits.any()
    assert run("halt", "down", "--reason", "news").returncode == ExitCode.DONE, "it now confirms that none is open"

    shutil.rmtree(folder / "journal")
    stopped = run("stop", "down")
    assert stopped.returncode == ExitCode.DONE, stopped.stderr
    assert "down has stopped; 0 orders open; its journal cannot be read" in stopped.stdout


def test_sessions_lists_what_ended_within_a_day_and_with_all_the_rest_in_short_cells(home: Path) -> None:
    for name in ("old", "new"):
        folder = session_folder("sim", name)
        folder.mkdir(parents=True)
        (folder / "session.json").write_text('{"schema": 1, ' + "x" * 300)
    for path in (session_folder("sim", "old") / "session.json", session_folder("sim", "old")):
        os.utime(path, (time.time() - 90_000,) * 2)
    plain, every = run("sessions"), run("sessions", "--all")
    assert "1 ended more than a day ago; --all lists them too" in plain.stderr
    assert [line.split()[0] for line in plain.stdout.splitlines()[1:]] == ["new"]
    assert [line.split()[0] for line in every.stdout.splitlines()[1:]] == ["new", "old"]
    assert re.search(r"new +sim +(unreadable|dead) ", every.stdout)
    assert max(map(len, every.stdout.splitlines())) < 160


def test_attach_redraws_in_a_terminal_until_interrupted_and_the_session_goes_on(swept: Path) -> None:
    assert run("serve", MAKER, "--name", "seen", "--no-dash").returncode == ExitCode.DONE
    master, slave = pty.openpty()
    command = [sys.executable, "-c", CODE, "attach", "seen"]
    watcher = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + 60
    while shown.count(b"trading") < 3 and time.monotonic() < deadline:
        shown += os.read(master, 65536)
    watcher.send_signal(signal.SIGINT)
    while b"it goes on" not in shown and time.monotonic() < deadline:
        shown += os.read(master, 65536)
    assert watcher.wait(20) == ExitCode.DONE
    os.close(master)
    assert shown.count(b"trading") >= 3 and b"it goes on" in shown
    assert json.loads(run("attach", "seen", "--json").stdout)["state"] == "trading"


def test_a_promoted_version_is_served_as_it_was_promoted_and_its_name_is_in_the_journal(
    swept: Path, tmp_path: Path
) -> None:
    registered = subprocess.run(
        [sys.executable, "-c", REGISTER], capture_output=True, text=True, timeout=180, cwd=tmp_path
    )
    assert registered.returncode == 0, registered.stderr
    label = registered.stdout.split()[-1]
    for changed in (["-p", "edge_ticks=2"], ["--symbols", "BTCUSDT"], ["--limits", "BTCUSDT:max_order=1"]):
        refused = run("serve", "quoter@champion", *changed, cwd=tmp_path)
        assert refused.returncode == ExitCode.CONFIG and "promote" in refused.stderr.lower()
    assert run("serve", "quoter@none", cwd=tmp_path).returncode == ExitCode.NOT_FOUND
    served = run("serve", "quoter@champion", "--no-dash", "--json", cwd=tmp_path)
    assert served.returncode == ExitCode.DONE, served.stderr
    assert json.loads(served.stdout)["name"] == "quoter"
    (listed,) = json.loads(run("sessions", "--json").stdout)["sessions"]
    assert (listed["strategy"], listed["state"]) == (label, "trading")
    strategy = JournalReader(session_folder("sim", "quoter") / "journal").definitions["strategy"]
    assert (strategy["version"], strategy["params"]) == (label, {"edge_ticks": 1})
    assert run("stop", "quoter").returncode == ExitCode.DONE


def test_a_session_in_the_foreground_needs_no_supervisor_and_ends_with_its_process(home: Path) -> None:
    command = [sys.executable, "-c", CODE, "serve", MAKER, "--name", "fore", "--no-dash", "--foreground"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "has started" in line:
            break
    assert "has started" in said, said
    assert not (home / "supervisor.sock").exists()
    again = run("serve", MAKER, "--name", "fore", "--no-dash", "--foreground")
    assert again.returncode == ExitCode.REFUSED
    assert "session fore is already running as process" in again.stderr
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(30) == ExitCode.DONE
    assert run("stop", "fore").returncode == ExitCode.NOT_RUNNING
    assert re.search(r"replay_identical +True", run("replay", "fore").stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["stop", "none"], ExitCode.NOT_FOUND, "there is no session 'none'"),
        (["halt", "none"], ExitCode.NOT_FOUND, "there is no session 'none'"),
        (["attach", "none"], ExitCode.NOT_FOUND, "there is no session 'none'"),
        (["dash", "none"], ExitCode.NOT_FOUND, "there is no session 'none'"),
        (["replay", "none"], ExitCode.NOT_FOUND, "there is no session 'none'"),
        (["resume", "none", "--confirm", "none"], ExitCode.NOT_FOUND, "there is no session 'none'"),
        (["serve", "none.py:Maker"], ExitCode.CONFIG, "there is no file none.py"),
        (["serve", MAKER, "-p", "edge=1"], ExitCode.CONFIG, "no parameter 'edge'"),
        (["serve", MAKER, "--mode", "live"], ExitCode.CONFIG, "mode: 'live'; expected one of sim, paper"),
        (
            ["serve", MAKER, "--mode", "paper", "--endpoints", "rest=x"],
            ExitCode.CONFIG,
            "endpoints: 'rest=x'; expected",
        ),
        (["serve", MAKER, "--symbols", "XRPUSDT"], ExitCode.CONFIG, "limits: none for XRPUSDT"),
        (["serve", MAKER, "--limits", "x.toml"], ExitCode.CONFIG, "x.toml cannot be read"),
        (["halt"], ExitCode.USAGE, "give a session's name, or --all"),
        (["halt", "a", "--all"], ExitCode.USAGE, "give a session's name, or --all"),
        (["venue", "--speed", "0"], ExitCode.CONFIG, "speed=0.0; expected above 0"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_its_exit_code(
    home: Path, arguments: list[str], code: ExitCode, sentence: str
) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not (home / "supervisor.sock").exists(), "nothing was started for it"


def test_no_sessions_is_an_empty_list_not_an_error(home: Path) -> None:
    assert json.loads(run("sessions", "--json").stdout) == {"schema": 1, "sessions": []}
    assert run("halt", "--all").returncode == ExitCode.DONE
