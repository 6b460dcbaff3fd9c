"""Can this backtest be believed? Three checks: does the strategy look ahead, is it one run, how much can it bear.

**Looking ahead.** A callback sees the past only, so the future comes in by what a strategy is built from: an array
computed from the whole day, a scale, a class that keeps the data. `lookahead` therefore builds the strategy anew, from
data whose rows behind a cut are other ones (prices shifted, sizes multiplied, trades removed; seeded), and runs it over
the rows *before* the cut, which are the same. Whatever differs there was decided by the future. The atom of the first
row that differs names the callback. The feature is found by putting the other future's value of one attribute,
parameter, global or closure alone into a strategy built from the true data: if that alone changes what was decided, it
carries the future. Half of the cuts lie right behind decisions, because a window of five rows shows only to a cut
within five rows of a decision; the others are spread evenly. Each is tried with prices up and with prices down.

What it cannot find: a future that does not come through ``make(data)`` (a file, a parameter tuned on this very day, a
model trained on it), a dependence that no cut met, and anything behind the first difference of a cut: mend, run again.

**Determinism.** Two runs in fresh processes with different hash seeds; every row is compared. Time, chance other than
``ctx.random()``, the order of a set and addresses show. What differs once in a thousand runs need not.

**Sensitivity.** The P&L over latency, queue model and fees. Decisions do not depend on fees, so each latency and queue
model is run once and its fills are charged by each scale; a P&L that lives between 0 and 300 us of latency is a bet on
300 us, and the sentence says so. Between two latencies tried, the line is straight: an interpolation, not a run.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.backtest.data import read_tape
from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError, StrategyError
from hftlab.core.instruments import MONEY_SCALE, Instrument
from hftlab.core.rows import ROW, BookState, Flag, Kind, RowArray
from hftlab.journal import format_row, run_hash
from hftlab.sim.models import BASE_FEES, Fees, Latency, Queue
from hftlab.sim.recorded import MARKET_KINDS
from hftlab.strategy import PythonStrategy, Strategy, source_of

__all__ = [
    "Determinism",
    "Finding",
    "Lookahead",
    "Recipe",
    "Sensitivity",
    "determinism",
    "lookahead",
    "sensitivity",
]

Made = Strategy | PythonStrategy
Make = Callable[[RowArray], Made]

_MARKET = np.array(MARKET_KINDS, np.uint8)
_PRICED = np.array([Kind.LEVEL, Kind.QUOTE, Kind.TRADE], np.uint8)
_WOKEN = {
    Kind.LEVEL: "on_book", Kind.QUOTE: "on_book", Kind.TRADE: "on_trade", Kind.REPORT: "on_execution",
    Kind.TIMER: "on_timer",
}  # fmt: skip
_DEPENDS = "data"  # the argument by which a strategy's class or function asks for the rows


# --- making a strategy, again and again -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What it takes to make a strategy again, also in another process.

    Parameters
    ----------
    source : str
        Of the file or cell that defines it.
    name : str
        Of a strategy's class, or of a function ``make(data, **params)`` that returns one.
    params : mapping
    compiled : bool
    """

    source: str
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = True

    @classmethod
    def of(cls, strategy: Made) -> Recipe:
        """Return the recipe of a strategy that is made from its parameters alone."""
        return cls(source_of(strategy), type(strategy).__name__, strategy.param_values(), strategy.compiled)

    @property
    def takes_data(self) -> bool:
        """Whether the strategy is built from the data: its class or function has an argument ``data``."""
        return _takes_data(self._load())

    def __call__(self, rows: RowArray) -> Made:
        """Return the strategy, its source run anew, built from `rows` if it asks for them.

        Raises
        ------
        StrategyError
            If the source fails, or has no strategy of that name.
        """
        what = self._load()
        given = dict(self.params) | ({_DEPENDS: rows} if _takes_data(what) else {})
        if isinstance(what, type) and issubclass(what, Strategy):
            given["compiled"] = self.compiled
        made = what(**given)
        if not isinstance(made, (Strategy, PythonStrategy)):
            raise StrategyError(f"{self.name} returned {made!r}; expected a strategy")
        return made

    def _load(self) -> Any:
        filename = f"<strategy {self.name} {hashlib.sha256(self.source.encode()).hexdigest()[:12]}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(keepends=True), filename)
        module = ModuleType("hftlab_checked_strategy")
        try:
            exec(compile(self.source, filename, "exec", dont_inherit=True), module.__dict__)
        except Exception as error:  # whatever the user's source raises, and with its name
            raise StrategyError(f"{self.name}: its source fails with {type(error).__name__}: {error}") from error
        what = vars(module).get(self.name)
        if not (isinstance(what, FunctionType) or (isinstance(what, type) and issubclass(what, Made))):
            raise StrategyError(f"{self.name}: the source defines no strategy and no function of that name")
        return what


