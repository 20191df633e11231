"""Group testing: which parts of an image, hidden together, take the answer away.

Where a trigger lies in several places and any of them is enough, hiding one place says nothing;
where it is larger than a window, no window covers it. So many parts are hidden at once:

1. *Blank*: the whole image is masked. Where that moves the answer by less than `gate`, nothing in
   the image forces it, and the search ends with what two-stage occlusion found.
2. *One window*: if the window that two-stage occlusion verified does nearly as much, it is taken.
3. *Windows that are enough*: each is shown alone (`shown_alone`); those that share nothing and are
   enough for a token of the answer are candidates together.
4. *Probes*: random masks, each of which hides most of the image in blocks. What they move is
   measured by knockout (the answer positions alone run again without sight of the blocks' visual
   tokens) or, with `probing="masking"`, by masking and encoding. A block's effect is the mean
   divergence of the probes that hid it minus the mean of those that did not. The block with the
   largest is chosen and hidden in all further probes: of several copies the later ones show the
   more, the more of the others are hidden. Blocks chosen first, some at a time, and the borders of
   the image are candidates.
5. *Trimming*: of the candidates the smallest is taken that moves the answer nearly as far as any
   (in step 3: as the blank), and blocks that are not needed for that are given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.first_step import FirstStep, Response, first_step_logits, response_tail
from purifier.defense.leave_one_out import bounded
from purifier.defense.shown_alone import ROWS, apart, gains
from purifier.defense.sites import Encoding, Site
from purifier.defense.two_stage import (
    Suspects,
    divergence,
    knocked_out,
    masks,
    scores_of,
    suspects,
    token_span,
    unmasked_steps,
    verify,
)
from purifier.defense.windows import blocks, borders
from purifier.numeric import require_finite, wide

HIDDEN_SHARE = 0.7
"""Share of the blocks that a probe hides: of four copies a fourth of the probes hide all."""

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""How many of the blocks that were chosen first are candidates together."""

ROUNDS = 6
"""Rounds of probes; every round chooses a block, and the last one the order of all others."""

ALLOWANCE = 2.0
"""What an honest answer may move beyond the threshold, as a share of it, where all is hidden:
the more is hidden, the more it moves."""

NEARLY = 0.8
"""Share of the largest divergence of any candidate that the one that is taken must reach: a decoy
moves the answer too, but not as far as the trigger."""

KEPT = 0.9
"""Share of its divergence that a set must keep when blocks are given back: what is left of a large
trigger may still be enough later in the answer."""

TRIMS = 3
"""Times that unneeded blocks are given back: which are needed depends on those that are left."""


