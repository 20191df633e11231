"""Occlusion at the cost of one pass or two: cheap looks first, an exact pass for the suspect.

Three looks at the windows of an image (`purifier.defense.windows`):

1. *Attention*, from the first step's stored keys: the largest attention that any head at any
   answer position pays to a visual token, mean over a window's tokens.
2. *Knockout*: the answer positions alone are run again without sight of a window's visual
   tokens, on stored keys and values of the prompt. The KL divergence at the position that moves
   most tells whether the answer hangs on these tokens. Run for the windows on a short list. Of a
   trigger that draws less attention than the object it names the window that attention misses.
3. *Occlusion*: the window is masked, the request encoded and run in full. What was accepted is
   the masked request's first denoising step, and where nothing is, the first pass is the
   unmasked one's: neither is wasted. Where knockout moves the answer and its window is not what
   the answer hangs on, the window that attention names is masked in a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import floor

import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig, default_threshold
from purifier.defense.first_step import FirstStep, Response, first_steps, response_tail
from purifier.defense.leave_one_out import VALUES_AT_ONCE, bounded
from purifier.defense.sites import Encoding, KnownStep, Site
from purifier.defense.windows import Regions, windows
from purifier.mdlm.base import Mdlm, VisualSpan
from purifier.mdlm.tails import TailPass
from purifier.numeric import require_finite, wide

UNVERIFIED = 1e-3
"""Nats that a window without an exact score stays below; the cheap looks give the order there."""

ALERT = 1.0
"""Nats of knockout from which on its windows go before those of attention. Of 120 clean scenes 118
stay below; with less, attention finds a trigger whose evidence has spread (docs/defence.md)."""

STORED_AT_ONCE = 2**12
"""Positions whose keys and values the trials of one pass hold; bounds memory."""


@dataclass
class Suspects:
    """The windows of one image and what is known of them.

    Attributes:
        image: Number of the image.
        owner: Number of its request.
        regions: The windows.
        weights: float64 of the image's shape, the attention that every unit draws.
        attention: float64 [n], that of the windows.
        knockout: float64 [n], nats; not a number where it was not run for a window.
        exact: float64 [n], nats; not a number where a window was not verified.
    """

    image: int
    owner: int
    regions: Regions
    weights: Tensor
    attention: Tensor
    knockout: Tensor
    exact: Tensor

    def order(self) -> list[int]:
        """All windows, the most suspect first: attention and knockout name one in turn.

        Knockout begins where it moves the answer by `ALERT`.
        """
        by_attention = self.attention.argsort(descending=True, stable=True).tolist()
        moved = self.knockout.nan_to_num(-1.0)
        by_knockout = [
            window
            for window in moved.argsort(descending=True, stable=True).tolist()
            if float(moved[window]) >= 0
        ]
        turns = zip_longest(by_attention, by_knockout)
        if float(moved.max()) >= ALERT:
            turns = zip_longest(by_knockout, by_attention)
        return list(dict.fromkeys(w for turn in turns for w in turn if w is not None))

    def tried(self, gate: float, most: int) -> list[int]:
        """The windows that are masked for a trial; none if knockout moves less than `gate`."""
        if gate > 0 and float(self.knockout.nan_to_num(0.0).max()) < gate:
            return []
        return self.order()[:most]

    def retried(self, tried: Sequence[int], threshold: float) -> list[int]:
        """The window that attention names, where the first trials decided nothing.

        It is tried where knockout moves the answer by `ALERT` and no score reached the threshold.

        Args:
            tried: Windows that were masked for a trial.
            threshold: Score in nats from which on a window is masked.
        """
        reached = self.exact.nan_to_num(0.0).max() >= threshold
        if not tried or reached or float(self.knockout.nan_to_num(0.0).max()) < ALERT:
            return []
        named = int(self.attention.argmax())
        return [] if named in tried else [named]

    def cheap(self) -> Tensor:
        """Scores of all windows below `UNVERIFIED`, float64 [n]."""
        moved = torch.where(self.knockout.isnan(), 1e-3 * self.attention, self.knockout)
        return UNVERIFIED * moved / (1 + moved)


def knockout(
    site: Site,
    encoding: Encoding,
    response: Response,
    config: MaskingConfig,
    check: Callable[[], None],
) -> list[Tensor]:
    """Scores of the second look: KL divergence in nats of answering without sight of a window.

    Returns:
        Per image float64 of its shape; a unit has the score of the best window it lies in.
    """
    steps = unmasked_steps(site, encoding, response, check)
    return [
        _spread(own.regions.units, torch.where(own.knockout.isnan(), own.cheap(), own.knockout))
        for own in suspects(site, steps, response, config, check)
    ]


def two_stage(
    site: Site,
    encoding: Encoding,
    response: Response,
    config: MaskingConfig,
    check: Callable[[], None],
) -> list[Tensor]:
    """Scores of occlusion, for the windows that the cheap looks suspect most.

    `encoding` learns the passes that may serve as first steps.

    Returns:
        Per image float64 of its shape: nats of occlusion where a window was verified, elsewhere
        less than `UNVERIFIED`. What is verified of a window is what `config.ratio` lets be
        masked of it.
    """
    steps = unmasked_steps(site, encoding, response, check)
    found = suspects(site, steps, response, config, check)
    verify(site, encoding, steps, found, response, config, check)
    return scores_of(found, config.ratio)


def scores_of(found: Sequence[Suspects], ratio: float) -> list[Tensor]:
    """What is known of the windows, as scores of units: see `two_stage`."""
    return [
        torch.maximum(
            _spread(own.regions.units, own.cheap()),
            _spread(masks(own, ratio), own.exact.nan_to_num(0.0)),
        )
        for own in found
    ]


def unmasked_steps(
    site: Site, encoding: Encoding, response: Response, check: Callable[[], None]
) -> dict[int, FirstStep]:
    """First steps of all requests with images, in one pass, by the number of the request."""
    check()
    owners = sorted({*site.owners})
    prompts = [encoding.prompts[owner] for owner in owners]
    steps = dict(zip(owners, first_steps(site.mdlm, prompts, response), strict=True))
    for owner, step in steps.items():
        encoding.known.append(KnownStep(owner, {}, step))
    return steps


def suspects(
    site: Site,
    steps: dict[int, FirstStep],
    response: Response,
    config: MaskingConfig,
    check: Callable[[], None],
) -> list[Suspects]:
    """The first look at every image, and the second at the windows that it lists."""
    tail = response_tail(site.mdlm, response)
    drawn = attention_drawn(site, steps, response, tail, check)
    result = []
    for image, weights in enumerate(site.from_tokens(drawn)):
        check()
        step = steps[site.owners[image]]
        span = token_span(site, step, image)
        regions = site.on(image, windows(site.plane(image)))
        counts = regions.tokens.sum(1).clamp_min(1)
        attention = (regions.tokens.double() @ drawn[image]) / counts
        moved = torch.full_like(attention, torch.nan)
        listed = attention.argsort(descending=True, stable=True)[: config.shortlist]
        unseen = torch.zeros(len(listed), len(step.prompt.embeds), dtype=torch.bool)
        unseen[:, span.start : span.start + span.length] = regions.tokens[listed]
        moved[listed] = knocked_out(site.mdlm, step, tail, unseen, response)
        exact = torch.full_like(moved, torch.nan)
        result.append(
            Suspects(image, site.owners[image], regions, weights, attention, moved, exact)
        )
    return result


def attention_drawn(
    site: Site,
    steps: dict[int, FirstStep],
    response: Response,
    tail: Tensor,
    check: Callable[[], None],
) -> list[Tensor]:
    """Per image, the largest attention that any head pays to each visual token, float64 [T]."""
    peaks: dict[int, Tensor] = {}
    for owner, step in steps.items():
        check()
        nothing = torch.zeros(1, len(step.prompt.embeds), dtype=torch.bool, device=tail.device)
        run = TailPass(tail, range(response.scored), step.cache, nothing)
        peaks[owner] = wide(site.mdlm.tail_attention(run)).cpu()
        require_finite(peaks[owner])
    spans = [token_span(site, steps[owner], n) for n, owner in enumerate(site.owners)]
    return [
        peaks[owner][span.start : span.start + span.length]
        for owner, span in zip(site.owners, spans, strict=True)
    ]


def token_span(site: Site, step: FirstStep, image: int) -> VisualSpan:
    """Where the visual tokens of an image lie in the prompt of its request's first step."""
    return step.prompt.spans[image - site.owners.index(site.owners[image])]


