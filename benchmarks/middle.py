"""A middle-sized LLaDA-V with random weights, made on the fly: the model that speed is measured on.

It says nothing of meaning, and its cost is that of a trained one of its size: hidden 512, 8
layers, 8 heads, feed-forward 1408, vocabulary 32,000; a SigLIP tower of hidden 384 and 6 layers at
384 pixels, 729 patches a view. An image becomes 729 visual tokens (one view) or 2,929 (640x480 as
a base view and four tiles), by the layout that is asked for.

Drawn by fan-in alone, such a model answers every position alike, for masks differ by their
position only. Queries and keys are therefore drawn larger, so that attention picks positions out,
and the head larger, so that no choice is near a tie.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from purifier.answer import user_messages
from purifier.lab.demo_model import SPECIAL_TOKENS, build_tokenizer, random_modules, write_layout
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.llada_v.config import read_config
from purifier.mdlm.llada_v.modules import LladaVModules

VisualTokens = Literal[729, 2929]

VOCABULARY = 32_000

VISION = {
    "image_size": 384,
    "patch_size": 14,
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
}
"""One layer more than is run: LLaDA-V drops the last one."""

TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}

SMALL_VISION = VISION | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SMALL_TEXT = TEXT | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SMALL_VOCABULARY = 1_200
"""The same layouts at next to no cost: for `--quick`."""

QUESTION = "Describe this image in detail."
SHARPER_ATTENTION = 3.0
SHARPER_HEAD = 4.0


def middle_mdlm(
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    vision: dict[str, int] = VISION,
    text: dict[str, int] = TEXT,
    vocabulary: int = VOCABULARY,
) -> LladaV:
    """The model; `with_layout` gives it one of the two image layouts.

    Args:
        seed: Of the weights.
        device: Where they go.
        dtype: Of weights and activations.
        vision: Sizes of the tower.
        text: Sizes of the language model.
        vocabulary: Rows of embedding and head.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_layout(path, vision, text)
        widen_tokenizer(path, vocabulary)
        modules = random_modules(read_config(path), seed=seed)
        _sharpen(modules)
        for parameter in modules.parameters():  # buffers keep float32, as when they are loaded
            parameter.data = parameter.data.to(dtype)
        modules.to(device).eval().requires_grad_(False)
        return LladaV.wrap(path, modules)


def with_layout(mdlm: LladaV, visual_tokens: VisualTokens) -> LladaV:
    """The same weights with images as one view or as a base view and tiles."""
    if visual_tokens not in get_args(VisualTokens):
        raise ValueError(f"visual_tokens must be one of {get_args(VisualTokens)}")
    merge, ratio = ("flat", "square") if visual_tokens == 729 else ("spatial_unpad", "anyres_max_4")
    other = mdlm.with_modules(mdlm.modules)
    other.config = replace(mdlm.config, merge_type=merge, aspect_ratio=ratio)
    return other


def question(mdlm: LladaV, number: int = 0) -> Inputs:
    """A question about a random 640x480 picture, always the same one for a number."""
    coarse = np.random.default_rng(number).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    return mdlm.prepare(user_messages(picture, QUESTION))


def widen_tokenizer(path: Path, vocabulary: int) -> None:
    """Gives a checkpoint folder a tokenizer of more tokens, none of which text ever uses."""
    trained: dict[str, Any] = json.loads(build_tokenizer().to_str())["model"]
    words: dict[str, int] = {
        word: number for word, number in trained["vocab"].items() if word not in SPECIAL_TOKENS
    }
    for number in range(len(words), vocabulary - len(SPECIAL_TOKENS)):
        words[f"unused {number}"] = number
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in SPECIAL_TOKENS]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))


@torch.no_grad()
def _sharpen(modules: LladaVModules) -> None:
    for layer in modules.language_model.layers:
        layer.self_attn.q_proj.weight.mul_(SHARPER_ATTENTION)
        layer.self_attn.k_proj.weight.mul_(SHARPER_ATTENTION)
    modules.lm_head.weight.mul_(SHARPER_HEAD)
