"""People and programs that use the service: SDK and command line.

    from clients import Client

    with Client() as client:
        reply = client.answer("scene.jpg", "Describe the image.")
        print(reply.text, reply.defense.masked, "of", reply.defense.total)

The modules behind it are private; the command `disp` is in `clients.cli`.
"""

from clients._answer import Answer
from clients._async_client import AsyncClient
from clients._calls import Defense, Generation
from clients._client import Client
from clients._exceptions import (
    BadRequest,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    DispError,
    Forbidden,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    RequestTimedOut,
    ServerError,
    StatusError,
    StorageFull,
    TooLarge,
    Unauthorized,
    UnexpectedResponse,
    Unprocessable,
    UnsupportedMedia,
    WaitTimedOut,
)
from clients._file_calls import FileLike
from clients._images import ImageLike, Images
from clients._job_calls import JobSettings
from clients._overlay import draw_overlay

__all__ = [
    "Answer",
    "AsyncClient",
    "BadRequest",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Defense",
    "DispError",
    "FileLike",
    "Forbidden",
    "Generation",
    "ImageLike",
    "Images",
    "InvalidInput",
    "JobSettings",
    "MethodNotAllowed",
    "NotFound",
    "NotReady",
    "Overloaded",
    "RequestTimedOut",
    "ServerError",
    "StatusError",
    "StorageFull",
    "TooLarge",
    "Unauthorized",
    "UnexpectedResponse",
    "Unprocessable",
    "UnsupportedMedia",
    "WaitTimedOut",
    "draw_overlay",
]
