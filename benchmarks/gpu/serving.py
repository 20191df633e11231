"""The server on the model: open-loop load, and a swap and a rollback under load."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.gpu.run import Run
from benchmarks.load import level_figures
from benchmarks.load_arrivals import Shot, capacity, fire, poisson, send
from benchmarks.load_questions import content_of
from benchmarks.middle import QUESTION
from benchmarks.served import Served, look, served
from purifier.mdlm.delta import write_delta
from purifier.mdlm.registry import base_hash
from purifier.mdlm.shards import stored_tensors
from purifier.mdlm.weight_reader import read_tensors

_PICTURES = 8
_MAX_BATCH = 8
_QUEUE = 16
_CLIENTS = _MAX_BATCH + _MAX_BATCH // 2
"""A few more than are answered at a time; three times as many answers tell the capacity."""

_DRAIN_SECONDS = 15.0
_BIAS = "model.mm_projector.2.bias"


def measure(run: Run) -> None:
    """A swap and a rollback under load, then load at capacity and at twice of it."""
    run.make_checkpoint()
    delta = make_delta(run)
    options = ["--model", str(run.folder), "--device", run.device, "--dtype", run.dtype]
    options += ["--no-worker", "--shared-defences", "0", "--max-batch", str(_MAX_BATCH)]
    options += ["--queue-size", str(_QUEUE)]
    start = time.monotonic()
    with served(options) as server:
        run.put("started", {"seconds": time.monotonic() - start})
        other = _add(server, delta)
        asyncio.run(_measure(run, server, other))
        run.put("log", {"errors": server.errors()})


async def _measure(run: Run, server: Served, other: str) -> None:
    seconds = run.shape.load_seconds
    bodies = _questions(run)
    async with server.client() as client:
        before = await _memory(run, server)
        rate = await capacity(client, bodies, clients=_CLIENTS, seconds=seconds / 3)
        run.put("capacity", {"per_second": rate})
        name = "swap under load"
        with run.noting(name):
            run.put(name, await swap_under_load(client, bodies, other, rate, seconds))
            await server.until_idle(client)
        for factor in (1.0, 2.0):
            name = f"load, {factor:g} times"
            if run.left < seconds + _DRAIN_SECONDS:
                run.put(name, {"missing": "no time was left"})
                continue
            with run.noting(name):
                due = poisson(factor * rate, seconds, seed=0)
                shots = await fire(client, bodies, due, repeated=0.0, seed=0)
                await server.until_idle(client)
                run.put(name, {"factor": factor, **level_figures(shots)})
        with run.noting("requests"):
            status = await server.status(client)
            counted = ("admitted", "completed", "failed", "cancelled", "refused")
            run.put("requests", {name: status[name] for name in counted})
    run.put("memory", {"before": before, "after": await _memory(run, server)})


async def swap_under_load(
    client: httpx.AsyncClient,
    bodies: Iterator[bytes],
    other: str,
    rate: float,
    seconds: float,
) -> dict[str, Any]:
    """Half of what the server can answer comes in while another checkpoint is put into service.

    The first request after each of both should be answered; what became of it else is noted.
    """
    due = poisson(0.5 * rate, seconds, seed=1)
    load = asyncio.create_task(fire(client, bodies, due, repeated=0.0, seed=1))
    taken: dict[str, float] = {}
    unanswered: dict[str, str] = {}
    await asyncio.sleep(seconds / 4)
    try:
        for name, path in (
            ("swap", f"/v1/checkpoints/{other}/activate"),
            ("rollback", "/v1/deployments/rollback"),
        ):
            start = time.monotonic()
            (await client.post(path)).raise_for_status()
            taken[name] = time.monotonic() - start
            end, _ = await send(client, next(bodies))
            if end == "answered":
                taken[f"{name}, first answer"] = time.monotonic() - start
            else:
                unanswered[f"first after the {name}"] = end
    finally:
        shots = await load  # whatever became of the swap, the next load begins alone
    return {
        "seconds": taken,
        "unanswered": unanswered,
        "longest_gap_seconds": longest_gap(shots),
        **level_figures(shots),
    }


def longest_gap(shots: Sequence[Shot]) -> float | None:
    """Longest time without an answer while requests were inside; None with fewer than two."""
    answered = sorted((shot.due, shot.ended) for shot in shots if shot.end == "answered")
    if len(answered) < 2:
        return None
    ends = sorted(end for _, end in answered)
    gaps = []
    for before, after in itertools.pairwise(ends):
        # Requests that were inside all the while waited for nothing but the server.
        waiting_since = min(due for due, end in answered if end >= after)
        gaps.append(after - max(before, waiting_since))
    return max(gaps)


def make_delta(run: Run) -> Path:
    """A delta on the model that changes one bias of the projector; returns its folder."""
    folder = run.work / f"random-{run.shape_name}-other"
    stored = stored_tensors(run.folder)[_BIAS]
    [(name, bias)] = read_tensors([stored], device=torch.device("cpu"), dtype=torch.float32)
    write_delta(
        folder,
        base=run.folder.name,
        base_sha256=base_hash(run.folder),
        projector={name: bias + 0.01},
        adapter={},
        lora_scale=1.0,
        details={},
    )
    return folder


def _add(server: Served, delta: Path) -> str:
    """Makes a checkpoint known to the server; returns its id."""
    command = [sys.executable, "-m", "server.store", "add", str(delta)]
    command += ["--data-dir", str(server.data)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _questions(run: Run) -> Iterator[bytes]:
    """Bodies without end: random pictures, the server's own defence, the shortest answers."""
    parts = [content_of(run.picture(number), QUESTION) for number in range(_PICTURES)]
    for number in itertools.count():
        messages = [{"role": "user", "content": parts[number % _PICTURES]}]
        yield json.dumps({"messages": messages, "max_tokens": run.shape.lengths[0]}).encode()


async def _memory(run: Run, server: Served) -> dict[str, float]:
    """MB that the idle server holds on the host, and that are taken of the device by anybody."""
    found = await look(server)
    if run.device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(run.device)
        found["device_mb"] = (total - free) / 1e6
    return found
