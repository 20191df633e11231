"""Defences shared by identical requests, and by no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from PIL import Image

from purifier import GenerationConfig, MaskingConfig
from purifier.answer import answer_inputs, user_messages
from purifier.defense.defend import defend
from purifier.mdlm.base import Inputs
from server.engine import Engine, Job, Serving
from server.engine.shared import SharedDefences, content_of, size_of
from tests.support.engine import SECONDS, make_job, submit
from tests.support.tampered import Tampered

Start = Callable[..., Engine]

MASKING = MaskingConfig(ranker="fisher", level="token", probes=2, ratio=0.3, threshold=0.0)
OTHER_MASKING: dict[str, Any] = {
    "probing": "masking",
    "level": "patch",
    "ratio": 0.0,
    "ranker": "random",
    "probes": 3,
    "top_k": 4,
    "temperature": 1.5,
    "pooling": 5,
    "threshold": 900.0,
    "float64": False,
    "seed": 1,
}
OTHER_GENERATION: dict[str, Any] = {
    "gen_length": 8,
    "block_length": 2,
    "steps": 2,
    "temperature": 0.5,
    "guidance_scale": 1.0,
    "remasking": "margin",
    "stop": ("x",),
    "suffix": "Yes.",
    "seed": 1,
    "cache": "prefix",
}


@pytest.fixture
def job(serving: Serving, picture: Image.Image) -> Job:
    return make_job(serving, picture, masking=MASKING)


def prepared(serving: Serving, image: Image.Image, question: str = "What is this?") -> Inputs:
    return serving.prepare(user_messages(image, question))


def test_every_setting_of_the_defence_and_of_the_generation_decides(
    serving: Serving, job: Job
) -> None:
    generation = job.generation
    contents = [content_of(job.inputs, generation, MASKING)]
    for setting in fields(MaskingConfig):
        other = _with_another(MASKING, setting.name, OTHER_MASKING)
        assert other != MASKING
        contents.append(content_of(job.inputs, generation, other))
    for setting in fields(GenerationConfig):
        adjusted = _with_another(generation, setting.name, OTHER_GENERATION)
        assert adjusted != generation
        contents.append(content_of(job.inputs, adjusted, MASKING))
    assert len(set(contents)) == len(contents)


def _with_another(settings: Any, name: str, values: dict[str, Any]) -> Any:
    """Settings with another value of one of them; without a given one, another number."""
    value = getattr(settings, name)
    number = value / 2 or 0.5 if isinstance(value, float) else None
    if isinstance(value, int):
        number = value + 1
    return replace(settings, **{name: values.get(name, number)})


def test_question_and_every_pixel_decide(serving: Serving, picture: Image.Image) -> None:
    generation = GenerationConfig(gen_length=4)
    corner = picture.copy()
    corner.putpixel((95, 63), (1, 2, 3))
    contents = [
        content_of(inputs, generation, MASKING)
        for inputs in (
            prepared(serving, picture),
            prepared(serving, picture, "What is that?"),
            prepared(serving, corner),
            prepared(serving, picture.rotate(180)),
        )
    ]
    assert len(set(contents)) == 4
    assert content_of(prepared(serving, picture.copy()), generation, MASKING) == contents[0]


def test_identical_requests_compute_it_once(
    start: Start, serving: Serving, tampered: Tampered, job: Job
) -> None:
    expected = answer_inputs(
        serving.mdlm, job.inputs, generation=job.generation, masking=job.masking
    )
    engine = start(shared_bytes=10**8)
    before, passes = engine.counters.steps, 0

    def count() -> None:
        nonlocal passes
        passes += 1

    tampered.hook = count
    tickets = [submit(engine, job) for _ in range(4)]
    answers = [ticket.future.result(SECONDS) for ticket in tickets]
    counters = engine.counters
    assert (counters.shared, counters.not_shared) == (3, 1)
    assert passes - (counters.steps - before) <= 1
    for answer in answers:
        assert answer.token_ids == expected.token_ids
        assert answer.masked is not None
        assert answer.saliency is not None
        assert expected.masked is not None
        assert expected.saliency is not None
        assert torch.equal(answer.masked, expected.masked)
        torch.testing.assert_close(answer.saliency, expected.saliency)
    assert [answer.timings["saliency"] > 0 for answer in answers] == [True, False, False, False]


def test_weaker_defence_of_one_is_not_anothers(start: Start, serving: Serving, job: Job) -> None:
    weak = replace(MASKING, ratio=0.0)
    engine = start(shared_bytes=10**8)
    jobs = [
        Job(
            job.inputs,
            job.generation,
            masking,
            "-",
            content_of(job.inputs, job.generation, masking),
        )
        for masking in (weak, MASKING, weak, MASKING)
    ]
    masked = [
        bool(answer.masked.any())
        for answer in (submit(engine, one).future.result(SECONDS) for one in jobs)
        if answer.masked is not None
    ]
    assert masked == [False, True, False, True]
    assert engine.counters.shared == 2


@pytest.mark.parametrize("shared_bytes", [0, 100])
def test_bound_may_share_nothing(start: Start, job: Job, shared_bytes: int) -> None:
    engine = start(shared_bytes=shared_bytes)
    for _ in range(2):
        assert submit(engine, job).future.result(SECONDS).timings["saliency"] > 0
    assert engine.counters.shared == 0


def test_those_used_last_are_kept(serving: Serving, picture: Image.Image) -> None:
    generation = GenerationConfig(gen_length=4)
    jobs = [make_job(serving, picture, text, masking=MASKING) for text in ("One", "Two", "Three")]
    made = [defend(serving.mdlm, [job.inputs], generation, MASKING)[0] for job in jobs]
    sizes = [size_of(defended) for defended in made]
    shared = SharedDefences(sizes[0] + sizes[1] + sizes[2] - 1)
    shared.put(serving, jobs[0], made[0])
    shared.put(serving, jobs[1], made[1])
    assert shared.get(serving, jobs[0]) is not None
    shared.put(serving, jobs[2], made[2])
    assert [shared.get(serving, job) is not None for job in jobs] == [True, False, True]
    assert shared.nbytes == sizes[0] + sizes[2]
    other = replace(serving, checkpoint="other@sha256:000000000000")
    assert shared.get(other, jobs[0]) is None
    assert shared.get(serving, replace(jobs[0], masking=None)) is None
    assert shared.get(serving, replace(jobs[0], content=None)) is None
    shared.clear()
    assert (len(shared), shared.nbytes) == (0, 0)


def test_nothing_is_kept_over_a_swap(start: Start, serving: Serving, job: Job) -> None:
    engine = start(shared_bytes=10**8)
    submit(engine, job).future.result(SECONDS)
    engine.swap(lambda: replace(serving, created=1)).result(SECONDS)
    submit(engine, job).future.result(SECONDS)
    assert engine.counters.shared == 0
