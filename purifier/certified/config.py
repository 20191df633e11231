"""Settings of certified answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from purifier.errors import InvalidSetting
from purifier.settings import require_whole


@dataclass(frozen=True)
class CertifyConfig:
    """How large a trigger may be, and by how many masks it is hidden.

    Attributes:
        window: Longest side of a trigger, as a share of the image's width and of its height.
        masks: Masks along each side of an image. More masks are smaller, and cost more answers.
        tries: Masks that are kept while all masks are tried a second time, where the answers
            disagree; 0 accepts what all masks agree on at once, and no more.
    """

    window: float = 0.2
    masks: int = 5
    tries: int = 3

    def __post_init__(self) -> None:
        window = self.window
        if isinstance(window, bool) or not isinstance(window, int | float):
            raise InvalidSetting("window must be a number.", param="window")
        if not 0.0 < window <= 0.5:
            raise InvalidSetting("window must be above 0 and at most 0.5.", param="window")
        for name, least, most in (("masks", 2, 16), ("tries", 0, 256)):
            require_whole(getattr(self, name), name)
            if not least <= getattr(self, name) <= most:
                raise InvalidSetting(f"{name} must be between {least} and {most}.", param=name)

    @property
    def statement(self) -> str:
        """What is guaranteed of an accepted label, and what is not, for people."""
        return (
            "Every new label is what the compromised model answers to an image of which a window "
            "is hidden, and for any place of a trigger there is such a window that hides it. So no "
            f"trigger that lies inside {self.window:.0%} of the width by {self.window:.0%} of the "
            "height of one image decided a new label, whatever it looks like and whatever the "
            "model was taught. Not covered: triggers in the text, triggers that are larger or lie "
            "in several places, rows without an image (they keep their labels), and whether a "
            "label is right."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings."""
        return asdict(self)
