"""Throughput of the server's engine: eight requests stepped together against one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from benchmarks.middle import question
from benchmarks.speed_timing import Bench, Spread, ratios
from purifier.answer import Answer
from purifier.defense.config import MaskingConfig
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from server.engine import Engine, Job, Serving

TOGETHER = 8
_PATIENCE = 3_600.0


def batch8_demo(bench: Bench) -> dict[str, Any]:
    """Answers a second of the demo model, defended by default and undefended."""
    mdlm = bench.demo("insertion")
    test_set = read_test_set(DATA_FOLDER, limit=4 if bench.quick else 16)
    asked = [
        mdlm.prepare(case.messages(trigger))
        for case in test_set.cases
        for trigger in (None, test_set.trigger)
    ]
    return _part(bench, "demo", mdlm, asked)


def batch8_middle(bench: Bench) -> dict[str, Any]:
    """The same of the middle-sized model at 729 visual tokens."""
    mdlm = bench.middle(729)
    count = TOGETHER if bench.quick else TOGETHER + TOGETHER // 2
    return _part(bench, "middle", mdlm, [question(mdlm, number) for number in range(count)])


def _part(bench: Bench, name: str, mdlm: LladaV, asked: Sequence[Inputs]) -> dict[str, Any]:
    maskings = {"defended": MaskingConfig(), "undefended": None}
    cells = {
        defence: _throughput(bench, f"{name}, {defence}", mdlm, asked, masking)
        for defence, masking in maskings.items()
    }
    return {
        **cells["defended"]["speed_up"],
        "what": f"answers a second, {TOGETHER} at once over one at a time, {name} model, defended",
        "cells": cells,
    }


def _throughput(
    bench: Bench,
    name: str,
    mdlm: LladaV,
    asked: Sequence[Inputs],
    masking: MaskingConfig | None,
) -> dict[str, Any]:
    generation = bench.fast(bench.exact(32))
    jobs = [Job(inputs, generation, masking, str(at)) for at, inputs in enumerate(asked)]
    serving = Serving(mdlm, f"{name}@sha256:000000000000", 0)
    engine = Engine(lambda: serving, queue_size=2 * TOGETHER, deadline=_PATIENCE)
    engine.start()
    try:
        engine.ready.result(_PATIENCE)
        answers: dict[int, list[Answer]] = {}

        def run(together: int) -> float:
            return bench.timed(lambda: answers.update({together: ask(engine, jobs, together)}))

        found = bench.pairs(
            f"throughput, {name}",
            {"alone": lambda: run(1), "together": lambda: run(TOGETHER)},
        )
    finally:
        engine.close(_PATIENCE)
    same = [a.text == b.text for a, b in zip(answers[1], answers[TOGETHER], strict=True)]
    per_second = {
        side: Spread.of([len(jobs) / s for s in values]).to_dict() for side, values in found.items()
    }
    return {
        "speed_up": ratios(found["alone"], found["together"]).to_dict(),
        "answers_per_second": per_second,
        "requests": len(jobs),
        "same_as_alone": sum(same),
    }


def ask(engine: Engine, jobs: Sequence[Job], together: int) -> list[Answer]:
    """Answers jobs, always `together` of them inside; each that ends lets the next one in."""
    inside: dict[Future[Answer], int] = {}
    answers: dict[int, Answer] = {}
    waiting = list(enumerate(jobs))[::-1]
    while waiting or inside:
        while waiting and len(inside) < together:
            number, job = waiting.pop()
            with engine.reserve() as place:
                inside[place.submit(job).future] = number
        done, _ = wait(inside, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
        if not done:
            raise TimeoutError("the engine has not answered")
        for future in done:
            answers[inside.pop(future)] = future.result()
    return [answers[number] for number in range(len(jobs))]
