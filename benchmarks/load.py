"""Open-loop load on a real server: bounded latency, honest refusals, nothing lost.

    python -m benchmarks.load                      # about ten minutes
    python -m benchmarks.load --seconds 10 --rounds 3 --out DIR
    python -m benchmarks.load --model PATH --device cuda --factors 1 2 4 8

Starts `disp serve` with the demo model, measures its capacity, then lets requests come by a
Poisson process at multiples of it. Writes `load.json` and `load.md`. The exit status is 1 if
something did not hold: a request that failed, broke or hung, a latency above the bound, a stuck
slot, an error in the log. The queue is short, so that it is full soon.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np

from benchmarks.load_arrivals import End, Shot, capacity, fire, poisson
from benchmarks.load_questions import LENGTHS, load_questions
from benchmarks.load_report import markdown
from benchmarks.load_truth import Promise, promise
from benchmarks.served import Served, Watch, look, served
from benchmarks.speed_timing import machine
from purifier.evaluation.intervals import wilson

REPEATED = 0.1
"""Share of refused requests that come again."""

LEAST_ARRIVALS = 3
"""Requests of a level, in those that a full server holds: enough to fill it."""

BOUND_SLACK = 1.5
"""Latency over the bound that still holds: the mix of lengths varies, and so does the machine."""

MEMORY_SLACK = 1.1
"""Memory after the load over that before it."""

_SETTLED = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    shown = sys.argv[1:] if arguments is None else arguments
    with served(server_options(options)) as server:
        result = asyncio.run(run(server, options))
    result |= {
        "command": " ".join(["python -m benchmarks.load", *shown]),
        "machine": machine(options.device),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "load.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "load.md").write_text(markdown(result))
    print(markdown(result))
    return 0 if all(result["held"].values()) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a checkpoint folder (the demo)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--seconds", type=float, default=90.0, help="of a level, at least")
    parser.add_argument("--rounds", type=int, default=20, help="bursts that try Retry-After")
    parser.add_argument("--queue-size", type=int, default=8)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser.parse_args(arguments)


def server_options(options: argparse.Namespace) -> list[str]:
    """Of the server; identical requests share nothing, so that each costs what it costs."""
    model = ["--demo"] if options.model is None else ["--model", str(options.model)]
    sizes = ["--queue-size", str(options.queue_size), "--max-batch", str(options.max_batch)]
    return [*model, "--device", options.device, "--no-worker", "--shared-defences", "0", *sizes]


async def run(server: Served, options: argparse.Namespace) -> dict[str, Any]:
    """Measures; returns all but the circumstances."""
    bodies = load_questions(options.seed)
    places = options.queue_size + options.max_batch
    async with server.client() as client:
        clients = 2 * options.max_batch
        rate = await capacity(client, bodies, clients=clients, seconds=options.seconds)
        promises = [
            await promise(server, client, bodies, options.queue_size, options.max_batch)
            for _ in range(options.rounds)
        ]
        await server.until_idle(client)
        # The queue has been full before, so that what a full house needs is there already.
        before = await look(server)
        bound = places / rate
        async with Watch(server) as watch:
            levels = [
                await level(server, client, bodies, factor, rate, options)
                for factor in options.factors
            ]
        idle_after = await server.until_idle(client)
        status = await server.status(client)
    await asyncio.sleep(_SETTLED)
    after = await look(server)
    memory = {
        "before_mb": before["rss_mb"],
        "peak_mb": max(usage.rss_mb for usage in watch.seen),
        "after_mb": after["rss_mb"],
        "settled_seconds": _SETTLED,
        "files_before": before["open_files"],
        "files_after": after["open_files"],
    }
    return {
        "settings": {
            "factors": options.factors,
            "seconds": options.seconds,
            "seed": options.seed,
            "server": list(server.options),
            "places": places,
            "questions": f"pictures of the demo's test set, defended by default, "
            f"{' or '.join(map(str, LENGTHS))} tokens at random",
        },
        "capacity": {"per_second": rate, "clients": clients, "seconds": options.seconds},
        "bound_seconds": bound,
        "levels": levels,
        "truth": truth(promises),
        "memory": memory,
        "idle_after_seconds": idle_after,
        "status": {name: status[name] for name in _COUNTED},
        "held": held(levels, bound, memory, status, server.errors()),
    }


_COUNTED = ("admitted", "completed", "failed", "cancelled", "refused")


async def level(
    server: Served,
    client: httpx.AsyncClient,
    bodies: Iterator[bytes],
    factor: float,
    rate: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One level of load, from idle to idle."""
    least = LEAST_ARRIVALS * (options.queue_size + options.max_batch) / (factor * rate)
    due = poisson(factor * rate, max(options.seconds, least), options.seed)
    shots = await fire(client, bodies, due, repeated=REPEATED, seed=options.seed)
    await server.until_idle(client)
    told = {"factor": factor, "offered_per_second": factor * rate, **level_figures(shots)}
    print(f"{factor:g}x: {told['ends']}", file=sys.stderr, flush=True)
    return told


