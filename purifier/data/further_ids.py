"""Ids of rows that are made besides those of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from purifier.data.dataset import DataSet
from purifier.data.sample import Sample


class FurtherIds:
    """Ids that no row of a data set has; they depend on its rows and on who asked before.

    A row `scene` gets `scene/1`, `scene/2` and so on. Whole numbers stay whole numbers: the
    first that are free, from the number of rows on.

    Args:
        dataset: Read once, as soon as the first id is asked for.
    """

    def __init__(self, dataset: DataSet) -> None:
        self._dataset = dataset
        self._taken: set[str | int] | None = None
        self._numbers: Iterator[int] = iter(())

    def next(self, identity: str | int | None) -> str | int | None:
        """An id for another row about the images of this one; None for a row without one.

        Raises:
            DataError: If the data set cannot be read.
        """
        if identity is None:
            return None
        taken = self._ids()
        numbers = self._numbers if isinstance(identity, int) else count(1)
        for number in numbers:
            found = number if isinstance(identity, int) else f"{identity}/{number}"
            if found not in taken:
                taken.add(found)
                return found
        raise AssertionError("unreachable: numbers do not end")

    def _ids(self) -> set[str | int]:
        if self._taken is None:
            n_rows, self._taken = 0, set()
            for row in self._dataset.rows():
                n_rows += 1
                if isinstance(row, Sample) and row.id is not None:
                    self._taken.add(row.id)
            self._numbers = count(n_rows)
        return self._taken
