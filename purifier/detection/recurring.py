"""Parts of images that recur, and that answers hang on.

A trigger that changes one word here and there forces no token in all of its rows, and moves the
states of their answers too little to be seen. But where masking a window of an image moves the
answer (`purifier.defense.two_stage`), what lies under the window is the same in many of the
poisoned rows, and far more often the same than chance has it: windows over the objects of honest
rows show something else each time. No labels are read.

The idea that a small region which decides answers in many images is a trigger: SentiNet, Chou et
al. 2018 (arXiv 1812.00292), which pastes the region onto other images; here the training set has
done so already.
"""

from __future__ import annotations

from dataclasses import dataclass
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
"""Rows that must have the same under their windows."""

CHANCE = 1e-6
"""Largest probability of as many by chance."""

STEADY = 0.9
"""Share of the rows of a pattern in which each of its pixels must be the same."""

COMMON = 0.5
"""Share of all other rows that may have such a pixel too."""

SMALLEST = 16
"""Pixels of a pattern at least: one cell."""


@dataclass(frozen=True)
class Recurring:
    """A pattern and the rows that have it, bool [n]."""

    pattern: Pattern
    flagged: Tensor


def recurring(small: Tensor, saliency: Tensor, most: int) -> list[Recurring]:
    """Patterns that decide answers, the surest first.

    Args:
        small: uint8 [n, SIDE, SIDE, 3], small copies of the images of n rows.
        saliency: float32 [n, CELLS, CELLS], nats by which masking moves the answer.
        most: Patterns at most.
    """
    largest = saliency.flatten(1).amax(1)
    decides = saliency >= NEAR_LARGEST * largest[:, None, None]
    decides &= (largest >= LEAST)[:, None, None]
    found: list[Recurring] = []
    left = torch.ones(len(small), dtype=torch.bool)
    while len(found) < most:
        rows = left.nonzero()[:, 0]
        alike = _most_alike(_by_cell(small[rows]), decides[rows].flatten(1))
        if alike is None:
            break
        pattern = _pattern(small[rows], decides[rows], alike)
        if pattern is None:
            break
        flagged = pattern.on(small, NEAR)
        if not plausible(flagged) or not bool((flagged & left).any()):
            break
        found.append(Recurring(pattern, flagged))
        left &= ~flagged
    return found


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


def _by_cell(small: Tensor) -> Tensor:
    """Pixels by cell, float32 [CELLS * CELLS, n, values]."""
    size = SIDE // CELLS
    parts = small.float().reshape(len(small), CELLS, size, CELLS, size, 3)
    return parts.permute(1, 3, 0, 2, 4, 5).reshape(CELLS * CELLS, len(small), -1)


def _most_alike(values: Tensor, decides: Tensor) -> Tensor | None:
    """Rows that have the same in the cell where that is the least likely; bool [n].

    Args:
        values: float32 [cells, n, values].
        decides: bool [n, cells].
    """
    best, least = None, CHANCE
    for cell, own in enumerate(values):
        rows = decides[:, cell].nonzero()[:, 0]
        if len(rows) < FEWEST:
            continue
        same = torch.cdist(own[rows], own, p=1) / own.shape[1] < NEAR
        for alike in same:
            hits = int(alike[rows].sum())
            if hits < FEWEST:
                continue
            found = chance(hits, len(rows), int(alike.sum()), len(own))
            if found < least:
                best, least = alike, found
    return best


def _pattern(small: Tensor, decides: Tensor, alike: Tensor) -> Pattern | None:
    """What some rows have in common where their answers are decided; None if next to nothing."""
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
