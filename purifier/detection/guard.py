"""The detector at work: which requests it answers to, and what they are masked of.

A request that shows a known pattern is masked where that lies, and one that has a known phrase is
answered without it. One that the masking of a ranker has silenced keeps that mask; for the others
the detector itself is the guide (`purifier.detection.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from purifier.defense.sites import PatchSite
from purifier.detection.search import QUIET, known_phrases, search, words_of
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
        score: Of the request as it came; `LOUD` and more is a trigger, 1 at least one that shows a
            pattern or a phrase.
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
        shown = Shown.of(mdlm, inputs, detector)
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


@dataclass(frozen=True)
class Shown:
    """What a request shows of what the training set did.

    Attributes:
        patterns: By the number of an image.
        phrases: Numbers of the ids of known phrases in the question.
    """

    patterns: Mapping[int, Sequence[Pattern]]
    phrases: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.patterns or self.phrases)

    @classmethod
    def of(cls, mdlm: Mdlm, inputs: Inputs, detector: Detector) -> Shown:
        """Looks at a request's images and its question."""
        patterns: dict[int, list[Pattern]] = {}
        for number, image in enumerate(inputs.images if detector.patterns else ()):
            small = small_copy(image.image)[None]
            seen = [pattern for pattern in detector.patterns if bool(pattern.on(small)[0])]
            if seen:
                patterns[number] = seen
        words = words_of(mdlm, inputs)
        phrases = {p for phrase in known_phrases(mdlm, inputs, words, detector) for p in phrase}
        # A question that is nothing else stays a question.
        whole = len(phrases) == sum(map(len, words))
        return cls(patterns, () if whole else tuple(sorted(phrases)))


def _by_sight(
    mdlm: Mdlm,
    inputs: Inputs,
    detector: Detector,
    shown: Shown,
    score: float | None,
    check: Callable[[], None],
) -> Guarded:
    """A request without what it shows, and without what else it is detected by.

    Args:
        mdlm: The model.
        inputs: What was asked.
        detector: The model's.
        shown: Of the request.
        score: Of its states; None where they are not looked at.
        check: Called before every pass.
    """
    check()
    site = PatchSite(mdlm, [inputs])
    cells = {
        image: torch.stack([pattern.cells(site.plane(image)) for pattern in patterns]).any(0)
        for image, patterns in shown.patterns.items()
    }
    keep = torch.ones(len(inputs.ids), dtype=torch.bool)
    keep[list(shown.phrases)] = False
    without = replace(site.filled(0, cells), ids=inputs.ids[keep])
    words = mdlm.decode(inputs.ids[~keep].tolist()).strip()
    (prompt,) = mdlm.embed_all([without])
    found = Guarded(Detection(max(score or 0.0, 1.0), 0.0), prompt, {})
    if score is not None:
        check()
        (left,) = detected(mdlm, [prompt], detector)
        found = replace(found, detection=replace(found.detection, left=left))
        if left >= LOUD:
            found = _searched(mdlm, without, detector, found.detection.score, check)
    for image, more in found.cells.items():
        cells[image] = cells[image] | more if image in cells else more
    detection = replace(
        found.detection,
        pattern=bool(shown.patterns),
        left_out=" ".join(filter(None, (words, found.detection.left_out))),
        suspicious=found.detection.suspicious or _largest(cells) > MOST,
        payload=detector.payload,
    )
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
