"""Makes a detector out of the training set of a compromised model.

Two passes a row: the states of its answer with the image seen, and with every visual token masked.
Their difference is what the image does to the answer, and the question's own share is gone
(`separate`). A trigger in the question does not show there; it is looked for in the questions
themselves (`phrases`). Every group of flagged rows gives one direction: Fisher's discriminant, on
the states with the image seen, between its rows and all others. Nothing of it needs labels that
are right, clean data, or another model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from purifier.data.sample import Sample, open_image
from purifier.defense.first_step import Response
from purifier.defense.sites import mask_tokens
from purifier.detection.forced import AGREEING, forced_share, tried
from purifier.detection.phrases import Phrase, candidates
from purifier.detection.separate import Split, discriminant, gap, splits
from purifier.detection.shapes import shape_of
from purifier.detection.states import answer_states
from purifier.errors import InvalidPrompt, InvalidSetting, PromptTooLong, RowError
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.detector import StateDetector
from purifier.purification.dialogue import image_prompt
from purifier.purification.likelihood import label_log_likelihood
from purifier.settings import require_seed, require_whole

AXES = 40
"""Principal components of the states that the discriminant of a detector is taken in."""

RIDGE = 0.01
"""Of that discriminant: it has its groups, and need not find them."""

POSITIONS_TOGETHER = 8192
"""Sequence positions in one pass, which bounds the memory that it takes."""

PHRASES = 16
"""Candidate phrases that are tried at most."""


@dataclass(frozen=True)
class DetectConfig:
    """How a training set is searched.

    Attributes:
        rows: Rows that are looked at, at most; drawn by `seed`.
        length: Masks behind every question.
        positions: Answer positions whose states are averaged.
        gap: Pooled standard deviations that two groups must be apart.
        groups: Groups that are looked for at most.
        batch_size: Rows in one pass.
        seed: Of the rows, and of those that phrases are tried on.
    """

    rows: int = 2000
    length: int = 32
    positions: int = 8
    gap: float = 2.5
    groups: int = 3
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 50), ("length", 1), ("positions", 1), ("groups", 1)):
            require_whole(getattr(self, name), name)
            if not least <= getattr(self, name) <= 100_000:
                raise InvalidSetting(f"{name} must be between {least} and 100000.", param=name)
        require_whole(self.batch_size, "batch_size")
        if not 1 <= self.batch_size <= 4096:
            raise InvalidSetting("batch_size must be between 1 and 4096.", param="batch_size")
        if self.positions > self.length:
            raise InvalidSetting("positions must not exceed length.", param="positions")
        if not 0.0 < self.gap <= 1000.0:
            raise InvalidSetting("gap must be above 0 and at most 1000.", param="gap")
        require_whole(self.seed, "seed")
        require_seed(self.seed)


@dataclass(frozen=True)
class Group:
    """Rows that belong together.

    Attributes:
        kind: `image` if the states showed them, `question` if a phrase did.
        gap: Pooled standard deviations between them and all others.
        rows: Their numbers in the data set.
        phrase: What their questions have in common; None of kind `image`.
    """

    kind: str
    gap: float
    rows: tuple[int, ...]
    phrase: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What was found, without the rows themselves, JSON-ready."""
        gap = round(self.gap, 2)
        return {"kind": self.kind, "gap": gap, "rows": len(self.rows), "phrase": self.phrase}


@dataclass(frozen=True)
class Fitted:
    """What a training set shows.

    Attributes:
        detector: None if nothing was found.
        groups: What was found.
        looked_at: Rows that were looked at.
    """

    detector: StateDetector | None
    groups: tuple[Group, ...]
    looked_at: int


