"""What the defences of `saliency_cost` stop and keep: ASR and clean accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from benchmarks.saliency_settings import SETTINGS, Setting
from purifier.defense.config import MaskingConfig
from purifier.evaluation.metrics import measure
from purifier.evaluation.runner import Cut, Runner
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.demo_data import write_test_data
from purifier.lab.targets import TargetName, target_by_name
from purifier.mdlm.registry import checkpoint_id, load_mdlm

RECORDS = 40
"""Of the test split: those of the defence grid."""

FRESH_SCENES, FRESH_SEED = 120, 20261124
"""Scenes of the validation split that no setting was chosen on."""

RESULTS = Path(__file__).parents[1] / "docs" / "results"

Work = tuple[str, Callable[[], Any]]


def quality_cells(device: str) -> Iterator[Work]:
    """The cells of the part `quality`."""
    targets: tuple[TargetName, ...] = get_args(TargetName)
    yield from _earlier("test", "defense_grid", "--limit 40")
    yield from _earlier("fresh", "fresh_scenes", f"--seed {FRESH_SEED}")
    fresh = _fresh()
    for target in targets:
        yield (
            f"fresh, {target}, undefended",
            partial(_undefended, device, target, fresh),
        )
    tests = {"fresh": fresh, "test": read_test_set(DATA_FOLDER, limit=RECORDS)}
    wanted = [
        (split, target, name, ratio)
        for split in tests
        for target in targets
        for name, setting in SETTINGS.items()
        if (setting.fresh if split == "fresh" else not setting.in_grid)
        for ratio in (setting.ratios if split == "test" else setting.ratios[:1])
    ]
    # What a stopped run should have: the default ratio of what is measured on both first.
    wanted.sort(
        key=lambda cell: (cell[3] != SETTINGS[cell[2]].ratios[0], not SETTINGS[cell[2]].fresh)
    )
    for split, target, name, ratio in wanted:
        yield (
            f"{split}, {target}, {name}, ratio {ratio:g}",
            partial(_figures, device, target, tests[split], SETTINGS[name], ratio),
        )


def _runner(device: str, target: TargetName, test: TestSet) -> Runner:
    return Runner(load_mdlm(checkpoint_path(target), device=device), test, batch_size=64)


def _undefended(device: str, target: TargetName, test: TestSet) -> dict[str, Any]:
    answers = _runner(device, target, test).undefended()
    return measure(test.cases, answers, target_by_name(target)).to_dict()


def _figures(
    device: str, target: TargetName, test: TestSet, setting: Setting, ratio: float
) -> dict[str, Any]:
    runner = _runner(device, target, test)
    masking = setting.at(ratio)
    cut = Cut(ratio, masking.threshold)
    answers = runner.masked(masking, [cut])[cut]
    return measure(runner.test_set.cases, answers, target_by_name(target)).to_dict()


def _earlier(split: str, name: str, flags: str) -> Iterator[Work]:
    """Cells that another benchmark, run with some flags, has measured on the same scenes."""
    report = json.loads((RESULTS / f"{name}.json").read_text())
    if flags not in report["command"]:
        return
    for row in report["rows"]:
        target = row["target"]
        if report["checkpoints"][target] != checkpoint_id(checkpoint_path(target)):
            continue
        if row["ranker"] == "undefended":
            yield f"{split}, {target}, undefended", partial(row.__getitem__, "figures")
        for label, setting in SETTINGS.items():
            masking = setting.masking
            same = (row["level"], row["ranker"], row["ratio"], row["threshold"]) == (
                masking.level, masking.ranker, masking.ratio, masking.threshold,
            )  # fmt: skip
            if same and masking == MaskingConfig(level=masking.level, ranker=masking.ranker):
                key = f"{split}, {target}, {label}, ratio {masking.ratio:g}"
                yield key, partial(row.__getitem__, "figures")


@lru_cache(maxsize=1)
def _fresh() -> TestSet:
    with TemporaryDirectory() as folder:
        write_test_data(Path(folder), "validation", FRESH_SCENES, FRESH_SEED)
        return read_test_set(folder)
