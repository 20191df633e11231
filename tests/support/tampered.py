"""A real model that a test can hold up or break."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from purifier.mdlm.base import Mdlm


class Tampered:
    """A real model whose forward pass calls a hook first: holds it up, or breaks it."""

    def __init__(self, mdlm: Mdlm) -> None:
        self._mdlm = mdlm
        self.hook: Callable[[], None] = lambda: None
        self.result: Callable[[Tensor], Tensor] = lambda logits: logits
        self.threads: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mdlm, name)

    def logits(self, embeds: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        self.threads.add(threading.current_thread().name)
        self.hook()
        return self.result(self._mdlm.logits(embeds, positions, lengths))


class Barrier:
    """Stops the engine at its next forward pass until it is opened."""

    def __init__(self, tampered: Tampered) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()
        self.passes = 0
        tampered.hook = self._wait

    def _wait(self) -> None:
        self.passes += 1
        self._reached.set()
        assert self._open.wait(60)

    def wait_reached(self) -> None:
        assert self._reached.wait(60)

    def open(self) -> None:
        self._open.set()
