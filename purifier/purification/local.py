"""Purifying a whole data set in one process, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from purifier.data.audit import BadRowLimit, RowAudit
from purifier.data.dataset import BadRow, DataSet, check_row
from purifier.data.sample import Sample
from purifier.data.write_back import Change, write_changed
from purifier.purification.purifier import Purifier
from purifier.purification.row import PurifiedRow

_BATCHES = 4


@dataclass
class Tally:
    """What became of the rows of a data set.

    Attributes:
        rows: Rows of the data set.
        bad: Rows that cannot be used; left out.
        relabelled: Samples with a new answer.
        flagged: Samples whose label disagrees with what the masked model sees.
        dropped: Samples that were left out, problems included.
        problems: Samples that could not be purified.
        further: Samples made by further prompts.
        remarks: What the reader had to assume, one sentence a kind.
    """

    rows: int = 0
    bad: int = 0
    relabelled: int = 0
    flagged: int = 0
    dropped: int = 0
    problems: int = 0
    further: int = 0
    remarks: tuple[str, ...] = ()

    def add(self, row: PurifiedRow) -> None:
        """Counts one purified row."""
        self.relabelled += row.answers is not None
        self.flagged += row.flagged is True
        self.dropped += row.dropped
        self.problems += row.problem is not None
        self.further += len(row.further)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def purify_dataset(
    purifier: Purifier,
    dataset: DataSet,
    out: Path,
    *,
    limit: int | None = None,
    bad_rows: BadRowLimit | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    see: Callable[[Sample, PurifiedRow], None] = lambda sample, row: None,
) -> Tally:
    """Purifies a data set and writes it in its own format, with its side table.

    Args:
        purifier: With the data set's image folder.
        dataset: The data set; stays as it is.
        out: Folder for the result; replaced if it exists.
        limit: Rows that are read at most, from the first on; the others are left out.
        bad_rows: How many bad rows are borne; by default 1%.
        progress: Told rows done and rows in all.
        see: Told every sample and what became of it.

    Raises:
        DataError: If the data set cannot be read or has too many bad rows.
    """
    bad, tally = _audit(dataset, limit, bad_rows)

    def changes() -> Iterator[Change]:
        for rows in _chunks(dataset, limit, purifier.config.batch_size * _BATCHES):
            samples = [row for row in rows if isinstance(row, Sample) and _record(row) not in bad]
            purified = purifier.purify(samples)
            for sample, row in zip(samples, purified, strict=True):
                tally.add(row)
                see(sample, row)
            numbers = [_record(row) for row in rows]
            dropped = [
                Change(number, dropped=True, side={"reason": bad[number]})
                for number in numbers
                if number in bad
            ]
            made = [change_of(row) for row in purified]
            yield from sorted([*made, *dropped], key=lambda change: change.record)
            progress(max(numbers) + 1, tally.rows)

    write_changed(dataset, changes(), out, further=bool(purifier.config.further_prompts))
    return tally


def change_of(row: PurifiedRow) -> Change:
    """What is written back of a purified row."""
    reason = {} if row.problem is None else {"reason": row.problem}
    side = {"flagged": row.flagged, **reason, **row.side}
    return Change(row.record, row.answers, row.dropped, side, row.further)


def _audit(
    dataset: DataSet, limit: int | None, bad_rows: BadRowLimit | None
) -> tuple[dict[int, str], Tally]:
    """Reasons of the bad rows by record, found before any row is purified."""
    audit = RowAudit(bad_rows)
    bad: dict[int, str] = {}
    for row in dataset.rows(0, limit):
        broken = check_row(row, dataset.images) if isinstance(row, Sample) else row
        found = audit.see(broken or row)
        if found is not None:
            bad[found.place.record] = found.reason
    audit.finish()
    return bad, Tally(rows=audit.rows, bad=len(bad), remarks=tuple(audit.remark_lines()))


def _chunks(dataset: DataSet, limit: int | None, size: int) -> Iterator[list[Sample | BadRow]]:
    rows = dataset.rows(0, limit)
    while chunk := list(islice(rows, size)):
        yield chunk


def _record(row: Sample | BadRow) -> int:
    place = row.place if isinstance(row, BadRow) else row.source
    assert place is not None
    return place.record
