"""A worker says with numbers that a model does not fit, before it loads anything."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from purifier.defense.defend import POSITIONS_TOGETHER
from purifier.errors import CheckpointError
from purifier.lab.demo_model import TINY_TEXT, TINY_VISION, write_layout
from purifier.mdlm.registry import load_mdlm
from server.jobs import memory
from server.jobs.__main__ import main
from server.jobs.memory import MemoryShort, need_of, require_memory
from tests.support.jobs import Site


def test_weights_are_counted_from_the_headers(tiny_checkpoint: Path) -> None:
    tensors = [load_file(file) for file in tiny_checkpoint.rglob("*.safetensors")]
    values = sum(tensor.numel() for file in tensors for tensor in file.values())
    assert need_of(tiny_checkpoint, "float32").weights == 4 * values
    assert need_of(tiny_checkpoint, "bfloat16").weights == 2 * values


def test_activations_grow_with_the_batch(tiny_checkpoint: Path) -> None:
    one, eight, more = (need_of(tiny_checkpoint, "float32", n).activations for n in (1, 8, 16))
    assert more == 2 * eight > 8 * one


def test_keys_and_values_of_relabelling_are_counted(tiny_checkpoint: Path) -> None:
    mdlm = load_mdlm(tiny_checkpoint)
    stored = mdlm.key_values(POSITIONS_TOGETHER)
    assert need_of(tiny_checkpoint, "float32").activations >= 3 * stored.stored.nbytes


def test_a_model_that_does_not_fit_is_refused_with_numbers(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_memory(tiny_checkpoint, "cpu", "float32")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    with pytest.raises(MemoryShort) as caught:
        require_memory(tiny_checkpoint, "cpu", "float32")
    assert re.search(r"needs about \d+\.\d\d GiB on cpu in float32", str(caught.value))
    assert "0.00 GiB are free" in str(caught.value)
    assert "--dtype bfloat16" in str(caught.value)


def huge(folder: Path) -> Path:
    """A checkpoint of 400 billion values, in a file with a hole where they would be."""
    write_layout(folder, TINY_VISION, TINY_TEXT)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 126464}
    (folder / "config.json").write_text(json.dumps(config))
    size = 4 * 1000 * 400_000_000
    header = {"w": {"dtype": "F32", "shape": [1000, 400_000_000], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, file.stat().st_size + size)
    return folder


def test_the_command_refuses_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data-dir", str(tmp_path / "home"), "--device", "cpu", "--dtype", "bfloat16"]
    assert main([*words, "--model", str(huge(tmp_path / "huge"))]) == 2
    error = capsys.readouterr().err
    assert "huge needs about 75" in error
    assert "GiB are free" in error


def test_a_waiting_job_says_why_nobody_takes_it(
    site: Site, tmp_path: Path, tiny_checkpoint: Path, labels: Path
) -> None:
    from server.jobs.spec import Sources
    from tests.support.jobs import small_spec

    sources = Sources(model=huge(tmp_path / "huge"), data=labels, images=labels.parent)
    job = site.service.create(small_spec(tiny_checkpoint), sources, key_id=None)
    words = ["--data-dir", str(site.home.root), "--device", "cpu", "--name", "small"]
    assert main(words) == main(words) == 2
    told = [event for event in site.service.events(job.id) if event.level == "warn"]
    assert len(told) == 1
    assert told[0].message.startswith("Worker small cannot do this job: huge needs about")
    assert site.service.get(job.id).status == "queued"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = huge(tmp_path / "huge")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        need_of(folder, "float32")


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_model_that_does_not_say_how_large_it_is_is_not_taken_for_a_small_one(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = huge(tmp_path / "huge")
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=key):
        need_of(folder, "float32")
    words = ["--data-dir", str(tmp_path / "home"), "--device", "cpu", "--model", str(folder)]
    assert main(words) == 2
    assert key in capsys.readouterr().err
