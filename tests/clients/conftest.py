from __future__ import annotations

import pytest

from tests.support.wire import Caller, picture


@pytest.fixture
def png() -> bytes:
    return picture()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)
