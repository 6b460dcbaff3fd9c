"""The supervisor over stand-in traders: what it starts, restarts, gives up, adopts, and leaves behind (nothing).

The same promises over the real trader and venue are in tests/notebook/test_session.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hftlab.core.errors import ConfigError, Refused
from hftlab.journal import read_all
from hftlab.services import control, supervisor
from hftlab.services.control import NotRunning
from hftlab.services.paths import journal_holder
from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec, read_spec, write_spec

STAND_IN = Path(__file__).with_name("stand_in_trader.py")
NOWHERE = {"rest": "http://127.0.0.1:9", "stream": "ws://127.0.0.1:9", "ws_api": "ws://127.0.0.1:9"}
RUN = (
    "import sys; from hftlab.services import supervisor; supervisor.STALLED_S = float(sys.argv[2]); "
    "sys.exit(supervisor.Supervisor(trader=[sys.executable, sys.argv[1]]).run())"
)


def spec(name: str = "s", **params: Any) -> SessionSpec:
    plan = {"name": "Maker", "source": "", "params": params, "compiled": True, "version": ""}
    return SessionSpec(name, "sim", ("BTCUSDT",), plan, {"BTCUSDT": CAREFUL_LIMITS["BTCUSDT"]}, endpoints=NOWHERE)


def start_supervisor(stalled_s: float = supervisor.STALLED_S) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", RUN, str(STAND_IN), str(stalled_s)], start_new_session=True)
    until(lambda: socket_answers() == process.pid)
    return process


def socket_answers() -> int:
    from hftlab.services.control import ask
    from hftlab.services.paths import home

    try:
        return int(ask(home() / "supervisor.sock", {"do": "list"}, 5.0)["pid"])
    except NotRunning:
        return 0


def until(true: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Return what `true` returns once it is true; fail when it never is."""
    deadline = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.02)
    return value


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def processes(home: Path) -> list[psutil.Process]:
    """Return every process that lives in this test's home: all of them carry it in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HFTLAB_HOME") == str(home) and process.pid != os.getpid():
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


@pytest.fixture
def kept(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a running supervisor of stand-in traders; afterwards nothing may be left."""
    process = start_supervisor()
    yield process
    try:
        supervisor.shutdown()
    finally:
        process.wait(10)
        left = processes(home)
        for one in left:
            one.kill()
    assert left == []


def begin(given: SessionSpec) -> tuple[Path, dict[str, Any]]:
    """Start a session and wait until the supervisor, too, has seen that it has started."""
    supervisor.start(given)
    status = supervisor.await_trading(given.folder, 60)
    until(lambda: [one["state"] for one in supervisor.ensure()["sessions"] if one["name"] == given.name] == ["running"])
    return given.folder, status


def supervisor_pid_of(folder: Path) -> int:
    """Return the process that the supervisor takes for the session's trader."""
    return next(int(one["pid"]) for one in supervisor.ensure()["sessions"] if one["folder"] == str(folder))


def state(folder: Path) -> str:
    return str(supervisor.describe(folder)["state"])


def test_supervisor_and_traders_have_process_sessions_of_their_own(kept: subprocess.Popen[bytes]) -> None:
    folder, status = begin(spec())
    sessions = {os.getsid(0), os.getsid(kept.pid), os.getsid(status["pid"])}
    assert len(sessions) == 3
    assert supervisor.describe(folder)["pid"] == status["pid"]


def test_sockets_and_folders_are_the_users_alone(kept: subprocess.Popen[bytes], home: Path) -> None:
    folder, _ = begin(spec())
    for path in (home / "supervisor.sock", folder / "control.sock"):
        assert path.stat().st_mode & 0o777 & ~0o600 == 0, path
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.iterdir() if path.stat().st_mode & 0o077] == []


def test_ensure_starts_one_supervisor_in_its_own_process_session_and_shutdown_leaves_nothing(home: Path) -> None:
    try:
        pid = supervisor.ensure()["pid"]
        assert supervisor.ensure()["pid"] == pid
        assert os.getsid(pid) == pid != os.getsid(0)
        again = subprocess.run([sys.executable, "-m", "hftlab.services.supervisor"], timeout=60)
        assert again.returncode == 0, "a second supervisor of the same root ends at once, without complaint"
        assert supervisor.ensure()["pid"] == pid
        assert (home / "supervisor.sock").stat().st_mode & 0o777 == 0o600
    finally:
        assert supervisor.shutdown()
    assert processes(home) == []
    assert not supervisor.shutdown(), "there is none to shut down"


