"""Timing two ways of doing the same, one after the other, again and again."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.middle import (
    SMALL_TEXT,
    SMALL_VISION,
    SMALL_VOCABULARY,
    TEXT,
    VISION,
    VOCABULARY,
    VisualTokens,
    middle_mdlm,
    with_layout,
)
from benchmarks.speed_settings import exact_generation, faster
from purifier.denoise.config import GenerationConfig
from purifier.lab.demo import checkpoint_path
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm
from purifier.numeric import seconds

_PEAK_SIDE = 1536


@dataclass(frozen=True)
class Spread:
    """A median and its range over repeats."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def to_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


@dataclass
class Bench:
    """How everything is measured, and the models, loaded when they are first needed.

    Attributes:
        device: Where.
        dtype: `float32` or `bfloat16`.
        repeats: Of every timed pair.
        quick: Few repeats, few requests: an impression.
        size: `middle`, or `small` for a model that costs next to nothing.
        changes: The fast path's changes to `GenerationConfig`.
        records: Test records a target whose answers are compared.
        full: Whether the plain path runs to its end; else a few steps are timed.
        tell: Told the progress.
    """

    device: str = "cpu"
    dtype: str = "float32"
    repeats: int = 3
    quick: bool = False
    size: str = "middle"
    changes: Mapping[str, Any] = field(default_factory=dict)
    records: int = 60
    full: bool = False
    tell: Callable[[str], None] = lambda text: None

    @cached_property
    def _middle(self) -> LladaV:
        self.tell(f"making the {self.size} model")
        sizes: dict[str, Any] = {"vision": VISION, "text": TEXT, "vocabulary": VOCABULARY}
        if self.size == "small":
            sizes = {"vision": SMALL_VISION, "text": SMALL_TEXT, "vocabulary": SMALL_VOCABULARY}
        return middle_mdlm(device=self.device, dtype=getattr(torch, self.dtype), **sizes)

    def middle(self, visual_tokens: VisualTokens) -> LladaV:
        """The middle-sized model with one of its image layouts."""
        return with_layout(self._middle, visual_tokens)

    def demo(self, name: str) -> LladaV:
        """A shipped checkpoint."""
        mdlm = load_mdlm(checkpoint_path(name), device=self.device, dtype=self.dtype)
        if not isinstance(mdlm, LladaV):
            raise TypeError("the demo is a LLaDA-V")
        return mdlm

    def exact(self, gen_length: int) -> GenerationConfig:
        """Settings of the plain path."""
        return exact_generation(gen_length)

    def fast(self, generation: GenerationConfig) -> GenerationConfig:
        """The fast counterpart of exact settings."""
        return faster(generation, self.changes)

    def pairs(
        self,
        name: str,
        sides: Mapping[str, Callable[[], float]],
        *,
        repeats: int | None = None,
    ) -> dict[str, list[float]]:
        """Runs all sides in turn, again and again, so that a busy moment meets all of them.

        Args:
            name: For the progress.
            sides: By name; each returns its seconds.
            repeats: Turns; by default `repeats`.
        """
        found: dict[str, list[float]] = {side: [] for side in sides}
        turns = self.repeats if repeats is None else repeats
        for turn in range(turns):
            for side, run in sides.items():
                found[side].append(run())
                self.tell(f"{name}, {turn + 1} of {turns}: {side} {found[side][-1]:.3g} s")
        return found

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one call, the device's work included."""
        device = torch.device(self.device)
        start = seconds(device)
        run()
        return seconds(device) - start


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Spread of the quotients of neighbouring runs."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def machine(device: str) -> dict[str, Any]:
    """What figures depend on besides the code: processor, threads, versions, load."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.startswith("cuda"):
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


def matrix_peak(device: str, dtype: str, *, repeats: int = 5, side: int = _PEAK_SIDE) -> float:
    """Best rate of a large square matrix product, in GFLOP/s: the bound of all that is dense."""
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(
        side, side, device=device, dtype=getattr(torch, dtype), generator=generator
    )
    best = float("inf")
    for _ in range(repeats + 1):
        start = seconds(matrix.device)
        _ = matrix @ matrix
        best = min(best, seconds(matrix.device) - start)
    return 2 * side**3 / best / 1e9


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
