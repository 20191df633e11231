"""The version that clients name: the service's, for both are one package."""

from __future__ import annotations

from server.schemas.version import FROM_CHECKOUT, version

__all__ = ["FROM_CHECKOUT", "version"]
