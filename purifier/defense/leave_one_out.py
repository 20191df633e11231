"""Leave-one-out: mask one unit or one region, run the model again, see how far it moves.

Slow, and the truth that the quadratic forms approximate to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

import torch
from torch import Tensor

from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.sites import Encoding, Site
from purifier.numeric import wide

WINDOWS_PER_SIDE = 5
"""Windows of `occlusion` along each side of an image plane."""

VALUES_AT_ONCE = 2**27
"""Predictions (sequences x scored positions x vocabulary) of one forward pass; bounds memory."""


def leave_one_out_kl(
    site: Site,
    encoding: Encoding,
    response: Response,
    *,
    top_k: int | None = None,
    rows: int = 8,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """KL divergence of the first step without a unit from the first step with it.

    Summed over the scored positions: sum_v p[v] (log p[v] - log p_i[v]).

    Args:
        site: Where units are masked.
        encoding: The requests, nothing masked.
        response: The response behind the prompts.
        top_k: Restricts both distributions to the ids most likely with nothing masked; None
            takes the whole vocabulary.
        rows: Sequences in one forward pass.
        check: Called before every forward pass; what it raises ends the work.

    Returns:
        Per image float64 of its shape.
    """
    regions = [torch.eye(prod(s), dtype=torch.bool).reshape(-1, *s) for s in site.shapes]
    moved = divergences(site, encoding, response, regions, top_k=top_k, rows=rows, check=check)
    return [kl.sum(-1).reshape(s) for kl, s in zip(moved, site.shapes, strict=True)]


def occlusion(
    site: Site,
    encoding: Encoding,
    response: Response,
    *,
    rows: int = 32,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """How unlikely an answer token becomes when a window of the image plane is filled.

    A window's score is the KL divergence at the answer position that it moves most, in nats; a
    cell's is that of the best window it lies in. A trigger forces a token that the rest of
    the image gives no reason for, so without it that token is all but impossible; natural
    evidence is spread, and hiding one window of it leaves the token likely. The windows
    overlap, so that every region up to `covered_cells` wide lies inside one of them
    (R-covering masks, as in PatchCleanser, arXiv 2108.09135).

    Args:
        site: Image planes.
        encoding: The requests, nothing masked.
        response: The response behind the prompts.
        rows: Sequences in one forward pass.
        check: Called before every forward pass; what it raises ends the work.

    Returns:
        Per image float64 of its shape.
    """
    regions = [windows(shape) for shape in site.shapes]
    moved = divergences(site, encoding, response, regions, rows=rows, check=check)
    return [
        torch.where(region, kl.amax(-1)[:, None, None], 0.0).amax(0)
        for region, kl in zip(regions, moved, strict=True)
    ]


def windows(shape: Sequence[int]) -> Tensor:
    """Overlapping windows over an image plane of rows x columns cells, bool [n, rows, columns]."""
    rows, columns = (torch.stack(list(_intervals(cells))) for cells in shape)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def covered_cells(cells: int) -> int:
    """Longest run of cells that surely lies inside one window, on a side of `cells` cells."""
    return ceil(ceil(cells / WINDOWS_PER_SIDE) / 2) + 1


def _intervals(cells: int) -> list[Tensor]:
    stride = ceil(cells / WINDOWS_PER_SIDE)
    overlap = ceil(stride / 2)
    place = torch.arange(cells)
    starts = range(0, cells, stride)
    return [(place >= start - overlap) & (place < start + stride) for start in starts]


@torch.no_grad()
def divergences(
    site: Site,
    encoding: Encoding,
    response: Response,
    regions: Sequence[Tensor],
    *,
    top_k: int | None = None,
    rows: int,
    check: Callable[[], None],
) -> list[Tensor]:
    """KL divergence of the first step at every scored position after masking a region.

    Args:
        site: Where regions are masked.
        encoding: The requests, nothing masked.
        response: The response behind the prompts.
        regions: Per image, bool [n, *shape].
        top_k: See `leave_one_out_kl`.
        rows: Sequences in one forward pass; fewer where their predictions are large.
        check: Called before every forward pass.

    Returns:
        Per image float64 [n, G].
    """
    mdlm = site.mdlm
    references: dict[int, tuple[Tensor, Tensor]] = {}
    result = []
    for image, (owner, region) in enumerate(zip(site.owners, regions, strict=True)):
        if owner not in references:
            logits = first_step_logits(mdlm, [encoding.prompts[owner]], response)
            count = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
            values, ids = logits.topk(count, dim=-1)
            references[owner] = (torch.log_softmax(wide(values), dim=-1), ids)
        reference, ids = references[owner]
        moved = []
        together = max(1, min(rows, VALUES_AT_ONCE // reference.numel()))
        for group in region.split(together):  # type: ignore[no-untyped-call]
            check()
            prompts = site.without(image, group)
            kept = wide(
                first_step_logits(mdlm, prompts, response).gather(
                    -1, ids.expand(len(group), -1, -1)
                )
            )
            change = reference - torch.log_softmax(kept, dim=-1)
            moved.append((reference.exp() * change).sum(-1).cpu())
        result.append(torch.cat(moved))
    return result
