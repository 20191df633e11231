"""The tests marked `gpu`, as a part of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.run import Run

_FAILURE_CHARACTERS = 1_000


def measure(run: Run) -> None:
    """Runs them on the run's device; keeps how many passed, and what the failed ones say."""
    report = run.work / "gpu-tests.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    run.put("tests", {"status": run_tests(report, run.device), **read_report(report)})


def run_tests(report: Path, device: str, chosen: Sequence[str] = ("tests",)) -> int:
    """Runs the `gpu` tests of some files; returns pytest's exit status.

    Warnings are no errors here: the versions of the machine are not those of `constraints.txt`.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "no:randomly", "-o", "addopts=--import-mode=importlib"]
    command += ["-o", "filterwarnings=default", f"--junitxml={report}"]
    command += chosen
    environment = {**os.environ, "DISP_GPU_DEVICE": device}
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    return done.returncode


def read_report(report: Path) -> dict[str, Any]:
    """Counts, the failed tests with the end of what they say, and the figures that tests noted."""
    if not report.is_file():
        return {"missing": "pytest has written no report"}
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = {}
    figures: dict[str, str] = {}
    for case in suite.iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        for problem in (*case.iter("failure"), *case.iter("error")):
            failed[name] = (problem.text or "")[-_FAILURE_CHARACTERS:]
        for noted in case.iter("property"):
            figures[f"{case.get('name')}: {noted.get('name')}"] = str(noted.get("value"))
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return {**counts, "passed": passed, "failed": failed, "figures": figures}
