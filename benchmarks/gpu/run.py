"""What every part of a run works with: the shape, the model, the clock and the record."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from PIL import Image

from benchmarks.gpu.record import Record
from benchmarks.gpu.shapes import SHAPES, Shape, picture, write_checkpoint
from benchmarks.middle import QUESTION
from benchmarks.speed_timing import Bench
from purifier.answer import user_messages
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm
from purifier.mdlm.shards import INDEX

_REASON_CHARACTERS = 300


@dataclass
class Run:
    """One part's view of a run.

    Attributes:
        part: Name of the part.
        shape_name: One of `SHAPES`.
        device: Where.
        dtype: `float32` or `bfloat16`.
        work: Folder of what is made on the way: checkpoints, pictures.
        record: Where figures go.
        limit: Seconds that the part may take.
    """

    part: str
    shape_name: str
    device: str
    dtype: str
    work: Path
    record: Record
    limit: float
    _started: float = field(default_factory=monotonic)

    @property
    def shape(self) -> Shape:
        return SHAPES[self.shape_name]

    @property
    def left(self) -> float:
        """Seconds left of the part's limit."""
        return self.limit - (monotonic() - self._started)

    @property
    def folder(self) -> Path:
        """The checkpoint's folder; `make_checkpoint` fills it."""
        return self.work / f"random-{self.shape_name}"

    @cached_property
    def bench(self) -> Bench:
        """Timing of pairs on the run's device."""
        return Bench(self.device, self.dtype, self.shape.repeats, tell=self.tell)

    def make_checkpoint(self) -> None:
        """Writes the checkpoint unless it is there."""
        if not (self.folder / INDEX).is_file():
            write_checkpoint(self.folder, self.shape, device=self.device)

    def load(self) -> LladaV:
        """The model, loaded as the product does it."""
        self.make_checkpoint()
        mdlm = load_mdlm(self.folder, device=self.device, dtype=self.dtype)
        if not isinstance(mdlm, LladaV):
            raise TypeError("the shapes are those of LLaDA-V")
        return mdlm

    def picture(self, number: int) -> Image.Image:
        """A random picture of the shape's size, always the same one for a number."""
        return picture(self.shape, number)

    def question(self, mdlm: LladaV, number: int = 0) -> Inputs:
        """A question about that picture."""
        return mdlm.prepare(user_messages(self.picture(number), QUESTION))

    def put(self, name: str, figure: Any) -> None:
        """Keeps a figure."""
        self.record.put(self.part, name, figure)
        self.tell(f"{name}: {_short(figure)}")

    def measure(self, name: str, seconds: float, make: Callable[[], Any]) -> Any:
        """Keeps what `make` returns; notes instead why there is nothing.

        Args:
            name: Of the figure.
            seconds: It is not begun with less time left.
            make: Measures it.
        """
        if self.left < seconds:
            self.put(name, {"missing": "no time was left"})
            return None
        figure = None
        with self.noting(name):
            figure = make()
            self.put(name, figure)
        gc.collect()  # an error's tensors may be in cycles
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return figure

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Notes in place of a figure why there is none, and goes on.

        Args:
            name: Of the figure.
        """
        try:
            yield
        except Exception as error:
            self.put(name, {"missing": _reason(error)})
            self.tell(traceback.format_exc())

    def tell(self, text: str) -> None:
        """Prints progress."""
        print(f"[{self.part}, {self.left:.0f} s left] {text}", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {str(error)[:_REASON_CHARACTERS]}"


def _short(figure: Any) -> str:
    if isinstance(figure, Mapping):
        shown = {key: value for key, value in figure.items() if not isinstance(value, dict | list)}
        figure = shown or list(figure)
    return str(figure)[:300]
