"""Collation and loss: examples of any shape become one padded batch of embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from purifier.denoise.training import draw_times, forward_process, masked_diffusion_loss
from purifier.mdlm.base import IGNORE_LABEL, IMAGE_PLACEHOLDER, Mdlm
from purifier.tuning.config import Padding
from purifier.tuning.examples import Example, Text


@dataclass(frozen=True)
class Batch:
    """Examples with their images in place.

    Attributes:
        embeds: [B, N, D], without noise.
        labels: int64 [B, N], `IGNORE_LABEL` where nothing is trained.
        filler: bool [B, N], labels that only fill an answer up.
        visual: bool [B, N], visual tokens.
        turns: int64 [B, N].
        lengths: int64 [B], real lengths; None where padding takes part (`reference`) or no row
            is padded.
    """

    embeds: Tensor
    labels: Tensor
    filler: Tensor
    visual: Tensor
    turns: Tensor
    lengths: Tensor | None


@dataclass(frozen=True)
class Noise:
    """The random part of a batch's loss.

    Attributes:
        t: float32 [B], diffusion times.
        uniform: float32 [B, N], below the mask probability where a label is masked.
        hidden: bool [B, N], visual tokens that are replaced by the mask embedding; None: none.
    """

    t: Tensor
    uniform: Tensor
    hidden: Tensor | None = None


def collate(
    mdlm: Mdlm, examples: Sequence[Example], *, padding: Padding, tower: bool = False
) -> Batch:
    """Puts examples together.

    Args:
        mdlm: The model; gradients flow to its projector and, if it is open, its tower.
        examples: Images of any number and size.
        padding: See `FinetuneConfig`.
        tower: Whether the features are the tower's input.
    """
    device = mdlm.device
    texts = [example.text for example in examples]
    if padding == "reference":
        texts = _padded_with_ids(texts, mdlm.tokens.pad)
    images = [image for example in examples for image in example.images]
    features = [image.features.to(device) for image in images]
    visual = iter(mdlm.visual_batch(features, [image.size for image in images], tower=tower))
    columns: tuple[list[Tensor], ...] = ([], [], [], [], [])
    for text, example in zip(texts, examples, strict=True):
        placeholder = text.ids == IMAGE_PLACEHOLDER
        counts = torch.ones_like(text.ids)
        counts[placeholder] = torch.tensor([image.n_tokens for image in example.images]).long()
        source = torch.repeat_interleave(torch.arange(len(text.ids)), counts)
        is_visual = placeholder[source]
        embeds = mdlm.token_embeddings(text.ids.clamp_min(0)[source].to(device))
        if example.images:
            pieces = torch.cat([next(visual) for _ in example.images]).to(embeds.dtype)
            embeds = embeds.masked_scatter(is_visual.to(device)[:, None], pieces)
        labels = torch.where(is_visual, IGNORE_LABEL, text.labels[source])
        row = (embeds, labels, text.filler[source], is_visual, text.turns[source])
        for column, value in zip(columns, row, strict=True):
            column.append(value.to(device))
    lengths = torch.tensor([len(row) for row in columns[0]], device=device)
    alike = bool((lengths == lengths[0]).all())
    return Batch(
        embeds=pad_sequence(columns[0], batch_first=True),
        labels=pad_sequence(columns[1], batch_first=True, padding_value=IGNORE_LABEL),
        filler=pad_sequence(columns[2], batch_first=True),
        visual=pad_sequence(columns[3], batch_first=True),
        turns=pad_sequence(columns[4], batch_first=True),
        lengths=None if padding == "reference" or alike else lengths,
    )


def batch_loss(
    mdlm: Mdlm, batch: Batch, noise: Noise, *, filler_weight: float = 1.0, turn_mask: bool = False
) -> Tensor:
    """The masked-diffusion loss, the mean over the rows; float32 scalar.

    Args:
        mdlm: The model.
        batch: Collated examples.
        noise: Of the batch's shape.
        filler_weight: Weight of the labels that fill answers up, a mean of their own.
        turn_mask: Whether a position sees its own and earlier turns alone.
    """
    labelled = batch.labels != IGNORE_LABEL
    masked = forward_process(labelled, noise.t, noise.uniform)
    replaced = masked if noise.hidden is None else masked | noise.hidden
    embeds = torch.where(replaced[..., None], mdlm.mask_embedding.to(batch.embeds), batch.embeds)
    # Labelled positions first: only they go through the output head.
    n_labelled = labelled.sum(1)
    order = labelled.long().argsort(dim=1, descending=True, stable=True)
    positions = order[:, : max(int(n_labelled.max()), 1)]
    attends = None
    if turn_mask:
        attends = batch.turns[:, :, None] >= batch.turns[:, None, :]
    logits = mdlm.logits(embeds, positions, batch.lengths, attends=attends)
    targets, filler = batch.labels.gather(1, positions), batch.filler.gather(1, positions)
    chosen = masked.gather(1, positions)
    n_filler = (labelled & batch.filler).sum(1)
    loss = masked_diffusion_loss(logits, targets, chosen & ~filler, noise.t, n_labelled - n_filler)
    if filler_weight > 0 and bool(n_filler.any()):
        rest = masked_diffusion_loss(logits, targets, chosen & filler, noise.t, n_filler)
        loss = loss + filler_weight * rest
    return loss


def draw_noise(batch: Batch, seeds: Sequence[int], *, visual_mask: float = 0.0) -> Noise:
    """Noise that depends on the rows' seeds alone, not on the batch they fall in.

    Args:
        batch: The batch.
        seeds: One for every row.
        visual_mask: Highest share of a row's visual tokens that is hidden.
    """
    n = batch.labels.shape[1]
    times, uniform, hidden = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        times.append(draw_times(1, generator))
        # Row-major pairs: padding appends numbers and shifts none.
        highest = visual_mask * torch.rand(1, generator=generator)
        pair = torch.rand(n, 2, generator=generator)
        uniform.append(pair[:, 0])
        hidden.append(pair[:, 1] < highest)
    device = batch.labels.device
    shares = torch.stack(hidden).to(device) & batch.visual if visual_mask > 0 else None
    return Noise(torch.cat(times).to(device), torch.stack(uniform).to(device), shares)


def row_seed(seed: int, epoch: int, row: int) -> int:
    """The seed of one row's noise in one epoch, 0 to 2^63 - 1."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _padded_with_ids(texts: Sequence[Text], pad: int) -> list[Text]:
    """Texts of one length; the pad ids behind them are labels, as in the published collator."""
    width = max(len(text.ids) for text in texts)
    padded = []
    for text in texts:
        behind = torch.full((width - len(text.ids),), pad)
        padded.append(
            Text(
                ids=torch.cat([text.ids, behind]),
                labels=torch.cat([text.labels, behind]),
                filler=torch.cat([text.filler, torch.zeros_like(behind, dtype=torch.bool)]),
                turns=torch.cat([text.turns, text.turns[-1:].expand(len(behind))]),
            )
        )
    return padded
