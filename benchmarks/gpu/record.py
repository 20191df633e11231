"""The file of a run's figures: whole at any time, and never older than the last figure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Record:
    """Figures by part and name in one JSON file.

    The parts of a run write one after the other, each from its own process.

    Args:
        file: The file; made with the first figure.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, Any]:
        """Everything so far."""
        if not self.file.is_file():
            return {"parts": {}}
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def begin(self, part: str, **facts: Any) -> None:
        """Forgets what an earlier run has measured in a part; notes what holds for this run."""
        content = self.read()
        content["parts"][part] = {**facts, "figures": {}}
        self._write(content)

    def note(self, part: str, **facts: Any) -> None:
        """Notes something about a part besides its figures: where it ran, how it ended."""
        content = self.read()
        content["parts"].setdefault(part, {"figures": {}}).update(facts)
        self._write(content)

    def put(self, part: str, name: str, figure: Any) -> None:
        """Keeps a figure."""
        content = self.read()
        content["parts"].setdefault(part, {"figures": {}})["figures"][name] = figure
        self._write(content)

    def _write(self, content: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        made = self.file.with_suffix(".new")
        made.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(made, self.file)
