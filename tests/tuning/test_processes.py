"""Several training processes do the same things in the same order."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from purifier import finetune as finetune_module
from purifier.finetune import finetune
from purifier.tuning.events import EventFile, losses, read_events
from purifier.tuning.processes import Processes
from purifier.tuning.spec import FinetuneSpec
from tests.support.service import ROOT


def run_both(spec: FinetuneSpec, fast: int) -> list[str]:
    """Trains in two processes; returns what they wrote to their error output.

    A process that fails ends the other one, which would wait for it.
    """
    spec.write(spec.work / "spec.json")
    command = [sys.executable, "-m", "tests.support.two_clocks", str(spec.work / "spec.json")]
    store = f"file://{spec.work}/rendezvous"
    processes = [
        subprocess.Popen(
            [*command, store, str(rank), str(fast)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return told


@pytest.mark.parametrize("fast", [0, 1])
def test_processes_whose_clocks_differ_save_together(
    spec: FinetuneSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = replace(spec, save_seconds=30.0)
    run_both(spec, fast)
    found, _ = read_events(spec.work / "events.jsonl")
    steps = [event["step"] for event in found if event["event"] == "step"]
    saved = [event["step"] for event in found if event["event"] == "saved"]
    # The first process decides: nothing by its clock, or a save after every step but the last.
    assert len(steps) > 1
    assert saved == (steps[:-1] if fast == 0 else [])
    alone = replace(spec, output=tmp_path / "alone", work=tmp_path / "alone.work")
    finetune(alone, events=EventFile(alone.work / "events.jsonl"))
    expected = losses(alone.work / "events.jsonl")
    assert losses(spec.work / "events.jsonl") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_reads_the_state_before_the_first_one_has_the_lock(
    spec: FinetuneSpec, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Another training may save until then, and the processes would go on from two states."""
    order: list[str] = []

    class Noted(Processes):
        def wait(self) -> None:
            order.append("all wait")

    @contextmanager
    def hold(path: Path, *, wanted: bool) -> Iterator[None]:
        order.append("locked" if wanted else "not locked")
        yield
        order.append("unlocked")

    monkeypatch.setattr(finetune_module, "join", lambda device: Noted(rank, 1, device))
    monkeypatch.setattr(finetune_module, "hold", hold)
    monkeypatch.setattr(finetune_module, "finetune", lambda *_, **__: order.append("trained"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        spec.write(spec.work / "spec.json")
        assert finetune_module.main(["--spec", str(spec.work / "spec.json")]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert order == [["locked", "not locked"][rank], "all wait", "trained", "unlocked"]
