"""Job workers for tests: real processes that can be made to stand still at a chosen point.

`python -m tests.support.job_worker` loads the libraries once and then, for every line of JSON
on its input, forks a worker: `{"config": {...}, "halt": ...}`. A worker that comes to its halt
creates the file `reached` and does nothing more until it is killed.

Unless they are told otherwise, workers have their trainings forked by the same process, which
spares the start of three interpreters.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_SOCKET = "DISP_TEST_FORGE"


@dataclass
class Worker:
    """A worker process of the forge."""

    pid: int
    name: str
    reached: Path

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.alive():
            os.kill(self.pid, number)
        wait_for(lambda: not self.alive(), f"the end of worker {self.name}")

    def end(self) -> None:
        """Asks a worker to stop, so that it can say what it ran; one that does not is killed."""
        if self.alive() and not self.reached.exists():
            os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not self.alive(), f"worker {self.name} to stop", seconds=20.0)
        self.kill()

    def wait_until_halted(self) -> None:
        def halted() -> bool:
            assert self.alive(), f"worker {self.name} ended before its halt"
            return self.reached.exists()

        wait_for(halted, f"the halt of worker {self.name}")


@dataclass
class Forge:
    """Forks workers."""

    process: subprocess.Popen[str]
    workers: list[Worker] = field(default_factory=list)

    def start(self, config: dict[str, Any], halt: dict[str, str] | None = None) -> Worker:
        """Starts a worker.

        Args:
            config: `home`, `url`, `name` and further fields of `WorkerConfig` and `Timings`.
            halt: `{"key": pattern, "when": "before" | "after"}` of a write to the store, or
                `{"call": name}` of a method of `Attempts`; None works to the end.
        """
        reached = Path(config["home"]) / f"reached-{len(self.workers)}-{time.monotonic_ns()}"
        line = json.dumps({"config": config, "halt": halt, "reached": str(reached)})
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        worker = Worker(int(self.process.stdout.readline()), config["name"], reached)
        self.workers.append(worker)
        return worker


@contextmanager
def running_forge(checkpoint: Path) -> Iterator[Forge]:
    """A forge; `checkpoint` is loaded once, for its libraries."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.job_worker", str(checkpoint)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    forge = Forge(process)
    try:
        yield forge
    finally:
        for worker in forge.workers:
            worker.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(120)
        process.stdout.close()


def wait_for(condition: Any, what: str, seconds: float = 300.0) -> Any:
    """Waits for a condition; returns its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


class ForkedTraining:
    """A training forked by the forge; what is used of a `Popen`."""

    def __init__(self, spec_path: Path, *, processes: int = 1) -> None:
        self._status = spec_path.with_name(f"status-{time.monotonic_ns()}")
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(os.environ[_SOCKET])
            line.sendall(json.dumps([str(spec_path), str(self._status)]).encode() + b"\n")
            self.pid = int(line.makefile().readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self.returncode = int(self._status.read_text()) if self._status.is_file() else -9
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("training", timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode


def _warm_up(checkpoint: str) -> None:
    """Loads what workers would otherwise load one by one."""
    for name in ("peft", "purifier.finetune", "pyarrow.parquet", "server.jobs.worker"):
        importlib.import_module(name)
    from purifier.mdlm.registry import load_mdlm

    load_mdlm(checkpoint)


def main() -> None:
    _warm_up(sys.argv[1])
    # Children that were killed leave no zombies behind.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    place = tempfile.mkdtemp(prefix="disp-forge-")
    os.environ[_SOCKET] = f"{place}/socket"
    trainings = socket.socket(socket.AF_UNIX)
    trainings.bind(os.environ[_SOCKET])
    trainings.listen()
    trained: list[int] = []
    try:
        while True:
            ready, _, _ = select.select([sys.stdin, trainings], [], [])
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                order = json.loads(line)
                print(_fork(partial(_work, order)), flush=True)
            if trainings in ready:
                asker, _ = trainings.accept()
                with asker:
                    words = json.loads(asker.makefile().readline())
                    child = _fork(partial(_train, *words))
                    trained.append(child)
                    asker.sendall(f"{child}\n".encode())
    finally:
        for child in trained:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        shutil.rmtree(place)


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def _train(spec: str, status: str) -> None:
    from purifier.finetune import main as finetune

    os.setsid()
    result = finetune(["--spec", spec])
    Path(status).write_text(str(result))


def _work(order: dict[str, Any]) -> None:
    import logging

    from server.jobs.upkeep import Timings
    from server.jobs.worker import JobWorker, WorkerConfig
    from server.store.home import Home

    logging.basicConfig(level=logging.WARNING)
    values = dict(order["config"])
    home = Home.at(Path(values.pop("home")), values.pop("url", None))
    if "models" in values:
        values["models"] = Path(values["models"])
    timings = {"heartbeat": 0.2, "patience": 60.0, "poll": 0.1, "grace": 120.0}
    timings |= values.pop("timings", {})
    stages = _stages(order["halt"], Path(order["reached"]), values.pop("real_training", False))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    JobWorker(WorkerConfig(home=home, timings=Timings(**timings), **values), stages).run(stop)


def _stages(halt: dict[str, str] | None, reached: Path, real_training: bool) -> Any:
    from server.jobs.stages import Stages

    kind: Any = Stages
    if not real_training:
        kind = type("Stages", (Stages,), {"launch": staticmethod(ForkedTraining)})
    if halt is None:
        return kind

    def stand_still() -> None:
        reached.touch()
        threading.Event().wait()

    def make(store: Any, jobs: Any, attempts: Any, *rest: Any) -> Any:
        if "call" in halt:
            setattr(attempts, halt["call"], lambda *_args, **_more: stand_still())
        else:
            _halt_at(store, halt["key"], halt["when"], stand_still)
        return kind(store, jobs, attempts, *rest)

    return make


def _halt_at(store: Any, pattern: str, when: str, stand_still: Any) -> None:
    commit = store._commit

    def halting(key: str, place: Any, content: Any) -> None:
        chosen = fnmatch.fnmatch(key, pattern)
        if chosen and when == "before":
            # What an unlucky moment leaves behind: a part of the file, not yet in its place.
            unfinished = store.folder(key)
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            (unfinished.parent / f".{unfinished.name}.half").write_bytes(b"half of it")
            stand_still()
        commit(key, place, content)
        if chosen:
            stand_still()

    store._commit = halting


if __name__ == "__main__":
    main()
