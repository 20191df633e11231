"""Unpacks many thousands of archives that nobody would make on purpose.

    python -m benchmarks.fuzz_archive --examples 20000 --seed 1

The properties are those of tests/server/test_archive_fuzz.py, which tries fewer. The first example
that breaks one is printed, made as small as it gets. Writes fuzz_archive.{json,md} into --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from purifier.evaluation.report import markdown_table
from tests.support.archive_fuzz import PROPERTIES

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main() -> int:
    """The command; its exit status is 1 if a property was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=20_000, help="of every property")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--properties", nargs="+", choices=PROPERTIES, default=list(PROPERTIES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [tried(name, args.examples, args.seed) for name in args.properties]
    write(rows, args)
    return int(any(row["broken"] for row in rows))


def tried(name: str, examples: int, number: int) -> dict[str, Any]:
    """Tries one property; says how often, and whether it was broken."""
    check, drawn = PROPERTIES[name]
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(values=drawn)
    def run(values: tuple[Any, ...]) -> None:
        nonlocal count
        count += 1
        check(*values)

    start = time.perf_counter()
    broken = ""
    try:
        run()
    except Exception as error:
        # Whatever it is: that the reader raised it, or a property did not hold, is the finding.
        broken = type(error).__name__
        print(f"{name}: {error!r}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
    row = {"property": name, "examples": count, "broken": broken}
    print(json.dumps(row), flush=True)
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Writes the table and its data."""
    command = f"python -m benchmarks.fuzz_archive --examples {args.examples} --seed {args.seed}"
    machine = (
        f"Python {platform.python_version()}, hypothesis {version('hypothesis')}, "
        f"{platform.machine()}"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"command": command, "machine": machine, "rows": rows}
    (args.out / "fuzz_archive.json").write_text(json.dumps(report, indent=1) + "\n")
    cells = [
        [row["property"], f"{row['examples']:,}", row["broken"] or "none", f"{row['seconds']:.0f}"]
        for row in rows
    ]
    header = ["what is drawn", "examples", "broken", "seconds"]
    text = (
        "# Archives that nobody would make on purpose\n\n"
        "Of every archive that is drawn: it is unpacked within its folder and within the limits of "
        "members, bytes, depth and names, or refused with a bounded message, and then nothing is "
        "left; nothing outside the folder changes; a sound archive is unpacked as it was packed. "
        f"{machine}. `{command}`\n\n"
    )
    (args.out / "fuzz_archive.md").write_text(text + markdown_table(header, cells))


if __name__ == "__main__":
    sys.exit(main())
