"""What a denoising step computes anew, and what it takes from the step before.

The exact reverse process runs the whole sequence at every step. With a cache most steps run a
part of the response only and attend to stored keys and values of everything else, which are
those of an earlier step: an approximation, for in a bidirectional model the prompt's depend on
the response.

- `prefix` and `dual` (Fast-dLLM, arXiv 2505.22618): a full pass at the start of a block and
  whenever `prompt_interval` tokens were committed since the last one; in between `prefix` runs
  from the block to the end of the sequence, `dual` the block alone.
- `dllm` (dLLM-Cache, arXiv 2506.06295): prompt and response are refreshed at intervals of
  their own; in between only the share of response positions is computed whose values have
  changed most, layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Mdlm
from purifier.mdlm.segments import FeatureCache, KeyValues


@dataclass(frozen=True)
class FirstPass:
    """The first step of a request, computed before its denoising began (by the defence).

    Whoever goes on from it writes into `stored`, so it serves once.

    Attributes:
        stored: Keys and values of the whole sequence, the response masked.
        logits: float32 [G, V], predictions from the start of the response on, nothing suppressed;
            those of the first block alone where denoising goes on from it.
    """

    stored: KeyValues
    logits: Tensor

    def of_block(self, config: GenerationConfig) -> FirstPass:
        """The same without predictions behind the first block: a step fills one block alone."""
        return FirstPass(self.stored, self.logits[: config.block])


def takes_first_pass(config: GenerationConfig) -> bool:
    """Whether a response with these settings can go on from a step computed before it began."""
    return config.cache in ("prefix", "dual") and config.guidance_scale == 0


@dataclass
class ResponseCache:
    """Keys and values of one request's sequence (two with guidance), and how old they are.

    Attributes:
        config: Denoising settings, `cache` being `prefix` or `dual`.
        stored: For the conditional and the unconditional sequence; empty before the first pass.
        age: Tokens committed since the last full pass.
        block: Block of that pass.
        first: Predictions of the step that a first pass has computed, until it is taken.
    """

    config: GenerationConfig
    stored: tuple[KeyValues, ...] = ()
    age: int = 0
    block: int = -1
    first: Tensor | None = None

    @classmethod
    def begun(cls, config: GenerationConfig, first: FirstPass, block: int = 0) -> ResponseCache:
        """A cache whose full pass at the start of a block has been run."""
        return cls(config, (first.stored,), block=block, first=first.logits)

    def due(self, block: int) -> bool:
        """Whether the next step runs the whole sequence."""
        return not self.stored or block != self.block or self.age >= self.config.prompt_interval

    def part(self, block: int, candidates: Sequence[int], tail: int) -> range:
        """Places behind the prompt that a step between two full passes runs.

        Args:
            block: The block that is filled now.
            candidates: Places that may be filled.
            tail: Places behind the prompt, suffix included.
        """
        start = min(block * self.config.block, candidates[0])
        end = tail if self.config.cache == "prefix" else (block + 1) * self.config.block
        return range(start, end)

    def renew(self, mdlm: Mdlm, length: int, block: int) -> None:
        """Says that the next step is a full pass over sequences of `length` positions."""
        if not self.stored:
            count = 2 if self.config.guidance_scale > 0 else 1
            self.stored = tuple(mdlm.key_values(length) for _ in range(count))
        self.age, self.block = 0, block

    def forget(self) -> None:
        """Makes the next step a full pass."""
        self.block, self.first = -1, None

    def step(self, committed: int) -> None:
        """Counts a step that committed so many tokens."""
        self.age += max(committed, 1)
        self.first = None


@dataclass
class ResponseFeatures:
    """The feature caches of one request's sequence (two with guidance): `dllm`.

    Attributes:
        config: Denoising settings.
        stored: For the conditional and the unconditional sequence.
        calls: Steps so far.
    """

    config: GenerationConfig
    stored: tuple[FeatureCache, ...]
    calls: int = 0

    @classmethod
    def of(cls, mdlm: Mdlm, config: GenerationConfig, prompt: int, length: int) -> ResponseFeatures:
        """Empty caches of sequences of `length` positions, `prompt` of them the prompt's."""
        count = 2 if config.guidance_scale > 0 else 1
        return cls(config, tuple(mdlm.feature_cache(prompt, length) for _ in range(count)))

    @property
    def refresh_prompt(self) -> bool:
        """Whether the next step computes the prompt."""
        return self.calls % self.config.prompt_interval == 0

    @property
    def refresh_response(self) -> bool:
        """Whether the next step computes the whole response."""
        return self.calls % self.config.response_interval == 0

    def forget(self) -> None:
        """Makes the next step a full pass; the intervals count from there."""
        self.calls = 0

    def step(self, committed: int) -> None:
        """Counts a step."""
        self.calls += 1
