"""The defences that `saliency_cost` compares, and what each takes in passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from purifier.defense.config import MaskingConfig

SUSPECTED = {"gate": 1e-9, "threshold": 0.0011}
"""Settings under which a random model's picture counts as suspected, whatever it says: above the
scores that unverified windows have."""

UNSUSPECTED = {"gate": 1000.0, "threshold": 1000.0}
"""Settings under which none does."""


@dataclass(frozen=True)
class Setting:
    """One defence.

    Attributes:
        masking: Its settings.
        passes: What it takes besides an undefended answer: E an encoding, P a whole forward
            pass, B a backward pass, R one run of the answer positions alone.
        ratios: Mask ratios at which answers are counted, the product's first.
        fresh: Whether its answers are counted on the fresh scenes too.
        as_dear_as: The setting whose time on the middle-sized model is taken for its own, because
            it runs the same passes there.
    """

    masking: MaskingConfig
    passes: str
    ratios: tuple[float, ...] = (0.1,)
    fresh: bool = False
    as_dear_as: str | None = None

    @property
    def in_grid(self) -> bool:
        """Whether `docs/results/defense_grid.json` has its answers on the same records."""
        known = self.masking.ranker not in ("two-stage", "knockout")
        return known and self.masking.probes == MaskingConfig().probes

    @property
    def gated(self) -> bool:
        """Whether a request that nothing is wrong with costs less."""
        return self.masking.gate > 0 or self.masking.ranker == "knockout"

    def middle_cell(self, name: str, kind: str = "") -> str:
        """Name of the cell of its time on the middle-sized model.

        Args:
            name: Its own name.
            kind: `nothing suspected` or `suspected`, of those that ask for it.
        """
        own = name if self.as_dear_as is None else self.as_dear_as
        return ", ".join(filter(None, ("middle", own, kind if self.gated else "")))

    def at(self, ratio: float) -> MaskingConfig:
        return replace(self.masking, ratio=ratio)


RATIOS = (0.1, 0.05, 0.2)

SETTINGS: Mapping[str, Setting] = {
    "patch occlusion": Setting(MaskingConfig(ranker="occlusion"), "26 P, 26 E", fresh=True),
    "patch two-stage": Setting(
        MaskingConfig(ranker="two-stage"), "1 R, 1 P, 1 E", RATIOS, fresh=True
    ),
    "patch two-stage, verify 2": Setting(
        MaskingConfig(ranker="two-stage", verify=2), "9 R, 2 P, 2 E"
    ),
    "patch two-stage, gate 1": Setting(
        MaskingConfig(ranker="two-stage", gate=1.0), "9 R (+ 1 P, 1 E)"
    ),
    "patch knockout": Setting(
        MaskingConfig(ranker="knockout"), "9 R (+ 1 P, 1 E)", as_dear_as="patch two-stage, gate 1"
    ),
    "patch attention": Setting(MaskingConfig(ranker="attention"), "1 P, 1 E"),
    "patch official, 6": Setting(
        MaskingConfig(ranker="official"), "1 P, 1 E, 6 B", as_dear_as="patch fisher, 6"
    ),
    "patch fisher, 6": Setting(MaskingConfig(ranker="fisher"), "1 P, 1 E, 6 B"),
    "token two-stage": Setting(
        MaskingConfig(level="token", ranker="two-stage"), "1 R, 1 P", RATIOS, fresh=True
    ),
    "token two-stage, gate 1": Setting(
        MaskingConfig(level="token", ranker="two-stage", gate=1.0), "9 R (+ 1 P)"
    ),
    "token knockout": Setting(
        MaskingConfig(level="token", ranker="knockout"),
        "9 R (+ 1 P)",
        as_dear_as="token two-stage, gate 1",
    ),
    "token attention": Setting(MaskingConfig(level="token", ranker="attention"), "1 P"),
    "token official, 6": Setting(
        MaskingConfig(level="token", ranker="official"), "1 P, 6 B", as_dear_as="token fisher, 6"
    ),
    "token fisher, 6": Setting(MaskingConfig(level="token", ranker="fisher"), "1 P, 6 B"),
    "token fisher, 1": Setting(MaskingConfig(level="token", ranker="fisher", probes=1), "1 P, 1 B"),
}
