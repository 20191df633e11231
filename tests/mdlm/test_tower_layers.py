"""A tower with other layers than its configuration counts is refused, never half loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from purifier import CheckpointError, load_mdlm
from purifier.lab.demo_model import TOWER
from purifier.mdlm.registry import outline
from purifier.mdlm.shards import INDEX, SINGLE

TOWER_LAYERS_HELD = 2
"""Of the tiny model; the configuration says 3, for the last one is dropped."""
TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model.encoder.layers."


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def say(file: Path, layers: int) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": layers}))


def add_tower_layers(folder: Path, upto: int) -> None:
    """Copies of the tower's first layer behind the last one, in a shard of their own."""
    tensors = load_file(folder / SINGLE)
    first = {name: tensor for name, tensor in tensors.items() if f"{TOWER_PREFIX}0." in name}
    further = {
        name.replace(f"{TOWER_PREFIX}0.", f"{TOWER_PREFIX}{number}."): tensor.clone()
        for number in range(TOWER_LAYERS_HELD, upto)
        for name, tensor in first.items()
    }
    (folder / SINGLE).rename(folder / "a.safetensors")
    save_file(further, folder / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | dict.fromkeys(further, "b.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(("named", "held"), [(2, 3), (3, 4), (4, 2), (3, 9)])
def test_another_number_of_tower_layers(folder: Path, named: int, held: int) -> None:
    if held > TOWER_LAYERS_HELD:
        add_tower_layers(folder, held)
    say(folder / TOWER / "config.json", named)
    with pytest.raises(CheckpointError) as caught:
        load_mdlm(folder)
    assert f"{TOWER}/config.json says num_hidden_layers is {named}" in caught.value.message
    assert f"hold {held} layers of the vision tower" in caught.value.message
    assert f"{TOWER_PREFIX}{held - 1}." in caught.value.message
    assert ("b.safetensors" if held > TOWER_LAYERS_HELD else SINGLE) in caught.value.message


@pytest.mark.parametrize("held", [2, 3])
def test_the_towers_last_layer_may_be_there_or_not(folder: Path, held: int) -> None:
    if held > TOWER_LAYERS_HELD:
        add_tower_layers(folder, held)
    assert load_mdlm(folder).family == "llada_v"


def test_an_outline_has_names_and_shapes_and_no_weights(folder: Path) -> None:
    weights = load_mdlm(folder).published_weights()
    drawn = outline(folder).published_weights()
    assert drawn.keys() == weights.keys()
    for name, tensor in drawn.items():
        assert tensor.device == torch.device("meta")
        assert tensor.shape == weights[name].shape
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:-1000])
    with pytest.raises(CheckpointError, match="cut short"):
        outline(folder)


def test_an_outline_is_checked_like_a_model(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        outline(folder)
