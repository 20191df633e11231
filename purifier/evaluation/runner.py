"""Answering a test set under many defences, each saliency taken once.

What `answer` does for one request is done here for a test set and its triggered copy. Saliency is
taken once, and one pass serves all mask ratios and thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend, groups, make_site
from purifier.defense.first_step import Response
from purifier.defense.saliency import choose, site_scores
from purifier.defense.sites import Site, mask_tokens
from purifier.denoise.sampler import denoise
from purifier.errors import InvalidSetting
from purifier.evaluation.metrics import Answers
from purifier.evaluation.oracles import OracleName, fill_regions, trigger_tokens
from purifier.evaluation.testset import Case, TestSet
from purifier.lab.triggers import PixelBox
from purifier.mdlm.base import Inputs, Mdlm, Message, Prompt


class Cut(NamedTuple):
    """How much is masked: at most a mask ratio, and nothing below a threshold."""

    ratio: float
    threshold: float = 0.0


Masker = Callable[[Cut], list[Prompt]]
"""The prompts of a batch of requests, masked as a cut says."""

NO_CUT = Cut(0.0)


@dataclass(frozen=True)
class Request:
    """One question about the clean or the triggered image of a case."""

    number: int
    case: Case
    triggered: bool


class Runner:
    """Answers the questions of a test set about its clean and its triggered images.

    Args:
        mdlm: The model.
        test_set: Questions, trigger and generation settings.
        batch_size: Requests denoised together.
        positions_together: Sequence positions scored together, as in `defend`.
    """

    def __init__(
        self,
        mdlm: Mdlm,
        test_set: TestSet,
        *,
        batch_size: int = 256,
        positions_together: int = 8192,
    ) -> None:
        if batch_size < 1:
            raise InvalidSetting("batch_size must be at least 1.", param="batch_size")
        self.mdlm = mdlm
        self.test_set = test_set
        self.batch_size = batch_size
        self.positions_together = positions_together
        self.requests = [
            Request(number, case, triggered)
            for triggered in (False, True)
            for number, case in enumerate(test_set.cases)
        ]

    def undefended(self) -> Answers:
        """Answers with nothing masked."""
        return self._sweep(self._unmasked, [NO_CUT])[NO_CUT]

    def masked(self, masking: MaskingConfig, cuts: Sequence[Cut]) -> dict[Cut, Answers]:
        """Answers at several mask ratios and thresholds.

        The random ranker draws anew for every case (`masking.seed` plus the case's number), or
        the figures would describe one single mask; a case's clean and triggered image share it.

        Args:
            masking: The defence. What is masked is cut by `cuts`; its own ratio and threshold only
                decide which windows `two-stage` and `group-testing` try.
            cuts: The mask ratios and thresholds.
        """
        return self._sweep(lambda batch: self._ranked(batch, masking), cuts)

    def defended(self, masking: MaskingConfig) -> Answers:
        """Answers under all that a server does: masking, and the model's detector if it has one."""

        def asked(batch: Sequence[Request]) -> Masker:
            inputs = self._inputs(batch)
            generation = replace(self.test_set.generation, cache="none")
            found = defend(self.mdlm, inputs, generation, masking)
            return lambda _: [item.prompt for item in found]

        return self._sweep(asked, [NO_CUT])[NO_CUT]

    def transformed(self, change: Callable[[int, Image.Image], Image.Image]) -> Answers:
        """Answers about changed images.

        Args:
            change: Given the number of a case and its image, the image that is asked about.
        """

        def changed(batch: Sequence[Request]) -> Masker:
            inputs = [
                self.mdlm.prepare(
                    _with_images(self._messages(request), partial(change, request.number))
                )
                for request in batch
            ]
            return lambda _: [self.mdlm.embed(item) for item in inputs]

        return self._sweep(changed, [NO_CUT])[NO_CUT]

    def oracle(self, name: OracleName) -> Answers:
        """Answers under a defence that knows the trigger's place, on clean images too.

        Raises:
            InvalidSetting: If the trigger covers the whole image.
        """
        mask = self._oracle_tokens if name == "oracle-token" else self._oracle_pixels
        return self._sweep(mask, [NO_CUT])[NO_CUT]

    def _sweep(
        self, masker: Callable[[Sequence[Request]], Masker], cuts: Sequence[Cut]
    ) -> dict[Cut, Answers]:
        texts: dict[Cut, list[str]] = {cut: [] for cut in cuts}
        for start in range(0, len(self.requests), self.batch_size):
            mask = masker(self.requests[start : start + self.batch_size])
            for cut in texts:
                with torch.no_grad():
                    prompts = mask(cut)
                texts[cut] += self._denoise(prompts)
        half = len(self.test_set.cases)
        return {
            cut: Answers(tuple(answers[:half]), tuple(answers[half:]))
            for cut, answers in texts.items()
        }

    def _denoise(self, prompts: Sequence[Prompt]) -> list[str]:
        states = denoise(self.mdlm, prompts, self.test_set.generation)
        return [self.mdlm.decode(state.token_ids).strip() for state in states]

    def _messages(self, request: Request) -> list[Message]:
        return request.case.messages(self.test_set.trigger if request.triggered else None)

    def _inputs(self, batch: Sequence[Request]) -> list[Inputs]:
        return [self.mdlm.prepare(self._messages(request)) for request in batch]

    def _unmasked(self, batch: Sequence[Request]) -> Masker:
        inputs = self._inputs(batch)
        return lambda _: [self.mdlm.embed(item) for item in inputs]

    def _ranked(self, batch: Sequence[Request], masking: MaskingConfig) -> Masker:
        inputs = self._inputs(batch)
        if masking.ranker == "random":
            seeds = [masking.seed + request.number for request in batch]
            scored = [
                self._scored([item], replace(masking, seed=seed))
                for item, seed in zip(inputs, seeds, strict=True)
            ]
        else:
            length = self.test_set.generation.gen_length
            scored = [
                self._scored(group, masking)
                for group in groups(inputs, length, self.positions_together)
            ]

        def mask(cut: Cut) -> list[Prompt]:
            prompts = []
            for site, scores in scored:
                prompts += site.mask([choose(s, cut.ratio, cut.threshold) for s in scores])
            return prompts

        return mask

    def _scored(
        self, inputs: Sequence[Inputs], masking: MaskingConfig
    ) -> tuple[Site, list[Tensor]]:
        response = Response.of(self.mdlm, self.test_set.generation, masking.scored_length)
        site = make_site(self.mdlm, inputs, masking)
        return site, site_scores(site, response, masking)

    def _oracle_tokens(self, batch: Sequence[Request]) -> Masker:
        inputs = self._inputs(batch)

        def mask(_: Cut) -> list[Prompt]:
            prompts = []
            for request, item in zip(batch, inputs, strict=True):
                regions = self._regions(request)
                masked = torch.cat([trigger_tokens(image, regions) for image in item.images])
                prompts.append(
                    mask_tokens(self.mdlm.embed(item), masked, self.mdlm.mask_embedding.detach())
                )
            return prompts

        return mask

    def _oracle_pixels(self, batch: Sequence[Request]) -> Masker:
        inputs = []
        for request in batch:
            fill = partial(fill_regions, regions=self._regions(request))
            inputs.append(self.mdlm.prepare(_with_images(self._messages(request), fill)))
        return lambda _: [self.mdlm.embed(item) for item in inputs]

    def _regions(self, request: Request) -> tuple[PixelBox, ...]:
        case = request.case
        regions = case.drawn(self.test_set.trigger).regions(case.picture.size)
        if not regions:
            raise InvalidSetting(
                "An oracle needs a trigger that covers a part of the image.", param="ranker"
            )
        return regions


def _with_images(
    messages: Sequence[Message], change: Callable[[Image.Image], Image.Image]
) -> list[Message]:
    """A dialogue with every image changed."""
    return [
        Message(
            message.role,
            tuple(part if isinstance(part, str) else change(part) for part in message.content),
        )
        for message in messages
    ]
