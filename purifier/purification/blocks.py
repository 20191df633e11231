"""Answers and labels of several blocks, block by block.

Masking is chosen at the first step of an answer, by what its first block depends on, and at least
`MaskingConfig.scored_length` positions. A payload that begins later is not looked for there. So the
saliency can be taken again at the start of each block, on the prompt and what was committed in the
blocks before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import Defended, defend
from purifier.defense.first_step import Response
from purifier.denoise.config import GenerationConfig
from purifier.denoise.noise import SeededNoise
from purifier.denoise.state import DenoisingState
from purifier.denoise.step import denoising_step
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.purification.likelihood import disagreement, label_log_likelihood


@dataclass(frozen=True)
class Asked:
    """A question under the defence.

    Attributes:
        inputs: The question.
        defended: The same with its most salient evidence masked, for the first block.
        seed: Of this question's random draws.
    """

    inputs: Inputs
    defended: Defended
    seed: int

    @property
    def detected(self) -> bool:
        """Whether the model's detector chose the mask, which then stays for the whole answer."""
        found = self.defended.detection
        return found is not None and found.loud


@dataclass(frozen=True)
class BlockwiseDefence:
    """The model and the defence under which blocks are answered and judged.

    Attributes:
        mdlm: The model.
        generation: How answers are denoised.
        masking: The defence.
        rescore: Whether every block is masked anew; else the first block's mask stays.
        check: Called between the passes; what it raises ends the work.
    """

    mdlm: Mdlm
    generation: GenerationConfig
    masking: MaskingConfig
    rescore: bool = True
    check: Callable[[], None] = lambda: None

    def ask(self, requests: Sequence[Inputs], seeds: Sequence[int]) -> list[Asked]:
        """Defends questions at the first step of their answers."""
        defended = defend(
            self.mdlm, requests, self.generation, self.masking, seeds=seeds, check=self.check
        )
        return [Asked(*each) for each in zip(requests, defended, seeds, strict=True)]

    def answer(self, asked: Sequence[Asked]) -> list[DenoisingState]:
        """Denoises the answers together, each as it would be alone."""
        states = [
            DenoisingState(
                self.mdlm,
                each.defended.prompt,
                self.generation,
                SeededNoise(each.seed),
                first=each.defended.first,
            )
            for each in asked
        ]
        for block in range(self.generation.n_blocks):
            pairs = zip(asked, states, strict=True)
            going = [(each, state) for each, state in pairs if state.block == block]
            going = [(each, state) for each, state in going if not state.done]
            anew = [(each, state) for each, state in going if not each.detected]
            if block and self.rescore and anew:
                self._mask_anew(block, *zip(*anew, strict=True))
            while here := [s for _, s in going if not s.done and s.block == block]:
                self.check()
                denoising_step(self.mdlm, here)
        return states

    def disagreements(
        self, asked: Sequence[Asked], labels: Sequence[Sequence[int]], *, enough: float = inf
    ) -> list[float]:
        """How much each label rests on what the defence hides, in nats: its worst block.

        Args:
            asked: The questions.
            labels: Ids of the labels, the end of the turn included. What exceeds the model's
                context is not judged.
            enough: Nats at which the rest of a label is not looked at any more.
        """
        worst = [0.0] * len(asked)
        length = self.generation.block
        labels = [label[: self._room(each)] for each, label in zip(asked, labels, strict=True)]
        for block in range(-(-max(map(len, labels), default=0) // length)):
            rows = [
                row
                for row, label in enumerate(labels)
                if len(label) > block * length and worst[row] < enough
            ]
            if not rows:
                break
            before = [list(labels[row][: block * length]) for row in rows]
            here = [labels[row][block * length : (block + 1) * length] for row in rows]
            found = self._block_disagreements(block, [asked[row] for row in rows], before, here)
            for row, nats in zip(rows, found, strict=True):
                worst[row] = max(worst[row], nats)
        return worst

    def _block_disagreements(
        self,
        block: int,
        asked: Sequence[Asked],
        before: Sequence[list[int]],
        labels: Sequence[Sequence[int]],
    ) -> list[float]:
        if block and self.rescore:
            # No answer goes on from here, so no first step is to be kept for one.
            generation = replace(self._rest(block), cache="none")
            anew = self._defend_at(generation, asked, before)
            pairs = zip(asked, anew, strict=True)
            defended = [each.defended if each.detected else item for each, item in pairs]
        else:
            defended = [each.defended for each in asked]
        rows = [row for row, item in enumerate(defended) if bool(item.masked.any())]
        nats = [0.0] * len(asked)
        if not rows:
            return nats
        response = Response.of(self.mdlm, self._rest(block))
        plain = self.mdlm.embed_all([asked[row].inputs for row in rows])
        masked = [first_part(defended[row].prompt, asked[row].inputs.length) for row in rows]
        chosen = [labels[row] for row in rows]
        found = []
        for prompts in (plain, masked):
            self.check()
            whole = [
                continued(self.mdlm, prompt, before[row])
                for prompt, row in zip(prompts, rows, strict=True)
            ]
            found.append(label_log_likelihood(self.mdlm, whole, response, chosen))
        for row, unmasked, under_mask in zip(rows, *found, strict=True):
            nats[row] = disagreement(unmasked, under_mask)
        return nats

    def _mask_anew(
        self, block: int, asked: Sequence[Asked], states: Sequence[DenoisingState]
    ) -> None:
        committed = [state.ids[: block * self.generation.block] for state in states]
        defended = self._defend_at(self._rest(block), asked, committed)
        for state, item in zip(states, defended, strict=True):
            state.see(item.prompt.embeds[: state.prompt_length], item.first)

    def _defend_at(
        self, generation: GenerationConfig, asked: Sequence[Asked], before: Sequence[list[int]]
    ) -> list[Defended]:
        """Defends questions with the start of an answer behind them, at the step that is next."""
        requests = [
            replace(each.inputs, ids=torch.cat([each.inputs.ids, each.inputs.ids.new_tensor(ids)]))
            for each, ids in zip(asked, before, strict=True)
        ]
        seeds = [each.seed for each in asked]
        return defend(
            self.mdlm,
            requests,
            generation,
            self.masking,
            seeds=seeds,
            check=self.check,
            detect=False,
        )

    def _rest(self, block: int) -> GenerationConfig:
        """Settings of the response that is left at the start of a block."""
        n_blocks = max(1, self.generation.n_blocks - block)
        return replace(
            self.generation,
            gen_length=n_blocks * self.generation.block,
            block_length=self.generation.block,
            steps=n_blocks * self.generation.steps_per_block,
        )

    def _room(self, asked: Asked) -> int:
        """Label tokens that fit behind a question, in whole blocks."""
        suffix = self.generation.suffix
        fixed = asked.inputs.length + (len(self.mdlm.encode_text(suffix)) if suffix else 0)
        return (self.mdlm.max_length - fixed) // self.generation.block * self.generation.block


def first_part(prompt: Prompt, length: int) -> Prompt:
    """The first positions of a prompt; no image lies behind them."""
    return replace(prompt, embeds=prompt.embeds[:length], visual=prompt.visual[:length])


def continued(mdlm: Mdlm, prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """A prompt with text behind it."""
    if not ids:
        return prompt
    tail: Tensor = mdlm.token_embeddings(torch.tensor(ids, device=mdlm.device)).detach()
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, tail]),
        visual=torch.cat([prompt.visual, prompt.visual.new_zeros(len(ids))]),
    )
