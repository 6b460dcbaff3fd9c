"""The supervisor: one process a user, outside every notebook, that owns the trading sessions.

**Why a process of its own.** Jupyter signals the kernel's whole process group on interrupt and kills it on restart, and
a cell in a busy loop starves every thread of its process. Traders that must not notice any of it need a parent
elsewhere: the supervisor is started in its own process session by the first client that wants one, answers on
``<root>/supervisor.sock`` (0600), and ends by itself when it has held no session for a minute.

**What it does for a session.** It starts the simulated venue (mode sim), the trader, and a dashboard when asked; it
restarts what dies, and it kills a trader that is alive but stands still. The sign of life is the journal: a trader
writes a row at least every 100 ms, so a journal that has not grown for `STALLED_S` means a trader that neither trades
nor guards its orders. One that has neither said that it has started nor begun to write steadily (it compiles, recovers,
connects) has `START_LIMIT_S`. After `STALLS` of these in a row the session is halted, after one more it is given up.

**Halting.** A halt must hold for a trader that cannot hear it. Its reason is written into the session's folder first,
where every trader looks before its first order; only then the running one is asked. `resume` takes the file away.

**What it does not do.** It never decides about orders. The trader that it restarts recovers from its own journal and
settles its open orders by its policy. A trader that ended by itself with 0 (or 8: orders are left open) was asked to,
one that ended with a configuration error (4) or a refusal (7) would only do so again, and one that never wrote a row
would not start the next time either: these are not restarted. Others are, after a growing pause, at most
`RESTARTS_A_MINUTE` times. Before each start the specification is compared with the one the session began with, and
written again if it cannot be read: a trader that is not restarted leaves its orders at the venue.

**One trader a session.** Whoever holds the lock of a session's journal trades it, whether it answers or not. Nothing is
started or moved away under it; it is adopted if its supervisor has gone, and otherwise left to whoever started it.

**Worst case accepted.** A supervisor that is killed leaves its traders trading, unwatched; the next supervisor adopts
them (their simulated venue died with its parent and is started again at its old port, without its orders).
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
from hftlab.services.paths import (
    HALT_FILE,
    SPEC_FILE,
    archive_session,
    check_socket_path,
    home,
    journal_holder,
    list_sessions,
)
from hftlab.services.process import await_ready, last_words, service, spawn
from hftlab.services.spec import ENDPOINTS, SessionSpec, read_spec, write_spec

__all__ = [
    "ENDED_STATES",
    "IDLE_S",
    "OPEN_STATES",
    "RESTARTS_A_MINUTE",
    "STALLED_S",
    "STALLS",
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
STALLS = 3
"""A session whose trader has stood still this often in a row is halted."""
IDLE_S = 60.0
"""A supervisor that has held no session for this long ends."""

_LOOK_S = 0.05
_JOURNAL_LOOK_S = 0.25
_READY_S = 60.0
_STOP_S = 20.0
_ASK_S = 5.0
_HALT_S = 12.0  # a trader waits 10 s for the venue's word
_HEALTHY_S = 60.0  # a stall after so long a life is the first in its row
_STARTING_WORDS = "stopped while starting"
_ORDERS_MAY_BE_OPEN = "its orders may still be open: look at the venue"
_OPEN_ORDERS_LEFT = 8
_NOT_AGAIN = {4: "its configuration is wrong", 7: "it was refused"}

RUN_FILE = "run.json"
OPEN_STATES = ("starting", "running", "restarting", "trading", "halted", "faulted", "stopping", "silent")
"""The states of a session that has not ended."""
ENDED_STATES = ("stopped", "failed")
"""The states of one that has. "dead" is neither: it neither runs nor was stopped."""


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


class _Life:
    """What is known of one trader process: whether its journal grows, counted from now, and whether it has started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader: Any = None
        self._from_start = not folder.is_dir()  # a journal that appears later is new from its first row
        self._growths = 0
        self.started = self.stalled = False
        self.born = self.seen_at = time.monotonic()
        self._look()

    @property
    def grown(self) -> bool:
        """Whether it has written a row."""
        return self._growths > 0

    @property
    def ticks(self) -> bool:
        """Whether it must go on writing: it has started, or has written twice (the first may mark its recovery)."""
        return self.started or self._growths > 1

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.born

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
            self._growths, self.seen_at = self._growths + 1, time.monotonic()
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
        self.asking: asyncio.Task[None] | None = None  # one question at a time, or a deaf trader's queue fills
        self.endpoints: dict[str, str] | None = spec.endpoints
        self.started_at = time.time()
        self.restarted: deque[float] = deque(maxlen=RESTARTS_A_MINUTE)
        self.restarts = 0
        self.stalls = 0
        self.has_started = False
        self.stopping = False
        self.halt_again = False
        self.remark = ""
        self.exit_code: int | None = None
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "mode": self.spec.mode,
            "folder": str(self.folder),
            "state": self.state,
            "reason": self.reason,
            "remark": self.remark,
            "exit_code": self.exit_code,
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


