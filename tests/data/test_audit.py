from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from purifier.data.audit import BadRowLimit, RowAudit
from purifier.data.dataset import BadRow, check_row, open_dataset
from purifier.data.sample import Place, Sample, Turn
from purifier.errors import DataError, InvalidSetting

from .conftest import jsonl, llava, pictures

TURNS = (Turn("user", "Q"), Turn("assistant", "A"))


def row(number: int, identity: str | int | None = None) -> Sample:
    return Sample(identity, (), TURNS, Place("set.json", number))


def bad(number: int, reason: str = "malformed") -> BadRow:
    return BadRow(Place("set.json", number), reason, f"set.json, record {number}: broken.")


def test_every_kind_of_bad_row_is_counted_with_its_place(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    (tmp_path / "images" / "2.jpg").write_bytes(b"no picture")
    rows = [
        llava(0),
        {**llava(1), "image": "gone.jpg"},
        llava(2),
        {**llava(3), "image": ["3.jpg", "4.jpg"]},
        {**llava(4), "conversations": llava(4)["conversations"][:1]},
        llava(0),
        {"id": 6},
    ]
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", rows))
    audit = RowAudit(BadRowLimit(share=0.9))
    found = []
    for one in dataset.rows():
        checked = check_row(one, dataset.images) if isinstance(one, Sample) else None
        found.append(audit.see(checked or one))
    audit.finish()
    reasons = [
        None,
        "missing_image",
        "undecodable_image",
        "image_count",
        "empty_answer",
        "duplicate_id",
        "malformed",
    ]
    assert [one and one.reason for one in found] == reasons
    report = audit.to_dict()
    assert (report["rows"], report["bad"]) == (7, 6)
    assert report["reasons"] == {reason: 1 for reason in reasons if reason}
    assert [example["record"] for example in report["examples"]] == [1, 2, 3, 4, 5, 6]
    assert [example["reason"] for example in report["examples"]] == reasons[1:]
    assert report["examples"][4]["message"].endswith("id '0' was already given to record 0.")
    assert json.loads(json.dumps(report)) == report


def test_ids_are_compared_as_text_and_rows_without_one_are_fine() -> None:
    audit = RowAudit(BadRowLimit(share=None))
    seen = [row(0), row(1), row(2, 7), row(3, "7"), row(4, 8), row(5, "7")]
    assert [audit.see(one) is not None for one in seen] == [False, False, False, True, False, True]
    assert "record 2" in audit.examples[1].message


def test_an_id_of_another_file_is_named_with_its_file(tmp_path: Path) -> None:
    for part in range(2):
        rows = [{"id": f"row-{n}", "question": "Q", "answer": "A"} for n in range(3)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"train-{part}.parquet")
    audit = RowAudit(BadRowLimit(share=None))
    found = [audit.see(one) for one in open_dataset(tmp_path).rows()]
    assert [one and one.reason for one in found] == [None] * 3 + ["duplicate_id"] * 3
    assert audit.examples[1].message == (
        "train-1.parquet, record 4: every row needs an id of its own, or none; id 'row-1' was "
        "already given to record 1 of train-0.parquet."
    )


def test_the_share_is_judged_at_the_end() -> None:
    audit = RowAudit(BadRowLimit(share=0.1))
    audit.see(bad(0))
    for number in range(1, 10):
        audit.see(row(number))
    audit.finish()
    audit.see(bad(10, "empty_answer"))
    message = "2 of 11 rows cannot be used (malformed 1, empty_answer 1), more than the 10.00%"
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        audit.finish()
    assert "set.json, record 0: broken." in caught.value.message


def test_the_count_is_judged_at_once() -> None:
    audit = RowAudit(BadRowLimit(share=None, count=1))
    audit.see(bad(0))
    with pytest.raises(DataError, match="more than the 1 that are allowed"):
        audit.see(bad(1))


def test_a_set_without_a_usable_row_fails_whatever_the_limit() -> None:
    audit = RowAudit(BadRowLimit(share=None))
    audit.see(bad(0))
    with pytest.raises(DataError, match="no usable row"):
        audit.finish()


def test_only_the_first_bad_rows_are_kept() -> None:
    audit = RowAudit(BadRowLimit(share=None), keep=2)
    for number in range(50):
        audit.see(bad(number))
    assert [one.place.record for one in audit.examples] == [0, 1]
    assert audit.bad == 50


@pytest.mark.parametrize(("share", "count"), [(1.5, None), (-0.1, None), (None, -1)])
def test_limits_out_of_range(share: float | None, count: int | None) -> None:
    with pytest.raises(InvalidSetting):
        BadRowLimit(share, count)
