"""A pytest plugin that writes what became of every test as soon as it is known.

`pytest -p benchmarks.gpu.outcomes`, with the file named by the environment. A run that is cut off
keeps what it has; pytest's own reports are written at its end alone.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FILE = "DISP_GPU_OUTCOMES"
"""Names the file: one JSON object a line."""

_CHARACTERS = 1_000
_ORDER = ("passed", "skipped", "failed", "error")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come last: what is cut off is the least then."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be read is an error of its own."""
    if report.failed:
        _write(report.nodeid, "error", report.longreprtext)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called behind the setup, the call and the teardown of every test."""
    if report.failed:
        outcome = "failed" if report.when == "call" else "error"
        _write(report.nodeid, outcome, report.longreprtext)
    elif report.skipped:
        _write(report.nodeid, "skipped")
    elif report.when == "call":
        _write(report.nodeid, "passed", figures=dict(report.user_properties))


def _write(test: str, outcome: str, text: str = "", **more: Any) -> None:
    line = {"test": test, "outcome": outcome, "text": text[-_CHARACTERS:], **more}
    with Path(os.environ[FILE]).open("a") as stream:
        stream.write(json.dumps(line, default=str) + "\n")


def read_outcomes(file: Path) -> dict[str, Any]:
    """Counts, the failed tests with the end of what they say, and the figures that tests noted."""
    ended: dict[str, str] = {}
    failed: dict[str, str] = {}
    figures: dict[str, str] = {}
    for line in _lines(file):
        test, outcome = line["test"], line["outcome"]
        # A test that has passed may yet fail while it tidies up.
        ended[test] = max(ended.get(test, outcome), outcome, key=_ORDER.index)
        if outcome in ("failed", "error"):
            failed[test] = line["text"]
        for name, value in line.get("figures", {}).items():
            figures[f"{test.rpartition('::')[2]}: {name}"] = str(value)
    counts = Counter(ended.values())
    return {
        "tests": len(ended),
        "passed": counts["passed"],
        "failures": counts["failed"],
        "errors": counts["error"],
        "skipped": counts["skipped"],
        "failed": failed,
        "figures": figures,
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines; one that was being written when pytest was killed does not count."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