def _latched(folder: Path) -> str | None:
    """Return the reason of a session's latched halt, None if there is none."""
    try:
        return (folder / HALT_FILE).read_text().strip()
    except FileNotFoundError:
        return None


def _latch(folder: Path, reason: str) -> None:
    """Have every trader of this session halt before its first order, until it is resumed."""
    beside = folder / f"{HALT_FILE}.{os.getpid()}.tmp"  # whoever latches, and however many at once: the file is whole
    beside.write_text(reason + "\n")
    beside.chmod(0o600)
    beside.replace(folder / HALT_FILE)


def _running_pid(folder: Path) -> int:
    """Return the process that trades a session, 0 if none does, -1 if it is there and its number is not known."""
    if pid := journal_holder(folder):
        return pid
    try:
        return int(control.request(folder, "status", 0.5)["pid"])
    except NotRunning:
        return 0
    except (HftlabError, KeyError, ValueError):  # somebody listens there
        pid = int(_recall(folder).get("pid", 0))
        return pid if _is_alive(pid) else -1


def _is_orphan(folder: Path) -> bool:
    """Return whether the supervisor that held a session has gone."""
    run = _recall(folder)
    return bool(run) and not _is_alive(int(run.get("supervisor_pid", 0)))


def _running_already(folder: Path, pid: int) -> str:
    who = f"process {pid}" if pid > 0 else "a process that does not answer"
    return f"session {folder.name} is already running as {who}; hftlab attach {folder.name} shows it"


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
        if pid := _running_pid(folder):
            raise Refused("start", _running_already(folder, pid))
        if isinstance(session, SessionSpec):
            _lay_afresh(session)
        return asyncio.run(self._serve_one(folder, dash))

    async def _serve(self) -> None:
        path = _socket_path()
        path.unlink(missing_ok=True)
        self._ending = self._on_signals()
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._find_orphans)  # before anybody can ask for a start
        server = await asyncio.start_unix_server(self._on_client, check_socket_path(path), limit=control.MAX_LINE)
        path.chmod(0o600)  # the umask has kept others out from the beginning
        _say(f"supervisor {os.getpid()} listens at {path}")
        try:
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
        if held is not None and held.state in ENDED_STATES:
            await held.ended.wait()  # its venue and dashboard are being ended
        if held is not None and not held.ended.is_set():
            if given is None or held.spec == spec:
                return {"ok": True, "already": True, **held.describe()}
            raise ConfigError(
                f"session {spec.name} is already running with another specification; stop it first, or choose another "
                "name"
            )
        if pid := await asyncio.to_thread(_running_pid, folder):
            if pid > 0 and _is_orphan(folder):
                self._adopt(folder, pid)
            raise ConfigError(_running_already(folder, pid))
        if given is not None:
            _lay_afresh(spec)
        held = self._hold(_Held(folder, spec, dash=bool(message.get("dash"))))
        await held.begun.wait()
        return {"ok": True, "already": False, **held.describe()}

    async def _on_halt(self, held: _Held, reason: str) -> dict[str, Any]:
        """Latch a halt and pass it on; what does not take it now takes it before its first order."""
        if held.ended.is_set():
            raise ConfigError(f"session {held.spec.name} has ended ({held.state})")
        reply = await asyncio.to_thread(_halt_latched, held.folder, reason)
        held.halt_again = bool(reply.get("latched"))
        _say(f"{held.spec.name}: halt ({reason}): {json.dumps(reply)}")
        return reply

    # --- one session --------------------------------------------------------------------------------------------------

    def _hold(self, held: _Held) -> _Held:
        self._sessions[held.folder] = held
        _say(f"{held.spec.name}: held")
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
            if held.state == "failed" and held.has_started:
                held.reason += f"; {_ORDERS_MAY_BE_OPEN}"
            held.begun.set()
            held.ended.set()
            self._idle_since = time.monotonic()

    async def _one_life(self, held: _Held) -> bool:
        """Run one trader process to its end and return whether another is to follow."""
        if _needs_venue(held) and held.endpoints is None:
            await self._start_venue(held)
        if held.trader is None or held.trader.poll() is not None:
            self._mend_spec(held)
            held.trader = self._start_trader(held)
        life = _Life(held.folder / "journal")
        life.started = isinstance(held.trader, _Adopted) and held.state == "running"
        held.begun.set()
        held.remember()
        held.exit_code = code = await self._watch(held, life)
        _say(f"{held.spec.name}: trader {held.trader.pid} ended with {code}")
        asked = held.stopping or code in (0, _OPEN_ORDERS_LEFT) or (code == -signal.SIGTERM and not held.has_started)
        if asked:
            held.state = "stopped"
            if not held.has_started:
                held.reason = _STARTING_WORDS
            if code == _OPEN_ORDERS_LEFT:
                held.reason = "orders are left open or unknown; look at them at the venue"
            elif code and not held.reason:
                held.reason = f"the trader ended with {code}: {last_words(held.folder / 'trader.log')}"
            return False
        words = last_words(held.folder / "trader.log")
        held.has_started |= life.grown
        if code in _NOT_AGAIN or not (held.has_started or held.restarts):
            held.state = "failed"
            held.reason = words or _NOT_AGAIN.get(code, f"the trader ended with {code} before its first row")
            return False
        now = time.monotonic()
        held.stalls = (held.stalls if life.age_s < _HEALTHY_S else 0) + 1 if life.stalled else 0
        if held.stalls == STALLS:
            _latch(held.folder, f"its trader stood still {STALLS} times in a row")
        if held.stalls > STALLS:
            held.state, held.reason = "failed", f"its trader stood still {held.stalls} times in a row, halted at last"
            return False
        if len(held.restarted) == RESTARTS_A_MINUTE and now - held.restarted[0] < 60.0:
            held.state = "failed"
            held.reason = f"the trader died {RESTARTS_A_MINUTE + 1} times within a minute; it last said: {words}"
            return False
        while held.restarted and now - held.restarted[0] >= 60.0:
            held.restarted.popleft()
        held.restarted.append(now)
        held.restarts += 1
        why = "stood still and was killed" if life.stalled else f"ended with {code}"
        held.state, held.reason = "restarting", f"its trader {why}: {words}"
        return True

    async def _watch(self, held: _Held, life: _Life) -> int:
        """Return the trader's exit code, after killing it if it stands still."""
        trader, next_look = held.trader, 0.0
        assert trader is not None
        while (code := trader.poll()) is None:
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _JOURNAL_LOOK_S
                silent = life.silent_s()
                if silent > STALLED_S if life.ticks else life.age_s > START_LIMIT_S:
                    _say(f"{held.spec.name}: no row for {silent:.1f} s; trader {trader.pid} is killed")
                    life.stalled = True
                    trader.send_signal(signal.SIGKILL)
                if held.asking is None or held.asking.done():
                    held.asking = asyncio.get_running_loop().create_task(self._ask(held, life))
                if held.tending is None or held.tending.done():
                    held.tending = asyncio.get_running_loop().create_task(self._tend(held))
            await asyncio.sleep(_LOOK_S)
        life.silent_s()  # it may have written its first rows since the last look
        return code

    @staticmethod
    async def _ask(held: _Held, life: _Life) -> None:
        """Ask a trader that has not said so whether it has started, and pass on a halt that none has taken yet."""
        with contextlib.suppress(HftlabError):  # not up yet, or deaf: asked again at the next look
            if not life.started:
                status = await asyncio.to_thread(control.request, held.folder, "status", _ASK_S)
                if status["state"] == "starting" or held.trader is None or status["pid"] != held.trader.pid:
                    return
                life.started, life.seen_at = True, time.monotonic()
                held.state, held.reason, held.has_started = "running", "", True
                held.remember()
                _say(f"{held.spec.name}: trader {held.trader.pid} has started")
            elif held.halt_again:
                if (reason := _latched(held.folder)) is not None:  # else it was resumed meanwhile
                    await asyncio.to_thread(control.request, held.folder, "halt", _HALT_S, reason=reason)
                held.halt_again = False

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
            held.has_started = True  # one that is starting refuses
            steps.insert(0, (0, _STOP_S))
        for number, seconds in steps:
            trader = held.trader
            if number and trader is not None and trader.poll() is None:
                if held.has_started:
                    held.reason = f"the trader did not stop when asked; ended by {signal.Signals(number).name}"
                _say(f"{held.spec.name}: trader {trader.pid} is ended by {signal.Signals(number).name}")
                trader.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(held.ended.wait(), seconds)
                return

    # --- processes ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _mend_spec(held: _Held) -> None:
        """Write the specification again if it cannot be read: its trader must come back to its orders."""
        try:
            read_spec(held.folder)
        except ConfigError as error:
            write_spec(held.spec)
            held.remark = f"{SPEC_FILE} could not be read and was written again as the session began"
            _say(f"{held.spec.name}: {error}; {held.remark}")

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
            if _is_orphan(folder) and (pid := _running_pid(folder)) > 0:
                self._loop.call_soon_threadsafe(self._adopt, folder, pid)

    def _adopt(self, folder: Path, pid: int) -> None:
        """Take a trader into care as if it had been started here."""
        run = _recall(folder)
        try:
            held = _Held(folder, read_spec(folder), dash=bool(run.get("dashboard_url")))
        except ConfigError as error:
            _say(f"{folder.name}: trader {pid} is not adopted: {error}")
            return
        held.trader, held.endpoints = _Adopted(pid), run.get("endpoints")
        held.restarts, held.has_started = int(run.get("restarts", 0)), True
        if run.get("state") == "running":
            held.state = "running"
        _say(f"{held.spec.name}: trader {pid} adopted")
        self._hold(held)


