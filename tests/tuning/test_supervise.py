"""Trainings in processes of their own: killed, stopped, abandoned, several at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from purifier.errors import PurifierError
from purifier.finetune import finetune, main
from purifier.tuning import supervise as supervise_module
from purifier.tuning.events import EventFile, losses, read_events
from purifier.tuning.launch import launch, stop
from purifier.tuning.locks import RUN_VARIABLE, STOP_FILE, SUPERVISOR_FILE, hold, orphaned
from purifier.tuning.spec import FinetuneSpec
from tests.tuning.conftest import CONFIG

DEADLINE = 600.0
"""Ends a test that hangs; a busy machine takes minutes."""
LONG = replace(CONFIG, epochs=50)
"""100 steps: some seconds, in which a signal can fall."""


@pytest.fixture(autouse=True)
def _as_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, as in this process, so that sums come out alike; signals as they were."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def long(spec: FinetuneSpec) -> FinetuneSpec:
    return replace(spec, config=LONG)


@pytest.fixture(scope="session")
def undisturbed(
    compromised: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> FinetuneSpec:
    """The long run, never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = FinetuneSpec(compromised, data, folder / "healed", folder / "work", config=LONG)
    finetune(spec, events=EventFile(spec.work / "events.jsonl"))
    return spec


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def events(spec: FinetuneSpec, kind: str) -> list[dict[str, object]]:
    found, _ = read_events(spec.work / "events.jsonl")
    return [event for event in found if event["event"] == kind]


def started(spec: FinetuneSpec, processes: int = 1) -> subprocess.Popen[bytes]:
    spec.write(spec.work / "spec.json")
    return launch(spec.work / "spec.json", processes=processes)


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that must not outlive the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            # Trainings lead sessions of their own, which a group's end does not reach.
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_a_killed_run_goes_on_to_the_same_end(
    long: FinetuneSpec, undisturbed: FinetuneSpec, ended: list[subprocess.Popen[bytes]]
) -> None:
    process = started(long)
    ended.append(process)
    until(lambda: len(events(long, "saved")) >= 5)
    family = [process.pid, *(each.pid for each in psutil.Process(process.pid).children(True))]
    assert len(family) >= 3
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not long.output.exists()
    n_steps = len(losses(long.work / "events.jsonl"))
    assert 5 <= n_steps < 100
    file = EventFile(long.work / "events.jsonl")
    finetune(long, events=file)
    # It went on from the last save: one step, at most, was taken twice.
    assert int(str(events(long, "started")[-1]["step"])) >= n_steps - 1
    curve = losses(long.work / "events.jsonl")
    assert curve == losses(undisturbed.work / "events.jsonl")
    assert same_files(long.output, undisturbed.output)


def test_a_stopped_run_saves_and_goes_on(
    long: FinetuneSpec, undisturbed: FinetuneSpec, ended: list[subprocess.Popen[bytes]]
) -> None:
    # Nothing is saved but what the stop saves.
    long = replace(long, save_seconds=1e9)
    process = started(long)
    ended.append(process)
    until(lambda: len(events(long, "step")) >= 3)
    assert stop(process, DEADLINE) == 75
    taken = len(events(long, "step"))
    assert events(long, "stopped")[-1]["step"] == taken
    assert len(events(long, "saved")) == 1
    assert main(["--spec", str(long.work / "spec.json")]) == 0
    assert events(long, "started")[-1]["step"] == taken
    assert losses(long.work / "events.jsonl") == losses(undisturbed.work / "events.jsonl")
    assert same_files(long.output, undisturbed.output)


def test_a_run_whose_caller_died_saves_and_ends(
    long: FinetuneSpec, ended: list[subprocess.Popen[bytes]]
) -> None:
    long = replace(long, save_seconds=1e9, config=replace(LONG, epochs=5000))
    long.write(long.work / "spec.json")
    code = (
        "import sys, pathlib\n"
        "from purifier.tuning.launch import launch\n"
        "launch(pathlib.Path(sys.argv[1])).wait()"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(long.work / "spec.json")])
    ended.append(caller)
    until(lambda: len(events(long, "step")) >= 2)
    caller.kill()
    caller.wait()
    until(lambda: len(events(long, "stopped")) == 1)
    assert (long.work / "state.safetensors").is_file()
    # Nobody works there any more.
    with hold(long.work / SUPERVISOR_FILE, wait=DEADLINE), hold(long.work / "training.lock"):
        pass


