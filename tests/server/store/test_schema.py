"""Versions of the tables: every step up and down, and the data folder of every older version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text

from server.config import UploadLimits
from server.errors import IdempotencyConflict
from server.jobs.spec import JobSpec, Sources
from server.store import workers  # noqa: F401 - its table
from server.store.__main__ import main
from server.store.audit import AuditLog
from server.store.checkpoints import CheckpointStore
from server.store.database import Database, DatabaseError, metadata, open_database
from server.store.files import FileStore
from server.store.home import Home
from server.store.schema import NEWEST, VERSION_TABLE, downgrade, upgrade, version_of
from tests.support.old_folders import FOLDERS, RUNNING, SUCCEEDED, Folder, restored, unpacked

VERSIONS = ("0001", "0002")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without any table."""
    url = f"sqlite:///{tmp_path}/empty.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with closing(Database(url)) as database:
        yield database


def version(database: Database) -> str | None:
    with database.reading() as connection:
        return version_of(connection)


def tables(database: Database) -> dict[str, set[str]]:
    """Columns by table, of the service's own tables."""
    found = inspect(database.engine)
    names = set(found.get_table_names()) - {VERSION_TABLE}
    return {name: {column["name"] for column in found.get_columns(name)} for name in names}


def test_the_steps_make_the_tables_that_the_code_works_with(empty: Database) -> None:
    empty.create_tables()
    assert version(empty) == NEWEST == VERSIONS[-1]
    options = {
        "version_table": VERSION_TABLE,
        "compare_type": True,
        "include_object": lambda item, name, kind, *_: (kind, name) != ("table", VERSION_TABLE),
    }
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_every_step_goes_up_and_down(empty: Database) -> None:
    seen = []
    for name in VERSIONS:
        upgrade(empty.engine, name)
        assert version(empty) == name
        seen.append(tables(empty))
    assert "request_sha256" in seen[1]["jobs"] - seen[0]["jobs"]
    for name in VERSIONS[-2::-1]:
        downgrade(empty.engine, name)
        assert tables(empty) == seen[VERSIONS.index(name)]
    downgrade(empty.engine, "base")
    assert tables(empty) == {}


def test_a_step_that_fails_changes_nothing(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(empty.engine, "0001")
    before = tables(empty)
    commit = empty.engine.dialect.do_commit

    def no_commit(connection: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(empty.engine.dialect, "do_commit", no_commit)
    with pytest.raises(RuntimeError, match="power cut"):
        upgrade(empty.engine)
    monkeypatch.setattr(empty.engine.dialect, "do_commit", commit)
    assert (version(empty), tables(empty)) == ("0001", before)
    upgrade(empty.engine)
    assert version(empty) == NEWEST


def test_a_folder_of_a_later_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home.at(tmp_path / "home").create()
    database = open_database(home.database_url)
    with database.transaction() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    database.close()
    with pytest.raises(DatabaseError, match="have version '9999'"):
        open_database(home.database_url)
    for act in (["schema", "upgrade"], ["schema", "downgrade", "0001"], ["audit", "list"]):
        assert main([*act, "--data-dir", str(home.root)]) == 2
        assert "Update it, or let the later version" in capsys.readouterr().err
    assert main(["schema", "show", "--data-dir", str(home.root)]) == 0
    assert capsys.readouterr().out == "version 9999 of 0002\n"


def test_the_command_shows_and_goes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home.at(tmp_path / "home").create()
    open_database(home.database_url).close()
    where = ["--data-dir", str(home.root)]
    assert main(["schema", "show", *where]) == 0
    assert main(["schema", "downgrade", "0001", *where]) == 0
    assert main(["schema", "show", *where]) == 0
    assert main(["schema", "upgrade", *where]) == 0
    said = ["version 0002 of 0002", "version 0001 of 0002", "version 0001 of 0002"]
    assert capsys.readouterr().out.splitlines() == [*said, "version 0002 of 0002"]
    assert main(["schema", "downgrade", "7", *where]) == 2
    assert "no version '7'" in capsys.readouterr().err


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name.partition(".")[0])
def archive(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def folder(request: pytest.FixtureRequest, archive: Path, tmp_path: Path) -> Iterator[Folder]:
    place, url = unpacked(archive, tmp_path / "old"), None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        restored(place / "postgresql.sql", url)
    folder = Folder(place, url)
    yield folder
    folder.database.close()


def test_the_folder_of_an_older_version_is_read(folder: Folder) -> None:
    assert version(folder.database) == NEWEST
    done, running = folder.job(SUCCEEDED), folder.job(RUNNING)
    assert (done.status, running.status) == ("succeeded", "running")
    assert [job.id for job in folder.service.list()] == [running.id, done.id]
    events = folder.service.events(done.id, limit=1_000)
    assert [event.number for event in events] == list(range(1, done.last_event + 1))
    report = json.loads(folder.service.report_file(done.id, "json").read_text())
    assert report["job"]["id"] == done.id
    files = FileStore(folder.database, folder.home.files, UploadLimits(), folder.store)
    assert {record.id for record in files.list()} == {done.training_file, *done.result_files}
    assert all(files.content(record).exists() for record in files.list())
    store = CheckpointStore(folder.database, folder.home.checkpoints)
    assert done.result is not None
    store.open_deployment(str(store.get(done.result).base))
    assert store.verify(done.result).state == "active"
    previous = store.previous()
    assert previous is not None
    assert store.verify(previous.id).path == folder.model
    log = AuditLog(folder.database)
    assert [row.action for row in log.list()] == ["activate"]
    assert log.verify().problem is None


def test_the_folder_of_an_older_version_is_worked_in(folder: Folder) -> None:
    """Also what counts on from where it was: numbers of jobs, files and rows of the audit log."""
    done, running = folder.job(SUCCEEDED), folder.job(RUNNING)
    spec = JobSpec(**done.spec)
    sources = Sources(model=folder.model, data=folder.model)
    again: dict[str, Any] = {
        "key_id": done.key_id,
        "idempotency_key": SUCCEEDED,
        "request_sha256": "0" * 64,
    }
    assert folder.service.create(spec, sources, **again).id == done.id
    with pytest.raises(IdempotencyConflict):
        folder.service.create(JobSpec(**running.spec), sources, **again)
    new = folder.service.create(spec, sources, key_id=None)
    assert new.number == running.number + 1
    assert folder.service.pause(running.id).status == "paused"
    assert folder.service.resume(running.id).attempt == running.attempt + 1
    store = CheckpointStore(folder.database, folder.home.checkpoints)
    assert done.result is not None
    store.open_deployment(str(store.get(done.result).base))
    store.rollback("test")
    log = AuditLog(folder.database)
    assert log.verify().rows == 2


def test_the_folder_of_an_older_version_goes_back(folder: Folder) -> None:
    """To the version before, with everything that this one knows."""
    upgraded = contents(folder.database)
    downgrade(folder.database.engine, "0001")
    upgrade(folder.database.engine)
    assert contents(folder.database) == upgraded


def contents(database: Database) -> dict[str, list[dict[str, Any]]]:
    with database.reading() as connection:
        return {
            table.name: [dict(row._mapping) for row in connection.execute(select(table))]
            for table in metadata.sorted_tables
        }
