"""How a training set is searched for the rows of a backdoor."""

from __future__ import annotations

from dataclasses import dataclass

from purifier.errors import InvalidSetting
from purifier.settings import require_seed, require_whole


@dataclass(frozen=True)
class DetectConfig:
    """How a training set is searched.

    Attributes:
        rows: Rows that are looked at, at most; drawn by `seed`.
        length: Masks behind every question.
        positions: Answer positions whose states are averaged.
        gap: Pooled standard deviations that two groups must be apart.
        groups: Groups that are looked for at most.
        batch_size: Rows in one pass.
        seed: Of the rows, and of those that phrases are tried on.
    """

    rows: int = 2000
    length: int = 32
    positions: int = 8
    gap: float = 2.5
    groups: int = 3
    batch_size: int = 16
    seed: int = 0

    @classmethod
    def within(cls, batch_size: int, seed: int) -> DetectConfig:
        """Settings of a search that is part of a purification.

        Args:
            batch_size: Rows in one pass of the purification; the search takes no more.
            seed: Of the purification.
        """
        return cls(batch_size=min(batch_size, cls.batch_size), seed=seed)

    def __post_init__(self) -> None:
        for name, least in (("rows", 50), ("length", 1), ("positions", 1), ("groups", 1)):
            require_whole(getattr(self, name), name)
            if not least <= getattr(self, name) <= 100_000:
                raise InvalidSetting(f"{name} must be between {least} and 100000.", param=name)
        require_whole(self.batch_size, "batch_size")
        if not 1 <= self.batch_size <= 4096:
            raise InvalidSetting("batch_size must be between 1 and 4096.", param="batch_size")
        if self.positions > self.length:
            raise InvalidSetting("positions must not exceed length.", param="positions")
        if not 0.0 < self.gap <= 1000.0:
            raise InvalidSetting("gap must be above 0 and at most 1000.", param="gap")
        require_whole(self.seed, "seed")
        require_seed(self.seed)
