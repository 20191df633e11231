"""The defence of a batch of requests: encode, find what is salient, mask it.

    defended = defend(mdlm, [inputs, ...], generation, masking)      # one `Defended` each
    defended[0].prompt                                               # denoise this

`defend` encodes the images itself; a caller needs nothing but `Inputs` from
`mdlm.prepare`. Each request is defended as it would be alone. With several images the
mask ratio counts within each image: which image an attacker stamps is unknown, and a
ratio over all of them would let one busy image use up the share of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from purifier.defense.config import MaskingConfig
from purifier.defense.first_step import FirstStep, Response
from purifier.defense.plane import MaskedPlane
from purifier.defense.rankers import RANKERS
from purifier.defense.saliency import choose, unit_scores
from purifier.defense.sites import Encoding, PatchSite, Site, TokenSite
from purifier.denoise.cache import FirstPass, takes_first_pass
from purifier.denoise.config import GenerationConfig
from purifier.detection.guard import Detection, Guarded, guard, seen_by
from purifier.detection.known import Cleaned, cleaned
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.numeric import seconds

PARTS = ("encode", "saliency", "mask")

POSITIONS_TOGETHER = 4096
"""Sequence positions worked on together: enough to keep a device busy, and a bound on memory."""


class Long(Protocol):
    """Something whose prompt has a length in positions."""

    @property
    def length(self) -> int: ...


LongT = TypeVar("LongT", bound=Long)


@dataclass(frozen=True)
class Defended:
    """A request whose most salient visual evidence is masked.

    Attributes:
        prompt: What is left to denoise from; visual tokens masked (`token`) or encoded
            from the filled image (`patch`).
        saliency: float32 [n_units], images one after another; what the choice was made by.
        masked: bool [n_units].
        planes: The same on the plane of every image.
        timings: Seconds by part: `encode`, `saliency`, `mask`. Requests defended together
            share the time of a part evenly.
        detection: What the model's detector says; None where it has none.
        unexplained: Whether an image forces the answer though nothing of it is masked: no part
            that is small enough explains it, as of a trigger that lies over the whole image.
        first: The first denoising step of `prompt`, where the ranker has run it and a cache of
            the generation settings can take it over; for one answer alone, which goes on
            writing into its keys and values.
    """

    prompt: Prompt
    saliency: Tensor
    masked: Tensor
    planes: tuple[MaskedPlane, ...]
    timings: dict[str, float]
    detection: Detection | None = None
    unexplained: bool = False
    first: FirstPass | None = None

    @property
    def n_units(self) -> int:
        """What the mask ratio counts: visual tokens or cells of the image planes."""
        return len(self.masked)


def defend(
    mdlm: Mdlm,
    requests: Sequence[Inputs],
    generation: GenerationConfig,
    masking: MaskingConfig,
    *,
    seeds: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
    clock: Callable[[], float] | None = None,
    positions_together: int = POSITIONS_TOGETHER,
    detect: bool = True,
) -> list[Defended]:
    """Encodes requests and masks the most salient visual evidence of each.

    Args:
        mdlm: The model; its parameters get no gradients.
        requests: From `mdlm.prepare`; may have no image, then nothing is masked.
        generation: How the answer will be denoised: the saliency is taken at its first step.
        masking: What is masked.
        seeds: For each request the seed of its probes and of the random ranker; by default
            `masking.seed` for all.
        check: Called between the parts and between the passes that saliency takes; what it
            raises ends the defence.
        clock: Seconds, for the timings, of a clock that waits for the device; by default
            `purifier.numeric.seconds`.
        positions_together: Sequence positions of the requests scored together, which bounds
            the memory that gradients take; a longer request goes alone.
        detect: Whether requests are scored by the model's detector, if it has one. It was made of
            prompts without any part of an answer, so it must be off where one follows.

    Raises:
        PurifierError: If the saliency of a request is not finite.
    """
    check = check or (lambda: None)
    clock = clock or partial(seconds, mdlm.device)
    if seeds is not None and len(seeds) != len(requests):
        raise ValueError(f"expected {len(requests)} seeds, got {len(seeds)}")
    result: list[Defended] = []
    with torch.inference_mode(False):
        for group in groups(requests, generation.gen_length, positions_together):
            done = len(result)
            own = () if seeds is None else tuple(seeds[done : done + len(group)])
            result += defend_together(mdlm, group, generation, masking, check, clock, own, detect)
    return result


def defend_together(
    mdlm: Mdlm,
    requests: Sequence[Inputs],
    generation: GenerationConfig,
    masking: MaskingConfig,
    check: Callable[[], None],
    clock: Callable[[], float],
    seeds: tuple[int, ...] = (),
    detect: bool = True,
) -> list[Defended]:
    """`defend` for one group of requests; no seeds: `masking.seed` for all."""
    times = [clock()]
    known = [cleaned(mdlm, request) if detect else Cleaned(request) for request in requests]
    requests = [each.inputs for each in known]
    differentiates = RANKERS[masking.ranker].differentiates and any(r.images for r in requests)
    site = make_site(mdlm, requests, masking)
    with torch.set_grad_enabled(differentiates):
        encoding = replace(site.encode(differentiable=differentiates), seeds=seeds)
        times.append(clock())
        check()
        scores: list[Tensor] = []
        if site.shapes:
            response = Response.of(mdlm, generation, masking.scored_length)
            scores = unit_scores(site, encoding, response, masking, check)
    chosen = [choose(s, masking.ratio, masking.threshold) for s in scores]
    times.append(clock())
    check()
    with torch.no_grad():
        steps = [known_step(encoding, site, chosen, owner) for owner in range(len(requests))]
        prompts = masked_prompts(site, encoding, chosen, steps)
        found = guarded(site, requests, encoding, chosen, prompts, check) if detect else {}
        for owner, item in found.items():
            if item.prompt is not None:
                prompts[owner], steps[owner] = item.prompt, None
        detections = {owner: item.detection for owner, item in found.items()}
        for owner, each in enumerate(known):
            if each:
                note_known(site, owner, each, chosen)
                payload = mdlm.detector.payload if mdlm.detector else frozenset()
                detections[owner] = seen_by(detections.get(owner), each, payload)
        planes = site.planes(scores, chosen)
    takes_over = takes_first_pass(generation)
    times.append(clock())
    timings = {part: (times[i + 1] - times[i]) / len(requests) for i, part in enumerate(PARTS)}
    masked = [joined(site, chosen, owner).to(torch.bool) for owner in range(len(requests))]
    return [
        Defended(
            prompt=prompts[owner],
            saliency=joined(site, scores, owner).to(torch.float32),
            masked=masked[owner],
            planes=tuple(p for p, who in zip(planes, site.owners, strict=True) if who == owner),
            timings=dict(timings),
            detection=detections.get(owner),
            unexplained=owner in encoding.unexplained and not bool(masked[owner].any()),
            first=step.result.of_block(generation) if step is not None and takes_over else None,
        )
        for owner, step in enumerate(steps)
    ]


def guarded(
    site: Site,
    requests: Sequence[Inputs],
    encoding: Encoding,
    chosen: list[Tensor],
    prompts: Sequence[Prompt],
    check: Callable[[], None],
) -> dict[int, Guarded]:
    """What the model's detector finds, by the number of a request.

    Where it masks more than the ranker did, `chosen` says so afterwards.
    """
    owners = [image for image, units in enumerate(chosen) if bool(units.any())]
    touched = {site.owners[image] for image in owners}
    plain = [prompt.detached() for prompt in encoding.prompts]
    under = [prompts[owner] if owner in touched else own for owner, own in enumerate(plain)]
    found = {}
    for owner, item in enumerate(guard(site.mdlm, requests, plain, under, check)):
        if item is None:
            continue
        found[owner] = item
        if item.prompt is not None:
            first = site.owners.index(owner) if owner in site.owners else 0
            for image, who in enumerate(site.owners):
                if who == owner:
                    cells = item.cells.get(image - first)
                    chosen[image] = (
                        torch.zeros_like(chosen[image])
                        if cells is None
                        else site.on(image, cells[None]).units[0]
                    )
    return found


def note_known(site: Site, owner: int, known: Cleaned, chosen: list[Tensor]) -> None:
    """Counts what was taken out of a request beforehand as masked, in `chosen`."""
    images = [image for image, who in enumerate(site.owners) if who == owner]
    for number, cells in known.patterns.items():
        image = images[number]
        on_plane = functional.adaptive_max_pool2d(cells[None].float(), site.plane(image)) > 0
        chosen[image] = chosen[image].bool() | site.on(image, on_plane).units[0]


def known_step(
    encoding: Encoding, site: Site, chosen: Sequence[Tensor], owner: int
) -> FirstStep | None:
    """The first step of a request with the chosen units masked, if a ranker has run it."""
    own = {image: units for image, units in enumerate(chosen) if site.owners[image] == owner}
    return next((known.step for known in encoding.known if known.is_of(owner, own)), None)


def masked_prompts(
    site: Site,
    encoding: Encoding,
    chosen: Sequence[Tensor],
    steps: Sequence[FirstStep | None],
) -> list[Prompt]:
    """All requests with the chosen units masked; known ones are not encoded again."""
    left = [owner for owner, step in enumerate(steps) if step is None]
    fresh = dict(zip(left, site.mask(chosen, left), strict=True)) if left else {}
    return [fresh[owner] if step is None else step.prompt for owner, step in enumerate(steps)]


def groups(
    requests: Sequence[LongT], response: int, positions_together: int = POSITIONS_TOGETHER
) -> Iterator[list[LongT]]:
    """Consecutive groups of requests whose padded batch has a bounded number of positions."""
    group: list[LongT] = []
    longest = 0
    for request in requests:
        length = request.length + response
        if group and max(longest, length) * (len(group) + 1) > positions_together:
            yield group
            group, longest = [], 0
        group.append(request)
        longest = max(longest, length)
    if group:
        yield group


def make_site(mdlm: Mdlm, requests: Sequence[Inputs], masking: MaskingConfig) -> Site:
    """The place of `masking.level`."""
    if masking.level == "patch":
        return PatchSite(mdlm, requests)
    with torch.no_grad():
        return TokenSite(mdlm, [mdlm.embed(request) for request in requests])


def joined(site: Site, values: Sequence[Tensor], owner: int) -> Tensor:
    """What belongs to the images of one request, flat and one after another."""
    own = [v.flatten() for v, who in zip(values, site.owners, strict=True) if who == owner]
    return torch.cat(own) if own else torch.zeros(0)
