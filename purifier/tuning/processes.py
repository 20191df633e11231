"""The processes of one training: which of them this one is, and what they add up.

`accelerate launch` and `torchrun` describe a process's place in the environment alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """This process's place among all.

    Attributes:
        rank: Number of this process; 0 reports and writes.
        count: Number of processes.
        device: The device this process computes on.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors (float32, on one device) by their sums over all processes."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):  # type: ignore[no-untyped-call]
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Ends the group."""
        if self.count > 1:
            distributed.destroy_process_group()


def join(device: str) -> Processes:
    """Joins the group that the launcher described; a process without launcher is alone.

    Args:
        device: As in `load_mdlm`; of several processes every one takes the `cuda` device of its
            local rank.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes(device=device)
    is_cuda = device.startswith("cuda")
    if is_cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if is_cuda else "gloo")
    return Processes(distributed.get_rank(), count, device)
