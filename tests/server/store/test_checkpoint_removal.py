"""Deleting a checkpoint: what needs it refuses, what is left is swept up."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from server.errors import CheckpointConflict, CheckpointNotFound
from server.store.attempts import Attempt, Attempts
from server.store.audit import Actor, AuditLog
from server.store.blobs import BlobStore
from server.store.checkpoint_fetch import tuned_folder
from server.store.checkpoints import CheckpointStore
from server.store.database import Database
from server.store.deployments import Deployments
from server.store.jobs import JobStore
from tests.server.store.test_checkpoints import make_delta

ADMIN = Actor("admin", "key-1", "request-1")


@pytest.fixture
def models(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    for seed, name in enumerate(("first", "second")):
        make_delta(folder / "tiny", folder / name, seed)
    return folder


@pytest.fixture
def store(database: Database, tmp_path: Path) -> CheckpointStore:
    (tmp_path / "checkpoints").mkdir()
    return CheckpointStore(database, tmp_path / "checkpoints")


@pytest.fixture
def ids(store: CheckpointStore, models: Path) -> dict[str, str]:
    """The base, which serves, and two staged deltas: the second was made from the first."""
    tiny = store.register(models / "tiny").id
    first = store.stage(models / "first", base=tiny, parent=tiny).id
    second = store.stage(models / "second", base=tiny, parent=first).id
    store.open_deployment(tiny)
    return {"tiny": tiny, "first": first, "second": second}


def refusal(store: CheckpointStore, checkpoint: str) -> str:
    before = store.list()
    with pytest.raises(CheckpointConflict) as caught:
        store.delete(checkpoint, actor=ADMIN)
    assert store.list() == before
    assert all(record.path.is_dir() for record in before)
    return caught.value.message


def test_what_nothing_needs_goes_with_its_files(
    store: CheckpointStore, ids: dict[str, str], database: Database, models: Path
) -> None:
    shelf = store.path(ids["second"]).parent
    store.delete(ids["second"], actor=ADMIN)
    assert not shelf.exists()
    assert {record.id for record in store.list()} == {ids["tiny"], ids["first"]}
    row = AuditLog(database).list()[-1]
    assert (row.actor, row.key_id, row.action) == ("admin", "key-1", "delete_checkpoint")
    assert (row.object, row.before, row.after) == (ids["second"], "staged", None)
    with pytest.raises(CheckpointNotFound):
        store.delete(ids["second"], actor=ADMIN)
    again = store.stage(models / "second", base=ids["tiny"], parent=ids["tiny"])
    assert store.verify(again.id).state == "verified"
    assert (models / "tiny").is_dir()


def test_the_copy_that_the_job_left_goes_as_well(
    database: Database, models: Path, tmp_path: Path
) -> None:
    shared = BlobStore(tmp_path / "shared")
    (tmp_path / "own").mkdir()
    store = CheckpointStore(database, tmp_path / "own", store=shared)
    tiny = store.register(models / "tiny").id
    made = store.stage(models / "first", base=tiny, parent=tiny, job_id="ftjob-1").id
    shared.put_folder(tuned_folder("ftjob-1"), models / "first")
    store.delete(made, actor=ADMIN)
    assert shared.list("jobs") == []


def test_what_serves_or_stands_below_is_kept(store: CheckpointStore, ids: dict[str, str]) -> None:
    assert "serves" in refusal(store, ids["tiny"])
    for name in ("first", "second"):
        store.verify(ids[name])
        store.activate(ids[name], actor=ADMIN)
    for name in ("first", "second"):
        assert "serves" in refusal(store, ids[name])
    assert "started with" in refusal(store, ids["tiny"])
    # To another deployment all of them are strangers, and still in use.
    other = CheckpointStore(store._database, store._folder)
    for name in ("tiny", "first", "second"):
        refusal(other, ids[name])


def test_the_base_of_a_delta_is_kept(store: CheckpointStore, models: Path) -> None:
    tiny = store.register(models / "tiny").id
    first = store.stage(models / "first", base=tiny, parent=None).id
    assert f"{first} stands on {tiny}" in refusal(store, tiny)
    store.delete(first, actor=ADMIN)
    store.delete(tiny, actor=ADMIN)
    assert (models / "tiny").is_dir(), "it lies where its owner put it"
    assert store.list() == []


def test_the_parent_of_what_may_still_serve_is_kept(
    store: CheckpointStore, ids: dict[str, str]
) -> None:
    assert f"{ids['second']} was made from {ids['first']}" in refusal(store, ids["first"])
    store.delete(ids["second"], actor=ADMIN)
    store.delete(ids["first"], actor=ADMIN)


@pytest.mark.parametrize("role", ["model", "result"])
def test_what_an_unfinished_job_needs_is_kept(
    role: str, store: CheckpointStore, ids: dict[str, str], database: Database
) -> None:
    jobs, attempts = JobStore(database), Attempts(database)
    model = ids["second"] if role == "model" else ids["tiny"]
    spec: dict[str, Any] = {"model": model, "training_file": "file-1"}
    job = jobs.create(spec, {}, key_id=None)
    attempt = Attempt(job.id, 1)
    attempts.start(attempt, "stage", "stage", "running")
    if role == "result":
        attempts.staged(attempt, ids["second"], "Staged.")
    assert job.id in refusal(store, ids["second"])
    attempts.wait_for_approval(attempt)
    assert job.id in refusal(store, ids["second"])
    jobs.cancel(job.id)
    store.delete(ids["second"], actor=ADMIN)


def test_what_a_server_is_about_to_serve_is_kept(
    store: CheckpointStore, ids: dict[str, str], database: Database
) -> None:
    deployments = Deployments(database)
    deployments.beat("server-1", ids["tiny"], ids["tiny"])
    request = deployments.request(ids["second"], requested_by="job 1", deployment=ids["tiny"])
    assert request is not None
    assert "about to serve" in refusal(store, ids["second"])
    assert deployments.claim(ids["tiny"], "server-1") is not None
    assert "about to serve" in refusal(store, ids["second"])
    assert deployments.finish(request.id, "server-1", "It did not load.")
    deployments.beat("server-1", ids["tiny"], ids["second"])
    assert "still does" in refusal(store, ids["second"])
    deployments.leave("server-1")
    store.delete(ids["second"], actor=ADMIN)


def test_what_was_left_half_deleted_is_swept_up_a_day_later(
    store: CheckpointStore, ids: dict[str, str]
) -> None:
    shelves = {name: store.path(ids[name]).parent for name in ("first", "second")}
    orphan = shelves["first"].with_name("0123456789ab")
    fresh = shelves["first"].with_name(".incoming-1")
    shutil.copytree(shelves["first"], orphan, symlinks=True)
    fresh.mkdir()
    day_ago = time.time() - 90_000
    for folder in (*shelves.values(), orphan):
        os.utime(folder, (day_ago, day_ago))
    store.sweep()
    assert not orphan.exists()
    assert fresh.is_dir()
    assert all(store.verify(ids[name]) for name in shelves)
    assert store.path(ids["tiny"]).is_dir()
