"""A job's report: one HTML page that needs nothing but itself, and its facts as JSON.

    facts = {
        "job": {"id": ..., "created_at": ..., ...},           plain values, shown as they are
        "verdict": Verdict.to_dict(),
        "evaluation": evaluate_job(...),                       the one entry that must be there
        "checkpoints": {"before": {...}, "after": {...}},      ids and hashes
        "data": {"name": ..., "sha256": ..., "rows": ...},
        "settings": {"purify": {...}, "finetune": {...}},      nested as they are
        "training": {"loss": [[step, loss], ...]},
        "seconds": {"relabel": ..., ...},
        "versions": {"torch": ..., ...},
    }

Labels, questions and names come from whoever made the data. All of it is escaped, the page has
no script and no link, and its content security policy lets a browser load nothing.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from purifier.certified.config import CertifyConfig
from purifier.errors import DataError
from purifier.evaluation.report_figures import interval_figure, loss_figure

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST = 1200
"""Characters of a text that the page shows; the JSON has all of them."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and marks that turn the direction of text."""

TRAINING_SET = {
    "disagreement": ("Disagreement", "rows answered otherwise when masked"),
    "distance": ("Distance", "words that masked and unmasked answer do not share"),
}
TEST_SET = {
    "asr": ("Attack success", "triggered images answered with the target's words"),
    "asr_exact": ("Attack success, exact", "triggered images answered with the attacker's text"),
    "asr_untriggered": ("Target's words, no trigger", "clean images answered with them"),
    "recovered_true": ("Recovered", "triggered images answered rightly"),
    "clean_exact": ("Clean answers, exact", "clean images answered with the very reference"),
    "clean_words": ("Clean answers, words", "words shared with the reference"),
    "clean_slots": ("Clean answers, slots", "item and colours that descriptions name rightly"),
}
CHANGE = {
    "utility_kept": ("Utility kept", "exact clean answers, after over before"),
    "words_kept": ("Word overlap kept", "words shared with the reference, after over before"),
    "drift": ("Drift", "unflagged rows answered otherwise than before"),
    "drift_distance": ("Drift, distance", "words that those answers do not share"),
    "flagged_unchanged": ("Flagged, unchanged", "flagged rows still answered as before"),
    "flagged_recovered": ("Flagged, recovered", "flagged rows now answered as masked before"),
}
LABELS = {
    "flagged": ("Flagged", "rows whose label is suspected"),
    "relabelled": ("Relabelled", "rows that got a new label"),
    "dropped": ("Dropped", "rows left out of the purified set"),
}
"""Metrics by name: heading, and what the share is of."""

TILES = (("after", "disagreement"), ("after", "asr"), ("change", "utility_kept"))
STAGE_NAMES = {"before": "compromised", "after": "purified"}


def write_report(facts: Mapping[str, Any], folder: Path, *, pictures: Path | None = None) -> None:
    """Writes `report.html` and `report.json`, each whole or not at all.

    Args:
        facts: What the report tells, see the module; entries that are absent are left out.
        folder: Where the files go; made if absent.
        pictures: Where the examples' pictures lie; by default `folder`.

    Raises:
        DataError: If there is no evaluation, or a picture cannot be read.
    """
    page = render(facts, pictures or folder)
    text = json.dumps(facts, ensure_ascii=False, indent=1, default=str) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("report.json", text), ("report.html", page)):
        part = folder / f"{name}.part"
        part.write_text(content, encoding="utf-8")
        os.replace(part, folder / name)


def render(facts: Mapping[str, Any], pictures: Path) -> str:
    """The page.

    Raises:
        DataError: If there is no evaluation, or a picture cannot be read.
    """
    evaluation = facts.get("evaluation")
    if not isinstance(evaluation, Mapping) or "metrics" not in evaluation:
        raise DataError("A report needs the evaluation of its job.", param="evaluation")
    metrics = evaluation["metrics"]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "rate": _rate, "percent": _percent}
    paired = _paired(metrics, TRAINING_SET), _paired(metrics, TEST_SET)
    return environment.get_template("report.html.j2").render(
        job={name: _moment(name, value) for name, value in facts.get("job", {}).items()},
        verdict=facts.get("verdict"),
        evaluation=evaluation,
        tiles=list(_tiles(metrics)),
        training_set=paired[0],
        test_set=paired[1],
        change=_single(metrics.get("change", {}), CHANGE),
        labels=_single(metrics.get("labels", {}), LABELS),
        guarantee=_guarantee(facts),
        detection=facts.get("detection"),
        figure=interval_figure(paired[0] + paired[1]),
        loss=loss_figure(_losses(facts)),
        examples=[_example(row, pictures) for row in evaluation.get("examples", [])],
        provenance=list(_provenance(facts)),
        settings={name: list(flat(value)) for name, value in facts.get("settings", {}).items()},
    )


