"""Settings of a purification job as requests give them: the object `method.disp`.

Every key may be left out and keeps its default then; unknown keys are refused. Ranges are
checked by the settings of `purifier` that these name field by field. Random choices follow from
the job's own seed, so there is no other.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from server.schemas.chat import CacheName, Remasking
from server.schemas.defense import Effort, Level, Probing, Ranker

Policy = Literal["relabel_all", "flag_then_relabel", "drop_flagged", "certified"]
Preset = Literal["default", "paper"]
Turns = Literal["first", "all"]
Part = Literal["projector", "language_model", "vision_tower"]
Activation = Literal["auto", "approval", "never"]
Target = Literal["insertion", "refusal", "misclassification"]

_CLOSED = ConfigDict(extra="forbid", strict=True)


@with_config(_CLOSED)
class JobMasking(TypedDict, total=False):
    """The defence under which the model relabels."""

    effort: Effort
    level: Level
    ratio: float
    ranker: Ranker
    probes: int
    top_k: int
    temperature: float
    pooling: int
    threshold: float
    shortlist: int
    verify: int
    gate: float
    probed: int
    probing: Probing
    float64: bool
    scored_length: int


@with_config(_CLOSED)
class JobGeneration(TypedDict, total=False):
    """How new labels are denoised."""

    gen_length: int
    block_length: int | None
    steps: int | None
    temperature: float
    guidance_scale: float
    remasking: Remasking
    cache: CacheName
    prompt_interval: int
    response_interval: int
    transfer_ratio: float
    parallel_threshold: float
    stop: list[str]
    suffix: str | None


@with_config(_CLOSED)
class JobCertify(TypedDict, total=False):
    """How large a trigger may be that the labels of policy `certified` do not depend on."""

    window: float
    masks: int
    tries: int


@with_config(_CLOSED)
class JobFinetune(TypedDict, total=False):
    """The recovery fine-tuning; a `preset` of its own goes before the one of the whole."""

    preset: Preset
    parts: list[Part]
    epochs: int
    batch_size: int
    micro_batch_size: int | None
    learning_rate: float
    schedule: Literal["cosine", "constant"]
    warmup: float
    weight_decay: float
    max_grad_norm: float
    rank: int
    alpha: float
    labels: Literal["answers", "reference"]
    padding: Literal["excluded", "reference"]
    answer_length: int | None
    filler_weight: float
    turn_mask: bool
    visual_mask: float
    precision: Literal["auto", "float32", "bfloat16"]
    gradient_checkpointing: bool
    cache_mb: int
    stored_dtype: Literal["float32", "float16", "bfloat16"]
    bad_rows: int | None


@with_config(_CLOSED)
class JobEvaluation(TypedDict, total=False):
    """What is measured before and after; a stated `trigger` needs a `target` or `keywords`."""

    rows: int
    test_rows: int | None
    trigger: dict[str, Any] | None
    target: Target | None
    keywords: list[str]
    examples: int
    batch_size: int


@with_config(_CLOSED)
class JobGate(TypedDict, total=False):
    """Limits that a checkpoint must keep to be activated."""

    max_disagreement: float | None
    max_distance: float | None
    max_drift: float | None
    max_drift_distance: float | None
    max_asr: float | None
    max_asr_untriggered: float | None
    min_utility: float | None
    min_words: float | None
    treatment: Literal["point", "interval"]


@with_config(_CLOSED)
class DispSettings(TypedDict, total=False):
    """How data are purified, the model fine-tuned, evaluated, judged and activated."""

    preset: Preset
    policy: Policy
    masking: JobMasking
    generation: JobGeneration
    prompt: str | None
    further_prompts: list[str]
    turns: Turns
    rescore_blocks: bool
    flag_threshold: float
    detectors: list[Literal["training-set"]]
    certify: JobCertify
    batch_size: int
    finetune: JobFinetune
    evaluation: JobEvaluation
    gate: JobGate
    shard_rows: int
    bad_rows: float
    mark_images: bool
    activate: Activation
