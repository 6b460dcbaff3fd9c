"""Promotion: what each gate lets pass, what it refuses, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest

from hftlab.core.errors import ConfigError, Refused
from hftlab.notebook import promote as room
from hftlab.notebook.promote import Gate, Version, promote, resolve, trial
from hftlab.strategy import PythonStrategy, load_strategy

PROJECT = Path(__file__).resolve().parent.parent.parent
TEMPLATE = PROJECT / "templates" / "market_maker.ipynb"
GATES = ["tagged cells", "self-contained", "clean run", "identical orders", "both forms", "registered"]

PARAMETERS = """\
PARAMS = dict(edge_ticks=2)
SYMBOLS = ("BTCUSDT",)
LIMITS = {"BTCUSDT": {"max_order": "0.01", "max_position": "0.05", "max_notional": "2000", "collar": "200"}}
"""
STRATEGY = """\
from hftlab.strategy import BUY, GTC, LIVE, Strategy, record

SIZE = 100


class Bid(Strategy):
    params = record(edge_ticks=2)
    state = record(order=0)

    def on_book(ctx, state, params, event):
        if ctx.book_state(0) == LIVE and ctx.order_leaves(state.order) == 0:
            state.order = ctx.submit(0, BUY, ctx.best_bid(0) - params.edge_ticks, SIZE, GTC)
"""
BID = {"parameters": PARAMETERS, "strategy": STRATEGY}
LIMITS = {"BTCUSDT": {"max_order": "0.01", "max_position": "0.05", "max_notional": "2000", "collar": "200"}}


def write(folder: Path, tagged: dict[str, str], *others: str, first: str = "") -> Path:
    """Write a notebook: a cell `first` where given, the tagged cells in their order, then the others."""
    book = nbformat.v4.new_notebook()
    for tag, source in [("", first)] * bool(first) + list(tagged.items()) + [("", one) for one in others]:
        cell = nbformat.v4.new_code_cell(source)
        cell.metadata["tags"] = [tag] if tag else []
        book.cells.append(cell)
    path = folder / "small.ipynb"
    nbformat.write(book, path)
    return path


def refusal(path: Path, **arguments: Any) -> str:
    """Return in which words promoting `path` is refused, having made sure that nothing was written."""
    store = path.parent / "mlruns"
    with pytest.raises(Refused) as caught:
        promote(path, name="small", mlruns=store, **arguments)
    assert not store.exists()
    return str(caught.value)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what promotion runs in a fresh process in this one, to save its start, where the process is not the point."""

    def child(self: Any, function: str, content: Any) -> Any:
        request = self.request(function, content)
        getattr(room, function)(str(request))
        return self.answer(request)

    monkeypatch.setattr(room._Scratch, "child", child)


# --- what passes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promoted:
    version: Version
    told: list[Gate]
    mlruns: Path


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Promoted:
    """The strategy template, promoted."""
    mlruns = tmp_path_factory.mktemp("store") / "mlruns"
    told: list[Gate] = []
    version = promote(TEMPLATE, name="maker", alias="challenger", mlruns=mlruns, on_gate=told.append)
    return Promoted(version, told, mlruns)


def test_the_template_passes_every_gate_in_order(promoted: Promoted) -> None:
    assert [gate.title for gate in promoted.version.gates] == GATES
    assert (promoted.version.name, promoted.version.version, promoted.version.alias) == ("maker", 1, "challenger")
    details = {gate.title: gate.detail for gate in promoted.version.gates}
    assert int(details["identical orders"].split()[0]) > 20
    assert details["both forms"] == "compiled and plain Python are byte-identical"


def test_each_gate_is_told_as_it_begins_and_as_it_is_passed(promoted: Promoted) -> None:
    assert [(gate.title, gate.seconds is None) for gate in promoted.told] == [
        (title, begins) for title in GATES for begins in (True, False)
    ]


