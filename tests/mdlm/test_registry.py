"""What may be loaded, and what is refused before anything is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from purifier import CheckpointError, InvalidSetting, checkpoint_id, load_mdlm
from purifier.mdlm.delta import write_delta
from purifier.mdlm.llada_v import weights
from purifier.mdlm.registry import base_hash


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]}, "auto_map"),
        ({"nested": {"deep": [{"trust_remote_code": True}]}}, "trust_remote_code"),
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"mm_patch_merge_type": "maxpool"}, "mm_patch_merge_type"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio"),
        ({"image_grid_pinpoints": [[33, 64]]}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": "__import__('os')"}, "image_grid_pinpoints"),
        ({"mm_vision_tower": "../elsewhere"}, "mm_vision_tower"),
        ({"mm_vision_tower": 7}, "mm_vision_tower"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"architectures": 7}, "architectures"),
        ({"architectures": [{}]}, "architectures"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide"),
        ({"hidden_act": "no_such_function"}, "hidden_act"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_theta": None}, "rope_theta"),
        ({"tokenizer_model_max_length": "long"}, "tokenizer_model_max_length"),
        ({"image_aspect_ratio": "anyres_max_0"}, "image_aspect_ratio"),
        ({"image_aspect_ratio": ["pad"]}, "image_aspect_ratio"),
    ],
)
def test_refused_configurations(folder: Path, changes: dict[str, object], message: str) -> None:
    _edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_mdlm(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"vision_config": 3}', '{"image_size": 0}'])
def test_refused_tower_configurations(folder: Path, content: str) -> None:
    tower = json.loads((folder / "config.json").read_text())["mm_vision_tower"]
    (folder / tower / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_mdlm(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "deep/x.pt", "x.pkl", "X.PTH"])
def test_pickled_files_are_refused(folder: Path, name: str) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_mdlm(folder)


def test_missing_unexpected_and_misshaped_tensors_are_listed(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    tensors["model.extra.weight"] = torch.zeros(1)
    tensors["model.norm.weight"] = torch.zeros(5)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        load_mdlm(folder)
    for part in (
        "missing: lm_head.weight",
        "unexpected: model.extra.weight",
        "wrong shape: model.norm.weight (in model.safetensors): [5] instead of [32]",
    ):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (1, r"unexpected: model\.layers\.1\.input_layernorm\.weight \(in model\.safetensors\)"),
        (3, r"missing: model\.layers\.2\.input_layernorm\.weight"),
    ],
)
def test_a_configuration_of_another_depth_is_refused_before_weights_are_read(
    folder: Path, layers: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit(folder, num_hidden_layers=layers)
    monkeypatch.setattr(weights, "read_tensors", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match=message):
        load_mdlm(folder)


def test_weights_do_not_change_with_their_file(folder: Path) -> None:
    mdlm = load_mdlm(folder)
    before = mdlm.published_weights()["lm_head.weight"].clone()
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\0" * (file.stat().st_size - 4096))
    assert torch.equal(mdlm.published_weights()["lm_head.weight"], before)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not numbers: model\.layers\.1\.mlp\.up_proj"):
        load_mdlm(folder)


def test_deeper_tower_layers_are_ignored(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    prefix = "model.vision_tower.vision_tower.vision_model.encoder.layers."
    extra = {
        name.replace(f"{prefix}0.", f"{prefix}2."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}0.")
    }
    save_file({**tensors, **extra}, file)
    assert load_mdlm(folder).family == "llada_v"


def test_shards_and_index(folder: Path) -> None:
    whole = load_mdlm(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    weight_map = {name: file for file, chosen in parts.items() for name in chosen}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    sharded = load_mdlm(folder)
    for name, tensor in whole.published_weights().items():
        assert torch.equal(tensor, sharded.published_weights()[name])
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b\.safetensors"):
        load_mdlm(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="something else"):
        load_mdlm(folder)


def test_damaged_files(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(CheckpointError, match="damaged"):
        load_mdlm(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_mdlm(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_mdlm(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_mdlm(folder / "nowhere")


def test_device_and_dtype_are_checked(tiny_checkpoint: Path) -> None:
    for device in ("tpu", "cuda:x", "cpu:1", "", "cuda:9999"):
        with pytest.raises(InvalidSetting, match="device"):
            load_mdlm(tiny_checkpoint, device=device)
    with pytest.raises(InvalidSetting, match="dtype"):
        load_mdlm(tiny_checkpoint, dtype="int8")
    assert load_mdlm(tiny_checkpoint, dtype="bfloat16").dtype == torch.bfloat16


def test_checkpoint_id_names_the_content(folder: Path) -> None:
    before = checkpoint_id(folder)
    assert before == checkpoint_id(folder)
    assert before.startswith("model@sha256:")
    _edit(folder, rms_norm_eps=2e-5)
    assert checkpoint_id(folder) != before


def _delta(folder: Path, **overrides: object) -> Path:
    target = folder.parent / "tuned"
    width = 32
    settings = {
        "base": folder.name,
        "base_sha256": base_hash(folder),
        "projector": {"model.mm_projector.2.bias": torch.arange(width, dtype=torch.float32)},
        "adapter": {
            "model.layers.0.mlp.up_proj.weight.lora_A": torch.ones(2, width),
            "model.layers.0.mlp.up_proj.weight.lora_B": torch.ones(64, 2),
        },
        "lora_scale": 0.5,
        "details": {},
    }
    write_delta(target, **{**settings, **overrides})  # type: ignore[arg-type]
    return target


def test_delta_is_merged_into_its_base(folder: Path) -> None:
    base = load_mdlm(folder).published_weights()
    tuned = load_mdlm(_delta(folder)).published_weights()
    for name, tensor in base.items():
        if name == "model.mm_projector.2.bias":
            assert torch.equal(tuned[name], torch.arange(32, dtype=torch.float32))
        elif name == "model.layers.0.mlp.up_proj.weight":
            torch.testing.assert_close(tuned[name], tensor + 0.5 * 2)
        else:
            assert torch.equal(tuned[name], tensor)


def test_altered_deltas_are_refused(folder: Path) -> None:
    target = _delta(folder)
    file = target / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors was altered"):
        load_mdlm(target)
    target = _delta(folder)
    _edit(folder, rms_norm_eps=2e-5)
    with pytest.raises(CheckpointError, match="base was altered"):
        load_mdlm(target)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"base": "../model"}, "name its base"),
        ({"base": "absent"}, "not beside it"),
        ({"projector": {"model.nowhere": torch.zeros(3)}}, "no place"),
        ({"projector": {"model.mm_projector.2.bias": torch.zeros(3)}}, "wrong shape"),
        ({"adapter": {"lm_head.weight.lora_A": torch.zeros(2, 32)}}, "no matching lora_B"),
        ({"adapter": {"lm_head.weight.lora_B": torch.zeros(32, 2)}}, "no matching lora_A"),
        (
            {
                "adapter": {
                    "lm_head.weight.lora_A": torch.zeros(2),
                    "lm_head.weight.lora_B": torch.zeros(2),
                }
            },
            "no matching lora_B",
        ),
        ({"lora_scale": "half"}, "lora_scale"),
    ],
)
def test_deltas_that_do_not_fit(folder: Path, overrides: dict[str, object], message: str) -> None:
    target = _delta(folder, **overrides)
    with pytest.raises(CheckpointError, match=message):
        load_mdlm(target)
