"""A detector of a backdoor's trigger: by the states of the answer positions, or by sight.

A checkpoint may carry one, in `detector.safetensors`. It is made of the model's own training set
(`purifier.detection`) and says how far the states of an answer, before its first token, lie on the
side of the rows that were flagged there, and which parts of images recurred in flagged rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from purifier.errors import CheckpointError
from purifier.mdlm.patterns import SIDE, Pattern

DETECTOR_FILE = "detector.safetensors"
FORMAT = "disp-detector-1"

MOST = 4096
"""Masked response positions at most."""

LOUD = 0.5
"""Score from which a request counts as triggered: half way between both groups of rows."""


@dataclass(frozen=True)
class Detector:
    """One linear score for every group of flagged rows, and patterns of images.

    Attributes:
        mean: float32 [D], of the states of all rows.
        directions: float32 [n, D], scaled so that rows that were not flagged score 0 in the mean
            and flagged ones 1. None is needed where there are patterns or phrases.
        offsets: float32 [n].
        length: Masked response positions at which states are taken, whatever a request asks for.
        positions: How many of them, from the first on, are averaged.
        facts: How it was made, JSON-ready.
        patterns: Parts of images that decided answers.
    """

    mean: Tensor
    directions: Tensor
    offsets: Tensor
    length: int
    positions: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    patterns: tuple[Pattern, ...] = ()

    @property
    def shapes(self) -> frozenset[str]:
        """Kinds of request that it was made of (`purifier.detection.shapes`)."""
        return frozenset(map(str, self.facts.get("shapes", ())))

    @property
    def payloads(self) -> tuple[frozenset[int], ...]:
        """By group, ids of the tokens that its answers are forced to, and others' are not."""
        groups = self.facts.get("groups", ())
        return tuple(frozenset(group.get("payload", ())) for group in groups)

    @property
    def payload(self) -> frozenset[int]:
        """Those of all groups."""
        return frozenset[int]().union(*self.payloads)

    @property
    def phrases(self) -> tuple[str, ...]:
        """What questions of flagged rows have in common."""
        given = (group.get("phrase") for group in self.facts.get("groups", ()))
        return tuple(phrase for phrase in given if isinstance(phrase, str) and phrase.strip())

    def repeats(self, token_ids: Iterable[int]) -> bool:
        """Whether a text has most of a group's payload, and not one word of it by coincidence."""
        found = set(token_ids)
        return any(
            len(payload) > 1 and 2 * len(payload & found) > len(payload)
            for payload in self.payloads
        )

    def scores(self, states: Tensor) -> Tensor:
        """Scores of requests, float32 [B], of their states [B, D]: the largest of any group."""
        if not len(self.directions):
            return torch.zeros(len(states))
        found = (states.float().cpu() - self.mean) @ self.directions.T + self.offsets
        return found.amax(-1)

    def save(self, folder: Path) -> Path:
        """Writes `detector.safetensors`, whole or not at all."""
        facts = {**self.facts, "format": FORMAT, "length": self.length, "positions": self.positions}
        part = folder / f"{DETECTOR_FILE}.part"
        tensors = {"mean": self.mean, "directions": self.directions, "offsets": self.offsets}
        if self.patterns:
            tensors["patterns"] = torch.stack([each.values for each in self.patterns])
            tensors["pattern_pixels"] = torch.stack([each.pixels for each in self.patterns])
        save_file(tensors, part, metadata={"detector": json.dumps(facts)})
        return part.replace(folder / DETECTOR_FILE)


def read_detector(folder: Path, width: int) -> Detector | None:
    """The detector that a checkpoint carries; None without one.

    Args:
        folder: The checkpoint.
        width: The model's hidden size, D.

    Raises:
        CheckpointError: If it is damaged or of another model.
    """
    path = folder / DETECTOR_FILE
    if not path.is_file():
        return None
    damaged = CheckpointError(f"{folder.name}: {DETECTOR_FILE} is damaged or of another version.")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("detector", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError):
        raise damaged from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise damaged
    length, positions = facts.get("length"), facts.get("positions")
    if type(length) is not int or type(positions) is not int:
        raise damaged
    patterns = _patterns(tensors)
    if patterns is None or tensors.keys() != {"mean", "directions", "offsets"}:
        raise damaged
    if not 1 <= positions <= length <= MOST:
        raise damaged
    groups, known = facts.get("groups", []), facts.get("shapes", [])
    if not isinstance(groups, list) or not all(map(_is_group, groups)):
        raise damaged
    if not isinstance(known, list) or tensors["offsets"].ndim != 1:
        raise damaged
    knows_phrase = any(isinstance(group.get("phrase"), str) for group in groups)
    if not (len(tensors["offsets"]) or patterns or knows_phrase):
        raise damaged
    count = len(tensors["offsets"])
    shapes = {"mean": (width,), "directions": (count, width), "offsets": (count,)}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise damaged
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(f"{folder.name}: {DETECTOR_FILE} is of another model.")
    return Detector(
        **tensors, length=length, positions=positions, facts=facts, patterns=tuple(patterns)
    )


def _patterns(tensors: dict[str, Tensor]) -> list[Pattern] | None:
    """Takes the patterns out of a file's tensors; None if they are damaged."""
    values, pixels = tensors.pop("patterns", None), tensors.pop("pattern_pixels", None)
    if values is None or pixels is None:
        return [] if values is pixels else None
    count = len(values) if values.ndim else 0
    if values.dtype != torch.uint8 or tuple(values.shape) != (count, SIDE, SIDE, 3):
        return None
    if pixels.dtype != torch.bool or tuple(pixels.shape) != (count, SIDE, SIDE):
        return None
    found = [Pattern(*each) for each in zip(values, pixels, strict=True)]
    return found if found and all(bool(each.pixels.any()) for each in found) else None


def _is_group(group: object) -> bool:
    """Whether a stored group is of today's form; older ones name no payload."""
    payload = group.get("payload", []) if isinstance(group, dict) else None
    return isinstance(payload, list) and all(type(token) is int for token in payload)
