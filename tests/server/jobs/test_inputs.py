"""A job's model and data sets, found by their ids on a machine that is not the server's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from purifier.data.dataset import open_dataset
from purifier.errors import CheckpointError
from purifier.mdlm.registry import checkpoint_id, load_mdlm
from server.config import UploadLimits
from server.data_sets import DataOptions, DataRoot
from server.errors import CheckpointDamaged
from server.jobs.__main__ import _config, _parser
from server.jobs.inputs import Inputs
from server.jobs.job import Job
from server.jobs.spec import JobSpec, Sources
from server.store.blobs import BlobStore
from server.store.checkpoint_fetch import tuned_folder
from server.store.checkpoints import CheckpointStore
from server.store.database import Database
from server.store.files import FileStore
from server.store.home import Home
from tests.server.store.test_checkpoints import make_delta
from tests.support.job_server import data_archive

GONE = Path("/server/that/is/elsewhere")


class Machine:
    """A worker's machine: its data folder, and what it shares with the server."""

    def __init__(self, root: Path, database: Database, url: str) -> None:
        self.home = Home.at(root).create()
        self.store = BlobStore(url, cache=root / "cache")
        self.checkpoints = CheckpointStore(database, self.home.checkpoints, store=self.store)

    def inputs(
        self, roots: dict[str, DataRoot] | None = None, models: Path | None = None
    ) -> Inputs:
        return Inputs(self.home, self.store, self.checkpoints, roots, models)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/disp.sqlite")
    database.create_tables()
    yield database
    database.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "shared").mkdir()
    return f"dir::file://{tmp_path}/shared"


@pytest.fixture
def server(tmp_path: Path, database: Database, url: str) -> Machine:
    return Machine(tmp_path / "server", database, url)


@pytest.fixture
def worker(tmp_path: Path, database: Database, url: str) -> Machine:
    return Machine(tmp_path / "worker", database, url)


def job(data_id: str, data: Path, model: str = "m@sha256:0", path: Path = GONE) -> Job:
    return Job("ftjob-1", JobSpec(model=model, training_file=data_id), Sources(path, data))


def test_an_upload_comes_out_of_the_shared_store(
    server: Machine, worker: Machine, database: Database
) -> None:
    files = FileStore(database, server.home.files, UploadLimits(), server.store)
    with files.receive() as incoming:
        incoming.write(data_archive(rows=3, folder="my rows/"))
        made = files.add(incoming, filename="x.zip", purpose="fine-tune", key_id=None)
    recorded = GONE / files.data(made.id).relative_to(server.home.root)
    asked = job(made.id, recorded)
    for _ in range(2):
        found = worker.inputs().localised(asked).sources
        dataset = open_dataset(found.data)
        assert dataset.fingerprint() == open_dataset(files.data(made.id)).fingerprint()
        assert (dataset.images / "0.png").is_file()
        assert found.data.is_relative_to(worker.home.root)
    assert found.missing() == ["model"]
    files.delete(made.id)
    assert server.store.list("files") == []
    # Where the data folder is shared, or copied, the store is not asked.
    shutil.rmtree(worker.home.uploads)
    assert worker.inputs().localised(asked).sources.data == recorded
    (worker.home.files / made.id / "unpacked" / "my rows").mkdir(parents=True)
    own = worker.home.files / recorded.relative_to(GONE / "files")
    assert worker.inputs().localised(asked).sources.data == own


def test_data_sets_are_where_this_worker_was_told(worker: Machine, tmp_path: Path) -> None:
    labels, images = tmp_path / "own.json", tmp_path / "pictures"
    recorded = tmp_path / "servers.json"
    recorded.touch()
    inputs = worker.inputs({"big": DataRoot(labels, images)})
    found = inputs.localised(job("dataset:big", recorded)).sources
    assert (found.data, found.images) == (labels, images)
    other = inputs.localised(job("dataset:other", recorded)).sources
    assert (other.data, other.images) == (recorded, None)
    tested = job("dataset:other", recorded)
    tested = replace(
        tested,
        spec=replace(tested.spec, validation_file="dataset:big"),
        sources=replace(tested.sources, test=GONE),
    )
    found = inputs.localised(tested).sources
    assert (found.data, found.test, found.test_images) == (recorded, labels, images)


