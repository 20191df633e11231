"""A training as a process group of its own, for whoever runs it beside other work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from purifier.tuning.family import end_family


def launch(spec_path: Path, *, processes: int = 1) -> subprocess.Popen[bytes]:
    """Starts a training; its exit status is 0 done, 75 stopped, else failed.

    What it says is in `events.jsonl` of the spec's work folder, its output in `log.txt`. If
    the caller dies, the training saves its state and ends; started again, it goes on.

    Args:
        spec_path: The spec; the process is not started in a folder of its own, so its paths
            must be absolute.
        processes: Training processes; on `cuda` one a GPU.
    """
    words = ["purifier.tuning.supervise", "--spec", str(spec_path), "--processes", str(processes)]
    # Named, because the caller may be gone before the supervisor looks who it was.
    words += ["--parent", str(os.getpid())]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", *words], stdin=subprocess.DEVNULL, start_new_session=True
    )


def stop(process: subprocess.Popen[bytes], grace: float) -> int:
    """Asks a training to save and end, and kills all its processes if it does not.

    Args:
        process: From `launch`.
        grace: Seconds that it has.

    Returns:
        Its exit status: 75 if it saved, 0 if it was done before, negative if it was killed. A
        killed one goes on from its last save all the same.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(grace)
    except subprocess.TimeoutExpired:
        end_family(process.pid)
        return process.wait()
