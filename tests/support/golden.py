"""Where the reference vectors of the published code lie, and the tiny models they belong to."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from purifier.mdlm.base import SpecialTokens
from purifier.mdlm.llada_v import LladaV

GOLDEN = Path(os.environ.get("DISP_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))


def golden_folder(part: str) -> Path:
    """The folder `part` of the reference vectors; where it is absent the test is skipped.

    In continuous integration it fails: see `tests.support.skips`.
    """
    folder = GOLDEN / part
    if not folder.is_dir():
        pytest.skip(f"no reference vectors: set DISP_GOLDEN to a folder that holds {part}")
    return folder


def read_case(part: str, name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((golden_folder(part) / f"{name}.json").read_text())
    return case


def golden_tokens() -> SpecialTokens:
    ids = read_case("llada_v", "special_tokens")["ids"]
    names = ("mask", "bos", "eos", "pad", "start_header", "end_header", "eot")
    return SpecialTokens(**{name: ids[name] for name in names})


def golden_mdlm(
    *,
    aspect_ratio: str | None = None,
    merge_type: str | None = None,
    mask: int | None = None,
    table: dict[str, list[int]] | None = None,
) -> LladaV:
    """The tiny random LLaDA-V of the reference vectors.

    Args:
        aspect_ratio: Replaces the configuration's image_aspect_ratio.
        merge_type: Replaces its mm_patch_merge_type.
        mask: Replaces the mask id.
        table: Stands in for the tokenizer: text to ids.
    """
    tokens = golden_tokens()
    if mask is not None:
        tokens = replace(tokens, mask=mask)
    mdlm = LladaV.load(golden_folder("llada_v"), tokens=tokens)
    mdlm.config = replace(
        mdlm.config,
        aspect_ratio=aspect_ratio or mdlm.config.aspect_ratio,
        merge_type=merge_type or mdlm.config.merge_type,
    )
    if table is not None:
        mdlm.encode_text = mdlm.encode_stop = table.__getitem__  # type: ignore[assignment,method-assign]
    return mdlm
