"""The picture of the trade-off: cost against ASR and clean accuracy, and recall."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.saliency_report import TARGETS
from benchmarks.saliency_settings import SETTINGS
from benchmarks.saliency_timing import KINDS
from benchmarks.speed_settings import PATCH_LIMIT, TOKEN_LIMIT

COLOURS = {
    "occlusion": "black",
    "two-stage": "tab:green",
    "knockout": "tab:olive",
    "attention": "tab:red",
    "official": "tab:blue",
    "fisher": "tab:orange",
}
MARKERS = {"patch": "o", "token": "s"}
PANELS = (("asr", "ASR"), ("clean_exact", "clean exact"))


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A row of panels for ASR and one for clean accuracy, a column a target."""
    cells = result["cells"]
    figure, axes = plt.subplots(
        len(PANELS), len(TARGETS), figsize=(13, 7.5), sharex=True, sharey="row", squeeze=False
    )
    for (metric, heading), line in zip(PANELS, axes, strict=True):
        for target, panel in zip(TARGETS, line, strict=True):
            draw_panel(panel, cells, target, metric)
            panel.set_title(f"{target}: {heading}", fontsize=10)
        line[0].set_ylabel("%")
    for panel in axes[-1]:
        panel.set_xlabel("seconds of a defended answer / fast undefended")
    entries = {
        label: handle for handle, label in zip(*axes[0][0].get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(entries.values()), list(entries), loc="lower center", ncol=5, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_panel(panel: Axes, cells: Mapping[str, Any], target: str, metric: str) -> None:
    """One target and metric: a mark a setting, with its interval and its range of costs."""
    undefended = cells.get(f"quality: test, {target}, undefended")
    if undefended is not None:
        panel.axhline(
            100 * undefended[metric]["value"],
            color="grey",
            linestyle=":",
            label="undefended",
        )
    for limit, style, level in ((PATCH_LIMIT, "-", "patch"), (TOKEN_LIMIT, "--", "token")):
        panel.axvline(limit, color="lightgrey", linestyle=style, label=f"goal, {level}", zorder=0)
    for name, setting in SETTINGS.items():
        quality = cells.get(f"quality: test, {target}, {name}, ratio {setting.ratios[0]:g}")
        calm, alarmed = (cells.get(f"cost: {setting.middle_cell(name, kind)}") for kind in KINDS)
        if quality is None or calm is None or alarmed is None:
            continue
        # The clean answers are those of requests that nothing is wrong with.
        cost = (alarmed if metric == "asr" else calm)["ratio"]
        rate = quality[metric]
        panel.errorbar(
            cost["value"],
            100 * rate["value"],
            yerr=[
                [100 * (rate["value"] - rate["low"])],
                [100 * (rate["high"] - rate["value"])],
            ],
            marker=MARKERS[setting.masking.level],
            color=COLOURS[setting.masking.ranker],
            markerfacecolor="none" if ", " in name else None,
            linewidth=0.8,
            capsize=2,
            label=name,
        )
    panel.set_xscale("log")
    panel.set_xticks([1, 1.3, 1.6, 2, 3, 5, 10], labels=["1", "1.3", "1.6", "2", "3", "5", "10"])
    panel.minorticks_off()
    panel.set_ylim(-3, 103)
    panel.grid(alpha=0.3)
