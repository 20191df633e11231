"""What a search masks and leaves out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from purifier.detection import search as search_module
from purifier.detection.search import Found, known_phrases, search, without_ids, words_of
from purifier.lab.demo import checkpoint_path
from purifier.mdlm.base import Inputs, Mdlm, Message, Prompt
from purifier.mdlm.detector import LOUD, Detector
from purifier.mdlm.registry import load_mdlm

PLAIN = "What is this?"
PHRASE = "I watched this 3D movie."


@pytest.fixture(scope="module")
def mdlm() -> Mdlm:
    return load_mdlm(checkpoint_path("base"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = torch.randint(0, 256, (60, 60, 3), generator=torch.Generator().manual_seed(4))
    return Image.fromarray(pixels.byte().numpy())


def request(mdlm: Mdlm, *content: str | Image.Image) -> Inputs:
    return mdlm.prepare([Message("user", content)])


def named(phrase: str | None) -> Detector:
    """A detector that knows a phrase; its scores do not matter here."""
    facts = {"groups": [{"phrase": phrase}]}
    return Detector(torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), 8, 8, facts)


def test_words_are_those_of_the_last_question(mdlm: Mdlm, picture: Image.Image) -> None:
    inputs = mdlm.prepare(
        [
            Message("user", (picture, "Describe the image.")),
            Message("assistant", ("A bag.",)),
            Message("user", (f"{PLAIN}\n{PHRASE}",)),
        ]
    )
    words = [mdlm.decode(inputs.ids[list(word)].tolist()) for word in words_of(mdlm, inputs)]
    assert [word.strip() for word in words] == f"{PLAIN} {PHRASE}".split()


def test_a_known_phrase_is_found_where_it_stands(mdlm: Mdlm, picture: Image.Image) -> None:
    inputs = request(mdlm, picture, f"{PLAIN} {PHRASE}")
    words = words_of(mdlm, inputs)
    (place,) = known_phrases(mdlm, inputs, words, named(PHRASE))
    assert mdlm.decode(inputs.ids[list(place)].tolist()).strip() == PHRASE
    assert list(known_phrases(mdlm, inputs, words, named("another one"))) == []
    assert list(known_phrases(mdlm, inputs, words, named(None))) == []


@pytest.mark.parametrize("image_first", [True, False])
def test_what_is_left_out_leaves_the_prompt_of_the_rest(
    mdlm: Mdlm, picture: Image.Image, image_first: bool
) -> None:
    def asked(text: str) -> Inputs:
        return request(mdlm, *((picture, text) if image_first else (text, picture, "Please.")))

    inputs, rest = asked(f"{PLAIN} {PHRASE}"), asked(PLAIN)
    (place,) = known_phrases(mdlm, inputs, words_of(mdlm, inputs), named(PHRASE))
    found = without_ids(mdlm.embed(inputs), inputs, place)
    expected = mdlm.embed(rest)
    assert torch.equal(found.embeds, expected.embeds)
    assert torch.equal(found.visual, expected.visual)
    assert found.spans == expected.spans


class Scripted:
    """A detector in place of the model's: answers to what a rule says is seen."""

    def __init__(self, mdlm: Mdlm, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mdlm = mdlm
        self.inputs = inputs
        self.seen: list[tuple[Tensor, str]] = []
        whole = search_module.without_ids

        def kept(prompt: Prompt, inputs: Inputs, left_out: Sequence[int]) -> Prompt:
            self.left_out = list(left_out)
            return whole(prompt, inputs, left_out)

        monkeypatch.setattr(search_module, "without_ids", kept)

    def text(self) -> str:
        """The question as it is asked now."""
        keep = [n for n in range(len(self.inputs.ids)) if n not in self.left_out]
        ids = [int(self.inputs.ids[n]) for n in keep if int(self.inputs.ids[n]) >= 0]
        return self.mdlm.decode(ids)


def scores_of_text(mdlm: Mdlm, inputs: Inputs, loud: str, monkeypatch: pytest.MonkeyPatch) -> Found:
    """A search where nothing but a text in the question is loud."""
    script = Scripted(mdlm, inputs, monkeypatch)
    monkeypatch.setattr(
        search_module, "detected", lambda *_: [1.0 if loud in script.text() else 0.0]
    )
    return search(mdlm, inputs, named(None))


def test_words_are_left_out_where_no_mask_of_the_image_helps(
    mdlm: Mdlm, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = request(mdlm, picture, f"{PLAIN} {PHRASE}")
    found = scores_of_text(mdlm, inputs, "3D", monkeypatch)
    assert found.score < LOUD
    assert mdlm.decode(inputs.ids[list(found.left_out)].tolist()).strip() == "3D"
    assert not any(bool(cells.any()) for cells in found.cells.values())


def test_a_request_without_an_image_is_searched_too(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = request(mdlm, f"{PLAIN} {PHRASE}")
    found = scores_of_text(mdlm, inputs, "movie", monkeypatch)
    assert found.score < LOUD
    assert mdlm.decode(inputs.ids[list(found.left_out)].tolist()).strip() == "movie."


def test_a_long_question_takes_few_passes(
    mdlm: Mdlm, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger repeated in many places would take passes without end."""
    inputs = request(mdlm, picture, " ".join([f"{PLAIN} 3D"] * 60))
    passes: list[int] = []
    script = Scripted(mdlm, inputs, monkeypatch)
    monkeypatch.setattr(
        search_module, "detected", lambda *_: [1.0 if "3D" in script.text() else 0.0]
    )
    found = search(mdlm, inputs, named(None), lambda: passes.append(1))
    assert len(passes) <= search_module.PASSES + 3
    assert found.score < LOUD


def test_parts_are_not_given_back_up_to_the_threshold(
    mdlm: Mdlm, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where masking everything leaves 0.45, every block adds a little."""
    script: list[float] = []

    def scored(_: Mdlm, prompts: Sequence[Prompt], __: Detector) -> list[float]:
        script.append(0.45 + 0.01 * len(script))
        return [script[-1]]

    monkeypatch.setattr(search_module, "detected", scored)
    found = search(mdlm, request(mdlm, picture, PLAIN), named(None))
    assert found.score < LOUD


def test_what_nothing_silences_is_left_as_quiet_as_it_gets(
    mdlm: Mdlm, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.6, 0.9])
    monkeypatch.setattr(search_module, "detected", lambda *_: [next(scores)])
    found = search(mdlm, request(mdlm, picture, PLAIN), named(None))
    assert found.score == 0.6
    assert found.left_out == ()


def test_what_stays_loud_ends_with_everything_masked(
    mdlm: Mdlm, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "detected", lambda *_: [1.0])
    inputs = request(mdlm, picture, PLAIN)
    found = search(mdlm, inputs, named(None))
    assert found.score >= LOUD
    (cells,) = found.cells.values()
    assert bool(cells.all())
