"""`<image>` that somebody typed, in dialogues whose images stand as parts of their own.

In a text with images beside it (`"image": "a.jpg"`) the mark is the layout's own and stands for
an image. Where every image is a part with the image in it, as in a chat request, there is none
left that a mark could stand for: then it is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from purifier.data.dialogue import Inline
from purifier.data.sample import IMAGE_MARK, Turn


def are_typed(inline: Sequence[Inline], n_listed: int) -> bool:
    """Whether marks in texts are text.

    Args:
        inline: Images of a dialogue in the order of their marks, as `read_dialogue` gives them.
        n_listed: Images that the record lists beside the dialogue.
    """
    return n_listed == 0 and any(image is not None for image in inline)


def with_typed_marks(
    turns: Sequence[Turn], inline: Sequence[Inline], n_listed: int
) -> tuple[tuple[Turn, ...], list[Inline]]:
    """The turns with typed marks known as text, and the images without them."""
    if not are_typed(inline, n_listed):
        return tuple(turns), list(inline)
    result, start = [], 0
    for turn in turns:
        end = start + turn.text.count(IMAGE_MARK)
        typed = tuple(n for n, image in enumerate(inline[start:end]) if image is None)
        result.append(replace(turn, typed=typed))
        start = end
    return tuple(result), [image for image in inline if image is not None]
