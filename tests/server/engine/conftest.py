"""An engine around a real, tiny model that a test can hold up or break."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from purifier.mdlm.base import Mdlm
from server.engine import Serving
from tests.support.engine import Start, starting
from tests.support.tampered import Tampered


@pytest.fixture
def tampered(mdlm: Mdlm) -> Tampered:
    return Tampered(mdlm)


@pytest.fixture
def serving(tampered: Tampered) -> Serving:
    return Serving(cast("Mdlm", tampered), "tiny@sha256:000000000000", 0)


@pytest.fixture
def start(serving: Serving) -> Iterator[Start]:
    """Starts engines, which are closed after the test."""
    with starting(serving, queue_size=32, deadline=60.0) as start:
        yield start
