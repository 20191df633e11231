"""Reads stored tensors straight to a device, with little memory on the host.

On the CPU bytes go from the file into the tensor itself; for other devices, or where the stored
dtype is another one, through staging buffers of a fixed size. Files are read, not mapped: what
has been loaded stays as it is when a file changes later, and a file that is cut off meanwhile is
an error, not a signal that ends the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import groupby

import torch
from torch import Tensor

from purifier.errors import CheckpointError
from purifier.mdlm.shards import StoredTensor, listed

_STAGING_BYTES = 64 * 1024**2
_CHECKED_TOGETHER = 16 * 1024**2
_STAGING_BUFFERS = 2
"""While one buffer is copied to the device, the next one is read from the file."""


def read_tensors(
    stored: Iterable[StoredTensor], *, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Reads tensors one after the other.

    Args:
        stored: From `purifier.mdlm.shards`, best in the order in which they lie on disk.
        device: Where the tensors go.
        dtype: What they become.

    Yields:
        Name, and the tensor on `device` in `dtype`.

    Raises:
        CheckpointError: If a file cannot be read, or, after the last tensor, if one of them has
            infinite values or values that are not numbers.
    """
    staging = _Staging(device)
    finite: list[tuple[StoredTensor, Tensor]] = []
    for file, inside in groupby(stored, key=lambda tensor: tensor.file):
        try:
            with FileIO(file) as stream:
                for tensor in inside:
                    read = _read(stream, tensor, staging, device, dtype)
                    finite.append((tensor, _is_finite(read)))
                    yield tensor.name, read
        except OSError:
            raise CheckpointError(
                f"{file.name} could not be read to its end. Copy it again."
            ) from None
    _require_finite(finite)


def _read(
    stream: FileIO,
    tensor: StoredTensor,
    staging: _Staging,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    read = torch.empty(tensor.n_values, dtype=dtype, device=device)
    stream.seek(tensor.start)
    if device.type == "cpu" and tensor.dtype == dtype:
        _fill(stream, read.view(torch.uint8))
    else:
        for part in read.split(_STAGING_BYTES // tensor.dtype.itemsize):  # type: ignore[no-untyped-call]
            staging.pass_on(stream, tensor.dtype, part)
    return read.view(tensor.shape)


def _fill(stream: FileIO, raw: Tensor) -> None:
    """Reads as many bytes as a uint8 tensor on the CPU has; raises OSError at the file's end."""
    view = memoryview(raw.numpy())  # type: ignore[arg-type]
    while view:
        count = stream.readinto(view)
        if not count:
            raise OSError("the file ended early")
        view = view[count:]


class _Staging:
    """Buffers on the host that are filled and copied to a device in turn.

    Args:
        device: Where their contents go. For CUDA the buffers are pinned, so that a copy runs
            while the next buffer is filled.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._turn = 0

    def pass_on(self, stream: FileIO, dtype: torch.dtype, target: Tensor) -> None:
        """Reads numbers of `dtype` from a stream into a flat tensor on the device."""
        cuda = self._device.type == "cuda"
        if len(self._buffers) < _STAGING_BUFFERS:
            self._turn = len(self._buffers)
            self._buffers.append(torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=cuda))
            if cuda:
                self._copied.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
        else:
            self._turn = (self._turn + 1) % _STAGING_BUFFERS
            if cuda:
                self._copied[self._turn].synchronize()
        raw = self._buffers[self._turn][: len(target) * dtype.itemsize]
        _fill(stream, raw)
        numbers = raw.view(dtype)
        if self._device.type == "mps" and dtype == torch.float64:
            numbers = numbers.to(target.dtype)  # which MPS does not have
        # Converted on the device: on the host it would take memory and undo the pinning.
        target.copy_(numbers.to(self._device, non_blocking=cuda))
        if cuda:
            self._copied[self._turn].record(torch.cuda.current_stream(self._device))


def _is_finite(tensor: Tensor) -> Tensor:
    """Bool [], in pieces, so that the check needs little memory of its own."""
    pieces = tensor.view(-1).split(_CHECKED_TOGETHER)  # type: ignore[no-untyped-call]
    return torch.stack([torch.isfinite(piece).all() for piece in pieces]).all()


def _require_finite(read: Iterable[tuple[StoredTensor, Tensor]]) -> None:
    checked = list(read)
    if not checked:
        return
    fine = torch.stack([flag for _, flag in checked]).tolist()
    broken = [
        f"{tensor.name} (in {tensor.file.name})"
        for (tensor, _), good in zip(checked, fine, strict=True)
        if not good
    ]
    if broken:
        raise CheckpointError(
            f"The checkpoint has weights that are infinite or not numbers: {listed(broken)}."
        )
