"""Versions of promoted strategies: written through MLflow, read without it.

The artefact is everything that decides what a strategy does: its source, parameters, symbols, limits, the schema of the
rows it reads, and the packages that turn its source into numbers. One SHA-256 over all of that is its name that cannot
lie; MLflow adds names that can move (``maker@champion``), numbers, and a place to look at it all.

MLflow is 190 MB and takes seconds to import, so a trading process must never see it. Both sides meet in two places:
a SQLite file, ``mlruns/mlflow.db``, in which MLflow keeps its registry and from which `resolve` reads one line in
milliseconds; and the folder that line names, which holds ``strategy.py`` and ``manifest.json``. What is read is checked
before it is believed: the hash must come out again, the rows must have the schema of the promotion, and the pinned
packages must be those installed. A version that fails a check is refused, because it would trade as something else.

Worst case accepted: `resolve` knows three columns of MLflow's tables, which a later MLflow may rename; the pin and the
tests would say so. Writers take a file lock, because MLflow's first migration of a new database is not safe against a
second one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from hftlab.core.errors import ConfigError, NotFound, Refused
from hftlab.core.rows import ROW
from hftlab.journal.format import SCHEMA
from hftlab.strategy import PythonStrategy, Strategy, load_strategy

__all__ = [
    "Artefact",
    "PINNED",
    "PromotedStrategy",
    "Tracked",
    "VersionNotFound",
    "check_name",
    "installed_pins",
    "log_run",
    "read_artefact",
    "register",
    "resolve",
    "versions",
]

PINNED = ("hftlab", "msgspec", "numba", "numpy")
"""Distributions whose version can change what a strategy does."""

_SOURCE, _MANIFEST = "strategy.py", "manifest.json"
_EXPERIMENT, _FILES = "promotions", "artifacts"
_NAME_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")

# What MLflow loads when somebody asks it for the version; models-from-code, so nothing is pickled.
_MODEL_CODE = '''\
"""A promoted strategy as an MLflow model: journals in, hashes of the runs it makes of them out."""

from pathlib import Path

import mlflow

from hftlab.notebook.promote import trial
from hftlab.tracking import read_artefact


class Promoted(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.artefact = read_artefact(Path(context.artifacts["manifest"]).parent)

    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        """Return the run hash of a backtest over each journal folder."""
        what = self.artefact
        return [trial(what.strategy(), what.symbols, what.limits, Path(one)).run_hash for one in model_input]


mlflow.models.set_model(Promoted())
'''


class VersionNotFound(NotFound):
    """No promoted version has the name or alias that was asked for; the message lists those there are."""


def installed_pins() -> dict[str, str]:
    """Return the installed version of each of `PINNED`."""
    return {name: metadata.version(name) for name in PINNED}


def _data_schema() -> dict[str, int]:
    return {"journal": SCHEMA, "row_bytes": ROW.itemsize}


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Everything that decides what a promoted strategy does.

    Parameters
    ----------
    source : str
        Python source that defines the class, and nothing it needs lies elsewhere but in packages.
    class_name : str
    params : dict
        Values for the class's params, plain types.
    symbols : tuple of str
        Instruments in the order of their ids.
    limits : dict of symbol to dict
        Decimal text, as `hftlab.core.definitions.Limits.from_decimals` reads it.
    data_schema : dict
        ``journal`` (schema version) and ``row_bytes``.
    pins : dict of distribution to version

    Examples
    --------
    >>> one = Artefact.of("class A: ...", "A", {}, ("BTCUSDT",), {})
    >>> other = Artefact.of("class A: ...", "A", {"edge_ticks": 1}, ("BTCUSDT",), {})
    >>> len(one.hash), one.hash == other.hash
    (64, False)
    """

    source: str
    class_name: str
    params: dict[str, Any]
    symbols: tuple[str, ...]
    limits: dict[str, dict[str, Any]]
    data_schema: dict[str, int]
    pins: dict[str, str]

    @classmethod
    def of(
        cls,
        source: str,
        class_name: str,
        params: dict[str, Any],
        symbols: tuple[str, ...],
        limits: dict[str, dict[str, Any]],
    ) -> Artefact:
        """Return the artefact of a strategy under the schema and the packages of this process."""
        return cls(
            source=source, class_name=class_name, params=params, symbols=tuple(symbols), limits=limits,
            data_schema=_data_schema(), pins=installed_pins(),
        )  # fmt: skip

    def content(self) -> dict[str, Any]:
        """Return what the hash is taken over, in plain types."""
        return {field.name: getattr(self, field.name) for field in fields(Artefact)}

    @property
    def hash(self) -> str:
        """SHA-256, in hexadecimal, over all of it."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def strategy(self, *, compiled: bool = True) -> Strategy | PythonStrategy:
        """Return the strategy with its promoted parameters; raises StrategyError if its source fails."""
        return load_strategy(self.source, self.class_name, self.params, compiled=compiled)


@dataclass(frozen=True, kw_only=True)
class PromotedStrategy(Artefact):
    """A registered version of an artefact.

    Parameters
    ----------
    name : str
        Of the registered model.
    version : int
        MLflow's number, from 1.
    aliases : tuple of str
    created_ms : int
        When it was registered, ms UTC.
    folder : Path
        Where its files lie.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    created_ms: int
    folder: Path

    @property
    def label(self) -> str:
        """What orders and sessions call it: the name, and the first 8 digits of the hash."""
        return f"{self.name}@{self.hash[:8]}"


