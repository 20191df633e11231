"""Speed of single answers: the published path against the product, defended and undefended.

Random weights are never surer than a threshold, so the number of tokens that a forward pass
commits is set: one, and the 2.8 that a trained LLaDA reaches with parallel unmasking (Fast-dLLM,
arXiv 2505.22618), as steps of the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.gpu.hardware import peaks
from benchmarks.gpu.run import Run
from benchmarks.profile_parts import observed
from benchmarks.speed_answers import plain_seconds
from benchmarks.speed_settings import BLOCK, CHANGES, PAPER_MASKING, masking_at
from benchmarks.speed_timing import Spread, ratios
from purifier.answer import answer_inputs, begin_batch, finish
from purifier.defense.config import MaskingConfig
from purifier.denoise import denoising_step
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.numeric import seconds

TRAINED_TOKENS_A_PASS = 2.8
DEFENCES = ("undefended", "token", "patch")
_STORED_STEPS = 6


@dataclass(frozen=True)
class Times:
    """One answer, in seconds from its beginning.

    Attributes:
        first_block: Until the first block was whole.
        total: Until the answer was.
        begun: Encoding, saliency and masking.
        passes: Denoising steps.
        tokens: Tokens of the answer.
    """

    first_block: float
    total: float
    begun: float
    passes: int
    tokens: int


def measure(run: Run) -> None:
    """Every cell, the ones that goals depend on first."""
    run.put("peaks", peaks(run.device, run.dtype))
    mdlm = run.load()
    inputs = run.question(mdlm)
    answer_inputs(mdlm, inputs, generation=_fast(run.shape.lengths[0]))  # kernels are chosen
    run.put("positions", {"prompt": inputs.length, "visual": inputs.images[0].n_tokens})
    for length in reversed(run.shape.lengths):
        run.measure(
            f"undefended, {length} tokens", 20, partial(over_plain, run, mdlm, inputs, length)
        )
    length = run.shape.lengths[0]
    run.measure("defence", 15, partial(over_undefended, run, mdlm, inputs, length))
    for defence in DEFENCES:
        for length in run.shape.lengths:
            for pace in ("one", "trained"):
                name = f"answer, {defence}, {length} tokens, {pace} a pass"
                make = partial(timed_answer, run, mdlm, inputs, length, defence, pace)
                run.measure(name, 10, make)
    run.measure("stored prompt", 10, partial(stored_prompt, run, mdlm, inputs))
    for defence in DEFENCES:
        run.measure(f"parts, {defence}", 10, partial(parts, run, mdlm, inputs, defence))
    run.measure("published defence", 30, partial(plain_defence, run, mdlm, inputs))


def over_plain(run: Run, mdlm: LladaV, inputs: Inputs, length: int) -> dict[str, Any]:
    """Seconds of an undefended answer on the published path over those of the product."""
    exact = _exact(length)
    found = run.bench.pairs(
        f"{length} tokens",
        {
            "plain": lambda: plain_seconds(mdlm, inputs, exact, min(run.shape.plain_steps, length)),
            "fast": lambda: run.bench.timed(
                lambda: answer_inputs(mdlm, inputs, generation=_fast(length))
            ),
        },
    )
    return {
        "ratio": ratios(found["plain"], found["fast"]).to_dict(),
        "seconds": {side: Spread.of(values).to_dict() for side, values in found.items()},
        "plain_steps_timed": min(run.shape.plain_steps, length),
    }


def over_undefended(run: Run, mdlm: LladaV, inputs: Inputs, length: int) -> dict[str, Any]:
    """Seconds of a defended answer over those of an undefended one, at both levels."""

    def taken(masking: MaskingConfig | None) -> float:
        return run.bench.timed(
            lambda: answer_inputs(mdlm, inputs, generation=_fast(length), masking=masking)
        )

    taken(masking_at("patch"))
    sides = {defence: partial(taken, _masking(defence)) for defence in DEFENCES}
    found = run.bench.pairs("defence", sides)
    return {
        "ratio": {
            level: ratios(found[level], found["undefended"]).to_dict()
            for level in DEFENCES
            if level != "undefended"
        },
        "seconds": {side: Spread.of(values).to_dict() for side, values in found.items()},
        "tokens": length,
    }


def timed_answer(
    run: Run, mdlm: LladaV, inputs: Inputs, length: int, defence: str, pace: str
) -> dict[str, Any]:
    """Tokens a second, seconds to the first block, tokens a forward pass."""
    generation = _fast(length)
    if pace == "trained":
        blocks = generation.n_blocks
        a_block = max(1, round(generation.block / TRAINED_TOKENS_A_PASS))
        generation = replace(generation, steps=a_block * blocks)
    masking = _masking(defence)
    found = [one_answer(mdlm, inputs, generation, masking) for _ in range(run.shape.repeats)]
    return {
        "tokens_per_second": Spread.of([one.tokens / one.total for one in found]).to_dict(),
        "first_block_seconds": Spread.of([one.first_block for one in found]).to_dict(),
        "seconds": Spread.of([one.total for one in found]).to_dict(),
        "begin_seconds": Spread.of([one.begun for one in found]).to_dict(),
        "tokens_a_pass": found[0].tokens / found[0].passes,
    }


def one_answer(
    mdlm: LladaV, inputs: Inputs, generation: GenerationConfig, masking: MaskingConfig | None
) -> Times:
    """Answers once and tells when what was done."""
    start = seconds(mdlm.device)
    [begun] = begin_batch(mdlm, [inputs], generation, masking)
    ready = seconds(mdlm.device)
    first_block = 0.0
    state = begun.state
    while not state.done:
        denoising_step(mdlm, [state])
        if not first_block and (state.block > 0 or state.done):
            first_block = seconds(mdlm.device) - start
    answer = finish(mdlm, begun)
    total = seconds(mdlm.device) - start
    return Times(first_block, total, ready - start, answer.steps, len(answer.token_ids))


def stored_prompt(run: Run, mdlm: LladaV, inputs: Inputs) -> dict[str, Any]:
    """A denoising step on stored keys and values, which has to read every weight: GB/s of them."""
    generation = replace(_fast(BLOCK), gen_length=BLOCK, block_length=BLOCK)
    [begun] = begin_batch(mdlm, [inputs], generation, None)
    denoising_step(mdlm, [begun.state])
    steps = min(_STORED_STEPS, generation.prompt_interval - 1)
    spent = run.bench.timed(lambda: [denoising_step(mdlm, [begun.state]) for _ in range(steps)])
    modules = mdlm.modules
    weights = sum(p.nbytes for p in modules.language_model.layers.parameters())
    weights += modules.lm_head.weight.nbytes
    stored = mdlm.key_values(inputs.length + BLOCK).n_bytes
    step = spent / steps
    return {
        "seconds": step,
        "weight_bytes": weights,
        "key_value_bytes": stored,
        "gb_per_s": (weights + stored) / step / 1e9,
    }


def parts(run: Run, mdlm: LladaV, inputs: Inputs, defence: str) -> dict[str, Any]:
    """Seconds of an answer by part of the model, and how near its products come to the peak."""
    peak = run.record.read()["parts"][run.part]["figures"]["peaks"]["matrix_gflops"]
    generation, masking = _fast(run.shape.lengths[0]), _masking(defence)

    def work() -> object:
        return answer_inputs(mdlm, inputs, generation=generation, masking=masking)

    unobserved = run.bench.timed(work)
    profile = observed(mdlm, work)
    return {
        "unobserved_seconds": unobserved,
        "seconds": profile.wall,
        "parts": profile.to_dict(peak),
    }


def plain_defence(run: Run, mdlm: LladaV, inputs: Inputs) -> dict[str, Any]:
    """Seconds of the published defence on the published path, and on the product's."""
    length = run.shape.lengths[0]
    exact = _exact(length)
    steps = min(run.shape.plain_steps, length)
    plain = plain_seconds(mdlm, inputs, exact, steps, PAPER_MASKING)
    fast = run.bench.timed(
        lambda: answer_inputs(mdlm, inputs, generation=_fast(length), masking=PAPER_MASKING)
    )
    return {"plain_seconds": plain, "fast_seconds": fast, "ratio": plain / fast}


def _exact(length: int) -> GenerationConfig:
    return GenerationConfig(gen_length=length, block_length=min(length, BLOCK), stop=())


def _fast(length: int) -> GenerationConfig:
    return replace(_exact(length), **CHANGES)


def _masking(defence: str) -> MaskingConfig | None:
    return None if defence == "undefended" else masking_at(defence)
