"""The default defence on scenes that no setting was chosen on.

    python -m benchmarks.fresh_scenes --workers 2

Draws scenes from the validation split (item pictures seen neither in training nor in the demo's
test set), asks every target's checkpoint undefended, under the defence that a server takes by
default, and under random masking of a window's share and of the most that the default masks, and
writes `docs/results/fresh_scenes.{json,md}`. A stopped run goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from benchmarks.defense_grid import describe, print_row
from purifier.defense.config import MaskingConfig
from purifier.evaluation.grid import Grid, run_grid
from purifier.evaluation.report import grid_table
from purifier.lab.demo import DEMO_FOLDER
from purifier.lab.demo_data import write_test_data
from purifier.lab.targets import TargetName
from server.config import DEFAULT_EFFORT

RESULTS = Path("docs/results")
NAME = "fresh_scenes"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    targets: tuple[TargetName, ...] = get_args(TargetName)
    options.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        write_test_data(Path(folder), "validation", options.scenes, options.seed)
        grid = Grid(
            models={target: str(options.models / target) for target in targets},
            data=folder,
            ratios=(MaskingConfig().ratio,),
            levels=(MaskingConfig().level,),
            rankers=("random",),
            default=MaskingConfig().adjusted(effort=DEFAULT_EFFORT),
            oracles=(),
            batch_size=options.batch_size,
        )
        cells = options.out / f"{NAME}.jsonl"
        rows = run_grid(grid, cells, workers=options.workers, report=print_row)
        facts = describe(grid, f"python -m benchmarks.{NAME} {flags(options)}".strip(), rows)
    (options.out / f"{NAME}.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    parts = [
        "# The default defence on fresh scenes\n",
        f"Made by `{facts['command']}` on {'; '.join(facts['made_on'])}; {facts['dtype']}.\n",
        f"Data: {options.scenes} scenes of the validation split, seed {options.seed}, on which no "
        "setting was chosen; each is asked about its clean and its triggered image. "
        f"Checkpoints: {', '.join(f'`{name}`' for name in facts['checkpoints'].values())}. "
        "Figures are percent with 95% Wilson intervals.\n",
    ]
    for target in targets:
        parts += [f"## {target}\n", grid_table([row for row in rows if row["target"] == target])]
    (options.out / f"{NAME}.md").write_text("\n".join(parts))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args(arguments)


def flags(options: argparse.Namespace) -> str:
    default = parse([])
    return " ".join(
        f"--{name} {getattr(options, name)}"
        for name in ("scenes", "seed")
        if getattr(options, name) != getattr(default, name)
    )


if __name__ == "__main__":
    sys.exit(main())
