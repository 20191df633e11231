"""An answer is the same whatever company it had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from PIL import Image

from purifier import GenerationConfig, MaskingConfig, answer_inputs, load_mdlm
from purifier.denoise import FAST
from purifier.lab.demo import DEMO_FOLDER, checkpoint_path
from purifier.mdlm.base import Mdlm
from server.engine import Engine, Job, Serving
from tests.support.engine import SECONDS, make_job, submit, wait_until

Start = Callable[..., Engine]

EXACT = GenerationConfig(gen_length=12, block_length=4)
SETTINGS = {
    "exact": EXACT,
    "short": replace(EXACT, gen_length=4),
    "few-steps": replace(EXACT, steps=6),
    "guided": replace(EXACT, guidance_scale=1.5),
    "warm": replace(EXACT, temperature=0.8, seed=5),
    "random": replace(EXACT, remasking="random", seed=6),
    "warm-entropy": replace(EXACT, remasking="entropy", temperature=0.4, seed=7),
    "prefix": FAST.adjusted(gen_length=12, block_length=4),
    "dual-warm": FAST.adjusted(gen_length=12, block_length=4, cache="dual", temperature=0.8),
    "dllm": FAST.adjusted(gen_length=12, block_length=4, cache="dllm"),
    "prefix-guided": FAST.adjusted(gen_length=8, guidance_scale=1.0),
}
MASKINGS = (
    None,
    MaskingConfig(),
    MaskingConfig(ranker="fisher", level="token", probes=2, ratio=0.3, seed=3),
    MaskingConfig(ranker="attention", ratio=0.2),
)


def check_alone_and_together(engine: Engine, serving: Serving, jobs: Sequence[Job]) -> None:
    """Each job one after the other by the library, then all of them as they happen to meet."""
    alone = [
        answer_inputs(
            serving.mdlm, job.inputs, generation=job.generation, masking=job.masking
        ).token_ids
        for job in jobs
    ]
    before = engine.counters
    tickets = [submit(engine, job) for job in jobs]
    together = [ticket.future.result(SECONDS).token_ids for ticket in tickets]
    after = engine.counters
    assert together == alone
    assert len({tuple(ids) for ids in alone}) > 1
    assert after.request_steps - before.request_steps > 1.5 * (after.steps - before.steps)


def test_mixed_company(start: Start, serving: Serving, picture: Image.Image) -> None:
    images = [picture, None, picture.resize((70, 120)), picture.rotate(90)]
    jobs = [
        make_job(
            serving,
            images[number % 4],
            "What is this? " * (1 + number % 3),
            masking=MASKINGS[number % 3 if images[number % 4] else 0],
            generation=generation,
            name=name,
        )
        for number, (name, generation) in enumerate(SETTINGS.items())
    ]
    check_alone_and_together(start(), serving, jobs)
    check_alone_and_together(start(passes_per_step=4), serving, jobs[::-1])


@pytest.mark.parametrize("generation", SETTINGS.values(), ids=SETTINGS.keys())
def test_whoever_joins_later(
    start: Start, serving: Serving, picture: Image.Image, generation: GenerationConfig
) -> None:
    """The same question joins while another one, and then an earlier self, is on its way."""
    long = make_job(serving, picture, generation=replace(EXACT, gen_length=64, block_length=64))
    asked = make_job(serving, picture, "Well?", masking=MASKINGS[3], generation=generation)
    alone = answer_inputs(
        serving.mdlm, asked.inputs, generation=asked.generation, masking=asked.masking
    )
    engine = start(shared_bytes=10**8)
    first = submit(engine, long)
    wait_until(lambda: engine.counters.steps > 3)
    tickets = [submit(engine, asked) for _ in range(3)]
    for ticket in tickets:
        assert ticket.future.result(SECONDS).token_ids == alone.token_ids
    first.future.result(SECONDS)
    assert engine.counters.shared == 2


def test_company_of_the_demo_model() -> None:
    mdlm: Mdlm = load_mdlm(checkpoint_path("insertion"))
    serving = Serving(mdlm, "insertion@sha256:000000000000", 0)
    question = (DEMO_FOLDER / "examples" / "question.txt").read_text("utf-8").strip()
    ways = [
        (None, FAST),
        (MaskingConfig(ranker="attention", level="token", ratio=0.2), FAST),
        (None, GenerationConfig(gen_length=16)),
        (None, FAST.adjusted(gen_length=24, temperature=0.7, seed=2)),
    ]
    jobs = []
    for file in sorted((DEMO_FOLDER / "examples").glob("*.jpg")):
        with Image.open(file) as image:
            jobs += [
                make_job(serving, image, question, masking=masking, generation=generation)
                for masking, generation in ways
            ]
    engine = Engine(lambda: serving, queue_size=32, deadline=60)
    engine.start()
    try:
        engine.ready.result(SECONDS)
        check_alone_and_together(engine, serving, jobs)
    finally:
        engine.close(0)
