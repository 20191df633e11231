"""Any file in place of a config.json gives a model's configuration or a `CheckpointError`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from purifier.errors import CheckpointError
from purifier.lab.demo_model import TINY_TEXT, TINY_VISION, TOWER, write_layout
from purifier.mdlm.llada_v.config import LladaVConfig, read_config
from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.mdlm.registry import check_folder
from tests.support.any_json import THOROUGH, VALUES, check_message

MOST_LAYERS_BUILT = 8


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout") / "model"
    write_layout(folder, TINY_VISION, TINY_TEXT)
    return folder


@pytest.fixture
def folder(layout: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(layout, tmp_path / "model"))


def keys_of(*parts: str) -> list[str]:
    """Keys of the valid file, and others that the reader knows."""
    known = ["rope_scaling", "auto_map", "trust_remote_code", "vision_config", "custom_pipelines"]
    return [*parts, *known]


CONFIG_KEYS = keys_of(
    *TINY_TEXT,
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
    "tie_word_embeddings",
    "mm_vision_tower",
    "mm_hidden_size",
    "mm_projector_type",
    "mm_patch_merge_type",
    "image_aspect_ratio",
    "image_grid_pinpoints",
    "tokenizer_model_max_length",
)
CHANGES = st.dictionaries(st.sampled_from(CONFIG_KEYS), VALUES, max_size=3)
TOWER_CHANGES = st.dictionaries(st.sampled_from(keys_of(*TINY_VISION)), VALUES, max_size=3)


def changed(file: Path, original: Path, changes: dict[str, Any], without: set[str]) -> None:
    value = {**json.loads(original.read_text()), **changes}
    file.write_text(json.dumps({key: part for key, part in value.items() if key not in without}))


def read(folder: Path) -> LladaVConfig | None:
    """The configuration, or None where it was refused."""
    try:
        architecture = check_folder(folder)
        config = read_config(folder)
    except CheckpointError as error:
        check_message(error.message)
        return None
    assert architecture == "LlavaLLaDAModelLM"
    return config


def check_usable(config: LladaVConfig) -> None:
    """What is accepted makes a model, and its numbers are ones to compute with."""
    assert config.max_length >= 1
    assert config.patches_per_side >= 1
    assert config.max_tiles is None or config.max_tiles >= 1
    if config.aspect_ratio.startswith("anyres"):
        assert config.pinpoints
    layers = config.text.num_hidden_layers + config.vision.num_hidden_layers
    if layers <= MOST_LAYERS_BUILT:
        with torch.device("meta"):
            modules = LladaVModules(config)
        assert len(modules.state_dict()) > layers


@THOROUGH
@given(
    changes=CHANGES,
    tower=TOWER_CHANGES,
    without=st.sets(st.sampled_from(CONFIG_KEYS), max_size=1),
)
@example(changes={"mm_vision_tower": "x" * 5000}, tower={}, without=set())
@example(changes={"rms_norm_eps": 10**400}, tower={}, without=set())
@example(changes={"rope_theta": float("inf")}, tower={}, without=set())
@example(changes={"image_aspect_ratio": "anyres_max_" + "9" * 5000}, tower={}, without=set())
@example(changes={"image_grid_pinpoints": "(" * 5000}, tower={}, without=set())
@example(
    changes={"image_grid_pinpoints": "(1x1),...,(99999999x9" + "9" * 5000 + ")"},
    tower={},
    without=set(),
)
@example(changes={"hidden_size": 2**80, "num_attention_heads": 1}, tower={}, without=set())
@example(changes={"attention_bias": "false"}, tower={}, without=set())
@example(changes={"num_attention_heads": 32, "num_key_value_heads": 32}, tower={}, without=set())
@example(changes={}, tower={"patch_size": 64}, without=set())
@example(changes={}, tower={"num_hidden_layers": 1}, without=set())
@example(changes={}, tower={"image_size": 2**40}, without=set())
def test_changed_configurations(
    folder: Path, layout: Path, changes: dict[str, Any], tower: dict[str, Any], without: set[str]
) -> None:
    changed(folder / "config.json", layout / "config.json", changes, without)
    changed(folder / TOWER / "config.json", layout / TOWER / "config.json", tower, without)
    config = read(folder)
    if config is not None:
        check_usable(config)


@THOROUGH
@given(content=st.one_of(st.binary(max_size=200), VALUES.map(lambda value: _dumped(value))))
@example(content=b"[" * 100_000)
@example(content=b'{"a":' * 900 + b"1" + b"}" * 900)
@example(content=b'{"hidden_size": ' + b"9" * 5000 + b"}")
@example(content=b"\xff\xfe{\x00}\x00")
@example(content=b"\xef\xbb\xbf{}")
@example(content=b'{"a": NaN}')
@example(content=b" " * (17 * 1024**2))
def test_any_content(folder: Path, layout: Path, content: bytes) -> None:
    shutil.copy(layout / "config.json", folder / "config.json")
    (folder / TOWER / "config.json").write_bytes(content)
    read(folder)
    (folder / "config.json").write_bytes(content)
    assert read(folder) is None
    with pytest.raises(CheckpointError):
        read_config(folder)


def test_numbers_that_would_make_another_model_are_refused(folder: Path, layout: Path) -> None:
    assert read(folder) is not None
    for changes in (
        {"attention_bias": "false"},
        {"tie_word_embeddings": True},
        {"num_attention_heads": 32, "num_key_value_heads": 32},
        {"mm_hidden_size": 1152},
        {"rope_theta": float("inf")},
    ):
        changed(folder / "config.json", layout / "config.json", changes, set())
        assert read(folder) is None, changes


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
