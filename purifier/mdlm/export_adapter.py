"""A delta as an adapter folder that peft reads, and its projector beside it.

    adapter_config.json           LoRA on the layers by their names in the published class
    adapter_model.safetensors     its factors
    projector.safetensors         weights that the delta replaces, under their published names

The projector's weights go into the base model first (`load_state_dict(..., strict=False)`), then
`peft.PeftModel.from_pretrained(model, folder)` adds the rest.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from purifier.errors import CheckpointError
from purifier.mdlm.delta import Delta, is_delta, read_delta
from purifier.mdlm.export import check_delta, fresh_folder
from purifier.mdlm.registry import outline
from purifier.mdlm.shards import listed

PROJECTOR = "projector.safetensors"
ADAPTER = "adapter_model.safetensors"
"""As peft names it."""

_PREFIX = "base_model.model."
"""What peft puts before the names of a wrapped model's layers."""
_WEIGHT = ".weight"


def export_adapter(checkpoint: Path, output: Path, *, base: Path | None = None) -> None:
    """Writes a delta as a peft adapter folder with a projector file.

    Args:
        checkpoint: A delta.
        output: The folder to make; it appears whole or not at all.
        base: The delta's base; the folder of the name it gives, beside it, by default.

    Raises:
        CheckpointError: If it is no delta, does not fit its base, or has nothing for an adapter.
        InvalidSetting: If the output exists.
    """
    if not is_delta(checkpoint):
        raise CheckpointError(
            f"{checkpoint.name} holds full weights and no adapter; export it merged."
        )
    delta = read_delta(checkpoint, base=base)
    parts = check_delta(delta)
    projector = {
        name: delta.tensors[name].contiguous()
        for names in parts.values()
        for name in names
        if not name.endswith(".lora_A")
    }
    layers = _layers(delta)
    source = {"format": "pt", "base": delta.base_name, "base_sha256": delta.base_sha256}
    with fresh_folder(output) as folder:
        factors: dict[str, Tensor] = {}
        for layer in layers:
            for factor in ("lora_A", "lora_B"):
                tensor = delta.tensors[f"{layer}{_WEIGHT}.{factor}"]
                factors[f"{_PREFIX}{layer}.{factor}{_WEIGHT}"] = tensor.contiguous()
        save_file(factors, folder / ADAPTER, metadata=source)
        if projector:
            save_file(projector, folder / PROJECTOR, metadata=source)
        _write_config(folder, delta, layers)


def _layers(delta: Delta) -> dict[str, int]:
    """Rank of every layer that has factors, by its published name.

    Raises:
        CheckpointError: If there is none, or one is not of a kind that peft adapts this way.
    """
    model = outline(delta.base)
    linear = {
        model.published_name(f"{name}{_WEIGHT}")
        for name, module in model.modules.named_modules()
        if isinstance(module, nn.Linear)
    }
    weights = [name.removesuffix(".lora_A") for name in delta.tensors if name.endswith(".lora_A")]
    if not weights:
        raise CheckpointError(
            f"{delta.folder.name} changes whole weights alone and has no adapter; export it merged."
        )
    if other := [name for name in weights if name not in linear]:
        raise CheckpointError(
            f"{delta.folder.name}: an adapter can change linear layers, and {listed(other)} is "
            "none; export it merged."
        )
    return {
        name.removesuffix(_WEIGHT): int(delta.tensors[f"{name}.lora_A"].shape[0])
        for name in weights
    }


def _write_config(folder: Path, delta: Delta, layers: dict[str, int]) -> None:
    """Writes what peft needs to know; entries that only some of its versions have are left out."""
    rank = Counter(layers.values()).most_common(1)[0][0]
    others = {re.escape(name): own for name, own in layers.items() if own != rank}
    config = {
        "base_model_name_or_path": delta.base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": delta.lora_scale * rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(layers),
        "task_type": None,
    }
    if others:
        config["rank_pattern"] = others
        config["alpha_pattern"] = {name: delta.lora_scale * own for name, own in others.items()}
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
