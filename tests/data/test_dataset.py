from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from purifier.data import json_lines
from purifier.data.dataset import BadRow, DataSet, check_row, open_dataset
from purifier.data.sample import Sample, open_image
from purifier.errors import DataError

from .conftest import N_ROWS, WRITERS, jpeg, jsonl, llava, messages, pictures, url


def samples(dataset: DataSet, start: int = 0, stop: int | None = None) -> list[Sample]:
    rows = list(dataset.rows(start, stop))
    assert all(isinstance(row, Sample) for row in rows), rows
    return [row for row in rows if isinstance(row, Sample)]


def numbers(rows: Sequence[Sample | BadRow]) -> list[int]:
    found = []
    for row in rows:
        place = row.place if isinstance(row, BadRow) else row.source
        assert place is not None
        found.append(place.record)
    return found


def test_every_format_gives_the_same_samples(form: str, written: Path) -> None:
    dataset = open_dataset(written)
    assert dataset.format == form.split(maxsplit=1)[0]
    rows = samples(dataset)
    assert numbers(rows) == list(range(N_ROWS))
    for n, row in enumerate(rows):
        assert row.answer.startswith(f"Answer {n}")
        assert row.turns[0].role == ("user" if len(row.turns) % 2 == 0 else "system")
        caption = form.startswith("imagefolder")
        assert row.question == ("Describe this image in detail." if caption else f"What is {n}?")
        assert sum(turn.text.count("<image>") for turn in row.turns) == len(row.images) == 1
        picture = open_image(dataset.images, row.images[0], row.source)
        assert picture.tobytes() == Image.open(io.BytesIO(jpeg(n))).tobytes()
        assert check_row(row, dataset.images) is None


def test_ranges_are_slices(written: Path) -> None:
    whole = samples(open_dataset(written))
    for start in range(N_ROWS + 2):
        assert samples(open_dataset(written), start) == whole[start:]
        for stop in range(start, N_ROWS + 2):
            part = samples(open_dataset(written), start, stop)
            assert part == whole[start:stop]
            assert numbers(part) == list(range(N_ROWS))[start:stop]


def test_lines_are_skipped_by_their_offset(tmp_path: Path) -> None:
    rows = [llava(n) for n in range(1000)]
    text = "\n\n".join(json.dumps(row) for row in rows)
    path = tmp_path / "set.jsonl"
    path.write_text(f"\ufeff{text}", "utf-8")
    dataset = open_dataset(path)
    assert numbers(samples(dataset, 990)) == list(range(990, 1000))
    # What was passed once is found again without reading what stands before it.
    with path.open("r+b") as file:
        file.write(b"x" * 1000)
    assert [row.id for row in samples(dataset, 600, 603)] == [600, 601, 602]


def test_row_groups_outside_the_range_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    table = pa.Table.from_pylist([{"question": "Why?", "answer": f"{n}"} for n in range(30)])
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    dataset = open_dataset(path)
    column = pq.read_metadata(path).row_group(0).column(1)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    assert [row.answer for row in samples(dataset, 10, 25)] == [str(n) for n in range(10, 25)]
    with pytest.raises(DataError, match="damaged"):
        list(dataset.rows(0, 25))


def test_text_only_rows_and_several_images(tmp_path: Path) -> None:
    pictures(tmp_path)
    text_only = {
        "conversations": [{"from": "human", "value": "2+2?"}, llava(0)["conversations"][1]]
    }
    two = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "First"},
                    {"type": "image"},
                    {"type": "image_url", "image_url": url(jpeg(1))},
                    {"type": "text", "text": "and <image>, what?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        ],
        "images": ["2.jpg", "3.jpg"],
    }
    first, second = samples(open_dataset(jsonl(tmp_path / "set.jsonl", [text_only, two])))
    assert first.images == ()
    assert first.question == "2+2?"
    assert second.images == ("2.jpg", jpeg(1), "3.jpg")
    assert second.turns[0].text == "First\n<image>\n<image>\nand <image>, what?"
    assert second.answer == "Red."


