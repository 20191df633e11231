"""Settings of the recovery fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from purifier.errors import InvalidSetting
from purifier.mdlm.parts import Part
from purifier.settings import require_seed, require_whole

Schedule = Literal["cosine", "constant"]
Labels = Literal["answers", "reference"]
Padding = Literal["excluded", "reference"]
Precision = Literal["auto", "float32", "bfloat16"]
StoredDtype = Literal["float32", "float16", "bfloat16"]

_CHOICES = {
    "schedule": get_args(Schedule),
    "labels": get_args(Labels),
    "padding": get_args(Padding),
    "precision": get_args(Precision),
    "stored_dtype": get_args(StoredDtype),
}
_WHOLE = {
    "epochs": (1, 10_000),
    "batch_size": (1, 100_000),
    "micro_batch_size": (1, 100_000),
    "rank": (1, 1024),
    "answer_length": (1, 100_000),
    "cache_mb": (0, 10_000_000),
    "bad_rows": (0, 10**12),
}
_OPTIONAL = ("micro_batch_size", "answer_length", "bad_rows")
_NUMBERS = {
    "learning_rate": (0.0, 1.0),
    "warmup": (0.0, 1.0),
    "weight_decay": (0.0, 1.0),
    "max_grad_norm": (0.0, 1e6),
    "alpha": (0.0, 1e6),
    "filler_weight": (0.0, 100.0),
    "visual_mask": (0.0, 1.0),
}
_FLAGS = ("turn_mask", "gradient_checkpointing")


@dataclass(frozen=True)
class FinetuneConfig:
    """What is trained, on what labels, and how.

    Attributes:
        parts: What is trained: the `projector` whole (the paper's choice), `language_model` and
            `vision_tower` through LoRA factors.
        epochs: Passes over the data.
        batch_size: Rows in one optimizer step, over all processes.
        micro_batch_size: Most rows that a process sends through the model at once; gradients
            are accumulated. None: all of the process's share.
        learning_rate: Peak, AdamW.
        schedule: `cosine` to 0, or `constant`; both after the warm-up.
        warmup: Share of the steps over which the rate rises.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are clipped to this norm.
        rank: LoRA rank r.
        alpha: LoRA alpha; factors are scaled by alpha / r.
        labels: `answers` trains answers and their end of turn; `reference` trains the chat marks
            between them too, as the published LLaDA-V code does.
        padding: `excluded` hides what pads a batch from attention and loss; `reference` does as
            the published collator: pad ids are attended to and trained, and zero vectors behind
            them attended to.
        answer_length: The last answer is filled up with end-of-turn tokens to this length, as
            generation of that length sees it; longer answers are kept. None fills nothing.
        filler_weight: Weight in the loss of the tokens that fill an answer up.
        turn_mask: Lets a position attend to its own and earlier turns alone (the published code
            has the option, its scripts do not use it).
        visual_mask: Highest share of a row's visual tokens that is replaced by the mask
            embedding; every row draws its own share below it at every step. 0 replaces none.
        precision: `auto` is bfloat16 autocast on a GPU and the weights' dtype elsewhere.
        gradient_checkpointing: Trades time for memory.
        cache_mb: Memory in MiB for images' features in front of the first trained layer.
        stored_dtype: Of the result's tensors. `float32` serves what was trained, exactly; the
            others halve the files.
        bad_rows: Most rows that may be left out because they cannot be used; None: any number,
            as long as one is left. All are reported.
        seed: Of the LoRA factors' start, the order, diffusion times and masks.
    """

    parts: tuple[Part, ...] = ("projector", "language_model", "vision_tower")
    epochs: int = 4
    batch_size: int = 50
    micro_batch_size: int | None = 10
    learning_rate: float = 3e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    labels: Labels = "answers"
    padding: Padding = "excluded"
    answer_length: int | None = 32
    filler_weight: float = 0.1
    turn_mask: bool = False
    visual_mask: float = 0.0
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    cache_mb: int = 2048
    stored_dtype: StoredDtype = "float32"
    bad_rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        known = get_args(Part)
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise InvalidSetting("parts must name at least one part, each once.", param="parts")
        if any(part not in known for part in self.parts):
            raise InvalidSetting(f"parts must be among {', '.join(known)}.", param="parts")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InvalidSetting(f"{name} must be one of {', '.join(choices)}.", param=name)
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            require_whole(value, name, optional=name in _OPTIONAL)
            if value is not None and not low <= value <= high:
                raise InvalidSetting(f"{name} must be between {low} and {high}.", param=name)
        for name, (least, most) in _NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise InvalidSetting(f"{name} must be a number.", param=name)
            if not least <= value <= most:
                raise InvalidSetting(f"{name} must be between {least} and {most}.", param=name)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise InvalidSetting(f"{name} must be true or false.", param=name)
        require_whole(self.seed, "seed")
        require_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values by field name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {"parts": list(self.parts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetuneConfig:
        """The inverse of `to_dict`; fields that are left out take their defaults.

        Raises:
            InvalidSetting: On unknown fields and values out of range.
        """
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise InvalidSetting(
                f"Unknown setting {unknown[0]} of the fine-tuning.", param=unknown[0]
            )
        given = dict(values)
        parts = given.get("parts")
        if parts is not None and not isinstance(parts, list | tuple):
            raise InvalidSetting("parts must be a list.", param="parts")
        return cls(**given)


DEFAULT = FinetuneConfig()

PAPER = replace(
    DEFAULT,
    parts=("projector",),
    batch_size=32,
    micro_batch_size=1,
    learning_rate=1e-4,
    labels="reference",
    padding="reference",
    answer_length=None,
)
"""The paper's recovery: projector alone, 4 epochs, cosine from 1e-4, one row at a time."""

PRESETS: dict[str, FinetuneConfig] = {"default": DEFAULT, "paper": PAPER}
