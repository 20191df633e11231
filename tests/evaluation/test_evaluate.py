"""The evaluation command on a real small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from purifier.defense.config import MaskingConfig
from purifier.evaluate import evaluate, main
from purifier.evaluation.testset import read_test_set
from purifier.lab.targets import target_by_name
from purifier.mdlm.registry import load_mdlm

FIGURES = ["asr", "asr_untriggered", "clean_exact", "clean_slots", "recovered"]


@pytest.fixture
def options(tiny_checkpoint: Path, data_folder: Path) -> list[str]:
    return ["--model", str(tiny_checkpoint), "--data", str(data_folder), "--limit", "3"]


def test_json_holds_the_figures(
    options: list[str],
    tiny_checkpoint: Path,
    data_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--target", "misclassification", "--probes", "2", "--json"]
    assert main([*arguments, *options, "--limit", "6"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["level"], result["ranker"], result["ratio"]) == (
        MaskingConfig().level,
        MaskingConfig().ranker,
        MaskingConfig().ratio,
    )
    assert result["records"] == 6
    assert {name: set(result[name]) for name in FIGURES} == {
        name: {"value", "n", "low", "high"} for name in FIGURES
    }
    assert (result["clean_exact"]["n"], result["asr"]["n"]) == (6, 4)
    expected = evaluate(
        load_mdlm(tiny_checkpoint),
        read_test_set(data_folder, limit=6),
        target_by_name("misclassification"),
        MaskingConfig(probes=2),
    ).to_dict()
    assert {name: result[name] for name in expected} == expected


def test_ratio_zero_is_undefended(
    options: list[str],
    tiny_checkpoint: Path,
    data_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(["--target", "refusal", "--ratio", "0", "--ranker", "random", "--json", *options]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    expected = evaluate(
        load_mdlm(tiny_checkpoint),
        read_test_set(data_folder, limit=3),
        target_by_name("refusal"),
    ).to_dict()
    assert {name: result[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--level", "token"], {"level": "token"}),
        (
            ["--ranker", "attention", "--threshold", "0.5"],
            {"ranker": "attention", "threshold": 0.5},
        ),
    ],
)
def test_settings_that_depend_on_others_follow_them(
    options: list[str],
    arguments: list[str],
    given: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--target", "insertion", "--json", *arguments, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = MaskingConfig().adjusted(**given)
    for name in ("level", "ranker", "ratio", "threshold"):
        assert result[name] == getattr(expected, name)


def test_a_table_without_json(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "insertion", "--level", "token", "--ranker", "random", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("target insertion, checkpoint tiny@sha256:")
    assert "| ASR (keyword) |" in out
    assert "| clean exact |" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio", "1.5"], "ratio must be between 0 and 1"),
        (["--data", "nowhere"], "manifest.json"),
        (["--model", "nowhere"], "checkpoint folder does not exist"),
        (["--pooling", "2"], "pooling must be"),
        (["--device", "abacus"], "device"),
    ],
)
def test_bad_settings_end_with_a_message(
    options: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--target", "insertion", *options, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize("arguments", [["--target", "jailbreak"], ["--limit", "0"], []])
def test_the_command_line_is_checked(
    options: list[str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*options, *arguments])
    assert caught.value.code == 2
    assert "usage: disp evaluate" in capsys.readouterr().err
