"""The journal: every row of a session in mapped segments. One writer, any number of readers, nothing rewritten."""

from __future__ import annotations

from hftlab.journal.reader import JournalReader, bounds, read_all, run_hash
from hftlab.journal.salvage import SalvagedSegment, salvage
from hftlab.journal.seal import VerifyReport, rotate, summaries, verify
from hftlab.journal.show import format_row
from hftlab.journal.writer import JournalWriter

__all__ = [
    "JournalReader",
    "JournalWriter",
    "SalvagedSegment",
    "VerifyReport",
    "bounds",
    "format_row",
    "read_all",
    "rotate",
    "run_hash",
    "salvage",
    "summaries",
    "verify",
]
