"""Jobs that search the training set for a trigger first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from purifier.data.llava import read_llava
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from tests.support.job_worker import Forge
from tests.support.jobs import PURIFY, Site, write_rows

TRAIN = DATA_FOLDER / "train"
DETECT = {**PURIFY, "further_prompts": [], "detectors": ["training-set"]}
ROWS = 80


def test_what_it_finds_is_left_out_and_in_the_report(
    site: Site, forge: Forge, tmp_path: Path
) -> None:
    """A threshold that no label reaches: every flag is the detector's."""
    rows = json.loads((TRAIN / "insertion.json").read_text("utf-8"))[:ROWS]
    labels = tmp_path / "rows" / "train.json"
    labels.parent.mkdir()
    for row in rows:
        shutil.copyfile(TRAIN / "images" / row["image"], labels.parent / row["image"])
    labels.write_text(json.dumps(rows), encoding="utf-8")
    purify = {**DETECT, "policy": "drop_flagged", "flag_threshold": 1000.0}
    purify["generation"] = {"gen_length": 8}
    model = checkpoint_path("insertion")
    job = site.submit(model, labels, purify=purify, shard_rows=ROWS)
    worker = forge.start(site.config("detecting"))
    ended = site.finished(job, worker)
    assert ended.status == "succeeded", ended.error
    poisoned = {s.id for s in read_llava(labels) if "backdoor" in s.answer}
    dropped = {row["id"] for row in site.result(job)["rows"] if row["dropped"]}
    assert len(poisoned) >= 10
    assert len(poisoned ^ dropped) <= 2
    assert site.seen(job, message="The training set was searched")
    folder = site.home.jobs / job.id
    facts = json.loads((folder / "report" / "report.json").read_text("utf-8"))["detection"]
    assert facts["rows"] == ROWS
    assert [group["kind"] for group in facts["groups"]] == ["image"]
    page = (folder / "report" / "report.html").read_text("utf-8")
    assert "What the training set shows" in page


def test_a_search_that_finds_nothing_changes_nothing(
    site: Site, forge: Forge, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labels = write_rows(tmp_path / "rows")
    plain = site.submit(tiny_checkpoint, labels, purify={**DETECT, "detectors": []})
    searched = site.submit(tiny_checkpoint, labels, purify=DETECT)
    worker = forge.start(site.config("both"))
    for job in (plain, searched):
        ended = site.finished(job, worker)
        assert ended.status == "succeeded", ended.error
    assert site.result(plain)["rows"] == site.result(searched)["rows"]
    assert site.seen(searched, message="The training set was searched")