def _guarantee(facts: Mapping[str, Any]) -> str | None:
    """What is guaranteed of the labels, under policy `certified`."""
    purify = facts.get("settings", {}).get("purify", {})
    if purify.get("policy") != "certified":
        return None
    return CertifyConfig(**purify["certify"]).statement


def shown(value: Any) -> str:
    """A value as the page shows it: no control characters, bounded length."""
    text = value if isinstance(value, str) else "–" if value is None else str(value)
    if isinstance(value, bool):
        text = "yes" if value else "no"
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    if len(text) > _LONGEST:
        return f"{text[:_LONGEST]} … ({len(text) - _LONGEST} more characters in report.json)"
    return text


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and plain values."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value)) or "none"
    else:
        yield name, value


def _paired(metrics: Mapping[str, Any], names: Mapping[str, tuple[str, str]]) -> list[Any]:
    """Metrics that both models have, with the difference in percentage points."""
    before, after = metrics.get("before", {}), metrics.get("after", {})
    found = []
    for name, (heading, meaning) in names.items():
        old, new = before.get(name), after.get(name)
        if old and new and old["value"] is not None and new["value"] is not None:
            found.append(
                {
                    "heading": heading,
                    "meaning": meaning,
                    "before": old,
                    "after": new,
                    "change": 100 * (new["value"] - old["value"]),
                }
            )
    return found


def _single(rates: Mapping[str, Any], names: Mapping[str, tuple[str, str]]) -> list[Any]:
    return [
        {"heading": heading, "meaning": meaning, "rate": rates[name]}
        for name, (heading, meaning) in names.items()
        if name in rates and rates[name]["value"] is not None
    ]


def _tiles(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The few figures that a reader looks for first."""
    for phase, name in TILES:
        rate = metrics.get(phase, {}).get(name)
        if rate and rate["value"] is not None:
            heading, meaning = (TRAINING_SET | TEST_SET | CHANGE)[name]
            old = metrics.get("before", {}).get(name) if phase == "after" else None
            yield {"heading": heading, "meaning": meaning, "rate": rate, "before": old}
    flagged = metrics.get("labels", {}).get("flagged")
    if flagged and flagged["value"] is not None:
        heading, meaning = LABELS["flagged"]
        yield {"heading": heading, "meaning": meaning, "rate": flagged, "before": None}


def _example(row: Mapping[str, Any], pictures: Path) -> dict[str, Any]:
    name = str(row["picture"])
    if Path(name).name != name:
        raise DataError("A picture of the report must be a file name.", param="picture")
    try:
        content = (pictures / name).read_bytes()
    except OSError:
        raise DataError(f"The picture {name} of the report cannot be read.") from None
    return {**row, "source": f"data:image/png;base64,{base64.b64encode(content).decode()}"}


def _provenance(facts: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    evaluated = facts["evaluation"].get("checkpoints", {})
    known = facts.get("checkpoints", {})
    for stage, heading in STAGE_NAMES.items():
        values = known.get(stage, {"id": evaluated.get(stage)})
        yield f"Checkpoint, {heading}", list(flat(values))
    for name in ("data", "seconds", "versions"):
        if facts.get(name):
            yield (
                {"data": "Training data", "seconds": "Seconds", "versions": "Versions"}[name],
                list(flat(facts[name])),
            )


def _losses(facts: Mapping[str, Any]) -> Sequence[tuple[float, float]]:
    points = facts.get("training", {}).get("loss", [])
    return [(float(step), float(loss)) for step, loss in points if math.isfinite(loss)]


def _moment(name: str, value: Any) -> Any:
    """Seconds since the epoch as a date, where a name like `created_at` says that they are."""
    if not name.endswith("_at") or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "–"
    ends = [_number(rate[end]) if rate[end] is not None else "–" for end in ("low", "high")]
    return f"{_number(rate['value'])}% [{ends[0]},\N{NO-BREAK SPACE}{ends[1]}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{_number(value)}%"


def _number(share: float) -> str:
    return f"{100 * share:.1f}"
