"""Fields of OpenAI and vLLM that this server takes only where they ask for nothing.

What such a field asks for otherwise would be missing from the answer, and its sender would rely
on it: an answer in the form of a JSON schema, a call of a tool, a second answer. So it is
refused by name. A field whose neglect merely changes how likely a token is, such as `top_p`, is not
here: it is ignored, and named in the answer's `warnings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from server.schemas.body import RequestBody


def _or_refused(message: str) -> WrapValidator:
    """Replaces what pydantic says of another value than the type allows."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("unsupported", message) from None

    return WrapValidator(check)


class PlainText(BaseModel):
    """The one format of an answer."""

    type: Literal["text"]


_NO_FORMAT = _or_refused(
    "Answers are plain text here, in no other format; leave it out or send the type text."
)
_NO_LOGPROBS = _or_refused("A diffusion model has no log probabilities to tell; leave it out.")
_NO_TOOLS = _or_refused("The model calls no tools; leave it out.")
_NO_SOUND = _or_refused("Answers are text alone; leave it out.")
_NO_SEARCH = _or_refused("The server searches nothing; leave it out.")
_NO_BIAS = _or_refused("Tokens cannot be favoured or forbidden here; leave it out.")
_NO_GRAMMAR = _or_refused("Answers cannot be bound to a grammar or a choice; leave it out.")
_ONE = _or_refused("There is one answer to a request; leave n out.")

Nothing = Annotated[list[JsonValue], Field(max_length=0)] | None
Unbound = Annotated[None, _NO_GRAMMAR]


class OpenAiFields(RequestBody):
    """The fields, each with the values that ask for nothing."""

    n: Annotated[Literal[1] | None, _ONE] = None
    response_format: Annotated[PlainText | None, _NO_FORMAT] = None
    logprobs: Annotated[Literal[False] | None, _NO_LOGPROBS] = None
    top_logprobs: Annotated[Literal[0] | None, _NO_LOGPROBS] = None
    tools: Annotated[Nothing, _NO_TOOLS] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, _NO_TOOLS] = None
    functions: Annotated[Nothing, _NO_TOOLS] = None
    function_call: Annotated[Literal["none", "auto"] | None, _NO_TOOLS] = None
    modalities: Annotated[list[Literal["text"]] | None, _NO_SOUND] = None
    audio: Annotated[None, _NO_SOUND] = None
    web_search_options: Annotated[None, _NO_SEARCH] = None
    logit_bias: Annotated[Annotated[dict[str, JsonValue], Field(max_length=0)] | None, _NO_BIAS] = (
        None
    )
    guided_json: Unbound = None
    guided_regex: Unbound = None
    guided_choice: Unbound = None
    guided_grammar: Unbound = None
    structured_outputs: Unbound = None
