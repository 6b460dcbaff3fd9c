"""Promotion: one command turns a notebook into a version that trades without it.

What could differ between the notebook somebody looked at and the code that trades? A cell that was run out of order or
twice, a name that only another cell knows, a global that changed after the strategy was defined, chance, the clock, a
compiled form that is not the plain one. No reading of the code settles these, so promotion runs them. The gates, cheap
ones first; the first that fails refuses, in one sentence that says what to do:

1. *tagged cells*: one cell tagged ``parameters`` (PARAMS, SYMBOLS, LIMITS), one tagged ``strategy``, both plain Python.
2. *self-contained*: the two cells, run alone in a fresh process, define exactly one strategy, and every name its
   functions read is defined there.
3. *clean run*: a copy of the notebook runs from top to bottom in a fresh kernel, in an empty folder, under a home of
   its own.
4. *identical orders*: the class as that kernel holds it after the last cell, and the two cells alone in another
   process, write the same rows, byte for byte, over the same market: seeded synthetic flow, or a journal that the user
   names.
5. *both forms*: so do the compiled form and plain Python.

Then the two cells, with all that decides what they do, become one MLflow model version (see `hftlab.tracking`).

Cells tagged ``promote`` are left out of the clean run: they are where a notebook promotes itself.

When it is wrong. Equal rows over one market do not prove equal rows over every market: a strategy that reads the clock
once a day passes. The market is 20 s of synthetic flow unless a journal is named; a strategy that sends no order in it
is refused, because nothing would have been compared.
"""

from __future__ import annotations

import ast
import dis
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.backtest.runner import Result, backtest
from hftlab.core.definitions import Definitions, Limits
from hftlab.core.errors import ConfigError, HftlabError, Refused
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW
from hftlab.engine import first_difference
from hftlab.journal import JournalReader, format_row
from hftlab.services.venue import VenueSettings
from hftlab.sim.exchange import MatchingExchange
from hftlab.strategy import PythonStrategy, Strategy, load_strategy
from hftlab.tracking import Artefact, PromotedStrategy, check_name, register, resolve, versions

__all__ = ["Gate", "Version", "promote", "resolve", "trial", "versions"]

TAGS = ("parameters", "strategy")
TRIAL_SECONDS = 20
TRIAL_SEED = 1
CELL_TIMEOUT_S = 180
CHILD_TIMEOUT_S = 600

_CONSTANTS = ("PARAMS", "SYMBOLS", "LIMITS")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Gate:
    """One line of the checklist.

    Parameters
    ----------
    title : str
    seconds : float or None
        Time it took; None while it runs.
    detail : str
        What was found.
    """

    title: str
    seconds: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """What a promotion made.

    Parameters
    ----------
    name, alias : str
    version : int
        MLflow's number, from 1.
    hash : str
        SHA-256 over the artefact, hexadecimal.
    gates : tuple of Gate
        What was checked, the registration last.
    folder : Path
        Where the version's files lie.
    """

    name: str
    alias: str
    version: int
    hash: str
    gates: tuple[Gate, ...]
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} version {self.version} ({self.hash[:8]}) is {self.name}@{self.alias}"

    def _repr_markdown_(self) -> str:
        return f"**{self}**\n\n{_table(self.gates)}"


OnGate = Callable[[Gate], None]


