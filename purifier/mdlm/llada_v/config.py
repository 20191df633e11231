"""LLaDA-V's configuration: the published `config.json` keys, checked and typed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, SiglipVisionConfig

from purifier.errors import CheckpointError
from purifier.mdlm.json_files import read_object
from purifier.mdlm.remote_code import ignore_code, refuse_trust

_SIGLIP2_SO400M = {
    "image_size": 384,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
"""The tower named by the published checkpoint; its last layer is dropped on load."""

_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")
_ANYRES_MAX = re.compile(r"anyres_max_([1-9][0-9]{0,2})")
_GRID_RANGE = re.compile(r"\(([0-9]{1,2})x([0-9]{1,2})\),\.\.\.,\(([0-9]{1,2})x([0-9]{1,2})\)")

_LARGEST = 2**24
_LARGEST_BY_KEY = {"num_hidden_layers": 1000, "image_size": 2**14, "patch_size": 2**10}
"""Far above any published model: a number beyond is an error, and would only cost memory."""
_HUGE = 1e15
"""What no base of rotary angles and no epsilon reaches."""
_LONGEST_NAME = 255
_LONGEST_PINPOINTS = 10_000
_MOST_PINPOINTS = 1000
_MOST_TILES = 99
"""Per side of an image."""


@dataclass(frozen=True)
class LladaVConfig:
    """What the family needs to know of a checkpoint.

    Attributes:
        text: The language model, a Llama without causal mask.
        vision: The SigLIP tower as it is run: last layer and pooling head dropped.
        vision_folder: The tower's folder inside the checkpoint, where it has one.
        merge_type: `flat`, `spatial` or `spatial_unpad`.
        aspect_ratio: `square`, `pad`, `anyres` or `anyres_max_N`.
        pinpoints: Candidate resolutions (width, height) of the tiled image, in pixels.
        max_length: Longest prompt, images expanded.
    """

    text: LlamaConfig
    vision: SiglipVisionConfig
    vision_folder: str | None
    merge_type: str
    aspect_ratio: str
    pinpoints: tuple[tuple[int, int], ...]
    max_length: int

    @property
    def patches_per_side(self) -> int:
        return int(self.vision.image_size // self.vision.patch_size)

    @property
    def max_tiles(self) -> int | None:
        """N of `anyres_max_N`; None where the tile grid is never shrunk."""
        match = _ANYRES_MAX.fullmatch(self.aspect_ratio)
        return int(match[1]) if match else None


def read_config(path: Path) -> LladaVConfig:
    """Reads `config.json` of a checkpoint folder.

    Raises:
        CheckpointError: If a key is missing or names something this family does not have.
    """
    raw = read_object(path / "config.json", f"{path.name}: config.json")
    tower = _required(raw, "mm_vision_tower", str)
    folder = tower if _is_subfolder(path, tower) else None
    vision = _vision_config(path, tower, folder)
    if raw.get("mm_hidden_size") not in (None, vision.hidden_size):
        raise CheckpointError(
            "config.json: mm_hidden_size must be the vision tower's hidden_size, "
            f"{vision.hidden_size}."
        )
    if raw.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu":
        raise CheckpointError("config.json: only mm_projector_type mlp2x_gelu is supported.")
    merge = raw.get("mm_patch_merge_type", "flat")
    if merge not in _MERGE_TYPES:
        raise CheckpointError(
            f"config.json: mm_patch_merge_type must be one of {', '.join(_MERGE_TYPES)}."
        )
    aspect = raw.get("image_aspect_ratio")
    aspect = "square" if aspect is None else aspect
    if not isinstance(aspect, str) or (
        aspect not in ("square", "pad", "anyres") and not _ANYRES_MAX.fullmatch(aspect)
    ):
        raise CheckpointError(
            "config.json: image_aspect_ratio must be square, pad, anyres or anyres_max_N (N at "
            "most 999)."
        )
    return LladaVConfig(
        text=_text_config(raw),
        vision=vision,
        vision_folder=folder,
        merge_type=merge,
        aspect_ratio=aspect,
        pinpoints=_pinpoints(raw.get("image_grid_pinpoints"), vision.image_size, aspect),
        max_length=_size(
            raw,
            "tokenizer_model_max_length"
            if raw.get("tokenizer_model_max_length") is not None
            else "max_position_embeddings",
        ),
    )


def _required(raw: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(raw.get(key), kind):
        raise CheckpointError(f"config.json: {key} is missing or not of the expected type.")
    return raw[key]


def _size(raw: Mapping[str, Any], key: str, smallest: int = 1) -> int:
    size: int = _required(raw, key, int)
    largest = _LARGEST_BY_KEY.get(key, _LARGEST)
    if isinstance(size, bool) or not smallest <= size <= largest:
        raise CheckpointError(
            f"config.json: {key} must be at least {smallest} and at most {largest}."
        )
    return size


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _HUGE:
        raise CheckpointError(f"config.json: {key} must be a number above 0 and below {_HUGE:g}.")
    return float(value)


def _switch(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} must be true or false.")
    return value is True


def _require_divides(numbers: Mapping[str, int], part: str, whole: str) -> None:
    if numbers[whole] % numbers[part]:
        raise CheckpointError(f"config.json: {part} must divide {whole}.")


def _text_config(raw: Mapping[str, Any]) -> LlamaConfig:
    numbers = {
        key: _size(raw, key)
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        )
    }
    if raw.get("rope_scaling") is not None:
        raise CheckpointError("config.json: rope_scaling is not supported by this family.")
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError("config.json: only hidden_act silu is supported.")
    _require_divides(numbers, "num_attention_heads", "hidden_size")
    _require_divides(numbers, "num_key_value_heads", "num_attention_heads")
    if numbers["hidden_size"] // numbers["num_attention_heads"] % 2:
        raise CheckpointError(
            "config.json: hidden_size / num_attention_heads must be even, for rotary positions "
            "turn pairs of numbers."
        )
    if _switch(raw, "tie_word_embeddings"):
        raise CheckpointError("config.json: tie_word_embeddings is not supported by this family.")
    config = LlamaConfig(
        **numbers,
        hidden_act="silu",
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-5),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _number(raw, "rope_theta", 500000.0),
        },
        attention_bias=_switch(raw, "attention_bias"),
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    # Bidirectional over the whole sequence: a diffusion model has no left-to-right order.
    config.is_causal = False
    return config


def _is_subfolder(path: Path, tower: str) -> bool:
    plain_name = bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", tower))
    return plain_name and len(tower) <= _LONGEST_NAME and (path / tower / "config.json").is_file()


def _vision_config(path: Path, tower: str, folder: str | None) -> SiglipVisionConfig:
    if folder is not None:
        raw = _tower_json(path, folder)
        # The last layer is dropped, so that one is left of two.
        sizes = {
            key: _size(raw, key, 2 if key == "num_hidden_layers" else 1) for key in _SIGLIP2_SO400M
        }
        _require_divides(sizes, "num_attention_heads", "hidden_size")
        if sizes["patch_size"] > sizes["image_size"]:
            raise CheckpointError(f"{folder}/config.json: patch_size is larger than image_size.")
    elif "siglip2-so400m-patch14-384" in tower:
        sizes = dict(_SIGLIP2_SO400M)
    else:
        raise CheckpointError(
            "config.json: mm_vision_tower names neither a folder of this checkpoint nor "
            "siglip2-so400m-patch14-384."
        )
    # The published code deletes the last layer and reads the then last one, whatever
    # mm_vision_select_layer says.
    sizes["num_hidden_layers"] -= 1
    return SiglipVisionConfig(
        **sizes, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, vision_use_head=False
    )


def _tower_json(path: Path, folder: str) -> Mapping[str, Any]:
    name = f"{path.name}: {folder}/config.json"
    raw = read_object(path / folder / "config.json", name)
    refuse_trust(raw, name)
    ignore_code(raw, name)
    vision = raw.get("vision_config", raw)
    if not isinstance(vision, dict):
        raise CheckpointError(f"{name}: vision_config is not a JSON object.")
    return vision


def _pinpoints(value: Any, tile: int, aspect: str) -> tuple[tuple[int, int], ...]:
    """The candidate resolutions: a list of pairs, or a string such as "(1x1),...,(6x6)"."""
    if not aspect.startswith("anyres"):
        return ()
    if isinstance(value, str):
        value = _written_pinpoints(value, tile)
    pairs = value if isinstance(value, list) and len(value) <= _MOST_PINPOINTS else []
    if not pairs or not all(_is_resolution(pair, tile) for pair in pairs):
        raise CheckpointError(
            "config.json: image_grid_pinpoints must list [width, height] pairs that are "
            f"multiples of the tile side ({tile}), at most {_MOST_PINPOINTS} pairs of at most "
            f"{_MOST_TILES} tiles."
        )
    return tuple((int(pair[0]), int(pair[1])) for pair in pairs)


def _written_pinpoints(text: str, tile: int) -> Any:
    """Pinpoints that are written as text; None if they cannot be read."""
    if len(text) > _LONGEST_PINPOINTS:
        return None
    match = _GRID_RANGE.fullmatch(text.replace(" ", ""))
    if match is None:
        try:
            return json.loads(text.replace("(", "[").replace(")", "]"))
        except (ValueError, RecursionError):
            return None
    a, b, c, d = map(int, match.groups())
    if (c - a + 1) * (d - b + 1) > _MOST_PINPOINTS:
        return None
    return [
        [tile * width, tile * height] for width in range(a, c + 1) for height in range(b, d + 1)
    ]


def _is_resolution(pair: Any, tile: int) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(
            type(side) is int and 0 < side <= _MOST_TILES * tile and side % tile == 0
            for side in pair
        )
    )
