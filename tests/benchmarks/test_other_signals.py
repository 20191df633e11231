"""The benchmark of other signs of a trigger, on two scenes; its pages say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import other_signals
from benchmarks.other_signals import ATTACKS, DOCUMENT, EFFORTS, NAME, RESULTS, SIGNALS
from benchmarks.speed_report import filled
from purifier.lab.scenes import DEBIAN_FOLDER
from tests.support.service import ROOT


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_every_signal_of_an_attack_is_measured(tmp_path: Path) -> None:
    arguments = ["--limit", "2", "--threads", "1", "--attacks", "validation/copies"]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    assert other_signals.main([*arguments, *folders]) == 0
    (row,) = json.loads((tmp_path / f"{NAME}.json").read_text("utf-8"))["rows"]
    assert row["signals"].keys() == {*SIGNALS, *EFFORTS}
    assert row["signals"]["two windows"]["auroc"] == 1.0
    assert row["searched"]["triggered"]["value"] == 1.0
    page = (tmp_path / f"{NAME}.md").read_text("utf-8")
    assert "| two windows | 26 | 1.000 (100.0 [34.2, 100.0]) |" in page


def test_the_committed_pages_say_what_the_committed_figures_say() -> None:
    facts = json.loads((ROOT / RESULTS / f"{NAME}.json").read_text("utf-8"))
    assert {row["attack"] for row in facts["rows"]} == set(ATTACKS)
    assert (ROOT / RESULTS / f"{NAME}.md").read_text("utf-8") == other_signals.page(facts)
    document = (ROOT / DOCUMENT).read_text("utf-8")
    assert f"<!-- table {NAME} -->" in document
    assert filled(document, {NAME: other_signals.table(facts["rows"])}, partly=True) == document


def test_a_second_window_counts_where_it_shares_nothing_with_the_first() -> None:
    shown = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 1, 1]]]).bool()
    unmasked, empty = torch.tensor([[0.0, -9.0]]), torch.tensor([[-12.0, 0.0]])
    alone = torch.tensor([[[-1.0, -2.0]], [[-2.0, -3.0]], [[-4.0, -5.0]]])
    assert other_signals.enough(unmasked, empty, alone, shown) == (11.0, 8.0)
    alone[2] = torch.tensor([-4.0, -3.0])
    assert other_signals.enough(unmasked, empty, alone, shown) == (11.0, 0.0)
