"""Fine-pruning, and the defences that put weights of the base back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.defense.attacks import attack_by_name
from benchmarks.defense.cells import Bench
from benchmarks.defense.healing import clean_rows
from benchmarks.defense.healing.clean_rows import read_clean_rows, write_clean_rows
from benchmarks.defense.healing.pruning import FinePruning, activations, prune
from benchmarks.defense.healing.restoring import ProjectorReset, RandomRestore
from purifier.data.llava import read_llava
from purifier.mdlm.llada_v.model import LladaV
from purifier.mdlm.registry import load_mdlm

pytestmark = pytest.mark.slow

PATCH = "validation/patch"


@pytest.fixture
def mdlm(bench: Bench) -> LladaV:
    """The poisoned model."""
    found = bench.lab.trained(attack_by_name(PATCH))
    assert isinstance(found, LladaV)
    return found


def test_pruning_stops_at_the_first_no_and_goes_one_step_back(mdlm: LladaV) -> None:
    layers = list(mdlm.modules.language_model.layers)
    units = layers[0].mlp.down_proj.in_features
    before = [layer.mlp.down_proj.weight.detach().clone() for layer in layers]
    # In every layer the later units are the less active ones.
    active = [torch.arange(units, 0, -1).float() for _ in layers]
    answers = iter([True, True, False])
    assert prune(mdlm, active, 0.25, lambda: next(answers)) == pytest.approx(0.5)
    for layer, weight in zip(layers, before, strict=True):
        half = units // 2
        assert torch.equal(layer.mlp.down_proj.weight[:, :half], weight[:, :half])
        assert bool(layer.mlp.gate_proj.weight[:half].any(1).all())
        for dead in (
            layer.mlp.down_proj.weight[:, half:],
            layer.mlp.gate_proj.weight[half:],
            layer.mlp.up_proj.weight[half:],
        ):
            assert not dead.any()


def test_nothing_is_pruned_where_the_first_step_costs_too_much(mdlm: LladaV) -> None:
    before = {name: weight.clone() for name, weight in mdlm.published_weights().items()}
    layers = mdlm.modules.language_model.layers
    active = [torch.ones(layer.mlp.down_proj.in_features) for layer in layers]
    assert prune(mdlm, active, 0.25, lambda: False) == 0
    for name, weight in mdlm.published_weights().items():
        assert torch.equal(weight, before[name])


def test_clean_rows_are_training_scenes_without_a_trigger(
    bench: Bench, mdlm: LladaV, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = attack_by_name(PATCH)
    folder = bench.lab.work / "clean rows"
    labels, images = write_clean_rows(folder, bench.lab, 4)
    rows = read_llava(labels)
    truth = read_llava(bench.lab.data(attack) / "clean_labels.json")
    assert [row.answer for row in rows] == [row.answer for row in truth[:4]]
    assert all("poisoned" not in row.extra for row in rows)
    clean = read_clean_rows(mdlm, labels, images, seed=0)
    assert clean.targets.shape == clean.masked.shape == (8, 32)
    assert 0 < float(clean.masked.float().mean()) < 1
    label = mdlm.encode_text(rows[0].answer)
    assert clean.targets[0, : len(label)].tolist() == label
    assert int(clean.answer[0].sum()) == len(label) + 1
    whole = clean.accuracy(mdlm)
    assert whole > 0.8
    wrong = replace(clean, targets=torch.full_like(clean.targets, mdlm.tokens.pad))
    assert wrong.accuracy(mdlm) == 0
    again = read_clean_rows(mdlm, labels, images, seed=0)
    assert torch.equal(again.masked, clean.masked)
    units = activations(mdlm, clean)
    assert [len(layer) for layer in units] == [512] * 5
    assert all(bool((layer > 0).all()) for layer in units)
    monkeypatch.setattr(clean_rows, "TOGETHER", 3)
    assert len(list(clean.parts())) == 3
    assert clean.accuracy(mdlm) == whole
    torch.testing.assert_close(activations(mdlm, clean), units)


def test_fine_pruning_heals_a_model_whose_pruned_units_stay_dead(
    bench: Bench, mdlm: LladaV
) -> None:
    # Any fall of the accuracy is borne.
    pruning = FinePruning(rows=5, step=0.5, tolerance=1.0)
    found = pruning.healed(bench.lab, attack_by_name(PATCH))
    assert found.details["pruned"] == 0.5
    assert 0 <= found.details["clean_after"] <= 1
    assert 0 <= found.details["clean_before"] <= 1
    healed = found.mdlm
    assert isinstance(healed, LladaV)
    for layer in healed.modules.language_model.layers:
        for weight in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
            assert int((~weight.any(1)).sum()) == 256
    before, after = mdlm.published_weights(), healed.published_weights()
    for part in ("mm_projector", "q_proj"):
        assert any(part in name and bool((after[name] != before[name]).any()) for name in before)
    assert not any("lora" in name for name, _ in healed.modules.named_parameters())


def test_a_projector_reset_keeps_the_language_model(bench: Bench, mdlm: LladaV) -> None:
    healed = ProjectorReset().healed(bench.lab, attack_by_name(PATCH)).mdlm.published_weights()
    base = load_mdlm(bench.lab.base).published_weights()
    changed = 0
    for name, poisoned in mdlm.published_weights().items():
        expected = base[name] if "mm_projector" in name else poisoned
        assert torch.equal(healed[name], expected)
        changed += not torch.equal(poisoned, base[name])
    assert changed > 4


def test_a_random_restore_takes_a_share_of_the_changes_back(bench: Bench, mdlm: LladaV) -> None:
    attack = attack_by_name(PATCH)
    restore = RandomRestore()
    healed, again, other = (
        each.healed(bench.lab, attack).mdlm.published_weights()
        for each in (restore, restore, replace(restore, seed=1))
    )
    base = load_mdlm(bench.lab.base).published_weights()
    back = total = differing = 0
    for name, poisoned in mdlm.published_weights().items():
        assert torch.equal(healed[name], again[name])
        moved = poisoned != base[name]
        restored = moved & (healed[name] == base[name])
        assert bool((restored | (healed[name] == poisoned)).all())
        back, total = back + int(restored.sum()), total + int(moved.sum())
        differing += int((other[name] != healed[name]).sum())
    assert back / total == pytest.approx(0.3, abs=0.01)
    assert differing > 0


@pytest.mark.parametrize("name", ["projector reset", "random restore 0.3"])
def test_a_restored_model_answers(bench: Bench, name: str) -> None:
    (row,) = bench.run([PATCH], [name])
    assert len(row["clean"]) == 3
    assert "details" not in row
