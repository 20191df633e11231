"""Job workers for tests: real processes that can be made to stand still at a chosen point.

`python -m tests.support.job_worker` loads the libraries once and then, for every line of JSON
on its input, forks a worker: `{"config": {...}, "halt": ...}`. A worker that comes to its halt
creates the file `reached` and does nothing more until it is killed; one that comes to a pause goes
on when it may.

Unless they are told otherwise, workers have their trainings forked by the same process, which
spares the start of three interpreters.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import json
import os
import random
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_SOCKET = "DISP_TEST_FORGE"

TRAININGS_FILE = "trainings"
"""Beside a spec: the process numbers of the trainings that were forked for it."""

PHASES = 12
"""Of how many moments of a fine-tuning one is drawn to pause or cancel it."""

HALTS: tuple[dict[str, str], ...] = (
    {"key": "jobs/*/plan.json", "when": "before"},
    {"key": "jobs/*/shards/00001.*.jsonl", "when": "before"},
    {"key": "jobs/*/shards/00001.json", "when": "after"},
    {"call": "relabelled"},
    {"key": "jobs/*/merged/manifest.json", "when": "before"},
    {"call": "tuning_progress"},
    {"key": "jobs/*/tuned/manifest.json", "when": "before"},
    {"key": "jobs/*/evaluation/manifest.json", "when": "before"},
    {"key": "jobs/*/staged.json", "when": "before"},
    {"key": "jobs/*/verdict.json", "when": "after"},
    {"key": "jobs/*/report/report.json", "when": "before"},
    {"call": "succeed"},
)
"""Where workers are killed, in the order in which a job comes there: every stage, before what it
writes counts, and after."""


@dataclass
class Worker:
    """A worker process of the forge."""

    pid: int
    name: str
    reached: Path

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._beside("log").read_text()

    def wait_until_paused(self, call: str) -> None:
        """Waits until it stands before a call that it was told to pause at."""

        def paused() -> bool:
            assert self.alive(), f"worker {self.name} ended before its pause"
            return self._beside(f"{call}-paused").exists()

        wait_for(paused, f"the pause of worker {self.name} before {call}")

    def go_on(self, call: str) -> None:
        """Ends a pause."""
        self._beside(f"{call}-on").touch()

    def _beside(self, name: str) -> Path:
        return self.reached.with_name(f"{self.reached.name}-{name}")

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

    def start(
        self,
        config: dict[str, Any],
        halt: dict[str, Any] | None = None,
        pauses: Sequence[str] = (),
    ) -> Worker:
        """Starts a worker.

        Args:
            config: `home`, `url`, `name` and further fields of `WorkerConfig` and `Timings`;
                `env` adds to its environment.
            halt: `{"key": pattern, "when": "before" | "after"}` of a write to the store, or
                `{"call": name}` of a method of `Attempts`; None works to the end.
                `{"seed": number, "pauses": number}` halts nowhere: it pauses the job at a random
                moment of the fine-tuning, in so many attempts, and cancels it in the next one.
            pauses: Methods of `Attempts` before whose first call it waits for `Worker.go_on`.
        """
        reached = Path(config["home"]) / f"reached-{len(self.workers)}-{time.monotonic_ns()}"
        order = {"config": config, "halt": halt, "pauses": pauses, "reached": str(reached)}
        line = json.dumps(order)
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
        with spec_path.with_name(TRAININGS_FILE).open("a") as file:
            file.write(f"{self.pid}\n")

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self.returncode = int(self._status.read_text()) if self._status.is_file() else -9
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300.0) -> int:
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
    Path(order["reached"]).parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger().addHandler(logging.FileHandler(f"{order['reached']}-log"))
    values = dict(order["config"])
    os.environ.update(values.pop("env", {}))
    home = Home.at(Path(values.pop("home")), values.pop("url", None))
    if "models" in values:
        values["models"] = Path(values["models"])
    timings = {"heartbeat": 0.2, "patience": 60.0, "poll": 0.1, "grace": 120.0}
    timings |= values.pop("timings", {})
    stages = _stages(order, values.pop("real_training", False))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    JobWorker(WorkerConfig(home=home, timings=Timings(**timings), **values), stages).run(stop)


def _stages(order: dict[str, Any], real_training: bool) -> Any:
    from server.jobs.stages import Stages

    halt, reached = order["halt"], order["reached"]
    kind: Any = Stages
    if not real_training:
        kind = type("Stages", (Stages,), {"launch": staticmethod(ForkedTraining)})

    def stand_still() -> None:
        Path(reached).touch()
        threading.Event().wait()

    def make(store: Any, jobs: Any, attempts: Any, *rest: Any) -> Any:
        if halt is not None and "seed" in halt:
            _steer_at_random(store, attempts, **halt)
        elif halt is not None and "call" in halt:
            setattr(attempts, halt["call"], lambda *_args, **_more: stand_still())
        elif halt is not None:
            _halt_at(store, halt["key"], halt["when"], stand_still)
        for call in order["pauses"]:
            setattr(attempts, call, _pausing(getattr(attempts, call), f"{reached}-{call}"))
        return kind(store, jobs, attempts, *rest)

    return make


def _steer_at_random(store: Any, attempts: Any, *, seed: int, pauses: int) -> None:
    """Pauses or cancels a job before one of the worker's calls during its fine-tuning."""
    from server.jobs.service import JobService

    service = JobService(attempts._database, store)
    left: dict[Any, int] = {}

    def steering(name: str) -> Callable[..., Any]:
        method = getattr(attempts, name)

        def call(attempt: Any, *words: Any, **more: Any) -> Any:
            if name == "start" and words[0] == "tune":
                left[attempt] = random.Random(f"{seed}/{attempt.number}").randrange(PHASES)
            if attempt in left:
                if left[attempt] == 0:
                    steer = service.pause if attempt.number <= pauses else service.cancel
                    steer(attempt.job_id)
                left[attempt] -= 1
            return method(attempt, *words, **more)

        return call

    for name in ("start", "stands", "event", "tuning_progress"):
        setattr(attempts, name, steering(name))


def _pausing(call: Callable[..., Any], beside: str) -> Callable[..., Any]:
    def pause(*arguments: Any, **more: Any) -> Any:
        Path(f"{beside}-paused").touch()
        wait_for(Path(f"{beside}-on").exists, "leave to go on")
        return call(*arguments, **more)

    return pause


def _halt_at(store: Any, pattern: str, when: str, stand_still: Any) -> None:
    commit = store._commit

    def halting(key: str, place: Any, content: Any) -> None:
        chosen = fnmatch.fnmatch(key, pattern)
        if chosen and when == "before" and not store.is_local:
            stand_still()
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
