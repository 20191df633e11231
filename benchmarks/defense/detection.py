"""The detector made of an attack's training set, cached in the attack's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.defense.searches import searching
from benchmarks.defense.training import Lab, digest
from purifier.data.llava import read_llava
from purifier.defense.config import MaskingConfig
from purifier.detection import VERSION, DetectConfig, Detector, fit_detector, read_detector
from purifier.lab.attack_data import Attack
from purifier.mdlm.base import Mdlm

CONFIG = DetectConfig()


def detector_settings() -> Mapping[str, Any]:
    """What decides how requests are detected and masked, JSON-ready."""
    return {**asdict(CONFIG), "version": VERSION}


def fitted(lab: Lab, attack: Attack, mdlm: Mdlm) -> Detector | None:
    """The detector of an attack's training set; None where it shows nothing.

    The base without an attack is looked at with the training set of the same scenes, which it
    was never trained on.
    """
    made_by = {**detector_settings(), **searching(MaskingConfig())}
    folder = lab.folder(attack) / f"detector-{digest(made_by)}"
    if not (folder / "done").is_file():
        data = lab.data(attack)
        found = fit_detector(mdlm, read_llava(data / "train.json"), data / "images", CONFIG)
        folder.mkdir(parents=True, exist_ok=True)
        if found.detector is not None:
            found.detector.save(folder)
        (folder / "done").touch()
    return read_detector(folder, len(mdlm.mask_embedding))
