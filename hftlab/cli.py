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
from typing import TYPE_CHECKING, Annotated

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

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The journal's folder.")]


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        typer.echo(f"hftlab: there is no folder {folder}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND)
    return folder


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
    folder: _Folder,
    start: Annotated[int | None, typer.Option("--from", min=0, help="First row; the oldest if absent.")] = None,
    rows: Annotated[int | None, typer.Option("-n", "--rows", min=0, help="At most this many; all if absent.")] = None,
) -> None:
    """Print rows, one a line."""
    from hftlab.journal import JournalReader, bounds

    first = bounds(_existing(folder))[0] if start is None else start
    _print_new(JournalReader(_existing(folder), start=first), rows)


@journal_app.command()
def tail(
    folder: _Folder,
    rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="How many of the last rows.")] = 20,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with new rows until interrupted.")] = False,
) -> None:
    """Print the last rows, and with --follow each new one."""
    from hftlab.journal import JournalReader, bounds

    oldest, end = bounds(_existing(folder))
    reader = JournalReader(folder, start=max(oldest, end - rows))
    _print_new(reader)
    while follow:
        if reader.wait(1.0):
            _print_new(reader)


@journal_app.command()
def verify(
    folder: _Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare every sealed byte with the hash chain; exit 9 if one has changed."""
    import json
    from dataclasses import asdict

    from hftlab.journal import verify as verify_journal

    report = verify_journal(_existing(folder))
    typer.echo(json.dumps({"schema": 1, **asdict(report)}) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


# --- errors and exit --------------------------------------------------------------------------------------------------


def _exit_code(error: Exception) -> ExitCode:
    """Return the code for an error raised on purpose; whatever is not one is a defect."""
    from hftlab.core import errors

    table: tuple[tuple[type[Exception], ExitCode], ...] = (
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
