"""Runs the parts one after the other; see the package's docstring.

    python -m benchmarks.gpu --parts speed together --out docs/results

With `--limit` the whole run ends in time; parts that find none left are not begun. Two calls share
a checkpoint by `--work`:

    python -m benchmarks.gpu --work /tmp/gpu --parts tests loading speed together purifying
    python -m benchmarks.gpu --work /tmp/gpu --parts serving demo_job kernels

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
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu import wheels
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.record import Record

NAME = "gpu"
ROOT = Path(__file__).absolute().parents[2]
_GRACE = 5.0
_LEAST = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 if every part has ended by itself and well."""
    options = parse(arguments)
    until = time.monotonic() + options.limit
    record = Record(options.out / f"{NAME}.json")
    shown = sys.argv[1:] if arguments is None else arguments
    options.command = " ".join(["python -m benchmarks.gpu", *shown])
    with tempfile.TemporaryDirectory(prefix="disp-gpu-", ignore_cleanup_errors=True) as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        environment = environment_with(Path(folder) / "site")
        well = True
        for name in options.parts:
            limit = min(PARTS[name].seconds * options.patience, until - time.monotonic())
            if limit < _LEAST:
                if name not in record.read()["parts"]:
                    record.note(name, ended="not begun: no time was left")
                well = False
                continue
            well = run_part(name, limit, options, work, record, environment) and well
        report = [sys.executable, "-m", "benchmarks.gpu.report", "--out", str(options.out)]
        written = subprocess.run(report, env=environment, check=False).returncode == 0
    return 0 if written and well else 1


def environment_with(site: Path) -> dict[str, str]:
    """The environment of every part, in which Python finds the checkout and what it needs.

    The checkout is named because workers and trainings start without the working directory on
    their path.

    Args:
        site: Folder for carried packages that the machine lacks.
    """
    path = [str(ROOT), *wheels.installed(site), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def run_part(
    name: str,
    limit: float,
    options: argparse.Namespace,
    work: Path,
    record: Record,
    environment: dict[str, str],
) -> bool:
    """Runs a part as a process group of its own; ends it at its limit. Tells whether it did well.

    Its temporary files lie in a folder that goes with it: a part that is ended does not tidy up.

    Args:
        name: Of the part.
        limit: Seconds.
        options: Shape, device and dtype.
        work: Folder that the parts share.
        record: Where its figures go.
        environment: Of the process.
    """
    facts = {key: getattr(options, key) for key in ("command", "shape", "device", "dtype")}
    record.begin(name, **facts)
    command = part_command(name, limit, options, work, record)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix=f"{name}-", dir=work, ignore_cleanup_errors=True
    ) as temporary:
        own = {**environment, "TMPDIR": str(Path(temporary).absolute())}
        process = subprocess.Popen(command, env=own, start_new_session=True)
        try:
            status = process.wait(limit)
            ended = "well" if status == 0 else f"with status {status}"
        except subprocess.TimeoutExpired:
            ended = "cut off at its time limit"
        finally:
            end_family(process)
    seconds = round(time.monotonic() - start, 1)
    record.note(name, ended=ended, seconds=seconds, limit=round(limit, 1))
    print(f"{name}: ended {ended} after {seconds} s", file=sys.stderr, flush=True)
    return ended == "well"


def part_command(
    name: str, limit: float, options: argparse.Namespace, work: Path, record: Record
) -> list[str]:
    """The command line of a part's process."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", name]
    command += ["--shape", options.shape, "--device", options.device, "--dtype", options.dtype]
    return [*command, "--work", str(work), "--record", str(record.file), "--limit", str(limit)]


def end_family(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and every process that it has started and that still runs.

    Trainings are sessions of their own, which a signal to the group does not reach. They are
    looked up while the part still runs: once it has ended, their parent is another process (Linux).
    """
    others = _started_by(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    for pid, began in others.items():
        for one, since in {pid: began, **_started_by(pid)}.items():
            if _running().get(one, (0, 0))[1] == since:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)


def _started_by(pid: int) -> dict[int, int]:
    """Processes that one has started, directly or not, and when they began."""
    running = _running()
    found: dict[int, int] = {}
    parents = {pid}
    while parents:
        children = {one: began for one, (parent, began) in running.items() if parent in parents}
        found |= children
        parents = set(children)
    return found


def _running() -> dict[int, tuple[int, int]]:
    """Parent and beginning of every process, by its number."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # The name in brackets may hold anything; the state and the parent follow it.
            fields = file.read_text().rpartition(")")[2].split()
            found[int(file.parent.name)] = int(fields[1]), int(fields[19])
    return found


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
    add("--limit", type=float, default=float("inf"), help="seconds of the whole run")
    add("--patience", type=float, default=1.0, help="factor on the parts' own time limits")
    add("--work", type=Path, metavar="DIR", help="keeps the checkpoint for the next run")
    add("--out", type=Path, metavar="DIR", default=Path("docs/results"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
