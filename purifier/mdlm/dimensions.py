"""The dimensions of a checkpoint's language model, told before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from purifier.mdlm.llada_v.config import read_config
from purifier.mdlm.registry import check_folder


@dataclass(frozen=True)
class Dimensions:
    """What memory for activations is computed from.

    Attributes:
        layers: Decoder layers.
        width: Channels of a position between the layers.
        vocab_size: Rows of the output head.
    """

    layers: int
    width: int
    vocab_size: int


def dimensions_of(folder: Path) -> Dimensions:
    """Asks the checkpoint's family.

    Args:
        folder: A base checkpoint.

    Raises:
        CheckpointError: If the folder is refused, or its configuration lacks one of them.
    """
    return FAMILIES[check_folder(folder)](folder)


def _of_llada_v(folder: Path) -> Dimensions:
    text = read_config(folder).text
    return Dimensions(text.num_hidden_layers, text.hidden_size, text.vocab_size)


FAMILIES: dict[str, Callable[[Path], Dimensions]] = {"LlavaLLaDAModelLM": _of_llada_v}
"""Architecture named in config.json -> reader of its configuration."""
