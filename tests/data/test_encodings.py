"""Label files that programs of other kinds have written: encodings, NaN, one bad place in many."""

from __future__ import annotations

import codecs
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from purifier.data.dataset import BadRow, open_dataset
from purifier.data.json_array import JsonArray
from purifier.data.llava import read_llava
from purifier.data.sample import Sample
from purifier.data.write_back import Change, write_changed
from purifier.errors import DataError

from .conftest import jsonl

ROW = {"question": "Què?", "answer": "Això."}
BOM = codecs.BOM_UTF8


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-32-be", "UTF-32"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_other_encodings_are_named(encoding: str, name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"set.{suffix}"
    path.write_text(json.dumps([ROW] if suffix == "json" else ROW), encoding)
    with pytest.raises(DataError, match=f"{path.name} is {name} text; save it as UTF-8"):
        open_dataset(path)
    with pytest.raises(DataError, match=f"is {name} text"):
        read_llava(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_latin_1_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"set.{suffix}"
    text = json.dumps([ROW] if suffix == "json" else ROW, ensure_ascii=False)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text.*; save the file as UTF-8"):
        read_llava(path)


def test_byte_order_marks_are_read_over(tmp_path: Path) -> None:
    line = json.dumps(ROW, ensure_ascii=False).encode()
    path = tmp_path / "joined.jsonl"
    # Two files, each with its mark, and a third one that held nothing else.
    path.write_bytes(BOM + line + b"\n" + BOM + line + b"\n" + BOM + b"\n")
    assert [type(each) for each in open_dataset(path).rows()] == [Sample, Sample]
    new = write_changed(open_dataset(path), [Change(0), Change(1, ("So.",))], tmp_path / "out")
    assert [type(each) for each in open_dataset(new).rows()] == [Sample, Sample]
    array = tmp_path / "set.json"
    array.write_bytes(BOM + b"[" + line + b"]")
    assert [type(each) for each in open_dataset(array).rows()] == [Sample]


def test_nan_is_kept_where_it_is_not_read(tmp_path: Path) -> None:
    rows = [{**ROW, "score": math.nan, "far": math.inf}, ROW]
    path = jsonl(tmp_path / "set.jsonl", rows)
    first, _ = open_dataset(path).rows()
    assert isinstance(first, Sample)
    assert math.isnan(first.extra["score"])
    changes = [Change(0, ("So.",)), Change(1)]
    new = write_changed(open_dataset(path), changes, tmp_path / "out").read_text()
    assert new.splitlines()[0].endswith('"answer": "So.", "score": NaN, "far": Infinity}')


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**ROW, "answer": math.nan}, "answer must be text, not NaN"),
        ({**ROW, "question": math.nan}, "question must be text, not NaN"),
        ({**ROW, "image": math.nan}, "image must be a file name.* not NaN"),
        ({**ROW, "id": math.nan}, "id must be text or a whole number"),
        (
            {"conversations": [{"from": "human", "value": math.nan}]},
            r"conversations\[0\].value must be text, not NaN",
        ),
    ],
)
def test_nan_is_named_where_it_is_read(
    record: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"set.jsonl, record 0: {message}"):
        read_llava(jsonl(tmp_path / "set.jsonl", [record]))


def test_a_number_that_is_too_long_is_no_crash(tmp_path: Path) -> None:
    record = json.dumps({**ROW, "n": 0}).replace(" 0}", " " + "1" * 5000 + "}")
    path = tmp_path / "set.jsonl"
    path.write_text(record + "\n" + json.dumps(ROW))
    bad, good = open_dataset(path).rows()
    assert isinstance(bad, BadRow)
    assert "a whole number has too many digits" in bad.message
    assert isinstance(good, Sample)
    array = tmp_path / "set.json"
    array.write_text(f"[{json.dumps(ROW)},\n{record}]")
    with pytest.raises(DataError, match=r"after record 0 \(line 2, byte \d+\): a whole number"):
        read_llava(array)


def write_many(path: Path, n: int, bad: str) -> Path:
    """A list of `n` records, the one in the middle of which is `bad`; written as a stream."""
    with path.open("w") as file:
        file.write("[\n")
        for number in range(n):
            record = {"id": number, "question": f"What is {number}?", "answer": "A bag."}
            text = bad if number == n // 2 else json.dumps(record)
            file.write(text + (",\n" if number < n - 1 else "\n]\n"))
    return path


N_MANY = 30_000


def test_a_bad_record_among_many_is_named_and_the_others_read(tmp_path: Path) -> None:
    path = write_many(tmp_path / "set.json", N_MANY, '{"id": "middle", "question": "What?"}')
    bad = [row for row in open_dataset(path).rows() if isinstance(row, BadRow)]
    assert [row.place.record for row in bad] == [N_MANY // 2]
    assert bad[0].message.startswith(f"set.json, record {N_MANY // 2}: ")


@pytest.mark.parametrize("broken", ['{"id": "middle", "question": }', '{"id": "middle"} {'])
def test_a_broken_record_among_many_is_named_by_index_and_line(broken: str, tmp_path: Path) -> None:
    path = write_many(tmp_path / "set.json", N_MANY, broken)
    middle = N_MANY // 2
    before = middle if broken.endswith("{") else middle - 1
    byte = path.read_text().index(broken)
    with pytest.raises(DataError, match=f"not valid JSON after record {before} ") as caught:
        list(open_dataset(path).rows())
    # The list's bracket has the first line.
    assert f"(line {middle + 2:,}, byte {byte // 10_000}"[:12] in caught.value.message
    file = JsonArray(path)
    assert len(list(file.records(0, middle))) == middle
    # Read from a kept place in the middle, the line is the same.
    with pytest.raises(DataError) as again:
        list(file.records(middle - 10))
    assert again.value.message == caught.value.message


def test_a_mistake_in_a_list_on_one_line_is_named_by_its_byte(tmp_path: Path) -> None:
    text = json.dumps([ROW, ROW], ensure_ascii=False)[:-1] + ', {"x" 1}]'
    path = tmp_path / "set.json"
    path.write_text(text)
    byte = len(text[: text.index(" 1}") + 1].encode())
    with pytest.raises(DataError, match=rf"after record 1 \(line 1, byte {byte}\)"):
        list(JsonArray(path).records())


def test_text_of_a_table_that_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    texts = pa.array([b"A bag.", b"\xff\xfe", b"A boat."])
    answers = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    table = pa.table({"question": ["What?"] * 3, "answer": answers})
    path = tmp_path / "set.parquet"
    pq.write_table(table, path)
    rows = list(open_dataset(path).rows())
    assert [type(row) for row in rows] == [Sample, BadRow, Sample]
    assert isinstance(rows[1], BadRow)
    assert rows[1].message == ("set.parquet, record 1: 'answer' cannot be read; is its text UTF-8?")
    changes = [Change(0, ("So.",)), Change(2)]
    new = write_changed(open_dataset(path), changes, tmp_path / "out")
    assert pq.read_table(new)["answer"].to_pylist() == ["So.", "A boat."]


def test_a_table_whose_names_are_not_utf_8_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    nested = pa.array([[{"from": "human"}]])
    pq.write_table(pa.table({"conversations": nested}), path, store_schema=False)
    content = path.read_bytes()
    assert content.count(b"from") > 1
    path.write_bytes(content.replace(b"from", b"\x80rom"))
    with pytest.raises(DataError, match=r"set\.parquet is damaged or no parquet file"):
        list(open_dataset(path).rows())
