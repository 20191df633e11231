"""The trade-off as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from benchmarks.saliency_settings import SETTINGS
from benchmarks.saliency_timing import KINDS
from purifier.evaluation.report import markdown_table
from purifier.lab.targets import TargetName

Cells = Mapping[str, Any]

TARGETS: tuple[TargetName, ...] = get_args(TargetName)

INTRODUCTION = """# What saliency costs, and what it is worth

Made by `{command}` on {machine}. Trained figures: the demo model's checkpoints ({checkpoints}) and
its test split (data `{data}`); the looks and thresholds of `two-stage` were chosen on scenes of
the validation split (seeds 771, 772 and 20261123), not on these. Rows of `two-stage` without a gate
were measured when attention alone named the window; today its passes are 9 R, 1 P, 1 E, of few
images one P and one E more ([performance.md](../performance.md) has what that costs). Intervals are
95% Wilson. Times: {clock}; the fast undefended answer is 32 tokens with `cache` {cache},
`prompt_interval` {prompt_interval}, `parallel_threshold` {parallel_threshold}. A dash, and a row or
table that is not there, is a cell that has not been measured; the command goes on where it stopped.

![Cost against ASR and clean accuracy](saliency_cost.png)
"""

COST = """## Cost of a defended answer

Seconds over those of the fast undefended answer, median of {repeats} pairs measured in turn [least,
greatest] (slow ones on the middle-sized model: one pair; settings that run the same
passes there share a measurement). Middle: the random model of
`benchmarks/middle.py` at 2,929 visual tokens, all 32 denoising steps; whether one of its windows
counts as suspected is set from outside, so both cases are shown. Demo: the misclassification
checkpoint, 8 questions, as they come. Passes: E an encoding, P a whole forward pass, B a backward
pass, R one run of the answer positions alone, besides those of the undefended answer; in brackets
what is run only where a window is suspected.
"""

QUALITY = """## What it stops, what it keeps

Test: {records} records of the test split, those of [defense_grid.md](defense_grid.md), from where
the rows of `occlusion`, `attention`, `official` and `fisher` are taken. Fresh: {scenes} scenes
of the validation split, seed {seed}, on which nothing was chosen.
Each is asked about its clean and its triggered image; ASR counts those whose answer the target
changes. n: questions of ASR, of clean accuracy.
"""

RECALL = """## Who finds the trigger

Share of the trigger's units among the top tenth of an image's units, mean over triggered test
scenes (n in the last column, fewer for the slow ones), and in brackets the share of scenes that
have all of them there. Patch scores are pooled as in the product. `modes, m`: backward passes
along the m largest modes of the Fisher matrices of all answer positions, in place of random probes.
"""

BACKWARD = """## Several probes in one backward pass

Seconds for the gradients of six probes, median of {repeats} [least, greatest]. `repeated batch`
holds the request six times and pays for that in the forward pass too, so its own is included.
"""

MEMORY = """## Memory of gradients

