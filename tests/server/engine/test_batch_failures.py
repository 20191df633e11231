"""A request that fails ends alone; the other requests of its batch go on unharmed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from purifier import GenerationConfig, MaskingConfig, answer_inputs
from purifier.denoise import FAST
from purifier.mdlm.base import Mdlm
from server.engine import Engine, Serving
from server.errors import GenerationFailed, QueueFull
from tests.support.engine import SECONDS, make_job, submit, wait_until
from tests.support.tampered import Barrier, Tampered

Start = Callable[..., Engine]

LONG = GenerationConfig(gen_length=600)
MIDDLE = GenerationConfig(gen_length=40)


class Poisoned:
    """A real model that predicts no numbers for sequences of one length."""

    def __init__(self, mdlm: Mdlm, length: int) -> None:
        self._mdlm = mdlm
        self._length = length
        self.on = True
        self.feature_passes = 0

    def __getattr__(self, name: str) -> Any:
        self.feature_passes += name == "feature_logits"
        return getattr(self._mdlm, name)

    def logits(self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        found = self._mdlm.logits(embeds, positions, lengths)
        own = torch.full((len(embeds),), embeds.shape[1]) if lengths is None else lengths
        if self.on:
            found[own == self._length] = torch.nan
        return found


def test_request_whose_predictions_are_no_numbers_fails_alone(mdlm: Mdlm) -> None:
    warm = GenerationConfig(gen_length=24, temperature=0.9, seed=4)
    plain = Serving(mdlm, "tiny@sha256:000000000000", 0)
    good, bad = make_job(plain, generation=warm), make_job(plain, generation=MIDDLE)
    alone = Engine(lambda: plain, queue_size=4, deadline=60)
    alone.start()
    alone.ready.result(SECONDS)
    expected = submit(alone, good).future.result(SECONDS).token_ids
    alone.close()
    serving = Serving(cast("Mdlm", Poisoned(mdlm, bad.positions)), "tiny@sha256:000000000000", 0)
    engine = Engine(lambda: serving, queue_size=4, deadline=60)
    engine.start()
    try:
        engine.ready.result(SECONDS)
        tickets = [submit(engine, job) for job in (good, good, bad, good)]
        with pytest.raises(GenerationFailed):
            tickets[2].future.result(SECONDS)
        for ticket in (tickets[0], tickets[1], tickets[3]):
            assert ticket.future.result(SECONDS).token_ids == expected
    finally:
        engine.close(0)
    assert (engine.counters.completed, engine.counters.failed) == (3, 1)


def test_step_of_stored_features_is_not_made_again(mdlm: Mdlm) -> None:
    plain = Serving(mdlm, "tiny@sha256:000000000000", 0)
    features = FAST.adjusted(gen_length=24, cache="dllm", parallel_threshold=1.0)
    good, bad = make_job(plain, generation=features), make_job(plain, generation=MIDDLE)
    poisoned = Poisoned(mdlm, bad.positions)
    tampered = Tampered(cast("Mdlm", poisoned))
    serving = Serving(cast("Mdlm", tampered), "tiny@sha256:000000000000", 0)
    engine = Engine(lambda: serving, queue_size=4, deadline=60)
    engine.start()
    try:
        engine.ready.result(SECONDS)
        poisoned.feature_passes = 0
        barrier = Barrier(tampered)
        tickets = [submit(engine, job) for job in (good, bad, bad)]
        company = []
        for ticket in tickets[1:]:
            ticket.future.add_done_callback(lambda _: company.append(poisoned.feature_passes))
        barrier.wait_reached()
        barrier.open()
        assert tickets[0].future.result(SECONDS).steps == poisoned.feature_passes == 24
    finally:
        engine.close(0)
    assert [0 < passes < 24 for passes in company] == [True, True]
    assert engine.counters.failed == 2


def test_request_that_fails_within_the_defence_of_another_fails_alone(
    mdlm: Mdlm, picture: Image.Image
) -> None:
    serving = Serving(mdlm, "tiny@sha256:000000000000", 0)
    bad = make_job(serving, generation=LONG)
    poisoned = Poisoned(mdlm, bad.positions)
    poisoned.on = False
    serving = replace(serving, mdlm=cast("Mdlm", poisoned))
    engine = Engine(lambda: serving, queue_size=4, deadline=60)
    engine.start()
    try:
        engine.ready.result(SECONDS)
        failing = submit(engine, bad)
        wait_until(lambda: engine.counters.steps > 2)
        heard: list[bool] = []
        masking = MaskingConfig(ranker="leave-one-out", level="token")
        asked = make_job(serving, picture, masking=masking)
        newcomer = submit(engine, asked, lambda _: heard.append(failing.future.done()))
        wait_until(lambda: newcomer.started is not None)
        poisoned.on = True
        assert newcomer.future.result(SECONDS).masked is not None
        with pytest.raises(GenerationFailed):
            failing.future.result(SECONDS)
    finally:
        engine.close(0)
    assert heard[0]


@pytest.mark.parametrize("name", ["warm", "random", "prefix", "dual", "guided"])
def test_step_that_fails_is_made_again_one_by_one(
    start: Start, serving: Serving, tampered: Tampered, name: str
) -> None:
    settings = {
        "warm": GenerationConfig(gen_length=24, temperature=0.9, seed=4),
        "random": GenerationConfig(gen_length=24, remasking="random", seed=4),
        "prefix": FAST.adjusted(gen_length=24, block_length=8, prompt_interval=3),
        "dual": FAST.adjusted(gen_length=24, block_length=8, cache="dual", temperature=0.9),
        "guided": FAST.adjusted(gen_length=24, guidance_scale=1.0),
    }
    jobs = [
        make_job(serving, question="What? " * number, generation=settings[name])
        for number in range(1, 4)
    ]
    expected = [
        answer_inputs(serving.mdlm, job.inputs, generation=job.generation).token_ids for job in jobs
    ]
    engine = start()
    barrier = Barrier(tampered)
    tickets = [submit(engine, job) for job in jobs]
    barrier.wait_reached()
    passes = failures = 0

    def fail_now_and_then() -> None:
        """Every fifth pass if others run; the four behind it make its step again one by one."""
        nonlocal passes, failures
        passes += 1
        if passes % 5 == 0 and len(engine._batch) > 1:
            failures += 1
            raise RuntimeError("out of memory")

    tampered.hook = fail_now_and_then
    barrier.open()
    assert [ticket.future.result(SECONDS).token_ids for ticket in tickets] == expected
    assert failures > 1


def test_memory_of_a_step_that_failed_is_free_when_it_is_made_again(
    start: Start, serving: Serving, tampered: Tampered
) -> None:
    """Or a step that ran out of memory runs out of it again, one by one."""
    engine = start()
    barrier = Barrier(tampered)
    tickets = [submit(engine, make_job(serving, generation=MIDDLE)) for _ in range(3)]
    barrier.wait_reached()
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def run_out_of_memory() -> None:
        alive.extend(ref() is not None for ref in held)
        if not held and len(engine._batch) > 1:
            activations = torch.zeros(8)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("out of memory")

    tampered.hook = run_out_of_memory
    barrier.open()
    for ticket in tickets:
        ticket.future.result(SECONDS)
    assert len(held) == 1
    assert alive
    assert not any(alive)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), QueueFull()])
def test_memory_of_a_request_that_failed_is_free_before_its_client_hears(
    start: Start, serving: Serving, tampered: Tampered, error: Exception
) -> None:
    engine = start()
    held: list[weakref.ref[Tensor]] = []

    def run_out_of_memory() -> None:
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise error

    tampered.hook = run_out_of_memory
    ticket = submit(engine, make_job(serving))
    found = ticket.future.exception(SECONDS)
    assert isinstance(found, GenerationFailed | QueueFull)
    assert [ref() for ref in held] == [None]