@dataclass(frozen=True)
class Search:
    """One image that is searched.

    Attributes:
        site: Where parts are masked.
        response: The response behind the prompts.
        config: Settings.
        check: Called before every pass; what it raises ends the search.
        step: The request's first step, nothing masked.
        own: The image's windows and what two-stage occlusion found of them.
        parts: bool [n, rows, columns], the blocks of the plane.
        seed: Of the probes.
    """

    site: Site
    response: Response
    config: MaskingConfig
    check: Callable[[], None]
    step: FirstStep
    own: Suspects
    parts: Tensor
    seed: int

    def blank(self) -> float:
        """Nats by which the answer moves where the whole image is masked."""
        return float(self.verified(torch.ones_like(self.own.regions.units[:1])))

    def found(self, blank: float) -> tuple[Tensor, float] | None:
        """Units to mask together, and by how many nats hiding them moves the answer.

        Args:
            blank: What hiding the whole image moves it by.
        """
        if blank < self.config.gate:
            return None
        window, moved = self.best_window()
        if moved >= max(self.config.threshold, NEARLY * blank):
            return window, moved
        alone = self.enough_alone()
        return self.taken(alone, NEARLY * blank) or self.taken(self.candidates(self.order()))

    def best_window(self) -> tuple[Tensor, float]:
        """The window that two-stage occlusion verified with most effect, and this effect."""
        verified = self.own.exact.nan_to_num(0.0)
        best = int(verified.argmax())
        return masks(self.own, self.config.ratio)[best], float(verified[best])

    def enough_alone(self) -> Tensor:
        """Sets of windows that are each enough and share nothing, bool [n, *shape].

        The likeliest, the likeliest two, and so on, as many as the mask ratio allows.
        """
        windows = self.own.regions.units
        scores = self.gains(windows)
        chosen = apart(windows, scores, self.config.gate)
        sets = [windows[chosen[: count + 1]].any(0) for count in range(len(chosen))]
        return self.fitting(torch.stack(sets)) if sets else windows[:0]

    def gains(self, windows: Tensor) -> Tensor:
        """See `shown_alone.gains`."""
        return gains(self.site, self.own.image, windows, self.step, self.response, self.check)

    def order(self) -> list[int]:
        """All blocks, in the order in which rounds of probes choose them."""
        chosen: list[int] = []
        for number in range(ROUNDS):
            probes = drawn_probes(len(self.parts), self.config.probed, self.seed + number)
            probes[:, chosen] = True
            order = effects(probes, self.probed(probes)).argsort(descending=True, stable=True)
            left = [block for block in order.tolist() if block not in chosen]
            chosen += left[:1] if number < ROUNDS - 1 else left
        return chosen

    def probed(self, probes: Tensor) -> Tensor:
        """Nats by which each probe moves the answer, float64 [N]."""
        cells = torch.stack([self.parts[probe].any(0) for probe in probes])
        regions = self.site.on(self.own.image, cells)
        if self.config.probing == "masking":
            return self.verified(regions.units)
        self.check()
        span = token_span(self.site, self.step, self.own.image)
        unseen = torch.zeros(len(probes), len(self.step.prompt.embeds), dtype=torch.bool)
        unseen[:, span.start : span.start + span.length] = regions.tokens
        tail = response_tail(self.site.mdlm, self.response)
        return knocked_out(self.site.mdlm, self.step, tail, unseen, self.response)

    def candidates(self, order: Sequence[int]) -> Tensor:
        """The blocks that were chosen first, the borders and the best window, bool [n, *shape]."""
        tops = [self.parts[list(order[:size])].any(0) for size in SIZES if size <= len(order)]
        cells = torch.stack([*tops, *borders(self.parts.shape[1:])])
        units = self.site.on(self.own.image, cells).units
        window, moved = self.best_window()
        return self.fitting(torch.cat([window[None], units]) if moved > 0 else units)

    def fitting(self, units: Tensor) -> Tensor:
        """Those sets of units that are no larger than the mask ratio allows."""
        return units[units.flatten(1).double().mean(1) <= self.config.ratio]

    def taken(self, candidates: Tensor, least: float | None = None) -> tuple[Tensor, float] | None:
        """The smallest candidate that is enough, trimmed, and its score.

        Args:
            candidates: bool [n, *shape].
            least: Nats that it must reach; by default a share of the largest score.
        """
        if not len(candidates):
            return None
        scores = self.verified(candidates)
        enough = self.enough(
            candidates, scores, NEARLY * float(scores.max()) if least is None else least
        )
        if not bool(enough.any()):
            return None
        area = candidates.flatten(1).double().mean(1)
        smallest = int(torch.where(enough, area, 2.0).argmin())
        return self.trimmed(candidates[smallest], float(scores[smallest]))

    @torch.no_grad()
    def verified(self, units: Tensor) -> Tensor:
        """Nats by which the answer moves where each set of units is masked, float64 [n]."""
        moved = []
        together = partial(bounded, mdlm=self.site.mdlm, response=self.response, rows=ROWS)
        for group in together(list(units), lambda _: len(self.step.prompt.embeds)):
            self.check()
            prompts = self.site.without([(self.own.image, chosen) for chosen in group])
            logits = first_step_logits(self.site.mdlm, prompts, self.response)
            moved.append(divergence(wide(self.step.logits), wide(logits)).cpu())
        scores = torch.cat(moved) if moved else torch.zeros(0, dtype=torch.float64)
        require_finite(scores)
        return scores

    def enough(self, units: Tensor, scores: Tensor, least: float) -> Tensor:
        """Which sets of units move the answer far enough to be masked, bool [n]."""
        area = units.flatten(1).double().mean(1)
        limit = self.config.threshold * (1 + ALLOWANCE * area)
        return scores >= limit.clamp_min(least)

    def trimmed(self, units: Tensor, score: float) -> tuple[Tensor, float]:
        """The set without the blocks that are not needed, and its score."""
        parts = self.site.on(self.own.image, self.parts).units
        least = KEPT * score
        for _ in range(TRIMS):
            inside = [part for part in parts if bool((part & units).any())]
            shorter = self.shorter(units, inside, least) if len(inside) > 1 else None
            if shorter is None:
                break
            units, score = shorter
        return units, score

    def shorter(
        self, units: Tensor, inside: Sequence[Tensor], least: float
    ) -> tuple[Tensor, float] | None:
        """The set without as many blocks as can be spared together, the least needed first."""
        without = torch.stack([units & ~part for part in inside])
        alone = self.verified(without)
        spare = self.enough(without, alone, least)
        order = [n for n in alone.argsort(descending=True, stable=True).tolist() if spare[n]]
        if not order:
            return None
        less = torch.stack([without[order[: count + 1]].all(0) for count in range(len(order))])
        scores = self.verified(less)
        enough = self.enough(less, scores, least) & less.flatten(1).any(1)
        if not bool(enough.any()):
            return None
        longest = int(enough.nonzero().max())
        return less[longest], float(scores[longest])