def test_the_report_is_kept_with_the_version(promoted: Promoted) -> None:
    folder = promoted.version.folder
    report = json.loads((folder / "promote_report.json").read_text())
    assert report["hash"] == promoted.version.hash
    assert [gate["title"] for gate in report["gates"]] == GATES
    assert (report["name"], report["version"], report["alias"]) == ("maker", 1, "challenger")
    assert abs(time.time() - datetime.fromisoformat(report["registered"]).timestamp()) < 600
    assert all(gate["seconds"] >= 0 for gate in report["gates"])
    assert report["gates"][3]["detail"] in (folder / "promote_report.md").read_text()


def test_what_is_resolved_sends_the_orders_that_were_compared(promoted: Promoted) -> None:
    found = resolve("maker", "challenger", promoted.mlruns)
    result = trial(found.strategy(), found.symbols, found.limits)
    compared = promoted.version.gates[3].detail
    assert found.hash == promoted.version.hash
    assert compared.endswith(result.run_hash[:8])


def test_the_promoted_source_is_the_two_cells_and_nothing_else(promoted: Promoted) -> None:
    cells = nbformat.read(TEMPLATE, as_version=4).cells
    tagged = [cell.source for cell in cells if cell.metadata.get("tags")]
    assert resolve("maker", "challenger", promoted.mlruns).source == "\n\n".join(tagged) + "\n"


def test_a_version_shows_its_checklist_in_a_notebook(promoted: Promoted) -> None:
    shown = promoted.version._repr_markdown_()
    assert shown.startswith(f"**maker version 1 ({promoted.version.hash[:8]}) is maker@challenger**")
    assert [line.split(" |")[0][2:] for line in shown.splitlines()[4:]] == GATES


def test_versions_are_listed_by_the_command_line(promoted: Promoted) -> None:
    code = "from hftlab.cli import main; main()"
    command = [sys.executable, "-c", code, "versions", "maker", "--mlruns", str(promoted.mlruns)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:3] == ["1", "challenger", promoted.version.hash[:8]]
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120).stdout)
    assert told["versions"][0]["hash"] == promoted.version.hash
    command[4] = "nobody"
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 3


def test_a_refused_notebook_exits_7_with_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, {"parameters": PARAMETERS})
    command = [sys.executable, "-c", "from hftlab.cli import main; main()", "promote", str(path), "--name", "small"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr.splitlines()[-1].startswith("hftlab: tagged_cells: no cell is tagged 'strategy'")
    assert not (tmp_path / "mlruns").exists()


# --- tags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["parameters", "strategy"])
def test_a_missing_tag_is_refused_by_name_and_says_how_to_add_it(tag: str, tmp_path: Path) -> None:
    told = refusal(write(tmp_path, {name: BID[name] for name in BID if name != tag}))
    assert told.startswith(f"tagged_cells: no cell is tagged '{tag}'; expected one. In JupyterLab select the cell")


def test_a_tag_on_two_cells_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, BID, "pass")
    book = nbformat.read(path, as_version=4)
    book.cells[2].metadata["tags"] = ["strategy"]
    nbformat.write(book, path)
    assert refusal(path).startswith("tagged_cells: cells 1, 2 are tagged 'strategy'; expected one")


def test_a_magic_in_a_tagged_cell_is_refused_with_its_line(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, {**BID, "strategy": "%%time\n" + STRATEGY}))
    assert told.startswith("tagged_cells: cell 1, tagged 'strategy', is not plain Python: line 1, '%%time'")


