"""The GPU command, small and on the CPU: every part runs, and a cut-off run keeps what it has."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import (
    goals,
    kernels,
    part,
    purifying,
    report,
    serving,
    together,
)
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.record import Record
from benchmarks.gpu.run import Run
from benchmarks.gpu.shapes import SHAPES, checkpoint_files, write_checkpoint
from benchmarks.load_arrivals import Shot
from purifier import GenerationConfig, load_mdlm
from purifier.denoise import DenoisingState, denoising_step
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.shards import INDEX

MakeRun = Callable[[str], Run]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture
def make_run(work: Path, tmp_path: Path) -> MakeRun:
    """A part's run of the tiny shape, without a time limit that could be met."""

    def make(part: str) -> Run:
        record = Record(tmp_path / "gpu.json")
        return Run(part, "tiny", "cpu", "float32", work, record, limit=1e9)

    return make


def measured(make_run: MakeRun, part: str) -> dict[str, Any]:
    """The figures of a part."""
    run = make_run(part)
    importlib.import_module(PARTS[part].module).measure(run)
    figures: dict[str, Any] = run.record.read()["parts"][part]["figures"]
    missing = {name: figure for name, figure in figures.items() if "missing" in figure}
    assert not missing
    return figures


def test_loading(make_run: MakeRun) -> None:
    figures = measured(make_run, "loading")
    assert figures["checkpoint"]["bytes"] > 10_000
    for name in ("from disk", "from memory"):
        assert figures[f"plain read, {name}"]["seconds"] == figures[name]["read_seconds"]
        assert figures[name]["ratio"] > 0
        assert figures[name]["host_mib_peak"] >= figures[name]["host_mib_before"] > 0


def test_speed(make_run: MakeRun) -> None:
    figures = measured(make_run, "speed")
    assert figures["undefended, 8 tokens"]["ratio"]["value"] > 0
    assert figures["defence"]["ratio"].keys() == {"token", "patch"}
    assert figures["answer, patch, 8 tokens, one a pass"]["tokens_a_pass"] == 1
    trained = figures["answer, undefended, 8 tokens, trained a pass"]
    assert trained["tokens_a_pass"] == pytest.approx(8 / 3)
    # In every repeat it is a part of the same answer, so the medians have this order too.
    assert 0 < trained["first_block_seconds"]["value"] <= trained["seconds"]["value"]
    assert figures["stored prompt"]["weight_bytes"] > 0
    assert figures["parts, patch"]["parts"]["attention"]["gflop"] > 0


def test_together(make_run: MakeRun) -> None:
    figures = measured(make_run, "together")
    assert figures["defended, 2 together"]["requests"] == 4
    assert figures["defended, 2 together"]["answers_per_second"] > 0
    assert "engine's log" not in figures["defended, 2 together"]


