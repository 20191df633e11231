"""The probe maps, checked against automatic differentiation and against F itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purifier.defense.probes import (
    Estimator,
    FirstStepDistribution,
    apply_map,
    draw_probes,
    probe_basis,
    probe_map,
)


def some_distribution(temperature: float = 1.0) -> FirstStepDistribution:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    return FirstStepDistribution.of(logits, 5, temperature)


def fisher_matrix(p: Tensor) -> Tensor:
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def test_distribution_is_sorted_and_normalised() -> None:
    found = some_distribution()
    assert bool((found.logits.diff(dim=-1) <= 0).all())
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(found.probs, found.logits.softmax(-1))


def test_top_k_beyond_the_vocabulary_takes_all_of_it() -> None:
    assert FirstStepDistribution.of(torch.zeros(1, 1, 7), 20).ids.shape == (1, 1, 7)


def test_softening_flattens() -> None:
    assert some_distribution(4.0).probs.amax() < some_distribution().probs.amax()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_fisher_map_is_a_root_of_the_fisher_matrix(temperature: float) -> None:
    found = some_distribution(temperature)
    expected = fisher_matrix(found.probs)
    for factor in (probe_map(found, "fisher"), probe_basis(found, "fisher")):
        torch.testing.assert_close(factor @ factor.mT, expected)
    assert probe_basis(found, "fisher").shape[-1] == 4


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_official_map_is_the_gradient_through_the_probe(temperature: float) -> None:
    found = some_distribution(temperature)
    draws = torch.randn(1, 2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = found.logits.clone().requires_grad_()
    u = torch.softmax(z / temperature, -1).sqrt()
    q = u * (draws[0] - (draws[0] * u).sum(-1, keepdim=True) * u)
    (expected,) = torch.autograd.grad((q * z).sum(), z)
    torch.testing.assert_close(apply_map(probe_map(found, "official"), draws)[0], expected)


@pytest.mark.parametrize("estimator", ["fisher", "official"])
def test_maps_stay_finite_where_the_answer_is_certain(estimator: Estimator) -> None:
    logits = torch.zeros(1, 1, 6)
    logits[..., 2] = 1e4
    found = FirstStepDistribution.of(logits, 5)
    assert bool(torch.isfinite(probe_map(found, estimator)).all())
    assert bool(torch.isfinite(probe_basis(found, estimator)).all())


def test_draws_depend_on_seed_and_text_length_only() -> None:
    settings = {"n_text": 9, "probes": 3, "scored": 2, "top_k": 5, "seed": 0}
    draws = draw_probes(**settings)
    assert draws.shape == (3, 2, 5)
    assert torch.equal(draws, draw_probes(**settings))
    assert torch.equal(draws, draw_probes(**settings | {"probes": 8})[:3])
    assert not torch.equal(draws, draw_probes(**settings | {"seed": 1}))
    assert not torch.equal(draws, draw_probes(**settings | {"n_text": 10}))


@pytest.mark.parametrize("estimator", ["fisher", "official"])
def test_sampled_covariance_is_the_form(estimator: Estimator) -> None:
    """With m draws an entry of the sample covariance is off by its standard error at most."""
    found = some_distribution()
    probes = 20_000
    draws = torch.randn(
        probes, 2, 3, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    q = apply_map(probe_map(found, estimator), draws)
    sample = torch.einsum("mbgk,mbgl->bgkl", q, q) / probes
    basis = probe_basis(found, estimator)
    expected = basis @ basis.mT
    scale = expected.diagonal(dim1=-2, dim2=-1)
    error = ((scale[..., :, None] * scale[..., None, :] + expected.square()) / probes).sqrt()
    assert bool(((sample - expected).abs() < 5 * error + 1e-12).all())
