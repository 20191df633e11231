"""A whole job with policy `certified`: what is accepted is trained on, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from purifier.certified.config import CertifyConfig
from tests.support.job_worker import Forge
from tests.support.jobs import PURIFY, Site, write_rows


def test_accepted_labels_are_trained_on_and_the_report_states_the_guarantee(
    site: Site, forge: Forge, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Masks change nothing of plain pictures; the noisy ones are too much for a random model."""
    labels = write_rows(tmp_path / "rows")
    plain = ["row-0", "row-5", "row-7", "row-11"]
    for name in plain:
        picture = labels.parent / f"{name.removeprefix('row-')}.png"
        Image.new("RGB", (32, 32), (200, 120, 40)).save(picture)
    certify = CertifyConfig(masks=2, tries=0)
    purify = {**PURIFY, "policy": "certified", "certify": certify.to_dict()}
    job = site.submit(tiny_checkpoint, labels, purify=purify)
    worker = forge.start(site.config("certified"))
    ended = site.finished(job, worker)
    assert ended.status == "succeeded", ended.error
    rows = site.result(job)["rows"]
    accepted = [row["id"] for row in rows if not row["dropped"]]
    assert set(plain) <= set(accepted)
    assert len(accepted) < len(rows)
    assert all((row["answers"] is None) is row["dropped"] for row in rows)
    merged = json.loads((site.home.jobs / job.id / "merged/train.json").read_text())
    assert {row["id"].removesuffix("/1") for row in merged} == set(accepted)
    pages = list((site.home.jobs / job.id).rglob("report.html"))
    assert pages
    assert all("What the new labels guarantee" in page.read_text("utf-8") for page in pages)
