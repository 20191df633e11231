"""Whether a device has the memory for a model, told before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from purifier.defense.defend import POSITIONS_TOGETHER
from purifier.mdlm.delta import is_delta, read_delta
from purifier.mdlm.dimensions import dimensions_of
from purifier.mdlm.shards import count_values
from server.engine.memory import free_bytes

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TOKENS = 1024
"""Tokens of one sample, prompt and response together, that activations are estimated for."""
_PER_LAYER = 17
"""Values that one decoder layer keeps for its backward pass, for every token and channel
(34 bytes at 2 bytes a value: Korthikanti et al., arXiv 2205.05198, table 2, without the
attention matrix, which fused attention does not keep)."""
_HELD = 2 * 3 * POSITIONS_TOGETHER
"""Values that relabelling holds for one layer and channel: keys and values of answers on their way,
of their unmasked first steps and of the masked trials."""


class MemoryShort(Exception):
    """A device has not the memory that a model needs; the message has the numbers."""


@dataclass(frozen=True)
class Need:
    """What a model needs, in bytes.

    Attributes:
        weights: Its parameters in the dtype they are loaded in.
        activations: An estimate of what one masked batch keeps, without gradients or with.
    """

    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def need_of(checkpoint: Path, dtype: str, batch_size: int = 1) -> Need:
    """Estimates what relabelling with a checkpoint needs, from its headers alone.

    Args:
        checkpoint: A checkpoint folder, full or a delta.
        dtype: What it is loaded in.
        batch_size: Samples denoised together.

    Raises:
        CheckpointError: If it cannot be read, or does not say how large it is.
    """
    base = read_delta(checkpoint).base if is_delta(checkpoint) else checkpoint
    values = count_values(base)
    model = dimensions_of(base)
    size = _BYTES[dtype]
    kept = max(batch_size * _TOKENS * _PER_LAYER, _HELD) * (model.layers * model.width * size)
    logits = batch_size * _TOKENS * model.vocab_size * 4
    return Need(weights=values * size, activations=kept + logits)


def require_memory(checkpoint: Path, device: str, dtype: str, batch_size: int = 1) -> None:
    """Refuses a model that a device cannot hold.

    Raises:
        MemoryShort: If it needs more than is free.
        CheckpointError: If it cannot be read.
    """
    need, free = need_of(checkpoint, dtype, batch_size), free_bytes(torch.device(device))
    if need.total > free:
        raise MemoryShort(
            f"{checkpoint.name} needs about {_gib(need.total)} on {device} in {dtype} "
            f"({_gib(need.weights)} weights, about {_gib(need.activations)} for a batch of "
            f"{batch_size}), and {_gib(free)} are free. Use a device with more memory"
            + ("." if dtype == "bfloat16" else ", or --dtype bfloat16.")
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
