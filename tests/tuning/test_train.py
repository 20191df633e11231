"""The loop: what is learned depends on neither micro batches nor interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from purifier.data.dataset import open_dataset
from purifier.errors import InvalidSetting
from purifier.finetune import Stopped, finetune
from purifier.mdlm.registry import load_mdlm
from purifier.tuning.batch import Noise, batch_loss, collate
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.examples import TrainingRows
from purifier.tuning.processes import Processes
from purifier.tuning.schedule import rate_factor
from purifier.tuning.spec import FinetuneSpec
from purifier.tuning.train import Course, Trainer
from tests.tuning.conftest import CONFIG


def trained(compromised: Path, data: Path, config: FinetuneConfig) -> Trainer:
    mdlm = load_mdlm(compromised)
    trainer = Trainer(mdlm, TrainingRows(mdlm, open_dataset(data), config), config)
    assert trainer.train(lambda event: None, lambda: False)
    return trainer


def run(spec: FinetuneSpec, *, stop_after: int | None = None) -> list[dict[str, Any]]:
    """All events of a run, which may be asked to stop after some steps of its own."""
    events: list[dict[str, Any]] = []

    def n_steps() -> int:
        return sum(event["event"] == "step" for event in events)

    should_stop: Callable[[], bool] = lambda: stop_after is not None and n_steps() >= stop_after - 1  # noqa: E731
    try:
        finetune(spec, events=lambda event: events.append(dict(event)), should_stop=should_stop)
    except Stopped:
        assert stop_after is not None
    return events


def loss_curve(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["event"] == "step"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_resumed_run_is_the_undisturbed_one(spec: FinetuneSpec, tmp_path: Path) -> None:
    expected = run(spec)
    n_steps = expected[0]["steps"]
    assert len(loss_curve(expected)) == n_steps == 4
    assert expected[0]["remarks"] == []
    assert expected[-1]["event"] == "done"
    again = replace(spec, output=tmp_path / "again" / "healed", work=tmp_path / "other")
    again.output.parent.mkdir()
    first = run(again, stop_after=1)
    assert first[-1] == {"event": "stopped", "step": 1}
    assert not again.output.exists()
    second = run(again, stop_after=2)
    assert second[0]["step"] == 1
    third = run(again)
    assert loss_curve(first) + loss_curve(second) + loss_curve(third) == loss_curve(expected)
    assert files(again.output) == files(spec.output)


def test_micro_batches_and_checkpointing_change_nothing(compromised: Path, data: Path) -> None:
    expected = trained(compromised, data, CONFIG)
    for changes in (
        {"micro_batch_size": None},
        {"micro_batch_size": 1},
        {"cache_mb": 0},
        {"gradient_checkpointing": True},
    ):
        config = replace(CONFIG, **changes)
        assert trained(compromised, data, config).losses == pytest.approx(
            expected.losses, rel=1e-4
        ), changes
    layers = trained(compromised, data, replace(CONFIG, gradient_checkpointing=True)).mdlm.modules
    assert any(getattr(each, "gradient_checkpointing", False) for each in layers.modules())
    assert trained(compromised, data, CONFIG).losses == expected.losses
    assert trained(compromised, data, replace(CONFIG, seed=1)).losses != expected.losses
    assert trained(compromised, data, replace(CONFIG, visual_mask=0.8)).losses != expected.losses


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (("projector",), ("mm_projector",)),
        (("language_model",), ("language_model",)),
        (("projector", "vision_tower"), ("mm_projector", "vision_tower")),
    ],
)
def test_the_chosen_parts_learn(
    compromised: Path, data: Path, parts: tuple[Any, ...], names: tuple[str, ...]
) -> None:
    before = load_mdlm(compromised).modules.state_dict()
    trainer = trained(compromised, data, replace(CONFIG, parts=parts))
    assert {name.split(".")[0] for name in trainer.opened} == set(names)
    for name, tensor in trainer.mdlm.modules.state_dict().items():
        old = before.get(name.replace(".base_layer", ""))
        if old is None:
            assert ".lora_" in name
        else:
            assert torch.equal(tensor, old) == (name not in trainer.opened), name
    assert not trainer.mdlm.modules.training


def test_the_answers_are_learned(compromised: Path, data: Path) -> None:
    config = replace(CONFIG, epochs=40, learning_rate=3e-3, rank=8, alpha=16)
    mdlm = load_mdlm(compromised)
    rows = TrainingRows(mdlm, open_dataset(data), config)
    trainer = Trainer(mdlm, rows, config)

    def all_masked() -> float:
        examples = [rows[number] for number in range(len(rows))]
        batch = collate(mdlm, examples, padding="excluded", tower=True)
        noise = Noise(torch.ones(len(rows)), torch.zeros(batch.labels.shape))
        with torch.no_grad():
            return batch_loss(mdlm, batch, noise, filler_weight=0).item()

    before = all_masked()
    trainer.train(lambda event: None, lambda: False)
    assert all_masked() < 0.8 * before


def test_half_precision_learns_the_same(compromised: Path, data: Path) -> None:
    exact = trained(compromised, data, CONFIG)
    short = trained(compromised, data, replace(CONFIG, precision="bfloat16"))
    assert short.losses == pytest.approx(exact.losses, rel=0.1)
    assert short.losses != exact.losses
    assert {parameter.dtype for parameter in short.opened.values()} == {torch.float32}


def test_a_half_precision_base_is_trained_in_full_precision(compromised: Path, data: Path) -> None:
    mdlm = load_mdlm(compromised, dtype="bfloat16")
    trainer = Trainer(mdlm, TrainingRows(mdlm, open_dataset(data), CONFIG), CONFIG)
    assert trainer.train(lambda event: None, lambda: False)
    assert {parameter.dtype for parameter in trainer.opened.values()} == {torch.float32}
    assert trainer.losses == pytest.approx(trained(compromised, data, CONFIG).losses, rel=0.1)


def test_every_process_needs_a_row(compromised: Path, data: Path) -> None:
    mdlm = load_mdlm(compromised)
    rows = TrainingRows(mdlm, open_dataset(data), CONFIG)
    with pytest.raises(InvalidSetting) as caught:
        Trainer(mdlm, rows, CONFIG, processes=Processes(rank=0, count=5))
    assert caught.value.param == "batch_size"


def test_the_state_of_another_run_is_refused(spec: FinetuneSpec) -> None:
    run(spec, stop_after=1)
    other = replace(spec, config=replace(CONFIG, learning_rate=2e-2))
    with pytest.raises(InvalidSetting, match="another training") as caught:
        run(other)
    assert caught.value.param == "work"


def test_a_damaged_state_is_refused_by_name(spec: FinetuneSpec) -> None:
    run(spec, stop_after=1)
    (spec.work / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(Exception, match=r"state\.safetensors is damaged"):
        run(spec)


def test_a_loss_that_is_not_finite_ends_the_run(compromised: Path, data: Path) -> None:
    mdlm = load_mdlm(compromised)
    trainer = Trainer(mdlm, TrainingRows(mdlm, open_dataset(data), CONFIG), CONFIG)
    with torch.no_grad():
        next(iter(trainer.opened.values())).fill_(float("inf"))
    with pytest.raises(InvalidSetting, match="not finite"):
        trainer.train(lambda event: None, lambda: False)


def test_every_epoch_takes_every_row_once() -> None:
    course = Course(rows=10, epochs=3, batch_size=4, seed=1)
    assert course.steps == 9
    epochs = [
        [row for step in range(3 * e, 3 * e + 3) for row in course.chosen(step)] for e in range(3)
    ]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert Course(10, 3, 4, 1).chosen(5) == course.chosen(5)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_factor(step, 100, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[8:12])
    assert rates[-1] < 0.001
    assert rate_factor(0, 100, warmup=0) == 1.0
    assert rate_factor(99, 100, warmup=0.1, cosine=False) == 1.0


def test_a_finished_run_is_not_repeated(spec: FinetuneSpec) -> None:
    run(spec)
    before = (spec.output / "delta.json").stat().st_mtime_ns
    assert not (spec.work / "state.safetensors").exists()
    assert [event["event"] for event in run(spec)] == ["done"]
    assert (spec.output / "delta.json").stat().st_mtime_ns == before
    manifest = json.loads((spec.output / "delta.json").read_text())
    assert manifest["metrics"]["steps"] == 4
    with pytest.raises(InvalidSetting, match="exists already"):
        run(replace(spec, config=replace(CONFIG, epochs=1)))
