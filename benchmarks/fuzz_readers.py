"""Gives the readers of untrusted files many thousands of random, damaged and contradictory ones.

    python -m benchmarks.fuzz_readers archive --examples 20000 --seed 1
    python -m benchmarks.fuzz_readers data

The properties are those of tests/server/test_archive_fuzz.py and tests/data/test_fuzz.py, which try
fewer examples. The first example that breaks a property is printed, made as small as possible.
Writes docs/results/fuzz_archive.{json,md} or fuzz_data.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from purifier.evaluation.report import markdown_table
from tests.support import archive_fuzz, data_fuzz
from tests.support.fuzzing import Properties, Property

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Reader:
    """A reader of untrusted files.

    Attributes:
        title: Of the report.
        claim: What holds for every file.
        properties: By name.
        packages: Libraries that take part in reading.
    """

    title: str
    claim: str
    properties: Properties
    packages: tuple[str, ...]


READERS: Mapping[str, Reader] = {
    "archive": Reader(
        "Random and damaged archives",
        "Every archive is unpacked within its folder and within the limits of members, bytes, "
        "depth and names, or refused with a bounded message, and then nothing is left. Nothing "
        "outside the folder changes. A sound archive is unpacked as it was packed.",
        archive_fuzz.PROPERTIES,
        (),
    ),
    "data": Reader(
        "Random and damaged data sets",
        "Reading ends. Every row that comes out has a mark for each image and an answer for each "
        "question, and new answers are written and read back. Every other row is refused with its "
        "place, a reason and a bounded message.",
        data_fuzz.PROPERTIES,
        ("pillow", "pyarrow"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 if a property was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--examples", type=int, default=20_000, help="of every property")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow and zipfile warn about damaged files
    reader = READERS[options.reader]
    rows = []
    for name, prop in reader.properties.items():
        rows.append({"property": name, **tried(prop, options.examples, options.seed)})
        print(json.dumps(rows[-1]), flush=True)
    write(options, reader, rows)
    return int(any(row["broken"] for row in rows))


def tried(prop: Property, examples: int, number: int) -> dict[str, Any]:
    """Tries a property: how many examples, which kind of error broke it, and the seconds.

    Args:
        prop: The property.
        examples: To be tried.
        number: Seed of what is drawn.
    """
    check, drawn = prop
    count = 0
    failing: tuple[Any, ...] = ()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(values=drawn)
    def run(values: tuple[Any, ...]) -> None:
        nonlocal count, failing
        count += 1
        try:
            check(*values)
        except Exception:
            # The last one is the smallest that was found.
            failing = values
            raise

    start = time.perf_counter()
    broken = ""
    try:
        run()
    except Exception as error:
        # Whatever it is: that the reader raised it, or that a check failed, is the finding.
        broken = type(error).__name__
        print(f"{error!r} of {failing!r}", file=sys.stderr)
    spent = round(time.perf_counter() - start, 1)
    return {"examples": count, "broken": broken, "seconds": spent}


def write(options: argparse.Namespace, reader: Reader, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table and its data."""
    command = f"python -m benchmarks.fuzz_readers {options.reader} --examples {options.examples}"
    command += f" --seed {options.seed}"
    packages = [f"{name} {version(name)}" for name in ("hypothesis", *reader.packages)]
    machine = ", ".join([f"Python {platform.python_version()}", *packages, platform.machine()])
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"command": command, "machine": machine, "rows": rows}
    file = options.out / f"fuzz_{options.reader}"
    file.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    cells = [
        [row["property"], f"{row['examples']:,}", row["broken"] or "none", f"{row['seconds']:.0f}"]
        for row in rows
    ]
    table = markdown_table(["property", "examples", "broken by", "seconds"], cells)
    text = f"# {reader.title}\n\n{reader.claim} {machine}. `{command}`\n\n{table}"
    file.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
