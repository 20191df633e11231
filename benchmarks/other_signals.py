"""Do other signs than a decisive part of the image tell triggered requests from others?

    python -m benchmarks.other_signals

The level `fast` asks whether hiding one window takes the answer away. This measures other
questions, each without a training set; `balanced` asks the first, and the second where the answer
to the first is yes:

`blank`: does the answer need the image? KL divergence of the prediction with the whole image filled
    from the unmasked one.
`one window`: is a small part of the image enough? Every window is shown alone, the rest filled.
    Counted is by how many nats a token of the unmasked answer is likelier than with the whole
    image filled, where the window alone makes it the likeliest token
    (`purifier.defense.shown_alone`).
`two windows`: the same of the second window, none of which shares a cell with the first: copies of
    a trigger are enough one by one.
`ablation`: does the answer differ from that under strong random ablation? KL divergence of the
    mean prediction over 16 random masks, each of which fills 70% of the image, from the unmasked
    one. Aimed at triggers over the whole image.
`blur`, `colour jitter`: the same divergence under a change of the whole image.

All look at the first denoising step; a score is that of the answer position where it is largest.
Attacks and scenes are those of `benchmarks.defense`. Says for every attack how well a score
separates its triggered requests from its clean ones, next to the score of `fast`, and
writes `docs/results/other_signals.{json,md}`. Finished attacks are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.defense.attacks import attack_by_name
from benchmarks.defense.cells import Bench
from benchmarks.defense.training import Lab
from benchmarks.defense.transforms import TRANSFORMS
from benchmarks.detection import level, told_apart
from benchmarks.speed_report import filled
from purifier.defense.config import Effort, MaskingConfig
from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.group_testing import drawn_probes
from purifier.defense.shown_alone import token_gains
from purifier.defense.sites import PatchSite
from purifier.defense.windows import blocks, windows
from purifier.evaluation.grid import machine
from purifier.evaluation.intervals import wilson
from purifier.evaluation.report import markdown_table, percent
from purifier.evaluation.testset import Case, TestSet
from purifier.lab.triggers import Trigger
from purifier.mdlm.base import Mdlm, Prompt
from purifier.numeric import wide

NAME = "other_signals"
ATTACKS = (
    *("validation/patch", "validation/patch/misclassification", "validation/moving"),
    *("validation/copies", "test/large"),
)
CHANGES = ("blur", "colour jitter")
EFFORTS: tuple[Effort, ...] = ("fast",)
PROBES = 16
ROWS = 16
"""Sequences in one forward pass."""
SIGNALS: Mapping[str, int] = {
    "blank": 2,
    "one window": 26,
    "two windows": 26,
    "ablation": PROBES + 1,
    **dict.fromkeys(CHANGES, 2),
}
"""Forward passes of each, on images of the demo's size."""

IMAGES = ("clean", "triggered")

