"""The same small data set in every format that is read."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from purifier.data.dataset import DataSet
from purifier.data.sample import Sample

N_ROWS = 7


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def url(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def samples(dataset: DataSet) -> list[Sample]:
    rows = list(dataset.rows())
    assert all(isinstance(row, Sample) for row in rows), rows
    return [row for row in rows if isinstance(row, Sample)]


def new_answers(row: Sample) -> tuple[str, ...]:
    return tuple(f"Clean {index}: ünïcode \u2028 \U0001f600" for index in range(len(row.answers)))


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(N_ROWS):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


def llava(n: int) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": f"<image>\nWhat is {n}?", "weight": 1},
        {"from": "gpt", "value": f"Answer {n}é\u2028"},
        {"from": "human", "value": "And more?"},
        {"from": "gpt", "value": f"More {n}", "note": "kept"},
    ]
    return {"kind": "k", "id": n, "image": f"{n}.jpg", "conversations": turns, "score": 0.5}


def write_llava_json(folder: Path) -> Path:
    pictures(folder / "images")
    path = folder / "set.json"
    records = [llava(n) for n in range(N_ROWS)]
    path.write_text(json.dumps(records, ensure_ascii=False, indent=2) + "\n", "utf-8")
    return path


def write_llava_jsonl(folder: Path) -> Path:
    pictures(folder / "images")
    return jsonl(folder / "set.jsonl", [llava(n) for n in range(N_ROWS)])


def write_sharegpt(folder: Path) -> Path:
    pictures(folder)
    records = []
    for n in range(N_ROWS):
        record = llava(n)
        record["images"] = [record.pop("image")]
        records.append({"system": "Be brief.", **record})
    path = folder / "set.json"
    path.write_text(json.dumps(records), "utf-8")
    return path


def messages(n: int, parts: list[Any] | str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": f"Answer {n}"},
        ],
        "id": f"row-{n}",
    }


def write_messages(folder: Path) -> Path:
    pictures(folder)
    rows = [{**messages(n, f"<image>What is {n}?"), "images": [f"{n}.jpg"]} for n in range(N_ROWS)]
    return jsonl(folder / "set.jsonl", rows)


def write_parts(folder: Path) -> Path:
    """OpenAI's fine-tuning format: pictures in the content, as data URLs or file names."""
    pictures(folder)
    rows = []
    for n in range(N_ROWS):
        where = url(jpeg(n)) if n % 2 else f"{n}.jpg"
        image = {"type": "image_url", "image_url": {"url": where, "detail": "low"}}
        rows.append(messages(n, [image, {"type": "text", "text": f"What is {n}?"}]))
    return jsonl(folder / "set.jsonl", rows)


def write_parquet(folder: Path) -> Path:
    rows = [
        {
            "id": f"row-{n}",
            "image": {"bytes": jpeg(n), "path": None},
            "question": f"What is {n}?",
            "answer": f"Answer {n}",
            "score": n / 2,
        }
        for n in range(N_ROWS)
    ]
    path = folder / "set.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_parquet_folder(folder: Path) -> Path:
    rows = []
    for n in range(N_ROWS):
        record = llava(n)
        del record["image"]
        rows.append({**record, "images": [{"bytes": jpeg(n), "path": f"{n}.jpg"}]})
    data = folder / "data"
    data.mkdir(parents=True)
    for part, chunk in enumerate((rows[:4], rows[4:])):
        name = f"train-{part:05}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(chunk), data / name, row_group_size=2)
    return folder


def write_parquet_texts(folder: Path) -> Path:
    """A table without nested columns: dialogues and lists of images as JSON text."""
    rows = []
    for n in range(N_ROWS):
        record = llava(n)
        turns = json.dumps(record["conversations"], ensure_ascii=False)
        images = json.dumps([record.pop("image")])
        rows.append({**record, "images": images, "conversations": turns})
    pictures(folder)
    path = folder / "set.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_cauldron(folder: Path) -> Path:
    rows = []
    for n in range(N_ROWS):
        pairs = [
            {"user": f"What is {n}?", "assistant": f"Answer {n}", "source": "a"},
            {"user": "And more?", "assistant": f"More {n}", "source": "a"},
        ]
        rows.append({"images": [{"bytes": jpeg(n), "path": None}], "texts": pairs})
    path = folder / "set.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_base64(folder: Path) -> Path:
    """Images as bare base64, as a table with them becomes where it is exported to JSON."""
    rows = []
    for n in range(N_ROWS):
        record = llava(n)
        record["image"] = base64.b64encode(jpeg(n)).decode()
        rows.append(record)
    return jsonl(folder / "set.jsonl", rows)


def write_parts_folder(folder: Path) -> Path:
    """Two files whose names say nothing of a split."""
    rows = [
        {"image": jpeg(n), "query": f"What is {n}?", "response": f"Answer {n}"} for n in range(7)
    ]
    for part, chunk in enumerate((rows[:2], rows[2:])):
        pq.write_table(pa.Table.from_pylist(chunk), folder / f"part-{part}.parquet")
    return folder


def write_imagefolder(folder: Path) -> Path:
    pictures(folder)
    rows = [{"file_name": f"{n}.jpg", "text": f"Answer {n}"} for n in range(N_ROWS)]
    jsonl(folder / "metadata.jsonl", rows)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava-json": write_llava_json,
    "llava-jsonl": write_llava_jsonl,
    "sharegpt-json": write_sharegpt,
    "messages-jsonl": write_messages,
    "messages-jsonl parts": write_parts,
    "columns-parquet": write_parquet,
    "sharegpt-parquet": write_parquet_folder,
    "columns-parquet parts": write_parts_folder,
    "sharegpt-parquet texts": write_parquet_texts,
    "cauldron-parquet": write_cauldron,
    "llava-jsonl base64": write_base64,
    "imagefolder-jsonl": write_imagefolder,
}


@pytest.fixture(params=WRITERS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def written(form: str, tmp_path: Path) -> Path:
    """What a user would name to open the set of this format."""
    folder = tmp_path / "original"
    folder.mkdir()
    return WRITERS[form](folder)
