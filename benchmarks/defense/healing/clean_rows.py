"""Clean rows that a defender is given, and how well a model denoises their answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.defense.healing.rows import LENGTH, batches
from benchmarks.defense.training import Lab
from purifier.data.llava import read_llava, write_llava
from purifier.denoise.training import draw_times, forward_process
from purifier.lab.demo_data import draw_samples
from purifier.lab.scenes import to_jpeg
from purifier.mdlm.base import Mdlm

DRAWS = 2
"""Diffusion times of every row."""

TOGETHER = 20
"""Rows in one pass."""


@dataclass(frozen=True)
class CleanRows:
    """Rows with partly masked answers, every row at several diffusion times.

    Attributes:
        embeds: [B, N, D], right-padded.
        lengths: int64 [B].
        positions: int64 [B, `LENGTH`], of the response.
        targets: int64 [B, `LENGTH`], the response unmasked.
        masked: bool [B, `LENGTH`].
        answer: bool [B, `LENGTH`], true up to the end of turn; what follows only fills up.
    """

    embeds: Tensor
    lengths: Tensor
    positions: Tensor
    targets: Tensor
    masked: Tensor
    answer: Tensor

    def parts(self) -> Iterator[CleanRows]:
        """The rows, as many at a time as go through a model together."""
        columns = (getattr(self, item.name).split(TOGETHER) for item in fields(self))
        for part in zip(*columns, strict=True):
            yield CleanRows(*part)

    @torch.no_grad()
    def right(self, mdlm: Mdlm) -> Tensor:
        """Of every masked answer token whether it is the likeliest prediction, bool [M]."""
        logits = mdlm.logits(self.embeds, self.positions, self.lengths)
        return (logits.argmax(-1) == self.targets)[self.masked & self.answer]

    def accuracy(self, mdlm: Mdlm) -> float:
        """Share of the masked answer tokens that are the likeliest predictions."""
        return float(torch.cat([part.right(mdlm) for part in self.parts()]).float().mean())


def write_clean_rows(folder: Path, lab: Lab, rows: int) -> tuple[Path, Path]:
    """Writes the first scenes of the training set as they are without triggers.

    Args:
        folder: Made if absent.
        lab: Says which scenes.
        rows: How many; all where there are fewer.

    Returns:
        The label file and the image folder.
    """
    samples, pictures = draw_samples("train", min(rows, lab.samples), lab.scenes_seed)
    labels, images = folder / "clean.json", folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for sample, picture in zip(samples, pictures, strict=True):
        (images / sample.image_files[0]).write_bytes(to_jpeg(picture))
    write_llava(labels, samples)
    return labels, images


@torch.no_grad()
def read_clean_rows(mdlm: Mdlm, labels: Path, images: Path, seed: int) -> CleanRows:
    """Encodes rows and masks their answers at `DRAWS` diffusion times each.

    Args:
        mdlm: The model.
        labels: Rows in LLaVA JSON, one question each.
        images: Their image folder.
        seed: Of times and masks.
    """
    prompts, responses, answers = [], [], []
    for batch in batches(mdlm, read_llava(labels), images):
        prompts += batch.prompts * DRAWS
        for label in batch.labels * DRAWS:
            filled = label + [mdlm.tokens.eot] * (LENGTH - len(label))
            responses.append(filled)
            answers.append(min(len(label) + 1, LENGTH))
    targets = torch.tensor(responses)
    generator = torch.Generator().manual_seed(seed)
    times = draw_times(len(targets), generator)
    uniform = torch.rand(targets.shape, generator=generator)
    masked = forward_process(torch.ones_like(uniform, dtype=torch.bool), times, uniform)
    noisy = torch.where(masked, mdlm.tokens.mask, targets).to(mdlm.device)
    rows = [
        torch.cat([prompt.embeds, mdlm.token_embeddings(ids)])
        for prompt, ids in zip(prompts, noisy, strict=True)
    ]
    starts = torch.tensor([len(prompt.embeds) for prompt in prompts])
    steps = torch.arange(LENGTH)
    in_answer = steps < torch.tensor(answers)[:, None]
    device = mdlm.device
    return CleanRows(
        embeds=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        lengths=(starts + LENGTH).to(device),
        positions=(starts[:, None] + steps).to(device),
        targets=targets.to(device),
        masked=masked.to(device),
        answer=in_answer.to(device),
    )
