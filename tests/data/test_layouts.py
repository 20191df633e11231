"""Layouts of other people's sets: dialogues as JSON text, the Cauldron's, questions, VQAv2's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from purifier.data.dataset import BadRow, open_dataset
from purifier.data.json_array import JsonArray
from purifier.data.sample import Sample
from purifier.data.write_back import Change, write_changed
from purifier.errors import DataError

from .conftest import jpeg, jsonl

TURNS = [{"from": "human", "value": "<image>Was ist das é?"}, {"from": "gpt", "value": "A bag."}]
VQAV2 = {
    "question_type": "what is",
    "multiple_choice_answer": "net",
    "answers": [{"answer": "net", "answer_confidence": "maybe", "answer_id": 1}],
    "image_id": 458752,
    "question": "What is this photo taken looking through?",
    "image": {"bytes": jpeg(1), "path": None},
}


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def only(path: Path) -> Sample | BadRow:
    (found,) = open_dataset(path).rows()
    return found


def test_a_dialogue_may_be_json_text(tmp_path: Path) -> None:
    text = json.dumps(TURNS, ensure_ascii=False)
    row = {"image": {"bytes": jpeg(1)}, "conversations": text}
    path = table(tmp_path / "set.parquet", [row])
    assert open_dataset(path).format == "llava-parquet"
    found = only(path)
    assert isinstance(found, Sample)
    assert (found.question, found.answer) == ("Was ist das é?", "A bag.")
    change = Change(0, ("Ein Sack ß.",), further=(("Why?", "So."),))
    new = write_changed(open_dataset(path), [change], tmp_path / "out", further=True)
    first, second = (json.loads(each["conversations"]) for each in pq.read_table(new).to_pylist())
    assert first == [TURNS[0], {**TURNS[1], "value": "Ein Sack ß."}]
    assert [turn["value"] for turn in second] == ["<image>\nWhy?", "So."]


@pytest.mark.parametrize("text", ["What?", "[{'from': 'human', 'value': 'What?'}]", "[", "[]"])
def test_text_that_is_no_dialogue_is_named(text: str, tmp_path: Path) -> None:
    found = only(table(tmp_path / "set.parquet", [{"conversations": text}]))
    assert isinstance(found, BadRow)
    assert found.reason == "malformed"
    assert found.message.startswith("set.parquet, record 0: conversations ")
    assert "non-empty list of turns" in found.message


def test_what_utf_8_cannot_write_stays_escaped_in_json_text(tmp_path: Path) -> None:
    text = json.dumps([{**TURNS[0], "note": "\ud800"}, TURNS[1]])
    path = table(tmp_path / "set.parquet", [{"image": {"bytes": jpeg(1)}, "conversations": text}])
    new = write_changed(open_dataset(path), [Change(0, ("é",))], tmp_path / "out")
    (row,) = pq.read_table(new).to_pylist()
    assert json.loads(row["conversations"])[0]["note"] == "\ud800"


def test_the_cauldron_is_read(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(1), "path": None}, {"bytes": jpeg(2), "path": None}]
    texts = [
        {"user": "Compare.", "assistant": "Equal.", "source": "NLVR2"},
        {"user": "Sure?", "assistant": "Yes.", "source": "NLVR2"},
    ]
    path = table(tmp_path / "set.parquet", [{"images": images, "texts": texts}])
    assert open_dataset(path).format == "cauldron-parquet"
    found = only(path)
    assert isinstance(found, Sample)
    assert found.images == (jpeg(1), jpeg(2))
    assert [turn.text for turn in found.turns] == [
        "<image>\n<image>\nCompare.",
        "Equal.",
        "Sure?",
        "Yes.",
    ]
    change = Change(0, ("A", "B"), further=(("Why?", "So."),))
    new = write_changed(open_dataset(path), [change], tmp_path / "out", further=True)
    first, second = (each["texts"] for each in pq.read_table(new).to_pylist())
    assert first == [{**texts[0], "assistant": "A"}, {**texts[1], "assistant": "B"}]
    assert second == [{"user": "Why?", "assistant": "So.", "source": "NLVR2"}]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"user": "Q", "assistant": None}, "texts[1].assistant must be text, not null"),
        ({"user": ["Q"], "assistant": "A"}, "texts[1].user must be text, not a list"),
        ("Q", "texts[1] must be an object"),
        ({"user": "Q", "assistant": " "}, "an answer is missing or empty"),
    ],
)
def test_a_bad_pair_is_named(pair: object, message: str, tmp_path: Path) -> None:
    texts = [{"user": "Q", "assistant": "A"}, pair]
    found = only(jsonl(tmp_path / "set.jsonl", [{"texts": texts}]))
    assert isinstance(found, BadRow)
    assert message in found.message


def test_question_and_answer_columns_with_an_image(tmp_path: Path) -> None:
    row = {"image": {"bytes": jpeg(1), "path": "1.jpg"}, "question": "What?", "answer": "A bag."}
    found = only(table(tmp_path / "set.parquet", [{**row, "answers": ["A bag.", "Bag"]}]))
    assert isinstance(found, Sample)
    assert found.images == (jpeg(1),)
    assert found.turns[0].text == "<image>\nWhat?"
    assert found.extra == {"answers": ["A bag.", "Bag"]}


def test_vqav2_is_refused_by_its_name(tmp_path: Path) -> None:
    path = table(tmp_path / "set.parquet", [VQAV2])
    with pytest.raises(DataError, match=r"set.parquet: this is VQAv2's layout.*as `answer`"):
        open_dataset(path)
    usable = {**VQAV2, "answer": VQAV2["multiple_choice_answer"]}
    assert isinstance(only(table(path, [usable])), Sample)


def test_a_row_of_vqav2_among_others_is_named(tmp_path: Path) -> None:
    later = {key: value for key, value in VQAV2.items() if key != "image"}
    rows = [{"question": "What?", "answer": "A bag."}, later]
    _, found = open_dataset(jsonl(tmp_path / "set.jsonl", rows)).rows()
    assert isinstance(found, BadRow)
    assert found.message.startswith("set.jsonl, record 1: this is VQAv2's layout")
    later["answers"] = ["net", "nets"]
    del later["multiple_choice_answer"]
    _, found = open_dataset(jsonl(tmp_path / "set.jsonl", rows)).rows()
    assert isinstance(found, BadRow)
    assert "answers is not read; write the one to train on as `answer`" in found.message


def test_the_file_of_vqav2_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json"
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_subtype": "train2014"}
    path.write_text(json.dumps({**head, "questions": []}))
    with pytest.raises(DataError, match="VQAv2's layout"):
        list(JsonArray(path).records())