def _takes_data(what: Any) -> bool:
    return _DEPENDS in inspect.signature(what).parameters


def _recipe_of(strategy: Made | Recipe) -> Recipe:
    return strategy if isinstance(strategy, Recipe) else Recipe.of(strategy)


def _always(strategy: Made) -> Make:
    return lambda rows: strategy


# --- looking ahead ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """A decision that the future changed.

    Parameters
    ----------
    cut : int
        Market rows that both runs had in common.
    ahead_ns : int
        From the decision to the first row behind the cut: the future that it saw is at least so far away.
    callback : str
    features : tuple of str
        What alone carries the future into the decision; empty if none does alone, or it was named before.
    decided, otherwise : str
        The first row that differs, with the true future and with the other one.
    """

    cut: int
    ahead_ns: int
    callback: str
    features: tuple[str, ...]
    decided: str
    otherwise: str


@dataclass(frozen=True)
class Lookahead:
    """What `lookahead` found.

    Parameters
    ----------
    findings : tuple of Finding
        At most one a cut.
    cuts, decisions : int
        How many cuts were tried, and how many decisions the whole run made.
    takes_data : bool
        Whether the strategy is built from data at all.
    """

    findings: tuple[Finding, ...]
    cuts: int
    decisions: int
    takes_data: bool

    @property
    def ok(self) -> bool:
        """Whether no decision changed with its future."""
        return not self.findings

    @property
    def callbacks(self) -> list[str]:
        """The callbacks that look ahead."""
        return sorted({finding.callback for finding in self.findings})

    @property
    def features(self) -> list[str]:
        """What carries the future into them."""
        return sorted({name for finding in self.findings for name in finding.features})

    def __str__(self) -> str:
        if not self.takes_data:
            return (
                "does not look ahead by its data: it is built without any, and callbacks see the past only; files that "
                "it reads and parameters tuned on this data are not looked into"
            )
        if not self.decisions:
            return "nothing to check: the strategy made no decision on this data"
        if self.ok:
            return (
                f"no decision changed with its future: {self.cuts} cuts, {self.decisions:,} decisions; files that it "
                "reads and parameters tuned on this data are not looked into"
            )
        first = self.findings[0]
        by = ", ".join(self.features) or "nothing that could be found alone"
        return (
            f"looks ahead in {', '.join(self.callbacks)}, by {by}: with another future behind "
            f"{len(self.findings)} of {self.cuts} cuts it decided otherwise before\n"
            f"  with the true future   {first.decided}\n  with another future    {first.otherwise}"
        )


def lookahead(
    make: Make | Made | Recipe,
    data: Any,
    *,
    limits: Sequence[Limits] | Limits,
    instruments: Sequence[Instrument] | None = None,
    cuts: int = 12,
    seed: int = 1,
    **how: Any,
) -> Lookahead:
    """Find decisions that change when the future does.

    Parameters
    ----------
    make : callable(rows) -> strategy, or a strategy
        Builds the strategy from market rows, an array of ROW. A strategy itself is built from none.
    data : path or rows
        A recording, as `hftlab.backtest.runner.backtest` takes it. One by order is used by price.
    limits : Limits or sequence of Limits
    instruments : sequence of Instrument, optional
        What the data says of itself if absent.
    cuts : int
        Cut points; each costs two runs up to it, and a run for each feature where something is found.
    seed : int
        Of the other futures.
    **how
        Passed on to the backtest: latency, queue, fees, ...

    Raises
    ------
    ConfigError
        If the data cannot be read, is empty, or `cuts` is below 1.
    """
    if cuts < 1:
        raise ConfigError(f"cuts: {cuts}; expected 1 or more")
    given = Recipe.of(make) if isinstance(make, (Strategy, PythonStrategy)) else make
    tape = read_tape(data, instruments)

    def run(strategy: Made, rows: RowArray) -> RowArray:
        result: Result = backtest(strategy, rows, instruments=tape.instruments, limits=limits, **how)
        return result.rows

    trial = _Trial(given, tape.rows, run)
    takes = not isinstance(given, Recipe) or given.takes_data
    points = trial.cuts(cuts, seed) if takes else []
    findings: list[Finding] = []
    for k, cut in enumerate(points):
        for sign in (1, -1):
            known = {finding.callback for finding in findings}
            found = trial.compare(cut, _other_future(tape.rows, cut, sign, seed + k), known, tape.instruments)
            if found is not None:
                findings.append(found)
                break
    return Lookahead(tuple(findings), len(points), int(trial.decided.sum()), takes)


def _other_future(rows: RowArray, cut: int, sign: int, seed: int) -> RowArray:
    """Return `rows` with other ones behind `cut`: prices shifted, quantities multiplied, half of the trades removed."""
    chance = np.random.default_rng(seed)
    other = rows.copy()
    behind = np.arange(len(rows)) >= cut
    priced = behind & np.isin(rows["kind"], _PRICED)
    shift = np.maximum(5, rows["px"] // 200)
    # a walk, not a step: a feature made of differences must feel it too
    drift = np.cumsum(np.where(priced, chance.integers(0, 3, len(rows)), 0))
    moved = rows["px"] + sign * (shift + drift)
    other["px"] = np.where(priced & (moved > 0), moved, rows["px"])
    other["qty"] = np.where(priced, rows["qty"] * chance.integers(1, 5, len(rows)), rows["qty"])
    alone = rows["flags"] & int(Flag.LAST) != 0
    alone[1:] &= alone[:-1]
    removed = behind & alone & (rows["kind"] == Kind.TRADE) & (chance.random(len(rows)) < 0.5)
    left: RowArray = other[~removed]
    return left


class _Trial:
    """A strategy over true data, and over what shares its past."""

    def __init__(self, make: Make, rows: RowArray, run: Callable[[Made, RowArray], RowArray]) -> None:
        self._make, self._rows, self._run = make, rows, run
        self.base = run(make(rows.copy()), rows)
        self._market = np.flatnonzero(np.isin(self.base["kind"], _MARKET))
        self.decided = (self.base["flags"] & int(Flag.OUTPUT) != 0) & (self.base["kind"] != Kind.CONT)

    def cuts(self, n: int, seed: int) -> list[int]:
        """Return ends of messages, ascending: half of them right behind decisions."""
        ends = np.flatnonzero(self._rows["flags"] & int(Flag.LAST) != 0)[:-1] + 1
        if not len(ends):
            return []
        chance = np.random.default_rng(seed)
        behind = np.searchsorted(self._market, np.flatnonzero(self.decided))
        behind = np.unique(behind[(behind > 0) & (behind < len(self._rows))])
        chosen = chance.choice(behind, min(len(behind), (n + 1) // 2), replace=False) if len(behind) else behind
        even = np.linspace(0, len(ends) - 1, n - len(chosen) + 2)[1:-1].astype(np.int64)
        at = np.searchsorted(ends, [*chosen.tolist(), *ends[even].tolist()])
        return [int(end) for end in np.unique(ends[np.minimum(at, len(ends) - 1)])]

    def _before(self, rows: RowArray, cut: int) -> RowArray:
        """Return a run's rows up to the end of the atom of market row ``cut - 1``."""
        market = np.flatnonzero(np.isin(rows["kind"], _MARKET))
        if len(market) < cut:
            return rows
        commits = np.flatnonzero(rows["flags"][market[cut - 1] :] & int(Flag.COMMIT) != 0)
        end = int(market[cut - 1]) + (int(commits[0]) if len(commits) else 0) + 1
        while end < len(rows) and rows["kind"][end] == Kind.CONT:
            end += 1
        before: RowArray = rows[:end]
        return before

    def compare(
        self, cut: int, other: RowArray, known: set[str], instruments: Sequence[Instrument]
    ) -> Finding | None:
        """Run over the rows before `cut` what `other` builds, and tell the first row that differs."""
        past = self._rows[:cut]
        strategy = self._make(other)
        theirs = _features(strategy)
        expected, got = self._before(self.base, cut), self._before(self._run(strategy, past), cut)
        at = _first_difference(expected, got)
        if at is None:
            return None
        callback = _callback(expected, got, at)
        named: tuple[str, ...] = ()
        if callback not in known:
            named = tuple(name for name in self._changed(theirs) if self._carries(name, theirs[name], cut))
        ahead = int(self._rows["ts_recv"][cut]) - int(expected["ts_recv"][min(at, len(expected) - 1)])
        texts = [format_row(rows[at], instruments) if at < len(rows) else "nothing more" for rows in (expected, got)]
        return Finding(cut, ahead, callback, named, *texts)

    def _changed(self, theirs: Mapping[str, Any]) -> Iterator[str]:
        ours = _features(self._make(self._rows.copy()))
        return (name for name in theirs if name in ours and not _same(ours[name], theirs[name]))

    def _carries(self, name: str, value: Any, cut: int) -> bool:
        """Tell whether `value` in place of `name` alone changes what is decided before `cut`."""
        strategy = self._make(self._rows.copy())
        restore = _put(strategy, name, value)
        try:
            got = self._before(self._run(strategy, self._rows[:cut]), cut)
        finally:
            restore()
        return _first_difference(self._before(self.base, cut), got) is not None


