"""The profile: every torch call has its part, and arithmetic is counted as it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import profile
from benchmarks.middle import SMALL_TEXT, SMALL_VISION, middle_mdlm, question, with_layout
from benchmarks.plain import plain_answer
from benchmarks.profile_parts import PARTS, observed
from benchmarks.speed_settings import PAPER_MASKING, exact_generation
from purifier.answer import answer_inputs
from purifier.mdlm.llada_v import LladaV


@pytest.fixture(scope="module")
def small() -> LladaV:
    mdlm = middle_mdlm(vision=SMALL_VISION, text=SMALL_TEXT, vocabulary=1200)
    return with_layout(mdlm, 729)


def test_the_arithmetic_of_plain_steps(small: LladaV) -> None:
    inputs, generation = question(small), exact_generation(16)
    found = observed(small, lambda: plain_answer(small, inputs, generation, limit=2))
    n, width, steps = inputs.length + 16, SMALL_TEXT["hidden_size"], 2
    layers = SMALL_TEXT["num_hidden_layers"]
    per_position = 4 * width**2 + 3 * width * SMALL_TEXT["intermediate_size"]
    assert found.flops["decoder linear"] == steps * layers * 2 * n * per_position
    assert found.flops["attention"] == steps * layers * 4 * n * n * width
    assert found.flops["head"] == steps * 2 * n * width * 1200
    assert found.flops["projector"] == 2 * 729 * (SMALL_VISION["hidden_size"] * width + width**2)
    assert found.flops["tower"] > 0
    assert found.seconds["backward"] == 0
    assert sum(found.seconds.values()) == pytest.approx(found.wall)
    assert all(found.seconds[part] > 0 for part in PARTS if part != "backward")


def test_the_products_decoder_runs_the_same_parts(small: LladaV) -> None:
    inputs, generation = question(small), exact_generation(4)
    plain = observed(small, lambda: plain_answer(small, inputs, generation))
    exact = observed(small, lambda: answer_inputs(small, inputs, generation=generation))
    for part in ("tower", "projector", "decoder linear", "attention"):
        assert exact.flops[part] == plain.flops[part]
    # Only what may still be filled goes through the head.
    positions = inputs.length + 4
    assert exact.flops["head"] * 4 * positions == plain.flops["head"] * (4 + 3 + 2 + 1)


def test_backward_passes_are_told_apart(small: LladaV) -> None:
    inputs, generation = question(small), exact_generation(4)
    found = observed(small, lambda: plain_answer(small, inputs, generation, PAPER_MASKING))
    assert found.seconds["backward"] > 0


def test_the_command_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    makers = profile.case_makers
    monkeypatch.setattr(
        profile,
        "case_makers",
        lambda bench: {k: v for k, v in makers(bench).items() if "729 visual tokens" in k},
    )
    assert profile.main(["--size", "small", "--threads", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "profile.json").read_text())
    assert list(result["cases"]) == [
        "fast, 729 visual tokens",
        "fast, 729 visual tokens, 8 at once",
    ]
    for case in result["cases"].values():
        assert sum(part["share"] for part in case["parts"].values()) == pytest.approx(1)
    text = (tmp_path / "profile.md").read_text()
    assert profile.profile_table(result) in text
    assert "GFLOP/s" in text
    assert "8 at once" in capsys.readouterr().out
