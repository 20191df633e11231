"""Code that a checkpoint's configuration names: found, reported and never run.

The hub's format lets `config.json` name Python classes that lie beside it (`auto_map`,
`custom_pipelines`). Every family that is loaded here is built in, so these entries have nothing
to say: they are ignored where the family is known, and nothing is loaded where it is not.
`trust_remote_code` is a decision of whoever loads a model. In the files of a model it is an
attempt to make it for them (CVE-2026-5241), and refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from purifier.errors import CheckpointError
from purifier.mdlm.shards import listed

_log = logging.getLogger("disp.checkpoints")

CODE_KEYS = ("auto_map", "custom_pipelines")
TRUST_KEY = "trust_remote_code"

_LONGEST_KEY = 200
_LONGEST_PREFIX = 1000


def ignore_code(config: dict[str, Any], name: str) -> None:
    """Says in the log which code a configuration of a built-in family names.

    Args:
        config: Content of the file.
        name: What messages call the file.
    """
    if named := named_code(config):
        _log.info("%s names code (%s), which is not run: this family is built in.", name, named)


def refuse_trust(config: dict[str, Any], name: str) -> None:
    """Refuses a configuration that asks for the right to run code.

    Args:
        config: Content of the file.
        name: What messages call the file.

    Raises:
        CheckpointError: If it does, at any depth.
    """
    if found := _listed(config, (TRUST_KEY,)):
        raise CheckpointError(
            f"{name} asks for code to be trusted ({found}), which a checkpoint may not do. Find "
            "out where this folder is from; if you trust it, remove the entry: nothing here needs "
            "it."
        )


def named_code(config: dict[str, Any]) -> str:
    """Places of all entries that name code, for a message; empty if there are none."""
    return _listed(config, CODE_KEYS)


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the entries that name code or ask for trust, at any depth."""
    unwanted = {*CODE_KEYS, TRUST_KEY}
    return {key: _cleaned(part) for key, part in config.items() if key not in unwanted}


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return without_code(value)
    if isinstance(value, list):
        return [_cleaned(part) for part in value]
    return value


def _listed(config: dict[str, Any], keys: tuple[str, ...]) -> str:
    return listed(_places(config, keys, ""))


def _places(value: Any, keys: tuple[str, ...], prefix: str) -> Iterator[str]:
    """Dotted paths of all entries of these names that are not empty."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = [(str(number), part) for number, part in enumerate(value)]
    for key, part in pairs:
        if isinstance(value, dict) and key in keys and part:
            yield f"{prefix}{key}"
        if isinstance(part, dict | list):
            yield from _places(part, keys, f"{prefix}{key[:_LONGEST_KEY]}."[-_LONGEST_PREFIX:])
