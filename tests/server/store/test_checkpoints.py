"""Staging, states, and the one row that says which checkpoint serves."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from purifier.errors import CheckpointError
from purifier.mdlm.delta import write_delta
from purifier.mdlm.registry import base_hash, checkpoint_id, load_mdlm
from server.errors import CheckpointConflict, CheckpointDamaged, CheckpointNotFound, GateFailed
from server.store import checkpoint_files
from server.store.audit import Actor, AuditLog
from server.store.checkpoint_files import read_content, take_in
from server.store.checkpoints import CheckpointStore
from server.store.database import Database

ADMIN = Actor("admin", "key-1", "request-1")


def make_delta(base: Path, folder: Path, seed: int) -> Path:
    """A delta that changes the projector of a base."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_mdlm(base).published_weights()
    name = next(name for name in weights if "mm_projector" in name and name.endswith("weight"))
    write_delta(
        folder,
        base=base.name,
        base_sha256=base_hash(base),
        projector={name: torch.randn(weights[name].shape, generator=generator)},
        adapter={},
        lora_scale=1.0,
        details={"seed": seed},
    )
    return folder


@pytest.fixture
def models(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with the base `tiny` and two deltas on it."""
    folder = tmp_path / "models"
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    for seed, name in enumerate(("first", "second")):
        make_delta(folder / "tiny", folder / name, seed)
    return folder


@pytest.fixture
def store(database: Database, tmp_path: Path) -> CheckpointStore:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return CheckpointStore(database, folder)


@pytest.fixture
def staged(store: CheckpointStore, models: Path) -> list[str]:
    """Ids of the base, which serves, and of the two deltas, which are staged."""
    base = store.register(models / "tiny").id
    deltas = [store.stage(models / name, base=base, parent=base).id for name in ("first", "second")]
    store.open_deployment(base)
    return [base, *deltas]


def states(store: CheckpointStore) -> dict[str, str]:
    return {record.id: record.state for record in store.list()}


def test_staged_checkpoint_is_named_by_its_content_and_loads(
    store: CheckpointStore, models: Path, staged: list[str]
) -> None:
    record = store.get(staged[1])
    assert record.id == checkpoint_id(models / "first") == checkpoint_id(record.path)
    assert (record.state, record.base, record.parent) == ("staged", staged[0], staged[0])
    shutil.rmtree(models / "first")
    loaded, name = load_mdlm(record.path), "model.mm_projector.0.weight"
    assert not torch.equal(
        loaded.published_weights()[name], load_mdlm(models / "tiny").published_weights()[name]
    )


def test_staging_twice_changes_nothing(
    store: CheckpointStore, models: Path, staged: list[str], tmp_path: Path
) -> None:
    before = sorted((tmp_path / "checkpoints").rglob("*"))
    again = store.stage(models / "first", base=staged[0], parent=None, metrics={"asr": 1})
    assert again == store.get(staged[1])
    assert sorted((tmp_path / "checkpoints").rglob("*")) == before
    assert len(store.list()) == 3


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_take_the_same_checkpoint_in(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    folder, copy = tmp_path / "store", checkpoint_files._copy
    folder.mkdir()
    content = read_content(models / "tiny")

    def overtaken(source: Path, target: Path, hashes: Mapping[str, str]) -> None:
        """Another one is as far and goes on faster."""
        monkeypatch.setattr(checkpoint_files, "_copy", copy)
        place = folder / take_in(models / "tiny", content, folder, None)
        if damaged:
            (place / "config.json").write_text("{}")
        copy(source, target, hashes)

    monkeypatch.setattr(checkpoint_files, "_copy", overtaken)
    if damaged:
        with pytest.raises(CheckpointError, match=r"config\.json was altered"):
            take_in(models / "tiny", content, folder, None)
    else:
        assert take_in(models / "tiny", content, folder, None).name == "tiny"
    assert [path.name for path in folder.iterdir()] == [content.sha256[:12]]


def test_the_same_content_has_one_name(
    store: CheckpointStore, models: Path, staged: list[str]
) -> None:
    """Checkpoints are removed with their shelf."""
    twin = models / "twin"
    shutil.copytree(models / "first", twin)
    with pytest.raises(CheckpointError, match="under the name 'first' already"):
        store.stage(twin, base=staged[0], parent=None)
    assert store.get(staged[1]).id == staged[1]


def test_checkpoints_of_one_name_are_kept_apart(
    store: CheckpointStore, models: Path, staged: list[str], tmp_path: Path
) -> None:
    shutil.copytree(models / "tiny", tmp_path / "others" / "tiny")
    make_delta(tmp_path / "others" / "tiny", tmp_path / "others" / "first", seed=9)
    other = store.stage(tmp_path / "others" / "first", base=staged[0], parent=None)
    assert other.id != staged[1]
    assert {store.path(other.id).name, store.path(staged[1]).name} == {"first"}
    assert store.verify(other.id).state == store.verify(staged[1]).state == "verified"


def test_full_weights_are_staged(store: CheckpointStore, models: Path) -> None:
    record = store.stage(models / "tiny", base=None, parent=None)
    assert record.base is None
    assert store.verify(record.id).state == "verified"
    load_mdlm(record.path)


@pytest.mark.parametrize(
    ("folder", "base", "complaint"),
    [
        ("absent", "tiny", "does not exist"),
        ("first", None, "needs a base"),
        ("tiny", "tiny", "needs a base"),
        ("first", "other", "was not made on other@sha256"),
    ],
)
def test_staging_is_refused(
    store: CheckpointStore,
    models: Path,
    tmp_path: Path,
    folder: str,
    base: str | None,
    complaint: str,
) -> None:
    shutil.copytree(models / "tiny", models / "other")
    (models / "other" / "generation_config.json").write_text("{}")
    ids = {name: store.register(models / name).id for name in ("tiny", "other")}
    with pytest.raises(CheckpointError, match=complaint):
        store.stage(models / folder, base=None if base is None else ids[base], parent=None)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: (folder / "projector.safetensors").unlink(), "projector.* is missing"),
        (lambda folder: (folder / "extra.json").write_text("{}"), "extra.json was added"),
        (lambda folder: (folder / "delta.json").write_text("{}"), "delta.json was altered"),
        (
            lambda folder: (folder / "projector.safetensors").write_bytes(b"0"),
            "projector.safetensors was altered",
        ),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_changed_file_is_refused_by_its_name(
    store: CheckpointStore, staged: list[str], change: object, complaint: str
) -> None:
    assert callable(change)
    change(store.path(staged[1]))
    with pytest.raises(CheckpointDamaged, match=complaint):
        store.verify(staged[1])
    assert store.get(staged[1]).state == "staged"


def test_a_rollback_that_is_tried_again_is_made_once(
    store: CheckpointStore, staged: list[str], database: Database
) -> None:
    """The first try was committed, and nobody heard of it."""
    base, first, second = staged
    for checkpoint in (first, second):
        store.verify(checkpoint)
        store.activate(checkpoint, actor=ADMIN)
    for _ in range(2):
        assert store.rollback(ADMIN, expected=first).id == first
    active, previous = store.active(), store.previous()
    assert active is not None
    assert previous is not None
    assert (active.id, previous.id) == (first, second)
    assert [row.action for row in AuditLog(database).list()].count("rollback") == 1
    with pytest.raises(CheckpointConflict):
        store.rollback(ADMIN, expected=base)


def test_states_follow_activation_and_rollback(
    store: CheckpointStore, staged: list[str], database: Database
) -> None:
    base, first, second = staged
    for checkpoint in (first, second):
        store.verify(checkpoint)
        store.activate(checkpoint, actor=ADMIN)
    assert states(store) == {base: "retired", first: "previous", second: "active"}
    assert store.rollback(ADMIN).id == first
    assert states(store) == {base: "retired", first: "active", second: "previous"}
    store.activate(base, actor="job job-7")
    assert states(store) == {base: "active", first: "previous", second: "retired"}
    rows = AuditLog(database).list()
    assert [(row.actor, row.action, row.before, row.after) for row in rows] == [
        ("admin", "activate", base, first),
        ("admin", "activate", first, second),
        ("admin", "rollback", second, first),
        ("job job-7", "activate", first, base),
    ]
    assert (rows[0].key_id, rows[0].request_id) == ("key-1", "request-1")


def test_activating_the_active_one_changes_nothing(
    store: CheckpointStore, staged: list[str], database: Database
) -> None:
    assert store.activate(staged[0], actor=ADMIN).state == "active"
    assert store.previous() is None
    assert AuditLog(database).list() == []


def test_what_must_not_be_activated_is_not(store: CheckpointStore, staged: list[str]) -> None:
    with pytest.raises(CheckpointConflict, match="never verified"):
        store.activate(staged[1], actor=ADMIN)
    with pytest.raises(CheckpointConflict, match="no previous"):
        store.rollback(ADMIN)
    with pytest.raises(CheckpointNotFound):
        store.activate("absent@sha256:000000000000", actor=ADMIN)
    active = store.active()
    assert active is not None
    assert active.id == staged[0]


def test_failed_gate_needs_force_which_is_written_down(
    store: CheckpointStore, staged: list[str], database: Database
) -> None:
    store.verify(staged[1])
    store.record_gate(staged[1], False, ["The utility fell by 9%."])
    with pytest.raises(GateFailed, match="fell by 9%"):
        store.activate(staged[1], actor=ADMIN)
    assert store.activate(staged[1], actor=ADMIN, forced=True).state == "active"
    assert [row.action for row in AuditLog(database).list()] == ["force"]


def test_deployment_serves_what_it_served_last(
    store: CheckpointStore, staged: list[str], database: Database, tmp_path: Path
) -> None:
    store.verify(staged[1])
    store.activate(staged[1], actor=ADMIN)
    again = CheckpointStore(database, tmp_path / "checkpoints")
    assert again.open_deployment(staged[0]).id == staged[1]
    assert again.open_deployment(staged[2]).id == staged[2]
    assert CheckpointStore(database, tmp_path / "checkpoints").active() is None


def test_one_is_active_whatever_happens_at_the_same_time(
    store: CheckpointStore, staged: list[str], database: Database
) -> None:
    for checkpoint in staged:
        store.verify(checkpoint)
    failures: list[Exception] = []

    def activate(checkpoint: str) -> None:
        try:
            for _ in range(5):
                store.activate(checkpoint, actor=checkpoint)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=activate, args=(name,)) for name in staged]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(states(store).values()) in (
        ["active", "previous", "retired"],
        ["active", "previous", "verified"],
    )
    log = AuditLog(database)
    assert log.verify().problem is None
    rows = log.list()
    assert all(row.before == last.after for last, row in pairwise(rows))
    active = store.active()
    assert active is not None
    assert active.id == rows[-1].after


def test_manifest_is_plain_json(store: CheckpointStore, staged: list[str]) -> None:
    record = store.get(staged[1])
    assert set(record.files) == {"delta.json", "projector.safetensors"}
    assert json.loads((record.path / "delta.json").read_text())["base"] == "tiny"


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", '{"a": "\\ud800"', "\udcff"])
def test_a_manifest_that_cannot_be_read_is_refused(models: Path, content: str) -> None:
    (models / "first" / "delta.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"delta\.json"):
        read_content(models / "first")
