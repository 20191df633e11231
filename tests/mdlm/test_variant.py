"""Models that share a base: exact, independent, and small."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier import GenerationConfig, MaskingConfig, answer
from purifier.errors import CheckpointError
from purifier.mdlm.base import Mdlm
from purifier.mdlm.delta import read_delta, write_delta
from purifier.mdlm.registry import base_hash, load_mdlm
from purifier.mdlm.variant import changed_bytes, drop_weights, with_delta

PROJECTOR = "model.mm_projector.0.weight"


@pytest.fixture
def delta_folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A delta that replaces a projector weight and adapts it and an attention weight."""
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    weights = load_mdlm(tiny_checkpoint).published_weights()
    generator = torch.Generator().manual_seed(0)
    query = next(
        name for name in weights if name.endswith("q_proj.weight") and "vision" not in name
    )
    adapter = {}
    for name in (PROJECTOR, query):
        rows, columns = weights[name].shape
        adapter[f"{name}.lora_A"] = torch.randn(4, columns, generator=generator)
        adapter[f"{name}.lora_B"] = torch.randn(rows, 4, generator=generator)
    folder = tmp_path / "delta"
    write_delta(
        folder,
        base="tiny",
        base_sha256=base_hash(tmp_path / "tiny"),
        projector={PROJECTOR: torch.randn(weights[PROJECTOR].shape, generator=generator)},
        adapter=adapter,
        lora_scale=0.3,
        details={},
    )
    return folder


def same(one: Mdlm, other: Mdlm) -> bool:
    left, right = one.published_weights(), other.published_weights()
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_variant_is_the_checkpoint_bit_for_bit(delta_folder: Path, dtype: str) -> None:
    base = load_mdlm(delta_folder.parent / "tiny", dtype=dtype)
    variant = with_delta(base, read_delta(delta_folder))
    loaded = load_mdlm(delta_folder, dtype=dtype)
    assert same(variant, loaded)
    assert same(base, load_mdlm(delta_folder.parent / "tiny", dtype=dtype))
    image = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    one, other = (
        answer(
            mdlm,
            image,
            "What is this?",
            generation=GenerationConfig(gen_length=4),
            masking=MaskingConfig(),
        )
        for mdlm in (variant, loaded)
    )
    assert one.token_ids == other.token_ids
    assert one.saliency is not None
    assert other.saliency is not None
    assert torch.equal(one.saliency, other.saliency)


def test_variant_has_the_changed_tensors_alone_for_itself(delta_folder: Path) -> None:
    base, delta = load_mdlm(delta_folder.parent / "tiny"), read_delta(delta_folder)
    variant = with_delta(base, delta)
    shared, own = base.published_weights(), variant.published_weights()
    apart = [name for name in own if own[name].data_ptr() != shared[name].data_ptr()]
    assert len(apart) == 2
    assert changed_bytes(base, delta) == sum(own[name].nbytes for name in apart)


def test_dropped_weights_are_gone_and_prompts_can_still_be_made(tiny_checkpoint: Path) -> None:
    from purifier.answer import user_messages

    mdlm = load_mdlm(tiny_checkpoint)
    before = mdlm.prepare(user_messages(None, "What is this?"))
    drop_weights(mdlm)
    assert sum(parameter.nbytes for parameter in mdlm.modules.parameters()) == 0
    assert torch.equal(mdlm.prepare(user_messages(None, "What is this?")).ids, before.ids)


def test_a_delta_that_is_not_finite_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    shape = load_mdlm(tiny_checkpoint).published_weights()[PROJECTOR].shape
    write_delta(
        tmp_path / "delta",
        base="tiny",
        base_sha256=base_hash(tmp_path / "tiny"),
        projector={PROJECTOR: torch.full(shape, torch.nan)},
        adapter={},
        lora_scale=1.0,
        details={},
    )
    with pytest.raises(CheckpointError, match=f"{PROJECTOR}.*not numbers"):
        load_mdlm(tmp_path / "delta")
    with pytest.raises(CheckpointError, match="not numbers"):
        with_delta(load_mdlm(tiny_checkpoint), read_delta(tmp_path / "delta"))
