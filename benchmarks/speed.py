"""How much faster the product is than what is published, each figure a ratio from one run.

    python -m benchmarks.speed                        # about a quarter of an hour on two cores
    python -m benchmarks.speed --quick                # an impression
    python -m benchmarks.speed --only undefended_32 batch8_demo --device cuda
    python -m benchmarks.speed --out docs/results     # kept there; a stopped run goes on

Both sides of a ratio run in turn on the same machine; a figure is the median over repeats, with
the lowest and highest. The plain side is `benchmarks.plain`. Of its denoising loop a few steps
are timed and multiplied, for all of them are the same full pass; `--full` runs it whole, and
`--only extrapolation` says how far the two lie apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.speed_agreement import identical_answers
from benchmarks.speed_answers import Part, defended, extrapolation, plain_defended, undefended
from benchmarks.speed_engine import batch8_demo, batch8_middle
from benchmarks.speed_purify import purify_rows
from benchmarks.speed_report import main_table, markdown
from benchmarks.speed_settings import CHANGES, exact_generation, faster
from benchmarks.speed_timing import Bench, machine, matrix_peak
from purifier.errors import InvalidSetting, PurifierError

NAME = "speed"

MAIN: Mapping[str, Callable[[Bench], Part]] = MappingProxyType(
    {
        "undefended_32": partial(undefended, gen_length=32),
        "undefended_128": partial(undefended, gen_length=128),
        "identical_answers": identical_answers,
        "defended_over_undefended": defended,
        "batch8_demo": batch8_demo,
        "batch8_middle": batch8_middle,
        "purify_rows": purify_rows,
    }
)
"""The main table, in its order."""

BESIDE: Mapping[str, Callable[[Bench], Part]] = MappingProxyType(
    {"plain_defended": plain_defended, "extrapolation": extrapolation}
)
"""Measured only when asked for by name."""

_PRINTED = ("value", "low", "high", "n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        parts = run(options)
    except PurifierError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    if options.json:
        shown = {name: {key: part[key] for key in _PRINTED} for name, part in parts.items()}
        print(json.dumps(shown))
    else:
        print(main_table(parts))
    return 0


def run(options: argparse.Namespace) -> dict[str, Part]:
    """Measures what is asked for and is not kept already; returns it by name.

    Raises:
        InvalidSetting: If a setting is unknown or out of range.
        PurifierError: If a model cannot be loaded or does not answer.
    """
    settings = settings_of(options)
    faster(exact_generation(32), settings["generation"])
    bench = Bench(
        device=options.device,
        dtype=options.dtype,
        repeats=settings["repeats"],
        quick=options.quick,
        size=options.size,
        changes=settings["generation"],
        records=options.records,
        full=options.full,
        tell=_tell,
    )
    kept = read_parts(options.out)
    found: dict[str, Part] = {}
    for name in options.only or MAIN:
        part = kept.get(name)
        if part is None or part["settings"] != settings or options.again:
            part = _measured(name, bench, settings, command(options))
        else:
            _tell(f"{name}: kept from {options.out}")
        found[name] = kept[name] = part
        if options.out is not None:
            write_parts(options.out, kept)
    return found


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What decides a figure besides the code and the machine."""
    return {
        "generation": _changes(options.generation_settings),
        "device": options.device,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats or (1 if options.quick else 3),
        "records": options.records,
        "quick": options.quick,
        "full": options.full,
        "size": options.size,
    }


def read_parts(folder: Path | None) -> dict[str, Part]:
    """What was measured before; nothing without a folder."""
    file = None if folder is None else folder / f"{NAME}.json"
    if file is None or not file.is_file():
        return {}
    parts: dict[str, Part] = json.loads(file.read_text())["parts"]
    return parts


def write_parts(folder: Path, parts: Mapping[str, Part]) -> None:
    """Writes `speed.json` and `speed.md`; either is whole at any time."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {name: parts[name] for name in (*MAIN, *BESIDE) if name in parts}
    texts = {
        "json": json.dumps({"parts": ordered}, indent=1) + "\n",
        "md": markdown(ordered),
    }
    for ending, text in texts.items():
        made = folder / f"{NAME}.{ending}.new"
        made.write_text(text)
        os.replace(made, folder / f"{NAME}.{ending}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="disp bench speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=[*MAIN, *BESIDE], metavar="NAME",
        help=f"figures to measure: {', '.join([*MAIN, *BESIDE])}")  # fmt: skip
    add("--quick", action="store_true", help="one repeat and few requests: an impression")
    add("--json", action="store_true", help="print one JSON object")
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--threads", type=int, help="processor threads (default: PyTorch's)")
    add("--repeats", type=int, help="of every timed pair (default 3, with --quick 1)")
    add("--records", type=int, default=60, help="test records a target that are compared")
    add("--generation-settings", metavar="JSON", help=f"of the fast side (default {dict(CHANGES)})")
    add("--full", action="store_true", help="run the plain denoising loop whole: slow")
    add("--size", choices=("middle", "small"), default="middle", help="small: to try the command")
    add("--out", type=Path, metavar="DIR", help="keep results here and go on from them")
    add("--again", action="store_true", help="measure anew what is kept")
    options = parser.parse_args(arguments)
    for name in ("threads", "repeats", "records"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name}: must be at least 1")
    return options


def command(options: argparse.Namespace) -> str:
    """The command that measures the same."""
    default = parse([])
    parts = ["python -m benchmarks.speed"]
    for name, value in vars(options).items():
        if value == getattr(default, name) or name in ("only", "json", "out", "again"):
            continue
        shown = "" if value is True else f" '{value}'" if name.endswith("settings") else f" {value}"
        parts.append(f"--{name.replace('_', '-')}{shown}")
    return " ".join(parts)


def _changes(given: str | None) -> dict[str, Any]:
    if given is None:
        return dict(CHANGES)
    try:
        changes = json.loads(given)
    except ValueError:
        changes = None
    if not isinstance(changes, dict):
        raise InvalidSetting("--generation-settings must be a JSON object.")
    if "stop" in changes and isinstance(changes["stop"], list):
        changes["stop"] = tuple(changes["stop"])
    return changes


def _measured(name: str, bench: Bench, settings: Mapping[str, Any], made_by: str) -> Part:
    _tell(f"{name}: measuring")
    facts = machine(bench.device) | {"matrix_gflops": round(matrix_peak(bench.device, bench.dtype))}
    start = perf_counter()
    part = {**MAIN, **BESIDE}[name](bench)
    _tell(f"{name}: {part['value']:.3g} in {perf_counter() - start:.0f} s")
    return {
        **part,
        "seconds_taken": round(perf_counter() - start, 1),
        "command": f"{made_by} --only {name}",
        "settings": dict(settings),
        "machine": facts,
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
