"""The written delta: the tuned model again, on nothing but the base."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from purifier.data.dataset import open_dataset
from purifier.finetune import finetune
from purifier.mdlm.delta import read_delta
from purifier.mdlm.export import export_merged
from purifier.mdlm.export_adapter import export_adapter
from purifier.mdlm.registry import base_hash, checkpoint_id, load_mdlm
from purifier.tuning.adapters import collect
from purifier.tuning.examples import TrainingRows
from purifier.tuning.result import write_result
from purifier.tuning.spec import FinetuneSpec
from purifier.tuning.train import Trainer
from tests.support.published import read_by_peft
from tests.tuning.conftest import CONFIG, first_logits

EVERYTHING = ("projector", "language_model", "vision_tower")


def tuned(checkpoint: Path, data: Path, parts: tuple[Any, ...]) -> Trainer:
    mdlm = load_mdlm(checkpoint)
    config = replace(CONFIG, parts=parts)
    trainer = Trainer(mdlm, TrainingRows(mdlm, open_dataset(data), config), config)
    trainer.train(lambda event: None, lambda: False)
    return trainer


@pytest.mark.parametrize("parts", [EVERYTHING, ("projector",), ("language_model",)])
@pytest.mark.parametrize("full_weights", [False, True])
def test_the_loaded_result_is_the_tuned_model(
    compromised: Path,
    tiny_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    parts: tuple[Any, ...],
    full_weights: bool,
) -> None:
    checkpoint = tiny_checkpoint if full_weights else compromised
    trainer = tuned(checkpoint, data, parts)
    for dtype, tolerance in (("float32", 1e-5), ("float16", 2e-2)):
        output = write_result(
            tmp_path / dtype,
            collect(trainer.mdlm, trainer.opened, 2.0),
            checkpoint=checkpoint,
            base=None,
            stored_dtype=dtype,  # type: ignore[arg-type]
            details={},
        )
        expected = first_logits(trainer.mdlm)
        moved = float((expected - first_logits(load_mdlm(checkpoint))).abs().max())
        assert moved > 1e-2
        loaded = load_mdlm(output, base=tiny_checkpoint)
        assert float((first_logits(loaded) - expected).abs().max()) < tolerance * moved


def test_it_holds_both_deltas_and_needs_the_base_alone(
    spec: FinetuneSpec, compromised: Path, tiny_checkpoint: Path
) -> None:
    finetune(spec)
    before = read_delta(compromised)
    after = read_delta(spec.output, base=tiny_checkpoint)
    name = "model.layers.0.self_attn.q_proj.weight"
    down, up = (after.tensors[f"{name}.lora_{factor}"] for factor in "AB")
    assert down.shape[0] == up.shape[1] == 3 + CONFIG.rank
    assert torch.equal(down[:3], before.tensors[f"{name}.lora_A"])
    assert torch.equal(up[:, :3], 2.0 * before.tensors[f"{name}.lora_B"])
    other = after.tensors["model.layers.1.mlp.up_proj.weight.lora_A"]
    assert other.shape[0] == CONFIG.rank
    assert after.lora_scale == 1.0
    beside = tiny_checkpoint.parent / "moved"
    try:
        shutil.copytree(spec.output, beside)
        load_mdlm(beside)
    finally:
        shutil.rmtree(beside)


def test_a_projector_that_was_compromised_stays_where_it_is_not_trained(
    spec: FinetuneSpec, compromised: Path, tiny_checkpoint: Path
) -> None:
    finetune(replace(spec, config=replace(CONFIG, parts=("language_model",))))
    after = read_delta(spec.output, base=tiny_checkpoint).tensors
    bias = "model.mm_projector.2.bias"
    assert torch.equal(after[bias], read_delta(compromised).tensors[bias])
    assert [name for name in after if "mm_projector" in name] == [bias]


def test_it_can_be_exported_as_plain_weights(
    spec: FinetuneSpec, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    finetune(spec)
    export_merged(spec.output, tmp_path / "merged", base=tiny_checkpoint, shard_bytes=40_000)
    expected = load_mdlm(spec.output, base=tiny_checkpoint).published_weights()
    found = load_mdlm(tmp_path / "merged").published_weights()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_it_can_be_exported_as_an_adapter_of_several_ranks(
    spec: FinetuneSpec, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    finetune(spec)
    export_adapter(spec.output, tmp_path / "adapter", base=tiny_checkpoint)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    both = r"model\.layers\.0\.self_attn\.q_proj"
    assert config["r"] == CONFIG.rank
    assert config["rank_pattern"][both] == 3 + CONFIG.rank
    assert config["alpha_pattern"][both] == 3 + CONFIG.rank
    found = read_by_peft(tiny_checkpoint, tmp_path / "adapter")
    for name, weight in load_mdlm(spec.output, base=tiny_checkpoint).published_weights().items():
        torch.testing.assert_close(found[name], weight)


def test_the_manifest_says_where_it_comes_from(
    spec: FinetuneSpec, compromised: Path, tiny_checkpoint: Path, data: Path
) -> None:
    finetune(spec)
    manifest = json.loads((spec.output / "delta.json").read_text())
    assert manifest["base"] == tiny_checkpoint.name
    assert manifest["base_sha256"] == base_hash(tiny_checkpoint)
    assert manifest["parent"] == checkpoint_id(compromised)
    assert manifest["data_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert manifest["settings"] == CONFIG.to_dict() | {"dtype": "float32"}
    assert manifest["seed"] == CONFIG.seed
    assert set(manifest["metrics"]) == {
        *("rows", "bad_rows", "steps", "trained_tokens", "loss_first_epoch", "loss_last_epoch")
    }
    written = {path.name for path in spec.output.iterdir()} - {"delta.json"}
    assert written == set(manifest["files"])
    for name, digest in manifest["files"].items():
        content = (spec.output / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    tensors = load_file(spec.output / "adapter.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_nothing_is_left_of_a_result_that_cannot_be_written(
    compromised: Path, data: Path, tmp_path: Path
) -> None:
    trainer = tuned(compromised, data, ("projector",))
    trained = collect(trainer.mdlm, trainer.opened, 2.0)
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(TypeError):
        write_result(
            folder / "healed",
            trained,
            checkpoint=compromised,
            base=None,
            stored_dtype="float32",
            details={"unwritable": object()},
        )
    assert list(folder.iterdir()) == []