def check_name(what: str, text: str) -> str:
    """Return `text` if it can name a model or be an alias.

    Raises
    ------
    ConfigError
        If it is empty, longer than 40 characters, holds other signs than letters, digits, ``_-.``, or is one of the
        aliases that MLflow keeps for itself.

    Examples
    --------
    >>> check_name("name", "maker@1")
    Traceback (most recent call last):
        ...
    hftlab.core.errors.ConfigError: name: 'maker@1'; expected 1 to 40 letters, digits or _-. such as maker
    """
    if not 0 < len(text) <= 40 or not _NAME_SIGNS.issuperset(text):
        raise ConfigError(f"{what}: {text!r}; expected 1 to 40 letters, digits or _-. such as maker")
    if what == "alias" and (text == "latest" or (text[0] == "v" and text[1:].isdecimal())):
        raise ConfigError(f"alias: {text!r} is kept by MLflow for itself; expected a word such as champion")
    return text


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def _only_writer(mlruns: Path) -> Iterator[None]:
    mlruns.mkdir(parents=True, exist_ok=True)
    with open(mlruns / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def register(artefact: Artefact, *, name: str, alias: str, mlruns: Path) -> PromotedStrategy:
    """Register `artefact` as one new version of MLflow model `name`, and point `alias` at it.

    It takes over the process's MLflow (tracking address, active run): call it in a process of its own, as promotion
    does. The first call under a new `mlruns` creates the database, which takes some seconds.

    Parameters
    ----------
    artefact : Artefact
    name, alias : str
    mlruns : Path
        Folder of the store; made if it is missing.

    Raises
    ------
    ConfigError
        If name or alias cannot be.
    """
    check_name("name", name)
    check_name("alias", alias)
    mlruns = mlruns.absolute()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    with _only_writer(mlruns), tempfile.TemporaryDirectory() as folder:
        paths = _lay_files(artefact, Path(folder))
        mlflow.set_tracking_uri(f"sqlite:///{mlruns / 'mlflow.db'}")
        client = mlflow.MlflowClient()
        with mlflow.start_run(experiment_id=_experiment(client, mlruns), run_name=name, tags={"hash": artefact.hash}):
            mlflow.log_params({**artefact.params, "symbols": " ".join(artefact.symbols)})
            info = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(paths.pop("model")),
                artifacts={key: str(path) for key, path in paths.items()},
                pip_requirements=[f"{package}=={version}" for package, version in artefact.pins.items()],
                registered_model_name=name,
            )
        version = int(info.registered_model_version)
        client.set_model_version_tag(name, str(version), "hash", artefact.hash)
        client.set_registered_model_alias(name, alias, str(version))
    return next(one for one in versions(name, mlruns) if one.version == version)


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run to be kept: of a backtest, or of a sweep with its best trials as children.

    Parameters
    ----------
    name : str
    params, tags : dict
        Values are kept as text.
    metrics : dict of str to float
        Those that are no number are left out: a store that draws them would draw 0.
    files : dict of str to Path or str
        Contents by file name: a path is copied, text is written.
    children : sequence of Tracked
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path | str] = field(default_factory=dict)
    children: Sequence[Tracked] = ()