def _needs_venue(held: _Held) -> bool:
    return held.spec.mode == "sim" and held.spec.endpoints is None


def _lay_afresh(spec: SessionSpec) -> None:
    """Write a new session's specification, after moving an ended session of its name away."""
    archive_session(spec.folder)
    write_spec(spec)


def _halt_latched(folder: Path, reason: str) -> dict[str, Any]:
    """Latch a halt, ask the trader for it, and return its answer, or that the halt is latched."""
    _latch(folder, reason)
    try:
        return control.request(folder, "halt", _HALT_S, reason=reason)
    except HftlabError as error:  # gone, deaf, or starting: it will look before its first order
        return {"ok": True, "canceled": [], "open": -1, "latched": True, "why": str(error)}


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
        if state in ENDED_STATES:
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
        if held.get("dashboard_url") or held.get("state") in (None, *ENDED_STATES):
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
    if held is None or held["state"] in ENDED_STATES:
        control.request(folder, "stop", timeout_s)
        deadline = time.monotonic() + timeout_s
        while pid := _running_pid(folder):
            if time.monotonic() > deadline:
                raise TimedOut(f"session {folder.name} was asked to stop; process {pid} runs {timeout_s:g} s after")
            time.sleep(_LOOK_S)
        return describe(folder)
    return ask(_socket_path(), {"do": "stop", "folder": str(folder)}, timeout_s)


