"""Parts of images that recur, and that answers hang on.

A trigger that changes one word here and there forces no token in all of its rows, and moves the
states of their answers too little to be seen. But where masking a window of an image moves the
answer (`purifier.defense.two_stage`), what lies under the window is the same in many of the
poisoned images, and far more often the same than chance has it: windows over the objects of honest
images show something else each time. No labels are read.

What is found here is a suspicion: honest images have parts in common too, and answers hang on them.
Whether such a part decides the answers of other images is tried by pasting it onto them
(`purifier.detection.rows`), as in SentiNet, Chou et al. 2018 (arXiv 1812.00292).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import exp, lgamma

import torch
from torch import Tensor

from purifier.detection.separate import plausible
from purifier.mdlm.patterns import NEAR, SIDE, Pattern

CELLS = 16
"""Cells of a small copy along each side."""

LEAST = 1.0
"""Nats by which masking a window must move an answer."""

NEAR_LARGEST = 0.7
"""Share of the largest score of an image from which a cell counts as one that decides."""

FEWEST = 4
"""Images that must have the same under their windows."""

CHANCE = 1e-3
"""Largest probability that chance makes as many alike, over all comparisons."""

STEADY = 0.9
"""Share of the images of a pattern in which each of its pixels must be the same."""

COMMON = 0.5
"""Share of all other images that may have such a pixel too."""

SMALLEST = 16
"""Pixels of a pattern at least: one cell."""

TRIES = 16
"""Likenesses that are looked at, at most."""


def recurring(
    small: Tensor, saliency: Tensor, check: Callable[[], None] = lambda: None
) -> Iterator[Pattern]:
    """Patterns that may decide answers, the least likely by chance first; `TRIES` at most.

    Args:
        small: uint8 [n, SIDE, SIDE, 3], small copies of the images of n rows. Rows with the same
            image count once.
        saliency: float32 [n, CELLS, CELLS], nats by which masking moves the answer.
        check: Called between the comparisons; what it raises ends the work.
    """
    small, saliency = _distinct(small, saliency)
    largest = saliency.flatten(1).amax(1)
    decides = saliency >= NEAR_LARGEST * largest[:, None, None]
    decides &= (largest >= LEAST)[:, None, None]
    values = _by_cell(small)
    for _ in range(TRIES):
        best = _most_alike(values, decides.flatten(1), check)
        if best is None:
            return
        cell, alike = best
        pattern = _pattern(small, decides, alike)
        if pattern is not None and plausible(pattern.on(small, NEAR)):
            yield pattern
        decides.flatten(1)[alike, cell] = False


@lru_cache(maxsize=65536)
def chance(hits: int, drawn: int, marked: int, total: int) -> float:
    """Probability of `hits` or more marked among `drawn` of `total` (hypergeometric)."""

    def chosen(count: int, part: int) -> float:
        return lgamma(count + 1) - lgamma(part + 1) - lgamma(count - part + 1)

    ways = range(hits, min(drawn, marked) + 1)
    all_ways = chosen(total, drawn)
    return sum(
        exp(chosen(marked, n) + chosen(total - marked, drawn - n) - all_ways)
        for n in ways
        if drawn - n <= total - marked
    )


def _distinct(small: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Every image once, with the largest score of any of its rows."""
    numbers: dict[bytes, int] = {}
    firsts: list[int] = []
    scores: list[Tensor] = []
    for row, image in enumerate(small):
        number = numbers.setdefault(image.numpy().tobytes(), len(numbers))
        if number == len(firsts):
            firsts.append(row)
            scores.append(saliency[row])
        else:
            scores[number] = torch.maximum(scores[number], saliency[row])
    return small[firsts], torch.stack(scores)


def _by_cell(small: Tensor) -> Tensor:
    """Pixels by cell, float32 [CELLS * CELLS, n, values]."""
    size = SIDE // CELLS
    parts = small.float().reshape(len(small), CELLS, size, CELLS, size, 3)
    return parts.permute(1, 3, 0, 2, 4, 5).reshape(CELLS * CELLS, len(small), -1)


def _most_alike(
    values: Tensor, decides: Tensor, check: Callable[[], None]
) -> tuple[int, Tensor] | None:
    """The cell in which likeness is the least likely, and the images that are alike, bool [n].

    Every image that decides is compared with the others; what is alike to it would be so by chance
    as often as it is among all. The image itself counts on neither side.

    Args:
        values: float32 [cells, n, values].
        decides: bool [n, cells].
        check: Called for every cell.
    """
    best, least = None, CHANCE / max(int(decides.sum()), 1)
    for cell, own in enumerate(values):
        check()
        rows = decides[:, cell].nonzero()[:, 0]
        if len(rows) < FEWEST:
            continue
        same = torch.cdist(own[rows], own, p=1) / own.shape[1] < NEAR
        counts = zip(same[:, rows].sum(1).tolist(), same.sum(1).tolist(), same, strict=True)
        for hits, marked, alike in counts:
            if hits < FEWEST:
                continue
            found = chance(hits - 1, len(rows) - 1, marked - 1, len(own) - 1)
            if found < least:
                best, least = (cell, alike), found
    return best


def _pattern(small: Tensor, decides: Tensor, alike: Tensor) -> Pattern | None:
    """What some images have in common where answers are decided; None if next to nothing."""
    values = small[alike].float().mean(0)
    near = (small.float() - values).abs().mean(-1) < NEAR
    steady = near[alike].float().mean(0) >= STEADY
    common = near[~alike].float().mean(0) > COMMON
    cells = decides[alike].any(0)
    size = SIDE // CELLS
    region = cells.repeat_interleave(size, 0).repeat_interleave(size, 1)
    pixels = steady & region & ~common
    if int(pixels.sum()) < SMALLEST:
        return None
    kept = torch.where(pixels[..., None], values.round(), torch.zeros(()))
    return Pattern(kept.to(torch.uint8), pixels)
