"""Images as people's exports have them: base64, nulls, other media, names from other systems."""

from __future__ import annotations

import base64
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from purifier.data.audit import BadRowLimit, RowAudit
from purifier.data.dataset import BadRow, DataSet, check_row, open_dataset
from purifier.data.sample import Sample
from purifier.errors import DataError
from purifier.messages import MOST_OF_A_MESSAGE

from .conftest import jpeg, jsonl, pictures, url

TURNS = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A bag."}]
BASE64 = base64.b64encode(jpeg(3)).decode()


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 8, 7)).save(file, kind)
    return file.getvalue()


def row(image: object, **more: Any) -> dict[str, Any]:
    return {"image": image, "conversations": TURNS, **more}


def judged(dataset: DataSet) -> list[Sample | BadRow]:
    """Every row, and as a bad one also where its image cannot be opened."""
    found: list[Sample | BadRow] = []
    for each in dataset.rows():
        bad = check_row(each, dataset.images) if isinstance(each, Sample) else None
        found.append(bad or each)
    return found


def only(dataset: DataSet) -> Sample | BadRow:
    (found,) = judged(dataset)
    return found


def bad(dataset: DataSet) -> BadRow:
    found = only(dataset)
    assert isinstance(found, BadRow)
    return found


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        BASE64 + "\n",
        "\r\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76)),
        base64.urlsafe_b64encode(jpeg(3)).decode(),
        "data:image/jpeg;base64," + BASE64,
        "data:image/jpeg;BASE64," + BASE64[:76] + "\n" + BASE64[76:].rstrip("="),
        {"bytes": BASE64, "path": "a.jpg"},
    ],
    ids=["plain", "unpadded", "newline", "wrapped", "url-safe", "data", "data wrapped", "struct"],
)
def test_base64_is_an_image(text: object, tmp_path: Path) -> None:
    found = only(open_dataset(jsonl(tmp_path / "set.jsonl", [row(text)])))
    assert isinstance(found, Sample)
    assert found.images == (jpeg(3),)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_base64_of_every_format_is_an_image(kind: str, tmp_path: Path) -> None:
    text = base64.b64encode(encoded(kind)).decode()
    found = only(open_dataset(jsonl(tmp_path / "set.jsonl", [row([text])])))
    assert isinstance(found, Sample)
    assert found.images == (encoded(kind),)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_base64_of_other_formats_is_an_image_that_is_not_read(kind: str, tmp_path: Path) -> None:
    text = base64.b64encode(encoded(kind)).decode()
    found = only(open_dataset(jsonl(tmp_path / "set.jsonl", [row([text])])))
    assert isinstance(found, BadRow)
    assert found.reason == "undecodable_image"