def test_a_killed_trader_is_restarted_and_goes_on_in_the_same_journal(kept: subprocess.Popen[bytes]) -> None:
    folder, status = begin(spec())
    until(lambda: len(read_all(folder / "journal")) > 5)
    os.kill(status["pid"], signal.SIGKILL)
    until(lambda: state(folder) == "trading" and supervisor.describe(folder)["pid"] != status["pid"])
    before = len(read_all(folder / "journal"))
    until(lambda: len(read_all(folder / "journal")) > before)
    assert supervisor.describe(folder)["restarts"] == 1


def test_a_trader_that_stands_still_is_killed_and_restarted(kept: subprocess.Popen[bytes]) -> None:
    folder, status = begin(spec())
    os.kill(status["pid"], signal.SIGSTOP)
    stopped_at = time.monotonic()
    until(lambda: gone(status["pid"]))
    assert time.monotonic() - stopped_at > 2.0, "it was given its three seconds"
    until(lambda: state(folder) == "trading")
    assert control.request(folder, "status")["pid"] != status["pid"]


def test_a_halt_reaches_the_successor_of_a_trader_that_does_not_answer(kept: subprocess.Popen[bytes]) -> None:
    folder, status = begin(spec())
    os.kill(status["pid"], signal.SIGSTOP)
    told = supervisor.halt(folder, "news")
    assert (told["latched"], told["open"]) == (True, -1)
    until(lambda: state(folder) == "halted")
    after = control.request(folder, "status")
    assert (after["halt_reason"], after["pid"] != status["pid"]) == ("news", True)


def test_a_halt_right_after_the_trader_was_killed_holds_for_its_successor_until_resumed(
    kept: subprocess.Popen[bytes],
) -> None:
    folder, status = begin(spec())
    os.kill(status["pid"], signal.SIGKILL)
    told = supervisor.halt(folder, "news")
    assert (told["latched"], told["open"]) == (True, -1)
    assert (folder / "halt").read_text() == "news\n"
    until(lambda: state(folder) == "halted")
    assert supervisor.describe(folder)["reason"] == "news"
    os.kill(control.request(folder, "status")["pid"], signal.SIGKILL)
    until(lambda: state(folder) in ("halted", "trading") and supervisor.describe(folder)["restarts"] == 2)
    assert state(folder) == "halted", "it stays latched"
    control.request(folder, "resume")
    assert state(folder) == "trading"
    assert supervisor.describe(folder)["reason"] == "", "why it was restarted is over"


def test_a_halt_that_the_trader_takes_is_its_own_answer_and_is_latched_too(kept: subprocess.Popen[bytes]) -> None:
    folder, _ = begin(spec())
    told = supervisor.halt(folder, "news")
    assert (told["state"], told["open"], "latched" in told) == ("halted", 0, False)
    assert (folder / "halt").stat().st_mode & 0o077 == 0


def test_a_trader_that_is_still_starting_halts_before_it_trades(kept: subprocess.Popen[bytes]) -> None:
    given = spec(starting=2)
    supervisor.start(given)
    until(lambda: supervisor.describe(given.folder)["pid"])  # it answers
    assert supervisor.halt(given.folder, "news")["latched"]
    assert supervisor.await_trading(given.folder, 30)["state"] == "halted"


def test_a_dead_session_is_latched_and_an_ended_one_is_not_running(kept: subprocess.Popen[bytes]) -> None:
    folder, status = begin(spec())
    ended, _ = begin(spec("ended"))
    supervisor.stop(ended)
    with pytest.raises(NotRunning, match="session ended is not running, so it cannot halt; it has stopped"):
        supervisor.halt(ended, "news")
    kept.kill()
    kept.wait()
    os.kill(status["pid"], signal.SIGKILL)
    until(lambda: gone(status["pid"]))
    assert supervisor.halt(folder, "news")["latched"]
    with pytest.raises(NotRunning):
        supervisor.halt(ended, "news")
    assert [(one / "halt").exists() for one in (folder, ended)] == [True, False]


def test_a_second_life_that_hangs_is_killed_and_the_third_such_halts_the_session(
    kept: subprocess.Popen[bytes],
) -> None:
    folder, status = begin(spec(hangs=1))
    os.kill(status["pid"], signal.SIGKILL)
    second = until(lambda: (pid := supervisor_pid_of(folder)) not in (0, status["pid"]) and pid)
    until(lambda: psutil.Process(second).status() == psutil.STATUS_STOPPED)
    hung_at = time.monotonic()
    until(lambda: gone(second))
    assert 1.0 < time.monotonic() - hung_at < 10.0, "three seconds, not the three minutes of a start"
    until(lambda: state(folder) == "halted")
    told = supervisor.describe(folder)
    assert (told["reason"], told["restarts"]) == ("its trader stood still 3 times in a row", 4)


