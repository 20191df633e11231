"""Runs the parts one after the other; see the package's docstring.

    python -m benchmarks.gpu --parts speed together --out docs/results

Nothing has to be prepared: packages that the machine lacks come from the folder of wheels, if one
was filled (`python -m benchmarks.gpu.wheels`), and the model is drawn, not downloaded. Results of
parts that are not run again stay. This file needs the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import wheels
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.record import Record

NAME = "gpu"
_GRACE = 5.0
_LEAST = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 if every part has ended by itself and well."""
    options = parse(arguments)
    until = time.monotonic() + options.limit
    record = Record(options.out / f"{NAME}.json")
    with tempfile.TemporaryDirectory(prefix="disp-gpu-") as folder:
        work = options.work or Path(folder)
        environment = {**os.environ, **wheels.installed(Path(folder) / "site")}
        shown = sys.argv[1:] if arguments is None else arguments
        record.set_facts(
            command=" ".join(["python -m benchmarks.gpu", *shown]),
            shape=options.shape,
            device=options.device,
            dtype=options.dtype,
        )
        well = True
        for name in options.parts:
            limit = min(PARTS[name].seconds * options.patience, until - time.monotonic())
            if limit < _LEAST:
                record.end(name, ended="not begun: no time was left")
                well = False
                continue
            well = run_part(name, limit, options, work, record, environment) and well
    report = [sys.executable, "-m", "benchmarks.gpu.report", "--out", str(options.out)]
    return 0 if subprocess.run(report, env=environment, check=False).returncode == 0 and well else 1


def run_part(
    name: str,
    limit: float,
    options: argparse.Namespace,
    work: Path,
    record: Record,
    environment: dict[str, str],
) -> bool:
    """Runs a part as a process group of its own; ends it at its limit. Tells whether it did well.

    Args:
        name: Of the part.
        limit: Seconds.
        options: Shape, device and dtype.
        work: Folder that the parts share.
        record: Where its figures go.
        environment: Of the process.
    """
    record.begin(name)
    command = part_command(name, limit, options, work, record)
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        status = process.wait(limit)
        ended = "well" if status == 0 else f"with status {status}"
    except subprocess.TimeoutExpired:
        ended = "cut off at its time limit"
    finally:
        _end_group(process)
    seconds = round(time.monotonic() - start, 1)
    record.end(name, ended=ended, seconds=seconds, limit=round(limit, 1))
    print(f"{name}: ended {ended} after {seconds} s", file=sys.stderr, flush=True)
    return ended == "well"


def part_command(
    name: str, limit: float, options: argparse.Namespace, work: Path, record: Record
) -> list[str]:
    """The command line of a part's process."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", name]
    command += ["--shape", options.shape, "--device", options.device, "--dtype", options.dtype]
    return [*command, "--work", str(work), "--record", str(record.file), "--limit", str(limit)]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and every process that it has started and that still runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", choices=("8b", "middle", "tiny"), default="8b", help="sizes of the model")
    add("--device", default="cuda:0")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--parts", nargs="+", choices=list(PARTS), metavar="NAME", default=list(PARTS),
        help=f"what is measured, in this order: {', '.join(PARTS)}")  # fmt: skip
    add("--limit", type=float, default=560.0, help="seconds of the whole run")
    add("--patience", type=float, default=1.0, help="factor on the parts' own time limits")
    add("--work", type=Path, metavar="DIR", help="keeps the checkpoint for the next run")
    add("--out", type=Path, metavar="DIR", default=Path("docs/results"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
