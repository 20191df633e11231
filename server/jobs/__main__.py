"""`python -m server.jobs`: a worker that purifies data sets and heals models."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from purifier.errors import CheckpointError
from server.config import StartError
from server.data_sets import parse_roots
from server.devices import default_device, default_dtype
from server.errors import DatabaseUnavailable
from server.jobs.memory import MemoryShort, require_memory
from server.jobs.upkeep import Timings
from server.jobs.worker import JobWorker, WorkerConfig, default_name
from server.store.database import DatabaseError, translated
from server.store.home import Home, HomeError, find_root
from server.store.workers import NameTaken

REFUSED = 2
AWAY = 75
"""Exit status of a worker that may work when it is started again (`EX_TEMPFAIL`)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    It is 2 if the worker cannot work here, and 75 if the database was away for too long.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = _parser().parse_args(words)
    if args.slots > 1:
        return _several(args, words)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if args.lifeline:
        threading.Thread(target=_watch_lifeline, args=(stop,), daemon=True).start()
    try:
        config = _config(args)
        if args.model is not None:
            require_memory(args.model, config.device, config.dtype)
        with translated():
            JobWorker(config).run(stop)
    except (NameTaken, MemoryShort, HomeError, DatabaseError, StartError) as error:
        print(f"error: {error}", file=sys.stderr)
    except CheckpointError as error:
        print(f"error: {error.message}", file=sys.stderr)
    except DatabaseUnavailable:
        print("error: The database does not answer; start the worker again.", file=sys.stderr)
        return AWAY
    return REFUSED


def _parser() -> argparse.ArgumentParser:
    default = Timings()
    parser = argparse.ArgumentParser(prog="disp worker", description=__doc__)
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="the server's data folder, on other machines by a shared file system",
    )
    parser.add_argument("--database-url", help="postgresql+psycopg://... for several machines")
    parser.add_argument("--store", help="URL of the store all workers share (fsspec)")
    parser.add_argument(
        "--dataset-root",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where this machine has the server's data set of this name; repeatable",
    )
    parser.add_argument(
        "--dataset-images",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="its image folder, if that lies elsewhere",
    )
    parser.add_argument(
        "--model-root", type=Path, help="folder that this machine has models in, by their names"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by device")
    parser.add_argument("--name", help="unique among living workers (default: host and slot)")
    parser.add_argument("--slots", type=int, default=1, help="workers to run here, as processes")
    parser.add_argument(
        "--train-processes", type=int, default=1, help="processes of a fine-tuning, one a GPU"
    )
    parser.add_argument("--model", type=Path, help="checkpoint that must fit the device")
    parser.add_argument("--heartbeat", type=float, default=default.heartbeat, help="seconds")
    parser.add_argument(
        "--patience", type=float, default=default.patience, help="seconds until taken for dead"
    )
    parser.add_argument("--poll", type=float, default=default.poll, help="seconds")
    parser.add_argument("--grace", type=float, default=default.grace, help="seconds to stop in")
    parser.add_argument("--demo", action="store_true", help="the data folder of `serve --demo`")
    parser.add_argument("--lifeline", action="store_true", help=argparse.SUPPRESS)
    return parser


def _config(args: argparse.Namespace) -> WorkerConfig:
    device = args.device or default_device()
    return WorkerConfig(
        home=Home.at(find_root(args.data_dir, demo=args.demo), args.database_url),
        store=args.store,
        roots=parse_roots(args.dataset_root, args.dataset_images),
        models=args.model_root,
        name=args.name or default_name(1),
        device=device,
        dtype=args.dtype or default_dtype(device),
        processes=args.train_processes,
        timings=Timings(args.heartbeat, args.patience, args.poll, args.grace),
    )


def _several(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Runs one process for every slot, until one ends or a signal comes."""
    prefix = (args.name or default_name(1)).removesuffix("-1")
    line = [sys.executable, "-P", "-m", "server.jobs", *words, "--lifeline"]
    children = [
        subprocess.Popen(
            [*line, "--slots", "1", "--name", f"{prefix}-{slot}"], stdin=subprocess.PIPE
        )
        for slot in range(1, args.slots + 1)
    ]
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(0.5) and all(child.poll() is None for child in children):
        pass
    for child in children:
        child.terminate()
    return max(child.wait() for child in children)


def _watch_lifeline(stop: threading.Event) -> None:
    """Stops when whoever started this process is gone: its end of our standard input closes."""
    while os.read(0, 4096):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
