"""What a purification job is asked to do, and where its inputs lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from purifier.settings import LARGEST_SEED
from server.errors import InvalidSetting

Activation = Literal["auto", "approval", "never"]

_LONGEST_SHARD = 100_000
_MAPPINGS = ("purify", "finetune", "evaluation", "gate", "metadata")
_TEXTS = ("model", "training_file")
ADDED_TO_PURIFY: Mapping[str, Any] = {"detectors": []}
"""Settings of `purify` that came after the first version, and what jobs made before did."""

_OPTIONAL_TEXTS = ("validation_file", "suffix")


@dataclass(frozen=True)
class JobSpec:
    """One job, as it was asked for; everything in it is JSON.

    Attributes:
        model: Id of the compromised checkpoint, which also relabels.
        training_file: Id of the data set to purify.
        validation_file: Id of a test set, for attack success and utility.
        purify: Settings of the relabelling, `PurifyConfig` as a mapping.
        finetune: Settings of the fine-tuning, `FinetuneConfig` as a mapping.
        evaluation: Settings of the evaluation: trigger, target, sample sizes.
        gate: Limits that the evaluation must keep, `GateLimits` as a mapping.
        shard_rows: Rows of one shard, the unit of work and of resume.
        bad_rows: Share of the rows that may be unusable before the job fails, 0 to 1.
        mark_images: Whether rows with one image and no `<image>` mark get one.
        activate: `auto` activates a checkpoint that passes the gate, `approval` waits for
            `JobService.approve`, `never` leaves it staged.
        seed: Every random choice of the job follows from it.
        suffix: Becomes part of the new checkpoint's name.
        metadata: The asker's own notes.
    """

    model: str
    training_file: str
    validation_file: str | None = None
    purify: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    shard_rows: int = 64
    bad_rows: float = 0.01
    mark_images: bool = True
    activate: Activation = "approval"
    seed: int = 0
    suffix: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InvalidSetting(f"{name} must be an id.", param=name)
        for name in _OPTIONAL_TEXTS:
            if not isinstance(getattr(self, name), str | None):
                raise InvalidSetting(f"{name} must be a text.", param=name)
        for name in _MAPPINGS:
            if not isinstance(getattr(self, name), Mapping):
                raise InvalidSetting(f"{name} must be an object.", param=name)
        _require_whole(self.shard_rows, "shard_rows", 1, _LONGEST_SHARD)
        _require_whole(self.seed, "seed", 0, LARGEST_SEED)
        share = self.bad_rows
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise InvalidSetting("bad_rows must be a share between 0 and 1.", param="bad_rows")
        if not isinstance(self.mark_images, bool):
            raise InvalidSetting("mark_images must be true or false.", param="mark_images")
        if self.activate not in get_args(Activation):
            raise InvalidSetting(
                f"activate must be one of {', '.join(get_args(Activation))}.", param="activate"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    def to_stored(self) -> dict[str, Any]:
        """As JSON values, the way that a job keeps them.

        A field that came after the first version is left out where it is as it was before, so
        that a request for the same job equals the one it made before an update.
        """
        values = self.to_dict()
        if self.mark_images:
            del values["mark_images"]
        values["purify"] = {
            name: value
            for name, value in values["purify"].items()
            if name not in ADDED_TO_PURIFY or value != ADDED_TO_PURIFY[name]
        }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JobSpec:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidSetting: If a field is unknown, missing or out of range.
        """
        known = {entry.name for entry in fields(cls)}
        for name in values:
            if name not in known:
                raise InvalidSetting(f"{name} is not a setting of a job.", param=name)
        for name in _TEXTS:
            if name not in values:
                raise InvalidSetting(f"{name} is missing.", param=name)
        return cls(**values)

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal texts."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Sources:
    """Where a job's inputs lie, found once when the job is created; not part of its API.

    Attributes:
        model: Folder of the checkpoint `JobSpec.model`.
        data: Label file of the data set `JobSpec.training_file`.
        images: Its image folder; None where the format has its own place for them.
        test: Label file or folder of the test set, if one was given.
        test_images: Its image folder.
    """

    model: Path
    data: Path
    images: Path | None = None
    test: Path | None = None
    test_images: Path | None = None

    def missing(self) -> list[str]:
        """Names of those that this machine does not see."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return [name for name, path in values.items() if path is not None and not path.exists()]

    def to_dict(self) -> dict[str, str | None]:
        """As JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: None if path is None else str(path) for name, path in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, str | None]) -> Sources:
        """Reads what `to_dict` wrote."""
        paths = {name: None if text is None else Path(text) for name, text in values.items()}
        return cls(**paths)  # type: ignore[arg-type]


def _require_whole(value: Any, name: str, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidSetting(
            f"{name} must be a whole number between {least} and {most}.", param=name
        )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
