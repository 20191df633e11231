"""LLaDA-V's tensor names, and the strict load of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from purifier.errors import CheckpointError
from purifier.mdlm.shards import StoredTensor, listed, stored_tensors
from purifier.mdlm.weight_reader import read_tensors

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


def load_weights(
    modules: nn.Module, path: Path, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Fills `modules` (on the meta device) from the shards of a checkpoint folder.

    Names and shapes are checked before anything is read; weights go straight to the device.
    Layers of the vision tower beyond those that are run are ignored, as in the published
    loader.

    Raises:
        CheckpointError: If a file is missing or damaged, naming it; if tensors are missing,
            unexpected or of the wrong shape, naming them; or if weights are not finite.
    """
    stored = check_weights(modules, path)
    names = {tensor.name: name for name, tensor in stored.items()}
    found = {
        names[published]: tensor
        for published, tensor in read_tensors(stored.values(), device=device, dtype=dtype)
    }
    modules.load_state_dict(found, strict=True, assign=True)


def check_weights(modules: nn.Module, path: Path) -> dict[str, StoredTensor]:
    """The stored tensors by the parameters of `modules` they are for; reads headers alone.

    Raises:
        CheckpointError: If a file is missing or damaged, or a tensor missing, unexpected or of
            the wrong shape.
    """
    expected = {name: tensor.shape for name, tensor in modules.state_dict().items()}
    return _matching(stored_tensors(path), expected)


def _matching(
    stored: Mapping[str, StoredTensor], expected: Mapping[str, torch.Size]
) -> dict[str, StoredTensor]:
    """The stored tensors by the parameters they are for.

    Raises:
        CheckpointError: If one is missing, unexpected or of the wrong shape.
    """
    found: dict[str, StoredTensor] = {}
    unexpected: list[str] = []
    wrong_shape: list[str] = []
    for published, tensor in stored.items():
        name = module_name(published)
        where = f"{published} (in {tensor.file.name})"
        if name is not None and name in expected:
            if tensor.shape != tuple(expected[name]):
                shapes = f"{list(tensor.shape)} instead of {list(expected[name])}"
                wrong_shape.append(f"{where}: {shapes}")
            found[name] = tensor
        elif not _is_unused(published, expected):
            unexpected.append(where)
    missing = [published_name(name) for name in expected.keys() - found.keys()]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape}
    if any(problems.values()):
        told = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"The checkpoint's tensors do not fit its config.json. {told}")
    return found


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
