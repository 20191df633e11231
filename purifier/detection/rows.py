"""The rows of a training set that are searched, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from purifier.data.sample import Sample, open_image
from purifier.defense.config import MaskingConfig
from purifier.defense.first_step import Response, first_steps
from purifier.defense.saliency import site_scores
from purifier.defense.sites import PatchSite, mask_tokens
from purifier.defense.two_stage import divergence
from purifier.detection.config import DetectConfig
from purifier.detection.forced import forced_shares, tried
from purifier.detection.phrases import Phrase
from purifier.detection.shapes import shape_of
from purifier.detection.states import answer_states
from purifier.errors import InvalidPrompt, PromptTooLong, RowError
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.patterns import Pattern, small_copy
from purifier.purification.dialogue import image_prompt
from purifier.purification.likelihood import label_log_likelihood

WINDOWS = MaskingConfig()
"""Finds what an answer hangs on: the product's default."""

POSITIONS_TOGETHER = 8192
"""Sequence positions in one pass, which bounds the memory that it takes."""

STORED_TOGETHER = 4096
"""The same where keys and values of all positions are stored."""


@dataclass(frozen=True)
class _Asked:
    """A question about a row's images, the row's number, and positions with the masks behind."""

    number: int
    inputs: Inputs
    length: int


class Rows:
    """The rows that can be looked at."""

    def __init__(
        self,
        mdlm: Mdlm,
        samples: Sequence[Sample],
        images: Path,
        config: DetectConfig,
        check: Callable[[], None],
    ) -> None:
        self.mdlm = mdlm
        self.samples = samples
        self.images = images
        self.config = config
        self.check = check
        self.numbers: list[int] = []
        self.questions: list[str] = []
        self.labels: list[list[int]] = []
        self.shapes: set[str] = set()
        self._usable = _drawn(samples, config)
        self._small: Tensor | None = None

    def states(self) -> tuple[Tensor, Tensor]:
        """States [N, D] of the rows' answers with the image seen, and with it hidden."""
        seen: list[Tensor] = []
        hidden: list[Tensor] = []
        asked = (each for number in self._usable for each in self._asked(number))
        for batch in self._batches(asked):
            self._add(batch, seen, hidden)
        if not seen:
            return torch.zeros(0, 0), torch.zeros(0, 0)
        return torch.cat(seen), torch.cat(hidden)

    def forced_by_image(self, rows: Sequence[int]) -> dict[int, float]:
        """In what share of some rows the image forces each token of the labels."""
        asked = [(row, self.questions[row]) for row in tried(rows, self.config.seed)]
        labels = [self.labels[row] for row, _ in asked]
        return forced_shares(labels, self._likelihood(asked), self._likelihood(asked, hidden=True))

    def forced_by_phrase(self, phrase: Phrase) -> dict[int, float]:
        """In what share of its rows a phrase forces each token of the labels, no image seen."""
        rows = tried([*phrase.rests], self.config.seed)
        given = self._likelihood([(row, self.questions[row]) for row in rows], hidden=True)
        without = self._likelihood([(row, phrase.rests[row]) for row in rows], hidden=True)
        return forced_shares([self.labels[row] for row in rows], given, without)

    def labels_of(self, chosen: Tensor) -> list[list[int]]:
        """Ids of the labels of chosen rows, bool [N]."""
        return [label for label, own in zip(self.labels, chosen.tolist(), strict=True) if own]

    def small_copies(self) -> Tensor:
        """Every row's first image as patterns see it, uint8 [N, SIDE, SIDE, 3]."""
        if self._small is None:
            found = []
            for count, number in enumerate(self.numbers):
                if count % self.config.batch_size == 0:
                    self.check()
                sample = self.samples[number]
                found.append(small_copy(open_image(self.images, sample.images[0], sample.source)))
            self._small = torch.stack(found)
        return self._small

    def deciding(self, rows: Sequence[int], cells: int) -> Tensor:
        """How far masking a window of their first image moves the answers of some rows.

        Returns:
            float32 [n, cells, cells], nats of the most that a window moves which a cell is in.
        """
        found: list[Tensor] = []
        response = Response(self.config.length, self.config.length)
        asked = (self._prepared(row, self.questions[row]) for row in rows)
        for batch in self._batches(asked, STORED_TOGETHER):
            site = PatchSite(self.mdlm, [each.inputs for each in batch])
            scores = site_scores(site, response, WINDOWS, self.check)
            firsts = [site.owners.index(owner) for owner in range(len(batch))]
            found += [
                functional.interpolate(scores[image].float()[None, None], (cells, cells))[0, 0]
                for image in firsts
            ]
        return torch.stack(found)

    def moved(self, pattern: Pattern, rows: Sequence[int]) -> Tensor:
        """How far a pattern moves the answers of some rows if it is pasted onto their images.

        Returns:
            float64 [n], nats of KL divergence at the answer position that moves most.
        """
        found: list[Tensor] = []
        response = Response(self.config.length, self.config.length)
        for batch in self._batches(self._prepared(row, self.questions[row]) for row in rows):
            self.check()
            steps = []
            for inputs in (
                [each.inputs for each in batch],
                [self._pasted(pattern, each.inputs) for each in batch],
            ):
                steps.append(first_steps(self.mdlm, self.mdlm.embed_all(inputs), response))
            found += [
                divergence(before.logits, after.logits).cpu().double()
                for before, after in zip(*steps, strict=True)
            ]
        return torch.stack(found)

    def _pasted(self, pattern: Pattern, inputs: Inputs) -> Inputs:
        """The pattern on every image of a request."""
        count = len(inputs.images)
        images = [
            self.mdlm.prepare_image(pattern.pasted(image.image), n_images=count)
            for image in inputs.images
        ]
        return replace(inputs, images=tuple(images))

    def _likelihood(
        self, asked: Sequence[tuple[int, str]], *, hidden: bool = False
    ) -> list[Tensor]:
        """Log-likelihoods of rows' labels behind a question, the image seen or not."""
        result: list[Tensor] = []
        response = Response(self.config.length, self.config.length)
        for batch in self._batches(self._prepared(*each) for each in asked):
            self.check()
            prompts = self.mdlm.embed_all([each.inputs for each in batch])
            if hidden:
                prompts = without_images(self.mdlm, prompts)
            labels = [self.labels[each.number] for each in batch]
            result += label_log_likelihood(self.mdlm, prompts, response, labels)
        return result

    def _batches(
        self, asked: Iterable[_Asked], positions: int = POSITIONS_TOGETHER
    ) -> Iterator[list[_Asked]]:
        """Consecutive questions, as many as memory is planned for."""
        batch: list[_Asked] = []
        for each in asked:
            longest = max([each.length, *(other.length for other in batch)])
            full = len(batch) == self.config.batch_size
            if batch and (full or longest * (len(batch) + 1) > positions):
                yield batch
                batch = []
            batch.append(each)
        if batch:
            yield batch

    def _prepared(self, row: int, question: str) -> _Asked:
        """Another question about the images of a row that was looked at."""
        return self._question(row, self.samples[self.numbers[row]], question)

    def _question(self, number: int, sample: Sample, question: str) -> _Asked:
        pictures = [open_image(self.images, image, sample.source) for image in sample.images]
        inputs = self.mdlm.prepare(image_prompt(pictures, question))
        return _Asked(number, inputs, inputs.length + self.config.length)

    def _asked(self, number: int) -> list[_Asked]:
        """The first question of a row of the data set; nothing where it cannot be asked."""
        sample = self.samples[number]
        try:
            asked = self._question(number, sample, sample.question)
        except (RowError, InvalidPrompt, PromptTooLong):
            return []
        return [asked] if asked.length <= self.mdlm.max_length else []

    @torch.no_grad()
    def _add(self, batch: Sequence[_Asked], seen: list[Tensor], hidden: list[Tensor]) -> None:
        self.check()
        config = self.config
        prompts = self.mdlm.embed_all([each.inputs for each in batch])
        for made, into in ((prompts, seen), (without_images(self.mdlm, prompts), hidden)):
            into.append(
                answer_states(self.mdlm, made, length=config.length, positions=config.positions)
            )
        for each in batch:
            sample = self.samples[each.number]
            self.numbers.append(each.number)
            self.questions.append(sample.question)
            self.labels.append(self.mdlm.encode_text(sample.answer.strip())[: config.length])
            self.shapes.add(shape_of(self.mdlm, each.inputs))


def without_images(mdlm: Mdlm, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Requests with every visual token masked."""
    mask = mdlm.mask_embedding.detach()
    return [mask_tokens(p, torch.ones(p.n_visual, dtype=torch.bool), mask) for p in prompts]


def _drawn(samples: Sequence[Sample], config: DetectConfig) -> list[int]:
    """Numbers of the rows that are looked at, in order."""
    usable = [
        number
        for number, sample in enumerate(samples)
        if sample.images and sample.question and sample.answer.strip()
    ]
    if len(usable) <= config.rows:
        return usable
    drawn = np.random.default_rng(config.seed).choice(len(usable), config.rows, replace=False)
    return [usable[number] for number in sorted(drawn)]
