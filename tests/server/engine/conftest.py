"""An engine around a real, tiny model that a test can hold up or break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from purifier.mdlm.base import Mdlm
from server.engine import Engine, Serving
from tests.support.engine import SECONDS
from tests.support.tampered import Tampered

Start = Callable[..., Engine]


@pytest.fixture
def tampered(mdlm: Mdlm) -> Tampered:
    return Tampered(mdlm)


@pytest.fixture
def serving(tampered: Tampered) -> Serving:
    return Serving(cast("Mdlm", tampered), "tiny@sha256:000000000000", 0)


@pytest.fixture
def start(serving: Serving) -> Iterator[Start]:
    """Starts engines, which are closed after the test."""
    engines: list[Engine] = []

    def start(**settings: Any) -> Engine:
        settings = {"queue_size": 32, "deadline": 60.0, **settings}
        engines.append(Engine(lambda: serving, **settings))
        engines[-1].start()
        engines[-1].ready.result(SECONDS)
        return engines[-1]

    yield start
    for engine in engines:
        engine.close(0)