def promote(
    notebook: Path | str,
    *,
    name: str,
    alias: str = "champion",
    journal: Path | str | None = None,
    mlruns: Path | str | None = None,
    on_gate: OnGate | None = None,
) -> Version:
    """Check `notebook` by the gates and register its strategy as one version of MLflow model `name`.

    Parameters
    ----------
    notebook : path
        With one cell tagged ``parameters`` and one tagged ``strategy``.
    name : str
        Of the registered model.
    alias : str
        Points at the new version from now on.
    journal : path, optional
        Folder of a journal whose market the orders are compared on; seeded synthetic flow by default.
    mlruns : path, optional
        Folder of the MLflow store; ``mlruns`` in the working directory by default.
    on_gate : callable, optional
        Told of each gate as it begins (``seconds`` None) and as it is passed.

    Raises
    ------
    Refused
        If a gate is not passed; the message names the gate, what was found and what to do.
    ConfigError
        If notebook, journal, name or alias cannot be.
    """
    path = Path(notebook).absolute()
    check_name("name", name)
    check_name("alias", alias)
    market = None if journal is None else _existing_journal(Path(journal))
    store = Path("mlruns" if mlruns is None else mlruns).absolute()
    checklist = _Checklist(on_gate or (lambda gate: None))
    # A short path, because sockets lie in it, and theirs must fit 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hft", ignore_cleanup_errors=True) as folder:
        scratch = _Scratch(Path(folder), market)
        with checklist.gate("tagged cells") as found:
            cells = read_cells(path)
            found.append(f"{len(cells.source.splitlines())} lines")
        with checklist.gate("self-contained") as found:
            artefact = _alone(cells, scratch)
            found.append(f"{artefact.class_name} on {', '.join(artefact.symbols)}")
        with checklist.gate("clean run") as found:
            seen = _clean_run(path, cells, artefact.class_name, scratch)
            found.append(f"{cells.count} code cells")
        with checklist.gate("identical orders") as found:
            forms = scratch.child("_trial_alone", asdict(artefact))
            found.append(_compare(seen, forms[0], "identical_orders", "the notebook's kernel", "its two cells alone"))
        with checklist.gate("both forms") as found:
            found.append(_compare_forms(forms))
        with checklist.gate("registered") as found:
            where = {"name": name, "alias": alias, "mlruns": str(store)}
            told = scratch.child("_register_alone", {"artefact": asdict(artefact), **where})
            found.append(f"{name} version {told['version']}, {artefact.hash[:8]}")
    made = Version(name, alias, told["version"], artefact.hash, tuple(checklist.passed), Path(told["folder"]))
    for file, text in _reports(made, path, told["created_ms"], artefact).items():
        (made.folder / file).write_text(text)
    return made


def _existing_journal(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"journal: {folder} is not a folder; expected the folder of a session's journal")
    return folder.absolute()


class _Checklist:
    """The gates passed so far, each told as it begins and ends."""

    def __init__(self, tell: OnGate) -> None:
        self.passed: list[Gate] = []
        self._tell = tell

    @contextmanager
    def gate(self, title: str) -> Iterator[list[str]]:
        """Time one gate; what the block appends to the list it is given is the gate's detail."""
        found: list[str] = []
        self._tell(Gate(title))
        begun = time.perf_counter()
        yield found
        self.passed.append(Gate(title, time.perf_counter() - begun, "; ".join(found)))
        self._tell(self.passed[-1])


def _table(gates: Sequence[Gate]) -> str:
    lines = ["| gate | seconds | found |", "|---|---:|---|"]
    return "\n".join(lines + [f"| {g.title} | {g.seconds or 0:.1f} | {g.detail} |" for g in gates]) + "\n"


def _reports(made: Version, notebook: Path, created_ms: int, artefact: Artefact) -> dict[str, str]:
    """Return the report's files: they lie beside the version's artefact, outside its hash."""
    registered = datetime.fromtimestamp(created_ms / 1e3, UTC).isoformat(timespec="seconds")
    plain = {
        "schema": 1,
        "name": made.name,
        "version": made.version,
        "alias": made.alias,
        "registered": registered,
        "notebook": notebook.name,
        "hash": artefact.hash,
        "gates": [asdict(gate) for gate in made.gates],
        "params": artefact.params,
        "symbols": list(artefact.symbols),
        "limits": artefact.limits,
        "pins": artefact.pins,
    }
    title = f"# {made.name} version {made.version}: {artefact.class_name} of {notebook.name}\n\n"
    title += f"Registered {registered} as {made.name}@{made.alias}, hash {artefact.hash}\n\n"
    return {
        "promote_report.json": json.dumps(plain, indent=1) + "\n",
        "promote_report.md": title + _table(made.gates),
    }


