"""Versions: what MLflow was given is what a trading process reads, without MLflow, or it is refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hftlab import tracking
from hftlab.backtest.runner import backtest
from hftlab.core.definitions import Limits
from hftlab.core.errors import ConfigError, Refused
from hftlab.notebook.promote import trial
from hftlab.services.venue import VenueSettings
from hftlab.sim.exchange import MatchingExchange
from hftlab.tracking import Artefact, PromotedStrategy, VersionNotFound, read_artefact, register, resolve, versions

SOURCE = """\
from hftlab.strategy import BUY, GTC, LIVE, Strategy, record


class Bid(Strategy):
    params = record(edge_ticks=2)
    state = record(order=0)

    def on_book(ctx, state, params, event):
        if ctx.book_state(0) == LIVE and ctx.order_leaves(state.order) == 0:
            state.order = ctx.submit(0, BUY, ctx.best_bid(0) - params.edge_ticks, 100, GTC)
"""
LIMITS = {"BTCUSDT": {"max_order": "0.01", "max_position": "0.05", "max_notional": "2000", "collar": "200"}}


def bid(edge_ticks: int) -> Artefact:
    return Artefact.of(SOURCE, "Bid", {"edge_ticks": edge_ticks}, ("BTCUSDT",), LIMITS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of ``bid``; ``champion`` is the second, ``first`` the first."""
    mlruns = tmp_path_factory.mktemp("store with space") / "mlruns"
    register(bid(1), name="bid", alias="first", mlruns=mlruns)
    register(bid(2), name="bid", alias="champion", mlruns=mlruns)
    return mlruns


@pytest.fixture
def copy_of(store: Path) -> Iterator[Path]:
    """The folder of the champion's files; what a test changes there is put back."""
    folder = resolve("bid", "champion", store).folder
    kept = folder.parent / "kept"
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


def test_what_was_registered_is_what_is_resolved(store: Path) -> None:
    found = resolve("bid", "champion", store)
    assert isinstance(found, PromotedStrategy)
    assert found.content() == bid(2).content()
    assert (found.name, found.version, found.aliases, found.hash) == ("bid", 2, ("champion",), bid(2).hash)
    assert found.label == f"bid@{bid(2).hash[:8]}"
    assert found.strategy().param_values() == {"edge_ticks": 2}


def test_an_alias_may_stand_on_an_older_version_and_a_number_names_each(store: Path) -> None:
    assert resolve("bid", "first", store).version == 1
    assert [resolve("bid", str(n), store).params["edge_ticks"] for n in (1, 2)] == [1, 2]
    assert [(one.version, one.aliases) for one in versions("bid", store)] == [(1, ("first",)), (2, ("champion",))]


def test_a_file_beside_the_artefact_is_outside_its_hash(store: Path, copy_of: Path) -> None:
    (copy_of / "promote_report.md").write_text("# a report\n")
    assert resolve("bid", "champion", store).hash == bid(2).hash


def test_a_store_that_was_moved_resolves_and_takes_new_versions_into_its_new_place(store: Path, tmp_path: Path) -> None:
    before, moved = tmp_path / "artifacts" / "old", tmp_path / "elsewhere" / "mlruns"
    shutil.copytree(store, moved)
    database = sqlite3.connect(moved / "mlflow.db")  # as if it had been made in a place that is gone
    for table, column in (("model_versions", "storage_location"), ("experiments", "artifact_location")):
        there, gone = urllib.parse.quote(str(store)), urllib.parse.quote(str(before))
        database.execute(f"UPDATE {table} SET {column} = replace(replace({column}, ?, ?), ?, ?)",
                         (str(store), str(before), there, gone))  # fmt: skip
    database.commit()
    database.close()
    found = resolve("bid", "champion", moved)
    assert found.hash == bid(2).hash and found.folder.is_relative_to(moved)
    made = register(bid(3), name="bid", alias="third", mlruns=moved)
    assert (made.version, made.hash) == (3, bid(3).hash) and made.folder.is_relative_to(moved)
    assert not before.exists() and len(versions("bid", moved)) == 3