def _first_difference(one: RowArray, two: RowArray) -> int | None:
    n = min(len(one), len(two))
    a, b = (np.ascontiguousarray(rows[:n]).view(np.int64).reshape(n, 8) for rows in (one, two))
    differ = np.flatnonzero((a != b).any(axis=1))
    if len(differ):
        return int(differ[0])
    return n if len(one) != len(two) else None


def _callback(one: RowArray, two: RowArray, at: int) -> str:
    """Return which callback made the first row that differs; of a timer, that one was asked for otherwise."""
    output = int(Flag.OUTPUT)
    rows = next((rows for rows in (one, two) if at < len(rows) and int(rows["flags"][at]) & output), None)
    if rows is None:  # inputs differ: a flag says that outputs follow, or what was asked for of the host is another
        rows = one if at < len(one) else two
        nxt = [r for r in (one, two) if at + 1 < len(r) and int(r["flags"][at + 1]) & output]
        if not nxt:
            return "what set the timer" if rows["kind"][at] == Kind.TIMER else "a callback before"
        rows, at = nxt[0], at + 1
    while at > 0 and (int(rows["flags"][at]) & output or rows["kind"][at] == Kind.CONT):
        at -= 1
    kind = Kind(int(rows["kind"][at]))
    if kind == Kind.BOOK_STATE:
        return "on_book" if rows["code"][at] == BookState.LIVE else "on_gap"
    if kind == Kind.CONTROL:
        return "on_start" if at == 0 else "on_stop"
    return _WOKEN.get(kind, kind.name)


