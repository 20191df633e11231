"""From a data set's rows to training examples: ids, labels, and the images' frozen features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from purifier.data.dataset import BadRow, DataSet
from purifier.data.remarks import sentences
from purifier.data.sample import Place, Sample, dialogue_messages, open_image
from purifier.errors import DataError, InvalidPrompt, PromptTooLong, RowError
from purifier.mdlm.base import IGNORE_LABEL, Dialogue, ImageInput, Mdlm
from purifier.tuning.config import FinetuneConfig


@dataclass(frozen=True)
class TrainingImage:
    """One image of an example.

    Attributes:
        features: `Mdlm.image_features`, [views, patches, D_vision], on the CPU.
        size: The image's width and height.
        n_tokens: Visual tokens.
    """

    features: Tensor
    size: tuple[int, int]
    n_tokens: int


@dataclass(frozen=True)
class Text:
    """The text side of one example.

    Attributes:
        ids: int64 [n], with one placeholder for every image.
        labels: int64 [n], the ids where they are trained, `IGNORE_LABEL` elsewhere.
        filler: bool [n], true at labels that only fill the last answer up.
        turns: int64 [n], round of question and answer.
    """

    ids: Tensor
    labels: Tensor
    filler: Tensor
    turns: Tensor


@dataclass(frozen=True)
class Example:
    """What a batch is collated of."""

    text: Text
    images: tuple[TrainingImage, ...]


def text_of(dialogue: Dialogue, config: FinetuneConfig, *, eot: int, room: int) -> Text:
    """Labels a dialogue and fills its last answer up.

    Args:
        dialogue: The tokenised dialogue.
        config: Settings `labels` and `answer_length`.
        eot: Id of the end of turn.
        room: Positions that the model's context has left.
    """
    trained = dialogue.answers
    if config.labels == "reference":
        trained = trained | dialogue.marks
    ids = dialogue.inputs.ids
    last = dialogue.answers & (dialogue.turns == dialogue.turns[-1])
    missing = 0 if config.answer_length is None else config.answer_length - int(last.sum())
    n_filler = max(0, min(missing, room))
    filler = torch.full((n_filler,), eot)
    labels = torch.where(trained, ids, IGNORE_LABEL)
    is_filler = torch.arange(len(ids) + n_filler) >= len(ids)
    return Text(
        ids=torch.cat([ids, filler]),
        labels=torch.cat([labels, filler]),
        filler=is_filler,
        turns=torch.cat([dialogue.turns, dialogue.turns[-1:].expand(n_filler)]),
    )


class TrainingRows:
    """The usable rows of a data set, as examples.

    Every row is read and checked once, when this is made, so that a training cannot meet a bad
    one in the middle. Features are kept as long as the memory for them lasts.

    Args:
        mdlm: The model that is trained.
        dataset: The data set.
        config: Settings.

    Attributes:
        bad: Rows that cannot be used.
        remarks: What the reader had to assume of the others, one sentence a kind.

    Raises:
        DataError: If there are more bad rows than `config.bad_rows`, or no usable one.
    """

    def __init__(self, mdlm: Mdlm, dataset: DataSet, config: FinetuneConfig) -> None:
        self._mdlm = mdlm
        self._images = dataset.images
        self._config = config
        self._tower = "vision_tower" in config.parts
        self._room = config.cache_mb * 2**20
        self._kept: dict[int, tuple[TrainingImage, ...]] = {}
        self._samples: dict[int, Sample] = {}
        self._texts: list[Text] = []
        self.bad: list[BadRow] = []
        assumed: Counter[str] = Counter()
        for row in dataset.rows():
            bad = row if isinstance(row, BadRow) else self._add(row)
            if bad is None:
                assert isinstance(row, Sample)
                assumed.update(row.remarks)
                continue
            self.bad.append(bad)
            if config.bad_rows is not None and len(self.bad) > config.bad_rows:
                raise DataError(
                    f"More than {config.bad_rows} rows cannot be used; the last one: {bad.message}",
                    param="data",
                )
        self.remarks = sentences(assumed)
        if not self._texts:
            first = f" The first one: {self.bad[0].message}" if self.bad else ""
            raise DataError(f"{dataset.path.name} has no usable row.{first}", param="data")

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all answers that are labels, without what only fills them up."""
        labels = (((text.labels != IGNORE_LABEL) & ~text.filler).sum() for text in self._texts)
        return sum(map(int, labels))

    def __getitem__(self, index: int) -> Example:
        images = self._kept.get(index)
        if images is None:
            images = self._encode(self._prepare(self._samples[index]).inputs.images)
        return Example(self._texts[index], images)

    def _add(self, sample: Sample) -> BadRow | None:
        """Takes a row in; returns it as a bad one if it cannot be used."""
        mdlm = self._mdlm
        try:
            dialogue = self._prepare(sample)
        except (DataError, InvalidPrompt) as error:
            return BadRow(
                sample.source or Place("memory", len(self)), _reason(error), error.message
            )
        inputs = dialogue.inputs
        room = mdlm.max_length - inputs.length
        text = text_of(dialogue, self._config, eot=mdlm.tokens.eot, room=room)
        index = len(self)
        if self._room > 0:
            images = self._encode(inputs.images)
            self._room -= sum(image.features.nbytes for image in images)
            if self._room >= 0:
                self._kept[index] = images
        if index not in self._kept:
            self._samples[index] = replace(sample, extra={})
        self._texts.append(text)
        return None

    def _prepare(self, sample: Sample) -> Dialogue:
        images = tuple(open_image(self._images, image, sample.source) for image in sample.images)
        messages = dialogue_messages(sample, images)
        while messages and messages[-1].role != "assistant":
            messages.pop()
        try:
            return self._mdlm.prepare_dialogue(messages)
        except InvalidPrompt as error:
            raise type(error)(f"{sample.source}: {error.message}", param=error.param) from None

    def _encode(self, images: Sequence[ImageInput]) -> tuple[TrainingImage, ...]:
        # One image at a time and never in the training's short numbers, so that a cached feature
        # equals a computed one to the bit.
        with torch.autocast(self._mdlm.device.type, enabled=False):
            return tuple(
                TrainingImage(
                    self._mdlm.image_features(image, tower=self._tower).cpu(),
                    image.image.size,
                    image.n_tokens,
                )
                for image in images
            )


def _reason(error: DataError | InvalidPrompt) -> str:
    """Code of why a row cannot be trained on."""
    if isinstance(error, RowError):
        return error.reason
    return "prompt_too_long" if isinstance(error, PromptTooLong) else "malformed"
