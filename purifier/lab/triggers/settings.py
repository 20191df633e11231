"""Triggers as JSON-ready settings, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from purifier.errors import InvalidSetting
from purifier.lab.triggers.adaptive import SomeOf, Torn
from purifier.lab.triggers.base import Trigger
from purifier.lab.triggers.combined import AllOf, AnyOf
from purifier.lab.triggers.others import Frame, MaskPatch, TextSuffix, Warp
from purifier.lab.triggers.square import BlendedPattern, CheckerboardPatch, CornerPatch, Sinusoid

_MOST_NESTED = 4
_TRIGGERS: dict[str, type[Trigger]] = {
    kind.name: kind
    for kind in (
        CornerPatch,
        CheckerboardPatch,
        BlendedPattern,
        Sinusoid,
        Frame,
        MaskPatch,
        Warp,
        TextSuffix,
        AllOf,
        AnyOf,
        SomeOf,
        Torn,
    )
}


def trigger_to_dict(trigger: Trigger) -> dict[str, Any]:
    """A trigger as JSON-ready settings, with its `name`; `parts` are triggers of the same form."""
    values = {field.name: getattr(trigger, field.name) for field in fields(trigger)}  # type: ignore[arg-type]
    if isinstance(trigger, AllOf):
        values["parts"] = [trigger_to_dict(part) for part in trigger.parts]
    return {"name": trigger.name, **values}


def trigger_from_dict(settings: Mapping[str, Any]) -> Trigger:
    """The trigger of such settings; what is left out keeps its default.

    Raises:
        InvalidSetting: If the name or a setting is unknown, or a value is out of range.
    """
    return _read(settings, _MOST_NESTED)


def _read(settings: Mapping[str, Any], nested: int) -> Trigger:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in _TRIGGERS:
        raise InvalidSetting(
            f"A trigger's name must be one of {', '.join(_TRIGGERS)}.", param="name"
        )
    if isinstance(parts := values.get("parts"), tuple):
        if not nested or not all(isinstance(part, Mapping) for part in parts):
            raise InvalidSetting(
                f"parts must be a list of triggers, nested at most {_MOST_NESTED} times.",
                param="parts",
            )
        values["parts"] = tuple(_read(part, nested - 1) for part in parts)
    try:
        return _TRIGGERS[name](**values)
    except TypeError:
        raise InvalidSetting(
            f"A setting of the trigger {name!r} is unknown or of the wrong type.", param="trigger"
        ) from None
