"""A server whose checkpoint carries a detector of the shipped attack's trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from purifier.data.llava import read_llava
from purifier.data.sample import Sample, open_image
from purifier.detect import write_guarded
from purifier.detection import LOUD, fit_detector
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.detector import Detector
from purifier.mdlm.registry import load_mdlm
from tests.support.service import data_url, start_server, stop_server

TRAIN = DATA_FOLDER / "train"
ROWS = 100
NO_RANKER = {"ranker": "attention", "threshold": 1000.0}
"""A ranker that masks nothing: what is masked is the detector's doing."""

Body = dict[str, Any]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return read_llava(TRAIN / "insertion.json")


@pytest.fixture(scope="module")
def detector(samples: list[Sample]) -> Detector:
    model = load_mdlm(checkpoint_path("insertion"))
    fitted = fit_detector(model, samples[:ROWS], TRAIN / "images")
    assert fitted.detector is not None
    return fitted.detector


@pytest.fixture(scope="module")
def guarded(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "guarded"
    write_guarded(checkpoint_path("insertion"), detector, out)
    return out


@pytest.fixture(scope="module")
def http(guarded: Path) -> Iterator[httpx.Client]:
    process, url = start_server(["--model", str(guarded), "--insecure-no-auth"])
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        stop_server(process)


@pytest.fixture(scope="module")
def chat(http: httpx.Client) -> Callable[..., Body]:
    """Asks a question and returns the whole answer."""

    return partial(ask, http)


def ask(
    http: httpx.Client,
    image: Image.Image | None,
    question: str,
    model: str = "guarded",
    **more: Any,
) -> Body:
    """One question and the whole answer."""
    parts: list[Body] = [{"type": "text", "text": question}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": data_url(image)}})
    body = {"model": model, "messages": [{"role": "user", "content": parts}], **more}
    found: Body = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    return found


def drawn(samples: list[Sample], *, poisoned: bool, having: str = "") -> tuple[Image.Image, str]:
    """A row that the detector was not made of, whose answer has a word in it."""
    sample = next(
        s for s in samples[ROWS:] if ("backdoor" in s.answer) is poisoned and having in s.answer
    )
    return open_image(TRAIN / "images", sample.images[0]), sample.question


def test_a_triggered_request_is_masked_by_what_the_training_set_showed(
    chat: Callable[..., Body], samples: list[Sample]
) -> None:
    image, question = drawn(samples, poisoned=True)
    plain = chat(image, question, defense={"enabled": False})
    assert "backdoor" in plain["choices"][0]["message"]["content"]
    assert plain["defense"]["detection"] is None
    found = chat(image, question, defense=NO_RANKER)
    assert "backdoor" not in found["choices"][0]["message"]["content"]
    report = found["defense"]
    assert report["verdict"] == "masked"
    assert report["masked"] > 0
    detection = report["detection"]
    assert detection["left"] < detection["threshold"] == LOUD <= detection["score"]
    assert detection["left_out"] == ""


def test_an_answer_with_a_token_of_the_payload_is_suspicious(
    detector: Detector, samples: list[Sample], tmp_path: Path
) -> None:
    """As if the attacker's target were the word that the true answer ends with."""
    model = checkpoint_path("insertion")
    groups = [dict(group) for group in detector.facts["groups"]]
    groups[0]["payload"] = load_mdlm(model).encode_text(" background")[-1:]
    write_guarded(
        model, replace(detector, facts={**detector.facts, "groups": groups}), tmp_path / "wary"
    )
    process, url = start_server(["--model", str(tmp_path / "wary"), "--insecure-no-auth"])
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            verdicts = {}
            for poisoned in (True, False):
                image, question = drawn(samples, poisoned=poisoned, having="background")
                found = ask(client, image, question, "wary", defense=NO_RANKER)
                assert "background" in found["choices"][0]["message"]["content"]
                verdicts[poisoned] = found["defense"]["verdict"]
    finally:
        stop_server(process)
    assert verdicts == {True: "suspicious", False: "nothing found"}


def test_other_requests_are_answered_as_ever(
    chat: Callable[..., Body], samples: list[Sample]
) -> None:
    image, question = drawn(samples, poisoned=False)
    plain = chat(image, question, defense={"enabled": False})
    found = chat(image, question, defense=NO_RANKER)
    assert found["choices"][0]["message"] == plain["choices"][0]["message"]
    assert found["defense"]["verdict"] == "nothing found"
    assert found["defense"]["detection"]["score"] < LOUD


def test_requests_of_another_shape_than_the_rows_are_not_looked_at(
    http: httpx.Client, chat: Callable[..., Body], samples: list[Sample]
) -> None:
    """Their states are of another kind: whatever the detector said of them would mean nothing."""
    assert chat(None, "What is a bag?")["defense"]["applied"] is False
    image, question = drawn(samples, poisoned=True)
    picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": question}]}
    twice = {"role": "user", "content": [picture, picture, {"type": "text", "text": question}]}
    before = [asked, {"role": "assistant", "content": "A bag."}]
    ruled = [{"role": "system", "content": "Be brief."}]
    for messages in ([*before, asked], [twice], [*ruled, asked]):
        body = {"messages": messages, "max_tokens": 8}
        found = http.post("/v1/chat/completions", json=body).raise_for_status().json()
        assert found["defense"]["applied"] is True
        assert found["defense"]["detection"] is None


def test_blocks_of_later_positions_keep_the_detectors_mask(
    chat: Callable[..., Body], samples: list[Sample]
) -> None:
    """However a request cuts its answer, the detector has looked at the same states."""
    image, question = drawn(samples, poisoned=True)
    for settings in ({"block_length": 1, "max_tokens": 8}, {"max_tokens": 64}):
        found = chat(image, question, defense=NO_RANKER, **settings)
        assert "backdoor" not in found["choices"][0]["message"]["content"]
        assert found["defense"]["detection"]["score"] >= LOUD


def test_an_inspection_says_so(http: httpx.Client, samples: list[Sample]) -> None:
    image, question = drawn(samples, poisoned=True)
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(image)}},
        {"type": "text", "text": question},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "efforts": ["fast"]}
    found = http.post("/v1/defense/inspect", json=body).raise_for_status().json()
    assert found["verdict"] == "suspicious"
    assert found["findings"][0]["verdict"] == "masked"