@pytest.mark.parametrize("content", [None, "not a notebook", "{}"])
def test_what_is_no_notebook_says_so(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "small.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"^notebook: .*small\.ipynb"):
        promote(path, name="small", mlruns=tmp_path / "mlruns")


def test_a_bad_name_or_a_missing_journal_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = write(tmp_path, BID)
    for wrong in ({"name": "a b"}, {"name": "a", "alias": "v1"}, {"name": "a", "journal": tmp_path / "none"}):
        with pytest.raises(ConfigError, match=rf"^{list(wrong)[-1]}: "):
            promote(path, mlruns=tmp_path / "mlruns", on_gate=lambda gate: pytest.fail("a gate began"), **wrong)  # type: ignore[arg-type]


# --- self-contained ---------------------------------------------------------------------------------------------------


def test_a_name_that_another_cell_defines_is_refused_by_name_and_cell(tmp_path: Path) -> None:
    hidden = {**BID, "strategy": STRATEGY.replace("SIZE = 100", "")}
    told = refusal(write(tmp_path, hidden, first="%matplotlib inline\nSIZE = 100"))
    assert told == (
        "self_contained: the tagged cells use 'SIZE' in 'state.order = ctx.submit(0, BUY, ctx.best_bid(0) - "
        "params.edge_ticks, SIZE, GTC)', and only cell 0, which is not tagged, defines it. Define or import it in the "
        "cell that uses it"
    )


def test_an_import_made_in_another_cell_is_refused(tmp_path: Path) -> None:
    hidden = {**BID, "strategy": STRATEGY.replace("100", "round(np.pi * 100)")}
    told = refusal(write(tmp_path, hidden, first="import numpy as np"))
    assert "use 'np' in 'SIZE = round(np.pi * 100)', and only cell 0" in told


@pytest.mark.usefixtures("in_process")
def test_a_name_that_nothing_defines_is_refused(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, {**BID, "strategy": STRATEGY.replace("SIZE, GTC", "SYZE, GTC")}))
    assert "use 'SYZE' in 'state.order = " in told
    assert "and no cell defines it" in told


def test_a_file_beside_the_notebook_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("SIZE = 100\n")
    hidden = {**BID, "strategy": STRATEGY.replace("SIZE = 100", "from beside import SIZE")}
    told = refusal(write(tmp_path, hidden))
    assert "run alone, fail at 'from beside import SIZE' with ModuleNotFoundError: No module named 'beside'" in told


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("strategy", "found"),
    [
        ("from hftlab.strategies.maker import Maker", "none"),
        (STRATEGY + "\n\nclass Ask(Strategy):\n    pass\n", "Bid, Ask"),
    ],
    ids=["imported", "two"],
)
def test_anything_but_one_strategy_is_refused(strategy: str, found: str, tmp_path: Path) -> None:
    told = refusal(write(tmp_path, {**BID, "strategy": strategy}))
    assert told.startswith(f"self_contained: the tagged cells define {found}; expected exactly one class")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (PARAMETERS.replace("LIMITS =", "LIMIT ="), "defines no LIMITS; expected PARAMS = dict"),
        (PARAMETERS.replace('("BTCUSDT",)', '"BTCUSDT"'), "SYMBOLS a tuple of symbols"),
        (PARAMETERS.replace('("BTCUSDT",)', '("BTCUSDT", "ETHUSDT")'), "expected limits for each symbol and no other"),
        (PARAMETERS.replace("edge_ticks=2", "edge=2"), "no parameter 'edge'; there are edge_ticks"),
        (PARAMETERS.replace("edge_ticks=2", "edge_ticks=2.5"), "expected an integer"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(parameters: str, expected: str, tmp_path: Path) -> None:
    told = refusal(write(tmp_path, {**BID, "parameters": parameters}))
    assert told.startswith("parameters: ")
    assert expected in told


# --- the clean run ----------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_refused_with_its_index_line_and_error(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, BID, "fills = 0\nprint('so far')\nprint(1 / fills)"))
    assert told == (
        "clean_run: cell 2 fails at line 3, 'print(1 / fills)', with ZeroDivisionError: division by zero. "
        "Restart the kernel, run all cells, and mend it"
    )


# --- identical orders -------------------------------------------------------------------------------------------------


def test_a_global_that_a_later_cell_changes_makes_other_orders_and_is_refused(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, BID, "SIZE = 50"))
    assert told.startswith("identical_orders: the notebook's kernel sent ")
    assert "The first row that differs:" in told
    assert "Look for a name or parameter that a later cell changes" in told


def record_of(strategy: Any, folder: Path, file: str) -> dict[str, Any]:
    """Try a strategy as the gates do."""
    return room._record(trial(strategy, ("BTCUSDT",), LIMITS), file, folder / file)


