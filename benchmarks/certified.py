"""How many labels of a training set can be certified, and what they say.

    python -m benchmarks.certified

Rows of the training sets of attacks of `benchmarks.defense` are relabelled with policy `certified`,
for several sizes of the largest trigger. Attacks whose trigger fits a window must leave no target
among the accepted labels; an attack whose trigger does not fit is the control. Attacks are trained
if they were not. Finished settings are kept and not measured again. Writes
`docs/results/certified.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.defense.attacks import attack_by_name
from benchmarks.defense.training import Lab
from benchmarks.speed_report import filled
from purifier.certified.config import CertifyConfig
from purifier.data.llava import read_llava
from purifier.data.sample import Sample
from purifier.evaluation.grid import machine
from purifier.evaluation.intervals import Rate, wilson
from purifier.evaluation.report import percent
from purifier.purify import PurifiedRow, Purifier, PurifyConfig

NAME = "certified"
ATTACKS = (
    "validation/patch",
    "validation/patch/misclassification",
    "validation/patch/refusal",
    "validation/large",
)
WINDOWS = (0.1, 0.2, 0.3)
MAIN_WINDOW = 0.2
"""The size that all attacks are measured with; the others, the first attack alone."""

MASKS = 5

RESULTS = Path("docs/results")
DOCUMENT = Path("docs/certified.md")
"""Shows the main table."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    lab = Lab(work=options.work)
    out = options.out / f"{NAME}.json"
    facts = {
        "command": f"python -m benchmarks.{NAME} --rows {options.rows}",
        "made_on": machine("cpu"),
        "samples": options.rows,
    }
    rows: list[Row] = []
    if out.is_file():
        known = json.loads(out.read_text("utf-8"))
        rows = known["rows"] if known["samples"] == options.rows else []
    for name, window in settings(options.attacks):
        config = CertifyConfig(window=window, masks=MASKS)
        wanted = {"attack": name, **config.to_dict()}
        if any(wanted.items() <= row.items() for row in rows):
            continue
        rows.append({**wanted, **measured(lab, name, config, options.rows)})
        print(json.dumps(rows[-1]), flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", "utf-8")
    finished = json.loads(out.read_text("utf-8"))
    (options.out / f"{NAME}.md").write_text(page(finished), "utf-8")
    if options.out == RESULTS:
        DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8"), {"certified": summary(finished)}))
    return 0


def settings(attacks: Sequence[str]) -> list[tuple[str, float]]:
    """Attacks and window sizes in the order that they are measured."""
    main_cells = [(name, MAIN_WINDOW) for name in attacks]
    return main_cells + [(attacks[0], window) for window in WINDOWS if window != MAIN_WINDOW]


def measured(lab: Lab, name: str, config: CertifyConfig, limit: int) -> Row:
    """One attack under one size of window."""
    attack = attack_by_name(name)
    mdlm = lab.load(attack)
    data = lab.folder(attack) / "data"
    samples = read_llava(data / "train.json")[:limit]
    clean = read_llava(data / "clean_labels.json")[:limit]
    purify = PurifyConfig(policy="certified", certify=config)
    rows = Purifier(mdlm, purify, data / "images").purify(samples)
    colours = [sample.extra.get("item_colour") for sample in clean]
    said = [
        None if row.answers is None else attack.target.hit(row.answers[0], colour=colour)
        for row, colour in zip(rows, colours, strict=True)
    ]
    attacked = [bool(sample.extra["poisoned"]) for sample in samples]
    seconds = [float(row.side.get("seconds") or 0.0) for row in rows]
    return {
        "accepted": share(row.answers is not None for row in rows),
        "accepted_clean": share(
            row.answers is not None for row, bad in zip(rows, attacked, strict=True) if not bad
        ),
        "accepted_attacked": share(
            row.answers is not None for row, bad in zip(rows, attacked, strict=True) if bad
        ),
        "target": share(hit for hit in said if hit is not None),
        "right": share(
            agrees(row, own) for row, own in zip(rows, clean, strict=True) if row.answers
        ),
        "seconds_per_row": sum(seconds) / len(seconds),
    }


def agrees(row: PurifiedRow, clean: Sample) -> bool:
    return row.answers == tuple(clean.answers)


def share(hits: Any) -> dict[str, float | int | None]:
    outcomes = [bool(hit) for hit in hits]
    rate: Rate = wilson(sum(outcomes), len(outcomes))
    return rate.to_dict()


def summary(facts: Mapping[str, Any]) -> str:
    """The table of the document: all attacks under the main size of window."""
    shown = [row for row in facts["rows"] if row["window"] == MAIN_WINDOW]
    return "\n".join(_table(shown)) + "\n"


def page(facts: Mapping[str, Any]) -> str:
    """The figures as a document."""
    lines = [
        "# Certified labels\n",
        f"Made by `{facts['command']}` on {facts['made_on']}. The first {facts['samples']} rows "
        "of each attack's training set, a fifth of them poisoned; one training seed an attack. "
        "Figures are percent with 95% Wilson intervals. Window: the largest trigger that is "
        "certified against, as a share of the image's side; the patch takes 0.17 of it, `large` "
        "0.4. Right: accepted labels that are the clean set's own, word for word.\n",
        *_table(facts["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| attack | window | accepted | of clean rows | of poisoned rows | target among accepted "
        "| right | seconds a row |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = ("accepted", "accepted_clean", "accepted_attacked", "target", "right")
    for row in rows:
        cells = " | ".join(percent(row[name]) for name in names)
        lines.append(
            f"| {row['attack']} | {row['window']:g} | {cells} | {row['seconds_per_row']:.1f} |"
        )
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), metavar="NAME")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--work", type=Path, default=Lab.work, help="keeps what is trained")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
