"""Memory on a GPU: estimates against what is taken, and what happens when there is too little."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from purifier import load_mdlm
from purifier.data.llava import read_llava
from purifier.denoise import EXACT, FAST
from purifier.lab.demo import DATA_FOLDER
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.purification.config import PRESETS
from purifier.purification.purifier import Purifier
from server.engine import Job, Serving
from server.engine.pace import Room
from server.errors import GenerationFailed
from server.jobs.memory import need_of
from tests.gpu.conftest import OnDevice
from tests.support.engine import SECONDS, starting, submit

pytestmark = pytest.mark.gpu

AGAIN = "is made again one by one"
_SEGMENT = 2 * 2**20
"""The allocator's smallest step."""


def test_weights_take_what_was_estimated(checkpoint: Path, cuda: str) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated(cuda)
    mdlm = load_mdlm(checkpoint, device=cuda, dtype="bfloat16")
    taken = torch.cuda.memory_allocated(cuda) - before
    assert taken == pytest.approx(need_of(checkpoint, "bfloat16").weights, rel=0.05)
    del mdlm


def test_relabelling_stays_within_the_estimate(
    checkpoint: Path,
    cuda: str,
    record_property: Callable[[str, object], None],
) -> None:
    mdlm = load_mdlm(checkpoint, device=cuda, dtype="bfloat16")
    config = PRESETS["default"]
    samples = read_llava(DATA_FOLDER / "train" / "insertion.json")[:64]
    torch.cuda.reset_peak_memory_stats(cuda)
    Purifier(mdlm, config, DATA_FOLDER / "train" / "images").purify(samples)
    peak = torch.cuda.max_memory_allocated(cuda)
    need = need_of(checkpoint, "bfloat16", config.batch_size)
    record_property("peak over estimate", f"{peak / need.total:.2f}")
    assert peak <= need.total


@contextmanager
def capped(device: str, extra: int) -> Iterator[None]:
    """Lets the allocator take `extra` bytes more than it holds now, and no further one."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved(device) + extra) / total, device
    )
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def reserved_by(device: str, work: Callable[[], object]) -> int:
    """Bytes that the allocator takes for some work beside what it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_reserved(device) - before


def take_all(device: str) -> list[torch.Tensor]:
    """Takes every piece of memory that the allocator has left, down to its smallest."""
    taken = []
    size = 2**26
    while size >= 512:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            size //= 2
    return taken


def test_a_batch_that_is_too_large_is_answered_one_by_one(
    demo: LladaV,
    questions: list[Inputs],
    on_device: OnDevice,
    cuda: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The allocator has room for one request's pass over its sequence, not for that of all."""
    serving = Serving(on_device(demo), "demo@sha256:000000000000", 0)
    jobs = [Job(inputs, EXACT, None, str(number)) for number, inputs in enumerate(questions[:16])]
    with starting(serving, queue_size=len(jobs), deadline=SECONDS) as start:
        engine = start(room=Room(requests=len(jobs), positions=10**9))

        def together() -> list[list[int]]:
            tickets = [submit(engine, job) for job in jobs]
            return [ticket.future.result(SECONDS).token_ids for ticket in tickets]

        expected = [submit(engine, job).future.result(SECONDS).token_ids for job in jobs]
        assert together() == expected
        alone = reserved_by(cuda, lambda: submit(engine, jobs[0]).future.result(SECONDS))
        all_of_them = reserved_by(cuda, together)
        assert alone < all_of_them
        # From loose to tight, as nobody knows which requests meet in the engine's first passes.
        for extra in range(all_of_them - _SEGMENT, alone - 1, -_SEGMENT):
            with capped(cuda, extra):
                assert together() == expected
            if AGAIN in caplog.text:
                break
        assert AGAIN in caplog.text
        assert "OutOfMemoryError" in caplog.text
        assert engine.state == "ready"


def test_a_request_that_is_too_large_fails_alone(
    demo: LladaV,
    questions: list[Inputs],
    on_device: OnDevice,
    cuda: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    serving = Serving(on_device(demo), "demo@sha256:000000000000", 0)
    with starting(serving, queue_size=4, deadline=SECONDS) as start:
        engine = start()
        job = Job(questions[0], FAST, None, "-")
        expected = submit(engine, job).future.result(SECONDS).token_ids
        with capped(cuda, 0):
            taken = take_all(cuda)
            failure = submit(engine, Job(questions[1], FAST, None, "-")).future.exception(SECONDS)
            del taken
        assert isinstance(failure, GenerationFailed)
        assert "OutOfMemoryError" in caplog.text
        again = submit(engine, job).future.result(SECONDS).token_ids
        assert engine.state == "ready"
    assert again == expected
