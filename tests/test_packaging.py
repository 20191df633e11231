"""The built wheel: complete, and light without its extras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "numpy", "safetensors", "peft")

PROBE = """
import importlib.metadata, importlib.util, json, sys
import clients, clients.cli
print(json.dumps({
    "installed": sorted(d.metadata["Name"].lower() for d in importlib.metadata.distributions()),
    "loaded": sorted(name.partition(".")[0] for name in sys.modules),
}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tree with pip's own build isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def base_install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and no extras; its folder of programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    subprocess.run(
        [
            *(programs / "python", "-m", "pip", "install", "--quiet"),
            *("--constraint", ROOT / "constraints.txt", wheel),
        ],
        check=True,
        capture_output=True,
    )
    return programs


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_every_file_of_the_three_rooms(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for room in ("purifier", "server", "clients"):
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in packed
    assert not [name for name in packed if name.startswith(("tests/", "docs/", "benchmarks/"))]
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_the_base_install_is_light(base_install: Path, tmp_path: Path) -> None:
    result = run(base_install / "python", "-W", "error", "-c", PROBE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert not set(HEAVY) & set(found["installed"])
    assert {"disp-server", "httpx", "pillow", "pydantic", "rich"} <= set(found["installed"])
    assert not {*HEAVY, "purifier"} & set(found["loaded"])


def test_the_command_line_works_without_the_server(base_install: Path, tmp_path: Path) -> None:
    shown = run(base_install / "disp", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "ask" in shown.stdout
    doctor = run(base_install / "disp", "doctor", "--json", cwd=tmp_path)
    assert json.loads(doctor.stdout)["packages"]["torch"] is None


@pytest.mark.parametrize("command", ["serve", "evaluate", "keys", "demo"])
def test_what_needs_the_server_says_so(base_install: Path, tmp_path: Path, command: str) -> None:
    result = run(base_install / "disp", command, cwd=tmp_path)
    assert result.returncode == 1
    assert "pip install 'disp-server[server]'" in result.stderr
