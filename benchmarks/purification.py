"""One purification job on each of the three backdoors, against its controls.

    python -m benchmarks.purification --workers 2

For every target: labels by every policy under the paper's and the product's masking, by random
masking, as they are, and the true ones; the poisoned model fine-tuned on each; attack success
and utility of the result, unmasked. Writes docs/results/purification.{jsonl,json,md,png}. A
stopped run goes on where it was; `--cells` and `--targets` choose a part, and rows that are
there already stay in the report.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.purification_cells import CELLS, Cell, Plan
from benchmarks.purification_report import markdown
from benchmarks.purification_stages import measure_cell, measured, run_key
from purifier.evaluation.grid import data_hash, drop_cut_line
from purifier.evaluation.report import percent
from purifier.finetune import PRESETS as TUNINGS
from purifier.lab.demo import DATA_FOLDER, DEMO_FOLDER
from purifier.lab.targets import TargetName
from purifier.mdlm.registry import checkpoint_id

RESULTS = Path("docs/results")
NAME = "purification"

Row = dict[str, Any]
Task = Callable[[], list[Row]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    plan = make_plan(options)
    targets: Sequence[TargetName] = options.targets or get_args(TargetName)
    cells = [CELLS[name] for name in options.cells or CELLS]
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / f"{NAME}.jsonl"
    if not options.report_only:
        run(plan, targets, cells, results, workers=options.workers)
    report(plan, options, results)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--targets", nargs="+", choices=get_args(TargetName))
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), help="default: all of them")
    parser.add_argument("--rows", type=int, help="training rows, the first ones (default: all)")
    parser.add_argument("--limit", type=int, help="test records, drawn once (default: all)")
    parser.add_argument("--tuning", choices=sorted(TUNINGS), default="default")
    parser.add_argument("--epochs", type=int, help="of the fine-tuning (default: its preset's)")
    parser.add_argument("--seed", type=int, default=0, help="of purification and fine-tuning")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--purify-batch", type=int, default=32)
    parser.add_argument("--test-batch", type=int, default=64)
    parser.add_argument(
        "--models", type=Path, default=DEMO_FOLDER, help="a folder for every target, and the base"
    )
    parser.add_argument("--data", type=Path, default=DATA_FOLDER)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--work", type=Path, default=Path("build/purification"), help="what stages keep"
    )
    parser.add_argument("--report-only", action="store_true", help="write the report anew")
    parser.add_argument("--no-figure", action="store_true", help="for machines without matplotlib")
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    tuning = replace(TUNINGS[options.tuning], seed=options.seed)
    if options.epochs is not None:
        tuning = replace(tuning, epochs=options.epochs)
    return Plan(
        models=options.models,
        data=options.data,
        work=options.work,
        rows=options.rows,
        limit=options.limit,
        tuning=tuning,
        seed=options.seed,
        purify_batch=options.purify_batch,
        test_batch=options.test_batch,
        device=options.device,
    )


def run(
    plan: Plan,
    targets: Sequence[TargetName],
    cells: Sequence[Cell],
    results: Path,
    *,
    workers: int = 1,
) -> None:
    """Measures every cell that `results` does not hold yet, and appends it.

    Cells that share masked answers are one task, so that no two processes compute the same ones.
    """
    drop_cut_line(results)
    done = {row["run"] for row in read_rows(results)}
    left = [
        (target, cell)
        for target in targets
        for cell in cells
        if run_key(plan, target, cell) not in done
    ]
    groups: dict[tuple[TargetName, str], list[Cell]] = {}
    for target, cell in left:
        groups.setdefault((target, cell.setting or cell.name), []).append(cell)
    targets_left = dict.fromkeys(target for target, _ in left)
    for _ in _finished([partial(_poisoned, plan, target) for target in targets_left], workers):
        pass
    tasks = [partial(_cells, plan, target, tuple(group)) for (target, _), group in groups.items()]
    for rows in _finished(tasks, workers):
        with results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def report(plan: Plan, options: argparse.Namespace, results: Path) -> None:
    """Writes JSON, Markdown and figure of all cells measured with this plan."""
    found = {row["run"]: row for row in read_rows(results)}
    keys = [
        run_key(plan, target, cell) for target in get_args(TargetName) for cell in CELLS.values()
        if plan.checkpoint(target).is_dir()
    ]  # fmt: skip
    rows = [found[key] for key in keys if key in found]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    facts = {
        "command": command(options),
        "checkpoints": {name: checkpoint_id(plan.checkpoint(name)) for name in targets},
        "data_sha256": data_hash(plan.data),
        "rows": plan.rows or "all",
        "tuning": plan.tuning.to_dict(),
        "seed": plan.seed,
        "made_on": list(dict.fromkeys(row["made_on"] for row in rows)),
        "poisoned": {
            name: measured(plan, name, plan.checkpoint(name))["figures"] for name in targets
        },
    }
    (options.out / f"{NAME}.json").write_text(json.dumps({**facts, "cells": rows}, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(facts, rows, figure=f"{NAME}.png"))
    if not options.no_figure and rows:
        from benchmarks.purification_figure import draw  # noqa: PLC0415  (matplotlib may be absent)

        draw(facts, rows, options.out / f"{NAME}.png")
    print(f"wrote {options.out / NAME}.*: {len(rows)} cells")


def read_rows(results: Path) -> list[Row]:
    """All rows of a results file."""
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def say(text: str) -> None:
    print(text, flush=True)


def print_row(row: Row) -> None:
    print(
        f"{row['target']:18} {row['cell']:28} ASR {percent(row['figures']['asr']):20} "
        f"clean kept {percent(row['kept']):20} "
        f"{row['purify_seconds']:.0f} + {row['tune_seconds']:.0f} s",
        flush=True,
    )


def command(options: argparse.Namespace) -> str:
    """The options that decide the figures, as a command."""
    default = parse([])
    aside = ("models", "data", "out", "work", "workers", "report_only", "no_figure")
    parts = [f"python -m benchmarks.{NAME}"]
    for name, value in vars(options).items():
        if value != getattr(default, name) and name not in (*aside, "targets", "cells"):
            parts.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(parts)


def _poisoned(plan: Plan, target: TargetName) -> list[Row]:
    measured(plan, target, plan.checkpoint(target))
    return []


def _cells(plan: Plan, target: TargetName, cells: Sequence[Cell]) -> list[Row]:
    rows = []
    for cell in cells:
        row = measure_cell(plan, target, cell, say)
        rows.append({"run": run_key(plan, target, cell), **row, "made_on": _machine(plan.device)})
        print_row(row)
    return rows


def _finished(tasks: Sequence[Task], workers: int) -> Iterator[list[Row]]:
    if workers <= 1:
        for task in tasks:
            yield task()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for future in as_completed([pool.submit(task) for task in tasks]):
            yield future.result()


def _machine(device: str) -> str:
    """The device and the versions that a cell was measured with."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    versions = [f"{package} {version(package)}" for package in ("torch", "transformers", "peft")]
    return ", ".join([name, f"python {platform.python_version()}", *versions])


if __name__ == "__main__":
    sys.exit(main())
