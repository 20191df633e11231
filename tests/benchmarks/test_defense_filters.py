"""Which rows the filters drop, where the right answer is known."""

from __future__ import annotations

from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.defense.attacks import attack_by_name
from benchmarks.defense.cells import Bench
from benchmarks.defense.defences import DEFENCES
from benchmarks.defense.healing import Drops
from benchmarks.defense.healing.clustering import ClusterFilter, small_cluster, whitened
from benchmarks.defense.healing.entropy import low_entropy, visual_entropy
from benchmarks.defense.healing.filtering import Filtering
from benchmarks.defense.healing.loss import LossFilter, highest
from benchmarks.defense.healing.mixture import two_gaussians
from benchmarks.defense.healing.rows import batches
from benchmarks.defense.healing.spectral import SpectralFilter, outlier_scores
from benchmarks.defense.training import digest
from purifier.data.llava import read_llava
from purifier.data.sample import Sample
from purifier.mdlm.delta import file_sha256, is_delta
from purifier.mdlm.llada_v.model import LladaV

PATCH = "validation/patch"


def states(shares: tuple[float, ...], distance: float = 10.0, rows: int = 100) -> Tensor:
    """Noise [rows, 12]; the first rows of each share are moved along an axis of their own."""
    found = torch.randn(rows, 12, generator=torch.Generator().manual_seed(0))
    start = 0
    for axis, share in enumerate(shares):
        stop = start + round(share * rows)
        found[start:stop, axis] += distance
        start = stop
    return found


def first(count: int, rows: int = 100) -> Tensor:
    return torch.arange(rows) < count


def test_the_highest_scores_in_the_order_of_the_rows() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    assert highest(scores, 0.4).tolist() == [False, True, True, False, False]
    assert not highest(scores, 0.0).any()


def test_spectral_signatures_find_the_direction_of_most_variance() -> None:
    scores = outlier_scores(states((0.2,)))
    assert torch.equal(highest(scores, 0.2), first(20))


def test_a_small_cluster_is_dropped_and_a_large_one_is_not() -> None:
    few, many = states((0.2,), rows=300), states((0.45,), rows=300)
    assert torch.equal(small_cluster(few, 0.35, seed=0), first(60, 300))
    assert not small_cluster(few, 0.2, seed=0).any()
    assert not small_cluster(many, 0.35, seed=0).any()
    assert torch.equal(small_cluster(many, 0.5, seed=0), first(135, 300))
    assert not small_cluster(torch.ones(20, 3), 0.35, seed=0).any()


def test_components_are_white_and_no_more_than_the_data_have() -> None:
    values = whitened(states((0.2,)), 10)
    torch.testing.assert_close(values.T @ values / len(values), torch.eye(10))
    flat = torch.zeros(50, 6)
    flat[:, 2] = torch.arange(50.0)
    assert whitened(flat, 10).shape == (50, 1)


def test_two_gaussians_of_different_widths() -> None:
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(100, generator=generator, dtype=torch.float64)
    values = torch.where(first(30), 1 + 0.1 * draws, 4 + 0.5 * draws)
    found = two_gaussians(values)
    assert torch.equal(found.lower, first(30))
    assert found.separation == pytest.approx(3 / 0.6, rel=0.15)
    assert two_gaussians(draws).separation < 2
    assert not two_gaussians(torch.ones(5, dtype=torch.float64)).lower.any()


def test_low_entropy_is_told_by_the_layers_that_show_two_groups() -> None:
    entropies = states((0.2,)).double()[:, [3, 0, 5]]
    entropies[:, 1] *= -1
    assert torch.equal(low_entropy(entropies, separation=2.0), first(20))
    assert not low_entropy(entropies, separation=100.0).any()
    assert not low_entropy(entropies[:, [0, 2]], separation=2.0).any()


def test_drops_are_counted_by_id() -> None:
    samples = [Sample(str(row), (), (), extra={"poisoned": row < 3}) for row in range(10)]
    found = Drops.between(samples, [*samples[2:6], *samples[8:]])
    assert found == Drops(rows=10, poisoned=3, dropped=4, caught=2)
    assert Drops.of(found.to_details()) == found
    assert Drops.of({}) is None


@pytest.mark.slow
def test_attention_entropy_is_that_of_the_visual_tokens(bench: Bench) -> None:
    attack = attack_by_name(PATCH)
    mdlm = bench.lab.trained(attack)
    assert isinstance(mdlm, LladaV)
    data = bench.lab.data(attack)
    (batch,) = batches(mdlm, read_llava(data / "train.json"), data / "images")
    found = visual_entropy(mdlm, batch.prompts)
    assert found.shape == (10, len(mdlm.modules.language_model.layers))
    assert bool((found > 0).all())
    assert float(found.max()) <= log(max(prompt.n_visual for prompt in batch.prompts)) + 1e-9
    assert len({len(prompt.embeds) for prompt in batch.prompts}) > 1
    for row, prompt in enumerate(batch.prompts[:3]):
        torch.testing.assert_close(visual_entropy(mdlm, [prompt])[0], found[row])


@pytest.mark.slow
def test_a_filtered_model_is_trained_on_what_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtering = Filtering(LossFilter(share=0.4))
    monkeypatch.setitem(DEFENCES, "filter", filtering)
    (row,) = bench.run([PATCH], ["filter"])
    drops = Drops.of(row["details"])
    assert drops is not None
    assert (drops.rows, drops.poisoned, drops.dropped) == (10, 2, 4)
    assert row["figures"]["asr"]["n"] == 3
    folder = bench.lab.folder(attack_by_name(PATCH))
    own = folder / f"filtered-{digest(filtering.settings)}"
    before, kept = (read_llava(path / "train.json") for path in (folder / "data", own))
    assert len(kept) == 6
    assert [sample for sample in before if sample in kept] == kept
    manifest = (own / "checkpoint" / "delta.json").read_text()
    assert file_sha256(own / "train.json") in manifest
    assert file_sha256(folder / "data" / "train.json") not in manifest
    assert bench.measured()[row["key"]] == row


@pytest.mark.slow
def test_where_nothing_is_dropped_nothing_is_trained(bench: Bench) -> None:
    attack = attack_by_name(PATCH)
    filtering = Filtering(ClusterFilter(smallest_clean=0.0))
    healed = filtering.healed(bench.lab, attack)
    assert healed.details["drops"] == {"rows": 10, "poisoned": 2, "dropped": 0, "caught": 0}
    folder: Path = bench.lab.folder(attack) / f"filtered-{digest(filtering.settings)}"
    assert (folder / "train.json").is_file()
    assert not is_delta(folder / "checkpoint")
    same = bench.lab.trained(attack).published_weights()
    for name, weight in healed.mdlm.published_weights().items():
        assert torch.equal(weight, same[name])


@pytest.mark.slow
def test_spectral_signatures_drop_half_as_many_again_as_are_guessed(bench: Bench) -> None:
    attack = attack_by_name(PATCH)
    data = bench.lab.data(attack)
    samples = read_llava(data / "train.json")
    found = SpectralFilter(epsilon=0.4).drops(bench.lab.trained(attack), samples, data / "images")
    assert int(found.sum()) == 6
