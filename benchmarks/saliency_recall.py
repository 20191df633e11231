"""Which rankers find the trigger, and at what cost in passes: no answer is denoised for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from purifier.defense.config import Level, MaskingConfig, RankerName
from purifier.defense.defend import make_site
from purifier.defense.first_step import Response, first_steps, response_tail
from purifier.defense.fisher import (
    exact_scores,
    request_draws,
    sampled_scores,
    scored_outputs,
)
from purifier.defense.plane import plane_shape, token_rasters
from purifier.defense.probes import Estimator, apply_map, probe_basis, probe_map
from purifier.defense.rankers import RANKERS, Task
from purifier.defense.saliency import top_fraction
from purifier.defense.sites import Site
from purifier.evaluation.intervals import Rate, wilson
from purifier.evaluation.oracles import trigger_tokens
from purifier.evaluation.testset import Case, TestSet
from purifier.lab.targets import target_by_name
from purifier.lab.triggers import Trigger
from purifier.mdlm.base import ImageInput, Inputs, Mdlm
from purifier.mdlm.tails import TailPass

PROBES = (1, 2, 4, 6, 16)
SHARE = 0.1
"""Share of the units that the trigger is looked for in: the product's mask ratio."""

PROBE_SCENES = 20
"""Scenes of sampled forms, which take 48 backward passes."""

EXACT_SCENES = 10
"""Scenes of the exact form, which takes 128."""

Scores = Mapping[str, Tensor]
Method = Callable[[Mdlm, Inputs, TestSet, Level], Scores]


def ranker_scores(name: RankerName, **settings: Any) -> Method:
    """The scores of a ranker of the product, under its name and settings."""

    def scores(mdlm: Mdlm, inputs: Inputs, test: TestSet, level: Level) -> Scores:
        config = MaskingConfig(level=level, ranker=name, **settings)
        site = make_site(mdlm, [inputs], config)
        ranker = RANKERS[config.ranker]
        response = Response.of(mdlm, test.generation)
        with torch.set_grad_enabled(ranker.differentiates):
            encoding = site.encode(differentiable=ranker.differentiates)
            raw = ranker.scores(Task(site, encoding, response, config))
        pooling = 1 if ranker.regional else config.pooling
        label = ", ".join([name, *(f"{key} {value}" for key, value in settings.items())])
        return {label: site.finish(raw, pooling)[0]}

    return scores


def probe_scores(mdlm: Mdlm, inputs: Inputs, test: TestSet, level: Level) -> Scores:
    """Sampled forms with 1 to 16 probes, and the top modes of the Fisher matrix."""
    result: dict[str, Tensor] = {}
    most = max(PROBES)
    config = MaskingConfig(level=level, ranker="fisher", probes=most)
    for name in ("official", "fisher", "modes"):
        site, products = _products(mdlm, inputs, test, config, name)
        for count in PROBES:
            kept = [product[:count] for product in products]
            form = exact_scores if name == "modes" else sampled_scores
            raw = site.from_leaves([form(product) for product in kept])
            result[f"{name}, {count}"] = site.finish(raw, config.pooling)[0]
    return result


def peak_attention(mdlm: Mdlm, inputs: Inputs, test: TestSet, level: Level) -> Scores:
    """Largest attention of any head of any layer at any answer position."""
    config = MaskingConfig(level=level, ranker="attention")
    site = make_site(mdlm, [inputs], config)
    with torch.no_grad():
        encoding = site.encode(differentiable=False)
        response = Response.of(mdlm, test.generation)
        (step,) = first_steps(mdlm, encoding.prompts, response)
        nothing = torch.zeros(1, len(step.prompt.embeds), dtype=torch.bool, device=mdlm.device)
        tail = response_tail(mdlm, response)
        run = TailPass(tail, range(response.scored), step.cache, nothing)
        peak = mdlm.tail_attention(run).double().cpu()
    span = step.prompt.spans[0]
    raw = site.from_tokens([peak[span.start : span.start + span.length]])
    return {"attention, largest": site.finish(raw, config.pooling)[0]}


