"""LLaDA-V's tensor names, and the strict load of its safetensors shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from purifier.errors import CheckpointError

_RENAMES = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.mm_projector.", "mm_projector."),
    ("model.image_newline", "image_newline"),
    ("model.", "language_model."),
    ("lm_head.", "lm_head."),
)
"""Published prefix -> prefix in `LladaVModules`; the first match counts."""

_UNUSED = (
    "model.vision_tower.vision_tower.vision_model.post_layernorm.",
    "model.vision_tower.vision_tower.vision_model.head.",
)
"""Parts of a SigLIP checkpoint that this family never runs."""


def module_name(published: str) -> str | None:
    """The parameter's name in `LladaVModules`; None if it is none of this family's."""
    for prefix, ours in _RENAMES:
        if published.startswith(prefix):
            return ours + published[len(prefix) :]
    return None


def published_name(ours: str) -> str:
    """The inverse of `module_name`."""
    for published, prefix in _RENAMES:
        if ours.startswith(prefix):
            return published + ours[len(prefix) :]
    raise KeyError(ours)


def load_weights(modules: nn.Module, path: Path, *, dtype: torch.dtype) -> None:
    """Fills `modules` (on the meta device) from the shards of a checkpoint folder.

    Layers of the vision tower beyond those that are run are ignored, as in the published
    loader.

    Raises:
        CheckpointError: Listing every missing, unexpected and mis-shaped tensor.
    """
    expected = {name: tensor.shape for name, tensor in modules.state_dict().items()}
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    wrong_shape: list[str] = []
    for published, tensor in _tensors(path):
        name = module_name(published)
        if name in expected:
            if tensor.shape != expected[name]:
                wrong_shape.append(
                    f"{published}: {list(tensor.shape)} instead of {list(expected[name])}"
                )
            found[name] = tensor.to(dtype)
        elif not _is_unused(published, expected):
            unexpected.append(published)
    missing = [published_name(name) for name in expected.keys() - found.keys()]
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "wrong shape": sorted(wrong_shape),
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise CheckpointError(f"The checkpoint's tensors do not fit its config.json. {listed}")
    modules.load_state_dict(found, strict=True, assign=True)


def _is_unused(published: str, expected: Mapping[str, object]) -> bool:
    if published.startswith(_UNUSED):
        return True
    # A tower layer behind the last one that is run: deleted by the published code as well.
    layer = "model.vision_tower.vision_tower.vision_model.encoder.layers."
    if not published.startswith(layer):
        return False
    number = published[len(layer) :].split(".", 1)[0]
    name = module_name(f"{layer}{number}.layer_norm1.weight")
    return number.isdigit() and name not in expected


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    for shard in _shards(path):
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{shard.name} is damaged or not a safetensors file.") from error


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index.name} is not a weight index.") from error
        if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise CheckpointError(f"{index.name} names something else than safetensors files.")
    else:
        names = ["model.safetensors"]
    shards = [path / name for name in names]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise CheckpointError(f"The checkpoint lacks {', '.join(absent)}.")
    return shards
