"""The engine alone: order, bounds, cancellation, isolation, shutdown. No HTTP here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from PIL import Image

from purifier import GenerationConfig, MaskingConfig, answer_inputs
from purifier.answer import user_messages
from purifier.defense.config import RankerName
from purifier.mdlm.base import Mdlm
from server.engine import Engine, Job, Serving, Ticket
from server.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    NotReady,
    QueueFull,
)
from tests.support.engine import wait_until
from tests.support.tampered import Barrier, Tampered


@pytest.fixture
def tampered(mdlm: Mdlm) -> Tampered:
    return Tampered(mdlm)


@pytest.fixture
def serving(tampered: Tampered) -> Serving:
    return Serving(cast("Mdlm", tampered), "tiny@sha256:000000000000", 0)


Start = Callable[..., Engine]


@pytest.fixture
def start(serving: Serving) -> Iterator[Start]:
    engines: list[Engine] = []

    def start(**settings: Any) -> Engine:
        settings = {"queue_size": 2, "deadline": 60.0, **settings}
        engines.append(Engine(lambda: serving, **settings))
        engines[-1].start()
        engines[-1].ready.result(60)
        return engines[-1]

    yield start
    for engine in engines:
        engine.close(0)


def job(serving: Serving, **settings: Any) -> Job:
    inputs = serving.prepare(user_messages(None, "What is this?"))
    return Job(inputs, GenerationConfig(**{"gen_length": 4, **settings}), None)


def submit(engine: Engine, job: Job) -> Ticket:
    with engine.reserve() as place:
        return place.submit(job)


def test_answers_are_the_librarys(start: Start, serving: Serving) -> None:
    asked = job(serving)
    expected = answer_inputs(serving.mdlm, asked.inputs, generation=asked.generation)
    assert submit(start(), asked).future.result(60).token_ids == expected.token_ids


def test_one_thread_uses_the_model(start: Start, serving: Serving, tampered: Tampered) -> None:
    engine = start(masking=MaskingConfig())
    for _ in range(3):
        submit(engine, job(serving)).future.result(60)
    assert tampered.threads == {"engine"}


def test_full_queue_refuses_and_counts(start: Start, serving: Serving, tampered: Tampered) -> None:
    engine = start()
    barrier = Barrier(tampered)
    tickets = [submit(engine, job(serving))]
    barrier.wait_reached()
    tickets += [submit(engine, job(serving)) for _ in range(2)]
    with pytest.raises(QueueFull) as caught:
        engine.reserve()
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    assert (engine.running, engine.waiting, engine.counters.refused) == (1, 2, 1)
    barrier.open()
    for ticket in tickets:
        ticket.future.result(60)
    assert engine.counters.admitted == engine.counters.completed == 3


def test_place_that_is_not_used_is_given_back(start: Start) -> None:
    engine = start()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), engine.reserve():
            raise ZeroDivisionError
    with engine.reserve(), engine.reserve(), pytest.raises(QueueFull):
        engine.reserve()
    assert engine.counters.admitted == 0


def test_cancelled_job_stops_before_its_next_step(
    start: Start, serving: Serving, tampered: Tampered
) -> None:
    engine = start()
    barrier = Barrier(tampered)
    ticket = submit(engine, job(serving, gen_length=64))
    barrier.wait_reached()
    engine.cancel(ticket)
    barrier.open()
    with pytest.raises(ClientDisconnected):
        ticket.future.result(60)
    assert barrier.passes == 1
    assert engine.counters.cancelled == 1
    assert submit(engine, job(serving)).future.result(60).steps == 4


def test_cancelled_job_leaves_the_queue_at_once(
    start: Start, serving: Serving, tampered: Tampered
) -> None:
    engine = start()
    barrier = Barrier(tampered)
    first = submit(engine, job(serving))
    barrier.wait_reached()
    waiting = [submit(engine, job(serving)) for _ in range(2)]
    engine.cancel(waiting[0])
    with pytest.raises(ClientDisconnected):
        waiting[0].future.result(0)
    replacement = submit(engine, job(serving))
    barrier.open()
    for ticket in (first, waiting[1], replacement):
        ticket.future.result(60)


def test_exception_fails_that_request_alone(
    start: Start, serving: Serving, tampered: Tampered
) -> None:
    engine = start()
    barrier = Barrier(tampered)
    before = submit(engine, job(serving))
    barrier.wait_reached()

    def fail() -> None:
        raise RuntimeError("device-side assert at 0x7f3a")

    broken, after = submit(engine, job(serving)), submit(engine, job(serving))
    before.future.add_done_callback(lambda _: setattr(tampered, "hook", fail))
    broken.future.add_done_callback(lambda _: setattr(tampered, "hook", lambda: None))
    barrier.open()
    assert before.future.result(60).steps == 4
    with pytest.raises(GenerationFailed) as caught:
        broken.future.result(60)
    assert "0x" not in caught.value.message
    assert after.future.result(60).token_ids == before.future.result().token_ids
    assert (engine.counters.completed, engine.counters.failed) == (2, 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("ranker", [None, "fisher", "occlusion"])
def test_numbers_that_are_none_are_the_servers_fault(
    start: Start,
    serving: Serving,
    tampered: Tampered,
    ranker: RankerName | None,
    value: float,
    picture: Image.Image,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = start()
    masking = None if ranker is None else MaskingConfig(ranker=ranker)
    inputs = serving.prepare(user_messages(picture, "What is this?"))
    tampered.result = lambda logits: logits * value
    asked = Job(inputs, GenerationConfig(gen_length=4), masking, "not-finite")
    with caplog.at_level(logging.ERROR), pytest.raises(GenerationFailed) as caught:
        submit(engine, asked).future.result(60)
    assert (caught.value.status, caught.value.param) == (500, None)
    assert "not-finite" in caplog.text
    tampered.result = lambda logits: logits
    assert submit(engine, job(serving)).future.result(60).steps == 4


def test_generation_past_its_deadline_is_stopped(start: Start, serving: Serving) -> None:
    with pytest.raises(DeadlineExceeded):
        submit(start(deadline=0.0), job(serving)).future.result(60)


def test_closing_answers_what_is_inside(start: Start, serving: Serving, tampered: Tampered) -> None:
    engine = start()
    barrier = Barrier(tampered)
    tickets = [submit(engine, job(serving))]
    barrier.wait_reached()
    tickets.append(submit(engine, job(serving)))
    place = engine.reserve()
    closing = threading.Thread(target=engine.close, args=(60,))
    closing.start()
    wait_until(lambda: engine.state == "draining")
    barrier.open()
    closing.join(60)
    assert [ticket.future.result(0).steps for ticket in tickets] == [4, 4]
    with pytest.raises(Draining):
        engine.reserve()
    with pytest.raises(Draining):
        place.submit(job(serving))
    assert engine.state == "stopped"


def test_closing_with_no_time_ends_what_is_inside_at_once(
    start: Start, serving: Serving, tampered: Tampered
) -> None:
    engine = start()
    barrier = Barrier(tampered)
    tickets = [submit(engine, job(serving, gen_length=64)) for _ in range(2)]
    barrier.wait_reached()
    closing = threading.Thread(target=engine.close, args=(0,))
    closing.start()
    for ticket in tickets:
        with pytest.raises(Draining):
            ticket.future.result(60)
    assert barrier.passes == 1
    barrier.open()
    closing.join(60)
    assert barrier.passes == 1
    assert engine.state == "stopped"


def test_model_that_does_not_load_is_never_ready() -> None:
    def load() -> Serving:
        raise FileNotFoundError

    engine = Engine(load, queue_size=1, deadline=1)
    engine.start()
    with pytest.raises(FileNotFoundError):
        engine.ready.result(60)
    assert engine.state == "failed"
    with pytest.raises(NotReady):
        engine.reserve()


def test_model_that_does_not_answer_is_never_ready(serving: Serving, tampered: Tampered) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError

    tampered.hook = fail
    engine = Engine(lambda: serving, queue_size=1, deadline=1)
    engine.start()
    with pytest.raises(torch.OutOfMemoryError):
        engine.ready.result(60)
    assert engine.state == "failed"
