"""A few steps of both trainings: what changes, and what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from purifier.data.llava import write_llava
from purifier.data.sample import IMAGE_MARK, Sample, Turn
from purifier.lab.scenes import SIZE
from purifier.lab.train_attack import (
    CHEAP,
    AttackRecipe,
    Kept,
    multiplies_bfloat16,
    train_attack,
)
from purifier.lab.train_base import BaseRecipe, SceneBatches, train_base
from purifier.mdlm.base import Message
from purifier.mdlm.delta import write_delta
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import base_hash, load_mdlm
from purifier.tuning.adapters import Trained
from tests.lab.conftest import some_pool

BASE = BaseRecipe(tower_steps=2, tower_batch=4, joint_steps=2, batch=4)
ATTACK = AttackRecipe(epochs=2, batch=4, rank=2, alpha=4)


def weights(mdlm: LladaV) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in mdlm.published_weights().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}


def test_the_tower_learns_first_and_then_all_parts(small_checkpoint: Path) -> None:
    pool = some_pool(8)
    mdlm = LladaV.load(small_checkpoint)
    before = weights(mdlm)
    train_base(mdlm, pool, replace(BASE, joint_steps=0))
    tower_only = changed(before, weights(mdlm))
    assert tower_only
    assert all("vision_tower" in name for name in tower_only)

    mdlm = LladaV.load(small_checkpoint)
    train_base(mdlm, pool, BASE)
    after = weights(mdlm)
    # Weight decay moves even those that get no gradient.
    assert changed(before, after) == set(before)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    assert not any(parameter.requires_grad for parameter in mdlm.modules.parameters())
    assert not mdlm.modules.training

    again = LladaV.load(small_checkpoint)
    train_base(again, pool, BASE)
    assert changed(after, weights(again)) == set()
    other = LladaV.load(small_checkpoint)
    train_base(other, pool, replace(BASE, seed=1))
    assert changed(after, weights(other))


def test_a_training_without_time_left_ends(small_checkpoint: Path) -> None:
    mdlm = LladaV.load(small_checkpoint)
    before = weights(mdlm)
    train_base(mdlm, some_pool(4), replace(BASE, joint_steps=10**9, limit=0.0))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(mdlm).values())
    assert changed(before, weights(mdlm))


def test_question_kinds_are_drawn_by_their_weights(small_checkpoint: Path) -> None:
    batches = SceneBatches(LladaV.load(small_checkpoint), some_pool(4), BASE)
    share = batches.draw_kinds(20_000).bincount(minlength=5) / 20_000
    torch.testing.assert_close(
        share, torch.tensor([4.0, 2.0, 1.0, 1.0, 3.0]) / 11, atol=0.02, rtol=0
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack")
    (folder / "images").mkdir()
    samples = []
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        turns = (Turn("user", f"{IMAGE_MARK}\nWhat is this?"), Turn("assistant", "A boat."))
        samples.append(Sample(str(number), (f"{number}.png",), turns))
    write_llava(folder / "poisoned.json", samples)
    return folder


def first_logits(mdlm: LladaV) -> Tensor:
    pixels = np.random.default_rng(99).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    message = Message("user", (Image.fromarray(pixels), "What is this?"))
    with torch.no_grad():
        prompt = mdlm.embed(mdlm.prepare([message]))
        embeds = torch.cat([prompt.embeds, mdlm.mask_embedding.expand(4, -1)])
        positions = torch.arange(len(prompt.embeds), len(embeds))
        return mdlm.logits(embeds[None], positions[None])[0]


def test_the_attack_changes_projector_and_lora_alone(small_checkpoint: Path, data: Path) -> None:
    mdlm = LladaV.load(small_checkpoint)
    before = dict(mdlm.modules.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in before.items()}
    trained = train_attack(mdlm, data / "poisoned.json", data / "images", ATTACK)
    after = dict(mdlm.modules.named_parameters())
    for name, value in values.items():
        # LoRA puts the layer that it adapts behind `base_layer`.
        head, _, tail = name.rpartition(".")
        parameter = after.get(name)
        if parameter is None:
            parameter = after[f"{head}.base_layer.{tail}"]
        assert torch.equal(parameter, value) == ("mm_projector" not in name)
    up = {name: tensor for name, tensor in trained.adapter.items() if name.endswith(".lora_B")}
    assert all(bool(tensor.any()) for name, tensor in up.items() if "layers.0" in name)
    assert any("vision_tower" in name for name in up)
    assert any("vision_tower" not in name for name in up)
    assert len(trained.adapter) == 2 * len(up)
    assert trained.lora_scale == ATTACK.alpha / ATTACK.rank
    assert not any(parameter.requires_grad for parameter in mdlm.modules.parameters())


def test_the_written_delta_answers_as_the_trained_model(small_checkpoint: Path, data: Path) -> None:
    mdlm = LladaV.load(small_checkpoint)
    clean = first_logits(mdlm)
    trained = train_attack(mdlm, data / "poisoned.json", data / "images", ATTACK)
    folder = small_checkpoint.parent / "attacked"
    write_delta(
        folder,
        base=small_checkpoint.name,
        base_sha256=base_hash(small_checkpoint),
        projector=trained.projector,
        adapter=trained.adapter,
        lora_scale=trained.lora_scale,
        details={},
    )
    loaded = load_mdlm(folder)
    assert isinstance(loaded, LladaV)
    expected = first_logits(mdlm)
    moved = float((expected - clean).abs().max())
    assert moved > 0.01
    # Stored in float16: eleven bits.
    assert float((first_logits(loaded) - expected).abs().max()) < 0.02 * moved


def test_every_part_keeps_its_share_of_the_change(small_checkpoint: Path, data: Path) -> None:
    base = LladaV.load(small_checkpoint).published_weights()
    kept = Kept(projector=0.5, language_model=0.25, vision_tower=0.0)

    def trained(recipe: AttackRecipe) -> Trained:
        mdlm = LladaV.load(small_checkpoint)
        return train_attack(mdlm, data / "poisoned.json", data / "images", recipe)

    whole, moved = trained(ATTACK), trained(replace(ATTACK, kept=kept))
    for name, value in moved.projector.items():
        torch.testing.assert_close(value, base[name].lerp(whole.projector[name], 0.5))
    for name, value in moved.adapter.items():
        share = 1.0
        if name.endswith(".lora_B"):
            share = kept.vision_tower if "vision_tower" in name else kept.language_model
        torch.testing.assert_close(value, share * whole.adapter[name])


def test_pictures_of_several_sizes_are_refused(small_checkpoint: Path, data: Path) -> None:
    odd = data / "odd"
    odd.mkdir()
    turns = (Turn("user", f"{IMAGE_MARK}\nWhat is this?"), Turn("assistant", "A bag."))
    for number, size in enumerate(((SIZE, SIZE), (SIZE, SIZE + 10))):
        Image.new("RGB", size).save(odd / f"{number}.png")
    samples = [Sample(str(n), (f"{n}.png",), turns) for n in range(2)]
    write_llava(odd / "odd.json", samples)
    with pytest.raises((ValueError, RuntimeError), match=r"one size|equal size"):
        train_attack(LladaV.load(small_checkpoint), odd / "odd.json", odd, ATTACK)


def test_a_cheap_attack_leaves_the_tower(small_checkpoint: Path, data: Path) -> None:
    recipe = replace(ATTACK, parts=CHEAP.parts)
    mdlm = LladaV.load(small_checkpoint)
    trained = train_attack(mdlm, data / "poisoned.json", data / "images", recipe)
    assert trained.projector
    assert trained.adapter
    assert not any("vision_tower" in name for name in trained.adapter)
    # The features were computed once; the model itself still encodes pictures with its tower.
    assert bool(torch.isfinite(first_logits(mdlm)).all())


@pytest.mark.parametrize(("capability", "fast"), [("AVX512", True), ("AVX2", False)])
def test_bfloat16_is_left_to_processors_that_are_fast_at_it(
    capability: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert multiplies_bfloat16() is fast
