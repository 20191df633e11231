"""Collation and loss: a row counts alike whatever it is batched with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifier.data.dataset import open_dataset
from purifier.mdlm.base import IGNORE_LABEL, Mdlm
from purifier.mdlm.registry import load_mdlm
from purifier.tuning.batch import Noise, batch_loss, collate, draw_noise, row_seed
from purifier.tuning.examples import Example, TrainingRows
from tests.tuning.conftest import CONFIG

Rows = tuple[Mdlm, list[Example]]


@pytest.fixture(scope="module")
def rows(tiny_checkpoint: Path, data: Path) -> Rows:
    mdlm = load_mdlm(tiny_checkpoint)
    config = replace(CONFIG, parts=("projector",), answer_length=20)
    found = TrainingRows(mdlm, open_dataset(data), config)
    return mdlm, [found[number] for number in range(len(found))]


def test_embeddings_are_those_of_the_prompt(rows: Rows) -> None:
    mdlm, examples = rows
    batch = collate(mdlm, examples, padding="excluded")
    assert batch.lengths is not None
    for number, example in enumerate(examples):
        n = int(batch.lengths[number])
        n_visual = sum(image.n_tokens for image in example.images)
        assert n == len(example.text.ids) - len(example.images) + n_visual
        assert int(batch.visual[number].sum()) == n_visual
        text = ~batch.visual[number, :n]
        ids = example.text.ids[example.text.ids >= 0]
        assert torch.equal(batch.embeds[number, :n][text], mdlm.token_embeddings(ids))
        labels = batch.labels[number]
        assert bool((labels[batch.visual[number]] == IGNORE_LABEL).all())
        assert bool((labels[n:] == IGNORE_LABEL).all())


@pytest.mark.parametrize("turn_mask", [False, True])
def test_a_batch_is_the_mean_of_its_rows(rows: Rows, turn_mask: bool) -> None:
    mdlm, examples = rows
    seeds = [row_seed(0, 0, number) for number in range(len(examples))]

    def loss(chosen: list[int]) -> float:
        batch = collate(mdlm, [examples[i] for i in chosen], padding="excluded")
        noise = draw_noise(batch, [seeds[i] for i in chosen], visual_mask=0.5)
        with torch.no_grad():
            return batch_loss(mdlm, batch, noise, filler_weight=0.3, turn_mask=turn_mask).item()

    everyone = list(range(len(examples)))
    alone = [loss([number]) for number in everyone]
    assert loss(everyone) == pytest.approx(sum(alone) / len(alone), rel=1e-4)
    assert loss(everyone[::-1]) == pytest.approx(loss(everyone), rel=1e-4)


def test_turns_see_no_later_turns(rows: Rows) -> None:
    mdlm, examples = rows
    batch = collate(mdlm, [examples[4]], padding="excluded")
    assert batch.turns.max() == 1
    later = batch.turns == 1
    moved = replace(batch, embeds=torch.where(later[..., None], batch.embeds + 1, batch.embeds))
    # Only the first answer's labels are masked, so only they are in the loss.
    uniform = torch.where(later, 1.0, 0.0)
    noise = Noise(torch.tensor([0.5]), uniform)
    with torch.no_grad():
        seen = [batch_loss(mdlm, each, noise).item() for each in (batch, moved)]
        unseen = [batch_loss(mdlm, each, noise, turn_mask=True).item() for each in (batch, moved)]
    assert abs(seen[0] - seen[1]) > 1e-3
    assert unseen[0] == pytest.approx(unseen[1], abs=1e-5)


def test_fillers_have_a_weight_of_their_own(rows: Rows) -> None:
    mdlm, examples = rows
    batch = collate(mdlm, examples[:2], padding="excluded")
    noise = draw_noise(batch, [1, 2])
    with torch.no_grad():
        none, half, full = (
            batch_loss(mdlm, batch, noise, filler_weight=weight).item() for weight in (0, 0.5, 1)
        )
    assert none < half < full
    assert full - half == pytest.approx(half - none, rel=1e-3)


def test_noise_belongs_to_the_row(rows: Rows) -> None:
    mdlm, examples = rows
    short = collate(mdlm, examples[5:], padding="excluded")
    long = collate(mdlm, examples[4:], padding="excluded")
    n = short.labels.shape[1]
    alone = draw_noise(short, [7], visual_mask=0.5)
    batched = draw_noise(long, [8, 7], visual_mask=0.5)
    assert torch.equal(alone.t, batched.t[1:])
    assert torch.equal(alone.uniform[0], batched.uniform[1, :n])
    assert batched.hidden is not None
    assert not bool((batched.hidden & ~long.visual).any())
    assert bool(batched.hidden[0].any())
    assert not bool(batched.hidden[1].any())
    assert draw_noise(long, [8, 7]).hidden is None
    seeds = {row_seed(seed, epoch, row) for seed in (0, 1) for epoch in (0, 1) for row in (0, 1)}
    assert len(seeds) == 8


def test_hidden_visual_tokens_change_the_loss(rows: Rows) -> None:
    mdlm, examples = rows
    batch = collate(mdlm, examples[:1], padding="excluded")
    noise = Noise(torch.tensor([0.9]), torch.full(batch.labels.shape, 0.5))
    with torch.no_grad():
        seen = batch_loss(mdlm, batch, noise)
        hidden = batch_loss(mdlm, batch, replace(noise, hidden=batch.visual))
    assert abs((seen - hidden).item()) > 1e-4


def test_published_padding_is_attended_to_and_trained(rows: Rows) -> None:
    mdlm, examples = rows
    batch = collate(mdlm, [examples[0], examples[5]], padding="reference")
    assert batch.lengths is None
    missing = len(examples[0].text.ids) - len(examples[5].text.ids)
    padded = examples[5] if missing > 0 else examples[0]
    row = 1 if missing > 0 else 0
    labels = batch.labels[row]
    assert int((labels == mdlm.tokens.pad).sum()) == abs(missing)
    assert int((padded.text.labels == mdlm.tokens.pad).sum()) == 0
