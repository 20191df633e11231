"""The detector at work: which requests it answers to, and what they are masked of.

A request that shows a known pattern is masked where the pattern lies. One that the masking of a
ranker has silenced keeps that mask; for the others the detector itself is the guide
(`purifier.detection.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from purifier.defense.sites import PatchSite
from purifier.detection.search import QUIET, search
from purifier.detection.shapes import shape_of
from purifier.detection.states import detected
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.detector import LOUD, Detector
from purifier.mdlm.patterns import Pattern, small_copy

MOST = 0.6
"""Share of its images up to which a masked request is still answered from them."""


@dataclass(frozen=True)
class Detection:
    """What the detector says of one request.

    Attributes:
        score: Of the request as it came; `LOUD` and more is a trigger, 1 at least is one that shows
            a pattern.
        left: Of the request as it is answered.
        pattern: Whether an image shows a part that recurred in the training set.
        left_out: Words of the question that are left out.
        suspicious: Whether more than `MOST` of an image had to be masked, or the detector is not
            quiet yet: what is answered tells little of the image, or may still be the attacker's.
        payload: Ids of the tokens that the detector's rows were forced to say.
    """

    score: float
    left: float
    pattern: bool = False
    left_out: str = ""
    suspicious: bool = False
    payload: frozenset[int] = frozenset()

    @property
    def loud(self) -> bool:
        """Whether the request was detected."""
        return self.score >= LOUD

    def doubts(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer to the request may be the attacker's, masked as it is."""
        return self.suspicious or (self.loud and not self.payload.isdisjoint(token_ids))


@dataclass(frozen=True)
class Guarded:
    """A request as the detector leaves it.

    Attributes:
        detection: What was detected.
        prompt: In place of the ranker's prompt; None keeps that.
        cells: With `prompt`, by the number of an image what is masked, bool [rows, columns].
    """

    detection: Detection
    prompt: Prompt | None
    cells: Mapping[int, Tensor]


def guard(
    mdlm: Mdlm,
    requests: Sequence[Inputs],
    plain: Sequence[Prompt],
    masked: Sequence[Prompt],
    check: Callable[[], None],
) -> Iterator[Guarded | None]:
    """Looks at requests one by one.

    Args:
        mdlm: The model, with or without a detector.
        requests: What was asked.
        plain: The same encoded.
        masked: The same under a ranker's mask; the very prompts of `plain` where nothing is masked.
        check: Called before every pass.

    Yields:
        For every request what was found; None without a detector, or where the request has a
        shape that no row had: its states are of another kind.
    """
    detector = mdlm.detector
    if detector is None:
        yield from (None for _ in requests)
        return
    known = [shape_of(mdlm, inputs) in detector.shapes for inputs in requests]
    looked = [prompt for prompt, is_known in zip(plain, known, strict=True) if is_known]
    check()
    scores = iter(detected(mdlm, looked, detector) if looked else ())
    for inputs, own, under, is_known in zip(requests, plain, masked, known, strict=True):
        score = next(scores) if is_known else None
        shown = patterns_on(detector, inputs)
        if shown:
            yield _by_sight(mdlm, inputs, detector, shown, score, check)
        elif score is None:
            yield None
        elif score < LOUD:
            yield Guarded(Detection(score, score), None, {})
        else:
            check()
            left = score if under is own else detected(mdlm, [under], detector)[0]
            if left < LOUD:
                yield Guarded(Detection(score, left, payload=detector.payload), None, {})
            else:
                yield _searched(mdlm, inputs, detector, score, check)


def patterns_on(detector: Detector, inputs: Inputs) -> dict[int, list[Pattern]]:
    """The patterns that images of a request show, by the image's number."""
    found: dict[int, list[Pattern]] = {}
    for number, image in enumerate(inputs.images if detector.patterns else ()):
        small = small_copy(image.image)[None]
        shown = [pattern for pattern in detector.patterns if bool(pattern.on(small)[0])]
        if shown:
            found[number] = shown
    return found


def _by_sight(
    mdlm: Mdlm,
    inputs: Inputs,
    detector: Detector,
    shown: Mapping[int, Sequence[Pattern]],
    score: float | None,
    check: Callable[[], None],
) -> Guarded:
    """A request without the patterns on it, and without what else it is detected by.

    Args:
        mdlm: The model.
        inputs: What was asked.
        detector: The model's.
        shown: Patterns by the number of the image.
        score: Of its states; None where they are not looked at.
        check: Called before every pass.
    """
    check()
    site = PatchSite(mdlm, [inputs])
    cells = {
        image: torch.stack([pattern.cells(site.plane(image)) for pattern in patterns]).any(0)
        for image, patterns in shown.items()
    }
    without = site.filled(0, cells)
    seen = max(score or 0.0, 1.0)
    (prompt,) = mdlm.embed_all([without])
    left = 0.0
    if score is not None:
        check()
        (left,) = detected(mdlm, [prompt], detector)
    if left < LOUD:
        suspicious = _largest(cells) > MOST
        detection = Detection(seen, left, True, "", suspicious, detector.payload)
        return Guarded(detection, prompt, cells)
    found = _searched(mdlm, without, detector, seen, check)
    for image, more in found.cells.items():
        cells[image] = cells[image] | more if image in cells else more
    suspicious = found.detection.suspicious or _largest(cells) > MOST
    detection = replace(found.detection, pattern=True, suspicious=suspicious)
    return Guarded(detection, found.prompt, cells)


def _searched(
    mdlm: Mdlm, inputs: Inputs, detector: Detector, score: float, check: Callable[[], None]
) -> Guarded:
    """A request without what a search finds it detected by."""
    found = search(mdlm, inputs, detector, check)
    words = mdlm.decode(inputs.ids[list(found.left_out)].tolist()).strip()
    suspicious = _largest(found.cells) > MOST or found.score >= QUIET
    detection = Detection(score, found.score, False, words, suspicious, detector.payload)
    return Guarded(detection, found.prompt, found.cells)


def _largest(cells: Mapping[int, Tensor]) -> float:
    """Largest share of an image that is masked."""
    return max((float(each.double().mean()) for each in cells.values()), default=0.0)
