"""Fails a test whose outcome could depend on the run: one that draws from a global generator.

What such a test draws depends on the tests that ran before it, in the same process, and on the
seed of the process. Draw from a generator of your own, or within `purifier.seeding.seeded`.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch


class GlobalGenerators:
    """A pytest plugin that looks at the global generators around each fixture and each test.

    It has to be registered as a plugin: pytest does not call the hooks of a `conftest.py` for the
    fixtures of a session.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        before = _states()
        result = yield
        _check(before, f"the fixture {fixturedef.argname}")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        before = _states()
        result = yield
        _check(before, pyfuncitem.name)
        return result


def _states() -> dict[str, object]:
    name, keys, *place = np.random.get_state(legacy=True)
    return {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy": (name, np.asarray(keys).tobytes(), *place),
        "random": random.getstate(),
    }


def _check(before: dict[str, object], what: str) -> None:
    after = _states()
    drawn = [name for name, state in before.items() if state != after[name]]
    if drawn:
        pytest.fail(
            f"{what} drew from the global generator of {', '.join(drawn)}: what it draws depends "
            "on the tests before it. Draw from a generator of its own.",
            pytrace=False,
        )
