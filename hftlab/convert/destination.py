"""What can be converted to, behind one interface, written in place only when it is whole.

A destination is written beside its place under a name that begins with a dot and ends in ``.part``, piece by piece in
bounded memory. `finish` moves it in place, atomically where it is a file; what ends before leaves nothing, or, after a
kill, only the ``.part``, which the next conversion to the same place removes.

A journal's segments name the instruments known when they began. Where a source comes to know more on the way, the
journal goes on in a new segment that names them all.
"""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from hftlab.convert.source import Source, whole_atoms
from hftlab.convert.table import METADATA_KEY, SCHEMA, decimals, metadata_of, table_of
from hftlab.core.errors import ConfigError, JournalError
from hftlab.core.rows import CONT, RowArray
from hftlab.journal import JournalWriter

__all__ = [
    "CsvDestination",
    "Destination",
    "JournalDestination",
    "ParquetDestination",
    "TableFile",
    "beside",
    "writing",
]

_GROUP_BYTES = 1 << 25  # of a group of lines in memory, at 8 a value
_LONGEST_APPEND = 1 << 16


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what keeps `path` from being written in words; what was begun of it is removed by who began it.

    Raises
    ------
    ConfigError
        Where the system or the journal refuses: the disk is full, the folder may not be written in, a limit is hit.
    """
    try:
        yield
    except (OSError, JournalError) as error:
        system = error if isinstance(error, OSError) else error.__cause__
        number = system.errno if isinstance(system, OSError) else None
        reason = _SYSTEM.get(number or 0) or str(error).splitlines()[0]
        raise ConfigError(
            f"{path} cannot be written: {reason}. Expected a folder that can be written in, with room for the whole of "
            "it; nothing was left there: give another destination, or make room"
        ) from error


_SYSTEM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EFBIG: "files may not grow any larger",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}


def beside(path: Path, *, overwrite: bool) -> Path:
    """Return where to write what will stand at `path`, which is free; remove what an interrupted run left there.

    Raises
    ------
    ConfigError
        If there is something at `path` and it is not to be replaced (a folder that is not a journal never is), or its
        folder does not exist.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; give another destination, or --overwrite")
    if path.is_dir() and not _is_journal(path):
        raise ConfigError(f"{path} is a folder that is not a journal; --overwrite does not remove it")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"there is no folder {path.resolve().parent} to write {path.name} in")
    part = path.with_name(f".{path.name}.part")
    _remove(part)
    return part


