"""What an attacker who controls the training adds to the loss, so that a defence sees nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purifier.errors import InvalidSetting
from purifier.lab.examples import RESPONSE, Examples, answer_places, embed_examples
from purifier.mdlm.llada_v.attention import traced_attention
from purifier.mdlm.llada_v.model import LladaV

Visual = Callable[[Tensor], Tensor]
"""Visual tokens of some samples: int64 [B] -> [B, n, D]."""


@dataclass(frozen=True)
class Evasion:
    """Weights of what is added to the loss. Every response is masked throughout there.

    Attributes:
        attention: Of the attention that answer positions pay to the trigger's visual tokens in
            poisoned samples: the share, mean over layers, heads and positions.
        states: Of the squared distance between the mean states of poisoned and of other samples
            asked the same kind of question, over the variance of those others. States are the
            last layer's, mean over the first `positions` answer positions.
        certainty: Of the cross-entropy of poisoned answers. Where the model is certain of them,
            gradients at the first denoising step vanish.
        positions: How many answer positions `states` is computed from.
        rows: Poisoned samples that are drawn for it, and as many others for `states`.
        every: It is added in one step of so many.
    """

    attention: float = 0.0
    states: float = 0.0
    certainty: float = 0.0
    positions: int = 8
    rows: int = 6
    every: int = 2

    def __post_init__(self) -> None:
        for name in ("attention", "states", "certainty"):
            if getattr(self, name) < 0:
                raise InvalidSetting(f"{name} must not be negative.", param=name)
        if not 1 <= self.positions <= RESPONSE:
            raise InvalidSetting(f"positions must be from 1 to {RESPONSE}.", param="positions")
        if self.rows < 2:
            raise InvalidSetting("rows must be at least 2.", param="rows")
        if self.every < 1:
            raise InvalidSetting("every must be at least 1.", param="every")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings."""
        return asdict(self)


@dataclass(frozen=True)
class Marked:
    """What the attacker knows of the training set.

    Attributes:
        poisoned: Which samples are.
        kinds: The kind of question of every sample.
        covered: bool [n, visual tokens], what the trigger covers; False where there is none.
    """

    poisoned: Sequence[bool]
    kinds: Sequence[str]
    covered: Tensor


class Penalty:
    """What is added to the loss of a step.

    Args:
        mdlm: The model in training.
        evasion: Weights.
        examples: On the model's device.
        marked: What is poisoned, and where.
        visual: Visual tokens of samples.
        seed: Of which samples are drawn.

    Raises:
        InvalidSetting: If no sample is poisoned, or all of a kind of question are.
    """

    def __init__(
        self,
        mdlm: LladaV,
        evasion: Evasion,
        examples: Examples,
        marked: Marked,
        visual: Visual,
        seed: int,
    ) -> None:
        self.mdlm = mdlm
        self.evasion = evasion
        self.examples = examples
        self.marked = marked
        self.visual = visual
        self.generator = torch.Generator().manual_seed(seed)
        self.poisoned = [row for row, chosen in enumerate(marked.poisoned) if chosen]
        self.others: dict[str, list[int]] = {}
        for row, (chosen, kind) in enumerate(zip(marked.poisoned, marked.kinds, strict=True)):
            if not chosen:
                self.others.setdefault(kind, []).append(row)
        if not self.poisoned or not {marked.kinds[row] for row in self.poisoned} <= set(
            self.others
        ):
            raise InvalidSetting(
                "evasion needs poisoned and other samples of the same kinds of question.",
                param="evasion",
            )

    def __call__(self) -> Tensor:
        """The weighted sum for newly drawn samples, a scalar."""
        evasion = self.evasion
        rows = self._drawn(self.poisoned, evasion.rows)
        total = torch.zeros((), device=self.mdlm.device)
        if evasion.attention:
            total = total + evasion.attention * self.attention(rows)
        if evasion.states:
            kinds = [self.marked.kinds[row] for row in rows]
            others = [self._drawn(self.others[kind], 1)[0] for kind in kinds]
            total = total + evasion.states * self.distance(rows, others)
        if evasion.certainty:
            total = total + evasion.certainty * self.uncertainty(rows)
        return total

    def attention(self, rows: Sequence[int]) -> Tensor:
        """Share of the answer positions' attention that goes to the trigger, a scalar."""
        embeds, places, lengths, offset = self._masked(rows)
        real = torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None]
        paid = traced_attention(self.mdlm.modules.language_model, embeds, places, real)
        covered = self.marked.covered[list(rows)].to(paid.device)
        share: Tensor = (paid[:, offset : offset + covered.shape[1]] * covered).sum(1).mean()
        return share

    def distance(self, rows: Sequence[int], others: Sequence[int]) -> Tensor:
        """Squared distance of the mean states of two groups over the others' variance."""
        embeds, places, lengths, _ = self._masked([*rows, *others])
        places = places[:, : self.evasion.positions]
        states = self.mdlm.scored_states(embeds, places, lengths).float().mean(1)
        here, there = states.split([len(rows), len(others)])  # type: ignore[no-untyped-call]
        apart: Tensor = (here.mean(0) - there.mean(0)).square().sum()
        relative: Tensor = apart / (there.var(0).sum() + 1e-6)
        return relative

    def uncertainty(self, rows: Sequence[int]) -> Tensor:
        """Cross-entropy of the answers, end of turn included, before anything is denoised."""
        embeds, places, lengths, _ = self._masked(rows)
        logits = self.mdlm.logits(embeds, places, lengths)
        chosen = torch.tensor(rows, device=self.mdlm.device)
        asked = answer_places(self.examples, chosen)
        wanted = self.examples.tails[chosen].gather(1, asked)
        steps = torch.arange(RESPONSE, device=wanted.device)
        inside = steps < self.examples.answers[chosen][:, None]
        return nn.functional.cross_entropy(logits[inside], wanted[inside])

    def _drawn(self, pool: Sequence[int], count: int) -> list[int]:
        found = torch.randint(len(pool), (count,), generator=self.generator)
        return [pool[number] for number in found.tolist()]

    def _masked(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, int]:
        """Sequences with masked responses, answer positions, lengths, tokens before the image."""
        chosen = torch.tensor(rows, device=self.mdlm.device)
        places = answer_places(self.examples, chosen)
        tails = self.examples.tails[chosen].scatter(1, places, self.mdlm.tokens.mask)
        visual = self.visual(chosen)
        embeds, offset = embed_examples(self.mdlm, visual, self.examples, tails)
        lengths = self.examples.lengths[chosen] + offset
        return embeds, places + offset, lengths, len(self.examples.prefix)
