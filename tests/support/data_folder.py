"""Makes the small data folder that later versions of the service must open.

`python -m tests.support.data_folder FILE.tar.gz` packs

    model/           the served checkpoint
    home/            the data folder on SQLite
    postgresql.sql   the same tables from PostgreSQL, as SQL

The folder holds an upload, a job that has succeeded, a job whose worker was killed after its first
shard, the checkpoints, the deployment, a request to it and the audit log. Run it before a change
of the tables, and keep what it made in `tests/server/store/folders`, named by the schema version.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from purifier.lab.demo_model import write_random_checkpoint
from server.config import UploadLimits
from server.jobs.spec import Sources
from server.store.checkpoints import CheckpointStore
from server.store.database import Database, metadata
from server.store.deployments import Deployments
from server.store.files import FileStore
from server.store.workers import workers
from tests.support.job_worker import Forge, running_forge
from tests.support.jobs import Site, recorded_as_done, small_spec, write_rows
from tests.support.old_folders import RUNNING, SUCCEEDED
from tests.support.postgres import running_cluster

KEY = "key-of-alice"
DATABASE = "disp"


def make(place: Path) -> None:
    """Makes everything in an empty folder."""
    model = place / "model"
    write_random_checkpoint(model, seed=0)
    site = Site(place / "home")
    checkpoints = CheckpointStore(site.database, site.home.checkpoints)
    checkpoints.open_deployment(checkpoints.register(model).id)
    upload = _upload(site)
    with running_forge(model) as forge:
        _succeed(site, forge, model, upload)
        _interrupt(site, forge, model, upload)
    assert checkpoints.deployment is not None
    deployments = Deployments(site.database)
    deployments.beat("server-1", checkpoints.deployment, checkpoints.deployment)
    newest = checkpoints.list()[0]
    assert deployments.request(newest.id, requested_by="job of old") is not None
    deployments.leave("server-1")
    checkpoints.activate(newest.id, actor="alice")
    # The folder must be the same wherever it is made.
    with site.database.transaction() as connection:
        connection.execute(update(workers).values(machine="machine-a boot-a 1"))
    _dump(site, place / "postgresql.sql")
    site.close()
    with closing(sqlite3.connect(site.home.root / "disp.sqlite", isolation_level=None)) as file:
        file.execute("VACUUM")
        file.execute("PRAGMA journal_mode = DELETE")
    for reached in site.home.root.glob("reached-*"):
        reached.unlink()
    shutil.rmtree(site.home.scratch)


def _upload(site: Site) -> str:
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder) / "rows")
        packed = Path(folder) / "rows.zip"
        with zipfile.ZipFile(packed, "w") as archive:
            for file in sorted(rows.parent.iterdir()):
                archive.write(file, f"my rows/{file.name}")
        files = FileStore(site.database, site.home.files, UploadLimits(), site.store)
        with files.receive() as incoming:
            incoming.write(packed.read_bytes())
            return files.add(incoming, filename="rows.zip", purpose="fine-tune", key_id=KEY).id


def _create(site: Site, model: Path, upload: str, key: str, **changes: Any) -> Any:
    files = FileStore(site.database, site.home.files, UploadLimits(), site.store)
    spec = small_spec(model, training_file=upload, **changes)
    return site.service.create(
        spec, Sources(model, files.data(upload)), key_id=KEY, idempotency_key=key
    )


def _succeed(site: Site, forge: Forge, model: Path, upload: str) -> None:
    job = _create(site, model, upload, SUCCEEDED)
    worker = forge.start(site.config("worker-old"))
    ended = site.finished(job, worker)
    assert ended.status == "succeeded", ended.error
    while not recorded_as_done(site):
        pass
    worker.kill()


def _interrupt(site: Site, forge: Forge, model: Path, upload: str) -> None:
    job = _create(site, model, upload, RUNNING, seed=6)
    halt = {"key": "jobs/*/shards/00001.json", "when": "before"}
    worker = forge.start(site.config("worker-old-too"), halt)
    worker.wait_until_halted()
    worker.kill()
    assert site.service.get(job.id).status == "running"


def _dump(site: Site, file: Path) -> None:
    """Copies every row to PostgreSQL and writes what `pg_dump` says."""
    with running_cluster() as cluster:
        cluster.execute(f"CREATE DATABASE {DATABASE}")
        with closing(Database(cluster.url(DATABASE))) as target:
            target.create_tables()
            _copy_rows(site.database, target)
        words = ["--inserts", "--no-owner", "--no-privileges", "--schema=public"]
        words += ["--host=127.0.0.1", f"--port={cluster.port}", "--username=disp", DATABASE]
        text = subprocess.run(
            [_pg_dump(cluster.binaries), *words], capture_output=True, text=True, check=True
        ).stdout
    # Lines that only psql understands, and the schema that every database has.
    left_out = ("\\", "CREATE SCHEMA public", "COMMENT ON SCHEMA", "--")
    lines = [line for line in text.splitlines() if line and not line.startswith(left_out)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _pg_dump(binaries: Path) -> Path:
    beside = binaries / "pg_dump"
    found = [beside, *sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))]
    return next(file for file in found if file.is_file())


def _copy_rows(source: Database, target: Database) -> None:
    with source.transaction() as reading, target.transaction() as writing:
        for table in metadata.sorted_tables:
            rows = [dict(row._mapping) for row in reading.execute(select(table))]
            if rows:
                writing.execute(table.insert(), rows)
            if "number" in table.c and table.c.number.autoincrement is True:
                name = f"pg_get_serial_sequence('{table.name}', 'number')"
                writing.exec_driver_sql(
                    f"SELECT setval({name}, (SELECT coalesce(max(number), 1) FROM {table.name}))"
                )


def main(file: str) -> None:
    """Packs a new folder."""
    with tempfile.TemporaryDirectory(prefix="disp-folder-") as place:
        make(Path(place))
        with tarfile.open(file, "x:gz", format=tarfile.PAX_FORMAT) as archive:
            for name in ("model", "home", "postgresql.sql"):
                archive.add(Path(place) / name, name, filter=_nobodys)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(sys.argv[1])
