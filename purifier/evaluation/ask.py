"""Many questions to one model, a batch at a time, with the product's own way of answering."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from purifier.answer import Answer, answer_batch
from purifier.defense.config import MaskingConfig
from purifier.defense.defend import groups
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Mdlm, Message


def ask(
    mdlm: Mdlm,
    dialogues: Iterable[Sequence[Message]],
    generation: GenerationConfig,
    *,
    masking: MaskingConfig | None = None,
    batch_size: int = 16,
    check: Callable[[], None] | None = None,
) -> Iterator[Answer]:
    """Answers dialogues in their order; holds one batch of them and its images.

    Args:
        mdlm: The model.
        dialogues: Messages up to the answer.
        generation: Denoising settings.
        masking: The defence; None answers undefended.
        batch_size: Requests denoised together, fewer where they are long.
        check: Called between batches and within; what it raises ends the work.

    Raises:
        InvalidPrompt: If a dialogue cannot be turned into a prompt.
    """
    left = iter(dialogues)
    while batch := list(islice(left, batch_size)):
        if check is not None:
            check()
        inputs = [mdlm.prepare(messages) for messages in batch]
        for group in groups(inputs, generation.gen_length):
            yield from answer_batch(
                mdlm, group, generation=generation, masking=masking, check=check
            )
