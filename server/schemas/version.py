"""The version of the service and of its clients, which is one."""

from __future__ import annotations

import importlib.metadata

FROM_CHECKOUT = "0+checkout"


def version() -> str:
    """The installed version; `FROM_CHECKOUT` where the source runs without being installed."""
    try:
        return importlib.metadata.version("disp-server")
    except importlib.metadata.PackageNotFoundError:
        return FROM_CHECKOUT
