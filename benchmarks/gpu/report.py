"""The page of a run: goals first, then every part's figures.

python -m benchmarks.gpu.report --out docs/results     # gpu.json -> gpu.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.record import Record
from benchmarks.profile import profile_table
from purifier.evaluation.report import markdown_table

NAME = "gpu"
_DEEPEST = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args(arguments)
    page = markdown(Record(options.out / f"{NAME}.json").read())
    (options.out / f"{NAME}.md").write_text(page)
    print(page)
    return 0


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    pieces = [
        "# The real size on a GPU\n\nLLaDA-V with random weights.\n\n" + places(result["parts"]),
        goal_table(result),
    ]
    for name, part in result["parts"].items():
        pieces.append(part_section(name, part))
    return "\n".join(pieces)


def places(parts: Mapping[str, Any]) -> str:
    """Where the parts have run: a line for each machine and command, for runs may be several."""
    found: dict[str, list[str]] = {}
    for name, part in parts.items():
        if facts := part.get("machine"):
            where = (
                f"Shape `{part['shape']}`, {part['dtype']}, on {facts['device']} "
                f"({facts['processor']}, {facts['cores']} cores); Python {facts['python']}, torch "
                f"{facts['torch']}, transformers {facts['transformers']}. `{part['command']}`"
            )
            found.setdefault(where, []).append(f"`{name}`")
    return "".join(f"- {', '.join(names)}: {where}\n" for where, names in found.items())


def goal_table(result: Mapping[str, Any]) -> str:
    """Every goal, its value and whether it is met."""
    figures = {name: part["figures"] for name, part in result.get("parts", {}).items()}
    rows = []
    for goal in GOALS:
        value = goal.value(figures)
        met = {True: "yes", False: "**no**", None: "not measured"}[goal.met(value)]
        bound = f"{'≥' if goal.at_least else '≤'} {goal.bound:.4g}"
        rows.append([goal.what, "–" if value is None else f"{value:.3g}", bound, met])
    return markdown_table(["figure", "measured", "goal", "met"], rows)


def part_section(name: str, part: Mapping[str, Any]) -> str:
    """All numbers of a part."""
    outcome = f"ended {part['ended']}" if "ended" in part else "has not ended"
    if "seconds" in part:
        outcome += f" after {part['seconds']:.0f} of {part['limit']:.0f} s"
    profiles = {
        figure: value
        for figure, value in part["figures"].items()
        if isinstance(value, Mapping) and "unobserved_seconds" in value
    }
    rows = [
        [figure, where, shown]
        for figure, value in part["figures"].items()
        if figure not in profiles
        for where, shown in _numbers(value)
    ]
    what = PARTS[name].what if name in PARTS else ""
    section = f"## {name}: {what}\n\n{outcome}\n\n"
    section += markdown_table(["figure", "of it", "value"], rows)
    if profiles:
        section += (
            "\nPercent of the time by part of the model; in brackets how much of the measured "
            f"peak of matrix products the part reaches.\n\n{profile_table({'cases': profiles})}"
        )
    return section


def _numbers(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Numbers and short texts inside a figure, with the way to each."""
    if isinstance(value, Mapping) and "value" in value and "low" in value:
        low, high = value["low"], value["high"]
        yield " / ".join(path), f"{_short(value['value'])} ({_short(low)} to {_short(high)})"
    elif isinstance(value, Mapping):
        if len(path) < _DEEPEST:
            for key, inner in value.items():
                yield from _numbers(inner, (*path, str(key)))
    elif isinstance(value, list):
        if value and isinstance(value[0], Mapping):
            for inner in value:
                name = str(inner.get("name", ""))
                yield " / ".join((*path, f"`{name}`")), _short(inner.get("share"))
    elif value is not None:
        yield " / ".join(path), _short(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("\n", " ").replace("|", "/")[:200]


if __name__ == "__main__":
    sys.exit(main())
