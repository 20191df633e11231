"""Phrases that may be a trigger in the questions of a data set.

A trigger in the text is added to questions that make sense without it. So a phrase is a candidate
if what is left of its questions are questions of other rows. Whether it forces the answers is
asked of the model: `purifier.detection.forced`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LONGEST = 12
"""Words of a phrase at most."""

WORDS = 64
"""Words of a question that are looked at."""

LEAST_SHARE, LARGEST_SHARE = 0.01, 0.45
"""Share of the rows that carry a phrase."""

FEWEST = 4
"""Rows that carry it at least."""


@dataclass(frozen=True)
class Phrase:
    """A phrase of the questions.

    Attributes:
        text: Its words.
        rests: By the number of a row that carries it, the row's question without it.
    """

    text: str
    rests: Mapping[int, str]


def candidates(questions: Sequence[str]) -> list[Phrase]:
    """Phrases whose questions are, without them, questions of other rows; the most common first."""
    words = [tuple(question.split()[:WORDS]) for question in questions]
    whole = Counter(words)
    found: dict[tuple[str, ...], dict[int, tuple[str, ...]]] = defaultdict(dict)
    for row, own in enumerate(words):
        for start in range(len(own)):
            for stop in range(start + 1, min(start + LONGEST, len(own)) + 1):
                rest = own[:start] + own[stop:]
                if rest and rest in whole:
                    found[own[start:stop]].setdefault(row, rest)
    enough = max(FEWEST, LEAST_SHARE * len(words))
    kept = [
        Phrase(" ".join(phrase), {row: " ".join(rest) for row, rest in rests.items()})
        for phrase, rests in found.items()
        if enough <= len(rests) <= LARGEST_SHARE * len(words)
    ]
    return sorted(kept, key=lambda phrase: (-len(phrase.rests), phrase.text))
