"""`disp detect` and `disp purify --detectors`: from a training set to a guarded checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from purifier.detect import main, write_guarded
from purifier.detection import Fitted
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.registry import load_mdlm
from purifier.purify import main as purify
from tests.mdlm.test_detector import detector

TRAIN = DATA_FOLDER / "train"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred rows of the shipped attack's training set."""
    rows = json.loads((TRAIN / "insertion.json").read_text("utf-8"))[:100]
    path = tmp_path_factory.mktemp("few") / "train.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_the_checkpoint_with_its_detector_is_the_same_model(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guarded"
    model = checkpoint_path("insertion")
    options = [str(few), "--model", str(model), "--images", str(TRAIN / "images"), "--json"]
    assert main([*options, "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"] == 100
    assert [group["kind"] for group in result["groups"]] == ["image"]
    assert result["checkpoint"].startswith("guarded@sha256:")
    guarded, plain = load_mdlm(out), load_mdlm(model)
    assert guarded.detector is not None
    weights = guarded.published_weights()
    for name, weight in plain.published_weights().items():
        assert weight.equal(weights[name]), name
    assert main([*options, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path / "other" / "base")]) == 2
    assert "is the name of the checkpoint's base" in capsys.readouterr().err


def test_full_weights_become_a_delta_without_changes(tmp_path: Path) -> None:
    base = tmp_path / "models" / "base"
    shutil.copytree(checkpoint_path("base"), base)
    width = len(load_mdlm(base).mask_embedding)
    out = tmp_path / "served" / "guarded"
    write_guarded(base, detector(width), out)
    guarded = load_mdlm(out)
    assert guarded.detector is not None
    weights = guarded.published_weights()
    assert all(w.equal(weights[n]) for n, w in load_mdlm(base).published_weights().items())


def test_data_and_model_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 2
    assert "Give DATA and --model" in capsys.readouterr().err


def test_nothing_found_is_said_and_nothing_is_written(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guarded"
    options = [str(few), "--model", str(checkpoint_path("base")), "--rows", "50"]
    assert main([*options, "--images", str(TRAIN / "images"), "--out", str(out)]) == 0
    assert "nothing was found." in capsys.readouterr().out
    assert not out.exists()


def test_purify_searches_first_and_flags_by_it(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A threshold that no label reaches: every flag is the detector's."""
    model = str(checkpoint_path("insertion"))
    options = [str(few), "--model", model, "--images", str(TRAIN / "images"), "--json"]
    options += ["--policy", "drop_flagged", "--ranker", "random", "--flag-threshold", "1000"]
    assert purify([*options, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "search: 10 batches" in said.err
    result = json.loads(said.out)
    (group,) = result["detector"]["groups"]
    assert group["rows"] == result["flagged"] == result["dropped"]
    assert result["settings"]["detectors"] == ["training-set"]


def test_purify_does_not_search_where_no_detector_is_named(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(few), "--model", str(checkpoint_path("insertion")), "--limit", "8"]
    options += ["--images", str(TRAIN / "images"), "--ranker", "random", "--gen-length", "8"]
    assert purify([*options, "--out", str(tmp_path / "out"), "--detectors"]) == 0
    said = capsys.readouterr()
    assert "searched" not in said.out
    assert "search:" not in said.err


def test_the_report_of_purify_says_what_the_search_found(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search itself, a minute on a processor, is run above."""
    monkeypatch.setattr("purifier.purify.fit_detector", lambda *_, **__: Fitted(None, (), 8))
    options = [str(few), "--model", str(checkpoint_path("insertion")), "--limit", "8"]
    options += ["--images", str(TRAIN / "images"), "--ranker", "random", "--gen-length", "8"]
    assert purify([*options, "--out", str(tmp_path / "out")]) == 0
    said = "The training set was searched for a trigger in 8 of its rows: nothing was found."
    assert said in capsys.readouterr().out
