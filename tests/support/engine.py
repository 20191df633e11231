"""Jobs for an engine, and what its tests wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from purifier import GenerationConfig, MaskingConfig
from purifier.answer import user_messages
from server.engine import Engine, Job, Progress, Serving, Ticket
from server.engine.shared import content_of

SECONDS = 300
Start = Callable[..., Engine]


@contextmanager
def starting(serving: Serving, **defaults: Any) -> Iterator[Start]:
    """Starts engines with settings besides the defaults; all are closed with the block."""
    engines: list[Engine] = []

    def start(**settings: Any) -> Engine:
        engines.append(Engine(lambda: serving, **(defaults | settings)))
        engines[-1].start()
        engines[-1].ready.result(SECONDS)
        return engines[-1]

    yield start
    for engine in engines:
        engine.close(0)


def make_job(
    serving: Serving,
    image: Image.Image | None = None,
    question: str = "What is this?",
    *,
    masking: MaskingConfig | None = None,
    generation: GenerationConfig | None = None,
    name: str = "-",
) -> Job:
    """A job as the service makes it."""
    inputs = serving.prepare(user_messages(image, question))
    generation = generation or GenerationConfig(gen_length=4)
    content = None if masking is None else content_of(inputs, generation, masking)
    return Job(inputs, generation, masking, name, content)


def submit(engine: Engine, job: Job, progress: Progress | None = None) -> Ticket:
    with engine.reserve() as place:
        return place.submit(job, progress)


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until something is so."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
