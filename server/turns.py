"""The turns of a chat request: what may stand in them, and the dialogue that they are."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from purifier.mdlm.base import Message
from server.config import ServerConfig
from server.errors import ContextLengthExceeded, ImageMissing, InvalidPrompt
from server.schemas import ChatRequest, ImagePart, TextPart

PLACEHOLDER = "<image>"


def check_turns(request: ChatRequest, config: ServerConfig) -> None:
    """Checks what the turns say, before anything is decoded.

    Raises:
        InvalidPrompt: If a turn is empty or misplaced.
        ImageMissing: If a text holds the image placeholder and the request no image.
        ContextLengthExceeded: If the text is longer than any context.
    """
    if request.messages[-1].role != "user":
        raise InvalidPrompt(
            "The last message must be the user's.",
            param=f"messages[{len(request.messages) - 1}].role",
        )
    characters = 0
    has_image = bool(image_urls(request))
    for number, message in enumerate(request.messages):
        where = f"messages[{number}].content"
        texts = [part.text for part in message.content if isinstance(part, TextPart)]
        said_nothing = message.role == "assistant" and texts
        if not said_nothing and not any(text.strip() for text in texts):
            raise InvalidPrompt(
                f"This {message.role} message has no text; give it some.", param=where
            )
        if message.role != "user" and len(texts) < len(message.content):
            raise InvalidPrompt("Images may only stand in user messages.", param=where)
        if not has_image and any(PLACEHOLDER in text for text in texts):
            raise ImageMissing(
                f"The text holds {PLACEHOLDER} and the request no image; send it as an "
                "image_url part.",
                param=where,
            )
        characters += sum(map(len, texts))
    if characters > config.max_text:
        raise ContextLengthExceeded(
            f"The messages have {characters:,} characters; {config.max_text:,} at most are read.",
            param="messages",
        )


def image_urls(request: ChatRequest) -> list[tuple[str, str]]:
    """Where the images of a request stand, and their URLs."""
    return [
        (f"messages[{number}].content[{place}].image_url.url", part.image_url.url)
        for number, message in enumerate(request.messages)
        for place, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def messages_of(request: ChatRequest, images: Sequence[Image.Image]) -> list[Message]:
    """The turns with their images, opened, in place of the parts that name them."""
    rest = iter(images)
    return [
        Message(
            "system" if message.role == "developer" else message.role,
            tuple(
                part.text if isinstance(part, TextPart) else next(rest) for part in message.content
            ),
        )
        for message in request.messages
    ]