def test_a_trader_that_hangs_even_when_halted_is_given_up_with_a_word_about_its_orders(home: Path) -> None:
    process = start_supervisor(stalled_s=0.8)
    try:
        folder, status = begin(spec(hangs=2))
        os.kill(status["pid"], signal.SIGKILL)
        until(lambda: state(folder) == "failed")
        reason = supervisor.describe(folder)["reason"]
        assert "stood still 4 times in a row" in reason
        assert "orders may still be open: look at the venue" in reason
    finally:
        supervisor.shutdown()
        process.wait(10)
    assert processes(home) == []


def test_a_stopped_trader_without_a_supervisor_is_adopted_and_no_second_one_is_started(
    kept: subprocess.Popen[bytes],
) -> None:
    folder, status = begin(spec())
    os.kill(status["pid"], signal.SIGSTOP)
    kept.kill()
    kept.wait()
    successor = start_supervisor()
    try:
        again = supervisor.start(spec())
        assert (again["already"], again["pid"]) == (True, status["pid"])
        assert not (folder.parent / ".archive").exists()
        until(lambda: gone(status["pid"]), 15)  # it stands still, and had started
        until(lambda: state(folder) == "trading")
        assert supervisor.describe(folder)["restarts"] == 1
    finally:
        supervisor.shutdown()
        successor.wait(10)


@pytest.mark.parametrize("orphan", [True, False])
def test_whoever_holds_the_journal_is_not_started_over_and_only_an_orphan_is_adopted(
    kept: subprocess.Popen[bytes], orphan: bool
) -> None:
    folder = write_spec(spec())
    trader = subprocess.Popen([sys.executable, str(STAND_IN), str(folder)])
    try:
        until(lambda: journal_holder(folder) == trader.pid)
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        if orphan:
            (folder / "run.json").write_text(json.dumps({"supervisor_pid": ended.pid, "state": "running"}))
        os.kill(trader.pid, signal.SIGSTOP)
        with pytest.raises(Refused, match=f"start: session s is already running as process {trader.pid}"):
            supervisor.start(spec(edge=3))
        assert not (folder.parent / ".archive").exists()
        assert [one["pid"] for one in supervisor.ensure()["sessions"]] == [trader.pid] * orphan
    finally:
        trader.kill()
        trader.wait()


def test_a_trader_that_does_not_answer_is_asked_one_question_at_a_time(kept: subprocess.Popen[bytes]) -> None:
    given = spec(deaf=2)
    supervisor.start(given)
    asked = until(lambda: (given.folder / "asked").exists() and (given.folder / "asked").read_text())
    assert asked == "1", "in two seconds of eight looks"


def test_a_specification_that_is_lost_is_written_again_and_the_trader_comes_back_to_its_orders(
    kept: subprocess.Popen[bytes],
) -> None:
    folder, status = begin(spec())
    (folder / "session.json").write_text('{"schema": 1, "na')
    told = supervisor.describe(folder)
    assert (told["state"], told["pid"]) == ("trading", status["pid"])
    os.kill(status["pid"], signal.SIGKILL)
    until(lambda: state(folder) == "trading" and supervisor.describe(folder)["pid"] != status["pid"])
    assert read_spec(folder) == spec()
    assert "session.json could not be read" in supervisor.describe(folder)["reason"]


@pytest.mark.parametrize("by", ["signal", "supervisor"])
def test_a_session_that_is_ended_in_its_start_says_so(kept: subprocess.Popen[bytes], by: str) -> None:
    given = spec(starting=60)
    pid = supervisor.start(given)["pid"]
    until(lambda: supervisor.describe(given.folder)["pid"])  # it answers
    if by == "signal":
        os.kill(pid, signal.SIGTERM)
    else:
        supervisor.stop(given.folder)
    with pytest.raises(ConfigError, match=r"session s did not start: stopped while starting$"):
        supervisor.await_trading(given.folder, 30)
    assert state(given.folder) == "stopped"


def test_a_trader_that_was_asked_to_stop_is_not_restarted(kept: subprocess.Popen[bytes]) -> None:
    by_supervisor, _ = begin(spec("one"))
    by_socket, _ = begin(spec("two"))
    assert supervisor.stop(by_supervisor)["state"] == "stopped"
    control.request(by_socket, "stop")
    until(lambda: state(by_socket) == "stopped")
    time.sleep(0.5)
    assert [supervisor.describe(f)["restarts"] for f in (by_supervisor, by_socket)] == [0, 0]
    for folder in (by_supervisor, by_socket):
        with pytest.raises(NotRunning, match="is not running, so it cannot stop"):
            supervisor.stop(folder)


