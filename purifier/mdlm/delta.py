"""A fine-tuned checkpoint as a delta on its base: projector weights and a LoRA adapter.

    delta.json                  what it is, and the SHA-256 of every file
    projector.safetensors       the projector's tensors under their published names
    adapter.safetensors         LoRA factors, `<weight>.lora_A` [r, in] and `.lora_B` [out, r]

Either safetensors file may be absent. The base is the folder of the given name beside the
delta.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from purifier.errors import CheckpointError
from purifier.mdlm.base import Mdlm
from purifier.mdlm.json_files import read_object
from purifier.mdlm.shards import listed

FORMAT = "disp-delta-1"
_FILES = ("projector.safetensors", "adapter.safetensors")
_BASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,254}")
_DOWN, _UP = ".lora_A", ".lora_B"
_LARGEST_SCALE = 1e6


@dataclass(frozen=True)
class Delta:
    """A delta whose files have been checked against their hashes.

    Attributes:
        folder: Where it lies.
        base: The base checkpoint's folder.
        base_name: Its name in the manifest.
        base_sha256: Content hash of the base it was made on.
        lora_scale: alpha / r.
        tensors: Replacements by published name, and LoRA factors.
    """

    folder: Path
    base: Path
    base_name: str
    base_sha256: str
    lora_scale: float
    tensors: dict[str, Tensor]


def is_delta(folder: Path) -> bool:
    """Whether a folder holds a delta."""
    return (folder / "delta.json").is_file()


def read_delta(folder: Path, *, base: Path | None = None) -> Delta:
    """Reads and checks a delta.

    Args:
        folder: The delta.
        base: Its base; the folder of the name it gives, beside it, by default.

    Raises:
        CheckpointError: If it is damaged, altered, or its base is not there.
    """
    manifest = _manifest(folder)
    name = manifest.get("base")
    if not isinstance(name, str) or not _BASE_NAME.fullmatch(name):
        raise CheckpointError(f"{folder.name}: delta.json must name its base folder.")
    if base is None:
        base = folder.parent / name
    if not base.is_dir():
        raise CheckpointError(f"{folder.name}: its base {name} is not beside it.")
    tensors: dict[str, Tensor] = {}
    for file, expected in manifest["files"].items():
        path = folder / file
        if file not in _FILES or not path.is_file():
            raise CheckpointError(
                f"{folder.name}: {listed([file])} is missing or not part of a delta."
            )
        if file_sha256(path) != expected:
            raise CheckpointError(f"{folder.name}: {file} was altered or damaged.")
        try:
            tensors.update(load_file(path))
        except SafetensorError as error:
            raise CheckpointError(f"{folder.name}: {file} is not a safetensors file.") from error
    scale = float(manifest.get("lora_scale", 1.0))
    return Delta(folder, base, name, str(manifest["base_sha256"]), scale, tensors)


def root_of(model: Path) -> tuple[Path, str]:
    """The folder with the full weights of a checkpoint, and the name that deltas know it by.

    Raises:
        CheckpointError: If the checkpoint is a delta that is damaged or without its base.
    """
    if not is_delta(model):
        return model.resolve(), model.resolve().name
    delta = read_delta(model)
    return delta.base.resolve(), delta.base_name


def write_delta(
    folder: Path,
    *,
    base: str,
    base_sha256: str,
    projector: dict[str, Tensor],
    adapter: dict[str, Tensor],
    lora_scale: float,
    details: dict[str, Any],
) -> None:
    """Writes a delta; the manifest last, so that an unfinished folder is not a delta.

    Args:
        folder: Created if absent.
        base: Name of the base folder beside it.
        base_sha256: Content hash of the base.
        projector: Projector tensors by published name.
        adapter: LoRA factors by weight name.
        lora_scale: alpha / r.
        details: Further entries of delta.json: settings, seeds, data hash, metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, tensors in zip(_FILES, (projector, adapter), strict=True):
        if tensors:
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
            files[name] = file_sha256(folder / name)
    manifest = {
        "format": FORMAT,
        "base": base,
        "base_sha256": base_sha256,
        "lora_scale": lora_scale,
        "files": files,
        **details,
    }
    (folder / "delta.json").write_text(json.dumps(manifest, indent=1) + "\n")


