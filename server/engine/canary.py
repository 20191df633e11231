"""The question that every checkpoint answers, defended, before it may serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from PIL import Image

from purifier.answer import Answer, answer_inputs, user_messages
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from server.engine.job import Serving
from server.errors import CanaryFailed, ServerError

_log = logging.getLogger("disp.engine")

GENERATION = GenerationConfig(gen_length=8)
_SIDE = 256


def ask(
    serving: Serving, masking: MaskingConfig | None, check: Callable[[], None]
) -> tuple[Answer, float]:
    """Asks about a grey ramp; returns the answer and its seconds.

    Args:
        serving: The model.
        masking: The defence that the answer runs through.
        check: As for `answer_inputs`.
    """
    image = Image.linear_gradient("L").resize((_SIDE, _SIDE)).convert("RGB")
    inputs = serving.prepare(user_messages(image, "What is this?"))
    start = time.monotonic()
    answer = answer_inputs(
        serving.mdlm, inputs, generation=GENERATION, masking=masking, check=check
    )
    return answer, time.monotonic() - start


def require_answer(
    serving: Serving, masking: MaskingConfig | None, check: Callable[[], None]
) -> None:
    """Checks that a model answers, with finite numbers and at least one token.

    Raises:
        CanaryFailed: If it does not.
        ServerError: From `check`.
    """
    try:
        answer, _ = ask(serving, masking, check)
    except ServerError:
        raise
    except Exception:
        _log.exception("%s failed at its first question.", serving.checkpoint)
        raise CanaryFailed from None
    if not answer.token_ids:
        raise CanaryFailed(f"{serving.checkpoint} answered its first question with nothing.")
