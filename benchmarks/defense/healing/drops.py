"""Rows that a defence leaves out of the training set, counted against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from purifier.data.sample import Sample


@dataclass(frozen=True)
class Drops:
    """How many rows were dropped, and which.

    Attributes:
        rows: Rows of the training set.
        poisoned: Rows that the attacker poisoned.
        dropped: Rows that were left out.
        caught: Poisoned rows among them.
    """

    rows: int
    poisoned: int
    dropped: int
    caught: int

    @classmethod
    def between(cls, samples: Sequence[Sample], kept: Sequence[Sample]) -> Drops:
        """Counts the samples of a data set whose id is not among those that are kept.

        The lab's data set says of each row whether it is poisoned; no defence reads that.
        """
        left = {sample.id for sample in kept}
        poisoned = [sample for sample in samples if sample.extra["poisoned"]]
        dropped = [sample for sample in samples if sample.id not in left]
        caught = [sample for sample in poisoned if sample.id not in left]
        return cls(len(samples), len(poisoned), len(dropped), len(caught))

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Drops | None:
        """What a cell's details say; None where nothing was to be dropped."""
        found = details.get("drops")
        return cls(**found) if found else None

    def to_details(self) -> dict[str, Any]:
        """As it stands in a cell's details."""
        return {"drops": asdict(self)}
