"""Several models over one set of weights: a base in memory once, and deltas on it.

A variant shares every tensor with its base that its delta leaves alone. What the delta
changes is computed as `apply_delta` does it, so a variant and a checkpoint loaded from its
folder are the same model, bit for bit.
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from purifier.mdlm.base import Mdlm
from purifier.mdlm.delta import Delta, changed_weights


def with_delta(base: Mdlm, delta: Delta) -> Mdlm:
    """A model that is `base` with a delta applied; `base` itself stays as it is.

    Raises:
        CheckpointError: If a tensor has no place in the model or the wrong shape.
    """
    variant = _twin(base)
    names = {variant.published_name(name): name for name, _ in variant.modules.named_parameters()}
    for published, tensor in changed_weights(base, delta):
        module, _, leaf = names[published].rpartition(".")
        parameter = nn.Parameter(tensor, requires_grad=False)
        setattr(variant.modules.get_submodule(module), leaf, parameter)
    return variant


def changed_bytes(base: Mdlm, delta: Delta) -> int:
    """Bytes of the tensors that a variant has for itself."""
    weights = base.published_weights()
    names = {name.removesuffix(".lora_A").removesuffix(".lora_B") for name in delta.tensors}
    return sum(weights[name].nbytes for name in names if name in weights)


def drop_weights(mdlm: Mdlm) -> None:
    """Gives the memory of a model's weights back; it can only prepare requests after that."""
    for parameter in mdlm.modules.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def _twin(mdlm: Mdlm) -> Mdlm:
    """A model with modules of its own, whose tensors are those of the given one."""
    tensors = chain(mdlm.modules.parameters(), mdlm.modules.buffers())
    shared = {id(tensor): tensor for tensor in tensors}
    return mdlm.with_modules(copy.deepcopy(mdlm.modules, shared))