METHODS: Mapping[Level, tuple[Method, ...]] = {
    level: (
        ranker_scores("random"),
        ranker_scores("attention"),
        peak_attention,
        ranker_scores("gradient"),
        ranker_scores("knockout"),
        ranker_scores("knockout", shortlist=25),
        ranker_scores("two-stage"),
        ranker_scores("two-stage", verify=2),
        *((ranker_scores("occlusion"),) if level == "patch" else ()),
    )
    for level in ("token", "patch")
}


def recall(
    mdlm: Mdlm,
    test: TestSet,
    target: str,
    level: Level,
    methods: tuple[Method, ...],
    scenes: int,
) -> dict[str, dict[str, Any]]:
    """By method: share of the trigger's units among the top, and of scenes with all of them.

    Args:
        mdlm: A poisoned model.
        test: Questions and the trigger.
        target: Only questions whose answer it changes are taken.
        level: Where units are scored.
        methods: What is compared.
        scenes: Questions at most.
    """
    kind = target_by_name(target)
    cases = [case for case in test.cases if kind.applies_to(case.answer, item=case.item)]
    shares: dict[str, list[float]] = {}
    for case in cases[:scenes]:
        inputs = mdlm.prepare(case.messages(test.trigger))
        guilty = guilty_units(inputs.images[0], case, test.trigger, level)
        for method in methods:
            for name, scores in method(mdlm, inputs, test, level).items():
                top = top_fraction(scores.flatten(), SHARE)
                found = int((top & guilty).sum()) / int(guilty.sum())
                shares.setdefault(name, []).append(found)
    return {
        name: {
            "recall": sum(values) / len(values),
            "whole": _rate(values).to_dict(),
            "n": len(values),
        }
        for name, values in shares.items()
    }


def guilty_units(image: ImageInput, case: Case, trigger: Trigger, level: Level) -> Tensor:
    """Units that the trigger touches, bool [n_units]."""
    regions = trigger.regions(case.picture.size)
    if not regions:
        raise ValueError("a trigger without a place has no units")
    tokens = trigger_tokens(image, regions)
    if level == "token":
        return tokens
    width, height = case.picture.size
    rows, columns = plane_shape(token_rasters(image.grids), (width, height))
    y, x = torch.arange(rows) / rows, torch.arange(columns) / columns
    touched = torch.zeros(rows, columns, dtype=torch.bool)
    for left, top, right, bottom in regions:
        tall = (y * height < bottom) & ((y + 1 / rows) * height > top)
        wide = (x * width < right) & ((x + 1 / columns) * width > left)
        touched |= tall[:, None] & wide[None]
    return touched.flatten()


def _rate(shares: list[float]) -> Rate:
    return wilson(sum(share == 1.0 for share in shares), len(shares))


def _products(
    mdlm: Mdlm, inputs: Inputs, test: TestSet, config: MaskingConfig, name: str
) -> tuple[Site, list[Tensor]]:
    """Directional products [m, ...] of one family of probes, most telling first."""
    site = make_site(mdlm, [inputs], config)
    with torch.enable_grad():
        encoding = site.encode(differentiable=True)
        outputs = scored_outputs(mdlm, encoding, Response.of(mdlm, test.generation), config)
        distribution = outputs.distribution
        if name == "modes":
            return site, outputs.products(_modes(probe_basis(distribution, "fisher")), encoding)
        estimator: Estimator = "official" if name == "official" else "fisher"
        matrices = probe_map(distribution, estimator)
        draws = request_draws(encoding, config, distribution)
        return site, outputs.products(apply_map(matrices, draws.to(matrices)), encoding)


def _modes(basis: Tensor) -> Iterator[Tensor]:
    """Cotangents [1, G, K] along the largest modes of all positions' Fisher matrices."""
    left, sizes, _ = torch.linalg.svd(basis[0], full_matrices=False)
    order = sizes.flatten().argsort(descending=True)[: max(PROBES)]
    for place in order.tolist():
        position, mode = divmod(place, sizes.shape[1])
        cotangent = torch.zeros_like(basis[..., 0])
        cotangent[0, position] = left[position, :, mode] * sizes[position, mode]
        yield cotangent


def exact_method(mdlm: Mdlm, inputs: Inputs, test: TestSet, level: Level) -> Scores:
    """The quadratic form without sampling."""
    return {"exact": ranker_scores("exact")(mdlm, inputs, test, level)["exact"]}
