"""One response on its way from all masks to text.

`DenoisingState` holds one request; `purifier.denoise.step` moves it on. Which positions may be
filled is an explicit mask over the response: a masked visual position is never one of them.

The ids live on the host and the embeddings of a response are looked up anew at every step; what
a step predicts for all requests comes back from the device in one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from purifier.denoise.cache import (
    FirstPass,
    ResponseCache,
    ResponseFeatures,
    takes_first_pass,
)
from purifier.denoise.config import GenerationConfig
from purifier.denoise.noise import Noise, SeededNoise
from purifier.denoise.remasking import surest
from purifier.denoise.schedule import linear_schedule
from purifier.errors import InvalidSetting, PromptTooLong
from purifier.mdlm.base import Mdlm, Prompt


class DenoisingState:
    """The state of one response.

    Args:
        mdlm: The model.
        prompt: The prompt, masked by the defence or not.
        config: Denoising settings.
        noise: Source of random numbers; by default seeded from `config.seed`.
        first: The first step of this prompt and these settings, if it has been computed; used
            where a cache can take it over.

    Attributes:
        prompt: [L, D], the prompt's embeddings; never written to.
        prompt_length: L, in positions.
        length: Positions of the whole sequence: prompt, response and suffix.
        ids: The response, `gen_length` ids; the mask id where nothing is committed.
        suffix_ids: Fixed ids behind the response.
        cache: What earlier passes left for the next one; None if every step is exact.
        steps_run: Forward passes so far.
        stop_at: Start of the earliest stop sequence found in the response, if any.

    Raises:
        PromptTooLong: If prompt and response do not fit the model's context.
        InvalidSetting: If a stop sequence cannot be one.
    """

    def __init__(
        self,
        mdlm: Mdlm,
        prompt: Prompt,
        config: GenerationConfig,
        noise: Noise | None = None,
        first: FirstPass | None = None,
    ) -> None:
        self.config = config
        self.noise = SeededNoise(config.seed) if noise is None else noise
        self.prompt = prompt.embeds.detach()
        self.prompt_length = len(self.prompt)
        self.suffix_ids = mdlm.encode_text(config.suffix) if config.suffix else []
        self.length = self.prompt_length + config.gen_length + len(self.suffix_ids)
        if self.length > mdlm.max_length:
            raise PromptTooLong(
                f"Prompt ({self.prompt_length} positions, images included) and response "
                f"({config.gen_length}) exceed the model's {mdlm.max_length} positions.",
                param="messages",
            )
        self._mask_id = mdlm.tokens.mask
        self._stops = stop_ids(mdlm, config)
        self.ids = [self._mask_id] * config.gen_length
        self.cache = _new_cache(mdlm, self, first)
        self.steps_run = 0
        self.stop_at: int | None = None
        self._block = 0
        self._step = 0
        self._schedule = linear_schedule(config.block, config.steps_per_block)

    @property
    def done(self) -> bool:
        """Whether the steps are used up, or no mask is left before the stop sequence."""
        if self._block == self.config.n_blocks:
            return True
        return self.stop_at is not None and self._mask_id not in self.ids[: self.stop_at]

    @property
    def block(self) -> int:
        """Number of the block that is filled now, counted from 0."""
        return self._block

    @property
    def token_ids(self) -> list[int]:
        """The response up to the stop sequence."""
        return self.ids[: self.stop_at]

    @property
    def finish_reason(self) -> str:
        return "length" if self.stop_at is None else "stop"

    def see(self, prompt: Tensor, first: FirstPass | None = None) -> None:
        """Goes on with another prompt of the same length: what was stored is void.

        Args:
            prompt: [L, D].
            first: The next step on this prompt, if it has been computed at the start of a block
                of which nothing is committed; used where the cache can take it over.
        """
        self.prompt = prompt.detach()
        if self.cache is None:
            return
        self.cache.forget()
        start = self._block * self.config.block
        whole = [*range(start, start + self.config.block)]
        takes = takes_first_pass(self.config) and self.candidates() == whole
        if first is not None and takes:
            self.cache = ResponseCache.begun(self.config, first, self._block)

    def candidates(self) -> list[int]:
        """Response positions, counted from its start, that may be filled now."""
        limit = (self._block + 1) * self.config.block if self.stop_at is None else self.stop_at
        return [place for place in range(limit) if self.ids[place] == self._mask_id]

    def commit(self, tokens: Sequence[int], confidences: Sequence[float]) -> int:
        """Commits the surest of the predicted tokens and moves to the next step.

        Args:
            tokens: Predictions at `candidates()`.
            confidences: How sure each of them is.

        Returns:
            How many were committed.
        """
        candidates = self.candidates()
        chosen = surest(confidences, self._count(confidences))
        for index in chosen:
            self.ids[candidates[index]] = tokens[index]
        self.steps_run += 1
        self._step += 1
        self._find_stop([candidates[index] for index in chosen])
        self._skip_finished_blocks()
        return len(chosen)

    def _count(self, confidences: Sequence[float]) -> int:
        """How many positions this step commits."""
        count = self._schedule[self._step]
        threshold = self.config.parallel_threshold
        return max(count, sum(value > threshold for value in confidences))

    def _find_stop(self, changed: Sequence[int]) -> None:
        """Looks for stop sequences wherever one could have come about by a changed position."""
        for stop in self._stops:
            for place in changed:
                for start in range(max(0, place - len(stop) + 1), place + 1):
                    if self.ids[start : start + len(stop)] == stop:
                        self.stop_at = start if self.stop_at is None else min(self.stop_at, start)

    def _skip_finished_blocks(self) -> None:
        """Leaves the block when its steps are used up or nothing in it is masked."""
        length = self.config.block
        while self._block < self.config.n_blocks:
            block = self.ids[self._block * length : (self._block + 1) * length]
            if self._step < len(self._schedule) and self._mask_id in block:
                return
            self._block += 1
            self._step = 0


def _new_cache(
    mdlm: Mdlm, state: DenoisingState, first: FirstPass | None
) -> ResponseCache | ResponseFeatures | None:
    config = state.config
    if config.cache == "none":
        return None
    if config.cache == "dllm":
        return ResponseFeatures.of(mdlm, config, state.prompt_length, state.length)
    if first is not None and takes_first_pass(config):
        return ResponseCache.begun(config, first)
    return ResponseCache(config)


def stop_ids(mdlm: Mdlm, config: GenerationConfig) -> list[list[int]]:
    """The stop sequences as ids.

    Raises:
        InvalidSetting: If one has no ids, or holds the mask token: a response starts out as
            masks and would end before its first step.
    """
    stops = [mdlm.encode_stop(text) for text in config.stop]
    if any(not stop or mdlm.tokens.mask in stop for stop in stops):
        raise InvalidSetting(
            "A stop sequence must not be empty or hold the mask token.", param="stop"
        )
    return stops
