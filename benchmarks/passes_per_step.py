"""What newcomers' passes between two steps do to the batch, and to those that run.

    python -m benchmarks.passes_per_step

Eight clients ask the demo model its test set, triggered and not, each its next question as soon as
it has its answer. For every `passes_per_step` of the engine: the mean number of requests in a
denoising step, and processor seconds against one client at a time, all within one run. Writes
`docs/results/passes_per_step.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed_engine import TOGETHER, ask
from benchmarks.speed_timing import machine
from purifier.defense.config import MaskingConfig
from purifier.denoise import FAST
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from server.engine import Engine, Job, Serving

NAME = "passes_per_step"
CHOICES = (1, 2, 4, 8, 64)
MASKINGS = {
    "undefended": None,
    "attention": MaskingConfig().adjusted(ranker="attention"),
    "two-stage": MaskingConfig().adjusted(ranker="two-stage"),
}
_PATIENCE = 3_600.0

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    mdlm = load_mdlm(checkpoint_path("insertion"))
    rows = [row for name in MASKINGS for row in measured(mdlm, name, options.cases)]
    facts = {
        "command": f"python -m benchmarks.{NAME} --cases {options.cases}",
        "made_on": machine("cpu"),
        "questions": 2 * options.cases,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, "rows": rows}, indent=1)
    (options.out / f"{NAME}.json").write_text(text + "\n", "utf-8")
    (options.out / f"{NAME}.md").write_text(report(facts, rows), "utf-8")
    return 0


def measured(mdlm: Mdlm, defence: str, cases: int) -> list[Row]:
    """One defence: one client at a time, then eight with every choice."""
    test_set = read_test_set(DATA_FOLDER, limit=cases)
    jobs = [
        Job(mdlm.prepare(case.messages(trigger)), FAST, MASKINGS[defence])
        for case in test_set.cases
        for trigger in (None, test_set.trigger)
    ]
    alone, expected = run(mdlm, jobs, 1, 1)
    rows = []
    for choice in CHOICES:
        row, texts = run(mdlm, jobs, TOGETHER, choice)
        row |= {
            "defence": defence,
            "cpu_over_alone": row["cpu_seconds"] / alone["cpu_seconds"],
            "same_as_alone": sum(map(str.__eq__, texts, expected)),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def run(mdlm: Mdlm, jobs: Sequence[Job], together: int, choice: int) -> tuple[Row, list[str]]:
    """Answers all jobs with an engine of its own; the texts come in the order of the jobs."""
    serving = Serving(mdlm, "demo@sha256:000000000000", 0)
    engine = Engine(
        lambda: serving, queue_size=TOGETHER, deadline=_PATIENCE, passes_per_step=choice
    )
    engine.start()
    try:
        engine.ready.result(_PATIENCE)
        start = time.process_time()
        texts = [answer.text for answer in ask(engine, jobs, together)]
        spent = time.process_time() - start
        counters = engine.counters
    finally:
        engine.close(_PATIENCE)
    row = {
        "passes_per_step": choice,
        "mean_batch": counters.request_steps / counters.steps,
        "largest_batch": counters.largest_batch,
        "steps_per_answer": counters.request_steps / len(jobs),
        "cpu_seconds": spent,
    }
    return row, texts


def report(facts: Row, rows: Sequence[Row]) -> str:
    """The figures as a document."""
    lines = [
        "# Passes of newcomers between two steps\n",
        f"Made by `{facts['command']}` on "
        + ", ".join(f"{name} {value}" for name, value in facts["made_on"].items())
        + ".\n",
        f"{facts['questions']} questions of the demo's test set, {TOGETHER} clients. CPU: "
        "processor seconds over those of one client at a time, one run each.\n",
        "| defence | passes per step | mean batch | largest | steps per answer | CPU "
        "| same answers |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['defence']} | {row['passes_per_step']} | {row['mean_batch']:.2f} | "
        f"{row['largest_batch']} | {row['steps_per_answer']:.1f} | {row['cpu_over_alone']:.2f} | "
        f"{row['same_as_alone']} of {facts['questions']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--cases", type=int, default=16, help="scenes; each is asked about twice")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
