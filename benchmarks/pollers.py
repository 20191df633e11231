"""Many readers of a job while another process writes it: what each waits for the other.

    python -m benchmarks.pollers

On SQLite, by the store's own methods, without HTTP. A process writes a job's rows as fast as the
database takes them, while threads of another one ask for the job and its newest events, each once
in half a second. Then somebody holds the write lock, and the readers go on. Writes `pollers.json`
and `pollers.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from server.store.attempts import Attempt, Attempts
from server.store.database import Database
from server.store.events import EventLog
from server.store.jobs import JobStore

_PAUSE = 0.5
_PATIENCE = 300.0
"""Seconds in which the writer must say something; it starts and ends in far fewer."""

_SPEC = {"model": "tiny", "training_file": "file-1", "finetune": {}, "purify": {}, "evaluation": {}}


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pollers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--held", type=float, default=5.0, help="seconds that the lock is held")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder) / "disp.sqlite", args)
    result["command"] = " ".join(["python -m benchmarks.pollers", *words])
    cores = os.cpu_count() or 1
    result["machine"] = f"{platform.machine()}, {cores} cores"
    result["load"] = round(os.getloadavg()[0], 1)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pollers.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "pollers.md").write_text(report(result))
    print(report(result))
    return 0


def measure(file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of reads and writes in both parts."""
    url = f"sqlite:///{file}"
    database = Database(url)
    database.create_tables()
    job = JobStore(database).create(_SPEC, {}, key_id=None)
    context = multiprocessing.get_context("spawn")
    answers, stop = context.Queue(), context.Event()
    writer = context.Process(target=_write, args=(url, job.id, answers, stop), daemon=True)
    writer.start()
    answers.get(timeout=_PATIENCE)
    reads = _poll(database, job.id, args.pollers, args.seconds)
    stop.set()
    writes = answers.get(timeout=_PATIENCE)
    writer.join()
    with closing(sqlite3.connect(file, timeout=60, check_same_thread=False)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        release = threading.Timer(args.held, holder.rollback)
        release.start()
        held = _poll(database, job.id, args.pollers, args.held)
        release.join()
    database.close()
    return {
        "pollers": args.pollers,
        "seconds": args.seconds,
        "held": args.held,
        "reads": _spread(reads),
        "writes": _spread(writes),
        "reads_while_locked": _spread(held),
    }


def _write(url: str, job: str, answers: Any, stop: Any) -> None:
    """Writes until it is stopped; runs in a process of its own."""
    attempts, attempt = Attempts(Database(url)), Attempt(job, 1)
    attempts.start(attempt, "relabel-00000", "relabel", "running")
    answers.put("begun")
    writes: list[float] = []
    while not writes or not stop.is_set():
        began = time.perf_counter()
        if len(writes) % 2:
            attempts.shard_progress(attempt, 0, len(writes))
        else:
            attempts.event(attempt, "Some rows are relabelled.", {"rows": len(writes)})
        writes.append(time.perf_counter() - began)
    answers.put(writes)


def _poll(database: Database, job: str, pollers: int, seconds: float) -> list[float]:
    """Seconds of every read; each reader makes at least one, however slow the machine is."""
    jobs, events = JobStore(database), EventLog(database)
    reads: list[float] = []
    end = time.perf_counter() + seconds

    def poll(number: int) -> None:
        time.sleep(_PAUSE * number / pollers)  # readers ask at different moments
        while True:
            began = time.perf_counter()
            jobs.get(job)
            events.read_back(job, limit=20)
            reads.append(time.perf_counter() - began)
            time.sleep(_PAUSE)
            if time.perf_counter() >= end:
                return

    threads = [threading.Thread(target=poll, args=(number,)) for number in range(pollers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reads


def _spread(seconds: list[float]) -> dict[str, float]:
    found = np.asarray(seconds)
    return {
        "n": len(seconds),
        "median": round(float(np.median(found)), 4),
        "p95": round(float(np.quantile(found, 0.95)), 4),
        "most": round(float(found.max()), 4),
    }


def report(result: dict[str, Any]) -> str:
    """The figures as a page."""
    titles = {
        "reads": "a read, while the job writes",
        "writes": "a write of the job",
        "reads_while_locked": f"a read, while the write lock is held for {result['held']:g} s",
    }
    lines = [
        "# Readers while a job writes",
        "",
        f"SQLite, {result['machine']}, load average {result['load']}. `{result['command']}`",
        "",
        f"{result['pollers']} threads ask for a job and its newest 20 events, each once in "
        f"{_PAUSE} s, for {result['seconds']:g} s; another process writes as fast as it can.",
        "",
        "| seconds of | how many | median | 95% | longest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, title in titles.items():
        found = result[name]
        cells = (title, found["n"], found["median"], found["p95"], found["most"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
