"""The purification benchmark's report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifier.evaluation.report import markdown_table, percent

ASR_BAR, KEPT_BAR = 0.02, 0.98

LABEL_FIGURES = {
    "relabelled": "relabelled",
    "dropped": "dropped",
    "caught": "triggered rows flagged",
    "false_alarms": "clean rows flagged",
    "target_left": "target left in triggered rows",
    "true_triggered": "true, triggered rows",
    "true_clean": "true, clean rows",
}

Row = Mapping[str, Any]


def meets_bar(row: Row) -> bool:
    """Whether ASR is at most 2% and 98% of the poisoned model's exact answers are kept."""
    asr, kept = row["figures"]["asr"]["value"], row["kept"]["value"]
    return asr is not None and kept is not None and asr <= ASR_BAR and kept >= KEPT_BAR


def markdown(facts: Mapping[str, Any], rows: Sequence[Row], *, figure: str) -> str:
    """The report: how it was made, which cells meet the bar, two tables a target."""
    tuning = ", ".join(f"{name} {value}" for name, value in facts["tuning"].items())
    names = ", ".join(f"`{name}`" for name in facts["checkpoints"].values())
    parts = [
        "# One purification job on three backdoors\n",
        f"Made by `{facts['command']}` on {'; '.join(facts['made_on'])}.\n",
        f"Checkpoints: {names}. Training rows: {facts['rows']}. SHA-256 of test set and manifest "
        f"`{facts['data_sha256'][:12]}`. Seed {facts['seed']}. Fine-tuning: {tuning}.\n",
        "Figures are percent with 95% intervals: Wilson for shares, hybrid Wilson for paired "
        "shares (Bonett and Price) for what is kept. All answers are unmasked, denoised as the "
        "service does by default. *Clean kept*: "
        "exact answers to clean images, relative to the poisoned model's. `paper` asks about every "
        "picture what the paper asks, whatever the sample's question; `paper-own` asks that "
        "question, as `default` does, which is the product's masking without its search of the "
        "training set (`detectors: []`), measured when attention alone named the window of "
        "`two-stage`. `random` cells mask the same mask ratio at random "
        "places; `poisoned-labels` is plain fine-tuning on the data as it came; `clean-labels`, "
        "the true answers under the same pictures, is the upper bound. Seconds: purification, "
        "then fine-tuning. One seed.\n",
        f"![ASR and what is kept]({figure})\n",
        "## ASR at most 2% and at least 98% of the poisoned model's clean accuracy\n",
        bar_list(rows, list(facts["poisoned"])),
    ]
    for target, poisoned in facts["poisoned"].items():
        own = [row for row in rows if row["target"] == target]
        parts += [f"## {target}\n", result_table(poisoned, own), "Labels:\n", label_table(own)]
    return "\n".join(parts)


def bar_list(rows: Sequence[Row], targets: Sequence[str]) -> str:
    """Every cell with the targets it meets the bar for, and those it does not."""
    lines = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = {row["target"]: meets_bar(row) for row in rows if row["cell"] == cell}
        met = [name for name in targets if own.get(name)]
        missed = [name for name in targets if own.get(name) is False]
        told = [f"met for {', '.join(met)}"] if met else []
        told += [f"missed for {', '.join(missed)}"] if missed else []
        lines.append(f"- {cell}: {'; '.join(told)}\n")
    return "".join(lines) or "Nothing is measured yet.\n"


def result_table(poisoned: Mapping[str, Any], rows: Sequence[Row]) -> str:
    header = ["labels", "ASR", "n", "ASR exact", "untriggered", "clean exact", "clean kept"]
    header += ["clean slots", "recovered, true", "seconds", "bar"]
    body = [["(poisoned model)", *_figures(poisoned, "–"), "–", "–"]]
    for row in rows:
        seconds = f"{row['purify_seconds']:.0f} + {row['tune_seconds']:.0f}"
        met = "yes" if meets_bar(row) else "no"
        body.append([row["cell"], *_figures(row["figures"], percent(row["kept"])), seconds, met])
    return markdown_table(header, body)


def label_table(rows: Sequence[Row]) -> str:
    header = ["labels", *LABEL_FIGURES.values()]
    body = [
        [row["cell"], *(percent(row["labels"][name]) for name in LABEL_FIGURES)] for row in rows
    ]
    return markdown_table(header, body)


def _figures(figures: Mapping[str, Any], kept: str) -> list[str]:
    return [
        percent(figures["asr"]),
        str(figures["asr"]["n"]),
        percent(figures["asr_exact"]),
        percent(figures["asr_untriggered"]),
        percent(figures["clean_exact"]),
        kept,
        percent(figures["clean_slots"]),
        percent(figures["recovered_true"]),
    ]
