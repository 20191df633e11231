"""Every example runs against the real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.job_server import data_archive
from tests.support.service import ROOT, Service

EXAMPLES = ROOT / "examples"

Example = Callable[..., str]


@pytest.fixture
def example(live: Service, tmp_path: Path) -> Example:
    def run(name: str, *arguments: str | Path) -> str:
        program = [sys.executable, "-W", "error"] if name.endswith(".py") else ["bash"]
        result = subprocess.run(
            [*program, EXAMPLES / name, *arguments],
            cwd=tmp_path,
            env={**os.environ, "DISP_BASE_URL": live.url, "DISP_API_KEY": live.keys["all"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_ask(example: Example, scene: Path, tmp_path: Path) -> None:
    assert "masked, checkpoint" in example("ask.py", scene, "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_compare(example: Example, scene: Path) -> None:
    other = scene.with_name("other.png")
    shutil.copy(scene, other)
    lines = example("compare.py", scene, other).splitlines()
    assert len([line for line in lines if " -> " in line]) == 2


def test_the_openai_package(example: Example, scene: Path) -> None:
    assert "'ratio': 0.3" in example("openai_client.py", scene)


def test_purify(example: Example, tmp_path: Path) -> None:
    (tmp_path / "scenes.zip").write_bytes(data_archive(4))
    lines = example("purify.py", "scenes.zip", "report.html").splitlines()
    assert lines[0] == "The job was created."
    healed, poisoned = lines[-2].split(" serves, made from ")
    assert lines[-1] == f"{poisoned} serves again"
    assert healed != poisoned
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(example: Example, scene: Path) -> None:
    answer = json.loads(example("curl.sh", scene))
    assert answer["defense"]["applied"]


def test_the_list_of_examples_is_complete() -> None:
    text = (EXAMPLES / "README.md").read_text("utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert files == {name for name in files if f"`{name} " in text}
