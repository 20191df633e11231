"""A sample on its way through purification."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from purifier.data.sample import Sample
from purifier.defense.defend import Defended
from purifier.detection.guard import Detection
from purifier.errors import DataError
from purifier.mdlm.base import Inputs
from purifier.purification.row import PurifiedRow, Scalar


@dataclass(eq=False)
class Work:
    """What is known about one sample so far.

    Attributes:
        sample: The sample.
        answers: Texts of its assistant turns, new ones in place of old ones.
        images: Its opened images.
        inputs: The question that is asked next; None if there is none.
        relabelled: Whether an answer was replaced.
        flagged: Whether one of its labels disagrees; None if not asked.
        nats: The largest disagreement of its labels.
        agreements: Under policy `certified`, for every answer in scope the share of the masks
            that agree.
        dropped: Whether it is left out.
        problem: Code of why it cannot be purified.
        truncated: Whether a new answer ended by its length.
        further: Further prompts and their answers.
        mask_ratios: Of every question the share of units that was masked.
        saliency: Of every question the largest and the mean saliency.
        detections: What the model's detector says of every question; empty without one.
        seconds: Time it took, its share of batches.
    """

    sample: Sample
    answers: list[str]
    images: list[Image.Image] = field(default_factory=list)
    inputs: Inputs | None = None
    relabelled: bool = False
    flagged: bool | None = None
    nats: float = 0.0
    agreements: list[float] = field(default_factory=list)
    dropped: bool = False
    problem: str | None = None
    truncated: bool = False
    further: list[tuple[str, str]] = field(default_factory=list)
    mask_ratios: list[float] = field(default_factory=list)
    saliency: list[tuple[float, float]] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wanted(self) -> bool:
        """Whether there is anything left to do about it."""
        return not self.dropped and self.problem is None

    @property
    def length(self) -> int:
        """Positions of the next question; 0 if there is none."""
        return 0 if self.inputs is None else self.inputs.length

    def saw(self, defended: Defended) -> None:
        """Notes what was masked for one question, and what was detected."""
        if defended.detection is not None:
            self.detections.append(defended.detection)
        if defended.n_units:
            self.mask_ratios.append(float(defended.masked.double().mean()))
            scores = defended.saliency.double()
            self.saliency.append((float(scores.max()), float(scores.mean())))

    def close(self) -> None:
        """Lets go of pixels."""
        self.images = []
        self.inputs = None

    def row(self) -> PurifiedRow:
        """The outcome.

        Raises:
            DataError: If the sample has no place in a file.
        """
        if self.sample.source is None:
            raise DataError("A sample must have a place in a file to be purified.")
        left_out = self.dropped or self.problem is not None
        return PurifiedRow(
            record=self.sample.source.record,
            id=self.sample.id,
            answers=tuple(self.answers) if self.relabelled and not left_out else None,
            flagged=self.flagged,
            dropped=left_out,
            problem=self.problem,
            further=() if left_out else tuple(self.further),
            side=self._side(),
        )

    def _side(self) -> dict[str, Scalar]:
        side: dict[str, Scalar] = {}
        if self.mask_ratios:
            side["mask_ratio"] = _rounded(sum(self.mask_ratios) / len(self.mask_ratios))
            largest, means = zip(*self.saliency, strict=True)
            side["saliency_max"] = _rounded(max(largest))
            side["saliency_mean"] = _rounded(sum(means) / len(means))
        if self.detections:
            side["detected"] = _rounded(max(found.score for found in self.detections))
        if self.flagged is not None:
            side["flag_nats"] = _rounded(self.nats)
        if self.agreements:
            side["agreement"] = _rounded(min(self.agreements))
        if self.relabelled:
            side["truncated"] = self.truncated
        if self.seconds:
            side["seconds"] = round(self.seconds, 3)
        return side


def _rounded(value: float) -> float:
    """Four significant digits: the rest differs with the company a sample was computed in."""
    return float(f"{value:.4g}")
