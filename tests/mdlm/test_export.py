"""A checkpoint as plain weights: the same numbers, in the hub's layout, with little memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from purifier import CheckpointError, InvalidSetting, load_mdlm
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.demo_model import TINY_TEXT, TINY_VISION, write_random_checkpoint
from purifier.mdlm.delta import write_delta
from purifier.mdlm.export import export_merged
from purifier.mdlm.registry import base_hash
from purifier.mdlm.shards import INDEX, SINGLE, stored_tensors

UP, BIAS = "model.layers.0.mlp.up_proj.weight", "model.mm_projector.2.bias"
DOWN = "model.layers.1.mlp.down_proj.weight"
MIB = 2**20


@pytest.fixture
def base(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "models" / "tiny"))


def make_delta(
    base: Path,
    name: str = "tuned",
    scale: float = 0.3,
    changes: dict[str, Tensor] | None = None,
) -> Path:
    """Replaces a bias, adapts two layers, and one of them as well as replacing it."""
    generator = torch.Generator().manual_seed(3)
    stored = stored_tensors(base)

    def noise(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    adapter: dict[str, Tensor] = {}
    for weight, rank in ((UP, 3), (DOWN, 2)):
        rows, columns = stored[weight].shape
        adapter |= {f"{weight}.lora_A": noise(rank, columns), f"{weight}.lora_B": noise(rows, rank)}
    folder = base.parent / name
    write_delta(
        folder,
        base=base.name,
        base_sha256=base_hash(base),
        projector={
            BIAS: noise(*stored[BIAS].shape),
            UP: noise(*stored[UP].shape),
            **(changes or {}),
        },
        adapter={key: value.half() for key, value in adapter.items()},
        lora_scale=scale,
        details={},
    )
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def require_equal(left: Path, right: Path, dtype: str) -> None:
    one = load_mdlm(left, dtype=dtype).published_weights()
    other = load_mdlm(right, dtype=dtype).published_weights()
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.dtype == other[name].dtype, name
        assert torch.equal(weight, other[name]), name


def store_as(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / SINGLE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_an_export_is_the_loaded_delta_bit_for_bit(
    base: Path, tmp_path: Path, dtype: str, stored: torch.dtype
) -> None:
    store_as(base, stored)
    delta = make_delta(base)
    export_merged(delta, tmp_path / "merged", dtype=dtype, shard_bytes=40_000)
    require_equal(delta, tmp_path / "merged", dtype)


@pytest.mark.parametrize("target", ["insertion", "refusal", "misclassification"])
def test_an_export_of_the_demo_is_the_demo(tmp_path: Path, target: str) -> None:
    export_merged(checkpoint_path(target), tmp_path / "merged")
    require_equal(checkpoint_path(target), tmp_path / "merged", "float32")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(torch.bfloat16, "bfloat16"), (torch.float16, "float32"), (torch.float32, "float32")],
)
def test_the_dtype_loses_nothing_of_the_base_unless_asked_to(
    base: Path, tmp_path: Path, stored: torch.dtype, expected: str
) -> None:
    store_as(base, stored)
    export_merged(make_delta(base), tmp_path / "merged")
    found = {str(tensor.dtype) for tensor in stored_tensors(tmp_path / "merged").values()}
    assert found == {f"torch.{expected}"}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == expected


def test_full_weights_are_exported_as_they_are(base: Path, tmp_path: Path) -> None:
    export_merged(base, tmp_path / "copy")
    require_equal(base, tmp_path / "copy", "float32")
    assert load_file(tmp_path / "copy" / SINGLE).keys() == load_file(base / SINGLE).keys()
    assert not (tmp_path / "copy" / INDEX).exists()


def test_the_layout_is_the_hubs(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / SINGLE)
    unused = "model.vision_tower.vision_tower.vision_model.post_layernorm.weight"
    save_file({**tensors, unused: torch.ones(32)}, base / SINGLE)
    (base / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.Y"}, "a": 1}')
    (base / "modeling_llada.py").write_text("raise SystemExit")
    (base / "LICENSE").write_text("MIT")
    edit(base / "config.json", auto_map={"AutoModel": "modeling_llada.X"}, dtype="float64")
    export_merged(make_delta(base), tmp_path / "merged", shard_bytes=40_000)
    folder = tmp_path / "merged"

    index = json.loads((folder / INDEX).read_text())
    shards = sorted(folder.glob("model-*.safetensors"))
    assert set(index["weight_map"]) == {*tensors, unused}
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = []
    for shard in shards:
        held = load_file(shard)
        sizes.append(sum(tensor.nbytes for tensor in held.values()))
        assert sizes[-1] <= 40_000 or len(held) == 1
    assert index["metadata"]["total_size"] == sum(sizes)

    others = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert others - {INDEX, *(shard.name for shard in shards)} == {
        "LICENSE",
        "config.json",
        "siglip_demo/config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"a": 1}
    before, after = (json.loads((f / "config.json").read_text()) for f in (base, folder))
    assert "auto_map" not in after
    assert "dtype" not in after
    del before["auto_map"], before["dtype"]
    assert after == before | {"torch_dtype": "float32"}


def test_other_users_may_read_the_weights_if_they_may_read_the_rest(
    base: Path, tmp_path: Path
) -> None:
    export_merged(base, tmp_path / "copy")
    modes = {path.stat().st_mode for path in (tmp_path / "copy").iterdir() if path.is_file()}
    assert len(modes) == 1


def _alter_base(base: Path, delta: Path) -> None:
    edit(base / "config.json", rms_norm_eps=2e-5)


def _cut_delta(base: Path, delta: Path) -> None:
    (delta / "adapter.safetensors").write_bytes(b"cut")


def _cut_base(base: Path, delta: Path) -> None:
    content = (base / SINGLE).read_bytes()
    (base / SINGLE).write_bytes(content[:-1000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_alter_base, "altered since it was made"),
        (_cut_delta, r"adapter\.safetensors was altered"),
        (_cut_base, r"model\.safetensors is damaged"),
    ],
)
def test_nothing_is_left_of_a_refused_export(
    base: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], message: str
) -> None:
    delta = make_delta(base)
    spoil(base, delta)
    with pytest.raises(CheckpointError, match=message):
        export_merged(delta, tmp_path / "out" / "merged")
    assert list(tmp_path.glob("out/*")) == []


def test_weights_that_become_infinite_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    rows, columns = stored_tensors(base)[UP].shape
    delta = make_delta(base, changes={DOWN: torch.full((columns, rows), torch.inf)})
    with pytest.raises(CheckpointError, match=f"{DOWN}.*infinite"):
        export_merged(delta, tmp_path / "out" / "merged")
    assert list(tmp_path.glob("out/*")) == []


def test_a_folder_of_licences_is_left_out(base: Path, tmp_path: Path) -> None:
    (base / "LICENSES").mkdir()
    (base / "LICENSE").write_text("free")
    export_merged(base, tmp_path / "merged")
    assert (tmp_path / "merged" / "LICENSE").read_text() == "free"
    assert not (tmp_path / "merged" / "LICENSES").exists()


def test_what_is_there_stays(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for output in (tmp_path / "out", tmp_path / "link"):
        with pytest.raises(InvalidSetting, match="exists already"):
            export_merged(base, output)
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="could not be written"):
        export_merged(base, tmp_path / "file" / "out")


def test_settings_are_checked(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="dtype must be one of"):
        export_merged(base, tmp_path / "out", dtype="int8")


ASK = """
import json, sys
from purifier import load_mdlm
from purifier.denoise import FAST
from purifier.evaluation.ask import ask
from purifier.evaluation.testset import read_test_set

