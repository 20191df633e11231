"""Data sets are written back in their own format, with other answers, whole or not at all."""

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
from purifier.data.sample import Sample
from purifier.data.write_back import SIDE_FILE, Change, write_changed

from .conftest import (
    N_ROWS,
    contents,
    jpeg,
    jsonl,
    llava,
    messages,
    new_answers,
    samples,
    url,
    write_llava_json,
)


def change(row: Sample) -> Change:
    """Every third row keeps its answer, every other third is left out."""
    assert row.source is not None
    number = row.source.record
    side = {"flagged": number % 2 == 0, "seconds": 0.5, "mask_ratio": 0.25, "saliency_max": number}
    answers = None if number % 3 == 0 else new_answers(row)
    return Change(number, answers, dropped=number % 3 == 2, side=side)


def test_every_format_comes_back_in_its_own(written: Path, tmp_path: Path) -> None:
    dataset = open_dataset(written)
    before = contents(tmp_path / "original")
    rows = samples(dataset)
    out = tmp_path / "out"
    path = write_changed(dataset, map(change, rows), out)
    assert contents(tmp_path / "original") == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / "original", out]

    again = open_dataset(path, images=dataset.images)
    assert again.format == dataset.format
    expected = [
        row if row.source.record % 3 == 0 else row.with_answers(new_answers(row))
        for row in rows
        if row.source is not None and row.source.record % 3 != 2
    ]
    assert samples(again) == expected

    side = pq.read_table(out / SIDE_FILE).to_pylist()
    assert [line["record"] for line in side] == list(range(N_ROWS))
    for line, row in zip(side, rows, strict=True):
        number = line["record"]
        kept = number % 3 == 0
        assert line["id"] == (None if row.id is None else str(row.id))
        assert line["old_answers"] == list(row.answers)
        assert line["new_answers"] == list(row.answers if kept else new_answers(row))
        assert (line["changed"], line["dropped"]) == (not kept, number % 3 == 2)
        assert line["flagged"] is (number % 2 == 0)
        assert (line["seconds"], line["mask_ratio"], line["saliency_max"]) == (0.5, 0.25, number)
        assert line["reason"] is None


def test_nothing_changed_gives_the_same_text(written: Path, form: str, tmp_path: Path) -> None:
    dataset = open_dataset(written)
    path = write_changed(dataset, (Change(n) for n in range(N_ROWS)), tmp_path / "out")
    if dataset.file.kind == "parquet":
        new = open_dataset(path).file.paths
        for ours, original in zip(new, dataset.file.paths, strict=True):
            assert pq.read_table(ours).equals(pq.read_table(original), check_metadata=True)
    else:
        text = dataset.file.paths[0].read_bytes()
        assert path.read_bytes().rstrip(b"\n") == text.rstrip(b"\n"), form


def test_keys_and_their_order_stay(tmp_path: Path) -> None:
    dataset = open_dataset(write_llava_json(tmp_path))
    changes = (Change(n, ("a", "b")) for n in range(N_ROWS))
    new = json.loads(write_changed(dataset, changes, tmp_path / "out").read_text("utf-8"))
    for n, record in enumerate(new):
        expected = llava(n)
        expected["conversations"][1]["value"] = "a"
        expected["conversations"][3]["value"] = "b"
        assert json.dumps(record) == json.dumps(expected)


def test_content_parts_keep_all_but_their_text(tmp_path: Path) -> None:
    row = messages(0, "What?")
    row["messages"][-1]["content"] = [
        {"type": "text", "text": "See: ", "cache": 1},
        {"type": "text", "text": "bad"},
    ]
    lone = {"conversations": {"role": "assistant", "content": "x"}}
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", [row, lone]))
    path = write_changed(dataset, [Change(0, ("Good.",))], tmp_path / "out")
    (new,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert new["messages"][-1]["content"] == [{"type": "text", "text": "Good.", "cache": 1}]
    assert new["messages"][:-1] == row["messages"][:-1]


def test_no_row_is_passed_on_unpurified(tmp_path: Path) -> None:
    rows = [
        llava(0),
        {"broken": True},
        llava(2),
        {**llava(3), "image": None},
        llava(4),
        llava(5),
        llava(6),
    ]
    path = jsonl(tmp_path / "set.jsonl", rows)
    with path.open("a") as file:
        file.write("{no json\n")
    changes = [
        Change(0, ("a", "b")),
        Change(3),
        Change(4, ("a", " ")),
        Change(5, ("<image>", "b")),
        Change(6, dropped=True, side={"reason": "duplicate_id"}),
    ]
    out = tmp_path / "out"
    new = write_changed(open_dataset(path), changes, out)
    assert [json.loads(line)["id"] for line in new.read_text("utf-8").splitlines()] == [0]
    side = pq.read_table(out / SIDE_FILE).to_pylist()
    assert [(line["dropped"], line["reason"]) for line in side] == [
        (False, None),
        (True, "malformed"),
        (True, "not_processed"),
        (True, "image_count"),
        (True, "unusable_answer"),
        (True, "unusable_answer"),
        (True, "duplicate_id"),
        (True, "malformed"),
    ]
    assert side[1]["old_answers"] == []
    assert side[2]["new_answers"] == side[2]["old_answers"]


def test_a_key_that_is_no_column_is_not_lost_silently(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"question": ["Q?"], "answer": ["A."]}), path)
    dataset = open_dataset(path)
    with pytest.raises(ValueError, match="no column"):
        dataset.file.rewrite(tmp_path / "out", lambda _, record: [{**record, "more": "x"}])


