"""What a training says while it runs: one JSON object a line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"

Emit = Callable[[Mapping[str, Any]], None]
"""Takes one event: `event` names its kind, the other keys are plain JSON values."""


class EventFile:
    """Appends events to a file, each in one write.

    A step that is taken again after a crash is reported again, with the same loss.

    Args:
        path: The file; a line that a crash left unfinished is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False)
        with self._path.open("ab") as stream:
            stream.write(line.encode() + b"\n")


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole events of a file behind a place in it, and the place behind them, in bytes."""
    if not path.is_file():
        return [], offset
    with path.open("rb") as stream:
        stream.seek(offset)
        content = stream.read()
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].splitlines()
    return [json.loads(line) for line in lines], offset + whole


def losses(path: Path) -> list[float]:
    """The loss of every step that a file reports, in the order of the steps."""
    events, _ = read_events(path)
    found = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
    return [found[step] for step in sorted(found)]
