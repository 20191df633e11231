"""The GPU command around its parts: limits, processes, folders, and the wheels it carries."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import wheels
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.record import Record
from server.jobs import recovery

ENDLESS = """
import pathlib, subprocess, sys, tempfile, threading
from benchmarks.gpu.record import Record
wait = [sys.executable, "-c", "input()"]
child = subprocess.Popen(wait, stdin=subprocess.PIPE)
session = subprocess.Popen(wait, stdin=subprocess.PIPE, start_new_session=True)
figure = {"pids": [child.pid, session.pid], "folder": tempfile.mkdtemp()}
Record(pathlib.Path(sys.argv[1])).put("endless", "begun", figure)
threading.Event().wait()
"""
"""A part that starts processes, one as a session of its own, and then never ends."""

OPTIONS = argparse.Namespace(command="", shape="tiny", device="cpu", dtype="float32")


def test_a_part_is_cut_off_at_its_limit_and_its_figures_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path / "gpu.json")
    endless = [sys.executable, "-c", ENDLESS, str(record.file)]
    monkeypatch.setattr(command, "part_command", lambda *_: endless)
    figures: dict[str, Any] = {}
    for limit in (2.0, 6.0, 20.0, 60.0, 180.0):  # a busy machine may need longer to begin
        well = command.run_part("endless", limit, OPTIONS, tmp_path, record, dict(os.environ))
        part = record.read()["parts"]["endless"]
        assert not well
        assert part["ended"] == "cut off at its time limit"
        if figures := part["figures"]:
            break
    assert figures, "nothing was measured in 180 seconds"
    assert not any(is_running(pid) for pid in figures["begun"]["pids"])
    assert tmp_path in Path(figures["begun"]["folder"]).parents
    assert not Path(figures["begun"]["folder"]).exists()


@pytest.mark.parametrize(("status", "ended"), [(0, "well"), (3, "with status 3")])
def test_how_a_part_ended_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, ended: str
) -> None:
    ends = [sys.executable, "-c", f"raise SystemExit({status})"]
    monkeypatch.setattr(command, "part_command", lambda *_: ends)
    record = Record(tmp_path / "gpu.json")
    well = command.run_part("speed", 60.0, OPTIONS, tmp_path, record, dict(os.environ))
    assert well == (status == 0)
    assert record.read()["parts"]["speed"]["ended"] == ended


def is_running(pid: int) -> bool:
    """Whether a process goes on; one whose end its parent has not noticed does not count."""
    try:
        process = psutil.Process(pid)
        process.wait(timeout=60)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_parts_for_which_no_time_is_left(tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--device", "cpu", "--limit", "1", "--out", str(tmp_path)]
    assert command.main([*arguments, "--parts", "speed", "kernels"]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["ended"] for part in result["parts"].values()} == {"not begun: no time was left"}
    page = (tmp_path / "gpu.md").read_text()
    assert "not begun: no time was left" in page
    assert "not measured" in page


def test_figures_of_a_part_that_is_not_begun_stay(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json")
    record.put("speed", "peaks", {"matrix_gflops": 1.0})
    record.note("speed", ended="well")
    before = record.read()
    arguments = ["--shape", "tiny", "--device", "cpu", "--limit", "1", "--out", str(tmp_path)]
    assert command.main([*arguments, "--parts", "speed"]) == 1
    assert record.read() == before


def test_parts_with_goals_fit_into_one_command_of_ten_minutes() -> None:
    first = ["tests", "loading", "speed", "together", "purifying"]
    assert list(PARTS)[: len(first)] == first
    assert sum(PARTS[name].seconds for name in first) <= 560
    assert sum(part.seconds for part in PARTS.values()) <= 840


def test_every_process_finds_the_checkout(tmp_path: Path) -> None:
    """Workers and trainings are started with `-P`, in folders of their own."""
    environment = command.environment_with(tmp_path / "site")
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(command.ROOT)
    find = "import benchmarks.gpu.parts as found; print(found.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", find], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(command.ROOT)


def test_a_report_of_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "disp-server":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = recovery.versions()
    assert found["disp-server"] == "0+checkout"
    assert found["dbos"] == installed("dbos")


def make_wheel(folder: Path, name: str, version: str, requires: str = "") -> Path:
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        meta = f"{name}-{version}.dist-info"
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        lines += [f"Requires-Dist: {requires}"] if requires else []
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{meta}/METADATA", "\n".join(lines))
        wheel.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{meta}/RECORD", "")
    return file


def test_wheels_that_are_missing_are_installed(tmp_path: Path) -> None:
    folder, site = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    make_wheel(folder, "disp_absent_package", "1.0")
    make_wheel(folder, "httpx", "99.0")
    assert wheels.installed(site, folder) == [str(site)]
    assert (site / "disp_absent_package.py").is_file()
    assert not (site / "httpx.py").exists()  # the project takes the one that is installed
    assert wheels.installed(site, tmp_path / "nothing") == []


def test_wheels_take_the_place_of_versions_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the newer version needs, and only that."""
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["old>=2"]\n[project.optional-dependencies]\n'
        'server = ["fine>=1", "old>=99; python_version < \'3\'"]\ndev = []\n'
    )
    here = {"old": "1.9", "companion": "1.0", "fine": "1.0", "packaging": "24.0"}
    needs = {"old": ["companion==1.0"], "fine": []}
    monkeypatch.setattr(wheels, "_version", here.get)
    monkeypatch.setattr(importlib.metadata, "requires", needs.get)
    expected = [
        make_wheel(tmp_path, "companion", "2.0"),
        make_wheel(tmp_path, "old", "2.1", "companion==2.0"),
    ]
    make_wheel(tmp_path, "fine", "3.0")
    assert wheels.needed(tmp_path, project) == expected
    here |= {"old": "2.0"}
    assert wheels.needed(tmp_path, project) == []


def test_wheels_cover_the_server_and_leave_out_pytorch() -> None:
    names = wheels.closure("disp-server", extra="server")
    assert {"fastapi", "starlette", "uvicorn", "dbos", "sqlalchemy", "python-multipart"} <= names
    assert "psycopg-binary" in names  # an extra of a requirement; without it psycopg has no driver
    assert not names & wheels.EXPECTED
    assert "openai" not in names


def test_the_command_itself_needs_no_package() -> None:
    """It is what installs them, so it must start on a bare machine."""
    needed = (
        "import sys, benchmarks.gpu.__main__; print(sorted(m.split('.')[0] for m in sys.modules))"
    )

    found = subprocess.run(
        [sys.executable, "-S", "-c", needed], cwd=Path.cwd(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    for package in ("torch", "numpy", "httpx", "pydantic"):
        assert f"'{package}'" not in found.stdout
