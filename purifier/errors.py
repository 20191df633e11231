"""Every error the defence raises, in one tree.

    PurifierError
    |-- CheckpointError      a model folder is refused or damaged
    |-- InvalidSetting       a generation, masking or training setting is out of range
    |-- InvalidPrompt        the messages or images cannot be turned into a prompt
    |   `-- PromptTooLong    they are longer than the model's context
    |-- InvalidBase64        a text cannot be read as base64
    |-- ImageError           an image file cannot be used
    `-- DataError            a data set row or file cannot be used
        `-- RowError         one row, with the code of its reason

Messages are written for the person who sent the input: they name the field and the
remedy, and never contain the text of a foreign exception. Whatever a message repeats of an
input, it has at most `MOST_OF_A_MESSAGE` characters.
"""

from __future__ import annotations

from typing import Literal

from purifier.messages import MOST_OF_A_PARAM, bounded

ImageReason = Literal["bytes", "pixels", "format", "animated", "colours", "damaged"]


class PurifierError(Exception):
    """Base of all errors raised by `purifier`.

    Attributes:
        message: What is wrong and what to do about it; safe to show to a client.
        param: Name of the setting or field at fault, if there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.message = bounded(message)
        self.param = None if param is None else bounded(param, MOST_OF_A_PARAM)
        super().__init__(self.message)


class CheckpointError(PurifierError):
    """A model folder is refused, incomplete or damaged."""


class InvalidSetting(PurifierError):
    """A setting is unknown or out of range."""


class InvalidPrompt(PurifierError):
    """The messages or images cannot be turned into a prompt."""


class PromptTooLong(InvalidPrompt):
    """Prompt and response together are longer than the model's context."""


class InvalidBase64(PurifierError):
    """A text cannot be read as base64; the message is a clause that says why."""


class ImageError(PurifierError):
    """An image file cannot be used.

    Attributes:
        reason: `bytes` or `pixels` (too many), `format` (none that is read), `animated`, `colours`
            (they cannot be converted to sRGB) or `damaged`.
    """

    def __init__(self, message: str, *, reason: ImageReason) -> None:
        super().__init__(message, param="image")
        self.reason: ImageReason = reason


class DataError(PurifierError):
    """A data set row or file cannot be used."""


class RowError(DataError):
    """One row of a data set cannot be used.

    Attributes:
        reason: Code of the reason, one of `purifier.data.dataset.REASONS`.
    """

    def __init__(self, message: str, *, reason: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.reason = reason