def test_questions_of_columns(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate.", "input": "Haus", "output": "house", "lang": "de"},
        {"query": "Compare <image> and <image>", "response": "Equal.", "images": ["a", "b"]},
        {"prompt": "What?", "completion": "Bag.", "image": "a"},
    ]
    read = samples(open_dataset(jsonl(tmp_path / "set.jsonl", rows)))
    assert [row.question for row in read] == ["Translate.\nHaus", "Compare  and", "What?"]
    assert [row.answer for row in read] == ["house", "Equal.", "Bag."]
    assert read[0].extra == {"lang": "de"}
    assert read[2].turns[0].text == "<image>\nWhat?"


def turns(question: str, answer: str | None) -> list[dict[str, Any]]:
    asked = [{"from": "human", "value": question}]
    return asked if answer is None else [*asked, {"from": "gpt", "value": answer}]


BAD = [
    ({"images": ["0", "1"], "conversations": turns("?", "A")}, "image_count", "2 images but 0"),
    ({"conversations": turns("<image>", "A")}, "image_count", "1 <image> marks"),
    ({"conversations": turns("Q", "see <image>")}, "image_count", "marks"),
    ({"conversations": turns("Q", " \n")}, "empty_answer", "missing or empty"),
    ({"conversations": turns("Q", None)}, "empty_answer", "missing or empty"),
    ({"conversations": turns("Q", "A")[::-1]}, "malformed", "first turn must be the user's"),
    ({"conversations": turns("Q", "\ud800")}, "malformed", "surrogate"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "malformed", r"messages\[0\].role must be"),
    (messages(0, [{"type": "audio"}]), "malformed", r"messages\[1\].content\[0\].type"),
    (messages(0, [{"type": "image_url"}]), "malformed", "must name an image"),
    (messages(0, [{"type": "image_url", "image_url": "data:x"}]), "undecodable_image", "base64"),
    ({"answer": "A"}, "malformed", "no question"),
    ({"question": "Q", "answer": ["A"]}, "malformed", "answer must be text"),
    ({"instruction": "Q", "output": "A", "history": [["q", "a"]]}, "malformed", "history"),
    ({"question": "Q"}, "malformed", "non-empty list of turns"),
    ("text", "malformed", "must be an object"),
]


@pytest.mark.parametrize(("record", "reason", "message"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_row_is_named_and_the_next_one_read(
    record: object, reason: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (llava(0), record, llava(1))))
    first, bad, last = open_dataset(path).rows()
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert isinstance(bad, BadRow)
    assert bad.reason == reason
    assert bad.place.record == 1
    assert bad.message.startswith("set.jsonl, record 1")
    assert message.replace("\\", "") in bad.message


def test_lines_that_are_no_json_are_bad_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_RECORD_BYTES", 600)
    good = json.dumps(llava(0)).encode()
    lines = [good, b"{", b"\xff", b'"' + b"x" * 2000, b"[" * 500 + b"]" * 500, good]
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = list(open_dataset(path).rows())
    assert numbers(rows) == list(range(6))
    reasons = [row.message.split(": ", 1)[1] for row in rows if isinstance(row, BadRow)]
    assert [reason[:12] for reason in reasons] == [
        "not valid JS",
        "not UTF-8 te",
        "the line is ",
        "the line is ",
    ]


def test_a_cut_list_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps([llava(n) for n in range(100)])[:-40])
    rows = open_dataset(path).rows()
    for n in range(99):
        row = next(rows)
        assert isinstance(row, Sample)
        assert row.id == n
    with pytest.raises(DataError, match="not valid JSON after record 98"):
        next(rows)


def image_row(image: object) -> dict[str, Any]:
    return {"image": image, "question": "What?", "answer": "A"}


