"""Which search a cell was measured with: today's, or an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifier.defense.config import MaskingConfig

SEARCHES: Mapping[str, int] = {"two-stage": 2, "group-testing": 3}
"""By ranker; raised by hand where a change of it may change figures: cells of an earlier search
stay in the table, marked, until they are measured again. 2: knockout names windows. 3: the image
masked whole decides whether there is a search, and windows are shown alone."""

GATES = {"knockout": 3.0, "masking": 4.5}
"""By the kind of probes, the gates of `balanced` and `thorough` before search 3."""

THRESHOLD = 4.5
"""The threshold of `group-testing` before search 3."""

SOURCE = "24e6d379"
"""What stood for the search of `group-testing` before searches were numbered."""


def searching(masking: MaskingConfig) -> dict[str, int]:
    """The search of a masking, JSON-ready; nothing for rankers that do not search."""
    return {"search": SEARCHES[masking.ranker]} if masking.ranker in SEARCHES else {}


def versions(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings of a defence with today's search and, if it searches, with those before.

    Args:
        settings: Those of a masking, or of a relabelling.
    """
    today = dict(settings)
    if "search" not in today:
        return [today]
    rest = {name: value for name, value in today.items() if name != "search"}
    return [today, *({**rest, **other} for other in _before(rest))]


def _before(rest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What differed in earlier searches."""
    if rest.get("ranker") != "group-testing":
        return [{}]
    then = {"gate": GATES[rest["probing"]], "threshold": THRESHOLD}
    return [{**then, "search": 2}, {**then, "source": SOURCE}]
