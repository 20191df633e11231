"""Workers that share a database and a remote store with the server, and no folder.

The store is one that fsspec reaches and that is no folder of this machine to the service: whatever
is read or written goes through the file system's interface. Another one is on a server that speaks
S3; `DISP_TEST_STORE` names a third, such as `s3://bucket`, which the same job then goes through.
"""

from __future__ import annotations

import os
import shutil
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest

from purifier.mdlm.registry import checkpoint_id, load_mdlm
from server.config import UploadLimits
from server.data_sets import DataSets
from server.jobs.spec import Sources
from server.store.checkpoints import CheckpointStore
from server.store.files import FileStore
from server.store.jobs import JobRecord
from tests.support.job_worker import HALTS, Forge
from tests.support.jobs import Site, small_spec, write_rows
from tests.support.s3 import s3_server, s3_url

__all__ = ["s3_server", "s3_url"]

STORES = ["dir", "s3"] + (["given"] if "DISP_TEST_STORE" in os.environ else [])


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "given":
        return f"{os.environ['DISP_TEST_STORE']}/{uuid.uuid4().hex}"
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_url')}/disp"
    (tmp_path / "shared").mkdir()
    return f"dir::file://{tmp_path}/shared"


@pytest.fixture
def server(url: str, tmp_path: Path) -> Any:
    site = Site(tmp_path / "server", store=url)
    yield site
    site.close()


def upload(site: Site, rows: Path, folder: Path) -> str:
    """What the server makes of an archive of labels and images."""
    packed = folder / "rows.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in rows.parent.iterdir():
            archive.write(file, f"my rows/{file.name}")
    files = FileStore(site.database, site.home.files, UploadLimits(), site.store)
    with files.receive() as incoming:
        incoming.write(packed.read_bytes())
        return files.add(incoming, filename="rows.zip", purpose="fine-tune", key_id=None).id


def submit(site: Site, model: Path, data_id: str) -> JobRecord:
    """Creates a job as the API does, of a server whose folders no worker sees."""
    files = FileStore(site.database, site.home.files, UploadLimits(), site.store)
    root = DataSets(files, {}).find(data_id, "training_file")
    checkpoints = CheckpointStore(site.database, site.home.checkpoints)
    registered = checkpoints.register(model)
    elsewhere = Path("/server/models") / model.name
    sources = Sources(elsewhere, Path("/server") / root.path.relative_to(site.home.root))
    spec = small_spec(model, training_file=data_id)
    assert spec.model == registered.id
    return site.service.create(spec, sources, key_id=None)


def shared_by_workers(server: Site, url: str, models: Path) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    database = server.home.database_url
    return {"url": database, "store": url, "models": str(models), "env": env}


def test_a_job_needs_no_common_folder(
    forge: Forge,
    server: Site,
    url: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    undisturbed: tuple[Site, str, dict[str, Any]],
) -> None:
    rows = write_rows(tmp_path / "rows")
    models = tmp_path / "worker-models"
    shutil.copytree(tiny_checkpoint, models / tiny_checkpoint.name)
    job = submit(server, tiny_checkpoint, upload(server, rows, tmp_path))
    shared = shared_by_workers(server, url, models)
    first = forge.start(
        {"home": str(tmp_path / "one"), "name": "one", **shared}, {"call": "tuning_progress"}
    )
    first.wait_until_halted()
    first.kill()
    second = forge.start({"home": str(tmp_path / "two"), "name": "two", **shared})
    ended = server.finished(job, second)
    second.kill()
    assert ended.status == "succeeded", ended.error
    assert ended.result is not None
    # The server finds in the store what the worker made in its own folder.
    checkpoints = CheckpointStore(server.database, server.home.checkpoints, store=server.store)
    assert not checkpoints.path(ended.result).exists()
    verified = checkpoints.verify(ended.result)
    assert checkpoint_id(verified.path) == ended.result
    assert load_mdlm(verified.path)
    assert [entry.name for entry in server.home.jobs.iterdir()] == []
    before, job_id, result = undisturbed
    assert ended.result == result["checkpoint"]
    merged = server.store.read(f"jobs/{job.id}/merged/train.json")
    assert merged == (before.home.jobs / job_id / "merged" / "train.json").read_bytes()
    losses = server.store.folder_manifest(f"jobs/{job.id}/tuned")["facts"]["loss"]
    assert [step for step, _ in losses] == [1, 2]
    assert server.store.list(f"jobs/{job.id}/tuning") == []


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_every_worker_dies_and_the_next_one_has_a_folder_of_its_own(
    forge: Forge,
    server: Site,
    url: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    undisturbed: tuple[Site, str, dict[str, Any]],
) -> None:
    """Killed in every stage; what goes on is in the store and the database alone."""
    rows = write_rows(tmp_path / "rows")
    models = tmp_path / "worker-models"
    shutil.copytree(tiny_checkpoint, models / tiny_checkpoint.name)
    job = submit(server, tiny_checkpoint, upload(server, rows, tmp_path))
    shared = shared_by_workers(server, url, models)
    kept: set[str] = set()
    for number, halt in enumerate(HALTS):
        home = tmp_path / f"worker-{number}"
        worker = forge.start({"home": str(home), "name": f"worker-{number}", **shared}, halt)
        worker.wait_until_halted()
        worker.kill()
        shutil.rmtree(home)
        finished = {key for key in server.store.list(f"jobs/{job.id}") if "/tuning/" not in key}
        assert kept <= finished
        kept = finished
    last = forge.start({"home": str(tmp_path / "last"), "name": "last", **shared})
    ended = server.finished(job, last)
    last.kill()
    assert ended.status == "succeeded", ended.error
    before, job_id, result = undisturbed
    assert ended.result == result["checkpoint"]
    merged = server.store.read(f"jobs/{job.id}/merged/train.json")
    assert merged == (before.home.jobs / job_id / "merged" / "train.json").read_bytes()
