"""The ``hftlab`` command.

Three rules hold for every command. Results go to stdout, everything said about them to stderr. The exit code tells a
script what happened, by the one table below. What goes wrong on purpose (`HftlabError`) is one line that says what to
do; what goes wrong otherwise is a defect of ours, and its traceback goes to a file whose path is printed.

Commands import their world inside, so that ``--help`` and shell completion stay fast.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hftlab import __version__

if TYPE_CHECKING:
    from hftlab.core.rows import RowArray
    from hftlab.journal import JournalReader

__all__ = ["ExitCode", "app", "main"]


class ExitCode(enum.IntEnum):
    """What the exit code of ``hftlab`` says."""

    DONE = 0
    DEFECT = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFIG = 4
    TIMEOUT = 5
    NOT_RUNNING = 6
    REFUSED = 7
    EXPOSURE = 8
    CHECK_FAILED = 9
    INTERRUPTED = 130


_EXIT_CODES = (
    "Exit codes: 0 done; 1 a defect of hftlab (traceback in a file, its path printed); 2 usage; 3 not found; "
    "4 configuration, schema or secret wrong; 5 time ran out; 6 not running or unreachable; 7 refused (gate, limit, "
    "arming, confirmation); 8 ended but exposure or an unknown order remains; 9 check failed; 130 interrupted."
)

app = typer.Typer(
    name="hftlab",
    help="Research-to-production toolkit for high-frequency trading.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hftlab {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# --- journal ----------------------------------------------------------------------------------------------------------

journal_app = typer.Typer(help="Read the journal of a session.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(journal_app, name="journal")

_Journal = Annotated[str, typer.Argument(metavar="NAME", help="The session's name, or the folder of a journal.")]


def _journal_folder(given: str) -> Path:
    """Return the folder of the journal that a session's name, a session's folder or the journal's own folder means."""
    from hftlab.services.paths import SPEC_FILE, find_session

    folder = Path(given)
    if not folder.is_dir():
        if len(folder.parts) > 1:
            typer.echo(f"hftlab: there is no folder {folder}", err=True)
            raise typer.Exit(ExitCode.NOT_FOUND)
        folder = find_session(given)
    return folder / "journal" if (folder / SPEC_FILE).exists() else folder


def _with_payload(rows: RowArray) -> Iterator[RowArray]:
    """Yield each row together with the payload rows that follow it."""
    i = 0
    while i < len(rows):
        end = i + 1 + int(rows["span"][i])
        yield rows[i:end]
        i = end


def _print_new(reader: JournalReader, most: int | None = None) -> None:
    """Print what `reader` has not yet returned, at most `most` rows and their payloads."""
    from hftlab.core.instruments import Instrument
    from hftlab.journal import format_row

    instruments = [Instrument.from_dict(plain) for plain in reader.definitions.get("instruments", [])] or None
    printed = 0
    while len(rows := reader.poll()):
        for row in _with_payload(rows):
            if printed == most:
                return
            typer.echo(format_row(row, instruments))
            printed += 1


@journal_app.command()
def show(
    name: _Journal,
    start: Annotated[int | None, typer.Option("--from", min=0, help="First row; the oldest if absent.")] = None,
    rows: Annotated[int | None, typer.Option("-n", "--rows", min=0, help="At most this many; all if absent.")] = None,
) -> None:
    """Print rows, one a line."""
    from hftlab.journal import JournalReader, bounds

    folder = _journal_folder(name)
    first = bounds(folder)[0] if start is None else start
    _print_new(JournalReader(folder, start=first), rows)


@journal_app.command()
def tail(
    name: _Journal,
    rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="How many of the last rows.")] = 20,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with new rows until interrupted.")] = False,
) -> None:
    """Print the last rows, and with --follow each new one."""
    from hftlab.journal import JournalReader, bounds

    folder = _journal_folder(name)
    oldest, end = bounds(folder)
    reader = JournalReader(folder, start=max(oldest, end - rows))
    _print_new(reader, None if follow else rows)  # a session that runs goes on writing
    while follow:
        if reader.wait(1.0):
            _print_new(reader)


