"""Runs one part of a run in this process.

python -m benchmarks.gpu.part NAME --shape tiny --device cpu --work DIR --record FILE
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.record import Record
from benchmarks.gpu.run import Run
from benchmarks.speed_timing import machine


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(PARTS))
    parser.add_argument("--shape", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--limit", type=float, required=True)
    options = parser.parse_args(arguments)
    run = Run(
        part=options.name,
        shape_name=options.shape,
        device=options.device,
        dtype=options.dtype,
        work=options.work,
        record=Record(options.record),
        limit=options.limit,
    )
    run.record.note(run.part, machine=machine(run.device))
    importlib.import_module(PARTS[options.name].module).measure(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
