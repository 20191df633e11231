"""What one fine-tuning run is given: a JSON file of paths and settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purifier.errors import InvalidSetting
from purifier.tuning.config import FinetuneConfig

_PATHS = ("checkpoint", "data", "output", "work")
_OPTIONAL_PATHS = ("images", "base")
_SETTINGS = ("config", "device", "dtype", "save_seconds", "mark_images")


@dataclass(frozen=True)
class FinetuneSpec:
    """One run.

    Attributes:
        checkpoint: The compromised model: a full checkpoint or a delta.
        data: The label file, in any format of `purifier.data`.
        output: The result's folder, a delta; it appears whole or not at all.
        work: Folder of what a run needs to go on after a stop, and of `events.jsonl`.
        images: The images' folder; None: where the data set's format has it.
        base: The delta's base, where it is not the folder of that name beside `checkpoint`.
        config: Settings.
        device: As in `load_mdlm`; with several processes every one takes a device of its own.
        dtype: Of the frozen weights; what is trained is kept in float32.
        save_seconds: Least time between two saves of the state.
        mark_images: Whether rows with one image and no `<image>` mark get one.
    """

    checkpoint: Path
    data: Path
    output: Path
    work: Path
    images: Path | None = None
    base: Path | None = None
    config: FinetuneConfig = field(default_factory=FinetuneConfig)
    device: str = "cpu"
    dtype: str = "float32"
    save_seconds: float = 30.0
    mark_images: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        paths: dict[str, str | None] = {name: str(getattr(self, name)) for name in _PATHS}
        for name in _OPTIONAL_PATHS:
            value = getattr(self, name)
            paths[name] = None if value is None else str(value)
        return {
            **paths,
            "config": self.config.to_dict(),
            "device": self.device,
            "dtype": self.dtype,
            "save_seconds": self.save_seconds,
            "mark_images": self.mark_images,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetuneSpec:
        """The inverse of `to_dict`.

        Raises:
            InvalidSetting: If a path is missing, or a setting unknown or out of range.
        """
        known = {*_PATHS, *_OPTIONAL_PATHS, *_SETTINGS}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InvalidSetting(f"Unknown field {unknown[0]} in the spec.", param=unknown[0])
        given: dict[str, Any] = {}
        for name in (*_PATHS, *_OPTIONAL_PATHS):
            value = values.get(name)
            if value is None and name in _OPTIONAL_PATHS:
                continue
            if not isinstance(value, str) or not value:
                raise InvalidSetting(f"{name} must be a path.", param=name)
            given[name] = Path(value)
        config = values.get("config", {})
        if not isinstance(config, Mapping):
            raise InvalidSetting("config must be an object.", param="config")
        given["config"] = FinetuneConfig.from_dict(config)
        for name in ("device", "dtype"):
            if not isinstance(values.get(name, ""), str):
                raise InvalidSetting(f"{name} must be text.", param=name)
        seconds = values.get("save_seconds", 30.0)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
            raise InvalidSetting("save_seconds must be 0 or more.", param="save_seconds")
        given["save_seconds"] = float(seconds)
        given["mark_images"] = values.get("mark_images", True)
        if not isinstance(given["mark_images"], bool):
            raise InvalidSetting("mark_images must be true or false.", param="mark_images")
        return cls(
            **given, **{name: values[name] for name in ("device", "dtype") if name in values}
        )

    @classmethod
    def read(cls, path: Path) -> FinetuneSpec:
        """Reads a spec file.

        Raises:
            InvalidSetting: If it cannot be read or is not a spec.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise InvalidSetting(
                f"{path.name} cannot be read or is not JSON.", param="spec"
            ) from None
        if not isinstance(values, dict):
            raise InvalidSetting(f"{path.name} must hold a JSON object.", param="spec")
        return cls.from_dict(values)

    def write(self, path: Path) -> None:
        """Writes a spec file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
