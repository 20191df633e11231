"""How much a label rests on what the mask hides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from purifier.answer import user_messages
from purifier.data.sample import open_image
from purifier.defense.first_step import Response, first_step_logits
from purifier.denoise.config import GenerationConfig
from purifier.errors import PurifierError
from purifier.mdlm.llada_v import LladaV
from purifier.purification.likelihood import disagreement, label_log_likelihood


def test_log_likelihoods_are_those_of_the_first_step(mdlm: LladaV, images: Path) -> None:
    questions = ("What is this?", "What colour is the background?")
    prompts = [
        mdlm.embed(mdlm.prepare(user_messages(open_image(images, f"{number}.png"), question)))
        for number, question in enumerate(questions)
    ]
    response = Response.of(mdlm, GenerationConfig(gen_length=6))
    labels = [mdlm.encode_text("A bag."), mdlm.encode_text("Red")]
    found = label_log_likelihood(mdlm, prompts, response, labels)
    for prompt, label, values in zip(prompts, labels, found, strict=True):
        logits = first_step_logits(mdlm, [prompt], response)[0].double()
        expected = torch.stack(
            [torch.log_softmax(logits[place], -1)[token] for place, token in enumerate(label)]
        )
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)


def test_a_sure_token_without_its_reason_disagrees() -> None:
    unmasked = torch.tensor([0.9, 0.99, 0.5], dtype=torch.float64).log()
    masked = torch.tensor([0.9, 1e-4, 0.6], dtype=torch.float64).log()
    expected = 0.99 * (unmasked[1] - masked[1])
    assert disagreement(unmasked, masked) == pytest.approx(float(expected))


def test_what_is_not_a_number_is_refused() -> None:
    """It would look like a label that nothing hidden speaks for."""
    sure = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(PurifierError, match="not finite"):
        disagreement(sure, torch.tensor([0.0, torch.nan], dtype=torch.float64))


def test_what_was_never_expected_or_became_likelier_does_not() -> None:
    unlikely = torch.tensor([-20.0, -3.0], dtype=torch.float64)
    assert disagreement(unlikely, unlikely - 10) < 0.5
    assert disagreement(unlikely, unlikely + 2) == 0.0
    assert disagreement(torch.zeros(0), torch.zeros(0)) == 0.0
