"""The defence of a batch of requests: encode, find what is salient, mask it.

    defended = defend(mdlm, [inputs, ...], generation, masking)      # one `Defended` each
    defended[0].prompt                                               # denoise this

`defend` encodes the images itself; a caller needs nothing but `Inputs` from
`mdlm.prepare`. Each request is defended as it would be alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.plane import MaskedPlane
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs, Mdlm, Prompt


@dataclass(frozen=True)
class Defended:
    """A request whose most salient visual evidence is masked.

    Attributes:
        prompt: What is left to denoise from; visual tokens masked (`token`) or encoded
            from the filled image (`patch`).
        saliency: float32 [n_units], images one after another; what the choice was made by.
        masked: bool [n_units].
        planes: The same on the plane of every image.
        timings: Seconds by part: `encode`, `saliency`, `mask`. Requests defended together
            share the time of a part evenly.
    """

    prompt: Prompt
    saliency: Tensor
    masked: Tensor
    planes: tuple[MaskedPlane, ...]
    timings: dict[str, float]

    @property
    def n_units(self) -> int:
        """What the mask ratio counts: visual tokens or cells of the image planes."""
        return len(self.masked)


def defend(
    mdlm: Mdlm,
    requests: Sequence[Inputs],
    generation: GenerationConfig,
    masking: MaskingConfig,
    *,
    check: Callable[[], None] | None = None,
) -> list[Defended]:
    """Encodes requests and masks the most salient visual evidence of each.

    Args:
        mdlm: The model; its parameters get no gradients.
        requests: From `mdlm.prepare`; may have no image, then nothing is masked.
        generation: How the answer will be denoised: the saliency is taken at its first step.
        masking: What is masked.
        check: Called between the parts; what it raises ends the defence.
    """
    raise NotImplementedError
