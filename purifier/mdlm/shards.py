"""The safetensors files of a checkpoint folder: which tensors lie where, told from headers.

Nothing here reads weights, so a checkpoint with a missing, shortened or foreign file is refused
before any memory is allocated for it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from purifier.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_LENGTH_BYTES = 8
_NAMES_LISTED = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        name: Its name there.
        file: The file.
        dtype: Of the stored numbers.
        shape: Its shape.
        start: First byte, counted from the start of the file.
        n_bytes: Bytes of its numbers.
    """

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    n_bytes: int

    @property
    def n_values(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint folder by name, in the order in which they lie on disk.

    The folder holds `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Raises:
        CheckpointError: If a file is missing or damaged, or the files and the index disagree.
    """
    index = folder / INDEX
    if not index.is_file():
        _require_files(folder, [SINGLE])
        return read_header(folder / SINGLE)
    weight_map = _read_index(index)
    _require_files(folder, sorted(set(weight_map.values())))
    found: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        header = read_header(folder / name)
        twice = header.keys() & found.keys()
        if twice:
            raise CheckpointError(
                f"Tensors lie in more than one shard, {name} among them: {listed(twice)}."
            )
        found.update(header)
    _require_agreement(weight_map, found)
    return found


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name, in the order of their bytes.

    Raises:
        CheckpointError: If it is damaged, cut short, or holds numbers that are no weights.
    """
    try:
        # The library checks the header, that tensors do not overlap, and the file's length.
        with safe_open(file, framework="pt", backend="pread"), file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(_LENGTH_BYTES))
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError, struct.error):
        raise CheckpointError(
            f"{file.name} is damaged, cut short or not a safetensors file. Copy it again."
        ) from None
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        if entry["dtype"] not in _FLOATING:
            raise CheckpointError(
                f"{file.name}: {_shortened(name)} is stored as {entry['dtype']}; weights must be "
                f"one of {', '.join(_FLOATING)}."
            )
        begin, end = entry["data_offsets"]
        start = _LENGTH_BYTES + length + begin
        shape = tuple(entry["shape"])
        tensors.append(
            StoredTensor(name, file, _FLOATING[entry["dtype"]], shape, start, end - begin)
        )
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.start)}


def count_values(folder: Path) -> int:
    """Numbers in all tensors of a checkpoint folder.

    Raises:
        CheckpointError: If a file is damaged.
    """
    files = sorted(folder.rglob("*.safetensors"))
    return sum(tensor.n_values for file in files for tensor in read_header(file).values())


def listed(names: Iterable[str]) -> str:
    """Names for a message: sorted, shortened, and at most eight of them."""
    ordered = sorted(names)
    shown = ", ".join(_shortened(name) for name in ordered[:_NAMES_LISTED])
    more = len(ordered) - _NAMES_LISTED
    return shown if more <= 0 else f"{shown} and {more} more"


def _shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        weight_map = json.loads(index.read_text(), object_pairs_hook=_without_repeats)["weight_map"]
        names = set(weight_map.values())
        plain = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except _RepeatedKey as error:
        raise CheckpointError(f"{index.name} names {_shortened(error.key)} twice.") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{index.name} is not a weight index.") from None
    if not names:
        raise CheckpointError(f"{index.name} names no file.")
    if not plain:
        raise CheckpointError(f"{index.name} names something else than safetensors files.")
    return dict(weight_map)


class _RepeatedKey(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKey(key)
        found[key] = value
    return found


def _require_files(folder: Path, names: Iterable[str]) -> None:
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(f"The checkpoint lacks {listed(absent)}.")


def _require_agreement(weight_map: Mapping[str, str], found: Mapping[str, StoredTensor]) -> None:
    """Refuses an index that says something else than the shards themselves."""
    absent = {f"{name} (in {file})" for name, file in weight_map.items() if name not in found}
    elsewhere = {
        f"{name} (in {tensor.file.name})"
        for name, tensor in found.items()
        if weight_map.get(name) != tensor.file.name
    }
    problems = {
        "named by the index, not in the shards": absent,
        "in a shard, not where the index says": elsewhere,
    }
    if absent or elsewhere:
        text = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{INDEX} and the shards disagree. {text}.")
