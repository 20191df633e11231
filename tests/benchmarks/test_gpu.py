"""The GPU command, small and on the CPU: every part runs, and a cut-off run keeps what it has."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, goals, report, serving, wheels
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.record import Record
from benchmarks.gpu.run import Run
from benchmarks.gpu.shapes import SHAPES, checkpoint_files, write_checkpoint
from benchmarks.load_arrivals import Shot
from purifier import load_mdlm

MakeRun = Callable[[str], Run]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture
def make_run(work: Path, tmp_path: Path) -> MakeRun:
    """A part's run of the tiny shape, without a time limit that could be met."""

    def make(part: str) -> Run:
        record = Record(tmp_path / "gpu.json")
        return Run(part, "tiny", "cpu", "float32", work, record, limit=1e9)

    return make


def measured(make_run: MakeRun, part: str) -> dict[str, Any]:
    """The figures of a part."""
    run = make_run(part)
    importlib.import_module(PARTS[part].module).measure(run)
    figures: dict[str, Any] = run.record.read()["parts"][part]["figures"]
    missing = {name: figure for name, figure in figures.items() if "missing" in figure}
    assert not missing
    return figures


def test_loading(make_run: MakeRun) -> None:
    figures = measured(make_run, "loading")
    assert figures["checkpoint"]["bytes"] > 10_000
    for name in ("from disk", "from memory"):
        assert figures[name]["ratio"] > 0
        assert figures[name]["host_mib_peak"] >= figures[name]["host_mib_before"] > 0


def test_speed(make_run: MakeRun) -> None:
    figures = measured(make_run, "speed")
    assert figures["undefended, 8 tokens"]["ratio"]["value"] > 0
    assert figures["defence"]["ratio"].keys() == {"token", "patch"}
    assert figures["answer, patch, 8 tokens, one a pass"]["tokens_a_pass"] == 1
    trained = figures["answer, undefended, 8 tokens, trained a pass"]
    assert trained["tokens_a_pass"] == pytest.approx(8 / 3)
    # A part of the same answer, timed by the same clock.
    assert 0 < trained["first_block_seconds"]["value"] <= trained["seconds"]["value"]
    assert figures["stored prompt"]["weight_bytes"] > 0
    assert figures["parts, patch"]["parts"]["attention"]["gflop"] > 0


def test_together(make_run: MakeRun) -> None:
    figures = measured(make_run, "together")
    assert figures["defended, 2 together"]["requests"] == 4
    assert figures["defended, 2 together"]["answers_per_second"] > 0


@pytest.mark.slow
def test_serving(make_run: MakeRun) -> None:
    figures = measured(make_run, "serving")
    assert figures["log"] == {"errors": []}
    assert figures["requests"]["failed"] == 0
    assert figures["requests"]["completed"] == figures["requests"]["admitted"] > 0
    assert figures["swap under load"]["seconds"].keys() == {
        "swap",
        "swap, first answer",
        "rollback",
        "rollback, first answer",
    }


def test_purifying(make_run: MakeRun) -> None:
    figures = measured(make_run, "purifying")
    assert figures["rows, product"]["rows"] == figures["rows, product"]["of"] == 4
    plain = figures["step, LoRA"]
    assert plain["loss"] == pytest.approx(
        figures["step, LoRA, gradient checkpointing"]["loss"], rel=1e-4
    )
    assert plain["trained_parameters"] > figures["step, projector"]["trained_parameters"]


@pytest.mark.slow
def test_demo_job(make_run: MakeRun) -> None:
    job = measured(make_run, "demo_job")["job"]
    assert job["job"]["status"] == "succeeded"
    assert job["purified"]["checkpoint"] == job["job"]["fine_tuned_model"]
    assert job["rolled_back"] == job["poisoned"]


def test_kernels(make_run: MakeRun) -> None:
    for figure in measured(make_run, "kernels").values():
        assert figure["operations"]
        assert 0 < sum(one["share"] for one in figure["operations"]) <= 1 + 1e-6


