"""Rows with an image and no mark for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from purifier.data.audit import RowAudit
from purifier.data.dataset import BadRow, open_dataset
from purifier.data.sample import Sample
from purifier.data.write_back import Change, write_changed

from .conftest import jsonl, pictures, url

ASKED = {"from": "human", "value": "What?"}
MARKED = {"from": "human", "value": "What is <image>?"}
ANSWER = {"from": "gpt", "value": "A bag."}
SYSTEM = {"from": "system", "value": "Be brief."}


def row(turns: list[dict[str, Any]], images: Any = "0.jpg") -> dict[str, Any]:
    return {"images": images, "conversations": turns}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pictures(tmp_path)
    rows = [
        row([ASKED, ANSWER, ASKED, ANSWER]),
        row([SYSTEM, ASKED, ANSWER]),
        row([MARKED, ANSWER]),
        row([ASKED, ANSWER, MARKED, ANSWER]),
        row([ASKED, ANSWER], None),
    ]
    return jsonl(tmp_path / "set.jsonl", rows)


def test_one_image_without_a_mark_comes_before_the_first_question(path: Path) -> None:
    rows = [each for each in open_dataset(path).rows() if isinstance(each, Sample)]
    texts = [[turn.text for turn in each.turns] for each in rows]
    assert texts[0] == ["<image>\nWhat?", "A bag.", "What?", "A bag."]
    assert texts[1] == ["Be brief.", "<image>\nWhat?", "A bag."]
    assert texts[2] == ["What is <image>?", "A bag."]
    assert texts[3][2] == "What is <image>?"
    assert texts[4] == ["What?", "A bag."]


def test_it_is_said_once_with_the_count(path: Path) -> None:
    audit = RowAudit()
    for each in open_dataset(path).rows():
        audit.see(each)
    assert audit.bad == 0
    marked, null = audit.to_dict()["remarks"]
    assert marked.startswith("Rows with one image and no <image> mark: 2.")
    assert null.startswith("Rows whose image field is null: 1.")


def test_the_option_refuses_such_rows(path: Path) -> None:
    rows = list(open_dataset(path, mark_images=False).rows())
    bad = [each for each in rows if isinstance(each, BadRow)]
    assert [each.place.record for each in bad] == [0, 1]
    assert all(each.reason == "image_count" for each in bad)
    assert "has 1 images but 0 <image> marks" in bad[0].message


@pytest.mark.parametrize(
    "turns", [[SYSTEM], [ANSWER, ASKED], [ANSWER], [ASKED, {**ANSWER, "value": "see <image>"}]]
)
def test_no_mark_is_put_where_nobody_asks_first(turns: list[Any], tmp_path: Path) -> None:
    (bad,) = open_dataset(jsonl(tmp_path / "set.jsonl", [row(turns)])).rows()
    assert isinstance(bad, BadRow)


def test_several_images_need_their_marks(tmp_path: Path) -> None:
    rows = [row([ASKED, ANSWER], ["0.jpg", "1.jpg"])]
    (bad,) = open_dataset(jsonl(tmp_path / "set.jsonl", rows)).rows()
    assert isinstance(bad, BadRow)
    assert "has 2 images but 0 <image> marks" in bad.message


def test_images_in_parts_are_their_own_marks(tmp_path: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": url(b"x")}}
    turns = [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}, ANSWER]
    (sample,) = open_dataset(jsonl(tmp_path / "set.jsonl", [{"messages": turns}])).rows()
    assert isinstance(sample, Sample)
    assert sample.turns[0].text == "What?\n<image>"
    assert sample.remarks == ()


def test_what_is_written_is_as_it_was_and_read_alike(path: Path, tmp_path: Path) -> None:
    dataset = open_dataset(path)
    changes = [Change(0, ("A", "B"), further=(("Why?", "So."),)), *map(Change, range(1, 5))]
    new = write_changed(dataset, changes, tmp_path / "out", further=True)
    lines = [json.loads(line) for line in new.read_text().splitlines()]
    assert lines[0] == row([ASKED, {**ANSWER, "value": "A"}, ASKED, {**ANSWER, "value": "B"}])
    read = list(open_dataset(new, images=tmp_path).rows())
    assert all(isinstance(each, Sample) for each in read)
    assert isinstance(read[1], Sample)
    assert (read[1].turns[0].text, read[1].answer) == ("<image>\nWhy?", "So.")
    refused = write_changed(
        open_dataset(path, mark_images=False), map(Change, range(5)), tmp_path / "strict"
    )
    assert len(refused.read_text().splitlines()) == 3
