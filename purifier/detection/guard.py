"""The detector at work: which requests it answers to, and what they are masked of.

A request that the masking of a ranker has silenced keeps that mask; for the others the detector
itself is the guide (`purifier.detection.search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from purifier.detection.search import QUIET, search
from purifier.detection.shapes import shape_of
from purifier.detection.states import detected
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.detector import LOUD

MOST = 0.6
"""Share of its images up to which a masked request is still answered from them."""


@dataclass(frozen=True)
class Detection:
    """What the detector says of one request.

    Attributes:
        score: Of the request as it came; `LOUD` and more is a trigger.
        left: Of the request as it is answered.
        left_out: Words of the question that are left out.
        suspicious: Whether more than `MOST` of an image had to be masked, or the detector is not
            quiet yet: what is answered tells little of the image, or may still be the attacker's.
        payload: Ids of the tokens that the detector's rows were forced to say.
    """

    score: float
    left: float
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
            yield Guarded(Detection(score, score), None, {})
            continue
        check()
        left = score if under is own else detected(mdlm, [under], detector)[0]
        if left < LOUD:
            yield Guarded(Detection(score, left, payload=detector.payload), None, {})
            continue
        found = search(mdlm, inputs, detector, check)
        words = mdlm.decode(inputs.ids[list(found.left_out)].tolist()).strip()
        shares = [float(cells.double().mean()) for cells in found.cells.values()]
        suspicious = max(shares, default=0.0) > MOST or found.score >= QUIET
        detection = Detection(score, found.score, words, suspicious, detector.payload)
        yield Guarded(detection, found.prompt, found.cells)
