"""Leave-one-out: mask one unit or one region, run the model again, see how far it moves.

Slow, and the truth that the quadratic forms approximate to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.sites import Encoding, Site
from purifier.defense.windows import windows
from purifier.mdlm.base import Mdlm
from purifier.numeric import wide

VALUES_AT_ONCE = 2**27
"""Predictions (sequences x scored positions x vocabulary) of one forward pass; bounds memory."""

POSITIONS_AT_ONCE = 2**15
"""Positions, padding included, of one forward pass; bounds memory."""


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
    overlap, so that no trigger up to a certain size is cut by all of them.

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

    Regions of all images share the forward passes.

    Args:
        site: Where regions are masked.
        encoding: The requests, nothing masked.
        response: The response behind the prompts.
        regions: Per image, bool [n, *shape].
        top_k: See `leave_one_out_kl`.
        rows: Sequences in one forward pass; fewer where they or their predictions are large.
        check: Called before every forward pass.

    Returns:
        Per image float64 [n, G].
    """
    mdlm = site.mdlm
    jobs = [(image, region) for image, own in enumerate(regions) for region in own]
    together = partial(bounded, mdlm=mdlm, response=response, rows=rows)
    references: dict[int, tuple[Tensor, Tensor]] = {}
    lengths = [len(prompt.embeds) for prompt in encoding.prompts]
    for owners in together(sorted({*site.owners}), lambda owner: lengths[owner]):
        check()
        found = first_step_logits(mdlm, [encoding.prompts[owner] for owner in owners], response)
        for owner, logits in zip(owners, found, strict=True):
            count = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
            values, ids = logits.topk(count, dim=-1)
            references[owner] = (torch.log_softmax(wide(values), dim=-1), ids)
    moved: list[list[Tensor]] = [[] for _ in regions]
    for group in together(jobs, lambda job: lengths[site.owners[job[0]]]):
        check()
        found = first_step_logits(mdlm, site.without(group), response)
        for (image, _), logits in zip(group, found, strict=True):
            reference, ids = references[site.owners[image]]
            kept = torch.log_softmax(wide(logits.gather(-1, ids)), dim=-1)
            moved[image].append((reference.exp() * (reference - kept)).sum(-1).cpu())
    return [torch.stack(own) for own in moved]


Item = TypeVar("Item")


def bounded(
    items: Sequence[Item],
    length: Callable[[Item], int],
    *,
    mdlm: Mdlm,
    response: Response,
    rows: int,
    positions: int | None = None,
) -> Iterator[Sequence[Item]]:
    """Consecutive groups of items whose padded forward pass takes bounded memory.

    Args:
        items: What takes one sequence each.
        length: Prompt positions of an item.
        mdlm: The model.
        response: The response behind the prompts.
        rows: Sequences in one group at most.
        positions: Positions of one group at most, padding included; `POSITIONS_AT_ONCE` by default.
    """
    positions = POSITIONS_AT_ONCE if positions is None else positions
    rows = max(1, min(rows, VALUES_AT_ONCE // (response.scored * mdlm.vocab_size)))
    tail = response.length + len(response.suffix)
    group: list[Item] = []
    longest = 0
    for item in items:
        longer = max(longest, length(item) + tail)
        if group and (len(group) == rows or longer * (len(group) + 1) > positions):
            yield group
            group, longer = [], length(item) + tail
        group.append(item)
        longest = longer
    if group:
        yield group
