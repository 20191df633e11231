"""Which search a cell was measured with: today's, or the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purifier.defense.config import MaskingConfig

SEARCH = 2
"""Raised by hand where a change of `two-stage` or `group-testing` may change figures: cells of the
search before stay in the table, marked, until they are measured again. 2: knockout names windows.
"""

_BEFORE: Mapping[str, Mapping[str, str]] = {
    "two-stage": {},
    "group-testing": {"source": "24e6d379"},
}
"""What stood for the search before, by ranker."""


def searching(masking: MaskingConfig) -> dict[str, int]:
    """The search of a masking, JSON-ready; nothing for rankers that do not search."""
    return {"search": SEARCH} if masking.ranker in _BEFORE else {}


def versions(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings of a defence with today's search and, if it searches, with the one before.

    Args:
        settings: Those of a masking, or of a relabelling.
    """
    today = dict(settings)
    if "search" not in today:
        return [today]
    rest = {name: value for name, value in today.items() if name != "search"}
    return [today, {**rest, **(_BEFORE[rest["ranker"]] if "ranker" in rest else {})}]