def test_the_demo_data_lie_in_every_installation(
    worker: Machine, server: Machine, database: Database
) -> None:
    files = FileStore(database, server.home.files, UploadLimits(), server.store)
    shipped = DataOptions(demo="refusal").open(files).find("demo", "training_file")
    assert shipped.images is not None
    asked = job("demo", GONE / "train" / shipped.path.name)
    asked = replace(asked, sources=replace(asked.sources, images=GONE / "train" / "images"))
    found = worker.inputs().localised(asked).sources
    assert (found.data, found.images) == (shipped.path, shipped.images)


def test_a_model_is_where_this_worker_was_told(
    worker: Machine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_checkpoint, models / "tiny")
    name = checkpoint_id(tiny_checkpoint)
    assert worker.inputs(models=models).model(name, GONE) == models / "tiny"
    assert worker.inputs(models=models).model("other@sha256:0", GONE) == GONE
    assert worker.inputs().model(name, tiny_checkpoint) == tiny_checkpoint
    with pytest.raises(CheckpointError, match="another checkpoint than tiny@sha256:0"):
        worker.inputs(models=models).model("tiny@sha256:0", GONE)


def test_what_a_job_made_elsewhere_comes_out_of_the_shared_store(
    server: Machine, worker: Machine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_checkpoint, models / "tiny")
    delta = make_delta(models / "tiny", tmp_path / "healed", 3)
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    base = server.checkpoints.register(tmp_path / "tiny").id
    made = server.checkpoints.stage(delta, base=base, parent=base, job_id="ftjob-0")
    server.store.put_folder(tuned_folder("ftjob-0"), delta)
    # The server's folders are not there on the worker's machine.
    shutil.rmtree(server.home.checkpoints)
    shutil.rmtree(tmp_path / "tiny")
    found = worker.inputs(models=models).model(made.id, GONE)
    assert found.is_relative_to(worker.home.checkpoints)
    assert checkpoint_id(found) == made.id
    assert load_mdlm(found)
    assert worker.inputs(models=models).model(made.id, GONE) == found
    assert [path.name for path in worker.home.checkpoints.iterdir()] == [made.sha256[:12]]


def test_what_the_store_has_damaged_is_refused(
    server: Machine, worker: Machine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    delta = make_delta(tmp_path / "tiny", tmp_path / "healed", 3)
    base = server.checkpoints.register(tmp_path / "tiny").id
    made = server.checkpoints.stage(delta, base=base, parent=base, job_id="ftjob-0")
    with pytest.raises(CheckpointDamaged, match="not on this machine"):
        worker.inputs().model(made.id, GONE)
    manifest = json.loads((delta / "delta.json").read_text())
    (delta / "delta.json").write_text(json.dumps(manifest | {"seed": 4}))
    server.store.put_folder(tuned_folder("ftjob-0"), delta)
    with pytest.raises(CheckpointDamaged, match="not whole in the shared store"):
        worker.inputs().model(made.id, GONE)
    assert list(worker.home.checkpoints.iterdir()) == []


def test_the_command_line_names_them(tmp_path: Path, tiny_checkpoint: Path) -> None:
    labels = tmp_path / "train.json"
    labels.write_text(json.dumps([{"question": "Q?", "answer": "A."}]))
    words = ["--dataset-root", f"big={labels}", "--dataset-images", f"big={tmp_path}"]
    config = _config(_parser().parse_args([*words, "--model-root", str(tmp_path)]))
    assert dict(config.roots) == {"big": DataRoot(labels, tmp_path)}
    assert config.models == tmp_path
