"""Random and damaged data sets, and what must hold for every one of them.

Each property takes what hypothesis has drawn and a folder; it fails if reading ends with another
error than those of the product, or if a row comes out that cannot be used.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from purifier.data.audit import BadRowLimit, RowAudit
from purifier.data.columns import ANSWER_KEYS, CAPTION_KEYS, QUESTION_KEYS
from purifier.data.dataset import REASONS, BadRow, check_row, open_dataset
from purifier.data.dialogue import DIALOGUE_KEYS, ROLES
from purifier.data.image_fields import IMAGE_KEYS
from purifier.data.image_files import image_file
from purifier.data.sample import IMAGE_MARK, Sample
from purifier.data.unread import MEDIA_KEYS
from purifier.data.write_back import Change, write_changed
from purifier.errors import DataError, RowError
from purifier.messages import MOST_OF_A_MESSAGE
from tests.support.fuzzing import Properties

FURTHER = (("Why?", "So."),)


def picture(kind: str) -> bytes:
    """A small encoded image."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (9, 8, 7)).save(file, kind)
    return file.getvalue()


PICTURES = tuple(picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"))
ODD_NAMES = ("data:,", "https://x/y", "A" * 5000, "A" * 5001, "a/" * 3000, "é" * 300)
NAMES = ("0.png", "sub/1.jpg", "sub\\1.jpg", "../0.png", "0.PNG", "/etc/passwd", "a\0b", "~", "")

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["What?", IMAGE_MARK, f"{IMAGE_MARK}\nWhat?", " ", "\ud800", "\u2028", "[", "{"]
    ),
)
encoded = st.sampled_from(PICTURES).flatmap(
    lambda data: st.sampled_from(
        [
            base64.b64encode(data).decode(),
            base64.urlsafe_b64encode(data).decode().rstrip("="),
            "data:image/png;base64," + base64.b64encode(data).decode(),
            base64.b64encode(data).decode()[:-7],
        ]
    )
)
images = st.one_of(st.none(), st.sampled_from(NAMES), encoded, texts, st.sampled_from(ODD_NAMES))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
parts = st.one_of(
    texts,
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.fixed_dictionaries({"type": st.just("image")}, optional={"image": images}),
    st.fixed_dictionaries(
        {
            "type": st.just("image_url"),
            "image_url": st.one_of(images, st.fixed_dictionaries({"url": images})),
        }
    ),
    nested,
)
contents = st.one_of(texts, st.lists(parts, max_size=3), nested)
roles = st.one_of(st.sampled_from(sorted(ROLES)), texts)
turns = st.one_of(
    st.fixed_dictionaries({"from": roles, "value": contents}),
    st.fixed_dictionaries({"role": roles, "content": contents}, optional={"from": roles}),
    nested,
)
rounds = st.tuples(texts, texts).map(
    lambda pair: [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]
)
dialogues = st.one_of(rounds, st.lists(turns, max_size=4), nested)
pairs = st.lists(
    st.one_of(st.fixed_dictionaries({"user": contents, "assistant": contents}), nested), max_size=3
)
structs = st.fixed_dictionaries({"bytes": st.none() | encoded, "path": images})


