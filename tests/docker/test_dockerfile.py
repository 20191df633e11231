"""The Dockerfile: linted, and what its runtime stage must hold."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from server.__main__ import _serve_parser

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HADOLINT, "--no-color", path], capture_output=True, text=True, check=False
    )


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, _, rest in pairs]


@pytest.fixture(scope="module")
def runtime() -> dict[str, list[str]]:
    """Arguments of every instruction of the last stage."""
    found = instructions(DOCKERFILE.read_text("utf-8"))
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    stage: dict[str, list[str]] = {}
    for word, rest in found[last:]:
        stage.setdefault(word, []).append(rest)
    return stage


def test_it_passes_the_linter() -> None:
    result = lint(DOCKERFILE)
    assert result.returncode == 0, result.stdout


def test_the_linter_finds_a_mistake(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text("FROM debian:latest\nRUN cd /x && sudo true\n")
    result = lint(broken)
    assert result.returncode != 0
    assert "DL3007" in result.stdout


def test_the_base_is_an_argument() -> None:
    found = instructions(DOCKERFILE.read_text("utf-8"))
    assert ("ARG", "BASE=python:3.11-slim") in found
    assert [rest for word, rest in found if word == "FROM"] == ["${BASE} AS build", "${BASE}"]


def test_the_server_does_not_run_as_root(runtime: dict[str, list[str]]) -> None:
    assert runtime["USER"] == ["10001:10001"]


def test_only_the_environment_is_copied_into_the_image(runtime: dict[str, list[str]]) -> None:
    assert runtime["COPY"] == ["--from=build /opt/disp /opt/disp"]
    assert "ADD" not in runtime


def test_health_is_asked_by_the_command_line(runtime: dict[str, list[str]]) -> None:
    (check,) = runtime["HEALTHCHECK"]
    words = json.loads(check.partition("CMD")[2])
    assert words[:2] == ["disp", "health"]


def test_the_server_understands_entry_point_and_command(runtime: dict[str, list[str]]) -> None:
    words = json.loads(runtime["ENTRYPOINT"][0]) + json.loads(runtime["CMD"][0])
    assert words[:2] == ["disp", "serve"]
    args = _serve_parser().parse_args(words[2:])
    assert (args.host, args.port, args.model) == ("0.0.0.0", 8000, Path("/model"))


def test_everything_that_is_copied_is_let_through_by_the_ignore_file() -> None:
    allowed = (ROOT / ".dockerignore").read_text("utf-8").split()
    copied = [
        source
        for word, rest in instructions(DOCKERFILE.read_text("utf-8"))
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert f"!{source}" in allowed
        assert (ROOT / source).exists()


def test_the_build_check_is_a_valid_script() -> None:
    script = ROOT / "docker" / "build_check.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111
