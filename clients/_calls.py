"""What can be asked of a model and of the server itself, one `Call` for every operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import httpx
from pydantic import ValidationError

from clients._answer import Answer
from clients._call import Call, invalid, reader
from clients._exceptions import InvalidInput
from clients._images import Images, as_list, data_url
from server.schemas import (
    CacheName,
    ChatMessage,
    ChatRequest,
    ChatResponse,
    DefenseRequest,
    Effort,
    EngineStatus,
    Health,
    ImagePart,
    ImageUrl,
    ModelList,
    Remasking,
    TextPart,
)
from server.schemas.inspection import Inspection, InspectRequest

Defense = bool | DefenseRequest | Mapping[str, Any] | None
"""None: the server's setting. True or False: on or off. Else the `defense` object."""


class Generation(TypedDict, total=False):
    """Denoising settings of one answer; what is left out keeps the server's setting.

    `gen_length`, `block_length` in tokens, `steps` in denoising steps over all blocks; see
    `purifier.GenerationConfig`.
    """

    gen_length: int
    steps: int
    block_length: int
    temperature: float
    guidance_scale: float
    remasking: Remasking
    cache: CacheName
    prompt_interval: int
    response_interval: int
    transfer_ratio: float
    parallel_threshold: float
    stop: str | list[str]
    seed: int


def answer(
    image: Images,
    question: str,
    *,
    system: str | None,
    model: str,
    defense: Defense,
    return_saliency: bool,
    **generation: Unpack[Generation],
) -> Call[Answer]:
    """A question about one image, several, or none.

    Raises:
        InvalidInput: If an image cannot be sent or a setting has the wrong type.
    """
    try:
        request = ChatRequest(
            messages=_turns(image, question, system),
            model=model,
            defense=_defense(defense, return_saliency),
            **generation,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise invalid(error) from None
    return Call("POST", _CHAT, _read_answer, _body(request))


def chat(request: ChatRequest) -> Call[ChatResponse]:
    """A dialogue, as the server's schema has it.

    Raises:
        InvalidInput: If it asks for a stream.
    """
    if request.stream:
        raise InvalidInput("This client reads whole answers; leave stream out.")
    return Call("POST", _CHAT, reader(ChatResponse), _body(request))


def inspect(
    image: Images,
    question: str,
    *,
    system: str | None,
    model: str,
    efforts: Sequence[Effort] | None,
    max_tokens: int | None,
    overlays: bool,
) -> Call[Inspection]:
    """What the detectors find in a question about images.

    Raises:
        InvalidInput: If an image cannot be sent or a setting has the wrong type.
    """
    given: dict[str, Any] = {} if efforts is None else {"efforts": list(efforts)}
    try:
        request = InspectRequest(
            messages=_turns(image, question, system),
            model=model,
            max_tokens=max_tokens,
            overlays=overlays,
            **given,
        )
    except ValidationError as error:
        raise invalid(error) from None
    body = request.model_dump(mode="json", exclude_none=True)
    return Call("POST", "/v1/defense/inspect", reader(Inspection), body)


def models() -> Call[ModelList]:
    return Call("GET", "/v1/models", reader(ModelList))


def status() -> Call[EngineStatus]:
    return Call("GET", "/v1/status", reader(EngineStatus))


def health() -> Call[Health]:
    return Call("GET", "/health", reader(Health))


def ready() -> Call[bool]:
    return Call("GET", "/health/ready", _read_ready, retry=False)


_CHAT = "/v1/chat/completions"


def _turns(image: Images, question: str, system: str | None) -> list[ChatMessage]:
    parts: list[TextPart | ImagePart] = [
        ImagePart(image_url=ImageUrl(url=data_url(one))) for one in as_list(image)
    ]
    parts.append(TextPart(text=question))
    turns = [] if system is None else [ChatMessage(role="system", content=[TextPart(text=system)])]
    return [*turns, ChatMessage(role="user", content=parts)]


def _body(request: ChatRequest) -> dict[str, Any]:
    """What the caller did not set is not sent."""
    return request.model_dump(mode="json", exclude_none=True)


def _read_answer(response: httpx.Response) -> Answer:
    return Answer(reader(ChatResponse)(response), response.headers.get("x-request-id"))


def _read_ready(response: httpx.Response) -> bool:
    if response.status_code == 503:
        return False
    reader(Health)(response)
    return True


def _defense(defense: Defense, return_saliency: bool) -> DefenseRequest:
    if isinstance(defense, DefenseRequest):
        given = defense.model_dump(exclude_unset=True)
    elif isinstance(defense, Mapping):
        given = dict(defense)
    elif isinstance(defense, bool):
        given = {"enabled": defense}
    elif defense is None:
        given = {}
    else:
        raise InvalidInput("defense is None, True, False or the settings of the defence.")
    if return_saliency:
        given["return_saliency"] = True
    try:
        return DefenseRequest(**given)
    except ValidationError as error:
        raise invalid(error, "defense") from None
