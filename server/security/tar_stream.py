"""The bytes of a tar as the standard library reads them: counted, forwards only, headers bounded.

The library follows chains of extended headers, reads each of them whole, as long as it says that
it is, and keeps what it has read. None of that shows in the sizes of the members.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tarfile import BLOCKSIZE
from typing import IO

from server.errors import ArchiveRefused

LONGEST_READ = 1 << 20
HEADER_BYTES = 64 * 1024
"""Of one extended header: a long name, times, attributes."""
_HEADER_READS = 16
"""Of the headers of one member: its own, and two reads for each extended one before it."""
_MANY_DIGITS = re.compile(rb"\d{41}")
"""Python before 3.11.10 and 3.12.6 takes time that grows with the square of a run of digits."""


class TarStream:
    """A file for `tarfile.TarFile`.

    Args:
        stream: The tar, unzipped.
        check: Called with every position before it is read or skipped to; raises if that is
            beyond the limit.
    """

    def __init__(self, stream: IO[bytes], check: Callable[[int], None]) -> None:
        self._stream = stream
        self._check = check
        self._position = 0
        self._reads_left: int | None = None
        self._last = b""

    @contextmanager
    def headers(self) -> Iterator[None]:
        """Around the reading of the headers of one member.

        Raises:
            ArchiveRefused: From inside, if they are too many or too large.
        """
        self._reads_left = _HEADER_READS
        try:
            yield
        finally:
            self._reads_left = None

    def require_end(self) -> None:
        """Reads what is left: the library takes a damaged header for the end, a block of zeros.

        Raises:
            EOFError: If it is not the end.
        """
        if self._last != bytes(BLOCKSIZE):
            raise EOFError
        # The padding; at the end of a gzip stream its checksum is compared.
        if len(self._stream.read(LONGEST_READ + 1)) > LONGEST_READ:
            raise EOFError

    def read(self, size: int) -> bytes:
        if self._reads_left is not None:
            self._reads_left -= 1
            if self._reads_left < 0 or size > HEADER_BYTES:
                raise _bad_headers()
        if not 0 <= size <= LONGEST_READ:
            raise EOFError
        self._check(self._position + size)
        self._last = content = self._stream.read(size)
        self._position += len(content)
        if self._reads_left is not None and size > BLOCKSIZE and _MANY_DIGITS.search(content):
            raise _bad_headers()
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # Going back would unzip everything again from the beginning.
        if whence != os.SEEK_SET or offset < self._position:
            raise EOFError
        self._check(offset)
        self._position = self._stream.seek(offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


def _bad_headers() -> ArchiveRefused:
    return ArchiveRefused(
        "A member of the archive has too many or too large headers.", param="file"
    )
