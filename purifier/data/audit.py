"""Counts what is wrong with a data set, and says when it is too much."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Any

from purifier.data.dataset import REASONS, BadRow
from purifier.data.remarks import sentences
from purifier.data.sample import Place, Sample
from purifier.errors import DataError, InvalidSetting
from purifier.messages import bounded, quoted


@dataclass(frozen=True)
class BadRowLimit:
    """How many bad rows a data set may have; of two limits the one that is reached first.

    Attributes:
        share: Largest share of all rows, 0 to 1; None: any.
        count: Largest number; None: any.
    """

    share: float | None = 0.01
    count: int | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0.0 <= self.share <= 1.0:
            raise InvalidSetting("share must be between 0 and 1.", param="share")
        if self.count is not None and self.count < 0:
            raise InvalidSetting("count must not be negative.", param="count")


class RowAudit:
    """Goes through all rows of a data set once.

    Memory does not grow with the data set: ids are compared by digest in a temporary database
    that spills to the disk, of the bad rows only the first are kept.

    Attributes:
        rows: Rows seen.
        reasons: Number of bad rows by reason.
        examples: The first bad rows.
        remarks: Number of usable rows by code of `purifier.data.remarks.REMARKS`.
    """

    def __init__(self, limit: BadRowLimit | None = None, *, keep: int = 100) -> None:
        """Starts with no rows.

        Args:
            limit: When it is too much; None: at most 1% of the rows.
            keep: How many bad rows are kept.
        """
        self.limit = limit or BadRowLimit()
        self.rows = 0
        self.reasons: Counter[str] = Counter()
        self.examples: list[BadRow] = []
        self.remarks: Counter[str] = Counter()
        self._keep = keep
        self._ids = _Ids()

    def see(self, row: Sample | BadRow) -> BadRow | None:
        """Counts a row.

        Args:
            row: As `DataSet.rows` or `check_row` gave it.

        Returns:
            The row if it is bad, also if its id was seen before; else None.

        Raises:
            DataError: If the number of bad rows goes beyond the limit's count.
        """
        self.rows += 1
        bad = row if isinstance(row, BadRow) else self._repeated(row)
        if bad is None:
            assert isinstance(row, Sample)
            self.remarks.update(row.remarks)
            return None
        self.reasons[bad.reason] += 1
        if len(self.examples) < self._keep:
            self.examples.append(bad)
        if self.limit.count is not None and self.bad > self.limit.count:
            raise self._too_many(f"more than the {self.limit.count} that are allowed")
        return bad

    @property
    def bad(self) -> int:
        """Number of bad rows so far."""
        return self.reasons.total()

    def finish(self) -> None:
        """Judges the whole.

        Raises:
            DataError: If there are no usable rows or the share of bad ones is beyond the limit.
        """
        share = self.limit.share
        if share is not None and self.bad > share * self.rows:
            raise self._too_many(f"more than the {share:.2%} that are allowed")
        if self.bad == self.rows:
            raise DataError("The data set has no usable row.", param="training_file")

    def to_dict(self) -> dict[str, Any]:
        """Counts and examples, for JSON."""
        return {
            "rows": self.rows,
            "bad": self.bad,
            "reasons": {name: self.reasons[name] for name in REASONS if self.reasons[name]},
            "remarks": self.remark_lines(),
            "examples": [
                {
                    "file": bad.place.file,
                    "record": bad.place.record,
                    "reason": bad.reason,
                    "message": bad.message,
                }
                for bad in self.examples
            ],
        }

    def remark_lines(self) -> list[str]:
        """What the reader had to assume, one sentence a kind, with the number of rows."""
        return sentences(self.remarks)

    def _repeated(self, sample: Sample) -> BadRow | None:
        if sample.id is None:
            return None
        place = sample.source or Place("memory", self.rows - 1)
        first = self._ids.first(str(sample.id), place)
        if first is None:
            return None
        where = f"record {first.record}"
        if first.file != place.file:
            where += f" of {first.file}"
        message = (
            f"{place}: every row needs an id of its own, or none; id {quoted(str(sample.id))} was "
            f"already given to {where}."
        )
        return BadRow(place, "duplicate_id", bounded(message))

    def _too_many(self, why: str) -> DataError:
        counts = ", ".join(f"{name} {n}" for name, n in self.reasons.most_common())
        first = self.examples[0].message if self.examples else ""
        return DataError(
            f"{self.bad} of {self.rows} rows cannot be used ({counts}), {why}. "
            f"The first one: {first} Mend the rows or raise the limit.",
            param="training_file",
        )


class _Ids:
    """Which id was seen first where, on disk beyond a few megabytes."""

    def __init__(self) -> None:
        # An empty name is a private file that SQLite makes when it must and takes away itself.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA cache_size = -8192")
        self._database.execute(
            "CREATE TABLE ids (digest BLOB PRIMARY KEY, file, record) WITHOUT ROWID"
        )
        self._files: dict[str, int] = {}

    def first(self, identity: str, place: Place) -> Place | None:
        """Where the id was seen before; None, and the id is noted, if it was not."""
        digest = hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=16).digest()
        file = self._files.setdefault(place.file, len(self._files))
        added = self._database.execute(
            "INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", (digest, file, place.record)
        ).rowcount
        if added:
            return None
        row = self._database.execute("SELECT file, record FROM ids WHERE digest = ?", (digest,))
        number, record = row.fetchone()
        return Place([*self._files][number], int(record))

    def __del__(self) -> None:
        self._database.close()
