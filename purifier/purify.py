"""Purifies a data set with the compromised model itself."""

from __future__ import annotations

from purifier.purification.config import PRESETS, Policy, PurifyConfig
from purifier.purification.purifier import Purifier
from purifier.purification.row import PurifiedRow

__all__ = ["PRESETS", "Policy", "PurifiedRow", "Purifier", "PurifyConfig"]
