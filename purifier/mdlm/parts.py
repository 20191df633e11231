"""The parts of a model that can be trained."""

from __future__ import annotations

from typing import Literal

Part = Literal["projector", "language_model", "vision_tower"]
