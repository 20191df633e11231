"""A delta as an adapter folder: peft itself reads it, and merges to the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from purifier import CheckpointError, InvalidSetting, load_mdlm
from purifier.lab.demo import checkpoint_path
from purifier.mdlm.delta import write_delta
from purifier.mdlm.export_adapter import export_adapter
from purifier.mdlm.registry import base_hash
from purifier.mdlm.shards import stored_tensors
from tests.support.published import read_by_peft

LAYERS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
TOWER = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
BIAS = "model.mm_projector.2.bias"


@pytest.fixture
def base(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "models" / "tiny"))


def make_delta(base: Path, ranks: dict[str, int], *, projector: bool = True) -> Path:
    generator = torch.Generator().manual_seed(3)
    stored = stored_tensors(base)
    adapter = {}
    for layer, rank in ranks.items():
        rows, columns = stored[f"{layer}.weight"].shape
        adapter[f"{layer}.weight.lora_A"] = torch.randn(rank, columns, generator=generator)
        adapter[f"{layer}.weight.lora_B"] = torch.randn(rows, rank, generator=generator)
    bias = torch.randn(stored[BIAS].shape, generator=generator)
    write_delta(
        base.parent / "tuned",
        base=base.name,
        base_sha256=base_hash(base),
        projector={BIAS: bias} if projector else {},
        adapter=adapter,
        lora_scale=0.5,
        details={},
    )
    return base.parent / "tuned"


def require_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, msg=name)


@pytest.mark.parametrize(
    "ranks",
    [
        {LAYERS[0]: 3},
        {LAYERS[0]: 3, LAYERS[1]: 3, TOWER: 3},
        {LAYERS[0]: 3, LAYERS[1]: 5, TOWER: 3},
    ],
)
def test_peft_reads_the_folder(base: Path, tmp_path: Path, ranks: dict[str, int]) -> None:
    delta = make_delta(base, ranks)
    export_adapter(delta, tmp_path / "adapter")
    expected = load_mdlm(delta).published_weights()
    untouched = load_mdlm(base).published_weights()
    assert any(not torch.equal(expected[name], untouched[name]) for name in expected)
    require_close(read_by_peft(base, tmp_path / "adapter"), expected)


def test_peft_reads_the_demo(tmp_path: Path) -> None:
    export_adapter(checkpoint_path("insertion"), tmp_path / "adapter")
    expected = load_mdlm(checkpoint_path("insertion")).published_weights()
    require_close(read_by_peft(checkpoint_path("base"), tmp_path / "adapter"), expected)


def test_what_is_in_the_folder(base: Path, tmp_path: Path) -> None:
    delta = make_delta(base, {LAYERS[0]: 3, LAYERS[1]: 5, TOWER: 3})
    export_adapter(delta, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "projector.safetensors",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 1.5)
    assert list(config["rank_pattern"].values()) == [5]
    assert list(config["alpha_pattern"].values()) == [2.5]
    assert config["base_model_name_or_path"] == "tiny"
    for name in ("adapter_model", "projector"):
        with safe_open(tmp_path / "adapter" / f"{name}.safetensors", framework="pt") as file:
            assert file.metadata()["base_sha256"] == base_hash(base)


def test_a_delta_without_projector_has_no_projector_file(base: Path, tmp_path: Path) -> None:
    delta = make_delta(base, {LAYERS[0]: 3}, projector=False)
    export_adapter(delta, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "projector.safetensors").exists()
    require_close(read_by_peft(base, tmp_path / "adapter"), load_mdlm(delta).published_weights())


def test_what_is_no_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "adapter"
    with pytest.raises(CheckpointError, match=r"full weights.*merged"):
        export_adapter(base, output)
    with pytest.raises(CheckpointError, match=r"no adapter.*merged"):
        export_adapter(make_delta(base, {}), output)
    with pytest.raises(CheckpointError, match=r"embed_tokens.*none.*merged"):
        export_adapter(make_delta(base, {"model.embed_tokens": 2}), output)
    delta = make_delta(base, {LAYERS[0]: 3})
    (base / "LICENSE.json").write_text("{}")
    with pytest.raises(CheckpointError, match="altered since"):
        export_adapter(delta, output)
    assert list(tmp_path.glob("out/*")) == []


def test_what_is_there_stays(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="exists already"):
        export_adapter(make_delta(base, {LAYERS[0]: 3}), tmp_path / "models")
