"""Requests that run together: how they join, leave and wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import pytest
from PIL import Image

from purifier import GenerationConfig, MaskingConfig
from purifier.defense.config import RankerName
from purifier.mdlm.base import Mdlm
from server.engine import Engine, Room, Serving
from server.errors import ClientDisconnected, DeadlineExceeded, GenerationFailed, QueueFull
from tests.support.engine import SECONDS, make_job, submit, wait_until
from tests.support.tampered import PASSES, Barrier, Tampered

Start = Callable[..., Engine]

LONG = GenerationConfig(gen_length=600)
"""Takes seconds: cancelled before its end."""
MIDDLE = GenerationConfig(gen_length=40)


class Recorder:
    """A real model that says when it is run, and by whom."""

    def __init__(self, mdlm: Mdlm) -> None:
        self._mdlm = mdlm
        self.stepping = False
        self.events: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._mdlm, name)
        if name in PASSES and not self.stepping:
            self.events.append("pass")
        return found


def recorded(engine: Engine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the recorder know which passes are steps of the running batch."""
    step = engine._batch.step
    recorder.events.clear()

    def stepping() -> None:
        recorder.events += ["step"] * bool(engine._batch)
        recorder.stepping = True
        step()
        recorder.stepping = False

    monkeypatch.setattr(engine._batch, "step", stepping)


@pytest.mark.parametrize("ranker", ["occlusion", "leave-one-out", "attention"])
@pytest.mark.parametrize("passes_per_step", [1, 3])
def test_newcomer_lets_the_batch_step_between_its_passes(
    mdlm: Mdlm,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    ranker: RankerName,
    passes_per_step: int,
) -> None:
    recorder = Recorder(mdlm)
    serving = Serving(cast("Mdlm", recorder), "tiny@sha256:000000000000", 0)
    engine = Engine(lambda: serving, queue_size=4, deadline=60, passes_per_step=passes_per_step)
    engine.start()
    try:
        engine.ready.result(SECONDS)
        recorded(engine, recorder, monkeypatch)
        running = submit(engine, make_job(serving, generation=LONG))
        wait_until(lambda: "step" in recorder.events)
        asked = make_job(serving, picture, masking=MaskingConfig(ranker=ranker))
        submit(engine, asked).future.result(SECONDS)
        events = list(recorder.events)
        assert not running.future.done()
    finally:
        engine.close(0)
    runs = [len(list(run)) for name, run in groupby(events) if name == "pass"]
    assert sum(runs) >= (1 if ranker == "attention" else 2)
    assert max(runs) <= passes_per_step


def test_steps_are_shared(start: Start, serving: Serving, tampered: Tampered) -> None:
    engine = start()
    barrier = Barrier(tampered)
    tickets = [submit(engine, make_job(serving, generation=MIDDLE)) for _ in range(4)]
    barrier.wait_reached()
    barrier.open()
    for ticket in tickets:
        ticket.future.result(SECONDS)
    counters = engine.counters
    assert counters.largest_batch == 4
    assert counters.request_steps == sum(ticket.future.result().steps for ticket in tickets)
    assert counters.steps <= max(ticket.future.result().steps for ticket in tickets) + 3
    assert counters.tokens == sum(len(ticket.future.result().token_ids) for ticket in tickets)