def level_figures(shots: Sequence[Shot]) -> dict[str, Any]:
    """What became of the requests of one level."""
    ends = Counter(shot.end for shot in shots)
    answered = [shot for shot in shots if shot.end == "answered"]
    again = [shot.again for shot in shots if shot.again is not None]
    waits = [shot.retry_after for shot in shots if shot.retry_after is not None]
    last = max((shot.ended for shot in answered), default=0.0)
    return {
        "requests": len(shots),
        "ends": {end: ends[end] for end in get_args(End)},
        "statuses": dict(Counter(str(shot.status) for shot in shots)),
        "answered_per_second": len(answered) / last if last else 0.0,
        "latency_seconds": spread([shot.latency for shot in answered]),
        "refusal_seconds": spread([shot.latency for shot in shots if shot.end == "refused"]),
        "retry_after_seconds": spread(waits),
        "admitted": wilson(len(answered), len(shots)).to_dict(),
        "retried": wilson(again.count("answered"), len(again)).to_dict(),
        "retried_ends": dict(Counter(again)),
        "late_seconds": max((shot.sent - shot.due for shot in shots), default=0.0),
    }


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Median, 95th percentile, extremes and number; None where there is no value."""
    if not values:
        return {"median": None, "p95": None, "low": None, "max": None, "high": None, "n": 0}
    return {
        "median": statistics.median(values),
        "p95": float(np.percentile(values, 95)),
        "low": min(values),
        "max": max(values),
        "high": max(values),
        "n": len(values),
    }


def truth(promises: Sequence[Promise]) -> dict[str, Any]:
    """What `Retry-After` was worth."""
    return {
        "promises": [asdict(one) for one in promises],
        "admitted": wilson(
            sum(one.again == "answered" for one in promises), len(promises)
        ).to_dict(),
        "free_after": spread([one.free_after for one in promises]),
        "promised_minus_free_seconds": spread(
            [one.retry_after - one.free_after for one in promises]
        ),
    }


def held(
    levels: Sequence[dict[str, Any]],
    bound: float,
    memory: dict[str, float],
    status: dict[str, Any],
    errors: Sequence[str],
) -> dict[str, bool]:
    """What was to hold, and whether it did."""
    ends: Counter[str] = Counter()
    for one in levels:
        ends.update(one["ends"])
        ends.update({f"again {end}": count for end, count in one["retried_ends"].items()})
    slowest = max((one["latency_seconds"]["max"] or 0.0) for one in levels)
    lost = status["admitted"] - status["completed"] - status["failed"] - status["cancelled"]
    return {
        "every request was answered or refused": not any(
            ends[f"{again}{end}"]
            for again in ("", "again ")
            for end in ("failed", "broken", "hung")
        ),
        "no admitted request failed": status["failed"] == 0,
        "every admitted request has ended": lost == 0,
        f"no admitted request took longer than {BOUND_SLACK:g} times the bound": slowest
        <= BOUND_SLACK * bound,
        f"memory returned to at most {MEMORY_SLACK:g} times its level": memory["after_mb"]
        <= MEMORY_SLACK * memory["before_mb"],
        "the server's log has no error": not errors,
    }


if __name__ == "__main__":
    sys.exit(main())
