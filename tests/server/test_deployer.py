"""What the deployer says when a checkpoint cannot take the place of the one that serves."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from purifier.errors import CheckpointError
from server.deployer import Deployer
from server.engine import Engine, Serving
from server.engine.slot import ModelSlot, Plan, SwapPolicy, Weights
from server.errors import (
    CanaryFailed,
    CheckpointConflict,
    CheckpointDamaged,
    DatabaseUnavailable,
    NotReady,
    ServerError,
)
from server.store.audit import Actor
from server.store.checkpoints import CheckpointStore
from server.store.database import Database

FAULTS: dict[str, type[ServerError]] = {
    "damaged": CheckpointDamaged,
    "memory": CheckpointConflict,
    "canary": CanaryFailed,
    "locked": DatabaseUnavailable,
}
LOST = "answers nothing until a restart"


class Slot(ModelSlot):
    """A place that loads what a test lets it; `faults` holds one for every load, None for none."""

    def __init__(self, policy: SwapPolicy) -> None:
        super().__init__("cpu", "float32", policy)
        self.faults: list[str | None] = []
        self.held: list[weakref.ref[torch.Tensor]] = []

    def load(self, weights: Weights, plan: Plan | None = None) -> Serving:
        serving = super().load(weights, plan)
        memory = torch.zeros(8)
        object.__setattr__(serving, "memory", memory)
        self.held.append(weakref.ref(memory))
        match self.faults.pop(0) if self.faults else None:
            case "damaged":
                raise CheckpointError("A tensor is missing.")
            case "memory":
                raise torch.OutOfMemoryError("out of memory")
            case "canary":
                serving.mdlm.published_weights()["lm_head.weight"].fill_(torch.nan)
        return serving


class Place:
    """A server's deployer, engine and store, and a checkpoint `other` that may be activated."""

    def __init__(self, folder: Path, tiny: Path, policy: SwapPolicy) -> None:
        self.database = Database(f"sqlite:///{folder / 'disp.sqlite'}")
        self.database.create_tables()
        self.store = CheckpointStore(self.database, folder / "checkpoints")
        shutil.copytree(tiny, folder / "other")
        self.other = self.store.register(folder / "other").id
        self.store.verify(self.other)
        self.slot = Slot(policy)
        self.deployer = Deployer(self.store, self.slot, tiny)
        self.engine = Engine(self.deployer.first, queue_size=1, deadline=60.0, commit_patience=0.0)
        self.deployer.attach(self.engine)
        self.engine.start()
        self.old = self.engine.ready.result(300).checkpoint

    def activate(self) -> str:
        return self.deployer.activate(self.other, actor=Actor("somebody")).id


@pytest.fixture
def open_place(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[[SwapPolicy], Place]]:
    places: list[Place] = []

    def open_place(policy: SwapPolicy) -> Place:
        places.append(Place(tmp_path, tiny_checkpoint, policy))
        return places[-1]

    yield open_place
    for place in places:
        place.engine.close(0)
        place.database.close()


def lock(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(place.store, "activate", locked)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_in_place_a_failed_activation_says_what_serves(
    open_place: Callable[[SwapPolicy], Place],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    lost: bool,
) -> None:
    place = open_place("in_place")
    place.slot.faults = [fault, "memory" if lost else None]
    if fault == "locked":
        lock(place, monkeypatch)
    with pytest.raises(FAULTS[fault]) as caught:
        place.activate()
    if lost:
        assert LOST in caught.value.message
        assert "still serves" not in caught.value.message
        with pytest.raises(NotReady):
            place.engine.serving()
    else:
        assert caught.value.message.endswith(f"{place.old} still serves.")
        assert place.engine.serving().checkpoint == place.old
    active = place.store.active()
    assert active is not None
    assert active.id == place.old


@pytest.mark.parametrize("fault", FAULTS)
def test_beside_the_old_one_a_failed_activation_says_that_it_serves(
    open_place: Callable[[SwapPolicy], Place], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    place = open_place("auto")
    place.slot.faults = [fault]
    if fault == "locked":
        lock(place, monkeypatch)
    with pytest.raises(FAULTS[fault]) as caught:
        place.activate()
    assert caught.value.message.endswith(f"{place.old} still serves.")
    assert place.engine.serving().checkpoint == place.old
    place.slot.faults = []
    monkeypatch.undo()
    assert place.activate() == place.other


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("policy", ["auto", "in_place"])
def test_a_checkpoint_that_does_not_serve_is_out_of_memory_at_once(
    open_place: Callable[[SwapPolicy], Place],
    monkeypatch: pytest.MonkeyPatch,
    policy: SwapPolicy,
    fault: str,
) -> None:
    """Without the cyclic collector, and while somebody has the error."""
    place = open_place(policy)
    place.slot.faults = [fault]
    if fault == "locked":
        lock(place, monkeypatch)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(FAULTS[fault]):
            place.activate()
        # The threads that worked on it have ended.
        place.engine.close()
        for thread in threading.enumerate():
            if thread.name == "swap":
                thread.join(60)
        assert place.slot.held[1]() is None
    finally:
        gc.enable()
