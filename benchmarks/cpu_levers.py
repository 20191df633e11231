"""What lower precision and compilation are worth on a CPU, each a ratio from one run.

    python -m benchmarks.cpu_levers                   # minutes on two cores

The same fast answer of the middle-sized model in float32, in bfloat16, and with every decoder
layer's feed-forward block compiled (`torch.compile`); and the share of the demo's answers that
bfloat16 leaves as they are.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.middle import (
    SMALL_TEXT,
    SMALL_VISION,
    SMALL_VOCABULARY,
    middle_mdlm,
    question,
    with_layout,
)
from benchmarks.speed_timing import Bench, Spread, machine, matrix_peak, ratios
from purifier.answer import answer_batch, answer_inputs
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import FAST
from purifier.evaluation.intervals import wilson
from purifier.evaluation.report import markdown_table, percent
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm

RESULTS = Path("docs/results")
NAME = "cpu_levers"
BACKEND = "inductor"
"""Of `torch.compile`."""
_BATCH = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--records", type=int, default=60, help="of the demo's test set")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--size", choices=("middle", "small"), default="middle")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(repeats=options.repeats, size=options.size, tell=_tell)
    result = {
        "command": "python -m benchmarks.cpu_levers",
        "machine": machine("cpu"),
        "repeats": options.repeats,
        "peak_gflops": {dtype: matrix_peak("cpu", dtype) for dtype in ("float32", "bfloat16")},
        "answers": {str(visual): answers(bench, visual) for visual in (729, 2929)},
        "same_in_bfloat16": same_answers(options.records),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{NAME}.md").write_text(markdown(result))
    print(markdown(result))
    return 0


def answers(bench: Bench, visual: Any) -> dict[str, Any]:
    """Seconds of a fast answer with every lever, and the ratios to float32 without one."""
    sizes: dict[str, Any] = {}
    if bench.size == "small":
        sizes = {"vision": SMALL_VISION, "text": SMALL_TEXT, "vocabulary": SMALL_VOCABULARY}
    models = {
        "float32": with_layout(middle_mdlm(**sizes), visual),
        "bfloat16": with_layout(middle_mdlm(dtype=torch.bfloat16, **sizes), visual),
    }
    models["float32, compiled"] = compiled(models["float32"])
    models["bfloat16, compiled"] = compiled(models["bfloat16"])
    asked = question(models["float32"])
    runs = {
        name: (lambda mdlm=mdlm: bench.timed(lambda: answer_inputs(mdlm, asked, generation=FAST)))
        for name, mdlm in models.items()
    }
    for run in runs.values():
        run()  # compiles, and lets kernels be chosen
    found = bench.pairs(f"{visual} visual tokens", runs)
    return {
        name: {
            "seconds": Spread.of(seconds).to_dict(),
            "speed_up": ratios(found["float32"], seconds).to_dict(),
        }
        for name, seconds in found.items()
    }


def compiled(mdlm: LladaV) -> LladaV:
    """The model with compiled feed-forward blocks and norms; the given one stays as it is."""
    modules = copy.deepcopy(mdlm.modules)
    for layer in modules.language_model.layers:
        layer.mlp = torch.compile(layer.mlp, dynamic=True, backend=BACKEND)
        layer.input_layernorm = torch.compile(layer.input_layernorm, dynamic=True, backend=BACKEND)
        layer.post_attention_layernorm = torch.compile(layer.post_attention_layernorm, dynamic=True)
    other = mdlm.with_modules(modules)
    other.config = mdlm.config
    return other


def same_answers(records: int) -> dict[str, Any]:
    """Share of the demo's answers, clean and triggered, that are the same in bfloat16."""
    test_set = read_test_set(DATA_FOLDER, limit=records)
    found: dict[str, Any] = {}
    models = [load_mdlm(checkpoint_path("insertion"), dtype=d) for d in ("float32", "bfloat16")]
    for name, masking in (("undefended", None), ("defended", MaskingConfig())):
        same = 0
        total = 0
        for trigger in (None, test_set.trigger):
            for start in range(0, len(test_set.cases), _BATCH):
                asked = [
                    models[0].prepare(case.messages(trigger))
                    for case in test_set.cases[start : start + _BATCH]
                ]
                full, half = (
                    answer_batch(mdlm, asked, generation=FAST, masking=masking) for mdlm in models
                )
                same += sum(a.text == b.text for a, b in zip(full, half, strict=True))
                total += len(asked)
        found[name] = wilson(same, total).to_dict()
    return found


def levers_table(result: Mapping[str, Any]) -> str:
    """Seconds of a fast answer with every lever; empty without a result."""
    rows = []
    for visual, sides in result.get("answers", {}).items():
        for name, cell in sides.items():
            spent, gain = cell["seconds"], cell["speed_up"]
            rows.append(
                [
                    visual,
                    name,
                    f"{spent['value']:.3g} ({spent['low']:.3g} to {spent['high']:.3g})",
                    f"{gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})",
                ]
            )
    return markdown_table(["visual tokens", "how", "seconds", "float32 over it"], rows)


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    facts = result["machine"]
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in result["peak_gflops"].items())
    kept = [
        [name, percent(share), str(share["n"])]
        for name, share in result["same_in_bfloat16"].items()
    ]
    return (
        "# bfloat16 and compilation on a CPU\n\n"
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, torch "
        f"{facts['torch']}; GFLOP/s of a large matrix product: {peaks}. "
        f"`{result['command']}`\n\n"
        "A fast, undefended answer of 32 tokens, middle-sized model, "
        f"{result['repeats']} repeats.\n\n{levers_table(result)}\n"
        "Answers of the demo (insertion; clean and triggered) that bfloat16 leaves as they are, "
        "word by word, in percent with 95% Wilson intervals:\n\n"
        f"{markdown_table(['defence', 'the same', 'n'], kept)}"
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
