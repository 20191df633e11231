"""Rows become examples: what is labelled, what fills an answer up, what cannot be used."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifier.data.dataset import open_dataset
from purifier.errors import DataError
from purifier.mdlm.base import IGNORE_LABEL, IMAGE_PLACEHOLDER, Mdlm, Message
from purifier.mdlm.registry import load_mdlm
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.examples import Example, TrainingRows
from tests.tuning.conftest import CONFIG, records, turns


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return load_mdlm(tiny_checkpoint)


def rows_of(mdlm: Mdlm, data: Path, config: FinetuneConfig) -> dict[str, Example]:
    rows = TrainingRows(mdlm, open_dataset(data), config)
    names = [record["id"] for record in json.loads(data.read_text())]
    return {name: rows[number] for number, name in enumerate(names)}


def labelled_text(mdlm: Mdlm, example: Example) -> str:
    text = example.text
    return mdlm.decode(text.labels[(text.labels != IGNORE_LABEL) & ~text.filler].tolist())


def test_answers_alone_are_labelled(mdlm: Mdlm, data: Path) -> None:
    rows = rows_of(mdlm, data, replace(CONFIG, answer_length=None))
    assert labelled_text(mdlm, rows["one-1"]) == "A boat. A boat."
    assert labelled_text(mdlm, rows["several"]) == "The boat.The left one."
    assert labelled_text(mdlm, rows["text"]) == "No, it is a boat."
    for example in rows.values():
        text = example.text
        assert not text.filler.any()
        assert text.labels[-1] == mdlm.tokens.eot
        assert int((text.labels == mdlm.tokens.eot).sum()) == int(text.turns.max()) + 1
        assert int((text.ids == IMAGE_PLACEHOLDER).sum()) == len(example.images)
    assert len(rows["several"].images) == 2
    assert rows["several"].text.turns.tolist() == sorted(rows["several"].text.turns.tolist())
    assert rows["text"].images == ()


def test_the_published_labels_take_in_the_chat_marks(mdlm: Mdlm, data: Path) -> None:
    config = replace(CONFIG, answer_length=None)
    ours = rows_of(mdlm, data, config)["several"].text
    published = rows_of(mdlm, data, replace(config, labels="reference"))["several"].text
    assert torch.equal(ours.ids, published.ids)
    added = published.ids[(published.labels != IGNORE_LABEL) & (ours.labels == IGNORE_LABEL)]
    tokens = mdlm.tokens
    role = mdlm.encode_text("assistant")
    newlines = mdlm.encode_text("\n\n")
    marks = {tokens.bos, tokens.start_header, tokens.end_header, tokens.eot}
    assert set(added.tolist()) == marks | set(role) | set(newlines)
    # Of roles, the assistant's alone is labelled.
    assert sum(added.tolist().count(token) for token in role) == 2 * len(role)


def test_a_dialogue_begins_as_the_prompt_does(mdlm: Mdlm, data: Path) -> None:
    text = rows_of(mdlm, data, CONFIG)["text"].text
    prompt = mdlm.prepare([Message("user", ("Is this a bag?",))]).ids
    assert torch.equal(text.ids[: len(prompt)], prompt)
    assert bool((text.labels[: len(prompt)] == IGNORE_LABEL).all())


def test_the_last_answer_is_filled_up(mdlm: Mdlm, data: Path) -> None:
    for example in rows_of(mdlm, data, replace(CONFIG, answer_length=20)).values():
        text = example.text
        last = (text.labels != IGNORE_LABEL) & (text.turns == text.turns[-1])
        assert int(last.sum()) == 20
        assert bool((text.ids[text.filler] == mdlm.tokens.eot).all())
        assert torch.equal(text.labels[text.filler], text.ids[text.filler])
    short = rows_of(mdlm, data, replace(CONFIG, answer_length=1))
    assert not any(example.text.filler.any() for example in short.values())


def test_features_are_the_same_with_and_without_memory(mdlm: Mdlm, data: Path) -> None:
    kept = TrainingRows(mdlm, open_dataset(data), CONFIG)
    none = TrainingRows(mdlm, open_dataset(data), replace(CONFIG, cache_mb=0))
    for number in range(len(kept)):
        for one, other in zip(kept[number].images, none[number].images, strict=True):
            assert torch.equal(one.features, other.features)
            assert (one.size, one.n_tokens) == (other.size, other.n_tokens)
    assert kept[0].images[0].features is kept[0].images[0].features
    assert none[0].images[0].features is not none[0].images[0].features


def test_short_numbers_of_a_training_do_not_reach_the_frozen_tower(mdlm: Mdlm, data: Path) -> None:
    kept = TrainingRows(mdlm, open_dataset(data), CONFIG)
    none = TrainingRows(mdlm, open_dataset(data), replace(CONFIG, cache_mb=0))
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (rows[0].images[0].features for rows in (kept, none))
    assert torch.equal(one, other)


def test_bad_rows_are_reported_and_limited(mdlm: Mdlm, tmp_path: Path) -> None:
    rows = records(tmp_path)[:2]
    rows.append(rows[0] | {"id": "gone", "image": "gone.png"})
    long = turns("Say it again.", "A boat. " * 2000)
    rows.append({"id": "long", "conversations": long})
    rows.append({"id": "silent", "conversations": turns("What?", " ")})
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(rows))
    usable = TrainingRows(mdlm, open_dataset(file), CONFIG)
    assert len(usable) == 2
    assert [row.place.record for row in usable.bad] == [2, 3, 4]
    assert [row.reason for row in usable.bad] == [
        "missing_image",
        "prompt_too_long",
        "empty_answer",
    ]
    assert re.fullmatch(
        r"labels.json, record 3: The dialogue has [\d,]+ positions, images included; this model "
        r"takes \d+ at most. Shorten the text or use fewer images.",
        usable.bad[1].message,
    )
    with pytest.raises(DataError, match="More than 2 rows"):
        TrainingRows(mdlm, open_dataset(file), replace(CONFIG, bad_rows=2))
    file.write_text(json.dumps(rows[2:]))
    with pytest.raises(DataError, match="no usable row"):
        TrainingRows(mdlm, open_dataset(file, images=tmp_path), CONFIG)


def test_a_question_without_answer_at_the_end_is_left_out(mdlm: Mdlm, tmp_path: Path) -> None:
    row = {"id": "open", "conversations": turns("Is it?", "Yes.", "And this?")}
    file = tmp_path / "labels.json"
    file.write_text(json.dumps([row]))
    example = TrainingRows(mdlm, open_dataset(file), replace(CONFIG, answer_length=None))[0]
    assert labelled_text(mdlm, example) == "Yes."
    assert example.text.labels[-1] == mdlm.tokens.eot


def test_a_dialogue_is_trained_whole_or_not_at_all(mdlm: Mdlm, tmp_path: Path) -> None:
    """The longest answer that fits is labelled to its end; one word more is a bad row."""

    def read(n_words: int) -> TrainingRows:
        row = {"id": "long", "conversations": turns("Say it again.", " boat" * n_words)}
        text = {"id": "text", "conversations": turns("Is it?", "Yes.")}
        file = tmp_path / "labels.json"
        file.write_text(json.dumps([text, row]))
        return TrainingRows(mdlm, open_dataset(file), CONFIG)

    low, high = 1, 2 * mdlm.max_length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(read(middle)) == 2 else (low, middle)
    whole = read(low)[1].text
    assert len(whole.ids) <= mdlm.max_length
    answer = mdlm.encode_text((" boat" * low).strip())
    labelled = whole.labels[(whole.labels != IGNORE_LABEL) & ~whole.filler].tolist()
    assert labelled == [*answer, mdlm.tokens.eot]
    (bad,) = read(high).bad
    assert (bad.place.record, bad.reason) == (1, "prompt_too_long")
    assert f"{mdlm.max_length} at most" in bad.message


def test_added_marks_are_told_with_their_number(mdlm: Mdlm, tmp_path: Path) -> None:
    rows = records(tmp_path)
    for row in rows[:2]:
        row["conversations"][0]["value"] = "What is this?"
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(rows))
    usable = TrainingRows(mdlm, open_dataset(file), CONFIG)
    assert len(usable[0].images) == 1
    (told,) = usable.remarks
    assert told.startswith("Rows with one image and no <image> mark: 2.")
    assert len(TrainingRows(mdlm, open_dataset(file, mark_images=False), CONFIG).bad) == 2
