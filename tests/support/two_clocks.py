"""One of two training processes whose clocks differ: `python -m tests.support.two_clocks`.

Arguments: a spec, the address of the group's store, this process's rank, and the rank whose clock
runs so fast that a save is due after every step; by the clock of the other one none is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

from torch import distributed

from purifier.finetune import finetune
from purifier.tuning import train
from purifier.tuning.events import EVENTS_FILE, EventFile
from purifier.tuning.processes import Processes
from purifier.tuning.spec import FinetuneSpec

# Long enough for a busy machine, short enough for a test that finds processes that wait in vain.
PATIENCE = timedelta(seconds=60)


def clock(fast: bool) -> Callable[[], float]:
    """Seconds that pass a hundred thousand times as fast, or not at all."""
    start = time.monotonic()
    return lambda: start + (time.monotonic() - start) * (1e5 if fast else 0.0)


def main(spec_file: str, address: str, rank: int, fast: int) -> None:
    distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=PATIENCE
    )
    train.time = SimpleNamespace(monotonic=clock(rank == fast))  # type: ignore[assignment, attr-defined]
    spec = FinetuneSpec.read(Path(spec_file))
    finetune(spec, events=EventFile(spec.work / EVENTS_FILE), processes=Processes(rank, 2, "cpu"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
