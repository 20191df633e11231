"""From a chat request to an engine job, and from an answer to a chat response.

Everything a request can be blamed for is found here, before it takes up the engine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Literal

from purifier.answer import Answer, check_length
from purifier.defense.config import MaskingConfig, with_effort
from purifier.defense.first_step import scored_positions
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidPrompt as PromptError
from purifier.errors import InvalidSetting as SettingError
from purifier.errors import PromptTooLong
from purifier.mdlm.detector import LOUD
from server.config import ServerConfig
from server.engine import Job, Serving, Ticket
from server.engine.shared import content_of
from server.errors import (
    ContextLengthExceeded,
    ImageDimensions,
    InvalidSetting,
    ModelNotFound,
    ScopeMissing,
)
from server.schemas import (
    AnswerMessage,
    ChatRequest,
    ChatResponse,
    Choice,
    DefenseReport,
    DetectionReport,
    SaliencyMap,
    Usage,
)
from server.security.keys import Principal
from server.security.media import open_images
from server.turns import PLACEHOLDER, image_urls, messages_of

_LENGTHS = ("max_completion_tokens", "max_tokens", "gen_length")
_KNOBS = (
    "steps",
    "block_length",
    "temperature",
    "guidance_scale",
    "remasking",
    "cache",
    "prompt_interval",
    "response_interval",
    "transfer_ratio",
    "parallel_threshold",
    "seed",
)
_DEFENSE = tuple(setting.name for setting in fields(MaskingConfig))
_WARNED_NAMES = 20
_WARNED_LENGTH = 64


def check_model(request: ChatRequest, serving: Serving) -> None:
    """Checks that the request asks for a model that is served.

    Raises:
        ModelNotFound: If not.
    """
    if request.model not in ("default", serving.name, serving.checkpoint):
        raise ModelNotFound(
            "No such model is served here; GET /v1/models lists them, and 'default' always works.",
            param="model",
        )


def check_scope(request: ChatRequest, principal: Principal, config: ServerConfig) -> None:
    """Checks that the key may ask for the defence that the request does.

    Without the scope `infer:undefended` a request may repeat the server's settings, raise the
    ratio, lower the threshold, and choose the seed. Whether any other setting is weaker
    depends on the model and the attack, so none may differ. Nor may the guidance be stronger:
    it multiplies what little evidence a mask leaves, below any threshold.

    Raises:
        ScopeMissing: If the defence is switched off or another setting differs.
    """
    if "infer:undefended" in principal.scopes:
        return
    if (request.guidance_scale or 0.0) > config.generation.guidance_scale:
        raise ScopeMissing(
            "This key may not ask for a guidance_scale above the server's "
            f"{config.generation.guidance_scale:g}: it lacks the scope infer:undefended.",
            param="guidance_scale",
        )
    if not request.defense.enabled:
        raise ScopeMissing(
            "This key may not switch the defence off: it lacks the scope infer:undefended.",
            param="defense.enabled",
        )
    if request.defense.method != "disp":
        raise ScopeMissing(
            "This key may not ask for another method than the server's: it lacks the scope "
            "infer:undefended.",
            param="defense.method",
        )
    for name, given in asked(request).items():
        own = getattr(config.masking, name)
        if given == own or name == "seed":
            continue
        if (name == "ratio" and given > own) or (name == "threshold" and given < own):
            continue
        raise ScopeMissing(
            f"This key may not ask for this {name}: the server's is {own}, and the key lacks the "
            "scope infer:undefended. It may raise the ratio, lower the threshold and choose the "
            "seed; leave the rest out.",
            param=f"defense.{name}",
        )


def generation_of(request: ChatRequest, default: GenerationConfig) -> GenerationConfig:
    """The denoising settings of a request.

    Raises:
        InvalidSetting: If one is out of range, or two response lengths differ.
    """
    given = request.model_dump(include={*_LENGTHS, *_KNOBS}, exclude_none=True)
    lengths = {name: given.pop(name) for name in _LENGTHS if name in given}
    if len(set(lengths.values())) > 1:
        raise InvalidSetting(
            f"{' and '.join(lengths)} differ; they mean the same, send one of them.",
            param=next(iter(lengths)),
        )
    if lengths:
        given["gen_length"] = next(iter(lengths.values()))
    if request.stop:
        given["stop"] = (*default.stop, *request.stop)
    try:
        return default.adjusted(**given)
    except SettingError as error:
        sent, message = error.param, error.message
        if sent == "gen_length" and lengths:
            sent = next(iter(lengths))
            message = message.replace("gen_length", sent)
        raise InvalidSetting(message, param=sent) from None


def masking_of(request: ChatRequest, default: MaskingConfig) -> MaskingConfig | None:
    """The defence of a request; None if it is switched off.

    Raises:
        InvalidSetting: If a setting is out of range, even if the defence is off.
    """
    try:
        masking = default.adjusted(**asked(request))
    except SettingError as error:
        raise InvalidSetting(error.message, param=f"defense.{error.param}") from None
    return masking if request.defense.enabled else None


def asked(request: ChatRequest) -> dict[str, Any]:
    """The settings of the defence that a request gives, its level of effort spelled out."""
    given = request.defense.model_dump(include=set(_DEFENSE), exclude_none=True)
    return with_effort(request.defense.effort, given)


def scored_in_full(
    masking: MaskingConfig | None,
    generation: GenerationConfig,
    principal: Principal,
    config: ServerConfig,
) -> MaskingConfig | None:
    """The defence of a request, with as much of the answer scored as the server itself would score.

    How an answer is cut into blocks is the client's choice, but without the scope
    `infer:undefended` it does not decide how much of it is scored.
    """
    if masking is None or "infer:undefended" in principal.scopes:
        return masking
    own = config.generation.block_length or generation.gen_length
    if scored_positions(generation, masking.scored_length) >= own:
        return masking
    return replace(masking, scored_length=own)


def check_cost(
    generation: GenerationConfig, masking: MaskingConfig | None, config: ServerConfig
) -> None:
    """Checks that the saliency takes no more time and memory than the server gives a request.

    Raises:
        InvalidSetting: If it does.
    """
    if masking is None:
        return
    if masking.probes > config.max_probes:
        raise InvalidSetting(
            f"This server takes {config.max_probes} probes at most.", param="defense.probes"
        )
    scored = scored_positions(generation, masking.scored_length)
    values = scored * masking.top_k**2
    if values > config.max_fisher_values:
        raise InvalidSetting(
            f"top_k squared times the {scored} tokens that are scored is {values:,}; this server "
            f"takes {config.max_fisher_values:,} at most. Lower top_k or block_length, or ask for "
            "fewer tokens.",
            param="defense.top_k",
        )


def prepare(
    request: ChatRequest,
    serving: Serving,
    generation: GenerationConfig,
    masking: MaskingConfig | None,
    config: ServerConfig,
    request_id: str,
) -> Job:
    """Opens the images and makes the prompt; takes a while, so not for the event loop.

    Raises:
        ServerError: If a stop sequence or an image is refused, the prompt does not fit the
            context, or another model was asked for.
    """
    check_model(request, serving)  # another one may have taken over since the request came
    try:
        serving.check_stops(generation)
        images = open_images(image_urls(request), config.media)
        inputs = serving.prepare(messages_of(request, images))
        check_length(serving.mdlm, inputs, generation)
    except SettingError as error:
        raise InvalidSetting(error.message, param=error.param) from None
    except PromptTooLong as error:
        raise ContextLengthExceeded(error.message, param="messages") from None
    except PromptError as error:
        # The turns were checked before: what is left is an image's shape.
        raise ImageDimensions(error.message, param="messages") from None

    def again(other: Serving) -> Job:
        return prepare(request, other, generation, masking, config, request_id)

    applied = masking if inputs.images else None
    content = None
    if applied is not None and config.shared_bytes > 0:
        content = content_of(inputs, generation, applied)
    return Job(inputs, generation, applied, request_id, content, again)


def completion_id(ticket: Ticket) -> str:
    """Id of an answer, made of the request's."""
    return f"chatcmpl-{ticket.job.request_id}"


