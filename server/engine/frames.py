"""Letting go of what a failed piece of work still holds."""

from __future__ import annotations

import traceback


def free_frames(error: BaseException) -> None:
    """Clears the local variables of the functions that an error went through.

    A traceback keeps them alive for as long as somebody has the error: the tensors of the pass
    that failed, or half a model. The traceback itself still names every line. Errors that led to
    this one are cleared, too.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        left += [each.__cause__, each.__context__]
