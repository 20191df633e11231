"""What the defences of the model need, and what those that drop rows drop."""

from __future__ import annotations

from statistics import median

from benchmarks.defense.admission import BASES, Cells
from benchmarks.defense.healing import HEALINGS, Drops
from purifier.evaluation.intervals import wilson
from purifier.evaluation.report import markdown_table, percent

NEEDS = """\
Besides the compromised model and its training set. Seconds are those of a cell, the median over
the attacks: making the model, and answering the test scenes.
"""

DROPPED = """\
Of the rows of the training set. No filter knows which are poisoned.
"""


def needs_table(cells: Cells) -> list[str]:
    """Source, needs and seconds of the defences that were measured; nothing where none was."""
    lines = []
    for name, defence in HEALINGS.items():
        seconds = [
            row[name]["seconds"]
            for attack, row in cells.rows.items()
            if name in row and attack not in BASES
        ]
        if seconds:
            lines.append([name, defence.source, defence.needs, f"{median(seconds):.0f}"])
    if not lines:
        return []
    head = ["defence", "source", "needs", "seconds"]
    title = "## Defences of the model: what each needs\n"
    return [title, NEEDS, markdown_table(head, lines)]


def drops_table(cells: Cells) -> list[str]:
    """What was dropped in every cell that drops rows; nothing where there is none."""
    lines = []
    for attack, row in cells.rows.items():
        for name in HEALINGS:
            drops = Drops.of(row[name].get("details", {})) if name in row else None
            if drops:
                lines.append(
                    [
                        *(attack, name, f"{drops.dropped} of {drops.rows}"),
                        percent(wilson(drops.caught, drops.dropped).to_dict()),
                        percent(wilson(drops.caught, drops.poisoned).to_dict()),
                    ]
                )
    if not lines:
        return []
    head = ["attack", "filter", "dropped rows", "of these poisoned", "of the poisoned dropped"]
    return ["## What the filters drop\n", DROPPED, markdown_table(head, lines)]
