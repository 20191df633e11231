"""Writes a data set with other answers: in its own format, whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purifier.data.columns import CAPTION_KEYS, QUESTION, QUESTION_KEYS, answer_key
from purifier.data.dataset import BadRow, DataSet, read_row
from purifier.data.further_ids import FurtherIds
from purifier.data.records import further_record, kind_of, replace_answers
from purifier.data.sample import IMAGE_MARK, Place, Sample
from purifier.data.side_table import SIDE_FILE, SideRow, SideTable

NOT_PROCESSED = "not_processed"
"""Reason of a row that no change speaks of."""

UNUSABLE_ANSWER = "unusable_answer"
"""Reason of a row whose new answer is empty or holds an image mark."""

__all__ = [
    "NOT_PROCESSED",
    "SIDE_FILE",
    "UNUSABLE_ANSWER",
    "Change",
    "Scalar",
    "write_changed",
]

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Change:
    """What becomes of one row.

    Attributes:
        record: The row's number.
        answers: The new texts of all assistant turns, in order; None keeps the old ones.
        dropped: Whether the row is left out of what is written, and `further` with it.
        side: Further columns of the side table, such as `flagged`, `mask_ratio`, `seconds` or
            the `reason` why the row is left out.
        further: Other questions about the row's images and their answers: rows of their own,
            written behind it.
    """

    record: int
    answers: tuple[str, ...] | None = None
    dropped: bool = False
    side: Mapping[str, Scalar] = field(default_factory=dict)
    further: tuple[tuple[str, str], ...] = ()


def write_changed(
    dataset: DataSet, changes: Iterable[Change], out: Path, *, further: bool = False
) -> Path:
    """Writes a data set as its changes say, and a side table of all its rows.

    Records keep their format, their unknown keys and the order of both. A row that is bad, or
    that no change speaks of, is left out, and the side table says why: an answer that was not
    purified is never passed on. Images are not copied; the new file names them as the old one.

    Args:
        dataset: The original; stays as it is.
        changes: In the order of their records, at most one a record.
        out: Folder for the new label file and `side.parquet`. If it exists, it is replaced
            once all is written.
        further: Whether a change may have further rows. They get ids that no other row has,
            which takes another pass over the original.

    Returns:
        The new label file; the folder if the original has several.

    Raises:
        DataError: If the original cannot be read.
        ValueError: If the changes are out of order, name a record that is not there, or have
            another number of answers than the record.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    part.mkdir()
    try:
        with SideTable(part / SIDE_FILE) as side:
            ids = FurtherIds(dataset) if further else None
            editor = _Editor(iter(changes), side, ids, mark_images=dataset.mark_images)
            columns = _question_column(dataset) if further else ()
            written = dataset.file.rewrite(part, editor.edit, columns=columns)
            editor.finish()
        _sync(part)
        _put(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out / written.relative_to(part)


class _Editor:
    """Applies the changes to the records that pass by."""

    def __init__(
        self,
        changes: Iterator[Change],
        side: SideTable,
        ids: FurtherIds | None,
        *,
        mark_images: bool,
    ) -> None:
        self._mark_images = mark_images
        self._changes = changes
        self._side = side
        self._ids = ids
        self._next = next(changes, None)

    def edit(self, place: Place, record: Any) -> list[Any]:
        """The records to write, none to leave it out; writes the row's line of the side table."""
        change = self._take(place.record)
        row = read_row(record, place, mark_images=self._mark_images)
        side = dict(change.side) if change else {}
        if isinstance(row, BadRow):
            self._side.add(SideRow(place.record, None, side={**side, "reason": row.reason}))
            return []
        if change is None:
            side["reason"] = NOT_PROCESSED
        elif change.answers is not None:
            self._require_answers(change, row)
            if not all(map(_is_usable, _changed(row.answers, change.answers))):
                side.setdefault("reason", UNUSABLE_ANSWER)
                change = None
        dropped = change is None or change.dropped
        new = row.answers if change is None or change.answers is None else change.answers
        further = [] if change is None or dropped else self._further(row, record, change)
        if further:
            side["further"] = len(further)
        self._side.add(SideRow(place.record, row.id, row.answers, new, dropped, side))
        if dropped:
            return []
        return [record if new == row.answers else replace_answers(record, new), *further]

    def _further(self, row: Sample, record: dict[str, Any], change: Change) -> list[Any]:
        """The records of the other questions about a row's images."""
        if change.further and self._ids is None:
            raise ValueError(f"record {change.record}: write_changed(further=True) adds rows")
        return [
            further_record(record, self._ids.next(row.id) if self._ids else None, *pair)
            for pair in change.further
            if all(map(_is_usable, pair))
        ]

    def finish(self) -> None:
        """Refuses changes that were not used."""
        if self._next is not None:
            raise ValueError(f"there is no record {self._next.record}, or it came out of order")

    def _take(self, record: int) -> Change | None:
        change = self._next
        if change is None or change.record != record:
            return None
        self._next = next(self._changes, None)
        return change

    @staticmethod
    def _require_answers(change: Change, row: Sample) -> None:
        assert change.answers is not None
        if len(change.answers) != len(row.answers):
            raise ValueError(
                f"record {change.record}: expected {len(row.answers)} answers, "
                f"got {len(change.answers)}"
            )


def _changed(old: tuple[str, ...], new: tuple[str, ...]) -> list[str]:
    """The answers that are not the row's own; its own may hold a typed mark, which is text."""
    return [text for before, text in zip(old, new, strict=True) if text != before]


def _is_usable(text: str) -> bool:
    return bool(text.strip()) and IMAGE_MARK not in text


def _question_column(dataset: DataSet) -> tuple[str, ...]:
    """The column that a table lacks if further rows of its captions get questions."""
    if dataset.file.kind != "parquet":
        return ()
    for _, record in dataset.file.records():
        if not isinstance(record, Mapping):
            continue
        # Every record of a table has the same keys.
        if any(key in record for key in QUESTION_KEYS) or not record.keys() & {*CAPTION_KEYS}:
            return ()
        if kind_of(record) == "columns" and answer_key(record) is not None:
            return (QUESTION,)
    return ()


def _sync(folder: Path) -> None:
    """Waits until everything in a folder lies on the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put(part: Path, out: Path) -> None:
    """Moves a folder to its place; one that stands there is taken away first."""
    old = part.with_suffix(".old")
    if out.exists():
        os.replace(out, old)
    os.replace(part, out)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    shutil.rmtree(old, ignore_errors=True)
