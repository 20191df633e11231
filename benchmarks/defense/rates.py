"""The black corner at other poisoning rates and training seeds."""

from __future__ import annotations

from benchmarks.defense.admission import Cells
from benchmarks.defense.attacks import VALIDATION, attack_by_name, parts_of
from benchmarks.defense.recipes import SHOWN
from purifier.evaluation.report import markdown_table

MAIN = "validation/patch"
COMPARED = """\
Content insertion by the black corner (`validation/patch`). The seed decides which rows are poisoned
and how the weights start.
"""


def rates_table(cells: Cells) -> list[str]:
    """ASR by poisoning rate and seed; nothing where there is but one of each."""
    found = []
    for name in cells.rows:
        attack = attack_by_name(name)
        if "/".join(parts_of(name)) == MAIN and attack.target == VALIDATION["patch"].target:
            found.append((attack.rate, attack.seed, name))
    if len(found) < 2:
        return []
    lines = [
        [
            f"{100 * rate:g}%",
            str(seed),
            *(cells.shown(name, defence, "asr") for defence in SHOWN),
            cells.shown(name, "none", "clean_exact"),
            cells.shown(name, "fast", "clean_exact"),
        ]
        for rate, seed, name in sorted(found)
    ]
    head = ["poisoned", "seed", *SHOWN.values(), "clean, undefended", "clean, fast"]
    return ["## Poisoning rates and seeds\n", COMPARED, markdown_table(head, lines)]