def halt(folder: Path, reason: str) -> dict[str, Any]:
    """Pull a session's kill switch: new orders are refused, open ones canceled, until it is resumed.

    The halt is latched before anything is asked, so it holds for a trader that has just died, hangs, or is starting:
    such a one halts before its first order. The reply then has ``latched`` true and ``open`` -1 (not known); otherwise
    ``canceled`` and ``open`` are the trader's word, after the venue's.

    Raises
    ------
    NotRunning
        If the session has ended.
    """
    try:
        held = _held(folder)
    except TimedOut:  # the supervisor hangs; the halt must not
        return _halt_latched(folder, reason)
    if held is not None and held["state"] not in ENDED_STATES:
        with contextlib.suppress(NotRunning, TimedOut):  # it died or hangs: what it would do is done here
            return ask(_socket_path(), {"do": "halt", "folder": str(folder), "reason": reason}, _HALT_S + 3.0)
    elif (told := _describe(folder, held))["state"] in ENDED_STATES:
        why = f": {told['reason']}" if told["reason"] else ""
        raise NotRunning(f"session {folder.name} is not running, so it cannot halt; it has {told['state']}{why}")
    return _halt_latched(folder, reason)


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
    session that neither runs nor was stopped. ``reason`` tells why it is halted, ended or is not running. ``seen_s`` is
    when it last did something, in seconds since 1970, if it does not run.
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
    state, pid, reason = str(run.get("state", "dead")), 0, str(run.get("reason", ""))
    if held is None and state not in ENDED_STATES and not _is_alive(int(run.get("supervisor_pid", 0))):
        state, reason = "dead", f"neither runs nor was stopped; {_ORDERS_MAY_BE_OPEN}"
    try:
        status = control.request(folder, "status", 1.0)
        state, pid = str(status["state"]), int(status["pid"])
        reason = _why(status) or (_latched(folder) or "" if state == "halted" else str(run.get("remark", "")))
    except TimedOut:
        state, pid, reason = "silent", journal_holder(folder), "it does not answer"
    except NotRunning:  # how it ended is known from `run`
        if state not in ENDED_STATES and (latched := _latched(folder)) is not None:
            reason = f"halted before its first order when it is back ({latched}); {reason}"
    strategy = symbols = ""
    try:
        spec = read_spec(folder)
        strategy, symbols = spec.strategy.get("version") or spec.strategy["name"], ",".join(spec.symbols)
    except ConfigError as error:
        state, reason = ("unreadable" if state == "dead" else state), reason or str(error)
    return {
        "name": folder.name,
        "mode": folder.parent.name,
        "state": state,
        "reason": reason,
        "pid": pid,
        "strategy": strategy,
        "symbols": symbols,
        "restarts": run.get("restarts", 0),
        "dashboard_url": run.get("dashboard_url", ""),
        "folder": str(folder),
        "seen_s": time.time() if state in OPEN_STATES else _seen_s(folder),
    }


def _why(status: dict[str, Any]) -> str:
    """Return why a trader does not trade as it should, "" if it does."""
    faults = status.get("faults") or [{}]
    last = str(faults[-1].get("traceback", "")).strip().rpartition("\n")[2]
    return str(status.get("halt_reason") or last)


def _seen_s(folder: Path) -> float:
    """Return when anything of a session was last written."""
    files = [folder, *folder.glob("*"), *folder.glob("journal/*")]
    return max((one.stat().st_mtime for one in files if one.exists()), default=0.0)


def main() -> int:
    """Run the supervisor of ``HFTLAB_HOME``; return the exit code."""
    return Supervisor().run()


if __name__ == "__main__":
    sys.exit(main())
