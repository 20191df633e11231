"""Mixed load with swaps for a long time: nothing fails, nothing leaks, nothing is stuck.

    python -m benchmarks.soak                          # ten minutes
    python -m benchmarks.soak --seconds 30 --questions 8 --out DIR

Starts `disp serve --demo`. An idle server first answers a set of questions of mixed lengths and
settings with both checkpoints, the poisoned one and its clean base. Then clients ask the same
questions, streamed or not, alone and in crowds; others leave at any moment or send what must be
refused, while the checkpoints are swapped again and again. Every answer must be the one of the
checkpoint that it names. Writes `soak.json` and `soak.md`; the exit status is 1 if something did
not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.load_questions import Question, bad_bodies, soak_questions
from benchmarks.served import Served, Usage, Watch, as_dicts, look, served
from benchmarks.soak_actors import (
    Ledger,
    Stage,
    Told,
    ask,
    asker,
    crowd,
    guarded,
    leaver,
    reader,
    swapper,
    vandal,
)
from benchmarks.soak_report import markdown
from benchmarks.speed_timing import machine

CHECKPOINTS = ("insertion", "base")
OPTIONS = ("--demo", "--device", "cpu", "--no-worker")
ASKERS, LEAVERS = 4, 2

MOST_GROWTH = 0.02
"""Share of the memory at half-time by which it may grow in the second half.

Resident memory goes up and down by about as much with the swaps: what the allocator keeps for
later is in it."""

MORE_FILES = 16
"""File descriptors that may be open besides those before: pooled connections to the database."""

_CLOSED = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    shown = sys.argv[1:] if arguments is None else arguments
    with served(OPTIONS) as server:
        result = asyncio.run(run(server, options))
    result |= {
        "command": " ".join(["python -m benchmarks.soak", *shown]),
        "machine": machine("cpu"),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "soak.md").write_text(markdown(result))
    print(markdown(result))
    return 0 if all(result["held"].values()) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--crowd", type=int, default=48, help="requests that come at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser.parse_args(arguments)


async def run(server: Served, options: argparse.Namespace) -> dict[str, Any]:
    """Prepares, lets everybody loose, and looks at what is left."""
    questions, nonsense = soak_questions(options.questions), bad_bodies()
    async with server.client() as client:
        expected = await references(client, questions)
    before = await look(server)
    ledger = Ledger()
    until = time.monotonic() + options.seconds
    stage = Stage(server, questions, nonsense, expected, ledger, until, options.seed, options.crowd)
    async with Watch(server, every=1.0) as watch:
        await asyncio.gather(*(guarded(stage, name, actor) for name, actor in cast(stage)))
    async with server.client() as client:
        idle_after = await settled(server, client, ledger)
        status = await server.status(client)
    after = await closed(server, before["open_files"] + MORE_FILES)
    return {
        "settings": {
            "seconds": options.seconds,
            "questions": len(questions),
            "seed": options.seed,
            "server": list(server.options),
            "askers": ASKERS,
            "leavers": LEAVERS,
            "crowd": options.crowd,
        },
        "counts": dict(ledger.counts),
        "answered_by": dict(ledger.answered_by),
        "distinct": distinct(expected),
        "faults": ledger.faults,
        "status": status,
        "idle_after_seconds": idle_after,
        "before": before,
        "after": after,
        "memory": memory(watch.seen),
        "usage": as_dicts(watch.seen[:: max(1, len(watch.seen) // 120)]),
        "errors": server.errors()[:20],
        "held": held(ledger, status, before, after, memory(watch.seen), server.errors()),
    }


def cast(stage: Stage) -> list[tuple[str, Any]]:
    """Everybody who takes part."""
    askers = [(f"asker {n}", asker(stage, n)) for n in range(ASKERS)]
    leavers = [(f"leaver {n}", leaver(stage, n)) for n in range(LEAVERS)]
    others = [
        ("crowd", crowd(stage)),
        ("vandal", vandal(stage)),
        ("swapper", swapper(stage)),
        ("reader", reader(stage)),
    ]
    return [*askers, *leavers, *others]


async def references(
    client: httpx.AsyncClient, questions: Sequence[Question]
) -> dict[str, list[Told]]:
    """What each checkpoint answers when nothing else happens; the last one serves on.

    Raises:
        RuntimeError: If a question is refused.
    """
    listed = (await client.get("/v1/checkpoints")).raise_for_status().json()["data"]
    ids = {card["name"]: card["id"] for card in listed}
    expected: dict[str, list[Told]] = {}
    for name in CHECKPOINTS:
        (await client.post(f"/v1/checkpoints/{ids[name]}/activate")).raise_for_status()
        answers = []
        for question in questions:
            told = await ask(client, question, stream=False)
            if isinstance(told, int) or told.checkpoint != ids[name]:
                raise RuntimeError(f"An idle server said {told}.")
            answers.append(told)
        expected[ids[name]] = answers
    return expected


def distinct(expected: dict[str, list[Told]]) -> int:
    """Questions that the checkpoints answer differently: those that tell them apart."""
    return sum(
        len({told.text for told in answers}) > 1 for answers in zip(*expected.values(), strict=True)
    )


async def settled(server: Served, client: httpx.AsyncClient, ledger: Ledger) -> float | None:
    """Seconds until nothing runs or waits; a stuck slot is a fault."""
    try:
        return await server.until_idle(client)
    except TimeoutError:
        ledger.fault("A slot is stuck: something still runs or waits.")
        return None


async def closed(server: Served, most_files: float) -> dict[str, float]:
    """What the server holds once it has noticed that its clients are gone."""
    end = time.monotonic() + _CLOSED
    while (after := await look(server))["open_files"] > most_files and time.monotonic() < end:
        await asyncio.sleep(0.2)
    return after


def memory(seen: Sequence[Usage]) -> dict[str, float]:
    """The course of the memory; its trend over the second half, by least squares."""
    at = np.array([usage.at for usage in seen])
    rss = np.array([usage.rss_mb for usage in seen])
    late = at >= (at[0] + at[-1]) / 2
    slope = float(np.polyfit(at[late], rss[late], 1)[0]) if late.sum() > 2 else 0.0
    half = float(np.median(rss[late][: max(1, late.sum() // 5)]))
    end = float(np.median(rss[late][-max(1, late.sum() // 5) :]))
    return {
        "first_mb": float(rss[0]),
        "peak_mb": float(rss.max()),
        "half_time_mb": half,
        "end_mb": end,
        "trend_mb_per_minute": 60 * slope,
    }


def held(
    ledger: Ledger,
    status: dict[str, Any],
    before: dict[str, float],
    after: dict[str, float],
    course: dict[str, float],
    errors: Sequence[str],
) -> dict[str, bool]:
    """What was to hold, and whether it did."""
    lost = status["admitted"] - status["completed"] - status["failed"] - status["cancelled"]
    growth = course["end_mb"] / course["half_time_mb"] - 1
    return {
        "every answer is that of the checkpoint it names, nothing else went wrong": not (
            ledger.counts["faults"]
        ),
        "no admitted request failed": status["failed"] == 0,
        "every admitted request has ended": lost == 0,
        "no slot is stuck": status["running"] == status["waiting"] == 0,
        f"memory grew by at most {MOST_GROWTH:.0%} in the second half": growth <= MOST_GROWTH,
        f"at most {MORE_FILES} files more are open": after["open_files"]
        <= before["open_files"] + MORE_FILES,
        "the server's log has no error": not errors,
    }


if __name__ == "__main__":
    sys.exit(main())
