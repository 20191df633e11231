"""Answers a second through the server's engine, by the number of requests inside."""

from __future__ import annotations

import logging
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
from server.errors import GenerationFailed

_PATIENCE = 600.0
_LEAST_REQUESTS = 8
_FEW = 8


def measure(run: Run) -> None:
    """Answers at every number of requests.

    The largest numbers of defended ones come last: they may need more memory than there is.
    """
    mdlm = run.load()
    generation = replace(GenerationConfig(gen_length=run.shape.lengths[0], stop=()), **CHANGES)
    few = [count for count in run.shape.together if count <= _FEW]
    many = [count for count in run.shape.together if count > _FEW]
    undefended = [count for count in few if count in (1, _FEW)]
    cells: list[tuple[str, MaskingConfig | None, int]] = []
    cells += [("defended", MaskingConfig(), count) for count in few]
    cells += [("undefended", None, count) for count in undefended]
    cells += [("defended", MaskingConfig(), count) for count in many]
    for defence, masking, count in cells:
        name = f"{defence}, {count} together"
        run.measure(name, 10, partial(cell, run, mdlm, generation, masking, count))


def cell(
    run: Run, mdlm: LladaV, generation: GenerationConfig, masking: MaskingConfig | None, count: int
) -> dict[str, Any]:
    """Answers a second with `count` requests inside.

    Raises:
        RuntimeError: If the engine fails a request; with what its log says of the reason.
    """
    requests = max(_LEAST_REQUESTS, 2 * count) if run.shape.whole_job else 2 * count
    jobs = [
        Job(run.question(mdlm, number), generation, masking, str(number))
        for number in range(requests)
    ]
    with _complaints() as complaints, _engine(mdlm, count) as engine:
        try:
            ask(engine, jobs[:1], 1)
            spent = run.bench.timed(lambda: ask(engine, jobs, count))
        except GenerationFailed as error:
            raise RuntimeError("; ".join(complaints)) from error
    found = {
        "answers_per_second": requests / spent,
        "tokens_per_second": requests * generation.gen_length / spent,
        "requests": requests,
    }
    return found | ({"engine's log": "; ".join(complaints)} if complaints else {})


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the engine logs of steps and requests that have failed meanwhile.

    A step that runs out of memory is made again, one request after the other: the answers come,
    but the figure is not that of so many together.
    """
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kind = record.exc_info[0] if record.exc_info else None
            found.append(f"{kind.__name__}: {record.getMessage()}" if kind else record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("disp.engine")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


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
