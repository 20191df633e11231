r"""LLaDA-V's prompt layout: the chat template, and where images go.

    bos, then for every turn: start_header role end_header "\n\n" content eot,
    then the open assistant header

Text around an image is tokenised piece by piece, as the published code splits a prompt at
its image marks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken, Tokenizer

from purifier.errors import CheckpointError, InvalidPrompt
from purifier.mdlm.base import IMAGE_PLACEHOLDER, Message, SpecialTokens

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)

_MARKS = {
    "mask": "<|mdm_mask|>",
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "pad": "<|endoftext|>",
    "start_header": "<|start_header_id|>",
    "end_header": "<|end_header_id|>",
    "eot": "<|eot_id|>",
}


@dataclass(frozen=True)
class RenderedDialogue:
    """Ids of a whole dialogue, its images, and what every id is; see `purifier.mdlm.base`."""

    ids: list[int]
    images: list[Image.Image]
    answers: list[bool]
    marks: list[bool]
    turns: list[int]


class ChatTokenizer:
    """A tokenizer that knows the chat layout.

    Text that a user typed never becomes a special token: `<|eot_id|>` inside a question is
    ten characters of text.

    Args:
        path: `tokenizer.json`.
        drop_first_token_after_image: Reproduces the published inference code, which takes the
            first token behind every image for an automatic start token and drops it (the
            newline between image and question).

    Raises:
        CheckpointError: If the file is missing or lacks one of LLaDA's special tokens.
    """

    def __init__(self, path: Path, *, drop_first_token_after_image: bool = True) -> None:
        if not path.is_file():
            raise CheckpointError("The checkpoint has no tokenizer.json.")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception on a bad file
            raise CheckpointError("tokenizer.json cannot be read.") from error
        # A tokenizer.json may list a mark as an ordinary added token, which is found in any text.
        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        self._tokenizer.add_special_tokens(
            [
                AddedToken(mark, normalized=False, special=True)
                for mark in {*_MARKS.values()} & known
            ]
        )
        self._tokenizer.encode_special_tokens = True
        self.drop_first_token_after_image = drop_first_token_after_image
        ids = {name: self._tokenizer.token_to_id(mark) for name, mark in _MARKS.items()}
        missing = sorted({_MARKS[name] for name, value in ids.items() if value is None})
        if missing:
            raise CheckpointError(f"tokenizer.json lacks the special tokens {', '.join(missing)}.")
        self.tokens = SpecialTokens(**{name: int(value or 0) for name, value in ids.items()})
        added = {
            token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        self._added = added
        self._added_pattern = re.compile("|".join(map(re.escape, sorted(added, key=len)[::-1])))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_with_marks(self, text: str) -> list[int]:
        """Ids of text whose special tokens are meant as such."""
        ids: list[int] = []
        end = 0
        for match in self._added_pattern.finditer(text):
            ids += [*self.encode(text[end : match.start()]), self._added[match[0]]]
            end = match.end()
        return ids + self.encode(text[end:])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def render(self, messages: Sequence[Message]) -> tuple[list[int], list[Image.Image]]:
        """Ids of a dialogue with a placeholder for every image, and the images in order."""
        check_messages(messages)
        if messages[0].role != "system":
            messages = [Message("system", (SYSTEM_PROMPT,)), *messages]
        ids = [self.tokens.bos]
        images: list[Image.Image] = []
        for message in messages:
            ids += self._header(message.role)
            ids += self._content(message, images)
            ids.append(self.tokens.eot)
        return ids + self._header("assistant") + self.encode("\n\n"), images

    def question_text(self, ids: Sequence[int]) -> list[bool]:
        """Which ids of a rendered dialogue are text of its last user turn, line breaks left out."""
        tokens = self.tokens
        stop = max(place for place, token in enumerate(ids) if token == tokens.eot)
        start = max(place for place in range(stop) if ids[place] == tokens.end_header)
        others = {IMAGE_PLACEHOLDER, *self.encode("\n\n"), *self.encode("\n")}
        return [start < place < stop and token not in others for place, token in enumerate(ids)]

    def render_dialogue(self, messages: Sequence[Message]) -> RenderedDialogue:
        """Ids of a dialogue that ends with an answer.

        The published code also trains on the marks of the chat layout, wherever their ids
        stand, and on the whole header of an answer.
        """
        check_dialogue(messages)
        if messages[0].role != "system":
            messages = [Message("system", (SYSTEM_PROMPT,)), *messages]
        tokens = self.tokens
        mark_ids = {tokens.bos, tokens.start_header, tokens.end_header, tokens.eot}
        mark_ids |= set(self.encode("\n\n"))
        ids = [tokens.bos]
        images: list[Image.Image] = []
        answers, marks, turns = [False], [True], [0]
        turn = 0
        for message in messages:
            is_answer = message.role == "assistant"
            header = self._header(message.role)
            if is_answer:
                # As generation sees it: the header is complete before the answer begins.
                header += self.encode("\n\n")
                content = [token for part in message.content for token in self._answer(part)]
            else:
                content = self._content(message, images)
            piece = [*header, *content, tokens.eot]
            ids += piece
            answers += [False] * len(header) + [is_answer] * (len(content) + 1)
            in_header = [is_answer or token in mark_ids for token in header]
            marks += in_header + [token in mark_ids for token in piece[len(header) :]]
            turns += [turn] * len(piece)
            turn += is_answer
        return RenderedDialogue(ids, images, answers, marks, turns)

    def _answer(self, part: str | Image.Image) -> list[int]:
        return self.encode(part.strip()) if isinstance(part, str) else []

    def _header(self, role: str) -> list[int]:
        return [self.tokens.start_header, *self.encode(role), self.tokens.end_header]

    def _content(self, message: Message, images: list[Image.Image]) -> list[int]:
        ids: list[int] = []
        text = "\n\n"
        after_image = False
        parts = [part.strip() if isinstance(part, str) else part for part in message.content]
        for number, part in enumerate(parts):
            if isinstance(part, str):
                text += "\n" + part if number else part
                continue
            if number:
                text += " " if not isinstance(parts[number - 1], str) else "\n"
            ids += self._piece(text, after_image)
            ids.append(IMAGE_PLACEHOLDER)
            images.append(part)
            text, after_image = "", True
        return ids + self._piece(text, after_image)

    def _piece(self, text: str, after_image: bool) -> list[int]:
        ids = self.encode(text)
        return ids[1:] if after_image and self.drop_first_token_after_image else ids


def check_messages(messages: Sequence[Message]) -> None:
    """Checks that a dialogue can be rendered.

    Raises:
        InvalidPrompt: If it is empty, a turn other than an answer is empty, or it does not end
            with a user turn.
    """
    if not messages or messages[-1].role != "user":
        raise InvalidPrompt("The last message must be a user turn.", param="messages")
    _check_turns(messages, empty_answers=True)


def check_dialogue(messages: Sequence[Message]) -> None:
    """Checks that a dialogue can be trained on.

    Raises:
        InvalidPrompt: If it is empty, a turn is empty, or it does not end with an answer.
    """
    if not messages or messages[-1].role != "assistant":
        raise InvalidPrompt("The last message must be an assistant turn.", param="messages")
    _check_turns(messages, empty_answers=False)


def _check_turns(messages: Sequence[Message], *, empty_answers: bool) -> None:
    for number, message in enumerate(messages):
        texts = [part for part in message.content if isinstance(part, str)]
        may_be_empty = empty_answers and message.role == "assistant" and texts
        if not may_be_empty and not any(text.strip() for text in texts):
            raise InvalidPrompt(
                f"Message {number} ({message.role}) has no text; give it some.", param="messages"
            )
        if message.role != "user" and len(texts) < len(message.content):
            raise InvalidPrompt(
                f"Message {number} ({message.role}) holds an image; only user turns may.",
                param="messages",
            )
