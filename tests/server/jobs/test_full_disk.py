"""The store's disk fills up while a shard is written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.job_worker import Forge
from tests.support.jobs import Site

Undisturbed = tuple[Site, str, dict[str, Any]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 KiB in the place of the jobs' folder: room for a plan and one shard."""
    folder = tmp_path / "home" / "jobs"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"A file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_pauses_the_job_and_loses_nothing(
    small_disk: Path,
    forge: Forge,
    open_site: Callable[..., Site],
    tiny_checkpoint: Path,
    labels: Path,
    undisturbed: Undisturbed,
) -> None:
    site = open_site()
    job = site.submit(tiny_checkpoint, labels)
    worker = forge.start(site.config())
    paused = site.finished(job, worker)
    assert paused.status == "paused"
    assert paused.error is not None
    assert paused.error.code == "store_full"
    assert "free some space" in paused.error.message
    shards = small_disk / job.id / "shards"
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*.json")}
    assert 1 <= len(kept) < 3
    assert not list(shards.glob(".*")), "a part of a file was left"
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    site.service.resume(job.id)
    ended = site.finished(job, worker)
    assert ended.status == "succeeded", ended.error
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert site.result(job) == undisturbed[2]
    worker.kill()