MiB on top of model and inputs, in a process of its own: after the forward pass, and after the
backward pass of one probe or of six together.
"""


def markdown(result: Mapping[str, Any]) -> str:
    """The report of all cells that are there."""
    cells: Cells = result["cells"]
    facts = result["machine"]
    head = INTRODUCTION.format(
        command=result["command"],
        machine=f"{facts['processor']}, {facts['threads']} thread, {facts['device']}, "
        f"torch {facts['torch']}, transformers {facts['transformers']}",
        checkpoints=", ".join(f"`{name}`" for name in result["checkpoints"].values()),
        data=result["data"],
        clock="processor time of one thread"
        if facts["device"] == "cpu"
        else "wall clock of the device",
        **result["generation"],
    )
    return "\n".join(
        [
            head,
            COST.format(repeats=result["repeats"]),
            cost_table(cells),
            QUALITY.format(records=result["records"], **result["fresh"]),
            *(part for target in TARGETS for part in (f"### {target}\n", _quality(cells, target))),
            RECALL,
            *(f"### {level}\n\n{recall_table(cells, level)}" for level in ("token", "patch")),
            BACKWARD.format(repeats=result["repeats"]),
            backward_table(cells),
            MEMORY,
            memory_table(cells),
        ]
    )


def cost_table(cells: Cells) -> str:
    """A row a setting."""
    header = ["setting", "passes", "middle, nothing suspected", "middle, suspected",
              "demo, clean", "demo, triggered"]  # fmt: skip
    rows = []
    for name, setting in SETTINGS.items():
        calm, alarmed = (cells.get(f"cost: {setting.middle_cell(name, kind)}") for kind in KINDS)
        demo = [cells.get(f"cost: demo, {name}, {kind}") for kind in ("clean", "triggered")]
        rows.append([name, setting.passes, *(_ratio(cell) for cell in (calm, alarmed, *demo))])
    return markdown_table(header, rows)


def _quality(cells: Cells, target: str) -> str:
    header = [
        "scenes",
        "setting",
        "ratio",
        "ASR",
        "clean exact",
        "recovered",
        "recovered, true",
        "n",
    ]
    rows = []
    for split in ("test", "fresh"):
        entries = [("undefended", "–", f"quality: {split}, {target}, undefended")]
        for name, setting in SETTINGS.items():
            for ratio in sorted(setting.ratios):
                key = f"quality: {split}, {target}, {name}, ratio {ratio:g}"
                entries.append((name, f"{ratio:g}", key))
        for name, shown, key in entries:
            if key in cells:
                figures = cells[key]
                rates = [figures[k] for k in ("asr", "clean_exact", "recovered", "recovered_true")]
                counts = f"{figures['asr']['n']}, {figures['clean_exact']['n']}"
                rows.append([split, name, shown, *(rate(r) for r in rates), counts])
    return markdown_table(header, rows)


def recall_table(cells: Cells, level: str) -> str:
    """A row a method, a column a target."""
    found = [cells.get(f"recall: {target}, {level}", {}) for target in TARGETS]
    names = list(dict.fromkeys(name for own in found for name in own))
    rows = [
        [
            name,
            *(
                f"{100 * own[name]['recall']:.0f} ({rate(own[name]['whole'])})"
                if name in own
                else "–"
                for own in found
            ),
            ", ".join(str(own[name]["n"]) for own in found if name in own),
        ]
        for name in names
    ]
    return markdown_table(["method", *TARGETS, "n"], rows)


def backward_table(cells: Cells) -> str:
    rows = []
    for model in ("demo", "729", "2929"):
        for level in ("token", "patch"):
            cell = cells.get(f"backward: {model}, {level}")
            if cell:
                label = model if model == "demo" else f"middle, {model} visual tokens"
                rows.append([label, level, *(_spread(value) for value in cell.values())])
    header = ["model", "level", "forward pass", "loop", "is_grads_batched", "repeated batch"]
    return markdown_table(header, rows)


def memory_table(cells: Cells) -> str:
    rows: list[list[str]] = []
    for key, cell in cells.items():
        if key.startswith("backward: memory"):
            _, tokens, count, level, together = key.removeprefix("backward: ").split(", ")
            rows.append(
                [
                    level,
                    tokens.split()[0],
                    count.split()[0],
                    f"{cell['positions']:,}",
                    together.split()[0],
                    f"{cell['forward_mib']:,.0f}",
                    f"{cell['backward_mib']:,.0f}",
                ]
            )
    header = ["level", "visual tokens", "requests", "positions", "probes together",
              "forward, MiB", "backward, MiB"]  # fmt: skip
    return markdown_table(header, sorted(rows))


def rate(figure: Mapping[str, Any]) -> str:
    """Percent with its interval."""
    if figure["value"] is None:
        return "–"
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _ratio(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    found = cell["ratio"]
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _spread(value: Mapping[str, Any]) -> str:
    return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
