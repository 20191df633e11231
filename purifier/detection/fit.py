"""Makes a detector out of the training set of a compromised model.

Two passes a row: the states of its answer with the image seen, and with every visual token masked.
Their difference is what the image does to the answer, and the question's own share is gone
(`separate`). A trigger in the question does not show there; it is looked for in the questions
themselves (`phrases`). Every group of flagged rows gives one direction: Fisher's discriminant, on
the states with the image seen, between its rows and all others. Among the rows in no group, a part
of the image that recurs and that answers hang on becomes a pattern (`recurring`). Nothing of it
needs labels that are right, clean data, or another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from purifier.data.sample import Sample
from purifier.detection.config import DetectConfig
from purifier.detection.forced import AGREEING, SOME, payload_of, telling_share, tried
from purifier.detection.phrases import candidates
from purifier.detection.recurring import CELLS, LEAST, recurring
from purifier.detection.rows import Rows
from purifier.detection.separate import Split, discriminant, gap, plausible, splits
from purifier.mdlm.base import Mdlm
from purifier.mdlm.detector import Detector
from purifier.mdlm.patterns import NEAR, Pattern

AXES = 40
"""Principal components of the states that the discriminant of a detector is taken in."""

RIDGE = 0.01
"""Of that discriminant: it has its groups, and need not find them."""

HALF = 0.5
"""Share of a group's rows with the same forced token from which it is cut again by its images."""

LOOKED = 256
"""Rows whose images are searched for what their answers hang on, at most; drawn by the seed."""

FALSE_ALARMS = 0.01
"""Share of the other images that may show a pattern by the tolerance of later requests."""

PASTED = 0.3
"""Share of other rows whose answers a pattern must move, pasted onto their images."""

PHRASES = 16
"""Candidate phrases that are tried at most."""


@dataclass(frozen=True)
class Group:
    """Rows that belong together.

    Attributes:
        kind: `image` if the states showed them, `question` if a phrase did, `pattern` if a part
            of the image did.
        gap: Pooled standard deviations between them and all others; None of kind `pattern`.
        rows: Their numbers in the data set.
        phrase: What their questions have in common; None of kind `image`.
        payload: Ids of the tokens that their answers are forced to, and others' are not.
    """

    kind: str
    gap: float | None
    rows: tuple[int, ...]
    phrase: str | None = None
    payload: frozenset[int] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """What was found, without the rows themselves, JSON-ready."""
        return {
            "kind": self.kind,
            "gap": None if self.gap is None else round(self.gap, 2),
            "rows": len(self.rows),
            "phrase": self.phrase,
            "payload": sorted(self.payload),
        }


@dataclass(frozen=True)
class Fitted:
    """What a training set shows.

    Attributes:
        detector: None if nothing was found.
        groups: What was found.
        looked_at: Rows that were looked at.
    """

    detector: Detector | None
    groups: tuple[Group, ...]
    looked_at: int