def test_a_run_whose_caller_died_at_once_ends_too(
    long: FinetuneSpec, ended: list[subprocess.Popen[bytes]]
) -> None:
    """The caller is gone before the supervisor has loaded its libraries."""
    long = replace(long, config=replace(LONG, epochs=5000))
    long.write(long.work / "spec.json")
    code = (
        "import os, sys, pathlib\n"
        "from purifier.tuning.launch import launch\n"
        "launch(pathlib.Path(sys.argv[1]))\n"
        "os._exit(0)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(long.work / "spec.json")])
    ended.append(caller)
    assert caller.wait(DEADLINE) == 0
    try:
        until(lambda: len(events(long, "stopped")) == 1)
    finally:
        # A training that goes on notices this.
        (long.work / STOP_FILE).touch()
    with hold(long.work / SUPERVISOR_FILE, wait=DEADLINE), hold(long.work / "training.lock"):
        pass


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_does_not_stop_in_time_is_killed_with_all_its_processes(
    long: FinetuneSpec, ended: list[subprocess.Popen[bytes]], processes: int
) -> None:
    long = replace(long, config=replace(LONG, epochs=5000))
    process = started(long, processes=processes)
    ended.append(process)
    until(lambda: len(events(long, "step")) >= 2)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    # Frozen, they cannot stop by themselves.
    for member in family:
        member.suspend()
    try:
        assert stop(process, 0.0) == -signal.SIGKILL
        _, alive = psutil.wait_procs(family, DEADLINE)
        assert alive == []
    finally:
        for member in family:
            if member.is_running():
                member.kill()


def test_two_processes_learn_what_one_does(
    spec: FinetuneSpec, tmp_path: Path, ended: list[subprocess.Popen[bytes]]
) -> None:
    alone = replace(spec, output=tmp_path / "alone", work=tmp_path / "alone.work")
    finetune(alone, events=EventFile(alone.work / "events.jsonl"))
    process = started(spec, processes=2)
    ended.append(process)
    assert process.wait(DEADLINE) == 0
    assert events(spec, "started")[0]["processes"] == 2
    ours, expected = (losses(each.work / "events.jsonl") for each in (spec, alone))
    assert ours == pytest.approx(expected, rel=1e-4)
    assert (spec.output / "delta.json").is_file()


def test_a_failure_says_why(
    spec: FinetuneSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.json").write_text("[]")
    broken = replace(spec, data=tmp_path / "labels.json")
    broken.write(spec.work / "spec.json")
    assert main(["--spec", str(spec.work / "spec.json")]) == 1
    failed = events(broken, "failed")
    assert len(failed) == 1
    assert "labels.json" in str(failed[0]["message"])
    assert str(failed[0]["message"]) in capsys.readouterr().err


def test_a_process_that_dies_without_a_word_has_failed(
    spec: FinetuneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec.write(spec.work / "spec.json")
    # A launcher that starts nothing stands for one whose training the system killed.
    silent = [sys.executable, "-c", "raise SystemExit(9)"]
    monkeypatch.setattr(supervise_module, "command", lambda *arguments: silent)
    said: list[Mapping[str, Any]] = []
    assert supervise_module.supervise(spec.work / "spec.json", listen=said.append) == 1
    assert [event["event"] for event in said] == ["failed"]
    assert "status 9" in said[0]["message"]


def test_one_training_a_folder(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock"),
        pytest.raises(PurifierError, match="Another training"),
        hold(tmp_path / "lock", wait=0.0),
    ):
        pass
    with hold(tmp_path / "lock"):
        pass


def test_processes_know_when_they_are_on_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not orphaned(tmp_path)
    monkeypatch.setenv(RUN_VARIABLE, "a")
    with hold(tmp_path / SUPERVISOR_FILE, content="a"):
        assert not orphaned(tmp_path)
        (tmp_path / "stop").touch()
        assert orphaned(tmp_path)
        (tmp_path / "stop").unlink()
        assert not orphaned(tmp_path)
    assert orphaned(tmp_path)
    with hold(tmp_path / SUPERVISOR_FILE, content="b"):
        assert orphaned(tmp_path)


def test_an_unfinished_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "step", "step": 1, "loss": 2.0}\n{"event": "st')
    assert losses(path) == [2.0]
    file = EventFile(path)
    file({"event": "step", "step": 1, "loss": 2.0})
    file({"event": "step", "step": 2, "loss": 1.0})
    assert losses(path) == [2.0, 1.0]
    assert len(read_events(path)[0]) == 3
