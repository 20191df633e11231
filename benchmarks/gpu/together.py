"""Answers a second through the server's engine, by the number of requests inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.gpu.run import Run
from benchmarks.speed_engine import ask
from benchmarks.speed_settings import CHANGES
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.llada_v import LladaV
from server.engine import Engine, Job, Serving
from server.engine.pace import Room

_PATIENCE = 600.0
_LEAST_REQUESTS = 8


def measure(run: Run) -> None:
    """Defended answers at every number of requests; undefended ones at the least and at eight."""
    mdlm = run.load()
    generation = replace(GenerationConfig(gen_length=run.shape.lengths[0], stop=()), **CHANGES)
    maskings = {"defended": MaskingConfig(), "undefended": None}
    for defence, masking in maskings.items():
        for count in run.shape.together:
            if masking is None and count not in (1, 8):
                continue
            name = f"{defence}, {count} together"
            run.measure(name, 15, partial(_cell, run, mdlm, generation, masking, count))


def _cell(
    run: Run, mdlm: LladaV, generation: GenerationConfig, masking: MaskingConfig | None, count: int
) -> dict[str, Any]:
    requests = max(_LEAST_REQUESTS, 2 * count) if run.shape.whole_job else 2 * count
    jobs = [
        Job(run.question(mdlm, number), generation, masking, str(number))
        for number in range(requests)
    ]
    with _engine(mdlm, count) as engine:
        ask(engine, jobs[:1], 1)
        spent = run.bench.timed(lambda: ask(engine, jobs, count))
    return {
        "answers_per_second": requests / spent,
        "tokens_per_second": requests * generation.gen_length / spent,
        "requests": requests,
    }


@contextmanager
def _engine(mdlm: LladaV, count: int) -> Iterator[Engine]:
    """The server's engine with room for `count` requests; it shares nothing between them."""
    serving = Serving(mdlm, "random@sha256:000000000000", 0)
    engine = Engine(
        lambda: serving,
        queue_size=2 * count,
        deadline=_PATIENCE,
        room=Room(requests=count, positions=10**9),
    )
    engine.start()
    try:
        engine.ready.result(_PATIENCE)
        yield engine
    finally:
        engine.close(_PATIENCE)
