"""The picture of the purification benchmark: attack success and what is kept, a row a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.purification_report import ASR_BAR, KEPT_BAR

POISONED = "(poisoned model)"
MET, MISSED = "#0f766e", "#c2570c"


def draw(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Two panels a target: ASR with the bar at 2%, clean answers kept with the bar at 98%."""
    targets = list(facts["poisoned"])
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    names = [POISONED, *cells]
    figure, axes = plt.subplots(
        len(targets),
        2,
        figsize=(11, (0.9 + 0.3 * len(names)) * len(targets)),
        squeeze=False,
        sharey=True,
    )
    for target, (left, right) in zip(targets, axes, strict=True):
        own = {row["cell"]: row for row in rows if row["target"] == target}
        asr = {name: row["figures"]["asr"] for name, row in own.items()}
        asr[POISONED] = facts["poisoned"][target]["asr"]
        kept = {name: row["kept"] for name, row in own.items()}
        draw_panel(left, names, asr, ASR_BAR, upper=True)
        draw_panel(right, names, kept, KEPT_BAR, upper=False)
        left.set_title(f"{target}: attack success, %", fontsize=10)
        right.set_title(f"{target}: clean answers kept, %", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_panel(
    panel: Axes,
    names: Sequence[str],
    rates: Mapping[str, Mapping[str, Any]],
    bar: float,
    *,
    upper: bool,
) -> None:
    """A dot and its interval for every name that has a rate; green where it meets the bar."""
    for place, name in enumerate(names):
        rate = rates.get(name)
        if rate is None or rate["value"] is None:
            continue
        met = rate["value"] <= bar if upper else rate["value"] >= bar
        colour = MET if met else MISSED
        value, low = 100 * rate["value"], 100 * rate["low"]
        high = 100 * rate["high"] if rate["high"] is not None else value
        panel.plot([low, high], [place, place], color=colour, linewidth=4, alpha=0.3)
        panel.plot(value, place, "o", color=colour, markersize=6)
    panel.axvline(100 * bar, color="black", linewidth=1, linestyle=":")
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if upper:
        panel.set_xlim(-3, 103)
