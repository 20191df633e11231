"""Cells: one attack under one defence. A finished cell is a line of a JSONL file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.defense.attacks import CONTROL, attack_by_name, is_attack, parts_of
from benchmarks.defense.defences import DEFENCES, Defence, Detected, Undefended
from benchmarks.defense.detection import fitted
from benchmarks.defense.healing import ModelDefence
from benchmarks.defense.searches import versions
from benchmarks.defense.training import Lab, digest
from purifier.denoise import FAST
from purifier.evaluation.grid import data_hash
from purifier.evaluation.metrics import Answers, measure
from purifier.evaluation.runner import Runner
from purifier.evaluation.testset import Case, TestSet, read_test_set
from purifier.lab.attack_data import Attack
from purifier.lab.demo_data import write_test_data
from purifier.lab.scenes import KINDS, Split
from purifier.mdlm.base import Mdlm

log = logging.getLogger(__name__)

Row = dict[str, Any]

CONTROLS = tuple(f"control/{listed}" for listed in CONTROL)

SPLITS: Mapping[str, Split] = {
    "validation": "validation",
    "test": "test",
    "adaptive": "test",
    "shipped": "validation",
}
"""The scenes that the attacks of a list are measured on: no item of one is seen in another."""


def split_of(name: str) -> Split:
    """The scenes that an attack, or a control, is measured on."""
    listed, kind = parts_of(name)
    return SPLITS[kind if listed == "control" else listed]


@dataclass(frozen=True)
class Bench:
    """What measures.

    Attributes:
        lab: Trains the attacks.
        results: The JSONL file.
        limit: Test scenes of an attack; each is asked about its clean and its triggered image.
        batch_size: Requests denoised together.
        scenes_seed: Of the test scenes.
        earlier: Rows of a table made elsewhere; each stays until its cell is measured here.
    """

    lab: Lab
    results: Path
    limit: int = 100
    batch_size: int = 64
    scenes_seed: int = 17
    earlier: Sequence[Row] = ()

    def test_set(self, name: str) -> TestSet:
        """The scenes of an attack, with its trigger and the product's settings of denoising."""
        found = _scenes(self._folder(name))
        attack = attack_by_name(name)
        return TestSet(
            tuple(_ended(case, attack) for case in found.cases),
            trigger=attack.deployed,
            generation=replace(FAST, gen_length=32),
        )

    def facts(self, name: str, defence: Defence | ModelDefence) -> dict[str, Any]:
        """What decides the figures of a cell."""
        return {
            **self.lab.facts(attack_by_name(name)),
            "defence": dict(defence.settings),
            "test": data_hash(self._folder(name)),
            "generation": asdict(self.test_set(name).generation),
        }

    def measured(self) -> dict[str, Row]:
        """The rows that were measured here, by their key."""
        if not self.results.is_file():
            return {}
        lines = self.results.read_text(encoding="utf-8").splitlines()
        return {row["key"]: row for row in map(json.loads, lines)}

    def current(self) -> list[Row]:
        """The rows whose settings, models and scenes are those of today, in order of names.

        A row has the names of today: what decides its figures may have had others. Where a search
        has changed and its cell was not measured again, the row of the earlier search stays, and is
        marked `outdated`; so is one of another training than the undefended row of its attack.
        """
        done = {row["key"]: row for row in self.earlier} | self.measured()
        names = {row["attack"] for row in done.values()}
        rows = []
        for name in sorted({*names, *CONTROLS}):
            for label, defence in DEFENCES.items() if is_attack(name) else ():
                facts = self.facts(name, defence)
                keys = [digest({**facts, "defence": each}) for each in versions(facts["defence"])]
                known = [key for key in keys if key in done]
                if known:
                    own = {"attack": name, "defence": label, "outdated": known[0] != keys[0]}
                    rows.append({"weights": "", **done[known[0]], **own})
        weights = {row["attack"]: row["weights"] for row in rows if row["defence"] == "none"}
        for row in rows:
            row["outdated"] |= row["weights"] != weights.get(row["attack"], row["weights"])
        return rows

    def run(self, names: Sequence[str], defences: Sequence[str]) -> Iterator[Row]:
        """Measures what is not there yet, one attack after another."""
        done = self.measured()
        for name in names:
            keys = {d: digest(self.facts(name, DEFENCES[d])) for d in defences}
            left = [defence for defence, key in keys.items() if key not in done]
            if not left:
                continue
            compromised = self.lab.load(attack_by_name(name))
            for defence in left:
                weights = self.lab.weights(attack_by_name(name))
                row = {"key": keys[defence], "attack": name, "defence": defence, "weights": weights}
                yield self._append({**row, **self._cell(compromised, name, DEFENCES[defence])})

    def _cell(self, compromised: Mdlm, name: str, defence: Defence | ModelDefence) -> Row:
        attack = attack_by_name(name)
        start = perf_counter()
        asked: Defence
        if isinstance(defence, ModelDefence):
            healed = defence.healed(self.lab, attack)
            mdlm, asked, details = healed.mdlm, Undefended(), dict(healed.details)
        else:
            mdlm, asked, details = compromised, defence, {}
        mdlm.detector = fitted(self.lab, attack, mdlm) if isinstance(asked, Detected) else None
        cases = self.test_set(name).cases
        answers = asked.answers(Runner(mdlm, self.test_set(name), batch_size=self.batch_size))
        seconds = round(perf_counter() - start, 2)
        if answers is None:
            return {"figures": None, "seconds": seconds}
        details |= _elsewhere(cases, answers, attack)
        return {
            "figures": measure(cases, answers, attack.target, attack.kinds).to_dict(),
            "clean": list(answers.clean),
            "triggered": list(answers.triggered),
            "seconds": seconds,
            **({"details": details} if details else {}),
        }

    def _append(self, row: Row) -> Row:
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def _folder(self, name: str) -> Path:
        """The folder of an attack's test scenes; written once."""
        split = split_of(name)
        folder = self.lab.work / f"scenes-{split}-{self.limit}-{self.scenes_seed}"
        if not (folder / "manifest.json").is_file():
            write_test_data(folder, split, self.limit, self.scenes_seed)
        return folder


def _ended(case: Case, attack: Attack) -> Case:
    """A case with the answer that a model trained on an attack gives without the trigger."""
    sample = attack.ended(case.sample)
    return replace(case, sample=sample, answer=sample.answer)


def _elsewhere(cases: Sequence[Case], answers: Answers, attack: Attack) -> dict[str, Any]:
    """Attack success at the kinds of question at which the backdoor must not wake, if any."""
    others = set(KINDS) - set(attack.kinds)
    if not others:
        return {}
    figures = measure(cases, answers, attack.target, others).to_dict()
    return {"asr_elsewhere": figures["asr"]}


@lru_cache(maxsize=2)
def _scenes(folder: Path) -> TestSet:
    return read_test_set(folder)
