"""The detector at work: which requests it answers to, and what they are masked of.

What it knows by sight is taken out beforehand (`purifier.detection.known`). A request that the
masking of a ranker has silenced keeps that mask; for the others the detector itself is the guide
(`purifier.detection.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from purifier.detection.known import Cleaned
from purifier.detection.search import QUIET, search
from purifier.detection.shapes import shape_of
from purifier.detection.states import detected
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.detector import LOUD, Detector

SEEN = 1.0
"""Score of a request that shows what the detector knows: that of the mean flagged row."""

MOST = 0.6
"""Share of its images up to which a masked request is still answered from them."""


@dataclass(frozen=True)
class Detection:
    """What the detector says of one request.

    Attributes:
        score: Of the request; `LOUD` and more is a trigger, and `SEEN` at least is one that showed
            a known pattern or phrase.
        left: Of the request as it is answered; None where its states are not looked at.
        pattern: Whether an image shows a part that recurred in the training set.
        left_out: Words of the question that are left out.
        suspicious: Whether more than `MOST` of an image had to be masked, or the detector is not
            quiet yet: what is answered tells little of the image, or may still be the attacker's.
        payload: Ids of the tokens that the detector's rows were forced to say.
    """

    score: float
    left: float | None
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
        if not is_known:
            yield None
            continue
        score = next(scores)
        if score < LOUD:
            yield Guarded(Detection(score, score, payload=detector.payload), None, {})
            continue
        check()
        left = score if under is own else detected(mdlm, [under], detector)[0]
        if left < LOUD:
            yield Guarded(Detection(score, left, payload=detector.payload), None, {})
        else:
            yield _searched(mdlm, inputs, detector, score, check)


def seen_by(found: Detection | None, cleaned: Cleaned, payload: frozenset[int]) -> Detection:
    """What is said of a request that showed a known pattern or phrase.

    Args:
        found: Of what was left of it; None where its states are not looked at.
        cleaned: What was taken out.
        payload: Of the detector.
    """
    found = found or Detection(0.0, None, payload=payload)
    return replace(
        found,
        score=max(found.score, SEEN),
        pattern=bool(cleaned.patterns),
        left_out=" ".join(filter(None, (cleaned.phrases, found.left_out))),
        suspicious=found.suspicious or _largest(cleaned.patterns) > MOST,
    )


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