def response_of(
    request: ChatRequest,
    ticket: Ticket,
    answer: Answer,
    *,
    prepare_seconds: float,
    total_seconds: float,
) -> ChatResponse:
    """The answer in OpenAI's shape, with the `defense` block."""
    checkpoint = ticket.serving.checkpoint
    parts = {
        "prepare": prepare_seconds,
        "queue": ticket.queue_seconds,
        **answer.timings,
        "total": total_seconds,
    }
    return ChatResponse(
        id=completion_id(ticket),
        created=int(time.time()),
        model=request.model,
        system_fingerprint=checkpoint,
        choices=[
            Choice(
                message=AnswerMessage(content=answer.text),
                finish_reason="stop" if answer.finish_reason == "stop" else "length",
            )
        ],
        usage=Usage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=len(answer.token_ids),
            total_tokens=answer.prompt_tokens + len(answer.token_ids),
            visual_tokens=answer.n_visual_tokens,
            steps=answer.steps,
        ),
        defense=_report(request, ticket.job, answer, checkpoint, parts),
        warnings=ignored(request),
    )


def _report(
    request: ChatRequest, job: Job, answer: Answer, checkpoint: str, parts: Mapping[str, float]
) -> DefenseReport:
    timings = {name: round(seconds * 1000, 3) for name, seconds in parts.items()}
    if job.masking is None or answer.masked is None:
        reason = "no_image" if request.defense.enabled else "disabled"
        return DefenseReport.model_validate(
            {"applied": False, "reason": reason, "checkpoint": checkpoint, "timings": timings}
        )
    settings: dict[str, Any] = asdict(job.masking)
    return DefenseReport(
        applied=True,
        **settings,
        verdict=verdict_of(answer),
        detection=_detection(answer),
        score=None if answer.saliency is None else float(answer.saliency.max()),
        masked=int(answer.masked.sum()),
        total=answer.n_units,
        checkpoint=checkpoint,
        timings=timings,
        saliency=_maps(answer) if request.defense.return_saliency else None,
    )


