"""The page that is drawn from the table of all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.defense.admission import BASES, CLEAN_TOO_LOW, RANDOM, Cells
from benchmarks.defense.attacks import TEXT, parts_of, passes_of
from benchmarks.defense.cells import Row
from benchmarks.defense.claims import claims_table
from benchmarks.defense.defences import DEFENCES, RANKERS
from benchmarks.defense.goals import goals_table
from benchmarks.defense.healing import HEALINGS
from benchmarks.defense.healing_tables import drops_table, needs_table
from benchmarks.defense.rates import rates_table
from benchmarks.defense.recipes import recipes_table
from benchmarks.defense.transforms import TRANSFORMS
from purifier.defense.config import EFFORTS, MaskingConfig
from purifier.evaluation.report import markdown_table, percent

ABOUT = """\
Made by `{command}` on {made_on}. An attack is named by its list, the kind of its trigger, and its
target and poisoning rate where these are not content insertion at 20%. Attacks of the list
`validation` are asked about {limit} scenes of the validation split and may decide settings; those
of `test` are asked about {limit} scenes of the test split and decide nothing; those of `adaptive`
are by attackers who know this repository, and asked about the same scenes; those of `shipped` are
the demo's, asked about those of `validation`. Each scene is asked about with and without the
trigger. Figures are percent with 95% Wilson intervals; one training seed an attack. ° marks figures
that were not measured again: of an earlier search (`fast`: attention alone named the window to try;
`balanced`: windows were not shown alone), or of an earlier training of the attack. Weights of one
recipe differ from processor to processor, so clean answers are compared within one training alone;
`benchmarks/defense/checkpoints` has those of the attacks that were trained last. `defense.parquet`
in this folder holds every run with its settings and its seed. A server asks `balanced` by default.
"""

ADMISSION = """\
An attack enters the tables below if it succeeds at 90% of the questions undefended, keeps 95% of
the base's clean answers, and keeps half of its success where 30% of the visual tokens are masked
at random. Passes are those over its training set of 500 rows (`shipped`: 1000): 20 for attacks
that 10 do not teach.
"""

CLAIMED = """\
On the attacks that enter and whose trigger is in the image. An attack counts as stopped at an ASR
of 10% at most, a model as healed at 5%, clean answers as kept at 95%.
"""

LEVELS = (*EFFORTS, "fast, detector", "balanced, detector")
"""The product's defences at inference."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "The product and the paper": (
        "none",
        *LEVELS,
        *("paper 0.15", "paper 0.3", "paper 0.45", RANDOM, "random windows 0.3"),
    ),
    "Other rankers at the ratio of `fast`": (
        "none",
        *(f"{ranker} {MaskingConfig().ratio:g}" for ranker in RANKERS),
    ),
    "Changes of the whole image": ("none", *TRANSFORMS),
    "Masks that know the trigger's place": ("none", "oracle, tokens", "oracle, pixels"),
    "Healed models, undefended": ("none", *HEALINGS),
}
"""The tables: their titles and defences."""


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
        *goals_table(cells),
        "## The attacks\n",
        ADMISSION,
        markdown_table(
            ["attack", "passes", "ASR", "clean", "ASR, 30% masked at random", "enters"],
            [_admission(cells, name) for name in attacks],
        ),
    ]
    parts += [*recipes_table(cells), *rates_table(cells)]
    on_images = [name for name in admitted if parts_of(name)[1] not in TEXT]
    parts += ["## What the paper says\n", CLAIMED, claims_table(cells, on_images)]
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
    parts += [*needs_table(cells), *drops_table(cells), *_elsewhere(cells)]
    failed = [name for name in attacks if name not in admitted]
    columns = [name for name in defences if name not in TRANSFORMS]
    parts += [
        "## Attacks that did not enter: ASR\n",
        markdown_table(
            ["attack", *columns], [[name, *_row(cells, name, columns, "asr")] for name in failed]
        ),
    ]
    changed = [
        [name, defence, f"{100 * share:.0f}", cells.shown(name, defence, "clean_exact")]
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


def _elsewhere(cells: Cells) -> list[str]:
    """Success of attacks at kinds of question at which they must not wake, if any was measured."""
    lines = [
        [attack, name, percent(found)]
        for attack, row in cells.rows.items()
        for name in DEFENCES
        if name in row and (found := row[name].get("details", {}).get("asr_elsewhere"))
    ]
    if not lines:
        return []
    table = markdown_table(["attack", "defence", "ASR at other questions"], lines)
    return ["## At kinds of question at which an attack must not wake\n", table]


def _admission(cells: Cells, name: str) -> list[str]:
    reasons = cells.failing(name)
    return [
        name,
        str(passes_of(name)),
        cells.shown(name, "none", "asr"),
        cells.shown(name, "none", "clean_exact"),
        cells.shown(name, RANDOM, "asr"),
        f"no: {', '.join(reasons)}" if reasons else "yes",
    ]


def _row(cells: Cells, name: str, defences: Sequence[str], figure: str) -> list[str]:
    return [cells.shown(name, defence, figure) for defence in defences]


def efforts_table(rows: Sequence[Row]) -> str:
    """What each level of effort leaves of the attacks that work, and of the clean answers.

    A dagger marks those that cost too many clean answers to enter.
    """
    cells = Cells.of(rows)
    levels = [name for name in LEVELS if _measured(cells, name)]
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
    effort, *detector = defence.split(", ")
    return " and ".join([f"`{effort}`", *detector])


def _kept(cells: Cells, name: str, defence: str) -> str:
    kept = cells.kept(name, defence)
    return "–" if kept is None else f"{100 * kept:.1f}"