def test_names_that_look_like_base64_stay_names(tmp_path: Path) -> None:
    names = ["iVBORw0KGgo", "a" * 64, "0123456789abcdef" * 4, "9j/4AAQ" * 12 + ".jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    rows = judged(open_dataset(jsonl(tmp_path / "set.jsonl", [row(name) for name in names])))
    assert [each.images for each in rows if isinstance(each, Sample)] == [(n,) for n in names]


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("A" * 3_999_997, "undecodable_image", "image is a text of 3,999,997 characters"),
        ("A" * 4_000_000, "undecodable_image", "cannot be read"),
        ("/9j/" + "!" * 4_000_000, "undecodable_image", "neither a file name nor base64"),
        ("https://a.example/?" + "x" * 4_000_000, "missing_image", "is an address"),
        ("a/" * 2000, "missing_image", "does not exist"),
        ("data:image/png;base64,!" + "A" * 4_000_000, "undecodable_image", "data URL in base64"),
        ("data:image/png,AAAA", "undecodable_image", "data URL in base64"),
        ("data:,", "undecodable_image", "data URL in base64"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_no_image_fills_a_message(text: str, reason: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    found = bad(open_dataset(jsonl(tmp_path / "set.jsonl", [row(text)])))
    assert found.reason == reason
    assert message in found.message
    assert len(found.message) < 400


def test_no_field_fills_a_message(tmp_path: Path) -> None:
    long = "x" * 4_000_000
    rows = [row(None, conversations=[{"from": long, "value": "?"}]), row(None, id=[long])]
    rows += [{"question": "Q", "answer": "A", "id": long}] * 2
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", rows))
    audit = RowAudit(BadRowLimit(share=0.0))
    for each in dataset.rows():
        audit.see(each)
    assert [each.reason for each in audit.examples] == ["malformed", "malformed", "duplicate_id"]
    assert all(len(each.message) <= MOST_OF_A_MESSAGE for each in audit.examples)
    with pytest.raises(DataError) as caught:
        audit.finish()
    assert len(caught.value.message) <= MOST_OF_A_MESSAGE


def test_a_null_in_a_list_is_a_bad_row(tmp_path: Path) -> None:
    struct = {"bytes": jpeg(1), "path": None}
    lists = [[struct], [None], [struct, None], [{"bytes": None, "path": None}]]
    rows = [{"images": images, "conversations": TURNS} for images in lists]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    found = judged(open_dataset(tmp_path / "set.parquet"))
    assert isinstance(found[0], Sample)
    messages = [each.message for each in found if isinstance(each, BadRow)]
    assert [message.split(" is empty")[0] for message in messages] == [
        "set.parquet, record 1: images[0]",
        "set.parquet, record 2: images[1]",
        "set.parquet, record 3: images[0]",
    ]
    assert {each.reason for each in found if isinstance(each, BadRow)} == {"malformed"}


@pytest.mark.parametrize("empty", [[], "[]", None])
def test_an_empty_list_does_not_hide_the_images_of_another_key(empty: Any, tmp_path: Path) -> None:
    row = {"image": empty, "images": ["0.jpg"], "conversations": TURNS}
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    [found] = judged(open_dataset(jsonl(tmp_path / "set.jsonl", [row])))
    assert isinstance(found, Sample)
    assert found.images == ("0.jpg",)


def test_a_null_image_makes_a_text_only_row_that_is_counted(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": jpeg(1)}, "question": "What?", "answer": "A"},
        {"image": None, "question": "What?", "answer": "B"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    audit = RowAudit()
    for each in open_dataset(tmp_path / "set.parquet").rows():
        audit.see(each)
    audit.finish()
    told = ["Rows whose image field is null: 1. They are read as text alone."]
    assert audit.remark_lines() == audit.to_dict()["remarks"] == told


def test_a_null_image_leaves_no_mark_and_no_caption_alone(tmp_path: Path) -> None:
    rows = [row(None), {"image": None, "caption": "A bag."}]
    found = judged(open_dataset(jsonl(tmp_path / "set.jsonl", rows)))
    assert [each.reason for each in found if isinstance(each, BadRow)] == ["image_count"] * 2
    assert isinstance(found[1], BadRow)
    assert "neither an image nor a question" in found[1].message


@pytest.mark.parametrize("image", ["", [""], {"bytes": "", "path": ""}, {}])
def test_an_empty_image_is_named(image: object, tmp_path: Path) -> None:
    found = bad(open_dataset(jsonl(tmp_path / "set.jsonl", [row(image)])))
    assert found.reason == "malformed"
    assert "is empty; it must be a file name" in found.message


@pytest.mark.parametrize("key", ["video", "videos", "audio", "audios", "video_path"])
@pytest.mark.parametrize("image", [None, "0.jpg"])
def test_other_media_are_a_bad_row(key: str, image: str | None, tmp_path: Path) -> None:
    pictures(tmp_path)
    turns = [{"from": "human", "value": "<video>What?"}, TURNS[1]]
    record = {"image": image, key: "a.mp4", "conversations": TURNS if image else turns}
    found = bad(open_dataset(jsonl(tmp_path / "set.jsonl", [record])))
    assert found.reason == "malformed"
    assert found.message.startswith(f"set.jsonl, record 0: {key} is not read")


@pytest.mark.parametrize(
    "record",
    [
        {"video": None, "conversations": [{"from": "human", "value": "What? <video>"}, TURNS[1]]},
        {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, TURNS[1]]},
        {"question": "<audio>\nWho speaks?", "answer": "A man."},
        {"audios": [], "texts": [{"user": "<audio>Who?", "assistant": "A man."}]},
    ],
)
def test_a_mark_without_its_media_is_a_bad_row(record: dict[str, Any], tmp_path: Path) -> None:
    found = bad(open_dataset(jsonl(tmp_path / "set.jsonl", [record])))
    assert found.reason == "malformed"
    assert re.match(r"set.jsonl, record 0: a question has the mark <(video|audio)>", found.message)


def test_a_question_may_speak_of_the_tag(tmp_path: Path) -> None:
    rows = [
        {"question": "What does <video> do in HTML?", "answer": "It shows a video."},
        {"question": "<video> or <img>?", "answer": "Write <video>\nor <img>."},
    ]
    found = judged(open_dataset(jsonl(tmp_path / "set.jsonl", rows)))
    assert [type(each) for each in found] == [Sample, Sample]


def test_a_place_for_other_media_may_be_empty(tmp_path: Path) -> None:
    pictures(tmp_path)
    empty: dict[str, Any] = {"video": None, "videos": [], "audio": ""}
    assert isinstance(
        only(open_dataset(jsonl(tmp_path / "set.jsonl", [row("0.jpg", **empty)]))), Sample
    )


def test_names_of_windows_are_found(tmp_path: Path) -> None:
    pictures(tmp_path / "images" / "train")
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    names = ["train\\0.jpg", ".\\train\\..\\train\\1.jpg", "..\\secret.jpg", "C:\\train\\0.jpg"]
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", [row(name) for name in names]))
    assert dataset.images == tmp_path / "images"
    found = judged(dataset)
    assert [isinstance(each, Sample) for each in found] == [True, True, False, False]
    messages = [each.message for each in found if isinstance(each, BadRow)]
    assert "lies outside the image folder" in messages[0]
    assert "does not exist" in messages[1]


def test_a_file_may_have_a_backslash_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a\\b.jpg").write_bytes(jpeg(1))
    assert isinstance(only(open_dataset(jsonl(tmp_path / "set.jsonl", [row("a\\b.jpg")]))), Sample)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("scene.JPG", "scene.jpg"),
        ("scene.jpeg", "scene.jpg"),
        ("Scene.Jpg", "scene.jpg"),
        ("LOUD.png", "LOUD.PNG"),
        ("coco/train/scene.jpg", "scene.jpg"),
        ("coco\\scene.jpg", "scene.jpg"),
        (unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.jpg")),
    ],
)
def test_the_file_that_was_probably_meant_is_named(name: str, meant: str, tmp_path: Path) -> None:
    for file in ("scene.jpg", "LOUD.PNG", unicodedata.normalize("NFC", "é.jpg")):
        (tmp_path / file).write_bytes(jpeg(1))
    found = bad(open_dataset(jsonl(tmp_path / "set.jsonl", [row(name)])))
    assert found.reason == "missing_image"
    assert found.message.endswith(
        f"{name!r} does not exist in the image folder; {meant!r} does: mend the name."
    )


def test_nothing_outside_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "scene.jpg").write_bytes(jpeg(1))
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "scene.jpg")
    rows = [row("../scene.JPG"), row("link.JPG")]
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", rows), images=tmp_path / "images")
    for each in judged(dataset):
        assert isinstance(each, BadRow)
        assert "mend the name." not in each.message.split("; ")[-1].replace(
            "add the file or mend the name.", ""
        )


def test_an_image_of_a_url_row_is_still_read(tmp_path: Path) -> None:
    dataset = open_dataset(jsonl(tmp_path / "set.jsonl", [row(url(jpeg(2)))]))
    found = only(dataset)
    assert isinstance(found, Sample)
    assert found.images == (jpeg(2),)
    assert json.dumps(found.extra) == "{}"
