"""From an inspection to the questions that it asks the engine, and back."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence

from PIL import Image

from purifier.answer import Answer
from purifier.defense.overlay import draw_overlay
from purifier.defense.regions import masked_boxes
from server.answering import verdict_of
from server.engine import Ticket
from server.errors import ImageMissing
from server.schemas import ChatRequest, DefenseRequest
from server.schemas.defense import Effort
from server.schemas.inspection import Finding, Inspection, InspectRequest, Region
from server.turns import image_urls

OVERLAY_SIDE = 1024
"""Longest side in pixels of an image that is drawn; larger ones are reduced."""


def questions(body: InspectRequest) -> list[tuple[Effort | None, ChatRequest]]:
    """The question undefended, and under every level of effort that is asked for.

    Raises:
        ImageMissing: If there is no image to look at.
    """

    def under(defense: DefenseRequest) -> ChatRequest:
        return ChatRequest(
            messages=body.messages,
            model=body.model,
            max_tokens=body.max_tokens,
            defense=defense,
        )

    undefended = under(DefenseRequest(enabled=False))
    if not image_urls(undefended):
        raise ImageMissing(
            "An inspection needs an image; send it as an image_url part.", param="messages"
        )
    return [
        (None, undefended),
        *((effort, under(DefenseRequest(effort=effort))) for effort in body.efforts),
    ]


def finding(
    effort: Effort, ticket: Ticket, answer: Answer, undefended: str, *, overlays: bool
) -> Finding:
    """What one level of effort found; draws pictures, so not for the event loop."""
    masking = ticket.job.masking
    assert masking is not None
    assert answer.masked is not None
    assert answer.saliency is not None
    drawn = None
    if overlays:
        images = [_small(image.image) for image in ticket.job.inputs.images]
        drawn = [
            _data_url(draw_overlay(image, plane))
            for image, plane in zip(images, answer.planes, strict=True)
        ]
    return Finding(
        effort=effort,
        level=masking.level,
        ranker=masking.ranker,
        verdict=verdict_of(answer),
        score=float(answer.saliency.max()),
        threshold=masking.threshold,
        masked=float(answer.masked.double().mean()),
        regions=[
            Region(image=number, left=box.left, top=box.top, right=box.right, bottom=box.bottom)
            for number, plane in enumerate(answer.planes)
            for box in masked_boxes(plane.masked)
        ],
        answer=answer.text,
        changed=answer.text != undefended,
        milliseconds=round(1000 * sum(answer.timings.values()), 3),
        overlays=drawn,
    )


def inspection(
    body: InspectRequest, ticket: Ticket, undefended: str, findings: Sequence[Finding]
) -> Inspection:
    """The whole of it; `ticket` is the last question's."""
    found = any(each.verdict != "nothing found" for each in findings)
    return Inspection(
        id=f"inspection-{ticket.job.request_id}",
        created=int(time.time()),
        model=body.model,
        checkpoint=ticket.serving.checkpoint,
        verdict="suspicious" if found else "nothing found",
        undefended=undefended,
        findings=list(findings),
    )


def _small(image: Image.Image) -> Image.Image:
    """The image as it is drawn: a heat map takes many times the memory of its image."""
    copy = image.copy()
    copy.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    return copy


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
