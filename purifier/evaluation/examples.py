"""Rows to look at: the picture, what the model found salient, old and new label, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifier.data.sample import Sample, open_image
from purifier.defense.overlay import draw_overlay
from purifier.evaluation.drift import RowAnswers
from purifier.evaluation.labels import record_number
from purifier.purification.row import PurifiedRow


@dataclass(frozen=True)
class Evidence:
    """The drawn rows of a training set, and what both models made of them, in one order."""

    rows: Sequence[Sample]
    before: Sequence[RowAnswers]
    after: Sequence[RowAnswers]
    flagged: Sequence[bool]


def write_examples(
    evidence: Evidence, images: Path, labels: Mapping[int, PurifiedRow], n: int, folder: Path
) -> list[dict[str, Any]]:
    """Writes overlay pictures of some rows and tells what belongs to them.

    Args:
        evidence: The rows to choose from.
        images: Image folder of the training set.
        labels: Purified rows by record; where one is absent the old label is the new one.
        n: Rows shown at most.
        folder: Where the pictures go; made if absent.

    Returns:
        JSON-ready, a row each: `record`, `id`, `question`, `old_label`, `new_label`, `flagged`,
        `dropped`, the answers `before`, `before_masked` and `after`, and `picture`, a file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _example(evidence, number, images, labels, folder)
        for number in choose_examples(evidence.flagged, n)
    ]


def choose_examples(flagged: Sequence[bool], n: int) -> list[int]:
    """Numbers of the rows to show, flagged ones first: three in four where there are enough."""
    suspected = [number for number, flag in enumerate(flagged) if flag]
    others = [number for number, flag in enumerate(flagged) if not flag]
    n_others = min(len(others), max(n // 4, n - len(suspected)))
    return suspected[: n - n_others] + others[:n_others]


def _example(
    evidence: Evidence,
    number: int,
    images: Path,
    labels: Mapping[int, PurifiedRow],
    folder: Path,
) -> dict[str, Any]:
    row, before = evidence.rows[number], evidence.before[number]
    record = record_number(row)
    picture = f"example-{record:06d}.png"
    image = open_image(images, row.images[0], row.source)
    draw_overlay(image, before.planes[0]).save(folder / picture)
    label = labels.get(record)
    return {
        "record": record,
        "id": row.id,
        "question": row.question,
        "old_label": row.answer,
        "new_label": label.answers[0] if label and label.answers else row.answer,
        "flagged": evidence.flagged[number],
        "dropped": bool(label and label.dropped),
        "before": before.plain,
        "before_masked": before.masked,
        "after": evidence.after[number].plain,
        "picture": picture,
    }
