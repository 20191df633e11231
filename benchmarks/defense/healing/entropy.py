"""The attention filter: rows whose answer attends to few places of the image are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.defense.healing.mixture import two_gaussians
from benchmarks.defense.healing.rows import LENGTH, POSITIONS, batches
from purifier.data.sample import Sample
from purifier.defense.first_step import Response, first_step_batch
from purifier.mdlm.base import Mdlm, Prompt
from purifier.mdlm.llada_v.attention import layer_attention
from purifier.mdlm.llada_v.model import LladaV
from purifier.numeric import wide


@dataclass(frozen=True)
class EntropyFilter:
    """Drops the rows of low attention entropy, in the layers that fall into two groups by it.

    The paper reads the attention of the first token that is decoded; of a diffusion model it is
    that of the first answer positions, all masked, averaged over heads.

    Attributes:
        separation: A layer counts if two Gaussians fitted to its entropies lie this many times
            the sum of their standard deviations apart, as in the published code. Without such a
            layer nothing is dropped.
        version: Counted up when the same settings drop other rows.
    """

    separation: float = 2.0
    version: int = 1

    source: ClassVar[str] = "BYE, Rong et al. 2025, arXiv 2505.16916"
    guesses: ClassVar[bool] = False

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "attention entropy", **asdict(self)}

    def drops(self, mdlm: Mdlm, samples: Sequence[Sample], images: Path) -> Tensor:
        if not isinstance(mdlm, LladaV):
            raise TypeError("The lab's models are LLaDA-V's.")
        found = [visual_entropy(mdlm, batch.prompts) for batch in batches(mdlm, samples, images)]
        return low_entropy(torch.cat(found), self.separation)


@torch.no_grad()
def visual_entropy(mdlm: LladaV, prompts: Sequence[Prompt]) -> Tensor:
    """Entropy of the attention that answer positions pay to visual tokens.

    Args:
        mdlm: The model.
        prompts: Requests with images.

    Returns:
        float64 [B, layers], in nats, on the CPU.
    """
    batch = first_step_batch(mdlm, prompts, Response(POSITIONS, LENGTH))
    mask = None
    if batch.lengths is not None:
        mask = torch.arange(batch.embeds.shape[1], device=mdlm.device) < batch.lengths[:, None]
    model = mdlm.modules.language_model
    attention = layer_attention(model, batch.embeds, batch.positions, mask)
    rows = []
    for mass, prompt in zip(wide(attention), prompts, strict=True):
        seen = mass[:, : len(prompt.visual)][:, prompt.visual]
        shares = seen / seen.sum(-1, keepdim=True)
        rows.append(torch.special.entr(shares).sum(-1).cpu())
    return torch.stack(rows)


def low_entropy(entropies: Tensor, separation: float) -> Tensor:
    """The rows of the lower of two groups, bool [N]; none where no layer shows two.

    Args:
        entropies: float64 [N, layers].
        separation: See `EntropyFilter`.
    """
    layers = [
        layer
        for layer in range(entropies.shape[1])
        if two_gaussians(entropies[:, layer]).separation > separation
    ]
    if not layers:
        return torch.zeros(len(entropies), dtype=torch.bool)
    return two_gaussians(entropies[:, layers].mean(1)).lower