def test_a_deaf_trader_is_stopped_by_force_and_said_to_be(kept: subprocess.Popen[bytes], home: Path) -> None:
    folder, status = begin(spec())
    os.kill(status["pid"], signal.SIGSTOP)
    told = supervisor.stop(folder)
    assert told["state"] == "stopped"
    assert gone(status["pid"])


@pytest.mark.parametrize("code", [1, 4, 7])
def test_a_trader_that_cannot_start_is_not_restarted_and_its_last_word_is_kept(
    kept: subprocess.Popen[bytes], code: int
) -> None:
    given = spec(exit_code=code)
    supervisor.start(given)
    with pytest.raises(ConfigError, match="session s did not start: collar is missing"):
        supervisor.await_trading(given.folder, 30)
    assert supervisor.describe(given.folder)["restarts"] == 0


def test_a_trader_that_keeps_dying_is_given_up_after_five_restarts(kept: subprocess.Popen[bytes]) -> None:
    given = spec(rows=3)
    supervisor.start(given)
    until(lambda: state(given.folder) == "failed", 90)
    told = supervisor.describe(given.folder)
    assert (told["restarts"], told["reason"]) == (
        5,
        "the trader died 6 times within a minute; it last said: out of luck; its orders may still be open: look at the "
        "venue",
    )


def test_starting_what_runs_joins_it_and_another_specification_is_refused(kept: subprocess.Popen[bytes]) -> None:
    _, status = begin(spec())
    again = supervisor.start(spec())
    assert (again["already"], again["pid"]) == (True, status["pid"])
    with pytest.raises(Refused, match="running with another specification; stop it first"):
        supervisor.start(spec(edge=3))


def test_a_new_start_archives_the_ended_session_and_a_folder_goes_on_with_its_journal(
    kept: subprocess.Popen[bytes],
) -> None:
    folder, _ = begin(spec())
    supervisor.stop(folder)
    rows = len(read_all(folder / "journal"))
    supervisor.start(folder)
    supervisor.await_trading(folder)
    supervisor.stop(folder)
    assert len(read_all(folder / "journal")) > rows, "started by its folder, it went on"
    begin(spec())
    (archived,) = (folder.parent / ".archive").iterdir()
    assert len(read_all(archived / "journal")) > rows > 0
    assert [one["name"] for one in supervisor.overview()] == ["s"]


def test_sigterm_stops_the_supervisor_and_every_session(kept: subprocess.Popen[bytes], home: Path) -> None:
    folders = [begin(spec(name))[0] for name in ("one", "two")]
    kept.terminate()
    assert kept.wait(30) == 0
    assert processes(home) == []
    assert [one["state"] for one in supervisor.overview()] == ["stopped", "stopped"]
    assert not (home / "supervisor.sock").exists()
    assert all(len(read_all(folder / "journal")) for folder in folders)


def test_traders_outlive_a_killed_supervisor_and_the_next_one_adopts_them(
    kept: subprocess.Popen[bytes], home: Path
) -> None:
    folder, status = begin(spec())
    kept.kill()
    kept.wait()
    assert control.request(folder, "status")["pid"] == status["pid"]
    successor = start_supervisor()
    try:
        until(lambda: (supervisor.ensure()["sessions"] or [{}])[0].get("pid") == status["pid"])
        os.kill(status["pid"], signal.SIGKILL)  # it is watched again
        until(lambda: state(folder) == "trading")
        assert supervisor.stop(folder)["restarts"] == 1
    finally:
        supervisor.shutdown()
        successor.wait(10)


def test_a_session_whose_processes_are_gone_is_dead_not_running(kept: subprocess.Popen[bytes]) -> None:
    folder, status = begin(spec())
    kept.kill()
    kept.wait()
    os.kill(status["pid"], signal.SIGKILL)
    until(lambda: gone(status["pid"]))
    assert state(folder) == "dead"


def test_what_the_supervisor_does_not_understand_is_answered_with_a_sentence(
    kept: subprocess.Popen[bytes], home: Path
) -> None:
    for message, sentence in (
        ({"do": "dance"}, "expected start, list, stop, halt or shutdown"),
        ({"do": "stop", "name": "nobody"}, "no session 'nobody' is held here; there are none"),
        ({"do": "start", "folder": str(home / "x")}, "expected the specification of a session"),
        ({"do": "start", "spec": {"name": "x"}}, "defect|missing|symbols"),
    ):
        with pytest.raises(Refused, match=sentence):
            control.ask(home / "supervisor.sock", message, 5.0)
    assert socket_answers() == kept.pid, "and it goes on"
