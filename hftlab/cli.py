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
from typing import TYPE_CHECKING, Annotated

import typer

from hftlab import __version__

if TYPE_CHECKING:
    from pathlib import Path

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
    from pathlib import Path

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
