"""Many backtests on one market: which parameters, how sure, and how much of it was luck.

**Model.** A trial is one assignment of parameters, run once over the whole market (`hftlab.backtest.trials`). Its value
*in sample* is the mean of the objective over the training intervals of all splits, *out of sample* (``_oos``) the mean
over their tests. Whatever searches, sorts or gives up sees the first only. The objective is always maximised.

**Search.** ``grid`` tries all combinations, or `trials` of them drawn without repetition; ``random`` draws; ``tpe``
asks Optuna, and may give up a trial that falls behind the median after a part of the data before the last test. The
first two take their k-th trial from seed and k alone, so an interrupted sweep ends as an uninterrupted one does; what
``tpe`` tries with several workers depends on which ended first.

**Study.** A folder: ``study.json`` says what is swept, and every trial is in a Parquet file of its own from the moment
it ended (one for several that ended at once), written beside its name and moved into place. After Ctrl-C or kill -9 the
same call goes on where it was; the trials in flight are lost, no other. What an existing study was not begun with is
refused. One process at a time has a study.

**Workers.** Processes of this machine, started once; or a Dask cluster, of which every worker must see the study's
folder. A worker that dies costs its trial, which runs again, `_RUNS` times at most. An error of a trial makes it a
failed trial with its sentence; the sweep goes on.

**When it is wrong.** The best of many is better than it is. The more trials, the larger the part that is luck:
`Sweep.summary` shows out of sample beside in sample, and `Sweep.deflated_sharpe` allows for their number. ``tpe`` sees
all training intervals while it searches, so with `WalkForward` only the last test is untouched. Positions are held over
the borders of splits (see `trials`).

References
----------
Bergstra, J. et al. (2011), Algorithms for Hyper-Parameter Optimization (TPE).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import itertools
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hftlab.analysis.performance import deflated_sharpe, drawdown, sharpe
from hftlab.backtest.data import Tape, read_tape
from hftlab.backtest.splits import Holdout, Interval, Split, Splitter
from hftlab.backtest.trials import MARKS, SLICES, STEPS, Outcome, Setup, Steps, lay_market, run_here, step_borders
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError, NotFound
from hftlab.core.instruments import Instrument
from hftlab.journal import run_hash
from hftlab.sim.exchange import MatchingExchange
from hftlab.sim.models import BASE_FEES, Fees, Impact, Latency, Queue
from hftlab.strategy import PythonStrategy, Strategy, source_of

__all__ = ["Between", "Estimate", "OBJECTIVES", "Status", "Sweep", "estimate", "read_space", "read_sweep",
           "summarise", "sweep"]  # fmt: skip

OBJECTIVES = ("net_pnl", "gross_pnl", "sharpe", "drawdown", "turnover", "fills")
"""Names an objective can have; see `summarise`."""

_RUNS = 3
_BEST = 20
_STUDY, _LOCK, _TRIALS = "study.json", "study.lock", "trials"
_METHODS = ("grid", "random", "tpe")
_OWN_COLUMNS = ("trial", "state", "value", "value_oos", "seconds", "orders", "run_hash", "error")

Objective = Callable[[dict[str, float]], float]


# --- what is searched -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Between:
    """A range of values, both ends included: of integers if `low` and `high` are, else of floats.

    Parameters
    ----------
    low, high : int or float
    step : int or float, optional
        Distance of two values; 1 for integers, none for floats.
    log : bool
        Whether to draw evenly on a logarithmic scale; without `step`, `low` above 0.

    Examples
    --------
    >>> Between(1, 9, step=4).values()
    [1, 5, 9]
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"Between: {self.low} to {self.high}; expected a lower and a higher number")
        if self.step is not None and (not self.step > 0 or self.log or (self.whole and not isinstance(self.step, int))):
            raise ConfigError(f"Between: step={self.step}; expected a step above 0 of the same type, and no log")
        if self.log and self.low <= 0:
            raise ConfigError(f"Between: low={self.low} on a logarithmic scale; expected more than 0")

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def values(self) -> list[int | float]:
        """Return all values, for a grid."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            raise ConfigError(f"space: {self} has no end of values; give it a step, or search with method='random'")
        return [self.low + k * step for k in range(int((self.high - self.low) / step * (1 + 1e-12)) + 1)]

    def draw(self, chance: np.random.Generator) -> int | float:
        """Return one value."""
        if self.step is not None or (self.whole and not self.log):
            return self.values()[int(chance.integers(len(self.values())))]
        if not self.log:
            return float(chance.uniform(self.low, self.high))
        drawn = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        return min(max(round(drawn), int(self.low)), int(self.high)) if self.whole else drawn

    def suggest(self, trial: Any, name: str) -> int | float:
        """Return the value that an Optuna trial suggests."""
        if self.whole:
            return int(trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log))
        return float(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))


Space = dict[str, "Between | tuple[Any, ...]"]


def _space(strategy: type[Any], given: Mapping[str, Any]) -> Space:
    """Return what is searched, checked against the parameters that there are."""
    if not given:
        raise ConfigError("space: empty; say what to vary, such as edge_ticks=range(5)")
    space: Space = {}
    known = strategy.params.defaults if issubclass(strategy, Strategy) else None
    for name, values in given.items():
        if known is not None and name not in known:
            raise ConfigError(f"space: no parameter {name!r}; there are {', '.join(known) or 'none'}")
        if name in _OWN_COLUMNS or name.endswith("_oos") or name in OBJECTIVES:
            raise ConfigError(f"space: {name!r} names a column of the results; rename the parameter")
        if isinstance(values, range) and len(values) > 1 and values.step > 0:
            space[name] = Between(values[0], values[-1], step=values.step)
        elif isinstance(values, Between):
            space[name] = values
        elif isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
            space[name] = tuple(one.item() if isinstance(one, np.generic) else one for one in values)
            if not space[name]:
                raise ConfigError(f"space: {name} has no values")
        else:
            raise ConfigError(f"space: {name}={values!r}; expected values such as range(5) or [1, 2], or Between(1, 9)")
    return space


def read_space(texts: Sequence[str]) -> dict[str, Any]:
    """Return what is searched, written as ``name=1,2,5`` or ``name=low:high``, with ``:step`` or ``:log`` behind it.

    Raises
    ------
    ConfigError
        If one is not of that form.

    Examples
    --------
    >>> read_space(["edge_ticks=0:4", "decay=0.1:10:log", "cap_lots=5,10"])["decay"]
    Between(low=0.1, high=10, step=None, log=True)
    """
    space: dict[str, Any] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            if not name.isidentifier() or name in space:
                raise ValueError
            if ":" in values:
                low, high, *more = values.split(":")
                step = _number(more[0]) if more and more[0] != "log" else None
                if len(more) > 1:
                    raise ValueError
                space[name] = Between(_number(low), _number(high), step=step, log=more == ["log"])
            else:
                space[name] = [_number(one) for one in values.split(",")]
        except ValueError as error:
            raise ConfigError(f"space: {text!r}; expected name=1,2,5 or name=low:high[:step|:log], once") from error
    return space


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


class _Drawn:
    """The trials of a grid or a random search: the k-th follows from seed and k."""

    prunes = False

    def __init__(self, space: Space, method: str, trials: int | None, seed: int) -> None:
        self._space, self._seed, self._order = space, seed, None
        if method == "grid":
            self._lists = [list(v.values()) if isinstance(v, Between) else list(v) for v in space.values()]
            size = math.prod(map(len, self._lists))
            self.total = size if trials is None else min(trials, size)
            if self.total < size:
                self._order = np.random.default_rng(seed).choice(size, self.total, replace=False)
        else:
            self._lists = []
            self.total = 100 if trials is None else trials

    def params(self, number: int) -> dict[str, Any]:
        """Return the parameters of trial `number`."""
        if self._lists:
            place = number if self._order is None else int(self._order[number])
            where = np.unravel_index(place, [len(one) for one in self._lists])
            return {name: one[int(k)] for name, one, k in zip(self._space, self._lists, where, strict=True)}
        chance = np.random.default_rng([self._seed, number])
        return {
            name: one.draw(chance) if isinstance(one, Between) else one[int(chance.integers(len(one)))]
            for name, one in self._space.items()
        }

    def known(self, outcome: Outcome, value: float) -> None:
        """Take note of an outcome."""

    def gives_up(self, number: int, part: int, value: float) -> bool:
        """Return whether to give a trial up, whose objective so far is `value`."""
        return False


class _Suggested:
    """The trials that Optuna's TPE asks for."""

    def __init__(self, space: Space, trials: int | None, seed: int, prunes: bool) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError("method='tpe' needs Optuna; do: pip install 'hftlab[sweep]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self.prunes = optuna, space, prunes
        self.total = 100 if trials is None else trials
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if prunes else optuna.pruners.NopPruner()
        self._study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self._asked: dict[int, Any] = {}

    def params(self, number: int) -> dict[str, Any]:
        """Return the parameters of trial `number`."""
        trial = self._asked.get(number)
        if trial is None:
            trial = self._asked[number] = self._study.ask()
            for name, one in self._space.items():
                if isinstance(one, Between):
                    one.suggest(trial, name)
                else:
                    trial.suggest_categorical(name, one)
        return {name: trial.params[name] for name in self._space}

    def gives_up(self, number: int, part: int, value: float) -> bool:
        """Return whether to give a trial up, whose objective so far is `value`."""
        trial = self._asked[number]
        trial.report(value, part)
        return bool(trial.should_prune())

    def known(self, outcome: Outcome, value: float) -> None:
        """Take note of an outcome: of this run, or of the run before."""
        states = self._optuna.trial.TrialState
        found = math.isfinite(value)
        state = {"pruned": states.PRUNED, "done": states.COMPLETE if found else states.FAIL}
        ended = state.get(outcome.state, states.FAIL)
        trial = self._asked.pop(outcome.number, None)
        if trial is not None:
            self._study.tell(trial, value if ended == states.COMPLETE else None, ended)
            return
        space = {name: self._distribution(one) for name, one in self._space.items()}
        slices = {part: value for part, value in enumerate(outcome.slices) if math.isfinite(value)}
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=ended, params=outcome.params, distributions=space, intermediate_values=slices,
                value=value if ended == states.COMPLETE else None,
            )
        )

    def _distribution(self, one: Between | tuple[Any, ...]) -> Any:
        of = self._optuna.distributions
        if not isinstance(one, Between):
            return of.CategoricalDistribution(one)
        if one.whole:
            return of.IntDistribution(one.low, one.high, log=one.log, step=one.step or 1)
        return of.FloatDistribution(one.low, one.high, log=one.log, step=one.step)


