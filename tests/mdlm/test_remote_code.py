"""What happens to a config.json that names code: it is never run, and never in the way."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from purifier import CheckpointError, load_mdlm

AUTO_MAP = {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"}
"""As the published folder has it."""


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", ["config.json", "siglip_demo/config.json"])
@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"auto_map": AUTO_MAP}, "auto_map"),
        ({"auto_map": {"AutoModel": "evil/repo--evil.Model"}}, "auto_map"),
        ({"custom_pipelines": {"x": {"impl": "evil.Pipeline"}}}, "custom_pipelines"),
        ({"nested": [{"auto_map": AUTO_MAP}]}, "nested.0.auto_map"),
    ],
)
def test_named_code_of_a_known_family_is_ignored_with_a_line_in_the_log(
    folder: Path,
    name: str,
    changes: dict[str, object],
    shown: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _edit(folder / name, **changes)
    ran = folder / "ran"
    for module in ("modeling_llada.py", "evil.py"):
        (folder / module).write_text(f"open({str(ran)!r}, 'w')")
    with caplog.at_level(logging.INFO, logger="disp"):
        assert load_mdlm(folder).family == "llada_v"
    assert not ran.exists()
    lines = [record.getMessage() for record in caplog.records]
    assert any(f"{name} names code ({shown})" in line for line in lines), lines


def test_a_folder_without_named_code_says_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _edit(folder / "config.json", auto_map={}, custom_pipelines=None)
    with caplog.at_level(logging.INFO, logger="disp"):
        load_mdlm(folder)
    assert "names code" not in caplog.text


@pytest.mark.parametrize("key", ["auto_map", "custom_pipelines"])
@pytest.mark.parametrize(
    "unknown", [{"model_type": "dimple"}, {"architectures": ["DimpleModel"]}, {"architectures": []}]
)
def test_named_code_of_an_unknown_architecture_is_refused(
    folder: Path, key: str, unknown: dict[str, object]
) -> None:
    _edit(folder / "config.json", **unknown, **{key: AUTO_MAP})
    with pytest.raises(CheckpointError, match=f"{next(iter(unknown))}.*{key}.*never run"):
        load_mdlm(folder)


@pytest.mark.parametrize("name", ["config.json", "siglip_demo/config.json"])
@pytest.mark.parametrize("value", [True, "yes", 1])
def test_a_folder_may_not_ask_for_trust(folder: Path, name: str, value: object) -> None:
    _edit(folder / name, deep=[{"trust_remote_code": value}])
    with pytest.raises(CheckpointError, match=r"deep\.0\.trust_remote_code.*[Rr]emove"):
        load_mdlm(folder)


def test_trust_that_is_turned_off_is_no_request(folder: Path) -> None:
    _edit(folder / "config.json", trust_remote_code=False)
    assert load_mdlm(folder).family == "llada_v"


def test_the_message_stays_short(folder: Path) -> None:
    config = {f"{'k' * 500}{number}": {"auto_map": AUTO_MAP} for number in range(1000)}
    _edit(folder / "config.json", **config, architectures=["Other"])
    with pytest.raises(CheckpointError) as caught:
        load_mdlm(folder)
    assert len(caught.value.message) < 2500
