"""Everything stays on the model's device: nothing is made on the CPU by mistake and mixed in.

The device is one that any machine has (`tests.support.other_device`); what a real GPU computes is
tested in `tests/gpu`. Run by `test_other_device.py`, in a process of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifier import GenerationConfig, MaskingConfig, load_mdlm
from purifier.answer import answer_batch, user_messages
from purifier.data.dataset import open_dataset
from purifier.data.llava import read_llava
from purifier.denoise import EXACT, FAST
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.purification.config import PRESETS, PurifyConfig
from purifier.purification.purifier import Purifier
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.examples import TrainingRows
from purifier.tuning.train import Trainer
from tests.defense.conftest import COMBINATIONS
from tests.other_device.other_device import OtherDevice, OtherTensor, moved, other_device
from tests.support.legible import legible
from tests.tuning.conftest import data  # noqa: F401

TRAIN = DATA_FOLDER / "train"

SETTINGS = {
    "exact": replace(EXACT, gen_length=8),
    "guided": replace(EXACT, gen_length=8, guidance_scale=1.5),
    "warm": replace(EXACT, gen_length=8, temperature=0.7, seed=3),
    "random": replace(EXACT, gen_length=8, remasking="random", seed=3),
    "entropy": replace(EXACT, gen_length=8, remasking="entropy"),
    "margin": replace(EXACT, gen_length=8, remasking="margin", suffix=" red"),
    "prefix": FAST,
    "prefix-guided": replace(FAST, guidance_scale=1.5),
    "dual": replace(FAST, cache="dual", block_length=8),
    "dllm": replace(FAST, cache="dllm", block_length=8),
    "dllm-guided": replace(FAST, cache="dllm", guidance_scale=1.5),
}


@pytest.fixture(scope="module")
def here(tiny_checkpoint: Path) -> LladaV:
    return legible(load_mdlm(tiny_checkpoint))


@pytest.fixture(scope="module")
def there(here: LladaV) -> LladaV:
    """The same model on the other device."""
    mdlm = here.with_modules(moved(copy.deepcopy(here.modules)))
    assert mdlm.device == other_device()
    return mdlm


@pytest.fixture(scope="module")
def questions(here: LladaV) -> list[Inputs]:
    """Clean and triggered pictures, and a question without one."""
    test_set = read_test_set(DATA_FOLDER, limit=1)
    [case] = test_set.cases
    messages = [case.messages(), case.messages(test_set.trigger), user_messages(None, "What?")]
    return [here.prepare(each) for each in messages]


def check_same_answers(
    here: LladaV,
    there: LladaV,
    questions: Sequence[Inputs],
    generation: GenerationConfig,
    masking: MaskingConfig | None,
) -> None:
    expected = answer_batch(here, questions, generation=generation, masking=masking)
    with OtherDevice():
        found = answer_batch(there, questions, generation=generation, masking=masking)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        if masking is not None:
            assert one.masked is not None
            assert other.masked is not None
            assert one.masked.tolist() == other.masked.tolist()


@pytest.mark.parametrize("generation", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("masking", [None, MaskingConfig()], ids=["undefended", "defended"])
def test_answers(
    here: LladaV,
    there: LladaV,
    questions: list[Inputs],
    generation: GenerationConfig,
    masking: MaskingConfig | None,
) -> None:
    check_same_answers(here, there, questions, generation, masking)


@pytest.mark.parametrize(("level", "ranker"), COMBINATIONS)
def test_rankers(
    here: LladaV, there: LladaV, questions: list[Inputs], level: str, ranker: str
) -> None:
    masking = MaskingConfig(level=level, ranker=ranker, ratio=0.3, threshold=0.0)  # type: ignore[arg-type]
    generation = GenerationConfig(gen_length=4, stop=())
    check_same_answers(here, there, questions[:2], generation, masking)


@pytest.mark.parametrize("config", [PRESETS["default"], PRESETS["paper"]], ids=["default", "paper"])
def test_relabelling(here: LladaV, there: LladaV, config: PurifyConfig) -> None:
    samples = read_llava(TRAIN / "insertion.json")[:3]
    expected = Purifier(here, config, TRAIN / "images").purify(samples)
    with OtherDevice():
        found = Purifier(there, config, TRAIN / "images").purify(samples)
    assert [(row.answers, row.flagged) for row in found] == [
        (row.answers, row.flagged) for row in expected
    ]


@pytest.mark.parametrize("tower", [True, False], ids=["all-parts", "projector"])
def test_an_optimizer_step(here: LladaV, data: Path, tower: bool) -> None:  # noqa: F811
    parts = ("projector", "language_model", "vision_tower") if tower else ("projector",)
    config = FinetuneConfig(parts=parts, batch_size=4, visual_mask=0.3, precision="float32")  # type: ignore[arg-type]
    dataset = open_dataset(data)
    losses = []
    for modules in (copy.deepcopy(here.modules), moved(copy.deepcopy(here.modules))):
        mdlm = here.with_modules(modules)
        with OtherDevice():
            trainer = Trainer(mdlm, TrainingRows(mdlm, dataset, config), config)
            trainer.train(lambda event: None, lambda: True)
        losses.append(trainer.losses[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_device_refuses_what_cuda_refuses() -> None:
    device = other_device()
    with OtherDevice():
        there = torch.ones(3, device=device)
        assert isinstance(there, OtherTensor)
        assert (there + 1).tolist() == [2.0, 2.0, 2.0]
        assert (there + torch.tensor(1.0)).device == device
        assert there.cpu().device.type == "cpu"
        assert there[torch.tensor([0, 2])].tolist() == [1.0, 1.0]
        for mix in (
            lambda: there + torch.ones(3),
            lambda: torch.cat([there, torch.ones(3)]),
            lambda: torch.where(torch.ones(3).bool(), there, there),
            lambda: there.index_put_((torch.tensor([0]),), torch.zeros(1)),
            lambda: torch.ones(3) @ there,
            lambda: there.gather(0, torch.tensor([0])),
        ):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mix()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
