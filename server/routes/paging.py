"""Pages in OpenAI's shape: `limit` and `after`, and whether there is more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Query

Item = TypeVar("Item")

After = Annotated[str | None, Query(max_length=128)]
"""Id of the last item of the page before."""


def cut(items: Sequence[Item], limit: int) -> tuple[list[Item], bool]:
    """A page of items of which one more than `limit` were asked for.

    Returns:
        The page, and whether there is more behind it.
    """
    return list(items[:limit]), len(items) > limit
