"""The settings of a job as the rooms that use them know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from purifier.errors import InvalidSetting as PurifierInvalidSetting
from purifier.evaluation.config import EvaluationConfig
from purifier.evaluation.gate import GateLimits
from purifier.purification.config import PurifyConfig
from purifier.tuning.config import PRESETS as FINETUNE_PRESETS
from purifier.tuning.config import FinetuneConfig
from server.errors import InvalidSetting
from server.jobs.spec import ADDED_TO_PURIFY, JobSpec

T = TypeVar("T")


@dataclass(frozen=True)
class JobSettings:
    """Every setting of a job, checked, with defaults filled in."""

    purify: PurifyConfig
    finetune: FinetuneConfig
    evaluation: EvaluationConfig
    gate: GateLimits

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "purify": self.purify.to_dict(),
            "finetune": self.finetune.to_dict(),
            "evaluation": self.evaluation.to_dict(),
            "gate": self.gate.to_dict(),
        }


def settings_of(spec: JobSpec) -> JobSettings:
    """Reads the settings of a job; seeds that are not given are the job's.

    Raises:
        InvalidSetting: If one is unknown or out of range; `param` is its path in the spec.
    """
    purify = {**ADDED_TO_PURIFY, **spec.purify}
    return JobSettings(
        purify=_read("purify", purify, spec.seed, PurifyConfig.from_dict),
        finetune=_read("finetune", spec.finetune, spec.seed, _finetune),
        evaluation=_read("evaluation", spec.evaluation, spec.seed, EvaluationConfig.from_dict),
        gate=_read("gate", spec.gate, None, GateLimits.from_dict),
    )


def _read(
    name: str,
    given: Mapping[str, Any],
    seed: int | None,
    read: Callable[[Mapping[str, Any]], T],
) -> T:
    try:
        return read(given if seed is None else {"seed": seed, **given})
    except PurifierInvalidSetting as error:
        param = name if error.param in (None, name) else f"{name}.{error.param}"
        raise InvalidSetting(error.message, param=param) from None
    except TypeError:
        raise InvalidSetting(f"A setting of {name} is of the wrong type.", param=name) from None


def _finetune(values: Mapping[str, Any]) -> FinetuneConfig:
    given = dict(values)
    preset = given.pop("preset", "default")
    if preset not in FINETUNE_PRESETS:
        raise PurifierInvalidSetting(
            f"preset must be one of {', '.join(FINETUNE_PRESETS)}.", param="preset"
        )
    chosen = FinetuneConfig.from_dict(given)
    return replace(FINETUNE_PRESETS[preset], **{name: getattr(chosen, name) for name in given})
