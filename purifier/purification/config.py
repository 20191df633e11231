"""Settings of a purification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from purifier.certified.answers import require_deterministic
from purifier.certified.config import CertifyConfig
from purifier.data.sample import IMAGE_MARK
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import FAST, GenerationConfig
from purifier.errors import InvalidSetting
from purifier.settings import require_seed, require_whole

Policy = Literal["relabel_all", "flag_then_relabel", "drop_flagged", "certified"]
Turns = Literal["first", "all"]
Detector = Literal["training-set"]

FLAG_THRESHOLD = 5.0
"""Nats: a label is flagged if masking makes one of its tokens this much less likely, 150 times.
The unit and the reason are those of `OCCLUSION_THRESHOLD`; no clean data is needed."""

PAPER_PROMPT = "Describe this image in detail."


@dataclass(frozen=True)
class PurifyConfig:
    """How a data set is relabelled.

    Attributes:
        policy: `relabel_all` replaces every answer in scope by the masked model's (the paper);
            `flag_then_relabel` only those that disagree with what the masked model sees;
            `drop_flagged` leaves such samples out and keeps the others as they are; `certified`
            replaces every answer by one that no window of an image decides, and leaves samples
            out for which there is none (`purifier.certified`).
        masking: The defence under which answers are given; see `defence` for what a policy
            changes. Its seed is not used: every answer has its own, see
            `purifier.purification.seeds`. Policy `certified` has masks of its own, `certify`.
        generation: How answers are denoised; its seed is not used either.
        prompt: Asked at the first answer in place of the sample's own question; None asks that.
        further_prompts: Asked about every sample with images besides; their answers make
            further samples.
        turns: Answers in scope: the `first` one of a dialogue (the paper) or `all`, each asked
            again with the new answers before it.
        rescore_blocks: Whether an answer of several blocks is masked anew at each of them, on
            the prompt and what is committed; else once, at its first step.
        flag_threshold: Nats by which masking must make a label's token less likely for the
            label to be flagged.
        detectors: What searches for the trigger besides `masking`: `training-set` looks at the
            states of all rows first (`purifier.detection`). Rows that it answers to are masked
            until it does not, flagged, and left out where most of their images would be masked.
            `Purifier` uses the detector that its model carries; whoever starts a purification
            makes it first (`searched`).
        certify: How large a trigger may be that `certified` labels do not depend on.
        batch_size: Samples worked on together, fewer where they are long.
        seed: The job's seed.
    """

    policy: Policy = "relabel_all"
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    generation: GenerationConfig = FAST
    prompt: str | None = None
    further_prompts: tuple[str, ...] = ()
    turns: Turns = "all"
    rescore_blocks: bool = True
    flag_threshold: float = FLAG_THRESHOLD
    detectors: tuple[Detector, ...] = ("training-set",)
    certify: CertifyConfig = field(default_factory=CertifyConfig)
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise InvalidSetting(
                f"policy must be one of {', '.join(get_args(Policy))}.", param="policy"
            )
        if self.turns not in get_args(Turns):
            raise InvalidSetting(
                f"turns must be one of {', '.join(get_args(Turns))}.", param="turns"
            )
        if not isinstance(self.rescore_blocks, bool):
            raise InvalidSetting("rescore_blocks must be true or false.", param="rescore_blocks")
        if not isinstance(self.further_prompts, tuple):
            raise InvalidSetting(
                "further_prompts must be a list of texts.", param="further_prompts"
            )
        given = () if self.prompt is None else (self.prompt,)
        for name, texts in (("prompt", given), ("further_prompts", self.further_prompts)):
            if any(not isinstance(text, str) or not text.strip() for text in texts):
                raise InvalidSetting(f"{name} must be text that is not empty.", param=name)
            if any(IMAGE_MARK in text for text in texts):
                raise InvalidSetting(
                    f"{name} must not hold {IMAGE_MARK}; it is asked about all images of a row.",
                    param=name,
                )
        if not isinstance(self.detectors, tuple) or not {*self.detectors} <= {*get_args(Detector)}:
            raise InvalidSetting(
                f"detectors must be a list of {', '.join(get_args(Detector))}.", param="detectors"
            )
        require_whole(self.batch_size, "batch_size")
        if not 1 <= self.batch_size <= 4096:
            raise InvalidSetting("batch_size must be between 1 and 4096.", param="batch_size")
        require_whole(self.seed, "seed")
        require_seed(self.seed)
        threshold = self.flag_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise InvalidSetting("flag_threshold must be a number.", param="flag_threshold")
        if not 0.0 < threshold <= 1000.0:
            raise InvalidSetting(
                "flag_threshold must be above 0 and at most 1000.", param="flag_threshold"
            )
        if self.policy == "certified":
            require_deterministic(self.generation)
            if self.turns != "all":
                raise InvalidSetting(
                    "turns must be all under policy certified: an answer that is kept may be the "
                    "attacker's, and later ones follow it.",
                    param="turns",
                )

    @property
    def flags(self) -> bool:
        """Whether labels are compared with what the masked model sees."""
        return self.policy in ("flag_then_relabel", "drop_flagged")

    @property
    def searched(self) -> bool:
        """Whether the training set is searched for a trigger before it is relabelled.

        Certified labels need no detector: no window of an image decides them.
        """
        return "training-set" in self.detectors and self.policy != "certified"

    @property
    def defence(self) -> MaskingConfig:
        """The masking as it is used.

        Where labels are judged, the mask ratio is always used up: whether there was anything
        worth masking is then told by the label, not by `masking.threshold`.
        """
        return replace(self.masking, threshold=0.0) if self.flags else self.masking

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `from_dict` gives the same settings back."""
        settings = asdict(self)
        settings["further_prompts"] = list(self.further_prompts)
        settings["detectors"] = list(self.detectors)
        settings["generation"]["stop"] = list(self.generation.stop)
        return settings

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> PurifyConfig:
        """Settings from JSON values.

        Args:
            settings: Any of the fields, `masking`, `generation` and `certify` as objects of
                theirs. With the key `preset` they change that preset, else the defaults.

        Raises:
            InvalidSetting: If a name is unknown or a value out of range.
        """
        given = _object(settings, "purify")
        preset = given.pop("preset", "default")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise InvalidSetting(f"preset must be one of {', '.join(PRESETS)}.", param="preset")
        base = PRESETS[preset]
        if "masking" in given:
            given["masking"] = _masking(base.masking, given["masking"])
        if "generation" in given:
            given["generation"] = _generation(base.generation, given["generation"])
        if "certify" in given:
            given["certify"] = _certify(base.certify, given["certify"])
        for name in ("further_prompts", "detectors"):
            if isinstance(given.get(name), list):
                given[name] = tuple(given[name])
        _known(given, cls, "purify")
        return replace(base, **given)


