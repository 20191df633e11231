"""The project's first figure: what masking does to three backdoors, and what it costs.

    python benchmarks/defense_grid.py --device cuda --workers 12

Measures every target, level, ranker and mask ratio and two oracles on the demo's held-out test
set, and writes `docs/results/defense_grid.{json,md,png}`. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import matplotlib as mpl
import torch

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from purifier.defense.config import MaskingConfig, RankerName
from purifier.evaluate import DEMO
from purifier.evaluation.grid import Grid, Row, data_hash, run_grid
from purifier.evaluation.report import (
    grid_table,
    percent,
    settings_that_meet_bar,
)
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.targets import TargetName
from purifier.lab.triggers import trigger_to_dict
from purifier.mdlm.registry import checkpoint_id

RESULTS = Path("docs/results")
NAME = "defense_grid"
COLOURS = {
    "official": "tab:blue",
    "fisher": "tab:orange",
    "exact": "tab:green",
    "attention": "tab:red",
    "random": "tab:gray",
    "gradient": "tab:purple",
    "leave-one-out": "tab:brown",
}
PANELS = (("token", "asr"), ("token", "clean_exact"), ("patch", "asr"), ("patch", "clean_exact"))
HEADINGS = {"asr": "ASR, triggered", "clean_exact": "clean answers exact"}
ORACLE_LINES = {"undefended": ":", "oracle-token": "--", "oracle-pixel": "-."}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    grid = make_grid(options)
    options.out.mkdir(parents=True, exist_ok=True)
    start = perf_counter()
    rows = run_grid(grid, options.out / f"{NAME}.jsonl", workers=options.workers, report=print_row)
    facts = describe_run(grid, options, perf_counter() - start)
    (options.out / f"{NAME}.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(facts, rows))
    draw(rows, options.out / f"{NAME}.png")
    print(f"wrote {options.out / NAME}.json, .md and .png: {len(rows)} cells")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = MaskingConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, default=DEMO, help="a folder for every target")
    parser.add_argument("--data", type=Path, default=DEMO / "data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--targets", nargs="+", choices=get_args(TargetName))
    parser.add_argument("--ratios", nargs="+", type=float)
    parser.add_argument("--rankers", nargs="+", choices=get_args(RankerName))
    parser.add_argument("--limit", type=int, help="records, drawn once for all runs (default: all)")
    parser.add_argument("--probes", type=int, default=default.probes)
    parser.add_argument("--pooling", type=int, default=default.pooling)
    parser.add_argument("--temperature", type=float, default=default.temperature)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--scored-together", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args(arguments)


def make_grid(options: argparse.Namespace) -> Grid:
    targets: Sequence[TargetName] = options.targets or get_args(TargetName)
    chosen: dict[str, Any] = {}
    if options.ratios:
        chosen["ratios"] = tuple(ratio for ratio in options.ratios if ratio > 0)
    if options.rankers:
        chosen["rankers"] = tuple(options.rankers)
    return Grid(
        models={target: str(options.models / target) for target in targets},
        data=str(options.data),
        masking=MaskingConfig(
            probes=options.probes,
            pooling=options.pooling,
            temperature=options.temperature,
            seed=options.seed,
        ),
        limit=options.limit,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        scored_together=options.scored_together,
        **chosen,
    )


def print_row(row: Row) -> None:
    figures = row["figures"]
    print(
        f"{row['target']:18} {row['level'] or '-':6} {row['ranker']:14} {row['ratio']:.2f}  "
        f"ASR {percent(figures['asr']):20} clean {percent(figures['clean_exact']):20} "
        f"recovered {percent(figures['recovered']):20} {row['seconds']:.1f} s",
        flush=True,
    )


def describe_run(grid: Grid, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """What a reader needs to run it again: command, data, seeds, counts, versions."""
    test_set = read_test_set(grid.data, limit=grid.limit)
    return {
        "command": command(options),
        "records": len(test_set.cases),
        "records_by_kind": count_kinds(test_set),
        "trigger": trigger_to_dict(test_set.trigger),
        "generation": asdict(test_set.generation),
        "masking": {
            key: value
            for key, value in asdict(grid.masking).items()
            if key in ("probes", "top_k", "temperature", "pooling", "seed")
        },
        "checkpoints": {target: checkpoint_id(path) for target, path in grid.models.items()},
        "data_sha256": data_hash(grid.data),
        "device": device_name(options.device),
        "dtype": grid.dtype,
        "seconds_of_this_run": round(seconds, 1),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "pillow", "numpy")},
        },
    }


def command(options: argparse.Namespace) -> str:
    """The options that decide the figures, as a command."""
    default = parse([])
    parts = ["python benchmarks/defense_grid.py"]
    for name, value in vars(options).items():
        if value != getattr(default, name) and name not in ("models", "data", "out"):
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(parts)


def count_kinds(test_set: TestSet) -> dict[str, int]:
    kinds = [case.kind for case in test_set.cases]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def markdown(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """The report: how it was made, what meets the bar, one table a target."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["records_by_kind"].items())
    settings = ", ".join(f"{key} {value}" for key, value in facts["masking"].items())
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    trigger = ", ".join(f"{key} {value}" for key, value in facts["trigger"].items())
    parts = [
        "# Masking against three backdoors\n",
        f"Made by `{facts['command']}` on {facts['device']} ({facts['dtype']}); {versions}.\n",
        f"Data: {facts['records']} held-out records ({kinds}), each asked about its clean and its "
        f"triggered image; SHA-256 of the data `{facts['data_sha256'][:12]}`. Trigger: {trigger}. "
        f"Checkpoints: {', '.join(f'`{name}`' for name in facts['checkpoints'].values())}. "
        f"Settings of the defence: {settings}. One training seed per checkpoint.\n",
        "Figures are percent with 95% Wilson intervals. ASR counts the questions whose answer the "
        "target changes. `recovered`: the defended answer on the triggered image equals the "
        "defended answer on the clean one; `recovered, true`: it equals the true answer. "
        "Saliency is taken anew for every image; the random ranker draws a mask for every record. "
        "`oracle-token` masks exactly the trigger's visual tokens after the encoder, "
        "`oracle-pixel` fills exactly its pixels; both do so on the clean images too.\n",
        f"![ASR and clean accuracy over the mask ratio]({NAME}.png)\n",
        "## Settings with ASR at most 5% and at least 98% of the undefended clean accuracy\n",
        bar_list(rows),
    ]
    for target in facts["checkpoints"]:
        parts += [f"## {target}\n", grid_table([row for row in rows if row["target"] == target])]
    return "\n".join(parts)


def bar_list(rows: Sequence[Row]) -> str:
    found = settings_that_meet_bar(rows)
    if not found:
        return "None.\n"
    lines = [
        f"- {level}, {ranker}, ratio {ratio:g}: {', '.join(targets)}"
        for level, ranker, ratio, targets in found
    ]
    return "\n".join(lines) + "\n"


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
            panel.set_title(f"{target}: {HEADINGS[metric]}, level {level}", fontsize=9)
        line[0].set_ylabel("%")
    for panel in axes[-1]:
        panel.set_xlabel("mask ratio")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), fontsize=9, frameon=False)
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
    for ranker in dict.fromkeys(row["ranker"] for row in rows if row["level"] == level):
        curve = [row for row in rows if (row["level"], row["ranker"]) == (level, ranker)]
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
            color=COLOURS[ranker],
            label=ranker,
        )
        panel.fill_between(
            ratios,
            [100 * rate["low"] for rate in rates],
            [100 * rate["high"] for rate in rates],
            color=COLOURS[ranker],
            alpha=0.12,
            linewidth=0,
        )
    panel.set_ylim(-3, 103)
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    sys.exit(main())
