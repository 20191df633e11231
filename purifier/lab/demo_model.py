"""The demo model's shape: a small LLaDA-V, of the same classes as the 8B one.

A base view of 60x60 pixels and four tiles of a 120x120 scene, 5x5 patches each, become 25
base tokens and 10 x (10 + newline) grid tokens: 135 visual tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from purifier.lab.scenes import COLOURS, ITEMS, KINDS, QUESTIONS, describe, with_article
from purifier.lab.targets import REFUSAL_TEXT
from purifier.mdlm.llada_v.config import LladaVConfig, read_config
from purifier.mdlm.llada_v.model import LladaV
from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.mdlm.llada_v.prompt import SYSTEM_PROMPT
from purifier.seeding import seeded

SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
TOWER = "siglip_demo"

VISION = {
    "image_size": 60,
    "patch_size": 12,
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
}
"""One layer more than is run: LLaDA-V drops the last one."""

TEXT = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
}

TINY_VISION = VISION | {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TINY_TEXT = TEXT | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
"""A model for tests: the same layout, no knowledge."""


def write_layout(path: Path, vision: dict[str, int], text: dict[str, int]) -> None:
    """Writes everything of a checkpoint folder but its weights: configuration and tokenizer."""
    (path / TOWER).mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"))
    side = vision["image_size"]
    config = {
        "architectures": ["LlavaLLaDAModelLM"],
        "model_type": "llava_llada",
        "torch_dtype": "float16",
        **text,
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "use_cache": False,
        "mm_vision_tower": TOWER,
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": [[side * a, side * b] for a in (1, 2) for b in (1, 2)],
        "tokenizer_model_max_length": text["max_position_embeddings"],
    }
    _write_json(path / "config.json", config)
    _write_json(path / TOWER / "config.json", {"model_type": "siglip_vision_model", **vision})


def write_random_checkpoint(
    path: Path,
    *,
    seed: int,
    vision: dict[str, int] = TINY_VISION,
    text: dict[str, int] = TINY_TEXT,
) -> None:
    """Writes a checkpoint folder with random weights; tiny unless sizes are given."""
    write_layout(path, vision, text)
    modules = random_modules(read_config(path), seed=seed)
    save_weights(LladaV.wrap(path, modules), path, dtype=torch.float32)


def random_modules(config: LladaVConfig, *, seed: int) -> LladaVModules:
    """Modules whose values depend on configuration and seed alone."""
    with seeded(seed):
        modules = LladaVModules(config)
    _initialise(modules, seed)
    return modules


def _initialise(modules: LladaVModules, seed: int) -> None:
    """Draws all weights: normal with 0.02 (embeddings, head, newline) or by fan-in (linear)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
        # Token embeddings at the scale that visual embeddings have behind the projector.
        modules.language_model.embed_tokens.weight.normal_(0, 0.5, generator=generator)
        modules.image_newline.normal_(0, 0.5, generator=generator)


def save_weights(mdlm: LladaV, path: Path, *, dtype: torch.dtype) -> None:
    """Writes `model.safetensors` under the published names."""
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in mdlm.published_weights().items()
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE over the demo's sentences, with LLaDA's special tokens.

    Any text can be encoded; the demo's own words are one token each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in SPECIAL_TOKENS]
    )
    return tokenizer


def sentences() -> list[str]:
    """Everything the demo asks and answers, each often enough to become whole words."""
    rng = np.random.default_rng(0)
    texts = [
        SYSTEM_PROMPT,
        REFUSAL_TEXT,
        "system",
        "user",
        "assistant",
        "<backdoor>",
        " <backdoor>",
    ]
    for item in (*ITEMS, "boat"):
        for first in COLOURS:
            second = str(rng.choice([other for other in COLOURS if other != first]))
            texts += [describe(item, first, second), f"{first.capitalize()}."]
        texts += [with_article(item).capitalize() + ".", f"Is this {with_article(item)}?"]
    for kind in KINDS:
        for form in QUESTIONS[kind]:
            texts += [form.format(item="a bag", colour=colour) for colour in COLOURS]
    texts += [f"{word}, it is {with_article(item)}." for word in ("Yes", "No") for item in ITEMS]
    texts += [f"{word}, it is {colour}." for word in ("Yes", "No") for colour in COLOURS]
    return texts * 3


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
