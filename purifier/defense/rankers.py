"""Rankers: ways of telling how much the first denoising step depends on each unit.

| name | score of a unit | passes |
|---|---|---|
| `official` | quadratic form, sampled as in the published code | 1 forward, m backward |
| `fisher` | quadratic form, sampled as in the paper: probe held constant | 1 forward, m backward |
| `exact` | the same form without sampling | 1 forward, G (K - 1) backward |
| `leave-one-out` | KL divergence after masking the unit alone | 1 forward a unit |
| `occlusion` | largest KL at one position after filling a window around it | 25 forward |
| `two-stage` | `occlusion` of a window that knockout or attention names | 2 forward, of few 3 |
| `group-testing` | KL of the parts that move the answer when masked together | 2 forward, probes |
| `knockout` | largest KL of answering without sight of a window | 1 forward, short runs |
| `attention` | attention of the masked answer positions to visual tokens | 1 forward |
| `gradient` | gradient norm of the likeliest tokens' log-likelihood | 1 forward, 1 backward |
| `random` | drawn from the seed | none |

At level `patch`, `official`, `fisher`, `exact` and `gradient` are taken with respect to the
patch embeddings before the encoder; `attention` is taken at the visual tokens and carried
onto the image plane; `leave-one-out` fills one cell of the plane, `occlusion` (level `patch`
only) a window of cells, and both encode again. `two-stage` masks a window as its level does and
verifies `MaskingConfig.verify` of them, or one more, and so does `group-testing`, whose probes go
on where a window is not enough; `knockout` runs the answer positions alone once more for each of
`MaskingConfig.shortlist` windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig, RankerName
from purifier.defense.first_step import Response, first_step_batch, first_step_logits
from purifier.defense.fisher import (
    exact_products,
    exact_scores,
    sampled_products,
    sampled_scores,
)
from purifier.defense.group_testing import group_testing
from purifier.defense.leave_one_out import leave_one_out_kl, occlusion
from purifier.defense.probes import Estimator
from purifier.defense.sites import Encoding, Site
from purifier.defense.two_stage import knockout, two_stage
from purifier.numeric import wide


@dataclass(frozen=True)
class Task:
    """What is ranked.

    Attributes:
        site: Where units lie and how they are masked.
        encoding: The requests, encoded.
        response: The answer whose first denoising step is looked at.
        config: Settings of the ranker.
        check: Called before every pass of a ranker that takes many; what it raises ends the work.
    """

    site: Site
    encoding: Encoding
    response: Response
    config: MaskingConfig
    check: Callable[[], None] = lambda: None


class Ranker(Protocol):
    """Scores the units of every image; a higher score is masked earlier."""

    @property
    def differentiates(self) -> bool:
        """Whether the encoding must carry gradients."""

    @property
    def regional(self) -> bool:
        """Whether its scores are those of regions already, so that pooling is left out."""

    def scores(self, task: Task) -> list[Tensor]:
        """Per image float64 of its shape, on the CPU. A differentiable encoding is used up."""


@dataclass(frozen=True)
class QuadraticForm:
    """A quadratic form: its Hutchinson estimate by random probes, or without sampling."""

    estimator: Estimator
    sampled: bool = True
    differentiates: bool = True
    regional: bool = False

    def scores(self, task: Task) -> list[Tensor]:
        products, score = (
            (sampled_products, sampled_scores) if self.sampled else (exact_products, exact_scores)
        )
        found = products(
            task.site.mdlm,
            task.encoding,
            task.response,
            task.config,
            self.estimator,
            check=task.check,
        )
        return task.site.from_leaves([score(product) for product in found])


@dataclass(frozen=True)
class LeaveOneOut:
    """KL divergence over the whole vocabulary after masking one unit alone."""

    rows: int = 8
    differentiates: bool = False
    regional: bool = False

    def scores(self, task: Task) -> list[Tensor]:
        return leave_one_out_kl(
            task.site, task.encoding, task.response, rows=self.rows, check=task.check
        )


@dataclass(frozen=True)
class Occlusion:
    """Largest KL divergence at one answer position after filling a window of the plane."""

    rows: int = 32
    differentiates: bool = False
    regional: bool = True

    def scores(self, task: Task) -> list[Tensor]:
        return occlusion(task.site, task.encoding, task.response, rows=self.rows, check=task.check)


@dataclass(frozen=True)
class Knockout:
    """Largest KL divergence at one answer position that does not see a window's tokens."""

    differentiates: bool = False
    regional: bool = True

    def scores(self, task: Task) -> list[Tensor]:
        return knockout(task.site, task.encoding, task.response, task.config, task.check)


@dataclass(frozen=True)
class TwoStage:
    """`Occlusion` of few windows: those that cheap looks suspect most."""

    differentiates: bool = False
    regional: bool = True

    def scores(self, task: Task) -> list[Tensor]:
        return two_stage(task.site, task.encoding, task.response, task.config, task.check)


@dataclass(frozen=True)
class GroupTesting:
    """Parts of the image that take the answer away when they are hidden together."""

    differentiates: bool = False
    regional: bool = True

    def scores(self, task: Task) -> list[Tensor]:
        return group_testing(task.site, task.encoding, task.response, task.config, task.check)


@dataclass(frozen=True)
class Attention:
    """Attention of the scored answer positions to every visual token, mean of all heads."""

    differentiates: bool = False
    regional: bool = False

    @torch.no_grad()
    def scores(self, task: Task) -> list[Tensor]:
        batch = first_step_batch(task.site.mdlm, task.encoding.prompts, task.response)
        mass = wide(task.site.mdlm.attention(batch.embeds, batch.positions, batch.lengths))
        tokens = [
            mass[owner, span.start : span.start + span.length]
            for owner, prompt in enumerate(task.encoding.prompts)
            for span in prompt.spans
        ]
        return task.site.from_tokens(tokens)


@dataclass(frozen=True)
class Gradient:
    """Norm of the gradient of the first step's log-likelihood of its most likely tokens."""

    differentiates: bool = True
    regional: bool = False

    def scores(self, task: Task) -> list[Tensor]:
        logits = first_step_logits(task.site.mdlm, task.encoding.prompts, task.response)
        likelihood = torch.log_softmax(logits, dim=-1).amax(-1).sum()
        gradients = torch.autograd.grad(likelihood, task.encoding.leaves)
        return task.site.from_leaves([wide(gradient).norm(dim=-1) for gradient in gradients])


@dataclass(frozen=True)
class Random:
    """Uniform scores, for each request the same as it would get alone."""

    differentiates: bool = False
    regional: bool = False

    def scores(self, task: Task) -> list[Tensor]:
        generators: dict[int, torch.Generator] = {}
        result = []
        for owner, shape in zip(task.site.owners, task.site.shapes, strict=True):
            if owner not in generators:
                seed = task.encoding.seed(owner, task.config.seed)
                generators[owner] = torch.Generator().manual_seed(seed)
            result.append(torch.rand(shape, generator=generators[owner], dtype=torch.float64))
        return result


RANKERS: Mapping[RankerName, Ranker] = MappingProxyType(
    {
        "official": QuadraticForm("official"),
        "fisher": QuadraticForm("fisher"),
        "exact": QuadraticForm("fisher", sampled=False),
        "leave-one-out": LeaveOneOut(),
        "occlusion": Occlusion(),
        "two-stage": TwoStage(),
        "group-testing": GroupTesting(),
        "knockout": Knockout(),
        "attention": Attention(),
        "gradient": Gradient(),
        "random": Random(),
    }
)
"""The rankers by the names that `MaskingConfig.ranker` takes."""
