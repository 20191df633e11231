"""LLaDA-V's weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaModel, SiglipVisionModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from purifier.errors import CheckpointError
from purifier.mdlm.llada_v.config import LladaVConfig


class LladaVModules(nn.Module):
    """The weights, all of them in transformers' own modules."""

    def __init__(self, config: LladaVConfig) -> None:
        super().__init__()
        width = config.text.hidden_size
        self.vision_tower = SiglipVisionModel(config.vision)
        # The published code reads the encoder's output before this norm.
        self.vision_tower.post_layernorm = nn.Identity()
        self.mm_projector = nn.Sequential(
            nn.Linear(config.vision.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.image_newline = nn.Parameter(torch.empty(width))
        self.language_model = LlamaModel(config.text)
        self.lm_head = nn.Linear(width, config.text.vocab_size, bias=False)


def fill_buffers(modules: LladaVModules, config: LladaVConfig) -> None:
    """Makes the buffers that no checkpoint stores: they are still on the meta device."""
    modules.language_model.rotary_emb = LlamaRotaryEmbedding(config.text)
    embeddings = modules.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    left = [name for name, tensor in modules.named_buffers() if tensor.is_meta]
    if left:
        raise CheckpointError(f"Buffers without a value: {', '.join(left)}.")
