"""Where the time of a fast answer goes, kernel by kernel (torch.profiler)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.run import Run
from benchmarks.speed_settings import CHANGES, masking_at
from purifier.answer import answer_inputs
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV

_ROWS = 20


def measure(run: Run) -> None:
    """An undefended and a defended answer of the shortest length."""
    mdlm = run.load()
    inputs = run.question(mdlm)
    for name, masking in (("undefended", None), ("defended", masking_at("patch"))):
        run.measure(name, 10, partial(_table, run, mdlm, inputs, masking))


def _table(run: Run, mdlm: LladaV, inputs: Inputs, masking: MaskingConfig | None) -> dict[str, Any]:
    """The most expensive operations by their own time on the device."""
    generation = replace(GenerationConfig(gen_length=run.shape.lengths[0], stop=()), **CHANGES)

    def work() -> object:
        return answer_inputs(mdlm, inputs, generation=generation, masking=masking)

    work()
    seconds = run.bench.timed(work)
    cuda = run.device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        work()
        if cuda:
            torch.cuda.synchronize(run.device)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda one: getattr(one, key), reverse=True)
    total = sum(getattr(one, key) for one in events) or 1.0
    return {
        "seconds": seconds,
        "device_seconds": total / 1e6,
        "operations": [
            {
                "name": one.key[:120],
                "share": getattr(one, key) / total,
                "calls": one.count,
            }
            for one in events[:_ROWS]
        ],
    }
