"""The version that clients name, installed and not."""

from __future__ import annotations

import importlib.metadata

import pytest

from clients._version import FROM_CHECKOUT, version


def test_the_installed_version() -> None:
    assert version() == importlib.metadata.version("disp-server") != FROM_CHECKOUT


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert version() == FROM_CHECKOUT
