"""The defences of the model by name."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.defense.healing.base import ModelDefence
from benchmarks.defense.healing.clustering import ClusterFilter
from benchmarks.defense.healing.entropy import EntropyFilter
from benchmarks.defense.healing.filtering import Filtering
from benchmarks.defense.healing.loss import LossFilter
from benchmarks.defense.healing.pruning import FinePruning
from benchmarks.defense.healing.relabelling import RELABELLINGS
from benchmarks.defense.healing.restoring import ProjectorReset, RandomRestore
from benchmarks.defense.healing.spectral import SpectralFilter

HEALINGS: Mapping[str, ModelDefence] = {
    **RELABELLINGS,
    "filter, loss": Filtering(LossFilter()),
    "filter, spectral signatures": Filtering(SpectralFilter()),
    "filter, activation clustering": Filtering(ClusterFilter()),
    "filter, attention entropy": Filtering(EntropyFilter()),
    "fine-pruning": FinePruning(),
    "projector reset": ProjectorReset(),
    "random restore 0.3": RandomRestore(),
}
