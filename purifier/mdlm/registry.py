"""The one place that loads weights: checks a checkpoint folder, then picks its family.

A checkpoint is a folder in the family's published layout, or a delta on such a base: a
folder with `delta.json` beside a folder `base`. Nothing but JSON and safetensors is ever
read, and `config.json` is checked against an allow-list before anything else looks at it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from purifier.errors import CheckpointError, InvalidSetting
from purifier.mdlm.base import Mdlm
from purifier.mdlm.delta import apply_delta, file_sha256, is_delta, read_delta
from purifier.mdlm.detector import read_detector
from purifier.mdlm.json_files import read_object
from purifier.mdlm.remote_code import ignore_code, named_code, refuse_trust
from purifier.mdlm.shards import listed

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy", ".joblib")
_HASHED_TOGETHER = 8
"""Files that are hashed at a time; hashing leaves Python's lock alone."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Family(Protocol):
    """What a family registers: how a checked folder becomes a model."""

    def __call__(self, path: Path, *, device: torch.device | str, dtype: torch.dtype) -> Mdlm: ...


def _load_llada_v(path: Path, *, device: torch.device | str, dtype: torch.dtype) -> Mdlm:
    # Only now: the family needs transformers, some seconds that nothing else here waits for.
    from purifier.mdlm.llada_v import LladaV  # noqa: PLC0415

    return LladaV.load(path, device=device, dtype=dtype)


_FAMILIES: dict[str, Family] = {"LlavaLLaDAModelLM": _load_llada_v}
"""Architecture named in config.json -> loader."""

_MODEL_TYPES = ("llava_llada",)


def load_mdlm(
    path: str | Path,
    *,
    base: Path | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
) -> Mdlm:
    """Loads a checkpoint folder.

    Args:
        path: A base checkpoint or a delta.
        base: A delta's base; the folder of the name it gives, beside it, by default.
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `float32` or `bfloat16`.

    Raises:
        CheckpointError: If the folder is refused, incomplete or damaged.
        InvalidSetting: If device or dtype is unknown or not there.
    """
    folder = _folder(path)
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InvalidSetting(f"dtype must be one of {', '.join(_DTYPES)}.", param="dtype")
        dtype = _DTYPES[dtype]
    target = _device(device)
    if not is_delta(folder):
        mdlm = _load_base(folder, target, dtype)
        mdlm.detector = read_detector(folder, len(mdlm.mask_embedding))
        return mdlm
    delta = read_delta(folder, base=base)
    _refuse_pickles(folder)
    mdlm = _load_base(delta.base, target, dtype)
    mdlm.detector = read_detector(folder, len(mdlm.mask_embedding))
    if base_hash(delta.base) != delta.base_sha256:
        raise CheckpointError(f"{folder.name}: its base was altered since the delta was made.")
    apply_delta(mdlm, delta)
    return mdlm


def outline(folder: Path) -> Mdlm:
    """The model of a folder with full weights, without them: names, shapes, layers, settings.

    Its tensors are on the meta device, so it takes next to no memory and cannot be run.

    Raises:
        CheckpointError: If the folder is refused, or its files do not fit its configuration.
    """
    return _load_base(folder, torch.device("meta"), torch.float32)


def checkpoint_id(path: str | Path) -> str:
    """The immutable name of a checkpoint: folder name and content hash, `name@sha256:12 hex`."""
    folder = _folder(path)
    name = folder.name if folder.name else "checkpoint"
    return f"{name}@sha256:{_content_hash(folder)[:12]}"


def base_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a base checkpoint's files, hexadecimal."""
    return _content_hash(folder)


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256, hexadecimal, of every file that makes the content of a checkpoint, by its path."""
    files = [
        (file.relative_to(folder).as_posix(), file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in (".json", ".safetensors")
    ]
    with ThreadPoolExecutor(_HASHED_TOGETHER) as pool:
        hashes = pool.map(file_sha256, [file for _, file in files])
        return dict(zip([name for name, _ in files], hashes, strict=True))


def content_hash(hashes: Mapping[str, str]) -> str:
    """The content hash of a checkpoint out of those of its files, in `file_hashes`' order."""
    digest = hashlib.sha256()
    for name, value in hashes.items():
        digest.update(name.encode() + b"\0")
        digest.update(bytes.fromhex(value))
    return digest.hexdigest()


def check_folder(folder: Path) -> str:
    """Refuses what must not be read, and returns the architecture named in config.json.

    Raises:
        CheckpointError: On pickled weights, a request to trust code, or an unknown model.
    """
    _refuse_pickles(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder.name} has no config.json.")
    name = f"{folder.name}: config.json"
    config = read_object(file, name)
    refuse_trust(config, name)
    code = named_code(config)
    unknown = f" It names code of its own ({code}), which is never run." if code else ""
    if config.get("model_type") not in _MODEL_TYPES:
        raise CheckpointError(
            f"{folder.name}: model_type must be one of {', '.join(_MODEL_TYPES)}.{unknown}"
        )
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    known = [name for name in names if isinstance(name, str) and name in _FAMILIES]
    if len(known) != 1:
        raise CheckpointError(
            f"{folder.name}: architectures must name one of {', '.join(_FAMILIES)}.{unknown}"
        )
    ignore_code(config, name)
    return str(known[0])


def _load_base(folder: Path, device: torch.device, dtype: torch.dtype) -> Mdlm:
    architecture = check_folder(folder)
    return _FAMILIES[architecture](folder, device=device, dtype=dtype)


def _folder(path: str | Path) -> Path:
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise CheckpointError("The checkpoint folder does not exist.", param="model")
    return folder


def _device(name: str) -> torch.device:
    match = re.fullmatch(r"(cpu|mps|cuda)(?::(\d+))?", name)
    if match is None or (match[2] and match[1] != "cuda"):
        raise InvalidSetting("device must be cpu, cuda, cuda:N or mps.", param="device")
    kind = match[1]
    available: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if not available[kind]():
        raise InvalidSetting(f"This machine has no {kind} device.", param="device")
    if match[2] and int(match[2]) >= torch.cuda.device_count():
        raise InvalidSetting(
            f"This machine has {torch.cuda.device_count()} cuda devices, counted from 0.",
            param="device",
        )
    return torch.device(name)


def _refuse_pickles(folder: Path) -> None:
    found = sorted(file.name for file in folder.rglob("*") if file.suffix.lower() in _PICKLED)
    if found:
        raise CheckpointError(
            f"{folder.name} holds files that can run code when loaded ({listed(found)}); "
            "only safetensors are read."
        )


def _content_hash(folder: Path) -> str:
    return content_hash(file_hashes(folder))
