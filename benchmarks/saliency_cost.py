"""What saliency costs, and what it is worth: every ranker against the fast undefended answer.

    python -m benchmarks.saliency_cost

Four parts, each a list of cells appended to `docs/results/saliency_cost.jsonl` as they are done,
so that a stopped run goes on where it was:

- `recall`: share of the trigger's units among the top tenth, on triggered test scenes.
- `quality`: ASR and clean accuracy on test scenes and on fresh ones. What the defence grid and
  `fresh_scenes` have measured on the same scenes is taken from their results.
- `cost`: time of a defended over that of an undefended answer, both with the product's fast
  settings, on the middle-sized random model (2,929 visual tokens) and on the demo model.
- `backward`: ways of pulling several probes back, and the memory that gradients take.

Writes `docs/results/saliency_cost.{json,md,png}`. On a CPU, time is processor time of one thread:
other work on the machine then counts less than it would on a wall clock.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.saliency_backward import backward_cells
from benchmarks.saliency_quality import FRESH_SCENES, FRESH_SEED, RECORDS, quality_cells
from benchmarks.saliency_recall import (
    EXACT_SCENES,
    METHODS,
    PROBE_SCENES,
    exact_method,
    probe_scores,
    recall,
)
from benchmarks.saliency_report import markdown
from benchmarks.saliency_timing import cost_cells
from benchmarks.speed_timing import machine
from purifier.defense.config import Level
from purifier.denoise.config import FAST
from purifier.evaluation.grid import data_hash, drop_cut_line
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.targets import TargetName
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import checkpoint_id, load_mdlm

RESULTS = Path("docs/results")
NAME = "saliency_cost"
PARTS = ("cost", "backward", "recall", "quality")

Cell = dict[str, Any]
Work = tuple[str, Callable[[], Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    cells = options.out / f"{NAME}.jsonl"
    done = finished(cells)
    for part in () if options.report_only else options.parts:
        for name, work in plan(part, options):
            key = f"{part}: {name}"
            if key not in done and any(fnmatch(name, only) for only in options.only):
                done[key] = work()
                with cells.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"cell": key, "found": done[key]}) + "\n")
                print(key, json.dumps(done[key])[:200], flush=True)
    result = {**facts(options), "cells": done}
    (options.out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(result))
    if not options.no_figure:
        from benchmarks.saliency_figure import draw  # noqa: PLC0415  (matplotlib may be absent)

        draw(result, options.out / f"{NAME}.png")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", nargs="+", default=["*"], help="cells whose names match")
    parser.add_argument("--scenes", type=int, default=40, help="triggered scenes of recall")
    parser.add_argument("--repeats", type=int, default=3, help="of every timed pair")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report-only", action="store_true", help="of the cells that are there")
    parser.add_argument("--no-figure", action="store_true", help="for machines without matplotlib")
    return parser.parse_args(arguments)


def plan(part: str, options: argparse.Namespace) -> Iterator[Work]:
    """The cells of a part: a name each, and how to compute it."""
    if part == "cost":
        yield from cost_cells(options.device, options.repeats)
    elif part == "backward":
        yield from backward_cells(options.device, options.repeats)
    elif part == "recall":
        yield from recall_cells(options)
    else:
        yield from quality_cells(options.device)


def recall_cells(options: argparse.Namespace) -> Iterator[Work]:
    test = read_test_set(DATA_FOLDER, limit=4 * options.scenes)
    for target in get_args(TargetName):
        mdlm = load_mdlm(checkpoint_path(target), device=options.device)
        levels: tuple[Level, ...] = get_args(Level)
        for level in levels:
            yield f"{target}, {level}", partial(_recalls, mdlm, test, target, level, options.scenes)


def _recalls(
    mdlm: Mdlm, test: TestSet, target: TargetName, level: Level, scenes: int
) -> dict[str, Any]:
    return {
        **recall(mdlm, test, target, level, METHODS[level], scenes),
        **recall(mdlm, test, target, level, (probe_scores,), PROBE_SCENES),
        **recall(mdlm, test, target, level, (exact_method,), EXACT_SCENES),
    }


def finished(cells: Path) -> dict[str, Any]:
    """Cells of an earlier run."""
    drop_cut_line(cells)
    if not cells.is_file():
        return {}
    rows = [json.loads(line) for line in cells.read_text(encoding="utf-8").splitlines()]
    return {row["cell"]: row["found"] for row in rows}


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    targets: tuple[TargetName, ...] = get_args(TargetName)
    return {
        "command": f"python -m benchmarks.{NAME}",
        "machine": machine(options.device),
        "data": data_hash(DATA_FOLDER)[:12],
        "records": RECORDS,
        "fresh": {"scenes": FRESH_SCENES, "seed": FRESH_SEED},
        "scenes": options.scenes,
        "repeats": options.repeats,
        "generation": {
            "cache": FAST.cache,
            "prompt_interval": FAST.prompt_interval,
            "parallel_threshold": FAST.parallel_threshold,
        },
        "checkpoints": {target: checkpoint_id(checkpoint_path(target)) for target in targets},
    }


if __name__ == "__main__":
    sys.exit(main())