# --- the notebook's cells ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a notebook that matter to promotion.

    Parameters
    ----------
    source : str
        Both tagged cells, one after the other.
    others : tuple of (int, str)
        Index from 0 and source of every other code cell.
    count : int
        Code cells that the clean run executes.
    """

    source: str
    others: tuple[tuple[int, str], ...]
    count: int


def _read_notebook(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]  # nbformat annotates in part
    except FileNotFoundError as error:
        raise ConfigError(f"notebook: there is no file {path}") from error
    except Exception as error:  # nbformat raises whatever its parts raise
        raise ConfigError(f"notebook: {path} cannot be read as a notebook ({type(error).__name__}: {error})") from error


def read_cells(path: Path) -> Cells:
    """Return the tagged cells of the notebook at `path`, and the others.

    Raises
    ------
    Refused
        If a tag is missing or on several cells, or a tagged cell is not plain Python.
    ConfigError
        If there is no notebook there.
    """
    code = [(i, cell) for i, cell in enumerate(_read_notebook(path).cells) if cell.cell_type == "code"]
    tagged: dict[str, tuple[int, str]] = {}
    for tag in TAGS:
        having = [(i, cell.source) for i, cell in code if tag in cell.metadata.get("tags", [])]
        if len(having) != 1:
            many = f"cells {', '.join(str(i) for i, _ in having)} are" if having else "no cell is"
            raise Refused(
                "tagged_cells",
                f"{many} tagged {tag!r}; expected one. In JupyterLab select the cell, open the property inspector (the "
                f"gears, top right) and add the tag {tag!r} under Cell Tags",
            )
        tagged[tag] = having[0]
        _check_plain(tag, *having[0])
    chosen = {index for index, _ in tagged.values()}
    return Cells(
        "\n\n".join(source.strip("\n") for _, source in tagged.values()) + "\n",
        tuple((i, cell.source) for i, cell in code if i not in chosen),
        sum("promote" not in cell.metadata.get("tags", []) for _, cell in code),
    )


def _check_plain(tag: str, index: int, source: str) -> None:
    try:
        ast.parse(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise Refused(
            "tagged_cells",
            f"cell {index}, tagged {tag!r}, is not plain Python: line {error.lineno}, {line!r}: {error.msg}. Magics "
            "belong in other cells",
        ) from error


def _binder(name: str, cells: Cells) -> int | None:
    """Return the index of the first untagged cell that gives `name` a value, None if none does."""
    for index, source in cells.others:
        plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
        with suppress(SyntaxError):
            if name in _bound(ast.parse(plain)):
                return index
    return None


def _bound(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return found


# --- other processes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scratch:
    """The folder of one promotion, and the processes that run in it."""

    folder: Path
    journal: Path | None

    @property
    def empty(self) -> Path:
        """A folder with nothing in it, for processes to stand in."""
        place = self.folder / "run"
        place.mkdir(exist_ok=True)
        return place

    def environment(self) -> dict[str, str]:
        """Return this process's environment, but with a home of its own."""
        return {**os.environ, "HFTLAB_HOME": str(self.folder / "home")}

    def request(self, what: str, content: Any) -> Path:
        """Write down what the function `what` is to do, and return where."""
        path = self.folder / f"{what}.json"
        journal = None if self.journal is None else str(self.journal)
        path.write_text(json.dumps({"content": content, "journal": journal, "answer": str(path.with_suffix(".out"))}))
        return path

    @staticmethod
    def answer(request: Path) -> Any:
        """Return what the other process answered, or raise what it refused."""
        told = json.loads(request.with_suffix(".out").read_text())
        if "refused" in told:
            raise Refused(*told["refused"])
        return told["answer"]

    def child(self, function: str, content: Any) -> Any:
        """Run `function` of this module in a fresh process and return its answer."""
        request = self.request(function, content)
        command = f"from hftlab.notebook.promote import {function}; {function}({str(request)!r})"
        try:
            done = subprocess.run(
                [sys.executable, "-c", command], cwd=self.empty, env=self.environment(),
                capture_output=True, text=True, timeout=CHILD_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Refused(
                "time", f"the tagged cells, run alone, had not ended after {CHILD_TIMEOUT_S} s; shorten them"
            ) from error
        if done.returncode:
            raise HftlabError(f"promotion's own process failed (exit {done.returncode}): {done.stderr[-2000:]}")
        return self.answer(request)


def _answering(work: Callable[[Any, Path | None], Any]) -> Callable[[str], None]:
    """Return `work` as a function of a request's path that writes the answer, or the refusal, beside the request."""

    def answer(request: str) -> None:
        asked = json.loads(Path(request).read_text())
        try:
            told = {"answer": work(asked["content"], Path(asked["journal"]) if asked["journal"] else None)}
        except Refused as refusal:
            told = {"refused": [refusal.check, str(refusal).removeprefix(f"{refusal.check}: ")]}
        except HftlabError as error:
            told = {"refused": ["trial", str(error)]}
        Path(asked["answer"]).write_text(json.dumps(told))

    return answer


# --- gate 2: alone ----------------------------------------------------------------------------------------------------


def _alone(cells: Cells, scratch: _Scratch) -> Artefact:
    told = scratch.child("_load_alone", cells.source)
    if "missing" in told:
        name = told["missing"]
        index = _binder(name, cells)
        where = "no cell defines it" if index is None else f"only cell {index}, which is not tagged, defines it"
        raise Refused(
            "self_contained",
            f"the tagged cells use {name!r} in {_line_of(cells.source, told['line'])!r}, and {where}. Define or import "
            "it in the cell that uses it",
        )
    return Artefact.of(cells.source, told["class_name"], told["params"], tuple(told["symbols"]), told["limits"])


def _line_of(source: str, line: int | None) -> str:
    return source.splitlines()[(line or 1) - 1].strip()


@_answering
def _load_alone(source: str, journal: Path | None) -> dict[str, Any]:
    """Run the source in a module of its own; return what it defines, or the first name that is missing."""
    module = types.ModuleType("hftlab_strategy_promotion")
    file = "<the tagged cells>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    code = compile(source, file, "exec", dont_inherit=True)
    try:
        exec(code, module.__dict__)
    except NameError as error:
        return {"missing": error.name, "line": traceback.extract_tb(error.__traceback__)[-1].lineno}
    except Exception as error:
        line = next((f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file), None)
        raise Refused(
            "self_contained",
            f"the tagged cells, run alone, fail at {_line_of(source, line)!r} with {type(error).__name__}: {error}",
        ) from error
    builtins = set(dir(__builtins__)) if isinstance(__builtins__, types.ModuleType) else set(__builtins__)
    for name, line in _globals_read(code):
        if name not in module.__dict__ and name not in builtins:
            return {"missing": name, "line": line}
    return _defined(module)


def _globals_read(code: types.CodeType) -> Iterator[tuple[str, int]]:
    """Yield the names that `code` and the functions in it look up outside themselves, with their lines."""
    line = code.co_firstlineno
    own = {one.argval for one in dis.get_instructions(code) if one.opname == "STORE_NAME"}
    for one in dis.get_instructions(code):
        line = one.positions.lineno or line if one.positions else line
        if one.opname == "LOAD_GLOBAL" or (one.opname == "LOAD_NAME" and one.argval not in own):
            yield one.argval, line
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_read(constant)


def _defined(module: types.ModuleType) -> dict[str, Any]:
    """Return class name, parameters, symbols and limits that `module` defines; refuse what cannot trade."""
    classes = [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Strategy | PythonStrategy) and one.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(one.__name__ for one in classes) or "none"
        raise Refused(
            "self_contained", f"the tagged cells define {names}; expected exactly one class derived from hl.Strategy"
        )
    for name in _CONSTANTS:
        if not hasattr(module, name):
            raise Refused(
                "parameters",
                f"the cell tagged 'parameters' defines no {name}; expected PARAMS = dict(...) for the strategy, "
                'SYMBOLS = ("BTCUSDT",) and LIMITS = {"BTCUSDT": {"max_order": "0.01", ...}}',
            )
    found = {
        "class_name": classes[0].__name__,
        "params": module.PARAMS,
        "symbols": module.SYMBOLS,
        "limits": module.LIMITS,
    }
    _check_constants(classes[0], found)
    return found


def _check_constants(cls: type[Strategy] | type[PythonStrategy], found: Mapping[str, Any]) -> None:
    params, symbols, limits = (found[name] for name in ("params", "symbols", "limits"))
    if not isinstance(params, dict) or not isinstance(limits, dict) or isinstance(symbols, str):
        raise Refused(
            "parameters", 'PARAMS and LIMITS must be dicts and SYMBOLS a tuple of symbols such as ("BTCUSDT",)'
        )
    if not symbols or set(symbols) != set(limits):
        raise Refused(
            "parameters",
            f"SYMBOLS are {', '.join(symbols) or 'none'} and LIMITS are given for {', '.join(limits) or 'none'}; "
            "expected limits for each symbol and no other",
        )
    try:
        json.dumps([params, limits])
        cls(**params)
    except (HftlabError, TypeError, ValueError) as error:
        raise Refused("parameters", f"PARAMS or LIMITS cannot be used: {error}") from error


# --- gate 3: the clean run --------------------------------------------------------------------------------------------


def _clean_run(path: Path, cells: Cells, class_name: str, scratch: _Scratch) -> dict[str, Any]:
    """Run a copy of the notebook in a fresh kernel, then try its class there; return the trial's record."""
    import nbformat

    book = _read_notebook(path)
    request = scratch.request("_trial_in_kernel", class_name)
    last = len(book.cells)
    source = f"from hftlab.notebook.promote import _trial_in_kernel\n_trial_in_kernel({str(request)!r})"
    book.cells.append(nbformat.v4.new_code_cell(source))  # type: ignore[no-untyped-call]  # nbformat annotates in part
    try:
        _execute(book, last, scratch)
    finally:
        _end_sessions(scratch)
    told: dict[str, Any] = scratch.answer(request)
    return told


def _execute(book: Any, last: int, scratch: _Scratch) -> None:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    at = 0

    def on_cell_start(cell: Any, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    client = NotebookClient(
        book, timeout=CELL_TIMEOUT_S, kernel_name="python3", skip_cells_with_tag="promote", on_cell_start=on_cell_start,
        resources={"metadata": {"path": str(scratch.empty)}},
    )  # fmt: skip
    try:
        client.execute(env=scratch.environment(), stderr=subprocess.DEVNULL)
    except CellExecutionError as error:
        line = _failing_line(str(error.traceback), book.cells[at].source)
        if at == last:
            why = f"the class cannot be run in the notebook's kernel: {error.evalue}"
            raise Refused("identical_orders", why) from error
        raise Refused(
            "clean_run",
            f"cell {at} fails{line} with {error.ename}: {error.evalue}. Restart the kernel, run all cells, and mend it",
        ) from error
    except CellTimeoutError as error:
        raise Refused("clean_run", f"cell {at} had not ended after {CELL_TIMEOUT_S} s") from error
    except DeadKernelError as error:
        raise Refused("clean_run", f"the kernel died in cell {at}") from error


def _failing_line(told: str, source: str) -> str:
    """Return where in its cell an error arose, as words; empty if the traceback does not say.

    Examples
    --------
    >>> _failing_line("Cell In[2], line 2\\n----> 2 1 / 0", "x = 1\\n1 / 0")
    " at line 2, '1 / 0',"
    """
    found = re.findall(r"^Cell In\s?\[\d+\], line (\d+)", _ESCAPES.sub("", told), re.MULTILINE)
    lines = source.splitlines()
    if not found or not 0 < int(found[0]) <= len(lines):
        return ""
    return f" at line {found[0]}, {lines[int(found[0]) - 1].strip()!r},"


def _end_sessions(scratch: _Scratch) -> None:
    """Stop the sessions that the notebook left running, and their supervisor."""
    if (scratch.folder / "home" / "supervisor.sock").exists():
        command = "from hftlab.services.supervisor import shutdown; shutdown()"
        subprocess.run([sys.executable, "-c", command], env=scratch.environment(), capture_output=True, check=False)


# --- gates 4 and 5: the orders ----------------------------------------------------------------------------------------


def trial(
    strategy: Strategy | PythonStrategy,
    symbols: Sequence[str],
    limits: Mapping[str, Mapping[str, Any]],
    journal: Path | None = None,
) -> Result:
    """Return the backtest by which two forms of a strategy are compared.

    Parameters
    ----------
    strategy : Strategy or PythonStrategy
    symbols : sequence of str
    limits : mapping of symbol to mapping
        Decimal text.
    journal : Path, optional
        Folder of a journal whose market is used; `TRIAL_SECONDS` of seeded synthetic flow by default.

    Raises
    ------
    Refused
        If the journal holds other symbols, or there is no synthetic flow for one.
    ConfigError
        If a limit cannot be.
    """
    instruments = _instruments(symbols, journal)
    each = [Limits.from_decimals(one, limits[one.symbol]) for one in instruments]
    if journal is not None:
        return backtest(strategy, journal, instruments=instruments, limits=each)
    market = MatchingExchange(instruments, seed=TRIAL_SEED)
    return backtest(strategy, market, instruments=instruments, limits=each, seconds=TRIAL_SECONDS)


def _instruments(symbols: Sequence[str], journal: Path | None) -> Sequence[Instrument]:
    if journal is None:
        try:
            return VenueSettings(symbols=tuple(symbols)).instruments()
        except ConfigError as error:
            raise Refused(
                "identical_orders", f"there is no synthetic market for {', '.join(symbols)}; name a journal of it"
            ) from error
    reader = JournalReader(journal)
    instruments = Definitions.from_dict(reader.definitions).instruments
    reader.close()
    held = [one.symbol for one in instruments]
    if held != list(symbols):
        raise Refused(
            "identical_orders",
            f"{journal} is a journal of {', '.join(held)}, and SYMBOLS are {', '.join(symbols)}; name one of these",
        )
    return instruments


def _record(result: Result, form: str, file: Path) -> dict[str, Any]:
    """Write the rows of a trial to `file` and return what the comparison needs to know."""
    if result.faults:
        last = result.faults[0].traceback.strip().splitlines()[-1]
        raise Refused("identical_orders", f"the strategy fails in {result.faults[0].callback} ({form}): {last}")
    result.rows.tofile(file)
    return {
        "form": form,
        "hash": result.run_hash,
        "orders": result.counters["submits"] + result.counters["replaces"],
        "fills": result.counters["fills"],
        "rows": str(file),
        "instruments": [one.to_dict() for one in result.definitions.instruments],
    }


def _trial_in_kernel(request: str) -> None:
    """Try the class as the kernel's namespace holds it now; called in the notebook's kernel after its last cell."""
    import __main__

    space = vars(__main__)

    def work(class_name: str, journal: Path | None) -> dict[str, Any]:
        try:
            strategy = space[class_name](**space["PARAMS"])
            symbols, limits = space["SYMBOLS"], space["LIMITS"]
        except KeyError as error:
            raise Refused(
                "identical_orders", f"after its last cell the notebook no longer defines {error.args[0]}"
            ) from error
        form = "compiled" if strategy.compiled else "plain Python"
        return _record(trial(strategy, symbols, limits, journal), form, Path(request).with_suffix(".rows"))

    _answering(work)(request)


@_answering
def _trial_alone(content: dict[str, Any], journal: Path | None) -> list[dict[str, Any]]:
    """Try the extracted source, in each form it has."""
    what = Artefact(**{**content, "symbols": tuple(content["symbols"])})
    first = what.strategy()
    trials = [(first, "compiled" if first.compiled else "plain Python")]
    if isinstance(first, Strategy):
        trials.append((load_strategy(what.source, what.class_name, what.params, compiled=False), "plain Python"))
    return [
        _record(trial(strategy, what.symbols, what.limits, journal), form, Path.cwd() / f"{form}.rows")
        for strategy, form in trials
    ]


def _compare(left: dict[str, Any], right: dict[str, Any], check: str, here: str, there: str) -> str:
    """Return what was compared; refuse if the rows differ or there is no order among them."""
    if left["hash"] != right["hash"]:
        raise Refused(
            check,
            f"{here} sent {left['orders']} orders and {there} {right['orders']}. The first row that differs:\n"
            + "".join(f"  {who}: {row}\n" for who, row in zip((here, there), _first_rows(left, right), strict=True))
            + "Look for a name or parameter that a later cell changes, for chance other than ctx.random(), for a clock "
            "other than ctx.now_ns, and for integers beyond 64 bits",
        )
    if not left["orders"]:
        raise Refused(
            check,
            "the strategy sent no order, so nothing could be compared; name a journal on which it trades (--journal)",
        )
    return f"{left['orders']} orders, {left['fills']} fills, rows {left['hash'][:8]}"


def _first_rows(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Return the first row in which two trials differ, as each wrote it, in words."""
    parts = [np.fromfile(one["rows"], np.uint8).view(ROW) for one in (left, right)]
    at = first_difference(*parts) or 0
    instruments = [Instrument.from_dict(one) for one in left["instruments"]]
    return [format_row(rows[at], instruments) if at < len(rows) else "nothing more" for rows in parts]


def _compare_forms(forms: Sequence[dict[str, Any]]) -> str:
    if len(forms) == 1:
        return "plain Python is the only one"
    _compare(forms[0], forms[1], "both_forms", "the compiled form", "plain Python")
    return "compiled and plain Python are byte-identical"


@_answering
def _register_alone(content: dict[str, Any], journal: Path | None) -> dict[str, Any]:
    """Register in a process of its own: MLflow stays out of the caller, and its settings out of the caller's MLflow."""
    plain = content["artefact"]
    made: PromotedStrategy = register(
        Artefact(**{**plain, "symbols": tuple(plain["symbols"])}),
        name=content["name"], alias=content["alias"], mlruns=Path(content["mlruns"]),
    )  # fmt: skip
    return {"version": made.version, "folder": str(made.folder), "created_ms": made.created_ms}
