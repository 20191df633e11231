"""The training loop: optimizer steps that come out alike wherever and however often stopped.

All randomness is a function of the seed, the epoch and the row, so nothing but the parameters,
AdamW's moments and the number of steps has to be kept, and neither the number of processes nor
the micro batch changes what is learned (beyond the order of float additions).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from purifier.errors import InvalidSetting
from purifier.mdlm.base import Mdlm
from purifier.tuning.adapters import open_parts
from purifier.tuning.batch import batch_loss, collate, draw_noise, row_seed
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.events import Emit
from purifier.tuning.examples import TrainingRows
from purifier.tuning.processes import Processes
from purifier.tuning.schedule import rate_factor
from purifier.tuning.state import read_facts, restore_state, save_state

_ADAM_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Course:
    """How many steps a training has, and which rows each of them takes."""

    rows: int
    epochs: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def chosen(self, step: int) -> list[int]:
        """Rows of a step, in order; every epoch has an order of its own."""
        epoch, place = divmod(step, self.steps_per_epoch)
        digest = hashlib.sha256(f"{self.seed}/{epoch}/order".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        return order[place * self.batch_size : (place + 1) * self.batch_size]


class Trainer:
    """One model in training.

    Args:
        mdlm: The compromised model; changed.
        rows: The purified rows.
        config: Settings.
        processes: This process and its fellows.
        state: File of the state; None keeps none.
        run: What the state belongs to; a state of something else is refused.
        save_seconds: Least time between two saves, by the clock of the first process.

    Raises:
        InvalidSetting: If the state belongs to another run, or there are more processes than
            rows in a batch.
    """

    def __init__(
        self,
        mdlm: Mdlm,
        rows: TrainingRows,
        config: FinetuneConfig,
        *,
        processes: Processes | None = None,
        state: Path | None = None,
        run: str = "",
        save_seconds: float = 30.0,
    ) -> None:
        self.mdlm = mdlm
        self.rows = rows
        self.config = config
        self.processes = processes or Processes()
        self.course = Course(len(rows), config.epochs, config.batch_size, config.seed)
        if config.batch_size < self.processes.count:
            raise InvalidSetting(
                "batch_size must be at least the number of processes.", param="batch_size"
            )
        share = math.ceil(config.batch_size / self.processes.count)
        self._micro = min(config.micro_batch_size or share, share)
        self.opened = open_parts(
            mdlm, config.parts, rank=config.rank, alpha=config.alpha, seed=config.seed
        )
        self._parameters = list(self.opened.values())
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            config.learning_rate,
            betas=_ADAM_BETAS,
            weight_decay=config.weight_decay,
            fused=mdlm.device.type == "cuda",
        )
        self._state = state
        self._run = run
        self._save_seconds = save_seconds
        self._saved = 0.0
        self.losses: list[float] = []
        self._resume()
        if config.gradient_checkpointing:
            for module in mdlm.modules.children():
                if isinstance(module, PreTrainedModel):
                    _checkpoint_activations(module)

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def train(self, emit: Emit, should_stop: Callable[[], bool]) -> bool:
        """Takes the steps that are left.

        Args:
            emit: Gets an event for every step and every save, in the first process.
            should_stop: Asked after every step, in every process; one yes stops all of them.

        Returns:
            Whether the training is complete; if not, its state has been saved.
        """
        self.mdlm.modules.train()
        try:
            return self._train(emit, should_stop)
        finally:
            self.mdlm.modules.eval()

    def _train(self, emit: Emit, should_stop: Callable[[], bool]) -> bool:
        course = self.course
        start, first, done = time.monotonic(), self.step, 0
        self._saved = start
        while self.step < course.steps:
            step, chosen = self.step, course.chosen(self.step)
            rate = self._set_rate(step)
            loss, stop, save = self._take(step, chosen, should_stop)
            self.losses.append(loss)
            done += len(chosen)
            spent = max(time.monotonic() - start, 1e-9)
            emit(
                {
                    "event": "step",
                    "step": self.step,
                    "steps": course.steps,
                    "epoch": course.epoch(step),
                    "loss": loss,
                    "learning_rate": rate,
                    "rows_per_second": round(done / spent, 3),
                    "eta": round((course.steps - self.step) * spent / (self.step - first), 1),
                }
            )
            if not math.isfinite(loss):
                raise InvalidSetting(
                    "The loss is not finite; choose a smaller learning_rate.",
                    param="learning_rate",
                )
            left = course.steps - self.step
            if stop or save:
                self._save(emit)
                self._saved = time.monotonic()
            if stop and left:
                return False
        return True

    def _take(
        self, step: int, chosen: list[int], should_stop: Callable[[], bool]
    ) -> tuple[float, bool, bool]:
        """One optimizer step.

        Returns:
            Its loss, whether any process wants to stop, and whether the first one wants to save.
            All processes get the same: one that saves waits for the others.
        """
        device = self.mdlm.device
        self._optimizer.zero_grad(set_to_none=False)
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        total = torch.zeros((), device=device)
        parts = [chosen[i : i + self._micro] for i in range(0, len(chosen), self._micro)]
        for part in parts[self.processes.rank :: self.processes.count]:
            loss = self._loss(step, part) * (len(part) / len(chosen))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        stop = torch.tensor(float(should_stop()), device=device)
        save = torch.tensor(float(self.processes.first and self._is_save_due()), device=device)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self.processes.add_up([*gradients, total, stop, save])
        if self.config.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        self._optimizer.step()
        return total.item(), stop.item() > 0, save.item() > 0

    def _is_save_due(self) -> bool:
        """Whether the step in hand is to be saved; the last one makes the result instead."""
        is_last = self.step + 1 == self.course.steps
        return not is_last and time.monotonic() - self._saved >= self._save_seconds

    def _loss(self, step: int, part: list[int]) -> Tensor:
        config, device = self.config, self.mdlm.device
        short = config.precision == "bfloat16" or (
            config.precision == "auto"
            and (device.type == "cuda" or self.mdlm.dtype == torch.bfloat16)
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=short):
            batch = collate(
                self.mdlm,
                [self.rows[index] for index in part],
                padding=config.padding,
                tower="vision_tower" in config.parts,
            )
            epoch = self.course.epoch(step)
            seeds = [row_seed(config.seed, epoch, index) for index in part]
            noise = draw_noise(batch, seeds, visual_mask=config.visual_mask)
            return batch_loss(
                self.mdlm,
                batch,
                noise,
                filler_weight=config.filler_weight,
                turn_mask=config.turn_mask,
            )

    def _set_rate(self, step: int) -> float:
        config = self.config
        factor = rate_factor(
            step, self.course.steps, warmup=config.warmup, cosine=config.schedule == "cosine"
        )
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        return config.learning_rate * factor

    def _resume(self) -> None:
        facts = None if self._state is None else read_facts(self._state)
        if self._state is None or facts is None:
            return
        if facts.get("run") != self._run:
            raise InvalidSetting(
                "The work folder holds the state of another training; choose another one.",
                param="work",
            )
        extra = restore_state(self._state, self.opened, self._optimizer)
        self.losses = extra["losses"].tolist()

    def _save(self, emit: Emit) -> None:
        # Every process waits, so that none runs ahead of a state that is not yet there.
        if self._state is not None and self.processes.first:
            losses = torch.tensor(self.losses, dtype=torch.float64)
            facts = {"step": self.step, "run": self._run}
            save_state(self._state, self.opened, self._optimizer, facts, {"losses": losses})
            emit({"event": "saved", "step": self.step})
        self.processes.wait()


def _checkpoint_activations(module: PreTrainedModel) -> None:
    # A later transformers 5 renamed the method; the old name warns.
    old: Any = getattr(module, "gradient_checkpointing_enable", None)
    enable = getattr(module, "activation_checkpointing_enable", old)
    enable({"use_reentrant": False})