@pytest.mark.parametrize("room", [Room(2, 10**6), Room(8, 200), Room(1, 10**6), Room(8, 10)])
def test_batch_is_bounded(start: Start, serving: Serving, room: Room) -> None:
    engine = start(room=room)
    jobs = [make_job(serving, generation=MIDDLE) for _ in range(3)]
    assert 40 < jobs[0].positions < 100
    most = max(1, min(room.requests, room.positions // jobs[0].positions))
    for ticket in [submit(engine, job) for job in jobs]:
        ticket.future.result(SECONDS)
    assert engine.counters.largest_batch == most


def test_slot_of_a_cancelled_request_is_free_within_a_step(
    start: Start, serving: Serving, tampered: Tampered
) -> None:
    engine = start(room=Room(2, 10**6))
    barrier = Barrier(tampered)
    first, second = (submit(engine, make_job(serving, generation=LONG)) for _ in range(2))
    third = submit(engine, make_job(serving))
    barrier.wait_reached()
    order: list[int] = []
    second.future.add_done_callback(lambda _: order.append(barrier.passes))
    third.future.add_done_callback(lambda _: order.append(barrier.passes))
    engine.cancel(second)
    barrier.open()
    assert third.future.result(SECONDS).steps == 4
    assert order[0] <= 2
    assert order[1] <= order[0] + 6
    assert not first.future.done()
    engine.cancel(first)
    for ticket in (first, second):
        with pytest.raises(ClientDisconnected):
            ticket.future.result(SECONDS)
    wait_until(lambda: engine.running == 0)
    assert engine.counters.cancelled == 2


def test_cancelled_newcomer_stops_before_its_next_pass(
    start: Start, serving: Serving, tampered: Tampered, picture: Image.Image
) -> None:
    engine = start()
    running = submit(engine, make_job(serving))
    assert running.future.result(SECONDS).steps == 4
    barrier = Barrier(tampered)
    masking = MaskingConfig(ranker="leave-one-out", level="token")
    newcomer = submit(engine, make_job(serving, picture, masking=masking))
    barrier.wait_reached()
    engine.cancel(newcomer)
    barrier.open()
    with pytest.raises(ClientDisconnected):
        newcomer.future.result(SECONDS)
    assert barrier.passes == 1
    assert engine.counters.steps == 4


def test_listener_that_fails_ends_its_own_request_alone(start: Start, serving: Serving) -> None:
    def fail(text: str) -> None:
        raise RuntimeError("nobody is there")

    engine = start()
    running = submit(engine, make_job(serving, generation=MIDDLE))
    broken = submit(engine, make_job(serving), fail)
    with pytest.raises(GenerationFailed):
        broken.future.result(SECONDS)
    assert running.future.result(SECONDS).steps > 1


def test_listener_hears_the_beginning_and_then_finished_blocks(
    start: Start, serving: Serving
) -> None:
    heard: list[str] = []
    generation = GenerationConfig(gen_length=24, block_length=4, temperature=0.5)
    ticket = submit(start(), make_job(serving, generation=generation), heard.append)
    text = ticket.future.result(SECONDS).text
    assert heard[0] == ""
    assert all(heard[1:])
    assert text.startswith("".join(heard))


def test_deadline_counts_from_admission(start: Start, serving: Serving, tampered: Tampered) -> None:
    engine = start(room=Room(1, 10**6))
    barrier = Barrier(tampered)
    running = submit(engine, make_job(serving, generation=MIDDLE))
    barrier.wait_reached()
    waiting, patient = submit(engine, make_job(serving)), submit(engine, make_job(serving))
    waiting.deadline = waiting.submitted
    barrier.open()
    with pytest.raises(DeadlineExceeded, match="waited"):
        waiting.future.result(SECONDS)
    assert not running.future.done()
    assert patient.future.result(SECONDS).steps == 4
    assert (engine.counters.expired, engine.counters.failed) == (1, 1)


def test_deadline_of_one_request_does_not_touch_the_others(start: Start, serving: Serving) -> None:
    engine = start()
    slow = submit(engine, make_job(serving, generation=replace(LONG, gen_length=1500)))
    wait_until(lambda: engine.counters.steps > 2)
    other = submit(engine, make_job(serving, generation=MIDDLE))
    slow.deadline = slow.submitted
    with pytest.raises(DeadlineExceeded):
        slow.future.result(SECONDS)
    assert other.future.result(SECONDS).steps > 2


def test_checkpoints_run_side_by_side(mdlm: Mdlm, start: Start, serving: Serving) -> None:
    """A flip comes while an answer of the old one is on its way; both go on."""
    engine = start()
    old = submit(engine, make_job(serving, generation=LONG))
    wait_until(lambda: engine.counters.steps > 2)
    new = Serving(mdlm, "new@sha256:000000000000", 0)
    assert engine.swap(lambda: new).result(SECONDS) is new
    ticket = submit(engine, make_job(engine.serving()))
    assert ticket.future.result(SECONDS).steps == 4
    assert (ticket.serving, old.serving) == (new, serving)
    assert not old.future.done()
    engine.cancel(old)
    assert engine.counters.largest_batch == 1


def test_seconds_to_room_are_those_of_the_running_batch(
    start: Start, serving: Serving, tampered: Tampered, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(queue_size=1, room=Room(1, 10**6))
    running = submit(engine, make_job(serving, generation=LONG))
    wait_until(lambda: engine.counters.steps > 5)
    waiting = submit(engine, make_job(serving))
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        assert go_on.wait(SECONDS)

    tampered.hook = hold
    assert reached.wait(SECONDS)
    [load] = engine._batch.loads
    monkeypatch.setattr(engine._pace._step_seconds, "value", 0.5)
    with pytest.raises(QueueFull) as caught:
        engine.reserve()
    assert caught.value.retry_after == -(-load.steps * 0.5 // 1)
    assert load.steps > 400
    tampered.hook = lambda: None
    go_on.set()
    for ticket in (running, waiting):
        engine.cancel(ticket)