@pytest.mark.slow
def test_checks_on_this_device(tmp_path: Path) -> None:
    """A quick part of them: that they run where they are told to, and that figures come through."""
    file = tmp_path / "report.xml"
    chosen = ["tests/gpu/test_answers.py", "tests/gpu/test_loading.py", "tests/gpu/test_memory.py"]
    status = checks.run_tests(file, "cpu", chosen)
    found = checks.read_report(file)
    assert (status, found["failed"]) == (0, {})
    assert found["passed"] > 5
    assert found["skipped"] >= 4  # memory caps need a GPU's allocator
    assert any("same answers in bfloat16" in name for name in found["figures"])


def test_a_report_of_failures(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n"
        "@pytest.mark.gpu\n"
        "def test_bad(record_property):\n"
        "    record_property('share', '0.5')\n"
        "    assert 'left' == 'right'\n"
        "@pytest.mark.gpu\n"
        "def test_good(): pass\n"
        "def test_unmarked(): assert False\n"
    )
    file = tmp_path / "report.xml"
    assert checks.run_tests(file, "cpu", [str(test)]) == 1
    found = checks.read_report(file)
    assert (found["tests"], found["passed"], found["failures"]) == (2, 1, 1)
    assert "right" in next(iter(found["failed"].values()))
    assert list(found["figures"].values()) == ["0.5"]
    assert "missing" in checks.read_report(tmp_path / "absent.xml")


