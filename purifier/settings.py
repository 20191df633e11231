"""Checks that settings of several kinds share."""

from __future__ import annotations

from typing import Any

from purifier.errors import InvalidSetting

LARGEST_SEED = 2**63 - 1


def require_whole(value: Any, name: str, *, optional: bool = False) -> None:
    """Refuses what is not a whole number.

    Raises:
        InvalidSetting: Naming the setting.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidSetting(f"{name} must be a whole number.", param=name)


def require_seed(seed: int) -> None:
    """Refuses seeds that a generator does not take.

    Raises:
        InvalidSetting: If it is negative or above 2^63 - 1.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InvalidSetting(f"seed must be between 0 and {LARGEST_SEED}.", param="seed")