def test_chance_makes_two_trials_differ_and_is_refused(tmp_path: Path) -> None:
    source = (
        "import random\nfrom hftlab.strategy import BUY, GTC, LIVE, PythonStrategy\n"
        "class Chance(PythonStrategy):\n"
        "    def on_book(self, ctx, event):\n"
        "        if ctx.book_state(0) == LIVE and ctx.open_orders() < 2:\n"
        "            ctx.submit(0, BUY, ctx.best_bid(0) - random.randrange(1000), 100, GTC)\n"
    )
    one, other = (record_of(load_strategy(source, "Chance", {}), tmp_path, file) for file in ("one", "other"))
    with pytest.raises(Refused, match=r"first row that differs:\n  here: .* SUBMIT .*\n  there: .* SUBMIT .*\nLook"):
        room._compare(one, other, "identical_orders", "here", "there")


def test_equal_trials_pass_and_are_counted(tmp_path: Path) -> None:
    one, other = (record_of(load_strategy(STRATEGY, "Bid", {}, compiled=c), tmp_path, f"{c}") for c in (True, False))
    assert room._compare(one, other, "both_forms", "here", "there").startswith(f"{one['orders']} orders, ")
    assert room._compare_forms([one, other]) == "compiled and plain Python are byte-identical"


def test_a_strategy_whose_forms_differ_is_refused(tmp_path: Path) -> None:
    # Plain integers have no bound; compiled ones wrap at 64 bits, here to 0.
    wraps = STRATEGY.replace("SIZE, GTC", "SIZE * (1 + (params.edge_ticks * 2**62 * 2 > 0)), GTC")
    forms = [record_of(load_strategy(wraps, "Bid", {}, compiled=c), tmp_path, f"{c}") for c in (True, False)]
    with pytest.raises(Refused, match=r"(?s)both_forms: the compiled form sent .* integers beyond 64 bits"):
        room._compare_forms(forms)


def test_a_strategy_that_sends_nothing_is_refused(tmp_path: Path) -> None:
    quiet = STRATEGY.replace("== LIVE", "== LIVE + 100")
    one = record_of(load_strategy(quiet, "Bid", {}), tmp_path, "one")
    with pytest.raises(Refused, match=r"sent no order, so nothing could be compared; name a journal .*--journal"):
        room._compare(one, one, "identical_orders", "here", "there")


def test_a_strategy_that_faults_is_refused_with_the_error(tmp_path: Path) -> None:
    broken = STRATEGY.replace("SIZE, GTC", "SIZE // (params.edge_ticks - 2), GTC")
    with pytest.raises(Refused, match=r"fails in on_book \(one\): ZeroDivisionError"):
        record_of(load_strategy(broken, "Bid", {}), tmp_path, "one")


class Bystander(PythonStrategy):
    """A strategy in free Python."""

    def on_book(self, ctx: Any, event: Any) -> None:
        if ctx.open_orders() == 0:
            ctx.submit(0, 1, ctx.best_bid(0), 100)


def test_a_trial_over_a_journal_uses_its_market_and_refuses_other_symbols(tmp_path: Path) -> None:
    from hftlab.backtest.runner import backtest
    from hftlab.core.definitions import Limits
    from hftlab.services.venue import VenueSettings
    from hftlab.sim.exchange import MatchingExchange

    instruments = VenueSettings().instruments()
    limits = Limits.from_decimals(instruments[0], LIMITS["BTCUSDT"])
    folder = tmp_path / "journal"
    bid = load_strategy(STRATEGY, "Bid", {})
    backtest(bid, MatchingExchange(instruments), instruments=instruments, limits=limits, seconds=1, folder=folder)
    over = trial(bid, ("BTCUSDT",), LIMITS, folder)
    assert over.counters["submits"] > 0
    assert over.run_hash == trial(bid, ("BTCUSDT",), LIMITS, folder).run_hash
    with pytest.raises(Refused, match="is a journal of BTCUSDT, and SYMBOLS are ETHUSDT; name one of these"):
        trial(bid, ("ETHUSDT",), {"ETHUSDT": LIMITS["BTCUSDT"]}, folder)
    with pytest.raises(Refused, match="there is no synthetic market for DOGEUSDT; name a journal of it"):
        trial(bid, ("DOGEUSDT",), {"DOGEUSDT": LIMITS["BTCUSDT"]})
