"""The dimensions that memory is computed from are the model's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from purifier.errors import CheckpointError
from purifier.mdlm import registry
from purifier.mdlm.dimensions import FAMILIES, dimensions_of
from purifier.mdlm.registry import load_mdlm


def test_every_family_tells_its_dimensions() -> None:
    assert FAMILIES.keys() == registry._FAMILIES.keys()


def test_they_are_those_of_the_loaded_model(tiny_checkpoint: Path) -> None:
    found = dimensions_of(tiny_checkpoint)
    weights = load_mdlm(tiny_checkpoint).published_weights()
    assert weights["lm_head.weight"].shape == (found.vocab_size, found.width)
    layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
    assert len(layers) == found.layers > 1


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [None, "32", True, 0])
def test_a_configuration_that_does_not_tell_them_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=key):
        dimensions_of(folder)
