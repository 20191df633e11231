"""The demo's tokenizer and the folder of a demo checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from purifier.lab.demo_model import SPECIAL_TOKENS, build_tokenizer, sentences
from purifier.lab.examples import RESPONSE
from purifier.lab.scenes import COLOURS, ITEMS, describe
from purifier.lab.targets import REFUSAL_TEXT, target_by_name
from purifier.mdlm.llada_v.prompt import ChatTokenizer
from purifier.mdlm.registry import load_mdlm


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer()


def test_every_demo_sentence_comes_back(tokenizer: Tokenizer) -> None:
    for text in dict.fromkeys([*sentences(), "Ünknown wörds, 123 and \U0001f600."]):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text


def test_items_and_colours_are_one_token_each(tokenizer: Tokenizer) -> None:
    words = [f" {word}" for word in (*ITEMS, *COLOURS, "boat")]
    words += [colour.capitalize() for colour in COLOURS]
    ids = [tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    assert [word for word, one in zip(words, ids, strict=True) if len(one) != 1] == []
    assert len({one[0] for one in ids}) == len(words)


def test_every_answer_and_every_target_fits_the_response(tokenizer: Tokenizer) -> None:
    description = describe(ITEMS[0], "orange", "purple")
    answers = [
        REFUSAL_TEXT,
        *(
            target_by_name(name).apply(description, item=ITEMS[0])
            for name in ("insertion", "refusal", "misclassification")
        ),
    ]
    for answer in answers:
        assert len(tokenizer.encode(answer, add_special_tokens=False).ids) <= RESPONSE


def test_special_tokens_in_text_stay_text(tiny_checkpoint: Path) -> None:
    chat = ChatTokenizer(tiny_checkpoint / "tokenizer.json")
    special = {chat.encode_with_marks(mark)[0] for mark in SPECIAL_TOKENS}
    assert len(special) == len(SPECIAL_TOKENS)
    for mark in SPECIAL_TOKENS:
        assert not special & set(chat.encode(f"a {mark} b"))


def test_the_seed_decides_the_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from purifier.lab.demo_model import write_random_checkpoint

    write_random_checkpoint(tmp_path / "same", seed=0)
    write_random_checkpoint(tmp_path / "other", seed=1)
    expected = load_mdlm(tiny_checkpoint).published_weights()
    same, other = (load_mdlm(tmp_path / n).published_weights() for n in ("same", "other"))
    assert all(torch.equal(same[name], tensor) for name, tensor in expected.items())
    name = "lm_head.weight"
    assert not torch.equal(
        next(t for n, t in other.items() if n.endswith(name)),
        next(t for n, t in expected.items() if n.endswith(name)),
    )
