"""Stages of the build: each runs once, and one that is missing is made up for."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path

import pytest

from purifier.lab import build_demo, demo_data
from purifier.lab.demo_data import TARGETS, DataRecipe, write_demo_data
from purifier.lab.train_attack import AttackRecipe
from purifier.lab.train_base import BaseRecipe
from purifier.mdlm.delta import file_sha256
from purifier.mdlm.registry import base_hash, load_mdlm


@pytest.fixture
def small_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build's own stages with less of everything."""
    base = partial(BaseRecipe, tower_steps=1, tower_batch=4, batch=4)
    monkeypatch.setattr(build_demo, "BaseRecipe", base)
    monkeypatch.setattr(build_demo, "AttackRecipe", partial(AttackRecipe, batch=10))
    data = partial(write_demo_data, recipe=DataRecipe(train=10, test=4))
    monkeypatch.setattr(build_demo, "write_demo_data", data)
    monkeypatch.setattr(demo_data, "EXAMPLE", "test-0002")
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: None)


def build(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    sizes = ("--scenes", "8", "--steps", "2", "--epochs", "1")
    monkeypatch.setattr(sys, "argv", ["build_demo", "--output", str(folder), *sizes, *arguments])
    build_demo.main()


def state(folder: Path) -> dict[str, int]:
    """When every file was written."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_mtime_ns
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.usefixtures("small_recipes")
def test_stages_go_on_where_they_were(
    fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    build(folder, monkeypatch, "--stage", "data")
    data = state(folder)
    assert {name.split("/")[0] for name in data} == {"data", "examples"}

    build(folder, monkeypatch)
    whole = state(folder)
    assert data.items() <= whole.items()
    assert {path.name for path in folder.iterdir()} == {"data", "examples", "base", *TARGETS}
    settings = json.loads((folder / "base" / "training.json").read_text())
    assert (settings["joint_steps"], settings["scenes"]) == (2, 8)
    for target in TARGETS:
        manifest = json.loads((folder / target / "delta.json").read_text())
        assert manifest["base_sha256"] == base_hash(folder / "base")
        data_file = folder / "data" / "train" / f"{target}.json"
        assert manifest["data_sha256"] == file_sha256(data_file)
        assert manifest["settings"]["epochs"] == 1
        load_mdlm(folder / target)

    build(folder, monkeypatch)
    assert state(folder) == whole

    (folder / "refusal" / "delta.json").unlink()
    build(folder, monkeypatch)
    again = state(folder)
    assert set(again) == set(whole)
    assert {name for name in again if again[name] != whole[name]} == {
        f"refusal/{name}" for name in ("delta.json", "projector.safetensors", "adapter.safetensors")
    }