def _masking(base: MaskingConfig, settings: Any) -> MaskingConfig:
    given = _object(settings, "masking")
    effort = given.pop("effort", None)
    _known(given, MaskingConfig, "masking")
    numbers = _numbers(given, ("ratio", "temperature", "threshold", "gate"), "masking")
    return base.adjusted(effort=effort, **numbers)


def _certify(base: CertifyConfig, settings: Any) -> CertifyConfig:
    given = _object(settings, "certify")
    _known(given, CertifyConfig, "certify")
    return replace(base, **given)


def _generation(base: GenerationConfig, settings: Any) -> GenerationConfig:
    given = _object(settings, "generation")
    _known(given, GenerationConfig, "generation")
    if "stop" in given:
        stop = given["stop"]
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
            raise InvalidSetting("generation.stop must be a list of texts.", param="stop")
        given["stop"] = tuple(stop)
    if not isinstance(given.get("suffix"), str | None):
        raise InvalidSetting("generation.suffix must be text.", param="suffix")
    numbers = ("temperature", "guidance_scale", "transfer_ratio", "parallel_threshold")
    return base.adjusted(**_numbers(given, numbers, "generation"))


def _object(settings: Any, name: str) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise InvalidSetting(f"{name} must be an object of settings.", param=name)
    return dict(settings)


def _known(given: Mapping[str, Any], kind: type[Any], name: str) -> None:
    known = [item.name for item in fields(kind)]
    for key in given:
        if key not in known:
            raise InvalidSetting(
                f"{name} has no setting {key!r}; there are {', '.join(known)}.", param=name
            )


def _numbers(given: dict[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    for name in names:
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidSetting(f"{where}.{name} must be a number.", param=name)
    return given


PRESETS: Mapping[str, PurifyConfig] = MappingProxyType(
    {
        "default": PurifyConfig(),
        "paper": PurifyConfig(
            masking=MaskingConfig(
                level="token",
                ranker="official",
                ratio=0.3,
                probes=6,
                top_k=5,
                temperature=1.0,
                threshold=0.0,
                scored_length=1,
            ),
            generation=GenerationConfig(
                gen_length=32,
                block_length=32,
                steps=32,
                temperature=0.0,
                guidance_scale=0.0,
                remasking="low_confidence",
            ),
            prompt=PAPER_PROMPT,
            turns="first",
            detectors=(),
        ),
    }
)
"""`paper` is the recipe of DiSP (arXiv 2602.22246) with the published code's settings: the first
answer of every sample is replaced. `default` searches the training set for a trigger, then asks
each sample's own questions under the product's default masking and that of what was found."""
