"""The table beside a purified data set: what happened to every row, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SIDE_FILE = "side.parquet"

_GROUP_ROWS = 1024
_CORE = (
    pa.field("record", pa.int64(), nullable=False),
    pa.field("id", pa.string()),
    pa.field("old_answers", pa.list_(pa.string()), nullable=False),
    pa.field("new_answers", pa.list_(pa.string()), nullable=False),
    pa.field("changed", pa.bool_(), nullable=False),
    pa.field("dropped", pa.bool_(), nullable=False),
)
_USUAL = {
    "reason": pa.string(),
    "flagged": pa.bool_(),
    "mask_ratio": pa.float64(),
    "seconds": pa.float64(),
}
_MORE = "more"


@dataclass(frozen=True)
class SideRow:
    """One row's line.

    Attributes:
        record: The row's number.
        id: The row's own id.
        old_answers: Texts of its assistant turns; none if the row cannot be read.
        new_answers: The same afterwards.
        dropped: Whether the row was left out.
        side: Further columns.
    """

    record: int
    id: str | int | None
    old_answers: tuple[str, ...] = ()
    new_answers: tuple[str, ...] = ()
    dropped: bool = True
    side: Mapping[str, Any] = field(default_factory=dict)


class SideTable:
    """Writes `side.parquet` row by row.

    Besides the fixed columns and `reason`, `flagged`, `mask_ratio` and `seconds`, every key of
    the first 1024 rows becomes a column of numbers, truth values or text; what does not fit a
    column stands as JSON in the column `more`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[SideRow] = []
        self._writer: pq.ParquetWriter | None = None
        self._columns: dict[str, pa.DataType] = {}

    def __enter__(self) -> SideTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()

    def add(self, row: SideRow) -> None:
        """Adds a row."""
        self._held.append(row)
        if len(self._held) == _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._columns = _columns(self._held)
            fields = [pa.field(name, kind) for name, kind in self._columns.items()]
            schema = pa.schema([*_CORE, *fields, pa.field(_MORE, pa.string())])
            self._writer = pq.ParquetWriter(self._path, schema)
        lines = [self._line(row) for row in self._held]
        self._writer.write_table(pa.Table.from_pylist(lines, self._writer.schema))
        self._held.clear()

    def _line(self, row: SideRow) -> dict[str, Any]:
        fits = {
            name: value
            for name, value in row.side.items()
            if name in self._columns and _kind(value) in (None, self._columns[name])
        }
        more = {name: value for name, value in row.side.items() if name not in fits}
        return {
            "record": row.record,
            "id": None if row.id is None else str(row.id),
            "old_answers": list(row.old_answers),
            "new_answers": list(row.new_answers),
            "changed": row.old_answers != row.new_answers,
            "dropped": row.dropped,
            **fits,
            _MORE: json.dumps(more) if more else None,
        }


def _columns(rows: list[SideRow]) -> dict[str, pa.DataType]:
    """Names and types of the further columns."""
    columns = dict(_USUAL)
    taken = {_MORE, *(known.name for known in _CORE)}
    for row in rows:
        for name, value in row.side.items():
            kind = _kind(value)
            if name not in taken and kind is not None:
                columns.setdefault(name, kind)
    return columns


def _kind(value: Any) -> pa.DataType | None:
    """The column type of a value; None for none."""
    if value is None:
        return None
    if isinstance(value, bool):
        return pa.bool_()
    return pa.float64() if isinstance(value, int | float) else pa.string()