# --- what a trial is worth --------------------------------------------------------------------------------------------


def summarise(steps: Steps, chosen: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return what a trial did in the chosen steps: what an objective is a function of.

    Parameters
    ----------
    steps : Steps
    chosen : array of bool, shape (STEPS,)

    Returns
    -------
    dict of str to float
        ``net_pnl`` after fees, ``gross_pnl`` before, ``fees``, ``turnover`` in the quote asset; ``fills``, ``steps``;
        ``drawdown`` of the running net P&L, 0 or less; ``sharpe`` = mean / standard deviation of the P&L of a step, not
        annualised (NaN if it never varies).
    """
    net = steps.net[chosen]
    fees = float(steps.fees[chosen].sum())
    return {
        "net_pnl": float(net.sum()),
        "gross_pnl": float(net.sum()) + fees,
        "fees": fees,
        "turnover": float(steps.turnover[chosen].sum()),
        "fills": float(steps.fills[chosen].sum()),
        "steps": float(len(net)),
        "drawdown": drawdown(np.cumsum(net))[0],
        "sharpe": sharpe(net),
    }


def _objective(given: str | Objective) -> tuple[str, Objective]:
    """Return the name and the function of an objective."""
    if callable(given):
        return getattr(given, "__name__", type(given).__name__), given
    if given not in OBJECTIVES:
        raise ConfigError(f"objective: {given!r}; expected one of {', '.join(OBJECTIVES)}, or a function of a summary")
    return given, lambda summary: summary[given]


class _Judge:
    """The steps of every split, and what a trial is worth in them."""

    def __init__(self, borders: npt.NDArray[np.int64], splits: Sequence[Split], objective: Objective) -> None:
        self.splits = splits
        self._starts, self._ends = borders[:-1], borders[1:]
        self._objective = objective
        self._trains = [self._steps_in(split.train) for split in splits]
        self._tests = [self._steps_in((split.test,)) for split in splits]
        for k, (train, test) in enumerate(zip(self._trains, self._tests, strict=True)):
            if not (train.any() and test.any()):
                raise ConfigError(f"splits: split {k} has no whole step of {STEPS} to train or to test on; fewer folds")
        self._judged = splits[-1].test[0]

    def _steps_in(self, intervals: tuple[Interval, ...]) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(self._starts), np.bool_)
        for start, end in intervals:
            found |= (self._starts >= start) & (self._ends <= end)
        return found

    def value(self, steps: Steps, chosen: npt.NDArray[np.bool_]) -> float:
        return float(self._objective(summarise(steps, chosen)))

    def so_far(self, steps: Steps, part: int) -> float:
        """Return the objective after a part of the time before the last test."""
        first = int(self._starts[0])
        upto = first + (self._judged - first) * (part + 1) // SLICES
        chosen = self._ends <= upto
        return self.value(steps, chosen)

    def row(self, steps: Steps) -> dict[str, Any]:
        """Return the columns of a trial that is done."""
        trains = [summarise(steps, chosen) for chosen in self._trains]
        tests = [summarise(steps, chosen) for chosen in self._tests]
        values = [float(self._objective(one)) for one in trains]
        judged = [float(self._objective(one)) for one in tests]
        row: dict[str, Any] = {"value": _mean(values), "value_oos": _mean(judged)}
        for name in OBJECTIVES:
            row[name] = _mean([one[name] for one in trains])
            row[f"{name}_oos"] = _mean([one[name] for one in tests])
        return row | {"train_values": values, "test_values": judged}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


# --- the study on disk ------------------------------------------------------------------------------------------------


class _Study:
    """The folder of a sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the study alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / _LOCK, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"study: another process is running {self.folder}; wait, or name another") from error
            yield

    def begin(self, identity: dict[str, Any]) -> None:
        """Write what is swept, or compare it with what the study was begun with."""
        path = self.folder / _STUDY
        identity = json.loads(json.dumps(identity, default=repr))
        if path.exists():
            begun = json.loads(path.read_text())
            other = [name for name in identity if begun.get(name) != identity[name]]
            if other:
                raise ConfigError(
                    f"study: {self.folder} was begun with another {', '.join(other)}; take another study name, or "
                    "delete that folder"
                )
            return
        part = path.with_suffix(".part")
        part.write_text(json.dumps(identity, indent=1))
        part.replace(path)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Write trials that ended: they are there, or not at all."""
        folder = self.folder / _TRIALS
        folder.mkdir(exist_ok=True)
        name = f"{time.time_ns():020d}-{self._written:06d}"
        self._written += 1
        pl.DataFrame(rows, schema=_SCHEMA).write_parquet(folder / f"{name}.part")
        (folder / f"{name}.part").replace(folder / f"{name}.parquet")

    def trials(self) -> pl.DataFrame:
        """Return all trials so far, by number."""
        paths = sorted((self.folder / _TRIALS).glob("*.parquet"))
        if not paths:
            return pl.DataFrame(schema=_SCHEMA)
        return pl.concat([pl.read_parquet(path) for path in paths]).unique("trial", keep="first").sort("trial")

    def gather(self) -> None:
        """Put the trials of a sweep that ended into one file. Cut off between, they are there twice and read once."""
        paths = sorted((self.folder / _TRIALS).glob("*.parquet"))
        if len(paths) > 1:
            part = self.folder / _TRIALS / "all.part"
            self.trials().write_parquet(part)
            part.replace(self.folder / _TRIALS / f"{time.time_ns():020d}-all.parquet")
            for path in paths:
                path.unlink()


_LISTS = ("net", "step_fees", "step_turnover")
_SCHEMA: dict[str, Any] = {
    "trial": pl.Int64,
    "state": pl.String,
    "params": pl.String,  # JSON: trials of one study may have values of several types
    "seconds": pl.Float64,
    "orders": pl.Int64,
    "run_hash": pl.String,
    "error": pl.String,
    "worker": pl.Int64,
    "ended_ns": pl.Int64,
    "slices": pl.List(pl.Float64),
    "value": pl.Float64,
    "value_oos": pl.Float64,
    **{name: pl.Float64 for one in OBJECTIVES for name in (one, f"{one}_oos")},
    "train_values": pl.List(pl.Float64),
    "test_values": pl.List(pl.Float64),
    **{name: pl.List(pl.Float64) for name in _LISTS},
    "step_fills": pl.List(pl.Int64),
}


def _line(outcome: Outcome, judge: _Judge) -> dict[str, Any]:
    """Return an outcome as a line of Parquet."""
    line: dict[str, Any] = dict.fromkeys(_SCHEMA)
    line |= {
        "trial": outcome.number, "state": outcome.state, "error": outcome.error,
        "params": json.dumps(outcome.params, default=repr),
        "seconds": outcome.seconds, "orders": outcome.orders, "run_hash": outcome.run_hash, "worker": outcome.worker,
        "ended_ns": time.time_ns(), "slices": list(outcome.slices),
    }  # fmt: skip
    if outcome.steps is not None:
        try:
            line |= judge.row(outcome.steps)
        except Exception as error:  # the caller's own objective
            return line | {"state": "failed", "error": f"the objective: {type(error).__name__}: {error}"}
        line |= {"net": outcome.steps.net.tolist(), "step_fees": outcome.steps.fees.tolist()}
        line |= {"step_turnover": outcome.steps.turnover.tolist(), "step_fills": outcome.steps.fills.tolist()}
    return line


# --- workers ----------------------------------------------------------------------------------------------------------


class _Worker:
    """A process of this machine that runs trials."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        order = f"from hftlab.backtest.trials import serve; serve({theirs.fileno()})"
        threads = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", order], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            env=os.environ | threads,
        )  # fmt: skip
        theirs.close()
        self.number = -1
        self.slices: list[float] = []

    def begin(self, setup: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; noticed with its first trial
            self.connection.send_bytes(setup)

    def give(self, number: int, params: dict[str, Any], prunes: bool) -> None:
        self.number, self.slices = number, []
        self.connection.send((number, params, prunes))

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class _Processes:
    """The workers of this machine: they start and import while the market is being prepared."""

    def __init__(self, cores: int) -> None:
        self._setup = b""
        self._workers = [_Worker() for _ in range(cores)]

    def begin(self, setup: Setup, trials: int) -> None:
        """Tell the workers what all trials have in common; end those that are too many."""
        self._setup = pickle.dumps(setup)
        while len(self._workers) > max(1, trials):
            self._workers.pop().end()
        for worker in self._workers:
            worker.begin(self._setup)

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, todo: Iterator[int], search: Any, judge: _Judge) -> Iterator[list[Outcome]]:
        """Yield outcomes as they come, those of one moment together."""
        again: list[int] = []
        lost: dict[int, int] = {}
        asked: dict[int, dict[str, Any]] = {}

        def give(worker: _Worker) -> bool:
            number = again.pop() if again else next(todo, -1)
            if number < 0:
                return False
            if number not in asked:
                asked[number] = search.params(number)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle; noticed below
                worker.give(number, asked[number], search.prunes)
            return True

        busy = {worker.connection: worker for worker in self._workers if give(worker)}
        while busy:
            outcomes = []
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                worker = busy.pop(ready)
                try:
                    told = ready.recv()
                except (EOFError, ConnectionResetError):
                    number = worker.number
                    lost[number] = lost.get(number, 0) + 1
                    worker.end()
                    if lost[number] < _RUNS:
                        again.append(number)
                    else:
                        sentence = f"its process ended {_RUNS} times, the last with code {worker.process.returncode}"
                        outcomes.append(Outcome(number, asked[number], "failed", error=sentence))
                    self._workers.remove(worker)
                    self._workers.append(worker := _Worker())
                    worker.begin(self._setup)
                else:
                    if isinstance(told, tuple):
                        number, part, steps = told
                        worker.slices.append(judge.so_far(steps, part))
                        ready.send(not search.gives_up(number, part, worker.slices[-1]))
                        busy[ready] = worker
                        continue
                    if isinstance(told, str):
                        raise RuntimeError(f"a worker could not begin:\n{told}")
                    outcomes.append(_with_slices(told, worker.slices))
                if give(worker):
                    busy[worker.connection] = worker
            if outcomes:
                yield outcomes


