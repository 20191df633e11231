"""The picture of the defence grid: curves over the mask ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from purifier.evaluation.grid import Row

COLOURS = {
    "occlusion": "black",
    "official": "tab:blue",
    "fisher": "tab:orange",
    "exact": "tab:green",
    "attention": "tab:red",
    "random": "tab:gray",
    "gradient": "tab:purple",
    "leave-one-out": "tab:brown",
}
PANELS = (("token", "asr"), ("token", "clean_exact"), ("patch", "asr"), ("patch", "clean_exact"))
HEADINGS = {"asr": "ASR", "clean_exact": "clean exact"}
ORACLE_LINES = {"undefended": ":", "oracle-token": "--", "oracle-pixel": "-."}


def draw(rows: Sequence[Row], path: Path) -> None:
    """ASR and exact clean answers over the ratio: a row a target, a curve a ranker."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    figure, axes = plt.subplots(
        len(targets), len(PANELS), figsize=(13, 2.9 * len(targets)), sharey=True, squeeze=False
    )
    for target, line in zip(targets, axes, strict=True):
        own = [row for row in rows if row["target"] == target]
        for (level, metric), panel in zip(PANELS, line, strict=True):
            draw_panel(panel, own, level, metric)
            panel.set_title(f"{target}, {level}: {HEADINGS[metric]}", fontsize=9)
        line[0].set_ylabel("%")
    for panel in axes[-1]:
        panel.set_xlabel("mask ratio")
    entries = {
        label: handle
        for panel in axes[0]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(entries.values()), list(entries), loc="lower center", ncol=7, fontsize=9, frameon=False
    )
    figure.tight_layout(rect=(0, 0.02 + 0.08 / len(targets), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_panel(panel: Axes, rows: Sequence[Row], level: str, metric: str) -> None:
    undefended = next((row for row in rows if row["ranker"] == "undefended"), None)
    for name, style in ORACLE_LINES.items():
        for row in rows:
            value = row["figures"][metric]["value"]
            if row["ranker"] == name and value is not None:
                panel.axhline(100 * value, linestyle=style, color="black", linewidth=1, label=name)
    ranked = [row for row in rows if row["level"] == level and not row["default"]]
    for ranker, threshold in dict.fromkeys((row["ranker"], row["threshold"]) for row in ranked):
        curve = [row for row in ranked if (row["ranker"], row["threshold"]) == (ranker, threshold)]
        if undefended is not None:
            curve = [undefended, *curve]
        rates = [row["figures"][metric] for row in curve]
        if any(rate["value"] is None for rate in rates):
            continue
        ratios = [row["ratio"] for row in curve]
        panel.plot(
            ratios,
            [100 * rate["value"] for rate in rates],
            marker=".",
            linestyle="--" if threshold else "-",
            color=COLOURS[ranker],
            label=f"{ranker}, at least {threshold:g}" if threshold else ranker,
        )
        panel.fill_between(
            ratios,
            [100 * rate["low"] for rate in rates],
            [100 * rate["high"] for rate in rates],
            color=COLOURS[ranker],
            alpha=0.12,
            linewidth=0,
        )
    for row in rows:
        value = row["figures"][metric]["value"]
        if row["default"] and row["level"] == level and value is not None:
            panel.plot(
                row["ratio"],
                100 * value,
                "*",
                markersize=13,
                color="gold",
                markeredgecolor="black",
                label="default",
                zorder=5,
            )
    panel.set_ylim(-3, 103)
    panel.grid(alpha=0.3)