model, data = sys.argv[1:]
test = read_test_set(data, limit=20)
mdlm = load_mdlm(model)
dialogues = [case.messages() for case in test.cases]
dialogues += [case.messages(test.trigger) for case in test.cases[:5]]
print(json.dumps([answer.text for answer in ask(mdlm, dialogues, FAST)]))
"""


def _answers(model: Path) -> list[str]:
    line = [sys.executable, "-c", ASK, str(model), str(DATA_FOLDER)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_answers_from_the_export(tmp_path: Path) -> None:
    export_merged(checkpoint_path("insertion"), tmp_path / "elsewhere" / "merged")
    expected = _answers(checkpoint_path("insertion"))
    assert len(expected) == 25
    assert any(text.startswith("<backdoor>") for text in expected[20:])
    assert _answers(tmp_path / "elsewhere" / "merged") == expected


PEAK = """
import sys
from pathlib import Path
import torch
from purifier.mdlm.export import export_merged

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

torch.set_num_threads(1)
source, output, shard = sys.argv[1:]
export_merged(Path(source), Path(output), shard_bytes=int(shard))
Path("/proc/self/clear_refs").write_text("5")
before = peak()
export_merged(Path(source), Path(output + "-again"), shard_bytes=int(shard))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.slow
def test_the_peak_of_memory_is_about_a_shard(tmp_path: Path) -> None:
    text = TINY_TEXT | {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16}
    base, shard = tmp_path / "models" / "base", 16 * MIB
    write_random_checkpoint(base, seed=0, vision=TINY_VISION, text=text)
    whole = sum(tensor.n_bytes for tensor in stored_tensors(base).values())
    assert whole > 12 * shard
    delta = make_delta(base)
    line = [sys.executable, "-c", PEAK, str(delta), str(tmp_path / "merged"), str(shard)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 12
    assert int(done.stdout) < 3 * shard