def test_images_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "images")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(folder / "pipe.png")
    Image.new("L", (5000, 2), 9).save(folder / "large.png")
    Image.new("RGB", (4, 4)).save(folder / "format.ppm")
    (folder / "cut.jpg").write_bytes(jpeg(1)[:200])
    monkeypatch.setattr("purifier.data.sample.MAX_PIXELS", 9_000)
    cases = [
        ("0.jpg", None),
        ("gone.jpg", "missing_image"),
        ("../outside.png", "missing_image"),
        ("link.png", "missing_image"),
        ("pipe.png", "missing_image"),
        ("nul\0.png", "missing_image"),
        ("https://a.example/x.png", "missing_image"),
        ("large.png", "undecodable_image"),
        ("format.ppm", "undecodable_image"),
        ("cut.jpg", "undecodable_image"),
        (url(b"no picture"), "undecodable_image"),
    ]
    path = jsonl(tmp_path / "set.jsonl", [image_row(name) for name, _ in cases])
    dataset = open_dataset(path)
    assert dataset.images == folder
    found = [check_row(row, dataset.images) for row in samples(dataset)]
    assert [bad and bad.reason for bad in found] == [reason for _, reason in cases]
    assert all(
        bad.place.record == n and bad.message.startswith(f"set.jsonl, record {n}: ")
        for n, bad in enumerate(found)
        if bad
    )


def test_the_image_folder_is_the_one_that_holds_the_images(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    outer = jsonl(tmp_path / "outer.jsonl", [image_row("images/0.jpg")])
    inner = jsonl(tmp_path / "inner.jsonl", [image_row("0.jpg")])
    assert open_dataset(outer).images == tmp_path
    assert open_dataset(inner).images == tmp_path / "images"
    assert open_dataset(inner, images=tmp_path).images == tmp_path
    with pytest.raises(DataError, match="image folder") as caught:
        open_dataset(inner, images=tmp_path / "absent")
    assert caught.value.param == "images"


@pytest.mark.parametrize("form", ["llava-json", "llava-jsonl", "columns-parquet"])
def test_endings_may_be_capitals(form: str, tmp_path: Path) -> None:
    written = WRITERS[form](tmp_path)
    shouted = written.rename(written.with_suffix(written.suffix.upper()))
    for path in (shouted, tmp_path):
        assert open_dataset(path).format == form
        assert len(samples(open_dataset(path))) == N_ROWS


def test_fingerprints(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl", [llava(0)])
    before = open_dataset(path).fingerprint()
    assert before == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace("Answer", "answer"))
    assert open_dataset(path).fingerprint() != before
    folder = WRITERS["sharegpt-parquet"](tmp_path / "many")
    before = open_dataset(folder).fingerprint()
    table = folder / "data" / "train-00001-of-00002.parquet"
    pq.write_table(pq.read_table(table).slice(1), table)
    assert open_dataset(folder).fingerprint() != before


def test_folders(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    inner = archive / "inner"
    inner.mkdir(parents=True)
    pictures(inner / "images")
    jsonl(inner / "set.jsonl", [llava(0)])
    assert open_dataset(archive).images == inner / "images"
    assert len(samples(open_dataset(archive))) == 1
    jsonl(inner / "other.jsonl", [llava(0)])
    with pytest.raises(DataError, match=r"several label files \(other.jsonl, set.jsonl\)"):
        open_dataset(archive)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, "does not exist"),
        ("set.csv", b"a,b\n", "must end with"),
        ("set.json", b'{"id": 1}', "must hold a list"),
        ("set.json", b"[]", "holds no records"),
        ("set.jsonl", b"\n", "holds no records"),
        ("set.parquet", b"PAR1 no parquet", "damaged or no parquet"),
        ("empty/x.txt", b"", "holds no metadata.jsonl"),
    ],
)
def test_files_that_are_no_data_set(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(path.parent if "/" in name else path)
    assert str(tmp_path) not in caught.value.message


def test_what_the_datasets_library_writes_is_read(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    columns = {
        "image": [{"bytes": jpeg(n), "path": None} for n in range(3)],
        "question": ["What?"] * 3,
        "answer": ["a", "b", "c"],
    }
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(columns, features).to_parquet(path)
    read = samples(open_dataset(path))
    assert [row.images for row in read] == [(jpeg(n),) for n in range(3)]
    assert [row.answer for row in read] == ["a", "b", "c"]
