"""Answers to further prompts are rows of the training set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.jobs import PURIFY, Site


def test_further_answers_are_trained_on(
    undisturbed: tuple[Site, str, dict[str, Any]], labels: Path
) -> None:
    site, job_id, result = undisturbed
    (prompt,) = PURIFY["further_prompts"]
    merged = json.loads((site.home.jobs / job_id / "merged" / "train.json").read_text())
    expected: list[tuple[str, str, str]] = []
    old = {row["id"]: row for row in json.loads(labels.read_text())}
    for row in result["rows"]:
        name = row["id"]
        if row["dropped"]:
            continue
        image = old[name]["image"]
        expected.append((name, image, row["answers"][0]))
        expected += [(f"{name}/1", image, answer) for _, answer in row["further"]]
    found = [(row["id"], row["image"], row["conversations"][1]["value"]) for row in merged]
    assert found == expected
    further = [row for row in merged if row["id"].endswith("/1")]
    assert further
    assert {row["conversations"][0]["value"] for row in further} == {f"<image>\n{prompt}"}
    job = site.service.get(job_id)
    assert site.seen(job, message="The purified").data["further"] == len(further)
    assert site.seen(job, event="started").data["rows"] == len(merged)
