"""The sizes that are measured, and checkpoints of them with random weights.

A checkpoint is written in the hub's layout: shards of bfloat16 with an index. Weights are drawn
on the device, one shard at a time, from seeds of their own; queries, keys and the head are scaled
as in `benchmarks.middle`, so that decisions are not near ties.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import middle
from benchmarks.middle import SHARPER_ATTENTION, SHARPER_HEAD, widen_tokenizer
from purifier.lab.demo_model import TINY_TEXT, TINY_VISION, write_layout
from purifier.mdlm.llada_v.config import read_config
from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.mdlm.llada_v.weights import published_name
from purifier.mdlm.shards import INDEX

Size = Mapping[str, int]


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and how much is measured on it.

    Attributes:
        vision: Sizes of the tower, the layer that is never run included.
        text: Sizes of the language model.
        vocabulary: Rows of embedding and head.
        picture: Width and height of the images, in pixels.
        lengths: Answer lengths in tokens.
        together: Requests that are answered at a time, from 1 up.
        rows: Rows that are relabelled.
        load_seconds: Seconds of every level of load.
        repeats: Of every timed pair.
        plain_steps: Steps of the published loop that are timed; all of them cost the same.
        whole_job: Whether the demo's own purification job runs, or one of four rows.
    """

    vision: Size
    text: Size
    vocabulary: int
    picture: tuple[int, int]
    lengths: tuple[int, ...]
    together: tuple[int, ...]
    rows: int
    load_seconds: float
    repeats: int = 3
    plain_steps: int = 3
    whole_job: bool = field(default=True)


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "8b": Shape(
            vision={
                "image_size": 384,
                "patch_size": 14,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
            },
            text={
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 16384,
            },
            vocabulary=126_464,
            picture=(640, 480),
            lengths=(32, 128),
            together=(1, 4, 8, 16, 32),
            rows=64,
            load_seconds=12.0,
        ),
        "middle": Shape(
            vision=middle.VISION,
            text=middle.TEXT,
            vocabulary=middle.VOCABULARY,
            picture=(640, 480),
            lengths=(32,),
            together=(1, 4),
            rows=8,
            load_seconds=20.0,
            repeats=2,
        ),
        "tiny": Shape(
            vision=TINY_VISION,
            text=TINY_TEXT,
            vocabulary=1_200,
            picture=(64, 48),
            lengths=(8,),
            together=(1, 2),
            rows=4,
            load_seconds=1.0,
            repeats=1,
            plain_steps=1,
            whole_job=False,
        ),
    }
)
"""`8b` has the published sizes of GSAI-ML/LLaDA-V: 2,929 visual tokens for 640x480 pixels."""

_SHARD_BYTES = 3_000_000_000
_NAME = "model-{:05}-of-{:05}.safetensors"


def write_checkpoint(folder: Path, shape: Shape, *, device: str, seed: int = 0) -> int:
    """Writes a checkpoint folder with random bfloat16 weights; returns their bytes.

    Args:
        folder: Made if it is not there; the index is written last. Shards that an earlier call
            has finished stay as they are, so it must have had the same shape, seed and device.
        shape: Its sizes.
        device: Where the weights are drawn; the draws differ between kinds of devices.
        seed: Of all weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_layout(folder, dict(shape.vision), dict(shape.text))
    widen_tokenizer(folder, shape.vocabulary)
    with torch.device("meta"):
        modules = LladaVModules(read_config(folder))
    shapes = {
        published_name(name): tuple(tensor.shape) for name, tensor in modules.state_dict().items()
    }
    shards = list(_shards(shapes))
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, 1):
        file = _NAME.format(number, len(shards))
        total += sum(_n_bytes(shapes[name]) for name in names)
        if not (folder / file).is_file():
            tensors = {
                name: _draw(name, shapes[name], device, seed).to("cpu", torch.bfloat16)
                for name in names
            }
            unfinished = folder / f"{file}.new"
            save_file(tensors, unfinished, metadata={"format": "pt"})
            unfinished.replace(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    return total


def checkpoint_files(folder: Path) -> list[Path]:
    """The shards of a written checkpoint."""
    return sorted(folder.glob("model-*.safetensors"))


def picture(shape: Shape, number: int) -> Image.Image:
    """A random picture, always the same one for a number."""
    coarse = np.random.default_rng(number).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(shape.picture, Image.Resampling.BICUBIC)


def _shards(shapes: Mapping[str, Sequence[int]]) -> Iterator[list[str]]:
    """Names of the tensors of every shard."""
    names: list[str] = []
    held = 0
    for name, size in shapes.items():
        own = _n_bytes(size)
        if names and held + own > _SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += own
    yield names


def _n_bytes(size: Sequence[int]) -> int:
    return torch.bfloat16.itemsize * int(np.prod(size, dtype=np.int64))


def _draw(name: str, size: Sequence[int], device: str, seed: int) -> Tensor:
    """Weights as `purifier.lab.demo_model.initialise` scales them, float32."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    if name.endswith("norm.weight") or "layer_norm" in name:
        return torch.full(tuple(size), float(name.endswith("weight")), device=device)
    if name.endswith("bias"):
        return torch.zeros(tuple(size), device=device)
    fan_in = int(np.prod(size[1:], dtype=np.int64)) if len(size) > 1 else 1
    scale = fan_in**-0.5
    if "embed_tokens" in name or "image_newline" in name:
        scale = 0.5
    elif "position_embedding" in name:
        scale = 0.02
    elif "model.layers" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
        scale *= SHARPER_ATTENTION
    elif name == "lm_head.weight":
        scale *= SHARPER_HEAD
    return torch.randn(tuple(size), generator=generator, device=device).mul_(scale)
