"""The settings that speed is measured with, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from purifier.defense.config import MaskingConfig
from purifier.denoise.config import EXACT, FAST, GenerationConfig
from purifier.errors import InvalidSetting

CHANGES: Mapping[str, Any] = MappingProxyType(
    {
        setting.name: getattr(FAST, setting.name)
        for setting in fields(GenerationConfig)
        if getattr(FAST, setting.name) != getattr(EXACT, setting.name)
    }
)
"""What the product's fast settings change of the exact ones; the rest is alike on both sides."""

BLOCK = 32
"""Block length of all measured answers; those of 32 tokens are one block, as published."""

PATCH_LIMIT, TOKEN_LIMIT = 1.6, 1.3
"""What a defended answer may cost, in undefended ones."""

GOALS: Mapping[str, float] = MappingProxyType(
    {
        "undefended_32": 8.0,
        "undefended_128": 8.0,
        "identical_answers": 0.99,
        "batch8_demo": 3.0,
        "batch8_middle": 1.3,
        "purify_rows": 10.0,
    }
)
"""What a figure should reach at least; that of `defended_over_undefended` depends on the level."""


def exact_generation(gen_length: int) -> GenerationConfig:
    """The settings of the plain path: one token a step, nothing cached."""
    return GenerationConfig(gen_length=gen_length, block_length=min(gen_length, BLOCK))


def faster(generation: GenerationConfig, changes: Mapping[str, Any]) -> GenerationConfig:
    """Settings with the fast ones' changes.

    Raises:
        InvalidSetting: If a name is unknown or a value out of range.
    """
    try:
        return replace(generation, **changes)
    except TypeError:
        known = ", ".join(GenerationConfig.__dataclass_fields__)
        raise InvalidSetting(
            f"generation settings are {known}; {', '.join(changes)} was given.",
            param="generation-settings",
        ) from None


def masking_at(level: str) -> MaskingConfig:
    """The product's defence at a level."""
    return MaskingConfig().adjusted(level=level)


def default_level() -> str:
    """The level of the product's default defence."""
    return MaskingConfig().level


def limit_of(level: str) -> float:
    """What a defended answer may cost at a level, in undefended ones."""
    return TOKEN_LIMIT if level == "token" else PATCH_LIMIT


PAPER_MASKING = MaskingConfig(level="token", ranker="official", ratio=0.3, scored_length=1)
"""The published defence: six probes, six backward passes."""
