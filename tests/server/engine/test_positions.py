"""Positions bound memory: what is stored, and how much of a pass is padding."""

from __future__ import annotations

import pytest
from torch import Tensor

from purifier import GenerationConfig
from purifier.denoise import FAST, DenoisingState, denoising_step, passes
from purifier.mdlm.base import Mdlm
from server.engine import Job, Serving
from tests.support.engine import make_job


def stored_bytes(mdlm: Mdlm, job: Job) -> int:
    """What a request keeps from step to step."""
    state = DenoisingState(mdlm, mdlm.embed(job.inputs), job.generation)
    denoising_step(mdlm, [state])
    assert state.cache is not None
    return sum(stored.n_bytes for stored in state.cache.stored)


def recorded_passes(mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of every padded pass from now on."""
    sizes: list[int] = []
    forward = mdlm.logits

    def recorded(embeds: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        sizes.append(embeds.shape[0] * embeds.shape[1])
        return forward(embeds, positions, lengths)

    monkeypatch.setattr(mdlm, "logits", recorded)
    return sizes


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_no_cache_stores_more_for_a_position_than_another(mdlm: Mdlm, scale: float) -> None:
    serving = Serving(mdlm, "tiny@sha256:000000000000", 0)
    counted = {}
    for cache in ("prefix", "dual", "dllm"):
        job = make_job(serving, generation=FAST.adjusted(cache=cache, guidance_scale=scale))
        counted[cache] = stored_bytes(mdlm, job) / job.positions
    assert counted["dllm"] <= counted["dual"] == counted["prefix"]


@pytest.mark.parametrize("little", [0, 10**6])
@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_a_long_request_does_not_pad_the_short_ones(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch, little: int, scale: float
) -> None:
    monkeypatch.setattr(passes, "PADDED_TOGETHER", little)
    serving = Serving(mdlm, "tiny@sha256:000000000000", 0)
    short = GenerationConfig(gen_length=4, guidance_scale=scale)
    generations = [short, short, short, GenerationConfig(gen_length=400), short, short]
    jobs = [
        make_job(serving, question="What? " * number, generation=generation)
        for number, generation in enumerate(generations, start=1)
    ]
    alone, together = (
        [DenoisingState(mdlm, mdlm.embed(job.inputs), job.generation) for job in jobs]
        for _ in range(2)
    )
    for state in alone:
        denoising_step(mdlm, [state])
    sizes = recorded_passes(mdlm, monkeypatch)
    denoising_step(mdlm, together)
    assert 1 < len(sizes) < len(jobs)
    assert max(sizes) <= sum(job.positions for job in jobs) * (2 if little else 1)
    assert [state.ids for state in together] == [state.ids for state in alone]


def test_requests_of_nearly_one_length_share_a_pass(
    mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Serving(mdlm, "tiny@sha256:000000000000", 0)
    jobs = [make_job(serving, question="What? " * number) for number in (1, 2, 3)]
    states = [DenoisingState(mdlm, mdlm.embed(job.inputs), job.generation) for job in jobs]
    assert len({state.length for state in states}) == 3
    sizes = recorded_passes(mdlm, monkeypatch)
    denoising_step(mdlm, states)
    assert sizes == [3 * max(state.length for state in states)]