def test_a_typed_mark_in_an_answer_that_stays_is_text(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": url(jpeg(1))}}
    turns = [
        {"role": "user", "content": [picture, {"type": "text", "text": "Which tag?"}]},
        {"role": "assistant", "content": "the <image> tag"},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "Bad."},
    ]
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", [{"messages": turns}]))
    changes = [Change(0, ("the <image> tag", "Red."))]
    new = write_changed(dataset, changes, tmp_path / "out")
    assert samples(open_dataset(new))[0].answers == ("the <image> tag", "Red.")
    refused = write_changed(dataset, [Change(0, ("an <image>", "Red."))], tmp_path / "other")
    assert refused.read_text() == ""


WRONG = [
    ([Change(1), Change(0)], "out of order"),
    ([Change(0), Change(0)], "out of order"),
    ([Change(N_ROWS)], f"no record {N_ROWS}"),
    ([Change(0, ("a",))], "record 0: expected 2 answers, got 1"),
    ([Change(0, further=(("Q?", "A."),))], "record 0: .*further=True"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:20])
def test_wrong_changes_leave_nothing_behind(
    changes: list[Change], message: str, tmp_path: Path
) -> None:
    dataset = open_dataset(write_llava_json(tmp_path / "original"))
    with pytest.raises(ValueError, match=message):
        write_changed(dataset, changes, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_what_stood_there_stays_until_all_is_written(tmp_path: Path) -> None:
    dataset = open_dataset(write_llava_json(tmp_path / "original"))
    out = tmp_path / "out"
    write_changed(dataset, (Change(n) for n in range(N_ROWS)), out)
    before = contents(out)

    def failing() -> Iterator[Change]:
        yield Change(0, ("a", "b"))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        write_changed(dataset, failing(), out)
    assert contents(out) == before
    path = write_changed(dataset, (Change(n, ("a", "b")) for n in range(N_ROWS)), out)
    assert {row.answers for row in samples(open_dataset(path, images=dataset.images))} == {
        ("a", "b")
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original", "out"]


def test_the_same_changes_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    dataset = open_dataset(written)
    for name in ("one", "two"):
        write_changed(dataset, map(change, samples(dataset)), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_side_values_of_any_kind_are_kept(tmp_path: Path) -> None:
    rows = [{"question": "Q", "answer": f"{n}"} for n in range(1030)]
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", rows))
    sides: dict[int, dict[str, Any]] = {
        0: {"a": 1, "b": None, "c": "x", "record": 9},
        1: {"a": 0.5, "b": True, "c": 3, "flagged": None},
        1029: {"flagged": True, "late": "y"},
    }
    changes = (Change(n, side=sides.get(n, {})) for n in range(1030))
    write_changed(dataset, changes, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / SIDE_FILE)
    assert table.num_rows == 1030
    side = table.to_pylist()
    assert [line["record"] for line in side] == list(range(1030))
    assert [side[0][key] for key in "abc"] == [1.0, None, "x"]
    assert [side[1][key] for key in "abc"] == [0.5, True, None]
    assert json.loads(side[0]["more"]) == {"record": 9}
    assert json.loads(side[1]["more"]) == {"c": 3}
    assert side[1029]["flagged"] is True
    assert json.loads(side[1029]["more"]) == {"late": "y"}


def test_the_datasets_library_reads_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "conversations": [
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ],
        }
    )
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Bad."}]
    columns = {
        "image": [{"bytes": jpeg(n), "path": None} for n in range(100)],
        "conversations": [turns] * 100,
    }
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(columns, features).to_parquet(path)
    changes = (Change(n, (f"Good {n}.",), dropped=n % 2 == 0) for n in range(100))
    new = write_changed(open_dataset(path), changes, tmp_path / "out")
    read = datasets.Dataset.from_parquet(str(new), cache_dir=str(tmp_path / "cache"))
    assert read.features == features
    assert read[0]["image"].size == (6, 4)
    assert [row[1]["value"] for row in read["conversations"]] == [
        f"Good {n}." for n in range(1, 100, 2)
    ]


def test_large_parquet_files_keep_sensible_row_groups(tmp_path: Path) -> None:
    rows = [{"question": "Q", "answer": f"{n}", "dates": [n]} for n in range(3000)]
    path = tmp_path / "set.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700, compression="zstd")
    dataset = open_dataset(path)
    new = write_changed(dataset, (Change(n, (f"new {n}",)) for n in range(3000)), tmp_path / "out")
    metadata = pq.read_metadata(new)
    assert metadata.num_row_groups == 3
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert [row.answer for row in samples(open_dataset(new))] == [f"new {n}" for n in range(3000)]
