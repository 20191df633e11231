"""How long one answer takes: plain against fast, and defended against undefended."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from benchmarks.middle import VisualTokens, question
from benchmarks.plain import plain_answer
from benchmarks.speed_settings import PAPER_MASKING, default_level, masking_at
from benchmarks.speed_timing import Bench, Spread, ratios
from purifier.answer import answer_inputs
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV

Part = dict[str, Any]

LARGE: VisualTokens = 2929
_PLAIN_STEPS = 3
_DEMO_QUESTIONS = 8


def undefended(bench: Bench, gen_length: int) -> Part:
    """Plain over fast seconds of an undefended answer, at both image layouts."""
    cells = {str(visual): _cell(bench, visual, gen_length) for visual in get_args(VisualTokens)}
    return {
        **cells[str(LARGE)]["speed_up"],
        "what": f"plain over fast seconds, {gen_length} tokens, {LARGE} visual tokens",
        "cells": cells,
    }


def defended(bench: Bench) -> Part:
    """Defended over undefended seconds of a fast answer, at both levels and on both models."""
    cells = {"demo": _defended_demo(bench)}
    for visual in get_args(VisualTokens):
        cells[str(visual)] = _defended_middle(bench, visual)
    level = default_level()
    return {
        **cells[str(LARGE)][level],
        "what": f"defended over undefended seconds, level {level}, {LARGE} visual tokens",
        "level": level,
        "cells": cells,
    }


def extrapolation(bench: Bench) -> Part:
    """Seconds of a whole plain answer over what a few of its steps foretell."""
    mdlm = bench.middle(LARGE)
    inputs, generation = question(mdlm), bench.exact(32)
    found = bench.pairs(
        "extrapolation",
        {
            "whole": lambda: plain_seconds(mdlm, inputs, generation, None),
            "foretold": lambda: plain_seconds(mdlm, inputs, generation, _PLAIN_STEPS),
        },
        repeats=1,
    )
    return {
        **ratios(found["whole"], found["foretold"]).to_dict(),
        "what": f"seconds of 32 plain steps over those foretold from {_PLAIN_STEPS}, "
        f"{LARGE} visual tokens",
        "seconds": {side: values[0] for side, values in found.items()},
    }


def plain_defended(bench: Bench) -> Part:
    """Plain over fast seconds of an answer under the published defence, 729 visual tokens."""
    mdlm = bench.middle(729)
    inputs, generation = question(mdlm), bench.exact(32)
    steps = plain_steps(bench, generation)
    found = bench.pairs(
        "defended as published",
        {
            "plain": lambda: plain_seconds(mdlm, inputs, generation, steps, PAPER_MASKING),
            "fast": lambda: _fast_seconds(bench, mdlm, inputs, generation, PAPER_MASKING),
        },
    )
    return {
        **ratios(found["plain"], found["fast"]).to_dict(),
        "what": "plain over fast seconds, published defence, 32 tokens, 729 visual tokens",
        "seconds": {side: Spread.of(values).to_dict() for side, values in found.items()},
    }


def _cell(bench: Bench, visual: VisualTokens, gen_length: int) -> dict[str, Any]:
    mdlm = bench.middle(visual)
    inputs, exact = question(mdlm), bench.exact(gen_length)
    steps = plain_steps(bench, exact)
    found = bench.pairs(
        f"undefended, {gen_length} tokens, {visual} visual tokens",
        {
            "plain": lambda: plain_seconds(mdlm, inputs, exact, steps),
            "fast": lambda: _fast_seconds(bench, mdlm, inputs, exact, None),
        },
    )
    fast = answer_inputs(mdlm, inputs, generation=bench.fast(exact))
    return {
        "speed_up": ratios(found["plain"], found["fast"]).to_dict(),
        "seconds": {side: Spread.of(values).to_dict() for side, values in found.items()},
        "positions": inputs.length + gen_length,
        "plain_steps": {"timed": steps or exact.n_steps, "of": exact.n_steps},
        "fast_steps": fast.steps,
    }


def _defended_middle(bench: Bench, visual: VisualTokens) -> dict[str, Any]:
    mdlm = bench.middle(visual)
    return _levels(bench, f"defended, {visual} visual tokens", mdlm, [question(mdlm)])


def _defended_demo(bench: Bench) -> dict[str, Any]:
    mdlm = bench.demo("insertion")
    test_set = read_test_set(DATA_FOLDER, limit=1 if bench.quick else _DEMO_QUESTIONS)
    asked = [
        mdlm.prepare(case.messages(trigger))
        for case in test_set.cases
        for trigger in (None, test_set.trigger)
    ]
    return _levels(bench, "defended, demo", mdlm, asked)


def _levels(bench: Bench, name: str, mdlm: LladaV, asked: list[Inputs]) -> dict[str, Any]:
    """Seconds of the same questions undefended and at both levels, and the quotients."""
    maskings: dict[str, MaskingConfig | None] = {"undefended": None}
    maskings |= {level: masking_at(level) for level in ("token", "patch")}
    generation = bench.exact(32)

    def all_seconds(masking: MaskingConfig | None) -> float:
        return sum(_fast_seconds(bench, mdlm, inputs, generation, masking) for inputs in asked)

    all_seconds(None)
    found = bench.pairs(name, {side: partial(all_seconds, m) for side, m in maskings.items()})
    per_answer = {side: [s / len(asked) for s in values] for side, values in found.items()}
    quotients = {
        level: ratios(found[level], found["undefended"]).to_dict() for level in ("token", "patch")
    }
    return {
        **quotients,
        "rankers": {level: m.ranker for level, m in maskings.items() if m is not None},
        "seconds": {side: Spread.of(values).to_dict() for side, values in per_answer.items()},
        "questions": len(asked),
    }


def _fast_seconds(
    bench: Bench,
    mdlm: LladaV,
    inputs: Inputs,
    generation: GenerationConfig,
    masking: MaskingConfig | None,
) -> float:
    fast = bench.fast(generation)
    return bench.timed(lambda: answer_inputs(mdlm, inputs, generation=fast, masking=masking))


def plain_seconds(
    mdlm: LladaV,
    inputs: Inputs,
    generation: GenerationConfig,
    steps: int | None,
    masking: MaskingConfig | None = None,
) -> float:
    """Seconds of a plain answer; with `steps`, those of its loop foretold from so many of them."""
    made = plain_answer(mdlm, inputs, generation, masking, limit=steps)
    parts = dict(made.timings)
    if not made.finished:
        # Every step is the same full pass over the same number of positions.
        parts["denoise"] *= generation.n_steps / made.steps
    return sum(parts.values())


def plain_steps(bench: Bench, generation: GenerationConfig) -> int | None:
    """Steps of the plain loop that are timed; None: all."""
    if bench.full:
        return None
    return min(1 if bench.quick else _PLAIN_STEPS, generation.n_steps)