def log_run(run: Tracked, *, experiment: str, mlruns: Path | str | None = None) -> str:
    """Keep a run, and its children below it, in an MLflow experiment; return its run id.

    The process's own MLflow (tracking address, active run) is left alone.

    Parameters
    ----------
    run : Tracked
    experiment : str
        Made if it is missing.
    mlruns : Path, optional
        Folder of the store; ``mlruns`` here if absent.

    Raises
    ------
    ConfigError
        If the store keeps the experiment's files elsewhere.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    place = Path(mlruns or "mlruns").absolute()
    with _only_writer(place), tempfile.TemporaryDirectory() as folder:
        client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
        return _log(client, run, _experiment(client, place, experiment), Path(folder), {})


def _log(client: Any, run: Tracked, experiment: str, folder: Path, tags: dict[str, str]) -> str:
    from mlflow.entities import Metric, Param, RunTag

    told = {**{key: str(value) for key, value in run.tags.items()}, **tags}
    made = str(client.create_run(experiment, run_name=run.name, tags=told).info.run_id)
    now_ms = int(client.get_run(made).info.start_time)
    client.log_batch(
        made,
        metrics=[Metric(key, float(v), now_ms, 0) for key, v in run.metrics.items() if math.isfinite(v)],
        params=[Param(key, str(value)[:6000]) for key, value in run.params.items()],
        tags=[RunTag("hftlab.version", metadata.version("hftlab"))],
    )
    for name, content in run.files.items():
        path = content if isinstance(content, Path) else folder / made / name
        if not isinstance(content, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        client.log_artifact(made, str(path))
    for child in run.children:
        _log(client, child, experiment, folder, {"mlflow.parentRunId": made})
    client.set_terminated(made)
    return made


def _experiment(client: Any, mlruns: Path, experiment: str = _EXPERIMENT) -> str:
    """Return the id of the experiment whose files go into `mlruns`: a store that was moved needs another one."""
    place = (mlruns / _FILES).as_uri()
    for name in (experiment, f"{experiment} in {mlruns}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=place))
        if found.artifact_location == place:
            return str(found.experiment_id)
    raise ConfigError(f"mlruns: {mlruns} keeps the files of its experiments elsewhere, in {found.artifact_location}")


def _lay_files(artefact: Artefact, folder: Path) -> dict[str, Path]:
    """Write what MLflow is to copy into `folder`; return the paths by the keys under which it keeps them."""
    content = artefact.content()
    source = content.pop("source")
    manifest = json.dumps({"hash": artefact.hash, **content}, indent=1, sort_keys=True) + "\n"
    texts = {"model.py": _MODEL_CODE, _SOURCE: source, _MANIFEST: manifest}
    keys = {"model.py": "model", _SOURCE: "strategy", _MANIFEST: "manifest"}
    for file, text in texts.items():
        (folder / file).write_text(text)
    return {key: folder / file for file, key in keys.items()}


# --- reading ----------------------------------------------------------------------------------------------------------


def read_artefact(folder: Path) -> Artefact:
    """Return the artefact whose files lie in `folder`.

    Raises
    ------
    ConfigError
        If they cannot be read.
    Refused
        If they are not what was promoted: the hash does not come out again.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        promised = manifest.pop("hash")
        source = (folder / _SOURCE).read_text()
        artefact = Artefact(**{**manifest, "source": source, "symbols": tuple(manifest["symbols"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} does not hold a promoted strategy: {type(error).__name__}: {error}") from error
    if artefact.hash != promised:
        raise Refused(
            "artefact_hash",
            f"the files in {folder} have hash {artefact.hash[:8]}, and {promised[:8]} was promoted: they were "
            "changed afterwards. Promote the notebook again",
        )
    return artefact


def _open_registry(mlruns: Path) -> sqlite3.Connection:
    path = mlruns / "mlflow.db"
    if not path.is_file():
        raise VersionNotFound(
            f"there is no {path}, so nothing has been promoted there; do: hftlab promote NOTEBOOK --name NAME"
        )
    return sqlite3.connect(f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro", uri=True)


def _rows_of(registry: sqlite3.Connection, name: str) -> list[tuple[int, int, str, tuple[str, ...]]]:
    """Return (version, created ms, storage location, aliases) of every version of model `name`, oldest first."""
    aliases: dict[int, list[str]] = {}
    asked = "SELECT version, alias FROM registered_model_aliases WHERE name = ? ORDER BY alias"
    for version, alias in registry.execute(asked, (name,)):
        aliases.setdefault(int(version), []).append(alias)
    asked = "SELECT version, creation_time, storage_location FROM model_versions WHERE name = ? ORDER BY version"
    found = [
        (int(version), int(created), str(location), tuple(aliases.get(int(version), ())))
        for version, created, location in registry.execute(asked, (name,))
    ]
    if not found:
        known = [row[0] for row in registry.execute("SELECT DISTINCT name FROM model_versions ORDER BY name")]
        raise VersionNotFound(f"nothing is promoted under the name {name!r}; names: {', '.join(known) or 'none yet'}")
    return found


def _folder(location: str, mlruns: Path) -> Path:
    """Return where the files of a version lie: MLflow notes an absolute path, and a store may have been moved since."""
    noted = Path(urllib.parse.unquote(urllib.parse.urlparse(location).path))
    if not noted.is_dir():
        for at, part in enumerate(noted.parts):
            moved = mlruns.joinpath(*noted.parts[at:])
            if part == _FILES and moved.is_dir():
                return moved / "artifacts"
    return noted / "artifacts"


def _promoted(name: str, row: tuple[int, int, str, tuple[str, ...]], mlruns: Path) -> PromotedStrategy:
    version, created, location, aliases = row
    folder = _folder(location, mlruns)
    content = read_artefact(folder).content()
    return PromotedStrategy(**content, name=name, version=version, aliases=aliases, created_ms=created, folder=folder)


def versions(name: str, mlruns: Path | None = None) -> list[PromotedStrategy]:
    """Return every version of model `name`, oldest first, without MLflow.

    Parameters
    ----------
    name : str
    mlruns : Path, optional
        Folder of the store; ``mlruns`` in the working directory by default.

    Raises
    ------
    VersionNotFound
        If nothing is promoted under that name.
    ConfigError, Refused
        If the files of a version are missing or were changed.
    """
    store = (mlruns or Path("mlruns")).absolute()
    with closing(_open_registry(store)) as registry:
        rows = _rows_of(registry, name)
    return [_promoted(name, row, store) for row in rows]


def resolve(name: str, alias: str = "champion", mlruns: Path | None = None) -> PromotedStrategy:
    """Return the version that ``name@alias`` stands for, fit to trade in this process, without importing MLflow.

    Parameters
    ----------
    name : str
    alias : str
        An alias, or a version's number.
    mlruns : Path, optional
        Folder of the store; ``mlruns`` in the working directory by default.

    Raises
    ------
    VersionNotFound
        If there is no such name or alias.
    ConfigError
        If its files cannot be read.
    Refused
        If its files were changed, or this process has another row schema or other packages than were promoted.
    """
    store = (mlruns or Path("mlruns")).absolute()
    with closing(_open_registry(store)) as registry:
        rows = _rows_of(registry, name)
    for row in rows:
        if alias in row[3] or alias == str(row[0]):
            found = _promoted(name, row, store)
            _check_fit(found)
            return found
    known = sorted({one for row in rows for one in row[3]} | {str(row[0]) for row in rows})
    raise VersionNotFound(f"{name} has no version {alias!r}; there are {', '.join(known)}")


def _check_fit(found: PromotedStrategy) -> None:
    """Refuse a version that would run under other rows or other packages than it was promoted with."""
    if found.data_schema != _data_schema():
        raise Refused(
            "data_schema",
            f"{found.name} version {found.version} reads rows of {found.data_schema}; this hftlab writes "
            f"{_data_schema()}. Promote its notebook again",
        )
    installed = installed_pins()
    moved = [f"{p} {v} (installed: {installed.get(p)})" for p, v in found.pins.items() if installed.get(p) != v]
    if moved:
        raise Refused(
            "pinned_packages",
            f"{found.name} version {found.version} was promoted with {', '.join(moved)}. Install those, or promote its "
            "notebook again",
        )