def group_testing(
    site: Site,
    encoding: Encoding,
    response: Response,
    config: MaskingConfig,
    check: Callable[[], None],
) -> list[Tensor]:
    """Scores of the parts that are found together, or of two-stage occlusion where none are.

    `encoding` learns which requests are forced by an image of which no part explains it.

    Returns:
        Per image float64 of its shape: nats by which masking what was found moves the answer, for
        every unit of it, and 0 elsewhere.
    """
    steps = unmasked_steps(site, encoding, response, check)
    windowed = replace(config, gate=0.0)
    found = suspects(site, steps, response, windowed, check)
    verify(site, encoding, steps, found, response, windowed, check)
    result = []
    for own, fallback in zip(found, scores_of(found, config.ratio), strict=True):
        parts = blocks(site.plane(own.image))
        seed = encoding.seed(own.owner, config.seed)
        step = steps[own.owner]
        search = Search(site, response, config, check, step, own, parts, seed)
        blank = search.blank()
        taken = search.found(blank)
        nothing = taken is None and search.best_window()[1] < config.threshold
        if nothing and blank >= config.gate > 0:
            encoding.unexplained.add(own.owner)
        result.append(fallback if taken is None else torch.where(taken[0], taken[1], 0.0).double())
    return result


def drawn_probes(n: int, count: int, seed: int) -> Tensor:
    """Which of `n` blocks each of `count` probes hides, bool [count, n]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = max(1, round(HIDDEN_SHARE * n))
    probes = torch.zeros(count, n, dtype=torch.bool)
    for probe in probes:
        probe[torch.randperm(n, generator=generator)[:hidden]] = True
    return probes


def effects(probes: Tensor, moved: Tensor) -> Tensor:
    """By how much more the probes that hid a block moved the answer than the others, [n]."""
    hidden = probes.double()
    seen = 1 - hidden
    mean_hidden = (moved @ hidden) / hidden.sum(0).clamp_min(1)
    mean_seen = (moved @ seen) / seen.sum(0).clamp_min(1)
    return mean_hidden - mean_seen
