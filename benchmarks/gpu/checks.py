"""The tests marked `gpu`, as a part of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.outcomes import FILE, read_outcomes
from benchmarks.gpu.run import Run

ROOT = Path(__file__).absolute().parents[2]
TESTS = ("tests/gpu",)
"""Their folder alone: others import packages that a bare machine lacks."""

_MARGIN = 3.0
_LOOK = 5.0


def measure(run: Run, chosen: Sequence[str] = TESTS) -> None:
    """Runs them on the run's device; keeps how many passed, and what the failed ones say.

    The figure is kept anew while they run, and pytest is ended before the part is.
    """
    file = run.work / "gpu-tests.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with start_tests(file, run.device, chosen) as process:
        status: int | str = "running"
        while status == "running":
            try:
                status = process.wait(min(_LOOK, max(run.left - _MARGIN, 0.1)))
            except subprocess.TimeoutExpired:
                if run.left <= _MARGIN:
                    process.kill()
                    status = "cut off at its time limit"
            run.put("tests", {"status": status, **read_outcomes(file)})


def start_tests(file: Path, device: str, chosen: Sequence[str] = TESTS) -> subprocess.Popen[bytes]:
    """Starts the `gpu` tests of some files.

    Warnings are no errors here: the versions of the machine are not those of `constraints.txt`.
    Its own plugins stay out.

    Args:
        file: What becomes of the tests, see `benchmarks.gpu.outcomes`.
        device: Where they run.
        chosen: Files or folders.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu.outcomes", "-o", "addopts=--import-mode=importlib"]
    command += ["-o", "filterwarnings=default", *chosen]
    environment = {
        **os.environ,
        "DISP_GPU_DEVICE": device,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        FILE: str(file.absolute()),
    }
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sys.stderr)
