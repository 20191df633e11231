"""The load test in small, against a real server: what it finds, and what it would find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import load
from benchmarks.load_arrivals import Shot, poisson
from benchmarks.load_questions import bad_bodies, load_questions, soak_questions
from benchmarks.load_truth import Promise

SHOTS = [
    Shot(due=0.0, sent=0.01, ended=1.0, end="answered", status=200),
    Shot(due=1.0, sent=1.0, ended=4.0, end="answered", status=200),
    Shot(due=2.0, sent=2.5, ended=2.6, end="refused", status=429, retry_after=2, again="answered"),
    Shot(due=3.0, sent=3.0, ended=3.1, end="refused", status=429, retry_after=1),
]


def test_arrivals_are_a_poisson_process_of_their_seed() -> None:
    times = poisson(rate=5.0, seconds=400.0, seed=0)
    assert times == poisson(rate=5.0, seconds=400.0, seed=0) != poisson(5.0, 400.0, seed=1)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 400
    # Mean and variance of a Poisson count are alike; four standard errors each.
    counts = np.histogram(times, bins=400, range=(0, 400))[0]
    assert counts.mean() == pytest.approx(5, abs=4 * np.sqrt(5 / 400))
    assert counts.var() == pytest.approx(5, abs=4 * 5 * np.sqrt(2.2 / 400))


def test_figures_of_a_level() -> None:
    figures = load.level_figures(SHOTS)
    assert figures["ends"] == {"answered": 2, "refused": 2, "failed": 0, "broken": 0, "hung": 0}
    assert figures["latency_seconds"]["median"] == 2.0
    assert figures["latency_seconds"]["max"] == 3.0
    assert figures["refusal_seconds"]["max"] == pytest.approx(0.6)
    assert figures["late_seconds"] == 0.5
    assert figures["answered_per_second"] == 0.5
    assert (figures["admitted"]["value"], figures["admitted"]["n"]) == (0.5, 4)
    assert (figures["retried"]["value"], figures["retried"]["n"]) == (1.0, 1)


def judged(
    shots: Sequence[Shot] = SHOTS,
    bound: float = 2.0,
    after_mb: float = 100.0,
    errors: Sequence[str] = (),
    **status: int,
) -> list[bool]:
    counted = {"admitted": 3, "completed": 3, "failed": 0, "cancelled": 0} | status
    memory = {"before_mb": 100.0, "after_mb": after_mb}
    return list(load.held([load.level_figures(shots)], bound, memory, counted, errors).values())


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (0, judged([*SHOTS, Shot(due=5.0, end="hung")])),
        (0, judged([*SHOTS, Shot(due=5.0, end="failed", status=500)])),
        (0, judged([Shot(due=0.0, end="refused", retry_after=1, again="broken")])),
        (1, judged(failed=1, completed=2)),
        (2, judged(completed=2)),
        (3, judged(bound=1.9)),
        (4, judged(after_mb=120.0)),
        (5, judged(errors=["ERROR disp.engine: ..."])),
    ],
)
def test_what_does_not_hold_is_said(which: int, found: list[bool]) -> None:
    assert judged() == [True] * 6
    assert [number for number, held in enumerate(found) if not held] == [which]


def test_promises_are_held_against_what_came() -> None:
    found = load.truth([Promise(2, 1.5, "answered"), Promise(1, 1.25, "refused")])
    assert found["admitted"]["value"] == 0.5
    assert found["promised_minus_free_seconds"]["low"] == -0.25
    assert found["promised_minus_free_seconds"]["high"] == 0.5


def test_questions_are_those_of_their_seed() -> None:
    one, same, other = (load_questions(seed, pictures=2) for seed in (0, 0, 1))
    first = [next(one) for _ in range(8)]
    assert first == [next(same) for _ in range(8)]
    assert first != [next(other) for _ in range(8)]
    asked = [json.loads(question.body(stream=True)) for question in soak_questions(16)]
    assert len({json.dumps(body) for body in asked}) == 16
    assert all(body["stream"] for body in asked)
    assert len(set(bad_bodies().values())) == len(bad_bodies())


@pytest.mark.slow
def test_overload_in_small(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(tiny_checkpoint), "--queue-size", "2", "--max-batch", "2"]
    words += ["--seconds", "1", "--factors", "1", "8", "--rounds", "1", "--out", str(tmp_path)]
    load.main(words)
    result = json.loads((tmp_path / "load.json").read_text())
    held = list(result["held"].values())
    assert held[:3] == [True] * 3, result["held"]
    assert held[5], "the server's log has an error"
    calm, crowded = (level["ends"] for level in result["levels"])
    assert calm["answered"] > 0
    assert crowded["answered"] > 0
    assert crowded["refused"] > 0
    waits = result["levels"][1]["retry_after_seconds"]
    assert waits["n"] == crowded["refused"]
    assert waits["low"] >= 1
    status = result["status"]
    assert status["refused"] >= crowded["refused"]
    assert status["admitted"] == status["completed"] + status["cancelled"]
    [promise] = result["truth"]["promises"]
    assert promise["again"] in ("answered", "refused")
    shown = capsys.readouterr().out
    assert shown.strip() == (tmp_path / "load.md").read_text().strip()
