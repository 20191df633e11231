"""The tables of `benchmarks.speed`, and their places in the documents.

    python -m benchmarks.speed_report      # fills those of `DOCUMENTS`

A table stands between `<!-- table NAME -->` and `<!-- end -->`; what is between is replaced by
what `docs/results` says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.batch_bound import bound_table
from benchmarks.cpu_levers import levers_table
from benchmarks.full_size import full_size_table
from benchmarks.gpu.report import goal_table
from benchmarks.profile import profile_table
from benchmarks.sizing import check_table, size_table
from benchmarks.speed_settings import GOALS, limit_of
from purifier.evaluation.intervals import wilson
from purifier.evaluation.report import markdown_table, percent

RESULTS = Path("docs/results")
DOCUMENTS = tuple(Path(f"docs/{name}.md") for name in ("performance", "caches", "sizing", "gpu"))
_PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Part = Mapping[str, Any]
Parts = Mapping[str, Part]


def main_table(parts: Parts) -> str:
    """All figures, one a row."""
    header = ["figure", "measured", "value", "lowest to highest", "n", "goal", "met"]
    rows = []
    for name, part in parts.items():
        as_share = name == "identical_answers"
        goal, met = _goal(name, part)
        rows.append(
            [
                f"`{name}`",
                part["what"],
                f"**{_number(part['value'], as_share)}**",
                f"{_number(part['low'], as_share)} to {_number(part['high'], as_share)}",
                str(part["n"]),
                goal,
                met,
            ]
        )
    return markdown_table(header, rows)


def answers_table(parts: Parts) -> str:
    """Seconds of undefended answers."""
    header = ["tokens", "visual tokens", "positions", "plain s", "fast s", "plain / fast"]
    rows = []
    for name, tokens in (("undefended_32", 32), ("undefended_128", 128)):
        for visual, cell in parts.get(name, {}).get("cells", {}).items():
            took, speed_up = cell["seconds"], cell["speed_up"]
            positions = str(cell["positions"])
            plain, fast = _spread(took["plain"]), _spread(took["fast"])
            rows.append([str(tokens), visual, positions, plain, fast, _spread(speed_up)])
    return markdown_table(header, rows)


def defended_table(parts: Parts) -> str:
    """What the defence adds to an answer."""
    header = ["model", "level", "ranker", "undefended s", "defended s", "ratio", "goal"]
    rows = []
    for name, cell in parts.get("defended_over_undefended", {}).get("cells", {}).items():
        model = "demo" if name == "demo" else f"middle, {name} visual tokens"
        for level in ("token", "patch"):
            took = cell["seconds"]
            rows.append(
                [
                    model,
                    level,
                    cell["rankers"][level],
                    _spread(took["undefended"]),
                    _spread(took[level]),
                    _spread(cell[level]),
                    f"≤ {limit_of(level):g}",
                ]
            )
    return markdown_table(header, rows)


_AGREED = ("asr", "clean_exact", "recovered")


def agreement_table(parts: Parts) -> str:
    """Attack success and accuracy with exact and with fast settings, all targets together."""
    header = ["defence", "settings", "ASR", "clean exact", "recovered"]
    header += ["equal to exact, clean", "equal to exact, triggered"]
    part = parts.get("identical_answers", {})
    targets = part.get("targets", {}).values()
    rows = []
    for defence in ("undefended", "defended") if targets else ():
        for settings in ("exact", "fast"):
            cells = [found[defence][settings] for found in targets]
            shown = [percent(_pooled(cell[key] for cell in cells)) for key in _AGREED]
            images = ("clean", "triggered")
            equal = [percent(part["shares"][f"{defence}, {image}"]) for image in images]
            rows.append([defence, settings, *shown, *(equal if settings == "fast" else "––")])
    return markdown_table(header, rows if targets else [])


def agreement_by_target(parts: Parts) -> str:
    """The same, a target a row."""
    header = ["target", "defence", "settings", "ASR", "clean exact", "recovered"]
    rows = []
    for target, cells in parts.get("identical_answers", {}).get("targets", {}).items():
        for defence, by_settings in cells.items():
            for settings, found in by_settings.items():
                shown = [percent(found[key]) for key in _AGREED]
                rows.append([target, defence, settings, *shown])
    return markdown_table(header, rows)


def batch_table(parts: Parts) -> str:
    """Throughput of eight requests at once."""
    header = [
        "model",
        "defence",
        "requests",
        "one at a time /s",
        "eight at once /s",
        "ratio",
        "over plain",
    ]
    rows = []
    for name, model in (("batch8_demo", "demo"), ("batch8_middle", "middle, 729 visual tokens")):
        for defence, cell in parts.get(name, {}).get("cells", {}).items():
            rate = cell["answers_per_second"]
            alone, together = _spread(rate["alone"]), _spread(rate["together"])
            ratio = _spread(cell["speed_up"])
            requests, plain = str(cell["requests"]), _spread(cell["over_plain"])
            rows.append([model, defence, requests, alone, together, ratio, plain])
    return markdown_table(header, rows)


_ROWS = ["asked", "how", "rows a second", "over the published loop"]


def rows_table(parts: Parts) -> str:
    """Rows a second of a purification."""
    part = parts.get("purify_rows")
    if part is None:
        return markdown_table(_ROWS, [])
    rates, same = part["rows_per_second"], part["same_recipe"]
    rows = [
        ["own questions", "published loop", _spread(rates["plain"]), "1"],
        ["own questions", "the product's defaults", _spread(rates["product"]), _spread(part)],
        ["the paper's prompt", "published loop", _spread(rates["plain paper"]), "1"],
        ["the paper's prompt", "the same recipe in bulk", _spread(rates["paper"]), _spread(same)],
    ]
    return markdown_table(_ROWS, rows)


def caches_table(result: Mapping[str, Any]) -> str:
    """Every setting of caches and thresholds: its gain, and what it changes in the answers."""
    header = [
        "setting", "steps, demo", "speed-up, demo", "speed-up, middle", "answers kept, %",
        "ASR, %", "ASR, defended, %", "clean exact, defended, %",
    ]  # fmt: skip
    rows = []
    for name, demo in result.get("steps_and_time", {}).get("demo", {}).items():
        cells = [found[name] for found in result["targets"].values()]
        hidden = [cell["defended"] for cell in cells]
        shown = [cell["undefended"] for cell in cells]
        rows.append(
            [
                name,
                f"{demo['steps']:g}",
                _spread(demo["speed_up"]),
                _spread(result["steps_and_time"]["middle"][name]["speed_up"]),
                percent(_pooled(cell["same"] for cell in (*shown, *hidden))),
                percent(_pooled(cell["asr"] for cell in shown)),
                percent(_pooled(cell["asr"] for cell in hidden)),
                percent(_pooled(cell["clean_exact"] for cell in hidden)),
            ]
        )
    return markdown_table(header, rows)


TABLES = {
    "main": main_table,
    "answers": answers_table,
    "defended": defended_table,
    "agreement": agreement_table,
    "batch": batch_table,
    "rows": rows_table,
}
"""The tables by the names that documents give them."""


def made_on(parts: Parts) -> list[str]:
    """One line for every machine and setting that figures come from."""
    lines: dict[str, list[str]] = {}
    for name, part in parts.items():
        lines.setdefault(_circumstances(part), []).append(f"`{name}`")
    if len(lines) == 1:
        return [f"All figures: {next(iter(lines))}."]
    return [f"{', '.join(names)}: {line}." for line, names in lines.items()]


def markdown(parts: Parts) -> str:
    """The report beside the figures."""
    headings = {
        "main": "Ratios, measured in one run each",
        "answers": "Undefended answers of the middle-sized model",
        "defended": "What the defence adds",
        "agreement": "Answers of the demo model, exact and fast (percent, 95% Wilson interval)",
        "batch": "Eight requests at once",
        "rows": "Purification of the demo's training set",
    }
    pieces = ["# Speed\n", *(f"{line}\n" for line in made_on(parts))]
    pieces += [f"## {heading}\n\n{TABLES[name](parts)}" for name, heading in headings.items()]
    pieces.append(f"## The same by target\n\n{agreement_by_target(parts)}")
    commands = "\n".join(part["command"] for part in parts.values())
    return "\n".join([*pieces, f"## Commands\n\n```sh\n{commands}\n```\n"])


def filled(document: str, tables: Mapping[str, str], *, partly: bool = False) -> str:
    """A document with its tables replaced.

    Args:
        document: The text.
        tables: By name.
        partly: Whether the places of other tables stay as they are.

    Raises:
        KeyError: If it has a place for a table that there is none of, unless `partly`.
    """

    def place_filled(place: re.Match[str]) -> str:
        if partly and place[2] not in tables:
            return place[0]
        return f"{place[1]}{tables[place[2]]}{place[3]}"

    return _PLACE.sub(place_filled, document)


def tables(results: Path) -> dict[str, str]:
    """All tables of the documents, from the results."""
    parts = _read(results / "speed.json").get("parts", {})
    made = {name: table(parts) for name, table in TABLES.items()}
    made["machine"] = "\n\n".join(made_on(parts)) + "\n"
    made["profile"] = profile_table(_read(results / "profile.json"))
    made["bound"] = bound_table(_read(results / "batch_bound.json"))
    made["caches"] = caches_table(_read(results / "caches.json"))
    made["size"] = size_table()
    made["size_check"] = check_table(_read(results / "sizing.json").get("check", []))
    made["full_size"] = full_size_table(_read(results / "full_size.json"))
    made["levers"] = levers_table(_read(results / "cpu_levers.json"))
    made["gpu"] = goal_table(_read(results / "gpu.json"))
    return made


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _pooled(rates: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One rate of several over disjoint cases."""
    given = list(rates)
    hits = sum(round(rate["value"] * rate["n"]) for rate in given if rate["n"])
    return wilson(hits, sum(rate["n"] for rate in given)).to_dict()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the documents; returns the exit status."""
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text(), tables(RESULTS)))
    return 0


def _goal(name: str, part: Part) -> tuple[str, str]:
    if part["settings"]["quick"] or part["settings"]["size"] != "middle":
        return "–", "not judged: quick"
    if name == "defended_over_undefended":
        limit = limit_of(part["level"])
        return f"≤ {limit:g}", "yes" if part["value"] <= limit else "no"
    if name not in GOALS:
        return "–", "–"
    goal = GOALS[name]
    shown = f"≥ {_number(goal, name == 'identical_answers')}"
    return shown, "yes" if part["value"] >= goal else "no"


def _circumstances(part: Part) -> str:
    facts, settings = part["machine"], part["settings"]
    changes = ", ".join(f"{name} {value}" for name, value in settings["generation"].items())
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"device {facts['device']}, {settings['dtype']}, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, {settings['repeats']} repeats; "
        f"fast settings: {changes or 'none'}"
        + ("; quick" if settings["quick"] else "")
        + ("; small model" if settings["size"] != "middle" else "")
    )


def _number(value: float | None, as_share: bool = False) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if as_share else f"{value:.3g}"


def _spread(figure: Mapping[str, float]) -> str:
    value, low, high = (_number(figure[key]) for key in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
