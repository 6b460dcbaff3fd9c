"""The supervisor: one process a user, outside every notebook, that owns the trading sessions.

**Why a process of its own.** Jupyter signals the kernel's whole process group on interrupt and kills it on restart, and
a cell in a busy loop starves every thread of its process. Traders that must not notice any of it need a parent
elsewhere: the supervisor is started in its own process session by the first client that wants one, answers on
``<root>/supervisor.sock`` (0600), and ends by itself when it has held no session for a minute.

**What it does for a session.** It starts the simulated venue (mode sim), the trader, and a dashboard when asked; it
restarts what dies, and it kills a trader that is alive but stands still. The sign of life is the journal: a trader
writes a row at least every 100 ms, so a journal that has not grown for `STALLED_S` means a trader that neither trades
nor guards its orders. One that has not yet said that it has started (it compiles, recovers, connects) has
`START_LIMIT_S`.

**What it does not do.** It never decides about orders. The trader that it restarts recovers from its own journal and
settles its open orders by its policy. A trader that ended by itself with 0 (or 8: orders are left open) was asked to,
one that ended with a configuration error (4) or a refusal (7) would only do so again, and one that never wrote a row
would not start the next time either: these are not restarted. Others are, after a growing pause, at most
`RESTARTS_A_MINUTE` times.

**Worst case accepted.** A supervisor that is killed leaves its traders trading, unwatched; the next supervisor adopts
those that answer (their simulated venue died with its parent and is started again at its old port, without its orders).
The journal is looked at four times a second, so a stall ends after up to `STALLED_S` + 0.75 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hftlab.core.errors import ConfigError, HftlabError, JournalError, ReaderBehind, Refused
from hftlab.services import control
from hftlab.services.control import NotRunning, TimedOut, ask
from hftlab.services.paths import archive_session, check_socket_path, home, list_sessions
from hftlab.services.process import await_ready, last_words, service, spawn
from hftlab.services.spec import ENDPOINTS, SessionSpec, read_spec, write_spec

__all__ = [
    "IDLE_S",
    "OPEN_STATES",
    "RESTARTS_A_MINUTE",
    "STALLED_S",
    "START_LIMIT_S",
    "Supervisor",
    "await_dashboard",
    "await_trading",
    "describe",
    "ensure",
    "halt",
    "main",
    "overview",
    "shutdown",
    "start",
    "status",
    "stop",
]

STALLED_S = 3.0
"""A trader whose journal has not grown for this long is killed and restarted, seconds."""
START_LIMIT_S = 180.0
"""A trader that has not started within this long is killed: a first start on a slow machine compiles for a minute."""
RESTARTS_A_MINUTE = 5
IDLE_S = 60.0
"""A supervisor that has held no session for this long ends."""

_LOOK_S = 0.05
_JOURNAL_LOOK_S = 0.25
_READY_S = 60.0
_STOP_S = 20.0
_OPEN_ORDERS_LEFT = 8
_NOT_AGAIN = {4: "its configuration is wrong", 7: "it was refused"}

RUN_FILE = "run.json"
OPEN_STATES = ("starting", "running", "restarting", "trading", "halted", "faulted", "stopping", "silent")
"""The states of a session that has not ended."""


class _Process(Protocol):
    """What is asked of a process, whether it is our child or was adopted."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...


class _Adopted:
    """A trader whose supervisor has died; its exit code is not ours to know."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        return None if _is_alive(self.pid) else -1

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie (dead, and in a container perhaps never collected) does not."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except OSError:  # no /proc on this system, or it ended between the two looks
        return not Path("/proc/self").exists()


class _Heartbeat:
    """Whether a trader's journal grows, counted from the moment it was made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader: Any = None
        self._from_start = not folder.is_dir()  # a journal that appears later is new from its first row
        self.grown = False
        self.seen_at = time.monotonic()
        self._look()

    def _look(self) -> bool:
        from hftlab.journal import JournalReader

        if self._reader is None:
            try:
                self._reader = JournalReader(self._folder, start=0 if self._from_start else None)
            except ReaderBehind:
                self._from_start = False
                return False
            except JournalError:  # no segment yet
                self._from_start = True
                return False
        grown = False
        try:
            while len(self._reader.poll()):
                grown = True
        except JournalError:  # rotated away under us: look from its end on
            self._reader, self._from_start = None, False
        return grown

    def silent_s(self) -> float:
        """Return for how long the journal has not grown."""
        if self._look():
            self.grown, self.seen_at = True, time.monotonic()
        return time.monotonic() - self.seen_at


