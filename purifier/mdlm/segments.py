"""Forward passes over a part of a sequence, on stored keys and values of the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class KeyValues:
    """Keys (rotary positions applied) and values of one sequence in every layer.

    Attributes:
        stored: [layers, 2, heads, N, head_dim] in the model's dtype; written in place.
    """

    stored: Tensor

    @property
    def length(self) -> int:
        """Positions of the sequence, N."""
        return self.stored.shape[3]

    @property
    def n_bytes(self) -> int:
        return self.stored.numel() * self.stored.element_size()


@dataclass(frozen=True)
class Segment:
    """Consecutive positions of one sequence that a pass computes.

    Their keys and values are written into `cache`, and they attend to all of it: every position
    outside the segment must have been written by an earlier pass.

    Attributes:
        embeds: [Q, D].
        start: Position of the first of them in the sequence.
        wanted: Positions of the sequence, inside the segment, whose logits are asked for.
        cache: Keys and values of the sequence.
    """

    embeds: Tensor
    start: int
    wanted: Sequence[int]
    cache: KeyValues

    @property
    def stop(self) -> int:
        return self.start + len(self.embeds)


@dataclass
class FeatureCache:
    """Features of one sequence in every layer (dLLM-Cache): prompt first, response behind it.

    Attributes:
        prompt: Positions of the prompt.
        keys: [layers, heads, N, head_dim], rotary positions not applied.
        values: [layers, heads, N, head_dim].
        attended: [layers, N, D], outputs of the attention block.
        fed: [layers, N, D], outputs of the feed-forward block.
        choose: Which response positions a layer computes when it is not refreshed: from the
            layer's number, the cosine similarity [R] of new and stored values, and their count.
    """

    prompt: int
    keys: Tensor
    values: Tensor
    attended: Tensor
    fed: Tensor
    choose: Callable[[int, Tensor, int], Tensor] = field(
        default=lambda _, similarity, count: similarity.topk(count, largest=False).indices
    )

    @property
    def n_bytes(self) -> int:
        tensors = (self.keys, self.values, self.attended, self.fed)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class FeaturePass:
    """One pass over a sequence whose features are stored.

    Attributes:
        embeds: [N, D].
        wanted: Positions whose logits are asked for, all behind the prompt.
        cache: Features of the sequence.
        refresh_prompt: Whether the prompt is computed anew.
        refresh_response: Whether all of the response is.
        transfer_ratio: Share of the response that is computed where it is not.
    """

    embeds: Tensor
    wanted: Sequence[int]
    cache: FeatureCache
    refresh_prompt: bool
    refresh_response: bool
    transfer_ratio: float
