"""From a request to a job's spec, every default resolved, and from a job to its answer.

Settings errors name their path in the request, such as `method.disp.masking.ratio`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from purifier.certified.config import CertifyConfig
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidSetting as PurifierInvalidSetting
from purifier.evaluation.config import EvaluationConfig
from purifier.evaluation.gate import GateLimits
from purifier.purify import PRESETS, PurifyConfig
from purifier.tuning.config import PRESETS as FINETUNE_PRESETS
from purifier.tuning.config import FinetuneConfig
from server.errors import InvalidSetting
from server.jobs.spec import ADDED_TO_PURIFY, JobSpec
from server.schemas.job_settings import DispSettings
from server.schemas.jobs import JobRequest

_Settings = TypeVar("_Settings")

_PATH = "method.disp"
_OWN_SECTIONS = ("masking", "generation", "certify", "seed")
_SPEC_FIELDS = ("shard_rows", "bad_rows", "mark_images", "activate")
_ADDED = {"mark_images": True}
"""Settings that jobs of older versions lack, and what they meant."""
_NEEDS_TRIGGER = ("max_asr", "max_asr_untriggered")
_NEEDS_TEST_SET = ("min_utility", "min_words")


def spec_of(request: JobRequest, *, model: str, attack: Mapping[str, Any] | None = None) -> JobSpec:
    """The job that a request asks for.

    Args:
        request: The request.
        model: Id of the checkpoint that its `model` stands for.
        attack: `trigger` and `target` that the test set is known for; measured unless the
            request states a trigger.

    Raises:
        InvalidSetting: Naming the setting that is out of range or does not fit another.
    """
    disp = request.method.disp
    seed = request.seed or 0
    given = dict(disp.get("evaluation", {}))
    if attack is not None and "trigger" not in given:
        given = {**attack, **given}
    purify = _purify(disp, seed)
    finetune = _finetune(disp, seed)
    evaluation = _named("evaluation", EvaluationConfig, {**given, "seed": seed})
    gate = _named("gate", GateLimits, disp.get("gate", {}))
    _check_gate(request, evaluation, gate)
    own: dict[str, Any] = {name: value for name, value in disp.items() if name in _SPEC_FIELDS}
    try:
        return JobSpec(
            model=model,
            training_file=request.training_file,
            validation_file=request.validation_file,
            purify=purify.to_dict(),
            finetune=finetune.to_dict(),
            evaluation=evaluation.to_dict(),
            gate=gate.to_dict(),
            seed=seed,
            suffix=request.suffix,
            metadata=request.metadata or {},
            **own,
        )
    except InvalidSetting as error:
        path = f"{_PATH}.{error.param}"
        raise InvalidSetting(f"{path}: {error.message}", param=path) from None


def settings_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The object `method.disp` of a job's spec, whole; a request may repeat it.

    Args:
        spec: `JobSpec` as JSON values.
    """
    purify = {**ADDED_TO_PURIFY, **_without_seed(spec["purify"])}
    sections = {name: _without_seed(purify[name]) for name in ("masking", "generation")}
    tuning = {name: _without_seed(spec[name]) for name in ("finetune", "evaluation", "gate")}
    own = {name: {**_ADDED, **spec}[name] for name in _SPEC_FIELDS}
    return {**purify, **sections, **tuning, **own}


def _purify(disp: DispSettings, seed: int) -> PurifyConfig:
    base = PRESETS[disp.get("preset", "default")]
    masking: dict[str, Any] = dict(disp.get("masking", {}))
    generation: dict[str, Any] = dict(disp.get("generation", {}))
    certify: dict[str, Any] = dict(disp.get("certify", {}))
    if "stop" in generation:
        generation["stop"] = tuple(disp["generation"]["stop"])
    own = [item.name for item in fields(PurifyConfig) if item.name not in _OWN_SECTIONS]
    rest: dict[str, Any] = {name: value for name, value in disp.items() if name in own}
    for name in ("further_prompts", "detectors"):
        if name in rest:
            rest[name] = tuple(rest[name])
    return _checked(
        "",
        PurifyConfig,
        lambda: replace(
            base,
            masking=_checked("masking", MaskingConfig, lambda: base.masking.adjusted(**masking)),
            generation=_checked(
                "generation", GenerationConfig, lambda: replace(base.generation, **generation)
            ),
            certify=_checked("certify", CertifyConfig, lambda: replace(base.certify, **certify)),
            seed=seed,
            **rest,
        ),
    )


def _finetune(disp: DispSettings, seed: int) -> FinetuneConfig:
    given: dict[str, Any] = dict(disp.get("finetune", {}))
    base = FINETUNE_PRESETS[given.pop("preset", disp.get("preset", "default"))]
    return _checked("finetune", FinetuneConfig, lambda: replace(base, **given, seed=seed))


def _named(section: str, kind: Any, given: Mapping[str, Any]) -> Any:
    return _checked(section, kind, lambda: kind.from_dict(given))


def _checked(section: str, kind: Any, make: Callable[[], _Settings]) -> _Settings:
    """Makes settings; an error names its path in the request."""
    path = f"{_PATH}.{section}".rstrip(".")
    try:
        return make()
    except PurifierInvalidSetting as error:
        param, known = error.param, {item.name for item in fields(kind)}
        if param in known:
            path = f"{path}.{param}"
        elif section == "evaluation":
            path = f"{path}.trigger" + (f".{param}" if param else "")
        elif not section and param:
            # What a policy asks of how answers are denoised.
            path = f"{path}.generation.{param}"
        raise InvalidSetting(f"{path}: {error.message}", param=path) from None
    except TypeError:
        raise InvalidSetting(f"{path} has a value of the wrong type.", param=path) from None


def _check_gate(request: JobRequest, evaluation: EvaluationConfig, gate: GateLimits) -> None:
    """Refuses limits that nothing would be measured for."""
    stated = {name: value for name, value in gate.to_dict().items() if name != "treatment"}
    stated = {name: value for name, value in stated.items() if value is not None}
    if evaluation.trigger is not None and request.validation_file is None:
        raise _unfit("evaluation.trigger", "needs a validation_file, which it is put into")
    for name in stated:
        if name in _NEEDS_TRIGGER and evaluation.trigger is None:
            raise _unfit(f"gate.{name}", "needs an attack: state evaluation.trigger")
        if name in _NEEDS_TEST_SET and request.validation_file is None:
            raise _unfit(f"gate.{name}", "needs a validation_file")
    if request.method.disp.get("activate") == "auto" and not stated:
        raise _unfit("activate", "auto needs at least one limit in gate")


def _unfit(name: str, why: str) -> InvalidSetting:
    path = f"{_PATH}.{name}"
    return InvalidSetting(f"{path} {why}.", param=path)


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "seed"}
