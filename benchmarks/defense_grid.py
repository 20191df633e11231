"""The project's first figure: what masking does to three backdoors, and what it costs.

    python -m benchmarks.defense_grid --device cuda --workers 12

Measures every target, level, ranker and mask ratio and two oracles on the demo's held-out test
set, and writes `docs/results/defense_grid.{json,md,png}`. A stopped run goes on where it was, and
with all cells measured (on another machine, say) the same command only writes the report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from purifier.defense.config import MaskingConfig, RankerName
from purifier.evaluation.grid import Grid, Row, data_hash, run_grid
from purifier.evaluation.report import (
    grid_table,
    percent,
    ranker_label,
    settings_that_meet_bar,
)
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER, DEMO_FOLDER
from purifier.lab.targets import TargetName
from purifier.lab.triggers import trigger_to_dict
from purifier.mdlm.registry import checkpoint_id

RESULTS = Path("docs/results")
NAME = "defense_grid"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    grid = make_grid(options)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = run_grid(grid, options.out / f"{NAME}.jsonl", workers=options.workers, report=print_row)
    facts = describe(grid, command(options), rows)
    (options.out / f"{NAME}.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(facts, rows))
    if not options.no_figure:
        from benchmarks.defense_figure import draw  # noqa: PLC0415  (matplotlib may be absent)

        draw(rows, options.out / f"{NAME}.png")
    print(f"wrote {options.out / NAME}.*: {len(rows)} cells")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = MaskingConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--models", type=Path, default=DEMO_FOLDER, help="a folder for every target"
    )
    parser.add_argument("--data", type=Path, default=DATA_FOLDER)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--targets", nargs="+", choices=get_args(TargetName))
    parser.add_argument("--ratios", nargs="+", type=float)
    parser.add_argument("--rankers", nargs="+", choices=get_args(RankerName))
    parser.add_argument("--thresholds", nargs="+", type=float, help="of occlusion")
    parser.add_argument("--limit", type=int, help="records, drawn once for all runs (default: all)")
    parser.add_argument("--probes", type=int, default=default.probes)
    parser.add_argument("--pooling", type=int, default=default.pooling)
    parser.add_argument("--temperature", type=float, default=default.temperature)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--positions-together", type=int, default=8192)
    parser.add_argument("--tf32", action="store_true", help="TensorFloat-32 products on CUDA")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-figure", action="store_true", help="for machines without matplotlib")
    return parser.parse_args(arguments)


def make_grid(options: argparse.Namespace) -> Grid:
    targets: Sequence[TargetName] = options.targets or get_args(TargetName)
    chosen: dict[str, Any] = {}
    if options.ratios:
        chosen["ratios"] = tuple(ratio for ratio in options.ratios if ratio > 0)
    if options.rankers:
        chosen["rankers"] = tuple(options.rankers)
    if options.thresholds:
        chosen["thresholds"] = tuple(options.thresholds)
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
        positions_together=options.positions_together,
        tf32=options.tf32,
        **chosen,
    )


def print_row(row: Row) -> None:
    figures = row["figures"]
    print(
        f"{row['target']:18} {row['level'] or '-':6} {ranker_label(row):20} "
        f"{row['ratio']:.2f} {row['threshold']:4g}  "
        f"ASR {percent(figures['asr']):20} clean {percent(figures['clean_exact']):20} "
        f"recovered {percent(figures['recovered']):20} {row['seconds']:.1f} s",
        flush=True,
    )


def describe(grid: Grid, command: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What a reader needs to run it again: command, data, seeds, counts, versions."""
    test_set = read_test_set(grid.data, limit=grid.limit)
    return {
        "command": command,
        "records": len(test_set.cases),
        "records_by_kind": count_kinds(test_set),
        "trigger": trigger_to_dict(test_set.trigger),
        "generation": asdict(test_set.generation),
        "masking": {
            key: value
            for key, value in asdict(grid.masking).items()
            if key in ("probes", "top_k", "temperature", "pooling", "seed")
        },
        "default": grid.default and asdict(grid.default),
        "checkpoints": {target: checkpoint_id(path) for target, path in grid.models.items()},
        "data_sha256": data_hash(grid.data),
        "made_on": list(dict.fromkeys(row["made_on"] for row in rows)),
        "dtype": "float32 with TF32 products" if grid.tf32 else grid.dtype,
        "seconds_of_all_cells": round(sum(row["seconds"] for row in rows), 1),
    }


def command(options: argparse.Namespace) -> str:
    """The options that decide the figures, as a command."""
    default = parse([])
    parts = ["python -m benchmarks.defense_grid"]
    for name, value in vars(options).items():
        if value != getattr(default, name) and name not in ("models", "data", "out", "no_figure"):
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            flag = f"--{name.replace('_', '-')}"
            parts.append(flag if value is True else f"{flag} {text}")
    return " ".join(parts)


def count_kinds(test_set: TestSet) -> dict[str, int]:
    kinds = [case.kind for case in test_set.cases]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def markdown(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """The report: how it was made, what meets the bar, one table a target."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["records_by_kind"].items())
    settings = ", ".join(f"{key} {value}" for key, value in facts["masking"].items())
    default = ", ".join(f"{key} {value}" for key, value in (facts["default"] or {}).items())
    trigger = ", ".join(f"{key} {value}" for key, value in facts["trigger"].items())
    parts = [
        "# Masking against three backdoors\n",
        f"Made by `{facts['command']}` on {'; '.join(facts['made_on'])}; {facts['dtype']}.\n",
        f"Data: {facts['records']} held-out records ({kinds}), each asked about its clean and its "
        f"triggered image; SHA-256 of the data `{facts['data_sha256'][:12]}`. Trigger: {trigger}. "
        f"Checkpoints: {', '.join(f'`{name}`' for name in facts['checkpoints'].values())}. "
        f"Settings of the defence: {settings}. Default setting of the product: {default}. "
        "One training seed per checkpoint.\n",
        "Figures are percent with 95% Wilson intervals. ASR and the recovered figures count the "
        "questions whose answer the target changes. The threshold is the least score that is "
        "masked (nats for occlusion); with it the ratio is the most that is masked. "
        "`recovered`: the defended answer on the triggered image equals the defended answer on "
        "the clean one; `recovered, true`: it equals the true answer. "
        "Saliency is taken anew for every image; the random ranker draws a mask for every record. "
        "`oracle-token` masks exactly the trigger's visual tokens after the encoder, "
        "`oracle-pixel` fills exactly its pixels; both do so on the clean images too.\n",
        f"![ASR and clean accuracy over the mask ratio]({NAME}.png)\n",
        "## Settings with ASR at most 5% and at least 98% of the undefended clean accuracy, where "
        "random masking at the same ratio does not reach both\n",
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
        f"- {level}, {ranker}, ratio {ratio:g}, threshold {threshold:g}: {', '.join(targets)}"
        for level, ranker, ratio, threshold, targets in found
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
