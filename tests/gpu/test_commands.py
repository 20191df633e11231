"""Every command takes a device by its number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from purifier.lab.demo import DATA_FOLDER
from tests.support.service import ROOT, start_server, stop_server
from tests.tuning.conftest import data  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture
def named(device: str) -> str:
    return "cuda:0" if device.startswith("cuda") else device


def run(*arguments: str) -> str:
    """A module's command, in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_purify(tiny_checkpoint: Path, data: Path, named: str, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "purified"
    options = ["--model", str(tiny_checkpoint), "--out", str(out), "--device", named]
    run("purifier.purify", str(data), *options)
    assert (out / data.name).is_file()


def test_finetune(tiny_checkpoint: Path, data: Path, named: str, tmp_path: Path) -> None:  # noqa: F811
    out = tiny_checkpoint.parent / "healed-by-command"
    options = ["--model", str(tiny_checkpoint), "--out", str(out), "--work", str(tmp_path / "w")]
    run("purifier.finetune", str(data), *options, "--epochs", "1", "--device", named)
    assert (out / "delta.json").is_file()


def test_evaluate(named: str) -> None:
    options = ["--target", "insertion", "--device", named, "--limit", "4", "--json"]
    assert json.loads(run("purifier.evaluate", *options))["records"] == 4


def test_serve(tiny_checkpoint: Path, named: str) -> None:
    arguments = ["--model", str(tiny_checkpoint), "--insecure-no-auth", "--no-worker"]
    process, url = start_server([*arguments, "--device", named])
    try:
        image = next((DATA_FOLDER / "train" / "images").iterdir())
        answer = run("clients.cli", "ask", str(image), "What is this?", "--base-url", url, "--json")
        assert "defense" in json.loads(answer)
    finally:
        assert stop_server(process) == 0
