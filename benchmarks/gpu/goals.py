"""The figures that a run is judged by, and what they should reach at least or at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Mapping[str, Any]]
"""Figures by part and name."""


@dataclass(frozen=True)
class Goal:
    """A figure and its bound.

    Attributes:
        what: The figure.
        value: Finds it; None if it was not measured.
        bound: What it should reach.
        at_least: Whether more is better.
    """

    what: str
    value: Callable[[Figures], float | None]
    bound: float
    at_least: bool = True

    def met(self, value: float | None) -> bool | None:
        """Whether a value reaches the bound; None without a value."""
        if value is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound


def _at(part: str, name: str, *path: str) -> Callable[[Figures], float | None]:
    def find(figures: Figures) -> float | None:
        return number(figures.get(part, {}).get(name), path)

    return find


def number(figure: Any, path: Sequence[str]) -> float | None:
    """A number inside a figure; None if it is not there."""
    for key in path:
        if not isinstance(figure, Mapping):
            return None
        figure = figure.get(key)
    return None if isinstance(figure, bool) or not isinstance(figure, int | float) else figure


def _quotient(
    above: Callable[[Figures], float | None], below: Callable[[Figures], float | None]
) -> Callable[[Figures], float | None]:
    def find(figures: Figures) -> float | None:
        top, bottom = above(figures), below(figures)
        return top / bottom if top is not None and bottom else None

    return find


def _together(count: int) -> Callable[[Figures], float | None]:
    return _at("together", f"defended, {count} together", "answers_per_second")


def _rate(pace: str) -> Callable[[Figures], float | None]:
    name = f"answer, undefended, 128 tokens, {pace} a pass"
    return _at("speed", name, "tokens_per_second", "value")


def _rows(name: str) -> Callable[[Figures], float | None]:
    return _at("purifying", f"rows, {name}", "rows_per_second")


def _tests_that_failed(figures: Figures) -> float | None:
    """Failures and errors; None unless pytest has come to its end and some tests have passed."""
    found = figures.get("tests", {}).get("tests", {})
    if found.get("status") not in (0, 1) or not found.get("passed"):
        return None
    return float(found["failures"] + found["errors"])


def _largest(
    *finds: Callable[[Figures], float | None],
) -> Callable[[Figures], float | None]:
    def find(figures: Figures) -> float | None:
        return max((v for one in finds if (v := one(figures)) is not None), default=None)

    return find


GOALS: tuple[Goal, ...] = (
    Goal("gpu tests that failed", _tests_that_failed, 0, at_least=False),
    Goal(
        "peak host memory of loading, MiB",
        _largest(
            _at("loading", "from disk", "host_mib_peak"),
            _at("loading", "from memory", "host_mib_peak"),
        ),
        4e9 / 2**20,
        at_least=False,
    ),
    Goal(
        "seconds to load over those of a plain read, from disk",
        _at("loading", "from disk", "ratio"),
        1.5,
        at_least=False,
    ),
    Goal(
        "published path over product, seconds, 128 tokens, batch 1",
        _at("speed", "undefended, 128 tokens", "ratio", "value"),
        10,
    ),
    Goal("tokens a second, batch 1, one token a pass", _rate("one"), 50),
    Goal("tokens a second, batch 1, 2.8 tokens a pass", _rate("trained"), 50),
    Goal("answers a second, defended, 8 over 1", _quotient(_together(8), _together(1)), 3),
    Goal("answers a second, defended, 32 over 1", _quotient(_together(32), _together(1)), 6),
    Goal(
        "defended over undefended seconds, level patch",
        _at("speed", "defence", "ratio", "patch", "value"),
        1.25,
        at_least=False,
    ),
    Goal(
        "rows a second of purification over the published loop",
        _quotient(_rows("product"), _rows("published loop")),
        15,
    ),
)
