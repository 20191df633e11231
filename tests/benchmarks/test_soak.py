"""The soak in small, against a real server, and that it would see what it looks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import soak
from benchmarks.load_questions import Question
from benchmarks.served import Served, Usage
from benchmarks.soak_actors import Fault, Ledger, Stage, Told, read_stream

RIGHT = Told("one@sha256:0", "A red coat.", "stop")
OTHER = Told("two@sha256:0", "A blue coat.", "stop")


def chunk(text: str | None, checkpoint: str = "one@sha256:0", end: str | None = None) -> str:
    delta = {} if text is None else {"content": text}
    body = {
        "system_fingerprint": checkpoint,
        "choices": [{"index": 0, "delta": delta, "finish_reason": end}],
    }
    return f"data: {json.dumps(body)}"


WHOLE = [chunk(""), chunk("A red"), chunk(" coat."), chunk(None, end="stop"), "data: [DONE]"]


def test_a_stream_is_read_like_an_answer() -> None:
    assert read_stream("q", WHOLE) == RIGHT


@pytest.mark.parametrize(
    "lines",
    [
        WHOLE[:-1],
        [*WHOLE[:2], "event: error", 'data: {"error": {}}'],
        [WHOLE[0], chunk("A", "two@sha256:0"), *WHOLE[3:]],
        [],
    ],
)
def test_a_broken_stream_is_a_fault(lines: list[str]) -> None:
    with pytest.raises(Fault):
        read_stream("q", lines)


@pytest.mark.parametrize(
    ("told", "faults"),
    [
        (RIGHT, 0),
        (OTHER, 0),
        (Told("one@sha256:0", "A blue coat.", "stop"), 1),
        (Told("one@sha256:0", "A red coat.", "length"), 1),
        (Told("three@sha256:0", "A red coat.", "stop"), 1),
    ],
)
def test_answers_are_held_against_their_checkpoint(told: Told, faults: int) -> None:
    ledger = Ledger()
    expected = {RIGHT.checkpoint: [RIGHT], OTHER.checkpoint: [OTHER]}
    nobody = cast("Served", None)
    stage = Stage(nobody, [Question("q", {})], {}, expected, ledger, until=0.0, seed=0, crowd=0)
    stage.check(0, told)
    assert (ledger.counts["checked"], ledger.counts["faults"]) == (1, faults)
    assert len(ledger.faults) == faults


def judged(
    ledger: Ledger | None = None,
    rss: Sequence[float] = (100.0,) * 20,
    files: float = 10.0,
    errors: Sequence[str] = (),
    **status: int,
) -> list[bool]:
    counted = {"admitted": 3, "completed": 2, "failed": 0, "cancelled": 1}
    counted |= {"running": 0, "waiting": 0} | status
    course = soak.memory([Usage(float(at), mb, 10) for at, mb in enumerate(rss)])
    before, after = {"open_files": 10.0}, {"open_files": files}
    found = soak.held(ledger or Ledger(), counted, before, after, course, errors)
    return list(found.values())


def with_fault() -> Ledger:
    ledger = Ledger()
    ledger.fault("What must not happen.")
    return ledger


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (0, judged(with_fault())),
        (1, judged(failed=1, completed=1)),
        (2, judged(completed=1)),
        (3, judged(waiting=1)),
        (4, judged(rss=[100.0 + at for at in range(20)])),
        (5, judged(files=100.0)),
        (6, judged(errors=["ERROR disp.engine: ..."])),
    ],
)
def test_what_does_not_hold_is_said(which: int, found: list[bool]) -> None:
    assert judged() == [True] * 7
    assert [number for number, held in enumerate(found) if not held] == [which]


def test_the_trend_of_the_memory_is_that_of_the_second_half() -> None:
    course = soak.memory([Usage(float(at), 50.0 if at < 60 else 100.0, 10) for at in range(121)])
    assert course["trend_mb_per_minute"] == pytest.approx(0.0, abs=1e-6)
    growing = soak.memory([Usage(float(at), 100.0 + at / 60, 10) for at in range(121)])
    assert growing["trend_mb_per_minute"] == pytest.approx(1.0)


@pytest.mark.slow
def test_mixed_load_in_small(tmp_path: Path) -> None:
    words = ["--seconds", "6", "--questions", "4", "--crowd", "12", "--out", str(tmp_path)]
    soak.main(words)
    result: dict[str, Any] = json.loads((tmp_path / "soak.json").read_text())
    assert result["faults"] == []
    held = result["held"]
    assert all(ok for what, ok in held.items() if "memory" not in what), held
    counts = result["counts"]
    assert counts["checked"] > 0
    assert counts.get("swaps", 0) + counts.get("swaps refused", 0) > 0
    assert counts.get("nonsense refused", 0) + counts.get("refused", 0) > 0
    assert counts["scrapes"] > 0
    assert result["distinct"] > 0
    assert sum(result["answered_by"].values()) == counts["checked"]
    assert "# Mixed load" in (tmp_path / "soak.md").read_text()