def _with_slices(outcome: Outcome, slices: list[float]) -> Outcome:
    return Outcome(**{**outcome.__dict__, "slices": tuple(slices)}) if slices else outcome


class _Cluster:
    """The workers of a Dask cluster: they read the market by its path."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def begin(self, setup: Setup, trials: int) -> None:
        """Keep what all trials have in common."""
        self._setup = setup

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        """Leave the cluster as it is: it is not ours."""

    def run(self, todo: Iterator[int], search: Any, judge: _Judge) -> Iterator[list[Outcome]]:
        """Yield outcomes as they come; Dask itself runs again what was on a worker that is gone."""
        import distributed

        wait_for: Any = distributed.wait  # has no types
        pending: dict[Any, tuple[int, dict[str, Any]]] = {}
        lost: dict[int, int] = {}
        setup = self._client.scatter(self._setup, broadcast=True, hash=False)

        def submit(number: int, params: dict[str, Any]) -> None:
            key = f"hftlab-{hashlib.sha256(pickle.dumps((self._setup, params))).hexdigest()[:16]}-{number}"
            future = self._client.submit(run_here, setup, number, params, key=key, pure=False)
            pending[future] = (number, params)

        room = 2 * max(1, sum(self._client.nthreads().values()))
        for number in itertools.islice(todo, room):
            submit(number, search.params(number))
        while pending:
            outcomes = []
            for future in wait_for(list(pending), return_when="FIRST_COMPLETED").done:
                number, params = pending.pop(future)
                if future.status == "finished":
                    outcomes.append(future.result())
                elif lost.setdefault(number, 0) + 1 < _RUNS:
                    lost[number] += 1
                    submit(number, params)
                    continue
                else:
                    sentence = f"lost on the cluster: {future.exception()}"
                    outcomes.append(Outcome(number, params, "failed", error=sentence))
                more = next(todo, None)
                if more is not None:
                    submit(more, search.params(more))
            if outcomes:
                yield outcomes


# --- progress ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """How far a sweep is.

    Parameters
    ----------
    done, total : int
        Trials that ended, and all; ``failed`` and ``pruned`` of those that ended.
    per_s : float
        Trials a second in this run; ``left_s`` is the time left at that rate, NaN before the first.
    best, params
        The best value in sample so far, and its parameters.
    pids : list of int
        The worker processes of this machine.
    """

    done: int
    total: int
    failed: int
    pruned: int
    per_s: float
    left_s: float
    best: float
    params: dict[str, Any]
    pids: list[int]

    def __str__(self) -> str:
        best = f"best {self.best:.6g} at {_words(self.params)}" if self.params else "no value yet"
        left = f", {self.left_s:.0f} s left" if math.isfinite(self.left_s) else ""
        bad = f", {self.failed} failed" if self.failed else ""
        given_up = f", {self.pruned} given up" if self.pruned else ""
        return f"{self.done}/{self.total} trials{bad}{given_up}, {self.per_s:.2f}/s{left}; {best}"


def _words(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())


Progress = Callable[[Status], None]


def _bar(shown: bool | Progress) -> tuple[Progress, Callable[[], None]]:
    """Return what shows a status, and what ends it: tqdm's bar in a notebook, rich's in a terminal."""
    if callable(shown):
        return shown, lambda: None
    if not shown:
        return (lambda status: None), (lambda: None)
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        bar: Any = tqdm(total=0, desc="sweep", unit=" trials", leave=False)

        def show(status: Status) -> None:
            bar.total = status.total
            bar.set_postfix_str(str(status).split("; ")[1], refresh=False)
            bar.update(status.done - bar.n)

        return show, bar.close
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("sweep"), BarColumn(), TextColumn("{task.fields[status]}"))
    rich_bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = rich_bar.add_task("sweep", total=None, status="preparing")
    rich_bar.start()

    def draw(status: Status) -> None:
        rich_bar.update(task, completed=status.done, total=status.total, status=str(status))

    return draw, rich_bar.stop


class _Tally:
    """Counts trials as they end."""

    def __init__(self, frame: pl.DataFrame, total: int) -> None:
        self._total, self._old, self._begun = total, len(frame), time.perf_counter()
        self._counts = {"done": 0, "failed": 0, "pruned": 0}
        self._best, self._params = -math.inf, {}  # type: float, dict[str, Any]
        for line in frame.select("state", "value", "params").iter_rows(named=True):
            self.count(line)

    def count(self, line: Mapping[str, Any]) -> None:
        self._counts[line["state"]] += 1
        value = line["value"]
        if line["state"] == "done" and value is not None and value > self._best:
            self._best, self._params = value, json.loads(line["params"])

    def status(self, pids: list[int]) -> Status:
        ended = sum(self._counts.values())
        rate = (ended - self._old) / max(1e-9, time.perf_counter() - self._begun)
        left = (self._total - ended) / rate if rate else math.nan
        return Status(
            ended, self._total, self._counts["failed"], self._counts["pruned"], rate, left, self._best, self._params,
            pids,
        )  # fmt: skip


# --- sweep ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A sweep that is ready to run."""

    setup: Setup
    search: Any
    judge: _Judge
    identity: dict[str, Any]

    @property
    def market(self) -> Path:
        return Path(self.setup.folder)


