"""An answer of the engine on a GPU does not depend on what else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from purifier import MaskingConfig, answer_inputs
from purifier.denoise import FAST
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from server.engine import Job, Serving
from tests.gpu.conftest import OnDevice
from tests.support.engine import SECONDS, starting, submit

pytestmark = pytest.mark.gpu

SETTINGS = (
    FAST,
    replace(FAST, cache="none", parallel_threshold=1.0),
    replace(FAST, cache="dual"),
    replace(FAST, cache="dllm"),
    replace(FAST, guidance_scale=1.0, gen_length=16),
)


def test_alone_as_together(demo: LladaV, questions: list[Inputs], on_device: OnDevice) -> None:
    mdlm = on_device(demo)
    serving = Serving(mdlm, "demo@sha256:000000000000", 0)
    jobs = [
        Job(inputs, SETTINGS[number % len(SETTINGS)], masking, str(number))
        for number, inputs in enumerate(questions[:10])
        for masking in (None, MaskingConfig())
    ]
    alone = [
        answer_inputs(mdlm, job.inputs, generation=job.generation, masking=job.masking).token_ids
        for job in jobs
    ]
    with starting(serving, queue_size=len(jobs), deadline=SECONDS) as start:
        engine = start()
        tickets = [submit(engine, job) for job in jobs]
        together = [ticket.future.result(SECONDS).token_ids for ticket in tickets]
        counters = engine.counters
    assert together == alone
    assert counters.request_steps > counters.steps
