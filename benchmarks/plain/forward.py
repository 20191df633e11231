"""The model's three parts, run through transformers' modules and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from purifier.mdlm.base import IMAGE_PLACEHOLDER, ImageInput, Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.llada_v.images import image_layout
from purifier.mdlm.llada_v.packing import pack


@dataclass(frozen=True)
class PlainPrompt:
    """A request as the language model sees it.

    Attributes:
        embeds: [1, L, D].
        visual: int64 [T], positions of the visual tokens.
    """

    embeds: Tensor
    visual: Tensor


@torch.no_grad()
def encode(mdlm: LladaV, inputs: Inputs) -> PlainPrompt:
    """Tower, projector and packing of every image, put between the text's embeddings."""
    pieces: list[Tensor] = []
    visual: list[Tensor] = []
    images = iter(inputs.images)
    length = 0
    for token in inputs.ids.tolist():
        if token == IMAGE_PLACEHOLDER:
            pieces.append(encode_image(mdlm, next(images)))
            visual.append(torch.arange(length, length + len(pieces[-1])))
        else:
            pieces.append(embed_ids(mdlm, [token]))
        length += len(pieces[-1])
    positions = torch.cat(visual) if visual else torch.zeros(0, dtype=torch.long)
    return PlainPrompt(torch.cat(pieces)[None], positions.to(mdlm.device))


def encode_image(mdlm: LladaV, image: ImageInput) -> Tensor:
    """All views of one image in one pass of the tower, [n_tokens, D]."""
    modules = mdlm.modules
    features = modules.vision_tower(image.pixels.to(mdlm.device, mdlm.dtype)).last_hidden_state
    projected = modules.mm_projector(features)
    layout = image_layout(image.image.size, len(image.views), mdlm.config)
    return pack(projected[None], layout, modules.image_newline)[0]


def embed_ids(mdlm: LladaV, ids: list[int] | Tensor) -> Tensor:
    """Rows of the embedding table, [..., D]."""
    tokens = torch.as_tensor(ids, dtype=torch.long, device=mdlm.device)
    return functional.embedding(tokens, mdlm.modules.language_model.embed_tokens.weight)


def all_logits(mdlm: LladaV, embeds: Tensor) -> Tensor:
    """One forward pass with the output head at every position: float32 [1, N, V]."""
    hidden = mdlm.modules.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    head = mdlm.modules.lm_head.weight[: mdlm.vocab_size]
    return functional.linear(hidden, head).float()
