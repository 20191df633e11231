"""A real model that a test can hold up or break."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from purifier.mdlm.base import Mdlm

PASSES = frozenset(
    {
        "attention",
        "feature_logits",
        "logits",
        "scored_logits",
        "segment_logits",
        "tail_attention",
        "tail_logits",
    }
)
"""Methods that run the language model."""


class Tampered:
    """A real model whose passes call a hook first: it holds them up, or breaks them.

    Attributes:
        hook: Called before every pass.
        result: What becomes of the predictions of a pass.
        threads: Names of the threads that ran it.
    """

    def __init__(self, mdlm: Mdlm) -> None:
        self._mdlm = mdlm
        self.hook: Callable[[], None] = lambda: None
        self.result: Callable[[Tensor], Tensor] = lambda logits: logits
        self.threads: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._mdlm, name)
        if name not in PASSES:
            return found

        def run(*args: Any, **settings: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            self.hook()
            return self._altered(found(*args, **settings))

        return run

    def _altered(self, found: Any) -> Any:
        """Predictions altered, also those of several sequences, and those beside other things."""
        if isinstance(found, Tensor):
            return self.result(found)
        if isinstance(found, tuple):
            return (self._altered(found[0]), *found[1:])
        return [self._altered(one) for one in found]


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
        assert self._open.wait(300)

    def wait_reached(self) -> None:
        assert self._reached.wait(300)

    def open(self) -> None:
        self._open.set()
