"""Ways of pulling several probes back, and the memory that their gradients take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.middle import middle_mdlm, question, with_layout
from benchmarks.peak_memory import peak_mib, reset_peak
from benchmarks.saliency_timing import clock
from benchmarks.speed_timing import Spread
from purifier.defense.config import Level, MaskingConfig
from purifier.defense.defend import make_site
from purifier.defense.first_step import Response, first_step_batch
from purifier.defense.fisher import scored_outputs
from purifier.denoise.config import FAST
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.base import Inputs, Mdlm
from purifier.mdlm.registry import load_mdlm

PROBES = 6
MEMORY = (("729", 1), ("729", 2), ("729", 4), ("2929", 1), ("2929", 2))
"""Visual tokens of a request, and requests scored together."""

Work = tuple[str, Callable[[], Any]]


def backward_cells(device: str, repeats: int) -> Iterator[Work]:
    """The cells of the part `backward`."""
    for name in ("demo", "729", "2929"):
        for level in ("token", "patch"):
            yield (
                f"{name}, {level}",
                partial(ways, device, name, level, repeats),
            )
    for tokens, count in MEMORY:
        for level in ("token", "patch"):
            for at_once in (1, PROBES):
                case = [tokens, str(count), level, str(at_once)]
                yield (
                    f"memory, {tokens} visual tokens, {count} requests, {level}, {at_once} at once",
                    partial(_measured_alone, device, case),
                )


def ways(device: str, name: str, level: Level, repeats: int) -> dict[str, Any]:
    """Seconds of six probes: one by one, through one graph together, and on a repeated batch."""
    mdlm, inputs = model_and_question(device, name)
    found: dict[str, list[float]] = {"loop": [], "is_grads_batched": [], "repeated batch": []}
    forward: list[float] = []
    for _ in range(repeats):
        for way, spent in found.items():
            start = clock(mdlm.device)
            outputs, leaves = _graph(mdlm, inputs, level, PROBES if way == "repeated batch" else 1)
            middle = clock(mdlm.device)
            pull(outputs, leaves, way)
            end = clock(mdlm.device)
            # A repeated batch pays for its probes in the forward pass too.
            spent.append(end - start if way == "repeated batch" else end - middle)
            if way == "loop":
                forward.append(middle - start)
    return {
        "forward": Spread.of(forward).to_dict(),
        **{way: Spread.of(values).to_dict() for way, values in found.items()},
    }


def pull(outputs: Tensor, leaves: list[Tensor], way: str) -> None:
    """Gradients of six random probes at the leaves.

    Args:
        outputs: [B, G, K], B being six for a repeated batch.
        leaves: What they are taken with respect to.
        way: One of the three.
    """
    probes = _draws((PROBES, *outputs.shape[1:]), outputs.device)
    if way == "repeated batch":
        torch.autograd.grad(outputs, leaves, probes)
    elif way == "loop":
        for probe in probes:
            torch.autograd.grad(outputs, leaves, probe[None], retain_graph=True)
    else:
        torch.autograd.grad(outputs, leaves, probes[:, None], is_grads_batched=True)


def _draws(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device)


def _graph(mdlm: Mdlm, inputs: Inputs, level: Level, copies: int) -> tuple[Tensor, list[Tensor]]:
    config = MaskingConfig(level=level, ranker="fisher", probes=PROBES)
    site = make_site(mdlm, [inputs] * copies, config)
    with torch.enable_grad():
        encoding = site.encode(differentiable=True)
        outputs = scored_outputs(mdlm, encoding, Response.of(mdlm, FAST), config)
    return outputs.selected, list(encoding.leaves)


def model_and_question(device: str, name: str) -> tuple[Mdlm, Inputs]:
    """The demo and a triggered scene, or the middle-sized model with an image layout."""
    if name == "demo":
        mdlm = load_mdlm(checkpoint_path("misclassification"), device=device)
        test = read_test_set(DATA_FOLDER, limit=1)
        return mdlm, mdlm.prepare(test.cases[0].messages(test.trigger))
    middle = with_layout(middle_mdlm(device=device), 729 if name == "729" else 2929)
    return middle, question(middle)


def _measured_alone(device: str, case: list[str]) -> dict[str, Any]:
    """Peak memory in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.saliency_backward", device, *case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def peak_memory(device: str, tokens: str, count: int, level: Level, at_once: int) -> dict[str, Any]:
    """MiB that forward and backward pass add to model and inputs."""
    torch.set_num_threads(1)
    mdlm, inputs = model_and_question(device, tokens)
    before = reset_peak(device)
    config = MaskingConfig(level=level, ranker="fisher", probes=PROBES)
    site = make_site(mdlm, [inputs] * count, config)
    with torch.enable_grad():
        encoding = site.encode(differentiable=True)
        batch = first_step_batch(mdlm, encoding.prompts, Response.of(mdlm, FAST))
        logits = mdlm.logits(batch.embeds, batch.positions, batch.lengths)[..., : config.top_k]
        forward = peak_mib(device)
        cotangents = _draws((at_once, *logits.shape), logits.device)
        torch.autograd.grad(logits, encoding.leaves, cotangents, is_grads_batched=True)
    return {
        "positions": batch.embeds.shape[0] * batch.embeds.shape[1],
        "forward_mib": forward - before,
        "backward_mib": peak_mib(device) - before,
    }


if __name__ == "__main__":
    device, tokens, count, wanted, at_once = sys.argv[1:]
    level: Level = "token" if wanted == "token" else "patch"
    print(json.dumps(peak_memory(device, tokens, int(count), level, int(at_once))))
