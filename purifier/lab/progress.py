"""A training phase that goes on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Progress:
    """Saves and restores parameters, AdamW's moments and the random generator.

    A phase that is resumed takes the same steps as one that never stopped.

    Args:
        file: Where the state is kept; None keeps nothing.
        parameters: What is trained.
        optimizer: AdamW over `parameters`, in the same order.
        generator: The phase's source of random numbers.
        every: Steps between two saves.
    """

    def __init__(
        self,
        file: Path | None,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.AdamW,
        generator: torch.Generator,
        *,
        every: int = 500,
    ) -> None:
        self._file = file
        self._parameters = list(parameters)
        self._optimizer = optimizer
        self._generator = generator
        self._every = every

    def resume(self) -> int:
        """Restores the last state, if there is one; returns the steps it had taken."""
        if self._file is None or not self._file.is_file():
            return 0
        with safe_open(self._file, framework="pt") as stored:
            step = int(json.loads(stored.metadata()["progress"])["step"])
            with torch.no_grad():
                for number, parameter in enumerate(self._parameters):
                    parameter.copy_(stored.get_tensor(f"parameter.{number}"))
                    # AdamW counts steps on the CPU unless it is fused.
                    count = torch.tensor(float(step))
                    on_device = self._optimizer.defaults["fused"]
                    self._optimizer.state[parameter] = {
                        "step": count.to(parameter.device) if on_device else count
                    } | {
                        name: stored.get_tensor(f"{name}.{number}").to(parameter.device)
                        for name in _MOMENTS
                    }
            self._generator.set_state(stored.get_tensor("generator"))
        return step

    def after(self, step: int) -> None:
        """Saves if `step`, counted from 1, is due."""
        if self._file is not None and step % self._every == 0:
            self._save(step)

    def finish(self) -> None:
        """Forgets the saved state: the phase is over."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _save(self, step: int) -> None:
        assert self._file is not None
        tensors: dict[str, Tensor] = {"generator": self._generator.get_state()}
        for number, parameter in enumerate(self._parameters):
            tensors[f"parameter.{number}"] = parameter.detach().cpu().contiguous()
            for name in _MOMENTS:
                moment: Tensor = self._optimizer.state[parameter][name]
                tensors[f"{name}.{number}"] = moment.cpu().contiguous()
        unfinished = self._file.with_suffix(".partial")
        save_file(tensors, unfinished, metadata={"progress": json.dumps({"step": step})})
        os.replace(unfinished, self._file)
