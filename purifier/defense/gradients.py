"""Pulling vectors back through the model, onto the image alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from purifier.numeric import wide

POSITIONS_AT_ONCE = 16384
"""Cotangents times sequence positions of one backward pass.

Short sequences gain from passing several cotangents through the graph together; long ones
fill the device by themselves, and memory stays bounded.
"""


def directional_products(
    outputs: Tensor,
    cotangents: Iterable[Tensor],
    leaves: Sequence[Tensor],
    directions: Sequence[Tensor],
    owners: Sequence[int],
    *,
    at_once: int = 1,
    float64: bool = True,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Products <J^T q, direction> of every leaf row with every cotangent q.

    The gradients go to the leaves only; parameters get none. Rows of a batch do not see
    each other, so one pass serves all rows, each with its own cotangent.

    Every row of a cotangent is brought to unit size before the pass and the products back to
    its own. Where the answer is near-certain, as that of a backdoor is, the
    Fisher matrix and with it q is so small that float32 gradients would underflow.

    Args:
        outputs: [B, G, K] with a graph down to the leaves.
        cotangents: Vectors q, each [B, G, K].
        leaves: Tensors [..., D] the outputs depend on.
        directions: float64 [..., D], one for each leaf.
        owners: For each leaf the row of the batch that it belongs to.
        at_once: Cotangents in one backward pass.
        float64: Whether the products are taken in float64, else in float32.
        check: Called before every backward pass; what it raises ends the work.

    Returns:
        For each leaf [m, ...] in that type, with m the number of cotangents.
    """
    products: list[list[Tensor]] = [[] for _ in leaves]
    for group in in_groups(cotangents, at_once):
        check()
        sizes = [unit_sizes(cotangent) for cotangent in group]
        units = [q / size[:, None, None] for q, size in zip(group, sizes, strict=True)]
        gradients = pull_back(outputs, units, leaves)
        size_of = torch.stack(sizes)
        for rows, gradient, direction, owner in zip(
            products, gradients, directions, owners, strict=True
        ):
            rise = wide(gradient, float64=float64)
            unscaled = (rise * direction.to(rise)).sum(-1)
            size = size_of[:, owner].reshape(-1, *[1] * (unscaled.ndim - 1))
            rows.append(unscaled * size.to(unscaled))
    return [torch.cat(rows) for rows in products]


def unit_sizes(cotangent: Tensor) -> Tensor:
    """Largest magnitude in every row of [B, G, K], [B]; 1 where a row is zero."""
    size = cotangent.abs().amax(dim=(1, 2))
    return torch.where(size > 0, size, 1.0)


def pull_back(
    outputs: Tensor, cotangents: Sequence[Tensor], leaves: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Gradients [c, ...] of every leaf for c cotangents; the graph is kept."""
    if len(cotangents) == 1:
        cotangent = cotangents[0].to(outputs)
        gradients = torch.autograd.grad(outputs, leaves, cotangent, retain_graph=True)
        return [gradient[None] for gradient in gradients]
    return torch.autograd.grad(
        outputs,
        leaves,
        torch.stack(list(cotangents)).to(outputs),
        retain_graph=True,
        is_grads_batched=True,
    )


def cotangents_at_once(embeds: Tensor) -> int:
    """Cotangents that one backward pass through a batch [B, N, D] should carry."""
    return min(32, max(1, POSITIONS_AT_ONCE // (embeds.shape[0] * embeds.shape[1])))


def in_groups(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Consecutive groups of `size` items, the last one shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
