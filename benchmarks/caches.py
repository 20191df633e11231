"""What each cache and threshold gains, and what it changes: `python -m benchmarks.caches`.

Every setting answers the demo's test set about clean and triggered images, undefended and under
the default defence, each image encoded and masked once for all settings. Told are the answers
that equal the exact path's, accuracy and attack success, denoising steps, and the time of an
answer over that of the exact path, on the demo and on the middle-sized random model. Writes
docs/results/caches.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.middle import question
from benchmarks.speed_agreement import answer_all, figures
from benchmarks.speed_timing import Bench, machine, ratios
from purifier.defense.config import MaskingConfig
from purifier.denoise import EXACT, FAST, GenerationConfig, denoise
from purifier.evaluation.intervals import wilson
from purifier.evaluation.report import markdown_table, percent
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.lab.targets import TargetName
from purifier.mdlm.base import Mdlm, Prompt

RESULTS = Path("docs/results")
NAME = "caches"

SETTINGS: Mapping[str, GenerationConfig] = {
    "exact": EXACT,
    **{
        f"{cache}, every {interval}": replace(EXACT, cache=cache, prompt_interval=interval)
        for cache in ("prefix", "dual")
        for interval in (4, 8, 16, 32)
    },
    "dllm, 25/7/0.25": replace(EXACT, cache="dllm"),
    **{
        f"threshold {threshold}": replace(EXACT, parallel_threshold=threshold)
        for threshold in (0.8, 0.9, 0.95, 0.99)
    },
    "fast": FAST,
}
"""Names of the tables' rows; `fast` is the product's default."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(repeats=options.repeats, tell=_tell)
    test_set = read_test_set(DATA_FOLDER, limit=options.records)
    targets = {target: measured(bench, test_set, target) for target in get_args(TargetName)}
    facts = {
        "command": f"python -m benchmarks.{NAME} --records {options.records} "
        f"--repeats {options.repeats} --threads {options.threads}",
        "machine": machine("cpu"),
        "masking": MaskingConfig().__dict__,
        "records": len(test_set.cases),
        "targets": targets,
        "steps_and_time": timed(bench, test_set, options.timed),
    }
    (options.out / f"{NAME}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(facts))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=100, help="of the demo's test set")
    parser.add_argument("--timed", type=int, default=24, help="demo questions that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def measured(bench: Bench, test_set: TestSet, target: TargetName) -> dict[str, Any]:
    """Of every setting the answers kept, accuracy and attack success of one target's model."""
    mdlm = bench.demo(target)
    result: dict[str, Any] = {name: {} for name in SETTINGS}
    for defence, masking in (("undefended", None), ("defended", MaskingConfig())):
        answered = answer_all(mdlm, test_set, dict(SETTINGS), masking)
        bench.tell(f"answers of {target}, {defence}")
        for name, texts in answered.items():
            same = sum(a == b for a, b in zip(texts, answered["exact"], strict=True))
            result[name][defence] = {
                "same": wilson(same, len(texts)).to_dict(),
                **figures(test_set, texts, target),
            }
    return result


def timed(bench: Bench, test_set: TestSet, count: int) -> dict[str, Any]:
    """Of every setting the time of an undefended answer over the exact path's, one at a time."""
    demo = bench.demo("insertion")
    asked = [
        demo.prepare(case.messages(trigger))
        for case in test_set.cases[: count // 2]
        for trigger in (None, test_set.trigger)
    ]
    middle = bench.middle(729)
    with torch.no_grad():
        prompts = {
            "demo": (demo, demo.embed_all(asked)),
            "middle": (middle, [middle.embed(question(middle))]),
        }
    return {name: _times(bench, name, *given) for name, given in prompts.items()}


def _times(bench: Bench, model: str, mdlm: Mdlm, prompts: Sequence[Prompt]) -> dict[str, Any]:
    steps: dict[str, float] = {}

    def run(name: str) -> float:
        def answer() -> None:
            states = [denoise(mdlm, [prompt], SETTINGS[name])[0] for prompt in prompts]
            steps[name] = sum(state.steps_run for state in states) / len(states)

        return bench.timed(answer)

    sides = {name: (lambda name=name: run(name)) for name in SETTINGS}
    found = bench.pairs(model, sides)
    return {
        name: {
            "steps": round(steps[name], 2),
            "speed_up": ratios(found["exact"], seconds).to_dict(),
            "milliseconds": round(1000 * min(seconds) / len(prompts), 1),
        }
        for name, seconds in found.items()
    }


def markdown(facts: Mapping[str, Any]) -> str:
    """The result as a page."""
    where = facts["machine"]
    parts = [
        "# Caches and parallel unmasking\n",
        f"Made by `{facts['command']}` on {where['processor']}, {where['threads']} threads, torch "
        f"{where['torch']}. Data: {facts['records']} records of the demo's test set, each asked "
        "about its clean and its triggered image; 32 tokens in one block. Shares are percent with "
        "95% Wilson intervals; `kept` counts answers that equal the exact path's. `fast` is "
        f"{_described(FAST)}. Speed-ups are of denoising alone, undefended, one request at a time: "
        "median [lowest, highest]. `every` counts committed tokens, of `dllm` steps.\n",
        "## Time\n",
        markdown_table(
            ["setting", "demo: steps", "demo: ms", "demo: speed-up", "middle: steps",
             "middle: speed-up"],
            [
                [
                    name,
                    *(str(facts["steps_and_time"]["demo"][name][key])
                      for key in ("steps", "milliseconds")),
                    _times_of(facts["steps_and_time"]["demo"][name]["speed_up"]),
                    str(facts["steps_and_time"]["middle"][name]["steps"]),
                    _times_of(facts["steps_and_time"]["middle"][name]["speed_up"]),
                ]
                for name in SETTINGS
            ],
        ),
    ]  # fmt: skip
    for target, rows in facts["targets"].items():
        header = ["setting"]
        for defence in ("undefended", "defended"):
            header += [f"{defence}: kept", "ASR", "clean exact"]
        body = [
            [
                name,
                *(
                    percent(row[defence][key])
                    for defence in ("undefended", "defended")
                    for key in ("same", "asr", "clean_exact")
                ),
            ]
            for name, row in rows.items()
        ]
        parts += [f"## {target}\n", markdown_table(header, body)]
    return "\n".join(parts)


def _times_of(spread: Mapping[str, float]) -> str:
    return f"{spread['value']:.2f} [{spread['low']:.2f}, {spread['high']:.2f}]"


def _described(config: GenerationConfig) -> str:
    return (
        f"`{config.cache}` every {config.prompt_interval} committed tokens and threshold "
        f"{config.parallel_threshold:g}"
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