def verdict_of(answer: Answer) -> Literal["nothing found", "masked", "suspicious"]:
    """What the defence made of a request."""
    found = answer.detection
    if found is not None and found.doubts(answer.token_ids):
        return "suspicious"
    masked = answer.masked is not None and bool(answer.masked.any())
    if masked or (found is not None and found.loud):
        return "masked"
    return "suspicious" if answer.unexplained else "nothing found"


def _detection(answer: Answer) -> DetectionReport | None:
    found = answer.detection
    if found is None:
        return None
    return DetectionReport(
        score=found.score,
        threshold=LOUD,
        left=found.left,
        pattern=found.pattern,
        left_out=found.left_out,
    )


def _maps(answer: Answer) -> list[SaliencyMap]:
    return [
        SaliencyMap(
            rows=plane.saliency.shape[0],
            columns=plane.saliency.shape[1],
            saliency=plane.saliency.tolist(),
            masked=plane.masked.tolist(),
        )
        for plane in answer.planes
    ]


def ignored(request: ChatRequest) -> list[str]:
    """What a request says that has no effect."""
    unknown = request.unknown_fields
    found = [
        f"{name[:_WARNED_LENGTH]!r} is not known here and was ignored."
        for name in unknown[:_WARNED_NAMES]
    ]
    texts = (part.text for turn in request.messages for part in turn.content if part.type == "text")
    if any(PLACEHOLDER in text for text in texts):
        found.append(
            f"{PLACEHOLDER} in a text is read as text; images stand where their parts stand."
        )
    return found
