"""How far two answers are apart."""

from __future__ import annotations

import re
from collections import Counter


def word_overlap(one: str, other: str) -> float:
    """F1 over the words two texts share, 0 to 1; case and punctuation do not count.

    The overlap of SQuAD (arXiv 1606.05250, section 6.1), articles kept. Two texts without any
    word overlap fully.
    """
    first, second = Counter(_words(one)), Counter(_words(other))
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
