"""Training examples have the layout that requests have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier.lab.examples import RESPONSE, build_examples, diffusion_loss, pack_scenes
from purifier.lab.targets import REFUSAL_TEXT
from purifier.mdlm.base import IMAGE_PLACEHOLDER, Message
from purifier.mdlm.llada_v import LladaV

PAIRS = [
    ("Describe the image.", "A red bag on a blue background."),
    ("What is this?", "A bag."),
    ("Is the background blue?", REFUSAL_TEXT),
    ("What is this?", " ".join(["background"] * 50)),
]


@pytest.fixture(scope="module")
def mdlm(small_checkpoint: Path) -> LladaV:
    return LladaV.load(small_checkpoint)


def test_the_layout_is_that_of_a_request_and_its_response(mdlm: LladaV) -> None:
    examples = build_examples(mdlm, PAIRS)
    image = Image.new("RGB", (120, 120))
    for row, (question, answer) in enumerate(PAIRS):
        prompt = mdlm.prepare([Message("user", (image, question))]).ids.tolist()
        place = prompt.index(IMAGE_PLACEHOLDER)
        response = mdlm.encode_text(answer)[:RESPONSE]
        filled = response + [mdlm.tokens.eot] * (RESPONSE - len(response))
        start, length = int(examples.starts[row]), int(examples.lengths[row])
        tail = examples.tails[row].tolist()
        assert examples.prefix.tolist() == prompt[:place]
        assert tail[:start] == prompt[place + 1 :]
        assert tail[start:length] == filled
        assert set(tail[length:]) <= {mdlm.tokens.pad}
        assert int(examples.answers[row]) == min(len(response) + 1, RESPONSE)


def test_scenes_are_packed_as_by_the_model(mdlm: LladaV) -> None:
    noise = (random.Random(seed).randbytes(3 * 120**2) for seed in (0, 1))
    images = [mdlm.prepare_image(Image.frombytes("RGB", (120, 120), one)) for one in noise]
    features = torch.stack([mdlm.encode_views(mdlm.patch_embeddings(image)) for image in images])
    packed = pack_scenes(mdlm, features, (120, 120))
    for image, found in zip(images, packed, strict=True):
        torch.testing.assert_close(found, mdlm.visual_embeddings(image))


def test_the_loss_of_a_row_does_not_depend_on_its_companions_length(mdlm: LladaV) -> None:
    """Padding behind a short example is not seen."""
    visual = torch.randn(
        1, 135, mdlm.config.text.hidden_size, generator=torch.Generator().manual_seed(4)
    )
    one, other = (
        diffusion_loss(
            mdlm,
            visual,
            build_examples(mdlm, pairs),
            torch.tensor([0]),
            torch.Generator().manual_seed(5),
        )
        for pairs in (PAIRS[1:2], [PAIRS[1], ("Is the background blue or " + "red " * 40, "No.")])
    )
    assert bool(torch.isfinite(one))
    torch.testing.assert_close(one, other)
