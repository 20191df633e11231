"""The place of the served model: what is loaded there, and how the next one gets in.

shared      the base is in memory: the delta's own tensors are added beside it
copy        memory holds two models: the next one is loaded while this one answers
in_place    it does not: this one is dropped before the next one is loaded
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from purifier.errors import CheckpointError
from purifier.mdlm.base import Mdlm
from purifier.mdlm.delta import Delta, apply_delta, read_delta
from purifier.mdlm.detector import read_detector
from purifier.mdlm.registry import load_mdlm
from purifier.mdlm.variant import changed_bytes, with_delta
from server.engine.job import Serving
from server.engine.memory import free_bytes, weight_bytes

Way = Literal["shared", "copy", "in_place"]
SwapPolicy = Literal["auto", "in_place"]

_RESERVE = {"cpu": 64 * 1024**2}
_OTHER_RESERVE = 2 * 1024**3
"""Bytes that are left for activations on a device that is not the host."""


@dataclass(frozen=True)
class Weights:
    """Where a checkpoint lies.

    Attributes:
        checkpoint: Its id.
        path: Its folder.
        parent: Id of the checkpoint it was made from.
        base: The full weights that a delta stands on; None for full weights.
        sha256: Content hash.
    """

    checkpoint: str
    path: Path
    sha256: str
    parent: str | None = None
    base: Weights | None = None

    @property
    def root(self) -> Weights:
        """The full weights: its base, or itself."""
        return self.base or self


@dataclass(frozen=True)
class Plan:
    """How a checkpoint gets in.

    Attributes:
        way: See above.
        needed: Bytes it takes beside what is there.
        free: Bytes there are.
        reads_base: Whether the full weights are read from disk.
    """

    way: Way
    needed: int
    free: int
    reads_base: bool

    def __str__(self) -> str:
        return f"{self.way}, {self.needed / 1e6:,.0f} MB needed, {self.free / 1e6:,.0f} MB free"


class ModelSlot:
    """Loads checkpoints for one device; keeps the base that deltas are put on.

    One thread at a time may use it.

    Args:
        device: Where the weights go.
        dtype: Of weights and activations.
        policy: `in_place` never holds two models.
    """

    def __init__(self, device: str, dtype: str, policy: SwapPolicy = "auto") -> None:
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._policy = policy
        self._tokenizing = threading.Lock()
        self._base: tuple[str, Mdlm] | None = None
        self._next: tuple[str, Mdlm] | None = None

    def plan(self, weights: Weights) -> Plan:
        """Decides how a checkpoint gets in beside the one that serves.

        Raises:
            CheckpointError: If its files are damaged.
        """
        free = free_bytes(self._device)
        if self._policy == "auto" and self._base and self._base[0] == weights.root.checkpoint:
            needed = self._own_bytes(self._base[1], weights)
            if self._fits(needed, free):
                return Plan("shared", needed, free, reads_base=False)
        needed = weight_bytes(weights.root.path, self._dtype)
        fits = self._policy == "auto" and self._fits(needed, free)
        return Plan("copy" if fits else "in_place", needed, free, reads_base=True)

    def load(self, weights: Weights, plan: Plan | None = None) -> Serving:
        """Loads a checkpoint as planned; without a plan nothing is there yet.

        Raises:
            CheckpointError: If it is refused or damaged.
            InvalidSetting: If the device is not there.
        """
        # A load that has failed may have left its model here.
        self._next = None
        if plan is None or plan.way == "in_place":
            self._base = None
        if plan is not None and plan.way == "shared" and self._base is not None:
            self._next = self._base
        else:
            device, dtype = str(self._device), self._dtype
            root = weights.root
            self._next = (root.checkpoint, load_mdlm(root.path, device=device, dtype=dtype))
        mdlm = self._next[1]
        if weights.base is not None:
            delta = self._delta(weights, weights.base)
            detector = read_detector(weights.path, len(mdlm.mask_embedding))
            mdlm = self._with_delta(mdlm, delta, shared=plan is not None and plan.way == "shared")
            mdlm.detector = detector
        return Serving(mdlm, weights.checkpoint, int(time.time()), weights.parent, self._tokenizing)

    def keep(self) -> None:
        """Says that what was loaded last serves now; the base of the one before is dropped."""
        self._base, self._next = self._next, None

    def drop(self) -> None:
        """Says that what was loaded last does not serve."""
        self._next = None

    def _with_delta(self, base: Mdlm, delta: Delta, *, shared: bool) -> Mdlm:
        """The base stays in memory where there is room for what the delta changes."""
        room = self._policy == "auto" and self._fits(
            changed_bytes(base, delta), free_bytes(self._device)
        )
        if shared or room:
            return with_delta(base, delta)
        self._next = None
        apply_delta(base, delta)
        return base

    def _own_bytes(self, base: Mdlm, weights: Weights) -> int:
        if weights.base is None:
            return 0
        return changed_bytes(base, self._delta(weights, weights.base))

    def _delta(self, weights: Weights, base: Weights) -> Delta:
        delta = read_delta(weights.path, base=base.path)
        if delta.base_sha256 != base.sha256:
            raise CheckpointError(f"{weights.checkpoint}: its base was altered since it was made.")
        return delta

    def _fits(self, needed: int, free: int) -> bool:
        reserve = _RESERVE.get(self._device.type, _OTHER_RESERVE)
        return needed * 11 // 10 + reserve <= free
