"""Loading: seconds against a plain read of the same files, and the memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu.run import Run
from benchmarks.gpu.shapes import checkpoint_files
from benchmarks.peak_memory import host_mib, peak_mib, reset_host_peak, reset_peak
from purifier.mdlm.registry import checkpoint_id, load_mdlm
from purifier.numeric import seconds

_BLOCK = 16 * 1024**2
_PATIENCE = 600.0


def measure(run: Run) -> None:
    """Writes the checkpoint, reads it plainly, loads it; from memory, then from the disk.

    What was just written is in memory, so a slow disk costs no figure but its own.
    """
    start = perf_counter()
    run.make_checkpoint()
    files = checkpoint_files(run.folder)
    run.put(
        "checkpoint",
        {
            "bytes": sum(file.stat().st_size for file in files),
            "shards": len(files),
            "seconds_to_write": perf_counter() - start,
        },
    )
    run.measure("from memory", 10, partial(_read_and_load, run, "from memory", files, cached=True))
    run.measure("hashed", 10, lambda: {"seconds": _timed(lambda: checkpoint_id(run.folder))})
    run.measure("from disk", 10, partial(_read_and_load, run, "from disk", files, cached=False))


def _read_and_load(run: Run, name: str, files: list[Path], *, cached: bool) -> dict[str, Any]:
    """Both sides begin with the files in the page cache, or without."""
    if not cached:
        _drop_from_cache(files)
    read = _timed(lambda: plain_read(files))
    run.put(f"plain read, {name}", {"seconds": read})
    if not cached:
        _drop_from_cache(files)
    loaded = _loaded_alone(run)
    return {"read_seconds": read, **loaded, "ratio": loaded["load_seconds"] / read}


def plain_read(files: list[Path]) -> None:
    """Reads files from their start to their end into one buffer."""
    buffer = bytearray(_BLOCK)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _drop_from_cache(files: list[Path]) -> None:
    """Lets the system forget files, so that the next read comes from the disk (Linux)."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _loaded_alone(run: Run) -> dict[str, Any]:
    """Loads in a process of its own, whose peak of memory is that of loading."""
    command = [sys.executable, "-m", __name__, str(run.folder), run.device, run.dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def load_and_tell(folder: Path, device: str, dtype: str) -> dict[str, float]:
    """Seconds of loading, and the process's memory: before, at the peak, of the device."""
    place = torch.device(device)
    torch.zeros(1, device=place)  # the device's own start is not loading
    reset_host_peak()
    before = host_mib("VmRSS")
    if device.startswith("cuda"):
        reset_peak(device)
    start = seconds(place)
    mdlm = load_mdlm(folder, device=device, dtype=dtype)
    spent = seconds(mdlm.device) - start
    return {
        "load_seconds": spent,
        "host_mib_before": before,
        "host_mib_peak": host_mib("VmHWM"),
        "device_mib_peak": peak_mib(device),
    }


def _timed(act: Any) -> float:
    start = perf_counter()
    act()
    return perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(load_and_tell(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