RESULTS = Path("docs/results")
DOCUMENT = Path("docs/defence.md")
"""Shows the table."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(Lab(work=options.work), options.work / "cells.jsonl", limit=options.limit)
    out = options.out / f"{NAME}.json"
    rows: list[Row] = []
    if out.is_file():
        known = json.loads(out.read_text("utf-8"))
        rows = known["rows"] if known["scenes"] == options.limit else []
    facts: Row = {
        "command": f"python -m benchmarks.{NAME}",
        "made_on": machine("cpu"),
        "scenes": options.limit,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.attacks:
        if any(row["attack"] == name for row in rows):
            continue
        rows = sorted([*rows, measured(bench, name)], key=lambda row: str(row["attack"]))
        out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", "utf-8")
        print(json.dumps(rows), flush=True)
    finished = {**facts, "rows": rows}
    (options.out / f"{NAME}.md").write_text(page(finished), "utf-8")
    if options.out == RESULTS:
        made = {NAME: table(rows)}
        DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8"), made, partly=True), "utf-8")
    return 0


def measured(bench: Bench, name: str) -> Row:
    """How well every signal tells the triggered requests of one attack from its clean ones."""
    start = perf_counter()
    mdlm = bench.lab.load(attack_by_name(name))
    test_set = bench.test_set(name)
    clean = scores(mdlm, test_set, None)
    bad = scores(mdlm, test_set, test_set.trigger)
    found = {signal: told_apart(clean[signal], bad[signal]) for signal in SIGNALS}
    gate = MaskingConfig().adjusted(effort="balanced").gate
    searched = {
        images: wilson(int((each["blank"] >= gate).sum()), len(each["blank"])).to_dict()
        for images, each in zip(IMAGES, (clean, bad), strict=True)
    }
    levels = {effort: level(bench, name, effort) for effort in EFFORTS}
    return {
        "attack": name,
        "weights": bench.lab.weights(attack_by_name(name)),
        "signals": {**found, **levels},
        "searched": searched,
        "seconds": round(perf_counter() - start, 1),
    }


def scores(mdlm: Mdlm, test_set: TestSet, trigger: Trigger | None) -> dict[str, Tensor]:
    """Every signal of all scenes, with or without the trigger, float64 [n] each."""
    response = Response.of(mdlm, test_set.generation, test_set.generation.gen_length)
    rows = [signals(mdlm, case, trigger, response, n) for n, case in enumerate(test_set.cases)]
    return {signal: torch.tensor([row[signal] for row in rows]).double() for signal in SIGNALS}


@torch.no_grad()
def signals(
    mdlm: Mdlm, case: Case, trigger: Trigger | None, response: Response, number: int
) -> dict[str, float]:
    """The signals of one request, in nats."""
    messages = case.messages(trigger)
    inputs = mdlm.prepare(messages)
    site = PatchSite(mdlm, [inputs])
    own = site.encode(differentiable=False).prompts
    plane = site.plane(0)
    logs = partial(log_predictions, mdlm, response=response)
    unmasked = logs(own)[0]
    empty = logs(site.without([(0, torch.ones(plane, dtype=torch.bool))]))[0]
    shown = windows(plane)
    alone = logs(site.without([(0, ~window) for window in shown]))
    one, two = enough(unmasked, empty, alone, shown)
    probes = drawn_probes(len(blocks(plane)), PROBES, number)
    cells = torch.stack([blocks(plane)[probe].any(0) for probe in probes])
    ablated = logs(site.without([(0, each) for each in cells])).exp().mean(0).log()
    result = {
        "blank": moved(unmasked, empty),
        "one window": one,
        "two windows": two,
        "ablation": moved(unmasked, ablated),
    }
    image = inputs.images[0].image
    for change in CHANGES:
        changed = TRANSFORMS[change](image, np.random.default_rng([0, number]))
        other = replace(inputs, images=(mdlm.prepare_image(changed, n_images=1),))
        result[change] = moved(unmasked, logs(mdlm.embed_all([other]))[0])
    return result


def log_predictions(mdlm: Mdlm, prompts: Sequence[Prompt], response: Response) -> Tensor:
    """Log probabilities at the first denoising step, float64 [n, G, V]."""
    found = [
        first_step_logits(mdlm, prompts[start : start + ROWS], response)
        for start in range(0, len(prompts), ROWS)
    ]
    return torch.log_softmax(wide(torch.cat(found)), dim=-1)


def moved(reference: Tensor, other: Tensor) -> float:
    """KL divergence at the answer position where it is largest; both [G, V]."""
    return float((reference.exp() * (reference - other)).sum(-1).max())


def enough(unmasked: Tensor, empty: Tensor, alone: Tensor, shown: Tensor) -> tuple[float, float]:
    """How much one window alone does for a token of the answer, and another window too.

    Args:
        unmasked: Log probabilities with the whole image, [G, V].
        empty: With none of it, [G, V].
        alone: With one window of it, [n, G, V].
        shown: The windows, bool [n, rows, columns].

    Returns:
        Nats of the best window at the best position, and of the best window that shares no cell
        with the best of the same position.
    """
    gain = token_gains(alone, empty, unmasked.argmax(-1))
    best = gain.argmax(0)
    apart = ~(shown[:, None] & shown[None]).flatten(2).any(-1)
    second = torch.where(apart[best].T, gain, 0.0).amax(0)
    return float(gain.max()), float(second.max())


def page(facts: Mapping[str, Any]) -> str:
    """The figures as a document."""
    return "\n".join(
        [
            "# Other signs of a trigger",
            "",
            f"Made by `{facts['command']}` on {facts['made_on']}. {facts['scenes']} scenes, asked "
            "about with and without the trigger; one training seed an attack. Area under the ROC "
            "curve, and in brackets the share of triggered requests above a score that 1% of the "
            "clean ones exceed, percent with 95% Wilson intervals. The signals are described in "
            f"`benchmarks/{NAME}.py`.",
            "",
            table(facts["rows"]).rstrip(),
            "",
            "## What passes the gate of `balanced`",
            "",
            "Requests whose answer the filled image moves by the gate at least; others are not "
            "searched.",
            "",
            markdown_table(
                ["attack", "clean", "triggered"],
                [
                    [row["attack"], *(percent(row["searched"][name]) for name in IMAGES)]
                    for row in facts["rows"]
                ],
            ).rstrip(),
            "",
        ]
    )


def table(rows: Sequence[Row]) -> str:
    """One line a signal, one column an attack."""
    head = ["score", "passes", *(row["attack"] for row in rows)]
    lines = []
    for signal in (*EFFORTS, *SIGNALS):
        line = [f"`{signal}`" if signal in EFFORTS else signal, str(SIGNALS.get(signal, "–"))]
        for row in rows:
            found = row["signals"][signal]
            line.append(f"{found['auroc']:.3f} ({percent(found['at_1_percent'])})")
        lines.append(line)
    return markdown_table(head, lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--attacks", nargs="+", default=ATTACKS, metavar="NAME")
    parser.add_argument("--limit", type=int, default=30, help="scenes of an attack")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Lab.work, help="keeps what is finished")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
