"""Any file in place of a delta.json gives a delta or a `CheckpointError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from purifier.errors import CheckpointError
from purifier.mdlm.delta import FORMAT, read_delta
from tests.support.any_json import THOROUGH, VALUES, check_message

DELTA_KEYS = ("format", "base", "base_sha256", "files", "lora_scale", "parent")


@THOROUGH
@given(
    changes=st.dictionaries(st.sampled_from(DELTA_KEYS), VALUES, max_size=3),
    content=st.none() | st.binary(max_size=40),
)
@example(changes={}, content=b"[" * 100_000)
@example(changes={"lora_scale": 10**400}, content=None)
@example(changes={"lora_scale": float("nan")}, content=None)
@example(changes={"base": "x" * 5000}, content=None)
@example(changes={"files": {"a\0b": "x" * 64}}, content=None)
@example(changes={"files": {"y" * 5000: "x" * 64}}, content=None)
def test_any_manifest_of_a_delta(
    tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], content: bytes | None
) -> None:
    folder = tmp_path / "delta"
    folder.mkdir(exist_ok=True)
    whole = {"format": FORMAT, "base": "model", "base_sha256": "0" * 64, "files": {}}
    written = json.dumps({**whole, **changes}).encode() if content is None else content
    (folder / "delta.json").write_bytes(written)
    try:
        delta = read_delta(folder, base=tiny_checkpoint)
    except CheckpointError as error:
        check_message(error.message)
        return
    assert abs(delta.lora_scale) < 1e15
