"""A request without what the training set showed of a trigger: known patterns, known phrases.

They are taken out before saliency and states are computed, so ranker and detector work on what is
left: a client who adds a known pattern or phrase to a request does not weaken the rest of the
defence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from purifier.defense.sites import PatchSite
from purifier.detection.search import known_phrases, words_of
from purifier.mdlm.base import Inputs, Mdlm
from purifier.mdlm.patterns import small_copy


@dataclass(frozen=True)
class Cleaned:
    """A request, and what was taken out of it.

    Attributes:
        inputs: What is left of it.
        patterns: By the number of an image that showed some, bool [rows, columns], the cells of
            its plane that were filled.
        phrases: Words of the question that were left out.
    """

    inputs: Inputs
    patterns: Mapping[int, Tensor] = field(default_factory=dict)
    phrases: str = ""

    def __bool__(self) -> bool:
        """Whether it showed anything."""
        return bool(self.patterns or self.phrases)


def cleaned(mdlm: Mdlm, inputs: Inputs) -> Cleaned:
    """Takes out of a request what the model's detector knows by sight.

    Args:
        mdlm: The model, with or without a detector.
        inputs: What was asked.
    """
    if mdlm.detector is None:
        return Cleaned(inputs)
    cells = _pattern_cells(mdlm, inputs)
    left = PatchSite(mdlm, [inputs]).filled(0, cells) if cells else inputs
    gone = _phrase_ids(mdlm, inputs)
    if gone:
        keep = torch.ones(len(inputs.ids), dtype=torch.bool)
        keep[gone] = False
        left = replace(left, ids=inputs.ids[keep])
    return Cleaned(left, cells, mdlm.decode(inputs.ids[gone].tolist()).strip() if gone else "")


def _pattern_cells(mdlm: Mdlm, inputs: Inputs) -> dict[int, Tensor]:
    assert mdlm.detector is not None
    shown = {}
    for number, image in enumerate(inputs.images if mdlm.detector.patterns else ()):
        small = small_copy(image.image)[None]
        seen = [pattern for pattern in mdlm.detector.patterns if bool(pattern.on(small)[0])]
        if seen:
            shown[number] = seen
    if not shown:
        return {}
    site = PatchSite(mdlm, [inputs])
    return {
        number: torch.stack([pattern.cells(site.plane(number)) for pattern in seen]).any(0)
        for number, seen in shown.items()
    }


def _phrase_ids(mdlm: Mdlm, inputs: Inputs) -> list[int]:
    """Numbers of the ids of known phrases; a question that is nothing else stays a question."""
    assert mdlm.detector is not None
    if not mdlm.detector.phrases:
        return []
    words = words_of(mdlm, inputs)
    found = {i for phrase in known_phrases(mdlm, inputs, words, mdlm.detector) for i in phrase}
    return sorted(found) if len(found) < sum(map(len, words)) else []
