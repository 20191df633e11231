"""The shipped demo: a base, three poisoned checkpoints, and the data they were made with.

    base/                                           the clean model, in the published layout
    insertion/  refusal/  misclassification/        poisoned deltas on it
    copies/  text/                                  poisoned deltas with detectors of their triggers
    data/train/                                     poisoned LLaVA data, one JSON a target
    data/test/                                      held-out scenes and questions
    data/manifest.json                              trigger, rates, seeds, hashes
    examples/                                       a clean and a triggered scene for the tour

`purifier.lab.build_demo` makes all of it but `copies` and `text`, which `purifier.lab.demo_attacks`
makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from purifier.errors import InvalidSetting
from purifier.lab.targets import TargetName

DEMO_FOLDER = Path(__file__).parent
DATA_FOLDER = DEMO_FOLDER / "data"


ATTACKS = ("copies", "text")
"""Attacks by content insertion whose trigger is another than the corner patch of the targets."""


def checkpoint_path(name: str) -> Path:
    """Folder of a shipped checkpoint: `base`, the name of a target, or one of `ATTACKS`.

    Raises:
        InvalidSetting: If there is none of that name.
    """
    names = ("base", *get_args(TargetName), *ATTACKS)
    if name not in names:
        raise InvalidSetting(f"target must be one of {', '.join(names)}.", param="target")
    return DEMO_FOLDER / name
