"""What can be asked of the server: one `Call` for every operation, and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypedDict, TypeVar, Unpack

import httpx
from pydantic import BaseModel, ValidationError

from clients._answer import Answer
from clients._exceptions import InvalidInput, StatusError, UnexpectedResponse, error_class
from clients._images import Images, as_list, data_url
from clients._retry import Retries, retry_after
from clients._settings import Settings
from server.schemas import (
    ChatMessage,
    ChatRequest,
    ChatResponse,
    DefenseRequest,
    EngineStatus,
    Health,
    ImagePart,
    ImageUrl,
    ModelList,
    Remasking,
    TextPart,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

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
    stop: str | list[str]
    seed: int


@dataclass(frozen=True)
class Call(Generic[T]):
    """One operation of the service.

    Attributes:
        method: HTTP method.
        path: Path below the base URL.
        read: Turns the final answer into the result, or raises the error it tells of.
        body: JSON body, if there is one.
        retry: Whether an answer that says "later" is worth another try.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: BaseModel | None = None
    retry: bool = True


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
    parts: list[TextPart | ImagePart] = [
        ImagePart(image_url=ImageUrl(url=data_url(one))) for one in as_list(image)
    ]
    parts.append(TextPart(text=question))
    turns = [] if system is None else [ChatMessage(role="system", content=[TextPart(text=system)])]
    turns.append(ChatMessage(role="user", content=parts))
    try:
        request = ChatRequest(
            messages=turns,
            model=model,
            defense=_defense(defense, return_saliency),
            **generation,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise _invalid(error) from None
    return Call("POST", "/v1/chat/completions", _read_answer, request)


def chat(request: ChatRequest) -> Call[ChatResponse]:
    """A dialogue, as the server's schema has it."""
    return Call("POST", "/v1/chat/completions", reader(ChatResponse), request)


def models() -> Call[ModelList]:
    return Call("GET", "/v1/models", reader(ModelList))


def status() -> Call[EngineStatus]:
    return Call("GET", "/v1/status", reader(EngineStatus))


def health() -> Call[Health]:
    return Call("GET", "/health", reader(Health))


def ready() -> Call[bool]:
    return Call("GET", "/health/ready", _read_ready, retry=False)


def build(call: Call[T], http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
    """The request of a call; what the caller did not set is not sent."""
    if call.body is None:
        return http.build_request(call.method, call.path)
    body = call.body.model_dump(mode="json", exclude_none=True)
    return http.build_request(call.method, call.path, json=body)


def retries(call: Call[T], settings: Settings) -> Retries:
    """How often this call may be tried again."""
    return settings.retries if call.retry else replace(settings.retries, limit=0)


def reader(model: type[M]) -> Callable[[httpx.Response], M]:
    """Reads an answer of this type."""

    def read(response: httpx.Response) -> M:
        if not response.is_success:
            raise failure(response)
        try:
            return model.model_validate_json(response.content)
        except ValidationError:
            raise UnexpectedResponse(
                f"{response.url} did not answer with a {model.__name__}; is the base URL right?"
            ) from None

    return read


def failure(response: httpx.Response) -> StatusError | UnexpectedResponse:
    """The error that an answer without success tells of."""
    if response.status_code < 400:
        return UnexpectedResponse(
            f"{response.url} answered with status {response.status_code}; is the base URL right?"
        )
    try:
        body = _Envelope.model_validate_json(response.content).error
    except ValidationError:
        body = _Error(message=f"The server answered {response.status_code} without saying why.")
    return error_class(response.status_code)(
        body.message,
        status=response.status_code,
        type=body.type,
        code=body.code,
        param=body.param,
        request_id=response.headers.get("x-request-id"),
        retry_after=retry_after(response.headers),
    )


class _Error(BaseModel):
    """An error as any version of the server may word it; codes are not restricted."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class _Envelope(BaseModel):
    error: _Error


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
        raise _invalid(error, "defense") from None


def _invalid(error: ValidationError, prefix: str = "") -> InvalidInput:
    """The first finding of a failed check, naming the field."""
    first = error.errors(include_url=False)[0]
    field = ".".join([*([prefix] if prefix else []), *map(str, first["loc"])])
    return InvalidInput(f"{field}: {first['msg']}.")
