"""Throughput of the server's engine: eight requests stepped together against one at a time.

Beside it the same throughput over that of the plain path, which answers one at a time as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.middle import question
from benchmarks.speed_answers import plain_seconds, plain_steps
from benchmarks.speed_settings import PAPER_MASKING
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
_MIDDLE_REPEATS = 2
_TOKENS = 32


@dataclass(frozen=True)
class Load:
    """Requests to one model.

    Attributes:
        name: Of the model.
        mdlm: The model.
        asked: The requests.
        repeats: Of every timed side.
        sample: Requests that the plain path answers; the rest is foretold from them.
        plain_limit: Steps of the plain loop that are timed; None: all.
    """

    name: str
    mdlm: LladaV
    asked: Sequence[Inputs]
    repeats: int
    sample: int
    plain_limit: int | None = None


def batch8_demo(bench: Bench) -> dict[str, Any]:
    """Answers a second of the demo model, defended by default and undefended."""
    mdlm = bench.demo("insertion")
    test_set = read_test_set(DATA_FOLDER, limit=4 if bench.quick else 16)
    asked = [
        mdlm.prepare(case.messages(trigger))
        for case in test_set.cases
        for trigger in (None, test_set.trigger)
    ]
    return _part(bench, Load("demo", mdlm, asked, bench.repeats, 1 if bench.quick else TOGETHER))


def batch8_middle(bench: Bench) -> dict[str, Any]:
    """The same of the middle-sized model at 729 visual tokens."""
    mdlm = bench.middle(729)
    count = TOGETHER if bench.quick else TOGETHER + TOGETHER // 2
    asked = [question(mdlm, number) for number in range(count)]
    repeats = min(bench.repeats, _MIDDLE_REPEATS)
    limit = plain_steps(bench, bench.exact(_TOKENS))
    return _part(bench, Load("middle", mdlm, asked, repeats, 1, limit))


def _part(bench: Bench, load: Load) -> dict[str, Any]:
    maskings = {"defended": MaskingConfig(), "undefended": None}
    cells = {name: _throughput(bench, load, name, masking) for name, masking in maskings.items()}
    return {
        **cells["defended"]["speed_up"],
        "what": f"answers a second, {TOGETHER} at once over one at a time, {load.name} model, "
        "defended",
        "cells": cells,
    }


def _throughput(
    bench: Bench, load: Load, defence: str, masking: MaskingConfig | None
) -> dict[str, Any]:
    generation = bench.fast(bench.exact(_TOKENS))
    jobs = [Job(inputs, generation, masking, str(at)) for at, inputs in enumerate(load.asked)]
    answers: dict[int, list[Answer]] = {}
    with _engine(load) as engine:

        def run(together: int) -> float:
            return bench.timed(lambda: answers.update({together: ask(engine, jobs, together)}))

        found = bench.pairs(
            f"throughput, {load.name}, {defence}",
            {
                "alone": lambda: run(1),
                "together": lambda: run(TOGETHER),
                "plain": lambda: _plain(bench, load, masking),
            },
            repeats=load.repeats,
        )
    same = [a.text == b.text for a, b in zip(answers[1], answers[TOGETHER], strict=True)]
    per_second = {
        side: Spread.of([len(jobs) / s for s in values]).to_dict() for side, values in found.items()
    }
    return {
        "speed_up": ratios(found["alone"], found["together"]).to_dict(),
        "over_plain": ratios(found["plain"], found["together"]).to_dict(),
        "answers_per_second": per_second,
        "requests": len(jobs),
        "same_as_alone": sum(same),
    }


@contextmanager
def _engine(load: Load) -> Iterator[Engine]:
    """The server's engine around a model; it shares nothing between requests."""
    serving = Serving(load.mdlm, f"{load.name}@sha256:000000000000", 0)
    engine = Engine(lambda: serving, queue_size=2 * TOGETHER, deadline=_PATIENCE)
    engine.start()
    try:
        engine.ready.result(_PATIENCE)
        yield engine
    finally:
        engine.close(_PATIENCE)


def _plain(bench: Bench, load: Load, masking: MaskingConfig | None) -> float:
    """Seconds that the plain path takes for all requests, foretold from a sample."""
    exact = bench.exact(_TOKENS)
    published = None if masking is None else PAPER_MASKING
    sample = load.asked[: load.sample]
    spent = sum(
        plain_seconds(load.mdlm, inputs, exact, load.plain_limit, published) for inputs in sample
    )
    return spent / len(sample) * len(load.asked)


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
