"""How a benchmark is run: check first, then rounds in turn, then medians.

**Model.** A benchmark is a module of this package. Its ``prepare(plan)`` builds the input, compares the result of the
code to be timed with a reference, and returns *cases*: callables that run one round and return one figure. The runner
calls the cases in turn, round after round, in an order that changes, so that a slow minute of the machine falls on all
of them alike. What is reported of a figure is the median of its rounds with the quartiles beside it; a ratio is the
median of the ratios within each round, not the ratio of the medians.

**Peers** are other people's libraries. Each runs in a process of its own, in a virtual environment of its own (their
pins are not ours), and is asked for one round at a time over a pipe, between ours. Environments are made on the first
``--peers`` and kept beside the kernel cache. A row that we lose is shown like any other.

**Names.** A figure's name ends in its unit: ``_ns _us _ms _s`` (lower is better), ``_mb`` (lower is better),
``_per_s`` (higher is better). A ratio says how many times better ours is: above 1 we win.

A module of this package may hold ``GOALS``: name of a figure or ratio to (must, aim), shown beside what was measured.
Worst case accepted: a machine so busy that quartiles lie far apart; they are shown, and so is the load.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from hftlab.core.errors import ConfigError, HftlabError

__all__ = [
    "BENCHES",
    "Case",
    "CheckFailed",
    "PeerProcess",
    "Plan",
    "Ratio",
    "goals",
    "higher_is_better",
    "machine",
    "prepare_bench",
    "run_bench",
    "run_rounds",
    "title",
]

BENCHES = (
    "itch", "json", "websocket", "pipeline", "journal", "tick-to-order", "wire", "matching", "backtest", "growth",
    "fuzz", "import",
)  # fmt: skip
"""The benchmarks there are, in the order in which all of them run."""

ROUNDS = 9
_UNITS = ("_ns", "_us", "_ms", "_s", "_mb")


class CheckFailed(HftlabError):
    """The code to be timed does not give the reference's result; nothing was timed."""


@dataclass(frozen=True, slots=True)
class Case:
    """One figure.

    Parameters
    ----------
    name : str
        What is measured, ending in the unit: ``decode_ns``, ``rows_per_s``.
    run : callable() -> float
        Runs one round and returns the figure in that unit.
    peer : str, optional
        Whose figure it is; None for ours.
    once : bool
        Run in the first round only: for what takes minutes.
    """

    name: str
    run: Callable[[], float]
    peer: str | None = None
    once: bool = False

    def __post_init__(self) -> None:
        if not self.name.endswith(_UNITS):
            raise ConfigError(f"name={self.name!r} names no unit; expected _per_s or one of {', '.join(_UNITS)} last")

    @property
    def key(self) -> str:
        """Return the figure's name in the report."""
        return self.name if self.peer is None else f"{self.peer}_{self.name}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times better one figure is than another, within each round.

    Parameters
    ----------
    name : str
        ``<what>_vs_<peer>``.
    ours, peer : str
        Keys of the two cases.
    """

    name: str
    ours: str
    peer: str


class PeerProcess:
    """A peer's worker: a script in its own interpreter that answers one JSON object a line.

    Parameters
    ----------
    name : str
        Of the script ``hftlab/bench/peers/<name>.py``; it does not import hftlab.
    packages : sequence of str
        What its environment needs, pinned; empty runs it in our own interpreter.
    args : str
        Passed to the script.

    Raises
    ------
    HftlabError
        If the environment cannot be made; the message ends with the installer's last line.
    """

    def __init__(self, name: str, packages: Sequence[str], *args: str) -> None:
        self.name = name
        script = Path(__file__).parent / "peers" / f"{name}.py"
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the peer fails, closed with it
        self._process = subprocess.Popen(
            [str(_interpreter(name, packages)), str(script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return the answer.

        Raises
        ------
        HftlabError
            If the peer ended or answered with an ``error``.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self._process.wait()
            raise HftlabError(f"peer {self.name} ended with code {self._process.returncode}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise HftlabError(f"peer {self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"

    def close(self) -> None:
        """End the worker."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()


@dataclass(slots=True)
class Plan:
    """What a benchmark is asked for.

    Parameters
    ----------
    folder : Path
        Scratch space, removed afterwards.
    peers : bool
        Whether peers are measured too.
    scale : float
        Size of the input as a share of the published one; the tests use a hundredth.
    """

    folder: Path
    peers: bool = False
    scale: float = 1.0
    tell: Callable[[str], None] = lambda said: None
    _peers: list[PeerProcess] = field(default_factory=list)

    def sized(self, n: int, least: int = 1) -> int:
        """Return `n` times the scale, at least `least`."""
        return max(least, int(n * self.scale))

    def peer(self, name: str, packages: Sequence[str], *args: str) -> PeerProcess:
        """Return a peer's worker, ended with the run; see `PeerProcess`."""
        self.tell(f"peer {name}")
        peer = PeerProcess(name, packages, *args)
        self._peers.append(peer)
        return peer

    def close(self) -> None:
        """End every peer."""
        for peer in self._peers:
            peer.close()
        self._peers.clear()