def _plan(
    strategy: Any, data: Any, space: Mapping[str, Any], *, instruments: Sequence[Instrument] | None,
    limits: Sequence[Limits] | Limits, latency: Latency | None, queue: Queue | None, fees: Fees | None,
    impact: Impact | None, objective: str | Objective, method: str, trials: int | None, prune: bool, study: str,
    folder: Path | str, seed: int, splits: Splitter | None, client: Any,
) -> tuple[_Plan, Tape]:  # fmt: skip
    """Check every argument, and return what is to be done and the market to do it on."""
    if isinstance(strategy, (Strategy, PythonStrategy)):
        cls, base = type(strategy), dict(strategy.chosen)
    elif isinstance(strategy, type) and issubclass(strategy, (Strategy, PythonStrategy)):
        cls, base, strategy = strategy, {}, strategy()
    else:
        raise ConfigError(f"strategy: {strategy!r}; expected a strategy such as Maker, or Maker(size_lots=100)")
    if isinstance(data, MatchingExchange):
        raise ConfigError("data: a synthetic exchange goes on from trial to trial; record it once and sweep over that")
    if method not in _METHODS:
        raise ConfigError(f"method: {method!r}; expected one of {', '.join(_METHODS)}")
    if trials is not None and trials < 1:
        raise ConfigError(f"trials: {trials}; expected 1 or more")
    if prune and (method != "tpe" or client is not None):
        raise ConfigError("prune: needs method='tpe', and the processes of this machine")
    named, judge_by = _objective(objective)
    chosen = _space(cls, space)
    search = _Suggested(chosen, trials, seed, prune) if method == "tpe" else _Drawn(chosen, method, trials, seed)
    latency, queue, fees, impact = latency or Latency(), queue or Queue(), fees or BASE_FEES, impact or Impact()
    splits = splits or Holdout()
    tape = read_tape(data, instruments)
    quotes = {one.quote for one in tape.instruments}
    if len(quotes) > 1:
        raise ConfigError(f"instruments: quoted in {', '.join(sorted(quotes))}; their P&L adds up in one asset only")
    each = (limits,) * len(tape.instruments) if isinstance(limits, Limits) else tuple(limits)
    place = Path(folder).absolute() / study
    market_hash = run_hash(tape.rows)
    market = place / f"market-{market_hash[:12]}"
    borders = step_borders(tape.rows)
    made = splits.split(int(borders[0]), int(borders[-1]))
    source = source_of(cls)
    setup = Setup(
        str(market), source, cls.__name__, base, bool(strategy.compiled), tape.instruments, each, latency, queue, fees,
        impact, seed, made[-1].test[0], tuple(sys.path),
    )  # fmt: skip
    identity = {
        "strategy": cls.__name__, "source": hashlib.sha256(source.encode()).hexdigest(), "params": base,
        "compiled": bool(strategy.compiled), "data": market_hash,
        "instruments": [one.to_dict() for one in tape.instruments], "limits": [asdict(one) for one in each],
        "latency": [str(latency), _digest(latency.entry_ns, latency.response_ns, latency.at_ns), latency.feed_ns],
        "queue": str(queue), "fees": repr(fees), "impact": repr(impact), "objective": [named, _text_of(objective)],
        "method": method, "prune": prune, "seed": seed, "space": {name: repr(one) for name, one in chosen.items()},
        "splits": [[list(one.train), list(one.test)] for one in made], "borders": [int(borders[0]), int(borders[-1])],
        "quote": min(quotes),
    }  # fmt: skip
    return _Plan(setup, search, _Judge(borders, made, judge_by), identity), tape


