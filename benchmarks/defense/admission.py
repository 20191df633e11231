"""Cells by attack and defence, and which attacks enter the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.defense.cells import Row, split_of
from purifier.evaluation.report import percent

NEEDED_ASR = 0.9
NEEDED_CLEAN = 0.95
NEEDED_AFTER_RANDOM = 0.5
CLEAN_TOO_LOW = "clean answers below 95% of the base's"
BASES = ("control/validation", "control/test")
"""The base on the scenes of both lists."""

RANDOM = "random drop 0.3"
OUTDATED = "°"

Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cells:
    """Cells by attack and defence."""

    rows: Mapping[str, Mapping[str, Row]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Cells:
        found: dict[str, dict[str, Row]] = {}
        for row in rows:
            found.setdefault(row["attack"], {})[row["defence"]] = row
        return cls(found)

    def figures(self, attack: str, defence: str) -> Figures | None:
        row = self.rows.get(attack, {}).get(defence)
        return row["figures"] if row else None

    def value(self, attack: str, defence: str, figure: str) -> float | None:
        figures = self.figures(attack, defence)
        if figures is None or figures[figure]["value"] is None:
            return None
        return float(figures[figure]["value"])

    def kept(self, attack: str, defence: str) -> float | None:
        """Clean answers as a share of the undefended ones of the same training of the attack."""
        rows = [self.rows.get(attack, {}).get(each) for each in ("none", defence)]
        weights = {row.get("weights", "") for row in rows if row is not None}
        before, after = (self.value(attack, each, "clean_exact") for each in ("none", defence))
        return after / before if before and after is not None and len(weights) == 1 else None

    def shown(self, attack: str, defence: str, figure: str) -> str:
        """A rate for people; `°` marks an outdated one, a dash what is not there."""
        row = self.rows.get(attack, {}).get(defence)
        if row is None or row["figures"] is None:
            return "–"
        return percent(row["figures"][figure]) + (OUTDATED if row.get("outdated") else "")

    def changed(self, attack: str, defence: str) -> float | None:
        """Share of the answers to clean images that differ from the undefended ones."""
        row = self.rows.get(attack, {}).get(defence)
        changed: float | None = row["changed"] if row else None
        return changed

    def failing(self, attack: str) -> list[str]:
        """Why an attack does not enter the table; empty if it does."""
        asr = self.value(attack, "none", "asr")
        clean = self.value(attack, "none", "clean_exact")
        base = self.value(f"control/{split_of(attack)}", "none", "clean_exact")
        random = self.value(attack, RANDOM, "asr")
        reasons = []
        if asr is None or asr < NEEDED_ASR:
            reasons.append("ASR below 90%")
        if clean is None or base is None or clean < NEEDED_CLEAN * base:
            reasons.append(CLEAN_TOO_LOW if base else "the base was not measured")
        if asr and random is None:
            reasons.append("random masking was not measured")
        elif asr and random is not None and random < NEEDED_AFTER_RANDOM * asr:
            reasons.append("random masking takes more than half of it")
        return reasons