def _callbacks(strategy: Made) -> list[FunctionType]:
    found = [getattr(type(strategy), name) for name in dir(type(strategy)) if name.startswith("on_")]
    return [function for function in found if isinstance(function, FunctionType)]


def _features(strategy: Made) -> dict[str, Any]:
    """Return what a strategy's callbacks can read beside ctx and event, by name: copies."""
    read: dict[str, Any] = {}
    if isinstance(strategy, Strategy):
        record = strategy.param_record
        read |= {f"params.{name}": record[name].copy() for name in record.dtype.names or ()}
    else:
        own = {**vars(type(strategy)), **vars(strategy)}
        read |= {f"self.{name}": value for name, value in own.items() if not name.startswith("__") and name != "chosen"}
    for function in _callbacks(strategy):
        outside = inspect.getclosurevars(function)
        read |= {f"global {name}": value for name, value in outside.globals.items()}
        read |= {f"closure {name}": value for name, value in outside.nonlocals.items()}
    copies = {name: _pickled(value) for name, value in read.items() if not _is_code(value)}
    return {name: pickle.loads(copy) for name, copy in copies.items() if copy is not None}


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, (ModuleType, property))


def _pickled(value: Any) -> bytes | None:
    """Return a value's bytes; None of what has none (a file, a lock), which is then not compared."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    return _pickled(one) == _pickled(two)


def _put(strategy: Made, name: str, value: Any) -> Callable[[], None]:
    """Give a strategy another value of one feature, and return what takes it back where others would see it."""
    kind, _, rest = name.replace(" ", ".", 1).partition(".")
    if kind == "params":
        assert isinstance(strategy, Strategy)
        strategy.param_record[rest] = value
        return lambda: None
    if kind == "self":
        setattr(strategy, rest, value)
        return lambda: None
    undo: list[Callable[[], None]] = []
    for function in _callbacks(strategy):
        if kind == "global" and rest in function.__globals__:
            space, before = function.__globals__, function.__globals__[rest]
            space[rest] = value
            undo.append(lambda space=space, before=before: space.__setitem__(rest, before))  # type: ignore[misc]  # mypy does not infer a lambda's defaults
        elif kind == "closure" and rest in function.__code__.co_freevars:
            cell = (function.__closure__ or ())[function.__code__.co_freevars.index(rest)]
            undo.append(lambda cell=cell, before=cell.cell_contents: setattr(cell, "cell_contents", before))  # type: ignore[misc]  # as above
            cell.cell_contents = value

    def restore() -> None:
        for one in reversed(undo):
            one()

    return restore


# --- determinism ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Determinism:
    """What `determinism` found.

    Parameters
    ----------
    hashes : tuple of str
        Of the rows of either run.
    rows : int
        Of the first.
    first : int, optional
        The first row that differs, None if none does.
    callback : str
        Which made it.
    one, two : str
        That row in either run.
    """

    hashes: tuple[str, str]
    rows: int
    first: int | None
    callback: str
    one: str
    two: str

    @property
    def ok(self) -> bool:
        """Whether both runs left the same bytes."""
        return self.first is None

    def __str__(self) -> str:
        if self.ok:
            return f"the same bytes in two processes: {self.rows:,} rows, hash {self.hashes[0][:8]}"
        return (
            f"not deterministic: two processes differ from row {self.first:,} on, made by {self.callback}; time, "
            f"chance other than ctx.random() and the order of a set are the usual causes\n  {self.one}\n  {self.two}"
        )


_CHILD = "from hftlab.backtest.checks import _run_apart; _run_apart()"


def determinism(
    strategy: Made | Recipe,
    data: Path | str | RowArray,
    *,
    limits: Sequence[Limits] | Limits,
    instruments: Sequence[Instrument] | None = None,
    **how: Any,
) -> Determinism:
    """Run a strategy in two fresh processes with different hash seeds and compare every row.

    Parameters
    ----------
    strategy : Strategy, PythonStrategy or Recipe
        Its source is run anew in each process.
    data, limits, instruments
        As `lookahead` takes them.
    **how
        Passed on to the backtest.

    Raises
    ------
    StrategyError
        If a process fails; with the end of what it said.
    """
    recipe = _recipe_of(strategy)
    tape = read_tape(data, instruments)
    how = {"limits": limits, "instruments": tape.instruments, **how}
    with tempfile.TemporaryDirectory(prefix="hftlab-check-") as place:
        np.save(Path(place) / "market.npy", tape.rows.view(np.int64))
        (Path(place) / "setup.pickle").write_bytes(pickle.dumps((recipe, how)))
        one, two = (_apart(Path(place), seed) for seed in (0, 20_231))
    at = _first_difference(one, two)
    callback = "" if at is None else _callback(one, two, at)
    texts = ["" if at is None or at >= len(rows) else format_row(rows[at], tape.instruments) for rows in (one, two)]
    return Determinism((run_hash(one), run_hash(two)), len(one), at, callback, *texts)


def _apart(place: Path, hash_seed: int) -> RowArray:
    out = place / f"rows-{hash_seed}.npy"
    told = subprocess.run(
        [sys.executable, "-c", _CHILD, str(place), str(out)],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if told.returncode:
        raise StrategyError(f"strategy: its own process ended with {told.returncode}:\n{told.stderr[-2000:]}")
    return _load_rows(out)


def _load_rows(path: Path) -> RowArray:
    rows: RowArray = np.load(path).view(ROW)
    return rows


def _run_apart() -> None:
    """Run what `determinism` laid down in this process's folder; its own process, nothing else."""
    place, out = Path(sys.argv[1]), Path(sys.argv[2])
    recipe, how = pickle.loads((place / "setup.pickle").read_bytes())
    rows = _load_rows(place / "market.npy")
    np.save(out, np.ascontiguousarray(backtest(recipe(rows.copy()), rows, **how).rows).view(np.int64))


