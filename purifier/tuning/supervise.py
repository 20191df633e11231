"""One training through `accelerate launch`, watched over: `python -m purifier.tuning.supervise`.

The launcher's exit status says little and its signals reach processes at odd moments, so the
supervisor asks the processes to stop through a file that they look at after every step, and
takes the outcome from their events. It stops them when it is asked to by SIGTERM, and when the
process that started it is gone; if it is killed itself, they notice and save.

Exit status: 0 done, 75 stopped with the state saved, 1 failed (the last event says why).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purifier.errors import PurifierError
from purifier.tuning.events import EVENTS_FILE, EventFile, read_events
from purifier.tuning.family import end_family
from purifier.tuning.locks import RUN_VARIABLE, STOP_FILE, SUPERVISOR_FILE, hold
from purifier.tuning.spec import FinetuneSpec

LOG_FILE = "log.txt"
DONE, FAILED, STOPPED = 0, 1, 75
_OUTCOMES = {"done": DONE, "failed": FAILED, "stopped": STOPPED}
_POLL = 0.1


def supervise(
    spec_file: Path,
    *,
    processes: int = 1,
    parent: int | None = None,
    listen: Callable[[Mapping[str, Any]], None] | None = None,
) -> int:
    """Runs a training to its end.

    Args:
        spec_file: The spec.
        processes: Training processes; on `cuda` one a GPU.
        parent: Number of the process that started this one, which is stopped when that is
            gone; by default the one that is there now.
        listen: Gets every new event.

    Returns:
        The exit status, as above.

    Raises:
        PurifierError: If the spec is not one, or another training works in its folder.
    """
    spec = FinetuneSpec.read(spec_file)
    name = uuid.uuid4().hex
    parent = os.getppid() if parent is None else parent
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    interrupt = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        with hold(spec.work / SUPERVISOR_FILE, content=name):
            (spec.work / STOP_FILE).unlink(missing_ok=True)
            return _run(
                spec_file,
                spec,
                name,
                processes,
                lambda: bool(asked) or os.getppid() != parent,
                listen,
            )
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)


def _run(
    spec_file: Path,
    spec: FinetuneSpec,
    name: str,
    processes: int,
    should_stop: Callable[[], bool],
    listen: Callable[[Mapping[str, Any]], None] | None,
) -> int:
    events = spec.work / EVENTS_FILE
    # Ends the line that a killed predecessor left unfinished.
    EventFile(events)
    start = seen = read_events(events)[1]
    environment = {**os.environ, RUN_VARIABLE: name}
    # Determinism of cuBLAS, which has to be chosen before the device is opened.
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with (spec.work / LOG_FILE).open("ab") as log:
        launcher = subprocess.Popen(
            command(spec_file, spec.device, processes),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while True:
            status = launcher.poll()
            seen = _pass_on(events, seen, listen)
            if status is not None:
                break
            if should_stop():
                (spec.work / STOP_FILE).touch()
            time.sleep(_POLL)
    except BaseException:
        end_family(launcher.pid)
        launcher.wait()
        raise
    new, _ = read_events(events, start)
    outcome = new[-1]["event"] if new else ""
    if outcome not in _OUTCOMES:
        message = f"The training process ended without a word (status {status}); see its log."
        EventFile(events)({"event": "failed", "message": message})
        _pass_on(events, seen, listen)
        return FAILED
    return _OUTCOMES[outcome]


def command(spec_file: Path, device: str, processes: int) -> list[str]:
    """What starts the training processes."""
    training = ["-m", "purifier.finetune", "--spec", str(spec_file)]
    if processes > 1 and not device.startswith("cuda"):
        # `accelerate launch` starts several CPU processes by MPI alone; this is what it uses
        # for several GPUs.
        words = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return [sys.executable, "-P", "-m", *words, *training]
    # Its own settings, or those of the user's other trainings would be taken.
    settings = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if processes > 1 else "NO",
        "use_cpu": not device.startswith("cuda"),
        "num_processes": processes,
        "num_machines": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
        "debug": False,
    }
    file = spec_file.with_name("accelerate.json")
    file.write_text(json.dumps(settings) + "\n")
    words = ["accelerate.commands.launch", "--config_file", str(file)]
    return [sys.executable, "-P", "-m", *words, *training]


def _pass_on(events: Path, seen: int, listen: Callable[[Mapping[str, Any]], None] | None) -> int:
    """Hands new events on; returns the place behind them."""
    if listen is None:
        return seen
    new, seen = read_events(events, seen)
    for event in new:
        listen(event)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--parent", type=int, help="process that started this one")
    options = parser.parse_args(arguments)
    try:
        return supervise(options.spec, processes=options.processes, parent=options.parent)
    except PurifierError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
