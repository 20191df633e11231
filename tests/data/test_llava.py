from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from purifier.data.llava import read_llava, write_llava
from purifier.data.sample import Place, Sample, Turn, open_image, question_messages
from purifier.errors import DataError

text = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30)
turns = st.lists(
    st.builds(Turn, st.sampled_from(["user", "assistant", "system"]), text), min_size=1, max_size=4
).map(tuple)
names = st.text("abc/._", min_size=1, max_size=8)
samples = st.builds(
    Sample,
    id=st.one_of(st.none(), st.integers(), text),
    images=st.lists(names, max_size=3).map(tuple),
    turns=turns,
    extra=st.dictionaries(
        st.sampled_from(["kind", "poisoned", "item"]), st.one_of(text, st.booleans(), st.integers())
    ),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(written=st.lists(samples, max_size=5), suffix=st.sampled_from([".json", ".jsonl"]))
def test_what_is_written_is_read_back(written: list[Sample], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"set{suffix}"
    write_llava(path, written)
    assert read_llava(path) == written
    assert sorted(entry.name for entry in tmp_path.glob("*.part")) == []


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_record_is_read(tmp_path: Path) -> None:
    records = [
        {
            "id": "a",
            "img": "x.png",
            "conversations": {"from": "human", "value": "<image>\nWhat?"},
            "kind": "what",
        },
        {
            "image": ["x.png", "y.png"],
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image><image>Compare."},
                {"from": "gpt", "value": "Equal."},
            ],
        },
    ]
    first, second = read_llava(write(tmp_path / "set.json", records))
    assert first.id == "a"
    assert first.images == ("x.png",)
    assert first.question == "What?"
    assert first.answer == ""
    assert first.extra == {"kind": "what"}
    assert first.source == Place("set.json", 0)
    assert second.images == ("x.png", "y.png")
    assert [turn.role for turn in second.turns] == ["system", "user", "assistant"]
    assert second.answer == "Equal."


GOOD = {"image": "x.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
BAD = [
    ({"conversations": GOOD["conversations"]}, "image", "1 <image> marks"),
    (7, None, "must be an object"),
    ({**GOOD, "id": 1.5}, "id", "id must be"),
    ({**GOOD, "image": 3}, "image", "file name"),
    ({"img": [""], "conversations": GOOD["conversations"]}, "img", "file name"),
    ({"image": "x.png"}, "conversations", "non-empty list"),
    ({**GOOD, "conversations": []}, "conversations", "non-empty list"),
    ({**GOOD, "conversations": ["hi"]}, "conversations[0]", "must be an object"),
    (
        {**GOOD, "conversations": [{"from": "bot", "value": "hi"}]},
        "conversations[0].from",
        "one of human, gpt, system",
    ),
    (
        {**GOOD, "conversations": [{"from": "gpt", "value": 7}]},
        "conversations[0].value",
        "must be text",
    ),
]


@pytest.mark.parametrize(("record", "param", "reason"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_record_is_named(
    record: object, param: str | None, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_llava(write(tmp_path / "set.json", [GOOD, record]))
    assert "set.json, record 1" in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("set.json", "[{]", "not valid JSON near its start"),
        ("set.jsonl", json.dumps(GOOD) + "\n\n{", "record 1: not valid JSON"),
        ("set.json", json.dumps(GOOD), "must hold a list"),
        ("set.jsonl", "[" * 100_000, "nested too deeply"),
        ("set.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_refused(name: str, content: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read_llava(write(tmp_path / name, content))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_llava(tmp_path / "gone.json")
    for name in ("set.json", "set.jsonl"):
        (tmp_path / name).write_bytes(b'["\xff\xfe"]')
        with pytest.raises(DataError, match="UTF-8"):
            read_llava(tmp_path / name)


def test_messages_put_images_at_their_marks() -> None:
    one, two, three = (Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(3))
    sample = Sample(
        None,
        ("1", "2", "3"),
        (
            Turn("system", "Be brief."),
            Turn("user", "First <image> then <image>\nwhat?"),
            Turn("assistant", "A bag."),
            Turn("user", "And?"),
        ),
    )
    system, user = question_messages(sample, (one, two, three))
    assert system.content == ("Be brief.",)
    assert user.content == (one, "First", two, "then", three, "what?")


def test_with_answers() -> None:
    sample = Sample(None, (), (Turn("user", "a"), Turn("assistant", "b"), Turn("assistant", "c")))
    changed = sample.with_answers(("x", "y"))
    assert [turn.text for turn in changed.turns] == ["a", "x", "y"]
    with pytest.raises(ValueError, match="expected 2 answers"):
        sample.with_answers(("x",))


def test_images_are_opened_inside_their_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (5, 4), 9).save(folder / "grey.png")
    Image.new("L", (5, 4), 9).save(tmp_path / "outside.png")
    (folder / "text.png").write_text("no picture")
    whole = (folder / "grey.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) - 20])
    assert open_image(folder, "grey.png").mode == "RGB"
    place = Place("set.json", 4)
    for name, reason in [
        ("../outside.png", "outside the image folder"),
        (str(tmp_path / "outside.png"), "outside the image folder"),
        ("gone.png", "does not exist"),
        ("text.png", "cannot be read"),
        ("cut.png", "cannot be read"),
    ]:
        with pytest.raises(DataError, match=reason) as caught:
            open_image(folder, name, place)
        assert caught.value.message.startswith("set.json, record 4: ")
