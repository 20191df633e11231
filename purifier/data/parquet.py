"""Parquet files, as Hugging Face's `datasets` writes them, one or several in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from purifier.data.json_lines import unreadable
from purifier.data.label_file import Edit, malformed
from purifier.data.sample import Place
from purifier.errors import DataError, RowError
from purifier.messages import quoted

_BATCH_ROWS = 64
_GROUP_ROWS = 1024
_GROUP_BYTES = 32 * 2**20
_NOTES = b"huggingface"
_UNREADABLE = (ValueError, OverflowError, pa.ArrowException)
_TEXT_FEATURE = {"dtype": "string", "_type": "Value"}


class Parquet:
    """One parquet file or a folder of them.

    Row groups outside a range are not read. Arrow decodes a row group as a whole, so memory
    follows the size of the largest one, not of the file.
    """

    kind = "parquet"

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        """Takes the files in order.

        Args:
            paths: The files.
            root: The folder that `rewrite` keeps their names relative to; the file itself
                where there is only one.
        """
        self.paths = tuple(paths)
        self._root = root

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Place, Any]]:
        for path, numbers, batch in self._batches(start, stop):
            yield from _records(batch, [Place(path.name, number) for number in numbers])

    def rewrite(self, folder: Path, edit: Edit, *, columns: Sequence[str] = ()) -> Path:
        for index, path in enumerate(self.paths):
            single = path == self._root
            target = folder / (path.name if single else path.relative_to(self._root))
            target.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite_file(index, target, edit, columns)
        return folder / self._root.name if self.paths == (self._root,) else folder

    @cached_property
    def _groups(self) -> list[tuple[int, int, int, int]]:
        """File, row group, number of its first row and of the row after its last."""
        groups = []
        first = 0
        for index, path in enumerate(self.paths):
            with _opened(path) as file:
                for group in range(file.num_row_groups):
                    end = first + file.metadata.row_group(group).num_rows
                    groups.append((index, group, first, end))
                    first = end
        return groups

    def _batches(
        self, start: int, stop: int | None, only: int | None = None
    ) -> Iterator[tuple[Path, range, pa.RecordBatch]]:
        """Rows of a range, some at a time, with their numbers."""
        for index, group, first, end in self._groups:
            last = end if stop is None else min(end, stop)
            if last <= max(first, start) or only not in (None, index):
                continue
            path = self.paths[index]
            with _opened(path) as file:
                number = first
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    low = max(start - number, 0)
                    high = min(last - number, len(batch))
                    if low < high:
                        yield path, range(number + low, number + high), batch[low:high]
                    number += len(batch)
                    if number >= last:
                        break

    def _rewrite_file(self, index: int, target: Path, edit: Edit, columns: Sequence[str]) -> None:
        with _opened(self.paths[index]) as file:
            schema, compression = _widened(file.schema_arrow, columns), _compression(file)
        with pq.ParquetWriter(target, schema, compression=compression) as writer:
            held: list[pa.RecordBatch] = []
            for path, numbers, batch in self._batches(0, None, only=index):
                places = [Place(path.name, number) for number in numbers]
                held.append(_edited(_filled(batch, schema), places, edit))
                if sum(map(len, held)) >= _GROUP_ROWS or (
                    sum(part.nbytes for part in held) >= _GROUP_BYTES
                ):
                    writer.write_table(pa.Table.from_batches(held, schema))
                    held.clear()
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))


def _records(batch: pa.RecordBatch, places: Sequence[Place]) -> list[tuple[Place, Any]]:
    """The rows of a batch; instead of one that Python cannot hold its `RowError`."""
    try:
        return list(zip(places, batch.to_pylist(), strict=True))
    except _UNREADABLE:
        return [(place, _record(batch[row : row + 1], place)) for row, place in enumerate(places)]


def _record(row: pa.RecordBatch, place: Place) -> Any | RowError:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except _UNREADABLE:
            return malformed(place, f"{quoted(name)} cannot be read; is its text UTF-8?")
    return row.to_pylist()[0]


def _edited(batch: pa.RecordBatch, places: Sequence[Place], edit: Edit) -> pa.RecordBatch:
    """A batch of the edited records: columns that changed are rebuilt, the others are taken."""
    old = [record for _, record in _records(batch, places)]
    new = [(row, record) for row, place in enumerate(places) for record in edit(place, old[row])]
    known = set(batch.schema.names)
    if any(not record.keys() <= known for _, record in new):
        raise ValueError("an edited record has a key that is no column of its table")
    batch = batch.take(pa.array([row for row, _ in new], pa.int64()))
    for column, field in enumerate(batch.schema):
        values = [record[field.name] for _, record in new]
        before = [old[row][field.name] for row, _ in new]
        if any(value is not kept for value, kept in zip(values, before, strict=True)):
            batch = batch.set_column(column, field, _column(values, field, places))
    return batch


def _column(values: list[Any], field: pa.Field, places: Sequence[Place]) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError):
        raise DataError(
            f"{places[0].file}: the column {field.name} is of the type {field.type}, which cannot "
            "hold what is to be written there; store it as text."
        ) from None


def _widened(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """A schema with further columns of text, also in the notes of `datasets` about it."""
    missing = [name for name in columns if name not in schema.names]
    for name in missing:
        schema = schema.append(pa.field(name, pa.string()))
    notes = (schema.metadata or {}).get(_NOTES)
    if not missing or notes is None:
        return schema
    try:
        known = json.loads(notes)
        known["info"]["features"] |= dict.fromkeys(missing, _TEXT_FEATURE)
    except (ValueError, KeyError, TypeError):
        raise DataError("What `datasets` has noted in the parquet file is damaged.") from None
    return schema.with_metadata({**schema.metadata, _NOTES: json.dumps(known).encode()})


def _filled(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with nothing in the columns that it lacks."""
    for field in list(schema)[len(batch.schema) :]:
        batch = batch.append_column(field, pa.nulls(len(batch), field.type))
    return batch


def _compression(file: pq.ParquetFile) -> str:
    if not file.num_row_groups or not file.metadata.num_columns:
        return "SNAPPY"
    name: str = file.metadata.row_group(0).column(0).compression
    return "NONE" if name == "UNCOMPRESSED" else name


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow says what is wrong with the content by an OSError without a number, too, and
        # decodes the names of the columns as it opens a file.
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path) from None
        raise DataError(f"{path.name} is damaged or no parquet file.") from None
