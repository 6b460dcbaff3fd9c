"""Parquet files of rows, as `hftlab.convert` writes them, read back: the way from a table to a journal."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from hftlab.convert.source import BLOCK_ROWS, Source, whole_atoms
from hftlab.convert.table import METADATA_KEY, rows_of
from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import RowArray, join_rows, new_rows

__all__ = ["ParquetSource"]

_BUFFER = 1 << 20


class ParquetSource(Source):
    """A Parquet file that hftlab wrote; where its pages have checksums, they are held to them.

    Raises
    ------
    ConfigError
        If it is no such file.
    """

    format = "parquet"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._first = 0  # full number of the first row of the piece given last
        try:
            file = self._opened()
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        with file:
            told = (file.metadata.metadata or {}).get(METADATA_KEY)
        if told is None:
            raise ConfigError(f"{path} is a Parquet file of other columns: it has no metadata {METADATA_KEY!r}")
        plain: dict[str, Any] = msgspec.json.decode(told)
        self.first_seq = int(plain["first_seq"])
        self._instruments = [Instrument.from_dict(one) for one in plain["instruments"]]
        self.definitions = plain["definitions"]

    def _opened(self) -> pq.ParquetFile:
        """Open it to be read column piece by column piece, not a whole group of each, each page by its checksum."""
        return pq.ParquetFile(self.path, buffer_size=_BUFFER, page_checksum_verification=True)

    @property
    def instruments(self) -> list[Instrument]:
        """Return those that the file names."""
        return list(self._instruments)

    def _rows(self) -> Iterator[RowArray]:
        """Yield the rows of one group of lines after another; a damaged group is told and passed over."""
        done = 0
        with self._opened() as file:
            lines = max(1, file.metadata.num_rows)
            for group in range(file.num_row_groups):  # one at a time: a reader of many keeps what it has read of each
                try:
                    for batch in file.iter_batches(BLOCK_ROWS, row_groups=[group], use_threads=False):
                        rows = rows_of(pa.Table.from_batches([batch]))
                        done += batch.num_rows
                        self.position = int(Decimal(self.size) * done / lines)
                        self._first = int(batch.column(0)[0].as_py()) if batch.num_rows else self._first
                        yield rows
                except (pa.ArrowException, ConfigError, OSError) as error:
                    reason = str(error).splitlines()[0]
                    self._tell(_begin(file, group), f"group {group} of the lines is damaged in what follows: {reason}")

    def __iter__(self) -> Iterator[RowArray]:
        """Yield blocks that end where an atom ends: the flags say where."""
        self.position, self.problems, self.broken, self.notes = 0, [], 0, {}
        held, seq = new_rows(0), 0
        for piece in self._rows():
            if len(held) and self._first != seq + len(held):  # lines are missing between
                self.seq = seq
                yield held
                held = new_rows(0)
            seq = seq if len(held) else self._first
            rows = join_rows([held, piece]) if len(held) else piece
            end = whole_atoms(rows)
            if end:
                self.seq = seq
                yield rows[:end]
            held, seq = rows[end:], seq + end
        if len(held):
            self.seq = seq
            yield held


def _begin(file: pq.ParquetFile, group: int) -> int:
    """Return the byte at which a group of lines begins."""
    first = file.metadata.row_group(group).column(0)
    return int(first.dictionary_page_offset if first.has_dictionary_page else first.data_page_offset)
