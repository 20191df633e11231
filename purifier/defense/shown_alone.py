"""Windows that are enough: which parts of an image alone make the model say what it says of all.

The opposite question to leaving a part out. A trigger needs nothing else of the image, and its
target is a token that no image alone would bring about: with the image masked the token is all but
impossible, with one window of it shown it is the likeliest. Copies of a trigger are each enough, so
they are found one by one where leaving one of them out changes nothing. An honest token that one
window is enough for, such as the background's colour, is likely without any image: there are few
colours to guess from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from purifier.defense.first_step import FirstStep, Response, first_step_logits
from purifier.defense.leave_one_out import bounded
from purifier.defense.sites import Site
from purifier.numeric import require_finite, wide

ROWS = 32
"""Sequences in one forward pass."""


@torch.no_grad()
def gains(
    site: Site,
    image: int,
    windows: Tensor,
    step: FirstStep,
    response: Response,
    check: Callable[[], None],
) -> Tensor:
    """Nats that each window alone does for a token of the answer.

    Args:
        site: Where is masked.
        image: Number of the image.
        windows: bool [n, *shape], the units of each.
        step: The request's first step, nothing masked.
        response: The response behind the prompt.
        check: Called before every pass.

    Returns:
        float64 [n]: by how much likelier the likeliest token of an answer position is with the
        window shown alone than with the whole image masked, at the position where that is most.
        Counted are positions whose likeliest token is the same with the window alone.
    """
    # The blank is run again, as one row more: its logits are too large to keep for few requests.
    hidden = [torch.ones_like(windows[0]), *~windows]
    found = []
    together = partial(bounded, mdlm=site.mdlm, response=response, rows=ROWS)
    for group in together(hidden, lambda _: len(step.prompt.embeds)):
        check()
        prompts = site.without([(image, units) for units in group])
        logits = wide(first_step_logits(site.mdlm, prompts, response))
        found.append(torch.log_softmax(logits, dim=-1).cpu())
    empty, alone = torch.cat(found).split([1, len(windows)])  # type: ignore[no-untyped-call]
    tokens = step.logits.argmax(-1).cpu()
    gain = token_gains(alone, empty[0], tokens)
    require_finite(gain)
    return gain.amax(-1)


def token_gains(alone: Tensor, empty: Tensor, tokens: Tensor) -> Tensor:
    """What each window alone does for the token of each answer position.

    Args:
        alone: Log probabilities with one window shown, [n, G, V].
        empty: With none of the image, [G, V].
        tokens: int64 [G].

    Returns:
        Nats, [n, G]; 0 where another token is likelier with the window alone.
    """
    gain = _of_tokens(alone, tokens) - _of_tokens(empty[None], tokens)
    return torch.where(alone.argmax(-1) == tokens, gain, 0.0).clamp_min(0.0)


def apart(windows: Tensor, scores: Tensor, least: float) -> list[int]:
    """Windows of a score of `least` at least that share no unit, the highest first."""
    chosen: list[int] = []
    for window in scores.argsort(descending=True, stable=True).tolist():
        if float(scores[window]) < least:
            break
        if not bool((windows[chosen] & windows[window]).any()):
            chosen.append(window)
    return chosen


def _of_tokens(logs: Tensor, tokens: Tensor) -> Tensor:
    """Log probabilities of one token a position: [n, G, V] and [G] give [n, G]."""
    return logs.gather(-1, tokens.expand(len(logs), -1)[..., None])[..., 0]
