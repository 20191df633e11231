"""What an answer costs at every level of effort, and with a detector.

    python -m benchmarks.effort_cost --repeats 3

Asks the demo's model of four copies its test set, one question at a time, about clean and about
triggered images: undefended, at every level of effort, and with the detector that the checkpoint
carries. All run in turn, again and again; a ratio is that of neighbouring runs. Writes
`docs/results/effort_cost.{json,md}` and fills the table in `docs/defence.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.speed_report import filled
from benchmarks.speed_timing import Bench, Spread, machine, ratios
from purifier.answer import answer_inputs
from purifier.defense.config import Effort, MaskingConfig
from purifier.denoise import FAST
from purifier.evaluation.report import markdown_table
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.lab.demo_attacks import DEMO_ATTACKS
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV

NAME = "effort_cost"
MODEL = "copies"
WITH_DETECTOR = "fast and detector"
RESULTS = Path("docs/results")
DOCUMENT = Path("docs/defence.md")
"""Shows the table."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(repeats=options.repeats, tell=lambda text: print(text, flush=True))
    facts = {
        "command": f"python -m benchmarks.{NAME} --repeats {options.repeats}",
        "made_on": machine("cpu"),
        "scenes": options.scenes,
        "rows": measured(bench, options.scenes),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    (options.out / f"{NAME}.md").write_text(page(facts), "utf-8")
    if options.out == RESULTS:
        made = {NAME: table(facts["rows"])}
        DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8"), made, partly=True), "utf-8")
    return 0


def measured(bench: Bench, scenes: int) -> list[Row]:
    """One row a level: its seconds, and its ratio to undefended answers."""
    mdlm = bench.demo(MODEL)
    cases = read_test_set(DATA_FOLDER, limit=scenes).cases
    trigger = DEMO_ATTACKS[MODEL].deployed
    asked = {
        "clean": [mdlm.prepare(case.messages(None)) for case in cases],
        "triggered": [mdlm.prepare(case.messages(trigger)) for case in cases],
    }
    maskings: dict[str, MaskingConfig | None] = {"undefended": None}
    maskings |= {effort: MaskingConfig().adjusted(effort=effort) for effort in get_args(Effort)}
    maskings[WITH_DETECTOR] = MaskingConfig()
    rows: dict[str, Row] = {side: {"defence": side} for side in maskings}
    for images, inputs in asked.items():
        sides = {
            side: partial(seconds, bench, mdlm, inputs, side, m) for side, m in maskings.items()
        }
        sides["undefended"]()
        found = bench.pairs(f"{MODEL}, {images}", sides)
        for side, values in found.items():
            rows[side][images] = {
                "seconds": Spread.of([value / len(inputs) for value in values]).to_dict(),
                "ratio": ratios(values, found["undefended"]).to_dict(),
            }
    return list(rows.values())


def seconds(
    bench: Bench,
    mdlm: LladaV,
    asked: Sequence[Inputs],
    side: str,
    masking: MaskingConfig | None,
) -> float:
    """Seconds of all answers under one defence."""
    detector = mdlm.detector
    mdlm.detector = detector if side == WITH_DETECTOR else None
    try:
        return sum(
            bench.timed(partial(answer_inputs, mdlm, inputs, generation=FAST, masking=masking))
            for inputs in asked
        )
    finally:
        mdlm.detector = detector


def page(facts: Row) -> str:
    """The figures as a document."""
    made_on = ", ".join(f"{name} {value}" for name, value in facts["made_on"].items())
    return "\n".join(
        [
            "# What the levels of effort cost\n",
            f"Made by `{facts['command']}` on {made_on}.\n",
            f"{facts['scenes']} questions of the demo's test set to its model `{MODEL}`, clean and "
            "triggered by four patches, one at a time, 32 tokens. Ratios to the undefended answer "
            "and milliseconds, median (lowest to highest) over "
            f"{facts['rows'][0]['clean']['ratio']['n']} runs.\n",
            table(facts["rows"]),
        ]
    )


def table(rows: Sequence[Row]) -> str:
    """One line a level."""
    head = ["defence", "clean, ratio", "clean, ms", "triggered, ratio", "triggered, ms"]
    lines = [
        [
            row["defence"],
            *(
                shown
                for images in ("clean", "triggered")
                for shown in (
                    _spread(row[images]["ratio"], 1.0),
                    _spread(row[images]["seconds"], 1000.0),
                )
            ),
        ]
        for row in rows
    ]
    return markdown_table(head, lines) + "\n"


def _spread(spread: Row, scale: float) -> str:
    values = [scale * spread[name] for name in ("value", "low", "high")]
    middle, low, high = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values)
    return f"{middle} ({low} to {high})"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
