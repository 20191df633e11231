"""A proxy that cuts connections where a test says, as networks and restarts do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class CutProxy:
    """Passes every connection on to a server and cuts the first ones after some bytes.

    Attributes:
        url: Where it listens.
        connections: How many came.
    """

    def __init__(self, target: str, cuts: Sequence[int]) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._cuts = list(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            limit = self._cuts.pop(0) if self._cuts else None
            self.connections += 1
            far = socket.create_connection(self._target)
            for source, sink, most in ((near, far, None), (far, near, limit)):
                thread = threading.Thread(target=_pass_on, args=(source, sink, most))
                thread.start()
                self._threads.append(thread)


@contextmanager
def cut_proxy(target: str, cuts: Sequence[int]) -> Iterator[CutProxy]:
    """A proxy in front of `target` that cuts connection n after `cuts[n]` bytes of its answer."""
    proxy = CutProxy(target, cuts)
    try:
        yield proxy
    finally:
        proxy.close()


def _pass_on(source: socket.socket, sink: socket.socket, most: int | None) -> None:
    passed = 0
    try:
        while chunk := source.recv(1024):
            if most is not None:
                chunk = chunk[: most - passed]
            passed += len(chunk)
            sink.sendall(chunk)
            if passed == most:
                break
    except OSError:
        pass  # the other direction has ended
    # Both directions end with either; closing is left to the thread that reads this end.
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()