def verify(
    site: Site,
    encoding: Encoding,
    steps: dict[int, FirstStep],
    found: Sequence[Suspects],
    response: Response,
    config: MaskingConfig,
    check: Callable[[], None],
) -> None:
    """The third look; suspects of all images share the passes. Writes `exact`."""
    trials = Trials(site, steps, response, config.ratio, check)
    first = [own.tried(config.gate, config.verify) for own in found]
    trials.run(found, first)
    # Without a threshold the ratio is always masked, and every window would seem to decide.
    decides = config.threshold or default_threshold(config.level, config.ranker)
    second = [own.retried(tried, decides) for own, tried in zip(found, first, strict=True)]
    trials.run(found, second)
    encoding.known.extend(known for _, known in trials.best.values())


@dataclass
class Trials:
    """Requests that are run with a window masked.

    Attributes:
        site: Where is masked.
        steps: Unmasked first steps, by request.
        response: What is scored.
        ratio: Largest share of an image that is masked.
        check: Called before every pass.
        best: By request, the score of its likeliest mask in nats, and that step.
    """

    site: Site
    steps: dict[int, FirstStep]
    response: Response
    ratio: float
    check: Callable[[], None]
    best: dict[int, tuple[float, KnownStep]] = field(default_factory=dict)

    def run(self, found: Sequence[Suspects], chosen: Sequence[Sequence[int]]) -> None:
        """Tries some windows of every image, in passes of bounded size."""
        jobs = [
            (own, window)
            for own, some in zip(found, chosen, strict=True)
            for window in some
            if bool(masks(own, self.ratio)[window].any())
        ]
        for group in bounded(
            jobs,
            lambda job: len(self.steps[job[0].owner].prompt.embeds),
            mdlm=self.site.mdlm,
            response=self.response,
            rows=len(jobs),
            positions=STORED_AT_ONCE,
        ):
            self.check()
            self._together(group)

    def _together(self, group: Sequence[tuple[Suspects, int]]) -> None:
        """One pass."""
        regions = [masks(own, self.ratio)[window] for own, window in group]
        prompts = self.site.without(
            [(own.image, region) for (own, _), region in zip(group, regions, strict=True)]
        )
        masked = first_steps(self.site.mdlm, prompts, self.response)
        for (own, window), region, step in zip(group, regions, masked, strict=True):
            before, after = wide(self.steps[own.owner].logits), wide(step.logits)
            moved = divergence(before, after)
            require_finite(moved)
            score = float(moved)
            own.exact[window] = score
            # Keys and values are large: of every request only the likeliest mask's are kept.
            if own.owner not in self.best or score > self.best[own.owner][0]:
                self.best[own.owner] = score, KnownStep(own.owner, {own.image: region}, step)


