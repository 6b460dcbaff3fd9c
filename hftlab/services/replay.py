"""Replay a session's journal in a process of its own: the same input rows, a fresh engine, every row compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hftlab.analysis.frames import fills_frame, tick_to_order_ns
from hftlab.core.definitions import Definitions
from hftlab.core.rows import Kind
from hftlab.engine import replay
from hftlab.journal import JournalReader, read_all, verify
from hftlab.strategy import load_strategy

__all__ = ["main", "report"]


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
    """
    import numpy as np

    journal = folder / "journal" if (folder / "journal").is_dir() else folder
    reader = JournalReader(journal)
    definitions = Definitions.from_dict(reader.definitions)
    reader.close()
    rows = read_all(journal)
    ref = definitions.strategy
    strategy = load_strategy(ref.source, ref.name, ref.params) if ref.source else None
    again = replay(rows, definitions, strategy)
    whole = verify(journal)
    took = tick_to_order_ns(rows)
    return {
        "orders": int(((rows["kind"] == Kind.SUBMIT) | (rows["kind"] == Kind.REPLACE_ORDER)).sum()),
        "fills": len(fills_frame(rows, definitions.instruments)),
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


def main(argv: list[str] | None = None) -> int:
    """Print the report of the journal named on the command line as one JSON line."""
    (folder,) = argv if argv is not None else sys.argv[1:]
    told = report(Path(folder))
    print(json.dumps(told))
    return 0 if told["journal_verified"] and told["replay_identical"] else 9


if __name__ == "__main__":
    sys.exit(main())
