"""Every defence against attacks that it was not tuned to.

    disp bench defense                                # trains what is missing, measures, reports
    disp bench defense --attacks 'test/*' --defences balanced
    disp bench defense --report-only

An attack is named `LIST/KIND[/TARGET[/RATE]][#SEED]`; `*` and `?` stand for any kind. A stopped run
goes on where it was. Attacks whose checkpoints are in `benchmarks/defense/checkpoints` are not
trained again (`--publish` puts them there). What the table in the folder of the results holds stays
there until it is measured again or its settings are no longer those of today.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch

from benchmarks.defense.attacks import LISTS, VARIANTS, Shipped, attack_by_name, is_attack
from benchmarks.defense.cells import Bench, Row
from benchmarks.defense.defences import DEFENCES
from benchmarks.defense.report import efforts_table, page
from benchmarks.defense.table import read_table, write_table
from benchmarks.defense.training import Lab
from benchmarks.speed_report import filled
from purifier.errors import InvalidSetting
from purifier.evaluation.grid import machine
from purifier.evaluation.report import percent

RESULTS = Path("docs/results")
TABLE = "defense.parquet"
DOCUMENT = Path("docs/defence.md")
"""Shows one of the tables."""

LISTED = (*(f"{listed}/{kind}" for listed, kinds in LISTS.items() for kind in kinds), *VARIANTS)
"""All attacks that are measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = make_bench(options)
    names = [name for pattern in options.attacks for name in matching(pattern)]
    defences = [name for name in DEFENCES if any(fnmatch(name, p) for p in options.defences)]
    if options.publish:
        for name in names:
            if (attack := attack_by_name(name)).rate and not isinstance(attack, Shipped):
                print(bench.lab.publish(attack))
        return 0
    if not options.report_only:
        for row in bench.run(list(dict.fromkeys(names)), defences):
            print(line(row), flush=True)
    facts = {
        "command": "disp bench defense",
        "made_on": machine(options.device),
        "limit": str(options.limit),
    }
    table = options.out / TABLE
    write_table(bench.current(), facts, table)
    rows, facts = read_table(table)
    (options.out / "defense.md").write_text(page(rows, facts))
    if options.out == RESULTS:
        made = {"efforts": efforts_table(rows)}
        DOCUMENT.write_text(filled(DOCUMENT.read_text(), made, partly=True))
    print(f"wrote {options.out}/defense.md and .parquet: {len(rows)} cells")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="disp bench defense",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--attacks", nargs="+", default=LISTED, metavar="NAME")
    parser.add_argument("--defences", nargs="+", default=["*"], metavar="NAME")
    parser.add_argument("--limit", type=int, default=Bench.limit, help="test scenes of an attack")
    parser.add_argument("--work", type=Path, default=Lab.work, help="keeps what is finished")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--publish", action="store_true", help="store the attacks' checkpoints")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    return parser.parse_args(arguments)


def make_bench(options: argparse.Namespace) -> Bench:
    lab = replace(Lab(), work=options.work, device=options.device)
    table = options.out / TABLE
    earlier = read_table(table)[0] if table.is_file() else ()
    return Bench(lab, options.work / "cells.jsonl", limit=options.limit, earlier=earlier)


def matching(pattern: str) -> list[str]:
    """The listed attacks that a pattern names, or the one attack that it is.

    Raises:
        InvalidSetting: If there is none.
    """
    found = [name for name in LISTED if fnmatch(name, pattern)]
    if found:
        return found
    if not is_attack(pattern):
        raise InvalidSetting(f"There is no attack {pattern!r}.", param="attacks")
    return [pattern]


def line(row: Row) -> str:
    """One cell for people."""
    start = f"{row['attack']:34} {row['defence']:20} "
    if row["figures"] is None:
        return f"{start} not applicable"
    figures = row["figures"]
    elsewhere = row.get("details", {}).get("asr_elsewhere")
    other = f"ASR at other questions {percent(elsewhere)} " if elsewhere else ""
    return (
        f"{start} ASR {percent(figures['asr']):20} clean {percent(figures['clean_exact']):20} "
        f"recovered {percent(figures['recovered']):20} {other}{row['seconds']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