@torch.no_grad()
def apply_delta(mdlm: Mdlm, delta: Delta) -> None:
    """Merges a delta into a loaded base.

    Raises:
        CheckpointError: If a tensor has no place in the model or the wrong shape, or a weight is
            not finite; in the last case the model is left half-changed.
    """
    weights = mdlm.published_weights()
    for name, tensor in changed_weights(mdlm, delta):
        weights[name].copy_(tensor)


@torch.no_grad()
def changed_weights(mdlm: Mdlm, delta: Delta) -> Iterator[tuple[str, Tensor]]:
    """The weights of a base that a delta changes, with their new values; the base stays as it is.

    Yields:
        Published name, and a tensor of its own in the shape, dtype and place of the base's.

    Raises:
        CheckpointError: If a tensor has no place in the model or the wrong shape, before anything
            is computed; or if a new value is not finite.
    """
    weights = mdlm.published_weights()
    shapes = {name: weight.shape for name, weight in weights.items()}
    for name, parts in parts_of(delta, shapes).items():
        yield name, changed_weight(delta, parts, weights[name])


def parts_of(delta: Delta, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Which of a delta's tensors change which weight of a base.

    Args:
        delta: The delta.
        shapes: Shapes of the base's weights by published name.

    Returns:
        For every weight that is changed the names of its tensors, in the order in which they
        count. The first factor stands for both.

    Raises:
        CheckpointError: If a tensor has no place in the base or the wrong shape.
    """
    parts: dict[str, list[str]] = {}
    for name, tensor in delta.tensors.items():
        where = f"{delta.folder.name}: {listed([name])}"
        target = name.removesuffix(_DOWN).removesuffix(_UP)
        if target not in shapes:
            raise CheckpointError(f"{where} has no place in the base.")
        if name.endswith(_UP):
            if f"{target}{_DOWN}" not in delta.tensors:
                raise CheckpointError(f"{where} has no matching lora_A.")
            continue
        shape = tuple(tensor.shape)
        if name.endswith(_DOWN):
            other = delta.tensors.get(f"{target}{_UP}")
            if other is None or not _is_pair(tensor, other):
                raise CheckpointError(f"{where} has no matching lora_B.")
            shape = (other.shape[0], tensor.shape[1])
        if shape != tuple(shapes[target]):
            raise CheckpointError(f"{where} has the wrong shape.")
        parts.setdefault(target, []).append(name)
    return parts


@torch.no_grad()
def changed_weight(delta: Delta, parts: Sequence[str], weight: Tensor) -> Tensor:
    """One weight of the base as a delta changes it.

    Whoever merges a delta computes it here, so that all get the same numbers.

    Args:
        delta: The delta.
        parts: Names of the tensors that change this weight, from `parts_of`.
        weight: The base's; it stays as it is.

    Returns:
        A tensor in the shape, dtype and place of `weight`.

    Raises:
        CheckpointError: If a number of it is not finite in that dtype.
    """
    for name in parts:
        change = delta.tensors[name]
        if name.endswith(_DOWN):
            up = delta.tensors[f"{name.removesuffix(_DOWN)}{_UP}"]
            product = delta.lora_scale * (up.float() @ change.float())
            change = weight.float() + product.to(weight.device)
        weight = change.to(weight.device, weight.dtype)
    if not torch.isfinite(weight).all():
        target = parts[0].removesuffix(_DOWN)
        raise CheckpointError(
            f"{listed([target])} has values that are infinite or not numbers once it is merged."
        )
    return weight


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_pair(down: Tensor, up: Tensor) -> bool:
    """Whether [r, in] and [out, r] are the factors of one matrix."""
    return down.dim() == up.dim() == 2 and up.shape[1] == down.shape[0]


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_object(folder / "delta.json", f"{folder.name}: delta.json")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder.name}: delta.json is not of the format {FORMAT}.")
    if not isinstance(manifest.get("files"), dict) or "base_sha256" not in manifest:
        raise CheckpointError(f"{folder.name}: delta.json lacks files or base_sha256.")
    scale = manifest.get("lora_scale", 1.0)
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not is_number or not abs(scale) < _LARGEST_SCALE:  # nan is not, either
        raise CheckpointError(
            f"{folder.name}: lora_scale in delta.json must be a number between "
            f"-{_LARGEST_SCALE:g} and {_LARGEST_SCALE:g}."
        )
    return manifest
