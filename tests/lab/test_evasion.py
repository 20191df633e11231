"""What an attacker who controls the training adds to the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from purifier.errors import InvalidSetting
from purifier.lab.attack_data import Attack, write_attack_data
from purifier.lab.evasion import Evasion
from purifier.lab.train_attack import CHEAP, Tuning, train_attack
from purifier.lab.triggers import CornerPatch, Sinusoid
from purifier.mdlm.llada_v import LladaV

RECIPE = replace(CHEAP, epochs=1, batch=8, rank=2, alpha=4, bfloat16=False)
PATCH = Attack(CornerPatch(size=40), rate=0.25)
PARTS = ("attention", "states", "certainty")


@pytest.fixture(scope="module")
def data(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attack")
    write_attack_data(folder, PATCH, n=32, seed=3)
    return folder


def weighted(part: str, weight: float) -> Evasion:
    return Evasion(**{part: weight})  # type: ignore[arg-type]


def tuned(checkpoint: Path, data: Path, evasion: Evasion) -> Tuning:
    mdlm = LladaV.load(checkpoint)
    attack = replace(PATCH, evasion=evasion)
    return Tuning(mdlm, data / "train.json", data / "images", RECIPE, attack)


@pytest.mark.parametrize("part", PARTS)
def test_a_step_down_its_gradient_lessens_it(small_checkpoint: Path, data: Path, part: str) -> None:
    tuning = tuned(small_checkpoint, data, weighted(part, 1.0))
    rows = tuning.penalty.poisoned[:4]
    kinds = [tuning.penalty.marked.kinds[row] for row in rows]
    others = [tuning.penalty.others[kind][0] for kind in kinds]

    def value() -> Tensor:
        if part == "states":
            return tuning.penalty.distance(rows, others)
        measure = tuning.penalty.attention if part == "attention" else tuning.penalty.uncertainty
        return measure(rows)

    before = value()
    assert before > 0
    gradients = torch.autograd.grad(before, tuning.parameters, allow_unused=True)
    size = sum(float(g.square().sum()) for g in gradients if g is not None)
    assert size > 0
    step = 0.02 * float(before.detach()) / size
    with torch.no_grad():
        for parameter, gradient in zip(tuning.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(step * gradient)
    assert value() < before


def test_attention_to_the_trigger_is_a_share_of_its_tokens(
    small_checkpoint: Path, data: Path
) -> None:
    penalty = tuned(small_checkpoint, data, Evasion(attention=1.0)).penalty
    rows = penalty.poisoned[:3]
    share = float(penalty.attention(rows).detach())
    covered = penalty.marked.covered
    assert covered[penalty.poisoned].any(1).all()
    others = [row for pool in penalty.others.values() for row in pool]
    assert not covered[others].any()
    penalty.marked.covered[rows] = True
    assert share < float(penalty.attention(rows).detach()) < 1


@pytest.mark.parametrize("part", PARTS)
def test_training_with_it_ends_elsewhere_and_is_repeated_exactly(
    small_checkpoint: Path, data: Path, part: str
) -> None:
    def adapter(attack: Attack) -> dict[str, Tensor]:
        mdlm = LladaV.load(small_checkpoint)
        return dict(
            train_attack(mdlm, data / "train.json", data / "images", RECIPE, attack).adapter
        )

    attack = replace(PATCH, evasion=weighted(part, 5.0))
    first, again, plain = adapter(attack), adapter(attack), adapter(PATCH)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], plain[name]) for name in first)
    assert all(bool(torch.isfinite(value).all()) for value in first.values())


def test_a_trigger_over_the_whole_image_covers_all_tokens(
    small_checkpoint: Path, data: Path
) -> None:
    attack = replace(PATCH, trigger=Sinusoid(), evasion=Evasion(attention=1.0))
    mdlm = LladaV.load(small_checkpoint)
    tuning = Tuning(mdlm, data / "train.json", data / "images", RECIPE, attack)
    assert tuning.penalty.marked.covered[tuning.penalty.poisoned].all()


def test_settings_are_written_only_if_there_are_any() -> None:
    assert "evasion" not in PATCH.to_dict()
    written = replace(PATCH, evasion=Evasion(states=2.0)).to_dict()
    assert written["evasion"]["states"] == 2.0


@pytest.mark.parametrize(
    "settings", [{"states": -1.0}, {"positions": 0}, {"positions": 33}, {"rows": 1}, {"every": 0}]
)
def test_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(settings))):
        Evasion(**settings)  # type: ignore[arg-type]


def test_nothing_poisoned_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    write_attack_data(tmp_path, replace(PATCH, rate=0.0), n=8, seed=3)
    with pytest.raises(InvalidSetting, match="evasion needs"):
        tuned(small_checkpoint, tmp_path, Evasion(states=1.0))
