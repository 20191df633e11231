"""Pulling vectors back through the model, onto the image alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from purifier.defense.numeric import wide


def directional_products(
    outputs: Tensor,
    cotangents: Iterable[Tensor],
    leaves: Sequence[Tensor],
    directions: Sequence[Tensor],
) -> list[Tensor]:
    """Products <J^T q, direction> of every leaf row with every cotangent q.

    The gradients go to the leaves only; parameters get none. Rows of a batch do not see
    each other, so one pass serves all rows, each with its own cotangent. The graph of
    `outputs` is freed.

    Args:
        outputs: [B, G, K] with a graph down to the leaves.
        cotangents: Vectors q, each [B, G, K].
        leaves: Tensors [..., D] the outputs depend on.
        directions: float64 [..., D], one for each leaf.

    Returns:
        For each leaf float64 [m, ...] with m the number of cotangents.
    """
    products: list[list[Tensor]] = [[] for _ in leaves]
    for cotangent in cotangents:
        gradients = torch.autograd.grad(outputs, leaves, cotangent.to(outputs), retain_graph=True)
        for row, gradient, direction in zip(products, gradients, directions, strict=True):
            row.append((wide(gradient) * direction).sum(-1))
    return [torch.stack(row) for row in products]
