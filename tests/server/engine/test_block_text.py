"""Text of finished blocks: the pieces make up the beginning of the answer."""

from __future__ import annotations

from itertools import pairwise

import pytest

from purifier import GenerationConfig
from purifier.answer import user_messages
from purifier.denoise import DenoisingState
from purifier.mdlm.base import Mdlm
from server.engine.block_text import BlockText

STOP = "END OF"


def pieces(mdlm: Mdlm, text: str, block: int) -> tuple[list[str], str]:
    """Lets a response become a text, one token a step; returns its pieces and the whole."""
    ids = [*mdlm.encode_text(text), mdlm.tokens.eot]
    ids += [mdlm.tokens.eot] * (-len(ids) % block)
    config = GenerationConfig(
        gen_length=len(ids), block_length=block, stop=("<|eot_id|>", STOP), parallel_threshold=1.0
    )
    prompt = mdlm.embed(mdlm.prepare(user_messages(None, "What is this?")))
    state = DenoisingState(mdlm, prompt, config)
    told = BlockText(mdlm, state)
    found = []
    while not state.done:
        places = state.candidates()
        state.commit([ids[place] for place in places], [-float(place) for place in places])
        found.append(told.advance())
    return found, mdlm.decode(state.token_ids).strip()


@pytest.mark.parametrize("block", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "text",
    [
        "A red ball.",
        "  two  spaces,\n\n lines and a tab\t. ",
        "naïve Ünïcödé: 日本語 🙂🙃 end",
        "It says END OF THE ROAD here.",
        "It says END, then EN, then E",
        "a � that was there",
        "",
        "   ",
    ],
)
def test_pieces_are_the_beginning_of_the_answer(mdlm: Mdlm, text: str, block: int) -> None:
    found, whole = pieces(mdlm, text, block)
    assert whole.startswith("".join(found))
    assert STOP not in "".join(found)
    if len(whole) > 40:
        assert len([piece for piece in found if piece]) > 1


def test_text_is_told_as_soon_as_its_block_is_finished(mdlm: Mdlm) -> None:
    text = "one two three four five six"
    found, whole = pieces(mdlm, text, 1)
    so_far = ["".join(found[: n + 1]) for n in range(len(found))]
    assert all(len(before) <= len(after) for before, after in pairwise(so_far))
    assert whole.startswith(so_far[-1])
    assert len(whole) - len(so_far[-1]) < len(" six!")


def test_one_block_has_no_pieces(mdlm: Mdlm) -> None:
    found, whole = pieces(mdlm, "A red ball.", 64)
    assert len(found) == len(mdlm.encode_text(whole)) + 1
    assert not any(found)
