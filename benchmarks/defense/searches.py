"""Which search a cell was measured with: today's, by its source, or the one before it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from purifier.defense import group_testing, two_stage
from purifier.defense.config import MaskingConfig

_MODULES: Mapping[str, tuple[ModuleType, ...]] = {
    "two-stage": (two_stage,),
    "group-testing": (two_stage, group_testing),
}
"""By ranker: what decides which windows and blocks are found."""

_BEFORE: Mapping[str, Mapping[str, str]] = {
    "two-stage": {},
    "group-testing": {"source": "24e6d379"},
}
"""What stood in place of today's source before knockout named windows, by ranker."""


def searching(masking: MaskingConfig) -> dict[str, str]:
    """The source of the search by its hash, JSON-ready; nothing for rankers that do not search."""
    modules = _MODULES.get(masking.ranker, ())
    source = "".join(inspect.getsource(module) for module in modules)
    return {"source": hashlib.sha256(source.encode()).hexdigest()[:8]} if modules else {}


def versions(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings of a defence today and, if it searches, as they were before knockout named windows.

    Args:
        settings: Those of a masking, or of a relabelling.
    """
    today = dict(settings)
    if "source" not in today:
        return [today]
    rest = {name: value for name, value in today.items() if name != "source"}
    return [today, {**rest, **(_BEFORE[rest["ranker"]] if "ranker" in rest else {})}]
