"""Where the time of a fast answer goes, kernel by kernel (torch.profiler)."""

from __future__ import annotations

from collections.abc import Iterable
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
    return {"seconds": seconds, **expensive(profiler.key_averages(), cuda=cuda)}


def expensive(events: Iterable[Any], *, cuda: bool) -> dict[str, Any]:
    """Seconds of all events on the device, and the most expensive ones by their own time there.

    On a GPU only kernels and copies count: an operator's time on the device is that of the kernels
    it has started, which are events of their own, and an annotation's that of what lies inside.
    """
    if cuda:
        own = [
            (event.self_device_time_total, event)
            for event in events
            if event.device_type.name == "CUDA" and not event.is_user_annotation
        ]
    else:
        own = [(event.self_cpu_time_total, event) for event in events]
    total = sum(spent for spent, _ in own) or 1.0
    own.sort(key=lambda pair: pair[0], reverse=True)
    return {
        "device_seconds": total / 1e6,
        "operations": [
            {"name": event.key[:120], "share": spent / total, "calls": event.count}
            for spent, event in own[:_ROWS]
        ],
    }
