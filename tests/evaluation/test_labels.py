from __future__ import annotations

from pathlib import Path

import pytest

from purifier.data.sample import Sample, Turn
from purifier.errors import DataError
from purifier.evaluation.labels import read_labels, record_number
from purifier.purification.row import PurifiedRow

ROWS = [
    PurifiedRow(0, "a", answers=("A bag.",), flagged=True),
    PurifiedRow(1, "b", flagged=False),
    PurifiedRow(2, "c", dropped=True, problem="bad_image"),
    PurifiedRow(3, "d", answers=("Red.",), flagged=True, dropped=True),
]


def write_rows(file: Path, rows: list[PurifiedRow]) -> Path:
    file.write_text("".join(row.to_json() + "\n" for row in rows))
    return file


def test_shares_of_all_rows_and_the_wanted_ones(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / "0", ROWS[:3]), write_rows(tmp_path / "1", ROWS[3:])]
    labels = read_labels(files, {3, 1, 7})
    assert labels.rows == {1: ROWS[1], 3: ROWS[3]}
    assert (labels.figures["relabelled"].value, labels.figures["relabelled"].n) == (0.25, 4)
    assert labels.figures["dropped"].value == 0.5
    assert (labels.figures["flagged"].value, labels.figures["flagged"].n) == (2 / 3, 3)


def test_no_rows_have_no_shares(tmp_path: Path) -> None:
    assert read_labels([], {1}).figures == {}
    unjudged = write_rows(tmp_path / "0", [PurifiedRow(0, None, answers=("A bag.",))])
    assert "flagged" not in read_labels([unjudged], ()).figures


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0").write_text('{"record": 1}\n')
    with pytest.raises(DataError):
        read_labels([tmp_path / "0"], ())
    with pytest.raises(DataError, match="absent cannot be read"):
        read_labels([tmp_path / "absent"], ())


def test_a_sample_of_no_file_has_no_record() -> None:
    with pytest.raises(DataError):
        record_number(Sample(1, (), (Turn("user", "Q?"),)))
