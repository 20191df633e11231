"""Wire types of the service: pydantic and nothing else, so that clients may import them."""

from server.schemas.chat import (
    AnswerMessage,
    CacheName,
    ChatMessage,
    ChatRequest,
    ChatResponse,
    Choice,
    ContentPart,
    FinishReason,
    ImagePart,
    ImageUrl,
    Remasking,
    Role,
    TextPart,
    Usage,
)
from server.schemas.defense import (
    DefenseReport,
    DefenseRequest,
    Level,
    NotApplied,
    Ranker,
    SaliencyMap,
)
from server.schemas.errors import ErrorBody, ErrorCode, ErrorEnvelope, ErrorType
from server.schemas.models import EngineStatus, Health, ModelCard, ModelList

__all__ = [
    "AnswerMessage",
    "CacheName",
    "ChatMessage",
    "ChatRequest",
    "ChatResponse",
    "Choice",
    "ContentPart",
    "DefenseReport",
    "DefenseRequest",
    "EngineStatus",
    "ErrorBody",
    "ErrorCode",
    "ErrorEnvelope",
    "ErrorType",
    "FinishReason",
    "Health",
    "ImagePart",
    "ImageUrl",
    "Level",
    "ModelCard",
    "ModelList",
    "NotApplied",
    "Ranker",
    "Remasking",
    "Role",
    "SaliencyMap",
    "TextPart",
    "Usage",
]