def test_resolving_imports_neither_mlflow_nor_its_database_library(store: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hftlab.tracking import resolve\n"
        f"assert resolve('bid', 'champion', Path({str(store)!r})).version == 2\n"
        "print(sorted({'mlflow', 'sqlalchemy', 'alembic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_mlflow_itself_loads_the_version_and_runs_it_over_a_journal(store: Path, tmp_path: Path) -> None:
    import mlflow

    instruments = VenueSettings().instruments()
    limits = Limits.from_decimals(instruments[0], LIMITS["BTCUSDT"])
    market = MatchingExchange(instruments)
    backtest(bid(2).strategy(), market, instruments=instruments, limits=limits, seconds=1, folder=tmp_path / "journal")
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    told = mlflow.pyfunc.load_model("models:/bid@champion").predict([str(tmp_path / "journal")])
    result = trial(bid(2).strategy(), ("BTCUSDT",), LIMITS, tmp_path / "journal")
    assert result.counters["submits"] > 0
    assert told == [result.run_hash]


def test_a_changed_source_is_refused(store: Path, copy_of: Path) -> None:
    file = copy_of / "strategy.py"
    file.write_text(file.read_text().replace("- params", "+ params"))
    with pytest.raises(Refused, match=rf"artefact_hash: .* and {bid(2).hash[:8]} was promoted: they were changed"):
        resolve("bid", "champion", store)


def test_a_changed_limit_is_refused(store: Path, copy_of: Path) -> None:
    file = copy_of / "manifest.json"
    file.write_text(file.read_text().replace('"0.05"', '"50"'))
    with pytest.raises(Refused, match="artefact_hash"):
        resolve("bid", "champion", store)


def test_a_missing_file_says_which_folder_holds_no_strategy(store: Path, copy_of: Path) -> None:
    (copy_of / "strategy.py").unlink()
    with pytest.raises(ConfigError, match="does not hold a promoted strategy: FileNotFoundError"):
        resolve("bid", "champion", store)


def test_a_manifest_that_is_not_one_says_so(tmp_path: Path) -> None:
    (tmp_path / "strategy.py").write_text(SOURCE)
    for text in ("", "[]", '{"hash": "0"}', json.dumps({"hash": "0", "symbols": [], "what": 1})):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ConfigError, match="does not hold a promoted strategy"):
            read_artefact(tmp_path)


def test_other_packages_than_were_promoted_are_refused_by_name(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {**tracking.installed_pins(), "numba": "9.9"}
    monkeypatch.setattr(tracking, "installed_pins", lambda: installed)
    with pytest.raises(Refused, match=r"pinned_packages: .* with numba .* \(installed: 9\.9\)\. Install those"):
        resolve("bid", "champion", store)
    assert len(versions("bid", store)) == 2  # looking at them is still allowed


def test_another_row_schema_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_data_schema", lambda: {"journal": 2, "row_bytes": 64})
    with pytest.raises(Refused, match="data_schema: bid version 2"):
        resolve("bid", "champion", store)


def test_an_unknown_alias_lists_those_there_are(store: Path) -> None:
    with pytest.raises(VersionNotFound, match="bid has no version 'challenger'; there are 1, 2, champion, first"):
        resolve("bid", "challenger", store)


def test_an_unknown_name_lists_those_there_are(store: Path) -> None:
    with pytest.raises(VersionNotFound, match="nothing is promoted under the name 'ask'; names: bid"):
        resolve("ask", "champion", store)


def test_a_store_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(VersionNotFound, match="hftlab promote NOTEBOOK --name NAME"):
        resolve("bid", "champion", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"source": SOURCE + "\n"}, {"class_name": "Ask"}, {"params": {"edge_ticks": 3}}, {"symbols": ("ETHUSDT",)},
        {"limits": {}}, {"data_schema": {"journal": 2, "row_bytes": 64}}, {"pins": {"numpy": "1.0"}},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_the_hash_covers_each_part(changed: dict[str, Any]) -> None:
    assert replace(bid(2), **changed).hash != bid(2).hash


def test_the_hash_does_not_depend_on_the_order_of_parameters() -> None:
    one, other = (
        Artefact.of(SOURCE, "Bid", params, ("BTCUSDT",), LIMITS) for params in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    )
    assert one.hash == other.hash


@pytest.mark.parametrize(
    ("what", "text"), [("name", ""), ("name", "a/b"), ("name", "a" * 41), ("alias", "v2"), ("alias", "latest")]
)
def test_names_that_mlflow_or_a_path_would_misread_are_refused_before_anything_is_written(
    what: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^{what}: "):
        register(bid(1), **{"name": "bid", "alias": "champion", what: text}, mlruns=tmp_path / "mlruns")
    assert list(tmp_path.iterdir()) == []