class _Held:
    """One session in the supervisor's care."""

    def __init__(self, folder: Path, spec: SessionSpec, *, dash: bool) -> None:
        self.folder, self.spec, self.dash = folder, spec, dash
        self.state, self.reason = "starting", ""
        self.trader: _Process | None = None
        self.venue: subprocess.Popen[bytes] | None = None
        self.dashboard: subprocess.Popen[bytes] | None = None
        self.dashboard_url = ""
        self.tend_again = 0.0
        self.tending: asyncio.Task[None] | None = None
        self.endpoints: dict[str, str] | None = spec.endpoints
        self.started_at = time.time()
        self.restarted: deque[float] = deque(maxlen=RESTARTS_A_MINUTE)
        self.restarts = 0
        self.has_started = False
        self.stopping = False
        self.halt_reason: str | None = None
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "mode": self.spec.mode,
            "folder": str(self.folder),
            "state": self.state,
            "reason": self.reason,
            "pid": 0 if self.trader is None else self.trader.pid,
            "venue_pid": 0 if self.venue is None else self.venue.pid,
            "endpoints": self.endpoints,
            "dashboard_url": self.dashboard_url,
            "restarts": self.restarts,
            "started_at": self.started_at,
            "supervisor_pid": os.getpid(),
        }

    def remember(self) -> None:
        """Write the description beside the session, for whoever comes when this supervisor has gone."""
        beside = self.folder / "run.tmp"
        beside.write_text(json.dumps(self.describe(), indent=1))
        beside.replace(self.folder / RUN_FILE)


