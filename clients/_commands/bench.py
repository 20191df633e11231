"""`disp bench`: measures the source checkout that this package was installed from.

What measures belongs to the repository and is in no wheel. It runs in a process of its own, for
clients never import the server or the defence.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clients._commands._common import OK, USAGE
from clients._commands.delegated import missing_packages
from clients._exceptions import InvalidInput

NAME = "bench"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the repository.

    Attributes:
        module: What runs it.
        help: One line for the overview.
    """

    module: str
    help: str


BENCHMARKS: Mapping[str, Benchmark] = {
    "defense": Benchmark(
        "benchmarks.defense", "every defence against attacks that it was not tuned to"
    ),
    "speed": Benchmark("benchmarks.speed", "how much faster than the published code, as ratios"),
}


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares the command, for the overview of `disp --help`."""
    subparsers.add_parser(NAME, help="measure this source checkout", add_help=False)


def repository() -> Path:
    """The source checkout that this package lies in.

    Raises:
        InvalidInput: If it was installed without one.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks").is_dir():
        raise InvalidInput(
            "`disp bench` runs the benchmarks of the source repository, and this installation has "
            "none. Clone the repository, `pip install --editable '.[server]'` in it, and run the "
            "command again."
        )
    return root


def command_line(name: str, arguments: Sequence[str]) -> list[str]:
    """The process that runs a benchmark.

    Raises:
        InvalidInput: If the `[server]` extra is not installed.
    """
    if missing := missing_packages():
        raise InvalidInput(
            f"`disp bench {name}` needs the server's packages ({', '.join(missing)} missing): "
            "pip install --editable '.[server]'"
        )
    # -P: a folder of the same name in the working directory must not take the module's place.
    return [sys.executable, "-P", "-m", BENCHMARKS[name].module, *arguments]


def run(arguments: Sequence[str]) -> int:
    """Becomes the process of a benchmark; returns only if there is none to run."""
    name = arguments[0] if arguments else ""
    if name not in BENCHMARKS:
        return _usage(asked_for_help=name in ("-h", "--help"))
    root = repository()
    line = command_line(name, arguments[1:])
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(line[0], line, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})


def _usage(*, asked_for_help: bool) -> int:
    lines = [
        "usage: disp bench BENCHMARK ...",
        "",
        *(f"  {name}  {benchmark.help}" for name, benchmark in BENCHMARKS.items()),
        "",
        "disp bench BENCHMARK --help tells its options.",
    ]
    print("\n".join(lines), file=sys.stdout if asked_for_help else sys.stderr)
    return OK if asked_for_help else USAGE
