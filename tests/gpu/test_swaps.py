"""Another checkpoint takes the place of the served one on a GPU: beside it, or in its memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from purifier.answer import answer_inputs
from purifier.denoise import FAST
from purifier.lab.demo import DEMO_FOLDER, checkpoint_path
from purifier.mdlm.base import Inputs
from purifier.mdlm.registry import base_hash, load_mdlm
from server.engine import Engine, Job
from server.engine.slot import ModelSlot, Plan, SwapPolicy, Weights
from tests.support.engine import SECONDS, submit

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def base() -> Weights:
    folder = DEMO_FOLDER / "base"
    return Weights("base@sha256:000000000000", folder, base_hash(folder))


def delta(name: str, base: Weights) -> Weights:
    path = checkpoint_path(name)
    return Weights(f"{name}@sha256:000000000000", path, "0" * 64, base=base)


@pytest.mark.parametrize("way", ["shared", "copy", "in_place"])
def test_answers_are_those_of_the_new_model(
    base: Weights, questions: list[Inputs], device: str, way: str
) -> None:
    policy: SwapPolicy = "in_place" if way == "in_place" else "auto"
    slot = ModelSlot(device, "float32", policy)
    first, second = delta("insertion", base), delta("refusal", base)
    job = Job(questions[1], FAST, None, "-")
    expected = [
        answer_inputs(
            load_mdlm(checkpoint_path(name), device=device), job.inputs, generation=job.generation
        ).token_ids
        for name in ("insertion", "refusal", "insertion")
    ]

    def load_first() -> object:
        serving = slot.load(first)
        slot.keep()
        return serving

    engine = Engine(load_first, queue_size=4, deadline=SECONDS)  # type: ignore[arg-type]
    engine.start()
    try:
        engine.ready.result(SECONDS)
        found = [submit(engine, job).future.result(SECONDS).token_ids]
        for weights in (second, first):
            plan = slot.plan(weights)
            if way == "copy":
                plan = Plan("copy", plan.needed, plan.free, reads_base=True)
            assert plan.way == way
            in_place = way == "in_place"
            swapped = engine.swap(
                partial(slot.load, weights, plan),
                restore=(lambda: slot.load(first)) if in_place else None,
            )
            swapped.result(SECONDS)
            slot.keep()
            found.append(submit(engine, job).future.result(SECONDS).token_ids)
    finally:
        engine.close(SECONDS)
    assert found == expected
    assert found[0] != found[1]


def test_in_place_never_holds_two_models(base: Weights, cuda: str) -> None:
    slot = ModelSlot(cuda, "float32", "in_place")
    serving = slot.load(delta("insertion", base))
    slot.keep()
    one = torch.cuda.memory_allocated(cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    plan = slot.plan(delta("refusal", base))
    serving.release()
    del serving
    other = slot.load(delta("refusal", base), plan)
    slot.keep()
    assert other.checkpoint.startswith("refusal")
    assert torch.cuda.max_memory_allocated(cuda) < 1.5 * one
