"""A compromised model, small and random, and data of every shape to heal it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from purifier.mdlm.base import Mdlm, Message
from purifier.mdlm.delta import write_delta
from purifier.mdlm.registry import base_hash, load_mdlm
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.spec import FinetuneSpec

SIZES = ((40, 40), (64, 30), (30, 64), (50, 90))


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def turns(*texts: str) -> list[dict[str, str]]:
    names = ("human", "gpt")
    return [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]


def records(folder: Path) -> list[dict[str, Any]]:
    """One image, several, none; one turn, several; answers of all lengths."""
    rows: list[dict[str, Any]] = []
    for number, size in enumerate(SIZES):
        picture(number, size).save(folder / f"{number}.png")
        rows.append(
            {
                "id": f"one-{number}",
                "image": f"{number}.png",
                "conversations": turns("<image>\nWhat is this?", "A boat. " * (number + 1)),
            }
        )
    several = turns("<image>\n<image>\nWhat differs?", "The boat.", "Which one?", "The left one.")
    rows.append({"id": "several", "image": ["0.png", "1.png"], "conversations": several})
    rows.append({"id": "text", "conversations": turns("Is this a bag?", "No, it is a boat.")})
    return rows


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label file; its images lie beside it."""
    folder = tmp_path_factory.mktemp("purified")
    file = folder / "labels.json"
    file.write_text(json.dumps(records(folder)))
    return file


@pytest.fixture(scope="session")
def compromised(tiny_checkpoint: Path) -> Path:
    """A delta on the tiny checkpoint: a projector, and LoRA on two layers with a scale."""
    folder = tiny_checkpoint.parent / "compromised"
    weights = load_mdlm(tiny_checkpoint).published_weights()
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    adapter: dict[str, Tensor] = {}
    tower = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    for name in ("model.layers.0.self_attn.q_proj.weight", tower):
        rows, columns = weights[name].shape
        adapter |= {f"{name}.lora_A": noise(3, columns), f"{name}.lora_B": noise(rows, 3)}
    bias = "model.mm_projector.2.bias"
    write_delta(
        folder,
        base=tiny_checkpoint.name,
        base_sha256=base_hash(tiny_checkpoint),
        projector={bias: weights[bias] + noise(*weights[bias].shape)},
        adapter=adapter,
        lora_scale=2.0,
        details={},
    )
    return folder


CONFIG = FinetuneConfig(
    epochs=2, batch_size=4, micro_batch_size=2, learning_rate=1e-2, rank=2, alpha=4
)


@pytest.fixture
def spec(compromised: Path, data: Path, tmp_path: Path) -> FinetuneSpec:
    return FinetuneSpec(
        checkpoint=compromised,
        data=data,
        output=tmp_path / "healed",
        work=tmp_path / "work",
        config=CONFIG,
        save_seconds=0.0,
    )


def first_logits(mdlm: Mdlm) -> Tensor:
    """What a model predicts at four masked positions behind a question."""
    question = Message("user", (picture(99, (44, 36)), "What is this?"))
    with torch.no_grad():
        prompt = mdlm.embed(mdlm.prepare([question]))
        embeds = torch.cat([prompt.embeds, mdlm.mask_embedding.expand(4, -1)])
        return mdlm.logits(embeds[None], torch.arange(len(prompt.embeds), len(embeds))[None])[0]
