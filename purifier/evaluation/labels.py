"""What purification did to the labels of a training set, as far as an evaluation asks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from purifier.data.sample import Sample
from purifier.errors import DataError
from purifier.evaluation.intervals import Rate, wilson
from purifier.purification.row import PurifiedRow


@dataclass(frozen=True)
class Labels:
    """Purified rows and shares over all of them.

    Attributes:
        rows: The rows that were asked for, by record.
        figures: `relabelled`, `dropped`, and `flagged` among the rows that were judged; empty
            without any row.
    """

    rows: Mapping[int, PurifiedRow]
    figures: Mapping[str, Rate]


def read_labels(files: Sequence[Path], records: Collection[int]) -> Labels:
    """Reads purified rows; holds those that are asked for.

    Args:
        files: JSON lines of `PurifiedRow`.
        records: Records whose rows are kept.

    Raises:
        DataError: If a file cannot be read or a line is not a purified row.
    """
    wanted: dict[int, PurifiedRow] = {}
    n = relabelled = dropped = judged = flagged = 0
    for row in _rows(files):
        n += 1
        relabelled += row.answers is not None and not row.dropped
        dropped += row.dropped
        judged += row.flagged is not None
        flagged += row.flagged is True
        if row.record in records:
            wanted[row.record] = row
    figures = {"relabelled": wilson(relabelled, n), "dropped": wilson(dropped, n)}
    if judged:
        figures["flagged"] = wilson(flagged, judged)
    return Labels(wanted, figures if n else {})


def record_number(sample: Sample) -> int:
    """Number of a sample's record in its data set, counted from 0.

    Raises:
        DataError: If the sample was made in memory.
    """
    if sample.source is None:
        raise DataError("A sample made in memory has no record number.")
    return sample.source.record


def _rows(files: Sequence[Path]) -> Iterator[PurifiedRow]:
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                yield from map(PurifiedRow.from_json, lines)
        except OSError:
            raise DataError(f"{file.name} cannot be read.", param="labels") from None
