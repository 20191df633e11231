"""A checkpoint as plain weights: what others can load, without this package.

    model-00001-of-00004.safetensors ...    every tensor under its published name
    model.safetensors.index.json            where each lies; absent if one file holds all
    config.json, tokenizer.json, ...        as the base has them, but for the dtype and for
                                            entries that name code

Weights are read, merged and written shard by shard, so that the peak of memory is about one
shard, whatever the model's size.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from purifier.errors import CheckpointError, InvalidSetting
from purifier.mdlm.delta import Delta, changed_weight, is_delta, parts_of, read_delta
from purifier.mdlm.detector import DETECTOR_FILE
from purifier.mdlm.json_files import read_object
from purifier.mdlm.registry import base_hash, outline
from purifier.mdlm.remote_code import without_code
from purifier.mdlm.shards import INDEX, StoredTensor, stored_tensors
from purifier.mdlm.weight_reader import read_tensors

SHARD_BYTES = 5 * 10**9
"""Largest shard, as the hub recommends; a tensor that is larger has a shard to itself."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_EDITED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "[!.]*/config.json",
)
_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "NOTICE*",
)
"""What belongs to a model besides its weights; nothing else of the base's folder is taken along."""


def export_merged(
    checkpoint: Path,
    output: Path,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a checkpoint as full weights in the hub's layout.

    Loading the result in a dtype gives the same numbers, bit for bit, as loading the checkpoint
    in that dtype, if the result was written in it.

    Args:
        checkpoint: A delta, or full weights.
        output: The folder to make; it appears whole or not at all.
        base: A delta's base; the folder of the name it gives, beside it, by default.
        dtype: `bfloat16` or `float32`. By default bfloat16 where the base has no wider weights,
            else float32.
        shard_bytes: Largest shard.

    Raises:
        CheckpointError: If the checkpoint is refused, does not fit its base, or has weights that
            are not finite.
        InvalidSetting: If the output exists, the dtype is unknown, or the disk is too small.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InvalidSetting(f"dtype must be one of {', '.join(DTYPES)}.", param="dtype")
    delta = read_delta(checkpoint, base=base) if is_delta(checkpoint) else None
    root = checkpoint if delta is None else delta.base
    parts: dict[str, list[str]] = {}
    if delta is None:
        outline(root)
    else:
        parts = check_delta(delta)
    stored = stored_tensors(root)
    target = _dtype_of(stored) if dtype is None else DTYPES[dtype]
    with fresh_folder(output) as folder:
        _require_space(folder, sum(tensor.n_values for tensor in stored.values()) * target.itemsize)
        _write_shards(folder, stored, delta, parts, target, shard_bytes)
        _write_settings(root, folder, str(target).removeprefix("torch."))
        if (checkpoint / DETECTOR_FILE).is_file():
            shutil.copyfile(checkpoint / DETECTOR_FILE, folder / DETECTOR_FILE)


def check_delta(delta: Delta) -> dict[str, list[str]]:
    """Checks that a delta fits the base beside it, before any weights are read.

    Returns:
        From `parts_of`.

    Raises:
        CheckpointError: If it does not, or the base was altered.
    """
    weights = outline(delta.base).published_weights()
    parts = parts_of(delta, {name: weight.shape for name, weight in weights.items()})
    if base_hash(delta.base) != delta.base_sha256:
        raise CheckpointError(f"{delta.folder.name}: its base was altered since it was made.")
    return parts


@contextmanager
def fresh_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name when all of it is on the disk.

    Raises:
        InvalidSetting: If the output exists, or cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise InvalidSetting(
            f"The output folder {output.name} exists already; choose another name.", param="output"
        )
    unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        # safetensors closes its files to other users, whatever the umask says.
        mode = stat.S_IMODE(unfinished.stat().st_mode) & 0o666
        for file in [path for path in unfinished.rglob("*") if path.is_file()]:
            file.chmod(mode)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        os.rename(unfinished, output)
    except (OSError, SafetensorError) as error:
        raise InvalidSetting(
            f"The output folder {output.name} could not be written to its end; look at the disk's "
            "free space and at who may write there.",
            param="output",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _dtype_of(stored: Mapping[str, StoredTensor]) -> torch.dtype:
    narrow = all(tensor.dtype is torch.bfloat16 for tensor in stored.values())
    return torch.bfloat16 if narrow else torch.float32


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidSetting(
            f"The weights need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of the disk are "
            "free; choose another output folder or --dtype bfloat16.",
            param="output",
        )


def _write_shards(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    delta: Delta | None,
    parts: Mapping[str, list[str]],
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    plan = split_torch_state_dict_into_shards(
        {
            name: torch.empty(tensor.shape, dtype=dtype, device="meta")
            for name, tensor in stored.items()
        },
        max_shard_size=shard_bytes,
    )
    for file, names in plan.filename_to_tensors.items():
        read = read_tensors(
            [stored[name] for name in names], device=torch.device("cpu"), dtype=dtype
        )
        shard: dict[str, Tensor] = {}
        for name, weight in read:
            if delta is not None and name in parts:
                weight = changed_weight(delta, parts[name], weight)
            shard[name] = weight.contiguous()
        save_file(shard, folder / file, metadata={"format": "pt"})
        del shard, weight
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_settings(root: Path, folder: Path, dtype: str) -> None:
    """Configuration and tokenizer; code that a configuration names is not passed on."""
    for file in sorted({file for pattern in _EDITED for file in root.glob(pattern)}):
        name = file.relative_to(root)
        value = without_code(read_object(file, f"{root.name}: {name}"))
        if name == Path("config.json"):
            value = {key: part for key, part in value.items() if key != "dtype"}
            value["torch_dtype"] = dtype
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    copied = {file for pattern in _COPIED for file in root.glob(pattern) if file.is_file()}
    for file in sorted(copied):
        shutil.copyfile(file, folder / file.name)
