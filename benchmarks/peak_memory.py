"""The largest memory that this process has held, on the host and on its device."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def reset_peak(device: str) -> float:
    """Begins to measure the peak anew; MiB in use now.

    A process otherwise inherits the host peak of the one that has started it.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_host_peak()
    return peak_mib(device)


def peak_mib(device: str) -> float:
    """Largest memory of the device since `reset_peak`, MiB; of the host for a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    return host_mib("VmHWM")


def reset_host_peak() -> None:
    """Begins to measure the host's peak anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def host_mib(entry: str) -> float:
    """Resident memory of this process in MiB (Linux): `VmRSS` now, `VmHWM` at its peak."""
    return int(_STATUS.read_text().split(f"{entry}:")[1].split()[0]) / 2**10