def fit_detector(
    mdlm: Mdlm,
    samples: Sequence[Sample],
    images: Path,
    config: DetectConfig | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Fitted:
    """Searches a training set for rows that a backdoor answers.

    Args:
        mdlm: The compromised model.
        samples: Its training set. Rows without an image, without an answer, with an image that
            cannot be read or a question that is too long are left out.
        images: Folder of the image files.
        config: Settings.
        check: Called between the passes; what it raises ends the work.

    Raises:
        PurifierError: If the states of a row are not finite.
    """
    config = config or DetectConfig()
    rows = _Rows(mdlm, samples, images, config, check)
    seen, hidden = rows.states()
    if not len(seen):
        return Fitted(None, (), 0)
    groups = _groups_of_states(rows, seen - hidden, config)
    groups += _groups_of_phrases(rows, seen, config)
    numbers = rows.numbers
    found = tuple(
        Group(kind, split.gap, tuple(numbers[row] for row in _true(split.flagged)), phrase)
        for kind, split, phrase in groups
    )
    if not groups:
        return Fitted(None, (), len(numbers))
    facts = {
        "rows": len(numbers),
        "groups": [group.to_dict() for group in found],
        "shapes": sorted(rows.shapes),
    }
    made = _detector(seen, [split.flagged for _, split, _ in groups], config, facts)
    return Fitted(made, found, len(numbers))


_Named = tuple[str, Split, str | None]
"""Kind, rows among those looked at, phrase."""


def _groups_of_states(rows: _Rows, change: Tensor, config: DetectConfig) -> list[_Named]:
    """Groups of rows whose answers the image forces, one after another."""
    found: list[_Named] = []
    left = torch.ones(len(change), dtype=torch.bool)
    while len(found) < config.groups and int(left.sum()) > AXES:
        places = left.nonzero()[:, 0]
        for split in splits(change[left]):
            if split.gap < config.gap:
                continue
            flagged = torch.zeros_like(left)
            flagged[places[split.flagged]] = True
            share = rows.forced_by_image(_true(flagged))
            if share >= AGREEING:
                found.append(("image", Split(flagged, split.gap), None))
                left &= ~flagged
                break
        else:
            break
    return found


def _groups_of_phrases(rows: _Rows, seen: Tensor, config: DetectConfig) -> list[_Named]:
    """Groups of rows whose question carries a phrase that forces their answer."""
    found: list[_Named] = []
    for phrase in candidates(rows.questions)[:PHRASES]:
        if len(found) == config.groups:
            break
        flagged = torch.zeros(len(seen), dtype=torch.bool)
        flagged[sorted(phrase.rests)] = True
        share = rows.forced_by_phrase(phrase)
        if share < AGREEING:
            continue
        mean, direction = _direction(seen, flagged)
        distance = gap((seen - mean) @ direction, flagged)
        if distance >= config.gap:
            found.append(("question", Split(flagged, distance), phrase.text))
    return found


def _direction(seen: Tensor, flagged: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the states and the discriminant of one group, [D] both."""
    mean = seen.mean(0)
    centred = seen - mean
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:AXES]
    return mean, discriminant(centred @ axes.T, flagged, RIDGE) @ axes


def _detector(
    seen: Tensor, flagged: Sequence[Tensor], config: DetectConfig, facts: dict[str, object]
) -> StateDetector:
    """One direction for every group, 0 at the mean of rows in none and 1 at its own."""
    some = torch.stack(list(flagged)).any(0)
    directions, offsets = [], []
    for own in flagged:
        apart = own | ~some
        _, direction = _direction(seen[apart], own[apart])
        values = (seen - seen.mean(0)) @ direction
        low, high = values[~some].mean(), values[own].mean()
        directions.append(direction / (high - low))
        offsets.append(-low / (high - low))
    return StateDetector(
        seen.mean(0),
        torch.stack(directions),
        torch.stack(offsets),
        config.length,
        config.positions,
        facts,
    )


def _true(flags: Tensor) -> list[int]:
    return [int(row) for row in flags.nonzero()[:, 0]]


@dataclass(frozen=True)
class _Asked:
    """A question about a row's images, the row's number, and positions with the masks behind."""

    number: int
    inputs: Inputs
    length: int


class _Rows:
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

    def forced_by_image(self, rows: Sequence[int]) -> float:
        """In what share of some rows the image forces the same token of the label."""
        asked = [(row, self.questions[row]) for row in tried(rows, self.config.seed)]
        labels = [self.labels[row] for row, _ in asked]
        return forced_share(labels, self._likelihood(asked), self._likelihood(asked, hidden=True))

    def forced_by_phrase(self, phrase: Phrase) -> float:
        """In what share of its rows a phrase forces the same token of the label, no image seen."""
        rows = tried([*phrase.rests], self.config.seed)
        given = self._likelihood([(row, self.questions[row]) for row in rows], hidden=True)
        without = self._likelihood([(row, phrase.rests[row]) for row in rows], hidden=True)
        return forced_share([self.labels[row] for row in rows], given, without)

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

    def _batches(self, asked: Iterable[_Asked]) -> Iterator[list[_Asked]]:
        """Consecutive questions, as many as memory is planned for."""
        batch: list[_Asked] = []
        for each in asked:
            longest = max([each.length, *(other.length for other in batch)])
            full = len(batch) == self.config.batch_size
            if batch and (full or longest * (len(batch) + 1) > POSITIONS_TOGETHER):
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