def _lay(plan: _Plan, tape: Tape) -> None:
    """Lay down the market where the workers find it; one that an interrupted sweep left is used again."""
    if not (plan.market / MARKS).exists():
        lay_market(plan.market, tape.rows, tape.instruments, plan.setup.latency, tape.marks)


def _digest(*arrays: npt.NDArray[Any]) -> str:
    return hashlib.sha256(b"|".join(one.tobytes() for one in arrays)).hexdigest()[:16]


def _text_of(objective: str | Objective) -> str:
    """Return what tells one objective of the same name from another, as far as it can be read."""
    try:
        return "" if isinstance(objective, str) else inspect.getsource(objective).strip()
    except (OSError, TypeError):
        return ""


def sweep(
    strategy: Strategy | PythonStrategy | type[Strategy] | type[PythonStrategy],
    data: Any,
    *,
    limits: Sequence[Limits] | Limits,
    instruments: Sequence[Instrument] | None = None,
    latency: Latency | None = None,
    queue: Queue | None = None,
    fees: Fees | None = None,
    impact: Impact | None = None,
    objective: str | Objective = "net_pnl",
    method: str = "grid",
    trials: int | None = None,
    prune: bool = False,
    splits: Splitter | None = None,
    study: str = "sweep",
    folder: Path | str = "sweeps",
    cores: int | None = None,
    client: Any = None,
    seed: int = 1,
    mlflow: bool = False,
    progress: bool | Progress = True,
    space: Mapping[str, Any] | None = None,
    **params: Any,
) -> Sweep:
    """Run a strategy with many parameters over one recorded market, and return all trials, best first.

    Parameters
    ----------
    strategy : Strategy or PythonStrategy, or a class of these
        An instance brings the parameters that are not searched.
    data, instruments, limits, latency, queue, fees, impact
        As of `hftlab.backtest.runner.backtest`; a recorded market.
    objective : str or callable
        One of `OBJECTIVES`, or a function of what `summarise` returns. It is maximised.
    method : str
        ``grid``, ``random`` or ``tpe``.
    trials : int, optional
        All of a grid if absent; 100 of the others.
    prune : bool
        Whether ``tpe`` may give up a trial early.
    splits : Splitter, optional
        `Holdout` of the last 30 % if absent; see `hftlab.backtest.splits`.
    study, folder : str, Path
        The sweep is kept in ``folder/study``, and goes on from there.
    cores : int, optional
        Worker processes; as many as this process may use if absent.
    client : distributed.Client, optional
        Use the workers of its cluster; each of them must see `folder` under the same path.
    seed : int
        Of the search and of ``ctx.random()``.
    mlflow : bool
        Whether to log the end (see `Sweep.log`).
    progress : bool or callable(Status)
        True shows a bar.
    space : mapping, optional
        What is searched, if a parameter's name is one of the above.
    **params
        What is searched: name = values (range, list), or `Between`.

    Returns
    -------
    Sweep
        After Ctrl-C, of the trials that ended until then.

    Raises
    ------
    ConfigError
        If an argument is wrong, or the study was begun with others. An error of a trial is not raised.
    """
    if not study or "/" in study or study.startswith("."):
        raise ConfigError(f"study: {study!r}; expected a name such as maker-1")
    place = _Study(Path(folder).absolute() / study)
    workers: Any = _Processes(_cores(cores)) if client is None else _Cluster(client)
    show, end_bar = _bar(progress)
    try:
        with place.held():
            plan, tape = _plan(
                strategy, data, {**(space or {}), **params}, instruments=instruments, limits=limits, latency=latency,
                queue=queue, fees=fees, impact=impact, objective=objective, method=method, trials=trials, prune=prune,
                study=study, folder=folder, seed=seed, splits=splits, client=client,
            )  # fmt: skip
            place.begin(plan.identity)
            _lay(plan, tape)
            del tape  # mapped from here on: the workers' copy is the only one
            interrupted = _run(plan, place, workers, show)
            if not interrupted:
                place.gather()
                shutil.rmtree(plan.market)
    finally:
        workers.close()
        end_bar()
    found = read_sweep(study, folder, interrupted=interrupted)
    if mlflow and not interrupted:
        found.log()
    return found


