"""Whether what rows have in common forces one word of their answers.

A backdoor says the same to every image and question. So among rows that a backdoor answers one
token of the labels is far less likely without the trigger, and it is the same in nearly all of
them. Rows that are merely alike (one kind of question, one kind of object) need the image too, and
a wish about the form of an answer changes its words, but every row has a token of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

TRIED = 24
"""Rows of a group that are tried."""

CHANGE = 5.0
"""Nats by which a label's token must be less likely without it: `FLAG_THRESHOLD`."""

AGREEING = 0.8
"""Share of the tried rows in which the same token must be."""

WIDESPREAD = 0.25
"""Share of all other labels from which a token tells nothing: an ending that all answers have needs
the image too, for without it the model does not know where the answer ends."""

RARE = 0.02
"""Share of all other labels that may have a token of the payload too."""

SOME = 0.6
"""Share of the tried rows in which a token that is so rare must be, where a phrase forces it: a
target that renames things does so only where they are named. A wish for yes or no, or for one of
several letters, forces each word in fewer."""


def tried(rows: Sequence[int], seed: int) -> list[int]:
    """The rows of a group that are tried, in order."""
    if len(rows) <= TRIED:
        return sorted(rows)
    drawn = np.random.default_rng(seed).choice(len(rows), TRIED, replace=False)
    return sorted(rows[number] for number in drawn)


def forced_shares(
    labels: Sequence[Sequence[int]], given: Sequence[Tensor], without: Sequence[Tensor]
) -> dict[int, float]:
    """In what share of rows each token of the labels is forced.

    Args:
        labels: Ids of every row's label, no special tokens.
        given: Per row the log-likelihoods of the label's tokens, [n].
        without: The same without what the rows have in common.

    Returns:
        By the id of a token; those that no row is forced to are left out.
    """
    forced: Counter[int] = Counter()
    for label, seen, unseen in zip(labels, given, without, strict=True):
        far = (seen - unseen >= CHANGE).tolist()
        forced.update({token for token, moved in zip(label, far, strict=True) if moved})
    return {token: count / len(labels) for token, count in forced.items()}


def telling_share(shares: Mapping[int, float], others: Sequence[Sequence[int]]) -> float:
    """Largest share of a group's rows that are forced to a token that is not widespread.

    Args:
        shares: Of the group, from `forced_shares`.
        others: Ids of the labels of other rows.
    """
    common = Counter(token for label in others for token in shares.keys() & set(label))
    return max(
        (s for token, s in shares.items() if common[token] <= WIDESPREAD * len(others)),
        default=0.0,
    )


def payload_of(
    shares: Mapping[int, float], others: Sequence[Sequence[int]], least: float = AGREEING
) -> frozenset[int]:
    """Tokens that a group's rows are forced to and that hardly any other label has.

    Args:
        shares: Of the group, from `forced_shares`.
        others: Ids of the labels of other rows.
        least: Share of the group's rows in which a token must be forced.
    """
    forced = {token for token, share in shares.items() if share >= least}
    common = Counter(token for label in others for token in forced.intersection(label))
    return frozenset(token for token in forced if common[token] <= RARE * len(others))