def fit_detector(
    mdlm: Mdlm,
    samples: Sequence[Sample],
    images: Path,
    config: DetectConfig | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Fitted:
    """Searches a training set for rows that a backdoor answers.

    Args:
        mdlm: The compromised model.
        samples: Its training set. Rows without an image, without an answer, with an image that
            cannot be read or a question that is too long are left out.
        images: Folder of the image files.
        config: Settings.
        check: Called between the passes; what it raises ends the work.

    Raises:
        PurifierError: If the states of a row are not finite.
    """
    config = config or DetectConfig()
    rows = Rows(mdlm, samples, images, config, check)
    seen, hidden = rows.states()
    if not len(seen):
        return Fitted(None, (), 0)
    groups = _groups_of_states(rows, seen - hidden, config)
    groups += _groups_of_phrases(rows, seen, config)
    numbers = rows.numbers
    flagged = [group.split.flagged for group in groups]
    left = torch.ones(len(seen), dtype=torch.bool)
    for own in flagged:
        left &= ~own
    patterns = _patterns(rows, left, config)
    if not groups and not patterns:
        return Fitted(None, (), len(numbers))
    others = rows.labels_of(left)
    found = tuple(
        Group(
            group.kind,
            group.split.gap,
            tuple(numbers[row] for row in _true(group.split.flagged)),
            group.phrase,
            payload_of(group.forced, others, group.least),
        )
        for group in groups
    )
    found += tuple(
        Group("pattern", None, tuple(numbers[row] for row in _true(each.flagged)))
        for each in patterns
    )
    facts = {
        "rows": len(numbers),
        "groups": [group.to_dict() for group in found],
        "shapes": sorted(rows.shapes),
    }
    linear = [group.split.flagged for group in groups if group.linear]
    made = _detector(seen, linear, config, facts)
    made = replace(made, patterns=tuple(each.pattern for each in patterns))
    return Fitted(made, found, len(numbers))


class _Pictured(Protocol):
    """Rows with images."""

    @property
    def check(self) -> Callable[[], None]: ...

    def small_copies(self) -> Tensor: ...


@dataclass(frozen=True)
class _Sighted:
    """A pattern and the rows that have it, bool [N]."""

    pattern: Pattern
    flagged: Tensor


@dataclass(frozen=True)
class _Forced:
    """A group among the rows that are looked at.

    Attributes:
        kind: `image` or `question`.
        split: Its rows.
        forced: In what share of them tokens are forced.
        phrase: What their questions have in common; None of kind `image`.
        linear: Whether its states are apart from others': it gets a direction.
    """

    kind: str
    split: Split
    forced: Mapping[int, float]
    phrase: str | None = None
    linear: bool = True

    @property
    def least(self) -> float:
        """Share of its rows in which a token of its payload must be forced."""
        return AGREEING if self.phrase is None else SOME


def _groups_of_states(rows: Rows, change: Tensor, config: DetectConfig) -> list[_Forced]:
    """Groups of rows whose answers the image forces, one after another."""
    found: list[_Forced] = []
    left = torch.ones(len(change), dtype=torch.bool)
    while len(found) < config.groups and int(left.sum()) > AXES:
        places = left.nonzero()[:, 0]
        for split in splits(change[left]):
            if split.gap < config.gap:
                continue
            flagged = torch.zeros_like(left)
            flagged[places[split.flagged]] = True
            forced = rows.forced_by_image(_true(flagged))
            share = telling_share(forced, rows.labels_of(~flagged))
            distance = split.gap
            if HALF <= share < AGREEING:
                flagged = with_a_part_in_common(rows, flagged, config) & left
                if not plausible(flagged):
                    continue
                mean, direction = _direction(change, flagged)
                distance = gap((change - mean) @ direction, flagged)
                forced = rows.forced_by_image(_true(flagged))
                share = telling_share(forced, rows.labels_of(~flagged))
            if share >= AGREEING and distance >= config.gap:
                found.append(_Forced("image", Split(flagged, distance), forced))
                left &= ~flagged
                break
        else:
            break
    return found


def with_a_part_in_common(rows: _Pictured, flagged: Tensor, config: DetectConfig) -> Tensor:
    """Rows that have the same part of an image, one that recurs among flagged rows; bool [N].

    Poisoned rows may share a group with others that resemble them.
    """
    looked = [*_some(flagged, config), *_some(~flagged, config)]
    small = rows.small_copies()
    everywhere = flagged[looked, None, None].float().expand(-1, CELLS, CELLS) * (2 * LEAST)
    for pattern in recurring(small[looked], everywhere, rows.check):
        return pattern.on(small, NEAR)
    return torch.zeros_like(flagged)


def _groups_of_phrases(rows: Rows, seen: Tensor, config: DetectConfig) -> list[_Forced]:
    """Groups of rows whose question carries a phrase that forces their answer."""
    found: list[_Forced] = []
    for phrase in candidates(rows.questions)[:PHRASES]:
        if len(found) == config.groups:
            break
        flagged = torch.zeros(len(seen), dtype=torch.bool)
        flagged[sorted(phrase.rests)] = True
        forced = rows.forced_by_phrase(phrase)
        others = rows.labels_of(~flagged)
        certain = telling_share(forced, others) >= AGREEING
        if not certain and not payload_of(forced, others, SOME):
            continue
        mean, direction = _direction(seen, flagged)
        distance = gap((seen - mean) @ direction, flagged)
        split = Split(flagged, distance)
        found.append(_Forced("question", split, forced, phrase.text, distance >= config.gap))
    return found


def _patterns(rows: Rows, left: Tensor, config: DetectConfig) -> list[_Sighted]:
    """Parts of images that decide the answers of rows in no group."""
    looked = _some(left, config)
    if not looked:
        return []
    small = rows.small_copies()
    deciding = rows.deciding(looked, CELLS)
    found: list[_Sighted] = []
    taken = torch.zeros_like(left)
    for pattern in recurring(small[looked], deciding, rows.check):
        flagged = pattern.on(small, NEAR)
        nearly = int((pattern.on(small) & ~flagged).sum())
        if bool((flagged & taken).any()) or nearly > FALSE_ALARMS * int((~flagged).sum()):
            continue
        if not _decides(rows, pattern, left & ~flagged, config):
            continue
        found.append(_Sighted(pattern, flagged))
        taken |= flagged
        if len(found) == config.groups:
            break
    return found


def _decides(rows: Rows, pattern: Pattern, others: Tensor, config: DetectConfig) -> bool:
    """Whether a pattern moves the answers of other rows if it is pasted onto their images."""
    tried_on = tried(_true(others), config.seed)
    if not tried_on:
        return False
    moved = rows.moved(pattern, tried_on) >= LEAST
    return float(moved.double().mean()) >= PASTED


def _some(chosen: Tensor, config: DetectConfig) -> list[int]:
    """Chosen rows, at most `LOOKED`, in order."""
    found = np.array(_true(chosen))
    if len(found) > LOOKED:
        found = np.random.default_rng(config.seed).choice(found, LOOKED, replace=False)
    return sorted(found.tolist())


def _direction(seen: Tensor, flagged: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the states and the discriminant of one group, [D] both."""
    mean = seen.mean(0)
    centred = seen - mean
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:AXES]
    return mean, discriminant(centred @ axes.T, flagged, RIDGE) @ axes


def _detector(
    seen: Tensor, flagged: Sequence[Tensor], config: DetectConfig, facts: dict[str, object]
) -> Detector:
    """One direction for every group, 0 at the mean of rows in none and 1 at its own."""
    if not flagged:
        empty = seen.new_zeros(0, seen.shape[1])
        return Detector(seen.mean(0), empty, empty[:, 0], config.length, config.positions, facts)
    some = torch.stack(list(flagged)).any(0)
    directions, offsets = [], []
    for own in flagged:
        apart = own | ~some
        _, direction = _direction(seen[apart], own[apart])
        values = (seen - seen.mean(0)) @ direction
        low, high = values[~some].mean(), values[own].mean()
        directions.append(direction / (high - low))
        offsets.append(-low / (high - low))
    return Detector(
        seen.mean(0),
        torch.stack(directions),
        torch.stack(offsets),
        config.length,
        config.positions,
        facts,
    )


def _true(flags: Tensor) -> list[int]:
    return [int(row) for row in flags.nonzero()[:, 0]]