def _recall(folder: Path) -> dict[str, Any]:
    """Return what the last supervisor of a session wrote, empty if nothing readable."""
    try:
        plain = json.loads((folder / RUN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stderr, flush=True)


class Supervisor:
    """Keeps sessions running.

    Parameters
    ----------
    trader, venue, dashboard : sequence of str
        The commands that start them, the services of this package by default; tests put a stand-in here.
    """

    def __init__(
        self,
        *,
        trader: Sequence[str] = (),
        venue: Sequence[str] = (),
        dashboard: Sequence[str] = (),
    ) -> None:
        self._trader = list(trader) or service("trader")
        self._venue = list(venue) or service("venue")
        self._dashboard = list(dashboard) or service("dashboard")
        self._root = home()
        self._sessions: dict[Path, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_since = time.monotonic()

    # --- the process --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM, a shutdown request, or a minute without sessions; return the exit code.

        Another supervisor of the same root is no error: this one then ends at once, and clients find the other.
        """
        os.umask(0o077)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._root / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        asyncio.run(self._serve())
        return 0

    def run_one(self, session: SessionSpec | Path, *, dash: bool = False) -> int:
        """Keep one session in this process until it ends or SIGINT or SIGTERM stops it; 0 if it ended as asked."""
        os.umask(0o077)
        folder = session if isinstance(session, Path) else session.folder
        _refuse_if_running(folder)
        if isinstance(session, SessionSpec):
            _lay_afresh(session)
        return asyncio.run(self._serve_one(folder, dash))

    async def _serve(self) -> None:
        path = _socket_path()
        path.unlink(missing_ok=True)
        self._ending = self._on_signals()
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_unix_server(self._on_client, check_socket_path(path), limit=control.MAX_LINE)
        path.chmod(0o600)  # the umask has kept others out from the beginning
        _say(f"supervisor {os.getpid()} listens at {path}")
        try:
            await asyncio.to_thread(self._find_orphans)
            while not self._ending.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), 1.0)
                if any(not held.ended.is_set() for held in self._sessions.values()):
                    self._idle_since = time.monotonic()
                elif time.monotonic() - self._idle_since > IDLE_S:
                    break
        finally:
            await asyncio.gather(*(self._stop(held) for held in self._sessions.values()))
            server.close()
            path.unlink(missing_ok=True)
            _say(f"supervisor {os.getpid()} ends")

    async def _serve_one(self, folder: Path, dash: bool) -> int:
        ending = self._on_signals()
        held = self._hold(_Held(folder, read_spec(folder), dash=dash))
        ended = asyncio.create_task(held.ended.wait())
        await asyncio.wait({ended, asyncio.create_task(ending.wait())}, return_when=asyncio.FIRST_COMPLETED)
        await self._stop(held)
        return 0 if held.state == "stopped" else 1

    @staticmethod
    def _on_signals() -> asyncio.Event:
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        return ending

    # --- clients ------------------------------------------------------------------------------------------------------

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that left, a line beyond the limit, the supervisor's own end
        with contextlib.suppress(ConnectionError, ValueError, asyncio.CancelledError):
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        self._idle_since = time.monotonic()
        try:
            message = json.loads(line)
            do = message.get("do") if isinstance(message, dict) else None
            if do == "start":
                return await self._on_start(message)
            if do == "list":
                return {"ok": True, "pid": os.getpid(), "sessions": [h.describe() for h in self._sessions.values()]}
            if do == "stop":
                held = self._find(message)
                await self._stop(held)
                return {"ok": True, **held.describe()}
            if do == "halt":
                return await self._on_halt(self._find(message), str(message.get("reason", "")))
            if do == "shutdown":
                self._ending.set()
                return {"ok": True, "pid": os.getpid()}
            return {"ok": False, "error": f"do: {do!r}; expected start, list, stop, halt or shutdown"}
        except (HftlabError, ValueError) as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:  # the next request must still be answered
            _say(traceback.format_exc())
            return {"ok": False, "error": f"a defect of the supervisor: {type(error).__name__}: {error}"}

    def _find(self, message: dict[str, Any]) -> _Held:
        for held in self._sessions.values():
            if message.get("folder") == str(held.folder) or message.get("name") == held.spec.name:
                return held
        names = ", ".join(held.spec.name for held in self._sessions.values()) or "none"
        raise ConfigError(
            f"no session {message.get('folder') or message.get('name')!r} is held here; there are {names}"
        )

    async def _on_start(self, message: dict[str, Any]) -> dict[str, Any]:
        given = message.get("spec")
        if given is None:
            folder = Path(str(message.get("folder")))
            spec = read_spec(folder)
        else:
            spec = SessionSpec(**{**given, "symbols": tuple(given["symbols"])})
            folder = spec.folder
        held = self._sessions.get(folder)
        if held is not None and held.state in ("stopped", "failed"):
            await held.ended.wait()  # its venue and dashboard are being ended
        if held is not None and not held.ended.is_set():
            if given is None or read_spec(folder) == spec:
                return {"ok": True, "already": True, **held.describe()}
            raise ConfigError(
                f"session {spec.name} is running with another specification; stop it first, or choose another name"
            )
        await asyncio.to_thread(_refuse_if_running, folder)
        if given is not None:
            _lay_afresh(spec)
        held = self._hold(_Held(folder, spec, dash=bool(message.get("dash"))))
        await held.begun.wait()
        return {"ok": True, "already": False, **held.describe()}

    async def _on_halt(self, held: _Held, reason: str) -> dict[str, Any]:
        """Halt a session; a trader that does not answer is killed, and its successor halted once it has recovered."""
        held.halt_reason = reason
        try:
            reply = await asyncio.to_thread(control.request, held.folder, "halt", 2.0, reason=reason)
        except (TimedOut, NotRunning) as error:
            _say(f"{held.spec.name}: halt: {error}; killed, to be halted after its recovery")
            if held.trader is not None:
                held.trader.send_signal(signal.SIGKILL)
            return {"ok": True, "canceled": [], "open": -1, "restarting": True}
        held.halt_reason = None
        return reply

    # --- one session --------------------------------------------------------------------------------------------------

    def _hold(self, held: _Held) -> _Held:
        self._sessions[held.folder] = held
        task = asyncio.get_running_loop().create_task(self._keep(held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return held

    async def _keep(self, held: _Held) -> None:
        """Run a session to its end."""
        try:
            while await self._one_life(held):
                pause = 0.1 * 2 ** len(held.restarted)
                await asyncio.sleep(pause)
                if held.stopping:
                    held.state = "stopped"
                    break
        except HftlabError as error:
            held.state, held.reason = "failed", str(error)
        except Exception as error:
            _say(traceback.format_exc())
            held.state, held.reason = "failed", f"a defect of the supervisor: {type(error).__name__}: {error}"
        finally:
            if held.tending is not None:
                held.tending.cancel()
            await self._end(held.trader, 5.0)
            await self._end(held.dashboard, 1.0)
            await self._end(held.venue, 1.0)
            _say(f"{held.spec.name}: {held.state} {held.reason}")
            with contextlib.suppress(OSError):  # the folder may have been removed
                held.remember()
            held.begun.set()
            held.ended.set()
            self._idle_since = time.monotonic()

    async def _one_life(self, held: _Held) -> bool:
        """Run one trader process to its end and return whether another is to follow."""
        if _needs_venue(held) and held.endpoints is None:
            await self._start_venue(held)
        if held.trader is None or held.trader.poll() is not None:
            held.trader = self._start_trader(held)
        heartbeat = _Heartbeat(held.folder / "journal")
        held.begun.set()
        held.remember()
        code = await self._watch(held, heartbeat)
        _say(f"{held.spec.name}: trader {held.trader.pid} ended with {code}")
        if held.stopping or code in (0, _OPEN_ORDERS_LEFT):
            held.state = "stopped"
            if code == _OPEN_ORDERS_LEFT:
                held.reason = "orders are left open or unknown; look at them at the venue"
            elif code and not held.reason:
                held.reason = f"the trader ended with {code}: {last_words(held.folder / 'trader.log')}"
            return False
        words = last_words(held.folder / "trader.log")
        if code in _NOT_AGAIN or not (heartbeat.grown or held.has_started or held.restarts):
            held.state = "failed"
            held.reason = words or _NOT_AGAIN.get(code, f"the trader ended with {code} before its first row")
            return False
        now = time.monotonic()
        if len(held.restarted) == RESTARTS_A_MINUTE and now - held.restarted[0] < 60.0:
            held.state = "failed"
            held.reason = f"the trader died {RESTARTS_A_MINUTE + 1} times within a minute; it last said: {words}"
            return False
        while held.restarted and now - held.restarted[0] >= 60.0:
            held.restarted.popleft()
        held.restarted.append(now)
        held.restarts += 1
        held.state, held.reason = "restarting", f"ended with {code}: {words}"
        return True

    async def _watch(self, held: _Held, heartbeat: _Heartbeat) -> int:
        """Return the trader's exit code, after killing it if it stands still."""
        trader = held.trader
        assert trader is not None
        born, next_look, started = time.monotonic(), 0.0, False
        while (code := trader.poll()) is None:
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _JOURNAL_LOOK_S
                silent = heartbeat.silent_s()
                if not started and await self._has_started(held):
                    started, silent, heartbeat.seen_at = True, 0.0, time.monotonic()
                    held.state, held.has_started = "running", True
                    held.remember()
                    _say(f"{held.spec.name}: trader {trader.pid} has started")
                if started and held.halt_reason is not None:
                    await self._halt_again(held)
                if (started and silent > STALLED_S) or (not started and time.monotonic() - born > START_LIMIT_S):
                    _say(f"{held.spec.name}: no row for {silent:.1f} s; trader {trader.pid} is killed")
                    trader.send_signal(signal.SIGKILL)
                if held.tending is None or held.tending.done():
                    held.tending = asyncio.get_running_loop().create_task(self._tend(held))
            await asyncio.sleep(_LOOK_S)
        heartbeat.silent_s()  # it may have written its first rows since the last look
        return code

    @staticmethod
    async def _has_started(held: _Held) -> bool:
        try:
            status = await asyncio.to_thread(control.request, held.folder, "status", 0.5)
        except HftlabError:
            return False
        return status.get("state") != "starting" and held.trader is not None and status.get("pid") == held.trader.pid

    @staticmethod
    async def _halt_again(held: _Held) -> None:
        with contextlib.suppress(NotRunning, TimedOut):  # not up yet: tried again at the next look
            await asyncio.to_thread(control.request, held.folder, "halt", 2.0, reason=held.halt_reason)
            held.halt_reason = None

    async def _tend(self, held: _Held) -> None:
        """Restart the venue and the dashboard of a session when they have died, every 5 s at most."""
        if held.stopping or time.monotonic() < held.tend_again:
            return
        try:
            if _needs_venue(held) and (held.venue is None or held.venue.poll() is not None):
                held.tend_again = time.monotonic() + 5.0
                _say(f"{held.spec.name}: its venue has ended; started again at the same port")
                await self._start_venue(held)
            if held.dash and (held.dashboard is None or held.dashboard.poll() is not None):
                held.tend_again = time.monotonic() + 5.0
                await self._start_dashboard(held)
        except ConfigError as error:  # trading goes on as it can; tried again
            _say(f"{held.spec.name}: {error}")

    async def _stop(self, held: _Held) -> None:
        """End a session: ask, then insist."""
        held.stopping = True
        if held.ended.is_set():
            return
        steps: list[tuple[int, float]] = [(signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)]
        with contextlib.suppress(HftlabError):  # what does not answer is signalled
            await asyncio.to_thread(control.request, held.folder, "stop", 3.0)
            steps.insert(0, (0, _STOP_S))
        for number, seconds in steps:
            trader = held.trader
            if number and trader is not None and trader.poll() is None:
                held.reason = f"the trader did not stop when asked; ended by {signal.Signals(number).name}"
                _say(f"{held.spec.name}: {held.reason}")
                trader.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(held.ended.wait(), seconds)
                return

    # --- processes ----------------------------------------------------------------------------------------------------

    def _start_trader(self, held: _Held) -> subprocess.Popen[bytes]:
        command = [*self._trader, str(held.folder)]
        if held.endpoints is not None:
            command += ["--endpoints", json.dumps(held.endpoints)]
        process = spawn(command, held.folder / "trader.log")
        _say(f"{held.spec.name}: trader {process.pid} starts")
        return process

    async def _start_venue(self, held: _Held) -> None:
        port = 0 if held.endpoints is None else int(held.endpoints["rest"].rpartition(":")[2].strip("/"))
        await self._end(held.venue)
        command = [*self._venue, "--port", str(port), "--die-with-parent"]
        for symbol in held.spec.symbols:
            command += ["--symbol", symbol]
        for name, value in held.spec.venue_args.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        held.venue = spawn(command, held.folder / "venue.log", answers=True)
        log = held.folder / "venue.log"
        ready = await asyncio.to_thread(await_ready, held.venue, log, "the simulated venue", _READY_S)
        held.endpoints = {name: ready[name] for name in ENDPOINTS}

    async def _start_dashboard(self, held: _Held) -> None:
        command = [*self._dashboard, str(held.folder), "--port", "0", "--die-with-parent"]
        await self._end(held.dashboard)
        held.dashboard = spawn(command, held.folder / "dashboard.log", answers=True)
        log = held.folder / "dashboard.log"
        ready = await asyncio.to_thread(await_ready, held.dashboard, log, "the dashboard", _READY_S)
        held.dashboard_url = str(ready.get("url", ""))
        held.remember()

    @staticmethod
    async def _end(process: _Process | None, patience_s: float = 1.0) -> None:
        """End a process if it still runs: by SIGTERM, after `patience_s` by SIGKILL."""
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + patience_s
            if process.poll() is None:
                process.send_signal(number)
            while process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(_LOOK_S)
        if isinstance(process, subprocess.Popen) and process.stdout is not None:
            process.stdout.close()

    def _find_orphans(self) -> None:
        """Adopt the traders that outlived their supervisor."""
        for folder in list_sessions():
            run = _recall(folder)
            if not run or _is_alive(int(run.get("supervisor_pid", 0))):
                continue
            try:
                pid = int(control.request(folder, "status", 1.0)["pid"])
                held = _Held(folder, read_spec(folder), dash=bool(run.get("dashboard_url")))
            except (HftlabError, KeyError):
                continue
            held.trader, held.endpoints = _Adopted(pid), run.get("endpoints")
            held.restarts = int(run.get("restarts", 0))
            _say(f"{held.spec.name}: trader {pid} adopted")
            self._loop.call_soon_threadsafe(self._hold, held)


def _needs_venue(held: _Held) -> bool:
    return held.spec.mode == "sim" and held.spec.endpoints is None


def _lay_afresh(spec: SessionSpec) -> None:
    """Write a new session's specification, after moving an ended session of its name away."""
    archive_session(spec.folder)
    write_spec(spec)


def _refuse_if_running(folder: Path) -> None:
    """Raise Refused if a trader answers there that is not ours."""
    with contextlib.suppress(NotRunning, TimedOut):
        status = control.request(folder, "status", 0.5)
        raise Refused("start", f"session {folder.name} is already running as process {status.get('pid')}")


# --- the client's side ------------------------------------------------------------------------------------------------


def _socket_path() -> Path:
    return home() / "supervisor.sock"


def ensure(timeout_s: float = 30.0) -> dict[str, Any]:
    """Return the running supervisor's list of sessions, starting the supervisor if there is none.

    Raises
    ------
    TimedOut
        If a supervisor that was started does not answer; the message names its log.
    """
    try:
        return ask(_socket_path(), {"do": "list"}, timeout_s)
    except NotRunning:
        _start_supervisor()
    log = home() / "supervisor.log"
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask(_socket_path(), {"do": "list"}, timeout_s)
        except NotRunning as error:
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"the supervisor did not start within {timeout_s:g} s: {last_words(log)} ({log})"
                ) from error
        time.sleep(0.05)


def _start_supervisor() -> None:
    root = home()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_socket_path(_socket_path())
    process = spawn(service("supervisor"), root / "supervisor.log")
    # Whoever started it must also collect it, or a dead supervisor stays a zombie for as long as this process lives
    threading.Thread(target=process.wait, name="supervisor's end", daemon=True).start()


def start(session: SessionSpec | Path, *, dash: bool = False) -> dict[str, Any]:
    """Start a session; return the supervisor's description of it, with ``already`` true if it was running.

    Parameters
    ----------
    session : SessionSpec or Path
        A specification starts afresh: an ended session of that name is archived. A folder continues the session in it
        from its journal.
    dash : bool
        Serve a dashboard as long as the session runs.

    Raises
    ------
    Refused
        If a session of that name runs with another specification, or outside this supervisor.
    """
    what = {"folder": str(session)} if isinstance(session, Path) else {"spec": _without_schema(session)}
    ensure()
    return ask(_socket_path(), {"do": "start", "dash": dash, **what}, _READY_S + 10.0)


def _without_schema(spec: SessionSpec) -> dict[str, Any]:
    plain = spec.to_dict()
    del plain["schema"]
    return plain


def _held(folder: Path) -> dict[str, Any] | None:
    """Return the supervisor's description of a session, None if it holds none there or is not running."""
    try:
        sessions = ask(_socket_path(), {"do": "list"}, 5.0)["sessions"]
    except NotRunning:
        return None
    return next((dict(one) for one in sessions if one["folder"] == str(folder)), None)


def await_trading(folder: Path, timeout_s: float = 180.0) -> dict[str, Any]:
    """Wait until the session's trader is ready, and return its status.

    Raises
    ------
    ConfigError
        If it failed; the message is the trader's own last line.
    TimedOut
        If it is still starting after `timeout_s` seconds (the first start on a machine compiles for up to a minute).
    """
    deadline = time.monotonic() + timeout_s
    state = "unknown"
    while time.monotonic() < deadline:
        held = _held(folder) or _recall(folder)
        state = str(held.get("state", state))
        if state in ("failed", "stopped"):
            raise ConfigError(f"session {folder.name} did not start: {held.get('reason') or state}")
        with contextlib.suppress(NotRunning, TimedOut):
            status = control.request(folder, "status", 2.0)
            state = str(status["state"])
            if state != "starting":
                return status
        time.sleep(0.05)
    raise TimedOut(f"session {folder.name} is still {state} after {timeout_s:g} s; see {folder / 'trader.log'}")


def await_dashboard(folder: Path, timeout_s: float = 20.0) -> str:
    """Return the address of a session's dashboard; "" if there is none after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        held = _held(folder) or {}
        if held.get("dashboard_url") or held.get("state") in (None, "stopped", "failed"):
            return str(held.get("dashboard_url", ""))
        time.sleep(0.05)
    return ""


def stop(folder: Path, timeout_s: float = 60.0) -> dict[str, Any]:
    """Stop a session: its strategy's on_stop runs, its orders are canceled and confirmed, its processes end.

    Raises
    ------
    NotRunning
        If it does not run.
    """
    held = _held(folder)
    if held is None or held["state"] in ("stopped", "failed"):
        return control.request(folder, "stop", timeout_s)
    return ask(_socket_path(), {"do": "stop", "folder": str(folder)}, timeout_s)


def halt(folder: Path, reason: str, timeout_s: float = 2.0) -> dict[str, Any]:
    """Pull a session's kill switch: new orders are refused, open ones canceled, until it is resumed.

    A trader that does not answer within `timeout_s` seconds is killed by the supervisor and halted as soon as its
    successor has recovered; the reply then has ``restarting`` true.

    Raises
    ------
    NotRunning
        If it does not run.
    TimedOut
        If it does not answer and no supervisor holds it.
    """
    try:
        return control.request(folder, "halt", timeout_s, reason=reason)
    except TimedOut:
        if _held(folder) is None:
            raise
    return ask(_socket_path(), {"do": "halt", "folder": str(folder), "reason": reason}, timeout_s + 5.0)


def shutdown(timeout_s: float = 60.0) -> bool:
    """Stop every session and the supervisor; return whether there was one. Comes back when it has ended.

    Raises
    ------
    TimedOut
        If it is still there after `timeout_s` seconds.
    """
    try:
        pid = int(ask(_socket_path(), {"do": "shutdown"}, 5.0)["pid"])
    except NotRunning:
        return False
    deadline = time.monotonic() + timeout_s
    while _is_alive(pid):
        if time.monotonic() > deadline:
            raise TimedOut(
                f"supervisor {pid} still runs {timeout_s:g} s after shutdown; see {home() / 'supervisor.log'}"
            )
        time.sleep(0.02)
    return True


def overview() -> list[dict[str, Any]]:
    """Return one dict a session, newest first: name, mode, state, reason, pid, strategy, symbols, restarts, folder.

    ``state`` is the trader's own word where it answers (trading, halted, starting, ...), else how it ended; "dead" is a
    session that neither runs nor was stopped.
    """
    try:
        held = {one["folder"]: one for one in ask(_socket_path(), {"do": "list"}, 5.0)["sessions"]}
    except NotRunning:
        held = {}
    return [_describe(folder, held.get(str(folder))) for folder in list_sessions()]


def status(folder: Path, timeout_s: float = 2.0) -> dict[str, Any]:
    """Return what a trader says of itself, or, where none answers, how the session ended; ``state`` is always there."""
    try:
        return control.request(folder, "status", timeout_s)
    except (NotRunning, TimedOut):
        return describe(folder)


def describe(folder: Path) -> dict[str, Any]:
    """Return what `overview` says of one session."""
    return _describe(folder, _held(folder))


def _describe(folder: Path, held: dict[str, Any] | None) -> dict[str, Any]:
    run = held or _recall(folder)
    state, pid = str(run.get("state", "dead")), 0
    if held is None and state not in ("stopped", "failed"):
        state = "dead"
    try:
        status = control.request(folder, "status", 1.0)
        state, pid = str(status["state"]), int(status["pid"])
    except TimedOut:
        state = "silent"
    except NotRunning:
        pass  # how it ended is known from `run`
    strategy = symbols = ""
    try:
        spec = read_spec(folder)
        strategy, symbols = spec.strategy.get("version") or spec.strategy["name"], ",".join(spec.symbols)
    except ConfigError as error:
        state = f"unreadable: {error}"
    return {
        "name": folder.name,
        "mode": folder.parent.name,
        "state": state,
        "reason": run.get("reason", ""),
        "pid": pid,
        "strategy": strategy,
        "symbols": symbols,
        "restarts": run.get("restarts", 0),
        "dashboard_url": run.get("dashboard_url", ""),
        "folder": str(folder),
    }


def main() -> int:
    """Run the supervisor of ``HFTLAB_HOME``; return the exit code."""
    return Supervisor().run()


if __name__ == "__main__":
    sys.exit(main())
