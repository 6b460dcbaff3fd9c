"""Replay a session's journal in a process of its own: the same input rows, a fresh engine, every row compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hftlab.analysis.frames import OrderLog, tick_to_order_ns
from hftlab.core.definitions import Definitions
from hftlab.core.errors import ConfigError
from hftlab.core.rows import Kind
from hftlab.engine import replay
from hftlab.journal import JournalReader, read_all, verify
from hftlab.strategy import load_strategy

__all__ = ["is_good", "main", "report"]


def report(folder: Path) -> dict[str, Any]:
    """Return what a journal holds and whether it is whole and replays.

    Parameters
    ----------
    folder : Path
        A session's folder, or its journal.

    Returns
    -------
    dict
        rows, orders, fills, book_gaps, journal_verified, problems, replay_identical, first_difference,
        replayed_submits, ticks_to_order, tick_to_order_p50_us, tick_to_order_p99_us (None where nothing was sent).

    Raises
    ------
    ConfigError
        If the journal does not hold its strategy's source, as that of a backtest does not.
    """
    journal = folder / "journal" if (folder / "journal").is_dir() else folder
    reader = JournalReader(journal)
    definitions = Definitions.from_dict(reader.definitions)
    reader.close()
    rows = read_all(journal)
    ref = definitions.strategy
    if not ref.source:
        raise ConfigError(
            f"{journal} does not hold the source of its strategy {ref.name!r}; replay it where the class is, by "
            "hftlab.engine.replay"
        )
    again = replay(rows, definitions, load_strategy(ref.source, ref.name, ref.params))
    whole = verify(journal)
    took = tick_to_order_ns(rows)
    return {
        "orders": int(((rows["kind"] == Kind.SUBMIT) | (rows["kind"] == Kind.REPLACE_ORDER)).sum()),
        "fills": len(OrderLog(rows).fills(definitions)),
        "rows": len(rows),
        "book_gaps": again.book_gaps,
        "journal_verified": whole.ok,
        "problems": whole.problems,
        "replay_identical": again.identical,
        "first_difference": again.difference,
        "replayed_submits": again.submits,
        "ticks_to_order": len(took),
        "tick_to_order_p50_us": round(float(np.percentile(took, 50)) / 1e3, 1) if len(took) else None,
        "tick_to_order_p99_us": round(float(np.percentile(took, 99)) / 1e3, 1) if len(took) else None,
    }


def is_good(told: dict[str, Any]) -> bool:
    """Return whether a report says that the journal is whole and came out again."""
    return bool(told["journal_verified"] and told["replay_identical"])


def main(argv: list[str] | None = None) -> int:
    """Print the report of the journal named on the command line as one JSON line."""
    (folder,) = argv if argv is not None else sys.argv[1:]
    told = report(Path(folder))
    print(json.dumps(told))
    return 0 if is_good(told) else 9


if __name__ == "__main__":
    sys.exit(main())
