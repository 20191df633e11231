"""Data sets by id: named on the command line, found by requests, never a path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from purifier.data.dataset import open_dataset
from server.__main__ import main
from server.config import StartError, UploadLimits
from server.data_sets import DataOptions, parse_roots
from server.errors import DataFileNotFound, UnusableDataSet
from server.security.keys import SCOPES, create_key
from server.store.blobs import BlobStore
from server.store.database import open_database
from server.store.files import FileStore
from tests.support.job_server import data_archive, llava_row
from tests.support.service import Service, start_server, stop_server


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels" / "train.json"
    file.parent.mkdir()
    file.write_text(json.dumps([llava_row()]), "utf-8")
    return file


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    database = open_database(f"sqlite:///{tmp_path / 'disp.sqlite'}")
    return FileStore(database, tmp_path / "files", UploadLimits(), BlobStore(tmp_path / "blobs"))


def test_a_data_set_is_found_by_its_name(labels: Path, tmp_path: Path, files: FileStore) -> None:
    images = tmp_path / "pictures"
    images.mkdir()
    roots = parse_roots([f"a.b-1={labels}", f"folder={labels.parent}"], [f"a.b-1={images}"])
    sets = DataOptions(roots).open(files)
    assert sets.ids() == ["dataset:a.b-1", "dataset:folder"]
    found = sets.find("dataset:a.b-1", "training_file")
    assert (found.path, found.images, found.attack) == (labels, images, None)
    assert sets.find("dataset:folder", "validation_file").path == labels.parent
    for name in ("a.b-1", "dataset:", "dataset:b", f"dataset:{labels}", str(labels), "demo", ""):
        with pytest.raises(DataFileNotFound) as caught:
            sets.find(name, "training_file")
        assert caught.value.param == "training_file"
        assert str(tmp_path) not in caught.value.message


def test_a_data_set_that_has_gone_is_said_so(labels: Path, files: FileStore) -> None:
    sets = DataOptions(parse_roots([f"a={labels}"], [])).open(files)
    labels.unlink()
    with pytest.raises(UnusableDataSet) as caught:
        sets.find("dataset:a", "validation_file")
    assert caught.value.param == "validation_file"


@pytest.mark.parametrize("target", ["insertion", "refusal", "misclassification"])
def test_the_demo_names_the_poisoned_set_of_its_target(target: str, files: FileStore) -> None:
    sets = DataOptions(demo=target).open(files)  # type: ignore[arg-type]
    assert sets.ids() == ["demo"]
    training = sets.find("demo", "training_file")
    dataset = open_dataset(training.path, images=training.images)
    rows = list(dataset.rows(0, 5))
    assert (dataset.path.stem, len(rows)) == (target, 5)
    test = sets.find("demo", "validation_file")
    assert test.path.name == "test.json"
    assert test.attack is not None
    assert test.attack["target"] == target


@pytest.mark.parametrize(
    ("sets", "images", "message"),
    [
        (["x"], [], "takes NAME=PATH"),
        (["x="], [], "takes NAME=PATH"),
        (["=/tmp"], [], "takes NAME=PATH"),
        (["a/b=/tmp"], [], "takes NAME=PATH"),
        (["x=/nothing/there.json"], [], "does not exist"),
        (["x={labels}", "x={labels}"], [], "names x twice"),
        (["x={labels}"], ["y=/tmp"], "has no --dataset-root"),
        (["x={labels}"], ["x=/nothing"], "image folder"),
    ],
)
def test_a_bad_option_is_refused(
    labels: Path, sets: list[str], images: list[str], message: str
) -> None:
    with pytest.raises(StartError, match=message):
        parse_roots([text.format(labels=labels) for text in sets], images)


@pytest.mark.parametrize("size", ["0", "-1", "nan", "1e12"])
def test_a_bad_limit_of_uploads_is_refused(
    tiny_checkpoint: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny_checkpoint), "--insecure-no-auth", "--max-upload", size]
    assert main(options) == 2
    assert "--max-upload" in capsys.readouterr().err


def test_the_server_takes_its_options(tiny_checkpoint: Path, labels: Path, tmp_path: Path) -> None:
    secret, _ = create_key(tmp_path / "keys.json", "all", SCOPES)
    process, url = start_server(
        [
            *("--model", str(tiny_checkpoint), "--keys-file", str(tmp_path / "keys.json")),
            *("--dataset-root", f"mine={labels}", "--max-upload", "0.001", "--no-worker"),
        ]
    )
    try:
        with Service(url, {"all": secret}, process).client() as client:
            [listed] = client.get("/v1/datasets").raise_for_status().json()["data"]
            assert listed["id"] == "dataset:mine"
            form = {"data": {"purpose": "fine-tune"}, "files": {"file": data_archive()}}
            refused = client.post("/v1/files", **form)  # type: ignore[arg-type]
            assert refused.status_code == 413
            made = client.post("/v1/fine_tuning/jobs", json={"training_file": listed["id"]})
            assert made.status_code == 202
            assert made.json()["model"].startswith("tiny@sha256:")
    finally:
        assert stop_server(process) == 0