@pytest.mark.parametrize("largest", [1, 0], ids=["some", "all"])
def test_together_without_memory(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """Too little for two requests at a time; then for one."""

    def step(mdlm: LladaV, states: Sequence[DenoisingState]) -> None:
        if len(states) > largest:
            raise torch.OutOfMemoryError("none left")
        denoising_step(mdlm, states)

    monkeypatch.setattr("server.engine.batch.denoising_step", step)
    run = make_run("together")
    mdlm = run.load()
    make = partial(together.cell, run, mdlm, GenerationConfig(gen_length=4, stop=()), None, 2)
    figure = run.measure("undefended, 2 together", 0, make)
    if largest:
        assert figure["answers_per_second"] > 0
        assert "OutOfMemoryError" in figure["engine's log"]
        assert "is made again one by one" in figure["engine's log"]
    else:
        kept = run.record.read()["parts"]["together"]["figures"]["undefended, 2 together"]
        assert "OutOfMemoryError" in kept["missing"]


@pytest.mark.slow
def test_serving(make_run: MakeRun) -> None:
    figures = measured(make_run, "serving")
    assert figures["log"] == {"errors": []}
    assert figures["requests"]["failed"] == 0
    assert figures["requests"]["completed"] == figures["requests"]["admitted"] > 0
    assert figures["swap under load"]["seconds"].keys() == {
        "swap",
        "swap, first answer",
        "rollback",
        "rollback, first answer",
    }


def test_purifying(make_run: MakeRun) -> None:
    figures = measured(make_run, "purifying")
    assert figures["rows, product"]["rows"] == figures["rows, product"]["of"] == 4
    assert figures["rows, published loop"]["rows_per_second"] > 0
    plain = figures["step, LoRA"]
    assert plain["loss"] == pytest.approx(
        figures["step, LoRA, gradient checkpointing"]["loss"], rel=1e-4
    )
    assert plain["trained_parameters"] > figures["step, projector"]["trained_parameters"]


def test_rows_have_a_time_of_their_own(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it is for the optimizer steps."""
    monkeypatch.setattr(purifying, "_TOGETHER", 1)
    monkeypatch.setattr(purifying, "_BUDGET", 0.0)
    figures = measured(make_run, "purifying")
    assert figures["rows, product"]["rows"] == 1
    assert figures["step, LoRA"]["seconds"] > 0


@pytest.mark.slow
def test_demo_job(make_run: MakeRun) -> None:
    job = measured(make_run, "demo_job")["job"]
    assert job["job"]["status"] == "succeeded"
    assert job["purified"]["checkpoint"] == job["job"]["fine_tuned_model"]
    assert job["rolled_back"] == job["poisoned"]


def test_kernels(make_run: MakeRun) -> None:
    for figure in measured(make_run, "kernels").values():
        assert figure["operations"]
        assert 0 < sum(one["share"] for one in figure["operations"]) <= 1 + 1e-6


def test_kernels_count_once() -> None:
    """An operator's time on a GPU is that of its kernels, which are events as well."""

    def event(key: str, kind: str, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            device_type=SimpleNamespace(name=kind),
            is_user_annotation=annotation,
            self_device_time_total=30.0,
            self_cpu_time_total=10.0,
            count=1,
        )

    events = [
        event("aten::mm", "CPU"),
        event("gemm", "CUDA"),
        event("copy", "CUDA"),
        event("a region", "CUDA", annotation=True),
    ]
    found = kernels.expensive(events, cuda=True)
    assert found["device_seconds"] == pytest.approx(60e-6)
    assert [(one["name"], one["share"]) for one in found["operations"]] == [
        ("gemm", 0.5),
        ("copy", 0.5),
    ]
    assert kernels.expensive(events, cuda=False)["device_seconds"] == pytest.approx(40e-6)


def test_checkpoints_of_a_seed_are_the_same_and_load(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    sizes = [
        write_checkpoint(tmp_path / name, shape, device="cpu", seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert len(set(sizes)) == 1
    contents = [[file.read_bytes() for file in checkpoint_files(tmp_path / name)] for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    mdlm = load_mdlm(tmp_path / "a", dtype="bfloat16")
    weights = mdlm.published_weights()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert bool((weights["model.norm.weight"] == 1).all())


def test_large_checkpoints_are_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.shapes._SHARD_BYTES", 50_000)
    write_checkpoint(tmp_path, SHAPES["tiny"], device="cpu")
    assert len(checkpoint_files(tmp_path)) > 2
    assert load_mdlm(tmp_path).vocab_size == SHAPES["tiny"].vocabulary


def test_shards_that_are_whole_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.shapes._SHARD_BYTES", 50_000)
    size = write_checkpoint(tmp_path, SHAPES["tiny"], device="cpu")
    first, last = checkpoint_files(tmp_path)[0], checkpoint_files(tmp_path)[-1]
    expected = last.read_bytes()
    last.unlink()
    (tmp_path / INDEX).unlink()
    before = first.stat()
    assert write_checkpoint(tmp_path, SHAPES["tiny"], device="cpu") == size
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert last.read_bytes() == expected


def test_figures_of_other_parts_stay(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json")
    record.put("one", "a", 1)
    record.put("two", "b", {"value": 2})
    record.begin("one", shape="8b")
    record.note("two", ended="well")
    assert record.read()["parts"] == {
        "one": {"shape": "8b", "figures": {}},
        "two": {"figures": {"b": {"value": 2}}, "ended": "well"},
    }


def test_no_time_and_no_memory_are_told(make_run: MakeRun) -> None:
    run = make_run("speed")

    def too_much() -> None:
        raise torch.OutOfMemoryError("out of memory")

    def broken() -> None:
        raise ValueError("not so")

    assert run.measure("large", 0, too_much) is None
    assert run.measure("broken", 0, broken) is None
    run.limit = 1.0
    assert run.measure("late", 5.0, lambda: pytest.fail("begun without time")) is None
    assert run.record.read()["parts"]["speed"]["figures"] == {
        "large": {"missing": "out of memory"},
        "broken": {"missing": "ValueError: not so"},
        "late": {"missing": "no time was left"},
    }


def test_goals_are_judged_by_their_figures() -> None:
    figures: dict[str, dict[str, Any]] = {
        "together": {
            "defended, 1 together": {"answers_per_second": 2.0},
            "defended, 8 together": {"answers_per_second": 8.0},
            "defended, 32 together": {"missing": "out of memory"},
        },
        "speed": {"defence": {"ratio": {"patch": {"value": 1.2, "low": 1.1, "high": 1.3}}}},
    }
    values = {goal.what: goal.value(figures) for goal in goals.GOALS}
    met = {goal.what: goal.met(values[goal.what]) for goal in goals.GOALS}
    assert values["answers a second, defended, 8 over 1"] == 4.0
    assert met["answers a second, defended, 8 over 1"] is True
    assert values["answers a second, defended, 32 over 1"] is None
    assert met["answers a second, defended, 32 over 1"] is None
    assert met["defended over undefended seconds, level patch"] is True
    assert goals.Goal("x", lambda _: None, 3).met(2.9) is False


def test_the_page_shows_goals_every_number_and_where_it_was_measured() -> None:
    spread = {"value": 12.0, "low": 11.0, "high": 13.0, "n": 3}
    card = {"device": "card", "processor": "p", "cores": 16, "python": "3", "torch": "2",
            "transformers": "5"}  # fmt: skip
    facts = {"shape": "8b", "device": "cuda:0", "dtype": "bfloat16", "command": "first"}
    result = {
        "parts": {
            "speed": {
                **facts,
                "machine": card,
                "figures": {
                    "undefended, 128 tokens": {"ratio": spread},
                    "published defence": {"missing": "out of memory"},
                },
                "ended": "well",
                "seconds": 61.0,
                "limit": 110.0,
            },
            "kernels": {**facts, "machine": card | {"device": "other card"}, "figures": {}},
            "serving": {"figures": {}, "ended": "not begun: no time was left"},
        }
    }
    page = report.markdown(result)
    assert "| published path over product, seconds, 128 tokens, batch 1 | 12 | ≥ 10 | yes |" in page
    assert "12 (11 to 13)" in page
    assert "out of memory" in page
    assert "after 61 of 110 s" in page
    assert "- `speed`: Shape `8b`, bfloat16, on card (p, 16 cores)" in page
    assert "- `kernels`: Shape `8b`, bfloat16, on other card (p, 16 cores)" in page


def test_the_machine_of_every_part_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(kernels, "measure", lambda run: run.put("x", {"value": 1}))
    words = ["kernels", "--shape", "tiny", "--device", "cpu", "--dtype", "float32"]
    words += ["--work", str(tmp_path), "--record", str(file), "--limit", "60"]
    assert part.main(words) == 0
    [found] = Record(file).read()["parts"].values()
    assert found["machine"]["device"] == "cpu"
    assert found["figures"] == {"x": {"value": 1}}


def test_the_longest_gap_counts_waiting_alone() -> None:
    def shot(due: float, ended: float) -> Shot:
        return Shot(due=due, sent=due, ended=ended, end="answered", status=200)

    shots = [shot(0.0, 1.0), shot(0.5, 2.0), shot(8.0, 9.0), shot(8.5, 12.0)]
    assert serving.longest_gap(shots) == 3.0
    assert serving.longest_gap(shots[:1]) is None


def test_a_request_that_is_refused_after_a_swap_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def fire(*_: object, **__: object) -> list[Shot]:
        return [Shot(due=0.0, sent=0.0, ended=1.0, end="answered", status=200)]

    async def send(*_: object) -> tuple[str, None]:
        return ("refused" if len(asked) == 1 else "answered"), None

    async def post(path: str) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(raise_for_status=lambda: None)

    monkeypatch.setattr(serving, "fire", fire)
    monkeypatch.setattr(serving, "send", send)
    client: Any = SimpleNamespace(post=post)
    found = asyncio.run(serving.swap_under_load(client, iter([b"", b""]), "other", 1.0, 0.1))
    assert found["unanswered"] == {"first after the swap": "refused"}
    assert found["seconds"].keys() == {"swap", "rollback", "rollback, first answer"}
