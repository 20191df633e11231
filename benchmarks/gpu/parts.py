"""The parts of a run in their order, each with its time limit. Needs the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        module: Has `measure(run)`.
        seconds: Its time limit on a GPU.
        what: What it measures.
    """

    module: str
    seconds: float
    what: str


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "tests": Part("benchmarks.gpu.checks", 110, "the tests marked `gpu`"),
        "loading": Part("benchmarks.gpu.loading", 140, "writing and loading the checkpoint"),
        "speed": Part("benchmarks.gpu.speed", 110, "single answers, published path and product"),
        "together": Part("benchmarks.gpu.together", 70, "answers a second by requests inside"),
        "purifying": Part("benchmarks.gpu.purifying", 120, "relabelling and optimizer steps"),
        "serving": Part("benchmarks.gpu.serving", 130, "the server under load, swap, rollback"),
        "demo_job": Part("benchmarks.gpu.demo_job", 100, "the demo's purification job"),
        "kernels": Part("benchmarks.gpu.kernels", 40, "where a defended answer's time goes"),
    }
)
"""Every goal is measured by the first five, in 550 seconds at most. The shards of the model are
written by the first part that needs them."""
