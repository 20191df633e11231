"""What is free on the host."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pytest
import torch

from server.engine.memory import free_bytes


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="the allocator is not glibc's",
)
def test_freed_memory_is_given_back() -> None:
    process = psutil.Process()
    # Small enough not to be mapped one by one; the last one keeps the heap from shrinking.
    blocks = [bytearray(2**16) for _ in range(3000)]
    last = blocks.pop()
    size = sum(map(len, blocks))
    del blocks
    held = process.memory_info().rss
    free_bytes(torch.device("cpu"))
    assert process.memory_info().rss < held - size // 2
    assert len(last) == 2**16
