"""Wire types of `POST /v1/chat/completions`, in OpenAI's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from server.schemas.defense import DefenseReport, DefenseRequest, Seed
from server.schemas.openai_fields import OpenAiFields

Role = Literal["system", "developer", "user", "assistant"]
Remasking = Literal["low_confidence", "random", "margin", "entropy"]
CacheName = Literal["none", "prefix", "dual", "dllm"]
FinishReason = Literal["stop", "length"]

MAX_MESSAGES = 256
MAX_PARTS = 64
MAX_STOP = 4


def _with_type(schema: dict[str, Any]) -> None:
    """Says that a part names its kind, although code that makes one need not."""
    if "type" in schema["properties"]:
        schema["required"] = ["type", *schema["required"]]


class _Open(BaseModel):
    """A piece of a request whose unknown fields have no effect and are named in `warnings`."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=_with_type)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)


class TextPart(_Open):
    """A piece of text."""

    type: Literal["text"] = "text"
    text: str


class ImageUrl(_Open):
    """Where the image is: a data URL of base64; `detail` is accepted and has no effect."""

    url: str = Field(min_length=1)
    detail: str | None = None


class ImagePart(_Open):
    """An image; it stands in the prompt where it stands in the turn."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[ContentPart], Field(max_length=MAX_PARTS)]


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise PydanticCustomError("content", "It must be a text or a list of parts.")
    return content


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ChatMessage(_Open):
    """One turn. `content` is a text or a list of parts; `developer` means `system`."""

    role: Role
    content: Annotated[Parts, BeforeValidator(_as_parts, json_schema_input_type=str | Parts)]

    @property
    def unknown_fields(self) -> list[str]:
        """Paths of fields that have no effect, in the turn and in its parts."""
        pieces: list[tuple[str, _Open]] = [("", self)]
        for number, part in enumerate(self.content):
            pieces.append((f"content[{number}].", part))
            if isinstance(part, ImagePart):
                pieces.append((f"content[{number}].image_url.", part.image_url))
        return [where + name for where, piece in pieces for name in _sent(piece)]


def _sent(piece: _Open | ChatRequest) -> list[str]:
    """Names of unknown fields that are not null; null asks for nothing."""
    extra = piece.__pydantic_extra__
    return sorted(name for name, value in extra.items() if value is not None)


StopText = Annotated[str, Field(min_length=1, max_length=64)]
StopTexts = Annotated[list[StopText], Field(max_length=MAX_STOP)]


class StreamOptions(BaseModel):
    """What a streamed answer holds besides its text; unknown options have no effect."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class ChatRequest(OpenAiFields):
    """A question, and how it is to be answered.

    Fields that OpenAI's clients send and this server does not know are ignored and named
    in the answer's `warnings`, unless they are null; ones whose neglect would break the caller
    are refused.
    Response length is `max_tokens`, `max_completion_tokens` or `gen_length`, all the same.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str = Field(default="default", max_length=256)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    gen_length: int | None = None
    steps: int | None = None
    block_length: int | None = None
    temperature: float | None = None
    guidance_scale: float | None = None
    remasking: Remasking | None = None
    cache: CacheName | None = None
    prompt_interval: int | None = None
    response_interval: int | None = None
    transfer_ratio: float | None = None
    parallel_threshold: float | None = None
    stop: Annotated[
        StopTexts | None,
        BeforeValidator(_as_list, json_schema_input_type=StopText | StopTexts | None),
    ] = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    defense: DefenseRequest = Field(default_factory=DefenseRequest)

    @field_validator("stream_options")
    @classmethod
    def _streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and info.data.get("stream") is not True:
            raise PydanticCustomError("stream_options", "It needs stream true.")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def unknown_fields(self) -> list[str]:
        """Paths of fields that have no effect, the top level's first."""
        turns = enumerate(self.messages)
        deeper = [f"messages[{n}].{name}" for n, turn in turns for name in turn.unknown_fields]
        return [*_sent(self), *deeper]


class AnswerMessage(BaseModel):
    """The answer's turn; `refusal` says why there is no answer, and `content` is empty then."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class Choice(BaseModel):
    """The one answer of a response."""

    index: int = 0
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class Usage(BaseModel):
    """Tokens. `prompt_tokens` counts positions, of which `visual_tokens` are the images'."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    visual_tokens: int
    steps: int


class ChatResponse(BaseModel):
    """An answer, which checkpoint gave it, and what the defence did."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    defense: DefenseReport
    warnings: list[str] = Field(default_factory=list)