@contextlib.contextmanager
def on_core(which: int) -> Iterator[None]:
    """Keep this thread, and those it starts, to one core: 0 is the first it may run on, -1 the last.

    Where cores cannot be chosen nothing happens.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[which]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _environments() -> Path:
    chosen = os.environ.get("HFTLAB_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "hftlab") / "peers"


def _interpreter(name: str, packages: Sequence[str]) -> Path:
    """Return the interpreter of an environment that holds `packages`, made if there is none."""
    if not packages:
        return Path(sys.executable)
    key = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:12]
    folder = _environments() / f"{name}-{key}"
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise HftlabError(
                f"the environment of peer {name} ({', '.join(packages)}) cannot be made: {said[-1] if said else ''}; "
                "run without --peers, or with a package index within reach"
            )
    (folder / "complete").touch()
    return python


def _module(name: str) -> Any:
    if name not in BENCHES:
        raise ConfigError(f"there is no benchmark {name!r}; there are {', '.join(BENCHES)}")
    return importlib.import_module(f"hftlab.bench.{'imports' if name == 'import' else name.replace('-', '_')}")


def title(name: str) -> str:
    """Return what a benchmark measures, in a line."""
    return str(_module(name).__doc__).splitlines()[0]


def goals(name: str) -> dict[str, tuple[float, float]]:
    """Return what a benchmark's figures and ratios must and should be: name to (must, aim)."""
    return dict(getattr(_module(name), "GOALS", {}))


def higher_is_better(name: str) -> bool:
    """Return whether more is better for a figure or ratio of this name.

    Examples
    --------
    >>> higher_is_better("rows_per_s"), higher_is_better("decode_vs_itchfeed"), higher_is_better("decode_ns")
    (True, True, False)
    """
    return name.endswith("_per_s") or "_vs_" in name


def prepare_bench(name: str, plan: Plan) -> tuple[list[Case], list[Ratio]]:
    """Return a benchmark's cases and ratios, checked and compiled.

    Raises
    ------
    CheckFailed
        If the code to be timed is wrong.
    ConfigError
        If there is no such benchmark.
    """
    cases, ratios = _module(name).prepare(plan)
    return cases, ratios


def run_rounds(
    cases: list[Case], ratios: list[Ratio], rounds: int, on_round: Callable[[int, str], None]
) -> dict[str, dict[str, Any]]:
    """Run the cases in turn, `rounds` times; return ``ours``, ``spread``, ``peers`` and ``ratio`` of the report.

    Examples
    --------
    >>> case, peer = Case("parse_us", lambda: 2.0), Case("parse_us", lambda: 8.0, peer="slow")
    >>> told = run_rounds([case, peer], [Ratio("parse_vs_slow", "parse_us", "slow_parse_us")], 3, lambda i, what: None)
    >>> told["ours"], told["peers"], told["ratio"]
    ({'parse_us': 2.0}, {'slow_parse_us': 8.0}, {'parse_vs_slow': 4.0})
    """
    measured: dict[str, list[float]] = {case.key: [] for case in cases}
    for i in range(rounds):
        first = i % max(1, len(cases))
        turned = cases[first:] + cases[:first]
        for case in turned:
            if i and case.once:
                continue
            on_round(i, case.key)
            measured[case.key].append(float(case.run()))
    told: dict[str, dict[str, Any]] = {"ours": {}, "spread": {}, "peers": {}, "ratio": {}}
    for case in cases:
        values = measured[case.key]
        told["ours" if case.peer is None else "peers"][case.key] = _rounded(median(values))
        told["spread"][case.key] = _quartiles(values)
    for ratio in ratios:
        ours, theirs = measured[ratio.ours], measured[ratio.peer]
        up = higher_is_better(ratio.ours)
        shares = [a / b if up else b / a for a, b in zip(ours, theirs, strict=False) if a > 0 and b > 0]
        if shares:
            told["ratio"][ratio.name] = _rounded(median(shares))
            told["spread"][ratio.name] = _quartiles(shares)
    return told


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [_rounded(values[0])] * 2
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [_rounded(low), _rounded(high)]


def run_bench(
    name: str,
    *,
    peers: bool = False,
    scale: float = 1.0,
    rounds: int = ROUNDS,
    on_round: Callable[[int, str], None] = lambda i, what: None,
) -> dict[str, Any]:
    """Run one benchmark and return its report.

    Parameters
    ----------
    name : str
        One of `BENCHES`.
    peers : bool
        Measure the peers too; the first time makes their environments, which wants a package index.
    scale : float
        Size of the input as a share of the published one.
    rounds : int
        How often each case runs.
    on_round : callable(round, what)
        Told before each; for progress.

    Returns
    -------
    dict
        ``schema, bench, ours, spread, peers, ratio, machine``: medians by name; ``spread`` holds the quartiles.

    Raises
    ------
    CheckFailed
        If the code to be timed is wrong; nothing is timed then.
    HftlabError
        If a peer cannot be installed or fails.
    """
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}; expected 1 or more")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="hftlab-bench-") as folder:
        plan = Plan(Path(folder), peers, scale, lambda said: on_round(-1, said))
        try:
            on_round(-1, "prepare and check")
            cases, ratios = prepare_bench(name, plan)
            told = run_rounds(cases, ratios, rounds, on_round)
        finally:
            plan.close()
    return {"schema": 1, "bench": name, **told, "machine": {**machine(), "load_1min": round(load, 2), "rounds": rounds}}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    from hftlab import __version__

    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numba", "numpy")},
        "hftlab": __version__,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
