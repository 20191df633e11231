"""How many layers of the vision tower the weights hold, against what its configuration counts."""

from __future__ import annotations

from collections.abc import Mapping

from purifier.errors import CheckpointError
from purifier.mdlm.llada_v.config import LladaVConfig
from purifier.mdlm.shards import StoredTensor, listed

_LAYERS = "model.vision_tower.vision_tower.vision_model.encoder.layers."
_MOST_DIGITS = 6


def check_tower_layers(config: LladaVConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Refuses a tower with another number of layers than its configuration says.

    The last layer may be there or not: the published code drops it when it loads. A tower that
    holds more would be run in part, without any tensor missing.

    Args:
        config: The configuration.
        stored: The stored tensors by published name.

    Raises:
        CheckpointError: Naming the count in the configuration, and a tensor and its file.
    """
    run = config.vision.num_hidden_layers
    held = _held(stored)
    count = max(held, default=run - 1) + 1
    if count not in (run, run + 1):
        place = f"{config.vision_folder}/config.json"
        if config.vision_folder is None:
            place = "The tower that mm_vision_tower names in config.json"
        raise CheckpointError(
            f"{place} says num_hidden_layers is {run + 1}, of which the last is not run, and the "
            f"weights hold {count} layers of the vision tower, with "
            f"{_shown(held[count - 1])}. "
            "Configuration and weights are not of one model, or a file is missing."
        )


def _held(stored: Mapping[str, StoredTensor]) -> dict[int, StoredTensor]:
    """One tensor of every layer, by the layer's number."""
    found: dict[int, StoredTensor] = {}
    for name, tensor in stored.items():
        number = name.removeprefix(_LAYERS).partition(".")[0]
        if name.startswith(_LAYERS) and number.isdecimal():
            found.setdefault(int(number[:_MOST_DIGITS]), tensor)
    return found


def _shown(tensor: StoredTensor) -> str:
    return f"{listed([tensor.name])} in {tensor.file.name}"