def test_checkpoints_of_a_seed_are_the_same_and_load(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    sizes = [
        write_checkpoint(tmp_path / name, shape, device="cpu", seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert len(set(sizes)) == 1
    contents = [[file.read_bytes() for file in checkpoint_files(tmp_path / name)] for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    mdlm = load_mdlm(tmp_path / "a", dtype="bfloat16")
    weights = mdlm.published_weights()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert bool((weights["model.norm.weight"] == 1).all())


def test_large_checkpoints_are_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.shapes._SHARD_BYTES", 50_000)
    write_checkpoint(tmp_path, SHAPES["tiny"], device="cpu")
    assert len(checkpoint_files(tmp_path)) > 2
    assert load_mdlm(tmp_path).vocab_size == SHAPES["tiny"].vocabulary


def test_figures_of_other_parts_stay(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json")
    record.put("one", "a", 1)
    record.put("two", "b", {"value": 2})
    record.begin("one")
    record.end("two", ended="well")
    assert record.read()["parts"] == {
        "one": {"figures": {}},
        "two": {"figures": {"b": {"value": 2}}, "ended": "well"},
    }


def test_no_time_and_no_memory_are_told(make_run: MakeRun) -> None:
    run = make_run("speed")

    def too_much() -> None:
        raise torch.OutOfMemoryError("out of memory")

    assert run.measure("large", 0, too_much) is None
    run.limit = 1.0
    assert run.measure("late", 5.0, lambda: pytest.fail("begun without time")) is None
    assert run.record.read()["parts"]["speed"]["figures"] == {
        "large": {"missing": "out of memory"},
        "late": {"missing": "no time was left"},
    }


ENDLESS = """
import pathlib, subprocess, sys, threading
from benchmarks.gpu.record import Record
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
Record(pathlib.Path(sys.argv[1])).put("endless", "child", {"pid": child.pid})
threading.Event().wait()
"""
"""A part that writes a figure, starts a process of its own and then never ends."""


def test_a_part_is_cut_off_at_its_limit_and_its_figures_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path / "gpu.json")
    endless = [sys.executable, "-c", ENDLESS, str(record.file)]
    monkeypatch.setattr(command, "part_command", lambda *_: endless)
    options = argparse.Namespace()
    limit = 2.0
    figures: dict[str, Any] = {}
    while not figures:  # a busy machine may need longer until the first figure
        well = command.run_part("endless", limit, options, tmp_path, record, dict(os.environ))
        assert not well
        figures = record.read()["parts"]["endless"]["figures"]
        limit *= 3
    assert record.read()["parts"]["endless"]["ended"] == "cut off at its time limit"
    assert not is_running(figures["child"]["pid"])


@pytest.mark.parametrize(("status", "ended"), [(0, "well"), (3, "with status 3")])
def test_how_a_part_ended_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, ended: str
) -> None:
    ends = [sys.executable, "-c", f"raise SystemExit({status})"]
    monkeypatch.setattr(command, "part_command", lambda *_: ends)
    record = Record(tmp_path / "gpu.json")
    options = argparse.Namespace()
    well = command.run_part("speed", 60.0, options, tmp_path, record, dict(os.environ))
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


def test_goals_are_judged_by_their_figures() -> None:
    figures: dict[str, dict[str, Any]] = {
        "together": {
            "defended, 1 together": {"answers_per_second": 2.0},
            "defended, 8 together": {"answers_per_second": 8.0},
            "defended, 32 together": {"missing": "out of memory"},
        },
        "speed": {"defence": {"ratio": {"patch": {"value": 1.2, "low": 1.1, "high": 1.3}}}},
    }
    values = {goal.what: goal.value(figures) for goal in goals.GOALS}
    met = {goal.what: goal.met(values[goal.what]) for goal in goals.GOALS}
    assert values["answers a second, defended, 8 over 1"] == 4.0
    assert met["answers a second, defended, 8 over 1"] is True
    assert values["answers a second, defended, 32 over 1"] is None
    assert met["answers a second, defended, 32 over 1"] is None
    assert met["defended over undefended seconds, level patch"] is True
    assert goals.Goal("x", lambda _: None, 3).met(2.9) is False


def test_the_page_shows_goals_and_every_number() -> None:
    spread = {"value": 12.0, "low": 11.0, "high": 13.0, "n": 3}
    result = {
        "shape": "8b",
        "device": "cuda:0",
        "dtype": "bfloat16",
        "command": "python -m benchmarks.gpu",
        "machine": {"device": "card", "processor": "p", "cores": 16, "python": "3", "torch": "2",
                    "transformers": "5"},
        "parts": {
            "speed": {
                "figures": {
                    "undefended, 128 tokens": {"ratio": spread},
                    "published defence": {"missing": "out of memory"},
                },
                "ended": "well",
                "seconds": 61.0,
                "limit": 110.0,
            }
        },
    }  # fmt: skip
    page = report.markdown(result)
    assert "| published path over product, seconds, 128 tokens, batch 1 | 12 | ≥ 10 | yes |" in page
    assert "12 (11 to 13)" in page
    assert "out of memory" in page
    assert "after 61 of 110 s" in page


def test_the_longest_gap_counts_waiting_alone() -> None:
    def shot(due: float, ended: float) -> Shot:
        return Shot(due=due, sent=due, ended=ended, end="answered", status=200)

    shots = [shot(0.0, 1.0), shot(0.5, 2.0), shot(8.0, 9.0), shot(8.5, 12.0)]
    assert serving.longest_gap(shots) == 3.0
    assert serving.longest_gap(shots[:1]) is None


def test_wheels_that_are_missing_are_installed(tmp_path: Path) -> None:
    folder, site = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    for name in ("disp_absent_package", "httpx"):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            meta = f"{name}-1.0.dist-info"
            wheel.writestr(f"{name}.py", "here = True\n")
            wheel.writestr(f"{meta}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0")
            wheel.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{meta}/RECORD", "")
    environment = wheels.installed(site, folder)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(site)
    assert (site / "disp_absent_package.py").is_file()
    assert not (site / "httpx.py").exists()  # it is installed already
    assert wheels.installed(site, tmp_path / "nothing") == {}


def test_wheels_cover_the_server_and_leave_out_pytorch() -> None:
    names = wheels.closure("disp-server", extra="server")
    assert {"fastapi", "starlette", "uvicorn", "dbos", "sqlalchemy", "python-multipart"} <= names
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
