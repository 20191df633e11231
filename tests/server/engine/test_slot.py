"""The place of the served model holds no more models than it has to."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from purifier.errors import CheckpointError
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from server.engine import slot as slot_module
from server.engine.frames import free_frames
from server.engine.slot import ModelSlot, Plan, Weights


def test_model_of_a_load_that_failed_is_gone_before_the_next_is_loaded(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = load_mdlm
    loaded: list[weakref.ref[Mdlm]] = []
    alive: list[int] = []

    def noted(*words: Any, **more: Any) -> Mdlm:
        gc.collect()
        alive.append(sum(ref() is not None for ref in loaded))
        found = load(*words, **more)
        loaded.append(weakref.ref(found))
        return found

    monkeypatch.setattr(slot_module, "load_mdlm", noted)
    slot = ModelSlot("cpu", "float32")
    base = Weights("tiny", tiny_checkpoint, "0" * 64)
    # Its base is loaded; then the delta turns out to be none.
    broken = Weights("broken", tiny_checkpoint / "none", "0" * 64, base=base)
    in_place = Plan("in_place", 0, 0, reads_base=True)
    try:
        slot.load(broken, in_place)
    except CheckpointError as error:
        free_frames(error)
    serving = slot.load(base)
    slot.keep()
    assert serving.mdlm is loaded[1]()
    assert alive == [0, 0]