# --- sensitivity ------------------------------------------------------------------------------------------------------

LATENCIES_NS = (0, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
QUEUES = (Queue("risk_averse"), Queue("proportional"), Queue("log"))
FREE = Fees(0, 0)


@dataclass(frozen=True)
class Sensitivity:
    """P&L over latency, queue model and fees.

    Parameters
    ----------
    frame : polars.DataFrame
        latency_ns (each way), queue, fees, gross, fees_paid, net in the quote asset, and fills.
    money : str
        The quote asset.
    """

    frame: pl.DataFrame
    money: str = ""

    def lives(self, queue: str, fees: str) -> list[tuple[float, float]]:
        """Return where the net P&L is above 0, as ranges of latency, ns each way; the last one may be open: inf."""
        lines = self.frame.filter((pl.col("queue") == queue) & (pl.col("fees") == fees)).sort("latency_ns")
        at, net = lines["latency_ns"].to_numpy().astype(float), lines["net"].to_numpy()
        return _above_zero(at, net)

    def sentences(self) -> list[str]:
        """Return a sentence a queue model and scale of fees: where its P&L lives."""
        told = []
        for queue, fees in self.frame.select("queue", "fees").unique(maintain_order=True).iter_rows():
            ranges = self.lives(queue, fees)
            most = float(self.frame["latency_ns"].max() or 0)  # type: ignore[arg-type]  # polars types a maximum loosely
            where = " and ".join(f"between {_span(a)} and {_span(min(b, most))}" for a, b in ranges)
            beyond = ", the longest tried" if ranges and ranges[-1][1] == np.inf else ""
            verdict = f"lives {where}{beyond}" if where else "is at no latency above 0"
            told.append(f"{queue}, {fees}: this P&L {verdict}")
        return told

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def plot(self) -> Any:
        """Return the net P&L over latency as one picture: a figure a scale of fees, a line a queue model."""
        from bokeh.layouts import column
        from bokeh.models.annotations import Span

        from hftlab.analysis.plots import chart
        from hftlab.analysis.style import ASK, BID, HALT, INK, WARN

        colors = (BID, ASK, HALT, WARN, INK)
        figures: list[Any] = []
        for fees in self.frame["fees"].unique(maintain_order=True):
            part = self.frame.filter(pl.col("fees") == fees).sort("latency_ns")
            steps = part["latency_ns"].unique().sort().to_list()
            shared = {"x_range": figures[0].x_range} if figures else {}
            fig = chart(230, f"net P&L {self.money}, {fees}", **shared)
            for k, queue in enumerate(part["queue"].unique(maintain_order=True)):
                line = part.filter(pl.col("queue") == queue)
                x, y = [steps.index(ns) for ns in line["latency_ns"]], line["net"].to_list()
                fig.line(x, y, color=colors[k % len(colors)], line_width=2, legend_label=str(queue))
                fig.scatter(x, y, color=colors[k % len(colors)], size=6)
            fig.add_layout(Span(location=0, dimension="width", line_color=INK, line_width=1))
            fig.xaxis.ticker = list(range(len(steps)))
            fig.xaxis.major_label_overrides = {k: _span(ns) for k, ns in enumerate(steps)}
            fig.xaxis.axis_label = "latency each way"
            fig.legend.label_text_font_size = "11px"
            fig.add_layout(fig.legend[0], "right")
            figures.append(fig)
        return column(*figures, sizing_mode="stretch_width")

    def html(self, path: Path | str) -> None:
        """Write the sentences and the picture as one page that needs no network."""
        from html import escape

        from bokeh.embed import components
        from bokeh.resources import INLINE

        script, body = components(self.plot())
        said = "".join(f"<li>{escape(line)}</li>" for line in self.sentences())
        page = f"<!doctype html><meta charset=utf-8><title>Sensitivity</title>{INLINE.render()}<h2>Sensitivity</h2>"
        Path(path).write_text(f"{page}<ul>{said}</ul>{body}{script}", encoding="utf-8")


def _above_zero(at: npt.NDArray[np.float64], net: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return the ranges of `at` where the line through `net` is above 0.

    Examples
    --------
    >>> _above_zero(np.array([0.0, 100.0, 300.0]), np.array([3.0, 1.0, -1.0]))
    [(0.0, 200.0)]
    """
    ranges: list[tuple[float, float]] = []
    start: float | None = None
    for k in range(len(at)):
        above = bool(net[k] > 0)
        if above != (start is not None):
            crossed = float(at[k])
            if k:
                crossed = float(at[k - 1] + (at[k] - at[k - 1]) * net[k - 1] / (net[k - 1] - net[k]))
            if start is None:
                start = crossed
            else:
                ranges.append((start, crossed))
                start = None
    return [*ranges, (start, np.inf)] if start is not None else ranges


def _span(ns: float) -> str:
    return f"{ns / 1e3:.3g} us" if 0 < ns < 1e6 else f"{ns / 1e6:.3g} ms" if ns else "0"


def sensitivity(
    strategy: Made | Recipe,
    data: Any,
    *,
    limits: Sequence[Limits] | Limits,
    instruments: Sequence[Instrument] | None = None,
    latencies_ns: Sequence[int] = LATENCIES_NS,
    queues: Sequence[Queue] = QUEUES,
    fees: Sequence[Fees] = (FREE, BASE_FEES),
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> Sensitivity:
    """Return the P&L over latency, queue model and fees.

    Parameters
    ----------
    strategy : Strategy, PythonStrategy or Recipe
        Made anew for each run, but for a `Strategy`, which holds nothing of a run.
    data, limits, instruments
        As `lookahead` takes them; instruments in one quote asset, because P&L is summed over them.
    latencies_ns : sequence of int
        Each way.
    queues, fees : sequence
        Fees without tiers: fills are charged one by one.
    progress : callable(done, total), optional
        Told after each run.
    **how
        Passed on to the backtest.

    Raises
    ------
    ConfigError
        If a grid is empty, fees have tiers, or the instruments are in more than one money.
    """
    for name, grid in (("latencies_ns", latencies_ns), ("queues", queues), ("fees", fees)):
        if not len(grid):
            raise ConfigError(f"{name}: empty; expected at least one")
    if any(scale.tiers for scale in fees):
        raise ConfigError("fees: a scale with tiers; expected plain rates, which charge each fill by itself")
    tape = read_tape(data, instruments)
    money = sorted({one.quote or "" for one in tape.instruments})
    if len(money) > 1:
        raise ConfigError(f"instruments: in {', '.join(money)}; expected one money, for the P&L is their sum")
    make = _always(strategy) if isinstance(strategy, Strategy) else _recipe_of(strategy)
    # rows of a tape by order would lose their exact queues here, so that is read again by the run
    source = data if tape.marks is not None else tape.rows
    lines = []
    for latency in latencies_ns:
        for queue in queues:
            result = backtest(
                make(tape.rows), source, instruments=tape.instruments, limits=limits,
                latency=Latency(latency, latency), queue=queue, fees=FREE, **how,
            )  # fmt: skip
            lines += [_line(result, latency, queue, scale) for scale in fees]
            if progress is not None:
                progress(len(lines) // len(fees), len(latencies_ns) * len(queues))
    return Sensitivity(pl.DataFrame(lines), money[0] if money else "")


def _line(result: Result, latency: int, queue: Queue, scale: Fees) -> dict[str, Any]:
    fills, pnl = result.fills, result.pnl
    by_symbol = {one.symbol: one for one in result.definitions.instruments}
    columns = ("symbol", "px_ticks", "qty_lots", "maker")
    charged = sum(
        scale.charge(by_symbol[symbol], px, qty, maker=maker)
        for symbol, px, qty, maker in fills.select(columns).iter_rows()
    )
    gross, paid = float((pnl["realized"] + pnl["unrealized"]).sum()), float(charged * MONEY_SCALE)
    model = queue.model if queue.model != "power" else f"power:{queue.exponent:g}"
    return {
        "latency_ns": latency, "queue": model, "fees": str(scale), "gross": gross, "fees_paid": paid,
        "net": gross - paid, "fills": fills.height,
    }  # fmt: skip
