"""`disp checkpoints export`: a checkpoint of a data folder, written for use elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from purifier.lab.demo import checkpoint_path
from purifier.mdlm.registry import load_mdlm
from server.store.__main__ import main
from server.store.checkpoints import CheckpointStore
from server.store.database import open_database
from server.store.home import Home

Output = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "data").create()


@pytest.fixture
def checkpoint(home: Home, tmp_path: Path) -> str:
    """Id of a staged delta whose base lies elsewhere, as a server that was started with it has."""
    shutil.copytree(checkpoint_path("base"), tmp_path / "models" / "base")
    database = open_database(home.database_url)
    store = CheckpointStore(database, home.checkpoints)
    base = store.register(tmp_path / "models" / "base")
    staged = store.stage(checkpoint_path("insertion"), base=base.id, parent=base.id)
    database.close()
    return staged.id


def export(home: Home, *words: str) -> int:
    return main(["export", *words, "--data-dir", str(home.root)])


def test_merged_and_loaded(home: Home, checkpoint: str, tmp_path: Path, capsys: Output) -> None:
    output = tmp_path / "merged"
    assert export(home, checkpoint, "--merge", "--output", str(output)) == 0
    assert capsys.readouterr().out == f"{output}\n"
    found = load_mdlm(output).published_weights()
    for name, weight in load_mdlm(checkpoint_path("insertion")).published_weights().items():
        assert torch.equal(found[name], weight)


def test_the_checkpoints_name_is_the_folders(
    home: Home, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export(home, checkpoint, "--adapter") == 0
    assert sorted(path.name for path in (tmp_path / "here" / "insertion").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "projector.safetensors",
    ]


def test_dtype(home: Home, checkpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    words = [checkpoint, "--merge", "--dtype", "bfloat16", "--output", str(output)]
    assert export(home, *words) == 0
    found = load_mdlm(output, dtype="bfloat16").published_weights()
    expected = load_mdlm(checkpoint_path("insertion"), dtype="bfloat16").published_weights()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ID", "--adapter", "--dtype", "float32"], "--dtype is for merged weights"),
        (["other@sha256:0", "--merge"], "no checkpoint"),
        (["ID", "--merge", "--output", "taken"], "exists already"),
    ],
)
def test_refusals(
    home: Home,
    checkpoint: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.iterdir())
    assert export(home, *(checkpoint if word == "ID" else word for word in words)) == 1
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_checkpoint_is_named_and_not_exported(
    home: Home, checkpoint: str, tmp_path: Path, capsys: Output
) -> None:
    (file,) = home.checkpoints.glob("*/insertion/adapter.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert export(home, checkpoint, "--merge", "--output", str(tmp_path / "out")) == 1
    assert "adapter.safetensors was altered or damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [[], ["--merge", "--adapter"]])
def test_one_form_is_chosen(home: Home, form: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        export(home, "x", *form)
    assert ended.value.code == 2
    assert "--adapter" in capsys.readouterr().err
