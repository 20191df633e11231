"""What the device can do at most: matrix products, and moving memory."""

from __future__ import annotations

import torch

from benchmarks.speed_timing import matrix_peak
from purifier.numeric import seconds

_REPEATS = 5


def peaks(device: str, dtype: str) -> dict[str, float]:
    """GFLOP/s of a large matrix product, and GB/s of a copy inside the device's memory."""
    large = device.startswith("cuda")
    side, copied = (8192, 2 * 2**30) if large else (1536, 64 * 2**20)
    return {
        "matrix_gflops": matrix_peak(device, dtype, side=side),
        "copy_gb_per_s": _copy_rate(device, copied),
    }


def _copy_rate(device: str, n_bytes: int) -> float:
    """Bytes read and written a second, the best of several copies."""
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(_REPEATS):
        start = seconds(source.device)
        target.copy_(source)
        best = min(best, seconds(source.device) - start)
    return 2 * n_bytes / best / 1e9
