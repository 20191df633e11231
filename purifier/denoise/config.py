"""Settings of the reverse process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from purifier.errors import InvalidSetting
from purifier.settings import require_seed, require_whole

Remasking = Literal["low_confidence", "random", "margin", "entropy"]
CacheName = Literal["none", "prefix", "dual", "dllm"]
_SURE: frozenset[Remasking] = frozenset({"low_confidence", "margin"})
"""Kinds of remasking whose confidence is a probability."""


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is denoised.

    The defaults are those of DiSP's purification script: 32 tokens in one block, one token a
    denoising step, no temperature, no guidance, low-confidence remasking, stop at the end of
    the turn.

    Attributes:
        gen_length: Response length in tokens before the stop sequence is cut off.
        block_length: Tokens denoised together, left to right; divides `gen_length`. None: all.
        steps: Denoising steps over all blocks; divisible by their number. None: one a token.
        temperature: Gumbel temperature of the token choice; 0 takes the most likely token.
        guidance_scale: Classifier-free guidance against a prompt of masks; 0 is off.
        remasking: Which positions are committed at a step: the ones with the largest
            probability of the chosen token (`low_confidence`), lead over the second token
            (`margin`), negative entropy (`entropy`), or any (`random`).
        cache: What a step takes from the ones before it; see `purifier.denoise.cache`. `none` runs
            the whole sequence at every step, exactly.
        prompt_interval: Committed tokens (`dllm`: steps) after which the prompt is computed anew.
        response_interval: Steps after which the whole response is (`dllm` only).
        transfer_ratio: Share of the response that is computed in between (`dllm` only).
        parallel_threshold: Every position surer than this is committed at once, however few the
            schedule asks for (Fast-dLLM; `low_confidence` and `margin` only). Nothing is surer
            than 1, which follows the schedule.
        stop: Stop sequences; the answer ends before the first one.
        suffix: Text fixed behind the response and seen from the first step.
        seed: Seed of temperature and random remasking.
    """

    gen_length: int = 32
    block_length: int | None = None
    steps: int | None = None
    temperature: float = 0.0
    guidance_scale: float = 0.0
    remasking: Remasking = "low_confidence"
    cache: CacheName = "none"
    prompt_interval: int = 25
    response_interval: int = 7
    transfer_ratio: float = 0.25
    parallel_threshold: float = 1.0
    stop: tuple[str, ...] = ("<|eot_id|>",)
    suffix: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length", "steps", "seed"):
            require_whole(getattr(self, name), name, optional=name in ("block_length", "steps"))
        if not 1 <= self.gen_length <= 4096:
            raise InvalidSetting("gen_length must be between 1 and 4096.", param="gen_length")
        block = self.block
        if not 1 <= block <= self.gen_length or self.gen_length % block:
            raise InvalidSetting(
                f"block_length must divide gen_length ({self.gen_length}).", param="block_length"
            )
        if self.n_steps < self.n_blocks or self.n_steps % self.n_blocks:
            raise InvalidSetting(
                f"steps must be a multiple of the number of blocks ({self.n_blocks}).",
                param="steps",
            )
        if self.n_steps > 4096:
            raise InvalidSetting("steps must be at most 4096.", param="steps")
        if not 0.0 <= self.temperature <= 10.0:
            raise InvalidSetting("temperature must be between 0 and 10.", param="temperature")
        if not 0.0 <= self.guidance_scale <= 50.0:
            raise InvalidSetting("guidance_scale must be between 0 and 50.", param="guidance_scale")
        if self.remasking not in get_args(Remasking):
            raise InvalidSetting(
                f"remasking must be one of {', '.join(get_args(Remasking))}.", param="remasking"
            )
        self._check_cache()
        if isinstance(self.stop, str):
            raise InvalidSetting("stop must be a tuple of texts, not a text.", param="stop")
        if any(not text for text in self.stop):
            raise InvalidSetting("A stop sequence must not be empty.", param="stop")
        require_seed(self.seed)

    def adjusted(self, **given: Any) -> GenerationConfig:
        """These settings with some of them given anew, for a request or a command line.

        A remasking whose confidence is no probability follows the schedule unless a
        `parallel_threshold` is given with it.

        Args:
            **given: Fields by name; None counts as not given.

        Raises:
            InvalidSetting: If a setting is out of range.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen.get("remasking", self.remasking) not in _SURE:
            chosen.setdefault("parallel_threshold", 1.0)
        return replace(self, **chosen)

    def _check_cache(self) -> None:
        if self.cache not in get_args(CacheName):
            raise InvalidSetting(
                f"cache must be one of {', '.join(get_args(CacheName))}.", param="cache"
            )
        for name in ("prompt_interval", "response_interval"):
            value = getattr(self, name)
            require_whole(value, name)
            if not 1 <= value <= 4096:
                raise InvalidSetting(f"{name} must be between 1 and 4096.", param=name)
        if not 0.0 <= self.transfer_ratio <= 1.0:
            raise InvalidSetting("transfer_ratio must be between 0 and 1.", param="transfer_ratio")
        if not 0.0 <= self.parallel_threshold <= 1.0:
            raise InvalidSetting(
                "parallel_threshold must be between 0 and 1.", param="parallel_threshold"
            )
        if self.parallel_threshold < 1 and self.remasking not in _SURE:
            raise InvalidSetting(
                "parallel_threshold needs remasking low_confidence or margin.",
                param="parallel_threshold",
            )

    @property
    def block(self) -> int:
        """Block length in tokens."""
        return self.gen_length if self.block_length is None else self.block_length

    @property
    def n_blocks(self) -> int:
        return self.gen_length // self.block

    @property
    def n_steps(self) -> int:
        """Denoising steps over all blocks."""
        return self.gen_length if self.steps is None else self.steps

    @property
    def steps_per_block(self) -> int:
        return self.n_steps // self.n_blocks


EXACT = GenerationConfig()
"""The whole sequence at every step, as published."""

FAST = GenerationConfig(cache="prefix", prompt_interval=8, parallel_threshold=0.95)
"""What the service and the relabelling start from: the same answers on the demo's test set in a
fraction of the time; docs/performance.md has the figures."""
