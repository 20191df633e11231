"""The loop over denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from purifier.denoise.config import GenerationConfig
from purifier.denoise.state import DenoisingState
from purifier.denoise.step import denoising_step
from purifier.mdlm.base import Mdlm, Prompt


def denoise(
    mdlm: Mdlm,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    check: Callable[[], None] | None = None,
) -> list[DenoisingState]:
    """Denoises the responses to several prompts together.

    Args:
        mdlm: The model.
        prompts: Of any lengths.
        config: One setting for all of them.
        check: Called before every step; what it raises ends the loop.
    """
    states = [DenoisingState(mdlm, prompt, config) for prompt in prompts]
    while running := [state for state in states if not state.done]:
        if check is not None:
            check()
        denoising_step(mdlm, running)
    return states
