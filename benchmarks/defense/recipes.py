"""The cheap recipe against the full one: whether attacks of both behave alike."""

from __future__ import annotations

from benchmarks.defense.admission import RANDOM, Cells
from benchmarks.defense.attacks import SHIPPED, passes_of
from purifier.evaluation.report import markdown_table

COMPARED = """\
The demo's three attacks (list `shipped`: 25 passes over 1000 rows, the vision tower trained too)
and their cheap counterparts (500 rows, the tower as it is), all by the black corner, on the same
scenes.
"""

SHOWN = {
    "none": "ASR",
    RANDOM: "30% masked at random",
    **{name: name for name in ("fast", "balanced", "fast, detector")},
}


def recipes_table(cells: Cells) -> list[str]:
    """ASR of every shipped attack and of its counterpart; nothing where one was not measured."""
    lines = []
    for target in SHIPPED:
        cheap = "validation/patch" if target == "insertion" else f"validation/patch/{target}"
        for name in (f"shipped/{target}", cheap):
            if cells.figures(name, "none") is None:
                continue
            rates = [cells.shown(name, defence, "asr") for defence in SHOWN]
            lines.append(
                [name, str(passes_of(name)), *rates, cells.shown(name, "none", "clean_exact")]
            )
    if not any(line[0].startswith("shipped/") for line in lines):
        return []
    head = ["attack", "passes", *SHOWN.values(), "clean, undefended"]
    return ["## The cheap recipe against the full one\n", COMPARED, markdown_table(head, lines)]