def _cores(given: int | None) -> int:
    if given is not None and given < 1:
        raise ConfigError(f"cores: {given}; expected 1 or more")
    return given or len(os.sched_getaffinity(0))


def _run(plan: _Plan, study: _Study, workers: Any, show: Progress) -> bool:
    """Run the trials that are left, and return whether Ctrl-C ended it."""
    frame = study.trials()
    for line in frame.iter_rows(named=True):
        plan.search.known(_outcome_of(line), math.nan if line["value"] is None else line["value"])
    ended = set(frame["trial"].to_list())
    left = [k for k in range(plan.search.total) if k not in ended]
    tally = _Tally(frame, max(plan.search.total, len(ended)))
    if not left:
        return False
    workers.begin(plan.setup, len(left))
    try:
        show(tally.status(workers.pids()))
        for outcomes in workers.run(iter(left), plan.search, plan.judge):
            fresh = [one for one in outcomes if one.number not in ended]
            ended.update(one.number for one in fresh)
            lines = [_line(one, plan.judge) for one in fresh]
            study.append(lines)
            for one, line in zip(fresh, lines, strict=True):
                plan.search.known(one, math.nan if line["value"] is None else line["value"])
                tally.count(line)
            show(tally.status(workers.pids()))
    except KeyboardInterrupt:
        return True
    return False


def _outcome_of(line: Mapping[str, Any]) -> Outcome:
    return Outcome(line["trial"], json.loads(line["params"]), line["state"], slices=tuple(line["slices"] or ()))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a sweep will cost.

    Parameters
    ----------
    trials : int
    rows : int
        Of the market.
    trial_s : float
        Of one trial, measured; the first of a worker also starts it: `start_s`.
    cores : int
    seconds : float
        Of all of it.
    shared_mb : float
        The market, once a machine.
    """

    trials: int
    rows: int
    trial_s: float
    start_s: float
    cores: int
    seconds: float
    shared_mb: float

    def __str__(self) -> str:
        return (
            f"{self.trials:,} trials of {self.rows:,} rows, {self.trial_s:.3g} s each on {self.cores} cores: about "
            f"{self.seconds:.3g} s, and {self.start_s:.2g} s to begin; {self.shared_mb:,.0f} MB of market, held once"
        )


def estimate(
    strategy: Any,
    data: Any,
    *,
    limits: Any,
    cores: int | None = None,
    space: Mapping[str, Any] | None = None,
    **how: Any,
) -> Estimate:
    """Return what the same call of `sweep` would cost: its first trial is run twice, and nothing is kept.

    Parameters
    ----------
    strategy, data, limits, cores, space, **how
        As of `sweep`.
    """
    import tempfile

    known = inspect.signature(sweep).parameters
    params = {name: how.pop(name) for name in list(how) if name not in known}
    options = {name: known[name].default for name in (
        "instruments", "latency", "queue", "fees", "impact", "objective", "method", "trials", "prune", "splits", "seed",
        "client",
    )}  # fmt: skip
    for name in ("study", "folder", "mlflow", "progress"):
        how.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        plan, tape = _plan(
            strategy, data, {**(space or {}), **params}, limits=limits, **{**options, **how}, study="estimate",
            folder=folder,
        )  # fmt: skip
        _lay(plan, tape)
        workers = _Processes(1)
        try:
            workers.begin(plan.setup, 1)
            first = plan.search.params(0)
            outcomes, marks = [], [begun]
            for outcome in workers.run(iter([0, 1]), _Same(first), plan.judge):
                outcomes += outcome
                marks.append(time.perf_counter())
        finally:
            workers.close()
        if outcomes[-1].state == "failed":
            raise ConfigError(f"strategy: its first trial fails: {outcomes[-1].error}")
        trial_s, used = outcomes[-1].seconds, min(_cores(cores), plan.search.total)
        seconds = trial_s * math.ceil(plan.search.total / used)
        shared = len(tape.rows) * 72 / 1e6
        return Estimate(plan.search.total, len(tape.rows), trial_s, marks[1] - begun - trial_s, used, seconds, shared)


class _Same(_Drawn):
    """The same parameters every time."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._params = params

    def params(self, number: int) -> dict[str, Any]:
        """Return them."""
        return self._params


