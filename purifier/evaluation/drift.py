"""What can be measured without clean data: masked against unmasked, before against after.

A backdoor shows as disagreement: hiding the most salient evidence changes a triggered row's
answer and leaves a clean one's. Healing shows as less of it, and what healing cost shows as
drift of the rows that nobody suspected.

| figure | share of | that |
|---|---|---|
| `disagreement` | sampled rows | are answered otherwise when masked |
| `distance` | words | that the masked and the unmasked answer do not share (1 - F1) |
| `flagged` | sampled rows | are suspected |
| `drift` | unflagged rows | are answered otherwise than before |
| `drift_distance` | words | that those answers do not share |
| `flagged_unchanged` | flagged rows | are still answered, unmasked, as before |
| `flagged_recovered` | flagged rows | are now answered as the model of before did when masked |

Answers are compared up to white space at their ends; the graded figures average over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from purifier.data.sample import Sample, open_image, question_messages
from purifier.defense.config import MaskingConfig
from purifier.defense.plane import MaskedPlane
from purifier.denoise.config import GenerationConfig
from purifier.evaluation.ask import ask
from purifier.evaluation.intervals import Rate, wilson
from purifier.evaluation.texts import word_overlap
from purifier.lab.targets import exact_hit
from purifier.mdlm.base import Mdlm, Message


@dataclass(frozen=True)
class RowAnswers:
    """What one model answers to the question of one training row.

    Attributes:
        plain: Unmasked.
        masked: With the most salient visual evidence hidden.
        planes: Saliency and mask of every image of the row.
    """

    plain: str
    masked: str
    planes: tuple[MaskedPlane, ...]

    @property
    def disagree(self) -> bool:
        return not exact_hit(self.plain, self.masked)


def draw_rows(samples: Iterable[Sample], n: int | None, seed: int) -> list[Sample]:
    """Draws samples, every one as likely as the others, in one pass.

    Reservoir sampling (Vitter's algorithm R): memory grows with `n`, not with the data set.

    Args:
        samples: Where to draw from.
        n: How many are drawn at most; None takes all.
        seed: Seed of the draw.

    Returns:
        The drawn ones in their order.
    """
    if n is None:
        return list(samples)
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, Sample]] = []
    for number, sample in enumerate(samples):
        if len(kept) < n:
            kept.append((number, sample))
        elif (place := int(rng.integers(number + 1))) < n:
            kept[place] = (number, sample)
    return [sample for _, sample in sorted(kept, key=lambda entry: entry[0])]


def answer_rows(
    mdlm: Mdlm,
    samples: Sequence[Sample],
    images: Path,
    generation: GenerationConfig,
    masking: MaskingConfig,
    *,
    batch_size: int = 16,
    check: Callable[[], None] | None = None,
) -> list[RowAnswers]:
    """Answers every row's own question twice: unmasked and masked.

    Raises:
        DataError: If an image cannot be opened.
    """
    plain = ask(mdlm, _dialogues(samples, images), generation, batch_size=batch_size, check=check)
    texts = [answer.text for answer in plain]
    masked = ask(
        mdlm,
        _dialogues(samples, images),
        generation,
        masking=masking,
        batch_size=batch_size,
        check=check,
    )
    return [
        RowAnswers(text, answer.text, answer.planes)
        for text, answer in zip(texts, masked, strict=True)
    ]


def disagreement(rows: Sequence[RowAnswers]) -> dict[str, Rate]:
    """`disagreement` and `distance` of one model."""
    return {
        "disagreement": wilson(sum(row.disagree for row in rows), len(rows)),
        "distance": _distance((row.plain, row.masked) for row in rows),
    }


def drift(
    before: Sequence[RowAnswers], after: Sequence[RowAnswers], flagged: Sequence[bool]
) -> dict[str, Rate]:
    """What changed between two models, for the same rows in the same order.

    Args:
        before: Answers of the compromised model.
        after: Answers of the purified one.
        flagged: Which rows are suspected.
    """
    pairs = list(zip(before, after, flagged, strict=True))
    kept = [(old.plain, new.plain) for old, new, suspected in pairs if not suspected]
    caught = [(old, new) for old, new, suspected in pairs if suspected]
    recovered = [exact_hit(new.plain, old.masked) for old, new in caught]
    return {
        "drift": wilson(sum(not exact_hit(new, old) for old, new in kept), len(kept)),
        "drift_distance": _distance(kept),
        "flagged_unchanged": wilson(
            sum(exact_hit(new.plain, old.plain) for old, new in caught), len(caught)
        ),
        "flagged_recovered": wilson(sum(recovered), len(caught)),
    }


def _distance(pairs: Iterable[tuple[str, str]]) -> Rate:
    distances = [1.0 - word_overlap(one, other) for one, other in pairs]
    return wilson(sum(distances), len(distances))


def _dialogues(samples: Sequence[Sample], images: Path) -> Iterator[list[Message]]:
    for sample in samples:
        opened = tuple(open_image(images, image, sample.source) for image in sample.images)
        yield question_messages(sample, opened)
