"""`disp bench`: the benchmarks of a source checkout, run as a process of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from clients._commands import bench
from clients._exceptions import InvalidInput
from tests.support.service import ROOT

Run = Callable[..., CompletedProcess[str]]

FIGURES = [
    "undefended_32",
    "undefended_128",
    "identical_answers",
    "defended_over_undefended",
    "batch8_demo",
    "batch8_middle",
    "purify_rows",
]


@pytest.mark.slow
def test_speed_prints_one_json_object(disp: Run) -> None:
    """From another folder, at a size that costs nothing; the rest of the output is progress."""
    result = disp("bench", "speed", "--json", "--quick", "--size", "small", "--threads", "1")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert list(figures) == FIGURES
    for figure in figures.values():
        assert set(figure) == {"value", "low", "high", "n"}
        assert 0 < figure["low"] <= figure["value"] <= figure["high"]
        assert figure["n"] >= 1
    assert all(f"{name}: " in result.stderr for name in FIGURES)


def test_options_and_exit_code_are_the_benchmarks(disp: Run) -> None:
    result = disp("bench", "speed", "--generation-settings", '{"cash": "dual"}')
    assert (result.returncode, result.stdout) == (2, "")
    assert "cash" in result.stderr


def test_usage(disp: Run) -> None:
    shown = disp("bench", "--help")
    assert shown.returncode == 0
    assert "speed" in shown.stdout
    refused = disp("bench", "walk")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "usage: disp bench" in refused.stderr
    assert "bench" in disp("--help").stdout


def test_an_installation_without_the_repository_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "clients", tmp_path / "clients")
    shutil.copytree(ROOT / "server" / "schemas", tmp_path / "server" / "schemas")
    (tmp_path / "server" / "__init__.py").touch()
    result = subprocess.run(
        [sys.executable, "-m", "clients.cli", "bench", "speed", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert "Clone the repository" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_the_servers_packages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "missing_packages", lambda: ["torch"])
    with pytest.raises(InvalidInput, match="torch missing"):
        bench.command_line("speed", [])


def test_the_clients_do_not_import_what_measures() -> None:
    code = (
        "import sys, clients.cli; print([m for m in ('torch', 'benchmarks') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
