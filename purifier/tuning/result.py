"""The result: a delta on the root base that carries the compromised delta within it.

A compromised delta adds s1 B1 A1 to a weight of the base, the recovery s2 B2 A2; the result
holds A = [A1; A2] and B = [s1 B1, s2 B2], of rank r1 + r2 and scale 1, and so needs nothing
but the base.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purifier.errors import CheckpointError, InvalidSetting
from purifier.mdlm.delta import is_delta, read_delta, write_delta
from purifier.mdlm.registry import base_hash, checkpoint_id
from purifier.tuning.adapters import Trained
from purifier.tuning.config import StoredDtype

_DTYPES: dict[StoredDtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def write_result(
    output: Path,
    trained: Trained,
    *,
    checkpoint: Path,
    base: Path | None,
    stored_dtype: StoredDtype,
    details: Mapping[str, Any],
) -> Path:
    """Writes the delta; the folder appears whole or not at all.

    Args:
        output: The folder; must not exist.
        trained: What the recovery changed.
        checkpoint: The compromised checkpoint, a delta or full weights.
        base: Its base, where it is a delta whose base is not beside it.
        stored_dtype: Of the tensors.
        details: Further entries of `delta.json`.

    Raises:
        CheckpointError: If the compromised checkpoint cannot be read.
    """
    projector: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    root, root_name = checkpoint, checkpoint.name
    if is_delta(checkpoint):
        delta = read_delta(checkpoint, base=base)
        root, root_name = delta.base, delta.base_name
        for name, tensor in delta.tensors.items():
            is_factor = name.endswith((".lora_A", ".lora_B"))
            (adapter if is_factor else projector)[name] = tensor.float()
            if name.endswith(".lora_B"):
                adapter[name] *= delta.lora_scale
    projector |= trained.projector
    _append(adapter, trained)
    dtype = _DTYPES[stored_dtype]
    unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write_delta(
            unfinished,
            base=root_name,
            base_sha256=base_hash(root),
            projector={name: tensor.to(dtype) for name, tensor in projector.items()},
            adapter={name: tensor.to(dtype) for name, tensor in adapter.items()},
            lora_scale=1.0,
            details={"parent": checkpoint_id(checkpoint), **details},
        )
        for file in unfinished.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        os.rename(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return output


def finished(output: Path, run: str) -> bool:
    """Whether the result of a run is already there.

    Raises:
        InvalidSetting: If something else is there.
    """
    if not output.exists():
        return False
    try:
        manifest = json.loads((output / "delta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("run_sha256") != run:
        raise InvalidSetting(
            f"The output folder {output.name} exists already; choose another name.", param="output"
        )
    return True


def _append(adapter: dict[str, Tensor], trained: Trained) -> None:
    """Joins the recovery's factors to those that are there."""
    for name, tensor in trained.adapter.items():
        is_down = name.endswith(".lora_A")
        part = tensor if is_down else trained.lora_scale * tensor
        before = adapter.get(name)
        if before is None:
            adapter[name] = part
            continue
        kept = 1 if is_down else 0
        if before.dim() != 2 or before.shape[kept] != part.shape[kept]:
            raise CheckpointError(f"{name} of the compromised delta does not fit the model.")
        adapter[name] = torch.cat([before, part], dim=1 - kept)
