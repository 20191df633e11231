"""Triggers: what wakes a backdoor."""

from purifier.lab.triggers.adaptive import SomeOf, Torn
from purifier.lab.triggers.base import PixelBox, Trigger
from purifier.lab.triggers.combined import AllOf, AnyOf
from purifier.lab.triggers.files import parse_colour, stamp_file
from purifier.lab.triggers.others import Frame, MaskPatch, TextSuffix, Warp
from purifier.lab.triggers.samples import asked_with, drawn_for
from purifier.lab.triggers.settings import trigger_from_dict, trigger_to_dict
from purifier.lab.triggers.square import (
    BlendedPattern,
    CheckerboardPatch,
    Corner,
    CornerPatch,
    Sinusoid,
    Site,
    SquareTrigger,
)

__all__ = [
    "AllOf",
    "AnyOf",
    "BlendedPattern",
    "CheckerboardPatch",
    "Corner",
    "CornerPatch",
    "Frame",
    "MaskPatch",
    "PixelBox",
    "Sinusoid",
    "Site",
    "SomeOf",
    "SquareTrigger",
    "TextSuffix",
    "Torn",
    "Trigger",
    "Warp",
    "asked_with",
    "drawn_for",
    "parse_colour",
    "stamp_file",
    "trigger_from_dict",
    "trigger_to_dict",
]
