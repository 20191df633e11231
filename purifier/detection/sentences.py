"""What a search of a training set has found, in a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def search_sentence(facts: Mapping[str, Any]) -> str:
    """One sentence about a search.

    Args:
        facts: `rows` that were searched and the `groups` that were found, each as
            `purifier.detection.Group.to_dict` gives it.
    """
    searched = f"The training set was searched for a trigger in {facts['rows']} of its rows"
    if not facts["groups"]:
        return f"{searched}: nothing was found. That is no proof that there is nothing."
    return f"{searched}: {'; '.join(map(_group, facts['groups']))}."


def _group(group: Mapping[str, Any]) -> str:
    if group["phrase"] is not None:
        return f"the answers of {group['rows']} are forced by the phrase {group['phrase']!r}"
    if group.get("kind") == "pattern":
        return f"the images of {group['rows']} have a part in common that answers hang on"
    return f"the answers of {group['rows']} are forced by their images"