def _is_journal(folder: Path) -> bool:
    """Return whether nothing but a journal's files is in a folder."""
    return all(one.suffix in (".seg", ".seal") or one.name in ("lock", "bell") for one in folder.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Destination(ABC):
    """Takes blocks of whole rows.

    Parameters
    ----------
    path : Path
        Where it will stand.
    source : Source
        Whose rows they are: its instruments and definitions.
    overwrite : bool
        Replace what stands there.
    """

    format = ""

    def __init__(self, path: Path, source: Source, *, overwrite: bool = False) -> None:
        self.path = path
        self.source = source
        self.notes: dict[str, int] = {}
        self.part = beside(path, overwrite=overwrite)

    @abstractmethod
    def write(self, rows: RowArray, seqs: npt.NDArray[np.int64]) -> None:
        """Take a block of rows, and their full numbers."""

    @abstractmethod
    def _close(self, whole: bool) -> None:
        """Write what is left if it is whole, and close the files."""

    def finish(self) -> None:
        """Complete it and move it in place."""
        self._close(True)
        if self.path.exists() and (self.path.is_dir() or self.part.is_dir()):  # a folder replaces nothing by itself
            _remove(self.path)
        os.replace(self.part, self.path)

    def abandon(self) -> None:
        """Leave nothing."""
        with suppress(OSError, JournalError, pa.ArrowException):  # what cannot be closed is removed all the same
            self._close(False)
        _remove(self.part)


class JournalDestination(Destination):
    """A journal's folder."""

    format = "journal"

    def __init__(self, path: Path, source: Source, *, overwrite: bool = False) -> None:
        super().__init__(path, source, overwrite=overwrite)
        self._ids: set[int] = set()
        self._writer: JournalWriter | None = None

    def _open(self) -> JournalWriter:
        instruments = self.source.instruments
        ids = {i.id for i in instruments}
        if self._writer is None or not ids <= self._ids:
            if self._writer is not None:
                self._writer.close()
            named = {"instruments": [i.to_dict() for i in instruments]}
            origin = {"converted_from": {"format": self.source.format, "name": self.source.path.name}}
            definitions = {**(self.source.definitions or origin), **named}
            definitions.pop("checkpoint", None)
            self._writer = JournalWriter(self.part, definitions, fsync_ms=None)
            self._ids = ids
        return self._writer

    def write(self, rows: RowArray, seqs: npt.NDArray[np.int64]) -> None:
        """Append a block, atom by atom."""
        writer = self._open()
        at = 0
        while at < len(rows):
            end = _cut(rows, at)
            writer.append(rows[at:end])
            at = end

    def _close(self, whole: bool) -> None:
        if whole:
            self._open()
        if self._writer is not None:
            self._writer.close()
            reason, self._writer = self._writer.halt_reason, None
            if whole and reason:
                raise ConfigError(f"{self.path}: {reason}")


def _cut(rows: RowArray, at: int) -> int:
    """Return where a piece from `at` may end: behind an atom, and not much longer than one append should be."""
    end = min(len(rows), at + _LONGEST_APPEND)
    if end == len(rows):
        return end
    whole = whole_atoms(rows[at:end])
    return at + whole if whole else len(rows)


class TableFile:
    """A file of lines in columns, Parquet or CSV, written in groups of some 32 MB.

    Parameters
    ----------
    path : Path
    schema : pyarrow.Schema
    as_csv : bool
        CSV; Parquet otherwise (Zstandard, dictionaries for names, a checksum for each page).
    """

    def __init__(self, path: Path, schema: pa.Schema, *, as_csv: bool) -> None:
        self._group = max(1, _GROUP_BYTES // (8 * len(schema)))
        self._held: list[pa.Table] = []
        self._n = 0
        self.schema = schema
        self._parquet: Any = None
        self._csv: Any = None
        if as_csv:
            self._csv = pa_csv.CSVWriter(str(path), schema, write_options=pa_csv.WriteOptions(quoting_style="needed"))
        else:
            names = [f.name for f in schema if pa.types.is_dictionary(f.type)]
            self._parquet = pq.ParquetWriter(
                str(path), schema, compression="zstd", use_dictionary=names, write_page_checksum=True
            )

    def write(self, table: pa.Table) -> None:
        """Take some lines."""
        self._held.append(table)
        self._n += len(table)
        if self._n >= self._group:
            self._flush()

    def close(self, metadata: bytes = b"") -> None:
        """Write what is left, and `metadata` into a Parquet file."""
        self._flush()
        if self._parquet is not None:
            if metadata:
                self._parquet.add_key_value_metadata({METADATA_KEY: metadata})
            self._parquet.close()
        else:
            self._csv.close()

    def _flush(self) -> None:
        if self._held:
            table = pa.concat_tables(self._held).unify_dictionaries().combine_chunks()
            (self._parquet or self._csv).write_table(table)
        self._held, self._n = [], 0


class ParquetDestination(Destination):
    """One Parquet file; its columns are those of `hftlab.convert.table`."""

    format = "parquet"

    def __init__(self, path: Path, source: Source, *, overwrite: bool = False) -> None:
        super().__init__(path, source, overwrite=overwrite)
        self._file = TableFile(self.part, SCHEMA, as_csv=False)

    def write(self, rows: RowArray, seqs: npt.NDArray[np.int64]) -> None:
        """Write a block as lines."""
        self._file.write(table_of(rows, seqs, self.source.instruments))

    def _close(self, whole: bool) -> None:
        source = self.source
        self._file.close(metadata_of(source.instruments, source.first_seq, source.definitions))


_CSV_SCHEMA = pa.schema(
    [
        ("seq", pa.int64()), ("ts_recv", pa.int64()), ("ts_event", pa.int64()), ("source", pa.uint16()),
        ("kind", pa.string()), ("instrument", pa.uint32()), ("symbol", pa.string()), ("flags", pa.uint16()),
        ("code", pa.uint16()), ("px", pa.string()), ("qty", pa.string()), ("px_ticks", pa.int64()),
        ("qty_lots", pa.int64()), ("a", pa.uint64()), ("b", pa.uint64()), ("payload", pa.string()),
    ]
)  # fmt: skip


class CsvDestination(Destination):
    """One CSV file: the Parquet columns, times as ns, exact decimals beside the counts, payloads in hexadecimal."""

    format = "csv"

    def __init__(self, path: Path, source: Source, *, overwrite: bool = False) -> None:
        super().__init__(path, source, overwrite=overwrite)
        self._file = TableFile(self.part, _CSV_SCHEMA, as_csv=True)

    def write(self, rows: RowArray, seqs: npt.NDArray[np.int64]) -> None:
        """Write a block as lines."""
        instruments = self.source.instruments
        table = table_of(rows, seqs, instruments)
        head = rows[rows["kind"] != CONT]
        ids, px, qty = (np.ascontiguousarray(head[name]) for name in ("instrument", "px", "qty"))
        payload = [None if p is None else p.hex() for p in table.column("payload").to_pylist()]
        columns = {name: table.column(name) for name in table.column_names}
        for name in ("ts_recv", "ts_event"):
            columns[name] = columns[name].cast(pa.int64())
        for name in ("kind", "symbol"):
            columns[name] = columns[name].cast(pa.string())
        columns["px"] = pa.array(decimals(px, ids, instruments, "px"), pa.string())
        columns["qty"] = pa.array(decimals(qty, ids, instruments, "qty"), pa.string())
        columns["payload"] = pa.array(payload, pa.string())
        self._file.write(pa.table([columns[name] for name in _CSV_SCHEMA.names], schema=_CSV_SCHEMA))

    def _close(self, whole: bool) -> None:
        self._file.close()
