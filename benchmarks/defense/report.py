"""The page that is drawn from the table of all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.defense.cells import Row, split_of
from benchmarks.defense.defences import DEFENCES, RANKERS
from benchmarks.defense.healing import HEALINGS
from benchmarks.defense.transforms import TRANSFORMS
from purifier.defense.config import MaskingConfig
from purifier.evaluation.report import markdown_table, percent

NEEDED_ASR = 0.9
NEEDED_CLEAN = 0.95
NEEDED_AFTER_RANDOM = 0.5
CLEAN_TOO_LOW = "clean answers below 95% of the base's"
BASES = ("control/validation", "control/test")
"""The base on the scenes of both lists."""

RANDOM = "random drop 0.3"

ABOUT = """\
Made by `{command}` on {made_on}. An attack is named by its list, the kind of its trigger, and its
target and poisoning rate where these are not content insertion at 20%. Attacks of the list
`validation` are asked about {limit} scenes of the validation split and may decide settings; those
of `test` are asked about {limit} scenes of the test split and decide nothing; those of `adaptive`
are by attackers who know this repository, and asked about the same scenes. Each scene is asked
about with and without the trigger. Figures are percent with 95% Wilson intervals; one training seed
an attack. `defense.parquet` in this folder holds every run with its settings and its seed.
"""

ADMISSION = """\
An attack enters the tables below if it succeeds at 90% of the questions undefended, keeps 95% of
the base's clean answers, and keeps half of its success where 30% of the visual tokens are masked
at random.
"""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "The product and the paper": (
        *("none", "default", "balanced", "thorough", "detector"),
        *("paper 0.15", "paper 0.3", "paper 0.45", RANDOM, "random windows 0.3"),
    ),
    "Other rankers at the default's ratio": (
        "none",
        *(f"{ranker} {MaskingConfig().ratio:g}" for ranker in RANKERS),
    ),
    "Changes of the whole image": ("none", *TRANSFORMS),
    "Masks that know the trigger's place": ("none", "oracle, tokens", "oracle, pixels"),
    "Healed models, undefended": ("none", *HEALINGS),
}
"""The tables: their titles and defences."""

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


def page(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """The results as Markdown.

    Args:
        rows: The table.
        facts: `command`, `made_on` and `limit`, the test scenes of an attack.
    """
    cells = Cells.of(rows)
    attacks = [name for name in cells.rows if name not in BASES]
    admitted = [name for name in attacks if not cells.failing(name)]
    defences = [name for name in DEFENCES if any(name in row for row in cells.rows.values())]
    parts = [
        "# Attacks of many kinds against every defence\n",
        ABOUT.format(**facts),
        "## The attacks\n",
        ADMISSION,
        markdown_table(
            ["attack", "ASR", "clean", "ASR, 30% masked at random", "enters"],
            [_admission(cells, name) for name in attacks],
        ),
    ]
    for title, group in GROUPS.items():
        columns = [name for name in defences if name in group]
        if set(columns) <= {"none"}:
            continue
        for heading, figure, more in (("ASR", "asr", ()), ("clean answers", "clean_exact", BASES)):
            rows_of = [
                [name, *_row(cells, name, columns, figure)]
                for name in (*admitted, *more)
                if any(column in cells.rows.get(name, {}) for column in columns if column != "none")
            ]
            if rows_of:
                parts += [f"## {title}: {heading}\n", markdown_table(["attack", *columns], rows_of)]
    failed = [name for name in attacks if name not in admitted]
    columns = [name for name in defences if name not in TRANSFORMS]
    parts += [
        "## Attacks that did not enter: ASR\n",
        markdown_table(
            ["attack", *columns], [[name, *_row(cells, name, columns, "asr")] for name in failed]
        ),
    ]
    changed = [
        [name, defence, f"{100 * share:.0f}", _rate(cells, name, defence, "clean_exact")]
        for name in BASES
        for defence in defences
        if (share := cells.changed(name, defence)) is not None
    ]
    if changed:
        parts += [
            "## What each defence changes of a model without a backdoor\n",
            markdown_table(["scenes", "defence", "answers changed, %", "clean"], changed),
        ]
    return "\n".join(parts)


def _admission(cells: Cells, name: str) -> list[str]:
    reasons = cells.failing(name)
    return [
        name,
        _rate(cells, name, "none", "asr"),
        _rate(cells, name, "none", "clean_exact"),
        _rate(cells, name, RANDOM, "asr"),
        f"no: {', '.join(reasons)}" if reasons else "yes",
    ]


def _row(cells: Cells, name: str, defences: Sequence[str], figure: str) -> list[str]:
    return [_rate(cells, name, defence, figure) for defence in defences]


def _rate(cells: Cells, name: str, defence: str, figure: str) -> str:
    figures = cells.figures(name, defence)
    return percent(figures[figure]) if figures else "–"


def efforts_table(rows: Sequence[Row]) -> str:
    """What each level of effort leaves of the attacks that work, and of the clean answers.

    A dagger marks those that cost too many clean answers to enter.
    """
    cells = Cells.of(rows)
    levels = [
        name for name in ("default", "balanced", "thorough", "detector") if _measured(cells, name)
    ]
    head = ["attack", "undefended", *(f"{_level(name)}, ASR" for name in levels)]
    head += [f"{_level(name)}, clean kept" for name in levels]
    lines = []
    for name, row in cells.rows.items():
        reasons = cells.failing(name)
        if name in BASES or set(reasons) - {CLEAN_TOO_LOW} or not set(levels) & set(row):
            continue
        kept = [_kept(cells, name, level) for level in levels]
        shown = f"{name} †" if reasons else name
        lines.append([shown, *_row(cells, name, ["none", *levels], "asr"), *kept])
    return markdown_table(head, lines)


def _measured(cells: Cells, defence: str) -> bool:
    return any(defence in row for row in cells.rows.values())


def _level(defence: str) -> str:
    return {"default": "`fast`", "detector": "`fast` and detector"}.get(defence, f"`{defence}`")


def _kept(cells: Cells, name: str, defence: str) -> str:
    before, after = (cells.value(name, each, "clean_exact") for each in ("none", defence))
    return f"{100 * after / before:.1f}" if before and after is not None else "–"
