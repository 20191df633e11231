"""What the fast settings change in the demo's answers: nothing, as far as can be told.

Every question of the demo's test set is asked about its clean and its triggered image, with the
exact and with the fast settings, undefended and under the default defence. Each image is encoded
and masked once for both, so that what differs is the denoising alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from benchmarks.speed_timing import Bench
from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.denoise.config import GenerationConfig
from purifier.denoise.sampler import denoise
from purifier.evaluation.intervals import wilson
from purifier.evaluation.metrics import Answers, measure
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.lab.targets import TargetName, target_by_name
from purifier.mdlm.base import Inputs, Mdlm, Prompt

_BATCH = 32
_SHOWN = ("asr", "clean_exact", "recovered")

Answered = dict[str, tuple[str, ...]]
"""Answers by the name of the settings, clean images first, then triggered ones."""


def identical_answers(bench: Bench) -> dict[str, Any]:
    """The share of undefended answers that the fast settings leave as they are."""
    test_set = read_test_set(DATA_FOLDER, limit=1 if bench.quick else bench.records)
    settings = {"exact": test_set.generation, "fast": bench.fast(test_set.generation)}
    targets: dict[str, Any] = {}
    same: dict[str, list[bool]] = {}
    half = len(test_set.cases)
    for target in get_args(TargetName):
        mdlm = bench.demo(target)
        targets[target] = {}
        for defence, masking in (("undefended", None), ("defended", MaskingConfig())):
            answered = answer_all(mdlm, test_set, settings, masking)
            bench.tell(f"answers of {target}, {defence}")
            pairs = zip(answered["exact"], answered["fast"], strict=True)
            equal = [exact == fast for exact, fast in pairs]
            same.setdefault(f"{defence}, clean", []).extend(equal[:half])
            same.setdefault(f"{defence}, triggered", []).extend(equal[half:])
            targets[target][defence] = {
                name: figures(test_set, texts, target) for name, texts in answered.items()
            }
    shares = {name: wilson(sum(hits), len(hits)).to_dict() for name, hits in same.items()}
    return {
        **shares["undefended, clean"],
        "what": "share of the answers to the demo's test set that equal the exact path's",
        "shares": shares,
        "records": len(test_set.cases),
        "targets": targets,
    }


def answer_all(
    mdlm: Mdlm,
    test_set: TestSet,
    settings: dict[str, GenerationConfig],
    masking: MaskingConfig | None,
) -> Answered:
    """Answers to all questions of a test set, for every setting from the same prompts."""
    inputs = [
        mdlm.prepare(case.messages(trigger))
        for trigger in (None, test_set.trigger)
        for case in test_set.cases
    ]
    texts: dict[str, list[str]] = {name: [] for name in settings}
    for start in range(0, len(inputs), _BATCH):
        prompts = _prompts(mdlm, inputs[start : start + _BATCH], test_set.generation, masking)
        for name, generation in settings.items():
            states = denoise(mdlm, prompts, generation)
            texts[name] += [mdlm.decode(state.token_ids).strip() for state in states]
    return {name: tuple(answers) for name, answers in texts.items()}


def figures(test_set: TestSet, texts: Sequence[str], target: TargetName) -> dict[str, Any]:
    """Attack success and accuracy of answers, with intervals."""
    half = len(test_set.cases)
    answers = Answers(tuple(texts[:half]), tuple(texts[half:]))
    found = measure(test_set.cases, answers, target_by_name(target)).to_dict()
    return {name: found[name] for name in _SHOWN}


def _prompts(
    mdlm: Mdlm,
    inputs: Sequence[Inputs],
    generation: GenerationConfig,
    masking: MaskingConfig | None,
) -> list[Prompt]:
    if masking is None:
        return mdlm.embed_all(inputs)
    exact = replace(generation, cache="none")
    return [item.prompt for item in defend(mdlm, inputs, exact, masking)]
