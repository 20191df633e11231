"""A random model that answers in words."""

from __future__ import annotations

import torch

from purifier.mdlm.base import Mdlm
from purifier.mdlm.llada_v import LladaV


def legible(mdlm: Mdlm) -> LladaV:
    """Silences single characters and cut bytes, so that different answers read differently."""
    assert isinstance(mdlm, LladaV)
    with torch.no_grad():
        for token in range(mdlm.vocab_size):
            text = mdlm.decode([token])
            if len(text.strip()) < 2 or "\ufffd" in text:
                mdlm.modules.lm_head.weight[token] = 0
    return mdlm
