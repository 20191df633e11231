"""The command `disp`.

Exit codes: 0 ok, 1 failed, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from clients._commands import (
    ask,
    audit,
    bench,
    checkpoints,
    delegated,
    demo,
    doctor,
    files,
    health,
    inspect,
    jobs,
    models,
)
from clients._commands._common import FAILED, report
from clients._exceptions import DispError
from clients._version import version

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        # Before argparse, for the options behind these names are not ours to read.
        if delegated.is_delegated(arguments):
            return delegated.run(arguments[0], arguments[1:])
        if arguments and arguments[0] == bench.NAME:
            return bench.run(arguments[1:])
        parser = build_parser()
        args = parser.parse_args(arguments)
        if problem := getattr(args, "check", _accept)(args):
            parser.error(problem)
        code: int = args.run(args)
        return code
    except DispError as error:
        report(error, as_json)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; without this, Python complains about it at exit once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="disp",
        description="Safe answers from multimodal diffusion language models nobody trusts.",
    )
    parser.add_argument("--version", action="version", version=f"disp {version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    rooms = (jobs, checkpoints, files, audit)
    for command in (demo, ask, inspect, models, health, *rooms, delegated, bench, doctor):
        command.add(subparsers)
    return parser


def _accept(args: argparse.Namespace) -> str | None:
    return None


if __name__ == "__main__":
    sys.exit(main())
