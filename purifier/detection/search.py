"""Finding what a detected request must be masked of, so that it is not detected any more.

All parts of its images are masked and all words of its question left out; then parts are given
back, halves of what is left at a time, as long as the detector stays silent. So it does not matter
whether one part of a trigger is enough (several copies) or none is (a frame): what stays masked at
the end is what the detector still answers to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from purifier.defense.sites import PatchSite
from purifier.defense.windows import blocks
from purifier.detection.states import detected
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.detector import LOUD, Detector

QUIET = 0.25
"""Score below which a part is given back. Rows without a trigger score 0 in the mean: what is left
of a trigger just below `LOUD` may still turn the answer later."""


RISE = QUIET / 2
"""By how much the score may rise while parts are given back, where masking everything leaves more
than `QUIET`; never up to `LOUD`."""

WORDS = 64
"""Units of a question at most; a longer one is divided into runs of words."""

PASSES = 200
"""Passes of one search at most; what is masked by then stays masked."""


@dataclass(frozen=True)
class Found:
    """A request with its trigger masked.

    Attributes:
        prompt: The request, encoded.
        cells: By the number of an image in the request, bool [rows, columns] of what is masked.
        left_out: Numbers of the ids of the question that are left out.
        score: What is left of the detector's score.
    """

    prompt: Prompt
    cells: Mapping[int, Tensor]
    left_out: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class _Units:
    """What can be masked of a request: blocks of its images, then words of its question.

    A word is the numbers of its ids.
    """

    blocks: tuple[tuple[int, Tensor], ...]
    words: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.blocks) + len(self.words)


def search(
    mdlm: Mdlm,
    inputs: Inputs,
    detector: Detector,
    check: Callable[[], None] = lambda: None,
) -> Found:
    """Masks what a request is detected by.

    Words are left out only where masking all images is not enough. Where nothing silences the
    detector, the result is what leaves the least of its score.

    Args:
        mdlm: The model.
        inputs: A request that the detector answers to.
        detector: Made of the model's training set.
        check: Called before every pass; what it raises ends the search.
    """
    site = PatchSite(mdlm, [inputs])
    site.encode(differentiable=False)
    whole = _Units(
        tuple(
            (image, part) for image in range(len(site.images)) for part in blocks(site.plane(image))
        ),
        tuple(runs(words_of(mdlm, inputs))),
    )
    passes = 0

    def masked(hidden: Sequence[int], units: _Units) -> Found:
        nonlocal passes
        passes += 1
        check()
        cells: dict[int, Tensor] = {}
        left_out: list[int] = []
        for number in hidden:
            if number < len(units.blocks):
                image, part = units.blocks[number]
                cells[image] = cells[image] | part if image in cells else part
            else:
                left_out += units.words[number - len(units.blocks)]
        prompt = without_ids(site.embed([(0, cells)])[0], inputs, left_out)
        (score,) = detected(mdlm, [prompt], detector)
        return Found(prompt, cells, tuple(left_out), score)

    phrases = tuple(known_phrases(mdlm, inputs, words_of(mdlm, inputs), detector))
    stages = [replace(whole, words=()), whole]
    tried: list[Found] = []
    if phrases:
        tried.append(masked(range(len(phrases)), _Units((), phrases)))
        if tried[0].score < QUIET:
            return tried[0]
        stages.insert(1, replace(whole, words=phrases))
    for units in stages:
        tried.append(masked(range(len(units)), units))
        if tried[-1].score < LOUD:
            return _given_back(units, tried[-1], masked, lambda: passes < PASSES)
    return min(tried, key=lambda found: found.score)


def _given_back(
    units: _Units,
    best: Found,
    masked: Callable[[Sequence[int], _Units], Found],
    more: Callable[[], bool],
) -> Found:
    """What must stay masked; starts from everything, and goes on while there may be `more`."""
    hidden = set(range(len(units)))
    limit = max(QUIET, min(best.score + RISE, (best.score + LOUD) / 2))
    pending = [sorted(hidden)]
    while pending and more():
        part = pending.pop(0)
        tried = masked(sorted(hidden.difference(part)), units)
        if tried.score < limit:
            hidden.difference_update(part)
            best = tried
        elif len(part) > 1:
            middle = len(part) // 2
            pending = [part[:middle], part[middle:], *pending]
    return best


def words_of(mdlm: Mdlm, inputs: Inputs) -> list[tuple[int, ...]]:
    """The words of a request's question, each as the numbers of its ids."""
    words: list[list[int]] = []
    before = -2
    for place in mdlm.question_text(inputs).nonzero()[:, 0].tolist():
        text = mdlm.decode([int(inputs.ids[place])])
        if not words or place != before + 1 or text[:1].isspace():
            words.append([])
        words[-1].append(place)
        before = place
    return [tuple(word) for word in words]


def runs(words: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """At most `WORDS` units: the words, or runs of as many words as it takes."""
    size = -(-len(words) // WORDS) if words else 1
    return [
        tuple(place for word in words[start : start + size] for place in word)
        for start in range(0, len(words), size)
    ]


def known_phrases(
    mdlm: Mdlm, inputs: Inputs, words: Sequence[tuple[int, ...]], detector: Detector
) -> Iterator[tuple[int, ...]]:
    """Phrases of a question that the training set showed, each as the numbers of its ids."""
    texts = [mdlm.decode(inputs.ids[list(word)].tolist()).strip() for word in words]
    for known in detector.phrases:
        phrase = known.split()
        for start in range(len(texts) - len(phrase) + 1):
            if phrase and texts[start : start + len(phrase)] == phrase:
                yield tuple(place for word in words[start : start + len(phrase)] for place in word)


def without_ids(prompt: Prompt, inputs: Inputs, left_out: Sequence[int]) -> Prompt:
    """A prompt without some of the ids that it was made of; none of them an image's place."""
    if not left_out:
        return prompt
    gone = torch.zeros(len(inputs.ids), dtype=torch.bool)
    gone[list(left_out)] = True
    keep = torch.ones(len(prompt.embeds), dtype=torch.bool)
    text = (~prompt.visual).nonzero()[:, 0].cpu()
    keep[text[gone[inputs.ids >= 0]]] = False
    spans = tuple(replace(span, start=int(keep[: span.start].sum())) for span in prompt.spans)
    on_device = keep.to(prompt.embeds.device)
    return Prompt(prompt.embeds[on_device], prompt.visual[on_device], spans)
