"""PNG files made chunk by chunk, for what no library writes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

Chunks = list[tuple[bytes, bytes]]

GREY, COLOURS, PALETTE, GREY_ALPHA, COLOURS_ALPHA = 0, 2, 3, 4, 6


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    samples: np.ndarray,
    kind: int,
    depth: int = 8,
    before: Chunks | None = None,
    after: Chunks | None = None,
) -> bytes:
    """A PNG file.

    Args:
        samples: [H, W] or [H, W, channels], in steps of the depth.
        kind: The colour type.
        depth: Bits of a sample.
        before: Chunks between header and pixels.
        after: Chunks behind the pixels.
    """
    height, width = samples.shape[:2]
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = samples.astype(np.uint8).reshape(height, -1)
    else:
        bits = samples.astype(np.uint8)[..., None] >> np.arange(depth - 1, -1, -1) & 1
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    pieces = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    pieces += [*(before or []), (b"IDAT", zlib.compress(data)), *(after or []), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in pieces)
