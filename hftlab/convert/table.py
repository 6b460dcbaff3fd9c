"""Rows as a table, and back: the columns that Parquet and CSV files of hftlab have.

One line a row; the payload rows that follow a row are one value of it. Nothing is lost: the Parquet table gives back
the very bytes of every row (`rows_of`).

=========  =================  ======================================================================================
column     type               meaning
=========  =================  ======================================================================================
seq        int64              number of the row in its journal; payload rows count
ts_recv    timestamp ns UTC   when we received it
ts_event   timestamp ns UTC   the venue's time; null where it gives none
source     uint16             which input of the session
kind       string             `hftlab.core.rows.Kind`
instrument uint32             id; the instruments with tick and lot are in the file's metadata under ``hftlab``
symbol     string             the instrument's name; null where it is not known
flags      uint16             `hftlab.core.rows.Flag`
code       uint16             an enum by kind
px_ticks   int64              price in the instrument's ticks; null where there is none
qty_lots   int64              quantity in its lots
a, b       uint64             by kind: order references, venue sequences, trade ids
payload    binary             the bytes of the payload rows; null where there are none
=========  =================  ======================================================================================

In a CSV file times are ns since 1970, and ``px`` and ``qty`` stand beside the counts as exact decimals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import Instrument
from hftlab.core.rows import CONT, NAT, NO_PX, Kind, RowArray, new_rows

__all__ = ["METADATA_KEY", "SCHEMA", "decimals", "metadata_of", "rows_of", "table_of"]

METADATA_KEY = b"hftlab"
"""Key of a file's metadata: JSON with ``schema``, ``instruments``, ``first_seq`` and a journal's ``definitions``."""

_TIME = pa.timestamp("ns", "UTC")
_NAMES = pa.dictionary(pa.int16(), pa.string())
SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("ts_recv", _TIME),
        ("ts_event", _TIME),
        ("source", pa.uint16()),
        ("kind", _NAMES),
        ("instrument", pa.uint32()),
        ("symbol", pa.dictionary(pa.int32(), pa.string())),
        ("flags", pa.uint16()),
        ("code", pa.uint16()),
        ("px_ticks", pa.int64()),
        ("qty_lots", pa.int64()),
        ("a", pa.uint64()),
        ("b", pa.uint64()),
        ("payload", pa.binary()),
    ]
)
"""Columns of a Parquet file of rows."""

_KIND_NAMES = [str(n) for n in range(256)]
for _kind in Kind:
    _KIND_NAMES[_kind] = _kind.name
_KINDS = {name: n for n, name in enumerate(_KIND_NAMES)}
_KIND_VALUES = pa.array(_KIND_NAMES, pa.string())


def table_of(rows: RowArray, seqs: npt.NDArray[np.int64], instruments: Sequence[Instrument]) -> pa.Table:
    """Return whole rows (payload rows behind their heads) as a table of `SCHEMA`.

    Parameters
    ----------
    rows : ROW array, shape (n,)
    seqs : int64 array, shape (n,)
        Full number of each row.
    instruments : sequence of Instrument
    """
    heads = np.flatnonzero(rows["kind"] != CONT)
    head = rows[heads]
    columns = {name: np.ascontiguousarray(head[name]) for name in ("source", "instrument", "flags", "code", "a", "b")}
    px, ts_event = np.ascontiguousarray(head["px"]), np.ascontiguousarray(head["ts_event"])
    arrays: dict[str, Any] = {name: pa.array(column) for name, column in columns.items()}
    arrays["seq"] = pa.array(seqs[heads])
    arrays["ts_recv"] = pa.array(np.ascontiguousarray(head["ts_recv"])).view(_TIME)
    arrays["ts_event"] = pa.array(ts_event, mask=ts_event == NAT).view(_TIME)
    arrays["kind"] = pa.DictionaryArray.from_arrays(pa.array(head["kind"].astype(np.int16)), _KIND_VALUES)
    arrays["symbol"] = _symbols(columns["instrument"], instruments)
    arrays["px_ticks"] = pa.array(px, mask=px == NO_PX)
    arrays["qty_lots"] = pa.array(np.ascontiguousarray(head["qty"]))
    arrays["payload"] = _payloads(rows, heads, head)
    return pa.table([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def _symbols(ids: npt.NDArray[np.uint32], instruments: Sequence[Instrument]) -> pa.DictionaryArray:
    places = {i.id: n for n, i in enumerate(instruments)}
    unique, inverse = np.unique(ids, return_inverse=True)
    codes = np.array([places.get(int(n), -1) for n in unique], np.int32)[inverse]
    names = pa.array([i.symbol for i in instruments], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), names)


def _payloads(rows: RowArray, heads: npt.NDArray[np.intp], head: RowArray) -> pa.Array:
    spans = np.ascontiguousarray(head["span"]).astype(np.int64)
    if not spans.any():
        return pa.nulls(len(heads), pa.binary())
    raw = rows.view(np.uint8).reshape(-1, 64)[:, 8:]
    values: list[bytes | None] = [None] * len(heads)
    for n in np.flatnonzero(spans).tolist():
        values[n] = raw[heads[n] + 1 : heads[n] + 1 + spans[n]].tobytes()
    return pa.array(values, pa.binary())


def rows_of(table: pa.Table) -> RowArray:
    """Return the rows that a table of `SCHEMA` was made from, payload rows included.

    Raises
    ------
    ConfigError
        If a column is missing, or a row's kind is unknown.
    """
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ConfigError(f"the table has no column {missing[0]}; expected the columns {', '.join(SCHEMA.names)}")

    def column(name: str, absent: int = 0) -> npt.NDArray[Any]:
        values = table.column(name).combine_chunks()
        if pa.types.is_timestamp(values.type):
            values = values.view(pa.int64())
        return np.asarray(values.fill_null(absent) if values.null_count else values)

    payload = table.column("payload")
    payloads = payload.to_pylist() if payload.null_count < len(payload) else []
    spans = np.zeros(table.num_rows, np.int64)
    spans[: len(payloads)] = [0 if p is None else len(p) // 56 for p in payloads]
    places = np.arange(table.num_rows) + np.cumsum(spans) - spans
    rows = new_rows(int(len(spans) + spans.sum()))
    kinds = table.column("kind").unify_dictionaries().combine_chunks() if table.num_rows else None
    heads = new_rows(len(spans))
    if kinds is not None:
        kinds = kinds.chunk(0) if isinstance(kinds, pa.ChunkedArray) else kinds
        names = kinds.dictionary.to_pylist()
        strange = [name for name in names if name not in _KINDS]
        if strange:
            raise ConfigError(f"the table has a row of kind {strange[0]!r}; expected one of hftlab.core.rows.Kind")
        numbers = np.array([_KINDS[name] for name in names], np.uint8)
        heads["kind"] = numbers[np.asarray(kinds.indices)]
    heads["seq"] = column("seq") & 0xFFFFFFFF
    heads["span"] = spans
    for name in ("source", "ts_recv", "instrument", "flags", "code", "a", "b"):
        heads[name] = column(name)
    heads["ts_event"] = column("ts_event", NAT)
    heads["px"], heads["qty"] = column("px_ticks", NO_PX), column("qty_lots")
    raw = rows.view(np.uint8).reshape(-1, 64)
    raw[places] = heads.view(np.uint8).reshape(-1, 64)
    for n in np.flatnonzero(spans).tolist():
        first, span = int(places[n]) + 1, int(spans[n])
        raw[first : first + span, 8:] = np.frombuffer(payloads[n], np.uint8).reshape(span, 56)
        raw[first : first + span, :8] = raw[first - 1, :8]
        raw[first : first + span, 6] = CONT
    return rows


def metadata_of(
    instruments: Sequence[Instrument], first_seq: int = 0, definitions: dict[str, Any] | None = None
) -> bytes:
    """Return what a file's metadata says under `METADATA_KEY`."""
    plain = {
        "schema": 1,
        "first_seq": first_seq,
        "instruments": [i.to_dict() for i in instruments],
        "definitions": {k: v for k, v in (definitions or {}).items() if k != "instruments"},
    }
    return msgspec.json.encode(plain)


def decimals(
    counts: npt.NDArray[np.int64], ids: npt.NDArray[np.uint32], instruments: Sequence[Instrument], what: str
) -> list[str | None]:
    """Return counts of ticks (`what` ``"px"``) or lots (``"qty"``) as exact decimals; None where there is none."""
    known = {i.id: (i.px if what == "px" else i.qty) for i in instruments}
    told: dict[tuple[int, int], str | None] = {}
    texts: list[str | None] = []
    for pair in zip(ids.tolist(), counts.tolist(), strict=True):
        if pair not in told:
            instrument, count = pair
            convert = known.get(instrument)
            told[pair] = None if convert is None or count == NO_PX else format(convert(count), "f")
        texts.append(told[pair])
    return texts