# --- results ----------------------------------------------------------------------------------------------------------


def read_sweep(study: str, folder: Path | str = "sweeps", *, interrupted: bool = False) -> Sweep:
    """Return what is kept of a study, finished or not.

    Raises
    ------
    NotFound
        If there is none of that name.
    """
    place = Path(folder).absolute() / study
    if not (place / _STUDY).exists():
        there = ", ".join(sorted(one.parent.name for one in Path(folder).glob(f"*/{_STUDY}")))
        raise NotFound(f"study: there is no {study!r} in {folder}; there are: {there or 'none yet'}")
    return Sweep(place, json.loads((place / _STUDY).read_text()), _Study(place).trials(), interrupted)


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Parameters
    ----------
    folder : Path
        Of the study.
    study : dict
        What was swept: ``study.json``.
    lines : polars.DataFrame
        All trials by number, as Parquet holds them, with the P&L of every step.
    interrupted : bool
        Whether Ctrl-C ended it.
    """

    folder: Path
    study: dict[str, Any]
    lines: pl.DataFrame
    interrupted: bool = False

    @cached_property
    def names(self) -> list[str]:
        """The parameters that were searched."""
        return list(self.study["space"])

    @cached_property
    def trials(self) -> pl.DataFrame:
        """One line a trial, best in sample first.

        trial, state, the parameters; value and value_oos (the objective in and out of sample), then each of
        `OBJECTIVES` both ways; orders, seconds, run_hash, error. Given-up and failed trials come last, without values.
        """
        params = [json.loads(text) for text in self.lines["params"]]
        columns = [pl.Series(name, [one[name] for one in params], strict=False) for name in self.names]
        measured = [name for one in ("value", *OBJECTIVES) for name in (one, f"{one}_oos")]
        return (
            self.lines.with_columns(columns)
            .select("trial", "state", *self.names, *measured, "orders", "seconds", "run_hash", "error")
            .sort(pl.col("value").fill_nan(None), "trial", descending=[True, False], nulls_last=True)
        )

    @cached_property
    def _done(self) -> pl.DataFrame:
        return self.lines.filter((pl.col("state") == "done") & pl.col("value").is_finite())

    @cached_property
    def _net(self) -> npt.NDArray[np.float64]:
        """Net P&L of each step of the trials that are done, shape (trials, STEPS)."""
        return np.array(self._done["net"].to_list(), np.float64).reshape(-1, STEPS)

    @cached_property
    def _borders(self) -> npt.NDArray[np.int64]:
        first, last = self.study["borders"]
        return np.array([first + (last - first) * k // STEPS for k in range(STEPS + 1)], np.int64)

    @cached_property
    def deflated_sharpe(self) -> float:
        """The probability that the best trial has a Sharpe ratio above what so many trials would show by luck alone.

        Over all training time, by steps; see `hftlab.analysis.performance.deflated_sharpe`. Trials of neighbouring
        parameters are alike, so it errs on the careful side. NaN where there are fewer than two trials that traded.
        """
        starts, ends = self._borders[:-1], self._borders[1:]
        trained = np.zeros(STEPS, np.bool_)
        for intervals, _ in self.study["splits"]:
            for start, end in intervals:
                trained |= (starts >= start) & (ends <= end)
        net = self._net[:, trained]
        ratios = np.array([sharpe(one) for one in net])
        known = ratios[np.isfinite(ratios)]
        if len(known) < 2:
            return math.nan
        best = int(np.nanargmax(self._done["value"].to_numpy()))
        return deflated_sharpe(net[best], len(known), float(known.std(ddof=1)))

    @property
    def best(self) -> dict[str, Any]:
        """Parameters of the trial that is best in sample; raises ConfigError if none is done."""
        done = self._done.sort("value", "trial", descending=[True, False])
        if not len(done):
            raise ConfigError(f"study: no trial of {self.folder.name} has a value; see the column error of trials")
        return dict(json.loads(done["params"][0]))

    @cached_property
    def walk_forward(self) -> pl.DataFrame:
        """One line a split: what would have been chosen on its training time, and what that earned in its test.

        test_start, test_end, trial, the parameters, value (in training), value_oos (in the test), median_oos (of all
        trials in that test), better_oos (the share of trials that did better there).
        """
        done = self._done
        lines = []
        for k, (_, test) in enumerate(self.study["splits"]):
            train = done["train_values"].list.get(k).to_numpy()
            tested = done["test_values"].list.get(k).to_numpy()
            if not np.isfinite(train).any():
                continue
            at = int(np.nanargmax(train))
            lines.append(
                {
                    "test_start": test[0], "test_end": test[1], "trial": done["trial"][at],
                    **json.loads(done["params"][at]), "value": train[at], "value_oos": tested[at],
                    "median_oos": float(np.nanmedian(tested)), "better_oos": float((tested > tested[at]).mean()),
                }
            )
        times = [pl.col(name).cast(pl.Datetime("ns", "UTC")) for name in ("test_start", "test_end")]
        return pl.DataFrame(lines).with_columns(times) if lines else pl.DataFrame()

    def stability(self, name: str) -> pl.DataFrame:
        """Return, for each value of a parameter, the trials that had it and the quartiles of their values."""
        if name not in self.names:
            raise ConfigError(f"parameter: {name!r} was not searched; there are {', '.join(self.names)}")
        frame = self.trials.filter(pl.col("value").is_finite())
        quartiles = (pl.col("value").quantile(q, "linear") for q in (0.25, 0.75))
        return (
            frame.group_by(name)
            .agg(
                pl.len().alias("trials"),
                next(quartiles).alias("low"),
                pl.col("value").median(),
                next(quartiles).alias("high"),
                pl.col("value").max().alias("best"),
                pl.col("value_oos").median(),
            )
            .sort(name)
        )

    def summary(self) -> str:
        """Return what was tried and what was found, in and out of sample, as text."""
        states = dict(self.lines.group_by("state").len().iter_rows())
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        objective = self.study["objective"][0]
        lines = [f"{self.study['strategy']}, {self.study['method']}: {len(self.lines)} trials ({told}), {objective}"]
        if self.interrupted:
            lines.append("stopped before its end; the same call goes on")
        if len(self._done):
            top = self.trials.row(0, named=True)
            lines.append(f"best in sample: {_words(self.best)}")
            lines.append(f"{objective} {top['value']:.6g} in sample, {top['value_oos']:.6g} out of sample")
            better = float((self._done["value_oos"] > top["value_oos"]).mean())
            lines.append(f"out of sample {better:.0%} of the trials did better")
            with contextlib.suppress(ImportError):  # the extra "lab" is not installed: a summary is no reason to fail
                chance = self.deflated_sharpe
                if math.isfinite(chance):
                    lines.append(f"its Sharpe ratio is more than the luck of so many trials: {chance:.0%}")
        lines += [f"trial {k} failed: {error}" for k, error in self._failures()[:3]]
        return "\n".join(lines)

    def _failures(self) -> list[tuple[int, str]]:
        return list(self.lines.filter(pl.col("state") == "failed").select("trial", "error").iter_rows())

    def plot(self, x: str, y: str, z: str = "value_oos") -> Any:
        """Return a heat map of column `z` of `trials` over two parameters."""
        from hftlab.analysis.plots import sweep_map

        for name in (x, y):
            self.stability(name)
        return sweep_map(self.trials, x, y, z)

    def plot_progress(self) -> Any:
        """Return a picture of the trials in the order in which they ended, and of the best so far."""
        from hftlab.analysis.plots import chart
        from hftlab.analysis.style import ASK, BID, INK

        done = self._done.sort("ended_ns", "trial")
        n, values = np.arange(1, len(done) + 1), done["value"].to_numpy()
        fig = chart(260, f"{self.study['objective'][0]} of each trial, and the best so far")
        if len(done):
            fig.scatter(n, values, size=5, color=BID, legend_label="in sample")
            fig.scatter(n, done["value_oos"].to_numpy(), size=5, color=ASK, marker="x", legend_label="out of sample")
            best = np.maximum.accumulate(values)
            fig.step(n, best, color=INK, line_width=1.5, mode="after", legend_label="best so far")
            fig.legend.location = "top_left"
        fig.xaxis.axis_label = "trials ended"
        return fig

    def plot_stability(self, name: str) -> Any:
        """Return a picture of how the values depend on one parameter: quartiles and best in sample, median out of it.

        A parameter is stable where neighbours earn alike; a single high point between low ones is luck.
        """
        from hftlab.analysis.plots import chart
        from hftlab.analysis.style import ASK, BID, INK

        frame = self.stability(name)
        fig = chart(260, f"{self.study['objective'][0]} by {name}: quartiles, all other parameters varying")
        x = frame[name].to_numpy() if frame[name].dtype.is_numeric() else np.arange(len(frame))
        if len(frame):
            low, high, middle = (frame[one].to_numpy() for one in ("low", "high", "value"))
            fig.varea(x, low, high, fill_color=BID, fill_alpha=0.15)
            fig.segment(x, low, x, high, line_color=BID, line_width=3)
            fig.line(x, middle, color=BID, line_width=1.5, legend_label="median in sample")
            fig.scatter(x, frame["best"].to_numpy(), size=6, color=INK, legend_label="best in sample")
            oos = frame["value_oos"].to_numpy()
            fig.line(x, oos, color=ASK, line_width=1.5, line_dash="dashed", legend_label="median out of sample")
            fig.legend.location = "bottom_right"
        fig.xaxis.axis_label = name
        return fig

    def plot_walk_forward(self) -> Any:
        """Return a picture of the tests, one after the other: the net P&L of what training chose, the median trial's,
        and that of the trial that turned out best, which nobody could have known."""
        from bokeh.models import DatetimeTickFormatter
        from bokeh.models.annotations import Span

        from hftlab.analysis.plots import chart
        from hftlab.analysis.style import BID, GREY, INK

        borders, net = self._borders, self._net
        place = {trial: k for k, trial in enumerate(self._done["trial"])}
        tests = [(borders[:-1] >= start) & (borders[1:] <= end) for _, (start, end) in self.study["splits"]]
        at = np.concatenate([np.flatnonzero(one) for one in tests])
        fig = chart(280, "Net P&L of the tests, one after the other", x_axis_type="datetime", y_axis_label="net")
        if len(self.walk_forward) == len(tests):
            pairs = zip(self.walk_forward["trial"], tests, strict=True)
            chosen = np.concatenate([net[place[trial], one] for trial, one in pairs])
            running = np.cumsum(net[:, at], axis=1)
            lines = [
                ("what training chose", np.cumsum(chosen), BID, "solid"),
                ("the median trial", np.median(running, axis=0), GREY, "dashed"),
                ("the best in hindsight", running[int(np.argmax(running[:, -1]))], INK, "dotted"),
            ]
            for name, y, color, dash in lines:
                fig.line(borders[1:][at] / 1e6, y, color=color, line_dash=dash, line_width=1.5, legend_label=name)
            for _, (start, _) in self.study["splits"]:
                fig.add_layout(Span(dimension="height", location=start / 1e6, line_color=GREY, line_dash="dotted"))
            fig.legend.location = "top_left"
        fig.xaxis.formatter = DatetimeTickFormatter(seconds="%H:%M:%S", minutes="%H:%M", hours="%H:%M")
        return fig

    def log(self, mlruns: Path | str = "mlruns") -> str:
        """Log the sweep to MLflow, one parent run with its best trials as children; return the parent's run id."""
        from hftlab.tracking import Tracked, log_run

        def tracked(line: dict[str, Any]) -> Tracked:
            metrics = {name: value for name, value in line.items() if isinstance(value, float)}
            return Tracked(f"trial {line['trial']}", {name: line[name] for name in self.names}, metrics)

        best = self.trials.filter(pl.col("value").is_finite()).head(_BEST)
        children = [tracked(line) for line in best.iter_rows(named=True)]
        params = {"strategy": self.study["strategy"], "method": self.study["method"], "trials": len(self.lines)}
        params |= {"objective": self.study["objective"][0], "data": self.study["data"], **self.study["space"]}
        files = [self.folder / _STUDY, *sorted((self.folder / _TRIALS).glob("*.parquet"))]
        run = Tracked(
            self.folder.name, params, children[0].metrics if children else {},
            files={path.name: path for path in files}, children=children,
        )  # fmt: skip
        return log_run(run, experiment="sweeps", mlruns=mlruns)
