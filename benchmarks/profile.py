"""Where the time of an answer goes, by part of the model, against the machine's peak.

    python -m benchmarks.profile                      # about two minutes on two cores
    python -m benchmarks.profile --out docs/results   # profile.{json,md}

The peak is the best rate of a large matrix product, measured in the same run. A part that is far
below it waits for memory or for many small calls; one that is near it can only do less.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.middle import question
from benchmarks.plain import plain_answer
from benchmarks.profile_parts import PARTS, Profile, observed
from benchmarks.speed_settings import CHANGES
from benchmarks.speed_timing import Bench, machine, matrix_peak
from purifier.answer import answer_batch
from purifier.defense.config import MaskingConfig
from purifier.evaluation.report import markdown_table
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV

NAME = "profile"
_PLAIN_STEPS = 2
_TOGETHER = 8

Case = tuple[LladaV, Callable[[], object]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = run(options)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / f"{NAME}.md").write_text(markdown(result))
    print(json.dumps(result) if options.json else profile_table(result))
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Profiles every case after a first, unobserved run."""
    bench = Bench(
        device=options.device, dtype=options.dtype, size=options.size, changes=dict(CHANGES)
    )
    facts = machine(options.device)
    peak = 0.0
    timed: dict[str, tuple[float, Profile]] = {}
    for name, make in case_makers(bench).items():
        mdlm, work = make()
        work()
        peak = max(peak, matrix_peak(options.device, options.dtype))
        timed[name] = (bench.timed(work), observed(mdlm, work))
        print(f"{name}: {timed[name][0]:.2f} s", file=sys.stderr, flush=True)
    cases = {
        name: {
            "unobserved_seconds": unobserved,
            "seconds": profile.wall,
            "parts": profile.to_dict(peak),
        }
        for name, (unobserved, profile) in timed.items()
    }
    return {
        "command": "python -m benchmarks.profile",
        "machine": facts,
        "settings": {"dtype": options.dtype, "size": options.size, "generation": dict(CHANGES)},
        "peak_gflops": peak,
        "plain_steps": _PLAIN_STEPS,
        "cases": cases,
    }


def case_makers(bench: Bench) -> dict[str, Callable[[], Case]]:
    """What is profiled, by name; each is made when its turn comes."""
    return {
        f"plain, 2929 visual tokens, {_PLAIN_STEPS} steps": partial(_plain, bench),
        "fast, 2929 visual tokens": partial(_middle, bench, 2929, 1, None),
        "fast and defended, 2929 visual tokens": partial(_middle, bench, 2929, 1, MaskingConfig()),
        "fast, 729 visual tokens": partial(_middle, bench, 729, 1, None),
        f"fast, 729 visual tokens, {_TOGETHER} at once": partial(
            _middle, bench, 729, _TOGETHER, None
        ),
        "fast, demo": partial(_demo, bench, 1),
        f"fast, demo, {_TOGETHER} at once": partial(_demo, bench, _TOGETHER),
    }


def profile_table(result: Mapping[str, Any]) -> str:
    """Shares of every case's time, and in brackets how near its products come to the peak."""
    if not result:
        return markdown_table(["case", "seconds", *PARTS], [])
    rows = []
    for name, case in result["cases"].items():
        cells = [_cell(case["parts"][part]) for part in PARTS]
        rows.append([name, f"{case['unobserved_seconds']:.2f}", *cells])
    return markdown_table(["case", "seconds", *PARTS], rows)


def markdown(result: Mapping[str, Any]) -> str:
    """The report beside the figures."""
    facts, settings = result["machine"], result["settings"]
    changes = ", ".join(f"{name} {value}" for name, value in settings["generation"].items())
    return (
        "# Where the time goes\n\n"
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, device "
        f"{facts['device']}, {settings['dtype']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}; fast settings: {changes}. Peak of a large matrix product: "
        f"{result['peak_gflops']:.0f} GFLOP/s. `{result['command']}`\n\n"
        "Percent of the time; in brackets how much of the peak a part's products reach.\n\n"
        f"{profile_table(result)}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--size", choices=("middle", "small"), default="middle")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write profile.json and .md here")
    return parser.parse_args(arguments)


def _plain(bench: Bench) -> Case:
    mdlm = bench.middle(2929)
    inputs = question(mdlm)
    return mdlm, lambda: plain_answer(mdlm, inputs, bench.exact(32), limit=_PLAIN_STEPS)


def _middle(bench: Bench, visual: Any, count: int, masking: MaskingConfig | None) -> Case:
    mdlm = bench.middle(visual)
    return _answers(bench, mdlm, [question(mdlm, number) for number in range(count)], masking)


def _demo(bench: Bench, count: int) -> Case:
    mdlm = bench.demo("insertion")
    cases = read_test_set(DATA_FOLDER, limit=count).cases
    return _answers(bench, mdlm, [mdlm.prepare(case.messages()) for case in cases], None)


def _answers(
    bench: Bench, mdlm: LladaV, asked: Sequence[Inputs], masking: MaskingConfig | None
) -> Case:
    generation = bench.fast(bench.exact(32))
    return mdlm, lambda: answer_batch(mdlm, asked, generation=generation, masking=masking)


def _cell(part: Mapping[str, Any]) -> str:
    share = f"{100 * part['share']:.0f}%"
    return share if part["of_peak"] is None else f"{share} ({100 * part['of_peak']:.0f}%)"


if __name__ == "__main__":
    sys.exit(main())
