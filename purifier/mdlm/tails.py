"""The end of a sequence once more, with parts of what lies before it out of sight.

After a pass over a whole sequence its keys and values are stored. Running only the last
positions again on them answers what these would say if they did not see some of the others,
at a small part of the cost of a whole pass. It is an approximation: the stored values of the
positions that stay in sight were computed while they saw everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from purifier.mdlm.segments import KeyValues


@dataclass(frozen=True)
class TailPass:
    """The last positions of one sequence, run several times.

    Attributes:
        embeds: [R, D], embeddings of the last R positions.
        wanted: Which of them are asked for, counted from the first of them.
        cache: Keys and values of the sequence; those before the tail are read, none is written.
        unseen: bool [W, N - R], for every run the earlier positions that the tail does not see.
    """

    embeds: Tensor
    wanted: Sequence[int]
    cache: KeyValues
    unseen: Tensor

    @property
    def start(self) -> int:
        """Position of the first of them in the sequence."""
        return self.cache.length - len(self.embeds)
