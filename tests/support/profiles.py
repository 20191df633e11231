"""ICC profiles made from the one of sRGB."""

from __future__ import annotations

import struct

from PIL import ImageCms


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def renamed(profile: bytes, names: dict[bytes, bytes], space: bytes | None = None) -> bytes:
    """The profile with some tags under other names, and for another colour space."""
    changed = bytearray(profile)
    (count,) = struct.unpack_from(">I", profile, 128)
    for number in range(count):
        place = 132 + 12 * number
        name = bytes(changed[place : place + 4])
        changed[place : place + 4] = names.get(name, name)
    if space is not None:
        changed[16:20] = space
    return bytes(changed)


def swapped_profile() -> bytes:
    """Red is blue, and blue is red."""
    return renamed(srgb_profile(), {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"})


def grey_profile() -> bytes:
    """Grey with the curve of sRGB."""
    return renamed(srgb_profile(), {b"rTRC": b"kTRC"}, b"GRAY")
