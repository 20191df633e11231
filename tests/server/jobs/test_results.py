"""What a finished job leaves for its owner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from purifier.data.dataset import open_dataset
from purifier.data.sample import Sample
from purifier.mdlm.registry import load_mdlm
from server.config import UploadLimits
from server.store.files import FileStore
from tests.support.jobs import FINETUNE, Site


def test_the_purified_set_is_among_the_files(
    undisturbed: tuple[Site, str, dict[str, Any]], tmp_path: Path
) -> None:
    site, job_id, _ = undisturbed
    files = FileStore(site.database, tmp_path / "files", UploadLimits(), site.store)
    found = [files.get(name) for name in site.service.get(job_id).result_files]
    merged = site.home.jobs / job_id / "merged"
    assert [record.filename for record in found] == ["side.parquet", "train.json"]
    for record in found:
        content = files.content(record).read_bytes()
        assert content == (merged / record.filename).read_bytes()
        assert record.bytes == len(content)


def test_trained_tokens_are_those_of_the_answers(
    undisturbed: tuple[Site, str, dict[str, Any]], tiny_checkpoint: Path, labels: Path
) -> None:
    site, job_id, _ = undisturbed
    merged = site.home.jobs / job_id / "merged" / "train.json"
    mdlm = load_mdlm(tiny_checkpoint)
    rows = open_dataset(merged, images=labels.parent).rows()
    answers = [row.answer for row in rows if isinstance(row, Sample)]
    # Every answer ends with a token of its own.
    tokens = sum(len(mdlm.encode_text(answer)) + 1 for answer in answers)
    assert site.service.get(job_id).trained_tokens == FINETUNE["epochs"] * tokens  # type: ignore[operator]
