"""What the purification benchmark compares: settings, policies, controls."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from purifier.data.llava import read_llava
from purifier.data.sample import Sample
from purifier.finetune import FinetuneConfig
from purifier.lab.targets import TargetName
from purifier.mdlm.delta import is_delta
from purifier.purify import PRESETS, Policy, PurifyConfig

PAPER = PRESETS["paper"]
DEFAULT = replace(PRESETS["default"], detectors=())
"""What masking alone does; `benchmarks.defense` measures the search of the training set too."""

SETTINGS: dict[str, PurifyConfig] = {
    "paper": PAPER,
    "paper, own questions": replace(PAPER, prompt=None),
    "default": DEFAULT,
    "random": replace(DEFAULT, masking=DEFAULT.masking.adjusted(ranker="random")),
    "random, paper's ratio": replace(
        PAPER, prompt=None, masking=PAPER.masking.adjusted(ranker="random")
    ),
}
"""How masked answers are given. The two random ones are controls: as much is masked as by
`default` and by the paper's setting, but anywhere."""


@dataclass(frozen=True)
class Cell:
    """One way to get training labels.

    Attributes:
        name: As on the command line and in the tables.
        setting: Key of `SETTINGS`; None for labels that no purification made.
        policy: What is done with the masked answers; None likewise.
    """

    name: str
    setting: str | None = None
    policy: Policy | None = None


PLAIN, CLEAN = Cell("poisoned-labels"), Cell("clean-labels")

SHORT = {
    "paper": "paper",
    "paper, own questions": "paper-own",
    "default": "default",
    "random": "random",
    "random, paper's ratio": "random-paper",
}
_POLICIES: tuple[Policy, ...] = ("relabel_all", "flag_then_relabel", "drop_flagged")

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        *(
            Cell(f"{SHORT[setting]}/{policy}", setting, policy)
            for setting in ("paper", "paper, own questions", "default")
            for policy in _POLICIES
        ),
        Cell("random/relabel_all", "random", "relabel_all"),
        Cell("random-paper/relabel_all", "random, paper's ratio", "relabel_all"),
        PLAIN,
        CLEAN,
    )
}
"""Every cell of the table, in its order; `poisoned-labels` is plain fine-tuning on the data as it
is, `clean-labels` the upper bound."""


@dataclass(frozen=True)
class Plan:
    """What one run measures and with what.

    Attributes:
        models: Folder with a poisoned checkpoint for every target, and their base.
        data: The data folder: `train/<target>.json`, `train/clean_labels.json`, `test/`.
        work: Where stages keep what they finished.
        rows: Training rows used, from the first on; None uses all.
        limit: Test records used; None uses all.
        tuning: Settings of the fine-tuning.
        seed: Seed of the purification.
        purify_batch: Rows purified together.
        test_batch: Test requests denoised together.
        device: Where everything runs.
    """

    models: Path
    data: Path
    work: Path
    rows: int | None = None
    limit: int | None = None
    tuning: FinetuneConfig = field(default_factory=FinetuneConfig)
    seed: int = 0
    purify_batch: int = 32
    test_batch: int = 64
    device: str = "cpu"

    def checkpoint(self, target: TargetName) -> Path:
        return self.models / target

    def base(self, target: TargetName) -> Path:
        """The root base of a target's model, before and after fine-tuning."""
        checkpoint = self.checkpoint(target)
        return self.models / "base" if is_delta(checkpoint) else checkpoint

    @property
    def images(self) -> Path:
        return self.data / "train" / "images"

    def samples(self, name: str) -> list[Sample]:
        """Rows of one label file of the training set."""
        return read_llava(self.data / "train" / f"{name}.json")[: self.rows]

    def purification(self, setting: str, policy: Policy) -> PurifyConfig:
        """The settings of one purification."""
        return replace(
            SETTINGS[setting], policy=policy, seed=self.seed, batch_size=self.purify_batch
        )
