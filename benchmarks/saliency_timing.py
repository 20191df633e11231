"""Seconds of defended answers over those of fast undefended ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch

from benchmarks.middle import middle_mdlm, question, with_layout
from benchmarks.saliency_settings import SETTINGS, SUSPECTED, UNSUSPECTED
from benchmarks.speed_timing import Spread
from purifier.answer import answer_inputs
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import FAST
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.base import Inputs, Mdlm
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm
from purifier.numeric import seconds

DEMO_QUESTIONS = 8
SLOW = frozenset({"patch occlusion", "patch fisher, 6", "token fisher, 6"})
"""Settings that are timed once on the middle-sized model."""

KINDS: dict[str, dict[str, Any]] = {"nothing suspected": UNSUSPECTED, "suspected": SUSPECTED}

Work = tuple[str, Callable[[], Any]]


def cost_cells(device: str, repeats: int) -> Iterator[Work]:
    """The cells of the part `cost`."""
    for name, setting in sorted(SETTINGS.items(), key=lambda entry: entry[0] in SLOW):
        if setting.as_dear_as is None:
            times = 1 if name in SLOW else repeats
            for kind, change in KINDS.items() if setting.gated else [("", {})]:
                masking = replace(setting.masking, **change)
                yield (
                    setting.middle_cell(name, kind),
                    partial(_middle, device, masking, times),
                )
        for triggered in (False, True):
            yield (
                f"demo, {name}, {'triggered' if triggered else 'clean'}",
                partial(_demo, device, setting.masking, triggered, repeats),
            )


def _middle(device: str, masking: MaskingConfig, repeats: int) -> dict[str, Any]:
    mdlm = _middle_model(device)
    return _pair(mdlm, [question(mdlm)], masking, repeats)


def _demo(device: str, masking: MaskingConfig, triggered: bool, repeats: int) -> dict[str, Any]:
    mdlm = _demo_model(device)
    test = read_test_set(DATA_FOLDER, limit=DEMO_QUESTIONS)
    trigger = test.trigger if triggered else None
    inputs = [mdlm.prepare(case.messages(trigger)) for case in test.cases]
    return _pair(mdlm, inputs, masking, repeats)


def _pair(
    mdlm: Mdlm, inputs: Sequence[Inputs], masking: MaskingConfig, repeats: int
) -> dict[str, Any]:
    """Both sides in turn; one warm-up of the undefended one."""
    answer_inputs(mdlm, inputs[0], generation=FAST)
    plain, defended = [], []
    parts: dict[str, float] = {}
    for _ in range(repeats):
        start = clock(mdlm.device)
        for item in inputs:
            answer_inputs(mdlm, item, generation=FAST)
        middle = clock(mdlm.device)
        answers = [answer_inputs(mdlm, i, generation=FAST, masking=masking) for i in inputs]
        defended.append(clock(mdlm.device) - middle)
        plain.append(middle - start)
        parts = {
            "steps": sum(answer.steps for answer in answers) / len(answers),
            "masked": sum(
                bool(answer.masked.any()) for answer in answers if answer.masked is not None
            ),
        }
    return {
        "ratio": Spread.of([d / p for d, p in zip(defended, plain, strict=True)]).to_dict(),
        "undefended_seconds": Spread.of([p / len(inputs) for p in plain]).to_dict(),
        "defended_seconds": Spread.of([d / len(inputs) for d in defended]).to_dict(),
        "requests": len(inputs),
        **parts,
    }


def clock(device: torch.device) -> float:
    """Processor seconds of this process on a CPU, else a clock that waits for the device."""
    return time.process_time() if device.type == "cpu" else seconds(device)


@lru_cache(maxsize=1)
def _middle_model(device: str) -> LladaV:
    return with_layout(middle_mdlm(device=device), 2929)


@lru_cache(maxsize=1)
def _demo_model(device: str) -> Mdlm:
    return load_mdlm(checkpoint_path("misclassification"), device=device)
