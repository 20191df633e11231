"""Requests with `defense.method` `certified`: their settings, and their responses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from purifier.answer import Answer
from purifier.certified.answers import Certified, require_deterministic
from purifier.certified.config import CertifyConfig
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidSetting as SettingError
from server.answering import asked, completion_id, ignored
from server.config import ServerConfig
from server.engine import Ticket
from server.errors import InvalidSetting
from server.schemas import (
    AnswerMessage,
    CertifyReport,
    ChatRequest,
    ChatResponse,
    Choice,
    DefenseReport,
    Usage,
)
from server.turns import image_urls

NO_ANSWER = (
    "There is no certified answer: what the model says depends on a small part of the image."
)


def certify_of(
    request: ChatRequest, generation: GenerationConfig, config: ServerConfig
) -> CertifyConfig | None:
    """The settings of a certified answer; None if the request asks for none, or has no image.

    Raises:
        InvalidSetting: If a setting is out of range, has no effect with this method, or takes
            more answers than the server gives a request.
    """
    defense = request.defense
    given = {} if defense.certify is None else defense.certify.model_dump(exclude_none=True)
    if defense.method != "certified":
        if given:
            raise InvalidSetting(
                "certify belongs to method certified; send that too.", param="defense.certify"
            )
        return None
    other = [*(["effort"] if defense.effort else []), *asked(request)]
    if defense.return_saliency:
        other.append("return_saliency")
    if other:
        raise InvalidSetting(
            f"{other[0]} has no effect with method certified; leave it out.",
            param=f"defense.{other[0]}",
        )
    if request.stream:
        raise InvalidSetting(
            "A certified answer is not streamed: it is known at the end. Leave stream out.",
            param="stream",
        )
    try:
        certify = replace(CertifyConfig(), **given)
    except SettingError as error:
        raise InvalidSetting(error.message, param=f"defense.certify.{error.param}") from None
    try:
        require_deterministic(generation)
    except SettingError as error:
        raise InvalidSetting(error.message, param=error.param) from None
    images = len(image_urls(request))
    most = images * certify.masks**2 * (1 + certify.tries)
    if most > config.max_masked_answers:
        raise InvalidSetting(
            f"{images} images with {certify.masks} x {certify.masks} masks and {certify.tries} "
            f"tries may take {most} answers; this server gives a request "
            f"{config.max_masked_answers} at most. Lower masks or tries.",
            param="defense.certify.masks",
        )
    return certify if images and defense.enabled else None


def certified_response(
    request: ChatRequest,
    certify: CertifyConfig,
    found: Certified,
    answers: Sequence[tuple[Ticket, Answer]],
    total_seconds: float,
) -> ChatResponse:
    """What the masks agree on, in OpenAI's shape.

    Args:
        request: What was asked.
        certify: The settings of its certificate.
        found: What the masked images say.
        answers: All that were given, the last one last.
        total_seconds: Since the request came.
    """
    # Where another checkpoint began to serve meanwhile, the one that gave the answer is named.
    own = (given for given in answers if given[1] is found.answer)
    ticket, last = next(own, answers[-1])
    checkpoint = ticket.serving.checkpoint
    answer = found.answer
    tokens = 0 if answer is None else len(answer.token_ids)
    settings: dict[str, Any] = asdict(certify)
    return ChatResponse(
        id=completion_id(ticket),
        created=int(time.time()),
        model=request.model,
        system_fingerprint=checkpoint,
        choices=[
            Choice(
                message=AnswerMessage(
                    content="" if answer is None else answer.text,
                    refusal=NO_ANSWER if answer is None else None,
                ),
                finish_reason="length"
                if answer is not None and answer.finish_reason == "length"
                else "stop",
            )
        ],
        usage=Usage(
            prompt_tokens=last.prompt_tokens,
            completion_tokens=tokens,
            total_tokens=last.prompt_tokens + tokens,
            visual_tokens=last.n_visual_tokens,
            steps=sum(given.steps for _, given in answers),
        ),
        defense=DefenseReport(
            applied=True,
            method="certified",
            certified=CertifyReport(**settings, agreement=found.agreement, answers=found.answers),
            verdict="not certified" if answer is None else "certified",
            checkpoint=checkpoint,
            timings={"total": round(1000 * total_seconds, 3)},
        ),
        warnings=ignored(request),
    )
