"""Rows with further questions about an image: written behind it, with ids of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from purifier.data.dataset import open_dataset
from purifier.data.write_back import SIDE_FILE, Change, write_changed
from purifier.errors import DataError

from .conftest import (
    N_ROWS,
    contents,
    jpeg,
    jsonl,
    llava,
    new_answers,
    samples,
    url,
)

FURTHER = (("What colour is it?", "Rouge é\u2028"), ('Is it a "bag"?', "No."))


def test_further_rows_are_written_in_every_format(written: Path, tmp_path: Path) -> None:
    dataset = open_dataset(written)
    rows = samples(dataset)

    def changes() -> Iterator[Change]:
        for row in rows:
            number = row.source.record  # type: ignore[union-attr]
            yield Change(number, new_answers(row), dropped=number == 3, further=FURTHER)

    for name in ("out", "again"):
        path = write_changed(dataset, changes(), tmp_path / name, further=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    found = open_dataset(path, images=dataset.images)
    assert found.format == dataset.format
    read = samples(found)
    free = iter(range(N_ROWS, 100))
    expected: list[tuple[Any, ...]] = []
    for row in rows:
        if row.source is None or row.source.record == 3:
            continue
        expected.append((row.id, row.images, row.turns[0].text, new_answers(row)))
        for number, (question, answer) in enumerate(FURTHER, start=1):
            identity: Any = f"{row.id}/{number}" if isinstance(row.id, str) else row.id
            identity = next(free) if isinstance(row.id, int) else identity
            expected.append((identity, row.images, f"<image>\n{question}", (answer,)))
    assert [(row.id, row.images, row.turns[0].text, row.answers) for row in read] == expected
    assert all(row.extra.keys() == read[0].extra.keys() for row in read)
    side = pq.read_table(tmp_path / "out" / SIDE_FILE).to_pylist()
    assert [line["further"] for line in side] == [None if n == 3 else 2 for n in range(N_ROWS)]


def test_further_rows_get_ids_that_nobody_has(tmp_path: Path) -> None:
    ids = ["a", "a/1", 2, 7, "b", None, "c"]
    rows = [{**llava(n), "id": identity} for n, identity in enumerate(ids)]
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", rows))
    changes = [Change(n, further=(("Q?", "A."), ("<image>?", "A."))) for n in range(len(ids))]
    new = write_changed(dataset, changes, tmp_path / "out", further=True)
    found = [row.id for row in samples(open_dataset(new))]
    made = ["a/2", "a/1/1", 8, 9, "b/1", None, "c/1"]
    assert found == [each for pair in zip(ids, made, strict=True) for each in pair]


def test_further_rows_keep_pictures_in_parts(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": url(jpeg(1))}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ["<image>What?", picture, {"type": "input_text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Bad."}], "name": "x"},
        {"role": "user", "content": "And <image>?"},
        {"role": "assistant", "content": "Bad."},
    ]
    row = {"messages": turns, "images": ["0.jpg", "2.jpg"]}
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", [row]))
    before = samples(dataset)[0]
    changes = [Change(0, further=(("Q?", "A."),))]
    new = write_changed(dataset, changes, tmp_path / "out", further=True)
    asked = json.loads(new.read_text().splitlines()[1])["messages"]
    assert asked == [
        {"role": "user", "content": ["<image>", picture, "<image>", "Q?"]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "A."}], "name": "x"},
    ]
    assert samples(open_dataset(new))[1].images == before.images


def test_captions_in_parquet_get_a_column_of_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    columns = {
        "image": [{"bytes": jpeg(n), "path": None} for n in range(100)],
        "caption": [f"Old {n}." for n in range(100)],
    }
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(columns, features).to_parquet(path)
    changes = (Change(n, (f"New {n}.",), further=(("Q?", f"A {n}."),)) for n in range(100))
    new = write_changed(open_dataset(path), changes, tmp_path / "out", further=True)
    read = datasets.Dataset.from_parquet(str(new), cache_dir=str(tmp_path / "cache"))
    assert read.features == {**features, "question": datasets.Value("string")}
    assert read["question"][:4] == [None, "Q?", None, "Q?"]
    rows = samples(open_dataset(new))
    assert [row.answer for row in rows[:3]] == ["New 0.", "A 0.", "New 1."]
    assert [row.question for row in rows[:2]] == ["Describe this image in detail.", "Q?"]
    assert rows[0].images == rows[1].images


def tables_without_questions(kind: str) -> pa.Table:
    """Two rows; the first is unreadable or a dialogue, the second a caption."""
    images = pa.array([jpeg(0), jpeg(1)], pa.binary())
    if kind == "unreadable":
        texts = pa.array([b"\xff\xfe", b"A cat."])
        captions = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
        return pa.table({"image": images, "caption": captions})
    turns = [{"from": "human", "value": "<image>\nHi?"}, {"from": "gpt", "value": "Ho."}]
    columns = {"image": images, "conversations": pa.array([turns, None])}
    return pa.table({**columns, "caption": pa.array([None, "A cat."])})


@pytest.mark.parametrize("kind", ["unreadable", "dialogue"])
def test_any_caption_of_a_table_gets_its_question(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(tables_without_questions(kind), path)
    changes = [Change(1, further=(("Which colour?", "Red."),))]
    new = write_changed(open_dataset(path), changes, tmp_path / "out", further=True)
    rows = samples(open_dataset(new))
    assert [(row.question, row.answer) for row in rows] == [
        ("Describe this image in detail.", "A cat."),
        ("Which colour?", "Red."),
    ]


def test_an_id_that_a_column_cannot_hold_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(range(128), pa.int8()), "question": ["Q"] * 128})
    pq.write_table(table.append_column("answer", pa.array(["A"] * 128)), tmp_path / "set.parquet")
    dataset = open_dataset(tmp_path / "set.parquet")
    changes = (Change(n, further=(("Q?", "A."),)) for n in range(128))
    with pytest.raises(DataError, match="the column id is of the type int8"):
        write_changed(dataset, changes, tmp_path / "out", further=True)
    assert not (tmp_path / "out").exists()
