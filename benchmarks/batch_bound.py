"""What stepping requests together can gain at most: a pass of several against as many of one.

    python -m benchmarks.batch_bound                      # about two minutes on two cores
    python -m benchmarks.batch_bound --device cuda --dtype bfloat16 --out DIR

Three kinds of passes are timed, with 1, 2, 4 and 8 requests in them: what begins a defended request
(encoding, saliency, encoding of the masked image), a denoising step over the whole sequence, and a
step on stored keys and values of the prompt. The gain is the time of as many passes of one request
over that of the pass of all: 1 where a pass is bound by arithmetic, the number of requests
where company is free. Writes docs/results/batch_bound.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.middle import question
from benchmarks.speed_timing import Bench, Spread, machine, ratios
from purifier.answer import begin_batch
from purifier.defense.config import MaskingConfig
from purifier.denoise import FAST, DenoisingState, denoising_step
from purifier.evaluation.report import markdown_table
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV

RESULTS = Path("docs/results")
NAME = "batch_bound"
SIZES = (1, 2, 4, 8)

GENERATION = replace(FAST, gen_length=32, parallel_threshold=1.0, stop=())
"""One token a step and no stop sequence: nobody ends while its steps are timed."""

KINDS = ("begin, defended", "step, whole sequence", "step, stored prompt")
_STEPS_ON_STORED = GENERATION.prompt_interval - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    shown = sys.argv[1:] if arguments is None else arguments
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(options.device, options.dtype, options.repeats, size=options.size, tell=_tell)
    result = {
        "command": " ".join(["python -m benchmarks.batch_bound", *shown]),
        "machine": machine(options.device),
        "dtype": options.dtype,
        "repeats": options.repeats,
        "models": {name: measured(bench, name, mdlm, asked) for name, mdlm, asked in loads(bench)},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(result))
    print(markdown(result))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--size", choices=("middle", "small"), default="middle")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def loads(bench: Bench) -> list[tuple[str, LladaV, list[Inputs]]]:
    """Models with eight requests each."""
    demo, middle = bench.demo("insertion"), bench.middle(729)
    cases = read_test_set(DATA_FOLDER, limit=max(SIZES)).cases
    return [
        ("demo", demo, [demo.prepare(case.messages(None)) for case in cases]),
        (f"{bench.size}, 729 visual tokens", middle, [question(middle, n) for n in range(8)]),
    ]


def measured(
    bench: Bench, name: str, mdlm: LladaV, asked: Sequence[Inputs]
) -> dict[str, dict[str, Any]]:
    """Per kind of pass: seconds and gain by number of requests."""
    took: dict[str, dict[int, list[float]]] = {kind: {n: [] for n in SIZES} for kind in KINDS}
    pass_seconds(bench, mdlm, asked[:1])
    for turn in range(bench.repeats):
        for size in SIZES:
            spent = pass_seconds(bench, mdlm, asked[:size])
            for kind, seconds in zip(KINDS, spent, strict=True):
                took[kind][size].append(seconds)
        bench.tell(f"{name}, {turn + 1} of {bench.repeats}")
    return {
        kind: {
            str(size): {
                "seconds": Spread.of(by_size[size]).to_dict(),
                "gain": ratios([size * one for one in by_size[1]], by_size[size]).to_dict(),
            }
            for size in SIZES
        }
        for kind, by_size in took.items()
    }


def pass_seconds(bench: Bench, mdlm: LladaV, asked: Sequence[Inputs]) -> tuple[float, float, float]:
    """Seconds of every kind of pass over some requests."""
    begun = bench.timed(lambda: begin_batch(mdlm, asked, GENERATION, MaskingConfig()))
    with torch.no_grad():
        prompts = mdlm.embed_all(asked)
    states = [DenoisingState(mdlm, prompt, GENERATION) for prompt in prompts]
    first = bench.timed(lambda: denoising_step(mdlm, states))
    later = bench.timed(lambda: [denoising_step(mdlm, states) for _ in range(_STEPS_ON_STORED)])
    return begun, first, later / _STEPS_ON_STORED


def bound_table(result: Mapping[str, Any]) -> str:
    """The gain of every kind of pass, by number of requests."""
    sizes = [str(size) for size in SIZES]
    header = ["model", "pass", "one alone, ms", *(f"{size} together" for size in sizes[1:])]
    rows = []
    for model, kinds in result.get("models", {}).items():
        for kind, found in kinds.items():
            alone = 1000 * found["1"]["seconds"]["value"]
            gains = [found[size]["gain"] for size in sizes[1:]]
            shown = [f"{g['value']:.2f} ({g['low']:.2f} to {g['high']:.2f})" for g in gains]
            rows.append([model, kind, f"{alone:.3g}", *shown])
    return markdown_table(header, rows)


def markdown(result: Mapping[str, Any]) -> str:
    """The report beside the figures."""
    facts = result["machine"]
    return (
        "# What stepping together can gain at most\n\n"
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, device "
        f"{facts['device']}, {result['dtype']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}; median of {result['repeats']} (lowest to highest). "
        f"`{result['command']}`\n\n"
        "Time of as many passes of one request over that of one pass of all: 1 where passes are "
        "bound by arithmetic, the number of requests where company is free. Fast settings, "
        "except that every step commits one token.\n\n"
        f"{bound_table(result)}"
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
