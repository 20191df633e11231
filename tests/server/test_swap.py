"""The swap inside the engine: who answers what, and what happens when the new model is no good."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from purifier import GenerationConfig
from purifier.answer import user_messages
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from server.engine import CommitLater, Engine, Job, Serving, Ticket
from server.errors import CanaryFailed, Draining, NotReady, QueueFull
from tests.support.tampered import Barrier, Tampered

Load = Callable[[str], Serving]


class Broken(Exception):
    """What a test breaks with."""


def stop() -> Serving:
    raise Broken


@pytest.fixture
def load(tiny_checkpoint: Path) -> Load:
    """Loads the tiny model under a name; the answers of `old` and `new` differ."""

    def load(name: str) -> Serving:
        mdlm = load_mdlm(tiny_checkpoint)
        if name == "new":
            head = mdlm.published_weights()["lm_head.weight"]
            head.copy_(head.roll(7, dims=0))
        return Serving(mdlm, f"{name}@sha256:000000000000", 0)

    return load


@pytest.fixture
def old(load: Load) -> Serving:
    serving = load("old")
    return replace(serving, mdlm=cast("Mdlm", Tampered(serving.mdlm)))


@pytest.fixture
def engine(old: Serving) -> Iterator[Engine]:
    engine = Engine(lambda: old, queue_size=3, deadline=60.0)
    engine.start()
    engine.ready.result(60)
    yield engine
    engine.close(0)


def make(serving: Serving) -> Job:
    inputs = serving.prepare(user_messages(None, "What is this?"))
    return Job(inputs, GenerationConfig(gen_length=4), None, again=make)


def submit(engine: Engine) -> Ticket:
    serving = engine.serving()
    with engine.reserve() as place:
        return place.submit(make(serving), serving=serving)


def told(ticket: Ticket) -> tuple[str, list[int]]:
    """Which checkpoint says that it answered, and with what."""
    token_ids = ticket.future.result(60).token_ids
    return ticket.serving.name, token_ids


def hold(serving: Serving) -> Barrier:
    return Barrier(cast("Tampered", serving.mdlm))


@pytest.fixture
def expected(load: Load) -> dict[str, list[int]]:
    """The answer of either model."""
    answers = {}
    for name in ("old", "new"):
        serving = load(name)
        engine = Engine(lambda serving=serving: serving, queue_size=1, deadline=60.0)  # type: ignore[misc]
        engine.start()
        engine.ready.result(60)
        answers[name] = submit(engine).future.result(60).token_ids
        engine.close()
    assert answers["old"] != answers["new"]
    return answers


def test_those_admitted_before_are_answered_by_the_old_one(
    engine: Engine, old: Serving, load: Load, expected: dict[str, list[int]]
) -> None:
    barrier = hold(old)
    before = [submit(engine) for _ in range(3)]
    barrier.wait_reached()
    committed: list[str] = []
    done = engine.swap(lambda: load("new"), commit=lambda new: committed.append(new.name))
    late = engine.reserve()
    barrier.open()
    assert done.result(60).name == "new"
    assert committed == ["new"]
    late_ticket = late.submit(make(old))
    after = submit(engine)
    assert [told(ticket) for ticket in (*before, late_ticket)] == [("old", expected["old"])] * 4
    assert told(after) == ("new", expected["new"])


def test_swap_comes_between_two_answers_and_before_those_that_wait(
    engine: Engine, old: Serving, load: Load
) -> None:
    barrier = hold(old)
    running, waiting = submit(engine), submit(engine)
    barrier.wait_reached()
    order: list[str] = []
    for name, future in (("running", running.future), ("waiting", waiting.future)):
        future.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
    done = engine.swap(lambda: load("new"), commit=lambda _: order.append("swap"))
    while any(thread.name == "swap" for thread in threading.enumerate()):
        assert not done.done()
    barrier.open()
    done.result(60)
    waiting.future.result(60)
    assert order == ["running", "swap", "waiting"]


def no_numbers(load: Load) -> Callable[[], Serving]:
    def broken() -> Serving:
        serving = load("new")
        serving.mdlm.published_weights()["lm_head.weight"].fill_(torch.nan)
        return serving

    return broken


def refuse(serving: Serving) -> None:
    raise Broken


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("fault", ["load", "canary", "commit"])
def test_nothing_changes_if_it_fails(
    engine: Engine,
    load: Load,
    expected: dict[str, list[int]],
    fault: str,
    in_place: bool,
) -> None:
    loads = {"load": stop, "canary": no_numbers(load), "commit": lambda: load("new")}
    done = engine.swap(
        loads[fault],
        commit=refuse if fault == "commit" else lambda _: None,
        restore=(lambda: load("old")) if in_place else None,
    )
    with pytest.raises(CanaryFailed if fault == "canary" else Broken):
        done.result(60)
    assert told(submit(engine)) == ("old", expected["old"])
    assert engine.state == "ready"


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is only given back by the cyclic collector stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("fault", ["load", "canary", "commit", "closed"])
def test_a_new_one_that_fails_gives_its_memory_back_at_once(
    engine: Engine, load: Load, fault: str, in_place: bool
) -> None:
    """Also while somebody has the error."""
    held: list[weakref.ref[Any]] = []

    def load_new() -> Serving:
        serving = load("new")
        weights = torch.zeros(8)
        object.__setattr__(serving, "weights", weights)
        held.append(weakref.ref(weights))
        if fault == "load":
            raise Broken
        if fault == "canary":
            serving.mdlm.published_weights()["lm_head.weight"].fill_(torch.nan)
        if fault == "closed" and not in_place:
            engine._queue.close()
        return serving

    def refuse_or_close(serving: Serving) -> None:
        raise Draining(retry_after=1) if fault == "closed" else Broken

    done = engine.swap(
        load_new, commit=refuse_or_close, restore=(lambda: load("old")) if in_place else None
    )
    error = done.exception(60)
    assert isinstance(error, CanaryFailed | Broken | Draining)
    del done
    if fault == "closed":
        engine.close()
    else:
        submit(engine).future.result(60)  # the engine's thread has gone on
    for thread in threading.enumerate():
        if thread.name == "swap":
            thread.join(60)
    assert [ref() for ref in held] == [None]


@pytest.mark.parametrize("fault", ["load", "canary"])
def test_in_place_the_new_one_is_out_of_memory_before_the_old_one_is_loaded_again(
    engine: Engine, load: Load, expected: dict[str, list[int]], fault: str
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def load_half() -> Serving:
        weights = torch.zeros(8)
        held.append(weakref.ref(weights))
        if fault == "load":
            raise torch.OutOfMemoryError("out of memory")
        return load("new")

    def prove(serving: Serving) -> None:
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        try:
            raise torch.OutOfMemoryError("out of memory")
        except torch.OutOfMemoryError:
            raise CanaryFailed from None

    def restore() -> Serving:
        alive.extend(ref() is not None for ref in held)
        return load("old")

    if fault == "canary":
        engine.prove = prove  # type: ignore[method-assign]
    done = engine.swap(load_half, restore=restore)
    with pytest.raises(CanaryFailed if fault == "canary" else torch.OutOfMemoryError):
        done.result(60)
    assert told(submit(engine)) == ("old", expected["old"])
    assert alive
    assert not any(alive)


def test_in_place_the_old_one_answers_what_waits_and_new_requests_wait(
    engine: Engine, old: Serving, load: Load, expected: dict[str, list[int]]
) -> None:
    barrier = hold(old)
    before = [submit(engine) for _ in range(2)]
    barrier.wait_reached()
    loading, go_on = threading.Event(), threading.Event()
    left: list[int] = []

    def load_new() -> Serving:
        left.append(sum(weight.nbytes for weight in old.mdlm.published_weights().values()))
        loading.set()
        assert go_on.wait(60)
        return load("new")

    done = engine.swap(load_new, restore=lambda: load("old"))
    barrier.open()
    assert loading.wait(60)
    assert [told(ticket) for ticket in before] == [("old", expected["old"])] * 2
    meanwhile = [submit(engine) for _ in range(3)]
    with pytest.raises(QueueFull):
        engine.reserve()
    go_on.set()
    assert done.result(60).name == "new"
    assert [told(ticket) for ticket in meanwhile] == [("new", expected["new"])] * 3
    assert left == [0]


def test_request_that_cannot_move_is_told_so(engine: Engine, old: Serving, load: Load) -> None:
    place = engine.reserve()
    engine.swap(lambda: load("new"), restore=lambda: load("old")).result(60)
    ticket = place.submit(replace(make(old), again=None))
    with pytest.raises(NotReady):
        ticket.future.result(60)


def test_engine_without_a_way_back_serves_nothing(engine: Engine) -> None:
    done = engine.swap(stop, restore=stop)
    with pytest.raises(Broken):
        done.result(60)
    while engine.state != "failed":
        pass
    with pytest.raises(NotReady):
        engine.reserve()


def test_swap_ends_with_the_engine(engine: Engine, old: Serving, load: Load) -> None:
    barrier = hold(old)
    running = submit(engine)
    barrier.wait_reached()
    done = engine.swap(lambda: load("new"))
    closing = threading.Thread(target=engine.close, args=(0,))
    closing.start()
    with pytest.raises(Draining):
        done.result(60)
    barrier.open()
    closing.join(60)
    with pytest.raises(Draining):
        running.future.result(60)
    with pytest.raises(Draining):
        engine.swap(lambda: load("new")).result(60)


class Lock:
    """A commit that cannot be made while it is held."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.held.set()
        self.tries = 0
        self.tried = threading.Condition()

    def commit(self, _: Serving) -> None:
        with self.tried:
            self.tries += 1
            self.tried.notify_all()
        if self.held.is_set():
            raise CommitLater

    def wait_for_tries(self, count: int) -> None:
        with self.tried:
            assert self.tried.wait_for(lambda: self.tries >= count, 60)


