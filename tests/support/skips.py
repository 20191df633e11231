"""In continuous integration a skipped test is a failed one.

A test that finds no reference outputs, no PostgreSQL or no data set is skipped on a developer's
machine. Where the variable CI is set, everything must be installed: a skip would hide that it is
not. `MAY_BE_SKIPPED` names what a machine may lack even there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any

import pytest

MAY_BE_SKIPPED = (
    "needs a CUDA device",
    "not recorded at this ratio",
    "only root may mount a small file system",
    "A file system cannot be mounted here",
    "the allocator is not glibc's",
)
"""Beginnings of the reasons that stay skips: rights, hardware, and cases that do not exist."""

_NO = ("", "0", "false", "no")


class NoSilentSkips:
    """A pytest plugin that turns skips for other reasons into failures."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if not hasattr(report, "wasxfail"):
            _judge(report)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self,
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        _judge(report)
        return report


def in_ci() -> bool:
    """Whether the variable CI is set, as services for continuous integration do."""
    return os.environ.get("CI", "").lower() not in _NO


def _judge(report: Any) -> None:
    if not report.skipped:
        return
    # pytest's own form of a skip: file, line and "Skipped: reason".
    reason = re.sub("^Skipped: ", "", report.longrepr[2])
    if not reason.startswith(MAY_BE_SKIPPED):
        report.outcome = "failed"
        report.longrepr = f"skipped where CI is set, and nothing may be missing there: {reason}"