@journal_app.command()
def verify(
    name: _Journal,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare every sealed byte with the hash chain; exit 9 if one has changed."""
    import json
    from dataclasses import asdict

    from hftlab.journal import verify as verify_journal

    report = verify_journal(_journal_folder(name))
    typer.echo(json.dumps({"schema": 1, **asdict(report)}) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


# --- sessions ---------------------------------------------------------------------------------------------------------

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The session's name.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _print_json(plain: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps({"schema": 1, **plain}))


def _print_told(told: dict[str, Any], as_json: bool) -> None:
    """Print a report: one JSON object, or one line a value that is there."""
    if as_json:
        _print_json(told)
        return
    for name, value in told.items():
        if value not in (None, []):
            typer.echo(f"{name:22} {value}")


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="How long to trade; 0 until Ctrl-C.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the synthetic flow.")] = 1,
    port: Annotated[int, typer.Option(help="Of the dashboard; 0 takes a free one.")] = 0,
    as_json: _Json = False,
) -> None:
    """Trade on a simulated exchange, with dashboard and replay: the whole path, no key, no network."""
    from hftlab.services.demo import run
    from hftlab.services.replay import is_good

    told = run(seconds=seconds, as_json=as_json, seed=seed, port=port)
    _print_told(told, as_json)
    if not is_good(told) or told["book_gaps"]:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@app.command()
def serve(
    strategy: Annotated[str, typer.Argument(help="path.py:Class, module:Class, or NAME@ALIAS of a promoted version.")],
    mode: Annotated[
        str, typer.Option(help="sim: a simulated exchange of its own. paper: a venue's public feed, simulated fills.")
    ] = "sim",
    venue: Annotated[
        str, typer.Option(help="binance; paper also: binance:futures, kraken[:v1], coinbase[:level2|:full|:advanced].")
    ] = "binance",
    endpoints: Annotated[
        str | None,
        typer.Option(help="Another venue: rest=...,stream=...,ws_api=..., or the line `hftlab venue` prints."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The session's name; the strategy's if absent.")] = None,
    symbols: Annotated[str | None, typer.Option(help="Instruments, separated by commas; BTCUSDT if absent.")] = None,
    limits: Annotated[
        list[str] | None, typer.Option(help="A .toml file, or SYMBOL:max_order=0.01,...; may be given more than once.")
    ] = None,
    param: Annotated[list[str] | None, typer.Option("-p", "--param", help="name=number, as often as needed.")] = None,
    seed: Annotated[int, typer.Option(help="Of the strategy's chance, and of the simulated market.")] = 1,
    dash: Annotated[bool, typer.Option("--dash/--no-dash", help="Serve a dashboard with the session.")] = True,
    feed_processes: Annotated[
        int, typer.Option(min=0, help="Decode in so many processes, symbols dealt out in turn; 0: in the trader.")
    ] = 0,
    wait: Annotated[
        str, typer.Option(help="warm: asleep between events, its path kept warm; poll: never asleep; sleep: plainly.")
    ] = "warm",
    core: Annotated[
        int | None, typer.Option(min=0, help="The core the trader keeps to, with --wait poll one of its own.")
    ] = None,
    foreground: Annotated[bool, typer.Option(help="Run in this process until Ctrl-C, for containers.")] = False,
    as_json: _Json = False,
) -> None:
    """Start a strategy in its own process, under the supervisor."""
    from hftlab.core.errors import ConfigError, Refused
    from hftlab.notebook.launch import read_endpoints, read_limits, read_params, read_strategy
    from hftlab.services import supervisor
    from hftlab.services.spec import CAREFUL_LIMITS, SessionSpec

    plan = read_strategy(strategy, read_params(param or []))
    if plan.symbols and (symbols or limits):
        raise ConfigError(
            f"{strategy} trades under the symbols and limits it was promoted with; leave both options out, or "
            "promote its notebook again with others"
        )
    chosen = tuple(symbols.split(",")) if symbols else plan.symbols or ("BTCUSDT",)
    given = {s: one for s, one in CAREFUL_LIMITS.items() if s in chosen} | plan.limits | read_limits(limits or [])
    default_name = strategy.partition("@")[0] if "@" in strategy else plan.strategy["name"].lower()
    spec = SessionSpec(
        name or default_name, mode, chosen, plan.strategy, given, venue, endpoints=read_endpoints(endpoints), seed=seed,
        venue_args={"seed": seed} if mode == "sim" else {}, feeds="process" if feed_processes else "inline",
        feed_processes=feed_processes or 1, wait=wait, core=core,
    )  # fmt: skip
    if foreground:
        raise typer.Exit(supervisor.Supervisor().run_one(spec, dash=dash))
    typer.echo(f"starting {spec.name} ...", err=True)
    held = supervisor.start(spec, dash=dash)
    if held["already"]:
        raise Refused(
            "start",
            f"session {spec.name} is already running as process {held['pid']}; hftlab attach {spec.name} shows it",
        )
    status = supervisor.await_trading(spec.folder)
    url = supervisor.await_dashboard(spec.folder) if dash else ""
    if as_json:
        _print_json(
            {"name": spec.name, "mode": mode, "state": status["state"], "pid": status["pid"], "dashboard_url": url}
        )
        return
    shown = f"; dashboard {url}" if url else ""
    typer.echo(f"{spec.name} is {status['state']} in process {status['pid']}{shown}; hftlab attach {spec.name}")


_DAY_S = 86_400
_CELL = 60


def _cell(value: Any) -> str:
    """Return a value as one cell of a table; what is long is for --json."""
    text = " ".join(str(value or "-").split())
    return text if len(text) <= _CELL else text[: _CELL - 3] + "..."


@app.command()
def sessions(
    every: Annotated[bool, typer.Option("--all", help="Also those that ended more than a day ago.")] = False,
    as_json: _Json = False,
) -> None:
    """List the sessions that run or ended within a day, newest first."""
    import time

    from hftlab.services import supervisor

    known = supervisor.overview()
    found = [one for one in known if every or one["seen_s"] > time.time() - _DAY_S]
    if as_json:
        _print_json({"sessions": found})
        return
    if len(found) < len(known):
        typer.echo(f"{len(known) - len(found)} ended more than a day ago; --all lists them too", err=True)
    columns = ("name", "mode", "state", "strategy", "symbols", "pid", "restarts", "reason")
    rows = [tuple(c.upper() for c in columns)] + [tuple(_cell(one[c]) for c in columns) for one in found]
    widths = [max(len(row[k]) for row in rows) for k in range(len(columns))]
    for row in rows:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def attach(name: _Name, as_json: _Json = False) -> None:
    """Watch a session until Ctrl-C; it goes on. Without a terminal, print its status once."""
    from hftlab.services.paths import find_session
    from hftlab.services.status import status_lines, watch
    from hftlab.services.supervisor import OPEN_STATES, status

    folder = find_session(name)
    if as_json:
        _print_json(status(folder))
    elif not sys.stdout.isatty():
        for label, text in status_lines(status(folder)):
            typer.echo(f"{label:<12}{text}")
    elif watch(folder)["state"] in OPEN_STATES:
        typer.echo(f"left {name}; it goes on: hftlab stop {name} ends it")


@app.command()
def stop(name: _Name, as_json: _Json = False) -> None:
    """End a session: cancel its orders, confirm, exit; exit 8 if an order is still open or unknown."""
    from hftlab.core.errors import ConfigError, JournalError
    from hftlab.notebook.session import attach as join
    from hftlab.services import supervisor
    from hftlab.services.paths import find_session

    ended = supervisor.stop(find_session(name))
    left: int | None = 0 if ended.get("exit_code") == 0 else None  # the trader's own word, or none
    position: dict[str, int] = {}
    try:
        session = join(name)
        left, position = session.open_orders, session.position
        held = "position " + ", ".join(f"{symbol} {lots:+d} lots" for symbol, lots in position.items())
    except (ConfigError, JournalError) as error:
        held = f"its journal cannot be read ({error})"
    if as_json:
        _print_json({"name": name, "open_orders": left, "position": position})
    else:
        count = "an unknown number of" if left is None else left
        typer.echo(f"{name} has stopped; {count} orders open; {held}")
    if left != 0:
        raise typer.Exit(ExitCode.EXPOSURE)


@app.command()
def halt(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The session's name.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every running session.")] = False,
    reason: Annotated[str, typer.Option(help="Kept in the journal.")] = "command line",
    as_json: _Json = False,
) -> None:
    """Pull the kill switch: block new orders, cancel the open ones; exit 8 unless none is open. Never asks.

    The halt is latched first: a trader that is down, deaf or starting halts before its first order.
    """
    from concurrent.futures import ThreadPoolExecutor

    from hftlab.services import supervisor
    from hftlab.services.paths import find_session

    if (name is None) != every:
        raise typer.BadParameter("give a session's name, or --all")
    running = [one for one in supervisor.overview() if one["state"] in supervisor.OPEN_STATES] if every else []
    folders = [Path(one["folder"]) for one in running] if every else [find_session(str(name))]
    with ThreadPoolExecutor(max(1, len(folders))) as at_once:  # none waits for another, none is left out
        asked = {folder.name: at_once.submit(supervisor.halt, folder, reason) for folder in folders}
    failures = [error for one in asked.values() if (error := one.exception()) is not None]
    replies = {one: future.result() for one, future in asked.items() if future.exception() is None}
    if as_json and (replies or not failures):
        _print_json({"halted": replies})
    elif not as_json:
        for one, told in replies.items():
            if told.get("latched"):
                typer.echo(f"{one}: the halt is latched; it will be halted before its first order when it is back")
            else:
                typer.echo(f"{one} is halted; {len(told['canceled'])} orders canceled, {told['open']} open")
    if any(told["open"] for told in replies.values()):
        for error in failures:
            typer.echo(f"hftlab: {error}", err=True)
        raise typer.Exit(ExitCode.EXPOSURE)
    if failures:
        raise failures[0]


@app.command()
def resume(
    name: _Name,
    confirm: Annotated[str | None, typer.Option(help="The session's name again: this lets it trade.")] = None,
) -> None:
    """Release the kill switch of a halted session."""
    from hftlab.core.errors import Refused
    from hftlab.services import control
    from hftlab.services.paths import find_session

    folder = find_session(name)
    if confirm != name:
        raise Refused("confirmation", f"resuming lets {name} trade again; repeat with --confirm {name}")
    typer.echo(f"{name} is {control.request(folder, 'resume').get('state', 'trading')}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def venue(context: typer.Context) -> None:
    """Run the simulated exchange behind a venue's spot protocol (--venue binance|coinbase|kraken); see its --help."""
    from hftlab.services import venue as service

    raise typer.Exit(service.main(context.args))


@app.command()
def dash(name: _Name, port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0) -> None:
    """Serve a session's dashboard until Ctrl-C; the session may run or have ended."""
    from hftlab.services.dashboard import main as run_dashboard
    from hftlab.services.paths import find_session

    raise typer.Exit(run_dashboard([str(find_session(name)), "--port", str(port)]))


@app.command()
def replay(
    session: Annotated[str, typer.Argument(metavar="NAME", help="The session's name, or the folder of a journal.")],
    as_json: _Json = False,
) -> None:
    """Verify a journal, run its inputs through its strategy again, compare every row; exit 9 if anything differs."""
    from hftlab.services.paths import find_session
    from hftlab.services.replay import is_good, report

    folder = Path(session)
    told = report(folder if folder.is_dir() else find_session(session))
    _print_told(told, as_json)
    if not is_good(told):
        raise typer.Exit(ExitCode.CHECK_FAILED)


# --- a session beside its backtest ------------------------------------------------------------------------------------


def _numbers(name: str, text: str, what: str) -> list[Any]:
    """Return one or two decimals of an option's text; one stands for both."""
    from decimal import Decimal, InvalidOperation

    from hftlab.core.errors import ConfigError

    try:
        parts = [Decimal(part) for part in text.split(",")]
    except InvalidOperation:
        parts = []
    if len(parts) not in (1, 2) or not all(part.is_finite() for part in parts):
        raise ConfigError(f"{name}: {text!r}; expected {what}")
    return parts * (3 - len(parts))


def _assumptions(latency: str | None, queue: str | None, fees: str | None) -> dict[str, Any]:
    """Return what the options assume of a simulation, as arguments; what is not said is left out."""
    from hftlab.core.errors import ConfigError
    from hftlab.sim.models import Fees, Latency, Queue

    assumed: dict[str, Any] = {}
    if latency is not None:
        ways = _numbers("latency", latency, "milliseconds, such as 0.5 or 0.5,0.7")
        assumed["latency"] = Latency(entry_ns=int(ways[0] * 1_000_000), response_ns=int(ways[1] * 1_000_000))
    if queue is not None:
        model, _, exponent = queue.partition(":")
        try:
            assumed["queue"] = Queue(model, float(exponent or 1))
        except ValueError as error:
            raise ConfigError(f"queue: {queue!r}; expected a model, or power:2") from error
    if fees is not None:
        rates = [rate * 1_000_000 for rate in _numbers("fees", fees, "percent, such as 0.02,0.05")]
        if any(rate != int(rate) for rate in rates):
            raise ConfigError(f"fees: {fees!r}; expected percent of at most six decimals, such as 0.02,0.05")
        assumed["fees"] = Fees(maker_e8=int(rates[0]), taker_e8=int(rates[1]))
    return assumed


@app.command()
def parity(
    session: Annotated[str, typer.Argument(metavar="NAME", help="The session's name, or the folder of a journal.")],
    latency: Annotated[
        str | None, typer.Option(metavar="MS[,MS]", help="The backtest's, to the exchange and back; 1,1 if absent.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="MODEL", help="risk_averse, proportional, power:2 or log.")
    ] = None,
    fees: Annotated[
        str | None, typer.Option(metavar="%[,%]", help="Of maker and taker; what the session was charged if absent.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report with pictures there.")] = None,
    orders: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the gap order by order: name.parquet or name.csv.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Replay a session, backtest the same interval, and split the gap of their P&L by cause, order by order.

    Exit 9 if the replay differs, or more than 5 % of the gap is unexplained.
    """
    from hftlab.backtest.parity import parity as compare
    from hftlab.core.errors import ConfigError
    from hftlab.services.paths import find_session

    if orders is not None and orders.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"orders: {orders}; expected a name that ends in .parquet or .csv")
    assumed, folder = _assumptions(latency, queue, fees), Path(session)
    told = compare(folder if folder.is_dir() else find_session(session), **assumed)
    if orders is not None:
        (told.orders.write_csv if orders.suffix == ".csv" else told.orders.write_parquet)(orders)
    if html is not None:
        told.html(html)
    if as_json:
        _print_json(told.to_dict())
    else:
        typer.echo(str(told))
    if not told.is_good:
        raise typer.Exit(ExitCode.CHECK_FAILED)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def _limits_of(instruments: Any, texts: list[str]) -> list[Any]:
    """Return the limits of each instrument: what was given, or the careful ones of a well-known symbol."""
    from hftlab.core.definitions import Limits
    from hftlab.core.errors import ConfigError
    from hftlab.notebook.launch import read_limits
    from hftlab.services.spec import CAREFUL_LIMITS

    given = CAREFUL_LIMITS | read_limits(texts)
    missing = [one.symbol for one in instruments if one.symbol not in given]
    if missing:
        raise ConfigError(
            f"limits: none for {', '.join(missing)}; give --limits {missing[0]}:max_order=...,max_position=...,"
            "max_notional=...,collar=... or a .toml file"
        )
    return [Limits.from_decimals(one, given[one.symbol]) for one in instruments]


@app.command()
def sweep(
    strategy: Annotated[str, typer.Argument(help="path.py:Class, or module:Class.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A recording, or the folder of a journal.")],
    space: Annotated[
        list[str], typer.Option("-s", "--space", help="name=1,2,5 or name=low:high[:step|:log]; as often as needed.")
    ],
    param: Annotated[list[str] | None, typer.Option("-p", "--param", help="name=number: not searched.")] = None,
    limits: Annotated[
        list[str] | None, typer.Option(help="A .toml file, or SYMBOL:max_order=0.01,...; may be given more than once.")
    ] = None,
    method: Annotated[str, typer.Option(help="grid, random or tpe.")] = "grid",
    trials: Annotated[int | None, typer.Option(min=1, help="All of a grid if absent, else 100.")] = None,
    prune: Annotated[bool, typer.Option(help="Let tpe give up trials that fall behind.")] = False,
    objective: Annotated[
        str, typer.Option(help="net_pnl, gross_pnl, sharpe, drawdown, turnover or fills; it is maximised.")
    ] = "net_pnl",
    splits: Annotated[str, typer.Option(help="holdout:0.3, walk:4 or purged:5.")] = "holdout:0.3",
    embargo: Annotated[float, typer.Option(min=0, metavar="S", help="Kept free round a test, seconds.")] = 0.0,
    latency: Annotated[
        str | None, typer.Option(metavar="MS[,MS]", help="To the exchange and back; 1,1 if absent.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="MODEL", help="risk_averse, proportional, power:2 or log.")
    ] = None,
    fees: Annotated[
        str | None, typer.Option(metavar="%[,%]", help="Of maker and taker; the venue's base fee if absent.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Its name: a study that exists goes on. The strategy's.")] = None,
    folder: Annotated[Path, typer.Option(help="Where studies are kept.")] = Path("sweeps"),
    cores: Annotated[int | None, typer.Option(min=1, help="Worker processes; all cores if absent.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search and of the strategy's chance.")] = 1,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it will cost, and end.")] = False,
    mlflow: Annotated[bool, typer.Option(help="Keep the best 20 trials in MLflow, in ./mlruns.")] = False,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="Trials to print.")] = 10,
    as_json: _Json = False,
) -> None:
    """Backtest a strategy with many parameters, and print the best in sample, out of sample beside it.

    Exit 9 if no trial has a value; 130 after Ctrl-C, which keeps what is done: the same command goes on.
    """
    from dataclasses import asdict

    from hftlab.backtest import sweep as room
    from hftlab.backtest.data import read_tape
    from hftlab.backtest.splits import read_splitter
    from hftlab.notebook.launch import read_params, read_strategy
    from hftlab.strategy import load_strategy

    if not data.exists():
        typer.echo(f"hftlab: there is no {data}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND)
    chosen = read_strategy(strategy, read_params(param or [])).strategy
    made = load_strategy(chosen["source"], chosen["name"], chosen["params"], compiled=chosen["compiled"])
    how: dict[str, Any] = {
        "limits": _limits_of(read_tape(data, None).instruments, limits or []), **_assumptions(latency, queue, fees),
        "objective": objective, "method": method, "trials": trials, "prune": prune, "seed": seed, "cores": cores,
        "splits": read_splitter(splits, embargo_ns=round(embargo * 1e9)), "space": room.read_space(space),
    }  # fmt: skip
    if estimate:
        cost = room.estimate(made, data, **how)
        _print_json(asdict(cost)) if as_json else typer.echo(str(cost))
        return
    found = room.sweep(made, data, study=study or chosen["name"].lower(), folder=folder, mlflow=mlflow, **how)
    typer.echo(found.summary(), err=True)
    _print_trials(found, rows, as_json)
    if found.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not found.trials["value"].is_finite().any():
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _print_trials(found: Any, rows: int, as_json: bool) -> None:
    """Print the best trials of a sweep, in sample and out of sample side by side."""
    columns = ["trial", "state", *found.names, "value", "value_oos", "fills", "fills_oos", "drawdown", "error"]
    lines = found.trials.select(columns).head(rows).to_dicts()
    if as_json:
        counts = dict(found.trials.group_by("state").len().sort("state").iter_rows())
        finite = [{k: None if v != v else v for k, v in line.items()} for line in lines]  # JSON has no NaN
        _print_json({"study": str(found.folder), "interrupted": found.interrupted, "counts": counts, "trials": finite})
        return
    table = [[one.upper() for one in columns]]
    table += [[_figure(line[one]) for one in columns] for line in lines]
    widths = [max(len(row[k]) for row in table) for k in range(len(columns))]
    for row in table:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _figure(value: Any) -> str:
    """Return a value as one cell: a float to six digits, a zero as itself."""
    return f"{value:.6g}" if isinstance(value, float) else "0" if value == 0 else _cell(value)


# --- backtests --------------------------------------------------------------------------------------------------------

_Strategy = Annotated[str, typer.Argument(metavar="STRATEGY", help="path.py:Class, or module:Class.")]
_Data = Annotated[Path, typer.Argument(metavar="DATA", help="A recording, or the folder of a journal.")]
_Param = Annotated[list[str] | None, typer.Option("-p", "--param", help="name=number, as often as needed.")]
_LimitTexts = Annotated[
    list[str] | None, typer.Option(help="A .toml file, or SYMBOL:max_order=0.01,...; may be given more than once.")
]
_Latency = Annotated[
    str | None, typer.Option(metavar="MS[,MS]", help="To the exchange and back; 1,1 if absent.")
]
_Queue = Annotated[str | None, typer.Option(metavar="MODEL", help="risk_averse, proportional, power:2 or log.")]
_Fees = Annotated[
    str | None, typer.Option(metavar="%[,%]", help="Of maker and taker; the venue's base fee if absent.")
]
_Seed = Annotated[int, typer.Option(help="Of the strategy's chance.")]


def _existing(data: Path) -> Path:
    if not data.exists():
        typer.echo(f"hftlab: there is no {data}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND)
    return data


def _market_of(data: Path, limits: list[str] | None) -> dict[str, Any]:
    """Return a recording, its instruments and their limits, as arguments."""
    from hftlab.backtest.data import read_tape

    instruments = read_tape(_existing(data), None).instruments
    return {"data": data, "instruments": instruments, "limits": _limits_of(instruments, limits or [])}


@app.command()
def backtest(
    strategy: _Strategy,
    data: _Data,
    param: _Param = None,
    limits: _LimitTexts = None,
    latency: _Latency = None,
    queue: _Queue = None,
    fees: _Fees = None,
    seed: _Seed = 1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the run's journal there.")] = None,
    html: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the report with pictures there.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Run a strategy over recorded days under virtual time, and say what it would have done.

    Exit 9 if the strategy failed; 130 after Ctrl-C, which keeps what was done until then, journal and report too.
    """
    from hftlab.backtest.runner import backtest as run
    from hftlab.notebook.launch import read_params, read_strategy
    from hftlab.strategy import load_strategy

    market = _market_of(data, limits)
    chosen = read_strategy(strategy, read_params(param or [])).strategy
    made = load_strategy(chosen["source"], chosen["name"], chosen["params"], compiled=chosen["compiled"])
    assumed = _assumptions(latency, queue, fees)
    result = run(made, **market, **assumed, seed=seed, folder=out, progress=sys.stderr.isatty())
    if html is not None:
        result.report(html, title=chosen["name"])
    if as_json:
        _print_json(_plain_result(result))
    else:
        typer.echo(result.summary())
    if result.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if result.faults:
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _plain_result(result: Any) -> dict[str, Any]:
    counted = ("submits", "replaces", "cancels", "fills", "refusals")
    return {
        "run_hash": result.run_hash,
        "market_hash": result.market_hash,
        "rows": len(result.own) + len(result.market),
        "interrupted": result.interrupted,
        "assumptions": result.assumptions.splitlines(),
        "notes": result.notes,
        "counts": {name: result.counters[name] for name in counted},
        "pnl": result.pnl.to_dicts(),
        "faults": [{"callback": one.callback, "traceback": one.traceback} for one in result.faults],
        "journal": None if result.folder is None else str(result.folder),
    }


# --- checks of a backtest ---------------------------------------------------------------------------------------------

check_app = typer.Typer(
    help="Can a backtest be believed? Exit 9 if not.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(check_app, name="check")


def _recipe(strategy: str, param: list[str] | None) -> Any:
    """Return what makes the strategy that `strategy` names; a name of a function ``make(data)`` too."""
    from hftlab.backtest.checks import Recipe
    from hftlab.core.errors import ConfigError
    from hftlab.notebook.launch import read_params, source_file

    place, colon, name = strategy.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ConfigError(f"strategy: {strategy!r}; expected path.py:Class, module:Class, or path.py:make")
    return Recipe(source_file(place).read_text(), name, read_params(param or []))


@check_app.command("lookahead")
def check_lookahead(
    strategy: Annotated[
        str, typer.Argument(metavar="STRATEGY", help="path.py:Class or path.py:make; given the rows if it takes data.")
    ],
    data: _Data,
    param: _Param = None,
    limits: _LimitTexts = None,
    latency: _Latency = None,
    queue: _Queue = None,
    fees: _Fees = None,
    cuts: Annotated[int, typer.Option(min=1, help="How often the future is replaced; two runs each.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the other futures.")] = 1,
    as_json: _Json = False,
) -> None:
    """Replace the future behind many cuts, and find decisions before them that change; exit 9 if one does.

    A strategy sees the future by what it is built from: a class, or a function make, that takes data, is built anew
    from the rows with each future. One that takes none is built from nothing of it. Files it reads are not looked into.
    """
    from dataclasses import asdict

    from hftlab.backtest.checks import lookahead

    recipe, market = _recipe(strategy, param), _market_of(data, limits)
    told = lookahead(recipe, **market, **_assumptions(latency, queue, fees), cuts=cuts, seed=seed)
    if as_json:
        _print_json({"ok": told.ok, "callbacks": told.callbacks, "features": told.features, **asdict(told)})
    else:
        typer.echo(str(told))
    if not told.ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@check_app.command("determinism")
def check_determinism(
    strategy: _Strategy,
    data: _Data,
    param: _Param = None,
    limits: _LimitTexts = None,
    latency: _Latency = None,
    queue: _Queue = None,
    fees: _Fees = None,
    seed: _Seed = 1,
    as_json: _Json = False,
) -> None:
    """Run a strategy in two fresh processes with different hash seeds and compare every row; exit 9 if one differs."""
    from dataclasses import asdict

    from hftlab.backtest.checks import determinism

    recipe, market = _recipe(strategy, param), _market_of(data, limits)
    told = determinism(recipe, **market, **_assumptions(latency, queue, fees), seed=seed)
    if as_json:
        _print_json({"ok": told.ok, **asdict(told)})
    else:
        typer.echo(str(told))
    if not told.ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@check_app.command("sensitivity")
def check_sensitivity(
    strategy: _Strategy,
    data: _Data,
    param: _Param = None,
    limits: _LimitTexts = None,
    html: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the picture there, as a page.")
    ] = None,
    seed: _Seed = 1,
    as_json: _Json = False,
) -> None:
    """Run a strategy over latency, queue model and fees, and say where its P&L lives."""
    from rich.console import Console

    from hftlab.backtest.checks import sensitivity

    recipe, market = _recipe(strategy, param), _market_of(data, limits)
    with Console(stderr=True).status("sensitivity") as line:
        told = sensitivity(
            recipe, **market, seed=seed, progress=lambda done, total: line.update(f"sensitivity: run {done} of {total}")
        )
    if html is not None:
        told.html(html)
    if as_json:
        _print_json({"sentences": told.sentences(), "runs": told.frame.to_dicts()})
    else:
        typer.echo(str(told))


# --- recordings -------------------------------------------------------------------------------------------------------

_Recording = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="A recording, known by its content, or the name of a session.")
]
_Symbols = Annotated[str | None, typer.Option("--symbol", help="Only these instruments, separated by commas.")]
_From = Annotated[str | None, typer.Option("--from", help="The source's format, if it is not recognised.")]
_Start = Annotated[str | None, typer.Option(help="Received from this time on: 2024-08-08T23:54:14Z, or ns.")]
_End = Annotated[str | None, typer.Option(help="Received before this time.")]
_Definitions = Annotated[
    Path | None, typer.Option(help="What tells ticks and lots: a DBN definition file, a venue's list of instruments.")
]
_Date = Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="The session's date, if no name tells it.")]
_Venue = Annotated[str | None, typer.Option(help="Of a capture: binance, coinbase or kraken.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]
_Strict = Annotated[bool, typer.Option("--strict", help="Exit 9 if a record was broken.")]


def _with_progress(what: str, work: Any) -> Any:
    """Return ``work(on_progress)``, showing on stderr how far it is, how fast, and how long it will take."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    rows = TextColumn("{task.fields[rows]:,} rows")
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), rows, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, rows=0)
        return work(lambda done, size, n: progress.update(task, completed=done, total=size, rows=n))


def _print_conversion(done: Any, as_json: bool, strict: bool) -> None:
    """Print what was converted; exit 9 if all of it was broken, and under --strict if anything was."""
    if as_json:
        _print_json(done.to_dict())
    else:
        typer.echo(str(done))
    if done.broken and (strict or not done.rows):
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _recording_options(
    source: Path, symbol: str | None, form: str | None, definitions: Path | None, day: str | None, venue: str | None
) -> dict[str, Any]:
    """Return what the commands about recordings have in common, as arguments of their functions."""
    from datetime import date

    from hftlab.convert.formats import recognise
    from hftlab.core.errors import ConfigError
    from hftlab.services.paths import SessionNotFound

    if not source.exists():
        try:
            source = _journal_folder(str(source)) if len(source.parts) == 1 else source
        except SessionNotFound as error:
            typer.echo(f"hftlab: {error}", err=True)
    if not source.exists():
        try:
            recognise(source)
        except ConfigError as error:
            typer.echo(f"hftlab: {error}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND)
    if definitions is not None and not definitions.exists():
        typer.echo(f"hftlab: there is no file {definitions}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND)
    try:
        when = None if day is None else date.fromisoformat(day)
    except ValueError as error:
        raise ConfigError(f"date={day!r}; expected a date such as 2024-08-08") from error
    chosen = symbol.split(",") if symbol else ()
    told = {"symbols": chosen, "format": form, "definitions": definitions, "date": when, "venue": venue}
    return {"source": source, **told}


@app.command()
def convert(
    source: _Recording,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="name.parquet, name.npz (hftbacktest), name.csv; else a journal.")
    ],
    form: _From = None,
    to: Annotated[str | None, typer.Option(help="journal, parquet, hftbacktest or csv, whatever DEST's name.")] = None,
    symbol: _Symbols = None,
    start: _Start = None,
    end: _End = None,
    definitions: _Definitions = None,
    date: _Date = None,
    venue: _Venue = None,
    overwrite: _Overwrite = False,
    strict: _Strict = False,
    as_json: _Json = False,
) -> None:
    """Convert a recording: journal, capture, ITCH, pcap, LOBSTER, DBN or Parquet to journal, Parquet, npz or CSV.

    A broken record is told with its byte offset, and the rest goes on; exit 0 then, 9 with --strict.
    """
    from hftlab.convert.run import convert as run

    options = _recording_options(source, symbol, form, definitions, date, venue)
    options |= {"to": to, "start": start, "end": end, "overwrite": overwrite}
    done = _with_progress(source.name, lambda watch: run(destination=destination, on_progress=watch, **options))
    _print_conversion(done, as_json, strict)


@app.command()
def book(
    source: _Recording,
    out: Annotated[Path, typer.Option(metavar="FILE", help="name.parquet or name.csv.")],
    depth: Annotated[int, typer.Option(min=1, max=1000, help="Levels a side.")] = 10,
    form: _From = None,
    symbol: _Symbols = None,
    start: _Start = None,
    end: _End = None,
    definitions: _Definitions = None,
    date: _Date = None,
    venue: _Venue = None,
    overwrite: _Overwrite = False,
    strict: _Strict = False,
    as_json: _Json = False,
) -> None:
    """Write the book after every message that changed it: times, instrument, seq, then the levels, best first.

    Rows before --start are applied, and their books not written.
    """
    from hftlab.convert.run import book as run

    options = _recording_options(source, symbol, form, definitions, date, venue)
    options |= {"start": start, "end": end, "overwrite": overwrite, "depth": depth}
    done = _with_progress(source.name, lambda watch: run(out=out, on_progress=watch, **options))
    _print_conversion(done, as_json, strict)


# --- promotion --------------------------------------------------------------------------------------------------------

_Store = Annotated[Path, typer.Option(metavar="FOLDER", help="Where MLflow keeps its versions.")]


@app.command()
def promote(
    notebook: Annotated[Path, typer.Argument(help="With one cell tagged parameters and one tagged strategy.")],
    name: Annotated[str, typer.Option(help="Of the registered model.")],
    alias: Annotated[str, typer.Option(help="Points at the new version from now on.")] = "champion",
    journal: Annotated[
        Path | None, typer.Option(help="Compare orders on this journal's market; synthetic flow if absent.")
    ] = None,
    mlruns: _Store = Path("mlruns"),
    as_json: _Json = False,
) -> None:
    """Check a notebook by the gates and register its strategy as one version; exit 7 if a gate refuses."""
    from dataclasses import asdict

    from rich.console import Console

    if not notebook.is_file():
        typer.echo(f"hftlab: there is no file {notebook}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND)
    console = Console(stderr=True, highlight=False, markup=False)
    with console.status("starting") as line:
        from hftlab.notebook.promote import Gate
        from hftlab.notebook.promote import promote as check_and_register

        def on_gate(gate: Gate) -> None:
            if gate.seconds is None:
                first = gate.title == "registered" and not (mlruns / "mlflow.db").exists()
                line.update(gate.title + (" (the first time makes MLflow's database)" if first else ""))
            else:
                console.print(f"passed  {gate.title:<18}{gate.seconds:6.1f} s  {gate.detail}", soft_wrap=True)

        made = check_and_register(notebook, name=name, alias=alias, journal=journal, mlruns=mlruns, on_gate=on_gate)
    if as_json:
        _print_json({**asdict(made), "folder": str(made.folder)})
    else:
        typer.echo(f"{made}; hftlab serve {name}@{alias}")


@app.command()
def versions(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the registered model.")],
    mlruns: _Store = Path("mlruns"),
    as_json: _Json = False,
) -> None:
    """List the promoted versions of a name, oldest first."""
    from datetime import UTC, datetime

    from hftlab.tracking import versions as read_versions

    rows = []
    for one in read_versions(name, mlruns):
        made = datetime.fromtimestamp(one.created_ms / 1e3, UTC).isoformat(timespec="seconds")
        rows.append((str(one.version), " ".join(one.aliases), one.hash, made, one.class_name, " ".join(one.symbols)))
    columns = ("version", "aliases", "hash", "made", "class", "symbols")
    if as_json:
        _print_json({"versions": [dict(zip(columns, row, strict=True)) for row in rows]})
        return
    for row in (tuple(c.upper() for c in columns), *rows):
        typer.echo(f"{row[0]:<9}{row[1] or '-':<20}{row[2][:8]:<14}{row[3]:<27}{row[4]:<20}{row[5]}")


# --- benchmarks ------------------------------------------------------------------------------------------------------


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which; all if absent.")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Other libraries too, each in a venv of its own.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each figure is taken.")] = 9,
    scale: Annotated[float, typer.Option(help="Size of the input, as a share of the published one.")] = 1.0,
    as_json: _Json = False,
) -> None:
    """Measure this machine: itch json websocket pipeline journal tick-to-order wire matching growth fuzz import.

    Each result is compared with a reference before it is timed (exit 9 if it differs); each figure is a median, with
    the quartiles beside it.
    """
    import json

    from rich.console import Console

    from hftlab.bench.run import BENCHES, run_bench
    from hftlab.bench.show import progress, table

    for one in (name,) if name else BENCHES:
        with progress(one, rounds) as on_round:
            report = run_bench(one, peers=peers, scale=scale, rounds=rounds, on_round=on_round)
        if as_json:
            typer.echo(json.dumps(report))
        else:
            Console(width=None if sys.stdout.isatty() else 160).print(table(report))


# --- errors and exit --------------------------------------------------------------------------------------------------


def _exit_code(error: Exception) -> ExitCode:
    """Return the code for an error raised on purpose; whatever is not one is a defect."""
    from hftlab.core import errors
    from hftlab.services.control import NotRunning, TimedOut

    table: tuple[tuple[type[Exception], ExitCode], ...] = (
        (errors.NotFound, ExitCode.NOT_FOUND),
        (NotRunning, ExitCode.NOT_RUNNING),
        (TimedOut, ExitCode.TIMEOUT),
        (errors.Refused, ExitCode.REFUSED),
        (errors.LocalError, ExitCode.CONFIG),
        (errors.RemoteError, ExitCode.NOT_RUNNING),
        (errors.HftlabError, ExitCode.CHECK_FAILED),
    )
    return next((code for kind, code in table if isinstance(error, kind)), ExitCode.DEFECT)


def _write_traceback(error: Exception) -> Path:
    """Return the new file that holds the traceback of `error`, or raise OSError where none can be written."""
    import tempfile
    import traceback

    chosen = os.environ.get("HFTLAB_HOME")
    folder = (Path(chosen) if chosen else Path.home() / ".hftlab") / "defects"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".txt", delete=False) as file:
        file.write(f"hftlab {__version__}: {sys.argv}\n")
        file.writelines(traceback.format_exception(error))
    return Path(file.name)


def _report(error: Exception) -> ExitCode:
    """Say on stderr what went wrong and return the exit code."""
    code = _exit_code(error)
    if code is not ExitCode.DEFECT:
        typer.echo(f"hftlab: {error}", err=True)
        return code
    what = f"hftlab: a defect of ours, {type(error).__name__}: {error}"
    try:
        typer.echo(f"{what}; traceback in {_write_traceback(error)}", err=True)
    except OSError as reason:
        typer.echo(f"{what}; its traceback could not be kept ({reason})", err=True)
    return code


def main() -> None:
    """Run the command line of this process and exit with an `ExitCode`."""
    try:
        app()
    except Exception as error:
        sys.exit(_report(error))


if __name__ == "__main__":
    main()