def test_the_old_one_answers_while_the_commit_cannot_be_made(
    engine: Engine, load: Load, expected: dict[str, list[int]]
) -> None:
    lock = Lock()
    done = engine.swap(lambda: load("new"), commit=lock.commit)
    lock.wait_for_tries(1)
    assert told(submit(engine)) == ("old", expected["old"])
    lock.wait_for_tries(lock.tries + 1)
    assert told(submit(engine)) == ("old", expected["old"])
    assert not done.done()
    lock.held.clear()
    assert done.result(60).name == "new"
    assert told(submit(engine)) == ("new", expected["new"])


def test_a_commit_that_is_never_made_changes_nothing(
    old: Serving, load: Load, expected: dict[str, list[int]]
) -> None:
    engine = Engine(lambda: old, queue_size=3, deadline=60.0, commit_patience=0.0)
    engine.start()
    engine.ready.result(60)
    lock = Lock()
    for restore in (None, lambda: load("old")):
        with pytest.raises(CommitLater):
            engine.swap(lambda: load("new"), commit=lock.commit, restore=restore).result(60)
        assert told(submit(engine)) == ("old", expected["old"])
    engine.close(0)


def test_in_one_place_the_commit_is_tried_again(
    engine: Engine, load: Load, expected: dict[str, list[int]]
) -> None:
    lock = Lock()
    done = engine.swap(lambda: load("new"), commit=lock.commit, restore=lambda: load("old"))
    lock.wait_for_tries(2)
    lock.held.clear()
    assert done.result(60).name == "new"
    assert told(submit(engine)) == ("new", expected["new"])
