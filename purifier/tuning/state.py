"""What a training needs to go on where it was stopped, in one safetensors file.

Parameters and AdamW's moments as tensors, everything else as tensors or as JSON in the file's
header. The file is replaced as a whole, so it is always that of a finished save.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from purifier.errors import CheckpointError

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(
    file: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    facts: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a state that survives a crash of the machine.

    Args:
        file: Replaced.
        parameters: What is trained, by name.
        optimizer: AdamW over `parameters`; it has taken a step.
        facts: JSON values; `step` must be the number of steps taken.
        extra: Further tensors, by names of their own.
    """
    tensors = dict(extra or {})
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().cpu().contiguous()
        for moment in _MOMENTS:
            value: Tensor = optimizer.state[parameter][moment]
            tensors[f"{moment}.{name}"] = value.cpu().contiguous()
    unfinished = file.with_suffix(".partial")
    save_file(tensors, unfinished, metadata={"facts": json.dumps(dict(facts))})
    with unfinished.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(unfinished, file)


def read_facts(file: Path) -> dict[str, Any] | None:
    """The JSON values of a state; None if there is none.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            facts: dict[str, Any] = json.loads(stored.metadata()["facts"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file.name} is damaged; remove it to start anew.") from error
    return facts


@torch.no_grad()
def restore_state(
    file: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> dict[str, Tensor]:
    """Puts a state back; returns its further tensors.

    Args:
        file: Written by `save_state`.
        parameters: As they were given there; changed.
        optimizer: A new AdamW over `parameters`; changed.

    Raises:
        CheckpointError: If the file is damaged or of other parameters.
    """
    facts = read_facts(file)
    if facts is None:
        raise CheckpointError(f"{file.name} does not exist.")
    step = float(facts["step"])
    # AdamW counts steps on the CPU unless it is fused.
    on_device = bool(optimizer.defaults["fused"])
    with safe_open(file, framework="pt") as stored:
        left = set(stored.keys())
        for name, parameter in parameters.items():
            if f"parameter.{name}" not in left:
                raise CheckpointError(f"{file.name} belongs to another training.")
            parameter.copy_(stored.get_tensor(f"parameter.{name}"))
            count = torch.tensor(step)
            optimizer.state[parameter] = {
                "step": count.to(parameter.device) if on_device else count
            } | {
                moment: stored.get_tensor(f"{moment}.{name}").to(parameter.device)
                for moment in _MOMENTS
            }
            left -= {f"{kind}.{name}" for kind in ("parameter", *_MOMENTS)}
        return {name: stored.get_tensor(name) for name in sorted(left)}
