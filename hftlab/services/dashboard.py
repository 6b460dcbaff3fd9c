"""The dashboard of a session behind a loopback port: a process of its own, so that no page can slow a trader.

Prints one JSON line, ``{"url": ..., "pid": ...}``, when the page can be opened, and ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hftlab.core.errors import ConfigError
from hftlab.services.process import follow_parent

__all__ = ["main", "run"]

EXIT_CONFIG = 4


def run(folders: Sequence[Path], *, port: int = 0, address: str = "127.0.0.1", die_with_parent: bool = False) -> int:
    """Serve the dashboards of `folders` until a signal; return the exit code.

    What is wrong with the arguments, a port in use among it, is one line on stderr and exit code 4.

    Parameters
    ----------
    folders : sequence of Path
        Session folders; their journals need not exist yet.
    port : int
        0 takes a free one.
    address : str
        A loopback address.
    die_with_parent : bool
        End when the parent process ends, whatever ended it (Linux).
    """
    try:
        if die_with_parent:
            follow_parent()
        try:
            from hftlab.dash import serve
        except ModuleNotFoundError as error:
            raise ConfigError(f"{error.name} is not installed; dashboards need: pip install 'hftlab[lab]'") from error
        serve(folders, port, address, _say_ready)
    except ConfigError as error:
        print(f"hftlab dashboard: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


def _say_ready(url: str) -> None:
    print(json.dumps({"url": url, "pid": os.getpid()}), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from a command line; return the exit code."""
    parser = argparse.ArgumentParser("hftlab dashboard", description="Serve the dashboard of sessions on loopback.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="SESSION_FOLDER")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--address", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--die-with-parent", action="store_true")
    given = parser.parse_args(argv)
    return run(given.folders, port=given.port, address=given.address, die_with_parent=given.die_with_parent)


if __name__ == "__main__":
    sys.exit(main())