def written(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values, or their JSON text."""
    return values | values.map(json.dumps)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(DIALOGUE_KEYS, written(dialogues)),
    **dict.fromkeys(IMAGE_KEYS, written(st.one_of(images, structs, st.lists(images, max_size=3)))),
    **dict.fromkeys((*QUESTION_KEYS, *ANSWER_KEYS, *CAPTION_KEYS), texts | nested),
    **dict.fromkeys(MEDIA_KEYS, st.none() | texts),
    "id": plain | nested,
    "texts": written(pairs),
    "answers": nested,
    "input": texts | nested,
    "history": nested,
}


@st.composite
def records(draw: st.DrawFn) -> Any:
    """A record that is nearly right: some of the fields that mean something, and others."""
    if draw(st.integers(0, 19)) == 0:
        return draw(nested)
    kept = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True))
    record = {name: draw(FIELDS[name]) for name in kept}
    layouts: tuple[dict[str, Any], ...] = (
        {},
        {"conversations": draw(rounds)},
        {"question": draw(texts), "answer": draw(texts)},
        {"texts": [{"user": draw(texts), "assistant": draw(texts)}]},
    )
    return {**record, **draw(st.sampled_from(layouts)), **draw(st.just({}) | st.just({"x": 1}))}


@contextmanager
def folder_of_images() -> Iterator[Path]:
    """A new folder with the images that `NAMES` speaks of."""
    folder = Path(tempfile.mkdtemp())
    (folder / "sub").mkdir()
    (folder / "0.png").write_bytes(PICTURES[0])
    (folder / "sub" / "1.jpg").write_bytes(PICTURES[1])
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def json_records(rows: list[Any], suffix: str) -> None:
    """Any records as JSON are rows that can be used and written, or bad ones with a reason."""
    with folder_of_images() as folder:
        path = folder / f"set{suffix}"
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]")
        holds(path)


def table_records(rows: list[dict[str, Any]]) -> None:
    """The same of a table; its columns take their types from the rows."""
    columns = {name for row in rows for name in row}
    arrays = {}
    for name in sorted(columns):
        values = [row.get(name) for row in rows]
        # A name with half of a surrogate pair cannot be stored.
        column = name.encode(errors="replace").decode()
        try:
            arrays[column] = pa.array(values)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            arrays[column] = pa.array([json.dumps(value) for value in values])
    with folder_of_images() as folder:
        path = folder / "set.parquet"
        try:
            pq.write_table(pa.table(arrays), path)
        except pa.ArrowNotImplementedError:
            # A column of empty structs cannot be written at all.
            return
        holds(path)


def damaged_file(suffix: str, content: bytes) -> None:
    """Whatever bytes a label file holds, reading ends or says what is wrong."""
    with folder_of_images() as folder:
        path = folder / f"set{suffix}"
        path.write_bytes(content)
        holds(path)


def damaged_image(content: bytes) -> None:
    """Whatever bytes an image holds, it is opened or is a bad row."""
    sample = Sample(None, (content,), ())
    bad = check_row(sample, Path())
    assert bad is None or bad.reason == "undecodable_image"


def image_name(name: str) -> None:
    """Whatever a name is, it leads to a file of the folder or to a bounded message."""
    with folder_of_images() as folder:
        inner = folder / "sub"
        found: Path | RowError
        try:
            found = image_file(inner, name, "")
        except RowError as error:
            found = error
        if isinstance(found, RowError):
            assert found.reason == "missing_image"
            assert len(found.message) <= 400
        else:
            assert found.is_relative_to(inner.resolve())
            assert found.is_file()


def holds(path: Path) -> None:
    """What must hold of any label file."""
    refusal = ""
    try:
        dataset = open_dataset(path)
        rows = list(dataset.rows())
    except DataError as error:
        refusal = error.message
    if refusal:
        assert len(refusal) <= MOST_OF_A_MESSAGE
        assert str(path.parent) not in refusal
        return
    audit = RowAudit(BadRowLimit(share=None))
    usable = []
    for number, row in enumerate(rows):
        bad = row if isinstance(row, BadRow) else check_row(row, dataset.images)
        audit.see(bad or row)
        if bad is not None:
            assert bad.reason in REASONS
            assert bad.message.startswith(f"{path.name}, record {number}: ")
            assert len(bad.message) <= MOST_OF_A_MESSAGE
        if isinstance(row, Sample):
            _is_whole(row, number)
            usable.append(row)
    json.dumps(audit.to_dict())
    _is_written(path, usable)


def _is_whole(row: Sample, number: int) -> None:
    assert row.source is not None
    assert row.source.record == number
    asked = [turn for turn in row.turns if turn.role == "user"]
    assert sum(turn.n_images for turn in asked) == len(row.images)
    assert asked
    assert row.answers
    assert all(answer.strip() for answer in row.answers)
    for turn in row.turns:
        turn.text.encode()


def _is_written(path: Path, usable: list[Sample]) -> None:
    """New answers, and further rows, are read back as they were written."""
    dataset = open_dataset(path)
    changes = []
    for row in usable:
        assert row.source is not None
        new = tuple(f"New {at} é" for at in range(len(row.answers)))
        changes.append(Change(row.source.record, new, further=FURTHER if row.images else ()))
    refusal = ""
    try:
        out = write_changed(dataset, changes, path.parent / "out", further=True)
    except DataError as error:
        refusal = error.message
    if refusal:
        # A column may not hold the new text or id.
        assert path.suffix == ".parquet"
        assert "cannot hold" in refusal
        return
    if not usable:
        return
    read = iter(open_dataset(out, images=dataset.images).rows())
    for row, change in zip(usable, changes, strict=True):
        again = next(read)
        assert isinstance(again, Sample), again
        assert (again.id, again.images, again.answers) == (row.id, row.images, change.answers)
        for question, answer in change.further:
            made = next(read)
            assert isinstance(made, Sample), made
            assert (made.question, made.answer, made.images) == (question, answer, row.images)
    assert next(read, None) is None


def _seed_files() -> dict[str, tuple[bytes, ...]]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bag."}]
    rows = [{"id": n, "image": "0.png", "conversations": turns, "note": "é"} for n in range(4)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[2] = lines[2].replace('"id": 2', '"id": 2, "n": ' + "1" * 5000)
    tables = []
    for compression in ("none", "snappy"):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file, compression=compression)
        tables.append(file.getvalue())
    return {
        ".jsonl": ("\n".join(lines).encode(), "\n".join(lines).encode("utf-16")),
        ".json": (f"[{','.join(lines)}]".encode(), json.dumps(rows, indent=1).encode()),
        ".parquet": tuple(tables),
    }


SEED_FILES = _seed_files()


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Bytes of a good file with some places changed, cut out, doubled or cut off."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(len(content), at + draw(st.integers(1, 40)))
        kind = draw(st.sampled_from(["byte", "insert", "delete", "double", "cut"]))
        if kind == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del content[at:end]
        elif kind == "double":
            content[at:at] = content[at:end]
        elif kind == "cut":
            del content[at:]
    return bytes(content)


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The ending of a label file and its bytes."""
    suffix = draw(st.sampled_from(sorted(SEED_FILES)))
    return suffix, draw(st.one_of(damaged(SEED_FILES[suffix]), st.binary(max_size=60)))


@st.composite
def named_records(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of a table."""
    rows = draw(st.lists(records(), min_size=1, max_size=4))
    return [row for row in rows if isinstance(row, dict)]


PROPERTIES: Properties = {
    "records as JSON": (
        json_records,
        st.tuples(
            st.lists(records(), min_size=1, max_size=4), st.sampled_from([".json", ".jsonl"])
        ),
    ),
    "records as parquet": (table_records, st.tuples(named_records())),
    "damaged label files": (damaged_file, damaged_files()),
    "damaged images": (damaged_image, st.tuples(damaged(PICTURES))),
    "names of images": (
        image_name,
        st.tuples(st.one_of(st.text(), st.sampled_from(NAMES), st.text("./\\a0-é:~", max_size=9))),
    ),
}
"""What is fuzzed: the property, and what it is given."""