def masks(own: Suspects, ratio: float) -> Tensor:
    """The windows as far as the mask ratio lets them be masked, bool [n, *shape].

    Of a window that is larger the units that draw most attention are kept: at level `token` one
    also takes the tokens of coarser views that it touches.
    """
    units = own.regions.units.flatten(1)
    most = floor(ratio * units.shape[1])
    drawn = torch.where(units, own.weights.flatten(), -1.0)
    order = drawn.argsort(dim=1, descending=True, stable=True)
    first = torch.zeros_like(units).scatter_(1, order[:, :most], value=True)
    return (units & first).reshape(own.regions.units.shape)


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Largest KL divergence at one answer position, [...], of logits [G, V] and [..., G, V]."""
    reference = torch.log_softmax(before, dim=-1)
    change = reference - torch.log_softmax(after, dim=-1)
    return (reference.exp() * change).sum(-1).amax(-1)


def knocked_out(
    mdlm: Mdlm, step: FirstStep, tail: Tensor, unseen: Tensor, response: Response
) -> Tensor:
    """Divergence in nats, float64 [W], for every set of positions out of sight [W, L]."""
    together = max(1, VALUES_AT_ONCE // step.logits.numel())
    moved = []
    for part in unseen.to(tail.device).split(together):  # type: ignore[no-untyped-call]
        logits = mdlm.tail_logits(TailPass(tail, range(response.scored), step.cache, part))
        moved.append(divergence(step.logits, logits))
    found = wide(torch.cat(moved)).cpu()
    require_finite(found)
    return found.clamp_min(0.0)


def _spread(units: Tensor, scores: Tensor) -> Tensor:
    """Every unit's best window: bool [n, *shape] and [n] give [*shape]."""
    places = scores.reshape(-1, *[1] * (units.ndim - 1))
    return torch.where(units, places, 0.0).amax(0)
