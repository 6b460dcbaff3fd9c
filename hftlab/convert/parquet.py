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
from hftlab.core.rows import RowArray, join_rows

__all__ = ["ParquetSource"]

_BUFFER = 1 << 20  # read columns piece by piece, not a whole row group of each


class ParquetSource(Source):
    """A Parquet file that hftlab wrote.

    Raises
    ------
    ConfigError
        If it is no such file.
    """

    format = "parquet"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            file = pq.ParquetFile(path)
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

    @property
    def instruments(self) -> list[Instrument]:
        """Return those that the file names."""
        return list(self._instruments)

    def _rows(self) -> Iterator[RowArray]:
        offsets = 0
        with pq.ParquetFile(self.path, buffer_size=_BUFFER) as file:
            lines = max(1, file.metadata.num_rows)
            # one row group at a time: a reader of many keeps what it has read of each
            groups = range(file.num_row_groups)
            batches = (b for g in groups for b in file.iter_batches(BLOCK_ROWS, row_groups=[g], use_threads=False))
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowInvalid, OSError) as error:
                    self._tell(self.position, f"the file is damaged from here on: {str(error).splitlines()[0]}")
                    return
                if batch is None:
                    break
                offsets += batch.num_rows
                self.position = int(Decimal(self.size) * offsets / lines)
                yield rows_of(pa.Table.from_batches([batch]))

    def __iter__(self) -> Iterator[RowArray]:
        """Yield blocks that end where an atom ends: the flags say where."""
        self.position, self.problems, self.broken, self.notes = 0, [], 0, {}
        held: RowArray | None = None
        for piece in self._rows():
            rows = piece if held is None else join_rows([held, piece])
            end = whole_atoms(rows)
            if end:
                yield rows[:end]
            held = rows[end:] if end < len(rows) else None
        if held is not None:
            yield held
